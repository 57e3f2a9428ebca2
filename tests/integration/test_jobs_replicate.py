"""Jobs that replicate a machine of a vCenter: their life, their cancel, what they may write to."""

import filecmp
import os

import pytest

from jobs_hub import Failed, need_tools
from support import MIB, wait_for
from test_jobs_vmware import SIZES, Place, check_killed, vc_fixture  # pylint: disable=unused-import

pytestmark = need_tools


class Replica(Place):
    """A file for each of the machine's disks."""

    def __init__(self, folder, vc):
        super().__init__(folder, vc, replica_state=os.path.join(folder, "records"))
        self.files = {key: f"{folder}/vms/replica-{key}" for key in SIZES}
        for key, path in self.files.items():
            with open(path, "wb") as file:
                file.write(os.urandom(MIB))
                file.truncate(SIZES[key])

    def spec(self, vm="web01", repository=None, **more):
        spec = {"kind": "replicate", "vcenter": "lab", "machine": f"/DC0/vm/{vm}",
                "targets": [{"key": str(key), "target": f"raw:{path}"}
                            for key, path in self.files.items()]}
        spec.update(more)
        return spec

    def same(self):
        return all(filecmp.cmp(self.machine.disks[key], path, shallow=False)
                   for key, path in self.files.items())


@pytest.fixture(name="site")
def site_fixture(scratch, vc):
    site = Replica(scratch, vc)
    try:
        yield site
    finally:
        site.end()


def test_a_whole_life(site):
    site.start()
    for generation, mode in ((1, "full"), (2, "delta")):
        site.machine.write(2000, MIB, os.urandom(100000))
        job = site.wait(site.add())
        assert job["state"] == "done" and job["vm"] == "web01", job["error"] or job
        assert job["report"]["generation"] == generation
        assert {disk["mode"] for disk in job["report"]["disks"]} == {mode}
        assert site.same()
        site.check_clean()
    job = site.wait(site.add(site.spec(cutover=True)))
    assert job["state"] == "failed" and "not switched off" in job["error"]["text"], job
    site.machine.set_power(False)
    job = site.wait(site.add(site.spec(cutover=True, verify="read-back")))
    assert job["state"] == "done" and job["report"]["cut_over"], job["error"]
    assert site.same()
    site.check_clean()
    site.stop()


def test_a_target_that_is_not_allowed(site):
    site.start()
    targets = site.spec()["targets"]
    targets[0]["target"] = f"raw:{site.folder}/elsewhere"
    with pytest.raises(Failed) as error:
        site.add(site.spec(targets=targets))
    assert error.value.code == "denied", error.value
    site.stop()


@pytest.mark.parametrize("stage", ["match", "prove", "snapshot", "begin", "copy", "verify", "commit"])
def test_cancelled_in_each_stage(site, stage):
    """The snapshot is removed, and the next run goes on."""
    site.start()
    assert site.wait(site.add())["state"] == "done"
    site.machine.write(2000, MIB, os.urandom(MIB))
    site.hold_at(stage, "hold")
    job = site.add()
    site.wait_held()
    site.do("cancel", id=job)
    site.release()
    end = site.wait(job)
    assert end["state"] == "cancelled", end
    site.check_clean()
    job = site.wait(site.add(site.spec(verify="read-back")))
    assert job["state"] == "done" and site.same(), job["error"]
    assert {disk["mode"] for disk in job["report"]["disks"]} == {"delta"}
    site.check_clean()
    site.stop()


def test_one_that_hangs_before_its_snapshot(site):
    """Nobody waits minutes for it to remove what it has not made, or looks for that."""
    site.start()
    site.hold_at("match", "stop")
    job = site.add()
    site.wait_held()
    site.wait(job, states=[], stages=["match"])
    site.do("cancel", id=job)
    end = site.wait(job)
    assert end["state"] == "cancelled", end
    site.release()
    assert [one["kind"] for one in site.do("list")["items"]] == ["replicate"]
    assert site.machine.snapshots() == []
    site.vc.expire_sessions()  # one that was killed did not log out
    assert site.wait(site.add())["state"] == "done"
    site.check_clean()
    site.stop()


def test_a_worker_is_killed(site):
    """Another attempt pays its debt, and goes on."""
    site.start()
    assert site.wait(site.add())["state"] == "done"
    site.machine.write(2000, MIB, os.urandom(MIB))
    site.lib.tell(thumbprint=site.vc.sha1, password=site.vc.password, slow=300)
    site.lib.forget()
    job = site.add()
    wait_for(lambda: site.lib.calls("read"), "reading")
    site.lib.tell(thumbprint=site.vc.sha1, password=site.vc.password)
    (pid,) = site.workers()
    os.kill(pid, 9)
    end = site.wait(job)
    assert end["state"] == "done" and end["attempt"] == 2, end
    assert site.same()
    check_killed(site)
    site.stop()

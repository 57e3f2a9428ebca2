"""Jobs with machines of a vCenter: into a repository here, and into one behind a hub; killed and
cancelled in each stage."""

import os
import shutil
import signal

import pytest

import hub
import vcenter
import vddk
from jobs_hub import HELD, Failed, Site, need_tools
from support import KIB, MIB, need, run, sendense, wait_for

pytestmark = need_tools

SIZES = {2000: 8 * MIB, 2001: 4 * MIB}


class Place(Site):
    """A queue of jobs beside a vCenter with a machine; its repositories: main, and far, behind a
    hub, where there is one."""

    def __init__(self, folder, vc, far=None, **config):
        self.vc, self.far = vc, far
        self.state = os.path.join(folder, "debts")
        self.lib = vddk.FakeVddk(folder, frozen=vc.frozen)
        self.lib.tell(thumbprint=vc.sha1, password=vc.password)
        super().__init__(folder, vmware_state=self.state, vddk=self.lib.folder, **config)
        # VMware's helper is looked for beside the program.
        program = f"{folder}/bin/worker"
        os.mkdir(f"{folder}/bin")
        shutil.copy(HELD, program)
        os.symlink(vddk.HELPER, f"{folder}/bin/sendense-vddk")
        self.config["program"] = program
        self.config["vcenters"] = [{"name": "lab", "url": vc.url().rstrip("/"), "ca_file": vc.ca,
                                    "password_file": vc.password_file}]
        if far:
            self.config["repositories"].append(
                {"name": "far", "url": f"{far.url}/main", "token_file": far.token_file,
                 "ca_file": far.ca_file})
        self.env["SENDENSE_FAKE_VDDK"] = self.lib.config
        self.machine = vc.add_machine("web01", SIZES, cbt=True)
        for key in SIZES:
            self.machine.write(key, 3 * MIB, os.urandom(300 * KIB))

    def spec(self, vm="web01", repository="main", **more):
        spec = {"kind": "backup", "vcenter": "lab", "machine": f"/DC0/vm/{vm}",
                "repository": repository}
        spec.update(more)
        return spec

    def points(self, vm="web01", repository="main"):
        if repository == "far":
            done = hub.cli(self.far, "ls", vm, "--json", status=None)
            return [p["point"] for p in done.json["points"]] if done.status == 0 else []
        return super().points(vm)

    def debts(self):
        return sorted(os.listdir(self.state)) if os.path.isdir(self.state) else []

    def check_clean(self):
        """Nothing is left, here or at the vCenter."""
        self.nothing_left()
        assert self.machine.snapshots() == [] and self.debts() == []
        assert self.vc.sessions() == 0 and self.lib.helpers() == []

    def check_disks(self, repository="main"):
        """The latest restore point is what the machine's disks hold."""
        words = ["restore", "--repo", self.repo]
        if repository == "far":
            words = ["restore", "--repo", self.far.url, "--token-file", self.far.token_file,
                     "--ca-file", self.far.ca_file]
        out = {key: f"{self.folder}/back-{key}.raw" for key in SIZES}
        sendense(*words, "web01", *[word for key, path in out.items()
                                    for word in ("--to", f"{key}=raw:{path}")], "--force")
        for key, path in out.items():
            run("qemu-img", "compare", "-f", "raw", "-F", "raw", self.machine.disks[key], path)


@pytest.fixture(name="vc")
def vc_fixture(scratch):
    need("qemu-img")
    with vcenter.fake_in(scratch) as made:
        yield made
        made.heal()


@pytest.fixture(name="site")
def site_fixture(scratch, vc):
    site = Place(scratch, vc)
    try:
        yield site
    finally:
        site.end()


@pytest.fixture(name="both")
def both_fixture(scratch, vc, servers):
    with hub.hub_in(servers) as far:
        far.start()
        os.mkdir(f"{scratch}/node")
        site = Place(f"{scratch}/node", vc, far)
        try:
            yield site
        finally:
            site.end()


def secrets_in(folder, *secrets):
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                data = file.read()
            found += [name for secret in secrets if secret.encode() in data]
    return found


@pytest.mark.parametrize("repository", ("main", "far"))
def test_a_whole_life(both, repository):
    both.start()
    for mode in ("full", "incremental"):
        both.machine.write(2000, MIB, os.urandom(64 * KIB))
        job = both.wait(both.add(both.spec(repository=repository)))
        assert job["state"] == "done" and job["attempt"] == 1, job["error"] or job
        assert {disk["mode"] for disk in job["report"]["disks"]} == {mode}, job["report"]
        assert job["vm"] == "web01" and job["point"] == both.points(repository=repository)[-1]
        both.check_disks(repository)
        both.check_clean()
    # Secrets are in no plan, log or command line.
    with open(both.far.token_file, encoding="ascii") as file:
        token = file.read().strip()
    assert secrets_in(f"{both.folder}/kept", token, both.vc.password) == []
    assert secrets_in(f"{both.folder}/run", token, both.vc.password) == []
    both.stop()


def reading(site, job):
    """Until its worker reads."""
    site.wait(job, states=[], stages=["copy"])
    wait_for(lambda: site.lib.calls("read"), "reading")


def slow(site, ms):
    site.lib.tell(thumbprint=site.vc.sha1, password=site.vc.password, **({"slow": ms} if ms else {}))


def check_killed(site):
    """Also of one that could not log out."""
    wait_for(lambda: site.do("counts")["queued"] + site.do("counts")["running"] == 0, "the end of all jobs")
    wait_for(lambda: not site.lib.helpers(), "the helpers' end")
    site.vc.expire_sessions()
    site.check_clean()


def test_a_cancelled_one_removes_its_snapshot(site):
    """However long that takes, and over a restart of the queue; bounded, and shown."""
    site.start()
    slow(site, 2000)
    job = site.add(site.spec())
    reading(site, job)
    assert len(site.machine.snapshots()) == 1
    site.vc.held()
    site.vc.fail("RemoveSnapshot_Task", calls=1, slow=50)
    site.do("cancel", id=job)
    shown = site.wait(job, states=[], stages=["give-back"])
    assert "the test asked" in shown["stopping"], shown
    wait_for(site.vc.held, "the removal")
    # What ends others after four seconds does not end this one; the next one of the machine waits.
    with pytest.raises(Failed) as failed:
        site.wait(job, ms=5000)
    assert failed.value.code == "timeout"
    second = site.add(site.spec())
    site.kill()
    site.start()
    third = site.add({"kind": "cleanup", "vcenter": "lab"})
    end = site.wait(third)
    assert end["state"] == "done", end
    assert [debt["path"] for debt in end["report"]["left"]] == ["/DC0/vm/web01"], end
    assert site.do("get", id=second)["waits_for"] == f"job {job} (backup of the same machine)"
    slow(site, 0)
    site.vc.release()
    end = site.wait(job)
    assert end["state"] == "cancelled" and "the test asked" in end["error"]["text"], end
    assert site.wait(second)["state"] == "done"
    site.check_disks()
    site.check_clean()
    site.stop()


def test_a_worker_that_stands_still_is_killed_all_the_same(site):
    """It gives no sign of life, so that nobody waits minutes for its snapshot."""
    site.start(silence_ms=1500)
    site.hold_at("copy", "stop")
    job = site.add(site.spec())
    site.wait_held()
    site.wait(job, states=[], stages=["copy"])
    site.do("cancel", id=job)
    end = site.wait(job)
    assert end["state"] == "cancelled", end
    site.release()
    wait_for(lambda: not site.workers() and not site.lib.helpers(), "the worker's end")
    # A job of its own removes what it left.
    (cleanup,) = [job for job in site.do("list")["items"] if job["kind"] == "cleanup"]
    end = site.wait(cleanup["id"])
    assert end["state"] == "done" and end["requested_by"] == f"job {job}", end
    assert [debt["path"] for debt in end["report"]["removed"]] == ["/DC0/vm/web01"]
    check_killed(site)
    site.stop()


def test_what_may_be_asked_for(site):
    site.start()
    for spec, field in (
            (site.spec(vcenter="other"), "vcenter: there is none"),
            (site.spec(url="vmware://root@127.0.0.1/x"), "url: there is no such field"),
            (site.spec(repository="other"), "repository: there is none"),
            ({"kind": "cleanup"}, "vcenter: it is missing")):
        with pytest.raises(Failed) as failed:
            site.add(spec)
        assert failed.value.code == "usage" and field in failed.value.text, failed.value
    # No word becomes an option, or a user of another server.
    for machine in ("--help", "@evil.example/web01", "../web01", "web01?x#y"):
        end = site.wait(site.add(site.spec(machine=machine)))
        assert (end["state"], end["error"]["code"]) == ("failed", "not-found"), end
    site.check_clean()
    site.stop()


STAGES = {"main": ["check", "prepare", "snapshot", "begin", "copy", "rename-manifest", "log", "give-back"],
          "far": ["snapshot", "begin", "copy", "commit", "give-back"]}
CASES = [(repository, victim, stage) for repository, stages in STAGES.items()
         for nr, stage in enumerate(stages) for victim in ("worker", "hub", "both")
         if stage in ("copy", "give-back") or victim == ("worker", "both", "hub")[nr % 3]]


@pytest.mark.parametrize("repository,victim,stage", CASES)
def test_killed_in_each_stage(both, repository, victim, stage):
    """One restore point, no snapshot, nobody's debt."""
    both.start()
    for nr in range(2 if stage in ("copy", "give-back") else 1):  # a full, an increment
        both.machine.write(2000, nr * MIB, os.urandom(64 * KIB))
        both.hold_at(stage, "hold")
        job = both.add(both.spec(repository=repository))
        both.wait_held()
        both.wait(job, states=[], stages=[stage])
        (pid,) = both.workers()
        if victim in ("hub", "both"):
            both.kill()
            assert list(both.workers()) == [pid], "workers outlive the queue"
        if victim in ("worker", "both"):
            os.kill(pid, signal.SIGKILL)
        if victim in ("hub", "both"):
            both.start()
        both.release()
        end = both.wait(job)
        assert end["state"] == "done", end["error"]
        assert end["attempt"] == (1 if victim == "hub" else 2), end
        points = both.points(repository=repository)
        assert len(points) == nr + 1 and end["point"] == points[-1], (points, end)
        both.check_disks(repository)
        check_killed(both)
    both.stop()

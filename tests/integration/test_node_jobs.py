"""Jobs of a node: backups into folders and hubs, replications, cleanups; what dies meanwhile.

With SENDENSE_SOAK=1 each stage has ten kills."""

import os
import signal
import types

import pytest

import hub
import node
import support
import vcenter
from node import PATH, SIZES, known
from support import wait_for

ROUNDS = 10 if os.environ.get("SENDENSE_SOAK") else 1


@pytest.fixture
def site(servers, scratch):
    with vcenter.fake_in(scratch) as vc, node.site_in(servers, vc) as made:
        yield made


# --- backups -------------------------------------------------------------------------------


def test_backups_into_a_folder(site):
    n = site.start().node
    done = n.backup(PATH)
    assert done["report"]["vm"] == "web01"
    assert {disk["mode"] for disk in done["report"]["disks"]} == {"full"}
    assert site.same() and site.is_clean()
    for key in SIZES:
        site.guest_writes(key, 2)
    done = n.backup(site.machine.instance_uuid, mode="incremental", quiesce=False)
    assert {disk["mode"] for disk in done["report"]["disks"]} == {"incremental"}
    assert site.same() and site.is_clean()
    # No secret anywhere: not in the log of the node, of the job, nor in the state folder.
    log = n.stop()
    assert site.vc.password not in log
    for folder, _, names in os.walk(n.state):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                assert site.vc.password.encode() not in file.read(), name


def test_what_may_be_asked_for(site):
    n = site.start().node
    good = {"repository": "main", "vcenter": "vc", "machine": PATH}

    def wrong(case, status, contains, route="backups", token="", **members):
        answer = n.ask("POST", route, {**good, **members}, token=token)
        assert answer.status == status and contains in answer.body["detail"], (case, answer.body)
        support.bad_input(f"node: {case}", answer.body["detail"])

    wrong("a vCenter that is not in the settings", 422, "vcenter: there is none", vcenter="other")
    wrong("a repository that is not in the settings", 422, "repository: there is none", repository="x")
    wrong("a server in place of a name", 422, "vcenter", vcenter="vmware://u@evil.example")
    wrong("a member that is not known", 422, "password", password="x")
    wrong("a kind", 422, "kind", kind="restore")
    backup = n.make_token("backup", vms=["web*"])
    wrong("a token for other machines", 403, "not for the VM", vm="db", token=backup)
    wrong("a token for machines, and none is named", 403, "must name it", token=backup)
    # Else it would have another machine read into one of its own.
    for machine in ("/DC0/vm/db", "db", "/DC0/vm/web01/db", "/DC0/vm/db/", site.machine.instance_uuid, "/", "/DC0/vm/web01/.."):
        wrong("a token for machines, which reads another one", 403, "machine:", vm="web01", machine=machine,
              token=backup)
    wrong("a token for machines, and what others have to leave", 403, "reserve_bytes", vm="web01",
          reserve_bytes=2 ** 62, token=backup)
    assert n.all("jobs") == []
    answer = n.ask("POST", "replications", {"vcenter": "vc", "machine": PATH, "targets": []}, token=backup)
    assert answer.status == 403
    answer = n.ask("POST", "replications", {"vcenter": "vc", "machine": PATH, "targets": [
        {"key": "2000", "target": f"raw:{n.state}/state.db"}]})
    assert answer.status == 403, answer.body
    failed = n.wait(n.post("backups", {**good, "machine": "/DC0/vm/none"}), "failed")
    assert "no VM" in failed["error"]["text"]
    for machine in (PATH, f"{PATH}/", "web01"):
        assert n.wait(n.post("backups", {**good, "machine": machine, "vm": "web01"}, token=backup))["vm"] == "web01"
    assert site.is_clean()


def test_backups_into_a_hub(site, servers):
    n = site.node
    with hub.hub_in(servers) as h:
        secret = os.path.join(n.folder, "hub.token")
        with open(os.open(secret, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="ascii") as file:
            file.write(h.start().make_token("backup", vms=["web*"]) + "\n")
        n.far["far"] = (types.SimpleNamespace(url=h.url, token_file=secret, ca_file=h.ca_file), "main")
        site.start()
        n.backup(PATH, repository="far", vm="web01")
        site.guest_writes(2000, 2)
        done = n.backup(PATH, repository="far")
        assert {disk["mode"] for disk in done["report"]["disks"]} == {"incremental"}
        images = h.point_images("web01")
        assert all(hub.compare(images[str(key)], path) for key, path in site.machine.disks.items())
        assert site.is_clean()
        assert h.token not in n.process.err


def test_cancel_gives_the_snapshot_back(site):
    n = site.start().node
    job = site.until_it_reads()
    assert len(site.machine.snapshots()) == 1
    n.post(f"jobs/{job['id']}/cancel")
    n.wait(job, "cancelled")
    assert site.is_clean()
    assert n.backup(PATH)["state"] == "done" and site.same()


def test_one_job_for_a_machine(site):
    n = site.start().node
    first = site.until_it_reads()
    second = n.start_backup(PATH, vm="web01")
    assert n.job(second["id"])["state"] == "queued" and n.job(second["id"])["waits_for"]
    n.wait(first)
    n.wait(second)
    assert site.is_clean() and site.same()


# --- replications ----------------------------------------------------------------------------


def test_replications(site):
    n = site.start().node
    targets = []
    for key, size in SIZES.items():
        path = os.path.join(n.folder, f"replica-{key}.raw")
        with open(path, "wb") as file:
            file.truncate(size)
        targets.append({"key": str(key), "target": f"raw:{path}"})
    body = {"vcenter": "vc", "machine": PATH, "vm": "web01", "targets": targets}

    def same():
        return all(support.same_content(target["target"][4:], "raw", site.machine.disks[int(target["key"])], "raw")
                   for target in targets)

    n.wait(n.post("replications", {**body, "force": True}))
    assert same() and site.is_clean()
    site.guest_writes(2000, 2)
    n.wait(n.post("replications", body))
    assert same() and site.is_clean()
    site.machine.set_power(False)
    n.wait(n.post("replications", {**body, "cutover": True}))
    assert same() and site.is_clean()


# --- what dies -------------------------------------------------------------------------------


def kill_workers(site):
    for pid in site.node.workers():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not site.lib.helpers(), "the helpers to end")


def test_a_worker_is_killed(site):
    """Tried again, it removes the snapshot of the first attempt."""
    n = site.start().node
    job = site.until_it_reads()
    (debt,) = n.get("debts")["items"]
    assert debt["alive"] and debt["path"] == PATH and "file" not in debt
    kill_workers(site)
    done = n.wait(job)
    assert done["attempt"] == 2 and site.is_clean() and site.same()


def test_a_snapshot_that_is_left_is_told_and_cleaned_up(site):
    n = site.start().node
    site.vc.held()
    site.vc.fail("RemoveSnapshot_Task", slow=50, calls=1)
    job = site.until_it_reads()
    n.post(f"jobs/{job['id']}/cancel")  # or it would be tried again
    wait_for(lambda: "RemoveSnapshot_Task" in site.vc.held(), "the removal")
    site.vc.fail("RemoveSnapshot_Task", calls=-1, task="InvalidState")
    kill_workers(site)
    n.wait(job, "cancelled")
    # Its cleanup, which comes by itself, meets a server that refuses.
    wait_for(lambda: [each for each in n.all("jobs?state=queued") if each["attempt"] == 1],
             "a cleanup that is to be tried again")
    (debt,) = n.get("debts")["items"]
    assert not debt["alive"] and site.machine.snapshots() == [debt["snapshot"]]
    assert "sendense_debts 1" in n.ask("GET", "/metrics").body.decode()
    site.vc.heal()
    n.wait(n.post("cleanups", {"vcenter": "vc"}))
    assert site.is_clean()
    for each in n.all("jobs?kind=cleanup"):
        n.wait(each)
    assert n.backup(PATH)["state"] == "done" and site.is_clean() and site.same()


def test_a_worker_ends_while_there_is_no_node(site):
    n = site.start().node
    job = site.until_it_reads()
    n.kill()
    wait_for(lambda: not n.workers(), "the worker's end")
    site.start()
    assert n.wait(job)["attempt"] == 1
    assert site.is_clean() and site.same()


def until_it_removes(site):
    """A backup whose worker removes the snapshot, and waits for that."""
    site.vc.held()
    site.vc.fail("RemoveSnapshot_Task", slow=50, calls=1)
    job = site.node.start_backup(PATH)
    wait_for(lambda: "RemoveSnapshot_Task" in site.vc.held(), "the removal")
    return job


def test_a_clean_stop_hands_over(site):
    n = site.node
    n.stop_timeout = "1s"
    site.start()
    job = until_it_removes(site)
    n.stop()
    assert len(n.workers()) == 1
    site.start()
    assert n.job(job["id"])["state"] not in hub.ENDS
    site.vc.release()
    assert n.wait(job)["attempt"] == 1
    assert site.is_clean() and site.same()


def test_a_stop_that_cancels(site):
    n = site.node
    n.at_stop = "cancel"
    site.start()
    job = site.until_it_reads()
    n.stop()
    assert not n.workers() and site.machine.snapshots() == []
    site.start()
    n.wait(job, "cancelled")
    assert site.is_clean() and n.backup(PATH)["state"] == "done" and site.same()


def test_a_stop_that_cancels_does_not_wait_for_a_slow_removal(site):
    """Its worker goes on with that alone, and the next node finds it."""
    n = site.node
    n.at_stop, n.stop_timeout = "cancel", "2s"
    site.start()
    job = site.until_it_reads()
    site.vc.held()
    site.vc.fail("RemoveSnapshot_Task", slow=50, calls=1)
    n.stop()
    assert "RemoveSnapshot_Task" in site.vc.held() and len(n.workers()) == 1
    site.start()
    site.vc.release()
    n.wait(job, "cancelled")
    assert site.is_clean() and n.backup(PATH)["state"] == "done" and site.same()


# What a worker waits in: a call, after how many others of its kind; None: VMware's library reads.
STAGES = {"login": ("Login", 0), "facts": ("RetrievePropertiesEx", 2), "asking": ("CreateSnapshot_Task", 0),
          "areas": ("QueryChangedDiskAreas", 1), "reading": None, "removing": ("RemoveSnapshot_Task", 0)}


def until_it_waits(site, stage):
    """A backup whose worker is in that stage, and stays there for a while."""
    if not STAGES[stage]:
        return site.until_it_reads(lambda: site.node.start_backup(PATH))
    method, skip = STAGES[stage]
    site.vc.held()
    site.vc.fail(method, slow=50, calls=1, skip=skip)
    job = site.node.start_backup(PATH)
    wait_for(lambda: method in site.vc.held() or site.node.job(job["id"])["state"] in hub.ENDS, stage)
    assert site.node.job(job["id"])["state"] not in hub.ENDS, site.node.job(job["id"])
    return job


@pytest.mark.parametrize("round_", range(ROUNDS))
@pytest.mark.parametrize("victims", ["node", "node and worker"])
@pytest.mark.parametrize("stage", list(STAGES))
def test_killed_in_each_stage(site, stage, victims, round_):
    """The next node finds what became of the worker; nothing is left, the next run is good."""
    del round_
    n = site.start().node
    known(n)
    n.backup(PATH)
    site.guest_writes(2000)
    job = until_it_waits(site, stage)
    n.kill()
    if "worker" in victims:
        kill_workers(site)
        wait_for(lambda: not n.workers(), "the worker's end")
    site.vc.release()
    site.vc.heal()
    site.start()
    done = n.wait(job)
    assert done["attempt"] == (2 if "worker" in victims else 1)
    assert len(n.points_of("web01")) == 2  # one that was made is not made again
    if (stage, victims) != ("removing", "node and worker"):
        assert site.is_clean()
    assert site.same()
    site.guest_writes(16000)
    assert n.backup(PATH)["state"] == "done" and site.is_clean() and site.same()

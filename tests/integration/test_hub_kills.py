"""kill -9 of the hub, of the NBD service, and of both, in each named stage of a push: every job ends
with a reason or goes on, nothing is left, what was committed verifies.

(Workers in each of their stages: test_jobs_kill.py; clients: test_client_kills.py.)  strace slows the
NBD service's ways to the disk down, so that each stage lasts long enough to be met.  With
SENDENSE_SOAK=1 ten times each, else each stage once, the victims in turn.
"""

import contextlib
import http.client
import os
import signal
import sqlite3
import threading
import time

import pytest

import hub
import support
from support import MIB, make_disk, sendense, wait_for

STAGES = ["copy", "end-exports", "settle", "compare", "commit", "sync-data", "close-data", "sync-sums",
          "rename-data", "sync-folders", "rename-manifest", "log", "drop-plan"]
VICTIMS = ["hub", "nbd-service", "both"]
SOAK = bool(os.environ.get("SENDENSE_SOAK"))
CALLS = "fsync,fdatasync,renameat,renameat2,linkat,unlinkat"


@pytest.fixture
def h(servers):
    support.need("strace", "nbdcopy")
    with hub.hub_in(servers) as made:
        yield made.start()


def slow_down(h, servers, calls=CALLS, by_us=60000):
    """Until the service dies, or it is stopped."""
    slow = servers.start("strace", "-f", "-o", "/dev/null", "-e", f"trace={calls}", "-e",
                         f"inject={calls}:delay_enter={by_us}", "-p", h.nbd_service(), name="strace")
    wait_for(lambda: "attached" in slow.err or not slow.running, "strace")
    if "attached" not in slow.err:
        pytest.skip(f"strace: {slow.err.strip()}")
    return slow


def kill(h, victim):
    service = h.nbd_service()
    if victim in ("nbd-service", "both"):
        os.kill(service, signal.SIGKILL)
    if victim in ("hub", "both"):
        h.kill()
        h.start()
    wait_for(lambda: h.get("health")["status"] == "ok", "the NBD service")


def one(h, servers, vm, disk, stage, victim):
    """One push that meets its victim's end; True when that left it whole."""
    sizes = {"2000": {"key": "2000", "size_bytes": os.path.getsize(disk), "source_state": "frozen"}}
    session = h.open_session(vm, sizes, resume="auto")
    h.write(session["disks"][0]["export"], disk)
    slow = slow_down(h, servers)
    try:
        met = None
        if stage != "copy":
            h.post(f"sessions/{session['id']}/commit", {"disks": [{"key": "2000"}]})
            met = h.wait_stage(session["id"], stage)
            if met["stage"] != stage or met["state"] in hub.ENDS:
                return None  # it went by too quickly: does not count
        kill(h, victim)
        if stage == "copy" and victim == "hub":
            h.commit(session)
    finally:
        slow.signal(signal.SIGKILL)  # strace waits for those that it delays
        slow.wait()
    end = h.wait(session["id"], None)
    assert end["state"] in ("done", "failed"), end
    if end["state"] == "failed":
        assert end["error"]["text"]
        again = h.open_session(vm, sizes, resume="auto")
        h.write(again["disks"][0]["export"], disk)
        h.commit(again)
    assert h.get("sessions")["items"] == [] and h.open_jobs() == []
    assert 1 <= len(h.points(vm)) <= 2
    assert hub.compare(h.point_images(vm)["2000"], disk)
    return end["state"] == "done"


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_in_each_stage_of_a_push(h, servers, scratch, victim):
    disk = make_disk(f"{scratch}/a.raw", 4 * MIB, [(0, 2 * MIB, "random")])
    stages = STAGES if SOAK else STAGES[VICTIMS.index(victim)::len(VICTIMS)]
    met = {stage: 0 for stage in stages}
    for stage in stages:
        wanted = 10 if SOAK else 1
        for attempt in range(wanted * 3):
            if met[stage] == wanted:
                break
            whole = one(h, servers, f"{stage}-{attempt}", disk, stage, victim)
            met[stage] += whole is not None
            if victim == "hub" and whole is not None:
                assert whole, stage  # the NBD service goes on by itself
    print(f"{victim}: {met}")
    assert all(met.values()), met
    h.wait(h.post("verifications", {"repository": "main"}))
    sendense("repo", "check", h.repositories["main"], "--quiet")
    assert os.listdir(os.path.join(h.repositories["main"], ".incoming")) == []
    h.stop()
    wait_for(lambda: hub.pids_of(h.runtime) == [], "the NBD service's end")
    assert [name for name in os.listdir(h.runtime) if name.endswith(".sock")] == []


def unnote(h, kind):
    """Takes the hub's notes of that kind away, as if it had been killed before it made them."""
    with sqlite3.connect(os.path.join(h.state, "state.db")) as db:
        assert db.execute("DELETE FROM object WHERE kind = ?", (kind,)).rowcount == 1
    db.close()


def ended(h, session, state):
    """The job's end, soon."""
    wait_for(lambda: h.job(session["id"])["state"] in hub.ENDS, "the job's end", timeout=10)
    job = h.job(session["id"])
    assert job["state"] == state, job
    return job


def test_killed_between_a_push_s_job_and_its_note(h, scratch):
    """The job of a session that nobody knows is not open for ever, and in no backup's way."""
    disk = make_disk(f"{scratch}/a.raw", MIB, [(0, MIB, "random")])
    session = h.open_session("m", {"2000": MIB})
    os.kill(h.nbd_service(), signal.SIGKILL)
    h.kill()
    unnote(h, "session")
    h.start()
    assert "killed" in ended(h, session, "failed")["error"]["text"]
    h.push("m", {"2000": disk})
    assert h.open_jobs() == []


def test_killed_between_a_push_s_cancelling_and_its_end(h):
    """What somebody cancelled is cancelled by the next hub."""
    session = h.open_session("m", {"2000": MIB})
    h.kill()
    with sqlite3.connect(os.path.join(h.state, "state.db")) as db:
        db.execute("UPDATE job SET value = json_set(value, '$.cancel', json(?)) WHERE id = ?",
                   ('{"code": "cancelled", "text": "cancelled by a test"}', session["id"]))
    db.close()
    h.start()
    ended(h, session, "cancelled")
    assert h.open_jobs() == [] and h.get("sessions")["items"] == []


def test_a_damaged_manifest_is_no_restore_point(h, scratch):
    """What a push left behind a dead service counts as made only where it can be read."""
    session = h.open_session("m", {"2000": MIB})
    os.kill(h.nbd_service(), signal.SIGKILL)
    h.kill()
    point = os.path.join(h.repositories["main"], "vms", "m", "points", session["point"])
    with open(os.path.join(point, "manifest.json"), "w", encoding="ascii") as file:
        file.write("{}")
    h.start()
    ended(h, session, "failed")


def test_a_stop_does_not_wait_for_a_session_that_is_being_opened(h, servers, scratch):
    """An interrupted job is read before it is gone on with, which may take hours."""
    disk = make_disk(f"{scratch}/a.raw", 32 * MIB, [(0, 32 * MIB, "random")])
    sizes = {"2000": {"key": "2000", "size_bytes": 32 * MIB, "source_state": "frozen"}}
    session = h.open_session("m", sizes, resume="auto")
    h.write(session["disks"][0]["export"], disk)
    h.call("DELETE", f"sessions/{session['id']}?keep=true")
    slow = slow_down(h, servers, "pread64,preadv", 300000)

    def open_it():
        with contextlib.suppress(OSError, http.client.HTTPException, hub.Refused):
            h.open_session("m", sizes, resume="auto")

    opening = threading.Thread(target=open_it)
    opening.start()
    try:
        wait_for(lambda: any("stage" in h.get(f"sessions/{item['id']}")
                             for item in h.get("sessions")["items"]), "the opening")
        began = time.monotonic()
        h.process.signal(signal.SIGTERM)
        assert h.process.wait() == 0
        assert time.monotonic() - began < 10
    finally:
        slow.signal(signal.SIGKILL)
        slow.wait()
        opening.join()
    h.start()
    again = h.open_session("m", sizes, resume="auto")
    assert again["disks"][0]["resumed"] == "resumed" and again["disks"][0]["kept_bytes"] == 32 * MIB

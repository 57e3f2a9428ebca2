"""What ends while no hub runs, or while one stops or starts, is dealt with as if it had run: the job's
record, retention after a success, alarms, the index and the audit log.
"""

import contextlib
import os
import signal
import sqlite3

import pytest

import hub
import support
from support import MIB, make_disk, wait_for

CALLS = "fsync,fdatasync,renameat,renameat2,linkat,unlinkat"


@pytest.fixture
def h(servers):
    support.need("nbdcopy", "strace")
    with hub.hub_in(servers) as made:
        made.start()
        made.post("policies", {"id": "one", "vms": ["*"], "keep": {"last": 1}})
        yield made


@pytest.fixture
def disk(scratch):
    return make_disk(f"{scratch}/a.raw", 4 * MIB, [(0, 2 * MIB, "random")])


def ends(h, job):
    """The job's end in the audit log."""
    return [event["detail"] for event in h.all("events")
            if event["action"] == "job.end" and event["object"] == f"job {job}"]


def caught_up(h, job, prunes):
    """The job is done, its restore point the only one, each of its ends dealt with once."""
    end = h.wait(job)
    wait_for(lambda: len(h.all("jobs?kind=prune&vm=a")) == prunes, "retention after a success")
    for prune in h.all("jobs?kind=prune&vm=a"):
        assert prune["requested_by"] == "policy one"
        h.wait(prune)
    assert [point["point"] for point in h.points("a")] == [end["point"]], end
    wait_for(lambda: not h.get("status")["alarms"], "the alarms' end")
    wait_for(lambda: ends(h, job), "the job's end in the audit log")
    [told] = ends(h, job)
    assert told["state"] == "done" and told["point"] == end["point"] and told["vm"] == "a"
    assert h.open_jobs() == [] and h.get("sessions")["items"] == []
    with contextlib.closing(sqlite3.connect(os.path.join(h.state, "state.db"))) as db:
        wait_for(lambda: db.execute("SELECT count(*) FROM take").fetchone()[0] == 0, "all to be given back")
    return end


def first(h, disk):
    """A restore point, and the retention behind it."""
    h.push("a", {"2000": disk})
    wait_for(lambda: h.all("jobs?kind=prune&vm=a&state=done"), "the first one's retention")


def fail_once(h):
    """A push that is refused: an alarm."""
    session = h.open_session("a", {"2000": 4 * MIB}, digest="required")
    wrong = {"digest": {"kind": "root", "hex": "00" * 32}}
    h.commit(session, "failed", **{"2000": wrong})
    wait_for(lambda: h.get("status")["alarms"], "an alarm")


@pytest.mark.parametrize("starts", [False, True])
def test_a_push_that_is_committed_while_no_hub_runs(h, servers, disk, starts):
    first(h, disk)
    fail_once(h)
    session = h.open_session("a", {"2000": 4 * MIB})
    h.write(session["disks"][0]["export"], disk)
    service = h.nbd_service()
    slow = servers.start("strace", "-f", "-o", "/dev/null", "-e", f"trace={CALLS}", "-e",
                         f"inject={CALLS}:delay_enter=60000", "-p", service, name="strace")
    wait_for(lambda: "attached" in slow.err or not slow.running, "strace")
    if "attached" not in slow.err:
        pytest.skip(f"strace: {slow.err.strip()}")
    try:
        h.post(f"sessions/{session['id']}/commit", {"disks": [{"key": "2000"}]})
        h.kill()
        if starts:
            h.start()  # it is committed while the hub starts, or a little later
    finally:
        slow.signal(signal.SIGKILL)
        slow.wait()
    manifest = os.path.join(h.repositories["main"], "vms", "a", "points", session["point"], "manifest.json")
    wait_for(lambda: os.path.exists(manifest), "the restore point")
    if not starts:
        h.start()
    end = caught_up(h, session["id"], 2)
    assert end["point"] == session["point"]
    assert end["progress"]["sent"] >= 2 * MIB and end["progress"]["total"] == 4 * MIB
    assert hub.compare(h.point_images("a")["2000"], disk)


def test_a_push_whose_service_died_behind_its_commit_point(h, disk):
    """Nobody tells of it but the repository."""
    first(h, disk)
    session = h.open_session("a", {"2000": 4 * MIB})
    h.write(session["disks"][0]["export"], disk)
    service = h.nbd_service()
    h.kill()
    # The commit is asked for beside the hub, as by one that was killed at once.
    support.run("python3", "-c", """
import json, socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    def ask(**request):
        s.sendall(json.dumps(request).encode() + b"\\n")
        answer = b""
        while not answer.endswith(b"\\n"):
            answer += s.recv(65536)
        return json.loads(answer)
    assert ask(verb="session-commit", session=sys.argv[2], disks=[{"key": "2000"}])["ok"]
    state = seen = 0
    while state != "committed":
        told = ask(verb="session", session=sys.argv[2], wait_ms=60000, seen=seen)
        state, seen = told["state"], told["changes"]
""", f"{h.runtime}/nbd.sock", session["id"])
    os.kill(service, signal.SIGKILL)
    h.start()
    assert caught_up(h, session["id"], 2)["point"] == session["point"]


def test_a_backup_that_ends_while_the_hub_stops(h, disk):
    first(h, disk)
    job = h.start_backup("a", {"2000": f"raw:{disk}"}, mode="full", limit_rate=2 * MIB)
    h.wait_stage(job["id"], "copy")
    h.stop()  # waits for it
    h.start()
    caught_up(h, job["id"], 2)


def test_what_was_dealt_with_is_not_dealt_with_again(h, disk):
    job = h.backup("a", {"2000": f"raw:{disk}"})
    caught_up(h, job["id"], 1)
    h.restart()
    h.kill()
    h.start()
    caught_up(h, job["id"], 1)


def test_killed_before_it_dealt_with_an_end(h, disk):
    """What follows is done once more rather than never."""
    job = h.backup("a", {"2000": f"raw:{disk}"})
    caught_up(h, job["id"], 1)
    h.kill()
    with contextlib.closing(sqlite3.connect(os.path.join(h.state, "state.db"))) as db:
        with db:
            db.execute("INSERT INTO take (job, kind, name) VALUES (?, 'end', 'told')", (job["id"],))
            db.execute("INSERT INTO take (job, kind, name) VALUES ('20200101T000000Z-12345678', 'end', 'told')")
    h.start()
    wait_for(lambda: len(h.all("jobs?kind=prune&vm=a&state=done")) == 2, "retention after a success")
    wait_for(lambda: len(ends(h, job["id"])) == 2, "the job's end in the audit log")
    with contextlib.closing(sqlite3.connect(os.path.join(h.state, "state.db"))) as db:
        wait_for(lambda: db.execute("SELECT count(*) FROM take").fetchone()[0] == 0, "all to be given back")


def test_what_ended_while_others_are_tried_again_is_told_of_once(h, disk):
    """The hub that starts hears of the ends from its supervisor, which is busy then."""
    slow = [h.start_backup(vm, {"2000": f"raw:{disk}"}, limit_rate=128 * 1024) for vm in "bcd"]
    job = h.start_backup("a", {"2000": f"raw:{disk}"}, limit_rate=MIB)
    for begun in [*slow, job]:
        h.wait_stage(begun["id"], "copy")
    h.kill()
    for begun in slow:
        for pid in hub.pids_of(f"{h.runtime}/jobs/{begun['id']}"):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: os.path.exists(f"{h.runtime}/jobs/{job['id']}/exit.json"), "the worker's end")
    h.start()
    for begun in slow:
        h.post(f"jobs/{begun['id']}/cancel")
        h.wait(begun, state="cancelled")
    caught_up(h, job["id"], 1)

"""Jobs: queue, limits, what may be asked for, the ends of workers, cancel, deadlines."""

import json
import os
import signal
import socket
import time

import pytest

from jobs_hub import Failed, need_tools, processes, site_in
from support import MIB, need_mounts, run, sendense, under_sanitizer, wait_for

pytestmark = need_tools


@pytest.fixture
def site(scratch):
    with site_in(scratch) as made:
        yield made


def refused(site, code, spec, contains=()):
    with pytest.raises(Failed) as failed:
        site.add(spec)
    assert failed.value.code == code, failed.value
    for text in [contains] if isinstance(contains, str) else contains:
        assert text in failed.value.text, failed.value


def failed_with(site, spec, code, contains):
    job = site.wait(site.add(spec))
    assert (job["state"], job["error"]["code"]) == ("failed", code), job
    assert contains in job["error"]["text"], job
    return job


def test_a_whole_life(site):
    site.start()
    job = site.wait(site.add())
    assert job["state"] == "done" and job["attempt"] == 1, job
    assert job["point"] == site.points()[0] == job["report"]["point"]
    assert job["progress"]["logical"] == job["progress"]["total"] == 2 * MIB
    assert job["progress"]["read"] == MIB == job["progress"]["sent"], job
    assert [disk["key"] for disk in job["disks"]] == ["d0"]
    assert job["created"] <= job["started"] <= job["ended"] and job["stage"] == "drop-plan"
    lines = [json.loads(line) for line in site.do("log", id=job["id"])["log"].splitlines()]
    assert {"copy", "rename-manifest"} <= {line["text"] for line in lines}
    # The other kinds, one after the other.
    ends = [site.wait(site.add({"repository": "main", "vm": "a", **spec})) for spec in (
        {"kind": "verify"},
        {"kind": "restore", "targets": [{"target": f"raw:{site.folder}/vms/back.raw"}]},
        {"kind": "prune", "keep": {"last": 1}, "timezone": "UTC", "dry_run": True})]
    ends.append(site.wait(site.add({"kind": "reindex", "repository": "main"})))
    assert [end["state"] for end in ends] == ["done"] * 4, ends
    assert ends[0]["report"]["points_good"] == 1 and ends[2]["report"]["kept"] == 1
    assert ends[3]["report"]["points"] == 1
    assert run("cmp", site.disk(), f"{site.folder}/vms/back.raw").status == 0
    listed = site.do("list")["items"]
    assert [item["kind"] for item in listed] == ["reindex", "prune", "restore", "verify", "backup"]
    site.nothing_left()
    site.stop()
    # All of it is known to the next hub.
    site.start()
    assert site.do("get", id=job["id"]) == job
    # The next ids are behind it.
    assert site.add() > ends[-1]["id"]
    site.stop()


def test_what_may_be_asked_for(site):
    site.start()
    inside = f"raw:{site.repo}/repository.json"
    refused(site, "usage", {}, "kind")
    refused(site, "unsupported", {"kind": "measure", "repository": "main"}, "measure")
    refused(site, "usage", {"kind": "replicate", "vcenter": "none", "machine": "a",
                            "targets": [{"key": "a", "target": "null:1"}]}, "vcenter: there is none")
    refused(site, "usage", site.spec(repository="none"), "none")
    refused(site, "usage", site.spec(colour="red"), "colour")
    refused(site, "usage", {**site.spec(), "vm": 7}, "vm")
    refused(site, "usage", {**site.spec(), "vm": "a\nb"}, "vm")
    refused(site, "usage", site.spec(mode="--help"), "mode")
    refused(site, "usage", site.spec(disks=[]), "disks")
    refused(site, "usage", site.spec(disks=[{"key": "../x", "source": "raw:/x"}]), "key")
    refused(site, "usage", site.spec(disks=[{"key": "a"}]), "disks[0].source")
    refused(site, "denied", site.spec(disks=[{"key": "a", "source": "raw:/etc/passwd"}]),
            ["/etc/passwd", "[allow] source"])
    refused(site, "usage", site.spec(disks=[{"key": "a", "source":
            f"raw:{site.folder}/vms/../state.db"}]), "..")
    refused(site, "denied", site.spec(disks=[{"key": "a", "source": inside}]))
    refused(site, "denied", site.spec(disks=[{"key": "a", "source": "nbd://127.0.0.1/x"}]))
    refused(site, "denied", {"kind": "restore", "repository": "main", "vm": "a",
            "targets": [{"key": "a", "target": f"raw:{site.folder}/state.db"}], "force": True})
    refused(site, "usage", {"kind": "prune", "repository": "main", "keep": {}}, "keep")
    # No word of a spec becomes an option.
    job = site.wait(site.add({**site.spec(), "vm": "--help"}))
    assert job["state"] == "done" and job["report"]["vm"] == "--help", job
    site.stop()


def test_a_link_that_appeared_meanwhile(site):
    """Looked at once more by the worker."""
    site.start(most=1)
    site.hold_at("copy", "hold")
    first = site.add()
    second = site.add(site.spec("b"))
    site.wait_held()
    os.unlink(site.disk("b"))
    os.symlink(site.config["state"], f"{site.folder}/vms/b.raw")
    site.release()
    assert site.wait(first)["state"] == "done"
    job = site.wait(second)
    assert (job["state"], job["error"]["code"]) == ("failed", "denied"), job
    assert "symbolic link" in job["error"]["text"]
    site.stop()


# --- repositories -----------------------------------------------------------------------------


def test_repositories_are_looked_at(site):
    site.config["repositories"] += [
        {"name": "other", "path": site.repo, "id": "0" * 32},
        {"name": "full", "path": site.repo, "stop_free": 1 << 60},
        {"name": "gone", "path": f"{site.folder}/gone"}]
    site.start()
    failed_with(site, site.spec(repository="other"), "denied", "and not 0000")
    job = failed_with(site, site.spec(repository="full"), "no-space", "stop-free")
    assert job["attempt"] == 1, "what does not pass is not tried again"
    failed_with(site, site.spec(repository="gone"), "not-found", "gone")
    # What stores nothing needs no space.
    assert site.wait(site.add())["state"] == "done"
    verify = {"kind": "verify", "repository": "full"}
    assert site.wait(site.add(verify))["state"] == "done"
    assert len(site.points()) == 1
    site.stop()


def test_a_repository_that_is_not_mounted(scratch):
    """Its folder is there, the file system is not."""
    need_mounts(scratch)
    with site_in(scratch) as site:
        site.config["repositories"][0]["require_mount"] = True
        on_root = os.stat(scratch).st_dev == os.stat("/").st_dev
        site.start()
        job = site.wait(site.add())
        if on_root:
            assert job["error"]["code"] == "denied" and "mounted" in job["error"]["text"], job
        else:
            assert job["state"] == "done", job
        site.stop()


def test_space_that_others_are_to_take(site):
    """Waited for, not failed for."""
    site.config["repositories"][0]["stop_free"] = MIB
    site.start(retry_ms=1500)
    site.hold_at("copy", "hold")
    first = site.add(site.spec(reserve_bytes=1 << 60))
    site.wait_held()
    second = site.add(site.spec("b"))
    wait_for(lambda: site.do("get", id=second).get("next_try"), "its first attempt's end")
    shown = site.do("get", id=second)
    assert shown["error"]["code"] == "busy" and "going to take" in shown["error"]["text"], shown
    site.release()
    ends = [site.wait(job) for job in (first, second)]
    assert [(end["state"], end["attempt"]) for end in ends] == [("done", 1), ("done", 2)], ends
    site.nothing_left()
    site.stop()


# --- the queue ------------------------------------------------------------------------------------


def test_one_writer_for_each_machine(site):
    site.start()
    site.hold_at("copy", "hold")
    first = site.add()
    site.wait_held()
    second = site.add()
    other = site.add(site.spec("b"))
    # Others go on, the same machine's waits.
    assert site.wait(other)["state"] == "done"
    waiting = site.do("get", id=second)
    assert waiting["state"] == "queued" and first in waiting["waits_for"], waiting
    # Neither does a push of the same machine begin; one of another keeps backups waiting.
    with pytest.raises(Failed) as failed:
        site.add({"kind": "push", "repository": "main", "vm": "a"}, foreign=True)
    assert failed.value.code == "busy" and first in failed.value.text
    push = site.add({"kind": "push", "repository": "main", "vm": "c"}, foreign=True)
    site.do("tell", id=push, state="running", stage="write", progress={"logical": 5})
    third = site.add(site.spec("c"))
    wait_for(lambda: push in site.do("get", id=third).get("waits_for", ""), "its wait")
    site.do("tell", id=push, state="done")
    assert site.do("get", id=push)["progress"] == {"logical": 5}
    site.release()
    assert {site.wait(job)["state"] for job in (first, second, third)} == {"done"}
    site.nothing_left()
    site.stop()


def test_limits(site):
    site.config["sources"] += ["nbd://127.0.0.1:*/"]
    listener = socket.create_server(("127.0.0.1", 0))  # says nothing
    uri = f"nbd://127.0.0.1:{listener.getsockname()[1]}/x"
    site.start(most=3, per_source=1)
    jobs = [site.add(site.spec(f"v{i}", disks=[{"key": "a", "source": uri}])) for i in range(3)]
    site.wait(jobs[0], states=["starting", "running"])
    waiting = site.do("get", id=jobs[1])
    assert waiting["state"] == "queued" and "127.0.0.1" in waiting["waits_for"], waiting
    assert site.do("counts")["running"] == 1
    # A restore goes before what came earlier.
    assert site.wait(site.add(site.spec("x")))["state"] == "done"
    began = time.monotonic()
    for job in jobs:
        site.do("cancel", id=job)
    states = [site.wait(job)["state"] for job in jobs]
    assert states == ["cancelled"] * 3 and time.monotonic() - began < 5 * 1.5
    listener.close()
    site.nothing_left()
    site.stop()


def push(site, vm, **more):
    job = site.add({"kind": "push", "repository": "main", "vm": vm}, foreign=True, **more)
    site.do("tell", id=job, state="running", stage="receive", progress={"sent": 0})
    return job


def test_pushes_take_places(site):
    """One over the limit is told to come again; pulls wait for the places of pushes."""
    site.start(most=2)
    pushes = [push(site, vm) for vm in ("p0", "p1")]
    with pytest.raises(Failed) as failed:
        push(site, "p2")
    assert failed.value.code == "busy" and "at most 2" in failed.value.text, failed.value
    pull = site.add()
    wait_for(lambda: "2 of at most 2" in site.do("get", id=pull).get("waits_for", ""), "its wait")
    site.do("tell", id=pushes[0], state="done")
    assert site.wait(pull)["state"] == "done"
    pushes.append(push(site, "p2"))
    for job in pushes[1:]:
        site.do("tell", id=job, state="done")
    site.nothing_left()
    site.stop()


def test_space_that_pushes_and_pulls_take(site):
    """Each sees what the other is going to take."""
    big = 1 << 50
    site.config["repositories"][0]["stop_free"] = MIB
    site.start(retry_ms=1500)
    # A machine's last push tells what the next one may take.
    first = push(site, "p")
    site.do("tell", id=first, state="done", progress={"sent": big})
    first = push(site, "p", free_bytes=2 * big)
    pull = site.add()
    wait_for(lambda: site.do("get", id=pull).get("next_try"), "its first attempt's end")
    shown = site.do("get", id=pull)
    assert shown["error"]["code"] == "busy" and "going to take" in shown["error"]["text"], shown
    with pytest.raises(Failed) as failed:
        push(site, "q", free_bytes=big)
    assert failed.value.code == "busy" and "going to take" in failed.value.text, failed.value
    # What it has sent is taken already.
    site.do("tell", id=first, state="running", stage="receive", progress={"sent": 2 * big})
    other = push(site, "q", free_bytes=big)
    for job in (first, other):
        site.do("tell", id=job, state="done")
    assert site.wait(pull)["state"] == "done"
    # The other way round.
    site.hold_at("copy", "hold")
    pull = site.add(site.spec(reserve_bytes=big))
    site.wait_held()
    with pytest.raises(Failed) as failed:
        push(site, "q", free_bytes=big)
    assert failed.value.code == "busy" and "going to take" in failed.value.text, failed.value
    site.release()
    assert site.wait(pull)["state"] == "done"
    site.nothing_left()
    site.stop()


def test_twenty_at_once(site):
    def descriptors():
        return sorted(os.readlink(f"/proc/{site.hub.pid}/fd/{fd}")
                      for fd in os.listdir(f"/proc/{site.hub.pid}/fd"))
    site.start(most=20, per_source=20)
    site.wait(site.add())
    before = descriptors()
    jobs = [site.add(site.spec(f"v{i}", disks=[{"key": "a", "source": f"raw:{site.disk()}"}]))
            for i in range(20)]
    ends = [site.wait(job, ms=120000) for job in jobs]
    assert [end["state"] for end in ends] == ["done"] * 20, ends
    site.nothing_left()
    assert descriptors() == before
    children = f"/proc/{site.hub.pid}/task/{site.hub.pid}/children"
    with open(children, encoding="ascii") as file:
        assert file.read() == "", "a zombie"
    site.stop()


# --- ends that are none ---------------------------------------------------------------------------


def test_a_crash_is_told(site):
    site.start()
    site.hold_at("copy", "crash")
    job = site.wait(site.add())
    assert job["state"] == "failed" and job["attempt"] == 1, job
    assert "signal 6" in job["error"]["text"] and "stage copy" in job["error"]["text"], job
    # What was begun is gone on with.
    again = site.do("retry", id=job["id"])["id"]
    job = site.wait(again)
    assert job["state"] == "done" and job["retry_of"], job
    site.nothing_left()
    site.stop()


def test_what_hangs_is_ended(site):
    site.start(silence_ms=1500, attempts=2)
    site.hold_at("copy", "stop")
    job = site.wait(site.add())
    assert job["state"] == "done" and job["attempt"] == 2, job
    assert "no sign of life in stage copy" in site.errors()
    site.nothing_left()
    site.stop()


def test_what_does_not_move_is_ended(site):
    site.config["sources"] += ["nbd://127.0.0.1:*/"]
    listener = socket.create_server(("127.0.0.1", 0))
    uri = f"nbd://127.0.0.1:{listener.getsockname()[1]}/x"
    site.start(stage_ms=1000, attempts=1)
    job = site.wait(site.add(site.spec(disks=[{"key": "a", "source": uri}])))
    assert (job["state"], job["error"]["code"]) == ("failed", "timeout"), job
    assert "nothing moves any more in stage prepare" in job["error"]["text"]
    listener.close()
    site.nothing_left()
    site.stop()


def test_tried_again(site):
    """What is worth it, with a pause that grows; and what is not, at once."""
    site.config["sources"] += ["nbd://127.0.0.1:*/"]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        uri = f"nbd://127.0.0.1:{closed.getsockname()[1]}/x"
        site.start()
        job = site.wait(site.add(site.spec(disks=[{"key": "a", "source": uri}])))
        assert (job["state"], job["attempt"]) == ("failed", 3), job
        assert job["error"]["code"] in ("refused", "disconnected"), job
        # Its log has all attempts.
        log = site.do("log", id=job["id"])["log"]
        assert log.count('"level":"error"') == 3, log
        # While it waits it can be cancelled, and tells when it goes on.
        site.stop()
        site.start(retry_ms=3600000)
        job = site.add(site.spec(disks=[{"key": "a", "source": uri}]))
        wait_for(lambda: site.do("get", id=job)["attempt"] == 1 and
                 site.do("get", id=job)["state"] == "queued", "the first attempt's end")
        shown = site.do("get", id=job)
        assert shown["next_try"] > shown["created"] and "attempt" in shown["waits_for"], shown
        site.do("cancel", id=job)
        assert site.wait(job)["state"] == "cancelled"
    gone = site.wait(site.add(site.spec(disks=[{"key": "a", "source":
                                                f"raw:{site.disk('a')}"}], resume=True)))
    assert gone["attempt"] == 1 and gone["error"]["code"] == "not-found", gone
    site.nothing_left()
    site.stop()


def test_what_would_get_the_same_answer(site):
    """An increment of what has no parent: not tried again."""
    site.start(retry_ms=60000)
    job = failed_with(site, site.spec(mode="incremental"), "conflict", "first backup")
    assert job["attempt"] == 1 and not job.get("next_try"), job
    assert site.wait(site.add())["state"] == "done"
    assert site.wait(site.add(site.spec(mode="incremental")))["state"] == "done"
    site.nothing_left()
    site.stop()


def test_memory_is_limited(site):
    if under_sanitizer():
        pytest.skip("sanitizers take what they want")
    site.start(memory=4 * MIB)
    job = site.wait(site.add(site.spec("m")))
    assert job["state"] == "failed", job
    site.stop()
    site.start(memory=256 * MIB)
    assert site.wait(site.add(site.spec("m")))["state"] == "done"
    site.stop()


# --- cancel ---------------------------------------------------------------------------------------------

STAGES = ["start", "check", "prepare", "begin", "create", "copy", "sync-data", "close-data",
          "sync-sums", "rename-data", "sync-folders", "rename-manifest", "log", "drop-plan"]


@pytest.mark.parametrize("stage", STAGES)
def test_cancel_in_each_stage(site, stage):
    """Within five seconds, from a process that stands still."""
    site.start()
    site.hold_at(stage, "stop" if stage in ("copy", "sync-data") else "hold")
    job = site.add()
    site.wait_held()
    began = time.monotonic()
    site.do("cancel", id=job)
    if stage not in ("copy", "sync-data"):
        site.release()
    end = site.wait(job)
    took = time.monotonic() - began
    assert took < 5.5, f"{took:.1f} s"
    made = site.points()
    if end["state"] == "done":
        # The word may come when the last look for it was taken already.
        assert stage in STAGES[7:] and len(made) == 1, end
    else:
        assert end["state"] == "cancelled" and "the test asked" in end["error"]["text"], end
        assert len(made) <= (stage in STAGES[11:]), (stage, made)
    site.nothing_left()
    site.release()
    # Nothing stands in the next one's way.
    assert site.wait(site.add())["state"] == "done"
    sendense("verify", "--repo", site.repo, "--quiet")
    site.stop()


def test_stop_of_the_hub(site):
    """Workers are handed over, or cancelled."""
    site.start()
    site.hold_at("copy", "hold")
    job = site.add()
    site.wait_held()
    site.stop(hand_over=True, ms=100)
    assert len(site.workers()) == 1
    site.start()
    assert site.do("get", id=job)["state"] == "running"
    site.release()
    assert site.wait(job)["state"] == "done"
    site.hold_at("copy", "hold")
    job = site.add()
    site.wait_held()
    site.stop(hand_over=False, ms=10000)
    assert not site.workers()
    site.release()
    site.start()
    end = site.do("get", id=job)
    assert end["state"] == "cancelled" and "daemon was stopped" in end["error"]["text"], end
    site.nothing_left()
    site.stop()


def test_signals_from_outside(site):
    """SIGTERM by somebody else: kept, and gone on with."""
    site.start()
    site.hold_at("copy", "hold")
    job = site.add()
    site.wait_held()
    os.kill(list(processes(f"worker {site.folder}/run/"))[0], signal.SIGTERM)
    site.release()
    end = site.wait(job)
    assert end["state"] == "done" and end["attempt"] == 2, end
    site.stop()

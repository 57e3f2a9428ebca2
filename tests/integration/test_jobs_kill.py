"""kill -9 of hub and worker in each named stage: every job ends with a reason or goes on,
nothing is left, what was committed verifies."""

import os
import shutil
import signal

import pytest

from jobs_hub import need_tools, site_in
from support import sendense, wait_for
from test_jobs import STAGES

pytestmark = need_tools

# SENDENSE_KILL_ROUNDS=10: each victim in each stage ten times; else each stage has one victim
# at least, and those around the commit point have all.
ROUNDS = int(os.environ.get("SENDENSE_KILL_ROUNDS", "0"))
VICTIMS = ("worker", "hub", "both")
CASES = [(victim, stage) for nr, stage in enumerate(STAGES) for victim in VICTIMS
         if ROUNDS or stage in ("copy", "rename-manifest", "log") or victim == VICTIMS[nr % 3]]


def look_after(site):
    site.nothing_left()
    sendense("verify", "--repo", site.repo, "--quiet")
    sendense("repo", "check", site.repo, "--quiet")
    assert os.listdir(f"{site.repo}/.incoming") == []


def end_well(site, job, before):
    end = site.wait(job)
    assert end["state"] == "done", end
    assert len(site.points()) - before == 1, end
    assert end["point"] == site.points()[-1], end
    return end


def worker_of(site):
    (pid,) = site.workers()
    return pid


@pytest.mark.parametrize("victim,stage", CASES)
def test_killed_in_each_stage(scratch, stage, victim):
    with site_in(scratch) as site:
        site.start()
        for _ in range(ROUNDS or 1):
            before = len(site.points())
            site.hold_at(stage, "hold")
            job = site.add()
            site.wait_held()
            # The hub knows where it is.
            site.wait(job, states=[], stages=[stage])
            pid = worker_of(site)
            if victim in ("hub", "both"):
                site.kill()
                assert list(site.workers()) == [pid], "workers outlive the hub"
            if victim in ("worker", "both"):
                os.kill(pid, signal.SIGKILL)
            if victim in ("hub", "both"):
                site.start()
            site.release()
            end = end_well(site, job, before)
            assert end["attempt"] == (1 if victim == "hub" else 2)
            # Behind the commit point the next attempt finds that all is done.
            was_made = victim != "hub" and stage in ("log", "drop-plan")
            assert ("note" in end) == ("note" in end["report"]) == was_made, end
            look_after(site)
        site.stop()


def test_after_a_power_cut(scratch):
    """The runtime folder is empty, and the processes are of another boot."""
    with site_in(scratch) as site:
        site.start()
        site.hold_at("copy", "hold")
        job = site.add()
        restore = {"kind": "restore", "repository": "main", "vm": "a",
                   "targets": [{"target": f"raw:{scratch}/vms/back.raw"}]}
        site.wait_held()
        pid = worker_of(site)
        site.kill()
        os.kill(pid, signal.SIGKILL)
        site.release()
        for name in os.listdir(f"{scratch}/run/jobs"):
            for file in os.listdir(f"{scratch}/run/jobs/{name}"):
                os.unlink(f"{scratch}/run/jobs/{name}/{file}")
            os.rmdir(f"{scratch}/run/jobs/{name}")
        os.rmdir(f"{scratch}/run/jobs")
        site.start()
        end = site.wait(job)
        assert end["state"] == "done" and end["attempt"] == 2, end
        # A restore is not tried again by itself: its target was half written.
        site.hold_at("copy", "hold")
        job = site.add(restore)
        site.wait_held()
        pid = worker_of(site)
        site.kill()
        os.kill(pid, signal.SIGKILL)
        site.release()
        site.start()
        end = site.wait(job)
        assert end["state"] == "failed" and "its worker is gone" in end["error"]["text"], end
        look_after(site)
        site.stop()


def kill_at(site, stage, add=None):
    """A job whose worker is killed there; it is not waited for."""
    site.hold_at(stage, "hold")
    job = site.add(add)
    site.wait_held()
    site.wait(job, states=[], stages=[stage])
    os.kill(worker_of(site), signal.SIGKILL)
    site.release()
    return job


@pytest.mark.parametrize("hub_too", (False, True))
def test_killed_behind_the_commit_at_the_last_attempt(scratch, hub_too):
    """Nothing tries again, so somebody looks."""
    with site_in(scratch, attempts=1) as site:
        site.start()
        for nr, stage in enumerate(("log", "drop-plan"), 1):
            if hub_too:
                site.hold_at(stage, "hold")
                job = site.add()
                site.wait_held()
                site.wait(job, states=[], stages=[stage])
                pid = worker_of(site)
                site.kill()
                os.kill(pid, signal.SIGKILL)
                site.start()
                site.release()
            else:
                job = kill_at(site, stage)
            end = end_well(site, job, nr - 1)
            assert end["attempt"] == 1 and "before it could tell" in end["note"], end
        # Nor is anything made up: before the commit point it failed.
        job = kill_at(site, "rename-manifest")
        end = site.wait(job)
        assert end["state"] == "failed" and "was killed" in end["error"]["text"], end
        assert "note" not in end and not end["point"] and len(site.points()) == 2, end
        site.wait(site.add())
        look_after(site)
        site.stop()


@pytest.mark.parametrize("stage", ("rename-manifest", "log"))
def test_cancelled_and_killed(scratch, stage):
    """The cancel kills it, before the commit point or behind it: which is told."""
    with site_in(scratch) as site:
        site.start()
        site.hold_at(stage, "stop")
        job = site.add()
        site.wait_held()
        site.wait(job, states=[], stages=[stage])
        site.do("cancel", id=job)
        end = site.wait(job)
        if stage == "log":
            assert (end["state"], end["error"]) == ("done", None), end
            assert "came too late: the test asked" in end["note"], end
            assert [end["point"]] == site.points()
        else:
            assert end["state"] == "cancelled" and "note" not in end, end
            assert site.points() == [] and not end["point"]
        site.release()
        site.wait(site.add())
        look_after(site)
        site.stop()


def test_cancelled_before_its_next_attempt(scratch):
    """Killed behind the commit point, and cancelled while it waits."""
    with site_in(scratch, retry_ms=3600000) as site:
        site.start()
        job = kill_at(site, "log")
        site.wait(job, states=["queued"])
        site.do("cancel", id=job)
        end = end_well(site, job, 0)
        assert end["attempt"] == 1 and "came too late" in end["note"], end
        # Of one that had not come so far nothing is looked for.
        job = kill_at(site, "copy")
        site.wait(job, states=["queued"])
        site.do("cancel", id=job)
        assert site.wait(job)["state"] == "cancelled"
        assert len(site.points()) == 1
        site.wait(site.add())
        look_after(site)
        site.stop()


def test_not_known_whether_it_was_made(scratch):
    """The repository is gone when one looks; the next hub is not led astray."""
    with site_in(scratch, attempts=1) as site:
        site.start()
        site.hold_at("log", "hold")
        job = site.add()
        site.wait_held()
        site.wait(job, states=[], stages=["log"])
        os.rename(site.repo, f"{site.repo}.away")
        os.kill(worker_of(site), signal.SIGKILL)
        end = site.wait(job)
        os.rename(f"{site.repo}.away", site.repo)
        site.release()
        assert end["state"] == "failed", end
        assert "is not known" in end["error"]["text"] and "was killed" in end["error"]["text"], end
        site.wait(site.add())
        look_after(site)
        site.stop()


def test_who_looks_outlives_the_hub(scratch):
    """The next hub lets it go on, for as long as one that it had started itself."""
    with site_in(scratch, attempts=1) as site:
        site.start()
        site.hold_at("log", "hold")
        job = site.add()
        site.wait_held()
        site.wait(job, states=[], stages=["log"])
        site.hold_at("check", "hold")
        os.kill(worker_of(site), signal.SIGKILL)
        wait_for(lambda: not os.path.exists(site.hold), "who looks for the restore point")
        site.kill()
        pid = worker_of(site)
        site.start()
        # By then the hub has looked after it more than once.
        assert site.wait(site.add(site.spec("b")))["state"] == "done"
        assert list(site.workers()) == [pid]
        site.release()
        end = end_well(site, job, 0)
        assert "before it could tell" in end["note"], end
        look_after(site)
        site.stop()


@pytest.mark.parametrize("cancelled", (False, True))
def test_a_worker_that_nobody_hears_of(scratch, cancelled):
    """Its folder was removed while no hub ran: it is ended, and its job is tried again."""
    with site_in(scratch) as site:
        site.start()
        site.hold_at("copy", "stop")
        job = site.add()
        site.wait_held()
        site.wait(job, states=[], stages=["copy"])
        if cancelled:
            site.do("cancel", id=job)
        site.kill()
        shutil.rmtree(f"{scratch}/run/jobs/{job}")
        site.start()
        end = site.wait(job)
        if cancelled:
            assert end["state"] == "cancelled" and "the test asked" in end["error"]["text"], end
        else:
            assert (end["state"], end["attempt"]) == ("done", 2), end
        site.release()
        site.wait(site.add())
        look_after(site)
        site.stop()


def test_cancel_outlives_the_hub(scratch):
    with site_in(scratch) as site:
        site.start()
        site.hold_at("copy", "stop")
        job = site.add()
        site.wait_held()
        site.do("cancel", id=job)
        site.kill()
        site.start()
        end = site.wait(job)
        assert end["state"] == "cancelled", end
        site.release()
        site.nothing_left()
        site.stop()

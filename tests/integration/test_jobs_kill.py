"""kill -9 of hub and worker in each named stage: every job ends with a reason or goes on,
nothing is left, what was committed verifies."""

import os
import signal

import pytest

from jobs_hub import need_tools, site_in
from support import sendense
from test_jobs import STAGES

pytestmark = need_tools

# SENDENSE_KILL_ROUNDS=10: each victim in each stage ten times; else each stage has one victim
# at least, and those around the commit point have all.
ROUNDS = int(os.environ.get("SENDENSE_KILL_ROUNDS", "0"))
VICTIMS = ("worker", "hub", "both")
CASES = [(victim, stage) for nr, stage in enumerate(STAGES) for victim in VICTIMS
         if ROUNDS or stage in ("copy", "rename-manifest") or victim == VICTIMS[nr % 3]]


def look_after(site):
    site.nothing_left()
    sendense("verify", "--repo", site.repo, "--quiet")
    sendense("repo", "check", site.repo, "--quiet")
    assert os.listdir(f"{site.repo}/.incoming") == []


def end_well(site, job, before):
    end = site.wait(job)
    assert end["state"] == "done", end
    # One that was killed behind its commit point makes a second point when tried again.
    assert 1 <= len(site.points()) - before <= 2, end


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
            end_well(site, job, before)
            assert site.do("get", id=job)["attempt"] == (1 if victim == "hub" else 2)
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

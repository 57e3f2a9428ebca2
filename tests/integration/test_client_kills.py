"""kill -9 of the pushing client (backup --repo https://HUB) in each stage that it goes through: its
job ends with a reason, or with the restore point; the next backup is good, and nothing is left on
either side.

   stage     what the client waits for when it is killed
   connect   the hub's first word
   ask       the session: asked for, and the hub has not heard of it, or has opened it
   audit     digests of what the hub holds, before the copy
   copy      the NBD service takes what it writes
   digest    its own record of digests
   commit    the commit: the same
   follow    the job's next stage: in each of the hub's stages of a commit
   end       the last word of the job, which has ended

A proxy holds the one call that the stage waits for, so that each is met for certain; strace slows
its reading of digests down, and the NBD service's ways to the disk.  With SENDENSE_SOAK=1 each
ten times, else once.
"""

import json
import os
import re
import signal

import pytest

import hub
import rest_proxy
import support
from chains import write_extents
from support import MIB, SENDENSE, fails, make_disk, sendense, wait_for

SOAK = bool(os.environ.get("SENDENSE_SOAK"))
ROUNDS = 10 if SOAK else 1
STAGES = ["connect", "ask", "audit", "copy", "digest", "commit", "follow", "end"]
OF_COMMIT = ["settle", "compare", "commit", "sync-data", "close-data", "sync-sums", "rename-data", "sync-folders",
             "rename-manifest", "log", "drop-plan"]
CALLS = "fsync,fdatasync,renameat,renameat2,linkat,unlinkat"
SIZE = 8 * MIB


class Client:
    """sendense backup, with its progress as JSON."""

    def __init__(self, site, vm, *words, under=()):
        self.process = site.servers.start(*under, SENDENSE, *site.words(vm, site.proxy.url, "--progress=json", *words),
                                          name="client", env=site.env)

    @property
    def stages(self):
        """That it has told of."""
        events = [json.loads(line) for line in self.process.err.split("\n")[:-1] if line.startswith("{")]
        return [event["stage"] for event in events if event["event"] == "stage"]

    def wait_stage(self, *stages):
        wait_for(lambda: (self.stages or [""])[-1] in stages or not self.process.running, f"stage {stages}")
        assert self.process.running, self.process.err

    def kill(self, pid=None):
        """Where it is, and not at its end."""
        os.kill(pid or self.process.pid, signal.SIGKILL)
        assert self.process.wait() in (-signal.SIGKILL, 128 + signal.SIGKILL), self.process.err


class Site:
    """A hub, a disk that changes, a folder for temporary files."""

    def __init__(self, made, proxy, servers, scratch):
        self.hub, self.proxy, self.servers, self.scratch = made, proxy, servers, scratch
        self.temporary = os.path.join(scratch, "tmp")
        os.mkdir(self.temporary)
        self.env = dict(os.environ, TMPDIR=self.temporary)
        self.disk = make_disk(f"{scratch}/a.raw", SIZE, [(0, 6 * MIB, "random")])
        self.changes = write_extents(f"{scratch}/changes", "2000", SIZE, "s1", "s2", [(MIB, MIB)])

    def words(self, vm, url, *words):
        return ["backup", "--repo", f"{url}/main", "--token-file", self.hub.token_file, "--ca-file",
                self.hub.ca_file, "--vm", vm, f"--disk=2000=raw:{self.disk}", *words]

    def slow_down(self):
        """The NBD service, until it is stopped."""
        slow = self.servers.start("strace", "-f", "-o", "/dev/null", "-e", f"trace={CALLS}", "-e",
                                  f"inject={CALLS}:delay_enter=60000", "-p", self.hub.nbd_service(), name="strace")
        wait_for(lambda: "attached" in slow.err or not slow.running, "strace")
        if "attached" not in slow.err:
            pytest.skip(f"strace: {slow.err.strip()}")
        return slow

    def received(self, vm):
        """Bytes that a session of the machine has got; 0: there is none."""
        for item in self.hub.get("sessions")["items"]:
            if item["vm"] == vm:
                return sum(disk["received_bytes"] for disk in self.hub.get(f"sessions/{item['id']}").get("disks", []))
        return 0

    # --- where it is killed

    def held(self, vm, stage, method, pattern, behind, *words):
        gate = self.proxy.hold(method, pattern, behind)
        client = Client(self, vm, *words)
        gate.wait(client.process)
        if stage:
            client.wait_stage(stage)
        client.kill()
        gate.drop()

    def connect(self, vm, nr):
        self.held(vm, None, "GET", "/health$", nr % 2 == 1)

    def ask(self, vm, nr):
        self.held(vm, "begin", "POST", "/sessions$", nr % 2 == 0)

    def audit(self, vm, nr):
        sendense(*self.words(vm, self.hub.url, "--change-id", "s1", "--quiet"), env=self.env)
        self.held(vm, "audit", "GET", "/digests$", nr % 2 == 0, f"--changed-by=extents:{self.changes}", "--audit=100%")

    def copy(self, vm, nr):
        client = Client(self, vm, "--limit-rate=4MiB")
        wait_for(lambda: self.received(vm) >= (nr % 4 + 1) * MIB or not client.process.running, "what it sends")
        client.wait_stage("copy")
        client.kill()

    def digest(self, vm, nr):
        del nr
        client = Client(self, vm, under=["strace", "-f", "-o", "/dev/null", "-e", "trace=pread64", "-e",
                                         "inject=pread64:delay_enter=300000"])
        client.wait_stage("digest")
        [pid] = [pid for pid in hub.pids_of(f"--disk=2000=raw:{self.disk}") if pid != client.process.pid]
        client.kill(pid)
        assert client.stages[-1] == "digest"

    def commit(self, vm, nr):
        self.held(vm, "commit", "POST", "/commit$", nr % 2 == 0)

    def follow(self, vm, nr):
        slow = self.slow_down()
        try:
            client = Client(self, vm)
            stage = OF_COMMIT[(7 + nr) % len(OF_COMMIT)]
            client.wait_stage(*OF_COMMIT[OF_COMMIT.index(stage):])
            client.kill()
        finally:
            slow.signal(signal.SIGKILL)  # strace waits for those that it delays
            slow.wait()

    def end(self, vm, nr):
        del nr
        self.held(vm, None, "GET", "/jobs/[^/]*$", True)

    # --- what came of it

    def nothing_left(self, vm, stage):
        jobs = self.hub.all(f"jobs?vm={vm}")
        for job in jobs:
            assert job["state"] == "done" or job["error"]["text"], job
        assert jobs[0]["state"] == "done", jobs
        points = self.hub.points(vm)
        made = [job["point"] for job in jobs if job["state"] == "done"]
        assert sorted(point["point"] for point in points) == sorted(made), (jobs, points)
        assert hub.compare(self.hub.point_images(vm)["2000"], self.disk)
        killed = jobs[1] if len(jobs) == (3 if stage == "audit" else 2) else None
        return f"{killed['state']}: {killed['error']['text']}" if killed and killed["error"] else \
            killed["state"] if killed else "no job"


@pytest.fixture(name="site")
def site_of(servers, scratch):
    support.need("strace", "qemu-img")
    with hub.hub_in(servers, settings="[limits]\njobs = 16\n") as made, rest_proxy.proxy_of(made.start()) as proxy:
        yield Site(made, proxy, servers, scratch)


def go_on(site, vms):
    """The next backup of each, side by side, as they would come."""
    backups = {vm: site.servers.start(SENDENSE, *site.words(vm, site.hub.url), name="next", env=site.env) for vm in vms}
    for process in backups.values():
        assert process.wait() == 0, process.err


def test_killed_in_each_stage(site):
    service = site.hub.nbd_service()
    sendense(*site.words("first", site.hub.url, "--quiet"), env=site.env)
    listening, before = site.hub.listening(), site.hub.descriptors(service)
    for nr in range(ROUNDS):
        vms = {stage: f"{stage}-{nr}" for stage in STAGES}
        for stage, vm in vms.items():
            getattr(site, stage)(vm, nr)
            assert hub.pids_of(f"--disk=2000=raw:{site.disk}") == []
        go_on(site, vms.values())
        assert site.hub.get("sessions")["items"] == [] and site.hub.open_jobs() == []
        for stage, vm in vms.items():
            print(f"round {nr}, killed in {stage}: {site.nothing_left(vm, stage)}")
    assert os.listdir(site.temporary) == []
    assert site.hub.nbd_service() == service and site.hub.listening() == listening
    wait_for(lambda: site.hub.descriptors(service) <= before, "the service's descriptors to be given back")
    site.hub.wait(site.hub.post("verifications", {"repository": "main"}))
    sendense("repo", "check", site.hub.repositories["main"], "--quiet")
    assert os.listdir(os.path.join(site.hub.repositories["main"], ".incoming")) == []
    site.hub.stop()
    wait_for(lambda: hub.pids_of(site.hub.runtime) == [], "the NBD service's end")
    assert [name for name in os.listdir(site.hub.runtime) if name.endswith(".sock")] == []


def test_the_next_backup_waits_for_the_commit_of_a_killed_client(site):
    slow = site.slow_down()
    try:
        client = Client(site, "a")
        client.wait_stage(*OF_COMMIT[3:])
        client.kill()
        [job] = site.hub.open_jobs()
        support.bad_input("a backup while the hub commits another one of the machine", fails(
            *site.words("a", site.hub.url, "--wait=0s"), env=site.env, contains=[job["id"], "push"]).message)
        result = sendense(*site.words("a", site.hub.url), env=site.env)
    finally:
        slow.signal(signal.SIGKILL)
        slow.wait()
    assert re.search(f"waiting for .*commit.*{job['id']}.*at most 600 s", result.err), result.err
    assert result.err.count("waiting for") == 1
    assert site.hub.job(job["id"])["state"] == "done" and len(site.hub.points("a")) == 2
    assert site.nothing_left("a", "follow") == "done"


def test_a_killed_client_s_place_is_given_back(servers, scratch):
    """Also where it was the last one: the next backup does not wait for the lease of its own past."""
    with hub.hub_in(servers, settings="[limits]\njobs = 1\n") as made, rest_proxy.proxy_of(made.start()) as proxy:
        site = Site(made, proxy, servers, scratch)
        site.copy("a", 0)
        go_on(site, ["a"])
        site.nothing_left("a", "copy")


def test_a_client_that_lives_is_not_waited_for(site):
    """Nobody knows how long it takes, and what it makes is as good."""
    client = Client(site, "a", "--limit-rate=1MiB")
    wait_for(lambda: site.received("a") > 0, "what it sends")
    [job] = site.hub.open_jobs()
    fails(*site.words("a", site.hub.url), env=site.env, contains=job["id"])
    client.kill()


@pytest.mark.skipif(not SOAK, reason="a lease is 90 s: SENDENSE_SOAK=1")
def test_a_killed_client_s_session_expires(site):
    site.copy("a", 0)
    [job] = site.hub.open_jobs()
    end = site.hub.wait(job, "failed", timeout=150)
    assert end["error"]["code"] == "timeout" and "lease" in end["error"]["text"]
    assert site.hub.get("sessions")["items"] == []
    go_on(site, ["a"])
    site.nothing_left("a", "copy")

"""Eight machines at once, pull and push, round after round, with changes in between.

Every restore point is held against a frozen copy of its source by qemu-img; afterwards
descriptors, threads, processes, ports and temporary files are what they were at the start.
With SENDENSE_SOAK=1: ten rounds, larger disks; 80 of 80.
"""

import os
import random
import shutil
import time

import pytest

import hub
import support
from support import KIB, MIB, make_disk, wait_for

SOAK = bool(os.environ.get("SENDENSE_SOAK"))
ROUNDS = 10 if SOAK else 3
SIZE = (256 if SOAK else 24) * MIB
DATA = (48 if SOAK else 5) * MIB
PULL, PUSH = 4, 4


@pytest.fixture
def h(servers):
    with hub.hub_in(servers, settings="[limits]\njobs = 8\njobs-per-source = 8\n") as made:
        yield made.start()


def change(path, seed):
    """What a guest writes in a day: some blocks, some zeros, a bit at the end."""
    rng = random.Random(seed)
    with open(path, "r+b") as file:
        for _ in range(6):
            file.seek(rng.randrange(SIZE - 300 * KIB))
            file.write(rng.randbytes(rng.randrange(1, 300 * KIB)))
        file.seek(rng.randrange(SIZE // (64 * KIB)) * 64 * KIB)
        file.write(bytes(64 * KIB))
        file.seek(SIZE - 1)
        file.write(b"%d" % (seed % 10))


def freeze(path, copy):
    support.run("cp", "--sparse=always", path, copy)


class Memory:
    """The most memory that each process was seen to take."""

    def __init__(self):
        self.peak = {}

    def look(self, pids):
        for pid in pids:
            try:
                with open(f"/proc/{pid}/status", encoding="ascii") as file:
                    for line in file:
                        if line.startswith("VmHWM:"):
                            self.peak[pid] = int(line.split()[1])
            except (OSError, ValueError):
                pass


def test_eight_machines_round_after_round(h, scratch, servers, record_property):
    support.need("qemu-img", "qemu-nbd")
    names = [f"vm{i}" for i in range(PULL + PUSH)]
    disks = {name: make_disk(f"{scratch}/{name}.raw", SIZE, [(0, DATA, "random"),
                                                           (SIZE // 2, DATA // 2, "text")], seed=i)
             for i, name in enumerate(names)}
    frozen = {}
    memory = Memory()
    h.get("repositories/main/vms")
    steady = None
    began = time.monotonic()
    for round_nr in range(ROUNDS):
        for i, name in enumerate(names):
            if round_nr:
                change(disks[name], round_nr * 100 + i)
        sources = {name: servers.qemu_nbd(disks[name], read_only=True, tcp=True) for name in names[:PULL]}
        jobs = [h.start_backup(name, {"2000": source.uri}) for name, source in sources.items()]
        clients = [servers.start(support.SENDENSE, "backup", "--repo", h.url, "--token-file",
                                 h.token_file, "--ca-file", h.ca_file, "--vm", name, "--disk",
                                 f"2000=raw:{disks[name]}", "--json", "--quiet", name="push")
                   for name in names[PULL:]]
        wait_for(lambda: memory.look(h.workers() + [client.pid for client in clients])  # pylint: disable=cell-var-from-loop
                 or not any(client.running for client in clients), "the pushes", 600)
        for client in clients:
            assert client.wait() == 0, client.err
        wait_for(lambda: memory.look(h.workers()) or not h.open_jobs(), "the jobs", 600)
        for job in jobs:
            done = h.wait(job)
            assert done["point"]
        for source in sources.values():
            source.stop()
        for name in names:
            point = h.points(name)[-1]["point"]
            assert (name, point) not in frozen
            frozen[name, point] = f"{scratch}/{name}-{round_nr}.frozen"
            freeze(disks[name], frozen[name, point])
        now = (h.descriptors(), h.threads(), h.descriptors(h.nbd_service()), len(h.listening()))
        steady = steady or now
        wait_for(lambda: h.workers() == [], "the workers' end")
        wait_for(lambda: all(a <= b + 2 for a, b in zip(  # pylint: disable=cell-var-from-loop
            (h.descriptors(), h.threads(), h.descriptors(h.nbd_service()), len(h.listening())), steady)),
            f"descriptors, threads and ports to be {steady} again")
    took = time.monotonic() - began
    good = 0
    for (name, point), copy in frozen.items():
        good += hub.compare(h.point_images(name, point)["2000"], copy)
    assert good == len(frozen) == ROUNDS * (PULL + PUSH)
    verify = h.wait(h.post("verifications", {"repository": "main"}), timeout=600)
    assert verify["state"] == "done"
    modes = {point["mode"] for name in names for point in h.points(name)[1:]}
    assert modes == {"incremental"}
    assert os.listdir(os.path.join(h.runtime, "jobs")) == []
    assert os.listdir(os.path.join(h.repositories["main"], ".incoming")) == []
    peak = max(memory.peak.values()) if memory.peak else 0
    record_property("peak_kib", peak)
    print(f"{good} of {len(frozen)} good, {took:.1f} s, most memory of a backup {peak // 1024} MiB, "
          f"NBD service {memory_of(h.nbd_service()) // 1024} MiB, hub {h.process.peak_kib() // 1024} MiB")
    if not support.under_sanitizer():
        assert peak < 64 * 1024
    shutil.rmtree(os.path.join(scratch, "none"), ignore_errors=True)


def memory_of(pid):
    memory = Memory()
    memory.look([pid])
    return memory.peak.get(pid, 0)


def test_a_hub_that_is_stopped_hands_over(h, scratch):
    """SIGTERM in the middle: workers and sessions go on, the next hub brings them home."""
    disk = make_disk(f"{scratch}/a.raw", 64 * MIB, [(0, 32 * MIB, "random")])
    conf = open(h.conf, encoding="utf-8").read()  # pylint: disable=consider-using-with
    with open(h.conf, "w", encoding="utf-8") as file:
        file.write(conf.replace("stop-timeout = 10s", "stop-timeout = 0s"))
    h.reload()
    job = h.start_backup("web01", {"2000": f"raw:{disk}"}, limit_rate=4 * MIB)
    h.wait_stage(job["id"], "copy")
    session = h.open_session("web02", {"2000": 64 * MIB})
    workers, service = h.workers(), h.nbd_service()
    assert len(workers) == 1
    began = time.monotonic()
    h.stop()
    assert time.monotonic() - began < 10
    assert h.workers() == workers and h.nbd_service() == service
    h.start()
    assert h.get(f"sessions/{session['id']}")["state"] == "open"
    assert h.job(job["id"])["state"] == "running"
    h.post(f"jobs/{job['id']}/cancel")
    h.wait(job["id"], "cancelled")
    h.write(session["disks"][0]["export"], disk)
    h.commit(session)
    assert hub.compare(h.point_images("web02")["2000"], disk)


def test_a_hub_that_is_told_to_cancel_leaves_nothing(servers, scratch):
    disk = make_disk(f"{scratch}/a.raw", 64 * MIB, [(0, 32 * MIB, "random")])
    with hub.hub_in(servers) as h:
        h.init()
        conf = open(h.conf, encoding="utf-8").read()  # pylint: disable=consider-using-with
        with open(h.conf, "w", encoding="utf-8") as file:
            file.write(conf.replace("[hub]", "[hub]\nstop = cancel"))
        h.start()
        job = h.start_backup("web01", {"2000": f"raw:{disk}"}, limit_rate=4 * MIB)
        h.wait_stage(job["id"], "copy")
        session = h.open_session("web02", {"2000": 64 * MIB})
        h.stop()
        wait_for(lambda: hub.pids_of(h.runtime) == [], "all to end")
        h.start()
        assert h.wait(job["id"], None)["state"] in ("cancelled", "failed")
        assert h.wait(session["job"], None)["state"] in ("cancelled", "failed")
        assert h.open_jobs() == [] and h.get("sessions")["items"] == []

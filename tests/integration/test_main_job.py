"""The main job from end to end: served disks, backed up, checked by other people's
programs, restored.  The disk is small here; SENDENSE_SOAK=1 makes it 10 GiB with
some 3.6 GiB of data, tries every server with every setting, and kills ten times and
more in each stage.
"""

import collections
import hashlib
import os
import re
import signal
import subprocess
import tempfile

import pytest

from support import (KIB, MIB, SENDENSE, TIB, TOP, allocated, bad_input, make_disk, need,
                     qemu_check, run, same_content, sendense, servers_in, under_sanitizer)

SOAK = os.environ.get("SENDENSE_SOAK") == "1"
LONG = 1800 if SOAK else 120
SERVERS = ["nbdkit tcp", "nbdkit unix", "qemu-nbd tcp", "qemu-nbd unix"]
SETTINGS = [(compression, cluster) for compression in ("none", "zlib", "zstd")
            for cluster in ("64KiB", "2MiB")]
# In the small form every server and every setting once, not their product.
MATRIX = [(s, c) for s in SERVERS for c in SETTINGS] if SOAK else [
    *((s, ("zstd", "64KiB")) for s in SERVERS), *(("nbdkit tcp", c) for c in SETTINGS[:-2]),
    ("qemu-nbd unix", SETTINGS[-1])]


@pytest.fixture(scope="module")
def disk():
    """Like a VM's: GPT, FAT, ext4 with real files, written zeros, a hole at the
    end, an odd number of sectors."""
    need("mke2fs", "sfdisk", "mkfs.vfat", "mcopy")
    size, data, zeros = ("10G", "3G", "512M") if SOAK else ("640M", "120M", "32M")
    with tempfile.TemporaryDirectory(prefix="sd-", dir=os.environ.get("SENDENSE_TEST_DIR")) as folder:
        path = os.path.join(folder, "disk.raw")
        run("/usr/bin/python3", os.path.join(TOP, "scripts", "make-disk"), path, "--size", size,
            "--data", data, "--zeros", zeros, timeout=LONG)
        os.truncate(path, os.path.getsize(path) + 512)
        yield path


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def serve(servers, kind, path):
    program, where = kind.split()
    tcp = where == "tcp"
    if program == "nbdkit":
        return servers.nbdkit("-r", "file", path, tcp=tcp)
    return servers.qemu_nbd(path, tcp=tcp, read_only=True)


def image_of(repo, key="disk0", vm="vm"):
    folder = os.path.join(repo, "vms", vm, "disks", key)
    images = [name for name in sorted(os.listdir(folder)) if name.endswith(".qcow2")]
    return os.path.join(folder, images[-1])


@pytest.mark.parametrize("kind,settings", MATRIX,
                         ids=[f"{s}-{c[0]}-{c[1]}".replace(" ", "-") for s, c in MATRIX])
def test_backup_and_restore(scratch, servers, disk, kind, settings):
    compression, cluster = settings
    need("7zz", "qemu-img")
    repo, restored = os.path.join(scratch, "repo"), os.path.join(scratch, "restored.raw")
    sendense("repo", "init", repo, "--compression", compression, "--cluster-size", cluster)
    sendense("backup", "--repo", repo, "--vm", "vm", serve(servers, kind, disk).uri, timeout=LONG)
    image = image_of(repo)

    assert "No errors were found" in qemu_check(image).out
    same_content(disk, "raw", image, "qcow2")
    if compression != "zstd":
        with subprocess.Popen(["7zz", "e", "-so", "-tqcow", image], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL) as unpacker:
            digest = hashlib.sha256()
            while block := unpacker.stdout.read(MIB):
                digest.update(block)
        assert digest.hexdigest() == sha256_of(disk)

    sendense("verify", "--repo", repo, timeout=LONG)
    sendense("restore", "--repo", repo, "vm", "--to", f"raw:{restored}", timeout=LONG)
    run("cmp", disk, restored, timeout=LONG)
    # Written zeros become holes, so the restored file may be thinner, not thicker.
    assert allocated(restored) <= allocated(disk) + MIB


@pytest.mark.parametrize("size", [512, 2 * TIB + 512, 8 * TIB], ids=["512", "2TiB+512", "8TiB"])
def test_sizes(scratch, servers, size):
    """Extreme sizes take seconds and little memory; their ends are not lost."""
    path, repo = os.path.join(scratch, "disk.raw"), os.path.join(scratch, "repo")
    restored = os.path.join(scratch, "restored.raw")
    empty = size == 8 * TIB
    make_disk(path, size, [] if empty else [(0, 512, "random"), (size - 512, 512, "random")])
    uri = servers.nbdkit("-r", "file", path).uri
    sendense("repo", "init", repo)
    command = [SENDENSE, "backup", "--repo", repo, "--vm", "vm", uri]
    run("/usr/bin/time", "-v", "-o", os.path.join(scratch, "time"), *command)
    with open(os.path.join(scratch, "time"), encoding="utf-8") as file:
        peak_kib = [int(line.split()[-1]) for line in file if "Maximum resident" in line][0]
    if not under_sanitizer():
        assert peak_kib < 100 * KIB
    image = image_of(repo)
    assert "No errors were found" in qemu_check(image).out
    same_content(path, "raw", image, "qcow2")
    sendense("verify", "--repo", repo)
    sendense("restore", "--repo", repo, "vm", "--to", f"raw:{restored}")
    assert os.path.getsize(restored) == size
    same_content(path, "raw", restored, "raw")
    assert allocated(restored) <= 64 * KIB


# As src/repository/repository.h names them.
STAGES = ["begin", "create", "copy", "sync-data", "close-data", "sync-sums", "rename-data",
          "sync-folders", "rename-manifest", "log", "drop-plan"]
CALLS = ["fsync", "fdatasync", "ftruncate", "linkat", "mkdirat", "pwrite64", "renameat", "unlinkat"]
# Leaks cannot be looked for under strace.
ENVIRONMENT = dict(os.environ, ASAN_OPTIONS=os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0")


class Killed:
    """A repository with a restore point and a foreign file, and the places where a
    further backup can be killed: for each stage (system call, its number, whether the
    commit lies behind it).

    The places are learned from the trace of one backup; all others make the same calls
    in the thread that runs the job.  Copying is the work of other threads: a place there
    is the n-th write of whichever comes to it first."""

    def __init__(self, folder, servers):
        disk = make_disk(os.path.join(folder, "disk.raw"), 64 * MIB, [(0, 12 * MIB, "random")])
        # Not nbdkit: some releases abort when a client vanishes in the middle of a reply.
        self.uri = servers.qemu_nbd(disk, read_only=True).uri
        self.first, self.repo = os.path.join(folder, "first"), os.path.join(folder, "repo")
        sendense("repo", "init", self.first)
        sendense("backup", "--repo", self.first, "--vm", "vm", self.uri)
        foreign = os.path.join(self.first, "vms", "vm", "disks", "disk0", "foreign.qcow2")
        with open(foreign, "wb") as file:
            file.write(b"somebody else's")
        self.places = {stage: [] for stage in STAGES}
        self.renew()
        self.find_places(os.path.join(folder, "trace"))

    def renew(self):
        run("rm", "-rf", self.repo)
        run("cp", "-a", self.first, self.repo)

    def backup(self, *tracing, status=0):
        return run(*tracing, SENDENSE, "backup", "--repo", self.repo, "--vm", "vm", "--mode", "full",
                   self.uri, status=status, env=ENVIRONMENT)

    def find_places(self, trace):
        self.backup("strace", "-f", "-qq", "-o", trace, "-e",
                    "trace=" + ",".join([*CALLS, "pwritev", "exit"]))
        with open(trace, encoding="utf-8") as file:
            lines = [line.split(maxsplit=1) for line in file]
        job, stages, stage, committed = lines[0][0], iter(STAGES), None, False
        made = collections.Counter()
        for thread, line in lines:
            call = line.split("(")[0]
            if thread != job or call not in CALLS:
                continue
            made[call] += 1
            if stage:
                self.places[stage].append((call, made[call], committed))
            if re.match(r'renameat.*/(plan|stage)\.json"', line):
                stage = next(stages)
            committed = committed or bool(re.match(r'renameat.*/manifest\.json"', line))
            if re.match(r'unlinkat.*/stage\.json"', line):
                break  # no stage is recorded from here on
        # However the writes fall to the threads, one of them has its share.
        threads = len({thread for thread, _ in lines}) - 1
        writes = len([1 for _, line in lines if line.startswith("pwritev(")])
        assert writes > 0, "a copy without writes is nothing to kill"
        copying = [("pwritev", n, False) for n in range(1, max(writes // threads, 1) + 1)]
        self.places["copy"] = copying + self.places["copy"]

    def kill(self, call, number):
        self.backup("strace", *(["-f"] if call == "pwritev" else []), "-qq", "-o", "/dev/null",
                    "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}",
                    status=-signal.SIGKILL)

    def points(self):
        return len(sendense("ls", "--repo", self.repo, "vm", "--json").json["points"])

    def jobs(self):
        """What is told of unfinished jobs: stage, whether committed, whether alive."""
        told = sendense("repo", "info", self.repo, "--json").json["jobs"]
        return [(job["stage"], job["committed"], job["alive"]) for job in told]


@pytest.fixture(scope="module")
def killed():
    need("strace")
    with tempfile.TemporaryDirectory(prefix="sd-", dir=os.environ.get("SENDENSE_TEST_DIR")) as folder:
        with servers_in(folder) as servers:
            yield Killed(folder, servers)


@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_every_stage(killed, stage):
    """kill -9 in each named stage: no restore point appears before its commit, the
    older ones verify, leftovers are found by their plan, a foreign file is kept."""
    places = killed.places[stage]
    assert len(places) >= 2, killed.places
    commit = STAGES.index("rename-manifest") - STAGES.index(stage)  # 0: it lies in this one
    assert {committed for _, _, committed in places} == (
        {False, True} if commit == 0 else {commit < 0}), killed.places
    # Every place and ten kills at least; or the one in the middle.
    for nr in range(max(10, len(places))) if SOAK else [len(places) // 2]:
        call, number, committed = place = places[nr % len(places)]
        killed.renew()
        killed.kill(call, number)
        assert killed.jobs() == [(stage, committed, False)], place
        assert killed.points() == 1 + committed, place
        sendense("verify", "--repo", killed.repo)
        killed.backup()
        assert killed.jobs() == [], place
        bad_input("a repository locked by a process that is dead",
                  "(the lock is taken over, what the job left is cleaned, the backup succeeds)")
        assert killed.points() == 2 + committed, place
        names = os.listdir(os.path.join(killed.repo, "vms", "vm", "disks", "disk0"))
        # An image and its digests for each point, and the foreign file.
        assert len(names) == 2 * (2 + committed) + 1 and "foreign.qcow2" in names, (place, names)
        check = sendense("repo", "check", killed.repo, "--json", status=3).json
        assert (check["foreign"], check["damages"], check["jobs"]) == (1, 0, 0), (place, check)

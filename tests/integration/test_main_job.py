"""The main job from end to end: served disks, backed up, checked by other people's
programs, restored.  The disk is small here; SENDENSE_SOAK=1 makes it 10 GiB with
some 3.6 GiB of data, and kills ten times in each stage.
"""

import hashlib
import json
import os
import subprocess
import tempfile

import pytest

from support import (KIB, MIB, SENDENSE, TIB, TOP, allocated, bad_input, make_disk,
                     need, qemu_check, run, same_content, sendense, under_sanitizer, wait_for)

SOAK = os.environ.get("SENDENSE_SOAK") == "1"
LONG = 1800 if SOAK else 120
SERVERS = ["nbdkit tcp", "nbdkit unix", "qemu-nbd tcp", "qemu-nbd unix"]
SETTINGS = [(compression, cluster) for compression in ("none", "zlib", "zstd")
            for cluster in ("64KiB", "2MiB")]
# Every server and every setting; what a server is does not depend on the settings.
MATRIX = [(s, ("zstd", "64KiB")) for s in SERVERS] + [("nbdkit tcp", c) for c in SETTINGS[:-2]] + [
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


# As src/repository/repository.h names them; the last two lie behind the commit point.
STAGES = ["begin", "create", "copy", "sync-data", "close-data", "sync-sums", "rename-data",
          "sync-folders", "rename-manifest", "log", "drop-plan"]


def recorded_stage(repo):
    """What an unfinished job had last written down; None when there is no plan."""
    incoming = os.path.join(repo, ".incoming")
    for job in os.listdir(incoming):
        if not os.path.exists(os.path.join(incoming, job, "plan.json")):
            continue
        try:
            with open(os.path.join(incoming, job, "stage.json"), encoding="utf-8") as file:
                return json.load(file)["stage"]
        except FileNotFoundError:
            return "begin"  # recorded by the plan alone
    return None


def kill_in_stage(scratch, repo, uri, stage):
    """Starts a backup, slowed down at the calls between stages so that even short
    stages last, kills it when the stage is recorded; True when that was its last."""
    with open(os.path.join(scratch, "strace.err"), "wb") as log, subprocess.Popen(
            ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e",  # -D: our child is the traced
             "inject=fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat:delay_enter=15000",
             SENDENSE, "backup", "--repo", repo, "--vm", "vm", uri, "--limit-rate", "64MiB"],
            stdout=log, stderr=log) as backup:
        wait_for(lambda: recorded_stage(repo) == stage or backup.poll() is not None, stage)
        backup.kill()
    return recorded_stage(repo) == stage


def test_killed_in_every_stage(scratch, servers):
    """kill -9 in each named stage: no restore point appears before its commit, the
    older ones verify, leftovers are found by their plan, a foreign file is kept."""
    need("strace")
    # Not nbdkit: some releases abort when a client vanishes in the middle of a reply.
    repo = os.path.join(scratch, "repo")
    disk = make_disk(os.path.join(scratch, "disk.raw"), 64 * MIB, [(0, 12 * MIB, "random")])
    uri = servers.qemu_nbd(disk, read_only=True).uri
    sendense("repo", "init", repo)
    sendense("backup", "--repo", repo, "--vm", "vm", uri)
    foreign = os.path.join(repo, "vms", "vm", "disks", "disk0", "foreign.qcow2")
    with open(foreign, "wb") as file:
        file.write(b"somebody else's")

    wanted, landed = 10 if SOAK else 1, {}
    for stage in STAGES:
        for _ in range(4 * wanted + 4):
            if landed.get(stage, 0) >= wanted:
                break
            before = sendense("ls", "--repo", repo, "vm", "--json").json
            if not kill_in_stage(scratch, repo, uri, stage):
                continue
            landed[stage] = landed.get(stage, 0) + 1
            after = sendense("ls", "--repo", repo, "vm", "--json").json
            more = len(after["points"]) - len(before["points"])
            committed = stage in ("log", "drop-plan")
            assert more == (1 if committed else 0) or (stage == "rename-manifest" and more in (0, 1)), stage
            sendense("verify", "--repo", repo)
            sendense("backup", "--repo", repo, "--vm", "vm", uri)
            assert recorded_stage(repo) is None, stage
            bad_input("a repository locked by a process that is dead",
                      "(the lock is taken over, what the job left is cleaned, the backup succeeds)")
            assert os.path.exists(foreign)
            names = os.listdir(os.path.join(repo, "vms", "vm", "disks", "disk0"))
            assert not [n for n in names if n.endswith(".part")], (stage, names)
    missed = [s for s in STAGES if landed.get(s, 0) < wanted]
    assert not missed, f"no kill landed in {missed}: {landed}"
    check = sendense("repo", "check", repo, "--json", status=None)
    assert "foreign.qcow2" in check.out

"""What shows that a source is in the state of an interrupted backup, and what does not."""

import glob
import os

import pytest

from support import MIB, allocated, make_disk, run, sendense, wait_for

SIZE = 24 * MIB


@pytest.fixture
def repo(scratch):
    path = f"{scratch}/repo"
    sendense("repo", "init", path, "--quiet")
    return path


def interrupted(servers, repo, *words):
    """Begins that backup slowly, and ends it (SIGTERM) when a part is stored."""
    process = servers.start(os.environ["SENDENSE"], "backup", "--repo", repo, "--vm", "vm",
                            "--quiet", "--limit-rate=4M", *words, name="backup")

    def is_on_its_way():
        parts = glob.glob(f"{repo}/vms/vm/disks/disk0/*.qcow2.part")
        return not process.running or parts and allocated(parts[0]) > 3 * MIB

    wait_for(is_on_its_way, "a part of the backup")
    assert process.stop() == 1, process.err
    assert "goes on with it" in process.err


def gone_on(scratch, repo, disk, *words):
    """Goes on with it; the bytes read.  The result must be what the disk is now."""
    report = sendense("backup", "--repo", repo, "--vm", "vm", "--resume", "--json", *words).json
    back = f"{scratch}/back.raw"
    sendense("restore", "--repo", repo, "vm", f"--to=disk0=raw:{back}", "--quiet")
    run("cmp", disk, back)
    return report["disks"][0]["read"]


@pytest.mark.parametrize("words", [[], ["--change-id=monday"]])
@pytest.mark.parametrize("is_changed", [False, True])
def test_a_file_shows_its_state(scratch, servers, repo, words, is_changed):
    """Also one whose change id was given twice."""
    disk = make_disk(f"{scratch}/disk.raw", SIZE, [(0, SIZE, "random")])
    wait_for(lambda: run("find", disk, "-not", "-newerct", "0.1 seconds ago").out, "a settled file")
    interrupted(servers, repo, *words, f"raw:{disk}")
    if is_changed:
        with open(disk, "r+b") as file:
            file.write(b"another state")
    read = gone_on(scratch, repo, disk, *words, f"raw:{disk}")
    assert read == SIZE if is_changed else read < SIZE


def test_who_gives_a_source_id_vouches_for_it(scratch, servers, repo):
    """The same bytes in another file, by --source-id."""
    disk = make_disk(f"{scratch}/disk.raw", SIZE, [(0, SIZE, "random")])
    other = f"{scratch}/other.raw"
    run("cp", disk, other)
    words = ["--source-id=snapshot-1", "--change-id=monday"]
    interrupted(servers, repo, *words, f"raw:{disk}")
    assert gone_on(scratch, repo, disk, *words, f"raw:{other}") < SIZE

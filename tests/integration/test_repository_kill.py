"""A backup that is killed: no half restore point, nothing lost, nothing left.

strace sends SIGKILL at one system call that changes folders or waits for the disk:
the first of its kind, the second, and so on until a backup comes through.  So every
boundary of the way from the lock to the dropped plan is a place where one was killed.
"""

import glob
import json
import os
import re

import pytest

from support import KIB, SENDENSE, make_disk, need, run, sendense

CALLS = ("linkat", "mkdirat", "fsync", "fdatasync", "renameat", "unlinkat", "rename", "unlink",
         "renameat2")
# Leaks cannot be looked for under strace.
ENVIRONMENT = dict(os.environ, ASAN_OPTIONS="detect_leaks=0")


class Site:
    """A repository with one good restore point of two disks, and a foreign file."""

    def __init__(self, folder):
        self.repo = f"{folder}/repo"
        self.disks = [
            make_disk(f"{folder}/a.raw", 300 * KIB, [(0, 70 * KIB, "random")]),
            make_disk(f"{folder}/b.raw", 512, [(0, 512, "text")], seed=2)]
        sendense("repo", "init", self.repo, "--quiet")
        self.backup()
        self.foreign = glob.glob(f"{self.repo}/vms/web01/disks/a")[0] + "/notes.txt"
        with open(self.foreign, "w", encoding="utf-8") as file:
            file.write("mine\n")

    def command(self, vm):
        return ["backup", "--repo", self.repo, "--vm", vm, f"--disk=a=raw:{self.disks[0]}",
                f"--disk=b=raw:{self.disks[1]}", "--quiet"]

    def backup(self, vm="web01"):
        return sendense(*self.command(vm))

    def killed(self, call, number, vm="web01"):
        """True when the backup was killed at its call of that kind and number."""
        done = run("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
                   f"inject={call}:signal=SIGKILL:when={number}", SENDENSE, *self.command(vm),
                   status=None, env=ENVIRONMENT)
        assert done.status in (0, -9, 137), done
        return done.status != 0

    def points(self, vm="web01"):
        done = sendense("ls", "--repo", self.repo, vm, "--json", status=None)
        return [p["point"] for p in done.json["points"]] if done.status == 0 else []

    def logged(self, vm="web01"):
        path = f"{self.repo}/vms/{vm}/points.log"
        if not os.path.exists(path):
            return []
        with open(path, encoding="utf-8") as file:
            return [json.loads(line)["point"] for line in file]

    def stage(self):
        for path in glob.glob(f"{self.repo}/.incoming/*/stage.json"):
            with open(path, encoding="utf-8") as file:
                return json.load(file)["stage"]
        return None


@pytest.fixture
def site(scratch):
    need("strace")
    return Site(scratch)


def all_files(folder):
    return {os.path.relpath(os.path.join(where, name), folder)
            for where, _, names in os.walk(folder) for name in names}


def expected_files(repo, points, vm="web01"):
    """What a repository with these points holds, and nothing else."""
    files = {"repository.json", ".locks/guard", f"vms/{vm}/points.log"}
    for point in points:
        files.add(f"vms/{vm}/points/{point}/manifest.json")
        files |= {f"vms/{vm}/disks/{key}/{point}.{ending}"
                  for key in "ab" for ending in ("qcow2", "sums")}
    return files


def places(site, vm="web01"):
    """Kills a backup at each place in turn, and lets the caller look after each."""
    for call in CALLS:
        number = 1
        while site.killed(call, number, vm):
            yield f"{call} {number}"
            number += 1
            assert number < 100


def test_killed_at_every_boundary(site):
    stages, good, killed_at = set(), site.points(), []
    for place in places(site):
        killed_at.append(place)
        stages.add(site.stage())
        # Nothing half: what is listed is whole; what was there is there.
        points = site.points()
        assert points[:-1] == good or points == good, place
        # A point whose line in the log is still to come is no damage either.
        sendense("verify", "--repo", site.repo, f"web01@{points[-1]}", "--quiet")
        # A dead job's lock and files stand in nobody's way, and go.
        if len(killed_at) % 2:
            # 3: the foreign file.
            sendense("repo", "check", site.repo, "--repair", "--quiet", status=3)
        else:
            site.backup()
        good = site.points()
        assert good[:len(points)] == points, place
        assert site.logged() == good, place
        assert os.listdir(f"{site.repo}/.incoming") == []
        left = all_files(site.repo) - {"vms/web01/disks/a/notes.txt"}
        left = {name for name in left if not name.endswith("/state.json")}
        assert left == expected_files(site.repo, good), place
        with open(site.foreign, encoding="utf-8") as file:
            assert file.read() == "mine\n"
    assert len(killed_at) > 40
    assert {"create", "copy", "sync-data", "close-data", "sync-sums", "rename-data", "sync-folders",
            "rename-manifest", "log", "drop-plan"} <= stages
    sendense("verify", "--repo", site.repo, "--quiet")
    report = sendense("repo", "check", site.repo, "--json", status=3).json
    assert report["foreign"] == 1 and report["damages"] == 0 and report["jobs"] == 0


def test_killed_first_backup(site):
    """Of a VM that has no folder yet: the next clean-up leaves none."""
    for call, number in (("mkdirat", 1), ("mkdirat", 4), ("fsync", 3), ("fsync", 8),
                         ("fdatasync", 2), ("renameat", 4), ("renameat", 8)):
        assert site.killed(call, number, vm="new")
        if call == "fdatasync":
            info = sendense("repo", "info", site.repo, "--json").json
            assert re.search(r'"alive": ?false', json.dumps(info)), info
        sendense("repo", "check", site.repo, "--repair", "--quiet", status=3)
        assert not os.path.exists(f"{site.repo}/vms/new"), (call, number)
        assert os.listdir(f"{site.repo}/.incoming") == []
    site.backup(vm="new")
    sendense("verify", "--repo", site.repo, "--quiet")

"""Prune and merge: what goes, what stays, and that nothing else notices.

Every point has a frozen copy of its disks; after each step every point that is still listed
must equal it, by qemu-img and by our own reader.
"""

import glob
import hashlib
import json
import os
import re
import shutil
import signal

import pytest

from support import (KIB, MIB, SENDENSE, allocated, fails, make_disk, need, need_mounts, qemu_check,
                     run, same_content, sendense, wait_for)

# Leaks cannot be looked for under strace.
TRACED = dict(os.environ, ASAN_OPTIONS="detect_leaks=0")
SOAK = bool(os.environ.get("SENDENSE_SOAK"))
CHUNK = 64 * KIB


class Site:
    """A repository, a machine's disks, and frozen copies of them for each restore point."""

    def __init__(self, folder, *options, vm="web01"):
        self.folder, self.repo, self.vm = folder, f"{folder}/repo", vm
        self.frozen = {}  # point: {key: path}
        self.nr = 0
        sendense("repo", "init", self.repo, "--quiet", *options)

    def disk(self, key, size=4 * MIB, nr_chunks=6):
        """A new disk, or the same name anew: some chunks of it hold data."""
        pieces = [(i * 7 * CHUNK % size, min(CHUNK, size), "random") for i in range(nr_chunks)]
        return make_disk(f"{self.folder}/{key}.raw", size, pieces, seed=self.nr + hash(key) % 99)

    def change(self, key, *chunks, zero=()):
        with open(f"{self.folder}/{key}.raw", "r+b") as file:
            for chunk in chunks:
                self.nr += 1
                file.seek(chunk * CHUNK)
                file.write(hashlib.shake_128(b"%d" % self.nr).digest(CHUNK))
            for chunk in zero:
                file.seek(chunk * CHUNK)
                file.write(bytes(CHUNK))

    def command(self, *keys):
        return ["backup", "--repo", self.repo, "--vm", self.vm, "--quiet",
                *(f"--disk={key}=raw:{self.folder}/{key}.raw" for key in keys)]

    def backup(self, *keys, options=()):
        sendense(*self.command(*keys), *options)
        point = self.points()[-1]
        self.frozen[point] = {}
        for key in keys:
            path = f"{self.folder}/frozen-{point}-{key}.raw"
            run("cp", "--sparse=always", f"{self.folder}/{key}.raw", path)
            self.frozen[point][key] = path
        return point

    def points(self):
        done = sendense("ls", "--repo", self.repo, self.vm, "--json", status=None)
        return [p["point"] for p in done.json["points"]] if done.status == 0 else []

    def prune(self, *options, **kwargs):
        return sendense("prune", "--repo", self.repo, self.vm, "--json", *options, **kwargs).json

    def image(self, point, key="a"):
        return f"{self.repo}/vms/{self.vm}/disks/{key}/{point}.qcow2"

    def backing(self, point, key="a"):
        shown = sendense("ls", "--repo", self.repo, f"{self.vm}@{point}", "--json").json
        return next(d.get("backing") for d in shown["disks"] if d["key"] == key)

    def du(self):
        """As du says it; the files that locks leave behind are no restore point's."""
        return int(run("du", "-s", "--block-size=1", self.repo).out.split()[0])

    def compare(self, points=None):
        """What is listed equals its frozen copy."""
        for point in points or self.points():
            for key, frozen in self.frozen[point].items():
                same_content(self.image(point, key), "qcow2", frozen, "raw")

    def check(self):
        """All of it is good, and nothing is left of any job."""
        self.compare()
        for path in glob.glob(f"{self.repo}/vms/*/disks/*/*.qcow2"):
            qemu_check(path)
        sendense("verify", "--repo", self.repo, "--quiet")
        report = sendense("repo", "check", self.repo, "--json").json
        assert report["findings"] == [], report
        assert not os.listdir(f"{self.repo}/.incoming")
        for point in glob.glob(f"{self.repo}/vms/{self.vm}/points/*"):
            assert os.path.basename(point) in self.points(), point
        known = {os.path.basename(self.image(p)) for p in self.points()}
        found = {os.path.basename(f)
                 for f in glob.glob(f"{self.repo}/vms/{self.vm}/disks/*/*.qcow2")}
        assert found <= known, found - known


@pytest.fixture
def site(scratch):
    need("qemu-img")
    return Site(scratch)


def chain(site, length=5, keys=("a", "b")):
    """Points that stand on each other, each with other changes."""
    for key in keys:
        site.disk(key)
    points = [site.backup(*keys)]
    for i in range(1, length):
        site.change("a", i, i + 1, 40 + i, zero=[7 * (i % 5)])
        if "b" in keys and i % 2:
            site.change("b", 10 + i)
        points.append(site.backup(*keys))
    return points


def fates(report):
    return {p["point"]: p["fate"] for p in report["points"]}


def whys(report):
    return {p["point"]: p["why"] for p in report["points"]}


# --- what goes and what stays ----------------------------------------------------------


def test_points_are_merged(site):
    points = chain(site)
    before = site.du()
    report = site.prune("--keep-last", "2")
    assert [fates(report)[p] for p in points] == ["pruned"] * 3 + ["keep"] * 2
    assert report["freed"] == before - site.du()
    assert report["freed"] == sum(p.get("freed", 0) for p in report["points"])
    assert site.points() == points[3:]
    # The full is the younger one's now, and the facts of points are what they were.
    assert site.backing(points[3]) is None and site.backing(points[4]) == points[3]
    site.check()
    events = [json.loads(line) for line in open(f"{site.repo}/vms/web01/points.log",
                                                encoding="utf-8")]
    assert [e["point"] for e in events if e["event"] == "pruned"] == points[:3]
    # The next backup goes on with the chain.
    site.change("a", 3)
    point = site.backup("a", "b")
    assert site.backing(point) == points[4]
    site.check()


def test_dry_run_changes_nothing(site):
    points = chain(site, 3)
    files = sorted(glob.glob(f"{site.repo}/**", recursive=True))
    report = site.prune("--keep-last", "1", "--dry-run")
    assert report["dry_run"] and report["pruned"] == 2 and report["freed"] == 0
    assert whys(report) == {points[0]: "no rule keeps it", points[1]: "no rule keeps it",
                            points[2]: "last 1"}
    assert sorted(glob.glob(f"{site.repo}/**", recursive=True)) == files
    text = sendense("prune", "--repo", site.repo, "--keep-last", "1", "--dry-run").out
    assert re.search(rf"{points[0]} +prune +no rule keeps it", text)
    assert "1 kept, 2 to be pruned, 0 left." in text


def test_whole_chains_are_deleted(site):
    """A chain on which nothing stands any more goes without a byte being moved."""
    first = chain(site, 3)
    site.change("a", 9)
    full = site.backup("a", "b", options=["--mode", "full"])
    inodes = {os.stat(site.image(full)).st_ino}
    report = site.prune("--keep-last", "1")
    assert [fates(report)[p] for p in first] == ["pruned"] * 3
    assert {os.stat(path).st_ino for path in
            glob.glob(f"{site.repo}/vms/web01/disks/a/*.qcow2")} == inodes
    assert not any('"merged"' in line for line in open(f"{site.repo}/vms/web01/points.log",
                                                       encoding="utf-8"))
    site.check()


def test_only_the_childs_bytes_are_written(site):
    """However large the base is."""
    need("strace")
    make_disk(f"{site.folder}/a.raw", 48 * MIB, [(0, 48 * MIB, "random")])
    full = site.backup("a")
    site.change("a", 5, 300)
    child = site.backup("a")
    inode, size = os.stat(site.image(full)).st_ino, allocated(site.image(full))
    log = f"{site.folder}/strace"
    run("strace", "-f", "-qq", "-o", log, "-e", "trace=pwrite64,pwritev,copy_file_range,write",
        SENDENSE, "prune", "--repo", site.repo, "--keep-last", "1", "--quiet", env=TRACED)
    with open(log, encoding="ascii", errors="replace") as file:
        written = sum(int(m.group(1)) for m in re.finditer(r"= (\d+)$", file.read(), re.M))
    assert written < 1 * MIB, written
    assert os.stat(site.image(child)).st_ino == inode
    assert allocated(site.image(child)) < size + 512 * KIB
    site.check()


def test_disks_that_come_and_go(site):
    """Each disk of a point is merged, or deleted, by itself."""
    for key in "abc":
        site.disk(key)
    points = [site.backup("a", "b")]
    site.change("a", 1)
    site.change("b", 1)
    points.append(site.backup("a", "b", "c"))
    site.change("a", 2, zero=[1])
    site.change("c", 2)
    points.append(site.backup("a", "c"))
    os.truncate(f"{site.folder}/a.raw", 6 * MIB)
    site.change("a", 80)
    points.append(site.backup("a", "b", "c"))
    site.change("b", 3)
    points.append(site.backup("b", "a"))
    before = site.du()
    report = site.prune("--keep-last", "1")
    assert report["pruned"] == 4 and report["freed"] == before - site.du()
    site.check()
    assert os.listdir(f"{site.repo}/vms/web01/disks/c") == []


@pytest.mark.parametrize("options", [
    ("--compression", "none"), ("--compression", "zlib", "--cluster-size", "4KiB"),
    ("--cluster-size", "2MiB", "--digest", "sha256")])
def test_settings(scratch, options):
    need("qemu-img")
    site = Site(scratch, *options)
    points = chain(site, 4, keys=("a",))
    site.prune("--keep-last", "2")
    site.prune("--keep-last", "1")
    assert site.points() == points[3:]
    site.check()


def test_each_machine_by_itself(site):
    chain(site, 3, keys=("a",))
    for vm in ("db 1", "db 1", "ümlaut"):
        sendense("backup", "--repo", site.repo, "--vm", vm, "--quiet", f"raw:{site.folder}/a.raw")
    report = sendense("prune", "--repo", site.repo, "--keep-last", "1", "--json").json
    assert report["kept"] == 3 and report["pruned"] == 3
    site.check()


# --- protected, held, used ------------------------------------------------------------------


def test_protected(site):
    points = chain(site, 4, keys=("a",))
    sendense("protect", "--repo", site.repo, f"web01@{points[0]}", "--quiet")
    shown = sendense("protect", "--repo", site.repo, f"web01@{points[2]}", "--until", "2099-12-31",
                     "--json").json
    assert shown == {"vm": "web01", "point": points[2], "protected": True,
                     "until": "2099-12-31T23:59:59Z"}
    sendense("protect", "--repo", site.repo, f"web01@{points[1]}", "--until", "30d", "--quiet")
    sendense("protect", "--repo", site.repo, f"web01@{points[1]}", "--off", "--quiet")
    report = site.prune("--keep-last", "1")
    assert [fates(report)[p] for p in points] == ["keep", "pruned", "keep", "keep"]
    assert whys(report)[points[0]] == "protected"
    assert whys(report)[points[2]] == "protected until 2099-12-31T23:59:59Z"
    listed = sendense("ls", "--repo", site.repo, "web01", "--json").json["points"]
    assert [p["protected"] for p in listed] == [True, True, False]
    # One that has ended, and one that cannot be read.
    states = [f"{site.repo}/vms/web01/points/{points[i]}/state.json" for i in (0, 2)]
    with open(states[0], encoding="utf-8") as file:
        state = json.load(file)
    state["protected"] = {"until": "2001-01-01T00:00:00Z"}
    with open(states[0], "w", encoding="utf-8") as file:
        json.dump(state, file)
    with open(states[1], "w", encoding="utf-8") as file:
        file.write("{")
    report = site.prune("--keep-last", "1")
    assert [fates(report)[points[i]] for i in (0, 2, 3)] == ["pruned", "keep", "keep"]
    sendense("protect", "--repo", site.repo, f"web01@{points[2]}", "--off", "--quiet")
    site.prune("--keep-last", "1")
    site.check()


def test_last_verified_good_stays(site):
    points = chain(site, 4, keys=("a",))
    for point in points[:2]:
        sendense("verify", "--repo", site.repo, f"web01@{point}", "--quiet")
    report = site.prune("--keep-last", "1")
    assert [fates(report)[p] for p in points] == ["pruned", "keep", "pruned", "keep"]
    assert whys(report)[points[1]] == "the last one verified good"
    site.check()
    # Verified are both now.
    site.prune("--keep-last", "1")
    assert site.points() == points[3:]


def test_points_being_read_stay(site, servers):
    points = chain(site, 4, keys=("a",))
    server = servers.export(f"web01@{points[1]}", "--repo", site.repo, command="serve")
    for options in (["--dry-run"], []):
        report = site.prune("--keep-last", "1", *options)
        # What it stands on is read as well.
        assert [fates(report)[p] for p in points[:2]] == ["left", "left"]
        assert fates(report)[points[2]] == ("prune" if options else "pruned")
        assert f"restore point {points[1]} is being read by process {server.pid}" in \
            whys(report)[points[0]]
    assert site.points() == [points[0], points[1], points[3]]
    site.compare()
    assert not os.listdir(f"{site.repo}/.incoming")
    server.stop()
    site.prune("--keep-last", "1")
    assert site.points() == points[3:]
    site.check()


def test_qemu_reading_keeps_a_point(site, servers):
    """A program that knows no leases is seen by its locks on the images."""
    need("qemu-nbd", "nbdinfo")
    points = chain(site, 3, keys=("a",))
    server = servers.qemu_nbd(site.image(points[1]), "qcow2", read_only=True)
    run("nbdinfo", "--size", server.uri)
    report = site.prune("--keep-last", "1")
    assert [fates(report)[p] for p in points] == ["left", "left", "keep"]
    assert "another program has it open" in whys(report)[points[0]]
    assert site.points() == points
    server.stop()
    site.prune("--keep-last", "1")
    assert site.points() == points[2:]
    site.check()


# --- at the same time -------------------------------------------------------------------------


class Stopped:
    """A prune that strace stops at one of its system calls, until it is let go."""

    def __init__(self, servers, site, call, number, *options, path=None):
        need("strace")
        self.site = site
        self.process = servers.start(
            "strace", "-f", "-qq", "-o", "/dev/null", *(["-P", path] if path else []), "-e",
            f"trace={call}", "-e", f"inject={call}:signal=SIGSTOP:when={number}", SENDENSE, "prune",
            "--repo", site.repo, "web01", "--verbose", *options, env=TRACED)
        wait_for(lambda: self.pid() and self.state() in "tT" or not self.process.running,
                 f"{call} {number} of prune")
        assert self.process.running, self.process.err

    def pid(self):
        for path in glob.glob(f"{self.site.repo}/.locks/*.write"):
            try:
                with open(path, encoding="utf-8") as file:
                    return json.load(file)["pid"]
            except (FileNotFoundError, ValueError):
                pass
        return None

    def state(self):
        # All its threads stop; strace tells them to one after the other.
        states = set()
        for path in glob.glob(f"/proc/{self.pid()}/task/*/stat"):
            try:
                with open(path, encoding="ascii", errors="replace") as file:
                    states.add(file.read().rpartition(")")[2].split()[0])
            except FileNotFoundError:
                return "?"
        return states.pop() if len(states) == 1 else "?"

    def stage(self):
        for path in glob.glob(f"{self.site.repo}/.incoming/*/stage.json"):
            with open(path, encoding="utf-8") as file:
                return json.load(file)["stage"]
        return None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.running and self.pid():
            os.kill(self.pid(), signal.SIGKILL)  # strace ends with it

    def finish(self):
        os.kill(self.pid(), signal.SIGCONT)
        assert self.process.wait() == 0, self.process.err


def test_reading_while_merging(site, servers):
    """Points above are opened and read while a prune is stopped amid its merge, and to their
    end behind it."""
    need("nbdcopy", "nbdinfo")
    points = chain(site, 4, keys=("a",))
    site.prune("--keep-last", "3")
    with Stopped(servers, site, "pwrite64", 1, "--keep-last", "2",
                 path=site.image(points[1])) as stopped:
        assert stopped.stage() == "merge" and site.points() == points[2:]
        for point in points[2:]:
            # QEMU does not bear the writer unless it is told to.
            run("qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", site.image(point),
                site.frozen[point]["a"])
            restored = f"{site.folder}/restored-{point}.raw"
            sendense("restore", "--repo", site.repo, f"web01@{point}", "--to", f"raw:{restored}",
                     "--quiet")
            same_content(restored, "raw", site.frozen[point]["a"], "raw")
        sendense("verify", "--repo", site.repo, "--quiet")
        report = sendense("repo", "check", site.repo, "--json").json
        assert [f["kind"] for f in report["findings"]] == ["job"]
        assert "prune job" in report["findings"][0]["text"]
        jobs = sendense("repo", "info", site.repo, "--json").json["jobs"]
        assert [(j["kind"], j["alive"]) for j in jobs] == [("prune", True)]
        serving = [servers.export(f"web01@{p}", "--repo", site.repo, command="serve")
                   for p in points[2:]]
        stopped.finish()
    for server, point in zip(serving, points[2:]):
        copied = f"{site.folder}/copied-{point}.raw"
        run("nbdcopy", server.uri, copied)
        same_content(copied, "raw", site.frozen[point]["a"], "raw")
        server.stop()
    site.check()

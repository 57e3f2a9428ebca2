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

from support import (KIB, MIB, SENDENSE, TOP, allocated, fails, make_disk, need, need_mounts, qemu_check,
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
        # A lock whose owner is dead stands in nobody's way.
        assert not [f for f in report["findings"] if f["kind"] != "lock"], report
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
        self.seen, self.nr_seen = None, 0
        wait_for(lambda: self.pid() and self.stays() or not self.process.running,
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
            except (FileNotFoundError, ProcessLookupError):
                return "?"
        return states.pop() if len(states) == 1 else "?"

    def stays(self):
        """Under strace it stops at every call for a moment: it must not have run in between."""
        switches = []
        for path in glob.glob(f"/proc/{self.pid()}/task/*/status"):
            try:
                with open(path, encoding="utf-8") as file:
                    switches += [line for line in file if "_ctxt_switches" in line]
            except (FileNotFoundError, ProcessLookupError):
                pass
        seen = (self.state(), switches)
        self.nr_seen = self.nr_seen + 1 if seen == self.seen and seen[0] in ("t", "T") else 0
        self.seen = seen
        return self.nr_seen >= 25

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

    def finish(self, status=0):
        def is_over():
            # Each of its threads is stopped at its own call of that number.
            pid = self.pid()
            if pid and self.state() in "tT":
                os.kill(pid, signal.SIGCONT)
            return not self.process.running
        wait_for(is_over, "the end of prune")
        assert self.process.wait() == status, self.process.err


def fits_schema(pattern, name):
    jsonschema = pytest.importorskip("jsonschema", reason="python3-jsonschema is not installed")
    with open(f"{TOP}/docs/schemas/{name}.schema.json", encoding="utf-8") as file:
        schema = json.load(file)
    for path in glob.glob(pattern):
        with open(path, encoding="utf-8") as file:
            jsonschema.validate(json.load(file), schema)


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
        fits_schema(f"{site.repo}/.incoming/*/plan.json", "plan")
        fits_schema(f"{site.repo}/.locks/*.write", "lock")
        serving = [servers.export(f"web01@{p}", "--repo", site.repo, command="serve")
                   for p in points[2:]]
        stopped.finish()
    for server, point in zip(serving, points[2:]):
        copied = f"{site.folder}/copied-{point}.raw"
        run("nbdcopy", server.uri, copied)
        same_content(copied, "raw", site.frozen[point]["a"], "raw")
        server.stop()
    site.check()


def test_backups_wait_with_a_name(site, servers):
    """A backup waits for a prune to let go of the machine, and says for whom."""
    points = chain(site, 4, keys=("a",))
    with Stopped(servers, site, "pwrite64", 1, "--keep-last", "1",
                 path=site.image(points[0])) as stopped:
        site.change("a", 33)
        backup = servers.start(SENDENSE, *site.command("a")[:-2], site.command("a")[-1])
        backup.wait_err("waiting for prune job")
        assert re.search(rf"waiting for prune job \S+ of VM \"web01\" \(pid {stopped.pid()} on host "
                         rf"\S+, since \S+\)", backup.err)
        stopped.finish()
    assert backup.wait() == 0, backup.err
    assert "verify" not in backup.err
    point = site.points()[-1]
    assert point not in points
    site.frozen[point] = {"a": f"{site.folder}/a.raw"}
    site.prune("--keep-last", "1")
    assert site.points() == [point]
    site.check()


def test_two_prunes_at_once(site, servers):
    points = chain(site, 4, keys=("a",))
    with Stopped(servers, site, "pwrite64", 1, "--keep-last", "1",
                 path=site.image(points[0])) as stopped:
        report = site.prune("--keep-last", "1", "--wait", "0", status=1)
        left = [p for p in report["points"] if p["fate"] == "left"]
        assert [p["point"] for p in left] == site.points()[:-1]
        for point in left:
            assert "is locked by prune job" in point["why"]
            assert f"(pid {stopped.pid()} on host" in point["why"]
        other = servers.start(SENDENSE, "prune", "--repo", site.repo, "--keep-last", "1",
                              "--wait", "1h")
        other.wait_err("waiting for prune job")
        stopped.finish()
    assert other.wait() == 0, other.err
    assert site.points() == points[3:]
    site.check()


def test_cancelled(site, servers):
    """Only the point that was begun is to be finished."""
    points = chain(site, 4, keys=("a",))
    with Stopped(servers, site, "pwrite64", 1, "--keep-last", "1",
                 path=site.image(points[0])) as stopped:
        os.kill(stopped.pid(), signal.SIGINT)
        stopped.finish(1)
    lines = [line.split(None, 2) for line in stopped.process.out.splitlines() if " left " in line]
    assert "cancelled" in lines[0][2] and lines[1:] == [[p, "left", "cancelled"] for p in points[1:3]]


def test_prune_during_a_backup(site, servers):
    """What a backup stands on stays; with --wait prune comes behind it."""
    need("nbdkit")
    points = chain(site, 3, keys=("a",))
    server = servers.nbdkit("--filter=delay", "file", f"{site.folder}/a.raw", "rdelay=1")
    backup = servers.start(SENDENSE, "backup", "--repo", site.repo, "--vm", "web01",
                           f"--disk=a={server.uri}", "--quiet")
    wait_for(lambda: glob.glob(f"{site.repo}/.incoming/*/plan.json"), "the backup's plan")
    report = site.prune("--keep-last", "1", "--wait", "0", status=1)
    assert [fates(report)[p] for p in points] == ["left", "left", "keep"]
    assert "is locked by job" in whys(report)[points[0]]
    prune = servers.start(SENDENSE, "prune", "--repo", site.repo, "--keep-last", "1", "--wait",
                          "1h")
    prune.wait_err("waiting for job")
    assert backup.wait() == 0, backup.err
    assert prune.wait() == 0, prune.err
    assert len(site.points()) == 2  # the policy was applied to what was there
    sendense("verify", "--repo", site.repo, "--quiet")


# --- kills -------------------------------------------------------------------------------------


HOWS = ("prune", "backup", "check")
CALLS = ("renameat", "unlinkat", "fsync", "fdatasync", "linkat", "mkdirat", "pwrite64")


class Killed:
    """One history, pruned again and again from copies of it, each killed at another place."""

    def __init__(self, folder):
        self.site = Site(folder)
        self.site.disk("c")
        chain(self.site, 1, keys=("a", "b", "c"))
        self.site.change("a", 1, 2, zero=[7])
        self.site.change("b", 3)
        self.site.backup("a", "b")  # c's chain ends: deleted, while others are merged
        self.site.change("a", 2, 5)
        self.site.backup("a", "b")
        self.points = self.site.points()
        sendense("protect", "--repo", self.site.repo, f"web01@{self.points[1]}", "--quiet")
        self.kept = f"{folder}/kept"
        os.rename(self.site.repo, self.kept)

    def fresh(self):
        shutil.rmtree(self.site.repo, ignore_errors=True)
        shutil.copytree(self.kept, self.site.repo)

    def prune(self, call, number):
        """True when it was killed at its call of that kind and number."""
        self.fresh()
        done = run("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
                   f"inject={call}:signal=SIGKILL:when={number}", SENDENSE, "prune", "--repo",
                   self.site.repo, "--keep-last", "1", "--quiet", status=None, env=TRACED)
        assert done.status in (0, -9, 137), done
        return done.status != 0


def numbers(call, how):
    """Which calls of a kind: all in the long form; else every second is tried, by one of the
    three that come next, and writes are many."""
    if SOAK:
        return range(1, 1000)
    step = 6 * (4 if call == "pwrite64" else 1)
    return range(1 + HOWS.index(how) * step // 3 + CALLS.index(call) % 2, 1000, step)


@pytest.mark.parametrize("how", HOWS)
def test_killed_anywhere(scratch, how):
    """Whoever comes next finishes what a killed prune began, or undoes it."""
    need("strace", "qemu-img")
    killed = Killed(scratch)
    site, stages, places = killed.site, set(), 0
    for call in CALLS:
        for number in numbers(call, how):
            if not killed.prune(call, number):
                break
            places += 1
            for path in glob.glob(f"{site.repo}/.incoming/*/stage.json"):
                with open(path, encoding="utf-8") as file:
                    stages.add(json.load(file)["stage"])
            place = f"{call} {number}"
            points = site.points()
            assert points in (killed.points, killed.points[1:]), place
            site.compare(points)
            report = sendense("repo", "check", site.repo, "--json").json
            assert not report["damages"] and not report["foreign"], (place, report)
            if how == "backup":
                run(SENDENSE, *site.command("a", "b"))
                new = site.points()[-1]
                site.frozen[new] = {key: f"{site.folder}/{key}.raw" for key in "ab"}
            elif how == "check":
                sendense("repo", "check", site.repo, "--repair", "--quiet")
            else:
                site.prune("--keep-last", "1")
                assert site.points() == killed.points[1:], place
            site.check()
    assert places > 8 and len(stages) > 2, (places, stages)


# --- damage and bad input -----------------------------------------------------------------------


def test_damaged_child(site):
    """What is damaged is not moved: the point beneath it stays."""
    points = chain(site, 4, keys=("a",))
    image = site.image(points[1])
    with open(image, "r+b") as file:
        file.seek(-3 * CHUNK, os.SEEK_END)
        data = file.read()
        at = len(data) - len(data.rstrip(b"\0")) + 2000
        file.seek(-at, os.SEEK_END)
        byte = file.read(1)
        file.seek(-at, os.SEEK_END)
        file.write(bytes([byte[0] ^ 0x55]))
    report = site.prune("--keep-last", "1", status=1)
    assert [fates(report)[p] for p in points] == ["left", "pruned", "pruned", "keep"] or \
        [fates(report)[p] for p in points][:2] == ["left", "left"], report
    assert "damaged" in whys(report)[points[0]]
    assert points[0] in site.points()
    assert not os.listdir(f"{site.repo}/.incoming")
    site.compare([points[0]])


def test_lost_and_damaged_manifests(site):
    """A point whose manifest is gone may be brought back: what it stands on stays."""
    points = chain(site, 5, keys=("a",))
    folder = f"{site.repo}/vms/web01/points"
    os.rename(f"{folder}/{points[1]}/manifest.json", f"{site.folder}/kept.json")
    report = site.prune("--keep-last", "1", status=1)
    assert fates(report)[points[0]] == "left"
    assert f"a/{points[1]}.qcow2 stands on it, and no restore point tells of that" in \
        whys(report)[points[0]]
    os.rename(f"{site.folder}/kept.json", f"{folder}/{points[1]}/manifest.json")
    site.compare([points[1]])
    left = site.points()
    with open(f"{folder}/{points[1]}/manifest.json", "r+", encoding="utf-8") as file:
        file.write("[")
    report = site.prune("--keep-last", "1", status=1)
    assert fates(report)[points[1]] == "keep"
    assert whys(report)[points[1]] == "its manifest is damaged"
    assert fates(report)[points[0]] == "left" and points[1] in whys(report)[points[0]]
    assert site.points() == left


def set_clock(site, point, time, field="finished"):
    """As if the point had been made when the clock said that."""
    path = f"{site.repo}/vms/web01/points/{point}/manifest.json"
    with open(path, encoding="utf-8") as file:
        manifest = json.load(file)
    manifest["facts"][field] = time
    facts = json.dumps(manifest["facts"], sort_keys=True, separators=(",", ":"),
                       ensure_ascii=False)
    manifest["facts_sha256"] = hashlib.sha256(facts.encode()).hexdigest()
    with open(path, "w", encoding="utf-8") as file:
        json.dump(manifest, file)


def test_times_are_those_of_what_was_read(site):
    """Not of the id, which is of the first attempt; and they never go back."""
    points = chain(site, 4, keys=("a",))
    for point, year in zip(points, (2019, 2021, 2020)):
        set_clock(site, point, f"{year}-03-01T00:00:00Z", "started")
    report = site.prune("--keep-yearly=9", "--timezone=UTC", "--dry-run")
    assert [why.split(", ")[0] for why in whys(report).values()] == [
        "yearly 2019", "no rule keeps it", "yearly 2021", f"yearly {points[3][:4]}"], report


@pytest.mark.parametrize("finished, text", [
    ("2099-01-01T00:00:00Z", "which is still to come"),
    ("2020-01-01T00:00:00Z", "a year and more before")])
def test_implausible_clock(site, finished, text):
    points = chain(site, 3, keys=("a",))
    sendense("backup", "--repo", site.repo, "--vm", "other", "--quiet", f"raw:{site.folder}/a.raw")
    sendense("backup", "--repo", site.repo, "--vm", "other", "--quiet", f"raw:{site.folder}/a.raw")
    set_clock(site, points[-1], finished)
    fails("prune", "--repo", site.repo, "web01", "--keep-last", "1", case="prune, clock is wrong",
          contains=["the clock says", text, "--trust-clock"])
    assert site.points() == points
    # Other machines are pruned all the same.
    done = fails("prune", "--repo", site.repo, "--keep-last", "1", contains="the clock says")
    assert "1 kept, 1 pruned, 0 left" in done.out
    site.prune("--keep-last", "1", "--trust-clock")
    assert site.points() == points[-1:]


def test_wrong_usage(site):
    point = chain(site, 1, keys=("a",))[0]
    repo = ["--repo", site.repo]
    fails("prune", *repo, status=2, case="prune without a rule",
          contains="no rule says which restore points are to be kept")
    fails("prune", *repo, "--keep-last", "0", status=2, contains="--keep-last")
    fails("prune", *repo, "--keep-daily", "3", "--timezone", "Mars/Olympus", status=2,
          case="prune, unknown time zone", contains="time zone \"Mars/Olympus\" is unknown")
    fails("prune", *repo, "--keep-within", "often", status=2, contains="not a duration")
    fails("prune", *repo, "nobody", "--keep-last", "1", case="prune of an unknown machine",
          contains="has no VM \"nobody\"")
    fails("protect", *repo, "web01", status=2, contains="which restore point of web01?")
    fails("protect", *repo, f"web01@{point}", "--until", "2001-01-01", status=2,
          case="protect until the past", contains="2001-01-01T23:59:59Z is in the past")
    for text in ("2026-02-31", "tomorrow", "2026-12-31T25:00:00Z", "2026-1-1", "-3d"):
        fails("protect", *repo, f"web01@{point}", f"--until={text}", status=2,
              contains="is not a date")
    fails("protect", *repo, f"web01@{point}", "--until", "30d", "--off", status=2,
          contains="exclude each other")
    fails("protect", *repo, "web01@20200101T000000Z-aaaaaa", case="protect an unknown point",
          contains="VM \"web01\" has no restore point 20200101T000000Z-aaaaaa")


# --- little space ---------------------------------------------------------------------------------


NEARLY_FULL = r"""
set -e
mount -t tmpfs -o size=20m none "$1"
cp -a "$2/repo" "$1/repo"
sendense="$3"
fill() {
    left=$(df -Pk "$1" | awk 'NR == 2 {print $4}')
    head -c $(((left - $2) * 1024)) /dev/zero >"$1/filling"
}
fill "$1" 1500
"$sendense" protect --repo "$1/repo" "web01@$4" --quiet
"$sendense" prune --repo "$1/repo" --keep-last 2 --json || [ $? = 1 ]
"$sendense" protect --repo "$1/repo" "web01@$4" --off --quiet
"$sendense" prune --repo "$1/repo" --keep-last 2 --json
"$sendense" verify --repo "$1/repo" --quiet
"$sendense" repo check "$1/repo" --quiet
for point in "$1"/repo/vms/web01/disks/a/*.qcow2; do
    qemu-img compare -q -f qcow2 -F raw "$point" "$2/frozen-$(basename "$point" .qcow2)-a.raw"
done
"""


def test_nearly_full(site):
    """Whole chains go first; a merge begins only when the younger point's own bytes fit."""
    need_mounts(site.folder)
    make_disk(f"{site.folder}/a.raw", 8 * MIB, [(0, 6 * MIB, "random")])
    old = [site.backup("a")]
    points = [site.backup("a", options=["--mode", "full"])]
    for i in range(2):
        site.change("a", *range(16 * i, 16 * i + 16))
        points.append(site.backup("a"))
    target = f"{site.folder}/small"
    os.mkdir(target)
    done = run("unshare", "-rm", "sh", "-c", NEARLY_FULL, "sh", target, site.folder, SENDENSE,
               old[0])
    decoder, text, reports = json.JSONDecoder(), done.out.strip(), []
    while text:
        report, end = decoder.raw_decode(text)
        reports.append(report)
        text = text[end:].strip()
    assert [fates(reports[0])[p] for p in old + points] == ["keep", "left", "keep", "keep"]
    assert re.search(r"merging it with \S+ may take \d+ MiB for a while, and \S+ has \d+ MiB free",
                     whys(reports[0])[points[0]])
    # Deleting the old chain makes room for the merge.
    assert [fates(reports[1])[p] for p in old + points] == ["pruned", "pruned", "keep", "keep"]

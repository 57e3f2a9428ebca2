"""A virtual machine with a memory: disks that change by chance, a repository of it, and
a frozen copy of every restore point, against which all that the repository holds is held.

Everything is drawn from one random generator, so that a seed gives the same story again
(a kill in a program of several threads may land a little earlier or later).
"""

import collections
import ctypes
import glob
import json
import os
import shutil

from support import KIB, MIB, SENDENSE, run, sendense

LIBC = ctypes.CDLL(None, use_errno=True)
PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
# Leaks cannot be looked for under strace.
TRACED = dict(os.environ, ASAN_OPTIONS="detect_leaks=0")
# Where a program may be killed: a system call, and which one of a thread's at most.
KILLS = {"pwrite64": 24, "fdatasync": 4, "fsync": 20, "renameat": 16, "unlinkat": 10, "linkat": 2,
         "mkdirat": 4, "openat": 110, "pread64": 36}


def punch(file, offset, length):
    """Makes a hole."""
    if LIBC.fallocate(file.fileno(), PUNCH_HOLE, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def union(ranges):
    """Sorted and disjoint."""
    out = []
    for offset, end in sorted((o, o + n) for o, n in ranges):
        if out and offset <= out[-1][1]:
            out[-1][1] = max(out[-1][1], end)
        else:
            out.append([offset, end])
    return [(offset, end - offset) for offset, end in out]


def write_extents(path, key, size, since, until, ranges, /, **changed):
    """A list of changes; changed= replaces members of its first line."""
    ranges = union(ranges)
    head = {"sendense-extents": 1, "key": key, "size": size, "from": since, "to": until, **changed}
    with open(path, "w", encoding="utf-8") as file:
        for line in [head, *({"offset": o, "length": n} for o, n in ranges),
                     {"end": True, "count": len(ranges), "bytes": sum(n for _, n in ranges)}]:
            file.write(json.dumps(line) + "\n")
    return path


class Disk:
    """One disk as it is now, and what changed since the latest restore point."""

    def __init__(self, folder, key, size, rng):
        self.key, self.path, self.rng = key, f"{folder}/{key}.raw", rng
        self.changed, self.frozen = [], None
        with open(self.path, "wb") as file:
            file.truncate(size)
        self.change()

    @property
    def size(self):
        return os.path.getsize(self.path)

    def some_range(self):
        """Often whole chunks, often not."""
        rng, size = self.rng, self.size
        unit = rng.choice([1, 512, 4 * KIB, 64 * KIB])
        length = min(rng.choice([1, 7, 512, 4 * KIB, 64 * KIB, 200 * KIB]) * rng.randint(1, 3), size)
        offset = min(rng.randrange(size) // unit * unit, size - length)
        return offset, length

    def change(self):
        """Writes, zeros, holes, and writing what is there already."""
        rng = self.rng
        self.frozen = None
        with open(self.path, "r+b") as file:
            for _ in range(rng.randint(1, 5)):
                offset, length = self.some_range()
                kind = rng.choice(["random", "random", "text", "zero", "hole", "same"])
                file.seek(offset)
                if kind == "random":
                    file.write(rng.randbytes(length))
                elif kind == "text":
                    file.write((b"%09d lazy dog\n" % rng.randrange(10**9) * (length // 10))[:length])
                elif kind == "zero":
                    file.write(bytes(length))
                elif kind == "hole":
                    file.flush()
                    punch(file, offset, length)
                else:
                    same = file.read(length)
                    file.seek(offset)
                    file.write(same)
                self.changed.append((offset, length))

    def resize(self, size):
        self.changed.append((min(self.size, size), max(size - self.size, 0)))
        self.changed = [(o, min(n, size - o)) for o, n in self.changed if o < size]
        self.frozen = None
        os.truncate(self.path, size)


class Machine:
    """The machine, its repository, and what must be in it."""

    def __init__(self, folder, rng):
        self.folder, self.rng = folder, rng
        self.repo, self.nr_keys, self.nr_points = f"{folder}/repo", 0, 0
        self.disks, self.points = {}, {}  # points: id -> {key: frozen copy}
        self.latest = {}  # key -> (size, change id) in the latest restore point
        self.checked = {}  # id -> the state of its files when it was found equal
        self.good_images = set()
        self.protected = set()
        self.returning = {}  # like points: a killed prune may have to put them back
        self.told = collections.Counter()
        os.mkdir(f"{folder}/frozen")
        self.unrest = rng.choice([0, 0.03, 0.1])  # how often a chain has to begin anew
        self.longest = rng.choice([1, 2, 3, 5, 8, 60, 60])
        sendense("repo", "init", self.repo, "--quiet", f"--chain-length={self.longest}",
                 f"--compression={rng.choice(['none', 'zlib', 'zstd'])}",
                 f"--cluster-size={rng.choice(['4KiB', '64KiB', '64KiB', '1MiB'])}",
                 f"--digest={rng.choice(['xxh3-128', 'sha256'])}")
        for _ in range(rng.randint(1, 3)):
            self.add_disk()

    # --- the machine lives ---

    def some_size(self):
        unit = self.rng.choice([512, 4 * KIB, 64 * KIB])
        return max(self.rng.randint(1, self.rng.choice([64 * KIB, MIB, 3 * MIB])) // unit, 1) * unit

    def add_disk(self):
        self.nr_keys += 1
        key = f"disk-{self.nr_keys}"
        size = self.some_size() + self.rng.choice([0, 0, 0, 1, 511])
        self.disks[key] = Disk(self.folder, key, size, self.rng)

    def live(self):
        """Some time passes."""
        rng = self.rng
        for disk in list(self.disks.values()):
            if rng.random() < 0.7:
                disk.change()
            if rng.random() < self.unrest / 2:
                disk.resize(self.some_size())
        if rng.random() < self.unrest and len(self.disks) < 4:
            self.add_disk()
        if rng.random() < self.unrest and len(self.disks) > 1:
            os.unlink(self.disks.pop(rng.choice(sorted(self.disks))).path)

    # --- backups ---

    def freeze(self):
        """A copy of all disks as they are; those that did not change share one."""
        frozen = {}
        for key, disk in self.disks.items():
            if not disk.frozen:
                self.told["frozen"] += 1
                disk.frozen = f"{self.folder}/frozen/{self.told['frozen']}.raw"
                run("cp", "--sparse=always", disk.path, disk.frozen)
            frozen[key] = disk.frozen
        return frozen

    def plan(self):
        """Words of the next backup, and for each disk the mode that it must come to."""
        rng = self.rng
        self.nr_points += 1
        words = ["backup", "--repo", self.repo, "--vm", "vm", "--json"]
        full = rng.random() < self.unrest / 2
        words += ["--mode=full"] if full else rng.choice([[], [], ["--mode=auto"]])
        words += rng.choice([[], [], ["--parallel=1"], ["--parallel=1"]])
        modes = {}
        for key, disk in self.disks.items():
            size, since = self.latest.get(key, (0, None))
            until = f"state {self.nr_points} of {key}"
            words += [f"--disk={key}=raw:{disk.path}"]
            modes[key] = "incremental" if not full and size == disk.size else "full"
            kind = rng.choice(["compare", "extents", "extents", "nothing"])
            if rng.random() < self.unrest:
                kind = "stale"
            if kind in ("extents", "stale"):
                extra = [disk.some_range() for _ in range(rng.choice([0, 0, 2]))]
                if kind == "stale":
                    modes[key] = "full"
                path = write_extents(f"{self.folder}/{key}.extents", key, disk.size,
                                     since if since and kind == "extents" else "a lost state",
                                     until, disk.changed + extra)
                words += [f"--changed-by={key}=extents:{path}"]
            else:
                words += [f"--changed-by={key}=compare"] if kind == "compare" else []
                words += [f"--change-id={key}={until}"]
        return words, modes

    def listed(self):
        done = sendense("ls", "--repo", self.repo, "vm", "--json", status=None)
        if done.status != 0:
            assert "has no VM" in done.err, done
            return []
        return done.json["points"]

    def committed(self, point, frozen):
        """A restore point is there: what it must hold."""
        self.points[point["point"]] = frozen
        self.latest = {disk["key"]: (disk["size"], disk["change_id"]) for disk in point["disks"]}
        for disk in self.disks.values():
            disk.changed = []

    def unfinished(self):
        """Kinds of the jobs that left something."""
        kinds = []
        for path in glob.glob(f"{self.repo}/.incoming/*/plan.json"):
            with open(path, encoding="utf-8") as file:
                kinds.append(json.load(file)["kind"])
        return kinds

    def backup(self, *options):
        words, modes = self.plan()
        frozen = self.freeze()
        report = sendense(*words, *options).json
        told = {disk["key"]: disk["mode"] for disk in report["disks"]}
        assert told == modes, (report, self.latest)
        for disk in report["disks"]:
            self.told[disk["mode"]] += 1
            self.told[f"resumed: {disk['resumed']}"] += 1
        [point] = [p for p in self.listed() if p["point"] == report["point"]]
        self.committed(point, frozen)
        assert os.listdir(f"{self.repo}/.incoming") == []

    def killed(self, words):
        """Runs the command, and kills it at a system call by chance."""
        call = self.rng.choice(sorted(KILLS))
        number = self.rng.randint(1, KILLS[call])
        done = run("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
                   f"inject={call}:signal=SIGKILL:when={number}", SENDENSE, *words, env=TRACED,
                   status=None)
        assert done.status in (0, -9, 137), done
        self.told["killed" if done.status else "not killed"] += 1
        return done.status != 0

    def killed_backup(self):
        words, _ = self.plan()
        frozen = self.freeze()
        self.killed(words)
        points = self.listed()
        if points and points[-1]["point"] not in self.points:
            self.committed(points[-1], frozen)

    # --- pruning ---

    def policy(self):
        """Random rules, or all but some protected."""
        rng = self.rng
        if rng.random() < 0.5 and len(self.points) > 2:
            keep = {p for p in self.points if rng.random() < 0.7} - self.protected
            for point in sorted(keep):
                sendense("protect", "--repo", self.repo, f"vm@{point}", "--quiet")
            self.protected |= keep
            return ["--keep-last=1"]
        return [f"--keep-last={rng.randint(1, 8)}"]

    def unprotect(self):
        for point in sorted(self.protected & set(self.points)):
            sendense("protect", "--repo", self.repo, f"vm@{point}", "--off", "--quiet")
        self.protected = set()

    def prune(self, kill=False):
        words = ["prune", "--repo", self.repo, "vm", *self.policy(), "--trust-clock", "--quiet"]
        before = [p["point"] for p in self.listed()]
        if not kill or not self.killed(words):
            sendense(*words)
            assert "prune" not in self.unfinished()
        after = [p["point"] for p in self.listed()]
        known = self.points | self.returning
        assert set(after) <= set(known) and after[-1:] == before[-1:], (before, after)
        assert self.protected & set(before) <= set(after), (self.protected, after)
        self.told["pruned"] += len(set(before) - set(after))
        self.points = {point: known.pop(point) for point in after}
        self.returning = known
        if self.rng.random() < 0.5:
            self.unprotect()

    # --- looking ---

    def state_of(self, point, by_id):
        """Of all files that the restore point is read from; they only change by a merge.
        None while an unfinished prune has some that ls does not tell of."""
        files = []
        for disk in point["disks"]:
            while disk:
                image = f"{self.repo}/{disk['image']}"
                for path in (image, image[:-len("qcow2")] + "sums"):
                    st = os.stat(path)
                    files.append((path, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns))
                if disk.get("backing", next(iter(by_id))) not in by_id:
                    assert "prune" in self.unfinished(), point
                    return None
                beneath = by_id[disk["backing"]]["disks"] if "backing" in disk else []
                disk = next((d for d in beneath if d["key"] == disk["key"]), None)
        return files

    def look(self, everything=False):
        """All restore points are there and are what they were; those whose files did not
        change since they were looked at last are not read again, unless everything."""
        points = self.listed()
        by_id = {point["point"]: point for point in points}
        self.points |= {p: self.returning.pop(p) for p in set(self.returning) & set(by_id)}
        if "prune" not in self.unfinished():
            self.returning = {}
        assert set(by_id) == set(self.points)
        for point in points:
            assert "damage" not in point, point
            state = self.state_of(point, by_id)
            if everything or not state or self.checked.get(point["point"]) != state:
                self.look_at(point)
                self.checked[point["point"]] = state
            lengths = {d.get("chain_length") for d in point["disks"]} - ({None} if not state else set())
            assert lengths <= set(range(1, self.longest + 1)), point
        sendense("verify", "--repo", self.repo, *([] if everything else [f"vm@{points[-1]['point']}"]
                                                  if points else []), "--quiet")

    def look_at(self, point):
        self.told["looked at"] += 1
        frozen = self.points[point["point"]]
        assert {disk["key"] for disk in point["disks"]} == set(frozen)
        out = f"{self.folder}/out"
        os.mkdir(out)
        sendense("restore", "--repo", self.repo, f"vm@{point['point']}", "--quiet",
                 *[f"--to={key}=raw:{out}/{key}" for key in frozen])
        for disk in point["disks"]:
            key, image = disk["key"], f"{self.repo}/{disk['image']}"
            with open(frozen[key], "rb") as a, open(f"{out}/{key}", "rb") as b:
                assert a.read() == b.read(), (point, key)
            run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", frozen[key], image)
            st = os.stat(image)
            state = (st.st_ino, st.st_size, st.st_mtime_ns)
            if state not in self.good_images:
                assert "No errors" in run("qemu-img", "check", "-f", "qcow2", image).out
                self.good_images.add(state)
        shutil.rmtree(out)

    def settle(self):
        """What a killed command left is gone on with or cleaned, and nothing is amiss."""
        sendense("repo", "check", self.repo, "--repair", "--quiet")
        report = sendense("repo", "check", self.repo, "--json").json
        assert report["good"] and report["jobs"] == report["locks"] == report["leaks"] == 0, report

"""sendense replicate: raw targets kept up to date, and the mapping that is proven before.

Targets are files, qemu-nbd, nbdkit and our own export; what they hold is judged by bytes.
"""

import filecmp
import hashlib
import json
import os
import random
import signal
import subprocess

import pytest

from support import (KIB, MIB, SENDENSE, Process, bad_input, fails, make_disk, need, run, sendense,
                     wait_for)

SEED = int(os.environ.get("SENDENSE_SEED", "1"))
SOAK = bool(os.environ.get("SENDENSE_SOAK"))
CHUNK = 64 * KIB


def write(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


class Machine:
    """A VM of three disks, two of them of one size, with a target file for each."""

    sizes = {"2000": 6 * MIB, "2001": 6 * MIB, "16000": 3 * MIB + 512}

    def __init__(self, scratch, vm="web 01"):
        self.scratch, self.vm, self.state = scratch, vm, f"{scratch}/state"
        self.rng = random.Random(SEED)
        self.sources = {key: make_disk(f"{scratch}/source-{key}", size, [
            (0, 64 * KIB, "random"), (MIB, 300 * KIB, "text"), (2 * MIB + 512, 700 * KIB, "random"),
        ], seed=int(key)) for key, size in self.sizes.items()}
        self.files = {key: make_disk(f"{scratch}/target-{key}", size, [(0, MIB, "random")], seed=7)
                      for key, size in self.sizes.items()}
        self.targets = {key: f"raw:{path}" for key, path in self.files.items()}

    def words(self, *more, disks=None, targets=None):
        """disks, targets: lists of (key, name)."""
        disks = disks if disks is not None else [(k, f"raw:{p}") for k, p in self.sources.items()]
        targets = targets if targets is not None else list(self.targets.items())
        return ["replicate", "--vm", self.vm, "--state-dir", self.state,
                *[word for key, name in disks for word in ("--disk", f"{key}={name}")],
                *[word for key, name in targets for word in ("--target", f"{key}={name}")], *more]

    def run(self, *more, **kwargs):
        return sendense(*self.words(*more, "--json", **kwargs)).json

    def guest_writes(self, nr=12):
        for key, path in self.sources.items():
            for _ in range(nr):
                length = self.rng.choice([1, 512, 4096, 70000])
                at = self.rng.randrange(self.sizes[key] - length)
                data = bytes(length) if self.rng.random() < 0.3 else self.rng.randbytes(length)
                write(path, at, data)

    def same(self):
        return all(filecmp.cmp(self.sources[k], self.files[k], shallow=False) for k in self.sizes)

    def digests(self):
        return {key: digest(path) for key, path in self.files.items()}

    @property
    def record(self):
        with open(f"{self.state}/web%2001.replica.json", encoding="utf-8") as file:
            return json.load(file)


@pytest.fixture
def machine(scratch):
    return Machine(scratch)


def test_full_then_what_differs(machine):
    report = machine.run()
    assert machine.same()
    assert report["generation"] == 1 and report["aliasing"] == "proven"
    assert {d["mode"] for d in report["disks"]} == {"full"}
    roots = {d["key"]: d["root"] for d in report["disks"]}

    report = machine.run()
    assert report["generation"] == 2 and machine.same()
    assert all(d["sent"] == 0 and d["mode"] == "delta" for d in report["disks"]), report
    assert {d["key"]: d["root"] for d in report["disks"]} == roots

    before = machine.digests()
    machine.guest_writes()
    assert not machine.same()
    report = machine.run("--verify", "read-back")
    assert machine.same() and machine.digests() != before
    assert all(0 < d["sent"] < machine.sizes[d["key"]] and d["verified"] == "read-back"
               for d in report["disks"]), report
    assert machine.record["generation"] == 3 and "running" not in machine.record
    left = sorted(os.listdir(f"{machine.state}/web%2001.replica"))
    assert left == ["16000.leaves", "2000.leaves", "2001.leaves"]
    assert not os.path.exists(f"{machine.state}/web%2001.replica.proof")


def test_targets_behind_servers(machine, servers):
    """qemu-nbd, with one connection as well, nbdkit, and our own export."""
    keys = list(machine.sizes)
    machine.targets = {
        keys[0]: servers.qemu_nbd(machine.files[keys[0]], tcp=True).uri,
        keys[1]: servers.qemu_nbd(machine.files[keys[1]], shared=1).uri,
        keys[2]: servers.export(f"raw:{machine.files[keys[2]]}").uri,
    }
    machine.run()
    machine.guest_writes()
    report = machine.run("--verify", "read-back")
    assert machine.same() and report["aliasing"] == "proven"
    word = ",".join(f"{key}:{uri}" for key, uri in machine.targets.items())
    machine.guest_writes()
    machine.run("--nbd-targets", word, targets=[])
    assert machine.same()


def test_lists_of_changes(machine):
    key = "2000"
    disks, targets = [(key, f"raw:{machine.sources[key]}")], [(key, machine.targets[key])]
    machine.run("--change-id", "a/1", disks=disks, targets=targets)
    write(machine.sources[key], 5 * MIB, b"changed")
    lines = [{"sendense-extents": 1, "key": key, "size": machine.sizes[key], "from": "a/1",
              "to": "a/2"}, {"offset": 5 * MIB, "length": 512},
             {"end": True, "count": 1, "bytes": 512}]
    path = f"{machine.scratch}/list"
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    report = machine.run("--changed-by", f"extents:{path}", disks=disks, targets=targets)
    disk = report["disks"][0]
    assert disk["changed_by"] == "extents" and 0 < disk["read"] <= CHUNK and disk["sent"] <= CHUNK
    assert filecmp.cmp(machine.sources[key], machine.files[key], shallow=False)
    # The same list again begins at another state: all is compared, and the reason is told.
    report = machine.run("--changed-by", f"extents:{path}", disks=disks, targets=targets)
    disk = report["disks"][0]
    assert disk["changed_by"] == "compare" and "a/2" in disk["reason"], disk


def test_cutover(machine):
    machine.run()
    machine.guest_writes()
    report = machine.run("--cutover")
    assert report["cut_over"] and machine.same()
    assert all(d["verified"] == "read-back" for d in report["disks"])
    write(machine.files["2000"], 3 * MIB, b"the replica booted")
    before = machine.digests()
    fails(*machine.words(), contains=["cut over", "--force"], case="replicate after a cutover")
    assert machine.digests() == before
    report = machine.run("--force")
    assert machine.same() and not report["cut_over"]
    assert {d["key"]: d["mode"] for d in report["disks"]}["2000"] == "full"


# --- the mapping -------------------------------------------------------------------------------


def wrong_mapping(machine, rng, aliases, second):
    """A random mapping that must be refused: words of disks, of targets, and its kind."""
    disks = [(k, f"raw:{p}") for k, p in machine.sources.items()]
    targets = dict(machine.targets)
    keys = list(targets)
    rng.shuffle(keys)
    a, b, c = keys
    kinds = ["one target twice", "two names", "missing", "extra", "size", "source", "no disk"]
    if second:
        kinds += ["swapped", "disk missing"]
    kind = rng.choice(kinds)
    if kind == "one target twice":
        targets[a] = targets[b]
    elif kind == "two names":
        key = rng.choice(list(aliases))
        other = "2001" if key == "2000" else "2000"
        targets[key], targets[other] = rng.sample(aliases[key], 2)
    elif kind == "missing":
        del targets[a]
    elif kind == "extra":
        return disks, [*targets.items(), (rng.choice([a, "2002", "disk0"]), targets[b])], kind
    elif kind == "size":
        targets["16000"], targets["2000"] = targets["2000"], targets["16000"]
    elif kind == "source":
        targets[a] = f"raw:{machine.sources[rng.choice([a, b])]}"
    elif kind == "no disk":
        targets[f"{a}0"] = targets.pop(a)
    elif kind == "swapped":
        targets["2000"], targets["2001"] = targets["2001"], targets["2000"]
    elif kind == "disk missing":
        disks = [disk for disk in disks if disk[0] != a]
        del targets[a]
    items = list(targets.items())
    rng.shuffle(items)
    return disks, items, kind


@pytest.mark.parametrize("second", [False, True])
def test_wrong_mappings(machine, servers, second):
    """A hundred refusals (fifty before the first run, fifty after it), and no byte changed."""
    rng = random.Random(SEED)
    port = servers.nbdkit("file", machine.files["2000"], tcp=True, export="x")
    socket = servers.nbdkit("file", machine.files["2001"])
    machine.targets["2000"], machine.targets["2001"] = port.uri, socket.uri
    link = f"{machine.scratch}/link"
    os.symlink(socket.socket, link)
    aliases = {
        # nbdkit's file plugin serves one disk, whatever the export's name.
        "2000": [port.uri, port.uri.replace("/x", "/y"), port.uri.replace("127.0.0.1", "127.1")],
        "2001": [socket.uri, socket.uri.replace("///", "///other"), f"nbd+unix:///z?socket={link}"],
    }
    if second:
        machine.run()
        machine.guest_writes()
    before, met = machine.digests(), {}
    for _ in range(50):
        disks, targets, kind = wrong_mapping(machine, rng, aliases, second)
        result = sendense(*machine.words(disks=disks, targets=targets), status=None)
        assert result.status in (1, 2), (kind, result)
        assert result.message, (kind, result)
        assert machine.digests() == before, (kind, result)
        if kind not in met:
            bad_input(f"replicate: {kind}{', second run' if second else ''}", result.message)
        met[kind] = met.get(kind, 0) + 1
    assert len(met) == (9 if second else 7), met
    if second:
        assert machine.record["generation"] == 1 and "running" not in machine.record
    report = machine.run()
    assert machine.same() and report["generation"] == (2 if second else 1)


def test_aliases_are_found_by_their_bytes(machine, servers):
    """Two URIs that no name tells to be one export."""
    server = servers.nbdkit("file", machine.files["2000"])
    targets = [("2000", server.uri), ("2001", server.uri.replace("///", "///other")),
               ("16000", machine.targets["16000"])]
    before = machine.digests()
    fails(*machine.words(targets=targets), contains=["are the same disk", "2000", "2001"],
          case="two URIs of one export")
    assert machine.digests() == before
    source = servers.nbdkit("file", machine.sources["2000"])
    targets[0] = ("2000", machine.targets["2000"])
    targets[1] = ("2001", source.uri)
    before_source = digest(machine.sources["2000"])
    fails(*machine.words(targets=targets), contains="is the source of disk 2000",
          case="a target that is a source under another name")
    assert machine.digests() == before and digest(machine.sources["2000"]) == before_source
    report = machine.run("--no-alias-proof")
    assert report["aliasing"] == "not proven" == machine.record["aliasing"]


def test_devices(machine):
    """Loop devices; two over one file have caches of their own, and are found all the same."""
    need("losetup")
    devices = []

    def loop(path):
        done = run("losetup", "-f", "--show", path, status=None)
        if done.status != 0:
            pytest.skip(f"no loop devices here: {done.err.strip()}")
        devices.append(done.out.strip())
        return f"raw:{devices[-1]}"
    try:
        targets = {key: loop(path) for key, path in machine.files.items()}
        before = machine.digests()
        fails(*machine.words(targets=[*[t for t in targets.items() if t[0] != "2001"],
                                      ("2001", loop(machine.files["2000"]))]),
              contains="are the same disk", case="two devices over one file")
        assert machine.digests() == before
        assert [machine.run(targets=list(targets.items()))["generation"] for _ in range(2)] == [1, 2]
        machine.guest_writes()
        machine.run("--verify", "read-back", targets=list(targets.items()))
        for device in devices[:3]:
            run("blockdev", "--flushbufs", device)
        assert machine.same()
    finally:
        for device in devices:
            run("losetup", "-d", device)


def test_exports_that_were_exchanged(machine, servers):
    """The same two URIs lead to each other's file: what they hold tells."""
    first = servers.qemu_nbd(machine.files["2000"], export="e")
    second = servers.qemu_nbd(machine.files["2001"], export="e")
    machine.targets["2000"], machine.targets["2001"] = first.uri, second.uri
    machine.run()
    first.stop()
    second.stop()
    os.rename(first.socket, f"{machine.scratch}/gone") if os.path.exists(first.socket) else None
    third = servers.qemu_nbd(machine.files["2001"], export="e")
    fourth = servers.qemu_nbd(machine.files["2000"], export="e")
    for old, new in ((first, third), (second, fourth)):
        if os.path.exists(old.socket):
            os.unlink(old.socket)
        os.symlink(new.socket, old.socket)
    before = machine.digests()
    fails(*machine.words(), contains=["is not as generation 1 left it", "--force"],
          case="two exports that were exchanged behind their URIs")
    assert machine.digests() == before


def test_exports_that_have_another_name_now(machine, servers):
    """Another socket, the same bytes: that is the target; other bytes are not."""
    def serve():
        return {key: servers.qemu_nbd(path) for key, path in machine.files.items()}

    old = serve()
    machine.targets = {key: server.uri for key, server in old.items()}
    machine.run()
    machine.guest_writes()
    for server in old.values():
        server.stop()
    new = serve()
    swapped = dict(machine.targets, **{"2000": new["2001"].uri, "2001": new["2000"].uri,
                                       "16000": new["16000"].uri})
    before = machine.digests()
    fails(*machine.words(targets=list(swapped.items())),
          contains=["its target is", "does not hold", "--force"],
          case="exports that have each other's new name")
    assert machine.digests() == before
    machine.targets = {key: server.uri for key, server in new.items()}
    result = sendense(*machine.words("--json"))
    assert "holds all that it held" in result.err
    assert machine.same() and {disk["mode"] for disk in result.json["disks"]} == {"delta"}
    assert {disk["target"] for disk in machine.record["disks"]} == set(machine.targets.values())
    # One chunk that a sample may miss.
    new["2000"].stop()
    with open(machine.files["2000"], "rb") as file:
        file.seek(4 * MIB)
        byte = file.read(1)[0]
    write(machine.files["2000"], 4 * MIB, bytes([byte ^ 1]))
    machine.targets["2000"] = servers.qemu_nbd(machine.files["2000"]).uri
    fails(*machine.words(), contains=["disk 2000", "offset 4194304"])
    machine.run("--force")
    assert machine.same()


def test_targets_that_others_changed(machine):
    machine.run()
    write(machine.files["2001"], 100, b"somebody else")
    before = machine.digests()
    fails(*machine.words(), contains=["disk 2001", "is not as generation 1 left it"],
          case="a target that others wrote to")
    assert machine.digests() == before
    report = machine.run("--force")
    assert machine.same()
    assert {d["key"]: d["mode"] for d in report["disks"]} == {
        "2000": "delta", "2001": "full", "16000": "delta"}
    # A place that a sample may miss.
    write(machine.files["2000"], 4 * MIB + 5, b"x")
    fails(*machine.words("--verify", "read-back"), contains="disk 2000")


def test_wrong_words(machine):
    before = machine.digests()
    for words, text in (
            (["--disk", "a=raw:/a", "--target", "a=raw:/b"], "--vm NAME"),
            (["--vm", "m", "--disk", "a=raw:/a"], "disk a has no target"),
            (["--vm", "m", "--disk", "a=raw:/a", "--target", "raw:/b"], "of which disk?"),
            (["--vm", "m", "--disk", "a=raw:/a", "--target", "a=qcow2:/b"], "a replica is raw"),
            (["--vm", "m", "--disk", "a=qemu:/a", "--target", "a=raw:/b"], "qemu:/a"),
            (["--vm", "m", "--disk", "a=vmware://u@h/m", "--target", "a=raw:/b"], "vmware://u@h/m"),
            (["--vm", "m", "--disk", "a=raw:/a", "--nbd-targets", "a"], "KEY:URI"),
            (["--vm", "m", "--disk", "a=raw:/a", "--nbd-targets", "a:raw:/b"], "no nbd URI"),
            (["--vm", "m", "--disk", "a=raw:/a", "--target", "a=raw:/b", "--disk-id", "b=1"],
             "KEY=ID of a disk")):
        fails("replicate", *words, "--state-dir", machine.state, status=2, contains=text)
    assert not os.path.exists(machine.state) and machine.digests() == before


def test_other_refusals(machine, servers):
    machine.run()
    other = Machine.__new__(Machine)
    other.__dict__ = dict(machine.__dict__, vm="other")
    fails(*other.words(), contains=["is that of a disk of VM", "web 01"],
          case="another machine's target")
    key = "2000"
    link = f"{machine.scratch}/new"
    make_disk(link, machine.sizes[key])
    fails(*machine.words(disks=[(k, f"raw:{link if k == key else p}")
                                for k, p in machine.sources.items()]),
          contains=["its source is", "--force"], case="another source than before")
    with open(machine.sources[key], "r+b") as file:
        file.truncate(8 * MIB)
    fails(*machine.words(), contains="sizes must be equal", case="a source that has grown")
    with open(machine.sources[key], "r+b") as file:
        file.truncate(machine.sizes[key])
    readonly = servers.nbdkit("-r", "file", link)
    fails(*machine.words(targets=[*[t for t in machine.targets.items() if t[0] != key],
                                  (key, readonly.uri)]), contains="read-only",
          case="a target that is read-only")
    fails(*machine.words(targets=[*[t for t in machine.targets.items() if t[0] != key],
                                  (key, f"raw:{machine.scratch}/none")]), contains="truncate -s",
          case="a target that is not there")
    odd = os.path.join(os.fsencode(machine.scratch), b"a\xff.raw")
    os.symlink(machine.files[key], odd)
    words = machine.words(targets=[t for t in machine.targets.items() if t[0] != key])
    done = subprocess.run([SENDENSE, *words, "--target", key.encode() + b"=raw:" + odd],
                          capture_output=True, check=False)
    assert done.returncode == 2 and b"not UTF-8" in done.stderr, done
    path = f"{machine.state}/web%2001.replica.json"
    write(path, 0, b"[")
    fails(*machine.words(), contains="is damaged", case="a damaged record of a replica")


def test_a_target_that_loses_what_is_written(machine, servers):
    key = "2000"
    target = servers.nbdkit("null", f"size={machine.sizes[key]}")
    disks, targets = [(key, f"raw:{machine.sources[key]}")], [(key, target.uri)]
    fails(*machine.words(disks=disks, targets=targets), contains="does not hold what was written")
    fails(*machine.words("--no-alias-proof", disks=disks, targets=targets), status=3,
          contains="is not what was written", case="a target that loses what is written to it")
    assert machine.record["running"]["boot"] == ""


# --- killed -----------------------------------------------------------------------------------


def kill_at(machine, stage, condition=None, more=()):
    """Runs until that stage is told (and the condition holds), and kills it."""
    command = [SENDENSE, *machine.words("--progress=json", *more)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True) as popen:
        for line in popen.stderr:
            if line.startswith("{") and json.loads(line).get("stage") == stage:
                break
        else:
            raise AssertionError(f"no stage {stage}")
        if condition:
            wait_for(condition, f"what stage {stage} does")
        popen.kill()
        popen.stderr.close()
        assert popen.wait() == -signal.SIGKILL
    return popen


STAGES = ["recover", "open", "match", "prove", "resume", "begin", "copy", "verify", "commit"]


@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_each_stage(machine, stage):
    """Of the first run, of a later one, and of the one that goes on with it."""
    more = ("--limit-rate", "4MiB") if stage == "copy" else ()
    for nr in range(4):
        try:
            kill_at(machine, stage, more=more)
        except AssertionError:
            assert stage in ("commit", "verify")  # it had ended before the signal came
        machine.guest_writes(3)
        if nr % 2 == 1:
            machine.run("--verify", "sample" if nr == 1 else "read-back")
            assert machine.same(), (stage, nr)
            machine.guest_writes(3)
    machine.run("--verify", "read-back")
    assert machine.same()
    left = sorted(os.listdir(f"{machine.state}/web%2001.replica"))
    assert left == ["16000.leaves", "2000.leaves", "2001.leaves"], left


def test_killed_at_any_call(machine):
    """Before each call that changes a file, as the run comes to it; the next run is good."""
    need("strace")
    calls = "pwrite64,ftruncate,fsync,fdatasync,rename,renameat,unlinkat,openat,fallocate"
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    killed = 0
    for nr in range(200 if SOAK else 12):
        call = machine.rng.choice(calls.split(","))
        most = {"pwrite64": 60, "openat": 60}.get(call, 12)
        when = machine.rng.randrange(1, most)
        done = run("strace", "-f", "-o", "/dev/null", "-e", f"trace={call}",
                   "-e", f"inject={call}:signal=KILL:when={when}", SENDENSE, *machine.words(),
                   status=None, env=environment)
        assert done.status in (0, -signal.SIGKILL), (call, when, done)
        killed += done.status != 0
        machine.guest_writes(3)
        if nr % 3 == 0:
            machine.run(*(["--verify", "read-back"] if nr % 2 else []))
            assert machine.same(), (call, when)
    machine.run("--verify", "read-back")
    assert machine.same() and killed > 3, killed
    print(f"killed {killed} times")


def test_killed_while_marks_are_in_the_targets(machine, servers):
    """What the proof took is given back by the next run, before anything else."""
    slow = servers.nbdkit("--filter=delay", "file", machine.files["2001"], "delay-write=500ms")
    machine.targets["2001"] = slow.uri
    before = machine.digests()
    kill_at(machine, "prove", lambda: digest(machine.files["2000"]) != before["2000"])
    assert machine.digests() != before
    journal = f"{machine.state}/web%2001.replica.proof"
    assert os.path.exists(journal)
    wait_for(lambda: digest(machine.files["2001"]) in (before["2001"], digest(machine.files["2001"])),
             "the server")
    # A run that is refused gives them back all the same.
    fails(*machine.words(targets=[("2000", machine.targets["2000"])]), status=2)
    assert os.path.exists(journal)  # its words alone were wrong: nothing was opened
    readonly = servers.nbdkit("-r", "file", f"{machine.scratch}/source-2001")
    fails(*machine.words(targets=[*[t for t in machine.targets.items() if t[0] != "2001"],
                                  ("2001", readonly.uri)]), contains="read-only")
    assert machine.digests() == before and not os.path.exists(journal)
    machine.run()
    assert machine.same()


@pytest.mark.parametrize("boot", [False, True])
def test_killed_while_it_copies(machine, boot):
    """Half a delta: what was written is read from the target, after a boot all of it is."""
    machine.run()
    machine.guest_writes(40)
    told = f"{machine.state}/web%2001.replica/2000.told-2"
    kill_at(machine, "copy", lambda: any(open(told, "rb").read()), ("--limit-rate", "2MiB"))
    assert machine.record["running"]
    if boot:
        path = f"{machine.state}/web%2001.replica.json"
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        record["running"]["boot"] = "another"
        with open(path, "w", encoding="utf-8") as file:
            json.dump(record, file)
        os.truncate(told, 0)  # marks that the power failure took along
    # What was written is taken back at the source, where no list would tell of it.
    machine.guest_writes(5)
    report = machine.run()
    assert machine.same() and report["generation"] == 2
    assert all(d["resumed"] for d in report["disks"])


def test_going_on_heeds_more_than_the_list(machine):
    """A chunk that an interrupted run wrote is looked at, though the list does not name it."""
    key = "2000"
    disks, targets = [(key, f"raw:{machine.sources[key]}")], [(key, machine.targets[key])]
    machine.run("--change-id", "a/1", disks=disks, targets=targets)
    original = open(machine.sources[key], "rb").read()
    write(machine.sources[key], 0, os.urandom(5 * MIB))

    def extents(path, areas, to):
        lines = [{"sendense-extents": 1, "key": key, "size": machine.sizes[key], "from": "a/1",
                  "to": to}, *[{"offset": o, "length": n} for o, n in areas],
                 {"end": True, "count": len(areas), "bytes": sum(n for _, n in areas)}]
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        return f"extents:{path}"
    first = extents(f"{machine.scratch}/1", [(0, 5 * MIB)], "a/2")
    told = f"{machine.state}/web%2001.replica/{key}.told-2"
    small = Machine.__new__(Machine)
    small.__dict__ = dict(machine.__dict__)
    small.words = lambda *more: machine.words(*more, disks=disks, targets=targets)
    kill_at(small, "copy", lambda: any(open(told, "rb").read()),
            ("--limit-rate", "1MiB", "--changed-by", first))
    with open(machine.sources[key], "wb") as file:  # as it was, but for the end
        file.write(original)
    write(machine.sources[key], 6 * MIB - 512, b"the end")
    second = extents(f"{machine.scratch}/2", [(6 * MIB - 512, 512)], "a/3")
    report = machine.run("--changed-by", second, disks=disks, targets=targets)
    assert report["disks"][0]["changed_by"] == "extents"
    assert filecmp.cmp(machine.sources[key], machine.files[key], shallow=False)


def test_one_run_at_a_time(machine, servers):
    process = servers.start(SENDENSE, *machine.words("--limit-rate", "1MiB"), name="replicate")
    wait_for(lambda: os.path.exists(f"{machine.state}/web%2001.replica.json") or
             not process.running, "the run")
    assert isinstance(process, Process)
    fails(*machine.words(), contains=["is being replicated by process", str(process.pid)],
          case="two runs of one replica")
    process.signal(signal.SIGINT)
    assert process.wait() == 1
    assert "the next run goes on" in process.err
    machine.run()
    assert machine.same()


def test_dirty_bitmaps(machine, servers):
    """An export's bitmap counts when the run before recorded it, and no other."""
    need("qemu-img", "qemu-nbd")
    key, image = "2000", f"{machine.scratch}/disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", "-f", "raw", machine.sources[key], image],
                   check=True)
    subprocess.run(["qemu-img", "bitmap", "--add", image, "b0"], check=True)
    server = servers.qemu_nbd(image, "qcow2", read_only=True, options=("-B", "b0"))
    disks, targets = [(key, server.uri)], [(key, machine.targets[key])]
    first = machine.run("--bitmap", "b0", "--disk-id", f"{key}=d", disks=disks, targets=targets)
    assert first["disks"][0]["mode"] == "full"
    server.stop()
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", image], check=True,
                   stdout=subprocess.DEVNULL)
    server = servers.qemu_nbd(image, "qcow2", read_only=True, options=("-B", "b0"))
    report = machine.run("--changed-by", "bitmap:b0", "--disk-id", f"{key}=d",
                         disks=[(key, server.uri)], targets=targets)
    disk = report["disks"][0]
    assert disk["changed_by"] == "bitmap" and 0 < disk["read"] <= 2 * CHUNK, disk
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", machine.files[key],
                    server.uri], check=True, stdout=subprocess.DEVNULL)

"""sendense replicate of running machines: vmware://… of the test vCenter, qemu:… of a real QEMU.

What the targets hold is compared with the disks as they were at the moment that was read.
"""

import filecmp
import hashlib
import json
import os
import random
import shutil
import signal

import pytest

import support
import test_qemu_backup
from qemu_machine import machine_in, proxy_in
from support import MIB, SENDENSE, Process, bad_input, fails, run, sendense, wait_for
from vmware_setting import CHUNK, SIZES, Setting, chunks_of, debts, disks_of, setting_in

SEED = int(os.environ.get("SENDENSE_SEED", "1"))
SOAK = bool(os.environ.get("SENDENSE_SOAK"))
KEYS = [str(key) for key in SIZES]


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def write(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


class Replica(Setting):
    """The machine of that test, and a file for each of its disks, with something else in it."""

    def __init__(self, folder, vc):
        super().__init__(folder, vc)
        self.records = os.path.join(self.folder, "records")
        self.files = {str(key): os.path.join(self.folder, f"target-{key}") for key in SIZES}
        for key, path in self.files.items():
            with open(path, "wb") as file:
                file.write(self.rng.randbytes(MIB))
                file.truncate(SIZES[int(key)])
        self.targets = {key: f"raw:{path}" for key, path in self.files.items()}

    def words(self, *more, path="DC0/vm/web01", targets=None):  # pylint: disable=arguments-differ
        """targets: a list of (key, name)."""
        targets = targets if targets is not None else list(self.targets.items())
        return ["replicate", self.vc.url(path), "--password-file", self.vc.password_file,
                "--vcenter-ca-file", self.vc.ca, "--state-dir", self.records,
                "--vmware-state-dir", self.state,
                *[word for key, name in targets for word in ("--target", f"{key}={name}")], *more]

    def run(self, *more, **kwargs):
        return sendense(*self.words(*more, "--json", **kwargs), env=self.env()).json

    def watched(self, servers, *more):
        """A run, while the guest writes; the targets are what the snapshot froze."""
        self.vc.held()
        self.vc.fail("QueryChangedDiskAreas", calls=1, slow=50)
        process = servers.start(SENDENSE, *self.words("--json", *more), env=self.env())
        wait_for(lambda: self.vc.held() or not process.running, "the snapshot")
        assert process.running, process.err
        ref = self.machine.state()["snapshots"][0]["ref"]
        kept = {}
        for key in SIZES:
            kept[key] = os.path.join(self.folder, f"kept-{key}")
            shutil.copyfile(self.machine.frozen(ref, key), kept[key])
            self.guest_writes(key, 2)
        self.vc.release()
        assert process.wait() == 0, process.err
        for key, path in kept.items():
            run("qemu-img", "compare", "-f", "raw", "-F", "raw", path, self.files[str(key)])
        return support.Result([], 0, process.out, "").json

    def same(self):
        return all(filecmp.cmp(self.machine.disks[int(k)], path, shallow=False)
                   for k, path in self.files.items())

    def digests(self):
        return {key: digest(path) for key, path in self.files.items()}

    @property
    def record(self):
        with open(f"{self.records}/web01.replica.json", encoding="utf-8") as file:
            return json.load(file)

    def asked_for_snapshots(self):
        """Since this was asked last."""
        return "CreateSnapshot_Task" in [call["method"] for call in self.vc.calls()]


@pytest.fixture(name="replica")
def replica_fixture(scratch):
    with setting_in(scratch, Replica) as replica:
        yield replica


def test_full_then_what_changed(replica, servers):
    report = replica.watched(servers)
    assert {disk["mode"] for disk in report["disks"]} == {"full"}
    assert report["generation"] == 1 and report["vm"] == "web01"
    assert report["aliasing"] == "proven" and report["consistency"] == "application"
    for key, disk in disks_of(report).items():
        assert disk["read"] < SIZES[key], "what is not allocated is not read"
        assert disk["source"].endswith(f"/DC0/vm/web01/{key}"), disk
    replica.check_clean()
    ids = {disk["key"]: disk["change_id"] for disk in replica.record["disks"]}
    for generation in (2, 3):
        replica.guest_writes(2000, 3)
        report = replica.watched(servers, "--verify", "read-back")
        assert report["generation"] == generation
        assert {disk["changed_by"] for disk in report["disks"]} == {"extents"}, report
        replica.check_clean()
        now = {disk["key"]: disk["change_id"] for disk in replica.record["disks"]}
        assert all(now[key] != ids[key] for key in KEYS)
        ids = now


def test_what_changed_is_read_and_no_more(replica):
    """Backups in between change nothing of it: each has its own change ids."""
    replica.run()
    replica.vc.set_window(MIB)
    written = replica.guest_writes(2000, 5)
    sendense(*Setting.words(replica), "--state-dir", replica.state, env=replica.env())
    written += replica.guest_writes(2000, 5)
    replica.lib.forget()
    report = disks_of(replica.run())
    read = chunks_of(replica.lib.areas_read())
    assert read == chunks_of(written)
    assert report[2000]["read"] == sum(min(CHUNK, SIZES[2000] - chunk * CHUNK) for chunk in read)
    assert report[2001]["read"] == report[16000]["read"] == 0
    assert replica.same()
    replica.check_clean()


@pytest.mark.parametrize("case, contains", [
    ("reset", "began anew"), ("FileFault", "FileFault"), ("InvalidArgument", "InvalidArgument")])
def test_change_ids_of_no_use(replica, case, contains):
    replica.run()
    replica.guest_writes(2000, 3)
    before = digest(replica.machine.disks[2001])
    if case == "reset":
        replica.machine.reset_cbt()
    else:
        detail = {"InvalidProperty": "changeId"} if case == "InvalidArgument" else {}
        replica.vc.fail("QueryChangedDiskAreas", fault=case, detail=detail, calls=1)
    report = disks_of(replica.run())
    compared = {key for key, disk in report.items() if disk["changed_by"] == "compare"}
    assert compared == (set(SIZES) if case == "reset" else {2000})
    assert contains in report[2000]["reason"], report
    assert report[2001]["sent"] == 0 and digest(replica.files["2001"]) == before
    assert replica.same()
    report = replica.run()
    assert {disk["changed_by"] for disk in report["disks"]} == {"extents"}
    replica.check_clean()


def test_disks_that_are_left_out(replica):
    vc = replica.vc
    made = vc.add_machine("db", {2000: MIB, 2001: {"size": MIB, "mode": "independent_persistent"},
                                 2002: MIB}, cbt=True)
    files = {key: os.path.join(replica.folder, f"db-{key}") for key in ("2000", "2001", "2002")}
    for path in files.values():
        with open(path, "wb") as file:
            file.truncate(MIB)
    targets = [(key, f"raw:{path}") for key, path in files.items()]
    without = [target for target in targets if target[0] != "2001"]
    vc.calls()

    def wrong(*more, targets, **kwargs):
        fails(*replica.words(*more, path="db", targets=targets), env=replica.env(), **kwargs)
        assert not replica.asked_for_snapshots() and made.snapshots() == []

    wrong(targets=targets, contains=["disk 2001", "--skip-unsupported"])
    wrong("--skip-unsupported", targets=targets, status=2, contains="no disk 2001",
          case="replicate: a target of a disk that is left out")
    made.write(2000, 0, b"x" * 5000)
    report = replica.run("--skip-unsupported", path="db", targets=without)
    assert list(disks_of(report)) == [2000, 2002]
    with open(f"{replica.records}/db.replica.json", encoding="utf-8") as file:
        record = json.load(file)
    assert [disk["key"] for disk in record["left_out"]] == ["2001"]
    assert "independent" in record["left_out"][0]["why"]
    vc.calls()
    wrong("--skip-unsupported", "--skip-disk", "2002", targets=without[:1],
          contains=["disk 2002 is missing", "--force"], case="replicate: a disk left out later")


def test_cutover(replica):
    replica.run()
    replica.guest_writes(2000, 3)
    replica.vc.calls()
    fails(*replica.words("--cutover"), env=replica.env(), contains=["is not switched off"],
          case="replicate: cutover of a machine that runs")
    assert not replica.asked_for_snapshots()
    replica.machine.set_power(False)
    replica.lib.forget()
    report = replica.run("--cutover")
    assert report["cut_over"] and replica.same()
    assert {disk["verified"] for disk in report["disks"]} == {"read-back"}
    assert {disk["changed_by"] for disk in report["disks"]} == {"extents"}
    assert report["consistency"] == "crash" and "does not run" in report["consistency_reason"]
    assert sum(length for _, length in replica.lib.areas_read()) < SIZES[2000] / 2
    replica.check_clean()
    write(replica.files["2000"], 3 * MIB, b"the replica booted")
    before = replica.digests()
    replica.vc.calls()
    fails(*replica.words(), env=replica.env(), contains=["cut over", "--force"])
    assert not replica.asked_for_snapshots() and replica.digests() == before


def test_a_machine_that_is_switched_on_during_its_cutover(replica, servers):
    replica.run()
    replica.guest_writes(2000, 3)
    replica.machine.set_power(False)
    replica.vc.held()
    replica.vc.fail("QueryChangedDiskAreas", calls=1, slow=50)
    process = servers.start(SENDENSE, *replica.words("--cutover"), env=replica.env())
    wait_for(lambda: replica.vc.held() or not process.running, "the snapshot")
    assert process.running, process.err
    replica.machine.set_power(True)
    replica.vc.release()
    assert process.wait() == 1
    assert "is not switched off" in process.err
    assert replica.record["generation"] == 1 and "cut_over" not in replica.record
    replica.guest_writes(2000, 1)
    replica.machine.set_power(False)
    assert replica.run("--cutover")["cut_over"] and replica.same()
    replica.check_clean()


def test_disks_that_grow_come_and_go(replica):
    replica.run()
    replica.machine.grow(2001, 32 * MIB)
    replica.vc.calls()
    fails(*replica.words(), env=replica.env(), contains=["disk 2001", "sizes must be equal"],
          case="replicate: a disk that has grown")
    with open(replica.files["2001"], "r+b") as file:
        file.truncate(32 * MIB)
    fails(*replica.words(), env=replica.env(), contains=["its size is", "--force"])
    replica.machine.remove_disk(2001)
    fails(*replica.words(targets=[t for t in replica.targets.items() if t[0] != "2001"]),
          env=replica.env(), contains="disk 2001 is missing", case="replicate: a disk that is gone")
    assert not replica.asked_for_snapshots()
    replica.check_clean()


# --- the mapping ---------------------------------------------------------------------------------


def wrong_mapping(replica, rng, aliases, second):
    """A random mapping that must be refused, and its kind."""
    targets = dict(replica.targets)
    keys = list(targets)
    rng.shuffle(keys)
    a, b, _ = keys
    kinds = ["one target twice", "two names", "missing", "extra", "size", "no disk"]
    if second:
        kinds += ["changed by others", "disk missing"]
    kind = rng.choice(kinds)
    more = []
    if kind == "one target twice":
        targets[a] = targets[b]
    elif kind == "two names":
        key = rng.choice(list(aliases))
        targets["2000"], targets["2002"] = rng.sample(aliases[key], 2)
    elif kind == "missing":
        del targets[a]
    elif kind == "extra":
        return [*targets.items(), (rng.choice([a, "2003", "disk0"]), targets[b])], more, kind
    elif kind == "size":
        targets["16000"], targets["2000"] = targets["2000"], targets["16000"]
    elif kind == "no disk":
        targets[f"{a}0"] = targets.pop(a)
    elif kind == "changed by others":
        targets["2000"], targets["2002"] = targets["2002"], targets["2000"]
    elif kind == "disk missing":
        more = ["--skip-disk", a]
        del targets[a]
    items = list(targets.items())
    rng.shuffle(items)
    return items, more, kind


@pytest.mark.parametrize("second", [False, True])
def test_wrong_mappings(replica, servers, second):
    """A hundred refusals (fifty before the first run, fifty after it): no byte of a target changed,
    and no snapshot."""
    rng = random.Random(SEED)
    sizes = {2000: 4 * MIB, 2002: 4 * MIB, 16000: 2 * MIB}
    replica.machine = replica.vc.add_machine("small", sizes, cbt=True)
    for key in sizes:
        replica.machine.write(key, MIB // 2, rng.randbytes(MIB))
    replica.files, paths = {}, {}
    for key, size in sizes.items():
        replica.files[str(key)] = paths[str(key)] = os.path.join(replica.folder, f"small-{key}")
        with open(paths[str(key)], "wb") as file:
            file.write(rng.randbytes(MIB))
            file.truncate(size)
    served = servers.nbdkit("file", paths["2000"], tcp=True, export="x")
    replica.targets = {key: f"raw:{path}" for key, path in paths.items()}
    replica.targets["2000"] = served.uri
    aliases = {"2000": [served.uri, served.uri.replace("/x", "/y"),
                        served.uri.replace("127.0.0.1", "127.1")]}
    if second:
        replica.run(path="small")
        replica.machine.write(2000, MIB, rng.randbytes(MIB))
    before, met = replica.digests(), {}
    replica.vc.calls()
    for _ in range(50):
        targets, more, kind = wrong_mapping(replica, rng, aliases, second)
        result = sendense(*replica.words(*more, path="small", targets=targets), env=replica.env(),
                          status=None)
        assert result.status in (1, 2) and result.message, (kind, result)
        assert replica.digests() == before, (kind, result)
        if kind not in met:
            bad_input(f"replicate vmware: {kind}{', second run' if second else ''}", result.message)
        met[kind] = met.get(kind, 0) + 1
    assert not replica.asked_for_snapshots()
    assert len(met) == (8 if second else 6), met
    report = replica.run(path="small")
    assert replica.same() and report["generation"] == (2 if second else 1)
    replica.check_clean()


def test_targets_that_others_changed(replica):
    replica.run()
    replica.guest_writes(2000, 3)
    write(replica.files["2001"], 100, b"somebody else")
    before = replica.digests()
    replica.vc.calls()
    fails(*replica.words(), env=replica.env(),
          contains=["disk 2001", "is not as generation 1 left it"],
          case="replicate vmware: a target that others wrote to")
    assert replica.digests() == before and not replica.asked_for_snapshots()
    report = disks_of(replica.run("--force"))
    assert {key: disk["mode"] for key, disk in report.items()} == {
        2000: "delta", 2001: "full", 16000: "delta"}
    assert report[2001]["read"] < SIZES[2001], "what is not allocated is not read"
    assert replica.same()
    replica.check_clean()


# --- what goes wrong -----------------------------------------------------------------------------


def good_again(replica):
    replica.vc.heal()
    replica.tell()
    replica.check_clean()
    replica.run()
    assert replica.same()
    replica.check_clean()


@pytest.mark.parametrize("how, contains", [
    ({"read": 5}, "NFC error 5"), ({"crash": 3}, "the process that runs VMware's library"), ({"open": 1}, "disk 2000")])
@pytest.mark.parametrize("second", [False, True])
def test_the_library_fails(replica, how, contains, second):
    if second:
        replica.run()
        for key in SIZES:
            replica.guest_writes(key, 6)
    replica.tell(**how)
    said = fails(*replica.words(), env=replica.env(), contains=contains,
                 case=f"replicate vmware: the library: {next(iter(how))}")
    if "crash" not in how:  # whose message may be long
        assert ("parts of two generations" in said.err) == ("read" in how), said
    good_again(replica)


def test_the_snapshot_cannot_be_made(replica):
    before = replica.digests()
    replica.vc.fail("CreateSnapshot_Task", calls=-1, fault="NoPermission",
                    detail={"PrivilegeId": "VirtualMachine.State.CreateSnapshot"})
    fails(*replica.words(), env=replica.env(), contains="VirtualMachine.State.CreateSnapshot")
    assert replica.digests() == before
    good_again(replica)


def test_somebody_removes_the_snapshot(replica, servers):
    replica.run()
    replica.guest_writes(2000, 8)
    replica.tell(slow=300)
    replica.lib.forget()
    process = servers.start(SENDENSE, *replica.words(), env=replica.env())
    wait_for(lambda: replica.lib.calls("read") or not process.running, "reading")
    replica.machine.remove_snapshot(replica.machine.state()["snapshots"][0]["ref"])
    assert process.wait() == 1
    assert "removed by somebody else" in process.err
    assert replica.record["generation"] == 1 and "running" in replica.record
    good_again(replica)


def test_a_snapshot_that_cannot_be_removed_is_a_debt(replica):
    replica.vc.fail("RemoveSnapshot_Task", calls=-1, task="InvalidState")
    result = sendense(*replica.words("--json"), env=replica.env())
    (debt,) = debts(replica)
    assert "is still there" in result.err and debt in result.err
    assert result.json["generation"] == 1 and replica.same()
    replica.vc.heal()
    result = sendense(*replica.words("--json"), env=replica.env())
    assert "which an earlier backup left" in result.err and result.json["generation"] == 2
    replica.check_clean()


# What a run waits in when it is killed: a call, after how many others of its kind; what VMware's
# library does.
STAGES = {"asking": ("CreateSnapshot_Task", 0), "areas": ("QueryChangedDiskAreas", 1),
          "reading": "slow=500", "removing": ("RemoveSnapshot_Task", 0)}


def start_until(replica, servers, stage):
    """A run that is in that stage, and stays there for a while."""
    what = STAGES[stage]
    replica.lib.forget()
    if isinstance(what, str):
        name, _, value = what.partition("=")
        replica.tell(**{name: value})
    else:
        replica.vc.held()
        replica.vc.fail(what[0], slow=20, calls=1, skip=what[1])
    process = servers.start(SENDENSE, *replica.words(), env=replica.env())
    wait_for(lambda: (replica.lib.calls("read") if isinstance(what, str) else
                      what[0] in replica.vc.held()) or not process.running, stage)
    assert process.running, process.err
    return process


# Removing the snapshot is not given up any more.
@pytest.mark.parametrize("stage, number", [
    (stage, number) for stage in STAGES
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
    if stage != "removing" or number == signal.SIGKILL])
def test_killed_in_each_stage(replica, servers, stage, number):
    """Of a later run; the guest goes on writing."""
    replica.run()
    for _ in range(10 if SOAK else 1):
        generation = replica.record["generation"]
        for key in SIZES:
            replica.guest_writes(key, 6)
        process = start_until(replica, servers, stage)
        process.signal(number)
        assert process.wait() != 0
        wait_for(lambda: not replica.lib.helpers(), "the end of the helpers")
        replica.vc.heal()
        replica.tell()
        if number == signal.SIGKILL:
            assert len(debts(replica)) == 1
        else:
            assert replica.machine.snapshots() == [] and debts(replica) == []
        for key in SIZES:
            replica.guest_writes(key, 2)
        report = replica.run("--verify", "read-back")
        assert replica.same()
        assert report["generation"] == generation + (2 if stage == "removing" else 1)
        assert {disk["mode"] for disk in report["disks"]} == {"delta"}
        assert {disk["changed_by"] for disk in report["disks"]} == {"extents"}
        assert {disk["resumed"] for disk in report["disks"]} == {stage == "reading"}
        replica.vc.expire_sessions()  # one that was killed did not log out
        replica.check_clean()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_first_run_that_was_killed_is_gone_on_with(replica, servers, number):
    for _ in range(3):
        process = start_until(replica, servers, "reading")
        wait_for(lambda: len(replica.lib.calls("read")) > 4 or not process.running, "some reads")
        process.signal(number)
        assert process.wait() != 0
        wait_for(lambda: not replica.lib.helpers(), "the end of the helpers")
        for key in SIZES:
            replica.guest_writes(key, 3)
    replica.tell()
    report = replica.run()
    assert replica.same() and report["generation"] == 1
    assert {(disk["mode"], disk["resumed"]) for disk in report["disks"]} == {("full", True)}
    replica.vc.expire_sessions()
    replica.check_clean()


def test_a_helper_is_killed(replica, servers):
    replica.run()
    for key in SIZES:
        replica.guest_writes(key, 6)
    process = start_until(replica, servers, "reading")
    os.kill(replica.lib.helpers()[0], signal.SIGKILL)
    assert process.wait() == 1
    assert "was killed by signal 9" in process.err and "the next run goes on" in process.err
    good_again(replica)


def test_sessions_that_expire(replica, servers):
    replica.vc.set_window(MIB)
    replica.vc.expire_sessions(1)
    for _ in range(2):
        replica.watched(servers)
        replica.guest_writes(2000, 3)
    replica.vc.expire_sessions()
    replica.vc.expire_sessions(0)
    replica.check_clean()


def test_one_at_a_time(replica, servers):
    replica.tell(slow=300)
    process = servers.start(SENDENSE, *replica.words(), env=replica.env())
    wait_for(lambda: replica.lib.calls("read") or not process.running, "reading")
    fails(*replica.words(), env=replica.env(), contains=f"process {process.pid}",
          case="replicate vmware: a machine that is being replicated")
    fails(*Setting.words(replica), "--state-dir", replica.state, env=replica.env(),
          contains=f"process {process.pid}")
    process.signal(signal.SIGINT)
    assert process.wait() == 1
    good_again(replica)


def test_wrong_words(replica, scratch):
    vc = replica.vc
    for words, text in (
            (["--changed-by", "extents:/x"], "by itself"),
            (["--change-id", "2000=x"], "by itself"),
            (["--disk", "2000=raw:/x"], "no key"),
            (["--no-freeze"], "machine in QEMU"),
            (["--skip-disk", "2005"], "no disk 2005")):
        fails(*replica.words(*words), env=replica.env(), status=2, contains=text)
    for words, text in ((["--disk", f"2000={vc.url('web01')}"], "sendense replicate ... vmware://"),
                        (["raw:/x", "--vmware-state-dir", scratch], "--vmware-state-dir is for"),
                        (["raw:/x"], "disk disk0 has no target")):
        fails("replicate", "--vm", "x", *words, status=2, contains=text)
    assert not os.path.exists(replica.records) and vc.sessions() == 0


# --- a machine in QEMU -----------------------------------------------------------------------------


class QemuReplica(test_qemu_backup.Setting):
    """Its machine, and a file for each of its disks."""

    def __init__(self, folder, machine, proxy):
        super().__init__(folder, machine, proxy)
        self.records = os.path.join(folder, "records")
        self.files = {key: os.path.join(folder, f"target-{key}") for key, _ in machine.disks}
        for path in self.files.values():
            with open(path, "wb") as file:
                file.write(self.rng.randbytes(MIB))
                file.truncate(machine.size)

    def words(self, *more, files=None):
        return ["replicate", "--vm", "web01", f"qemu:{self.proxy.path}", "--scratch", self.scratch,
                "--state-dir", self.records,
                *[word for key, path in (files or self.files).items()
                  for word in ("--target", f"{key}=raw:{path}")], *more]

    def run(self, *more):
        """The report; the targets hold what the disks held at the moment."""
        with self.watched_moment():
            report = sendense(*self.words("--json", *more)).json
        for key, want in self.frozen.items():
            with open(self.files[key], "rb") as file:
                assert file.read() == want, key
        return report


@pytest.fixture(name="qemu")
def qemu_fixture(scratch):
    with machine_in(scratch) as machine, proxy_in(scratch, machine.qmp) as proxy:
        yield QemuReplica(scratch, machine, proxy)


def told_by(report):
    return {disk["changed_by"] for disk in report["disks"]}


def test_qemu_that_is_written_to_and_backed_up_as_well(qemu):
    """Each of the two has bitmaps of its own."""
    qemu.write(20)
    with qemu.writer():
        assert {disk["mode"] for disk in qemu.run()["disks"]} == {"full"}
        qemu.backup()
        for _ in range(3):
            qemu.write(5)
            assert told_by(qemu.run()) == {"bitmap"}
            qemu.write(5)
            assert set(test_qemu_backup.modes(qemu.backup()).values()) == {"incremental"}
    qemu.check_clean(bitmaps=2)
    qemu.check_points()
    report = [qemu.run("--verify", "read-back") for _ in range(2)][1]
    assert [disk["read"] for disk in report["disks"]] == [0, 0]
    assert report["consistency"] == "crash" and report["consistency_reason"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_qemu_a_run_that_was_killed_is_gone_on_with(qemu, number):
    qemu.write(20)
    qemu.run()
    qemu.backup()
    qemu.write(60)
    process = Process([SENDENSE, *qemu.words("--limit-rate", "512KiB", "--progress", "json")],
                      qemu.folder, "killed")
    wait_for(lambda: '"stage":"copy"' in process.err.replace(" ", "") or not process.running,
             "the copy")
    assert process.running, process.err
    process.signal(number)
    process.wait()
    qemu.write(20)
    if number == signal.SIGINT:
        qemu.check_clean(bitmaps=2)
    report = qemu.backup()
    assert set(test_qemu_backup.modes(report).values()) == {"incremental"}
    qemu.write(20)
    report = qemu.run()
    assert told_by(report) == {"bitmap"} and report["generation"] == 2
    assert {disk["resumed"] for disk in report["disks"]} == {True}
    qemu.check_clean(bitmaps=2)
    qemu.check_points()


def test_qemu_that_was_started_anew_is_compared(qemu):
    qemu.write(20)
    qemu.run()
    qemu.write(20)
    qemu.disks.flush()
    qemu.machine.kill()
    qemu.machine.start()
    report = qemu.run()
    assert told_by(report) == {"compare"}, report
    assert all("bitmap" in disk["reason"] for disk in report["disks"]), report
    qemu.write(5)
    assert told_by(qemu.run()) == {"bitmap"}
    qemu.check_clean()


def test_qemu_refusals_and_cutover(qemu):
    qemu.write(20)
    fails(*qemu.words(files={**qemu.files, "vd1": qemu.machine.files["vd1"]}), contains="vd1",
          case="replicate qemu: a target that is the machine's own disk")
    fails(*qemu.words(files={"vd0": qemu.files["vd0"]}), status=2, contains="disk vd1 has no target")
    assert "transaction" not in qemu.proxy.commands
    qemu.run()
    qemu.write(5)
    fails(*qemu.words("--cutover"), contains=["is not switched off"],
          case="replicate qemu: cutover of a machine that runs")
    qemu.machine.call("stop")
    report = qemu.run("--cutover")
    assert report["cut_over"] and told_by(report) == {"bitmap"}
    # A machine that stands still keeps descriptors until it goes on.
    assert os.listdir(qemu.scratch) == []


def test_qemu_that_has_ended_is_cut_over_by_its_files(qemu):
    """What the disks are called is the same, and all of them is compared."""
    ids = [word for key in qemu.files for word in ("--disk-id", f"{key}=web01-{key}")]
    qemu.write(20)
    qemu.run(*ids)
    qemu.write(5)
    qemu.disks.flush()
    qemu.machine.quit()
    disks = [word for key, form in qemu.machine.disks
             for word in ("--disk", f"{key}={form}:{qemu.machine.files[key]}")]
    report = sendense(*[word for word in qemu.words() if not word.startswith("qemu:")
                        and word not in ("--scratch", qemu.scratch)],
                      *disks, *ids, "--cutover", "--json").json
    assert report["cut_over"] and {disk["mode"] for disk in report["disks"]} == {"delta"}
    for key, want in qemu.disks.frozen().items():
        with open(qemu.files[key], "rb") as file:
            assert file.read() == want, key

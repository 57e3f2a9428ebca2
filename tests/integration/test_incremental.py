"""Incremental backups from the command line: what is read, sent and stored, when it is a
full again and why, what is refused, and that an audit finds a false list of changes.
"""

import json
import os
import random
import shutil

import pytest

import support
from chains import write_extents
from support import GIB, KIB, MIB, fails, make_disk, need, qemu_check, run, sendense

SOAK = os.environ.get("SENDENSE_SOAK") == "1"
CHUNK = 64 * KIB


class Vm:
    """A repository and a machine of one raw disk, key 2000."""

    def __init__(self, folder, *settings, size=4 * MIB, pieces=((0, MIB, "random"),)):
        self.folder, self.repo, self.size = folder, f"{folder}/repo", size
        self.disk = make_disk(f"{folder}/disk.raw", size, pieces)
        self.rng = random.Random(7)
        sendense("repo", "init", self.repo, "--quiet", *settings)

    def words(self, *options, vm="vm"):
        return ["backup", "--repo", self.repo, "--vm", vm, f"--disk=2000=raw:{self.disk}", *options]

    def backup(self, *options, vm="vm"):
        """The disk in the report."""
        result = sendense(*self.words("--json", *options, vm=vm))
        [disk] = result.json["disks"]
        disk["point"], disk["warnings"] = result.json["point"], result.err
        return disk

    def write(self, *offsets, length=CHUNK):
        with open(self.disk, "r+b") as file:
            for offset in offsets:
                file.seek(offset)
                file.write(self.rng.randbytes(length))

    def extents(self, since, until, *offsets, name="changes", length=CHUNK, **changed):
        return write_extents(f"{self.folder}/{name}", "2000", self.size, since, until,
                             [(offset, length) for offset in offsets], **changed)

    def ls(self, vm="vm"):
        return sendense("ls", "--repo", self.repo, vm, "--json").json["points"]

    def image(self, vm="vm"):
        return f"{self.repo}/{self.ls(vm)[-1]['disks'][0]['image']}"

    def is_equal(self):
        """The latest restore point, by QEMU's reader and by ours."""
        qemu_check(self.image())
        support.same_content(self.disk, "raw", self.image(), "qcow2")
        sendense("verify", "--repo", self.repo, "--quiet")
        back = f"{self.folder}/back"
        sendense("restore", "--repo", self.repo, "vm", f"--to=2000=raw:{back}", "--quiet")
        run("cmp", self.disk, back)
        os.unlink(back)


@pytest.fixture
def vm(scratch):
    return Vm(scratch)


# --- figures ----------------------------------------------------------------------------


SIZE = 10 * GIB if SOAK else 512 * MIB


def five_percent(rng):
    return sorted(rng.sample(range(SIZE // CHUNK), SIZE // CHUNK // 20))


def within_five_percent(value, changed):
    print(f"{value} of {changed} bytes: {100 * value / changed:.2f} %")
    assert 0.95 * changed <= value <= 1.05 * changed, (value, changed)


@pytest.fixture
def big(scratch):
    return Vm(scratch, "--compression=none", "--cluster-size=64KiB", size=SIZE,
              pieces=[(0, SIZE // 16, "random"), (SIZE // 2, SIZE // 64, "text")])


@pytest.mark.parametrize("how", ["extents", "compare"])
def test_only_what_changed_is_read_sent_and_stored(big, how):
    big.backup("--change-id=a")
    chunks = five_percent(big.rng)
    offsets = [chunk * CHUNK for chunk in chunks]
    big.write(*offsets)
    if how == "extents":
        by = f"--changed-by=extents:{big.extents('a', 'b', *offsets)}"
    else:
        by = "--changed-by=compare"
    disk = big.backup(by, "--mode=incremental")
    changed = len(chunks) * CHUNK
    assert disk["mode"] == "incremental" and disk["changed_by"] == how
    within_five_percent(disk["sent"], changed)
    within_five_percent(disk["stored"], changed)
    if how == "extents":
        within_five_percent(disk["read"], changed)
    big.is_equal()


def qemu_io(image, commands):
    run("qemu-io", "-f", "qcow2", image, stdin="\n".join(commands).encode() + b"\n",
        timeout=4 * support.TIMEOUT)


def test_a_bitmap_over_nbd(scratch, servers):
    """QEMU's own dirty bitmaps, kept in its image, served by its own server."""
    need("qemu-img", "qemu-io", "qemu-nbd")
    image, repo = f"{scratch}/disk.qcow2", f"{scratch}/repo"
    run("qemu-img", "create", "-f", "qcow2", image, SIZE)
    qemu_io(image, [f"write -P 17 0 {SIZE // 32}"])
    sendense("repo", "init", repo, "--quiet", "--compression=none")

    def next_bitmap(name, before=None):
        """What is written from now on counts in that one, and no longer in the one before."""
        if before:
            run("qemu-img", "bitmap", "--disable", "-f", "qcow2", image, before)
        run("qemu-img", "bitmap", "--add", "-f", "qcow2", image, name)

    def backup(*options, served=None, status=0):
        server = servers.qemu_nbd(image, "qcow2", read_only=True,
                                  options=["-B", served] if served else [])
        result = sendense("backup", "--repo", repo, "--vm", "vm", server.uri, "--json", *options,
                          status=status)
        server.stop()
        return result

    def latest():
        point = sendense("ls", "--repo", repo, "vm", "--json").json["points"][-1]
        return f"{repo}/{point['disks'][0]['image']}", point["disks"][0]

    # A bitmap that records cannot be served by a server that only reads: its next one waits.
    backup("--bitmap=b1")
    next_bitmap("b1")
    rng = random.Random(5)
    chunks = five_percent(rng)
    qemu_io(image, [f"write -P {rng.randrange(1, 256)} {chunk * CHUNK} {CHUNK}" for chunk in chunks])
    next_bitmap("b2", before="b1")
    run("qemu-img", "bitmap", "--disable", "-f", "qcow2", image, "b2")
    [disk] = backup("--changed-by=bitmap:b1", "--bitmap=b2", "--mode=incremental", served="b1",
                    ).json["disks"]
    changed = len(chunks) * CHUNK
    assert disk["changed_by"] == "bitmap" and disk["bitmap"] == "b2"
    for name in ("read", "sent", "stored"):
        within_five_percent(disk[name], changed)
    stored, record = latest()
    assert record["bitmap"] == "b2" and record["mode"] == "incremental"
    support.same_content(image, "qcow2", stored, "qcow2")
    qemu_check(stored)
    # The bitmap of the point before, one that is not served, and none recorded.
    for options, served, reason in (
            (["--changed-by=bitmap:b1"], "b1", "b1"),
            (["--changed-by=bitmap:b2"], None, "b2"),
            (["--changed-by=bitmap:b2"], "b2", "b2")):
        done = backup(*options, served=served)
        [disk] = done.json["disks"]
        assert disk["mode"] == "full" and disk["fallback"] and reason in disk["reason"], disk
        assert "warning" in done.err and disk["reason"] in done.err, done.err
    refused = backup("--changed-by=bitmap:none", "--mode=incremental", status=1)
    assert "none" in refused.message and "warning" not in refused.err
    support.bad_input("a bitmap that is not there, and --mode incremental", refused.message)
    support.same_content(image, "qcow2", latest()[0], "qcow2")
    sendense("verify", "--repo", repo, "--quiet")


def test_what_is_the_same_is_not_stored_and_zeros_are_explicit(vm):
    vm.backup("--change-id=a")
    with open(vm.disk, "r+b") as file:
        file.seek(2 * CHUNK)
        file.write(bytes(3 * CHUNK))
    path = vm.extents("a", "b", 0, length=MIB)
    disk = vm.backup(f"--changed-by=extents:{path}")
    # A MiB is reported, three chunks differ, and those are zeros.
    assert disk["read"] == MIB and disk["sent"] == 0
    extents = json.loads(run("qemu-img", "map", "--output=json", "-f", "qcow2", vm.image()).out)
    top = [e for e in extents if e["depth"] == 0 and not e["data"]]
    assert [(e["start"], e["length"], e["zero"]) for e in top] == [(2 * CHUNK, 3 * CHUNK, True)]
    vm.is_equal()


# --- full after all ---------------------------------------------------------------------------


def expect_full(vm, *options, contains, name="vm"):
    """The disk falls back to a full; told in the report, the record and the log."""
    before = [p["point"] for p in vm.ls(name)]
    refused = fails(*vm.words("--mode=incremental", *options, vm=name), contains=contains,
                    case=f"--mode incremental: {' '.join(contains)}")
    assert "2000" in refused.message
    assert [p["point"] for p in vm.ls(name)] == before
    disk = vm.backup(*options, vm=name)
    assert disk["mode"] == "full" and disk["fallback"], disk
    assert all(text in disk["reason"] for text in contains), disk["reason"]
    assert "warning" in disk["warnings"] and disk["reason"] in disk["warnings"], disk["warnings"]
    record = vm.ls(name)[-1]["disks"][0]
    assert record["reason"] == disk["reason"] and "parent" not in record
    assert record["chain_length"] == 1


def test_first_and_wished_fulls_warn_of_nothing(vm):
    first = vm.backup()
    assert (first["mode"], first["fallback"], first["reason"]) == ("full", False, "first backup")
    assert vm.backup()["mode"] == "incremental"
    wished = vm.backup("--mode=full")
    assert (wished["mode"], wished["fallback"], wished["reason"]) == ("full", False, "--mode full")
    assert "warning: disk" not in first["warnings"] + wished["warnings"]
    text = sendense(*vm.words()).out
    assert f"2000: incremental (compared with {wished['point']})" in text
    row = sendense("ls", "--repo", vm.repo, "vm").out.splitlines()[-1]
    assert row.split()[1:3] == ["incremental", "2"]


def test_a_resized_disk(vm):
    vm.backup()
    os.truncate(vm.disk, vm.size + 512)
    expect_full(vm, contains=["resized", str(vm.size), str(vm.size + 512)])
    os.truncate(vm.disk, vm.size)
    expect_full(vm, contains=["resized"])
    vm.is_equal()


def test_disks_that_come_and_go(scratch, vm):
    other = make_disk(f"{scratch}/other.raw", MIB, [(0, MIB, "text")])
    vm.backup()
    both = vm.words(f"--disk=2001=raw:{other}", "--json")
    disks = {d["key"]: d for d in sendense(*both).json["disks"]}
    assert disks["2000"]["mode"] == "incremental" and disks["2001"]["mode"] == "full"
    assert sendense("ls", "--repo", vm.repo, "vm", "--json").json["points"][-1]["mode"] == "mixed"
    assert vm.backup()["mode"] == "incremental"
    disks = {d["key"]: d for d in sendense(*both).json["disks"]}
    assert disks["2001"]["mode"] == "full" and "2001" in disks["2001"]["reason"]
    sendense("verify", "--repo", vm.repo, "--quiet")


def test_a_list_that_begins_elsewhere(vm):
    vm.backup()
    expect_full(vm, f"--changed-by=extents:{vm.extents('a', 'b', 0)}", contains=["no change id"])
    expect_full(vm, f"--changed-by=extents:{vm.extents('a', 'c', 0)}", contains=["a", "b"])
    assert vm.backup(f"--changed-by=extents:{vm.extents('c', 'd')}")["mode"] == "incremental"
    assert vm.ls()[-1]["disks"][0]["change_id"] == "d"


def test_a_damaged_parent(vm):
    point = vm.backup()["point"]
    with open(vm.image(), "r+b") as file:
        file.seek(os.path.getsize(vm.image()) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    sendense("verify", "--repo", vm.repo, status=3)
    expect_full(vm, contains=["damaged", point])


def test_a_chain_whose_middle_file_is_missing(scratch, vm):
    points = []
    for i in range(4):
        vm.write(i * CHUNK)
        points.append(vm.backup()["point"])
        shutil.copy(vm.disk, f"{scratch}/copy{i}.raw")
    folder = os.path.dirname(vm.image())
    os.unlink(f"{folder}/{points[1]}.qcow2")
    words = ["restore", "--repo", vm.repo]
    for point in points[1:]:
        fails(*words, f"vm@{point}", f"--to=raw:{scratch}/x", contains=points[1],
              case="a chain whose middle file is missing")
    sendense(*words, f"vm@{points[0]}", f"--to=raw:{scratch}/x", "--quiet")
    run("cmp", f"{scratch}/copy0.raw", f"{scratch}/x")
    report = sendense("verify", "--repo", vm.repo, "--json", status=3).json
    assert report["points_good"] == 1 and report["points_damaged"] == 3
    assert points[1] in json.dumps(report["findings"])
    expect_full(vm, contains=[points[1]])
    os.unlink(f"{scratch}/x")
    sendense(*words, "vm", f"--to=raw:{scratch}/x", "--quiet")
    run("cmp", vm.disk, f"{scratch}/x")


# --- what is refused ----------------------------------------------------------------------------


def test_bad_lists_of_changes(scratch, vm):
    vm.backup("--change-id=a")
    with open(vm.extents("a", "b", 0, 4 * CHUNK), encoding="utf-8") as file:
        good = file.read().splitlines()
    head, first, second, end = good
    past = json.dumps({"offset": vm.size - CHUNK, "length": 2 * CHUNK})
    cases = {
        "unsorted": [head, second, first, end],
        "overlapping": [head, first, first.replace('"offset": 0', '"offset": 512'), end],
        "running past the end of the disk": [head, first, past, end],
        "cut off": [head, first, second],
        "cut off within a line": [head, first, second, end[:10]],
        "with another sum at its end": [head, first, second, end.replace("2", "3", 1)],
        "with something behind its end": [*good, first],
        "that is no JSON": ["changes"],
        "that is empty": [],
        "of an unknown version": [head.replace('extents": 1', 'extents": 2'), *good[1:]],
        "with a negative length": [head, first.replace(str(CHUNK), "-1"), second, end],
    }
    for case, lines in cases.items():
        with open(f"{scratch}/bad", "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + ("\n" if lines else ""))
        for mode in ("auto", "full"):
            fails(*vm.words(f"--changed-by=extents:{scratch}/bad", f"--mode={mode}"),
                  case=f"a list of changes {case}", contains="bad")
    fails(*vm.words(f"--changed-by=extents:{scratch}/none"), contains="none",
          case="a list of changes that is not there")
    other = vm.extents("a", "b", 0, key="2001")
    fails(*vm.words(f"--changed-by=extents:{other}"), contains=["2001", "2000"],
          case="a list of changes of another disk")
    other = vm.extents("a", "b", 0, size=vm.size * 2)
    fails(*vm.words(f"--changed-by=extents:{other}"), contains=[str(vm.size), str(vm.size * 2)],
          case="a list of changes of a disk of another size")
    fails(*vm.words(f"--changed-by=extents:{vm.extents('a', 'b', 0)}", "--change-id=c"),
          contains=["c", "b"], case="a list of changes that leads to another state")
    assert len(vm.ls()) == 1 and os.listdir(f"{vm.repo}/.incoming") == []


@pytest.mark.parametrize("options, contains", [
    (["--changed-by=magic"], "bitmap:NAME"),
    (["--changed-by=bitmap:"], "bitmap:NAME"),
    (["--changed-by=bitmap:b0"], "no NBD export"),
    (["--changed-by=2001=compare"], "no disk 2001"),
    (["--changed-by=compare", "--changed-by=2000=compare"], "twice"),
    (["--change-id=2001=a"], "no disk 2001"),
    (["--change-id="], "1 to 1023 bytes"),
    (["--change-id=a", "--change-id=2000=b"], "already"),
    (["--bitmap=b\n0"], "control character"),
    (["--source-id=" + "x" * 1024], "1 to 1023 bytes"),
    (["--audit=0"], "0.1%"),
    (["--audit=100.1%"], "0.1%"),
    (["--audit=much"], "0.1%"),
    (["--audit=0.01%"], "0.1%"),
    (["--resume", "--no-resume"], "only one"),
])
def test_wrong_usage(vm, options, contains):
    fails(*vm.words(*options), status=2, contains=contains,
          case=options[0][:40].replace("\n", "\\n"))


def test_a_key_is_needed_with_several_disks(scratch, vm):
    other = make_disk(f"{scratch}/other.raw", MIB)
    fails(*vm.words(f"--disk=2001=raw:{other}", "--change-id=a"), status=2, contains="KEY=a",
          case="--change-id of several disks without a key")
    sendense(*vm.words(f"--disk=2001=raw:{other}", "--change-id=2001=a", "--changed-by=compare"))
    disks = vm.ls()[-1]["disks"]
    assert [disk.get("change_id") for disk in disks] == [None, "a"]


# --- audits -------------------------------------------------------------------------------------


def falsified(vm, name, chunk):
    """A machine with a full and a change that the list does not tell of; the next backup."""
    vm.backup("--change-id=a", vm=name)
    vm.write(chunk * CHUNK)
    return vm.words(f"--changed-by=extents:{vm.extents('a', 'b')}", vm=name)


def test_an_audit_of_everything_finds_a_false_list(vm):
    words = falsified(vm, "vm", 9)
    done = fails(*words, "--audit=100%", contains=["disk 2000", str(9 * CHUNK), "no restore point"],
                 case="a list of changes that an audit finds to be false")
    assert len(vm.ls()) == 1 and os.listdir(f"{vm.repo}/.incoming") == [], done
    expect_full(vm, f"--changed-by=extents:{vm.extents('a', 'b')}", contains=["audit"])
    vm.is_equal()
    # A true list passes, and the record says how much was looked at.
    vm.write(0)
    disk = vm.backup(f"--changed-by=extents:{vm.extents('b', 'c', 0)}", "--audit=50")
    assert disk["mode"] == "incremental"
    assert 0.4 * vm.size <= disk["audited"] == vm.ls()[-1]["disks"][0]["audited"] <= 0.6 * vm.size


def test_audits_find_at_the_predicted_rate(scratch):
    """At 50 %: of n runs, n / 2 are found; the bounds are missed once in some 10^6 times."""
    vm = Vm(scratch, size=2 * MIB, pieces=[(0, 2 * MIB, "random")])
    runs, least = (100, 26) if SOAK else (20, 1)
    found = 0
    for i in range(runs):
        words = falsified(vm, f"vm{i}", vm.rng.randrange(vm.size // CHUNK))
        done = sendense(*words, "--audit=50%", status=None)
        assert done.status in (0, 1) and (done.status == 0 or "disk 2000" in done.message), done
        found += done.status
    print(f"{found} of {runs} false lists found")
    assert least <= found <= runs - least


def test_audits_go_round(vm):
    """At a quarter each time the whole disk has been looked at after four."""
    words = falsified(vm, "vm", 37)
    for i in range(1, 6):
        done = sendense(*words, "--audit=25%", status=None)
        if done.status:
            break
        ids = ["a", "b", "c", "d", "e", "f"][i:i + 2]
        words = vm.words(f"--changed-by=extents:{vm.extents(*ids)}")
    assert done.status == 1 and str(37 * CHUNK) in done.message and i <= 4

"""Backups of a machine of the test vCenter that were interrupted: the next one, with a snapshot of
its own, reads what is missing and what changed since the interrupted one's, and no more."""

import os
import random
import shutil
import signal

import pytest

import hub
import support
import vcenter
import vddk
from support import KIB, MIB, SENDENSE, run, sendense, wait_for

SIZE = 112 * MIB + 512
CHUNK = 64 * KIB
SOAK = bool(os.environ.get("SENDENSE_SOAK"))


class Site:
    """A machine of one disk full of data, and a repository: a folder, or behind a hub."""

    def __init__(self, folder, vc, made=None):
        self.folder, self.vc, self.hub = str(folder), vc, made
        self.rng = random.Random(int(os.environ.get("SENDENSE_SEED", "7")))
        self.lib = vddk.FakeVddk(folder, frozen=vc.frozen)
        self.machine = vc.add_machine("web01", {2000: SIZE}, cbt=True)
        with open(self.machine.disks[2000], "r+b") as file:
            file.write(self.rng.randbytes(SIZE))
        self.name = "web01"
        self.state = os.path.join(self.folder, "debts")
        self.path = made.repositories["main"] if made else os.path.join(self.folder, "repo")
        if not made:
            sendense("repo", "init", self.path, "--compression", "none")
        vc.set_window(SIZE)

    def tell(self, **values):
        self.lib.tell(thumbprint=self.vc.sha1, password=self.vc.password, **values)

    def start(self, servers, *more):
        where = [self.path] if not self.hub else [
            self.hub.url, "--token-file", self.hub.token_file, "--ca-file", self.hub.ca_file]
        return servers.start(
            SENDENSE, "backup", "--repo", *where, self.vc.url("web01"), "--vm", self.name, "--json",
            "--password-file", self.vc.password_file, "--vcenter-ca-file", self.vc.ca, *more,
            env=self.lib.env(SENDENSE_STATE_DIR=self.state), name="backup")

    def read_bytes(self):
        return sum(length for _, length in self.lib.areas_read())

    def killed(self, servers, behind, number=signal.SIGTERM, *more):
        """A backup that is killed when so much was read; whether it had not ended before."""
        self.lib.forget()
        self.tell(slow=30)
        process = self.start(servers, *more)
        wait_for(lambda: self.read_bytes() > behind or not process.running, "reading")
        process.signal(number)
        status = process.wait()
        wait_for(lambda: not self.lib.helpers(), "the end of the helpers")
        return status != 0

    def guest_writes(self, nr=4):
        """The chunks; within what is written each chunk is another one than before."""
        chunks = set()
        for _ in range(nr):
            length = self.rng.choice((512, 4 * KIB, 100 * KIB, 300 * KIB))
            offset = self.rng.randrange(0, SIZE - length, 512)
            data = self.rng.randbytes(length) if self.rng.randrange(4) else bytes(length)
            self.machine.write(2000, offset, data)
            chunks.update(range(offset // CHUNK, (offset + length - 1) // CHUNK + 1))
        return chunks

    def write_again(self):
        """All of the disk: an increment has as much to do as a full."""
        with open(self.machine.disks[2000], "r+b") as file:
            file.write(self.rng.randbytes(SIZE))

    def finish(self, servers, *more):
        """The last one, with the guest at work, and the restored disk held against what its
        snapshot froze: its report of the disk, and the chunks that were read."""
        self.lib.forget()
        self.tell()
        self.vc.held()
        self.vc.fail("QueryChangedDiskAreas", calls=1, slow=50)
        process = self.start(servers, *more)
        wait_for(lambda: self.vc.held() or not process.running, "the snapshot")
        frozen = os.path.join(self.folder, "frozen.raw")
        # Killed ones may have left theirs, which go as the backup begins.
        (left,) = self.machine.state()["snapshots"]
        shutil.copyfile(self.machine.frozen(left["ref"], 2000), frozen)
        self.guest_writes(2)
        self.vc.release()
        assert process.wait() == 0, process.err
        self.err = process.err
        report = support.Result([], 0, process.out, "").json
        out = os.path.join(self.folder, "restored.raw")
        sendense("restore", "--repo", self.path, f"{self.name}@{report['point']}", "--to",
                 f"2000=raw:{out}", "--force")
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", frozen, out)
        sendense("verify", "--repo", self.path, self.name)
        assert self.machine.snapshots() == [] and os.listdir(self.state) == []
        assert os.listdir(os.path.join(self.path, ".incoming")) == []
        read = {chunk for offset, length in self.lib.areas_read()
                for chunk in range(offset // CHUNK, (offset + length - 1) // CHUNK + 1)}
        (disk,) = report["disks"]
        return disk, read


@pytest.fixture(name="site", params=["folder", "hub"])
def site_fixture(request, scratch, servers):
    support.need("qemu-img")
    with vcenter.fake_in(scratch) as vc:
        if request.param == "folder":
            yield Site(scratch, vc)
            return
        with hub.hub_in(servers) as made:
            made.start()
            yield Site(scratch, vc, made)


def check_read(disk, read, changed, to_do=SIZE):
    """What was kept was not read, but for what changed since."""
    assert disk["resumed"] == "updated" and disk["kept"] > 0, disk
    assert len(read) <= (to_do - disk["kept"]) // CHUNK + 1 + len(changed)
    assert changed <= read, "what changed since was read"


def test_what_is_missing_and_what_changed(site, servers):
    """In good order: all that was read is kept.  First a full, then an increment."""
    for mode in ("full", "incremental"):
        assert site.killed(servers, 70 * MIB)
        first = {offset // CHUNK for offset, _ in site.lib.areas_read()}
        changed = site.guest_writes(6)
        disk, read = site.finish(servers)
        assert disk["mode"] == mode
        check_read(disk, read, changed)
        assert len(first - read) * CHUNK > MIB
        # The new state's id, not the interrupted one's: the next one reads what the guest did
        # since, and no more.
        disk, read = site.finish(servers)
        assert disk["mode"] == "incremental" and disk["resumed"] == "no"
        assert 0 < len(read) < 30
        site.write_again()


def test_killed_at_ten_moments(site, servers):
    """Twice in a row, by any signal, with a guest that writes in between."""
    kept = 0
    for number in range(20 if SOAK else 3):
        if number % 2 == 0:
            site.name = f"web{number}"  # a full
        else:
            site.write_again()
        changed = set()
        ends = []
        for most in (90 * MIB, 10 * MIB):  # what is left for the second one is more than that
            how = site.rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL))
            ends.append(site.killed(servers, site.rng.randrange(most), how))
            changed |= site.guest_writes(site.rng.randrange(6))
        assert all(ends)
        disk, read = site.finish(servers)
        assert disk["mode"] == ("full" if number % 2 == 0 else "incremental")
        # One that was killed before its plan was written left nothing to go on with.
        assert disk["resumed"] in ("updated", "no")
        kept += disk["kept"]
        assert len(read) <= (SIZE - disk["kept"]) // CHUNK + 1 + len(changed)
    assert kept > 50 * MIB, "some of it was worth while"


def test_tracking_that_began_anew(site, servers):
    """Nothing tells what changed: all is read, and compared with what is stored."""
    assert site.killed(servers, 70 * MIB)
    site.guest_writes()
    site.machine.reset_cbt()
    assert site.killed(servers, 20 * MIB)
    site.guest_writes()
    disk, read = site.finish(servers)
    assert disk["resumed"] == "compared" and disk["kept"] > 0
    assert len(read) == SIZE // CHUNK + 1


@pytest.mark.parametrize("case", ["refused", "full", "compare"])
def test_changes_that_are_not_known_or_not_believed(site, servers, case):
    assert site.killed(servers, 70 * MIB)
    site.guest_writes()
    if case == "refused":
        more = ["--verbose"]
        site.vc.fail("QueryChangedDiskAreas", skip=1, calls=1, fault="FileFault")
    elif case == "full":
        more = ["--mode", "full"]
    else:
        more = ["--changed-by", "compare"]
    disk, read = site.finish(servers, *more)
    assert disk["resumed"] == "compared" and len(read) == SIZE // CHUNK + 1
    if case == "refused":
        assert "what changed since the interrupted backup is not known" in site.err


@pytest.mark.parametrize("mode", ["full", "incremental"])
def test_an_audit_looks_at_what_is_kept(site, servers, mode):
    """A server that forgets what changed since the interrupted backup is found out."""
    if mode == "incremental":
        site.finish(servers)
        site.write_again()
    assert site.killed(servers, 90 * MIB)
    assert site.guest_writes(20)
    site.lib.forget()
    site.tell()
    site.vc.fail("QueryChangedDiskAreas", skip=1, calls=1, areas=[], start=0, length=SIZE)
    process = site.start(servers, "--audit", "100%")
    assert process.wait() == 1
    assert "found what tells of its changes to be wrong" in process.err, process.err
    assert ("begins anew" if mode == "full" else "is a full") in process.err
    assert site.machine.snapshots() == []
    disk, _ = site.finish(servers)
    assert disk["mode"] == "full" and disk["resumed"] == "no"
    site.write_again()
    assert site.killed(servers, 70 * MIB)
    disk, _ = site.finish(servers, "--audit", "100%")
    assert disk["resumed"] == "updated"


def test_a_disk_that_grew(site, servers):
    """Nothing of it is gone on with."""
    assert site.killed(servers, 70 * MIB)
    site.machine.grow(2000, SIZE + MIB)
    disk, _ = site.finish(servers)
    assert disk["resumed"] == "no" and disk["size"] == SIZE + MIB


def test_a_parent_that_was_merged(site, servers):
    """What lay beneath the parent is in it now."""
    for _ in range(2):
        site.finish(servers)
        site.guest_writes()
    site.write_again()
    assert site.killed(servers, 70 * MIB)
    changed = site.guest_writes()
    sendense("prune", "--repo", site.path, "--keep-last", "1")
    disk, read = site.finish(servers)
    assert disk["mode"] == "incremental"
    check_read(disk, read, changed)

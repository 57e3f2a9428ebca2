"""Interrupted backups that are gone on with: what is sent again, and the result.

The source is behind a link that counts what it carries and kills the backup at an
exact byte.  qemu-img compares the restore point with the source, and checks it.
"""

import glob
import json
import os
import random
import shutil
import signal

import pytest

from nbd_relay import Relay
from support import (KIB, MIB, SENDENSE, allocated, fails, make_disk, need, qemu_check, run,
                     same_content, sendense, wait_for)

SOAK = bool(os.environ.get("SENDENSE_SOAK"))
SCALE = 8 if SOAK else 1
SIZE = 160 * MIB * SCALE + 512  # qemu-nbd knows sectors only
SENT_AGAIN_MOST = 64 * MIB
# Negotiation and the heads of replies.
OVERHEAD = 2 * MIB * SCALE

PIECES = [(MIB, 40 * MIB * SCALE, "random"), (42 * MIB * SCALE, 8 * MIB * SCALE, "zero"),
          (56 * MIB * SCALE, 50 * MIB * SCALE, "random"), (120 * MIB * SCALE, 30 * MIB * SCALE, "text"),
          (SIZE - 300 * KIB - 5, 300 * KIB + 5, "random")]
DATA = sum(length for _, length, _ in PIECES)


class Site:
    """A disk, its server behind a link, and a repository."""

    def __init__(self, folder, servers, init=()):
        need("qemu-nbd", "qemu-img")
        self.folder, self.servers = folder, servers
        self.disk = make_disk(f"{folder}/disk.raw", SIZE, PIECES)
        self.repo = f"{folder}/repo"
        sendense("repo", "init", self.repo, "--quiet", *init)
        self.server = servers.qemu_nbd(self.disk, read_only=True, shared=64)
        self.relay = Relay(folder, "relay", self.server.socket)
        self.sent_in_vain = 0

    def words(self, *options):
        return ["backup", "--repo", self.repo, "--vm", "web01", self.relay.uri, *options]

    def killed(self, limit, *options, number=signal.SIGKILL, meanwhile=None):
        """A backup that ends when so many bytes have come over the link."""
        process = self.servers.start(SENDENSE, *self.words(*options), name="backup")

        def end():
            if meanwhile:
                process.signal(signal.SIGSTOP)  # so that it gets no further until it is killed
                meanwhile()
            process.signal(number)

        self.relay.at(limit, end)
        status = process.wait()
        assert status in (-number, 1), process.err
        self.sent_in_vain += self.relay.carried
        return process

    def finish(self, *options):
        """Goes on to the end: its report, of the one disk."""
        self.relay.count()
        report = sendense(*self.words("--json", "--quiet", *options)).json
        return report["disks"][0]

    def image(self):
        [image] = glob.glob(f"{self.repo}/vms/web01/disks/disk0/*.qcow2.part")
        return image

    def expect(self, disk=None):
        """The newest restore point is the disk, and all is in order."""
        point = sendense("ls", "--repo", self.repo, "web01", "--json").json["points"][-1]
        image = f"{self.repo}/{point['disks'][0]['image']}"
        restored = f"{self.folder}/restored.raw"
        sendense("restore", "--repo", self.repo, "web01", f"--to=raw:{restored}", "--force",
                 "--quiet")
        run("cmp", restored, disk or self.disk)
        same_content(restored, "raw", image, "qcow2")
        qemu_check(image)
        sendense("verify", "--repo", self.repo, "--quiet")
        sendense("repo", "check", self.repo, "--quiet")
        assert os.listdir(f"{self.repo}/.incoming") == []
        assert glob.glob(f"{self.repo}/vms/**/*.part", recursive=True) == []

    def change(self, offset, length, seed=7):
        with open(self.disk, "r+b") as file:
            file.seek(offset)
            file.write(random.Random(seed).randbytes(length))


@pytest.fixture
def site(scratch, servers):
    made = Site(scratch, servers)
    yield made
    made.relay.close()


def test_killed_at_ten_moments(site):
    """The same source: what is sent again is at most 64 MiB, wherever it was killed."""
    rows = []
    for number in range(10):
        limit = DATA * (2 * number + 1) // 20
        site.killed(limit, "--source-id", f"snapshot-{number}")
        sent = site.relay.carried
        done = site.finish("--source-id", f"snapshot-{number}", "--resume", "--mode", "full")
        again = sent + site.relay.carried - DATA
        rows.append(f"{sent / MIB:8.1f} {done['kept'] / MIB:8.1f} {again / MIB:8.1f}")
        assert done["resumed"] == "resumed"
        assert again <= SENT_AGAIN_MOST + OVERHEAD, rows
        if number in (0, 4, 9) or SOAK:
            site.expect()
        shutil.rmtree(f"{site.repo}/vms/web01")
    print("killed behind, kept, sent again (MiB)", *rows, sep="\n")


def test_killed_again_and_again(site):
    """One backup that is killed five times: each costs at most 64 MiB."""
    for _ in range(5):
        site.killed(DATA // 6, "--source-id", "s")
    done = site.finish("--source-id", "s")
    assert done["resumed"] == "resumed"
    assert site.sent_in_vain + site.relay.carried - DATA <= 5 * (SENT_AGAIN_MOST + OVERHEAD)
    site.expect()


def test_source_that_proves_nothing(site):
    """All is read again, and only what is not stored yet is sent to the repository."""
    site.killed(DATA * 3 // 4)
    done = site.finish()
    assert done["resumed"] == "compared" and done["read"] >= DATA - 8 * MIB * SCALE
    assert done["kept"] >= DATA * 3 // 4 - SENT_AGAIN_MOST - 8 * MIB * SCALE - OVERHEAD
    assert done["sent"] <= DATA - 8 * MIB * SCALE - done["kept"] + 64 * KIB * 8
    site.expect()


def test_source_that_changed_in_between(site):
    """What is stored of the older state goes, wherever the change is; what two runs mixed
    is not taken for the state of the later one."""
    site.killed(DATA * 3 // 4, "--source-id", "monday")
    site.change(2 * MIB, 100 * KIB)
    site.change(30 * MIB * SCALE + 5, 70 * KIB)
    site.change(SIZE - 10, 10)
    site.killed(DATA // 10, "--source-id", "tuesday")
    done = site.finish("--source-id", "tuesday")
    assert done["resumed"] == "compared"
    site.expect()


def test_file_that_changed_in_between(site, servers):
    """A raw file shows by its times whether it is the same."""
    words = ["backup", "--repo", site.repo, "--vm", "web01", f"raw:{site.disk}", "--json"]
    for changed in (False, True):
        site.repo = f"{site.folder}/repo-{changed}"
        sendense("repo", "init", site.repo, "--quiet")
        words[2] = site.repo
        backup = servers.start(SENDENSE, *words, f"--limit-rate={DATA // MIB}M",
                               "--progress=json")
        backup.wait_err('"stage":"copy"')
        # Something is durable when the sums are longer than their head.
        [sums] = glob.glob(f"{site.repo}/vms/web01/disks/disk0/*.sums.part")
        wait_for(lambda: os.stat(sums).st_size > 4096, "a checkpoint")
        backup.popen.kill()
        backup.wait()
        if changed:
            site.change(MIB + 17, 20)
        [disk] = sendense(*words).json["disks"]
        assert disk["resumed"] == ("compared" if changed else "resumed")
        assert disk["kept"] > 0
        site.expect()


def test_damage_to_what_was_stored(site):
    """Bytes that turned, and an end that was lost, are found by the digests."""
    for what in ("bytes", "end", "sums"):
        site.killed(DATA * 3 // 4, "--source-id", what)
        image = site.image()
        if what == "sums":
            with open(image.replace("qcow2", "sums"), "r+b") as file:
                file.seek(4096)
                file.write(b"\xff" * 1000)
        elif what == "end":
            os.truncate(image, os.stat(image).st_size * 2 // 3)
        else:
            with open(image, "r+b") as file:
                for at in (10 * MIB * SCALE, 30 * MIB * SCALE):
                    file.seek(at)
                    file.write(b"\x55\xaa")
        done = site.finish("--source-id", what, "--mode", "full")
        if what == "bytes":
            assert done["kept"] > 30 * MIB * SCALE
        site.expect()
        shutil.rmtree(f"{site.repo}/vms/web01")


@pytest.mark.parametrize("first", ["image", "sums"])
def test_power_cut(site, first):
    """Files that are of different moments, the image or the sums the older: what they agree
    on is kept, and the result is right."""
    kept = f"{site.folder}/kept"
    os.mkdir(kept)

    def copy(suffix):
        for path in glob.glob(f"{site.repo}/vms/web01/disks/disk0/*.{suffix}.part"):
            shutil.copy(path, f"{kept}/{os.path.basename(path)}")

    one, other = ("qcow2", "sums") if first == "image" else ("sums", "qcow2")
    site.killed(DATA // 2, "--source-id", "s", meanwhile=lambda: copy(one))
    site.killed(DATA // 6, "--source-id", "s", meanwhile=lambda: copy(other))
    for name in os.listdir(kept):
        shutil.copy(f"{kept}/{name}", f"{site.repo}/vms/web01/disks/disk0/{name}")
    done = site.finish("--source-id", "s")
    assert done["resumed"] == "resumed"
    site.expect()


def write_extents(path, size, from_id, to_id, areas):
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"sendense-extents": 1, "key": "disk0", "size": size, "from": from_id,
                   "to": to_id}, file)
        for offset, length in areas:
            file.write("\n" + json.dumps({"offset": offset, "length": length}))
        file.write("\n" + json.dumps({"end": True, "count": len(areas),
                                      "bytes": sum(length for _, length in areas)}) + "\n")


@pytest.mark.parametrize("by", ["extents", "compare"])
def test_increment(site, by):
    """An increment is gone on with: areas that changed, and areas that became zero."""
    site.finish("--change-id", "1")
    areas = [(2 * MIB + i * 3 * MIB * SCALE, 2 * MIB * SCALE) for i in range(45)]
    for number, (offset, length) in enumerate(areas):
        if number % 5 == 4:
            with open(site.disk, "r+b") as file:
                file.seek(offset)
                file.write(bytes(length))
        else:
            site.change(offset, length, seed=number)
    options = ["--source-id", "two", "--mode", "incremental", "--changed-by=compare"]
    if by == "extents":
        write_extents(f"{site.folder}/list", SIZE, "1", "2", areas)
        options[-1] = f"--changed-by=extents:{site.folder}/list"
    changed = sum(length for _, length in areas)
    to_read = allocated(site.disk) if by == "compare" else changed
    site.killed(to_read * 3 // 4, *options)
    sent = site.relay.carried
    done = site.finish(*options, "--resume")
    assert done["mode"] == "incremental" and done["resumed"] == "resumed"
    assert done["kept"] > 0
    # What was found to be as in the parent is not read again either.
    assert sent + site.relay.carried - to_read <= SENT_AGAIN_MOST + OVERHEAD
    assert done["stored"] <= changed * 1.05 + MIB
    site.expect()


def test_what_is_not_gone_on_with(site):
    """Where it is not wanted, or the disks are others, it begins anew."""
    site.killed(DATA // 2, "--source-id", "s")
    done = site.finish("--source-id", "s", "--no-resume")
    assert done["resumed"] == "no" and done["read"] >= DATA - 8 * MIB * SCALE
    site.expect()
    fails(*site.words("--resume"), contains="no interrupted backup of these disks",
          case="--resume, and nothing to go on with")
    site.killed(DATA // 2, "--mode", "full")
    fails(*site.words("--resume", "--mode", "incremental"),
          contains="no interrupted backup of these disks")
    assert len(os.listdir(f"{site.repo}/.incoming")) == 1


def test_ended_in_good_order(site):
    """SIGTERM keeps all that was stored; Ctrl-C nothing."""
    site.killed(DATA * 3 // 4, "--source-id", "s", number=signal.SIGTERM)
    done = site.finish("--source-id", "s", "--resume")
    assert done["resumed"] == "resumed"
    site.expect()
    site.killed(DATA // 2, "--source-id", "s", "--mode", "full", number=signal.SIGINT)
    assert os.listdir(f"{site.repo}/.incoming") == []

"""What tests of VMware backups begin with: a test vCenter with a machine of three disks, VMware's
library as tests have it, a repository, a state folder.

    setting_fixture, in a test as "setting"; good_again(setting) at the end of one in which
    something went wrong.
"""

import contextlib
import os
import random
import shutil

import pytest

import support
import vcenter
import vddk
from support import KIB, MIB, SENDENSE, fails, need, run, sendense, wait_for

SIZES = {2000: 40 * MIB, 2001: 24 * MIB + 512, 16000: 8 * MIB}
CHUNK = 64 * KIB


class Setting:
    """A vCenter, a machine of three disks, VMware's library, a repository, a state folder."""

    def __init__(self, folder, vc):
        self.folder, self.vc = str(folder), vc
        self.repo, self.state = os.path.join(folder, "repo"), os.path.join(folder, "debts")
        self.rng = random.Random(5)
        self.lib = vddk.FakeVddk(folder, frozen=vc.frozen)
        self.lib.tell(thumbprint=vc.sha1, password=vc.password)
        self.machine = vc.add_machine("web01", SIZES, cbt=True)
        self.frozen = {}  # {point: {key: path}}
        for key in SIZES:
            self.guest_writes(key, 6)
        sendense("repo", "init", self.repo, "--compression", "none")

    def env(self):
        return self.lib.env(SENDENSE_STATE_DIR=self.state)

    def tell(self, **values):
        self.lib.tell(thumbprint=self.vc.sha1, password=self.vc.password, **values)

    def words(self, *more, path="DC0/vm/web01"):
        return ["backup", "--repo", self.repo, self.vc.url(path), "--password-file",
                self.vc.password_file, "--vcenter-ca-file", self.vc.ca, *more]

    def backup(self, *more, **kwargs):
        return sendense(*self.words("--json", *more, **kwargs), env=self.env()).json

    def fails(self, *more, **kwargs):
        return fails(*self.words(*more), env=self.env(), **kwargs)

    def start(self, servers, *more):
        return servers.start(SENDENSE, *self.words(*more), env=self.env(), name="backup")

    def vddk_without_open(self):
        """A folder with a library that lacks an entry point."""
        return vddk.FakeVddk(self.folder, "broken").folder

    def guest_writes(self, key, nr=1):
        """[(offset, length)]"""
        done = []
        for _ in range(nr):
            length = self.rng.choice((512, 4 * KIB, 100 * KIB, MIB))
            offset = self.rng.randrange(0, SIZES[key] - length, 512)
            self.machine.write(key, offset, self.rng.randbytes(length))
            done.append((offset, length))
        return done

    def watched_backup(self, servers, *more):
        """A backup, with the disks as the snapshot froze them kept, while the guest writes."""
        self.vc.held()
        self.vc.fail("QueryChangedDiskAreas", calls=1, slow=50)
        process = self.start(servers, "--json", *more)
        wait_for(lambda: self.vc.held() or not process.running, "the snapshot")
        ref = self.machine.state()["snapshots"][0]["ref"]
        kept = {}
        for key in self.machine.disks:
            kept[key] = os.path.join(self.folder, f"{ref}-{key}.raw")
            shutil.copyfile(self.machine.frozen(ref, key), kept[key])
            self.guest_writes(key, 2)
        self.vc.release()
        assert process.wait() == 0, process.err
        report = support.Result([], 0, process.out, "").json
        self.frozen[report["point"]] = kept
        return report

    def check_clean(self):
        assert self.machine.snapshots() == [], "a snapshot is left"
        assert self.vc.sessions() == 0
        assert self.lib.helpers() == []
        assert os.listdir(self.state) == []

    def check_points(self):
        sendense("verify", "--repo", self.repo, "web01")
        for point, disks in self.frozen.items():
            out = {key: os.path.join(self.folder, f"restored-{key}.raw") for key in disks}
            targets = [word for key, path in out.items() for word in ("--to", f"{key}=raw:{path}")]
            sendense("restore", "--repo", self.repo, f"web01@{point}", *targets, "--force")
            for key, path in disks.items():
                run("qemu-img", "compare", "-f", "raw", "-F", "raw", path, out[key])
                os.unlink(out[key])


@contextlib.contextmanager
def setting_in(folder, kind=Setting):
    """One, of that class; the library's rules were kept."""
    need("qemu-img")
    with vcenter.fake_in(folder) as vc:
        setting = kind(folder, vc)
        yield setting
        vc.heal()
        assert "rule broken" not in "".join(setting.lib.calls())


@pytest.fixture(name="setting")
def setting_fixture(scratch):
    with setting_in(scratch) as setting:
        yield setting


def disks_of(report):
    return {int(disk["key"]): disk for disk in report["disks"]}


def chunks_of(areas):
    return {chunk for offset, length in areas
            for chunk in range(offset // CHUNK, (offset + length - 1) // CHUNK + 1)}


def good_again(setting):
    """Nothing is left, and the next run is good."""
    setting.vc.heal()
    setting.tell()
    setting.check_clean()
    setting.backup()
    setting.check_clean()


def debts(setting):
    return [name for name in os.listdir(setting.state) if name.startswith("debt-")]

"""sendense backup and replicate nbdkit-vddk://…: a machine of the test vCenter, its disks read by
nbdkit with a stand-in for its vddk plugin."""

import os
import shutil
import signal

import pytest

import nbdkit_vddk
from support import SENDENSE, fails, run, sendense, wait_for
from vmware_setting import SIZES, Setting, chunks_of, debts, disks_of, setting_in


class NbdkitSetting(Setting):
    """The same, read in that way."""

    def __init__(self, folder, vc):
        super().__init__(folder, vc)
        self.nbdkit = nbdkit_vddk.program(self.folder)
        self.tmp = os.path.join(self.folder, "tmp")
        os.mkdir(self.tmp)

    def env(self):
        return dict(super().env(), TMPDIR=self.tmp)

    def url(self, path):
        return self.vc.url(path).replace("vmware://", "nbdkit-vddk://")

    def words(self, *more, path="DC0/vm/web01"):
        words = super().words(*more, path=path)
        words[words.index(self.vc.url(path))] = self.url(path)
        return [*words, "--nbdkit", self.nbdkit]

    def pids(self):
        return nbdkit_vddk.running(self.lib.config)

    def check_clean(self):
        super().check_clean()
        assert self.pids() == [] and os.listdir(self.tmp) == []


@pytest.fixture(name="setting")
def nbdkit_fixture(scratch):
    with setting_in(scratch, NbdkitSetting) as setting:
        yield setting


def good_again(setting):
    setting.vc.heal()
    setting.tell()
    setting.check_clean()
    setting.backup()
    setting.check_clean()


def test_full_then_increments(setting, servers):
    report = setting.watched_backup(servers)
    assert {disk["mode"] for disk in report["disks"]} == {"full"}
    for key, disk in disks_of(report).items():
        assert disk["read"] < SIZES[key], "what is not allocated is not read"
    setting.check_clean()
    setting.lib.forget()
    written = setting.guest_writes(2000, 3)
    report = setting.watched_backup(servers)
    assert {disk["mode"] for disk in report["disks"]} == {"incremental"}
    assert chunks_of(written) <= chunks_of(setting.lib.areas_read())
    assert len(setting.lib.calls("connect")) == len(setting.lib.calls("disconnect"))
    # By the other way it goes on from these.
    words = super(NbdkitSetting, setting).words("--json")
    report = sendense(*words, env=setting.env()).json
    assert {disk["mode"] for disk in report["disks"]} == {"incremental"}
    setting.check_clean()
    setting.check_points()


def test_replicate(setting):
    target = {key: os.path.join(setting.folder, f"replica-{key}.raw") for key in SIZES}
    words = setting.words()[3:]
    targets = [word for key, path in target.items() for word in ("--target", f"{key}=raw:{path}")]
    for key, path in target.items():
        run("truncate", "-s", str(SIZES[key]), path)
    sendense("replicate", *words, *targets, "--vmware-state-dir", setting.state,
             "--state-dir", os.path.join(setting.folder, "replica"), env=setting.env())
    for key, path in target.items():
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", setting.machine.disks[key], path)
    setting.check_clean()


def test_programs_that_are_missing(setting):
    words = setting.words()[:-2]
    fails(*words, "--nbdkit", "/nowhere/nbdkit", env=setting.env(), case="nbdkit-vddk: no nbdkit",
          contains=["cannot start /nowhere/nbdkit", "Debian's", "vmware://"])
    fails(*words, "--nbdkit", shutil.which("nbdkit"), env=setting.env(),
          case="nbdkit-vddk: no plugin", contains=["vddk", "plugin", "Debian's"])
    fails(*words, "--nbdkit", setting.nbdkit, "--vddk", setting.folder, env=setting.env(),
          case="nbdkit-vddk: no library", contains=["lib64/libvixDiskLib.so.6", "download"])
    fails(*super(NbdkitSetting, setting).words(), "--nbdkit", "nbdkit", env=setting.env(), status=2,
          case="nbdkit-vddk: --nbdkit for the other way", contains="nbdkit-vddk://")
    fails("copy", setting.url("web01"), "null:1M", case="nbdkit-vddk: as one disk",
          contains="not one disk")
    assert setting.machine.snapshots() == []
    setting.check_clean()

    def verdict(*more):
        checks = sendense("doctor", "--json", *more, env=setting.env()).json["checks"]
        return next((each["verdict"], each["text"]) for each in checks if each["check"] == "nbdkit")

    assert verdict("--nbdkit", setting.nbdkit)[0] == "ok"
    assert verdict()[0] == "note" and "Debian's" in verdict()[1]
    assert verdict("--nbdkit", "/nowhere/nbdkit")[0] == "warning"
    good_again(setting)


def test_what_the_plugin_refuses(setting):
    def wrong(case, contains, **told):
        setting.tell(**told)
        said = setting.fails("--verbose", case=f"nbdkit-vddk: {case}", contains=contains)
        assert setting.vc.password not in said.err
        setting.check_clean()

    setting.lib.tell(thumbprint=setting.vc.sha1, password="another")
    said = setting.fails("--verbose", case="nbdkit-vddk: a wrong password",
                         contains=["disk 2000", "plugin could not open it",
                                   "VixDiskLib_ConnectEx: Cannot complete login"])
    assert setting.vc.password not in said.err
    wrong("reads fail", "VixDiskLib_Read: NFC error 5", read=5)
    wrong("a plugin that writes the password", "connecting with *", read=5, stderr="secret")
    wrong("a crash in a read", ["SIGSEGV"], crash=5)
    good_again(setting)


def test_kills(setting, servers):
    setting.tell(hang="read")
    process = setting.start(servers)
    wait_for(lambda: setting.lib.calls("read"), "a read")
    for pid in setting.pids():
        os.kill(pid, signal.SIGKILL)
    assert process.wait() == 1
    assert "SIGKILL" in process.err and setting.vc.password not in process.err
    setting.check_clean()
    setting.lib.forget()
    setting.tell(slow=100)
    process = setting.start(servers)
    wait_for(lambda: setting.lib.calls("read"), "a read")
    process.signal(signal.SIGKILL)
    wait_for(lambda: setting.pids() == [], "the end of nbdkit")
    assert debts(setting)
    shutil.rmtree(setting.tmp)
    os.mkdir(setting.tmp)
    setting.tell()
    setting.backup()
    assert setting.machine.snapshots() == [] and debts(setting) == []
    assert setting.pids() == [] and os.listdir(setting.tmp) == []


def test_the_password_is_nowhere(setting, servers):
    setting.tell(hang="open")
    process = setting.start(servers, "--verbose")
    wait_for(lambda: setting.lib.calls("connect"), "a connection")
    pids = setting.pids()
    assert pids
    for pid in pids:
        for name in ("cmdline", "environ"):
            with open(f"/proc/{pid}/{name}", "rb") as file:
                assert setting.vc.password.encode() not in file.read()
    folder = os.path.join(setting.tmp, os.listdir(setting.tmp)[0])
    assert os.stat(folder).st_mode & 0o777 == 0o700
    process.signal(signal.SIGTERM)
    setting.tell()
    assert process.wait() != 0
    assert setting.vc.password not in process.err
    setting.check_clean()

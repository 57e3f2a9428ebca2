"""A Linux that is backed up, replicated and restored boots, its file system is clean, and its
files are what it wrote (see guest.py)."""

import contextlib
import os
import shutil
import tempfile

import pytest

import guest
import qemu_machine
import support
import vcenter
import vddk
from support import KIB, SENDENSE, run, sendense, wait_for


SOAK = bool(os.environ.get("SENDENSE_SOAK"))
long = pytest.mark.skipif(not SOAK, reason="boots guests for long: ./run soak")


@pytest.fixture(name="original", scope="module")
def original_fixture():
    """A guest's disk that nobody writes to."""
    folder = tempfile.mkdtemp(prefix="sd-", dir=os.environ.get("SENDENSE_TEST_DIR"))
    try:
        yield guest.make_disk(folder)
    finally:
        shutil.rmtree(folder)


def copy(disk, path):
    run("cp", "--sparse=always", disk, path)
    return path


def boot(servers, folder, disk, command=None, expect=2):
    """Boots it, and switches it off: what it said of firmware and journal."""
    with guest.Console(folder, "booted") as console:
        process = console.start(servers, command(console) if command else
                                guest.qemu(console, disk))
        number, firmware, journal = console.boots()
        assert number == expect
        console.write(f"boot-{number}", 50)
        console.off()
        process.stop()
    return firmware, journal


@contextlib.contextmanager
def running(folder, disk, form="qcow2"):
    """The guest in a QEMU with a monitor, which stays when the guest has gone: both, and what it
    is to be asked by."""
    path = f"{folder}/source.{form}"
    run("qemu-img", "convert", "-f", "raw", "-O", form, disk, path)
    with guest.Console(folder) as console:
        with qemu_machine.machine_in(folder, disks=(("vd0", form),), files={"vd0": path}, arguments=[
                "-m", "192", "-no-shutdown", *console.words]) as machine:
            assert console.boots() == (1, "bios", "clean")
            yield machine, console


def switch_off(machine, console):
    console.say("off", "guest: off")
    wait_for(lambda: machine.call("query-status")["status"] == "shutdown", "the guest's end")


def check_replica(servers, folder, stages, wanted, booting):
    """A replica's copies after a full run and a delta, while the guest ran, and after the cutover;
    wanted is what the guest wrote before each; booting: those that are booted too."""
    names = ["first", *wanted]
    for nr, (stage, disk) in enumerate(stages.items(), 2):
        found = guest.judge(disk, replay=stage != "third")
        assert sorted(found) == sorted(names[:nr])
        assert all(found[name] == wanted[name] for name in names[1:nr])
        if stage in booting:
            assert boot(servers, folder, disk) == ("bios", "clean" if stage == "third" else "replayed")
            assert sorted(guest.judge(disk)) == sorted([*names[:nr], "boot-2"])


# --- from QEMU --------------------------------------------------------------------------------


@long
def test_backed_up_while_it_runs(original, scratch, servers):
    """As if the power failed at that moment, and with the file system frozen."""
    repo, points = f"{scratch}/repo", {}
    sendense("repo", "init", repo)
    with running(scratch, original) as (machine, console):

        def backup():
            return sendense("backup", "--repo", repo, "--vm", "web01", f"qemu:{machine.qmp}",
                            "--scratch", scratch, "--json").json["point"]

        one = console.write("one", 300)
        points["crash"] = backup()
        two = console.write("two", 300)
        console.freeze()
        points["frozen"] = backup()
        console.thaw()
        console.write("three", 300)
    disks = {name: f"{scratch}/{name}.raw" for name in points}
    for name, disk in disks.items():
        sendense("restore", "--repo", repo, f"web01@{points[name]}", "--to", f"vd0=raw:{disk}")
    held = guest.judge(disks["frozen"])
    assert sorted(held) == ["first", "one", "two"] and (held["one"], held["two"]) == (one, two)
    held = guest.judge(disks["crash"], replay=True)
    assert sorted(held) == ["first", "one"] and held["one"] == one
    assert boot(servers, scratch, disks["crash"]) == ("bios", "replayed")
    assert sorted(guest.judge(disks["crash"])) == ["boot-2", "first", "one"]


def test_replicated_while_it_runs(original, scratch, servers):
    """Into an export; booted as after the first run and as after the cutover."""
    replica, stages = f"{scratch}/replica.raw", {}
    with open(replica, "wb") as file:
        file.truncate(guest.SIZE)
    server = servers.qemu_nbd(replica)
    with running(scratch, original) as (machine, console):

        def replicate(stage, *more):
            report = sendense("replicate", "--vm", "web01", f"qemu:{machine.qmp}", "--scratch", scratch,
                              "--target", f"vd0={server.uri}", "--state-dir", f"{scratch}/state",
                              "--json", *more).json
            stages[stage] = copy(replica, f"{scratch}/{stage}.raw")
            return report["disks"][0]

        wanted = {"one": console.write("one", 300)}
        assert replicate("first")["mode"] == "full"
        wanted["two"] = console.write("two", 300)
        delta = replicate("second")
        assert delta["changed_by"] == "bitmap" and 300 * KIB <= delta["sent"] < guest.SIZE / 4
        wanted["three"] = console.write("three", 300)
        switch_off(machine, console)
        assert replicate("third", "--cutover")["changed_by"] == "bitmap"
    check_replica(servers, scratch, stages, wanted, list(stages) if SOAK else ["third"])


# --- from a vCenter ---------------------------------------------------------------------------


class Setting:
    """A vCenter's machine, whose disk is the guest's."""

    def __init__(self, folder, vc, disk, firmware):
        self.folder, self.vc = folder, vc
        self.repo = f"{folder}/repo"
        self.lib = vddk.FakeVddk(folder, frozen=vc.frozen)
        self.lib.tell(thumbprint=vc.sha1, password=vc.password)
        self.machine = vc.add_machine("web01", {2000: disk}, cbt=True, firmware=firmware)
        sendense("repo", "init", self.repo)

    def words(self, command, *more):
        return [command, self.vc.url("web01"), "--password-file", self.vc.password_file,
                "--vcenter-ca-file", self.vc.ca, "--json", *more]

    def env(self):
        return self.lib.env(SENDENSE_STATE_DIR=f"{self.folder}/state")

    def restore(self, kind, *more):
        """What describes the machine; its disk."""
        out = f"{self.folder}/out"
        os.makedirs(out, exist_ok=True)
        sendense("restore", "--repo", self.repo, "web01", "--to", f"2000=raw:{out}/disk.raw",
                 "--config", kind, "--cpus", "1", "--memory", "512MiB", *more)
        return f"{out}/web01.{'xml' if kind == 'libvirt' else kind}", f"{out}/disk.raw"


def test_replicated_from_a_vcenter(original, scratch, servers):
    """The guest runs on the machine's disk; a snapshot takes a moment, in which it stands still."""
    stages, replica = {}, f"{scratch}/replica.raw"
    with vcenter.fake_in(scratch) as vc, running(scratch, original, "raw") as (machine, console):
        setting = Setting(scratch, vc, machine.files["vd0"], "bios")
        with open(replica, "wb") as file:
            file.truncate(guest.SIZE)

        def replicate(stage, *more):
            vc.held()
            for method in ("CreateSnapshot_Task", "QueryChangedDiskAreas"):
                vc.fail(method, calls=1, slow=50)
            process = servers.start(SENDENSE, *setting.words(
                "replicate", "--target", f"2000=raw:{replica}", "--state-dir", f"{scratch}/records",
                *more), env=setting.env())

            def until(method):
                wait_for(lambda: method in vc.held() or not process.running, method)
                assert process.running, process.err
            until("CreateSnapshot_Task")
            machine.call("stop")
            vc.release()
            until("QueryChangedDiskAreas")
            machine.call("cont")
            vc.release()
            assert process.wait() == 0, process.err
            stages[stage] = copy(replica, f"{scratch}/{stage}.raw")
            return support.Result([], 0, process.out, "").json["disks"][0]

        wanted = {"one": console.write("one", 300)}
        assert replicate("first")["mode"] == "full"
        wanted["two"] = console.write("two", 300)
        delta = replicate("second")
        assert delta["changed_by"] == "extents" and 300 * KIB <= delta["sent"] < guest.SIZE / 4
        wanted["three"] = console.write("three", 300)
        switch_off(machine, console)
        machine.quit()
        setting.machine.set_power(False)
        report = sendense(*setting.words(
            "replicate", "--target", f"2000=raw:{replica}", "--state-dir", f"{scratch}/records",
            "--cutover"), env=setting.env()).json["disks"][0]
        assert (report["changed_by"], report["verified"]) == ("extents", "read-back")
        stages["third"] = copy(replica, f"{scratch}/third.raw")
    check_replica(servers, scratch, stages, wanted, list(stages) if SOAK else ["third"])


@long
@pytest.mark.parametrize("firmware, flavour", [("bios", "cloud-amd64"), ("efi", "amd64")])
def test_what_a_vcenter_had_starts_elsewhere(scratch, servers, firmware, flavour):
    """Under libvirt, by BIOS with the disk on VMware's controller, by EFI on SATA; and from its OVF."""
    with vcenter.fake_in(scratch) as vc:
        setting = Setting(scratch, vc, guest.make_disk(scratch, flavour), firmware)
        sendense(*setting.words("backup", "--repo", setting.repo), env=setting.env())
        path, disk = setting.restore("libvirt")
        envelope, _ = setting.restore("ovf", "--config-only")
    assert boot(servers, scratch, disk, lambda console: guest.libvirt(console, scratch, path),
                expect=1) == (firmware, "clean")
    assert sorted(guest.judge(disk)) == ["boot-1", "first"]
    if firmware == "bios":
        assert boot(servers, scratch, disk, lambda console: guest.ovf(console, envelope)) == \
            ("bios", "clean")
        assert sorted(guest.judge(disk)) == ["boot-1", "boot-2", "first"]

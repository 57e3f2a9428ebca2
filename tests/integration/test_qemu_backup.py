"""sendense backup qemu:SOCKET: a whole machine, against a real QEMU that is written to."""

import contextlib
import os
import random
import threading
import time

import pytest

from qemu_machine import Disks, Machine, agent_in, machine_in, proxy_in
from support import (KIB, MIB, Process, SENDENSE, fails, same_content, sendense, wait_for)

SOAK = bool(os.environ.get("SENDENSE_SOAK"))


class Setting:
    """A machine, its disks' content, a repository, and a writer that never rests."""

    def __init__(self, folder, machine, proxy):
        self.folder, self.machine, self.proxy = folder, machine, proxy
        self.scratch = os.path.join(folder, "s")
        self.repo = os.path.join(folder, "repo")
        os.mkdir(self.scratch)
        sendense("repo", "init", self.repo, "--compression", "none")
        self.disks = Disks(machine)
        self.lock = threading.Lock()  # no write while the moment is taken
        self.frozen = None
        self.points = {}
        self.rng = random.Random(3)

    def arguments(self, *more):
        return ["backup", "--repo", self.repo, "--vm", "web01", f"qemu:{self.proxy.path}",
                "--scratch", self.scratch, "--json", *more]

    def write(self, n=1):
        for _ in range(n):
            with self.lock:
                key = self.rng.choice(list(self.disks.content))
                offset = self.rng.randrange(0, self.machine.size - 256 * KIB, 4 * KIB)
                length = self.rng.choice((4 * KIB, 64 * KIB, 96 * KIB))
                if self.rng.random() < 0.2:
                    self.disks.zero(key, offset, length)
                else:
                    self.disks.write(key, self.rng.randrange(1, 255), offset, length)

    @contextlib.contextmanager
    def writer(self):
        stop = threading.Event()

        def main():
            while not stop.is_set():
                self.write()
                stop.wait(0.002)

        thread = threading.Thread(target=main)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    @contextlib.contextmanager
    def watched_moment(self):
        """The content at the transaction with blockdev-backup: nothing is written from just
        before it until the next command."""
        self.frozen, seen = None, []

        def before(number, name):
            if seen == [True]:
                self.lock.release()
                seen.append(number)
            # The first one after the server stands; a plan's comes before that.
            if name == "transaction" and not seen and "nbd-server-start" in self.proxy.commands:
                self.lock.acquire()  # pylint: disable=consider-using-with
                self.frozen = self.disks.frozen()
                seen.append(True)

        self.proxy.commands.clear()
        self.proxy.before = before
        try:
            yield
        finally:
            self.proxy.before = None
            if seen == [True]:
                self.lock.release()

    def backup(self, *more):
        with self.watched_moment():
            report = sendense(*self.arguments(*more)).json
        self.points[report["point"]] = self.frozen
        return report

    def check_points(self):
        """Every point restores to what the disks held at its moment, and is good."""
        assert len(sendense("ls", "--repo", self.repo, "web01", "--json").json["points"]) == \
            len(self.points)
        sendense("verify", "--repo", self.repo, "web01")
        for point, content in self.points.items():
            paths = {key: os.path.join(self.folder, f"{key}.restored") for key in content}
            targets = [word for key, path in paths.items()
                       for word in ("--to", f"{key}=raw:{path}")]
            sendense("restore", "--repo", self.repo, f"web01@{point}", *targets, "--force")
            for key, want in content.items():
                with open(paths[key], "rb") as file:
                    assert file.read() == want, f"{point} {key}"
                same_content(paths[key], "raw", f"{self.repo}/vms/web01/disks/{key}/{point}.qcow2",
                             "qcow2")

    def check_clean(self, bitmaps=1):
        assert self.machine.leftovers(bitmaps) == []
        assert os.listdir(self.scratch) == []


@pytest.fixture(name="setting")
def setting_fixture(scratch):
    with machine_in(scratch) as machine, proxy_in(scratch, machine.qmp) as proxy:
        yield Setting(scratch, machine, proxy)


def modes(report):
    return {disk["key"]: disk["mode"] for disk in report["disks"]}


def test_a_machine_that_is_written_to_all_the_time(setting):
    """Six points; each is the state of its moment, and increments hold what changed."""
    setting.write(20)
    with setting.writer():
        first = setting.backup()
        assert set(modes(first).values()) == {"full"}
        for _ in range(5 if not SOAK else 50):
            setting.write(5)
            report = setting.backup()
            assert set(modes(report).values()) == {"incremental"}
            assert all(disk["changed_by"] == "bitmap" for disk in report["disks"])
            assert not any(disk["fallback"] for disk in report["disks"])
    setting.check_clean()
    setting.check_points()
    quiet = [setting.backup() for _ in range(2)][1]
    assert [disk["read"] for disk in quiet["disks"]] == [0, 0]


def test_the_record_says_how_consistent_it_is(setting):
    """Frozen through the agent; without one; not wanted."""
    with agent_in(setting.folder) as agent:
        report = setting.backup("--agent", agent.path)
        assert report["consistency"] == "application" and "consistency_reason" not in report
        assert not agent.frozen and "guest-fsfreeze-freeze" in agent.log
    report = setting.backup()
    assert report["consistency"] == "crash"
    assert report["consistency_reason"] == "the machine has no channel to a guest agent"
    report = setting.backup("--no-freeze")
    assert report["consistency"] == "crash" and report["consistency_reason"]
    shown = sendense("ls", "--repo", setting.repo, f"web01@{report['point']}").out
    assert "nothing was frozen" in shown and report["consistency_reason"] in shown


def test_another_machine_of_that_name_is_refused(setting):
    """The machine's uuid is part of the record."""
    setting.backup()
    setting.machine.quit()
    setting.machine.arguments = ["-uuid", "11111111-2222-3333-4444-555555555555"]
    setting.machine.start()
    fails(*[word for word in setting.arguments() if word != "--json"], contains="vm-uuid",
          case="qemu: another machine of the same name")
    assert os.listdir(setting.scratch) == []


def test_after_qemu_was_killed_the_next_backup_is_a_full(setting):
    """In the middle of an increment: an error that names the socket; nothing is left; loud."""
    setting.write(20)
    setting.disks.flush()
    setting.backup()
    setting.write(20)
    setting.disks.flush()
    setting.proxy.commands.clear()
    setting.proxy.after = lambda number, name: (
        setting.machine.kill() if name == "block-export-add" else None)
    failed = sendense(*setting.arguments(), status=1)
    setting.proxy.after = None
    assert setting.proxy.path in failed.out, failed
    assert os.listdir(setting.scratch) == []
    setting.machine.start()
    report = setting.backup()
    assert set(modes(report).values()) == {"full"}
    assert all(disk["fallback"] for disk in report["disks"])
    assert all("is gone" in disk["reason"] for disk in report["disks"]), report
    setting.check_clean()
    setting.check_points()


def test_when_qemu_dies_while_it_is_read_that_is_told_at_once(setting):
    setting.write(60)
    process = Process([SENDENSE, *setting.arguments("--limit-rate", "100k",
                                                    "--progress", "json")],
                      setting.folder, "backup")
    wait_for(lambda: '"stage":"copy"' in process.err.replace(" ", "") or not process.running,
             "the copy")
    assert process.running, process.err
    began = time.monotonic()
    setting.machine.kill()
    assert process.wait() == 1
    assert time.monotonic() - began < 5
    assert "QEMU has ended" in process.out, process.out
    assert "given back" not in process.err and "connecting again" not in process.err, process.err
    assert os.listdir(setting.scratch) == []
    setting.machine.start()
    setting.backup()
    setting.check_points()


def test_sessions_that_ended_well_in_a_paused_machine_are_no_dead_backups(setting):
    """QEMU keeps descriptors that were removed in its list until the guest runs."""
    setting.machine.call("stop")
    for _ in range(3):
        result = sendense(*setting.arguments())
        assert "cleaned up" not in result.err, result
    assert setting.machine.call("query-fdsets")
    setting.machine.call("cont")
    setting.write(5)
    setting.backup()
    setting.check_clean()


# The commands that a kill comes just before or after, by stage.
KILLS = {"open": "query-block", "scratch": "blockdev-create", "server": "nbd-server-start",
         "moment": "transaction", "export": "block-export-add", "check": "query-block-jobs",
         "end": "nbd-server-stop", "drop": "transaction"}


@pytest.mark.parametrize("stage", KILLS)
def test_killed_in_any_stage_the_next_backup_cleans_up_and_loses_nothing(setting, stage):
    """SIGKILL of the backup, before and after the command that the stage is known by."""
    setting.write(20)
    setting.backup()
    for i in range(10 if SOAK else 2):
        setting.write(10)
        fired = []

        def kill(number, name, fired=fired):
            commands = setting.proxy.commands[:number + 1]
            late = "block-export-del" in commands
            if name == KILLS[stage] and late == (stage in ("end", "drop")) and not fired:
                fired.append(True)
                process.popen.kill()

        setting.proxy.commands.clear()
        # The machine's writes rest: the moment of a backup that is committed in "end" is now.
        now = setting.disks.frozen()
        setattr(setting.proxy, "before" if i % 2 else "after", kill)
        process = Process([SENDENSE, *setting.arguments()], setting.folder, "killed")
        process.wait()
        setting.proxy.before = setting.proxy.after = None
        assert fired, process.err
        known = sendense("ls", "--repo", setting.repo, "web01", "--json").json["points"]
        new = [point["point"] for point in known if point["point"] not in setting.points]
        assert len(new) == (1 if stage in ("end", "drop") else 0)
        setting.points.update({point: now for point in new})
        setting.write(10)
        report = setting.backup()
        assert set(modes(report).values()) == {"incremental"}, report
        setting.check_clean()
    setting.check_points()


def test_a_backup_that_was_killed_while_it_copied_is_gone_on_with(setting):
    """What it stored is of another moment by then: it counts by its checksums alone."""
    setting.write(60)
    process = Process([SENDENSE, *setting.arguments("--limit-rate", "1MiB",
                                                    "--progress", "json")],
                      setting.folder, "killed")
    wait_for(lambda: '"stage":"copy"' in process.err.replace(" ", "") or not process.running,
             "the copy")
    assert process.running, process.err
    process.popen.kill()
    process.wait()
    setting.write(20)
    setting.backup()
    setting.check_clean()
    setting.write(20)
    report = setting.backup()
    assert set(modes(report).values()) == {"incremental"}
    setting.check_points()


def test_ctrl_c_gives_everything_back(setting):
    """SIGINT while it copies: the bitmap goes on, nothing is left."""
    setting.write(60)
    setting.backup()
    setting.write(60)
    process = Process([SENDENSE, *setting.arguments("--limit-rate", "100k",
                                                    "--progress", "json")],
                      setting.folder, "stopped")
    wait_for(lambda: "copy" in process.err or not process.running, "the copy")
    process.stop(expect=1)
    setting.check_clean()
    setting.write(10)
    assert set(modes(setting.backup()).values()) == {"incremental"}
    setting.check_clean()
    setting.check_points()


def test_one_disk_of_the_machine(setting):
    """qemu:SOCKET/DISK: that disk alone; the others are left in peace."""
    setting.write(10)
    arguments = [word + "/vd1" if word.startswith("qemu:") else word
                 for word in setting.arguments()]
    report = sendense(*arguments).json
    assert list(modes(report)) == ["vd1"]
    assert not setting.machine.bitmaps("vd0") and len(setting.machine.bitmaps("vd1")) == 1


def test_wrong_words(setting):
    """What is no machine, and what a machine is not."""
    repo, name = setting.repo, f"qemu:{setting.proxy.path}"
    base = ("backup", "--repo", repo, "--vm", "web01")
    plain = os.path.join(setting.folder, "plain")
    with open(plain, "wb") as file:
        file.truncate(MIB)
    fails(*base, f"qemu:{setting.folder}/nobody.qmp", contains="nobody.qmp",
          case="qemu: no such socket")
    fails(*base, f"qemu:{plain}", contains="plain", case="qemu: a file that is no socket")
    fails(*base, name + "/vdz", contains=["vdz", "vd0, vd1"], case="qemu: no such disk")
    fails(*base, "--disk", f"a={name}", status=2, contains="keys of their own",
          case="qemu: a machine as one keyed disk")
    fails(*base, f"raw:{plain}", "--no-freeze", status=2, contains="qemu:SOCKET",
          case="--no-freeze for a raw disk")
    fails(*base, name, "--scratch", f"{setting.folder}/none", contains="scratch folder",
          case="qemu: no scratch folder")
    fails(*base, name, "--bitmap", "vd0=b", "--scratch", setting.scratch, status=2,
          contains="by themselves", case="qemu: --bitmap")
    fails("copy", name, "null:1M", contains="sendense backup", case="copy: a machine")
    fails("measure", name, contains="sendense backup", case="measure: a machine")
    setting.check_clean(bitmaps=0)


def test_a_machine_without_disks(scratch):
    """There is nothing to back up, and that is said."""
    machine = Machine(scratch, disks=())
    try:
        repo = os.path.join(scratch, "repo")
        sendense("repo", "init", repo)
        fails("backup", "--repo", repo, "--vm", "x", f"qemu:{machine.qmp}", "--scratch", scratch,
              contains="no disk that can be written", case="qemu: a machine without disks")
    finally:
        machine.stop()

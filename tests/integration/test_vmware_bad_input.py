"""What can go wrong around sendense backup vmware://… and replicate vmware://…: each time a
message, nothing left, and the next run is good."""

import contextlib
import glob
import os
import shutil
import signal

import pytest

import hub
import support
from support import KIB, MIB, SENDENSE, need_mounts, run, sendense, wait_for
from test_replicate_live import Replica
from vmware_setting import (  # pylint: disable=unused-import
    SIZES, Setting, debts, disks_of, good_again, setting_fixture, setting_in)

SOAK = bool(os.environ.get("SENDENSE_SOAK"))
TIMES = 10 if SOAK else 2  # each stage, for kills

# What a backup calls; all but the creation of a snapshot may be done twice.
SAFE = ["RetrieveServiceContent", "Login", "RetrievePropertiesEx", "QueryChangedDiskAreas",
        "RemoveSnapshot_Task", "CreateContainerView", "DestroyView", "FindByInventoryPath"]


@pytest.fixture(name="either", params=["backup", "replicate"])
def either_fixture(scratch, request):
    """A setting for each of the commands."""
    with setting_in(scratch, Replica if request.param == "replicate" else Setting) as setting:
        setting.kind = request.param
        yield setting


def modes(report):
    return {disk["mode"] for disk in report["disks"]}


CHANGES = ({"incremental"}, {"delta"})  # modes(): of either


# --- the server ---------------------------------------------------------------------------------


def test_the_session_expires_before_every_call(either):
    """Each call meets an expired session once, and is repeated in another."""
    either.backup()
    either.guest_writes(2000)
    for method in SAFE[2:] + ["CreateSnapshot_Task"]:
        for skip in range(60):
            either.vc.fail(method, skip=skip, fault="NotAuthenticated")
    either.vc.calls()
    assert modes(either.backup()) in CHANGES
    assert [each["method"] for each in either.vc.calls()].count("Login") > 15
    either.vc.expire_sessions()
    good_again(either)


@pytest.mark.parametrize("trouble", [
    {"status": 503, "calls": 2}, {"slow": 1}, {"close": True}, {"cut": True}, {"drop": True},
    {"body": "<broken"}])
def test_trouble_in_every_call_that_passes(either, trouble):
    either.backup()
    either.guest_writes(2000)
    safe = SAFE if "body" in trouble or "close" in trouble else SAFE + ["CreateSnapshot_Task"]
    for method in safe:
        either.vc.fail(method, **{"calls": 1, **trouble})
    assert modes(either.backup()) in CHANGES
    assert either.machine.snapshots() == [] and debts(either) == []
    either.vc.expire_sessions()  # of logins whose answer was lost
    good_again(either)


@pytest.mark.skipif(not SOAK, reason="a call's deadline is a minute: SENDENSE_SOAK")
@pytest.mark.parametrize("method", ["QueryChangedDiskAreas", "CreateSnapshot_Task"])
def test_a_server_that_is_too_slow(setting, method):
    setting.vc.fail(method, calls=-1, slow=600)
    setting.fails(case=f"vmware backup: {method} is not answered", timeout=300,
                  contains=["no answer in time (6", setting.vc.host])
    good_again(setting)


@pytest.mark.skipif(not SOAK, reason="it is waited for, for minutes: SENDENSE_SOAK")
def test_a_server_that_goes_away(either, servers):
    """In the middle, for so long that the snapshot stays: the next run removes it."""
    either.tell(slow=300)
    process = either.start(servers)
    wait_for(lambda: either.lib.calls("read") or not process.running, "reading")
    either.vc.fail("*", calls=-1, close=True)
    assert process.wait(400) == 1, process.err
    support.bad_input(f"vmware {either.kind}: a server that goes away", process.err.splitlines()[-1])
    (debt,) = debts(either)
    (left,) = either.machine.snapshots()
    assert debt == f"debt-{left}.json" and f"the snapshot {left} of" in process.err
    assert either.lib.helpers() == []
    either.vc.heal()
    either.vc.expire_sessions()
    either.tell()
    either.backup()
    good_again(either)


@pytest.mark.parametrize("trouble", [
    {"status": 404}, {"body": "<html/>"}, {"fault": "SystemError"},
    {"body": "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"}])
@pytest.mark.parametrize("method", ["CreateSnapshot_Task", "QueryChangedDiskAreas"])
def test_answers_that_make_no_sense(setting, method, trouble):
    if method == "CreateSnapshot_Task" and "body" in trouble:
        pytest.skip("a lost answer: test_vsphere tells what is done then")
    setting.vc.fail(method, calls=-1, **trouble)
    setting.fails(case=f"vmware backup: {method}: {next(iter(trouble.values()))[:20]}"
                  if "status" not in trouble else f"vmware backup: {method}: HTTP 404",
                  contains="snapshot" if method == "CreateSnapshot_Task" else "changes of disk")
    good_again(setting)


def test_areas_that_cannot_be(either):
    """Of each kind one: they do not join, overlap, go back, go beyond what was asked for."""
    either.backup()
    for wrong in ({"start": 512}, {"start": 16 * MIB}, {"length": 0}, {"length": -5},
                  {"length": 2 ** 63 - 1, "start": 0, "areas": [(2 ** 62, 2 ** 62)]},
                  {"areas": [(4 * KIB, 4 * KIB), (4 * KIB, 4 * KIB)]},
                  {"areas": [(0, 8 * KIB), (4 * KIB, 8 * KIB)]},
                  {"areas": [(8 * KIB, 4 * KIB), (0, 4 * KIB)]},
                  {"areas": [(20 * MIB, 4 * KIB)]}, {"areas": [(-512, 4 * KIB)]}):
        either.vc.fail("QueryChangedDiskAreas", **wrong)
        either.guest_writes(2000)
        either.fails(case=f"vmware {either.kind}: changed areas {wrong}",
                      contains="asking for changes of disk 2000")
        either.check_clean()
    either.vc.heal()
    assert modes(either.backup()) in CHANGES
    good_again(either)


def test_an_answer_that_covers_more_than_the_disk(setting):
    """Only what is in the disk is taken."""
    setting.backup()
    setting.lib.forget()
    size = SIZES[2001]
    setting.vc.set_window(64 * MIB)
    setting.vc.fail("QueryChangedDiskAreas", key=2001, start=0, length=64 * MIB,
                    areas=[(0, 512), (size - 512, 2 * MIB), (40 * MIB, MIB)])
    report = disks_of(setting.backup())
    assert report[2001]["mode"] == "incremental"
    assert all(offset + length <= size for offset, length in setting.lib.areas_read())
    good_again(setting)


# --- the machine --------------------------------------------------------------------------------


@pytest.mark.parametrize("change, contains", [
    (lambda machine: machine.add_disk(2005, MIB), "disk 2005 of /DC0/vm/web01 was added"),
    (lambda machine: machine.grow(2001, 32 * MIB), "disk 2001 of /DC0/vm/web01 was resized"),
    (lambda machine: machine.remove_disk(16000), "disk 16000 of /DC0/vm/web01 was removed"),
    (lambda machine: machine.set_migrating(), "TaskInProgress")],
    ids=["added", "grown", "removed", "moved"])
def test_a_machine_that_changes_while_the_backup_begins(either, servers, change, contains):
    either.vc.held()
    either.vc.fail("CreateSnapshot_Task", slow=50)
    process = either.start(servers)
    wait_for(lambda: either.vc.held() or not process.running, "the snapshot being asked for")
    change(either.machine)
    either.vc.release()
    assert process.wait() == 1
    assert contains in process.err
    support.bad_input(f"vmware {either.kind}: meanwhile: {contains}", process.err.splitlines()[-1])
    if "TaskInProgress" in contains:
        either.machine.set_migrating(False)
    either.check_clean()
    if either.kind == "backup" or "TaskInProgress" in contains:
        good_again(either)


def test_disks_that_need_consolidation(either):
    either.machine.set_consolidation_needed()
    result = sendense(*either.words("--json"), env=either.env())
    assert "disks need consolidation" in result.err
    support.bad_input(f"vmware {either.kind}: disks that need consolidation", result.err.splitlines()[-1])
    either.check_clean()
    either.machine.set_consolidation_needed(False)
    good_again(either)


def test_a_snapshot_that_takes_long_to_remove(either, servers):
    either.vc.fail("RemoveSnapshot_Task", fault="TaskInProgress", calls=1)
    either.vc.fail("RemoveSnapshot_Task", running=3)
    process = either.start(servers, "--json")
    assert process.wait() == 0, process.err
    either.check_clean()
    good_again(either)


# --- VMware's library ---------------------------------------------------------------------------


def unusable_library(setting, case):
    """A folder."""
    folder = os.path.join(setting.folder, f"vddk-{case}")
    os.makedirs(os.path.join(folder, "lib64"))
    if case == "old":
        shutil.copy(os.path.join(setting.lib.folder, "lib64", "libvixDiskLib.so.8"),
                    os.path.join(folder, "lib64", "libvixDiskLib.so.5"))
    elif case == "nonsense":
        with open(os.path.join(folder, "lib64", "libvixDiskLib.so.8"), "wb") as file:
            file.write(b"\x7fELF and no more")
    elif case == "other":  # a library, and not VMware's
        source = run("gcc", "-shared", "-o", os.path.join(folder, "lib64", "libvixDiskLib.so.8"),
                     "-x", "c", "-", stdin=b"int something_else;")
        assert source.status == 0
    return folder


@pytest.mark.parametrize("case, contains", [
    ("empty", "libvixDiskLib.so.6 to .9"), ("old", "libvixDiskLib.so.6 to .9"),
    ("nonsense", "VDDK 6.7 to 9"), ("other", "VixDiskLib_InitEx"),
    ("broken", "VixDiskLib_Open")])
def test_libraries_of_no_use(either, case, contains):
    """They are noticed before the machine is touched."""
    folder = unusable_library(either, case)
    if case == "broken":
        folder = either.vddk_without_open()
    either.vc.calls()
    either.fails("--vddk", folder, case=f"vmware {either.kind}: the library: {case}", contains=contains)
    assert "CreateSnapshot_Task" not in [call["method"] for call in either.vc.calls()]
    good_again(either)


@pytest.mark.skipif(not SOAK, reason="it is waited for half a minute: SENDENSE_SOAK")
def test_a_library_that_hangs_while_it_is_loaded(setting):
    setting.tell(hang="load")
    setting.fails(case="vmware backup: the library hangs while it is loaded", timeout=120,
                  contains="while loading it")
    good_again(setting)


# What the helper does when it is killed.
HELPER = ["load", "init", "connect", "open", "read", "close"]


@pytest.mark.parametrize("stage", HELPER)
def test_the_helper_is_killed_in_each_stage(either, servers, stage):
    """Before what is made counts the run fails, with a message; nothing is left."""
    for _ in range(TIMES):
        either.tell(**({"slow": 500} if stage == "read" else {"hang": stage}))
        either.lib.forget()
        before = nr_made(either)
        process = either.start(servers)
        if stage == "close":  # all of them, one after the other
            wait_for(lambda: nr_made(either) > before or not process.running, stage)
            while process.running:
                for pid in either.lib.helpers():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            assert process.wait() == 0, process.err
        else:
            wait_for(lambda: either.lib.calls(stage) or not process.running, stage)
            os.kill(either.lib.helpers()[0], signal.SIGKILL)
            assert process.wait() == 1 and "was killed by signal 9" in process.err
            assert nr_made(either) == before
        assert either.lib.helpers() == []
        assert either.machine.snapshots() == [] and debts(either) == []
        if stage == "close":
            either.guest_writes(2000)
    good_again(either)


def nr_made(either):
    """Restore points, or generations."""
    if either.kind == "replicate":
        there = glob.glob(os.path.join(either.records, "*.replica.json"))
        return either.record["generation"] if there else 0
    return len(glob.glob(os.path.join(either.repo, "vms", "web01", "points", "*", "manifest.json")))


# --- who reads and stores -----------------------------------------------------------------------


def test_a_repository_that_is_full(setting, servers):
    """Before the first byte, where that is to be seen; else in the middle."""
    need_mounts(setting.folder)
    setting.machine.write(2000, 0, setting.rng.randbytes(30 * MIB))
    small = os.path.join(setting.folder, "small")
    os.mkdir(small)
    script = ('mount -t tmpfs -o size="$2"m none "$0" && "$1" repo init "$0/repo" --quiet && '
              'repo="$0/repo" && sendense="$1" && shift 2 && { "$sendense" "$@"; echo $?; '
              'ls "$repo/.incoming"; "$sendense" verify --repo "$repo" --quiet; echo $?; }')
    words = [small + "/repo" if word == setting.repo else word for word in setting.words()]
    for size, contains in (("16", "has 1"), ("200", "No space left on device")):
        setting.tell(slow=100)
        setting.lib.forget()
        process = servers.start("unshare", "-rm", "sh", "-c", script, small, SENDENSE, size, *words,
                                env=setting.env(), name="backup")
        if size == "200":
            wait_for(lambda: setting.lib.calls("read") or not process.running, "reading")
            with contextlib.suppress(OSError), open(f"/proc/{process.pid}/root{small}/fill", "wb") as file:
                for _ in range(200):
                    file.write(bytes(MIB))
        process.wait()
        assert process.out == "1\n0\n", process.err
        assert contains in process.err
        support.bad_input(f"vmware backup: a repository that runs full ({size} MiB)",
                          process.err.splitlines()[-1])
        setting.check_clean()
    good_again(setting)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_the_hub_is_gone_for_a_while(setting, servers, how):
    """The snapshot stays, and the backup ends well when the hub is there again."""
    away_s = 120 if SOAK else 3
    made = setting.vc.add_machine("big", {2000: 96 * MIB}, cbt=True)
    made.write(2000, 0, setting.rng.randbytes(96 * MIB))
    with hub.hub_in(servers) as h:
        h.start()
        setting.repo = h.url
        setting.tell(slow=40)
        process = servers.start(
            SENDENSE, *setting.words("--json", "--token-file", h.token_file, "--ca-file", h.ca_file,
                                     path="big"), env=setting.env(), name="backup")
        wait_for(lambda: sum(length for _, length in setting.lib.areas_read()) > 48 * MIB
                 or not process.running, "reading half of it")
        h.stay_at_port()
        getattr(h, how)()
        (snapshot,) = made.snapshots()
        with pytest.raises(AssertionError):
            wait_for(lambda: not process.running, "nothing", timeout=away_s)
        assert made.snapshots() == [snapshot]
        h.start()
        assert process.wait(300) == 0, process.err
        assert made.snapshots() == [] and debts(setting) == []
        setting.check_clean()
        setting.repo = h.repositories["main"]
        sendense("verify", "--repo", setting.repo, "big")
        out = os.path.join(setting.folder, "out.raw")
        sendense("restore", "--repo", setting.repo, "big", "--to", f"2000=raw:{out}")
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", made.disks[2000], out)


def test_ctrl_c_while_the_snapshot_is_removed(setting, servers):
    """The restore point is there: the removal goes on, and it has ended well."""
    setting.vc.held()
    setting.vc.fail("RemoveSnapshot_Task", slow=50)
    process = setting.start(servers, "--json")
    wait_for(lambda: "RemoveSnapshot_Task" in setting.vc.held() or not process.running, "the end")
    process.signal(signal.SIGINT)
    setting.vc.release()
    assert process.wait() == 0, process.err
    good_again(setting)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_tracking_is_switched_on(setting, servers, number):
    made = setting.vc.add_machine("fresh", {2000: MIB})
    for method in ("ReconfigVM_Task", "CreateSnapshot_Task", "RemoveSnapshot_Task"):
        setting.vc.held()
        setting.vc.fail(method, slow=50)
        process = servers.start(SENDENSE, *setting.words(path="fresh"), env=setting.env(),
                                name="backup")
        wait_for(lambda: method in setting.vc.held() or not process.running, method)
        process.signal(number)
        if method == "RemoveSnapshot_Task":
            setting.vc.release()
        assert process.wait() == 1, process.err
        setting.vc.heal()
        setting.vc.release()
        assert made.snapshots() == [] and debts(setting) == [], method
        made.disable_cbt()
    report = sendense(*setting.words("--json", path="fresh"), env=setting.env()).json
    assert report["disks"][0]["mode"] == "full" and made.snapshots() == []
    setting.vc.expire_sessions()
    setting.check_clean()


@pytest.mark.skipif(not SOAK, reason="it takes minutes: SENDENSE_SOAK")
def test_sessions_that_expire_every_ten_seconds(setting, servers):
    """Backups of more than half a minute each."""
    made = setting.vc.add_machine("big", {2000: 128 * MIB}, cbt=True)
    made.write(2000, 0, setting.rng.randbytes(128 * MIB))
    setting.vc.expire_sessions(10)
    setting.vc.set_window(MIB)
    setting.vc.calls()
    for _ in range(2):
        setting.tell(slow=1500)
        process = servers.start(SENDENSE, *setting.words("--json", path="big"), env=setting.env(),
                                name="backup")
        assert process.wait(600) == 0, process.err
        made.write(2000, 5 * MIB, setting.rng.randbytes(16 * MIB))
    logins = [each["method"] for each in setting.vc.calls()].count("Login")
    assert logins >= 3 and made.snapshots() == []
    setting.vc.expire_sessions(0)
    setting.vc.expire_sessions()
    setting.check_clean()

"""sendense backup vmware://…: a machine of the test vCenter, read through the test's own library."""

import os
import re
import signal

import pytest

import hub
import support
from support import MIB, SENDENSE, fails, run, sendense, wait_for
from vmware_setting import (  # pylint: disable=unused-import
    CHUNK, SIZES, chunks_of, debts, disks_of, good_again, setting_fixture)


def test_full_then_increments(setting, servers):
    report = setting.watched_backup(servers)
    assert {disk["mode"] for disk in report["disks"]} == {"full"}
    assert report["consistency"] == "application"
    for key, disk in disks_of(report).items():
        assert disk["read"] < SIZES[key], "what is not allocated is not read"
    setting.check_clean()
    for _ in range(2):
        setting.lib.forget()
        setting.guest_writes(2000, 3)
        report = setting.watched_backup(servers)
        assert {disk["mode"] for disk in report["disks"]} == {"incremental"}
        assert {disk["changed_by"] for disk in report["disks"]} == {"extents"}
        assert not any(disk["fallback"] for disk in report["disks"])
        setting.check_clean()
    setting.check_points()


def test_an_increment_reads_what_changed_and_no_more(setting):
    setting.backup()
    setting.lib.forget()
    written = setting.guest_writes(2000, 5)
    report = disks_of(setting.backup())
    read = chunks_of(setting.lib.areas_read())
    assert read == chunks_of(written)
    assert report[2000]["read"] == sum(min(CHUNK, SIZES[2000] - chunk * CHUNK) for chunk in read)
    assert report[2001]["read"] == report[16000]["read"] == 0
    setting.lib.forget()
    setting.backup("--audit", "100%")
    assert chunks_of(setting.lib.areas_read()) >= set(range(SIZES[2000] // CHUNK))


def test_what_a_log_tells(setting):
    """Of a first backup from a server that nobody here has."""
    told = sendense(*setting.words("--verbose", "--json"), env=setting.env()).err
    for words in (f"{setting.vc.host}: VMware vCenter Server 6.5", "API 6.5", "was taken in", ", quiesced",
                  "disk 2000: 3 answers tell of ", " bytes, since *", "library 8 reads it by nbdssl",
                  "several reads at once", "is gone, after "):
        assert words in told, words
    assert setting.vc.password not in told


def test_many_disks_share_the_hosts_memory(setting):
    setting.vc.add_machine("many", {2000 + i: MIB for i in range(20)}, cbt=True)
    assert len(setting.backup(path="many")["disks"]) == 20
    inits = [line for line in setting.lib.calls("init") if "BufCount=4" in line]
    assert len(inits) == 20 and all("BufSizeIn64KB=6" in line for line in inits)
    setting.check_clean()


def test_a_machine_that_is_off(setting):
    made = setting.vc.add_machine("off", {2000: 4 * MIB}, off=True)
    made.write(2000, MIB, b"x" * 4096)
    result = sendense(*setting.words("--json", path="off"), env=setting.env())
    assert result.json["consistency"] == "crash"
    assert "does not run" in result.json["consistency_reason"]
    made.write(2000, 2 * MIB, b"y" * 4096)
    report = setting.backup(path="off")
    assert report["disks"][0]["root"] != result.json["disks"][0]["root"]
    assert made.snapshots() == []
    setting.check_clean()


def test_what_is_kept_of_the_machine(setting):
    report = setting.backup("--vm", "shop")
    folder = os.path.join(setting.repo, "vms", "shop", "points", report["point"], "config")
    with open(os.path.join(folder, "vsphere.json"), encoding="utf-8") as file:
        machine = support.Result([], 0, file.read(), "").json
    assert machine["path"] == "/DC0/vm/web01" and machine["instance_uuid"] == \
        setting.machine.instance_uuid
    assert [disk["key"] for disk in machine["disks"]] == ["2000", "2001", "16000"]
    assert "known to the guest alone" not in str(machine)
    with open(os.path.join(folder, "nvram"), "rb") as file:
        assert file.read().startswith(b"nvram of web01")
    # By its identity, whatever it is called now.
    setting.machine.rename("web02")
    again = setting.backup(path=setting.machine.instance_uuid)
    assert again["vm"] == "shop"
    assert {disk["mode"] for disk in again["disks"]} == {"incremental"}
    setting.check_clean()


# --- what goes wrong --------------------------------------------------------------------------


def test_bad_input_before_the_snapshot(setting):
    vc = setting.vc

    def wrong(case, contains, *more, status=1, words=None):
        said = fails(*(words or setting.words(*more)), env=setting.env(), status=status,
                     contains=contains, case=f"vmware backup: {case}")
        assert vc.password not in said.err
        assert setting.machine.snapshots() == [] and vc.sessions() == 0

    wrong("no such machine", "no VM", words=setting.words(path="nope"))
    wrong("a wrong fingerprint", "another fingerprint", words=[
        "backup", "--repo", setting.repo, vc.url("web01"), "--password-file", vc.password_file,
        "--fingerprint", "AB" * 32])
    wrong("the hub's CA", "--vcenter-ca-file", "--ca-file", vc.ca, status=2)
    wrong("options of QEMU", "machine in QEMU", "--no-freeze", status=2)
    wrong("bitmap", "by itself", "--bitmap", "2000=x", status=2)
    wrong("a disk to leave out that is not there", "no disk 2005", "--skip-disk", "2005", status=2)
    fails("backup", "--repo", setting.repo, "--vm", "x", "null:1M", "--no-quiesce", status=2,
          contains="vCenter", case="vmware backup: options for another source")
    fails("backup", "--repo", setting.repo, "--vm", "x", "--disk", f"2000={vc.url('web01')}",
          status=2, contains="keys of their own", case="vmware backup: a machine as one disk")
    with open(os.path.join(setting.folder, "other"), "w", encoding="utf-8") as file:
        file.write("wrong-secret\n")
    os.chmod(file.name, 0o600)
    wrong("wrong password", "password is wrong", words=[
        "backup", "--repo", setting.repo, vc.url("web01"), "--password-file", file.name,
        "--vcenter-ca-file", vc.ca])
    setting.machine.set_template()
    wrong("a template", "is a template")
    setting.machine.set_template(False)
    setting.machine.set_migrating()
    wrong("a machine that is being moved", "is being moved")
    setting.machine.set_migrating(False)
    vc.fail("CreateSnapshot_Task", calls=-1, fault="NoPermission",
            detail={"PrivilegeId": "VirtualMachine.State.CreateSnapshot"})
    wrong("no right to make snapshots", "VirtualMachine.State.CreateSnapshot")
    good_again(setting)


def test_disks_that_no_snapshot_covers(setting):
    vc = setting.vc
    made = vc.add_machine("db", {2000: MIB, 2001: {"size": MIB, "mode": "independent_persistent"},
                                 2002: {"size": MIB, "backing": "rdm"}}, cbt=True)
    said = fails(*setting.words(path="db"), env=setting.env(),
                 case="vmware backup: disks that no snapshot covers",
                 contains=["disk 2001", "disk 2002", "--skip-unsupported"])
    assert "2000" not in said.message
    result = sendense(*setting.words("--json", "--skip-unsupported", path="db"), env=setting.env())
    assert [disk["key"] for disk in result.json["disks"]] == ["2000"]
    assert "disk 2001 (" in result.err and "is left out" in result.err
    with open(os.path.join(setting.repo, "vms", "db", "points", result.json["point"], "config",
                           "vsphere.json"), encoding="utf-8") as file:
        kept = support.Result([], 0, file.read(), "").json
    assert "independent" in kept["disks"][1]["left_out"]
    assert kept["disks"][0]["left_out"] is None
    assert made.snapshots() == []
    report = setting.backup("--skip-disk", "2001", "--skip-disk", "16000")
    assert list(disks_of(report)) == [2000]


def test_old_snapshots_and_tracking_that_is_off(setting):
    made = setting.vc.add_machine("old", {2000: MIB})
    for name in ("one", "two", "three"):
        made.take_snapshot(name)
    words = setting.words("--json", path="old")
    for _ in range(2):
        result = sendense(*words, env=setting.env())
        assert '3 snapshots of others ("one", "two", "three")' in result.err
    (disk,) = result.json["disks"]
    assert disk["mode"] == "full" and disk["fallback"]
    assert "change tracking is off" in disk["reason"] and "no snapshot" in disk["reason"]
    assert made.snapshots() == ["one", "two", "three"]
    fresh = setting.vc.add_machine("fresh", {2000: MIB})
    words = setting.words("--json", path="fresh")
    report = sendense(*words, "--no-enable-cbt", env=setting.env()).json
    assert not fresh.state()["cbt"] and report["disks"][0]["mode"] == "full"
    sendense(*words, env=setting.env())
    assert fresh.state()["cbt"] and fresh.snapshots() == []
    report = sendense(*words, env=setting.env()).json
    assert report["disks"][0]["mode"] == "incremental"
    setting.check_clean()


@pytest.mark.parametrize("case, contains", [
    ("reset", "began anew"), ("FileFault", "FileFault"), ("InvalidArgument", "InvalidArgument")])
def test_change_ids_of_no_use(setting, case, contains):
    setting.backup()
    if case == "reset":
        setting.machine.reset_cbt()
    else:
        detail = {"InvalidProperty": "changeId"} if case == "InvalidArgument" else {}
        setting.vc.fail("QueryChangedDiskAreas", fault=case, detail=detail, calls=1)
    report = disks_of(setting.backup())
    fulls = {key for key, disk in report.items() if disk["mode"] == "full"}
    assert fulls == (set(SIZES) if case == "reset" else {2000})
    assert contains in report[2000]["reason"] and report[2000]["fallback"]
    good_again(setting)


@pytest.mark.parametrize("rule", [
    {"areas": [(0, 512), (4096, 512)], "length": 8192},  # covers a part: the next call goes on
    {"status": 503, "calls": 3}, {"body": "<broken", "calls": 2}, {"close": True, "calls": 2}])
def test_answers_that_get_better(setting, servers, rule):
    if "areas" not in rule:
        setting.vc.fail("QueryChangedDiskAreas", **rule)
    setting.vc.set_window(MIB)
    setting.vc.expire_sessions(1)
    for _ in range(2):
        setting.watched_backup(servers)
        setting.guest_writes(2000)
    setting.vc.expire_sessions()
    setting.vc.expire_sessions(0)
    setting.check_points()
    setting.check_clean()


def test_answers_that_do_not_join(setting):
    setting.vc.fail("QueryChangedDiskAreas", calls=1, start=MIB, length=MIB, areas=[])
    setting.fails(case="vmware backup: answers that do not join", contains="the answer covers")
    good_again(setting)


def test_disks_that_change(setting):
    setting.backup()
    setting.machine.grow(2001, 32 * MIB)
    setting.machine.add_disk(2003, 2 * MIB)
    setting.machine.remove_disk(16000)
    result = sendense(*setting.words("--json"), env=setting.env())
    report = disks_of(result.json)
    assert {key: disk["mode"] for key, disk in report.items()} == \
        {2000: "incremental", 2001: "full", 2003: "full"}
    assert "resized" in report[2001]["reason"] and "has no disk 2003" in report[2003]["reason"]
    assert "disk 16000 of restore point" in result.err
    setting.check_clean()


@pytest.mark.parametrize("how, contains", [
    ({"read": 5}, "NFC error 5"), ({"crash": 3}, "the process that runs VMware's library"),
    ({"open": 1}, "disk 2000"),
    ({"thumbprint": "00" * 20}, "disk 2000")])
def test_the_library_fails(setting, how, contains):
    setting.tell()
    setting.lib.tell(**{"thumbprint": setting.vc.sha1, "password": setting.vc.password, **how})
    setting.fails(case=f"vmware backup: the library: {next(iter(how))}", contains=contains)
    good_again(setting)


def test_no_library(setting):
    setting.vc.calls()
    fails(*setting.words("--vddk", "/nonexistent"), env=setting.env(),
          case="vmware backup: no library", contains="libvixDiskLib")
    assert "CreateSnapshot_Task" not in [call["method"] for call in setting.vc.calls()]
    good_again(setting)


def test_the_guests_tools_refuse(setting):
    setting.vc.fail("CreateSnapshot_Task", quiesce=True, task="ApplicationQuiesceFault")
    report = setting.backup()
    assert report["consistency"] == "crash"
    assert "ApplicationQuiesceFault" in report["consistency_reason"]
    report = setting.backup("--no-quiesce")
    assert report["consistency"] == "crash" and "not to be" in report["consistency_reason"]
    setting.check_clean()


def test_somebody_removes_the_snapshot(setting, servers):
    setting.tell(slow=300)
    process = setting.start(servers)
    wait_for(lambda: setting.lib.calls("read") or not process.running, "reading")
    setting.machine.remove_snapshot(setting.machine.state()["snapshots"][0]["ref"])
    assert process.wait() == 1
    assert "removed by somebody else" in process.err
    good_again(setting)


# --- debts ---------------------------------------------------------------------------------------


def test_a_snapshot_that_cannot_be_removed_is_a_debt(setting):
    theirs = setting.machine.take_snapshot("sendense-of-somebody-else")
    setting.vc.fail("RemoveSnapshot_Task", calls=-1, task="InvalidState")
    result = sendense(*setting.words("--json"), env=setting.env())
    (debt,) = debts(setting)
    left = debt[len("debt-"):-len(".json")]
    assert f"the snapshot {left} of /DC0/vm/web01 is still there" in result.err
    assert debt in result.err
    setting.fails(case="vmware backup: a snapshot that cannot be removed", contains=[left, debt])
    assert debts(setting) == [debt]
    words = "vmware", "debts", "--state-dir", setting.state
    assert f"{left} of /DC0/vm/web01 at 127.0.0.1: left at" in sendense(*words).out
    (told,) = sendense(*words, "--json").json["debts"]
    assert told["snapshot"] == left and not told["alive"]
    assert told["instance_uuid"] == setting.machine.instance_uuid
    setting.vc.heal()
    result = sendense(*setting.words("--json"), env=setting.env())
    assert f"the snapshot {left}, which an earlier backup left" in result.err
    assert setting.machine.snapshots() == ["sendense-of-somebody-else"]
    assert sendense(*words).out == "no snapshot is to be removed\n"
    setting.machine.remove_snapshot(theirs)
    setting.check_clean()


def collect_words(setting, *more, path=""):
    return ["vmware", "collect", setting.vc.url(path), "--password-file", setting.vc.password_file,
            "--ca-file", setting.vc.ca, "--state-dir", setting.state, *more]


def leave_debt(setting, servers, path="DC0/vm/web01"):
    """What a backup that is killed while it reads leaves: the snapshot's name."""
    before = set(debts(setting)) if os.path.isdir(setting.state) else set()
    setting.tell(slow=500)
    setting.lib.forget()
    process = servers.start(SENDENSE, *setting.words(path=path), env=setting.env(), name="backup")
    wait_for(lambda: setting.lib.calls("read") or not process.running, "reading")
    process.signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not setting.lib.helpers(), "the helpers to end")
    setting.tell()
    setting.vc.expire_sessions()
    (new,) = set(debts(setting)) - before
    return new[len("debt-"):-len(".json")]


def test_debts_collected(setting, servers):
    theirs = setting.machine.take_snapshot("sendense-of-somebody-else")
    other = setting.vc.add_machine("db01", {2000: MIB}, cbt=True)
    other.write(2000, 0, b"x" * MIB)
    left = leave_debt(setting, servers)
    left_there = leave_debt(setting, servers, path="db01")
    # One machine's, then all that there are.
    result = sendense(*collect_words(setting, path="db01"))
    assert result.out.startswith(f"removed {left_there} of /DC0/vm/db01 at 127.0.0.1, left at 20")
    assert other.snapshots() == [] and left in setting.machine.snapshots()
    # A machine that another session has is left to it.
    setting.tell(slow=500)
    setting.lib.forget()
    running = servers.start(SENDENSE, *setting.words(path="db01"), env=setting.env(), name="backup")
    wait_for(lambda: setting.lib.calls("read") or not running.running, "reading")
    told = sendense(*collect_words(setting, "--json")).json
    assert [debt["snapshot"] for debt in told["removed"]] == [left]
    (alive,) = told["left"]
    assert alive["path"] == "/DC0/vm/db01" and f"process {running.popen.pid}" in alive["why"]
    running.signal(signal.SIGTERM)
    assert running.wait() == 1
    setting.tell()
    assert setting.machine.snapshots() == ["sendense-of-somebody-else"]
    assert sendense(*collect_words(setting, "--json")).json == {"removed": [], "left": []}
    setting.machine.remove_snapshot(theirs)
    setting.check_clean()


def test_debts_that_cannot_be_collected(setting, servers):
    left = leave_debt(setting, servers)
    # Of another server than this one is.
    path = os.path.join(setting.state, f"debt-{left}.json")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with open(f"{path[:-5]}0.json", "w", encoding="utf-8") as file:
        file.write(re.sub('"vcenter":"[^"]*"', '"vcenter":"another"', text))
    setting.vc.fail("RemoveSnapshot_Task", calls=-1, task="InvalidState")
    result = fails(*collect_words(setting, "--json"), case="vmware collect: a server that refuses",
                   contains=["is still there", left, "InvalidState"])
    assert left in setting.machine.snapshots(), result
    setting.vc.heal()
    fails(*collect_words(setting, path="none"), case="vmware collect: no such machine",
          contains="none")
    assert len(debts(setting)) == 2
    sendense(*collect_words(setting))
    assert debts(setting) == [f"debt-{left}0.json"] and setting.machine.snapshots() == []
    # A machine that is gone, or that this user may not see.
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace(setting.machine.instance_uuid, "no-such-machine"))
    fails(*collect_words(setting), case="vmware collect: the machine is gone",
          contains=["if the machine was deleted", path])
    os.unlink(path)
    os.unlink(f"{path[:-5]}0.json")
    setting.check_clean()


TIMES = 10 if os.environ.get("SENDENSE_SOAK") else 1  # each stage

# What a backup waits in when it is killed: a call, after how many others of its kind; what
# VMware's library does.
STAGES = {
    "login": ("Login", 0), "facts": ("RetrievePropertiesEx", 2), "asking": ("CreateSnapshot_Task", 0),
    "looking": ("RetrievePropertiesEx", 13), "areas": ("QueryChangedDiskAreas", 1),
    "opening": "hang=open", "reading": "slow=500", "removing": ("RemoveSnapshot_Task", 0)}


def start_until(setting, servers, stage):
    """A backup that is in that stage, and stays there for a while."""
    what = STAGES[stage]
    if isinstance(what, str):
        name, _, value = what.partition("=")
        setting.tell(**{name: value})
        process = setting.start(servers)
        word = "read" if stage == "reading" else "open"
        wait_for(lambda: setting.lib.calls(word) or not process.running, stage)
    else:
        setting.vc.held()
        setting.vc.fail(what[0], slow=20, calls=1, skip=what[1])
        process = setting.start(servers)
        wait_for(lambda: what[0] in setting.vc.held() or not process.running, stage)
    assert process.running, process.err
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", list(STAGES))
def test_killed_in_each_stage(setting, servers, stage, number):
    if stage == "removing" and number != signal.SIGKILL:
        pytest.skip("it is not given up any more")
    vc = setting.vc
    for _ in range(TIMES):
        setting.lib.forget()
        setting.guest_writes(2000, 6)
        process = start_until(setting, servers, stage)
        process.signal(number)
        status = process.wait()
        wait_for(lambda: not setting.lib.helpers(), "the end of the helpers")
        vc.heal()
        setting.tell()
        if number == signal.SIGKILL:
            assert len(debts(setting)) == (0 if stage in ("login", "facts") else 1)
            assert len(setting.machine.snapshots()) == \
                (0 if stage in ("login", "facts", "asking") else 1)
        else:
            assert status == 1, process.err
            assert setting.machine.snapshots() == [] and debts(setting) == []
        setting.backup()
        vc.expire_sessions()  # one that was killed did not log out
        assert setting.machine.snapshots() == [] and debts(setting) == []
        setting.check_clean()


def test_one_backup_of_a_machine_at_a_time(setting, servers):
    setting.tell(slow=300)
    process = setting.start(servers)
    wait_for(lambda: setting.lib.calls("read") or not process.running, "reading")
    setting.fails(case="vmware backup: another one of the same machine",
                  contains=["another backup", f"process {process.pid}"])
    process.signal(signal.SIGINT)
    assert process.wait() == 1
    good_again(setting)


def test_killed_while_the_snapshot_is_being_made(setting, servers):
    """The server goes on with it; the next backup waits until it is there, and removes it."""
    setting.vc.calls()
    setting.vc.fail("CreateSnapshot_Task", calls=1, running=4)
    process = setting.start(servers)
    seen = []

    def asked():
        seen.extend(call["method"] for call in setting.vc.calls())
        return "CreateSnapshot_Task" in seen or not process.running

    wait_for(asked, "the snapshot's task")
    process.signal(signal.SIGKILL)
    process.wait()
    assert setting.machine.snapshots() == [] and len(debts(setting)) == 1
    result = sendense(*setting.words("--json"), env=setting.env())
    assert "which an earlier backup left" in result.err
    setting.vc.expire_sessions()
    setting.check_clean()


def test_killed_while_tracking_is_switched_on(setting, servers):
    """The snapshot of the stun is a debt as well."""
    made = setting.vc.add_machine("fresh", {2000: MIB})
    setting.vc.fail("RemoveSnapshot_Task", slow=20, calls=1)
    process = servers.start(SENDENSE, *setting.words(path="fresh"), env=setting.env())
    wait_for(lambda: setting.vc.held() or not process.running, "the stun's end")
    process.signal(signal.SIGKILL)
    process.wait()
    setting.vc.heal()
    (name,) = made.snapshots()
    assert debts(setting) == [f"debt-{name}.json"]
    for mode in ("full", "incremental"):
        report = sendense(*setting.words("--json", path="fresh"), env=setting.env()).json
        assert report["disks"][0]["mode"] == mode
    setting.vc.expire_sessions()
    assert made.snapshots() == []
    setting.check_clean()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_increment_that_was_killed_is_gone_on_with(setting, servers, number):
    """With another snapshot: what is stored is compared with that one."""
    setting.watched_backup(servers)
    setting.guest_writes(2000, 30)
    process = start_until(setting, servers, "reading")
    wait_for(lambda: len(setting.lib.calls("read")) > 60 or not process.running, "some reads")
    process.signal(number)
    process.wait()
    wait_for(lambda: not setting.lib.helpers(), "the end of the helpers")
    setting.tell()
    setting.guest_writes(2000, 10)
    setting.guest_writes(16000, 10)
    report = setting.watched_backup(servers)
    assert {disk["mode"] for disk in report["disks"]} == {"incremental"}
    setting.vc.expire_sessions()
    setting.check_clean()
    setting.check_points()


def test_a_helper_is_killed(setting, servers):
    process = start_until(setting, servers, "reading")
    os.kill(setting.lib.helpers()[0], signal.SIGKILL)
    assert process.wait() == 1
    assert "was killed by signal 9" in process.err and "the unfinished job is kept" in process.err
    good_again(setting)


def test_into_a_hub(setting, servers):
    with hub.hub_in(servers) as h:
        h.start()
        setting.repo = h.url
        trust = ["--token-file", h.token_file, "--ca-file", h.ca_file]
        for mode in ("full", "incremental"):
            setting.lib.forget()
            report = setting.watched_backup(servers, *trust)
            assert {disk["mode"] for disk in report["disks"]} == {mode}
        assert report["vm"] == "web01" and report["consistency"] == "application"
        setting.guest_writes(2000)
        setting.check_clean()
        setting.repo = h.repositories["main"]
        setting.check_points()
        kept = os.path.join(setting.repo, "vms", "web01", "points", report["point"], "config")
        assert sorted(os.listdir(kept)) == ["nvram", "vsphere.json"]


def test_an_audit_finds_tracking_to_be_wrong(setting):
    setting.backup()
    setting.guest_writes(2000, 3)
    setting.vc.fail("QueryChangedDiskAreas", calls=1, areas=[], start=0, length=SIZES[2000])
    setting.fails("--audit", "100%", case="vmware backup: tracking that forgot something",
                  contains=["disk 2000", "unchanged"])
    setting.check_clean()
    report = disks_of(setting.backup())
    assert report[2000]["mode"] == "full" and "audit" in report[2000]["reason"]
    assert report[2001]["mode"] == "incremental"


def test_the_hubs_nbd_service_dies(setting, servers):
    """The snapshot stays; what is stored is not read again."""
    made = setting.vc.add_machine("big", {2000: 160 * MIB}, cbt=True)
    made.write(2000, 0, setting.rng.randbytes(160 * MIB))
    with hub.hub_in(servers) as h:
        h.start()
        setting.repo = h.url
        setting.tell(slow=40)
        process = servers.start(
            SENDENSE, *setting.words("--json", "--token-file", h.token_file, "--ca-file", h.ca_file,
                                     path="big"), env=setting.env())
        wait_for(lambda: sum(length for _, length in setting.lib.areas_read()) > 120 * MIB
                 or not process.running, "reading most of it")
        os.kill(h.nbd_service(), signal.SIGKILL)
        setting.lib.forget()
        assert process.wait() == 0, process.err
        assert "beginning again" in process.err
        (disk,) = support.Result([], 0, process.out, "").json["disks"]
        assert disk["resumed"] == "resumed" and disk["kept"] > 0
        assert sum(length for _, length in setting.lib.areas_read()) < 160 * MIB
        assert made.snapshots() == []
        setting.check_clean()
        setting.repo = h.repositories["main"]
        sendense("verify", "--repo", setting.repo, "big")
        out = os.path.join(setting.folder, "out.raw")
        sendense("restore", "--repo", setting.repo, "big", "--to", f"2000=raw:{out}")
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", made.disks[2000], out)

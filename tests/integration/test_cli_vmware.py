"""sendense vmware ls, info, cbt: against the test vCenter."""

import os
import signal

import pytest

import support
import vcenter
from support import MIB, fails, sendense


@pytest.fixture
def vc(scratch):
    with vcenter.fake_in(scratch) as fake:
        yield fake


def trust(vc):
    return "--password-file", vc.password_file, "--ca-file", vc.ca


def test_ls(vc):
    vc.add_machine("web01", {2000: MIB, 2001: MIB}, folder="a", cbt=True)
    vc.add_machine("db", {2000: MIB}, off=True)
    vc.add_machine("gold", {2000: MIB}, folder="ab").set_template()
    out = sendense("vmware", "ls", vc.url(), *trust(vc)).out.splitlines()
    assert out[0].split() == ["POWER", "CBT", "DISKS", "USED", "PATH"]
    assert [line.split()[0:3] + [line.split()[-1]] for line in out[1:]] == [
        ["on", "on", "2", "/DC0/vm/a/web01"], ["template", "off", "1", "/DC0/vm/ab/gold"],
        ["off", "off", "1", "/DC0/vm/db"]]
    report = sendense("vmware", "ls", "--json", vc.url("DC0/vm/a/"), "--password-file",
                      vc.password_file, "--fingerprint", vc.sha256).json
    assert [each["name"] for each in report["vms"]] == ["web01"]
    assert report["server"]["fingerprint"] == vc.sha256
    fails("vmware", "ls", vc.url("DC0/vm/x"), *trust(vc), contains="no VM below /DC0/vm/x")
    assert vc.sessions() == 0


def test_info(vc):
    made = vc.add_machine("web01", {2000: 2 * MIB, 2001: {"size": MIB,
                                                          "mode": "independent_persistent"}})
    made.take_snapshot("before the update")
    report = sendense("vmware", "info", "--json", vc.url("web01"), *trust(vc)).json
    assert report["path"] == "/DC0/vm/web01" and report["power"] == "on"
    assert [(each["key"], each["size"]) for each in report["disks"]] == \
        [("2000", 2 * MIB), ("2001", MIB)]
    assert report["disks"][0]["unsupported"] is None
    assert "independent" in report["disks"][1]["unsupported"]
    assert [each["name"] for each in report["snapshots"]] == ["before the update"]
    text = sendense("vmware", "info", vc.url(made.instance_uuid), *trust(vc),
                    env=dict(os.environ, SENDENSE_VMWARE_PASSWORD_FILE="/nonexistent")).out
    for part in ("/DC0/vm/web01", "change tracking: off", "not supported", "before the update"):
        assert part in text
    assert vc.sessions() == 0


@pytest.fixture(name="state")
def state_fixture(scratch, monkeypatch):
    folder = os.path.join(scratch, "debts")
    monkeypatch.setenv("SENDENSE_STATE_DIR", folder)
    return folder


def test_cbt(vc, state):
    made = vc.add_machine("web01", {2000: MIB})
    env = dict(os.environ, SENDENSE_VMWARE_PASSWORD_FILE=vc.password_file)
    url = vc.url("DC0/vm/web01")
    out = sendense("vmware", "cbt", url, "--ca-file", vc.ca, env=env).out
    assert "change tracking is off" in out and "not tracked" in out
    out = sendense("vmware", "cbt", "--enable", url, "--ca-file", vc.ca, env=env).out
    assert "is on, from now on (a snapshot was made and removed for it)" in out
    assert made.snapshots() == []
    report = sendense("vmware", "cbt", "--enable", "--json", url, *trust(vc)).json
    assert report["enabled"] and report["was_enabled"] and not report["stunned"]
    assert "/" in report["disks"][0]["change_id"]
    made.disable_cbt()
    for name in ("one", "two", "three"):
        made.take_snapshot(name)
    fails("vmware", "cbt", "--enable", url, *trust(vc), case="change tracking, with old snapshots",
          contains=["3 snapshots", "\"one\", \"two\", \"three\""])
    assert vc.sessions() == 0 and os.listdir(state) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_cbt_that_is_killed_in_the_stun(vc, state, servers, number):
    """Its snapshot is written down: the next one removes it."""
    made = vc.add_machine("web01", {2000: MIB})
    words = "vmware", "cbt", "--enable", vc.url("web01"), *trust(vc)
    vc.fail("RemoveSnapshot_Task", slow=20)
    process = servers.start(support.SENDENSE, *words)
    support.wait_for(lambda: vc.held() or not process.running, "the stun's end")
    fails(*words, case="change tracking, while it is being switched on",
          contains=["is at work", f"process {process.pid}"])
    process.signal(number)
    if number == signal.SIGINT:
        vc.heal()
        vc.release()
    process.wait()
    vc.expire_sessions()
    if number == signal.SIGKILL:
        vc.heal()
        vc.release()
        (left,) = made.snapshots()
        assert f"debt-{left}.json" in os.listdir(state)
        assert left in sendense("vmware", "debts").out
    else:
        assert process.wait() == 1 and made.snapshots() == [] and os.listdir(state) == []
    sendense(*words)
    assert made.snapshots() == [] and os.listdir(state) == []
    assert made.state()["cbt"] and vc.sessions() == 0


def test_cbt_whose_snapshot_stays(vc, state):
    made = vc.add_machine("web01", {2000: MIB})
    words = "vmware", "cbt", "--enable", vc.url("web01"), *trust(vc)
    vc.fail("RemoveSnapshot_Task", calls=-1, task="InvalidState")
    said = fails(*words, case="change tracking, whose snapshot cannot be removed",
                 contains="InvalidState")
    (left,) = made.snapshots()
    assert left in said.err and f"debt-{left}.json" in os.listdir(state)
    vc.heal()
    sendense(*words)
    assert made.snapshots() == [] and os.listdir(state) == []


def test_bad_input(vc, scratch, state):
    made = vc.add_machine("web01", {2000: MIB})
    url = vc.url("web01")

    def wrong(case, contains, *words, status=1, where=url):
        return fails("vmware", "info", where, *words, case=f"vCenter: {case}", contains=contains,
                     status=status)

    wrong("no password", "--password-file", "--ca-file", vc.ca, status=2)
    wrong("a password in the URL", "password, which comes from a file", *trust(vc), status=2,
          where=url.replace("@127", ":secret@127"))
    open_to_all = os.path.join(scratch, "open")
    with open(open_to_all, "w", encoding="utf-8") as file:
        file.write(vc.password)
    os.chmod(open_to_all, 0o644)
    wrong("a password that others may read", "chmod 600", "--password-file", open_to_all)
    os.chmod(open_to_all, 0o600)
    with open(open_to_all, "w", encoding="utf-8") as file:
        file.write("two\nlines\n")
    wrong("a file that is no password", "one line", "--password-file", open_to_all, status=2)
    with open(open_to_all, "w", encoding="utf-8") as file:
        file.write("wrong-secret\n")
    said = wrong("wrong password", "user's name or password is wrong", "--password-file",
                 open_to_all, "--ca-file", vc.ca)
    assert "wrong-secret" not in said.err
    wrong("certificate of no known CA", [f"--fingerprint {vc.sha256}", "not trusted"],
          "--password-file", vc.password_file)
    wrong("wrong fingerprint", "another fingerprint", "--password-file", vc.password_file,
          "--fingerprint", "AB" * 32)
    wrong("no such path", "/DC0/vm is there", *trust(vc), where=vc.url("DC0/vm/nope"))
    wrong("no such name", "no VM \"nope\"", *trust(vc), where=vc.url("nope"))
    vc.fail("*", calls=-1, fault="NoPermission", detail={"PrivilegeId": "System.View"}, skip=1)
    wrong("missing privilege", "privilege System.View", *trust(vc))
    vc.heal()
    vc.fail("RetrievePropertiesEx", calls=-1, body="<html><body>Sorry</p>")
    wrong("broken XML", "is not XML", *trust(vc))
    vc.heal()
    made.set_template()
    fails("vmware", "cbt", "--enable", url, *trust(vc), case="change tracking of a template",
          contains="is a template")
    made.set_template(False)
    made.set_migrating()
    fails("vmware", "cbt", "--enable", url, *trust(vc), case="change tracking of a VM on the move",
          contains="is being moved")
    made.set_migrating(False)
    assert made.snapshots() == [] and vc.sessions() == 0 and os.listdir(state) == []

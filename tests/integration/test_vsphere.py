"""The SOAP client (src/vsphere), through vsphere_tool, against the test vCenter."""

import contextlib
import http.client
import http.server
import json
import os
import signal
import ssl
import subprocess
import threading
import time
import urllib.parse
import xml.etree.ElementTree

import pytest

import support
import vcenter
from support import KIB, MIB

TOOL = os.path.join(os.environ.get("SENDENSE_BUILD", ""), "tests/unit/vsphere/vsphere_tool")


class Failed(Exception):
    """What an order failed with: .code, .text."""

    def __init__(self, error):
        super().__init__(f"{error['code']}: {error['text']}")
        self.code, self.text = error["code"], error["text"]


class Session:
    """vsphere_tool: one session, step by step."""

    def __init__(self, vc, user=None, password_file=None, **settings):
        if "fingerprint" not in settings:
            settings.setdefault("ca_file", vc.ca)
        settings = {"url": vc.url(user=user), "password_file": password_file or vc.password_file,
                    **settings}
        self.err_path = os.path.join(vc.folder, "tool.err")
        with open(self.err_path, "ab") as err:
            self.popen = subprocess.Popen(  # pylint: disable=consider-using-with
                [TOOL, json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=err)

    def answer(self):
        line = support.read_line(self.popen.stdout, "an answer of vsphere_tool")
        assert line, open(self.err_path, encoding="utf-8").read()
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["ok"]

    def ask(self, op, **values):
        self.popen.stdin.write(json.dumps({"op": op, **values}).encode() + b"\n")
        self.popen.stdin.flush()

    def do(self, op, **values):
        self.ask(op, **values)
        return self.answer()

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.close()
        status = self.popen.wait(support.TIMEOUT)
        self.popen.stdout.close()
        return status

    @property
    def log(self):
        with open(self.err_path, encoding="utf-8") as file:
            return file.read()


@contextlib.contextmanager
def session(vc, **settings):
    """A session that is open, and closed at the end, well."""
    tool = Session(vc, **settings)
    try:
        tool.answer()
        yield tool
    except BaseException:
        tool.close()
        raise
    assert tool.close() == 0, tool.log


@pytest.fixture
def vc(scratch):
    with vcenter.fake_in(scratch) as fake:
        yield fake


class fails:  # pylint: disable=invalid-name
    """A context in which an order fails with this code (or one of several), and a text that has
    all that."""

    def __init__(self, code, *contains):
        self.codes, self.contains, self.text = code if isinstance(code, tuple) else (code,), contains, ""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        assert kind is Failed, error or "it did not fail"
        assert error.code in self.codes, error
        for text in self.contains:
            assert text in error.text, error
        self.text = error.text
        return True


def methods(vc):
    return [each["method"] for each in vc.calls()]


# --- whom to trust, and who one is ---


def test_certificates(vc):
    for trust in ({"ca_file": vc.ca}, {"fingerprint": vc.sha256},
                  {"fingerprint": vc.sha256.replace(":", "").lower()}):
        with session(vc, **trust) as tool:
            about = tool.do("about")
            assert about["sha256"] == vc.sha256 and about["sha1"] == vc.sha1
            assert about["is_vcenter"] and about["version"] == "6.5" and about["uuid"]
    assert vc.sessions() == 0
    vc.calls()
    with fails("denied", "another fingerprint", vc.sha256):
        with session(vc, fingerprint="00" * 32):
            pass
    with fails("denied", "not trusted", f"--fingerprint {vc.sha256}"):
        with session(vc, fingerprint=None):
            pass
    with fails("usage", "SHA-256"):
        with session(vc, fingerprint="00" * 20):
            pass
    with fails("usage", "either"):
        with session(vc, ca_file=vc.ca, fingerprint=vc.sha256):
            pass
    other = os.path.join(vc.folder, "other.pem")
    support.run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other",
                "-days", "2", "-keyout", os.path.join(vc.folder, "other.key"), "-out", other)
    with fails("denied", "not trusted", "must be the CA"):
        with session(vc, ca_file=other):
            pass
    # Nothing was said to a server that is not trusted.
    assert methods(vc) == []


def test_wrong_password_and_user(vc):
    wrong = os.path.join(vc.folder, "wrong")
    with open(wrong, "w", encoding="utf-8") as file:
        file.write("nonsense-secret")
    with fails("denied", "logging in", "user's name or password is wrong") as failed:
        with session(vc, password_file=wrong):
            pass
    assert "nonsense" not in failed.text
    with fails("denied", "password is wrong"):
        with session(vc, user="nobody"):
            pass
    assert vc.sessions() == 0


# --- which VMs ---


def test_list_and_find(vc):
    made = [vc.add_machine("web01", {2000: MIB}, folder="a"),
            vc.add_machine("db 100% ü", {2000: MIB, 2001: MIB}, off=True),
            vc.add_machine("web02", {2000: MIB}, folder="b")]
    made[2].rename("web01")
    vc.add_machine("gold", {2000: MIB}).set_template()
    for page in (0, 1, 3):
        vc.set_page(page)
        with session(vc) as tool:
            vms = {each["path"]: each for each in tool.do("list")}
            assert list(vms) == sorted(vms) and len(vms) == 4
            assert vms["/DC0/vm/a/web01"]["moref"] == made[0].ref
            assert vms["/DC0/vm/gold"]["template"] and not vms["/DC0/vm/a/web01"]["template"]
            assert vms[made[1].path]["disks"] == 2 and vms[made[1].path]["power"] == "off"
            for what in (made[0].path, made[0].path[1:], made[0].instance_uuid,
                         "/" + made[0].instance_uuid.upper()):
                assert tool.do("vm", what=what)["moref"] == made[0].ref, what
            assert tool.do("vm", what="gold")["path"] == "/DC0/vm/gold"
            assert tool.do("vm", what=made[2].uuid)["moref"] == made[2].ref
            assert tool.do("vm", what=made[1].path)["path"] == made[1].path
            with fails("refused", "2 VMs are \"web01\"", "/DC0/vm/a/web01, /DC0/vm/b/web01"):
                tool.do("vm", what="/web01")
            with fails("not-found", "no VM \"nope\" among the 4"):
                tool.do("vm", what="nope")
            with fails("not-found", "/DC0/vm/a is there (a Folder)"):
                tool.do("vm", what="DC0/vm/a/nope/deeper")
            with fails("not-found", "begin with a datacenter"):
                tool.do("vm", what="/X/vm/nope")
            with fails("refused", "no VM, but a Folder"):
                tool.do("vm", what="DC0/vm/a")
            with fails("not-found", "vm-99999"):
                tool.do("vm", vm="vm-99999")
            with fails("usage", "which VM"):
                tool.do("vm", what="/")
    assert "DestroyView" in methods(vc)
    assert vc.sessions() == 0


def test_facts(vc):
    made = vc.add_machine("web01", {
        16000: 3 * MIB, 2000: 2 * MIB, 2001: {"size": MIB, "mode": "independent_persistent"},
        2002: {"size": MIB, "backing": "rdm"}, 2003: {"size": MIB, "backing": "sesparse"},
        2004: {"size": MIB, "sharing": "sharingMultiWriter"}}, cbt=True, version="vmx-19")
    first = made.take_snapshot("one <&>")
    second = made.take_snapshot("two")
    with session(vc) as tool:
        vm = tool.do("vm", vm=made.ref)
        assert vm["path"] == "/DC0/vm/web01" and vm["datacenter"] == "/DC0"
        assert vm["power"] == "on" and vm["connection"] == "connected" and vm["host"]
        assert [(each["moref"], each["name"], each["depth"], each["current"])
                for each in vm["snapshots"]] == \
            [(first, "one <&>", 0, False), (second, "two", 1, True)]
        config = vm["config"]
        assert config["hardware"] == 19 and config["cbt"] and not config["template"]
        assert config["instance_uuid"] == made.instance_uuid and config["bios_uuid"] == made.uuid
        assert [(each["key"], each["capacity"]) for each in config["disks"]] == \
            [(2000, 2 * MIB), (2001, MIB), (2002, MIB), (2003, MIB), (2004, MIB), (16000, 3 * MIB)]
        why = {each["key"]: each["unsupported"] for each in config["disks"]}
        assert why[2000] is why[2003] is why[16000] is None
        assert "independent" in why[2001] and "physical" in why[2002]
        assert "several VMs" in why[2004]
        assert config["xml"].startswith("<config ") and "web01" in config["xml"]
        made.set_migrating()
        made.set_consolidation_needed()
        vm = tool.do("vm", vm=made.ref)
        assert "relocate" in vm["migration"].lower() and vm["consolidation_needed"]


# --- changed-block tracking ---


def test_enabling_cbt(vc):
    made = vc.add_machine("web01", {2000: MIB, 2001: {"size": MIB, "mode": "independent_persistent"}})
    off = vc.add_machine("off", {2000: MIB}, off=True)
    old = vc.add_machine("old", {2000: MIB}, version="vmx-04")
    with session(vc) as tool:
        vc.calls()
        assert tool.do("cbt", vm=made.ref) == \
            {"was_enabled": False, "stunned": True, "disks": 1, "tracked": 1}
        assert made.snapshots() == [] and made.state()["cbt"]
        assert methods(vc).count("CreateSnapshot_Task") == 1
        assert tool.do("cbt", vm=made.ref) == \
            {"was_enabled": True, "stunned": False, "disks": 1, "tracked": 1}
        assert methods(vc).count("CreateSnapshot_Task") == 0
        # A disk that came later is tracked from the next stun on.
        made.add_disk(2016, MIB)
        assert tool.do("cbt", vm=made.ref) == \
            {"was_enabled": True, "stunned": True, "disks": 2, "tracked": 2}
        found = tool.do("cbt", vm=off.ref)
        assert not found["was_enabled"] and not found["stunned"]
        with fails("refused", "hardware version 4", "upgrade"):
            tool.do("cbt", vm=old.ref)
        made.disable_cbt()
        made.take_snapshot("keep \"me\"")
        made.take_snapshot("and me")
        with fails("refused", "has 2 snapshots", "\"keep \"me\"\", \"and me\"", "remove them"):
            tool.do("cbt", vm=made.ref)
        off.set_template()
        off.disable_cbt()
        with fails("refused", "template"):
            tool.do("cbt", vm=off.ref)
        assert made.snapshots() == ["keep \"me\"", "and me"]


def test_cbt_leaves_no_snapshot_when_it_fails(vc):
    made = vc.add_machine("web01", {2000: MIB})
    with session(vc) as tool:
        vc.fail("CreateSnapshot_Task", task="GenericVmConfigFault")
        with fails("refused", "GenericVmConfigFault"):
            tool.do("cbt", vm=made.ref)
        vc.fail("CreateSnapshot_Task", running=30)
        tool.ask("cbt", vm=made.ref)
        support.wait_for(lambda: "CreateSnapshot_Task" in methods(vc), "the stun")
        tool.popen.send_signal(signal.SIGTERM)
        with fails("cancelled"):
            tool.answer()
    support.wait_for(lambda: made.snapshots() == [], "no snapshot")


# --- snapshots ---


def test_snapshots(vc):
    made = vc.add_machine("web01", {2000: 2 * MIB, 16000: MIB}, cbt=True)
    with session(vc) as tool:
        taken = tool.do("snapshot", vm=made.ref, name="job-1 <&>", quiesce=True)
        assert taken["quiesced"] and taken["why_not"] == ""
        assert tool.do("find", vm=made.ref, name="job-1 <&>") == taken["moref"]
        assert tool.do("find", vm=made.ref, name="job-1") is None
        config = tool.do("config", snapshot=taken["moref"])
        disks = {each["key"]: each for each in config["disks"]}
        assert disks[2000]["file"] == "[LocalDS_0] web01/web01.vmdk"
        assert all("/" in each["change_id"] for each in disks.values())
        made.take_snapshot("job-1 <&>")
        with fails("refused", "2 snapshots have the name"):
            tool.do("find", vm=made.ref, name="job-1 <&>")
        assert tool.do("remove", vm=made.ref, snapshot=taken["moref"]) == \
            {"consolidation_needed": False}
        assert made.snapshots() == ["job-1 <&>"]
        # Gone already is removed.
        assert tool.do("remove", vm=made.ref, snapshot=taken["moref"]) == \
            {"consolidation_needed": False}
        with fails("not-found", taken["moref"]):
            tool.do("config", snapshot=taken["moref"])


def test_quiescing_that_fails(vc):
    made = vc.add_machine("web01", {2000: MIB})
    off = vc.add_machine("off", {2000: MIB}, off=True)
    with session(vc) as tool:
        for fault, says in (("ApplicationQuiesceFault", "ApplicationQuiesceFault"),
                            ("FilesystemQuiesceFault", "FilesystemQuiesceFault"),
                            ("ToolsUnavailable", "ToolsUnavailable")):
            vc.fail("CreateSnapshot_Task", task=fault, quiesce=True)
            taken = tool.do("snapshot", vm=made.ref, name=fault, quiesce=True)
            assert not taken["quiesced"] and says in taken["why_not"]
            tool.do("remove", vm=made.ref, snapshot=taken["moref"])
        taken = tool.do("snapshot", vm=off.ref, name="off", quiesce=True)
        assert not taken["quiesced"] and "does not run (off)" in taken["why_not"]
        taken = tool.do("snapshot", vm=made.ref, name="plain", quiesce=False)
        assert not taken["quiesced"] and taken["why_not"] == ""
        tool.do("remove", vm=made.ref, snapshot=taken["moref"])
        # What has nothing to do with the guest is not tried again.
        vc.fail("CreateSnapshot_Task", task="NoDiskSpace", quiesce=True)
        with fails("no-space", "NoDiskSpace"):
            tool.do("snapshot", vm=made.ref, name="full", quiesce=True)
        assert made.snapshots() == []


def test_snapshots_that_are_refused(vc):
    made = vc.add_machine("web01", {2000: MIB})
    with session(vc) as tool:
        vc.fail("CreateSnapshot_Task", fault="NoPermission",
                detail={"PrivilegeId": "VirtualMachine.State.CreateSnapshot"})
        with fails("denied", "privilege VirtualMachine.State.CreateSnapshot"):
            tool.do("snapshot", vm=made.ref, name="s")
        made.set_migrating()
        with fails("busy", "is being moved"):
            tool.do("snapshot", vm=made.ref, name="s")
        made.set_migrating(False)
        made.set_template()
        with fails("refused", "is a template"):
            tool.do("snapshot", vm=made.ref, name="s")
        assert made.snapshots() == []


def test_long_tasks(vc):
    made = vc.add_machine("web01", {2000: MIB})
    with session(vc) as tool:
        vc.fail("CreateSnapshot_Task", running=1.5)
        assert tool.do("snapshot", vm=made.ref, name="s")["progress"] >= 2
        vc.fail("RemoveSnapshot_Task", running=30)
        moref = tool.do("find", vm=made.ref, name="s")
        began = time.monotonic()
        with fails("timeout", "removing the snapshot", "in time"):
            tool.do("remove", vm=made.ref, snapshot=moref, until_ms=700)
        assert time.monotonic() - began < 15 and made.snapshots() == ["s"]
        # Another task is at work: ours waits for it.
        vc.fail("RemoveSnapshot_Task", fault="TaskInProgress", calls=2)
        vc.fail("RemoveSnapshot_Task", task="TaskInProgress", calls=1)
        assert tool.do("remove", vm=made.ref, snapshot=moref) == {"consolidation_needed": False}
        assert made.snapshots() == []


def test_removing_that_fails(vc):
    made = vc.add_machine("web01", {2000: MIB})
    with session(vc) as tool:
        moref = tool.do("snapshot", vm=made.ref, name="s")["moref"]
        vc.fail("RemoveSnapshot_Task", task="GenericVmConfigFault", detail={"Reason": "locked"})
        with fails("refused", "GenericVmConfigFault", moref):
            tool.do("remove", vm=made.ref, snapshot=moref)
        assert made.snapshots() == ["s"]
        made.set_consolidation_needed()
        assert tool.do("remove", vm=made.ref, snapshot=moref) == {"consolidation_needed": True}


@pytest.mark.parametrize("lost", ["drop", "cut"])
def test_lost_answers(vc, lost):
    """The server did it, and its answer did not arrive."""
    made = vc.add_machine("web01", {2000: MIB})
    with session(vc) as tool:
        for method in ("Login", "RetrievePropertiesEx", "CreateSnapshot_Task"):
            vc.fail(method, **{lost: True})
        taken = tool.do("snapshot", vm=made.ref, name="once")
        assert made.snapshots() == ["once"]
        assert tool.do("find", vm=made.ref, name="once") == taken["moref"]
        vc.fail("RemoveSnapshot_Task", **{lost: True})
        tool.do("remove", vm=made.ref, snapshot=taken["moref"])
        assert made.snapshots() == []


def test_a_lost_answer_to_a_creation_that_goes_on(vc):
    made = vc.add_machine("web01", {2000: MIB})
    with session(vc) as tool:
        vc.fail("CreateSnapshot_Task", running=2, drop=True)
        taken = tool.do("snapshot", vm=made.ref, name="late")
        assert made.snapshots() == ["late"]
        tool.do("remove", vm=made.ref, snapshot=taken["moref"])
        # Given up, and looked for.
        vc.fail("CreateSnapshot_Task", running=4, drop=True)
        with fails(("timeout", "disconnected"), "answer was lost"):
            tool.do("snapshot", vm=made.ref, name="later", until_ms=1500)
        assert made.snapshots() == []
        moref = tool.do("settle", vm=made.ref, name="later")
        assert moref and made.snapshots() == ["later"]
        tool.do("remove", vm=made.ref, snapshot=moref)
        assert tool.do("settle", vm=made.ref, name="later") is None
        vc.fail("CreateSnapshot_Task", running=30, drop=True)
        with fails(("timeout", "disconnected"), "answer was lost"):
            tool.do("snapshot", vm=made.ref, name="never", until_ms=1500)
        with fails("timeout", "snapshot never"):
            tool.do("settle", vm=made.ref, name="never", until_ms=700)


def test_a_server_that_forgets_its_tasks(vc):
    made = vc.add_machine("web01", {2000: MIB})
    with session(vc) as tool:
        vc.fail("CreateSnapshot_Task", running=2)
        tool.ask("snapshot", vm=made.ref, name="s")
        support.wait_for(lambda: "CreateSnapshot_Task" in methods(vc), "the creation")
        vc.fail("RetrievePropertiesEx", fault="ManagedObjectNotFound")
        taken = tool.answer()
        assert made.snapshots() == ["s"]
        vc.fail("RemoveSnapshot_Task", running=30)
        tool.ask("remove", vm=made.ref, snapshot=taken["moref"])
        support.wait_for(lambda: "RemoveSnapshot_Task" in methods(vc), "the removal")
        vc.fail("RetrievePropertiesEx", fault="ManagedObjectNotFound")
        with fails("refused", "still there"):
            tool.answer()


def test_a_creation_that_was_lost_before_it_was_done(vc):
    made = vc.add_machine("web01", {2000: MIB})
    with session(vc) as tool:
        vc.fail("CreateSnapshot_Task", close=True)
        with fails(("disconnected", "timeout"), "answer was lost", "never"):
            tool.do("snapshot", vm=made.ref, name="never", until_ms=3000)
        assert made.snapshots() == [] and methods(vc).count("CreateSnapshot_Task") == 1
        # Said by a proxy that has nobody behind it: not done, so tried again.
        vc.fail("CreateSnapshot_Task", status=503, calls=2)
        tool.do("snapshot", vm=made.ref, name="s")
        assert methods(vc).count("CreateSnapshot_Task") == 3 and made.snapshots() == ["s"]


# --- changed areas ---


def test_changed_areas(vc):
    size = 40 * MIB + 3 * KIB
    made = vc.add_machine("web01", {2000: size, 2001: MIB}, cbt=True)
    made.write(2000, 5 * MIB, b"a" * 100 * KIB)
    with session(vc) as tool:
        first = tool.do("snapshot", vm=made.ref, name="one")["moref"]
        change = {each["key"]: each["change_id"]
                  for each in tool.do("config", snapshot=first)["disks"]}
        told = tool.do("areas", vm=made.ref, snapshot=first, key=2000, change_id="*", capacity=size)
        assert told["areas"] == [[5 * MIB, 128 * KIB]] and told["calls"] == 3
        assert told["bytes"] == 128 * KIB
        tool.do("remove", vm=made.ref, snapshot=first)
        made.write(2000, 17 * MIB, b"b")
        made.write(2000, size - 1, b"e")
        second = tool.do("snapshot", vm=made.ref, name="two")["moref"]
        vc.expire_sessions()
        told = tool.do("areas", vm=made.ref, snapshot=second, key=2000, change_id=change[2000],
                       capacity=size)
        assert told["areas"] == [[17 * MIB, 64 * KIB], [40 * MIB, 3 * KIB]] and told["calls"] == 3
        assert tool.do("areas", vm=made.ref, snapshot=second, key=2001, change_id=change[2001],
                       capacity=MIB)["areas"] == []
        vc.set_window(64 * KIB)
        assert tool.do("areas", vm=made.ref, snapshot=second, key=2000, change_id=change[2000],
                       capacity=size)["calls"] == 641
        vc.set_window(16 * MIB)

        def areas(**values):
            tool.do("areas", **{"vm": made.ref, "snapshot": second, "key": 2000, "capacity": size,
                                "change_id": change[2000], **values})
        with fails("not-found", "no disk 2099"):
            areas(key=2099)
        with fails("not-found"):
            areas(snapshot=first)
        with fails("refused", "ff 00/1", "FileFault", "gone"):
            areas(change_id="ff 00/1")
        with fails("refused", "InvalidArgument", "changeId", "gone"):
            areas(change_id=change[2000].split("/")[0] + "/999")
        with fails("refused", "startOffset", "gone"):
            areas(capacity=2 * size)
        vc.fail("QueryChangedDiskAreas", fault="NotSupported", skip=1)
        with fails("refused", "NotSupported", "gone"):
            areas()
        vc.fail("QueryChangedDiskAreas", fault="NoPermission",
                detail={"PrivilegeId": "VirtualMachine.Provisioning.DiskRandomRead"})
        with fails("denied", "DiskRandomRead") as failed:
            areas()
        assert "gone" not in failed.text
        vc.set_window(512)
        with fails("protocol", "answers cover"):
            areas()
        vc.set_window(16 * MIB)
        for wrong in ({"start": 1}, {"start": 16 * MIB}, {"length": 0}, {"length": -5},
                      {"areas": [(4096, 4096), (4096, 4096)]},
                      {"areas": [(8192, 4096), (0, 4096)]},
                      {"areas": [(20 * MIB, 4096)]}, {"areas": [(-1, 4096)]}):
            vc.fail("QueryChangedDiskAreas", **wrong)
            with fails("protocol") as failed:
                areas()
            assert "gone" not in failed.text, wrong


# --- servers in trouble ---


def test_sessions_that_expire(vc):
    for nr in range(3):
        vc.add_machine(f"vm{nr}", {2000: MIB})
    with session(vc) as tool:
        vc.expire_sessions()
        assert len(tool.do("list")) == 3
        # In the middle of a list that comes in pages.
        vc.set_page(1)
        for skip in range(1, 6):
            vc.fail("ContinueRetrievePropertiesEx", skip=skip, fault="NotAuthenticated")
            assert len(tool.do("list")) == 3
            vc.heal()
        vc.set_page(0)
        made = vc.add_machine("web01", {2000: MIB}, cbt=True)
        vc.expire_sessions(2.0)
        end = time.monotonic() + 7
        while time.monotonic() < end:
            taken = tool.do("snapshot", vm=made.ref, name="s")
            tool.do("areas", vm=made.ref, snapshot=taken["moref"], key=2000, change_id="*",
                    capacity=MIB)
            tool.do("remove", vm=made.ref, snapshot=taken["moref"])
        assert methods(vc).count("Login") >= 3
        vc.expire_sessions(0)
        vc.fail("*", fault="NotAuthenticated", calls=-1, skip=0)
        with fails("denied"):
            tool.do("vm", vm=made.ref)
        vc.heal()
        assert tool.do("vm", vm=made.ref)["moref"] == made.ref
    assert made.snapshots() == []


def test_servers_in_trouble(vc):
    made = vc.add_machine("web01", {2000: MIB})
    with session(vc, timeout_ms=4000) as tool:
        for trouble in ({"status": 503}, {"status": 502, "body": "<html>"}, {"close": True},
                        {"cut": True}, {"body": "<a><b></a>"}, {"slow": 0.5}):
            vc.fail("RetrievePropertiesEx", calls=2, **trouble)
            assert tool.do("vm", vm=made.ref)["moref"] == made.ref, trouble
        for trouble, code, says in (
                ({"status": 503}, "disconnected", "HTTP 503"),
                ({"close": True}, "disconnected", "RetrievePropertiesEx"),
                ({"slow": 60}, "timeout", "no answer in time"),
                ({"body": "<a>\n<b></a>"}, "protocol", "line 2"),
                ({"body": "<html/>"}, "protocol", "no answer to that"),
                ({"body": "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"}, "protocol", "document type"),
                ({"status": 404}, "protocol", "HTTP 404")):
            vc.fail("RetrievePropertiesEx", calls=-1, **trouble)
            began = time.monotonic()
            with fails(code, says, f"127.0.0.1:{vc.port}"):
                tool.do("vm", vm=made.ref)
            assert time.monotonic() - began < 20
            vc.heal()
        assert tool.do("vm", vm=made.ref)["moref"] == made.ref


def test_a_machine_that_the_server_cannot_tell_of(vc):
    head = ('<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body><RetrievePropertiesExResponse '
            'xmlns:i="http://www.w3.org/2001/XMLSchema-instance"><returnval><objects><obj type="VirtualMachine">'
            'vm-1</obj><propSet><name>name</name><val>lost</val></propSet><propSet><name>'
            'runtime.connectionState</name><val>inaccessible</val></propSet>')
    tail = '</objects></returnval></RetrievePropertiesExResponse></Body></Envelope>'
    missing = ('<missingSet><path>config</path><fault><fault i:type="NoPermission"><privilegeId>System.Read'
               '</privilegeId></fault><localizedMessage>No.</localizedMessage></fault></missingSet>')
    with session(vc) as tool:
        vc.fail("RetrievePropertiesEx", body=head + tail)
        with fails("refused", "/?/lost", "inaccessible"):
            tool.do("vm", vm="vm-1")
        vc.fail("RetrievePropertiesEx", body=head + missing + tail)
        with fails("denied", "/?/lost", "privilege System.Read"):
            tool.do("vm", vm="vm-1")


def test_cancel(vc):
    made = vc.add_machine("web01", {2000: MIB})
    with session(vc) as tool:
        vc.fail("RetrievePropertiesEx", slow=60)
        vc.calls()
        tool.ask("vm", vm=made.ref)
        tool.popen.send_signal(signal.SIGTERM)
        began = time.monotonic()
        with fails("cancelled"):
            tool.answer()
        assert time.monotonic() - began < 10
        with fails("cancelled"):
            tool.do("vm", vm=made.ref)
        tool.do("no-cancel")
        assert tool.do("vm", vm=made.ref)["moref"] == made.ref
    assert vc.sessions() == 0


def test_a_server_that_is_not_there(vc, scratch):
    del scratch
    vc.stop()
    with fails("disconnected", f"127.0.0.1:{vc.port}"):
        with session(vc, timeout_ms=500):
            pass


def test_small_files(vc):
    made = vc.add_machine("web01", {2000: MIB})
    with session(vc) as tool:
        vmx = tool.do("vm", vm=made.ref)["config"]["vmx"]
        assert isinstance(tool.do("file", vm=made.ref, file=vmx, most=65536), str)
        vc.expire_sessions()
        assert isinstance(tool.do("file", vm=made.ref, file=vmx, most=65536), str)
        with fails("not-found", "404"):
            tool.do("file", vm=made.ref, file="[LocalDS_0] web01/none.nvram", most=65536)
        with fails("unsupported", "not on a datastore"):
            tool.do("file", vm=made.ref, file="/etc/passwd", most=65536)


# --- what is sent, held against somebody else's description of the API ---


class Recorder:
    """Stands before the test vCenter, with a certificate of its own, and keeps what is asked."""

    def __init__(self, vc, folder):
        self.bodies, self.user, self.folder = [], vc.user, vc.folder
        self.ca, key = os.path.join(folder, "relay.pem"), os.path.join(folder, "relay.key")
        support.run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                    "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
                    "-keyout", key, "-out", self.ca)
        self.password_file = vc.password_file
        inner = ssl.create_default_context(cafile=vc.ca)
        bodies = self.bodies

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):  # pylint: disable=invalid-name
                body = self.rfile.read(int(self.headers["Content-Length"]))
                bodies.append((self.headers["SOAPAction"], self.headers["Content-Type"], body))
                line = http.client.HTTPSConnection(vc.host, vc.port, context=inner)
                try:
                    line.request("POST", self.path, body, {
                        name: self.headers[name] for name in ("Cookie", "Content-Type", "SOAPAction")
                        if self.headers[name]})
                    answer = line.getresponse()
                    content = answer.read()
                finally:
                    line.close()
                self.send_response(answer.status)
                for name in ("Set-Cookie", "Content-Type"):
                    if answer.getheader(name):
                        self.send_header(name, answer.getheader(name))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):  # pylint: disable=arguments-differ
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        outer = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        outer.load_cert_chain(self.ca, key)
        self.server.socket = outer.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def url(self, path="", user=None):
        name = urllib.parse.quote(user or self.user, safe="")
        return f"vmware://{name}@127.0.0.1:{self.server.server_port}/{path}"

    def stop(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


VIM = "{urn:vim25}"
XSI_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"


def check_value(element, kind, types):
    """An element against what pyVmomi says of its type: names, their order, the form of values."""
    if issubclass(kind, list):
        kind = kind.Item
    if issubclass(kind, types.DataObject):
        if XSI_TYPE in element.attrib:
            kind = types.GetWsdlType("urn:vim25", element.attrib[XSI_TYPE])
        check_fields(element, [(each.name, each.type) for each in kind._GetPropertyList()], types)
    elif issubclass(kind, types.ManagedObject):
        assert types.GetWsdlType("urn:vim25", element.attrib["type"]) and element.text
        assert issubclass(types.GetWsdlType("urn:vim25", element.attrib["type"]), kind)
    else:
        assert not list(element), element.tag
        if kind is bool:
            assert element.text in ("true", "false")
        elif issubclass(kind, int):
            assert int(element.text) is not None


def check_fields(element, fields, types):
    names = [name for name, _ in fields]
    at = 0
    for child in element:
        assert child.tag.startswith(VIM), child.tag
        name = child.tag[len(VIM):]
        assert name in names[at:], f"{element.tag}: {name} is not expected there: {names[at:]}"
        at = names.index(name, at)
        check_value(child, fields[at][1], types)


def test_requests_are_as_the_api_is_described(vc, scratch):
    types = pytest.importorskip("pyVmomi", reason="python3-pyvmomi is not installed").VmomiSupport
    made = vc.add_machine("web01", {2000: MIB})
    relay = Recorder(vc, scratch)
    vc.set_page(1)
    try:
        with session(relay) as tool:
            tool.do("list")
            tool.do("vm", what=made.path)
            tool.do("vm", what=made.instance_uuid)
            tool.do("cbt", vm=made.ref)
            vc.fail("CreateSnapshot_Task", running=30)
            with fails("timeout"):
                tool.do("snapshot", vm=made.ref, name="s", until_ms=1500)
            taken = tool.do("snapshot", vm=made.ref, name="t <&>", quiesce=True)
            tool.do("config", snapshot=taken["moref"])
            tool.do("areas", vm=made.ref, snapshot=taken["moref"], key=2000, change_id="*",
                    capacity=MIB)
            tool.do("remove", vm=made.ref, snapshot=taken["moref"])
    finally:
        relay.stop()
    seen = set()
    for action, content_type, body in relay.bodies:
        assert action == '"urn:vim25/6.5"' and content_type == "text/xml; charset=utf-8"
        root = xml.etree.ElementTree.fromstring(body)
        envelope = "{http://schemas.xmlsoap.org/soap/envelope/}"
        assert root.tag == envelope + "Envelope" and root[0].tag == envelope + "Body"
        call = root[0][0]
        method = call.tag[len(VIM):]
        described = types.GetWsdlMethod("urn:vim25", method).info
        this = call[0]
        assert this.tag == VIM + "_this" and this.text
        assert issubclass(types.GetWsdlType("urn:vim25", this.attrib["type"]), described.type)
        call.remove(this)
        check_fields(call, [(each.name, each.type) for each in described.params], types)
        given = {each.tag[len(VIM):] for each in call}
        for each in described.params:
            assert each.name in given or each.flags & types.F_OPTIONAL, (method, each.name)
        seen.add(method)
    assert seen == {
        "RetrieveServiceContent", "Login", "Logout", "CreateContainerView", "DestroyView",
        "RetrievePropertiesEx", "ContinueRetrievePropertiesEx", "FindByInventoryPath", "FindByUuid",
        "ReconfigVM_Task", "CreateSnapshot_Task", "CancelTask", "QueryChangedDiskAreas",
        "RemoveSnapshot_Task"}

"""A vCenter of the test's own: the simulator in tests/fake/vcenter, with changed blocks.

    with vcenter.fake_in(scratch) as vc:        # or the fixture: def test_x(vcenter_fake)
        vm = vc.add_machine("web01", {2000: 64 * MIB, 16000: "/some/file.raw"}, cbt=True)
        vm.write(2000, offset=5 * MIB, data=b"x" * 4096)
        ...                                     # a client at work: vc.host, vc.port, vc.user,
                                                # vc.password(_file), vc.ca, vc.sha256, vc.sha1
        vc.fail("QueryChangedDiskAreas", fault="FileFault", calls=1)
        assert vm.snapshots() == [] and vc.sessions() == 0

A disk is a raw file, which the test writes to as the guest would.  At a snapshot
each disk is copied to FROZEN/SNAPSHOT-MOREF/KEY.raw; FROZEN/SNAPSHOT-MOREF/index
has a line "VM-MOREF KEY [datastore] folder/file.vmdk" for each.  The copies go when
the snapshot does.  Without Go or govmomi the test is skipped, and says so.
"""

import contextlib
import json
import os
import subprocess
import urllib.error
import urllib.request

import pytest

import support

SOURCES = os.path.join(support.TOP, "tests", "fake")
PASSWORD = "pass <&> \"word' ü"  # what a client must escape


def built():
    """The program; skips the test where it cannot be built."""
    folder = os.path.join(os.environ.get("SENDENSE_BUILD", os.path.join(support.TOP, "build", "test")),
                          "tests", "fake")
    done = subprocess.run(["sh", os.path.join(SOURCES, "build.sh"), folder], capture_output=True,
                          text=True, check=False, timeout=900)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return os.path.join(folder, "vcenter")


class Machine:
    """A VM.  .disks: {key: its raw file}; .ref, .path, .uuid, .instance_uuid."""

    def __init__(self, vcenter, name, state, disks):
        self.vcenter, self.name, self.disks = vcenter, name, disks
        self.ref, self.path = state["ref"], state["path"]
        self.uuid, self.instance_uuid = state["uuid"], state["instance_uuid"]

    def tell(self, op, **values):
        return self.vcenter.tell(op, VM=self.ref, **values)

    def write(self, key, offset, data):
        """What the guest writes."""
        with open(self.disks[key], "r+b") as file:
            file.seek(offset)
            file.write(data)

    def state(self):
        """ref, path, cbt, disks [{key, file_name, change_id, size}], snapshots [{ref, name}]."""
        return self.tell("machine")

    def snapshots(self):
        """Names."""
        return [each["name"] for each in self.state()["snapshots"]]

    def take_snapshot(self, name):
        """As somebody else; the snapshot's moref."""
        return self.tell("snapshot", Name=name)

    def remove_snapshot(self, ref):
        self.tell("remove-snapshot", Name=ref)

    def frozen(self, snapshot, key):
        """The copy of a disk in a snapshot."""
        return os.path.join(self.vcenter.frozen, snapshot, f"{key}.raw")

    def enable_cbt(self):
        """With the snapshot that makes it effective."""
        self.tell("cbt", On=True)
        self.remove_snapshot(self.take_snapshot("stun"))

    def disable_cbt(self):
        self.tell("cbt", On=False)

    def reset_cbt(self):
        """A new epoch: what was recorded before is of no more use."""
        self.tell("cbt-reset")

    def set_template(self, on=True):
        self.tell("template", On=on)

    def rename(self, name):
        """In the inventory; its files keep their names."""
        self.tell("rename", Name=name)
        self.path = self.path.rpartition("/")[0] + "/" + name

    def set_power(self, on):
        self.tell("power", On=on)

    def set_migrating(self, on=True):
        self.tell("migrating", On=on)

    def set_consolidation_needed(self, on=True):
        self.tell("consolidation-needed", On=on)

    def grow(self, key, size):
        self.tell("grow", Disk={"Key": key}, Number=size)

    def add_disk(self, key, disk):
        spec = self.vcenter.disk_spec(self.name, key, disk)
        self.disks[key] = spec["Path"]
        self.tell("add-disk", Disk=spec)

    def remove_disk(self, key):
        self.tell("remove-disk", Disk={"Key": key})
        del self.disks[key]


class FakeVcenter:
    """Use fake_in(); see the top of the file."""

    def __init__(self, folder, expired=False):
        self.folder = os.path.join(str(folder), "vcenter")
        os.mkdir(self.folder, 0o700)
        self.user = "administrator@vsphere.local"
        self.password = PASSWORD
        self.password_file = os.path.join(self.folder, "password")
        with open(self.password_file, "w", encoding="utf-8") as file:
            file.write(self.password + "\n")
        os.chmod(self.password_file, 0o600)
        command = [built(), "-stdin", "-folder", self.folder, "-user", self.user,
                   "-password", self.password_file] + (["-expired"] if expired else [])
        with open(os.path.join(self.folder, "err"), "wb") as err:
            self.popen = subprocess.Popen(  # pylint: disable=consider-using-with
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err,
                env=dict(os.environ, TMPDIR=self.folder))
        try:
            line = support.read_line(self.popen.stdout, "the test vCenter")
            assert line, open(os.path.join(self.folder, "err"), encoding="utf-8").read()
            ready = json.loads(line)
        except BaseException:
            self.stop()
            raise
        self.host, self.port, self.control = ready["host"], int(ready["port"]), ready["control"]
        self.frozen, self.ca = ready["frozen"], ready["ca"]
        self.sha1, self.sha256 = ready["sha1"], ready["sha256"]

    def url(self, path="", user=None):
        """vmware://USER@HOST:PORT/PATH, with the user's @ escaped."""
        name = urllib.request.quote(user or self.user, safe="")
        return f"vmware://{name}@{self.host}:{self.port}/{urllib.request.quote(path.lstrip('/'))}"

    def stop(self):
        """It removes what the simulator made."""
        self.popen.stdin.close()
        try:
            return self.popen.wait(20)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise
        finally:
            self.popen.stdout.close()

    def tell(self, op, **values):
        """One order; tests/fake/vcenter/control.go lists them."""
        body = json.dumps({"Op": op, **values}).encode()
        try:
            with urllib.request.urlopen(self.control, body, timeout=support.TIMEOUT) as answer:
                return json.load(answer)["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{op}: {error.read().decode()}") from None

    # --- machines ---

    def disk_spec(self, machine, key, disk):
        """disk: a size in bytes, a raw file, or a dict with size or path, and any of
        mode (independent_persistent, …), backing (flat, sesparse, rdm, rdm-virtual),
        sharing (sharingMultiWriter)."""
        values = disk if isinstance(disk, dict) else \
            {"size" if isinstance(disk, int) else "path": disk}
        path = values.get("path") or os.path.join(self.folder, f"{machine}-{key}.raw")
        if "size" in values:
            with open(path, "wb") as file:
                file.truncate(values["size"])
        spec = {name.capitalize(): values[name] for name in ("mode", "backing", "sharing")
                if name in values}
        return dict(spec, Key=key, Path=str(path))

    def add_machine(self, name, disks, cbt=False, folder="", version="vmx-13", off=False,
                    tools="", firmware="efi"):
        """disks: {key: see disk_spec}.  cbt: enabled and effective.  off: powered off."""
        specs = [self.disk_spec(name, key, disk) for key, disk in disks.items()]
        state = self.tell("add-machine", Machine={
            "Name": name, "Folder": folder, "Version": version, "Off": off, "Tools": tools,
            "Firmware": firmware, "Disks": specs})
        machine = Machine(self, name, state, {spec["Key"]: spec["Path"] for spec in specs})
        if cbt:
            machine.enable_cbt()
        return machine

    # --- what goes wrong ---

    def fail(self, method, calls=1, **values):
        """The next calls of that method ("*": of any; calls=-1: all) after skip=N others:
        slow=SECONDS, close=True (hangs up), drop=True (does it, then hangs up), cut=True
        (half an answer), status=503, body=TEXT, fault=TYPE with detail={…} and message,
        task=TYPE (the task fails), running=SECONDS (the task takes that long and can be
        cancelled), areas=[(start, length)], start=, length= (QueryChangedDiskAreas);
        quiesce=True|False and key= narrow it."""
        rule = {name.capitalize(): value for name, value in values.items()}
        if "Areas" in rule:
            rule["Areas"] = [{"Start": start, "Length": length} for start, length in rule["Areas"]]
        self.tell("rule", Rule=dict(rule, Method=method, Calls=calls))

    def heal(self):
        self.tell("clear-rules")

    def expire_sessions(self, seconds=None):
        """All that are open now; or each one that many seconds after its login (0: never)."""
        if seconds is None:
            self.tell("expire-now")
        else:
            self.tell("expire", Seconds=seconds)

    def sessions(self):
        """How many are open: logged in, not out, not expired."""
        return self.tell("sessions")

    def set_window(self, size):
        """Bytes of a disk that one answer of QueryChangedDiskAreas covers (16 MiB)."""
        self.tell("window", Number=size)

    def set_page(self, objects):
        """Objects in one answer of RetrievePropertiesEx; 0: all."""
        self.tell("page", Number=objects)

    def held(self):
        """Methods of calls that slow= makes or made wait, since this was asked last."""
        return self.tell("held") or []

    def release(self):
        """Those that wait now wait no longer."""
        self.tell("release")

    def calls(self):
        """What was called since this was asked last: [{method, this, status, at}]."""
        return self.tell("calls") or []


@contextlib.contextmanager
def fake_in(folder, **kwargs):
    """A running one in the folder, gone at the end."""
    vcenter = FakeVcenter(folder, **kwargs)
    try:
        yield vcenter
    finally:
        vcenter.stop()

"""VMware's library behind a helper process, tried with a library of our own: what is read is
what was frozen; whatever the library does wrong ends in a message and leaves no process."""

import os
import random
import signal

import pytest

import support
import vcenter
import vddk
from support import KIB, MIB, bad_input, need, run, wait_for

PATH = "[LocalDS_0] web 01/web01.vmdk"
SHA1 = "AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:0A:0B:0C:0D"
SECRET = "a secret: 7&%s"


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        direct = file.read().split()
    # The helper is a child of a thread of it.
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
            direct += file.read().split()
    return sorted({int(word) for word in direct})


@pytest.fixture
def raw(scratch):
    """A disk with data, holes and a tail that is no whole chunk."""
    path = os.path.join(scratch, "disk.raw")
    rng = random.Random(7)
    with open(path, "wb") as file:
        file.truncate(24 * MIB + 512)
        for offset in (0, 3 * MIB + 4096, 8 * MIB, 24 * MIB):
            file.seek(offset)
            file.write(rng.randbytes(2 * MIB if offset == 8 * MIB else 512))
    return path


class Disk:
    """The tool with its options."""

    def __init__(self, scratch, lib, raw_file=None):
        self.scratch, self.lib = scratch, lib
        self.options = {
            "helper": vddk.HELPER, "server": "vcenter.example", "user": "backup",
            "password": SECRET, "vm": "vm-57", "snapshot": "snapshot-60", "path": PATH,
            "thumbprint": SHA1, "close_timeout_ms": 20000}
        if raw_file:
            lib.freeze("vm-57", "snapshot-60", 2000, PATH, raw_file)

    def command(self, **more):
        path = os.path.join(self.scratch, "options")
        with open(path, "w", encoding="utf-8") as file:
            for name, value in {**self.options, **more}.items():
                if value is not None:
                    file.write(f"{name}={value}\n")
        return [vddk.TOOL, path]

    def run(self, status=0, **more):
        result = run(*self.command(**more), status=status, env=self.lib.env())
        assert SECRET not in result.err + result.out
        return result

    def fails(self, code, *contains, case=None, **more):
        """The message, which begins with the code and has these texts."""
        message = self.run(status=1, **more).err.splitlines()[-1]
        assert message.startswith(code + ": "), message
        for text in contains:
            assert text in message, message
        if case:
            bad_input(case, message.split(": ", 1)[1])
        return message

    def copies(self, raw_file, **more):
        out = os.path.join(self.scratch, "out.raw")
        result = self.run(copy=out, **more)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", raw_file, out)
        return result


@pytest.fixture
def lib(scratch):
    yield vddk.FakeVddk(scratch)
    assert "rule broken" not in "".join(vddk_log(scratch))


def vddk_log(scratch):
    lines = []
    for root, _, names in os.walk(scratch):
        if "calls" in names:
            with open(os.path.join(root, "calls"), encoding="utf-8") as file:
                lines += file.readlines()
    return lines


@pytest.mark.parametrize("major", [6, 7, 8, 9])
def test_what_is_read_is_what_was_frozen(scratch, raw, major):
    need("qemu-img")
    lib = vddk.FakeVddk(scratch, major)
    disk = Disk(scratch, lib, raw)
    result = disk.copies(raw, lanes=2, compression="fastlz", size_bytes=24 * MIB + 512)
    assert f"major {major}\ntransport nbdssl\n" in result.out
    calls = lib.calls()
    assert calls[0].startswith(f"init {major}.") and "BufSizeIn64KB=16" in calls[0]
    assert calls[1] == "connect vcenter.example moref=vm-57 443 902 snapshot-60 nbdssl:nbd cred 1"
    assert calls[2] == f"open 36 {PATH}"
    assert calls[-3:] == ["close", "disconnect", "exit"]
    assert "rule broken" not in "".join(calls)


def test_without_asynchronous_reads(scratch, raw, lib):
    need("qemu-img")
    disk = Disk(scratch, lib, raw)
    for how in ("no", "late"):
        lib.tell(**{"async": how})
        disk.copies(raw, lanes=3)
    assert max(length for _, length in lib.areas_read()) <= MIB


def test_odd_ranges(scratch, raw, lib):
    disk = Disk(scratch, lib, raw)
    with open(raw, "rb") as file:
        content = file.read()
    size = len(content)
    for offset, length in ((0, 1), (511, 2), (8 * MIB - 3, 1 * MIB + 7), (size - 1, 1), (0, size),
                           (5, 9 * MIB)):
        out = disk.run(read=f"{offset}:{length}").out
        assert f"sum {sum(content[offset:offset + length])}\n" in out


def test_many_threads_and_lanes_that_are_given_up(scratch, raw, lib):
    disk = Disk(scratch, lib, raw)
    disk.run(threads=16, check=raw, allocated="yes")
    lib.tell(**{"async": "no"})
    disk.run(threads=4, check=raw, nr_reads=1)
    lib.tell(read=5, read_at=8 * MIB)
    disk.fails("io", "NFC", threads=16, check=raw)
    # The first read is one that is waited for; while the sanitizer reports, others go on.
    lib.tell(crash=1)
    disk.fails("disconnected", "in flight", threads=16, check=raw)


def test_allocated_areas(scratch, raw, lib):
    need("qemu-img")
    disk = Disk(scratch, lib, raw)
    expected = [(0, 64 * KIB, "data"), (3 * MIB, 64 * KIB, "data"), (8 * MIB, 2 * MIB, "data"),
                (24 * MIB, 512, "data")]
    out = disk.run(allocated="yes", map="yes").out
    found = [line.split() for line in out.splitlines() if line.endswith(("data", "hole"))]
    assert [(int(at), int(length), kind) for at, length, kind in found if kind == "data"] == expected
    assert sum(int(length) for _, length, _ in found) == 24 * MIB + 512
    assert len(lib.calls("query")) == 1  # one question for many small ones
    result = disk.copies(raw, allocated="yes")
    assert f"read {2 * MIB + 128 * KIB + 512}\n" in result.out
    lib.tell(query=6)
    result = disk.copies(raw, allocated="yes")
    assert f"read {24 * MIB + 512}\n" in result.out
    old = Disk(scratch, vddk.FakeVddk(scratch, 6), raw)
    assert "0 25166336 data" in old.run(allocated="yes", map="yes").out


def test_access_is_held_and_given_back(scratch, raw, lib):
    disk = Disk(scratch, lib, raw)
    disk.run(hold_access="yes", read="0:1")
    assert lib.calls("prepare") == ["prepare moref=vm-57 sendense"]
    assert lib.calls("end-access") == ["end-access moref=vm-57 sendense"]
    lib.tell(prepare=1)
    result = disk.run(hold_access="yes", read="0:1")
    assert "PrepareForAccess failed" in result.err
    lib.tell(open=1)
    lib.forget()
    disk.run(status=1, hold_access="yes")
    assert lib.calls("end-access")


def test_session_instead_of_password(scratch, raw, lib):
    disk = Disk(scratch, lib, raw)
    lib.tell(password="52 ab 3c")
    disk.run(password=None, cookie="52 ab 3c", read="0:1")
    assert lib.calls("connect")[0].endswith("cred 2")


def test_failures_have_messages(scratch, raw, lib):
    disk = Disk(scratch, lib, raw)
    lib.tell(password="another")
    disk.fails("refused", "while connecting", "Cannot connect to host", "error 18000",
               case="VDDK: a wrong password")
    lib.tell(thumbprint=SHA1.replace("AA", "AB"))
    disk.fails("refused", "while opening the disk", "Unknown error", "thumbprint", "902/tcp",
               case="VDDK: a wrong thumbprint")
    lib.tell()
    disk.fails("refused", "while opening", "other.vmdk", path="[ds] other.vmdk",
               case="VDDK: a wrong path")
    disk.fails("refused", "it has 25166336", "vCenter says 4096", size_bytes=4096,
               case="VDDK: a disk of another size")
    for step, text in (("init", "InitEx"), ("connect", "ConnectEx"), ("open", "Open"),
                       ("info", "GetInfo")):
        lib.tell(**{step: 77})
        disk.fails("refused", text, "error 77", "An error that has no text")
    lib.tell(capacity=0)
    disk.fails("refused", "0 sectors")
    lib.tell(read=5, read_at=8 * MIB)
    message = disk.fails("io", "offset 8388608", "NFC error 5", "memory for such reads",
                         read=f"0:{10 * MIB}", case="VDDK: the host's NFC memory is used up")
    assert PATH in message
    lib.tell()
    disk.run(read="0:512")


def test_library_missing_or_unusable(scratch, raw, lib):
    disk = Disk(scratch, lib, raw)
    empty = os.path.join(scratch, "empty")
    os.makedirs(os.path.join(empty, "lib64"))
    disk.fails("not-found", "lib64/libvixDiskLib.so.6", "Virtual Disk Development Kit",
               folder=empty, case="VDDK: no library in the folder")
    broken = vddk.FakeVddk(scratch, "broken")
    disk.fails("unsupported", "VixDiskLib_Open", folder=broken.folder,
               case="VDDK: a library that lacks an entry point")
    with open(os.path.join(empty, "lib64", "libvixDiskLib.so.9"), "wb") as file:
        file.write(b"no library")
    disk.fails("unsupported", "VDDK 6.7 to 9", folder=empty, case="VDDK: a file that is no library")
    disk.fails("not-found", "sendense-vddk comes with sendense",
               helper=os.path.join(scratch, "nothing"), case="VDDK: no helper")
    assert disk.run(probe="yes", folder=os.path.join(lib.folder, "lib64")).out == \
        f"major 8\nloaded {lib.folder}/lib64/libvixDiskLib.so.8\n"
    disk.fails("unsupported", "VixDiskLib_Open", probe="yes", folder=broken.folder)


def test_calls_that_never_return(scratch, raw, lib):
    disk = Disk(scratch, lib, raw)
    for step, text in (("init", "InitEx"), ("connect", "ConnectEx"), ("open", "Open")):
        lib.tell(hang=step)
        disk.fails("timeout", text, "in 0.7 s", open_timeout_ms=700, case=f"VDDK: {step} hangs")
    lib.tell(hang="read")
    disk.fails("timeout", "reading", "0.5 s", call_timeout_ms=500, read=f"0:{MIB}",
               case="VDDK: a read hangs")
    lib.tell(hang="query")
    disk.fails("timeout", "mapping", call_timeout_ms=500, allocated="yes", map="yes")
    lib.tell(hang="close")
    disk.run(read="0:1", close_timeout_ms=300)
    assert not lib.helpers()


def test_helper_crashes_or_is_killed(scratch, servers, raw, lib):
    disk = Disk(scratch, lib, raw)
    lib.tell(crash=3)
    message = disk.fails("disconnected", "while the disk was open", "in flight",
                         read=f"0:{20 * MIB}", case="VDDK: the library crashes in a read")
    assert any(text in message for text in ("SIGSEGV", "SIGABRT", "Sanitizer: SEGV"))
    lib.tell(hang="read")
    lib.forget()
    process = servers.start(*disk.command(read=f"0:{MIB}"), name="tool", env=lib.env())
    wait_for(lambda: lib.calls("read"), "a read")
    child, = children_of(process.pid)
    os.kill(child, signal.SIGKILL)
    assert process.wait() == 1
    assert "disconnected: " in process.err and "SIGKILL" in process.err
    assert not lib.helpers()


@pytest.mark.parametrize("stage", ["init", "connect", "open", "read", "close"])
def test_helper_killed_in_each_stage(scratch, servers, raw, lib, stage):
    disk = Disk(scratch, lib, raw)
    lib.tell(hang=stage)
    for _ in range(10 if os.environ.get("SENDENSE_SOAK") else 3):
        lib.forget()
        process = servers.start(*disk.command(read=f"0:{MIB}"), name="tool", env=lib.env())
        # The fake library notes a call before it hangs in it; Close has no other sign.
        last = {"close": "read"}.get(stage, stage)
        wait_for(lambda: lib.calls(last), "the library at work")
        if stage == "close":
            wait_for(lambda: "log:" in process.err and "sum" in process.out or not process.running,
                     "the end of reading")
        child, = children_of(process.pid)
        os.kill(child, signal.SIGKILL)
        status = process.wait()
        assert status == (0 if stage == "close" else 1), process.err
        assert stage == "close" or "SIGKILL" in process.err.splitlines()[-1]
    lib.tell()
    disk.run(read="0:1")


@pytest.mark.parametrize("hang", ["", "init", "read"])
def test_helper_ends_with_its_parent(scratch, servers, raw, lib, hang):
    disk = Disk(scratch, lib, raw)
    lib.tell(**({"hang": hang} if hang else {"slow": 300}))
    process = servers.start(*disk.command(hold_access="yes", read=f"0:{16 * MIB}"), name="tool",
                            env=lib.env())
    wait_for(lambda: lib.calls(hang or "read"), "the library at work")
    child, = children_of(process.pid)
    process.signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not os.path.exists(f"/proc/{child}"), "the helper's end", timeout=30)
    if not hang:
        assert lib.calls()[-3:] == ["disconnect", "end-access moref=vm-57 sendense", "exit"]


@pytest.mark.parametrize("hang", ["connect", "read"])
def test_cancel(scratch, servers, raw, lib, hang):
    disk = Disk(scratch, lib, raw)
    lib.tell(hang=hang)
    process = servers.start(*disk.command(read=f"0:{MIB}", close_timeout_ms=1000), name="tool",
                            env=lib.env())
    wait_for(lambda: lib.calls(hang), "the library at work")
    child, = children_of(process.pid)
    process.signal(signal.SIGTERM)
    assert process.wait(20) == 1, process.err
    assert "cancelled: " in process.err and not os.path.exists(f"/proc/{child}")


def test_secrets_and_lines(scratch, servers, raw, lib):
    disk = Disk(scratch, lib, raw)
    lib.tell(chatter=3000)
    result = disk.run(read="0:1")
    assert 'log: debug: VixDiskLib: connecting with "*" as backup in two lines\n' in result.err
    assert "log: warning: chatter 3000 of a library" in result.err
    lib.tell(stderr="secret", killed=1)
    message = disk.fails("disconnected", "SIGKILL", "99: connecting with *", read="0:1")
    assert not any(SECRET[at:] in message for at in range(len(SECRET) - 4))
    lib.tell(hang="read")
    lib.forget()
    process = servers.start(*disk.command(read=f"0:{MIB}"), name="tool", env=lib.env())
    wait_for(lambda: lib.calls("read"), "a read")
    child, = children_of(process.pid)
    for name in ("cmdline", "environ"):
        with open(f"/proc/{child}/{name}", "rb") as file:
            assert SECRET.encode() not in file.read()
    with open(f"/proc/{child}/maps", encoding="ascii") as file:
        loaded = file.read()
    assert "libvixDiskLib" in loaded
    for foreign in ("gnutls", "curl", "xml2", "crypto", "jansson"):
        assert foreign not in loaded
    process.signal(signal.SIGKILL)


# A helper that means harm: it says what the case wants, where the real one would answer.
HOSTILE = """
import mmap, os, socket, struct, sys
case = os.environ["CASE"]
sock = socket.socket(fileno=0)
OPEN, READ, MAP, CLOSE, STAGE, OPENED, DONE, LOG, FAILED = range(1, 10)

def say(kind, slot=0, tag=0, sector=0, count=0, code=0, flags=0, text=b"", claimed=None):
    sock.send(struct.pack("=IIQQQQII", kind, slot, tag, sector, count, code, flags,
                          len(text) if claimed is None else claimed) + text)

def areas(*pairs):
    memory = mmap.mmap(3, 1 << 20)
    for i, pair in enumerate(pairs):
        memory[16 * i:16 * i + 16] = struct.pack("=QQ", *pair)

sock.recv(65536)
if case == "exits":
    sys.exit(0)
if case == "shrinks":
    try:
        os.ftruncate(3, 0)
        say(OPENED, count=1 << 20, text=b"shrunk")
    except PermissionError:
        say(FAILED, slot=1, text=b"sealed")
    sys.exit(0)
if case == "early":
    say(DONE)
elif case == "short":
    sock.send(b"abc")
elif case == "claims":
    say(STAGE, slot=1, claimed=4000000000)
elif case == "long":
    say(LOG, text=b"x" * 20000)
elif case == "stage":
    say(STAGE, slot=99)
elif case == "failed":
    say(FAILED, slot=4000000000)
elif case == "size":
    say(OPENED, slot=8, count=1 << 62)
elif case == "unknown":
    say(77)
else:
    say(OPENED, slot=8, count=1 << 14, flags=12, text=b"nbd")
while True:
    packet = sock.recv(65536)
    if len(packet) < 48:
        sys.exit(0)
    kind, slot, tag, sector, count = struct.unpack("=IIQQQ", packet[:32])
    if kind == CLOSE:
        sys.exit(0)
    if case == "slot":
        slot = 5000
    elif case == "tag":
        tag += 1
    elif case == "free":
        slot = 7
    elif case == "twice":
        say(DONE, slot, tag)
    elif case == "reopened":
        say(OPENED, slot=8, count=1 << 20)
    elif case == "many":
        say(DONE, slot, tag, count=1 << 40)
    elif case == "unsorted":
        areas((512, 128), (0, 128))
        say(DONE, slot, tag, count=2)
    elif case == "outside":
        areas((0, 1 << 60))
        say(DONE, slot, tag, count=1)
    elif case == "empty":
        areas((0, 0))
        say(DONE, slot, tag, count=1)
    say(DONE, slot, tag)
"""


@pytest.mark.parametrize("case, code", [
    ("exits", "disconnected"), ("shrinks", "unsupported"), ("early", "protocol"),
    ("short", "protocol"), ("claims", "protocol"), ("long", "protocol"), ("stage", "protocol"),
    ("failed", "protocol"), ("size", "refused"), ("unknown", "protocol"), ("slot", "protocol"),
    ("tag", "protocol"), ("free", "protocol"), ("twice", "protocol"), ("reopened", "protocol"),
    ("many", "protocol"), ("unsorted", "protocol"), ("outside", "protocol"),
    ("empty", "protocol")])
def test_helper_that_breaks_the_protocol(scratch, lib, case, code):
    helper = os.path.join(scratch, "helper")
    with open(helper, "w", encoding="utf-8") as file:
        file.write("#!/usr/bin/python3\n" + HOSTILE)
    os.chmod(helper, 0o755)
    disk = Disk(scratch, lib)
    command = disk.command(helper=helper, allocated="yes", map="yes" if case in (
        "many", "unsorted", "outside", "empty") else None, read=f"0:{4 * MIB}")
    result = run(*command, status=1, env=lib.env(CASE=case))
    message = result.err.splitlines()[-1]
    assert message.startswith(code + ": "), result
    if case == "shrinks":
        assert "sealed" in message


def test_of_a_test_vcenter(scratch):
    need("qemu-img")
    with vcenter.fake_in(scratch) as vc:
        machine = vc.add_machine("web01", {2000: 5 * MIB, 16000: 3 * MIB})
        machine.write(16000, MIB, b"sixteen thousand" * 100)
        lib = vddk.FakeVddk(scratch, 7, frozen=vc.frozen)
        lib.tell(thumbprint=vc.sha1, password=vc.password)
        snapshot = machine.take_snapshot("s")
        disk = Disk(scratch, lib)
        file_name = {each["key"]: each["file_name"] for each in machine.state()["disks"]}[16000]
        disk.options.update(vm=machine.ref, snapshot=snapshot, thumbprint=vc.sha1,
                            password=vc.password, path="[LocalDS_0] web01/web01_1.vmdk")
        machine.write(16000, MIB, b"later")
        disk.copies(machine.frozen(snapshot, 16000))
        # The machine runs on a delta now: not what is to be read.
        disk.fails("refused", "while opening", path=file_name)
        machine.remove_snapshot(snapshot)
        disk.fails("refused", "while opening")


def test_doctor(scratch, lib):
    def check(*arguments, **env):
        report = support.sendense("doctor", "--json", *arguments, env=dict(lib.env(), **env)).json
        return {each["check"]: each for each in report["checks"]}["vddk"]

    found = check()
    assert found["verdict"] == "ok" and f"{lib.folder}/lib64/libvixDiskLib.so.8" in found["text"]
    assert check("--vddk", os.path.join(scratch, "none"))["verdict"] == "warning"
    broken = vddk.FakeVddk(scratch, "broken")
    found = check(SENDENSE_VDDK_DIR=broken.folder)
    assert found["verdict"] == "warning" and "VixDiskLib_Open" in found["text"]
    if not any(os.path.exists(folder) for folder in (
            "/usr/lib/vmware-vix-disklib", "/usr/local/lib/vmware-vix-disklib",
            "/opt/vmware-vix-disklib", "/opt/vmware-vix-disklib-distrib")):
        found = check(SENDENSE_VDDK_DIR="")
        assert found["verdict"] == "note" and "Virtual Disk Development Kit" in found["text"]

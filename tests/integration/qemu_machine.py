"""A real QEMU for tests (TCG, no guest that does anything), its monitor, and a guest agent
that is not one."""

import contextlib
import json
import os
import socket
import subprocess
import threading

import support
from support import MIB, need, run, wait_for

TOOL = os.path.join(os.environ.get("SENDENSE_BUILD", ""), "tests/unit/qemu/qemu_tool")


class Monitor:
    """QMP, for the tests' own questions."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(support.TIMEOUT)
        self.socket.connect(path)
        self.file = self.socket.makefile("r")
        assert "QMP" in json.loads(self.file.readline())
        self.call("qmp_capabilities")

    def call(self, execute, **arguments):
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        text = json.dumps({"execute": execute, "arguments": arguments})
        self.socket.sendall(text.encode() + b"\n")
        while True:
            answer = json.loads(self.file.readline())
            if "event" in answer:
                continue
            assert "error" not in answer, f"{execute}: {answer}"
            return answer["return"]

    def close(self):
        self.file.close()
        self.socket.close()


class Machine:
    """A QEMU.  disks: (key, format, iothread), each of the size, in order.

    .qmp is for whoever is tested, .monitor is ours.
    """

    def __init__(self, folder, disks=(("vd0", "qcow2"), ("vd1", "raw")), size=16 * MIB,
                 arguments=(), files=None):
        need("qemu-system-x86_64", "qemu-img")
        self.folder, self.disks, self.size = folder, disks, size
        self.qmp = os.path.join(folder, "vm.qmp")
        self.files = files or {}
        self.arguments = list(arguments)
        self.process = self.monitor = None
        for key, form in disks:
            if key not in self.files:
                self.files[key] = os.path.join(folder, f"{key}.{form}")
                run("qemu-img", "create", "-q", "-f", form, self.files[key], size)
        self.start()

    def start(self):
        own = os.path.join(self.folder, "own.qmp")
        command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine",
                   "q35,accel=tcg", "-m", "32", "-name", "web01",
                   "-uuid", "0b0e3a5c-3f63-4f3f-8d9a-0f9f2c7d1e11",
                   "-qmp", f"unix:{self.qmp},server=on,wait=off",
                   "-qmp", f"unix:{own},server=on,wait=off"]
        for key, form in self.disks:
            command += ["-blockdev", f"driver={form},node-name=node-{key},discard=unmap,"
                        f"file.driver=file,file.filename={self.files[key]}",
                        "-device", f"virtio-blk-pci,id={key},drive=node-{key}"]
        for path in (own, self.qmp):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        with open(os.path.join(self.folder, "qemu.err"), "ab") as err:
            self.process = subprocess.Popen(  # pylint: disable=consider-using-with
                command + self.arguments, stdin=subprocess.DEVNULL, stdout=err, stderr=err)
        wait_for(self._connect, "QEMU's monitor")

    def _connect(self):
        assert self.process.poll() is None, self.err
        with contextlib.suppress(OSError):
            self.monitor = Monitor(os.path.join(self.folder, "own.qmp"))
            return True
        return False

    @property
    def err(self):
        with open(os.path.join(self.folder, "qemu.err"), encoding="utf-8") as file:
            return file.read()

    def call(self, execute, **arguments):
        return self.monitor.call(execute, **arguments)

    def io(self, key, command):
        """qemu-io on the disk, as the guest's device would do it: io("vd0", "write -P 7 0 64k")."""
        out = self.call("human-monitor-command",
                        command_line=f'qemu-io -d {key}/virtio-backend "{command}"')
        assert "failed" not in out and "rror" not in out, out

    def freeze_copy(self, key, path):
        """What the disk holds now, by another way than the one that is tested: a full copy
        that QEMU makes itself."""
        run("qemu-img", "create", "-q", "-f", "raw", path, self.size)
        self.call("blockdev-add", driver="raw", node_name="oracle",
                  file={"driver": "file", "filename": path})
        self.call("blockdev-backup", job_id="oracle", device=f"node-{key}", target="oracle",
                  sync="full")
        wait_for(lambda: not [job for job in self.call("query-jobs") if job["id"] == "oracle"],
                 "the oracle's copy")
        self.call("blockdev-del", node_name="oracle")
        return path

    def bitmaps(self, key):
        """Names of the disk's bitmaps -> what QEMU tells of them."""
        for node in self.call("query-named-block-nodes", flat=True):
            if node["node-name"] == f"node-{key}":
                return {bitmap["name"]: bitmap for bitmap in node.get("dirty-bitmaps", [])
                        if "name" in bitmap}
        raise AssertionError(f"no node node-{key}")

    def leftovers(self, bitmaps=0):
        """What is there of a session, except for so many bitmaps on each disk."""
        left = [node["node-name"] for node in self.call("query-named-block-nodes", flat=True)
                if node["node-name"].startswith("sendense") or node["drv"] == "copy-before-write"]
        left += [job["id"] for job in self.call("query-jobs")]
        left += [export["id"] for export in self.call("query-block-exports")]
        left += [str(fdset) for fdset in self.call("query-fdsets")]
        left += [f"{key}: {list(self.bitmaps(key))}" for key, _ in self.disks
                 if len(self.bitmaps(key)) != bitmaps]
        try:
            self.call("nbd-server-start", addr={
                "type": "unix", "data": {"path": os.path.join(self.folder, "probe.sock")}})
            self.call("nbd-server-stop")
        except AssertionError as error:
            left.append(f"NBD server: {error}")
        return left

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.monitor.close()

    def quit(self):
        self.call("quit")
        self.process.wait(support.TIMEOUT)
        self.monitor.close()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.kill()


@contextlib.contextmanager
def machine_in(folder, **kwargs):
    machine = Machine(folder, **kwargs)
    try:
        yield machine
    finally:
        machine.stop()


class Session:
    """qemu_tool: one session, step by step."""

    def __init__(self, machine, scratch, socket_path=None, proxy=None, prefix=(), **options):
        if proxy:
            proxy.session, socket_path = self, proxy.path
        command = [*prefix, TOOL, f"socket={socket_path or machine.qmp}", f"scratch={scratch}"]
        command += [f"{name}={value}" for name, value in options.items()]
        self.err_path = os.path.join(scratch, "tool.err")
        with open(self.err_path, "ab") as err:
            self.popen = subprocess.Popen(  # pylint: disable=consider-using-with
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err)
        self.opened = self.answer()

    def answer(self):
        line = support.read_line(self.popen.stdout, "an answer of qemu_tool")
        return json.loads(line) if line else None

    def say(self, *words):
        """The answer, None when the tool has ended."""
        try:
            self.popen.stdin.write(" ".join(map(str, words)).encode() + b"\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            return None
        return self.answer()

    def do(self, *words):
        answer = self.say(*words)
        assert answer is not None and "error" not in answer, f"{words}: {answer}\n{self.err}"
        return answer

    @property
    def err(self):
        with open(self.err_path, encoding="utf-8") as file:
            return file.read()

    def kill(self):
        self.popen.kill()
        self.close()

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.close()
        status = self.popen.wait(support.TIMEOUT)
        self.popen.stdout.close()
        return status


class Agent:
    """A guest agent on a socket, that does as the test says: script maps a command to a
    function that gives its answer (None: no answer).  .log is what it was asked."""

    def __init__(self, path, script=None):
        self.path, self.script, self.log, self.frozen = path, script or {}, [], False
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(4)
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _answer(self, message):
        command = message["execute"]
        if command in self.script:
            return self.script[command](self, message)
        if command == "guest-sync-delimited":
            return {"return": message["arguments"]["id"]}
        if command == "guest-fsfreeze-freeze":
            self.frozen = True
            return {"return": 2}
        if command == "guest-fsfreeze-thaw":
            was, self.frozen = self.frozen, False
            return {"return": 2 if was else 0}
        if command == "guest-fsfreeze-status":
            return {"return": "frozen" if self.frozen else "thawed"}
        return {"error": {"class": "CommandNotFound", "desc": f"The command {command} is unknown"}}

    def _talk(self, connection):
        buffer = b""
        while True:
            data = connection.recv(4096)
            if not data:
                return
            buffer += data
            while b"\n" in buffer:
                line, buffer = buffer.split(b"\n", 1)
                # As the real one does: the mark of a new conversation is no JSON.
                if b"\xff" in line:
                    stray = {"class": "GenericError", "desc": "JSON parse error, stray '\xff'"}
                    connection.sendall(json.dumps({"error": stray}).encode() + b"\n")
                message = json.loads(line.rsplit(b"\xff", 1)[-1])
                answer = self._answer(message)
                if answer is not None and "id" in message:
                    answer["id"] = message["id"]
                with self.changed:
                    self.log.append(message["execute"])
                    self.changed.notify_all()
                if answer is not None:
                    mark = b"\xff" if message["execute"] == "guest-sync-delimited" else b""
                    connection.sendall(mark + json.dumps(answer).encode() + b"\n")

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection, contextlib.suppress(OSError):
                    self._talk(connection)

    def wait_for(self, command, times=1):
        """Until it was asked that so often."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.log.count(command) >= times,
                                         support.TIMEOUT), self.log

    def stop(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@contextlib.contextmanager
def agent_in(folder, script=None):
    agent = Agent(os.path.join(folder, "qga.sock"), script)
    try:
        yield agent
    finally:
        agent.stop()


class Disks:
    """What the machine's disks hold, kept beside it: every write goes to both.  A copy of this
    is what a restore point of that moment must be."""

    def __init__(self, machine):
        self.machine = machine
        self.content = {key: bytearray(machine.size) for key, _ in machine.disks}

    def write(self, key, pattern, offset, length):
        self.machine.io(key, f"write -P {pattern} {offset} {length}")
        self.content[key][offset:offset + length] = bytes([pattern]) * length

    def zero(self, key, offset, length):
        self.machine.io(key, f"write -z -u {offset} {length}")
        self.content[key][offset:offset + length] = bytes(length)

    def flush(self):
        for key in self.content:
            self.machine.io(key, "flush")

    def frozen(self):
        return {key: bytes(content) for key, content in self.content.items()}


def read_export(uri, folder):
    """All of it, by nbdcopy."""
    need("nbdcopy")
    path = os.path.join(folder, "read.raw")
    run("nbdcopy", "--no-extents", uri, path)
    with open(path, "rb") as file:
        return file.read()


def dirty_map(uri, bitmap):
    """What the bitmap calls dirty: a list of (offset, length)."""
    need("nbdinfo")
    out = run("nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{bitmap}", uri).json
    return [(extent["offset"], extent["length"]) for extent in out if extent["type"]]


class Proxy:
    """Stands between a session and QEMU's monitor, sees every command (with the descriptors
    that go along), and can do something just before or after one."""

    def __init__(self, path, target):
        self.path, self.target, self.session = path, target, None
        self.commands = []  # of all connections
        self.before = self.after = None  # called with (number of the command, its name)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(4)
        threading.Thread(target=self._serve, daemon=True).start()

    def _requests(self, client, server):
        """From the session to QEMU: a message is a line."""
        with contextlib.suppress(OSError):
            buffer, fds = b"", []
            while True:
                data, more, _, _ = socket.recv_fds(client, 65536, 8)
                if not data:
                    break
                buffer += data
                fds += more
                while b"\n" in buffer:
                    line, buffer = buffer.split(b"\n", 1)
                    name = json.loads(line)["execute"]
                    number = len(self.commands)
                    self.commands.append(name)
                    if self.before:
                        self.before(number, name)
                    socket.send_fds(server, [line + b"\n"], fds)
                    for fd in fds:
                        os.close(fd)
                    fds = []
                    if self.after:
                        self.after(number, name)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _forward(self, client, server):
        thread = threading.Thread(target=self._requests, args=(client, server), daemon=True)
        with contextlib.suppress(OSError):
            server.connect(self.target)
            thread.start()
            while data := server.recv(65536):
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        if thread.ident:
            thread.join()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.socket(socket.AF_UNIX)
                with client, server:
                    self._forward(client, server)

    def stop(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


@contextlib.contextmanager
def proxy_in(folder, target):
    proxy = Proxy(os.path.join(folder, "proxy.qmp"), target)
    try:
        yield proxy
    finally:
        proxy.stop()

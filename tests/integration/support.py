"""What the integration tests share: the binary under test, servers, oracles.

The binary is named by the environment's SENDENSE.  Nothing here sleeps: servers
are waited for by an event (a line that they print, a socket that listens before
they start, a log line), and every wait has an end.  Servers use sockets in the
test's own folder, and are stopped by their pid when the test is over.
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

SENDENSE = os.environ.get("SENDENSE", "")
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

# Sanitizers make everything slower, and the machine may be busy.
TIMEOUT = float(os.environ.get("SENDENSE_TEST_TIMEOUT", "60"))


def under_sanitizer():
    """True when the binary was built with ASan or TSan: no memory limits then."""
    with open(SENDENSE, "rb") as file:
        content = file.read()
    return b"__asan_init" in content or b"__tsan_init" in content


def need(*tools):
    """Skips the test, saying why, unless these programs (or Python modules) are there."""
    for tool in tools:
        if tool == "nbd":
            pytest.importorskip("nbd", reason="python3-libnbd is not installed")
        elif not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")


def need_mounts(folder):
    """Skips the test unless a user may mount in a namespace of its own."""
    need("unshare")
    tried = run("unshare", "-rm", "mount", "-t", "tmpfs", "none", folder, status=None)
    if tried.status != 0:
        pytest.skip(f"no mounts in a namespace here: {tried.err.strip()}")


def bad_input(case, message):
    """Adds a row to the table of bad inputs that ./run test prints."""
    path = os.environ.get("SENDENSE_BAD_INPUT_TABLE")
    if not path:
        return
    # The test's own folder says nothing to a reader.
    text = re.sub(r"/[^\s=]*/sd-\w+/?|" + re.escape(TOP) + "/", "", " ".join(str(message).split()))
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{case}\t{text}\n")


# --- running programs ---------------------------------------------------------


class Result:
    """How a program ended: .status, .out, .err (text), .json (stdout as JSON)."""

    def __init__(self, command, status, out, err):
        self.command, self.status, self.out, self.err = command, status, out, err

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def message(self):
        """Its error, without the program's name; log lines before it do not count."""
        for line in self.err.splitlines():
            if re.match("sendense: (?!(warning|info|debug): )", line):
                return line[len("sendense: "):]
        return ""

    def __repr__(self):
        return (f"{' '.join(map(str, self.command))}\nstatus {self.status}\n"
                f"stdout: {self.out}\nstderr: {self.err}")


def run(*command, status=0, timeout=None, stdin=None, **kwargs):
    """Runs any program to its end.  status: what is expected, None: anything."""
    command = [str(word) for word in command]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False,
                          timeout=timeout or TIMEOUT, **kwargs)
    result = Result(command, done.returncode, done.stdout.decode(errors="replace"),
                    done.stderr.decode(errors="replace"))
    if status is not None:
        assert result.status == status, result
    return result


def sendense(*arguments, **kwargs):
    """Runs the binary under test: sendense("copy", a, b, status=1)."""
    return run(SENDENSE, *arguments, **kwargs)


def fails(*arguments, status=1, case=None, contains=(), **kwargs):
    """Runs the binary, expects that status and a clear message with those texts,
    and with case= adds the message to the table of bad inputs."""
    result = sendense(*arguments, status=status, **kwargs)
    message = result.message
    assert message, result
    for text in [contains] if isinstance(contains, str) else contains:
        assert text in message, result
    if case:
        bad_input(case, message)
    return result


def wait_for(condition, what, timeout=None):
    """For states that nobody announces (a process that is gone): asks again, with
    a pause that grows, until condition() is true."""
    deadline = time.monotonic() + (timeout or TIMEOUT)
    pause = 0.002
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        select.select([], [], [], pause)
        pause = min(pause * 1.5, 0.05)


def is_readable(fd, deadline):
    """Waits until there is something to read, or the end."""
    poll = select.poll()  # select() knows the first 1,024 descriptors alone
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(deadline - time.monotonic(), 0) * 1000))


def read_line(stream, what, timeout=None):
    """One line from a pipe of a running process, b'' at its end."""
    deadline = time.monotonic() + (timeout or TIMEOUT)
    line = b""
    while not line.endswith(b"\n"):
        assert is_readable(stream, deadline), f"waited in vain for {what}"
        byte = os.read(stream.fileno(), 1)
        if not byte:
            break
        line += byte
    return line


# --- processes that stay ---------------------------------------------------------


class Process:
    """A program that runs beside the test.  Its output goes to files, so that it
    never blocks, except that stdout is a pipe with pipe=True."""

    def __init__(self, command, folder, name, pipe=False, **kwargs):
        self.command = [str(word) for word in command]
        self.err_path = os.path.join(folder, f"{name}.err")
        self.out_path = os.path.join(folder, f"{name}.out")
        with open(self.err_path, "wb") as err, open(self.out_path, "wb") as out:
            self.popen = subprocess.Popen(  # pylint: disable=consider-using-with
                self.command, stdin=subprocess.DEVNULL, stderr=err,
                stdout=subprocess.PIPE if pipe else out, **kwargs)
        self.pid = self.popen.pid

    @property
    def err(self):
        with open(self.err_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    @property
    def out(self):
        with open(self.out_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    @property
    def running(self):
        return self.popen.poll() is None

    def signal(self, number):
        self.popen.send_signal(number)

    def wait(self, timeout=None):
        """Its exit status."""
        return self.popen.wait(timeout or TIMEOUT)

    def wait_err(self, text, timeout=None):
        """Until the text stands in its standard error."""
        wait_for(lambda: text in self.err or not self.running, f"{text!r} of {self.command}",
                 timeout)
        assert text in self.err, f"{self.command} ended without {text!r}: {self.err}"

    def stop(self, expect=None):
        """SIGTERM, and SIGKILL when that does not end it in time."""
        if self.running:
            self.popen.terminate()
        try:
            status = self.popen.wait(20)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise
        finally:
            if self.popen.stdout:
                self.popen.stdout.close()
        if expect is not None:
            assert status == expect, f"{self.command}: {status}\n{self.err}"
        return status

    def peak_kib(self):
        """The most memory that it had so far (VmHWM)."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1])
        return 0


# Starts a program with an already listening socket as descriptor 3, by systemd's
# protocol: connecting works from the first moment, and no port is guessed.
ACTIVATE = """
import os, sys
fd = int(sys.argv[1])
os.dup2(fd, 3)
if fd != 3:
    os.close(fd)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Servers:
    """Starts servers in a folder, stops them all at the end."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.started = []
        self.nr = 0

    def new_name(self, kind):
        self.nr += 1
        return f"{kind}{self.nr}"

    def start(self, *command, name="process", pipe=False, **kwargs):
        """Any program that stays."""
        process = Process(command, self.folder, self.new_name(name), pipe=pipe, **kwargs)
        self.started.append(process)
        return process

    def activate(self, *command, tcp=False, export="", name="server", **kwargs):
        """A server that takes LISTEN_FDS; its .uri works at once."""
        if tcp:
            listener = socket.socket(socket.AF_INET)
            listener.bind(("127.0.0.1", 0))
            uri = f"nbd://127.0.0.1:{listener.getsockname()[1]}/{export}"
            path = None
        else:
            listener = socket.socket(socket.AF_UNIX)
            path = os.path.join(self.folder, self.new_name("s") + ".sock")
            listener.bind(path)
            uri = f"nbd+unix:///{export}?socket={path}"
        with listener:
            listener.listen(64)
            process = self.start(sys.executable, "-c", ACTIVATE, str(listener.fileno()), *command,
                                 name=name, pass_fds=(listener.fileno(),), **kwargs)
        process.uri, process.socket = uri, path
        return process

    def qemu_nbd(self, image, image_format="raw", tcp=False, read_only=False, shared=16, export="",
                 options=()):
        need("qemu-nbd")
        return self.activate("qemu-nbd", "-f", image_format, "-t", f"--shared={shared}",
                             *(["-r"] if read_only else []), *(["-x", export] if export else []),
                             *options, image, tcp=tcp, export=export, name="qemu-nbd")

    def nbdkit(self, *arguments, tcp=False, export=""):
        """nbdkit with these arguments: plugin, parameters, filters."""
        need("nbdkit")
        return self.activate("nbdkit", "-f", *arguments, tcp=tcp, export=export, name="nbdkit")

    def export(self, image, *options, tcp=False, where=None, command="export"):
        """sendense export (or serve), ready by its own word: .uri is what it said."""
        if where is None:
            where = (["--port", "0"] if tcp else
                     ["--socket", os.path.join(self.folder, self.new_name("e") + ".sock")])
        process = self.start(SENDENSE, command, image, *where, *options, name=command, pipe=True)
        line = read_line(process.popen.stdout, f"the URI of {process.command}")
        assert line, f"{process.command} ended with {process.wait()}: {process.err}"
        process.uri = line.decode().strip()
        return process

    def stop_all(self):
        errors = []
        for process in reversed(self.started):
            try:
                process.stop()
            except subprocess.TimeoutExpired:
                errors.append(f"{process.command} did not end on SIGTERM: {process.err}")
        self.started = []
        assert not errors, "\n".join(errors)


@contextlib.contextmanager
def servers_in(folder):
    servers = Servers(folder)
    try:
        yield servers
    finally:
        servers.stop_all()


def on_terminal(*command, columns=120, timeout=None):
    """Runs a program with a terminal as its stderr: status, what the terminal got."""
    try:
        master, slave = pty.openpty()
    except OSError as error:
        pytest.skip(f"no terminals here: {error}")
    fcntl.ioctl(slave, 0x5414, (24).to_bytes(2, sys.byteorder)  # TIOCSWINSZ
                + columns.to_bytes(2, sys.byteorder) + bytes(4))
    got = b""
    deadline = time.monotonic() + (timeout or TIMEOUT)
    with subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                          stdout=subprocess.DEVNULL, stderr=slave) as popen:
        os.close(slave)
        try:
            while True:
                assert is_readable(master, deadline), f"{command} said nothing more: {got}"
                data = os.read(master, 65536)
                if not data:
                    break
                got += data
        except OSError:
            pass  # EIO: the last writer is gone
        finally:
            os.close(master)
            if popen.poll() is None and time.monotonic() > deadline:
                popen.kill()
    return popen.returncode, got.decode(errors="replace")


# --- disks -------------------------------------------------------------------------


def make_disk(path, size, pieces=(), seed=1):
    """A sparse raw disk.  pieces: (offset, length, kind) with kind "random",
    "text" (compresses well) or "zero" (written zeros, no hole)."""
    import random  # pylint: disable=import-outside-toplevel
    rng = random.Random(seed)
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, length, kind in pieces:
            file.seek(offset)
            while length > 0:
                n = min(length, MIB)
                if kind == "random":
                    data = rng.randbytes(n)
                elif kind == "text":
                    data = (b"%016d the quick brown fox\n" % rng.randrange(10**9) * (n // 20 + 1))[:n]
                else:
                    data = bytes(n)
                file.write(data)
                length -= n
    return path


def allocated(path):
    """Bytes that a file takes."""
    return os.stat(path).st_blocks * 512


def qemu_check(image):
    """qemu-img check: no errors and no leaks."""
    need("qemu-img")
    return run("qemu-img", "check", "-f", "qcow2", image)


def same_content(a, a_format, b, b_format):
    """qemu-img compare."""
    need("qemu-img")
    return run("qemu-img", "compare", "-f", a_format, "-F", b_format, a, b)


def interrupt(process, number=signal.SIGINT):
    """Sends the signal; seconds until it ended, and its status."""
    began = time.monotonic()
    process.signal(number)
    status = process.wait()
    return time.monotonic() - began, status

"""The NBD service as a process of a test's own, and its control socket."""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess

import support
from support import MIB, TIMEOUT, sendense

CHUNK = 65536
ENDS = ("committed", "refused", "failed", "left", "expired", "aborted")


class Refused(Exception):
    """What the service answered: .code, .text."""

    def __init__(self, error):
        super().__init__(f"{error['code']}: {error['text']}")
        self.code, self.text = error["code"], error["text"]


class Service:
    """A running service.  call("session-open", ...) asks it."""

    def __init__(self, folder, under=(), **config):
        self.folder, self.pid = folder, None
        self.process = None
        os.makedirs(folder, mode=0o700, exist_ok=True)
        config.setdefault("listen", {"address": "127.0.0.1", "port": 0})
        with open(f"{folder}/nbd.json", "w", encoding="utf-8") as file:
            json.dump(config, file)
        self.start(*under)

    def start(self, *under):
        """under: a program that starts it, with its options."""
        with open(f"{self.folder}/nbd.log", "ab") as log:
            # pylint: disable=consider-using-with
            self.process = subprocess.Popen(
                [*under, support.SENDENSE, "nbd-service", self.folder],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                # Leaks cannot be looked for under strace.
                env=dict(os.environ, ASAN_OPTIONS="detect_leaks=0") if under else None)
        support.wait_for(self.answers, "the service to answer")

    def answers(self):
        assert self.process.poll() is None, self.log()
        try:
            self.pid = self.call("status")["pid"]
            return True
        except OSError:
            return False

    def log(self):
        with open(f"{self.folder}/nbd.log", encoding="utf-8", errors="replace") as file:
            return file.read()

    def call(self, verb, octets=None, **members):
        """The answer, or (answer, octets) where it has any."""
        request = dict(members, verb=verb)
        if octets is not None:
            request["octets"] = len(octets)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(f"{self.folder}/nbd.sock")
            sock.sendall(json.dumps(request).encode() + b"\n" + (octets or b""))
            with sock.makefile("rb") as file:
                line = file.readline()
                if not line:
                    raise ConnectionError("the service ended")
                answer = json.loads(line)
                if not answer.pop("ok"):
                    raise Refused(answer["error"])
                if "octets" in answer:
                    return answer, file.read(answer.pop("octets"))
        return answer

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT)

    def stop(self):
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
            try:
                self.process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return self.process.returncode

    # --- sessions -----------------------------------------------------------

    def open(self, session, repo, disks, vm="web", **members):
        """disks: {key: size} or a list of objects."""
        if isinstance(disks, dict):
            disks = [{"key": key, "size_bytes": size} for key, size in disks.items()]
        members.setdefault("client", {"software": "test 1.0"})
        return self.call("session-open", session=session, repository=repo, vm=vm, disks=disks,
                         **members)

    def until(self, session, *states, timeout=TIMEOUT):
        """Waits until it is in one of these states, or has ended."""
        seen = {"changes": -1}

        def there():
            seen.update(self.call("session", session=session, wait_ms=500, seen=seen["changes"]))
            return seen["state"] in states or seen["state"] in ENDS
        support.wait_for(there, f"session {session} to be {states}", timeout)
        return seen

    def commit(self, session, disks):
        """disks: {key: digest or None}; returns how it ended."""
        self.call("session-commit", session=session, disks=[
            {"key": key, **({"digest": digest} if digest else {})}
            for key, digest in disks.items()])
        return self.until(session)


@contextlib.contextmanager
def service(folder, **config):
    running = Service(folder, **config)
    try:
        yield running
    finally:
        status = running.stop()
    # What a sanitizer finds ends it with another one.
    assert status in (0, -signal.SIGKILL), running.log()


def exports(opened):
    return {disk["key"]: disk["export"] for disk in opened["disks"]}


def make_repository(path, *options):
    sendense("repo", "init", path, *options)
    return path


# --- digests, computed here ------------------------------------------------------


class Digests:
    """What a client that follows the document computes; for repositories with sha256."""

    def __init__(self, opened):
        self.kind = opened["digest"]
        assert self.kind["algorithm"] == "sha256" and self.kind["chunk_bytes"] == CHUNK

    @staticmethod
    def node(chunk):
        return hashlib.sha256(chunk).digest() if chunk.strip(b"\0") else b"\xff" * 32

    def root(self, data):
        size = len(data)
        level = [self.node(data[at:at + CHUNK]) for at in range(0, size, CHUNK)]
        zero = b"\xff" * 32
        while len(level) > 1:
            if len(level) % 2:
                level.append(zero)
            level = [hashlib.sha256(level[i] + level[i + 1]).digest()
                     for i in range(0, len(level), 2)]
            zero = hashlib.sha256(zero + zero).digest()
        text = b"sendense-root-1" + bytes([2]) + CHUNK.to_bytes(4, "big") + size.to_bytes(8, "big")
        return {"kind": "root", "hex": hashlib.sha256(text + level[0]).hexdigest()}

    def sent(self, data, chunks):
        total = hashlib.sha256()
        for chunk in sorted(chunks):
            total.update(chunk.to_bytes(8, "big") +
                         self.node(data[chunk * CHUNK:(chunk + 1) * CHUNK]))
        return {"kind": "sent", "hex": total.hexdigest()}


def read_records(octets, leaf_bytes):
    """[(kind, sent, leaf or None)] for each chunk."""
    chunks, at = [], 0
    while at < len(octets):
        kind, nr = octets[at], int.from_bytes(octets[at + 1:at + 5], "big")
        at += 5
        for _ in range(nr):
            leaf = None
            if kind & 15 == 2:
                leaf = octets[at:at + leaf_bytes]
                at += leaf_bytes
            chunks.append((kind & 15, bool(kind & 16), leaf))
    return chunks


def random_disk(seed, size=4 * MIB + 1536):
    """Data and zeros, always the same for a seed."""
    out, at = bytearray(size), 0
    state = hashlib.sha256(str(seed).encode()).digest()
    while at < size:
        state = hashlib.sha256(state).digest()
        length = 512 * (1 + int.from_bytes(state[:2], "big") % 400)
        if state[2] % 3:
            part = (state * (length // 32 + 1))[:length]
            out[at:at + length] = part[:size - at]
        at += length
    return bytes(out[:size])

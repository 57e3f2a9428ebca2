"""Dirty bitmaps over NBD: the client's map beside nbdinfo's, and servers that answer
in any way that the protocol allows, or forbids."""

import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import threading

import pytest

import nbd_raw as raw
from support import KIB, MIB, SENDENSE, TIMEOUT, need, read_line, run

MAP_CHANGES = os.path.join(os.path.dirname(SENDENSE), "../../tests/tools/map_changes")
SIZE = 24 * MIB + 4096
PREFIX = "qemu:dirty-bitmap:"


@contextlib.contextmanager
def mapper(uri, bitmap):
    """The tool, running: it maps once, and again for each line."""
    with subprocess.Popen([MAP_CHANGES, uri, f"bitmap:{bitmap}"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def read_map(process):
    """[(offset, length, states), ...] up to the tool's "end"; None when it failed."""
    found = []
    while (line := read_line(process.stdout, "the map")) not in (b"end\n", b""):
        offset, length, *states = line.decode().split()
        found.append((int(offset), int(length), set(states)))
    return found if line else None


def map_of(uri, bitmap):
    """(has_changes, map)"""
    with mapper(uri, bitmap) as process:
        first = read_line(process.stdout, "the first line")
        assert first in (b"changes yes\n", b"changes no\n"), process.stderr.read()
        return first == b"changes yes\n", read_map(process)


def map_error(uri, bitmap):
    """The reason why it failed."""
    process = subprocess.run([MAP_CHANGES, uri, f"bitmap:{bitmap}"], stdin=subprocess.DEVNULL,
                             capture_output=True, timeout=TIMEOUT, check=False)
    assert process.returncode == 1, process
    return process.stderr.decode()


def spread(extents, unit=512):
    """One state for each unit."""
    states = []
    for offset, length, state in extents:
        assert offset == len(states) * unit and length % unit == 0
        states += [state] * (length // unit)
    return states


def oracle(uri, bitmap, unit=512):
    """The same from nbdinfo: states of base:allocation and of the bitmap together."""
    def ask(context):
        answer = json.loads(run("nbdinfo", f"--map={context}", "--json", uri).out)
        return spread([(e["offset"], e["length"], e["type"]) for e in answer], unit)
    words = {0: {"data"}, 1: {"hole"}, 2: {"zero"}, 3: {"hole", "zero"}}
    return [words[base] | ({"unchanged"} if dirty == 0 else set())
            for base, dirty in zip(ask("base:allocation"), ask(PREFIX + bitmap), strict=True)]


def make_image(path, granularity, writes, seed):
    """A qcow2 image with data and zeros, then a bitmap, then writes and zeros."""
    rng = random.Random(seed)
    script = [f"write -P 1 0 {SIZE // 2}", f"write -z {SIZE // 4 // 4096 * 4096} 1M"]
    run("qemu-img", "create", "-q", "-f", "qcow2", path, SIZE)
    run("qemu-io", *[word for line in script for word in ("-c", line)], path)
    run("qemu-img", "bitmap", "--add", "-g", granularity, path, "b0")
    words = []
    for _ in range(writes):
        length = rng.choice([512, 4 * KIB, 64 * KIB, 200 * KIB])
        offset = rng.randrange((SIZE - length) // 512) * 512
        words += ["-c", f"write {rng.choice(['-P 2', '-z'])} {offset} {length}"]
    run("qemu-io", *words, path)
    return path


@pytest.mark.parametrize("granularity", [4 * KIB, 64 * KIB, 2 * MIB])
def test_as_nbdinfo_sees_it(scratch, servers, granularity):
    need("qemu-nbd", "qemu-io", "nbdinfo")
    image = make_image(f"{scratch}/a.qcow2", granularity, 30, granularity)
    server = servers.qemu_nbd(image, "qcow2", read_only=True, options=["-B", "b0"])
    has_changes, found = map_of(server.uri, "b0")
    assert has_changes
    expected = oracle(server.uri, "b0")
    assert spread(found) == expected
    assert any("unchanged" in state for state in expected)
    assert any("unchanged" not in state for state in expected)


def test_many_extents(scratch, servers):
    """More than one answer holds: every other cluster is dirty."""
    need("qemu-nbd", "qemu-io", "nbdinfo")
    image = f"{scratch}/a.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", image, SIZE)
    run("qemu-img", "bitmap", "--add", "-g", 4096, image, "b0")
    lines = [f"write -z {at} 4k" for at in range(0, 12 * MIB, 8 * KIB)]
    run("qemu-io", *[word for line in lines for word in ("-c", line)], image)
    server = servers.qemu_nbd(image, "qcow2", read_only=True, options=["-B", "b0"])
    has_changes, found = map_of(server.uri, "b0")
    assert has_changes and len(found) > 3000
    assert spread(found, 4096) == oracle(server.uri, "b0", 4096)


@pytest.mark.parametrize("served", [(), ("-B", "other")])
def test_no_such_bitmap(scratch, servers, served):
    """The disk opens all the same, and tells of no changes."""
    need("qemu-nbd", "qemu-img")
    image = f"{scratch}/a.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", image, SIZE)
    run("qemu-img", "bitmap", "--add", image, "other")
    server = servers.qemu_nbd(image, "qcow2", read_only=True, options=served)
    has_changes, found = map_of(server.uri, "b0")
    assert not has_changes
    assert not any("unchanged" in states for _, _, states in found)


@pytest.mark.parametrize("name", ["", "x" * 1024, "a\nb", "a\x7f"])
def test_bad_name(servers, name):
    assert "its name must have 1..1023 bytes" in map_error(
        servers.nbdkit("memory", "1M").uri, name)


# --- a server with answers of a test's own ------------------------------------------


class Scripted:
    """Serves a disk whose BLOCK_STATUS answers are contexts[name] = [[(length, state)]]:
    for each connection one list of extents from offset 0 on, or several of them, each in
    a chunk of its own.  most: extents of each answer at most."""

    def __init__(self, folder, contexts, most=(1000, 1000), drop_after=None):
        self.contexts, self.most, self.drop_after = contexts, most, drop_after
        self.path = os.path.join(folder, "scripted.sock")
        self.uri = f"nbd+unix:///?socket={self.path}"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(8)
        self.failure = None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(TIMEOUT)
        self.listener.close()
        assert not self.failure, self.failure

    def run(self):
        try:
            while True:
                try:
                    sock, _ = self.listener.accept()
                except OSError:
                    return
                with sock:
                    sock.settimeout(TIMEOUT)
                    self.serve(sock)
        except Exception as failure:  # pylint: disable=broad-except
            self.failure = failure

    @staticmethod
    def get(sock, length):
        data = b""
        while len(data) < length:
            piece = sock.recv(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def serve(self, sock):
        with contextlib.suppress(EOFError, ConnectionError):
            selected = self.handshake(sock)
            while True:
                _, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", self.get(sock, 28))
                if kind == raw.DISC:
                    return
                assert kind == raw.STATUS
                self.answer(sock, selected, cookie, offset, length)
                if self.drop_after:
                    self.drop_after()
                    self.drop_after = None
                    return

    def handshake(self, sock):
        selected = []

        def reply(option, kind, data=b""):
            sock.sendall(struct.pack(">QIII", raw.REPLY_MAGIC, option, kind, len(data)) + data)

        sock.sendall(raw.MAGIC + raw.OPTION_MAGIC + struct.pack(">H", 3))
        self.get(sock, 4)
        while True:
            _, option, length = struct.unpack(">8sII", self.get(sock, 16))
            data = self.get(sock, length)
            if option == raw.OPT_SET_META:
                selected = [name for name in self.contexts if name.encode() in data]
                for number, name in enumerate(selected):
                    reply(option, raw.REP_META, struct.pack(">I", 10 + number) + name.encode())
                reply(option, raw.REP_ACK)
            elif option == raw.OPT_STRUCTURED:
                reply(option, raw.REP_ACK)
            elif option == raw.OPT_GO:
                # HAS_FLAGS, READ_ONLY, CAN_MULTI_CONN
                reply(option, raw.REP_INFO, struct.pack(">HQH", 0, SIZE, 0x103))
                reply(option, raw.REP_ACK)
                return selected
            else:
                reply(option, raw.ERR_UNSUP)

    def answer(self, sock, selected, cookie, offset, length):
        chunks = []
        for number, name in enumerate(selected):
            for extents in self.contexts[name]:
                payload, at = struct.pack(">I", 10 + number), 0
                for n, (extent, state) in enumerate(extents):
                    start, stop = max(at, offset), min(at + extent, offset + length)
                    at += extent
                    if stop > start or extent == 0:
                        payload += struct.pack(">II", max(stop - start, 0), state)
                    if len(payload) >= 4 + 8 * self.most[number % 2]:
                        break
                    del n
                chunks.append(payload)
        for i, payload in enumerate(chunks):
            sock.sendall(struct.pack(">IHHQI", 0x668E33EF, i == len(chunks) - 1, 5, cookie,
                                     len(payload)) + payload)


@pytest.fixture
def scripted(scratch):
    started = []

    def start(*arguments, **kwargs):
        started.append(Scripted(scratch, *arguments, **kwargs))
        return started[-1]
    yield start
    for server in started:
        server.close()


def random_extents(seed, states):
    rng, extents, left = random.Random(seed), [], SIZE
    while left > 0:
        length = min(rng.choice([512, 4096, 65536, 300 * KIB, 2 * MIB]), left)
        extents.append((length, rng.choice(states)))
        left -= length
    return extents


@pytest.mark.parametrize("most", [(1, 1), (1000, 1000), (1, 7), (7, 1), (2, 1000)])
@pytest.mark.parametrize("bitmap_first", [False, True])
def test_contexts_of_different_lengths(scripted, most, bitmap_first):
    base, dirty = random_extents(1, [0, 1, 2, 3]), random_extents(2, [0, 1])
    contexts = {"base:allocation": [base], PREFIX + "b0": [dirty]}
    if bitmap_first:
        contexts = dict(reversed(contexts.items()))
    has_changes, found = map_of(scripted(contexts, most=most).uri, "b0")
    assert has_changes
    words = {0: {"data"}, 1: {"hole"}, 2: {"zero"}, 3: {"hole", "zero"}}

    def flat(extents):
        return [state for length, state in extents for _ in range(length // 512)]
    assert spread(found) == [words[b] | ({"unchanged"} if d == 0 else set())
                             for b, d in zip(flat(base), flat(dirty), strict=True)]


def test_bitmap_alone(scripted):
    """A server that has the bitmap and no base:allocation."""
    has_changes, found = map_of(scripted({PREFIX + "b0": [[(MIB, 0), (SIZE - MIB, 1)]]}).uri, "b0")
    assert has_changes
    assert found == [(0, MIB, {"data", "unchanged"}), (MIB, SIZE - MIB, {"data"})]


def test_unknown_states_count_as_changed(scripted):
    _, found = map_of(scripted({PREFIX + "b0": [[(MIB, 0), (SIZE - MIB, 2)]]}).uri, "b0")
    assert found[1] == (MIB, SIZE - MIB, {"data"})


@pytest.mark.parametrize("bitmap, words", [
    ([[(MIB, 0), (0, 1), (MIB, 0)]], "an empty extent"),
    ([[(MIB, 0)], [(MIB, 1)]], "one context twice"),
    ([], "no extents of the dirty bitmap"),
])
def test_bad_answers(scripted, bitmap, words):
    server = scripted({"base:allocation": [[(SIZE, 0)]], PREFIX + "b0": bitmap})
    error = map_error(server.uri, "b0")
    assert error.startswith("protocol:") and words in error, error


@pytest.mark.parametrize("change", ["lost", "gained"])
def test_another_server_after_a_loss(scripted, change):
    """Without the bitmap, what is unchanged would be a guess."""
    server = scripted({"base:allocation": [[(SIZE, 0)]], PREFIX + "b0": [[(SIZE, 0)]]})
    full, bare = dict(server.contexts), {"base:allocation": server.contexts["base:allocation"]}
    server.contexts = full if change == "lost" else bare

    def other():
        server.contexts = bare if change == "lost" else full
    server.drop_after = other
    with mapper(server.uri, "b0") as process:
        assert read_line(process.stdout, "changes")
        assert read_map(process)
        process.stdin.write(b"again\n")
        process.stdin.flush()
        assert read_map(process) is None
        error = process.stderr.read().decode()
    verb = "does not offer" if change == "lost" else "offers"
    assert f"{verb} qemu:dirty-bitmap:b0 on a new connection" in error, error
    assert "range:" in error, error

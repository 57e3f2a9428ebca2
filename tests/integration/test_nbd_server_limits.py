"""What the NBD server does with bad clients, slow ones, and too many: it says
so, and everybody else goes on."""

import os
import re
import signal
import socket
import struct
import subprocess
import time

import pytest

import nbd_raw as raw
from support import SENDENSE, KIB, MIB, bad_input, need, run, under_sanitizer

SIZE = 64 * MIB


@pytest.fixture(name="server")
def fixture_server(servers):
    return raw.serve(servers, f"null:{SIZE}", "handshake-ms=300", "send-ms=400", tcp=True)


def log_line(server, text):
    """The log line with that text, without its level and the peer's port."""
    server.wait_err(text)
    line = next(line for line in server.err.splitlines() if text in line)
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", line.partition(": ")[2])


def still_serves(server):
    with raw.Client(server.connect()) as client:
        client.go("")
        assert client.read(0, 1000) == bytes(1000)


# --- bad input ------------------------------------------------------------------


@pytest.mark.parametrize("case, data, text", [
    ("NBD client sends garbage for its handshake flags", b"GET / HTTP/1.1\r\n\r\n",
     "unknown handshake flags"),
    ("NBD client sends garbage for an option", struct.pack(">I", 3) + b"\xff" * 64,
     "what should be an option has magic"),
    ("NBD client sends an option with 4 GiB of data",
     struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, 0xFFFFFFFF),
     "GO with 4294967295 bytes of data"),
    ("NBD client sends options without end",
     struct.pack(">I", 3) + (b"IHAVEOPT" + struct.pack(">II", 99, 0)) * 200,
     "128 options and no end"),
    ("NBD client names an export that is not there (EXPORT_NAME)",
     struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 1) + b"x",
     "there is no export 'x' here"),
    ("NBD client with an old handshake sends GO",
     struct.pack(">I", 0) + b"IHAVEOPT" + struct.pack(">IIIH", 7, 6, 0, 0),
     "option 7 without the fixed newstyle handshake"),
])
def test_garbage_in_the_handshake(server, case, data, text):
    with raw.Client(server.connect(), flags=None) as client:
        client.get(18)
        client.sock.sendall(data)
        while not client.at_end():
            pass
    bad_input(case, log_line(server, text))
    still_serves(server)


def test_handshake_that_stalls(server):
    for nr_bytes in (0, 2, 4, 14):
        with raw.Client(server.connect(), flags=None) as client:
            client.get(18)
            client.sock.sendall((struct.pack(">I", 3) + b"IHAVEOPT\0\0\0\7")[:nr_bytes])
            assert client.at_end()
    bad_input("NBD client stops in the middle of the handshake",
              log_line(server, "waiting for an option: "))
    still_serves(server)


def test_handshake_that_drips(server):
    """A byte now and then does not put the deadline off."""
    with raw.Client(server.connect()) as client:
        began = time.monotonic()
        client.sock.settimeout(0.05)
        try:
            while time.monotonic() < began + 20:
                client.sock.send(b"I")
                try:
                    if client.sock.recv(1) == b"":
                        break
                except socket.timeout:
                    pass
        except OSError:
            pass
        assert time.monotonic() - began < 5
    still_serves(server)


def test_garbage_for_a_request(server):
    with raw.Client(server.connect()) as client:
        client.go("")
        client.sock.sendall(b"\xde\xad\xbe\xef" * 16)
        assert client.at_end()
    bad_input("NBD client sends garbage for a request",
              log_line(server, "what should be a request has another magic"))
    still_serves(server)


@pytest.mark.parametrize("headers", [raw.OPT_STRUCTURED, raw.OPT_EXTENDED])
def test_wrong_header_style(server, headers):
    with raw.Client(server.connect()) as client:
        client.headers(headers)
        client.go("")
        client.put(raw.READ, 0, 1, magic=0x25609513 if client.extended else 0x21E41C71)
        client.sock.sendall(bytes(8))
        assert client.at_end()


def test_half_a_request_header(server):
    with raw.Client(server.connect()) as client:
        client.go("")
        client.sock.sendall(struct.pack(">IHHQ", 0x25609513, 0, 0, 1))
        assert client.at_end()
    bad_input("NBD client sends half a header and waits",
              log_line(server, "receiving a request: nothing came"))
    with raw.Client(server.connect()) as client:
        client.go("")
        client.sock.sendall(struct.pack(">IHHQ", 0x25609513, 0, 0, 1))
    bad_input("NBD client sends half a header and vanishes",
              log_line(server, "closed the connection in the middle of one"))
    still_serves(server)


def test_half_a_payload(server):
    with raw.Client(server.connect()) as client:
        client.go("")
        client.put(raw.WRITE, 0, MIB, 0, bytes(MIB // 2))
        assert client.at_end()
    bad_input("NBD client stops in the middle of a write", log_line(server, "bytes came)"))
    still_serves(server)


@pytest.mark.parametrize("headers", [raw.OPT_STRUCTURED, raw.OPT_EXTENDED])
def test_length_of_4_gib(server, headers):
    with raw.Client(server.connect()) as client:
        client.headers(headers)
        client.go("")
        text, error = client.request(raw.READ, 0, 0xFFFFFFFF)
        assert error == raw.EINVAL
        text, error = client.request(raw.WRITE, 0, 0xFFFFFFFF)
        assert error == raw.EINVAL and "the most is 67108864" in text
        bad_input("NBD client asks for a write of 4 GiB", text)
    if not under_sanitizer():
        assert server.peak_kib() < 32 * KIB
    still_serves(server)


def test_too_long_write_is_swallowed_and_refused(server):
    with raw.Client(server.connect()) as client:
        client.headers(raw.OPT_STRUCTURED)
        client.go("")
        client.put(raw.WRITE, 0, 65 * MIB)
        _, error = client.finish()
        assert error == raw.EINVAL
        for _ in range(65):
            client.sock.sendall(bytes(MIB))
        assert client.request(raw.FLUSH) == ([], 0)


def test_clients_that_vanish(servers):
    """A thousand times over, at any moment of a reply."""
    server = raw.serve(servers, f"null:{SIZE}", tcp=False)
    hard = struct.pack("ii", 1, 0)
    for i in range(1000):
        with raw.Client(server.connect()) as client:
            if i % 2:
                client.headers(raw.OPT_STRUCTURED)
            client.go("")
            for _ in range(i % 4):
                client.put(raw.READ, 0, 2 * MIB, raw.DF if i % 2 else 0)
            if i % 3 == 0:
                client.put(raw.WRITE, 0, MIB, 0, bytes(i * 100))
            if i % 4:
                client.get(i)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, hard)
    assert server.running
    with raw.Client(server.connect()) as client:
        client.go("")
        assert client.read(0, 1000) == bytes(1000)


# --- slow ones -------------------------------------------------------------------


def test_client_that_stops_reading(server):
    with raw.Client(server.connect(receive_buffer=4096)) as slow:
        slow.go("")
        for _ in range(32):
            slow.put(raw.READ, 0, 16 * MIB)
        still_serves(server)
        bad_input("NBD client stops reading", log_line(server, "the peer took nothing for 400 ms"))
    still_serves(server)


def test_idle_client(servers):
    server = raw.serve(servers, f"null:{SIZE}", "idle-ms=200")
    with raw.Client(server.connect()) as client:
        client.go("")
        assert client.at_end()
    server.wait_err("no request for 200 ms")


def test_a_stuck_client_does_not_hold_up_others(servers):
    """Many that do not read hold what they may of the budget; one more works."""
    server = raw.serve(servers, f"null:{SIZE}", f"budget={2 * MIB}", "max-connections=5")
    stuck = []
    try:
        for _ in range(4):
            client = raw.Client(server.connect(receive_buffer=4096))
            client.go("")
            for _ in range(16):
                client.put(raw.READ, 0, 4 * MIB)
            stuck.append(client)
        with raw.Client(server.connect()) as client:
            client.go("")
            for _ in range(5):
                assert client.read(0, 4 * MIB) == bytes(4 * MIB)
            assert client.request(raw.WRITE, 0, 4 * MIB, 0, bytes(4 * MIB)) == ([], 0)
    finally:
        for client in stuck:
            client.sock.close()


# --- too many -----------------------------------------------------------------------


@pytest.fixture(name="full")
def fixture_full(servers):
    """A server with one place, and the client that has it."""
    server = raw.serve(servers, f"null:{SIZE}", "max-connections=1", "handshake-ms=1000", tcp=True)
    with raw.Client(server.connect()) as client:
        client.go("")
        server.holder = "127.0.0.1:%d" % client.sock.getsockname()[1]
        yield server
        assert client.read(0, 100) == bytes(100)


def refusal_shown_by(server, *command, env=None):
    """The program's output names the holder, within a second or so."""
    began = time.monotonic()
    done = run(*command, status=None, env={**os.environ, **(env or {})})
    took = time.monotonic() - began
    assert done.status != 0
    text = done.out + done.err
    assert re.search(r"1 of 1 connections in use, by " + re.escape(server.holder)
                     + r" since 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ; try again later", text), text
    assert took < (5 if under_sanitizer() else 1), took


def test_limit_in_qemu_img(full):
    need("qemu-img")
    refusal_shown_by(full, "qemu-img", "info", full.uri)


def test_limit_in_nbdinfo(full):
    need("nbdinfo")
    refusal_shown_by(full, "nbdinfo", full.uri, env={"LIBNBD_DEBUG": "1"})


def test_limit_in_sendense_copy(servers, scratch):
    server = raw.serve(servers, f"null:{SIZE}", "max-connections=1")
    server.holder = f"unix:PID {os.getpid()} (uid {os.getuid()})"
    with raw.Client(server.connect()) as client:
        client.go("")
        refusal_shown_by(server, SENDENSE, "copy", server.uri,
                         "raw:" + os.path.join(scratch, "x.raw"))


def test_limit_on_the_wire(full):
    with raw.Client(full.connect()) as client:
        client.headers(raw.OPT_STRUCTURED)
        for option, data in ((raw.OPT_GO, client.name_data("")), (raw.OPT_LIST, b""),
                             (raw.OPT_INFO, client.name_data(""))):
            (kind, text), = client.option(option, data)
            assert kind == raw.ERR_POLICY and full.holder.encode() in text
            message = text.decode()
        bad_input("NBD client above --max-connections",
                  re.sub(r":\d+ since \S+;", ":PORT since TIME;", message))
        # Whoever does not take no for an answer has the handshake's deadline.
        assert client.at_end()


def test_limit_with_export_name(full):
    with raw.Client(full.connect()) as client:
        client.put_option(raw.OPT_EXPORT_NAME, b"")
        assert client.at_end()
    full.wait_err(f"EXPORT_NAME refused: 1 of 1 connections in use, by {full.holder}")


def test_place_is_free_again(servers):
    """Refused before, welcome once the first is gone, on the same connection."""
    server = raw.serve(servers, f"null:{SIZE}", "max-connections=1")
    with raw.Client(server.connect()) as second:
        with raw.Client(server.connect()) as first:
            first.go("")
            assert second.option(raw.OPT_GO, second.name_data(""))[0][0] == raw.ERR_POLICY
            first.put(raw.DISC)
            assert first.at_end()
        second.go("")


def test_slot_is_freed(servers):
    server = raw.serve(servers, f"null:{SIZE}", "max-connections=1")
    for _ in range(20):
        client = raw.Client(server.connect())
        client.go("")
        client.put(raw.DISC)
        assert client.at_end()
        client.sock.close()


def test_many_in_the_handshake(servers):
    """More than are talked to at once: those that say nothing give way, long before their time."""
    server = raw.serve(servers, f"null:{SIZE}", "handshake-ms=600000")
    idle = [server.connect() for _ in range(200)]
    try:
        still_serves(server)
        server.wait_err("others have to wait")
        server.wait_err("silent or slow, and others wait")
    finally:
        for sock in idle:
            sock.close()


# --- ends ---------------------------------------------------------------------------------


def test_once(servers):
    need("nbdcopy")
    server = raw.serve(servers, f"null:{SIZE}", "once=1")
    with raw.Client(server.connect()) as client:
        assert client.option(raw.OPT_ABORT)[0][0] == raw.REP_ACK
    assert server.running
    run("nbdcopy", server.uri, "null:")
    assert server.wait() == 0


def test_socket_activation_by_nbdcopy(servers):
    need("nbdcopy")
    del servers
    run("nbdcopy", "--", "[", raw.find_nbd_serve(), f"null:{SIZE}", "unused", "]", "null:")


def test_stop_with_clients_that_do_nothing(servers):
    server = raw.serve(servers, f"null:{SIZE}")
    with raw.Client(server.connect()), raw.Client(server.connect()) as client:
        client.go("")
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - began < 3


def test_stop_with_a_client_that_does_not_read(servers):
    """It gets its five seconds, and then the end."""
    server = raw.serve(servers, f"null:{SIZE}")
    with raw.Client(server.connect()) as client:
        client.go("")
        for _ in range(4):
            client.put(raw.READ, 0, 64 * MIB)
        client.get(16)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert 4 < time.monotonic() - began < 15


def test_unix_socket_modes_and_stale_ones(servers, scratch):
    path = os.path.join(scratch, "x.sock")
    command = [raw.find_nbd_serve(), "null:4096", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as first:
        try:
            assert first.stdout.readline()
            assert os.stat(path).st_mode & 0o777 == 0o600
            second = run(*command, status=1)
            assert "another server answers there" in second.err
            bad_input("socket path where another server listens", second.err.split(": ", 1)[1])
        finally:
            first.kill()
    assert os.path.exists(path)
    third = servers.start(*command, pipe=True)
    assert third.popen.stdout.readline()
    third.stop(expect=0)
    assert not os.path.exists(path)
    with open(path, "wb"):
        pass
    assert "no socket" in run(*command, status=1).err

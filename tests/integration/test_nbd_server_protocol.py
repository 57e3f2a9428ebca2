"""The NBD server byte by byte: options, headers, commands, and what is refused."""

import os
import struct
import threading

import pytest

import nbd_raw as raw
from support import KIB, MIB

SIZE = 8 * MIB


@pytest.fixture(name="disk")
def fixture_disk(scratch):
    path = os.path.join(scratch, "disk.raw")
    with open(path, "wb") as file:
        file.truncate(SIZE)
        file.seek(MIB)
        file.write(os.urandom(MIB))
    return path


def content(path):
    with open(path, "rb") as file:
        return file.read()


@pytest.fixture(name="server")
def fixture_server(servers, disk):
    return raw.serve(servers, "raw:" + disk)


@pytest.fixture(name="client")
def fixture_client(server):
    with raw.Client(server.connect()) as client:
        yield client


@pytest.mark.parametrize("flags, zeroes", [(3, 0), (1, 124), (0, 124), (2, 0)])
def test_export_name(server, disk, flags, zeroes):
    with raw.Client(server.connect(), flags=flags) as client:
        client.put_option(raw.OPT_EXPORT_NAME, b"")
        size, _ = struct.unpack(">QH", client.get(10))
        assert size == SIZE
        assert client.get(zeroes) == bytes(zeroes)
        assert client.read(MIB - 3, 1000) == content(disk)[MIB - 3:MIB + 997]


def test_export_name_unknown_is_closed_and_logged(server):
    with raw.Client(server.connect()) as client:
        client.put_option(raw.OPT_EXPORT_NAME, b"nowhere")
        assert client.at_end()
    server.wait_err("EXPORT_NAME refused: there is no export 'nowhere' here")


def test_go_unknown_is_answered(client):
    (kind, text), = client.option(raw.OPT_GO, client.name_data("nowhere"))
    assert kind == raw.ERR_UNKNOWN and b"no export 'nowhere'" in text
    client.go("")


def test_info_and_go_tell_the_same(client):
    infos = (0, 1, 2, 3)
    info = client.option(raw.OPT_INFO, client.name_data("", infos))
    go = client.go("", infos)
    assert info == go
    texts = {data[:2]: data[2:] for kind, data in go if kind == raw.REP_INFO}
    assert texts[b"\0\1"] == b"" and texts[b"\0\2"] == b"a test"
    assert struct.unpack(">III", texts[b"\0\3"]) == (1, 4096, 64 * MIB)


def test_list_and_abort(client):
    replies = client.option(raw.OPT_LIST)
    assert replies == [(raw.REP_SERVER, struct.pack(">I", 0) + b"a test"), (raw.REP_ACK, b"")]
    assert client.option(raw.OPT_ABORT) == [(raw.REP_ACK, b"")]
    assert client.at_end()


def test_tls_is_refused_with_a_text(client):
    (kind, text), = client.option(raw.OPT_STARTTLS)
    assert kind == raw.ERR_POLICY and b"TLS" in text


def test_unknown_option(client):
    assert client.option(4711, b"abc")[0][0] == raw.ERR_UNSUP


def test_option_too_long_is_skipped(client):
    assert client.option(raw.OPT_GO, bytes(100 * KIB))[0][0] == raw.ERR_TOO_BIG
    client.go("")


@pytest.mark.parametrize("option, data", [
    (raw.OPT_GO, b""),
    (raw.OPT_GO, struct.pack(">I", 0xFFFFFFFF) + b"abc"),
    (raw.OPT_GO, struct.pack(">I", 3) + b"a\0b" + struct.pack(">H", 0)),
    (raw.OPT_GO, struct.pack(">IH", 0, 3)),
    (raw.OPT_INFO, struct.pack(">IH", 0, 0) + b"more"),
    (raw.OPT_LIST, b"x"),
    (raw.OPT_STRUCTURED, b"x"),
    (raw.OPT_SET_META, struct.pack(">II", 0, 1) + b"\0"),
    (raw.OPT_SET_META, struct.pack(">III", 0, 0xFFFFFFFF, 0)),
])
def test_malformed_options(client, option, data):
    if option == raw.OPT_SET_META:
        client.headers(raw.OPT_STRUCTURED)
    assert client.option(option, data)[-1][0] == raw.ERR_INVALID
    client.go("")


def test_meta_contexts(client):
    assert client.option(raw.OPT_SET_META, client.meta_data("", "base:allocation"))[-1][0] \
        == raw.ERR_INVALID
    client.headers(raw.OPT_STRUCTURED)
    name = (raw.REP_META, struct.pack(">I", 0) + b"base:allocation")
    ack = (raw.REP_ACK, b"")
    for queries in ((), ("base:",), ("base:allocation",), ("",), ("qemu:x", "base:")):
        assert client.option(raw.OPT_LIST_META, client.meta_data("", *queries)) == [name, ack]
    assert client.option(raw.OPT_LIST_META, client.meta_data("", "qemu:x")) == [ack]
    assert client.option(raw.OPT_SET_META, client.meta_data("", "base:")) == [ack]
    assert client.option(raw.OPT_SET_META, client.meta_data("x", "base:allocation"))[0][0] \
        == raw.ERR_UNKNOWN
    got = client.option(raw.OPT_SET_META, client.meta_data("", "x:y", "base:allocation"))
    assert got == [(raw.REP_META, struct.pack(">I", 1) + b"base:allocation"), ack]
    client.go("")
    chunks, error = client.request(raw.STATUS, 0, SIZE)
    assert error == 0
    assert chunks == [(5, struct.pack(">IIIIIII", 1, MIB, 3, MIB, 0, 6 * MIB, 3))]
    chunks, error = client.request(raw.STATUS, MIB + 5, SIZE - MIB - 5, flags=raw.REQ_ONE)
    assert error == 0 and chunks == [(5, struct.pack(">III", 1, MIB - 5, 0))]


def test_extended_headers(client, disk):
    client.headers(raw.OPT_EXTENDED)
    assert client.option(raw.OPT_STRUCTURED)[0][0] == 0x8000000A
    client.option(raw.OPT_SET_META, client.meta_data("", "base:allocation"))
    client.go("")
    assert client.read(0, SIZE) == content(disk)
    chunks, error = client.request(raw.STATUS, 0, SIZE)
    assert error == 0
    assert chunks == [(6, struct.pack(">IIQQQQQQ", 1, 3, MIB, 3, MIB, 0, 6 * MIB, 3))]
    data = os.urandom(700 * KIB + 3)
    assert client.request(raw.WRITE, 77, len(data), raw.PAYLOAD_LEN | raw.FUA, data) == ([], 0)
    assert client.request(raw.ZEROES, 100, 9) == ([], 0)
    assert client.request(raw.FLUSH) == ([], 0)
    expected = data[:23] + bytes(9) + data[32:]
    assert content(disk)[77:77 + len(data)] == expected
    text, error = client.request(raw.READ, 1 << 63, 1 << 62)
    assert error == raw.EINVAL and "67108864" in text
    # A payload where none belongs is swallowed, and the next request is understood.
    _, error = client.request(raw.TRIM, 0, 5, raw.PAYLOAD_LEN, b"12345")
    assert error == raw.EINVAL
    assert client.read(77, len(data), raw.DF) == expected


@pytest.mark.parametrize("headers", [None, raw.OPT_STRUCTURED, raw.OPT_EXTENDED])
def test_reads_and_writes_of_all_sizes(client, disk, headers):
    if headers:
        client.headers(headers)
    client.go("")
    payload_flag = raw.PAYLOAD_LEN if client.extended else 0
    shadow = bytearray(content(disk))
    for offset, length in ((0, 1), (SIZE - 1, 1), (4095, 2), (12345, 300000), (0, SIZE),
                           (256 * KIB - 1, 256 * KIB + 2), (777, 0)):
        data = os.urandom(length)
        assert client.request(raw.WRITE, offset, length, payload_flag, data) == ([], 0)
        shadow[offset:offset + length] = data
        start = max(offset - 10, 0)
        end = min(offset + length + 10, SIZE)
        assert client.read(start, end - start) == shadow[start:end]
    assert client.read(5, SIZE - 5) == shadow[5:]
    assert content(disk) == bytes(shadow)


@pytest.mark.parametrize("headers", [raw.OPT_STRUCTURED, raw.OPT_EXTENDED])
def test_many_small_reads_at_once(client, disk, headers):
    """They are done together where the disk is quick; mistakes among them too."""
    client.headers(headers)
    client.go("")
    expected, whole = {}, content(disk)
    sent = b""
    for i in range(3000):
        offset, length = (MIB + i * 300, 1 + i % 4099) if i % 50 else (SIZE, 1)
        expected[i] = whole[offset:offset + length] if i % 50 else None
        head = (0x21E41C71, 0, 0, i, offset, length) if client.extended else (
            0x25609513, 0, 0, i, offset, length)
        sent += struct.pack(">IHHQQQ" if client.extended else ">IHHQQI", *head)
    client.sock.setblocking(True)
    thread = threading.Thread(target=client.sock.sendall, args=(sent,))
    thread.start()
    while expected:
        cookie, flags, kind, payload = client.get_chunk()
        assert flags == 1
        data = expected.pop(cookie)
        if data is None:
            assert kind == 0x8001
        else:
            assert kind == 1 and payload[8:] == data
    thread.join()


def test_sparse_read_and_df(client, disk):
    client.headers(raw.OPT_STRUCTURED)
    client.go("")
    chunks, _ = client.request(raw.READ, 0, 2 * MIB)
    assert {kind for kind, _ in chunks[:4]} == {2} and {kind for kind, _ in chunks[4:]} == {1}
    chunks, _ = client.request(raw.READ, 0, 2 * MIB, raw.DF)
    assert chunks == [(1, struct.pack(">Q", 0) + content(disk)[:2 * MIB])]


def test_refused_requests(client, disk):
    client.headers(raw.OPT_STRUCTURED)
    client.go("")
    before = content(disk)
    past = SIZE - 5
    for arguments, error in (
            ((raw.READ, past, 6), raw.EINVAL),
            ((raw.READ, 1 << 63, 1), raw.EINVAL),
            ((raw.READ, (1 << 64) - 1, 2), raw.EINVAL),
            ((raw.READ, 0, 64 * MIB + 1), raw.EINVAL),
            ((raw.READ, 0, 1, 0x8000), raw.EINVAL),
            ((raw.WRITE, past, 6, 0, b"123456"), raw.ENOSPC),
            ((raw.WRITE, 0, 3, raw.DF, b"123"), raw.EINVAL),
            ((raw.ZEROES, past, 6), raw.ENOSPC),
            ((raw.TRIM, past, 6), raw.EINVAL),
            ((raw.CACHE, past, 6), raw.EINVAL),
            ((raw.STATUS, 0, 1), raw.EINVAL),
            ((raw.FLUSH, 1, 0), raw.EINVAL),
            ((8, 0, 0), raw.EINVAL),
            ((65535, 0, 0), raw.EINVAL)):
        text, got = client.request(*arguments)
        assert got == error and text, (arguments, text, got)
    assert client.request(raw.CACHE, 0, SIZE) == ([], 0)
    assert client.request(raw.TRIM, 0, 0) == ([], 0)
    assert content(disk) == before


def test_read_only(servers, disk):
    server = raw.serve(servers, "raw:" + disk, "read-only=1")
    with raw.Client(server.connect()) as client:
        client.headers(raw.OPT_STRUCTURED)
        client.go("")
        assert client.flags & 2 and not client.flags & (8 | 32 | 64)
        for kind, payload in ((raw.WRITE, b"abc"), (raw.ZEROES, b""), (raw.TRIM, b"")):
            text, error = client.request(kind, 0, 3, 0, payload)
            assert error == raw.EPERM and "read-only" in text
        assert client.read(MIB, 100) == content(disk)[MIB:MIB + 100]


def test_goodbye_is_an_orderly_end(server, client):
    client.go("")
    client.put(raw.DISC)
    assert client.at_end()
    server.wait_err("connection ended: it said goodbye")


@pytest.mark.parametrize("tcp", [False, True])
def test_stop_answers_what_is_in_progress(servers, disk, tcp):
    server = raw.serve(servers, "raw:" + disk, tcp=tcp)
    with raw.Client(server.connect()) as client:
        client.go("")
        for _ in range(20):
            client.put(raw.READ, 0, MIB)
        server.popen.terminate()
        # Whole answers, and then the end: nothing is cut in the middle.
        try:
            while True:
                _, _, kind, error = client.get_chunk()
                assert kind is None and error == 0
                client.get(MIB)
        except EOFError as end:
            assert str(end).startswith("0 of 4")
        assert server.wait() == 0

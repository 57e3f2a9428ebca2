"""sendense copy between files and NBD servers, judged by qemu-img and by bytes."""

import filecmp
import os

import pytest

from support import (KIB, MIB, allocated, bad_input, fails, make_disk, need, same_content, sendense,
                     under_sanitizer)

# Data, written zeros and holes, with odd borders.
PIECES = [
    (0, 512, "random"),
    (1 * MIB + 512, 3 * KIB, "random"),
    (2 * MIB, 300 * KIB, "text"),
    (3 * MIB, 1 * MIB, "zero"),
    (5 * MIB - 4096, 4096, "random"),
    (8 * MIB, 2 * MIB, "random"),
]


def fragmented():
    """Pieces of 4 KiB and 20 KiB with small and large holes between."""
    at, pieces = 0, []
    for i in range(200):
        length = (4, 20)[i % 2] * KIB
        pieces.append((at, length, "random"))
        at += length + (4, 64, 140, 300)[i % 4] * KIB
    return pieces


@pytest.mark.parametrize("size", [1, 511, 64 * KIB + 1, 16 * MIB + 512, 16 * MIB])
def test_file_to_file(scratch, size):
    source = make_disk(f"{scratch}/a", size, [p for p in PIECES if p[0] + p[1] <= size])
    result = sendense("copy", f"raw:{source}", f"raw:{scratch}/b", "--json").json
    assert filecmp.cmp(source, f"{scratch}/b", shallow=False)
    # Written zeros become holes; nothing else grows.
    assert allocated(f"{scratch}/b") <= allocated(source)
    if size == 16 * MIB:
        assert allocated(f"{scratch}/b") <= 3 * MIB
    assert result


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("server", ["nbdkit", "qemu-nbd", "qemu-nbd --shared=1"])
def test_from_a_server(scratch, servers, server, tcp):
    disk = make_disk(f"{scratch}/a", 40 * MIB, PIECES)
    if server == "nbdkit":
        source = servers.nbdkit("-r", "file", disk, tcp=tcp)
    else:
        source = servers.qemu_nbd(disk, tcp=tcp, read_only=True,
                                  shared=1 if server.endswith("=1") else 8)
    sendense("copy", source.uri, f"raw:{scratch}/b")
    assert filecmp.cmp(disk, f"{scratch}/b", shallow=False)
    assert allocated(f"{scratch}/b") <= 3 * MIB


@pytest.mark.parametrize("server", ["nbdkit", "qemu-nbd", "qemu-nbd --shared=1"])
def test_to_a_server(scratch, servers, server):
    """What the target held is overwritten, also where the source has holes."""
    disk = make_disk(f"{scratch}/a", 40 * MIB, PIECES)
    old = make_disk(f"{scratch}/b", 40 * MIB, [(0, 40 * MIB, "text")])
    if server == "nbdkit":
        target = servers.nbdkit("file", old)
    else:
        target = servers.qemu_nbd(old, shared=1 if server.endswith("=1") else 8)
    sendense("copy", "--force", f"raw:{disk}", target.uri)
    assert filecmp.cmp(disk, old, shallow=False)


def test_fragmented_through_servers_into_qcow2(scratch, servers):
    disk = make_disk(f"{scratch}/a", 32 * MIB, fragmented())
    source = servers.nbdkit("-r", "file", disk)
    sendense("copy", source.uri, f"qcow2:{scratch}/b.qcow2")
    same_content(disk, "raw", f"{scratch}/b.qcow2", "qcow2")


def test_holes_are_not_read(scratch, servers):
    """nbdkit's error filter fails any read: an empty disk needs none."""
    disk = make_disk(f"{scratch}/a", 1024 * MIB)
    source = servers.nbdkit("--filter=error", "-r", "file", disk, "error-pread=EIO",
                            "error-pread-rate=100%")
    sendense("copy", source.uri, f"raw:{scratch}/b")
    assert os.stat(f"{scratch}/b").st_size == 1024 * MIB
    assert allocated(f"{scratch}/b") == 0


def test_many_requests_are_in_flight(scratch, servers):
    """64 MiB in pieces of 512 KiB over 50 ms: one after the other would take 6 s."""
    source = servers.nbdkit("--filter=delay", "-r", "pattern", "64M", "rdelay=50ms")
    limit = 20 if under_sanitizer() else 5
    sendense("copy", source.uri, f"raw:{scratch}/b", timeout=limit)
    with open(f"{scratch}/b", "rb") as file:
        file.seek(64 * MIB - 8)
        assert int.from_bytes(file.read(8), "big") == 64 * MIB - 8


def test_a_read_that_fails(scratch, servers):
    disk = make_disk(f"{scratch}/a", 16 * MIB, PIECES)
    source = servers.nbdkit("--filter=error", "-r", "file", disk, "error-pread=EIO",
                            "error-pread-rate=100%")
    result = fails("copy", source.uri, f"raw:{scratch}/b",
                   case="a source that fails a read in the middle",
                   contains=["read", "offset", "Input/output error"])
    assert not os.path.exists(f"{scratch}/b"), result


def test_a_full_target(scratch, servers):
    disk = make_disk(f"{scratch}/a", 16 * MIB, PIECES)
    target = servers.nbdkit("--filter=error", "memory", "16M", "error-pwrite=ENOSPC",
                            "error-pwrite-rate=100%")
    fails("copy", "--force", f"raw:{disk}", target.uri, contains=["No space left", "offset"])


def test_a_source_that_is_not_there(scratch):
    fails("copy", f"nbd+unix:///x?socket={scratch}/none.sock", f"raw:{scratch}/b",
          case="an NBD source whose server is not running", contains="is the server running?")
    assert not os.path.exists(f"{scratch}/b")


def test_an_export_that_is_not_there(scratch, servers):
    disk = make_disk(f"{scratch}/a", 1 * MIB)
    source = servers.qemu_nbd(disk, read_only=True, export="right")
    fails("copy", source.uri.replace("right", "wrong"), f"raw:{scratch}/b",
          case="an NBD export that does not exist", contains="'wrong' not present")


def test_uris_that_cannot_be(scratch):
    for uri, text in [("nbds://host/x", "nbds"), ("nbd://user:secret@host/x", "passwords"),
                      ("nbd://host:0/x", "port"), ("nbd://host/%zz", "malformed"),
                      ("nbd+unix:///x", "socket=PATH")]:
        result = sendense("copy", uri, f"raw:{scratch}/b", status=None)
        assert result.status in (1, 2), result
        assert text in result.err, result
    bad_input("an NBD URI that is malformed", result.message)


def test_oracle_can_fail(scratch):
    """The comparison used above sees one changed byte."""
    need("qemu-img")
    disk = make_disk(f"{scratch}/a", 1 * MIB, [(0, 4096, "random")])
    sendense("copy", f"raw:{disk}", f"raw:{scratch}/b")
    with open(f"{scratch}/b", "r+b") as file:
        file.seek(999)
        byte = file.read(1)
        file.seek(999)
        file.write(bytes([byte[0] ^ 1]))
    assert not filecmp.cmp(disk, f"{scratch}/b", shallow=False)

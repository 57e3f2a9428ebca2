"""The NBD server under load: other people's clients, and random requests
against a shadow."""

import json
import os
import random

import pytest

import nbd_raw as raw
import support
from support import KIB, MIB, need, run, under_sanitizer

SIZE = 16 * MIB + 512
# The long run has 100,000 of them.
NR_OPERATIONS = int(os.environ.get("SENDENSE_NBD_OPERATIONS", "4000"))
BATCH = 16
SEED = int(os.environ.get("SENDENSE_TEST_SEED", "1"))


def make_file(path, size, data=b""):
    with open(path, "wb") as file:
        file.truncate(size)
        file.write(data)
    return path


def content(path):
    with open(path, "rb") as file:
        return file.read()


# --- random requests ---------------------------------------------------------------


class Shadow:
    """What the disk must hold, and the requests that are in flight on it."""

    def __init__(self, uri, size, nr_handles):
        self.nbd = pytest.importorskip("nbd", reason="python3-libnbd is not installed")
        self.rng = random.Random(SEED)
        self.bytes = bytearray(size)
        self.junk = self.rng.randbytes(2 * MIB)
        self.handles = []
        for i in range(nr_handles):
            handle = self.nbd.NBD()
            if i == 0:  # One that speaks simple replies only.
                handle.set_request_structured_replies(False)
            else:
                handle.add_meta_context("base:allocation")
            handle.connect_uri(uri)
            self.handles.append(handle)

    def ranges(self, nr_ranges):
        """Disjoint ranges, small ones mostly, down to one byte, some at a border."""
        taken = []
        while len(taken) < nr_ranges:
            length = self.rng.choice([1, 511, 512, 4096, self.rng.randrange(1, 100 * KIB),
                                      self.rng.randrange(1, 600 * KIB)])
            offset = self.rng.randrange(0, len(self.bytes) - length + 1)
            if self.rng.random() < 0.4:
                offset -= offset % 4096
            if self.rng.random() < 0.02:
                offset = len(self.bytes) - length
            if all(offset + length <= a or b <= offset for a, b in taken):
                taken.append((offset, offset + length))
        return taken

    def start(self, start, end):
        """Begins one random request: (handle, cookie, what to check at its end)."""
        handle = self.rng.choice(self.handles)
        kind = self.rng.choices(["read", "write", "zero", "trim", "flush"], [6, 6, 2, 2, 1])[0]
        length = end - start
        fua = self.nbd.CMD_FLAG_FUA if self.rng.random() < 0.1 else 0
        if kind == "read":
            buffer = self.nbd.Buffer(length)
            expected = bytes(self.bytes[start:end])
            return handle, handle.aio_pread(buffer, start), (start, buffer, expected)
        if kind == "write":
            at = self.rng.randrange(len(self.junk) - length)
            data = self.junk[at:at + length]
            self.bytes[start:end] = data
            return handle, handle.aio_pwrite(self.nbd.Buffer.from_bytearray(bytearray(data)),
                                             start, flags=fua), None
        if kind == "zero":
            self.bytes[start:end] = bytes(length)
            flags = fua | self.rng.choice([0, self.nbd.CMD_FLAG_NO_HOLE])
            return handle, handle.aio_zero(length, start, flags=flags), None
        if kind == "trim":
            # What is read afterwards is not promised: made certain behind it.
            return handle, handle.aio_trim(length, start, flags=fua), "again"
        return handle, handle.aio_flush(), None

    def finish(self, handle, cookie):
        while not handle.aio_command_completed(cookie):
            assert handle.poll(int(support.TIMEOUT * 1000)) > 0

    def batch(self):
        started = [(*self.start(start, end), start, end) for start, end in self.ranges(BATCH)]
        for handle, cookie, check, start, end in started:
            self.finish(handle, cookie)
            if check == "again":
                self.bytes[start:end] = bytes(end - start)
                handle.zero(end - start, start)
            elif check:
                offset, buffer, expected = check
                assert bytes(buffer.to_bytearray()) == expected, (SEED, offset, len(expected))

    def run(self, nr_operations):
        for _ in range(nr_operations // BATCH):
            self.batch()
        assert bytes(self.handles[0].pread(len(self.bytes), 0)) == self.bytes
        assert bytes(self.handles[1].pread(len(self.bytes), 0)) == self.bytes
        self.handles[1].flush()
        for handle in self.handles:
            handle.shutdown()


@pytest.mark.parametrize("budget", [0, 256 * KIB])
def test_random_requests_against_a_shadow(servers, scratch, budget):
    path = make_file(os.path.join(scratch, "disk.raw"), SIZE)
    server = raw.serve(servers, "raw:" + path, f"budget={budget}")
    shadow = Shadow(server.uri, SIZE, 4)
    shadow.run(NR_OPERATIONS)
    server.stop(expect=0)
    assert content(path) == bytes(shadow.bytes)


@pytest.mark.parametrize("cluster", ["64k", "2M"])
def test_random_requests_on_qcow2(servers, scratch, cluster):
    """sendense export of a fresh image: QEMU finds it sound and of that content."""
    need("qemu-img")
    image, flat = os.path.join(scratch, "disk.qcow2"), os.path.join(scratch, "shadow.raw")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=" + cluster, image,
        str(SIZE))
    server = servers.export("qcow2:" + image)
    shadow = Shadow(server.uri, SIZE, 4)
    shadow.run(NR_OPERATIONS)
    server.stop(expect=0)
    make_file(flat, SIZE, shadow.bytes)
    support.qemu_check(image)
    support.same_content(image, "qcow2", flat, "raw")


def test_clients_on_qcow2(servers, scratch):
    need("qemu-img", "nbdcopy", "nbdinfo", "fio", "qemu-io")
    image, back = os.path.join(scratch, "disk.qcow2"), os.path.join(scratch, "back.raw")
    source = support.make_disk(os.path.join(scratch, "source.raw"), 64 * MIB,
                               [(0, 5 * MIB, "random"), (20 * MIB, MIB, "zero"),
                                (40 * MIB + 5 * KIB, 3 * MIB, "text")])
    run("qemu-img", "create", "-q", "-f", "qcow2", image, str(64 * MIB))
    server = servers.export("qcow2:" + image)
    run("nbdcopy", "--connections=16", source, server.uri)
    run("nbdcopy", "--connections=16", server.uri, back)
    assert content(source) == content(back)
    ours = json.loads(run("nbdinfo", "--map", "--json", server.uri).out)
    server.stop(expect=0)
    support.qemu_check(image)
    support.same_content(image, "qcow2", source, "raw")
    theirs = json.loads(run("qemu-img", "map", "--output=json", "-f", "qcow2", image).out)
    assert data_ranges((e["offset"], e["length"], e["description"] == "data") for e in ours) \
        == data_ranges((e["start"], e["length"], e["data"]) for e in theirs)
    server = servers.export("qcow2:" + image)
    run("fio", "--name=job", "--ioengine=nbd", "--uri=" + server.uri, "--rw=randrw", "--bs=4k-64k",
        "--numjobs=4", "--size=8m", "--offset_increment=16m", "--iodepth=16",
        "--verify=crc32c", "--verify_fatal=1", "--group_reporting", cwd=scratch)
    out = run("qemu-io", "-f", "raw", "-c", "write -P 1 0 16M", "-c", "write -z 1M 3M", "-c",
              "discard 7M 1M", "-c", "read -P 0 1M 3M", "-c", "read -P 1 4M 3M", server.uri).out
    assert "failed" not in out
    server.stop(expect=0)
    support.qemu_check(image)


def data_ranges(extents):
    """Joins neighbours: where the data is."""
    ranges = []
    for offset, length, is_data in extents:
        if not is_data:
            continue
        if ranges and ranges[-1][1] == offset:
            ranges[-1][1] += length
        else:
            ranges.append([offset, offset + length])
    return ranges


# --- other people's clients -----------------------------------------------------------


@pytest.mark.parametrize("tcp", [False, True])
def test_nbdcopy_both_ways(servers, scratch, tcp):
    need("nbdcopy")
    source = support.make_disk(os.path.join(scratch, "source.raw"), SIZE,
                               [(0, 3 * MIB + 17, "random"), (9 * MIB, MIB, "zero"),
                                (SIZE - 1000, 1000, "random")])
    target = make_file(os.path.join(scratch, "target.raw"), SIZE)
    back = os.path.join(scratch, "back.raw")
    server = raw.serve(servers, "raw:" + target, tcp=tcp)
    run("nbdcopy", "--connections=16", source, server.uri)
    assert content(source) == content(target)
    run("nbdcopy", "--connections=16", server.uri, back)
    assert content(source) == content(back)
    run("nbdcopy", "--connections=2", f"--request-size={32 * MIB}", server.uri, back)
    assert content(source) == content(back)


def test_fio_verify(servers, scratch):
    need("fio")
    if "nbd" not in run("fio", "--enghelp").out:
        pytest.skip("this fio has no nbd engine")
    path = make_file(os.path.join(scratch, "disk.raw"), 32 * MIB)
    server = raw.serve(servers, "raw:" + path)
    run("fio", "--name=job", "--ioengine=nbd", "--uri=" + server.uri, "--rw=randrw", "--bs=4k-64k",
        "--numjobs=4", "--size=8m", "--offset_increment=8m", "--iodepth=16",
        "--verify=crc32c", "--verify_fatal=1", "--group_reporting", cwd=scratch)


def test_qemu_io_patterns(servers, scratch):
    need("qemu-io")
    path = make_file(os.path.join(scratch, "disk.raw"), SIZE)
    server = raw.serve(servers, "raw:" + path)
    words = []
    for command in ("write -P 1 0 16M", "write -z 1M 3M", "write -z -u 5M 1M", "discard 7M 1M",
                    "write -f -P 2 12345 6789", "aio_write -P 3 8M 4M", "aio_flush",
                    "read -P 2 12345 6789", "read -P 3 8M 4M", "read -P 0 1M 3M", "flush"):
        words += ["-c", command]
    out = run("qemu-io", "-f", "raw", *words, server.uri).out
    assert "failed" not in out


def test_map_agrees_with_qemu_img(servers, scratch):
    need("nbdinfo", "qemu-img")
    path = support.make_disk(os.path.join(scratch, "disk.raw"), SIZE,
                             [(i * MIB, 128 * KIB, "random") for i in range(0, 16, 2)])
    server = raw.serve(servers, "raw:" + path)
    theirs = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", path).out)
    ours = json.loads(run("nbdinfo", "--map", "--json", server.uri).out)
    assert data_ranges((e["offset"], e["length"], e["description"] == "data") for e in ours) \
        == data_ranges((e["start"], e["length"], e["data"]) for e in theirs)


# --- memory -------------------------------------------------------------------------------


def test_memory_with_16_connections_of_64_mib_requests(servers):
    """Every connection has a write and reads of 64 MiB under way at once."""
    if under_sanitizer():
        pytest.skip("sanitizers have their own idea of memory")
    size = 64 * MIB
    server = raw.serve(servers, f"null:{size}")
    clients = []
    block = bytes(size // 16)
    try:
        for _ in range(16):
            client = raw.Client(server.connect())
            clients.append(client)
            client.headers(raw.OPT_STRUCTURED)
            client.go("")
            for _ in range(6):
                client.put(raw.READ, 0, size, raw.DF)
            client.put(raw.WRITE, 0, size, 0, block)
        # All are in progress: an answer half taken, the data of a write half sent.
        for client in clients:
            client.get(4 * MIB)
        for client in clients[:2]:
            for _ in range(15):
                client.sock.sendall(block)
        assert server.peak_kib() < 100 * KIB
    finally:
        for client in clients:
            client.sock.close()

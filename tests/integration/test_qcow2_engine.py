"""The QCOW2 engine beside QEMU's: we read what qemu-img and qemu-io wrote, QEMU
reads and finds no fault with what we wrote, from several threads at once."""

import itertools
import os
import random
import struct
import subprocess

import pytest

from support import GIB, KIB, MIB, SENDENSE, TIB, need, run, under_sanitizer

TOOL = os.path.join(os.path.dirname(SENDENSE), "../../tests/unit/qcow2/qcow2_tool")

KINDS = ["compat=0.10", "compat=1.1", "extended_l2=on", "extended_l2=on,cluster_size=16k",
         "cluster_size=512", "cluster_size=4k", "cluster_size=2M", "compression_type=zstd",
         "lazy_refcounts=on", "preallocation=metadata", "preallocation=full"]
WIDTHS = [f"cluster_size=4k,refcount_bits={bits}" for bits in (1, 2, 4, 8, 32, 64)]


@pytest.fixture(autouse=True)
def oracle():
    need("qemu-img", "qemu-io")


def tool(*words, status=0):
    return run(TOOL, *words, status=status)


def io(image, *commands):
    run("qemu-io", "-f", "qcow2", *itertools.chain(*(("-c", c) for c in commands)), image)


def raw_of(image, path):
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, path)
    return path


def same_as_raw(image, raw):
    run("qemu-img", "check", "-f", "qcow2", image)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, image)


def we_read_it(image, folder):
    """Our reading, whole and in pieces, against QEMU's."""
    theirs, ours = raw_of(image, f"{folder}/theirs"), f"{folder}/ours"
    tool("read", image, ours, "threads=3")
    run("cmp", theirs, ours)


def qemu_map(image):
    spans = run("qemu-img", "map", "-f", "qcow2", "--output=json", image).json
    return [(s["start"], s["length"], s["zero"]) for s in spans]


def merged(spans):
    out = []
    for start, length, zero in spans:
        if out and out[-1][2] == zero:
            out[-1] = (out[-1][0], out[-1][1] + length, zero)
        else:
            out.append((start, length, zero))
    return out


def our_map(image):
    lines = (map(int, line.split()) for line in tool("map", image).out.splitlines())
    return [(start, length, bool(flags & 2)) for start, length, flags in lines]


def filled(path, kind, size="16M", backing=()):
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", kind, *backing, path, size)
    io(path, "write -P 11 0 1500k", "write -P 12 1600000 1234567", "write -z 1M 256k")
    if size != "4M":
        io(path, "write -P 9 9000000 5000")
    if "refcount_bits=1" not in kind.split(",") and "preallocation" not in kind:
        at, length = (3, 1) if size == "4M" else (4, 2)
        io(path, f"write -c -P 33 {at}M {length}M", f"write -P 34 {at * MIB + 16384} 4096")
    return path


@pytest.mark.parametrize("kind", KINDS + WIDTHS)
def test_reads_what_qemu_writes(scratch, kind):
    image = filled(f"{scratch}/a.qcow2", kind)
    we_read_it(image, scratch)
    if "preallocation" not in kind:  # there QEMU asks the file system for holes
        assert merged(our_map(image)) == merged(qemu_map(image))


@pytest.mark.parametrize("kind", ["compat=0.10", "compat=1.1", "extended_l2=on",
                                  "cluster_size=512", "compression_type=zstd"])
def test_reads_chains_of_qcow2_and_raw(scratch, kind):
    base = filled(f"{scratch}/base.qcow2", "cluster_size=4k", "10M")
    raw = raw_of(base, f"{scratch}/base.raw")
    for name, form in ((base, "qcow2"), (raw, "raw")):
        middle, top = f"{scratch}/middle.qcow2", f"{scratch}/top.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", kind, "-b", name, "-F", form,
            middle, "13M")
        io(middle, "write -P 21 1500000 100000", "discard 2M 256k")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2",
            top, "17M")
        io(top, "write -P 22 9M 3M", "write -z 512k 64k")
        we_read_it(top, scratch)
        assert merged(our_map(top)) == merged(qemu_map(top))


@pytest.mark.parametrize("kind, how", [(kind, "") for kind in KINDS + WIDTHS] +
                         [(kind, "compress") for kind in KINDS[::2] + WIDTHS[::3]])
def test_writes_into_what_qemu_made(scratch, kind, how):
    image = f"{scratch}/a.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", kind, image, "16M")
    raw = raw_of(image, f"{scratch}/raw")
    tool("stress", image, raw, "threads=4", "ops=150", *how.split())
    same_as_raw(image, raw)


@pytest.mark.parametrize("how", ["", "compress"])
@pytest.mark.parametrize("kind", ["compat=0.10", "compat=1.1", "extended_l2=on",
                                  "cluster_size=512", "compression_type=zstd,cluster_size=2M"])
def test_snapshots_and_backing_files_stay_as_they_are(scratch, kind, how):
    base = filled(f"{scratch}/base.qcow2", "compression_type=zstd", "10M")
    image = filled(f"{scratch}/a.qcow2", kind, backing=("-b", base, "-F", "qcow2"))
    run("qemu-img", "snapshot", "-c", "one", image)
    was = raw_of(image, f"{scratch}/was")
    base_was = raw_of(base, f"{scratch}/base-was")
    io(image, "write -P 77 2500000 1M", "discard 4M 512k")
    run("qemu-img", "snapshot", "-c", "two", image)
    raw = raw_of(image, f"{scratch}/raw")
    tool("stress", image, raw, "threads=4", "ops=120", *how.split())
    same_as_raw(image, raw)
    run("qemu-img", "snapshot", "-a", "one", image)
    same_as_raw(image, was)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", base_was, base)


@pytest.mark.parametrize("cluster", [512, 4 * KIB, 64 * KIB, 2 * MIB])
@pytest.mark.parametrize("how", ["", "compress", "compress zstd"])
def test_images_of_our_own(scratch, cluster, how):
    image, raw = f"{scratch}/a.qcow2", f"{scratch}/raw"
    size = 12 * MIB + 512
    compression = ["zstd"] if "zstd" in how else []
    tool("create", image, size, f"cluster={cluster}", *compression)
    with open(raw, "wb") as file:
        file.truncate(size)
    for seed in range(2):
        tool("stress", image, raw, "threads=4", "ops=120", f"seed={seed}", "cache=1048576",
             *how.split())
        same_as_raw(image, raw)


def text_like(size, seed):
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randrange(3, 12)) for _ in range(300)]
    out = b"".join(rng.choice(words) for _ in range(size // 7))
    return (out * 2)[:size]


@pytest.mark.parametrize("type_", ["zlib", "zstd"])
def test_pieces_out_of_order_are_compressed_whole(scratch, type_):
    image, raw, other = f"{scratch}/a.qcow2", f"{scratch}/raw", f"{scratch}/b.qcow2"
    with open(raw, "wb") as file:
        file.write(text_like(3 * MIB, 1) + random.Random(2).randbytes(MIB) + bytes(4 * MIB))
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2",
        "-o", f"compression_type={type_}", raw, other)
    tool("create", image, 8 * MIB, *(["zstd"] if type_ == "zstd" else []))
    tool("write", image, raw, "compress", "shuffle", "threads=3", "piece=8192")
    same_as_raw(image, raw)
    assert os.stat(image).st_blocks < os.stat(other).st_blocks * 1.03


def test_pieces_beyond_the_assembly_buffer_are_stored_plain(scratch):
    image, raw = f"{scratch}/a.qcow2", f"{scratch}/raw"
    with open(raw, "wb") as file:
        file.write(text_like(8 * MIB, 3))
    tool("create", image, 8 * MIB, "zstd")
    tool("write", image, raw, "compress", "shuffle", "threads=3", "piece=8192",
         "assembly=131072")
    same_as_raw(image, raw)


@pytest.mark.parametrize("size", [512, 2 * TIB + 512, 8 * TIB, 64 * TIB])
def test_sizes(scratch, size):
    image, raw = f"{scratch}/a.qcow2", f"{scratch}/raw"
    tool("create", image, size)
    we = tool("map", image).out.split()
    assert we == ["0", str(size), "3"]
    if size == 512:
        with open(raw, "wb") as file:
            file.write(b"x" * 512)
        tool("write", image, raw)
        same_as_raw(image, raw)
    else:
        io(image, f"write -P 5 {size - 512} 512")
        assert merged(our_map(image))[-1][2] is False
    run("qemu-img", "check", "-f", "qcow2", image)


def test_a_size_that_is_no_number_of_sectors(scratch):
    image, raw = f"{scratch}/a.qcow2", f"{scratch}/raw"
    with open(raw, "wb") as file:
        file.write(text_like(100001, 5))
    tool("create", image, 100352)
    tool("write", image, raw, "size=100001", "compress")
    tool("read", image, f"{scratch}/out", "size=100001")
    run("cmp", raw, f"{scratch}/out")
    assert "not one of" in tool("read", image, f"{scratch}/out", "size=99000", status=1).err


def test_tables_grow(scratch):
    """QEMU's refcount table of one 512-byte cluster counts 8 MiB."""
    image, raw = f"{scratch}/a.qcow2", f"{scratch}/raw"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", image, "40M")
    with open(raw, "wb") as file:
        file.write(random.Random(6).randbytes(40 * MIB))
    tool("write", image, raw, "threads=2")
    same_as_raw(image, raw)


def test_bitmaps_that_follow_writes_are_not_trusted_afterwards(scratch):
    image = f"{scratch}/a.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", image, "16M")
    run("qemu-img", "bitmap", "--add", "--enable", image, "follows")
    run("qemu-img", "bitmap", "--add", "--disable", image, "rests")
    raw = raw_of(image, f"{scratch}/raw")
    found = tool("stress", image, raw, "ops=50")
    assert '"follows"' in found.err and '"rests"' not in found.err
    info = run("qemu-img", "info", "-f", "qcow2", "--output=json", image).json
    flags = {b["name"]: b["flags"] for b in info["format-specific"]["data"]["bitmaps"]}
    assert flags == {"follows": ["in-use", "auto"], "rests": []}
    same_as_raw(image, raw)


# --- after kill -9 ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["compat=0.10,cluster_size=4k", "compat=1.1", "cluster_size=512",
                                  "extended_l2=on", "compression_type=zstd compress"])
def test_killed_writers_lose_nothing_that_was_flushed(scratch, kind):
    image, log = f"{scratch}/a.qcow2", f"{scratch}/log"
    kind, *how = kind.split()
    for seed in range(2):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", kind, image, "32M")
        writer = subprocess.Popen([TOOL, "crash", image, "threads=3", f"seed={seed}", *how],
                                  stdout=subprocess.PIPE)
        with open(log, "wb") as file:
            for _ in range(5 + 6 * seed):
                file.write(writer.stdout.readline())
            writer.kill()
            file.write(writer.stdout.read())
        writer.wait()
        writer.stdout.close()
        status = run("qemu-img", "check", "-f", "qcow2", image, status=None).status
        assert status in (0, 3)  # nothing, or leaks
        tool("survived", image, log, "threads=3", f"seed={seed}", *how)
        if "0.10" not in kind:  # version 2 cannot say that it was not closed
            run("qemu-img", "check", "-f", "qcow2", image)


# --- locks ----------------------------------------------------------------------------


def test_qemu_is_kept_out_while_we_write(scratch):
    image = f"{scratch}/a.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", image, "32M")
    with subprocess.Popen([TOOL, "crash", image], stdout=subprocess.PIPE) as writer:
        try:
            writer.stdout.readline()
            for words in (("check", "-f", "qcow2", image), ("info", image),
                          ("snapshot", "-c", "one", image)):
                assert 'Failed to get' in run("qemu-img", *words, status=1).err
            assert "another program" in tool("map", image, status=1).err
        finally:
            writer.kill()


@pytest.mark.parametrize("flag, reads", [("-r", True), ("-n", False)])
def test_we_keep_out_while_qemu_is_there(scratch, flag, reads):
    base = filled(f"{scratch}/base.qcow2", "compat=1.1")
    top = f"{scratch}/top.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top)
    raw = raw_of(base, f"{scratch}/raw")
    with subprocess.Popen(["qemu-io", flag, "-f", "qcow2", base], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as qemu:
        try:
            qemu.stdin.write(b"read 0 512\n")
            qemu.stdin.flush()
            qemu.stdout.readline()
            refused = tool("write", base, raw, status=1).err
            assert "cannot write to" in refused and "another program has it open" in refused
            for image in (base, top):
                err = tool("map", image, status=0 if reads else 1).err
                assert reads or f"cannot read {base}: another program is writing to it" in err
        finally:
            qemu.kill()
    tool("map", top)
    tool("write", base, raw)


# --- hostile files ------------------------------------------------------------------


def patched(image, *changes):
    with open(image, "r+b") as file:
        for offset, bytes_ in changes:
            file.seek(offset)
            file.write(bytes_)


@pytest.mark.parametrize("changes, words", [
    ([(0, b"QFI")], None),
    ([(4, struct.pack(">I", 7))], "version 7"),
    ([(20, struct.pack(">I", 40))], "2^40"),
    ([(24, struct.pack(">Q", 2**63))], "claims a disk"),
    ([(24, struct.pack(">Q", 2**62))], "too small"),
    ([(32, struct.pack(">I", 1))], "encrypted"),
    ([(36, struct.pack(">I", 2**31))], "32 MiB"),
    ([(40, struct.pack(">Q", 2**50))], "does not lie within"),
    ([(40, struct.pack(">Q", 12345))], "not a cluster's start"),
    ([(48, struct.pack(">Q", 2**63))], "does not lie within"),
    ([(56, struct.pack(">I", 2**31))], "refcount table"),
    ([(60, struct.pack(">I", 2**31))], "snapshots"),
    ([(60, struct.pack(">IQ", 3, 12345))], "snapshot table"),
    ([(72, struct.pack(">Q", 4))], "external data file"),
    ([(72, struct.pack(">Q", 1 << 40))], "bit 40"),
    ([(96, struct.pack(">I", 9))], "2^9 bits"),
    ([(100, struct.pack(">I", 2**31))], "header claims"),
    ([(8, struct.pack(">QI", 2**40, 5))], "backing file's name"),
    ([(112, struct.pack(">II", 5, 2**31))], "leads past"),
])
def test_bad_headers_are_refused(scratch, changes, words):
    image = filled(f"{scratch}/a.qcow2", "compat=1.1")
    patched(image, *changes)
    if words is None:
        patched(image, (0, b"xxxx"))
        words = "not a QCOW2 image"
    message = tool("map", image, status=1).err
    assert words in message and image in message, message


def test_backing_files_that_are_not_followed(scratch):
    base = filled(f"{scratch}/base.qcow2", "compat=1.1")
    os.mkdir(f"{scratch}/inner")
    image = f"{scratch}/inner/a.qcow2"

    def refused(name, form, words, *options):
        tool("create", image, MIB, f"backing={name}:{form}")
        message = tool("map", image, *options, status=1).err
        os.unlink(image)
        assert words in message, message

    refused(base, "qcow2", "outside of its folder")
    refused("../base.qcow2", "qcow2", "outside of its folder")
    os.symlink(base, f"{scratch}/inner/link")
    refused("link", "qcow2", "outside of its folder")
    refused("missing", "qcow2", "cannot find")
    refused("nbd:localhost:10809", "raw", "protocol")
    refused('json:{"driver":"file"}', "qcow2", "protocol")
    refused("a.qcow2", "qcow2", "refers to itself")
    refused("a.qcow2", "raw", "refers to itself")
    tool("create", image, MIB, "backing=../base.qcow2:qcow2")
    tool("map", image, f"allow={scratch}")
    io(base, "write 0 64k")
    with open(image, "r+b") as file:  # the extension with the format becomes an unknown one
        file.seek(112)
        file.write(struct.pack(">I", 0x11111111))
    message = tool("map", image, f"allow={scratch}", status=1).err
    assert "stated" in message


def test_cut_files_give_errors(scratch):
    image = filled(f"{scratch}/a.qcow2", "cluster_size=4k")
    with open(image, "rb") as file:
        whole = file.read()
    for length in (0, 3, 71, 103, 4000, 4096, 12288, len(whole) // 3, len(whole) - 8192):
        with open(image, "wb") as file:
            file.write(whole[:length])
        assert tool("read", image, f"{scratch}/out", status=1).err


def test_mangled_tables_never_break_the_reader_or_the_writer(scratch):
    """Anything may come out but a crash, which a sanitizer or signal would tell."""
    rng = random.Random(7)
    image, raw = f"{scratch}/a.qcow2", f"{scratch}/raw"
    with open(filled(image, "cluster_size=4k", "4M"), "rb") as file:
        whole = file.read()
    with open(raw, "wb") as file:
        file.truncate(4 * MIB)
    for _ in range(25 if under_sanitizer() else 60):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 4, 30))):
            at = rng.randrange(104, 16 * 4096) & ~7
            content[at:at + 8] = rng.choice((rng.randbytes(8), struct.pack(
                ">Q", rng.choice((1 << 63, 1 << 62, 0, 1)) | rng.randrange(0, 40) * 4096)))
        with open(image, "wb") as file:
            file.write(content)
        for verb in (("read", image, f"{scratch}/out", "threads=2"),
                     ("stress", image, raw, "ops=40", "threads=2"), ("map", image)):
            result = tool(*verb, status=None)
            assert result.status in (0, 1), result


def test_much_memory_is_not_needed(scratch):
    """64 TiB with data all over: the tables do not fit in the cache."""
    if under_sanitizer():
        pytest.skip("sanitizers take memory of their own")
    need("/usr/bin/time")
    image = f"{scratch}/a.qcow2"
    tool("create", image, 64 * TIB)
    io(image, *(f"write -P 5 {i * 64 * GIB} 64k" for i in range(512)))
    result = run("/usr/bin/time", "-f", "%M", TOOL, "map", image)
    assert int(result.err.split()[-1]) < 100 * KIB


def test_refcounts_far_beyond_the_end_cost_no_time(scratch):
    """All blocks of a refcount table of 8 MiB are one, which counts everything."""
    image = f"{scratch}/a.qcow2"
    tool("create", image, 1024 * TIB)
    with open(image, "r+b") as file:
        file.seek(48)
        table, clusters = struct.unpack(">QI", file.read(12))
        file.seek(table)
        block = file.read(8)
        file.seek(table)
        file.write(block * (clusters * 65536 // 8))
        file.seek(struct.unpack(">Q", block)[0])
        file.write(b"\0\1" * 32768)
    err = run(TOOL, "crash", image, status=1, timeout=20).err
    assert "count far more clusters than its file has" in err

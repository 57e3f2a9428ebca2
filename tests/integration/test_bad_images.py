"""QCOW2 files that are not what they claim to be: each gives a clear error.

BAD_IMAGES is the table of single faults with the message that each one gives.
Below it are files cut at many points and files with random damage: an error, or
the right content, but never a crash, a wait, much memory or wrong bytes.
"""

import hashlib
import os
import random
import resource
import shutil
import struct

import pytest

from support import GIB, KIB, MIB, bad_input, fails, need, run, sendense, under_sanitizer

COPIED = 1 << 63
SIZE = MIB
CLUSTER = 64 * KIB


# --- faults ---------------------------------------------------------------------


def word(file, offset, value=None, width=8):
    code = {1: ">B", 2: ">H", 4: ">I", 8: ">Q"}[width]
    file.seek(offset)
    if value is None:
        return struct.unpack(code, file.read(width))[0]
    return file.write(struct.pack(code, value & (1 << 8 * width) - 1))


def field(offset, value, width=8):
    """Sets one field of the header."""
    return lambda file: word(file, offset, value, width)


def several(*faults):
    def fault(file):
        for one in faults:
            one(file)
    return fault


def content(data):
    """Replaces the whole file."""
    def fault(file):
        file.truncate(0)
        file.seek(0)
        file.write(data)
    return fault


def l1_entry(value):
    return lambda file: word(file, word(file, 40), value)


def l2_entry(value):
    """Of the first guest cluster.  value may depend on the file's length."""
    def fault(file):
        table = word(file, word(file, 40)) & ~COPIED
        length = file.seek(0, os.SEEK_END)
        word(file, table, value(length) if callable(value) else value)
    return fault


def extension(magic, data, length=None):
    """Puts a header extension before all others."""
    def fault(file):
        at = word(file, 100, width=4)
        file.seek(at)
        rest = file.read(512)
        padded = data + bytes(-len(data) % 8)
        file.seek(at)
        file.write(struct.pack(">II", magic, len(data) if length is None else length) + padded
                   + rest)
    return fault


def backing(name, form="qcow2", stated=None):
    """Names a backing file, with its format unless form is None."""
    def fault(file):
        if form is not None:
            extension(0xE2792ACA, form.encode())(file)
        data = name if isinstance(name, bytes) else name.encode()
        file.seek(2048)
        file.write(data)
        word(file, 8, 2048)
        word(file, 16, len(data) if stated is None else stated, width=4)
    return fault


def feature(bit):
    return lambda file: word(file, 72, word(file, 72) | 1 << bit)


def feature_name(bit, name):
    """Gives an incompatible feature a name, in the place of the first that QEMU named."""
    def fault(file):
        file.seek(0)
        at = file.read(4096).index(struct.pack(">I", 0x6803F857))
        file.seek(at + 8)
        file.write(bytes([0, bit]) + name.ljust(46, b"\0"))
    return fault


# What is wrong, how it is made, what the message says.
BAD_IMAGES = [
    ("an empty file", content(b""), "it has 0 bytes, less than a header"),
    ("not a QCOW2 image", content(b"MZ" + bytes(CLUSTER)), "it does not start like one"),
    ("version 1", field(4, 1, 4), "of version 1; versions 2 and 3 are read"),
    ("version 4", field(4, 4, 4), "of version 4; versions 2 and 3 are read"),
    ("clusters of 256 bytes", field(20, 8, 4), "clusters of 2^8 bytes"),
    ("clusters of 2^32 bytes", field(20, 32, 4), "clusters of 2^32 bytes"),
    ("a disk of 2^64 - 1 bytes", field(24, -1), "it claims a disk of 18446744073709551615 bytes"),
    ("a disk of 2^63 bytes", field(24, 1 << 63), "it claims a disk of 9223372036854775808 bytes"),
    ("a disk of 2^63 - 512 bytes", field(24, (1 << 63) - 512),
     "its L1 table of 1 entries is too small for a disk of 9223372036854775296 bytes"),
    ("an L1 table of 32 GiB", field(36, -1, 4), "larger than 32 MiB"),
    ("an L1 table without entries", field(36, 0, 4), "its L1 table of 0 entries is too small"),
    ("an L1 table longer than the file", field(36, 4 * MIB, 4),
     "does not lie within the file's"),
    ("an L1 table past the end", field(40, 1 << 40), "does not lie within the file's"),
    ("an L1 table near 2^63", field(40, (1 << 63) - CLUSTER), "does not lie within the file's"),
    ("an L1 table inside a cluster", field(40, CLUSTER + 512), "is not a cluster's start"),
    ("a refcount table past the end", field(48, 1 << 40), "does not lie within the file's"),
    ("a refcount table near 2^64", field(48, -CLUSTER), "does not lie within the file's"),
    ("a refcount table inside a cluster", field(48, 8), "is not a cluster's start"),
    ("a refcount table of 2^32 - 1 clusters", field(56, -1, 4), "its refcount table has"),
    ("no refcount table", field(56, 0, 4), "its refcount table has 0 bytes"),
    ("refcounts of 2^7 bits", field(96, 7, 4), "refcounts of 2^7 bits do not exist"),
    ("a header of 2^32 - 1 bytes", field(100, -1, 4), "its header claims 4294967295 bytes"),
    ("a header of 8 bytes", field(100, 8, 4), "its header claims 8 bytes"),
    ("an extension that leads past the header", extension(0x1234, b"x", (1 << 32) - 1),
     "header extension 0x00001234 of 4294967295 bytes leads past"),
    ("an unknown incompatible feature", feature(40), "incompatible feature bit 40"),
    ("an incompatible feature with a name",
     several(feature(41), feature_name(41, b"time travel")),
     'the feature "time travel" (incompatible bit 41)'),
    ("encryption (AES)", field(32, 1, 4), "is encrypted"),
    ("encryption (LUKS)", field(32, 2, 4), "is encrypted"),
    ("an external data file", feature(2), "external data file"),
    ("an unknown compression", several(feature(3), field(104, 9, 1)), "compression type 9"),
    ("2^32 - 1 snapshots", field(60, -1, 4), "it claims 4294967295 snapshots"),
    ("a snapshot table past the end", several(field(60, 1, 4), field(64, 1 << 40)),
     "its snapshot table"),
    ("a snapshot table of zeros", several(field(60, 3, 4), field(64, 15 * CLUSTER)),
     "its snapshot table"),
    ("2^32 - 1 bitmaps", several(field(88, 1), extension(
        0x23852875, struct.pack(">IIQQ", (1 << 32) - 1, 0, 64, CLUSTER))), "bitmaps"),
    ("a bitmap directory past the end", several(field(88, 1), extension(
        0x23852875, struct.pack(">IIQQ", 1, 0, 64, 1 << 40))), "bitmap directory"),
    ("an L2 table past the end", l1_entry(COPIED | 1 << 40),
     "entry 0 of its L1 table points to offset 1099511627776, which is no cluster of the file"),
    ("an L2 table near 2^56", l1_entry(COPIED | (1 << 56) - CLUSTER),
     "points to offset 72057594037862400, which is no cluster of the file"),
    ("an L2 table inside a cluster", l1_entry(COPIED | CLUSTER + 512),
     "points to offset 66048, which is no cluster of the file"),
    ("data past the end", l2_entry(lambda length: COPIED | length + CLUSTER),
     "guest cluster 0 lies at offset 655360, which is no cluster of the file"),
    ("data near 2^56", l2_entry(COPIED | (1 << 56) - CLUSTER),
     "guest cluster 0 lies at offset 72057594037862400, which is no cluster of the file"),
    ("data inside a cluster", l2_entry(COPIED | 5 * CLUSTER + 512),
     "guest cluster 0 lies at offset 328192, which is no cluster of the file"),
    ("a compressed cluster past the end", l2_entry(1 << 62 | 1 << 40),
     "compressed guest cluster 0 lies at offset 1099511627776, beyond the file's end"),
    ("a compressed cluster of rubbish", l2_entry(1 << 62 | 3 << 54 | 5 * CLUSTER),
     "the compressed cluster at offset 327680 cannot be decompressed"),
    ("itself as backing file", backing("bad.qcow2"), "refers to itself"),
    ("itself as backing file, by another name", backing("./link.qcow2"), "refers to itself"),
    ("a backing file that is not there", backing("none.qcow2"), "No such file"),
    ("a backing file in another folder", backing("../outside.qcow2"),
     "outside of its folder and of those allowed"),
    ("a backing file by an absolute path", backing("/etc/passwd", "raw"),
     "outside of its folder and of those allowed"),
    ("a link that leads out of the folder as backing file", backing("passwd", "raw"),
     "outside of its folder and of those allowed"),
    ("a backing file without a format", backing("raw", None), "with no stated format"),
    ("a backing file of an unknown format", backing("raw", "vmdk"), 'with "vmdk" as its format'),
    ("a backing file over the network", backing("nbd://localhost/disk", "raw"), "protocol"),
    ("a backing file in JSON", backing('json:{"driver":"raw"}', "raw"), "protocol"),
    ("a backing file's name of 2^32 - 1 bytes", backing("x", stated=(1 << 32) - 1),
     "its backing file's name (4294967295 bytes"),
    ("a backing file's name with a zero byte", backing(b"a\0b"), "holds a zero byte"),
    ("a FIFO as backing file", backing("fifo", "raw"), "neither a regular file"),
]


# --- trying them -----------------------------------------------------------------


def bound_memory():
    """A large allocation for a small file fails here, and the test with it."""
    resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB))


def limits():
    return {} if under_sanitizer() else {"preexec_fn": bound_memory}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A small image with data, compressed data and zeros."""
    need("qemu-img", "qemu-io")
    path = tmp_path_factory.mktemp("images") / "sound.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", path, SIZE)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 200k", "-c", "write -c -P 2 256k 64k",
        "-c", "write -z 320k 64k", path)
    return str(path)


@pytest.fixture(scope="module")
def rich(sound):
    """The same with a snapshot and a bitmap."""
    path = os.path.join(os.path.dirname(sound), "rich.qcow2")
    shutil.copy(sound, path)
    run("qemu-img", "snapshot", "-c", "one", path)
    run("qemu-img", "bitmap", "--add", path, "b")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 3 512k 64k", path)
    return path


@pytest.mark.parametrize("case, fault, message", BAD_IMAGES, ids=[row[0] for row in BAD_IMAGES])
def test_bad_image(scratch, sound, case, fault, message):
    folder = os.path.join(scratch, "images")
    os.mkdir(folder)
    path = os.path.join(folder, "bad.qcow2")
    shutil.copy(sound, path)
    shutil.copy(sound, os.path.join(scratch, "outside.qcow2"))
    os.symlink("bad.qcow2", os.path.join(folder, "link.qcow2"))
    os.symlink("/etc/passwd", os.path.join(folder, "passwd"))
    os.mkfifo(os.path.join(folder, "fifo"))
    with open(path, "r+b") as file:
        fault(file)
    result = fails("copy", f"qcow2:{path}", f"null:{SIZE}", contains=(path, message), **limits())
    bad_input(f"QCOW2: {case}", result.message.replace(f"{folder}/", ""))


def copied(path, target):
    """The content's hash, or None and a clear error, with no target left."""
    result = sendense("copy", f"qcow2:{path}", f"raw:{target}", status=None, **limits())
    if result.status == 0:
        with open(target, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        os.unlink(target)
        return digest
    assert result.status == 1 and result.message, result
    assert "anitizer" not in result.err and not os.path.exists(target), result
    return None


def test_cut_short(scratch, rich):
    """Cut at any point: an error, or what was cut off was not of this disk."""
    path, target = os.path.join(scratch, "cut.qcow2"), os.path.join(scratch, "target")
    whole = copied(rich, target)
    length = os.path.getsize(rich)
    rng = random.Random(3)
    points = {0, 1, 3, 4, 20, 71, 72, 103, 104, 111, 112, 500}
    points |= {at + more for at in range(CLUSTER, length, CLUSTER) for more in (-1, 0, 512)}
    points |= {rng.randrange(length) for _ in range(10)}
    failed = 0
    for point in sorted(points):
        shutil.copy(rich, path)
        os.truncate(path, min(point, length))
        digest = copied(path, target)
        assert digest in (None, whole), point
        failed += digest is None
    assert failed > len(points) / 2


def test_random_damage(scratch, rich):
    """Any bytes in the metadata changed: no crash, no wait, no message missing."""
    path, target = os.path.join(scratch, "damaged.qcow2"), os.path.join(scratch, "target")
    rng = random.Random(5)
    failed = 0
    with open(rich, "rb") as file:
        places = [0, word(file, 40), word(file, word(file, 40)) & ~COPIED, word(file, 48)]
    for _ in range(60):
        shutil.copy(rich, path)
        with open(path, "r+b") as file:
            for _ in range(rng.choice([1, 2, 8])):
                at = rng.choice(places) + min(rng.randrange(120), rng.randrange(120))
                word(file, at, rng.choice([0, 0xFF, rng.randrange(256)]), width=1)
        failed += copied(path, target) is None
    assert 5 < failed < 60

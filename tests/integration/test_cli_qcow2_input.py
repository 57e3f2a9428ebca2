"""QCOW2 files that are not what they claim to be: each gets a clear error."""

import os
import struct

import pytest

from support import KIB, MIB, fails, make_disk, need, run, sendense


@pytest.fixture
def image(scratch):
    need("qemu-img")
    disk = make_disk(f"{scratch}/disk.raw", 4 * MIB, [(0, MIB, "random"), (3 * MIB, MIB, "text")])
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, f"{scratch}/disk.qcow2")
    return f"{scratch}/disk.qcow2"


def patch(path, offset, layout, *values):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(struct.pack(">" + layout, *values))


def reading_fails(scratch, image, case, contains=(), options=()):
    fails("copy", f"qcow2:{image}", f"raw:{scratch}/out", *options, case=case, contains=contains,
          timeout=30)
    assert not os.path.exists(f"{scratch}/out")


# What stands where in the header (docs/interop/qcow2.txt).
VERSION, BACKING_OFFSET, BACKING_LENGTH, CLUSTER_BITS, SIZE, CRYPT = 4, 8, 16, 20, 24, 32
L1_SIZE, L1_OFFSET, REFCOUNT_OFFSET, REFCOUNT_CLUSTERS, INCOMPATIBLE = 36, 40, 48, 56, 72


@pytest.mark.parametrize("case, offset, layout, value", [
    ("a QCOW2 file of another magic", 0, "I", 0x51464900),
    ("a QCOW2 file of version 9", VERSION, "I", 9),
    ("a QCOW2 file with clusters of 2^40", CLUSTER_BITS, "I", 40),
    ("a QCOW2 file of 2^63 bytes", SIZE, "Q", 1 << 63),
    ("a QCOW2 file of 2^63 - 512 bytes", SIZE, "Q", (1 << 63) - 512),
    ("an encrypted QCOW2 file", CRYPT, "I", 2),
    ("a QCOW2 file with its L1 table past the end", L1_OFFSET, "Q", 1 << 50),
    ("a QCOW2 file with an L1 table of 2^31 entries", L1_SIZE, "I", 1 << 31),
    ("a QCOW2 file with an L1 table at an odd offset", L1_OFFSET, "Q", 12345),
    ("a QCOW2 file with unknown features", INCOMPATIBLE, "Q", 1 << 40),
    ("a QCOW2 file with external data", INCOMPATIBLE, "Q", 4),
    ("a QCOW2 file with a backing name past the end", BACKING_OFFSET, "QI", (1 << 40, 10)),
    ("a QCOW2 file with a backing name of 4 GiB", BACKING_OFFSET, "QI", (512, 0xffffffff)),
])
def test_headers_that_cannot_be(scratch, image, case, offset, layout, value):
    patch(image, offset, layout, *(value if isinstance(value, tuple) else (value,)))
    reading_fails(scratch, image, case)


def test_truncated_anywhere(scratch, image):
    size = os.path.getsize(image)
    with open(image, "rb") as file:
        content = file.read()
    for cut, case in ((0, "an empty file as QCOW2"), (50, "a QCOW2 file cut in its header"),
                      (64 * KIB, "a QCOW2 file cut behind its header"),
                      (3 * 64 * KIB, "a QCOW2 file cut before its tables"),
                      (size // 2, "a QCOW2 file cut in its data")):
        with open(f"{scratch}/cut", "wb") as file:
            file.write(content[:cut])
        reading_fails(scratch, f"{scratch}/cut", case)


def test_a_table_entry_past_the_end(scratch, image):
    with open(image, "rb") as file:
        header = file.read(104)
        [l1_offset] = struct.unpack_from(">Q", header, L1_OFFSET)
        file.seek(l1_offset)
        [l2_offset] = struct.unpack(">Q", file.read(8))
    l2_offset &= 0x00fffffffffffe00
    patch(image, l2_offset, "Q", (1 << 63) | (1 << 45))
    reading_fails(scratch, image, "a QCOW2 file with data past the end")
    patch(image, l1_offset, "Q", (1 << 63) | (1 << 45))
    reading_fails(scratch, image, "a QCOW2 file with an L2 table past the end")


def test_backing_files(scratch, image):
    need("qemu-img")

    def top(name, backing, backing_format):
        path = f"{scratch}/here/{name}"
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", backing_format,
            path, "4M")
        return path

    os.mkdir(f"{scratch}/elsewhere")
    os.mkdir(f"{scratch}/here")
    os.rename(image, f"{scratch}/elsewhere/disk.qcow2")
    outside = top("outside", "../elsewhere/disk.qcow2", "qcow2")
    reading_fails(scratch, outside, "a QCOW2 file with a backing file in another folder",
                  "elsewhere")
    sendense("copy", f"qcow2:{outside}", f"raw:{scratch}/out", "--allow-backing",
             f"{scratch}/elsewhere")
    run("cmp", f"{scratch}/disk.raw", f"{scratch}/out")
    os.unlink(f"{scratch}/out")
    reading_fails(scratch, outside, "a folder for backing files that is not there",
                  "--allow-backing", options=["--allow-backing", f"{scratch}/none"])
    os.symlink(f"{scratch}/elsewhere/disk.qcow2", f"{scratch}/here/link.qcow2")
    reading_fails(scratch, top("linked", "link.qcow2", "qcow2"),
                  "a QCOW2 file with a backing file behind a symbolic link")
    reading_fails(scratch, top("secret", "/etc/passwd", "raw"),
                  "a QCOW2 file with a file of the host as its backing", "/etc/passwd")
    reading_fails(scratch, top("self", "self", "qcow2"), "a QCOW2 file that backs itself")
    top("one", "two", "qcow2")
    reading_fails(scratch, top("two", "one", "qcow2"), "QCOW2 files that back each other")
    reading_fails(scratch, top("gone", "none.qcow2", "qcow2"),
                  "a QCOW2 file whose backing file is gone", "none.qcow2")
    reading_fails(scratch, top("json", 'json:{"driver":"null-co"}', "raw"),
                  "a QCOW2 file with a json: backing name")
    reading_fails(scratch, top("remote", "nbd://localhost/x", "raw"),
                  "a QCOW2 file with a protocol as its backing name")

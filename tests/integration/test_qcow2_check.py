"""qcow2_check() beside qemu-img check: the same errors and leaks on images that
QEMU wrote, whole and damaged in many ways; repair, after which QEMU finds nothing."""

import os
import random
import shutil
import struct

import pytest

from support import GIB, KIB, MIB, SENDENSE, need, run, under_sanitizer

CHECK_IMAGE = os.path.join(os.path.dirname(SENDENSE), "../../tests/tools/check_image")
COPIED = 1 << 63
OFFSET_MASK = 0x00FFFFFFFFFFFE00


def ours(image, *options):
    result = run(CHECK_IMAGE, *options, image)
    found = result.json
    found["findings"] = result.err.splitlines()
    return found


def qemus(image):
    """Errors, leaks, end and clusters as QEMU sees them."""
    need("qemu-img")
    found = run("qemu-img", "check", "-f", "qcow2", "--output=json", image, status=None).json
    return {"errors": found.get("corruptions", 0), "leaks": found.get("leaks", 0),
            "used": found.get("allocated-clusters", 0), "total": found["total-clusters"],
            "compressed": found.get("compressed-clusters", 0), "end": found["image-end-offset"]}


def agree(image):
    mine, theirs = ours(image), qemus(image)
    assert {key: mine[key] for key in theirs} == theirs, mine["findings"]
    return mine


class Image:
    """A QCOW2 file to be damaged: where its tables are, reading and writing words."""

    def __init__(self, path):
        with open(path, "rb") as file:
            header = file.read(104)
        self.file = open(path, "r+b")  # pylint: disable=consider-using-with
        self.version, = struct.unpack(">I", header[4:8])
        self.cluster = 1 << struct.unpack(">I", header[20:24])[0]
        self.nr_l1, self.l1, self.refcount_table = struct.unpack(">IQQ", header[36:56])
        self.extended = self.version >= 3 and header[79] & 16
        self.size = os.path.getsize(path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def word(self, offset, value=None, width=8):
        code = {1: ">B", 2: ">H", 4: ">I", 8: ">Q"}[width]
        self.file.seek(offset)
        if value is None:
            return struct.unpack(code, self.file.read(width))[0]
        self.file.write(struct.pack(code, value))
        return value

    def l2_tables(self):
        entries = [self.word(self.l1 + 8 * i) for i in range(self.nr_l1)]
        return [entry & OFFSET_MASK for entry in entries if entry]

    def l2_entries(self):
        """Where entries that say something lie."""
        step = 16 if self.extended else 8
        places = []
        for table in self.l2_tables():
            self.file.seek(table)
            data = self.file.read(self.cluster)
            places += [table + i for i in range(0, len(data) - 7, step) if any(data[i:i + 8])]
        return places

    def refcount_block(self, index=0):
        return self.word(self.refcount_table + 8 * index)


def make(path, *options, size=64 * MIB):
    need("qemu-img", "qemu-io")
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, path, size)
    write(path, "write -P 1 0 5M", "write -P 2 20M 100k", "write -z 1M 1M", "write -z -u 3M 512k",
          "discard 4M 128k", "write -P 9 63M 1M")
    return path


def write(path, *commands):
    words = [word for command in commands for word in ("-c", command)]
    run("qemu-io", "-f", "qcow2", *words, path)


def make_compressed(scratch, path, *options):
    raw = os.path.join(scratch, "raw")
    rng = random.Random(4)
    with open(raw, "wb") as file:
        for i in range(60):
            file.write(rng.randbytes(1000) * 20 if i % 3 else rng.randbytes(20000))
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", *options, raw, path)
    os.unlink(raw)
    write(path, "write -P 1 64k 128k")
    return path


def make_kind(scratch, kind):
    """The images that the tests below work on, by name."""
    path = os.path.join(scratch, f"{kind}.qcow2")
    if kind == "snapshots":
        make(path)
        for name in ("one", "two"):
            run("qemu-img", "snapshot", "-c", name, path)
            write(path, "write -P 4 0 1M", "write -z 22M 3M")
    elif kind == "bitmaps":
        make(path)
        run("qemu-img", "bitmap", "--add", path, "b1")
        write(path, "write -P 6 0 3M")
        run("qemu-img", "bitmap", "--add", "-g", "512", path, "b2")
    elif kind == "zlib":
        make_compressed(scratch, path, "-o", "cluster_size=4k")
    elif kind == "zstd":
        make_compressed(scratch, path, "-o", "compression_type=zstd")
    else:
        make(path, *(["-o", kind] if kind != "plain" else []))
    return path


KINDS = ["plain", "compat=0.10", "cluster_size=512", "cluster_size=2M", "lazy_refcounts=on",
         "refcount_bits=1", "refcount_bits=8", "refcount_bits=32", "refcount_bits=64",
         "extended_l2=on", "snapshots", "bitmaps", "zlib", "zstd"]


@pytest.mark.parametrize("kind", KINDS)
def test_sound_images(scratch, kind):
    found = agree(make_kind(scratch, kind))
    assert found["errors"] == found["leaks"] == 0


def damage(image, rng):
    """One change somewhere in the metadata."""
    kind = rng.choice(["refcount", "l2 entry", "l2 swap", "l2 flag", "l1"])
    if kind == "refcount":
        image.word(image.refcount_block() + rng.randrange(min(image.cluster, 400)),
                   rng.choice([0, 1, 2, 3, 255]), width=1)
        return
    nr_clusters = image.size // image.cluster
    if kind == "l1":
        place = image.l1 + 8 * rng.randrange(image.nr_l1)
        image.word(place, rng.choice([0, image.word(place) ^ COPIED]))
        return
    places = image.l2_entries()
    place = rng.choice(places)
    entry = image.word(place)
    if kind == "l2 swap":
        entry = image.word(rng.choice(places))
    elif kind == "l2 flag":
        entry ^= 1 << rng.choice([63, 63, 62, 5, 60])
    else:
        entry = rng.choice([0, COPIED | rng.randrange(nr_clusters + 3) * image.cluster,
                            entry ^ 1 << rng.randrange(9, 40)])
    image.word(place, entry)


@pytest.mark.parametrize("kind", ["plain", "compat=0.10", "refcount_bits=8", "extended_l2=on",
                                  "snapshots", "bitmaps", "zlib", "zstd"])
def test_damaged_images(scratch, kind):
    """Errors and leaks as QEMU finds them.  Repair leaves no leak where all could
    be mended, adds no error, and QEMU agrees with what is left."""
    original = make_kind(scratch, kind)
    path = os.path.join(scratch, "damaged.qcow2")
    rng = random.Random(11)
    mended = same = 0
    for _ in range(12):
        shutil.copy(original, path)
        with Image(path) as image:
            for _ in range(rng.choice([1, 1, 2, 4])):
                if image.l2_tables():
                    damage(image, rng)
        mine, theirs = ours(path), qemus(path)
        assert (mine["errors"] > 0) == (theirs["errors"] > 0), mine["findings"]
        assert mine["leaks"] == theirs["leaks"], mine["findings"]
        same += mine["errors"] == theirs["errors"]
        assert bool(mine["findings"]) == bool(mine["errors"] + mine["leaks"])
        repaired = ours(path, "--repair")
        assert repaired["errors"] == mine["errors"] and repaired["leaks"] == mine["leaks"]
        left = ours(path)
        assert left["errors"] <= mine["errors"]
        assert left["errors"] + left["leaks"] == \
            mine["errors"] + mine["leaks"] - repaired["repaired"]
        if not left["errors"] + left["leaks"]:
            mended += 1
            theirs = qemus(path)
            assert theirs["errors"] == theirs["leaks"] == 0
    # A table that is seen as another's data, say, we count differently.
    assert same >= 9
    assert mended >= 2


def test_repair(scratch):
    """Leaks, refcounts that are too small, COPIED flags, a missing refcount block,
    the dirty bit; guest data stays."""
    path = make(os.path.join(scratch, "a.qcow2"))
    raw, after = os.path.join(scratch, "raw"), os.path.join(scratch, "after")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
    with Image(path) as image:
        block, cluster = image.refcount_block(), image.cluster
        data = [image.word(p) & OFFSET_MASK for p in image.l2_entries() if image.word(p) & COPIED]
        image.word(block + 2 * (data[0] // cluster), 0, width=2)
        image.word(block + 2 * (data[1] // cluster), 7, width=2)
        image.word(image.l2_entries()[5], image.word(image.l2_entries()[5]) ^ COPIED)
        end = image.size // cluster
        image.file.truncate((end + 3) * cluster)
        image.word(block + 2 * end, 1, width=2)
        image.word(block + 2 * end + 2, 9, width=2)
        image.word(72, 3)  # dirty, and marked corrupt
    found = agree(path)
    assert found["errors"] == 4 and found["leaks"] == 3
    found = ours(path, "--repair")
    assert found["repaired"] == found["errors"] + found["leaks"] == 7
    found = agree(path)
    assert found["errors"] == found["leaks"] == 0
    with Image(path) as image:
        assert image.word(72) == 0
        block = image.refcount_block()
        image.word(image.refcount_table, 0)
    found = ours(path)
    assert found["errors"] > 100
    found = ours(path, "--repair")
    assert found["repaired"] == found["errors"]
    with Image(path) as image:
        assert image.refcount_block() not in (0, block)
    found = agree(path)
    assert found["errors"] == found["leaks"] == 0
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, after)
    run("cmp", raw, after)


def test_no_leak_is_given_back_beside_a_broken_reference(scratch):
    """The lost L2 table's data look unused, and may be all that is left of them."""
    path = make(os.path.join(scratch, "a.qcow2"))
    with Image(path) as image:
        image.word(image.l1, COPIED | 1 << 50)
    before = ours(path)
    assert before["leaks"] > 50
    assert ours(path, "--repair")["repaired"] == 0
    assert ours(path)["leaks"] == before["leaks"]
    with Image(path) as image:
        assert image.word(image.l1) == COPIED | 1 << 50


@pytest.mark.parametrize("what", ["refcount block", "L2 table"])
def test_guest_data_is_not_taken_for_metadata(scratch, what):
    """A table's entry names guest data: repair must not write there."""
    path = make(os.path.join(scratch, "a.qcow2"))
    with Image(path) as image:
        data = image.word(image.l2_entries()[7]) & OFFSET_MASK
        image.word(image.l2_entries()[8], 5 * image.cluster)  # something to mend
        if what == "refcount block":
            image.word(image.refcount_table, data)
        else:
            image.word(data, COPIED | 6 * image.cluster)  # as an entry whose flag is wrong
            image.word(image.l1, COPIED | data)
    with open(path, "rb") as file:
        before = file.read()
    found = ours(path, "--repair")
    assert found["errors"] > 0 and found["repaired"] == 0
    with open(path, "rb") as file:
        assert file.read() == before


def test_overlap_with_metadata(scratch):
    """A guest cluster in the L1 table's place, with refcounts that agree: QEMU's
    check sees nothing, but a guest's write would overwrite the table."""
    path = make(os.path.join(scratch, "a.qcow2"))
    with Image(path) as image:
        place = image.l2_entries()[3]
        old = image.word(place) & OFFSET_MASK
        image.word(place, image.l1)
        image.word(image.refcount_block() + 2 * (old // image.cluster), 0, width=2)
        image.word(image.refcount_block() + 2 * (image.l1 // image.cluster), 2, width=2)
    found = ours(path)
    assert found["errors"] == 1 and found["leaks"] == 0
    assert "is metadata and used for something else" in found["findings"][0]


def test_far_windows(scratch):
    """A sparse file of more than one window (8 Mi clusters): leaks, data and damage
    beyond the first window are found, in bounded memory."""
    path = make(os.path.join(scratch, "a.qcow2"))
    far = [551 * GIB, 1201 * GIB]
    with Image(path) as image:
        cluster = image.cluster
        per_block = cluster // 2
        places = image.l2_entries()
        image.file.truncate(1300 * GIB)
        for i, offset in enumerate(far):
            first = offset // cluster // per_block * per_block
            block = first * cluster
            image.word(image.refcount_table + 8 * (first // per_block), block)
            image.word(block, 1, width=2)  # the block itself
            index = offset // cluster - first
            image.word(block + 2 * index, 1, width=2)       # data, used below
            image.word(block + 2 * (index + 1), 1, width=2)  # a leak
            old = image.word(places[i]) & OFFSET_MASK
            image.word(places[i], COPIED | offset)
            image.word(image.refcount_block() + 2 * (old // cluster), 0, width=2)
        # One more use of the farthest, by an entry whose flag is wrong then as well.
        image.word(places[2], COPIED | far[1])
    found = agree(path)
    assert found["leaks"] == 3 and found["errors"] == 1
    if not under_sanitizer():
        assert found["peak_kib"] < 60 * 1024
    assert ours(path, "--repair")["repaired"] == 4
    found = agree(path)
    assert found["errors"] == found["leaks"] == 0
    with Image(path) as image:
        assert image.word(places[0]) == COPIED | far[0]
        assert image.word(places[1]) == image.word(places[2]) == far[1]


def test_many_references_to_one_table_end(scratch):
    """An L1 table of 4 Mi entries that all name the same L2 table of 2 MiB."""
    path = make(os.path.join(scratch, "a.qcow2"), "-o", "cluster_size=2M", size=1 << 40)
    with Image(path) as image:
        table = image.l2_tables()[0]
        new_l1 = image.size
        image.file.seek(new_l1)
        image.file.write(struct.pack(">Q", table) * (4 * MIB))
        image.word(24, 1 << 60)
        image.word(36, 4 * MIB, width=4)
        image.word(40, new_l1)
    found = ours(path)
    assert found["errors"] > 4 * MIB - 65536


def test_findings_are_told_64_at_most(scratch):
    path = make(os.path.join(scratch, "a.qcow2"))
    with Image(path) as image:
        image.file.seek(image.refcount_block())
        image.file.write(bytes(image.cluster))
    found = ours(path)
    assert found["errors"] > 64 and len(found["findings"]) == 64


def test_what_cannot_be_checked(scratch):
    path = os.path.join(scratch, "a.qcow2")
    result = run(CHECK_IMAGE, path, status=1)
    assert result.err == f"sendense: cannot open qcow2:{path}: No such file or directory\n"
    with open(path, "wb") as file:
        file.write(bytes(64 * KIB))
    result = run(CHECK_IMAGE, path, status=1)
    assert result.err.startswith(f"sendense: cannot check qcow2:{path}: "), result
    result = run(CHECK_IMAGE, scratch, status=1)
    assert result.err.startswith(f"sendense: cannot check qcow2:{scratch}: "), result


def test_repair_lets_nobody_write_over_a_cluster_that_one_bit_cannot_count(scratch):
    """Two guest clusters in one place, and refcounts of one bit: neither is sole owner."""
    need("qemu-img", "qemu-io")
    path = f"{scratch}/a.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "refcount_bits=1", path, "1M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 128k", path)
    with Image(path) as image:
        first, second = image.l2_entries()
        shared = image.word(first) & ~COPIED
        image.word(first, shared)
        image.word(second, shared)
    found = ours(path, "--repair")
    assert found["errors"] > 0
    with Image(path) as image:
        assert [image.word(at) for at in (first, second)] == [shared, shared]

"""Layers of a chain: what an image holds itself, beside what qemu-img says of it."""

import contextlib
import itertools
import os
import subprocess

import pytest

from support import SENDENSE, need, run

TOOL = os.path.join(os.path.dirname(SENDENSE), "../../tests/unit/qcow2/qcow2_tool")
HOLE, ZERO, UNCHANGED = 1, 2, 4


@pytest.fixture(autouse=True)
def oracle():
    need("qemu-img", "qemu-io")


def io(image, *commands):
    run("qemu-io", "-f", "qcow2", *itertools.chain(*(("-c", c) for c in commands)), image)


def create(path, size, kind="compat=1.1", backing=None, form="qcow2"):
    words = ("-b", backing, "-F", form) if backing else ()
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", kind, *words, path, size)
    return path


def lines(*words):
    return [tuple(map(int, line.split())) for line in run(TOOL, *words).out.splitlines()]


def joined(spans):
    out = []
    for start, length, what in spans:
        if out and out[-1][2] == what:
            out[-1] = (out[-1][0], out[-1][1] + length, what)
        else:
            out.append((start, length, what))
    return out


@pytest.mark.parametrize("kind", ["compat=0.10", "compat=1.1", "extended_l2=on", "cluster_size=4k",
                                  "extended_l2=on,cluster_size=16k", "compression_type=zstd"])
@pytest.mark.parametrize("backing", ["qcow2", "raw", None])
def test_what_an_image_holds_itself(scratch, kind, backing):
    base = f"{scratch}/base"
    run("qemu-img", "create", "-q", "-f", backing or "raw", base, "9M")
    run("qemu-io", "-f", backing or "raw", "-c", "write -P 5 0 8M", base)
    top = create(f"{scratch}/top", "12M", kind, backing and base, backing)
    io(top, "write -P 6 1M 100k", "write -z 3M 256k", "write -P 7 5000000 5000",
       "write -c -P 8 6M 64k", "write -P 9 8M 2M", "write -z 11M 64k", "discard 8M 64k")
    spans = run("qemu-img", "map", "-f", "qcow2", "--output=json", top).json
    theirs = [(s["start"], s["length"], s["depth"] == 0 and s["present"]) for s in spans]
    ours = lines("map", top, "own")
    assert joined((at, n, flags != HOLE | UNCHANGED) for at, n, flags in ours) == joined(theirs)
    assert joined((at, n, bool(held)) for at, n, held in lines("held", top)) == joined(theirs)
    # Zeros of its own are told as such.
    zeros = [(s["start"], s["length"], s["zero"]) for s in spans if s["depth"] == 0 and s["present"]]
    assert joined((at, n, bool(flags & ZERO)) for at, n, flags in ours
                  if flags != HOLE | UNCHANGED) == joined(zeros)
    assert not any(flags & ZERO and flags & UNCHANGED for _, _, flags in ours)


@contextlib.contextmanager
def held(image, *how):
    """The image open in another process of ours."""
    with subprocess.Popen([TOOL, "hold", image, *how], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield
        finally:
            process.stdin.close()
            assert process.wait(60) == 0


# Who comes while an image is merged into, read beneath another, only read, written to.
@pytest.mark.parametrize("how, merged, merge, reader, writer", [
    (["merge"], True, False, False, False),
    (["read-only", "merged"], True, True, True, False),
    (["read-only"], True, False, True, False),
    ([], False, False, False, False),
])
def test_qemu_and_we_keep_out_of_each_others_way(scratch, how, merged, merge, reader, writer):
    image = create(f"{scratch}/x", "4M")
    above = create(f"{scratch}/above", "4M", backing=image)
    with held(above if "merged" in how else image, *how):
        for comes, path, words in (
                (merged, above, ["read-only", "merged"]), (merge, image, ["merge"]),
                (reader, image, ["read-only"]), (writer, image, [])):
            tried = run(TOOL, "hold", path, *words, status=None)
            assert tried.status == (0 if comes else 1), (words, tried)
            assert comes or "another program" in tried.err
        for comes, words in ((reader, ["-r", "-c", "read 0 64k"]), (writer, ["-c", "write 0 64k"])):
            tried = run("qemu-io", "-f", "qcow2", *words, image, status=None)
            assert tried.status == (0 if comes else 1), (words, tried)
            assert comes or "lock" in tried.err


def test_nothing_hides_what_is_merged_into_the_image_that_is_read(scratch):
    """Who reads the image itself, and has no lease (a read-only mount), would see it change."""
    image = create(f"{scratch}/x", "4M")
    for first, second in ((["read-only", "merged"], ["merge"]), (["merge"], ["read-only", "merged"])):
        with held(image, *first):
            tried = run(TOOL, "hold", image, *second, status=None)
            assert tried.status == 1 and "another program" in tried.err


def test_qemu_reads_the_backing_file_of_what_is_merged_into(scratch):
    base = create(f"{scratch}/base", "4M")
    image = create(f"{scratch}/x", "4M", backing=base)
    with held(image, "merge"):
        run("qemu-io", "-f", "qcow2", "-r", "-c", "read 0 64k", base)
        assert run("qemu-io", "-f", "qcow2", "-c", "write 0 64k", base, status=None).status == 1


def test_what_snapshots_share_is_not_merged_into(scratch):
    image = create(f"{scratch}/x", "4M")
    io(image, "write 0 64k")
    run("qemu-img", "snapshot", "-c", "one", image)
    tried = run(TOOL, "hold", image, "merge", status=None)
    assert tried.status == 1 and "snapshots" in tried.err

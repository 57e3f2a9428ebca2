"""sendense copy and measure: what they do, how they show it, how they fail."""

import json
import os
import re

import pytest

import support
from support import (KIB, MIB, SENDENSE, allocated, fails, interrupt, make_disk, need, on_terminal,
                     run, sendense)

PIECES = [(0, 3 * MIB, "random"), (8 * MIB, MIB, "zero"), (20 * MIB, 2 * MIB, "text"),
          (31 * MIB, MIB - 512, "random")]


@pytest.fixture
def disk(scratch):
    return make_disk(f"{scratch}/disk.raw", 32 * MIB, PIECES)


def leftovers(scratch, *known):
    return sorted(set(os.listdir(scratch)) - set(known))


def json_lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


# --- what it does ---------------------------------------------------------------


def test_raw_to_raw_is_identical_and_as_sparse(scratch, disk):
    report = sendense("copy", f"raw:{disk}", f"raw:{scratch}/copy.raw", "--json").json
    run("cmp", disk, f"{scratch}/copy.raw")
    # The written zeros of the source are not written again.
    assert allocated(f"{scratch}/copy.raw") <= allocated(disk) - MIB + 64 * KIB
    assert report["size"] == report["logical"] == 32 * MIB
    assert report["sent"] + report["zeros_skipped"] == 32 * MIB
    assert report["stored"] == allocated(f"{scratch}/copy.raw")


def test_from_and_to_nbd(scratch, servers, disk):
    source = servers.qemu_nbd(disk, read_only=True, tcp=True)
    sendense("copy", source.uri, f"raw:{scratch}/a.raw")
    run("cmp", disk, f"{scratch}/a.raw")
    # The target holds other data: every zero must be written.
    make_disk(f"{scratch}/b.raw", 32 * MIB, [(0, 32 * MIB, "random")], seed=2)
    target = servers.qemu_nbd(f"{scratch}/b.raw")
    sendense("copy", f"raw:{disk}", target.uri)
    target.stop()
    run("cmp", disk, f"{scratch}/b.raw")


@pytest.mark.parametrize("compression", ["none", "zlib", "zstd"])
def test_to_and_from_qcow2(scratch, disk, compression):
    image = f"{scratch}/disk.qcow2"
    sendense("copy", f"raw:{disk}", f"qcow2:{image}", "--compression", compression,
             "--cluster-size", "128k")
    support.qemu_check(image)
    support.same_content(disk, "raw", image, "qcow2")
    info = json.loads(run("qemu-img", "info", "--output=json", image).out)
    assert info["cluster-size"] == 128 * KIB
    sendense("copy", f"qcow2:{image}", f"raw:{scratch}/back.raw")
    run("cmp", disk, f"{scratch}/back.raw")


def test_clusters_larger_than_pieces_of_data(scratch):
    """What of a cluster the source does not have is zeros, not an older buffer's bytes."""
    disk = make_disk(f"{scratch}/disk.raw", 64 * MIB,
                     [(0, 24 * MIB, "random"), *((offset, 300 * KIB, "random")
                                                 for offset in range(25 * MIB, 63 * MIB, 2 * MIB))])
    for cluster in ("128k", "2M"):
        sendense("copy", f"raw:{disk}", f"qcow2:{scratch}/{cluster}", "--cluster-size", cluster)
        support.same_content(disk, "raw", f"{scratch}/{cluster}", "qcow2")


def test_force_replaces_a_file(scratch, disk):
    make_disk(f"{scratch}/other.raw", 40 * MIB, [(0, 40 * MIB, "random")], seed=3)
    sendense("copy", f"raw:{disk}", f"raw:{scratch}/other.raw", "--force")
    run("cmp", disk, f"{scratch}/other.raw")


def test_measure_agrees_with_the_disk(scratch, disk):
    report = sendense("measure", f"raw:{disk}", "--json").json
    assert report["size"] == 32 * MIB and report["exact"]
    assert report["allocated"] == allocated(disk)
    assert 6 * MIB - 64 * KIB <= report["data"] <= 6 * MIB
    assert 4 * MIB < report["stored"]["zstd"] < report["stored"]["none"] < 6.1 * MIB
    assert "without compression" in sendense("measure", f"raw:{disk}").out
    big = make_disk(f"{scratch}/big.raw", 600 * MIB, [(MIB, 300 * MIB, "zero"),
                                                      (400 * MIB, 100 * MIB, "random")])
    report = sendense("measure", f"raw:{big}", "--json").json
    assert not report["exact"] and report["sampled"] <= 270 * MIB
    assert 95 * MIB < report["data"] < 105 * MIB
    assert sendense("measure", "null:8TiB", "--json").json["allocated"] == 0


# --- progress ---------------------------------------------------------------------


def test_bar_on_a_terminal(scratch, disk):
    status, text = on_terminal(SENDENSE, "copy", f"raw:{disk}", f"raw:{scratch}/copy.raw",
                               "--limit-rate", "16MiB")
    assert status == 0
    assert "\r" in text and "copy" in text and "[#" in text
    last = text.rstrip().splitlines()[-1].split("\r")[-1]
    for word in ("100%", "read", "sent", "stored", "zeros", "/s"):
        assert word in last, last
    # Never wider than the terminal, else it could not be drawn over.
    status, text = on_terminal(SENDENSE, "copy", f"raw:{disk}", "null:32M", columns=40)
    assert status == 0
    assert all(len(part) < 40 for part in text.replace("\x1b[K", "").split("\r"))
    # What does not fit is left out, and not cut in the middle.
    drawn = [part.rstrip() for part in text.replace("\x1b[K", "").split("\r") if part.strip()]
    assert drawn and all(re.search(r"  \d\S*/s(  \S+ left)?$", part) for part in drawn), drawn


def test_verbose_tells_the_stages(scratch, disk):
    err = sendense("copy", f"raw:{disk}", f"raw:{scratch}/copy.raw", "--verbose").err
    assert err.splitlines() == ["sendense: info: copy", "sendense: info: close"]


def test_an_image_that_is_called_raw_is_warned_of(scratch, disk):
    image = f"{scratch}/disk.qcow2"
    sendense("copy", f"raw:{disk}", f"qcow2:{image}")
    told = sendense("copy", f"raw:{image}", f"raw:{scratch}/copy.raw").err
    assert "warning" in told and f"qcow2:{image}" in told
    assert sendense("copy", f"qcow2:{image}", f"raw:{scratch}/other.raw").err == ""


@pytest.mark.parametrize("options", [["--progress=none"], ["--quiet"]])
def test_no_bar_when_not_wanted(disk, options):
    assert on_terminal(SENDENSE, "copy", f"raw:{disk}", "null:32M", *options) == (0, "")


def test_json_lines(disk):
    result = sendense("copy", f"raw:{disk}", "null:32M", "--progress=json", "--limit-rate=8MiB/s")
    events = json_lines(result.err)
    assert events[0] == {"event": "stage", "stage": "prepare"}
    assert {"event": "stage", "stage": "copy"} in events
    figures = [event for event in events if event["event"] == "progress"]
    assert figures
    for before, after in zip(figures, figures[1:] + events[-1:]):
        for name in ("logical", "read", "sent", "zeros_skipped", "percent"):
            assert before[name] <= after[name]
    end = events[-1]
    assert end["event"] == "end" and end["outcome"] == "done" and end["percent"] == 100
    assert end["size"] == end["logical"] == 32 * MIB
    assert [event["event"] for event in events].count("end") == 1


def test_json_lines_of_a_failure(scratch):
    result = sendense("copy", f"raw:{scratch}/none", "null:1M", "--progress=json", "--json",
                      status=1)
    assert json_lines(result.err)[-1]["outcome"] == "failed"
    assert result.json["error"]["code"] == "not-found"


# --- cancel ------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["raw", "qcow2"])
def test_interrupt_ends_within_a_second_and_leaves_nothing(scratch, servers, disk, target):
    copy = servers.start(SENDENSE, "copy", f"raw:{disk}", f"{target}:{scratch}/copy.{target}",
                         "--limit-rate=64KiB", "--progress=json")
    copy.wait_err('"event":"progress"')
    assert os.path.exists(f"{scratch}/copy.{target}")
    seconds, status = interrupt(copy)
    assert status == 1 and seconds < (5 if support.under_sanitizer() else 1)
    assert "cancelled" in copy.err and json_lines(copy.err)[-1]["outcome"] == "cancelled"
    assert not os.path.exists(f"{scratch}/copy.{target}")


def test_interrupt_while_a_server_does_not_answer(scratch, servers):
    import socket  # pylint: disable=import-outside-toplevel
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{scratch}/silent.sock")
        silent.listen(4)
        copy = servers.start(SENDENSE, "copy", f"nbd+unix:///?socket={scratch}/silent.sock",
                             f"raw:{scratch}/copy.raw")
        silent.settimeout(support.TIMEOUT)
        peer, _ = silent.accept()
        seconds, status = interrupt(copy)
        peer.close()
    assert status == 1 and seconds < (5 if support.under_sanitizer() else 1)
    assert not os.path.exists(f"{scratch}/copy.raw")


# --- bad input ------------------------------------------------------------------------


def test_sources_that_cannot_be(scratch):
    fails("copy", f"raw:{scratch}/none", "null:1M", case="a source that does not exist",
          contains="No such file")
    fails("copy", f"nbd+unix:///?socket={scratch}/none", "null:1M",
          case="an NBD source that nobody serves", contains="none")
    fails("copy", "disk.raw", "null:1M", status=2, case="a source without a format",
          contains="raw:disk.raw")
    fails("copy", __file__, "null:1M", status=2, case="an existing file without a format",
          contains="never guessed")
    fails("copy", f"raw:{scratch}", "null:1M", case="a folder as the source", contains="neither")
    fails("copy", "vmware://u@v/vm", "null:1M", case="a machine as one disk",
          contains="sendense backup")
    fails("copy", "nbds://localhost/x", "null:1M", status=2,
          case="a TLS source without credentials", contains="pre-shared key")


def test_a_source_that_fails_in_the_middle(scratch, servers):
    need("nbdkit")
    source = servers.nbdkit(
        "eval", "get_size=echo 64M",
        'pread=if [ $4 -ge 33554432 ]; then echo EIO bad sector >&2; exit 1; fi; '
        'head -c $3 /dev/urandom')
    fails("copy", source.uri, f"raw:{scratch}/copy.raw", case="a source that fails a read half way",
          contains="removed")
    assert not os.path.exists(f"{scratch}/copy.raw")


def test_a_source_that_shrinks(scratch, servers, disk):
    copy = servers.start(SENDENSE, "copy", f"raw:{disk}", f"raw:{scratch}/copy.raw",
                         "--limit-rate=2MiB", "--progress=json")
    copy.wait_err('"event":"progress"')
    os.truncate(disk, 4096)
    assert copy.wait() == 1
    result = support.Result(copy.command, 1, "", copy.err)
    assert "ends at" in result.message and "removed" in result.message
    support.bad_input("a source that shrinks while it is read", result.message)
    assert not os.path.exists(f"{scratch}/copy.raw")


def test_targets_that_cannot_be(scratch, servers, disk):
    source = f"raw:{disk}"
    with open(f"{scratch}/precious", "wb") as file:
        file.write(b"precious")
    for kind in ("raw", "qcow2"):
        fails("copy", source, f"{kind}:{scratch}/precious", case=f"an existing {kind} target",
              contains="--force")
        with open(f"{scratch}/precious", "rb") as file:
            assert file.read() == b"precious"
    fails("copy", source, source, status=2, case="a target that is the source",
          contains="same disk")
    os.link(disk, f"{scratch}/other-name")
    fails("copy", source, f"raw:{scratch}/other-name", "--force", status=2,
          case="a target that is the source by another name", contains="same disk")
    fails("copy", source, f"raw:{scratch}/no/such/folder/x", case="a target in no folder",
          contains="No such file")
    fails("copy", source, f"raw:{scratch}", "--force", case="a folder as the target",
          contains="neither")
    small = make_disk(f"{scratch}/small.raw", 5 * MIB)
    server = servers.qemu_nbd(small)
    fails("copy", source, server.uri, case="an NBD target of another size",
          contains=[str(5 * MIB), str(32 * MIB)])
    reader = servers.qemu_nbd(disk, read_only=True)
    fails("copy", source, reader.uri, case="an NBD target that is read-only",
          contains="read-only")
    fails("copy", source, "null:1M", case="a target of another size", contains="must be equal")
    fails("copy", source, f"raw:{scratch}/x", "--compression=zstd", status=2,
          contains="qcow2: targets")
    fails("copy", source, f"qcow2:{scratch}/x", "--cluster-size=65537", status=2,
          case="a cluster size that is no power of two", contains="power of two")
    fails("copy", source, f"qcow2:{scratch}/x", "--compression=lzo", status=2,
          contains="none, zlib, zstd")
    fails("copy", source, "null:32M", "--limit-rate=fast", status=2, contains="not a rate")
    run("cmp", disk, f"{scratch}/other-name")
    assert not os.path.exists(f"{scratch}/x")


def test_a_backing_file_is_no_target(scratch, disk):
    need("qemu-img")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", f"{scratch}/top.qcow2")
    before = run("sha256sum", disk).out
    fails("copy", f"qcow2:{scratch}/top.qcow2", f"raw:{disk}", "--force",
          case="a target that the source is built on", contains="built on it")
    assert run("sha256sum", disk).out == before


def test_a_target_that_runs_full(scratch, servers, disk):
    support.need_mounts(scratch)
    os.mkdir(f"{scratch}/full")
    inside = (f"mount -t tmpfs -o size=2m none {scratch}/full && "
              f"{{ {SENDENSE} copy raw:{disk} raw:{scratch}/full/x; echo $?; ls {scratch}/full; }}")
    done = run("unshare", "-rm", "sh", "-c", inside)
    assert done.out == "1\n"
    assert "No space left" in done.message and "removed" in done.message
    support.bad_input("a target that runs full", done.message)
    need("nbdkit")
    target = servers.nbdkit("--filter=error", "memory", "32M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%",
                            "error-zero=ENOSPC", "error-zero-rate=100%")
    fails("copy", f"raw:{disk}", target.uri, case="an NBD target that runs full",
          contains="may hold a part")


def test_limits_of_sizes(scratch):
    fails("copy", "null:16EiB", "null:1M", status=2, contains="64 bits")
    fails("copy", "null:9EiB", "null:1M", status=2, case="a size beyond 2^63", contains="2^63")


def test_size_that_no_file_can_have(scratch):
    probe = os.path.join(scratch, "probe")
    try:
        with open(probe, "wb") as file:
            file.truncate(8191 << 50)
        pytest.skip("the file system of the tests takes files of any size (tmpfs does)")
    except OSError:
        os.unlink(probe)
    fails("copy", "null:8191PiB", f"raw:{scratch}/x", case="a size that no file can have",
          contains="cannot make")
    assert leftovers(scratch) == []


def test_wrong_usage_of_measure(disk):
    fails("measure", f"raw:{disk}", "--exact", "--time-box=1s", status=2, contains="only one")
    fails("measure", f"raw:{disk}", "--time-box=soon", status=2, contains="not a duration")
    fails("measure", status=2, contains="something is missing")

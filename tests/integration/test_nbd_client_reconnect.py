"""The NBD client when servers die, come back, come back different, or say nothing."""

import filecmp
import os
import signal

import pytest

from support import (MIB, SENDENSE, fails, interrupt, make_disk, need, wait_for)

SIZE = 24 * MIB


class Restartable:
    """An nbdkit on a socket of a fixed name, to be killed and started again."""

    def __init__(self, servers, scratch):
        need("nbdkit")
        self.servers = servers
        self.path = f"{scratch}/r.sock"
        self.uri = f"nbd+unix:///?socket={self.path}"
        self.process = None

    def start(self, *arguments):
        self.process = self.servers.start("nbdkit", "-f", "-U", self.path, *arguments,
                                          name="nbdkit")
        wait_for(lambda: os.path.exists(self.path), "nbdkit's socket")

    def kill(self):
        self.process.signal(signal.SIGKILL)
        self.process.wait()
        os.unlink(self.path)


@pytest.fixture
def server(servers, scratch):
    return Restartable(servers, scratch)


def copy_beside(servers, *arguments):
    return servers.start(SENDENSE, "copy", *arguments, name="copy")


def slow(*arguments):
    """nbdkit's arguments for a server that moves 4 MB at once and takes minutes for the
    rest: no copy ends, or flushes its last, before the server is killed."""
    return ["--filter=rate", *arguments, "rate=1M", "burstiness=32"]


def test_source_comes_back(scratch, servers, server):
    disk = make_disk(f"{scratch}/a", SIZE, [(0, SIZE, "random")])
    server.start("-r", *slow("file", disk))
    copy = copy_beside(servers, server.uri, f"raw:{scratch}/b")
    wait_for(lambda: os.path.exists(f"{scratch}/b") and os.stat(f"{scratch}/b").st_blocks > 2048,
             "the first bytes")
    server.kill()
    server.start("-r", "file", disk)
    assert copy.wait() == 0, copy.err
    assert filecmp.cmp(disk, f"{scratch}/b", shallow=False)


def test_target_comes_back_without_what_was_not_flushed(scratch, servers, server):
    disk = make_disk(f"{scratch}/a", SIZE, [(0, SIZE, "random")])
    target = make_disk(f"{scratch}/b", SIZE)
    server.start(*slow("file", target))
    copy = copy_beside(servers, "--force", f"raw:{disk}", server.uri)
    wait_for(lambda: os.stat(target).st_blocks > 2048, "the first bytes")
    server.kill()
    make_disk(target, SIZE)  # what was written is gone: it had not been flushed
    server.start("file", target)
    assert copy.wait() == 0, copy.err
    assert filecmp.cmp(disk, target, shallow=False)


def test_source_comes_back_with_another_size(scratch, servers, server):
    disk = make_disk(f"{scratch}/a", SIZE, [(0, SIZE, "random")])
    server.start("-r", *slow("file", disk))
    copy = copy_beside(servers, server.uri, f"raw:{scratch}/b")
    wait_for(lambda: os.path.exists(f"{scratch}/b") and os.stat(f"{scratch}/b").st_blocks > 2048,
             "the first bytes")
    server.kill()
    server.start("-r", "memory", "1M")
    assert copy.wait() == 1, copy.err
    assert str(SIZE) in copy.err and str(1 * MIB) in copy.err, copy.err
    assert not os.path.exists(f"{scratch}/b")


def test_refusal_in_the_servers_words(scratch, servers):
    disk = make_disk(f"{scratch}/a", 1 * MIB)
    source = servers.export(f"raw:{disk}", "--max-connections", "1", "--read-only")
    pytest.importorskip("nbd")
    import nbd  # pylint: disable=import-outside-toplevel
    holder = nbd.NBD()
    holder.connect_uri(source.uri)
    fails("copy", source.uri, f"raw:{scratch}/b",
          contains=["refused by the server", "1 of 1"])
    holder.pread(512, 0)  # goes on undisturbed
    holder.shutdown()


def test_silence_can_be_interrupted(scratch, servers):
    """A second client of qemu-nbd --shared=1 gets no answer; Ctrl-C ends the wait."""
    pytest.importorskip("nbd")
    import nbd  # pylint: disable=import-outside-toplevel
    disk = make_disk(f"{scratch}/a", 1 * MIB)
    source = servers.qemu_nbd(disk, read_only=True, shared=1)
    holder = nbd.NBD()
    holder.connect_uri(source.uri)
    copy = copy_beside(servers, source.uri, f"raw:{scratch}/b")
    wait_for(lambda: f"SigCgt:\t0000000000000000" not in
             open(f"/proc/{copy.pid}/status", encoding="ascii").read(), "its signal handlers")
    took, status = interrupt(copy)
    assert status != 0 and took < 1.5, (took, copy.err)
    assert not os.path.exists(f"{scratch}/b")
    holder.shutdown()


def test_cancel_in_the_middle(scratch, servers):
    source = servers.nbdkit("--filter=delay", "-r", "pattern", "64M", "rdelay=30")
    copy = copy_beside(servers, source.uri, f"raw:{scratch}/b")
    wait_for(lambda: os.path.exists(f"{scratch}/b"), "the target")
    took, status = interrupt(copy)
    assert status != 0 and took < 1.5, (took, copy.err)
    assert not os.path.exists(f"{scratch}/b")

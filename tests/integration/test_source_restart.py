"""An NBD server that is started again in the middle of a backup: one state, never two mixed."""

import glob
import json
import os
import signal

import pytest

from nbd_relay import Relay
from support import MIB, SENDENSE, allocated, fails, make_disk, need, run, sendense, wait_for

SIZE = 12 * MIB


@pytest.fixture
def repo(scratch):
    path = f"{scratch}/repo"
    sendense("repo", "init", path, "--quiet")
    return path


class Server:
    """qemu-nbd on a socket of a fixed name."""

    def __init__(self, servers, scratch, disk):
        need("qemu-nbd")
        self.servers, self.disk = servers, disk
        self.path = f"{scratch}/nbd.sock"
        self.uri = f"nbd+unix:///?socket={self.path}"
        self.start()

    def start(self):
        self.process = self.servers.start("qemu-nbd", "-r", "-f", "raw", "-t", "--shared=16", "-k",
                                          self.path, self.disk, name="qemu-nbd")
        wait_for(lambda: os.path.exists(self.path), "qemu-nbd's socket")

    def kill(self):
        self.process.signal(signal.SIGKILL)
        self.process.wait()
        os.unlink(self.path)


def stored_part(repo):
    return [part for part in glob.glob(f"{repo}/vms/vm/disks/*/*.qcow2.part")
            if allocated(part) > 3 * MIB]


def restarted(servers, repo, server, change, *words):
    """A backup whose server is killed when a part is stored, and comes back later."""
    process = servers.start(SENDENSE, "backup", "--repo", repo, "--vm", "vm", "--json",
                            "--limit-rate=4M", *words, server.uri, name="backup")
    wait_for(lambda: not process.running or stored_part(repo), "a part of the backup")
    server.kill()
    change()
    process.wait_err("lost")
    server.start()
    assert process.wait() == 0, process.err
    return process


def overwrite(path, *offsets):
    with open(path, "r+b") as file:
        for offset in offsets:
            file.seek(offset)
            file.write(os.urandom(MIB))


def restored(scratch, repo):
    back = f"{scratch}/back.raw"
    sendense("restore", "--repo", repo, "vm", f"--to=disk0=raw:{back}", "--quiet")
    return back


@pytest.mark.parametrize("is_increment", [False, True])
def test_the_point_is_the_state_after_the_restart(scratch, servers, repo, is_increment):
    disk = make_disk(f"{scratch}/disk.raw", SIZE, [(0, SIZE, "random")])
    server = Server(servers, scratch, disk)
    if is_increment:
        sendense("backup", "--repo", repo, "--vm", "vm", "--quiet", server.uri)
        make_disk(disk, SIZE, [(0, SIZE, "random")], seed=2)
    process = restarted(servers, repo, server, lambda: overwrite(disk, 0, SIZE - 2 * MIB))
    assert "the source may have changed" in process.err
    result = json.loads(process.out)["disks"][0]
    assert result["resumed"] == "compared" and result["read"] == SIZE, result
    assert result["kept"] >= MIB and result["sent"] < SIZE, result
    run("cmp", disk, restored(scratch, repo))
    sendense("verify", "--repo", repo, "vm")


def test_a_source_that_stays_the_same_is_gone_on_with(scratch, servers, repo):
    disk = make_disk(f"{scratch}/disk.raw", SIZE, [(0, SIZE, "random")])
    server = Server(servers, scratch, disk)
    process = restarted(servers, repo, server, lambda: None, "--source-id=snapshot-1")
    assert "connecting again" in process.err and "changed" not in process.err, process.err
    result = json.loads(process.out)["disks"][0]
    assert result["resumed"] == "no" and result["read"] < SIZE + 4 * MIB, result
    run("cmp", disk, restored(scratch, repo))


def test_a_connection_that_never_lasts_ends_the_backup(scratch, servers, repo):
    disk = make_disk(f"{scratch}/disk.raw", SIZE, [(0, SIZE, "random")])
    server = Server(servers, scratch, disk)
    with Relay(scratch, "relay", server.path) as relay:
        def again():
            relay.at(4 * MIB, again)
        again()
        result = fails("backup", "--repo", repo, "--vm", "vm", relay.uri,
                       contains=["the connection was lost", "goes on with it", "--source-id"])
        assert result.err.count("the source may have changed") == 3, result.err
        relay.count()
        # Without a word about the source its job is compared, not believed.
        report = sendense("backup", "--repo", repo, "--vm", "vm", "--json", relay.uri).json
    assert report["disks"][0]["resumed"] == "compared", report
    run("cmp", disk, restored(scratch, repo))

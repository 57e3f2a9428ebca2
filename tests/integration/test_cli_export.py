"""sendense export: readiness, places to listen, limits, the end."""

import json
import os
import stat

import pytest

import support
from support import MIB, SENDENSE, fails, interrupt, make_disk, need, run, sendense


@pytest.fixture
def disk(scratch):
    return make_disk(f"{scratch}/disk.raw", 8 * MIB, [(0, MIB, "random"), (5 * MIB, MIB, "text")])


def connect(uri):
    need("nbd")
    import nbd  # pylint: disable=import-outside-toplevel
    handle = nbd.NBD()
    handle.connect_uri(uri)
    return handle


def test_ready_means_that_it_answers(scratch, servers, disk):
    path = f"{scratch}/here.sock"
    server = servers.export(f"raw:{disk}", "--pid-file", f"{scratch}/pid", "--name", "my disk",
                            where=["--socket", path])
    assert server.uri == f"nbd+unix:///my%20disk?socket={path}"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with open(f"{scratch}/pid", encoding="ascii") as file:
        assert file.read() == f"{server.pid}\n"
    need("nbdinfo")
    assert int(run("nbdinfo", "--size", server.uri).out) == 8 * MIB
    server.stop(expect=0)
    assert not os.path.exists(path) and not os.path.exists(f"{scratch}/pid")
    assert server.err == ""


def test_relative_socket_gives_an_absolute_uri(scratch, servers, disk):
    server = servers.start(SENDENSE, "export", f"raw:{disk}", "--socket", "rel.sock", pipe=True,
                           cwd=scratch)
    line = support.read_line(server.popen.stdout, "the URI").decode().strip()
    assert line == f"nbd+unix:///?socket={os.path.realpath(scratch)}/rel.sock"
    connect(line).shutdown()
    server.stop(expect=0)


def test_ready_with_json(servers, disk):
    server = servers.export(f"raw:{disk}", "--json", "--read-only", tcp=True)
    report = json.loads(server.uri)
    assert report["uri"].startswith("nbd://127.0.0.1:") and report["pid"] == server.pid
    assert report["exports"] == [{"name": "", "uri": report["uri"], "size": 8 * MIB,
                                  "read_only": True}]
    handle = connect(report["uri"])
    assert handle.is_read_only()
    handle.shutdown()


def test_ipv6(servers, disk):
    server = servers.export(f"raw:{disk}", where=["--port=0", "--address=::1"])
    assert server.uri.startswith("nbd://[::1]:")
    connect(server.uri).shutdown()


def test_nothing_is_printed_behind_the_line(servers, disk):
    server = servers.export(f"raw:{disk}")
    connect(server.uri).shutdown()
    server.popen.terminate()
    assert server.popen.stdout.read() == b""
    assert server.wait() == 0


@pytest.mark.parametrize("number", [2, 15, 1])
def test_signals_end_it_the_regular_way(servers, disk, number):
    server = servers.export(f"raw:{disk}")
    handle = connect(server.uri)
    seconds, status = interrupt(server, number)
    assert status == 0 and seconds < 8
    del handle


def test_socket_activation_by_nbdcopy(scratch, disk):
    need("nbdcopy")
    run("nbdcopy", "--", "[", SENDENSE, "export", f"raw:{disk}", "--read-only", "]",
        f"{scratch}/out.raw")
    run("cmp", disk, f"{scratch}/out.raw")
    make_disk(f"{scratch}/in.raw", 8 * MIB)
    run("nbdcopy", "--", disk, "[", SENDENSE, "export", f"raw:{scratch}/in.raw", "]")
    run("cmp", disk, f"{scratch}/in.raw")


def test_socket_activation_prints_nothing(servers, disk):
    for tcp in (False, True):
        server = servers.activate(SENDENSE, "export", f"raw:{disk}", tcp=tcp)
        connect(server.uri).shutdown()
        server.stop(expect=0)
        assert server.out == "" and server.err == ""


def test_a_closed_stdout_does_not_matter(scratch, servers, disk):
    server = servers.start("sh", "-c", f'exec "$@" >&-', "sh", SENDENSE, "export", f"raw:{disk}",
                           "--socket", f"{scratch}/s.sock", "--pid-file", f"{scratch}/pid")
    server.wait_err("standard output")
    connect(f"nbd+unix:///?socket={scratch}/s.sock").shutdown()
    server.stop(expect=0)


def test_the_first_client_finds_its_place_free(servers, disk):
    for _ in range(5):
        server = servers.export(f"raw:{disk}", "--max-connections=1")
        connect(server.uri).shutdown()
        server.stop(expect=0)


def test_second_client_is_told_who_is_in_the_way(servers, disk):
    server = servers.export(f"raw:{disk}", "--max-connections=1", tcp=True)
    first = connect(server.uri)
    result = fails("copy", server.uri, "null:8M", timeout=10,
                   case="a second client above --max-connections 1",
                   contains=["1 of 1", "127.0.0.1:"])
    need("qemu-img")
    assert "1 of 1" in run("qemu-img", "info", server.uri, status=1, timeout=10).err
    assert "in use" in result.message
    first.pread(4096, 0)
    first.shutdown()


def test_once_ends_with_the_last_client(scratch, servers, disk):
    server = servers.export(f"raw:{disk}", "--once")
    need("nbdcopy")
    run("nbdcopy", server.uri, f"{scratch}/out.raw")
    assert server.wait(20) == 0
    run("cmp", disk, f"{scratch}/out.raw")


def test_qcow2_is_closed_cleanly(scratch, servers, disk):
    need("qemu-img", "nbdcopy")
    image = f"{scratch}/disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", image, "8M")
    server = servers.export(f"qcow2:{image}")
    run("nbdcopy", disk, server.uri)
    server.stop(expect=0)
    support.qemu_check(image)
    support.same_content(disk, "raw", image, "qcow2")


def test_bad_places(scratch, servers, disk):
    image = f"raw:{disk}"
    fails("export", image, status=2, case="a server without a place to listen",
          contains="--socket PATH")
    fails("export", image, "--socket=x", "--port=1", status=2, contains="only one")
    fails("export", image, "--address=::1", "--socket=x", status=2, contains="for --port")
    fails("export", image, "--port=65536", status=2, contains="0..65535")
    fails("export", image, "--port=http", status=2, contains="not a whole number")
    fails("export", image, "--max-connections=0", "--port=0", status=2, contains="1..1024")
    for address in ("0.0.0.0", "::", "192.0.2.1"):
        result = sendense("export", image, "--port=0", f"--address={address}", status=None)
        assert result.status in (1, 2) and "loopback" in result.message, result
    support.bad_input("an address beyond loopback", result.message)
    with open(f"{scratch}/file", "wb"):
        pass
    fails("export", image, "--socket", f"{scratch}/file", case="a socket's path that is a file",
          contains="file")
    server = servers.export("null:1M")
    path = server.uri.split("socket=")[1]
    fails("export", image, "--socket", path, case="a socket where another server listens",
          contains=path)
    connect(server.uri).shutdown()
    fails("export", image, "--socket", f"{scratch}/{'x' * 120}", status=2,
          case="a socket's path that is too long")
    fails("export", image, "--port=0", "--pid-file", f"{scratch}/none/pid",
          contains=["--pid-file", "No such file"])
    fails("export", f"raw:{scratch}/none", "--port=0", contains="No such file")
    fails("export", disk, "--port=0", status=2, contains="what format?")


def test_listen_fds_for_somebody_else(disk):
    fails("export", f"raw:{disk}", status=2, env={**os.environ, "LISTEN_FDS": "1",
                                                  "LISTEN_PID": "1"},
          contains="no socket was passed")

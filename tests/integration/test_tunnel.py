"""The SSH tunnel, with a real sshd that has what "sendense tunnel sshd-config" prints."""

import filecmp
import json
import os
import re
import signal
import socket
import stat
import urllib.request

import pytest

import hub
import sshd
import support
from sshd import Tunnel, free_port, gone, health_server
from support import KIB, MIB, bad_input, fails, make_disk, need, run, wait_for

SIZE = 8 * MIB


@pytest.fixture(name="site")
def fixture_site(servers):
    return sshd.Site(servers)


@pytest.fixture(name="disk")
def fixture_disk(scratch):
    return make_disk(f"{scratch}/disk", SIZE, [(MIB, 3 * MIB, "random"), (6 * MIB, 5000, "text")])


def port_of(process):
    return int(process.uri.rstrip("/").rsplit(":", 1)[1])


def place(port, address="127.0.0.1"):
    return f"{address}:{port}"


@pytest.fixture(name="nbd")
def fixture_nbd(site, disk, servers):
    """A tunnel's settings, with an export behind it: where it answers on this side."""
    here = free_port()
    export = servers.export(f"raw:{disk}", "--read-only", tcp=True)
    site.write_conf(("forward nbd", {"listen": place(here), "to": place(port_of(export)), "service": "nbd"}))
    return here


# --- what sshd allows --------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(True, True), (True, False), (False, True)],
                         ids=["both", "match-alone", "key-alone"])
def test_a_key_can_do_nothing_else(site, servers, scratch, disk, layers):
    here, back = free_port(), free_port()
    export = servers.export(f"raw:{disk}", "--read-only", tcp=True)
    other = servers.export(f"raw:{disk}", "--read-only", tcp=True)
    with health_server() as rest:
        site.write_conf(
            ("forward nbd", {"listen": place(here), "to": place(port_of(export)), "service": "nbd"}),
            ("reverse rest", {"listen": place(back), "to": place(rest), "service": "rest"}))
        site.start_sshd(*layers)
        tunnel = Tunnel(site)
        assert tunnel.wait_up() == []
        run("nbdcopy", f"nbd://127.0.0.1:{here}/", f"{scratch}/copy")
        assert filecmp.cmp(disk, f"{scratch}/copy", shallow=False)
        tunnel.process.stop(expect=0)

        to = f"{site.user}@127.0.0.1"
        # The allowed port, for the contrast: something comes back.
        assert site.ssh("-W", place(port_of(export)), to).out.startswith("NBDMAGIC")
        refused = site.ssh("-W", place(port_of(other)), to)
        assert refused.status != 0 and "prohibited" in refused.err and refused.out == ""
        for words in (to, "echo reached"), ("-s", to, "sftp"), ("-tt", to):
            said = site.ssh(*words)
            assert said.status != 0 and "reached" not in said.out, said
        # The line of a key has no word against Unix sockets.
        sockets = [f"{scratch}/socket"] if layers[0] else []
        for forward in place(free_port()), place(back, "0.0.0.0"), *sockets:
            said = site.ssh("-N", "-o", "ExitOnForwardFailure=yes", "-R", f"{forward}:127.0.0.1:{rest}", to)
            assert said.status == 255 and "forwarding failed" in said.err, said
        assert not os.path.exists(f"{scratch}/socket")
        # Another key, and a password.
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{scratch}/stranger")
        said = site.ssh("-W", place(port_of(export)), to, identity=f"{scratch}/stranger")
        assert said.status == 255 and "Permission denied (publickey" in said.err, said


def test_what_is_printed(site):
    site.write_conf(("forward nbd", {"listen": "127.0.0.1:10100-10102", "to": "[::1]:10200-10202"}),
                    ("forward api", {"listen": "127.0.0.1:8443", "to": "127.0.0.1:8443", "service": "rest",
                                     "ca-file": "/etc/ssl/ca"}), user="node-1")
    whole = site.part("all")
    assert "\tPermitOpen [::1]:10200 [::1]:10201 [::1]:10202 127.0.0.1:8443\n\tPermitListen none\n" in whole
    assert "Match User node-1\n" in whole and "/etc/ssh/authorized_keys/node-1" in whole
    key = site.part("key")
    assert key.startswith('restrict,port-forwarding,command="/usr/sbin/nologin",permitopen="[::1]:10200",')
    assert key.endswith(" key\n") and key.count("\n") == 1 and key in whole
    # The private key in place of the public one would be copied about.
    os.replace(site.key, f"{site.key}.pub")
    fails("tunnel", "sshd-config", "--config", site.conf, contains="is no public key")
    os.remove(f"{site.key}.pub")
    fails("tunnel", "sshd-config", "--config", site.conf, contains="ssh-keygen -t ed25519")


# --- what goes through -------------------------------------------------------------------------


def test_programs_of_others_through_tunnel_and_tls(site, servers, scratch, disk):
    need("nbdcopy", "qemu-img")
    ends = free_port(), free_port()
    with open(os.open(f"{scratch}/keys.psk", os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="ascii") as file:
        file.write(f"node:{'5a' * 32}\n")
    target = make_disk(f"{scratch}/target", SIZE)
    plain = servers.export(f"raw:{disk}", "--read-only", tcp=True)
    tls = servers.export(f"raw:{target}", "--tls-psk-file", f"{scratch}/keys.psk", tcp=True)
    site.write_conf(("forward plain", {"listen": place(ends[0]), "to": place(port_of(plain)), "service": "nbd"}),
                    ("forward tls", {"listen": place(ends[1]), "to": place(port_of(tls)), "service": "nbds"}))
    site.start_sshd()
    tunnel = Tunnel(site)
    assert tunnel.wait_up() == []
    nbds = f"nbds://node@127.0.0.1:{ends[1]}/?tls-psk-file={scratch}/keys.psk"
    run("nbdcopy", f"nbd://127.0.0.1:{ends[0]}/", nbds)
    assert filecmp.cmp(disk, target, shallow=False)
    credentials = f"tls-creds-psk,id=t,endpoint=client,dir={scratch},username=node"
    image = f"driver=nbd,host=127.0.0.1,port={ends[1]},tls-creds=t"
    run("qemu-img", "compare", "--object", credentials, "--image-opts", image,
        f"driver=nbd,host=127.0.0.1,port={ends[0]}")
    run("qemu-img", "convert", "--object", credentials, "--image-opts", image, "-O", "raw", f"{scratch}/out")
    assert filecmp.cmp(disk, f"{scratch}/out", shallow=False)


def test_a_reverse_forward_is_proven_through_the_server(site):
    """Its service goes: told with its name, ssh is left alone; it comes back: told as well."""
    back, here = free_port(), free_port()
    with health_server() as other:
        with health_server() as rest:
            site.write_conf(
                ("forward hub", {"listen": place(here), "to": place(other), "service": "rest"}),
                ("reverse node", {"listen": place(back), "to": place(rest), "service": "rest"}))
            site.start_sshd()
            tunnel = Tunnel(site)
            assert tunnel.wait_up() == []
            pid = tunnel.ssh
            with urllib.request.urlopen(f"http://127.0.0.1:{back}/api/v1/health", timeout=20) as reply:
                assert json.load(reply)["status"] == "ok"
        said = tunnel.next()
        assert not said["up"] and 'forward "node"' in said["reason"], said
        assert tunnel.ssh == pid
        with health_server(rest):
            assert tunnel.wait_up() == []
            assert tunnel.ssh == pid
        tunnel.process.stop(expect=0)


def test_ten_broken_tunnels_in_a_backup(site, servers, scratch):
    size = 32 * MIB
    disk = make_disk(f"{scratch}/big", size, [(0, size - 4321, "random")])
    # The hub tells clients where its exports are: at the tunnel's end.
    with hub.hub_in(servers, settings="[nbd]\naddress-for-clients = 127.0.0.2\n") as made:
        made.start()
        rest, nbd = (int(url.rstrip("/").rsplit(":", 1)[1]) for url in (made.url, str(made.nbd)))
        here = free_port()
        site.write_conf(
            ("forward rest", {"listen": place(here), "to": place(rest), "service": "rest",
                              "ca-file": made.ca_file}),
            ("forward nbd", {"listen": place(nbd, "127.0.0.2"), "to": place(nbd), "service": "nbds"}))
        site.start_sshd()
        tunnel = Tunnel(site)
        assert tunnel.wait_up() == []
        backup = servers.start(support.SENDENSE, "backup", "--repo", f"https://127.0.0.1:{here}/main",
                               "--token-file", made.token_file, "--ca-file", made.ca_file, "--vm", "web01",
                               "--json", f"--disk=2000=raw:{disk}", "--limit-rate", "2MiB", name="backup")

        def received():
            assert backup.running, backup.err
            # A session that is gone on with in another one may end between the list and the look.
            shown = [made.ask("GET", f"sessions/{item['id']}") for item in made.get("sessions")["items"]]
            return sum(d["received_bytes"] for answer in shown if answer.status == 200
                       for d in answer.body.get("disks", []))
        for _ in range(10):
            before = received()
            wait_for(lambda least=before + MIB // 4: received() >= least, "the backup to go on")
            gone(tunnel.kill_ssh())
            assert any("ended" in reason for reason in tunnel.wait_up())
        assert backup.running, backup.err
        assert backup.wait(120) == 0, backup.err
        assert hub.compare(made.point_images("web01")["2000"], disk)
        assert made.wait(made.post("verifications", {"repository": "main", "vm": "web01"}))["state"] == "done"
        tunnel.process.stop(expect=0)


# --- what breaks --------------------------------------------------------------------------------


def answers(port):
    return run("nbdinfo", "--size", f"nbd://127.0.0.1:{port}/").out.strip() == str(SIZE)


def test_it_comes_up_again(site, nbd):
    site.start_sshd()
    tunnel = Tunnel(site)
    assert tunnel.wait_up() == [] and answers(nbd)
    # ssh killed
    first = tunnel.kill_ssh()
    assert tunnel.wait_up() and answers(nbd) and tunnel.ssh != first
    # the server's end of it killed
    site.signal_sshd(signal.SIGKILL, listener=False)
    assert tunnel.wait_up() and answers(nbd)
    # the server stands still: no connection ends, and nothing moves
    site.signal_sshd(signal.SIGSTOP)
    said = tunnel.next()
    assert not said["up"], said
    site.signal_sshd(signal.SIGCONT)
    tunnel.wait_up()
    assert answers(nbd)
    # ssh itself stands still
    frozen = tunnel.kill_ssh(signal.SIGSTOP)
    assert any('forward "nbd"' in reason for reason in tunnel.wait_up())
    assert answers(nbd) and not sshd.alive(frozen)
    # the whole server goes, and comes back
    site.signal_sshd(signal.SIGKILL)
    assert site.sshd.wait() == -signal.SIGKILL
    assert not tunnel.next()["up"]
    assert "refused" in tunnel.next()["reason"]
    site.start_sshd()
    tunnel.wait_up()
    assert answers(nbd)
    assert "tried again in 1.0 s" in tunnel.process.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_ssh_stays_behind(site, nbd, number):
    site.start_sshd()
    tunnel = Tunnel(site)
    tunnel.wait_up()
    pid = tunnel.ssh
    if number == signal.SIGKILL:
        os.kill(pid, signal.SIGSTOP)
    tunnel.process.signal(number)
    assert tunnel.process.wait() == (-number if number == signal.SIGKILL else 0)
    gone(pid)
    with socket.socket() as made:
        assert made.connect_ex(("127.0.0.1", nbd)) != 0
    tunnel.process.popen.stdout.close()


def test_another_host_key_is_refused(site, nbd):
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{site.folder}/liar")
    site.start_sshd()
    site.write_known(f"{site.folder}/liar.pub")
    tunnel = Tunnel(site)
    said = tunnel.next()
    assert not said["up"] and "Host key verification failed" in said["reason"]
    bad_input("tunnel: another host key", said["reason"])
    with socket.socket() as made:
        assert made.connect_ex(("127.0.0.1", nbd)) != 0
    # It was not learnt either.
    with open(site.known, encoding="ascii") as file:
        assert file.read().count("\n") == 1
    assert not tunnel.next()["up"]


def test_a_key_that_sshd_does_not_know(site, nbd):
    site.start_sshd()
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{site.folder}/stranger")
    os.replace(f"{site.folder}/stranger", site.key)
    said = Tunnel(site).next()
    assert not said["up"] and "Permission denied" in said["reason"] and nbd


def test_a_taken_port_is_named(site, nbd):
    site.start_sshd()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", nbd))
        taken.listen()
        tunnel = Tunnel(site)
        said = tunnel.next()
        assert not said["up"] and 'forward "nbd"' in said["reason"] and str(nbd) in said["reason"], said
        bad_input("tunnel: the local port is taken", said["reason"])
    tunnel.wait_up()


def test_a_taken_port_at_the_server_ends_ssh(site):
    with health_server() as rest, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        back = taken.getsockname()[1]
        site.write_conf(("reverse node", {"listen": place(back), "to": place(rest), "service": "rest"}))
        site.start_sshd()
        tunnel = Tunnel(site)
        said = tunnel.next()
        assert not said["up"] and re.search(f"ssh ended: .*{back}", said["reason"]), said
        taken.close()
        tunnel.wait_up()


def test_files_that_are_not_right(site, nbd):
    def refused(case, *contains):
        fails("tunnel", "run", "--config", site.conf, case=f"tunnel: {case}", contains=contains, status=None)
    os.chmod(site.key, stat.S_IRUSR | stat.S_IRGRP)
    refused("the key may be read by others", site.key, "chmod 600")
    os.remove(site.key)
    refused("no key", site.key, "No such file")
    with open(site.key, "w", encoding="ascii"):
        os.chmod(site.key, 0o600)
    refused("an empty key", site.key, "empty")
    os.replace(f"{site.folder}/host", site.key)
    os.remove(site.known)
    refused("no known hosts", site.known, f"ssh-keyscan -p {site.port}")
    os.remove(site.conf)
    refused("no settings", site.conf, "No such file")
    assert nbd


FORWARD = "[forward nbd]\nlisten = 127.0.0.1:10809\nto = 127.0.0.1:10809\nservice = nbd\n"
TUNNEL = "[tunnel]\nserver = hub.example:443\nuser = node\nidentity = /etc/k\nknown-hosts = /etc/h\n"
BAD = [
    ("an unknown section", TUNNEL + FORWARD + "[backward x]\n", 10, "no section"),
    ("an unknown setting", TUNNEL + "speed = 9\n" + FORWARD, 6, "no setting"),
    ("an unknown setting of a forward", TUNNEL + FORWARD + "speed = 9\n", 10, "no setting"),
    ("a setting before sections", "user = x\n" + TUNNEL + FORWARD, 1, "before the first section (like [tunnel])"),
    ("a line that is nothing", TUNNEL + "hello\n" + FORWARD, 6, "no setting"),
    ("a section that does not end", TUNNEL + "[forward nbd\n", 6, "no section"),
    ("a section twice", TUNNEL + FORWARD + "[forward nbd]\n", 10, "twice"),
    ("a setting twice", TUNNEL + "user = other\n" + FORWARD, 6, "line 3"),
    ("no user", TUNNEL.replace("user = node\n", "") + FORWARD, None, '"user"'),
    ("no forward", TUNNEL, None, "forward"),
    ("a forward with nothing in it", TUNNEL + FORWARD + "[forward api]\n", 10, '"listen"'),
    ("a forward that leads nowhere", TUNNEL + FORWARD + "[forward a]\nlisten = 127.0.0.1:1\n", 10, '"to"'),
    ("a user that is a pattern", TUNNEL.replace("node", "*,!root") + FORWARD, 3, "no user"),
    ("a user that is an option", TUNNEL.replace("= node", "= -oProxyCommand=x") + FORWARD, 3, "no user"),
    ("a host that is an option", TUNNEL.replace("hub.example", "-oProxyCommand=x") + FORWARD, 2, "HOST"),
    ("a host with a command in it", TUNNEL.replace("hub.example", "a`id`") + FORWARD, 2, "HOST"),
    ("a port that is none", TUNNEL.replace(":443", ":70000") + FORWARD, 2, "HOST"),
    ("a key without its folder", TUNNEL.replace("/etc/k", "key") + FORWARD, 4, "absolute"),
    ("a time that is none", TUNNEL + "look = soon\n" + FORWARD, 6, "90s"),
    ("a forward open to everybody", TUNNEL + FORWARD.replace("127.0.0.1", "0.0.0.0", 1), 7, "loopback"),
    ("a forward to another machine", TUNNEL + FORWARD.replace("to = 127.0.0.1", "to = 192.0.2.1"), 8, "loopback"),
    ("an address with a name", TUNNEL + FORWARD.replace("127.0.0.1", "localhost", 1), 7, "loopback"),
    ("port 0", TUNNEL + FORWARD.replace(":10809", ":0", 1), 7, "no address and port"),
    ("something behind the port", TUNNEL + FORWARD.replace(":10809", ":1;reboot", 1), 7, "behind"),
    ("a range backwards", TUNNEL + FORWARD.replace(":10809", ":10809-10800", 1), 7, "ports"),
    ("too many ports", TUNNEL + FORWARD.replace(":10809", ":1-60000", 1), 7, "ports"),
    ("one port to three", TUNNEL + FORWARD.replace(":10809", ":1001-1003", 1), 6, "as many"),
    ("an unknown service", TUNNEL + FORWARD.replace("= nbd", "= smb"), 9, "none, nbd"),
    ("nothing that is proven", TUNNEL + FORWARD.replace("= nbd", "= none"), None, "service"),
    ("a range with a service", TUNNEL + FORWARD.replace(":10809", ":1001-1003"), 6, "several ports"),
    ("a ca-file for NBD", TUNNEL + FORWARD + "ca-file = /etc/ca\n", 6, "ca-file"),
    ("two on one port", TUNNEL + FORWARD + FORWARD.replace("nbd]", "x]"), 10, "line 6"),
    ("a line without an end", TUNNEL + "identity = /" + "x" * (8 * KIB) + "\n", 6, "longer"),
    ("a name that is too long", TUNNEL + f"[forward {'x' * 33}]\n", 6, "no name"),
    ("a name with a line's start in it", TUNNEL + "[forward a b]\n", 6, "no name"),
]


@pytest.mark.parametrize("case, text, line, contains", BAD, ids=[row[0] for row in BAD])
def test_bad_settings(scratch, case, text, line, contains):
    path = f"{scratch}/t.conf"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    for command in "run", "sshd-config":
        fails("tunnel", command, "--config", path, status=2, contains=[f"{path}:{line}: " if line else f"{path}: ", contains],
              case=f"tunnel: {case}" if command == "run" else None)


def test_settings_that_are_no_text(scratch):
    path = f"{scratch}/t.conf"
    with open(path, "wb") as file:
        file.write(TUNNEL.encode() + b"\0" + FORWARD.encode())
    fails("tunnel", "run", "--config", path, status=2, contains="zero byte")
    fails("tunnel", "run", status=2, contains="--config")

"""The SSH tunnel beside plain TCP and TLS (./run bench tunnel): our server read and written by
nbdcopy and by our own commands, in turn.

A disk of random bytes in memory; client, server, and both ends of the tunnel share the
processors.  The CPU time is that of all of them: client, server, ssh and sshd.
"""

import contextlib
import getpass
import os
import subprocess
import sys

import tls

WAYS = ("plain", "psk", "ssh", "psk in ssh")
SSHD = """Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
PidFile none
UsePAM no
StrictModes no
Match all
	AuthorizedKeysFile {folder}/authorized
"""
CONF = """[tunnel]
server = 127.0.0.1:{port}
user = {user}
identity = {folder}/key
known-hosts = {folder}/known_hosts
"""


def family(pid):
    """This process and all that come from it."""
    found = [pid]
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
            for child in file.read().split():
                found += family(int(child))
    return found


class Tunnel(tls.Tls):
    """The servers of tls.py, ours alone, and the way to them through ssh."""

    size_mib = 512  # a hundred copies, the slowest of them at some 100 MiB/s

    def start_all(self, free_port):
        self.psk = ["--tls-psk-file", f"{self.pki}/keys.psk"]
        ways = {"plain": [], "psk": self.psk}
        for way, options in ways.items():
            self.start(f"read {way}", [self.o.sendense, "export", f"raw:{self.disk}", "--read-only",
                                       "--port", "0", *options])
            self.start(f"write {way}", [self.o.sendense, "export", f"raw:{self.target}.{way}",
                                        "--port", "0", *options])
        folder, port = self.scratch, free_port()
        for name in "host", "key":
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{folder}/{name}"], check=True)
        with open(f"{folder}/host.pub", encoding="ascii") as key, \
                open(f"{folder}/known_hosts", "w", encoding="ascii") as file:
            file.write(f"[127.0.0.1]:{port} {key.read()}")
        conf = CONF.format(port=port, user=getpass.getuser(), folder=folder)
        for name in list(self.servers):
            there, here = self.servers[name][1], free_port()
            conf += (f"[forward {name.replace(' ', '-')}]\nlisten = 127.0.0.1:{here}\nto = 127.0.0.1:{there}\n"
                     f"service = {'nbds' if 'psk' in name else 'nbd'}\n")
            way = {"plain": "ssh", "psk": "psk in ssh"}[name.split(" ")[1]]
            self.servers[f"{name.split(' ')[0]} {way}"] = (self.servers[name][0], here)
        with open(f"{folder}/conf", "w", encoding="ascii") as file:
            file.write(conf)
        with open(f"{folder}/sshd_config", "w", encoding="ascii") as file:
            file.write(SSHD.format(port=port, folder=folder))
        print_part = [self.o.sendense, "tunnel", "sshd-config", "--config", f"{folder}/conf", "--part"]
        for part, path, mode in ("key", "authorized", "w"), ("match", "sshd_config", "a"):
            with open(f"{folder}/{path}", mode, encoding="ascii") as file:
                file.write(subprocess.run([*print_part, part], check=True, capture_output=True, text=True).stdout)
        if os.getuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        self.helpers = [subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", f"{folder}/sshd_config"],
                                         stderr=subprocess.DEVNULL)]
        tunnel = subprocess.Popen([self.o.sendense, "tunnel", "run", "--config", f"{folder}/conf"],
                                  stdout=subprocess.PIPE)
        self.helpers.append(tunnel)
        if b"is up" not in tunnel.stdout.readline():
            sys.exit("bench: the tunnel did not come up")

    def uri(self, port, way):
        return super().uri(port, "psk" if "psk" in way else "plain")

    def copy(self, port, way):
        return super().copy(port, "psk" if "psk" in way else "plain")

    def rows(self):
        for connections in 1, 4:
            yield (f"ours to nbdcopy, connections: {connections}", "read",
                   lambda port, way, n=connections: self.nbdcopy(port, way, n, False))
        yield ("nbdcopy into ours, connections: 4", "write",
               lambda port, way: self.nbdcopy(port, way, 4, True))
        yield "ours to sendense copy", "read", self.copy
        yield "ours to sendense backup", "read", self.backup

    def measure(self, server, way, command):
        """MiB/s, CPU seconds of the client, of the server, of ssh and sshd for a GiB."""
        ssh = [pid for helper in self.helpers for pid in family(helper.pid)]
        before = sum(tls.usage_of(pid) for pid in ssh)
        speed, client, served = super().measure(server, way, command)
        gib = self.size_mib / 1024
        return speed, client, served, (sum(tls.usage_of(pid) for pid in ssh) - before) / gib

    def end(self):
        for helper in reversed(self.helpers):
            helper.terminate()
            helper.wait()
        shared = {process.pid: name for name, (process, _) in self.servers.items()}
        self.servers = {name: self.servers[name] for name in shared.values()}
        super().end()


def run(options, scratch, free_port):
    tunnel = Tunnel(options, scratch)
    tunnel.helpers = []
    try:
        tunnel.start_all(free_port)
        tls.table(tunnel, options, WAYS,
                  "MiB/s; CPU s for a GiB of client + server + both ends of the tunnel")
    finally:
        tunnel.end()

"""A node and a hub's sshd on one machine: a real sshd with settings, keys and a port of its
own, and "sendense tunnel run" against it.

Both ends share 127.0.0.1, so what the node listens on has other ports than what the hub does.
"""

import contextlib
import getpass
import http.server
import json
import os
import signal
import socket
import threading

import support
from support import SENDENSE, need, run, wait_for

BASE = """Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
LogLevel VERBOSE
Subsystem sftp internal-sftp
"""


def free_port():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def children(pid):
    """Those of this process, and theirs."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="ascii",
                                                    errors="replace") as file:
                fields = file.read().rsplit(")", 1)[1].split()
                if fields[0] != "Z":
                    parents.setdefault(int(fields[1]), []).append(int(name))
    found = parents.get(pid, [])
    for child in list(found):
        found = found + children(child)
    return found


def alive(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    return False


class Health(http.server.BaseHTTPRequestHandler):
    """As much of the REST API as a look at it asks for."""

    def do_GET(self):  # pylint: disable=invalid-name
        body = json.dumps({"status": "ok", "version": "0", "build": "0", "protocol": 1}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def health_server(port=0):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Health)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Site:
    """.sshd the server's process, .conf the tunnel's settings."""

    def __init__(self, servers):
        need("ssh", "ssh-keygen")
        if not os.access("/usr/sbin/sshd", os.X_OK):
            support.pytest.skip("sshd is not installed (openssh-server)")
        self.servers, self.folder = servers, servers.folder
        self.user = getpass.getuser()
        self.conf = f"{self.folder}/tunnel.conf"
        self.key, self.known = f"{self.folder}/key", f"{self.folder}/known_hosts"
        self.port = free_port()
        self.sshd = None
        for name in "host", "key":
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", f"{self.folder}/{name}")
        self.write_known(f"{self.folder}/host.pub")

    def write_known(self, public):
        with open(public, encoding="ascii") as file, open(self.known, "w", encoding="ascii") as out:
            out.write(f"[127.0.0.1]:{self.port} {file.read()}")

    def write_conf(self, *sections, **tunnel):
        """sections: ("forward nbd", {"listen": …, "to": …})."""
        values = {"server": f"127.0.0.1:{self.port}", "user": self.user, "identity": self.key,
                  "known-hosts": self.known, "look": "1s", "pause-most": "1s", **tunnel}
        with open(self.conf, "w", encoding="utf-8") as file:
            for name, settings in ("tunnel", values), *sections:
                file.write(f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))

    def part(self, part):
        return support.sendense("tunnel", "sshd-config", "--config", self.conf, "--part", part).out

    def start_sshd(self, match=True, key_options=True):
        """With what was generated; without one of its two layers when told so."""
        os.makedirs("/run/sshd", exist_ok=True) if os.getuid() == 0 else None
        line = self.part("key")
        if not key_options:
            line = line[line.index(" ssh-ed25519 ") + 1:]
        with open(f"{self.folder}/authorized", "w", encoding="ascii") as file:
            file.write(line)
        with open(f"{self.folder}/sshd_config", "w", encoding="ascii") as file:
            # What is said first counts: the keys of this machine's user stay out of it.
            file.write(BASE.format(port=self.port, folder=self.folder))
            file.write(f"Match all\n\tAuthorizedKeysFile {self.folder}/authorized\n")
            file.write(self.part("match") if match else "")
        run("/usr/sbin/sshd", "-t", "-f", f"{self.folder}/sshd_config")
        self.sshd = self.servers.start("/usr/sbin/sshd", "-D", "-e", "-f", f"{self.folder}/sshd_config",
                                       name="sshd")
        self.sshd.wait_err("Server listening")
        return self

    def signal_sshd(self, number, listener=True):
        """To those that serve, and the one that listens."""
        for pid in children(self.sshd.pid) + ([self.sshd.pid] if listener else []):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def ssh(self, *words, status=None, identity=None):
        """The node's key in other hands."""
        return run("ssh", "-F", "none", "-p", self.port, "-i", identity or self.key, "-o", "BatchMode=yes",
                   "-o", "IdentitiesOnly=yes", "-o", f"UserKnownHostsFile={self.known}",
                   "-o", "StrictHostKeyChecking=yes", *words, status=status, stdin=b"")


class Tunnel:
    """sendense tunnel run; reads what it says."""

    def __init__(self, site):
        self.process = site.servers.start(SENDENSE, "tunnel", "run", "--config", site.conf, "--json",
                                          "--verbose", name="tunnel", pipe=True)

    def next(self):
        """The next change."""
        line = support.read_line(self.process.popen.stdout, f"the tunnel: {self.process.err}")
        assert line, f"the tunnel ended with {self.process.wait()}: {self.process.err}"
        return json.loads(line)

    def wait_up(self):
        """Until it is up: the reasons why it was not before."""
        reasons = []
        while not (said := self.next())["up"]:
            reasons.append(said["reason"])
        return reasons

    @property
    def ssh(self):
        """The pid of its ssh, or None."""
        found = [pid for pid in children(self.process.pid)]
        return found[0] if found else None

    def kill_ssh(self, number=signal.SIGKILL):
        pid = self.ssh
        os.kill(pid, number)
        return pid


def gone(pid):
    wait_for(lambda: not alive(pid), f"process {pid} to end")

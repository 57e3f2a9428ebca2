"""TLS beside plain TCP (./run bench tls): our server and the peers', each plain, with
certificates and with pre-shared keys, in turn.

The disk lies in memory and holds random bytes, so reading and writing it costs next to
nothing: what is seen is the transport.  Server and client share the processors.
"""

import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time

MIB = 1 << 20
STUCK_S = 180  # whoever takes so long for the disk does not come to an end
WAYS = ("plain", "x509", "psk")


def usage_of(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Tls:
    size_mib = 1024

    def __init__(self, options, scratch):
        self.o = options
        self.scratch = scratch
        self.disk, self.target = f"{scratch}/disk", f"{scratch}/target"
        self.pki = f"{scratch}/pki"
        self.servers = {}
        os.makedirs(self.pki)
        subprocess.run([options.make_pki, self.pki], check=True, stdout=subprocess.DEVNULL)
        with open(self.disk, "wb") as file:
            for _ in range(self.size_mib):
                file.write(os.urandom(MIB))
        # The lock of an export allows one writer, so each way has a file of its own.
        for way in WAYS:
            subprocess.run(["cp", self.disk, f"{self.target}.{way}"], check=True)

    def start(self, name, argv, port=None):
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if port is None:
            if not select.select([process.stdout], [], [], 20)[0]:
                sys.exit(f"bench: {argv[0]} did not say that it is ready")
            port = int(process.stdout.readline().decode().rstrip("/\n").rsplit(":", 1)[1])
        self.servers[name] = (process, port)

    def start_all(self, free_port):
        p = self.pki
        ours = {"plain": [], "psk": ["--tls-psk-file", f"{p}/keys.psk"],
                "x509": ["--tls-certificate", f"{p}/server-cert.pem", "--tls-key", f"{p}/server-key.pem"]}
        kit = {"plain": [], "psk": ["--tls=require", f"--tls-psk={p}/keys.psk"],
               "x509": ["--tls=require", f"--tls-certificates={p}"]}
        qemu = {way: ["--object", f"tls-creds-{way},id=t,endpoint=server,dir={p},"
                      + ("verify-peer=no" if way == "x509" else ""), "--tls-creds", "t"]
                for way in ("x509", "psk")}
        for way in WAYS:
            self.start(f"ours {way}", [self.o.sendense, "export", f"raw:{self.disk}", "--read-only",
                                       "--port", "0", *ours[way]])
            port = free_port()
            self.start(f"nbdkit {way}", ["nbdkit", "-f", "-r", "-i", "127.0.0.1", "-p", str(port),
                                         *kit[way], "file", self.disk], port)
            port = free_port()
            self.start(f"qemu-nbd {way}", ["qemu-nbd", "-f", "raw", "-r", "-t", "--shared=8", "-b",
                                           "127.0.0.1", "-p", str(port), *qemu.get(way, []),
                                           self.disk], port)
            self.start(f"write {way}", [self.o.sendense, "export", f"raw:{self.target}.{way}",
                                        "--port", "0", *ours[way]])

    def uri(self, port, way):
        if way == "plain":
            return f"nbd://127.0.0.1:{port}/"
        if way == "x509":
            return f"nbds://127.0.0.1:{port}/?tls-certificates={self.pki}"
        return f"nbds://alice@127.0.0.1:{port}/?tls-psk-file={self.pki}/keys.psk"

    def nbdcopy(self, port, way, connections, write):
        uri = self.uri(port, way)
        ends = [self.disk, uri] if write else [uri, "null:"]
        return ["nbdcopy", f"--connections={connections}", *ends]

    def copy(self, port, way):
        scheme = "nbd" if way == "plain" else "nbds"
        keys = {"plain": [], "x509": ["--tls-certificates", self.pki],
                "psk": ["--tls-psk-file", f"{self.pki}/keys.psk"]}
        return [self.o.sendense, "copy", "--quiet", f"{scheme}://127.0.0.1:{port}/",
                f"null:{self.size_mib * MIB}", *keys[way]]

    def backup(self, port, way):
        repo = f"{self.scratch}/repo"
        shutil.rmtree(repo, ignore_errors=True)
        subprocess.run([self.o.sendense, "repo", "init", repo], check=True,
                       stdout=subprocess.DEVNULL)
        command = self.copy(port, way)
        return [command[0], "backup", "--quiet", "--repo", repo, "--vm", "vm", command[3],
                *command[5:]]

    def rows(self):
        for connections in 1, 4:
            for server in "ours", "nbdkit", "qemu-nbd":
                yield (f"{server} to nbdcopy, connections: {connections}", server,
                       lambda port, way, n=connections: self.nbdcopy(port, way, n, False))
        yield ("nbdcopy into ours, connections: 4", "write",
               lambda port, way: self.nbdcopy(port, way, 4, True))
        for server in "ours", "nbdkit":
            yield f"{server} to sendense copy", server, self.copy
        yield "ours to sendense backup", "ours", self.backup

    def measure(self, server, way, command):
        """MiB/s, CPU seconds of the client and of the server for a GiB."""
        process, port = self.servers[f"{server} {way}"]
        argv = command(port, way)
        before, start = usage_of(process.pid), time.monotonic()
        with open(f"{self.scratch}/log", "wb") as log:
            client = subprocess.Popen(argv, stdout=log, stderr=log)
            guard = threading.Timer(STUCK_S, os.kill, (client.pid, signal.SIGKILL))
            guard.start()
            os.waitid(os.P_PID, client.pid, os.WEXITED | os.WNOWAIT)
            guard.cancel()
            guard.join()
            _, status, usage = os.wait4(client.pid, 0)
        wall = time.monotonic() - start
        client.returncode = status
        if status != 0:
            with open(f"{self.scratch}/log", errors="replace") as log:
                sys.exit(f"bench: {' '.join(client.args)} failed after {wall:.0f} s:\n{log.read()}")
        gib = self.size_mib / 1024
        return (self.size_mib / wall, (usage.ru_utime + usage.ru_stime) / gib,
                (usage_of(process.pid) - before) / gib)

    def end(self):
        for process, _ in self.servers.values():
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:  # qemu-nbd with certificates may not end by it
                process.kill()
                process.wait()
            process.stdout.close()


def table(bench, options, ways, cell):
    """Runs all rows, each way in turn, and prints their medians; the first way is the measure."""
    print(f"{bench.size_mib} MiB of random bytes in memory; medians of {options.rounds} rounds. In each "
          f"cell: {cell}.\n")
    print(f"| path | {' | '.join(ways)} | lost with {', '.join(ways[1:])} |")
    print(f"|{'---|' * (len(ways) + 2)}", flush=True)
    for name, server, command in bench.rows():
        if options.rows[1:] and not any(word in name for word in options.rows[1:]):
            continue
        got = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way in ways:
                got[way].append(bench.measure(server, way, command))
        middle = {way: [statistics.median(column) for column in zip(*got[way])] for way in ways}
        cells = [f"{middle[way][0]:.0f}; {' + '.join(f'{cpu:.2f}' for cpu in middle[way][1:])}"
                 for way in ways]
        lost = [f"{100 * (1 - middle[way][0] / middle[ways[0]][0]):.0f} %" for way in ways[1:]]
        print(f"| {name} | {' | '.join(cells)} | {', '.join(lost)} |", flush=True)


def run(options, scratch, free_port):
    tls = Tls(options, scratch)
    try:
        tls.start_all(free_port)
        table(tls, options, WAYS, "MiB/s; CPU s for a GiB of client + server")
    finally:
        tls.end()

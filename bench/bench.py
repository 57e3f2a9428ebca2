#!/usr/bin/python3
"""Measures Sendense beside its peers: the same disk, in turn (A B A B ...), results checked.

Each row runs our command and the peer's alternately.  Figures are whole-process
ones: wall time of the command, CPU seconds (user and system) of all processes
involved, servers included, peak resident memory of our process, bytes stored.
Ratios are peer / ours, pair by pair, as median and quartiles: above 1 we are ahead.
"""

import argparse
import os
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import catalogue
import chain
import tls
import tunnel

HERE = os.path.dirname(os.path.abspath(__file__))
GIB = 1 << 30


class Run:
    """One timed run: the command, and the servers that it needs."""

    def __init__(self, scratch):
        self.scratch = scratch
        self.servers = []
        self.cpu = self.peak = 0

    def server(self, argv, ready):
        """Starts a server; ready: a path that appears, or None to read one line of its output."""
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.servers.append(process)
        deadline = time.monotonic() + 20
        if ready is None:
            if not select.select([process.stdout], [], [], 20)[0]:
                sys.exit(f"bench: {argv[0]} did not say that it is ready")
            return process.stdout.readline().decode().strip()
        while not os.path.exists(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"bench: {' '.join(argv)} did not start")
            time.sleep(0.005)
        return None

    def command(self, argv):
        start = time.monotonic()
        with open(os.path.join(self.scratch, "log"), "wb") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
        self.wall = time.monotonic() - start
        self.cpu += usage.ru_utime + usage.ru_stime
        self.peak = usage.ru_maxrss * 1024
        if status != 0:
            with open(os.path.join(self.scratch, "log"), errors="replace") as log:
                sys.exit(f"bench: {' '.join(argv)} failed:\n{log.read()}")

    def end(self):
        for process in self.servers:
            process.send_signal(signal.SIGTERM)
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 0
            self.cpu += usage.ru_utime + usage.ru_stime
            self.server_peak = usage.ru_maxrss * 1024
        self.servers = []


class Bench:
    def __init__(self, options, scratch):
        self.o = options
        self.scratch = scratch
        self.disk = os.path.join(scratch, "disk.raw")
        self.out = os.path.join(scratch, "out")
        self.nr_servers = 0
        subprocess.run([os.path.join(HERE, "..", "scripts", "make-disk"), self.disk, "--size", options.size,
                        "--data", options.data, "--zeros", "512M"], check=True)
        self.data = os.stat(self.disk).st_blocks * 512
        for name, fmt in (("none", []), ("zstd", ["-c", "-o", "compression_type=zstd"])):
            if self.wanted(f"restore {name}"):
                self.repo(name, os.path.join(scratch, f"repo-{name}"))
                self.quiet([self.o.sendense, "backup", "--repo", os.path.join(scratch, f"repo-{name}"),
                            "--vm", "vm", f"raw:{self.disk}"])
                self.quiet(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *fmt, "-W", "-m", "16",
                            self.disk, os.path.join(scratch, f"peer-{name}.qcow2")])

    def wanted(self, row):
        return not self.o.rows or any(word in row for word in self.o.rows)

    def quiet(self, argv):
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0:
            sys.exit(f"bench: {' '.join(argv)} failed:\n{done.stdout.decode(errors='replace')}")

    def repo(self, compression, path):
        level = ["--compression-level", self.o.level] if self.o.level and compression == "zstd" else []
        self.quiet([self.o.sendense, "repo", "init", path, "--compression", compression, *level])
        return path

    def clear(self):
        shutil.rmtree(self.out, ignore_errors=True)
        if os.path.exists(self.out):
            os.unlink(self.out)

    def nbdkit(self, run):
        self.nr_servers += 1
        pid = os.path.join(self.scratch, f"nbdkit-{self.nr_servers}.pid")
        port = self.free_port()
        run.server(["nbdkit", "-f", "-r", "-i", "127.0.0.1", "-p", str(port), "-P", pid, "file", self.disk], pid)
        return f"nbd://127.0.0.1:{port}/"

    @staticmethod
    def free_port():
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return s.getsockname()[1]

    # --- our side and the peer's: each prepares, runs, and returns (path, format) of the result

    def ours_backup(self, run, compression, source):
        repo = self.repo(compression, self.out)
        run.command([self.o.sendense, "backup", "--repo", repo, "--vm", "vm", source])
        run.end()
        folder = os.path.join(repo, "vms", "vm", "disks", "disk0")
        image = [n for n in os.listdir(folder) if n.endswith(".qcow2")][0]
        return os.path.join(folder, image), "qcow2"

    def peer_convert(self, run, compression, source):
        extra = ["-c", "-o", "compression_type=zstd"] if compression == "zstd" else []
        run.command(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *extra, "-W", "-m", "16",
                     source, self.out])
        run.end()
        return self.out, "qcow2"

    def ours_export(self, run):
        path = os.path.join(self.scratch, "export.sock")
        self.quiet(["qemu-img", "create", "-f", "qcow2", self.out, str(os.stat(self.disk).st_size)])
        run.server([self.o.sendense, "export", f"qcow2:{self.out}", "--socket", path], None)
        run.command(["nbdcopy", self.disk, f"nbd+unix:///?socket={path}", "--destination-is-zero", "--flush"])
        run.end()
        run.peak = run.server_peak
        return self.out, "qcow2"

    def peer_export(self, run):
        path = os.path.join(self.scratch, "peer.sock")
        pid = os.path.join(self.scratch, "peer.pid")
        if os.path.exists(pid):
            os.unlink(pid)
        self.quiet(["qemu-img", "create", "-f", "qcow2", self.out, str(os.stat(self.disk).st_size)])
        run.server(["qemu-nbd", "-f", "qcow2", "--aio=io_uring", "--discard=unmap", "--shared=8", "--persistent",
                    "-k", path, "--pid-file", pid, self.out], pid)
        run.command(["nbdcopy", self.disk, f"nbd+unix:///?socket={path}", "--destination-is-zero", "--flush"])
        run.end()
        return self.out, "qcow2"

    def ours_restore(self, run, compression):
        run.command([self.o.sendense, "restore", "--repo", os.path.join(self.scratch, f"repo-{compression}"),
                     "vm", "--to", f"raw:{self.out}"])
        run.end()
        return self.out, "raw"

    def peer_restore(self, run, compression):
        run.command(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-W", "-m", "16",
                     os.path.join(self.scratch, f"peer-{compression}.qcow2"), self.out])
        run.end()
        return self.out, "raw"

    def floor_file(self, run):
        run.command([self.o.floor, "file", self.disk, self.out])
        run.end()
        return self.out, "raw"

    def floor_nbd(self, run):
        run.command([self.o.floor, "nbd", self.nbdkit(run), self.disk, self.out])
        run.end()
        return self.out, "raw"

    def measure(self, side):
        self.clear()
        run = Run(self.scratch)
        path, fmt = side(run)
        run.stored = os.stat(path).st_blocks * 512
        if not self.o.unchecked:
            if fmt == "qcow2":
                self.quiet(["qemu-img", "check", "-q", "-f", "qcow2", path])
            self.quiet(["qemu-img", "compare", "-q", "-f", "raw", "-F", fmt, self.disk, path])
        self.clear()
        return run

    def rows(self):
        raw = f"raw:{self.disk}"
        for name in ("none", "zstd"):
            yield (f"raw file to QCOW2, {name}",
                   lambda r, n=name: self.ours_backup(r, n, raw),
                   lambda r, n=name: self.peer_convert(r, n, self.disk))
            yield (f"NBD over TCP to QCOW2, {name}",
                   lambda r, n=name: self.ours_backup(r, n, self.nbdkit(r)),
                   lambda r, n=name: self.peer_convert(r, n, self.nbdkit(r)))
            yield (f"restore {name}",
                   lambda r, n=name: self.ours_restore(r, n),
                   lambda r, n=name: self.peer_restore(r, n))
        yield "nbdcopy into an export", self.ours_export, self.peer_export
        yield "floor: raw file to raw file", self.floor_file, None
        yield "floor: NBD over TCP to raw file", self.floor_nbd, None


def spread(values, digits=2):
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sendense", required=True)
    parser.add_argument("--floor", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="10G", help="virtual size of the disk")
    parser.add_argument("--data", default="3G", help="real files on it")
    parser.add_argument("--level", help="zstd level of our side (QEMU's has no such choice)")
    parser.add_argument("--scratch", default="/dev/shm", help="folder in memory")
    parser.add_argument("--unchecked", action="store_true", help="do not compare results (for profiling)")
    parser.add_argument("--chain", help="the program that makes and reads long chains")
    parser.add_argument("--depth", type=int, default=500, help="chain: how many images")
    parser.add_argument("--chain-mib", type=int, default=2048, help="chain: virtual size")
    parser.add_argument("--make-pki", help="the program that makes certificates and keys")
    parser.add_argument("--catalogue", help="the program that measures the hub's catalogue")
    parser.add_argument("rows", nargs="*", help="only rows whose name holds one of these words; "
                                                "chain: long chains, and nothing else; tls [WORD...]: TLS beside plain TCP; tunnel [WORD...]: an SSH tunnel beside both; catalogue: the hub's catalogue, and nothing else")
    options = parser.parse_args()
    if options.rows == ["catalogue"]:
        catalogue.run(options)
        return
    with tempfile.TemporaryDirectory(prefix="sendense-bench-", dir=options.scratch) as scratch:
        if options.rows[:1] == ["tls"]:
            tls.run(options, scratch, Bench.free_port)
            return
        if options.rows[:1] == ["tunnel"]:
            tunnel.run(options, scratch, Bench.free_port)
            return
        if options.rows == ["chain"]:
            chain.run(options, scratch)
            return
        bench = Bench(options, scratch)
        gib = bench.data / GIB
        print(f"Disk: {options.size} virtual, {gib:.2f} GiB allocated; {options.rounds} rounds; "
              f"medians, quartiles in brackets; ratio: peer / ours.\n")
        print("| path | ours: wall s, CPU s/GiB | peer: wall s, CPU s/GiB | ratio wall | ratio CPU "
              "| peak MiB | stored ours / peer |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for name, ours, peer in bench.rows():
            if not bench.wanted(name):
                continue
            pairs = []
            bench.measure(ours)
            for _ in range(options.rounds):
                pairs.append((bench.measure(ours), bench.measure(peer) if peer else None))
            a = [p[0] for p in pairs]
            cells = [name, f"{statistics.median(r.wall for r in a):.2f}, "
                           f"{statistics.median(r.cpu for r in a) / gib:.2f}"]
            if peer:
                b = [p[1] for p in pairs]
                cells += [f"{statistics.median(r.wall for r in b):.2f}, "
                          f"{statistics.median(r.cpu for r in b) / gib:.2f}",
                          spread([y.wall / x.wall for x, y in pairs]),
                          spread([y.cpu / x.cpu for x, y in pairs])]
            else:
                cells += ["", "", ""]
            cells.append(f"{max(r.peak for r in a) / (1 << 20):.0f}")
            cells.append(f"{a[0].stored / b[0].stored:.3f}" if peer else "")
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

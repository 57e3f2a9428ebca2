"""Reading through a long chain of images beside reading one image with the same content."""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time

PEER_RUNS = 1  # at full depth QEMU takes minutes


class Chain:
    def __init__(self, options, scratch):
        self.o = options
        self.scratch = scratch
        self.size = options.chain_mib << 20
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.call(options.chain, "make", scratch, str(options.depth), str(options.chain_mib))
        self.deep = f"{scratch}/{options.depth - 1}.qcow2"
        self.flat = f"{scratch}/flat.qcow2"
        self.call(options.sendense, "copy", f"qcow2:{self.deep}", f"qcow2:{self.flat}")
        if not options.unchecked:
            self.call("qemu-img", "check", "-q", "-f", "qcow2", self.flat)
            self.call("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", self.deep, self.flat)
        # Goes round through all 4 KiB blocks of the disk without an order.
        self.step = (int(self.size * 0.618) >> 12 | 1) << 12

    def call(self, *argv):
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0:
            sys.exit(f"bench: {' '.join(argv)} failed:\n{done.stdout.decode(errors='replace')}")

    def measure(self, argv):
        """Wall seconds, CPU seconds, peak MiB."""
        start = time.monotonic()
        with open(f"{self.scratch}/log", "wb") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - start
        if status != 0:
            with open(f"{self.scratch}/log", errors="replace") as log:
                sys.exit(f"bench: {' '.join(argv)} failed:\n{log.read()}")
        return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024

    def rows(self):
        def ours_copy(image):
            return [self.o.sendense, "copy", f"qcow2:{image}", f"null:{self.size}"]

        def peer_copy(image):
            return ["qemu-img", "convert", "-n", "--image-opts", "--target-image-opts",
                    f"driver=qcow2,file.filename={image}",
                    f"driver=null-co,size={self.size},read-zeroes=off"]

        def ours_reads(count):
            return lambda image: [self.o.chain, "read", image, str(count), str(self.step)]

        def peer_reads(count):
            return lambda image: ["qemu-img", "bench", "-f", "qcow2", "-d", "1", "-s", "4096",
                                  "-c", str(count), "-S", str(self.step), image]

        yield "all of it", ours_copy, peer_copy
        yield "1,000 reads of 4 KiB", ours_reads(1000), peer_reads(1000)
        yield "100,000 reads of 4 KiB", ours_reads(100000), None

    def cells(self, argv, rounds):
        runs = [self.measure(argv) for _ in range(rounds)]
        wall, cpu, peak = (statistics.median(values) for values in zip(*runs))
        return f"{wall:.2f}, {cpu:.2f}, {peak:.0f}"

    def table(self):
        stored = sum(os.stat(f"{self.scratch}/{i}.qcow2").st_blocks * 512 for i in range(self.o.depth))
        print(f"Chain of {self.o.depth} images, {self.o.chain_mib} MiB virtual, {stored >> 20} MiB stored, "
              f"beside one image with the same content; medians of {self.o.rounds} rounds of ours and of "
              f"{PEER_RUNS} of the peer at full depth. In each cell: wall s, CPU s, peak MiB.\n")
        print(f"| what is read | ours, 1 | ours, {self.o.depth} | peer, 1 | peer, {self.o.depth} |")
        print("|---|---|---|---|---|", flush=True)
        for name, ours, peer in self.rows():
            cells = [name, self.cells(ours(self.flat), self.o.rounds),
                     self.cells(ours(self.deep), self.o.rounds)]
            cells += [self.cells(peer(self.flat), self.o.rounds),
                      self.cells(peer(self.deep), PEER_RUNS)] if peer else ["", ""]
            print("| " + " | ".join(cells) + " |", flush=True)


def run(options, scratch):
    if shutil.disk_usage(scratch).free < 2 << 30:
        sys.exit(f"bench: {scratch} has no room for 2 GiB")
    Chain(options, scratch).table()

"""VMware's library as tests have it: the fake libvixDiskLib, laid out as VDDK is, and told what
to do.

    lib = vddk.FakeVddk(scratch)                # or FakeVddk(scratch, major=6, frozen=vc.frozen)
    lib.freeze("vm-57", "snapshot-60", 2000, "[ds] a/a.vmdk", "/some/file.raw")
    lib.tell(slow=5, crash=3)                   # tests/fake/vixdisklib/vixdisklib.c lists all
    run(…, env=lib.env())                       # SENDENSE_VDDK_DIR names it
    lib.calls("read")                           # ["read 0 2048", …] of all processes so far
"""

import os

import pytest

import support

BUILD = os.environ.get("SENDENSE_BUILD") or \
    os.path.dirname(os.path.dirname(os.path.dirname(support.SENDENSE)))
HELPER = os.path.join(os.path.dirname(support.SENDENSE), "sendense-vddk")
TOOL = os.path.join(BUILD, "tests", "tools", "vddk_disk")


class FakeVddk:
    """major: 6..9, or "broken" (an entry point is missing).  frozen: a test vCenter's."""

    def __init__(self, folder, major=8, frozen=None):
        source = os.path.join(BUILD, "tests", "fake", f"libvixDiskLib_{major}.so")
        if not os.path.exists(source):
            pytest.skip(f"{source} is not built")
        self.folder = os.path.join(str(folder), f"vddk{major}")
        self.frozen = frozen or os.path.join(self.folder, "frozen")
        self.log = os.path.join(self.folder, "calls")
        self.config = os.path.join(self.folder, "config")
        os.makedirs(os.path.join(self.folder, "lib64"))
        os.makedirs(self.frozen, exist_ok=True)
        number = 9 if major == "broken" else major
        os.symlink(source, os.path.join(self.folder, "lib64", f"libvixDiskLib.so.{number}"))
        self.tell()

    def tell(self, **values):
        """What goes wrong from the next process on; all that was told before is forgotten."""
        values = {"frozen": self.frozen, "log": self.log, **values}
        with open(self.config, "w", encoding="utf-8") as file:
            file.write("".join(f"{name}={value}\n" for name, value in values.items()))

    def env(self, **more):
        return dict(os.environ, SENDENSE_VDDK_DIR=self.folder, SENDENSE_FAKE_VDDK=self.config,
                    **more)

    def calls(self, first=""):
        """The lines that begin so."""
        if not os.path.exists(self.log):
            return []
        with open(self.log, encoding="utf-8") as file:
            return [line.rstrip("\n") for line in file if line.startswith(first)]

    def areas_read(self):
        """[(offset, length)] in bytes, sorted."""
        reads = [line.split()[1:] for line in self.calls("read ")]
        return sorted((int(sector) * 512, int(count) * 512) for sector, count in reads)

    def helpers(self):
        """Helper processes that live, by the environment that they have of this one."""
        wanted = f"SENDENSE_FAKE_VDDK={self.config}".encode()
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                if os.readlink(f"/proc/{name}/exe") != os.path.realpath(HELPER):
                    continue
                with open(f"/proc/{name}/environ", "rb") as file:
                    if wanted in file.read().split(b"\0"):
                        found.append(int(name))
            except OSError:
                continue
        return found

    def forget(self):
        if os.path.exists(self.log):
            os.unlink(self.log)

    def freeze(self, machine, snapshot, key, path, raw):
        """As the test vCenter does."""
        folder = os.path.join(self.frozen, snapshot)
        os.makedirs(folder, exist_ok=True)
        support.run("cp", "--sparse=always", raw, os.path.join(folder, f"{key}.raw"))
        with open(os.path.join(folder, "index"), "a", encoding="utf-8") as file:
            file.write(f"{machine} {key} {path}\n")

"""A whole node in a test's folder, beside a test vCenter: configured, started, called, killed.

    with node.node_in(servers, vcenters={"vc": vcenter_fake}) as n:
        n.start()
        job = n.backup("/DC0/vm/web01", vm="web01")

It is called as a hub is (hub.py).  Everything that it starts is a child of it, or named in its
runtime folder, and is gone at the end of the test, also of one that fails.
"""

import contextlib
import json
import os
import random

import hub
import support
import vddk
from support import KIB, MIB, SENDENSE, run, sendense, wait_for

SIZES = {2000: 24 * MIB, 16000: 8 * MIB}
PATH = "/DC0/vm/web01"


class Node(hub.Hub):
    """vcenters: {name: FakeVcenter}; far: {name: (hub, its repository)}; see the module."""

    def __init__(self, servers, vcenters=None, repositories=("main",), far=None, allow=None, tls=True,
                 settings="", vddk=None, discover_every="1h"):
        super().__init__(servers, repositories=repositories, allow=allow, tls=tls, settings=settings)
        self.folder = os.path.join(servers.folder, "node")
        os.makedirs(self.folder, exist_ok=True)
        self.state, self.runtime = os.path.join(self.folder, "state"), os.path.join(self.folder, "run")
        self.conf = os.path.join(self.folder, "node.conf")
        self.token_file = os.path.join(self.state, "admin.token")
        self.ca_file = os.path.join(self.state, "tls", "ca.crt")
        self.repositories = {name: os.path.join(self.folder, f"repo-{name}") for name in repositories}
        self.vcenters, self.far = vcenters or {}, far or {}
        self.vddk, self.discover_every = vddk, discover_every
        self.at_stop, self.stop_timeout = "hand-over", "10s"

    # --- life ---------------------------------------------------------------------

    def init(self):
        run(SENDENSE, "node", "init", "--config", self.conf, "--state-dir", self.state,
            "--runtime-dir", self.runtime, "--quiet")
        for path in self.repositories.values():
            if not os.path.exists(path):
                support.sendense("repo", "init", path, "--quiet")
        self.write_config()

    def write_config(self, extra=""):
        lines = ["[node]", f"state-dir = {self.state}", f"runtime-dir = {self.runtime}",
                 "listen = 127.0.0.1:0", "name = node.test", "log = text", f"stop = {self.at_stop}",
                 f"stop-timeout = {self.stop_timeout}"]
        if self.tls:
            folder = os.path.join(self.state, "tls")
            lines += ["[tls]", f"certificate = {folder}/server.crt", f"key = {folder}/server.key"]
        for name, vcenter in self.vcenters.items():
            lines += [f"[vcenter {name}]", f"url = {vcenter.url()}", f"ca-file = {vcenter.ca}",
                      f"password-file = {vcenter.password_file}",
                      f"discover-every = {self.discover_every}"]
        for name, path in self.repositories.items():
            lines += [f"[repository {name}]", f"path = {path}"]
        for name, (far, repository) in self.far.items():
            lines += [f"[repository {name}]", f"url = {far.url}/{repository}",
                      f"token-file = {far.token_file}", f"ca-file = {far.ca_file}"]
        if self.vddk:
            lines += ["[vddk]", f"dir = {self.vddk}"]
        allow = self.allow if self.allow is not None else [f"target = raw:{self.folder}/"]
        lines += ["[allow]", *allow, self.settings, extra]
        with open(self.conf, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def start(self, **kwargs):
        """Runs it, ready by its own word."""
        if not os.path.exists(self.conf):
            self.init()
        self.process = self.servers.start(SENDENSE, "node", "run", "--config", self.conf, "--json",
                                          name="node", pipe=True, **kwargs)
        line = support.read_line(self.process.popen.stdout, "the node")
        assert line, f"the node ended with {self.process.wait()}: {self.process.err}"
        self.url = json.loads(line)["url"]
        return self

    def points_of(self, vm, repository="main"):
        """In one that is a folder."""
        return sendense("ls", "--repo", self.repositories[repository], vm, "--json").json["points"]

    # --- jobs ---------------------------------------------------------------------------

    def start_backup(self, machine, repository="main", vcenter="vc", **members):  # pylint: disable=arguments-renamed
        return self.post("backups", {"repository": repository, "vcenter": vcenter, "machine": machine,
                                     **members})

    def backup(self, machine, **members):  # pylint: disable=arguments-renamed,arguments-differ
        return self.wait(self.start_backup(machine, **members))


@contextlib.contextmanager
def node_in(servers, **kwargs):
    made = Node(servers, **kwargs)
    try:
        yield made
    finally:
        made.clean_up()


class Site:
    """A vCenter with a machine of two disks, VMware's library, and a node beside them."""

    def __init__(self, servers, vc, **kwargs):
        self.servers, self.vc = servers, vc
        self.rng = random.Random(7)
        self.lib = vddk.FakeVddk(servers.folder, frozen=vc.frozen)
        self.machine = vc.add_machine("web01", SIZES, cbt=True)
        self.node = Node(servers, vcenters={"vc": vc}, vddk=self.lib.folder, **kwargs)
        self.tell()
        for key in SIZES:
            self.guest_writes(key, 5)

    def tell(self, **values):
        self.lib.tell(thumbprint=self.vc.sha1, password=self.vc.password, **values)

    def start(self):
        self.node.start(env=self.lib.env())
        return self

    def guest_writes(self, key, nr=1):
        for _ in range(nr):
            length = self.rng.choice((512, 4 * KIB, 100 * KIB, MIB))
            self.machine.write(key, self.rng.randrange(0, SIZES[key] - length, 512),
                               self.rng.randbytes(length))

    def until_it_reads(self, start=None, slow=400, asked=None):
        """A job whose worker reads, slowly; by default a backup.  asked: whose job it is, a hub."""
        asked = asked or self.node
        self.tell(slow=slow)
        self.lib.forget()
        job = (start or (lambda: self.node.start_backup(PATH, vm="web01")))()
        wait_for(lambda: self.lib.calls("read") or asked.job(job["id"])["state"] in hub.ENDS,
                 "the worker to read")
        found = asked.job(job["id"])
        assert found["state"] not in hub.ENDS, (found["error"], self.node.process.err[-3000:])
        self.tell()
        return job

    def is_clean(self):
        """No snapshot, no process, no debt."""
        wait_for(lambda: not self.node.workers() and not self.lib.helpers(), "the workers to end")
        return self.machine.snapshots() == [] and self.node.get("debts")["items"] == []

    def same(self, vm="web01", repository="main"):
        """The newest point is what the disks hold, as nobody wrote since."""
        images = self.node_images(vm, repository)
        return all(hub.compare(images[str(key)], path) for key, path in self.machine.disks.items())

    def node_images(self, vm, repository):
        folder = self.node.repositories[repository]
        return {disk["key"]: os.path.join(folder, disk["image"])
                for disk in self.node.points_of(vm, repository)[-1]["disks"]}


@contextlib.contextmanager
def site_in(servers, vc, **kwargs):
    made = Site(servers, vc, **kwargs)
    try:
        yield made
    finally:
        made.node.clean_up()


def known(n, name="vc"):
    """The vCenter, once a look at it ended."""
    def looked():
        return [one for one in n.get("vcenters")["items"]
                if one["name"] == name and one["state"] not in ("unknown", "looking")]
    wait_for(looked, f"the look at {name}")
    return looked()[0]

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

import hub
import support
from support import SENDENSE, run


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
                 "listen = 127.0.0.1:0", "name = node.test", "log = text", "stop-timeout = 10s"]
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

"""A node and a hub that lies, or that something stands in front of: what the hub says reaches no further
than the node's own settings."""

import http.server
import json
import os
import threading

import pytest

import hub
import node
import vcenter
from node import PATH
from support import SENDENSE, bad_input, run, wait_for

JOB = "20261122T000000Z-{:08x}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the test says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(body, bytes) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):  # pylint: disable=invalid-name
        liar = self.server.liar
        if self.path.startswith("/api/v1/nodes/self/work"):
            liar.nr_asked += 1
            liar.pause.wait(0.2)
            self.reply(200, {"jobs": liar.jobs, "cancel": [], "seen": "1"})
        elif self.path.startswith("/api/v1/repositories"):
            self.reply(200, {"items": [{"name": name} for name in liar.names], "next": None})
        else:
            self.reply(404, b"nothing")

    def do_POST(self):  # pylint: disable=invalid-name
        liar = self.server.liar
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/v1/nodes":
            self.reply(201, {"node": {}, "token": "sdt_" + "a" * 43})
            return
        liar.told.append((self.path, body, liar.status))
        self.reply(liar.status, b"<html>gateway</html>")


class Liar:
    def __init__(self):
        self.jobs, self.told, self.names, self.status, self.nr_asked = [], [], ["main"], 404, 0
        self.pause = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.liar = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever).start()

    def settings(self, folder):
        token_file = os.path.join(folder, "liar.token")
        with open(token_file, "w", encoding="ascii", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write("sdt_" + "a" * 43 + "\n")
        return (f"[hub]\nurl = {self.url}\ntoken-file = {token_file}\n"
                f"[repository far]\nurl = {self.url}/main\ntoken-file = {token_file}\n")

    def asks_twice(self):
        """A whole round has passed."""
        before = self.nr_asked
        wait_for(lambda: self.nr_asked > before + 1, "the node to ask")


@pytest.fixture
def liar():
    made = Liar()
    with made.server:
        yield made
        made.pause.set()
        made.server.shutdown()


@pytest.fixture
def site(servers, scratch, liar):
    with vcenter.fake_in(scratch) as vc, node.site_in(servers, vc, settings=liar.settings(scratch)) as made:
        yield made


def test_a_hub_writes_nothing_into_the_settings(servers, liar):
    with node.node_in(servers) as n:
        n.init()
        with open(n.conf, encoding="ascii") as file:
            before = file.read()
        liar.names = ["main", f"x]\nurl = {liar.url}/x\ntoken-file = /t\n[allow]\ntarget = raw:/\n[repository y"]
        failed = run(SENDENSE, "node", "enrol", "--config", n.conf, "--hub", liar.url, stdin=b"code\n", status=None)
        assert failed.status != 0 and "no name" in failed.err
        bad_input("node enrol: a hub whose repository is named like settings", failed.err)
        with open(n.conf, encoding="ascii") as file:
            assert file.read() == before


def test_work_that_is_no_backup_of_a_machine(site, liar):
    """All else is for those who have the tokens of the node itself."""
    n = site.start().node
    target = os.path.join(n.folder, "target.raw")
    specs = [{"kind": "restore", "repository": "main", "vm": "web01", "force": True,
              "targets": [{"key": "2000", "target": f"raw:{target}"}]},
             {"kind": "replicate", "repository": "main", "vcenter": "vc", "machine": PATH,
              "targets": [{"key": "2000", "target": f"raw:{target}"}]},
             {"kind": "cleanup", "repository": "main", "vcenter": "vc"},
             {"kind": "verify", "repository": "main"},
             {"kind": "backup", "repository": "main", "vm": "x", "disks": [{"key": "1", "source": "raw:/etc/shadow"}]},
             {"kind": ["backup"], "repository": 7}, {}, None, []]
    liar.jobs = [{"id": JOB.format(nr), "spec": spec} for nr, spec in enumerate(specs)]
    wait_for(lambda: len({path for path, _, _ in liar.told}) == len(specs), "all to be refused")
    for _, body, _ in liar.told:
        assert body["state"] == "failed", body
    bad_input("work for a node: a restore", liar.told[0][1]["error"]["text"])
    assert n.all("jobs") == [] and not os.path.exists(target)


def test_work_without_a_name_is_nobodys(site, liar):
    """A job that was asked for here is not the hub's to end."""
    n = site.start().node
    job = site.until_it_reads()
    liar.jobs = [{"spec": {}}, {"id": "", "spec": {}}, {"id": 7}, 7, None]
    liar.asks_twice()
    answer = n.ask("POST", "backups", {"repository": "main", "vcenter": "vc", "machine": PATH,
                                       "hub_job": JOB.format(1)})
    assert answer.status == 422 and "hub_job" in answer.body["detail"], answer.body
    bad_input("node: a call that names a hub's job", answer.body["detail"])
    liar.asks_twice()
    assert n.wait(job)["state"] == "done"
    assert liar.told == [] and site.is_clean()


def test_a_gateway_is_not_the_hub(site, liar):
    """Its "no" ends no job, and what was told to it alone is told again."""
    n = site.start().node
    liar.status = 502
    liar.jobs = [{"id": JOB.format(1), "spec": {"kind": "backup", "repository": "main", "vm": "web01", "vcenter": "no",
                                                "machine": PATH}},
                 {"id": JOB.format(2), "spec": {"kind": "backup", "repository": "main", "vm": "web02", "vcenter": "vc",
                                                "machine": PATH}}]
    wait_for(lambda: len({path for path, _, _ in liar.told}) == 2, "both to be told of")
    liar.asks_twice()
    liar.status = 204
    wait_for(lambda: [1 for path, body, status in liar.told
                      if path.endswith(JOB.format(1)) and body["state"] == "failed" and status == 204], "the end, again")
    (own,) = n.all("jobs")
    assert own["hub_job"] == JOB.format(2) and own["state"] != "cancelled" and own["error"]["code"] != "cancelled", own
    assert own["state"] not in hub.ENDS or own["state"] == "failed"

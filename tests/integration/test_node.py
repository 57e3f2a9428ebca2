"""The node as a daemon: settings, start, stop, tokens, health."""

import hashlib
import json
import os
import re
import stat

import pytest

import node
import support
from support import fails, run, sendense


@pytest.fixture
def n(servers):
    with node.node_in(servers) as made:
        yield made


# --- init, check-config ---------------------------------------------------------------


def test_init_makes_all_that_is_missing_and_replaces_nothing(scratch):
    words = ["node", "init", "--config", f"{scratch}/node.conf", "--state-dir", f"{scratch}/state",
             "--runtime-dir", f"{scratch}/run"]
    first = sendense(*words)
    for step in ("[vcenter NAME]", "sendense node check-config", "sendense node run"):
        assert step in first.out
    for name in ("admin.token", "tls/ca.key", "tls/server.key", "state.db"):
        assert stat.S_IMODE(os.stat(f"{scratch}/state/{name}").st_mode) == 0o600, name
    with open(f"{scratch}/state/admin.token", encoding="ascii") as file:
        token = file.read().strip()
    assert re.fullmatch(r"sdt_[A-Za-z0-9_-]{43}", token) and token not in first.out + first.err
    again = sendense(*words)
    assert "made" not in again.out and "stays as it is" in again.out
    assert "is good" in sendense("node", "check-config", "--config", f"{scratch}/node.conf").out
    fails(*words, "--name", "other", status=1, contains=["says [node] name = "])


def test_check_config_looks_at_what_is_named(n):
    n.init()
    secret = os.path.join(n.folder, "password")
    with open(secret, "w", encoding="ascii") as file:
        file.write("x\n")
    os.chmod(secret, 0o644)
    n.write_config(f"[vcenter vc]\nurl = vmware://u@192.0.2.1\npassword-file = {secret}\n"
                   f"ca-file = {n.folder}/none\n[repository gone]\npath = {n.folder}/gone\n")
    told = sendense("node", "check-config", "--config", n.conf, "--json", status=2).out.splitlines()[0]
    texts = [each["text"] for each in json.loads(told)["findings"] if each["kind"] == "error"]
    for wanted in ("[vcenter vc] password-file: others may read", "[vcenter vc] ca-file: cannot look at",
                   "repo init"):
        assert [text for text in texts if wanted in text], (wanted, texts)
        support.bad_input("node: settings", wanted)
    assert len(texts) == 3


def test_the_guide_knows_every_setting(n):
    n.init()
    settings = sendense("node", "check-config", "--config", n.conf, "--json").json["defaults"]
    with open(os.path.join(support.TOP, "docs", "node.md"), encoding="utf-8") as file:
        guide = file.read()
    sections = dict(re.findall(r"^### `\[(\w+)[^`]*`\n(.*?)(?=^##|\Z)", guide, re.M | re.S))
    assert set(sections) == set(settings)
    for section, names in settings.items():
        rows = dict(re.findall(r"^\| `([a-z-]+)` \| ([^|]*) \|", sections[section], re.M))
        assert set(rows) == set(names), section
        for name, default in names.items():
            if default is not None:
                assert rows[name].strip().strip("`") == default, (section, name, rows[name])


def test_systemd_unit_is_sandboxed(scratch):
    support.need("systemd-analyze")
    with open(os.path.join(support.TOP, "packaging", "sendense-node.service.in"), encoding="utf-8") as file:
        unit = file.read().replace("@BINDIR@", "/usr/bin")
    with open(f"{scratch}/sendense-node.service", "w", encoding="utf-8") as file:
        file.write(unit)
    result = run("systemd-analyze", "security", "--offline=true", "--no-pager",
                 f"{scratch}/sendense-node.service", status=None)
    if "Unknown" in result.err or "Failed" in result.err:
        pytest.skip(result.err.strip())
    figure = re.search(r"exposure level[^:]*: ([0-9.]+)", result.out)
    assert figure and float(figure.group(1)) <= 2.0, result.out[-2000:]


# --- start and stop ------------------------------------------------------------------------


def test_starts_answers_and_stops(n):
    n.start()
    health = n.ask("GET", "health", token=None).body
    build = sendense("version", "--json").json
    assert (health["build"], health["version"], health["name"]) == (build["commit"], build["version"], "node.test")
    with open(support.SENDENSE, "rb") as file:
        assert health["digest"] == hashlib.sha256(file.read()).hexdigest()
    with open(os.path.join(support.TOP, "docs", "openapi-node.json"), encoding="utf-8") as file:
        assert n.ask("GET", "openapi.json", token=None).body == json.load(file)
    assert n.ask("GET", "jobs", token=None).status == n.ask("GET", "status", token=None).status == 401
    assert health["hub"] is None and n.get("status")["hub"] is None
    assert n.get("jobs")["items"] == []
    # A node is no hub: that all is well there is not for it to say.
    fails("status", "--repo", n.url, "--token-file", n.token_file, "--ca-file", n.ca_file, contains="no hub's status",
          case="status: of a node")
    reader = n.make_token("read")
    assert n.ask("POST", "backups", {}, token=reader).status == 403
    answer = n.ask("POST", "backups", {"repository": "main", "vcenter": "none", "machine": "x"})
    assert answer.status == 422 and "vcenter: there is none" in answer.body["detail"]
    second = fails("node", "run", "--config", n.conf, status=1, contains="another node")
    assert str(n.process.pid) in second.err
    assert "settings were read again" in n.reload()
    log = n.stop()
    assert "stopping" in log
    n.start()
    actions = [(each["actor"], each["action"]) for each in n.all("events")]
    assert actions.count(("node", "start")) == 2 and ("node", "stop") in actions
    assert ("token admin", "createToken") in actions

"""The hub as a daemon: settings, start, stop, kill, reload, what listens where, tokens, health."""

import json
import os
import re
import shutil
import signal
import socket
import stat

import pytest

import hub
import support
from support import MIB, SENDENSE, fails, make_disk, run, sendense, wait_for


@pytest.fixture
def h(servers):
    with hub.hub_in(servers) as made:
        yield made


# --- init, check-config ---------------------------------------------------------------


def test_init_makes_all_that_is_missing_and_replaces_nothing(scratch):
    words = ["hub", "init", "--config", f"{scratch}/hub.conf", "--state-dir", f"{scratch}/state",
             "--runtime-dir", f"{scratch}/run", "--repository", f"main={scratch}/repo",
             "--allow-source", "nbd://127.0.0.1:*/"]
    first = sendense(*words)
    for step in ("sendense hub check-config", "sendense hub run", "sendense ls --repo https://"):
        assert step in first.out
    secrets = ["admin.token", "tls/ca.key", "tls/server.key", "state.db"]
    for name in secrets:
        assert stat.S_IMODE(os.stat(f"{scratch}/state/{name}").st_mode) == 0o600, name
    assert stat.S_IMODE(os.stat(f"{scratch}/state").st_mode) == 0o700
    with open(f"{scratch}/state/admin.token", encoding="ascii") as file:
        token = file.read().strip()
    assert re.fullmatch(r"sdt_[A-Za-z0-9_-]{43}", token)
    assert token not in first.out + first.err
    with open(f"{scratch}/state/state.db", "rb") as file:
        assert token.encode() not in file.read()
    before = {}
    for folder, _, names in os.walk(scratch):
        for name in names:
            path = os.path.join(folder, name)
            if ".lock" not in name and not name.endswith(("-wal", "-shm")):
                with open(path, "rb") as file:
                    before[path] = file.read()
    sendense(*words)
    for path, content in before.items():
        with open(path, "rb") as file:
            assert file.read() == content, path
    assert "is good" in sendense("hub", "check-config", "--config", f"{scratch}/hub.conf").out


def test_init_with_a_wrong_option_makes_nothing(scratch):
    words = ["hub", "init", "--config", f"{scratch}/etc/hub.conf", "--state-dir", f"{scratch}/state",
             "--runtime-dir", f"{scratch}/run"]
    for case, option, text in (
            ("hub init: an address without a port", ("--listen", "127.0.0.1"), "[hub] listen"),
            ("hub init: a source that is no rule", ("--allow-source", "/dev/vg0"), "[allow] source"),
            ("hub init: a repository that is relative", ("--repository", "backup"), "--repository")):
        fails(*words, *option, status=2, case=case, contains=text)
        assert os.listdir(scratch) == [], case
    made = sendense(*words, "--listen", "0.0.0.0:8443", "--name", "hub.example", "--repository", f"{scratch}/repo")
    assert "https://hub.example:8443 " in made.out
    assert "is good" in sendense("hub", "check-config", "--config", f"{scratch}/etc/hub.conf").out


def test_init_heeds_settings_that_are_there(scratch):
    """It would make a state that no hub looks at, and say that all is well."""
    words = ["hub", "init", "--config", f"{scratch}/hub.conf"]
    sendense(*words, "--state-dir", f"{scratch}/state", "--runtime-dir", f"{scratch}/run", "--listen", "[::1]:8443")
    for option, value, said in (("--state-dir", f"{scratch}/other", f"state-dir = {scratch}/state"),
                                ("--listen", "127.0.0.1:8443", "listen = [::1]:8443"),
                                ("--nbd-listen", "127.0.0.1:1", "[nbd] listen = 127.0.0.1:10809")):
        fails(*words, option, value, case=f"hub init: another {option}", contains=[said, value, "--config"])
    assert sorted(os.listdir(scratch)) == ["hub.conf", "state"]
    # A token that was lost is made again, where the settings say.
    os.unlink(f"{scratch}/state/admin.token")
    assert f"{scratch}/state/admin.token" in sendense(*words, "--listen", "[::1]:8443").out
    with open(f"{scratch}/state/admin.token", encoding="ascii") as file:
        assert file.read().startswith("sdt_")


BAD = [
    ("an unknown section", "[hup]\n", "[hup] is no section", True),
    ("an unknown setting", "[limits]\njob = 1\n", 'no setting "job"', True),
    ("beyond loopback without TLS", "LISTEN", "beyond loopback", True),
    ("NBD beyond loopback without TLS", "NBD", "TLS is off", True),
    ("an allowed source that is no rule", "[allow]\nsource = /etc\n", "[allow] source", True),
    ("a repository that is not there", "[repository x]\npath = /nonexistent/x\n", "repository x", False),
    ("a key that others may read", "KEYMODE", "chmod 600", False),
    ("settings that others may write", "CONFMODE", "others may write to", False),
    ("a key of another certificate", "OTHERKEY", "[tls]", False),
    ("a state folder that is not there", "NOSTATE", "hub init", False),
    ("another repository than meant", "ID", "ffffffff", False),
    ("a secret that others may read", "SECRET", "chmod 600", False),
    ("a zone that there is not", "ZONE", "time-zone", False),
]


@pytest.mark.parametrize("case, change, text, has_line", BAD, ids=[row[0] for row in BAD])
def test_bad_settings_are_refused_by_line(h, scratch, case, change, text, has_line):
    h.init()
    with open(h.conf, encoding="utf-8") as file:
        conf = file.read()
    tls = f"{h.state}/tls"
    if change == "LISTEN":
        h.tls = False
        h.write_config()
        with open(h.conf, encoding="utf-8") as file:
            conf = file.read().replace("listen = 127.0.0.1:0", "listen = 0.0.0.0:8080", 1)
    elif change == "NBD":
        conf = conf.replace("[nbd]\nlisten = 127.0.0.1:0\ntls = required",
                            "[nbd]\nlisten = 0.0.0.0:0\ntls = off")
    elif change == "KEYMODE":
        os.chmod(f"{tls}/server.key", 0o644)
    elif change == "CONFMODE":
        os.chmod(h.conf, 0o662)
    elif change == "OTHERKEY":
        shutil.copy(f"{tls}/ca.key", f"{tls}/server.key")
    elif change == "NOSTATE":
        conf = conf.replace(f"state-dir = {h.state}", f"state-dir = {scratch}/nowhere")
    elif change == "ID":
        conf = conf.replace("[allow]", "id = " + "f" * 32 + "\n[allow]")
    elif change == "SECRET":
        with open(f"{scratch}/secret", "w", encoding="ascii") as file:
            file.write("x" * 32)
        os.chmod(f"{scratch}/secret", 0o640)
        conf += f"[notify]\nwebhook = https://example.com/\nwebhook-secret-file = {scratch}/secret\n"
    elif change == "ZONE":
        conf = conf.replace("name = hub.test", "name = hub.test\ntime-zone = Mars/Olympus")
    else:
        conf += change
    with open(h.conf, "w", encoding="utf-8") as file:
        file.write(conf)
    found = sendense("hub", "check-config", "--config", h.conf, "--json", status=2)
    findings = json.loads(found.out.splitlines()[0])["findings"]
    errors = [finding for finding in findings if finding["kind"] == "error"]
    hit = [finding for finding in errors if text in finding["text"]]
    assert hit, findings
    assert ("line" in hit[0]) == has_line
    support.bad_input(f"hub: {case}", hit[0]["text"])
    if has_line:
        line = conf.splitlines()[hit[0]["line"] - 1]
        assert line.strip(), (line, hit)
        fails("hub", "run", "--config", h.conf, status=2, contains=[f":{hit[0]['line']}: "])


def test_the_guide_knows_every_setting(h):
    h.init()
    settings = sendense("hub", "check-config", "--config", h.conf, "--json").json["defaults"]
    with open(os.path.join(support.TOP, "docs", "hub.md"), encoding="utf-8") as file:
        guide = file.read()
    sections = dict(re.findall(r"^### `\[(\w+)[^`]*`\n(.*?)(?=^##|\Z)", guide, re.M | re.S))
    assert set(sections) == set(settings)
    for section, names in settings.items():
        rows = dict(re.findall(r"^\| `([a-z-]+)` \| ([^|]*) \|", sections[section], re.M))
        assert set(rows) == set(names), section
        for name, default in names.items():
            if default is not None:
                assert rows[name].strip().strip("`") == default, (section, name, rows[name])


# --- start and stop ------------------------------------------------------------------------


def test_starts_answers_stops_and_leaves_nothing(h):
    h.start()
    health = h.ask("GET", "health", token=None)
    assert health.status == 200
    build = sendense("version", "--json").json
    assert health.body["build"] == build["commit"] and health.body["version"] == build["version"]
    assert health.body["status"] == "ok" and health.body["protocol"] == 1
    service = h.nbd_service()
    assert service
    log = h.stop()
    assert "stopping" in log
    wait_for(lambda: not hub.pids_of(h.runtime), "the NBD service to end")
    left = [name for name in os.listdir(h.runtime) if name.endswith(".sock")]
    assert left == []
    actions = []
    h.start()
    actions = [event["action"] for event in h.all("events")]
    assert actions == ["start", "stop", "start"]


def test_one_hub_on_a_state_folder(h):
    h.start()
    again = fails("hub", "run", "--config", h.conf, contains=[f"pid {h.process.pid}", "another hub"])
    support.bad_input("hub: a second one on the same folder", again.message)
    assert h.get("health")["status"] == "ok"


def test_killed_and_started_again_ten_times(h):
    h.start()
    # What the start still has to do (the index, copies of the state) comes to its end first.
    h.get("repositories/main/vms")
    most = h.descriptors() + 2, h.threads() + 2
    for _ in range(10):
        service = h.nbd_service()
        h.kill()
        assert hub.pids_of(h.runtime) == [service]
        h.start()
        # Found again, not started twice.
        assert h.nbd_service() == service
        h.get("jobs")
        wait_for(lambda: h.descriptors() <= most[0] and h.threads() <= most[1],
                 f"at most {most} descriptors and threads")
    assert h.get("health")["status"] == "ok"


def test_the_nbd_service_is_started_again_and_all_else_goes_on(h, scratch):
    disk = make_disk(f"{scratch}/d.raw", 8 * MIB, [(0, MIB, "random")])
    h.start()
    before = h.nbd_service()
    os.kill(before, signal.SIGKILL)
    h.backup("web01", {"2000": f"raw:{disk}"})
    wait_for(lambda: h.nbd_service() not in (None, before), "the NBD service")
    wait_for(lambda: h.get("health")["status"] == "ok", "health")
    h.push("web02", {"2000": disk})
    assert hub.compare(h.point_images("web02")["2000"], disk)
    assert any(event["action"] == "nbd-service.restart" for event in h.all("events"))


def test_a_repository_that_disappears_and_comes_back(h, scratch):
    disk = make_disk(f"{scratch}/d.raw", 4 * MIB, [(0, MIB, "random")])
    h.start()
    h.push("web01", {"2000": disk})
    reader = h.make_token("read")
    away = h.repositories["main"] + ".away"
    os.rename(h.repositories["main"], away)
    assert h.get("repositories/main")["state"] == "unavailable"
    body = {"repository": "main", "vm": "web02"}
    session = {**body, "disks": [{"key": "1", "size_bytes": MIB}], "client": {"software": "t"}}
    for method, path, sent in (("GET", "repositories/main/vms", None), ("POST", "sessions", session),
                               ("GET", "repositories/main/vms/web01/points", None),
                               ("POST", "serves", body),
                               ("GET", "vms/web01/latest?repository=main&key=2000", None)):
        answer = h.ask(method, path, sent)
        assert answer.status == 500 and h.repositories["main"] in answer.body["detail"], answer.body
    support.bad_input("hub: a repository that is not there any more", answer.body["detail"])
    answer = h.ask("GET", "repositories/main/vms", token=reader)
    assert answer.status == 500 and scratch not in str(answer.body), answer.body
    job = h.wait(h.start_backup("web03", {"2000": f"raw:{disk}"}), "failed")
    assert "main" in job["error"]["text"]
    assert not os.path.exists(h.repositories["main"])  # nothing landed elsewhere
    assert h.get("health")["status"] == "ok"
    os.rename(away, h.repositories["main"])
    assert h.get("repositories/main")["state"] == "ok"
    assert len(h.points("web01")) == 1
    h.push("web02", {"2000": disk})


def test_a_port_that_is_taken_is_named(h):
    h.init()
    with open(h.conf, encoding="utf-8") as file:
        conf = file.read().split("listen = 127.0.0.1:0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for rest, nbd in ((port, 0), (0, port)):
            with open(h.conf, "w", encoding="utf-8") as file:
                file.write(f"{conf[0]}listen = 127.0.0.1:{rest}{conf[1]}listen = 127.0.0.1:{nbd}{conf[2]}")
            refused = fails("hub", "run", "--config", h.conf, contains=[str(port), "in use"])
            wait_for(lambda: not hub.pids_of(h.runtime), "all to end")
    support.bad_input("hub: a port that is taken", refused.message)


def test_a_port_for_each_session(h, scratch):
    h.init()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        first = min(free.getsockname()[1], 65000)
    with open(h.conf, encoding="utf-8") as file:
        conf = file.read()
    with open(h.conf, "w", encoding="utf-8") as file:
        file.write(conf.replace("tls = required", f"tls = required\nmode = range\nport-range = {first}-{first + 200}"))
    h.start()
    idle = h.listening()
    assert [name for name, _, _ in idle] == ["hub"]
    disk = make_disk(f"{scratch}/d.raw", 4 * MIB, [(0, MIB, "random")])
    sessions = [h.open_session(vm, {"2000": 4 * MIB}) for vm in ("web01", "web02")]
    ports = {session["disks"][0]["export"]["port"] for session in sessions}
    assert len(ports) == 2 and all(first <= port <= first + 200 for port in ports)
    for session in sessions:
        h.write(session["disks"][0]["export"], disk)
        h.commit(session)
    for vm in ("web01", "web02"):
        assert hub.compare(h.point_images(vm)["2000"], disk)
    wait_for(lambda: h.listening() == idle, "the ports to be given back")


def test_runs_without_privileges(servers, scratch):
    support.need("setpriv")
    if os.geteuid() != 0:
        pytest.skip("every other test of the hub shows it: this is not root")
    os.chmod(scratch, 0o755)
    home = os.path.join(scratch, "home")
    os.mkdir(home)
    os.chown(home, 65534, 65534)
    program = os.path.join(scratch, "sendense")
    shutil.copy(SENDENSE, program)
    disk = make_disk(f"{home}/d.raw", 4 * MIB, [(0, MIB, "random")])
    os.chown(disk, 65534, 65534)
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all",
                 "--no-new-privs", program]
    with hub.hub_in(servers) as h:
        h.conf, h.state, h.runtime = f"{home}/hub.conf", f"{home}/state", f"{home}/run"
        h.token_file, h.ca_file = f"{h.state}/admin.token", f"{h.state}/tls/ca.crt"
        h.repositories = {"main": f"{home}/repo"}
        run(*as_nobody, "hub", "init", "--config", h.conf, "--state-dir", h.state, "--runtime-dir",
            h.runtime, "--listen", "127.0.0.1:0", "--nbd-listen", "127.0.0.1:0", "--repository",
            h.repositories["main"], "--allow-source", f"raw:{home}/")
        assert "is good" in run(*as_nobody, "hub", "check-config", "--config", h.conf).out
        h.process = servers.start(*as_nobody, "hub", "run", "--config", h.conf, "--json", name="hub",
                                  pipe=True)
        said = json.loads(support.read_line(h.process.popen.stdout, "the hub"))
        h.url, h.nbd = said["url"], said["nbd"]
        h.backup("web01", {"2000": f"raw:{disk}"})
        h.push("web02", {"2000": disk})
        for pid in (h.process.pid, h.nbd_service()):
            with open(f"/proc/{pid}/status", encoding="ascii") as file:
                status = file.read()
            assert "Uid:\t65534\t65534\t65534\t65534" in status and "CapEff:\t0000000000000000" in status
        h.stop()


def test_tells_systemd(h, scratch):
    path = f"{scratch}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(support.TIMEOUT)
        h.start(env={**os.environ, "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "300000",
                     "JOURNAL_STREAM": "1:1"})
        assert listener.recv(100) == b"READY=1"
        assert listener.recv(100) == b"WATCHDOG=1"
        h.reload()
        said = []
        while b"RELOADING=1" not in said or said[-1] != b"READY=1":
            said.append(listener.recv(100))
        h.stop()
        while said[-1] != b"STOPPING=1":
            said.append(listener.recv(100))


def test_logs_for_the_journal_and_as_json(h):
    h.init()
    with open(h.conf, encoding="utf-8") as file:
        conf = file.read()
    for kind, shape in (("journal", r"<[3467]>"), ("json", r"\{")):
        with open(h.conf, "w", encoding="utf-8") as file:
            file.write(conf.replace("log = text", f"log = {kind}"))
        h.start()
        log = h.stop()
        lines = log.splitlines()
        assert lines and all(re.match(shape, line) for line in lines), log
        if kind == "json":
            assert {"time", "level", "text"} == set(json.loads(lines[0]))


# --- reload ----------------------------------------------------------------------------------


def test_reload_takes_what_can_change_and_keeps_the_old_when_it_is_wrong(h):
    h.start()
    with open(h.conf, encoding="utf-8") as file:
        conf = file.read()
    with open(h.conf, "a", encoding="utf-8") as file:
        file.write("[builds]\nallow = none-of-these\n")
    assert "settings were read again" in h.reload()
    with pytest.raises(hub.Refused) as refused:
        h.open_session("web01", {"2000": MIB})
    assert refused.value.status == 409 and "build" in refused.value.detail
    with open(h.conf, "a", encoding="utf-8") as file:
        file.write("[hub]\nlog = loud\n")
    said = h.reload()
    assert "old settings stay" in said and ":" in said
    with pytest.raises(hub.Refused):
        h.open_session("web01", {"2000": MIB})
    with open(h.conf, "w", encoding="utf-8") as file:
        file.write(conf.replace("stop-timeout = 10s", "stop-timeout = 5s\ntime-zone = UTC")
                   .replace("[allow]", "[limits]\njobs = 7\n[allow]"))
    said = h.reload()
    assert "[hub] time-zone" in said and "[limits] jobs" in said and "stop-timeout" not in said
    session = h.open_session("web01", {"2000": MIB})
    h.call("DELETE", f"sessions/{session['id']}")


def test_reload_takes_a_new_certificate(h, scratch):
    import ssl  # pylint: disable=import-outside-toplevel
    h.start()
    port = int(h.url.rsplit(":", 1)[1])
    before = ssl.get_server_certificate(("127.0.0.1", port))
    tls = f"{h.state}/tls"
    for name in ("server.crt", "server.key"):
        os.rename(f"{tls}/{name}", f"{scratch}/{name}")
    sendense("hub", "init", "--config", h.conf, "--state-dir", h.state, "--quiet")
    h.reload()
    assert ssl.get_server_certificate(("127.0.0.1", port)) != before
    assert h.get("health")["status"] == "ok"


# --- what listens where -------------------------------------------------------------------------


LISTENS = [
    ("loopback, no TLS", False, False, {}),
    ("loopback, TLS", True, True, {}),
    ("all addresses, TLS", True, True, {"listen": "0.0.0.0"}),
]


@pytest.mark.parametrize("case, tls, nbd_tls, change", LISTENS, ids=[row[0] for row in LISTENS])
def test_what_listens_where(servers, case, tls, nbd_tls, change):
    with hub.hub_in(servers, tls=tls, nbd_tls=nbd_tls) as h:
        h.init()
        if change:
            with open(h.conf, encoding="utf-8") as file:
                conf = file.read()
            with open(h.conf, "w", encoding="utf-8") as file:
                file.write(conf.replace("listen = 127.0.0.1:0", f"listen = {change['listen']}:0"))
        h.start()
        h.url = h.url.replace("0.0.0.0", "127.0.0.1")
        address = change.get("listen", "127.0.0.1")
        found = h.listening()
        rest = int(h.url.rsplit(":", 1)[1])
        assert [(name, where) for name, where, _ in found] == [
            ("hub", address), ("nbd-service", address)], (case, found)
        assert found[0][2] == rest
        # A session and a serve open no port of their own.
        session = h.open_session("web01", {"2000": MIB})
        assert h.listening() == found
        h.call("DELETE", f"sessions/{session['id']}")
        # REST speaks TLS where it should, and nothing else.
        with socket.create_connection(("127.0.0.1", rest), timeout=support.TIMEOUT) as plain:
            plain.sendall(b"GET /api/v1/health HTTP/1.0\r\n\r\n")
            answer = plain.recv(4096)
        assert (b"200" in answer) == (not tls)


# --- tokens ----------------------------------------------------------------------------------------


def test_tokens_are_told_once_held_to_their_scope_and_revoked_at_once(h):
    h.start()
    made = h.post("tokens", {"name": "night", "scope": "backup", "vms": ["web*"]})
    token = made["token"]
    listed = h.all("tokens")
    assert {item["name"] for item in listed} == {"admin", "night"}
    assert "token" not in str(listed[1].keys()) and "hash" not in str(listed)
    assert h.ask("GET", "tokens", token=token).status == 403
    assert h.ask("POST", "sessions", {"repository": "main", "vm": "db01", "disks": [
        {"key": "2000", "size_bytes": MIB}], "client": {"software": "t"}}, token=token).status == 403
    assert h.get("repositories", token=token)["items"][0]["name"] == "main"
    assert "path" not in h.get("repositories", token=token)["items"][0]
    h.call("DELETE", f"tokens/{made['id']}")
    assert h.ask("GET", "repositories", token=token).status == 401
    short = h.post("tokens", {"name": "short", "scope": "read", "expires_in_s": 1})
    wait_for(lambda: h.ask("GET", "jobs", token=short["token"]).status == 401, "the token to expire")
    for body, status in (({"name": "x"}, 422), ({"name": "x", "scope": "root"}, 422),
                         ({"name": "x", "scope": "backup"}, (400, 422)),
                         ({"name": "x", "scope": "read", "vms": ["a"]}, (400, 422)),
                         ({"name": "x", "scope": "read", "more": 1}, 422)):
        answer = h.ask("POST", "tokens", body)
        assert answer.status in (status if isinstance(status, tuple) else (status,)), answer.body
    # The last one that can make others cannot lock everybody out.
    own = [item["id"] for item in h.all("tokens") if item["scope"] == "admin"]
    h.post("tokens", {"name": "for a day", "scope": "admin", "expires_in_s": 86400})
    refused = h.ask("DELETE", f"tokens/{own[0]}")
    assert refused.status == 409 and "another one first" in refused.body["detail"], refused.body
    other = h.post("tokens", {"name": "second", "scope": "admin"})
    assert h.ask("DELETE", f"tokens/{own[0]}", token=other["token"]).status == 204
    actions = [(event["action"], event["actor"]) for event in h.all("events", token=other["token"])]
    assert ("createToken", "token admin") in actions and ("revokeToken", "token admin") in actions


def test_streams_end_with_their_token(h):
    h.start()
    session = h.open_session("web01", {"2000": MIB})
    for path in ("events/stream", f"jobs/{session['id']}/events"):
        for token, revoked in (({"name": "gone"}, True), ({"name": "short", "expires_in_s": 2}, False)):
            # Only now: the one that expires must not do so while the other one's stream ends.
            made = h.post("tokens", {"scope": "read", **token})
            connection = h.connect(10)
            try:
                connection.request("GET", f"/api/v1/{path}",
                                   headers={"Authorization": f"Bearer {made['token']}"})
                answer = connection.getresponse()
                assert answer.status == 200 and answer.readline() == b"retry: 1000\n"
                if revoked:
                    h.call("DELETE", f"tokens/{made['id']}")
                said = answer.read()  # to its end
                assert b"event: end" not in said and b"revokeToken" not in said
            finally:
                connection.close()
            assert h.ask("GET", path, token=made["token"]).status == 401


def test_no_token_reaches_the_hubs_own_files(h):
    """Whatever is allowed: here all of the folder that holds everything."""
    h.start()
    disk = make_disk(os.path.join(h.folder, "disk.raw"), MIB)
    token = h.make_token("operate")
    h.backup("web01", {"2000": f"raw:{disk}"})
    for path in (f"{h.state}/admin.token", f"{h.state}/state.db", f"{h.state}/tls/server.key", h.conf,
                 f"{h.runtime}/nbd.sock", f"{h.repositories['main']}/repository.json"):
        for route, body in (("backups", {"vm": "x", "disks": [{"source": f"raw:{path}"}]}),
                            ("restores", {"vm": "web01", "targets": [{"target": f"raw:{path}"}], "force": True})):
            answer = h.ask("POST", route, {"repository": "main", **body}, token=token)
            assert answer.status == 403, (path, route, answer.body)
    for source in (f"nbd+unix:///x?socket={h.runtime}/nbd.sock", f"raw:{h.state}/tls/../admin.token"):
        answer = h.ask("POST", "backups", {"repository": "main", "vm": "x", "disks": [{"source": source}]})
        assert answer.status in (403, 422), (source, answer.body)


def test_systemd_unit_is_sandboxed(scratch):
    support.need("systemd-analyze")
    with open(os.path.join(support.TOP, "packaging", "sendense-hub.service.in"), encoding="utf-8") as file:
        unit = file.read().replace("@BINDIR@", "/usr/bin")
    with open(f"{scratch}/sendense-hub.service", "w", encoding="utf-8") as file:
        file.write(unit)
    result = run("systemd-analyze", "security", "--offline=true", "--no-pager",
                 f"{scratch}/sendense-hub.service", status=None)
    if "Unknown" in result.err or "Failed" in result.err:
        pytest.skip(result.err.strip())
    figure = re.search(r"exposure level[^:]*: ([0-9.]+)", result.out)
    assert figure and float(figure.group(1)) <= 2.0, result.out[-2000:]


def test_unprivileged_memory_and_binary(h):
    """What an idle hub takes."""
    h.start()
    if not support.under_sanitizer():
        assert h.process.peak_kib() < 64 * 1024
    assert SENDENSE

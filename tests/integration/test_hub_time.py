"""What the hub does by the clock, and what it tells: schedules, policies, VMs, alarms, status,
metrics, webhooks, mail, the stream of events.  When something is due is tested with a clock of the
tests' own (tests/unit/hub/test_runs.c)."""

import contextlib
import glob
import hashlib
import hmac
import http.server
import json
import os
import queue
import re
import shutil
import stat
import subprocess
import threading

import pytest

import hub as hub_helper
from qemu_machine import machine_in
from support import SENDENSE, TIMEOUT, run, wait_for

SECRET = "a secret of the receiver"


class Receiver:
    """A webhook's receiver: every POST goes into a queue; answers as it is told."""

    def __init__(self):
        self.got, self.answers = queue.Queue(), []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers = receiver.answers.pop(0) if receiver.answers else (204, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                receiver.got.put((self.path, dict(self.headers), body))

            def do_GET(self):
                receiver.got.put((self.path, {}, b""))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def next(self, event=None):
        """The next notice (of that event), its signature held against the secret."""
        while True:
            path, headers, body = self.got.get(timeout=TIMEOUT)
            assert path == "/hooks/sendense"
            signed = headers["Sendense-Timestamp"].encode() + b"." + body
            expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
            assert headers["Sendense-Signature"] == f"sha256={expected}"
            assert headers["Content-Type"] == "application/json"
            notice = json.loads(body)
            assert headers["Sendense-Event"] == notice["event"]
            assert headers["Sendense-Delivery"] == notice["id"]
            if event in (None, notice["event"]):
                return notice

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.close()


def settings(folder, receiver, mail=False, allow=None):
    secret = os.path.join(folder, "secret")
    with open(secret, "w", encoding="ascii") as file:
        file.write(SECRET + "\n")
    os.chmod(secret, 0o600)
    lines = [f"webhook = {allow or receiver.url + '/hooks/'}", "[notify]",
             f"webhook = {receiver.url}/hooks/sendense", f"webhook-secret-file = {secret}"]
    if mail:
        program = os.path.join(folder, "sendmail")
        with open(program, "w", encoding="ascii") as file:
            file.write(f"#!/bin/sh\necho \"$@\" >>{folder}/mail\ncat >>{folder}/mail\n"
                       f"echo '=== end' >>{folder}/mail\n")
        os.chmod(program, stat.S_IRWXU)
        lines += ["mail-to = admin@example.org", "mail-from = hub@example.org",
                  f"sendmail = {program}"]
    return "\n".join(lines)


def disk(folder, name="disk.raw", size=1 << 20):
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.write(os.urandom(65536))
        file.truncate(size)
    return path


def status_of(hub, *options):
    """`sendense status`, as a user calls it."""
    return run(SENDENSE, "status", "--repo", hub.url, "--token-file", hub.token_file,
               *(["--ca-file", hub.ca_file] if hub.tls else []), *options, status=None)


# --- schedules, policies, VMs -----------------------------------------------------------------


def test_objects(servers):
    with hub_helper.hub_in(servers, tls=False) as hub:
        hub.start()
        first = hub.get("schedules")["items"]
        assert [s["id"] for s in first] == ["weekly-report"] and first[0]["action"] == "report"
        body = {"id": "nightly", "cron": "30 22 * * mon-fri", "time_zone": "Europe/Berlin",
                "jitter_s": 600, "window": {"from": "22:00", "to": "06:00"}}
        made = hub.ask("POST", "schedules", body, headers={"Idempotency-Key": "k1"})
        assert made.status == 201 and made.headers["Location"] == "/api/v1/schedules/nightly"
        again = hub.ask("POST", "schedules", body, headers={"Idempotency-Key": "k1"})
        assert again.status == 201 and again.body["id"] == "nightly"
        assert hub.ask("POST", "schedules", body).status == 409
        got = hub.ask("GET", "schedules/nightly")
        assert got.body["cron"] == body["cron"] and got.body["status"]["runs"] == 0
        # What was read can be written, by who read the newest version.
        etag = got.headers["ETag"]
        put = hub.ask("PUT", "schedules/nightly", {**got.body, "jitter_s": 60},
                      headers={"If-Match": etag})
        assert put.status == 200 and put.body["jitter_s"] == 60
        assert put.body["created"] == got.body["created"]
        late = hub.ask("PUT", "schedules/nightly", got.body, headers={"If-Match": etag})
        assert late.status == 412
        for change, word in (({"cron": "0 0 31 2 *"}, "never due"), ({"cronn": "x"}, "cronn"),
                             ({"time_zone": "Mars/Olympus"}, "time_zone"), ({"id": "x"}, "id"),
                             ({"window": {"from": "22:00"}}, "window.to"),
                             ({"repository": "nowhere"}, "nowhere"), ({"enabled": 1}, "enabled")):
            refused = hub.ask("PUT", "schedules/nightly", {**got.body, **change})
            assert refused.status in (400, 422) and word in refused.body["detail"], refused.body
        upcoming = hub.get("schedules/nightly/next?count=3")
        assert [i["local"][11:] for i in upcoming["items"]] == ["22:30:00"] * 3
        assert hub.ask("GET", "schedules/nowhere/next").status == 404
        # A word that is wrong must not look like "nothing has failed".
        refused = hub.ask("GET", "jobs?state=fialed")
        assert refused.status == 400 and "fialed" in refused.body["detail"], refused.body
        assert hub.ask("GET", "schedules/nightly/next?count=0").status in (400, 422)

        policy = {"id": "gold", "vms": ["web*"], "labels": {"tier": "g*"}, "schedules": ["nightly"],
                  "keep": {"daily": 7}, "objective_s": 93600, "repository": "main"}
        assert hub.ask("POST", "policies", policy).status == 201
        for change, word in (({"keep": {}}, "keep"), ({"keep": {"daily": -1}}, "daily"),
                             ({"labels": {"a": 1}}, "labels.a"), ({"repository": "x"}, "\"x\""),
                             ({"schedules": [1]}, "schedules[0]"), ({"audit": 101}, "audit"),
                             ({"schedules": ["nightly", "nihgtly"]}, "no schedule \"nihgtly\"")):
            refused = hub.ask("PUT", "policies/gold", {**policy, **change})
            assert refused.status in (400, 422) and word in refused.body["detail"], refused.body

        vm = {"disks": [{"key": "disk0", "source": "nbd://127.0.0.1:1/x"}],
              "labels": {"tier": "gold"}}
        made = hub.ask("PUT", "vms/web%2001", vm)
        assert made.status == 201 and made.headers["Location"] == "/api/v1/vms/web%2001"
        assert made.body["status"]["policy"] == "gold" and made.body["name"] == "web 01"
        assert made.body["status"]["objective_s"] == 93600 and not made.body["status"]["alarm"]
        assert hub.get("policies/gold")["status"]["vms"] == 1
        run_of = hub.get("schedules/nightly/next")["runs"]
        assert [r["vm"] for r in run_of] == ["web 01"] and run_of[0]["state"] == "due later"
        twice = {"disks": [vm["disks"][0], vm["disks"][0]]}
        assert "twice" in hub.ask("PUT", "vms/other", twice).body["detail"]
        refused = hub.ask("PUT", "vms/other", {"policy": "golden"})
        assert refused.status == 422 and 'no policy "golden"' in refused.body["detail"]
        hub.call("PUT", "vms/db01", {})
        assert [v["name"] for v in hub.get("vms?limit=1")["items"]] == ["db01"]
        assert [v["name"] for v in hub.all("vms?limit=1")] == ["db01", "web 01"]
        # A token for some VMs sees those alone.
        token = hub.make_token("backup", vms=["web *"])
        assert [v["name"] for v in hub.all("vms", token=token)] == ["web 01"]
        assert hub.ask("GET", "vms/db01", token=token).status == 403
        assert hub.get("status", token=token)["vms"]["total"] == 1
        assert hub.ask("GET", "/metrics", token=token).status == 403
        assert hub.ask("PUT", "vms/web%2001", vm, token=token).status == 403
        # What is named stays: nothing would run any more, and nobody be told.
        hub.call("PUT", "vms/db01", {"policy": "gold"})
        for path, word in (("schedules/nightly", 'policy "gold"'), ("policies/gold", 'vm "db01"')):
            refused = hub.ask("DELETE", path)
            assert refused.status == 409 and word in refused.body["detail"], refused.body
        for path in ("vms/db01", "policies/gold", "schedules/nightly"):
            assert hub.ask("DELETE", path).status == 204
            assert hub.ask("GET", path).status == 404
        hub.restart()
        assert [v["name"] for v in hub.all("vms")] == ["web 01"]


# --- alarms, notices, retention -----------------------------------------------------------------


def test_alarm_to_recovery(servers, receiver):
    folder = servers.folder
    source = f"raw:{disk(folder)}"
    with hub_helper.hub_in(servers, tls=False, allow=[
            f"source = raw:{folder}/", f"source = qcow2:{folder}/",
            settings(folder, receiver, mail=True)]) as hub:
        hub.start()
        assert status_of(hub).status == 0
        hub.post("policies", {"id": "all", "vms": ["*"], "objective_s": 3600,
                              "keep": {"last": 1}})
        # A VM that never had a restore point, known for longer than its objective.
        hub.call("PUT", "vms/web01", {"objective_s": 1})
        notice = receiver.next("alarm")
        assert notice["vm"] == "web01" and notice["kind"] == "objective"
        assert "no good restore point" in notice["text"] and notice["hub"] == "hub.test"
        told = status_of(hub)
        assert told.status == 1 and "alarm" in told.out and "VM web01" in told.out
        answer = json.loads(status_of(hub, "--json").out)
        assert answer["status"] == "alarm" and answer["alarms"][0]["vm"] == "web01"
        assert answer["repositories"][0]["state"] == "ok"
        assert hub.get("vms/web01")["status"]["alarm"]

        # A backup that fails is a warning, told once, and over with the next good one.
        hub.call("PUT", "vms/web01", {})
        assert receiver.next()["event"] == "recovered"
        with open(f"{folder}/no.qcow2", "wb") as file:
            file.write(b"no image" * 512)
        bad = hub.start_backup("web01", {"disk0": f"qcow2:{folder}/no.qcow2"})
        hub.wait(bad, "failed")
        notice = receiver.next()
        assert (notice["event"], notice["vm"], notice["job"]) == ("failed", "web01", bad["id"])
        assert status_of(hub).status == 0 and "warning" in status_of(hub).out
        hub.backup("web01", {"disk0": source})
        notice = receiver.next()
        assert notice["event"] == "recovered" and notice["kind"] == "failed"
        assert json.loads(status_of(hub, "--json").out)["status"] == "ok"

        # Retention after a success.
        first = hub.points("web01")[-1]["point"]
        hub.backup("web01", {"disk0": source}, mode="full")
        wait_for(lambda: first not in [p["point"] for p in hub.points("web01")], "the prune")
        jobs = hub.all("jobs?kind=prune")
        assert jobs[0]["requested_by"] == "policy all"
        hub.wait(jobs[0])

        def mails():
            with open(os.path.join(folder, "mail"), encoding="utf-8") as file:
                return file.read().split("=== end\n")[:-1]
        wait_for(lambda: len(mails()) == 4, "four mails")
        assert mails()[0].startswith("-t -i\nFrom: hub@example.org\nTo: admin@example.org\n"
                                     "Subject: [sendense hub.test] VM web01: alarm\nDate: ")
        assert "\n\nthere is no good restore point" in mails()[0]
        assert "VM web01: failed" in mails()[2] and "good again" in mails()[3]


def test_an_index_that_is_not_filled_yet_is_no_news(servers):
    """After an import, or where index.db was lost: what the hub does not know is neither an alarm nor
    the end of one."""
    folder = servers.folder
    with hub_helper.hub_in(servers, tls=False) as hub:
        hub.start()
        hub.backup("web01", {"disk0": f"raw:{disk(folder)}"})
        [image] = hub.point_images("web01").values()
        with open(image, "r+b") as file:
            file.seek(-70000, os.SEEK_END)
            file.write(b"x" * 70000)
        hub.wait(hub.post("verifications", {"repository": "main"}), "failed")
        def damage():
            return [alarm for alarm in hub.get("status")["alarms"] if alarm["kind"] == "damage"]
        wait_for(damage, "the alarm")
        before = damage()
        hub.stop()
        for path in glob.glob(f"{hub.state}/index.db*"):
            os.unlink(path)
        hub.start()
        wait_for(lambda: hub.get("vms")["items"], "the index")
        assert hub.get("vms/web01")["status"]["damaged"] == 1
        assert damage() == before
        assert "no alarm any more" not in hub.process.err


def test_notices_are_kept(servers, receiver):
    """Refused, redirected, killed in between: delivered in the end, and never elsewhere."""
    folder = servers.folder
    with hub_helper.hub_in(servers, tls=False, allow=[settings(folder, receiver)]) as hub:
        hub.start()
        receiver.answers = [(302, {"Location": receiver.url + "/elsewhere"})]
        hub.call("PUT", "vms/lost", {"objective_s": 1})
        first = receiver.next()
        assert hub.get("status")["notices_pending"] == 1
        wait_for(lambda: 'channel="webhook",result="failed"} 1' in
                 hub.get("/metrics").decode(), "the failure to count")
        hub.kill()
        receiver.answers = [(500, {})]
        hub.start()
        assert receiver.next()["id"] == first["id"]
        wait_for(lambda: "status 500" in hub.process.err, "the failure to be told")
        hub.kill()
        hub.start()
        assert receiver.next()["id"] == first["id"]
        wait_for(lambda: hub.get("status")["notices_pending"] == 0, "the delivery")
        assert receiver.got.empty()
        assert SECRET not in hub.process.err


def test_webhook_that_is_not_allowed(servers, receiver):
    folder = servers.folder
    with hub_helper.hub_in(servers, tls=False, allow=[
            settings(folder, receiver, allow="https://hooks.example/")]) as hub:
        hub.init()
        checked = run(SENDENSE, "hub", "check-config", "--config", hub.conf, status=None)
        if checked.status == 0:
            hub.start()
            hub.call("PUT", "vms/lost", {"objective_s": 1})
            wait_for(lambda: "could not be delivered by webhook" in hub.process.err, "the refusal")
    assert receiver.got.empty()


def test_missed_run(servers):
    """What the hub missed while it was down is made up for once, from end to end."""
    folder = servers.folder
    with hub_helper.hub_in(servers, tls=False) as hub:
        hub.start()
        hub.post("schedules", {"id": "hourly", "cron": "59 * * * *"})
        hub.post("policies", {"id": "all", "vms": ["*"], "schedules": ["hourly"]})
        hub.call("PUT", "vms/web01", {"disks": [{"key": "2000", "source": f"raw:{disk(folder)}"}]})
        wait_for(lambda: hub_helper.runs_in_state(hub, "hourly"), "the schedule to know of it")
        assert hub.get("schedules/hourly/next")["runs"][0]["last"] is None
        hub.stop()
        hub_helper.was_down(hub, "hourly", 7200)
        hub.start()
        wait_for(lambda: hub.all("jobs?kind=backup"), "the job")
        job = hub.wait(hub.all("jobs?kind=backup")[0])
        assert job["requested_by"] == "schedule hourly" and job["vm"] == "web01"
        assert len(hub.points("web01")) == 1
        hub.restart()
        run_of = hub.get("schedules/hourly/next")["runs"][0]
        assert run_of["last_job"] == job["id"] and run_of["state"] == "due later"
        assert len(hub.all("jobs?kind=backup")) == 1


def test_a_machine_in_qemu(servers):
    """Its disks have keys of their own, so that its settings name none: by hand and by schedule."""
    with hub_helper.hub_in(servers, tls=False, allow=[f"source = qemu:{servers.folder}/"]) as hub, \
            machine_in(servers.folder) as machine:
        hub.start()
        named = {"disks": [{"key": "vd0", "source": f"qemu:{machine.qmp}"}]}
        disks = [{"source": f"qemu:{machine.qmp}"}]
        for method, path, body in (("PUT", "vms/web01", named),
                                   ("POST", "backups", {"repository": "main", "vm": "web01", **named})):
            refused = hub.ask(method, path, body)
            assert refused.status == 422, refused.body
            assert "disks[0].key" in refused.body["detail"] and "of their own" in refused.body["detail"]
        # What no job may read is told when it is set, and not in the night.
        for source in ("nbd://192.0.2.1/x", f"raw:{disk(servers.folder)}"):
            refused = hub.ask("PUT", "vms/web01", {"disks": [{"key": "a", "source": source}]})
            assert refused.status == 403 and "[allow] source" in refused.body["detail"], refused.body
        # One that is only not there now may come.
        hub.call("PUT", "vms/web02", {"disks": [{"source": f"qemu:{servers.folder}/off.qmp"}]})
        assert hub.wait(hub.post("backups", {"repository": "main", "vm": "web01", "disks": disks}))["state"] == "done"
        hub.post("schedules", {"id": "hourly", "cron": "59 * * * *"})
        hub.post("policies", {"id": "all", "vms": ["web01"], "schedules": ["hourly"]})
        hub.call("PUT", "vms/web01", {"disks": disks})
        wait_for(lambda: hub_helper.runs_in_state(hub, "hourly"), "the schedule to know of it")
        hub.stop()
        hub_helper.was_down(hub, "hourly", 7200)
        hub.start()
        wait_for(lambda: len(hub.all("jobs?kind=backup")) == 2, "the scheduled job")
        job = [hub.wait(job) for job in hub.all("jobs?kind=backup")][0]
        assert job["requested_by"] == "schedule hourly" and job["state"] == "done", job
        point = hub.points("web01")[-1]
        assert {d["key"]: d["mode"] for d in point["disks"]} == {"vd0": "incremental", "vd1": "incremental"}


def test_weekly_report(servers, receiver):
    folder = servers.folder
    with hub_helper.hub_in(servers, tls=False, allow=[
            f"source = raw:{folder}/", settings(folder, receiver)]) as hub:
        hub.start()
        hub.backup("web01", {"disk0": f"raw:{disk(folder)}"})
        hub.call("PUT", "vms/late", {"objective_s": 1})
        receiver.next("alarm")
        wait_for(lambda: hub_helper.runs_in_state(hub, "weekly-report"), "the schedule to know of it")
        hub.stop()
        hub_helper.was_down(hub, "weekly-report", 8 * 86400)
        hub.start()
        report = receiver.next("report")
        assert report["jobs"]["backups"]["done"] == 1 and report["jobs"]["restores"]["done"] == 0
        assert report["vms"] == {"total": 2, "with_objective": 1, "objective_met": 0}
        assert report["points"]["total"] == 1 and report["points"]["stored_bytes"] > 0
        assert [a["vm"] for a in report["alarms"]] == ["late"]
        for line in ("1 done", "VM late: there is no good restore point", "repository main: "):
            assert line in report["text"]
        hub.restart()
        assert receiver.got.empty()


# --- metrics --------------------------------------------------------------------------------------


SAMPLE = re.compile(r'^([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\]|\\.)*",?)+)\})? '
                    r'(-?[0-9.e+]+|\+Inf|NaN)$')
LABEL = re.compile(r'([a-z]+)="((?:[^"\\]|\\.)*)"')


def parse(text):
    """{(name, labels): value}; the format's rules are asserted on the way."""
    samples, types, current = {}, {}, None
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name, help_text = line[7:].split(" ", 1)
            assert name not in types and help_text.endswith(".")
        elif line.startswith("# TYPE "):
            current, kind = line[7:].split(" ")
            assert current == name and current not in types
            types[current] = kind
        else:
            match = SAMPLE.match(line)
            assert match, line
            base = match[1]
            if types[current] == "histogram":
                base = re.sub("_(bucket|sum|count)$", "", base)
            assert base == current, line
            assert (types[current] == "counter") == match[1].endswith("_total") \
                or types[current] == "histogram", line
            labels = tuple((n, v.replace('\\"', '"').replace("\\n", "\n").replace("\\\\", "\\"))
                           for n, v in LABEL.findall(match[2] or ""))
            assert (match[1], labels) not in samples, line
            samples[match[1], labels] = float(match[3])
    return samples


def test_metrics(servers):
    folder = servers.folder
    with hub_helper.hub_in(servers, tls=False) as hub:
        hub.start()
        name = 'we"b\\01 ä'
        hub.backup(name, {"disk0": f"raw:{disk(folder)}"})
        hub.call("PUT", "vms/late", {"objective_s": 1})
        wait_for(lambda: hub.get("status")["status"] == "alarm", "the alarm")
        answer = hub.ask("GET", "/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = answer.body.decode()
        samples = parse(text)
        assert samples["sendense_jobs_ended_total", (("kind", "backup"), ("state", "done"))] == 1
        assert samples["sendense_vm_alarm", (("vm", "late"),)] == 1
        assert samples["sendense_vm_alarm", (("vm", name),)] == 0
        assert samples["sendense_alarms", (("severity", "alarm"),)] == 1
        newest = samples["sendense_vm_last_good_point_timestamp_seconds", (("vm", name),)]
        assert abs(newest - samples["process_start_time_seconds", ()]) < 600
        assert samples["sendense_repository_up", (("repository", "main"),)] == 1
        assert samples["sendense_job_read_bytes_total", (("kind", "backup"),)] > 0
        buckets = [v for (n, _), v in samples.items() if n == "sendense_job_duration_seconds_bucket"]
        assert len(buckets) == 7 * 8 and sum(buckets) >= 1
        assert samples["sendense_job_duration_seconds_count", (("kind", "backup"),)] == 1
        if shutil.which("promtool"):
            subprocess.run(["promtool", "check", "metrics"], input=answer.body, check=True,
                           timeout=TIMEOUT)


# --- the stream ----------------------------------------------------------------------------------


def events(hub, token=None, after=None):
    """Follows the stream; yields (id, name, data), and first of all None, when it listens."""
    connection = hub.connect()
    headers = {"Authorization": f"Bearer {token or hub.token}"}
    if after is not None:
        headers["Last-Event-ID"] = str(after)
    connection.request("GET", "/api/v1/events/stream", headers=headers)
    response = connection.getresponse()
    assert response.status == 200
    try:
        yield None
        fields = {}
        for raw in response:
            line = raw.decode().rstrip("\r\n")
            if line and not line.startswith(":"):
                name, _, value = line.partition(":")
                fields[name] = value.strip()
            elif not line and "data" in fields:
                yield int(fields["id"]), fields["event"], json.loads(fields["data"])
                fields = {}
    finally:
        connection.close()


def test_stream(servers):
    folder = servers.folder
    with hub_helper.hub_in(servers, tls=False) as hub:
        hub.start()
        token = hub.make_token("backup", vms=["web*"])
        stream, own = events(hub), events(hub, token)
        next(stream), next(own)
        for vm in ("db01", "web01"):
            hub.backup(vm, {"disk0": f"raw:{disk(folder)}"})
        hub.call("PUT", "vms/db01", {"objective_s": 1})
        # A job's end is told here once the index knows of its point: a later call may be first.
        seen, ends, told = [], [], False
        while not told or "web01" not in ends:
            event = next(stream)
            seen.append(event)
            _, name, data = event
            told |= name == "alarm" or (name == "event" and data["action"] == "putVm")
            if name == "job" and data["state"] == "done":
                ends.append(data["vm"])
        assert ends == ["db01", "web01"]
        assert [i for i, _, _ in seen] == sorted({i for i, _, _ in seen})
        # A token for some VMs hears of those alone.
        for _, name, data in own:
            assert name == "job" and data["vm"] == "web01"
            if data["state"] == "done":
                break
        # Taken up again where it was lost.
        again = events(hub, after=seen[0][0])
        next(again)
        assert next(again) == seen[1]
        for stream_ in (stream, own, again):
            stream_.close()


# --- a folder -------------------------------------------------------------------------------------


def test_status_of_a_folder(servers):
    folder = servers.folder
    repo = os.path.join(folder, "repo")
    run(SENDENSE, "repo", "init", repo, "--quiet")
    run(SENDENSE, "backup", "--repo", repo, "--vm", "web01", f"raw:{disk(folder)}", "--quiet")
    good = run(SENDENSE, "status", "--repo", repo, "--objective", "1h")
    assert "1 VM, 0 without a good restore point" in good.out
    points = os.path.join(repo, "vms", "web01", "points")
    only = os.listdir(points)[0]
    manifest = os.path.join(points, only, "manifest.json")
    with open(manifest, "r+b") as file:
        file.seek(20)
        file.write(b"XXXX")
    bad = run(SENDENSE, "status", "--repo", repo, "--objective", "1h", "--json", status=1)
    told = json.loads(bad.out)
    assert told["status"] == "alarm"
    assert {a["kind"] for a in told["alarms"]} == {"damage", "objective"}
    wrong = run(SENDENSE, "status", status=2)
    assert "--repo" in wrong.err

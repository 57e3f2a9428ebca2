"""Nodes as the hub sees them: enrolled by a code, given work, heard of, taken out.  The node is a client
made of the API's document alone, and its backups are sessions by nbdcopy."""

import contextlib
import json
import os
import sqlite3
import threading

import pytest

import hub
import rest_api
import support
from rest_api import Problem
from support import MIB, bad_input, make_disk, run, sendense, wait_for
from test_hub_time import parse, receiver, settings, status_of  # noqa: F401 pylint: disable=unused-import

SETTINGS = {"node": "esx1", "vcenter": "lab", "machine": "/DC0/vm/web01"}


@pytest.fixture
def h(servers):
    support.need("nbdcopy")
    with hub.hub_in(servers) as made:
        yield made.start()


def admin_of(h):
    return rest_api.Api(h.url, h.token, h.ca_file)


def node_of(h, name="esx1"):
    return rest_api.Api(h.url, h.enrol(name), h.ca_file)


def refused(call, status, **given):
    with pytest.raises(Problem) as caught:
        call(**given)
    assert caught.value.status == status, caught.value
    return caught.value


def work(node, **given):
    return node.getNodeWork(protocol=1, build="0123456789ab", version="test", **given)


def push(h, node, vm, disk, commit=True):
    """What a node's worker does; the session, or its job at the end."""
    body = {"repository": "main", "vm": vm, "digest": "optional", "client": {"software": "node", "build": "0123456789ab"},
            "disks": [{"key": "2000", "size_bytes": os.path.getsize(disk)}]}
    session = node.openSession(body=body)
    h.write(session["disks"][0]["export"], disk)
    if not commit:
        return session
    return node.follow(node.commitSession(id=session["id"], body={"disks": [{"key": "2000"}]}))


def points(h, vm="web01"):
    """Also of a machine that never had any."""
    return h.points(vm) if h.ask("GET", f"repositories/main/vms/{vm}/points").status == 200 else []


def start(h, **members):
    return h.post("backups", {"repository": "main", "vm": "web01", **SETTINGS, **members})["id"]


@pytest.fixture
def disk(scratch):
    return make_disk(f"{scratch}/a.raw", 4 * MIB, [(0, 2 * MIB, "random")])


# --- enrolment ---------------------------------------------------------------------------------


def test_a_code_is_good_once(h):
    admin = admin_of(h)
    code = admin.createNodeCode(body={"name": "esx1", "expires_s": 600})["code"]
    assert len(code.replace("-", "")) * 5 >= 80
    body = {"code": code, "name": "esx1", "protocol": 1, "version": "1", "build": "b", "digest": "00"}
    stranger = admin.as_(None)
    for case, change in [("a wrong code", {"code": "0" * 20}), ("a code for another name", {"name": "esx2"})]:
        bad_input(f"enrolment: {case}", refused(stranger.enrolNode, 401, body={**body, **change}).detail)
    bad_input("enrolment: another protocol", refused(stranger.enrolNode, 409, body={**body, "protocol": 7}).detail)
    # People type it as they like.
    made = stranger.enrolNode(body={**body, "code": code.lower().replace("-", "")})
    assert made["node"]["name"] == "esx1" and made["node"]["state"] == "alive"
    bad_input("enrolment: a code used twice", refused(stranger.enrolNode, 401, body=body).detail)
    node = admin.as_(made["token"])
    assert work(node)["jobs"] == []
    # Neither is kept in the clear, nor told again.
    with open(f"{h.state}/state.db", "rb") as file:
        kept = file.read()
    for name in ("state.db-wal",):
        with open(f"{h.state}/{name}", "rb") as file:
            kept += file.read()
    for secret in (code, code.replace("-", ""), made["token"]):
        assert secret.encode() not in kept and secret not in h.process.err
    assert made["token"] not in json.dumps(list(admin.all("listNodes")))
    actions = {event["action"]: event["actor"] for event in admin.all("listEvents")}
    assert {"createNodeCode", "enrolNode", "node.enrolled"} <= set(actions)


def test_a_code_expires(h):
    admin = admin_of(h)
    code = admin.createNodeCode(body={"name": "esx1", "expires_s": 10})["code"]
    body = {"code": code, "name": "esx1", "protocol": 1, "version": "1", "build": "b"}
    h.stop()
    with sqlite3.connect(f"{h.state}/state.db") as db:
        db.execute("UPDATE object SET value = json_set(value, '$.expires', 1) WHERE kind = 'code'")
    db.close()
    h.start()
    bad_input("enrolment: an expired code", refused(admin_of(h).as_(None).enrolNode, 401, body=body).detail)


def test_wrong_codes_count_as_wrong_tokens(h):
    stranger = admin_of(h).as_(None)
    body = {"code": "wrong", "name": "esx1", "protocol": 1, "version": "1", "build": "b"}
    statuses = []
    for _ in range(12):
        with pytest.raises(Problem) as caught:
            stranger.enrolNode(body=body)
        statuses.append(caught.value.status)
    assert statuses[:10] == [401] * 10 and statuses[-1] == 429
    # A right one is not refused for them.
    assert h.enrol("esx1")


def test_enrolled_anew(h):
    """The second token counts, the first one no more."""
    first = node_of(h)
    second = node_of(h)
    refused(first.getNodeWork, 401, protocol=1)
    assert work(second)["jobs"] == []
    assert len([token for token in h.all("tokens") if token["scope"] == "node"]) == 1
    for name in ("self", "codes", "a b"):
        assert h.ask("POST", "nodes/codes", {"name": name}).status == 422
    assert h.ask("POST", "tokens", {"name": "x", "scope": "node"}).status == 422


def test_builds(servers):
    with hub.hub_in(servers, settings="[builds]\nallow = 0123*\nwarn = 0123456789ab") as h:
        h.start()
        node = node_of(h)
        assert "warn names" in h.process.err
        code = h.post("nodes/codes", {"name": "esx2"})["code"]
        body = {"code": code, "name": "esx2", "protocol": 1, "version": "1", "build": "ffff"}
        bad_input("enrolment: a build that [builds] does not allow",
                  refused(admin_of(h).as_(None).enrolNode, 409, body=body).detail)
        refused(node.getNodeWork, 409, protocol=1, build="ffff")
        assert admin_of(h).getNode(id="esx1")["build"] == "ffff"
        refused(node.getNodeWork, 409, protocol=2, build="0123456789ab")
        work(node)


# --- what a node may ---------------------------------------------------------------------------------


def test_a_node_reaches_its_own_machines(h, disk):
    admin, node, other = admin_of(h), node_of(h), node_of(h, "esx2")
    assert admin.putVm(vm="web01", body=SETTINGS)["node"] == "esx1"
    refused(admin.putVm, 422, vm="db01", body={**SETTINGS, "node": "nowhere"})
    refused(admin.putVm, 422, vm="db01", body={"node": "esx1", "vcenter": "lab"})
    refused(admin.putVm, 422, vm="db01", body={"vcenter": "lab"})
    refused(admin.putVm, 422, vm="db01", body={**SETTINGS, "disks": [{"source": f"raw:{disk}"}]})
    admin.putVm(vm="web*", body={**SETTINGS, "machine": "/DC0/vm/other"})
    assert push(h, node, "web01", disk)["state"] == "done"
    assert len(list(node.all("listPoints", repo="main", vm="web01"))) == 1
    for client, vm in [(other, "web01"), (node, "web02"), (node, "db01")]:
        body = {"repository": "main", "vm": vm, "client": {"software": "t"}, "disks": [{"key": "1", "size_bytes": MIB}]}
        refused(client.openSession, 403, body=body)
        refused(client.getLatestDisk, 403, vm=vm, repository="main", key="1")
    # It asks for nothing, and sees nothing of others.
    refused(node.createBackup, 403, body={"repository": "main", "vm": "web01", "disks": [{"source": f"raw:{disk}"}]})
    refused(node.listNodes, 403)
    refused(node.createNodeCode, 403, body={"name": "x"})
    assert {item["vm"] for item in node.all("listJobs")} == {"web01"} and not list(other.all("listJobs"))
    token = h.make_token("backup", vms=["web01"])
    refused(admin.as_(token).createBackup, 403, body={"repository": "main", "vm": "web01", **SETTINGS})
    for scope in ("read", "operate", "admin"):
        refused(admin.as_(h.make_token(scope)).getNodeWork, 403, protocol=1)


# --- work ---------------------------------------------------------------------------------------------


def test_a_backup_by_a_node(h, disk):
    """Asked for, waited for, told of, made by a session of the job: one restore point, which names it."""
    node = node_of(h)
    first = work(node)
    assert first["jobs"] == []
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(work(node, wait=60, seen=first["seen"])))
    waiting.start()
    job = start(h, mode="full", skip_disks=["2001"])
    waiting.join(support.TIMEOUT)
    assert [item["id"] for item in answers[0]["jobs"]] == [job] and answers[0]["cancel"] == []
    assert answers[0]["jobs"][0]["spec"] == {
        "kind": "backup", "repository": "main", "vm": "web01", "vcenter": "lab", "machine": "/DC0/vm/web01",
        "mode": "full", "skip_disks": ["2001"]}
    # The whole of it each time; nothing changed, so a call that says what it saw waits its second.
    assert work(node)["jobs"] == answers[0]["jobs"]
    assert work(node, wait=1, seen=answers[0]["seen"])["jobs"] == answers[0]["jobs"]
    node.tellNodeJob(id=job, body={"state": "starting", "stage": "begin", "build": "0123456789ab"})
    node.tellNodeJob(id=job, body={"state": "running", "stage": "copy", "progress": {"logical": 1, "point": "forged"}})
    shown = h.job(job)
    assert (shown["state"], shown["stage"], shown["node"], shown["point"]) == ("running", "copy", "esx1", None)
    session = push(h, node, "web01", disk, commit=False)
    assert h.job(session["job"])["for_job"] == job
    made = node.follow(node.commitSession(id=session["id"], body={"disks": [{"key": "2000"}]}))
    assert made["state"] == "done" and h.job(job)["state"] == "running"
    node.tellNodeJob(id=job, body={"state": "done", "progress": {"logical": 4 * MIB}, "report": {"point": made["point"]}})
    ended = h.wait(job)
    assert ended["point"] == made["point"] and ended["report"] == {"point": made["point"]}
    assert [point["point"] for point in h.points("web01")] == [made["point"]]
    assert hub.compare(h.point_images("web01")["2000"], disk)
    run("grep", "-rq", job, f"{h.repositories['main']}/vms/web01/points")
    assert work(node)["jobs"] == []
    # It has ended: the node ends its own.
    bad_input("a node that tells of a job that has ended",
              refused(node.tellNodeJob, 409, id=job, body={"state": "running"}).detail)
    refused(node.tellNodeJob, 404, id="20261122T000000Z-00000000", body={"state": "running"})
    refused(node.tellNodeJob, 404, id=made["id"], body={"state": "failed"})
    assert h.open_jobs() == []


def test_a_nodes_word_against_what_the_hub_knows(h, disk):
    """Done counts with a restore point alone, failed without one."""
    node = node_of(h)
    job = start(h)
    node.tellNodeJob(id=job, body={"state": "done", "point": "20261122T000000Z"})
    ended = h.wait(job, "failed")
    bad_input("a node that says done without a restore point", ended["error"]["text"])
    job = start(h)
    made = push(h, node, "web01", disk)
    node.tellNodeJob(id=job, body={"state": "failed", "error": {"code": "disconnected", "text": "killed behind it"}})
    assert h.wait(job)["point"] == made["point"]
    job = start(h)
    node.tellNodeJob(id=job, body={"state": "running", "stage": "copy"})
    node.tellNodeJob(id=job, body={"state": "starting", "stage": "begin"})  # its second attempt
    assert h.job(job)["state"] == "starting"
    node.tellNodeJob(id=job, body={"state": "failed", "error": {"code": "io", "text": "no such machine"}})
    assert h.wait(job, "failed")["error"] == {"code": "io", "text": "no such machine"}
    again = h.post(f"jobs/{job}/retry")["id"]
    assert [item["id"] for item in work(node)["jobs"]] == [again]


def test_a_nodes_figures_reserve_nothing(servers, disk):
    """What it says that a backup took keeps no other machine's backup waiting."""
    with hub.hub_in(servers, each_repository=("stop-free = 1M",), allow=["source = raw:/"]) as h:
        h.start()
        node = node_of(h)
        job = start(h)
        push(h, node, "web01", disk)
        node.tellNodeJob(id=job, body={"state": "done", "progress": {"stored": 2 ** 62, "sent": 2 ** 62}})
        h.wait(job)
        pull = h.start_backup("web01", {"2000": f"raw:{disk}"}, mode="full", limit_rate=65536)["id"]
        h.wait_stage(pull, "copy")
        h.push("web02", {"1": disk})
        h.post(f"jobs/{pull}/cancel")
        h.wait(pull, "cancelled")


def test_bad_work(h):
    admin = admin_of(h)
    node = node_of(h)
    for change, word in [({"node": "nowhere"}, "nowhere"), ({"vcenter": 7}, "vcenter"), ({"audit": 200}, "audit"),
                         ({"skip_disks": [1]}, "skip_disks"), ({"repository": "none"}, "none"), ({"what": 1}, "what"),
                         ({"machine": ""}, "machine")]:
        answer = h.ask("POST", "backups", {"repository": "main", "vm": "web01", **SETTINGS, **change})
        assert answer.status == 422 and word in answer.body["detail"], answer.body
    job = start(h)
    assert h.ask("POST", "backups", {"repository": "main", "vm": "web01", **SETTINGS}).status == 409
    for body in [{"state": "flying"}, {}, {"state": "running", "disk": 1}, {"state": "running", "stage": "x" * 100}]:
        status, _, text = node.request("POST", f"/api/v1/nodes/self/jobs/{job}", json.dumps(body).encode(),
                                       {"Content-Type": "application/json"})
        assert status == 422, text
    other = node_of(h, "esx2")
    refused(other.tellNodeJob, 404, id=job, body={"state": "failed"})
    session = {"repository": "main", "vm": "web01", "client": {"software": "t"}, "disks": [{"key": "1", "size_bytes": MIB}]}
    refused(admin.openSession, 409, body=session)
    admin.putVm(vm="db01", body={**SETTINGS, "machine": "/DC0/vm/db01"})
    of_none = node.openSession(body={**session, "vm": "db01"})
    assert "for_job" not in h.job(of_none["job"])
    of_it = node.openSession(body=session)
    assert h.job(of_it["job"])["for_job"] == job
    refused(node.openSession, 409, body=session)  # one at a time


def test_its_session_takes_no_second_place(servers, disk):
    with hub.hub_in(servers, settings="[limits]\njobs = 1") as h:
        h.start()
        node = node_of(h)
        job = start(h)
        node.tellNodeJob(id=job, body={"state": "running", "stage": "copy"})
        busy = h.ask("POST", "sessions", {"repository": "main", "vm": "db01", "client": {"software": "t"},
                                          "disks": [{"key": "1", "size_bytes": MIB}]})
        assert busy.status == 409 and busy.body["code"] == "busy", busy.body
        assert push(h, node, "web01", disk)["state"] == "done"
        node.tellNodeJob(id=job, body={"state": "done"})
        h.wait(job)
        h.push("db01", {"2000": disk})


def test_cancelled(h):
    node = node_of(h)
    job = start(h)
    h.post(f"jobs/{job}/cancel")
    h.wait(job, "cancelled")  # not begun: at once
    assert work(node)["jobs"] == []
    job = start(h)
    node.tellNodeJob(id=job, body={"state": "running", "stage": "copy"})
    seen = work(node)
    assert seen["cancel"] == []
    h.post(f"jobs/{job}/cancel")
    asked = work(node, wait=60, seen=seen["seen"])
    assert asked["cancel"] == [job] and [item["id"] for item in asked["jobs"]] == [job]
    h.kill()
    h.start()
    node = rest_api.Api(h.url, node.token, h.ca_file)
    assert work(node, wait=60, seen=asked["seen"])["cancel"] == [job]
    body = {"repository": "main", "vm": "web01", "client": {"software": "t"}, "disks": [{"key": "1", "size_bytes": MIB}]}
    refused(node.openSession, 409, body=body)
    node.tellNodeJob(id=job, body={"state": "cancelled"})
    h.wait(job, "cancelled")
    assert points(h) == []


def test_the_hub_dies(h, disk):
    """kill -9 between all steps: what was told is told again, one restore point."""
    node = node_of(h)
    job = start(h)
    h.kill()
    h.start()
    node = rest_api.Api(h.url, node.token, h.ca_file)
    assert [item["id"] for item in work(node)["jobs"]] == [job]
    node.tellNodeJob(id=job, body={"state": "running", "stage": "copy"})
    session = push(h, node, "web01", disk, commit=False)
    h.kill()
    h.start()
    node = rest_api.Api(h.url, node.token, h.ca_file)
    made = node.follow(node.commitSession(id=session["id"], body={"disks": [{"key": "2000"}]}))
    assert made["state"] == "done"
    h.kill()
    h.start()
    node = rest_api.Api(h.url, node.token, h.ca_file)
    node.tellNodeJob(id=job, body={"state": "done"})
    assert h.wait(job)["point"] == made["point"]
    assert len(h.points("web01")) == 1 and h.open_jobs() == []
    h.stop()


# --- by the clock, silent, taken out ----------------------------------------------------------------


def test_by_schedule(servers, disk):
    with hub.hub_in(servers, tls=False) as h:
        h.start()
        node = node_of(h)
        h.post("schedules", {"id": "hourly", "cron": "59 * * * *"})
        h.post("policies", {"id": "all", "vms": ["*"], "schedules": ["hourly"], "mode": "full", "keep": {"last": 1}})
        h.call("PUT", "vms/web01", {**SETTINGS, "quiesce": False})
        assert h.get("vms/web01")["status"]["source"] == "esx1/lab"
        wait_for(lambda: hub.runs_in_state(h, "hourly"), "the schedule to know of it")
        h.stop()
        hub.was_down(h, "hourly", 7200)
        h.start()
        node = rest_api.Api(h.url, node.token)
        wait_for(lambda: work(node)["jobs"], "the schedule's job")
        given = work(node)["jobs"][0]
        assert given["spec"] == {"kind": "backup", "repository": "main", "vm": "web01", "vcenter": "lab",
                                 "machine": "/DC0/vm/web01", "mode": "full", "quiesce": False}
        push(h, node, "web01", disk)
        node.tellNodeJob(id=given["id"], body={"state": "done"})
        job = h.wait(given["id"])
        assert job["requested_by"] == "schedule hourly"
        # Retention follows once: its session is no backup of its own.
        wait_for(lambda: [one["state"] for one in h.all("jobs?kind=prune")] == ["done"], "retention")
        assert h.get("status")["alarms"] == []
        assert h.get("schedules/hourly/next")["runs"][0]["last_job"] == given["id"]


def test_a_silent_node(servers):
    with hub.hub_in(servers, settings="[limits]\nnode-silence = 2s") as h:
        h.start()
        node = node_of(h)
        job = start(h)
        node.tellNodeJob(id=job, body={"state": "running", "stage": "copy"})
        ended = h.wait(job, "failed", timeout=60)
        assert ended["error"]["code"] == "timeout"
        bad_input("a node that is not heard of any more", ended["error"]["text"])
        assert "esx1 has not been heard of since" in ended["error"]["text"]
        assert h.get("nodes/esx1")["state"] == "silent"
        assert refused(node.tellNodeJob, 409, id=job, body={"state": "running"})
        assert h.get("nodes/esx1")["state"] == "alive"
        # One that waits for work is there.
        job = start(h)
        seen = work(node)["seen"]
        assert [item["id"] for item in work(node, wait=4, seen=seen)["jobs"]] == [job]
        assert h.job(job)["state"] == "queued"
        # So is one that enrols when the hub has run for longer than a node may be silent.
        admin = admin_of(h)
        code = admin.createNodeCode(body={"name": "esx2"})["code"]
        body = {"code": code, "name": "esx2", "protocol": 1, "version": "1", "build": "b"}
        assert admin.as_(None).enrolNode(body=body)["node"]["state"] == "alive"


def test_a_silent_node_is_an_alarm(servers, receiver):  # noqa: F811 pylint: disable=redefined-outer-name
    with hub.hub_in(servers, allow=[settings(servers.folder, receiver)], settings="[limits]\nnode-silence = 4s") as h:
        h.start()
        node = node_of(h)
        assert status_of(h).status == 0
        notice = receiver.next()
        assert (notice["event"], notice["kind"], notice["node"]) == ("alarm", "node", "esx1"), notice
        assert notice["title"] == "node esx1: alarm" and "not been heard of since" in notice["text"]
        told = status_of(h)
        assert told.status == 1 and "alarm    node esx1: it has not been heard of" in told.out
        bad_input("a node that is silent for too long", told.out.splitlines()[1])
        wait_for(lambda: [one for one in h.all("events?object=esx1") if one["action"] == "node.silent"], "the audit log")
        samples = parse(h.ask("GET", "/metrics").body.decode())
        assert samples["sendense_hub_node_up", (("node", "esx1"),)] == 0
        assert samples["sendense_hub_node_last_heard_timestamp_seconds", (("node", "esx1"),)] > 1e9
        assert samples["sendense_hub_node_jobs", (("node", "esx1"),)] == 0
        # The next hub knows it: nobody is told twice, or that it is well.
        h.kill()
        h.start()
        assert h.get("nodes/esx1")["state"] == "silent" and h.get("status")["alarms"][0]["node"] == "esx1"
        h.enrol("esx2")
        notice = receiver.next()
        assert (notice["event"], notice["node"]) == ("alarm", "esx2")
        # Taken out it is neither silent nor well.
        admin_of(h).revokeNode(id="esx2")
        assert [alarm["node"] for alarm in h.get("status")["alarms"]] == ["esx1"]
        node = rest_api.Api(h.url, node.token, h.ca_file)
        waiting = threading.Thread(target=lambda: work(node, wait=60, seen=work(node)["seen"]))
        waiting.start()
        notice = receiver.next()
        assert (notice["event"], notice["node"]) == ("recovered", "esx1")
        assert status_of(h).status == 0
        assert parse(h.ask("GET", "/metrics").body.decode())["sendense_hub_node_up", (("node", "esx1"),)] == 1
        wait_for(lambda: [one for one in h.all("events?object=esx1") if one["action"] == "node.heard"], "the audit log")
        h.stop()
        waiting.join(support.TIMEOUT)


def test_taken_out(h, disk):
    admin, node = admin_of(h), node_of(h)
    admin.putVm(vm="web01", body=SETTINGS)
    job = start(h)
    node.tellNodeJob(id=job, body={"state": "running", "stage": "copy"})
    session = push(h, node, "web01", disk, commit=False)
    answers = []
    seen = work(node)["seen"]

    def wait_for_work():
        try:
            answers.append(work(node, wait=60, seen=seen))
        except Problem as problem:
            answers.append(problem.status)
    waiting = threading.Thread(target=wait_for_work)
    waiting.start()
    admin.revokeNode(id="esx1")
    waiting.join(support.TIMEOUT)
    assert answers in ([403], [401])
    bad_input("a node that was taken out", refused(node.getNodeWork, 401, protocol=1).detail)
    refused(node.commitSession, 401, id=session["id"], body={"disks": [{"key": "2000"}]})
    assert "taken out" in h.wait(job, "failed")["error"]["text"]
    h.wait(session["job"], "cancelled")
    wait_for(lambda: h.get("sessions")["items"] == [], "the session's end")
    assert points(h) == [] and list(admin.all("listNodes")) == []
    assert h.ask("POST", "backups", {"repository": "main", "vm": "web01", **SETTINGS}).status == 422


def test_a_job_of_a_node_that_is_not_there(h):
    """One that came while its node was taken out ends all the same."""
    node_of(h)
    admin_of(h).putVm(vm="web01", body=SETTINGS)
    job = start(h)
    h.stop()
    with contextlib.closing(sqlite3.connect(os.path.join(h.state, "state.db"))) as db:
        assert db.execute("DELETE FROM object WHERE kind = 'node'").rowcount == 1
        db.commit()
    h.start()
    assert "taken out" in h.wait(job, "failed")["error"]["text"]


def test_moved_with_its_nodes(h, scratch):
    """Export and import: the node's token holds at the new hub, and so do its jobs."""
    node = node_of(h)
    admin_of(h).putVm(vm="web01", body=SETTINGS)
    job = start(h)
    h.stop()
    out, new = f"{scratch}/hub.tar", f"{scratch}/new"
    sendense("hub", "export", "--config", h.conf, out)
    sendense("hub", "import", out, "--state-dir", new)
    os.rename(h.state, f"{scratch}/old")
    os.rename(new, h.state)
    h.start()
    node = rest_api.Api(h.url, node.token, h.ca_file)
    assert [item["id"] for item in work(node)["jobs"]] == [job]
    assert [item["name"] for item in admin_of(h).all("listNodes")] == ["esx1"]

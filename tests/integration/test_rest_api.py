"""The hub's REST API: its main flow by a client made of the API's document alone, the document
against the routes, and the security walk over all of them."""

import json
import os
import re

import pytest

import hub
import rest_api
import support
from rest_api import Problem
from support import MIB, bad_input, make_disk, need, run

# Whatever stands for {name} in a path, where the call never gets as far as looking.
SOME = {"repo": "main", "vm": "web01", "point": "latest", "id": "none", "key": "2000", "name": "x"}


@pytest.fixture(name="running")
def one_hub(servers):
    with hub.hub_in(servers) as made:
        yield made.start()


def api_of(running, token=None):
    return rest_api.Api(running.url, token or running.token, running.ca_file if running.tls else None)


def refused(call, status, code=None, **given):
    with pytest.raises(Problem) as caught:
        call(**given)
    assert caught.value.status == status, caught.value
    assert code in (None, caught.value.code), caught.value
    return caught.value


@pytest.mark.parametrize("name", ["openapi.json", "openapi-node.json"])
def test_the_document_itself(name):
    """Each reference leads somewhere, each schema is one, each path's parameters are told."""
    jsonschema = pytest.importorskip("jsonschema", reason="python3-jsonschema is not installed")
    document = rest_api.document(name)
    assert document["openapi"].startswith("3.1.")
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        used = [ref for ref in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)) if ref == name]
        assert used, f"nothing refers to {name}"
    api = rest_api.Api("http://127.0.0.1", api_document=document)
    for reference in set(re.findall(r'"\$ref": "(.*?)"', json.dumps(document))):
        api.resolve({"$ref": reference})
    for operation in api.operations.values():
        in_path = {parameter["name"] for parameter in operation.parameters if parameter["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", operation.path)), operation.id
        assert operation.scope in ("none", "read", "backup", "node", "operate", "admin")


def test_methods_are_those_of_the_document(running):
    """Another method is told which there are."""
    api = api_of(running)
    for path in api.document["paths"]:
        target = path.format(**SOME)
        status, headers, _ = api.request("PATCH", target)
        assert status == 405, (path, status)
        # (What is one path of two, "/nodes/codes" and "/nodes/{id}", has the methods of both.)
        methods = {method for other, has in api.document["paths"].items() for method in has
                   if re.fullmatch(re.sub(r"{\w+}", "[^/]+", other), target)}
        told = {method.upper() for method in methods} | ({"HEAD"} if "get" in methods else set())
        assert set(headers["allow"].split(", ")) >= told, path
        if "{" not in path:
            assert set(headers["allow"].split(", ")) == told, path
    status, _, body = api.request("GET", "/api/v1/openapi.json")
    assert status == 200 and json.loads(body) == api.document


def test_security_walk(running):
    """All routes with no token, a wrong, an expired, a revoked one, and ones of too small a scope;
    never a word about the body."""
    admin = api_of(running)
    made = {scope: admin.createToken(body={"name": scope, "scope": scope})["token"] for scope in ("read", "operate")}
    made["backup"] = admin.createToken(body={"name": "b", "scope": "backup", "vms": ["db*"]})["token"]
    made["node"] = running.enrol("esx1")
    revoked = admin.createToken(body={"name": "gone", "scope": "admin"})
    admin.as_(revoked["token"]).listTokens()
    admin.revokeToken(id=revoked["id"])
    expired = admin.createToken(body={"name": "old", "scope": "admin", "expires_in_s": 1})["token"]
    support.wait_for(lambda: admin.as_(expired).request("GET", "/api/v1/tokens")[0] in (401, 429), "the token's end")
    scopes = ["none", "read", "backup", "node", "operate", "admin"]
    rows = {"no token": 0, "wrong": 0, "expired": 0, "revoked": 0, "too small a scope": 0, "another VM": 0}
    for operation in admin.operations.values():
        target = operation.path.format(**SOME)
        junk = [(None, {}), (b"{" * 2000, {"Content-Type": "application/json"}), (bytes(2 * MIB), {"Content-Type": "x/y"})]
        bodies = junk if operation.content else junk[:1]
        if operation.scope == "none" and operation.method == "GET":
            assert admin.as_(None).request(operation.method, target)[0] == 200
            continue
        if operation.scope == "none":
            # Whoever enrols shows a code: without a good one nothing is said of the rest.
            for body, headers in junk[:2]:
                assert admin.as_(None).request(operation.method, target, body, headers)[0] in (401, 429, 400)
            continue
        for body, headers in bodies:
            for what, token in [("no token", None), ("wrong", "sdt_" + "x" * 43), ("expired", expired),
                                ("revoked", revoked["token"])]:
                if token and body and len(body) > MIB:
                    continue
                status, told, _ = admin.as_(token).request(operation.method, target, body, headers)
                # Wrong ones are slowed down after a while; nobody has to send them much.
                assert status == 401 or (status == 429 and token and "retry-after" in told), (operation.id, what, status)
                rows[what] += 1
            too_small = [scope for scope in scopes[1:] if scope != operation.scope and (
                operation.scope == "node" or scopes.index(scope) < scopes.index(operation.scope))]
            for scope in too_small:
                if body and len(body) > MIB or scope not in made:
                    continue
                status, _, text = admin.as_(made[scope]).request(operation.method, target, body, headers)
                assert status == 403 and json.loads(text)["code"] == "denied", (operation.id, scope, status)
                rows["too small a scope"] += 1
            for scope in ("backup", "node") if "{vm}" in operation.path else ():
                status, _, text = admin.as_(made[scope]).request(operation.method, target, body, headers)
                assert status == 403, (operation.id, scope, status)
                rows["another VM"] += 1
    assert min(rows.values()) > 0
    for what, count in rows.items():
        print(f"security walk: {count} calls with {what}: all refused")
    for secret in [*made.values(), expired, revoked["token"], "sdt_"]:
        assert secret not in running.process.err


def test_a_backup_token_sees_its_own(running, scratch):
    disk = make_disk(os.path.join(scratch, "disk.raw"), 2 * MIB, [(0, MIB, "random")])
    jobs = {vm: running.backup(vm, {"2000": f"raw:{disk}"}) for vm in ("web01", "db01")}
    admin = api_of(running)
    api = admin.as_(admin.createToken(body={"name": "b", "scope": "backup", "vms": ["db*"]})["token"])
    assert {job["vm"] for job in api.all("listJobs")} == {"db01"}
    assert {item["vm"] for item in api.all("listRepositoryVms", repo="main")} == {"db01"}
    assert {item["name"] for item in api.all("listVms")} == {"db01"}
    assert api.getJob(id=jobs["db01"]["id"])["vm"] == "db01"
    refused(api.getJob, 403, id=jobs["web01"]["id"])
    refused(api.listPoints, 403, repo="main", vm="web01")
    for call in (api.listSchedules, api.listEvents, api.listServes, api.getMetrics):
        refused(call, 403)
    request = {"repository": "main", "vm": "web01", "disks": [{"key": "2000", "size_bytes": MIB}], "client": {"software": "t"}}
    refused(api.openSession, 403, body=request)
    session = admin.openSession(body=request)
    for call in (api.getSession, api.renewSession, api.closeSession):
        refused(call, 403, id=session["id"])
    refused(api.commitSession, 403, id=session["id"], body={"disks": [{"key": "2000"}]})
    admin.closeSession(id=session["id"])
    refused(api.createBackup, 403, body={"repository": "main", "vm": "web01", "disks": [{"key": "1", "source": f"raw:{disk}"}]})


def psk_uri(scratch, export):
    """How nbdcopy is told an export with TLS."""
    if export["tls"] is None:
        return export["uri"]
    path = os.path.join(scratch, f"psk-{export['name'][:8]}")
    with open(path, "w", encoding="ascii") as file:
        file.write(f"{export['tls']['identity']}:{export['tls']['psk']}\n")
    return (f"nbds://{export['tls']['identity']}@{export.get('address', '127.0.0.1')}:{export['port']}/{export['name']}"
            f"?tls-psk-file={path}")


def test_main_flow(running, scratch):
    """Push, follow, list, serve, read back, verify, protect, prune, tokens, audit log: each answer
    holds to the document."""
    need("nbdcopy")
    api = api_of(running)
    assert api.getHealth()["protocol"] == 1
    assert [item["name"] for item in api.all("listRepositories")] == ["main"]
    sources = {key: make_disk(os.path.join(scratch, f"{key}.raw"), size, [(MIB, MIB, "random")], seed=size)
               for key, size in [("2000", 8 * MIB), ("2001", 5 * MIB + 512)]}
    refused(api.getLatestDisk, 404, "not-found", vm="web01", repository="main", key="2000")
    session = api.openSession(body={
        "repository": "main", "vm": "web01", "digest": "optional", "client": {"software": "document", "protocol": 1},
        "disks": [{"key": key, "size_bytes": os.path.getsize(path), "change_id": f"{key}-1",
                   "source": {"kind": "raw", "label": key, "identity": {"serial": key}}} for key, path in sources.items()]})
    assert api.getSession(id=session["id"])["state"] == "open"
    assert session["id"] in [item["id"] for item in api.all("listSessions")]
    refused(api.openSession, 409, "busy", body={"repository": "main", "vm": "web01", "client": {"software": "other"},
                                                "disks": [{"key": "2000", "size_bytes": 8 * MIB}]})
    for disk in session["disks"]:
        assert disk["mode"] == "full"
        run("nbdcopy", sources[disk["key"]], psk_uri(scratch, disk["export"]))
    assert api.renewSession(id=session["id"])["lease_left_s"] > 0
    assert api.getDigests(id=session["id"], key="2000", first=0, count=8)
    api.putConfig(id=session["id"], name="web01.xml", body=b"<domain/>")
    job = api.follow(api.commitSession(id=session["id"], body={"disks": [{"key": key} for key in sources]}))
    assert job["state"] == "done", job
    points = list(api.all("listPoints", repo="main", vm="web01"))
    assert [point["point"] for point in points] == [session["point"]]
    point = api.getPoint(repo="main", vm="web01", point=session["point"])
    assert {disk["key"]: disk["change_id"] for disk in point["disks"]} == {key: f"{key}-1" for key in sources}
    assert api.getLatestDisk(vm="web01", repository="main", key="2001")["change_id"] == "2001-1"
    assert api.getJobLog(id=job["id"]) is not None

    serve = api.openServe(body={"repository": "main", "vm": "web01"})
    for export in serve["exports"]:
        back = os.path.join(scratch, f"{export['key']}.back")
        run("nbdcopy", psk_uri(scratch, export), back)
        run("cmp", sources[export["key"]], back)
    assert api.getServe(id=serve["id"])["vm"] == "web01"
    api.renewServe(id=serve["id"])
    assert [item["id"] for item in api.all("listServes")] == [serve["id"]]
    api.closeServe(id=serve["id"])
    refused(api.getServe, 404, id=serve["id"])

    assert api.follow(api.createVerification(body={"repository": "main"}))["state"] == "done"
    assert api.getPoint(repo="main", vm="web01", point="latest")["verified"] == "good"
    assert api.protectPoint(repo="main", vm="web01", point=session["point"], body={"until": None})["protected"]
    assert api.follow(api.createPrune(body={"repository": "main", "vm": "web01", "keep": {"last": 1}, "dry_run": True}))["state"] == "done"
    api.unprotectPoint(repo="main", vm="web01", point=session["point"])
    target = os.path.join(scratch, "restored.raw")
    assert api.follow(api.createRestore(body={"repository": "main", "vm": "web01",
                                              "targets": [{"key": "2000", "target": f"raw:{target}"}]}))["state"] == "done"
    run("cmp", sources["2000"], target)
    pulled = api.follow(api.createBackup(body={"repository": "main", "vm": "web02", "disks": [
        {"key": "1", "source": f"raw:{sources['2000']}"}]}))
    assert pulled["state"] == "done" and pulled["progress"]["read"] > 0, pulled
    assert running.repositories["main"] not in json.dumps([*api.all("listJobs"), pulled, job])
    assert api.follow(api.reindexRepository(repo="main"))["state"] == "done"
    assert {item["vm"] for item in api.all("listRepositoryVms", repo="main", limit=1)} == {"web01", "web02"}
    assert api.getRepository(repo="main")["points"] == 2
    actions = {item["action"] for item in api.all("listEvents", limit=5)}
    assert {"openSession", "commitSession", "createBackup"} <= actions, actions


def test_schedules_policies_vms(running):
    """Made, read, replaced when it is still that version, forgotten."""
    api = api_of(running)
    policy = api.createPolicy(body={"id": "gold", "vms": ["web*"], "keep": {"daily": 7}, "objective_s": 86400})
    assert api.getPolicy(id="gold") == policy
    schedule = api.createSchedule(body={"cron": "30 2 * * *", "time_zone": "Europe/Berlin"})
    assert len(api.getScheduleNext(id=schedule["id"], count=3)["items"]) == 3
    read = {"If-Match": api.request("GET", f"/api/v1/schedules/{schedule['id']}")[1]["etag"]}
    assert api.putSchedule(id=schedule["id"], body={**schedule, "enabled": False}, headers=read)["enabled"] is False
    problem = refused(api.putSchedule, 412, "range", id=schedule["id"], body=schedule, headers=read)
    bad_input("REST: PUT of what was changed meanwhile", problem.detail)
    api.putVm(vm="web01", body={"labels": {"tier": "gold"}, "paused": True})
    assert api.getVm(vm="web01")["status"]["policy"] == "gold"
    assert [item["name"] for item in api.all("listVms")] == ["web01"]
    assert api.getStatus()["status"] in ("ok", "warning", "alarm")
    assert b"# TYPE" in api.getMetrics()
    api.deleteVm(vm="web01")
    api.deleteSchedule(id=schedule["id"])
    api.deletePolicy(id="gold")
    assert not list(api.all("listPolicies"))
    refused(api.getSchedule, 404, id=schedule["id"])


def test_made_once(running):
    api = api_of(running)
    body = {"cron": "0 1 * * *"}
    first = api.createSchedule(body=body, headers={"Idempotency-Key": "night"})
    assert api.createSchedule(body=body, headers={"Idempotency-Key": "night"})["id"] == first["id"]
    refused(api.createSchedule, 422, body={"cron": "0 2 * * *"}, headers={"Idempotency-Key": "night"})
    api.createToken(body={"name": "x", "scope": "read"}, headers={"Idempotency-Key": "t"})
    refused(api.createToken, 409, body={"name": "x", "scope": "read"}, headers={"Idempotency-Key": "t"})
    assert len([token for token in api.all("listTokens") if token["name"] == "x"]) == 1

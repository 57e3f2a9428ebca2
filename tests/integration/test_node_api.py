"""The node's API by a client made of its document alone."""

import pytest

import node
import rest_api
import vcenter
from node import PATH, known
from rest_api import Problem


@pytest.fixture
def site(servers, scratch):
    with vcenter.fake_in(scratch) as vc, node.site_in(servers, vc) as made:
        made.start()
        known(made.node)
        yield made


def api_of(n, token=None):
    return rest_api.Api(n.url, token or n.token, n.ca_file, rest_api.document("openapi-node.json"))


def test_the_main_flow(site):
    """Whatever is answered is as the document says."""
    api = api_of(site.node)
    assert api.as_(None).getHealth()["name"] == "node.test"
    assert api.as_(None).getDocument()["info"]["title"] == "Sendense node"
    (seen,) = api.listVcenters()["items"]
    assert seen["state"] == "ok"
    assert api.discover(body={"vcenter": "vc"})["items"] and api.discover()["items"]
    assert PATH in [machine["path"] for machine in api.all("listMachines", limit=1)]
    assert [machine["name"] for machine in api.listMachines(vcenter="vc", name="web0?")["items"]] == ["web01"]
    assert api.listDebts()["items"] == []
    job = api.createBackup(body={"repository": "main", "vcenter": "vc", "machine": PATH, "quiesce": False})
    assert (job["vcenter"], job["machine"]) == ("vc", PATH)
    assert api.follow(job)["state"] == "done"
    assert api.getJob(id=job["id"])["report"]["vm"] == "web01"
    assert api.getJobLog(id=job["id"])
    assert [one["id"] for one in api.all("listJobs", kind="backup", state="done")] == [job["id"]]
    with pytest.raises(Problem) as caught:
        api.retryJob(id=job["id"])
    assert caught.value.status == 409
    job = api.createBackup(body={"repository": "main", "vcenter": "vc", "machine": "/DC0/vm/none"})
    assert api.follow(job)["state"] == "failed"
    again = api.retryJob(id=job["id"])
    assert again["retry_of"] == job["id"] and api.follow(again)["state"] == "failed"
    with pytest.raises(Problem) as caught:
        api.cancelJob(id=job["id"])
    assert caught.value.status == 409
    made = api.createToken(body={"name": "x", "scope": "read"})
    assert made["id"] in [token["id"] for token in api.listTokens()["items"]]
    api.revokeToken(id=made["id"])
    assert "createBackup" in [event["action"] for event in api.all("listEvents")]
    assert b"sendense_build_info" in api.getMetrics()
    assert api.getStatus()["vcenters"][0]["name"] == "vc"


def test_who_may_call_what(site):
    """Every operation with no token, a wrong one, and one of the next smaller scope."""
    admin = api_of(site.node)
    scopes = ["read", "operate", "admin"]
    tokens = {scope: admin.createToken(body={"name": scope, "scope": scope})["token"] for scope in scopes}
    backup = admin.createToken(body={"name": "b", "scope": "backup", "vms": ["db*"]})["token"]
    nr = 0
    for operation in admin.operations.values():
        target = operation.path.format(id="none")
        if operation.scope == "none":
            assert admin.as_(None).request(operation.method, target)[0] == 200
            continue
        assert admin.as_(None).request(operation.method, target)[0] == 401, operation.id
        if operation.scope in ("operate", "admin", "backup"):
            assert admin.as_(tokens["read"]).request(operation.method, target)[0] == 403, operation.id
        if operation.scope == "admin":
            assert admin.as_(tokens["operate"]).request(operation.method, target)[0] == 403, operation.id
        if operation.scope == "operate" or (operation.scope == "read" and not operation.value.get("x-filtered")):
            assert admin.as_(backup).request(operation.method, target)[0] == 403, operation.id
        nr += 1
    assert nr > 15
    assert admin.as_("sdt_" + "x" * 43).request("GET", "/api/v1/jobs")[0] == 401

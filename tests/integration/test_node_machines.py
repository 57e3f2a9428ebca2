"""What a node tells of the machines of its vCenters."""

import os
import time
import urllib.parse

import pytest

import node
import support
import vcenter
from node import known
from support import MIB, sendense, wait_for


@pytest.fixture
def site(servers, scratch):
    with vcenter.fake_in(scratch) as vc, node.site_in(servers, vc) as made:
        yield made


def test_machines(site):
    n = site.node
    secret = os.path.join(n.folder, "wrong")
    with open(os.open(secret, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="ascii") as file:
        file.write("wrong\n")
    n.settings = (f"[vcenter denied]\nurl = {site.vc.url()}\npassword-file = {secret}\nca-file = {site.vc.ca}\n"
                  f"[vcenter gone]\nurl = vmware://user@127.0.0.1:1\npassword-file = {secret}\n")
    site.vc.add_machine("db", {2000: MIB, 2001: {"size": MIB, "mode": "independent_persistent"}}, off=True)
    site.start()
    good, bad = known(n), known(n, "denied")
    assert good["state"] == "ok" and good["error"] is None and good["server"]["fingerprint"]
    assert bad["state"] == "failed" and "password is wrong" in bad["error"]["text"] and bad["machines"] == 0
    support.bad_input("node: a vCenter that does not let it in", bad["error"]["text"])
    everything = n.all("machines")
    assert len(everything) == good["machines"]
    assert [one["path"] for one in everything] == sorted(one["path"] for one in everything)
    (db,) = n.get("machines?name=db&vcenter=vc")["items"]
    assert db["vcenter"] == "vc" and db["power"] == "off" and db["path"] == "/DC0/vm/db"
    assert [(disk["key"], disk["size"], bool(disk["unsupported"])) for disk in db["disks"]] == \
        [("2000", MIB, False), ("2001", MIB, True)]
    (web,) = n.get("machines?name=web*")["items"]
    assert web["cbt"] == {"supported": True, "enabled": True} and web["snapshots"] == []
    # Page by page it is the same.
    pages, after = [], ""
    while after is not None:
        page = n.get("machines?limit=1" + (f"&after={urllib.parse.quote(after)}" if after else ""))
        pages += page["items"]
        after = page["next"]
    assert pages == everything
    assert n.ask("GET", "machines?vcenter=none").status == 404
    assert n.ask("POST", "discover", {"vcenter": "none"}).status == 404
    assert n.ask("POST", "discover", {"x": 1}).status == 422
    # What changed is known after the next look; the version is another one then.
    version = n.ask("GET", "machines").headers["ETag"]
    site.machine.take_snapshot("theirs")
    assert n.ask("POST", "discover", {"vcenter": "vc"}).status == 202
    wait_for(lambda: n.get("machines?name=web01")["items"][0]["snapshots"], "the snapshot to be seen")
    assert n.ask("GET", "machines").headers["ETag"] != version
    assert sendense("vmware", "info", site.vc.url("web01"), "--password-file", site.vc.password_file,
                    "--ca-file", site.vc.ca, "--json").json.items() <= \
        n.get("machines?name=web01")["items"][0].items()


def test_a_vcenter_that_hangs_holds_nobody(site):
    n = site.start().node
    known(n)
    site.vc.held()
    site.vc.fail("*", calls=-1, slow=60)
    n.post("discover")
    wait_for(site.vc.held, "the look")
    assert n.get("vcenters")["items"][0]["looking"] and n.get("machines?name=web01")["items"]
    began = time.monotonic()
    n.stop()
    assert time.monotonic() - began < 20
    site.vc.release()
    site.vc.heal()
    site.vc.expire_sessions()


@pytest.mark.parametrize("before", range(3))
def test_a_vcenter_that_tells_long_reasons_stays_in_the_list(site, before):
    """Wherever in a character they are cut."""
    n = site.start().node
    known(n)
    site.vc.fail("RetrievePropertiesEx", calls=-1, fault="SystemError", message="x" * before + "€" * 3000)
    n.post("discover")
    wait_for(lambda: [one["state"] for one in n.get("vcenters")["items"]] == ["failed"], "the look to fail")
    assert "€€€" in n.get("vcenters")["items"][0]["error"]["text"]
    job = n.start_backup(node.PATH)["id"]  # tried again later, since what a server refuses may pass
    wait_for(lambda: n.job(job)["error"], "its first attempt")
    assert "€€€" in n.job(job)["error"]["text"]
    n.post(f"jobs/{job}/cancel")


def test_a_session_is_kept_and_given_back(site):
    n = site.start().node
    known(n)
    site.vc.calls()
    before = n.get("vcenters")["items"][0]["looked"]
    n.post("discover")
    wait_for(lambda: not n.get("vcenters")["items"][0]["looking"] and "RetrievePropertiesEx" in
             [call["method"] for call in site.vc.calls()] or n.get("vcenters")["items"][0]["looked"] > before,
             "the second look")
    assert site.vc.sessions() == 1
    site.vc.expire_sessions()  # it is opened again by the look
    site.machine.take_snapshot("theirs")
    n.post("discover")
    wait_for(lambda: n.get("machines?name=web01")["items"][0]["snapshots"], "the third look")
    assert n.get("vcenters")["items"][0]["state"] == "ok"
    n.stop()
    assert site.vc.sessions() == 0


def test_a_login_that_is_denied_is_not_tried_again_and_again(site):
    """Servers lock accounts after a few."""
    for nr in range(8):
        site.vc.add_machine(f"m{nr}", {2000: MIB})
    n = site.start().node
    before = known(n)
    site.vc.calls()
    site.vc.fail("Login", calls=-1, fault="InvalidLogin")
    # The list is answered; behind it the session has ended.
    site.vc.fail("RetrievePropertiesEx", calls=-1, skip=3, fault="NotAuthenticated")
    n.post("discover")
    wait_for(lambda: known(n)["state"] == "failed" and not known(n)["looking"], "the look")
    assert [call["method"] for call in site.vc.calls()].count("Login") <= 2
    after = known(n)
    assert "password is wrong" in after["error"]["text"] and after["machines"] == before["machines"]
    support.bad_input("node: a password that counts no more", after["error"]["text"])
    site.vc.heal()
    n.post("discover")
    wait_for(lambda: known(n)["state"] == "ok", "the next look")


def test_metrics(site):
    n = site.start().node
    known(n)
    text = n.ask("GET", "/metrics").body.decode()
    for line in ('sendense_vcenter_up{vcenter="vc"} 1', 'sendense_jobs{state="running"} 0', "sendense_debts 0",
                 f'sendense_vcenter_machines{{vcenter="vc"}} {len(n.all("machines"))}'):
        assert line in text.splitlines(), text
    assert n.ask("GET", "/metrics", token=None).status == 401

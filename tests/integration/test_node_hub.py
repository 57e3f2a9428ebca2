"""A node and its hub, from the code to the restore point: a hub's schedule backs up a machine of a test
vCenter by the node, and whoever dies in the middle, it ends well."""

import os
import signal
import stat

import pytest

import hub
import node
import vcenter
from node import PATH, SIZES
from support import SENDENSE, bad_input, run, wait_for

SETTINGS = {"node": "node.test", "vcenter": "vc", "machine": PATH}


class Pair:
    """A hub with one repository, and a node that is enrolled there."""

    def __init__(self, h, site):
        self.h, self.site, self.n = h, site, site.node

    def enrol(self, code=None, **kwargs):
        code = code or self.h.post("nodes/codes", {"name": "node.test"})["code"]
        return run(SENDENSE, "node", "enrol", "--config", self.n.conf, "--hub", self.h.url, "--ca-file", self.h.ca_file,
                   stdin=f"{code}\n".encode(), **kwargs)

    def start_backup(self, **members):
        return self.h.post("backups", {"repository": "main", "vm": "web01", **SETTINGS, **members})

    def link(self):
        """How the node says that the link stands: everybody is told the same, but less."""
        public = self.n.ask("GET", "health", token=None).body["hub"]
        link = self.n.get("status")["hub"]
        assert set(public) == {"state", "since"} and set(link) == {"state", "since", "url", "error", "failed"}
        return link

    def of_node(self, job):
        """The node's own job for one of the hub's."""
        found = [one for one in self.n.all("jobs") if one.get("hub_job") == job["id"]]
        assert len(found) <= 1, found
        return found[0] if found else None

    def ended_well(self, job):
        """One restore point, which is what the disks hold, and nothing left anywhere."""
        ended = self.h.wait(job, timeout=120)
        assert [point["point"] for point in self.h.points("web01")] == [ended["point"]]
        images = self.h.point_images("web01")
        for key, path in self.site.machine.disks.items():
            assert hub.compare(images[str(key)], path), key
        assert self.site.is_clean()
        wait_for(lambda: not self.n.open_jobs() and not self.h.open_jobs() and not self.h.get("sessions")["items"],
                 "the ends of all jobs and sessions")
        return ended


@pytest.fixture
def pair(servers, scratch):
    with vcenter.fake_in(scratch) as vc, hub.hub_in(servers) as h, node.site_in(servers, vc, repositories=()) as site:
        h.start()
        h.stay_at_port()
        site.node.init()
        made = Pair(h, site)
        made.enrol()
        yield made


def test_a_code_becomes_a_token(pair):
    """As people do it; what is wrong is told, and changes nothing."""
    h, n = pair.h, pair.n
    token_file = f"{n.state}/hub.token"
    assert stat.S_IMODE(os.stat(token_file).st_mode) == 0o600
    with open(n.conf, encoding="ascii") as file:
        conf = file.read()
    with open(token_file, encoding="ascii") as file:
        token = file.read()
    assert f"[hub]\nurl = {h.url}\n" in conf and f"[repository main]\nurl = {h.url}/main\n" in conf
    assert token.strip() not in conf and "wrong" not in conf
    run(SENDENSE, "node", "check-config", "--config", n.conf)
    code = h.post("nodes/codes", {"name": "node.test"})["code"]
    for case, given in [("a wrong code", "00000-00000-00000-00000"), ("no code", "")]:
        failed = pair.enrol(given or " ", status=None)
        assert failed.status != 0
        bad_input(f"node enrol: {case}", failed.err)
    with open(n.conf, encoding="ascii") as file, open(token_file, encoding="ascii") as kept:
        assert file.read() == conf and kept.read() == token
    # Once more, with another code: another token, the same settings.
    assert code not in pair.enrol(code).out
    bad = pair.enrol(code, status=None)
    assert bad.status != 0 and "another one" in bad.err
    bad_input("node enrol: a code used twice", bad.err)
    assert "--token-file" not in bad.err
    with open(n.conf, encoding="ascii") as file, open(token_file, encoding="ascii") as kept:
        assert file.read() == conf and kept.read() not in (token, "")


def test_the_hubs_schedule(pair):
    h, n = pair.h, pair.n
    h.post("schedules", {"id": "hourly", "cron": "59 * * * *"})
    h.post("policies", {"id": "all", "vms": ["*"], "schedules": ["hourly"], "keep": {"last": 5}})
    h.call("PUT", "vms/web01", SETTINGS)
    wait_for(lambda: hub.runs_in_state(h, "hourly"), "the schedule to know of it")
    pair.site.start()
    h.stop()
    hub.was_down(h, "hourly", 7200)
    h.start()
    wait_for(lambda: h.all("jobs?kind=backup"), "the schedule's job")
    job = pair.ended_well(h.all("jobs?kind=backup")[0])
    assert job["requested_by"] == "schedule hourly" and job["node"] == "node.test"
    assert job["report"]["vm"] == "web01" and job["progress"]["logical"] > 0
    own = pair.of_node(job)
    assert own["state"] == "done" and own["requested_by"] == "hub"
    assert (pair.link()["state"], pair.n.get("status")["vcenters"][0]["name"]) == ("connected", "vc")
    assert h.get("nodes/node.test")["state"] == "alive" and h.get("status")["alarms"] == []
    run("grep", "-rq", job["id"], f"{h.repositories['main']}/vms/web01/points")
    # The next one is incremental.
    for key in SIZES:
        pair.site.guest_writes(key, 2)
    done = h.wait(pair.start_backup(mode="incremental"), timeout=120)
    assert {disk["mode"] for disk in done["report"]["disks"]} == {"incremental"}
    assert len(h.points("web01")) == 2


def test_work_that_cannot_be_done(pair):
    pair.site.start()
    for case, change, word in [("an unknown vCenter", {"vcenter": "other"}, "vcenter"),
                               ("a machine that is not there", {"machine": "/DC0/vm/nobody"}, "nobody")]:
        ended = pair.h.wait(pair.start_backup(**change), "failed", timeout=120)
        assert word in ended["error"]["text"], ended
        bad_input(f"work for a node: {case}", ended["error"]["text"])
    assert pair.site.is_clean()


def test_cancelled_at_the_hub(pair):
    site = pair.site.start()
    job = site.until_it_reads(pair.start_backup, asked=pair.h)
    pair.h.post(f"jobs/{job['id']}/cancel")
    pair.h.wait(job, "cancelled", timeout=120)
    assert site.is_clean()
    wait_for(lambda: pair.of_node(job)["state"] == "cancelled", "the node's own")


@pytest.mark.parametrize("who", ["hub", "node", "worker", "node and worker", "all"])
def test_killed_in_the_middle(pair, who):
    site, h, n = pair.site.start(), pair.h, pair.n
    job = site.until_it_reads(pair.start_backup, asked=pair.h)
    if who in ("node", "node and worker", "all"):
        n.kill()
    if who in ("worker", "node and worker", "all"):
        for pid in n.workers():
            os.kill(pid, signal.SIGKILL)
    if who in ("hub", "all"):
        h.kill()
        h.start()
    if not n.process.running:
        site.start()
    pair.ended_well(job)
    assert pair.of_node(job)


def test_the_hub_is_away(pair):
    """With all that it had open: the worker waits for it, and goes on with what was sent."""
    site, h = pair.site.start(), pair.h
    job = site.until_it_reads(pair.start_backup, asked=h)
    service = h.nbd_service()
    h.kill()
    os.kill(service, signal.SIGKILL)
    wait_for(lambda: pair.link()["state"] == "lost", "the node to notice")
    told = pair.link()
    assert told["error"]["code"] in ("disconnected", "io") and told["url"] == h.url, told
    assert "gives no work" in pair.n.process.err
    assert pair.of_node(job)["state"] not in hub.ENDS
    h.start()
    pair.ended_well(job)
    assert "answers again" in pair.n.process.err
    again = pair.link()
    assert again["state"] == "connected" and again["since"] >= told["since"]
    assert again["error"] and again["failed"] >= told["failed"]


def test_taken_out(pair):
    site, h = pair.site.start(), pair.h
    job = site.until_it_reads(pair.start_backup, asked=pair.h)
    h.call("DELETE", "nodes/node.test")
    assert "taken out" in h.wait(job, "failed")["error"]["text"]
    wait_for(lambda: pair.of_node(job)["state"] in hub.ENDS, "the node's own", timeout=120)
    assert pair.of_node(job)["state"] == "cancelled" and site.is_clean()
    told = [line for line in pair.n.process.err.splitlines() if "refuses this node's token" in line]
    assert len(told) == 1 and "node enrol" in told[0], pair.n.process.err
    assert pair.link()["state"] == "refused" and pair.link()["error"]["code"] == "denied"
    bad_input("a node that was taken out", told[0])
    assert [one for one in pair.n.all("events") if one["action"] == "node.refused"]
    assert h.ask("GET", "repositories/main/vms/web01/points").status == 404 or h.points("web01") == []
    # Enrolled again, it goes on.
    pair.enrol()
    wait_for(lambda: pair.link()["state"] == "connected", "the node to be known again")
    pair.ended_well(pair.start_backup())


def test_enrolled_anew_at_work(pair):
    """Its token is another one from one call to the next: nothing is lost."""
    job = pair.site.start().until_it_reads(pair.start_backup, asked=pair.h)
    pair.enrol()
    pair.ended_well(job)
    assert "refuses this node's token" not in pair.n.process.err

"""Push sessions and serves, by other people's clients and by hand."""

import os
import resource
import signal

import pytest

import hub
import support
from support import KIB, MIB, bad_input, make_disk, run, wait_for


@pytest.fixture
def h(servers):
    with hub.hub_in(servers) as made:
        yield made.start()


def write_pieces(path, pieces, seed):
    """Changes a raw file in place."""
    import random  # pylint: disable=import-outside-toplevel
    rng = random.Random(seed)
    with open(path, "r+b") as file:
        for offset, length in pieces:
            file.seek(offset)
            file.write(rng.randbytes(length))


def test_a_session_by_nbdcopy(h, scratch):
    disks = {"2000": make_disk(f"{scratch}/a.raw", 16 * MIB, [(0, 3 * MIB, "random")]),
             "2001": make_disk(f"{scratch}/b.raw", 8 * MIB + 512, [(MIB, MIB, "text")], seed=2)}
    job = h.push("web01", disks)
    assert job["kind"] == "push" and job["point"]
    images = h.point_images("web01")
    for key, disk in disks.items():
        assert hub.compare(images[key], disk)
    point = h.points("web01")[-1]
    assert point["point"] == job["point"]
    assert h.wait(h.post("verifications", {"repository": "main", "vm": "web01"}))["state"] == "done"
    assert h.get("sessions")["items"] == []


def test_what_is_told_of_a_session(h):
    session = h.open_session("web01", {"2000": MIB, "2001": 2 * MIB}, lease_s=60)
    names = {disk["export"]["name"] for disk in session["disks"]}
    assert len(names) == 2 and all(len(name) == 32 for name in names)
    assert all(disk["export"]["tls"]["psk"] for disk in session["disks"])
    shown = h.get(f"sessions/{session['id']}")
    assert shown["state"] == "open" and shown["vm"] == "web01"
    assert not any(name in str(shown) for name in names)
    job = h.job(session["job"])
    assert job["state"] == "running" and job["kind"] == "push" and job["vm"] == "web01"
    assert h.post(f"sessions/{session['id']}/heartbeat")["lease_left_s"] <= 60
    assert [s["id"] for s in h.get("sessions")["items"]] == [session["id"]]
    h.call("DELETE", f"sessions/{session['id']}")
    assert h.wait(session["job"], "cancelled")["error"]["code"] == "cancelled"
    assert h.ask("GET", f"sessions/{session['id']}").status == 404


BAD = [
    ("no disks", {"disks": []}, 422),
    ("a disk twice", {"disks": [{"key": "1", "size_bytes": MIB}, {"key": "1", "size_bytes": MIB}]}, None),
    ("a key that is none", {"disks": [{"key": "../x", "size_bytes": MIB}]}, None),
    ("a size of zero", {"disks": [{"key": "1", "size_bytes": 0}]}, 422),
    ("a huge size", {"disks": [{"key": "1", "size_bytes": 2 ** 63}]}, None),
    ("an unknown member", {"password": "x"}, 422),
    ("an unknown member of a disk", {"disks": [{"key": "1", "size_bytes": MIB, "path": "/"}]}, 422),
    ("a VM with a control character", {"vm": "a\nb"}, None),
    ("a repository that is not there", {"repository": "other"}, 404),
    ("another protocol", {"client": {"software": "x", "protocol": 99}}, None),
    ("must be resumed, and there is nothing", {"resume": "must"}, None),
    ("must be incremental, and there is no parent", {"mode": "incremental"}, None),
]


@pytest.mark.parametrize("case, change, status", BAD, ids=[row[0] for row in BAD])
def test_bad_sessions_are_refused_and_leave_nothing(h, case, change, status):
    body = {"repository": "main", "vm": "web01", "disks": [{"key": "1", "size_bytes": MIB}],
            "client": {"software": "test"}, **change}
    answer = h.ask("POST", "sessions", body)
    assert answer.status == status if status else 400 <= answer.status < 500, (answer.status, answer.body)
    assert answer.body["detail"]
    bad_input(f"hub: a session with {case}", answer.body["detail"])
    assert h.get("sessions")["items"] == []
    assert h.open_jobs() == []
    assert h.ask("GET", "health").body["status"] == "ok"


def test_one_push_more_than_there_are_places(servers, scratch):
    """It is told when to come again; our own client waits, and says so."""
    with hub.hub_in(servers, settings="[limits]\njobs = 1\n") as h:
        h.start()
        disk = make_disk(f"{scratch}/a.raw", MIB, [(0, MIB, "random")])
        session = h.open_session("web01", {"2000": MIB})
        answer = h.ask("POST", "sessions", {"repository": "main", "vm": "web02", "client": {"software": "test"},
                                            "disks": [{"key": "1", "size_bytes": MIB}]})
        assert (answer.status, answer.body["code"]) == (409, "busy"), answer.body
        assert int(answer.headers["Retry-After"]) > 0 and "of at most 1" in answer.body["detail"]
        bad_input("hub: one push more than there are places", answer.body["detail"])
        assert len(h.open_jobs()) == 1
        words = ("backup", "--vm", "web03", f"--disk=2000=raw:{disk}", "--json")
        assert "of at most 1" in hub.cli(h, *words, "--wait=0s", status=1).message
        client = servers.start(support.SENDENSE, "backup", "--repo", h.url, "--token-file", h.token_file,
                               "--ca-file", h.ca_file, *words[1:], name="client")
        wait_for(lambda: "waiting for a place at the hub" in client.err, "its word")
        h.call("DELETE", f"sessions/{session['id']}")
        assert client.wait() == 0, client.err
        assert hub.compare(h.point_images("web03")["2000"], disk)


def test_a_vm_whose_backup_runs(h):
    session = h.open_session("web01", {"2000": MIB})
    with pytest.raises(hub.Refused) as refused:
        h.open_session("web01", {"2000": MIB})
    assert refused.value.status == 409 and refused.value.body["code"] == "busy"
    bad_input("hub: a session for a VM whose backup runs", refused.value.detail)
    h.open_session("web02", {"2000": MIB})
    h.call("DELETE", f"sessions/{session['id']}")
    h.wait(session["job"], None)
    h.open_session("web01", {"2000": MIB})


def test_a_committed_session_takes_nothing_more(h, scratch):
    disk = make_disk(f"{scratch}/a.raw", 4 * MIB, [(0, MIB, "random")])
    session = h.open_session("web01", {"2000": 4 * MIB})
    export = session["disks"][0]["export"]
    h.write(export, disk)
    h.commit(session)
    late = run("nbdcopy", disk, h.uri(export), status=None)
    assert late.status != 0
    answer = h.ask("POST", f"sessions/{session['id']}/commit", {"disks": [{"key": "2000"}]})
    assert answer.status == 404
    assert hub.compare(h.point_images("web01")["2000"], disk)


def test_a_wrong_digest_is_refused_by_its_disk(h, scratch):
    disk = make_disk(f"{scratch}/a.raw", 4 * MIB, [(0, MIB, "random")])
    session = h.open_session("web01", {"2000": 4 * MIB, "2001": 4 * MIB}, digest="required")
    for one in session["disks"]:
        h.write(one["export"], disk)
    answer = h.ask("POST", f"sessions/{session['id']}/commit",
                   {"disks": [{"key": "2000"}, {"key": "2001"}]})
    assert 400 <= answer.status < 500 and "digest" in answer.body["detail"]
    wrong = {"digest": {"kind": "root", "hex": "00" * 32}}
    job = h.commit(session, "failed", **{"2000": wrong, "2001": wrong})
    assert "2000" in job["error"]["text"] or "2001" in job["error"]["text"]
    assert h.ask("GET", "repositories/main/vms/web01/points").status == 404 or h.points("web01") == []


def test_a_client_that_vanished(h, scratch):
    disk = make_disk(f"{scratch}/a.raw", 4 * MIB, [(0, 2 * MIB, "random")])
    one = {"key": "2000", "size_bytes": 4 * MIB, "source_state": "frozen 1"}
    session = h.open_session("web01", {"2000": one}, lease_s=10)
    h.write(session["disks"][0]["export"], disk)
    job = h.wait(session["job"], "failed", timeout=60)
    assert job["error"]["code"] == "timeout" and "lease" in job["error"]["text"]
    # (Who sends no digest has to say that he means to go on.)
    again = h.open_session("web01", {"2000": one}, resume="auto")
    assert again["disks"][0]["resumed"] == "resumed" and again["disks"][0]["kept_bytes"] > 0
    h.write(again["disks"][0]["export"], disk)
    h.commit(again)
    assert hub.compare(h.point_images("web01")["2000"], disk)


def test_a_push_that_gave_up_because_writes_failed_has_failed(h, scratch):
    disk = make_disk(f"{scratch}/a.raw", 16 * MIB, [(0, 12 * MIB, "random")])
    old = resource.prlimit(h.nbd_service(), resource.RLIMIT_FSIZE, (4 * MIB, resource.RLIM_INFINITY))
    refused = hub.cli(h, "backup", "--vm", "web01", f"raw:{disk}", status=1)
    resource.prlimit(h.nbd_service(), resource.RLIMIT_FSIZE, old)
    assert "no restore point was made" in refused.err
    job = h.get("jobs?vm=web01")["items"][0]
    assert h.wait(job, "failed")["error"]["code"] == "no-space"
    assert "File too large" in h.job(job["id"])["error"]["text"]
    wait_for(lambda: h.get("status")["alarms"], "an alarm")
    alarm = h.get("status")["alarms"][0]
    assert (alarm["kind"], alarm["vm"]) == ("failed", "web01")
    hub.cli(h, "backup", "--vm", "web01", f"raw:{disk}")
    wait_for(lambda: not h.get("status")["alarms"], "the alarm's end")


def test_serves(h, scratch):
    disk = make_disk(f"{scratch}/a.raw", 8 * MIB, [(MIB, 2 * MIB, "random")])
    h.push("web01", {"2000": disk})
    serve = h.post("serves", {"repository": "main", "vm": "web01"})
    uri = h.uri(serve["exports"][0])
    run("nbdcopy", uri, f"{scratch}/back.raw")
    assert support.same_content(f"{scratch}/back.raw", "raw", disk, "raw")
    assert [s["id"] for s in h.get("serves")["items"]] == [serve["id"]]
    assert serve["exports"][0]["name"] not in str(h.get(f"serves/{serve['id']}"))
    h.call("DELETE", f"serves/{serve['id']}")
    assert run("nbdinfo", uri, status=None).status != 0
    assert h.ask("DELETE", f"serves/{serve['id']}").status == 404
    answer = h.ask("POST", "serves", {"repository": "main", "vm": "nobody"})
    assert answer.status == 404
    bad_input("hub: a serve of a VM that is not there", answer.body["detail"])


# --- deaths -----------------------------------------------------------------------------------


def test_the_hub_dies_while_a_session_is_open(h, scratch):
    disk = make_disk(f"{scratch}/a.raw", 8 * MIB, [(0, 4 * MIB, "random")])
    session = h.open_session("web01", {"2000": 8 * MIB})
    h.kill()
    h.write(session["disks"][0]["export"], disk)
    h.start()
    assert h.get(f"sessions/{session['id']}")["state"] == "open"
    h.commit(session)
    assert hub.compare(h.point_images("web01")["2000"], disk)


def test_the_nbd_service_dies_while_a_session_is_open(h, scratch):
    disk = make_disk(f"{scratch}/a.raw", 8 * MIB, [(0, 4 * MIB, "random")])
    session = h.open_session("web01", {"2000": 8 * MIB})
    h.write(session["disks"][0]["export"], disk)
    os.kill(h.nbd_service(), signal.SIGKILL)
    job = h.wait(session["job"], "failed")
    assert "NBD service" in job["error"]["text"]
    wait_for(lambda: h.get("health")["status"] == "ok", "the NBD service")
    again = h.open_session("web01", {"2000": 8 * MIB})
    h.write(again["disks"][0]["export"], disk)
    h.commit(again)
    assert hub.compare(h.point_images("web01")["2000"], disk)


def test_both_die_and_the_runtime_folder_is_gone(h, scratch):
    """As after a power cut."""
    import shutil  # pylint: disable=import-outside-toplevel
    disk = make_disk(f"{scratch}/a.raw", 8 * MIB, [(0, 4 * MIB, "random")])
    session = h.open_session("web01", {"2000": 8 * MIB})
    h.write(session["disks"][0]["export"], disk)
    service = h.nbd_service()
    h.kill()
    os.kill(service, signal.SIGKILL)
    wait_for(lambda: not hub.pids_of(h.runtime), "the NBD service's end")
    shutil.rmtree(h.runtime)
    h.start()
    h.wait(session["job"], "failed")
    assert h.get("sessions")["items"] == []
    h.push("web01", {"2000": disk})
    assert hub.compare(h.point_images("web01")["2000"], disk)


def test_a_change_between_two_pushes(h, scratch):
    disk = make_disk(f"{scratch}/a.raw", 8 * MIB, [(0, 4 * MIB, "random")])
    h.push("web01", {"2000": disk})
    write_pieces(disk, [(5 * MIB, 300 * KIB)], 7)
    h.push("web01", {"2000": disk})
    assert len(h.points("web01")) == 2
    assert hub.compare(h.point_images("web01")["2000"], disk)


def test_what_became_of_a_session_is_asked_until_the_repository_is_back(h, scratch):
    disk = make_disk(f"{scratch}/a.raw", 4 * MIB, [(0, MIB, "random")])
    session = h.open_session("web01", {"2000": 4 * MIB})
    h.write(session["disks"][0]["export"], disk)
    service = h.nbd_service()
    h.kill()
    os.kill(service, signal.SIGKILL)
    os.rename(h.repositories["main"], h.repositories["main"] + ".away")
    h.start()
    h.process.wait_err("is not known yet")
    assert h.job(session["job"])["state"] == "running"
    os.rename(h.repositories["main"] + ".away", h.repositories["main"])
    h.wait(session["job"], "failed")
    assert h.process.err.count("is not known yet") == 1


def test_heartbeats_are_no_news(h):
    session = h.open_session("web01", {"2000": MIB})
    h.post(f"sessions/{session['id']}/heartbeat")
    h.call("DELETE", f"sessions/{session['id']}")
    actions = [event["action"] for event in h.all("events")]
    assert "openSession" in actions and "closeSession" in actions and "renewSession" not in actions

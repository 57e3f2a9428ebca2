"""What an attacker would try against a hub, each as the one that he is: a stranger on the network, the
holder of a small token, somebody who can write where sources lie, a hub that lies to its client."""

import contextlib
import json
import os
import socket
import time

import pytest

import hub
import support
from support import MIB, make_disk, run


@pytest.fixture(name="h")
def hub_fixture(servers):
    with hub.hub_in(servers) as made:
        yield made


def image_on(path, backing, form):
    """An image of a sector whose content is another file's."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", form, path, "512")
    return path


# --- somebody who can write where sources lie ------------------------------------------------------


def test_an_image_does_not_lead_to_the_hubs_own_files(servers):
    """Not by the file that it stands on, nor by one further down; here all of the folder is allowed."""
    support.need("qemu-img")
    with hub.hub_in(servers, allow=[]) as h:
        h.allow = [f"source = qcow2:{h.folder}/"]
        h.start()
        disk = make_disk(os.path.join(h.folder, "plain.raw"), MIB, [(0, MIB, "text")])
        good = image_on(f"{h.folder}/good.qcow2", "plain.raw", "raw")
        h.backup("web01", {"2000": f"qcow2:{good}"})
        inside = os.path.relpath(list(h.point_images("web01").values())[0], h.folder)
        evil = [image_on(f"{h.folder}/token.qcow2", "state/admin.token", "raw"),
                image_on(f"{h.folder}/settings.qcow2", h.conf, "raw"),
                image_on(f"{h.folder}/repository.qcow2", inside, "qcow2")]
        evil.append(image_on(f"{h.folder}/far.qcow2", evil[0], "qcow2"))
        os.symlink("state/state.db", f"{h.folder}/link.raw")
        evil.append(image_on(f"{h.folder}/link.qcow2", "link.raw", "raw"))
        for number, path in enumerate(evil):
            job = h.wait(h.start_backup(f"thief{number}", {"2000": f"qcow2:{path}"}), "failed")
            assert job["error"]["code"] == "denied", (path, job["error"])
            assert h.ask("GET", f"repositories/main/vms/thief{number}/points").status == 404
        assert disk


def test_a_state_folder_that_others_may_write_to_is_not_taken(servers):
    """They might have put a CA there, to which they have the key."""
    folder = os.path.join(servers.folder, "state")
    words = ["hub", "init", "--config", f"{servers.folder}/hub.conf", "--state-dir", folder]
    os.mkdir(folder)
    os.chmod(folder, 0o777)
    support.fails(*words, case="hub: init into a folder that all may write to", contains="chmod 700")
    assert os.listdir(folder) == [] and not os.path.exists(f"{servers.folder}/hub.conf")
    os.chmod(folder, 0o700)
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
        support.fails(*words, contains="belongs to uid 65534")
        os.chown(folder, 0, 0)
    support.sendense(*words, "--quiet")


# --- the holder of a small token --------------------------------------------------------------------


def test_a_backup_token_keeps_nobody_waiting(h):
    """What a job is said to take, others leave free."""
    h.start()
    disk = make_disk(os.path.join(h.folder, "disk.raw"), MIB)
    token = h.make_token("backup", vms=["web01"])
    body = {"repository": "main", "vm": "web01", "disks": [{"key": "1", "source": f"raw:{disk}"}]}
    answer = h.ask("POST", "backups", {**body, "reserve_bytes": 2 ** 62}, token=token)
    assert answer.status == 403 and "reserve_bytes" in answer.body["detail"]
    # Nor does it pass for what the schedule began.
    for member in ("schedule", "policy", "requested_by", "kind"):
        assert h.ask("POST", "backups", {**body, member: "night"}, token=token).status in (400, 422)
    assert h.wait(h.post("backups", body, token=token))["requested_by"] == "token test backup"


def test_what_was_done_is_found_however_its_path_was_written(h):
    h.start()
    h.call("PUT", "vms/%77eb%30%31", {"labels": {}})
    assert [event["action"] for event in h.get("events?object=/api/v1/vms/web01")["items"]] == ["putVm"]


def test_the_queue_has_an_end(servers):
    """For one who asks without end; for others there is room."""
    with hub.hub_in(servers, settings="[limits]\njobs = 1\n") as h:
        h.start()
        disk = make_disk(os.path.join(h.folder, "disk.raw"), MIB)
        token = h.make_token("backup", vms=["web*"])
        connection = h.connect()
        body = {"repository": "main", "disks": [{"key": "1", "source": f"raw:{disk}"}]}
        for number in range(800):
            connection.request("POST", "/api/v1/backups", body=json.dumps({**body, "vm": f"web{number}"}), headers={
                "Authorization": f"Bearer {token}", "Content-Type": "application/json"})
            answer = connection.getresponse()
            told = json.loads(answer.read())
            if answer.status != 202:
                break
        connection.close()
        assert answer.status == 409 and told["code"] == "busy" and "the most" in told["detail"], told
        support.bad_input("hub: a token that asks for jobs without end", told["detail"])
        assert number >= 500
        assert h.post("backups", {**body, "vm": "db01"})["state"] == "queued"


def test_the_status_tells_no_path(h):
    h.init()
    where = h.repositories["main"]
    with open(h.conf, encoding="utf-8") as file:
        conf = file.read()
    with open(h.conf, "w", encoding="utf-8") as file:
        file.write(conf.replace(f"path = {where}", f"path = {where}\nwarn-free = 900TiB"))
    h.start()
    support.wait_for(lambda: h.get("status")["alarms"], "the alarm")
    tokens = [h.make_token("backup", vms=["web01"]), h.make_token("read")]
    for token in tokens:
        said = h.get("status", token=token)
        assert said["repositories"][0]["state"] == "low" and where not in str(said), said
    # Whose machine it is that is next is no business of another one.
    assert "next_run" not in h.get("status", token=tokens[0])


# --- a stranger on the network ------------------------------------------------------------------------


def test_many_that_say_nothing_keep_no_push_out(h):
    h.start()
    host, port = h.nbd.rsplit(":", 1)
    disk = make_disk(os.path.join(h.folder, "disk.raw"), MIB)
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            silent = stack.enter_context(socket.socket())
            silent.setblocking(False)
            silent.connect_ex((host, int(port)))
        session = h.open_session("web01", {"1": MIB})
        began = time.monotonic()
        h.write(session["disks"][0]["export"], disk)
        took = time.monotonic() - began
    h.commit(session)
    print(f"security: a push beside 400 silent connections waited {took:.1f} s")
    assert took < 20


# --- who tells lies -----------------------------------------------------------------------------------

ESCAPES = "\x1b]0;title\x07\x9b31m\r\nsendense: all is well"


def test_nothing_that_is_told_reaches_the_terminal_as_a_command(h):
    """What a client said of itself and its disks, shown by ls to somebody else, and in the hub's log."""
    h.start()
    disk = {"key": "1", "size_bytes": MIB, "change_id": ESCAPES, "new_bitmap": ESCAPES, "source_state": ESCAPES,
            "unusable": ESCAPES, "source": {"kind": "push", "label": ESCAPES, "identity": {ESCAPES: ESCAPES}}}
    session = h.post("sessions", {
        "repository": "main", "vm": "web01", "disks": [disk], "digest": "optional", "consistency": "crash",
        "client": {"software": ESCAPES, "build": ESCAPES}, "consistency_reason": ESCAPES})
    point = h.commit(session)["point"]
    for words in (["ls", "--repo", h.repositories["main"], f"web01@{point}"],
                  ["ls", "--repo", h.repositories["main"], "web01"]):
        said = run(support.SENDENSE, *words).out
        assert point in said
        for bad in "\x1b\x07\x9b\r":
            assert bad not in said, said
        assert "\nsendense: all is well" not in said
    assert "\x1b" not in h.process.err and "\nsendense: all is well" not in h.process.err

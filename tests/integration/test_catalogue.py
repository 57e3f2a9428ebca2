"""The index of the catalogue against what "sendense ls" reads from the repository itself; looked at with
the sqlite3 program."""

import glob
import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from support import MIB, SENDENSE, bad_input, fails, make_disk, need, run, sendense, wait_for


@pytest.fixture
def repo(scratch):
    need("sqlite3")
    sendense("repo", "init", f"{scratch}/r", "--quiet")
    make_disk(f"{scratch}/a.raw", MIB, [(0, 65536, "random")])
    return f"{scratch}/r"


def backup(scratch, vm):
    with open(f"{scratch}/a.raw", "r+b") as disk:
        disk.seek(random.randrange(16) * 65536)
        disk.write(os.urandom(512))
    return sendense("backup", "--repo", f"{scratch}/r", "--vm", vm, "--quiet", "--json",
                    f"raw:{scratch}/a.raw").json["point"]


def reindex(scratch, *options, status=0):
    return sendense("repo", "reindex", f"{scratch}/r", "--index", f"{scratch}/i.db", "--name", "main", "--json",
                    *options, status=status).json


def sqlite(scratch, sql):
    out = run("sqlite3", "-readonly", "-json", f"{scratch}/i.db", sql).out
    return json.loads(out) if out.strip() else []


def indexed(scratch):
    """{vm: [points as JSON, by time]}, as the index has them."""
    found = {row["name"]: [] for row in sqlite(scratch, "SELECT name FROM vm WHERE repository = 'main'")}
    for row in sqlite(scratch, "SELECT vm, value FROM point WHERE repository = 'main' ORDER BY id"):
        found[row["vm"]].append(json.loads(row["value"]))
    return found


def listed(scratch):
    """The same, as it is read from the manifests."""
    vms = sendense("ls", "--repo", f"{scratch}/r", "--json").json["vms"]
    return {vm["vm"]: sendense("ls", "--repo", f"{scratch}/r", vm["vm"], "--json").json["points"] for vm in vms}


def age(scratch, offset=0):
    """As if all had been written long ago, so that marks count."""
    for folder in glob.glob(f"{scratch}/r/vms/*/points/*"):
        then = os.stat(folder).st_mtime
        if time.time() - then < 1000:
            os.utime(folder, (then - 10000 - offset, then - 10000 - offset))


def test_follows_the_repository(scratch, repo):
    """Random backups, prunes, verifications, protections, losses: after each the index says what ls says."""
    rng = random.Random(4)
    vms = ["web", "b\u00fcr\u00f6/1", "db"]
    points = {vm: [backup(scratch, vm) for _ in range(3)] for vm in vms}
    assert reindex(scratch) == {"vms": 3, "points": 9, "read": 9, "gone": 0, "damaged": 0}
    assert indexed(scratch) == listed(scratch)
    age(scratch)
    reindex(scratch)
    for step in range(8):
        vm = rng.choice(vms)
        action = rng.choice(("backup", "prune", "verify", "protect", "unprotect", "nothing"))
        if action == "backup":
            points[vm].append(backup(scratch, vm))
        elif action == "prune":
            sendense("prune", "--repo", repo, vm, "--keep-last", rng.choice("23"), "--quiet")
        elif action == "verify":
            sendense("verify", "--repo", repo, vm, "--quiet")
        elif action in ("protect", "unprotect"):
            alive = listed(scratch)[vm]
            sendense("protect", "--repo", repo, f"{vm}@{rng.choice(alive)['point']}", "--quiet",
                     *(["--off"] if action == "unprotect" else []))
        age(scratch, step)
        if step % 4 == 3:
            os.unlink(f"{scratch}/i.db")
        result = reindex(scratch)
        truth = listed(scratch)
        assert indexed(scratch) == truth, (step, action, vm)
        assert result["points"] == sum(len(p) for p in truth.values())
        if action == "nothing" and step % 4 != 3:
            assert result["read"] == 0
    # What did not change is not read.
    assert reindex(scratch)["read"] == 0
    assert reindex(scratch, "--all")["read"] == reindex(scratch)["points"]
    shutil.rmtree(f"{repo}/vms/web")
    gone = reindex(scratch)
    assert gone["vms"] == 2
    assert indexed(scratch) == listed(scratch)


def test_damaged_manifest(scratch, repo):
    first, second = backup(scratch, "web"), backup(scratch, "web")
    path = f"{repo}/vms/web/points/{first}/manifest.json"
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace("raw", "row"))
    assert reindex(scratch, status=3)["damaged"] == 1
    one, two = indexed(scratch)["web"]
    assert one["point"] == first and "damage" in one and two["point"] == second
    bad_input("a damaged manifest, indexed", one["damage"])
    assert sqlite(scratch, "SELECT damaged, size FROM point ORDER BY id") == [
        {"damaged": 1, "size": 0}, {"damaged": 0, "size": MIB}]
    assert sendense("repo", "reindex", repo, "--dry-run", "--json", status=3).json["damaged"] == 1


def test_other_repository_of_that_name(scratch, repo):
    backup(scratch, "web")
    reindex(scratch)
    shutil.rmtree(repo)
    sendense("repo", "init", repo, "--quiet")
    backup(scratch, "db")
    assert reindex(scratch)["vms"] == 1
    assert indexed(scratch) == listed(scratch)


def test_wrong_index(scratch, repo):
    backup(scratch, "web")
    with open(f"{scratch}/i.db", "wb") as file:
        file.write(b"x" * 10000)
    assert reindex(scratch)["points"] == 1
    assert indexed(scratch) == listed(scratch)
    fails("repo", "reindex", repo, "--index", f"{repo}/i.db", "--name", "main", case="an index inside a repository",
          contains="repository")
    fails("repo", "reindex", repo, "--index", f"{scratch}/i.db", status=2, contains="belong together")
    fails("repo", "reindex", repo, "--config", f"{scratch}/none.conf", contains="none.conf")
    fails("repo", "reindex", f"{scratch}/none", "--dry-run", contains="none")


def test_killed(scratch, repo):
    """Killed at any moment: the index is sound, and the next one completes it."""
    for i in range(6):
        for _ in range(2):
            backup(scratch, f"vm-{i}")
    age(scratch)
    command = [SENDENSE, "repo", "reindex", repo, "--index", f"{scratch}/i.db", "--name", "main", "--quiet"]
    for round_ in range(5):
        for left in glob.glob(f"{scratch}/i.db*"):
            os.unlink(left)
        with subprocess.Popen(command) as process:
            # The log grows as it fills the index; each round waits for a little more of it.
            wal = f"{scratch}/i.db-wal"
            wait_for(lambda: process.poll() is not None or
                     (os.path.exists(wal) and os.path.getsize(wal) > round_ * 8192), "the index to grow")
            process.send_signal(signal.SIGKILL)
        if os.path.exists(f"{scratch}/i.db"):
            reindex(scratch)
            assert run("sqlite3", "-readonly", f"{scratch}/i.db", "PRAGMA integrity_check").out == "ok\n"
            assert indexed(scratch) == listed(scratch)


def test_hub_folder_is_known(scratch, repo):
    """Copies of a hub's state are no foreign files; what else lies there is."""
    os.makedirs(f"{repo}/hub/main")
    for name in ("state.db", "state.db.1", "state.db.2"):
        shutil.copy(f"{scratch}/a.raw", f"{repo}/hub/main/{name}")
    sendense("repo", "check", repo, "--quiet")
    with open(f"{repo}/hub/main/notes.txt", "w", encoding="utf-8"):
        pass
    found = sendense("repo", "check", repo, "--json", status=3).json
    assert [f["file"] for f in found["findings"]] == ["hub/main/notes.txt"]

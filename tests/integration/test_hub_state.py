"""What the hub alone knows: copied into repositories, exported, imported, damaged; and its index beside
what is done from the command line."""

import glob
import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
import time

import pytest

import hub
from support import MIB, fails, make_disk, need, run, sendense, wait_for


@pytest.fixture
def h(servers):
    need("sqlite3")
    with hub.hub_in(servers, tls=False) as made:
        yield made


@pytest.fixture
def exported(h, scratch):
    """A hub that ran, has a token of its own, and was exported while it ran."""
    h.start()
    h.make_token("read")
    out = f"{scratch}/hub.tar"
    sendense("hub", "export", "--config", h.conf, out)
    h.stop()
    return out


def tree(folder):
    """{path: (mode, digest)} of all files."""
    found = {}
    for top, folders, files in os.walk(folder):
        assert all(stat.S_IMODE(os.stat(os.path.join(top, f)).st_mode) == 0o700 for f in folders)
        for name in files:
            path = os.path.join(top, name)
            with open(path, "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
            found[os.path.relpath(path, folder)] = (stat.S_IMODE(os.stat(path).st_mode), digest)
    return found


def repack(source, target, change):
    """The archive with change(name, bytes) -> bytes, None (left out) or a list of (name, bytes)."""
    with tarfile.open(source) as old, tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as new:
        for member in old:
            content = change(member.name, old.extractfile(member).read())
            for name, data in content if isinstance(content, list) else [(member.name, content)]:
                if data is not None:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    new.addfile(info, io.BytesIO(data))


def in_list(text, edit):
    """export.json after edit(its object)."""
    value = json.loads(text)
    edit(value)
    return json.dumps(value).encode()


# --- export and import -------------------------------------------------------------------


def test_export_is_a_tar_that_others_read(exported):
    assert stat.S_IMODE(os.stat(exported).st_mode) == 0o600
    names = run("tar", "tf", exported).out.split()
    assert names[:2] == ["export.json", "state.db"]
    assert {"hub.conf", "admin.token", "tls/ca.key"} <= set(names)
    with tarfile.open(exported) as tar:
        listed = json.load(tar.extractfile("export.json"))
        for file in listed["files"]:
            assert hashlib.sha256(tar.extractfile(file["name"]).read()).hexdigest() == file["sha256"]
            assert os.path.exists(file["path"])
        assert all(member.mode == 0o600 for member in tar)


@pytest.mark.parametrize("there", [False, True])
def test_moved_to_another_machine(h, exported, scratch, there):
    """The folder that an import makes is a hub's: the same tokens, the same schedule."""
    new = f"{scratch}/new"
    if there:
        os.mkdir(new, 0o700)
    before = tree(h.state)
    sendense("hub", "import", exported, "--state-dir", new)
    after = tree(new)
    assert all(mode == 0o600 for mode, _ in after.values())
    for name in ("admin.token", "tls/ca.key", "tls/server.crt"):
        assert after[name][1] == before[name][1]
    shutil.rmtree(h.state)
    os.rename(new, h.state)
    h.start()
    assert "test read" in [token["name"] for token in h.all("tokens")]
    h.stop()


def test_a_repository_alone_is_enough(h, scratch):
    """The hub's machine is gone: the copy in the repository brings back what only the hub knew."""
    h.start()
    h.make_token("read")
    h.restart()
    kept = f"{h.repositories['main']}/hub/hub.test/state.db"
    names = "SELECT group_concat(json_extract(value, '$.name')) FROM object WHERE kind = 'token'"
    wait_for(lambda: os.path.exists(kept) and "test read" in run("sqlite3", "-readonly", kept, names).out,
             "a copy with the token")
    h.stop()
    assert stat.S_IMODE(os.stat(kept).st_mode) == 0o600
    sendense("repo", "check", h.repositories["main"], "--quiet")
    with open(h.token_file, encoding="ascii") as file:
        token = file.read()
    shutil.rmtree(h.state)
    sendense("hub", "import", kept, "--state-dir", h.state)
    assert list(tree(h.state)) == ["state.db"]
    with open(os.open(h.token_file, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="ascii") as file:
        file.write(token)
    h.start()
    assert "test read" in [token["name"] for token in h.all("tokens")]
    h.stop()


def test_refused_imports(exported, scratch):
    """Whatever is wrong with an export is found before anything is in place."""
    new, bad = f"{scratch}/new", f"{scratch}/bad.tar"

    def refused(case, contains):
        fails("hub", "import", bad, "--state-dir", new, case=case, contains=contains)
        assert not glob.glob(f"{new}*")

    repack(exported, bad, lambda name, data: data + b"x" if name == "hub.conf" else data)
    refused("an export with a file that was changed", "hub.conf is not what was exported")
    repack(exported, bad, lambda name, data: None if name == "admin.token" else data)
    refused("an export that lacks a file", "lacks files")
    repack(exported, bad, lambda name, data: [(name, data), ("more", b"x")] if name == "hub.conf" else data)
    refused("an export with a file that it does not list", "does not belong")
    for path in ("../out", "/tmp/out", ".hidden", "a/../../out"):
        def escape(name, data, path=path):
            if name == "export.json":
                return in_list(data, lambda v: v["files"][1].update(name=path))
            return [(path, data)] if name == "hub.conf" else data
        repack(exported, bad, escape)
        refused(f"an export that names {path}", "does not belong")
    repack(exported, bad, lambda name, data: in_list(data, lambda v: v.update({"sendense-hub-export": 2}))
           if name == "export.json" else data)
    refused("an export of a newer version", "newer")
    for change in ({"hub": "\x1b[2J"}, {"software": "x" * 500}, {"created": None}):
        repack(exported, bad, lambda name, data, change=change: in_list(data, lambda v: v.update(change))
               if name == "export.json" else data)
        refused("an export with a text for terminals" if "hub" in change else None, "its list is not as")
    repack(exported, bad, lambda name, data: in_list(data, lambda v: v["files"][1].update(path="/a\nb"))
           if name == "export.json" else data)
    refused(None, "does not belong")

    def damage(name, data):
        junk = data[:4096] + b"\x5a" * 8192 + data[12288:]
        if name == "export.json":
            return in_list(data, lambda v: v["files"][0].update(sha256=hashlib.sha256(damage.state).hexdigest()))
        return junk if name == "state.db" else data

    with tarfile.open(exported) as tar:
        state = tar.extractfile("state.db").read()
    damage.state = state[:4096] + b"\x5a" * 8192 + state[12288:]
    repack(exported, bad, damage)
    refused("an export whose state is damaged", "state.db")
    with open(exported, "rb") as file:
        whole = file.read()
    for cut in (0, 100, 512, 1500, len(whole) // 2, len(whole) - 1024):
        with open(bad, "wb") as file:
            file.write(whole[:cut])
        refused(f"an export cut after {cut} bytes" if cut in (0, 1500) else None, "")
    with open(bad, "wb") as file:
        file.write(os.urandom(20000))
    refused("an export that is none", "no tar archive")
    os.mkdir(new)
    with open(f"{new}/state.db", "wb"):
        pass
    fails("hub", "import", exported, "--state-dir", new, case="an import onto a hub's folder",
          contains="not empty")
    fails("hub", "export", "--config", f"{scratch}/hub.conf", exported, contains="exists")


# --- damage --------------------------------------------------------------------------------


def test_damaged_state_names_its_copy(h):
    h.start()
    kept = f"{h.repositories['main']}/hub/hub.test/state.db"
    wait_for(lambda: os.path.exists(kept), "the first copy")
    h.stop()
    with open(f"{h.state}/state.db", "r+b") as file:
        file.seek(4096)
        file.write(b"\x5a" * 8192)
    refused = fails("hub", "run", "--config", h.conf, case="a hub whose state is damaged", contains=kept)
    assert "stop the hub, move" in refused.message
    os.unlink(f"{h.state}/state.db")
    shutil.copy(kept, f"{h.state}/state.db")
    h.start()
    h.stop()


def test_state_of_a_newer_version(h):
    h.start()
    h.stop()
    run("sqlite3", f"{h.state}/state.db", "PRAGMA user_version = 9")
    fails("hub", "run", "--config", h.conf, case="a hub whose state is of a newer version",
          contains=["has version 9", "a newer Sendense wrote it"])


# --- the index ---------------------------------------------------------------------------------


def test_index_sees_what_is_done_beside_the_hub(h, scratch):
    repo = h.repositories["main"]
    h.init()
    make_disk(f"{scratch}/a.raw", MIB, [(0, 65536, "random")])
    backup = ["backup", "--repo", repo, "--vm", "web", "--quiet", f"raw:{scratch}/a.raw"]
    hub_options = ["--token-file", h.token_file]
    sendense(*backup)
    h.start()

    assert len(h.points("web")) == 1
    sendense(*backup)
    assert len(h.points("web")) == 2
    assert [vm["points"] for vm in h.all("repositories/main/vms")] == [2]
    # The same when nothing is so young that it is looked at in any case.
    for offset in (10000, 9000):
        for path in glob.glob(f"{repo}/vms/web/points*") + glob.glob(f"{repo}/vms/web/points/*"):
            then = time.time() - offset
            os.utime(path, (then, then))
        assert [vm["points"] for vm in h.all("repositories/main/vms")] == [2 if offset == 10000 else 3]
        sendense(*backup)
    sendense("prune", "--repo", repo, "web", "--keep-last", "2", "--quiet")
    assert [vm["points"] for vm in h.all("repositories/main/vms")] == [2]
    sendense("verify", "--repo", repo, "web", "--quiet")
    told = sendense("repo", "reindex", f"{h.url}/main", "--json", *hub_options).json
    assert told == {"vms": 1, "points": 2, "read": 2, "gone": 0, "damaged": 0}
    assert [p["verified"] for p in h.points("web")] == ["good", "good"]
    fails("repo", "reindex", repo, "--config", h.conf, case="an index that a hub has open",
          contains="in use by another process")
    h.stop()
    # Damaged or lost while the hub does not run: it is made again.
    with open(f"{h.state}/index.db", "r+b") as file:
        file.write(b"\x5a" * 8192)
    h.start()
    assert len(h.points("web")) == 2
    h.stop()
    os.unlink(f"{h.state}/index.db")
    assert sendense("repo", "reindex", repo, "--config", h.conf, "--json").json["points"] == 2
    h.start()
    assert len(h.points("web")) == 2
    h.stop()

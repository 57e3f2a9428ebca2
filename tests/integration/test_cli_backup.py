"""backup, restore, ls, verify, serve and repo: the commands together."""

import glob
import json
import os
import shutil

import pytest

import support
from support import (KIB, MIB, SENDENSE, allocated, fails, interrupt, make_disk, need, on_terminal,
                     run, sendense)

A = [(0, 2 * MIB, "random"), (4 * MIB, MIB, "zero"), (10 * MIB, 3 * MIB, "text")]
B = [(0, MIB, "text"), (7 * MIB, 64 * KIB, "random")]


class Site:
    """A repository and a VM of two disks, keys 2000 and 2001."""

    def __init__(self, folder):
        self.folder = folder
        self.repo = f"{folder}/repo"
        self.disks = {"2000": make_disk(f"{folder}/a.raw", 16 * MIB, A),
                      "2001": make_disk(f"{folder}/b.raw", 8 * MIB + 512, B, seed=2)}
        sendense("repo", "init", self.repo, "--quiet")

    def backup(self, *options, vm="web01", **kwargs):
        disks = [f"--disk={key}=raw:{path}" for key, path in self.disks.items()]
        return sendense("backup", "--repo", self.repo, "--vm", vm, *disks, *options, **kwargs)

    def points(self, vm="web01"):
        return [point["point"]
                for point in sendense("ls", "--repo", self.repo, vm, "--json").json["points"]]

    def image(self, key):
        [image] = glob.glob(f"{self.repo}/vms/web01/disks/{key}/*.qcow2")
        return image

    def damage(self, key):
        """Flips a byte in the middle of the disk's image."""
        path = self.image(key)
        with open(path, "r+b") as file:
            file.seek(os.path.getsize(path) // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))


@pytest.fixture
def site(scratch):
    return Site(scratch)


# --- backup and restore ------------------------------------------------------------


def test_two_disks_there_and_back(scratch, site):
    text = site.backup().out
    assert text.startswith("Restore point web01@") and "first backup" in text
    report = site.backup("--json", "--mode=full").json
    assert [disk["key"] for disk in report["disks"]] == ["2000", "2001"]
    assert [disk["mode"] for disk in report["disks"]] == ["full", "full"]
    disk = report["disks"][0]
    assert disk["size"] == disk["logical"] == 16 * MIB == disk["sent"] + disk["zeros_skipped"]
    assert disk["reason"] and len(disk["root"]) == 64 and 0 < disk["stored"] < 4 * MIB
    assert site.points()[-1] == report["point"] and len(site.points()) == 2

    result = sendense("restore", "--repo", site.repo, "web01", f"--to=2000=raw:{scratch}/ra",
                      f"--to=2001=qcow2:{scratch}/rb", "--json").json
    assert result["point"] == report["point"]
    assert [disk["root"] for disk in result["disks"]] == [d["root"] for d in report["disks"]]
    run("cmp", site.disks["2000"], f"{scratch}/ra")
    assert allocated(f"{scratch}/ra") <= allocated(site.disks["2000"])
    support.same_content(site.disks["2001"], "raw", f"{scratch}/rb", "qcow2")
    support.qemu_check(f"{scratch}/rb")
    # One disk of the older point alone.
    sendense("restore", "--repo", site.repo, f"web01@{site.points()[0]}",
             f"--to=2001=raw:{scratch}/old")
    run("cmp", site.disks["2001"], f"{scratch}/old")


def test_one_disk_without_a_key(scratch, site, servers):
    source = servers.qemu_nbd(site.disks["2000"], read_only=True)
    sendense("backup", "--repo", site.repo, "--vm", "with/slash and ..", source.uri)
    vms = sendense("ls", "--repo", site.repo, "--json").json["vms"]
    assert [vm["vm"] for vm in vms] == ["with/slash and .."]
    assert vms[0]["points"] == 1
    point = sendense("ls", "--repo", site.repo, f"with/slash and ..@{vms[0]['latest']}",
                     "--json").json
    assert [disk["key"] for disk in point["disks"]] == ["disk0"]
    sendense("restore", "--repo", site.repo, "with/slash and ..", "--to", f"raw:{scratch}/back")
    run("cmp", site.disks["2000"], f"{scratch}/back")
    # Into an export that holds other data.
    make_disk(f"{scratch}/dirty", 16 * MIB, [(0, 16 * MIB, "random")], seed=9)
    target = servers.qemu_nbd(f"{scratch}/dirty")
    sendense("restore", "--repo", site.repo, "with/slash and ..", "--to", target.uri)
    target.stop()
    run("cmp", site.disks["2000"], f"{scratch}/dirty")


@pytest.mark.parametrize("settings", [
    ["--compression=none", "--cluster-size=2MiB"],
    ["--compression=zlib", "--digest=sha256", "--compression-level=1"],
])
def test_settings_of_the_repository(scratch, settings):
    disk = make_disk(f"{scratch}/a.raw", 16 * MIB, A)
    repo = f"{scratch}/repo"
    info = sendense("repo", "init", repo, *settings, "--json").json
    assert info["compression"] == settings[0].split("=")[1]
    sendense("backup", "--repo", repo, "--vm", "v", f"raw:{disk}")
    [image] = glob.glob(f"{repo}/vms/v/disks/disk0/*.qcow2")
    support.qemu_check(image)
    support.same_content(disk, "raw", image, "qcow2")
    sendense("verify", "--repo", repo)
    again = sendense("repo", "info", repo, "--json").json
    assert again["id"] == info["id"] and again["vms"] == 1 and again["jobs"] == []


def test_progress_of_a_backup(site):
    status, text = on_terminal(SENDENSE, "backup", "--repo", site.repo, "--vm", "v",
                               f"raw:{site.disks['2000']}", "--limit-rate=8MiB")
    assert status == 0 and "copy" in text and "100%" in text
    result = site.backup("--progress=json")
    events = [json.loads(line) for line in result.err.splitlines() if line.startswith("{")]
    stages = [event["stage"] for event in events if event["event"] == "stage"]
    assert stages == ["prepare", "begin", "create", "copy", "sync-data", "close-data", "sync-sums",
                      "rename-data", "sync-folders", "rename-manifest", "log", "drop-plan"]
    end = events[-1]
    assert end["event"] == "end" and end["outcome"] == "done"
    assert [disk["key"] for disk in end["disks"]] == ["2000", "2001"]
    assert end["size"] == end["logical"] == 24 * MIB + 512
    assert site.backup("--quiet").out == ""


def test_memory_of_a_backup(site, servers):
    if support.under_sanitizer():
        pytest.skip("a sanitizer's memory is not the program's")
    for index, key in enumerate(site.disks):
        make_disk(site.disks[key], 128 * MIB, [(0, 96 * MIB, "random")], seed=index)
    sources = [f"--disk={key}={servers.qemu_nbd(path, read_only=True).uri}"
               for key, path in site.disks.items()]
    report = run("/usr/bin/time", "-f", "%M", SENDENSE, "backup", "--repo", site.repo, "--vm",
                 "big", *sources)
    assert int(report.err.split()[-1]) < 64 * 1024


# --- what goes wrong ------------------------------------------------------------------


def test_interrupt_leaves_no_restore_point(site, servers):
    site.backup()
    before = sorted(glob.glob(f"{site.repo}/**", recursive=True))
    backup = servers.start(SENDENSE, "backup", "--repo", site.repo, "--vm", "web01",
                           *[f"--disk={k}=raw:{p}" for k, p in site.disks.items()],
                           "--limit-rate=64KiB", "--progress=json")
    backup.wait_err('"stage":"copy"')
    seconds, status = interrupt(backup)
    assert status == 1 and seconds < (5 if support.under_sanitizer() else 1)
    assert "cancelled" in backup.err and "no restore point was made" in backup.err
    assert sorted(glob.glob(f"{site.repo}/**", recursive=True)) == before
    assert os.listdir(f"{site.repo}/.incoming") == []
    sendense("repo", "check", site.repo)


def test_interrupted_restore_leaves_no_file(scratch, site, servers):
    site.backup()
    restore = servers.start(SENDENSE, "restore", "--repo", site.repo, "web01",
                            f"--to=2000=raw:{scratch}/ra", f"--to=2001=raw:{scratch}/rb",
                            "--limit-rate=64KiB", "--progress=json")
    restore.wait_err('"event":"progress"')
    seconds, status = interrupt(restore)
    assert status == 1 and seconds < (5 if support.under_sanitizer() else 1)
    assert not os.path.exists(f"{scratch}/ra") and not os.path.exists(f"{scratch}/rb")


def test_damage_is_found_by_all_who_read(scratch, site, servers):
    site.backup()
    sendense("verify", "--repo", site.repo)
    site.damage("2000")
    result = sendense("verify", "--repo", site.repo, status=3)
    assert "disk 2000" in result.out and "what to do" in result.out and "1 damaged" in result.out
    report = sendense("verify", "--repo", site.repo, "web01", "--json", status=3).json
    assert not report["good"] and report["damages"] >= 1 and report["points_damaged"] == 1
    assert any(finding["damage"] and finding.get("disk") == "2000"
               for finding in report["findings"])
    assert "damaged" in sendense("ls", "--repo", site.repo, "web01").out
    assert "(1 damaged)" in sendense("ls", "--repo", site.repo).out
    assert sendense("ls", "--repo", site.repo, "--json").json["vms"][0]["damaged"] == 1
    fails("restore", "--repo", site.repo, "web01", f"--to=2000=raw:{scratch}/ra",
          status=3, case="a restore point with a flipped byte", contains=["offset", "removed"])
    assert not os.path.exists(f"{scratch}/ra")
    sendense("restore", "--repo", site.repo, "web01", f"--to=2001=raw:{scratch}/rb")
    run("cmp", site.disks["2001"], f"{scratch}/rb")
    server = servers.export("web01", "--repo", site.repo, "--disk=2000", command="serve")
    need("nbdcopy")
    run("nbdcopy", server.uri, f"{scratch}/out", status=1)
    assert "offset" in server.err


def test_bad_repositories(scratch, site):
    disk = f"raw:{site.disks['2000']}"

    def backup(repo, **kwargs):
        return fails("backup", "--repo", repo, "--vm", "v", disk, **kwargs)

    backup(f"{scratch}/none", case="a repository that is not there", contains="none")
    backup(scratch, case="a folder that is no repository", contains="repo")
    fails("backup", "--vm", "v", disk, status=2, case="no repository named", contains="--repo")
    backup("http://127.0.0.1:9/", case="a hub that nobody is", contains="127.0.0.1:9")
    backup("http://hub.example/", case="a hub in the clear", contains="https", status=2)
    backup("https:///main", case="a hub's URL without a host", contains="URL", status=2)
    with open(f"{site.repo}/repository.json", encoding="utf-8") as file:
        text = file.read()
    newer = json.loads(text)
    for name in newer:
        if "format" in name:
            newer[name] = 99
    with open(f"{site.repo}/repository.json", "w", encoding="utf-8") as file:
        json.dump(newer, file)
    result = sendense("backup", "--repo", site.repo, "--vm", "v", disk, status=1)
    support.bad_input("a repository of a newer format", result.message)
    with open(f"{site.repo}/repository.json", "w", encoding="utf-8") as file:
        file.write(text.replace("zstd", "zlib"))
    backup(site.repo, case="a repository.json that was tampered with", contains="repository.json")
    with open(f"{site.repo}/repository.json", "w", encoding="utf-8") as file:
        file.write(text)
    fails("repo", "init", site.repo, case="init where a repository is", contains="repo")
    fails("repo", "init", f"{site.repo}/vms", contains="repository")
    fails("repo", "init", scratch, case="init in a folder that is not empty", contains=scratch)
    fails("repo", "init", f"{scratch}/new", "--cluster-size=5000", status=2,
          case="a cluster size that cannot be", contains="power of two")
    assert not os.path.exists(f"{scratch}/new")
    site.backup()


def test_a_read_only_repository(scratch, site):
    support.need_mounts(scratch)
    site.backup()
    inside = (f"mount --bind {site.repo} {site.repo} && mount -o remount,ro,bind {site.repo} && {{ "
              f"{SENDENSE} backup --repo {site.repo} --vm web01 raw:{site.disks['2000']}; echo $?; "
              f"{SENDENSE} verify --repo {site.repo} --quiet; echo $?; "
              f"{SENDENSE} restore --repo {site.repo} web01 --to 2000=raw:{scratch}/ra --quiet; "
              "echo $?; }")
    done = run("unshare", "-rm", "sh", "-c", inside)
    assert done.out == "1\n0\n0\n", done
    support.bad_input("a read-only repository", done.message)
    run("cmp", site.disks["2000"], f"{scratch}/ra")


def test_tables_of_ls(site):
    nobody = fails("ls", "--repo", site.repo, "nobody", contains="has no VM")
    assert nobody.out == ""
    for name in ("größe", "grosse"):
        sendense("backup", "--repo", site.repo, "--vm", name, "null:1M")
    rows = [line for line in sendense("ls", "--repo", site.repo).out.splitlines()
            if line.startswith("gr")]
    assert len(rows) == 2 and len(set(map(len, rows))) == 1, rows


def test_locks_of_the_living_and_the_dead(site, servers):
    words = ["backup", "--repo", site.repo, "--vm", "web01", f"raw:{site.disks['2000']}"]
    first = servers.start(SENDENSE, *words, "--limit-rate=64KiB", "--progress=json")
    first.wait_err('"stage":"copy"')
    fails(*words, case="a virtual machine that another job backs up", contains=str(first.pid))
    info = sendense("repo", "info", site.repo).out
    assert "running backup of web01" in info and "stage copy" in info
    first.popen.kill()
    first.wait()
    [job] = sendense("repo", "info", site.repo, "--json").json["jobs"]
    assert not job["alive"] and job["stage"] == "copy" and job["keep_until"]
    sendense(*words)
    assert sendense("repo", "info", site.repo, "--json").json["jobs"] == []
    sendense("verify", "--repo", site.repo)
    assert len(site.points()) == 1


def test_bad_names_and_disks(scratch, site):
    disk = f"raw:{site.disks['2000']}"
    words = ["backup", "--repo", site.repo, "--vm"]
    fails(*words, "new\nline", disk, status=2, case="a VM's name with a newline")
    fails(*words, "x" * 300, disk, status=2, case="a VM's name of 300 bytes", contains="255")
    fails(*words, "", disk, status=2, case="an empty VM's name")
    fails(*words, b"\xff\xfe".decode("utf-8", "surrogateescape"), disk, status=2,
          case="a VM's name that is not UTF-8")
    fails(*words, "v", f"--disk=a/b={disk}", status=2, case="a disk key with a slash",
          contains="a/b")
    fails(*words, "v", f"--disk={'k' * 65}={disk}", status=2, case="a disk key of 65 bytes")
    fails(*words, "v", f"--disk=={disk}", status=2, case="an empty disk key")
    fails(*words, "v", f"--disk={disk}", status=2, case="a disk without a key",
          contains="KEY=SOURCE")
    fails(*words, "v", f"--disk=a={disk}", f"--disk=a=raw:{site.disks['2001']}", status=2,
          case="a disk key twice", contains="twice")
    os.symlink(site.disks["2000"], f"{scratch}/link")
    fails(*words, "v", f"--disk=a={disk}", f"--disk=b=raw:{scratch}/link", status=2,
          case="one source for two disks", contains="same source")
    fails(*words, "v", f"--disk=a={disk}", disk, status=2, contains="--disk KEY=")
    fails(*words, "v", status=2, contains="which disk?")
    fails("backup", "--repo", site.repo, disk, status=2, contains="--vm NAME")
    fails(*words, "v", disk, "--mode=incremental", contains=["disk disk0", "first backup"],
          case="--mode incremental without a restore point")
    fails(*words, "v", f"--disk=a={disk}", f"--disk=b=raw:{scratch}/none",
          case="a second disk that does not exist", contains=["disk b", "No such file"])
    make_disk(f"{scratch}/empty", 0)
    fails(*words, "v", f"raw:{scratch}/empty", case="a source without a byte", contains="no bytes")
    assert sendense("ls", "--repo", site.repo, "--json").json["vms"] == []
    assert os.listdir(f"{site.repo}/.incoming") == []


def test_a_source_that_fails_half_way(site, servers):
    need("nbdkit")
    source = servers.nbdkit(
        "eval", "get_size=echo 64M",
        'pread=if [ $4 -ge 33554432 ]; then echo EIO bad sector >&2; exit 1; fi; '
        'head -c $3 /dev/urandom')
    fails("backup", "--repo", site.repo, "--vm", "v", f"--disk=bad={source.uri}",
          f"--disk=good=raw:{site.disks['2000']}", case="a backup's source that fails half way",
          contains=["disk bad", "no restore point"])
    assert os.listdir(f"{site.repo}/.incoming") == []
    assert glob.glob(f"{site.repo}/vms/v/points/*") == []


def test_a_repository_that_runs_full(scratch, site):
    support.need_mounts(scratch)
    os.mkdir(f"{scratch}/small")
    make_disk(site.disks["2000"], 32 * MIB, [(0, 32 * MIB, "random")])
    repo = f"{scratch}/small/repo"
    inside = (f"mount -t tmpfs -o size=24m none {scratch}/small && {SENDENSE} repo init {repo} "
              f"--quiet && {SENDENSE} backup --repo {repo} --vm v raw:{site.disks['2001']} --quiet "
              f"&& {{ {SENDENSE} backup --repo {repo} --vm v raw:{site.disks['2000']}; echo $?; "
              f"{SENDENSE} verify --repo {repo} --quiet; echo $?; ls {repo}/.incoming; }}")
    done = run("unshare", "-rm", "sh", "-c", inside)
    assert done.out == "1\n0\n", done
    support.bad_input("a repository that runs full", done.message)


def test_bad_targets_of_a_restore(scratch, site, servers):
    site.backup()
    words = ["restore", "--repo", site.repo]
    fails(*words, "nobody", f"--to=raw:{scratch}/x", case="a VM that is not there",
          contains="nobody")
    fails(*words, "web01@20200101T000000Z-000000", f"--to=2000=raw:{scratch}/x",
          case="a restore point that is not there", contains="20200101T000000Z-000000")
    fails(*words, "web01", status=2, contains="--to TARGET")
    fails(*words, "web01", f"--to=raw:{scratch}/x", status=2,
          case="a restore of several disks to one target", contains="2000, 2001")
    fails(*words, "web01", f"--to=9999=raw:{scratch}/x", contains="9999", status=None)
    fails(*words, "web01", f"--to=2000=raw:{scratch}/x", f"--to=2001=raw:{scratch}/x", status=2,
          case="one target for two disks", contains="another disk")
    fails(*words, "web01", f"--to=2000=raw:{scratch}/x", f"--to=2000=raw:{scratch}/y", status=2,
          contains="already")
    fails(*words, "web01", f"--to=2000=raw:{site.disks['2001']}",
          case="a restore to an existing file", contains="--force")
    inside = f"{site.repo}/vms/web01/disks/2000/x.qcow2"
    fails(*words, "web01", f"--to=2000=qcow2:{inside}", "--force",
          case="a restore into a repository", contains=site.repo)
    fails("copy", f"raw:{site.disks['2000']}", f"raw:{inside}", case="a copy into a repository",
          contains=site.repo)
    small = servers.qemu_nbd(make_disk(f"{scratch}/small", MIB))
    fails(*words, "web01", f"--to=2000={small.uri}", case="a restore to a target of another size",
          contains=str(16 * MIB))
    # The first target is made, the second refused: nothing stays.
    fails(*words, "web01", f"--to=2000=raw:{scratch}/x", f"--to=2001=raw:{scratch}/none/y")
    assert not os.path.exists(f"{scratch}/x")
    assert sendense("verify", "--repo", site.repo).status == 0


# --- serve and export ------------------------------------------------------------------


def test_serve_all_disks(scratch, site, servers):
    site.backup()
    need("nbdcopy", "nbdinfo")
    server = servers.export("web01", "--repo", site.repo, "--json", tcp=True, command="serve")
    report = json.loads(server.uri)
    assert [export["name"] for export in report["exports"]] == ["2000", "2001"]
    for export in report["exports"]:
        assert export["read_only"]
        run("nbdcopy", export["uri"], f"{scratch}/out")
        run("cmp", site.disks[export["name"]], f"{scratch}/out")
    listed = json.loads(run("nbdinfo", "--list", "--json", report["uri"]).out)["exports"]
    assert sorted(export["export-name"] for export in listed) == ["2000", "2001"]
    server.stop(expect=0)


def test_serve_one_disk_writable(scratch, site, servers):
    site.backup()
    need("nbdcopy", "nbd")
    import nbd  # pylint: disable=import-outside-toplevel
    before = run("sha256sum", site.image("2000")).out
    os.mkdir(f"{scratch}/over")
    server = servers.export("web01", "--repo", site.repo, "--disk=2000", "--writable",
                            f"--scratch={scratch}/over", "--scratch-limit=1MiB", command="serve")
    handle = nbd.NBD()
    handle.connect_uri(server.uri)
    handle.pwrite(b"changed!", 4096)
    assert handle.pread(8, 4096) == b"changed!"
    with pytest.raises(nbd.Error) as error:
        for offset in range(MIB, 4 * MIB, MIB):
            handle.pwrite(bytes([1]) * MIB, offset)
    assert error.value.errno == "ENOSPC"
    handle.shutdown()
    # The empty name means the only disk.
    handle = nbd.NBD()
    handle.connect_uri(server.uri.replace("/2000?", "/?"))
    assert handle.pread(8, 4096) == b"changed!"
    handle.shutdown()
    server.stop(expect=0)
    assert os.listdir(f"{scratch}/over") == []
    assert run("sha256sum", site.image("2000")).out == before
    sendense("verify", "--repo", site.repo)


def test_wrong_usage_of_serve(scratch, site):
    site.backup()
    words = ["serve", "--repo", site.repo, "web01", "--port=0"]
    fails(*words, "--disk=9999", status=None, contains="2000, 2001")
    fails(*words, f"--scratch={scratch}", status=2, contains="--writable")
    fails(*words, "--writable", f"--scratch={site.repo}", contains="--scratch")
    fails("serve", "--repo", site.repo, "nobody", "--port=0", contains="nobody")


def test_export_in_a_repository_is_read_only(site, servers):
    need("nbd")
    import nbd  # pylint: disable=import-outside-toplevel
    site.backup()
    before = run("sha256sum", site.image("2000")).out
    server = servers.export(f"qcow2:{site.image('2000')}")
    handle = nbd.NBD()
    handle.connect_uri(server.uri)
    assert handle.is_read_only()
    handle.shutdown()
    server.stop(expect=0)
    assert run("sha256sum", site.image("2000")).out == before


# --- check and doctor -------------------------------------------------------------------


def test_a_foreign_file_is_reported_and_kept(site):
    site.backup()
    assert sendense("repo", "check", site.repo, "--json").json["foreign"] == 0
    foreign = f"{os.path.dirname(site.image('2000'))}/notes.txt"
    shutil.copy(__file__, foreign)
    report = sendense("repo", "check", site.repo, "--repair", "--json", status=3).json
    assert report["foreign"] == 1 and not report["good"]
    [finding] = report["findings"]
    assert finding["kind"] == "foreign" and finding["file"].endswith("notes.txt")
    support.bad_input("a foreign file in a repository", finding["text"])
    assert os.path.exists(foreign)


def test_a_missing_image_is_damage(site):
    site.backup()
    os.unlink(site.image("2001"))
    result = sendense("repo", "check", site.repo, status=3)
    assert "2001" in result.out and "what to do" in result.out
    assert sendense("verify", "--repo", site.repo, "--json", status=3).json["points_damaged"] == 1


def test_doctor(scratch, site):
    report = sendense("doctor", "--repo", site.repo, "--json").json
    assert report["fit"]
    assert {"repository", "clock"} <= {check["check"] for check in report["checks"]}
    assert "can be written to" in sendense("doctor", "--repo", site.repo).out
    assert not sendense("doctor", "--repo", f"{scratch}/none", "--json", status=1).json["fit"]

"""Repositories whose records lie, or are gone: verify never calls them good, nothing
is removed by mistake, and what can be restored is."""

import glob
import hashlib
import json
import os
import struct

import pytest

from support import (KIB, MIB, SENDENSE, fails, make_disk, need, need_mounts, run, sendense)


class Site:
    """One restore point of one disk."""

    def __init__(self, folder, *settings, vm="web01"):
        self.vm, self.repo = vm, f"{folder}/repo"
        self.disk = make_disk(f"{folder}/a.raw", 300 * KIB, [(0, 300 * KIB, "random")])
        sendense("repo", "init", self.repo, "--quiet", *settings)
        sendense("backup", "--repo", self.repo, "--vm", vm, f"raw:{self.disk}", "--quiet")

    def find(self, pattern):
        [path] = glob.glob(f"{self.repo}/vms/*/{pattern}")
        return path

    def damage_image(self):
        path = self.find("disks/disk0/*.qcow2")
        with open(path, "r+b") as file:
            file.seek(os.path.getsize(path) // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))

    def verify(self, *options, status=0):
        return sendense("verify", "--repo", self.repo, *options, "--json", status=status).json


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def edit(path, change):
    with open(path, encoding="utf-8") as file:
        record = json.load(file)
    change(record)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(record, file)


@pytest.mark.parametrize("place", [("zzz", 0), ("disk0", 1 << 50), ("aaa", 0)])
@pytest.mark.parametrize("options", [[], ["--time-box=1h"]])
def test_a_state_that_lies_about_the_place(scratch, place, options):
    site = Site(scratch)
    site.damage_image()
    with open(os.path.dirname(site.find("points/*/manifest.json")) + "/state.json", "w",
              encoding="utf-8") as file:
        json.dump({"format": 1, "verifying": {"since": "2026-11-21T20:00:00Z", "key": place[0],
                                              "offset": place[1], "damaged": False}}, file)
    assert not site.verify(*options, status=3)["good"]


def test_a_manifest_that_was_edited_and_sealed_anew(scratch):
    site = Site(scratch)

    def change(manifest):
        manifest["facts"]["disks"][0]["reason"] = "something else"
        manifest["facts_sha256"] = hashlib.sha256(canonical(manifest["facts"])).hexdigest()
    edit(site.find("points/*/manifest.json"), change)
    [finding] = site.verify(status=3)["findings"]
    assert "points.log" in finding["text"] and finding["file"].endswith("manifest.json")
    point = sendense("ls", "--repo", site.repo, "web01", "--json").json["points"][0]["point"]
    assert site.verify(f"web01@{point}", status=3)["points_damaged"] == 1


def test_a_log_that_lost_its_lines(scratch):
    site = Site(scratch)
    os.truncate(site.find("points.log"), 0)
    [finding] = site.verify(status=3)["findings"]
    assert "points.log" in finding["file"] and finding["point"]
    os.unlink(site.find("points.log"))
    report = sendense("repo", "check", site.repo, "--json", status=3).json
    assert report["damages"] == 1
    sendense("restore", "--repo", site.repo, "web01", "--to", f"raw:{scratch}/back")
    run("cmp", site.disk, f"{scratch}/back")


def test_a_machine_whose_name_is_lost_is_not_passed_over(scratch):
    site = Site(scratch, vm="ä" * 127)
    assert site.verify()["good"]
    os.truncate(site.find("points/*/manifest.json"), 100)
    assert "is not listed" in sendense("ls", "--repo", site.repo).err
    report = site.verify(status=3)
    assert not report["good"] and "~" in report["findings"][0]["file"]
    sendense("repo", "check", site.repo, status=3)


def test_a_foreign_file_is_no_good_report(scratch):
    """Invariant 1 of the design calls it damage; text, JSON and status agree."""
    site = Site(scratch)
    foreign = f"{site.repo}/vms/web01/notes.txt"
    with open(foreign, "w", encoding="utf-8") as file:
        file.write("mine\n")
    # What an NFS client leaves while a removed file is still open is not foreign.
    with open(f"{site.repo}/.locks/.nfs000000000000abcd00000001", "w", encoding="utf-8"):
        pass
    report = sendense("repo", "check", site.repo, "--json", status=3).json
    assert not report["good"] and report["foreign"] == 1 and report["damages"] == 0
    assert report["findings"][0]["damage"]
    sendense("repo", "check", site.repo, "--repair", "--quiet", status=3)
    assert os.path.exists(foreign)
    # The restore points are good all the same.
    assert site.verify()["good"]


def test_a_file_of_a_disk_that_its_point_does_not_have(scratch):
    site = Site(scratch)
    image = site.find("disks/disk0/*.qcow2")
    os.mkdir(f"{site.repo}/vms/web01/disks/other")
    os.link(image, f"{site.repo}/vms/web01/disks/other/{os.path.basename(image)}")
    report = sendense("repo", "check", site.repo, "--json", status=3).json
    assert ["disks/other" in finding["file"] for finding in report["findings"]] == [True]


def test_control_characters_in_names_are_not_printed(scratch):
    site = Site(scratch)
    with open(f"{site.repo}/vms/web01/a\x1b[2J\nb", "w", encoding="utf-8"):
        pass
    done = sendense("repo", "check", site.repo, status=3)
    assert "\x1b" not in done.out and "a?[2J?b" in done.out


def test_a_plan_of_an_unknown_kind_licenses_nothing(scratch):
    """A merge that a newer Sendense left is to be recovered, not removed."""
    site = Site(scratch)
    job, point = "20261121T200000Z-0000000a", "20261121T200000Z-00000a"
    os.mkdir(f"{site.repo}/.incoming/{job}")
    kept = f"vms/web01/disks/disk0/{point}.qcow2"
    with open(f"{site.repo}/{kept}", "wb") as file:
        file.write(b"clusters on their way")
    with open(f"{site.repo}/.incoming/{job}/plan.json", "w", encoding="utf-8") as file:
        json.dump({"format": 1, "job": job, "kind": "merge", "vm": "web01", "point": point,
                   "started": "2026-11-21T20:00:00Z", "software": "sendense 9", "keep_seconds": 0,
                   "owner": {"host_id": "a", "host": "a", "boot_id": "a", "pid_namespace": 1,
                             "pid": 1, "pid_start": 1},
                   "files": [kept], "folders": [], "disks": []}, file)
    done = sendense("repo", "check", site.repo, "--repair", status=3)
    assert '"merge"' in done.out
    sendense("backup", "--repo", site.repo, "--vm", "web01", f"raw:{site.disk}", "--quiet")
    assert os.path.exists(f"{site.repo}/{kept}")


def zero_l2_entry(image, cluster):
    """Makes a guest cluster of an image without compression read as zeros."""
    with open(image, "r+b") as file:
        head = file.read(104)
        bits, = struct.unpack_from(">I", head, 20)
        l1, = struct.unpack_from(">Q", head, 40)
        per_table = (1 << bits) // 8
        file.seek(l1 + cluster // per_table * 8)
        l2 = struct.unpack(">Q", file.read(8))[0] & 0x00fffffffffffe00
        file.seek(l2 + cluster % per_table * 8)
        file.write(bytes(8))


def test_serve_does_not_tell_wrong_zeros_in_part_of_a_chunk(scratch, servers):
    """Clusters smaller than a chunk: a map of zeros is believed without reading."""
    need("nbdinfo")
    site = Site(scratch, "--compression=none", "--cluster-size=4KiB")
    zero_l2_entry(site.find("disks/disk0/*.qcow2"), 21)
    server = servers.export("web01", "--repo", site.repo, command="serve")
    extents = json.loads(run("nbdinfo", "--map", "--json", server.uri).out)
    assert not [e for e in extents if e["type"] & 2], extents
    site.verify(status=3)
    fails("restore", "--repo", site.repo, "web01", "--to", f"raw:{scratch}/back",
          status=3, contains=["digest"])


def test_restore_from_a_full_repository(scratch):
    """No room for a lease: the worst day is no reason not to restore."""
    need("strace")
    site = Site(scratch)
    done = run("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=linkat", "-e",
               "inject=linkat:error=ENOSPC", SENDENSE, "restore", "--repo", site.repo, "web01",
               "--to", f"raw:{scratch}/back", env=dict(os.environ, ASAN_OPTIONS="detect_leaks=0"))
    assert "without a lease" in done.err
    run("cmp", site.disk, f"{scratch}/back")


def test_space_is_checked_where_a_bound_is_known(scratch):
    """Compression none: what a raw file holds is what will be stored at most."""
    need_mounts(scratch)
    os.mkdir(f"{scratch}/small")
    repo = f"{scratch}/small/repo"
    disk = make_disk(f"{scratch}/a.raw", 64 * MIB, [(0, 40 * MIB, "random")])
    holes = make_disk(f"{scratch}/b.raw", 64 * MIB, [(0, MIB, "random")])
    backup = f"{SENDENSE} backup --repo {repo} --vm v --quiet"
    done = run("unshare", "-rm", "sh", "-c",
               f"mount -t tmpfs -o size=48m none {scratch}/small && "
               f"{SENDENSE} repo init {repo} --compression=none --quiet && "
               f"{{ {backup} raw:{disk}; echo $?; ls {repo}/vms; {backup} raw:{holes}; echo $?; }}")
    assert done.out == "1\n0\n", done
    assert "may take 56 MiB" in done.err and "MiB free" in done.err


def test_no_repository_inside_another(scratch):
    site = Site(scratch)
    os.mkdir(f"{site.repo}/vms/empty")
    os.symlink(f"{site.repo}/vms/empty", f"{scratch}/link")
    fails("repo", "init", f"{scratch}/link", contains=["inside the repository"])
    assert os.listdir(f"{site.repo}/vms/empty") == []


def test_a_key_that_is_too_long_is_not_cut(scratch):
    """Its first 64 bytes may be another disk's."""
    site, key = Site(scratch), "k" * 64
    sendense("backup", "--repo", site.repo, "--vm", "v", f"--disk={key}=raw:{site.disk}", "--quiet")
    fails("restore", "--repo", site.repo, "v", f"--to={key}k=raw:{scratch}/back", contains=["no disk"])
    assert not os.path.exists(f"{scratch}/back")

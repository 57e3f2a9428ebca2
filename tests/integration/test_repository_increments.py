"""Chains of increments, held against QEMU's tools: each point equals its frozen copy."""

import glob
import json
import os
import random
import shutil

import pytest

from support import (KIB, MIB, SENDENSE, TOP, bad_input, fails, make_disk, need, need_mounts,
                     qemu_check, run, same_content, sendense)

CHUNK = 64 * KIB


class Machine:
    """A VM of disks a and b, changed at random; a frozen copy of each state."""

    def __init__(self, folder, size=6 * MIB, seed=1, **settings):
        self.folder, self.repo, self.rng = folder, f"{folder}/repo", random.Random(seed)
        options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        sendense("repo", "init", self.repo, "--quiet", *options)
        self.sizes = {"a": size, "b": size // 2}
        self.points, self.changed, self.generation = [], {"a": [], "b": []}, 0
        for key in self.sizes:
            make_disk(self.disk(key), self.sizes[key], [(0, self.sizes[key] // 2, "random")],
                      seed=seed)

    def disk(self, key):
        return f"{self.folder}/{key}.raw"

    def change(self, key):
        """Writes and zeros, at any offset."""
        with open(self.disk(key), "r+b") as file:
            for i in range(4):
                offset = self.rng.randrange(self.sizes[key] - 1)
                length = min(self.rng.randrange(1, 300 * KIB), self.sizes[key] - offset)
                file.seek(offset)
                file.write(bytes(length) if i % 2 else self.rng.randbytes(length))
                self.changed[key].append((offset, offset + length))

    def extents(self, key):
        """The list of what changed since the last point."""
        merged = []
        for start, end in sorted(self.changed[key]):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        path = f"{self.folder}/{key}.extents"
        with open(path, "w", encoding="utf-8") as file:
            head = {"sendense-extents": 1, "key": key, "size": self.sizes[key],
                    "from": f"9/{self.generation}", "to": f"9/{self.generation + 1}"}
            print(json.dumps(head), file=file)
            for start, end in merged:
                print(json.dumps({"offset": start, "length": end - start}), file=file)
            print(json.dumps({"end": True, "count": len(merged),
                              "bytes": sum(end - start for start, end in merged)}), file=file)
        return path

    def command(self, by_list=("a",), options=()):
        command = ["backup", "--repo", self.repo, "--vm", "web", "--json", *options]
        for key in self.sizes:
            command.append(f"--disk={key}=raw:{self.disk(key)}")
            if key in by_list and self.points:
                command.append(f"--changed-by={key}=extents:{self.extents(key)}")
            else:
                command.append(f"--change-id={key}=9/{self.generation + 1}")
        return command

    def freeze(self, point):
        """What the point must equal."""
        for key in self.sizes:
            shutil.copyfile(self.disk(key), f"{self.folder}/{point}.{key}")
            self.changed[key] = []
        self.points.append(point)
        self.generation += 1

    def backup(self, by_list=("a",), options=()):
        report = sendense(*self.command(by_list, options)).json
        self.freeze(report["point"])
        return report

    def image(self, point, key):
        return f"{self.repo}/vms/web/disks/{key}/{point}.qcow2"

    def compare(self, points=None):
        for point in points or self.points:
            for key in self.sizes:
                same_content(self.image(point, key), "qcow2", f"{self.folder}/{point}.{key}",
                             "raw")

    def manifest(self, point):
        with open(f"{self.repo}/vms/web/points/{point}/manifest.json", encoding="utf-8") as file:
            return json.load(file)


def check_schema(name, value):
    jsonschema = pytest.importorskip("jsonschema", reason="python3-jsonschema is not installed")
    with open(f"{TOP}/docs/schemas/{name}.schema.json", encoding="utf-8") as file:
        jsonschema.validate(value, json.load(file))


@pytest.mark.parametrize("cluster", ["4K", "64K", "1M"])
def test_each_point_equals_its_frozen_copy(scratch, cluster):
    need("qemu-img")
    machine = Machine(scratch, seed=len(cluster), chain_length=3, cluster_size=cluster)
    machine.backup()
    for i in range(5):
        for key in ("a", "b"):
            machine.change(key)
        machine.backup(by_list=("a", "b")[:i % 3])
    machine.compare()
    chains = []
    for point in machine.points:
        manifest = machine.manifest(point)
        check_schema("manifest", manifest)
        chains.append(manifest["storage"]["disks"]["a"]["backing"] is None)
        for key in machine.sizes:
            qemu_check(machine.image(point, key))
    # After three links comes a full that was made of the chain.
    assert chains == [True, False, False, True, False, False]
    made = machine.manifest(machine.points[3])["facts"]["disks"][0]
    assert made["mode"] == "incremental" and "stored as a full" in made["reason"]
    report = sendense("verify", "--repo", machine.repo, "--json").json
    assert report["points_good"] == 6


def test_only_changes_are_stored(scratch):
    need("qemu-img")
    machine = Machine(scratch, size=64 * MIB, compression="none")
    machine.backup()
    chunks = machine.rng.sample(range(1024), 50)
    with open(machine.disk("a"), "r+b") as file:
        for chunk in chunks:
            file.seek(chunk * CHUNK)
            file.write(machine.rng.randbytes(CHUNK))
            machine.changed["a"].append((chunk * CHUNK, (chunk + 1) * CHUNK))
    report = machine.backup(by_list=("a", "b"))
    a, b = report["disks"]
    changed = 50 * CHUNK
    assert a["read"] == a["sent"] == changed
    assert changed <= a["stored"] < changed * 1.1 + 600 * KIB
    assert b["read"] == b["sent"] == 0
    machine.compare()


def test_a_link_is_missing(scratch):
    """Named; what does not need it still restores, and the next backup is a full."""
    machine = Machine(scratch)
    for _ in range(4):
        machine.backup(by_list=())
        machine.change("a")
    lost = machine.points[1]
    os.rename(machine.image(lost, "a"), f"{scratch}/lost.qcow2")
    for point in machine.points:
        target = f"{scratch}/back.raw"
        command = ["restore", "--repo", machine.repo, f"web@{point}", f"--to=a=raw:{target}",
                   "--force", "--quiet"]
        if point < lost:
            sendense(*command)
            same_content(target, "raw", f"{scratch}/{point}.a", "raw")
        else:
            fails(*command, contains=[lost, "other disks than a do not need it"],
                  case="a chain whose middle file is missing")
        sendense("restore", "--repo", machine.repo, f"web@{point}", f"--to=b=raw:{target}",
                 "--force", "--quiet")
        same_content(target, "raw", f"{scratch}/{point}.b", "raw")
        os.unlink(target)
    done = sendense("verify", "--repo", machine.repo, "--json", status=3)
    assert lost in done.out
    done = sendense(*machine.command(by_list=()))
    modes = {disk["key"]: disk["mode"] for disk in done.json["disks"]}
    assert modes == {"a": "full", "b": "incremental"}
    assert lost in done.err and "warning" in done.err
    bad_input("a parent whose chain is broken", [line for line in done.err.splitlines()
                                                 if "warning" in line][-1])


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_link_was_cut_behind_its_tables(scratch, lost):
    """Nothing but its size tells it: the next backup is a full, and each command says so."""
    need("qemu-img")
    machine = Machine(scratch, compression="none")
    for _ in range(3):
        machine.backup(by_list=("a",))
        machine.change("a")
    image = machine.image(machine.points[lost], "a")
    os.truncate(image, os.path.getsize(image) - 64 * KIB)
    name = f"{machine.points[lost]}.qcow2 has "
    done = sendense("verify", "--repo", machine.repo, status=3)
    assert name in done.out + done.err
    done = sendense("repo", "check", "--json", machine.repo, status=3)
    own = [finding for finding in done.json["findings"]
           if finding.get("point") == machine.points[lost]]
    assert len(own) == 1 and "it was cut" in own[0]["text"] and own[0]["file"] in image, own
    for path in glob.glob(f"{machine.repo}/vms/web/points/*/state.json"):
        os.unlink(path)
    fails("restore", "--repo", machine.repo, "web", f"--to=a=raw:{scratch}/back.raw", status=3,
          contains=[name, "it was cut"], case="an image that was cut behind its tables")
    done = sendense(*machine.command(by_list=("a",)))
    modes = {disk["key"]: disk["mode"] for disk in done.json["disks"]}
    assert modes == {"a": "full", "b": "incremental"}
    assert "it was cut" in done.json["disks"][0]["reason"] and "warning" in done.err


def test_damage_is_told_of_the_image_that_holds_it(scratch):
    """Not of the top of the chain, which is whole."""
    need("qemu-img")
    machine = Machine(scratch, compression="none")
    for _ in range(3):
        machine.backup(by_list=("a",))
        with open(machine.disk("a"), "r+b") as file:
            file.write(machine.rng.randbytes(CHUNK))
        machine.changed["a"].append((0, CHUNK))
    image = machine.image(machine.points[0], "a")
    [start] = [entry for entry in json.loads(run("qemu-img", "map", "--output=json", image).out)
               if entry["start"] <= 2 * CHUNK < entry["start"] + entry["length"]]
    with open(image, "r+b") as file:
        file.seek(start["offset"] + 2 * CHUNK - start["start"])
        file.write(b"wrong")
    for words in (["web"], [f"web@{machine.points[-1]}"]):
        done = sendense("verify", "--repo", machine.repo, *words, "--json", status=3)
        assert done.json["findings"]
        for finding in done.json["findings"]:
            assert finding["file"] == os.path.relpath(image, machine.repo), finding
            assert (machine.points[0] in finding["text"]) == (finding["point"] != machine.points[0])


def test_sizes_of_images_are_kept(scratch):
    """Through merges too; points without them are as before."""
    machine = Machine(scratch)
    for _ in range(4):
        machine.backup(by_list=("a",))
        machine.change("a")
    sendense("prune", "--repo", machine.repo, "--keep-last=2", "--quiet")
    for point in machine.points[2:]:
        manifest = machine.manifest(point)
        check_schema("manifest", manifest)
        for key, disk in manifest["storage"]["disks"].items():
            assert disk["image_bytes"] == os.path.getsize(machine.image(point, key))
    machine.compare(machine.points[2:])


def test_a_missing_image_is_told_once(scratch):
    machine = Machine(scratch)
    machine.backup()
    os.unlink(machine.image(machine.points[0], "a"))
    done = sendense("repo", "check", "--json", machine.repo, status=3)
    assert len(done.json["findings"]) == 1, done.json
    assert done.json["findings"][0]["file"] in machine.image(machine.points[0], "a")
    assert "qemu-img convert" not in done.out


def test_no_room_for_a_full_of_the_chain(scratch):
    """Then the chain grows on, and says so."""
    need_mounts(scratch)
    os.mkdir(f"{scratch}/small")
    repo = f"{scratch}/small/repo"
    disk = make_disk(f"{scratch}/a.raw", 20 * MIB, [(0, 20 * MIB, "random")])
    backup = f"{SENDENSE} backup --repo {repo} --vm v raw:{disk} --json"
    done = run("unshare", "-rm", "sh", "-ec",
               f"mount -t tmpfs -o size=52m none {scratch}/small; "
               f"{SENDENSE} repo init {repo} --compression=none --chain-length=1 --quiet; "
               f"{backup}; echo change | dd of={disk} conv=notrunc status=none; {backup}; "
               f"mount -o remount,size=92m {scratch}/small; {backup}; "
               f"{SENDENSE} verify --repo {repo} --quiet")
    reasons = [disk["reason"] for line in done.out.splitlines()
               for disk in json.loads(line)["disks"]]
    assert ["stored as a full" in reason for reason in reasons] == [False, False, True], reasons
    assert done.err.count("for which there is no room") == 1, done.err
    bad_input("no room for a full when a chain is long enough", done.err.splitlines()[0])


def test_killed_while_a_full_is_made_of_the_chain(scratch):
    """At any sync of the last stages: the points that there were stay, the next run goes on."""
    need("strace", "qemu-img")
    machine = Machine(scratch, size=2 * MIB, chain_length=2)
    for _ in range(2):
        machine.backup(by_list=())
        machine.change("a")
    environment = dict(os.environ, ASAN_OPTIONS="detect_leaks=0")
    stages, number = set(), 1
    while True:
        done = run("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync", "-e",
                   f"inject=fdatasync,fsync:signal=SIGKILL:when={number}", SENDENSE,
                   *machine.command(by_list=("a",)), status=None, env=environment)
        for path in glob.glob(f"{machine.repo}/.incoming/*/stage.json"):
            with open(path, encoding="utf-8") as file:
                stages.add(json.load(file)["stage"])
        if done.status == 0:
            break
        number += 3
        assert number < 200
        machine.compare()
    listed = sendense("ls", "--repo", machine.repo, "web", "--json").json["points"]
    # A kill behind the commit point has made a point of the same state.
    for point in listed[2:]:
        for key in machine.sizes:
            same_content(machine.image(point["point"], key), "qcow2", machine.disk(key), "raw")
    assert "fill" in stages
    sendense("verify", "--repo", machine.repo, "--quiet")
    assert os.listdir(f"{machine.repo}/.incoming") == []


def test_a_disk_that_is_left_out_is_told(scratch):
    machine = Machine(scratch)
    first = machine.backup()
    assert "missing_disks" not in first
    words = ["backup", "--repo", machine.repo, "--vm", "web", f"--disk=a=raw:{machine.disk('a')}"]
    done = sendense(*words, "--json")
    assert done.json["missing_disks"] == ["b"]
    assert f"disk b of restore point {first['point']} is not in this backup" in done.err
    machine.backup(by_list=())
    done = sendense(*words, "--quiet")  # which does not hide warnings
    assert not done.out and "warning: disk b of restore point" in done.err
    machine.backup(by_list=())
    assert "b: not in this backup" in sendense(*words).out

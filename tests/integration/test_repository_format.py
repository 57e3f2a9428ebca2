"""The repository's files against the documents: JSON schemas, digests, permissions."""

import glob
import hashlib
import json
import os

import pytest

from support import KIB, MIB, SENDENSE, TOP, fails, make_disk, need, run, sendense

jsonschema = pytest.importorskip("jsonschema", reason="python3-jsonschema is not installed")


def load(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def check(name, value):
    schema = load(f"{TOP}/docs/schemas/{name}.schema.json")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(value, schema)


def canonical_sha256(value):
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def backup(scratch, vm="web01", **kwargs):
    disk = f"{scratch}/a.raw"
    if not os.path.exists(disk):
        make_disk(disk, MIB + 512, [(0, 128 * KIB, "random"), (MIB, 512, "text")])
    return sendense("backup", "--repo", f"{scratch}/r", "--vm", vm, f"--disk=2000=raw:{disk}",
                    "--quiet", **kwargs)


@pytest.fixture
def repo(scratch):
    sendense("repo", "init", f"{scratch}/r", "--quiet")
    return f"{scratch}/r"


@pytest.mark.parametrize("vm", ["web01", "Bürö/../x \U0001f600", ".", "..", "/" * 255, "a@b"])
def test_records(scratch, repo, vm):
    backup(scratch, vm)
    sendense("verify", "--repo", repo, "--quiet")
    record = load(f"{repo}/repository.json")
    check("repository", record)
    sealed = record.pop("sha256")
    assert sealed == canonical_sha256(record)
    [manifest_path] = glob.glob(f"{repo}/vms/*/points/*/manifest.json") or \
        glob.glob(f"{repo}/vms/.*/points/*/manifest.json")
    manifest = load(manifest_path)
    check("manifest", manifest)
    assert manifest["facts"]["vm"] == vm
    assert manifest["facts_sha256"] == canonical_sha256(manifest["facts"])
    assert manifest["storage_sha256"] == canonical_sha256(manifest["storage"])
    point = manifest["facts"]["point"]
    state = load(os.path.join(os.path.dirname(manifest_path), "state.json"))
    check("state", state)
    assert state["verified"]["result"] == "good"
    vm_folder = manifest_path.split("/points/")[0]
    with open(f"{vm_folder}/points.log", encoding="utf-8") as file:
        [line] = [json.loads(line) for line in file]
    check("points-log-line", line)
    assert line["point"] == point and line["facts_sha256"] == manifest["facts_sha256"]
    assert vm in sendense("ls", "--repo", repo).out
    # Any QEMU tool opens it where the manifest says.
    image = f"{repo}/{manifest['storage']['disks']['2000']['image']}"
    need("qemu-img")
    run("qemu-img", "check", image)
    for where, folders, files in os.walk(repo):
        for name in folders:
            assert os.stat(f"{where}/{name}").st_mode & 0o777 == 0o700
        for name in files:
            assert os.stat(f"{where}/{name}").st_mode & 0o777 == 0o600, name


def test_records_of_a_killed_job(scratch, repo):
    need("strace")
    backup(scratch)
    run("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e",
        "inject=fdatasync:signal=SIGKILL:when=1", SENDENSE, "backup", "--repo", repo, "--vm",
        "web01", f"--disk=2000=raw:{scratch}/a.raw", "--quiet", status=None,
        env=dict(os.environ, ASAN_OPTIONS="detect_leaks=0"))
    [job] = glob.glob(f"{repo}/.incoming/*")
    plan = load(f"{job}/plan.json")
    check("plan", plan)
    check("stage", load(f"{job}/stage.json"))
    check("lock", load(f"{repo}/.locks/web01.write"))
    # Everything that is there and no restore point's is listed in the plan.
    listed = set(plan["files"])
    for path in glob.glob(f"{repo}/vms/web01/disks/2000/{plan['point']}*"):
        assert os.path.relpath(path, repo) in listed
    # A plan that was tampered with is no licence: nothing of it is removed.
    for bad in ("../outside", "vms/web01/points.log", "vms/other/" + plan["point"], "/etc/passwd",
                f"vms/web01/../web01/{plan['point']}"):
        with open(f"{job}/plan.json", "w", encoding="utf-8") as file:
            json.dump(dict(plan, files=plan["files"] + [bad]), file)
        result = sendense("repo", "check", repo, "--repair", status=3)
        assert "not its own" in result.out
        assert os.path.exists(f"{repo}/{plan['files'][0]}")
    with open(f"{job}/plan.json", "w", encoding="utf-8") as file:
        json.dump(plan, file)
    sendense("repo", "check", repo, "--repair", "--quiet")
    assert os.listdir(f"{repo}/.incoming") == [] and not os.path.exists(f"{repo}/.locks/web01.write")


def test_damaged_records(scratch, repo):
    backup(scratch)
    backup(scratch)
    older, newer = sorted(glob.glob(f"{repo}/vms/web01/points/*"))
    manifest = load(f"{newer}/manifest.json")
    manifest["facts"]["disks"][0]["size_bytes"] += 512
    with open(f"{newer}/manifest.json", "w", encoding="utf-8") as file:
        json.dump(manifest, file)
    target = f"{scratch}/out.raw"
    # The latest is damaged: an older one is never given silently.
    fails("restore", "--repo", repo, "web01", "--to", f"raw:{target}", status=3,
          case="a damaged manifest", contains=["manifest.json is damaged", os.path.basename(newer)])
    assert not os.path.exists(target)
    sendense("restore", "--repo", repo, f"web01@{os.path.basename(older)}", "--to",
             f"raw:{target}", "--quiet")
    run("cmp", f"{scratch}/a.raw", target)
    assert "manifest.json is damaged" in sendense("verify", "--repo", repo, status=3).out
    # Gone altogether: points.log knows.
    os.unlink(f"{newer}/manifest.json")
    report = sendense("verify", "--repo", repo, "--json", status=3).json
    assert [f["kind"] for f in report["findings"]] == ["missing"]
    report = sendense("repo", "check", repo, "--json", status=3).json
    kinds = sorted(f["kind"] for f in report["findings"])
    assert kinds.count("missing") == 1 and kinds.count("damage") == 2  # image and sums stay
    assert glob.glob(f"{repo}/vms/web01/disks/2000/{os.path.basename(newer)}.qcow2")
    # A last line that a crash cut does no harm, and is ended before the next.
    with open(f"{repo}/vms/web01/points.log", "a", encoding="utf-8") as file:
        file.write('{"event":"comm')
    backup(scratch)
    with open(f"{repo}/vms/web01/points.log", encoding="utf-8") as file:
        lines = file.read().splitlines()
    assert len(lines) == 4 and json.loads(lines[3])["event"] == "committed"


def test_damaged_data(scratch, repo):
    """One byte anywhere: verify finds it, names disk and place; restore refuses."""
    backup(scratch)
    [image] = glob.glob(f"{repo}/vms/web01/disks/2000/*.qcow2")
    [sums] = glob.glob(f"{repo}/vms/web01/disks/2000/*.sums")
    need("qemu-img")
    extents = json.loads(run("qemu-img", "map", "--output=json", image).out)
    start = next(e for e in extents if e["data"])
    with open(image, "r+b") as file:
        # Random bytes do not compress: stored plain, so a flip is a flip.
        file.seek(start["offset"] + 1000)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    report = sendense("verify", "--repo", repo, "--json", status=3).json
    [finding] = report["findings"]
    assert finding["disk"] == "2000" and "offset 0" in finding["text"]
    assert "damaged at offset 0" in sendense(
        "restore", "--repo", repo, "web01", "--to", f"raw:{scratch}/out", status=3).err
    with open(sums, "r+b") as file:
        file.truncate(os.path.getsize(sums) - 1)
    assert "cut off or never finished" in sendense("verify", "--repo", repo, status=3).out
    os.unlink(sums)
    assert sendense("verify", "--repo", repo, "--json", status=3).json["findings"]

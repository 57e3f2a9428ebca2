"""A hub in place of a folder: the same commands do the same.  What is pushed is compared with its
source by qemu-img, what is read back with what was backed up; clients, hub and NBD service are
killed in the middle.
"""

import http.server
import json
import os
import random
import re
import shutil
import signal
import tempfile
import threading

import pytest

import hub
import rest_proxy
import support
from chains import write_extents
from qemu_machine import machine_in
from support import KIB, MIB, SENDENSE, fails, make_disk, need, run, sendense, wait_for

CHUNK = 64 * KIB


class Site:
    """A machine of its own, with a disk on this side of the hub."""

    nr = 0

    def __init__(self, servers, made, size=24 * MIB):
        self.servers, self.folder, self.size, self.hub = servers, servers.folder, size, made
        Site.nr += 1
        self.vm = f"web-{Site.nr}"
        self.disk = make_disk(f"{self.folder}/disk.raw", size,
                              [(0, 3 * MIB, "random"), (9 * MIB, 2 * MIB, "random"), (size - 300, 300, "random")])
        self.rng = random.Random(4)

    def words(self, command, *words, store=None):
        return [command, "--repo", store or f"{self.hub.url}/main", "--token-file", self.hub.token_file,
                "--ca-file", self.hub.ca_file, *words]

    def run(self, *words, **kwargs):
        return sendense(*self.words(*words), **kwargs)

    def start(self, *words, **kwargs):
        return self.servers.start(SENDENSE, *self.words(*words), name=words[0], **kwargs)

    def fails(self, *words, **kwargs):
        return fails(*self.words(*words), **kwargs)

    def backup(self, *words, vm=None, disk=None, **kwargs):
        """Its report, the only disk's beside."""
        result = self.run("backup", "--vm", vm or self.vm, "--json", f"--disk=2000={disk or 'raw:' + self.disk}",
                          *words, **kwargs)
        report = result.json
        report["disk"] = report["disks"][0]
        report["err"] = result.err
        return report

    def write(self, *offsets, length=CHUNK):
        with open(self.disk, "r+b") as file:
            for offset in offsets:
                file.seek(offset)
                file.write(self.rng.randbytes(length))

    def image(self, vm=None, point=None, key="2000"):
        return self.hub.point_images(vm or self.vm, point)[key]

    def check(self, vm=None, source=None):
        """The newest point is the disk, and nothing is left open."""
        need("qemu-img")
        assert hub.compare(self.image(vm), source or self.disk)
        assert self.hub.get("sessions")["items"] == []
        assert self.hub.open_jobs() == []


@pytest.fixture(scope="module", name="shared")
def one_hub():
    """For all that do not kill it."""
    folder = tempfile.mkdtemp(prefix="sd-", dir=os.environ.get("SENDENSE_TEST_DIR"))
    try:
        with support.servers_in(folder) as servers, hub.hub_in(servers) as made:
            yield made.start()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def site(servers, shared):
    return Site(servers, shared)


# --- backup -----------------------------------------------------------------------------


def test_full_then_increments_by_compare_and_by_extents(site):
    first = site.backup()
    disk = first["disk"]
    assert (disk["mode"], disk["reason"]) == ("full", "first backup")
    assert disk["sent"] == 5 * MIB + CHUNK and disk["logical"] == site.size
    site.check()
    # The hub tells of it what the client does, and what it took.
    [job] = site.hub.get(f"jobs?vm={site.vm}")["items"]
    assert {name: job["progress"][name] for name in ("logical", "read", "sent", "zeros_skipped", "stored", "total")} == {
        "total": site.size, **{name: disk[name] for name in ("logical", "read", "sent", "zeros_skipped")},
        "stored": site.hub.points(site.vm)[0]["disks"][0]["stored"]}
    assert disk["read"] > 0 and job["progress"]["stored"] > 5 * MIB

    site.write(10 * MIB, 20 * MIB + 5, site.size - 300, length=300)
    second = site.backup()
    disk = second["disk"]
    assert (disk["mode"], disk["parent"], disk["changed_by"]) == ("incremental", first["point"], "compare")
    assert disk["sent"] == 3 * CHUNK
    site.check()

    site.write(1 * MIB)
    changes = write_extents(f"{site.folder}/changes", "2000", site.size, "s1", "s2", [(1 * MIB, CHUNK)])
    third = site.backup("--changed-by", f"extents:{changes}")
    assert third["disk"]["mode"] == "full"  # the parent has no change id
    site.write(2 * MIB)
    changes = write_extents(f"{site.folder}/changes", "2000", site.size, "s2", "s3", [(2 * MIB, CHUNK)])
    fourth = site.backup("--changed-by", f"extents:{changes}", "--audit", "50%")
    disk = fourth["disk"]
    assert (disk["mode"], disk["changed_by"], disk["change_id"]) == ("incremental", "extents", "s3")
    assert disk["read"] == disk["sent"] == CHUNK and disk["audited"] > 4 * MIB
    site.check()
    assert len(site.hub.points(site.vm)) == 4


# --- reading back -----------------------------------------------------------------------------


def test_restore_serve_and_lists_are_those_of_a_folder(site):
    need("qemu-img", "nbdcopy")
    first = site.backup()["point"]
    with open(site.disk, "rb") as file:
        frozen = file.read()
    site.write(5 * MIB)
    site.backup()

    for point, content in ((f"{site.vm}@{first}", frozen), (site.vm, None)):
        target = f"{site.folder}/out.raw"
        report = site.run("restore", point, "--to", f"raw:{target}", "--force", "--json").json
        assert report["disks"][0]["verified"] and report["disks"][0]["key"] == "2000"
        if content is None:
            assert support.same_content(target, "raw", site.disk, "raw")
        else:
            with open(target, "rb") as file:
                assert file.read() == content
    site.run("restore", site.vm, "--to", f"2000=qcow2:{site.folder}/out.qcow2")
    assert support.same_content(f"{site.folder}/out.qcow2", "qcow2", site.disk, "raw")

    repo = site.hub.repositories["main"]
    for words in (["ls", site.vm], ["ls", f"{site.vm}@{first}"]):
        there, here = (sendense(words[0], "--repo", repo, *words[1:], *end).out for end in ([], ["--json"]))
        assert site.run(*words).out == there
        assert json.loads(site.run(*words, "--json").out) == json.loads(here)

    server = site.start("serve", site.vm, "--socket", f"{site.folder}/s.sock", pipe=True)
    uri = support.read_line(server.popen.stdout, "serve").decode().strip()
    run("nbdcopy", uri, f"{site.folder}/served.raw")
    assert support.same_content(f"{site.folder}/served.raw", "raw", site.disk, "raw")
    assert server.stop() == 0
    assert site.hub.get("serves")["items"] == []


def damage(path):
    """One byte of the image's data is another one: far from its tables, which are at both ends."""
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0xff]))


def test_verify_tells_damage_as_of_a_folder(site):
    site.backup()
    good = site.run("verify", site.vm, "--json").json
    assert (good["good"], good["points_good"], good["findings"]) == (True, 1, [])
    assert site.run("verify", site.vm).out.startswith("1 restore point good, 0 damaged")
    damage(site.image())
    here = sendense("verify", "--repo", site.hub.repositories["main"], site.vm, "--json", status=3).json
    there = site.run("verify", site.vm, "--json", status=3).json
    for report in (here, there):
        report.pop("seconds")
    assert there == here and not there["good"] and there["findings"]
    assert "what to do" in site.run("verify", site.vm, status=3).out
    # And it is not restored, nor is anything left of that.
    result = site.run("restore", site.vm, "--to", f"raw:{site.folder}/out.raw", "--json", status=3)
    assert result.json["error"]["code"] == "corrupt" and "sendense verify" in result.json["error"]["text"]
    assert not os.path.exists(f"{site.folder}/out.raw")
    assert site.hub.get("serves")["items"] == []


def test_what_the_hub_cannot_read_is_not_told_as_damage(site):
    need("strace")
    site.backup()
    target = f"{site.folder}/out.raw"
    process = site.start("restore", site.vm, "--to", f"raw:{target}", "--json", "--limit-rate=256KiB", pipe=True)
    calls = "pread64,preadv,preadv2"

    def is_read():
        # Serves of others may end between the list and the look.
        shown = [site.hub.ask("GET", f"serves/{item['id']}") for item in site.hub.get("serves")["items"]
                 if item["vm"] == site.vm]
        return any(export["read_bytes"] for answer in shown if answer.status == 200
                   for export in answer.body["exports"])

    try:
        wait_for(is_read, "the restore")
        tracer = site.servers.start("strace", "-f", "-o", "/dev/null", "-P", site.image(), "-e", f"trace={calls}", "-e",
                                    f"inject={calls}:error=EIO", "-p", site.hub.nbd_service(), name="strace")
        wait_for(lambda: "attached" in tracer.err or not tracer.running, "strace")
        assert process.wait() == 1, process.err
    finally:
        tracer.signal(signal.SIGKILL)
        tracer.wait()
    error = json.loads(process.popen.stdout.read())["error"]
    assert error["code"] == "io", error
    assert "Input/output error" in error["text"] and "need not be damage" in error["text"], error
    assert not os.path.exists(target)
    assert site.hub.get("serves")["items"] == []
    site.run("restore", site.vm, "--to", f"raw:{target}")


def test_prune_and_protect(site):
    points = []
    for i in range(4):
        site.write(i * MIB)
        points.append(site.backup()["point"])
    site.run("protect", f"{site.vm}@{points[0]}", "--until", "2030-01-01")
    assert f"{site.vm}@{points[0]}" in site.run("ls", f"{site.vm}@{points[0]}").out
    dry = site.run("prune", site.vm, "--keep-last", "1", "--dry-run", "--json").json
    here = sendense("prune", "--repo", site.hub.repositories["main"], site.vm, "--keep-last", "1",
                    "--dry-run", "--json").json
    assert dry == here and [p["fate"] for p in dry["points"]] == ["keep", "prune", "prune", "keep"]
    done = site.run("prune", site.vm, "--keep-last", "1", "--json").json
    assert (done["kept"], done["pruned"], done["left"]) == (2, 2, 0)
    site.run("protect", f"{site.vm}@{points[0]}", "--off")
    out = site.run("prune", site.vm, "--keep-last", "1").out
    assert "pruned" in out and out.endswith("freed.\n")
    assert [p["point"] for p in site.hub.points(site.vm)] == points[-1:]
    site.check()
    site.fails("prune", site.vm, "--keep-last", "1", "--wait", "1m", status=2, contains="--wait")


# --- what cannot be -----------------------------------------------------------------------------


def test_refusals(site):
    disk = f"raw:{site.disk}"
    refused = fails("ls", "--repo", f"{site.hub.url}/main", "--ca-file", site.hub.ca_file, contains="token")
    assert refused.out == "", "columns named, and then nothing"
    case = {"case": "a hub's repository that is not there"}
    fails(*site.words("ls", store=f"{site.hub.url}/other"), contains="other", **case)
    fails("ls", "--repo", site.hub.url, "--ca-file", site.hub.ca_file, contains="token")
    fails("ls", "--repo", site.hub.url, "--token-file", site.hub.token_file,
          case="a hub's certificate that nobody vouches for", contains="certificate")
    fails("ls", "--repo", site.hub.repositories["main"], "--token-file", site.hub.token_file, status=2,
          case="a token for a folder", contains="folder")
    site.fails("backup", "--vm", site.vm, disk, "--mode", "incremental",
               case="an increment without a parent, through a hub", contains="increment")
    site.fails("backup", "--vm", site.vm, disk, "--resume", contains="no interrupted")
    site.fails("restore", site.vm, "--to", f"raw:{site.folder}/x", contains=site.vm)
    fails("repo", "check", site.hub.url, case="repo check through a hub", contains="folder")
    vms = [vm["vm"] for vm in site.hub.all("repositories/main/vms")]
    assert site.vm not in vms
    info = sendense("repo", "info", f"{site.hub.url}/main", "--token-file", site.hub.token_file,
                    "--ca-file", site.hub.ca_file, "--json").json
    assert info["name"] == "main" and info["vms"] == len(vms)


def test_environment_and_a_token_for_one_machine(site):
    token = site.hub.make_token("backup", vms=["tok*"])
    path = f"{site.folder}/token"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="ascii") as file:
        file.write(token + "\n")
    known = {**os.environ, "SENDENSE_TOKEN_FILE": path, "SENDENSE_CA_FILE": site.hub.ca_file}
    words = ["backup", "--repo", f"{site.hub.url}/main", f"--disk=2000=raw:{site.disk}", "--vm"]
    os.chmod(path, 0o640)
    told = sendense(*words, "tok01", "--quiet", env=known).err
    assert f"others may read the token in {path} (chmod 600 it)" in told, told
    os.chmod(path, 0o600)
    assert sendense(*words, "tok01", "--quiet", env=known).err == ""
    fails(*words, "db", env=known, contains="token")
    # Without the repository's name, as there is one.
    listed = sendense("ls", "--repo", site.hub.url, "--json", env=known).json
    assert [vm["vm"] for vm in listed["vms"]] == ["tok01"]
    site.check("tok01")


# --- what tells of changes -------------------------------------------------------------------------


def test_dirty_bitmaps(site):
    need("qemu-img", "qemu-nbd", "qemu-io")
    image = f"{site.folder}/guest.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", site.disk, image)

    def back_up(*words):
        server = site.servers.start("qemu-nbd", "--socket", f"{site.folder}/q.sock", "--read-only",
                                    "--persistent", "--shared=8", "-f", "qcow2", *words[:1], image, name="qemu-nbd")
        wait_for(lambda: os.path.exists(f"{site.folder}/q.sock"), "qemu-nbd")
        try:
            return site.backup(*words[1:], vm=site.vm, disk=f"nbd+unix:///?socket={site.folder}/q.sock")["disk"]
        finally:
            server.stop()

    run("qemu-img", "bitmap", "--add", image, "b1")
    assert back_up("--discard=ignore", "--bitmap", "b1")["mode"] == "full"
    run("qemu-io", "-c", "write -P 7 6M 192k", image)
    run("qemu-img", "bitmap", "--add", image, "b2")
    told = back_up("--bitmap=b1", "--changed-by", "bitmap:b1", "--bitmap", "b2")
    assert (told["mode"], told["changed_by"], told["bitmap"]) == ("incremental", "bitmap", "b2")
    assert told["read"] == told["sent"] == 3 * CHUNK
    run("qemu-img", "convert", "-O", "raw", image, f"{site.folder}/now.raw")
    site.check(source=f"{site.folder}/now.raw")
    # Another bitmap than the one that the point recorded.
    again = back_up("--bitmap=b1", "--changed-by", "bitmap:b1", "--bitmap", "b1")
    assert again["mode"] == "full" and again["fallback"]


def test_an_audit_finds_a_list_that_lies(site):
    site.backup("--change-id", "s1")
    site.write(1 * MIB)
    empty = write_extents(f"{site.folder}/changes", "2000", site.size, "s1", "s2", [])
    site.fails("backup", "--vm", site.vm, f"--disk=2000=raw:{site.disk}", "--changed-by", f"extents:{empty}",
               "--audit", "100%", case="a list of changes that lies, through a hub",
               contains=["audit", str(1 * MIB)])
    assert len(site.hub.points(site.vm)) == 1
    again = site.backup("--changed-by", f"extents:{empty}")["disk"]
    assert again["mode"] == "full" and again["fallback"] and "audit" in again["reason"]
    site.check()


def test_several_disks_are_one_point(site):
    other = make_disk(f"{site.folder}/other.raw", 7 * MIB + 512, [(MIB, MIB, "random")])
    report = site.run("backup", "--vm", "two", "--json", f"--disk=a=raw:{site.disk}", f"--disk=b=raw:{other}").json
    assert [d["key"] for d in report["disks"]] == ["a", "b"]
    assert hub.compare(site.image("two", key="a"), site.disk) and hub.compare(site.image("two", key="b"), other)
    alone = site.run("backup", "--vm", "two", "--json", f"--disk=a=raw:{site.disk}")
    assert alone.json["missing_disks"] == ["b"] and "disk b" in alone.err
    site.fails("restore", f"two@{report['point']}", "--to", f"raw:{site.folder}/x", status=2, contains="several")
    site.run("restore", f"two@{report['point']}", "--to", f"b=raw:{site.folder}/x")
    assert support.same_content(f"{site.folder}/x", "raw", other, "raw")


def test_no_secret_is_told(site):
    report = site.backup("--verbose")
    with open(site.hub.token_file, encoding="ascii") as file:
        token = file.read().strip()
    out = site.run("restore", site.vm, "--to", "null:24MiB", "--verbose").err
    for text in (report["err"], out):
        assert token not in text
        # Keys, seeds, the names of exports.
        assert not re.search(r"[0-9a-f]{32}", text), text


def test_a_machine_in_qemu(site):
    need("qemu-system-x86_64", "qemu-img")
    with machine_in(site.folder) as machine:
        words = ["backup", "--vm", site.vm, "--json", f"qemu:{machine.qmp}"]
        first = site.run(*words).json
        assert {d["mode"] for d in first["disks"]} == {"full"}
        machine.io("vd0", "write -P 9 1M 128k")
        second = site.run(*words).json
        changed = {d["key"]: d for d in second["disks"]}
        assert {d["changed_by"] for d in second["disks"]} == {"bitmap"}
        assert changed["vd0"]["sent"] == 2 * CHUNK and changed["vd1"]["sent"] == 0
        machine.freeze_copy("vd0", f"{site.folder}/frozen.raw")
        assert hub.compare(site.image(key="vd0"), f"{site.folder}/frozen.raw")
        assert machine.leftovers(bitmaps=1) == []


# --- interruptions ---------------------------------------------------------------------------------


RATE = "48MiB"
BIG = 72 * MIB


def make_big(servers, made):
    big = Site(servers, made, size=BIG)
    make_disk(big.disk, BIG, [(0, BIG - 12345, "random")])
    return big


@pytest.fixture(name="big")
def big_of_shared(servers, shared):
    return make_big(servers, shared)


@pytest.fixture(name="alone")
def big_of_its_own(servers):
    with hub.hub_in(servers) as made:
        yield make_big(servers, made.start())


def start_slow(site, *words, least=36 * MIB):
    """A backup of which a part was sent, and is durable at the hub."""
    process = site.start("backup", "--vm", site.vm, "--json", "--progress=json", f"--disk=2000=raw:{site.disk}",
                         f"--limit-rate={RATE}", *words, pipe=True)

    def sent():
        assert process.running, process.err
        for item in site.hub.get("sessions")["items"]:
            disks = site.hub.get(f"sessions/{item['id']}").get("disks", [])
            if sum(disk["received_bytes"] for disk in disks) > least:
                return True
        return False
    wait_for(sent, f"{least} bytes to be sent")
    return process


def unfinished(site):
    info = sendense("repo", "info", site.hub.repositories["main"], "--json").json
    return [job["point"] for job in info["jobs"] if job["vm"] == site.vm]


def report_of(process):
    status = process.wait()
    assert status == 0, process.err
    return json.loads(process.popen.stdout.read().splitlines()[-1])


def test_a_killed_client_is_gone_on_with(big):
    process = start_slow(big)
    process.signal(signal.SIGKILL)
    process.wait()
    report = big.backup()
    disk = report["disk"]
    assert disk["resumed"] == "resumed" and disk["kept"] > 0
    assert disk["read"] <= BIG - disk["kept"]
    big.check()
    assert unfinished(big) == []
    # What was kept counted on both sides; the root is that of a backup in one go.
    assert big.backup("--mode", "full")["disk"]["root"] == disk["root"]


def test_sigterm_leaves_it_and_ctrl_c_does_not(big):
    process = start_slow(big)
    support.interrupt(process, signal.SIGTERM)
    assert process.wait() == 1 and "goes on with it" in process.err
    [point] = unfinished(big)
    assert big.hub.get("sessions")["items"] == []
    # The source is another one since then: all is read, what is the same is not sent.
    big.write(7 * MIB)
    process = start_slow(big, "--resume", least=4 * MIB)
    support.interrupt(process, signal.SIGINT)
    assert process.wait() == 1 and "deleted" in process.err
    assert unfinished(big) == []
    big.fails("ls", big.vm, contains=big.vm)
    assert big.hub.get("sessions")["items"] == []
    report = big.backup()
    assert report["disk"]["resumed"] == "no" and report["point"] != point
    big.check()


def test_compared_after_a_change_of_the_source(big):
    process = start_slow(big)
    support.interrupt(process, signal.SIGTERM)
    process.wait()
    big.write(7 * MIB, 70 * MIB)
    disk = big.backup()["disk"]
    assert disk["resumed"] == "compared" and disk["kept"] > 0
    assert disk["read"] >= BIG - 2 * CHUNK and disk["sent"] <= BIG - disk["kept"] + 2 * CHUNK
    big.check()


def test_an_increment_is_gone_on_with(big):
    big.backup("--change-id", "s1", "--limit-rate", "2GiB")
    big.write(*range(0, 64 * MIB, MIB), length=MIB)
    changes = write_extents(f"{big.folder}/changes", "2000", big.size, "s1", "s2", [(0, 64 * MIB)])
    process = start_slow(big, "--changed-by", f"extents:{changes}")
    process.signal(signal.SIGKILL)
    process.wait()
    disk = big.backup("--changed-by", f"extents:{changes}")["disk"]
    assert (disk["mode"], disk["resumed"]) == ("incremental", "resumed") and disk["kept"] > 0
    assert disk["read"] <= 64 * MIB - disk["kept"]
    big.check()


def test_the_nbd_service_is_killed_and_the_backup_ends_well(alone):
    process = start_slow(alone)
    os.kill(alone.hub.nbd_service(), signal.SIGKILL)
    report = report_of(process)
    assert report["disks"][0]["resumed"] in ("resumed", "compared") and report["disks"][0]["kept"] > 0
    assert "beginning again" in process.err
    alone.check()
    assert unfinished(alone) == []


def test_the_hub_is_killed_and_started_again(alone):
    process = start_slow(alone)
    alone.hub.kill()
    alone.hub.stay_at_port()
    alone.hub.start()
    report = report_of(process)
    assert report["disks"][0]["resumed"] == "no"
    alone.check()


# --- the outcome of a commit --------------------------------------------------------------------------


class Forgetful(rest_proxy.Proxy):
    """The first answer to a commit is lost, and the key of its repetition: so it is with a hub that was
    killed before it remembered it."""

    def __init__(self, made):
        super().__init__(made)
        self.commits = 0

    def lets_through(self, method, path, headers):
        self.commits += path.endswith("/commit")
        if path.endswith("/commit") and self.commits > 1:
            del headers["Idempotency-Key"]
        return True

    def lets_back(self, method, path):
        return not path.endswith("/commit") or self.commits > 1


@pytest.fixture
def slow(alone, servers):
    """A hub whose NBD service is slow on its ways to the disk."""
    need("strace")
    calls = "fsync,fdatasync,renameat,renameat2,linkat,unlinkat"
    tracer = servers.start("strace", "-f", "-o", "/dev/null", "-e", f"trace={calls}", "-e",
                           f"inject={calls}:delay_enter=60000", "-p", alone.hub.nbd_service(), name="strace")
    wait_for(lambda: "attached" in tracer.err or not tracer.running, "strace")
    if "attached" not in tracer.err:
        pytest.skip(f"strace: {tracer.err.strip()}")
    yield alone
    tracer.signal(signal.SIGKILL)
    tracer.wait()


def test_a_commit_whose_answer_was_lost_is_followed(slow):
    with rest_proxy.proxy_of(slow.hub, Forgetful) as proxy:
        process = slow.servers.start(
            SENDENSE, "backup", "--repo", f"{proxy.url}/main", "--token-file", slow.hub.token_file,
            "--vm", slow.vm, "--json", f"--disk=2000=raw:{slow.disk}", name="backup", pipe=True)
        report_of(process)
    assert proxy.commits == 2
    assert len(slow.hub.points(slow.vm)) == 1
    slow.check()


@pytest.mark.parametrize("stage", ["settle", "rename-data", "rename-manifest"])
def test_ctrl_c_in_a_commit_tells_what_came_of_it(slow, stage):
    process = slow.start("backup", "--vm", slow.vm, "--json", f"--disk=2000=raw:{slow.disk}", pipe=True)
    wait_for(slow.hub.open_jobs, "the push")
    [job] = slow.hub.open_jobs()
    slow.hub.wait_stage(job["id"], stage)
    support.interrupt(process, signal.SIGINT)
    process.wait()
    wait_for(lambda: slow.hub.get("sessions")["items"] == [], "the end of the session")
    made = slow.hub.job(job["id"])["state"] == "done"
    assert made or stage == "settle"
    assert made == ("the restore point was made, although" in process.err), process.err
    assert made != ("no restore point was made" in process.err), process.err


# --- a hub that is not what it says -------------------------------------------------------------------


class FalseHub(http.server.BaseHTTPRequestHandler):
    """Answers what answers holds: {"GET /path": object}; all the rest is 404."""

    answers, calls, problem = {}, [], None

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?", maxsplit=1)[0].removeprefix("/api/v1/")
        self.calls.append(f"{self.command} {path}")
        said = self.answers.get(f"{self.command} {path}")
        body = json.dumps(said or {"code": "not-found", "status": 404, "detail": self.problem or f"no {path}"}).encode()
        self.send_response(200 if said else 404)
        self.send_header("Content-Type", "application/json" if said else "application/problem+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def false_hub():
    FalseHub.answers = {"GET health": {"status": "ok", "protocol": 1}, "GET repositories/main": {"name": "main"}}
    FalseHub.calls, FalseHub.problem = [], None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FalseHub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/main"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


DIGEST = {"algorithm": "xxh3-128", "seed": "5a" * 32, "chunk_bytes": CHUNK, "leaf_bytes": 16}


def test_other_bytes_than_those_backed_up_are_found(false_hub, servers):
    folder = servers.folder
    disk = make_disk(f"{folder}/disk.raw", 3 * MIB, [(0, MIB, "random")])
    sendense("repo", "init", f"{folder}/repo", "--digest", "sha256", "--quiet")
    sendense("backup", "--repo", f"{folder}/repo", "--vm", "web", f"raw:{disk}", "--quiet")
    [point] = sendense("ls", "--repo", f"{folder}/repo", "web", "--json").json["points"]
    server = servers.export(f"raw:{disk}", tcp=True)
    FalseHub.answers |= {
        "GET repositories/main/vms/web/points/latest": point,
        f"GET repositories/main/vms/web/points/{point['point']}": point,
        "POST serves": {"id": "s1", "vm": "web", "point": point["point"], "lease_s": 60,
                        "digest": {**DIGEST, "algorithm": "sha256", "leaf_bytes": 32},
                        "exports": [{"key": "disk0", "uri": server.uri, "size_bytes": 3 * MIB, "tls": None}]}}
    words = ["restore", "--repo", false_hub, "web", "--force", "--to", f"raw:{folder}/out.raw"]
    sendense(*words)
    assert support.same_content(f"{folder}/out.raw", "raw", disk, "raw")
    with open(disk, "r+b") as file:
        file.seek(2 * MIB + 77)
        file.write(b"x")
    result = sendense(*words, status=3)
    support.bad_input("a hub that serves other bytes than were backed up", result.message)
    assert point["disks"][0]["root"] in result.message
    assert not os.path.exists(f"{folder}/out.raw")
    assert FalseHub.calls.count("DELETE serves/s1") == 2


def test_what_a_hub_says_is_no_command_for_the_terminal(false_hub):
    """Escape sequences, of both kinds, in texts that commands show; JSON has them as they came."""
    evil = "a\x1b]0;b\x07c\x9b31md\re"
    FalseHub.answers["GET status"] = {
        "name": evil, "status": "alarm", "version": evil, "build": evil, "jobs": {"queued": 0, "running": 0},
        "vms": {"total": 1, "late": 1}, "repositories": [{"name": evil, "state": "ok"}],
        "alarms": [{"kind": evil, "severe": True, "object": "web", "since": evil, "text": evil, "vm": "web"}]}
    words = ["status", "--repo", false_hub.removesuffix("/main")]
    said = support.run(support.SENDENSE, *words, status=None).out
    assert "a?]0;b?c\xbf31md?e" in said and not set(said) & set("\x1b\x07\x9b\r"), said
    told = json.loads(support.run(support.SENDENSE, *words, "--json", status=None).out)
    assert told["alarms"][0]["text"] == evil
    # Errors too.
    FalseHub.answers["GET health"] = {"status": "ok", "protocol": 1}
    FalseHub.problem = f"no {evil}"
    refused = support.run(support.SENDENSE, "ls", "--repo", false_hub, "web", status=None)
    assert "a?]0;b?c\xbf31md?e" in refused.err and not set(refused.err) & set("\x1b\x07\x9b\r"), refused.err


def test_answers_that_cannot_be(false_hub, servers):
    disk = make_disk(f"{servers.folder}/disk.raw", MIB)
    words = ["backup", "--repo", false_hub, "--vm", "web", f"--disk=a=raw:{disk}", f"--disk=b=null:{MIB}"]
    export = {"uri": "nbd://127.0.0.1:9/same", "address": "127.0.0.1", "port": 9, "name": "same", "tls": None}
    good = {"id": "s1", "job": "s1", "point": "20261122T010203Z-abcdef", "lease_s": 60, "digest": DIGEST,
            "disks": [{"key": key, "mode": "full", "reason": "first backup", "fallback": False, "parent": None,
                       "change": "none", "resumed": "fresh", "kept_bytes": 0, "export": export}
                      for key in ("a", "b")]}
    first = good["disks"][0]
    for case, answer, text in (
            ("a hub that gives two disks one export", good, "same export"),
            ("a hub whose NBD is in the clear", {**good, "disks": [
                {**first, "export": {**export, "uri": "nbd://192.0.2.7:10809/x"}}]}, "without TLS"),
            ("a hub that names a socket of its client's", {**good, "disks": [
                {**first, "export": {**export, "uri": "nbd+unix:///x?socket=/run/disk.sock"}}]}, "is none"),
            ("a hub that forgets a disk", {**good, "disks": [first]}, "disks"),
            ("a hub with other chunks", {**good, "digest": {**DIGEST, "chunk_bytes": 4096}}, "chunks"),
            ("a hub without a seed", {**good, "digest": {**DIGEST, "seed": "5a"}}, "seed"),
            ("a hub whose point is none", {**good, "point": "../../x" * 9}, "point"),
            ("a hub that tells no parent", {**good, "disks": [{**first, "mode": "incremental"}]}, "parent")):
        FalseHub.answers["POST sessions"] = answer
        FalseHub.calls.clear()
        fails(*words, case=case, contains=text)
        assert "DELETE sessions/s1" in FalseHub.calls, case
    FalseHub.answers["GET health"] = {"status": "ok", "protocol": 2}
    fails(*words, case="a hub of another protocol", contains="protocol 2")
    FalseHub.answers["GET health"] = {"hello": "world"}
    fails(*words, case="something else than a hub", contains="no hub")

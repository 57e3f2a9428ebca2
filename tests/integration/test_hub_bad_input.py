"""What a hub goes through: connections that say nothing, too many of them, repositories and
state on file systems that run full or go away in the middle."""

import contextlib
import os
import resource
import socket
import time
import urllib.parse

import pytest

import hub
import support
from support import MIB, bad_input, make_disk, need, run, wait_for

SILENT = 1000


# --- connections --------------------------------------------------------------------------------


def connect_silently(address, number):
    """Whoever is waited for by no queue is still connecting: that is silent as well."""
    made = []
    for _ in range(number):
        one = socket.socket()
        one.setblocking(False)
        made.append(one)
        one.connect_ex(address)
    return made


def test_a_thousand_connections_that_say_nothing(servers, scratch):
    """To each port: others get through meanwhile, and all is given back, though the clients
    never let go."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * SILENT:
        pytest.skip(f"{hard} open files are allowed here, too few for the test's own side")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * SILENT), hard))
    disk = make_disk(f"{scratch}/d.raw", MIB, [(0, MIB, "random")])
    silent = []
    with hub.hub_in(servers, settings="[limits]\nconnections = 64") as h:
        h.start()
        h.push("web01", {"2000": disk})
        url = urllib.parse.urlsplit(h.url)
        pids = h.process.pid, h.nbd_service()
        taken = [(h.descriptors(pid), h.threads(pid)) for pid in pids]
        try:
            for port in (url.port, urllib.parse.urlsplit("//" + h.nbd).port):
                silent += connect_silently(("127.0.0.1", port), SILENT)
            began = time.monotonic()

            def gets_through():
                try:
                    return h.ask("GET", "/api/v1/health").status == 200
                except OSError:
                    return False  # told by an end, before or in the handshake

            wait_for(gets_through, "an answer of the API")
            answered = time.monotonic() - began
            h.push("web02", {"2000": disk})
            pushed = time.monotonic() - began
            most = [h.threads(pid) for pid in pids]
            assert most[0] <= taken[0][1] + 64 + 32 + 64 and most[1] <= taken[1][1] + 160, most
            wait_for(lambda: all(h.descriptors(pid) <= fds and h.threads(pid) <= threads
                                 for pid, (fds, threads) in zip(pids, taken)), "all to be given back")
            given_back = time.monotonic() - began
        finally:
            for one in silent:
                one.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        print(f"2 x {SILENT} silent connections: an answer after {answered:.1f} s, a push after "
              f"{pushed:.1f} s, all given back after {given_back:.1f} s, threads {most}")
        assert pushed < 45 and hub.compare(h.point_images("web02")["2000"], disk)


def test_one_connection_too_many(servers):
    """Others of the same session keep theirs; who is one too many is told who has them."""
    need("nbd", "qemu-img")
    import nbd  # pylint: disable=import-outside-toplevel
    with hub.hub_in(servers, tls=False, settings="[nbd]\nmax-connections = 2") as h:
        h.start()
        [disk] = h.open_session("web01", {"2000": MIB})["disks"]
        lines = [nbd.NBD() for _ in range(2)]
        for line in lines:
            line.connect_uri(disk["export"]["uri"])
        refused = run("qemu-img", "info", disk["export"]["uri"], status=1)
        assert "2 of 2 connections in use, by 127.0.0.1:" in refused.err
        bad_input("hub: one NBD connection more than there may be", refused.err.split(":", 1)[1])
        for line in lines:
            line.pwrite(b"\1" * 65536, 0)
        lines.pop().shutdown()
        wait_for(lambda: run("qemu-img", "info", disk["export"]["uri"], status=None).status == 0, "a place")
        lines.pop().shutdown()


# --- file systems -------------------------------------------------------------------------------


class Place:
    """File systems in memory, in a mount namespace of their own, where the hub runs as well."""

    def __init__(self, servers, scratch):
        support.need_mounts(scratch)
        need("nsenter")
        self.holder = servers.start("unshare", "-rm", "sleep", "infinity", name="namespace")
        self.under = ("nsenter", "-t", str(self.holder.pid), "-U", "--preserve-credentials", "-m", "--")
        wait_for(lambda: self.run("true", status=None).status == 0
                 and self.run("readlink", "/proc/self/ns/mnt").out != run("readlink", "/proc/self/ns/mnt").out,
                 "the namespace")

    def run(self, *words, **kwargs):
        return run(*self.under, *words, **kwargs)

    def mount(self, folder, size):
        os.makedirs(folder, exist_ok=True)
        self.run("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", folder)

    def bind(self, source, folder):
        os.makedirs(folder, exist_ok=True)
        self.run("mount", "--bind", source, folder)

    def unmount(self, folder):
        """At once, whoever is in it."""
        self.run("umount", "-l", folder)

    def bring(self, path, folder):
        """A copy of a file of the namespace, for those outside."""
        copy = f"{folder}/{os.path.basename(path)}"
        self.run("cp", path, copy)
        return copy

    def fill(self, folder):
        """Until nothing is free."""
        self.run("dd", "if=/dev/zero", f"of={folder}/ballast", "bs=64k", status=1)

    def empty(self, folder):
        self.run("rm", f"{folder}/ballast")


@pytest.fixture
def place(servers, scratch):
    return Place(servers, scratch)


def push_through(h, disks, meanwhile):
    """A session of which half is written before meanwhile(), the rest after it, as long as
    somebody takes it."""
    need("nbd")
    import nbd  # pylint: disable=import-outside-toplevel
    session = h.open_session("web01", {key: os.path.getsize(disk) for key, disk in disks.items()})
    lines = []
    for disk in session["disks"]:
        lines.append(nbd.NBD())
        lines[-1].set_uri_allow_local_file(True)
        lines[-1].connect_uri(h.uri(disk["export"]))
    with contextlib.suppress(nbd.Error):
        for line, disk in zip(lines, session["disks"]):
            with open(disks[disk["key"]], "rb") as file:
                content = file.read()
            for at in range(0, len(content), MIB):
                if line is lines[0] and at >= len(content) // 2:
                    meanwhile()
                    meanwhile = bool
                line.pwrite(content[at:at + MIB], at)
    for line in lines:
        with contextlib.suppress(nbd.Error):
            line.shutdown()
    return session


def pull_through(h, disks, meanwhile):
    """The same from here: meanwhile() in the middle of the copy."""
    job = h.start_backup("web01", {key: f"raw:{disk}" for key, disk in disks.items()}, mode="full",
                         limit_rate=8 * MIB)
    h.wait_stage(job["id"], "copy")
    wait_for(lambda: h.job(job["id"])["progress"].get("sent", 0) > 2 * MIB, "some of the data")
    meanwhile()
    return h.wait(job, None)


def expect_points(h, place, ends, disks):
    """What ended well is there, what did not is not, the next one is right, and all verify."""
    job = h.backup("web01", {key: f"raw:{disk}" for key, disk in disks.items()})
    points = [point["point"] for point in h.points("web01")]
    assert points == [end["point"] for end in ends + [job] if end["state"] == "done"]
    for key, image in h.point_images("web01").items():
        assert place.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, disks[key])
    h.wait(h.post("verifications", {"repository": "main"}))
    assert not h.open_jobs()


@pytest.mark.parametrize("way", ["push", "pull"])
def test_a_repository_that_is_unmounted_in_the_middle(servers, scratch, place, way):
    """Nothing lands in the folder beneath; the job says how it ended, and that is what is found
    when the file system is back."""
    disks = {key: make_disk(f"{scratch}/{key}.raw", 12 * MIB, [(0, 12 * MIB, "random")], seed=int(key))
             for key in ("2000", "2001")}
    store, there = f"{scratch}/store", f"{scratch}/mnt/repo"
    with hub.hub_in(servers, under=place.under, each_repository=["require-mount = yes"]) as h:
        h.repositories["main"] = there
        place.mount(store, "256m")
        place.bind(store, there)
        place.run(support.SENDENSE, "repo", "init", there, "--quiet")
        h.start()
        ends = [h.backup("web01", {key: f"raw:{disk}" for key, disk in disks.items()})]
        if way == "push":
            ends.append(h.commit(push_through(h, disks, lambda: place.unmount(there)), None))
        else:
            ends.append(pull_through(h, disks, lambda: place.unmount(there)))
        assert place.run("ls", "-A", there).out == ""
        for refused in (h.ask("POST", "sessions", {
                "repository": "main", "vm": "web02", "disks": [{"key": "1", "size_bytes": MIB}],
                "client": {"software": "t"}}).body["detail"],
                        h.wait(h.start_backup("web02", {"2000": f"raw:{disks['2000']}"}),
                               "failed")["error"]["text"]):
            assert "is it mounted?" in refused
        bad_input("hub: a repository that was unmounted", refused)
        assert place.run("ls", "-A", there).out == "" and h.get("health")["status"] == "ok"
        place.bind(store, there)
        expect_points(h, place, ends, disks)


def test_something_else_is_mounted(servers, scratch, place):
    """What the repository lay on when it was seen first counts: neither a copy of it in another
    place nor another repository is taken for it, under whatever name it is mounted."""
    disk = make_disk(f"{scratch}/d.raw", MIB, [(0, MIB, "random")])
    one, other, there = f"{scratch}/one", f"{scratch}/other", f"{scratch}/mnt/repo"
    with hub.hub_in(servers, under=place.under, each_repository=["require-mount = yes"]) as h:
        h.repositories["main"] = there
        for folder in (one, other):
            place.mount(folder, "64m")
        place.bind(one, there)
        place.run(support.SENDENSE, "repo", "init", there, "--quiet")
        h.start()
        h.push("web01", {"2000": disk})
        place.run("cp", "-a", one, f"{other}/copy")

        def refused(words):
            answer = h.ask("POST", "sessions", {
                "repository": "main", "vm": "web02", "disks": [{"key": "1", "size_bytes": MIB}],
                "client": {"software": "t"}}).body
            assert answer.get("code") == "denied" and words in answer["detail"], answer
            error = h.wait(h.start_backup("web02", {"2000": f"raw:{disk}"}), "failed")["error"]
            assert error["code"] == "denied" and words in error["text"], error
            return error["text"]

        def instead(folder):
            place.unmount(there)
            place.bind(folder, there)

        instead(f"{other}/copy")
        bad_input("hub: a copy of the repository, mounted in its place",
                  refused("lies on tmpfs none, folder /copy now, and not on tmpfs none, folder /"))
        h.restart()
        refused("folder /copy now")
        place.unmount(there)
        place.mount(there, "64m")
        place.run(support.SENDENSE, "repo", "init", there, "--quiet")
        bad_input("hub: another repository, mounted in its place", refused("is the repository"))
        instead(one)
        h.backup("web01", {"2000": f"raw:{disk}"})
        assert place.run("ls", f"{there}/vms").out.split() == ["web01"]
        # Moved on purpose.
        instead(f"{other}/copy")
        for lines in ([], ["require-mount = yes"]):
            h.each_repository = lines
            h.write_config()
            h.restart()
            h.backup("web01", {"2000": f"raw:{disk}"})
        instead(one)
        refused("folder / now, and not on tmpfs none, folder /copy")


@pytest.mark.parametrize("way", ["push", "pull"])
def test_a_disk_that_runs_full_in_the_middle(servers, scratch, place, way):
    """Nothing is committed, the reason is told, and with room again it goes on."""
    disks = {"2000": make_disk(f"{scratch}/d.raw", 16 * MIB, [(0, 16 * MIB, "random")])}
    there = f"{scratch}/repo-main"
    with hub.hub_in(servers, under=place.under) as h:
        place.mount(there, "96m")
        place.run(support.SENDENSE, "repo", "init", there, "--quiet")
        h.start()
        ends = [h.backup("web01", {"2000": f"raw:{disks['2000']}"})]
        if way == "push":
            ends.append(h.commit(push_through(h, disks, lambda: place.fill(there)), None))
        else:
            ends.append(pull_through(h, disks, lambda: place.fill(there)))
        assert (ends[-1]["state"], ends[-1]["error"]["code"]) == ("failed", "no-space"), ends[-1]
        bad_input(f"hub: a disk that runs full during a {way}", ends[-1]["error"]["text"])
        assert [point["point"] for point in h.points("web01")] == [ends[0]["point"]]
        assert h.get("health")["status"] == "ok"
        place.empty(there)
        expect_points(h, place, ends, disks)


def test_the_hub_s_own_disk_runs_full(servers, scratch, place):
    """What must be noted is refused, what only asks is answered; what runs comes to its end, and
    with room again all goes on."""
    disk = make_disk(f"{scratch}/d.raw", 8 * MIB, [(0, 8 * MIB, "random")])
    with hub.hub_in(servers, under=place.under) as h:
        place.mount(h.state, "24m")
        h.init()
        h.token_file, h.ca_file = [place.bring(path, scratch) for path in (h.token_file, h.ca_file)]
        h.start()
        job = h.start_backup("web01", {"2000": f"raw:{disk}"}, limit_rate=2 * MIB)
        h.wait_stage(job["id"], "copy")
        place.fill(h.state)
        refused = h.ask("POST", "backups", {"repository": "main", "vm": "web02",
                                            "disks": [{"key": "2000", "source": f"raw:{disk}"}]})
        assert refused.status == 507 and "disk is full" in refused.body["detail"], refused.body
        bad_input("hub: its own disk is full", refused.body["detail"])
        assert h.get("health")["status"] == "ok" and len(h.open_jobs()) == 1
        h.process.wait_err("cannot note job")  # that it ended
        place.empty(h.state)
        assert h.wait(job)["point"]
        h.backup("web02", {"2000": f"raw:{disk}"})
        assert len(h.points("web01")) == len(h.points("web02")) == 1
        h.restart()
        assert h.job(job["id"])["state"] == "done" and not h.open_jobs()

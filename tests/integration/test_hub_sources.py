"""Disks behind TLS that the hub reads and writes itself: with what it connects stands in its settings,
and neither in a call nor in a command line."""

import os

import pytest

import hub
import support
from support import MIB, make_disk, need, sendense
from test_tls import Pki

KEYS = {"hub": "5a" * 32, "other": "a5" * 32}
SIZE = 4 * MIB


def write_keys(path, *names):
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="ascii") as file:
        file.write("".join(f"{name}:{KEYS[name]}\n" for name in names))
    return path


@pytest.fixture(name="site")
def site_of(servers, scratch):
    """Three disks: two with keys, one with certificates; and the hub that may read them."""
    need("nbdkit", "qemu-img")
    pki = Pki(scratch)
    disks = [make_disk(f"{scratch}/{nr}.raw", SIZE, [(0, MIB, "random")], seed=nr) for nr in range(3)]
    both, one = write_keys(f"{scratch}/a.psk", "hub", "other"), write_keys(f"{scratch}/b.psk", "other")
    takes = [f"--tls-psk={both}", f"--tls-psk={one}", f"--tls-certificates={pki.folder}"]
    served = [servers.nbdkit("--tls=require", take, "file", disk, tcp=True) for take, disk in zip(takes, disks)]
    uris = [server.uri.replace("nbd://", "nbds://") for server in served]
    two = write_keys(f"{scratch}/two.psk", "hub", "other")
    lines = [f"credentials = {uris[0]} psk:{two}", f"credentials = {uris[1]} psk:{two} other",
             f"credentials = {uris[2]} certificates:{pki.anonymous}"]
    allow = ["source = nbds://127.0.0.1:*/", "target = nbds://127.0.0.1:*/", f"source = raw:{scratch}/", *lines]
    with hub.hub_in(servers, allow=allow) as made:
        made.start()
        made.sources = {str(nr): (uri, disk) for nr, (uri, disk) in enumerate(zip(uris, disks))}
        yield made


def test_each_disk_with_its_own(site):
    job = site.backup("a", {key: uri for key, (uri, _) in site.sources.items()})
    for key, image in site.point_images("a").items():
        assert hub.compare(image, site.sources[key][1])
    with open(site.sources["1"][1], "r+b") as file:
        file.write(bytes(SIZE))
    site.wait(site.post("restores", {"repository": "main", "vm": "a", "force": True, "targets": [
        {"key": "1", "target": site.sources["1"][0]}]}))
    assert hub.compare(site.point_images("a")["1"], site.sources["1"][1])
    log = site.ask("GET", f"jobs/{job['id']}/log").body
    told = str(log) + str(job) + site.process.err
    assert not any(key in told for key in KEYS.values()) and ".psk" not in told


def test_what_is_not_in_the_settings(site, scratch):
    made = site
    made.stop()
    made.allow = [line for line in made.allow if not line.startswith("credentials")]
    made.write_config()
    made.start()
    job = made.wait(made.start_backup("a", {"0": made.sources["0"][0]}), "failed")
    support.bad_input("hub: a TLS source without credentials", job["error"]["text"])
    assert "TLS needs" in job["error"]["text"]
    # A job does not say itself what to take.
    body = {"repository": "main", "vm": "a", "disks": [
        {"key": "0", "source": f"{made.sources['0'][0]}?tls-psk-file={scratch}/two.psk"}]}
    assert 400 <= made.ask("POST", "backups", body).status < 500


def test_they_are_no_disks_themselves(site, scratch):
    answer = site.ask("POST", "backups", {"repository": "main", "vm": "a", "disks": [
        {"key": "0", "source": f"raw:{scratch}/two.psk"}]})
    assert answer.status == 403, answer.body
    sendense("hub", "check-config", "--config", site.conf)
    os.chmod(f"{scratch}/two.psk", 0o644)
    assert "chmod 600" in sendense("hub", "check-config", "--config", site.conf, status=None).out


@pytest.mark.parametrize("line, word", [
    ("nbd://127.0.0.1/ psk:/k", "no nbds://"), ("nbds://127.0.0.1/", "two words"),
    ("nbds://127.0.0.1/ /k", "neither psk:"), ("nbds://127.0.0.1/ psk:k", "neither psk:"),
    ("nbds://127.0.0.1/ certificates:/k me", "no identity"), ("nbds://127.0.0.1/ psk:/k a b", "two words"),
    ("nbds://127.0.0.1/../ psk:/k", "")])
def test_lines_that_are_wrong(servers, line, word):
    with hub.hub_in(servers, allow=[f"credentials = {line}"]) as made:
        made.init()
        result = sendense("hub", "check-config", "--config", made.conf, status=2)
        support.bad_input(f"hub.conf: credentials = {line}", result.out.splitlines()[0])
        assert "[allow] credentials" in result.out and word in result.out, result

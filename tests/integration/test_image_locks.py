"""Images that another program has open: QEMU's locks, in both directions."""

import pytest

import support
from support import MIB, fails, make_disk, run, sendense

WRITTEN = "another program is writing to it"
IN_USE = "another program has it open"


@pytest.fixture(params=["raw", "qcow2"])
def image(request, scratch):
    """(name for Sendense, path, format) of a disk with something on it."""
    disk = make_disk(f"{scratch}/disk.raw", 8 * MIB, [(0, 2 * MIB, "random")])
    if request.param == "raw":
        return f"raw:{disk}", disk, "raw"
    path = f"{scratch}/disk.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", disk, path)
    return f"qcow2:{path}", path, "qcow2"


def ready(server):
    """Its socket listens before it opens the image: an answer means that it has."""
    run("nbdinfo", "--size", server.uri)
    return server


def test_a_disk_that_a_machine_writes_to_is_not_read_as_if_it_stood_still(image, scratch, servers):
    name, path, image_format = image
    machine = ready(servers.qemu_nbd(path, image_format))
    repo = f"{scratch}/repo"
    sendense("repo", "init", repo)
    fails("backup", "--repo", repo, "--vm", "a", name, contains=[WRITTEN])
    fails("copy", name, f"raw:{scratch}/copy.raw", contains=[WRITTEN])
    fails("export", name, "--read-only", "--socket", f"{scratch}/s", contains=[WRITTEN])
    # What that program exports itself can be read, and the image when it is gone.
    sendense("backup", "--repo", repo, "--vm", "a", machine.uri)
    machine.stop()
    sendense("backup", "--repo", repo, "--vm", "a", name)


def test_a_disk_that_is_in_use_is_not_overwritten(image, scratch, servers):
    name, path, image_format = image
    before = open(path, "rb").read()
    reader = ready(servers.qemu_nbd(path, image_format, read_only=True))
    fails("copy", "null:8M", name, "--force", contains=[IN_USE])
    fails("export", name, "--socket", f"{scratch}/s", contains=[IN_USE])
    assert open(path, "rb").read() == before
    # Readers do not disturb each other.
    sendense("copy", name, f"raw:{scratch}/copy.raw")
    reader.stop()
    sendense("copy", "null:8M", name, "--force")


def test_two_exports_do_not_write_to_one_image_and_qemu_sees_ours(image, scratch, servers):
    name, path, image_format = image
    servers.export(name)
    fails("export", name, "--socket", f"{scratch}/s", contains=[IN_USE])
    fails("export", name, "--read-only", "--socket", f"{scratch}/s", contains=[WRITTEN])
    tried = run("qemu-io", "-f", image_format, "-c", "write 0 64k", path, status=None)
    assert tried.status == 1 and "lock" in tried.err, tried


def test_read_only_exports_of_one_image_get_along(image, servers):
    name, path, image_format = image
    servers.export(name, "--read-only")
    second = servers.export(name, "--read-only")
    run("qemu-img", "info", "-f", image_format, path)
    run("qemu-img", "compare", "-f", image_format, "-F", "raw", path, second.uri)
    support.fails("export", name, "--socket", "/nonexistent/s", contains=[IN_USE])

"""What clients push into restore points over NBD, and read from them: by other people's clients,
with digests that are computed here."""

import glob
import json
import os
import re
import signal
import socket
import threading

import pytest

from nbd_service import (CHUNK, Digests, Refused, Service, exports, make_repository, random_disk,
                         read_records, service)
from support import (KIB, MIB, TIB, TIMEOUT, bad_input, need, run, sendense,
                     under_sanitizer, wait_for)

SIZE = 4 * MIB + 1536


def write_file(path, data):
    with open(path, "wb") as file:
        file.write(data)
    return path


def read_file(path):
    with open(path, "rb") as file:
        return file.read()


@pytest.fixture
def repo(scratch):
    return make_repository(f"{scratch}/repo", "--digest", "sha256", "--quiet")


@pytest.fixture
def running(scratch):
    with service(f"{scratch}/run") as one:
        yield one


def points(repo, vm="web"):
    done = sendense("ls", "--repo", repo, vm, "--json", status=None)
    return [point["point"] for point in done.json["points"]] if done.status == 0 else []


def manifest(repo, point, vm="web"):
    with open(f"{repo}/vms/{vm}/points/{point}/manifest.json", encoding="utf-8") as file:
        return json.load(file)["facts"]


def image_of(repo, point, key="a", vm="web"):
    return f"{repo}/vms/{vm}/disks/{key}/{point}.qcow2"


def expect_point(repo, point, data, key="a", vm="web"):
    """QEMU reads it as these bytes (and zeros up to a whole sector), and finds no fault."""
    path = f"{os.path.dirname(repo)}/expected.raw"
    write_file(path, data)
    image = image_of(repo, point, key, vm)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", path, image)
    run("qemu-img", "check", "-q", image)
    os.unlink(path)


def expect_clean(repo, nr_points, unfinished=0):
    sendense("verify", "--repo", repo, "--quiet")
    done = sendense("repo", "check", repo, "--json", status=None)
    found = done.json
    assert found["points"] == nr_points and found["damages"] == 0, found
    assert found["jobs"] == unfinished and found["foreign"] == 0, found
    left = [name for name in os.listdir(f"{repo}/.locks") if name.endswith(".write")]
    assert not left


class Client:
    """A client of libnbd's, on several connections."""

    def __init__(self, uri, connections=1):
        import nbd  # pylint: disable=import-outside-toplevel
        self.handles = []
        for _ in range(connections):
            handle = nbd.NBD()
            handle.set_tls(nbd.TLS_ALLOW)
            handle.connect_uri(uri)
            self.handles.append(handle)

    def __getattr__(self, name):
        return getattr(self.handles[0], name)

    def spread(self, writes):
        """[(bytes, offset)] over all connections at once."""
        failed = []

        def work(handle, part):
            try:
                for data, offset in part:
                    handle.pwrite(data, offset)
                handle.flush()
            except Exception as error:  # pylint: disable=broad-except
                failed.append(error)
        threads = [threading.Thread(target=work, args=(handle, writes[i::len(self.handles)]))
                   for i, handle in enumerate(self.handles)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        assert not failed, failed

    def close(self):
        for handle in self.handles:
            handle.shutdown()


# --- other people's clients ---------------------------------------------------------


def test_any_client_writes_a_session(running, repo, scratch):
    """nbdcopy, which knows nothing of digests: that is recorded."""
    need("nbdcopy", "qemu-img")
    data = random_disk("nbdcopy")
    path = write_file(f"{scratch}/disk.raw", data)
    opened = running.open("s", repo, {"a": len(data)}, digest="optional",
                          client={"software": "nbdcopy", "build": "1.14"})
    run("nbdcopy", "--connections=4", path, exports(opened)["a"]["uri"])
    assert running.commit("s", {"a": None})["state"] == "committed"
    facts = manifest(repo, opened["point"])
    assert facts["disks"][0]["checked"] == "absent" and facts["client"] == "nbdcopy (1.14)"
    told = sendense("ls", "--repo", repo, f"web@{opened['point']}", "--json").json
    assert told["client"] == "nbdcopy (1.14)" and told["disks"][0]["checked"] == "absent"
    shown = sendense("ls", "--repo", repo, f"web@{opened['point']}").out
    assert "sent by    nbdcopy (1.14)" in shown and "gave none" in shown
    expect_point(repo, opened["point"], data)
    expect_clean(repo, 1)


def test_qemu_img_writes_a_session(running, repo, scratch):
    need("qemu-img")
    data = random_disk("qemu-img", SIZE // 512 * 512)
    path = write_file(f"{scratch}/disk.raw", data)
    opened = running.open("s", repo, {"a": len(data)})
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", path, exports(opened)["a"]["uri"])
    assert running.commit("s", {"a": Digests(opened).root(data)})["state"] == "committed"
    expect_point(repo, opened["point"], data)


def test_fio_writes_a_session(running, repo, scratch):
    """Parts of chunks, from several jobs, in any order; fio reads back what it wrote."""
    need("fio", "qemu-img", "nbdcopy")
    opened = running.open("s", repo, {"a": 8 * MIB}, digest="optional")
    uri = exports(opened)["a"]["uri"]
    run("fio", "--name=w", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--size=8M",
        "--io_size=6M", "--bsrange=512-96k", "--blockalign=512", "--iodepth=8", "--verify=crc32c",
        "--do_verify=1", "--randseed=7", cwd=scratch)
    before = f"{scratch}/before.raw"
    run("nbdcopy", uri, before)
    assert running.commit("s", {"a": None})["state"] == "committed"
    expect_point(repo, opened["point"], read_file(before))
    expect_clean(repo, 1)


# --- digests -------------------------------------------------------------------------


def change(data, seed, nr=12):
    """Some bytes, zeros and a whole chunk changed: the new disk, and which chunks."""
    disk, chunks = bytearray(data), set()
    fill = random_disk(seed, len(data))
    for i in range(nr):
        at = (hash((seed, i)) % (len(data) - 70 * KIB)) // 512 * 512
        length = (512, 40 * KIB, 70 * KIB, CHUNK)[i % 4]
        disk[at:at + length] = bytes(length) if i % 3 == 0 else fill[at:at + length]
        chunks |= set(range(at // CHUNK, (at + length - 1) // CHUNK + 1))
    return bytes(disk), chunks


def push_increment(running, repo, session, data, chunks, extra=(), **members):
    """As a good client: whole chunks over several connections, zeros as zeros."""
    opened = running.open(session, repo, [
        {"key": "a", "size_bytes": len(data), "change": "extents", **members}], vm="web")
    disk = opened["disks"][0]
    client = Client(disk["export"]["uri"], 4)
    writes = []
    for chunk in sorted(chunks | set(extra)):
        part = data[chunk * CHUNK:(chunk + 1) * CHUNK]
        if part.strip(b"\0"):
            writes.append((part, chunk * CHUNK))
        else:
            client.zero(len(part), chunk * CHUNK)
    client.spread(writes)
    client.close()
    return opened


def push_full(running, repo, data, session="full", key="a", **members):
    opened = running.open(session, repo, [
        {"key": key, "size_bytes": len(data), **members}], mode="full")
    client = Client(exports(opened)[key]["uri"], 2)
    client.spread([(data[at:at + 200000], at) for at in range(0, len(data), 200000)])
    client.close()
    ended = running.commit(session, {key: Digests(opened).root(data)})
    assert ended["state"] == "committed", ended
    return opened["point"]


def test_fulls_and_increments_with_digests(running, repo):
    need("nbd", "qemu-img")
    data = random_disk("first")
    known = {push_full(running, repo, data, change_id="id0"): data}
    for i in range(1, 5):
        data, chunks = change(data, f"change {i}")
        # What is sent although it did not change counts as well.
        opened = push_increment(running, repo, f"inc{i}", data, chunks, extra=(3, 64),
                                **{"from": f"id{i - 1}", "change_id": f"id{i}"})
        disk = opened["disks"][0]
        assert disk["mode"] == "incremental" and disk["change"] == "extents", disk
        assert disk["parent"] == list(known)[-1]
        digest = Digests(opened).sent(data, chunks | {3, 64})
        assert running.commit(f"inc{i}", {"a": digest})["state"] == "committed"
        known[opened["point"]] = data
    for point, content in known.items():
        expect_point(repo, point, content)
    assert [manifest(repo, point)["disks"][0]["checked"] for point in known] == \
        ["root"] + ["sent"] * 4
    expect_clean(repo, 5)


def test_digests_of_what_is_there(running, repo):
    """What the parent holds, then what was sent of this session."""
    need("nbd")
    data = random_disk("first")
    push_full(running, repo, data)
    opened = running.open("s", repo, [{"key": "a", "size_bytes": SIZE, "change": "compare"}])
    nodes = [Digests.node(data[at:at + CHUNK]) for at in range(0, SIZE, CHUNK)]

    def records(first, count):
        answer, octets = running.call("session-digests", session="s", key="a", first=first,
                                      count=count)
        chunks = read_records(octets, opened["digest"]["leaf_bytes"])
        assert answer["nr"] == len(chunks) and answer["first"] == first
        return chunks
    for first, count in ((0, 1000), (5, 3), (len(nodes) - 1, 1)):
        got = records(first, count)
        assert len(got) == min(count, len(nodes) - first)
        for i, (kind, sent, leaf) in enumerate(got):
            node = nodes[first + i]
            assert not sent and (kind == 1 if node[0] == 255 else leaf == node)
    client = Client(exports(opened)["a"]["uri"])
    client.pwrite(b"x" * CHUNK, 2 * CHUNK)
    client.pwrite(b"y" * 100, 5 * CHUNK + 7)
    client.zero(CHUNK, 8 * CHUNK)
    got = records(0, 10)
    assert got[2] == (2, True, Digests.node(b"x" * CHUNK))
    assert got[5][:2] == (0, False) and got[8][:2] == (1, True)
    with pytest.raises(Refused, match="chunks"):
        records(len(nodes), 1)
    with pytest.raises(Refused, match="no disk b"):
        running.call("session-digests", session="s", key="b", first=0, count=1)
    running.call("session-abort", session="s")


# --- refusals ---------------------------------------------------------------------------


def two_disks(seed, sizes=(MIB, MIB)):
    return {key: random_disk(f"{seed} {key}", size) for key, size in zip("ab", sizes)}


def describe(disks, uuids=("1111", "2222")):
    return [{"key": key, "size_bytes": len(data), "source": {
        "kind": "raw", "label": key, "identity": {"disk-uuid": uuid}}}
        for (key, data), uuid in zip(sorted(disks.items()), uuids)]


def write_all(opened, disks, swapped=False, altered=None):
    for key, data in disks.items():
        to = {"a": "b", "b": "a"}[key] if swapped else key
        if altered and key == altered[0]:
            data = bytearray(data)
            data[altered[1]] ^= 1
            data = bytes(data)
        client = Client(exports(opened)[to]["uri"])
        client.pwrite(data, 0)
        client.close()


def push_two(running, repo, name, disks, described=None, swapped=False, altered=None):
    """Ends how it ends: "committed", "refused", or the code of an error before."""
    try:
        opened = running.open(name, repo, described or describe(disks))
    except Refused as error:
        return error.code, error.text
    try:
        write_all(opened, disks, swapped, altered)
        digests = Digests(opened)
        ended = running.commit(name, {
            disk["key"]: digests.root(disks[disk["key"]]) for disk in opened["disks"]})
    except Exception as error:  # pylint: disable=broad-except
        running.call("session-abort", session=name)
        running.until(name)
        return "write", str(error)
    return ended["state"], ended.get("error", {}).get("text", "")


def test_a_hundred_swaps_are_refused(running, repo):
    """Exports, keys, identities or sizes swapped, or one bit altered on the wire."""
    need("nbd")
    # Disks of the same size have their own machine: nothing but digest and identity differs.
    same, other = two_disks("same"), two_disks("other", (MIB, MIB + 65536))
    assert push_two(running, repo, "good", same)[0] == "committed"
    refused, kept = {}, points(repo)
    for i in range(20):
        results = {
            "exports swapped": push_two(running, repo, f"e{i}", two_disks(i), swapped=True),
            "bit altered": push_two(running, repo, f"b{i}", two_disks(i),
                                    altered=("ab"[i % 2], 52433 * i % MIB)),
            "identities swapped": push_two(running, repo, f"i{i}", two_disks(i),
                                           describe(two_disks(i), ("2222", "1111"))),
            "keys swapped": push_two(
                running, repo, f"k{i}", two_disks(i),
                [dict(disk, key={"a": "b", "b": "a"}[disk["key"]])
                 for disk in describe(two_disks(i))]),
            "sizes swapped": push_two(running, repo, f"z{i}", other, [
                dict(disk, size_bytes=size)
                for disk, size in zip(describe(other), (MIB + 65536, MIB))]),
        }
        for what, (state, text) in results.items():
            assert state not in ("committed", "failed"), (what, text)
            assert points(repo) == kept
            refused.setdefault((what, state), []).append(text)
    assert sum(len(texts) for texts in refused.values()) == 100
    for (what, _), texts in refused.items():
        if "altered" in what or "exports" in what:
            assert re.search(r"disk [ab]", texts[0])
        bad_input(f"a push with {what}", texts[0])
    expect_clean(repo, 1)


def test_sizes_swapped_against_the_last_point(running, repo):
    need("nbd")
    disks = two_disks("sizes", (MIB, 2 * MIB))
    assert push_two(running, repo, "good", disks)[0] == "committed"
    swapped = [{"key": "a", "size_bytes": 2 * MIB}, {"key": "b", "size_bytes": MIB}]
    with pytest.raises(Refused, match="swapped") as caught:
        running.open("s", repo, swapped)
    assert caught.value.code == "conflict"
    with pytest.raises(Refused, match="the same one"):
        running.open("s", repo, describe(disks, ("1", "1")))
    with pytest.raises(Refused, match="twice"):
        running.open("s", repo, [{"key": "a", "size_bytes": MIB}] * 2)


def test_missing_disks_and_fallback_are_told(running, repo):
    need("nbd")
    disks = two_disks("missing")
    assert push_two(running, repo, "good", disks)[0] == "committed"
    opened = running.open("s", repo, [{"key": "b", "size_bytes": 2 * MIB}])
    assert opened["missing_disks"] == ["a"]
    disk = opened["disks"][0]
    assert disk["mode"] == "full" and disk["fallback"] and "resized" in disk["reason"]
    running.call("session-abort", session="s")


def test_bad_requests(running, repo):
    need("nbd")
    opened = running.open("s", repo, {"a": MIB})
    cases = [
        ("session-open", {}, "usage"),
        ("session-opens", {}, "usage"),
        ("status", {"x": 1}, "usage"),
        ("session", {"session": "none"}, "not-found"),
        ("session", {"session": 7}, "usage"),
        ("session-renew", {"session": "s", "more": 1}, "usage"),
        ("session-commit", {"session": "s", "disks": []}, "usage"),
        ("session-commit", {"session": "s", "disks": [{"key": "a"}]}, "usage"),
        ("session-commit", {"session": "s", "disks": [{"key": "b"}]}, "not-found"),
        ("session-commit", {"session": "s", "disks": [
            {"key": "a", "digest": {"kind": "root", "hex": "12"}}]}, "usage"),
        ("session-commit", {"session": "s", "disks": [
            {"key": "a", "digest": {"kind": "sent", "hex": "00" * 32}}]}, "usage"),
        ("session-config", {"session": "s", "name": "x"}, "usage"),
        ("session-distrust", {"session": "s", "key": "a", "offsets": [0]}, "usage"),
        ("session-forget", {"session": "s"}, "busy"),
        ("serve-open", {"serve": "v", "repository": repo, "vm": "none"}, "not-found"),
    ]
    for verb, members, code in cases:
        with pytest.raises(Refused) as caught:
            running.call(verb, **members)
        assert caught.value.code == code, (verb, members, caught.value)
        bad_input(f"nbd-service: {verb} {json.dumps(members)[:60]}", caught.value.text)
    for text in (b"{\n", b"[]\n", b"\n", b'{"verb":"status","verb":"stop"}\n',
                 b"[" * 5000 + b"\n"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"{running.folder}/nbd.sock")
            sock.sendall(text)
            answer = json.loads(sock.makefile("rb").readline())
            assert answer["error"]["code"] == "protocol", answer
    with pytest.raises(Refused, match="by session s") as caught:
        running.open("s2", repo, {"a": MIB})
    assert caught.value.code == "busy"
    with pytest.raises(Refused) as caught:
        running.open("s", repo, {"a": MIB}, vm="other")
    assert caught.value.code == "exists"
    with pytest.raises(Refused, match="mounted"):
        running.open("s3", repo, {"a": MIB}, vm="other", repository_id="0" * 32)
    assert opened["lease_s"] == 300
    running.call("session-abort", session="s")
    assert running.until("s")["state"] == "aborted"
    assert not glob.glob(f"{repo}/.incoming/*") and not glob.glob(f"{repo}/.locks/*.write")


def test_writes_that_may_not_be(running, repo):
    """Beyond the size, after the end, under another session's name."""
    need("nbd")
    import nbd  # pylint: disable=import-outside-toplevel
    one = running.open("one", repo, {"a": MIB}, vm="one")
    two = running.open("two", repo, {"a": MIB}, vm="two")
    assert exports(one)["a"]["name"] != exports(two)["a"]["name"]
    assert len(exports(one)["a"]["name"]) == 32
    client = Client(exports(one)["a"]["uri"])
    client.set_strict_mode(0)
    with pytest.raises(nbd.Error, match="ENOSPC|EINVAL"):
        client.pwrite(b"x" * 512, MIB)
    client.pwrite(b"z" * MIB, 0)
    ended = running.commit("one", {"a": Digests(one).root(b"z" * MIB)})
    assert ended["state"] == "committed"
    assert exports(one)["a"]["name"] not in running.log()
    with pytest.raises(nbd.Error):
        client.pwrite(b"x", 0)
        client.flush()
    with pytest.raises(nbd.Error):
        Client(exports(one)["a"]["uri"])
    with pytest.raises(Refused) as caught:
        running.call("session-commit", session="one", disks=[])
    assert caught.value.code == "refused"
    # Names are told to nobody.
    listing = run("nbdinfo", "--list", "--json", exports(two)["a"]["uri"].rsplit("/", 1)[0],
                  status=None)
    assert exports(two)["a"]["name"] not in listing.out
    assert exports(two)["a"]["name"] not in running.log()


# --- leases, going on ----------------------------------------------------------------------


def test_a_lease_ends(running, repo):
    need("nbd")
    opened = running.open("s", repo, {"a": MIB}, lease_s=2)
    client = Client(exports(opened)["a"]["uri"])
    # Traffic renews it: longer than the lease in all.
    for i in range(4):
        client.pwrite(b"x" * CHUNK, i * CHUNK)
        seen = running.call("session", session="s", wait_ms=800,
                            seen=running.call("session", session="s")["changes"])
        assert seen["state"] == "open", seen
    assert running.until("s")["state"] == "expired"
    with pytest.raises(Refused) as caught:
        running.call("session-renew", session="s")
    assert caught.value.code == "refused"
    again = running.open("s2", repo, {"a": MIB})
    assert again["job"] == opened["job"] and again["disks"][0]["resumed"] != "fresh"
    assert again["disks"][0]["kept_bytes"] == 4 * CHUNK
    assert exports(again)["a"]["name"] != exports(opened)["a"]["name"]
    running.call("session-abort", session="s2")
    assert running.until("s2")["state"] == "aborted"
    assert not glob.glob(f"{repo}/.incoming/*") and not glob.glob(f"{repo}/.locks/*.write")


def go_on(running, repo, session, data, **members):
    """Sends what the target does not hold yet: commits a full."""
    opened = running.open(session, repo, [
        {"key": "a", "size_bytes": len(data), **members}])
    disk = opened["disks"][0]
    _, octets = running.call("session-digests", session=session, key="a", first=0,
                             count=len(data) // CHUNK + 1)
    client, nr_sent = Client(disk["export"]["uri"]), 0
    for i, (kind, _, leaf) in enumerate(read_records(octets, 32)):
        part = data[i * CHUNK:(i + 1) * CHUNK]
        zero = not part.strip(b"\0")
        if (kind == 1 and zero) or (kind == 2 and leaf == Digests.node(part)):
            continue
        nr_sent += 1
        client.pwrite(part, i * CHUNK)
    client.close()
    ended = running.commit(session, {"a": Digests(opened).root(data)})
    assert ended["state"] == "committed", ended
    return opened, nr_sent


@pytest.mark.parametrize("how", ["kept", "stopped", "killed"])
def test_gone_on_with(running, repo, how):
    need("nbd")
    data = random_disk("resume")
    opened = running.open("s", repo, [{"key": "a", "size_bytes": SIZE, "source_state": "one"}])
    client = Client(exports(opened)["a"]["uri"])
    client.pwrite(data[:2 * MIB], 0)
    client.pwrite(data[2 * MIB:2 * MIB + 5000], 2 * MIB)
    client.flush()
    if how == "kept":
        running.call("session-abort", session="s", keep=True)
        assert running.until("s")["state"] == "left"
    elif how == "stopped":
        assert running.stop() == 0
        running.start()
    else:
        running.kill()
        running.start()
    again, nr_sent = go_on(running, repo, "s2", data, source_state="one")
    assert again["job"] == opened["job"] and again["point"] == opened["point"]
    disk = again["disks"][0]
    assert disk["resumed"] in ("resumed", "fresh" if how == "killed" else "")
    if how != "killed":
        assert disk["kept_bytes"] > MIB and nr_sent < 50
    expect_point(repo, opened["point"], data)
    expect_clean(repo, 1)


# --- kill -9 in every stage --------------------------------------------------------------------

CALLS = ("fsync", "fdatasync", "renameat", "unlinkat", "linkat", "mkdirat")


def killed_push(scratch, repo, data, call, number, increment):
    """A push whose service is killed at that call: whether it was."""
    folder = f"{scratch}/k-{call}-{number}"
    running = None
    try:
        running = Service(folder, under=[
            "strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
            f"inject={call}:signal=SIGKILL:when={number}"])
        disk = {"key": "a", "size_bytes": len(data), "source_state": "one"}
        if increment:
            disk.update({"change": "extents", "from": "id0"})
        opened = running.open("s", repo, [disk])
        client = Client(exports(opened)["a"]["uri"])
        for at in range(0, len(data), 300000):
            client.pwrite(data[at:at + 300000], at)
        client.flush()
        assert running.commit("s", {"a": Digests(opened).root(data)})["state"] == "committed"
        return running.stop() != 0
    except Exception:  # pylint: disable=broad-except
        # Of the many ways in which a client sees it, none matters.
        if running:
            assert running.process.wait(TIMEOUT) != 0
        return True


def stage_of(repo):
    for path in glob.glob(f"{repo}/.incoming/*/stage.json"):
        with open(path, encoding="utf-8") as file:
            return json.load(file)["stage"]
    return "none"


def test_killed_in_every_stage(scratch, repo, running):
    """The next session of the same machine goes on, or begins anew; what was committed holds."""
    need("strace", "nbd", "qemu-img")
    base = random_disk("base", MIB)
    known = {push_full(running, repo, base, change_id="id0"): base}
    stages, nr_killed = {}, 0
    step = 3 if under_sanitizer() else 1
    for call in CALLS:
        number = 1
        while True:
            data = random_disk(f"{call} {number}", MIB)
            before = points(repo)
            if not killed_push(scratch, repo, data, call, number, number % 2):
                after = points(repo)
                assert len(after) == len(before) + 1
                known[after[-1]] = data
                break
            nr_killed += 1
            stage = stage_of(repo)
            stages[stage] = stages.get(stage, 0) + 1
            after = points(repo)
            assert after[:len(before)] == before and len(after) <= len(before) + 1
            if len(after) > len(before):
                known[after[-1]] = data
            name = f"after-{call}-{number}"
            opened, _ = go_on(running, repo, name, data, source_state="one",
                              **({"change": "extents", "from": "id0"} if number % 2 else {}))
            known[opened["point"]] = data
            running.call("session-forget", session=name)
            number += step
            assert number < 60
    print(f"{nr_killed} kills in stages {stages}")
    assert nr_killed >= 20 // step and len(stages) >= 5, stages
    for point in list(known)[-5:]:
        expect_point(repo, point, known[point])
    assert sorted(known) == points(repo)
    expect_clean(repo, len(known))


def test_killed_while_it_reads_back(scratch, repo, running):
    """Its reads are slow, so that it is killed just there, ten times."""
    need("strace", "nbd", "qemu-img")
    for i in range(4 if under_sanitizer() else 10):
        data = random_disk(f"parts {i}", MIB)
        slow = Service(f"{scratch}/slow{i}", under=[
            "strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=pread64", "-e",
            "inject=pread64:delay_enter=10000"])
        opened = slow.open("s", repo, {"a": MIB})
        client = Client(exports(opened)["a"]["uri"])
        for at in range(0, MIB, 30000):
            client.pwrite(data[at:at + 30000], at)
        client.flush()
        slow.call("session-commit", session="s", disks=[
            {"key": "a", "digest": Digests(opened).root(data)}])
        wait_for(lambda: stage_of(repo) == "settle", "the stage")
        slow.kill()
        assert stage_of(repo) == "settle"
        again, _ = go_on(running, repo, f"after{i}", data)
        expect_point(repo, again["point"], data)
    expect_clean(repo, i + 1)


# --- ports, TLS, serves ------------------------------------------------------------------------


def free_ports(nr):
    """A range of ports that nobody uses now."""
    for first in range(20000, 60000, nr * 7):
        socks = []
        try:
            for port in range(first, first + nr):
                sock = socket.socket()
                socks.append(sock)
                sock.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for sock in socks:
                sock.close()
    raise AssertionError("no free ports")


def test_a_port_for_each_session(scratch, repo):
    need("nbd")
    first = free_ports(3)
    with service(f"{scratch}/run", mode="range", port_range=[first, first + 2]) as running:
        opened = [running.open(f"s{i}", repo, {"a": MIB}, vm=f"vm{i}") for i in range(3)]
        ports = {exports(one)["a"]["port"] for one in opened}
        assert ports == {first, first + 1, first + 2}
        assert running.call("status")["port_range"] == [first, first + 2]
        with pytest.raises(Refused, match="all ports") as caught:
            running.open("s3", repo, {"a": MIB}, vm="vm3")
        assert caught.value.code == "busy"
        client = Client(exports(opened[1])["a"]["uri"])
        client.pwrite(b"x" * MIB, 0)
        ended = running.commit("s1", {"a": Digests(opened[1]).root(b"x" * MIB)})
        assert ended["state"] == "committed"
        again = running.open("s4", repo, {"a": MIB}, vm="vm4")
        assert exports(again)["a"]["port"] == exports(opened[1])["a"]["port"]
        # Its name is known on its own port alone.
        other = exports(opened[0])["a"]
        with pytest.raises(Exception):
            Client(exports(again)["a"]["uri"].replace(exports(again)["a"]["name"], other["name"]))


def test_tls_binds_exports_to_their_session(scratch, repo):
    need("nbdcopy", "nbd")
    data = random_disk("tls")
    path = write_file(f"{scratch}/disk.raw", data)
    with service(f"{scratch}/run", tls={}) as running:
        one = exports(running.open("one", repo, {"a": SIZE}, vm="one"))["a"]
        opened = running.open("two", repo, {"a": SIZE}, vm="two")
        two = exports(opened)["a"]
        assert two["uri"].startswith("nbds://" + two["tls"]["identity"] + "@")
        for name, export in (("one", one), ("two", two)):
            write_file(f"{scratch}/{name}.psk", (
                export["tls"]["identity"] + ":" + export["tls"]["psk"] + "\n").encode())
            os.chmod(f"{scratch}/{name}.psk", 0o600)

        def copy(export, identity, keys, status):
            uri = (f"nbds://{identity}@{export['address']}:{export['port']}/{export['name']}"
                   f"?tls-psk-file={scratch}/{keys}.psk")
            return run("nbdcopy", path, uri, status=status)
        assert copy(two, one["tls"]["identity"], "one", None).status != 0
        assert run("nbdcopy", path, f"nbd://{two['address']}:{two['port']}/{two['name']}",
                   status=None).status != 0
        copy(two, two["tls"]["identity"], "two", 0)
        ended = running.commit("two", {"a": Digests(opened).root(data)})
        assert ended["state"] == "committed"
        # Its key is of no use any more.
        assert copy(one, two["tls"]["identity"], "two", None).status != 0
        assert two["tls"]["psk"] not in running.log() and two["name"] not in running.log()
    expect_point(repo, opened["point"], data, vm="two")


def test_serves(running, repo, scratch):
    need("nbdcopy", "nbd")
    data = random_disk("serve")
    point = push_full(running, repo, data)
    served = running.call("serve-open", serve="v", repository=repo, vm="web", lease_s=2)
    assert served["point"] == point
    run("nbdcopy", served["exports"][0]["uri"], f"{scratch}/out.raw")
    assert read_file(f"{scratch}/out.raw") == data
    client = Client(served["exports"][0]["uri"])
    assert client.is_read_only()
    seen = running.call("serve", serve="v")
    assert seen["exports"][0]["connections"] == 1 and seen["exports"][0]["read_bytes"] >= SIZE
    running.call("serve-renew", serve="v")
    def in_use():
        return any(name.endswith(".read") for name in os.listdir(f"{repo}/.locks"))
    assert in_use()
    wait_for(lambda: not running.call("status")["serves"], "the lease to end")
    wait_for(lambda: not in_use(), "its lock to go")
    # Damage is an input error, and no wrong bytes.
    image = image_of(repo, point)
    with open(image, "r+b") as file:
        file.seek(os.path.getsize(image) - 70000)
        file.write(b"damage" * 1000)
    served = running.call("serve-open", serve="v2", repository=repo, vm="web", key="a")
    assert run("nbdcopy", served["exports"][0]["uri"], f"{scratch}/bad.raw",
               status=None).status != 0
    running.call("serve-close", serve="v2")
    with pytest.raises(Refused):
        running.call("serve", serve="v2")


def test_configuration_and_distrust(running, repo):
    need("nbd")
    data = random_disk("config", MIB)
    push_full(running, repo, data, change_id="id0")
    opened = push_increment(running, repo, "s", data, {1}, **{"from": "id0"})
    running.call("session-config", octets=b"<domain/>", session="s", name="web.xml")
    with pytest.raises(Refused):
        running.call("session-config", octets=b"", session="s", name="../web.xml")
    running.call("session-distrust", session="s", key="a", offsets=[65536])
    assert running.commit("s", {"a": Digests(opened).sent(data, {1})})["state"] == "committed"
    assert manifest(repo, opened["point"])["config"][0]["name"] == "web.xml"
    first = points(repo)[0]
    with open(f"{repo}/vms/web/points/{first}/state.json", encoding="utf-8") as file:
        assert "65536" in json.load(file)["distrusted"]["a"]["reason"]


def test_a_stop_leaves_nothing_but_what_can_be_gone_on_with(running, repo):
    need("nbd")
    opened = running.open("s", repo, {"a": MIB})
    client = Client(exports(opened)["a"]["uri"])
    client.pwrite(b"x" * CHUNK, 0)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(TIMEOUT) == 0
    assert not os.path.exists(f"{running.folder}/nbd.sock")
    done = sendense("repo", "check", repo, "--json", status=None).json
    assert done["jobs"] == 1 and done["locks"] == 0, done
    running.start()


def test_memory_of_a_huge_disk(running, repo):
    """64 TiB: writes all over it, zeros over all of it, within 100 MB."""
    need("nbd")
    opened = running.open("s", repo, {"a": 64 * TIB}, digest="optional")
    client = Client(exports(opened)["a"]["uri"])
    for i in range(512):
        client.pwrite(b"part", i * TIB // 8 + 12345)
        client.pwrite(b"c" * CHUNK, i * TIB // 8 + MIB)
    for at in range(0, TIB, TIB // 512):
        client.zero(TIB // 512, at + 4 * MIB)
    running.call("session-digests", session="s", key="a", first=0, count=1 << 30)
    client.close()
    assert running.commit("s", {"a": None})["state"] == "committed"
    with open(f"/proc/{running.process.pid}/status", encoding="utf-8") as file:
        peak = int(re.search(r"VmHWM:\s+(\d+)", file.read())[1]) * KIB
    print(f"peak {peak / MIB:.0f} MiB")
    if not under_sanitizer():
        assert peak < 100_000_000, peak


def test_a_disk_that_runs_full(scratch, repo, running):
    """Whichever write it is that fails: the client hears of it or the commit does, and nothing is
    listed that is not whole."""
    need("strace", "nbd")
    outcomes, known = set(), {}
    # strace counts in each thread by itself.
    for i, number in enumerate((1, 2, 3, 4, 6, 8)):
        data = random_disk(f"full {i}", MIB + 512)
        full = Service(f"{scratch}/full{i}", under=[
            "strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=pwrite64,pwritev", "-e",
            f"inject=pwrite64,pwritev:error=ENOSPC:when={number}+"])
        try:
            opened = full.open("s", repo, {"a": len(data)}, vm="full")
            client, heard = Client(exports(opened)["a"]["uri"]), False
            try:
                for at in range(0, len(data), 50000):
                    client.pwrite(data[at:at + 50000], at)
                client.flush()
            except Exception as error:  # pylint: disable=broad-except
                assert "ENOSPC" in str(error), error
                heard = True
            ended = full.commit("s", {"a": Digests(opened).root(data)})
            outcomes.add((heard, ended["state"], ended.get("error", {}).get("code")))
            if ended["state"] == "committed":
                assert not heard
                expect_point(repo, opened["point"], data, vm="full")
            else:
                assert opened["point"] not in points(repo, "full")
        except Refused as error:
            assert error.code == "no-space", error
            outcomes.add(("open", error.code))
        full.stop()
        point = push_full(running, repo, data, session=f"then{i}")
        known[point] = data
    assert len(outcomes) >= 2, outcomes
    assert sorted(known) == points(repo)
    expect_clean(repo, len(known) + len(points(repo, "full")))

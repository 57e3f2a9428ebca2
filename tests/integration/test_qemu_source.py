"""A running QEMU as a source: the session of src/qemu against a real QEMU 7.2.

The guest's writes are made by QEMU's own qemu-io on the guest's devices; every write is also
made to a copy that the test keeps, and that copy is what an export must show.
"""

import os
import random
import socket
import threading

import pytest

from qemu_machine import (Disks, Session, agent_in, dirty_map, machine_in, proxy_in, read_export)
from support import KIB, MIB, need_mounts, run, wait_for

SOAK = bool(os.environ.get("SENDENSE_SOAK"))


@pytest.fixture(name="folders")
def folders_fixture(scratch):
    """The machine's folder and the scratch folder."""
    path = os.path.join(scratch, "s")
    os.mkdir(path)
    return scratch, path


def scratch_left(path):
    return [name for name in os.listdir(path) if name not in ("tool.err", "read.raw")]


def fill(disks, seed):
    """Some pieces of each disk, with a pattern of the seed's."""
    rng = random.Random(seed)
    for key in disks.content:
        for _ in range(6):
            offset = rng.randrange(0, 15 * MIB, 4 * KIB)
            disks.write(key, 1 + seed % 250, offset, rng.choice((4 * KIB, 64 * KIB, 200 * KIB)))
        disks.zero(key, rng.randrange(0, 15 * MIB, 64 * KIB), 128 * KIB)


def check_exports(state, want, folder, bitmap=None, before=None):
    """Each export is the frozen copy; with a bitmap, what it calls clean is as before."""
    for disk in state["disks"]:
        got = read_export(disk["uri"], folder)
        assert got == want[disk["key"]], disk["key"]
        if bitmap:
            patched = bytearray(before[disk["key"]])
            for offset, length in dirty_map(disk["uri"], bitmap):
                patched[offset:offset + length] = got[offset:offset + length]
            assert patched == got, f"{disk['key']}: the bitmap missed a change"


def point(machine, scratch, disks, new, parent=None, commit=True, during=None, **options):
    """One whole backup; what the disks held at its moment."""
    session = Session(machine, scratch, **options)
    assert "error" not in session.opened, session.opened
    for i in range(len(machine.disks)):
        session.do("plan", i, *([parent[0]] if parent else []))
    want = disks.frozen()
    state = session.do("begin", new)
    for disk in state["disks"]:
        assert disk["has_bitmap"] == bool(parent), disk
    if during:
        during()
    check_exports(state, want, scratch, *(parent or (None, None)))
    session.do("check")
    if commit:
        session.do("commit")
    session.do("end")
    assert session.close() == 0, session.err
    assert not scratch_left(scratch)
    return want


def test_points_are_the_moment_of_begin_and_bitmaps_tell_what_changed(folders):
    """Full, two increments, with writes before, during and after each."""
    folder, scratch = folders
    with machine_in(folder) as machine:
        disks = Disks(machine)
        fill(disks, 1)
        before = point(machine, scratch, disks, "sendense-p1", during=lambda: fill(disks, 2))
        assert machine.leftovers(bitmaps=1) == []
        fill(disks, 3)
        for i in (2, 3):
            name = f"sendense-p{i}"
            before = point(machine, scratch, disks, name, (f"sendense-p{i - 1}", before),
                           during=lambda seed=i: fill(disks, 10 * seed))
            assert machine.leftovers(bitmaps=1) == []
            assert list(machine.bitmaps("vd0")) == list(machine.bitmaps("vd1")) == [name]


def test_an_export_is_what_qemu_itself_copied_at_that_moment(folders):
    """The same against another oracle: a full copy by QEMU before the first write."""
    folder, scratch = folders
    with machine_in(folder) as machine:
        disks = Disks(machine)
        fill(disks, 5)
        session = Session(machine, scratch)
        state = session.do("begin", "sendense-p1")
        oracle = machine.freeze_copy("vd0", os.path.join(folder, "oracle.raw"))
        fill(disks, 6)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", oracle, state["disks"][0]["uri"])
        session.do("end")
        session.close()
        assert machine.leftovers() == []


def test_a_backup_that_failed_leaves_the_bitmap_complete(folders):
    """What changed before and during a backup that was never committed is in the next one."""
    folder, scratch = folders
    with machine_in(folder) as machine:
        disks = Disks(machine)
        fill(disks, 1)
        before = point(machine, scratch, disks, "sendense-p1")
        fill(disks, 2)
        point(machine, scratch, disks, "sendense-p2", ("sendense-p1", before), commit=False,
              during=lambda: fill(disks, 3))
        fill(disks, 4)
        assert machine.leftovers(bitmaps=1) == []
        point(machine, scratch, disks, "sendense-p3", ("sendense-p1", before))
        assert list(machine.bitmaps("vd1")) == ["sendense-p3"]


def test_all_disks_are_of_one_moment(folders):
    """A writer goes round the disks with a counter: no export may be ahead of one before it."""
    folder, scratch = folders
    keys = ("vd0", "vd1", "vd2")
    with machine_in(folder, disks=[(key, "raw") for key in keys]) as machine:
        stop, wrote = threading.Event(), threading.Event()

        def write():
            n = 0
            while not stop.is_set():
                n += 1
                for key in keys:
                    machine.io(key, f"write -P {n % 250 + 1} 0 4k")
                wrote.set()

        for i in range(4):
            session = Session(machine, scratch)
            stop.clear()
            wrote.clear()
            writer = threading.Thread(target=write)
            writer.start()
            assert wrote.wait(60)
            state = session.do("begin", f"sendense-p{i}")
            seen = [read_export(disk["uri"], scratch)[0] for disk in state["disks"]]
            stop.set()
            writer.join()
            session.do("end")
            session.close()
            assert all((a - b) % 250 in (0, 1) for a, b in zip(seen, seen[1:])), seen
            assert (seen[0] - seen[-1]) % 250 in (0, 1), seen


def test_disks_that_are_none(folders):
    """CD-ROMs, read-only disks and drives without a device are no disks of the machine."""
    folder, scratch = folders
    extra = os.path.join(folder, "extra.raw")
    run("qemu-img", "create", "-q", "-f", "raw", extra, MIB)
    arguments = ["-drive", "if=ide,media=cdrom",
                 "-drive", f"if=none,id=lonely,format=raw,file={extra},file.locking=off",
                 "-blockdev", f"driver=raw,node-name=ro,read-only=on,file.driver=file,"
                 f"file.filename={extra},file.locking=off",
                 "-device", "virtio-blk-pci,drive=ro,id=fixed",
                 "-drive", f"if=virtio,format=raw,file={extra},file.locking=off"]
    with machine_in(folder, disks=(("a.b", "raw"),), arguments=arguments) as machine:
        session = Session(machine, scratch)
        assert sorted(disk["key"] for disk in session.opened["disks"]) == ["a-b", "virtio0"]
        session.close()
        for name in ("a-b", "node-a.b"):
            session = Session(machine, scratch, node=name)
            assert [disk["key"] for disk in session.opened["disks"]] == ["a-b"]
            session.close()
        for name, code, text in (("fixed", "denied", "read-only"),
                                 ("lonely", "denied", "no device"),
                                 ("vdz", "not-found", "it has ")):
            session = Session(machine, scratch, node=name)
            assert session.opened["error"] == code and text in session.opened["text"]
            session.close()


def test_disks_with_iothreads_are_refused_where_that_would_kill_the_machine(folders):
    """QEMU 7.2 ends when an NBD client of such a disk goes; of virtio-blk and of a controller."""
    folder, scratch = folders
    extra = [os.path.join(folder, f"extra{i}.raw") for i in range(2)]
    for path in extra:
        run("qemu-img", "create", "-q", "-f", "raw", path, MIB)
    arguments = ["-object", "iothread,id=io0", "-device", "virtio-scsi-pci,id=sc0,iothread=io0"]
    for path, device in zip(extra, ("virtio-blk-pci,iothread=io0,id=vdt", "scsi-hd,id=sdt")):
        name = os.path.basename(path).split(".", maxsplit=1)[0]
        arguments += ["-blockdev", f"driver=raw,node-name={name},file.driver=file,"
                      f"file.filename={path}", "-device", f"{device},drive={name}"]
    with machine_in(folder, arguments=arguments) as machine:
        version = machine.call("query-version")["qemu"]
        if (version["major"], version["minor"], version["micro"]) >= (8, 2, 3):
            pytest.skip("this QEMU has no such fault")
        for options in ({}, {"node": "vdt"}, {"node": "sdt"}):
            session = Session(machine, scratch, **options)
            assert session.opened["error"] == "unsupported", session.opened
            assert "has an iothread" in session.opened["text"]
            session.close()
        session = Session(machine, scratch, node="vd0")
        session.do("begin", "sendense-p1")
        session.do("end")
        session.close()
        assert not scratch_left(scratch)


# --- the guest agent ------------------------------------------------------------------


def freeze_once(machine, scratch, agent, **options):
    session = Session(machine, scratch, agent=agent.path, **options)
    state = session.say("begin", "sendense-p1")
    session.do("end")
    session.close()
    assert not agent.frozen
    assert machine.leftovers() == [] and not scratch_left(scratch)
    return state


def test_the_guest_is_frozen_for_the_moment_alone(folders):
    """Frozen just before the transaction, thawed before the exports are made."""
    folder, scratch = folders
    order = []
    with machine_in(folder) as machine, agent_in(folder) as agent, \
            proxy_in(folder, machine.qmp) as proxy:
        proxy.before = lambda number, name: order.append((name, agent.frozen))
        session = Session(machine, scratch, socket_path=proxy.path, agent=agent.path)
        state = session.do("begin", "sendense-p1")
        assert state["consistency"] == "application" and "reason" not in state
        session.do("end")
        session.close()
        assert [name for name, frozen in order if frozen] == ["transaction"]
        assert agent.log == ["guest-sync-delimited", "guest-fsfreeze-freeze",
                             "guest-sync-delimited", "guest-fsfreeze-thaw"]
        assert machine.leftovers() == []


REFUSALS = {
    "refuses": ({"guest-fsfreeze-freeze": lambda agent, message: {
        "error": {"class": "GenericError", "desc": "failed to freeze /: busy"}}},
        "failed to freeze /: busy"),
    "has nothing": ({"guest-fsfreeze-freeze": lambda agent, message: {"return": 0}},
                    "froze no file system"),
    "is silent": ({"guest-sync-delimited": lambda agent, message: None}, "cannot be reached"),
    "was thawed by another": ({"guest-fsfreeze-thaw": lambda agent, message: (
        setattr(agent, "frozen", False), {"return": 1})[1]}, "thawed by another"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_without_the_agents_help_it_is_crash_consistent(folders, case):
    """The backup is made all the same, and says why."""
    folder, scratch = folders
    script, text = REFUSALS[case]
    with machine_in(folder) as machine, agent_in(folder, script) as agent:
        state = freeze_once(machine, scratch, agent, freeze=1500)
        assert state["consistency"] == "crash" and text in state["reason"], state


def test_a_freeze_that_never_ends_is_given_up_and_thawed(folders):
    """The agent answers to nothing after the freeze until it is asked to thaw, late."""
    folder, scratch = folders

    def freeze(agent, message):
        del message
        agent.frozen = True  # and no answer

    with machine_in(folder) as machine, agent_in(folder, {"guest-fsfreeze-freeze": freeze}) as agent:
        state = freeze_once(machine, scratch, agent, freeze=700)
        assert state["consistency"] == "crash" and "freezing" in state["reason"], state
        assert "guest-fsfreeze-thaw" in agent.log


def test_the_agents_channel_is_found_and_nobody_there_is_told(folders):
    """QEMU names the channel; no guest runs that would open it."""
    folder, scratch = folders
    arguments = ["-device", "virtio-serial-pci", "-chardev",
                 f"socket,id=ga0,path={folder}/ga.sock,server=on,wait=off", "-device",
                 "virtserialport,chardev=ga0,name=org.qemu.guest_agent.0,id=port0"]
    with machine_in(folder, arguments=arguments) as machine:
        session = Session(machine, scratch)
        state = session.do("begin", "sendense-p1")
        assert state["reason"] == "the guest agent is not running in the guest"
        session.do("end")
        session.close()
        other = socket.socket(socket.AF_UNIX)
        other.connect(f"{folder}/ga.sock")
        session = Session(machine, scratch)
        state = session.do("begin", "sendense-p1")
        assert state["reason"].startswith("another program is connected")
        session.do("end")
        session.close()
        other.close()


def test_the_guest_thaws_when_we_are_killed_while_it_is_frozen(folders):
    """SIGKILL between freeze and thaw: the guard thaws at once."""
    folder, scratch = folders
    with machine_in(folder) as machine, agent_in(folder) as agent, \
            proxy_in(folder, machine.qmp) as proxy:
        session = Session(machine, scratch, socket_path=proxy.path, agent=agent.path)
        proxy.before = lambda number, name: name == "transaction" and session.popen.kill()
        assert session.say("begin", "sendense-p1") is None
        session.close()
        agent.wait_for("guest-fsfreeze-thaw")
        assert not agent.frozen
        proxy.before = None
        recover = Session(machine, scratch, socket_path=proxy.path, agent=agent.path)
        assert "error" not in recover.opened
        recover.do("plan", 0)
        recover.do("plan", 1)
        recover.close()
        assert machine.leftovers() == [] and not scratch_left(scratch)


def test_what_a_dead_session_left_frozen_is_thawed_by_the_next(folders):
    """Ours and its guard were both killed: the note in the scratch folder remains."""
    folder, scratch = folders
    with machine_in(folder) as machine, agent_in(folder) as agent:
        session = Session(machine, scratch)
        own = os.path.join(scratch, scratch_left(scratch)[0])
        with open(os.path.join(own, "frozen"), "w", encoding="ascii") as file:
            file.write(agent.path)
        agent.frozen = True
        session.kill()
        session = Session(machine, scratch)
        assert "error" not in session.opened
        assert not agent.frozen and "are thawed now" in session.err
        session.close()
        assert not scratch_left(scratch)


# --- who else is there ------------------------------------------------------------------


def test_a_live_session_is_not_disturbed(folders):
    """On the same QMP socket, and on another of the same machine."""
    folder, scratch = folders
    second = os.path.join(folder, "second.qmp")
    with machine_in(folder, arguments=["-qmp", f"unix:{second},server=on,wait=off"]) as machine:
        disks = Disks(machine)
        session = Session(machine, scratch)
        want = disks.frozen()
        state = session.do("begin", "sendense-p1")
        for path in (machine.qmp, second):
            other = Session(machine, scratch, socket_path=path)
            assert other.opened["error"] == "busy", other.opened
            assert f"process {session.popen.pid}" in other.opened["text"]
            other.close()
        check_exports(state, want, scratch)
        session.do("check")
        session.do("end")
        session.close()


def test_another_programs_nbd_server_is_not_taken(folders):
    """QEMU has one: it stays as it is, and the message says what to do."""
    folder, scratch = folders
    path = os.path.join(folder, "theirs.sock")
    with machine_in(folder) as machine:
        machine.call("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
        machine.call("block-export-add", type="nbd", id="theirs", node_name="node-vd0",
                     name="theirs")
        session = Session(machine, scratch)
        answer = session.say("begin", "sendense-p1")
        assert answer["error"] == "busy" and "nbd-server-stop" in answer["text"], answer
        session.do("end")
        session.close()
        run("nbdinfo", f"nbd+unix:///theirs?socket={path}")
        machine.call("nbd-server-stop")
        assert machine.leftovers() == [] and not scratch_left(scratch)


def test_what_another_program_takes_away_is_seen_before_the_commit(folders):
    """A job that was cancelled by hand: the export no longer shows the moment."""
    folder, scratch = folders
    with machine_in(folder) as machine:
        session = Session(machine, scratch)
        session.do("begin", "sendense-p1")
        job = machine.call("query-block-jobs")[0]["device"]
        machine.call("block-job-cancel", device=job)
        wait_for(lambda: len(machine.call("query-block-jobs")) == 1, "the job's end")
        answer = session.say("check")
        assert answer["error"] == "busy" and "of 2 disks 1 " in answer["text"]
        session.do("end")
        session.close()
        assert machine.leftovers() == []


def test_scratch_space_that_runs_short_ends_the_backup_not_the_guest(folders):
    """With less than twice the reserve there is no beginning; when the reserve is reached later
    the exports go, and the guest writes on."""
    folder, scratch = folders
    need_mounts(scratch)
    # A file system of its own, which QEMU does not even see.
    small = ["unshare", "-rm", "sh", "-c",
             'mount -t tmpfs -o size=48m none "$0" && exec "$@"', scratch]
    with machine_in(folder) as machine:
        disks = Disks(machine)
        session = Session(machine, scratch, prefix=small, reserve=32 * MIB)
        answer = session.say("begin", "sendense-p1")
        assert answer["error"] == "no-space" and "--scratch" in answer["text"]
        session.do("end")
        session.close()
        session = Session(machine, scratch, prefix=small, reserve=16 * MIB)
        session.do("begin", "sendense-p1")
        with open(f"/proc/{session.popen.pid}/root{scratch}/filler", "wb") as filler:
            filler.write(bytes(36 * MIB))
        wait_for(lambda: "given up before the scratch space" in session.err, "the watch")
        answer = session.say("check")
        assert answer["error"] == "no-space", answer
        disks.write("vd0", 3, 0, MIB)
        session.do("end")
        session.close()
        assert machine.leftovers() == []


# --- bitmaps that do not count ----------------------------------------------------------------


def test_bitmaps_in_qcow2_outlast_an_orderly_end_of_qemu(folders):
    """Those of raw disks do not; after a kill the former are removed as well."""
    folder, scratch = folders
    with machine_in(folder) as machine:
        disks = Disks(machine)
        fill(disks, 1)
        before = point(machine, scratch, disks, "sendense-p1")
        fill(disks, 2)
        machine.quit()
        machine.start()
        session = Session(machine, scratch)
        plans = session.do("plan", 0, "sendense-p1"), session.do("plan", 1, "sendense-p1")
        assert plans[1]["disks"][0]["has_bitmap"]
        assert "is gone" in plans[1]["disks"][1]["no_bitmap"]
        want = disks.frozen()
        state = session.do("begin", "sendense-p2")
        state["disks"] = state["disks"][:1]
        check_exports(state, want, scratch, "sendense-p1", before)
        session.do("end")
        session.close()
        machine.kill()
        machine.start()
        session = Session(machine, scratch)
        disk = session.do("plan", 0, "sendense-p1")["disks"][0]
        assert not disk["has_bitmap"] and "is inconsistent" in disk["no_bitmap"]
        session.close()
        assert machine.leftovers() == []


def test_bitmaps_that_tell_nothing(folders):
    """Gone, stopped by another, one that is not the parent's."""
    folder, scratch = folders
    with machine_in(folder) as machine:
        for i, (name, state, text) in enumerate((
                ("sendense-p1", {}, "is gone"),
                ("sendense-p1", {"disabled": True}, "was stopped"))):
            if state:
                machine.call("block-dirty-bitmap-add", node="node-vd0", name=name, **state)
            machine.call("block-dirty-bitmap-add", node="node-vd0", name=f"sendense-x{i}",
                         disabled=True)
            machine.call("block-dirty-bitmap-add", node="node-vd0", name=f"theirs{i}")
            session = Session(machine, scratch)
            disk = session.do("plan", 0, name)["disks"][0]
            assert not disk["has_bitmap"] and text in disk["no_bitmap"], disk
            session.close()
        assert sorted(machine.bitmaps("vd0")) == ["theirs0", "theirs1"]


# --- kills ------------------------------------------------------------------------------------

# The commands that stages begin with; before the first one it is "open".
STAGES = {"add-fd": "scratch", "getfd": "server", "transaction": "moment",
          "block-export-add": "export", "query-block-jobs": "read", "block-export-del": "end"}
KILLS = 10 if SOAK else 1


def by_stage(commands):
    """Stage -> the numbers of its commands."""
    stages, stage = {}, "open"
    for number, name in enumerate(commands):
        # Taking back ends with a transaction too.
        if stage != "end":
            stage = STAGES.get(name, stage)
        stages.setdefault(stage, []).append(number)
    return stages


def whole_session(machine, scratch, proxy, old, new, commit):
    """All of a backup, as far as it comes; the last answer (None: the tool was killed)."""
    session = Session(machine, scratch, proxy=proxy, timeout=5000)
    answer = session.opened
    words = [("plan", 0, old), ("plan", 1, old), ("begin", new), ("check",)]
    for word in words + ([("commit",)] if commit else []):
        if answer is not None and "error" not in answer:
            answer = session.say(*word)
    if answer is not None:
        failed = answer if "error" in answer else None
        answer = session.say("end") if session.popen.poll() is None else None
        answer = failed or answer
    session.close()
    return answer


def moments(stages, rng):
    """(stage, number, "before" or "after") for each kill."""
    for stage, numbers in stages.items():
        chosen = [(number, when) for number in numbers for when in ("before", "after")]
        rng.shuffle(chosen)
        for i in range(KILLS):
            yield (stage, *chosen[i % len(chosen)])


def stages_of(machine, scratch, proxy, old, new):
    """Of a session that nothing disturbs; the machine has a committed point new afterwards."""
    proxy.commands.clear()
    assert "error" not in whole_session(machine, scratch, proxy, old, new, commit=True)
    return by_stage(proxy.commands)


def killed_session(machine, scratch, proxy, last, new, at, kill):
    """A session with a kill at a command; its last answer, and which point it stood on.  How
    often it has to ask for the end of something varies: a session that was through before
    counts as one more point."""
    number, when = at
    fired = []

    def hook(command, name):
        del name
        if command == number and not fired:
            fired.append(True)
            kill()

    while True:
        proxy.commands.clear()
        setattr(proxy, when, hook)
        answer = whole_session(machine, scratch, proxy, last, new, commit=True)
        proxy.before = proxy.after = None
        if fired:
            return answer, last, new
        assert answer is not None and "error" not in answer, answer
        last, new, number = new, new + "x", number - 1


def test_killed_at_any_command_the_next_session_cleans_up(folders):
    """SIGKILL of ours, in each stage: nothing is left, no change is lost, whichever point counts."""
    folder, scratch = folders
    rng = random.Random(7)
    with machine_in(folder) as machine, proxy_in(folder, machine.qmp) as proxy:
        disks = Disks(machine)
        fill(disks, 1)
        point(machine, scratch, disks, "sendense-k0")
        before, last = disks.frozen(), "sendense-k"
        stages = stages_of(machine, scratch, proxy, "sendense-k0", last)
        assert set(stages) == {"open", *STAGES.values()}
        for i, (stage, number, when) in enumerate(moments(stages, rng)):
            what = f"kill {when} command {number} ({stage})"
            fill(disks, i)
            at_kill, was = disks.frozen(), last
            answer, last, new = killed_session(
                machine, scratch, proxy, last, f"sendense-k{i + 1}", (number, when),
                lambda: proxy.session.popen.kill())
            assert answer is None, f"{what}: {answer}"
            before = before if was == last else at_kill
            fill(disks, 100 + i)
            # A commit is the caller's word: its manifest was renamed before the end began.
            parent = (new, at_kill) if stage == "end" else (last, before)
            last = f"sendense-n{i + 1}"
            before = point(machine, scratch, disks, last, parent, socket_path=proxy.path)
            left = machine.leftovers(bitmaps=1)
            assert left == [], f"{what}: {left}"


def test_qemu_killed_at_any_command_is_told_and_nothing_is_left(folders):
    """SIGKILL of QEMU, in each stage: a clear error with the socket's name, no file is left; the
    next machine's bitmaps tell nothing and go."""
    folder, scratch = folders
    rng = random.Random(8)
    with machine_in(folder) as machine, proxy_in(folder, machine.qmp) as proxy:
        disks = Disks(machine)
        fill(disks, 1)
        disks.flush()
        point(machine, scratch, disks, "sendense-k0")
        stages = stages_of(machine, scratch, proxy, "sendense-k0", "sendense-k")
        last = "sendense-k"
        for i, (stage, number, when) in enumerate(moments(stages, rng)):
            what = f"kill {when} command {number} ({stage})"
            answer, last, _ = killed_session(machine, scratch, proxy, last, f"sendense-k{i + 1}",
                                             (number, when), machine.kill)
            assert answer is not None and "error" in answer, f"{what}: {answer}"
            assert proxy.path in answer["text"], f"{what}: {answer}"
            assert not scratch_left(scratch), what
            machine.start()
            session = Session(machine, scratch, proxy=proxy)
            for disk in (0, 1):
                state = session.do("plan", disk, last)["disks"][disk]
                assert not state["has_bitmap"], f"{what}: {state}"
            want = disks.frozen()
            last = f"sendense-n{i + 1}"
            check_exports(session.do("begin", last), want, scratch)
            session.do("commit")
            session.do("end")
            session.close()
            left = machine.leftovers(bitmaps=1)
            assert left == [] and not scratch_left(scratch), f"{what}: {left}"


def test_what_a_session_of_a_dead_qemu_left_is_removed(folders):
    """Both were killed: the folder goes with the next session of any machine there."""
    folder, scratch = folders
    with machine_in(folder) as machine:
        session = Session(machine, scratch)
        session.do("begin", "sendense-p1")
        session.kill()
        machine.kill()
        assert scratch_left(scratch)
        os.unlink(machine.qmp)
        session = Session(machine, scratch)
        assert session.opened["error"] == "not-found"
        session.close()
        assert not scratch_left(scratch)


# --- monitors that are none -----------------------------------------------------------------

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\n'
BAD_MONITORS = {
    "nobody listens": (None, "refused", "nobody listens"),
    "silence": (b"", "busy", "another program is connected"),
    "another protocol": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "protocol", "no JSON"),
    "JSON, but no greeting": (b'{"hello": 1}\n', "protocol", "does not speak QMP"),
    "a line without end": (b"[" * (17 * MIB), "protocol", "more than"),
    "the connection ends": (b"{", "disconnected", "closed"),
    "no answer": (GREETING, "timeout", "qmp_capabilities"),
    "an answer that is none": (GREETING + b'{"id": 1}\n', "protocol", "none"),
    "a refusal": (GREETING + b'{"id": 1, "error": {"class": "GenericError", "desc": "Nay"}}\n',
                  "refused", "Nay"),
}


@pytest.mark.parametrize("case", BAD_MONITORS)
def test_a_bad_monitor_is_named(folders, case):
    """Errors that name the socket, in time, and nothing left."""
    folder, scratch = folders
    text, code, message = BAD_MONITORS[case]
    path = os.path.join(folder, "bad.qmp")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        if text is not None:
            listener.listen(1)

        def serve():
            connection, _ = listener.accept()
            with connection:
                try:
                    connection.sendall(text)
                    while case != "the connection ends" and connection.recv(4096):
                        pass
                except OSError:
                    pass

        if text is not None:
            threading.Thread(target=serve, daemon=True).start()
        session = Session(None, scratch, socket_path=path, timeout=1000)
        assert session.opened["error"] == code, session.opened
        assert path in session.opened["text"] and message in session.opened["text"]
        session.close()
    assert not scratch_left(scratch)

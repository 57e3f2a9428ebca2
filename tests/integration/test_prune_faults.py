"""Prune: what is damaged where reading does not show it, plans that cannot be, and power cuts.

A power cut is not tried here; it is shown from the system calls that what a later step
builds on was synced before, also by whoever goes on with what was killed before its sync.
"""

import glob
import json
import os
import re
import shutil
import struct

import pytest

from support import SENDENSE, need, run, sendense
from test_prune import SOAK, TRACED, chain, fates, site, whys  # noqa: F401 (a fixture)


# --- damage where reading does not show it --------------------------------------------------


def write_at(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def tables(path):
    """Where the table of refcount blocks, the first of these, and the first L2 table stand."""
    with open(path, "rb") as file:
        header = file.read(104)
        l1, table = struct.unpack(">QQ", header[40:56])
        file.seek(table)
        block = struct.unpack(">Q", file.read(8))[0]
        file.seek(l1)
        l2 = struct.unpack(">Q", file.read(8))[0] & 0xfffffffffffe00
    return table, block, l2


DAMAGES = {
    # What is in use looks free: a merge would write over it.
    "refcounts": lambda path: write_at(path, tables(path)[1] + 2 * 5, bytes(200)),
    "table of refcounts": lambda path: write_at(path, tables(path)[0], struct.pack(">Q", 1 << 50)),
    # The child hides this chunk: its cluster is the first that is written to.
    "L2 entry": lambda path: write_at(path, tables(path)[2] + 8, struct.pack(">Q", 1 << 63 | 1 << 45)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tables(site, damage):  # noqa: F811
    """Nothing is written into an image whose tables are wrong: its point stays, all others too."""
    points = chain(site, 3, keys=("a",))
    DAMAGES[damage](site.image(points[0]))
    report = site.prune("--keep-last", "1", status=1)
    assert fates(report)[points[0]] == "left", report
    assert re.search(r"a/\S+\.qcow2 has \d+ errors in its tables, so nothing can be written into it",
                     whys(report)[points[0]])
    assert points[0] in site.points() and points[2] in site.points()
    assert not os.listdir(f"{site.repo}/.incoming")
    # What was good is good; the one between them is merged with its child all the same.
    site.compare(site.points() if damage == "refcounts" else [points[2]])
    site.backup("a")


# --- a plan that cannot be ----------------------------------------------------------------------


def killed_prune(site, until):  # noqa: F811
    """A prune is killed at one renameat() after the other, until what it left is as wanted."""
    kept = f"{site.folder}/kept"
    os.rename(site.repo, kept)
    for number in range(1, 60):
        shutil.rmtree(site.repo, ignore_errors=True)
        shutil.copytree(kept, site.repo)
        run("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat", "-e",
            f"inject=renameat:signal=SIGKILL:when={number}", SENDENSE, "prune", "--repo",
            site.repo, "--keep-last", "1", "--quiet", status=None, env=TRACED)
        for path in glob.glob(f"{site.repo}/.incoming/*/plan.json"):
            with open(path, encoding="utf-8") as file:
                plan = json.load(file)
            if until(plan):
                return path, plan
    raise AssertionError("no prune was killed where it should have been")


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file)


def test_listed_and_begun(site):  # noqa: F811
    """A repository that was copied while a prune was at work: nothing is written into what is
    listed, and backups go on."""
    need("strace")
    points = chain(site, 3, keys=("a",))
    path, plan = killed_prune(site, lambda plan: not plan["begun"])
    write_json(path, dict(plan, begun=True))
    assert site.points() == points
    report = site.prune("--keep-last", "1", status=1)
    assert site.points() == points, report
    assert "is taken out already, and it is listed" in whys(report)[points[0]]
    site.compare()
    points.append(site.backup("a"))
    site.compare()
    os.rename(os.path.dirname(path), f"{site.folder}/moved-away")
    site.prune("--keep-last", "1")
    assert site.points() == points[-1:]
    sendense("verify", "--repo", site.repo, "--quiet")
    site.compare()


@pytest.mark.parametrize("wrong", ["child", "backing"])
def test_plan_of_other_images(site, wrong):  # noqa: F811
    """The images' headers are asked before the one is written into the other."""
    need("strace")
    points = chain(site, 4, keys=("a",))
    sendense("protect", "--repo", site.repo, f"web01@{points[0]}", "--quiet")
    path, plan = killed_prune(site, lambda plan: plan["begun"])
    assert plan["point"] == points[1] and plan["disks"][0]["child"] == points[2]
    if wrong == "child":
        plan = json.loads(json.dumps(plan).replace(points[2], points[3]))
    else:
        plan["disks"][0]["backing"] = None
    write_json(path, plan)
    listed = site.points()
    done = run(SENDENSE, "prune", "--repo", site.repo, "web01", "--json", "--keep-last", "1",
               status=None)
    assert "do not stand on what the plan says" in done.out + done.err
    # A plan that names another child leaves the true one to the rules.
    assert site.points() == (listed if wrong == "backing" else [points[0], points[3]])
    site.compare()
    points.append(site.backup("a"))
    site.compare()


# --- what cannot be finished stands in nobody's way ------------------------------------------


def test_lasting_failure(site):  # noqa: F811
    """A merge that fails for good: backups go on, other points are pruned, and it is told."""
    need("strace")
    points = chain(site, 6, keys=("a",))
    killed_prune(site, lambda plan: plan["begun"])
    image = site.image(points[0])
    assert os.path.exists(image) and site.points() == points[1:]
    DAMAGES["L2 entry"](image)
    with open(image, "rb") as file:
        before = file.read()
    done = run(*([SENDENSE] + [w for w in site.command("a") if w != "--quiet"]))
    assert "is not finished" in done.err and points[0] in done.err
    points.append(site.points()[-1])
    site.frozen[points[-1]] = {"a": f"{site.folder}/a.raw"}
    report = site.prune("--keep-last", "1", status=1)
    assert fates(report) == dict.fromkeys(points[2:6], "pruned") | {
        points[1]: "left", points[6]: "keep"}
    assert f"which takes out restore point {points[0]}, is not finished" in whys(report)[points[1]]
    site.compare()
    sendense("verify", "--repo", site.repo, "--quiet")
    # As soon as it can be, it is finished.
    with open(image, "wb") as file:
        file.write(before)
    good = tables(image)[2] + 8
    write_at(image, good, bytes(8))  # hidden by the child
    site.prune("--keep-last", "1")
    assert site.points() == points[6:]
    site.compare()
    assert not os.listdir(f"{site.repo}/.incoming")


def test_job_that_cannot_be_closed(site):  # noqa: F811
    """A backup killed after its commit, whose manifest is damaged then: backups go on."""
    need("strace")
    points = chain(site, 2, keys=("a",))
    kept = f"{site.folder}/kept"
    os.rename(site.repo, kept)
    for number in range(1, 100):
        shutil.rmtree(site.repo, ignore_errors=True)
        shutil.copytree(kept, site.repo)
        run("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e",
            f"inject=fsync:signal=SIGKILL:when={number}", SENDENSE, *site.command("a"),
            status=None, env=TRACED)
        if len(site.points()) == 3:
            break
    job = os.listdir(f"{site.repo}/.incoming")
    new = site.points()[-1]
    assert len(job) == 1
    with open(f"{site.repo}/vms/web01/points/{new}/manifest.json", "r+", encoding="utf-8") as file:
        file.write("[")
    done = run(*([SENDENSE] + [w for w in site.command("a") if w != "--quiet"]))
    assert f"job {job[0]} cannot be cleaned up after" in done.err
    assert "cannot be used" in done.err  # a full, loudly
    site.frozen[site.points()[-1]] = {"a": f"{site.folder}/a.raw"}
    site.compare(points + site.points()[-1:])
    assert os.listdir(f"{site.repo}/.incoming") == job


# --- power cuts --------------------------------------------------------------------------------


CALL = re.compile(r"^\d+ +(\w+)\((.*)\) += (\d+)$")
NAME = re.compile(r"<([^<>]*)>(?:, \"([^\"]*)\")?")


def steps(trace):
    """The calls that succeeded, with the paths that they name."""
    with open(trace, encoding="utf-8") as file:
        for line in file:
            call = CALL.match(line)
            if call:
                names = [os.path.normpath(os.path.join(folder, name))
                         for folder, name in NAME.findall(call[2])]
                yield call[1], [name for name in names if "/.locks" not in name]


class Durable:
    """What of the folders' changes a power cut could still take back."""

    def __init__(self):
        self.renamed, self.removed = {}, {}  # path: its folder, not synced yet

    def take(self, call, paths, place):
        if not paths or paths[-1].endswith(("stage.json", "stage.json.new")):
            return
        if call in ("fsync", "fdatasync"):
            for pending in (self.renamed, self.removed):
                for path in [p for p, folder in pending.items() if folder == paths[0]]:
                    del pending[path]
            return
        last = paths[-1]
        # What is written beside.
        if call == "pwrite64" and not last.endswith(".qcow2"):
            return
        if last.endswith((".new", ".part")) and call != "renameat":
            return
        # Undone.
        if call == "unlinkat" or paths[0].endswith("/merging.json"):
            self.renamed.pop(paths[0], None)
        assert not self.renamed, (place, call, paths, self.renamed)
        if call == "renameat":
            assert not self.removed, (place, call, paths, self.removed)
            self.renamed[last] = os.path.dirname(last)
        elif call == "unlinkat":
            if last.endswith("plan.json"):
                assert not self.removed, (place, paths, self.removed)
            # A folder that is removed takes its files with it, when its own removal lasts.
            for path, folder in list(self.removed.items()):
                if folder == last:
                    self.removed[path] = os.path.dirname(last)
            # A plan's end is synced with the next plan.
            if "/.incoming/" not in last:
                self.removed[last] = os.path.dirname(last)


TRACE = ["strace", "-f", "-qq", "-y", "-s", "4096", "-e",
         "trace=renameat,unlinkat,fsync,fdatasync,pwrite64"]


def test_each_step_lasts(site):  # noqa: F811
    """Each step's rename is synced before the next step, and before the next program's steps
    when the first is killed between the two."""
    need("strace")
    chain(site, 3, keys=("a", "b"))
    kept, trace = f"{site.folder}/kept", f"{site.folder}/trace"
    os.rename(site.repo, kept)
    prune = [SENDENSE, "prune", "--repo", site.repo, "--keep-last", "1", "--quiet"]
    for number in range(1, 200, 1 if SOAK else 2):
        shutil.rmtree(site.repo, ignore_errors=True)
        shutil.copytree(kept, site.repo)
        durable = Durable()
        done = run(*TRACE, "-o", trace, "-e", f"inject=fsync:signal=SIGKILL:when={number}",
                   *prune, status=None, env=TRACED)
        for call, paths in steps(trace):
            durable.take(call, paths, number)
        if done.status == 0:
            break
        run(*TRACE, "-o", trace, *prune, env=TRACED)
        for call, paths in steps(trace):
            durable.take(call, paths, f"after a kill at {number}")
        assert not durable.renamed and not durable.removed, (number, durable.__dict__)
    assert number > 20 and not durable.renamed and not durable.removed, durable.__dict__

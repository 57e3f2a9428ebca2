"""The queue of jobs, run by a small program (tests/tools/jobs_hub) that can be killed."""

import contextlib
import json
import os
import subprocess

import pytest

from support import MIB, SENDENSE, TIMEOUT, make_disk, read_line, sendense, wait_for

TOOLS = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(SENDENSE))), "tests/tools")
JOBS_HUB, HELD = f"{TOOLS}/jobs_hub", f"{TOOLS}/worker_held"
need_tools = pytest.mark.skipif(not os.path.exists(JOBS_HUB), reason="tests/tools are not built")
ENDS = ["done", "failed", "cancelled"]


class Failed(Exception):
    """An answer that is an error: .code, .text."""

    def __init__(self, error):
        super().__init__(f"{error['code']}: {error['text']}")
        self.code, self.text = error["code"], error["text"]


def processes(text):
    """Living processes with that text in their command line, by pid."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                line = file.read().replace(b"\0", b" ").decode(errors="replace")
            with open(f"/proc/{pid}/stat", "rb") as file:
                state = file.read().rsplit(b")", 1)[1].split()[0]
            if text in line and state != b"Z":
                found[int(pid)] = line
    return found


class Site:
    """Folders, a repository, a VM's disk, and the hub over them."""

    def __init__(self, folder, **config):
        self.folder, self.hub = folder, None
        self.repo, self.hold = f"{folder}/repo", f"{folder}/hold"
        self.env = {}  # more of the hub's environment
        for name in ("run", "kept", "vms"):
            os.mkdir(f"{folder}/{name}")
        self.config = {
            "state": f"{folder}/state.db", "runtime": f"{folder}/run", "kept": f"{folder}/kept",
            "program": HELD, "repositories": [{"name": "main", "path": self.repo}],
            "sources": [f"raw:{folder}/vms/"], "targets": [f"raw:{folder}/vms/"],
            "most": 4, "per_source": 4, "attempts": 3, "retry_ms": 50}
        self.config.update(config)
        self.err = open(f"{folder}/hub.err", "ab")  # pylint: disable=consider-using-with
        sendense("repo", "init", self.repo, "--quiet")

    def disk(self, name="a", size=2 * MIB):
        path = f"{self.folder}/vms/{name}.raw"
        if not os.path.exists(path):
            make_disk(path, size, [(0, size // 2, "random")], seed=sum(name.encode()))
        return path

    def spec(self, vm="a", **more):
        spec = {"kind": "backup", "repository": "main", "vm": vm,
                "disks": [{"key": "d0", "source": f"raw:{self.disk(vm)}"}]}
        spec.update(more)
        return spec

    # --- the hub

    def start(self, **config):
        self.config.update(config)
        self.hub = subprocess.Popen(  # pylint: disable=consider-using-with
            [JOBS_HUB], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.err,
            env=dict(os.environ, WORKER_HOLD=self.hold, **self.env))
        self.tell(self.config)
        return self.answer()

    def tell(self, command):
        self.hub.stdin.write(json.dumps(command).encode() + b"\n")
        self.hub.stdin.flush()

    def answer(self):
        line = read_line(self.hub.stdout, "the hub's answer", 90)
        assert line, f"the hub died: {self.errors()[-2000:]}"
        answer = json.loads(line)
        if "error" in answer and set(answer) == {"error"}:
            raise Failed(answer["error"])
        return answer

    def do(self, what, **more):
        self.tell({"do": what, **more})
        return self.answer()

    def add(self, spec=None, **more):
        return self.do("add", spec=self.spec() if spec is None else spec, **more)["id"]

    def wait(self, job, states=None, stages=(), ms=0):
        return self.do("wait", id=job, states=list(states or ENDS), stages=list(stages), ms=ms)

    def kill(self):
        self.hub.kill()
        self.hub.wait()
        self.close_pipes()

    def stop(self, hand_over=False, ms=20000):
        self.tell({"do": "stop", "hand_over": hand_over, "ms": ms})
        status = self.hub.wait(TIMEOUT)
        self.close_pipes()
        assert status == 0, self.errors()[-3000:]

    def close_pipes(self):
        self.hub.stdin.close()
        self.hub.stdout.close()
        self.hub = None

    def errors(self):
        with open(f"{self.folder}/hub.err", encoding="utf-8", errors="replace") as file:
            return file.read()

    # --- workers

    def hold_at(self, stage, how):
        """The next worker that comes there stands still, once."""
        with open(f"{self.hold}.new", "w", encoding="utf-8") as file:
            file.write(f"{stage} {how}")
        os.rename(f"{self.hold}.new", self.hold)

    def wait_held(self):
        wait_for(lambda: os.path.exists(f"{self.hold}.held"), "a worker that stands still")

    def release(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.hold}.held")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.hold)

    def workers(self):
        return processes(f"worker {self.folder}/run/")

    def points(self, vm="a"):
        done = sendense("ls", "--repo", self.repo, vm, "--json", status=None)
        return [p["point"] for p in done.json["points"]] if done.status == 0 else []

    def nothing_left(self):
        """Everything that jobs took was given back."""
        wait_for(lambda: not self.workers(), "the workers' end")
        counts = self.do("counts")
        assert counts == {"queued": 0, "running": 0, "unreaped": 0, "takes": []}, counts
        assert os.listdir(f"{self.folder}/run/jobs") == []

    def end(self):
        if self.hub:
            self.hub.kill()
            self.hub.wait()
            self.close_pipes()
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        self.err.close()


@contextlib.contextmanager
def site_in(folder, **config):
    site = Site(folder, **config)
    try:
        yield site
    finally:
        site.end()

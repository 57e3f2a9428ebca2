"""A whole hub in a test's folder: configured, started, called, killed, looked at.

    with hub.hub_in(servers) as h:      # TLS, ports of the kernel, one repository "main"
        h.start()
        job = h.backup("web01", {"2000": f"raw:{disk}"})

Everything that it starts is a child of it, or named in its runtime folder, and is gone at
the end of the test, also of one that fails.
"""

import contextlib
import http.client
import json
import os
import signal
import sqlite3
import ssl
import subprocess
import urllib.parse

import support
from support import SENDENSE, run, wait_for

ENDS = ("done", "failed", "cancelled")


class Refused(Exception):
    """An answer with another status than was expected."""

    def __init__(self, status, body):
        super().__init__(f"{status}: {body}")
        self.status, self.body = status, body

    @property
    def detail(self):
        return self.body.get("detail", "") if isinstance(self.body, dict) else str(self.body)


class Answer:
    """status, headers, body (JSON, or bytes)."""

    def __init__(self, response, data):
        self.status, self.headers = response.status, response.headers
        kind = response.headers.get("Content-Type", "")
        self.body = json.loads(data) if "json" in kind and "ndjson" not in kind and data else data


def pids_of(text):
    """Processes of this machine whose command line holds the text."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                state = file.read().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z" and any(text.encode() in word for word in words) \
                and int(name) != os.getpid():
            found.append(int(name))
    return found


class Hub:
    """One hub; see the module."""

    def __init__(self, servers, tls=True, nbd_tls=None, allow=None, settings="", repositories=("main",),
                 each_repository=(), under=()):
        self.servers, self.under = servers, under  # under: words in front of the hub's own
        self.each_repository = each_repository  # lines of the settings
        self.folder = servers.folder
        self.state = os.path.join(self.folder, "state")
        self.runtime = os.path.join(self.folder, "run")
        self.conf = os.path.join(self.folder, "hub.conf")
        self.token_file = os.path.join(self.state, "admin.token")
        self.ca_file = os.path.join(self.state, "tls", "ca.crt")
        self.tls, self.nbd_tls = tls, tls if nbd_tls is None else nbd_tls
        self.repositories = {name: os.path.join(self.folder, f"repo-{name}") for name in repositories}
        self.allow, self.settings = allow, settings
        self.process = self.url = self.nbd = None

    # --- life ---------------------------------------------------------------------

    def init(self):
        """hub init, then the settings as the test wants them."""
        run(*self.under, SENDENSE, "hub", "init", "--config", self.conf, "--state-dir", self.state,
            "--runtime-dir", self.runtime, "--quiet")
        for path in self.repositories.values():
            if not os.path.exists(path):
                support.sendense("repo", "init", path, "--quiet")
        self.write_config()

    def write_config(self, extra=""):
        lines = ["[hub]", f"state-dir = {self.state}", f"runtime-dir = {self.runtime}",
                 "listen = 127.0.0.1:0", "name = hub.test", "log = text", "stop-timeout = 10s"]
        if self.tls:
            folder = os.path.join(self.state, "tls")
            lines += ["[tls]", f"certificate = {folder}/server.crt", f"key = {folder}/server.key",
                      f"ca = {folder}/ca.crt"]
        lines += ["[nbd]", "listen = 127.0.0.1:0", f"tls = {'required' if self.nbd_tls else 'off'}"]
        for name, path in self.repositories.items():
            lines += [f"[repository {name}]", f"path = {path}", *self.each_repository]
        allow = self.allow if self.allow is not None else [
            f"source = raw:{self.folder}/", f"source = nbd+unix:{self.folder}/",
            "source = nbd://127.0.0.1:*/", f"target = raw:{self.folder}/"]
        lines += ["[allow]", *allow, self.settings, extra]
        with open(self.conf, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def start(self, **kwargs):
        """Runs it, ready by its own word."""
        if not os.path.exists(self.conf):
            self.init()
        self.process = self.servers.start(*self.under, SENDENSE, "hub", "run", "--config", self.conf,
                                          "--json", name="hub", pipe=True, **kwargs)
        line = support.read_line(self.process.popen.stdout, "the hub")
        assert line, f"the hub ended with {self.process.wait()}: {self.process.err}"
        said = json.loads(line)
        assert "url" in said, said
        self.url, self.nbd = said["url"], said["nbd"]
        return self

    def stop(self):
        status = self.process.stop()
        assert status == 0, self.process.err
        return self.process.err

    def kill(self):
        """kill -9, and nothing else."""
        self.process.signal(signal.SIGKILL)
        self.process.wait()
        self.process.popen.stdout.close()

    def restart(self):
        self.stop()
        return self.start()

    def stay_at_port(self):
        """From its next start on it listens where it does now, so that a client finds it again."""
        with open(self.conf, encoding="utf-8") as file:
            text = file.read()
        with open(self.conf, "w", encoding="utf-8") as file:
            file.write(text.replace("listen = 127.0.0.1:0",
                                    f"listen = 127.0.0.1:{self.url.rsplit(':', 1)[1]}", 1))

    def reload(self):
        """SIGHUP; waits until it is told."""
        before = len(self.process.err)
        self.process.signal(signal.SIGHUP)
        wait_for(lambda: "settings were read again" in self.process.err[before:]
                 or "old settings stay" in self.process.err[before:], "the reload")
        return self.process.err[before:]

    # --- what it takes --------------------------------------------------------------

    def workers(self):
        return pids_of(os.path.join(self.runtime, "jobs"))

    def nbd_service(self):
        """Its pid, or None."""
        found = [pid for pid in pids_of(self.runtime) if pid not in self.workers()
                 and pid != (self.process.pid if self.process else 0)]
        return found[0] if found else None

    def descriptors(self, pid=None):
        return len(os.listdir(f"/proc/{pid or self.process.pid}/fd"))

    def threads(self, pid=None):
        return len(os.listdir(f"/proc/{pid or self.process.pid}/task"))

    def listening(self):
        """(process, address, port) of all TCP sockets that the hub and what it started listen on."""
        names = {self.process.pid: "hub", self.nbd_service(): "nbd-service"}
        inodes = {}
        for pid, name in names.items():
            if not pid:
                continue
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    link = os.readlink(f"/proc/{pid}/fd/{fd}")
                    if link.startswith("socket:["):
                        inodes[link[8:-1]] = name
        found = set()
        for table in ("tcp", "tcp6"):
            with open(f"/proc/net/{table}", encoding="ascii") as file:
                for line in file.readlines()[1:]:
                    words = line.split()
                    if words[3] == "0A" and words[9] in inodes:
                        host, port = words[1].split(":")
                        address = (".".join(str(b) for b in bytes.fromhex(host)[::-1])
                                   if table == "tcp" else host)
                        found.add((inodes[words[9]], address, int(port, 16)))
        return sorted(found)

    def clean_up(self):
        """Ends whatever is left of it."""
        if self.process and self.process.running:
            self.process.stop()
        for pid in pids_of(self.runtime):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not pids_of(self.runtime), f"the processes of {self.runtime} to end")

    # --- REST ---------------------------------------------------------------------------

    @property
    def token(self):
        with open(self.token_file, encoding="ascii") as file:
            return file.read().strip()

    def connect(self, timeout=None):
        parts = urllib.parse.urlsplit(self.url)
        timeout = timeout or support.TIMEOUT
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
        context = ssl.create_default_context(cafile=self.ca_file)
        return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout,
                                           context=context)

    def ask(self, method, path, body=None, token="", headers=None, octets=None):
        """Any call: an Answer, whatever its status.  token: "" the admin's, None none."""
        headers = dict(headers or {})
        if token is not None:
            headers["Authorization"] = f"Bearer {token or self.token}"
        data = octets
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        elif octets is not None:
            headers["Content-Type"] = "application/octet-stream"
        connection = self.connect()
        try:
            connection.request(method, path if path.startswith("/") else f"/api/v1/{path}",
                               body=data, headers=headers)
            response = connection.getresponse()
            return Answer(response, response.read())
        finally:
            connection.close()

    def call(self, method, path, body=None, **kwargs):
        """One that succeeds: its body."""
        answer = self.ask(method, path, body, **kwargs)
        if answer.status >= 300:
            raise Refused(answer.status, answer.body)
        return answer.body

    def get(self, path, **kwargs):
        return self.call("GET", path, **kwargs)

    def post(self, path, body=None, **kwargs):
        return self.call("POST", path, {} if body is None else body, **kwargs)

    def all(self, path, **kwargs):
        """All items of a list, over its pages."""
        items, after = [], None
        while True:
            sep = "&" if "?" in path else "?"
            page = self.get(path + (f"{sep}after={urllib.parse.quote(after)}" if after else ""), **kwargs)
            items += page["items"]
            after = page["next"]
            if not after:
                return items

    def make_token(self, scope, **members):
        return self.post("tokens", {"name": f"test {scope}", "scope": scope, **members})["token"]

    def enrol(self, name, **members):
        """A node by hand: its token."""
        code = self.post("nodes/codes", {"name": name})["code"]
        return self.post("nodes", {"code": code, "name": name, "protocol": 1, "version": "test",
                                   "build": "0123456789ab", **members}, token=None)["token"]

    # --- jobs ---------------------------------------------------------------------------

    def follow(self, job, timeout=None):
        """Its events: (name, data) until the end."""
        connection = self.connect(timeout)
        try:
            connection.request("GET", f"/api/v1/jobs/{job}/events",
                               headers={"Authorization": f"Bearer {self.token}"})
            response = connection.getresponse()
            if response.status != 200:
                raise Refused(response.status, json.loads(response.read()))
            name, data = None, []
            for raw in response:
                line = raw.decode().rstrip("\r\n")
                if line.startswith("event:"):
                    name = line[6:].strip()
                elif line.startswith("data:"):
                    data.append(line[5:].strip())
                elif not line and data:
                    yield name, json.loads("\n".join(data))
                    name, data = None, []
        finally:
            connection.close()

    def job(self, job):
        return self.get(f"jobs/{job}")

    def wait(self, job, state="done", timeout=None):
        """The job at its end, which must be that one (None: any)."""
        job = job["id"] if isinstance(job, dict) else job
        for name, data in self.follow(job, timeout):
            if name == "end":
                break
        data = self.job(job)
        assert data["state"] in ENDS, data
        if state:
            assert data["state"] == state, data
        return data

    def wait_stage(self, job, *stages):
        """Until the job is in one of these stages or states, or at its end."""
        for _, data in self.follow(job):
            if data["stage"] in stages or data["state"] in stages or data["state"] in ENDS:
                return data
        return self.job(job)

    def open_jobs(self):
        return self.all("jobs?state=open")

    # --- backups ---------------------------------------------------------------------------

    def start_backup(self, vm, disks, repository="main", **members):
        body = {"repository": repository, "vm": vm, **members,
                "disks": [disk if isinstance(disk, dict) else {"key": key, "source": disk}
                          for key, disk in disks.items()]}
        return self.post("backups", body)

    def backup(self, vm, disks, **members):
        return self.wait(self.start_backup(vm, disks, **members))

    def points(self, vm, repository="main"):
        return self.all(f"repositories/{repository}/vms/{urllib.parse.quote(vm, safe='')}/points")

    def point_images(self, vm, point=None, repository="main"):
        """{key: path of the image} of a point, the newest by default."""
        points = self.points(vm, repository)
        chosen = points[-1] if point is None else [p for p in points if p["point"] == point][0]
        return {disk["key"]: os.path.join(self.repositories[repository], disk["image"])
                for disk in chosen["disks"]}

    # --- push ----------------------------------------------------------------------------------

    def open_session(self, vm, sizes, repository="main", token="", **members):
        """POST /sessions for disks {key: bytes}, or for whole objects."""
        members.setdefault("digest", "optional")
        disks = [size if isinstance(size, dict) else {"key": key, "size_bytes": size}
                 for key, size in sizes.items()]
        return self.post("sessions", {"repository": repository, "vm": vm, "disks": disks,
                                      "client": {"software": "test"}, **members}, token=token)

    def uri(self, export):
        """An export's URI for other people's clients."""
        tls = export["tls"]
        if not tls:
            return export["uri"]
        path = os.path.join(self.folder, f"psk-{export['name'][:12]}")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w",
                  encoding="ascii") as file:
            file.write(f"{tls['identity']}:{tls['psk']}\n")
        parts = urllib.parse.urlsplit(export["uri"])
        host = parts.netloc.rsplit("@", 1)[-1]
        return f"nbds://{tls['identity']}@{host}{parts.path}?tls-psk-file={path}"

    def write(self, export, path):
        """nbdcopy writes a raw file into an export."""
        support.need("nbdcopy")
        return run("nbdcopy", "--connections=2", path, self.uri(export))

    def commit(self, session, state="done", **of_disk):
        job = self.post(f"sessions/{session['id']}/commit", {"disks": [
            {"key": disk["key"], **of_disk.get(disk["key"], {})} for disk in session["disks"]]})
        return self.wait(job, state)

    def push(self, vm, disks, **members):
        """A session by nbdcopy of disks {key: raw file}: its job."""
        session = self.open_session(vm, {key: os.path.getsize(path) for key, path in disks.items()},
                                    **members)
        for disk in session["disks"]:
            self.write(disk["export"], disks[disk["key"]])
        return self.commit(session)


@contextlib.contextmanager
def hub_in(servers, **kwargs):
    made = Hub(servers, **kwargs)
    try:
        yield made
    finally:
        made.clean_up()


def cli(made, *words, **kwargs):
    """A command with the hub as its repository."""
    return support.sendense(words[0], "--repo", made.url, "--token-file", made.token_file,
                            "--ca-file", made.ca_file, *words[1:], **kwargs)


def compare(image, raw):
    """qemu-img compare of a point's image with a frozen source."""
    return subprocess.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, raw],
                          capture_output=True, check=False, timeout=support.TIMEOUT).returncode == 0


def runs_in_state(made, schedule):
    """How many runs of the schedule the state has, by another program's view."""
    path = os.path.join(made.state, "state.db")
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute("SELECT count(*) FROM object WHERE kind = 'run' AND id LIKE ?",
                          (schedule + "/%",)).fetchone()[0]


def was_down(made, schedule, seconds):
    """The hub, which does not run, has not looked at that schedule for so long."""
    with contextlib.closing(sqlite3.connect(os.path.join(made.state, "state.db"))) as db:
        changed = db.execute(
            "UPDATE object SET value = json_set(value, '$.seen', json_extract(value, '$.seen')"
            " - ?) WHERE kind = 'run' AND id LIKE ?", (seconds, schedule + "/%")).rowcount
        db.commit()
    assert changed == 1

"""The hub's catalogue with many restore points: start, list, filter (./run bench catalogue).

The repository holds manifests alone, as 300 machines would leave them that are backed up once a
day; it lies in a folder on a disk, since what is measured is reading files and syncing.
"""

import hashlib
import http.client
import json
import os
import random
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time

VMS, POINTS = 300, 10000
DAY = 86400
FIRST = 1777600000


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value):
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def utc(seconds, form="%Y-%m-%dT%H:%M:%SZ"):
    return time.strftime(form, time.gmtime(seconds))


def disk(rng, key, number, parent):
    size = 1 << 40
    facts = {"change_id": f"52 1f 9a/{number}", "key": key, "mode": "incremental" if parent else "full",
             "figures": {"logical_bytes": size, "read_bytes": 5 << 30, "sent_bytes": 4 << 30,
                         "stored_bytes": 3 << 30, "zeros_skipped_bytes": 1 << 30},
             "parent": parent, "reason": f"changes since {parent}" if parent else "first backup",
             "root": "%064x" % rng.getrandbits(256), "size_bytes": size,
             "source": {"identity": {"disk-uuid": "%032x" % rng.getrandbits(128)}, "kind": "nbd",
                        "label": f"nbd://10.1.2.3/{key}"}}
    if parent:
        facts["changed_by"] = "extents"
    return facts


def write(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True)


def point(rng, repo, repository, vm, number, parent):
    """One restore point with two disks, a day after the one before it."""
    began = FIRST + number * DAY + rng.randrange(3600)
    name = utc(began, "%Y%m%dT%H%M%SZ") + "-%06x" % rng.getrandbits(24)
    job = utc(began, "%Y%m%dT%H%M%SZ") + "-%08x" % rng.getrandbits(32)
    keys = ("2000", "2001")
    facts = {"config": [], "digest": {"algorithm": "xxh3-128", "chunk_bytes": 65536},
             "disks": [disk(rng, key, number, parent) for key in keys],
             "started": utc(began), "finished": utc(began + 300), "job": job, "point": name,
             "repository": repository, "software": "sendense 0.1.0 (git 000000000000)", "vm": vm,
             "source": {"identity": {"vm-uuid": hashlib.md5(vm.encode()).hexdigest()}, "kind": "nbd",
                        "label": vm}}
    storage = {"generation": 1, "disks": {
        key: {"backing": parent, "cluster_bytes": 65536, "compression": "zstd", "image_bytes": 3 << 30,
              "image": f"vms/{vm}/disks/{key}/{name}.qcow2", "stored_bytes": 3 << 30,
              "sums": f"vms/{vm}/disks/{key}/{name}.sums"} for key in keys}}
    folder = os.path.join(repo, "vms", vm, "points", name)
    os.makedirs(folder)
    write(os.path.join(folder, "manifest.json"),
          {"format": 1, "facts": facts, "facts_sha256": digest(facts), "storage": storage,
           "storage_sha256": digest(storage)})
    if rng.random() < 0.2:
        write(os.path.join(folder, "state.json"),
              {"protected": {"until": None} if rng.random() < 0.3 else None,
               "verified": {"at": utc(began + 7200), "result": "good", "chunks": 1 << 16}})
    with open(os.path.join(repo, "vms", vm, "points.log"), "a", encoding="utf-8") as log:
        log.write(canonical({"event": "committed", "facts_sha256": digest(facts), "job": job, "point": name,
                             "time": utc(began + 300)}) + "\n")
    return name


def make(sendense, repo):
    rng = random.Random(8)
    subprocess.run([sendense, "repo", "init", repo, "--quiet"], check=True)
    with open(os.path.join(repo, "repository.json"), encoding="utf-8") as file:
        repository = json.load(file)["id"]
    for i in range(VMS):
        parent = None
        for number in range(POINTS // VMS + (i < POINTS % VMS)):
            parent = point(rng, repo, repository, f"vm-{i:03}", number, parent)
    # What was written within the last seconds counts as being written still.
    long_ago = time.time() - 3600
    for folder, _, files in os.walk(os.path.join(repo, "vms")):
        for path in [folder] + [os.path.join(folder, file) for file in files]:
            os.utime(path, (long_ago, long_ago))


class Hub:
    """A hub on that repository: how long it takes to be ready and to answer, over TLS."""

    def __init__(self, sendense, scratch, repo):
        self.sendense, self.state, self.conf = sendense, f"{scratch}/state", f"{scratch}/hub.conf"
        self.run("hub", "init", "--config", self.conf, "--state-dir", self.state, "--runtime-dir", f"{scratch}/run",
                 "--listen", "127.0.0.1:0", "--nbd-listen", "127.0.0.1:0", "--repository", f"main={repo}", "--quiet")
        with open(f"{self.state}/admin.token", encoding="ascii") as file:
            self.token = file.read().strip()
        self.process = self.connection = None

    def run(self, *words):
        subprocess.run([self.sendense, *words], check=True, stdout=subprocess.DEVNULL)

    def start(self):
        began = time.monotonic()
        self.process = subprocess.Popen([self.sendense, "hub", "run", "--config", self.conf, "--json", "--quiet"],
                                        stdout=subprocess.PIPE)
        url = json.loads(self.process.stdout.readline())["url"]
        took = time.monotonic() - began
        context = ssl.create_default_context(cafile=f"{self.state}/tls/ca.crt")
        self.connection = http.client.HTTPSConnection(url.split("//")[1], context=context)
        return took

    def call(self, method, path, body=None):
        self.connection.request(method, f"/api/v1/{path}", body and json.dumps(body),
                                {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"})
        answer = self.connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            sys.exit(f"bench: {method} {path}: {answer.status} {data.decode()}")
        return json.loads(data)

    def measure(self, path):
        times = []
        for _ in range(15):
            began = time.monotonic()
            self.call("GET", path)
            times.append(time.monotonic() - began)
        return statistics.median(times)

    def stop(self):
        if self.process:
            self.connection.close()
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
            self.process.stdout.close()
            self.process = None


def measure_hub(sendense, scratch, repo):
    hub = Hub(sendense, scratch, repo)
    try:
        yield "hub: ready after its start, index empty", hub.start()
        hub.call("POST", "schedules", {"id": "nightly", "cron": "0 22 * * *", "time_zone": "Europe/Berlin",
                                       "jitter_s": 3600})
        hub.call("POST", "policies", {"id": "all", "schedules": ["nightly"], "vms": ["vm-*"]})
        for i in range(VMS):
            hub.call("PUT", f"vms/vm-{i:03}", {"repository": "main", "labels": {"rack": str(i % 10)}})
        hub.stop()
        yield "hub: ready after its start, 300 machines in a schedule", hub.start()
        for name, path in (("GET vms of the repository, 100", "repositories/main/vms"),
                           ("GET points of a machine", "repositories/main/vms/vm-123/points"),
                           ("GET vms, 100 with their status", "vms"), ("GET status", "status"),
                           ("GET next of a schedule with 300 machines", "schedules/nightly/next?count=10")):
            yield f"hub: {name}", hub.measure(path)
    finally:
        hub.stop()


def run(options):
    with tempfile.TemporaryDirectory(prefix="sendense-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")) as scratch:
        repo = os.path.join(scratch, "repo")
        make(options.sendense, repo)
        out = subprocess.run([options.catalogue, repo, scratch], stdout=subprocess.PIPE, check=False, text=True)
        if out.returncode != 0:
            sys.exit("bench: catalogue failed")
        began = time.monotonic()
        subprocess.run([options.sendense, "ls", "--repo", repo, "--json"], stdout=subprocess.DEVNULL, check=True)
        listed = time.monotonic() - began
        rows = list(measure_hub(options.sendense, scratch, repo))
    print("| catalogue | ms |\n|---|---|")
    for line in out.stdout.splitlines():
        name, value = line.split("\t")
        print(f"| {name} | {value} |")
    for name, seconds in rows:
        print(f"| {name} | {1000 * seconds:.1f} |")
    print(f"| for comparison: sendense ls, which reads all manifests | {1000 * listed:.0f} |")

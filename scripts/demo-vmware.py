#!/usr/bin/env python3
"""The hypervisor's side of ./run demo vmware: tells the test vCenter what to do.

    demo-vmware.py FOLDER url PATH                   vmware://… of something in it
    demo-vmware.py FOLDER vddk                       what the test libvixDiskLib is told
    demo-vmware.py FOLDER add NAME KEY=RAW...        a machine
    demo-vmware.py FOLDER write RAW OFFSET LENGTH    what a guest writes
    demo-vmware.py FOLDER off NAME                   switches it off
    demo-vmware.py FOLDER during NAME KEPT COMMAND   runs a backup; while its snapshot stands, keeps
                                                     the frozen disks as KEPT-KEY.raw, and the guest
                                                     goes on writing
    demo-vmware.py FOLDER clean NAME                 fails when a snapshot or session is left

FOLDER holds ready (the line that the vCenter printed), password, and a file for each machine.
"""

import json
import os
import random
import select
import subprocess
import sys
import time
import urllib.parse
import urllib.request

USER = "administrator@vsphere.local"
DEADLINE = 60


class Vcenter:
    def __init__(self, folder):
        self.folder = folder
        with open(os.path.join(folder, "ready"), encoding="utf-8") as file:
            self.ready = json.load(file)

    def tell(self, op, **values):
        body = json.dumps({"Op": op, **values}).encode()
        with urllib.request.urlopen(self.ready["control"], body, timeout=DEADLINE) as answer:
            return json.load(answer)["result"]

    def machine(self, name):
        with open(os.path.join(self.folder, name + ".json"), encoding="utf-8") as file:
            return json.load(file)

    def url(self, path):
        user = urllib.parse.quote(USER, safe="")
        print(f"vmware://{user}@{self.ready['host']}:{self.ready['port']}/{path}")

    def vddk(self):
        with open(os.path.join(self.folder, "password"), encoding="utf-8") as file:
            password = file.read().strip()
        print(f"frozen={self.ready['frozen']}\nthumbprint={self.ready['sha1']}\npassword={password}")

    def add(self, name, *disks):
        disks = dict(disk.split("=", 1) for disk in disks)
        state = self.tell("add-machine", Machine={
            "Name": name, "Folder": "", "Version": "vmx-13", "Off": False, "Tools": "",
            "Disks": [{"Key": int(key), "Path": path} for key, path in disks.items()]})
        with open(os.path.join(self.folder, name + ".json"), "w", encoding="utf-8") as file:
            json.dump({"ref": state["ref"], "disks": disks}, file)

    @staticmethod
    def write(path, offset, length):
        with open(path, "r+b") as file:
            file.seek(int(offset))
            file.write(random.randbytes(int(length)))

    def off(self, name):
        self.tell("power", VM=self.machine(name)["ref"], On=False)

    def during(self, name, kept, *command):
        machine = self.machine(name)
        self.tell("held")
        self.tell("rule", Rule={"Method": "QueryChangedDiskAreas", "Calls": 1, "Slow": DEADLINE})
        with subprocess.Popen(command) as backup:
            try:
                if self.wait_until_held(backup):
                    self.keep(machine, kept)
            finally:
                self.tell("clear-rules")
                self.tell("release")
        sys.exit(1 if backup.returncode else 0)

    def wait_until_held(self, backup):
        deadline = time.monotonic() + DEADLINE
        while backup.poll() is None:
            if self.tell("held"):
                return True
            if time.monotonic() > deadline:
                backup.terminate()
                sys.exit("demo: the backup made no snapshot")
            select.select([], [], [], 0.02)
        return False

    def keep(self, machine, kept):
        snapshot = self.tell("machine", VM=machine["ref"])["snapshots"][0]["ref"]
        for key, path in machine["disks"].items():
            frozen = os.path.join(self.ready["frozen"], snapshot, key + ".raw")
            subprocess.run(["cp", "--sparse=always", frozen, f"{kept}-{key}.raw"], check=True)
            self.write(path, os.path.getsize(path) // 2, 300000)

    def clean(self, name):
        snapshots = self.tell("machine", VM=self.machine(name)["ref"])["snapshots"]
        sessions, frozen = self.tell("sessions"), os.listdir(self.ready["frozen"])
        print(f"in the vCenter: {len(snapshots)} snapshots, {len(frozen)} frozen copies, "
              f"{sessions} sessions")
        sys.exit(1 if snapshots or frozen or sessions else 0)


getattr(Vcenter(sys.argv[1]), sys.argv[2])(*sys.argv[3:])

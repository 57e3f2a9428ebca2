"""Makes seeds for the fuzz targets: seeds.py FOLDER, with a folder for each target.

Images are small (clusters of 512 bytes and 4 KiB) and made by QEMU; the NBD
client's bytes are put together here.  Dictionaries of magic numbers lie beside.
"""

import io
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import tarfile

REQUEST_MAGIC, EXTENDED_MAGIC, OPTION_MAGIC = 0x25609513, 0x21E41C71, b"IHAVEOPT"


def images(folder):
    def run(*words):
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

    raw = os.path.join(folder, "raw")
    with open(raw, "wb") as file:
        file.write(b"compresses well " * 1024 + bytes(8192) + os.urandom(2048) + b"end" * 2000)
    kinds = {
        "plain": ["cluster_size=512"],
        "old": ["compat=0.10,cluster_size=512"],
        "lazy": ["lazy_refcounts=on,cluster_size=512"],
        "narrow": ["refcount_bits=1,cluster_size=512"],
        "wide": ["refcount_bits=64,cluster_size=512"],
        "extended": ["extended_l2=on,cluster_size=16k"],
        "larger": ["cluster_size=4k"],
    }
    for name, options in kinds.items():
        path = os.path.join(folder, name)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", *options, path, "256k")
        run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 3k", "-c", "write -z 4k 2k",
            "-c", "write -P 2 40k 512", "-c", "discard 1k 512", path)
        if name in ("plain", "larger"):
            run("qemu-img", "snapshot", "-c", "s", path)
            run("qemu-img", "bitmap", "--add", path, "b")
            run("qemu-io", "-f", "qcow2", "-c", "write -P 3 512 1k", path)
    for kind in ("zlib", "zstd"):
        run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
            f"compression_type={kind},cluster_size=4k", raw, os.path.join(folder, kind))
    os.unlink(raw)


def option(number, data=b""):
    return OPTION_MAGIC + struct.pack(">II", number, len(data)) + data


def named(name):
    return struct.pack(">I", len(name)) + name


def request(kind, offset=0, length=0, flags=0, data=b"", extended=False):
    if extended:
        return struct.pack(">IHHQQQ", EXTENDED_MAGIC, flags, kind, 7, offset, length) + data
    return struct.pack(">IHHQQI", REQUEST_MAGIC, flags, kind, 7, offset, length) + data


def requests(extended=False):
    return b"".join((
        request(0, 0, 4096, extended=extended), request(0, 100, 70000, 4, extended=extended),
        request(1, 1, 5, 1, b"hello", extended), request(1, 60000, 3000, 0, bytes(3000), extended),
        request(3, extended=extended), request(4, 512, 65536, extended=extended),
        request(5, 0, 4096, extended=extended), request(6, 4096, 40000, 2, extended=extended),
        request(6, 0, 1 << 17, 16, extended=extended), request(7, 0, 1 << 18, extended=extended),
        request(7, 100, 1 << 17, 8, extended=extended), request(0, 1 << 18, 512, extended=extended),
        request(2, extended=extended)))


def clients(folder):
    go = option(7, named(b"") + struct.pack(">HHHHH", 4, 0, 1, 2, 3))
    context = option(10, named(b"") + struct.pack(">I", 1) + named(b"base:allocation"))
    seeds = {
        "old": struct.pack(">I", 1) + option(1) + requests(),
        "nozeroes": struct.pack(">I", 3) + option(1, b"other") + requests(),
        "go": struct.pack(">I", 3) + option(6, named(b"other") + b"\0\0") + go + requests(),
        "structured": struct.pack(">I", 3) + option(8) + option(9, named(b"") + bytes(4))
                      + context + go + requests(),
        "extended": struct.pack(">I", 3) + option(11) + context + go + requests(True),
        "list": struct.pack(">I", 3) + option(3) + option(99, b"what") + option(2),
        "starttls": struct.pack(">I", 3) + option(8) + option(5, b"data") + option(3) + option(5),
        "abort": struct.pack(">I", 3) + option(7, named(b"none") + b"\0\0") + option(2),
        "half": struct.pack(">I", 3) + go + request(1, 0, 1 << 16)[:20],
        "huge": struct.pack(">I", 3) + go + request(1, 0, 0xFFFFFFFF, 0, bytes(1000)),
    }
    for name, data in seeds.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)


def lists(folder):
    first = b'{"sendense-extents":1,"key":"2000","size":1000000,"from":"a","to":"b"}\n'
    seeds = {
        "empty": first + b'{"end":true,"count":0,"bytes":0}\n',
        "three": first + b'{"offset":0,"length":512}\n{"offset":512,"length":1}\n'
                 b' { "length" : 5 , "offset" : 70000 } \r\n{"bytes":518,"count":3,"end":true}',
        "cut": first + b'{"offset":0,"length":512}\n{"offset":51',
        "overlap": first + b'{"offset":10,"length":512}\n{"offset":11,"length":1}\n',
        "past": first + b'{"offset":9223372036854775807,"length":9223372036854775807}\n',
    }
    for name, data in seeds.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)


def rest(folder):
    seeds = {
        "body": b'{"name":"x","count":2,"on":null,"kind":"a","list":[{"name":"y"},[[1]]]}',
        "deep": b"[" * 20 + b"]" * 20,
        "texts": b'{"a":"\\u00e4\\n\\"[","b":-1.5e3,"c":true}',
        "target": b"/a/web%2001/b/latest?x=1&y=%26+z&flag",
        "dots": b"/a/%2e%2e/b/%2F?a=%00",
        "events": b"retry: 1000\n\nid: 1\nevent: a\ndata: {}\n\n:\n\ndata:2\r\ndata\r\n\r\nid\rdata: 3\r\r",
    }
    for name, data in seeds.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)


def rules(folder):
    seeds = {
        "export": b"\0nbd://host:10809/vm-*\nnbd://HOST/vm-1",
        "v6": b"\0nbds://[::1]:*/\nnbds://[0::1]:5/x%20y",
        "file": b"\0raw:/tmp/\nraw:/tmp//./x",
        "target": b"\1qcow2:/tmp/\nqcow2:/tmp/new",
        "socket": b"\0nbd+unix:/run/\nnbd+unix:///x?socket=/run/y",
        "machine": b"\0qemu:/run/\nqemu:/run/x.sock/disk",
        "webhook": b"\2https://h.example/in/\nhttps://h.example:443/in/a",
    }
    for name, data in seeds.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)


def state(folder):
    """A small database that goes for a hub's state."""
    path = os.path.join(folder, "state.db")
    made = sqlite3.connect(path)
    made.executescript("PRAGMA page_size = 512; CREATE TABLE object (kind TEXT, id TEXT, value TEXT);"
                       "INSERT INTO object VALUES ('token', 'a', '{}');"
                       "PRAGMA application_id = 0x53645374; PRAGMA user_version = 1")
    made.close()
    with open(path, "rb") as file:
        return file.read()


def packed(files, listed=None, **more):
    """An export of {name: bytes}; the target puts the digests in."""
    names = files if listed is None else listed
    first = json.dumps({"sendense-hub-export": 1, "hub": "h", "software": "s", "created": "c", **more,
                        "files": [{"name": name, "size": 1, "sha256": "0" * 64, "path": f"/etc/{name}"}
                                  for name in names]}).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in {"export.json": first, **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue().rstrip(b"\0") + bytes(2048)


def exports(folder):
    db = state(folder)
    whole = {"state.db": db, "hub.conf": b"[hub]\n", "tls/ca.key": b"key"}
    seeds = {
        "bare": db,
        "least": packed({"state.db": db}),
        "whole": packed(whole),
        "newer": packed(whole, **{"sendense-hub-export": 2}),
        "unlisted": packed(whole, listed=["state.db", "hub.conf"]),
        "lacking": packed(whole, listed=[*whole, "more"]),
        "deep": packed({"state.db": db, "a/b/c/d": b"", "a/b/c/e": b"x" * 600}),
        "cut": packed(whole)[:-1500],
        "outside": packed({"state.db": db, "../x": b"x", "/tmp/x": b"x"}),
        "twice": packed({"state.db": db, "tls": b"x", "tls/ca.key": b"key"}),
    }
    os.unlink(os.path.join(folder, "state.db"))
    for name, data in seeds.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)


def answers(folder):
    """Captures, and a configuration with all that is looked at."""
    captures = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "unit", "vsphere", "soap")
    for name in os.listdir(captures):
        shutil.copy(os.path.join(captures, name), folder)
    disk = ("<device x:type='VirtualDisk'><key>%d</key><deviceInfo><label>d</label></deviceInfo>"
            "<backing x:type='VirtualDiskFlatVer2BackingInfo'><fileName>[a] b/c.vmdk</fileName>"
            "<diskMode>%s</diskMode><uuid>u</uuid><changeId>e/1</changeId></backing>"
            "<controllerKey>1000</controllerKey><unitNumber>0</unitNumber>"
            "<capacityInKB>1024</capacityInKB><capacityInBytes>1048576</capacityInBytes></device>")
    with open(os.path.join(folder, "config"), "w", encoding="ascii") as file:
        file.write("<v xmlns:x='http://www.w3.org/2001/XMLSchema-instance'><name>n</name><version>"
                   "vmx-19</version><files><vmPathName>[a] b/c.vmx</vmPathName></files><extraConfig>"
                   "<key>nvram</key><value>c.nvram</value></extraConfig><hardware><numCPU>2</numCPU>"
                   "<memoryMB>64</memoryMB><device x:type='VirtualLsiLogicController'><key>1000</key>"
                   "<busNumber>0</busNumber><sharedBus>noSharing</sharedBus></device>"
                   + disk % (2000, "persistent") + disk % (2001, "independent_persistent")
                   + "<device x:type='VirtualE1000'><key>4000</key><macAddress>0</macAddress></device>"
                   "</hardware></v>")
    with open(os.path.join(folder, "areas"), "w", encoding="ascii") as file:
        file.write("<r><startOffset>0</startOffset><length>1000</length><changedArea><start>5</start>"
                   "<length>7</length></changedArea><changedArea><start>12</start><length>1</length>"
                   "</changedArea></r>")


def dictionary(path, words):
    with open(path, "w", encoding="ascii") as file:
        for word in words:
            file.write('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n')


def helpers(folder):
    """What fuzz_vddk.c reads: an opened disk, requests, what lies in the memory, answers."""
    def say(kind, slot, shape, count=0, code=None):
        head = bytes((3, kind, slot, 4, shape))
        return head + (struct.pack(">Q", count) if shape & 2 else bytes((count,))) + \
            (bytes((code,)) if shape & 4 else b"")

    def ask(how, offset, length):
        return bytes((0, how)) + struct.pack(">QI", offset, length)

    def leave(slot, *areas):
        return bytes((1, slot, len(areas))) + \
            b"".join(struct.pack("=II", *area) + b"\1" for area in areas)

    opened, failed, done, log = say(6, 8, 2, 1 << 15), 9, 7, 8
    for name, content in {
            "reads": opened + ask(0, 5, 2 << 20) + b"".join(say(done, slot, 0) for slot in range(3)),
            "failing": opened + ask(0, 512, 4096) + say(done, 0, 12, code=5),
            "map": opened + ask(1, 5, 9) + leave(0, (0, 128), (256, 128)) + say(done, 0, 0, 2) +
                   ask(1, 70000, 1),
            "refused": say(5, 2, 0) + say(log, 1, 8) + say(failed, 3, 12, code=1)}.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)


def machines(folder):
    """vsphere.json, as backups keep it."""
    disks = [{"key": key, "label": f"Hard disk {nr}", "controller": controller, "unit": unit}
             for nr, (key, controller, unit) in enumerate(
                 (("2000", 1000, 0), ("2001", 1001, 9), ("3000", 200, 0), ("16000", 15000, 1)), 1)]
    kinds = ((1000, "ParaVirtualSCSIController"), (1001, "VirtualLsiLogicController"),
             (200, "VirtualIDEController"), (15000, "VirtualAHCIController"),
             (31000, "VirtualNVMEController"))
    whole = {"sendense-vsphere": 1, "name": "web01", "guest_id": "debian11_64Guest", "firmware": "efi",
             "bios_uuid": "4216f6b0-1234-4abc-8000-00000000abcd", "secure_boot": True, "cpus": 4,
             "cores_per_socket": 2, "memory_bytes": 1 << 28, "disks": disks,
             "controllers": [{"key": key, "bus": nr, "type": kind} for nr, (key, kind) in enumerate(kinds)],
             "nics": [{"key": 4000, "label": "n", "type": "VirtualVmxnet3", "mac": "00:50:56:aa:bb:00",
                       "network": "VM & Network", "connected": False}]}
    crowded = dict(whole, disks=[dict(disks[0], unit=unit) for unit in range(80)])
    odd = dict(whole, controllers=[], name="\x01", nics=[{}], disks=[{}, {"key": 5}])
    for name, machine in {"whole": whole, "crowded": crowded, "odd": odd}.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(machine, file)


def main():
    folder = sys.argv[1]
    for target, make in (("fuzz_qcow2_open", images), ("fuzz_nbd_server", clients),
                         ("fuzz_changes", lists), ("fuzz_rest", rest), ("fuzz_allow", rules),
                         ("fuzz_archive", exports), ("fuzz_vsphere", answers),
                         ("fuzz_vddk", helpers), ("fuzz_rebuild", machines)):
        os.mkdir(os.path.join(folder, target))
        make(os.path.join(folder, target))
    dictionary(os.path.join(folder, "fuzz_qcow2_open.dict"), (
        b"QFI\xfb", *(struct.pack(">I", magic) for magic in
                      (0xE2792ACA, 0x6803F857, 0x23852875, 0x0537BE77, 0x44415441)),
        *(struct.pack(">Q", 1 << bit) for bit in (0, 9, 12, 14, 62, 63)),
        b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + bytes(7), b"qcow2", b"raw"))
    dictionary(os.path.join(folder, "fuzz_nbd_server.dict"), (
        OPTION_MAGIC, b"base:allocation", b"base:", b"other",
        struct.pack(">I", REQUEST_MAGIC), struct.pack(">I", EXTENDED_MAGIC),
        *(OPTION_MAGIC + struct.pack(">I", number) for number in range(1, 12)),
        *(struct.pack(">IHH", REQUEST_MAGIC, 0, kind) for kind in range(8)),
        struct.pack(">I", 1 << 18), b"\xff" * 4, b"\xff" * 8))
    dictionary(os.path.join(folder, "fuzz_changes.dict"), (
        b'{"offset":', b',"length":', b'{"end":true,"count":', b',"bytes":', b"}\n", b"0",
        b'{"sendense-extents":1,"key":"', b'","size":', b',"from":"', b'","to":"',
        b"9223372036854775807", b"9223372036854775808", b"\\u0000", b"1.0", b"1e3", b"-1"))
    dictionary(os.path.join(folder, "fuzz_rest.dict"), (
        b'"name":', b'"list":[', b"\\u0000", b"\\ud800", b"%2f", b"%00", b"/a/", b"/b/", b"?a=",
        b"data: ", b"event: ", b"id: ", b"\n\n", b"\r\n"))
    dictionary(os.path.join(folder, "fuzz_allow.dict"), (
        b"nbd://", b"nbds://", b"nbd+unix://", b"raw:", b"qcow2:", b"qemu:", b"extents:", b"null:",
        b"https://", b"http://", b"?socket=", b"/../", b"%2e%2e", b"%2f", b"%00", b"[::1]", b":*",
        b"user:x@", b"*", b"\n"))
    dictionary(os.path.join(folder, "fuzz_archive.dict"), (
        b"ustar\0" + b"00", b"SQLite format 3\0", b"state.db", b"export.json", b'"sendense-hub-export": 1',
        b'"sha256": "', b"0" * 64, b'"name": "', b'"path": "', b"../", b"/", b"00000000001\0", bytes(512)))
    dictionary(os.path.join(folder, "fuzz_vsphere.dict"), (
        b"<!DOCTYPE a [", b"<!ENTITY b 'c'>", b"<![CDATA[", b"]]>", b"&amp;", b"&#10;", b"<?xml version=\"1.0\"?>",
        b"xmlns:x='http://www.w3.org/2001/XMLSchema-instance'", b"x:type='VirtualDisk'", b"type='Task'",
        b"<key>", b"</key>", b"<device>", b"</device>", b"<start>", b"</start>", b"<length>", b"</length>",
        b"9223372036854775807", b"-1", b"<Fault>", b"<detail>", b"capacityInBytes"))
    dictionary(os.path.join(folder, "fuzz_rebuild.dict"), (
        *(f'"{word}":'.encode() for word in (
            "sendense-vsphere", "name", "firmware", "cpus", "cores_per_socket", "memory_bytes", "disks",
            "controllers", "nics", "key", "bus", "type", "controller", "unit", "mac", "network")),
        b"\\u0001", b"\\ud800", b"9223372036854775807", b"-1", b"null", b"ParaVirtualSCSIController"))
    dictionary(os.path.join(folder, "fuzz_vddk.dict"), (
        *(bytes((3, kind)) for kind in range(11)), struct.pack(">Q", 1 << 15), b"\xff" * 8,
        struct.pack("=I", 128), struct.pack("=I", 1 << 15)))


main()

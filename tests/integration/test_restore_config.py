"""restore --config: what makes a machine again, read by libvirt, booted by QEMU, and taken by a
vCenter's importer."""

import json
import os
import ssl
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

import hub
import support
import vcenter
import vddk
from support import MIB, fails, make_disk, need, run, sendense, wait_for

OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"

# A machine with something of everything.  The boot sector goes onto disk 2000.
CONTROLLERS = [(1000, 0, "ParaVirtualSCSIController"), (1001, 1, "VirtualLsiLogicSASController"),
               (200, 0, "VirtualIDEController"), (15000, 0, "VirtualAHCIController"),
               (31000, 0, "VirtualNVMEController"), (1002, 2, "VirtualLsiLogicController")]
DISKS = {"2000": (1000, 0), "2001": (1000, 1), "2016": (1001, 0), "2025": (1001, 9),
         "2032": (1002, 0), "3000": (200, 0), "16000": (15000, 0), "32000": (31000, 0)}
NICS = ["VirtualVmxnet3", "VirtualE1000e", "VirtualSriovEthernetCard"]


def stored(firmware="bios", **members):
    """What a backup from VMware keeps of such a machine."""
    return {
        "sendense-vsphere": 1, "name": "web & <01>/\"x\" \x01 ü", "path": "/DC0/vm/web01",
        "instance_uuid": "5032a1c0-0000-4000-8000-000000000001",
        "bios_uuid": "4216f6b0-1234-4abc-8000-00000000abcd",
        "guest_id": "debian11_64Guest", "hardware": "vmx-19", "firmware": firmware,
        "secure_boot": firmware == "efi", "cpus": 4, "cores_per_socket": 2,
        "memory_bytes": 256 * MIB,
        "controllers": [{"key": key, "bus": bus, "type": kind} for key, bus, kind in CONTROLLERS],
        "disks": [{"key": key, "label": f"Hard disk {nr}", "controller": controller, "unit": unit}
                  for nr, (key, (controller, unit)) in enumerate(DISKS.items(), 1)],
        "nics": [{"key": 4000 + nr, "label": f"Network adapter {nr + 1}", "type": kind,
                  "mac": f"00:50:56:aa:bb:0{nr}", "network": "VM & Network",
                  "connected": nr != 1} for nr, kind in enumerate(NICS)],
    } | members


def boot_sector(nr_disks):
    """A guest: it reads sector 1 of each disk through the firmware and sends the 16 bytes that
    stand at its front to the serial port, and then '!'."""
    code = bytes([
        0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfb,  # segments
        0xb3, 0x80,  # mov bl, 0x80: the disk
        # next (15): read LBA 1 to 0x8000
        0xbe, 0x80, 0x7c,  # mov si, 0x7c80: the packet
        0x88, 0xda,  # mov dl, bl
        0xb4, 0x42, 0xcd, 0x13,  # int 13h
        0x72, 0x12,  # jc end
        0xbe, 0x00, 0x80, 0xb9, 0x10, 0x00,  # mov si, 0x8000; mov cx, 16
        # byte (32):
        0xac, 0xba, 0xf8, 0x03, 0xee,  # lodsb; mov dx, 0x3f8; out dx, al
        0xe2, 0xf9,  # loop byte
        0xfe, 0xc3,  # inc bl
        0x80, 0xfb, 0x80 + nr_disks,  # cmp bl, 0x80 + nr
        0x72, 0xe1,  # jb next
        # end:
        0xb0, 0x21, 0xba, 0xf8, 0x03, 0xee, 0xf4, 0xeb, 0xfd])
    packet = bytes([0x10, 0, 1, 0, 0x00, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
    sector = code.ljust(0x80, b"\0") + packet
    return sector.ljust(510, b"\0") + b"\x55\xaa"


def marker(key):
    return f"<disk {key}>".ljust(16).encode()


def bootable(folder):
    """{key: raw file}"""
    disks = {}
    for key in DISKS:
        disks[key] = make_disk(f"{folder}/source-{key}.raw", 2 * MIB, [(MIB, 4096, "random")])
        with open(disks[key], "r+b") as file:
            if key == "2000":
                file.write(boot_sector(len(DISKS)))
            file.seek(512)
            file.write(marker(key))
    return disks


@pytest.fixture(name="h")
def hub_fixture(servers):
    with hub.hub_in(servers) as made:
        yield made.start()


def push(h, disks, config, vm="web01", name="vsphere.json"):
    """A restore point with that configuration, by the hub."""
    session = h.open_session(vm, {key: os.path.getsize(path) for key, path in disks.items()})
    for disk in session["disks"]:
        h.write(disk["export"], disks[disk["key"]])
    if config is not None:
        octets = config if isinstance(config, bytes) else json.dumps(config).encode()
        assert h.ask("PUT", f"sessions/{session['id']}/config/{name}", octets=octets).status == 204
    return h.commit(session)["point"]


def targets(folder, keys, form="raw"):
    os.makedirs(folder, exist_ok=True)
    return [word for key in keys for word in ("--to", f"{key}={form}:{folder}/{key}.{form}")]


def libvirt_takes(path):
    """By its schema, and by its own parser."""
    need("virsh", "xmllint")
    env = {name: value for name, value in os.environ.items() if not name.startswith("LD_")}
    env["HOME"] = os.path.dirname(path)
    schema = "/usr/share/libvirt/schemas/domain.rng"
    run("xmllint", "--noout", "--relaxng", schema, path, env=env)
    done = subprocess.run(["virsh", "-c", "test:///default"], input=f"define --validate {path}\nlist --all\n",
                          text=True, capture_output=True, check=False, env=env,
                          timeout=support.TIMEOUT)
    assert done.returncode == 0 and "defined from" in done.stdout, (done.stdout, done.stderr)


# --- booting what the XML says --------------------------------------------------------------------

def qemu_arguments(path):
    """What libvirt would give QEMU, as far as it matters here."""
    domain = ElementTree.parse(path).getroot()
    words = ["-machine", f"{domain.find('os/type').get('machine')},accel=tcg", "-m",
             str(int(domain.find("memory").text) // 1024), "-smp", domain.find("vcpu").text,
             "-uuid", domain.find("uuid").text]
    ports = {"vmpvscsi": "pvscsi", "lsisas1068": "mptsas1068"}
    for controller in domain.findall("devices/controller"):
        kind, index = controller.get("type"), controller.get("index")
        if kind == "scsi":
            words += ["-device", f"{ports[controller.get('model')]},id=scsi{index}"]
        elif kind == "sata":
            words += ["-device", f"ahci,id=sata{index}"]
    for nr, disk in enumerate(domain.findall("devices/disk")):
        form, place = disk.find("driver").get("type"), disk.find("address")
        file, kind = disk.find("source").get("file"), disk.find("target").get("bus")
        at = {"scsi": f"scsi-hd,bus=scsi{place.get('controller')}.0,scsi-id={place.get('target')},"
                      f"lun={place.get('unit')}",
              "sata": f"ide-hd,bus=sata{place.get('controller')}.{place.get('unit')}",
              "ide": f"ide-hd,bus=ide.{place.get('bus')},unit={place.get('unit')}"}[kind]
        words += ["-blockdev", f"driver={form},node-name=d{nr},file.driver=file,file.filename={file}",
                  "-device", f"{at},drive=d{nr},bootindex={disk.find('boot').get('order')}"]
    models = {"vmxnet3": "vmxnet3", "e1000": "e1000", "e1000e": "e1000e"}
    for nr, nic in enumerate(domain.findall("devices/interface")):
        words += ["-netdev", f"hubport,id=n{nr},hubid={nr}", "-device",
                  f"{models[nic.find('model').get('type')]},netdev=n{nr},romfile=,"
                  f"mac={nic.find('mac').get('address')}"]
    return words


def boots(servers, folder, path):
    """Until the guest says that it has seen all; what it said."""
    need("qemu-system-x86_64")
    log = os.path.join(folder, "serial.log")
    qemu = servers.start("qemu-system-x86_64", "-nodefaults", "-display", "none", "-serial",
                         f"file:{log}", *qemu_arguments(path), name="qemu")

    def said():
        assert qemu.running, qemu.err
        if not os.path.exists(log):
            return b""
        with open(log, "rb") as file:
            return file.read()

    wait_for(lambda: said().endswith(b"!"), "the guest")
    text = said()
    qemu.popen.kill()
    qemu.wait()
    return text


def test_a_machine_of_everything_boots_again(h, servers, scratch):
    disks = bootable(scratch)
    push(h, disks, stored())
    out = f"{scratch}/out"
    words = ["web01", *targets(out, DISKS, "qcow2"), "--config", "libvirt"]
    done = sendense("restore", "--repo", h.repositories["main"], *words)
    path = f"{out}/web01.xml"
    assert f"configuration is in {path}" in done.out
    for word in ("2032", "LsiLogic", "NVME", "Sriov", "VM & Network"):
        assert word in done.err
    libvirt_takes(path)
    domain = ElementTree.parse(path).getroot()
    assert domain.find("name").text == "web & <01>_\"x\" _ ü"
    assert domain.find("uuid").text == stored()["bios_uuid"]
    assert domain.find("os/type").get("machine") == "pc"
    topology = domain.find("cpu/topology")
    assert (domain.find("vcpu").text, topology.get("sockets"), topology.get("cores")) == ("4", "2", "2")
    assert [nic.find("link") is not None for nic in domain.findall("devices/interface")] == \
        [False, True, False]
    said = boots(servers, scratch, path)
    assert said == b"".join(marker(key) for key in DISKS) + b"!"
    # Through the hub, without copying, it is the same.
    again = f"{scratch}/again.xml"
    hub.cli(h, "restore", *words, "--config-only", "--config-out", again)
    with open(path, "rb") as here, open(again, "rb") as there:
        assert here.read() == there.read()


def test_efi_with_secure_boot(h, scratch):
    disks = bootable(scratch)
    push(h, disks, stored("efi", guest_id="windows2019srv_64Guest", cpus=6, cores_per_socket=4))
    done = sendense("restore", "--repo", h.repositories["main"], "web01",
                    *targets(f"{scratch}/out", ["2000", "3000"]), "--config", "libvirt",
                    "--config-out", f"{scratch}/vm.xml")
    assert "EFI's variables" in done.err and "disk 2016" in done.err
    libvirt_takes(f"{scratch}/vm.xml")
    domain = ElementTree.parse(f"{scratch}/vm.xml").getroot()
    assert domain.find("os").get("firmware") == "efi"
    assert domain.find("os/loader").get("secure") == "yes"
    assert domain.find("os/type").get("machine") == "q35"
    assert domain.find("clock").get("offset") == "localtime"
    assert domain.find("cpu/topology").get("sockets") == "6"
    assert [disk.find("target").get("bus") for disk in domain.findall("devices/disk")] == \
        ["sata", "sata"]


def test_many_disks_find_room(h, scratch):
    keys = [str(2000 + nr) for nr in range(40)]
    config = stored(controllers=[{"key": 1000, "bus": 0, "type": "VirtualLsiLogicSASController"},
                                 {"key": 200, "bus": 0, "type": "VirtualIDEController"}],
                    disks=[{"key": key, "label": key, "controller": 1000 if nr < 20 else 200,
                            "unit": nr} for nr, key in enumerate(keys)])
    disk = make_disk(f"{scratch}/a.raw", MIB, [(0, 4096, "random")])
    push(h, {key: disk for key in keys}, config)
    sendense("restore", "--repo", h.repositories["main"], "web01", *targets(f"{scratch}/out", keys),
             "--config", "libvirt", "--quiet")
    path = f"{scratch}/out/web01.xml"
    libvirt_takes(path)
    places = [(disk.find("target").get("bus"), tuple(sorted(disk.find("address").attrib.items())))
              for disk in ElementTree.parse(path).getroot().findall("devices/disk")]
    assert len(set(places)) == len(keys)
    assert [bus for bus, _ in places] == ["scsi"] * 20 + ["ide"] * 4 + ["sata"] * 16


# --- OVF -----------------------------------------------------------------------------------------

def import_spec(vc, text):
    """What a vCenter's importer makes of it."""
    connect = pytest.importorskip("pyVim.connect", reason="python3-pyvmomi is not installed")
    from pyVmomi import vim  # pylint: disable=import-outside-toplevel
    context = ssl.create_default_context(cafile=vc.ca)
    service = connect.SmartConnect(host=vc.host, port=vc.port, user=vc.user, pwd=vc.password,
                                   sslContext=context)
    try:
        content = service.RetrieveContent()
        center = content.rootFolder.childEntity[0]
        pool = center.hostFolder.childEntity[0].resourcePool
        return content.ovfManager.CreateImportSpec(
            text, pool, center.datastore[0],
            vim.OvfManager.CreateImportSpecParams(entityName="again"))
    finally:
        connect.Disconnect(service)


def test_an_importer_takes_the_ovf(h, scratch):
    disks = bootable(scratch)
    push(h, disks, stored("efi"))
    out = f"{scratch}/out"
    hub.cli(h, "restore", "web01", *targets(out, DISKS), "--config", "ovf", "--quiet")
    with open(f"{out}/web01.ovf", encoding="utf-8") as file:
        text = file.read()
    envelope = ElementTree.fromstring(text)
    assert [file.get(OVF + "href") for file in envelope.findall(f"{OVF}References/{OVF}File")] == \
        [f"{key}.raw" for key in DISKS]
    for item in envelope.iter(OVF + "Item"):
        names = [child.tag for child in item if "CIM_" in child.tag]
        assert names == sorted(names)
    with vcenter.fake_in(scratch) as vc:
        result = import_spec(vc, text)
    # The simulator takes no SATA and no NVMe, and calls LSI's SAS by another name than VMware.
    spec = result.importSpec.configSpec
    assert (spec.numCPUs, spec.memoryMB, spec.version, spec.guestId) == \
        (4, 256, "vmx-19", "debian11_64Guest")
    made = [type(change.device).__name__ for change in spec.deviceChange]
    for kind in ("ParaVirtualSCSIController", "VirtualIDEController", "VirtualLsiLogicController",
                 "VirtualVmxnet3", "VirtualE1000e", "VirtualE1000"):
        assert any(name.endswith(kind) for name in made), (kind, made)
    sizes = [change.device.capacityInKB for change in spec.deviceChange
             if type(change.device).__name__.endswith("VirtualDisk")]
    assert sizes == [2048] * 4
    assert {item.path for item in result.fileItem} == \
        {f"{key}.raw" for key in ("2000", "2001", "2032", "3000")}
    kinds = [item.findtext("{*}ResourceSubType") for item in envelope.iter(OVF + "Item")
             if item.findtext("{*}ResourceType") in ("6", "20")]
    assert kinds == ["VirtualSCSI", "lsilogicsas", "vmware.sata.ahci", "vmware.nvme.controller",
                     "lsilogic"]


def test_bad_input(h, scratch):
    repo = h.repositories["main"]
    disk = make_disk(f"{scratch}/a.raw", MIB, [(0, 4096, "random")])
    push(h, {"2000": disk}, None, vm="bare")
    push(h, {"2000": disk}, stored(), vm="web01")
    out = f"{scratch}/out"
    to = targets(out, ["2000"])

    def wrong(case, contains, *words, vm="bare", status=1):
        fails("restore", "--repo", repo, vm, *words, status=status, contains=contains,
              case=f"configuration of a machine: {case}")
        assert os.listdir(out) == []

    wrong("none is kept, none is said", ["CPUs memory firmware", "--cpus N"], *to, "--config",
          "libvirt", status=2)
    wrong("options without --config", "--cpus is of no use", *to, "--cpus", "2", status=2)
    wrong("an export", "neither", "--to", "nbd://127.0.0.1:1/x", "--config", "libvirt", status=2)
    wrong("no such folder", "No such file", *to, "--config", "libvirt", "--config-out",
          f"{scratch}/nowhere/x", vm="web01")
    wrong("inside a repository", repo, *to, "--config", "libvirt", "--config-out", f"{repo}/x.xml",
          vm="web01")
    wrong("where a disk goes", "a disk goes there", *to, "--config", "libvirt", "--config-out",
          f"{out}/2000.raw", vm="web01", status=2)
    wrong("an OVF elsewhere", "names the files beside it", *to, "--config", "ovf", "--config-out",
          f"{scratch}/x.ovf", vm="web01", status=2)
    wrong("disks that are not there", "2000.raw", *to, "--config", "libvirt", "--config-only",
          vm="web01")
    for nr, (case, text, contains) in enumerate([
            ("not JSON", b"{", "vsphere.json"), ("of another kind", b"{}", "does not describe"),
            ("of a later version", {"sendense-vsphere": 2}, "take a newer one"),
            ("without lists", {"sendense-vsphere": 1}, "no list of"),
            ("without memory", stored(memory_bytes=0), "--memory"),
            ("of an odd firmware", stored("coreboot"), "coreboot")]):
        push(h, {"2000": disk}, text, vm=f"odd{nr}")
        wrong(case, contains, *to, "--config", "libvirt", vm=f"odd{nr}",
              status=2 if case == "without memory" else 1)
    # With what is missing said, it is written, and not a second time.
    said = ["--config", "libvirt", "--cpus", "2", "--memory", "64MiB", "--firmware", "bios"]
    done = sendense("restore", "--repo", repo, "bare", *to, *said)
    assert "without networks" in done.err
    libvirt_takes(f"{out}/bare.xml")
    fails("restore", "--repo", repo, "bare", *targets(f"{scratch}/b", ["2000"]), *said,
          "--config-out", f"{out}/bare.xml", contains="--force")
    with open(f"{out}/2000.raw", "r+b") as file:
        file.truncate(2 * MIB)
    fails("restore", "--repo", repo, "bare", *to, *said, "--force", "--config-only",
          contains="has 2097152 bytes")


def test_a_kept_file_that_was_altered(h, scratch):
    disk = make_disk(f"{scratch}/a.raw", MIB, [(0, 4096, "random")])
    point = push(h, {"2000": disk}, stored())
    repo = h.repositories["main"]
    path = f"{repo}/vms/web01/points/{point}/config/vsphere.json"
    get = f"repositories/main/vms/web01/points/{point}/config/"
    assert h.ask("GET", get + "vsphere.json").status == 200
    assert h.ask("GET", get + "..%2fmanifest.json").status in (400, 404)
    assert h.ask("GET", get + "nvram").status == 404
    reader = h.make_token("read")
    assert h.ask("GET", get + "vsphere.json", token=reader).status == 403
    with open(path, "r+b") as file:
        file.write(b" ")
    to = targets(f"{scratch}/out", ["2000"])
    fails("restore", "--repo", repo, "web01", *to, "--config", "libvirt", status=3,
          contains="not what was backed up", case="configuration of a machine: altered")
    os.unlink(path)
    assert h.ask("GET", get + "vsphere.json").status == 500


def test_from_a_vcenter(scratch):
    """What a real backup keeps is what is read here."""
    with vcenter.fake_in(scratch) as vc:
        lib = vddk.FakeVddk(scratch, frozen=vc.frozen)
        lib.tell(thumbprint=vc.sha1, password=vc.password)
        vc.add_machine("web01", {2000: MIB, 16000: MIB})
        repo = f"{scratch}/repo"
        sendense("repo", "init", repo)
        sendense("backup", "--repo", repo, vc.url("web01"), "--password-file", vc.password_file,
                 "--vcenter-ca-file", vc.ca, env=lib.env(SENDENSE_STATE_DIR=f"{scratch}/debts"))
    sendense("restore", "--repo", repo, "web01", *targets(f"{scratch}/out", ["2000", "16000"]),
             "--config", "libvirt")
    libvirt_takes(f"{scratch}/out/web01.xml")
    domain = ElementTree.parse(f"{scratch}/out/web01.xml").getroot()
    assert domain.find("os").get("firmware") == "efi" and domain.find("name").text == "web01"
    assert [disk.find("target").get("bus") for disk in domain.findall("devices/disk")] == \
        ["sata", "sata"]
    assert len(domain.findall("devices/interface")) == 1

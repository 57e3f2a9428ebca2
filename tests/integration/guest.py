"""A real Linux that boots in QEMU (TCG): Debian's kernel, busybox, GRUB, an ext4 root.

    disk = guest.make_disk(folder)                  # raw; boots by BIOS and by EFI
    with guest.Console(folder) as console:
        console.start(servers, guest.qemu(console, disk))   # or guest.libvirt(…), or any QEMU
                                                            # with console.words
        console.boots()                             # the number of this boot, files are checked
        console.write("name", kib=300)              # a file of random bytes; its SHA-256
        console.off()                               # clean: the root is read-only, power is off
    guest.judge(disk)                               # by e2fsck and debugfs, on the host

The guest adds lines to a log all the time, and keeps a list of its files' digests.
"""

import hashlib
import os
import re
import shutil
import socket
import sys
import time
import xml.etree.ElementTree as ElementTree

import pytest

import support
from support import MIB, need, run

EFI_START, ROOT_START, SIZE = 1 * MIB, 8 * MIB, 72 * MIB
LABEL = "sendense-root"
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
BOOT_TIMEOUT = max(180, support.TIMEOUT)  # seconds; without KVM, on a busy machine
MODULES = ("crct10dif_generic", "crc64_rocksoft_generic", "crc32c_generic", "virtio_pci",
           "virtio_blk", "sd_mod", "vmw_pvscsi", "mptsas", "ahci", "ata_piix", "ext4")

INITRD = f"""#!/bin/busybox sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod /modules/$module; done </modules/order
tries=0
until device=$(findfs LABEL={LABEL} 2>/dev/null); do
	tries=$((tries + 1))
	[ $tries -lt 500 ] || {{ echo "guest: no root"; poweroff -f; }}
	usleep 20000
done
mount -t ext4 -o rw "$device" /root || {{ echo "guest: the root is bad"; poweroff -f; }}
umount /proc /sys
mount --move /dev /root/dev
exec switch_root /root /sbin/init
"""

# What the host says comes by the serial port, a line each.
INIT = """#!/bin/busybox sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo -onlcr
boot=$(($(cat /var/boots) + 1))
echo $boot >/var/boots
dmesg | grep -q 'EXT4-fs.*recovery complete' && journal=replayed || journal=clean
firmware=bios
[ -d /sys/firmware/efi ] && firmware=efi
dmesg | grep -iq 'secure boot enabled' && firmware=secure
keep_log() {
	line=0
	while :; do
		line=$((line + 1))
		echo "boot $boot line $line" >>/var/log
		[ $((line % 10)) -ne 0 ] || sync
		usleep 50000
	done
}
keep_log &
writer=$!
echo "guest: boot $boot $firmware $journal"
while read -r what name kib; do
	case $what in
	write)
		dd if=/dev/urandom of=/data/$name bs=1k count=$kib 2>/dev/null
		sha256sum /data/$name >>/var/digests
		sync
		echo "guest: wrote $(tail -n 1 /var/digests)" ;;
	check)
		sha256sum -c -s /var/digests && echo "guest: good $(wc -l </var/digests)" || echo "guest: bad" ;;
	freeze) fsfreeze --freeze / && echo "guest: frozen" ;;
	thaw) fsfreeze --unfreeze / && echo "guest: thawed" ;;
	off)
		kill $writer
		wait
		sync
		mount -o remount,ro / && echo "guest: off"
		poweroff -f ;;
	esac
done
"""

GRUB = """search --no-floppy --label {label} --set=root
linux /boot/vmlinuz console=ttyS0 quiet panic=-1 mitigations=off
initrd /boot/initrd
boot
"""


# --- the disk ---------------------------------------------------------------------------------


def kernel(flavour="cloud-amd64"):
    """(vmlinuz, folder of its modules), of this machine or as ./run fetches it; or skips."""
    for top in ("/", os.path.join(support.TOP, "build", "guest-kernel")):
        folder = os.path.join(top, "boot")
        for name in sorted(os.listdir(folder) if os.path.isdir(folder) else [], reverse=True):
            if re.fullmatch(r"vmlinuz-[\d.-]+-" + flavour, name):
                modules = os.path.join(top, "lib", "modules", name.split("-", 1)[1])
                return os.path.join(folder, name), modules
    return pytest.skip(f"no linux-image-{flavour} here (./run test fetches it)")


def needs():
    """Skips with a reason where a guest cannot be built."""
    need("qemu-system-x86_64", "busybox", "grub-mkimage", "mke2fs", "e2fsck", "debugfs", "sfdisk",
         "mformat", "mcopy")
    for path, package in (("/usr/lib/grub/i386-pc/boot.img", "grub-pc-bin"),
                          ("/usr/lib/grub/x86_64-efi/linux.mod", "grub-efi-amd64-bin"),
                          ("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf")):
        if not os.path.exists(path):
            pytest.skip(f"{package} is not installed")


def in_order(folder, names):
    """Paths of the modules and of what they need, that first.  What is not there is built in."""
    found = {}
    for at, _, files in os.walk(folder):
        found |= {name.removesuffix(".ko").replace("-", "_"): os.path.join(at, name)
                  for name in files if name.endswith(".ko")}
    order = []

    def add(name):
        path = found.get(name.replace("-", "_"))
        if not path or path in order:
            return
        with open(path, "rb") as file:
            needed = re.search(rb"\0depends=([^\0]*)\0", file.read())
        for other in needed.group(1).decode().split(",") if needed else ():
            add(other)
        order.append(path)

    for name in names:
        add(name)
    return order


def put(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


def put_busybox(top):
    """The program, and a name for each thing that it can do."""
    os.mkdir(f"{top}/bin")
    shutil.copy(shutil.which("busybox"), f"{top}/bin/busybox")
    for name in run("busybox", "--list").out.split():
        if name != "busybox":
            os.symlink("busybox", f"{top}/bin/{name}")


def make_initrd(folder, modules):
    """A compressed archive."""
    top = os.path.join(folder, "initrd.d")
    put(f"{top}/init", INITRD, 0o755)
    for name in ("modules", "root", "dev", "proc", "sys"):
        os.mkdir(f"{top}/{name}")
    put_busybox(top)
    order = in_order(modules, MODULES)
    for path in order:
        shutil.copy(path, f"{top}/modules")
    put(f"{top}/modules/order", "".join(os.path.basename(path) + "\n" for path in order))
    path = os.path.join(folder, "initrd")
    run("sh", "-c", f"cd {top} && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1 >{path}")
    return path


def make_root(folder, vmlinuz, initrd):
    """The tree of the root."""
    top = os.path.join(folder, "root.d")
    for name in ("boot", "data", "dev", "proc", "sys", "sbin"):
        os.makedirs(f"{top}/{name}")
    put(f"{top}/sbin/init", INIT, 0o755)
    put(f"{top}/var/boots", "0\n")
    put(f"{top}/data/first", "what the guest was made with\n")
    with open(f"{top}/data/first", "rb") as file:
        put(f"{top}/var/digests", f"{hashlib.sha256(file.read()).hexdigest()}  /data/first\n")
    shutil.copy(vmlinuz, f"{top}/boot/vmlinuz")
    shutil.copy(initrd, f"{top}/boot/initrd")
    put_busybox(top)
    return top


def write_at(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def make_loaders(folder, disk):
    """GRUB before the first partition, and as the program that EFI starts by itself."""
    config = os.path.join(folder, "grub.cfg")
    put(config, GRUB.format(label=LABEL))
    images = {}
    for kind, more in (("i386-pc", ["biosdisk"]), ("x86_64-efi", [])):
        images[kind] = os.path.join(folder, kind)
        run("grub-mkimage", "-O", kind, "-o", images[kind], "-c", config, "-p", "/boot",
            "part_msdos", "ext2", "search", "linux", "boot", *more)
    with open("/usr/lib/grub/i386-pc/boot.img", "rb") as file:
        write_at(disk, 0, file.read()[:440])
    with open(images["i386-pc"], "rb") as file:
        core = file.read()
    assert len(core) < EFI_START - 512
    write_at(disk, 512, core)
    fat = f"{disk}@@{EFI_START}"
    run("mformat", "-i", fat, "-T", (ROOT_START - EFI_START) // 512, "::")
    run("mmd", "-i", fat, "::/EFI", "::/EFI/BOOT")
    run("mcopy", "-i", fat, images["x86_64-efi"], "::/EFI/BOOT/BOOTX64.EFI")


def make_disk(folder, flavour="cloud-amd64"):
    """A raw disk of SIZE; the path.  flavour: "cloud-amd64" starts quickly and has drivers for
    VMware's SCSI, IDE and virtio, "amd64" has all."""
    needs()
    vmlinuz, modules = kernel(flavour)
    folder = os.path.join(folder, f"guest-{flavour}")
    os.mkdir(folder)
    disk = os.path.join(folder, "disk.raw")
    with open(disk, "wb") as file:
        file.truncate(SIZE)
    sectors = [at // 512 for at in (EFI_START, ROOT_START, SIZE)]
    table = (f"label: dos\nstart={sectors[0]}, size={sectors[1] - sectors[0]}, type=ef\n"
             f"start={sectors[1]}, size={sectors[2] - sectors[1]}, type=83, bootable\n")
    run("sfdisk", "-q", disk, stdin=table.encode())
    make_loaders(folder, disk)
    root = make_root(folder, vmlinuz, make_initrd(folder, modules))
    run("mke2fs", "-q", "-F", "-t", "ext4", "-L", LABEL, "-E", f"offset={ROOT_START},root_owner=0:0",
        "-d", root, disk, f"{(SIZE - ROOT_START) // 1024}k")
    return disk


# --- booting ----------------------------------------------------------------------------------


class Console:
    """The serial port: QEMU connects to a socket.  .words makes it so; what was heard: .text"""

    def __init__(self, folder, name="serial"):
        self.path = os.path.join(folder, f"{name}.sock")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(1)
        self.connection, self.process, self.text, self.seen = None, None, "", 0
        self.words = ["-chardev", f"socket,id=serial0,path={self.path}", "-serial",
                      "chardev:serial0"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()
        if self.connection:
            self.connection.close()
        os.unlink(self.path)

    def start(self, servers, command):
        self.process = servers.start(*command, name="guest")
        return self.process

    def hear(self, pattern, timeout=None):
        """The match of what the guest says from now on; its rest is for the next call."""
        deadline = time.monotonic() + (timeout or support.TIMEOUT)
        while not (match := re.compile(pattern).search(self.text, self.seen)):
            source = self.connection or self.listener
            soon = min(time.monotonic() + 1, deadline)
            if not support.is_readable(source, soon):
                assert soon < deadline and (not self.process or self.process.running), \
                    f"no {pattern!r} in:\n{self.text}\n{self.process and self.process.err}"
                continue
            if not self.connection:
                self.connection = self.listener.accept()[0]
                continue
            data = self.connection.recv(65536)
            assert data, f"the guest ended without {pattern!r}:\n{self.text}"
            self.text += data.decode(errors="replace")
        self.seen = match.end()
        return match

    def say(self, text, pattern):
        """A line to the guest; the match of its answer."""
        self.connection.sendall(text.encode() + b"\n")
        return self.hear(pattern)

    def boots(self):
        """Until it runs, with its files as it once wrote them: number, firmware, journal."""
        number, firmware, journal = self.hear(r"guest: boot (\d+) (\w+) (\w+)\n",
                                               BOOT_TIMEOUT).groups()
        self.check()
        return int(number), firmware, journal

    def check(self):
        """How many files the guest has, all of them good."""
        answer = self.say("check", r"guest: (good (\d+)|bad)\n")
        assert answer.group(2), self.text
        return int(answer.group(2))

    def write(self, name, kib):
        return self.say(f"write {name} {kib}", r"guest: wrote (\w{64}) ").group(1)

    def freeze(self):
        self.say("freeze", "guest: frozen")

    def thaw(self):
        self.say("thaw", "guest: thawed")

    def off(self):
        """Until QEMU ends the connection."""
        self.say("off", "guest: off")
        deadline = time.monotonic() + support.TIMEOUT
        while support.is_readable(self.connection, deadline):
            if not self.connection.recv(65536):
                return
        raise AssertionError("the guest stays on")


def qemu(console, disk):
    """The command: BIOS, the disk on a controller as VMware has it."""
    return ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-machine",
            "pc,accel=tcg", "-m", "192", *console.words,
            "-device", "pvscsi,id=scsi0", "-device", "scsi-hd,bus=scsi0.0,drive=d0", "-blockdev",
            f"driver=raw,node-name=d0,file.driver=file,file.filename={disk}"]


# Libvirt leaves its QEMU to init, and waits until it is reaped; in a container nobody may do that.
REAPER = """
import ctypes, os, signal, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
child = subprocess.Popen(sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: child.terminate())
pid = 0
while pid != child.pid:
    pid, status = os.wait()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def libvirt(console, folder, path):
    """The command: libvirt starts the domain as it is described there, but for what this host has
    not: KVM, the network "default", and a screen.  It stays when the machine is off."""
    need("virt-qemu-run", "unshare")
    # To root's processes libvirt gives a user, which its service's package makes: here is none.
    user = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    tried = run(*user, "true", status=None)
    if tried.status != 0:
        pytest.skip(f"no user namespaces here: {tried.err.strip()}")
    tree = ElementTree.parse(path)
    domain = tree.getroot()
    domain.set("type", "qemu")
    cpu = domain.find("cpu")
    cpu.set("mode", "custom")
    ElementTree.SubElement(cpu, "model").text = "qemu64"
    devices = domain.find("devices")
    for nic in devices.findall("interface"):
        nic.set("type", "user")
        nic.remove(nic.find("source"))
    for kind in ("graphics", "console"):
        devices.remove(devices.find(kind))
    serial = devices.find("serial")
    serial.set("type", "unix")
    ElementTree.SubElement(serial, "source", mode="connect", path=console.path)
    changed = os.path.join(folder, "started.xml")
    tree.write(changed)
    put(f"{folder}/libvirt/etc/qemu.conf", 'stdio_handler = "file"\nsecurity_driver = "none"\n')
    return [sys.executable, "-c", REAPER, *user, "env", f"HOME={folder}",
            f"XDG_RUNTIME_DIR={folder}", "virt-qemu-run", "--root", f"{folder}/libvirt", changed]


def ovf(console, path):
    """The command for a machine by BIOS with one disk, as an OVF describes it."""
    envelope = ElementTree.parse(path).getroot()
    items = {}  # by the type of resource
    for item in envelope.iter(OVF + "Item"):
        items[item.findtext("{*}ResourceType")] = {
            child.tag.rpartition("}")[2]: child.text for child in item}
    disk, place = envelope.find("{*}DiskSection/{*}Disk"), items["17"]
    values = {name.rpartition("}")[2]: value for name, value in disk.attrib.items()}
    files_of = {each.get(OVF + "id"): each.get(OVF + "href")
                for each in envelope.iterfind("{*}References/{*}File")}
    assert place["HostResource"] == f"ovf:/disk/{values['diskId']}"
    assert place["Parent"] == items["6"]["InstanceID"]
    device = {"VirtualSCSI": "pvscsi"}[items["6"]["ResourceSubType"]]
    file = os.path.join(os.path.dirname(path), files_of[values["fileRef"]])
    return ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-machine",
            "pc,accel=tcg", "-m", items["4"]["VirtualQuantity"], "-smp",
            items["3"]["VirtualQuantity"], *console.words, "-device", f"{device},id=scsi0",
            "-device", f"scsi-hd,bus=scsi0.0,scsi-id={place['AddressOnParent']},drive=d0",
            "-blockdev", f"driver=raw,node-name=d0,file.driver=file,file.filename={file}"]


# --- judging ----------------------------------------------------------------------------------


def judge(disk, replay=False):
    """{name: SHA-256} of the files.  The file system has no fault, no journal that is to be
    replayed (or: none but that), and holds what the guest's own list says."""
    part = f"{disk}.ext4"
    try:
        run("dd", f"if={disk}", f"of={part}", "bs=1M", f"skip={ROOT_START // MIB}", "conv=sparse")
        if replay:
            assert "needs_recovery" in run("dumpe2fs", "-h", part).out
            run("e2fsck", "-y", "-E", "journal_only", part)
        state = run("dumpe2fs", "-h", part).out
        assert "needs_recovery" not in state, state
        assert re.search(r"Filesystem state: +clean\n", state), state
        run("e2fsck", "-fn", part)
        return files(part, f"{disk}.files")
    finally:
        os.unlink(part)


def files(part, folder):
    """Of the file system, by way of that folder."""
    os.mkdir(folder)
    try:
        run("debugfs", "-R", f"rdump /data /var {folder}", part)
        with open(f"{folder}/var/digests", encoding="ascii") as file:
            told = dict(reversed(line.split()) for line in file)
        held = {}
        for name in os.listdir(f"{folder}/data"):
            with open(f"{folder}/data/{name}", "rb") as file:
                held[name] = hashlib.sha256(file.read()).hexdigest()
        assert held == {os.path.basename(name): sha256 for name, sha256 in told.items()}
        return held
    finally:
        shutil.rmtree(folder)

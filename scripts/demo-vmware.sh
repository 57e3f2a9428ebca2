#!/bin/sh
# The demo of VMware: a test vCenter (govmomi's simulator with changed blocks around it) and a test
# libvixDiskLib stand in for the hypervisor; a machine with three disks is backed up in full and by
# changed blocks while its guest writes, restored, and replicated to three targets, up to the cutover.
# Each copy is compared with the disks as the snapshot froze them.  Leaves nothing behind.
set -eu

. "$(dirname -- "$0")/demo-frame.sh"
built=$top/build/demo
vc=$scratch/vcenter
keys="2000 2001 16000"

plain() {
	sed "s|$sendense|sendense|g; s|$scratch/||g; s|${port:-no-port-yet}|vcenter|g"
}

show() {
	printf '$ %s\n' "$*" | plain
	"$@" >"$scratch/shown" # no pipe, which would hide how it ended
	plain <"$scratch/shown"
}

vcenter() {
	python3 "$top/scripts/demo-vmware.py" "$vc" "$@"
}

# Runs a command that reads the machine; the disks as its snapshot froze them are kept as
# FROZEN-KEY.raw, and the guest writes meanwhile.
watch() { # FROZEN COMMAND...
	: >"$scratch/calls"
	frozen=$1
	shift
	printf '$ %s\n' "$*" | plain
	vcenter during web01 "$scratch/$frozen" "$@" >"$scratch/shown"
	plain <"$scratch/shown"
	tell_reads
}

tell_reads() {
	echo "VMware's library was asked for $(awk '$1 == "read" {n++; s += $3}
		END {printf "%.1f MiB in %d reads", s / 2048, n}' "$scratch/calls")"
}

back_up() { # FROZEN
	watch "$1" "$sendense" backup --repo "$scratch/repo" --vcenter-ca-file "$vc/ca.pem" "$url"
}

# qemu-nbd is nobody's child, so its end is waited for by its pid.
stop_servers() {
	for pid in $servers; do
		kill "$pid"
	done
	for pid in $servers; do
		tail --pid="$pid" -f /dev/null
	done
	servers=
}

compare() { # FROZEN COPY
	show qemu-img compare -f raw -F raw "$scratch/$1" "$scratch/$2"
}

step "1. A vCenter, and a machine with three disks: GPT with FAT and ext4, an ext4 data disk, one on another controller"
mkdir -m 700 "$vc" "$scratch/state" "$scratch/tmp" "$scratch/vddk" "$scratch/vddk/lib64"
export TMPDIR="$scratch/tmp" # what a killed program leaves goes with the rest
(umask 077 && od -An -tx1 -N 12 /dev/urandom | tr -d ' ' >"$vc/password")
mkfifo "$vc/ready.fifo"
"$built/vcenter" -folder "$vc" -password "$vc/password" >"$vc/ready.fifo" &
servers=$!
read -r ready <"$vc/ready.fifo"
echo "$ready" >"$vc/ready"
ln -s "$built/libvixDiskLib.so" "$scratch/vddk/lib64/libvixDiskLib.so.8"
(umask 077 && vcenter vddk >"$scratch/vddk/told" && echo "log=$scratch/calls" >>"$scratch/vddk/told")
export SENDENSE_VDDK_DIR="$scratch/vddk" SENDENSE_FAKE_VDDK="$scratch/vddk/told"
export SENDENSE_STATE_DIR="$scratch/state" SENDENSE_VMWARE_PASSWORD_FILE="$vc/password"
"$top/scripts/make-disk" "$scratch/2000.raw" --size 512M --data 60M --zeros 16M --seed 1
"$top/scripts/make-disk" "$scratch/2001.raw" --size 256M --data 40M --zeros 8M --plain --seed 2
truncate -s 96M "$scratch/16000.raw"
vcenter write "$scratch/16000.raw" 7000000 9000000
vcenter add web01 "2000=$scratch/2000.raw" "2001=$scratch/2001.raw" "16000=$scratch/16000.raw"
url=$(vcenter url DC0/vm/web01)
port=${url#*@}
port=${port%%/*}
show "$sendense" vmware cbt --enable --ca-file "$vc/ca.pem" "$url"
show "$sendense" vmware info --ca-file "$vc/ca.pem" "$url"

step "2. A full backup: one snapshot of all disks, and the guest goes on writing while they are read"
show "$sendense" repo init "$scratch/repo"
back_up first

step "3. The guest writes 3 MiB onto two disks, and the next backup reads what changed and no more"
vcenter write "$scratch/2000.raw" 200000000 2097152
vcenter write "$scratch/16000.raw" 50000000 1048576
back_up second
show "$sendense" ls --repo "$scratch/repo" web01
show "$sendense" verify --repo "$scratch/repo"

step "4. Both restore points restored, and compared with the disks as the snapshots froze them"
points=$("$sendense" ls --repo "$scratch/repo" --json web01 | python3 -c 'import json, sys
print(*sorted(point["point"] for point in json.load(sys.stdin)["points"]))')
frozen=first
for point in $points; do
	show "$sendense" restore --repo "$scratch/repo" --quiet "web01@$point" \
		--to "2000=raw:$scratch/restored-2000.raw" --to "2001=raw:$scratch/restored-2001.raw" \
		--to "16000=raw:$scratch/restored-16000.raw" --force
	for key in $keys; do
		compare "$frozen-$key.raw" "restored-$key.raw"
	done
	frozen=second
done

step "5. The machine, while it runs, replicated to three NBD exports, each disk to the one named for its key"
set -- "$sendense" replicate --vcenter-ca-file "$vc/ca.pem" --state-dir "$scratch/replica" "$url"
for key in $keys; do
	truncate -r "$scratch/$key.raw" "$scratch/replica-$key.raw"
	qemu-nbd --fork -f raw --shared=8 --persistent -k "$scratch/$key.sock" \
		--pid-file "$scratch/$key.pid" "$scratch/replica-$key.raw"
	servers="$servers $(cat "$scratch/$key.pid")"
	set -- "$@" --target "$key=nbd+unix:///?socket=$scratch/$key.sock"
done
watch third "$@"
for key in $keys; do
	compare "third-$key.raw" "replica-$key.raw"
done

step "6. The guest writes once more and is switched off; the cutover takes the last changes"
vcenter write "$scratch/2001.raw" 100000000 1048576
vcenter off web01
: >"$scratch/calls"
show "$@" --cutover
tell_reads
for key in $keys; do
	compare "$key.raw" "replica-$key.raw"
done

step "7. The end: nothing stays behind"
vcenter clean web01
stop_servers
echo "$(find "$scratch/state" -name 'debt-*' | wc -l) snapshots owed; $(find "$scratch/tmp" -mindepth 1 | wc -l) temporary files"
[ -z "$(find "$scratch/state" -name 'debt-*')$(find "$scratch/tmp" -mindepth 1)" ]
# Helpers are known by their environment; this grep has the folder's name in neither place.
left=$(printf '%s' "$scratch" | env -i grep -laFsf - /proc/[0-9]*/cmdline /proc/[0-9]*/environ || true)
echo "processes left: ${left:-none}"
[ -z "$left" ]
printf '%-50s %8d s\n' "whole demo" "$(($(date +%s) - began))"

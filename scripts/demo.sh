#!/bin/sh
# The demo: two real disks, served as a hypervisor would, backed up as one VM, changed,
# backed up twice more, pruned; verified with our own and with QEMU's tools, restored,
# served, damaged.
# Needs nothing but the built binary and Debian packages; leaves nothing behind.
set -eu

. "$(dirname -- "$0")/demo-frame.sh"

show() {
	printf '$ %s\n' "$*" | sed "s|$sendense|sendense|g; s|$scratch/||g"
	"$@"
}

# Starts qemu-nbd for one disk; --fork returns when it listens.
serve_disk() { # KEY
	qemu-nbd --fork -f raw -r --shared=8 --persistent -k "$scratch/$1.sock" \
		--pid-file "$scratch/$1.pid" "$scratch/$1.raw"
	servers="$servers $(cat "$scratch/$1.pid")"
}

step "1. Two disks of a virtual machine: GPT with FAT and ext4, and an ext4 data disk"
"$top/scripts/make-disk" "$scratch/2000.raw" --size 2G --data 400M --zeros 64M --seed 1
"$top/scripts/make-disk" "$scratch/2001.raw" --size 1G --data 200M --plain --seed 2
ls -lsh "$scratch"/*.raw | sed "s|$scratch/||"
serve_disk 2000
serve_disk 2001
echo "qemu-nbd serves both read-only, as a hypervisor would"

kib() { du -sk "$@" | awk '{s += $1} END {printf "%d", s}'; }

# The guest writes: COUNT blocks of 64 KiB from block START on, random or zero.
write_blocks() { # KEY START COUNT [zero]
	dd if="/dev/${4:-urandom}" of="$scratch/$1.raw" bs=64k seek="$2" count="$3" conv=notrunc status=none
}

# A list of one changed area, as a hypervisor's or storage's own tool may tell it.
list_changes() { # KEY FROM TO START COUNT
	size=$(stat -c %s "$scratch/$1.raw")
	cat >"$scratch/$1.changes" <<TEXT
{"sendense-extents":1,"key":"$1","size":$size,"from":"$2","to":"$3"}
{"offset":$(($4 * 65536)),"length":$(($5 * 65536))}
{"end":true,"count":1,"bytes":$(($5 * 65536))}
TEXT
}

uri2000="nbd+unix:///?socket=$scratch/2000.sock"
uri2001="nbd+unix:///?socket=$scratch/2001.sock"
repo=$scratch/repo

step "2. Back up both as one restore point"
show "$sendense" repo init "$repo"
show "$sendense" backup --repo "$repo" --vm web01 --disk "2000=$uri2000" --disk "2001=$uri2001"
size_full=$(kib "$repo")

step "3. List and verify"
show "$sendense" ls --repo "$repo"
show "$sendense" verify --repo "$repo"

step "4. QEMU's tools agree: nothing wrong, and identical to the source"
for key in 2000 2001; do
	image=$(echo "$repo/vms/web01/disks/$key"/*.qcow2)
	show qemu-img check -f qcow2 "$image"
	show qemu-img compare -f raw -F qcow2 "$scratch/$key.raw" "$image"
done

step "5. Restore, and compare"
show "$sendense" restore --repo "$repo" web01 --to "2000=raw:$scratch/restored-2000.raw" \
	--to "2001=raw:$scratch/restored-2001.raw"
for key in 2000 2001; do
	show cmp "$scratch/$key.raw" "$scratch/restored-$key.raw" && echo "identical"
done
ls -lsh "$scratch"/*.raw | sed "s|$scratch/||"

step "6. The machine goes on: 24 MiB are written, 8 MiB become zero; what changed is found by comparing"
write_blocks 2000 4096 256
write_blocks 2001 2048 128
write_blocks 2001 1024 128 zero
show "$sendense" backup --repo "$repo" --vm web01 --disk "2000=$uri2000" --disk "2001=$uri2001" \
	--change-id 2000=tuesday --change-id 2001=tuesday
size_compare=$(kib "$repo")
cp --sparse=always "$scratch/2001.raw" "$scratch/tuesday.raw"

step "7. 16 MiB more, and a list of the changed areas: only those are read; 1 % of the rest is checked"
write_blocks 2000 8192 192
write_blocks 2001 2048 64
list_changes 2000 tuesday wednesday 8192 192
list_changes 2001 tuesday wednesday 2048 64
show "$sendense" backup --repo "$repo" --vm web01 --disk "2000=$uri2000" --disk "2001=$uri2001" \
	--changed-by "2000=extents:$scratch/2000.changes" \
	--changed-by "2001=extents:$scratch/2001.changes" --audit 1%
size_list=$(kib "$repo")
show "$sendense" ls --repo "$repo" web01

step "8. The oldest restore point goes, once a later one is known to be good; the others stay what they were"
show "$sendense" verify --repo "$repo"
show "$sendense" prune --repo "$repo" web01 --keep-last 2
size_pruned=$(kib "$repo")
show "$sendense" verify --repo "$repo"
set -- "$repo/vms/web01/disks/2001"/*.qcow2
show qemu-img compare -f raw -F qcow2 "$scratch/tuesday.raw" "$1"
show qemu-img compare -f raw -F qcow2 "$scratch/2001.raw" "$2"

step "9. Serve one restore point over NBD, and look at it with somebody else's client"
mkfifo "$scratch/ready"
"$sendense" serve --repo "$repo" web01 --disk 2000 --socket "$scratch/serve.sock" >"$scratch/ready" &
servers="$servers $!"
read -r uri <"$scratch/ready"
show nbdinfo "$uri"

step "10. One flipped byte in a copy of the repository, and verify finds it"
cp -r "$repo" "$scratch/damaged"
set -- "$scratch/damaged/vms/web01/disks/2001"/*.qcow2
# The newest: an older one, into which another was merged, has room where nothing lies any more.
for image in "$@"; do :; done
offset=$(($(stat -c %s "$image") / 2))
byte=$(od -An -tu1 -j "$offset" -N 1 "$image")
# shellcheck disable=SC2059 # the format is the byte
printf "\\$(printf %o $((byte ^ 1)))" | dd of="$image" bs=1 seek="$offset" conv=notrunc status=none
status=0
show "$sendense" verify --repo "$scratch/damaged" || status=$?
[ "$status" -eq 3 ] || { echo "demo: verify should have ended with status 3, not $status" >&2; exit 1; }
echo "exit status 3: verification found damage"

step "What it took"
printf '%-50s %8d MiB\n' \
	"virtual size of both disks" 3072 \
	"allocated on the source" "$(($(kib "$scratch/2000.raw" "$scratch/2001.raw") / 1024))" \
	"the repository after the full backup (zstd)" "$((size_full / 1024))" \
	"after the first incremental one (32 MiB changed)" "$((size_compare / 1024))" \
	"after the second (16 MiB changed)" "$((size_list / 1024))" \
	"after the prune" "$((size_pruned / 1024))" \
	"allocated after the restore" \
	"$(($(kib "$scratch/restored-2000.raw" "$scratch/restored-2001.raw") / 1024))"
printf '%-50s %8d s\n' "whole demo" "$(($(date +%s) - began))"

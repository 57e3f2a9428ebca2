#!/bin/sh
# Kernels for the tests' guests: guest-kernel.sh FOLDER FLAVOUR... -> FOLDER/boot, FOLDER/lib.
# Flavours of Debian's: cloud-amd64 starts quickly, amd64 has a driver for every controller.
# They are taken out of the packages, as installing those would change what this machine boots.
# Exit status 77: one cannot be had, and the last line on stderr says why.
set -eu

mkdir -p "$1/boot" "$1/lib/modules"
cd "$1"
shift
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"

unpack() { # $1: package
	set -- "$1" './boot/vmlinuz-*'
	for folder in block crypto drivers/ata drivers/block drivers/message drivers/scsi \
		drivers/virtio fs/ext4 fs/jbd2 fs/mbcache.ko lib; do
		set -- "$@" "./lib/modules/*/kernel/$folder*"
	done
	package=$1
	shift
	mkdir "$scratch/$package"
	dpkg-deb --fsys-tarfile "$scratch"/"$package"_*.deb |
		tar -x -C "$scratch/$package" --wildcards "$@" 2>"$scratch/log" ||
		# What is built in is no module.
		! grep -v 'Not found in archive\|Exiting with failure' "$scratch/log" >&2
	version=$(basename "$scratch/$package"/lib/modules/*)
	# The kernel comes last and at once: where it is, all is.
	rm -rf "lib/modules/$version"
	mv "$scratch/$package/lib/modules/$version" lib/modules/
	mv "$scratch/$package/boot/vmlinuz-$version" boot/new
	mv boot/new "boot/vmlinuz-$version"
}

for flavour in "$@"; do
	for file in boot/vmlinuz-[0-9]*[0-9]-"$flavour"; do
		[ ! -e "$file" ] || continue 2
	done
	package=$(apt-cache depends "linux-image-$flavour" 2>/dev/null | sed -n 's/^ *Depends: //p')
	(cd "$scratch" && apt-get download -qq "$package") >"$scratch/log" 2>&1 || {
		cat "$scratch/log" >&2
		echo "cannot download ${package:-linux-image-$flavour}, the kernel of tests' guests" >&2
		exit 77
	}
	unpack "$package"
done

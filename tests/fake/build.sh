#!/bin/sh
# Builds the test vCenter into a folder: build.sh FOLDER -> FOLDER/vcenter.
# Needs Debian's golang-go and golang-github-vmware-govmomi-dev, and no network.
# Several at once are in order; what is up to date is not built again.
# Exit status 77: a tool is missing, and the last line on stderr says which.
set -eu

here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
library=/usr/share/gocode/src/github.com/vmware/govmomi/simulator
command -v go >/dev/null 2>&1 || {
	echo "the test vCenter needs Go (apt-get install golang-go)" >&2
	exit 77
}
[ -d "$library" ] || {
	echo "the test vCenter needs govmomi (apt-get install golang-github-vmware-govmomi-dev)" >&2
	exit 77
}
mkdir -p "$1"
out=$(CDPATH= cd -- "$1" && pwd)
exec 9>"$out/vcenter.lock"
flock 9
if [ -x "$out/vcenter" ] && [ -z "$(find "$here/vcenter" -newer "$out/vcenter" -name '*.go')" ]; then
	exit 0
fi
[ -n "${HOME:-}" ] || export GOCACHE="${GOCACHE:-$out/go-cache}"
export GO111MODULE=off GOPATH=/usr/share/gocode GOPROXY=off GOFLAGS=
cd "$here/vcenter"
go build -o "$out/vcenter.new" .
mv "$out/vcenter.new" "$out/vcenter"

# Sourced by the demos: a scratch folder, and an end that leaves nothing behind.
# shellcheck shell=sh
top=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
sendense=$top/build/sendense
scratch=$(mktemp -d /var/tmp/sendense-demo-XXXXXX)
servers= # pids of all that was started
began=$(date +%s)

clean_up() {
	status=$?
	trap - EXIT INT TERM
	for pid in ${hub:-} $servers; do
		kill "$pid" 2>/dev/null || true
	done
	for pid in ${hub:-} $servers; do
		wait "$pid" 2>/dev/null || true
	done
	rm -rf "$scratch"
	exit $status
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step() {
	if [ -t 1 ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi
}

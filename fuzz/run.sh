#!/bin/sh
# Runs each fuzz target for some seconds: run.sh BUILD SECONDS.  BUILD was
# configured with CC=clang -Dfuzz=true -Db_sanitize=address,undefined.
# Seeds are made anew in a temporary folder; an input that fails is kept in
# fuzz-findings/ of the current folder.
set -eu

build=$1
seconds=$2
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
scratch=$(mktemp -d)
TMPDIR=$scratch
export TMPDIR
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM

export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
/usr/bin/python3 "$here/seeds.py" "$scratch"

status=0
for target in fuzz_qcow2_open fuzz_nbd_server fuzz_changes fuzz_rest fuzz_allow fuzz_archive \
	fuzz_vsphere fuzz_vddk fuzz_rebuild; do
	printf '==> %s, %s s\n' "$target" "$seconds"
	mkdir "$scratch/findings"
	if "$build/fuzz/$target" -max_total_time="$seconds" -dict="$scratch/$target.dict" \
		-rss_limit_mb=512 -malloc_limit_mb=100 -timeout=20 -max_len=131072 -print_final_stats=1 \
		-artifact_prefix="$scratch/findings/" "$scratch/$target" >"$scratch/log" 2>&1; then
		grep -E 'stat::(number_of_executed_units|average_exec_per_sec|peak_rss_mb)' "$scratch/log"
	else
		status=1
		tail -n 60 "$scratch/log"
		mkdir -p fuzz-findings
		cp "$scratch/findings"/* fuzz-findings/ 2>/dev/null || :
		for finding in "$scratch/findings"/*; do
			[ ! -f "$finding" ] ||
				printf 'repeat with: %s fuzz-findings/%s\n' "$build/fuzz/$target" "${finding##*/}"
		done
	fi
	rm -rf "$scratch/findings"
done
[ $status -eq 0 ] && printf 'fuzz: nothing found\n'
exit $status

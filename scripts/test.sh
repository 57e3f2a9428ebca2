#!/bin/sh
# Runs all tests against a build folder: test.sh BUILD [--unit] [PYTEST ARGUMENTS].
# With arguments, unit tests are run only when --unit stands first.
# Called by ./run test, which has built the folder and installed what is needed.
set -eu

build=$(CDPATH= cd -- "$1" && pwd)
shift
top=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
cd "$top"

export ASAN_OPTIONS=abort_on_error=1:detect_leaks=1:strict_string_checks=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:suppressions=$top/scripts/tsan.supp
export SENDENSE=$build/src/cli/sendense
export SENDENSE_BUILD=$build
# In memory, where there is enough of it: thousands of syncs are quick there.
memory=/dev/shm
[ "$(df -Pk $memory 2>/dev/null | awk 'NR == 2 {print $4}')" -gt 4000000 ] 2>/dev/null || memory=
export SENDENSE_TEST_DIR="${SENDENSE_TEST_DIR:-$memory}"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export SENDENSE_BAD_INPUT_TABLE=$scratch/bad-input.tsv

status=0
if [ $# -eq 0 ] || [ "$1" = --unit ]; then
	[ $# -eq 0 ] || shift
	printf '==> unit tests\n'
	# The machine may be busy, and sanitizers are slow.
	meson test -C "$build" --suite unit --print-errorlogs --no-rebuild \
		--timeout-multiplier 4 || status=1
fi

printf '==> integration tests\n'
# All of them: two files on each processor, as they mostly wait; some only, and soaks, which want
# the machine: in turn.
parallel=
[ $# -gt 0 ] || [ -n "${SENDENSE_SOAK:-}" ] || parallel="-n $((2 * $(nproc))) --dist loadfile"
/usr/bin/python3 -m pytest -p no:cacheprovider -q --basetemp="$scratch/pytest" $parallel \
	${SENDENSE_PYTEST:-} "${@:-tests/integration}" || status=1

# What failed is the last thing told: a log that is cut short keeps its end.
if [ $status -eq 0 ] && [ -s "$SENDENSE_BAD_INPUT_TABLE" ]; then
	printf '\n==> bad inputs, and the message that each one gives\n'
	sort -u "$SENDENSE_BAD_INPUT_TABLE" | while IFS="$(printf '\t')" read -r input message; do
		printf '%-52s | %s\n' "$input" "$message"
	done
fi
exit $status

#!/bin/sh
# Checks the form of the code: lint.sh BUILD.  Fails at the end if anything was found.
set -eu

build=$1
cd "$(dirname -- "$0")/.."
status=0
sources=$(git ls-files '*.c' '*.h')

complain() {
	printf 'lint: %s\n' "$*" >&2
	status=1
}

printf '==> clang-format\n'
clang-format --dry-run --Werror $sources || status=1

printf '==> floors\n'
# The build already hides undeclared rooms; what it can't see is an include of
# another room's private header and a room that names a higher one in its meson.build.
floor_of() {
	case $1 in
	base) echo 0 ;;
	block | transport) echo 1 ;;
	qcow2 | nbd | copy) echo 2 ;;
	repository | locator | catalogue | rest | vsphere | vddk) echo 3 ;;
	remote | job) echo 4 ;;
	hub | node) echo 5 ;;
	cli) echo 6 ;;
	*) complain "src/$1 has no floor; name it in scripts/lint.sh and docs/architecture.md"; echo 9 ;;
	esac
}
rooms=$(ls -d src/*/ | cut -d/ -f2)
for room in $rooms; do
	floor=$(floor_of "$room")
	[ -f "src/$room/README.md" ] || complain "src/$room has no README.md"
	for other in $rooms; do
		[ "$other" != "$room" ] || continue
		if grep -ln "#include \"\(${other}_internal\.h\|\.\./\)" "src/$room"/*.[ch] 2>/dev/null; then
			complain "src/$room includes private headers of src/$other"
		fi
		if grep -qw "$other" "src/$room/meson.build" && [ "$(floor_of "$other")" -ge "$floor" ] &&
			! { [ "$room" = locator ] && [ "$other" = repository ]; }; then
			complain "src/$room (floor $floor) depends on src/$other (floor $(floor_of "$other"))"
		fi
	done
done

printf '==> long files, left-overs, sleeps\n'
for file in $sources; do
	lines=$(wc -l <"$file")
	[ "$lines" -le 800 ] || complain "$file has $lines lines"
done
if git grep -nIE '\b(TODO|FIXME|XXX|HACK)\b' -- src tests fuzz bench; then
	complain "left to do, in the code"
fi
if git grep -nE '\b(sleep|usleep|nanosleep)\(' -- tests src; then
	complain "fixed sleeps: wait for the event instead"
fi

printf '==> cppcheck\n'
ninja -C "$build" >/dev/null
cppcheck --quiet --error-exitcode=1 --inline-suppr --enable=warning,portability \
	--suppress=missingIncludeSystem --suppress=normalCheckLevelMaxBranches --std=c11 \
	--project="$build/compile_commands.json" || status=1

printf '==> clang-tidy\n'
clang-tidy --quiet -p "$build" $(git ls-files 'src/*.c') 2>/dev/null || status=1

[ $status -eq 0 ] && printf 'lint: nothing found\n'
exit $status

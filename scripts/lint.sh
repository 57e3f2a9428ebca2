#!/bin/sh
# Checks the form of the code: lint.sh BUILD.  Fails at the end if anything was found.
# Called by ./run lint, which has built the folder, with warnings as errors.
set -eu

build=$1
cd "$(dirname -- "$0")/.."
status=0
processors=$(getconf _NPROCESSORS_ONLN)
sources=$(git ls-files '*.c' '*.h')
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM

complain() {
	printf 'lint: %s\n' "$*" >&2
	status=1
}

printf '==> clang-format\n'
clang-format --dry-run --Werror $sources || status=1

printf '==> floors\n'
# The build already hides undeclared rooms.  What it cannot see: a room that names
# one that is not below it, and a header that is not its room's public one.
floor_of() { # the floors are drawn once
	awk -F'|' -v room=" \`$1\` " '$3 == room {print $2 + 0; exit}' docs/architecture.md
}
rooms=$(for folder in src/*/; do basename "$folder"; done)
room_words=$(printf '%s|' $rooms | sed 's/|$//')
for room in $rooms; do
	[ -f "src/$room/README.md" ] || complain "src/$room has no README.md"
	floor=$(floor_of "$room")
	[ -n "$floor" ] || {
		complain "src/$room has no floor in docs/architecture.md"
		continue
	}
	# Rooms stand in its meson.build as bare words: file names and the like are in quotes.
	for other in $(sed "s/'[^']*'//g; s/#.*//" "src/$room/meson.build" |
		grep -owE "$room_words" | sort -u); do
		[ "$other" != "$room" ] || continue
		other_floor=$(floor_of "$other")
		[ "${other_floor:-99}" -lt "$floor" ] ||
			complain "src/$room (floor $floor) depends on src/$other (floor $other_floor)"
	done
done
# base has many public headers; every other room has one, named after it.
git grep -nE '^ *# *include +"' -- 'src/*.[ch]' | sed 's|^src/||; s|["<>]| |g' |
	while IFS=':' read -r file line include; do
		room=${file%%/*}
		header=$(echo "$include" | awk '{print $NF}')
		case $header in
		*/*) echo "src/$file:$line: $header: includes name no folder" ;;
		esac
		[ ! -f "src/$room/$header" ] || continue
		for home in src/*/"$header"; do
			[ -f "$home" ] || continue
			case $home in
			src/base/*_internal.h) ;;
			src/base/* | "src/${header%.h}/$header") continue ;;
			esac
			echo "src/$file:$line: $home is private to its room"
		done
	done >"$scratch/includes"
[ ! -s "$scratch/includes" ] || complain "$(cat "$scratch/includes")"

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
cppcheck --quiet --error-exitcode=1 --inline-suppr --enable=warning,portability \
	-j "$processors" --include=scripts/cppcheck.h \
	--suppress=missingIncludeSystem --suppress=normalCheckLevelMaxBranches --std=c11 \
	--project="$build/compile_commands.json" || status=1

printf '==> clang-tidy\n'
# One process a file: in one for many files, this version misunderstands va_list.
git ls-files 'src/*.c' | xargs -P "$processors" -n 1 sh -c '
	clang-tidy --quiet -p "$0" "$2" >"$1/$(echo "$2" | tr / _).tidy" 2>&1' \
	"$build" "$scratch" || status=1
# Without leaks (see .clang-tidy), and without the count of what other headers have.
awk '
	FNR == 1 {shown = 1}
	/^[0-9]+ warnings? (and [0-9]+ errors? )?generated/ {next}
	/: (warning|error): / {shown = !/Potential leak of memory/}
	shown' "$scratch"/*.tidy >"$scratch/tidy"
[ ! -s "$scratch/tidy" ] || {
	cat "$scratch/tidy"
	status=1
}

[ $status -eq 0 ] && printf 'lint: nothing found\n'
exit $status

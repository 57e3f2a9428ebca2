#!/usr/bin/env python3
"""Writes a JSON file as a C string: embed-json.py IN.json OUT.c NAME.  A file that is not
JSON, or names a member twice, ends the build."""

import json
import sys


def once(pairs):
    names = [name for name, _ in pairs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise SystemExit(f"{sys.argv[1]}: named twice in one object: {', '.join(sorted(twice))}")
    return dict(pairs)


def main():
    source, target, name = sys.argv[1:]
    with open(source, encoding="utf-8") as file:
        document = json.load(file, object_pairs_hook=once)
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=True)
    lines = [text[i:i + 90] for i in range(0, len(text), 90)]
    with open(target, "w", encoding="ascii") as file:
        file.write(f"/* Made of {source.rsplit('/', maxsplit=1)[-1]} by the build. */\n")
        file.write(f"extern const char {name}[];\nconst char {name}[] =\n")
        for line in lines:
            escaped = line.replace("\\", "\\\\").replace('"', '\\"')
            file.write(f'\t"{escaped}"\n')
        file.write("\t;\n")


main()

"""The frame around the commands: help, wrong usage, completion, man pages."""

import json
import os
import re

import pytest

import support
from support import fails, run, sendense


def commands():
    """All commands, by the program's own help."""
    names, on = [], False
    for line in sendense("--help").out.splitlines():
        if on and not line.startswith("  "):
            break
        if on:
            names.append(line[2:20].strip())
        on = on or line == "Commands:"
    assert "version" in names
    return names


def help_of(command):
    return sendense(*command.split(), "--help").out


def options_of(text):
    """--name ARGUMENT of each option in the text of --help."""
    return re.findall(r"^  --([a-z0-9-]+)(?: ([^\s-]\S*))?(?:,? |$)", text, re.M)


def test_version_tells_the_exact_build():
    text = sendense("version").out
    assert re.match(r"sendense \d+\.\d+\.\d+ \(git [0-9a-f]{7,}(-dirty)?\)|.*\(git unknown\)", text)
    report = sendense("version", "--json").json
    assert report["version"] in text and report["commit"] in text
    assert {"libnbd", "zstd", "zlib", "jansson", "xxhash"} <= set(report["libraries"])
    assert sendense("--version").out == sendense("-V").out == text.splitlines()[0] + "\n"


def test_help_is_on_stdout_and_ends_with_0():
    for words in (["--help"], ["-h"], ["help"]):
        result = sendense(*words)
        assert result.out.startswith("Usage: sendense ") and result.err == ""
    for command in commands():
        result = sendense(*command.split(), "--help")
        assert result.out.startswith(f"Usage: sendense {command} ")
        assert result.err == ""
        assert sendense("help", *command.split()).out == result.out
        assert max(map(len, result.out.splitlines())) <= 100


def test_help_of_a_word_that_many_commands_begin_with():
    asked = sendense("repo", "--help")
    assert asked.out.startswith("Usage: sendense repo COMMAND ")
    assert re.findall(r"^  repo (\w+) ", asked.out, re.M) == ["init", "info", "check", "reindex"]
    assert sendense("repo", "-h").out == sendense("help", "repo").out == asked.out
    fails("repo", "--hepl", status=2, contains="no such command")


@pytest.mark.parametrize("words, text", [
    ([], "which command?"),
    (["versoin"], "did you mean version?"),
    (["--verison"], "no such option"),
    (["nonsense"], "no such command"),
    (["version", "--jsn"], "did you mean --json?"),
    (["version", "-x"], "-x: unknown option"),
    (["version", "--json=yes"], "--json: takes no value"),
    (["version", "more"], "one argument too many"),
    (["completion"], "something is missing"),
    (["completion", "fish"], "no shell that is known"),
])
def test_wrong_usage_ends_with_2_and_a_hint(words, text):
    result = fails(*words, status=2, contains=text)
    assert "--help" in result.err
    assert result.out == ""


def test_wrong_usage_with_json_is_an_object_too():
    result = sendense("version", "--json", "--nonsense", status=2)
    error = result.json["error"]
    assert error["code"] == "usage" and "--nonsense" in error["text"]
    assert json.loads(result.out) == result.json


def test_a_full_stdout_is_an_error():
    with open("/dev/full", "wb") as full:
        import subprocess  # pylint: disable=import-outside-toplevel
        done = subprocess.run([support.SENDENSE, "version"], stdout=full, check=False,
                              stderr=subprocess.PIPE, timeout=support.TIMEOUT)
    assert done.returncode == 1
    assert b"standard output" in done.stderr


def complete(*words, cwd=None):
    """What bash offers for the last word, cut as its line editor cuts."""
    support.need("bash")
    typed = " ".join(f"'{word}'" for word in words)
    script = (f'source <({support.SENDENSE} completion bash); COMP_WORDS=({typed}); '
              f'COMP_CWORD={len(words) - 1}; _sendense; printf "%s\\n" "${{COMPREPLY[@]}}"')
    return run("bash", "-c", script, cwd=cwd).out.split()


def test_completion_knows_every_command_and_option():
    first = {command.split()[0] for command in commands()}
    assert first <= set(complete("sendense", ""))
    script = sendense("completion", "bash").out
    run("bash", "-n", stdin=script.encode())
    for command in commands():
        line = re.search(rf'^\t\t"{command}"\) words="([^"]*)"', script, re.M)
        assert line, command
        offered = line.group(1).split()
        assert sorted(offered) == sorted(f"--{name}" for name, _ in options_of(help_of(command)))


def test_completion_of_words(scratch):
    for name in ("disk.raw", "other"):
        with open(f"{scratch}/{name}", "wb"):
            pass
    assert complete("sendense", "ver") == ["verify", "version"]
    assert complete("sendense", "repo", "i") == ["init", "info"]
    assert complete("sendense", "help", "ver") == ["verify", "version"]
    assert complete("sendense", "completion", "") == ["bash"]
    assert complete("sendense", "copy", "--li") == ["--limit-rate"]
    assert complete("sendense", "copy", "--progress", "j") == ["json"]
    assert complete("sendense", "copy", "--progress", "=", "j") == ["json"]
    assert set(complete("sendense", "copy", "--progress", "=")) == {"none", "bar", "json"}
    assert complete("sendense", "copy", "q") == ["qcow2:"]
    assert complete("sendense", "copy", "raw", ":", "di", cwd=scratch) == ["disk.raw"]
    assert set(complete("sendense", "copy", "raw", ":", cwd=scratch)) == {"disk.raw", "other"}
    assert complete("sendense", "restore", "--to", "q") == ["qcow2:"]


def test_man_pages_know_every_option():
    folder = os.path.join(support.TOP, "man")
    with open(os.path.join(folder, "sendense.1.scd"), encoding="utf-8") as file:
        overview = file.read()
    for command in commands():
        page = "sendense-" + command.replace(" ", "-")
        assert f"*{page}*(1)" in overview, page
        with open(os.path.join(folder, f"{page}.1.scd"), encoding="utf-8") as file:
            text = file.read()
        inside = set(re.findall(r"^\*--([a-z0-9-]+)\*", text, re.M))
        outside = {name for name, _ in options_of(help_of(command))}
        assert inside == outside, page
        for name, argument in options_of(help_of(command)):
            if argument:
                assert re.search(rf"^\*--{name}\* _{re.escape(argument)}_", text, re.M), (page, name)

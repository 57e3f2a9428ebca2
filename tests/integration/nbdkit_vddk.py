"""nbdkit as tests have it for nbdkit-vddk://: Debian's, with the stand-in in tests/fake/nbdkit for
the vddk plugin that Debian does not have.

    program = nbdkit_vddk.program(folder)       # --nbdkit's; skips the test where it cannot be
    nbdkit_vddk.running(text)                   # pids of those that have text in their environment
"""

import os
import shlex
import shutil

import pytest

import vddk

PLUGIN = os.path.join(vddk.BUILD, "tests", "fake", "nbdkit-vddk-plugin.so")


def program(folder):
    """An nbdkit that finds the plugin by its name, as if it were installed."""
    nbdkit = shutil.which("nbdkit")
    if not nbdkit:
        pytest.skip("needs nbdkit (apt-get install nbdkit)")
    if not os.path.exists(PLUGIN):
        pytest.skip(f"{PLUGIN} is not built (apt-get install nbdkit-plugin-dev)")
    path = os.path.join(folder, "nbdkit-with-vddk")
    with open(path, "w", encoding="utf-8") as file:
        file.write("#!/bin/bash\n"
                   "for word; do\n"
                   f"    [ \"$word\" = vddk ] && word={shlex.quote(PLUGIN)}\n"
                   "    words+=(\"$word\")\n"
                   "done\n"
                   f"exec {shlex.quote(nbdkit)} \"${{words[@]}}\"\n")
    os.chmod(path, 0o700)
    return path


def running(config):
    """Of those that this test started, by the environment that they have of it."""
    wanted, found = f"SENDENSE_FAKE_VDDK={config}".encode(), []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.readlink(f"/proc/{name}/exe").endswith("/nbdkit"):
                with open(f"/proc/{name}/environ", "rb") as file:
                    if wanted in file.read().split(b"\0"):
                        found.append(int(name))
        except OSError:
            continue
    return found

"""Random chains: after every step of a machine's life each of its restore points is
what the disks were then, for our reader and for QEMU's, and everything verifies.

SENDENSE_SEED=N tells the same stories again; each run prints it.  SENDENSE_SOAK=1 makes it
500 chains of 1 to 64 points.
"""

import collections
import os
import random
import shutil

import pytest

from chains import Machine
from support import need

SOAK = os.environ.get("SENDENSE_SOAK") == "1"
SEED = int(os.environ.get("SENDENSE_SEED") or random.SystemRandom().randrange(10**6))
CHAINS = int(os.environ.get("SENDENSE_CHAINS") or (500 if SOAK else 6))
POINTS_MOST = 64 if SOAK else 16


def step(machine, rng):
    """One step; True when it may have left something behind."""
    chance = rng.random()
    if chance < 0.74:
        machine.live()
        machine.backup(*rng.choice([[], [], [], ["--no-resume"]]))
        return False
    if chance < 0.88:
        if rng.random() < 0.5:
            machine.live()
        machine.killed_backup()
        return True
    if machine.points:
        machine.prune(kill=chance >= 0.95)
    return chance >= 0.95


def live_through(folder, seed):
    rng = random.Random(seed)
    machine = Machine(folder, rng)
    nr_points = rng.randint(1, POINTS_MOST)
    while machine.nr_points < nr_points:
        unsettled = step(machine, rng)
        machine.look()
        if unsettled and rng.random() < 0.3:
            machine.settle()
            machine.look()
    machine.settle()
    machine.look(everything=True)
    return machine.told


@pytest.mark.parametrize("part", range(min(CHAINS, 50)))
def test_random_chains(scratch, part):
    need("strace", "qemu-img")
    told = collections.Counter()
    for chain in range(part, CHAINS, 50):
        seed = f"{SEED}/{chain}"
        print(f"SENDENSE_SEED={SEED} chain {chain}")
        folder = f"{scratch}/{chain}"
        os.mkdir(folder)
        told += live_through(folder, seed)
        shutil.rmtree(folder)
    print(dict(told))

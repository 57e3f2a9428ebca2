"""Fixtures of all integration tests."""

import os
import shutil
import signal
import sys
import tempfile

import pytest

import support


def pytest_configure(config):
    del config
    if not support.SENDENSE or not os.access(support.SENDENSE, os.X_OK):
        raise pytest.UsageError("SENDENSE must name the built binary (./run test does that)")
    # So that fixtures also clean up when the run is ended from outside.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A shell's background job has SIGINT ignored, and programs that we start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter):
    """Seeds of this run, also of one that passed."""
    chains = sys.modules.get("test_random_chains")
    if chains:
        terminalreporter.write_line(f"random chains: SENDENSE_SEED={chains.SEED}, {chains.CHAINS} chains")


@pytest.fixture
def scratch():
    """A folder of the test's own; short, because socket paths may have 107 bytes."""
    folder = tempfile.mkdtemp(prefix="sd-", dir=os.environ.get("SENDENSE_TEST_DIR"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def servers(scratch):
    """Starts servers and stops them; see support.Servers."""
    with support.servers_in(scratch) as started:
        yield started

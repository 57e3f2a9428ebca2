"""A hub that is stopped while it waits for its NBD service, which does not answer: neither holds the
other up, and what the service has, or does all the same, the next hub finds, or ends.

(A session that is being opened for long: test_hub_kills.py.)
"""

import contextlib
import http.client
import os
import signal
import threading
import time

import pytest

import hub
import support
from support import MIB, make_disk, wait_for

STOP_TIMEOUT = 10  # hub.py's
SLACK = 2


@pytest.fixture
def h(servers):
    support.need("nbdcopy")
    with hub.hub_in(servers) as made:
        yield made.start()


@pytest.fixture
def disk(scratch):
    return make_disk(f"{scratch}/a.raw", MIB, [(0, MIB, "random")])


@contextlib.contextmanager
def held(h):
    """The NBD service answers nothing."""
    service = h.nbd_service()
    os.kill(service, signal.SIGSTOP)
    try:
        yield service
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(service, signal.SIGCONT)


class Call(threading.Thread):
    """A call that hangs; .answer is None where the connection was cut."""

    def __init__(self, h, *words):
        super().__init__()
        self.h, self.words, self.answer = h, words, None
        self.start()

    def run(self):
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.answer = self.h.ask(*self.words)


def ends_in_time(h):
    began = time.monotonic()
    h.process.signal(signal.SIGTERM)
    assert h.process.wait() == 0, h.process.err
    took = time.monotonic() - began
    assert took < STOP_TIMEOUT + SLACK, h.process.err
    h.process.popen.stdout.close()


def asks(h, verb):
    """Until the hub has asked the service for it: it waits in the socket."""
    def sends():
        with open("/proc/net/unix", encoding="ascii") as file:
            return sum(line.rstrip().endswith(f"{h.runtime}/nbd.sock") for line in file) > 1
    wait_for(sends, verb)


def check(h, disk, nr=1):
    assert h.get("sessions")["items"] == [] and h.open_jobs() == []
    assert len(h.points("a")) == nr
    assert hub.compare(h.point_images("a")["a"], disk)
    assert os.listdir(os.path.join(h.repositories["main"], ".incoming")) == []
    h.stop()
    wait_for(lambda: hub.pids_of(h.runtime) == [], "the NBD service's end")


def test_while_a_session_is_opened(h, disk):
    with held(h):
        call = Call(h, "POST", "sessions", {"repository": "main", "vm": "a", "digest": "optional",
                                            "disks": [{"key": "a", "size_bytes": MIB}], "client": {"software": "test"}})
        wait_for(lambda: h.get("sessions")["items"], "the session's note")
        [job] = h.open_jobs()
        ends_in_time(h)
    call.join(support.TIMEOUT)
    if call.answer:
        assert call.answer.status == 503 and "being stopped" in call.answer.body["detail"], call.answer.body
    h.start()
    # The service may have opened it: nobody was told where.
    end = h.wait(job["id"], "failed")
    assert end["error"]["text"], end
    assert h.get("sessions")["items"] == []
    h.push("a", {"a": disk}, resume="auto")
    check(h, disk)


def test_while_a_session_is_committed(h, disk):
    session = h.open_session("a", {"a": MIB})
    h.write(session["disks"][0]["export"], disk)
    with held(h):
        call = Call(h, "POST", f"sessions/{session['id']}/commit", {"disks": [{"key": "a"}]})
        asks(h, "session-commit")
        ends_in_time(h)
    call.join(support.TIMEOUT)
    h.start()
    # Either it had been asked, and goes on; or the session stands.
    with contextlib.suppress(hub.Refused):
        h.commit(session)
    end = h.wait(session["id"])
    assert end["point"] == session["point"]
    check(h, disk)


def test_while_digests_are_told(h, disk):
    session = h.open_session("a", {"a": MIB})
    h.write(session["disks"][0]["export"], disk)
    with held(h):
        call = Call(h, "GET", f"sessions/{session['id']}/disks/a/digests?first=0&count=16")
        asks(h, "session-digests")
        ends_in_time(h)
    call.join(support.TIMEOUT)
    h.start()
    assert h.get(f"sessions/{session['id']}")["state"] == "open"
    assert len(h.get(f"sessions/{session['id']}/disks/a/digests?first=0&count=16")) > 0
    h.commit(session)
    check(h, disk)


def test_while_a_restore_point_is_going_to_be_served(h, disk):
    h.push("a", {"a": disk})
    with held(h):
        call = Call(h, "POST", "serves", {"repository": "main", "vm": "a"})
        wait_for(lambda: h.get("serves")["items"], "the serve's note")
        ends_in_time(h)
    call.join(support.TIMEOUT)
    h.start()
    wait_for(lambda: h.get("serves")["items"] == [], "the end of what nobody was told of")
    check(h, disk)


def test_while_it_reads_its_settings_anew(h):
    with held(h):
        h.process.signal(signal.SIGHUP)
        asks(h, "reload")
        ends_in_time(h)


def test_what_does_not_answer_is_replaced_by_the_next_hub(h, disk):
    """It is not known then what it has: it is left to the next hub, which waits for it a while."""
    session = h.open_session("a", {"a": {"key": "a", "size_bytes": MIB, "source_state": "frozen"}})
    h.write(session["disks"][0]["export"], disk)
    with held(h) as service:
        ends_in_time(h)
        assert hub.pids_of(h.runtime) == [service]
        h.start()
        assert h.nbd_service() != service
    end = h.wait(session["id"], "failed")
    assert "NBD service" in end["error"]["text"]
    again = h.open_session("a", {"a": {"key": "a", "size_bytes": MIB, "source_state": "frozen"}}, resume="auto")
    h.write(again["disks"][0]["export"], disk)
    h.commit(again)
    check(h, disk)

"""The REST server of our room, held to curl and to bare sockets, through the tool rest_server,
whose routes are invented: what is tested is what holds for every route."""

import concurrent.futures
import contextlib
import json
import os
import socket
import ssl
import subprocess
import time

import pytest

import support
from support import SENDENSE, bad_input, need, run

TOOL = os.path.join(os.path.dirname(SENDENSE), "../../tests/tools/rest_server")


class Server:
    """The tool, running."""

    def __init__(self, folder, *arguments, **environment):
        self.err_path = os.path.join(folder, "rest_server.err")
        with open(self.err_path, "wb") as err:
            self.popen = subprocess.Popen(  # pylint: disable=consider-using-with
                [TOOL, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err,
                env={**os.environ, "REST_LOG": "1",
                     **{f"REST_{key.upper()}": str(value) for key, value in environment.items()}})
        self.scheme = "https" if arguments else "http"
        self.ca = []
        self.port = int(self.line())

    def line(self):
        return support.read_line(self.popen.stdout, "a line of rest_server").decode().strip()

    def tell(self, text):
        self.popen.stdin.write(text.encode() + b"\n")
        self.popen.stdin.flush()
        return self.line()

    def url(self, path):
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    @property
    def err(self):
        with open(self.err_path, encoding="utf-8") as file:
            return file.read()

    def stop(self):
        """What it still printed."""
        if self.popen.stdin.closed:
            return ""
        out, _ = self.popen.communicate(timeout=30)
        assert self.popen.returncode == 0, self.err
        return out.decode()

    def call(self, method, path, *, token="operate", body=None, headers=(), kind="application/json",
             curl=()):
        """By curl: an Answer."""
        command = ["curl", "-sS", "--path-as-is", "--max-time", "20", "-D", "/proc/self/fd/2", *self.ca, *curl]
        command += ["-I"] if method == "HEAD" else ["-X", method]
        if token:
            command += ["-H", f"Authorization: Bearer {token}"]
        if body is not None:
            command += ["--data-binary", "@-", "-H", f"Content-Type: {kind}"]
        for header in headers:
            command += ["-H", header]
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
        done = subprocess.run([*command, self.url(path)], input=body, capture_output=True,
                              check=False, timeout=60)
        return Answer(done)


class Answer:
    def __init__(self, done):
        self.exit = done.returncode
        head = done.stderr.decode().replace("\r", "")
        if head.startswith("HTTP/1.1 100"):
            head = head.split("\n\n", 1)[1]
        lines = head.split("\n\n")[0].split("\n")
        self.status = int(lines[0].split()[1]) if lines[0].startswith("HTTP/") else 0
        self.headers = {name.lower(): value for name, _, value in
                        (line.partition(": ") for line in lines[1:])}
        self.bytes = done.stdout
        self.text = head

    @property
    def json(self):
        return json.loads(self.bytes)

    def problem(self, status, code=None):
        """Its detail, after it was looked at whole."""
        assert self.status == status, (self.text, self.bytes)
        assert self.headers["content-type"] == "application/problem+json"
        problem = self.json
        assert set(problem) - {"job"} == {"type", "title", "status", "detail", "code"}
        assert problem["status"] == status and problem["detail"] and problem["title"]
        assert code in (None, problem["code"]), problem
        return problem["detail"]


@contextlib.contextmanager
def serving(folder, *arguments, **environment):
    need("curl")
    server = Server(folder, *arguments, **environment)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(name="server")
def one_server(scratch):
    with serving(scratch) as server:
        yield server


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def ask(connection, text):
    """Sends bytes as they are; what comes until the end."""
    got = b""
    with contextlib.suppress(ConnectionError):
        if text:
            connection.sendall(text.encode() if isinstance(text, str) else text)
        while True:
            data = connection.recv(65536)
            if not data:
                break
            got += data
    return got.decode(errors="replace")


def threads(server):
    return len(os.listdir(f"/proc/{server.popen.pid}/task"))


def files(server):
    return len(os.listdir(f"/proc/{server.popen.pid}/fd"))


def test_what_is_wrong_is_named(server):
    """Paths, methods, types, JSON, members."""
    rows = [
        ("GET", "/api/v1/none", {}, 404, "there is no such path"),
        ("GET", "/api/v1/vms/a%2Fb/c", {}, 404, "there is no such path"),
        ("GET", "/api/v1/vms/a%00b", {}, 400, "a control character (%00)"),
        ("GET", "/api/v1/vms/%2e%2e", {}, 400, '".."'),
        ("GET", "/api/v1/vms/%ff", {}, 400, "not UTF-8"),
        ("GET", "/api/v1/health?q=1&q=2", {}, 400, 'the parameter "q" twice'),
        ("GET", "/api/v1/things?limit=1&lim=2", {}, 400, 'the parameter "lim" is not known here (there are: limit&after)'),
        ("DELETE", "/api/v1/things/a?force", {}, 400, 'the parameter "force" is not known here (there are none)'),
        ("GET", "/api/v1/things?limit=0", {}, 400, "limit: must be a number from 1 to 1000"),
        ("GET", "/api/v1/things?limit=1e2", {}, 400, "limit: must be a number"),
        ("POST", "/api/v1/things", {"body": b"{}", "kind": "text/plain"}, 415, "application/json, not text/plain"),
        ("POST", "/api/v1/things", {"body": b"{}", "kind": "application/jsonx"}, 415, "application/json"),
        ("PUT", "/api/v1/octets", {"body": b"{}"}, 415, "application/octet-stream"),
        ("POST", "/api/v1/things", {"body": b"{"}, 400, "the body: not JSON: line 1, column 1"),
        ("POST", "/api/v1/things", {"body": b"[]"}, 400, "must be a JSON object"),
        ("POST", "/api/v1/things", {"body": b"[" * 100000}, 400, "nested deeper than 16"),
        ("POST", "/api/v1/things", {"body": b'{"name":"a","name":"b"}'}, 400, "duplicate"),
        ("POST", "/api/v1/things", {"body": b'{"name":"\xff"}'}, 400, "not JSON"),
        ("POST", "/api/v1/things", {"body": {"nam": "x"}}, 422, "nam: there is no such member"),
        ("POST", "/api/v1/things", {"body": {}}, 422, "name: is missing"),
        ("POST", "/api/v1/things", {}, 400, "name: is missing"),
        ("POST", "/api/v1/things", {"body": {"name": 1}}, 422, "name: must be a string"),
        ("POST", "/api/v1/things", {"body": {"name": "x", "size_bytes": 1001}}, 422, "size_bytes: must be 0 to 1000"),
        ("POST", "/api/v1/things", {"body": {"name": "x", "kind": "c"}}, 422, 'kind: must be one of "a", "b"'),
        ("POST", "/api/v1/things", {"body": {"name": "x", "disks": [{"key": "1"}, {}]}}, 422, "disks[1].key: is missing"),
        ("POST", "/api/v1/things", {"body": {"name": "x"}, "headers": ["Idempotency-Key: " + "x" * 256]}, 400, "Idempotency-Key"),
    ]
    for method, path, options, status, text in rows:
        detail = server.call(method, path, **options).problem(status)
        assert text in detail, (path, detail)
        if options.get("body"):
            bad_input(f"REST: {method} {path[7:]} {options['body'][:30]!r}" if isinstance(options["body"], bytes)
                      else f"REST: {method} {path[7:]} {json.dumps(options['body'])[:40]}", detail)
    answer = server.call("PATCH", "/api/v1/things/t1")
    answer.problem(405)
    assert answer.headers["allow"] == "GET, HEAD, PUT, DELETE"
    assert server.call("HEAD", "/api/v1/things").status == 200


def test_status_follows_the_error(server):
    for code, status in [("usage", 400), ("io", 500), ("no-space", 507), ("not-found", 404), ("exists", 409),
                         ("denied", 403), ("unsupported", 501), ("busy", 409), ("refused", 409),
                         ("conflict", 409), ("timeout", 504), ("cancelled", 409), ("range", 422)]:
        answer = server.call("GET", f"/api/v1/fail?code={code}")
        assert "?" in answer.problem(status, code)
        assert answer.json["job"] == "20261122T000000Z-1"
    server.call("GET", "/api/v1/problem").problem(507, "no-space")


def test_bodies_are_bounded(server):
    mib = 1 << 20
    for size, path, status in [(mib + 1, "/api/v1/things", 413), (3 * mib + 1, "/api/v1/octets", 413), (3 * mib, "/api/v1/octets", 204)]:
        octets = "octets" in path
        for curl in [(), ("-H", "Transfer-Encoding: chunked"), ("-H", "Expect:")]:
            answer = server.call("PUT" if octets else "POST", path, body=bytes(size), curl=curl,
                                 kind="application/octet-stream" if octets else "application/json")
            assert answer.status == status, (size, curl, answer.text)
    assert server.call("GET", "/api/v1/octets").bytes == bytes(3 * mib)
    # Who sends all of it before looking for an answer reads it all the same.
    with connect(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        got = ask(connection, b"PUT /api/v1/octets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer operate\r\n"
                  b"Connection: close\r\nContent-Type: application/octet-stream\r\n"
                  b"Content-Length: %d\r\n\r\n" % (3 * mib + 1) + bytes(3 * mib + 1))
    assert got.startswith("HTTP/1.1 413"), got
    # Announced, not sent: no memory is taken for it, and the answer comes at once.
    with connect(server) as connection:
        got = ask(connection, "POST /api/v1/things HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer operate\r\n"
                  "Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n")
    assert got.startswith("HTTP/1.1 413"), got
    with connect(server) as connection:
        got = ask(connection, "GET /api/v1/health HTTP/1.1\r\nHost: x\r\nX: " + "a" * 40000 + "\r\n\r\n")
    assert got.split()[1] in ("400", "413", "431"), got


def test_who_may(server):
    """The token before anything about the body; scopes; VMs."""
    huge = {"body": bytes(2 << 20), "kind": "text/plain"}
    for options in [{}, huge, {"body": b"{"}]:
        answer = server.call("POST", "/api/v1/things", token=None, **options)
        answer.problem(401, "denied")
        assert answer.headers["www-authenticate"] == 'Bearer realm="sendense"'
    assert server.call("GET", "/api/v1/things?access_token=admin", token=None).status == 401
    assert 'invalid_token' in server.call("GET", "/api/v1/things", token="expired").headers["www-authenticate"]
    assert server.call("POST", "/api/v1/things", token="read", body=b"{").status == 403
    rows = [("GET", "/api/v1/things", "read", 200), ("GET", "/api/v1/things", "backup", 200),
            ("GET", "/api/v1/things/t1", "backup", 403), ("GET", "/api/v1/vms/web01", "backup", 200),
            ("GET", "/api/v1/vms/db01", "backup", 403), ("GET", "/api/v1/vms/db01", "read", 200),
            ("GET", "/api/v1/vms/all", "backup", 403), ("POST", "/api/v1/vms/web01/sessions", "backup", 200),
            ("POST", "/api/v1/vms/db01/sessions", "backup", 403), ("POST", "/api/v1/vms/db01/sessions", "read", 403),
            ("POST", "/api/v1/vms/db01/sessions", "operate", 200), ("POST", "/api/v1/secrets", "operate", 403),
            ("POST", "/api/v1/secrets", "admin", 201), ("GET", "/api/v1/health", None, 200),
            ("GET", "/api/v1/openapi.json", None, 200)]
    for method, path, token, status in rows:
        assert server.call(method, path, token=token).status == status, (method, path, token)
    audit = [line.split() for line in server.stop().splitlines() if line.startswith("audit")]
    # Only what was let in, with its outcome.
    assert ["audit", "admin", "makeSecret", "/api/v1/secrets", "201"] in audit
    assert not [line for line in audit if line[4] in ("401", "403")]
    for word in ["Bearer", "access_token", "only-once", "operate\n"]:
        assert word not in server.err.replace("(operate)", ""), word


def test_wrong_tokens_are_slowed_down(scratch):
    with serving(scratch, wrong=3) as server:
        for _ in range(3):
            server.call("GET", "/api/v1/things", token="guess").problem(401)
        answer = server.call("GET", "/api/v1/things", token="guess")
        answer.problem(429, "denied")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert server.call("GET", "/api/v1/things").status == 200
        assert server.err.count("more than 3 wrong tokens in a minute from 127.0.0.1") == 1
        assert "guess" not in server.err


def test_done_once(server):
    """Idempotency keys, also of two calls at once."""
    key = ["Idempotency-Key: k1"]
    first = server.call("POST", "/api/v1/things", body={"name": "x"}, headers=key)
    again = server.call("POST", "/api/v1/things", body={"name": "x"}, headers=key)
    assert (first.status, first.bytes) == (201, again.bytes) and again.status == 201
    assert again.headers["location"] == first.headers["location"] == "/api/v1/things/t1"
    assert again.headers["etag"] == '"1"'
    server.call("POST", "/api/v1/things", body={"name": "y"}, headers=key).problem(422, "range")
    server.call("POST", "/api/v1/open", headers=key)  # does not heed it
    failed = server.call("POST", "/api/v1/things", body={}, headers=["Idempotency-Key: k2"])
    failed.problem(422)
    other = server.call("POST", "/api/v1/things", body={"name": "z"}, headers=["Idempotency-Key: k2"])
    assert other.status == 201  # what failed is not kept
    secret = server.call("POST", "/api/v1/secrets", token="admin", headers=["Idempotency-Key: k3"])
    assert secret.json["token"] == "only-once"
    server.call("POST", "/api/v1/secrets", token="admin", headers=["Idempotency-Key: k3"]).problem(409, "exists")
    assert len(server.call("GET", "/api/v1/things").json["items"]) == 2


def test_the_second_waits_for_the_first(server):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(server.call, "POST", "/api/v1/wait", headers=["Idempotency-Key: same"]) for _ in range(3)]
        support.wait_for(lambda: server.call("GET", "/api/v1/wait").json["waiting"] == 1, "the first")
        server.call("POST", "/api/v1/open")
        answers = [call.result() for call in calls]
    assert [answer.status for answer in answers] == [202] * 3
    assert [answer.json for answer in answers] == [{"made": 1}] * 3


def test_versions(server):
    server.call("POST", "/api/v1/things", body={"name": "x"})
    path = "/api/v1/things/t1"
    assert server.call("GET", path).headers["etag"] == '"1"'
    assert server.call("GET", path, headers=['If-None-Match: "1"']).status == 304
    assert server.call("PUT", path, body={"name": "y"}, headers=['If-Match: "1"']).headers["etag"] == '"2"'
    for tag in ['"1"', 'W/"2"', '"22"']:
        server.call("PUT", path, body={"name": "z"}, headers=[f"If-Match: {tag}"]).problem(412, "range")
    for tag in ['"2"', '*', '"7", "4"']:
        assert server.call("PUT", path, body={"name": "z"}, headers=[f"If-Match: {tag}"]).status == 200
    assert server.call("DELETE", path).status == 204
    server.call("DELETE", path).problem(404)


def test_pages(server):
    for i in range(5):
        server.call("POST", "/api/v1/things", body={"name": f"n{i}"})
    names, after = [], ""
    while after is not None:
        page = server.call("GET", f"/api/v1/things?limit=2{after and '&after=' + after}").json
        assert len(page["items"]) <= 2
        names += [item["name"] for item in page["items"]]
        after = page["next"]
    assert names == [f"n{i}" for i in range(5)]


def follow(connection):
    """Asks for a stream that never ends, and has its beginning."""
    connection.sendall(b"GET /api/v1/events?last=5000 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer read\r\n\r\n")
    got = b""
    while b"retry: 1000" not in got:
        data = connection.recv(4096)
        assert data, got
        got += data


def test_events(server):
    idle = threads(server)
    answer = server.call("GET", "/api/v1/events?last=4")
    assert answer.exit == 0 and answer.headers["content-type"] == "text/event-stream"
    assert [json.loads(line[6:])["n"] for line in answer.bytes.decode().splitlines() if line.startswith("data: ")] == [1, 2, 3, 4]
    assert server.call("HEAD", "/api/v1/events?last=5000").headers["content-type"] == "text/event-stream"
    answer = server.call("GET", "/api/v1/events?last=4", headers=["Last-Event-ID: 2"])
    assert answer.bytes.decode().count("data: ") == 2 and "event: end\n" in answer.bytes.decode()
    # One that never ends is ended by the stop, as it should be: with the last chunk.
    with connect(server) as connection:
        follow(connection)
    # That client is gone: noticed without a word from either side.
    support.wait_for(lambda: threads(server) == idle, "the stream's end")
    with connect(server) as connection:
        follow(connection)
        began = time.monotonic()
        assert "stopped" in server.stop()
        assert time.monotonic() - began < 5
        assert ask(connection, "").endswith("0\r\n\r\n")


def test_silence_gives_way(scratch):
    """1,000 connections that say nothing don't keep others out."""
    with serving(scratch, connections=16) as server:
        before = threads(server), files(server)
        silent = []
        for _ in range(1000):
            silent.append(connect(server))
        began = time.monotonic()
        status = 0
        while status != 200:
            status = server.call("GET", "/api/v1/things").status
            assert time.monotonic() - began < 10
        waited = time.monotonic() - began
        assert threads(server) <= before[0] + 16 + 32 + 64
        for connection in silent:
            connection.close()
        support.wait_for(lambda: (threads(server), files(server)) == before, "all to be given back")
        print(f"after 1,000 silent connections the first call took {waited:.2f} s")


def test_strangers_that_are_slow_give_way(scratch):
    """Who needs no token keeps no place by sending a request that never ends."""
    with serving(scratch, connections=4, idle_ms=600000) as server:
        slow = [connect(server) for _ in range(4)]
        for connection in slow:
            connection.sendall(b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nx")
        support.wait_for(lambda: server.call("GET", "/api/v1/things").status == 200, "a place")
        for connection in slow:
            connection.close()


def test_refused_with_a_reason(scratch):
    with serving(scratch, connections=2) as server:
        busy = [connect(server) for _ in range(2)]
        for connection in busy:  # let in, and in the middle of its body
            connection.sendall(b"POST /api/v1/things HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer operate\r\n"
                               b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        support.wait_for(lambda: server.call("GET", "/api/v1/health").status == 503, "two calls")
        answer = server.call("GET", "/api/v1/health")
        assert "2 of 2 connections are in use (try again)" in answer.problem(503, "busy")
        assert answer.headers["retry-after"] == "2"
        for connection in busy:
            connection.close()
        support.wait_for(lambda: server.call("GET", "/api/v1/health").status == 200, "their places")


def test_idle_connections_end(scratch):
    with serving(scratch, idle_ms=1000) as server:
        for text in [b"", b"GET /api/v1/hea", b"POST /api/v1/things HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer operate\r\n"
                     b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"]:
            with connect(server) as connection:
                began = time.monotonic()
                got = ask(connection, text)
                assert 0.5 < time.monotonic() - began < 10 and "200" not in got.split("\r\n")[0]
        # A handler's time is not the client's silence.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            call = pool.submit(server.call, "POST", "/api/v1/wait")
            support.wait_for(lambda: server.call("GET", "/api/v1/wait").json["waiting"] == 1, "the call")
            with connect(server) as connection:
                ask(connection, b"")  # as long as the time-out
            with connect(server) as connection:
                ask(connection, b"")
            server.call("POST", "/api/v1/open")
            assert call.result().status == 202


def test_odd_requests(server):
    """Two ways to say how long a body is, bare line ends, nonsense: an error or an end, and the
    next call is answered."""
    head = "POST /api/v1/things HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer operate\r\nContent-Type: application/json\r\n"
    for text in [head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n",
                 head + "Content-Length: 5\r\nContent-Length: 6\r\nConnection: close\r\n\r\n{    }",
                 head + "Content-Length: -1\r\nConnection: close\r\n\r\n{}",
                 head + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
                 "GET * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                 "GET http://127.0.0.1/api/v1/things HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                 "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "a" * 100 + "\r\n\r\n",
                 "GET /api/v1/vms/" + "a" * 9000 + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]:
        with connect(server) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(text.encode("latin-1"))
                connection.shutdown(socket.SHUT_WR)
            got = ask(connection, b"")
        assert not got or got.split()[1] >= "400", (text[-60:], got)
    assert server.call("GET", "/api/v1/health").status == 200
    assert server.call("GET", "/api/v1/things").json["items"] == []


# --- TLS ---------------------------------------------------------------------------------------


def make_certificates(folder):
    """ca, hub (for 127.0.0.1), other (the same for another key), and a client's."""
    need("certtool")
    template = {"ca": 'cn = "test CA"\nca\ncert_signing_key\n',
                "hub": 'cn = "hub"\nip_address = "127.0.0.1"\ntls_www_server\nsigning_key\n'}
    for name in ["ca", "hub", "other", "client", "stranger"]:
        key, pem = os.path.join(folder, f"{name}.key"), os.path.join(folder, f"{name}.pem")
        path = os.path.join(folder, f"{name}.template")
        with open(path, "w", encoding="ascii") as file:
            file.write(template.get(name, template["hub"]) + "expiration_days = 30\n")
        run("certtool", "--generate-privkey", "--key-type", "ed25519", "--outfile", key)
        how = (["--generate-self-signed"] if name in ("ca", "stranger") else
               ["--generate-certificate", "--load-ca-certificate", os.path.join(folder, "ca.pem"),
                "--load-ca-privkey", os.path.join(folder, "ca.key")])
        run("certtool", *how, "--load-privkey", key, "--template", path, "--outfile", pem)
    return lambda name: os.path.join(folder, name)


def served_certificate(server, file):
    context = ssl.create_default_context(cafile=file("ca.pem"))
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
            return connection.getpeercert(binary_form=True)


def test_tls(scratch):
    file = make_certificates(scratch)
    certificate, key = file("now.pem"), file("now.key")
    for name in ["pem", "key"]:
        os.link(file(f"hub.{name}"), file(f"now.{name}"))
    with serving(scratch, certificate, key) as server:
        server.ca = ["--cacert", file("ca.pem")]
        assert server.call("GET", "/api/v1/things").status == 200
        assert server.call("GET", "/api/v1/things", curl=["--tls-max", "1.2"]).status == 200
        assert server.call("GET", "/api/v1/things", curl=["--tlsv1.0", "--tls-max", "1.1", "--ciphers", "DEFAULT:@SECLEVEL=0"]).status == 0
        server.ca = ["--cacert", file("stranger.pem")]
        assert server.call("GET", "/api/v1/things").exit == 60
        server.ca = ["--cacert", file("ca.pem")]
        before = served_certificate(server, file)
        # Half exchanged: the old one stays; wholly: the new one from the next connection on.
        os.replace(file("other.pem"), certificate)
        assert "is not the key of" in server.tell("reload")
        assert served_certificate(server, file) == before
        os.replace(file("other.key"), key)
        assert server.tell("reload") == "reloaded"
        assert served_certificate(server, file) != before
        with connect(server) as connection:  # plain HTTP where TLS is spoken
            assert "HTTP/1.1 200" not in ask(connection, "GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n")


def test_tls_certificates_of_clients(scratch):
    file = make_certificates(scratch)
    with serving(scratch, file("hub.pem"), file("hub.key"), file("ca.pem")) as server:
        server.ca = ["--cacert", file("ca.pem")]
        for name, status in [(None, 403), ("stranger", 403), ("client", 200)]:
            curl = ["--cert", file(f"{name}.pem"), "--key", file(f"{name}.key")] if name else []
            assert server.call("GET", "/api/v1/things", curl=curl).status == status, name
            assert server.call("GET", "/api/v1/health", token=None, curl=curl).status == status, name
        assert server.call("GET", "/api/v1/things", token=None,
                           curl=["--cert", file("client.pem"), "--key", file("client.key")]).status == 401


def test_beyond_loopback_takes_tls(scratch):
    del scratch
    done = subprocess.run([TOOL], env={**os.environ, "REST_ADDRESS": "0.0.0.0"}, capture_output=True,
                          check=False, stdin=subprocess.DEVNULL, timeout=30)
    assert done.returncode == 1
    assert b"without TLS only loopback addresses are allowed" in done.stderr

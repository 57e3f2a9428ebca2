"""The REST client of our room: whom it trusts, what it never tells, how it goes on.  Against the
tool rest_server, and against openssl's server with certificates that don't fit."""

import hashlib
import os
import ssl
import subprocess

import pytest

import support
from support import SENDENSE, bad_input
from test_rest_server import make_certificates, serving

TOOL = os.path.join(os.path.dirname(SENDENSE), "../../tests/tools/rest_client")


def call(url, method="GET", path="/api/v1/things", **environment):
    """Its status, and what it printed."""
    clean = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    named = {key if key.endswith("proxy") else f"CLIENT_{key.upper()}": str(value)
             for key, value in environment.items()}
    done = subprocess.run([TOOL, url, method, path], env={**clean, **named}, capture_output=True, check=False,
                          timeout=60)
    assert done.returncode in (0, 1), done.stderr.decode()
    return done.returncode, done.stdout.decode()


@pytest.fixture(name="token")
def token_file(scratch):
    path = os.path.join(scratch, "token")
    with open(path, "w", encoding="ascii") as file:
        file.write("read\n")
    return path


def test_whom_it_trusts(scratch, token):
    file = make_certificates(scratch)
    with open(file("hub.pem"), encoding="ascii") as pem:
        fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.read())).hexdigest()
    colons = ":".join(fingerprint[i:i + 2] for i in range(0, 64, 2)).upper()
    other = "00" * 32
    ca, stranger = file("ca.pem"), file("stranger.pem")
    with serving(scratch, file("hub.pem"), file("hub.key")) as server:
        url = server.url("")
        for options in [{"ca": ca}, {"fingerprint": fingerprint}, {"fingerprint": colons, "ca": ca}]:
            assert call(url, token_file=token, **options) == (0, '{"items":[],"next":null}'), options
        asked = server.err.count("GET /api/v1/things")
        assert asked == 3
        rows = [("no CA", {}, "by --ca-file"), ("another CA", {"ca": stranger}, "must be the CA of this hub"),
                ("another fingerprint", {"fingerprint": other}, "another fingerprint"),
                ("another fingerprint, right CA", {"fingerprint": other, "ca": ca}, "another fingerprint"),
                ("right fingerprint, another CA", {"fingerprint": fingerprint, "ca": stranger}, "not trusted")]
        for case, options, text in rows:
            status, out = call(url, token_file=token, **options)
            assert status == 1 and out.startswith("denied: ") and text in out, (case, out)
            bad_input(f"REST client: {case}", out.strip())
        # Its name is 127.0.0.1, not localhost.
        status, out = call(url.replace("127.0.0.1", "localhost"), token_file=token, ca=ca)
        assert status == 1 and out.startswith("denied: ") and "'localhost'" in out, out
        # None of them got as far as a request, so nobody saw the token.
        assert server.err.count("GET /api/v1/things") == asked
        status, out = call(url.replace("https", "http"), token_file=token)
        assert status == 1 and not out.startswith("denied"), out
        status, out = call(url, ca=file("hub.key"), token_file=token)
        assert status == 1 and out.startswith("denied: ") and "hub.key must be the CA" in out, out
        status, out = call(url, ca=file("none.pem"), token_file=token)
        assert status == 1 and "can't be read" in out, out


def test_tls_where_none_is_spoken(scratch, token):
    with serving(scratch) as server:
        status, out = call(server.url("").replace("http", "https"), token_file=token)
        assert status == 1 and out.startswith("disconnected: ") and "does it speak TLS?" in out


def test_proxies_are_not_for_loopback(scratch, token):
    with serving(scratch) as server:
        proxy = "http://127.0.0.1:1"
        assert call(server.url(""), token_file=token, http_proxy=proxy, all_proxy=proxy)[0] == 0


def test_tokens(scratch, token):
    with serving(scratch) as server:
        assert call(server.url(""), token_file=token)[0] == 0
        with open(token, "w", encoding="ascii") as file:
            file.write("secret-of-somebody")
        for options in [{"token_file": token}, {}]:
            status, out = call(server.url(""), **options)
            assert status == 1 and out.startswith("denied: ") and "secret" not in out, out
        assert "secret" not in server.err


def test_a_stream_goes_on_after_the_server_was_away(scratch, token):
    """Stopped and started at the same port while a client follows."""
    with serving(scratch) as server:
        port = server.port
        clean = {**os.environ, "CLIENT_TOKEN_FILE": token, "CLIENT_FOLLOW": "1", "CLIENT_RETRY_MS": "20000"}
        with subprocess.Popen([TOOL, server.url(""), "GET", "/api/v1/events?last=10&cut=4"], env=clean,
                              stdout=subprocess.PIPE) as client:
            lines = [support.read_line(client.stdout, "an event") for _ in range(4)]
            server.stop()
            with serving(scratch, port=port):
                while lines[-1]:
                    lines.append(support.read_line(client.stdout, "an event"))
            assert client.wait(30) == 0
    assert [int(line.split(b'"n":')[1].rstrip(b"}\n")) for line in lines[:-1]] == list(range(1, 11))

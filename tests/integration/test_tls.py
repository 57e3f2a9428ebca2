"""TLS on NBD: our server with the programs of others, our client with their servers,
STARTTLS byte by byte, and who is refused."""

import filecmp
import os
import socket
import ssl
import struct

import pytest

import nbd_raw as raw
from nbd_relay import Relay
from support import (MIB, SENDENSE, fails, make_disk, need, run, sendense)

SIZE = 8 * MIB


def make_pki(folder):
    tool = os.path.join(os.path.dirname(raw.find_nbd_serve()), "..", "..", "tools", "make_pki")
    os.makedirs(folder)
    return run(tool, folder).out.strip()


class Pki:
    """A CA, certificates, keys: .folder; .fingerprint of the client's certificate; .other
    is the folder of another CA, .anonymous one with the CA's certificate alone."""

    def __init__(self, scratch):
        self.folder, self.other = f"{scratch}/pki", f"{scratch}/other"
        self.anonymous = f"{scratch}/anonymous"
        self.fingerprint = make_pki(self.folder)
        make_pki(self.other)
        os.makedirs(self.anonymous)
        os.symlink(f"{self.folder}/ca-cert.pem", f"{self.anonymous}/ca-cert.pem")
        self.psk = f"{self.folder}/keys.psk"
        self.x509_options = ["--tls-certificate", f"{self.folder}/server-cert.pem",
                             "--tls-key", f"{self.folder}/server-key.pem"]
        self.clients_options = ["--tls-clients-ca", f"{self.folder}/ca-cert.pem"]
        self.psk_options = ["--tls-psk-file", self.psk]

    def uri(self, uri, folder=None, user=None, psk=None):
        """As libnbd's programs want it."""
        if user is None:
            return f"{uri}?tls-certificates={folder or self.folder}"
        return uri.replace("://", f"://{user}@", 1) + f"?tls-psk-file={psk or self.psk}"


@pytest.fixture(name="pki")
def fixture_pki(scratch):
    return Pki(scratch)


@pytest.fixture(name="disk")
def fixture_disk(scratch):
    return make_disk(f"{scratch}/disk", SIZE, [(MIB, 3 * MIB, "random"), (6 * MIB, 5000, "text")])


def port_of(process):
    return process.uri.rstrip("/").rsplit(":", 1)[1]


# --- our server, their clients --------------------------------------------------------------


def test_libnbd_with_certificates(scratch, servers, pki, disk):
    need("nbdinfo", "nbdcopy")
    server = servers.export(f"raw:{disk}", *pki.x509_options, "--read-only", tcp=True)
    assert server.uri.startswith("nbds://127.0.0.1:")
    assert "with TLS" in run("nbdinfo", pki.uri(server.uri)).out
    run("nbdcopy", pki.uri(server.uri), f"{scratch}/copy")
    assert filecmp.cmp(disk, f"{scratch}/copy", shallow=False)
    # A client that trusts another CA says no, and we say that it did.
    assert run("nbdinfo", pki.uri(server.uri, pki.other), status=None).status != 0
    server.wait_err("TLS handshake")
    # Without TLS there is a text.
    assert run("nbdinfo", server.uri.replace("nbds", "nbd", 1), status=None).status != 0
    fails("copy", server.uri.replace("nbds", "nbd", 1), "null:8M",
          case="an export that is served with TLS only, without it", contains="with TLS only")


def test_libnbd_with_keys(scratch, servers, pki, disk):
    need("nbdinfo", "nbdcopy")
    copy = make_disk(f"{scratch}/copy", SIZE)
    for tcp in True, False:
        server = servers.export(f"raw:{copy}", *pki.psk_options, tcp=tcp)
        uri = server.uri if tcp else server.uri.replace("?", f"?tls-psk-file={pki.psk}&")
        uri = pki.uri(uri, user="alice") if tcp else uri.replace("://", "://alice@", 1)
        run("nbdcopy", "--connections=4", "--requests=16", "--request-size=1048576", disk, uri)
        assert filecmp.cmp(disk, copy, shallow=False)
        make_disk(copy, SIZE)
        server.stop()
    server = servers.export(f"raw:{disk}", *pki.psk_options, "--read-only", tcp=True)
    uri = pki.uri(server.uri, user="alice", psk=f"{pki.other}/keys.psk")
    assert run("nbdinfo", uri, status=None).status != 0
    server.wait_err("it has another key of identity 'alice'")
    with open(f"{scratch}/carol", "w", encoding="ascii") as file:
        file.write("carol:" + 64 * "0" + "\n")
    assert run("nbdinfo", pki.uri(server.uri, user="carol", psk=file.name), status=None).status != 0
    server.wait_err("there is no key of that identity")
    with open(pki.psk, encoding="ascii") as file:
        assert file.readline().split(":")[1].strip() not in server.err


def test_certificates_of_clients(servers, pki, disk):
    need("nbdinfo")
    server = servers.export(f"raw:{disk}", *pki.x509_options, *pki.clients_options, tcp=True)
    assert "with TLS" in run("nbdinfo", pki.uri(server.uri)).out
    assert run("nbdinfo", pki.uri(server.uri, pki.anonymous), status=None).status != 0
    server.wait_err("Certificate is required")
    fails("copy", server.uri, "null:8M", "--tls-certificates", pki.anonymous,
          case="a client without the certificate that a server demands", contains="TLS")


def test_qemu_img(scratch, servers, pki, disk):
    need("qemu-img")
    x509 = servers.export(f"raw:{disk}", *pki.x509_options, *pki.clients_options, "--name", "a",
                          "--read-only", tcp=True)
    psk = servers.export(f"raw:{disk}", *pki.psk_options, "--name", "a", "--read-only", tcp=True)
    creds = [("tls-creds-x509", x509, ""), ("tls-creds-psk", psk, ",username=bob")]
    for kind, server, more in creds:
        port = server.uri.split(":")[2].split("/")[0]
        image = f"driver=nbd,host=127.0.0.1,port={port},export=a,tls-creds=t"
        run("qemu-img", "convert", "--object",
            f"{kind},id=t,dir={pki.folder},endpoint=client{more}", "--image-opts", image,
            "-O", "qcow2", f"{scratch}/out")
        run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", disk, f"{scratch}/out")
        os.unlink(f"{scratch}/out")


# --- our client, their servers ----------------------------------------------------------------


def test_client_with_nbdkit(scratch, servers, pki, disk):
    x509 = servers.nbdkit("-r", "--tls=require", f"--tls-certificates={pki.folder}",
                          "--tls-verify-peer", "file", disk, tcp=True)
    psk = servers.nbdkit("-r", "--tls=require", f"--tls-psk={pki.psk}", "file", disk, tcp=True)
    local = servers.nbdkit("-r", "--tls=require", f"--tls-psk={pki.psk}", "file", disk)
    x509.uri, psk.uri, local.uri = [s.uri.replace("nbd", "nbds", 1) for s in (x509, psk, local)]
    keys = ["--tls-psk-file", pki.psk]
    for uri, options in [(x509.uri, ["--tls-certificates", pki.folder]), (psk.uri, keys),
                         (psk.uri, keys + ["--tls-username", "bob"]), (local.uri, keys)]:
        sendense("copy", uri, f"raw:{scratch}/b", "--force", *options)
        assert filecmp.cmp(disk, f"{scratch}/b", shallow=False)
    os.unlink(f"{scratch}/b")
    fails("copy", x509.uri, "null:8M", "--tls-certificates", pki.other,
          case="a server whose certificate is of another CA", contains="TLS")
    fails("copy", psk.uri, "null:8M", "--tls-psk-file", f"{pki.other}/keys.psk",
          case="a server that knows another key", contains="TLS")
    fails("copy", psk.uri, "null:8M", *keys, "--tls-username", "carol",
          case="an identity that the file of keys does not have", contains="carol")
    fails("copy", x509.uri.replace("nbds", "nbd", 1), "null:8M",
          case="a server that demands TLS, without it", contains="TLS")
    fails("copy", local.uri, "null:8M", "--tls-certificates", pki.folder, status=2,
          case="a certificate for a Unix socket", contains="of a host")


def test_client_with_qemu_nbd(scratch, servers, pki, disk):
    need("qemu-nbd")
    for kind, options in [("x509", ["--tls-certificates", pki.folder]),
                          ("psk", ["--tls-psk-file", pki.psk])]:
        server = servers.qemu_nbd(disk, read_only=True, tcp=True, export="a", options=[
            "--object", f"tls-creds-{kind},id=t,endpoint=server,dir={pki.folder}",
            "--tls-creds", "t"])
        sendense("copy", server.uri.replace("nbd", "nbds", 1), f"raw:{scratch}/b", "--force",
                 *options)
        assert filecmp.cmp(disk, f"{scratch}/b", shallow=False)


def test_certificate_of_another_host(servers, pki, disk):
    """The certificate names 127.0.0.1, and not 127.0.0.2."""
    server = servers.export(f"raw:{disk}", *pki.x509_options,
                            where=["--port", "0", "--address", "127.0.0.2"])
    fails("copy", server.uri, "null:8M", "--tls-certificates", pki.folder,
          case="a server whose certificate is of another host", contains="TLS")


def test_server_without_tls(servers, pki, disk):
    server = servers.export(f"raw:{disk}", tcp=True)
    fails("copy", server.uri.replace("nbd", "nbds", 1), "null:8M", "--tls-certificates", pki.folder,
          case="nbds:// of a server without TLS", contains="not configured on this server")


def test_a_lost_connection_is_made_again(scratch, servers, pki, disk):
    server = servers.export(f"raw:{disk}", *pki.psk_options, "--read-only")
    with Relay(scratch, "relay", server.uri.split("=")[1]) as relay:
        relay.at(2 * MIB, lambda: None)
        result = sendense("copy", relay.uri.replace("nbd", "nbds", 1), f"raw:{scratch}/b",
                          "--tls-psk-file", pki.psk)
        assert "connecting again" in result.err
    assert filecmp.cmp(disk, f"{scratch}/b", shallow=False)


def test_backup_and_restore(scratch, servers, pki, disk):
    server = servers.export(f"raw:{disk}", *pki.psk_options, "--read-only", tcp=True)
    copy = make_disk(f"{scratch}/copy", SIZE)
    target = servers.export(f"raw:{copy}", *pki.psk_options, tcp=True)
    keys = ["--tls-psk-file", pki.psk]
    sendense("repo", "init", f"{scratch}/repo")
    sendense("backup", "--repo", f"{scratch}/repo", "--vm", "web", "--disk", f"a={server.uri}", *keys)
    sendense("restore", "--repo", f"{scratch}/repo", "web", "--to", target.uri, *keys)
    target.stop()
    assert filecmp.cmp(disk, copy, shallow=False)


# --- files and addresses ------------------------------------------------------------------------


def test_what_the_command_refuses(scratch, pki, disk):
    export = ["export", f"raw:{disk}", "--port", "0"]
    os.chmod(f"{pki.other}/server-key.pem", 0o644)
    os.chmod(f"{pki.other}/keys.psk", 0o640)
    with open(f"{scratch}/bad.psk", "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write("alice:nothex\n")
    rows = [
        (["--tls-certificate", f"{pki.folder}/server-cert.pem"], 2, "a key",
         "a certificate without its key"),
        (["--tls-certificate", f"{pki.folder}/server-cert.pem",
          "--tls-key", f"{pki.folder}/client-key.pem"], 2, "key", "a key of another certificate"),
        (["--tls-certificate", f"{pki.other}/server-cert.pem",
          "--tls-key", f"{pki.other}/server-key.pem"], 1, "chmod 600", "a key that others may read"),
        (["--tls-psk-file", f"{pki.other}/keys.psk"], 1, "chmod 600",
         "pre-shared keys that others may read"),
        (["--tls-psk-file", f"{scratch}/bad.psk"], 1, "line 1", "a pre-shared key that is none"),
        (["--tls-clients-ca", f"{pki.folder}/ca-cert.pem", *pki.psk_options], 2, "certificate",
         "a CA of clients without a certificate"),
        (["--tls-optional"], 2, "--tls-psk-file", "TLS that is optional, without credentials"),
        (["--address", "0.0.0.0"], 1, "without TLS", "an address beyond loopback without TLS"),
        (["--address", "0.0.0.0", *pki.x509_options], 1, "--tls-clients-ca",
         "an address beyond loopback for unknown clients"),
        (["--address", "0.0.0.0", "--tls-optional", *pki.psk_options], 1, "--tls-optional",
         "an address beyond loopback with TLS optional"),
    ]
    for options, status, text, case in rows:
        fails(*export, *options, status=status, contains=text, case=case)


def test_beyond_loopback(servers, pki, disk):
    need("nbdinfo")
    server = servers.export(f"raw:{disk}", *pki.psk_options,
                            where=["--port", "0", "--address", "0.0.0.0"])
    assert server.uri.startswith("nbds://0.0.0.0:")
    uri = server.uri.replace("0.0.0.0", "127.0.0.1")
    assert "with TLS" in run("nbdinfo", pki.uri(uri, user="bob")).out


def test_optional(servers, pki, disk):
    need("nbdinfo")
    server = servers.export(f"raw:{disk}", *pki.x509_options, "--tls-optional", tcp=True)
    assert server.uri.startswith("nbd://")
    assert "without TLS" in run("nbdinfo", server.uri).out
    assert "with TLS" in run("nbdinfo", pki.uri(server.uri.replace("nbd", "nbds", 1))).out


# --- STARTTLS byte by byte ------------------------------------------------------------------------


def start_tls(client, pki, own="."):
    """own: the folder with the client's certificate, None for none."""
    assert client.option(raw.OPT_STARTTLS) == [(raw.REP_ACK, b"")]
    context = ssl.create_default_context(cafile=f"{pki.folder}/ca-cert.pem")
    if own:
        own = os.path.join(pki.folder, own)
        context.load_cert_chain(f"{own}/client-cert.pem", f"{own}/client-key.pem")
    client.sock = context.wrap_socket(client.sock, server_hostname="127.0.0.1")
    return client


def serve_tls(servers, disk, pki, *options, tls=2):
    return raw.serve(servers, f"raw:{disk}", f"tls={tls}", f"tls-dir={pki.folder}", *options)


def test_nothing_without_tls(servers, pki, disk):
    server = serve_tls(servers, disk, pki)
    with raw.Client(server.connect()) as client:
        for option, data in [(raw.OPT_LIST, b""), (raw.OPT_STRUCTURED, b""),
                             (raw.OPT_GO, client.name_data("")),
                             (raw.OPT_INFO, client.name_data("")), (99, b"?")]:
            (kind, text), = client.option(option, data)
            assert kind == raw.ERR_TLS_REQD and b"TLS" in text
        assert client.option(raw.OPT_ABORT) == [(raw.REP_ACK, b"")]
    with raw.Client(server.connect()) as client:
        client.put_option(raw.OPT_EXPORT_NAME, b"")
        assert client.at_end()


def test_what_was_said_before_is_forgotten(servers, pki, disk):
    server = serve_tls(servers, disk, pki, tls=1)
    with raw.Client(server.connect()) as client:
        client.headers(raw.OPT_STRUCTURED)
        client.option(raw.OPT_SET_META, client.meta_data("", "base:allocation"))
        client.structured = False
        start_tls(client, pki)
        # Without structured replies there is no context to choose, either.
        (kind, _), = client.option(raw.OPT_SET_META, client.meta_data("", "base:allocation"))
        assert kind == raw.ERR_INVALID
        (kind, text), = client.option(raw.OPT_STARTTLS)
        assert kind == raw.ERR_INVALID and b"already" in text
        client.go()
        with open(disk, "rb") as file:
            assert client.read(0, SIZE) == file.read()


def test_a_stranger_is_not_told_who_is_connected(servers, pki, disk):
    server = serve_tls(servers, disk, pki, "max-connections=1")
    with raw.Client(server.connect()) as client, raw.Client(server.connect()) as stranger:
        start_tls(client, pki)
        client.go("")
        start_tls(stranger, pki)
        for option, data in (raw.OPT_GO, stranger.name_data("")), (raw.OPT_LIST, b""):
            (kind, text), = stranger.option(option, data)
            assert kind == raw.ERR_POLICY and b"1 of 1 connections in use; try again later" == text


def test_bytes_behind_starttls_end_it(servers, pki, disk):
    server = serve_tls(servers, disk, pki)
    with raw.Client(server.connect()) as client:
        client.sock.sendall(raw.OPTION_MAGIC + struct.pack(">II", raw.OPT_STARTTLS, 0)
                            + raw.OPTION_MAGIC + struct.pack(">II", raw.OPT_LIST, 0))
        assert client.at_end()
    server.wait_err("bytes in the clear behind STARTTLS")
    with raw.Client(server.connect()) as client:
        (kind, _), = client.option(raw.OPT_STARTTLS, b"data")
        assert kind == raw.ERR_INVALID


def test_handshakes_that_come_to_nothing(servers, pki, disk):
    server = serve_tls(servers, disk, pki, "handshake-ms=700")
    with raw.Client(server.connect()) as client, raw.Client(server.connect()) as second:
        # One says nothing, one a byte at a time.
        assert client.option(raw.OPT_STARTTLS) == second.option(raw.OPT_STARTTLS)
        second.sock.sendall(b"\x16")
        assert client.at_end() and second.at_end()
    server.wait_err("TLS handshake: it took too long")
    with raw.Client(server.connect()) as client:
        client.option(raw.OPT_STARTTLS)
        client.put_option(raw.OPT_LIST)
        client.sock.recv(1000)  # an alert
        assert client.at_end()
    server.wait_err("TLS packet")
    with raw.Client(server.connect()) as client:
        client.option(raw.OPT_STARTTLS)
    server.wait_err("TLS: the peer closed the connection")
    # Whoever comes properly is served all the same.
    with start_tls(raw.Client(server.connect()), pki) as client:
        client.go()


def test_garbage_in_the_middle_ends_one_connection(servers, pki, disk):
    server = serve_tls(servers, disk, pki)
    with start_tls(raw.Client(server.connect()), pki) as client:
        client.go()
        plain = socket.socket(fileno=os.dup(client.sock.fileno()))
        plain.sendall(os.urandom(500))
        assert client.at_end()
        plain.close()
    server.wait_err("TLS failed")
    with start_tls(raw.Client(server.connect()), pki) as client:
        client.go()


def test_requests_that_come_together(servers, pki, disk):
    """Many requests in one record, and one request in many records."""
    server = serve_tls(servers, disk, pki)
    with open(disk, "rb") as file:
        content = file.read()
    with start_tls(raw.Client(server.connect()), pki) as client:
        client.go()
        head = [struct.pack(">IHHQQI", 0x25609513, 0, raw.READ, i, MIB + 512 * i, 512)
                for i in range(100)]
        client.sock.sendall(b"".join(head))
        got = {}
        for _ in head:
            cookie, _, _, error = client.get_chunk()
            assert error == 0
            got[cookie] = client.get(512)
        assert all(got[i] == content[MIB + 512 * i:MIB + 512 * (i + 1)] for i in range(100))
        for byte in struct.pack(">IHHQQI", 0x25609513, 0, raw.READ, 7, MIB, 512):
            client.sock.sendall(bytes([byte]))
        assert client.get_chunk()[0] == 7 and client.get(512) == content[MIB:MIB + 512]


@pytest.mark.parametrize("clients", [1, 2])
def test_certificate_of_another_ca(servers, pki, disk, clients):
    """One that is shown must be good, also where none need be shown."""
    server = serve_tls(servers, disk, pki, f"clients={clients}")
    with raw.Client(server.connect()) as client:
        with pytest.raises(ssl.SSLError):
            start_tls(client, pki, own=pki.other).sock.recv(1)
    server.wait_err("NOT trusted")
    with start_tls(raw.Client(server.connect()), pki) as client:
        client.go()


# --- exports of one client alone -----------------------------------------------------------------


SECRET = "5ec2e7c0ffee5ec2e7c0ffee5ec2e7c0"


@pytest.mark.parametrize("tls", [1, 2])
def test_export_of_one_key(servers, pki, disk, tls):
    need("nbdinfo")
    server = serve_tls(servers, disk, pki, f"secret={SECRET}", "identity=psk:alice", tls=tls)
    uri = server.uri.replace("nbd", "nbds", 1).replace("///", f"///{SECRET}")

    def ask(user, *options):
        with_keys = uri.replace("?", f"?tls-psk-file={pki.psk}&").replace("://", f"://{user}@", 1)
        return run("nbdinfo", *options, with_keys, status=None)

    assert "with TLS" in ask("alice").out
    assert ask("bob").status != 0
    assert run("nbdinfo", uri.replace("nbds", "nbd", 1), status=None).status != 0
    for user in "alice", "bob":
        assert SECRET not in ask(user, "--list").out
    server.wait_err("uses a hidden export")
    assert SECRET not in server.err


def test_export_of_one_certificate(servers, pki, disk):
    server = serve_tls(servers, disk, pki, f"secret={SECRET}", "clients=1",
                       f"identity=x509:{pki.fingerprint}")
    with start_tls(raw.Client(server.connect()), pki) as client:
        client.go(SECRET)
    with start_tls(raw.Client(server.connect()), pki, own=None) as client:
        (kind, text), = client.option(raw.OPT_GO, client.name_data(SECRET))
        assert kind == raw.ERR_UNKNOWN and SECRET.encode() not in text
        client.go("")


def test_ciphers(servers, pki, disk):
    """Keys get AES-GCM where the processor has AES, though peers would take another."""
    need("nbdinfo")
    server = serve_tls(servers, disk, pki)
    uri = server.uri.replace("nbd", "nbds", 1).replace("?", f"?tls-psk-file={pki.psk}&")
    run("nbdinfo", uri.replace("://", "://alice@", 1))
    with open("/proc/cpuinfo", encoding="ascii") as file:
        has_aes = " aes " in file.read()
    cipher = "AES-128-GCM" if has_aes else "CHACHA20-POLY1305"
    server.wait_err(f"TLS1.3 {cipher}, psk:alice")


def test_nothing_secret_in_the_process_list(servers, pki, disk):
    """Keys and names of secret exports stand in no process's arguments."""
    server = servers.export(f"raw:{disk}", *pki.psk_options, tcp=True)
    with open(f"/proc/{server.pid}/cmdline", "rb") as file, open(pki.psk, "rb") as keys:
        assert keys.readline().split(b":")[1].strip() not in file.read()
    assert SENDENSE

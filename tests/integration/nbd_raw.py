"""A small NBD client made of bytes, for what libnbd never sends, and a way to
start the test server with limits and time-outs of a test's own choice."""

import os
import socket
import struct

import support

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO = 1, 2, 3, 5, 6, 7
OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META, OPT_EXTENDED = 8, 9, 10, 11
REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_TLS_REQD, ERR_UNKNOWN, ERR_TOO_BIG = (
    0x80000001, 0x80000002, 0x80000003, 0x80000005, 0x80000006, 0x80000009)
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32
EPERM, EINVAL, ENOSPC = 1, 22, 28
MAGIC, OPTION_MAGIC, REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9


def find_nbd_serve():
    """The test server stands in the build folder of the binary under test."""
    folder = os.path.dirname(os.path.realpath(support.SENDENSE))
    while True:
        path = os.path.join(folder, "tests", "unit", "nbd", "nbd_serve")
        if os.access(path, os.X_OK):
            return path
        assert folder != "/", "no tests/unit/nbd/nbd_serve above SENDENSE"
        folder = os.path.dirname(folder)


def serve(servers, block, *options, tcp=False):
    """Starts the test server; .connect() makes a connected socket."""
    path = os.path.join(servers.folder, servers.new_name("n") + ".sock")
    process = servers.start(find_nbd_serve(), block, "tcp" if tcp else path, *options,
                            name="nbd_serve", pipe=True)
    line = support.read_line(process.popen.stdout, "the test server").split()
    assert line, f"the test server did not start: {process.err}"
    port = int(line[1])
    process.uri = f"nbd://127.0.0.1:{port}/" if tcp else f"nbd+unix:///?socket={path}"

    def connect(receive_buffer=None):
        sock = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(support.TIMEOUT)
        sock.connect(("127.0.0.1", port) if tcp else path)
        return sock

    process.connect = connect
    return process


class Client:
    """One connection.  Everything that is received must come in time."""

    def __init__(self, sock, flags=3):
        self.sock = sock
        self.extended = self.structured = False
        self.cookie = 0
        self.size = self.flags = None
        if flags is not None:
            greeting = self.get(18)
            assert greeting[:16] == MAGIC + OPTION_MAGIC
            assert struct.unpack(">H", greeting[16:])[0] == 3
            self.sock.sendall(struct.pack(">I", flags))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def get(self, length):
        data = bytearray()
        while len(data) < length:
            try:
                piece = self.sock.recv(min(length - len(data), 1 << 20))
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise EOFError(f"{len(data)} of {length} bytes")
            data += piece
        return bytes(data)

    def at_end(self):
        """True when the server closed without sending anything more."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    # --- handshake

    def put_option(self, option, data=b""):
        self.sock.sendall(OPTION_MAGIC + struct.pack(">II", option, len(data)) + data)

    def get_option_reply(self, option):
        magic, echoed, kind, length = struct.unpack(">QIII", self.get(20))
        assert magic == REPLY_MAGIC and echoed == option
        return kind, self.get(length)

    def option(self, option, data=b""):
        """All replies up to the last: [(type, data), ...]."""
        self.put_option(option, data)
        replies = []
        while True:
            replies.append(self.get_option_reply(option))
            if replies[-1][0] == REP_ACK or replies[-1][0] & 0x80000000:
                return replies

    def headers(self, option):
        assert self.option(option) == [(REP_ACK, b"")]
        self.structured = option == OPT_STRUCTURED
        self.extended = option == OPT_EXTENDED

    @staticmethod
    def name_data(name, infos=()):
        name = name.encode()
        return (struct.pack(">I", len(name)) + name
                + struct.pack(f">H{len(infos)}H", len(infos), *infos))

    @staticmethod
    def meta_data(name, *queries):
        name = name.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
        for query in queries:
            data += struct.pack(">I", len(query)) + query.encode()
        return data

    def go(self, name="", infos=()):
        replies = self.option(OPT_GO, self.name_data(name, infos))
        assert replies[-1] == (REP_ACK, b""), replies
        for kind, data in replies[:-1]:
            assert kind == REP_INFO
            if data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:])
        return replies

    # --- requests

    def put(self, kind, offset=0, length=0, flags=0, payload=b"", magic=None):
        self.cookie += 1
        if self.extended:
            head = struct.pack(">IHHQQQ", magic or 0x21E41C71, flags, kind, self.cookie, offset,
                               length)
        else:
            head = struct.pack(">IHHQQI", magic or 0x25609513, flags, kind, self.cookie, offset,
                               length)
        self.sock.sendall(head + payload)
        return self.cookie

    def get_chunk(self):
        """(cookie, flags, type, payload); a simple reply is type None with the error."""
        magic = struct.unpack(">I", self.get(4))[0]
        if magic == 0x67446698:
            assert not self.extended
            error, cookie = struct.unpack(">IQ", self.get(12))
            return cookie, 1, None, error
        if self.extended:
            assert magic == 0x6E8A278C
            flags, kind, cookie, _, length = struct.unpack(">HHQQQ", self.get(28))
        else:
            assert magic == 0x668E33EF and self.structured
            flags, kind, cookie, length = struct.unpack(">HHQI", self.get(16))
        return cookie, flags, kind, self.get(length)

    def finish(self):
        """The chunks of the one request in flight, and its error (0: none)."""
        chunks = []
        while True:
            cookie, flags, kind, payload = self.get_chunk()
            assert cookie == self.cookie
            if kind is None:
                return chunks, payload
            if kind & 0x8000:
                error, length = struct.unpack(">IH", payload[:6])
                assert length == len(payload) - 6 and flags & 1
                return payload[6:].decode(), error
            if kind != 0:
                chunks.append((kind, payload))
            if flags & 1:
                return chunks, 0

    def request(self, *arguments, **kwargs):
        self.put(*arguments, **kwargs)
        return self.finish()

    def read(self, offset, length, flags=0):
        """The bytes, put together from whatever chunks came."""
        self.put(READ, offset, length, flags)
        if not self.structured and not self.extended:
            _, _, kind, error = self.get_chunk()
            assert kind is None and error == 0
            return self.get(length)
        chunks, error = self.finish()
        assert error == 0, chunks
        data, covered = bytearray(length), 0
        for kind, payload in chunks:
            at = struct.unpack(">Q", payload[:8])[0] - offset
            if kind == 1:
                data[at:at + len(payload) - 8] = payload[8:]
                covered += len(payload) - 8
            else:
                assert kind == 2 and len(payload) == 12
                covered += struct.unpack(">I", payload[8:])[0]
        assert covered == length and len(data) == length
        return bytes(data)

"""Between a client and its hub: passes calls of REST on, and holds one where a test wants it held.

    with rest_proxy.proxy_of(hub) as proxy:         # proxy.url: plain HTTP
        gate = proxy.hold("POST", "/commit$")       # the next such call, before the hub hears of it
        gate.wait(client)                           # it is there
        gate.drop()                                 # it gets no further
"""

import contextlib
import http.server
import re
import threading

import support


class Gate:
    """One call is held here: before the hub hears of it, or behind, its answer."""

    def __init__(self, method, pattern, behind):
        self.method, self.pattern, self.behind = method, re.compile(pattern), behind
        self.held, self.dropped = threading.Event(), threading.Event()

    def wait(self, client):
        """Until that process has called."""
        what = f"{self.method} {self.pattern.pattern}"
        try:
            support.wait_for(lambda: self.held.is_set() or not client.running, what)
        except AssertionError as error:
            raise AssertionError(f"{error}: {client.err}") from None
        assert self.held.is_set(), f"{what} was never called: {client.err}"

    def drop(self):
        self.dropped.set()


class Handler(http.server.BaseHTTPRequestHandler):
    """A call; its server is the proxy."""

    def pass_on(self, body):
        proxy, headers = self.server, dict(self.headers.items())
        if not proxy.lets_through(self.command, self.path, headers):
            return
        connection = proxy.hub.connect()
        try:
            connection.request(self.command, self.path, body=body, headers=headers)
            said = connection.getresponse()
            if not proxy.lets_back(self.command, self.path):
                return
            self.send_response(said.status)
            self.send_header("Content-Type", said.headers.get("Content-Type", "text/plain"))
            if "Retry-After" in said.headers:
                self.send_header("Retry-After", said.headers["Retry-After"])
            self.send_header("Connection", "close")
            self.end_headers()
            while data := said.read1(65536):
                self.wfile.write(data)
        finally:
            connection.close()

    def answer(self):
        self.close_connection = True
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with contextlib.suppress(OSError):  # either of them is killed
            self.pass_on(body)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_):
        pass


class Proxy(http.server.ThreadingHTTPServer):
    """See the module."""

    def __init__(self, hub):
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub, self.gate = hub, None
        self.url = f"http://127.0.0.1:{self.server_port}"

    def hold(self, method, pattern, behind=False):
        self.gate = Gate(method, pattern, behind)
        return self.gate

    def _passes(self, method, path, behind):
        gate = self.gate
        if not gate or gate.behind != behind or gate.method != method \
                or not gate.pattern.search(path.split("?", maxsplit=1)[0]):
            return True
        self.gate = None  # the next one passes
        gate.held.set()
        gate.dropped.wait(support.TIMEOUT)
        return False

    def lets_through(self, method, path, _headers):
        """Whether the hub gets to hear of it; the headers may be changed."""
        return self._passes(method, path, False)

    def lets_back(self, method, path):
        """The hub has answered: whether that is told."""
        return self._passes(method, path, True)


@contextlib.contextmanager
def proxy_of(hub, kind=Proxy):
    proxy = kind(hub)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield proxy
    finally:
        if proxy.gate:
            proxy.gate.drop()
        proxy.shutdown()
        thread.join()
        proxy.server_close()

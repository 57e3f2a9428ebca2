"""A link between an NBD client and a server that counts what it carries, and breaks.

It carries bytes as they are, on any number of connections, and calls back once
when so many have come from the server, before the next one goes on.
"""

import os
import socket
import threading


class Relay:
    """Listens on a socket in the folder; .uri is for the client, .carried the bytes that
    came from the server."""

    def __init__(self, folder, name, upstream):
        self.path = os.path.join(folder, f"{name}.sock")
        self.uri = f"nbd+unix:///?socket={self.path}"
        self.upstream = upstream
        self.carried = 0
        self.limit = self.action = None
        self.lock = threading.Lock()
        self.ends = set()
        self.threads = []
        self.closed = False
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(64)
        self._start(self._accept)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def at(self, limit, action):
        """Counts from zero; action() when limit bytes were carried, then all is cut."""
        with self.lock:
            self.carried, self.limit, self.action = 0, limit, action

    def count(self):
        """Counts from zero, without a limit."""
        self.at(None, None)

    def close(self):
        self.closed = True
        self.listener.shutdown(socket.SHUT_RDWR)
        self._cut()
        for thread in self.threads:
            thread.join()
        self.listener.close()

    def _start(self, target, *arguments):
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _accept(self):
        while not self.closed:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.upstream)
            with self.lock:
                self.ends |= {client, server}
            self._start(self._pump, server, client, True)
            self._start(self._pump, client, server, False)

    def _pump(self, source, target, counted):
        try:
            while True:
                data = source.recv(1 << 16)
                if not data:
                    break
                if counted and self._reaches(len(data)):
                    break
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _reaches(self, length):
        with self.lock:
            if self.limit is None or self.carried + length < self.limit:
                self.carried += length
                return False
            action, self.limit = self.action, None
        action()
        self._cut()
        return True

    def _cut(self):
        with self.lock:
            ends, self.ends = self.ends, set()
        for end in ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

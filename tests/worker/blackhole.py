"""A TCP proxy in front of a Postgres, which can stop forwarding without closing anything."""

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy.engine import make_url

_PIECE = 1 << 16


class Proxy:
    """Forwards bytes to a Unix socket while it is not `dark`; then it swallows all, and answers
    nobody, new connections included."""

    def __init__(self, target: str, host: str) -> None:
        self.dark = False
        self._target = target
        self._listener = socket.create_server((host, 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._forward, name="proxy")
        self._thread.start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # Sockets, all of them.
        self._selector.close()

    def _forward(self) -> None:
        while not self._done.is_set():
            for key, _ in self._selector.select(0.05):
                if key.data is None:
                    self._accept()
                else:
                    self._pass_on(key.fileobj, key.data)  # type: ignore[arg-type]

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._target)
        except OSError:
            client.close()
            return
        self._selector.register(client, selectors.EVENT_READ, server)
        self._selector.register(server, selectors.EVENT_READ, client)

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        if source.fileno() < 0:
            return  # Closed with its other end a moment ago.
        piece = b""
        with suppress(OSError):
            piece = source.recv(_PIECE)
        if piece and not self.dark:
            with suppress(OSError):
                sink.sendall(piece)
        elif not piece:
            for end in (source, sink):
                self._selector.unregister(end)
                end.close()


@contextmanager
def proxied(url: str, host: str = "127.0.0.1") -> Iterator[tuple[str, Proxy]]:
    """The same database through a proxy on an address of this machine: its URL there, and the
    proxy."""
    parsed = make_url(url)
    proxy = Proxy(f"{parsed.query['host']}/.s.PGSQL.5432", host)
    there = parsed.set(host=host, port=proxy.port, query={})
    try:
        yield there.render_as_string(hide_password=False), proxy
    finally:
        proxy.close()

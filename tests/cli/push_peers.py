"""Peers to push to, in threads: they note every byte that reaches them, and end as told."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Peer:
    """Listens on loopback; takes `limit` bytes of its first connection, then closes. `reads=False`: never reads."""

    def __init__(self, *, limit: int | None = None, reads: bool = True, serves: bool = True) -> None:
        self.received = bytearray()
        self.connections = 0
        self._limit = limit
        self._reads = reads
        self._serves = serves
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._held: list[socket.socket] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while self._serves:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._held.append(connection)
            if self._reads:
                self._take(connection)
                connection.close()

    def _take(self, connection: socket.socket) -> None:
        """Read up to the limit, or to the size that the stream's first 12 bytes announce."""
        with contextlib.suppress(OSError):
            while not self._stop.is_set():
                data = connection.recv(65536)
                self.received += data
                if not data or (self._limit is not None and len(self.received) >= self._limit):
                    return
                if len(self.received) >= 12:
                    size = int.from_bytes(self.received[8:12], "little")
                    if len(self.received) >= 12 + size:
                        return

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._held:
            connection.close()
        self._thread.join(5)


@contextmanager
def peer(*, limit: int | None = None, reads: bool = True, serves: bool = True) -> Iterator[Peer]:
    """A peer for the length of the context."""
    running = Peer(limit=limit, reads=reads, serves=serves)
    running.start()
    try:
        yield running
    finally:
        running.close()

"""The line between a client and its server, which can be cut without either being told."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from datamig_nb.database import Database

_PORT = "5432"


class Line:
    """Forwards every connection; once cut, the client's end is closed and the server's is mute."""

    def __init__(self, listener: socket.socket, server: str) -> None:
        self._listener, self._server = listener, server
        self._clients: list[socket.socket] = []
        self._servers: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Cut all connections: a server at work does not know that nobody listens any more."""
        for client in self._clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it all."""
        self._listener.close()
        self.cut()
        for end in (*self._clients, *self._servers):
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                self._clients.append(client)
                self._servers.append(server)
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=_forward, args=(one, other), daemon=True).start()


def _forward(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)


@contextmanager
def line_to(database: Database) -> Generator[tuple[Database, Line]]:
    """The same database over a line, and the line."""
    directory = Path(tempfile.mkdtemp(prefix="dml-"))
    query = database.url.query
    server = f"{query['host']}/.s.PGSQL.{query.get('port', _PORT)}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / f".s.PGSQL.{_PORT}"))
    listener.listen()
    line = Line(listener, server)
    try:
        url = database.url.set(query={"host": str(directory), "port": _PORT})
        yield Database(url=url, version=database.version), line
    finally:
        line.close()
        shutil.rmtree(directory)

"""The embedded server: a PostgreSQL that nobody has to install, configure, start or stop.

It listens on a private socket only, and ends when the last process that uses it has ended::

    home/                  $DATAMIG_HOME, or a directory of the user's
        users.lock         every using process holds a shared lock on it
        supervisor.lock    held by the one process that starts, then watches the server
        server.log         of PostgreSQL and of the supervisor
        pg18/              the data, by major version

Locks end with their process, so ``kill -9`` leaves nothing to tidy by hand: whoever finds
``supervisor.lock`` free launches a supervisor, which starts PostgreSQL or adopts it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from psycopg import pq
from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import URL

from datamig_nb import supervisor
from datamig_nb.errors import ServerStartError
from datamig_nb.server_setup import (
    binaries,
    last_words,
    make_home,
    prepare,
    require_private,
    text_of,
)
from datamig_nb.supervisor import find_postmaster, try_lock

#: How long a server may take until it is ready, and until it has recovered from a crash.
START_SECONDS, RECOVERY_SECONDS = 60, 600

#: How often a start is tried before PostgreSQL's reason is told.
STARTS = 3

#: A larger log is cut to its end when the server starts.
LOG_BYTES = 4_000_000

_Found = TypeVar("_Found")

#: Homes this process holds on to -> descriptor with its shared lock.
_held: dict[Path, int] = {}
_one_thread = threading.RLock()


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server this process holds on to."""

    #: Directory of its data and its log.
    home: Path
    #: Directory of its socket; the same after a restart.
    socket_directory: Path
    #: No TCP port: only the end of the socket's name.
    port: int
    #: Directory of postgres, psql, pg_dump and the other programs.
    binaries: Path

    def url(self, database: str = "postgres") -> str:
        """The SQLAlchemy URL of one of its databases, good for ``DATABASE_URL``."""
        query = {"host": str(self.socket_directory), "port": str(self.port)}
        url = URL.create("postgresql+psycopg", "postgres", database=database, query=query)
        return url.render_as_string(hide_password=False)


def data_home() -> Path:
    """The directory for data, log and locks unless told otherwise.

    ``$DATAMIG_HOME``, else the user's data directory: ``~/.local/share/datamig_nb`` (obeying
    ``XDG_DATA_HOME``), on macOS ``~/Library/Application Support/datamig_nb``.  For root it is
    ``/var/lib/datamig_nb``: ``nobody`` can reach it, and under sudo root leaves no files in the
    home of the user.
    """
    if chosen := os.environ.get("DATAMIG_HOME"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/datamig_nb")
    mac = sys.platform == "darwin"
    shared = "~/Library/Application Support" if mac else os.environ.get("XDG_DATA_HOME")
    try:
        return Path(shared or "~/.local/share").expanduser() / "datamig_nb"
    except RuntimeError as error:
        what = f"the user {os.geteuid()} has no home directory"
        raise ServerStartError(what, "set HOME or DATAMIG_HOME") from error


# ---------------------------------------------------------------- start, join, let go


def ensure_server(home: Path | None = None) -> Server:
    """Start the embedded server or join it; this process then holds it until it ends.

    The first start takes a second, a later one 0.2 s, joining milliseconds.  Called again after
    a crash it starts the server again, with all that was committed.

    Parameters
    ----------
    home
        One server a home; ``data_home()`` if not given.

    Raises
    ------
    MissingExtraError
        If no PostgreSQL is installed.
    ServerStartError
        If it does not start; with PostgreSQL's own reason.
    """
    with _one_thread:
        home = (home or data_home()).expanduser().resolve()
        new = home not in _held
        try:
            make_home(home)
            if new:
                users = home / "users.lock"
                _held[home] = _wait(home, partial(try_lock, users, fcntl.LOCK_SH))
            return _join_or_start(home)
        except BaseException as error:
            if new:
                stop_server(home)
            if isinstance(error, (OSError, subprocess.SubprocessError)):
                what = f"the embedded server in {home} could not be started: {error}"
                advice = "set DATAMIG_HOME to a directory of your own on a local disk"
                raise ServerStartError(what, advice) from error
            raise


def stop_server(home: Path | None = None) -> None:
    """Let go of the server in this process; it stops when the last process has let go."""
    with _one_thread:
        home = (home or data_home()).expanduser().resolve()
        if (descriptor := _held.pop(home, None)) is not None:
            # closed, not unlocked: a forked child shares the lock and may still use the server
            os.close(descriptor)


def _join_or_start(home: Path) -> Server:
    log = home / "server.log"
    starts, beginning = 0, 0

    def attempt() -> Server | None:
        nonlocal starts, beginning
        # never free while a server is watched, or on its way up or down
        lock = try_lock(home / "supervisor.lock", fcntl.LOCK_EX)
        if lock is None:
            return _running(home)
        try:
            # free again after a start: it failed, or was killed too.  What takes more than a few
            # tries are sessions of a killed server, until they give back its memory
            reason = text_of(log)[beginning:]
            if starts >= STARTS and "shared memory block" not in reason:
                what = f"PostgreSQL did not start: {last_words(reason)}"
                raise ServerStartError(what, f"see {log}")
            if len(text_of(log)) > LOG_BYTES:
                log.write_text(text_of(log)[-LOG_BYTES // 10 :])
            if alone := _listening(home):  # its supervisor was killed
                _launch(lock, home, alone.data, alone.sockets, [])
            else:
                starts, beginning = starts + 1, len(text_of(log))
                _launch(lock, home, *prepare(home))
        finally:
            os.close(lock)
        return None

    return _wait(home, attempt)


def _wait(home: Path, attempt: Callable[[], _Found | None]) -> _Found:
    began = time.monotonic()
    while (found := attempt()) is None:
        waited = time.monotonic() - began
        recovering = any(server.status != "ready" for server in _postmasters(home))
        if waited > (RECOVERY_SECONDS if recovering else START_SECONDS):
            log = home / "server.log"
            raise ServerStartError(
                f"the server was not ready after {waited:.0f} s: {last_words(text_of(log))}",
                f"see {log}, or set DATAMIG_HOME to another directory",
            )
        time.sleep(0.02)
    return found


def _launch(lock: int, home: Path, data: Path, sockets: Path, command: list[str]) -> None:
    """Hand the lock to a new supervisor, which starts the command, or adopts what runs."""
    arguments = [str(lock), str(home), str(data), str(sockets), *command]
    subprocess.run(
        [sys.executable, "-I", "-S", supervisor.__file__, *arguments],
        check=True,
        pass_fds=[lock],
        start_new_session=True,
    )


# ---------------------------------------------------------------- a server that runs


class _Postmaster(NamedTuple):
    """What a live server says about itself in its postmaster.pid."""

    data: Path
    port: str
    sockets: Path
    status: str


def _postmasters(home: Path) -> Iterator[_Postmaster]:
    for file in home.glob("pg*/postmaster.pid"):
        lines = [*text_of(file).splitlines(), *[""] * 8]
        if find_postmaster(file.parent, file):
            yield _Postmaster(file.parent, lines[3], Path(lines[4]), lines[7].strip())


def _listening(home: Path) -> _Postmaster | None:
    """The one that accepts connections."""
    for found in _postmasters(home):
        if found.status != "ready":
            continue
        target = make_conninfo(host=str(found.sockets), port=found.port, user="postgres")
        with suppress(FileNotFoundError):  # the socket directory was removed
            require_private(found.sockets)
            # opens no session, so it answers even when all connections are taken
            if pq.PGconn.ping(f"{target} connect_timeout=5".encode()) == pq.Ping.OK:
                return found
    return None


def _running(home: Path) -> Server | None:
    found = _listening(home)
    if found is None:
        return None
    # its own programs; those that this process would find may be of another version
    programs = Path(text_of(found.data / "postmaster.opts").partition(' "-D" ')[0]).parent
    return Server(
        home=home,
        socket_directory=found.sockets,
        port=int(found.port),
        binaries=programs if programs.is_dir() else binaries(),
    )

"""A server of our own that may be crashed, and whose disk may be made full."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from datamig_nb.clone import dump_and_restore
from datamig_nb.database import Database, connect, run
from datamig_nb.errors import ServerStartError
from datamig_nb.names import quote
from datamig_nb.server import ensure_server, stop_server
from datamig_nb.supervisor import find_postmaster, serves

#: How long the processes of a server may take to end.
END_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class OwnServer:
    """A PostgreSQL beside every other, with data that nobody misses."""

    home: Path

    def start(self) -> Database:
        """Start it, or find it running; after a crash it recovers first."""
        return connect(ensure_server(self.home).url())

    def take(self, source: Database, name: str) -> Database:
        """A copy of a database of any server, without owners and privileges: the roles stay there.

        Raises
        ------
        RehearsalError
            If it cannot be copied, for example for want of an extension.
        """
        copy = self._make(name, "template0")
        dump_and_restore(source, copy, "--no-privileges")
        return copy

    def copy(self, source: Database, name: str) -> Database:
        """A copy of one of its own databases."""
        return self._make(name, str(source.url.database))

    def _make(self, name: str, template: str) -> Database:
        postgres = self.start()
        engine = postgres.engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            run(connection, f"CREATE DATABASE {quote(name)} TEMPLATE {quote(template)}")
        return postgres.at(name)

    def crash(self, number: signal.Signals) -> None:
        """End it without a checkpoint: SIGQUIT lets its sessions notice, SIGKILL nobody."""
        data, postmaster = self._running
        ended = [postmaster]
        if number == signal.SIGKILL:
            ended += self._processes()
        for pid in ended:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        _wait_until(lambda: not serves(postmaster, data))

    def stop(self) -> None:
        """Let go of it, and wait for its end."""
        with suppress(ServerStartError):  # it is gone already
            data, postmaster = self._running
            stop_server(self.home)
            _wait_until(lambda: not serves(postmaster, data))
        stop_server(self.home)

    def limit_files(self, size: int | None) -> None:
        """Let no file grow beyond so many bytes, in sessions that begin from now on.

        Raises
        ------
        ServerStartError
            If the system cannot do that to a process that runs.
        """
        data, postmaster = self._running
        program = shutil.which("prlimit")
        if program is None:
            raise ServerStartError(
                "no file can be kept from growing without the program prlimit of Linux",
                "leave out the fault 'full'",
            )
        root, owner = os.geteuid() == 0, data.stat()
        done = subprocess.run(
            [program, f"--pid={postmaster}", f"--fsize={'unlimited' if size is None else size}:"],
            user=owner.st_uid if root else None,  # not even root may, in a container
            group=owner.st_gid if root else None,
            extra_groups=[] if root else None,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ServerStartError(
                f"no file can be kept from growing: {done.stderr.strip()}",
                "leave out the fault 'full'",
            )

    @property
    def _running(self) -> tuple[Path, int]:
        for file in self.home.glob("pg*/postmaster.pid"):
            if pid := find_postmaster(file.parent, file):
                return file.parent, pid
        raise ServerStartError("the server of the rehearsal's own is gone", "see its server.log")

    def _processes(self) -> list[int]:
        with self.start().engine.connect() as connection:
            query = "SELECT pid FROM pg_stat_activity WHERE pid IS NOT NULL"
            return list(connection.execute(sa.text(query)).scalars())


@contextmanager
def own_server() -> Generator[OwnServer]:
    """A server of its own, gone at the end.

    Raises
    ------
    MissingExtraError, ServerStartError
        If no PostgreSQL is installed here, or it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="dm-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o711)  # PostgreSQL may run as another user
        server = OwnServer(home=Path(directory, "home").resolve())
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)

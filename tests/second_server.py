"""A second PostgreSQL beside that of the run: of another version, or asking for a password."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

#: Where Debian installs PostgreSQL 15, the oldest that we have to test on.
DEBIANS = Path("/usr/lib/postgresql/15/bin")


@dataclass
class SecondServer:
    """A server in a directory of its own, which can be crashed and started again."""

    url: sa.URL
    _directory: Path
    _command: list[object]
    _surroundings: dict[str, Any]
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready; after a crash it recovers first."""
        with (self._directory / "log").open("a") as log:
            self._process = subprocess.Popen(self._command, stderr=log, **self._surroundings)
        deadline = time.monotonic() + 30
        while not self._is_ready():
            assert self._process.poll() is None, "the second server ended"
            assert time.monotonic() < deadline, "the second server was not ready in time"
            time.sleep(0.02)

    def crash(self, number: signal.Signals) -> None:
        """End it without a checkpoint: SIGQUIT for an immediate stop, SIGKILL for all at once."""
        assert self._process is not None
        with_children = [self._process.pid]
        if number == signal.SIGKILL:  # each of them is in a process group of its own
            listed = subprocess.run(
                ["pgrep", "-P", str(self._process.pid)], capture_output=True, check=False
            )
            with_children += map(int, listed.stdout.split())
        for process in with_children:
            with suppress(ProcessLookupError):
                os.kill(process, number)
        self._process.wait(30)

    def stop(self) -> None:
        """End its sessions, then itself."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)

    def _is_ready(self) -> bool:
        assert self._process is not None
        file = self._directory / "data" / "postmaster.pid"
        lines = file.read_text().split("\n") if file.exists() else []
        # a crashed one leaves its file behind
        return lines[:1] == [str(self._process.pid)] and lines[7:8] == ["ready   "]


@contextmanager
def running(programs: Path, password: str | None = None) -> Generator[sa.URL]:
    """The URL of a server with a directory of its own; gone at the end.

    Without a password it listens on a socket only and trusts; with one it listens on 127.0.0.1
    too, and asks for it there.
    """
    with second_server(programs, password) as server:
        yield server.url


@contextmanager
def second_server(programs: Path, password: str | None = None) -> Generator[SecondServer]:
    """The same, for who wants to crash it."""
    directory = Path(tempfile.mkdtemp(prefix="dm2-"))
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        identity = {"user": 65534, "group": 65534, "extra_groups": []}
        os.chown(directory, 65534, 65534)
    data, port = directory / "data", _free_port()
    secret = directory / "secret"
    secret.write_text(password or "unused")
    secret.chmod(0o644)
    surroundings: dict[str, Any] = {
        "cwd": directory,
        "env": {"PATH": os.defpath, "LC_ALL": "C"},
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        **identity,
    }
    subprocess.run(
        [
            *(programs / "initdb", "-D", data, "--username=postgres", f"--pwfile={secret}"),
            *("--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"),
            *("--auth-local=trust", "--auth-host=scram-sha-256"),
        ],
        check=True,
        **surroundings,
    )
    listen = "127.0.0.1" if password else ""
    if password:
        url = sa.URL.create(
            "postgresql", "postgres", password, "127.0.0.1", port, database="postgres"
        )
    else:
        query = {"host": str(directory), "port": str(port)}
        url = sa.URL.create("postgresql", "postgres", database="postgres", query=query)
    command: list[object] = [
        *(programs / "postgres", "-D", data, "-k", directory, "-p", str(port)),
        *("-c", f"listen_addresses={listen}", "-c", "fsync=off", "-c", "timezone=UTC"),
    ]
    server = SecondServer(url, directory, command, surroundings)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]

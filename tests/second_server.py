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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

#: Where Debian installs PostgreSQL 15, the oldest that we have to test on.
DEBIANS = Path("/usr/lib/postgresql/15/bin")


@contextmanager
def running(programs: Path, password: str | None = None) -> Generator[sa.URL]:
    """A server with a directory of its own; gone at the end.

    Without a password it listens on a socket only and trusts; with one it listens on 127.0.0.1
    too, and asks for it there.
    """
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
    with (directory / "log").open("w") as log:
        server = subprocess.Popen(
            [
                *(programs / "postgres", "-D", data, "-k", directory, "-p", str(port)),
                *("-c", f"listen_addresses={listen}", "-c", "fsync=off", "-c", "timezone=UTC"),
            ],
            stderr=log,
            **surroundings,
        )
    try:
        _wait_until_ready(data / "postmaster.pid", server)
        if password:
            yield sa.URL.create(
                "postgresql", "postgres", password, "127.0.0.1", port, database="postgres"
            )
        else:
            query = {"host": str(directory), "port": str(port)}
            yield sa.URL.create("postgresql", "postgres", database="postgres", query=query)
    finally:
        server.send_signal(signal.SIGINT)  # ends its sessions, then itself
        server.wait(30)
        shutil.rmtree(directory)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _wait_until_ready(file: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while not (file.exists() and file.read_text().split("\n")[7:8] == ["ready   "]):
        assert server.poll() is None, "the second server ended"
        assert time.monotonic() < deadline, "the second server was not ready in time"
        time.sleep(0.02)

"""pgbouncer before a server: each transaction may reach another session of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamig_nb.database import Database
from tests.scratch import session

#: Debian's package pgbouncer; None where it is not installed.
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")

SETTINGS = """\
[databases]
* = host={host} port={port}

[pgbouncer]
unix_socket_dir = {directory}
listen_addr =
listen_port = 6432
auth_type = any
user =
pool_mode = transaction
server_round_robin = 1
default_pool_size = 5
min_pool_size = 3
ignore_startup_parameters = extra_float_digits
logfile = {directory}/log
"""


@contextmanager
def pooled(database: Database) -> Generator[Database]:
    """The same database through pgbouncer, which takes another session for each transaction."""
    assert PGBOUNCER is not None
    directory = Path(tempfile.mkdtemp(prefix="dmp-"))
    settings = directory / "pgbouncer.ini"
    query = database.url.query
    text = SETTINGS.format(host=query["host"], port=query["port"], directory=directory)
    settings.write_text(text.replace("* = ", f"* = user={database.url.username} "))
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:  # it does not run as root, nor does PostgreSQL, whose socket is closed
        identity = {"user": 65534, "group": 65534, "extra_groups": []}
        os.chown(directory, 65534, 65534)
    else:
        directory.chmod(0o700)
    pooler = subprocess.Popen([PGBOUNCER, "-q", settings], cwd=directory, **identity)
    try:
        deadline = time.monotonic() + 10
        while not (directory / ".s.PGSQL.6432").exists():
            assert pooler.poll() is None, "pgbouncer ended"
            assert time.monotonic() < deadline, "pgbouncer was not ready in time"
            time.sleep(0.02)
        url = database.url.set(query={"host": str(directory), "port": "6432"})
        through = Database(url=url, version=database.version)
        _open_sessions(through)
        yield through
    finally:
        pooler.terminate()
        pooler.wait(10)
        shutil.rmtree(directory)


def _open_sessions(database: Database) -> None:
    """Let pgbouncer open several sessions, so that the next transactions take turns on them."""
    with session(database) as one, session(database) as two, session(database) as three:
        for connection in (one, two, three):
            connection.execute("BEGIN")
            connection.execute("SELECT 1")
        pids = {c.execute("SELECT pg_backend_pid()").fetchone() for c in (one, two, three)}
        assert len(pids) == 3
        for connection in (one, two, three):
            connection.execute("COMMIT")

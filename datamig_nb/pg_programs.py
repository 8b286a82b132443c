"""PostgreSQL's own programs, told of a database: no password on their command line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from datamig_nb.database import Database
from datamig_nb.names import TableName, quote
from datamig_nb.server_setup import binaries


def address(db: Database) -> list[str]:
    """The words that tell pg_dump or pg_restore which database is meant."""
    # set(password=None) would leave the password as it is, and render it as ***
    url = db.url._replace(drivername="postgresql", password=None)
    return [f"--dbname={url.render_as_string()}"]


def environment(db: Database) -> dict[str, str]:
    """The environment for such a program, with the password."""
    password = {"PGPASSWORD": str(db.url.password)} if db.url.password else {}
    return {**os.environ, "LC_ALL": "C", **password}


def run_program(name: str, db: Database, *options: str | Path) -> subprocess.CompletedProcess[str]:
    """Run pg_dump or pg_restore on a database to its end, whatever that is."""
    return subprocess.run(
        [binaries() / name, *address(db), *options],
        env=environment(db),
        capture_output=True,
        text=True,
        check=False,
    )


def table_pattern(name: TableName) -> str:
    """A table as pg_dump takes it: quoted, for else its name would be a pattern."""
    return f"{quote(name.schema) if name.schema else '*'}.{quote(name.name)}"

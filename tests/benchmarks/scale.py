"""Rows a second and the client's memory from one to ten million rows."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database, run
from tests.benchmarks.backfill import STATUS, make

#: Rows of the tables, as multiples of the rows that are asked for.
SIZES = (1, 2, 5, 10)

# Alembic in a process of its own, which tells its largest memory in KB at its end.
_PROGRAM = """
import resource, sys
from alembic.config import main
main(argv=["-c", sys.argv[1], "upgrade", "head"])
print("memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measure(database: Database, rows: int) -> None:
    """Print rows a second of the walk and memory of Alembic's process for each size."""
    for times in SIZES:
        with database.engine.connect() as connection:
            make(connection, rows * times)
            size = run(connection, "SELECT pg_relation_size('account') / 1e6").scalar_one()
        seconds, memory = _upgrade(database)
        print(
            f"{rows * times:12,} rows, {size:7,.0f} MB: {seconds:7.1f} s,"
            f" {rows * times / seconds:9,.0f} rows/s, client {memory:.0f} MB",
            flush=True,
        )


def _upgrade(database: Database) -> tuple[float, float]:
    state = dm.add_column("account", sa.Column("state", sa.Text()))
    migration = dm.Migration("map", state, dm.backfill("account", {"state": STATUS}))
    with tempfile.TemporaryDirectory() as directory:
        ini = dm.create_project(directory)
        path = Path(directory, "alembic", "versions", "it.py")
        path.write_text(dm.render(database, migration).text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, ini],
            env={**os.environ, "DATABASE_URL": database.dsn},
            check=True,
            capture_output=True,
            text=True,
        )
    memory = int(done.stdout.split("memory ")[1]) / 1024
    with database.engine.connect() as connection:
        query = "SELECT extract(epoch FROM heartbeat_at - started_at) FROM datamig.run"
        return float(run(connection, f"{query} WHERE part = 1").scalar_one()), memory

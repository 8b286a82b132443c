"""A status mapped by the exported revision, against the same as one UPDATE in one transaction."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database, run

_MAP: dict[str | None, str | None] = {
    "enabled": "active",
    "disabled": "inactive",
    "suspended": "inactive",
    "pending_activation": "pending",
}
_RUNS = 3

# About 240 bytes a row, a primary key and one more index.
_TABLE = """
DROP TABLE IF EXISTS account;
CREATE TABLE account (
    id bigint PRIMARY KEY, owner integer, region integer, status text, note text, email text,
    amount numeric, created_at timestamptz, active boolean, remark text
);
INSERT INTO account
SELECT n, n % 1000, n % 77,
       (ARRAY['enabled', 'disabled', 'suspended', 'pending_activation'])[1 + n % 4],
       md5(n::text), 'User' || n || '@Example.com', n * 1.1,
       timestamptz '2024-01-01 00:00+00' + n * interval '1 minute', n % 2 = 0, repeat('x', 60)
  FROM generate_series(1, {rows}) AS n;
CREATE INDEX ON account (owner);
"""


def measure(database: Database, rows: int) -> None:
    """Print seconds, ratio, growth of the heap and WAL bytes a row of both ways."""
    migration = dm.map_values("account", "status", _MAP, into="state")
    expression = migration.backfills[0].assign["state"]
    ratios: list[float] = []
    for _ in range(_RUNS):
        single, expected = _single_update(database, rows, expression)
        batches, found = _revision(database, rows, migration)
        assert found == expected, "the two results differ"
        ratios.append(batches / single)
    print(f"revision / single UPDATE: median {statistics.median(ratios):.2f} of {_RUNS} runs")


def _single_update(database: Database, rows: int, expression: str) -> tuple[float, str]:
    with database.engine.connect() as connection:
        _make(connection, rows)
        run(connection, "ALTER TABLE account ADD COLUMN state varchar")
        connection.commit()
        before, wal = _size(connection), _wal(connection)
        started = time.perf_counter()
        run(connection, f"UPDATE account SET state = {expression}")
        connection.commit()
        seconds = time.perf_counter() - started
        _print("single UPDATE", seconds, connection, before, wal, rows)
        return seconds, _hash(connection)


def _revision(database: Database, rows: int, migration: dm.Migration) -> tuple[float, str]:
    with database.engine.connect() as connection:
        _make(connection, rows)
        run(connection, "DROP TABLE IF EXISTS alembic_version")
        run(connection, "DROP SCHEMA IF EXISTS datamig CASCADE")
        connection.commit()
        before, wal = _size(connection), _wal(connection)
        _upgrade(database, dm.render(database, migration))
        seconds = float(run(connection, _SECONDS).scalar_one())
        _print("revision's batches", seconds, connection, before, wal, rows)
        return seconds, _hash(connection)


def _upgrade(database: Database, revision: dm.Revision) -> None:
    with tempfile.TemporaryDirectory() as directory:
        ini = dm.create_project(directory)
        versions = Path(directory, "alembic", "versions")
        (versions / f"{revision.id}.py").write_text(revision.text, encoding="utf-8")
        subprocess.run(
            [sys.executable, "-m", "alembic", "-c", ini, "upgrade", "head"],
            env={**os.environ, "DATABASE_URL": database.dsn},
            check=True,
            capture_output=True,
        )


# The time of the batches alone: Alembic's own start is no part of it.
_SECONDS = """
SELECT extract(epoch FROM heartbeat_at - started_at) FROM datamig.run WHERE step <> ''
"""


def _make(connection: sa.Connection, rows: int) -> None:
    run(connection, _TABLE.format(rows=rows))
    connection.commit()
    vacuum = connection.execution_options(isolation_level="AUTOCOMMIT")
    run(vacuum, "VACUUM ANALYZE account")
    run(vacuum, "CHECKPOINT")


def _size(connection: sa.Connection) -> int:
    return int(run(connection, "SELECT pg_relation_size('account')").scalar_one())


def _wal(connection: sa.Connection) -> str:
    return str(run(connection, "SELECT pg_current_wal_insert_lsn()").scalar_one())


def _hash(connection: sa.Connection) -> str:
    """The whole table, in no order."""
    query = "SELECT sum(hashtextextended(account::text, 0)::numeric)::text FROM account"
    return str(run(connection, query).scalar_one())


def _print(
    what: str, seconds: float, connection: sa.Connection, before: int, wal: str, rows: int
) -> None:
    query = f"SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{wal}')"
    written = float(run(connection, query).scalar_one()) / rows
    growth = _size(connection) / before - 1
    print(
        f"{what:20} {seconds:7.2f} s, heap {growth:+.0%}, {written:.0f} bytes of WAL a row",
        flush=True,
    )

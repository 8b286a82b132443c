"""What tests of revisions that run share: how a run ended, how far it came, who is in its way."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg

from datamig_nb.database import Database
from tests.alembic_project import Outcome
from tests.scratch import query, session


def small_batches(rows: int) -> Mapping[str, object]:
    """Settings of a revision: batches of so many rows, and the client asks for each."""
    return {
        "FIRST_BATCH_ROWS": rows,
        "LEAST_BATCH_ROWS": rows,
        "MOST_BATCH_ROWS": rows,
        "JOINED_BATCH_ROWS": rows,
        "STRETCH_SECONDS": 0,
    }


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Ask again and again until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def ok(outcome: Outcome) -> Outcome:
    """The outcome of a run that must have arrived."""
    assert outcome.code == 0, outcome.log
    return outcome


def version(database: Database) -> list[str]:
    """What Alembic believes; nothing where it has no table yet."""
    there = query(database, "SELECT to_regclass('alembic_version') IS NOT NULL") == [True]
    return query(database, "SELECT version_num FROM alembic_version") if there else []


def scanned(database: Database) -> int:
    """Rows that the walks noted so far."""
    total = "SELECT coalesce(sum(scanned), 0)::int FROM datamig.run"
    with session(database) as connection:
        there = connection.execute("SELECT to_regclass('datamig.run') IS NOT NULL").fetchone()
        found = connection.execute(total).fetchone() if there == (True,) else None
    return found[0] if found else 0


def walks(database: Database) -> list[Any]:
    """Status, rows scanned, rows changed and batches of each walk."""
    return query(
        database,
        "SELECT status, scanned, changed, batches FROM datamig.run WHERE part > 0 ORDER BY step",
    )


@contextmanager
def held(database: Database, *statements: str) -> Generator[psycopg.Connection[Any]]:
    """Another session, in the middle of a transaction that sent the statements."""
    with session(database) as connection:
        connection.execute("BEGIN")
        for statement in statements:
            connection.execute(statement.encode())
        yield connection

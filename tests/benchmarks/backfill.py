"""Backfills by the exported revision, each against the same change as one UPDATE.

Seconds are those of the walk alone, from its row in datamig.run: the start of Python and Alembic,
the checks and the trigger are no part of it.  Both ways are measured in turn, RUNS times; equal
contents of the whole table are checked first, and the ratio is that of the medians.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database, run

RUNS = 3

# About 170 bytes a row, a primary key and one more index.
TABLE = """
DROP TABLE IF EXISTS account, category;
CREATE TABLE account (
    id bigint PRIMARY KEY, owner integer, category_id integer, status text, name text, email text,
    amount numeric, created_at timestamptz, active boolean, remark text
);
INSERT INTO account
SELECT n, n % 1000, n % 500,
       (ARRAY['enabled', 'disabled', 'suspended', 'pending_activation'])[1 + n % 4],
       'First' || n || ' Middle Last' || n, ' User' || n || '@Example.com', n * 1.1,
       timestamptz '2024-01-01 00:00+00' + n * interval '1 minute', n % 2 = 0, repeat('x', 60)
  FROM generate_series(1, {rows}) AS n;
CREATE INDEX ON account (created_at);
CREATE TABLE category (id integer PRIMARY KEY, new_id integer, label text);
INSERT INTO category SELECT n, 1000 - n, 'label ' || n FROM generate_series(0, 499) AS n;
ANALYZE category
"""

STATUS = (
    "CASE WHEN status = 'enabled' THEN 'active' WHEN status IN ('disabled', 'suspended')"
    " THEN 'inactive' WHEN status = 'pending_activation' THEN 'pending' END"
)
FIRST = "split_part(btrim(name), ' ', 1)"
LAST = f"nullif(btrim(substr(btrim(name), length({FIRST}) + 1)), '')"
REMAP = "(SELECT new_id FROM category WHERE id = account.category_id)"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A change, and how it is made."""

    name: str
    #: New columns with their types, and what fills them.
    columns: dict[str, tuple[sa.types.TypeEngine[object], str]]
    using: str | None = None
    on: str | None = None
    trigger: bool = False
    backup: str | None = None
    connections: int = 1
    #: False takes the weaving out of the file, to see what it gains.
    woven: bool = True
    goal: float

    def migration(self) -> dm.Migration:
        """The change as a migration."""
        assign = {column: text for column, (_, text) in self.columns.items()}
        steps = [
            dm.add_column("account", sa.Column(column, type))
            for column, (type, _) in self.columns.items()
            if column != self.backup
        ]
        if self.trigger:
            steps.append(dm.keep_in_step("account", assign))
        if self.backup:
            steps.append(dm.back_up("account", self.backup))
        fill = dm.backfill(
            "account", assign, using=self.using, on=self.on, connections=self.connections
        )
        steps.append(fill)
        return dm.Migration(self.name, *steps)

    def single(self) -> str:
        """The change as one UPDATE."""
        sets = ", ".join(f"{column} = {text}" for column, (_, text) in self.columns.items())
        source = f" FROM {self.using} WHERE {self.on}" if self.using else ""
        return f"UPDATE account SET {sets}{source}"


MAP = {"state": (sa.Text(), STATUS)}
CASES = (
    Case(name="map a status, range batches", columns=MAP, woven=False, goal=1.05),
    Case(name="map a status, woven", columns=MAP, goal=0.70),
    Case(name="map a status, woven, two connections", columns=MAP, connections=2, goal=0.50),
    Case(
        name="split a name, woven",
        columns={"first_name": (sa.Text(), FIRST), "last_name": (sa.Text(), LAST)},
        goal=0.80,
    ),
    Case(
        name="normalise an e-mail, woven",
        columns={"email_normal": (sa.Text(), "lower(btrim(email))")},
        goal=0.80,
    ),
    Case(
        name="remap a foreign key, woven",
        columns={"new_category_id": (sa.Integer(), REMAP)},
        goal=0.80,
    ),
    Case(
        name="update through a join",
        columns={"label": (sa.Text(), "c.label")},
        using="category AS c",
        on="c.id = account.category_id",
        goal=1.05,
    ),
    Case(name="map a status, trigger in place, woven", columns=MAP, trigger=True, goal=1.1),
    Case(
        name="map a status in place, old and new value kept",
        columns={"status": (sa.Text(), STATUS)},
        backup="status",
        goal=1.5,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one run of one way cost."""

    seconds: float
    growth: float
    wal_bytes: float


def measure(database: Database, rows: int) -> None:
    """Print, for each case, the ratio to the single UPDATE, and growth and WAL of both."""
    print(f"{'':46} ratio  goal   single       ours   heap         WAL bytes a row")
    for case in CASES:
        ours: list[Figures] = []
        single: list[Figures] = []
        for _ in range(RUNS):
            expected, figures = _way(database, rows, lambda c=case: _single(database, c))
            single.append(figures)
            found, figures = _way(database, rows, lambda c=case: revision(database, c))
            ours.append(figures)
            assert found == expected, f"{case.name}: the two results differ"
        a, b = (statistics.median(f.seconds for f in each) for each in (single, ours))
        print(
            f"{case.name:46} {b / a:5.2f} {case.goal:5.2f} {a:7.2f} s {b:7.2f} s"
            f"   {single[0].growth:+.0%} {ours[0].growth:+.0%}"
            f"   {single[0].wal_bytes:.0f} {ours[0].wal_bytes:.0f}",
            flush=True,
        )


def _way(database: Database, rows: int, work: Callable[[], float]) -> tuple[str, Figures]:
    with database.engine.connect() as connection:
        make(connection, rows)
        before, wal = _size(connection), _position(connection)
        connection.commit()
        seconds = work()
        query = f"SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{wal}')"
        return _hash(connection), Figures(
            seconds=seconds,
            growth=_size(connection) / before - 1,
            wal_bytes=float(run(connection, query).scalar_one()) / rows,
        )


def _single(database: Database, case: Case) -> float:
    with database.engine.connect() as connection:
        for column, (type, _) in case.columns.items():
            if column != case.backup:
                run(connection, f"ALTER TABLE account ADD COLUMN {column} {type}")
        connection.commit()
        started = time.perf_counter()
        run(connection, case.single())
        connection.commit()
        return time.perf_counter() - started


def revision(database: Database, case: Case) -> float:
    """Run the case's exported file, give the seconds of its walk."""
    text = dm.render(database, case.migration()).text
    if not case.woven:
        text = re.sub(r',?\s*woven="\w+"', "", text)
    upgrade(database, text)
    with database.engine.connect() as connection:
        return float(run(connection, _SECONDS).scalar_one())


def upgrade(database: Database, text: str) -> None:
    """Run a revision's text by Alembic, in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        ini = dm.create_project(directory)
        Path(directory, "alembic", "versions", "it.py").write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "alembic", "-c", ini, "upgrade", "head"],
            env={**os.environ, "DATABASE_URL": database.dsn},
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]


_SECONDS = """
SELECT extract(epoch FROM max(heartbeat_at) - min(started_at)) FROM datamig.run WHERE part > 0
"""


def make(connection: sa.Connection, rows: int) -> None:
    """The tables as they are before, vacuumed, and nothing of an earlier run."""
    for statement in TABLE.format(rows=rows).split(";"):
        run(connection, statement)
    run(connection, "DROP TABLE IF EXISTS alembic_version")
    run(connection, "DROP SCHEMA IF EXISTS datamig CASCADE")
    connection.commit()
    vacuum = connection.execution_options(isolation_level="AUTOCOMMIT")
    run(vacuum, "VACUUM ANALYZE account")
    run(vacuum, "CHECKPOINT")


def _size(connection: sa.Connection) -> int:
    return int(run(connection, "SELECT pg_relation_size('account')").scalar_one())


def _position(connection: sa.Connection) -> str:
    return str(run(connection, "SELECT pg_current_wal_insert_lsn()").scalar_one())


def _hash(connection: sa.Connection) -> str:
    """The whole table, in no order."""
    query = "SELECT sum(hashtextextended(account::text, 0)::numeric)::text FROM account"
    return str(run(connection, query).scalar_one())

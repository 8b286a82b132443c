"""Backfills by the exported revision, each against the same change as one UPDATE.

Seconds are those of the walk alone, from its row in datamig.run: the start of Python and Alembic,
the checks and the trigger are no part of it.  Both ways are measured in turn; equal contents of the
whole table are checked first, and the ratios are those of the medians.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database, run
from tests.benchmarks import cost
from tests.benchmarks.cost import Subject, Work

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
ANEW = f"""
LOCK TABLE account IN SHARE MODE;
CREATE TABLE account_anew AS SELECT *, {STATUS} AS state FROM account;
ALTER TABLE account_anew ADD PRIMARY KEY (id);
CREATE INDEX ON account_anew (created_at);
DROP TABLE account;
ALTER TABLE account_anew RENAME TO account
"""
REMAP = "(SELECT new_id FROM category WHERE id = account.category_id)"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A change, and how it is made."""

    name: str
    #: New columns with their types, and what fills them.
    columns: Mapping[str, tuple[sa.types.TypeEngine[Any], str]]
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
        steps: list[Any] = [
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


ANEW = "map a status, the table written anew"


def measure(database: Database, rows: int, *only: str) -> None:
    """Print, for each case, the ratios to the single UPDATE, and growth and WAL of both.

    ``only`` are words, one of which the name of a case must hold.
    """
    chosen = only or ("",)
    subject = Subject(database=database, table="account", rows=rows, make=make)
    print(cost.header())
    for case in (case for case in CASES if any(word in case.name for word in chosen)):
        one, ours = partial(single, database, case), partial(revision, database, case)
        print(cost.compare(case.name, case.goal, subject, one, ours), flush=True)
    if any(word in ANEW for word in chosen):
        one, anew = partial(single, database, CASES[0]), partial(_anew, database)
        print(cost.compare(ANEW, 0.50, subject, one, anew))


def single(database: Database, case: Case) -> Work:
    """Make the case's change by one UPDATE."""
    with database.engine.connect() as connection:
        for column, (type, _) in case.columns.items():
            if column != case.backup:
                run(connection, f"ALTER TABLE account ADD COLUMN {column} {type}")
        connection.commit()
        started = time.perf_counter()
        run(connection, case.single())
        connection.commit()
        return Work(seconds=time.perf_counter() - started)


def _anew(database: Database) -> Work:
    """The mapped status by CREATE TABLE AS, its indexes, and a swap of names."""
    started = time.perf_counter()
    with database.engine.begin() as connection:
        for statement in ANEW.split(";"):
            run(connection, statement)
    return Work(seconds=time.perf_counter() - started)


def revision(database: Database, case: Case) -> Work:
    """Run the case's exported file."""
    text = dm.render(database, case.migration()).text
    if not case.woven:
        text = re.sub(r',?\s*woven="\w+"', "", text)
    return cost.upgrade(database, text)


def make(connection: sa.Connection, rows: int) -> None:
    """The tables as they are before."""
    for statement in TABLE.format(rows=rows).split(";"):
        run(connection, statement)

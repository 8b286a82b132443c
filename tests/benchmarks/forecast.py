"""Forecasts held against the truth: measured on 5 % of the rows, then run on all of them.

Seconds are those of a noisy machine where others are at work; WAL and disk are not.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.alembic_runs import runner_for
from datamig_nb.database import Database, run
from datamig_nb.forecast import Forecast, Range, estimated_rows, forecast
from datamig_nb.measure import Measured
from datamig_nb.meter import measuring
from datamig_nb.migration import Step
from datamig_nb.render import Revision, render
from tests.benchmarks.backfill import FIRST, LAST, STATUS, make
from tests.benchmarks.cost import settle

#: Rows that the forecast is for at most, so that all is done in some minutes; one in TIMES is
#: what it is made from.
ROWS, TIMES = 200_000, 20

_WIDER = "ALTER TABLE account ALTER remark SET STORAGE PLAIN; UPDATE account SET remark = {}"


def _state(*steps: Step) -> tuple[Step, ...]:
    fill = {"state": STATUS}
    add = dm.add_column("account", sa.Column("state", sa.Text()))
    return (add, *steps, dm.backfill("account", fill))


def _tidy(email: str) -> str:
    return email.strip().lower()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A migration, and what its table is like."""

    name: str
    steps: tuple[Step, ...]
    #: Statements that change the table beforehand.
    table: str = ""


CASES = (
    Case(name="map a status", steps=_state()),
    Case(
        name="map a status, rows of 1 KB", steps=_state(), table=_WIDER.format("repeat('x', 1000)")
    ),
    Case(
        name="map a status, narrow rows", steps=_state(), table=_WIDER.format("NULL, email = NULL")
    ),
    Case(
        name="split a name",
        steps=(
            dm.add_column("account", sa.Column("first_name", sa.Text())),
            dm.add_column("account", sa.Column("last_name", sa.Text())),
            dm.backfill("account", {"first_name": FIRST, "last_name": LAST}),
        ),
    ),
    Case(
        name="from another table",
        steps=(
            dm.add_column("account", sa.Column("label", sa.Text())),
            dm.backfill(
                "account",
                {"label": "c.label"},
                using="category AS c",
                on="c.id = account.category_id",
            ),
        ),
    ),
    Case(
        name="rows into a new table",
        steps=(
            dm.create_table(
                "contact",
                sa.Column("account_id", sa.BigInteger(), primary_key=True),
                sa.Column("email", sa.Text()),
            ),
            dm.insert_rows(
                "contact",
                "SELECT id AS account_id, lower(email) AS email FROM account",
                key="account_id",
            ),
        ),
    ),
    Case(name="delete a third, kept", steps=(dm.delete_rows("account", "id % 3 = 0"),)),
    Case(
        name="in Python",
        steps=(
            dm.add_column("account", sa.Column("tidy", sa.Text())),
            dm.transform("account", _tidy, reads=["email"], writes=["tidy"]),
        ),
    ),
    Case(
        name="in place, old values kept",
        steps=(
            dm.back_up("account", "status"),
            dm.backfill("account", {"status": STATUS}, where="status <> 'pending'"),
        ),
    ),
    Case(
        name="NOT NULL in stages, trigger",
        steps=(
            *_state(dm.keep_in_step("account", {"state": STATUS})),
            dm.no_nulls("account", "state"),
            dm.alter_column("account", "state", nullable=False),
        ),
    ),
    Case(
        name="a column that is indexed",
        steps=(dm.backfill("account", {"created_at": "created_at + interval '1 hour'"}),),
    ),
    Case(
        name="index and CHECK",
        steps=(
            *_state(),
            dm.create_index("account_state", "account", ["state"]),
            dm.create_check_constraint("state_known", "account", "state <> ''"),
        ),
    ),
)

_FIGURES: Mapping[str, tuple[Callable[[Measured], float], Callable[[Forecast], Range], float]] = {
    "seconds": (lambda found: found.seconds, lambda told: told.seconds, 1.0),
    "MB of WAL": (lambda found: found.wal_bytes, lambda told: told.wal_bytes, 1e-6),
    "MB of disk": (lambda found: found.peak_bytes, lambda told: told.disk_bytes, 1e-6),
}


def measure(database: Database, rows: int) -> None:
    """Print each forecast beside what came, and in how many cases its range held the truth."""
    rows = min(rows, ROWS)
    print(f"from {rows // TIMES:,} rows to {rows:,}; load {os.getloadavg()[0]:.1f}")
    held: Counter[str] = Counter()
    for case in CASES:
        small, here = _upgrade(database, case, rows // TIMES)
        large, there = _upgrade(database, case, rows)
        told = forecast(small, here, there)
        said: list[str] = []
        for name, (measured, foretold, unit) in _FIGURES.items():
            truth, told_range = measured(large), foretold(told)
            held[name] += told_range.holds(truth)
            said.append(
                f"{told_range.low * unit:7.1f} {told_range.likely * unit:7.1f}"
                f" {told_range.high * unit:7.1f} ? {truth * unit:7.1f}"
                f" {'held ' if told_range.holds(truth) else 'NOT  '}"
            )
        print(f"{case.name:30}{' | '.join(said)}", flush=True)
    for name, times in held.items():
        print(f"{name}: the range held the truth in {times} of {len(CASES)} cases")


def _upgrade(database: Database, case: Case, rows: int) -> tuple[Measured, dict[str, int]]:
    """What the case costs on so many rows, and the rows of the tables before."""
    with database.engine.connect() as connection:
        run(connection, "DROP TABLE IF EXISTS datamig_rehearsal_version, contact")
        make(connection, rows)
        for statement in filter(None, case.table.split(";")):
            run(connection, statement)
        connection.commit()
        if case.table:  # the table as if it had been so from the beginning
            alone = connection.execution_options(isolation_level="AUTOCOMMIT")
            run(alone, "VACUUM FULL account")
    with database.engine.connect() as connection:
        settle(connection, "account")
    revision: Revision = render(database, dm.Migration(case.name, *case.steps))
    counted = estimated_rows(database)
    with runner_for(revision, database, lambda _: None) as runner:
        with measuring(database) as meter:
            done = runner.run("upgrade", revision.id)
        assert done.passed, done.message
    return meter.measured("upgrade", done), counted

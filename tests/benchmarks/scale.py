"""Rows a second and the client's memory from one to ten million rows, beyond shared_buffers too."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database, run
from tests.benchmarks import backfill, cost, transform
from tests.benchmarks.cost import Work

#: Rows of the tables, as multiples of the rows that are asked for.
SIZES = (1, 2, 5, 10)


def measure(database: Database, rows: int) -> None:
    """Print rows a second of each walk and the memory of Alembic's process for each size."""
    with database.engine.connect() as connection:
        buffers = run(connection, "SHOW shared_buffers").scalar_one()
    print(f"| rows, shared_buffers {buffers} | heap | seconds | rows/s | to the first | client |")
    print("|---" * 6 + "|")
    _walks(database, rows, SIZES, "account", backfill.make, _map)
    _walks(database, rows, (1, 10), "large_table", transform.make, transform.revision)


def _walks(
    database: Database,
    rows: int,
    sizes: tuple[int, ...],
    table: str,
    make: Callable[[sa.Connection, int], None],
    upgrade: Callable[[Database], Work],
) -> None:
    first = 0.0
    for count in (rows * times for times in sizes):
        with database.engine.connect() as connection:
            make(connection, count)
            cost.settle(connection, table)
            size = run(connection, f"SELECT pg_relation_size('{table}') / 1e6").scalar_one()
        done = upgrade(database)
        pace = count / done.seconds
        first = first or pace
        print(
            f"| {count:,} of {table} | {size:,.0f} MB | {done.seconds:.1f} | {pace:,.0f}"
            f" | {pace / first:.0%} | {done.client_mb:.0f} MB |",
            flush=True,
        )


def _map(database: Database) -> Work:
    state = dm.add_column("account", sa.Column("state", sa.Text()))
    migration = dm.Migration("map", state, dm.backfill("account", {"state": backfill.STATUS}))
    return cost.upgrade(database, dm.render(database, migration).text)

"""Run the measurements: ``python -m tests.benchmarks [NAME …] [--rows N]``.

``cases --only 08 11`` takes these of the cases, ``backfill`` and ``limits`` those with the word.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Generator
from contextlib import contextmanager

from datamig_nb.database import Database, connect

_ALL = (
    "backfill",
    "batches",
    "cases",
    "forecast",
    "latency",
    "limits",
    "scale",
    "profile",
    "rehearsal",
    "transform",
)


@contextmanager
def _database() -> Generator[Database]:
    """An empty database on the embedded server."""
    database = connect().at("benchmark")
    engine = database.at("postgres").engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE IF EXISTS benchmark WITH (FORCE)")
        connection.exec_driver_sql("CREATE DATABASE benchmark TEMPLATE template0")
    yield database
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE benchmark WITH (FORCE)")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("names", nargs="*", choices=[*_ALL, []], default=_ALL)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="+", default=[], help="beginnings of names of cases")
    given = parser.parse_args()
    for name in given.names:
        print(f"== {name}, {given.rows:,} rows", flush=True)
        with _database() as database:
            importlib.import_module(f"tests.benchmarks.{name}").measure(
                database, given.rows, *given.only
            )


if __name__ == "__main__":
    main()

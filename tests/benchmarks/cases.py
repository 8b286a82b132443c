"""Real migrations, judged by their oracles, with many rows."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import datamig_nb as dm
from datamig_nb.database import Database
from tests.alembic_project import make_project
from tests.cases.harness import CASES, Case
from tests.scratch import query, scratch_database


def measure(database: Database, rows: int, *only: str) -> None:
    """Print, as each case ends, seconds of upgrade and plain reference, and what the oracle says.

    ``only`` are the beginnings of names of cases; all by default.  Both runs find a table as
    autovacuum leaves it.  One database is there at a time.
    """
    for case in CASES:
        if only and not case.description.name.startswith(only):
            continue
        with _loaded(database, case, rows) as described:
            began = time.monotonic()
            query(described, (case.description / "reference.sql").read_text(encoding="utf-8"))
            reference = time.monotonic() - began
        with _loaded(database, case, rows) as migrated:
            seconds, log = _upgrade(case, migrated)
            failures = [f"it stopped | {log[-500:]}"] if log else case.failures(migrated)
            areas = Counter(failure.partition(" | ")[0] for failure in failures)
            judged = ", ".join(f"{areas[area]} {area}" for area in ("data", "schema", "efficiency"))
            checked = case.migration.checks and not log
            held = not checked or dm.validate(migrated, case.migration).passed
            print(
                f"{case.description.name:36} {seconds:7.1f} s, reference {reference:6.1f} s"
                f" ({seconds / reference:4.1f}), oracle: {judged}, checks"
                f" {'hold' if held else 'FAIL'}",
                *failures,
                sep="\n    ",
                flush=True,
            )


@contextmanager
def _loaded(database: Database, case: Case, rows: int) -> Generator[Database]:
    """A database with the case's tables, vacuumed and analysed, dropped at the end."""
    with scratch_database(database) as made:
        case.load(made, rows)
        query(made, "VACUUM (ANALYZE)")
        query(made, "CHECKPOINT")
        yield made


def _upgrade(case: Case, database: Database) -> tuple[float, str]:
    """Seconds of ``alembic upgrade head``, and its log where it did not arrive."""
    with tempfile.TemporaryDirectory() as directory:
        project = make_project(Path(directory, "project"))
        project.add(dm.render(database, case.migration))
        began = time.monotonic()
        with project.start(database, "upgrade", "head") as running:
            outcome = running.end(seconds=3600)
        return time.monotonic() - began, outcome.log if outcome.code else ""

"""Real migrations, judged by their oracles, with many rows."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import datamig_nb as dm
from datamig_nb.database import Database
from tests.alembic_project import make_project
from tests.cases.harness import CASES, Case
from tests.scratch import query, scratch_database


def measure(database: Database, rows: int) -> None:
    """Print seconds of the upgrade and of the plain reference, and what the oracle finds wrong."""
    for case in CASES:
        with scratch_database(database) as described:
            case.load(described, rows)
            began = time.monotonic()
            query(described, (case.description / "reference.sql").read_text(encoding="utf-8"))
            reference = time.monotonic() - began
        with scratch_database(database) as migrated:
            case.load(migrated, rows)
            seconds, log = _upgrade(case, migrated)
            failures = ["it stopped", log[-500:]] if log else case.failures(migrated)
            checked = case.migration.checks and not log
            held = not checked or dm.validate(migrated, case.migration).passed
            print(
                f"{case.description.name:36} {seconds:7.1f} s, reference {reference:6.1f} s,"
                f" oracle: {len(failures)} rows, checks {'hold' if held else 'FAIL'}",
                *failures,
                sep="\n    ",
                flush=True,
            )


def _upgrade(case: Case, database: Database) -> tuple[float, str]:
    """Seconds of ``alembic upgrade head``, and its log where it did not arrive."""
    with tempfile.TemporaryDirectory() as directory:
        project = make_project(Path(directory, "project"))
        project.add(dm.render(database, case.migration))
        began = time.monotonic()
        with project.start(database, "upgrade", "head") as running:
            outcome = running.end(seconds=3600)
        return time.monotonic() - began, outcome.log if outcome.code else ""

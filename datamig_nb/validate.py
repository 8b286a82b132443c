"""Is the data right? Checks as queries of failing rows, several in one pass where they can be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import sqlalchemy as sa

from datamig_nb import statements, step_effects
from datamig_nb.checks import Check, RowCheck
from datamig_nb.database import STATEMENT_TIMEOUT_SECONDS, Database, run
from datamig_nb.display import Shown, counted
from datamig_nb.errors import MigrationError
from datamig_nb.migration import Migration, added_columns
from datamig_nb.names import TableName
from datamig_nb.tables import read_table

#: How many failing rows a report names for each check.
KEYS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What one check found."""

    #: What holds when the check passes, in words.
    name: str
    failing_rows: int
    #: Names of the values in ``keys``.
    key_columns: tuple[str, ...]
    #: The first failing rows, at most KEYS_SHOWN, in key order.
    keys: tuple[tuple[Any, ...], ...]

    @property
    def passed(self) -> bool:
        """Whether no row fails."""
        return self.failing_rows == 0


@dataclass(frozen=True, kw_only=True)
class ValidationReport(Shown):
    """Every check of a migration, with what it found."""

    #: Name of the migration.
    migration: str
    results: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(result.passed for result in self.results)

    @property
    def summary(self) -> str:
        """The report in one line of words."""
        failed = sum(not result.passed for result in self.results)
        return f"{counted(len(self.results) - failed, 'check')} passed, {failed} failed"

    @property
    def frame(self) -> pd.DataFrame:
        """One row a check: ``check``, ``passed``, ``failing_rows``, ``keys`` (list of tuples)."""
        return pd.DataFrame(
            [(r.name, r.passed, r.failing_rows, list(r.keys)) for r in self.results],
            columns=["check", "passed", "failing_rows", "keys"],
        )

    def __repr__(self) -> str:
        lines = [f"ValidationReport of {self.migration!r}: {self.summary}"]
        for result in self.results:
            lines.append(f"  {'passed' if result.passed else 'FAILED'}  {result.name}")
            if not result.passed:
                first = ", ".join(map(str, result.keys))
                lines.append(f"          {result.failing_rows} rows, the first: {first}")
        return "\n".join(lines)


def validate(
    db: Database,
    migration: Migration,
    *,
    timeout_seconds: float = STATEMENT_TIMEOUT_SECONDS,
) -> ValidationReport:
    """Check the result of a migration that ran, in one snapshot, without writing.

    Checks over the rows of the same table are counted in one pass; keys are looked up for failing
    checks only.  A check that reads what a later step drops cannot be asked again, and is left out.

    Raises
    ------
    MigrationError
        If the migration has no checks, or its columns are not there: it did not run here.
    QueryError
        If a check's SQL does not work, or takes longer than ``timeout_seconds``.
    """
    checks = tuple(c for c in migration.checks if not c.before and not _reads_gone(c, migration))
    if not checks:
        kind = " that can be asked behind it" if migration.checks else ""
        raise MigrationError(
            f"migration {migration.name!r} has no checks{kind}", "add some, such as no_nulls()"
        )
    with db.read_only("validating", timeout_seconds=timeout_seconds) as connection:
        keys = {
            name: read_table(connection, name).key
            for name in dict.fromkeys(c.table for c in checks if isinstance(c, RowCheck))
        }
        _require_upgraded(connection, migration)
        counts = _counts(connection, checks)
        results = tuple(
            _result(connection, check, keys, counts.get(number))
            for number, check in enumerate(checks)
        )
    return ValidationReport(migration=migration.name, results=results)


def _reads_gone(check: Check, migration: Migration) -> bool:
    """Whether a step behind the check drops or renames what it reads."""
    place = next((n for n, step in enumerate(migration.steps) if step is check), None)
    later = () if place is None else migration.steps[place + 1 :]
    things = (thing for step in later for thing in step_effects.freed(step))
    gone = {part or name.name for kind, name, part in things if kind in ("relation", "column")}
    return bool(gone & statements.names_in(check.failing))


def _require_upgraded(connection: sa.Connection, migration: Migration) -> None:
    for name, columns in added_columns(migration).items():
        table = read_table(connection, name)
        for column in columns:
            if not table.has(column):
                raise MigrationError(
                    f"table {str(name)!r} has no column {column!r}: the migration did not run here",
                    "run 'alembic upgrade head' on this database first",
                )


def _counts(connection: sa.Connection, checks: Sequence[Check]) -> dict[int, int]:
    """Failing rows of the row checks, by their place: one pass over each table."""
    together: dict[TableName, list[tuple[int, RowCheck]]] = defaultdict(list)
    for number, check in enumerate(checks):
        if isinstance(check, RowCheck):
            together[check.table].append((number, check))
    counts: dict[int, int] = {}
    for group in together.values():
        row = run(connection, statements.count_failing([check for _, check in group])).one()
        counts.update(zip((number for number, _ in group), row, strict=True))
    return counts


def _result(
    connection: sa.Connection,
    check: Check,
    keys: dict[TableName, tuple[str, ...]],
    counted: int | None,
) -> CheckResult:
    if counted == 0:
        return CheckResult(name=check.name, failing_rows=0, key_columns=(), keys=())
    failing = statements.failing_rows(
        check, keys[check.table] if isinstance(check, RowCheck) else ()
    )
    found = run(connection, f"SELECT * FROM (\n{failing}\n) AS failing LIMIT {KEYS_SHOWN}")
    columns, rows = tuple(found.keys()), found.all()
    if counted is None:
        counted = len(rows)
        if counted == KEYS_SHOWN:
            all_rows = f"SELECT count(*) FROM (\n{failing}\n) AS failing"
            counted = int(run(connection, all_rows).scalar_one())
    return CheckResult(
        name=check.name,
        failing_rows=counted,
        key_columns=columns,
        keys=tuple(tuple(row) for row in rows),
    )

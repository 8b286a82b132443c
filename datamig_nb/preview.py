"""What would a migration do to the data, and what would it break?  Nothing is written.

The migration's own expressions are evaluated over the rows as they are: what is shown is what the
batches will write.  Its checks are evaluated over that result, before there is one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import sqlalchemy as sa
from alembic.operations import ops

from datamig_nb import preview_sql
from datamig_nb.catalog import Catalog, read_catalog
from datamig_nb.database import STATEMENT_TIMEOUT_SECONDS, Database, Table, run
from datamig_nb.display import Shown, visible
from datamig_nb.migration import Backfill, Migration, RowCheck, describe
from datamig_nb.names import TableName, quote
from datamig_nb.validate import KEYS_SHOWN

#: Pairs of old and new values that a value map holds at most; it says when there are more.
MAP_ROWS = 1_000

#: ``stops``: the revision would refuse or fail.  ``note``: worth knowing, nothing fails.
Severity = Literal["stops", "note"]


@dataclass(frozen=True, kw_only=True)
class Hazard:
    """Something that the migration would meet in the data."""

    severity: Severity
    #: What it is, in words.
    what: str
    #: How many rows.
    rows: int
    #: The first of them by key, at most KEYS_SHOWN; values as text.
    keys: tuple[tuple[str | None, ...], ...] = ()
    #: What to do about it.
    advice: str


@dataclass(frozen=True, kw_only=True)
class MapRow:
    """One combination of old values and what becomes of it; values as PostgreSQL writes them."""

    before: tuple[str | None, ...]
    after: tuple[str | None, ...]
    rows: int


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """A row that was chosen for a reason, before and after; values as PostgreSQL writes them."""

    #: Why it was chosen, in words.
    why: str
    key: tuple[str | None, ...]
    before: tuple[str | None, ...]
    after: tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True)
class BackfillPreview:
    """What one backfill would do."""

    table: str
    #: Columns that the expressions read, and those that they set.
    reads: tuple[str, ...]
    sets: tuple[str, ...]
    key_columns: tuple[str, ...]
    #: Rows that the backfill looks at, and those that it would write.
    rows: int
    changed_rows: int
    #: Distinct combinations of old values; the map holds the MAP_ROWS most frequent ones.
    distinct: int
    map: tuple[MapRow, ...]
    samples: tuple[SampleRow, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """The value map: the columns read, ``→`` the columns set, ``rows``; NULL is None."""
        columns = [*self.reads, *(f"→ {column}" for column in self.sets), "rows"]
        rows = [(*pair.before, *pair.after, pair.rows) for pair in self.map]
        return pd.DataFrame(rows, columns=columns, dtype=object)


@dataclass(frozen=True, kw_only=True)
class Preview(Shown):
    """What a migration would do and what it would break."""

    #: Name of the migration.
    migration: str
    #: Its steps, in words.
    steps: tuple[str, ...]
    #: What it would meet, the worst first.
    hazards: tuple[Hazard, ...]
    backfills: tuple[BackfillPreview, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was found that would stop the revision."""
        return all(hazard.severity != "stops" for hazard in self.hazards)

    @property
    def summary(self) -> str:
        """The preview in one line of words."""
        stops = sum(hazard.severity == "stops" for hazard in self.hazards)
        rows = sum(backfill.changed_rows for backfill in self.backfills)
        found = f"{stops} hazards would stop it" if stops else "no hazard would stop it"
        return f"{rows:,} rows would change, {found}"

    @property
    def frame(self) -> pd.DataFrame:
        """The value map of the first backfill; see :class:`BackfillPreview` for the others."""
        return self.backfills[0].frame if self.backfills else pd.DataFrame()

    def __repr__(self) -> str:
        lines = [f"Preview of {self.migration!r}: {self.summary}"]
        for hazard in self.hazards:
            mark = "STOPS" if hazard.severity == "stops" else "note "
            lines.append(f"  {mark}  {hazard.what}: {hazard.rows:,} rows; {hazard.advice}")
        for part in self.backfills:
            lines.append(f"  {part.table}: {part.distinct:,} distinct values of {part.reads[0]}")
            lines += [
                f"    {_shown(pair.before)} → {_shown(pair.after)}  {pair.rows:,} rows"
                for pair in part.map[:10]
            ]
        return "\n".join(lines)


def preview(
    db: Database,
    migration: Migration,
    *,
    timeout_seconds: float = STATEMENT_TIMEOUT_SECONDS,
) -> Preview:
    """Show what a migration would do: every distinct value mapped, samples of edge cases, hazards.

    Read in one snapshot, without writing.  Sample rows are chosen for what tends to go wrong:
    NULL, blank, spaces at the ends or doubled, tabs, the longest, the shortest, the least and the
    greatest, non-ASCII letters, quotes, rare shapes, and values of which nothing is left.

    Raises
    ------
    UnknownTableError, UnknownColumnError, ExpressionError, MigrationError
        If the migration does not fit the database.
    QueryError
        If an expression fails on a row, or takes longer than ``timeout_seconds``.
    """
    catalog = read_catalog(db, migration)
    with db.read_only("previewing", timeout_seconds=timeout_seconds) as connection:
        backfills = tuple(
            _backfill(connection, step, catalog.table(step.table)) for step in migration.backfills
        )
        hazards = [*_before(connection, migration, catalog)]
        hazards += _predicted(connection, migration, catalog)
    hazards += [note for part in backfills for note in _merged(part)]
    return Preview(
        migration=migration.name,
        steps=tuple(describe(step) for step in migration.steps),
        hazards=tuple(sorted(hazards, key=lambda hazard: hazard.severity != "stops")),
        backfills=backfills,
    )


# ---------------------------------------------------------------- what would change


def _backfill(connection: sa.Connection, step: Backfill, table: Table) -> BackfillPreview:
    reads = preview_sql.reads(step, table)
    count = run(connection, preview_sql.count(step, table)).one()
    pairs = run(connection, preview_sql.value_map(step, reads, MAP_ROWS)).all()
    split = len(reads)
    return BackfillPreview(
        table=str(step.table),
        reads=reads,
        sets=tuple(step.assign),
        key_columns=table.key,
        rows=count.all_rows,
        changed_rows=count.changed_rows,
        distinct=pairs[0][-1] if pairs else 0,
        map=tuple(
            MapRow(before=tuple(row[:split]), after=tuple(row[split:-2]), rows=row[-2])
            for row in pairs
        ),
        samples=_samples(connection, step, table, reads),
    )


def _samples(
    connection: sa.Connection, step: Backfill, table: Table, reads: tuple[str, ...]
) -> tuple[SampleRow, ...]:
    key = table.key or ("ctid",)
    chosen: dict[tuple[Any, ...], SampleRow] = {}
    for row in run(connection, preview_sql.samples(step, key, reads)):
        why, *values = row
        place = tuple(values[: len(key)])
        split = len(key) + len(reads)
        sample = SampleRow(
            why=why,
            key=place,
            before=tuple(values[len(key) : split]),
            after=tuple(values[split:]),
        )
        chosen.setdefault(place, sample)
    return tuple(chosen.values())


# ---------------------------------------------------------------- what would break


def _before(connection: sa.Connection, migration: Migration, catalog: Catalog) -> list[Hazard]:
    """The checks that the revision makes before its first write."""
    found: list[Hazard] = []
    checks = (*migration.checks, *catalog.implied_checks(migration))
    for check in (check for check in checks if check.before):
        failing = catalog.failing(check)
        rows = run(connection, preview_sql.count_and_keys(failing, KEYS_SHOWN)).all()
        if rows:
            found.append(
                Hazard(
                    severity="stops",
                    what=f"not so: {check.name}",
                    rows=rows[0][0],
                    keys=tuple(tuple(map(str, row[1:])) for row in rows),
                    advice="the revision refuses to start; decide what becomes of these rows",
                )
            )
    return found


@dataclass(frozen=True)
class _Condition:
    """A condition over the predicted rows that must not hold."""

    failing: str
    what: str
    advice: str


def _predicted(connection: sa.Connection, migration: Migration, catalog: Catalog) -> list[Hazard]:
    """Constraints and checks, held against the rows as the backfills would leave them."""
    assigned: dict[TableName, dict[str, str]] = defaultdict(dict)
    for step in migration.backfills:
        if step.where is None:
            assigned[step.table].update(step.assign)
    found: list[Hazard] = []
    for name, assign in assigned.items():
        table = catalog.table(name)
        conditions = _conditions(migration, catalog, name, assign)
        rows = preview_sql.predicted(table, assign)
        if conditions:
            failing = [condition.failing for condition in conditions]
            counts = run(connection, preview_sql.count_each(rows, failing)).one()
            for condition, count in zip(conditions, counts, strict=True):
                if count:
                    keys = preview_sql.failing_keys(rows, condition.failing, table.key, KEYS_SHOWN)
                    found.append(_hazard(condition, count, run(connection, keys).all()))
        found += _collisions(connection, table, rows, assign)
    return found


def _hazard(condition: _Condition, count: int, keys: Sequence[Any]) -> Hazard:
    return Hazard(
        severity="stops",
        what=condition.what,
        rows=count,
        keys=tuple(tuple(key) for key in keys),
        advice=condition.advice,
    )


def _conditions(
    migration: Migration, catalog: Catalog, name: TableName, assign: Mapping[str, str]
) -> list[_Condition]:
    found = [
        condition
        for column in assign
        for condition in _fits(catalog.column_type(name, column), column, catalog.major)
    ]
    for step in migration.steps:
        match step:
            case ops.CreateCheckConstraintOp(
                table_name=table, schema=schema, condition=condition
            ) if TableName(schema, table) == name:
                found.append(
                    _Condition(
                        f"NOT ({condition})",
                        f"the constraint {step.constraint_name} would not hold",
                        "change the expression or the constraint",
                    )
                )
            case RowCheck(before=False, table=table) if table == name:
                found.append(
                    _Condition(
                        step.failing,
                        f"not so afterwards: {step.name}",
                        "change the expression, or the check",
                    )
                )
            case _:
                pass
    return found


def _fits(type: preview_sql.ColumnType, column: str, major: int) -> list[_Condition]:
    """Conditions for a value that its column cannot take."""
    if type.labels is not None:
        listed = ", ".join(type.labels)
        return [
            _Condition(
                f"{quote(column)}::text NOT IN ({listed})",
                f"{column} would hold what is no label of its enum",
                f"map these values to one of {listed}",
            )
        ]
    if type.is_text or major < 16:  # before 16 nothing can ask without failing
        return []
    return [
        _Condition(
            f"NOT pg_input_is_valid({quote(column)}::text, {type.literal})",
            f"{column} would not fit its type {type.name}",
            "change the expression, or the type",
        )
    ]


def _collisions(
    connection: sa.Connection, table: Table, rows: str, assign: Mapping[str, str]
) -> list[Hazard]:
    """Values that would break a unique index of the table."""
    found: list[Hazard] = []
    for columns in table.unique:
        if set(columns) & set(assign):
            same = run(connection, preview_sql.collisions(rows, columns, KEYS_SHOWN)).all()
            if same:
                found.append(
                    Hazard(
                        severity="stops",
                        what=f"{', '.join(columns)} is unique, but values would become the same",
                        rows=same[0][0],
                        keys=tuple(tuple(row[1:]) for row in same),
                        advice="decide which of these rows stays",
                    )
                )
    return found


def _merged(part: BackfillPreview) -> list[Hazard]:
    """Several old values that become one: no way back from the new column alone."""
    if part.distinct > len(part.map):
        return []
    olds: dict[tuple[str | None, ...], list[MapRow]] = defaultdict(list)
    for pair in part.map:
        if any(value is not None for value in pair.after):
            olds[pair.after].append(pair)
    return [
        Hazard(
            severity="note",
            what=f"{len(pairs)} old values become {_shown(after)}",
            rows=sum(pair.rows for pair in pairs),
            advice=f"{', '.join(part.reads)} keeps the difference, as long as it is there",
        )
        for after, pairs in olds.items()
        if len(pairs) > 1
    ]


def _shown(values: Sequence[str | None]) -> str:
    return ", ".join(visible(value) for value in values)

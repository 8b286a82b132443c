"""What would a migration do to the data, and what would it break?  Nothing is written.

The migration's own expressions are evaluated over the rows as they are: what is shown is what the
batches will write.  Its checks are evaluated over that result, before there is one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import sqlalchemy as sa
from alembic.operations import ops

from datamig_nb import preview_sql, statements, walks
from datamig_nb.catalog import NOT_YET, Catalog, read_catalog
from datamig_nb.checks import RowCheck
from datamig_nb.database import STATEMENT_TIMEOUT_SECONDS, Database, Table, explained, run
from datamig_nb.display import Shown, visible
from datamig_nb.errors import QueryError
from datamig_nb.expanded import expanded
from datamig_nb.expressions import listed
from datamig_nb.migration import Migration, Step, describe
from datamig_nb.names import TableName, quote
from datamig_nb.predicted import (
    foreseeable,
    foreseen,
    joined,
    predicted_rows,
    rows_before,
    rows_told,
)
from datamig_nb.statements import has_equality
from datamig_nb.steps import Backfill
from datamig_nb.transforms import Transform
from datamig_nb.validate import KEYS_SHOWN

#: Pairs of old and new values that a value map holds at most; it says when there are more.
MAP_ROWS = 1_000

# Values that several old ones become: more of them are told in one note.
_MERGED_SHOWN = 10

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

    #: Why it was chosen, in words; several reasons with commas.
    why: str
    #: Its key; where the table has none, its place.
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
            lines.append(
                f"  {part.table}: {part.distinct:,} distinct values of {', '.join(part.reads)}"
            )
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
    NULL, empty, blank, spaces at the ends or doubled, tabs, no-break spaces, the longest, the
    shortest, non-ASCII letters, accents apart from their letters, quotes, rare shapes, and values
    of which nothing is left.

    Hazards are what the revision would stop at: its own checks, and the types, NOT NULL, CHECK,
    unique and foreign key constraints that the new values must meet.  Unique indexes over
    expressions or over some rows only, and exclusion constraints, are left to the rehearsal.

    Raises
    ------
    UnknownTableError, UnknownColumnError, ExpressionError, MigrationError
        If the migration does not fit the database.
    QueryError
        If an expression fails on a row, or takes longer than ``timeout_seconds``.
    """
    shown = expanded(db, migration)
    migration = foreseeable(shown)
    catalog = read_catalog(db, migration)
    try:
        with db.read_only("previewing", timeout_seconds=timeout_seconds) as connection:
            hazards = _before(connection, migration, catalog)
            backfills: list[BackfillPreview] = []
            for number, step in enumerate(migration.steps):
                hazards += _told(connection, step, catalog)
                if isinstance(step, Backfill) and foreseen(step, catalog):
                    rows = rows_before(step, migration.steps[:number], catalog)
                    part = _backfill(connection, step, catalog, rows)
                    hazards += _misfits(step, part.rows, catalog)
                    backfills.append(part)
            for name, table in catalog.tables.items():
                if table.estimated_rows == NOT_YET:
                    continue
                with explained(f"holding the checks against the new rows of {name}", db.url):
                    hazards += _predicted(connection, migration, catalog, name)
    except QueryError:
        _name_expression(db, migration, catalog, timeout_seconds)
        raise
    hazards += [note for part in backfills for note in _merged(part)]
    return Preview(
        migration=migration.name,
        steps=tuple(describe(step) for step in shown.steps),
        hazards=tuple(sorted(hazards, key=lambda hazard: hazard.severity != "stops")),
        backfills=tuple(backfills),
    )


def _name_expression(
    db: Database, migration: Migration, catalog: Catalog, timeout_seconds: float
) -> None:
    """Raise the error again with the expression that causes it, if it is one of a backfill's."""
    for step in migration.backfills:
        wheres = () if step.where is None else (step.where,)
        if catalog.reads_made(*step.texts):
            continue
        for expression in (*wheres, *step.assign.values()):
            what = f"the expression {expression!r} over the rows of {step.table}"
            with db.read_only(what, timeout_seconds=timeout_seconds) as connection:
                run(connection, preview_sql.evaluate(step, expression))


# ---------------------------------------------------------------- what would change


def _backfill(
    connection: sa.Connection, step: Backfill, catalog: Catalog, found: str
) -> BackfillPreview:
    """What a backfill would do with the rows that it finds, a FROM item."""
    table = catalog.table(step.table)
    reads, misfits = preview_sql.reads(step, table), catalog.misfit_columns
    if step.using is not None:
        step, found = joined(step, found)
    as_text = [
        column
        for column in step.assign
        if (step.table, column) in misfits
        or not has_equality(catalog.column_type(step.table, column).name)
    ]
    count = run(connection, preview_sql.count(step, table, as_text, found)).one()
    pairs = run(connection, preview_sql.value_map(step, reads, MAP_ROWS, found)).all()
    split = len(reads)
    return BackfillPreview(
        table=str(step.table),
        reads=reads,
        sets=tuple(step.assign),
        key_columns=table.key or ("ctid",),
        rows=count.all_rows,
        changed_rows=count.changed_rows,
        distinct=pairs[0][-1] if pairs else 0,
        map=tuple(
            MapRow(before=tuple(row[:split]), after=tuple(row[split:-2]), rows=row[-2])
            for row in pairs
        ),
        samples=_samples(connection, step, table, reads, found),
    )


def _samples(
    connection: sa.Connection, step: Backfill, table: Table, reads: tuple[str, ...], found: str
) -> tuple[SampleRow, ...]:
    key = table.key or ("ctid",)
    split = len(key) + len(reads)
    whys: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for why, *values in run(connection, preview_sql.samples(step, key, reads, found)):
        whys[tuple(values)].append(why)
    return tuple(
        SampleRow(
            why=", ".join(reasons),
            key=values[: len(key)],
            before=values[len(key) : split],
            after=values[split:],
        )
        for values, reasons in whys.items()
    )


# ---------------------------------------------------------------- what would break


def _before(connection: sa.Connection, migration: Migration, catalog: Catalog) -> list[Hazard]:
    """The checks that the revision makes before its first write."""
    found: list[Hazard] = []
    asked = [check for check in migration.checks if check.before]
    for check in (*asked, *walks.early_checks(migration, catalog)):
        failing = catalog.failing(check)
        rows = run(connection, preview_sql.count_and_keys(failing, KEYS_SHOWN)).all()
        if rows:
            found.append(
                Hazard(
                    severity="stops",
                    what=f"not so: {check.name}",
                    rows=rows[0][0],
                    keys=tuple(
                        tuple(None if value is None else str(value) for value in row[1:])
                        for row in rows
                    ),
                    advice="the revision refuses to start; decide what becomes of these rows",
                )
            )
    return found


def _told(connection: sa.Connection, step: Step, catalog: Catalog) -> list[Hazard]:
    """How many rows come, go or are left alone."""
    told = rows_told(step, catalog)
    if told is None:
        return []
    query, what, advice = told
    count = run(connection, query).scalar_one()
    if count == 0:
        return []
    return [Hazard(severity="note", what=what, rows=count or 0, advice=advice)]


def _misfits(step: Backfill, rows: int, catalog: Catalog) -> list[Hazard]:
    return [
        Hazard(
            severity="stops",
            what=f"{column} does not take the values of its expression: {reason}",
            rows=rows,
            advice=f"cast what is given to {column} yourself, or choose another type",
        )
        for column, text in step.assign.items()
        if (reason := catalog.misfits.get((step.table, column, text)))
    ]


@dataclass(frozen=True)
class _Condition:
    """A condition over the predicted rows that must not hold."""

    failing: str
    what: str
    advice: str
    severity: Severity = "stops"


def _predicted(
    connection: sa.Connection,
    migration: Migration,
    catalog: Catalog,
    name: TableName,
) -> list[Hazard]:
    """Constraints and checks, held against the rows as the migration would leave them."""
    table = catalog.table(name)
    steps = [step for step in migration.backfills if step.table == name and foreseen(step, catalog)]
    filled = tuple(dict.fromkeys(column for step in steps for column in step.assign))
    conditions = [c for column in filled for c in _of_type(catalog, name, column)]
    if not any((table, column) in catalog.misfit_columns for table in [name] for column in filled):
        # else checks cannot be read
        conditions += _of_migration(migration, name) + _of_table(connection, table, filled)
    computed = {column for step in _computing(migration, name) for column in step.columns}
    conditions = [c for c in conditions if not statements.names_in(c.failing) & computed]
    rows = predicted_rows(name, migration.steps, catalog)
    found: list[Hazard] = []
    if conditions:
        failing = [condition.failing for condition in conditions]
        counts = run(connection, preview_sql.count_each(rows, failing)).one()
        for condition, count in zip(conditions, counts, strict=True):
            if count:
                keys = preview_sql.failing_keys(rows, condition.failing, table.key, KEYS_SHOWN)
                found.append(
                    Hazard(
                        severity=condition.severity,
                        what=condition.what,
                        rows=count,
                        keys=tuple(tuple(key) for key in run(connection, keys)),
                        advice=condition.advice,
                    )
                )
    found += [
        Hazard(
            severity="note",
            what=f"Python computes {listed(step.columns)} of {name}, which is not previewed",
            rows=max(0, table.estimated_rows),
            keys=(),
            advice=f"call {step.function.name}() on some values, and rehearse",
        )
        for step in _computing(migration, name)
    ]
    return found + _collisions(connection, table, rows, filled)


def _computing(migration: Migration, name: TableName) -> list[Transform]:
    return [step for step in migration.transforms if step.table == name]


def _of_migration(migration: Migration, name: TableName) -> list[_Condition]:
    """What the steps of the migration ask of the rows of a table."""
    found: list[_Condition] = []
    known = {(s.table, c) for s in migration.backfills if s.where is None for c in s.assign}
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
            case ops.AlterColumnOp(
                table_name=table, schema=schema, column_name=column, modify_nullable=False
            ) if TableName(schema, table) == name and (name, column) not in known:
                # else a check before the first write has counted them
                found.append(
                    _Condition(
                        f"{quote(column)} IS NULL",
                        f"{column} cannot become NOT NULL",
                        "fill it in every row, or leave it nullable",
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


def _of_type(catalog: Catalog, name: TableName, column: str) -> list[_Condition]:
    """What the type of a filled column asks of its values."""
    type = catalog.column_type(name, column)
    if type.labels is not None:
        return [
            _Condition(
                preview_sql.is_no_label(column, type.labels),
                f"{column} would hold what is no label of its enum",
                f"map these values to one of {', '.join(type.labels)}",
            )
        ]
    if type.is_text or catalog.major < 16:  # before 16 nothing can ask without failing
        return []
    found = [
        _Condition(
            preview_sql.does_not_fit(column, type),
            f"{column} would not fit its type {type.name}",
            "change the expression, or the type",
        )
    ]
    if type.is_whole:
        found.append(
            _Condition(
                preview_sql.is_rounded(column),
                f"{column} is of type {type.name}, so fractions are rounded",
                "choose another type, or round on purpose",
                "note",
            )
        )
    return found


def _of_table(connection: sa.Connection, table: Table, filled: tuple[str, ...]) -> list[_Condition]:
    """What the constraints that are there ask of the values of filled columns."""
    found = [
        _Condition(
            f"{quote(column.name)} IS NULL",
            f"{column.name} is NOT NULL, but would become NULL",
            "change the expression, or leave these rows out with where=",
        )
        for column in table.columns
        if column.not_null and column.name in filled
    ]
    checks = connection.execute(sa.text(preview_sql.CHECKS), {"name": table.name.sql})
    for check in checks:
        if set(check.columns) & set(filled):
            found.append(
                _Condition(
                    f"NOT ({check.condition})",
                    f"the constraint {check.name} would not hold",
                    "change the expression or the constraint",
                )
            )
    for key in table.foreign_keys:
        if set(key.columns) & set(filled):
            found.append(
                _Condition(
                    preview_sql.has_no_parent(table.name, key),
                    f"{', '.join(key.columns)} would not be found in {key.parent}",
                    "change the expression, or add the missing rows first",
                )
            )
    return found


def _collisions(
    connection: sa.Connection, table: Table, rows: str, filled: tuple[str, ...]
) -> list[Hazard]:
    """Values that would break a unique index of the table."""
    found: list[Hazard] = []
    for columns in table.unique:
        if set(columns) & set(filled):
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
    merged = {after: pairs for after, pairs in olds.items() if len(pairs) > 1}
    advice = f"{', '.join(part.reads)} keeps the difference, as long as it is there"
    if len(merged) > _MERGED_SHOWN:
        pairs = [pair for each in merged.values() for pair in each]
        what = f"{len(pairs)} old values become {len(merged)} new ones"
        rows = sum(pair.rows for pair in pairs)
        return [Hazard(severity="note", what=what, rows=rows, advice=advice)]
    return [
        Hazard(
            severity="note",
            what=f"{len(pairs)} old values become {_shown(after)}",
            rows=sum(pair.rows for pair in pairs),
            advice=advice,
        )
        for after, pairs in merged.items()
    ]


def _shown(values: Sequence[str | None]) -> str:
    return ", ".join(visible(value) for value in values)

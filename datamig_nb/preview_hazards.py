"""What a migration would break or refuse, found before there is a revision.  Nothing is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from alembic.operations import ops

from datamig_nb import preview_sql, statements, walks
from datamig_nb.catalog import Catalog
from datamig_nb.checks import RowCheck
from datamig_nb.database import run
from datamig_nb.expressions import listed
from datamig_nb.migration import Migration, Step, step_table
from datamig_nb.names import TableName, quote
from datamig_nb.predicted import changed_types, foreseen, predicted_rows, rows_told
from datamig_nb.step_effects import freed
from datamig_nb.steps import Backfill, DeleteRows, InsertRows
from datamig_nb.tables import Table
from datamig_nb.transforms import Transform
from datamig_nb.validate import KEYS_SHOWN

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


def failing_before(
    connection: sa.Connection, migration: Migration, catalog: Catalog
) -> list[Hazard]:
    """The checks that the revision makes before its first write."""
    found: list[Hazard] = []
    asked = [check for check in migration.checks if check.before]
    for check in (*asked, *walks.early_checks(migration, catalog, migration)):
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


def rows_moved(
    connection: sa.Connection, step: Step, migration: Migration, catalog: Catalog
) -> list[Hazard]:
    """How many rows come, go or are left alone."""
    counted = [
        (run(connection, query).scalar_one(), what, advice)
        for query, what, advice in rows_told(step, migration, catalog)
    ]
    return [
        Hazard(severity="note", what=what, rows=count or 0, advice=advice)
        for count, what, advice in counted
        if count != 0
    ]


def misfits(step: Backfill, rows: int, catalog: Catalog) -> list[Hazard]:
    """Columns that do not take what their expressions give."""
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


#: A table from this size on, of which half the rows change, is worth a thought about rewriting it.
REWRITE_BYTES = 256 * 1024**2


def dear_rewrite(step: Backfill, table: Table, changed_rows: int) -> list[Hazard]:
    """Where writing the table anew would cost much less than changing most of its rows.

    Source of the share: ``./dev bench backfill``, the line of the table written anew.
    """
    is_large = table.total_bytes >= REWRITE_BYTES and changed_rows >= table.estimated_rows / 2
    if step.using is not None or not is_large:
        return []
    size = f"{table.total_bytes / 1024**2:,.0f} MB"
    return [
        Hazard(
            severity="note",
            what=f"most of {table.name}, {size} with its indexes, is written again row by row",
            rows=changed_rows,
            advice="if writers can stay away meanwhile, CREATE TABLE AS, its indexes and a swap of"
            " names take less than half the time; by your hand, for it loses what they write",
        )
    ]


@dataclass(frozen=True)
class _Condition:
    """A condition over the predicted rows that must not hold."""

    failing: str
    what: str
    advice: str
    severity: Severity = "stops"


def predicted(
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
    computed |= {c for s in migration.backfills if not foreseen(s, catalog) for c in s.assign}
    computed |= {c.column for c in changed_types(name, migration.steps) if c.new in computed}
    if changed_types(name, migration.steps):  # those of other tables are read as they are
        others = {table.name: table for table in catalog.tables if table != name}
        computed |= {n for n, t in others.items() if changed_types(t, migration.steps)}
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
    return found + _collisions(connection, rows, _uniques(migration, catalog, table, filled))


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
    connection: sa.Connection, rows: str, uniques: Iterable[tuple[str, ...]]
) -> list[Hazard]:
    """Values that would break a unique index."""
    found: list[Hazard] = []
    for columns in uniques:
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


def _uniques(
    migration: Migration, catalog: Catalog, table: Table, filled: tuple[str, ...]
) -> dict[tuple[str, ...], None]:
    """Columns of the unique indexes that there will be, as far as their values can be foreseen."""
    name = table.name
    gone = {thing[1] for step in migration.steps for thing in freed(step)}
    stay = [
        columns
        for index, columns in zip(table.unique_names, table.unique, strict=True)
        if set(columns) & set(filled) and TableName(name.schema, index) not in gone
    ]
    data = [s for s in migration.steps if isinstance(s, Backfill | InsertRows | DeleteRows)]
    if any(s.table == name and not foreseen(s, catalog) for s in data):
        return dict.fromkeys(stay)
    made = [
        tuple(step.columns)
        for step in migration.steps
        if isinstance(step, ops.CreateUniqueConstraintOp | ops.CreatePrimaryKeyOp)
        if step_table(step) == name
    ]
    return dict.fromkeys([*stay, *made])

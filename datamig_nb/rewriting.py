"""Migrations by name that rewrite rows: in bulk, to one form, across tables, in place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import sqlalchemy as sa

from datamig_nb.checks import (
    RowCheck,
    Unchanged,
    check,
    matches,
    no_orphans,
    rows_check,
    unchanged,
)
from datamig_nb.errors import MigrationError
from datamig_nb.expressions import Expression, expression_text, listed
from datamig_nb.migration import Migration, Step
from datamig_nb.names import TableName, cut, quote
from datamig_nb.operations import add_column, create_index
from datamig_nb.statements import columns_read
from datamig_nb.steps import Signal, back_up, backfill, keep_in_step
from datamig_nb.transforms import transform

_TEXT = sa.Text()


def transform_rows(
    table: str,
    column: str,
    *,
    into: str,
    rule: Expression | Callable[..., Any],
    type: sa.types.TypeEngine[Any] = _TEXT,
    checksum: str | None = None,
    workers: int = 2,
    requires: Sequence[str] = (),
    twin: Expression | None = None,
) -> Migration:
    """Compute a new column from another, for every row, with a checksum that is verified.

    Parameters
    ----------
    rule
        A SQL expression over the row, in which case a trigger keeps the new column in step; or a
        Python function of the old value, see :func:`datamig_nb.transform`: what the application
        writes while it runs is computed again, what it writes later it computes itself.
    type
        Type of the new column; text by default.
    checksum
        Name of a second new column, for the SHA-256 of the new value in hexadecimal.  It is held
        against what the table holds, read again, when all rows are done.
    workers, requires
        For a Python function: parts of the table that are done at once, and packages it imports.
    twin
        A SQL expression that should give what the Python function gives: the preview says for
        which values it does not, so that work can move into the database with proof.

    Raises
    ------
    MigrationError
        If the function cannot stand alone in the revision.
    """
    name, title = TableName.parse(table), f"transform {column} of {table} into {into}"
    steps: list[Step] = [add_column(name.name, sa.Column(into, type), schema=name.schema)]
    if checksum is not None:
        steps.append(add_column(name.name, sa.Column(checksum, sa.String(64)), schema=name.schema))
    if callable(rule):
        computed = transform(
            table,
            rule,
            reads=(column,),
            writes=(into,),
            checksum=checksum,
            workers=workers,
            requires=requires,
            twin=None if twin is None else {into: twin},
        )
        return Migration(title, *steps, computed)
    given = {into: expression_text(rule)}
    if checksum is not None:
        given[checksum] = _sha256(f"({given[into]})")
    steps += [keep_in_step(table, given), backfill(table, given), matches(table, into, rule)]
    if checksum is not None:
        stored = f"{checksum} of {table} is the SHA-256 of {into}"
        differs = f"{quote(checksum)} IS DISTINCT FROM {_sha256(quote(into))}"
        steps.append(rows_check(stored, table, differs))
    return Migration(title, *steps)


def _sha256(text: str) -> str:
    return f"encode(sha256(convert_to({text}::text, 'UTF8')), 'hex')"


def normalize(
    table: str,
    column: str,
    *,
    into: str,
    rule: Expression,
    duplicates: Literal["fail", "first", "allow"] = "fail",
    key: str = "id",
    type: sa.types.TypeEngine[Any] = _TEXT,
    untouched: Collection[str] = (),
) -> Migration:
    """Bring the values of a column to one form, in a new column that is unique.

    A trigger normalises what the application writes; from the end of the migration on, the index
    refuses what would be there twice.  The old column stays as it is.

    Parameters
    ----------
    rule
        SQL expression over the row, such as ``"lower(btrim(email))"``; blank as NULL is up to it.
    duplicates
        What becomes of rows that the rule gives one value.  ``"fail"``: they stop the migration
        before its first write.  ``"first"``: the row with the lowest key gets the value, the
        others NULL.  ``"allow"``: all get it, and there is no unique index.
    key
        Column by which the first of several is found.
    type
        Type of the new column; text by default.
    untouched
        Columns that must hold the same afterwards, in as many rows, as before.  Name some only
        where nobody writes meanwhile: an insert of the application would stop the migration.

    Raises
    ------
    MigrationError
        If ``duplicates`` is none of the three.
    """
    if duplicates not in ("fail", "first", "allow"):
        raise MigrationError(
            f"duplicates={duplicates!r} is not known", "use 'fail', 'first' or 'allow'"
        )
    name, value = TableName.parse(table), expression_text(rule)
    first = (
        f"{quote(key)} IN (SELECT min({quote(key)}) FROM {name.sql} GROUP BY {value})"
        if duplicates == "first"
        else None
    )
    steps: list[Step] = []
    if duplicates == "fail":
        steps.append(_no_collision(table, column, value))
    steps += [
        add_column(name.name, sa.Column(into, type), schema=name.schema),
        keep_in_step(table, {into: value}),
        backfill(table, {into: value}, where=first),
        matches(table, into, value, where=first),
    ]
    if untouched:
        steps.append(_same_rows(name, untouched))
    if duplicates != "allow":
        index = cut(f"{name.name}_{into}_key")
        steps.append(create_index(index, name.name, [into], schema=name.schema, unique=True))
    return Migration(f"normalize {column} of {table} into {into}", *steps)


def _no_collision(table: str, column: str, value: str) -> Step:
    name = TableName.parse(table).sql
    return check(
        f"no two rows of {table} get one value from {column}",
        f"SELECT {value} AS value, count(*) AS times FROM {name}\n"
        f" GROUP BY {value} HAVING count(*) > 1 AND {value} IS NOT NULL ORDER BY 1",
        before=True,
    )


def _same_rows(name: TableName, columns: Collection[str]) -> Step:
    values = ", ".join(map(quote, columns))
    # A sum, for it does not depend on the order of the rows.
    digest = f"coalesce(sum(hashtextextended(ROW({values})::text, 0)), 0)"
    return unchanged(
        f"rows of {name}, and {listed(columns)} in them",
        f"SELECT count(*) || ' rows, ' || {digest} FROM {name.sql}",
    )


def cross_table(
    parent: str,
    children: Mapping[str, str],
    *,
    column: str,
    value: Expression,
    type: sa.types.TypeEngine[Any] = _TEXT,
    key: str = "id",
    orphans: Literal["fail", "leave"] = "fail",
    rest: float = 0.0,
) -> Migration:
    """Give a table a new column, and tables that refer to it the value of the row they belong to.

    One table after the other, the parent first, each batch a transaction over one table: no two
    tables are locked at once, so there is no order in which the application could deadlock with
    it.  Triggers keep rows written meanwhile, and after, in step; a change of a parent reaches its
    children only while the migration runs.

    Parameters
    ----------
    children
        Table -> its column that refers to ``key`` of the parent, in the order of the work.
    column, type
        Name and type of the new column, the same in all tables; text by default.
    value
        SQL expression over a row of the parent.
    orphans
        Rows whose parent is not there: ``"fail"``, they stop the migration before its first write;
        ``"leave"``, their value is NULL, and there may be neither more nor fewer of them
        afterwards.  Rows that name no parent (NULL) are no orphans.
    rest
        Rest after each batch, as a share of the time that it took.

    Raises
    ------
    MigrationError
        If there is no child, one is the parent itself, or ``orphans`` is neither of the two.
    """
    if not children or parent in children or orphans not in ("fail", "leave"):
        raise MigrationError(
            f"cross_table() of {parent} has {listed(children) if children else 'no'} children and"
            f" orphans={orphans!r}",
            'give {"child": "parent_id"} with other tables, and orphans "fail" or "leave"',
        )
    above = TableName.parse(parent)
    steps: list[Step] = []
    late: list[Step] = [matches(parent, column, value)]
    for child, reference in children.items():
        asked = _orphans(child, reference, parent, key, leave=orphans == "leave")
        (late if isinstance(asked, Unchanged) else steps).append(asked)
    given = {parent: expression_text(value)}
    for child, reference in children.items():
        own = f"{quote(TableName.parse(child).name)}.{quote(reference)}"
        # in a query of its own, where the names of columns can be the parent's only
        found = f"SELECT {quote(key)} AS key, {given[parent]} AS value FROM {above.sql}"
        query = f"SELECT above.value\n      FROM ({found}) AS above\n     WHERE above.key = {own}"
        given[child] = f"(\n    {query}\n)"
        late.append(_same_in(above, key, TableName.parse(child), reference, column))
    for table, expression in given.items():
        name = TableName.parse(table)
        steps += [
            add_column(name.name, sa.Column(column, type), schema=name.schema),
            keep_in_step(table, {column: expression}),
            backfill(table, {column: expression}, rest=rest),
        ]
    if orphans == "fail":
        late += [no_orphans(child, own, parent, key) for child, own in children.items()]
    return Migration(f"give {column} to {listed([*given])}", *steps, *late)


def _same_in(above: TableName, key: str, child: TableName, reference: str, column: str) -> Step:
    value = quote(column)
    return check(
        f"each row of {child} has the {column} of its {above}",
        f"SELECT child.{quote(reference)}, child.{value}, above.{value} AS above\n"
        f"  FROM {child.sql} AS child\n"
        f"  LEFT JOIN {above.sql} AS above ON above.{quote(key)} = child.{quote(reference)}\n"
        f" WHERE child.{value} IS DISTINCT FROM above.{value} ORDER BY 1",
    )


def _orphans(
    child: str, reference: str, parent: str, key: str, *, leave: bool
) -> RowCheck | Unchanged:
    found = no_orphans(child, reference, parent, key)
    if not leave:
        return replace(found, before=True)
    count = f"SELECT count(*) FROM {found.table.sql} WHERE {found.failing}"
    return unchanged(f"rows of {child} whose {reference} is not in {parent}", count)


def batched_update(
    table: str,
    assign: Mapping[str, Expression],
    *,
    where: Expression | None = None,
    done: Expression | None = None,
    rest: float = 0.0,
    hold_on: Collection[Signal] = (),
) -> Migration:
    """Update columns in place, batch by batch, with rate and time left in the log.

    Each row is changed once, however often the run is stopped, also by ``upper(code)`` or
    ``price * 1.1``.  What is overwritten is kept: the downgrade puts it back, where it was not
    edited since.

    Parameters
    ----------
    assign
        Column -> SQL expression over the row as it was before.
    where
        SQL condition over the row; others are left alone.  Where it reads what is set, no row may
        meet it in the end.
    done
        SQL condition that each row of ``where`` must meet in the end, where the expressions read
        what they set, so that they cannot be held against the rows.
    rest, hold_on
        As of :func:`datamig_nb.backfill`: rest after each batch, and signals to wait for.
    """
    step = backfill(table, assign, where=where, rest=rest, hold_on=hold_on)
    checks: list[Step] = []
    if step.where is not None and columns_read(step.where, step.assign):
        checks.append(
            rows_check(f"no row of {table} is left where {step.where}", table, step.where)
        )
    else:
        for column, text in step.assign.items():
            if not columns_read(text, step.assign):
                checks.append(matches(table, column, text, where=step.where))
    if done is not None:
        undone = f"({expression_text(done)}) IS NOT TRUE"
        if step.where is not None:
            undone = f"({step.where}) AND {undone}"
        checks.append(rows_check(f"every row of {table} to be done is done", table, undone))
    name = f"update {listed([*assign])} of {table}"
    return Migration(name, back_up(table, *assign), step, *checks)

"""Functions that return several steps which belong together; they hold no logic beyond choosing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from hashlib import sha256
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from datamig_nb.checks import no_nulls, rows_check
from datamig_nb.compound import change_type
from datamig_nb.errors import MigrationError
from datamig_nb.expressions import Expression, expressions, listed
from datamig_nb.migration import Step, Steps
from datamig_nb.names import TableName, cut, literal, quote
from datamig_nb.operations import (
    add_column,
    alter_column,
    create_enum,
    create_foreign_key,
    create_index,
    create_table,
    drop_column,
    drop_table,
    sql,
)
from datamig_nb.steps import back_up, backfill, insert_rows

_TEXT = sa.Text()


def fill_nulls(
    table: str, values: Mapping[str, Expression], *, not_null: bool = True, keep: bool = True
) -> tuple[Step, ...]:
    """Give rows that have NULL in a column a value there, then make the columns NOT NULL.

    All columns are filled in one walk, and rows without a NULL are not written.

    Parameters
    ----------
    values
        Column -> SQL expression over the row: ``{"state": "'new'", "key": "'key_' || id"}``.
    not_null
        False leaves the columns as they are.
    keep
        Which rows had NULL is kept, so that the downgrade gives it back; False: it does not.
    """
    given = expressions("fill_nulls", values)
    filled = {column: f"coalesce({quote(column)}, {text})" for column, text in given.items()}
    where = " OR ".join(f"{quote(column)} IS NULL" for column in given)
    name = TableName.parse(table)
    steps: list[Step] = [back_up(table, *given)] if keep else []
    steps += [backfill(table, filled, where=where), no_nulls(table, *given)]
    if not_null:
        steps += [
            alter_column(name.name, column, nullable=False, schema=name.schema) for column in given
        ]
    return tuple(steps)


def fill_new_column(
    table: str | TableName,
    column: sa.Column[Any],
    expression: Expression,
    *,
    where: Expression | None = None,
    using: str | None = None,
    on: Expression | None = None,
) -> tuple[Step, ...]:
    """Add a column and fill it; where it is ``nullable=False``, it becomes NOT NULL in the end.

    ``expression``, ``where``, ``using`` and ``on`` are those of :func:`backfill`.  Rows that the
    application writes later get a value by ``keep_in_step()``, or by a default.
    """
    name, nullable = TableName.parse(table), copy(column)
    nullable.nullable = True
    steps: list[Step] = [
        add_column(name.name, nullable, schema=name.schema),
        backfill(table, {column.name: expression}, where=where, using=using, on=on),
    ]
    if column.nullable is False:
        steps += [
            no_nulls(table, column.name),
            alter_column(name.name, column.name, nullable=False, schema=name.schema),
        ]
    return tuple(steps)


def drop_columns(table: str, *columns: str, keep: bool = True) -> tuple[Step, ...]:
    """Drop columns; their values are copied first, so that the downgrade brings them back.

    ``keep=False`` copies nothing, and there is no way back.
    """
    name = TableName.parse(table)
    drops = (drop_column(name.name, column, schema=name.schema) for column in columns)
    return (*([back_up(table, *columns)] if keep else []), *drops)


def drop_tables(*tables: str, keep: bool = True) -> tuple[Step, ...]:
    """Drop tables; each is only moved to the schema ``datamig``, so that the downgrade has it back.

    ``keep=False`` drops them with their rows, and there is no way back.
    """
    steps: list[Step] = []
    for table in tables:
        name = TableName.parse(table)
        steps += [back_up(table)] if keep else []
        steps.append(drop_table(name.name, schema=name.schema))
    return tuple(steps)


def extract_values(
    columns: Mapping[str, str],
    *,
    into: str,
    reference: str,
    name: str = "name",
    type: sa.types.TypeEngine[Any] = _TEXT,
) -> tuple[Steps, ...]:
    """Make a table of the values of text columns, and let the rows refer to it.

    Each distinct value but NULL becomes a row of ``into``, numbered by an identity column ``id``;
    each table gets a column with that number, an index and a foreign key.  The columns of text
    stay: :func:`drop_columns` is a step of its own.  Values that the application writes for the
    first time while it runs stop the revision, which names their rows.

    Parameters
    ----------
    columns
        Table -> its column of text.
    into
        The table to be made.
    reference
        Name of the new column, the same in all tables.
    name, type
        Name and type of the column that holds the value.
    """
    made, value = TableName.parse(into), quote(name)
    tables = {TableName.parse(table): column for table, column in columns.items()}
    values = "\n UNION\n".join(
        f"SELECT {quote(column)} AS {value} FROM {table.sql} WHERE {quote(column)} IS NOT NULL"
        for table, column in tables.items()
    )
    key = sa.Column("id", sa.Integer(), sa.Identity(), primary_key=True)
    held = sa.Column(name, type, nullable=False, unique=True)
    steps: list[Steps] = [
        create_table(made.name, key, held, schema=made.schema),
        insert_rows(made, values, key=name),
    ]
    for table, column in tables.items():
        own, number = f"{quote(table.name)}.{quote(column)}", sa.Column(reference, sa.Integer())
        source, on = f"{made.sql} AS found", f"found.{value} = {own}"
        steps += [
            fill_new_column(table, number, "found.id", using=source, on=on),
            rows_check(
                f"every {column} of {table} is in {made}",
                table,
                f"{quote(column)} IS NOT NULL AND {quote(reference)} IS NULL",
            ),
            create_index(
                cut(f"{table.name}_{reference}_idx"), table.name, [reference], schema=table.schema
            ),
            create_foreign_key(
                cut(f"{table.name}_{reference}_fkey"),
                table.name,
                made.name,
                [reference],
                ["id"],
                source_schema=table.schema,
                referent_schema=made.schema,
            ),
        ]
    return tuple(steps)


def rebuild_enum(
    type_: str,
    columns: Mapping[str, str],
    labels: Sequence[str],
    *,
    mapping: Mapping[str, str] = MappingProxyType({}),
    rename: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Steps, ...]:
    """Give an enum type other labels, or another order, for the columns that are of it.

    A new type is made and the columns change to it in batches and a short swap, with defaults and
    indexes; then it takes the name of the old one, which goes to the schema ``datamig`` for the way
    back.  To add a label, or only to rename one, ``ALTER TYPE`` by :func:`sql` is enough.

    Parameters
    ----------
    columns
        Table -> its column of that type: all that there are.
    labels
        The labels of the type afterwards, in their order.
    mapping
        Label that goes -> another that takes its rows as well.  Which rows had it is kept.
    rename
        Label -> its new name.
    """
    old = TableName.parse(type_)
    new = TableName(old.schema, f"{old.name}_new")
    aside = TableName("datamig", f"{old.name}_{sha256(repr(labels).encode()).hexdigest()[:8]}")
    _require_labels(type_, labels, mapping, rename)
    olds = {after: before for before, after in rename.items()}
    merged = {gone: olds.get(stays, stays) for gone, stays in mapping.items()}
    gone = ", ".join(map(literal, mapping))
    steps: list[Steps] = [create_enum(str(new), *labels)]
    for table, column in columns.items():
        name = quote(column)
        if mapping:
            steps.append(back_up(table, column))
            stays = _cases(name, merged, f"::{old.sql}")
            steps.append(backfill(table, {column: stays}, where=f"{name}::text IN ({gone})"))
        value = _cases(f"{name}::text", {**mapping, **rename})
        back = f"({_cases(f'{name}::text', olds)})::{old.sql}"
        steps.append(change_type(table, column, new.sql, using=value, keep=False, back=back))
    moved, named = TableName(old.schema, aside.name), quote(old.name)
    steps.append(
        sql(
            f"DO $$ BEGIN\n    ALTER TYPE {old.sql} RENAME TO {quote(aside.name)};\n"
            f"    ALTER TYPE {moved.sql} SET SCHEMA datamig;\n"
            f"    ALTER TYPE {new.sql} RENAME TO {named};\nEND $$",
            undo=f"DO $$ BEGIN\n    ALTER TYPE {old.sql} RENAME TO {quote(new.name)};\n"
            f"    ALTER TYPE {aside.sql} SET SCHEMA {quote(old.schema or 'public')};\n"
            f"    ALTER TYPE {moved.sql} RENAME TO {named};\nEND $$",
            name=f"give the new type the name {old}",
        )
    )
    return tuple(steps)


def _require_labels(
    type: str, labels: Sequence[str], mapping: Mapping[str, str], rename: Mapping[str, str]
) -> None:
    gone, there = {*mapping, *rename}, {*mapping.values(), *rename.values()}
    if gone & {*labels} or there - {*labels}:
        wrong = listed(sorted(gone & {*labels} or there - {*labels}))
        what = "goes and stays" if gone & {*labels} else "is no label"
        raise MigrationError(
            f"{wrong} of the enum {type!r} {what}",
            "labels= holds those that are there afterwards; mapping= and rename= lead from others"
            " to these",
        )


def _cases(value: str, names: Mapping[str, str], type: str = "") -> str:
    """The value, or what is named for it."""
    if not names:
        return value
    whens = " ".join(f"WHEN {literal(a)} THEN {literal(b)}{type}" for a, b in names.items())
    return f"CASE {value} {whens} ELSE {value} END"


def advance_sequence(table: str, column: str) -> Step:
    """Let the sequence of a serial or identity column count on behind the highest value there is.

    For a table that got rows with numbers of their own, by :func:`insert_rows` or
    :func:`put_rows`.  A sequence that is further already stays.
    """
    name = TableName.parse(table)
    sequence = f"pg_get_serial_sequence({literal(name.sql)}, {literal(column)})::regclass"
    return sql(
        f"SELECT setval(sequence, greatest(highest, pg_sequence_last_value(sequence)))\n"
        f"  FROM (SELECT {sequence} AS sequence, max({quote(column)}) AS highest\n"
        f"          FROM {name.sql}) AS used",
        undo="",
        name=f"let {column} of {table} count on from its highest value",
    )

"""Functions that return several steps which belong together; they hold no logic beyond choosing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from hashlib import sha256
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from datamig_nb.checks import no_nulls
from datamig_nb.compound import change_type
from datamig_nb.expressions import Expression, expressions
from datamig_nb.migration import Step, Steps
from datamig_nb.names import TableName, literal, quote
from datamig_nb.operations import (
    add_column,
    alter_column,
    create_enum,
    drop_column,
    drop_table,
    sql,
)
from datamig_nb.steps import back_up, backfill


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
    table: str,
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


def rebuild_enum(
    type_: str,
    columns: Mapping[str, str],
    labels: Sequence[str],
    *,
    mapping: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Steps, ...]:
    """Give an enum type other labels, or another order, for the columns that are of it.

    A new type is made and the columns change to it in batches and a short swap, with defaults and
    indexes; then it takes the name of the old one, which goes to the schema ``datamig`` for the way
    back.  To add a label, or to rename one, ``ALTER TYPE`` by :func:`sql` is enough.

    Parameters
    ----------
    columns
        Table -> its column of that type: all that there are.
    labels
        The labels of the type afterwards, in their order.
    mapping
        Label that goes -> one that stays.  Which rows had it is kept.
    """
    old = TableName.parse(type_)
    new = TableName(old.schema, f"{old.name}_new")
    aside = TableName("datamig", f"{old.name}_{sha256(repr(labels).encode()).hexdigest()[:8]}")
    steps: list[Steps] = [create_enum(str(new), *labels)]
    whens = " ".join(f"WHEN {literal(a)} THEN {literal(b)}" for a, b in mapping.items())
    gone = ", ".join(map(literal, mapping))
    for table, column in columns.items():
        name = quote(column)
        mapped = f"CASE {name}::text {whens} ELSE {name}::text END" if mapping else f"{name}::text"
        if mapping:
            one_of = f"{name}::text IN ({gone})"
            steps.append(back_up(table, column))
            steps.append(backfill(table, {column: f"({mapped})::{old.sql}"}, where=one_of))
        back = f"{name}::text::{old.sql}"
        steps.append(change_type(table, column, new.sql, using=mapped, keep=False, back=back))
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

"""Functions that return several steps which belong together; they hold no logic beyond choosing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from hashlib import sha256
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from datamig_nb.checks import no_nulls, rows_check, unique
from datamig_nb.compound import change_type, create_table_as
from datamig_nb.errors import MigrationError
from datamig_nb.expr import array_elements, recode
from datamig_nb.expressions import Expression, expression_text, expressions, listed
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
    table: str,
    values: Mapping[str, Expression],
    *,
    not_null: bool = True,
    keep: bool = True,
    fire_triggers: bool = True,
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
    fire_triggers
        As of :func:`backfill`: False leaves ``updated_at`` alone.
    """
    given = expressions("fill_nulls", values)
    filled = {column: f"coalesce({quote(column)}, {text})" for column, text in given.items()}
    where = " OR ".join(f"{quote(column)} IS NULL" for column in given)
    name = TableName.parse(table)
    steps: list[Step] = [back_up(table, *given)] if keep else []
    filling = backfill(table, filled, where=where, fire_triggers=fire_triggers)
    steps += [filling, no_nulls(table, *given)]
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
    fire_triggers: bool = True,
) -> tuple[Step, ...]:
    """Add a column and fill it; where it is ``nullable=False``, it becomes NOT NULL in the end.

    ``expression`` and what follows it are those of :func:`backfill`.  Rows that the
    application writes later get a value by ``keep_in_step()``, or by a default.
    """
    name, nullable = TableName.parse(table), copy(column)
    nullable.nullable = True
    given = {column.name: expression}
    steps: list[Step] = [
        add_column(name.name, nullable, schema=name.schema),
        backfill(table, given, where=where, using=using, on=on, fire_triggers=fire_triggers),
    ]
    if column.nullable is False:
        steps += [
            no_nulls(table, column.name),
            alter_column(name.name, column.name, nullable=False, schema=name.schema),
        ]
    return tuple(steps)


def fill_unique(
    table: str,
    column: str,
    base: Expression,
    *,
    where: Expression | None = None,
    within: Sequence[str] = (),
    order: str | None = None,
    key: str | Sequence[str] = "id",
) -> tuple[Step, ...]:
    """Give rows names that no other row has: the base, or ``base-2``, ``base-3`` and so on.

    A number is passed over where it would make the name that another row keeps, or another base.
    What was there before is kept for the way back; a unique constraint is a step of its own.

    Parameters
    ----------
    base
        SQL expression over the row, as :func:`datamig_nb.expr.slug` gives one; leave room for the
        number where the column has a length.  NULL leaves the row as it is.
    where
        The rows that get a name, by default those that have NULL; the others keep theirs.
    within
        Columns in whose rows a name is unique: ``("team_id",)``.  () for the whole table.
    order
        ORDER BY in which rows of one base are numbered, by default that of ``key``.
    key
        The table's key.
    """
    name = TableName.parse(table)
    keys = (key,) if isinstance(key, str) else tuple(key)
    rows = f"{quote(column)} IS NULL" if where is None else expression_text(where)
    names = TableName("datamig", cut(f"names_{name.name}_{column}"))
    text = _unique_names(name, column, expression_text(base), rows, within, order, keys)
    named = {f"its_{part}": f"{quote(name.name)}.{quote(part)}" for part in keys}
    same = " AND ".join(f"named.{quote(own)} = {part}" for own, part in named.items())
    given, found = {column: "named.unique_name"}, f"{names.sql} AS named"
    return (
        create_table_as(names, text, key=tuple(named)),
        back_up(table, column),
        backfill(table, given, where=rows, using=found, on=same),
        unique(table, *within, column),
    )


def _unique_names(
    table: TableName,
    column: str,
    base: str,
    rows: str,
    within: Sequence[str],
    order: str | None,
    key: Sequence[str],
) -> str:
    """Of the n rows of a base, each takes the one of the first n free numbers that is its place."""
    keys = ", ".join(map(quote, key))
    its_keys = ", ".join(f"named.{quote(part)} AS {quote(f'its_{part}')}" for part in key)
    by = keys if order is None else f"{order}, {keys}"
    scope = f"jsonb_build_array({', '.join(map(quote, within))})"  # NULL is the same as NULL
    return f"""WITH named AS (
    SELECT {keys}, {scope} AS datamig_scope, ({base})::text AS datamig_base,
           row_number() OVER (PARTITION BY {scope}, {base} ORDER BY {by}) AS datamig_place
      FROM {table.sql}
     WHERE ({rows}) AND ({base}) IS NOT NULL
), bases AS (
    SELECT datamig_scope AS scope, datamig_base AS name, count(*) AS times
      FROM named GROUP BY 1, 2
), taken AS (
    SELECT {scope} AS scope, {quote(column)}::text AS name
      FROM {table.sql} WHERE ({rows}) IS NOT TRUE
), numbered AS (  -- that end in a number, by what stands before it
    SELECT scope, regexp_replace(name, '-[0-9]+$', '') AS name, count(*) AS times
      FROM (SELECT scope, name FROM taken UNION ALL SELECT scope, name FROM bases) AS every_name
     WHERE name ~ '-[0-9]+$' GROUP BY 1, 2
), free AS (
    SELECT scope, base, name, row_number() OVER (PARTITION BY scope, base ORDER BY number) AS place
      FROM (SELECT bases.scope, bases.name AS base, number,
                   bases.name || CASE WHEN number > 1 THEN '-' || number ELSE '' END AS name
              FROM bases LEFT JOIN numbered USING (scope, name),
                   generate_series(1, 1 + bases.times + coalesce(numbered.times, 0)) AS number
           ) AS candidate
     WHERE NOT EXISTS (SELECT FROM taken
                        WHERE (taken.scope, taken.name) = (candidate.scope, candidate.name))
       AND (number = 1
            OR NOT EXISTS (SELECT FROM bases
                            WHERE (bases.scope, bases.name) = (candidate.scope, candidate.name)))
)
SELECT {its_keys}, free.name AS unique_name
  FROM named JOIN free ON (scope, base, place) = (datamig_scope, datamig_base, datamig_place)"""


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
    columns: Mapping[str, str | Sequence[str]],
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
        Table -> its column of that type, or several; ``"states[]"`` is an array of it.  All that
        there are.
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
    steps: list[Steps] = [create_enum(str(new), *labels)]
    changes: list[Steps] = []
    for table, several in columns.items():
        for written in (several,) if isinstance(several, str) else several:
            column, array = written.removesuffix("[]"), "[]" if written.endswith("[]") else ""
            text = f"{quote(column)}::text{array}"
            if mapping:
                stays = _recoded(text, merged, array)
                gone = ", ".join(map(literal, mapping))
                where = f"{text} && ARRAY[{gone}]" if array else f"{text} IN ({gone})"
                steps += [
                    back_up(table, column),
                    backfill(table, {column: f"({stays})::{old.sql}{array}"}, where=where),
                ]
            value = _recoded(text, {**mapping, **rename}, array)
            back = f"({_recoded(text, olds, array)})::{old.sql}{array}"
            changes.append(
                change_type(table, column, new.sql + array, using=value, keep=False, back=back)
            )
    steps += changes
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


def _recoded(text: str, codes: Mapping[str, str], array: str) -> str:
    return array_elements(text, recode("element", codes)) if array else recode(text, codes)


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

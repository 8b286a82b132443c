"""What belongs to a column whose type changes: default, sequence, comment, grants."""

from __future__ import annotations

import re
from collections.abc import Sequence

import sqlalchemy as sa

from datamig_nb.compound import Exchanged
from datamig_nb.errors import MigrationError, QueryError
from datamig_nb.names import TableName, literal, quote
from datamig_nb.sql_analysis import refusals, volatile_names
from datamig_nb.swaps import renamed
from datamig_nb.type_change_value import WHOLE, Change, reads_new_columns

_BELONGING = """
SELECT attnotnull, attidentity::text, pg_get_expr(adbin, adrelid) AS default,
       col_description(attrelid, attnum) AS comment,
       pg_get_serial_sequence(:table, :column) AS sequence,
       (SELECT conname::text FROM pg_constraint
         WHERE conrelid = attrelid AND contype = 'n' AND conkey = ARRAY[attnum]) AS not_null,
       ARRAY(SELECT format('GRANT %s (%I) ON %s TO %s%s', privilege_type, attname, :table,
                           CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
                           CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
               FROM aclexplode(attacl)) AS grants
  FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
 WHERE attrelid = to_regclass(:table) AND attname = :column
"""

_SEQUENCE = """
SELECT format('START WITH %s INCREMENT BY %s CACHE %s%s', seqstart, seqincrement, seqcache,
              CASE WHEN seqcycle THEN ' CYCLE' ELSE '' END)
  FROM pg_sequence WHERE seqrelid = to_regclass(:sequence)
"""


def exchanged(connection: sa.Connection, change: Change, changes: Sequence[Change]) -> Exchanged:
    """The columns that change places, and what goes along: default, identity, grants."""
    step = change.step
    values = {"table": step.table.sql, "column": step.column}
    row = connection.execute(sa.text(_BELONGING), values).one()
    identity = None
    if row.attidentity:
        options = connection.execute(sa.text(_SEQUENCE), {"sequence": row.sequence}).scalar_one()
        how = "ALWAYS" if row.attidentity == "a" else "BY DEFAULT"
        identity = f"GENERATED {how} AS IDENTITY (SEQUENCE NAME {row.sequence} {options})"
    notes = list(row.grants)
    if row.comment is not None:
        at = f"{step.table.sql}.{quote(step.column)}"
        notes.insert(0, f"COMMENT ON COLUMN {at} IS {literal(row.comment)}")
    if row.not_null is not None:
        notes.append(_named(step.table, step.column, row.not_null))
    olds = {c.step.column: c.old for c in changes if c.step.table == step.table}
    forward = renamed(change.value, olds, step.table.name)
    if reads_new_columns(change, changes):  # of a table whose columns changed places too
        names = {c.new: c.step.column for c in changes} | {c.step.column: c.old for c in changes}
        forward = renamed(change.value, names, None)
    return Exchanged(
        table=step.table,
        column=step.column,
        new=change.new,
        old=change.old,
        type=change.type,
        old_type=change.old_type,
        keep=step.keep,
        forward=forward,
        back=step.back,
        volatile=change.volatile,
        not_null=row.attnotnull,
        old_default=row.default,
        new_default=None if row.default is None else _new_default(connection, change, row.default),
        sequence=row.sequence,
        identity=identity,
        notes=tuple(notes),
    )


def _named(table: TableName, column: str, name: str) -> str:
    """Give the NOT NULL of a column its name: since PostgreSQL 18 it has one, made of another's."""
    return (
        "EXECUTE coalesce((SELECT format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I',"
        f" conrelid::regclass, conname, {literal(name)})\n"
        "        FROM pg_constraint\n"
        "        JOIN pg_attribute ON attrelid = conrelid AND conkey = ARRAY[attnum]\n"
        f"       WHERE conrelid = {literal(table.sql)}::regclass AND contype = 'n'\n"
        f"         AND attname = {literal(column)} AND conname <> {literal(name)}), 'SELECT')"
    )


def _new_default(connection: sa.Connection, change: Change, default: str) -> str:
    """What the expression makes of the default; of a sequence's next number nothing."""
    step = change.step
    if {change.bare_type, change.old_type} <= {*WHOLE}:
        return default
    given = f"CAST({default} AS {change.old_type})"
    given = re.sub(
        rf"(?<![\w.\"]){re.escape(quote(step.column))}(?![\w(\"])", lambda _: given, change.pattern
    )
    is_volatile = volatile_names(connection, [given])
    which = " WHERE FALSE" if is_volatile else ""
    try:
        with refusals(connection) as cursor:
            cursor.execute(f"SELECT ({given})::text{which}".encode())
            (found,) = cursor.fetchone() or (None,)
    except QueryError as error:
        reads = error.sqlstate == "42703"  # a column
        what = (
            "and a default cannot read other columns"
            if reads
            else (f"which is no value of type {change.type}: {error.reason}")
        )
        raise MigrationError(
            f"{step.column!r} of {str(step.table)!r} has the default {default}, {what}",
            "take it away with alter_column(…, server_default=None) in a step before",
        ) from error
    if is_volatile:
        return given
    return "NULL" if found is None else f"{literal(found)}::{change.type}"

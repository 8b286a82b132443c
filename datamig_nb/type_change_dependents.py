"""What hangs on columns whose types change: keys, indexes, constraints; and what is in the way."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from datamig_nb.compound import Hanging
from datamig_nb.errors import MigrationError, QueryError
from datamig_nb.names import TableName, cut, literal, quote
from datamig_nb.sql_analysis import result_columns
from datamig_nb.step_effects import Thing
from datamig_nb.steps import KeepInStep
from datamig_nb.swaps import renamed
from datamig_nb.type_change_value import WHOLE, Change

_HANGING = """
SELECT contype::text AS kind, n.nspname AS schema, t.relname AS table, conname AS name,
       pg_get_constraintdef(c.oid) AS definition,
       CASE WHEN contype IN ('p', 'u') THEN pg_get_indexdef(conindid) END AS index,
       obj_description(c.oid, 'pg_constraint') AS comment,
       fn.nspname AS parent_schema, ft.relname AS parent, TRUE AS unique,
       coalesce(indisreplident, FALSE) AS identity, coalesce(indisclustered, FALSE) AS clustered,
       CASE WHEN contype IN ('p', 'u') THEN ARRAY(
           SELECT attname::text FROM unnest(conkey) WITH ORDINALITY AS k (num, place)
             JOIN pg_attribute ON attrelid = conrelid AND attnum = num ORDER BY place
       ) END AS columns,
       ARRAY[CASE contype WHEN 'c' THEN pg_get_expr(conbin, conrelid) END] AS texts
  FROM pg_constraint c
  JOIN pg_class t ON t.oid = conrelid JOIN pg_namespace n ON n.oid = t.relnamespace
  LEFT JOIN pg_class ft ON ft.oid = confrelid LEFT JOIN pg_namespace fn ON fn.oid = ft.relnamespace
  LEFT JOIN pg_index ON indexrelid = conindid AND contype IN ('p', 'u')
 WHERE contype IN ('p', 'u', 'f', 'c', 'x')
   AND (conrelid = to_regclass(:table) AND :number = ANY (conkey)
        OR confrelid = to_regclass(:table) AND :number = ANY (confkey))
 UNION ALL
SELECT 'i', n.nspname, t.relname, x.relname, pg_get_indexdef(indexrelid), NULL,
       obj_description(indexrelid, 'pg_class'), NULL, NULL, indisunique,
       indisreplident, indisclustered, NULL,
       ARRAY[pg_get_expr(indexprs, indrelid), pg_get_expr(indpred, indrelid)]
  FROM pg_index
  JOIN pg_class t ON t.oid = indrelid JOIN pg_namespace n ON n.oid = t.relnamespace
  JOIN pg_class x ON x.oid = indexrelid
 WHERE indrelid = to_regclass(:table)
   AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype <> 'f')
   AND (:number = ANY (indkey::smallint[])
        OR EXISTS (SELECT FROM pg_depend
                    WHERE classid = 'pg_class'::regclass AND objid = indexrelid
                      AND refobjid = indrelid AND refobjsubid = :number))
 ORDER BY kind DESC, "table", name
"""

# What reads the column and cannot be made for the new one beside it.
_IN_THE_WAY = """
SELECT DISTINCT pg_describe_object(
           CASE WHEN classid = 'pg_rewrite'::regclass THEN 'pg_class'::regclass ELSE classid END,
           coalesce(ev_class, objid), CASE WHEN ev_class IS NULL THEN objsubid ELSE 0 END) AS what,
       coalesce((SELECT relname FROM pg_class WHERE oid = ev_class),
                (SELECT tgname FROM pg_trigger
                  WHERE classid = 'pg_trigger'::regclass AND oid = objid)) AS name
  FROM pg_depend LEFT JOIN pg_rewrite ON classid = 'pg_rewrite'::regclass AND pg_rewrite.oid = objid
 WHERE refclassid = 'pg_class'::regclass AND refobjid = to_regclass(:table)
   AND refobjsubid = :number AND classid <> 'pg_constraint'::regclass
   AND NOT EXISTS (SELECT FROM pg_trigger
                    WHERE classid = 'pg_trigger'::regclass AND pg_trigger.oid = objid
                      AND tgname = :trigger)  -- an earlier phase of the same migration made it
   AND NOT (classid = 'pg_attrdef'::regclass
            AND EXISTS (SELECT FROM pg_attrdef AS d WHERE d.oid = objid AND adnum = refobjsubid))
   AND NOT (classid = 'pg_class'::regclass
            AND (SELECT relkind FROM pg_class WHERE pg_class.oid = objid) IN ('i', 'I', 'S'))
 ORDER BY 1
"""


def all_hanging(
    connection: sa.Connection,
    changes: Sequence[Change],
    gone: set[Thing],
    keeps: Mapping[TableName, KeepInStep],
    dropped: Collection[str],
) -> list[Hanging]:
    """The keys, indexes and constraints of the columns, but those that earlier steps drop.

    ``keeps`` are the steps that keep the new columns in step, ``dropped`` names of views and
    triggers that go before.
    """
    found: dict[tuple[TableName, str], Hanging] = {}
    for change in changes:
        values = {"table": change.step.table.sql, "number": change.number}
        values["trigger"] = f"zz_datamig_{keeps[change.step.table].digest}"
        reading = connection.execute(sa.text(_IN_THE_WAY), values)
        others = [row.what for row in reading if row.name not in dropped]
        if others:
            raise MigrationError(
                f"{', '.join(others)} reads {change.step.column!r} of {str(change.step.table)!r},"
                " and would go on reading the old values",
                "drop it by sql() in a step before, and make it again in one behind",
            )
        for row in connection.execute(sa.text(_HANGING), values):
            # A table has the schema that it was given: none where the search path finds it.
            table = _called(row.schema, row.table, changes)
            thing = ("relation" if row.kind == "i" else "constraint", table, str(row.name))
            index = ("relation", TableName(table.schema, str(row.name)), "")
            if thing in gone or (row.kind == "i" and index in gone):
                continue
            found[table, row.name] = _one_hanging(row, table, changes)
            for text in filter(None, row.texts):
                _require_fits(connection, str(row.name), text, table, changes)
    # Keys first, the largest thing to wait for; foreign keys behind what they refer to.
    return sorted(found.values(), key=lambda each: "puicf".index(each.kind))


def _called(schema: str, name: str, changes: Sequence[Change]) -> TableName:
    for change in changes:
        if change.step.table.name == name and change.step.table.schema in (None, schema):
            return change.step.table
    return TableName(schema, name)


def _require_fits(
    connection: sa.Connection, name: str, text: str, table: TableName, changes: Sequence[Change]
) -> None:
    """An expression over the columns must be one over those of the new types too."""
    here = [change for change in changes if change.step.table == table]
    news = ", ".join(f"CAST(NULL AS {change.type}) AS {quote(change.new)}" for change in here)
    names = {change.step.column: change.new for change in here}
    query = f"SELECT {renamed(text, names)}\n  FROM (SELECT *, {news} FROM {table.sql}) AS changed"
    try:
        result_columns(connection, f"{query} LIMIT 0")
    except QueryError as error:
        # an enum that is yet to be made
        reason = "it names the old one" if error.sqlstate == "42704" else error.reason
        raise MigrationError(
            f"{name!r} of {str(table)!r} says {text}, which does not go with the new type:"
            f" {reason}",
            "drop it in a step before, and make another behind",
        ) from error


_FOREIGN_KEY = re.compile(r"FOREIGN KEY \((.*?)\) REFERENCES .*?\((.*?)\)(.*)\Z", re.S)


def _one_hanging(row: Any, table: TableName, changes: Sequence[Change]) -> Hanging:
    name, definition = str(row.name), str(row.definition)
    successor = cut(f"datamig_{hashlib.sha256(f'{table}.{name}'.encode()).hexdigest()[:8]}_{name}")
    if row.kind == "x" or definition.endswith(("NOT VALID", "NOT ENFORCED")):
        raise MigrationError(
            f"the constraint {name!r} of {str(table)!r} cannot be made for a new column as it is",
            "drop it in a step before, or validate it",
        )
    notes: list[str] = []
    is_index = row.kind == "i"
    if row.comment is not None:
        at = (
            f"INDEX {TableName(table.schema, name).sql}"
            if is_index
            else (f"CONSTRAINT {quote(name)} ON {table.sql}")
        )
        notes.append(f"COMMENT ON {at} IS {literal(row.comment)}")
    if row.identity:
        notes.append(f"ALTER TABLE {table.sql} REPLICA IDENTITY USING INDEX {quote(name)}")
    if row.clustered:
        notes.append(f"ALTER TABLE {table.sql} CLUSTER ON {quote(name)}")
    more: dict[str, Any] = {}
    if row.kind in ("p", "u", "i"):
        text = definition if is_index else str(row.index)
        if row.kind != "i":
            deferred = re.search(r"(?: DEFERRABLE)?(?: INITIALLY DEFERRED)?\Z", definition)
            more["options"] = deferred[0] if deferred else ""
            more["columns"] = tuple(row.columns)
        more["unique"] = row.unique
        definition = text[text.index(" USING ") + 1 :]
    elif row.kind == "f":
        parts = _FOREIGN_KEY.match(definition)
        assert parts is not None
        parent = _called(row.parent_schema, row.parent, changes)
        _require_together(name, table, parent, parts[1], parts[2], changes)
        definition = parts[1]
        more |= {"parent": parent, "parent_columns": parts[2], "actions": parts[3]}
    return Hanging(
        kind=row.kind,
        table=table,
        name=name,
        definition=definition,
        successor=successor,
        notes=tuple(notes),
        **more,
    )


def _require_together(
    name: str,
    child: TableName,
    parent: TableName,
    columns: str,
    parent_columns: str,
    changes: Sequence[Change],
) -> None:
    """Both ends of a foreign key change, or both are whole numbers."""
    known = {(change.step.table, quote(change.step.column)): change for change in changes}
    for column, above in zip(columns.split(", "), parent_columns.split(", "), strict=True):
        here, there = known.get((child, column)), known.get((parent, above))
        one = here or there
        if (here and there) or one is None or {one.bare_type, one.old_type} <= {*WHOLE}:
            continue
        other = f"{above} of {parent}" if here else f"{column} of {child}"
        raise MigrationError(
            f"the foreign key {name!r} joins {one.step.column} of {one.step.table} to {other},"
            " whose type would stay",
            "change both, one change_type() next to the other, or drop the key in a step before",
        )

"""Values that Python cannot hold, looked for before a migration's first write.

Among them are ``infinity``, 24:00, the year 10,000, a JSON ``null`` (which would come back as NULL)
and arrays that do not count from 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from datamig_nb.checks import RowCheck
from datamig_nb.inlined_values import Kind
from datamig_nb.names import TableName
from datamig_nb.sql_analysis import result_columns
from datamig_nb.transforms import Transform

# Type -> SQL condition of the values {} that Python cannot hold.
_UNREADABLE = {
    "date": "{} < '0001-01-01' OR {} > '9999-12-31'",
    "time": "{} = '24:00'",
    "timetz": "{}::text LIKE '24:%'",
    "timestamp": "{} < '0001-01-01' OR {} >= '10000-01-01'",
    "timestamptz": "{} < '0001-01-02 00:00+00' OR {} >= '9999-12-31 00:00+00'",
    "json": "json_typeof({}) = 'null'",
    "jsonb": "jsonb_typeof({}) = 'null'",
}

# A type by its number: its name, that behind its domain or of its elements, whether it is an array.
_KINDS = """
SELECT format_type(pg_type.oid, NULL),
       coalesce(base.typname, element.typname, pg_type.typname)::text,
       element.oid IS NOT NULL
  FROM unnest(CAST(:types AS oid[])) WITH ORDINALITY AS asked (id, place)
  JOIN pg_type ON pg_type.oid = asked.id LEFT JOIN pg_type AS element
    ON pg_type.typcategory = 'A' AND element.oid = pg_type.typelem
  LEFT JOIN pg_type AS base ON element.typtype = 'd' AND base.oid = element.typbasetype
 ORDER BY place
"""


def kinds(connection: sa.Connection, table: TableName, expressions: Sequence[str]) -> list[Kind]:
    """The types of expressions over the rows of a table."""
    query = f"SELECT {', '.join(expressions)} FROM {table.sql} LIMIT 0"
    types = [column.type for column in result_columns(connection, query)]
    return [Kind(*row) for row in connection.execute(sa.text(_KINDS), {"types": types})]


def readable_checks(
    connection: sa.Connection, step: Transform, expression: str
) -> tuple[RowCheck, ...]:
    """The check that Python can hold what a transform reads; none where it can hold any value."""
    (kind,) = kinds(connection, step.table, [expression])
    condition = _unreadable(expression, kind.base, is_array=kind.is_array)
    if condition is None:
        return ()
    if step.where is not None:
        condition = f"({step.where}) AND ({condition})"
    name = f"Python can hold every {expression} of {step.table} (else read its text, or leave it)"
    return (RowCheck(name=name, table=step.table, failing=condition, before=True),)


def _unreadable(expression: str, base: str, *, is_array: bool) -> str | None:
    condition = _UNREADABLE.get(base)
    if not is_array:
        return condition and condition.replace("{}", f"({expression})")
    # Lists count from 1; and a list in an array of JSON could be a dimension or a value.
    found = rf"array_dims({expression}) !~ '^(\[1:[0-9]+\])+$'"
    if base in ("json", "jsonb"):
        found += f" OR array_ndims({expression}) > 1"
    if condition:
        element = condition.replace("{}", "element")
        found += f" OR EXISTS (SELECT FROM unnest({expression}) AS element WHERE {element})"
    return found

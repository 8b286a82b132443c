"""Rows that a table shall have, whatever it had before: given in Python, put in or corrected."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import pandas as pd

from datamig_nb.errors import MigrationError
from datamig_nb.expressions import listed
from datamig_nb.names import TableName, literal, quote
from datamig_nb.steps import InsertRows, insert_rows

# What rendered statements use themselves, as JSON may write it too.
_MARKS = {"{batch}": r"\u007bbatch}", "$datamig$": r"\u0024datamig$"}


def put_rows(
    table: str | TableName,
    rows: Sequence[Mapping[str, Any]] | pd.DataFrame,
    *,
    key: str | Sequence[str],
) -> InsertRows:
    """Insert the rows, or give those that are there the values that they shall have.

    A row that is right already is not written; columns that are not named keep their values, and
    get their defaults in new rows.  The downgrade takes out the rows that were put in, restores
    those that were changed, and lists in ``datamig.conflict`` those edited since.  Numbers given
    for a column with a sequence do not move the sequence on: :func:`advance_sequence` does.

    Parameters
    ----------
    rows
        Mappings, each with the same columns, or a DataFrame, where missing values become NULL.
        Values are None, bool, int, float, Decimal, str, UUID, date, time or datetime; a list
        fills an array, and a mapping or a list a column of JSON.  The table gives the types.
    key
        Columns with a unique index, by which a row is found; never NULL here.

    Raises
    ------
    MigrationError
        If there are no rows, their columns differ, a key is missing, NULL or given twice, or a
        value is of another type.
    """
    name, keys = TableName.parse(table), (key,) if isinstance(key, str) else tuple(key)
    given = _records(rows)
    _require_keys(name, given, keys)
    columns = [*given[0]]
    return insert_rows(
        name,
        f"SELECT {', '.join(map(quote, columns))}\n"
        f"  FROM jsonb_populate_recordset(NULL::{name.sql}, {literal(_json_rows(given))}::jsonb)",
        key=keys,
        columns=columns,
        on_conflict=_on_conflict(name, columns, keys),
    )


def _records(rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> list[Mapping[str, Any]]:
    if not isinstance(rows, pd.DataFrame):
        return [*rows]
    frame = rows.astype(object)
    return cast("list[Mapping[str, Any]]", frame.where(frame.notna(), None).to_dict("records"))


def _require_keys(table: TableName, rows: list[Mapping[str, Any]], key: Sequence[str]) -> None:
    if not rows:
        raise MigrationError(f"put_rows() has no rows for {str(table)!r}", "give at least one")
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        if row.keys() != rows[0].keys():
            raise MigrationError(
                f"row {number} for {str(table)!r} has not the columns of row 1:"
                f" {listed(sorted(row.keys() ^ rows[0].keys()))} is in one of them only",
                "give each row the same columns, None where a value is NULL",
            )
        for column in key:
            if row.get(column) is None:
                what = "is NULL" if column in row else "is missing"
                raise MigrationError(
                    f"the key column {column!r} {what} in row {number} for {str(table)!r}",
                    "a row is found by its key: give it a value, or name other columns in key=",
                )
        values = ", ".join(_json(row[column]) for column in key)
        if values in seen:
            raise MigrationError(
                f"the key {values} comes twice in the rows for {str(table)!r}",
                "leave one of them out, or name more columns in key=",
            )
        seen.add(values)


def _on_conflict(table: TableName, columns: Sequence[str], key: Sequence[str]) -> str:
    target = f"({', '.join(map(quote, key))})"
    values = [quote(column) for column in columns if column not in key]
    if not values:
        return f"{target} DO NOTHING"
    news = ", ".join(f"{value} = excluded.{value}" for value in values)
    # as text, so that it sees what = does not: other case of citext, and any value of json
    old, new = (
        f"ROW({', '.join(f'{row}.{value}' for value in values)})::text"
        for row in (quote(table.name), "excluded")
    )
    return f"{target} DO UPDATE SET {news}\n WHERE {old} <> {new}"


def _json_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """A JSON array, a line for each row."""
    text = "[\n" + ",\n".join(f"    {_json(row)}" for row in rows) + "\n]"
    for mark, same in _MARKS.items():
        text = text.replace(mark, same)
    return text


def _json(value: Any) -> str:
    """The value as JSON that PostgreSQL reads as a value of the column's type."""
    match value:
        case float() if value.is_integer():  # what a missing value makes of a column of int
            return str(int(value))
        case float() | Decimal():
            return str(value) if math.isfinite(value) else f'"{value}"'
        case str() if "\0" not in value:
            return json.dumps(value, ensure_ascii=False)
        case None | bool() | int():
            return json.dumps(value)
        case date() | datetime() | time():
            return f'"{value.isoformat()}"'
        case UUID():
            return f'"{value}"'
        case Mapping():
            pairs = cast("Mapping[str, Any]", value).items()
            return (
                "{" + ", ".join(f"{_json(str(name))}: {_json(each)}" for name, each in pairs) + "}"
            )
        case list() | tuple():
            return "[" + ", ".join(map(_json, cast("Sequence[Any]", value))) + "]"
        case _:
            raise MigrationError(
                f"put_rows() cannot write {value!r}, of type {type(value).__name__!r}",
                "give None, bool, int, float, Decimal, str without \\0, UUID, date, time,"
                " datetime, or lists and mappings of these",
            )

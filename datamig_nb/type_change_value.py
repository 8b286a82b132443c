"""A change of type: what the catalog says of the column, and its new value as SQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from datamig_nb import expr
from datamig_nb.compound import ChangeType
from datamig_nb.errors import ExpressionError, MigrationError, QueryError
from datamig_nb.names import cut, literal, quote
from datamig_nb.sql_analysis import result_columns, volatile_names
from datamig_nb.statements import names_in
from datamig_nb.tables import Table, read_table

#: Types of whole numbers: a foreign key may join one to another.
WHOLE = ("smallint", "integer", "bigint")
_TEXTS = ("text", "character varying", "character", "name", "unknown", "citext")

# Forms of text that mean the same whatever the session's DateStyle and TimeZone.
_ISO = r"^\s*\d{4}-\d\d-\d\d"
_FORMS = {
    "date": _ISO,
    "timestamp without time zone": _ISO,
    "timestamp with time zone": rf"{_ISO}.*(Z|z|UTC|[+-]\d\d(:?\d\d)?)\s*$",
}


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is known of one change of a type."""

    step: ChangeType
    table: Table
    #: Number of the column in pg_attribute.
    number: int
    #: Type with and without its length; that of the column as it is.
    type: str
    bare_type: str
    old_type: str
    #: Expression over the row for the new value.
    value: str
    #: The same for a value of the column itself that is given: a default.
    pattern: str
    #: Condition: the row holds a value.
    has: str
    volatile: bool

    @property
    def new(self) -> str:
        """Name of the new column until the swap."""
        return cut(f"{self.step.column}_new")

    @property
    def old(self) -> str:
        """Name of the old one after it."""
        return cut(f"{self.step.column}_old")


def change_of(
    connection: sa.Connection, step: ChangeType, major: int, new: Collection[str]
) -> Change:
    """What the catalog says of a change; ``new`` are names that steps before it make."""
    table = read_table(connection, step.table)
    column = table.column(step.column)
    if table.partitioned or table.kind != "table":
        raise MigrationError(
            f"{str(step.table)!r} is no plain table, whose columns could change places",
            "change its partitions one by one, or write the statements with sql()",
        )
    if column.computed:
        raise MigrationError(
            f"{step.column!r} of {str(step.table)!r} is generated", "drop it, and add it anew"
        )
    using = step.using or quote(step.column)
    type, bare_type, given, number = _types(connection, step, using, new)
    plain = f"CAST({using} AS {type})"
    value = using if given == type else plain
    if given.partition("(")[0] in _TEXTS and bare_type not in _TEXTS and major >= 16:
        valid = f"pg_input_is_valid(({using})::text, {literal(type)})"
        if form := _FORMS.get(bare_type):
            valid = f"({using})::text ~ {literal(form)} AND {valid}"
        value = f"CASE WHEN {valid} THEN {plain} END"
    elif given.partition("(")[0] in _TEXTS and type in expr.WRITTEN:
        value = expr.try_cast(using, type, server=major)
    elif bare_type != given.partition("(")[0] and {bare_type, given} & _ZONED:
        raise MigrationError(
            f"{step.column!r} of {str(step.table)!r} as {type} would depend on the time zone of the"
            " session",
            f"say the zone: using=\"{step.column} AT TIME ZONE 'UTC'\"",
        )
    pattern = plain if given != type else using
    if names_in(step.type) & {*new}:  # an enum that is yet to be made
        pattern = f"({using})::text"
    name = quote(step.column)
    has = f"{name} IS NOT NULL"
    if step.nulls:
        texts = ", ".join(map(literal, step.nulls))
        value = f"CASE WHEN {name}::text IN ({texts}) THEN NULL ELSE {value} END"
        has += f" AND {name}::text NOT IN ({texts})"
    if step.otherwise is not None:
        # without its length, for a cast would cut what is too long
        other = f"CAST({step.otherwise} AS {bare_type})"
        value = f"coalesce({value}, CASE WHEN {has} THEN {other} END)"
    return Change(
        step=step,
        table=table,
        number=number,
        type=type,
        bare_type=bare_type,
        old_type=column.type,
        value=value,
        pattern=pattern,
        has=has,
        volatile=bool(volatile_names(connection, [value])),
    )


_ZONED = {"timestamp with time zone", "time with time zone"}


def _types(
    connection: sa.Connection, step: ChangeType, using: str, new_names: Collection[str]
) -> tuple[str, str, str, int]:
    """The new type with and without its length, that of the expression; the column's number."""
    told: list[tuple[int, int]] = []
    for text in (f"CAST(NULL AS {step.type})", f"({using})"):
        try:
            (column,) = result_columns(connection, f"SELECT {text} FROM {step.table.sql} LIMIT 0")
            told.append((column.type, column.modifier))
        except QueryError as error:
            if error.sqlstate == "42704" and names_in(step.type) & {*new_names} and not told:
                told.append((0, -1))  # an enum that is yet to be made
            elif error.sqlstate in ("42703", "42P01") and told:
                told.append(told[0])  # it reads what is yet to be made: the rehearsal will tell
            else:
                advice = "write a type, and an expression over a row"
                raise ExpressionError(text, error.reason, advice) from error
    (new, length), (given, given_length) = told
    query = sa.text(
        "SELECT format_type(:new, :length), format_type(:new, NULL), format_type(:given, :limit),"
        " attnum FROM pg_attribute WHERE attrelid = to_regclass(:table) AND attname = :column"
    )
    values = {"new": new, "length": length, "given": given, "limit": given_length}
    names = {"table": step.table.sql, "column": step.column}
    row = connection.execute(query, values | names).one()
    if new == 0:
        row = (step.type, step.type, *row[2:])
    return tuple(row)  # pyright: ignore[reportReturnType]


def reads_new_columns(change: Change, changes: Sequence[Change]) -> bool:
    """Whether its value reads what another change makes."""
    return bool(names_in(change.value) & {other.new for other in changes})

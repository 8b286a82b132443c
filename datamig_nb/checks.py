"""What must hold: queries of failing rows, and figures that must stay the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from datamig_nb.errors import MigrationError
from datamig_nb.expressions import Expression, expression_text, listed
from datamig_nb.names import TableName, literal, quote


@dataclass(frozen=True, kw_only=True)
class RowCheck:
    """A condition that no row of a table may meet."""

    #: What holds when the check passes, in words.
    name: str
    #: Table that is read.
    table: TableName
    #: SQL condition, true for a failing row.
    failing: str
    #: True: checked before the first write.  False: checked after the data steps.
    before: bool = False

    def __str__(self) -> str:
        return f"check {'first' if self.before else 'that'}: {self.name}"


@dataclass(frozen=True, kw_only=True)
class QueryCheck:
    """A query that may return no row."""

    #: What holds when the check passes, in words.
    name: str
    #: SELECT that returns the failing rows, their keys first.
    failing: str
    #: True: checked before the first write.  False: checked after the data steps.
    before: bool = False

    def __str__(self) -> str:
        return f"check {'first' if self.before else 'that'}: {self.name}"


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """A figure that must be the same after the migration as before its first write."""

    #: What is counted or summed, in words.
    name: str
    #: SELECT that gives one value.
    value: str

    def __str__(self) -> str:
        return f"check that unchanged: {self.name}"


#: What is a query of failing rows, and can be asked again whenever one likes.
Check: TypeAlias = RowCheck | QueryCheck


def check(name: str, failing: str, *, before: bool = False) -> QueryCheck:
    """A check of your own: ``failing`` is a SELECT of the failing rows, their keys first."""
    return QueryCheck(name=name, failing=expression_text(failing).rstrip("; \n"), before=before)


def rows_check(
    name: str, table: str | TableName, failing: Expression, *, before: bool = False
) -> RowCheck:
    """A check over the rows of one table: ``failing`` is a condition, true for a failing row.

    Checks of this kind over the same table are answered together, in one pass.
    """
    return RowCheck(
        name=name,
        table=TableName.parse(table),
        failing=expression_text(failing),
        before=before,
    )


def no_nulls(table: str | TableName, *columns: str) -> RowCheck:
    """No row has NULL in one of the columns."""
    return rows_check(
        f"{listed(columns)} of {table} without NULL",
        table,
        " OR ".join(f"{quote(column)} IS NULL" for column in columns),
    )


def allowed_values(table: str | TableName, column: str, values: Iterable[str]) -> RowCheck:
    """A column holds only these values, or NULL."""
    allowed = ", ".join(literal(value) for value in values)
    if not allowed:
        raise MigrationError(f"no value of {column!r} is allowed", "name at least one")
    return rows_check(
        f"{column} of {table} holds only {allowed}",
        table,
        f"{quote(column)}::text NOT IN ({allowed})",
    )


def matches(
    table: str | TableName, column: str, expression: Expression, *, where: Expression | None = None
) -> RowCheck:
    """A column equals an expression, NULL included; best written another way than the backfill."""
    differs = f"{quote(column)} IS DISTINCT FROM ({expression_text(expression)})"
    if where is not None:
        differs = f"({expression_text(where)}) AND {differs}"
    return rows_check(f"{column} of {table} is what its source says", table, differs)


def unique(table: str, *columns: str) -> QueryCheck:
    """No two rows have the same values in the columns; NULL equals nothing."""
    name = TableName.parse(table)
    names = ", ".join(quote(column) for column in columns)
    present = " AND ".join(f"{quote(column)} IS NOT NULL" for column in columns)
    return check(
        f"{listed(columns)} of {table} unique",
        f"SELECT {names}, count(*) AS times FROM {name.sql}\n"
        f" WHERE {present} GROUP BY {names} HAVING count(*) > 1 ORDER BY {names}",
    )


def no_orphans(table: str, column: str, parent: str, parent_column: str) -> RowCheck:
    """Every value of a column, NULL aside, is found in the parent table."""
    child, above = TableName.parse(table), TableName.parse(parent)
    return rows_check(
        f"{column} of {table} found in {parent}",
        table,
        f"{quote(column)} IS NOT NULL AND NOT EXISTS (SELECT FROM {above.sql} AS parent"
        f" WHERE parent.{quote(parent_column)} = {quote(child.name)}.{quote(column)})",
    )


def unchanged(name: str, value: str) -> Unchanged:
    """A figure taken before the first write and again at this step; ``value`` is a SELECT of it.

    The figure is compared as text.  Writers may change it meanwhile too: count what they leave
    alone, or where nobody writes.
    """
    return Unchanged(name=name, value=expression_text(value).rstrip("; \n"))


def same_row_count(table: str | TableName) -> Unchanged:
    """A table has as many rows after the migration as before it."""
    name = TableName.parse(table)
    return unchanged(f"number of rows of {name}", f"SELECT count(*) FROM {name.sql}")


def same_rows(table: str | TableName, *columns: str) -> Unchanged:
    """The columns hold after the migration what they held before it, in the same rows.

    Name the key among the columns, so that values which change places are seen.  What is compared
    is the sum of a hash of each row, 64 bits long; the table is read twice.
    """
    name = TableName.parse(table)
    row = ", ".join(map(quote, columns))
    return unchanged(
        f"{listed(columns)} of {name}",
        f"SELECT sum(hashtextextended(ROW({row})::text, 0)) FROM {name.sql}",
    )

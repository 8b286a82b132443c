"""A migration held against the catalog: the tables and columns it names must be there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import psycopg
import sqlalchemy as sa
from alembic.operations import ops
from sqlalchemy.dialects import postgresql

from datamig_nb import sql
from datamig_nb.database import Column, Database, Table, read_table
from datamig_nb.errors import ExpressionError, MigrationError
from datamig_nb.migration import (
    Backfill,
    Check,
    KeepInStep,
    Migration,
    RowCheck,
    Step,
    added_columns,
)
from datamig_nb.names import TableName, literal
from datamig_nb.preview_sql import ColumnType


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The tables that a migration names, as they are before it."""

    tables: Mapping[TableName, Table]
    #: Major version of the server.
    major: int
    #: Columns that the migration adds, by table, in order.
    added: Mapping[TableName, Mapping[str, sa.Column[Any]]]

    def table(self, name: TableName) -> Table:
        """The table of that name."""
        return self.tables[name]

    def row(self, table: TableName) -> str:
        """The name that stands for a whole row: the table's own, unless a column is called so."""
        return "" if self.tables[table].has(table.name) else table.name

    def cast(self, table: TableName, column: str, expression: str) -> str:
        """The expression as the column's type takes it: PostgreSQL casts no text to an enum."""
        added = self.added.get(table, {}).get(column)
        if added is None or not isinstance(added.type, sa.Enum):
            return expression
        enum = TableName(getattr(added.type, "schema", None), str(added.type.name))
        return f"({expression})::{enum.sql}"

    def column_type(self, table: TableName, column: str) -> ColumnType:
        """The type of a column that is there or that the migration adds."""
        added = self.added.get(table, {}).get(column)
        if added is None:
            known = self.tables[table].column(column)
            return ColumnType(name=known.type, length=known.length)
        name = added.type.compile(dialect=postgresql.dialect())
        if isinstance(added.type, sa.Enum):  # its length is that of the longest label: no limit
            return ColumnType(name=name, labels=tuple(map(literal, added.type.enums)))
        return ColumnType(name=name, length=getattr(added.type, "length", None))

    def implied_checks(self, migration: Migration) -> tuple[RowCheck, ...]:
        """What the types and constraints of filled columns ask of every row, before any write."""
        not_null = {
            (TableName(step.schema, step.table_name), step.column_name)
            for step in migration.steps
            if isinstance(step, ops.AlterColumnOp) and step.modify_nullable is False
        }
        found: list[RowCheck] = []
        for step in migration.backfills:
            for column, expression in step.assign.items():
                wanted: list[tuple[str, str]] = []
                if (length := self.column_type(step.table, column).length) is not None:
                    fits = f"every {column} fits into {length} characters"
                    wanted.append((fits, f"length(({expression})::text) > {length}"))
                if (step.table, column) in not_null and step.where is None:
                    wanted.append((f"no {column} becomes NULL", f"({expression}) IS NULL"))
                for name, failing in wanted:
                    failing = failing if step.where is None else f"({step.where}) AND {failing}"
                    found.append(
                        RowCheck(name=name, table=step.table, failing=failing, before=True)
                    )
        return tuple(found)

    def failing(self, check: Check) -> str:
        """The query of a check's failing rows, by key where the table has one."""
        key = self.tables[check.table].key if isinstance(check, RowCheck) else ()
        return sql.failing_rows(check, key)


def read_catalog(db: Database, migration: Migration) -> Catalog:
    """Look up every table that the migration names, and hold its steps against them.

    Raises
    ------
    UnknownTableError, UnknownColumnError
        If a table is missing, or a column that is neither there nor added by the migration.
    ExpressionError
        If PostgreSQL does not accept an expression over the row.
    MigrationError
        If a column to be added is there already, or an expression reads a column that its own
        step sets, so that doing a row twice would change it twice.
    """
    names = dict.fromkeys(name for step in migration.steps for name in _tables(step))
    with db.read_only(f"reading the catalog for {migration.name!r}") as connection:
        catalog = Catalog(
            major=db.major,
            tables={name: read_table(connection, name) for name in names},
            added=added_columns(migration),
        )
        _require_absent(catalog)
        for step in migration.steps:
            if isinstance(step, ops.AlterColumnOp):
                _require_column(TableName(step.schema, step.table_name), step.column_name, catalog)
            if isinstance(step, Backfill | KeepInStep):
                _require_columns(step, catalog)
                _require_repeatable(step, catalog)
                for expression in step.assign.values():
                    require_expression(connection, step.table, expression)
            if isinstance(step, Backfill) and step.where is not None:
                require_expression(connection, step.table, step.where)
    return catalog


def require_expression(connection: sa.Connection, table: TableName, expression: str) -> None:
    """Let PostgreSQL parse an expression over a row of the table; nothing is executed.

    Raises
    ------
    ExpressionError
        With PostgreSQL's reason, if it is no expression, two statements, or names what is not
        there.
    """
    raw = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    # In all the places where statements have it: with parentheses, without, and where neither
    # aggregates nor a comment at its end can be.
    query = (
        f"SELECT ({expression}), {expression} FROM {table.sql} WHERE ({expression}) IS NULL LIMIT 0"
    )
    try:
        with raw.transaction(), raw.cursor() as cursor:
            # A prepared statement cannot hold two commands: PostgreSQL itself refuses the second.
            cursor.execute(query.encode(), prepare=True)
            columns = cursor.description or []
    except psycopg.Error as error:
        if error.sqlstate in (None, "42501"):  # a lost connection, a missing privilege
            raise
        raise ExpressionError(
            expression,
            error.diag.message_primary or str(error),
            f"write one expression over the columns of {table.sql}, no ';' or comment at its end",
        ) from error
    if len(columns) != 2 or columns[0].type_code == _RECORD:
        raise ExpressionError(
            expression, "it gives more than one value", "give each column an expression of its own"
        )


_RECORD = 2249  # the type oid of a row of several values


def _tables(step: Step) -> tuple[TableName, ...]:
    match step:
        case ops.AddColumnOp() | ops.AlterColumnOp() | ops.CreateCheckConstraintOp():
            return (TableName(step.schema, step.table_name),)
        case Backfill() | KeepInStep() | RowCheck():
            return (step.table,)
        case _:
            return ()


def _require_absent(catalog: Catalog) -> None:
    for name, columns in catalog.added.items():
        for column in columns:
            if catalog.table(name).has(column):
                raise MigrationError(
                    f"table {str(name)!r} has a column {column!r} already",
                    "choose another name for the new one, or drop it if an earlier try left it",
                )


def _require_columns(step: Backfill | KeepInStep, catalog: Catalog) -> None:
    for column in step.assign:
        known = _require_column(step.table, column, catalog)
        if known is not None and known.generated:
            raise MigrationError(
                f"column {column!r} of {str(step.table)!r} is generated", "fill another column"
            )


def _require_column(table: TableName, column: str, catalog: Catalog) -> Column | None:
    """The column as it is, or None where the migration adds it."""
    return None if column in catalog.added.get(table, {}) else catalog.table(table).column(column)


def _require_repeatable(step: Backfill | KeepInStep, catalog: Catalog) -> None:
    for column, expression in step.assign.items():
        read = sql.columns_read(expression, step.assign, catalog.row(step.table))
        if read:
            raise MigrationError(
                f"the expression for {column!r} of {str(step.table)!r} reads {read[0]!r}, which"
                " the same step sets: a row done twice would change twice",
                "add a new column and fill that one",
            )

"""What the catalog says of the tables that a migration names, and what follows for its steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import sqlalchemy as sa
from alembic.operations import ops
from sqlalchemy.dialects import postgresql

from datamig_nb import statements
from datamig_nb.checks import Check, QueryCheck, RowCheck
from datamig_nb.errors import ExpressionError, MigrationError
from datamig_nb.migration import Migration, Step
from datamig_nb.names import TableName, literal
from datamig_nb.preview_sql import ColumnType
from datamig_nb.stages import Found
from datamig_nb.steps import Backfill
from datamig_nb.tables import NOT_YET, Table

#: What a backfill gives: table, column and expression.
Given: TypeAlias = tuple[TableName, str, str]


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The tables that a migration names, as they are before it."""

    tables: Mapping[TableName, Table]
    #: Major version of the server.
    major: int
    #: Columns that the migration adds, by table, in order.
    added: Mapping[TableName, Mapping[str, sa.Column[Any]]]
    #: Functions that the migration's expressions call and that give another value each time.
    volatile: frozenset[str] = frozenset()
    #: Columns of each query whose rows are inserted.
    selected: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    #: Where the column's type alters what the expression gives: it rounds a number, pads a text.
    altered: frozenset[Given] = frozenset()
    #: Where the column does not take what the expression gives, each with the reason.
    misfits: Mapping[Given, str] = field(default_factory=dict["Given", str])
    #: What the schema steps need to know, by their number in the migration, from 0.
    found: Mapping[int, Found] = field(default_factory=dict[int, Found])
    #: Names of the enum types that the migration makes.
    enums: frozenset[str] = frozenset()
    #: That Python can hold what transforms read.
    readable: tuple[RowCheck, ...] = ()

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

    def differs(self, step: Backfill, expressions: Mapping[str, str]) -> str:
        """Condition: the row does not hold what the step gives it.

        ``expressions`` are those that stand in the statement for the step's own.
        """
        columns, values = list[str](), list[str]()
        for column, text in expressions.items():
            type = self.column_type(step.table, column).name
            if (step.table, column, step.assign[column]) in self.altered:
                text = f"CAST({text} AS {type})"
            columns.append(statements.comparable(statements.column_of(step, column), type))
            values.append(statements.comparable(text, type))
        return statements.differ(columns, values)

    @property
    def misfit_columns(self) -> frozenset[tuple[TableName, str]]:
        """Columns that do not take what a backfill gives them."""
        return frozenset((table, column) for table, column, _ in self.misfits)

    def require_fitting(self) -> None:
        """Refuse expressions whose values their columns do not take."""
        for (table, column, text), reason in self.misfits.items():
            raise ExpressionError(
                text, f"{column!r} of {str(table)!r} does not take it: {reason}", "cast it yourself"
            )

    def require_absent(self, added: Mapping[TableName, Collection[str]]) -> None:
        """Refuse columns that are there already."""
        for name, columns in added.items():
            for column in columns:
                if self.table(name).has(column):
                    raise MigrationError(
                        f"table {str(name)!r} has a column {column!r} already",
                        "choose another name for the new one, or drop it if an earlier try left it",
                    )

    def reads_made(self, *texts: str) -> bool:
        """Whether an expression names what the migration is yet to make."""
        made = {column for columns in self.added.values() for column in columns} | self.enums
        made |= {
            name.name for name, known in self.tables.items() if known.estimated_rows == NOT_YET
        }
        return any(statements.names_in(text) & made for text in texts)

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

    def implied_checks(self, step: Step, migration: Migration) -> tuple[Check, ...]:
        """What the types and constraints of filled columns ask of every row, before any write."""
        if not isinstance(step, Backfill) or step.walk.quarantine_rows is not None:
            return ()  # rows that cannot be done are set aside one by one
        not_null = {
            (TableName(other.schema, other.table_name), other.column_name)
            for other in migration.steps
            if isinstance(other, ops.AlterColumnOp) and other.modify_nullable is False
        }
        found: list[Check] = []
        for column, expression in step.assign.items():
            wanted: list[tuple[str, str]] = []
            if (length := self.column_type(step.table, column).length) is not None:
                fits = f"every {column} fits into {length} characters"
                wanted.append((fits, f"length(({expression})::text) > {length}"))
            if (step.table, column) in not_null and step.where is None:
                wanted.append((f"no {column} becomes NULL", f"({expression}) IS NULL"))
            for name, failing in wanted:
                found.append(self._implied(step, name, failing))
        return tuple(found)

    def _implied(self, step: Backfill, name: str, failing: str) -> Check:
        if step.using is not None:
            rows = statements.joined_rows(step, self.tables[step.table].key, failing)
            return QueryCheck(name=name, failing=rows, before=True)
        failing = failing if step.where is None else f"({step.where}) AND {failing}"
        return RowCheck(name=name, table=step.table, failing=failing, before=True)

    def failing(self, check: Check) -> str:
        """The query of a check's failing rows, by key where the table has one."""
        key = self.tables[check.table].key if isinstance(check, RowCheck) else ()
        return statements.failing_rows(check, key)

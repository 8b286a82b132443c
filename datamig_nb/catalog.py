"""A migration held against the catalog: the tables and columns it names must be there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import psycopg
import sqlalchemy as sa
from alembic.operations import ops
from sqlalchemy.dialects import postgresql

from datamig_nb import ddl, statements
from datamig_nb.checks import Check, QueryCheck, RowCheck, Unchanged
from datamig_nb.database import Column, Database, Table, read_table, run
from datamig_nb.errors import ExpressionError, MigrationError
from datamig_nb.migration import CreateEnum, Migration, Step, added_columns, step_table
from datamig_nb.names import TableName, literal, sqlalchemy_dialect
from datamig_nb.preflight import definition_query
from datamig_nb.preview_sql import ColumnType
from datamig_nb.readable import readable_checks
from datamig_nb.stages import Found
from datamig_nb.steps import Backfill, BackUp, DeleteRows, InsertRows, KeepInStep, Sql
from datamig_nb.transforms import Transform

#: Rows of a table that the migration is going to create.
NOT_YET = -2


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
    #: What the schema steps need to know, by their number in the migration, from 0.
    found: Mapping[int, Found] = field(default_factory=dict[int, Found])
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
        return (*found, *self.readable)

    def failing(self, check: Check) -> str:
        """The query of a check's failing rows, by key where the table has one."""
        key = self.tables[check.table].key if isinstance(check, RowCheck) else ()
        return statements.failing_rows(check, key)


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
    made = _made_tables(migration)
    names = dict.fromkeys(name for step in migration.steps for name in _tables(step))
    with db.read_only(f"reading the catalog for {migration.name!r}") as connection:
        catalog = Catalog(
            major=db.major,
            tables={name: made.get(name) or read_table(connection, name) for name in names},
            added=added_columns(migration),
        )
        _require_absent(catalog)
        catalog = replace(
            catalog,
            volatile=_volatile(connection, migration),
            found={
                number: _found(connection, step, catalog)
                for number, step in enumerate(migration.steps)
            },
            selected={
                step.select: _selected(connection, step)
                for step in migration.steps
                if isinstance(step, InsertRows) and step.table in catalog.tables
            },
        )
        for step in migration.steps:
            if isinstance(step, ops.AlterColumnOp) and step.modify_nullable is False:
                _require_column(TableName(step.schema, step.table_name), step.column_name, catalog)
            if isinstance(step, Backfill | KeepInStep):
                _require_columns(step, catalog)
                source = step.using if isinstance(step, Backfill) else None
                for expression in step.assign.values():
                    _require_expression(connection, catalog, step.table, expression, source)
            if isinstance(step, KeepInStep):
                _require_repeatable(step, catalog)
            if isinstance(step, Backfill):
                for condition in filter(None, (step.where, step.on)):
                    _require_expression(connection, catalog, step.table, condition, step.using)
                _require_steady_key(step, catalog)
            if isinstance(step, DeleteRows):
                _require_expression(connection, catalog, step.table, step.where)
            if isinstance(step, Transform):
                _require_transform(connection, step, migration, catalog)
        readable = tuple(
            check
            for step in migration.transforms
            for expression in step.reads
            if not statements.names_in(f"{expression} {step.where or ''}") & _made(catalog)
            for check in readable_checks(connection, step, expression)
        )
        catalog = replace(catalog, readable=readable)
    return catalog


def _require_expression(
    connection: sa.Connection,
    catalog: Catalog,
    table: TableName,
    expression: str,
    using: str | None = None,
) -> None:
    """As :func:`require_expression`; what reads columns yet to be made is left to the rehearsal."""
    if not statements.names_in(f"{expression} {using or ''}") & _made(catalog):
        require_expression(connection, table, expression, using)


def _made(catalog: Catalog) -> set[str]:
    """Names of columns and tables that the migration makes."""
    made = {column for columns in catalog.added.values() for column in columns}
    return made | {n.name for n, known in catalog.tables.items() if known.estimated_rows == NOT_YET}


def require_expression(
    connection: sa.Connection, table: TableName, expression: str, using: str | None = None
) -> None:
    """Let PostgreSQL parse an expression over a row of the table; nothing is executed.

    ``using`` is a FROM item that the expression may read too.

    Raises
    ------
    ExpressionError
        With PostgreSQL's reason, if it is no expression, two statements, or names what is not
        there.
    """
    raw = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    # In all the places where statements have it: with parentheses, without, and where neither
    # aggregates nor a comment at its end can be.
    source = table.sql if using is None else f"{table.sql}, {using}"
    query = (
        f"SELECT ({expression}), {expression} FROM {source} WHERE ({expression}) IS NULL LIMIT 0"
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
        case Backfill() | KeepInStep() | RowCheck() | BackUp() | InsertRows() | DeleteRows():
            return (step.table,)
        case Transform():
            return (step.table,)
        case QueryCheck() | Unchanged() | Sql() | CreateEnum():
            return ()
        case ops.CreateTableOp() | ops.DropTableOp():
            return ()
        case _:
            table = step_table(step)
            return (table,) if table.name else ()


def _made_tables(migration: Migration) -> dict[TableName, Table]:
    """Tables that the migration creates, as they will be."""
    made: dict[TableName, Table] = {}
    for step in migration.steps:
        if isinstance(step, ops.CreateTableOp):
            table = ddl.table_of(step)
            name = step_table(step)
            made[name] = Table(
                name=name,
                columns=tuple(
                    Column(
                        name=column.name,
                        type=column.type.compile(dialect=sqlalchemy_dialect()).lower(),
                        not_null=not column.nullable,
                        length=getattr(column.type, "length", None),
                        generated=column.computed is not None,
                        computed=column.computed is not None,
                    )
                    for column in table.columns
                ),
                key=tuple(column.name for column in table.primary_key.columns),
                unique=(),
                foreign_keys=(),
                estimated_rows=NOT_YET,
                total_bytes=0,
            )
        elif isinstance(step, ops.RenameTableOp) and step_table(step) in made:
            new = TableName(step.schema, step.new_table_name)
            made[new] = replace(made[step_table(step)], name=new)
    return made


def _found(connection: sa.Connection, step: Step, catalog: Catalog) -> Found:
    """What the catalog says of the table of a schema step, and of what the step takes away."""
    tables = [catalog.tables[name] for name in _tables(step) if name in catalog.tables]
    query = definition_query(step)
    row = None if query is None else run(connection, query).one_or_none()
    return Found(
        major=catalog.major,
        partitioned=any(table.partitioned for table in tables),
        key=tables[0].key if tables else (),
        definition=None if row is None else tuple(row),
    )


def _require_absent(catalog: Catalog) -> None:
    for name, columns in catalog.added.items():
        for column in columns:
            if catalog.table(name).has(column):
                raise MigrationError(
                    f"table {str(name)!r} has a column {column!r} already",
                    "choose another name for the new one, or drop it if an earlier try left it",
                )


def _require_transform(
    connection: sa.Connection, step: Transform, migration: Migration, catalog: Catalog
) -> None:
    _require_columns(step, catalog)
    _require_steady_key(step, catalog)
    for expression in (*step.reads, *filter(None, [step.where])):
        _require_expression(connection, catalog, step.table, expression)
    for other in migration.steps:
        if isinstance(other, BackUp) and other.table == step.table:
            for column in sorted(set(other.columns) & set(step.columns)):
                raise MigrationError(
                    f"back_up() keeps what backfills overwrite, but {column!r} of"
                    f" {str(step.table)!r} is computed by transform()",
                    "write to a new column, and drop the old one in a later migration",
                )


def _set_by(step: Backfill | KeepInStep | Transform) -> Collection[str]:
    return step.columns if isinstance(step, Transform) else step.assign


def _require_columns(step: Backfill | KeepInStep | Transform, catalog: Catalog) -> None:
    for column in _set_by(step):
        known = _require_column(step.table, column, catalog)
        if known is not None and known.generated:
            raise MigrationError(
                f"column {column!r} of {str(step.table)!r} is generated", "fill another column"
            )


def _require_column(table: TableName, column: str, catalog: Catalog) -> Column | None:
    """The column as it is, or None where the migration adds it."""
    return None if column in catalog.added.get(table, {}) else catalog.table(table).column(column)


def _require_repeatable(step: KeepInStep, catalog: Catalog) -> None:
    for column, expression in step.assign.items():
        read = statements.columns_read(expression, step.assign, catalog.row(step.table))
        if read:
            raise MigrationError(
                f"the expression for {column!r} of {str(step.table)!r} reads {read[0]!r}, which"
                " the same step sets: a row written twice would change twice",
                "add a new column and keep that one in step",
            )


def _require_steady_key(step: Backfill | Transform, catalog: Catalog) -> None:
    moved = [column for column in catalog.table(step.table).key if column in _set_by(step)]
    if moved:
        raise MigrationError(
            f"{moved[0]!r} is part of the key by which {str(step.table)!r} is walked",
            "fill a new column, and make that one the key in a later migration",
        )


# Give another value each time, though PostgreSQL calls them stable within a transaction.
_CLOCKS = frozenset(
    "now current_timestamp current_date current_time localtime localtimestamp transaction_timestamp"
    " statement_timestamp".split()
)


def _volatile(connection: sa.Connection, migration: Migration) -> frozenset[str]:
    """Names in the expressions that are those of a volatile function."""
    words = {
        word
        for step in migration.backfills
        for expression in (*step.assign.values(), step.using or "")
        for word in statements.names_in(expression)
    }
    query = sa.text(
        "SELECT DISTINCT proname::text FROM pg_proc"
        " WHERE provolatile = 'v' AND proname = ANY (:names)"
    )
    found = connection.execute(query, {"names": sorted(words)}).scalars()
    return frozenset(found) | (words & _CLOCKS)


def _selected(connection: sa.Connection, step: InsertRows) -> tuple[str, ...]:
    """Names of the query's columns, which must be columns of the table and hold its key."""
    raw = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    query = f"SELECT * FROM {statements.source(step)} LIMIT 0"
    try:
        with raw.transaction(), raw.cursor() as cursor:
            cursor.execute(query.encode(), prepare=True)
            columns = tuple(column.name for column in cursor.description or [])
    except psycopg.Error as error:
        if error.sqlstate in (None, "42501"):
            raise
        raise ExpressionError(
            step.select,
            error.diag.message_primary or str(error),
            "write one SELECT, no ';' at its end, each column named",
        ) from error
    for column in (*columns, *step.key):
        if column in step.key and column not in columns:
            raise MigrationError(
                f"the query for {str(step.table)!r} has no column {column!r} to be walked by",
                f"use one of {', '.join(columns)}",
            )
    return columns

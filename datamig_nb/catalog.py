"""A migration held against the catalog: the tables and columns it names must be there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import psycopg
import sqlalchemy as sa
from alembic.operations import ops
from sqlalchemy.dialects import postgresql

from datamig_nb import ddl, statements, targets
from datamig_nb.checks import Check, QueryCheck, RowCheck, Unchanged
from datamig_nb.compound import ChangeType, CreateTableAs, MergeRows, Swap
from datamig_nb.database import Database, run
from datamig_nb.errors import ExpressionError, MigrationError
from datamig_nb.expressions import is_literal
from datamig_nb.migration import CreateEnum, Migration, Step, added_columns, step_table
from datamig_nb.names import TableName, literal, sqlalchemy_dialect
from datamig_nb.preflight import definition_query
from datamig_nb.preview_sql import ColumnType
from datamig_nb.readable import readable_checks
from datamig_nb.stages import Found
from datamig_nb.steps import Backfill, BackUp, DeleteRows, InsertRows, KeepInStep, Sql
from datamig_nb.tables import NOT_YET, Column, Table, read_table
from datamig_nb.transforms import Transform

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


def read_catalog(db: Database, migration: Migration) -> Catalog:
    """Look up every table that the migration names, and hold its steps against them.

    Raises
    ------
    UnknownTableError, UnknownColumnError
        If a table is missing, or a column that is neither there nor added by the migration.
    ExpressionError
        If PostgreSQL does not accept an expression over the row.
    MigrationError
        If an expression reads a column that its own step sets, so that doing a row twice would
        change it twice.
    """
    names = dict.fromkeys(name for step in migration.steps for name in _tables(step))
    with db.read_only(f"reading the catalog for {migration.name!r}") as connection:
        made = _made_tables(migration) | _selected_tables(connection, migration)
        catalog = Catalog(
            major=db.major,
            tables={name: made.get(name) or read_table(connection, name) for name in names},
            added=added_columns(migration),
            enums=frozenset(s.name.name for s in migration.steps if isinstance(s, CreateEnum)),
        )
        catalog = replace(
            catalog, tables=with_children(connection, catalog.tables, migration.steps)
        )
        catalog = replace(
            catalog,
            volatile=_volatile(connection, migration),
            found={
                number: _found(connection, step, catalog)
                for number, step in enumerate(migration.steps)
            },
            selected={
                step.select: _selected(connection, step, catalog)
                for step in migration.steps
                if isinstance(step, InsertRows)
            },
        )
        targets.require(migration, catalog.tables)
        for step in migration.steps:
            if isinstance(step, BackUp):
                for column in step.columns:
                    _require_column(step.table, column, catalog)
            if isinstance(step, ops.AlterColumnOp) and step.modify_nullable is False:
                _require_column(TableName(step.schema, step.table_name), step.column_name, catalog)
            if isinstance(step, Backfill | KeepInStep):
                _require_columns(step, catalog, migration)
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
            if not catalog.reads_made(expression, step.where or "")
            for check in readable_checks(connection, step, expression)
        )
        return _with_types(connection, replace(catalog, readable=readable), migration)


def _require_expression(
    connection: sa.Connection,
    catalog: Catalog,
    table: TableName,
    expression: str,
    using: str | None = None,
) -> None:
    """As :func:`require_expression`; what reads columns yet to be made is left to the rehearsal."""
    if not catalog.reads_made(expression, using or ""):
        require_expression(connection, table, expression, using)


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
        case Backfill() | KeepInStep() | RowCheck() | BackUp() | InsertRows():
            return (step.table,)
        case DeleteRows(dependants=dependants):
            return (step.table, *(() if dependants == "all" else dependants))
        case Transform():
            return (step.table,)
        case QueryCheck() | Unchanged() | Sql() | CreateEnum() | ChangeType() | MergeRows():
            return ()
        case CreateTableAs():
            return (step.table,)
        case Swap():
            return step.tables
        case ops.CreateTableOp() | ops.DropTableOp():
            return ()
        case _:
            table = step_table(step)
            return (table,) if table.name else ()


def with_children(
    connection: sa.Connection, tables: Mapping[TableName, Table], steps: Iterable[Step]
) -> Mapping[TableName, Table]:
    """The tables, and those that refer to one from which a step deletes rows."""
    known = dict(tables)
    for step in steps:
        reached = list(_tables(step)) if isinstance(step, DeleteRows) else []
        follow = isinstance(step, DeleteRows) and step.dependants == "all"
        for table in reached:
            for reference in known[table].referenced_by:
                child = reference.name_of_child
                known[child] = known.get(child) or read_table(connection, child)
                if follow and child not in reached:
                    reached.append(child)
    return known


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


def _selected_tables(connection: sa.Connection, migration: Migration) -> dict[TableName, Table]:
    """Tables that the migration makes from queries, as they will be."""
    made: dict[TableName, Table] = {}
    queries: dict[TableName, str] = {}
    raw = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    for step in migration.steps:
        if not isinstance(step, CreateTableAs):
            continue
        query = queries[step.table] = statements.inlined(step.select, queries)
        try:
            with raw.transaction(), raw.cursor() as cursor:
                cursor.execute(
                    f"SELECT * FROM (\n{query}\n) AS made LIMIT 0".encode(), prepare=True
                )
                told, result = cursor.description or [], cursor.pgresult
                assert result is not None
                kinds = [(result.ftype(n), result.fmod(n)) for n in range(len(told))]
        except psycopg.Error as error:
            if error.sqlstate in (None, "42501"):
                raise
            raise ExpressionError(
                step.select,
                error.diag.message_primary or str(error),
                "write one SELECT over tables as they are before the migration, each column named",
            ) from error
        format_type = sa.text("SELECT format_type(:type, :length)")
        columns = tuple(
            Column(
                name=column.name,
                type=connection.execute(format_type, {"type": type, "length": length}).scalar_one(),
                not_null=column.name in step.key,
                length=None,
                generated=False,
            )
            for column, (type, length) in zip(told, kinds, strict=True)
        )
        made[step.table] = Table(
            name=step.table,
            columns=columns,
            key=step.key,
            unique=(),
            foreign_keys=(),
            estimated_rows=NOT_YET,
            total_bytes=0,
        )
        for column in step.key:
            made[step.table].column(column)
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


def _require_transform(
    connection: sa.Connection, step: Transform, migration: Migration, catalog: Catalog
) -> None:
    _require_columns(step, catalog, migration)
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


def _require_columns(
    step: Backfill | KeepInStep | Transform, catalog: Catalog, migration: Migration
) -> None:
    no_identities = {
        (step_table(other), other.column_name)
        for other in migration.steps
        if isinstance(other, ops.AlterColumnOp)
        and isinstance(other.existing_server_default, sa.Identity)
    }
    for column in _set_by(step):
        known = _require_column(step.table, column, catalog)
        if known is not None and known.generated and (step.table, column) not in no_identities:
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
            "fill a new column, and make that one the key in a later migration; or put such rows in"
            " once more by insert_rows(), with their new key, and remove the old by delete_rows()",
        )


def _volatile(connection: sa.Connection, migration: Migration) -> frozenset[str]:
    """Names in the expressions that are those of a volatile function."""
    words = {
        word
        for step in migration.backfills
        for expression in step.texts
        for word in statements.names_in(expression)
    }
    query = sa.text(
        "SELECT DISTINCT proname::text FROM pg_proc"
        " WHERE provolatile = 'v' AND proname = ANY (:names)"
    )
    found = connection.execute(query, {"names": sorted(words)}).scalars()
    return frozenset(found) | (words & statements.CLOCKS)


def _selected(connection: sa.Connection, step: InsertRows, catalog: Catalog) -> tuple[str, ...]:
    """Names of the query's columns, which must be columns of the table and hold its key."""
    columns = _named_columns(connection, step, catalog)
    added = catalog.added.get(step.table, {})
    for column in columns:
        if column not in added:
            catalog.table(step.table).column(column)
    for column in step.key:
        if column not in columns:
            raise MigrationError(
                f"the query for {str(step.table)!r} has no column {column!r} to be walked by",
                f"use one of {', '.join(columns)}",
            )
    return columns


def _named_columns(
    connection: sa.Connection, step: InsertRows, catalog: Catalog
) -> tuple[str, ...]:
    if step.columns is not None:
        return step.columns
    raw = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    query = f"SELECT * FROM {statements.source(step)} LIMIT 0"
    try:
        with raw.transaction(), raw.cursor() as cursor:
            cursor.execute(query.encode(), prepare=True)
            columns = tuple(column.name for column in cursor.description or [])
    except psycopg.Error as error:
        if error.sqlstate in (None, "42501"):
            raise
        if error.sqlstate in ("42P01", "42703") and catalog.reads_made(step.select):
            raise MigrationError(
                f"the query for {str(step.table)!r} reads what the migration is yet to make, so"
                " the database cannot say its columns",
                "name them with columns=",
            ) from error
        raise ExpressionError(
            step.select,
            error.diag.message_primary or str(error),
            "write one SELECT, no ';' at its end, each column named",
        ) from error
    return columns


# ---------------------------------------------------------------- values and types of columns

# Whole numbers, and the types that hold each of them as it is; texts without a limit to pad to.
_WHOLE, _HOLD_WHOLE, _TEXTS = {20, 21, 23}, {20, 21, 23, 701, 1700}, {25, 1043}

# What PostgreSQL says of a value that it does not put into a column of another type; domains,
# arrays and what is cast by way of text are left to it.
_MISFIT = """
SELECT format('it is of type %s, the expression of type %s',
              format_type(wanted.oid, NULL), format_type(given.oid, NULL))
  FROM pg_type AS wanted, pg_type AS given
 WHERE (wanted.oid, given.oid) = (:wanted, :given) AND wanted.oid <> given.oid
   AND wanted.typtype IN ('b', 'e') AND given.typtype IN ('b', 'e')
   AND wanted.typcategory NOT IN ('S', 'A') AND given.typcategory <> 'A'
   AND NOT EXISTS (SELECT FROM pg_cast
                    WHERE castsource = given.oid AND casttarget = wanted.oid
                      AND castcontext <> 'e')
"""


def _with_types(connection: sa.Connection, catalog: Catalog, migration: Migration) -> Catalog:
    """The catalog with what the columns' types make of the values that backfills give them."""
    altered: set[Given] = set()
    misfits: dict[Given, str] = {}
    for step in migration.backfills:
        for column, text in step.assign.items():
            type, given = catalog.column_type(step.table, column), (step.table, column, text)
            if is_literal(text) or type.labels is not None:
                continue
            if catalog.reads_made(text, step.using or ""):
                altered |= set() if type.is_text else {given}
            else:
                (wanted, limit), (found, found_limit) = _types(connection, step, type.name, text)
                is_same = wanted == found and limit in (-1, found_limit)
                is_text = wanted in _TEXTS and found in _TEXTS
                is_whole = found in _WHOLE and wanted in _HOLD_WHOLE
                if not (is_same or is_text or is_whole):
                    altered.add(given)
                types = {"wanted": wanted, "given": found}
                misfit = connection.execute(sa.text(_MISFIT), types).scalar_one_or_none()
                misfits |= {} if misfit is None else {given: misfit}
    return replace(catalog, altered=frozenset(altered), misfits=misfits)


def _types(
    connection: sa.Connection, step: Backfill, type: str, text: str
) -> list[tuple[int, int]]:
    """Type and its modifier, of the column and of the expression."""
    raw = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    source = step.table.sql if step.using is None else f"{step.table.sql}, {step.using}"
    with raw.cursor() as cursor:
        cursor.execute(f"SELECT CAST(NULL AS {type}), ({text}) FROM {source} LIMIT 0".encode())
        assert cursor.pgresult is not None
        return [(cursor.pgresult.ftype(n), cursor.pgresult.fmod(n)) for n in (0, 1)]

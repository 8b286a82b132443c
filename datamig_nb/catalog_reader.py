"""A migration held against the database: the tables and columns it names must be there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import sqlalchemy as sa
from alembic.operations import ops

from datamig_nb import ddl, statements, targets
from datamig_nb.catalog import Catalog, Given
from datamig_nb.catalog_requirements import require_steps
from datamig_nb.checks import QueryCheck, RowCheck, Unchanged
from datamig_nb.compound import ChangeType, CreateTableAs, MergeRows, Swap
from datamig_nb.database import Database, run
from datamig_nb.errors import ExpressionError, MigrationError, QueryError
from datamig_nb.expressions import is_literal
from datamig_nb.migration import CreateEnum, Migration, Step, added_columns, step_table
from datamig_nb.names import TableName, sqlalchemy_dialect
from datamig_nb.preflight import definition_query
from datamig_nb.python_values import readable_checks
from datamig_nb.sql_analysis import result_columns, volatile_names
from datamig_nb.stages import Found
from datamig_nb.steps import Backfill, BackUp, DeleteRows, InsertRows, KeepInStep, Sql
from datamig_nb.tables import NOT_YET, Column, Table, read_table
from datamig_nb.transforms import Transform


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
            catalog, tables=with_children_of_deleted(connection, catalog.tables, migration.steps)
        )
        texts = (text for step in migration.backfills for text in step.texts)
        catalog = replace(
            catalog,
            volatile=volatile_names(connection, texts),
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
        require_steps(connection, migration, catalog)
        readable = tuple(
            check
            for step in migration.transforms
            for expression in step.reads
            if not catalog.reads_made(expression, step.where or "")
            for check in readable_checks(connection, step, expression)
        )
        return _with_types(connection, replace(catalog, readable=readable), migration)


def _tables(step: Step) -> tuple[TableName, ...]:
    match step:
        case Backfill() | KeepInStep() | RowCheck() | BackUp() | InsertRows() | Transform():
            return (step.table,)
        case DeleteRows(dependants=dependants):
            return (step.table, *(() if dependants == "all" else dependants))
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


def with_children_of_deleted(
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
            columns = tuple(
                Column(
                    name=column.name,
                    type=column.type.compile(dialect=sqlalchemy_dialect()).lower(),
                    not_null=not column.nullable,
                    length=getattr(column.type, "length", None),
                    generated=column.computed is not None,
                    computed=column.computed is not None,
                )
                for column in table.columns
            )
            key = tuple(column.name for column in table.primary_key.columns)
            made[name] = _new_table(name, columns, key)
        elif isinstance(step, ops.RenameTableOp) and step_table(step) in made:
            new = TableName(step.schema, step.new_table_name)
            made[new] = replace(made[step_table(step)], name=new)
    return made


def _selected_tables(connection: sa.Connection, migration: Migration) -> dict[TableName, Table]:
    """Tables that the migration makes from queries, as they will be."""
    made: dict[TableName, Table] = {}
    queries: dict[TableName, str] = {}
    format_type = sa.text("SELECT format_type(:type, :modifier)")
    for step in migration.steps:
        if not isinstance(step, CreateTableAs):
            continue
        query = queries[step.table] = statements.inlined(step.select, queries)
        try:
            found = result_columns(connection, f"SELECT * FROM (\n{query}\n) AS made LIMIT 0")
        except QueryError as error:
            raise ExpressionError(
                step.select,
                error.reason,
                "write one SELECT over tables as they are before the migration, each column named",
            ) from error
        columns = tuple(
            Column(
                name=each.name,
                type=connection.execute(
                    format_type, {"type": each.type, "modifier": each.modifier}
                ).scalar_one(),
                not_null=each.name in step.key,
                length=None,
                generated=False,
            )
            for each in found
        )
        made[step.table] = _new_table(step.table, columns, step.key)
        for column in step.key:
            made[step.table].column(column)
    return made


def _new_table(name: TableName, columns: tuple[Column, ...], key: tuple[str, ...]) -> Table:
    return Table(
        name=name,
        columns=columns,
        key=key,
        unique=(),
        foreign_keys=(),
        estimated_rows=NOT_YET,
        total_bytes=0,
    )


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
    try:
        found = result_columns(connection, f"SELECT * FROM {statements.source(step)} LIMIT 0")
    except QueryError as error:
        if error.sqlstate in ("42P01", "42703") and catalog.reads_made(step.select):
            raise MigrationError(
                f"the query for {str(step.table)!r} reads what the migration is yet to make, so"
                " the database cannot say its columns",
                "name them with columns=",
            ) from error
        raise ExpressionError(
            step.select, error.reason, "write one SELECT, no ';' at its end, each column named"
        ) from error
    return tuple(column.name for column in found)


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
                source = step.table.sql if step.using is None else f"{step.table.sql}, {step.using}"
                query = f"SELECT CAST(NULL AS {type.name}), ({text}) FROM {source} LIMIT 0"
                (_, wanted, limit), (_, found, found_limit) = result_columns(connection, query)
                is_same = wanted == found and limit in (-1, found_limit)
                is_text = wanted in _TEXTS and found in _TEXTS
                is_whole = found in _WHOLE and wanted in _HOLD_WHOLE
                if not (is_same or is_text or is_whole):
                    altered.add(given)
                types = {"wanted": wanted, "given": found}
                misfit = connection.execute(sa.text(_MISFIT), types).scalar_one_or_none()
                misfits |= {} if misfit is None else {given: misfit}
    return replace(catalog, altered=frozenset(altered), misfits=misfits)

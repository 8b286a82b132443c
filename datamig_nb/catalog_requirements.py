"""What the steps of a migration ask of the catalog: refused here, before anything is rendered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import ops

from datamig_nb import statements
from datamig_nb.catalog import Catalog
from datamig_nb.errors import ExpressionError, MigrationError, QueryError
from datamig_nb.migration import Migration, step_table
from datamig_nb.names import TableName
from datamig_nb.sql_analysis import result_columns
from datamig_nb.steps import Backfill, BackUp, DeleteRows, KeepInStep
from datamig_nb.tables import Column
from datamig_nb.transforms import Transform


def require_steps(connection: sa.Connection, migration: Migration, catalog: Catalog) -> None:
    """Hold the columns and the expressions of every step against the catalog."""
    for step in migration.steps:
        match step:
            case BackUp():
                for column in step.columns:
                    _require_column(step.table, column, catalog)
            case ops.AlterColumnOp(modify_nullable=False):
                _require_column(step_table(step), step.column_name, catalog)
            case Backfill():
                _require_columns(step, catalog, migration)
                for text in (*step.assign.values(), *filter(None, (step.where, step.on))):
                    _require_expression(connection, catalog, step.table, text, step.using)
                _require_steady_key(step, catalog)
            case KeepInStep():
                _require_columns(step, catalog, migration)
                for text in step.assign.values():
                    _require_expression(connection, catalog, step.table, text)
                _require_repeatable(step, catalog)
            case DeleteRows():
                _require_expression(connection, catalog, step.table, step.where)
            case Transform():
                _require_columns(step, catalog, migration)
                _require_steady_key(step, catalog)
                for text in (*step.reads, *filter(None, [step.where])):
                    _require_expression(connection, catalog, step.table, text)
            case _:
                pass


def _require_expression(
    connection: sa.Connection,
    catalog: Catalog,
    table: TableName,
    expression: str,
    using: str | None = None,
) -> None:
    """Let PostgreSQL parse an expression over a row of the table; nothing is executed.

    ``using`` is a FROM item that the expression may read too.  What reads columns yet to be made is
    left to the rehearsal.
    """
    if catalog.reads_made(expression, using or ""):
        return
    # In all the places where statements have it: with parentheses, without, and where neither
    # aggregates nor a comment at its end can be.
    source = table.sql if using is None else f"{table.sql}, {using}"
    query = (
        f"SELECT ({expression}), {expression} FROM {source} WHERE ({expression}) IS NULL LIMIT 0"
    )
    try:
        columns = result_columns(connection, query)
    except QueryError as error:
        raise ExpressionError(
            expression,
            error.reason,
            f"write one expression over the columns of {table.sql}, no ';' or comment at its end",
        ) from error
    if len(columns) != 2 or columns[0].type == _RECORD:
        raise ExpressionError(
            expression, "it gives more than one value", "give each column an expression of its own"
        )


_RECORD = 2249  # the type oid of a row of several values


def _require_columns(
    step: Backfill | KeepInStep | Transform, catalog: Catalog, migration: Migration
) -> None:
    no_identities = {
        (step_table(other), other.column_name)
        for other in migration.steps
        if isinstance(other, ops.AlterColumnOp)
        and isinstance(other.existing_server_default, sa.Identity)
    }
    for column in step.columns:
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
    moved = [column for column in catalog.table(step.table).key if column in step.columns]
    if moved:
        raise MigrationError(
            f"{moved[0]!r} is part of the key by which {str(step.table)!r} is walked",
            "fill a new column, and make that one the key in a later migration; or put such rows in"
            " once more by insert_rows(), with their new key, and remove the old by delete_rows()",
        )

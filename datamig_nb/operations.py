"""Schema steps by the names and signatures that people know from Alembic's ``op``.

Each function returns Alembic's own operation.  What contradicts itself, and what would hold a
strong lock while PostgreSQL reads or rewrites a table, is refused here, before anything is run.
How each is carried out in stages, :mod:`datamig_nb.schema` says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic.operations import ops
from sqlalchemy.schema import SchemaItem

from datamig_nb import ddl
from datamig_nb.errors import MigrationError
from datamig_nb.expressions import Expression, expression_text
from datamig_nb.migration import CreateEnum
from datamig_nb.names import MOST_NAME_BYTES, TableName
from datamig_nb.operation_arguments import (
    ACTION,
    MATCH,
    WHEN,
    names_of,
    one_statement,
    require_names,
    require_options,
    require_words,
)
from datamig_nb.steps import Sql

# Functions that give another value for each row, so that ADD COLUMN would rewrite the table.  For
# all others a check before the first write asks the catalog.
_VOLATILE = re.compile(
    r"\b(random\w*|gen_random_\w+|uuid_generate_\w+|uuidv\d|clock_timestamp|timeofday|nextval|setval)\s*\(",
    re.I,
)


# ---------------------------------------------------------------- columns


def add_column(
    table_name: str, column: sa.Column[Any], *, schema: str | None = None
) -> ops.AddColumnOp:
    """Add a column, as ``op.add_column``; a repeated run finds it there and goes on.

    Raises
    ------
    MigrationError
        If the column is NOT NULL without a ``server_default``, has a client-side ``default``,
        which no existing row would get, brings a key, a constraint or an index, or would make
        PostgreSQL rewrite the table: identity, computed, a default that differs from row to row.
    """
    require_names(table_name, column.name, schema)
    if (
        column.constraints
        or column.foreign_keys
        or any((column.primary_key, column.unique, column.index))
        or getattr(column.type, "create_constraint", False)
    ):
        raise MigrationError(
            f"column {column.name!r} brings a key, a constraint or an index of its own, which would"
            " hold a long lock",
            "add the column without it, and the constraint or the index as a step of its own",
        )
    if isinstance(column.type, sa.types.NullType):
        raise MigrationError(
            f"column {column.name!r} has no type", "give it one, such as sa.Text()"
        )
    if column.default is not None:
        raise MigrationError(
            f"column {column.name!r} has default=, which acts in Python only: no row would get it",
            "use server_default=, or fill the column with backfill()",
        )
    if column.nullable is False and column.server_default is None:
        raise MigrationError(
            f"column {column.name!r} is NOT NULL from the start, but existing rows have no value",
            "add it nullable, fill it with backfill(), then alter_column(…, nullable=False)",
        )
    step = ops.AddColumnOp(table_name, column, schema=schema, if_not_exists=True)
    default = ddl.bare(ddl.add_column(step)[0]).partition(" DEFAULT ")[2]
    if isinstance(column.server_default, sa.Identity | sa.Computed) or _VOLATILE.search(default):
        raise MigrationError(
            f"column {column.name!r} has a value that PostgreSQL computes for each row, so that it"
            " would rewrite the table under a strong lock",
            "add it without, then alter_column(…, server_default=…) for new rows, and backfill()"
            " for the old ones",
        )
    return step


def drop_column(
    table_name: str, column_name: str, *, schema: str | None = None
) -> ops.DropColumnOp:
    """Drop a column with its values, as ``op.drop_column``; there is no way back."""
    require_names(table_name, column_name, schema)
    return ops.DropColumnOp(table_name, column_name, schema=schema, if_exists=True)


def alter_column(
    table_name: str,
    column_name: str,
    *,
    nullable: bool | None = None,
    server_default: Any = False,
    new_column_name: str | None = None,
    type_: Any = None,
    existing_type: Any = None,
    existing_server_default: Any = False,
    existing_nullable: bool | None = None,
    schema: str | None = None,
) -> ops.AlterColumnOp:
    """Change a column, as ``op.alter_column``; NOT NULL in stages, without a long lock.

    Parameters
    ----------
    server_default
        The default of new rows; None takes it away, False leaves it.
    new_column_name
        A new name, in a step of its own.
    existing_server_default
        What the downgrade puts back; without it, what the catalog holds when the revision is
        rendered.  ``sa.Identity()`` with ``server_default=None`` makes an identity column a plain
        one.

    Raises
    ------
    MigrationError
        If nothing changes, if a new name comes with another change, or for a new type, which
        would rewrite the table.
    """
    require_names(table_name, column_name, new_column_name, schema)
    column = f"{column_name!r} of {table_name!r}"
    if type_ is not None:
        raise MigrationError(
            f"a new type for {column} would rewrite the table under a strong lock",
            "add a column of that type, fill it with backfill(), and drop the old one later",
        )
    if isinstance(server_default, sa.Identity | sa.Computed):
        raise MigrationError(
            f"{column} cannot become an identity or computed column in stages",
            "write the statement yourself with sql()",
        )
    changes = [nullable is not None, server_default is not False, new_column_name is not None]
    if not any(changes):
        raise MigrationError(
            f"alter_column() changes nothing of {column}",
            "give nullable=, server_default= or new_column_name=",
        )
    if new_column_name is not None and (sum(changes) > 1 or new_column_name == column_name):
        raise MigrationError(
            f"{column} gets a new name and something else, or the name that it has",
            "rename it in a step of its own",
        )
    if nullable is not None and nullable is existing_nullable:
        raise MigrationError(
            f"{column} would become what existing_nullable= says it is", "leave the step out"
        )
    if server_default is not False:
        ddl.set_default(TableName(schema, table_name), column_name, server_default)
    return ops.AlterColumnOp(
        table_name,
        column_name,
        schema=schema,
        existing_type=existing_type,
        existing_server_default=existing_server_default,
        existing_nullable=None if nullable is None else not nullable,
        modify_nullable=nullable,
        modify_server_default=server_default,
        modify_name=new_column_name,
    )


# ---------------------------------------------------------------- tables


def create_table(
    table_name: str, *columns: SchemaItem, schema: str | None = None, **kw: Any
) -> ops.CreateTableOp:
    """Create a table, keys, constraints and indexes inside, as ``op.create_table``.

    A type of ``sa.Enum`` is not made with it: make it before, with :func:`create_enum`.
    """
    for column in columns:
        if isinstance(column, sa.Column):
            require_names(column.name)
            if column.foreign_keys and column.table is not None:  # pyright: ignore[reportUnnecessaryComparison]
                raise MigrationError(
                    f"column {column.name!r} belongs to a table already, and its copy would lose"
                    " the foreign key",
                    "give a new sa.Column, or the key as sa.ForeignKeyConstraint",
                )
    require_names(table_name, schema)
    kw.pop("if_not_exists", None)
    step = ops.CreateTableOp(table_name, columns, schema=schema, if_not_exists=True, **kw)
    ddl.create_table(step)
    return step


def drop_table(table_name: str, *, schema: str | None = None) -> ops.DropTableOp:
    """Drop a table with its rows, as ``op.drop_table``; there is no way back."""
    require_names(table_name, schema)
    return ops.DropTableOp(table_name, schema=schema, if_exists=True)


def rename_table(
    old_table_name: str, new_table_name: str, *, schema: str | None = None
) -> ops.RenameTableOp:
    """Rename a table, as ``op.rename_table``; later steps call it by its new name."""
    require_names(old_table_name, new_table_name, schema)
    if old_table_name == new_table_name:
        raise MigrationError(f"table {old_table_name!r} has that name", "give it another")
    return ops.RenameTableOp(old_table_name, new_table_name, schema=schema)


def create_enum(name: str, *labels: str) -> CreateEnum:
    """Create a PostgreSQL enum type; ``name`` may hold a schema."""
    if len(set(labels)) != len(labels) or not labels:
        raise MigrationError(
            f"enum {name!r} needs labels, each once", f"these were given: {', '.join(labels)}"
        )
    for label in labels:
        if len(label.encode()) > MOST_NAME_BYTES:
            raise MigrationError(
                f"the label {label!r} of enum {name!r} has more than 63 bytes", "shorten it"
            )
    type = TableName.parse(name)
    require_names(type.name, type.schema)
    return CreateEnum(name=type, labels=labels)


# ---------------------------------------------------------------- indexes


def create_index(
    index_name: str,
    table_name: str,
    columns: Sequence[str | sa.TextClause | sa.ColumnElement[Any]],
    *,
    schema: str | None = None,
    unique: bool = False,
    postgresql_where: Expression | sa.TextClause | None = None,
    **kw: Any,
) -> ops.CreateIndexOp:
    """Build an index, as ``op.create_index``, CONCURRENTLY: nobody waits for it.

    Parameters
    ----------
    columns
        Names of columns; other expressions as SQLAlchemy elements: ``sa.text("lower(name)")``.
    postgresql_where
        Rows that the index covers; text is taken as it stands.
    **kw
        ``postgresql_using``, ``postgresql_include``, ``postgresql_ops`` and what else SQLAlchemy
        knows; ``postgresql_concurrently`` says itself.
    """
    require_names(index_name, table_name, schema)
    if not columns or isinstance(columns, str):
        raise MigrationError(
            f"the columns of index {index_name!r} are no list of names", 'write ["column"]'
        )
    if kw.pop("postgresql_concurrently", True) is False:
        raise MigrationError(
            f"index {index_name!r} would make writers wait while it is built",
            "leave postgresql_concurrently out",
        )
    kw.pop("if_not_exists", None)
    if isinstance(postgresql_where, str):  # sa.text() would take ":y" in a literal for a parameter
        postgresql_where = sa.literal_column(expression_text(postgresql_where))
    if postgresql_where is not None:
        kw["postgresql_where"] = postgresql_where
    step = ops.CreateIndexOp(
        index_name, table_name, list(columns), schema=schema, unique=unique, **kw
    )
    ddl.create_index(step)
    return step


def drop_index(
    index_name: str, table_name: str | None = None, *, schema: str | None = None
) -> ops.DropIndexOp:
    """Drop an index, as ``op.drop_index``, CONCURRENTLY."""
    require_names(index_name, table_name, schema)
    return ops.DropIndexOp(index_name, table_name, schema=schema, if_exists=True)


# ---------------------------------------------------------------- constraints


def create_unique_constraint(
    constraint_name: str,
    table_name: str,
    columns: Sequence[str],
    *,
    schema: str | None = None,
    **kw: Any,
) -> ops.CreateUniqueConstraintOp:
    """Add a UNIQUE constraint, as ``op.create_unique_constraint``.

    Its index is built CONCURRENTLY first.  ``deferrable``, ``initially``, ``postgresql_include``
    and ``postgresql_nulls_not_distinct`` are understood.
    """
    require_names(constraint_name, table_name, schema)
    columns = names_of(columns, constraint_name)
    require_options(
        kw, "deferrable", "initially", "postgresql_include", "postgresql_nulls_not_distinct"
    )
    require_words(WHEN, kw.get("initially"))
    step = ops.CreateUniqueConstraintOp(constraint_name, table_name, columns, schema=schema, **kw)
    ddl.unique_index(step)
    return step


def create_primary_key(
    constraint_name: str, table_name: str, columns: Sequence[str], *, schema: str | None = None
) -> ops.CreatePrimaryKeyOp:
    """Add a primary key over columns that are NOT NULL, as ``op.create_primary_key``.

    Its index is built CONCURRENTLY first.
    """
    require_names(constraint_name, table_name, schema)
    columns = names_of(columns, constraint_name)
    return ops.CreatePrimaryKeyOp(constraint_name, table_name, columns, schema=schema)


def create_foreign_key(
    constraint_name: str,
    source_table: str,
    referent_table: str,
    local_cols: Sequence[str],
    remote_cols: Sequence[str],
    *,
    onupdate: str | None = None,
    ondelete: str | None = None,
    deferrable: bool | None = None,
    initially: str | None = None,
    match: str | None = None,
    source_schema: str | None = None,
    referent_schema: str | None = None,
) -> ops.CreateForeignKeyOp:
    """Add a foreign key, as ``op.create_foreign_key``: NOT VALID first, then proven."""
    require_names(constraint_name, source_table, referent_table, source_schema, referent_schema)
    local, remote = (names_of(columns, constraint_name) for columns in (local_cols, remote_cols))
    require_words(ACTION, onupdate, ondelete)
    require_words(WHEN, initially)
    require_words(MATCH, match)
    if len(local) != len(remote):
        raise MigrationError(
            f"foreign key {constraint_name!r} has {len(local)} columns for {len(remote)}",
            "name as many columns of one table as of the other",
        )
    step = ops.CreateForeignKeyOp(
        constraint_name,
        source_table,
        referent_table,
        local,
        remote,
        onupdate=onupdate,
        ondelete=ondelete,
        deferrable=deferrable,
        initially=initially,
        match=match,
        source_schema=source_schema,
        referent_schema=referent_schema,
    )
    ddl.add_foreign_key(step)
    return step


def create_check_constraint(
    constraint_name: str, table_name: str, condition: Expression, *, schema: str | None = None
) -> ops.CreateCheckConstraintOp:
    """Add a CHECK in the staged form: NOT VALID, then VALIDATE, which blocks no writer."""
    require_names(constraint_name, table_name, schema)
    return ops.CreateCheckConstraintOp(
        constraint_name, table_name, expression_text(condition), schema=schema
    )


def drop_constraint(
    constraint_name: str, table_name: str, type_: str | None = None, *, schema: str | None = None
) -> ops.DropConstraintOp:
    """Drop a constraint, as ``op.drop_constraint``."""
    require_names(constraint_name, table_name, schema)
    return ops.DropConstraintOp(constraint_name, table_name, type_, schema=schema, if_exists=True)


# ---------------------------------------------------------------- anything else


def sql(statement: str, undo: str | None = None, name: str | None = None) -> Sql:
    """Send a statement of your own as it stands, not in batches.

    It is sent once, however often the run is stopped, and what stands before it is not done again
    from then on.  What PostgreSQL takes in no transaction, such as VACUUM, may be sent twice.

    Parameters
    ----------
    undo
        Statement for the downgrade; ``""`` where there is nothing to undo, None where there is no
        way back.
    name
        What it does, in words; else its first line.
    """
    statement = one_statement(statement)
    undo = one_statement(undo) if undo and undo.strip() else undo
    return Sql(statement=statement, undo=undo, name=name or f"run {statement.splitlines()[0]}")

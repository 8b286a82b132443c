"""SQL of schema changes, written by SQLAlchemy's and Alembic's own compilers: pure text."""

from __future__ import annotations

import re
from typing import Any, cast

import sqlalchemy as sa
from alembic.ddl import base
from alembic.operations import ops
from sqlalchemy.exc import ArgumentError, CompileError, InvalidRequestError
from sqlalchemy.schema import (
    AddConstraint,
    CreateIndex,
    CreateTable,
    ExecutableDDLElement,
    SetColumnComment,
    SetTableComment,
)
from sqlalchemy.sql.elements import quoted_name

from datamig_nb.errors import MigrationError
from datamig_nb.names import TOKENS, TableName, literal, quote, sqlalchemy_dialect


def add_column(step: ops.AddColumnOp) -> list[str]:
    """ADD COLUMN IF NOT EXISTS, and the column's comment."""
    column = step.column
    add = base.AddColumn(step.table_name, column, schema=_schema(step.schema), if_not_exists=True)
    if not column.comment:
        return [written(add)]
    name = f"{TableName(step.schema, step.table_name).sql}.{quote(column.name)}"
    return [written(add), f"COMMENT ON COLUMN {name} IS {literal(column.comment)}"]


def create_table(step: ops.CreateTableOp) -> list[str]:
    """CREATE TABLE IF NOT EXISTS, its indexes by name, and the comments."""
    table = table_of(step)
    indexes = sorted(table.indexes, key=lambda index: str(index.name))
    return [
        written(CreateTable(table, if_not_exists=True)),
        *(written(CreateIndex(index, if_not_exists=True)) for index in indexes),
        *([written(SetTableComment(table))] if table.comment else []),
        *(written(SetColumnComment(column)) for column in table.c if column.comment),
    ]


def table_of(step: ops.CreateTableOp) -> sa.Table:
    """The table that a step creates, built once: built again it would lose its foreign keys."""
    built = step.__dict__.get("_datamig_table")
    if built is None:
        built = step.__dict__["_datamig_table"] = _built(step.to_table)
    return cast("sa.Table", built)


def create_index(step: ops.CreateIndexOp) -> str:
    """CREATE INDEX CONCURRENTLY IF NOT EXISTS."""

    def build() -> sa.Index:
        index = step.to_index()
        assert index.table is not None
        for name in step.kw.get("postgresql_include") or ():
            if name not in index.table.c:  # SQLAlchemy writes columns of the table only
                index.table.append_column(sa.Column(name))
        index.dialect_options["postgresql"]["concurrently"] = True
        return index

    return written(CreateIndex(_built(build), if_not_exists=True))


def unique_index(step: ops.CreateUniqueConstraintOp | ops.CreatePrimaryKeyOp) -> str:
    """The unique index of a constraint, as :func:`create_index` writes one."""
    names = ("postgresql_include", "postgresql_nulls_not_distinct")
    options = {name: step.kw[name] for name in names if name in step.kw}
    return create_index(
        ops.CreateIndexOp(
            str(step.constraint_name),
            step.table_name,
            list(step.columns),
            schema=step.schema,
            unique=True,
            **options,
        )
    )


def add_foreign_key(step: ops.CreateForeignKeyOp) -> str:
    """ADD CONSTRAINT … FOREIGN KEY."""
    options = dict(step.kw)
    child_schema = options.pop("source_schema", None)
    parent_schema = options.pop("referent_schema", None)

    def build() -> sa.ForeignKeyConstraint:
        # Tables of our own: a name with a dot in it would not survive "schema.table.column".
        columns, parents = list(step.local_cols), list(step.remote_cols)
        parent = sa.Table(
            step.referent_table, sa.MetaData(), *map(sa.Column, parents), schema=parent_schema
        )
        child = sa.Table(
            step.source_table, sa.MetaData(), *map(sa.Column, columns), schema=child_schema
        )
        key = sa.ForeignKeyConstraint(
            columns,
            [parent.c[name] for name in parents],
            name=step.constraint_name,
            **options,
        )
        child.append_constraint(key)
        return key

    return written(AddConstraint(_built(build)))


def set_default(table: TableName, column: str, default: Any) -> str:
    """ALTER COLUMN … SET DEFAULT, or DROP DEFAULT for None."""
    change = base.ColumnDefault(table.name, column, default, schema=_schema(table.schema))
    return written(change)


def written(element: ExecutableDDLElement) -> str:
    """The statement of an element, laid out without tabs and spaces at the ends of lines.

    Raises
    ------
    MigrationError
        If SQLAlchemy cannot write it: no type, no name, a value that is missing.
    """
    text = _built(lambda: str(element.compile(dialect=sqlalchemy_dialect()))).strip()
    pieces, last = list[str](), 0
    for found in re.finditer(r" *\n(\t?)", bare(text)):
        pieces += [text[last : found.start()], "\n", "    " if found[1] else ""]
        last = found.end()
    return "".join([*pieces, text[last:]])


def bare(text: str) -> str:
    """SQL text of the same length in which literals, quoted names and comments are blotted out."""
    return TOKENS.sub(lambda found: found[0] if found["plain"] else "\0" * len(found[0]), text)


def _schema(name: str | None) -> quoted_name | None:
    """Alembic takes a plain schema name with a dot in it for two names."""
    return None if name is None else quoted_name(name, quote(name) != name)


def _built(build: Any) -> Any:
    try:
        return build()
    except (ArgumentError, CompileError, InvalidRequestError, KeyError, TypeError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise MigrationError(
            f"SQLAlchemy cannot write this for PostgreSQL: {reason}",
            "correct the arguments, or write the statement yourself with sql()",
        ) from error

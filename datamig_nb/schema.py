"""Schema steps as SQL: the statements that carry each out, and those that take it back.

The forms are those of :mod:`datamig_nb.stages`; the parts that depend on types, defaults and
expressions are written by SQLAlchemy's and Alembic's own compilers, see :mod:`datamig_nb.ddl`.
"""

from __future__ import annotations

import re
from typing import TypeAlias

import sqlalchemy as sa
from alembic.operations import ops

from datamig_nb import ddl, stages
from datamig_nb.compound import CreateTableAs
from datamig_nb.errors import MigrationError
from datamig_nb.expressions import expression_text
from datamig_nb.migration import CreateEnum, SchemaStep, step_table
from datamig_nb.names import TableName, literal, quote
from datamig_nb.stages import Condition, Found, NoWayBack, Statement
from datamig_nb.steps import Sql

#: Steps that are statements, as opposed to batches, triggers and checks.
StatementStep: TypeAlias = SchemaStep | CreateEnum | CreateTableAs | Sql

WayBack: TypeAlias = tuple[Statement, ...] | NoWayBack


def upgrade_statements(step: StatementStep, found: Found | None = None) -> tuple[Statement, ...]:
    """The statements that carry a step out, in order.

    Raises
    ------
    MigrationError
        If PostgreSQL has no form for it that spares readers and writers a long lock.
    """
    found = found or Found()
    match step:
        case ops.AddColumnOp():
            return stages.plain(*ddl.add_column(step))
        case ops.CreateTableOp():
            return stages.plain(*ddl.create_table(step))
        case ops.DropColumnOp():
            return (_drop_column(step_table(step), step.column_name),)
        case ops.DropTableOp():
            return (_drop_table(step),)
        case ops.RenameTableOp():
            return (_rename_table(step_table(step), step.new_table_name),)
        case ops.AlterColumnOp():
            return _alter_column(step, found)
        case ops.CreateIndexOp():
            return _create_index(step, found)
        case ops.DropIndexOp():
            stages.require_whole(f"the index {step.index_name}", step_table(step), found)
            return (stages.drop_index(_index(step)),)
        case ops.CreateUniqueConstraintOp() | ops.CreatePrimaryKeyOp():
            return _create_key(step, found)
        case ops.CreateForeignKeyOp():
            return _create_foreign_key(step, found)
        case ops.CreateCheckConstraintOp():
            return _create_check(step, found)
        case ops.DropConstraintOp():
            return (_drop_constraint(step),)
        case CreateEnum(name=name, labels=labels):
            listed = ", ".join(map(literal, labels))
            create = f"CREATE TYPE {name.sql} AS ENUM ({listed})"
            return (stages.when(f"to_regtype({literal(name.sql)}) IS NULL", create),)
        case CreateTableAs():
            return _create_table_as(step)
        case Sql():
            return (_own(step.statement),)


def downgrade_statements(step: StatementStep, found: Found | None = None) -> WayBack:
    """The statements that take a step back, in order; or why there are none.

    Without ``found.definition`` there is no way back from what only the catalog knows: an index,
    a constraint or a default that the step drops.
    """
    match step:
        case ops.AddColumnOp():
            return (_drop_column(step_table(step), step.column.name),)
        case ops.CreateTableOp():
            return (_drop_table(step),)
        case ops.DropColumnOp():
            column = f"the column {step.column_name} of {step_table(step)}"
            return NoWayBack(reason=f"{column} is dropped, and its values are not kept")
        case ops.DropTableOp():
            return NoWayBack(
                reason=f"the table {step_table(step)} is dropped, and its rows are not kept"
            )
        case ops.RenameTableOp():
            new = TableName(step.schema, step.new_table_name)
            return (_rename_table(new, step.table_name),)
        case ops.AlterColumnOp():
            return _alter_column_back(step, found)
        case ops.CreateIndexOp():
            return (stages.drop_index(_index(step)),)
        case ops.DropIndexOp():
            return _drop_index_back(step, found)
        case ops.DropConstraintOp():
            return _drop_constraint_back(step, found)
        case CreateEnum(name=name):
            return stages.plain(f"DROP TYPE IF EXISTS {name.sql}")
        case CreateTableAs(table=table):
            return stages.plain(f"DROP TABLE IF EXISTS {table.sql}")
        case Sql(undo=undo):
            if undo is None:
                return NoWayBack(reason=f"nothing undoes this: {step.name}")
            return (_own(undo),) if undo.strip() else ()
        case _:
            return (_drop_constraint(step),)


# ---------------------------------------------------------------- columns and tables


def _drop_column(table: TableName, column: str) -> Statement:
    return Statement(sql=f"ALTER TABLE IF EXISTS {table.sql} DROP COLUMN IF EXISTS {quote(column)}")


def _drop_table(step: ops.DropTableOp | ops.CreateTableOp) -> Statement:
    return Statement(sql=f"DROP TABLE IF EXISTS {step_table(step).sql}")


def _create_table_as(step: CreateTableAs) -> tuple[Statement, ...]:
    """What the query gave the first time stays; the key makes it quick to look up."""
    table, keys = step.table, ", ".join(map(quote, step.key))
    key = f"pg_constraint WHERE conrelid = {stages.regclass(table)} AND contype = 'p'"
    twice = Condition(
        f"each {', '.join(step.key)} is once in what {table} is made from",
        f"SELECT {keys}, count(*) AS times FROM (\n{step.select}\n) AS source\n"
        f" GROUP BY {keys} HAVING count(*) > 1\n ORDER BY {keys}",
    )
    return (
        Statement(sql=f"CREATE TABLE IF NOT EXISTS {table.sql} AS\n{step.select}"),
        stages.when(
            f"NOT {stages.exists(key)}",
            f"ALTER TABLE {table.sql} ADD PRIMARY KEY ({keys})",
            validates=twice,
            on_failure=Statement(sql=f"DROP TABLE {table.sql}"),
        ),
        Statement(sql=f"ANALYZE {table.sql}"),
    )


def _rename_table(table: TableName, new_name: str) -> Statement:
    new = TableName(table.schema, new_name)
    rename = f"ALTER TABLE {table.sql} RENAME TO {quote(new_name)}"
    return stages.when(f"to_regclass({literal(new.sql)}) IS NULL", rename)


def _alter_column(step: ops.AlterColumnOp, found: Found) -> tuple[Statement, ...]:
    table, column = step_table(step), step.column_name
    alter = f"ALTER TABLE {table.sql} ALTER COLUMN {quote(column)}"
    statements: list[Statement] = []
    if isinstance(step.modify_server_default, sa.Identity):
        statements += stages.add_identity(table, column, step.modify_server_default.always)
    elif isinstance(step.existing_server_default, sa.Identity):
        statements += stages.plain(f"{alter} DROP IDENTITY IF EXISTS")
    elif step.modify_server_default is not False:
        default = ddl.set_default(table, column, step.modify_server_default)
        statements += stages.plain(default)
    if step.modify_nullable is False:
        statements += stages.set_not_null(table, column, found.key)
    elif step.modify_nullable:
        statements += stages.plain(f"{alter} DROP NOT NULL")
    if step.modify_name is not None:
        new_name = step.modify_name
        renamed = stages.exists(stages.column_row(table, new_name))
        rename = f"ALTER TABLE {table.sql} RENAME COLUMN {quote(column)} TO {quote(new_name)}"
        statements.append(stages.when(f"NOT {renamed}", rename))
    return tuple(statements)


def _alter_column_back(step: ops.AlterColumnOp, found: Found | None) -> WayBack:
    back = step.reverse()
    if step.modify_server_default is not False and step.existing_server_default is False:
        # Alembic knows the old default only where it was told; the catalog knows it.
        if found is None or found.definition is None:
            column = f"{step.column_name} of {step_table(step)}"
            return NoWayBack(reason=f"the default that {column} had is not known")
        default = found.definition[0]
        back.modify_server_default = None if default is None else sa.literal_column(default)
    if step.modify_nullable is not None:
        back.modify_nullable = not step.modify_nullable
    if step.modify_name is not None:  # Alembic leaves names as they are
        back.column_name, back.modify_name = step.modify_name, step.column_name
    return _alter_column(back, found or Found())


# ---------------------------------------------------------------- indexes


def _index(step: ops.CreateIndexOp | ops.DropIndexOp) -> TableName:
    return TableName(step.schema, str(step.index_name))


def _create_index(step: ops.CreateIndexOp, found: Found) -> tuple[Statement, ...]:
    name, table = str(step.index_name), step_table(step)
    stages.require_whole(f"the index {name}", table, found)
    rows = None
    columns = [column for column in step.columns if isinstance(column, str)]
    if step.unique and len(columns) == len(step.columns):
        where = step.kw.get("postgresql_where")
        rows = stages.duplicates(
            table,
            columns,
            where=None if where is None else expression_text(where),
            nulls_too=bool(step.kw.get("postgresql_nulls_not_distinct")),
        )
    return stages.build_index(name, table, ddl.create_index(step), rows)


def _drop_index_back(step: ops.DropIndexOp, found: Found | None) -> WayBack:
    if found is None or found.definition is None or found.definition[0] is None:
        return NoWayBack(reason=f"what the index {step.index_name} covered is not known")
    create, schema, table = (str(part) for part in found.definition)
    name = TableName(step.schema and schema, table)
    return stages.build_index(str(step.index_name), name, stages.concurrently(create))


# ---------------------------------------------------------------- constraints


def _drop_constraint(
    step: ops.DropConstraintOp
    | ops.CreateUniqueConstraintOp
    | ops.CreatePrimaryKeyOp
    | ops.CreateForeignKeyOp
    | ops.CreateCheckConstraintOp,
) -> Statement:
    return stages.drop_constraint(step_table(step), str(step.constraint_name))


def _create_key(
    step: ops.CreateUniqueConstraintOp | ops.CreatePrimaryKeyOp, found: Found
) -> tuple[Statement, ...]:
    name, table = str(step.constraint_name), step_table(step)
    stages.require_whole(f"the index of {name}", table, found)
    is_unique = isinstance(step, ops.CreateUniqueConstraintOp)
    options = " DEFERRABLE" if step.kw.get("deferrable") else ""
    options += f" INITIALLY {step.kw['initially'].upper()}" if step.kw.get("initially") else ""
    nulls_too = bool(step.kw.get("postgresql_nulls_not_distinct"))
    rows = stages.duplicates(table, step.columns, nulls_too=nulls_too)
    return (
        *stages.build_index(name, table, ddl.unique_index(step), rows),
        stages.use_index(table, name, "UNIQUE" if is_unique else "PRIMARY KEY", options),
    )


def _create_foreign_key(step: ops.CreateForeignKeyOp, found: Found) -> tuple[Statement, ...]:
    name, table = str(step.constraint_name), step_table(step)
    if found.partitioned and found.major < 18:
        raise MigrationError(
            f"PostgreSQL {found.major} adds the foreign key {name} only under a lock that stops"
            f" writers while it reads all rows, for {str(table)!r} has partitions",
            "add it to each partition, or use PostgreSQL 18",
        )
    parent = TableName(step.kw.get("referent_schema"), step.referent_table)
    child = quote(table.name)
    above = "parent" if table.name != "parent" else "referent"
    pairs = zip(step.local_cols, step.remote_cols, strict=True)
    same = " AND ".join(f"{above}.{quote(there)} = {child}.{quote(here)}" for here, there in pairs)
    columns = ", ".join(map(quote, step.local_cols))
    count = len(step.local_cols)
    orphan = (
        f"num_nulls({columns}) = 0"
        f"\n   AND NOT EXISTS (SELECT FROM {parent.sql} AS {above} WHERE {same})"
    )
    if str(step.kw.get("match")).upper() == "FULL":  # then a key may not be NULL in part
        orphan = f"num_nulls({columns}) BETWEEN 1 AND {count - 1} OR {orphan}"
    rows = Condition(
        f"every {', '.join(step.local_cols)} of {table} is found in {parent}",
        stages.failing_rows(table, orphan, found.key),
    )
    head = f"ALTER TABLE {table.sql}"
    add = f"{head}\n           {ddl.add_foreign_key(step).removeprefix(head)}"
    return stages.prove(table, name, add, rows)


def _create_check(step: ops.CreateCheckConstraintOp, found: Found) -> tuple[Statement, ...]:
    name, table, condition = str(step.constraint_name), step_table(step), str(step.condition)
    rows = Condition(
        f"every row of {table} meets {name}",
        stages.failing_rows(table, f"NOT ({condition})", found.key),
    )
    add = f"ALTER TABLE {table.sql}\n            ADD CONSTRAINT {quote(name)} CHECK ({condition})"
    return stages.prove(table, name, add, rows)


def _drop_constraint_back(step: ops.DropConstraintOp, found: Found | None) -> WayBack:
    """The constraint as the catalog describes it: its kind, its definition, that of its index."""
    name, table = str(step.constraint_name), step_table(step)
    if found is None or found.definition is None or found.definition[0] is None:
        return NoWayBack(reason=f"what the constraint {name} of {table} said is not known")
    kind, definition, index = found.definition
    text = str(definition)
    add = f"ALTER TABLE {table.sql}\n            ADD CONSTRAINT {quote(name)} {text}"
    absent = f"NOT {stages.exists(stages.constraint_row(table, name))}"
    if text.endswith(("NOT VALID", "NOT ENFORCED")):
        return (stages.when(absent, add),)
    if kind == "c" or (kind == "f" and not (found.partitioned and found.major < 18)):
        return stages.prove(table, name, add, None)
    if kind in ("u", "p") and index is not None and not found.partitioned:
        options = re.search(r"(?: DEFERRABLE)?(?: INITIALLY DEFERRED)?\Z", text)
        assert options is not None
        return (
            *stages.build_index(name, table, stages.concurrently(index)),
            stages.use_index(table, name, "UNIQUE" if kind == "u" else "PRIMARY KEY", options[0]),
        )
    return NoWayBack(reason=f"{name} of {table} cannot be added again without a long lock")


# ---------------------------------------------------------------- anything else

# What PostgreSQL refuses in a transaction block.
_OUTSIDE = re.compile(
    r"\b(?:concurrently|(?:create|drop)\s+(?:database|tablespace)|alter\s+system)\b|\A[\s\0]*vacuum\b",
    re.I,
)


def _own(statement: str) -> Statement:
    outside = _OUTSIDE.search(ddl.bare(statement)) is not None
    return Statement(sql=statement, outside=outside, repeatable=False)

"""What a migration is: a name and steps, all of them values.

Schema steps are Alembic's own operations (``alembic.operations.ops``), made by the functions of
:mod:`datamig_nb.operations`.  Data steps are the classes below.  Nothing here
touches a database.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import sqlalchemy as sa
from alembic.operations import ops
from sqlalchemy.exc import CompileError
from sqlalchemy.sql import visitors

from datamig_nb.display import Shown
from datamig_nb.errors import MigrationError
from datamig_nb.names import TableName, literal, quote, sqlalchemy_dialect

#: A SQL expression over one row: text, or a SQLAlchemy element.
Expression: TypeAlias = "str | sa.ColumnElement[Any]"

# Stands in the batch statements for the range of keys of one batch.
BATCH_MARK = "{batch}"

# What rendered statements use themselves, so that no expression may hold it.
_MARKS = (BATCH_MARK, "$datamig$", "\0")


@dataclass(frozen=True, kw_only=True)
class Backfill:
    """Set columns of the rows that are there, batch by batch."""

    #: Table to update.
    table: TableName
    #: Column to set -> SQL expression over the row as it was before.
    assign: Mapping[str, str]
    #: SQL condition over the row; None takes every row.
    where: str | None = None

    def __str__(self) -> str:
        rows = "every row" if self.where is None else f"rows where {self.where}"
        return f"fill {_columns(self.assign)} of {self.table}, {rows}, in batches"


@dataclass(frozen=True, kw_only=True)
class KeepInStep:
    """A trigger that gives new and changed rows the values a backfill gives the old ones."""

    #: Table whose rows are watched.
    table: TableName
    #: Column to set -> SQL expression over the new row.
    assign: Mapping[str, str]

    def __str__(self) -> str:
        return f"keep {_columns(self.assign)} of {self.table} in step with a trigger"


@dataclass(frozen=True, kw_only=True)
class CreateEnum:
    """A PostgreSQL enum type."""

    #: Name of the type, with its schema.
    name: TableName
    #: Labels in their order.
    labels: tuple[str, ...]

    def __str__(self) -> str:
        return f"create the enum type {self.name} ({', '.join(map(repr, self.labels))})"


@dataclass(frozen=True, kw_only=True)
class Sql:
    """A statement of the user's own, sent as it stands, not in batches."""

    statement: str
    #: Statement that undoes it; "" where nothing is to be undone, None where there is no way back.
    undo: str | None
    #: What it does, in words.
    name: str

    def __str__(self) -> str:
        return f"{self.name}, by a statement that is not batched"


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


Check: TypeAlias = RowCheck | QueryCheck
DataStep: TypeAlias = Backfill | KeepInStep | CreateEnum | Sql | RowCheck | QueryCheck
SchemaStep: TypeAlias = (
    ops.AddColumnOp
    | ops.AlterColumnOp
    | ops.DropColumnOp
    | ops.CreateTableOp
    | ops.DropTableOp
    | ops.RenameTableOp
    | ops.CreateIndexOp
    | ops.DropIndexOp
    | ops.CreateUniqueConstraintOp
    | ops.CreatePrimaryKeyOp
    | ops.CreateForeignKeyOp
    | ops.CreateCheckConstraintOp
    | ops.DropConstraintOp
)
Step: TypeAlias = SchemaStep | DataStep


@dataclass(frozen=True, init=False, repr=False)
class Migration(Shown):
    """A name and the steps that carry it out, in order.

    Printing one lists its steps.  ``migration.replace(number, step)`` gives a copy with another
    step at that place, counted from 1 as printed.

    Raises
    ------
    MigrationError
        If there is no name, no step, or something that is no step.
    """

    #: What the migration does, in a few words: the revision's title.
    name: str
    #: Steps in the order in which the upgrade takes them.
    steps: tuple[Step, ...] = field(default=())

    def __init__(self, name: str, *steps: Step) -> None:
        if not name.strip():
            raise MigrationError("the migration has no name", "say in a few words what it does")
        if not steps:
            raise MigrationError(f"migration {name!r} has no steps", "give it at least one step")
        for step in steps:
            _require_step(step)
        object.__setattr__(self, "name", " ".join(name.split()))
        object.__setattr__(self, "steps", steps)

    def replace(self, number: int, step: Step) -> Migration:
        """A copy with ``step`` in the place of step ``number`` (from 1)."""
        if not 1 <= number <= len(self.steps):
            raise MigrationError(
                f"there is no step {number}", f"choose one of 1 to {len(self.steps)}"
            )
        return Migration(self.name, *self.steps[: number - 1], step, *self.steps[number:])

    @property
    def backfills(self) -> tuple[Backfill, ...]:
        """The backfills among the steps."""
        return tuple(step for step in self.steps if isinstance(step, Backfill))

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks among the steps, those before the first write included."""
        return tuple(step for step in self.steps if isinstance(step, RowCheck | QueryCheck))

    def __repr__(self) -> str:
        lines = (f"  {number}. {describe(step)}" for number, step in enumerate(self.steps, 1))
        return "\n".join((f"Migration: {self.name}", *lines))


def _require_step(step: Step) -> None:
    if not isinstance(step, Step):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise MigrationError(
            f"{type(step).__name__} is no step of a migration",
            "make steps with add_column(), backfill(), check(), …",
        )
    if isinstance(step, ops.AlterColumnOp) and (
        step.modify_type is not None
        or step.modify_comment is not False
        or isinstance(step.modify_server_default, sa.Identity | sa.Computed)
    ):
        raise MigrationError(
            f"an AlterColumnOp of {step.column_name!r} does what alter_column() does not",
            "make it with alter_column(); a change of the type is a new column",
        )


def describe(step: Step) -> str:
    """One line in words for a step, as shown in lists and in the revision's header."""
    match step:
        case ops.AddColumnOp(column=column):
            kind = column.type.compile(dialect=sqlalchemy_dialect())
            return f"add the column {column.name} {kind} to {step_table(step)}"
        case ops.DropColumnOp():
            return f"drop the column {step.column_name} of {step_table(step)}, values and all"
        case ops.AlterColumnOp():
            return _describe_change(step)
        case ops.CreateTableOp():
            names = _columns([c.name for c in step.columns if isinstance(c, sa.Column)])
            return f"create the table {step_table(step)} with {names}"
        case ops.DropTableOp():
            return f"drop the table {step_table(step)}, rows and all"
        case ops.RenameTableOp():
            return f"rename the table {step_table(step)} to {step.new_table_name}"
        case ops.CreateIndexOp():
            kind = "unique index" if step.unique else "index"
            return f"build the {kind} {step.index_name} on {step_table(step)}, concurrently"
        case ops.DropIndexOp():
            return f"drop the index {step.index_name}, concurrently"
        case ops.DropConstraintOp():
            return f"drop the constraint {step.constraint_name} of {step_table(step)}"
        case ops.CreateCheckConstraintOp(constraint_name=name, condition=condition):
            return f"add the CHECK {name} to {step_table(step)}: {condition}"
        case ops.CreateForeignKeyOp(kw=options):
            parent = TableName(options.get("referent_schema"), step.referent_table)
            pointing = f"{_columns(step.local_cols)} to {_columns(step.remote_cols)} of {parent}"
            return f"add the foreign key {step.constraint_name} to {step_table(step)}: {pointing}"
        case ops.CreateUniqueConstraintOp() | ops.CreatePrimaryKeyOp():
            unique = isinstance(step, ops.CreateUniqueConstraintOp)
            kind = "UNIQUE" if unique else "PRIMARY KEY"
            over = f"over {_columns(step.columns)}"
            return f"add the {kind} {step.constraint_name} to {step_table(step)}, {over}"
        case _:
            return str(step)


def _describe_change(step: ops.AlterColumnOp) -> str:
    column = f"{step.column_name} of {step_table(step)}"
    changes: list[str] = []
    if step.modify_server_default is None:
        changes.append(f"drop the default of {column}")
    elif step.modify_server_default is not False:
        changes.append(f"change the default of {column}")
    if step.modify_nullable is False:
        changes.append(f"make {column} NOT NULL, without a long lock")
    elif step.modify_nullable:
        changes.append(f"let {column} be NULL")
    if step.modify_name is not None:
        changes.append(f"rename {column} to {step.modify_name}")
    return " and ".join(changes)


def step_table(step: SchemaStep) -> TableName:
    """The table that a schema step changes; of an index without one, a table of no name."""
    match step:
        case ops.CreateForeignKeyOp(kw=options):
            return TableName(options.get("source_schema"), step.source_table)
        case ops.DropIndexOp():
            return TableName(step.schema, step.table_name or "")
        case _:
            return TableName(step.schema, step.table_name)


def added_columns(migration: Migration) -> dict[TableName, dict[str, sa.Column[Any]]]:
    """The columns that a migration adds, by table, in order."""
    added: dict[TableName, dict[str, sa.Column[Any]]] = {}
    for step in migration.steps:
        if isinstance(step, ops.AddColumnOp):
            name = TableName(step.schema, step.table_name)
            added.setdefault(name, {})[step.column.name] = step.column
    return added


# ---------------------------------------------------------------- data steps


def backfill(
    table: str, assign: Mapping[str, Expression], *, where: Expression | None = None
) -> Backfill:
    """Set columns of existing rows, in batches by key, each batch its own transaction.

    Parameters
    ----------
    assign
        Column -> SQL expression over the row, text or SQLAlchemy element.  All expressions see
        the row as it was before.  A row that has the values already is not written.
    where
        SQL condition over the row; rows that do not meet it are left alone.
    """
    return Backfill(
        table=TableName.parse(table),
        assign=_expressions("backfill", assign),
        where=None if where is None else expression_text(where),
    )


def keep_in_step(table: str, assign: Mapping[str, Expression]) -> KeepInStep:
    """Give rows that are written from now on their values by a trigger.

    An INSERT that leaves all the columns NULL gets them computed; so does an UPDATE of a column
    that the expressions read, unless it sets one of the columns itself.
    """
    return KeepInStep(table=TableName.parse(table), assign=_expressions("keep_in_step", assign))


# ---------------------------------------------------------------- checks


def check(name: str, failing: str, *, before: bool = False) -> QueryCheck:
    """A check of your own: ``failing`` is a SELECT of the failing rows, their keys first."""
    return QueryCheck(name=name, failing=expression_text(failing).rstrip("; \n"), before=before)


def rows_check(name: str, table: str, failing: Expression, *, before: bool = False) -> RowCheck:
    """A check over the rows of one table: ``failing`` is a condition, true for a failing row.

    Checks of this kind over the same table are answered together, in one pass.
    """
    return RowCheck(
        name=name,
        table=TableName.parse(table),
        failing=expression_text(failing),
        before=before,
    )


def no_nulls(table: str, *columns: str) -> RowCheck:
    """No row has NULL in one of the columns."""
    return rows_check(
        f"{_columns(columns)} of {table} without NULL",
        table,
        " OR ".join(f"{quote(column)} IS NULL" for column in columns),
    )


def allowed_values(table: str, column: str, values: Iterable[str]) -> RowCheck:
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
    table: str, column: str, expression: Expression, *, where: Expression | None = None
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
        f"{_columns(columns)} of {table} unique",
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


# ---------------------------------------------------------------- text


def expression_text(expression: Expression) -> str:
    """The expression as SQL text, values as literals.

    Raises
    ------
    MigrationError
        If it is empty, holds a mark that rendered statements use, or is an element that has no
        text of its own.
    """
    text = expression.strip() if isinstance(expression, str) else _compiled(expression)
    if not text:
        raise MigrationError("an expression is empty", "write SQL over the columns of the row")
    for mark in _MARKS:
        if mark in text:
            raise MigrationError(
                f"the expression {text!r} holds {mark!r}, which rendered statements use themselves",
                "write it otherwise",
            )
    return text


def _compiled(element: sa.ColumnElement[Any]) -> str:
    for part in visitors.iterate(element):
        if isinstance(part, sa.BindParameter) and part.required:
            raise MigrationError(
                f"the expression {str(element)!r} has no value for :{part.key}",
                r"give it a value, or write a colon that is none of SQLAlchemy's as '\:'",
            )
        if isinstance(part, sa.SelectBase):
            raise MigrationError(
                "a SQLAlchemy element with a subquery would lose the names of its tables",
                "write the expression as text",
            )
    try:
        compiled = element.compile(
            dialect=sqlalchemy_dialect(),
            compile_kwargs={"literal_binds": True, "include_table": False},
        )
    except CompileError as error:
        raise MigrationError(
            f"the expression cannot be written as text: {error.args[0]}", "write it as text"
        ) from error
    return str(compiled)


def _expressions(step: str, assign: Mapping[str, Expression]) -> Mapping[str, str]:
    if not assign:
        raise MigrationError(f"{step}() sets no column", "give {column: expression}")
    return MappingProxyType({column: expression_text(text) for column, text in assign.items()})


def _columns(columns: Collection[str]) -> str:
    if not columns:
        raise MigrationError("no column is named", "name at least one")
    *most, last = columns
    return f"{', '.join(most)} and {last}" if most else last

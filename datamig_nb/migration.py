"""What a migration is: a name and steps, all of them values.

Schema steps are Alembic's own operations (``alembic.operations.ops``), made by functions with the
names and signatures that people know from ``op``; data steps are those of :mod:`datamig_nb.steps`,
checks those of :mod:`datamig_nb.checks`.  Nothing here touches a database.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import sqlalchemy as sa
from alembic.operations import ops
from sqlalchemy.dialects import postgresql

from datamig_nb.checks import Check, QueryCheck, RowCheck, Unchanged
from datamig_nb.display import Shown
from datamig_nb.errors import MigrationError
from datamig_nb.expressions import Expression, expression_text
from datamig_nb.names import TableName
from datamig_nb.steps import Backfill, DataStep


@dataclass(frozen=True, kw_only=True)
class CreateEnum:
    """A PostgreSQL enum type."""

    #: Name of the type, with its schema.
    name: TableName
    #: Labels in their order.
    labels: tuple[str, ...]

    def __str__(self) -> str:
        return f"create the enum type {self.name} ({', '.join(map(repr, self.labels))})"


SchemaStep: TypeAlias = ops.AddColumnOp | ops.AlterColumnOp | ops.CreateCheckConstraintOp
Step: TypeAlias = SchemaStep | CreateEnum | DataStep | RowCheck | QueryCheck | Unchanged


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
    if isinstance(step, ops.AlterColumnOp):
        changes = [(change[0], change[-1]) for change in step.to_diff_tuple()]
        if changes != [("modify_nullable", False)]:
            raise MigrationError(
                f"an AlterColumnOp of {step.column_name!r} does something else than NOT NULL",
                "make it with alter_column(); a change of the type is a new column",
            )


def describe(step: Step) -> str:
    """One line in words for a step, as shown in lists and in the revision's header."""
    match step:
        case ops.AddColumnOp(column=column, table_name=table, schema=schema):
            kind = column.type.compile(dialect=postgresql.dialect())
            return f"add the column {column.name} {kind} to {TableName(schema, table)}"
        case ops.AlterColumnOp(column_name=column, table_name=table, schema=schema):
            return f"make {column} of {TableName(schema, table)} NOT NULL, without a long lock"
        case ops.CreateCheckConstraintOp(
            constraint_name=name, table_name=table, schema=schema, condition=condition
        ):
            return f"add the CHECK {name} to {TableName(schema, table)}: {condition}"
        case _:
            return str(step)


def added_columns(migration: Migration) -> dict[TableName, dict[str, sa.Column[Any]]]:
    """The columns that a migration adds, by table, in order."""
    added: dict[TableName, dict[str, sa.Column[Any]]] = {}
    for step in migration.steps:
        if isinstance(step, ops.AddColumnOp):
            name = TableName(step.schema, step.table_name)
            added.setdefault(name, {})[step.column.name] = step.column
    return added


# ---------------------------------------------------------------- schema steps


def add_column(
    table_name: str, column: sa.Column[Any], *, schema: str | None = None
) -> ops.AddColumnOp:
    """Add a column, as ``op.add_column``; a repeated run finds it there and goes on.

    Raises
    ------
    MigrationError
        If the column is NOT NULL without a ``server_default``, has a client-side ``default``,
        which no existing row would get, or brings a key, a constraint or an index.
    """
    if (
        column.constraints
        or column.foreign_keys
        or any((column.primary_key, column.unique, column.index))
    ):
        raise MigrationError(
            f"column {column.name!r} brings a key, a constraint or an index of its own, which would"
            " hold a long lock",
            "add the column without it, and the constraint in a revision of its own",
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
    return ops.AddColumnOp(table_name, column, schema=schema, if_not_exists=True)


def alter_column(
    table_name: str, column_name: str, *, nullable: bool, schema: str | None = None
) -> ops.AlterColumnOp:
    """Make a column NOT NULL in the staged form: CHECK NOT VALID, VALIDATE, SET NOT NULL.

    Raises
    ------
    MigrationError
        If ``nullable`` is not False: nothing else is staged here.
    """
    if nullable:
        raise MigrationError(
            "alter_column() takes nullable=False only", "write other changes as steps of their own"
        )
    return ops.AlterColumnOp(
        table_name, column_name, schema=schema, modify_nullable=False, existing_nullable=True
    )


def create_check_constraint(
    constraint_name: str, table_name: str, condition: Expression, *, schema: str | None = None
) -> ops.CreateCheckConstraintOp:
    """Add a CHECK in the staged form: NOT VALID, then VALIDATE, which blocks no writer."""
    return ops.CreateCheckConstraintOp(
        constraint_name, table_name, expression_text(condition), schema=schema
    )


def create_enum(name: str, *labels: str) -> CreateEnum:
    """Create a PostgreSQL enum type; ``name`` may hold a schema."""
    if len(set(labels)) != len(labels) or not labels:
        raise MigrationError(
            f"enum {name!r} needs labels, each once", f"these were given: {', '.join(labels)}"
        )
    for label in labels:
        if len(label.encode()) > 63:
            raise MigrationError(
                f"the label {label!r} of enum {name!r} has more than 63 bytes", "shorten it"
            )
    return CreateEnum(name=TableName.parse(name), labels=labels)

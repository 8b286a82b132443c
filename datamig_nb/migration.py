"""What a migration is: a name and steps, all of them values.

Schema steps are Alembic's own operations (``alembic.operations.ops``), made by the functions of
:mod:`datamig_nb.operations`; data steps are those of :mod:`datamig_nb.steps`,
checks those of :mod:`datamig_nb.checks`.  Nothing here touches a database.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import sqlalchemy as sa
from alembic.operations import ops

from datamig_nb.checks import Check, QueryCheck, RowCheck, Unchanged
from datamig_nb.compound import ChangeType, CreateTableAs, MergeRows, Swap
from datamig_nb.display import Shown
from datamig_nb.errors import MigrationError
from datamig_nb.expressions import listed
from datamig_nb.names import TableName, quote, sqlalchemy_dialect
from datamig_nb.steps import Backfill, DataStep
from datamig_nb.transforms import Transform


@dataclass(frozen=True, kw_only=True)
class CreateEnum:
    """A PostgreSQL enum type."""

    #: Name of the type, with its schema.
    name: TableName
    #: Labels in their order.
    labels: tuple[str, ...]

    def __str__(self) -> str:
        return f"create the enum type {self.name} ({', '.join(map(repr, self.labels))})"


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
#: Steps that need the catalog to say which steps carry them out, and what these need beside.
Compound: TypeAlias = ChangeType | MergeRows | CreateTableAs | Swap
Step: TypeAlias = (
    SchemaStep | CreateEnum | DataStep | Transform | Compound | RowCheck | QueryCheck | Unchanged
)
#: A step, or several that belong together, as functions that choose steps return them.
Steps: TypeAlias = "Step | Sequence[Steps]"


@dataclass(frozen=True, init=False, repr=False)
class Migration(Shown):
    """A name and the steps that carry it out, in order.

    A step may be a sequence of steps, as functions give that choose several; they are taken in
    order.  Printing a migration lists all steps.  ``migration.replace(number, step)`` gives a copy
    with another step at that place, counted from 1 as printed.

    Raises
    ------
    MigrationError
        If there is no name, no step, or something that is no step.
    """

    #: What the migration does, in a few words: the revision's title.
    name: str
    #: Steps in the order in which the upgrade takes them.
    steps: tuple[Step, ...] = field(default=())

    def __init__(self, name: str, *steps: Steps) -> None:
        flat = tuple(_flat(steps))
        if not name.strip():
            raise MigrationError("the migration has no name", "say in a few words what it does")
        if not flat:
            raise MigrationError(f"migration {name!r} has no steps", "give it at least one step")
        for step in flat:
            _require_step(step)
        object.__setattr__(self, "name", " ".join(name.split()))
        object.__setattr__(self, "steps", flat)

    @classmethod
    def of_file(cls, name: str, *checks: Step) -> Migration:
        """What is known of a migration that somebody wrote as a revision: its checks, if any."""
        if checks:
            return cls(name, *checks)
        made = object.__new__(cls)
        object.__setattr__(made, "name", name)
        object.__setattr__(made, "steps", ())
        return made

    def replace(self, number: int, step: Steps) -> Migration:
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
    def transforms(self) -> tuple[Transform, ...]:
        """The steps that compute in Python."""
        return tuple(step for step in self.steps if isinstance(step, Transform))

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks among the steps, those before the first write included, and of checksums."""
        given = (step for step in self.steps if isinstance(step, RowCheck | QueryCheck))
        return (*given, *(check for step in self.transforms for check in checksum_checks(step)))

    def __repr__(self) -> str:
        lines = (f"  {number}. {describe(step)}" for number, step in enumerate(self.steps, 1))
        return "\n".join((f"Migration: {self.name}", *lines))


def _flat(steps: Sequence[Steps]) -> Iterator[Step]:
    for step in steps:
        if isinstance(step, list | tuple):
            yield from _flat(step)
        else:
            yield step  # pyright: ignore[reportReturnType]


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
            names = listed([c.name for c in step.columns if isinstance(c, sa.Column)])
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
            pointing = f"{listed(step.local_cols)} to {listed(step.remote_cols)} of {parent}"
            return f"add the foreign key {step.constraint_name} to {step_table(step)}: {pointing}"
        case ops.CreateUniqueConstraintOp() | ops.CreatePrimaryKeyOp():
            unique = isinstance(step, ops.CreateUniqueConstraintOp)
            kind = "UNIQUE" if unique else "PRIMARY KEY"
            over = f"over {listed(step.columns)}"
            return f"add the {kind} {step.constraint_name} to {step_table(step)}, {over}"
        case _:
            return str(step)


def _describe_change(step: ops.AlterColumnOp) -> str:
    column = f"{step.column_name} of {step_table(step)}"
    changes: list[str] = []
    if isinstance(step.existing_server_default, sa.Identity):
        changes.append(f"let {column} be no identity any more")
    elif step.modify_server_default is None:
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


def checksum_checks(step: Transform) -> tuple[RowCheck, ...]:
    """Whether the table holds what the step's checksums say; none where it has no checksum."""
    if step.checksum is None:
        return ()
    column, digest = quote(step.writes[0]), quote(step.checksum)
    differs = f"{digest} IS DISTINCT FROM encode(sha256(convert_to({column}::text, 'UTF8')), 'hex')"
    if step.where is not None or step.quarantine_rows is not None:  # rows that were left out
        differs = f"{digest} IS NOT NULL AND {differs}"
    name = f"{step.checksum} of {step.table} is the SHA-256 of {step.writes[0]}"
    return (RowCheck(name=name, table=step.table, failing=differs),)


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

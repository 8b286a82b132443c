"""Steps beside each other: what each makes, takes away and needs, and what follows from that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from alembic.operations import ops

from datamig_nb.errors import MigrationError
from datamig_nb.migration import CreateEnum, Step, step_table
from datamig_nb.names import TableName
from datamig_nb.steps import Backfill, KeepInStep

#: Identity of what a step makes, takes away or needs: kind, table or schema-qualified name, part.
Thing: TypeAlias = tuple[str, TableName, str]


def require_repeatable(steps: Sequence[Step]) -> None:
    """Refuse steps that a stopped run could not begin again from the first.

    A table or column that goes, or gets another name, may be neither made nor changed by another
    step: on the second way through it would be another one, or none.

    Raises
    ------
    MigrationError
        If two steps contend for a name, with their numbers.
    """
    for number, step in enumerate(steps, 1):
        is_rename = isinstance(step, ops.RenameTableOp | ops.AlterColumnOp)
        for thing in freed(step):
            for other_number, other in enumerate(steps, 1):
                if other is step or thing[0] == "constraint" or isinstance(step, _CONVERGE):
                    continue
                is_earlier = other_number < number
                is_made = thing in made(other) and (is_earlier or not is_rename)
                if is_made or (is_earlier and thing in _named(other)):
                    table, part = str(thing[1]), thing[2]
                    raise MigrationError(
                        f"steps {min(number, other_number)} and {max(number, other_number)} cannot"
                        f" be repeated in one revision: {f'{part} of {table}' if part else table}"
                        " is one thing in the one and another in the other",
                        "put the later into a revision of its own",
                    )


# A constraint or an index that goes and comes, and does so again, loses nothing.
_CONVERGE = (ops.DropIndexOp, ops.DropConstraintOp)


def goes_with_another(step: Step, steps: Sequence[Step]) -> bool:
    """Whether undoing another of the steps, one that made its table or column, undoes this too."""
    if isinstance(step, CreateEnum | ops.CreateTableOp | ops.RenameTableOp) or not isinstance(
        step, ops.MigrateOperation
    ):
        return False
    table = step_table(step)  # pyright: ignore[reportArgumentType]
    makers = (
        other
        for other in steps
        if other is not step and isinstance(other, ops.CreateTableOp | ops.AddColumnOp)
    )
    new = {thing for maker in makers for thing in made(maker)}
    if isinstance(step, ops.AlterColumnOp | ops.DropColumnOp) and not getattr(
        step, "modify_name", None
    ):
        return bool({relation(table), ("column", table, step.column_name)} & new)
    return relation(table) in new


# ---------------------------------------------------------------- what steps make and take away


def relation(name: TableName) -> Thing:
    """A table or an index."""
    return ("relation", name, "")


def made(step: Step) -> list[Thing]:
    """What is there after a step and was not before."""
    match step:
        case ops.CreateTableOp():
            return [relation(step_table(step))]
        case ops.RenameTableOp(schema=schema, new_table_name=name):
            return [relation(TableName(schema, name))]
        case ops.AddColumnOp():
            return [("column", step_table(step), step.column.name)]
        case ops.AlterColumnOp(modify_name=str(name)):
            return [("column", step_table(step), name)]
        case ops.CreateIndexOp():
            return [relation(TableName(step.schema, str(step.index_name)))]
        case ops.CreateUniqueConstraintOp() | ops.CreatePrimaryKeyOp():
            name = str(step.constraint_name)
            return [("constraint", step_table(step), name), relation(TableName(step.schema, name))]
        case ops.CreateForeignKeyOp() | ops.CreateCheckConstraintOp():
            return [("constraint", step_table(step), str(step.constraint_name))]
        case CreateEnum(name=name):
            return [("type", name, "")]
        case _:
            return []


def freed(step: Step) -> list[Thing]:
    """What is not there any more after a step, or not by that name."""
    match step:
        case ops.DropTableOp() | ops.RenameTableOp():
            return [relation(step_table(step))]
        case ops.DropColumnOp():
            return [("column", step_table(step), step.column_name)]
        case ops.AlterColumnOp(modify_name=str()):
            return [("column", step_table(step), step.column_name)]
        case ops.DropIndexOp():
            return [relation(TableName(step.schema, str(step.index_name)))]
        case ops.DropConstraintOp():
            name = str(step.constraint_name)
            return [("constraint", step_table(step), name), relation(TableName(step.schema, name))]
        case _:
            return []


def _named(step: Step) -> list[Thing]:
    """Tables and columns that a step expects to find; one that drops something expects nothing."""
    match step:
        case Backfill(table=table) | KeepInStep(table=table):
            columns = list(step.assign)
        case ops.AddColumnOp() | ops.CreateCheckConstraintOp():
            table, columns = step_table(step), []
        case ops.AlterColumnOp():
            table, columns = step_table(step), [step.column_name]
        case ops.CreateIndexOp() | ops.CreateUniqueConstraintOp() | ops.CreatePrimaryKeyOp():
            table = step_table(step)
            columns = [column for column in step.columns if isinstance(column, str)]
        case ops.CreateForeignKeyOp():
            table, columns = step_table(step), list(step.local_cols)
        case _:
            return []
    return [relation(table), *(("column", table, column) for column in columns)]

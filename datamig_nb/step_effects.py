"""Steps beside each other: what each makes, takes away and needs, and what follows from that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from alembic.operations import ops

from datamig_nb.compound import CreateTableAs, Swap
from datamig_nb.migration import CreateEnum, Step, step_table
from datamig_nb.names import TableName

#: Identity of what a step makes, takes away or needs: kind, table or schema-qualified name, part.
Thing: TypeAlias = tuple[str, TableName, str]


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
        case CreateTableAs(table=table):
            return [relation(table)]
        case Swap(columns=columns):
            return [("column", each.table, each.old) for each in columns if each.keep]
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

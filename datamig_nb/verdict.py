"""What a revision may change, and what the way back gives: proven by going it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, cast

from alembic.operations import ops

from datamig_nb.alembic_runs import AlembicRun
from datamig_nb.compound import ChangeType, MergeRows, Swap
from datamig_nb.migration import Migration, step_table
from datamig_nb.names import TableName
from datamig_nb.steps import Backfill, DeleteRows, InsertRows, KeepInStep, Sql
from datamig_nb.transforms import Transform

#: With backup: values that were there had changed, and were brought back from what was kept.
Verdict = Literal["lossless", "lossless with backup", "lossy", "irreversible", "not known"]


def refuses(downgrade: AlembicRun) -> bool:
    """Whether the downgrade refused on purpose, and says so."""
    return not downgrade.passed and bool(_REFUSES.search(downgrade.message))


# Our own revisions, then what people write and Alembic's documentation advises.
_REFUSES = re.compile(
    r"cannot be undone|irreversible|not reversible|NotImplementedError|no way back", re.IGNORECASE
)


def may_change(migration: Migration) -> dict[TableName, set[str] | None] | None:
    """The columns that the steps write, by table, where they were there before.

    A table with None may change as a whole; None for all where that cannot be said of a step.
    """
    found: dict[TableName, set[str] | None] = {}

    def columns(table: TableName, names: Iterable[str]) -> None:
        known = found.setdefault(table, set())
        if known is not None:
            known.update(names)

    if not migration.steps:
        return None
    for step in migration.steps:
        match step:
            case Sql() | MergeRows() | DeleteRows(dependants="all"):
                return None
            case Backfill() | KeepInStep():
                columns(step.table, step.assign)
            case Transform():
                columns(step.table, step.columns)
            case InsertRows():
                found[step.table] = None
            case DeleteRows():
                found.update(
                    dict.fromkeys((step.table, *cast("Sequence[TableName]", step.dependants)))
                )
            case ChangeType():
                columns(step.table, [step.column])
            case Swap():
                for each in step.columns:
                    columns(each.table, [each.column, each.new])
            case ops.DropColumnOp():
                columns(step_table(step), [step.column_name])
            case ops.AlterColumnOp():
                columns(step_table(step), [step.column_name])
            case ops.DropTableOp() | ops.RenameTableOp():
                found[step_table(step)] = None
            case _:
                continue
    return found

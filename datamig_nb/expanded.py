"""A migration whose steps are all such as can be carried out: what the catalog says, put in."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import sqlalchemy as sa

from datamig_nb.compound import ChangeType, MergeRows, Swap
from datamig_nb.database import Database
from datamig_nb.errors import MigrationError
from datamig_nb.kept import children
from datamig_nb.migration import Migration, Step
from datamig_nb.row_merge import merge
from datamig_nb.statements import names_in
from datamig_nb.step_effects import made, relation
from datamig_nb.steps import (
    Backfill,
    BackUp,
    DeleteRows,
    InsertRows,
    KeepInStep,
    back_up,
    backfill,
)
from datamig_nb.tables import read_table
from datamig_nb.transforms import Transform
from datamig_nb.type_change import retype


def expanded(db: Database, migration: Migration) -> Migration:
    """The migration with the steps that stand for several taken apart; only the catalog is read.

    Raises
    ------
    UnknownTableError, UnknownColumnError, ExpressionError, MigrationError
        If such a step does not fit the database.
    """
    if not any(isinstance(step, ChangeType | MergeRows | DeleteRows) for step in migration.steps):
        return migration
    steps: list[Step] = []
    with db.read_only(f"reading the catalog for {migration.name!r}") as connection:
        # Changes of types that follow each other take place together.
        for kind, group in groupby(migration.steps, key=type):
            together = [*group]
            if kind is ChangeType:
                changes = [step for step in together if isinstance(step, ChangeType)]
                steps += retype(connection, changes, steps, db.major)
                continue
            for step in together:
                _require_types_as_they_are(step, steps)
                if isinstance(step, MergeRows):
                    steps += merge(connection, step)
                elif isinstance(step, DeleteRows):
                    steps += [*_apart(connection, step, steps), step]
                else:
                    steps.append(step)
    return Migration(migration.name, *steps)


def _apart(connection: sa.Connection, step: DeleteRows, earlier: Iterable[Step]) -> list[Step]:
    """What makes rows that go refer to each other no more: a batch may hold one of two only."""
    if any(relation(step.table) in made(other) for other in earlier):
        return []
    table = read_table(connection, step.table)
    own = [
        each
        for each in table.referenced_by
        if each.is_of(step.table) and each.on_delete in (None, "CASCADE")
    ]
    columns = dict.fromkeys(c for each in own for c in each.columns if not table.column(c).not_null)
    if not table.key or not columns or names_in(step.where) & {*columns}:
        return []  # whether rows are in each other's way is asked before they go
    refers = "\n OR ".join(children(step, each) for each in own)
    nothing = backfill(
        step.table, dict.fromkeys(columns, "NULL"), where=f"({step.where})\n   AND ({refers})"
    )
    return [*([back_up(step.table, *columns)] if step.keep else []), nothing]


def _require_types_as_they_are(step: Step, earlier: Iterable[Step]) -> None:
    """An expression is held against the types that the catalog knows, not against new ones."""
    if not isinstance(step, Backfill | InsertRows | DeleteRows | KeepInStep | Transform | BackUp):
        return
    texts = () if isinstance(step, BackUp | KeepInStep | Transform) else step.texts
    if isinstance(step, Transform):
        texts = (*step.reads, *step.columns, step.where or "")
    elif isinstance(step, KeepInStep):
        texts = tuple(step.assign.values())
    names = names_in("\n".join(texts)) | {step.table.name}
    names |= {*step.columns} if isinstance(step, BackUp) else set[str]()
    names |= {*step.assign} if isinstance(step, Backfill | KeepInStep) else set[str]()
    for swap in (other for other in earlier if isinstance(other, Swap)):
        for each in swap.columns:
            if {each.column, each.table.name} <= names:
                raise MigrationError(
                    f"a step behind change_type() reads or sets {each.column!r} of"
                    f" {str(each.table)!r}: {step}",
                    "put it before, with the old type, or into a migration of its own",
                )

"""A migration whose steps are all such as can be carried out: what the catalog says, put in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

import sqlalchemy as sa

from datamig_nb.catalog_reader import with_children_of_deleted
from datamig_nb.compound import ChangeType, MergeRows, Swap
from datamig_nb.database import Database
from datamig_nb.errors import MigrationError
from datamig_nb.kept import children
from datamig_nb.migration import Migration, Step
from datamig_nb.names import TableName
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
from datamig_nb.tables import Reference, Table, read_table
from datamig_nb.targets import deletions
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
    """What lets rows refer to none that goes any more, where a column can be NULL instead.

    Rows of one table that go together do not refer to each other: a batch may hold one of two
    only.  Where all dependants are followed, what ON DELETE SET NULL would do is done, and kept.
    """
    if any(relation(step.table) in made(other) for other in earlier):
        return []
    named = (step.table, *(() if step.dependants == "all" else step.dependants))
    tables = {table: read_table(connection, table) for table in named}
    tables = with_children_of_deleted(connection, tables, [step])
    parts = deletions(step, tables)
    steps: list[Step] = []
    for part in parts:
        references = tables[part.table].referenced_by
        own = [e for e in references if e.is_of(part.table) and e.on_delete in (None, "CASCADE")]
        steps += _nulled(part, own, f"({part.where})\n   AND ", parts, tables)
        for each in references if step.dependants == "all" else ():
            if each.on_delete == "SET NULL":
                steps += _nulled(part, [each], "", parts, tables)
    return steps


def _nulled(
    part: DeleteRows,
    references: list[Reference],
    which: str,
    parts: Iterable[DeleteRows],
    tables: Mapping[TableName, Table],
) -> list[Step]:
    """Give rows of one table NULL for what goes, but in columns that say which rows go."""
    if not references:
        return []
    child = part.table if references[0].is_of(part.table) else references[0].name_of_child
    wheres = [p.where for p in parts if p.table == child or child.name in names_in(p.where)]
    columns = dict.fromkeys(
        column
        for each in references
        for column in each.columns
        if not tables[child].column(column).not_null
        if column not in names_in("\n".join(wheres))
    )
    if not tables[child].key or not columns:
        return []  # whether rows are in each other's way is asked before they go
    refers = "\n OR ".join(children(part, each) for each in references)
    nothing = backfill(child, dict.fromkeys(columns, "NULL"), where=f"{which}({refers})")
    return [*([back_up(child, *columns)] if part.keep else []), nothing]


def _require_types_as_they_are(step: Step, earlier: Iterable[Step]) -> None:
    """An expression is held against the types that the catalog knows, not against new ones."""
    if not isinstance(step, Backfill | InsertRows | DeleteRows | KeepInStep | Transform | BackUp):
        return
    texts = () if isinstance(step, BackUp | KeepInStep | Transform) else step.texts
    if isinstance(step, Transform):
        texts = (*step.reads, step.where or "")
    elif isinstance(step, KeepInStep):
        texts = tuple(step.assign.values())
    names = names_in("\n".join(texts)) | {step.table.name}
    written = isinstance(step, BackUp | Backfill | KeepInStep | Transform)
    names |= {*step.columns} if written else set[str]()
    for swap in (other for other in earlier if isinstance(other, Swap)):
        for each in swap.columns:
            if {each.column, each.table.name} <= names:
                raise MigrationError(
                    f"a step behind change_type() reads or sets {each.column!r} of"
                    f" {str(each.table)!r}: {step}",
                    "put it before, with the old type, or into a migration of its own",
                )

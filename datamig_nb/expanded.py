"""A migration whose steps are all such as can be carried out: what the catalog says, put in."""

from __future__ import annotations

from itertools import groupby

from datamig_nb.compound import ChangeType, MergeRows
from datamig_nb.database import Database
from datamig_nb.merged import merge
from datamig_nb.migration import Migration, Step
from datamig_nb.retyped import retype


def expanded(db: Database, migration: Migration) -> Migration:
    """The migration with the steps that stand for several taken apart; only the catalog is read.

    Raises
    ------
    UnknownTableError, UnknownColumnError, ExpressionError, MigrationError
        If such a step does not fit the database.
    """
    if not any(isinstance(step, ChangeType | MergeRows) for step in migration.steps):
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
                steps += merge(connection, step) if isinstance(step, MergeRows) else [step]
    return Migration(migration.name, *steps)

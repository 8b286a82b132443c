"""Migrations by name that change how another one is carried out."""

from __future__ import annotations

from dataclasses import replace

from datamig_nb.checks import Unchanged
from datamig_nb.compound import ChangeType, MergeRows
from datamig_nb.errors import MigrationError
from datamig_nb.migration import Migration, Step, added_columns
from datamig_nb.steps import Backfill, BackUp, DeleteRows, InsertRows, Sql
from datamig_nb.transforms import Transform


def with_backup(migration: Migration) -> Migration:
    """The migration, and nothing that it overwrites or deletes is lost.

    Old and new value of each row that changes are kept in the schema ``datamig``, by the very
    statement that changes it; rows that are deleted are kept too.  The downgrade compares three:
    a value that is still the one that the migration wrote gets the old one back; one that somebody
    edited since stays, and is listed in ``datamig.conflict`` with all three.

    Raises
    ------
    MigrationError
        If a step changes what cannot be kept: a statement of your own without ``undo``.
    """
    added = added_columns(migration)
    kept = {
        (step.table, column)
        for step in migration.steps
        if isinstance(step, BackUp)
        for column in step.columns
    }
    steps: list[Step] = []
    for number, step in enumerate(migration.steps, 1):
        new = added.get(step.table, {}) if isinstance(step, Backfill | Transform) else {}
        match step:
            case Backfill(table=table) | Transform(table=table):
                lost = [c for c in step.columns if c not in new and (table, c) not in kept]
                kept |= {(table, column) for column in lost}
                if lost:
                    steps.append(BackUp(table=table, columns=tuple(lost)))
            case DeleteRows():
                step = replace(step, keep=True)
            case Sql(undo=None):
                raise MigrationError(
                    f"step {number} cannot be backed up: a statement may change what was there",
                    "give undo=",
                )
            case _:
                pass
        steps.append(step)
    return Migration(f"{migration.name}, with a backup", *steps)


# ---------------------------------------------------------------- background


def background(migration: Migration) -> Migration:
    """The migration, its backfill left to workers: the revision that has it ends at once.

    That revision notes the job in ``datamig.run`` and leaves a procedure that does its batches.
    ``datamig-nb work``, or :func:`datamig_nb.work`, on any machine claims the job and works it
    off; killed at any point, the next worker goes on.  ``datamig.migration_jobs`` shows it, as
    :func:`datamig_nb.runs` does; :func:`datamig_nb.pause` and the others steer it.

    Rendered as it is, the migration goes up to the job; what stands behind is rendered by
    ``render(…, phase="contract")``, whose gate is the finished job.

    Raises
    ------
    MigrationError
        If the migration has no backfill, or more steps that change rows than that, or compares a
        figure from before with one after, which no revision sees both.
    """
    step = _only_backfill(migration)
    job = replace(step, walk=replace(step.walk, job=migration.name))
    steps = (job if other is step else other for other in migration.steps)
    return Migration(migration.name, *steps)


def _only_backfill(migration: Migration) -> Backfill:
    changing = [step for step in migration.steps if isinstance(step, _CHANGES | Unchanged)]
    if len(changing) == 1 and isinstance(changing[0], Backfill):
        return changing[0]
    raise MigrationError(
        f"{migration.name!r} cannot be left to workers, for it has"
        f" {'; '.join(map(str, changing)) or 'no backfill'}",
        "give a migration with one backfill, and no other step that changes or counts rows",
    )


_CHANGES = Backfill | InsertRows | DeleteRows | Transform | ChangeType | MergeRows

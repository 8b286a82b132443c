"""Migrations by name that change how another one is carried out."""

from __future__ import annotations

from dataclasses import replace

from datamig_nb.checks import QueryCheck, RowCheck, Unchanged, check
from datamig_nb.errors import MigrationError
from datamig_nb.migration import Migration, Step, added_columns
from datamig_nb.names import literal
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
        If a step changes what cannot be kept: a Python function that writes to a column that is
        there already, or a statement of your own without ``undo``.
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
            case Backfill(table=table, assign=assign):
                lost = [c for c in assign if c not in new and (table, c) not in kept]
                kept |= {(table, column) for column in lost}
                if lost:
                    steps.append(BackUp(table=table, columns=tuple(lost)))
            case DeleteRows():
                step = replace(step, keep=True)
            case Transform(columns=columns) if set(columns) - set(new):
                raise _not_kept(number, "a Python function overwrites", "write to a new column")
            case Sql(undo=None):
                raise _not_kept(number, "a statement may change", "give undo=")
            case _:
                pass
        steps.append(step)
    return Migration(f"{migration.name}, with a backup", *steps)


def _not_kept(number: int, what: str, advice: str) -> MigrationError:
    return MigrationError(f"step {number} cannot be backed up: {what} what was there", advice)


# ---------------------------------------------------------------- background


def background(migration: Migration) -> Migration:
    """The migration up to its backfill, which is left to workers: the revision ends at once.

    The revision notes the job in ``datamig.run`` and leaves a procedure that does its batches.
    ``datamig-nb work``, or :func:`datamig_nb.work`, on any machine claims the job and works it
    off; killed at any point, the next worker goes on.  ``datamig.migration_jobs`` shows it, as
    :func:`datamig_nb.runs` does; :func:`datamig_nb.pause` and the others steer it.  What stands
    behind the backfill is done by :func:`contract`, in a revision of its own.

    Raises
    ------
    MigrationError
        If the migration has no backfill, or more steps that change rows than that, or compares a
        figure from before with one after, which no revision sees both.
    """
    place, step = _only_backfill(migration)
    job = replace(step, walk=replace(step.walk, job=migration.name))
    asked = (s for s in migration.steps[place + 1 :] if _is_asked_before(s))
    return Migration(f"{migration.name}, in the background", *migration.steps[:place], job, *asked)


def contract(migration: Migration) -> Migration:
    """What is left of a migration whose backfill :func:`background` left to workers.

    Its gate is the finished job: before its first write it refuses to begin while the job is not
    done.  Then come the steps behind the backfill: checks, constraints, NOT NULL.
    """
    place, _ = _only_backfill(migration)
    job = literal(f"job: {migration.name}")
    gate = check(
        f"the job is done: {migration.name}",
        f"SELECT revision, status, scanned FROM datamig.run\n WHERE step = {job} AND status <>"
        f" 'succeeded'\n UNION ALL SELECT 'no such job', '', 0\n WHERE NOT EXISTS"
        f" (SELECT FROM datamig.run WHERE step = {job})",
        before=True,
    )
    rest = (step for step in migration.steps[place + 1 :] if not _is_asked_before(step))
    return Migration(f"{migration.name}, when the job is done", gate, *rest)


def _only_backfill(migration: Migration) -> tuple[int, Backfill]:
    """The place of the backfill, and the backfill."""
    changing = [
        (place, step)
        for place, step in enumerate(migration.steps)
        if isinstance(step, Backfill | InsertRows | DeleteRows | Transform | Unchanged)
    ]
    if len(changing) == 1 and isinstance(changing[0][1], Backfill):
        return changing[0][0], changing[0][1]
    raise MigrationError(
        f"{migration.name!r} cannot be left to workers, for it has"
        f" {'; '.join(str(step) for _, step in changing) or 'no backfill'}",
        "give a migration with one backfill, and no other step that changes or counts rows",
    )


def _is_asked_before(step: Step) -> bool:
    return isinstance(step, RowCheck | QueryCheck) and step.before

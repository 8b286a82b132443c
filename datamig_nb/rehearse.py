"""Run a revision on a copy: up, checked, down, compared, up again.

The very bytes that were rendered go through Alembic in a process of its own; there is no second
engine that could behave otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from datamig_nb.checks import Check
from datamig_nb.clone import Clone, cloned
from datamig_nb.database import Database
from datamig_nb.display import counted
from datamig_nb.errors import RehearsalError
from datamig_nb.fault_scene import FaultResult, Scene, end_state
from datamig_nb.faults import FAULTS
from datamig_nb.forecast import forecast
from datamig_nb.hazards import (
    hazards_of_file,
    hazards_of_script,
    reserved_names,
)
from datamig_nb.migration import Migration, added_columns
from datamig_nb.names import TableName
from datamig_nb.progress import live_line
from datamig_nb.rehearsal import Rehearsal
from datamig_nb.rehearsal_place import kind, place
from datamig_nb.rehearsal_work import FailedError, StoppedError, Work
from datamig_nb.render import Revision
from datamig_nb.revision_file import read_revision
from datamig_nb.snapshot import (
    ROWS,
    count_differing,
    differences,
    differing,
    hash_columns,
    in_words,
    keep_before,
    user_tables,
    with_children,
)
from datamig_nb.validate import validate
from datamig_nb.verdict import may_change, refuses
from datamig_nb.workers import work as work_off


def rehearse(
    db: Database,
    revision: Revision | str | Path,
    *,
    checks: Sequence[Check] = (),
    on: str | sa.URL | Database = "clone",
    fraction: float | None = None,
    rows: int | None = None,
    confirm: str | None = None,
    faults: Collection[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Rehearsal:
    """Run the revision on a copy of the database: upgrade, checks, downgrade, upgrade.

    Compared are every table's values, column by column, and the schema as pg_dump writes it: after
    the upgrade, all that the migration must not touch; after the downgrade, everything.

    A revision that was rendered for an Alembic project, or lies in one, runs in it, with its
    history, its settings and its ``env.py``, which SQLAlchemy leads to the copy whatever address it
    finds; the copy is brought to where the revision begins first.  Nothing is written in the
    project.  A session opened without SQLAlchemy gets no address but the copy's from the
    environment, and is refused where psycopg, psycopg2 or asyncpg lead it to another database.

    Parameters
    ----------
    revision
        One that was rendered; or the path of a revision file, whoever wrote it.
    checks
        What must hold after the upgrade, beside the migration's own checks.  They may read
        ``datamig_before.TABLE``: the table as it was before the upgrade.
    on
        ``"clone"``: all of the database, on the same server, or on the embedded one where the role
        may not create databases.  ``"sample"``: a referentially whole part of it on the embedded
        server; needs no more than SELECT.  A URL or a database: staging, which is written and left
        upgraded.
    fraction, rows
        How much of each table a sample takes: a share up to 1, or a number of rows (10,000 unless
        told otherwise).
    confirm
        What must be said before staging is written: ``"write to"`` and the database's name.
    faults
        Names of faults to try as well, each on a copy of its own: see ``FAULTS``.
    progress
        Called with the name of each stage as it begins, and with each line that Alembic logs.
        Where none is given they are shown in one line, if somebody is looking on.

    Raises
    ------
    RehearsalError, PermissionDeniedError
        If the rehearsal could not be carried out.  A revision that fails is no error: the
        rehearsal says so.
    """
    if not isinstance(revision, Revision):
        revision = read_revision(revision)
    if checks:
        migration = revision.migration
        migration = Migration(migration.name, *migration.steps, *checks)
        revision = replace(revision, migration=migration)
    if unknown := [name for name in faults if name not in FAULTS]:
        raise RehearsalError(
            f"there is no fault {unknown[0]!r}", f"choose from {', '.join(FAULTS) or '(none)'}"
        )
    where = kind(on)
    if faults and where == "staging":
        raise RehearsalError(
            "faults are tried on copies, which a staging database is not",
            'leave them out, or rehearse with on="clone" on that server',
        )
    given = place(db, revision, on, fraction=fraction, rows=rows, confirm=confirm)
    with live_line() as line:
        work = Work(source=db, revision=revision, progress=progress or line)
        with suppress(StoppedError), work.copied(where, given), work.placed():
            _carry_out(work, tuple(faults))
        work.faults += _untried(work, faults)
    return Rehearsal(
        revision=revision,
        digest=revision.digest,
        server_version=work.copy.version,
        rows=work.rows,
        stages=tuple(work.stages),
        validation=work.validation,
        verdict=work.verdict,
        on=where,
        hazards=tuple(work.hazards),
        faults=tuple(work.faults),
        measured=tuple(work.measured),
        forecast=work.forecast,
    )


def _carry_out(work: Work, faults: tuple[str, ...]) -> None:
    beginning = work.runner.prepare()
    if beginning.upgraded:
        work_off(work.copy)  # what revisions before this one left to workers
    if beginning.said:
        made = work.stages[0]
        work.stages[0] = replace(made, detail=f"{made.detail}; {beginning.said}")
    work.without = (beginning.version_table,)
    tables = user_tables(work.copy)
    hidden = beginning.version_table
    work.tables = {
        name: columns
        for name, columns in tables.items()
        if name.name != hidden.name or hidden.schema not in (None, name.schema)
    }
    work.before = work.snapshot()
    reserved = reserved_names(work.copy, work.sizes)
    work.hazards += hazards_of_file(work.revision, work.sizes, reserved)
    scripted = hazards_of_script(beginning.script, beginning.unscripted, work.copy.major)
    work.hazards += scripted
    keep_before(work.copy, tables, [check.failing for check in work.revision.migration.checks])
    _look_at_tables(work)
    if not faults:
        _up_and_down(work, keep=False)
        return
    with _pristine(work) as copy:
        _up_and_down(work, keep=True)
        for name in faults:
            with suppress(StoppedError):  # the next one has a copy of its own
                work.stage(name, partial(_fault, work, name, copy))


def _up_and_down(work: Work, *, keep: bool) -> None:
    work.stage("upgrade", partial(_upgrade, work, "upgrade"))
    here = {str(name): rows for name, rows in work.sizes.items()}
    work.forecast = forecast(work.measured[0], here, {**here, **work.copy.source_rows})
    work.stage("checks", partial(_checks, work))
    others = "what was changed" if _allowed(work) is None else "everything else unchanged"
    work.stage(others, partial(_others_unchanged, work))
    if keep:
        work.expected = end_state(work.copy, work.tables, work.without)
    work.stage("downgrade", partial(_downgrade, work))
    if work.verdict == "irreversible":
        return
    work.stage("equal to before", partial(_equal_to_before, work))
    work.stage("upgrade again", partial(_upgrade, work, "upgrade again"))
    work.stage("checks again", partial(_checks, work))
    if work.expected is not None:
        again = end_state(work.copy, work.tables, work.without)
        work.varying = differences(work.expected, again)


def _upgrade(work: Work, stage: str) -> str:
    run = work.alembic(stage, "upgrade", work.revision.id)
    if not run.passed:
        raise FailedError(run.message)
    return ""


def _others_unchanged(work: Work) -> str:
    work.changed = differing(work.before, work.snapshot())
    allowed = _allowed(work)
    if allowed is None:
        words = ", ".join(in_words(*each) for each in work.changed)
        return words or "nothing of what was there"
    found = [each for each in work.changed if not allowed(*each)]
    if found:
        raise FailedError(f"differs from before: {_counted(work, found)}")
    return f"{len(work.tables)} tables"


def _downgrade(work: Work) -> str:
    run = work.alembic("downgrade", "downgrade", work.revision.down_revision or "base")
    if refuses(run):
        work.verdict = "irreversible"
        return "refused, as the revision says"
    if not run.passed:
        raise FailedError(run.message)
    return ""


def _equal_to_before(work: Work) -> str:
    after = work.snapshot()
    values, words = differing(work.before, after), differences(work.before, after)
    work.verdict = "lossy" if words else "lossless with backup" if work.changed else "lossless"
    if words:
        counts = [_counted(work, values)] if values else []
        found = [*counts, *words[len(values) :]]
        raise FailedError(f"differs from before: {', '.join(found)}")
    work.back = work.measured[-1], work.before
    return f"{len(work.tables)} tables"


def _look_at_tables(work: Work) -> None:
    """Find out which tables the migration touches, and how many rows they have."""
    revision = work.revision
    named = {*added_columns(revision.migration), *(may_change(revision.migration) or ())}
    if revision.path is not None:
        words = set(re.findall(r"\w+", revision.text))
        named = {name for name in work.tables if name.name in words}
    holding = with_children(work.copy, named)
    work.touched = tuple(dict.fromkeys(name for names in holding.values() for name in names))


def _allowed(work: Work) -> Callable[[TableName, str], bool] | None:
    """Tells which tables and columns the upgrade may change; None where anything goes."""
    declared = None if work.revision.path else may_change(work.revision.migration)
    if declared is None:
        return None
    holding = with_children(work.copy, declared)
    columns = {name: declared[table] for table, names in holding.items() for name in names}

    def allowed(name: TableName, column: str) -> bool:
        known = columns.get(name, set())
        return known is None or column in known

    return allowed


def _counted(work: Work, found: Sequence[tuple[TableName, str]]) -> str:
    """What differs from before, in words, with the number of rows where it can be counted."""
    if work.stages[0].name != "clone":  # elsewhere there is nothing to make another copy of
        return ", ".join(in_words(*each) for each in found)
    said: list[str] = []
    # The copy is what it was made of no more; the source still is, unless somebody wrote there.
    with cloned(work.source, f"{work.revision.id}_compared") as pristine:
        for name, column in found:
            words = in_words(name, column)
            same = hash_columns(pristine, name, work.tables[name]).get(column)
            if column == ROWS:
                words += f" (was {work.sizes[name]:,})"
            elif same == work.before.tables[name][column]:
                rows = count_differing(pristine, work.copy, name, column)
                words += f" in {counted(rows, 'row')}" if rows else ""
            said.append(words)
    return ", ".join(said)


def _complete(revision: Revision, database: Database) -> None:
    """Do what the upgrade left to workers."""
    if any(step.walk.job is not None for step in revision.migration.backfills):
        work_off(database, revision.id)


def _checks(work: Work) -> str:
    _complete(work.revision, work.copy)
    if not any(not check.before for check in work.revision.migration.checks):
        return "the migration has none"
    work.validation = validate(work.copy, work.revision.migration)
    if not work.validation.passed:
        failed = [result for result in work.validation.results if not result.passed]
        raise FailedError(f"{failed[0].name}: {failed[0].failing_rows} rows fail")
    return work.validation.summary


# ---------------------------------------------------------------- faults


@contextmanager
def _pristine(work: Work) -> Generator[Callable[[], AbstractContextManager[Clone]]]:
    """What makes copies of the clone as it is now."""
    label = work.revision.id
    with cloned(work.copy, f"{label}_before") as pristine:
        yield lambda: cloned(pristine, f"{label}_fault")


def _untried(work: Work, faults: Collection[str]) -> Iterator[FaultResult]:
    """The faults that were asked for and could not be tried, with the reason."""
    tried = {result.name for result in work.faults}
    failed = {stage.name: stage for stage in work.stages if not stage.passed}
    for name in faults:
        if name not in tried:
            own, first = failed.get(name), next(iter(failed), "")
            happened = f"not tried: {own.detail}" if own else f"not tried, since {first} failed"
            yield FaultResult(
                name=name, done="", happened=happened, equal=None, passed=False, seconds=0.0
            )


def _fault(work: Work, name: str, copy: Callable[[], AbstractContextManager[Clone]]) -> str:
    assert work.expected is not None
    scene = Scene(
        runner=work.runner,
        copy=copy,
        tables=work.tables,
        touched=work.touched,
        without=work.without,
        expected=work.expected,
        varying=work.varying,
        complete=partial(_complete, work.revision),
        cost=work.measured[0],
        back=work.back,
        progress=work.progress,
    )
    result = FAULTS[name](scene)
    work.faults.append(result)
    if not result.passed:
        raise FailedError(f"{result.done}: {result.happened}")
    return result.happened

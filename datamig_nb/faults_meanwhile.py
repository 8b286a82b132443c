"""Faults by what the application does meanwhile: it holds a lock, or it goes on writing."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from datamig_nb.alembic_runs import AlembicRun, Running
from datamig_nb.database import Database, explained, run
from datamig_nb.display import counted
from datamig_nb.errors import QueryError
from datamig_nb.fault_application import Writer, as_others
from datamig_nb.fault_scene import LOOK_SECONDS, FaultResult, Scene
from datamig_nb.meter import measuring
from datamig_nb.migration import Migration, Step
from datamig_nb.names import TableName, quote
from datamig_nb.snapshot import hash_columns
from datamig_nb.statements import names_in
from datamig_nb.steps import Backfill, DeleteRows, InsertRows, KeepInStep, Sql
from datamig_nb.tables import Table
from datamig_nb.transforms import Transform
from datamig_nb.validate import validate
from datamig_nb.verdict import may_change

#: A lock is held so many times as long as the revision waits for one.
HELD_TIMES = 2.5

#: Tables that the application writes to.
MOST_WRITERS = 3

#: How long it goes on where a trigger sees to what it writes after the upgrade.
AFTERWARDS_SECONDS = 0.3


def written_tables(scene: Scene, database: Database) -> list[Table]:
    """Tables that were there before and that the migration writes to, by what it says and did."""
    grown = [TableName.parse(growth.table) for growth in scene.cost.growths]
    named = dict.fromkeys((*scene.touched, *grown))
    tables = [database.table(name) for name in named if name in scene.tables]
    return [table for table in tables if table.kind == "table" and not table.partitioned]


def _nothing(name: str, began: float, why: str) -> FaultResult:
    return FaultResult(
        name=name,
        done="nothing",
        happened=why,
        equal=None,
        passed=True,
        seconds=time.monotonic() - began,
    )


# ---------------------------------------------------------------- a lock


def lock(scene: Scene) -> FaultResult:
    """Hold a row of a table for longer than the revision waits, while others read the table."""
    began = time.monotonic()
    with scene.copy() as copy:
        tables = written_tables(scene, copy)
        if not tables:
            return _nothing("lock", began, "the migration writes to no table that was there before")
        table, limit = tables[0], lock_timeout(scene.runner.revision.text)
        others = as_others(copy)
        with explained("holding a lock", copy.url), others.engine.connect() as holder:
            _change_a_row(holder, table)
            with measuring(copy) as meter, _reading(copy, table), scene.start(copy) as running:
                if _waits(copy, running):
                    time.sleep(HELD_TIMES * limit)
                holder.rollback()
                last = running.wait()
        longest = max((wait.seconds for wait in meter.waits), default=0.0)
        result = scene.result(
            "lock",
            began=began,
            done=f"a session changed a row of {table.name} and kept its transaction open for"
            f" {HELD_TIMES * limit:.1f} s after the upgrade had begun to wait for it, while another"
            " session read the table",
            happened=f"the reader waited {longest:.1f} s at most, the revision's lock_timeout is"
            f" {limit:.1f} s",
            run=last,
            found=scene.snapshot(copy),
        )
        bounded = longest <= 1.5 * limit + meter.largest_gap_seconds
        return replace(result, passed=result.passed and bounded)


def lock_timeout(text: str) -> float:
    """How long statements of a revision wait for a lock, in seconds; 2 where it says nothing."""
    found = re.search(r"lock_timeout\W+(\d+) *(ms|s|min|)\b", text, re.IGNORECASE)
    return int(found[1]) * {"s": 1.0, "min": 60.0}.get(found[2], 0.001) if found else 2.0


def _change_a_row(holder: sa.Connection, table: Table) -> None:
    """Change nothing of it, yet lock it until the transaction ends."""
    name = table.name.sql
    column = quote(next(c.name for c in table.columns if not c.generated))
    first = f"(SELECT ctid FROM {name} LIMIT 1)"
    run(holder, f"UPDATE {name} SET {column} = {column} WHERE ctid = {first}")


@contextmanager
def _reading(copy: Database, table: Table) -> Generator[None]:
    """Somebody who reads the table again and again."""
    ended = threading.Event()

    def read() -> None:
        with as_others(copy).engine.connect() as connection:
            while not ended.wait(4 * LOOK_SECONDS):
                with suppress(DBAPIError):  # dropped, or renamed
                    run(connection, f"SELECT FROM {table.name.sql} LIMIT 1")
                connection.rollback()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _waits(copy: Database, running: Running) -> bool:
    """Wait until the upgrade waits for a lock; False where it ends without."""
    with copy.engine.connect() as connection:
        while not running.ended:
            if run(connection, _IS_WAITING).scalar_one():
                return True
            connection.rollback()
            time.sleep(LOOK_SECONDS)
    return False


_IS_WAITING = """
SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
                WHERE NOT granted AND datname = current_database())
"""


# ---------------------------------------------------------------- writers


def writers(scene: Scene) -> FaultResult:
    """Let an application write to the tables meanwhile; no write of it may be lost."""
    began = time.monotonic()
    with scene.copy() as copy:
        tables = [table for table in written_tables(scene, copy) if table.key]
        if not tables:
            why = "the migration writes to no table with a key that was there before"
            return _nothing("writers", began, why)
        migration = scene.runner.revision.migration
        reads = names_in("\n".join(text for step in migration.steps for text in _texts(step)))
        in_place = {table.name: _in_place(migration, table) for table in tables}
        at_work = [
            Writer(
                copy,
                table,
                reads=reads,
                left_alone=_changed_columns(scene, copy, table) - {*in_place[table.name]},
                in_place=in_place[table.name],
                chance=random.Random(f"{scene.runner.revision.id} {table.name}"),
            )
            for table in tables[:MOST_WRITERS]
        ]
        first, last = _upgrade_beside(scene, copy, at_work)
        wrong = [] if last.passed else [f"the upgrade failed: {last.message}"]
        for writer in at_work:
            wrong += writer.lost(copy, may_vanish=_deletes(migration, writer.table))
        behind = {column for writer in at_work for column in +writer.behind}
        if last.passed:
            scene.complete(copy)
            wrong += _not_right(copy, migration, behind)
        return FaultResult(
            name="writers",
            done=_what_they_did(at_work),
            happened=_what_happened(first, last, at_work, wrong),
            equal=not wrong,
            passed=not wrong,
            seconds=time.monotonic() - began,
        )


def _upgrade_beside(
    scene: Scene, copy: Database, at_work: Sequence[Writer]
) -> tuple[AlembicRun, AlembicRun]:
    """The run beside the writers, and the last one: without them, where the first one failed."""
    for writer in at_work:
        writer.start()
    try:
        first = scene.run(copy)
        if any(isinstance(step, KeepInStep) for step in scene.runner.revision.migration.steps):
            time.sleep(AFTERWARDS_SECONDS)
    finally:
        for writer in at_work:
            writer.end()
    return first, first if first.passed else scene.run(copy)


def _changed_columns(scene: Scene, copy: Database, table: Table) -> set[str]:
    """Columns that the migration writes, by what it says and by what an undisturbed run did."""
    steps = scene.runner.revision.migration.steps
    changed = {c for s in steps if isinstance(s, Backfill) and _is(s, table) for c in s.assign}
    changed |= {c for s in steps if isinstance(s, Transform) and _is(s, table) for c in s.columns}
    before = hash_columns(copy, table.name, scene.tables[table.name])
    after = scene.expected.tables.get(table.name, {})
    if before["number of rows"] == after.get("number of rows"):
        changed |= {column for column in before if after.get(column) != before[column]}
    return changed


def _in_place(migration: Migration, table: Table) -> dict[str, str]:
    """Columns that one backfill alone changes from what they hold -> what it makes of a row."""
    found: dict[str, str] = {}
    for step in migration.backfills:
        read = names_in("\n".join(step.texts)) if _is(step, table) else set[str]()
        for column in step.assign:
            steps = [s for s in migration.steps if _may_change(s, table, column)]
            if table.has(column) and column in read and steps == [step]:
                found[column] = _made(step, column, table.column(column).type)
    return found


def _may_change(step: Step, table: Table, column: str) -> bool:
    found = may_change(Migration("one step", step))
    if found is None:
        return True
    of_table = (columns for name, columns in found.items() if _same(name, table))
    return any(columns is None or column in columns for columns in of_table)


def _made(step: Backfill, column: str, type: str) -> str:
    """What a backfill makes of a column, as SQL over the row: an array, for it may be NULL."""
    conditions = [f"({text})" for text in (step.on, step.where) if text is not None]
    source = f" FROM {step.using}" if step.using else ""
    return (
        f"coalesce((SELECT ARRAY[CAST(({step.assign[column]}) AS {type})::text]{source}"
        f" WHERE {' AND '.join(conditions) or 'TRUE'} LIMIT 1), ARRAY[{quote(column)}::text])"
    )


def _is(step: Backfill | Transform | DeleteRows, table: Table) -> bool:
    return _same(step.table, table)


def _same(name: TableName, table: Table) -> bool:
    return name.name == table.name.name and name.schema in (None, table.name.schema)


def _deletes(migration: Migration, table: Table) -> bool:
    return any(isinstance(step, DeleteRows) and _is(step, table) for step in migration.steps)


def _texts(step: Step) -> tuple[str, ...]:
    """The SQL by which a step reads."""
    match step:
        case Backfill() | InsertRows() | DeleteRows():
            return step.texts
        case Transform():
            return step.reads
        case KeepInStep():
            return tuple(step.assign.values())
        case Sql():
            return (step.statement,)
        case _:
            return ()


def _not_right(copy: Database, migration: Migration, behind: Collection[str]) -> Iterator[str]:
    """What the rows do not hold that they should, in words.

    Parameters
    ----------
    behind
        Columns that the application wrote when the migration had been there: of what it reads
        there, no check is asked.
    """
    asked = [c.name for c in migration.checks if not names_in(c.failing) & {*behind}]
    if any(not check.before for check in migration.checks):
        for result in validate(copy, migration).results:
            if not result.passed and result.name in asked:
                yield f"{result.name}: {counted(result.failing_rows, 'row')} fail"
    for number, step in enumerate(migration.steps):
        later = migration.steps[number + 1 :]
        if isinstance(step, Backfill) and _stays(step, later) and (rows := _stale(copy, step)):
            yield f"{counted(rows, 'row')} of {step.table} do not hold what their columns say now"


def _stays(step: Backfill, later: Sequence[Step]) -> bool:
    """Whether what it gave can be held against its expressions when all is done."""
    read = names_in("\n".join(step.texts))
    written = {c for s in later if isinstance(s, Backfill) for c in s.assign}
    written |= {c for s in later if isinstance(s, Transform) for c in s.columns}
    return step.using is None and not read & {*step.assign} and not written & {*step.assign, *read}


def _stale(copy: Database, step: Backfill) -> int:
    """Rows that do not hold what a backfill's expressions give; 0 where that cannot be asked."""
    table = copy.table(step.table)
    if not all(table.has(column) for column in step.assign):
        return 0
    held = ", ".join(map(quote, step.assign))
    given = ", ".join(
        f"CAST({text} AS {table.column(column).type})" for column, text in step.assign.items()
    )
    query = (
        f"SELECT count(*) FROM {step.table.sql} WHERE ({step.where or 'TRUE'})"
        f" AND ROW({held})::text IS DISTINCT FROM ROW({given})::text"
    )
    with (
        suppress(QueryError),  # the upgrade dropped what the expressions read
        copy.read_only("holding rows against their expressions") as connection,
    ):
        return int(run(connection, query).scalar_one())
    return 0


def _what_they_did(at_work: Sequence[Writer]) -> str:
    said = [
        f"{counted(writer.commits, 'transaction')} on {writer.table.name} ({writer.wrote})"
        for writer in at_work
    ]
    return f"an application wrote meanwhile: {', '.join(said)}"


def _what_happened(
    first: AlembicRun, last: AlembicRun, at_work: Sequence[Writer], wrong: Sequence[str]
) -> str:
    longest = max(writer.longest_seconds for writer in at_work)
    said = [f"the longest statement of the application took {longest:.2f} s"]
    if not first.passed and last.passed:
        said.append(f"the upgrade stopped ({first.message}) and arrived when it was run again")
    for writer in at_work:
        said += [
            f"{counted(n, 'write')} refused: {why}" for why, n in writer.refused.most_common(2)
        ]
        said += [writer.no_inserts] if writer.no_inserts else []
        said += [
            f"{column} of {counted(n, 'row')} of {writer.table.name} stays as the application wrote"
            " it behind the walk: no trigger changes it there"
            for column, n in sorted((+writer.behind).items())
        ]
    said.append(
        f"{counted(len(wrong), 'fault')}, the first: {'; '.join(wrong[:3])}"
        if wrong
        else "no write was lost, and every row is right"
    )
    return "; ".join(said)

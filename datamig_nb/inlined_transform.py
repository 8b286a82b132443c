"""Functions copied into revisions that compute in Python, after those of ``inlined``.

Rows are read, computed, and written where they are still the very versions that were read (``ctid``
and ``xmin``).  The transactions that write are noted: so no row is done twice, wherever a run was
stopped, and what others wrote meanwhile is found.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import DBAPIError

from datamig_nb.inlined import log, passed, prepare_nothing, sqlstate, transaction
from datamig_nb.inlined_batches import progress
from datamig_nb.inlined_rows import (
    IDENTITY,
    MARKS,
    TRANSFORM_PASSES,
    Batch,
    Job,
    Texts,
    Window,
    begin_parts,
    computed,
    in_range,
    key_text,
    read_window,
    settings,
    size_of,
    this_step,
    written_by_others,
    written_since,
)
from datamig_nb.inlined_sql import ATTEMPTS, execute, quoted, revision
from datamig_nb.inlined_walk import this_run

TRANSFORM_SECONDS = 0.5  # what a batch that Python computes should take: writers may have to wait
MOST_TRANSFORM_ROWS = 16_000
TRANSFORM_BYTES = 16_000_000  # of the rows that are read at once, about: memory stays flat


# ---------------------------------------------------------------- rows that Python computes


def online_only() -> None:
    """Refuse --sql before its first statement."""
    if op.get_context().as_sql:
        raise RuntimeError(f"{revision} computes in Python, which no script can; run without --sql")


def transform(name: str, table: str, function: Callable[..., Any], **more: Any) -> None:
    """Give columns of each row what the function makes of others; then look at what others wrote.

    Each part of the table is walked by its key, several at once where there are workers.
    """
    if passed():
        return
    job = Job(name, table, function, **more)
    job = job._replace(**size_of(table), settings=settings())
    if job.kinds is None:
        texts = [f"({expression})::text" for expression in job.reads]
        job = job._replace(
            texts=texts, readers=[None] * len(texts), casts=["text"] * len(job.columns)
        )
    else:
        job = job.kinds(job)
    *parts, last = begin_parts(job)
    older = job._replace(where=f"({job.where}) AND NOT {written_since(job)}")
    try:
        if job.at_once is None or len(parts) == 1 or op.get_bind().dialect.is_async:
            in_turn(older, parts)
        else:
            job.at_once(older, parts)
        catch_up(job, last)
    except Exception as error:
        if not op.get_bind().invalidated:  # else the connection is gone
            failed = f"status = 'failed', error = {quoted(error)}"
            execute(
                f"UPDATE datamig.run SET {failed} WHERE {this_step(name)} AND status = 'running'"
            )
        raise


def in_turn(job: Job, parts: Sequence[int], ended: Event | None = None) -> None:
    """Walk the parts one after the other; what a helper did of them is done."""
    for part in parts:
        walk_part(op.get_bind(), job, part, ended or Event())


def in_threads(job: Job, parts: Sequence[int]) -> None:
    """Walk the parts with threads that help: while one waits for the server, another computes."""
    ended = Event()

    def help_out(part: int) -> None:
        with own_connection() as bind:
            walk_part(bind, job, part, ended)

    with ThreadPoolExecutor(len(parts)) as pool:
        try:
            for part in parts[1:]:
                pool.submit(help_out, part)  # what stops it will stop this one too
            in_turn(job, parts, ended)
        finally:
            ended.set()  # after Ctrl-C too: each ends with the batch under way


def in_processes(job: Job, parts: Sequence[int]) -> None:
    """Walk the parts with forked processes that help, for a function that keeps processors busy."""
    context = multiprocessing.get_context("fork")

    def help_out(part: int) -> None:
        threading.Thread(target=end_with_parent, daemon=True).start()
        op.get_bind().engine.dispose(close=False)  # its connections are the parent's
        try:
            with own_connection() as bind:
                walk_part(bind, job, part, Event())
        finally:
            os._exit(0)  # what stopped it will stop the parent too

    helpers = [context.Process(target=help_out, args=[part], daemon=True) for part in parts[1:]]
    try:
        for helper in helpers:
            helper.start()
        in_turn(job, parts)
    finally:
        for helper in helpers:
            helper.terminate()  # the server takes its batch back
            helper.join()


def end_with_parent() -> None:
    """End this process when its parent is gone, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def own_connection() -> sa.Connection:
    """A connection beside Alembic's, where BEGIN and COMMIT are sent by hand as there."""
    bind = op.get_bind().engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    prepare_nothing(bind)
    return bind


def catch_up(job: Job, part: int) -> None:
    """Compute again what others wrote since the start, until there is nothing to change."""
    others = job._replace(where=f"({job.where}) AND {written_by_others(job)}")
    changed = f"SELECT changed FROM datamig.run WHERE {this_run(job.step, part)}"
    for number in range(1, ATTEMPTS + 1):
        before = execute(changed).scalar_one()
        with transaction():
            execute(job.settings)
            left = execute(f"SELECT 1 FROM {job.table} WHERE {others.where} LIMIT 1").first()
        if left is not None:
            log.info("%s: rows that others wrote meanwhile, round %d", job.step, number)
            set_part(job, part, "cursor = NULL")
            walk_part(op.get_bind(), others, part, Event())
        if execute(changed).scalar_one() == before:
            break
        set_part(job, part, "status = 'running'")
    else:
        log.warning("%s: others write on as before; from now on it is theirs to do", job.step)
    set_part(job, part, "status = 'succeeded'")


# ---------------------------------------------------------------- one part, one window, one batch


class RowsFailedError(Exception):
    """Among so many rows there is one that PostgreSQL did not take."""


class MovedError(Exception):
    """The part, or the table itself, is not as it was when the rows were read."""


def walk_part(bind: Any, job: Job, part: int, ended: Event) -> None:
    """Walk a part from its cursor on; rows that fail together are tried in halves, down to one."""
    widest = max(10, TRANSFORM_BYTES * job.rows // max(1, job.bytes))
    most, failed, attempt, shown = widest, None, 0, time.monotonic()
    while not ended.is_set():
        try:
            status = one_window(bind, job, part, most, failed)
        except MovedError:
            continue
        except RowsFailedError as error:
            rows: int = error.args[0]
            most, failed = max(1, rows // 2), (error.__cause__ if rows == 1 else None)
            continue
        except DBAPIError as error:
            attempt += 1
            if sqlstate(error) not in ("55P03", "40P01", "40001") or attempt == ATTEMPTS:
                raise
            log.warning("%s: %s, attempt %d", job.step, in_words(error), attempt)
            ended.wait(random.uniform(0.5, 1.0) * min(10.0, 0.1 * 2**attempt))
            continue
        if status == "paused":
            ended.wait(0.5)
        elif status != "running":
            return
        most, failed, attempt = min(widest, most * 2), None, 0
        if bind is op.get_bind() and time.monotonic() - shown > 2:
            shown = time.monotonic()
            pace = "scanned / greatest(extract(epoch FROM heartbeat_at - started_at), 0.1) AS pace"
            seen = f"status, note, total, scanned, changed, batches, {pace}"
            for run in execute(f"SELECT {seen} FROM datamig.run WHERE {this_step(job.step)}"):
                log.info("%s: %s", job.step, progress(run, float(run.pace)))


def one_window(bind: Any, job: Job, part: int, most: int, failed: BaseException | None) -> str:
    """Read rows once, then compute and write a share of them at a time, in TRANSFORM_PASSES shares.

    So a batch finds room where the one before it left dead rows.  While Python computes, there is
    no transaction, which would hold row locks and keep dead rows.
    """
    with transaction(bind):
        execute(job.settings, bind)
        before = f"SELECT stop FROM datamig.run WHERE {this_run(job.step, part - 1)}"
        run = execute(
            "SELECT status, batch_rows, coalesce(cursor, '') AS cursor, stop,"
            f" coalesce(cursor, ({before})) AS after, ({job.files}) AS files"
            f" FROM datamig.run WHERE {this_run(job.step, part)}",
            bind,
        ).one()
        if run.status == "cancelled":
            raise RuntimeError(
                f"{revision} was cancelled at {job.step!r}; run Alembic again, it goes on here"
            )
        if run.status != "running":
            return str(run.status)
        rows = min(run.batch_rows, MOST_TRANSFORM_ROWS)
        window = read_window(bind, job, run.after, run.stop, min(TRANSFORM_PASSES * rows, most))
    unmoved = (
        f"status = 'running' AND coalesce(cursor, '') = {quoted(run.cursor)}"
        f" AND ({job.files}) = {quoted(run.files)}"
    )
    for batch in window.batches:
        started = time.monotonic()
        try:
            columns, failures = (
                ([], {0: failed}) if failed is not None else computed(job, batch.texts)
            )
            with transaction(bind):
                execute(job.settings, bind)
                fail(bind, job, batch, failures)
                changed = write_batch(bind, job, window, batch, columns, failures) if columns else 0
                rows = next_transform_rows(rows, time.monotonic() - started)
                done = f"changed = changed + {changed}, batches = batches + 1, batch_rows = {rows}"
                set_part(job, part, done, bind, unmoved)
        except (DBAPIError, ValueError) as error:
            if isinstance(error, DBAPIError) and (sqlstate(error) or "22")[:2] not in ROW_STATES:
                raise
            raise RowsFailedError(window.rows) from error
    status = "running" if window.last else "succeeded"
    cursor = f"cursor = {quoted(window.last)}, " if window.last else ""
    moved = f"{cursor}scanned = scanned + {window.rows}, status = '{status}'"
    set_part(job, part, moved, bind, unmoved)
    return status


def set_part(job: Job, part: int, changes: str, bind: Any = None, only_if: str = "TRUE") -> None:
    """Change the row of a part in datamig.run."""
    changed = execute(
        f"UPDATE datamig.run SET {changes}, heartbeat_at = clock_timestamp(),"
        f" pid = pg_backend_pid() WHERE {this_run(job.step, part)} AND {only_if}",
        bind,
    )
    if not changed.rowcount:
        raise MovedError


def next_transform_rows(rows: int, seconds: float) -> int:
    """Rows of the next batch, toward TRANSFORM_SECONDS: at most twice as many, down at once."""
    return max(10, int(rows * min(2.0, TRANSFORM_SECONDS / max(seconds, 0.001))))


def write_batch(
    bind: Any,
    job: Job,
    window: Window,
    batch: Batch,
    columns: Texts,
    failures: Mapping[int, BaseException],
) -> int:
    """Write what was computed where a row is still what was read; gives the rows that changed."""
    end, null = MARKS.values()
    values = dict(batch.versions)
    arrays = [f"CAST(CAST(\x01{name} AS text) AS {IDENTITY[name]}[])" for name in values]
    for number, column in enumerate(columns):
        # One more end, for an array from the text '' would be empty.
        values[f"w{number}"] = end.join([*(null if v is None else v for v in column), ""])
        arrays.append(f"string_to_array(CAST(\x01w{number} AS text), '{end}', '{null}')")
    listed = ", ".join(f"{name}_read" for name in values)
    same = " AND ".join(f"target.{name} = new.{name}_read" for name in batch.versions)
    new = {c: f"new.w{n}_read::{job.casts[n]}" for n, c in enumerate(job.columns)}
    # Their texts tell more apart than "=" does: citext, box, 1.0 and 1.00; and json has no "=".
    differs = " OR ".join(
        f'target.{column}::text COLLATE "C" IS DISTINCT FROM ({value})::text'
        for column, value in new.items()
    )
    without = "".join(f" AND new.number_read <> {number + 1}" for number in failures)
    statement = (
        f"UPDATE {job.table} AS target"
        f" SET {', '.join(f'{column} = {value}' for column, value in new.items())}"
        f" FROM unnest({', '.join(arrays)}) WITH ORDINALITY AS new({listed}, number_read)"
        f" WHERE {in_range(job, window.after, window.last, 'target.')} AND {same}{without}"
        f" AND ({differs})"
    )
    statement = job.update.replace("{update}", statement, 1)
    # A colon of the statement is one; only the marks are parameters.
    text = sa.text(statement.replace(":", r"\:").replace("\x01", ":"))
    changed = (bind or op.get_bind()).execute(text, values).rowcount
    if changed:
        own = f"'{revision}', {quoted(job.step)}, pg_current_xact_id()::text::bigint"
        execute(f"INSERT INTO datamig.own_transaction VALUES ({own})", bind)
    return changed


# Classes of SQLSTATE that are about a row: data, constraint, a view's check, too large, RAISE.
ROW_STATES = """
22 23 44 54 P0
"""


def fail(bind: Any, job: Job, batch: Batch, failures: Mapping[int, BaseException]) -> None:
    """Stop at the first row that failed, naming it; or set them aside."""
    for number, error in failures.items():
        same = " AND ".join(
            f"{name} = ({quoted(array)}::{IDENTITY[name]}[])[{number + 1}]"
            for name, array in batch.versions.items()
        )
        key = execute(f"SELECT {key_text(job)} FROM {job.table} WHERE {same}", bind).scalar()
        if key is None:  # somebody else changed the row meanwhile
            continue
        if job.set_aside is not None:
            job.set_aside(bind, job, key, error)
            continue
        raise RuntimeError(
            f"{revision} stopped at {job.table}, ({', '.join(job.key)}) = ({key}):"
            f" {in_words(error)}; repair the row or the function and run Alembic again, it goes on"
            " here"
        ) from error


def set_aside(bind: Any, job: Job, key: str, error: BaseException) -> None:
    """Put a row into datamig.quarantine; or give up."""
    reason = in_words(error)
    log.warning("%s: set aside %s, (%s): %s", job.step, job.table, key, reason)
    state = sqlstate(error) if isinstance(error, DBAPIError) else ""
    values = (revision, job.step, job.table, key, state, reason.replace("\0", "?"))
    # One after the other, so that each counts what all set aside.
    execute(f"SELECT pg_advisory_xact_lock(hashtext('{revision} aside'))", bind)
    execute(
        f"INSERT INTO datamig.quarantine VALUES ({', '.join(map(quoted, values))})"
        " ON CONFLICT DO NOTHING",
        bind,
    )
    query = f"SELECT count(*) FROM datamig.quarantine WHERE {this_step(job.step)}"
    aside = execute(query, bind).scalar_one()
    if aside > job.quarantine_rows:
        raise RuntimeError(
            f"{revision} gave up: {aside} rows of {job.table} would be set aside, more than"
            f" {job.quarantine_rows}, the last because {reason}"
        )


def in_words(error: BaseException) -> str:
    """What an error says, on one line."""
    said = str(getattr(error, "orig", None) or error).strip()
    return said.splitlines()[0] if said else type(error).__name__

"""Functions copied into revisions that compute in Python, after those of ``inlined``.

A batch is read, computed and written in one transaction with its row in datamig.run.  A row is
written only where it is still the very version that was read (``ctid`` and ``xmin``).  What others
wrote meanwhile is found by its ``xmin``, for the transactions of the batches are noted.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any, NamedTuple

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import DBAPIError

from datamig_nb.inlined import (
    ATTEMPTS,
    execute,
    log,
    passed,
    prepare_nothing,
    progress,
    quoted,
    revision,
    sqlstate,
    this_run,
    transaction,
)
from datamig_nb.inlined_rows import (
    Job,
    Texts,
    begin_parts,
    computed,
    settings,
    size_of,
    this_step,
    written_by_others,
)

TRANSFORM_SECONDS = 0.5  # what a batch that Python computes should take: writers may have to wait
MOST_TRANSFORM_ROWS = 50_000
TRANSFORM_BYTES = 8_000_000  # of a batch, about, so that memory stays flat


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
    try:
        if job.at_once is None or len(parts) == 1 or op.get_bind().dialect.is_async:
            in_turn(job, parts)
        else:
            job.at_once(job, parts)
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


# ---------------------------------------------------------------- one part, one batch


class RowsFailedError(Exception):
    """Among so many rows there is one that PostgreSQL did not take."""


def walk_part(bind: Any, job: Job, part: int, ended: Event) -> None:
    """Walk a part from its cursor on; rows that fail together are tried in halves, down to one."""
    widest = max(10, min(MOST_TRANSFORM_ROWS, TRANSFORM_BYTES * job.rows // max(1, job.bytes)))
    most, failed, attempt, shown = widest, None, 0, time.monotonic()
    while not ended.is_set():
        try:
            status = one_batch(bind, job, part, most, failed)
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


def one_batch(bind: Any, job: Job, part: int, most: int, failed: BaseException | None) -> str:
    """Read, compute and write one batch, and move its row of datamig.run; gives the status."""
    with transaction(bind):
        execute(job.settings, bind)
        before = f"SELECT stop FROM datamig.run WHERE {this_run(job.step, part - 1)}"
        run = execute(
            "UPDATE datamig.run SET heartbeat_at = clock_timestamp(), pid = pg_backend_pid()"
            f" WHERE {this_run(job.step, part)}"
            f" RETURNING status, batch_rows, coalesce(cursor, ({before})) AS cursor, stop",
            bind,
        ).one()
        if run.status == "cancelled":
            raise RuntimeError(
                f"{revision} was cancelled at {job.step!r}; run Alembic again, it goes on here"
            )
        if run.status != "running":
            return str(run.status)
        started, rows = time.monotonic(), min(run.batch_rows, most)
        batch = read_batch(bind, job, run.cursor, run.stop, rows)
        if not batch.scanned:
            set_part(job, part, "status = 'succeeded'", bind)
            return "succeeded"
        changed = 0
        try:
            if failed is not None and batch.keys:
                fail(bind, job, batch, {0: failed})
            elif batch.keys:
                columns, failures = computed(job, batch.texts)
                fail(bind, job, batch, failures)
                changed = write_batch(bind, job, batch, columns, failures)
        except (DBAPIError, ValueError) as error:
            if isinstance(error, DBAPIError) and (sqlstate(error) or "22")[:2] not in ROW_STATES:
                raise
            raise RowsFailedError(batch.scanned) from error
        if changed:
            own = f"'{revision}', {quoted(job.step)}, pg_current_xact_id()::text::bigint"
            execute(f"INSERT INTO datamig.own_transaction VALUES ({own})", bind)
        rows = next_transform_rows(rows, time.monotonic() - started)
        set_part(
            job,
            part,
            f"cursor = {quoted(batch.last)}, scanned = scanned + {batch.scanned},"
            f" changed = changed + {changed}, batches = batches + 1, batch_rows = {rows}",
            bind,
        )
    return "running"


def set_part(job: Job, part: int, changes: str, bind: Any = None) -> None:
    """Change the row of a part in datamig.run."""
    execute(f"UPDATE datamig.run SET {changes} WHERE {this_run(job.step, part)}", bind)


def next_transform_rows(rows: int, seconds: float) -> int:
    """Rows of the next batch, toward TRANSFORM_SECONDS: at most twice as many, down at once."""
    return max(10, int(rows * min(2.0, TRANSFORM_SECONDS / max(seconds, 0.001))))


class Batch(NamedTuple):
    """Rows of one batch, as they were read."""

    scanned: int
    after: str | None  # keys as SQL: the rows lie behind this one
    last: str  # and not behind this one
    keys: list[str]  # of the rows that are meant
    versions: Mapping[str, str]  # system columns that tell a row's version, as arrays
    texts: Texts  # one list for each argument


def read_batch(bind: Any, job: Job, after: str | None, stop: str | None, rows: int) -> Batch:
    """Read the rows behind a key, of those that are meant what the function needs."""
    key = f"concat_ws(', ', {', '.join(f'quote_literal({part})' for part in job.key)})"
    texts = [f"datamig_{number}" for number in range(len(job.reads))]
    values = "".join(
        f", CASE WHEN {job.where} THEN {text} END AS {name}"
        for name, text in zip(texts, job.texts, strict=True)
    )
    meant = "FILTER (WHERE datamig_meant)"
    gathered = [f"array_agg({name}) {meant}::text" for name in IDENTITY]
    gathered += [f"to_json(array_agg({name}) {meant})::text" for name in ("datamig_key", *texts)]
    row = execute(
        f"SELECT count(*), (array_agg(datamig_key))[count(*)], {', '.join(gathered)}"
        f" FROM (SELECT {', '.join(IDENTITY)}, {key} AS datamig_key,"
        f" ({job.where}) AS datamig_meant{values}"
        f" FROM {job.table} WHERE {in_range(job, after, stop)}"
        f" ORDER BY {', '.join(job.key)} LIMIT {rows}) AS batch",
        bind,
    ).one()
    keys, *columns = (json.loads(text or "[]") for text in row[2 + len(IDENTITY) :])
    versions = dict(zip(IDENTITY, row[2:], strict=False))
    return Batch(row[0], after, row[1], keys, versions, columns)


def in_range(job: Job, after: str | None, last: str | None, alias: str = "") -> str:
    """Condition: the key lies behind the one and not behind the other."""
    keys = ", ".join(f"{alias}{part}" for part in job.key)
    conditions = [f"({keys}) > ({after})"] if after else []
    conditions += [f"({keys}) <= ({last})"] if last else []
    return " AND ".join(conditions) or "TRUE"


def write_batch(
    bind: Any,
    job: Job,
    batch: Batch,
    columns: Sequence[Sequence[str | None]],
    failures: Mapping[int, BaseException],
) -> int:
    """Write what was computed where a row is still what was read; gives the rows that changed."""
    values = dict(batch.versions)
    values |= {f"w{n}": array_of_texts(column) for n, column in enumerate(columns)}
    types = IDENTITY | dict.fromkeys(values.keys() - IDENTITY.keys(), "text")
    sources = ", ".join(f"CAST(CAST(\x01{name} AS text) AS {types[name]}[])" for name in values)
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
        f" FROM unnest({sources}) WITH ORDINALITY AS new({listed}, number_read)"
        f" WHERE {in_range(job, batch.after, batch.last, 'target.')} AND {same}{without}"
        f" AND ({differs})"
    )
    # A colon of the statement is one; only the marks are parameters.
    text = sa.text(statement.replace(":", r"\:").replace("\x01", ":"))
    return (bind or op.get_bind()).execute(text, values).rowcount


# System columns that tell a version of a row from any other, and their types.
IDENTITY = {
    "ctid": "tid",
    "xmin": "xid",
    "tableoid": "oid",
}

# Classes of SQLSTATE that are about a row: data, constraint, a view's check, too large, RAISE.
ROW_STATES = """
22 23 44 54 P0
"""


def array_of_texts(column: Sequence[str | None]) -> str:
    """The texts as PostgreSQL reads an array."""
    escaped = (v and v.replace("\\", "\\\\").replace('"', '\\"') for v in column)
    return "{" + ",".join("NULL" if v is None else f'"{v}"' for v in escaped) + "}"


def fail(bind: Any, job: Job, batch: Batch, failures: Mapping[int, BaseException]) -> None:
    """Stop at the first row that failed, naming it; or set them aside."""
    for number, error in failures.items():
        if job.set_aside is not None:
            job.set_aside(bind, job, batch.keys[number], error)
            continue
        raise RuntimeError(
            f"{revision} stopped at {job.table}, ({', '.join(job.key)}) = ({batch.keys[number]}):"
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

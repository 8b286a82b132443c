"""Functions copied into revisions that walk the rows of a table whose values Python computes.

A batch is read, computed and written in one transaction.  A row is written only where it is still
the very version that was read (``ctid`` and ``xmin``).  What others wrote meanwhile is found by its
``xmin``, for the transactions of the batches are noted.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import DataError, DBAPIError

from datamig_nb.inlined import log, quoted, revision, with_retries
from datamig_nb.inlined_run import (
    Walk,
    batch_transaction,
    log_progress,
    move_part,
    one_at_a_time,
    rows_of,
    send,
    set_part,
    take_part,
    this_step,
)
from datamig_nb.inlined_values import reader, text_expression, writer

TRANSFORM_SECONDS = 0.5  # what a batch should take: longer ones make writers wait


class RowsFailedError(Exception):
    """Among so many rows there is one that PostgreSQL did not take, or the function."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.rows = rows


# ---------------------------------------------------------------- one part, one batch


def walk_part(connection: sa.Connection, walk: Walk, part: int, stop: threading.Event) -> None:
    """Walk a part from its cursor on; rows that fail together are tried in halves, down to one."""
    most, shown = walk.most_rows, time.monotonic()
    failed: RowsFailedError | None = None
    while not stop.is_set():
        attempt = (most, failed)
        try:
            status = with_retries(lambda now=attempt: one_batch_of(connection, walk, part, *now))
        except RowsFailedError as error:
            most, failed = max(1, error.rows // 2), (error if error.rows == 1 else None)
            continue
        if status == "succeeded":
            return
        if status == "failed":
            raise RuntimeError(f"{revision} failed in another process; see datamig.run")
        if status == "paused":
            stop.wait(0.5)
        most, failed = min(walk.most_rows, most * 2), None
        if connection is op.get_bind() and time.monotonic() - shown > 2:
            shown = time.monotonic()
            log_progress(walk.step)


def one_batch_of(
    connection: sa.Connection, walk: Walk, part: int, most: int, failed: RowsFailedError | None
) -> str:
    """Read, compute and write one batch, and move its row in datamig.run; gives the status."""
    with batch_transaction(connection, walk):
        run = take_part(connection, walk.step, part)
        if run["status"] == "cancelled":
            raise RuntimeError(f"{revision} was cancelled; run Alembic again, it goes on here")
        if run["status"] != "running":
            return str(run["status"])
        started = time.monotonic()
        rows = min(run["batch_rows"], most)
        last, scanned = batch_end(connection, walk, run, rows)
        if last is None:
            set_part(connection, walk.step, part, "succeeded")
            return "succeeded"
        try:
            more = f"({walk.where})" if part else f"({walk.where}) AND {written_by_others(walk)}"
            changed = change_rows(connection, walk, {**run, "stop": last}, more, failed)
        except (DBAPIError, ValueError) as error:
            if not is_about_a_row(error):
                raise
            raise RowsFailedError(scanned) from error
        next_rows = next_transform_rows(rows, time.monotonic() - started)
        move_part(connection, walk.step, part, last, (scanned, changed), next_rows)
    return "running"


def next_transform_rows(rows: int, seconds: float) -> int:
    """Rows of the next batch, toward TRANSFORM_SECONDS: at most twice as many, down at once."""
    wanted = rows * min(2.0, TRANSFORM_SECONDS / max(seconds, 0.001))
    return max(10, int(wanted))


def batch_end(
    connection: sa.Connection, walk: Walk, run: Mapping[str, Any], rows: int
) -> tuple[str | None, int]:
    """Last key of the batch, as SQL literals, and its number of rows; (None, 0) at the end."""
    keys = ", ".join(walk.key)
    last = f"concat_ws(', ', {', '.join(f'quote_literal({part})' for part in walk.key)})"
    following = f"SELECT {keys} FROM {walk.table} WHERE {in_range(walk, run)} ORDER BY {keys}"
    full = f"SELECT {last} FROM ({following} OFFSET {rows - 1} LIMIT 1) AS batch"
    for found in rows_of(connection, full):
        return found[0], rows
    backwards = ", ".join(f"batch.{part} DESC" for part in walk.key)
    rest = rows_of(
        connection,
        f"SELECT {last}, count(*) OVER () FROM ({following} LIMIT {rows}) AS batch"
        f" ORDER BY {backwards} LIMIT 1",
    )
    return (rest[0][0], rest[0][1]) if rest else (None, 0)


def in_range(walk: Walk, run: Mapping[str, Any], alias: str = "") -> str:
    """Condition: the key lies behind the cursor and not behind the stop."""
    keys = ", ".join(f"{alias}{part}" for part in walk.key)
    after, stop = run["cursor"] or run["start"], run["stop"]
    conditions = [f"({keys}) > ({after})"] if after else []
    conditions += [f"({keys}) <= ({stop})"] if stop else []
    return " AND ".join(conditions) or "TRUE"


def change_rows(
    connection: sa.Connection,
    walk: Walk,
    batch: Mapping[str, Any],
    more: str,
    failed: RowsFailedError | None,
) -> int:
    """Read the rows of a range, compute, and write back those that are still what was read."""
    read = [f"{text_expression(*read)} AS r{number}" for number, read in enumerate(walk.reads)]
    arrays = [f"to_json(array_agg(r{number}))::text" for number in range(len(read))]
    identity = ["ctid", "xmin", *(["tableoid"] if walk.has_children else [])]
    gathered = [f"array_agg({name})::text" for name in identity]
    (row,) = rows_of(
        connection,
        f"SELECT count(*), {', '.join((*gathered, *arrays))}"
        f" FROM (SELECT {', '.join((*identity, *read))} FROM {walk.table}"
        f" WHERE {in_range(walk, batch)} AND {more}) AS batch",
    )
    count, versions = row[0], dict(zip(identity, row[1:], strict=False))
    if not count:
        return 0
    if failed is not None:
        set_aside(connection, walk, batch, versions, {0: failed.__cause__ or failed})
        return 0
    columns, failures = computed(walk, [json.loads(text) for text in row[1 + len(identity) :]])
    if failures:
        set_aside(connection, walk, batch, versions, failures)
    return write_rows(connection, walk, batch, versions, columns, failures)


def write_rows(
    connection: sa.Connection,
    walk: Walk,
    batch: Mapping[str, Any],
    versions: Mapping[str, str],
    columns: Sequence[Sequence[str | None]],
    failures: Iterable[int],
) -> int:
    """Write the computed columns, without the rows that failed; gives the rows that changed."""
    values = dict(versions)
    sources = [f"CAST(CAST(\x01{name} AS text) AS {IDENTITY[name]}[])" for name in versions]
    same = " AND ".join(f"target.{name} = new.{name}_read" for name in versions)
    for number, column in enumerate(columns):
        texts = dict(zip("wsn", as_one_text(column), strict=True))
        values |= {f"{mark}{number}": text for mark, text in texts.items()}
        marks = (f"CAST(\x01{mark}{number} AS text)" for mark in texts)
        sources.append(f"string_to_array({', '.join(marks)})")
    new = {column: f"new.w{n}::{kind.sql}" for n, (column, kind) in enumerate(walk.writes)}
    # Their texts tell more apart than "=" does: citext, box, 1.0 and 1.00; and json has no "=".
    differs = " OR ".join(
        f'target.{column}::text COLLATE "C" IS DISTINCT FROM ({value})::text'
        for column, value in new.items()
    )
    listed = [*(f"{name}_read" for name in versions), *(f"w{number}" for number in range(len(new)))]
    without = "".join(f" AND new.number <> {number + 1}" for number in failures)
    statement = (
        f"UPDATE {walk.table} AS target"
        f" SET {', '.join(f'{column} = {value}' for column, value in new.items())}"
        f" FROM unnest({', '.join(sources)}) WITH ORDINALITY AS new({', '.join(listed)}, number)"
        f" WHERE {in_range(walk, batch, 'target.')} AND {same}{without} AND ({differs})"
    )
    # A colon of the statement is one; only the marks are parameters.
    text = sa.text(statement.replace(":", r"\:").replace("\x01", ":"))
    return connection.execute(text, values).rowcount


# System columns that tell a version of a row from any other, and their types.
IDENTITY = {
    "ctid": "tid",
    "xmin": "xid",
    "tableoid": "oid",  # where rows lie in several tables
}


def as_one_text(column: Sequence[str | None]) -> tuple[str, str, str]:
    """The values in one text for string_to_array(), with a separator and a NULL that none has."""
    separator, null = "\x1f", "\x1e"
    present = [value for value in column if value is not None]
    together = "".join(present)
    while separator in together:
        separator += uuid.uuid4().hex  # begins with what does not come again in it
    while null in together:
        null += uuid.uuid4().hex
    given = present if len(present) == len(column) else [null if v is None else v for v in column]
    # The end keeps an only value that is empty from making an empty array.
    return separator.join([*given, null]), separator, null


def is_about_a_row(error: Exception) -> bool:
    """Whether other rows may pass: a value that does not fit, a constraint, a trigger's refusal."""
    if not isinstance(error, DBAPIError):
        return True  # what a driver or the function makes of a value
    state = sqlstate(error)
    return isinstance(error, DataError) if state is None else state[:2] in ROW_STATES


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's code of an error, whichever driver it came through."""
    orig = getattr(error, "orig", None)
    return getattr(orig, "sqlstate", None) or getattr(orig, "pgcode", None)


# Classes of SQLSTATE.
ROW_STATES = {
    "22",  # data
    "23",  # constraint
    "44",  # check option of a view
    "54",  # too large
    "P0",  # a trigger's RAISE
}


def set_aside(
    connection: sa.Connection,
    walk: Walk,
    batch: Mapping[str, Any],
    versions: Mapping[str, str],
    failures: Mapping[int, BaseException],
) -> None:
    """Put the rows that failed into datamig.quarantine; or stop, naming the first of them."""
    # One after the other, so that each counts what all set aside.
    one_at_a_time(connection)
    keys = ", ".join(f"quote_literal(target.{part})" for part in walk.key)
    arrays = ", ".join(f"{quoted(text)}::{IDENTITY[name]}[]" for name, text in versions.items())
    same = " AND ".join(f"target.{name} = failed.{name}_read" for name in versions)
    found = rows_of(
        connection,
        f"SELECT failed.number, concat_ws(', ', {keys}) FROM {walk.table} AS target"
        f" JOIN unnest({arrays}) WITH ORDINALITY"
        f" AS failed({', '.join(f'{name}_read' for name in versions)}, number) ON {same}"
        f" WHERE failed.number IN ({', '.join(str(number + 1) for number in failures)})"
        f" AND {in_range(walk, batch, 'target.')} ORDER BY failed.number",
    )
    for number, key in found:
        error, row = failures[number - 1], f"({', '.join(walk.key)}) = ({key})"
        reason = in_words(error)
        if walk.quarantine_limit is None:
            raise RuntimeError(
                f"{revision} stopped at {walk.table}, {row}: {reason}; repair the row or the"
                " function and run Alembic again, it goes on here"
            ) from error
        values = (walk.step, walk.table, key, sqlstate(error) or "", reason.replace("\0", "?"))
        send(
            connection,
            "INSERT INTO datamig.quarantine"
            " (noted_at, revision, step, relation, key, sqlstate, message)"
            f" VALUES (clock_timestamp(), '{revision}', {', '.join(map(quoted, values))})",
        )
        log.warning("%s: set aside %s, %s: %s", walk.step, walk.table, row, reason)
        require_few_set_aside(connection, walk, reason)


def require_few_set_aside(connection: sa.Connection, walk: Walk, reason: str) -> None:
    """Give up where more rows were set aside than the limit allows."""
    ((aside,),) = rows_of(
        connection,
        "SELECT count(DISTINCT key) FROM datamig.quarantine"
        f" WHERE revision = '{revision}' AND step = {quoted(walk.step)}",
    )
    if aside > (walk.quarantine_limit or 0):
        raise RuntimeError(
            f"{revision} gave up: {aside} rows of {walk.table} would be set aside, more than"
            f" {walk.quarantine_limit}, the last because {reason}"
        )


def in_words(error: BaseException) -> str:
    """What an error says, on one line."""
    said = str(getattr(error, "orig", None) or error).strip()
    return " ".join(said.splitlines()[:1]) or type(error).__name__


def written_by_others(walk: Walk) -> str:
    """Condition: this version of the row came since the start, and not from a batch of ours."""
    ours = f"datamig.own_transaction WHERE {this_step(walk.step)}"
    return (
        f"age(xmin) <= age((SELECT (min(xid) % 4294967296)::text::xid FROM {ours}))"
        f" AND xmin NOT IN (SELECT (xid % 4294967296)::text::xid FROM {ours})"
    )


# ---------------------------------------------------------------- what the function makes of rows


def computed(
    walk: Walk, texts: Sequence[Sequence[str | None]]
) -> tuple[list[Sequence[str | None]], dict[int, BaseException]]:
    """Columns of texts to write, and by number the rows for which the function failed."""
    readers = [reader(kind) for _, kind in walk.reads]
    writers = [writer(kind) for _, kind in walk.writes]
    if walk.computes is not None:
        return walk.computes(walk, texts, readers, writers), {}
    rows: list[tuple[str | None, ...]] = []
    failures: dict[int, BaseException] = {}
    one = writers[0] if len(writers) - walk.has_checksum == 1 else None
    nothing = (None,) * len(writers)
    while len(rows) < len(texts[0]):
        left = [column[len(rows) :] if rows else column for column in texts]
        values_of = [map(r, c) if r else c for r, c in zip(readers, left, strict=True)]
        try:
            for values in zip(*values_of, strict=True):
                result = walk.function(*values)
                if one is None:
                    rows.append(texts_of(result, writers))
                else:
                    text = one(result)
                    rows.append((text, sha256(text)) if walk.has_checksum else (text,))
        except Exception as error:
            row = [column[len(rows)] for column in texts]
            failures[len(rows)] = ValueError(told(walk, readers, row, error))
            rows.append(nothing)
    return list(zip(*rows, strict=True)), failures


def texts_of(result: Any, writers: Sequence[Callable[[Any], str | None]]) -> tuple[str | None, ...]:
    """The texts of several values, which the function gives as a tuple."""
    values = cast("tuple[Any, ...]", result)
    if not isinstance(result, tuple) or len(values) != len(writers):
        kind = type(values).__name__
        raise TypeError(f"it gives {kind}, not a tuple of {len(writers)} values")
    return tuple(write(value) for write, value in zip(writers, values, strict=True))


def sha256(text: str | None) -> str | None:
    """The checksum of a text in hexadecimal, as encode(sha256(convert_to(…)), 'hex') gives it."""
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def by_series(
    walk: Walk,
    texts: Sequence[Sequence[str | None]],
    readers: Sequence[Callable[[str | None], Any] | None],
    writers: Sequence[Callable[[Any], str | None]],
) -> list[Sequence[str | None]]:
    """Columns of texts to write, from a function of pandas.Series."""
    pandas: Any = importlib.import_module("pandas")  # named by requires=
    try:
        series = [
            pandas.Series(list(map(read, column)) if read else column, dtype=object)
            for read, column in zip(readers, texts, strict=True)
        ]
        result = walk.function(*series)
        several = [result[name] for name in result.columns] if result.ndim == 2 else [result]
        columns: list[Sequence[str | None]] = [
            [write(v) for v in column.astype(object).where(column.notna(), None).tolist()]
            for write, column in zip(writers, several, strict=not walk.has_checksum)
        ]
        if {len(column) for column in columns} != {len(texts[0])}:
            raise ValueError(f"it gives {len(columns[0])} values for {len(texts[0])} rows")
    except Exception as error:
        raise ValueError(told(walk, readers, [column[0] for column in texts], error)) from error
    return columns + ([list(map(sha256, columns[0]))] if walk.has_checksum else [])


def told(
    walk: Walk,
    readers: Sequence[Callable[[str | None], Any] | None],
    texts: Sequence[str | None],
    error: BaseException,
) -> str:
    """What the function failed on, the types of its arguments, and how."""
    types: list[str] = []
    for (expression, kind), read, text in zip(walk.reads, readers, texts, strict=True):
        try:
            value = read(text) if read else text
        except Exception as unread:
            return f"Python cannot read {expression}, of type {kind.sql}: {unread}"
        types.append(f"{expression}: {type(value).__name__}")
    call = f"{walk.function.__name__}({', '.join(types)})"
    return f"{call} failed with {type(error).__name__}: {error}"

"""Functions copied into revisions that compute in Python: what is to be done, and with which rows.

How batch follows batch is in ``inlined_transform``.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from datamig_nb.inlined import LOCK_TIMEOUT, begin, execute, quoted, revision, transaction
from datamig_nb.inlined_values import Kind, reader, writer

PARTED_PAGES = 64  # of the smallest table that several work on
SAMPLED_PAGES = 300  # to find where a table is parted


class Job(NamedTuple):
    """What a transform does, and what was found out about its table."""

    step: str
    table: str
    key: tuple[str, ...]
    reads: Sequence[tuple[str, Kind]]  # SQL over the row, one for each argument
    writes: Sequence[tuple[str, Kind]]  # columns; the checksum's last
    function: Callable[..., Any]
    has_checksum: bool
    computes: Callable[..., list[Sequence[str | None]]] | None
    where: str
    quarantine_rows: int | None  # None: the first row that fails stops it
    rows: int
    bytes: int
    has_children: bool
    settings: str  # SELECT that sets in a transaction what Alembic's session has, and what we read


# ---------------------------------------------------------------- what the function makes of rows


def computed(
    job: Job, texts: Sequence[Sequence[str | None]]
) -> tuple[list[Sequence[str | None]], dict[int, BaseException]]:
    """Columns of texts to write, and by number the rows for which the function failed."""
    readers = [reader(kind) for _, kind in job.reads]
    writers = [writer(kind) for _, kind in job.writes]
    if job.computes is not None:
        return job.computes(job, texts, readers, writers), {}
    rows: list[tuple[str | None, ...]] = []
    failures: dict[int, BaseException] = {}
    one = writers[0] if len(writers) - job.has_checksum == 1 else None
    while len(rows) < len(texts[0]):
        left = [column[len(rows) :] if rows else column for column in texts]
        values_of = [map(r, c) if r else c for r, c in zip(readers, left, strict=True)]
        try:
            for values in zip(*values_of, strict=True):
                result = job.function(*values)
                if one is None:
                    rows.append(texts_of(result, writers))
                else:
                    text = one(result)
                    rows.append((text, sha256(text)) if job.has_checksum else (text,))
        except Exception as error:
            row = [column[len(rows)] for column in texts]
            failures[len(rows)] = ValueError(told(job, readers, row, error))
            rows.append((None,) * len(writers))
    return list(zip(*rows, strict=True)), failures


def texts_of(result: Any, writers: Sequence[Callable[[Any], str | None]]) -> tuple[str | None, ...]:
    """The texts of several values, which the function gives as a tuple."""
    if not isinstance(result, tuple) or len(cast("tuple[Any, ...]", result)) != len(writers):
        raise TypeError(f"it gives {type(result).__name__}, not a tuple of {len(writers)} values")  # pyright: ignore[reportUnknownArgumentType]
    values = cast("tuple[Any, ...]", result)
    return tuple(write(value) for write, value in zip(writers, values, strict=True))


def sha256(text: str | None) -> str | None:
    """The checksum of a text in hexadecimal, as encode(sha256(convert_to(…)), 'hex') gives it."""
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def by_series(
    job: Job,
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
        result = job.function(*series)
        several = [result[name] for name in result.columns] if result.ndim == 2 else [result]
        columns: list[Sequence[str | None]] = [
            [write(v) for v in column.astype(object).where(column.notna(), None).tolist()]
            for write, column in zip(writers, several, strict=not job.has_checksum)
        ]
        if {len(column) for column in columns} != {len(texts[0])}:
            raise ValueError(f"it gives {len(columns[0])} values for {len(texts[0])} rows")
    except Exception as error:
        raise ValueError(told(job, readers, [column[0] for column in texts], error)) from error
    return columns + ([list(map(sha256, columns[0]))] if job.has_checksum else [])


def told(
    job: Job,
    readers: Sequence[Callable[[str | None], Any] | None],
    texts: Sequence[str | None],
    error: BaseException,
) -> str:
    """What the function failed on, the types of its arguments, and how."""
    types: list[str] = []
    for (expression, kind), read, text in zip(job.reads, readers, texts, strict=True):
        try:
            value = read(text) if read else text
        except Exception as unread:
            return f"Python cannot read {expression}, of type {kind.sql}: {unread}"
        types.append(f"{expression}: {type(value).__name__}")
    call = f"{job.function.__name__}({', '.join(types)})"
    return f"{call} failed with {type(error).__name__}: {error}"


# ---------------------------------------------------------------- what is known before


def this_step(name: str) -> str:
    """Condition: rows of a step in the tables of datamig."""
    return f"(revision, step) = ('{revision}', {quoted(name)})"


OWN_TRANSACTIONS = """
CREATE TABLE IF NOT EXISTS datamig.own_transaction (
    revision text, step text, xid bigint, PRIMARY KEY (revision, step, xid)
)
"""


def written_by_others(job: Job) -> str:
    """Condition: this version of the row came since the start, and not from a batch of ours."""
    ours = f"datamig.own_transaction WHERE {this_step(job.step)}"
    return (
        f"age(xmin) <= age((SELECT (min(xid) % 4294967296)::text::xid FROM {ours}))"
        f" AND xmin NOT IN (SELECT (xid % 4294967296)::text::xid FROM {ours})"
    )


def begin_parts(job: Job, workers: int) -> list[int]:
    """Note the parts, the last for what others write; what an earlier run noted of them stays."""
    with transaction():
        execute(job.settings)
        execute(f"SELECT pg_advisory_xact_lock(hashtext('{revision}'))")  # if run twice
        execute(OWN_TRANSACTIONS)
        noted = f"SELECT part FROM datamig.run WHERE {this_step(job.step)} AND part > 0"
        parts = sorted(execute(noted).scalars())
        stops = [] if parts else part_stops(job, workers)
        parts = parts or list(range(1, len(stops) + 3))
        for part in parts:
            given: dict[str, object] = {"stop": stops[part - 1]} if part <= len(stops) else {}
            if part < len(parts):
                given["total"] = job.rows // (len(parts) - 1)
            begin(job.step, part, job.table, job.key, note="computed in Python", **given)
        # Older than any transaction that may still write what the walk does not see.
        execute(
            f"INSERT INTO datamig.own_transaction SELECT '{revision}', {quoted(job.step)},"
            " pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1 WHERE NOT EXISTS"
            f" (SELECT FROM datamig.own_transaction WHERE {this_step(job.step)})"
        )
    return parts


def part_stops(job: Job, workers: int) -> list[str]:
    """Keys that part the table into about equal parts, from a sample of its pages."""
    pages = job.bytes / 8192
    if workers < 2 or pages < PARTED_PAGES:
        return []
    keys = ", ".join(job.key)
    found = execute(
        f"SELECT concat_ws(', ', {', '.join(f'quote_literal({part})' for part in job.key)})"
        f" FROM (SELECT *, row_number() OVER (ORDER BY {keys}) AS datamig_row,"
        f" count(*) OVER () AS datamig_rows FROM (SELECT {keys} FROM {job.table}"
        f" TABLESAMPLE SYSTEM ({min(100.0, 100 * SAMPLED_PAGES / pages):.6f})) AS sample)"
        f" AS sample WHERE datamig_row * {workers} % datamig_rows < {workers}"
        " AND datamig_row < datamig_rows ORDER BY datamig_row"
    )
    return list(found.scalars())


def kinds_of(table: str, expressions: Sequence[str]) -> list[Kind]:
    """The types of expressions over a row; no row is read."""
    given = ", ".join(f"({expression}) AS c{n}" for n, expression in enumerate(expressions))
    types = ", ".join(f"pg_typeof(row.c{n})::oid" for n in range(len(expressions)))
    found = execute(f"""
WITH RECURSIVE kind (number, given, id, is_array) AS (
    SELECT number, id, id, FALSE
      FROM (SELECT) AS one LEFT JOIN (SELECT {given} FROM {table} LIMIT 0) AS row ON TRUE,
           unnest(ARRAY[{types}]) WITH ORDINALITY AS asked (id, number)
     UNION ALL
    SELECT number, given, CASE typtype WHEN 'd' THEN typbasetype ELSE typelem END,
           is_array OR typtype <> 'd'
      FROM kind JOIN pg_type ON oid = id
     WHERE typtype = 'd' OR typcategory = 'A' AND typelem <> 0 AND NOT is_array
)
SELECT format_type(given, -1), typname, is_array FROM kind JOIN pg_type ON oid = id
 WHERE typtype <> 'd' AND (is_array OR typcategory <> 'A' OR typelem = 0) ORDER BY number""")
    return [Kind(*row) for row in found]


def size_of(table: str) -> dict[str, Any]:
    """Rows of the table and of those that belong to it, as last estimated; their bytes."""
    found = execute(f"""
WITH RECURSIVE family (id) AS (
    SELECT {quoted(table)}::regclass::oid
     UNION SELECT inhrelid FROM pg_inherits JOIN family ON inhparent = id
)
SELECT coalesce(sum(greatest(0, reltuples)) FILTER (WHERE relkind <> 'p'), 0)::bigint AS rows,
       coalesce(sum(pg_table_size(oid)), 0)::bigint AS bytes, count(*) > 1 AS has_children
  FROM family JOIN pg_class ON oid = id""")
    return dict(found.mappings().one())


def settings() -> str:
    """SELECT that gives a transaction the session's settings, and forms of text that we read."""
    found = execute("SELECT name, setting FROM pg_settings WHERE source = 'session'")
    values = {str(row.name): str(row.setting) for row in found} | {
        "DateStyle": "ISO",
        "IntervalStyle": "postgres",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "lock_timeout": LOCK_TIMEOUT,
        "role": execute("SELECT current_setting('role')").scalar_one(),
    }
    calls = (f"set_config({quoted(n)}, {quoted(value)}, true)" for n, value in values.items())
    return f"SELECT {', '.join(calls)}"

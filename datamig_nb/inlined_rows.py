"""Functions copied into revisions that compute in Python: what is to be done, and with which rows.

How batch follows batch is in ``inlined_transform``.
"""

from __future__ import annotations

import hashlib
import importlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

from datamig_nb.inlined import transaction
from datamig_nb.inlined_batches import begin
from datamig_nb.inlined_sql import LOCK_TIMEOUT, execute, quoted, revision
from datamig_nb.inlined_values import Kind, reader, text_expression, writer

PARTED_PAGES = 64  # of the smallest table that several work on
SAMPLED_PAGES = 300  # to find where a table is parted
TRANSFORM_PASSES = 4  # over the rows that are read at once


Texts: TypeAlias = "list[Sequence[str | None]]"  # one for each column


class Job(NamedTuple):
    """What a transform does, and what was found out about its table."""

    step: str
    table: str
    function: Callable[..., Any]
    key: tuple[str, ...]
    reads: tuple[str, ...]  # SQL over the row, one for each argument
    writes: tuple[str, ...]
    where: str = "TRUE"
    checksum: str | None = None  # a column for the SHA-256
    workers: int = 1
    at_once: Callable[[Job, Sequence[int]], None] | None = None
    computes: Callable[[Job, Texts], Texts] | None = None
    kinds: Callable[[Job], Job] | None = None  # None: all is text
    set_aside: Callable[..., None] | None = None  # None: the first row that fails stops it
    quarantine_rows: int = 0
    update: str = "{update}"  # what else its statement does
    rows: int = 0
    bytes: int = 0
    files: str = ""  # SELECT that changes when VACUUM FULL, say, gives all rows another ctid
    settings: str = ""  # SELECT that sets in a transaction what Alembic's session has
    texts: Sequence[str] = ()  # SQL for the text of what is read
    readers: Sequence[Callable[[str | None], Any] | None] = ()  # None: Python gets the text
    casts: Sequence[str] = ()  # types of the columns
    writers: Sequence[Callable[[Any], str | None]] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are written."""
        return self.writes if self.checksum is None else (*self.writes, self.checksum)


# ---------------------------------------------------------------- what the function makes of rows


def computed(job: Job, texts: Texts) -> tuple[Texts, dict[int, BaseException]]:
    """Columns of texts to write, and by number the rows for which the function failed."""
    if job.computes is not None:
        return job.computes(job, texts), {}
    write = job.writers[0] if job.writers else text_only
    if len(job.writes) > 1:
        write = several(job)
    results: list[Any] = []
    failures: dict[int, BaseException] = {}
    while len(results) < len(texts[0]):
        left = [column[len(results) :] for column in texts]
        values = [map(read, c) if read else c for read, c in zip(job.readers, left, strict=True)]
        try:
            for result in map(write, map(job.function, *values)):
                results.append(result)
        except Exception as error:
            said = f"{job.function.__name__}() failed with {type(error).__name__}: {error}"
            failures[len(results)] = ValueError(said)
            results.append((None,) * len(job.writes) if len(job.writes) > 1 else None)
    if len(job.writes) > 1:
        return list(zip(*results, strict=True)), failures
    return [results, *([list(map(sha256, results))] if job.checksum else [])], failures


def several(job: Job) -> Callable[[Any], tuple[str | None, ...]]:
    """What makes texts of a tuple of values."""
    writers = job.writers or [text_only] * len(job.writes)

    def write(values: Any) -> tuple[str | None, ...]:
        if not isinstance(values, tuple):
            raise TypeError(f"it gives {type(values).__name__}, not a tuple")
        pairs = zip(writers, cast("tuple[Any, ...]", values), strict=True)
        return tuple(to_text(value) for to_text, value in pairs)

    return write


def text_only(value: Any) -> str | None:
    """What a column of text gets."""
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"a column of text takes None or str, not {type(value).__name__}")


def sha256(text: str | None) -> str | None:
    """The checksum of a text in hexadecimal, as encode(sha256(convert_to(…)), 'hex') gives it."""
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def by_series(job: Job, texts: Texts) -> Texts:
    """Columns of texts to write, from a function of pandas.Series."""
    pandas: Any = importlib.import_module("pandas")  # named by requires=
    writers = job.writers or [text_only] * len(job.writes)
    try:
        series = [
            pandas.Series(list(map(read, column)) if read else column, dtype=object)
            for read, column in zip(job.readers, texts, strict=True)
        ]
        result = job.function(*series)
        several = [result[name] for name in result.columns] if result.ndim == 2 else [result]
        columns: Texts = [
            [write(v) for v in column.astype(object).where(column.notna(), None).tolist()]
            for write, column in zip(writers[: len(job.writes)], several, strict=True)
        ]
        if {len(column) for column in columns} != {len(texts[0])}:
            raise ValueError(f"it gives {len(columns[0])} values for {len(texts[0])} rows")
    except Exception as error:
        said = f"{job.function.__name__}() failed with {type(error).__name__}: {error}"
        raise ValueError(said) from error
    return [*columns, list(map(sha256, columns[0]))] if job.checksum else columns


# ---------------------------------------------------------------- rows that are read


class Batch(NamedTuple):
    """Rows that are meant, as they were read."""

    versions: Mapping[str, str]  # system columns that tell a row's version, as arrays
    texts: Texts  # one list for each argument


class Window(NamedTuple):
    """Rows of several batches, as they were read."""

    rows: int  # also those that are not meant
    after: str | None  # keys as SQL: the rows lie behind this one
    last: str | None  # and not behind this one; None: there are no more in the part
    batches: list[Batch]


def read_window(bind: Any, job: Job, after: str | None, stop: str | None, rows: int) -> Window:
    """Read the rows behind a key, of those that are meant what the function needs."""
    keys = ", ".join(job.key)
    last = execute(
        f"SELECT {key_text(job)} FROM (SELECT {keys} FROM {job.table}"
        f" WHERE {in_range(job, after, stop)} ORDER BY {keys} OFFSET {rows - 1} LIMIT 1) AS last",
        bind,
    ).scalar()
    names = [f"datamig_{number}" for number in range(len(job.texts))]
    values = "".join(
        f", CASE WHEN {job.where} THEN coalesce({text}, '{MARKS['null']}') END AS {name}"
        for name, text in zip(names, job.texts, strict=True)
    )
    gathered = [f"(array_agg({name}) FILTER (WHERE datamig_meant))::text" for name in IDENTITY]
    gathered += [f"string_agg({name}, '{MARKS['end']}')" for name in names]
    found = execute(
        f"SELECT count(*), {', '.join(gathered)} FROM (SELECT {', '.join(IDENTITY)},"
        f" row_number() OVER (ORDER BY {keys}) % {TRANSFORM_PASSES} AS datamig_pass,"
        f" ({job.where}) AS datamig_meant{values} FROM {job.table}"
        f" WHERE {in_range(job, after, last or stop)}) AS rows GROUP BY datamig_pass",
        bind,
    ).all()
    batches = [
        Batch(
            dict(zip(IDENTITY, row[1:], strict=False)),
            [
                [None if text == MARKS["null"] else text for text in texts.split(MARKS["end"])]
                for texts in row[1 + len(IDENTITY) :]
            ],
        )
        for row in found
        if row[1] is not None
    ]
    return Window(sum(row[0] for row in found), after, last, batches)


def in_range(job: Job, after: str | None, last: str | None, alias: str = "") -> str:
    """Condition: the key lies behind the one and not behind the other."""
    keys = ", ".join(f"{alias}{part}" for part in job.key)
    conditions = [f"({keys}) > ({after})"] if after else []
    conditions += [f"({keys}) <= ({last})"] if last else []
    return " AND ".join(conditions) or "TRUE"


# System columns that tell a version of a row from any other, and their types.
IDENTITY = {
    "ctid": "tid",
    "xmin": "xid",
    "tableoid": "oid",
}

# Nobody can have written them into the data.
MARKS = {
    "end": secrets.token_hex(8),  # between texts
    "null": secrets.token_hex(8),
}


# ---------------------------------------------------------------- what is known before


def this_step(name: str) -> str:
    """Condition: rows of a step in the tables of datamig."""
    return f"(revision, step) = ('{revision}', {quoted(name)})"


OWN_TRANSACTIONS = """
CREATE TABLE IF NOT EXISTS datamig.own_transaction (
    revision text, step text, xid bigint, PRIMARY KEY (revision, step, xid)
)
"""


def written_since(job: Job) -> str:
    """Condition: this version of the row came since the start; or so long ago that xid says so."""
    first = f"SELECT (min(xid) % 4294967296)::text::xid FROM {own_transactions(job)}"
    return f"age(xmin) < age(({first}))"


def written_by_others(job: Job) -> str:
    """Condition: this version of the row came since the start, and not from a batch of ours."""
    ours = f"SELECT (xid % 4294967296)::text::xid FROM {own_transactions(job)}"
    return f"{written_since(job)} AND xmin NOT IN ({ours})"


def own_transactions(job: Job) -> str:
    """The transactions of the step's batches; the first one ended before the step began."""
    return f"datamig.own_transaction WHERE {this_step(job.step)}"


def key_text(job: Job) -> str:
    """SQL for the key of a row as SQL."""
    return f"concat_ws(', ', {', '.join(f'quote_literal({part})' for part in job.key)})"


def begin_parts(job: Job) -> list[int]:
    """Note the parts, the last for what others write; what an earlier run noted of them stays."""
    with transaction():
        execute(job.settings)
        execute(f"SELECT pg_advisory_xact_lock(hashtext('{revision}'))")  # if run twice
        execute(OWN_TRANSACTIONS)
        noted = f"SELECT part FROM datamig.run WHERE {this_step(job.step)} AND part > 0"
        parts = sorted(execute(noted).scalars())
        stops = [] if parts else part_stops(job)
        parts = parts or list(range(1, len(stops) + 3))
        for part in parts:
            given: dict[str, object] = {"stop": stops[part - 1]} if part <= len(stops) else {}
            if part < len(parts):
                given["total"] = job.rows // (len(parts) - 1)
            begin(job.step, part, job.table, note="computed in Python", **given)
        # Older than any transaction that may still write what the walk does not see.
        execute(
            f"INSERT INTO datamig.own_transaction SELECT '{revision}', {quoted(job.step)},"
            " pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1 WHERE NOT EXISTS"
            f" (SELECT FROM datamig.own_transaction WHERE {this_step(job.step)})"
        )
    return parts


def part_stops(job: Job) -> list[str]:
    """Keys that part the table into about equal parts, from a sample of its pages."""
    pages = job.bytes / 8192
    if job.workers < 2 or pages < PARTED_PAGES:
        return []
    keys = ", ".join(job.key)
    found = execute(
        f"SELECT {key_text(job)}"
        f" FROM (SELECT *, row_number() OVER (ORDER BY {keys}) AS datamig_row,"
        f" count(*) OVER () AS datamig_rows FROM (SELECT {keys} FROM {job.table}"
        f" TABLESAMPLE SYSTEM ({min(100.0, 100 * SAMPLED_PAGES / pages):.6f})) AS sample)"
        f" AS sample WHERE datamig_row * {job.workers} % datamig_rows < {job.workers}"
        " AND datamig_row < datamig_rows ORDER BY datamig_row"
    )
    return list(found.scalars())


def size_of(table: str) -> dict[str, Any]:
    """Rows of the table and of those that belong to it, as last estimated; bytes and files."""
    found = execute(f"""
WITH RECURSIVE family (id) AS (
    SELECT {quoted(table)}::regclass::oid
     UNION SELECT inhrelid FROM pg_inherits JOIN family ON inhparent = id
)
SELECT coalesce(sum(greatest(0, reltuples)) FILTER (WHERE relkind <> 'p'), 0)::bigint AS rows,
       coalesce(sum(pg_table_size(oid)), 0)::bigint AS bytes,
       format('SELECT string_agg(pg_relation_filenode(id)::text, '' '')'
              ' FROM unnest(%L::oid[]) AS id', array_agg(oid)) AS files
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


def of_any_type(job: Job) -> Job:
    """The job with what carries values of its types; no row is read."""
    asked = (*job.reads, *job.columns)
    given = ", ".join(f"({expression}) AS c{n}" for n, expression in enumerate(asked))
    types = ", ".join(f"pg_typeof(row.c{n})::oid" for n in range(len(asked)))
    found = execute(f"""
WITH RECURSIVE kind (number, given, id, is_array) AS (
    SELECT number, id, id, FALSE
      FROM (SELECT) AS one LEFT JOIN (SELECT {given} FROM {job.table} LIMIT 0) AS row ON TRUE,
           unnest(ARRAY[{types}]) WITH ORDINALITY AS asked (id, number)
     UNION ALL
    SELECT number, given, CASE typtype WHEN 'd' THEN typbasetype ELSE typelem END,
           is_array OR typtype <> 'd'
      FROM kind JOIN pg_type ON oid = id
     WHERE typtype = 'd' OR typcategory = 'A' AND typelem <> 0 AND NOT is_array
)
SELECT format_type(given, -1), typname, is_array FROM kind JOIN pg_type ON oid = id
 WHERE typtype <> 'd' AND (is_array OR typcategory <> 'A' OR typelem = 0) ORDER BY number""")
    kinds = [Kind(*row) for row in found]
    reads, writes = kinds[: len(job.reads)], kinds[len(job.reads) :]
    return job._replace(
        texts=[text_expression(*read) for read in zip(job.reads, reads, strict=True)],
        readers=list(map(reader, reads)),
        casts=[kind.sql for kind in writes],
        writers=list(map(writer, writes)),
    )

"""Functions copied into revisions that compute in Python: the run's rows, the table's catalog.

Only the first part of this module touches ``datamig.run``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa
from alembic import op

from datamig_nb.inlined import LOCK_TIMEOUT, log, quoted, revision
from datamig_nb.inlined_values import Kind, unreadable

TRANSFORM_ROWS = 500  # of the first batch that Python computes
MOST_TRANSFORM_ROWS = 50_000
TRANSFORM_BYTES = 8_000_000  # of a batch, about, so that memory stays flat
PARTED_PAGES = 64  # of the smallest table that several work on
SAMPLED_PAGES = 300  # to find where a table is parted

# Which transactions were batches of ours; the first of a step is older than all of them.
OWN_TRANSACTIONS = """
CREATE TABLE IF NOT EXISTS datamig.own_transaction (
    revision text   NOT NULL,
    step     text   NOT NULL,
    xid      bigint NOT NULL,
    PRIMARY KEY (revision, step, xid)
)
"""


class Walk(NamedTuple):
    """What a transform does, and what was found out about its table."""

    step: str
    table: str
    key: tuple[str, ...]
    #: SQL expressions over the row, one for each argument, and their types.
    reads: Sequence[tuple[str, Kind]]
    #: Columns to write and their types; the last is the checksum's where there is one.
    writes: Sequence[tuple[str, Kind]]
    function: Callable[..., Any]
    has_checksum: bool
    #: by_series where the function takes all rows of a batch at once; else None.
    computes: Callable[..., list[Sequence[str | None]]] | None
    where: str
    #: Rows set aside before it gives up; None: the first row that fails stops it.
    quarantine_limit: int | None
    #: Whether rows lie in several tables: partitions, or tables that inherit.
    has_children: bool
    most_rows: int
    #: SELECT that sets what was set in Alembic's session, and ours, for one transaction.
    settings: str


# ---------------------------------------------------------------- rows of datamig.run


def begin_parts(walk: Walk, workers: int) -> None:
    """Note the parts; those that an earlier run noted stay as they are, and go on."""
    bind = op.get_bind()
    send(bind, OWN_TRANSACTIONS)
    name = f"'{revision}', {quoted(walk.step)}"
    with batch_transaction(bind, walk):
        one_at_a_time(bind)
        if not step_status(walk.step):
            stops = part_stops(bind, walk, workers)
            rows = table_rows(bind, walk) // len(stops)
            notes = [
                f"({name}, {part}, {'NULL' if stop is None else quoted(stop)}, {rows},"
                f" {TRANSFORM_ROWS}, 'computed in Python')"
                for part, stop in enumerate(stops, 1)
            ]
            notes.append(f"({name}, 0, NULL, 0, {TRANSFORM_ROWS}, 'what others wrote meanwhile')")
            send(
                bind,
                "INSERT INTO datamig.run (revision, step, part, stop, total, batch_rows, note)"
                f" VALUES {', '.join(notes)}",
            )
            send(bind, f"DELETE FROM datamig.own_transaction WHERE {this_step(walk.step)}")
        send(
            bind,
            f"UPDATE datamig.run SET status = 'running', error = NULL WHERE {this_step(walk.step)}",
        )
        # Older than any transaction that may still write what the walk does not see.
        send(
            bind,
            "INSERT INTO datamig.own_transaction"
            f" SELECT {name}, pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1 WHERE NOT"
            f" EXISTS (SELECT FROM datamig.own_transaction WHERE {this_step(walk.step)})",
        )


def one_at_a_time(connection: sa.Connection) -> None:
    """Wait until no other transaction of this revision is behind such a line."""
    send(connection, f"SELECT pg_advisory_xact_lock(hashtext('datamig {revision}'))")


def this_step(name: str, part: int | None = None) -> str:
    """Condition for the rows of a step in the tables of datamig."""
    condition = f"revision = '{revision}' AND step = {quoted(name)}"
    return condition if part is None else f"{condition} AND part = {part}"


def step_status(name: str) -> list[str]:
    """Status of the parts of a name, each once; nothing where it never began."""
    query = f"SELECT DISTINCT status FROM datamig.run WHERE {this_step(name)}"
    return [row[0] for row in rows_of(op.get_bind(), query)]


def parts_of(name: str) -> list[int]:
    """Numbers of the parts of a step; 0 is the one for what others wrote."""
    query = f"SELECT part FROM datamig.run WHERE {this_step(name)} AND part > 0 ORDER BY part"
    return [row[0] for row in rows_of(op.get_bind(), query)]


def take_part(connection: sa.Connection, name: str, part: int) -> Mapping[str, Any]:
    """Lock the row of a part: a second process waits here, then goes on behind this batch."""
    before = f"SELECT stop FROM datamig.run WHERE {this_step(name, part - 1)}"
    query = (
        f"SELECT status, cursor, ({before}) AS start, stop, batch_rows FROM datamig.run"
        f" WHERE {this_step(name, part)} FOR UPDATE"
    )
    return mapping_of(connection, query)


def move_part(
    connection: sa.Connection,
    name: str,
    part: int,
    cursor: str,
    counts: tuple[int, int],
    batch_rows: int,
) -> None:
    """Move the row of a part behind a batch: rows scanned and changed."""
    if counts[1]:
        own = f"'{revision}', {quoted(name)}, pg_current_xact_id()::text::bigint"
        send(connection, f"INSERT INTO datamig.own_transaction VALUES ({own})")
    send(
        connection,
        f"UPDATE datamig.run SET cursor = {quoted(cursor)}, scanned = scanned + {counts[0]},"
        f" changed = changed + {counts[1]}, batches = batches + 1, batch_rows = {batch_rows},"
        f" heartbeat_at = clock_timestamp() WHERE {this_step(name, part)}",
    )


def set_part(connection: sa.Connection, name: str, part: int, status: str) -> None:
    """Set the status of a part."""
    send(
        connection,
        f"UPDATE datamig.run SET status = '{status}', heartbeat_at = clock_timestamp()"
        f" WHERE {this_step(name, part)}",
    )


def again_part(name: str) -> None:
    """Let the part for what others wrote begin once more."""
    send(
        op.get_bind(),
        "UPDATE datamig.run SET status = 'running', cursor = NULL"
        f" WHERE {this_step(name, 0)} AND status = 'succeeded'",
    )


def end_parts(name: str, error: str | None = None) -> None:
    """Note the end of a step: nothing is to be known of its transactions any more; or a failure."""
    if error is None:
        send(op.get_bind(), f"DELETE FROM datamig.own_transaction WHERE {this_step(name)}")
    status = (
        "status = 'succeeded'" if error is None else f"status = 'failed', error = {quoted(error)}"
    )
    still = "" if error is None else " AND status = 'running'"
    send(op.get_bind(), f"UPDATE datamig.run SET {status} WHERE {this_step(name)}{still}")


def counts_of(name: str, part: int | None = None) -> Mapping[str, Any]:
    """Rows scanned, changed and expected, batches, and seconds since the start."""
    query = (
        "SELECT sum(scanned) FILTER (WHERE part > 0)::bigint AS scanned,"
        " sum(changed)::bigint AS changed, sum(batches)::bigint AS batches,"
        " sum(total)::bigint AS total,"
        " extract(epoch FROM clock_timestamp() - min(started_at))::float8 AS seconds"
        f" FROM datamig.run WHERE {this_step(name, part)}"
    )
    return mapping_of(op.get_bind(), query)


def log_progress(name: str) -> None:
    """Log the rows scanned and changed, the rate, and the time left."""
    run = counts_of(name)
    rate = run["scanned"] / max(run["seconds"], 0.001)
    left = max(0, run["total"] - run["scanned"]) / max(rate, 0.001)
    log.info(
        "%s: %d of about %d rows scanned, %d changed, %d a second, about %d s left",
        *(name, run["scanned"], run["total"], run["changed"], rate, left),
    )


# ---------------------------------------------------------------- what the catalog knows


def prepared(walk: Walk, reads: Sequence[str], writes: Sequence[str]) -> Walk:
    """The walk with the types of its columns, and what is to be known of its table."""
    bind, table = op.get_bind(), quoted(walk.table)
    kinds = kinds_of(bind, walk.table, [*reads, *writes])
    children = f"SELECT 1 FROM pg_inherits WHERE inhparent = {table}::regclass LIMIT 1"
    return walk._replace(
        reads=list(zip(reads, kinds, strict=False)),
        writes=list(zip(writes, kinds[len(reads) :], strict=True)),
        has_children=bool(rows_of(bind, children)),
        most_rows=most_rows(bind, walk),
        settings=settings(bind),
    )


def kinds_of(connection: sa.Connection, table: str, expressions: Sequence[str]) -> list[Kind]:
    """The types of expressions over a row; no row is read."""
    given = ", ".join(f"({expression}) AS c{n}" for n, expression in enumerate(expressions))
    types = ", ".join(f"pg_typeof(row.c{n})::oid::bigint" for n in range(len(expressions)))
    (row,) = rows_of(
        connection,
        f"SELECT {types} FROM (SELECT) AS one LEFT JOIN (SELECT {given} FROM {table} LIMIT 0)"
        " AS row ON TRUE",
    )
    return [kind_of(connection, oid) for oid in row]


def kind_of(connection: sa.Connection, oid: int) -> Kind:
    """A type as it is written and, behind domains and arrays, as it is."""
    name, base, is_array = "", oid, False
    while True:
        (found,) = rows_of(
            connection,
            "SELECT format_type(oid, -1), typname, typtype, typbasetype::bigint,"
            " CASE WHEN typcategory = 'A' AND typelem <> 0 THEN typelem::bigint END"
            f" FROM pg_type WHERE oid = {base}",
        )
        name = name or found[0]
        if found[2] == "d":
            base = found[3]
        elif found[4] is not None and not is_array:
            base, is_array = found[4], True
        else:
            return Kind(name, found[1], is_array)


def settings(connection: sa.Connection) -> str:
    """SELECT that gives a transaction the session's settings, and forms of text that we read."""
    query = "SELECT name, setting FROM pg_settings WHERE source = 'session'"
    values = dict[str, str](rows_of(connection, query)) | {
        "DateStyle": "ISO",
        "IntervalStyle": "postgres",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "lock_timeout": LOCK_TIMEOUT,
    }
    values["role"] = rows_of(connection, "SELECT current_setting('role')")[0][0]
    calls = (f"set_config({quoted(n)}, {quoted(value)}, true)" for n, value in values.items())
    return f"SELECT {', '.join(calls)}"


def most_rows(connection: sa.Connection, walk: Walk) -> int:
    """Rows of the largest batch, so that it has no more than TRANSFORM_BYTES."""
    bytes_a_row = table_bytes(connection, walk) / max(1, table_rows(connection, walk))
    return max(10, min(MOST_TRANSFORM_ROWS, int(TRANSFORM_BYTES / max(1, bytes_a_row))))


FAMILY = """
WITH RECURSIVE family(relation) AS (
    SELECT {}::regclass::oid
    UNION SELECT inhrelid FROM pg_inherits JOIN family ON inhparent = relation
)
SELECT coalesce(sum({}), 0)::bigint FROM family JOIN pg_class ON oid = relation
 WHERE relkind <> 'p'
"""


def table_rows(connection: sa.Connection, walk: Walk) -> int:
    """Rows of the table and of those that belong to it, as last estimated."""
    query = FAMILY.format(quoted(walk.table), "greatest(0, reltuples)")
    return rows_of(connection, query)[0][0]


def table_bytes(connection: sa.Connection, walk: Walk) -> int:
    """Bytes of the table and of those that belong to it."""
    query = FAMILY.format(quoted(walk.table), "pg_table_size(relation)")
    return rows_of(connection, query)[0][0]


def part_stops(connection: sa.Connection, walk: Walk, workers: int) -> list[str | None]:
    """Last keys of parts of about equal size, from a sample of pages; the last part has no end."""
    pages = table_bytes(connection, walk) / 8192
    if workers < 2 or pages < PARTED_PAGES:
        return [None]
    keys = ", ".join(walk.key)
    share = min(100.0, 100 * SAMPLED_PAGES / pages)
    literals = ", ".join(f"quote_literal({part})" for part in walk.key)
    found = rows_of(
        connection,
        f"SELECT concat_ws(', ', {literals}) FROM (SELECT *, row_number() OVER (ORDER BY {keys})"
        f" AS datamig_row, count(*) OVER () AS datamig_rows FROM (SELECT {keys} FROM {walk.table}"
        f" TABLESAMPLE SYSTEM ({share:.6f})) AS sample) AS sample"
        f" WHERE datamig_row * {workers} % datamig_rows < {workers}"
        " AND datamig_row < datamig_rows ORDER BY datamig_row",
    )
    return [*(row[0] for row in found), None]


def require_readable(walk: Walk) -> None:
    """Refuse, before the first write, rows with values that Python cannot hold."""
    bind = op.get_bind()
    keys = ", ".join(f"quote_literal({part})" for part in walk.key)
    for expression, kind in walk.reads:
        condition = unreadable(expression, kind)
        if condition is None:
            continue
        rows = rows_of(
            bind,
            f"SELECT count(*) OVER (), concat_ws(', ', {keys}) FROM {walk.table}"
            f" WHERE ({walk.where}) AND ({condition}) ORDER BY {', '.join(walk.key)} LIMIT 5",
        )
        if rows:
            first = ", ".join(f"({row[1]})" for row in rows)
            raise RuntimeError(
                f"{revision} stopped before its first write: Python cannot hold {expression}, of"
                f" type {kind.sql}, of {rows[0][0]} rows of {walk.table}, the first"
                f" ({', '.join(walk.key)}) = {first}; read its text with ({expression})::text,"
                " or leave the rows out with where="
            )


# ---------------------------------------------------------------- statements


@contextmanager
def batch_transaction(connection: sa.Connection, walk: Walk) -> Generator[None]:
    """BEGIN and COMMIT by hand, since the connection is in autocommit mode."""
    send(connection, "BEGIN")
    try:
        send(connection, walk.settings)
        yield
    except BaseException:
        if not connection.invalidated:  # else the connection is gone, and its work with it
            send(connection, "ROLLBACK")
        raise
    send(connection, "COMMIT")


def send(connection: sa.Connection, statement: str) -> sa.CursorResult[Any]:
    """Send a statement as it stands: no bind parameters, so ':' and '%' are themselves."""
    options = {"no_parameters": True}
    return connection.exec_driver_sql(statement, execution_options=options)


def rows_of(connection: sa.Connection, query: str) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    return [tuple(row) for row in send(connection, query)]


def mapping_of(connection: sa.Connection, query: str) -> dict[str, Any]:
    """The only row of a query, by name."""
    return {str(name): value for name, value in send(connection, query).mappings().one().items()}

"""Functions copied into revisions that walk a table batch by batch, and tell about it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event
from typing import Any

from alembic import op
from sqlalchemy import Engine

from datamig_nb.inlined import log, passed, prepare_nothing, require
from datamig_nb.inlined_sql import (
    FIRST_BATCH_ROWS,
    STRETCH_SECONDS,
    execute,
    quoted,
    revision,
)
from datamig_nb.inlined_walk import this_run, walk


def run_batches(name: str, table: str, key: tuple[str, ...], work: str, **more: Any) -> None:
    """Walk a table batch by batch; where an earlier run stopped, its row of datamig.run knows."""
    if passed():
        return
    begin(name, 1, table)
    go_on(name, 1, table, key, work, **more)


def run_in_parallel(
    name: str, table: str, key: tuple[str, ...], work: str, connections: int, **more: Any
) -> None:
    """Walk parts of a table's pages at once; what another connection left, this one does."""
    if passed():
        return
    remaining, ended = more.pop("remaining"), Event()
    for part in range(1, connections + 1):
        begin(name, part, table)

    def one(part: int, **by_whom: Any) -> None:
        go_on(name, part, table, key, work, connections=connections, **more, **by_whom)

    def help_out(part: int, engine: Engine) -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            prepare_nothing(other)
            one(part, bind=other, ended=ended)

    with ThreadPoolExecutor() as pool:
        try:
            if not op.get_context().as_sql and not op.get_bind().dialect.is_async:
                for part in range(2, connections + 1):
                    pool.submit(help_out, part, op.get_bind().engine)
            one(1)
        finally:
            ended.set()
    for part in range(2, connections + 1):
        one(part)
    begin(name, connections + 1, table, cursor="(0,0)", stop="(0,0)")
    go_on(name, connections + 1, table, key, work, remaining=remaining)


def begin(name: str, part: int, table: str, **given: object) -> None:
    """Note what is to be done; what an earlier run noted of its progress stays."""
    given = {"heap": table, "batch_rows": FIRST_BATCH_ROWS, **given}
    execute(f"""
INSERT INTO datamig.run AS run (revision, step, part, {", ".join(given)}, status)
SELECT '{revision}', {quoted(name)}, {part}, {", ".join(map(quoted, given.values()))},
       coalesce(max(status), 'running') FROM datamig.run
 WHERE revision = '{revision}' AND part = 0 AND status IN ('paused', 'cancelled')
ON CONFLICT (revision, step, part) DO UPDATE SET retries = 0, rounds = 0, error = NULL,
       status = CASE run.status WHEN 'paused' THEN 'paused' ELSE excluded.status END""")


def go_on(
    name: str, part: int, *what: Any, bind: Any = None, ended: Event | None = None, **more: Any
) -> None:
    """Let the database do batches until the walk is done; tell about it every two seconds."""
    if op.get_context().as_sql:
        execute(walk(name, part, "'infinity'", *what, **more))
        stopped = f"SELECT status, error FROM datamig.run WHERE {this_run(name, part)}"
        require(f"-- {name}: done\n{stopped} AND status <> 'succeeded'")
        return
    until = f"clock_timestamp() + interval '{STRETCH_SECONDS} seconds'"
    batches = walk(name, part, until, *what, **more)
    heard, shown, began, before = (None, None), 0.0, 0.0, 0
    while ended is None or not ended.is_set():
        execute(batches, bind)
        seen = "status, note, error, rest, total, scanned, changed, batches"  # no times: DateStyle
        run = execute(f"SELECT {seen} FROM datamig.run WHERE {this_run(name, part)}", bind).one()
        now = time.monotonic()
        if not began or run.status == "paused":  # the rate is that of work, by this process
            began, before = now, run.scanned
        if (run.status, run.note) != heard or (run.status == "running" and now > shown + 2):
            heard, shown = (run.status, run.note), now
            rate = (run.scanned - before) / max(now - began, 0.1)
            log.info("%s: %s", name, progress(run, rate))
        if run.status == "succeeded":
            return
        if run.status not in ("running", "paused"):
            reason = run.error if run.status == "failed" else "as somebody wished"
            raise RuntimeError(
                f"{revision} {run.status} at {name!r}: {reason}; run Alembic again, it goes on here"
            )
        time.sleep(run.rest)


def progress(run: Any, rate: float) -> str:
    """Where a walk is, in words, and how long it has to go at this rate."""
    left = (run.total or 0) - run.scanned if run.status != "succeeded" else 0
    of = f" of about {run.total:,}" if left > 0 else ""
    said = [run.status, run.note, f"{run.scanned:,}{of} rows scanned"]
    said += [f"{run.changed:,} changed", f"{run.batches:,} batches"]
    said += [f"{rate:,.0f} rows/s"] if rate >= 1 else []
    said += [f"{timedelta(seconds=round(left / rate))} to go"] if left > rate >= 1 else []
    return ", ".join(filter(None, said))

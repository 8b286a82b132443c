"""Functions copied into revisions that compute in Python: the name, its threads or processes.

What one of them does with its rows is in ``inlined_rows``.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait as wait_for_one
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from datamig_nb.inlined import log, revision
from datamig_nb.inlined_rows import walk_part, written_by_others
from datamig_nb.inlined_run import (
    Walk,
    again_part,
    batch_transaction,
    begin_parts,
    counts_of,
    end_parts,
    log_progress,
    parts_of,
    prepared,
    require_readable,
    rows_of,
    step_status,
)

CATCH_UP_ROUNDS = 5  # over rows that others wrote while a transform ran


# ---------------------------------------------------------------- a step that computes in Python


def transform(
    name: str,
    table: str,
    function: Callable[..., Any],
    *,
    key: tuple[str, ...],
    reads: tuple[str, ...],
    writes: tuple[str, ...],
    where: str = "TRUE",
    checksum: str | None = None,
    workers: int = 1,
    at_once: Callable[[Walk, Sequence[int]], None] | None = None,
    computes: Callable[..., list[Sequence[str | None]]] | None = None,
    once: bool = False,
    quarantine_limit: int | None = None,
) -> None:
    """Give columns of each row what the function makes of others; then look at what others wrote.

    ``once``: the function reads what it writes, so that a table that is done is never done again.
    """
    if op.get_context().as_sql:
        raise RuntimeError(f"{revision} computes in Python, which no script can; run without --sql")
    walk = prepared(
        Walk(
            step=name,
            table=table,
            key=key,
            reads=(),
            writes=(),
            function=function,
            has_checksum=checksum is not None,
            computes=computes,
            where=where,
            quarantine_limit=quarantine_limit,
            has_children=False,
            most_rows=0,
            settings="",
        ),
        reads,
        writes if checksum is None else (*writes, checksum),
    )
    if once and step_status(name) == ["succeeded"]:
        log.info("%s: done before, and not to be done twice", name)
        return
    if not step_status(name):
        require_readable(walk)
    begin_parts(walk, workers)
    try:
        walk_parts(walk, at_once)
        catch_up(walk)
    except Exception as error:
        if not op.get_bind().invalidated:  # else the connection is gone
            end_parts(name, str(error))
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            raise RuntimeError(
                f"{revision} lost its connection: {str(error.orig).splitlines()[0]}; run Alembic"
                " again, it goes on where it was"
            ) from error
        raise
    end_parts(name)
    log_progress(name)


def walk_parts(walk: Walk, at_once: Callable[[Walk, Sequence[int]], None] | None) -> None:
    """Walk all parts of the table: in threads or processes, or one after the other."""
    bind = op.get_bind()
    parts = parts_of(walk.step)
    if bind.dialect.is_async and at_once is not None:
        log.info("%s: one worker only, for env.py uses an asynchronous driver", walk.step)
        at_once = None
    if at_once is None or len(parts) == 1:
        for part in parts:
            walk_part(bind, walk, part, threading.Event())
    else:
        at_once(walk, parts)


def catch_up(walk: Walk) -> None:
    """Compute again what others wrote since the start, until there is nothing to change."""
    bind = op.get_bind()
    left = f"SELECT 1 FROM {walk.table} WHERE ({walk.where}) AND {written_by_others(walk)} LIMIT 1"
    changed = counts_of(walk.step, 0)["changed"]
    for number in range(1, CATCH_UP_ROUNDS + 1):
        with batch_transaction(bind, walk):
            some_left = bool(rows_of(bind, left))
        if not some_left:
            return
        log.info("%s: rows that others wrote meanwhile, round %d", walk.step, number)
        again_part(walk.step)
        walk_part(bind, walk, 0, threading.Event())
        before, changed = changed, counts_of(walk.step, 0)["changed"]
        if changed == before:
            return
    log.warning(
        "%s: others still write rows as before; what they write from now on is theirs to compute",
        walk.step,
    )


# ---------------------------------------------------------------- several at once


def in_threads(walk: Walk, parts: Sequence[int]) -> None:
    """Walk the parts in threads: while one waits for the server, another computes."""
    connections: list[sa.Connection] = []
    try:
        connections.extend(own_connection() for _ in parts)
    except SQLAlchemyError as error:
        log.warning("%s: only %d connections: %s", walk.step, len(connections), error)
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for part in parts:
        waiting.put(part)
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()

    def work(connection: sa.Connection) -> None:
        try:
            while not (stop.is_set() or waiting.empty()):
                walk_part(connection, walk, waiting.get_nowait(), stop)
        except queue.Empty:
            ended.put(None)  # another was quicker
        except BaseException as error:  # told to the thread that waits
            ended.put(error)
        else:
            ended.put(None)

    if not connections:
        work(op.get_bind())
    threads = [threading.Thread(target=work, args=[each], daemon=True) for each in connections]
    for thread in threads:
        thread.start()
    try:
        for _ in threads or [None]:
            error = next_end(walk, ended)
            if error is not None:
                raise error
    finally:
        stop.set()  # after Ctrl-C too: each ends with the batch under way
        for thread, connection in zip(threads, connections, strict=True):
            thread.join(10)
            if not thread.is_alive():
                connection.close()


def next_end(walk: Walk, ended: queue.SimpleQueue[BaseException | None]) -> BaseException | None:
    """Wait for the next thread that ends, and log every two seconds; gives its error."""
    while True:
        try:
            return ended.get(timeout=2)
        except queue.Empty:
            log_progress(walk.step)


def in_processes(walk: Walk, parts: Sequence[int]) -> None:
    """Walk the parts in forked processes, for a function that keeps a processor busy."""
    if "fork" not in multiprocessing.get_all_start_methods():
        raise RuntimeError(f"{revision} forks processes, which this system cannot; use threads")
    context = multiprocessing.get_context("fork")
    reasons = context.SimpleQueue()

    def work(part: int) -> None:
        threading.Thread(target=end_with_parent, daemon=True).start()
        op.get_bind().engine.dispose(close=False)  # its connections are the parent's
        try:
            connection = own_connection()
            walk_part(connection, walk, part, threading.Event())
            connection.close()
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException as error:
            reasons.put(str(error))
            os._exit(1)

    running = [context.Process(target=work, args=[part], daemon=True) for part in parts]
    for process in running:
        process.start()
    try:
        while running:
            if not wait_for_one([process.sentinel for process in running], timeout=2):
                log_progress(walk.step)
            for process in [process for process in running if not process.is_alive()]:
                process.join()
                running.remove(process)
                if process.exitcode:
                    reason = f"{revision}: a process ended with code {process.exitcode}"
                    raise RuntimeError(reason if reasons.empty() else reasons.get())
    finally:
        for process in running:
            process.terminate()  # the server takes its batch back
            process.join()


def end_with_parent() -> None:
    """End this process when its parent is gone, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def own_connection() -> sa.Connection:
    """A connection beside Alembic's, where BEGIN and COMMIT are sent by hand as there."""
    connection = op.get_bind().engine.connect()
    return connection.execution_options(isolation_level="AUTOCOMMIT")

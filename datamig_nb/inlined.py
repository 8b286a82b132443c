"""Functions copied into exported revisions, each only where it is needed: steps and checks.

Those of all the modules ``inlined…`` are ordinary functions, typed and tested here, in the order in
which a reader of the revision meets them.  A revision has its own ``revision``; all else that it
uses is copied.  They import nothing from datamig_nb but each other.

Lines between the comments "only with NAME" and "end" are copied where the story gives an argument
of that name, or where a table without a key is walked by its ctid; the comments never are.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from alembic import op
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError

from datamig_nb.inlined_sql import ATTEMPTS, LOCK_TIMEOUT, execute, quoted, revision
from datamig_nb.inlined_walk import QUARANTINE, RUN

# Loggers below this name keep the level and the handler that alembic.ini gives to [logger_alembic].
log = logging.getLogger("alembic.runtime.migration.datamig")


@contextmanager
def own_commits() -> Generator[None]:
    """Leave Alembic's transaction: from here on each step and each batch commits by itself."""
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(op.get_context().autocommit_block())
            except AssertionError:
                raise RuntimeError(
                    f"{revision} commits each batch, but env.py opened a transaction before"
                    " context.configure(); let Alembic open it, with context.begin_transaction()"
                ) from None
            if op.get_context().as_sql:
                execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
                execute("SET client_connection_check_interval = '2s'")  # a killed psql ends the run
                execute("SET statement_timeout = 0")  # a whole walk is one statement
            else:
                prepare_nothing(op.get_bind())
            step("CREATE SCHEMA IF NOT EXISTS datamig")
            step(RUN)
            # only with quarantine_rows
            step(QUARANTINE)
            # end
            yield
            if op.get_context().as_sql:
                op.get_context().impl.static_output("\\endif")  # of skip_done()
                execute("RESET statement_timeout")
                execute("RESET client_connection_check_interval")
                execute("RESET lock_timeout")
    except (DBAPIError, PendingRollbackError) as error:
        # Where the connection is lost, Alembic cannot end its block: tell what made it so.
        cause = error if isinstance(error, DBAPIError) else error.__context__
        if not isinstance(cause, DBAPIError):  # Ctrl-C
            raise cause or error from None
        reason = str(cause.orig).splitlines()[0]
        said = f"{revision} stopped: {reason}; run Alembic again, it goes on where it was"
        if f"{revision} " in reason:  # by one of our own statements
            said = reason[reason.index(f"{revision} ") :]
        raise RuntimeError(said) from cause


def prepare_nothing(bind: Any) -> None:
    """A pooler may give each transaction another session."""
    if hasattr(bind.connection.driver_connection, "prepare_threshold"):
        bind.connection.driver_connection.prepare_threshold = None


def preflight(way: str, *checks: str) -> None:
    """Check before the first write; a run that goes on after a stop was checked when it began."""
    this = f"(revision, step, part) = ('{revision}', '{way}', 0)"
    story["done"] = 0
    for check in checks:
        require(check, unless=f"SELECT FROM datamig.run WHERE {this}")
    stays = "'paused', 'succeeded'" if op.get_context().as_sql else "'paused'"
    execute(f"""
INSERT INTO datamig.run AS run (revision, step, part, pid)
VALUES ('{revision}', '{way}', 0, pg_backend_pid())
ON CONFLICT (revision, step, part) DO UPDATE
   SET pid = excluded.pid, heartbeat_at = excluded.heartbeat_at,
       status = CASE WHEN run.status IN ({stays}) THEN run.status ELSE 'running' END""")
    done = execute(f"SELECT batches FROM datamig.run WHERE {this}")
    story.update(this=this, at=0, done=done.scalar_one() if done else 0)
    skip_done()


# The run's row, this call's place in the story, and that of the last one not to be done again.
story = dict[str, Any](this="", at=0, done=0)


def passed() -> bool:
    """Whether an earlier run got beyond this call of the story."""
    story["at"] += 1
    return story["at"] <= story["done"]


def skip_done(end: str = "") -> None:
    """Let psql pass over the next part of the story where an earlier run got beyond it."""
    if op.get_context().as_sql:
        todo = f"batches <= {story['at']} AND status <> 'succeeded'"
        op.get_context().impl.static_output(
            f"{end}SELECT {todo} AS todo FROM datamig.run WHERE {story['this']} \\gset\n\\if :todo"
        )


def remember(name: str, value: str) -> None:
    """Note a figure before the first write."""
    execute(
        "INSERT INTO datamig.run (revision, step, part, note)"
        f" SELECT '{revision}', {quoted(name)}, 0, ({value.strip()})::text ON CONFLICT DO NOTHING"
    )


def require(check: str, unless: str = "SELECT WHERE FALSE") -> None:
    """Refuse to go on while the check's query returns rows; its first line says what holds."""
    if passed():
        return
    name = check.strip().splitlines()[0].removeprefix("-- ")
    message = quoted(
        f"{revision} stopped, for it requires: {name.replace('%', '%%')}; % rows fail, the first %;"
        " repair them and run Alembic again, it goes on here"
    )
    execute(f"""
DO $datamig$
DECLARE
    failing bigint;  first text;
BEGIN
    IF EXISTS ({unless}) THEN RETURN; END IF;
    SET LOCAL row_security = off;  -- rather an error than rows unseen
    SELECT count(*), string_agg(row_text, ', ') FILTER (WHERE place <= 5) INTO failing, first
      FROM (SELECT bad_row::text AS row_text, row_number() OVER () AS place FROM (
{check.strip()}
           ) AS bad_row) AS numbered;
    IF failing > 0 THEN RAISE EXCEPTION {message}, failing, first; END IF;
END
$datamig$""")
    log.info("checked: %s", name)


def finish() -> None:
    """Note that every step of the upgrade is done."""
    execute(f"DELETE FROM datamig.run WHERE (revision, step) = ('{revision}', 'downgrade')")
    done = execute(
        "UPDATE datamig.run SET status = 'succeeded' WHERE status <> 'succeeded'"
        f" AND (revision, step) = ('{revision}', 'upgrade')"
    )
    if not op.get_context().as_sql and not done.rowcount:
        raise RuntimeError(f"{revision} was run twice at once, and the other run has done it")


def forget() -> None:
    """Remove what was noted of the upgrade, so that it can start afresh."""
    # only with quarantine_rows
    execute(f"DELETE FROM datamig.quarantine WHERE revision = '{revision}'")
    # end
    execute(f"DELETE FROM datamig.run WHERE revision = '{revision}' AND step <> 'downgrade'")
    execute(f"UPDATE datamig.run SET status = 'succeeded' WHERE revision = '{revision}'")


def step(statement: str, check: str = "", undo: str = "", once: str = "") -> None:
    """Make one change in a transaction of its own; wait for its lock briefly, and again.

    Where rows are in the way, it is undone, and the check tells which ones.
    """
    if passed():
        return
    if op.get_context().as_sql:
        execute(statement)
        return
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with transaction():
                # Another session of this revision may take long; one that lost its client ends.
                execute(
                    "SELECT set_config('idle_in_transaction_session_timeout', '5s', true),"
                    f" pg_advisory_xact_lock(hashtext('{revision}'))"
                )
                execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
                execute(statement)
                if once:
                    execute(once)
            return
        except IntegrityError:
            rows_in_the_way(check, undo)
            raise
        except DBAPIError as error:
            if sqlstate(error) not in ("55P03", "40P01", "40001"):  # no lock to be had, deadlock
                raise
            reason = str(error.orig).splitlines()[0]
            if attempt == ATTEMPTS:
                raise RuntimeError(
                    f"{revision} gave up after {ATTEMPTS} attempts: {reason}; find out in"
                    " pg_stat_activity who holds the lock, and run Alembic again, it goes on here"
                ) from error
            wait = random.uniform(0.5, 1.0) * min(10.0, 0.1 * 2**attempt)
            log.warning("%s, attempt %d, again in %.1f s", reason, attempt, wait)
            time.sleep(wait)


def sqlstate(error: DBAPIError) -> str:
    """PostgreSQL's code of an error, whichever driver it came through; "" where there is none."""
    return getattr(error.orig, "sqlstate", "") or getattr(error.orig, "pgcode", "") or ""


def step_once(statement: str) -> None:
    """A step that takes away what the story before it needs: from here on that is not repeated."""
    mark = f"UPDATE datamig.run SET batches = {story['at'] + 1} WHERE {story['this']}"
    if op.get_context().as_sql:
        statement = f"BEGIN;\n{statement.strip()};\n{mark};\nCOMMIT"
    step(statement, once=mark)
    skip_done("\\endif\n")


def step_outside(statement: str, check: str = "", undo: str = "") -> None:
    """A step that PostgreSQL does CONCURRENTLY, in no transaction; its locks stop nobody."""
    if passed():
        return
    try:
        execute(statement)
    except IntegrityError:
        rows_in_the_way(check, undo)
        raise


def set_not_null(table: str, column: str, proof: str, check: str) -> None:
    """Make a column NOT NULL: a CHECK that is proven spares it the scan, and has then served."""
    drop = f"ALTER TABLE IF EXISTS {table} DROP CONSTRAINT IF EXISTS {proof}"
    nullable = (
        f"SELECT FROM pg_attribute WHERE attrelid = {quoted(table)}::regclass"
        f" AND attname = (parse_ident({quoted(column)}))[1] AND NOT attnotnull"
    )
    there = (
        f"SELECT FROM pg_constraint WHERE conrelid = {quoted(table)}::regclass"
        f" AND conname = (parse_ident({quoted(proof)}))[1]"
    )
    step(f"""
DO $datamig$
BEGIN
    IF EXISTS ({nullable}) AND NOT EXISTS ({there}) THEN
        ALTER TABLE {table} ADD CONSTRAINT {proof} CHECK ({column} IS NOT NULL) NOT VALID;
    END IF;
END
$datamig$""")
    prove = f"ALTER TABLE {table} VALIDATE CONSTRAINT {proof}"
    unproven = f"EXISTS ({there} AND NOT convalidated)"
    step(f"DO $datamig$ BEGIN IF {unproven} THEN {prove}; END IF; END $datamig$", check, drop)
    step(f"ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL")
    step(drop)


def rows_in_the_way(check: str, undo: str) -> None:
    """Undo what would refuse every change of these rows, and name them."""
    if undo:
        execute(undo)
    if check:
        require(check)


@contextmanager
def transaction(bind: Any = None) -> Generator[None]:
    """BEGIN and COMMIT by hand: inside autocommit_block() the driver sends neither."""
    execute("BEGIN", bind)
    try:
        yield
    except BaseException:
        if not (bind or op.get_bind()).invalidated:  # else the connection is gone, with its work
            execute("ROLLBACK", bind)
        raise
    execute("COMMIT", bind)

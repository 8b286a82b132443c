"""Split full_name of players.player into first_name and last_name.

Revision ID: acb189682a2d
Revises:
Create Date: (when it was rendered)

Upgrade
    1. add the column first_name VARCHAR(50) to players.player
    2. add the column last_name VARCHAR(50) to players.player
    3. keep first_name and last_name of players.player in step with a trigger
    4. fill first_name and last_name of players.player, every row, in batches
    5. check that: first_name and last_name hold every letter of full_name
    6. check that: every name has a first_name
    7. check that: first_name of players.player without NULL
    8. make first_name of players.player NOT NULL, without a long lock

Downgrade
    drops first_name, last_name of players.player, unless a value there was edited since (then it
    stops and names the rows); nothing else was changed.

Each step and each batch of rows commits by itself, a batch together with its row in datamig.run:
stopped at any point, the upgrade goes on where it was when Alembic runs again.  No statement waits
for a lock longer than LOCK_TIMEOUT or holds a strong one while it reads the table.

Written by datamig_nb; needs Alembic 1.16 or newer and PostgreSQL 14 or newer, nothing else.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError

revision = "acb189682a2d"
down_revision = None
branch_labels = None
depends_on = None

LOCK_TIMEOUT = "2s"  # how long a statement may queue for a lock, and others behind it
ATTEMPTS = 10  # at one step or batch, before giving up
RETRIED = {"55P03", "40P01", "40001"}  # lock not available, deadlock, serialization failure
FIRST_BATCH_ROWS = 2_000
MOST_BATCH_ROWS = 50_000
BATCH_SECONDS = 0.5  # what a batch should take: longer ones make writers wait


def upgrade() -> None:
    """Split full_name of players.player into first_name and last_name."""
    with own_commits():
        preflight(
            NO_COLUMN_FIRST_NAME_OR_LAST_NAME_YET,
            EVERY_FIRST_NAME_FITS_INTO_50_CHARACTERS,
            NO_FIRST_NAME_BECOMES_NULL,
            EVERY_LAST_NAME_FITS_INTO_50_CHARACTERS,
        )
        step(
            lambda: op.add_column(
                "player",
                sa.Column("first_name", sa.String(length=50), nullable=True),
                schema="players",
                if_not_exists=True,
            )
        )
        step(
            lambda: op.add_column(
                "player",
                sa.Column("last_name", sa.String(length=50), nullable=True),
                schema="players",
                if_not_exists=True,
            )
        )
        step(lambda: execute(TRIGGER_FUNCTION))
        step(lambda: execute(TRIGGER))
        run_batches(
            "fill first_name, last_name",
            "players.player",
            ("id",),
            FILL_FIRST_NAME_LAST_NAME,
        )
        require(FIRST_NAME_AND_LAST_NAME_HOLD_EVERY_LETTER_OF)
        require(EVERY_NAME_HAS_A_FIRST_NAME)
        require(FIRST_NAME_OF_PLAYERS_PLAYER_WITHOUT_NULL)
        set_not_null("players.player", "first_name", "first_name_not_null")
        finish()


def downgrade() -> None:
    """Undo: split full_name of players.player into first_name and last_name."""
    with own_commits():
        require_unedited(
            "players.player",
            ("first_name", "last_name"),
            FIRST_NAME_AND_LAST_NAME_NOT_EDITED_SINCE_THE,
        )
        step(lambda: execute("DROP TRIGGER IF EXISTS zz_datamig_acb189682a2d ON players.player"))
        step(lambda: execute("DROP FUNCTION IF EXISTS datamig.zz_datamig_acb189682a2d()"))
        step(lambda: op.drop_column("player", "last_name", schema="players", if_exists=True))
        step(lambda: op.drop_column("player", "first_name", schema="players", if_exists=True))
        forget()


# -------- SQL

FIRST_NAME = r"""substring(
    btrim(regexp_replace(full_name, '[\s\u00a0\u2007\u202f]+', ' ', 'g'))
    FROM '^\S+(?: [[:alpha:]]\.| ''[^'']+'')*(?= |$)'
)"""

LAST_NAME = r"""nullif(btrim(regexp_replace(
    btrim(regexp_replace(full_name, '[\s\u00a0\u2007\u202f]+', ' ', 'g')),
    '^\S+(?: [[:alpha:]]\.| ''[^'']+'')*(?= |$)', ''
)), '')"""

NO_COLUMN_FIRST_NAME_OR_LAST_NAME_YET = """
-- no column first_name or last_name yet
SELECT attname FROM pg_attribute
 WHERE attrelid = 'players.player'::regclass
   AND attname IN ('first_name', 'last_name') AND NOT attisdropped
"""

EVERY_FIRST_NAME_FITS_INTO_50_CHARACTERS = f"""
-- every first_name fits into 50 characters
SELECT id FROM players.player
 WHERE length(({FIRST_NAME})::text) > 50
 ORDER BY id
"""

NO_FIRST_NAME_BECOMES_NULL = f"""
-- no first_name becomes NULL
SELECT id FROM players.player
 WHERE ({FIRST_NAME}) IS NULL
 ORDER BY id
"""

EVERY_LAST_NAME_FITS_INTO_50_CHARACTERS = f"""
-- every last_name fits into 50 characters
SELECT id FROM players.player
 WHERE length(({LAST_NAME})::text) > 50
 ORDER BY id
"""

TRIGGER_FUNCTION = f"""
CREATE OR REPLACE FUNCTION datamig.zz_datamig_acb189682a2d() RETURNS trigger
LANGUAGE plpgsql AS $datamig$
#variable_conflict use_column
BEGIN
    -- An application that writes the new columns itself is not overruled.
    IF TG_OP = 'INSERT' THEN
        IF num_nonnulls(NEW.first_name, NEW.last_name) > 0 THEN RETURN NEW; END IF;
    ELSIF (NEW.first_name, NEW.last_name) IS DISTINCT FROM (OLD.first_name, OLD.last_name) THEN
        RETURN NEW;
    END IF;
    SELECT {FIRST_NAME},
           {LAST_NAME}
      INTO NEW.first_name, NEW.last_name
      FROM (SELECT NEW.*) AS player;
    RETURN NEW;
END
$datamig$
"""

TRIGGER = """
CREATE OR REPLACE TRIGGER zz_datamig_acb189682a2d
BEFORE INSERT OR UPDATE OF full_name ON players.player
FOR EACH ROW EXECUTE FUNCTION datamig.zz_datamig_acb189682a2d()
"""

FILL_FIRST_NAME_LAST_NAME = f"""
UPDATE players.player
   SET first_name = {FIRST_NAME},
       last_name = {LAST_NAME}
 WHERE {{batch}}
   AND (first_name, last_name) IS DISTINCT FROM ({FIRST_NAME}, {LAST_NAME})
"""

FIRST_NAME_AND_LAST_NAME_HOLD_EVERY_LETTER_OF = r"""
-- first_name and last_name hold every letter of full_name
SELECT id FROM players.player
 WHERE regexp_replace(concat(first_name, last_name), '[\s\u00a0\u2007\u202f]', '', 'g')
       <> regexp_replace(full_name, '[\s\u00a0\u2007\u202f]', '', 'g')
 ORDER BY id
"""

EVERY_NAME_HAS_A_FIRST_NAME = r"""
-- every name has a first_name
SELECT id FROM players.player
 WHERE first_name IS NULL AND full_name ~ '[^\s\u00a0\u2007\u202f]'
 ORDER BY id
"""

FIRST_NAME_OF_PLAYERS_PLAYER_WITHOUT_NULL = """
-- first_name of players.player without NULL
SELECT id FROM players.player
 WHERE first_name IS NULL
 ORDER BY id
"""

FIRST_NAME_AND_LAST_NAME_NOT_EDITED_SINCE_THE = f"""
-- first_name and last_name not edited since the upgrade
SELECT id FROM players.player
 WHERE num_nonnulls(first_name, last_name) > 0
   AND (first_name, last_name) IS DISTINCT FROM ({FIRST_NAME}, {LAST_NAME})
 ORDER BY id
"""


# -------- functions


Result = TypeVar("Result")


# Loggers below this name keep the level and the handler that alembic.ini gives to [logger_alembic].
log = logging.getLogger("alembic.runtime.migration.datamig")


RUN_TABLE = """
CREATE TABLE IF NOT EXISTS datamig.run (
    revision     text        NOT NULL,
    step         text        NOT NULL,
    status       text        NOT NULL DEFAULT 'running',
    cursor       text,                                    -- last key done, as SQL literals
    scanned      bigint      NOT NULL DEFAULT 0,
    changed      bigint      NOT NULL DEFAULT 0,
    batches      bigint      NOT NULL DEFAULT 0,
    batch_rows   integer     NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (revision, step)
)
"""


@contextmanager
def own_commits() -> Generator[None]:
    """Leave Alembic's transaction: from here on each step and each batch commits by itself."""
    context = op.get_context()
    if context.as_sql:
        raise RuntimeError(f"{revision} works in batches that it measures; run it without --sql")
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(context.autocommit_block())
            except AssertionError:
                raise RuntimeError(
                    f"{revision} commits each batch, but env.py opened a transaction before"
                    " context.configure(); let Alembic open it, with context.begin_transaction()"
                ) from None
            execute("CREATE SCHEMA IF NOT EXISTS datamig")
            execute(RUN_TABLE)
            yield
    except PendingRollbackError as error:
        # Alembic could not end its block over a lost connection: tell what made it so.
        stopped_by = error.__context__
        if not isinstance(stopped_by, DBAPIError):  # Ctrl-C
            raise stopped_by or error from None
        raise RuntimeError(
            f"{revision} lost its connection: {str(stopped_by.orig).splitlines()[0]}; run Alembic"
            " again, it goes on where it was"
        ) from stopped_by


def preflight(*checks: str) -> None:
    """Check before the first write; a run that goes on after a stop was checked when it began."""
    started = execute(f"SELECT 1 FROM datamig.run WHERE revision = '{revision}' AND step = ''")
    if started.first() is None:
        for check in checks:
            require(check)
        begin("")


def finish() -> None:
    """Note that every step of the upgrade is done."""
    execute(f"UPDATE datamig.run SET status = 'succeeded' WHERE revision = '{revision}'")


def forget() -> None:
    """Remove what was noted of this revision, so that it can start afresh."""
    execute(f"DELETE FROM datamig.run WHERE revision = '{revision}'")


def step(change: Callable[[], object]) -> None:
    """Make one schema change in a transaction of its own; wait for its lock briefly, and again."""

    def once() -> None:
        with transaction():
            change()

    with_retries(once)


def require(check: str) -> None:
    """Refuse to go on while the check's query returns rows; its first line says what holds."""
    name = check.strip().splitlines()[0].removeprefix("-- ")
    rows = execute(
        f"SELECT count(*) OVER (), failing::text FROM (\n{check.strip()}\n) AS failing LIMIT 5"
    ).all()
    if rows:
        rewind()
        first = ", ".join(str(tuple(row)[1]) for row in rows)
        raise RuntimeError(
            f"{revision} stopped, for it requires: {name}; {rows[0][0]} rows fail, the first"
            f" {first}; repair them and run Alembic again, it goes on here"
        )
    log.info("checked: %s", name)


def require_unedited(table: str, columns: tuple[str, ...], check: str) -> None:
    """Refuse to drop edited values; columns that a stopped run dropped already are passed over."""
    listed = ", ".join(map(quoted, columns))
    there = execute(
        f"SELECT count(*) FROM pg_attribute WHERE attrelid = {quoted(table)}::regclass"
        f" AND attname IN ({listed}) AND NOT attisdropped"
    )
    if there.scalar_one() == len(columns):
        require(check)


def rewind() -> None:
    """Let the next run look at every row again: the rows that fail will be repaired."""
    execute(f"UPDATE datamig.run SET cursor = NULL WHERE revision = '{revision}'")


def set_not_null(table: str, column: str, constraint: str) -> None:
    """Make a column NOT NULL; a CHECK that is proven first spares the scan under a strong lock."""
    add_check(table, constraint, f"{column} IS NOT NULL")
    step(lambda: execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL"))
    step(lambda: execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}"))


def add_check(table: str, constraint: str, condition: str) -> None:
    """Add a CHECK for new rows first, then prove it for the old ones without blocking writers."""
    drop = f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {constraint}"
    add = f"ALTER TABLE {table} ADD CONSTRAINT {constraint} CHECK ({condition}) NOT VALID"
    step(lambda: execute(drop))
    step(lambda: execute(add))
    try:
        step(lambda: execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {constraint}"))
    except IntegrityError as error:
        step(lambda: execute(drop))  # left there, it would refuse every update of these rows
        rewind()
        failing = f"SELECT * FROM {table} WHERE NOT ({' '.join(condition.split())})"
        raise RuntimeError(
            f"{revision} stopped, for rows break {constraint}; find them with {failing}, repair"
            " them and run Alembic again, it goes on here"
        ) from error


def run_batches(name: str, table: str, key: tuple[str, ...], update: str) -> None:
    """Walk the table by its key; each batch commits together with its row in datamig.run."""
    begin(name)
    estimate = execute(
        f"SELECT reltuples::bigint FROM pg_class WHERE oid = {quoted(table)}::regclass"
    )
    total, shown = estimate.scalar_one(), time.monotonic()
    while with_retries(lambda: one_batch(name, table, key, update)):
        if time.monotonic() - shown > 2:
            shown = time.monotonic()
            log.info("%s: %s, of about %d", name, progress(name), total)
    log.info("%s: %s, all", name, progress(name))


def begin(name: str) -> None:
    """Note the start; where an earlier run stopped, its cursor stays and the walk goes on there."""
    execute(
        "INSERT INTO datamig.run (revision, step, batch_rows)"
        f" VALUES ('{revision}', {quoted(name)}, {FIRST_BATCH_ROWS})"
        " ON CONFLICT (revision, step) DO UPDATE SET status = 'running'"
    )


def one_batch(name: str, table: str, key: tuple[str, ...], update: str) -> bool:
    """Do the batch after the cursor and move the cursor in one transaction; False at the end."""
    keys = ", ".join(key)
    this_run = f"revision = '{revision}' AND step = {quoted(name)}"
    with transaction():
        # The lock makes a second process wait, then go on behind this batch.
        run = execute(f"SELECT * FROM datamig.run WHERE {this_run} FOR UPDATE").mappings().one()
        rows, after = run["batch_rows"], "TRUE"
        if run["cursor"] is not None:
            after = f"({keys}) > ({run['cursor']})"
        last = (
            execute(
                f"SELECT concat_ws(', ', {', '.join(f'quote_literal({part})' for part in key)})"
                f" AS key, count(*) OVER () AS rows FROM (SELECT {keys} FROM {table} WHERE {after}"
                f" ORDER BY {keys} LIMIT {rows}) AS batch"
                f" ORDER BY {', '.join(f'batch.{part} DESC' for part in key)} LIMIT 1"
            )
            .mappings()
            .first()
        )
        if last is None:
            execute(f"UPDATE datamig.run SET status = 'succeeded' WHERE {this_run}")
            return False
        started = time.monotonic()
        batch = f"{after} AND ({keys}) <= ({last['key']})"
        changed = execute(update.replace("{batch}", batch)).rowcount
        seconds = time.monotonic() - started
        execute(
            f"UPDATE datamig.run SET cursor = {quoted(last['key'])},"
            f" scanned = scanned + {last['rows']}, changed = changed + {changed},"
            f" batches = batches + 1, batch_rows = {next_batch_rows(rows, seconds)},"
            f" heartbeat_at = clock_timestamp() WHERE {this_run}"
        )
    return True


def next_batch_rows(rows: int, seconds: float) -> int:
    """Rows of the next batch, toward BATCH_SECONDS: at most half as many again, down at once."""
    wanted = rows * min(1.5, BATCH_SECONDS / max(seconds, 0.001))
    return min(MOST_BATCH_ROWS, max(100, int(wanted)))


def progress(name: str) -> str:
    """What datamig.run says of a walk, in words."""
    run = execute(
        "SELECT format('%s rows scanned, %s changed, in %s batches', scanned, changed, batches)"
        f" FROM datamig.run WHERE revision = '{revision}' AND step = {quoted(name)}"
    )
    return str(run.scalar_one())


def with_retries(work: Callable[[], Result]) -> Result:
    """Do the work; where a lock was not to be had, wait longer each time and do it again."""
    attempt = 1
    while True:
        try:
            return work()
        except DBAPIError as error:
            state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
            if state not in RETRIED:
                raise
            reason = str(error.orig).splitlines()[0]
            if attempt >= ATTEMPTS:
                raise RuntimeError(
                    f"{revision} gave up after {ATTEMPTS} attempts: {reason}; find out in"
                    " pg_stat_activity who holds the lock, and run Alembic again, it goes on here"
                ) from error
            wait = random.uniform(0.5, 1.0) * min(10.0, 0.1 * 2**attempt)
            log.warning("%s, attempt %d, again in %.1f s", reason, attempt, wait)
            time.sleep(wait)
            attempt += 1


@contextmanager
def transaction() -> Generator[None]:
    """BEGIN and COMMIT by hand: inside autocommit_block() the driver sends neither."""
    execute("BEGIN")
    try:
        execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        yield
    except BaseException:
        if not op.get_bind().invalidated:  # else the connection is gone, and its work with it
            execute("ROLLBACK")
        raise
    execute("COMMIT")


def execute(statement: str) -> sa.CursorResult[Any]:
    """Send a statement as it stands: no bind parameters, so ':' and '%' are themselves."""
    return op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})


def quoted(text: str) -> str:
    """The text as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"

"""Map status of guide.user to state.

Revision ID: 6267b1e5d98c
Revises:
Create Date: (when it was rendered)

Upgrade
    1. check first: every status of guide.user has a new value
    2. create the enum type guide.user_state ('active', 'inactive', 'suspended', 'pending',
       'unknown')
    3. add the column state guide.user_state to guide.user
    4. keep state of guide.user in step with a trigger
    5. fill state of guide.user, every row, in batches
    6. check that: state of guide.user is what the map says
    7. check that: state of guide.user holds only 'active', 'inactive', 'suspended', 'pending',
       'unknown'
    8. check that: state of guide.user without NULL
    9. make state of guide.user NOT NULL, without a long lock

Downgrade
    drops state of guide.user, unless a value there was edited since (then it stops and names the
    rows); nothing else was changed.

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
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError

revision = "6267b1e5d98c"
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
    """Map status of guide.user to state."""
    with own_commits():
        preflight(
            NO_COLUMN_STATE_YET,
            NO_TYPE_GUIDE_USER_STATE_YET,
            EVERY_STATUS_OF_GUIDE_USER_HAS_A_NEW_VALUE,
            NO_STATE_BECOMES_NULL,
        )
        create_enum("guide.user_state", "'active', 'inactive', 'suspended', 'pending', 'unknown'")
        step(
            lambda: op.add_column(
                "user",
                sa.Column(
                    "state",
                    postgresql.ENUM(
                        "active",
                        "inactive",
                        "suspended",
                        "pending",
                        "unknown",
                        name="user_state",
                        create_type=False,
                        schema="guide",
                    ),
                    nullable=True,
                ),
                schema="guide",
                if_not_exists=True,
            )
        )
        step(lambda: execute(TRIGGER_FUNCTION))
        step(lambda: execute(TRIGGER))
        run_batches("fill state", 'guide."user"', ("id",), FILL_STATE)
        require(STATE_OF_GUIDE_USER_IS_WHAT_THE_MAP_SAYS)
        require(STATE_OF_GUIDE_USER_HOLDS_ONLY_ACTIVE)
        require(STATE_OF_GUIDE_USER_WITHOUT_NULL)
        set_not_null('guide."user"', "state", "state_not_null")
        finish()


def downgrade() -> None:
    """Undo: map status of guide.user to state."""
    with own_commits():
        require_unedited('guide."user"', ("state",), STATE_NOT_EDITED_SINCE_THE_UPGRADE)
        step(lambda: execute('DROP TRIGGER IF EXISTS zz_datamig_6267b1e5d98c ON guide."user"'))
        step(lambda: execute("DROP FUNCTION IF EXISTS datamig.zz_datamig_6267b1e5d98c()"))
        step(lambda: op.drop_column("user", "state", schema="guide", if_exists=True))
        step(lambda: execute("DROP TYPE IF EXISTS guide.user_state"))
        forget()


# -------- SQL

STATE = """(CASE
    WHEN status IN ('enabled', 'Enabled', 'enabled ') THEN 'active'
    WHEN status IN ('disabled', 'archived') THEN 'inactive'
    WHEN status = 'suspended' THEN 'suspended'
    WHEN status = 'pending_activation' THEN 'pending'
    WHEN status IS NULL OR status = '' THEN 'unknown'
END)::guide.user_state"""

NO_COLUMN_STATE_YET = """
-- no column state yet
SELECT attname FROM pg_attribute
 WHERE attrelid = 'guide."user"'::regclass
   AND attname IN ('state') AND NOT attisdropped
"""

NO_TYPE_GUIDE_USER_STATE_YET = """
-- no type guide.user_state yet
SELECT to_regtype('guide.user_state') AS type
 WHERE to_regtype('guide.user_state') IS NOT NULL
"""

EVERY_STATUS_OF_GUIDE_USER_HAS_A_NEW_VALUE = """
-- every status of guide.user has a new value
SELECT id FROM guide."user"
 WHERE status NOT IN (
           'enabled', 'Enabled', 'enabled ', 'disabled', 'archived', 'suspended',
           'pending_activation', ''
       )
 ORDER BY id
"""

NO_STATE_BECOMES_NULL = """
-- no state becomes NULL
SELECT id FROM guide."user"
 WHERE (CASE
           WHEN status IN ('enabled', 'Enabled', 'enabled ') THEN 'active'
           WHEN status IN ('disabled', 'archived') THEN 'inactive'
           WHEN status = 'suspended' THEN 'suspended'
           WHEN status = 'pending_activation' THEN 'pending'
           WHEN status IS NULL OR status = '' THEN 'unknown'
       END) IS NULL
 ORDER BY id
"""

TRIGGER_FUNCTION = f"""
CREATE OR REPLACE FUNCTION datamig.zz_datamig_6267b1e5d98c() RETURNS trigger
LANGUAGE plpgsql AS $datamig$
#variable_conflict use_column
BEGIN
    -- An application that writes the new columns itself is not overruled.
    IF TG_OP = 'INSERT' THEN
        IF num_nonnulls(NEW.state) > 0 THEN RETURN NEW; END IF;
    ELSIF NEW.state IS DISTINCT FROM (OLD.state) THEN
        RETURN NEW;
    END IF;
    SELECT {STATE}
      INTO NEW.state
      FROM (SELECT NEW.*) AS "user";
    RETURN NEW;
END
$datamig$
"""

TRIGGER = """
CREATE OR REPLACE TRIGGER zz_datamig_6267b1e5d98c
BEFORE INSERT OR UPDATE OF status ON guide."user"
FOR EACH ROW EXECUTE FUNCTION datamig.zz_datamig_6267b1e5d98c()
"""

FILL_STATE = f"""
UPDATE guide."user"
   SET state = {STATE}
 WHERE {{batch}}
   AND state IS DISTINCT FROM ({STATE})
"""

STATE_OF_GUIDE_USER_IS_WHAT_THE_MAP_SAYS = """
-- state of guide.user is what the map says
SELECT id FROM guide."user"
 WHERE state::text IS DISTINCT FROM (
           SELECT new_value
             FROM (VALUES
               ('enabled', 'active'),
               ('Enabled', 'active'),
               ('enabled ', 'active'),
               ('disabled', 'inactive'),
               ('archived', 'inactive'),
               ('suspended', 'suspended'),
               ('pending_activation', 'pending'),
               ('', 'unknown'),
               (NULL, 'unknown')
             ) AS value_map (old_value, new_value)
            WHERE old_value IS NOT DISTINCT FROM "user".status
       )
 ORDER BY id
"""

STATE_OF_GUIDE_USER_HOLDS_ONLY_ACTIVE = """
-- state of guide.user holds only 'active', 'inactive', 'suspended', 'pending', 'unknown'
SELECT id FROM guide."user"
 WHERE state::text NOT IN ('active', 'inactive', 'suspended', 'pending', 'unknown')
 ORDER BY id
"""

STATE_OF_GUIDE_USER_WITHOUT_NULL = """
-- state of guide.user without NULL
SELECT id FROM guide."user"
 WHERE state IS NULL
 ORDER BY id
"""

STATE_NOT_EDITED_SINCE_THE_UPGRADE = f"""
-- state not edited since the upgrade
SELECT id FROM guide."user"
 WHERE num_nonnulls(state) > 0
   AND state IS DISTINCT FROM ({STATE})
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


def create_enum(name: str, labels: str) -> None:
    """Create an enum type unless an earlier run did."""
    there = execute(f"SELECT to_regtype({quoted(name)})").scalar_one()
    if there is None:
        step(lambda: execute(f"CREATE TYPE {name} AS ENUM ({labels})"))


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

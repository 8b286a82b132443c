"""Map manufacturer of flights.planes to maker.

Revision ID: b2ee9e41f38d
Revises:
Create Date: (when it was rendered)

Upgrade
    1. add the column maker VARCHAR to flights.planes
    2. keep maker of flights.planes in step with a trigger
    3. fill maker of flights.planes, every row, in batches
    4. check that: maker of flights.planes is what the map says

Downgrade
    drops maker of flights.planes, unless a value there was edited since (then it stops and names
    the rows); nothing else was changed.

Each step and each batch of rows commits by itself, a batch together with its row in datamig.run:
stopped at any point, the upgrade goes on where it was when Alembic runs again.  No statement waits
for a lock longer than LOCK_TIMEOUT or holds a strong one while it reads the table.

Written by datamig_nb; needs Alembic and PostgreSQL 14 or newer, nothing else.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from threading import Event
from typing import Any

from alembic import op
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError

revision = "b2ee9e41f38d"
down_revision = None
branch_labels = None
depends_on = None

LOCK_TIMEOUT = "2s"  # how long a statement may queue for a lock, and others behind it
ATTEMPTS = 10  # at one step or batch, before giving up
FIRST_BATCH_ROWS = 2_000
LEAST_BATCH_ROWS = 100
MOST_BATCH_ROWS = 50_000
ALONE_SECONDS = 0.5  # what a batch should take while nobody else writes to the table
SHARED_SECONDS = 0.02  # and what while somebody does, who would have to wait for it
STRETCH_SECONDS = 0.2  # of batches, before the client looks again whether it is still wanted
PASSES = 6  # of a woven walk over each window of pages
WINDOW_PAGES = 3_000
WOVEN_FROM_PAGES = 1_000  # of a table; a smaller one is walked by its key


def upgrade() -> None:
    """Map manufacturer of flights.planes to maker."""
    with own_commits():
        preflight("upgrade", NO_COLUMN_MAKER_OF_FLIGHTS_PLANES_YET, THIS_SESSION_SEES_EVERY_ROW)
        step("ALTER TABLE flights.planes ADD COLUMN IF NOT EXISTS maker VARCHAR")
        step(TRIGGER_FUNCTION)
        step(TRIGGER)
        run_batches(
            "fill maker",
            "flights.planes",
            ("tailnum",),
            FILL_MAKER,
            remaining=MAKER_LEFT,
            woven="hash_record(ROW(tailnum))",
        )
        require(MAKER_OF_FLIGHTS_PLANES_IS_WHAT_THE_MAP_SAYS)
        finish()


def downgrade() -> None:
    """Undo: map manufacturer of flights.planes to maker."""
    with own_commits():
        preflight("downgrade", MAKER_NOT_EDITED_SINCE_THE_UPGRADE)
        step("DROP TRIGGER IF EXISTS zz_datamig_b2ee9e41f38d ON flights.planes")
        step("DROP FUNCTION IF EXISTS datamig.zz_datamig_b2ee9e41f38d()")
        step("ALTER TABLE IF EXISTS flights.planes DROP COLUMN IF EXISTS maker")
        forget()


# -------- SQL

MAKER = """CASE
    WHEN manufacturer = 'AIRBUS INDUSTRIE' THEN 'AIRBUS'
    WHEN manufacturer IN (
        'MCDONNELL DOUGLAS AIRCRAFT CO', 'MCDONNELL DOUGLAS CORPORATION'
    ) THEN 'MCDONNELL DOUGLAS'
    ELSE manufacturer
END"""

NO_COLUMN_MAKER_OF_FLIGHTS_PLANES_YET = """
-- no column maker of flights.planes yet
SELECT attrelid::regclass::text, attname FROM pg_attribute
 WHERE attrelid = to_regclass('flights.planes') AND attname = 'maker' AND NOT attisdropped
"""

THIS_SESSION_SEES_EVERY_ROW = """
-- this session sees every row, and has standard_conforming_strings on
SELECT current_user, current_setting('standard_conforming_strings')
 WHERE row_security_active('flights.planes')
    OR current_setting('standard_conforming_strings') <> 'on'
"""

TRIGGER_FUNCTION = f"""
CREATE OR REPLACE FUNCTION datamig.zz_datamig_b2ee9e41f38d() RETURNS trigger
LANGUAGE plpgsql AS $datamig$
#variable_conflict use_column
BEGIN
    -- An application that writes the new columns itself is not overruled.
    IF TG_OP = 'INSERT' THEN
        IF num_nonnulls(NEW.maker) > 0 THEN RETURN NEW; END IF;
    ELSIF NEW.maker IS DISTINCT FROM (OLD.maker) THEN
        RETURN NEW;
    END IF;
    SELECT {MAKER}
      INTO NEW.maker
      FROM (SELECT NEW.*) AS planes;
    RETURN NEW;
END
$datamig$
"""

TRIGGER = """
CREATE OR REPLACE TRIGGER zz_datamig_b2ee9e41f38d
BEFORE INSERT OR UPDATE OF manufacturer ON flights.planes
FOR EACH ROW EXECUTE FUNCTION datamig.zz_datamig_b2ee9e41f38d()
"""

MAKER_LEFT = f"""
SELECT count(*) FROM flights.planes
 WHERE maker IS NULL AND maker IS DISTINCT FROM ({MAKER})
"""

FILL_MAKER = f"""
UPDATE flights.planes
   SET maker = {MAKER}
 WHERE {{batch}}
   AND ({{sure}} AND maker IS NULL
        OR maker IS DISTINCT FROM ({MAKER}))
"""

MAKER_OF_FLIGHTS_PLANES_IS_WHAT_THE_MAP_SAYS = """
-- maker of flights.planes is what the map says
SELECT tailnum FROM flights.planes
 WHERE maker::text IS DISTINCT FROM CASE
           WHEN manufacturer IN (
               'AIRBUS INDUSTRIE', 'MCDONNELL DOUGLAS AIRCRAFT CO',
               'MCDONNELL DOUGLAS CORPORATION'
           ) THEN (
               SELECT new_value
                 FROM (VALUES
                   ('AIRBUS INDUSTRIE', 'AIRBUS'),
                   ('MCDONNELL DOUGLAS AIRCRAFT CO', 'MCDONNELL DOUGLAS'),
                   ('MCDONNELL DOUGLAS CORPORATION', 'MCDONNELL DOUGLAS')
                 ) AS value_map (old_value, new_value)
                WHERE old_value IS NOT DISTINCT FROM planes.manufacturer
           )
           ELSE manufacturer
       END
 ORDER BY tailnum
"""

MAKER_NOT_EDITED_SINCE_THE_UPGRADE = f"""
-- maker not edited since the upgrade
SELECT tailnum FROM flights.planes
 WHERE num_nonnulls(maker) > 0
   AND maker IS DISTINCT FROM ({MAKER})
 ORDER BY tailnum
"""


# -------- functions


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


def run_batches(name: str, table: str, key: tuple[str, ...], work: str, **more: Any) -> None:
    """Walk a table batch by batch; where an earlier run stopped, its row of datamig.run knows."""
    if passed():
        return
    begin(name, 1, table)
    go_on(name, 1, table, key, work, **more)


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


def this_run(name: str, part: int) -> str:
    """Condition: the row of datamig.run of this walk."""
    return f"(revision, step, part) = ('{revision}', {quoted(name)}, {part})"


RUN = """
CREATE TABLE IF NOT EXISTS datamig.run (
    revision text, step text, part integer,  -- part 0: an upgrade or a downgrade as a whole
    status text NOT NULL DEFAULT 'running',  -- paused, cancelled, failed, succeeded
    heap text, tables oid[], total bigint, cursor text, stop text,
    passes integer, page_rows float8, page_window bigint NOT NULL DEFAULT 0,
    pass integer NOT NULL DEFAULT 0, rounds integer NOT NULL DEFAULT 0,
    suspects bigint NOT NULL DEFAULT 0, retries integer NOT NULL DEFAULT 0,
    rest float8 NOT NULL DEFAULT 0, scanned bigint NOT NULL DEFAULT 0,
    changed bigint NOT NULL DEFAULT 0, batches bigint NOT NULL DEFAULT 0, batch_rows integer,
    sure boolean NOT NULL DEFAULT FALSE, statement text, note text, error text, pid integer,
    busy_at timestamptz, started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (revision, step, part)
)
"""


# Toward the time that a batch should take: half as many rows again at most, down at once.
NEXT_BATCH_ROWS = f"""
            greatest(least_rows, least({MOST_BATCH_ROWS}, run.batch_rows * least(1.5,
            CASE WHEN busy THEN {SHARED_SECONDS} ELSE {ALONE_SECONDS} END
            / greatest(seconds, 0.0001))))::integer"""


def literals(*key: str) -> str:
    """SQL that gives the parts of a key as SQL."""
    return " || ', ' || ".join(f"quote_literal(to_json({part}) #>> '{{}}')" for part in key)


def nth_key(parts: int) -> str:
    """A format of the query for the key of a row some rows on; of no other is a text made."""
    columns = [f"part_{number}" for number in range(parts)]
    return (
        f"SELECT {literals(*columns)} FROM (SELECT %1$s FROM %2$s WHERE %3$s ORDER BY %1$s"
        f" OFFSET %4$s LIMIT 1) AS last ({', '.join(columns)})"
    )


def walk(
    name: str, part: int, until: str, table: str, key: tuple[str, ...], work: str, **more: Any
) -> str:
    """Batches until a moment, each in one transaction with its row of datamig.run.

    The last key of a batch is found first, then the closed range up to it is worked on.  A woven
    walk passes PASSES times over each window of pages, each time for other rows: a pass finds room
    where the one before it left dead rows, so the table grows little and its indexes hardly.
    """
    keys, relation = ", ".join(key), more.get("relation", table)
    last = f"SELECT {literals(*key)} FROM {relation} ORDER BY {' DESC, '.join(key)} DESC LIMIT 1"
    return rf"""
DO $datamig$
#variable_conflict use_variable
DECLARE
    run datamig.run;  until timestamptz := {until};  relation text := {quoted(relation)};
    least_rows integer := {more.get("least_rows", LEAST_BATCH_ROWS)};
BEGIN
LOOP
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;  -- see the run as it is once it is locked
    PERFORM set_config('lock_timeout', '0', true),  -- another session's batch may take long
            set_config('row_security', 'off', true),  -- rather an error than rows unseen
            set_config('extra_float_digits', '1', true);  -- keys as text are exact
    SELECT * INTO STRICT run FROM datamig.run WHERE {this_run(name, part)} FOR UPDATE;
    PERFORM set_config('lock_timeout', '{LOCK_TIMEOUT}', true);
    <<batch>>
    DECLARE
        key text := {quoted(keys)};  nth_key text := {quoted(nth_key(len(key)))};
        n bigint;  done bigint;  span text;  ending text;  upper text;  statement text;
        state text := '';  began timestamptz := clock_timestamp();  seconds float8;  busy boolean;
        page bigint;  last_page bigint;
    BEGIN
        run.rest := 1;
        EXIT batch WHEN run.status <> 'running';
        run.rest := 0;
        BEGIN
            -- Where the walk ends is fixed before it begins: else writers could make it endless.
            IF run.stop IS NULL THEN
                WITH RECURSIVE tree (id) AS (
                    SELECT to_regclass(run.heap)::oid
                     UNION ALL SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = id
                )
                SELECT array_agg(oid), nullif(sum(greatest(reltuples, 0)), 0)
                  INTO run.tables, run.total FROM pg_class JOIN tree ON oid = id;
                EXECUTE {quoted(last)} INTO run.stop;
                SELECT max(pg_relation_size(id)) / current_setting('block_size')::integer
                  INTO page FROM unnest(run.tables) AS id;
                run.page_rows := greatest(1, coalesce(run.total, 60 * page) / greatest(1, page));
                IF {bool(more.get("woven"))} THEN
                    run.passes := CASE WHEN run.rounds = 0 AND page >= {WOVEN_FROM_PAGES}
                                        AND cardinality(run.tables) = 1 THEN {PASSES} ELSE 1 END;
                END IF;
                IF run.passes > 1 THEN
                    run.cursor := format('''(%s,0)''', run.page_window);
                    run.stop := format('''(%s,0)''', page);
                END IF;
            END IF;
            run.note := 'by ' || key;

            IF run.cursor IS NOT DISTINCT FROM run.stop THEN
                -- Look for rows that were written or moved behind the walk, or repaired.
                BEGIN
                    EXECUTE {quoted(more.get("remaining", "SELECT 0"))} INTO n;
                EXCEPTION WHEN data_exception OR raise_exception THEN
                    n := 1;  -- the walk will find the row, and name it
                END;
                IF n > 0 AND run.rounds < {ATTEMPTS} THEN
                    run.rounds := run.rounds + 1;
                    run.cursor := NULL;
                    run.stop := NULL;
                    run.page_window := 0;
                    EXIT batch;
                END IF;
                run.status := 'succeeded';
                run.note := nullif(n, 0) || ' rows written meanwhile are not done';
                EXIT batch;
            END IF;

            -- What is still to be walked: all up to the end, or this pass of a window up to its.
            ending := run.stop;
            IF run.passes > 1 THEN
                run.note := 'woven';
                key := 'ctid';
                nth_key := {quoted(nth_key(1))};
                last_page := least((btrim(ending, '''')::point)[0],
                                   run.page_window + {WINDOW_PAGES});
                ending := format('''(%s,0)''', last_page);
                span := format('abs(%s %% {PASSES}) = %s', {quoted(more.get("woven"))}, run.pass);
            END IF;
            span := concat_ws(' AND ', format('(%s) <= (%s)', key, ending),
                              '(' || key || ') > (' || run.cursor || ')', span);

            -- The last key of this batch.
            n := CASE WHEN run.suspects > 0 THEN (run.suspects + 1) / 2 ELSE run.batch_rows END;
            IF key = 'ctid' AND run.suspects = 0 THEN
                page := coalesce((btrim(run.cursor, '''')::point)[0], 0);
                last_page := least((btrim(ending, '''')::point)[0], page + greatest(1, least(
                    {WINDOW_PAGES // 2}, trunc(n * greatest(1, run.passes) / run.page_rows))));
                upper := format('''(%s,0)''', last_page);
                n := (last_page - page) * run.page_rows / greatest(1, run.passes);
            END IF;
            IF upper IS NULL THEN
                EXECUTE format(nth_key, key, relation, span, n - 1) INTO upper;
            END IF;
            IF upper IS NULL THEN
                upper := ending;
                EXECUTE format('SELECT count(*) FROM %s WHERE %s', relation, span) INTO n;
            END IF;
            -- In the place of the end: of two bounds an index scan may stop at the first only.
            span := replace(span, format('(%s) <= (%s)', key, ending),
                            format('(%s) <= (%s)', key, upper));

            statement := replace({quoted(work)}, '{{batch}}', span);
            -- Where nearly every row is changed, none is asked; one batch in 16 asks again.
            run.sure := run.sure AND run.batches % 16 > 0;
            statement := replace(statement, '{{sure}}', run.sure::text);
            EXECUTE statement;
            GET DIAGNOSTICS done = ROW_COUNT;
        EXCEPTION WHEN OTHERS OR query_canceled THEN
            GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, run.error = MESSAGE_TEXT;
            done := 0;
        END;
        IF state IN ('55P03', '40P01', '40001') OR state = '57014' AND run.error ~ ' timeout' THEN
            -- A lock was not to be had, or not in time: a shorter batch, a little later.
            run.retries := run.retries + 1;
            run.batch_rows := greatest({LEAST_BATCH_ROWS}, run.batch_rows / 2);
            run.rest := (0.5 + random() / 2) * least(10, 0.1 * 2 ^ run.retries);
            run.note := format('%s, attempt %s', run.error, run.retries);
            IF run.retries >= {ATTEMPTS} THEN
                run.status := 'failed';
                run.error := format('%s, {ATTEMPTS} times; %s', run.error,
                    CASE WHEN run.error ~ 'statement timeout' THEN 'set a longer statement_timeout'
                    ELSE 'find out in pg_stat_activity who holds the lock' END);
            END IF;
            EXIT batch;
        ELSIF state ~ '^(22|23|P0001)' AND upper IS NOT NULL THEN
            -- A row in here cannot be done: half of them next, until there are no fewer.
            EXECUTE format('SELECT count(*) FROM %s WHERE %s', relation, span) INTO n;
            IF run.suspects = 0 OR n < run.suspects THEN
                run.suspects := n;
                EXIT batch;
            END IF;
            EXECUTE format('SELECT ROW(%s)::text FROM %s WHERE %s', {quoted(keys)}, relation, span)
               INTO key;
            run.status := 'failed';
            run.error := format('row %s of %s cannot be done: %s', key, run.heap, run.error);
            EXIT batch WHEN run.status = 'failed';
        ELSIF state <> '' THEN
            RAISE EXCEPTION USING ERRCODE = state, MESSAGE = run.error;
        END IF;

        run.cursor := upper;
        run.suspects := greatest(0, run.suspects - n);
        run.retries := 0;
        run.scanned := run.scanned + n;
        run.changed := run.changed + done;
        run.batches := run.batches + 1;
        run.sure := run.sure OR done > 0.9 * n;
        IF run.passes > 1 AND upper = ending THEN
            run.pass := (run.pass + 1) % run.passes;
            run.page_window := CASE run.pass WHEN 0 THEN last_page ELSE run.page_window END;
            run.cursor := format('''(%s,0)''', run.page_window);
        END IF;

        -- Short batches while others write to the table: they may have to wait for our row locks.
        IF EXISTS (SELECT FROM pg_locks AS l WHERE l.relation = ANY (run.tables)
                      AND mode = 'RowExclusiveLock' AND pid <> pg_backend_pid()
                      AND pid NOT IN (SELECT r.pid FROM datamig.run AS r WHERE r.pid > 0
                                         AND r.revision = run.revision)) THEN
            run.busy_at := began;
        END IF;
        seconds := extract(epoch FROM clock_timestamp() - began);
        IF n >= run.batch_rows / 2 OR run.statement IS NULL THEN
            run.statement := statement;  -- for whoever wants to see its plan
            busy := coalesce(run.busy_at > began - interval '5 seconds', FALSE);
            run.batch_rows := {NEXT_BATCH_ROWS.strip()};
        END IF;
    END batch;
    UPDATE datamig.run AS r
       SET status = run.status, tables = run.tables, total = run.total, cursor = run.cursor,
           stop = run.stop, passes = run.passes, page_rows = run.page_rows, sure = run.sure,
           page_window = run.page_window, pass = run.pass, rounds = run.rounds,
           suspects = run.suspects, retries = run.retries, rest = run.rest, scanned = run.scanned,
           changed = run.changed, batches = run.batches, batch_rows = run.batch_rows,
           statement = run.statement, note = run.note, error = run.error, busy_at = run.busy_at,
           pid = pg_backend_pid(), heartbeat_at = clock_timestamp()
     WHERE (r.revision, r.step, r.part) = (run.revision, run.step, run.part);
    COMMIT;
    EXIT WHEN run.status NOT IN ('running', 'paused') OR clock_timestamp() >= until;
    PERFORM pg_sleep(run.rest);
END LOOP;
END
$datamig$"""


def execute(statement: str, bind: Any = None) -> Any:
    """Send a statement as it stands: no bind parameters, so ':' and '%' are themselves."""
    context = op.get_context()
    if context.as_sql:
        return context.impl.static_output(statement.strip() + ";")
    options = {"no_parameters": True}
    return (bind or op.get_bind()).exec_driver_sql(statement, execution_options=options)


def quoted(text: object) -> str:
    """The text as a SQL literal."""
    return "'" + str(text).replace("'", "''") + "'"

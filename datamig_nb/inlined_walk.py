"""The walk of a table as the database does it, and the tables that remember it; for revisions."""

from __future__ import annotations

from typing import Any

from datamig_nb.inlined_sql import (
    ALONE_SECONDS,
    ATTEMPTS,
    LEAST_BATCH_ROWS,
    LOCK_TIMEOUT,
    MOST_BATCH_ROWS,
    PASSES,
    SHARED_SECONDS,
    WINDOW_PAGES,
    WOVEN_FROM_PAGES,
    quoted,
    revision,
)


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

QUARANTINE = """
CREATE TABLE IF NOT EXISTS datamig.quarantine (
    revision text, step text, relation text, key text, sqlstate text, message text,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (revision, step, key)
)
"""

CONFLICT = """
CREATE TABLE IF NOT EXISTS datamig.conflict (
    revision text, relation text, key text, before jsonb, after jsonb, found jsonb,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp()
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


# The first of several literals.
FIRST = r"^E?'(?:[^']|'')*'"


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
    # only with ctid
    last = "SELECT NULL" if keys == "ctid" else last
    # end
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
        -- only with once
        made text := {quoted(more.get("rows", ""))};  -- table that is made for this walk
        -- end
        -- only with role
        role text := {quoted(more.get("role", "origin"))};
        -- end
        -- only with woven or ctid
        page bigint;  last_page bigint;
        -- end
    BEGIN
        run.rest := 1;
        EXIT batch WHEN run.status <> 'running';
        -- only with kept
        IF to_regclass({quoted(more.get("kept", table))}) IS NULL THEN
            run.status := 'succeeded';  -- an earlier run put all back, and dropped it
            EXIT batch;
        END IF;
        -- end
        -- only with hold
        EXECUTE {quoted(more.get("hold", "SELECT NULL"))} INTO run.note;  -- what to wait for
        EXIT batch WHEN run.note IS NOT NULL;
        -- end
        run.rest := 0;
        BEGIN
            -- Where the walk ends is fixed before it begins: else writers could make it endless.
            IF run.stop IS NULL THEN
                -- only with once
                IF made <> '' THEN EXECUTE {quoted(more.get("once", ""))}; END IF;
                -- end
                WITH RECURSIVE tree (id) AS (
                    SELECT to_regclass(run.heap)::oid
                     UNION ALL SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = id
                )
                SELECT array_agg(oid), nullif(sum(greatest(reltuples, 0)), 0)
                  INTO run.tables, run.total FROM pg_class JOIN tree ON oid = id;
                EXECUTE {quoted(last)} INTO run.stop;
                -- only with least_rows
                run.batch_rows := greatest(run.batch_rows, least_rows);
                -- end
                -- only with woven or ctid
                SELECT max(pg_relation_size(id)) / current_setting('block_size')::integer
                  INTO page FROM unnest(run.tables) AS id;
                run.page_rows := greatest(1, coalesce(run.total, 60 * page) / greatest(1, page));
                -- end
                -- only with ctid
                IF key = 'ctid' THEN run.stop := format('''(%s,0)''', page); END IF;
                -- end
                -- only with woven
                IF {bool(more.get("woven"))} THEN
                    run.passes := CASE WHEN run.rounds = 0 AND page >= {WOVEN_FROM_PAGES}
                                        AND cardinality(run.tables) = 1 THEN {PASSES} ELSE 1 END;
                END IF;
                IF run.passes > 1 THEN
                    -- only with connections
                    run.page_window := page * ({part} - 1) / {more.get("connections", 1)};
                    page := page * {part} / {more.get("connections", 1)};
                    run.total := run.total / {more.get("connections", 1)};
                    -- end
                    run.cursor := format('''(%s,0)''', run.page_window);
                    run.stop := format('''(%s,0)''', page);
                END IF;
                -- end
                -- only with connections
                IF run.passes = 1 AND {part} < {more.get("connections", 1)} THEN
                    run.status := 'succeeded';  -- by key, the last one has all
                    EXIT batch;
                END IF;
                -- end
                -- only with once
                EXIT batch WHEN made <> '' AND run.stop IS NOT NULL;  -- commit what was made
                -- end
            END IF;
            run.note := 'by ' || key;

            IF run.cursor IS NOT DISTINCT FROM run.stop THEN
                -- only with remaining
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
                -- end
                -- only with once
                IF made <> '' THEN EXECUTE 'DROP TABLE IF EXISTS ' || made; END IF;
                -- end
                run.status := 'succeeded';
                run.note := nullif(n, 0) || ' rows written meanwhile are not done';
                EXIT batch;
            END IF;

            -- What is still to be walked: all up to the end, or this pass of a window up to its.
            ending := run.stop;
            -- only with woven
            IF run.passes > 1 THEN
                run.note := 'woven';
                key := 'ctid';
                nth_key := {quoted(nth_key(1))};
                last_page := least((btrim(ending, '''')::point)[0],
                                   run.page_window + {WINDOW_PAGES});
                ending := format('''(%s,0)''', last_page);
                span := format('abs(%s %% {PASSES}) = %s', {quoted(more.get("woven"))}, run.pass);
            END IF;
            -- end
            span := concat_ws(' AND ', format('(%s) <= (%s)', key, ending),
                              '(' || key || ') > (' || run.cursor || ')', span);

            -- The last key of this batch.
            n := CASE WHEN run.suspects > 0 THEN (run.suspects + 1) / 2 ELSE run.batch_rows END;
            -- only with woven or ctid
            IF key = 'ctid' AND run.suspects = 0 THEN
                page := coalesce((btrim(run.cursor, '''')::point)[0], 0);
                last_page := least((btrim(ending, '''')::point)[0], page + greatest(1, least(
                    {WINDOW_PAGES // 2}, trunc(n * greatest(1, run.passes) / run.page_rows))));
                upper := format('''(%s,0)''', last_page);
                n := (last_page - page) * run.page_rows / greatest(1, run.passes);
            END IF;
            -- end
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
            -- only with composite
            -- Of rows compared with rows PostgreSQL expects too many, and would read all the table.
            IF key <> 'ctid' THEN
                span := concat_ws(
                    ' AND ', span,
                    {quoted(key[0])} || ' >= ' || substring(run.cursor FROM {quoted(FIRST)}),
                    {quoted(key[0])} || ' <= ' || substring(upper FROM {quoted(FIRST)}));
            END IF;
            -- end

            -- only with role
            PERFORM set_config('session_replication_role', role, true)
              WHERE role <> current_setting('session_replication_role');
            -- end
            statement := replace({quoted(work)}, '{{batch}}', span);
            -- only with partner
            -- PostgreSQL does not conclude from the row's range to that of its partner.
            statement := replace(statement, '{{partner}}',
                                 replace(span, '(' || key || ')', {quoted(more.get("partner"))}));
            -- end
            -- only with woven
            -- Where nearly every row is changed, none is asked; one batch in 16 asks again.
            run.sure := run.sure AND run.batches % 16 > 0;
            statement := replace(statement, '{{sure}}', run.sure::text);
            -- end
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
            -- only with quarantine_rows
            INSERT INTO datamig.quarantine
            SELECT run.revision, run.step, run.heap, key, state, run.error
             WHERE {more.get("quarantine_rows", 0)} > (
                       SELECT count(*) FROM datamig.quarantine AS q
                        WHERE (q.revision, q.step) = (run.revision, run.step) AND q.key <> key)
                ON CONFLICT ON CONSTRAINT quarantine_pkey DO UPDATE SET message = run.error;
            run.status := CASE WHEN FOUND THEN 'running' ELSE 'failed' END;
            -- end
            run.error := format('row %s of %s cannot be done: %s', key, run.heap, run.error);
            -- only with once
            IF made <> '' AND run.status = 'failed' THEN
                run.stop := NULL;  -- once the row is repaired, read it again
            END IF;
            -- end
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
        -- only with woven
        run.sure := run.sure OR done > 0.9 * n;
        IF run.passes > 1 AND upper = ending THEN
            run.pass := (run.pass + 1) % run.passes;
            run.page_window := CASE run.pass WHEN 0 THEN last_page ELSE run.page_window END;
            run.cursor := format('''(%s,0)''', run.page_window);
        END IF;
        -- end

        -- Short batches while others write to the table: they may have to wait for our row locks.
        IF EXISTS (SELECT FROM pg_locks AS l WHERE l.relation = ANY (run.tables)
                      AND mode = 'RowExclusiveLock' AND pid <> pg_backend_pid()
                      AND pid NOT IN (SELECT r.pid FROM datamig.run AS r WHERE r.pid > 0
                                         AND r.revision = run.revision)) THEN
            run.busy_at := began;
        END IF;
        seconds := extract(epoch FROM clock_timestamp() - began);
        -- only with rest_share
        run.rest := seconds * {more.get("rest_share", 0)};
        -- end
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

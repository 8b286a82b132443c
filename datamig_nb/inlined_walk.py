"""The walk of a table as the database does it, and the tables that remember it; for revisions."""

from __future__ import annotations

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
    heap text, relation text, key text[], work text, remaining text, woven text,
    hold text, rest_share float8 NOT NULL DEFAULT 0, quarantine_rows bigint NOT NULL DEFAULT 0,
    connections integer NOT NULL DEFAULT 1, role text NOT NULL DEFAULT 'origin', tables oid[],
    partner text, least_rows integer,
    walked_by text[], passes integer NOT NULL DEFAULT 1, page_rows float8,
    sure boolean NOT NULL DEFAULT FALSE,  -- that nearly every row has to be changed
    cursor text, stop text, page_window bigint NOT NULL DEFAULT 0, pass integer NOT NULL DEFAULT 0,
    rounds integer NOT NULL DEFAULT 0, suspects bigint NOT NULL DEFAULT 0,
    retries integer NOT NULL DEFAULT 0, rest float8 NOT NULL DEFAULT 0, total bigint,
    scanned bigint NOT NULL DEFAULT 0, changed bigint NOT NULL DEFAULT 0,
    batches bigint NOT NULL DEFAULT 0, batch_rows integer, note text, error text, pid integer,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(), busy_at timestamptz,
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
            greatest(run.least_rows, least({MOST_BATCH_ROWS}, batch_rows * least(1.5,
            CASE WHEN busy THEN {SHARED_SECONDS} ELSE {ALONE_SECONDS} END
            / greatest(seconds, 0.0001))))::integer"""


def walk(name: str, part: int, until: str) -> str:
    """Batches until a moment, each in one transaction with its row of datamig.run.

    The last key of a batch is found first, then the closed range up to it is worked on.  A woven
    walk passes PASSES times over each window of pages, each time for other rows: a pass finds room
    where the one before it left dead rows, so the table grows little and its indexes hardly.
    """
    return rf"""
DO $datamig$
#variable_conflict use_variable
DECLARE
    run datamig.run;  began timestamptz;  seconds float8;  busy boolean;  batch_rows bigint;
    n bigint;  done bigint;  state text;  page bigint;  last_page bigint;  this_pass text;
    key text;  key_text text;  span text;  ending text;  upper text;  statement text;
    until timestamptz := {until};
BEGIN
LOOP
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;  -- see the run as it is once it is locked
    began := clock_timestamp();
    PERFORM set_config('lock_timeout', '0', true),  -- another session's batch may take long
            set_config('row_security', 'off', true),  -- rather an error than rows unseen
            set_config('extra_float_digits', '1', true);  -- keys as text are exact
    SELECT * INTO STRICT run FROM datamig.run WHERE {this_run(name, part)} FOR UPDATE;
    PERFORM set_config('lock_timeout', '{LOCK_TIMEOUT}', true);
    <<batch>>
    BEGIN
        run.rest := 1;
        EXIT batch WHEN run.status <> 'running';
        -- only with relation
        IF run.relation LIKE 'datamig.kept%'
           AND to_regclass(split_part(run.relation, ' ', 1)) IS NULL THEN
            run.status := 'succeeded';  -- an earlier run put all back, and dropped it
            EXIT batch;
        END IF;
        -- end
        -- only with hold
        IF run.hold IS NOT NULL THEN
            EXECUTE run.hold INTO run.note;  -- what to wait for, or NULL
            EXIT batch WHEN run.note IS NOT NULL;
        END IF;
        -- end
        run.rest := 0;
        state := '';
        upper := NULL;
        this_pass := NULL;
        BEGIN
            -- Where the walk ends is fixed before it begins: else writers could make it endless.
            IF run.stop IS NULL THEN
                WITH RECURSIVE tree (id) AS (
                    SELECT to_regclass(run.heap)::oid
                     UNION ALL SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = id
                )
                SELECT array_agg(oid), nullif(sum(greatest(reltuples, 0)), 0),
                       max(pg_relation_size(oid)) / current_setting('block_size')::integer
                  INTO run.tables, run.total, last_page FROM pg_class JOIN tree ON oid = id;
                run.walked_by := run.key;
                -- only with woven or ctid
                run.page_rows := greatest(1, coalesce(run.total, 60 * last_page)
                                             / greatest(1, last_page));
                -- end
                -- only with woven
                run.passes := CASE WHEN run.rounds = 0 AND run.woven IS NOT NULL
                                        AND last_page >= {WOVEN_FROM_PAGES}
                                        AND cardinality(run.tables) = 1
                                   THEN {PASSES} ELSE 1 END;
                IF run.passes > 1 THEN
                    run.walked_by := '{{ctid}}';
                    -- only with connections
                    run.page_window := last_page * (run.part - 1) / run.connections;
                    last_page := last_page * run.part / run.connections;
                    run.total := run.total / run.connections;
                    -- end
                    run.cursor := quote_literal(format('(%s,0)', run.page_window));
                END IF;
                -- end
                -- only with connections
                IF run.passes = 1 AND run.part < run.connections THEN
                    run.status := 'succeeded';  -- by key, the last one has all
                    EXIT batch;
                END IF;
                -- end
            END IF;
            key := array_to_string(run.walked_by, ', ');
            run.note := 'by ' || key;
            SELECT string_agg(format('quote_literal(to_json(%s) #>> ''{{}}'')', part),
                              ' || '', '' || ') INTO key_text FROM unnest(run.walked_by) AS part;
            IF run.stop IS NULL AND run.walked_by <> '{{ctid}}' THEN
                EXECUTE format('SELECT %s FROM %s ORDER BY %s DESC LIMIT 1', key_text, run.relation,
                               array_to_string(run.walked_by, ' DESC, ')) INTO run.stop;
            END IF;
            -- only with woven or ctid
            IF run.walked_by = '{{ctid}}' THEN
                run.stop := coalesce(run.stop, quote_literal(format('(%s,0)', last_page)));
                last_page := (btrim(run.stop, '''')::point)[0];
            END IF;
            -- end

            IF run.cursor IS NOT DISTINCT FROM run.stop THEN
                -- only with remaining
                -- Look for rows that were written or moved behind the walk, or repaired.
                n := 0;
                IF run.remaining IS NOT NULL THEN
                    BEGIN
                        EXECUTE run.remaining INTO n;
                    EXCEPTION WHEN data_exception OR raise_exception THEN
                        n := 1;  -- the walk will find the row, and name it
                    END;
                END IF;
                -- end
                run.status := 'succeeded';  -- not before: an error would leave it so
                run.note := NULL;
                -- only with remaining
                IF n > 0 AND run.rounds >= {ATTEMPTS} THEN
                    run.note := n || ' rows written meanwhile are not done';
                ELSIF n > 0 THEN
                    run.status := 'running';
                    run.note := 'by ' || key;
                    run.rounds := run.rounds + 1;
                    run.cursor := NULL;
                    run.stop := NULL;
                    run.page_window := 0;
                END IF;
                -- end
                EXIT batch;
            END IF;

            -- What is still to be walked: all up to the end, or this pass of a window up to its.
            ending := run.stop;
            -- only with woven
            IF run.passes > 1 THEN
                run.note := 'woven';
                last_page := least(last_page, run.page_window + {WINDOW_PAGES});
                ending := quote_literal(format('(%s,0)', last_page));
                this_pass := format('abs(%s %% %s) = %s', run.woven, run.passes, run.pass);
            END IF;
            -- end
            span := concat_ws(' AND ', format('(%s) <= (%s)', key, ending),
                              '(' || key || ') > (' || run.cursor || ')', this_pass);

            -- The last key of this batch.
            n := CASE WHEN run.suspects > 0 THEN (run.suspects + 1) / 2 ELSE run.batch_rows END;
            -- only with woven or ctid
            IF run.walked_by = '{{ctid}}' AND run.suspects = 0 THEN
                page := coalesce((btrim(run.cursor, '''')::point)[0], 0);
                last_page := least(last_page, page + greatest(1, least({WINDOW_PAGES // 2},
                                   trunc(n * run.passes / run.page_rows))));
                upper := quote_literal(format('(%s,0)', last_page));
                n := (last_page - page) * run.page_rows / run.passes;
            END IF;
            -- end
            IF upper IS NULL THEN
                EXECUTE format('SELECT %s FROM %s WHERE %s ORDER BY %s OFFSET %s LIMIT 1',
                               key_text, run.relation, span, key, n - 1) INTO upper;
            END IF;
            IF upper IS NULL THEN
                upper := ending;
                EXECUTE format('SELECT count(*) FROM %s WHERE %s', run.relation, span) INTO n;
            END IF;
            span := format('%s AND (%s) <= (%s)', span, key, upper);

            -- only with role
            PERFORM set_config('session_replication_role', run.role, true)
              WHERE run.role <> current_setting('session_replication_role');
            -- end
            statement := replace(run.work, '{{batch}}', span);
            -- only with partner
            -- PostgreSQL does not conclude from the row's range to that of its partner.
            statement := replace(statement, '{{partner}}',
                                 replace(span, '(' || key || ')', coalesce(run.partner, '')));
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
            EXECUTE format('SELECT count(*) FROM %s WHERE %s', run.relation, span) INTO n;
            IF run.suspects = 0 OR n < run.suspects THEN
                run.suspects := n;
                EXIT batch;
            END IF;
            EXECUTE format('SELECT ROW(%s)::text FROM %s WHERE %s',
                           array_to_string(run.key, ', '), run.relation, span) INTO key;
            -- only with quarantine_rows
            INSERT INTO datamig.quarantine
            VALUES (run.revision, run.step, run.heap, key, state, run.error) ON CONFLICT DO NOTHING;
            SELECT count(*) > run.quarantine_rows INTO busy FROM datamig.quarantine
             WHERE (revision, step) = (run.revision, run.step);
            IF busy THEN
            DELETE FROM datamig.quarantine AS q
             WHERE (q.revision, q.step, q.key) = (run.revision, run.step, key);
            -- end
            run.status := 'failed';
            run.error := format('row %s of %s cannot be done: %s', key, run.heap, run.error);
            EXIT batch;
            -- only with quarantine_rows
            END IF;
            -- end
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
            run.cursor := quote_literal(format('(%s,0)', run.page_window));
        END IF;
        -- end

        -- Short batches while others write to the table: they may have to wait for our row locks.
        IF EXISTS (SELECT FROM pg_locks WHERE relation = ANY (run.tables)
                      AND mode = 'RowExclusiveLock' AND pid <> pg_backend_pid()
                      AND pid NOT IN (SELECT r.pid FROM datamig.run AS r WHERE r.pid > 0
                                         AND r.revision = run.revision)) THEN
            run.busy_at := began;
        END IF;
        seconds := extract(epoch FROM clock_timestamp() - began);
        -- only with rest_share
        run.rest := seconds * run.rest_share;
        -- end
        IF n >= run.batch_rows / 2 THEN
            busy := coalesce(run.busy_at > began - interval '5 seconds', FALSE);
            batch_rows := run.batch_rows;
            run.batch_rows := {NEXT_BATCH_ROWS.strip()};
        END IF;
    END batch;
    UPDATE datamig.run AS r
       SET status = run.status, walked_by = run.walked_by, sure = run.sure, passes = run.passes,
           page_rows = run.page_rows, tables = run.tables, total = run.total,
           cursor = run.cursor, stop = run.stop,
           page_window = run.page_window, pass = run.pass, rounds = run.rounds,
           suspects = run.suspects, retries = run.retries, rest = run.rest, scanned = run.scanned,
           changed = run.changed, batches = run.batches, batch_rows = run.batch_rows,
           note = run.note, error = run.error, busy_at = run.busy_at, pid = pg_backend_pid(),
           heartbeat_at = clock_timestamp()
     WHERE (r.revision, r.step, r.part) = (run.revision, run.step, run.part);
    COMMIT;
    EXIT WHEN run.status NOT IN ('running', 'paused') OR clock_timestamp() >= until;
    PERFORM pg_sleep(run.rest);
END LOOP;
END
$datamig$"""

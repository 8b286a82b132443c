"""Real runs obey from one batch to the next, say what they wait for, and end with one sentence.

Each batch of these runs looks whether a gate is open, so that a test knows where it is.
"""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from datamig_nb import inlined_batches
from datamig_nb.database import Database
from datamig_nb.migration import Migration, Step
from datamig_nb.operations import add_column, sql
from datamig_nb.render import Revision, render
from datamig_nb.server_setup import binaries
from datamig_nb.steps import backfill
from datamig_nb.watch import Runs, cancel, pause, resume, runs
from tests.alembic_project import AlembicProject, Outcome, make_project
from tests.runs import ok, wait_until
from tests.scratch import query, session

ROWS, BATCH = 600, 20
BATCHES = ROWS // BATCH
SMALL = {
    "FIRST_BATCH_ROWS": BATCH,
    "LEAST_BATCH_ROWS": BATCH,
    "MOST_BATCH_ROWS": BATCH,
    "STRETCH_SECONDS": 0,
}

#: The last row of the tenth batch waits while somebody holds the gate.
ITEMS = f"""
CREATE TABLE item (id integer PRIMARY KEY, note text);
INSERT INTO item SELECT n, 'note ' || n FROM generate_series(1, {ROWS}) AS n;
ANALYZE item;
CREATE FUNCTION measured(id integer) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    IF id = {10 * BATCH} THEN PERFORM pg_advisory_xact_lock_shared(7); END IF;
    IF id % {BATCH} = 0 THEN PERFORM pg_sleep(current_setting('item.seconds')::float8); END IF;
    RETURN id + 1;
END $$
"""
MEASURED = {"size": "measured(id)"}
FILL = "fill size"


# ---------------------------------------------------------------- helpers


@pytest.fixture
def items(database: Database) -> Database:
    """A database with the table ``item``, of which a batch takes 5 ms and more."""
    query(database, ITEMS)
    always(database, "item.seconds", 0.005)
    return database


def always(database: Database, setting: str, value: object) -> None:
    """Let every new session of the database begin with this setting."""
    query(database, f"ALTER DATABASE {database.url.database} SET {setting} = {value}")


@pytest.fixture
def project(items: Database, tmp_path: Path) -> AlembicProject:
    """An Alembic project with a revision that is in force."""
    project = make_project(tmp_path / "project")
    project.add_plain("before", "SELECT 1")
    ok(project.alembic(items, "upgrade", "head"))
    return project


def sized(database: Database, project: AlembicProject, *before: Step, **options: Any) -> Revision:
    """Add a revision that fills a new column of ``item``."""
    size = add_column("item", sa.Column("size", sa.Integer()))
    fill = backfill("item", MEASURED, **options)
    migration = Migration("size the items", size, *before, fill)
    return render(database, migration, alembic=project.ini)


@contextmanager
def closed_gate(database: Database) -> Generator[Callable[[], None]]:
    """The tenth batch does not end before the gate is opened."""
    with session(database) as holder:
        holder.execute("SELECT pg_advisory_lock(7)")

        def open_gate() -> None:
            holder.execute("SELECT pg_advisory_unlock(7)")

        yield open_gate


def at_gate(database: Database) -> bool:
    waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted"
    return bool(query(database, waits))


def walk(database: Database) -> SimpleNamespace:
    """The walk's row of datamig.run; of no status where there is none yet."""
    there = query(database, "SELECT to_regclass('datamig.run') IS NOT NULL") == [True]
    with session(database) as connection:
        cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
        row = cursor.execute("SELECT * FROM datamig.run WHERE part = 1").fetchone() if there else {}
    return SimpleNamespace(**(row or {"batches": 0, "status": None, "note": None}))


def is_done(database: Database) -> None:
    """Every row has its value, and each batch was done once."""
    assert query(database, "SELECT count(*) FROM item WHERE size = id + 1") == [ROWS]
    row = walk(database)
    done = (row.status, row.scanned, row.changed, row.batches)
    assert done == ("succeeded", ROWS, ROWS, BATCHES)


@contextmanager
def started(
    by: str, project: AlembicProject, database: Database
) -> Generator[Callable[[], Outcome]]:
    """The upgrade under way by Alembic, or its ``--sql`` by psql; gives what waits for its end."""
    if by == "alembic":
        with project.start(database, "upgrade", "head") as running:
            yield running.end
        return
    log = ok(project.alembic(database, "upgrade", "before:head", "--sql")).log
    script = project.directory / "upgrade.sql"
    script.write_text("\n".join(x for x in log.splitlines() if not x.startswith("INFO ")))
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    words = [binaries() / "psql", "-X", "-v", "ON_ERROR_STOP=1", "-f", script, url]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen[str](words, text=True, **output) as psql:
        try:

            def end() -> Outcome:
                assert psql.stdout is not None
                log = psql.stdout.read()
                return Outcome(code=psql.wait(60), log=log)

            yield end
        finally:
            psql.kill()


def steered_at_the_gate(
    steer: Callable[..., Runs], database: Database, open_gate: Callable[[], None]
) -> Runs:
    """Steer while the tenth batch is under way, which then goes on."""
    wait_until(lambda: at_gate(database))
    before = walk(database)
    assert before.batches == 9
    found: list[Runs] = []
    steering = threading.Thread(target=lambda: found.append(steer(database, before.revision)))
    steering.start()
    asked = "SELECT 1 FROM pg_locks WHERE relation = 'datamig.run'::regclass AND NOT granted"
    wait_until(lambda: query(database, asked))
    open_gate()
    steering.join(10)
    return found[0]


by_alembic_and_psql = pytest.mark.parametrize("by", ["alembic", "psql"])

# ---------------------------------------------------------------- pause, resume, cancel


@by_alembic_and_psql
def test_a_pause_is_obeyed_after_the_batch_under_way_until_it_is_resumed(
    items: Database, project: AlembicProject, by: str
) -> None:
    project.add(sized(items, project), SMALL)

    with closed_gate(items) as open_gate, started(by, project, items) as end:
        found = steered_at_the_gate(pause, items, open_gate)
        at_once = walk(items).batches
        time.sleep(0.5)
        later = walk(items)
        resumed = resume(items, later.revision)
        outcome = ok(end())

    assert found.summary == "2 paused"
    assert (at_once, later.batches, later.status) == (10, 10, "paused")
    assert resumed.summary == "2 running"
    assert by == "psql" or outcome.log.count("fill size: paused, by id, 200 of about 600 rows") == 1
    is_done(items)


@by_alembic_and_psql
def test_a_cancelled_run_ends_with_a_sentence_and_goes_on_when_begun_again(
    items: Database, project: AlembicProject, by: str
) -> None:
    revision = sized(items, project)
    project.add(revision, SMALL)

    with closed_gate(items) as open_gate, started(by, project, items) as end:
        steered_at_the_gate(cancel, items, open_gate)
        ended = end()
    stopped = walk(items)
    with started(by, project, items) as end:
        ok(end())

    assert (stopped.batches, stopped.status) == (10, "cancelled")
    if by == "alembic":
        assert (ended.code, ended.sentence) == (
            1,
            f"{revision.id} cancelled at 'fill size': as somebody wished; run Alembic again,"
            " it goes on here",
        )
    else:
        assert (ended.code, ended.log.strip().splitlines()[-2].partition("ERROR:  ")[2]) == (
            3,
            f"{revision.id} stopped, for it requires: fill size: done; 1 rows fail, the first"
            " (cancelled,); repair them and run Alembic again, it goes on here",
        )
    assert query(items, "SELECT version_num FROM alembic_version") == [revision.id]
    is_done(items)


def test_a_paused_run_that_was_killed_is_still_paused_when_begun_again(
    items: Database, project: AlembicProject
) -> None:
    project.add(sized(items, project), SMALL)
    with closed_gate(items) as open_gate, project.start(items, "upgrade", "head") as running:
        steered_at_the_gate(pause, items, open_gate)
        running.kill(signal.SIGKILL)
        running.end()

    with project.start(items, "upgrade", "head") as running:
        killed = walk(items)
        wait_until(lambda: walk(items).pid != killed.pid)
        time.sleep(0.2)
        before = walk(items)
        resume(items, before.revision)
        outcome = ok(running.end())

    assert (before.status, before.batches) == ("paused", 10)
    assert outcome.log.count("fill size: paused") == 1
    is_done(items)


@pytest.mark.parametrize("steer", [pause, cancel])
@by_alembic_and_psql
def test_a_wish_between_two_walks_is_obeyed_before_the_next_one(
    items: Database, project: AlembicProject, steer: Callable[..., Runs], by: str
) -> None:
    """A statement of the user's is under way, and no batch."""
    revision = sized(items, project, sql("SELECT pg_advisory_xact_lock_shared(7)", undo=""))
    project.add(revision, {**SMALL, "LOCK_TIMEOUT": "10s"})

    with closed_gate(items) as open_gate, started(by, project, items) as end:
        wait_until(lambda: at_gate(items))
        steer(items, revision.id)
        open_gate()
        if steer is pause:
            wait_until(lambda: walk(items).status == "paused")
            resume(items, revision.id)
        ended = end()
    if steer is cancel:
        stopped = walk(items)
        assert (stopped.status, stopped.batches, ended.code != 0) == ("cancelled", 0, True)
        with started(by, project, items) as end:
            ended = end()

    ok(ended)
    is_done(items)


def test_a_pause_is_obeyed_where_sessions_are_serializable(
    items: Database, project: AlembicProject
) -> None:
    always(items, "default_transaction_isolation", "serializable")
    project.add(sized(items, project), SMALL)

    with closed_gate(items) as open_gate, project.start(items, "upgrade", "head") as running:
        steered_at_the_gate(pause, items, open_gate)
        time.sleep(0.2)
        paused = walk(items)
        resume(items, paused.revision)
        ok(running.end())

    assert (paused.status, paused.batches) == ("paused", 10)
    is_done(items)


# ---------------------------------------------------------------- holds and rests


@contextmanager
def a_queue_for_the_table(database: Database) -> Generator[None]:
    """A report reads the table, and somebody who wants it for himself waits behind it."""
    with session(database) as report, session(database) as waiting:
        report.execute("BEGIN")
        report.execute("SELECT FROM item LIMIT 1")
        wish = threading.Thread(target=lambda: waiting.execute("BEGIN; LOCK TABLE item; ROLLBACK"))
        wish.start()
        try:
            yield
        finally:
            report.execute("COMMIT")
            wish.join(10)


@contextmanager
def a_vacuum(database: Database) -> Generator[None]:
    """A VACUUM that takes its time."""
    with session(database) as vacuum:
        vacuum.execute("SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1")
        pid = vacuum.info.backend_pid

        def work() -> None:
            with pytest.raises(psycopg.errors.QueryCanceled):
                vacuum.execute("VACUUM (DISABLE_PAGE_SKIPPING) item")

        working = threading.Thread(target=work)
        working.start()
        try:
            yield
        finally:
            query(database, f"SELECT pg_cancel_backend({pid})")
            working.join(10)


@contextmanager
def a_slow_replica(database: Database) -> Generator[None]:
    """The view of the catalog is hidden by one that says so."""
    query(database, "INSERT INTO fake.lag VALUES ('12 seconds'), ('1 second'), (NULL)")
    yield
    query(database, "DELETE FROM fake.lag")


FAKE = """
CREATE SCHEMA fake;
CREATE TABLE fake.lag (replay_lag interval);
CREATE VIEW fake.pg_stat_replication AS SELECT * FROM fake.lag
"""


@pytest.mark.parametrize(
    ("signal", "provoked", "note"),
    [
        ("lock_queue", a_queue_for_the_table, "a session waits for a lock on the table"),
        ("autovacuum", a_vacuum, "vacuum is at work on the table"),
        ("replica_lag", a_slow_replica, "a replica is more than 10 seconds behind"),
    ],
)
def test_a_signal_holds_the_walk_is_told_and_lets_go(
    items: Database, project: AlembicProject, signal: Any, provoked: Any, note: str
) -> None:
    query(items, FAKE)
    always(items, "search_path", "fake, public, pg_catalog")
    project.add(sized(items, project, hold_on=[signal]), SMALL)

    with closed_gate(items) as open_gate, project.start(items, "upgrade", "head") as running:
        wait_until(lambda: at_gate(items))
        with provoked(items):
            wait_until(lambda: provoked is a_slow_replica or query(items, SIGNALS))
            open_gate()
            wait_until(lambda: walk(items).note == note)
            held = walk(items)
            time.sleep(0.3)
            later = walk(items)
        outcome = ok(running.end())

    assert (held.status, held.batches, later.batches, later.note) == ("running", 10, 10, note)
    assert outcome.log.count(f"fill size: running, {note}, 200 of about 600 rows scanned") == 1
    is_done(items)


SIGNALS = """
SELECT 1 FROM pg_locks WHERE relation = 'item'::regclass AND NOT granted UNION ALL
SELECT 1 FROM pg_stat_progress_vacuum WHERE relid = 'item'::regclass
"""


@by_alembic_and_psql
def test_after_each_batch_it_rests_as_long_as_was_wished(
    items: Database, project: AlembicProject, by: str
) -> None:
    project.add(sized(items, project, rest=9.0), SMALL)

    with started(by, project, items) as end:
        ok(end())

    row = walk(items)
    assert (row.heartbeat_at - row.started_at).total_seconds() > 9 * 0.005 * (BATCHES - 1)
    is_done(items)


def test_a_walk_by_psql_may_take_longer_than_a_statement(
    items: Database, project: AlembicProject
) -> None:
    always(items, "statement_timeout", "'150ms'")
    project.add(sized(items, project, rest=6.0), SMALL)

    with started("psql", project, items) as end:
        ok(end())

    is_done(items)


# ---------------------------------------------------------------- ended, repeated, waiting


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_ctrl_c_ends_the_walk_within_a_stretch(
    items: Database, project: AlembicProject, driver: str
) -> None:
    """The walk would take 3 seconds more than it is given to end."""
    project.add(sized(items, project), {**SMALL, "STRETCH_SECONDS": 0.2})
    always(items, "item.seconds", 0.15)
    url = items.url.set(drivername=f"postgresql+{driver}")

    with project.start(Database(url=url, version=items.version), "upgrade", "head") as running:
        wait_until(lambda: walk(items).batches > 0)
        running.kill(signal.SIGINT)
        ended = running.end(1.5)
    stopped = walk(items)

    assert (ended.code, ended.log.splitlines()[-1]) == (-signal.SIGINT, "KeyboardInterrupt")
    assert 0 < stopped.batches < BATCHES / 2
    always(items, "item.seconds", 0)
    ok(project.alembic(items, "upgrade", "head"))
    is_done(items)


def test_two_upgrades_at_once_do_each_batch_once_and_one_says_so(
    items: Database, project: AlembicProject
) -> None:
    revision = sized(items, project)
    project.add(revision, SMALL)

    with (
        closed_gate(items) as open_gate,
        project.start(items, "upgrade", "head") as one,
        project.start(items, "upgrade", "head") as other,
    ):
        wait_until(lambda: at_gate(items))
        begun = "SELECT 1 FROM pg_locks WHERE relation = 'datamig.run'::regclass GROUP BY pid"
        wait_until(lambda: len(query(items, begun)) == 2)
        open_gate()
        first, second = sorted((one.end(), other.end()), key=lambda outcome: outcome.code)

    assert (first.code, second.code) == (0, 1), first.log + second.log
    assert second.sentence == f"{revision.id} was run twice at once, and the other run has done it"
    assert query(items, "SELECT version_num FROM alembic_version") == [revision.id]
    is_done(items)


def test_the_heartbeat_goes_on_while_a_batch_waits_for_a_lock(
    items: Database, project: AlembicProject
) -> None:
    project.add(sized(items, project), {**SMALL, "LOCK_TIMEOUT": "50ms", "ATTEMPTS": 100})

    with closed_gate(items) as open_gate, project.start(items, "upgrade", "head") as running:
        wait_until(lambda: at_gate(items))
        wait_until(lambda: "attempt 2" in (walk(items).note or ""))
        before = walk(items)
        wait_until(lambda: walk(items).heartbeat_at > before.heartbeat_at)
        seen = next(state for state in runs(items).states if state.part == 1)
        open_gate()
        outcome = ok(running.end())

    assert (before.batches, seen.batches, seen.status) == (9, 9, "running")
    assert "canceling statement due to lock timeout, attempt " in str(seen.note)
    assert "fill size: running, canceling statement due to lock timeout, attempt 1" in outcome.log
    is_done(items)


# ---------------------------------------------------------------- what is said


def test_the_log_tells_where_the_walk_is_and_when_it_will_be_done(
    items: Database, project: AlembicProject
) -> None:
    project.add(sized(items, project), SMALL)

    outcome = ok(project.alembic(items, "upgrade", "head"))

    told = [line.partition("] ")[2] for line in outcome.log.splitlines() if FILL in line]
    assert told[0] == f"{FILL}: running, by id, 20 of about 600 rows scanned, 20 changed, 1 batches"
    assert re.fullmatch(
        f"{FILL}: succeeded, 600 rows scanned, 600 changed, 30 batches, [0-9,]+ rows/s",
        told[-1],
    )


RUN = SimpleNamespace(
    status="running", note="by id", scanned=12_000, total=1_000_000, changed=9_000, batches=6
)


@pytest.mark.parametrize(
    ("changes", "rate", "said"),
    [
        (
            {},
            2_000.4,
            "running, by id, 12,000 of about 1,000,000 rows scanned, 9,000 changed, 6 batches,"
            " 2,000 rows/s, 0:08:14 to go",
        ),
        (
            {"total": None, "note": None},
            0.0,
            "running, 12,000 rows scanned, 9,000 changed, 6 batches",
        ),
        (
            {"total": 12_500},
            2_000.4,
            "running, by id, 12,000 of about 12,500 rows scanned, 9,000 changed, 6 batches,"
            " 2,000 rows/s",
        ),
        (
            {"status": "succeeded"},
            2_000.4,
            "succeeded, by id, 12,000 rows scanned, 9,000 changed, 6 batches, 2,000 rows/s",
        ),
    ],
)
def test_progress_is_told_in_words(changes: dict[str, Any], rate: float, said: str) -> None:
    run = SimpleNamespace(**{**vars(RUN), **changes})

    assert inlined_batches.progress(run, rate) == said

"""Rows computed in Python while others write, and where a function, a value or a process fails."""

from __future__ import annotations

import random
import signal
import threading
import time

import pytest

from datamig_nb.database import Database
from tests.alembic_project import AlembicProject
from tests.runs import ok, scanned, wait_until
from tests.scratch import query, session
from tests.test_inlined_transform import (
    MAKE,
    PARTED,
    PROCESSES,
    ROWS,
    SMALL,
    THREADS,
    WHAT,
    WRONG,
    cleaning,
    sessions,
    use_driver,
)
from tests.transform_revision import HandWritten, call, transform_revision, with_tables

HOWS = pytest.mark.parametrize("how", [{}, THREADS, PROCESSES], ids=["one", "threads", "processes"])


@pytest.fixture
def large(database: Database) -> Database:
    """A database with the table ``large``."""
    return with_tables(database, MAKE)


# ---------------------------------------------------------------- killed, paused, cancelled

MAKE_PRICES = f"""
CREATE TABLE price (id int PRIMARY KEY, cents bigint, note text DEFAULT repeat('x', 50));
INSERT INTO price SELECT n, n FROM generate_series(1, {ROWS}) AS n;
ANALYZE price
"""


def double(cents: int) -> int:
    return cents * 2


def doubling(**how: object) -> HandWritten:
    """Doing a row twice would show."""
    what = {"key": ("id",), "reads": ("cents",), "writes": ("cents",)}
    return transform_revision(call("double", "price", double, **what, **how), functions=(double,))


@HOWS
def test_ended_at_any_moment_each_row_is_computed_exactly_once(
    database: Database, project: AlembicProject, how: dict[str, object]
) -> None:
    """Ended by kill -9 twice, by Ctrl-C, by kill, and by the server that ends the sessions."""
    with_tables(database, MAKE_PRICES)
    project.add(doubling(**how), SMALL)
    ended: list[int] = []
    kills = (signal.SIGKILL, signal.SIGINT, None, signal.SIGTERM, signal.SIGKILL)
    for number, end in enumerate(kills, 1):
        with project.start(database, "upgrade", "head") as running:
            wait_until(lambda least=number * ROWS / 7: scanned(database) > least)
            if end is None:
                terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ="
                query(
                    database, f"{terminate} '{database.url.database}' AND pid <> pg_backend_pid()"
                )
            else:
                running.kill(end)
            ended.append(running.end(20).code)
        wait_until(lambda: sessions(database) == 0, 10)
    assert ended == [-signal.SIGKILL, -signal.SIGINT, 1, -signal.SIGTERM, -signal.SIGKILL]
    assert scanned(database) < ROWS

    ok(project.alembic(database, "upgrade", "head"))

    assert query(database, "SELECT id FROM price WHERE cents <> id * 2") == []
    assert query(
        database, "SELECT sum(scanned)::int, sum(changed)::int FROM datamig.run WHERE part > 0"
    ) == [(ROWS, ROWS)]


@HOWS
def test_a_pause_is_obeyed_within_a_batch_and_ends(
    large: Database, project: AlembicProject, how: dict[str, object]
) -> None:
    project.add(cleaning(**how), SMALL)
    with project.start(large, "upgrade", "head") as running:
        wait_until(lambda: scanned(large) > ROWS / 5)
        query(large, "UPDATE datamig.run SET status = 'paused'")
        before = scanned(large)
        time.sleep(1)
        after = scanned(large)
        query(large, "UPDATE datamig.run SET status = 'running'")
        ok(running.end())

    assert before == after < ROWS
    assert query(large, WRONG) == []


@HOWS
def test_a_cancelled_run_stops_with_a_sentence_and_goes_on_later(
    large: Database, project: AlembicProject, how: dict[str, object]
) -> None:
    project.add(cleaning(**how), SMALL)
    with project.start(large, "upgrade", "head") as running:
        wait_until(lambda: scanned(large) > ROWS / 5)
        query(large, "UPDATE datamig.run SET status = 'cancelled'")
        stopped = running.end()

    assert stopped.code == 1
    assert "c0ffee was cancelled at 'clean'; run Alembic again, it goes on here" in stopped.sentence
    assert scanned(large) < ROWS
    ok(project.alembic(large, "upgrade", "head"))
    assert query(large, WRONG) == []


def test_two_upgrades_at_once_do_each_batch_once(
    database: Database, project: AlembicProject
) -> None:
    with_tables(database, MAKE_PRICES)
    project.add(doubling(**THREADS), SMALL)

    with (
        project.start(database, "upgrade", "head") as one,
        project.start(database, "upgrade", "head") as other,
    ):
        outcomes = [one.end(), other.end()]

    assert 0 in [outcome.code for outcome in outcomes], outcomes
    assert query(database, "SELECT id FROM price WHERE cents <> id * 2") == []
    assert scanned(database) == ROWS


def test_a_table_that_is_done_is_not_done_twice(
    database: Database, project: AlembicProject
) -> None:
    with_tables(database, MAKE_PRICES)
    project.add(doubling())
    ok(project.alembic(database, "upgrade", "head"))

    query(database, "DELETE FROM alembic_version")
    ok(project.alembic(database, "upgrade", "head"))

    assert query(database, "SELECT id FROM price WHERE cents <> id * 2") == []


# ---------------------------------------------------------------- writers


@HOWS
def test_no_write_of_others_is_lost_and_every_row_is_right_at_the_end(
    large: Database, project: AlembicProject, how: dict[str, object]
) -> None:
    """Others change, insert and delete rows, in transactions that stay open over batches too."""
    project.add(cleaning(**how), SMALL)
    stop, done = threading.Event(), list[str]()
    expected: dict[int, str | None] = dict(query(large, "SELECT id, old FROM large"))

    def application(seed: int) -> None:
        chance = random.Random(seed)
        with session(large) as connection:
            while not stop.is_set():
                id = chance.randrange(ROWS // 4) * 4 + seed  # each its own rows
                if id < 1:
                    continue
                kind = chance.choice(["update", "update", "insert", "delete"])
                text = f" By  {seed} {chance.random()} "
                connection.execute("BEGIN")
                if kind == "update" and id in expected:
                    connection.execute("UPDATE large SET old = %s WHERE id = %s", [text, id])
                    expected[id] = text
                elif kind == "insert":
                    id = ROWS + chance.randrange(10**6) * 4 + seed
                    if id not in expected:
                        connection.execute(
                            "INSERT INTO large (id, old) VALUES (%s, %s)", [id, text]
                        )
                        expected[id] = text
                elif id in expected:
                    connection.execute("DELETE FROM large WHERE id = %s", [id])
                    del expected[id]
                time.sleep(chance.choice([0, 0.002, 0.03]))
                connection.execute("COMMIT")
                done.append(kind)

    threads = [threading.Thread(target=application, args=[seed]) for seed in range(3)]
    with project.start(large, "upgrade", "head") as running:
        for thread in threads:
            thread.start()
        wait_until(lambda: scanned(large) > ROWS * 0.8 or not running)
        stop.set()
        for thread in threads:
            thread.join()
        ok(running.end())

    assert len(done) > 50
    assert query(large, WRONG) == []
    assert dict(query(large, "SELECT id, old FROM large")) == expected


def test_a_row_that_changes_between_reading_and_writing_is_not_overwritten(
    large: Database, project: AlembicProject
) -> None:
    """Another session holds the row when the batch comes to write it, then changes it."""
    project.add(cleaning(), {"LOCK_TIMEOUT": "10s"})
    with session(large) as other:
        other.execute("BEGIN")
        other.execute("UPDATE large SET old = ' Mine ' WHERE id = 7")
        with project.start(large, "upgrade", "head") as running:
            waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
            wait_until(lambda: query(large, waiting))
            other.execute("COMMIT")
            outcome = ok(running.end())

    assert "clean: rows that others wrote meanwhile, round 1" in outcome.log
    assert query(large, "SELECT old, new FROM large WHERE id = 7") == [(" Mine ", "mine")]
    assert query(large, WRONG) == []


def test_rows_that_move_to_other_places_meanwhile_are_computed_once(
    database: Database, project: AlembicProject
) -> None:
    """VACUUM FULL gives another row the ``ctid`` of one that was read, and the same ``xmin``."""
    with_tables(database, MAKE_PRICES, "DELETE FROM price WHERE id % 3 = 0")
    project.add(doubling(), SMALL)
    fulls = 0
    with project.start(database, "upgrade", "head") as running:
        wait_until(lambda: scanned(database))
        while not running.ended:
            query(database, "VACUUM FULL price")
            fulls += scanned(database) < ROWS * 2 / 3
            time.sleep(0.02)
        ok(running.end())

    assert fulls > 1
    assert query(database, "SELECT id FROM price WHERE cents <> id * 2") == []


# ---------------------------------------------------------------- errors


def picky(old: str | None) -> str | None:
    if old is not None and old.startswith("bad"):
        raise KeyError("no such month")
    return old


PICKY = {"key": ("id",), "reads": ("old",), "writes": ("new",)}


@HOWS
def test_a_row_that_the_function_fails_on_is_named_with_the_types_of_its_values(
    large: Database, project: AlembicProject, how: dict[str, object]
) -> None:
    query(large, "UPDATE large SET old = 'bad' WHERE id = 3000")
    line = call("picky", "large", picky, **PICKY, **how)
    project.add(transform_revision(line, functions=(picky,)), PARTED)

    stopped = project.alembic(large, "upgrade", "head")

    assert stopped.code == 1
    assert stopped.sentence == (
        "c0ffee stopped at large, (id) = ('3000'): picky() failed with KeyError:"
        " 'no such month'; repair the row or the function and run Alembic again, it goes on here"
    )
    assert query(large, "SELECT count(*) FROM alembic_version") == [0]
    assert any(
        "stopped at large" in (e or "") for e in query(large, "SELECT error FROM datamig.run")
    )

    query(large, "UPDATE large SET old = 'good' WHERE id = 3000")
    ok(project.alembic(large, "upgrade", "head"))
    assert query(large, "SELECT id FROM large WHERE new IS DISTINCT FROM old") == []


def test_rows_that_fail_are_set_aside_up_to_the_limit(
    large: Database, project: AlembicProject
) -> None:
    query(large, "UPDATE large SET old = 'bad' WHERE id IN (1, 2, 700, 6000)")
    for limit in (3, 4):
        line = call("picky", "large", picky, **PICKY, **THREADS, quarantine_rows=limit)
        project.add(transform_revision(line, functions=(picky,)), PARTED)
        outcome = project.alembic(large, "upgrade", "head")
        assert outcome.code == (limit == 3), outcome.log
        if limit == 3:
            assert "gave up: 4 rows of large would be set aside, more than 3" in outcome.sentence

    found = "SELECT DISTINCT step, relation, key, message FROM datamig.quarantine ORDER BY key"
    reason = "picky() failed with KeyError: 'no such month'"
    assert query(large, found) == [
        ("picky", "large", f"'{id}'", reason) for id in (1, 2, 6000, 700)
    ]
    wrong = "SELECT id FROM large WHERE new IS DISTINCT FROM nullif(old, 'bad')"
    assert query(large, wrong) == []


def odd(old: str | None) -> str | None:
    strange = {"bad nul": "a\0b", "bad surrogate": "\ud800", "bad long": "x" * 99}
    return strange.get(old or "", "fits")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
def test_values_that_postgresql_refuses_are_found_among_the_others(
    large: Database, project: AlembicProject, driver: str
) -> None:
    query(
        large,
        "ALTER TABLE large ALTER new TYPE varchar(9), ADD CHECK (new <> 'fits' OR id <> 900);"
        "UPDATE large SET old = 'bad nul' WHERE id = 5;"
        "UPDATE large SET old = 'bad surrogate' WHERE id = 2000;"
        "UPDATE large SET old = 'bad long' WHERE id = 2001",
    )
    line = call("odd", "large", odd, **PICKY, quarantine_rows=4)
    project.add(transform_revision(line, functions=(odd,)))
    use_driver(project, driver)

    ok(project.alembic(large, "upgrade", "head"))

    found = query(large, "SELECT key, sqlstate FROM datamig.quarantine ORDER BY key")
    states = dict(found)
    assert list(states) == ["'2000'", "'2001'", "'5'", "'900'"]
    assert (states["'2001'"], states["'900'"]) == ("22001", "23514")
    assert query(large, "SELECT count(*) FROM large WHERE new = 'fits'") == [ROWS - 4]


def test_a_value_of_the_wrong_type_is_refused_rather_than_changed(
    database: Database, project: AlembicProject
) -> None:
    with_tables(
        database,
        "CREATE TABLE odd (id int PRIMARY KEY, a int, at timestamptz, day date, data bytea);"
        "INSERT INTO odd VALUES (1, 1)",
    )
    found: dict[str, str] = {}
    for column, body in {
        "a": "return True",
        "at": "import datetime; return datetime.datetime(2024, 1, 1)",
        "day": "import datetime; return datetime.datetime(2024, 1, 1)",
        "data": "return 'text'",
    }.items():
        line = call("odd", "odd", "odd", key=("id",), reads=("id",), writes=(column,))
        source = f"def odd(id):\n    {body}"
        project.add(transform_revision(line, source=source))
        sentence = project.alembic(database, "upgrade", "head").sentence
        found[column] = sentence.partition("failed with ")[2].partition(";")[0]

    assert found == {
        "a": "TypeError: a column of type int4 takes None or int or str, not bool",
        "at": "ValueError: a column of type timestamptz takes values with a time zone",
        "day": "TypeError: a column of type date takes None or date or str, not datetime",
        "data": "TypeError: a column of type bytea takes None or bytes or bytearray or memoryview,"
        " not str",
    }


# ---------------------------------------------------------------- surroundings


@HOWS
def test_workers_see_the_tables_that_alembics_session_sees(
    database: Database, project: AlembicProject, how: dict[str, object]
) -> None:
    """env.py sets search_path, one schema for each tenant."""
    with_tables(database, "CREATE SCHEMA tenant", MAKE)
    query(database, f"SET search_path = tenant; {MAKE}")
    project.add(cleaning(**how), PARTED)
    text = project.env.read_text()
    line = "        context.configure(\n            connection=connection"
    assert text.count(line) == 1
    search = "        connection.exec_driver_sql('SET search_path = tenant')\n"
    project.env.write_text(text.replace(line, f"{search}        connection.commit()\n{line}"))

    ok(project.alembic(database, "upgrade", "head"))

    assert query(database, WRONG.replace("large", "tenant.large")) == []
    assert query(database, "SELECT count(new) FROM public.large") == [0]


def test_a_function_of_pandas_series_is_given_a_batch_at_a_time(
    large: Database, project: AlembicProject
) -> None:
    source = (
        "def tidy(old):\n    return old.str.strip().str.lower().str.replace('  ', ' ', regex=False)"
    )
    line = call("tidy", "large", "tidy", **WHAT, **THREADS, vectorized=True)
    project.add(transform_revision(line, source=source), PARTED)
    text = project.env.read_text()
    project.env.write_text(text.replace('"pandas", ', "", 1))

    ok(project.alembic(large, "upgrade", "head"))

    assert query(large, WRONG) == []


def test_where_no_more_connections_are_to_be_had_one_does_the_work(
    large: Database, project: AlembicProject
) -> None:
    query(large, f"ALTER DATABASE {large.url.database} CONNECTION LIMIT 1")
    query(large, "CREATE ROLE clerk LOGIN; GRANT ALL ON SCHEMA public, datamig TO clerk")
    query(large, "GRANT ALL ON ALL TABLES IN SCHEMA public, datamig TO clerk")
    try:
        name = large.url.database
        query(large.at("postgres"), f"GRANT CREATE ON DATABASE {name} TO clerk")
        project.add(cleaning(**THREADS), PARTED)
        text = project.env.read_text()
        url = 'os.environ["DATABASE_URL"]'
        clerk = f'{url}.replace("//", "//clerk@").replace("postgres@", "")'
        project.env.write_text(text.replace(url, clerk))

        ok(project.alembic(large, "upgrade", "head"))
    finally:
        query(large, "DROP OWNED BY clerk; DROP ROLE clerk")

    assert query(large, WRONG) == []

"""The functions copied into revisions, as Alembic runs them: killed, locked out, refused, repeated.

Revisions are rendered, given small batches by their own lines of settings, and run by Alembic in a
process of its own, which cannot import our package.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from datamig_nb import inlined
from datamig_nb.checks import check
from datamig_nb.database import Database
from datamig_nb.migration import Migration, Step
from datamig_nb.names import TableName
from datamig_nb.operations import add_column, create_check_constraint
from datamig_nb.patterns import map_values
from datamig_nb.render import Revision, render
from datamig_nb.steps import backfill
from tests.alembic_project import PRELOADED, AlembicProject, Outcome, make_project
from tests.scratch import query, session

#: Rows of the table ``item``, and of a batch where batches are small.
ROWS, BATCH = 3_000, 20
SMALL = {
    "FIRST_BATCH_ROWS": BATCH,
    "LEAST_BATCH_ROWS": BATCH,
    "MOST_BATCH_ROWS": BATCH,
    "STRETCH_SECONDS": 0,
}
IMPATIENT = {"LOCK_TIMEOUT": "100ms", "ATTEMPTS": 3}

# With all that a driver could take for a parameter.
FILL = {"size": "length(replace(note, '%', ' :y %s %(x)s {0} '))"}


# ---------------------------------------------------------------- helpers


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.log
    return outcome


def version(database: Database) -> list[str]:
    """What Alembic believes; nothing where it has no table yet."""
    there = query(database, "SELECT to_regclass('alembic_version') IS NOT NULL") == [True]
    return query(database, "SELECT version_num FROM alembic_version") if there else []


def scanned(database: Database) -> int:
    """Rows that the walks noted so far."""
    there = query(database, "SELECT to_regclass('datamig.run') IS NOT NULL") == [True]
    total = "SELECT coalesce(sum(scanned), 0)::int FROM datamig.run"
    return query(database, total)[0] if there else 0


def walks(database: Database) -> list[Any]:
    """Status, rows scanned, rows changed and batches of each walk."""
    return query(
        database,
        "SELECT status, scanned, changed, batches FROM datamig.run WHERE part > 0 ORDER BY step",
    )


MAKE_ITEMS = f"""
CREATE TABLE item (id bigint PRIMARY KEY, note text);
INSERT INTO item SELECT n * 3 - 4000, repeat('%', n % 17) || n FROM generate_series(1, {ROWS}) AS n;
ANALYZE item
"""


def sizes() -> dict[int, int]:
    """What FILL gives for each row."""
    notes = {n * 3 - 4000: "%" * (n % 17) + str(n) for n in range(1, ROWS + 1)}
    return {key: len(note.replace("%", " :y %s %(x)s {0} ")) for key, note in notes.items()}


def found_sizes(database: Database) -> dict[int, int]:
    return dict(query(database, "SELECT id, size FROM item"))


@pytest.fixture
def items(database: Database) -> Database:
    """A database with the table ``item``."""
    query(database, MAKE_ITEMS)
    return database


@pytest.fixture
def project(tmp_path: Path) -> AlembicProject:
    """An empty Alembic project."""
    return make_project(tmp_path / "project")


def sized(database: Database, *more: Step) -> Revision:
    """A revision that fills a new column of ``item``, without a trigger, and does more."""
    size = add_column("item", sa.Column("size", sa.Integer()))
    return render(database, Migration("size the items", size, backfill("item", FILL), *more))


@contextmanager
def held(database: Database, *statements: str) -> Generator[psycopg.Connection[Any]]:
    """Another session, in the middle of a transaction that sent the statements."""
    with session(database) as connection:
        connection.execute("BEGIN")
        for statement in statements:
            connection.execute(statement.encode())
        yield connection


# ---------------------------------------------------------------- killed


def test_killed_in_the_middle_of_its_batches_goes_on_where_it_was(
    items: Database, project: AlembicProject
) -> None:
    project.add(sized(items), SMALL)
    with project.start(items, "upgrade", "head") as running:
        wait_until(lambda: scanned(items) > ROWS / 3)
        running.kill(signal.SIGKILL)
        assert running.end().code == -signal.SIGKILL
    (before,) = walks(items)
    assert (before[0], version(items)) == ("running", [])
    assert ROWS / 3 < before[1] < ROWS

    ok(project.alembic(items, "upgrade", "head"))

    # each row and each batch was counted once, so what was done was not done again
    assert walks(items) == [("succeeded", ROWS, ROWS, ROWS // BATCH)]
    assert found_sizes(items) == sizes()


def test_ended_at_any_moment_arrives_where_an_undisturbed_run_does(
    items: Database, make_database: Callable[[str], Database], project: AlembicProject
) -> None:
    """Ended by kill -9, by Ctrl-C, by kill, and by the server that ends its session."""
    undisturbed = make_database(str(items.url.database))
    revision = sized(items)
    project.add(revision, SMALL)
    ended: list[int] = []
    for number, end in enumerate((signal.SIGKILL, signal.SIGINT, None, signal.SIGTERM), 1):
        with project.start(items, "upgrade", "head") as running:
            wait_until(lambda least=number * ROWS / 6: scanned(items) > least)
            if end is None:
                terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ="
                query(items, f"{terminate} '{items.url.database}' AND pid <> pg_backend_pid()")
            else:
                running.kill(end)
            ended.append(running.end().code)
    assert ended == [-signal.SIGKILL, -signal.SIGINT, 1, -signal.SIGTERM]

    ok(project.alembic(items, "upgrade", "head"))
    ok(project.alembic(undisturbed, "upgrade", "head"))

    rows = "SELECT item::text FROM item ORDER BY id"
    assert query(items, rows) == query(undisturbed, rows)
    assert walks(items) == walks(undisturbed) == [("succeeded", ROWS, ROWS, ROWS // BATCH)]
    assert version(items) == version(undisturbed) == [revision.id]


# Runs Alembic again and again: the first run dies before its first statement, the second before its
# second, until one arrives.  Each run is a fork, since importing Alembic takes longer than the run.
DIE_EVERYWHERE = f"""
import os, signal, sys, traceback
import sqlalchemy as sa
import {PRELOADED}
from alembic.config import main

def run(dies_at):
    seen = 0

    def count(connection, cursor=None, statement="", *_):
        nonlocal seen
        seen += bool(seen) or "alembic_version" in statement  # SQLAlchemy's own come before
        if seen == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    sa.event.listen(sa.Engine, "commit", count)
    try:
        main(argv=sys.argv[1:])
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)

dies_at, died = 0, True
while died:
    dies_at += 1
    child = os.fork() or run(dies_at)
    status = os.waitpid(child, 0)[1]
    died = os.WIFSIGNALED(status)
print(dies_at if status == 0 else "failed at", dies_at)
sys.exit(status != 0)
"""


def die_before_each_statement(database: Database, project: AlembicProject, *words: str) -> int:
    """Run Alembic until it arrives, killed one statement later each time; gives the runs."""
    result = subprocess.run(
        [sys.executable, "-c", DIE_EVERYWHERE, *words],
        cwd=project.directory,
        env={"DATABASE_URL": database.dsn, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-100:] + result.stderr[-3000:]
    return int(result.stdout.split()[0])


def test_killed_before_each_statement_in_turn_it_arrives_up_and_down(
    database: Database, make_database: Callable[[str], Database], project: AlembicProject
) -> None:
    """Every kind of step, and every gap between two statements, Alembic's own included."""
    query(
        database,
        "CREATE TABLE shop (id int PRIMARY KEY, state text);"
        "INSERT INTO shop SELECT n, chr(97 + n % 2) FROM generate_series(1, 90) AS n",
    )
    undisturbed = make_database(str(database.url.database))
    columns = (
        "SELECT attname, format_type(atttypid, NULL), attnotnull FROM pg_attribute"
        " WHERE attrelid = 'shop'::regclass AND attnum > 0 AND NOT attisdropped"
    )
    others = (
        "SELECT conname FROM pg_constraint WHERE conrelid = 'shop'::regclass UNION ALL"
        " SELECT tgname FROM pg_trigger WHERE tgrelid = 'shop'::regclass UNION ALL"
        " SELECT typname FROM pg_type WHERE typname LIKE 'shop%' UNION ALL"
        " SELECT proname FROM pg_proc WHERE pronamespace = to_regnamespace('datamig') ORDER BY 1"
    )
    rows, versions = "SELECT * FROM shop ORDER BY id", "SELECT * FROM alembic_version"
    everything = (columns, others, rows, versions)
    before = [query(database, statement) for statement in everything[:3]]
    statuses = map_values(
        "shop", "state", {"a": "A", "b": "B"}, into="status", type="enum", nullable=False
    )
    known = create_check_constraint("known", "shop", "status IS NOT NULL")
    migration = Migration("map the states", *statuses.steps, known)
    project.add(
        render(database, migration),
        {**SMALL, "FIRST_BATCH_ROWS": 30, "LEAST_BATCH_ROWS": 30, "MOST_BATCH_ROWS": 30},
    )
    ok(project.alembic(undisturbed, "upgrade", "head"))

    runs_up = die_before_each_statement(database, project, "upgrade", "head")
    up = [query(database, statement) for statement in everything]
    noted = walks(database)
    runs_down = die_before_each_statement(database, project, "downgrade", "-1")
    down = [query(database, statement) for statement in everything]

    assert up == [query(undisturbed, statement) for statement in everything]
    assert noted == walks(undisturbed) == [("succeeded", 90, 90, 3)]
    assert down == [*before, []]
    assert (runs_up > 60, runs_down > 25) == (True, True)
    # and nothing is left behind that would make the next upgrade skip a row or a check
    query(database, "INSERT INTO shop VALUES (0, 'nowhere')")
    refused = project.alembic(database, "upgrade", "head")
    assert "requires: every state of shop has a new value; 1 rows fail" in refused.sentence
    query(database, "DELETE FROM shop WHERE id = 0")
    ok(project.alembic(database, "upgrade", "head"))
    assert [query(database, statement) for statement in everything] == up


# ---------------------------------------------------------------- checks


NO_LONG_NOTE = check("no item larger than 400", "SELECT id, size, id FROM item WHERE size > 400")


@pytest.mark.parametrize(
    ("last_step", "sentence"),
    [
        (
            NO_LONG_NOTE,
            "{id} stopped, for it requires: no item larger than 400; 1 rows fail, the first"
            " (7,999,7); repair them and run Alembic again, it goes on here",
        ),
        (
            create_check_constraint("not_large", "item", "size <= 400"),
            "{id} stopped, for it requires: every row of item meets not_large; 1 rows fail, the"
            " first (7); repair them and run Alembic again, it goes on here",
        ),
    ],
    ids=["check", "constraint"],
)
def test_a_failed_check_stops_and_a_repaired_row_is_done_again(
    items: Database, project: AlembicProject, last_step: Step, sentence: str
) -> None:
    query(items, "INSERT INTO item VALUES (7, repeat('x', 999))")
    revision = sized(items, last_step)
    project.add(revision, SMALL)

    stopped = project.alembic(items, "upgrade", "head")

    assert (stopped.code, version(items)) == (1, [])
    assert stopped.sentence == sentence.format(id=revision.id)

    query(items, "UPDATE item SET note = 'short' WHERE id = 7")
    ok(project.alembic(items, "upgrade", "head"))

    assert version(items) == [revision.id]
    assert found_sizes(items) == {**sizes(), 7: 5}


# ---------------------------------------------------------------- keys

# Table -> its columns, its key, and values of the key.
KEYS: Mapping[str, tuple[str, str, str]] = {
    "composite": (
        'tenant int, code text COLLATE "C"',
        "tenant, code",
        "SELECT n % 5, chr(65 + n % 26) || n FROM generate_series(1, 60) AS n",
    ),
    "three_parts": (
        "b boolean, d date, n int",
        "n, b, d",
        "SELECT n % 2 = 0, date '2020-02-28' + n % 3, n % 7 FROM generate_series(1, 42) AS n",
    ),
    "texts": (
        "k text",
        "k",
        r"""
        VALUES (''), (' '), ('a'), ('a '), ('A'), (''''), (''''''), ('\'), ('\\'), ('\'''), ('"'),
               ('%s'), ('%(x)s'), (' :y'), ('{batch}'), ('{0}'), ('{{'), ('$1'), ('$$'), ('--'),
               ('ä'), ('Å'), ('ß'), ('İ'), ('日本'), ('🙂'), (U&'a\0301'), (E'a\tb'),
               (E'a\nb'), ('NULL'), ('0'), ('00'), ('/*'), (repeat('long ', 200))
        """,
    ),
    "uuids": ("k uuid", "k", "SELECT md5(n::text)::uuid FROM generate_series(1, 50) AS n"),
    "times": (
        "k timestamptz",
        "k",
        "SELECT '2025-03-30 00:59:59.999999+00'::timestamptz + n * interval '17.000001 minutes'"
        " FROM generate_series(1, 40) AS n UNION SELECT unnest(ARRAY['infinity', '-infinity',"
        " '0044-03-15 12:00 BC', '2025-10-26 00:30+00', '2025-10-26 01:30+00']::timestamptz[])",
    ),
    "numerics": (
        "k numeric",
        "k",
        "SELECT n * 1.00000000000000000000000001 FROM generate_series(-20, 20) AS n"
        " UNION VALUES ('NaN'::numeric), (1e40), (-1e-40), ('Infinity'::numeric)",
    ),
    "floats": (
        "k double precision",
        "k",
        "SELECT n / 3.0::float8 FROM generate_series(-20, 20) AS n"
        " UNION VALUES ('NaN'::float8), (0.1::float8 + 0.2), ('-Infinity'::float8)",
    ),
    "negatives": (
        "k bigint",
        "k",
        "SELECT -n * n * 1000003 FROM generate_series(1::bigint, 50) AS n"
        " UNION VALUES (-9223372036854775808), (9223372036854775807), (0)",
    ),
    '"Odd Schema"."Odd "".Table"': (
        '"Key ""1""" int, "ORDER" text',
        '"ORDER", "Key ""1"""',
        "SELECT n, 'It''s ' || n % 3 FROM generate_series(1, 30) AS n",
    ),
    # names that the machinery uses itself
    "batch": (
        "key int, rows int",
        "key, rows",
        "SELECT n % 20, n / 20 FROM generate_series(0, 59) AS n",
    ),
    "run": ("key text", "key", "SELECT repeat('x', n) || ' ' FROM generate_series(1, 30) AS n"),
    "unique_index_only": (
        "other int, k varchar(10) NOT NULL",
        "",
        "SELECT NULL, n FROM generate_series(1, 30) AS n",
    ),
    "bytes": (
        "k bytea",
        "k",
        r"SELECT set_byte('\x00ff27', 0, n) FROM generate_series(1, 30) AS n",
    ),
    "padded": ("k char(4)", "k", "SELECT n FROM generate_series(1, 30) AS n"),
    "empty": ("k int", "k", "SELECT 1 WHERE FALSE"),
}


def test_every_row_is_visited_once_whatever_its_key(
    database: Database, project: AlembicProject
) -> None:
    """In batches of seven rows, in a time zone whose clocks change."""
    with session(database) as connection:
        connection.execute('CREATE SCHEMA "Odd Schema"; CREATE SEQUENCE visits')
        for table, (columns, key, values) in KEYS.items():
            primary = f", PRIMARY KEY ({key})" if key else ""
            connection.execute(f"CREATE TABLE {table} ({columns}{primary})".encode())
            connection.execute(f"INSERT INTO {table} {values}".encode())
        connection.execute("CREATE UNIQUE INDEX ON unique_index_only (k)")
        connection.execute(
            f"ALTER DATABASE {database.url.database} SET timezone = 'Europe/Berlin'".encode()
        )
    # the value is another one at each visit: a row seen twice would count as changed twice
    visit: list[Step] = []
    for table in KEYS:
        name = TableName.parse(table)
        column = sa.Column("visit", sa.BigInteger())
        visit.append(add_column(name.name, column, schema=name.schema))
        visit.append(backfill(table, {"visit": "nextval('visits')"}))
    revision = render(database, Migration("visit every row", *visit))
    project.add(revision, {"FIRST_BATCH_ROWS": 7, "LEAST_BATCH_ROWS": 7, "MOST_BATCH_ROWS": 7})

    ok(project.alembic(database, "upgrade", "head"))

    rows = {table: query(database, f"SELECT count(*) FROM {table}")[0] for table in KEYS}
    missed = {
        table: query(database, f"SELECT count(*) FROM {table} WHERE visit IS NULL")[0]
        for table in KEYS
    }
    assert missed == dict.fromkeys(KEYS, 0)
    assert sorted(walks(database)) == sorted(
        ("succeeded", count, count, -(-count // 7)) for count in rows.values()
    )
    assert (rows["empty"], rows["texts"], rows["times"], len(rows)) == (0, 34, 45, 15)


def test_rows_that_are_right_already_are_not_written_again(
    items: Database, project: AlembicProject
) -> None:
    project.add(sized(items), SMALL)
    ok(project.alembic(items, "upgrade", "head"))
    versions = "SELECT id, xmin::text, ctid::text FROM item ORDER BY id"
    before = query(items, versions)

    query(items, "DELETE FROM alembic_version; UPDATE datamig.run SET cursor = NULL")
    query(items, "UPDATE item SET size = -1 WHERE id = 5")
    ok(project.alembic(items, "upgrade", "head"))

    after = query(items, versions)
    assert [a[0] for a, b in zip(after, before, strict=True) if a != b] == [5]
    assert walks(items) == [("succeeded", 2 * ROWS, ROWS + 1, 2 * ROWS // BATCH)]
    assert found_sizes(items) == sizes()


# ---------------------------------------------------------------- locks


def test_a_lock_held_for_three_seconds_is_waited_for_and_blocks_nobody_long(
    items: Database, project: AlembicProject
) -> None:
    """A long report holds the table; what the application reads meanwhile queues two seconds."""
    project.add(sized(items))
    waits: list[float] = []
    stop = threading.Event()

    def application() -> None:
        with session(items) as connection:
            while not stop.is_set():
                began = time.monotonic()
                connection.execute("SELECT note FROM item LIMIT 1")
                waits.append(time.monotonic() - began)
                time.sleep(0.05)

    thread = threading.Thread(target=application)
    with (
        held(items, "SELECT count(*) FROM item") as report,
        project.start(items, "upgrade", "head") as running,
    ):
        thread.start()
        waiting = "SELECT 1 FROM pg_locks WHERE relation = 'item'::regclass AND NOT granted"
        wait_until(lambda: query(items, waiting))
        time.sleep(3)
        report.execute("COMMIT")
        outcome = running.end()
    stop.set()
    thread.join()

    assert "lock timeout" in ok(outcome).log
    assert found_sizes(items) == sizes()
    assert 0.5 < max(waits) < 3


def test_a_lock_on_one_row_makes_its_batch_wait_and_no_other(
    items: Database, project: AlembicProject
) -> None:
    project.add(sized(items), {**SMALL, "LOCK_TIMEOUT": "200ms"})
    with project.start(items, "upgrade", "head") as running:
        wait_until(lambda: scanned(items))
        with held(items, f"SELECT FROM item WHERE id = {ROWS * 3 - 4000} FOR UPDATE") as other:
            wait_until(lambda: scanned(items) == ROWS - BATCH)
            time.sleep(0.5)
            before = scanned(items)
            other.execute("COMMIT")
        outcome = running.end()

    assert "lock timeout" in ok(outcome).log
    assert before == ROWS - BATCH
    assert walks(items) == [("succeeded", ROWS, ROWS, ROWS // BATCH)]


def test_a_lock_held_for_ever_ends_the_run_with_a_sentence(
    items: Database, project: AlembicProject
) -> None:
    revision = sized(items)
    project.add(revision, IMPATIENT)
    with held(items, "SELECT count(*) FROM item"):
        stopped = project.alembic(items, "upgrade", "head")

    assert stopped.code == 1
    assert stopped.log.count("lock timeout, attempt") == 2
    assert stopped.sentence == (
        f"{revision.id} gave up after 3 attempts: canceling statement due to lock timeout; find out"
        " in pg_stat_activity who holds the lock, and run Alembic again, it goes on here"
    )
    assert version(items) == []
    ok(project.alembic(items, "upgrade", "head"))
    assert found_sizes(items) == sizes()


def test_two_upgrades_at_once_do_each_batch_once(items: Database, project: AlembicProject) -> None:
    revision = sized(items)
    project.add(revision, SMALL)

    with (
        project.start(items, "upgrade", "head") as one,
        project.start(items, "upgrade", "head") as other,
    ):
        outcomes = [one.end(), other.end()]

    assert 0 in [outcome.code for outcome in outcomes], outcomes
    assert walks(items) == [("succeeded", ROWS, ROWS, ROWS // BATCH)]
    assert found_sizes(items) == sizes()
    assert version(items) == [revision.id]


# ---------------------------------------------------------------- refused


def test_a_type_that_is_there_is_neither_used_nor_dropped(
    items: Database, project: AlembicProject
) -> None:
    query(items, "CREATE TYPE item_kind AS ENUM ('mine')")
    kinds = map_values("item", "note", {"1": "one"}, into="kind", type="enum", nullable=True)
    revision = render(items, Migration("kinds", *kinds.steps[1:]))
    project.add(revision)

    refused = project.alembic(items, "upgrade", "head")

    assert refused.sentence == (
        f"{revision.id} stopped, for it requires: no type item_kind yet; 1 rows fail, the first"
        " (item_kind); repair them and run Alembic again, it goes on here"
    )
    assert query(items, "SELECT unnest(enum_range(NULL::item_kind))::text") == ["mine"]


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("context.configure(\n            connection=", "connection.begin()\n        "),
        (
            "context.configure(\n            connection=",
            "connection.exec_driver_sql('SELECT 1')\n        ",
        ),
    ],
    ids=["begun", "used"],
)
def test_a_transaction_that_env_py_opened_is_refused(
    items: Database, project: AlembicProject, line: str, instead: str
) -> None:
    revision = sized(items)
    project.add(revision)
    text = project.env.read_text()
    assert text.count(line) == 1
    project.env.write_text(text.replace(line, f"{instead}{line}"))

    refused = project.alembic(items, "upgrade", "head")

    assert refused.code == 1
    assert refused.sentence == (
        f"{revision.id} commits each batch, but env.py opened a transaction before"
        " context.configure(); let Alembic open it, with context.begin_transaction()"
    )
    nothing = "SELECT to_regnamespace('datamig'), to_regclass('alembic_version')"
    assert query(items, nothing) == [(None, None)]
    assert query(items, "SELECT * FROM item LIMIT 1") == [(-3997, "%1")]


@pytest.mark.parametrize("per_migration", ["yes", "no"])
def test_the_revision_before_it_stays_whether_each_has_a_transaction_or_not(
    make_database: Callable[[str], Database], project: AlembicProject, per_migration: str
) -> None:
    """From nothing: the table by a revision of the user's, then ours, which fails, then passes."""
    model, fresh = make_database("template0"), make_database("template0")
    query(model, MAKE_ITEMS)
    project.add_plain("aaaa", MAKE_ITEMS)
    revision = render(
        model,
        Migration(
            "size the items",
            add_column("item", sa.Column("size", sa.Integer())),
            backfill("item", FILL),
            check("no item larger than 100", "SELECT id FROM item WHERE size > 100"),
        ),
        alembic=project.ini,
    )
    assert revision.down_revision == "aaaa"
    project.add(revision)
    project.add_plain("bbbb", "CREATE TABLE later ()", down=revision.id)

    stopped = project.alembic(fresh, "upgrade", "head", TRANSACTION_PER_MIGRATION=per_migration)
    assert (stopped.code, version(fresh)) == (1, ["aaaa"])
    assert "requires: no item larger than 100" in stopped.sentence

    query(fresh, "UPDATE item SET note = replace(note, '%', '')")
    ok(project.alembic(fresh, "upgrade", "head", TRANSACTION_PER_MIGRATION=per_migration))
    assert version(fresh) == ["bbbb"]
    assert query(fresh, "SELECT count(*) FROM item WHERE size = length(note)") == [ROWS]


# ---------------------------------------------------------------- the size of batches


LEAST, MOST = inlined.LEAST_BATCH_ROWS, inlined.MOST_BATCH_ROWS
ANY_ROWS = st.integers(LEAST, MOST)
ANY_SECONDS = st.floats(0, 1e6)


@pytest.fixture(scope="module")
def asking(samples: Database) -> Generator[psycopg.Connection[Any]]:
    with session(samples) as connection:
        yield connection


def next_rows(asking: psycopg.Connection[Any], rows: int, seconds: float, busy: bool) -> int:
    """Let PostgreSQL answer, as the batches do."""
    given = "(SELECT %s::bigint AS batch_rows, %s::float8 AS seconds, %s::boolean AS busy) AS given"
    answer = asking.execute(
        f"SELECT {inlined.NEXT_BATCH_ROWS} FROM {given}".encode(), (rows, seconds, busy)
    ).fetchone()
    assert answer is not None
    return int(answer[0])


@settings(deadline=None)
@given(ANY_ROWS, ANY_SECONDS, st.booleans())
def test_batches_stay_within_their_bounds_and_grow_at_most_by_half(
    asking: psycopg.Connection[Any], rows: int, seconds: float, busy: bool
) -> None:
    after = next_rows(asking, rows, seconds, busy)

    assert LEAST <= after <= min(MOST, rows * 1.5 + 1)


@settings(deadline=None)
@given(ANY_ROWS, ANY_SECONDS, ANY_SECONDS, st.booleans())
def test_a_slower_batch_is_never_followed_by_a_larger_one(
    asking: psycopg.Connection[Any], rows: int, seconds: float, more: float, busy: bool
) -> None:
    slower = next_rows(asking, rows, seconds + more, busy)

    assert slower <= next_rows(asking, rows, seconds, busy)


@settings(deadline=None)
@given(ANY_ROWS, ANY_SECONDS)
def test_batches_are_never_larger_while_others_write(
    asking: psycopg.Connection[Any], rows: int, seconds: float
) -> None:
    assert next_rows(asking, rows, seconds, True) <= next_rows(asking, rows, seconds, False)


@settings(deadline=None)
@given(st.integers(1_000, MOST), st.floats(1, 10))
def test_a_batch_that_took_too_long_shrinks_at_once(
    asking: psycopg.Connection[Any], rows: int, times: float
) -> None:
    after = next_rows(asking, rows, times * inlined.ALONE_SECONDS, False)

    assert abs(after - rows / times) <= 0.5 or after == LEAST


def test_batches_come_to_the_wanted_time_in_a_few_steps(asking: psycopg.Connection[Any]) -> None:
    """Rows that cost 0.1 ms, then 0.2 ms and others write, then 0.1 ms and nobody does."""
    rows, sizes = inlined.FIRST_BATCH_ROWS, list[int]()
    for milliseconds, busy in [(0.1, False)] * 8 + [(0.2, True)] * 2 + [(0.1, False)] * 10:
        rows = next_rows(asking, rows, rows * milliseconds / 1000, busy)
        sizes.append(rows)

    assert sizes[:5] == [3000, 4500, 5000, 5000, 5000]
    assert sizes[8:11] == [100, 100, 150]
    assert sizes[-1] == 5000

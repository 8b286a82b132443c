"""The functions copied into revisions, as Alembic runs them: every key, refusals, sizes of batches.

What becomes of them when they are killed, locked out and run twice is told in tests/faults.

Revisions are rendered, given small batches by their own lines of settings, and run by Alembic in a
process of its own, which cannot import our package.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from datamig_nb import inlined_sql, inlined_walk
from datamig_nb.checks import check
from datamig_nb.database import Database
from datamig_nb.migration import Migration, Step
from datamig_nb.names import TableName
from datamig_nb.operations import add_column
from datamig_nb.patterns import map_values
from datamig_nb.render import render
from datamig_nb.steps import backfill
from tests.alembic_project import AlembicProject
from tests.items import BATCH, FILL, MAKE_ITEMS, ROWS, SMALL, found_sizes, sized, sizes
from tests.runs import ok, version, walks
from tests.scratch import query, session

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
        f"{revision.id} stopped, for it requires: nothing has the names yet that this revision"
        " gives; 1 rows fail, the first (public,item_kind); repair them and run Alembic again,"
        " it goes on here"
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


LEAST, MOST = inlined_sql.LEAST_BATCH_ROWS, inlined_sql.MOST_BATCH_ROWS
ANY_ROWS = st.integers(LEAST, MOST)
ANY_SECONDS = st.floats(0, 1e6)


@pytest.fixture(scope="module")
def asking(samples: Database) -> Generator[psycopg.Connection[Any]]:
    with session(samples) as connection:
        yield connection


def next_rows(asking: psycopg.Connection[Any], rows: int, seconds: float, busy: bool) -> int:
    """Let PostgreSQL answer, as the batches do."""
    answer = asking.execute(
        f"SELECT {inlined_walk.NEXT_BATCH_ROWS} FROM (SELECT %s::bigint AS batch_rows) AS run,"
        f" (SELECT %s::float8 AS seconds, %s::boolean AS busy,"
        f" {inlined_sql.LEAST_BATCH_ROWS} AS least_rows) AS given".encode(),
        (rows, seconds, busy),
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
    after = next_rows(asking, rows, times * inlined_sql.ALONE_SECONDS, False)

    assert abs(after - rows / times) <= 0.5 or after == LEAST


def test_batches_come_to_the_wanted_time_in_a_few_steps(asking: psycopg.Connection[Any]) -> None:
    """Rows that cost 0.1 ms, then 0.2 ms and others write, then 0.1 ms and nobody does."""
    rows, sizes = inlined_sql.FIRST_BATCH_ROWS, list[int]()
    for milliseconds, busy in [(0.1, False)] * 8 + [(0.2, True)] * 2 + [(0.1, False)] * 10:
        rows = next_rows(asking, rows, rows * milliseconds / 1000, busy)
        sizes.append(rows)

    assert sizes[:5] == [3000, 4500, 5000, 5000, 5000]
    assert sizes[8:11] == [100, 100, 150]
    assert sizes[-1] == 5000

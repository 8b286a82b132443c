"""Rows computed in Python by revisions, as Alembic runs them: several at once, killed, refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from datamig_nb.database import Database
from tests.alembic_project import AlembicProject
from tests.runs import ok
from tests.scratch import query, session
from tests.transform_revision import HandWritten, call, transform_revision, with_tables

ROWS = 6_000
PARTED = {"PARTED_PAGES": 1}
SMALL = {**PARTED, "FIRST_BATCH_ROWS": 20, "TRANSFORM_SECONDS": 0.0001}  # batches of 10 rows
THREADS = {"workers": 2}
PROCESSES = {"workers": 2, "processes": True}

MAKE = f"""
CREATE TABLE large (id bigint PRIMARY KEY, old text, new text, digest varchar(64));
INSERT INTO large SELECT n, CASE WHEN n % 9 > 0 THEN '  A  Text ' || md5(n::text) END
  FROM generate_series(1, {ROWS}) AS n;
ANALYZE large
"""
WRONG = """
SELECT id FROM large
 WHERE new IS DISTINCT FROM replace(lower(btrim(old)), '  ', ' ')
    OR digest IS DISTINCT FROM encode(sha256(convert_to(new, 'UTF8')), 'hex')
"""
WHAT = {"key": ("id",), "reads": ("old",), "writes": ("new",), "checksum": "digest"}


# ---------------------------------------------------------------- helpers


def clean(value: str | None) -> str | None:
    return None if value is None else value.strip().lower().replace("  ", " ")


def cleaning(**how: object) -> HandWritten:
    return transform_revision(call("clean", "large", clean, **WHAT, **how), functions=(clean,))


def statuses(database: Database) -> set[str]:
    return set(query(database, "SELECT status FROM datamig.run"))


def sessions(database: Database) -> int:
    """Sessions of the database, the one that asks aside."""
    name = database.url.database
    return query(
        database,
        f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
    )[0]


@pytest.fixture
def large(database: Database) -> Database:
    """A database with the table ``large``."""
    return with_tables(database, MAKE)


# ---------------------------------------------------------------- what it does


@pytest.mark.parametrize("how", [{}, THREADS, PROCESSES], ids=["one", "threads", "processes"])
def test_rows_get_what_the_function_gives_and_its_checksum(
    large: Database, project: AlembicProject, how: dict[str, object]
) -> None:
    project.add(cleaning(**how), PARTED)

    ok(project.alembic(large, "upgrade", "head"))

    assert query(large, WRONG) == []
    parts = "SELECT count(*), sum(scanned)::int, sum(changed)::int FROM datamig.run WHERE part > 0"
    # one more for what others write meanwhile
    assert query(large, parts) == [(1 + int(str(how.get("workers", 1))), ROWS, ROWS - ROWS // 9)]
    assert statuses(large) == {"succeeded"}


def test_rows_that_are_right_already_are_not_written_again(
    large: Database, project: AlembicProject
) -> None:
    project.add(cleaning(**THREADS))
    ok(project.alembic(large, "upgrade", "head"))
    versions = "SELECT id, xmin::text, ctid::text FROM large ORDER BY id"
    before = query(large, versions)

    query(large, "DELETE FROM alembic_version; UPDATE datamig.run SET cursor = NULL")
    query(large, "UPDATE large SET new = 'wrong' WHERE id = 5")
    ok(project.alembic(large, "upgrade", "head"))

    after = query(large, versions)
    assert [a[0] for a, b in zip(after, before, strict=True) if a != b] == [5]
    assert query(large, WRONG) == []


def test_only_rows_of_the_condition_are_given_to_the_function(
    large: Database, project: AlembicProject
) -> None:
    where = "old LIKE '%:a%' OR old LIKE E'%\\\\:b%' OR id % 2 = 0"
    project.add(cleaning(where=where, **THREADS))

    ok(project.alembic(large, "upgrade", "head"))

    done = "SELECT count(*), min(id % 2) FROM large WHERE new IS NOT NULL"
    assert query(large, done) == [(ROWS // 2 - ROWS // 18, 0)]


def test_several_columns_are_written_from_a_tuple_and_read_from_expressions(
    large: Database, project: AlembicProject
) -> None:
    def halves(length: int, text: str | None) -> tuple[str | None, str | None]:
        return (None, None) if text is None else (f"{length}:{text}", text[::-1])

    reads = ("length(old) + 1", "upper(old)")
    line = call("halves", "large", halves, key=("id",), reads=reads, writes=("new", "digest"))
    project.add(transform_revision(line, functions=(halves,)))

    ok(project.alembic(large, "upgrade", "head"))

    wrong = (
        "SELECT id FROM large WHERE new IS DISTINCT FROM (length(old) + 1) || ':' || upper(old)"
        " OR digest IS DISTINCT FROM reverse(upper(old))"
    )
    assert query(large, wrong) == []


def test_sql_mode_is_refused_in_one_sentence(large: Database, project: AlembicProject) -> None:
    project.add(cleaning())

    refused = project.alembic(large, "upgrade", "head", "--sql")

    assert refused.sentence == ("c0ffee computes in Python, which no script can; run without --sql")


# ---------------------------------------------------------------- keys and tables

KEYS: Mapping[str, tuple[str, str, str]] = {
    "composite": (
        'tenant int, code text COLLATE "C"',
        "tenant, code",
        "SELECT n % 5, chr(65 + n % 26) || n FROM generate_series(1, 60) AS n",
    ),
    "texts": (
        "k text",
        "k",
        r"""
        VALUES (''), (' '), ('a'), (''''), ('\'), ('\''\:x'), ('"'), ('%s'), (' :y'), ('$1'),
               ('--'), ('ä'), ('日本'), ('🙂'), (E'a\tb'), (E'a\nb'), (chr(31)), ('NULL'), ('/*')
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
    "negatives": (
        "k bigint",
        "k",
        "SELECT -n * n * 1000003 FROM generate_series(1::bigint, 50) AS n"
        " UNION VALUES (-9223372036854775808), (9223372036854775807), (0)",
    ),
    '"Odd: Schema"."Odd "".Table"': (
        '"Key ""1""" int, "ORDER" text',
        '"ORDER", "Key ""1"""',
        "SELECT n, 'It''s ' || n % 3 FROM generate_series(1, 30) AS n",
    ),
    # names that the machinery uses itself
    "new": (
        "w0 int, number int",
        "number, w0",
        "SELECT n % 20, n / 20 FROM generate_series(0, 59) AS n",
    ),
    "target": ("ctids text", "ctids", "SELECT repeat('x', n) FROM generate_series(1, 30) AS n"),
    "empty": ("k int", "k", "SELECT 1 WHERE FALSE"),
    "spread": (
        "k int, region int",
        "region, k",
        "SELECT n, n % 3 FROM generate_series(1, 3000) AS n",
    ),
}


def test_every_row_is_computed_once_whatever_its_key(
    database: Database, project: AlembicProject
) -> None:
    """Also one spread over partitions; with small batches, in a zone whose clocks change."""

    def again(times: int, note: str) -> int:
        return times + len(note)

    with_tables(database, 'CREATE SCHEMA "Odd: Schema"')
    name = database.url.database
    query(database, f"ALTER DATABASE {name} SET timezone = 'Europe/Berlin'")
    lines: list[str] = []
    for table, (columns, key, values) in KEYS.items():
        parted = "PARTITION BY LIST (region)" if table == "spread" else ""
        names = ", ".join(column.split()[0] for column in columns.split(", "))
        names = '"Key ""1""", "ORDER"' if "Odd" in table else names
        more = "times int DEFAULT 7, \"no:te\" text DEFAULT 'x'"
        query(database, f"CREATE TABLE {table} ({columns}, {more}, PRIMARY KEY ({key})) {parted}")
        for n in range(3) if parted else ():
            query(database, f"CREATE TABLE spread_{n} PARTITION OF spread FOR VALUES IN ({n})")
        query(database, f"INSERT INTO {table} ({names}) {values}")
        parts = tuple(key.split(", "))
        what = {"key": parts, "reads": ("times", '"no:te"'), "writes": ("times",)}
        lines.append(call(f"do {table}", table, again, **what, **THREADS))
    project.add(transform_revision(*lines, functions=(again,)), SMALL)

    ok(project.alembic(database, "upgrade", "head"))

    found = {table: set(query(database, f"SELECT times FROM {table}")) for table in KEYS}
    assert found == {table: {8} if table != "empty" else set() for table in KEYS}
    counted = "SELECT step, sum(scanned)::int FROM datamig.run WHERE part > 0 GROUP BY step"
    rows = {f"do {table}": query(database, f"SELECT count(*) FROM {table}")[0] for table in KEYS}
    assert dict(query(database, counted)) == rows
    assert query(database, "SELECT max(part) FROM datamig.run WHERE step = 'do spread'") == [3]


# ---------------------------------------------------------------- values

VALUES = {
    "bigint": ["0", "-9223372036854775808"],
    "double precision": ["0.1", "NaN", "-Infinity", "-0", "1e-300", "0.30000000000000004"],
    "real": ["0.1", "3.4e38"],
    "numeric": ["1.00", "NaN", "-Infinity", "1e400", "0.1234567890123456789012345678901234567890"],
    "numeric(10,2)": ["1.50", "-99999999.99"],
    "boolean": ["t", "f"],
    "text": [
        *("", " ", "'", '"', "\\", "\x1f", "\x1e", "\x1f\x1e", "NULL", "{}", "a,b", "🙂", "\n"),
        "%s :x",
    ],
    "varchar(5)": ["abcde", "ab   "],
    "char(5)": ["ab"],
    "bytea": ["\\x", "\\x00ff5c27"],
    "date": ["2024-02-29", "0001-01-01", "9999-12-31"],
    "time": ["23:59:59.999999"],
    "timetz": ["12:00+05:30"],
    "timestamp": ["2024-02-29 12:00:00.000001", "0001-01-01", "9999-12-31 23:59:59.999999"],
    "timestamptz": ["2024-02-29 12:00:00.000001+14", "1800-01-01 00:00+00", "0001-01-02 00:00+00"],
    "interval": ["1 mon -1 day 36:00:00.5", "178000000 years", "1 day 24:00"],
    "uuid": ["123e4567-e89b-12d3-a456-426614174000"],
    "json": ['{"b": 1.10, "a": [1e400, null, "\\u00e4"]}', '"text"', "[]", "1234567890123456789.5"],
    "jsonb": [
        '{"b": 1.10, "a": [1e40, null, {"x": "\\""}]}',
        *('"text"', "false", "1.50", "123456789012345678901234567890"),
    ],
    "inet": ["10.0.0.1/8", "::1"],
    "int4range": ["[1,5)", "empty"],
    "point": ["(1.5,-2)"],
    "box": ["(3,4),(1,2)", "(2,2),(1,1)"],
    "mood": ["It's, fine", "{}"],
    "short_text": ["abc"],
    "integer[]": ["{}", "{1,NULL,3}", "{{1,2},{3,4}}"],
    "text[]": ['{NULL,"NULL",""," ","\\"","\\\\","a,b","{}"}', '{{a,NULL},{"",d}}'],
    "numeric[]": ["{1.10,NaN}"],
    "timestamptz[]": ["{2024-02-29 12:00:00+00,NULL}"],
    "bytea[]": ['{"\\\\x00ff"}'],
    "boolean[]": ["{t,f,NULL}"],
    "jsonb[]": ['{"[1, 2]","{\\"a\\": [null, 1.50]}",NULL}'],
    "uuid[]": ["{123e4567-e89b-12d3-a456-426614174000}"],
    "mood[]": ['{"It\'s, fine",NULL}'],
    "texts": ["{a,b}"],
}
TYPES = """
CREATE TYPE mood AS ENUM ('It''s, fine', '{}');
CREATE DOMAIN short_text AS varchar(3) CHECK (length(value) > 0);
CREATE DOMAIN texts AS text[]
"""


def make_values(database: Database) -> None:
    """A table with a column for each type and its copy; a row with NULL for each, then values."""
    with_tables(database, TYPES)
    columns = ", ".join(f"a{n} {kind}, b{n} {kind}" for n, kind in enumerate(VALUES))
    query(database, f"CREATE TABLE kinds (id serial PRIMARY KEY, {columns})")
    query(database, "INSERT INTO kinds DEFAULT VALUES")
    with session(database) as connection:
        for n, values in enumerate(VALUES.values()):
            for value in values:
                connection.execute(f"INSERT INTO kinds (a{n}) VALUES (%s)".encode(), [value])


def same(value: object) -> object:
    return value


def copying() -> HandWritten:
    lines = [
        call(f"copy {kind}", "kinds", same, key=("id",), reads=(f"a{n}",), writes=(f"b{n}",))
        for n, kind in enumerate(VALUES)
    ]
    return transform_revision(*lines, functions=(same,))


def not_copied(database: Database) -> dict[str, list[Any]]:
    """By type, the texts of values whose copy is not the same."""
    wrong = {
        kind: query(
            database,
            f"SELECT a{n}::text, b{n}::text FROM kinds"
            f" WHERE a{n}{cast} IS DISTINCT FROM b{n}{cast}",
        )
        for n, kind in enumerate(VALUES)
        # json keeps its text, which Python writes anew
        for cast in ["::jsonb::text" if kind == "json" else "::text"]
    }
    return {kind: rows for kind, rows in wrong.items() if rows}


# Name in the URL -> package.
DRIVERS = {
    "psycopg": "psycopg",
    "psycopg2": "psycopg2",
    "asyncpg": "asyncpg",
    "psycopg_async": "psycopg",
}


def use_driver(project: AlembicProject, driver: str) -> None:
    """Edit env.py for a driver, as the templates generic and async of Alembic have it."""
    pytest.importorskip(DRIVERS[driver])
    if driver in ("asyncpg", "psycopg_async"):
        pytest.importorskip("greenlet")
    text = project.env.read_text()
    url = 'os.environ["DATABASE_URL"]'
    text = text.replace(url, f'{url}.replace("+psycopg:", "+{driver}:")')
    if driver in ("asyncpg", "psycopg_async"):
        before, after = text.split("def run_migrations_online() -> None:")
        online, last = after.split("if context.is_offline_mode()")
        body = online[online.index("        context.configure(") :].replace("\n        ", "\n    ")
        text = (
            "import asyncio\nfrom sqlalchemy.ext.asyncio import async_engine_from_config\n"
            f"{before}def do_run_migrations(connection) -> None:\n    {body.strip()}\n\n\n"
            "async def run_async_migrations() -> None:\n"
            "    connectable = async_engine_from_config(\n"
            "        config.get_section(config.config_ini_section, {}),\n"
            '        prefix="sqlalchemy.", poolclass=pool.NullPool)\n'
            "    async with connectable.connect() as connection:\n"
            "        await connection.run_sync(do_run_migrations)\n"
            "    await connectable.dispose()\n\n\n"
            "def run_migrations_online() -> None:\n    asyncio.run(run_async_migrations())\n\n\n"
            f"if context.is_offline_mode(){last}"
        )
    project.env.write_text(text)


@pytest.mark.parametrize("driver", DRIVERS)
def test_values_of_every_type_survive_the_trip_with_every_driver(
    database: Database, project: AlembicProject, driver: str
) -> None:
    make_values(database)
    settings = {
        "datestyle": "SQL, DMY",
        "intervalstyle": "sql_standard",
        "timezone": "Asia/Kolkata",
        "bytea_output": "escape",
        "extra_float_digits": "0",
    }
    for name, value in settings.items():
        query(database, f"ALTER DATABASE {database.url.database} SET {name} = '{value}'")
    project.add(copying())
    use_driver(project, driver)

    ok(project.alembic(database, "upgrade", "head"))

    query(database, f"ALTER DATABASE {database.url.database} RESET ALL")
    assert not_copied(database) == {}


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg", "psycopg_async"])
def test_rows_are_computed_with_every_driver(
    large: Database, project: AlembicProject, driver: str
) -> None:
    project.add(cleaning(**THREADS))
    use_driver(project, driver)

    ok(project.alembic(large, "upgrade", "head"))

    assert query(large, WRONG) == []


def test_rows_are_computed_on_an_older_postgresql(older: Database, project: AlembicProject) -> None:
    make_values(older)
    query(older, MAKE)
    project.add(copying())
    ok(project.alembic(older, "upgrade", "head"))
    copied = not_copied(older)
    query(older, "DELETE FROM alembic_version")
    project.add(cleaning(**THREADS), PARTED)
    ok(project.alembic(older, "upgrade", "head"))

    assert (copied, query(older, WRONG)) == ({}, [])

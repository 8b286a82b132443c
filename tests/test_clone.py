"""A clone is the whole database, the source is only read, and no difference stays unseen."""

from __future__ import annotations

import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from datamig_nb.clone import cloned
from datamig_nb.clones import PREFIX, drop_clone
from datamig_nb.database import Database
from datamig_nb.errors import ConnectionFailedError, RehearsalError
from datamig_nb.names import TableName
from datamig_nb.snapshot import (
    Snapshot,
    differences,
    hash_columns,
    take_snapshot,
    user_tables,
    with_children,
)
from tests.scratch import query, scratch_database, session

MODULE = import_module("datamig_nb.clone")

# Every kind of type, name and table that a copy or a hash may stumble over.
EVERYTHING = r"""
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE SCHEMA "My Schema";
CREATE TABLE "My Schema"."Order ""1"" a" (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    "select" text,
    doc json,
    docb jsonb,
    bytes bytea,
    words text[],
    amount numeric,
    real double precision,
    at timestamptz,
    during tstzrange,
    mood mood,
    double_id int GENERATED ALWAYS AS (id * 2) STORED
);
INSERT INTO "My Schema"."Order ""1"" a"
    ("select", doc, docb, bytes, words, amount, real, at, during, mood)
VALUES (E'quote '' " \\ \t ü', '{"b": 1, "a": [null]}', '{"b": 1}', '\x00ff', '{a,NULL,""}',
        1.10, 0.1::float8 + 0.2, '2025-03-30 01:00+00', '[2025-01-01, 2025-02-01)', 'bad'),
       ('', 'null', 'null', '', '{}', 'NaN', 'Infinity', 'infinity', 'empty', 'good'),
       (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
CREATE TABLE log (at timestamp, line text);
INSERT INTO log SELECT '2025-01-01', 'line ' || n % 7 FROM generate_series(1, 50) n;
CREATE TABLE sale (id int, year int, total numeric(10, 2), PRIMARY KEY (year, id))
    PARTITION BY RANGE (year);
CREATE TABLE sale_2024 PARTITION OF sale FOR VALUES FROM (2024) TO (2025);
CREATE TABLE sale_new PARTITION OF sale DEFAULT PARTITION BY LIST (id);
CREATE TABLE sale_rest PARTITION OF sale_new DEFAULT;
INSERT INTO sale SELECT n, 2023 + n % 3, n / 3.0 FROM generate_series(1, 60) n;
CREATE TABLE pair (a text, b text, n int, PRIMARY KEY (a, b));
INSERT INTO pair VALUES ('x', 'y', 1), ('x,', 'y', 2), ('x', ',y', 3);
CREATE VIEW seen AS SELECT * FROM pair;
CREATE SCHEMA datamig;
CREATE TABLE datamig.run (id int);
"""

ORDER = TableName("My Schema", 'Order "1" a')
LOG, PAIR = TableName("public", "log"), TableName("public", "pair")


@pytest.fixture(scope="module")
def source(samples: Database) -> Iterator[Database]:
    """A database with something of every kind: only to be read."""
    with scratch_database(samples) as made:
        query(made, EVERYTHING)
        yield made


@pytest.fixture
def changing(database: Database) -> Database:
    """The same, for tests that change it."""
    query(database, EVERYTHING)
    return database


@pytest.fixture
def dumps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that a copy starts."""
    started: list[str] = []
    real: Callable[..., Any] = MODULE.subprocess.Popen.__init__

    def recording(self: object, command: list[Path], *more: Any, **named: Any) -> None:
        started.append(Path(command[0]).name)
        real(self, command, *more, **named)

    monkeypatch.setattr(MODULE.subprocess.Popen, "__init__", recording)
    return started


def snapshot(database: Database) -> Snapshot:
    """Everything that can be compared."""
    return take_snapshot(database, user_tables(database))


def values(database: Database) -> Snapshot:
    """The values alone, without the time that pg_dump takes."""
    tables = user_tables(database).items()
    return Snapshot(
        schema="", tables={name: hash_columns(database, name, columns) for name, columns in tables}
    )


def clones(database: Database) -> list[str]:
    """The clones that are on the server."""
    names = f"SELECT datname FROM pg_database WHERE datname LIKE '{PREFIX}%'"
    return query(database.at("postgres"), names)


# ---------------------------------------------------------------- the copy


def test_clone_holds_everything_and_the_source_stays_as_it_is(
    source: Database, dumps: list[str]
) -> None:
    before = snapshot(source)
    dumps.clear()

    with cloned(source, "whole") as clone:
        assert dumps == []  # nobody is connected: the server copies the files
        copy = snapshot(clone)
        assert clones(source) == [str(clone.url.database)]

    assert copy == before
    assert snapshot(source) == before
    assert clones(source) == []


def test_clone_of_a_database_in_use_holds_everything_too(
    source: Database, dumps: list[str]
) -> None:
    before = snapshot(source)
    dumps.clear()

    with session(source), cloned(source, "used") as clone:
        assert dumps == ["pg_dump", "pg_restore"]
        copy = snapshot(clone)

    assert copy == before
    assert snapshot(source) == before
    assert clones(source) == []


def test_clone_can_be_written_and_the_source_does_not_see_it(source: Database) -> None:
    before = snapshot(source)

    with cloned(source, "written") as clone:
        query(clone, "DELETE FROM pair; DROP TABLE log")

    assert snapshot(source) == before


@pytest.mark.parametrize("end", [ValueError, KeyboardInterrupt, SystemExit])
def test_clone_is_dropped_however_the_work_ends(source: Database, end: type[BaseException]) -> None:
    def work() -> None:
        with cloned(source, "dropped") as clone, session(clone):
            assert clones(source) == [str(clone.url.database)]
            raise end

    with pytest.raises(end):
        work()

    assert clones(source) == []


def test_only_a_clone_is_ever_dropped(source: Database) -> None:
    with pytest.raises(AssertionError, match="only a clone"):
        drop_clone(source)

    assert query(source, "SELECT count(*) FROM pair") == [3]


# ---------------------------------------------------------------- what no copy takes along


@pytest.fixture
def role(samples: Database) -> Iterator[Callable[[str], str]]:
    """Make a role with some attributes, dropped after the test."""
    made: list[str] = []
    numbers = itertools.count(1)

    def make(attributes: str) -> str:
        name = f"clone_role_{next(numbers)}"
        query(samples, f"CREATE ROLE {name} LOGIN {attributes}")
        made.append(name)
        return name

    yield make
    for name in made:
        query(samples, f"DROP ROLE {name}")


def as_role(database: Database, name: str) -> Database:
    return dataclasses.replace(database, url=database.url.set(username=name))


@pytest.mark.parametrize("in_use", [False, True], ids=["template", "dump"])
def test_settings_of_the_database_travel(
    changing: Database, in_use: bool, role: Callable[[str], str]
) -> None:
    name = changing.url.database
    query(
        changing,
        f"""
        ALTER DATABASE {name} SET search_path = "My Schema", public, '';
        ALTER DATABASE {name} SET TimeZone = 'Asia/Kathmandu';
        ALTER DATABASE {name} SET default_transaction_read_only = on;
        ALTER DATABASE {name} SET DateStyle = 'German, DMY';
        ALTER ROLE postgres IN DATABASE {name} SET work_mem = '5MB'
        """,
    )
    wanted = ["search_path", "TimeZone", "default_transaction_read_only", "DateStyle", "work_mem"]
    settings = f"SELECT {', '.join(f'current_setting({setting!r})' for setting in wanted)}"
    expected = ('"My Schema", public, ""', "Asia/Kathmandu", "on", "German, DMY", "5MB")
    assert query(changing, settings) == [expected]
    # A copy by a role that does not own the source takes the same way as one of a source in use.
    used = as_role(changing, role("CREATEDB IN ROLE pg_read_all_data")) if in_use else changing
    expected = (*expected[:4], "4MB") if in_use else expected

    with cloned(used, "settings") as clone:
        copied = query(clone, settings)

    assert copied == [expected]


def test_setting_that_the_role_may_not_give_is_left_out(
    changing: Database, role: Callable[[str], str]
) -> None:
    name = changing.url.database
    query(
        changing,
        f"ALTER DATABASE {name} SET log_statement = 'all';"
        f"ALTER DATABASE {name} SET TimeZone = 'UTC'",
    )

    with cloned(as_role(changing, role("CREATEDB IN ROLE pg_read_all_data")), "left_out") as clone:
        settings = query(clone, "SELECT current_setting('TimeZone'), count(*) FROM pair")

    assert settings == [("UTC", 3)]


def test_clone_by_dump_has_the_encoding_and_the_locale_of_its_source(
    samples: Database, role: Callable[[str], str]
) -> None:
    alike = (
        "SELECT pg_encoding_to_char(encoding), datcollate, datctype, datlocprovider"
        " FROM pg_database WHERE datname = current_database()"
    )
    with scratch_database(
        samples, "template0 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C' LOCALE_PROVIDER libc"
    ) as source:
        query(
            source,
            "CREATE TABLE word (id int PRIMARY KEY, w text); INSERT INTO word VALUES (1, 'é')",
        )
        reader = as_role(source, role("CREATEDB IN ROLE pg_read_all_data"))

        with cloned(reader, "latin") as clone:
            found = query(clone, alike), values(clone)

        assert found == (query(source, alike), values(source))
        assert found[0] == [("LATIN1", "C", "C", "c")]


@pytest.mark.usefixtures("samples")
def test_clone_of_an_older_server_holds_everything_both_ways(older: Database) -> None:
    query(older, "CREATE ROLE reader LOGIN CREATEDB IN ROLE pg_read_all_data")
    query(older, EVERYTHING)

    with cloned(older, "template") as clone:
        copies = [snapshot(clone)]
    with cloned(as_role(older, "reader"), "dump") as clone:
        copies.append(values(clone))

    assert copies == [snapshot(older), values(older)]

    query(older, CANNOT_BE_RESTORED)
    with (
        pytest.raises(RehearsalError, match='new row for relation "row" violates check'),
        cloned(as_role(older, "reader"), "no"),
    ):
        pass
    assert clones(older) == []


# ---------------------------------------------------------------- what can go wrong


def test_clone_of_a_role_that_may_not_create_databases_lies_on_the_embedded_server(
    source: Database, role: Callable[[str], str]
) -> None:
    reader = role("IN ROLE pg_read_all_data")

    with cloned(as_role(source, reader), "elsewhere") as clone:
        assert clone.url.username == "postgres"
        assert values(clone) == values(source)

    assert clone.made == (
        f"copied with pg_dump and pg_restore to the embedded server, PostgreSQL {clone.version},"
        f" since '{reader}' may not create databases on the source's"
    )
    assert clones(source) == []


def test_role_that_may_not_reach_the_maintenance_database_is_told_so(
    source: Database, role: Callable[[str], str]
) -> None:
    stranger = as_role(source, role("CREATEDB"))
    query(source, "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")

    try:
        with pytest.raises(ConnectionFailedError, match="permission denied for database"):
            cloned(stranger, "no").__enter__()
    finally:
        query(source, "GRANT CONNECT ON DATABASE postgres TO PUBLIC")


def test_role_that_may_not_read_is_told_so(source: Database, role: Callable[[str], str]) -> None:
    stranger = as_role(source, role("CREATEDB"))

    with pytest.raises(RehearsalError) as raised, cloned(stranger, "no"):
        pass

    assert re.fullmatch(
        r"the clone could not be made with pg_dump and pg_restore: pg_dump: error: [^\n]*"
        r"permission denied for [^\n]*;"
        r' give the role the right to read all of it, or rehearse on="sample", which takes what it'
        r" may read",
        str(raised.value),
    )
    assert clones(source) == []


# The rule holds there; in a copy its table is filled later than the rows that it judges.
CANNOT_BE_RESTORED = """
CREATE TABLE "row" (n int);
CREATE TABLE rule (most int);
INSERT INTO rule VALUES (10);
CREATE FUNCTION fits(int) RETURNS boolean LANGUAGE sql AS
    'SELECT EXISTS (SELECT FROM public.rule WHERE $1 <= most)';
INSERT INTO "row" VALUES (1);
ALTER TABLE "row" ADD CHECK (fits(n));
CREATE TABLE very_big AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 20000)
"""


def test_restore_that_fails_early_does_not_wait_for_ever(
    database: Database, role: Callable[[str], str]
) -> None:
    query(database, CANNOT_BE_RESTORED)
    started = time.monotonic()

    with (
        pytest.raises(RehearsalError, match="with pg_dump and pg_restore: pg_restore: error: "),
        cloned(as_role(database, role("CREATEDB IN ROLE pg_read_all_data")), "early"),
    ):
        pass

    assert time.monotonic() - started < 30
    assert clones(database) == []


# ---------------------------------------------------------------- the comparison


def test_tables_are_all_but_postgres_own_and_ours(source: Database) -> None:
    assert {str(name): columns for name, columns in user_tables(source).items()} == {
        'My Schema.Order "1" a': (
            *("id", "select", "doc", "docb", "bytes", "words", "amount", "real", "at", "during"),
            *("mood", "double_id"),
        ),
        "public.log": ("at", "line"),
        "public.pair": ("a", "b", "n"),
        "public.sale": ("id", "year", "total"),
        "public.sale_2024": ("id", "year", "total"),
        "public.sale_new": ("id", "year", "total"),
        "public.sale_rest": ("id", "year", "total"),
    }


def test_rows_of_a_partitioned_table_are_those_of_its_partitions(source: Database) -> None:
    tables = values(source).tables

    counts = {name.name: hashes["number of rows"] for name, hashes in tables.items()}
    assert counts == {
        **{'Order "1" a': "3", "log": "50", "pair": "3"},
        **{"sale": "0", "sale_2024": "20", "sale_new": "0", "sale_rest": "40"},
    }
    short = TableName(None, "sale")
    found = with_children(source, [short, ORDER])
    names = ("sale", "sale_2024", "sale_new", "sale_rest")
    assert found == {short: tuple(TableName("public", name) for name in names), ORDER: (ORDER,)}


def test_order_of_the_rows_does_not_count(changing: Database) -> None:
    before = values(changing)
    query(
        changing,
        "CREATE TABLE kept AS SELECT * FROM log; TRUNCATE log;"
        "INSERT INTO log SELECT * FROM kept ORDER BY line; DROP TABLE kept;"
        "UPDATE pair SET n = n; UPDATE sale SET total = total",
    )

    assert values(changing) == before


CHANGES = {
    "a letter": ("\"select\" = replace(\"select\", 'ü', 'u')", ["select"]),
    "a blank": ('"select" = "select" || \' \'', ["select"]),
    "NULL against empty": ('"select" = coalesce("select", \'\')', ["select"]),
    "empty against NULL": ('"select" = nullif("select", \'\')', ["select"]),
    "order of keys in json": ('doc = \'{"a": [null], "b": 1}\' WHERE id = 1', ["doc"]),
    "null in json against NULL": ("docb = nullif(docb, 'null')", ["docb"]),
    "a byte": (r"bytes = '\x01ff' WHERE id = 1", ["bytes"]),
    "no bytes against NULL": (r"bytes = NULL WHERE bytes = ''", ["bytes"]),
    "an element": ('words = \'{a,"",""}\' WHERE id = 1', ["words"]),
    "a digit that is zero": ("amount = 1.1 WHERE id = 1", ["amount"]),
    "the last bit of a float": ("real = 0.3 WHERE id = 1", ["real"]),
    "a microsecond": ("at = at + interval '1 microsecond' WHERE id = 1", ["at"]),
    "a bound": ("during = '[2025-01-01, 2025-02-01]' WHERE id = 1", ["during"]),
    "a label": ("mood = 'good'", ["mood"]),
    "two columns": ("mood = 'good', amount = 7", ["amount", "mood"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_one_value_is_seen_in_its_column_alone(changing: Database, change: str) -> None:
    assignment, columns = CHANGES[change]
    before = values(changing)
    query(changing, f"UPDATE {ORDER.sql} SET {assignment}")

    found = differences(before, values(changing))

    assert found == tuple(f'My Schema.Order "1" a.{column}' for column in columns)


def test_values_swapped_between_two_rows_are_seen(changing: Database) -> None:
    before = values(changing)
    query(changing, "UPDATE pair SET n = 3 - n WHERE n < 3")

    assert differences(before, values(changing)) == ("public.pair.n",)


def test_parts_of_a_key_are_not_run_together(changing: Database) -> None:
    before = values(changing)
    query(changing, "UPDATE pair SET n = CASE n WHEN 2 THEN 3 WHEN 3 THEN 2 ELSE 1 END")

    assert differences(before, values(changing)) == ("public.pair.n",)


def test_lost_row_is_seen(changing: Database) -> None:
    before = values(changing)
    query(changing, "DELETE FROM sale WHERE id = 2 AND year = 2025")

    found = differences(before, values(changing))

    assert found[0] == "the number of rows of public.sale_rest"
    assert set(found[1:]) == {f"public.sale_rest.{column}" for column in ("id", "year", "total")}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("UPDATE log SET line = 'line 9' WHERE ctid = '(0,7)'", ("public.log.row",)),
        (
            "DELETE FROM log WHERE ctid = '(0,7)'",
            ("the number of rows of public.log", "public.log.row"),
        ),
        # One line 1 more, one line 2 less.
        (
            "DELETE FROM log WHERE ctid = '(0,2)'; INSERT INTO log VALUES ('2025-01-01', 'line 1')",
            ("public.log.row",),
        ),
    ],
)
def test_change_of_a_table_without_a_key_is_seen(
    changing: Database, change: str, found: tuple[str, ...]
) -> None:
    before = values(changing)
    query(changing, change)

    assert differences(before, values(changing)) == found


def test_only_the_columns_asked_for_are_hashed(changing: Database) -> None:
    before = hash_columns(changing, PAIR, ("a", "b", "n"))
    query(changing, "ALTER TABLE pair ADD new int DEFAULT 1; UPDATE pair SET n = 4 WHERE n = 3")

    after = hash_columns(changing, PAIR, ("a", "b", "n"))

    assert list(before) == ["number of rows", "a", "b", "n"]
    assert (after["b"] == before["b"], after["n"] == before["n"]) == (True, False)


def test_change_of_the_schema_is_told_by_its_lines(changing: Database) -> None:
    before = snapshot(changing)
    query(changing, "ALTER TABLE pair ALTER n SET DEFAULT 5; CREATE INDEX some_name ON log (line)")

    assert differences(before, snapshot(changing)) == (
        "the schema: n integer; n integer DEFAULT 5;"
        " CREATE INDEX some_name ON public.log USING btree (line);",
    )


def test_our_own_schema_and_the_tables_left_out_are_no_difference(
    changing: Database,
) -> None:
    before = snapshot(changing)
    query(
        changing,
        'DROP SCHEMA datamig CASCADE; CREATE TABLE "a.Version" (version_num text)',
    )

    without = [TableName("public", "a.Version")]
    after = take_snapshot(changing, user_tables(changing), without=without)
    assert differences(before, after) == ()


def test_table_that_is_gone_is_a_difference() -> None:
    hashes = {"number of rows": "3", "n": "123"}
    before = Snapshot(schema="a\nb", tables={PAIR: hashes, LOG: hashes})

    assert differences(before, Snapshot(schema="b\na", tables={LOG: hashes})) == (
        "the number of rows of public.pair",
        "public.pair.n",
        "the schema: its order",
    )

"""Data steps as exported files, run by Alembic: up, the right data, down, the data as before, up.

Batches are small, so that each walk has several; tables are small, so that each test has several
walks.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.checks import check, no_nulls, unchanged
from datamig_nb.database import Database
from datamig_nb.errors import DatamigError
from datamig_nb.migration import Migration, Step
from datamig_nb.operations import add_column, create_table, sql
from datamig_nb.preview import Preview, preview
from datamig_nb.render import Revision, render
from datamig_nb.server_setup import binaries
from datamig_nb.steps import back_up, backfill, delete_rows, insert_rows, keep_in_step
from tests.alembic_project import AlembicProject, Outcome, make_project
from tests.runs import ok
from tests.scratch import query, scratch_database, session

SMALL = {"FIRST_BATCH_ROWS": 4, "LEAST_BATCH_ROWS": 4, "MOST_BATCH_ROWS": 4}


def up(database: Database, project: AlembicProject, *steps: Step) -> Revision:
    """Render the steps, put the revision into the project and run it."""
    revision = added(database, project, *steps)
    ok(project.alembic(database, "upgrade", "head"))
    return revision


def added(database: Database, project: AlembicProject, *steps: Step) -> Revision:
    revision = render(database, Migration("change", *steps))
    project.add(revision, SMALL if "\nFIRST_BATCH_ROWS" in revision.text else {})
    return revision


def down(database: Database, project: AlembicProject) -> Outcome:
    return ok(project.alembic(database, "downgrade", "base"))


def contents(database: Database, *tables: str) -> dict[str, list[Any]]:
    """Every row of the tables, byte for byte, and their columns."""
    query(database, "SET bytea_output = 'hex'")
    columns = "SELECT attname, atttypid::regtype::text FROM pg_attribute WHERE attnum > 0 AND NOT"
    return {
        table: [
            *query(database, f"{columns} attisdropped AND attrelid = '{table}'::regclass"),
            *query(database, f"SELECT (t.*)::text FROM {table} AS t ORDER BY 1"),
        ]
        for table in tables
    }


def there_and_back(
    database: Database, project: AlembicProject, tables: Sequence[str], *steps: Step
) -> Revision:
    """Up, down, up again: the data is as before in between, and the same at both ends."""
    before = contents(database, *tables)
    revision = up(database, project, *steps)
    first = contents(database, *tables)
    down(database, project)
    assert contents(database, *tables) == before
    assert left_behind(database) == []
    ok(project.alembic(database, "upgrade", "head"))
    assert contents(database, *tables) == first
    return revision


def left_behind(database: Database) -> list[Any]:
    """What a downgrade leaves of ours beside its notes."""
    return query(
        database,
        "SELECT relname FROM pg_class WHERE relnamespace = 'datamig'::regnamespace"
        " AND relkind = 'r' AND relname NOT IN ('run', 'quarantine', 'conflict')",
    )


def walks(database: Database) -> dict[str, tuple[Any, ...]]:
    """Status, rows scanned and rows changed of each walk, by its name."""
    rows = query(
        database,
        "SELECT step, status, scanned::int, changed::int FROM datamig.run WHERE part = 1",
    )
    return {name: tuple(rest) for name, *rest in rows}


def conflicts(database: Database) -> list[Any]:
    """Key, before, after and found of each conflict."""
    return query(
        database, "SELECT key, before, after, found FROM datamig.conflict ORDER BY key, relation"
    )


def refused(database: Database, project: AlembicProject, *steps: Step) -> str:
    """What the revision says when it stops."""
    revision = added(database, project, *steps)
    outcome = project.alembic(database, "upgrade", "head")
    assert outcome.code == 1
    return outcome.sentence.replace(revision.id, "it")


@contextmanager
def role(database: Database, schema: str, *tables: str) -> Generator[Database]:
    """The database as a role sees it that owns these tables and is no superuser."""
    name = database.url.database
    query(
        database,
        f"CREATE ROLE limited LOGIN; GRANT CREATE ON DATABASE {name} TO limited;"
        f"GRANT {schema} ON SCHEMA public TO limited;"
        + ";".join(f"ALTER TABLE {table} OWNER TO limited" for table in tables),
    )
    try:
        yield replace(database, url=database.url.set(username="limited"))
    finally:
        query(database, "DROP OWNED BY limited CASCADE; DROP ROLE limited")


def new(table: str, column: str, kind: Any = None) -> Step:
    return add_column(table, sa.Column(column, kind or sa.Text()))


# ---------------------------------------------------------------- backfill

SHOP = """
CREATE TABLE person (id int PRIMARY KEY, name text, level int);
CREATE TABLE sale (id bigint PRIMARY KEY, person_id int, amount numeric(10,2), place text,
                   made date);
INSERT INTO person SELECT n, 'p' || n, n % 3 FROM generate_series(1, 9) AS n;
INSERT INTO sale SELECT n * 7 - 30, nullif(n % 11, 0), n * 1.10, chr(97 + n % 3),
                        date '2026-01-01' + n % 5 FROM generate_series(1, 40) AS n
"""


@pytest.fixture
def shop(database: Database) -> Database:
    """Persons, and their sales; some sales have no person, some one that is not there."""
    query(database, SHOP)
    return database


def test_a_row_that_gets_no_value_is_not_rewritten_but_where_nearly_every_row_gets_one(
    database: Database, project: AlembicProject
) -> None:
    query(database, "CREATE TABLE item (id int PRIMARY KEY)")
    query(database, "INSERT INTO item SELECT n FROM generate_series(1, 400) AS n")
    half = "CASE WHEN id <= 200 THEN id END"
    fills = {"every": "id", "second": "nullif(id % 2, 0)", "half": half}

    up(
        database,
        project,
        *(new("item", column, sa.Integer()) for column in fills),
        *(backfill("item", {column: value}) for column, value in fills.items()),
    )

    found = query(database, "SELECT count(every), count(second), count(half) FROM item")
    changed = {name.removeprefix("fill "): rows for name, (*_, rows) in walks(database).items()}
    assert tuple(found[0]) == (400, 200, 200)
    assert (changed["every"], changed["second"]) == (400, 200)
    assert 200 <= changed["half"] <= 200 + 16 * SMALL["MOST_BATCH_ROWS"]


def test_two_backfills_of_one_column_take_the_rows_that_they_name(
    shop: Database, project: AlembicProject
) -> None:
    there_and_back(
        shop,
        project,
        ["sale"],
        new("sale", "size"),
        backfill("sale", {"size": "'large'"}, where="amount >= 30"),
        backfill("sale", {"size": "'small'"}, where=sa.column("amount") < 10),
    )

    found = "SELECT size, count(*), min(amount)::text, max(amount)::text FROM sale GROUP BY 1"
    assert query(shop, f"{found} ORDER BY 2") == [
        ("small", 9, "1.10", "9.90"),
        ("large", 13, "30.80", "44.00"),
        (None, 18, "11.00", "29.70"),
    ]


def test_a_later_backfill_of_the_same_rows_wins_and_sees_what_the_first_one_wrote(
    shop: Database, project: AlembicProject
) -> None:
    there_and_back(
        shop,
        project,
        ["sale"],
        new("sale", "size"),
        new("sale", "loud", sa.String(8)),
        backfill("sale", {"size": "CASE WHEN amount < 20 THEN 'small' ELSE 'large' END"}),
        backfill("sale", {"size": "'none'"}, where="size = 'small' AND person_id IS NULL"),
        backfill("sale", {"loud": "upper(size)"}),
    )

    assert query(shop, "SELECT size, loud, count(*) FROM sale GROUP BY 1, 2 ORDER BY 3") == [
        ("none", "NONE", 1),
        ("small", "SMALL", 17),
        ("large", "LARGE", 22),
    ]


def test_what_a_later_step_makes_of_a_row_is_not_undone_when_the_run_goes_on(
    shop: Database, project: AlembicProject
) -> None:
    """The first walk would find its rows undone, and make them so again from changed sources."""
    never = check("nothing holds", "SELECT 1 FROM sale LIMIT 1")
    steps = (
        new("sale", "label"),
        backfill("sale", {"label": "name"}, using="person", on="person.id = person_id"),
        back_up("sale", "amount"),
        backfill("sale", {"amount": "0"}, where="label = 'p1'"),
        back_up("person", "name"),
        backfill("person", {"name": "NULL"}),
        delete_rows("sale", "amount = 0"),
        insert_rows(
            "sale", "SELECT id - 900 AS id, 0 AS amount, id AS person_id FROM person", key="id"
        ),
    )
    before = contents(shop, "person")
    revision = added(shop, project, *steps, never)

    first = project.alembic(shop, "upgrade", "head")
    after_first = contents(shop, "sale", "person")
    noted = walks(shop)
    second = project.alembic(shop, "upgrade", "head")

    assert (first.code, second.code) == (1, 1)
    assert "requires: nothing holds" in first.sentence
    assert second.sentence == first.sentence
    assert contents(shop, "sale", "person") == after_first
    assert walks(shop) == noted
    assert before != {"person": after_first["person"]}
    assert query(shop, "SELECT count(*) FROM sale WHERE label IS NOT NULL") == [30]
    assert revision.id


def test_partners_are_found_by_a_join_an_aggregate_the_latest_of_a_group_and_a_chain(
    shop: Database, project: AlembicProject
) -> None:
    query(
        shop,
        "CREATE TABLE country (code text PRIMARY KEY, long text);"
        "INSERT INTO country VALUES ('a', 'Andorra'), ('b', NULL)",
    )
    latest = "SELECT DISTINCT ON (person_id) person_id, place FROM sale ORDER BY 1, made DESC, id"
    there_and_back(
        shop,
        project,
        ["person", "sale"],
        new("sale", "buyer"),
        new("person", "total", sa.Numeric(12, 1)),
        new("person", "last_place"),
        new("person", "last_country"),
        backfill("sale", {"buyer": "p.name"}, using="person AS p", on="p.id = sale.person_id"),
        backfill(
            "person",
            {"total": "s.total"},
            using="(SELECT person_id, sum(amount) AS total FROM sale GROUP BY 1) AS s",
            on="s.person_id = person.id",
            where="level > 0",
        ),
        backfill(
            "person",
            {
                "last_place": "s.place",
                "last_country": "coalesce(country.long, country.code, 'unknown')",
            },
            using=f"({latest}) AS s LEFT JOIN country ON country.code = s.place",
            on="s.person_id = person.id",
        ),
    )

    assert query(
        shop,
        "SELECT count(*) FROM sale LEFT JOIN person ON person.id = person_id"
        " WHERE buyer IS DISTINCT FROM name",
    ) == [0]
    assert query(shop, "SELECT count(*) FROM sale WHERE buyer IS NULL") == [6]
    wrong = "SELECT p.id FROM person AS p WHERE total IS DISTINCT FROM"
    assert (
        query(
            shop,
            f"{wrong} (SELECT sum(amount)::numeric(12, 1) FROM sale WHERE person_id = p.id"
            " AND p.level > 0)",
        )
        == []
    )
    assert (
        query(
            shop, "SELECT last_place, last_country, count(*) FROM person GROUP BY 1, 2 ORDER BY 1"
        )
        == LAST
    )


LAST = [("a", "Andorra", 3), ("b", "b", 3), ("c", "unknown", 3)]


def test_keys_of_partners_may_be_null_where_the_condition_says_so(
    shop: Database, project: AlembicProject
) -> None:
    query(
        shop,
        "CREATE TABLE tariff (place text, factor int);"
        "INSERT INTO tariff VALUES ('a', 2), (NULL, 5);"
        "UPDATE sale SET place = NULL WHERE place = 'b'",
    )

    there_and_back(
        shop,
        project,
        ["sale"],
        new("sale", "factor", sa.Integer()),
        backfill(
            "sale",
            {"factor": "tariff.factor"},
            using="tariff",
            on="tariff.place IS NOT DISTINCT FROM sale.place",
        ),
    )

    assert query(shop, "SELECT place, factor, count(*) FROM sale GROUP BY 1, 2 ORDER BY 2") == [
        ("a", 2, 13),
        (None, 5, 14),
        ("c", None, 13),
    ]


def test_a_row_with_two_partners_is_refused_before_the_first_write(
    shop: Database, project: AlembicProject
) -> None:
    query(shop, "INSERT INTO person VALUES (101, 'p3', 1), (102, 'p3', 1), (103, 'p4', 1)")
    query(shop, "ALTER TABLE sale ADD buyer text; UPDATE sale SET buyer = 'p' || person_id")
    step = backfill(
        "sale", {"person_id": "person.id"}, using="person", on="person.name = sale.buyer"
    )
    before = contents(shop, "sale")

    sentence = refused(shop, project, step)

    assert sentence == (
        "it stopped, for it requires: each row of sale has one partner at most; 8 rows fail, the"
        " first (-9,3), (-2,2), (68,3), (75,2), (145,3); repair them and run Alembic again, it goes"
        " on here"
    )
    assert contents(shop, "sale") == before
    assert walks(shop) == {}


def test_a_remapped_key_is_remapped_once(shop: Database, project: AlembicProject) -> None:
    """The map's new keys are old ones too: a second time would go on along the chain."""
    query(
        shop,
        "CREATE TABLE remap AS SELECT n AS old, n % 9 + 1 AS new FROM generate_series(1, 9)"
        " AS n; ALTER TABLE sale ADD CONSTRAINT known CHECK (person_id <> 99)",
    )
    step = backfill(
        "sale", {"person_id": "remap.new"}, using="remap", on="remap.old = sale.person_id"
    )

    there_and_back(shop, project, ["sale"], back_up("sale", "person_id"), step)

    assert query(
        shop,
        "SELECT count(*) FROM sale WHERE person_id IS DISTINCT FROM"
        " CASE WHEN ((id + 30) / 7) % 11 < 10 THEN"
        " nullif(((id + 30) / 7) % 11, 0) % 9 + 1 ELSE 10 END",
    ) == [0]


def test_volatile_expressions_are_asked_once_for_each_row(
    shop: Database, project: AlembicProject
) -> None:
    """And the downgrade does not take what they gave for an edit of somebody's."""
    query(shop, "CREATE SEQUENCE tickets")
    steps = (
        new("sale", "token", sa.Uuid()),
        new("sale", "seen", sa.DateTime(timezone=True)),
        new("sale", "ticket", sa.BigInteger()),
        backfill("sale", {"token": "gen_random_uuid()"}),
        backfill("sale", {"seen": sa.func.now()}),
        backfill("sale", {"ticket": "nextval('tickets')"}, where="amount > 11"),
    )
    before = contents(shop, "sale")

    up(shop, project, *steps)

    distinct = "SELECT count(DISTINCT token), count(seen), count(DISTINCT ticket) FROM sale"
    assert query(shop, distinct) == [(40, 40, 30)]
    assert query(shop, "SELECT last_value FROM tickets") == [30]
    assert walks(shop) == {
        "fill token": ("succeeded", 40, 40),
        "fill seen": ("succeeded", 40, 40),
        "fill ticket": ("succeeded", 40, 30),
    }
    down(shop, project)
    assert contents(shop, "sale") == before


def test_values_that_the_type_of_their_column_alters_are_written_once(
    shop: Database, project: AlembicProject
) -> None:
    """A rounded number, a padded text, a shortened time: not done over and over."""
    query(shop, "ALTER TABLE sale ADD code char(5), ADD whole int, ADD short time(0)")

    there_and_back(
        shop,
        project,
        ["sale"],
        new("sale", "share", sa.Numeric(10, 2)),
        new("sale", "single", sa.REAL()),
        new("sale", "said"),
        new("sale", "day", sa.Date()),
        back_up("sale", "code", "whole", "short"),
        backfill("sale", {"share": "amount / 3", "single": "amount::float8 / 7"}),
        backfill("sale", {"said": "id * 2", "day": "made::timestamp + interval '1 hour'"}),
        backfill(
            "sale", {"code": "'x' || place", "whole": "amount", "short": "'10:00:00.6'::time"}
        ),
    )

    assert walks(shop) == {
        "fill share, single": ("succeeded", 40, 40),
        "fill said, day": ("succeeded", 40, 40),
        "fill code, whole, short": ("succeeded", 40, 40),
    }
    assert query(
        shop,
        "SELECT share::text, said, day::text, code, whole, short::text FROM sale WHERE id = -16",
    ) == [("0.73", "-32", "2026-01-03", "xc   ", 2, "10:00:01")]


def test_a_price_in_place_is_raised_once_however_often_the_run_is_begun(
    shop: Database, project: AlembicProject
) -> None:
    query(shop, "CREATE INDEX ON sale (amount)")
    never = check("nothing holds", "SELECT 1 FROM sale LIMIT 1")
    steps = (back_up("sale", "amount"), backfill("sale", {"amount": "amount * 1.5"}))
    added(shop, project, *steps, never)

    for _ in range(3):
        assert project.alembic(shop, "upgrade", "head").code == 1

    wrong = "SELECT count(*) FROM sale WHERE amount <> round((id + 30) / 7 * 1.10 * 1.5, 2)"
    assert query(shop, wrong) == [0]
    assert walks(shop) == {"fill amount": ("succeeded", 40, 40)}


def test_columns_may_change_places(shop: Database, project: AlembicProject) -> None:
    query(shop, "ALTER TABLE person ADD nick text; UPDATE person SET nick = upper(name)")
    steps = (
        back_up("person", "name", "nick"),
        backfill("person", {"name": sa.column("nick"), "nick": "name"}),
    )

    there_and_back(shop, project, ["person"], *steps)

    assert query(shop, "SELECT name, nick FROM person WHERE id = 4") == [("P4", "p4")]


def test_rows_right_already_are_left_alone_in_columns_without_equality(
    database: Database, project: AlembicProject
) -> None:
    """Documents as json: compared by their text; a trigger on them lets updates through."""
    query(
        database,
        "CREATE TABLE paper (id int PRIMARY KEY, body json, spot point, x xml);"
        """INSERT INTO paper SELECT n, format('{"n":  %s}', n)::json, point(n, n) """
        "FROM generate_series(1, 20) AS n; UPDATE paper SET body = '{}' WHERE id < 6",
    )
    documents = ["body", "spot"]
    there_and_back(
        database,
        project,
        ["paper"],
        new("paper", "copy", sa.JSON()),
        keep_in_step("paper", {"copy": "body"}),
        backfill("paper", {"copy": "body"}),
        back_up("paper", *documents),
        backfill("paper", {"body": "'{}'::json", "spot": "point(id, 0)"}),
    )

    assert walks(database)["fill body, spot"] == ("succeeded", 20, 20)
    query(database, "UPDATE paper SET body = '[1]' WHERE id = 3")
    assert query(database, "SELECT copy::text FROM paper WHERE id = 3") == ["[1]"]
    query(database, "UPDATE paper SET body = '{}', copy = '{}' WHERE id = 3")
    down(database, project)
    assert query(database, "SELECT body::text FROM paper WHERE id IN (3, 8) ORDER BY id") == [
        "{}",
        '{"n":  8}',
    ]


# ---------------------------------------------------------------- back_up

LONG = "a" * 60

#: Table -> its columns, its key, and values of the key and of the column "v".
KEPT: Mapping[str, tuple[str, str, str]] = {
    "composite": ("b text, a int, v int", "a, b", "SELECT 'b' || n % 3, n / 3, n"),
    "uuids": ("k uuid, v int", "k", "SELECT md5(n::text)::uuid, n"),
    "texts": ("k text, v int", "k", "SELECT repeat('''\\ \"%', n) || n, n"),
    "times": ("k timestamptz, v int", "k", "SELECT timestamptz 'epoch' + n * interval '1 us', n"),
    "numerics": ("k numeric, v int", "k", "SELECT n / 7.0, n"),
    '"Odd Schema"."Select"': ('"Key" int, "order" int, v int', '"Key", "order"', "SELECT n, -n, n"),
    '"odd""quoted"': ('"a""b" int, v int', '"a""b"', "SELECT n, n"),
    f'"{LONG}tbl"': (f'"{LONG}key" int, v int', f'"{LONG}key"', "SELECT n, n"),
    "names": ("v_before int, before_1 text, v int", "v_before", "SELECT n, 'x', n"),
}


def test_values_come_back_by_keys_of_every_kind(
    database: Database, project: AlembicProject
) -> None:
    query(database, 'CREATE SCHEMA "Odd Schema"')
    steps: list[Step] = []
    for table, (columns, key, values) in KEPT.items():
        query(
            database,
            f"CREATE TABLE {table} ({columns}, PRIMARY KEY ({key}));"
            f"INSERT INTO {table} {values} FROM generate_series(1, 9) AS n;"
            f"UPDATE {table} SET v = NULL WHERE v = 5",
        )
        steps += [back_up(table, "v"), backfill(table, {"v": "v * 3 + 0"}, where="v <> 4")]

    there_and_back(database, project, list(KEPT), *steps)

    assert set(walks(database).values()) == {("succeeded", 9, 7)}
    kept = query(
        database,
        "SELECT relname FROM pg_class WHERE relnamespace = 'datamig'::regnamespace"
        " AND relkind = 'r' AND relname LIKE 'kept%'",
    )
    assert len(kept) == len(KEPT)
    assert [query(database, f"SELECT count(*) FROM datamig.{name}") for name in kept] == [
        [7] for _ in kept
    ]


#: Column -> its type and its values before and after, as SQL.
TYPES = {
    "amount": ("numeric", "1.1000", "2"),
    "money_like": ("numeric(8,3)", "2.500", "7"),
    "paper": ("json", """'{"b":  1, "a": [ ]}'""", "'{}'"),
    "document": ("jsonb", """'{"a": 1.00}'""", "'[]'"),
    "bytes": ("bytea", r"'\x00ff27'", "''"),
    "numbers": ("int[]", "'[3:4]={1,NULL}'", "'{}'"),
    "words": ("text[]", """'{"a,b","",NULL}'""", "NULL"),
    "mood": ("mood", "'so so'", "'good'"),
    "level": ("level", "3", "4"),
    "at": ("timestamptz", "'infinity'", "'epoch'"),
    "lasts": ("interval", "'1 mon -2 days'", "'1 hour'"),
    "ratio": ("float8", "0.1::float8 + 0.2", "'NaN'"),
    "ranged": ("int4range", "'[1,5)'", "'empty'"),
    "blank": ("char(6)", "'ab'", "''"),
    "spot": ("point", "'(1.5,2)'", "'(0,0)'"),
    "nothing": ("text", "NULL", "''"),
    "v" * 63: ("text", "'long name'", "'new'"),
}


def test_values_of_every_type_come_back_byte_for_byte(
    database: Database, project: AlembicProject
) -> None:
    query(
        database,
        "CREATE TYPE mood AS ENUM ('so so', 'good'); CREATE DOMAIN level AS int CHECK (VALUE < 5)",
    )
    columns = ", ".join(f"{name} {kind}" for name, (kind, *_) in TYPES.items())
    olds = ", ".join(f"({old})::{kind}" for kind, old, _ in TYPES.values())
    query(
        database,
        f"CREATE TABLE thing (id int PRIMARY KEY, {columns});"
        f"INSERT INTO thing SELECT n, {olds} FROM generate_series(1, 6) AS n",
    )
    given = {name: f"({new})::{kind}" for name, (kind, _, new) in TYPES.items()}

    there_and_back(database, project, ["thing"], back_up("thing", *TYPES), backfill("thing", given))

    wrong = " OR ".join(
        f"({name})::text IS DISTINCT FROM ({value})::text" for name, value in given.items()
    )
    assert query(database, f"SELECT id FROM thing WHERE {wrong}") == []


def test_downgrade_restores_what_is_still_ours_and_lists_the_rest(
    shop: Database, project: AlembicProject
) -> None:
    """Edited in one of two columns, in the one that is not kept, back by hand, and deleted."""
    steps = (
        back_up("person", "name", "level"),
        backfill("person", {"name": "upper(name)", "level": "level + 10"}),
    )
    up(shop, project, *steps)
    query(
        shop,
        "UPDATE person SET name = 'edited' WHERE id = 1; UPDATE person SET level = 0 WHERE id = 3;"
        "UPDATE person SET name = NULL, level = NULL WHERE id = 5; DELETE FROM person WHERE id = 6",
    )

    down(shop, project)

    assert query(shop, "SELECT * FROM person WHERE id < 7 ORDER BY id") == [
        (1, "edited", 1),
        (2, "p2", 2),
        (3, "p3", 0),
        (4, "p4", 1),
        (5, None, None),
    ]
    assert conflicts(shop) == [
        (
            "(1)",
            {"name": "p1", "level": 1},
            {"name": "P1", "level": 11},
            {"name": "edited", "level": 1},
        ),
        (
            "(5)",
            {"name": "p5", "level": 2},
            {"name": "P5", "level": 12},
            {"name": None, "level": None},
        ),
        ("(6)", {"name": "p6", "level": 0}, {"name": "P6", "level": 10}, None),
    ]


def test_each_upgrade_after_a_downgrade_keeps_values_afresh(
    shop: Database, project: AlembicProject
) -> None:
    revision = there_and_back(
        shop,
        project,
        ["person"],
        back_up("person", "level"),
        backfill("person", {"level": "level * 2"}, where="id % 2 = 0"),
        backfill("person", {"level": "level + 100"}, where="id > 3"),
    )
    down(shop, project)
    query(shop, "UPDATE person SET level = 50 WHERE id = 4")
    before = contents(shop, "person")

    ok(project.alembic(shop, "upgrade", "head"))
    raised = query(shop, "SELECT level FROM person ORDER BY id")
    down(shop, project)

    assert raised == [1, 4, 0, 200, 102, 100, 101, 104, 100]
    assert contents(shop, "person") == before
    assert conflicts(shop) == []
    assert query(shop, f"SELECT step FROM datamig.run WHERE revision = '{revision.id}'") == [
        "downgrade"
    ]


def test_a_row_that_was_changed_again_gets_back_what_others_wrote_last(
    shop: Database, project: AlembicProject
) -> None:
    """A check stops the run, the row is written meanwhile; the way back begins in the middle."""
    edited = "UPDATE person SET level = {} WHERE id IN (2, 5)"
    revision = added(
        shop,
        project,
        back_up("person", "level"),
        backfill("person", {"level": "length(name) + id"}),
        check("nobody is bad", "SELECT id FROM person WHERE name = 'no'"),
    )
    before = contents(shop, "person")
    query(shop, "INSERT INTO person VALUES (99, 'no', 0)")
    for level in (50, 60):
        assert project.alembic(shop, "upgrade", "head").code == 1
        query(shop, edited.format(level) + "; UPDATE person SET name = 'longer' WHERE id = 2")
    assert project.alembic(shop, "upgrade", "head").code == 1
    query(shop, "DELETE FROM person WHERE id = 99; " + edited.format(70) + " AND id = 5")
    found = f"SELECT count(*) FROM datamig.kept_{revision.id}_2"
    assert query(shop, found) == [10 + 2 + 2]
    ok(project.alembic(shop, "stamp", "head"))

    down(shop, project)

    levels = query(shop, "SELECT level FROM person WHERE id IN (2, 5) ORDER BY id")
    query(shop, "UPDATE person SET level = 2 WHERE id IN (2, 5)")
    query(shop, "UPDATE person SET name = 'p2' WHERE id = 2")
    assert contents(shop, "person") == before
    assert levels == [60, 70]
    assert conflicts(shop) == [
        ("(5)", {"level": 60}, {"level": 7}, {"level": 70}),
        ("(99)", {"level": 0}, {"level": 101}, None),
    ]


def test_values_come_back_on_a_server_whose_returning_gives_no_old_values(
    older: Database, project: AlembicProject
) -> None:
    query(older, SHOP + "; ALTER TABLE sale ADD doc json DEFAULT '{}', ADD whole int")
    for role in ("replica", "origin"):
        there_and_back(
            older,
            replace(project, directory=make_project(project.directory / role).directory),
            ["sale"],
            back_up("sale", "amount", "doc", "place"),
            backfill(
                "sale",
                {"amount": "amount * 1.111", "doc": "json_build_array(id)", "whole": "amount"},
                where="id <> 5",
                fire_triggers=role == "origin",
            ),
            back_up("sale", "whole"),
            backfill("sale", {"place": "p.name"}, using="person AS p", on="p.id = person_id"),
            delete_rows("sale", "id = 12"),
        )

        found = "SELECT amount::text, doc::text, whole, place FROM sale WHERE id = -16"
        assert query(older, found) == [("2.44", "[-16]", 2, "p2")]
        query(older, "DROP TABLE alembic_version, sale, person; DROP SCHEMA datamig CASCADE")
        query(older, SHOP + "; ALTER TABLE sale ADD doc json DEFAULT '{}', ADD whole int")


# ---------------------------------------------------------------- insert_rows


def test_rows_put_in_are_taken_out_again(shop: Database, project: AlembicProject) -> None:
    """From a table, from GROUP BY, with ids that the table gives itself; into a new table too."""
    query(
        shop,
        "CREATE TABLE day (made date, place text, sum numeric, PRIMARY KEY (place, made));"
        "CREATE TABLE tag (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, word text UNIQUE,"
        "                  long int GENERATED ALWAYS AS (length(word)) STORED);"
        "INSERT INTO tag (word) VALUES ('mine'), ('b')",
    )
    place = create_table(
        "place",
        sa.Column("id", sa.Integer(), sa.Identity(), primary_key=True),
        sa.Column("code", sa.Text(), unique=True),
    )
    links = "SELECT sale.id AS sale_id, place.id AS place_id FROM sale JOIN place ON code = place"

    revision = up(
        shop,
        project,
        insert_rows(
            "day",
            "SELECT made, place, sum(amount) AS sum FROM sale GROUP BY 1, 2",
            key=["made", "place"],
        ),
        insert_rows(
            "tag", "SELECT DISTINCT place AS word FROM sale", key="word", on_conflict="nothing"
        ),
        place,
        insert_rows("place", "SELECT DISTINCT place AS code FROM sale", key="code"),
        create_table(
            "sale_place",
            sa.Column("sale_id", sa.BigInteger(), primary_key=True),
            sa.Column("place_id", sa.Integer(), primary_key=True),
        ),
        insert_rows("sale_place", links, key="sale_id", columns=["sale_id", "place_id"]),
    )

    assert query(shop, "SELECT count(*), sum(sum)::text FROM day") == [(15, "902.00")]
    assert query(shop, "SELECT word, long FROM tag ORDER BY 1") == [
        ("a", 1),
        ("b", 1),
        ("c", 1),
        ("mine", 4),
    ]
    assert query(shop, "SELECT count(*), count(DISTINCT place_id) FROM sale_place") == [(40, 3)]
    down(shop, project)
    assert query(shop, "SELECT count(*) FROM day") == [0]
    assert query(shop, "SELECT id, word FROM tag ORDER BY 1") == [(1, "mine"), (2, "b")]
    assert query(shop, "SELECT to_regclass('place'), to_regclass('sale_place')") == [(None, None)]
    assert left_behind(shop) == []
    ok(project.alembic(shop, "upgrade", "head"))
    assert query(shop, "SELECT count(*) FROM sale_place") == [40]
    assert revision.id


def test_rows_that_were_put_in_and_edited_since_stay_and_are_listed(
    shop: Database, project: AlembicProject
) -> None:
    """So do rows that somebody refers to since, where the reference would go with them."""
    query(
        shop,
        "CREATE TABLE town (code text PRIMARY KEY, size int);"
        "CREATE TABLE visit (code text REFERENCES town ON DELETE CASCADE)",
    )
    step = insert_rows("town", "SELECT DISTINCT place AS code, 1 AS size FROM sale", key="code")
    up(shop, project, step)
    query(shop, "UPDATE town SET size = 9 WHERE code = 'b'; INSERT INTO visit VALUES ('c')")

    down(shop, project)

    assert query(shop, "SELECT * FROM town ORDER BY 1") == [("b", 9), ("c", 1)]
    assert query(shop, "SELECT * FROM visit") == ["c"]
    assert conflicts(shop) == [
        ("(b)", None, {"code": "b", "size": 1}, {"code": "b", "size": 9}),
        ("(c)", None, {"code": "c", "size": 1}, {"code": "c", "size": 1}),
    ]


def test_rows_that_on_conflict_changed_get_their_values_back(
    shop: Database, project: AlembicProject
) -> None:
    """New rows are taken out, changed ones restored, untouched ones left, edited ones listed."""
    query(shop, "INSERT INTO person VALUES (15, 'last', NULL), (16, 'untouched', 3)")
    step = insert_rows(
        "person",
        "SELECT id + 5 AS id, 'new' || id AS name FROM person WHERE id < 11",
        key="id",
        on_conflict="(id) DO UPDATE SET name = person.name || '+' || excluded.name",
    )

    there_and_back(shop, project, ["person"], step)

    assert query(shop, "SELECT * FROM person WHERE id > 7 ORDER BY id") == [
        (8, "p8+new3", 2),
        (9, "p9+new4", 0),
        *((n, f"new{n - 5}", None) for n in range(10, 15)),
        (15, "last", None),
        (16, "untouched", 3),
    ]
    query(shop, "UPDATE person SET name = 'mine' WHERE id IN (8, 12)")
    down(shop, project)
    assert query(shop, "SELECT id, name FROM person WHERE id > 7 ORDER BY id") == [
        (8, "mine"),
        (9, "p9"),
        (12, "mine"),
        (15, "last"),
        (16, "untouched"),
    ]
    assert [(key, found["name"]) for key, _, _, found in conflicts(shop)] == [
        ("(12)", "mine"),
        ("(8)", "mine"),
    ]


def test_null_in_the_key_of_a_query_is_refused_before_the_first_write(
    shop: Database, project: AlembicProject
) -> None:
    query(shop, "CREATE TABLE buyer (person_id int PRIMARY KEY)")
    step = insert_rows("buyer", "SELECT DISTINCT person_id FROM sale", key="person_id")

    assert refused(shop, project, step) == (
        "it stopped, for it requires: no person_id is NULL in what buyer gets; 1 rows fail, the"
        " first (); repair them and run Alembic again, it goes on here"
    )
    assert query(shop, "SELECT * FROM buyer") == []


def test_a_query_over_all_rows_is_run_once_whatever_is_written_meanwhile(
    shop: Database, project: AlembicProject
) -> None:
    """Else the rows that each batch lets come in before all others would shift the numbers."""
    query(
        shop,
        "CREATE TABLE rank (n bigint PRIMARY KEY, person_id int);"
        "CREATE FUNCTION write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        "    INSERT INTO person (id) SELECT min(id) - 1 FROM person; RETURN NULL; END $$;"
        "CREATE TRIGGER write AFTER INSERT ON rank EXECUTE FUNCTION write()",
    )
    numbered = "SELECT row_number() OVER (ORDER BY id) AS n, id AS person_id FROM person"
    before = query(shop, numbered)

    up(shop, project, insert_rows("rank", numbered, key="n"))

    assert query(shop, "SELECT * FROM rank ORDER BY n") == before
    assert query(shop, "SELECT count(*) FROM person WHERE id < 1") == [math.ceil(len(before) / 4)]
    assert all("kept" in name for name in left_behind(shop))


def test_a_query_over_all_rows_is_run_again_once_a_row_of_it_is_repaired(
    shop: Database, project: AlembicProject
) -> None:
    query(shop, "CREATE TABLE crowd (level int PRIMARY KEY, people int CHECK (people < 3))")
    step = insert_rows(
        "crowd",
        "SELECT id % 3 AS level, count(*) AS people FROM person GROUP BY 1",
        key="level",
    )

    assert "row (0) of crowd cannot be done" in refused(shop, project, step)
    query(shop, "DELETE FROM sale; DELETE FROM person WHERE id IN (3, 4, 5)")
    ok(project.alembic(shop, "upgrade", "head"))

    assert query(shop, "SELECT * FROM crowd ORDER BY 1") == [(0, 2), (1, 2), (2, 2)]


def test_a_partner_made_of_all_rows_is_made_once_and_again_where_rows_were_written_meanwhile(
    shop: Database, project: AlembicProject
) -> None:
    query(
        shop,
        "CREATE FUNCTION write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        "    UPDATE sale SET amount = 500 WHERE person_id = 2; RETURN NULL; END $$;"
        "CREATE TRIGGER write AFTER UPDATE ON person EXECUTE FUNCTION write()",
    )
    sums = "SELECT person_id, sum(amount) AS sum FROM sale GROUP BY person_id"
    step = backfill(
        "person", {"total": "s.sum"}, using=f"({sums}) AS s", on="s.person_id = person.id"
    )

    up(shop, project, new("person", "total", sa.Numeric()), step)

    found = query(shop, f"SELECT id, total, sum FROM person JOIN ({sums}) AS s ON person_id = id")
    assert len(found) == 9
    assert all(total == sum for _, total, sum in found)
    assert walks(shop) == {"fill total": ("succeeded", 18, 10)}
    assert left_behind(shop) == []


def test_a_row_that_is_there_already_stops_the_insert_and_is_named(
    shop: Database, project: AlembicProject
) -> None:
    step = insert_rows("person", "SELECT n AS id FROM generate_series(7, 12) AS n", key="id")

    assert refused(shop, project, step) == (
        "it failed at 'insert into person (1)': row (7) of person cannot be done: duplicate key"
        ' value violates unique constraint "person_pkey"; run Alembic again, it goes on here'
    )
    query(shop, "DELETE FROM person WHERE id > 6")
    ok(project.alembic(shop, "upgrade", "head"))
    assert query(shop, "SELECT id FROM person ORDER BY 1") == list(range(1, 13))


# ---------------------------------------------------------------- delete_rows


def test_deleted_rows_come_back_as_they_were(shop: Database, project: AlembicProject) -> None:
    """With identity and generated columns, and from a table without a key."""
    query(
        shop,
        "CREATE TABLE note (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body json,"
        "  long int GENERATED ALWAYS AS (length(body::text)) STORED, at timestamptz);"
        "INSERT INTO note (body, at) SELECT format('{\"n\": %s}', n)::json, '2026-01-01'"
        "  FROM generate_series(1, 15) AS n;"
        "ALTER TABLE note DROP COLUMN at;"
        "CREATE TABLE log (line text, size numeric);"
        "INSERT INTO log SELECT repeat('x', 2000) || n % 3, 1.10 FROM generate_series(1, 40) AS n;"
        "ALTER TABLE log ALTER line SET STORAGE PLAIN; ANALYZE",
    )

    there_and_back(
        shop,
        project,
        ["note", "log"],
        delete_rows("note", "id % 3 = 0 OR\nid = 1"),
        delete_rows("log", "line LIKE '%1'"),
    )

    assert query(shop, "SELECT id FROM note ORDER BY 1") == [2, 4, 5, 7, 8, 10, 11, 13, 14]
    assert query(shop, "SELECT count(*) FROM log") == [26]
    assert conflicts(shop) == []


def test_deleted_rows_whose_key_is_taken_meanwhile_are_listed(
    shop: Database, project: AlembicProject
) -> None:
    up(shop, project, delete_rows("person", "level = 1"))
    query(shop, "INSERT INTO person VALUES (4, 'other', 8), (7, 'p7', 1)")

    down(shop, project)

    assert query(shop, "SELECT * FROM person WHERE id IN (1, 4, 7) ORDER BY 1") == [
        (1, "p1", 1),
        (4, "other", 8),
        (7, "p7", 1),
    ]
    before, found = {"id": 4, "name": "p4", "level": 1}, {"id": 4, "name": "other", "level": 8}
    assert conflicts(shop) == [("(4)", before, None, found)]


def test_rows_that_were_not_kept_cannot_come_back(shop: Database, project: AlembicProject) -> None:
    up(shop, project, delete_rows("sale", "person_id IS NULL", keep=False))

    outcome = project.alembic(shop, "downgrade", "base")

    assert query(shop, "SELECT count(*) FROM sale") == [37]
    assert outcome.code == 1
    assert outcome.sentence.endswith(
        " cannot be undone: the rows deleted from sale were not kept; restore them from a backup"
    )


ORDERS = """
CREATE TABLE "Order" (id int PRIMARY KEY, state text);
CREATE TABLE line (order_id int, number int, PRIMARY KEY (order_id, number),
                   CONSTRAINT line_order FOREIGN KEY (order_id) REFERENCES "Order" {action});
INSERT INTO "Order" SELECT n, CASE WHEN n % 3 = 0 THEN 'void' ELSE 'paid' END
  FROM generate_series(1, 12) AS n;
INSERT INTO line SELECT n, m FROM generate_series(1, 12) AS n, generate_series(1, 3) AS m
"""
VOID = "state = 'void'"


@pytest.mark.parametrize("action", ["", "ON DELETE CASCADE", "ON DELETE SET NULL"])
@pytest.mark.parametrize(
    "steps",
    [
        (delete_rows("Order", VOID, dependants=("line",)),),
        (delete_rows("Order", VOID, dependants={"line": "order_id"}),),
        (
            delete_rows("line", f'order_id IN (SELECT id FROM "Order" WHERE {VOID})'),
            delete_rows("Order", VOID),
        ),
    ],
    ids=["by foreign key", "by column", "two steps"],
)
def test_children_are_removed_and_kept_before_their_parents(
    database: Database, project: AlembicProject, action: str, steps: tuple[Step, ...]
) -> None:
    query(database, ORDERS.format(action=action))

    there_and_back(database, project, ['"Order"', "line"], *steps)

    assert query(database, "SELECT count(*), max(order_id) FROM line") == [(24, 11)]
    numbers = (1, 1) if len(steps) == 1 else (1, 2)
    assert walks(database) == {
        f"delete from line ({numbers[0]})": ("succeeded", 36, 12),
        f"delete from Order ({numbers[1]})": ("succeeded", 12, 4),
    }
    query(database, "INSERT INTO line VALUES (1, 9)")  # the foreign key still holds
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        query(database, "INSERT INTO line VALUES (3, 9)")


def test_children_in_the_way_are_found_before_the_first_write(
    database: Database, project: AlembicProject
) -> None:
    query(database, ORDERS.format(action=""))

    assert refused(database, project, delete_rows("Order", VOID)) == (
        "it stopped, for it requires: no row of public.line refers to one that goes from Order; 12"
        " rows fail, the first (3), (3), (3), (6), (6); repair them and run Alembic again, it goes"
        " on here"
    )
    assert query(database, 'SELECT count(*) FROM "Order"') == [12]


def test_children_that_a_step_before_left_are_not_changed_silently(
    database: Database, project: AlembicProject
) -> None:
    query(database, ORDERS.format(action="ON DELETE CASCADE"))
    steps = (delete_rows("line", "number = 1"), delete_rows("Order", VOID))

    assert refused(database, project, *steps).startswith(
        "it stopped, for it requires: no row of public.line refers to one that goes from Order; 8"
        " rows fail"
    )
    assert query(database, 'SELECT count(*) FROM "Order"') == [12]
    query(database, "DELETE FROM line WHERE order_id % 3 = 0")
    ok(project.alembic(database, "upgrade", "head"))
    assert query(database, 'SELECT count(*) FROM "Order"') == [8]


@pytest.mark.parametrize("action", ["", "ON DELETE CASCADE"])
def test_rows_of_a_tree_go_from_the_leaves_up(
    database: Database, project: AlembicProject, action: str
) -> None:
    query(
        database,
        f"CREATE TABLE node (id int PRIMARY KEY, up int REFERENCES node {action}, deep int);"
        "INSERT INTO node SELECT n, nullif(n / 2, 0), log(2, n)::int FROM generate_series(1, 15) n",
    )
    old = "id IN (2, 4, 5, 8, 9, 10, 11)"
    leaves = delete_rows("node", f"{old} AND id > 7")
    steps = (leaves, delete_rows("node", f"{old} AND id > 3"), delete_rows("node", old))

    there_and_back(database, project, ["node"], *steps)

    assert query(database, "SELECT id FROM node ORDER BY 1") == [1, 3, 6, 7, 12, 13, 14, 15]
    for path in (project.directory / "alembic" / "versions").glob("*.py"):
        path.unlink()
    query(database, "DELETE FROM alembic_version; DROP SCHEMA datamig CASCADE")
    assert refused(
        database, project, delete_rows("node", "id > 13"), delete_rows("node", "id = 6")
    ).startswith("it stopped, for it requires: no row of public.node refers to one that goes")


def test_duplicates_are_deleted_once_their_children_are_repointed(
    database: Database, project: AlembicProject
) -> None:
    query(
        database,
        "CREATE TABLE town (id int PRIMARY KEY, name text);"
        "CREATE TABLE visit (id int PRIMARY KEY, town_id int REFERENCES town ON DELETE CASCADE);"
        "INSERT INTO town SELECT n, 't' || n % 4 FROM generate_series(1, 10) AS n;"
        "INSERT INTO visit SELECT n, n % 10 + 1 FROM generate_series(1, 30) AS n",
    )
    first = "(SELECT id, min(id) OVER (PARTITION BY name) AS first_id FROM town) AS t"

    there_and_back(
        database,
        project,
        ["town", "visit"],
        back_up("visit", "town_id"),
        backfill("visit", {"town_id": "t.first_id"}, using=first, on="t.id = visit.town_id"),
        delete_rows("town", "id > 4"),
    )

    assert query(database, "SELECT count(*) FROM town") == [4]
    assert query(database, "SELECT town_id, count(*) FROM visit GROUP BY 1 ORDER BY 1") == [
        (1, 9),
        (2, 9),
        (3, 6),
        (4, 6),
    ]


# ---------------------------------------------------------------- statements and checks


def test_a_statement_of_ones_own_is_sent_once_and_undone(
    shop: Database, project: AlembicProject
) -> None:
    never = check("nothing holds", "SELECT 1 FROM sale LIMIT 1")
    raised = sql("UPDATE person SET level = level + 1", "UPDATE person SET level = level - 1")
    nothing_to_undo = sql("ANALYZE person", "")
    before = contents(shop, "person")
    stopping = added(shop, project, raised, nothing_to_undo, never)

    for _ in range(2):
        assert project.alembic(shop, "upgrade", "head").code == 1

    assert query(shop, "SELECT sum(level) FROM person") == [18]
    query(shop, "UPDATE person SET level = level - 1; DROP SCHEMA datamig CASCADE")
    (project.directory / "alembic" / "versions" / f"{stopping.id}.py").unlink()
    assert contents(shop, "person") == before
    there_and_back(shop, project, ["person"], raised, nothing_to_undo)


def test_a_statement_without_an_undo_cannot_be_undone(
    shop: Database, project: AlembicProject
) -> None:
    up(shop, project, sql("DELETE FROM sale", name="throw the sales away"))

    outcome = project.alembic(shop, "downgrade", "base")

    assert outcome.code == 1
    assert outcome.sentence.endswith(
        "cannot be undone: nothing undoes this: throw the sales away; restore them from a backup"
    )


def test_a_figure_that_stays_passes_and_one_that_moves_is_told_before_and_after(
    shop: Database, project: AlembicProject
) -> None:
    count = unchanged("the number of persons", "SELECT count(*) FROM person")
    total = unchanged("the sum of all sales", "SELECT sum(amount) FROM sale")
    first = check(
        "every sale has an amount", "SELECT id FROM sale WHERE amount IS NULL", before=True
    )
    steps = (back_up("sale", "amount"), backfill("sale", {"amount": "amount + 1"}, where="id = 5"))

    sentence = refused(shop, project, first, *steps, count, total)

    assert sentence == (
        "it stopped, for it requires: the sum of all sales unchanged; 1 rows fail, the first"
        " (902.00,903.00); repair them and run Alembic again, it goes on here"
    )
    query(shop, "UPDATE sale SET amount = amount - 1 WHERE id = 12")
    ok(project.alembic(shop, "upgrade", "head"))


def test_a_check_before_the_first_write_stops_before_it(
    shop: Database, project: AlembicProject
) -> None:
    first = check(
        "every sale has a buyer",
        "SELECT id FROM sale WHERE person_id IS NULL ORDER BY 1",
        before=True,
    )

    before = contents(shop, "sale")

    sentence = refused(shop, project, new("sale", "x"), backfill("sale", {"x": "place"}), first)

    assert sentence == (
        "it stopped, for it requires: every sale has a buyer; 3 rows fail, the first (47), (124),"
        " (201); repair them and run Alembic again, it goes on here"
    )
    assert contents(shop, "sale") == before


# ---------------------------------------------------------------- tables of every kind

PARTITIONED = """
CREATE TABLE ranged (id int, at date, v int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE ranged_1 PARTITION OF ranged FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE ranged_2 PARTITION OF ranged FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')
  PARTITION BY LIST (id);
CREATE TABLE ranged_2_a PARTITION OF ranged_2 FOR VALUES IN (32, 34, 41);
CREATE TABLE ranged_2_b PARTITION OF ranged_2 DEFAULT;
CREATE TABLE keyless (line text, v int) PARTITION BY LIST (v);
CREATE TABLE keyless_1 PARTITION OF keyless FOR VALUES IN (1);
CREATE TABLE keyless_2 PARTITION OF keyless DEFAULT;
CREATE TABLE heir (id int PRIMARY KEY, v int);
CREATE TABLE heir_child (more text) INHERITS (heir);
INSERT INTO ranged SELECT n, date '2026-01-01' + n, n % 4 FROM generate_series(1, 50) AS n;
INSERT INTO keyless SELECT 'l' || n, n % 3 FROM generate_series(1, 50) AS n;
INSERT INTO heir SELECT n, n FROM generate_series(1, 20) AS n;
INSERT INTO heir_child SELECT n, n, 'x' FROM generate_series(10, 30) AS n
"""


def test_partitions_and_heirs_are_walked_with_their_table(
    database: Database, project: AlembicProject
) -> None:
    """By their key, or by place where they have none; heirs have keys of their own."""
    query(database, PARTITIONED)
    tables = ["ranged", "keyless", "heir"]
    steps = [
        step
        for table in tables
        for step in (new(table, "w", sa.Integer()), backfill(table, {"w": "v * 2 + 1"}))
    ]

    there_and_back(
        database,
        project,
        tables,
        *steps,
        back_up("ranged", "v"),
        backfill("ranged", {"v": "(v + 1) % 4"}),
        delete_rows("ranged", "w = 3 AND id > 10"),
    )

    wrong = " UNION ALL ".join(f"SELECT count(*) FROM {table} WHERE w IS NULL" for table in tables)
    assert query(database, wrong) == [0, 0, 0]
    assert query(database, "SELECT count(*) FROM ranged WHERE w <> (v + 3) % 4 * 2 + 1") == [0]
    assert query(database, "SELECT count(*) FROM heir WHERE w = v * 2 + 1") == [41]


def test_rows_that_move_to_another_partition_are_done_all_the_same(
    database: Database, project: AlembicProject
) -> None:
    query(database, PARTITIONED)
    up(
        database,
        project,
        backfill("keyless", {"v": "length(line) - 2"}),
        sql("UPDATE keyless SET v = 7 WHERE line = 'l1'"),
    )

    assert query(database, "SELECT v, count(*) FROM keyless GROUP BY 1 ORDER BY 1") == [
        (0, 8),
        (1, 41),
        (7, 1),
    ]
    assert project.alembic(database, "downgrade", "base").sentence.endswith(
        "cannot be undone: v of keyless held values that were not kept; restore them from a backup"
    )


def test_a_table_without_a_key_is_walked_by_place_and_its_edits_are_held(
    database: Database, project: AlembicProject
) -> None:
    query(
        database,
        "CREATE TABLE log (line text); ALTER TABLE log ALTER line SET STORAGE PLAIN;"
        "INSERT INTO log SELECT repeat('x', 2000) || n FROM generate_series(1, 60) AS n; ANALYZE",
    )
    there_and_back(
        database,
        project,
        ["log"],
        new("log", "long", sa.Integer()),
        backfill("log", {"long": "length(line)"}),
    )
    assert walks(database)["fill long"][2] == 60

    query(database, "UPDATE log SET long = 7 WHERE line LIKE '%x33'")
    outcome = project.alembic(database, "downgrade", "base")

    assert 'requires: long not edited since the upgrade; 1 rows fail, the first ("(' in outcome.log


def test_user_triggers_fire_unless_they_are_to_be_left_out(
    shop: Database, project: AlembicProject
) -> None:
    query(
        shop,
        "ALTER TABLE person ADD updated_at date DEFAULT '2020-01-01';"
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN NEW.updated_at := '2026-01-01'; RETURN NEW; END$$;"
        "CREATE TRIGGER touch BEFORE UPDATE ON person FOR EACH ROW EXECUTE FUNCTION touch()",
    )
    touched = "SELECT count(*) FROM person WHERE updated_at > '2021-01-01'"

    there_and_back(
        shop,
        project,
        ["person"],
        back_up("person", "name"),
        backfill("person", {"name": "upper(name)"}, fire_triggers=False),
    )
    assert query(shop, touched) == [0]

    down(shop, project)
    up_again = backfill("person", {"name": "upper(name)"}, where="id < 4")
    for path in (project.directory / "alembic" / "versions").glob("*.py"):
        path.unlink()
    up(shop, project, back_up("person", "name"), up_again)
    assert query(shop, touched) == [3]


def test_leaving_triggers_out_needs_a_privilege_that_is_asked_for_first(
    shop: Database, project: AlembicProject
) -> None:
    with role(shop, "CREATE, USAGE", "person") as limited:
        step = backfill("person", {"name": "upper(name)"}, fire_triggers=False)
        before = contents(shop, "person")
        revision = added(shop, project, back_up("person", "name"), step)

        outcome = project.alembic(limited, "upgrade", "head")

        assert outcome.sentence == (
            f"{revision.id} stopped, for it requires: this role may leave triggers out (GRANT SET"
            " ON PARAMETER session_replication_role); 1 rows fail, the first (limited); repair them"
            " and run Alembic again, it goes on here"
        )
        assert contents(shop, "person") == before
        query(shop, "GRANT SET ON PARAMETER session_replication_role TO limited")
        ok(project.alembic(limited, "upgrade", "head"))
        query(shop, "REVOKE SET ON PARAMETER session_replication_role FROM limited")
        assert query(shop, "SELECT name FROM person WHERE id = 3") == ["P3"]


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (
            backfill("sale", {"place": "upper(place)"}),
            "it stopped, for it requires: this session sees every row, and has"
            " standard_conforming_strings on; 1 rows fail, the first (limited,on); repair them and"
            " run Alembic again, it goes on here",
        ),
        (
            backfill("person", {"name": "s.place"}, using="sale AS s", on="s.id = person.id"),
            'it stopped: query would be affected by row-level security policy for table "sale";'
            " run Alembic again, it goes on where it was",
        ),
        (
            insert_rows("person", "SELECT id + 100 AS id FROM sale", key="id"),
            'it stopped: query would be affected by row-level security policy for table "sale";'
            " run Alembic again, it goes on where it was",
        ),
    ],
    ids=["target", "partner", "source"],
)
def test_rows_that_a_policy_hides_stop_before_the_first_write(
    shop: Database, project: AlembicProject, step: Step, sentence: str
) -> None:
    with role(shop, "CREATE, USAGE", "person", "sale") as limited:
        query(
            shop,
            "ALTER TABLE sale ENABLE ROW LEVEL SECURITY; ALTER TABLE sale FORCE ROW LEVEL SECURITY;"
            "CREATE POLICY visible ON sale USING (person_id = 1)",
        )
        before = contents(shop, "sale", "person")
        revision = added(shop, project, step)

        outcome = project.alembic(limited, "upgrade", "head")

        assert outcome.sentence.replace(revision.id, "it") == sentence
        assert contents(shop, "sale", "person") == before
        assert walks(shop) == {}


# ---------------------------------------------------------------- the ladder of failures


def test_rows_that_cannot_be_done_are_set_aside_up_to_a_limit(
    database: Database, project: AlembicProject
) -> None:
    """Columns have names that the machinery uses itself."""
    query(
        database,
        'CREATE TABLE batch ("row" int, key text, run text, PRIMARY KEY ("row", key));'
        "INSERT INTO batch SELECT n, 'k' || n % 2, CASE WHEN n % 13 = 0 THEN 'x' ELSE n::text END"
        "  FROM generate_series(1, 40) AS n",
    )
    fill = backfill("batch", {"state": "run::int"}, on_error="quarantine", quarantine_limit=3)

    revision = up(database, project, new("batch", "state", sa.Integer()), fill)

    assert query(database, 'SELECT "row" FROM batch WHERE state IS NULL ORDER BY 1') == [13, 26, 39]
    noted = "SELECT step, relation, key, sqlstate, message FROM datamig.quarantine ORDER BY key"
    message = 'invalid input syntax for type integer: "x"'
    assert query(database, noted) == [
        ("fill state", "batch", key, "22P02", message) for key in ("(13,k1)", "(26,k0)", "(39,k1)")
    ]
    assert walks(database) == {"fill state": ("succeeded", 40, 37)}
    down(database, project)
    assert query(database, noted) == []
    query(database, "UPDATE batch SET run = 'y' WHERE \"row\" = 30")
    outcome = project.alembic(database, "upgrade", "head")
    assert outcome.sentence == (
        f"{revision.id} failed at 'fill state': row (39,k1) of batch cannot be done:"
        f" {message}; run Alembic again, it goes on here"
    )
    query(database, "UPDATE batch SET run = '0' WHERE run IN ('x', 'y')")
    ok(project.alembic(database, "upgrade", "head"))
    assert query(database, "SELECT count(*) FROM batch WHERE state IS NULL") == [3]


def test_the_first_row_that_cannot_be_done_stops_the_run_and_is_named(
    shop: Database, project: AlembicProject
) -> None:
    query(shop, "ALTER TABLE sale ADD CHECK (amount < 45)")
    step = backfill("sale", {"amount": "amount + 1"})

    assert refused(shop, project, back_up("sale", "amount"), step) == (
        "it failed at 'fill amount': row (250) of sale cannot be done: new row for relation"
        ' "sale" violates check constraint "sale_amount_check"; run Alembic again, it goes on here'
    )
    query(shop, "ALTER TABLE sale DROP CONSTRAINT sale_amount_check")
    ok(project.alembic(shop, "upgrade", "head"))
    assert query(shop, "SELECT count(*) FROM sale WHERE amount <> (id + 30) / 7 * 1.1 + 1") == [0]


def test_a_statement_timeout_of_the_role_makes_batches_shorter(
    database: Database, project: AlembicProject
) -> None:
    query(
        database,
        "CREATE TABLE item (id int PRIMARY KEY, v int);"
        "INSERT INTO item SELECT n, n FROM generate_series(1, 48) AS n;"
        "CREATE FUNCTION slow(v int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS"
        " $$BEGIN PERFORM pg_sleep(0.01); RETURN v + 1; END$$;"
        f"ALTER DATABASE {database.url.database} SET statement_timeout = '300ms'",
    )
    revision = render(
        database,
        Migration("slowly", back_up("item", "v"), backfill("item", {"v": "slow(v)"})),
    )
    project.add(revision, {"FIRST_BATCH_ROWS": 40, "LEAST_BATCH_ROWS": 3, "STRETCH_SECONDS": 0})

    outcome = ok(project.alembic(database, "upgrade", "head"))

    assert "canceling statement due to statement timeout, attempt" in outcome.log
    assert query(database, "SELECT count(*) FROM item WHERE v = id + 1") == [48]


LOUD = (back_up("sale", "place"), backfill("sale", {"place": "upper(place)"}))


def test_a_row_that_is_locked_for_ever_ends_the_run_after_bounded_attempts(
    shop: Database, project: AlembicProject
) -> None:
    revision = render(shop, Migration("change", *LOUD))
    project.add(revision, {**SMALL, "ATTEMPTS": 3, "LOCK_TIMEOUT": "50ms"})
    with session(shop) as other:
        other.execute("BEGIN")
        other.execute("SELECT FROM sale WHERE id = 103 FOR UPDATE")

        outcome = project.alembic(shop, "upgrade", "head")

    assert outcome.sentence == (
        f"{revision.id} failed at 'fill place': canceling statement due to lock timeout, 3 times;"
        " find out in pg_stat_activity who holds the lock; run Alembic again, it goes on here"
    )
    assert walks(shop) == {"fill place": ("failed", 16, 16)}
    ok(project.alembic(shop, "upgrade", "head"))
    assert walks(shop) == {"fill place": ("succeeded", 40, 40)}


def test_a_deadlock_with_the_application_is_survived_by_the_run(
    shop: Database, project: AlembicProject
) -> None:
    """The application holds a later row of a batch and asks for an earlier one."""
    revision = render(shop, Migration("change", *LOUD))
    project.add(revision, {"FIRST_BATCH_ROWS": 40, "LEAST_BATCH_ROWS": 40})
    with session(shop) as other:
        other.execute("SET deadlock_timeout = '10s'")  # so that it is not the one to be ended
        other.execute("BEGIN")
        other.execute("SELECT FROM sale WHERE id = 250 FOR UPDATE")
        with project.start(shop, "upgrade", "head") as running:
            waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while not query(shop, f"{waits} AND datname = current_database()"):
                time.sleep(0.01)
            other.execute("UPDATE sale SET place = 'z' WHERE id = -23")
            other.execute("COMMIT")
            outcome = ok(running.end())

    assert "deadlock detected, attempt 1" in outcome.log
    assert query(shop, "SELECT place FROM sale WHERE id IN (-23, 250) ORDER BY id") == ["Z", "B"]


# ---------------------------------------------------------------- --sql


def psql(database: Database, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script by the real psql, which stops at the first error."""
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    words = [binaries() / "psql", url, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-"]
    return subprocess.run(words, input=script, capture_output=True, text=True, check=False)


def errors(result: subprocess.CompletedProcess[str]) -> list[str]:
    """What psql says went wrong, without where."""
    return re.findall(r"ERROR:  (.*)", result.stderr)


def as_script(project: AlembicProject, database: Database, *words: str) -> str:
    """What Alembic prints with --sql."""
    outcome = ok(project.alembic(database, *words, "--sql"))
    return "\n".join(
        line for line in outcome.log.splitlines() if not line.startswith(("INFO", "WARN"))
    )


BUYER = "upper(place) || ' :y % {0} \\ '' $1'"

EVERYTHING: dict[str, tuple[Step, ...]] = {
    "new columns": (
        new("sale", "buyer"),
        new("sale", "token", sa.Uuid()),
        keep_in_step("sale", {"buyer": BUYER}),
        backfill("sale", {"buyer": BUYER}),
        backfill("sale", {"token": "md5(id::text)::uuid"}, where="id > 0"),
        unchanged("the number of sales", "SELECT count(*) FROM sale"),
        check("every sale has a buyer", "SELECT id FROM sale WHERE buyer IS NULL"),
    ),
    "in place": (
        back_up("sale", "amount", "place"),
        backfill("sale", {"amount": "amount * 1.5"}),
        backfill("sale", {"place": "p.name"}, using="person AS p", on="p.id = sale.person_id"),
        sql("UPDATE person SET level = level + 1", "UPDATE person SET level = level - 1"),
    ),
    "rows": (
        delete_rows("person", "id IN (2, 8)", dependants={"sale": "person_id"}),
        create_table(
            "place",
            sa.Column("id", sa.Integer(), sa.Identity(), primary_key=True),
            sa.Column("code", sa.Text(), unique=True),
        ),
        insert_rows(
            "place",
            "SELECT DISTINCT place AS code FROM sale WHERE length(place) = 1",
            key="code",
            on_conflict="nothing",
        ),
        insert_rows(
            "person",
            "SELECT id * 3 AS id, 'three' AS name FROM person WHERE id < 5",
            key="id",
            on_conflict="(id) DO UPDATE SET name = excluded.name",
        ),
    ),
}
TABLES = ["sale", "person"]


def chain(database: Database, project: AlembicProject) -> str:
    """The migrations one after the other, each rendered on what the one before made."""
    project.add_plain("aaaa", "SELECT 1")
    last = ""
    for name, steps in EVERYTHING.items():
        revision = render(database, Migration(name, *steps), alembic=project.ini)
        project.add(revision, SMALL)
        ok(project.alembic(database, "upgrade", "head"))
        last = revision.id
    return last


def test_psql_makes_of_the_scripts_what_alembic_makes_online(
    shop: Database, make_database: Callable[[str], Database], project: AlembicProject
) -> None:
    """And again what is done is passed over, whether up or down."""
    fresh, before = make_database(str(shop.url.database)), contents(shop, *TABLES)
    last = chain(shop, project)
    online = contents(shop, *TABLES, "place")
    ok(project.alembic(fresh, "upgrade", "aaaa"))
    upgrade = as_script(project, fresh, "upgrade", "aaaa:head")
    downgrade = as_script(project, fresh, "downgrade", f"{last}:aaaa")

    for _ in range(2):
        for _ in range(2):
            done = psql(fresh, upgrade)
            assert (errors(done), done.returncode) == ([], 0)
            assert contents(fresh, *TABLES) == {table: online[table] for table in TABLES}
            assert query(fresh, "SELECT version_num FROM alembic_version") == [last]
        for _ in range(2):
            done = psql(fresh, downgrade)
            assert (errors(done), done.returncode) == ([], 0)
            assert contents(fresh, *TABLES) == before
            assert left_behind(fresh) == []
            assert query(fresh, "SELECT version_num FROM alembic_version") == ["aaaa"]


def test_psql_stops_with_the_same_sentence_and_goes_on_when_run_again(
    shop: Database, make_database: Callable[[str], Database], project: AlembicProject
) -> None:
    """A statement of one's own, a price in place, then a check that fails, twice."""
    fresh = make_database(str(shop.url.database))
    project.add_plain("aaaa", "SELECT 1")
    steps = (
        *EVERYTHING["in place"],
        check("nothing below 2", "SELECT id, amount FROM sale WHERE amount < 2"),
    )
    revision = render(shop, Migration("stops", *steps), alembic=project.ini)
    project.add(revision, SMALL)
    online = project.alembic(shop, "upgrade", "head")
    ok(project.alembic(fresh, "upgrade", "aaaa"))
    script = as_script(project, fresh, "upgrade", "aaaa:head")

    stops = [psql(fresh, script) for _ in range(3)]

    assert online.sentence.startswith(f"{revision.id} stopped, for it requires: nothing below 2;")
    for stop in stops:
        assert (stop.returncode, errors(stop)) == (3, [online.sentence])
    assert contents(fresh, *TABLES) == contents(shop, *TABLES)
    query(fresh, "DELETE FROM sale WHERE id = -23")
    assert psql(fresh, script).returncode == 0
    assert query(fresh, "SELECT version_num FROM alembic_version") == [revision.id]
    wrong = "SELECT count(*) FROM sale WHERE amount <> round((id + 30) / 7 * 1.10 * 1.5, 2)"
    assert query(fresh, wrong) == [0]


def test_a_walk_that_failed_stops_psql_with_its_row(
    shop: Database, make_database: Callable[[str], Database], project: AlembicProject
) -> None:
    query(shop, "ALTER TABLE sale ADD CHECK (amount < 60)")
    fresh = make_database(str(shop.url.database))
    added(shop, project, back_up("sale", "amount"), backfill("sale", {"amount": "amount * 1.5"}))
    script = as_script(project, fresh, "upgrade", "head")

    stop = psql(fresh, script)

    assert stop.returncode == 3
    assert "row (229) of sale cannot be done: new row for relation" in stop.stderr
    assert query(fresh, "SELECT count(*) FROM sale WHERE amount = 1.65") == [1]


#: What squawk finds, rule by rule, and why it is no fault here.
NOT_FOR_US = {
    "ban-drop-column": "the downgrade drops what the upgrade made",
    "ban-drop-table": "the downgrade drops what the upgrade made",
    "ban-drop-function": "the downgrade drops the function of our own trigger",
    "prefer-bigint-over-int": "types are the user's choice",
}


def test_squawk_finds_nothing_in_the_scripts_but_what_is_meant(
    shop: Database, project: AlembicProject
) -> None:
    last = chain(shop, project)
    up, down = (
        as_script(project, shop, way, between)
        for way, between in (("upgrade", "aaaa:head"), ("downgrade", f"{last}:aaaa"))
    )
    squawk = [Path(sys.executable).with_name("squawk"), "--pg-version=15", "--reporter=json"]

    found = [
        subprocess.run(squawk, input=script, capture_output=True, text=True, check=False)
        for script in (up, down)
    ]

    notes = [note for each in found for note in json.loads(each.stdout)]
    assert {note["rule_name"] for note in notes} == set(NOT_FOR_US)
    assert [each.stderr for each in found] == ["", ""]


# ---------------------------------------------------------------- refused when it is rendered

ODD = """
CREATE TABLE town (id int PRIMARY KEY, name text);
CREATE TABLE visit (id int PRIMARY KEY, town_id int REFERENCES town ON DELETE SET NULL,
                    up_id int REFERENCES visit ON DELETE CASCADE);
CREATE TABLE log (line text);
CREATE VIEW seen AS SELECT * FROM town;
CREATE MATERIALIZED VIEW kept_view AS SELECT * FROM town;
CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE far (id int) SERVER files OPTIONS (program 'echo 1');
"""

SILENT = (
    "the foreign key '{}' of 'public.visit' says ON DELETE {}: rows there would change with those"
    " deleted from '{}', and not be kept; name the table in dependants=, or see to these rows in a"
    " step before"
)
NOT_CHECKED = (
    "{} of '{}' is part of the foreign key '{}', which PostgreSQL checks by a trigger:"
    " fire_triggers=False would switch it off; leave fire_triggers=False out"
)


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ([backfill("seen", {"name": "''"})], "'seen' is a view, not a table; name the tables"
         " beneath it"),
        ([delete_rows("kept_view", "true")], "'kept_view' is a materialized view, not a table;"
         " name the tables beneath it"),
        ([backfill("far", {"id": "1"})], "'far' is a foreign table, not a table; migrate it where"
         " it is"),
        ([insert_rows("log", "SELECT 'x' AS line", key="line")], "table 'log' has no key, so the"
         " downgrade could not find the rows that insert_rows() puts in; give it a primary key, or"
         " send the INSERT with sql()"),
        ([delete_rows("town", "true")], SILENT.format("visit_town_id_fkey", "SET NULL", "town")),
        ([delete_rows("town", "true", dependants=("log",))], "'log' has no foreign key to 'town';"
         ' name its columns, as in dependants={"shop.line": "order_id"}, or remove its rows in a'
         " step before"),
        ([delete_rows("town", "true", dependants={"log": ["line", "line"]})], "line and line of"
         " 'log' cannot refer to the key of 'town', id; name its columns, as in"
         ' dependants={"shop.line": "order_id"}, or remove its rows in a step before'),
        ([delete_rows("town", "true", dependants={"log": "word"})], "table 'log' has no column"
         " 'word'; use one of 'line'"),
        ([backfill("visit", {"town_id": "1"}, fire_triggers=False)],
         NOT_CHECKED.format("town_id", "visit", "visit_town_id_fkey")),
        ([new("town", "loud"), keep_in_step("town", {"loud": "upper(name)"}),
          *dm.drop_columns("town", "name")], "the trigger of keep_in_step() needs 'name' of 'town',"
         " which a later step drops; drop it in a migration of its own, when no application writes"
         " it any more; or leave keep_in_step() out"),
        ([back_up("town", "name")], "back_up() keeps 'name' of 'town', but no backfill or"
         " transform sets it and no step drops it; name a column that one does"),
        ([back_up("town", "nam"), backfill("town", {"nam": "''"})], "table 'town' has no column"
         " 'nam'; use one of 'id', 'name'"),
        ([backfill("log", {"line": "line || 'x'"})], "table 'log' has no primary key and no unique"
         " index over NOT NULL columns, so batches cannot resume; add one, for example with CREATE"
         " UNIQUE INDEX CONCURRENTLY"),
        ([insert_rows("town", "SELECT 1 AS id, 2 AS size", key="id")], "table 'town' has no column"
         " 'size'; use one of 'id', 'name'"),
        ([insert_rows("town", "SELECT 1 AS id", key="name")], "the query for 'town' has no column"
         " 'name' to be walked by; use one of id"),
        ([new("town", "code"), insert_rows("town", "SELECT 1 AS id, code FROM town", key="id")],
         "the query for 'town' reads what the migration is yet to make, so the database cannot say"
         " its columns; name them with columns="),
        ([backfill("town", {"id": "id + 1"})], "'id' is part of the key by which 'town' is walked;"
         " fill a new column, and make that one the key in a later migration; or put such rows in"
         " once more by insert_rows(), with their new key, and remove the old by delete_rows()"),
        ([new("town", "at", sa.Date()), backfill("town", {"at": "name"})], "the expression 'name'"
         " does not work: 'at' of 'town' does not take it: it is of type date, the expression of"
         " type text; cast it yourself"),
    ],
)  # fmt: skip
def test_what_the_catalog_forbids_is_refused_when_rendered(
    odd: Database, steps: list[Step], sentence: str
) -> None:
    with pytest.raises(DatamigError) as refusal:
        render(odd, Migration("change", *steps))

    assert str(refusal.value) == sentence


@pytest.fixture(scope="module")
def odd(samples: Database) -> Generator[Database]:
    """Tables of every kind: only to be read."""
    with scratch_database(samples) as made:
        query(made, ODD)
        yield made


# ---------------------------------------------------------------- previewed


def notes(found: Preview) -> list[tuple[str, int]]:
    all_notes = [hazard for hazard in found.hazards if hazard.severity == "note"]
    return [(note.what, note.rows) for note in all_notes if "old values become" not in note.what]


def stops(found: Preview) -> list[tuple[str, int]]:
    return [(hazard.what, hazard.rows) for hazard in found.hazards if hazard.severity == "stops"]


def test_a_preview_tells_how_many_rows_come_go_and_find_no_partner(shop: Database) -> None:
    partner = backfill("sale", {"buyer": "p.name"}, using="person AS p", on="p.id = sale.person_id")
    found = preview(
        shop,
        Migration(
            "all",
            new("sale", "buyer"),
            partner,
            insert_rows("person", "SELECT id + 100 AS id FROM sale", key="id",
                        on_conflict="nothing"),
            delete_rows("person", "level = 0", dependants={"sale": "person_id"}, keep=False),
            sql("SELECT 1"),
            unchanged("nothing", "SELECT 1"),
            back_up("sale", "place"),
            backfill("sale", {"place": "upper(buyer)"}),
            no_nulls("sale", "place"),
        ),
    )  # fmt: skip

    assert notes(found) == [
        ("rows of sale find no partner in person AS p", 6),
        ("rows would be put into person, ON CONFLICT DO NOTHING", 40),
        ("rows would be deleted from sale", 11),
        ("rows would be deleted from person", 3),
    ]
    assert stops(found) == [("not so afterwards: place of sale without NULL", 6)]
    joined, read_on = found.backfills
    assert (joined.rows, joined.changed_rows) == (34, 34)
    assert {row.after for row in joined.map} == {(f"p{n}",) for n in range(1, 10)}
    assert (read_on.rows, read_on.changed_rows) == (40, 40)
    assert {row.after for row in read_on.map} == {*((f"P{n}",) for n in range(1, 10)), (None,)}


def test_a_preview_finds_what_the_revision_would_stop_at_before_its_first_write(
    shop: Database,
) -> None:
    query(
        shop,
        "INSERT INTO person VALUES (104, 'p4', 1); ALTER TABLE sale ADD buyer text;"
        "UPDATE sale SET buyer = 'p' || person_id;"
        "ALTER TABLE sale ADD FOREIGN KEY (id) REFERENCES sale;"
        "CREATE TABLE visit (id int PRIMARY KEY, person_id int REFERENCES person);"
        "INSERT INTO visit VALUES (1, 2), (2, 2), (3, 3)",
    )

    found = preview(
        shop,
        Migration(
            "all",
            backfill(
                "sale", {"person_id": "p.id"}, using="person AS p", on="p.name = sale.buyer"
            ),
            delete_rows("person", "level = 2"),
            insert_rows("visit", "SELECT person_id AS id FROM sale", key="id"),
        ),
    )  # fmt: skip

    assert stops(found) == [
        ("not so: each row of sale has one partner at most", 4),
        ("not so: no row of public.visit refers to one that goes from person", 2),
    ]


def test_a_preview_says_what_it_cannot_foresee(shop: Database) -> None:
    spot = create_table("spot", sa.Column("code", sa.Text(), primary_key=True))
    links = "SELECT sale.id + 1000 AS id FROM sale JOIN spot ON code = place"

    found = preview(
        shop,
        Migration(
            "all",
            spot,
            insert_rows("spot", "SELECT DISTINCT place AS code FROM sale", key="code"),
            backfill("sale", {"place": "code"}, using="spot", on="code = sale.place"),
            insert_rows("sale", links, key="id", columns=["id"]),
        ),
    )

    assert [what.split(":")[0] for what, _ in notes(found)] == [
        "rows would be put into spot",
        "rows of sale cannot be foreseen",
        "rows of sale cannot be foreseen",
    ]
    assert found.passed


# ---------------------------------------------------------------- keys

KEYS: Mapping[str, tuple[str, str, str]] = {
    "gaps": ("k bigint", "k", "SELECT n * n * 1000003 - 9e11::bigint"),
    "composite": ("a int, k text", "k, a", "SELECT n % 7, 'k' || n / 7"),
    "uuids": ("k uuid", "k", "SELECT md5(n::text)::uuid"),
    "texts": ("k text", "k", r"SELECT E'\\''\"%{batch}\n$1 :x ' || chr(n * 37) || n"),
    "times": (
        "k timestamptz",
        "k",
        "SELECT CASE n WHEN 1 THEN '-infinity' WHEN 2 THEN 'infinity'"
        " ELSE timestamptz '2025-10-26 00:00+00' + n * interval '7.000001 min' END",
    ),
    "numerics": (
        "k numeric",
        "k",
        "SELECT CASE n WHEN 1 THEN 'NaN' WHEN 2 THEN '-Infinity' ELSE n / 7.0 END",
    ),
    "moods": ("k mood, j date", "k, j", "SELECT enum_last(NULL::mood), date '2026-01-01' + n"),
    '"Odd Schema"."Table"': ('"Key" int, "end" int', '"end", "Key"', "SELECT n, n % 5"),
}


def test_rows_of_every_key_are_changed_once_deleted_and_put_in(
    database: Database, project: AlembicProject
) -> None:
    """A price is doubled once, some rows go, others are copied: walked by the key each time."""
    query(
        database,
        "CREATE SCHEMA \"Odd Schema\"; CREATE TYPE mood AS ENUM ('x', 'y');"
        f"ALTER DATABASE {database.url.database} SET timezone = 'Europe/Berlin'",
    )
    steps: list[Step] = []
    for number, (table, (columns, key, values)) in enumerate(KEYS.items()):
        query(
            database,
            f"CREATE TABLE {table} ({columns}, v int, twice int GENERATED ALWAYS AS (v * 2) STORED,"
            f" PRIMARY KEY ({key}));"
            f"CREATE TABLE copy_{number} (LIKE {table}, PRIMARY KEY ({key}));"
            f"INSERT INTO {table} {values}, n FROM generate_series(1, 30) AS n",
        )
        names = [part.strip().strip('"') for part in key.split(",")]
        steps += [
            back_up(table, "v"),
            backfill(table, {"v": "v * 2"}),
            insert_rows(
                f"copy_{number}", f"SELECT {key}, v, twice FROM {table}", key=names,
                columns=[*names, "v", "twice"],
            ),
            delete_rows(table, "v % 3 = 0"),
        ]  # fmt: skip
    tables = [*KEYS, *(f"copy_{number}" for number in range(len(KEYS)))]

    there_and_back(database, project, tables, *steps)

    for number, table in enumerate(KEYS):
        sums = "SELECT count(*), sum(v), sum(twice) FROM"
        assert query(database, f"{sums} copy_{number}") == [(30, 930, 1860)]
        assert query(database, f"{sums} {table}") == [(20, 600, 1200)]
    assert {status for status, *_ in walks(database).values()} == {"succeeded"}


def test_a_statement_that_no_transaction_takes_is_sent_outside_of_one(
    shop: Database, make_database: Callable[[str], Database], project: AlembicProject
) -> None:
    fresh = make_database(str(shop.url.database))
    project.add_plain("aaaa", "SELECT 1")
    steps = (sql("VACUUM ANALYZE person", ""), sql("UPDATE person SET level = level + 1", ""))
    project.add(render(shop, Migration("tidy", *steps), alembic=project.ini))
    ok(project.alembic(fresh, "upgrade", "aaaa"))

    ok(project.alembic(shop, "upgrade", "head"))
    done = [psql(fresh, as_script(project, fresh, "upgrade", "aaaa:head")) for _ in range(2)]

    assert [(errors(each), each.returncode) for each in done] == [([], 0), ([], 0)]
    assert contents(fresh, "person") == contents(shop, "person")
    assert query(shop, "SELECT sum(level) FROM person") == [18]

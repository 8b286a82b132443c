"""A preview shows every value and finds what would stop the revision, and writes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from datamig_nb import preview_hazards
from datamig_nb.checks import check, no_nulls, rows_check
from datamig_nb.compound import change_type
from datamig_nb.database import Database
from datamig_nb.errors import QueryError
from datamig_nb.migration import Migration, Step
from datamig_nb.operations import add_column, alter_column, create_check_constraint, create_enum
from datamig_nb.patterns import map_values, split_column
from datamig_nb.preview import MAP_ROWS, MapRow, Preview, preview
from datamig_nb.preview_hazards import Hazard
from datamig_nb.steps import backfill
from datamig_nb.validate import KEYS_SHOWN
from tests.runs import wait_until
from tests.scratch import query

#: The guide's map: five values are missing, NULL among them.
STATUSES: dict[str | None, str | None] = {
    "enabled": "active",
    "disabled": "inactive",
    "suspended": "inactive",
    "pending_activation": "pending",
}
ALL_STATUSES = {
    **STATUSES,
    "Enabled": "active",
    "enabled ": "active",
    "archived": "gone",
    "": None,
    None: None,
}

JOSE, JOSE_APART = "José Núñez", "Jose\u0301 Nun\u0303ez"


def of(database: Database, *steps: Step) -> Preview:
    """The preview of a migration that has these steps."""
    return preview(database, Migration("try", *steps))


def stops(found: Preview) -> list[tuple[str, int, list[str | None]]]:
    """What would stop the revision: in words, how many rows, the first value of each key."""
    return [
        (hazard.what, hazard.rows, [key[0] for key in hazard.keys])
        for hazard in found.hazards
        if hazard.severity == "stops"
    ]


def first_keys(database: Database, table: str, condition: str) -> list[str]:
    """The first keys of the rows that meet a condition, asked in another way."""
    statement = f"SELECT id FROM {table} WHERE {condition} ORDER BY id LIMIT {KEYS_SHOWN}"
    return [str(key) for key in query(database, statement)]


def number(database: Database, table: str, condition: str) -> int:
    return query(database, f"SELECT count(*) FROM {table} WHERE {condition}")[0]


# ---------------------------------------------------------------- every value


def test_map_holds_every_value_with_its_exact_count(samples: Database) -> None:
    found = preview(samples, map_values("guide.user", "status", STATUSES, into="status_new"))

    (part,) = found.backfills
    assert (part.rows, part.changed_rows, part.distinct) == (10_000, 8_500 + 1_000, 9)
    assert part.map == (
        MapRow(before=("enabled",), after=("active",), rows=6_000),
        MapRow(before=("disabled",), after=("inactive",), rows=1_500),
        MapRow(before=("pending_activation",), after=("pending",), rows=1_000),
        MapRow(before=("suspended",), after=("inactive",), rows=1_000),
        MapRow(before=("archived",), after=(None,), rows=150),
        MapRow(before=(None,), after=(None,), rows=100),
        MapRow(before=("Enabled",), after=(None,), rows=100),
        MapRow(before=("enabled ",), after=(None,), rows=100),
        MapRow(before=("",), after=(None,), rows=50),
    )


def test_frame_keeps_null_and_the_empty_string_apart(samples: Database) -> None:
    found = preview(samples, map_values("guide.user", "status", ALL_STATUSES, into="status_new"))

    frame = found.frame
    assert list(frame.columns) == ["status", "→ status_new", "rows"]
    assert frame.to_dict("list") == {
        "status": [
            *("enabled", "disabled", "pending_activation", "suspended", "archived"),
            *(None, "Enabled", "enabled ", ""),
        ],
        "→ status_new": [
            *("active", "inactive", "pending", "inactive", "gone"),
            *(None, "active", "active", None),
        ],
        "rows": [6_000, 1_500, 1_000, 1_000, 150, 100, 100, 100, 50],
    }


def test_big_map_is_capped_and_says_how_many_values_there_are(database: Database) -> None:
    query(
        database,
        "CREATE TABLE item (id int PRIMARY KEY, label text);"
        "INSERT INTO item SELECT n, 'label ' || least(n, 1500) FROM generate_series(1, 1600) n",
    )

    found = of(
        database,
        add_column("item", sa.Column("short", sa.Text())),
        backfill("item", {"short": "left(label, 7)"}),
    )

    (part,) = found.backfills
    assert (part.distinct, len(part.map)) == (1_500, MAP_ROWS)
    assert part.map[0] == MapRow(before=("label 1500",), after=("label 1",), rows=101)
    assert [pair.rows for pair in part.map[1:]] == [1] * (MAP_ROWS - 1)
    assert found.hazards == ()  # nothing is said of values that were not read
    assert "1,500 distinct values of label" in repr(found)


def test_composed_and_decomposed_letters_are_told_apart(samples: Database) -> None:
    found = preview(samples, split_column("guide.user", "full_name"))

    counts = {pair.before[0]: pair.rows for pair in found.backfills[0].map}
    assert (counts[JOSE], counts[JOSE_APART]) == (50, 50)
    apart = [
        (sample.before, sample.after)
        for sample in found.backfills[0].samples
        if "letter and accent apart (not NFC)" in sample.why
    ]
    parts = tuple(JOSE_APART.split())
    assert apart == [((JOSE_APART,), parts), ((JOSE_APART,), parts)]


def test_backfill_of_an_existing_column_counts_only_rows_that_change(database: Database) -> None:
    query(
        database,
        "CREATE TABLE item (id int PRIMARY KEY, price int, gross int, note text);"
        "INSERT INTO item VALUES (1, 1, 2, 'a'), (2, 2, 4, 'a'), (3, 3, 0, 'a'),"
        " (4, 4, NULL, 'a'), (5, NULL, 7, 'a'), (6, NULL, NULL, 'a')",
    )

    one = of(database, backfill("item", {"gross": "price * 2"})).backfills[0]
    # What is added counts beside what is there: rows 1, 2 and 6 would change for it alone.
    both = of(
        database,
        add_column("item", sa.Column("copy", sa.Text())),
        backfill("item", {"gross": "price * 2", "copy": "CASE WHEN id < 6 THEN note END"}),
    ).backfills[0]

    assert (one.rows, one.changed_rows) == (6, 3)
    assert (both.rows, both.changed_rows) == (6, 5)


def test_expressions_are_evaluated_a_few_times_a_row_however_many_columns_and_checks_there_are(
    database: Database,
) -> None:
    """Once for the values, once for the checks over the result, once for what must be unique."""
    query(
        database,
        "CREATE FUNCTION dear(text) RETURNS text LANGUAGE plpgsql IMMUTABLE"
        " AS 'BEGIN RETURN upper($1); END';"
        "CREATE TABLE item (id int PRIMARY KEY, a text, b text, c text NOT NULL UNIQUE);"
        "INSERT INTO item SELECT n, 'a' || n, NULL, 'c' || n FROM generate_series(1, 500) n;"
        f"ALTER DATABASE {database.url.database} SET track_functions = 'all'",
    )

    found = of(
        database,
        backfill("item", {"c": "dear(concat(a, b, c))"}),
        rows_check("no c is short", "item", "length(c) < 3"),
        rows_check("no c is small", "item", "c <> upper(c)"),
    )

    assert [(part.rows, part.changed_rows) for part in found.backfills] == [(500, 500)]
    calls = "SELECT coalesce(sum(calls), 0)::int FROM pg_stat_user_functions"
    wait_until(lambda: query(database, calls) > [0])  # sessions tell it when they end
    assert query(database, calls)[0] < 4 * 500


def test_only_rows_that_where_takes_are_shown(database: Database) -> None:
    query(
        database,
        "CREATE TABLE item (id int PRIMARY KEY, label text, size int);"
        "INSERT INTO item SELECT n, 'label ' || n, n FROM generate_series(1, 30) n",
    )

    part = of(
        database, backfill("item", {"label": "'big ' || size"}, where="size > 28 OR size = 3")
    ).backfills[0]

    assert (part.rows, part.changed_rows) == (3, 3)
    assert part.map == (
        MapRow(before=("29",), after=("big 29",), rows=1),
        MapRow(before=("3",), after=("big 3",), rows=1),
        MapRow(before=("30",), after=("big 30",), rows=1),
    )
    assert {sample.key for sample in part.samples} == {("3",), ("29",), ("30",)}


def test_percent_signs_and_colons_are_themselves(database: Database) -> None:
    query(
        database,
        "CREATE TABLE item (id int PRIMARY KEY, label text);"
        "INSERT INTO item VALUES (1, '5%'), (2, ':x'), (3, '%s')",
    )

    part = of(
        database,
        add_column("item", sa.Column("kind", sa.Text())),
        backfill(
            "item",
            {"kind": "CASE WHEN label LIKE '%\\%' THEN 'a % :x %(y)s' ELSE label || ':x' END"},
            where="label NOT LIKE '%:y' AND id % 4 > 0",
        ),
    ).backfills[0]

    assert {pair.before[0]: pair.after[0] for pair in part.map} == {
        "5%": "a % :x %(y)s",
        ":x": ":x:x",
        "%s": "%s:x",
    }


def test_columns_that_cannot_be_compared_are_read_all_the_same(database: Database) -> None:
    query(
        database,
        "CREATE TABLE item (id int PRIMARY KEY, doc json, place point);"
        """INSERT INTO item VALUES (1, '{"a": 1}', '(1,2)'), (2, '{"a": 1}', '(1,2)'),"""
        """ (3, '{"a":1}', NULL)""",
    )

    part = of(
        database,
        add_column("item", sa.Column("a", sa.Text())),
        backfill("item", {"a": "concat(doc ->> 'a', place)"}),
    ).backfills[0]

    assert part.reads == ("doc", "place")
    assert part.map == (
        MapRow(before=('{"a": 1}', "(1,2)"), after=("1(1,2)",), rows=2),
        MapRow(before=('{"a":1}', None), after=("1",), rows=1),
    )


def test_table_without_a_key_is_previewed_by_place(database: Database) -> None:
    query(
        database,
        "CREATE TABLE log (line text); INSERT INTO log VALUES ('b'), (NULL), (''), ('a');"
        "INSERT INTO log SELECT NULL FROM generate_series(1, 20)",
    )

    found = of(
        database,
        add_column("log", sa.Column("upper_line", sa.Text())),
        backfill("log", {"upper_line": "upper(line)"}),
        no_nulls("log", "upper_line"),
    )

    part = found.backfills[0]
    assert part.key_columns == ("ctid",)
    assert {(s.key, s.before) for s in part.samples if "NULL" in s.why} == {
        (("(0,2)",), (None,)),
        (("(0,5)",), (None,)),
    }
    places = [2, *range(5, 25)]  # (0,10) comes behind (0,9)
    assert stops(found) == [
        (
            "not so afterwards: upper_line of log without NULL",
            21,
            [f"(0,{place})" for place in places[:KEYS_SHOWN]],
        )
    ]


# ---------------------------------------------------------------- rows chosen for a reason


def present(condition: Callable[[str], object]) -> Callable[[str | None], bool]:
    return lambda name: name is not None and bool(condition(name))


def found(pattern: str) -> Callable[[str | None], bool]:
    return present(lambda name: re.search(pattern, name))


#: Reason -> the rows it is about, told in Python.
KINDS: dict[str, Callable[[str | None], bool]] = {
    "NULL": lambda name: name is None,
    "empty": present(lambda name: name == ""),
    "blank": present(lambda name: name and not name.strip()),
    "space in front": present(lambda name: name.strip() and name != name.lstrip()),
    "space behind": present(lambda name: name.strip() and name != name.rstrip()),
    "spaces in a run": found(r"\S\s\s+\S"),
    "tab or line end": found(r"[\t\r\n]"),
    "no-break space": found("\u00a0"),
    "quote, colon or backslash": found(r"""['":\\]"""),
    "non-ASCII": present(lambda name: not name.isascii()),
    "letter and accent apart (not NFC)": found("[\u0300-\u036f]"),
    "first by key": present(lambda _: True),
}


def test_awkward_rows_are_among_the_samples_each_with_its_reason(samples: Database) -> None:
    names = query(samples, 'SELECT id, full_name FROM guide."user" ORDER BY id')
    expected = {
        why: [(str(id), name) for id, name in names if is_meant(name)][:2]
        for why, is_meant in KINDS.items()
    }

    chosen = preview(samples, split_column("guide.user", "full_name")).backfills[0].samples

    reasons: dict[str, list[tuple[str | None, str | None]]] = {}
    for sample in chosen:
        for why in sample.why.replace("quote, colon", "quote; colon").split(", "):
            row = (sample.key[0], sample.before[0])
            reasons.setdefault(why.replace(";", ","), []).append(row)
    assert {why: sorted(reasons[why], key=_by_number) for why in KINDS} == expected
    lengths = [len(name) for _, name in names if name and name.strip()]
    assert [len(name or "") for _, name in reasons["longest"]] == [max(lengths)] * 2
    assert [len(name or "") for _, name in reasons["shortest"]] == [min(lengths)] * 2
    assert len({sample.key for sample in chosen}) == len(chosen)


def _by_number(row: tuple[Any, ...]) -> int:
    return int(row[0])


def test_rare_shapes_are_among_the_samples(database: Database) -> None:
    query(
        database,
        "CREATE TABLE phone (id int PRIMARY KEY, number text);"
        "INSERT INTO phone SELECT n, '030 ' || n FROM generate_series(1, 500) n;"
        "INSERT INTO phone VALUES (501, '030-1'), (502, 'call me'), (503, '030 7 x 8')",
    )

    chosen = of(
        database,
        add_column("phone", sa.Column("digits", sa.Text())),
        backfill("phone", {"digits": r"substring(number FROM '^[\d ]+$')"}),
    ).backfills[0]

    rare = {sample.before[0] for sample in chosen.samples if "rare shape" in sample.why}
    assert rare == {"030 1", "030-1", "call me", "030 7 x 8"}
    lost = [(s.key, s.after) for s in chosen.samples if "nothing is left" in s.why]
    assert lost == [(("501",), (None,)), (("502",), (None,))]


def test_same_rows_give_the_same_preview_however_they_lie(database: Database) -> None:
    rows = (
        "SELECT n AS id, (ARRAY['Ada', 'ADA', 'Bob ', 'Łuk', NULL, ''])[1 + n % 6] AS name,"
        " n % 7 AS size FROM generate_series(1, 3000) n"
    )
    query(database, f"CREATE TABLE item AS {rows}; ALTER TABLE item ADD PRIMARY KEY (size, id)")
    migration = Migration(
        "try",
        add_column("item", sa.Column("clean", sa.String(2))),
        backfill("item", {"clean": "lower(trim(name)) || size"}),
        no_nulls("item", "clean"),
    )
    once = preview(database, migration)
    query(
        database,
        f"TRUNCATE item; INSERT INTO item (id, name, size) {rows} ORDER BY md5(n::text)",
    )

    again = preview(database, migration)

    assert (again, repr(again)) == (once, repr(once))


# ---------------------------------------------------------------- what would stop it


def test_values_that_are_not_mapped_stop_it_with_their_first_keys(samples: Database) -> None:
    mapped = "('enabled', 'disabled', 'suspended', 'pending_activation')"
    for values, condition, rows in (
        (STATUSES, f"status NOT IN {mapped} OR status IS NULL", 500),
        ({**STATUSES, None: None}, f"status NOT IN {mapped}", 400),
    ):
        found = preview(samples, map_values("guide.user", "status", values, into="status_new"))

        keys = first_keys(samples, 'guide."user"', condition)
        assert stops(found) == [("not so: every status of guide.user has a new value", rows, keys)]
        assert not found.passed
        assert found.summary == "9,500 rows would change, 1 hazards would stop it"


def test_several_values_that_become_one_are_a_note(samples: Database) -> None:
    found = preview(samples, map_values("guide.user", "status", ALL_STATUSES, into="status_new"))

    assert found.passed
    assert [(hazard.severity, hazard.what, hazard.rows) for hazard in found.hazards] == [
        ("note", "3 old values become active", 6_200),
        ("note", "2 old values become inactive", 2_500),
    ]


def test_many_values_that_become_fewer_are_one_note(database: Database) -> None:
    query(
        database,
        "CREATE TABLE item (id int PRIMARY KEY, name text);"
        "INSERT INTO item SELECT n, CASE WHEN n % 2 = 0 THEN 'A' ELSE 'a' END || n / 2"
        " FROM generate_series(2, 101) n",
    )

    found = of(
        database,
        add_column("item", sa.Column("clean", sa.Text())),
        backfill("item", {"clean": "lower(name)"}),
    )

    assert [(hazard.severity, hazard.what, hazard.rows) for hazard in found.hazards] == [
        ("note", "100 old values become 50 new ones", 100)
    ]


def test_values_too_long_for_their_type_are_counted(samples: Database) -> None:
    found = preview(samples, split_column("guide.user", "full_name", type=sa.String(50)))

    # The words of the row told apart in another way: only the last one is ever long.
    long = r"length(substring(full_name FROM '\S+$')) > 50"
    assert stops(found) == [
        (
            "not so: every last_name fits into 50 characters",
            number(samples, 'guide."user"', long),
            first_keys(samples, 'guide."user"', long),
        )
    ]
    assert found.hazards[0].rows == 50


def test_nulls_of_a_column_that_becomes_not_null_are_counted(samples: Database) -> None:
    found = preview(samples, split_column("guide.user", "full_name", nullable=False))

    blank = "coalesce(trim(full_name), '') = ''"
    keys = first_keys(samples, 'guide."user"', blank)
    assert stops(found)[0] == ("not so: no first_name becomes NULL", 150, keys)


@pytest.fixture
def orders(database: Database) -> Database:
    """A table with constraints of every kind, and a parent."""
    query(
        database,
        """
        CREATE TYPE mood AS ENUM ('good', 'bad');
        CREATE TABLE shop (id int PRIMARY KEY);
        INSERT INTO shop VALUES (1), (2);
        CREATE TABLE "order" (
            id int PRIMARY KEY,
            said text,
            "Total" int NOT NULL,
            shop_id int REFERENCES shop,
            email text UNIQUE,
            mood mood,
            quantity int CONSTRAINT positive CHECK (quantity > 0),
            small smallint
        );
        INSERT INTO "order"
        SELECT n, ' Mail ' || n || '@example.com', n, 1, 'mail' || n || '@example.com', 'good', n, n
          FROM generate_series(1, 30) n;
        UPDATE "order" SET said = ' MAIL 9@example.com' WHERE id = 8;
        UPDATE "order" SET said = ' MAIL 11@example.com ' WHERE id IN (10, 12);
        UPDATE "order" SET said = NULL WHERE id IN (2, 11, 20)
        """,
    )
    return database


def test_values_that_break_a_unique_index_are_found(orders: Database) -> None:
    found = of(orders, backfill("order", {"email": "replace(lower(trim(said)), ' ', '')"}))

    assert stops(found) == [
        (
            "email is unique, but values would become the same",
            4,
            ["mail11@example.com", "mail9@example.com"],
        )
    ]


def test_values_that_break_a_unique_index_come_in_the_order_of_their_type(orders: Database) -> None:
    query(orders, 'ALTER TABLE "order" ADD COLUMN place int UNIQUE')

    found = of(orders, backfill("order", {"place": "id / 5 * 5"}))

    values = ["0", "5", "10", "15", "20", "25"]
    assert stops(found) == [("place is unique, but values would become the same", 29, values)]


def test_null_in_a_not_null_column_is_found(orders: Database) -> None:
    found = of(orders, backfill("order", {"Total": "length(said)"}))

    assert stops(found) == [("Total is NOT NULL, but would become NULL", 3, ["2", "11", "20"])]


def test_value_without_a_parent_is_found(orders: Database) -> None:
    found = of(orders, backfill("order", {"shop_id": "nullif(id % 4, 0)"}))

    keys = [str(id) for id in range(3, 31, 4)]
    assert stops(found) == [("shop_id would not be found in public.shop", 7, keys)]


def test_value_that_breaks_a_check_is_found(orders: Database) -> None:
    there = of(orders, backfill("order", {"quantity": 'nullif("Total", 2) - 3'}))
    new = of(
        orders,
        add_column("order", sa.Column("half", sa.Integer())),
        backfill("order", {"half": "id / 2"}),
        create_check_constraint("half_positive", "order", "half > 0 AND half <> 12"),
    )

    assert stops(there) == [("the constraint positive would not hold", 2, ["1", "3"])]
    assert stops(new) == [("the constraint half_positive would not hold", 3, ["1", "24", "25"])]


def test_number_too_large_for_its_type_is_found(orders: Database) -> None:
    found = of(orders, backfill("order", {"small": "id * 3000::bigint"}))

    keys = [str(id) for id in range(11, 31)]
    assert stops(found) == [("small would not fit its type smallint", 20, keys[:KEYS_SHOWN])]


def test_column_that_is_filled_twice_is_told_once(orders: Database) -> None:
    found = of(
        orders,
        backfill("order", {"small": "40000"}, where="id < 3"),
        backfill("order", {"small": "50000"}, where="id = 9"),
    )

    assert stops(found) == [("small would not fit its type smallint", 3, ["1", "2", "9"])]


def test_fraction_that_would_be_rounded_is_a_note(orders: Database) -> None:
    found = of(orders, backfill("order", {"small": "id / 10.0"}))

    assert [(hazard.severity, hazard.what, hazard.rows) for hazard in found.hazards] == [
        ("note", "small is of type smallint, so fractions are rounded", 27)
    ]


def test_text_for_a_column_of_numbers_is_found_with_what_is_no_number(orders: Database) -> None:
    query(orders, 'UPDATE "order" SET said = id; UPDATE "order" SET said = \'1o\' WHERE id = 10')

    for column in ("quantity", "made"):
        found = of(
            orders,
            add_column("order", sa.Column("made", sa.Integer())),
            backfill("order", {column: "said"}),
            rows_check("made is positive", "order", "made <= 0"),
        )

        kind = "integer" if column == "quantity" else "INTEGER"
        assert stops(found) == [
            (
                f"{column} does not take the values of its expression: it is of type integer,"
                " the expression of type text",
                30,
                [],
            ),
            (f"{column} would not fit its type {kind}", 1, ["10"]),
        ]


def test_server_that_cannot_ask_whether_a_value_fits_still_finds_the_rest(older: Database) -> None:
    query(
        older,
        "CREATE TABLE item (id int PRIMARY KEY, size int CHECK (size < 5), n smallint, t text);"
        "INSERT INTO item SELECT n, 1, 1, 'x' FROM generate_series(1, 6) n",
    )

    found = of(older, backfill("item", {"size": "id", "n": "id * 30000"}))
    text = of(older, backfill("item", {"size": "t"}))
    query(older, "UPDATE item SET t = ' 12 ' WHERE id < 3")
    changed = of(older, change_type("item", "t", "integer"))

    assert stops(found) == [("the constraint item_size_check would not hold", 2, ["5", "6"])]
    assert [hazard.rows for hazard in text.hazards] == [6]
    assert "it is of type integer, the expression of type text" in text.hazards[0].what
    assert stops(changed)[0] == (
        "not so: every t of item has a value of type integer",
        4,
        ["3", "4", "5", "6"],
    )


def test_what_is_no_label_of_an_enum_is_found(orders: Database) -> None:
    new_type = postgresql.ENUM("high", "low", name="level", create_type=False)
    high = "CASE WHEN id = 7 THEN 'High' WHEN id > 3 THEN 'high' END"

    there = of(orders, backfill("order", {"mood": f"({high})::text"}))
    new = of(
        orders,
        create_enum("level", "high", "low"),
        add_column("order", sa.Column("level", new_type)),
        backfill("order", {"level": high}),
    )

    assert stops(there)[1] == (
        "mood would not fit its type mood",
        27,
        [str(id) for id in range(4, 4 + KEYS_SHOWN)],
    )
    assert stops(new) == [("level would hold what is no label of its enum", 1, ["7"])]


def test_rows_that_no_backfill_fills_are_seen_by_the_checks(orders: Database) -> None:
    found = of(
        orders,
        add_column("order", sa.Column("level", sa.Integer())),
        add_column("order", sa.Column("other", sa.Integer(), server_default="3")),
        add_column("order", sa.Column("never", sa.Integer())),
        backfill("order", {"level": "1"}, where="id > 2"),
        backfill("order", {"level": "2"}, where="id < 2"),
        backfill("order", {"other": "4"}, where="id IN (5, 6)"),
        no_nulls("order", "level", "other"),
        rows_check("other is three", "order", "other <> 3"),
        rows_check("never is filled", "order", "id = 30 AND never IS NULL"),
        alter_column("order", "level", nullable=False),
    )

    assert stops(found) == [
        ("not so afterwards: level and other of order without NULL", 1, ["2"]),
        ("not so afterwards: other is three", 2, ["5", "6"]),
        ("not so afterwards: never is filled", 1, ["30"]),
        ("level cannot become NOT NULL", 1, ["2"]),
    ]


def test_rows_that_where_leaves_out_keep_their_value(orders: Database) -> None:
    found = of(
        orders,
        backfill("order", {"quantity": "id - 4"}, where="id BETWEEN 3 AND 5"),
        rows_check("no quantity of 2", "order", "quantity IN (1, 2, 29)"),
    )

    assert stops(found) == [
        ("not so afterwards: no quantity of 2", 4, ["1", "2", "5", "29"]),
        ("the constraint positive would not hold", 2, ["3", "4"]),
    ]


def test_table_that_is_only_checked_is_checked(orders: Database) -> None:
    found = of(
        orders,
        rows_check("no shop 2", "shop", "id = 2"),
        alter_column("order", "said", nullable=False),
    )

    assert stops(found) == [
        ("not so afterwards: no shop 2", 1, ["2"]),
        ("said cannot become NOT NULL", 3, ["2", "11", "20"]),
    ]
    assert found.frame.empty


def test_check_before_the_first_write_keeps_null_among_its_keys(orders: Database) -> None:
    found = of(
        orders,
        check(
            "every mail is known",
            'SELECT said, id FROM "order" WHERE id < 3 ORDER BY id',
            before=True,
        ),
    )

    assert found.hazards == (
        Hazard(
            severity="stops",
            what="not so: every mail is known",
            rows=2,
            keys=((" Mail 1@example.com", "1"), (None, "2")),
            advice="the revision refuses to start; decide what becomes of these rows",
        ),
    )


# ---------------------------------------------------------------- nothing is written, errors help


def test_nothing_can_be_written(orders: Database) -> None:
    query(
        orders,
        "CREATE FUNCTION spend(int) RETURNS int LANGUAGE sql VOLATILE AS"
        " 'INSERT INTO shop VALUES (9 + $1) RETURNING id'",
    )

    with pytest.raises(QueryError) as raised:
        of(orders, backfill("order", {"quantity": "spend(id)"}))

    assert raised.value.sqlstate == "25006"  # the server says: read-only transaction
    assert query(orders, "SELECT id FROM shop ORDER BY id") == [1, 2]


def test_rows_are_the_same_versions_afterwards(orders: Database) -> None:
    versions = 'SELECT xmin::text, xmax::text, ctid::text, o::text FROM "order" o ORDER BY id'
    catalog = "SELECT count(*), max(oid), sum(xmin::text::bigint) FROM pg_class"
    before = query(orders, versions), query(orders, catalog)

    preview(orders, map_values("order", "said", {None: "none"}, into="new", unmapped="keep"))

    assert (query(orders, versions), query(orders, catalog)) == before


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("100 / (id - 17)", "division by zero"),
        (
            "nullif(said, 'none')::int",
            'invalid input syntax for type integer: " Mail 1@example.com"',
        ),
    ],
)
def test_expression_that_fails_on_a_row_is_named_in_one_sentence(
    orders: Database, expression: str, reason: str
) -> None:
    with pytest.raises(QueryError) as raised:
        of(orders, backfill("order", {"email": "said", "quantity": expression}))

    code = "22012" if "zero" in reason else "22P02"
    assert str(raised.value) == (
        f"the expression {expression!r} over the rows of order failed: {reason} (SQLSTATE {code});"
        " correct the SQL or the name and run it again"
    )


def test_where_that_fails_on_a_row_is_named(orders: Database) -> None:
    with pytest.raises(QueryError, match=r"^the expression '1 / \(id - 4\) > 0' over the rows of"):
        of(orders, backfill("order", {"email": "said"}, where="1 / (id - 4) > 0"))


def test_check_that_does_not_work_is_named_by_its_table(orders: Database) -> None:
    with pytest.raises(
        QueryError, match=r"^holding the checks against the new rows of order failed"
    ):
        of(
            orders,
            backfill("order", {"email": "said"}),
            rows_check("x", "order", "1 / (id - 4) = 1"),
        )


def test_preview_that_takes_too_long_says_how_to_give_it_longer(orders: Database) -> None:
    slow = backfill("order", {"quantity": "CASE WHEN pg_sleep(1) IS NULL THEN 1 ELSE 2 END"})

    with pytest.raises(QueryError, match="give it longer with timeout_seconds="):
        preview(orders, Migration("slow", slow), timeout_seconds=0.1)


def test_text_shows_hazards_first_and_then_the_values(orders: Database) -> None:
    found = of(
        orders,
        add_column("order", sa.Column("kind", sa.Text())),
        backfill("order", {"kind": "CASE WHEN shop_id = 1 THEN mood::text END"}),
        rows_check("nobody is good", "order", "kind = 'good'"),
    )

    assert repr(found) == (
        "Preview of 'try': 30 rows would change, 1 hazards would stop it\n"
        "  STOPS  not so afterwards: nobody is good: 30 rows; change the expression, or the check\n"
        "  order: 1 distinct values of shop_id, mood\n"
        "    1, good → good  30 rows"
    )


def test_changing_most_of_a_large_table_is_said_to_be_dearer_than_writing_it_anew(
    samples: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview_hazards, "REWRITE_BYTES", 100_000)
    every, some = backfill("guide.user", {"status": "upper(status)"}), "status = 'suspended'"

    found = [
        of(samples, step) for step in (every, backfill("guide.user", {"status": "''"}, where=some))
    ]

    told = [[h.rows for h in each.hazards if "written again" in h.what] for each in found]
    assert told == [[9_850], []]

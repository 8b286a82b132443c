"""A profile says what independent counts say, of every table and type, and never writes."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module

import pytest

from datamig_nb import profile_sql
from datamig_nb.database import Database
from datamig_nb.errors import (
    MigrationError,
    PermissionDeniedError,
    QueryError,
    UnknownColumnError,
    UnknownTableError,
)
from datamig_nb.names import TableName
from datamig_nb.profile import profile
from datamig_nb.profile_sql import Measured
from datamig_nb.table_profile import (
    SEVERITIES,
    CandidateKey,
    ColumnProfile,
    Reference,
    TableProfile,
    ValueCount,
)
from tests.scratch import query

# The function profile() hides its module in the package.
MODULE = import_module("datamig_nb.profile")

_numbers = itertools.count(1)


def pairs(counts: Sequence[ValueCount]) -> list[tuple[str, int]]:
    return [(count.value, count.rows) for count in counts]


def found(profiled: TableProfile) -> list[tuple[str, str | None, int | None]]:
    """What the alerts are about."""
    return [(alert.severity, alert.column, alert.rows) for alert in profiled.alerts]


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes a table large, a sample or a part, made small enough for the samples."""
    monkeypatch.setattr(MODULE, "SAMPLE_ROWS", 2_000)
    monkeypatch.setattr(MODULE, "COUNTED_VALUES", 500)
    monkeypatch.setattr(MODULE, "PART_ROWS", 2_000)


# ---------------------------------------------------------------- figures


TEXTS = [
    ("players.player", "full_name"),
    ("players.player", "true_first_name"),
    ("flights.planes", "model"),
    ("flights.airports", "name"),
    ("guide.category", "name"),
    ('guide."user"', "full_name"),
    ('guide."user"', "email"),
    ('guide."user"', "status"),
    ("guide.task", "title"),
    ("guide.large_table", "old_data_field"),
    ("guide.large_table", "migrated_field"),
]

# str.strip() takes chr(28) to chr(31), which are separators, no white space; see UNICODE_SPACES.
SPACES = "".join(c for c in map(chr, range(0x10000)) if c.isspace() and not 28 <= ord(c) <= 31)


def mask(text: str) -> str:
    classes = [
        "A" if c.isupper() else "a" if c.isalpha() else "9" if c.isdigit() else c for c in text
    ]
    return re.sub(r"([Aa9])\1+", r"\1+", "".join(classes))


@pytest.mark.parametrize(("table", "column"), TEXTS)
def test_figures_of_a_text_are_those_that_python_counts(
    samples: Database, table: str, column: str
) -> None:
    values = query(samples, f"SELECT {column} FROM {table}")
    texts = [value for value in values if value is not None]
    words = [text for text in texts if text.strip(SPACES)]
    groups: dict[str, Counter[str]] = {}
    for text in words:
        form = re.sub(f"[{SPACES}]", "", text).lower()
        groups.setdefault(form, Counter())[text] += 1
    alike = [group for group in groups.values() if len(group) > 1]
    masks = Counter(map(mask, words))

    profiled = profile(samples, table, top=5)[column]

    assert profiled == ColumnProfile(
        name=column,
        type=profiled.type,
        rows=len(values),
        nulls=len(values) - len(texts),
        blanks=len(texts) - len(words),
        padded=sum(text.strip(SPACES) != text for text in words),
        non_ascii=sum(not text.isascii() for text in texts),
        wide_spaces=sum(bool(re.search(f"[{SPACES[6:]}]", text)) for text in texts),
        decomposed=sum(not unicodedata.is_normalized("NFC", text) for text in texts),
        distinct=len(set(texts)),
        distinct_is_exact=True,
        top=profiled.top,
        minimum=min(texts),
        maximum=max(texts)[:60] + "…" * (len(max(texts)) > 60),
        min_length=min(map(len, texts)),
        mean_length=pytest.approx(sum(map(len, texts)) / len(texts)),
        max_length=max(map(len, texts)),
        length_limit=profiled.length_limit,
        near_limit=sum(len(text) >= 0.9 * (profiled.length_limit or 99) for text in texts),
        masks=profiled.masks,
        distinct_masks=len(masks),
        rare_mask_rows=sum(n for n in masks.values() if n < 0.01 * len(words)),
        spellings=profiled.spellings,
        spelling_groups=len(alike),
        spelling_rows=sum(group.total() - max(group.values()) for group in alike),
    )
    by_rows = sorted(Counter(texts).items(), key=lambda item: (-item[1], item[0]))
    assert pairs(profiled.top) == [item for item in by_rows if item[1] > 1][:5]
    by_rows = sorted(masks.items(), key=lambda item: (-item[1], item[0]))
    assert pairs(profiled.masks) == by_rows[:5]
    assert [dict(pairs(group)) for group in profiled.spellings] == [
        dict(groups[re.sub(f"[{SPACES}]", "", group[0].value).lower()])
        for group in profiled.spellings
    ]
    assert len(profiled.spellings) == min(len(alike), 5)


def test_planted_messes_of_the_guide_are_counted(samples: Database) -> None:
    user = profile(samples, "guide.user")

    name, email, status = user["full_name"], user["email"], user["status"]
    assert (name.nulls, name.blanks, name.padded) == (50, 100, 300)
    assert (name.wide_spaces, name.decomposed) == (100, 50)
    assert (email.nulls, email.padded, email.repeated) == (200, 900, 100)
    assert pairs(status.spellings[0]) == [("enabled", 6_000), ("Enabled", 100), ("enabled ", 100)]
    assert (status.nulls, status.blanks, status.spelling_rows) == (100, 50, 200)
    assert (user["created_at"].nulls, user["updated_at"].nulls) == (200, 300)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("flights.flights", "arr_delay"),
        ("flights.weather", "wind_speed"),
        ("flights.weather", "time_hour"),
        ('guide."user"', "updated_at"),
    ],
)
def test_quantiles_are_those_of_percentile_disc(samples: Database, table: str, column: str) -> None:
    shares = "ARRAY[0.05, 0.25, 0.5, 0.75, 0.95]"
    expected = query(
        samples,
        f"SELECT (percentile_disc({shares}) WITHIN GROUP (ORDER BY {column}))::text[],"
        f" min({column})::text, max({column})::text FROM {table}",
    )

    profiled = profile(samples, table)[column]

    assert [(list(profiled.quantiles), profiled.minimum, profiled.maximum)] == expected
    assert profiled.sample_rows is None


def test_white_space_is_that_of_unicode(database: Database) -> None:
    spaces = ", ".join(f"chr({ord(character)})" for character in SPACES)
    query(
        database,
        "CREATE TABLE t AS SELECT v"
        f"  FROM unnest(ARRAY[{spaces}]) AS s,"
        "       unnest(ARRAY[s, s || 'a', 'a' || s, 'a' || s || 'a']) AS v"
        " UNION ALL SELECT unnest(ARRAY[NULL, 'a', ''])",
    )

    column = profile(database, "t")["v"]

    assert (column.nulls, column.blanks, column.padded) == (1, len(SPACES) + 1, 2 * len(SPACES))
    assert column.wide_spaces == 4 * (len(SPACES) - 6)
    assert column.spelling_groups == 2  # a and aa


def test_shares_are_between_0_and_1(samples: Database) -> None:
    status = profile(samples, "guide.user")["status"]

    assert status.null_share == 0.01
    assert status.blank_share == 0.005
    assert status.padded_share == 0.01
    assert status.distinct_share == 8 / 9_900


def test_long_values_are_cut_and_still_told_apart(database: Database) -> None:
    query(
        database,
        "CREATE TABLE t AS SELECT repeat('x', 1000000) || n % 2 AS v, repeat('y', 60) AS w"
        " FROM generate_series(1, 5) n",
    )

    column = profile(database, "t")["v"]

    assert column.distinct == 2
    assert pairs(column.top) == [("x" * 60 + "…", 3), ("x" * 60 + "…", 2)]
    assert column.minimum == column.maximum == "x" * 60 + "…"
    assert column.max_length == 1_000_001
    assert pairs(profile(database, "t")["w"].top) == [("y" * 60, 5)]


def test_prose_has_neither_masks_nor_spellings(database: Database) -> None:
    query(
        database,
        "CREATE TABLE t AS SELECT repeat(word, 11) AS long, repeat(word, 10) AS short"
        " FROM unnest(ARRAY['Word ', 'word ']) word",
    )

    profiled = profile(database, "t")

    assert (profiled["long"].masks, profiled["long"].spelling_groups) == ((), 0)
    assert (profiled["short"].distinct_masks, profiled["short"].spelling_groups) == (2, 1)


@pytest.mark.parametrize(
    ("values", "looks_like"),
    [
        ("'1', ' 2 ', '-3.5', '0'", "number"),
        ("'007', '12345'", None),
        ("'2024-01-31', '2024-1-2 10:00', '2024-01-31T10:00:00.5Z'", "date"),
        ("'31.12.2024', '1/2/24'", "date"),
        ("'yes', 'No', ' N '", "boolean"),
        ("'yes', 'maybe'", None),
        ("''", None),
    ],
)
def test_text_that_could_be_another_type_is_told(
    database: Database, values: str, looks_like: str | None
) -> None:
    query(database, f"CREATE TABLE t AS SELECT unnest(ARRAY[{values}]) AS v")

    assert profile(database, "t")["v"].looks_like == looks_like


# ---------------------------------------------------------------- exact and estimated


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize(
    ("table", "column"),
    [("guide.user", "email"), ("guide.large_table", "old_data_field"), ("guide.task", "user_id")],
)
def test_large_tables_are_exact_but_for_distinct_values_and_shapes(
    samples: Database, table: str, column: str
) -> None:
    exact = profile(samples, table)[column]

    column_profile = profile(samples, table, exact_up_to_rows=5_000)[column]

    for figure in (
        "rows nulls blanks padded non_ascii wide_spaces decomposed minimum maximum min_length"
        " max_length length_limit near_limit"
    ).split():
        assert getattr(column_profile, figure) == getattr(exact, figure)
    assert column_profile.mean_length == pytest.approx(exact.mean_length)
    assert not column_profile.distinct_is_exact
    assert column_profile.distinct == pytest.approx(exact.distinct, rel=0.1)
    assert column_profile.spelling_groups == pytest.approx(exact.spelling_groups, rel=0.3)
    assert column_profile.sample_rows == pytest.approx(2_000, rel=0.1)
    assert sum(count.rows for count in column_profile.masks) <= column_profile.sample_rows
    if exact.masks:
        assert column_profile.masks[0].value == exact.masks[0].value
    if exact.quantiles:
        ours, theirs = map(int, column_profile.quantiles), map(int, exact.quantiles)
        assert list(ours) == pytest.approx(list(theirs), abs=500)


@pytest.mark.usefixtures("small_limits")
def test_columns_of_few_values_are_exact_in_large_tables_too(samples: Database) -> None:
    exact = profile(samples, "guide.user")["status"]

    assert profile(samples, "guide.user", exact_up_to_rows=5_000)["status"] == exact


@pytest.mark.usefixtures("small_limits")
def test_unique_index_makes_distinct_values_exact_in_large_tables_too(samples: Database) -> None:
    profiled = profile(samples, "guide.user", exact_up_to_rows=5_000)

    assert (profiled["id"].distinct, profiled["id"].distinct_is_exact) == (10_000, True)
    assert profiled["id"].sample_rows is not None
    assert not profiled.is_exact
    assert "some figures estimated" in repr(profiled)


@pytest.mark.usefixtures("small_limits")
def test_spellings_of_a_unique_text_are_estimated_in_large_tables(database: Database) -> None:
    query(
        database,
        "CREATE TABLE t (code text UNIQUE); INSERT INTO t"
        " SELECT word || n FROM unnest(ARRAY['a', 'A']) word, generate_series(1, 5000) n",
    )

    profiled = profile(database, "t", exact_up_to_rows=1_000)

    assert (profiled["code"].distinct, profiled["code"].distinct_is_exact) == (10_000, True)
    assert profiled["code"].spelling_groups == pytest.approx(5_000, rel=0.1)
    assert re.search(r"about [45],\d+ rows spelled otherwise", repr(profiled))


@pytest.mark.usefixtures("small_limits")
def test_frequent_values_of_large_tables_come_with_their_exact_rows(database: Database) -> None:
    query(
        database,
        "CREATE TABLE t AS SELECT CASE WHEN n % 10 = 0 THEN 'n/a' WHEN n % 20 = 1 THEN NULL"
        " ELSE 'value ' || n END AS v FROM generate_series(1, 20000) n",
    )

    column = profile(database, "t", exact_up_to_rows=1_000)["v"]

    assert pairs(column.top) == [("n/a", 2_000)]
    assert column.nulls == 1_000
    assert column.distinct == pytest.approx(17_001, rel=0.1)


@pytest.mark.usefixtures("small_limits")
def test_uniqueness_of_a_part_proves_nothing(database: Database) -> None:
    query(
        database,
        "CREATE TABLE t AS SELECT n AS id, 'x' || n % 9999 AS code"
        " FROM generate_series(1, 10000) n",
    )

    keys = profile(database, "t", exact_up_to_rows=1_000).candidate_keys

    assert CandidateKey(columns=("id",), indexed=False, proven=False) in keys
    assert not any(key.proven for key in keys)
    assert profile(database, "t").candidate_keys == (
        CandidateKey(columns=("id",), indexed=False, proven=True),
    )


@pytest.mark.usefixtures("small_limits")
def test_large_view_is_sampled_evenly(sample_database: Database) -> None:
    query(sample_database, "CREATE VIEW guide.users AS SELECT * FROM guide.user")

    column = profile(sample_database, "guide.users", exact_up_to_rows=5_000)["id"]

    assert column.sample_rows == pytest.approx(2_000, rel=0.1)
    assert int(column.quantiles[2]) == pytest.approx(6_000, abs=500)


def test_same_data_prints_the_same(sample_database: Database, samples: Database) -> None:
    query(sample_database, "VACUUM FULL ANALYZE guide.user")

    first = profile(samples, "guide.user")

    assert repr(first) == repr(profile(samples, "guide.user"))
    assert repr(first) == repr(profile(sample_database, "guide.user"))
    assert str(first.total_bytes) not in repr(first)


@pytest.mark.usefixtures("small_limits")
def test_same_sample_prints_the_same(samples: Database) -> None:
    first = repr(profile(samples, "guide.large_table", exact_up_to_rows=1_000))

    assert first == repr(profile(samples, "guide.large_table", exact_up_to_rows=1_000))


def test_times_print_the_same_whatever_the_settings(database: Database) -> None:
    query(
        database,
        f"ALTER DATABASE {database.url.database} SET timezone = 'Asia/Tokyo';"
        f"ALTER DATABASE {database.url.database} SET datestyle = 'German';"
        "CREATE TABLE t AS SELECT timestamptz '2025-01-01 00:00Z' AS at, interval '1 day' AS span",
    )

    profiled = profile(database, "t")

    assert profiled["at"].minimum == "2025-01-01 00:00:00+00"
    assert pairs(profiled["span"].top) == [("1 day", 1)]


def test_equal_numbers_are_one_value_however_written(database: Database) -> None:
    query(database, "CREATE TABLE t AS SELECT unnest(ARRAY[1.0, 1.00, 1, 2.50]) AS v")

    column = profile(database, "t")["v"]

    assert pairs(column.top) == [("1", 3), ("2.5", 1)]
    assert (column.minimum, column.maximum) == ("1", "2.5")


# ---------------------------------------------------------------- keys and references


def test_orphans_are_found_from_names_alone(samples: Database) -> None:
    missing = query(
        samples,
        "SELECT tailnum, count(*) FROM flights.flights"
        " WHERE tailnum NOT IN (SELECT tailnum FROM flights.planes)"
        ' GROUP BY tailnum ORDER BY count(*) DESC, tailnum COLLATE "C"',
    )

    carrier, tailnum = profile(samples, "flights.flights", top=3).references

    assert (carrier.parent, carrier.orphan_rows) == ("flights.airlines", 0)
    assert tailnum == Reference(
        column="tailnum",
        parent="flights.planes",
        parent_column="tailnum",
        origin="suggested",
        orphan_rows=50_094,
        missing_values=len(missing),
        first_missing=tuple(ValueCount(value=value, rows=rows) for value, rows in missing[:3]),
    )


def test_orphans_of_a_given_reference_are_counted(samples: Database) -> None:
    links = {"dest": "flights.airports.faa", "origin": "flights.airports.faa"}

    profiled = profile(samples, "flights.flights", references=links)

    given = {link.column: link for link in profiled.references if link.origin == "given"}
    assert (given["origin"].orphan_rows, given["origin"].first_missing) == (0, ())
    assert given["dest"].orphan_rows == 7_602
    assert [v.value for v in given["dest"].first_missing] == ["SJU", "BQN", "STT", "PSE"]
    assert ("danger", "dest", 7_602) in found(profiled)


def test_foreign_key_is_looked_at_only_if_not_valid(database: Database) -> None:
    query(
        database,
        """
        CREATE TABLE country (code text PRIMARY KEY);
        CREATE TABLE city (code text REFERENCES country, old_code text);
        INSERT INTO city VALUES (NULL, 'xx');
        ALTER TABLE city ADD FOREIGN KEY (old_code) REFERENCES country NOT VALID
        """,
    )

    (link,) = profile(database, "city").references

    assert (link.column, link.origin, link.orphan_rows) == ("old_code", "not valid", 1)


@pytest.mark.parametrize("parent", ["country", "countrys", "countries", "Country"])
def test_reference_is_suggested_by_the_name_of_the_table(database: Database, parent: str) -> None:
    query(
        database,
        f"""
        CREATE TABLE "{parent}" (id bigint PRIMARY KEY);
        CREATE TABLE country_names (country_id text PRIMARY KEY);
        CREATE TABLE city (id int PRIMARY KEY, country_id int, county_id int);
        INSERT INTO "{parent}" VALUES (1);
        INSERT INTO city VALUES (1, 1, 1), (2, 2, 1), (3, NULL, 1)
        """,
    )

    (link,) = profile(database, "city").references

    assert (link.column, link.parent) == ("country_id", f"public.{parent}")
    assert (link.orphan_rows, pairs(link.first_missing)) == (1, [("2", 1)])


def test_nothing_is_suggested_where_no_value_fits(database: Database) -> None:
    query(
        database,
        "CREATE TABLE kind (id int PRIMARY KEY); CREATE TABLE t AS SELECT 7 AS kind_id",
    )

    assert profile(database, "t").references == ()
    (given,) = profile(database, "t", references={"kind_id": "kind.id"}).references
    assert given.orphan_rows == 1


def test_pair_is_a_candidate_key_where_no_column_is(samples: Database) -> None:
    profiled = profile(samples, "flights.weather")

    assert profiled.candidate_keys == (
        CandidateKey(columns=("origin", "time_hour"), indexed=False, proven=True),
    )
    assert "make (origin, time_hour) the key" in profiled.alerts[0].advice


def test_key_that_an_index_holds_comes_first(samples: Database) -> None:
    keys = profile(samples, "guide.category").candidate_keys

    assert keys == (
        CandidateKey(columns=("id",), indexed=True, proven=True),
        CandidateKey(columns=("description",), indexed=False, proven=True),
    )


def test_measurements_are_no_keys(samples: Database) -> None:
    airports = profile(samples, "flights.airports")

    assert airports["lon"].is_unique
    assert [key.columns for key in airports.candidate_keys] == [("faa",)]


# ---------------------------------------------------------------- alerts

ODD = """
CREATE TABLE "select" (
    nothing int, constant int, email text, blank text, padded text, wide text, decomposed text,
    case_only text, mostly int, number text, near varchar(10), shape text
);
INSERT INTO "select"
SELECT NULL, 1, CASE n WHEN 100 THEN 'm99' ELSE 'm' || n END,
       CASE WHEN n % 50 = 0 THEN ' ' ELSE '-' END, CASE n WHEN 1 THEN '- ' ELSE '+-' END,
       CASE n WHEN 1 THEN U&'-\\00a0-' ELSE '---' END, CASE n WHEN 1 THEN U&'-e\\0301' ELSE '-' END,
       CASE n WHEN 1 THEN 'A-' ELSE 'a-' END, nullif(n % 7 * 0 + n, 1) % 3, 1 + n % 3,
       CASE n WHEN 1 THEN '-123456789' ELSE '-' END, CASE n WHEN 1 THEN '-' ELSE '{0}' END
  FROM generate_series(1, 200) n
"""


def test_alerts_name_what_is_odd_the_worst_first(database: Database) -> None:
    query(database, ODD)

    profiled = profile(database, "select")

    assert found(profiled) == [
        ("danger", None, None),
        ("warning", None, None),
        ("warning", "nothing", 200),
        ("warning", "email", 1),
        ("warning", "blank", 4),
        ("warning", "padded", 1),
        ("warning", "wide", 1),
        ("warning", "decomposed", 1),
        ("warning", "case_only", 1),
        ("warning", "near", 1),
        ("note", "constant", 200),
        ("note", "padded", 1),
        ("note", "wide", 1),
        ("note", "decomposed", 1),
        ("note", "case_only", 1),
        ("note", "mostly", 1),
        ("note", "number", 200),
        ("note", "near", 1),
        ("note", "shape", 1),
    ]
    assert "there is no primary key" in profiled.alerts[0].finding
    assert "select is a reserved word" in profiled.alerts[1].finding
    assert "1 row in shapes of under 1 % each (most are '{9}')" in profiled.alerts[-1].finding
    assert all(alert.advice for alert in profiled.alerts)


def test_alerts_have_the_known_severities(samples: Database) -> None:
    severities = [alert.severity for alert in profile(samples, "guide.user").alerts]

    assert set(severities) == set(SEVERITIES)
    assert severities == sorted(severities, key=SEVERITIES.index)


def test_only_what_could_be_a_key_is_called_nearly_unique(samples: Database) -> None:
    user = profile(samples, "guide.user")

    assert (user["email"].repeated, user["updated_at"].repeated) == (100, 198)
    unique_but = [alert.column for alert in user.alerts if "unique but" in alert.finding]
    assert unique_but == ["email"]


def test_table_called_user_is_profiled_and_the_name_is_an_alert(samples: Database) -> None:
    profiled = profile(samples, "guide.user")

    assert profiled.rows == 10_000
    assert "SELECT count(*) FROM user counts something else" in profiled.alerts[0].finding
    assert 'guide."user"' in profiled.alerts[0].advice


def test_clean_table_has_no_alerts(database: Database) -> None:
    query(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, kind text);"
        " INSERT INTO t SELECT n, (ARRAY['red', 'green'])[1 + n % 2] FROM generate_series(1, 9) n",
    )

    profiled = profile(database, "t")

    assert profiled.alerts == ()
    assert profiled.summary == "9 rows, 2 columns, every figure exact; no alerts"


# ---------------------------------------------------------------- every table and type

EVERY_TYPE = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN amount AS numeric CHECK (VALUE >= 0);
CREATE DOMAIN word AS varchar(10);
CREATE DOMAIN kindly AS word;
CREATE TYPE span AS RANGE (subtype = int);
CREATE TABLE kinds (
    small smallint, big bigint, num numeric,
    price numeric(10, 2), r real, d double precision, m money, t text, v varchar(12), c char(5),
    n name, letter "char", b boolean, dt date, tm time, tmz timetz, ts timestamp, tsz timestamptz,
    iv interval, j json, jb jsonb, x xml, by bytea, u uuid, mo mood, pa pair, ia int[], ta text[],
    pts point[], ip inet, net cidr, mac macaddr, pt point, bx box, pg polygon, bi bit(3),
    vb varbit, tsv tsvector, tq tsquery, rg int4range, mr int4multirange, my span, o oid,
    rc regclass, lsn pg_lsn, am amount, w word, kw kindly, ja json[], jp jsonpath, ams amount[],
    ov oidvector, ac aclitem,
    gen int GENERATED ALWAYS AS (small * 2) STORED
);
INSERT INTO kinds
SELECT n, n * 1000000000::bigint, n / 3.0, n, 'NaN',
       (ARRAY['infinity', '-infinity', 'NaN']::float8[])[1 + n % 3], (n || '.50')::money,
       E'tab\\t\\x01 %s :x %(a)s {} ' || n, 'v' || n, 'c', 'n' || n, 'a',
       n % 2 = 0, 'infinity', '12:00', '12:00+02', '-infinity', 'infinity', '1 year', '{"a": 1}',
       '{"b": 2}', NULL, '\\xdeadbeef', gen_random_uuid(), 'ok', (n, 'x'::text)::pair, ARRAY[n, 2],
       ARRAY['a', NULL], ARRAY[point(1, 2)], '10.0.0.1', '10.0.0.0/8', '08:00:2b:01:02:03',
       point(1, 2), box(point(0, 0), point(1, 1)), polygon(box(point(0, 0), point(1, 1))), B'101',
       B'1', 'a b', 'a', '[1,5)', '{[1,2)}', '[1,2)', 1, 'pg_class', '0/1', n, 'word', 'w',
       ARRAY['{}'::json], '$.a', ARRAY[1::amount], '1 2'::oidvector, 'postgres=r/postgres'
  FROM generate_series(1, 50) n;
INSERT INTO kinds DEFAULT VALUES;
ALTER TABLE kinds ADD "Id" int GENERATED ALWAYS AS IDENTITY PRIMARY KEY
"""


@pytest.fixture
def kinds(database: Database) -> Database:
    """A table ``kinds`` with a column of every type, 50 rows and one of NULLs."""
    query(database, EVERY_TYPE)
    return database


def test_every_type_is_profiled(kinds: Database) -> None:
    profiled = profile(kinds, "kinds")

    assert profiled.is_exact
    assert {c.name: c.nulls for c in profiled.columns if c.nulls != 1} == {"Id": 0, "x": 51}
    assert pairs(profiled["j"].top) == [('{"a": 1}', 50)]
    assert pairs(profiled["pa"].top) == []
    assert profiled["pa"].distinct == 50
    assert pairs(profiled["d"].top) == [("-Infinity", 17), ("NaN", 17), ("Infinity", 16)]
    assert profiled["d"].maximum == profiled["r"].quantiles[2] == "NaN"
    assert (profiled["tsz"].minimum, profiled["ts"].minimum) == ("infinity", "-infinity")
    assert (profiled["mo"].minimum, profiled["ip"].maximum) == ("ok", "10.0.0.1/32")
    assert (profiled["price"].minimum, profiled["gen"].maximum) == ("1.00", "100")
    assert profiled["w"].length_limit is None
    assert profiled["t"].minimum == "tab\t\x01 %s :x %(a)s {} 1"
    assert r"'tab\t\x01 %s :x %(a)s {} 1'" in repr(profiled)


def test_every_type_is_estimated(kinds: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "COUNTED_VALUES", -1)
    exact = profile(kinds, "kinds")

    profiled = profile(kinds, "kinds", exact_up_to_rows=0)

    assert [(c.name, c.nulls, c.minimum, c.maximum, c.quantiles) for c in profiled.columns] == [
        (c.name, c.nulls, c.minimum, c.maximum, c.quantiles) for c in exact.columns
    ]
    assert {c.sample_rows for c in profiled.columns} == {51}


@pytest.mark.parametrize("exact_up_to_rows", [0, 100_000])
@pytest.mark.parametrize(
    ("statement", "rows", "columns"),
    [
        ("CREATE TABLE t (id int, v text, j json, at timestamp)", 0, 4),
        ("CREATE TABLE t ()", 0, 0),
        ("CREATE TABLE t (); INSERT INTO t DEFAULT VALUES", 1, 0),
        ("CREATE TABLE t (v varchar(9), j json); INSERT INTO t VALUES (NULL, NULL)", 1, 2),
        ("CREATE VIEW t AS SELECT 1 AS id, 'a' AS v", 1, 2),
        ("CREATE MATERIALIZED VIEW t AS SELECT 1 AS id, 'a' AS v", 1, 2),
        (
            "CREATE TABLE t (id int, v text) PARTITION BY LIST (id);"
            " CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1); INSERT INTO t VALUES (1, 'a')",
            1,
            2,
        ),
        ("CREATE TABLE t (a int, b int); ALTER TABLE t DROP a; INSERT INTO t VALUES (1)", 1, 1),
    ],
)
def test_every_kind_of_table_is_profiled(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
    rows: int,
    columns: int,
    exact_up_to_rows: int,
) -> None:
    monkeypatch.setattr(MODULE, "COUNTED_VALUES", -1)
    query(database, statement)

    profiled = profile(database, "t", exact_up_to_rows=exact_up_to_rows)

    assert (profiled.rows, len(profiled.columns), len(profiled.frame)) == (rows, columns, columns)
    assert repr(profiled)


def test_bytes_of_partitions_count(database: Database) -> None:
    query(
        database,
        "CREATE TABLE t (id int) PARTITION BY LIST (id);"
        " CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1); INSERT INTO t VALUES (1)",
    )

    assert profile(database, "t").total_bytes == 8_192


NAMES = ("Sel ect", "from", 'a"b', "value", "row_count", "counted", "child", "parent", "whole")
NAMES += ("c0", "measured", "per%cent", ":x", "{0}", "grouped", "frequent", "total", "first")


@pytest.mark.parametrize("exact_up_to_rows", [0, 100_000])
def test_any_name_will_do(
    database: Database, monkeypatch: pytest.MonkeyPatch, exact_up_to_rows: int
) -> None:
    monkeypatch.setattr(MODULE, "COUNTED_VALUES", -1)
    names = ['"' + name.replace('"', '""') + '"' for name in NAMES]
    values = ", ".join(f"n % {7 + place} || 'x' AS {name}" for place, name in enumerate(names))
    query(
        database,
        'CREATE SCHEMA "My Schema"; CREATE TABLE "My Schema"."%s.:{0}" AS'
        f" SELECT {values} FROM generate_series(1, 100) n",
    )

    profiled = profile(
        database,
        '"My Schema"."%s.:{0}"',
        exact_up_to_rows=exact_up_to_rows,
        references={'a"b': '"My Schema"."%s.:{0}"."a""b"'},
    )

    assert tuple(column.name for column in profiled.columns) == NAMES
    single_digits = [
        sum(n % (7 + place) < 10 for n in range(1, 101)) for place in range(len(NAMES))
    ]
    assert [column.masks[0].rows for column in profiled.columns] == [
        max(rows, 100 - rows) for rows in single_digits
    ]
    assert [link.orphan_rows for link in profiled.references] == [0]


# ---------------------------------------------------------------- what is refused


def test_unknown_names_are_told_with_what_there_is(samples: Database) -> None:
    with pytest.raises(UnknownTableError, match=r"did you mean 'players\.player'"):
        profile(samples, "players.playr")
    with pytest.raises(UnknownColumnError, match="no column 'tail'; use one of"):
        profile(samples, "flights.flights", references={"tail": "flights.planes.tailnum"})
    with pytest.raises(UnknownColumnError, match="no column 'tail'; use one of"):
        profile(samples, "flights.flights", references={"tailnum": "flights.planes.tail"})
    with pytest.raises(UnknownTableError, match=r"no table 'flights\.plane'"):
        profile(samples, "flights.flights", references={"tailnum": "flights.plane.tailnum"})
    with pytest.raises(MigrationError, match=r"write 'schema\.table\.column'"):
        profile(samples, "flights.flights", references={"tailnum": "planes"})
    with pytest.raises(UnknownColumnError, match="no column 'nobody'"):
        profile(samples, "guide.user")["nobody"]


@contextmanager
def role(database: Database, grants: str) -> Generator[Database]:
    """The database as seen by a role of its own; ``{role}`` stands for it in the grants."""
    name = f"reader_{next(_numbers)}"
    query(database, f"CREATE ROLE {name} LOGIN; {grants.format(role=name)}")
    try:
        yield Database(url=database.url.set(username=name), version=database.version)
    finally:
        query(database, f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_column_without_permission_is_named(database: Database) -> None:
    query(database, 'CREATE TABLE t (id int, "Pay" int, note text)')

    with (
        role(database, "GRANT SELECT (id) ON t TO {role}") as reader,
        pytest.raises(
            PermissionDeniedError,
            match=r'may not read "Pay", note; ask for GRANT SELECT \("Pay", note\) ON t',
        ),
    ):
        profile(reader, "t")


def test_parent_without_permission_is_not_suggested(database: Database) -> None:
    query(
        database,
        "CREATE TABLE kind (id int PRIMARY KEY); CREATE TABLE t AS SELECT 1 AS kind_id;"
        " INSERT INTO kind VALUES (1)",
    )

    with role(database, "GRANT SELECT ON t TO {role}") as reader:
        assert profile(reader, "t").references == ()
    assert len(profile(database, "t").references) == 1


def test_rows_that_row_security_hides_are_an_alert(database: Database) -> None:
    query(
        database,
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2);"
        " ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY odd ON t USING (id = 1)",
    )

    with role(database, "GRANT SELECT ON t TO {role}") as reader:
        hidden = profile(reader, "t")

    assert (hidden.rows, profile(database, "t").rows) == (1, 2)
    assert "row security hides rows" in hidden.alerts[0].finding
    assert profile(database, "t").alerts == ()


def test_profile_cannot_write_even_through_a_view(database: Database) -> None:
    query(
        database,
        "CREATE TABLE log (n int);"
        " CREATE FUNCTION noted() RETURNS int LANGUAGE sql AS"
        " 'INSERT INTO log VALUES (1) RETURNING n';"
        " CREATE VIEW v AS SELECT noted() AS n",
    )

    with pytest.raises(QueryError, match="reports only read"):
        profile(database, "v")

    assert query(database, "SELECT count(*) FROM log") == [0]


def test_statement_that_takes_too_long_is_stopped(database: Database) -> None:
    query(database, "CREATE VIEW v AS SELECT pg_sleep(60)::text AS v")

    with pytest.raises(QueryError, match="give it longer with timeout_seconds"):
        profile(database, "v", timeout_seconds=0.1)


# ---------------------------------------------------------------- what is shown


def test_frame_has_one_row_a_column(samples: Database) -> None:
    frame = profile(samples, "guide.category").frame

    assert list(frame["name"]) == ["id", "name", "parent_id", "description"]
    assert list(frame["nulls"]) == [0, 3, 20, 0]
    assert frame.loc[1, "top"] == (
        ValueCount(value="Garden", rows=2),
        ValueCount(value="Office", rows=2),
    )


def test_profile_reads_well_as_text(samples: Database) -> None:
    assert repr(profile(samples, "guide.category")) == CATEGORY


CATEGORY = """\
TableProfile of guide.category: 200 rows, 4 columns, every figure exact; 5 warnings, 2 notes
  warning  name: unique but for 2 rows; decide which to keep before a unique key
  warning  name: 1 row blank; decide whether blank means NULL
  warning  name: 2 rows with white space before or behind; trim them; btrim(text) takes spaces only, no tabs
  warning  name: 2 rows spelled otherwise than most, by case or space only, in 2 groups; map them to one spelling
  warning  name: 1 row within a tenth of the 100 characters that fit; see whether values were cut
  note     name: 3 rows NULL, all others filled; fill them before NOT NULL
  note     name: 15 rows in shapes of under 1 % each (most are 'Aa+ Aa+'); see that the transform fits them
id  integer
    200 distinct
    from 1 to 200
    5/25/50/75/95 %: 10, 50, 100, 150, 190
name  character varying(100)
    195 distinct, 3 NULL, 1 blank, 2 padded, 4 not ASCII
    from '' to 'Łódź'
    0 to 100 characters, 12.6 on average
    top: 'Garden' 2, 'Office' 2
    masks: 'Aa+ Aa+' 173, 'Aa+' 8, ' Aa+' 1, '9+% a+' 1, '???' 1, … 17 in all
    spellings: 'Foo Bar' 1, 'foo bar' 1; ' Sports' 1, 'Sports ' 1
parent_id  integer
    100 distinct, 20 NULL
    from 1 to 100
    5/25/50/75/95 %: 3, 12, 30, 58, 91
    top: 1 4, 2 4, 3 4, 4 4, 5 4
description  text
    200 distinct
    from 'category number 1' to 'category number 99'
    17 to 19 characters, 18.5 on average
    masks: 'a+ a+ 9+' 191, 'a+ a+ 9' 9
candidate key: id (a unique index says so)
candidate key: description (no unique index yet)"""  # noqa: E501


# ---------------------------------------------------------------- the SQL

TABLE = TableName("guide", "user")
STATUS = Measured(name="status", kind="text", collatable=True, scaleless=False, length=20)
AMOUNT = Measured(name="Amount", kind="number", collatable=False, scaleless=True, length=None)
DATA = Measured(name="data", kind="opaque", collatable=False, scaleless=False, length=None)


def test_pairs_are_counted_without_distinct() -> None:
    assert profile_sql.count_pairs(TABLE, STATUS, AMOUNT) == (
        'SELECT count(*) FROM (SELECT count(*) FROM guide."user"'
        ' GROUP BY status COLLATE "C", trim_scale("Amount")) AS pairs'
    )


def test_sample_is_a_share_of_the_rows() -> None:
    assert (
        profile_sql.sample(TABLE, 1.5, view=False)
        == 'guide."user" TABLESAMPLE BERNOULLI (1.5) REPEATABLE (0)'
    )


def test_part_is_chosen_by_the_hash_of_the_value() -> None:
    assert (
        profile_sql.part(TABLE, DATA, 64, alike=False)
        == 'guide."user" WHERE hashtextextended(CAST(data AS text) COLLATE "C", 0) & 63 = 0'
    )


def test_spellings_that_differ_by_case_or_space_are_in_one_part() -> None:
    assert profile_sql.part(TABLE, STATUS, 64, alike=True) == (
        'guide."user" WHERE hashtextextended('
        "lower(replace(status COLLATE \"C\", ' ', '') COLLATE \"default\"), 0) & 63 = 0"
    )


def test_values_are_counted_by_group() -> None:
    assert profile_sql.counted(AMOUNT, TABLE.sql) == (
        "counted AS MATERIALIZED (\n"
        '    SELECT trim_scale("Amount") AS value, count(*) AS row_count'
        ' FROM guide."user" GROUP BY 1\n)'
    )

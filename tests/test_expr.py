"""Expressions for what people get wrong do what Python does, over whatever Hypothesis thinks of."""

from __future__ import annotations

import datetime
import json
import re
import unicodedata
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datamig_nb as dm
from datamig_nb import expr
from datamig_nb.database import Database
from tests.scratch import session

# A query evaluates a whole list: a few examples hold hundreds of values.
EXAMPLES = settings(max_examples=10, deadline=None)

SPACES = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
NAMES = "O'Brien Jr. José ßÆœ-'\"/\\:%&{}"

#: Text that PostgreSQL holds, rich in spaces and in letters with accents.
text = st.text(
    st.sampled_from(SPACES + NAMES)
    | st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cn", "Cs"]),
    max_size=30,
)
texts = st.lists(st.none() | text, max_size=60)


@pytest.fixture(scope="module")
def connection(samples: Database) -> Iterator[psycopg.Connection[Any]]:
    with session(samples) as opened:
        yield opened


def evaluated(
    connection: psycopg.Connection[Any], expression: str, values: Sequence[Any], type: str = "text"
) -> list[Any]:
    """What the expression gives over rows whose only column is ``x``."""
    rows = connection.execute(
        f"SELECT {expression} FROM unnest(%(values)s::{type}[]) WITH ORDINALITY AS row (x, place)"
        " ORDER BY place",
        {"values": list(values)},
    )
    return [row[0] for row in rows]


def null_stays(function: Callable[[str], Any]) -> Callable[[str | None], Any]:
    return lambda value: None if value is None else function(value)


def slug(value: str) -> str | None:
    for letter, letters in zip(
        "ßẞæÆœŒþÞøØłŁđĐðÐıħĦ", "ss ss ae ae oe oe th th o o l l d d d d i h h".split(), strict=True
    ):
        value = value.replace(letter, letters)
    ascii_only = "".join(
        c for c in unicodedata.normalize("NFKD", value) if not "\u0300" <= c <= "\u036f"
    )
    words = re.findall("[a-z0-9]+", re.sub("[A-Z]", lambda c: c[0].lower(), ascii_only))
    return "-".join(words) or None


def name_parts(value: str) -> tuple[str | None, str | None]:
    words = value.split()
    if not words:
        return None, None
    count = 1
    while count < len(words):
        initial = len(words[count]) == 2 and words[count][0].isalpha() and words[count][1] == "."
        if not initial:
            break
        count += 1
    return " ".join(words[:count]), " ".join(words[count:]) or None


@pytest.mark.parametrize(
    ("expression", "twin"),
    [
        (expr.trim("x"), str.strip),
        (expr.squeeze("x"), lambda value: " ".join(value.split())),
        (expr.blank_to_null("x"), lambda value: value.strip() or None),
        (expr.slug("x"), slug),
    ],
    ids=["trim", "squeeze", "blank_to_null", "slug"],
)
@EXAMPLES
@given(values=texts)
def test_text_becomes_what_python_makes_of_it(
    connection: psycopg.Connection[Any],
    expression: str,
    twin: Callable[[str], Any],
    values: list[str | None],
) -> None:
    assert evaluated(connection, expression, values) == list(map(null_stays(twin), values))


word = st.sampled_from(["Ann", "Lee", "H.", "É.", "J.", "van", "Jr.", "x"])


@EXAMPLES
@given(
    names=st.lists(
        st.lists(word | st.sampled_from([" ", "\t", "\u00a0"]), max_size=6).map(" ".join),
        max_size=60,
    )
)
def test_names_are_split_as_the_rules_say(
    connection: psycopg.Connection[Any], names: list[str]
) -> None:
    first, last = expr.name_parts("x")

    found = evaluated(connection, f"ARRAY[{first}, {last}]", names)

    assert found == [list(name_parts(name)) for name in names]


def whole(low: int, high: int) -> Callable[[str], int | None]:
    return lambda value: (
        int(value) if re.fullmatch("[-+]?[0-9]+", value) and low <= int(value) <= high else None
    )


def boolean(value: str) -> bool | None:
    if value in ("t", "T", "y", "Y", "1", "true", "yes", "on", "TRUE"):
        return True
    return False if value in ("f", "F", "n", "N", "0", "false", "no", "off", "FALSE") else None


def date(value: str) -> datetime.date | None:
    try:
        return datetime.datetime.strptime(value, "%Y-%m-%d").date() if len(value) == 10 else None
    except ValueError:
        return None


def identifier(value: str) -> uuid.UUID | None:
    return (
        uuid.UUID(value)
        if re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value)
        else None
    )


digits = st.integers(-(2**66), 2**66).map(str) | st.integers(-40_000, 40_000).map(str)
days = st.builds(
    "{:04}-{:02}-{:02}".format, st.integers(0, 2100), st.integers(0, 13), st.integers(0, 32)
)
TYPES: dict[str, tuple[st.SearchStrategy[str], Callable[[str], Any]]] = {
    "smallint": (digits, whole(-(2**15), 2**15 - 1)),
    "integer": (digits, whole(-(2**31), 2**31 - 1)),
    "bigint": (digits, whole(-(2**63), 2**63 - 1)),
    "boolean": (st.sampled_from("t f yes no 1 0 2 true TRUE vrai".split()), boolean),
    "date": (days, date),
    "uuid": (st.uuids().map(str) | st.uuids().map(lambda u: str(u)[:-1]), identifier),
}


@pytest.mark.parametrize("server", [14, 16])
@pytest.mark.parametrize("type", TYPES)
@EXAMPLES
@given(data=st.data())
def test_what_is_no_value_of_the_type_gives_the_other_one_and_no_error(
    connection: psycopg.Connection[Any], type: str, server: int, data: st.DataObject
) -> None:
    strategy, twin = TYPES[type]
    garbage = st.sampled_from(["", "-", "abc", "12a", "2024-1-1x", "None", "{}", "1e999999"])
    values = data.draw(st.lists(st.none() | strategy | garbage, max_size=60))

    found = evaluated(connection, expr.try_cast("x", type, server=server), values)

    assert found == list(map(null_stays(twin), values))


@pytest.mark.parametrize("server", [14, 16])
def test_what_stands_for_no_value_does_not_stand_for_null(
    connection: psycopg.Connection[Any], server: int
) -> None:
    cast = expr.try_cast("x", "integer", otherwise="-1", server=server)

    assert evaluated(connection, cast, ["7", "seven", None]) == [7, -1, None]


def test_a_type_that_an_old_server_cannot_be_asked_about_is_refused() -> None:
    with pytest.raises(dm.DatamigError, match="before PostgreSQL 16 nothing tells whether"):
        expr.try_cast("x", "inet", server=15)


# ---------------------------------------------------------------- time

ZONES = ["Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "UTC"]
moments = st.datetimes(datetime.datetime(1990, 1, 1), datetime.datetime(2030, 1, 1)).map(
    lambda moment: moment.replace(microsecond=0)
)


@settings(EXAMPLES, max_examples=3)  # each reads the names of all zones several times
@given(rows=st.lists(st.tuples(moments, st.sampled_from([*ZONES, "Nowhere/Land"])), max_size=300))
def test_local_times_become_instants_whatever_the_session_s_time_zone(
    connection: psycopg.Connection[Any], rows: list[tuple[datetime.datetime, str]]
) -> None:
    connection.execute("SET TimeZone = 'America/New_York'")
    local, zone = "split_part(x, '|', 1)::timestamp", "split_part(x, '|', 2)"
    values = [f"{moment.isoformat()}|{name}" for moment, name in rows]

    found = evaluated(connection, expr.local_time(local, zone), values)
    odd = evaluated(connection, expr.is_skipped_or_repeated(local, zone), values)

    for (moment, name), instant, is_odd in zip(rows, found, odd, strict=True):
        place = ZoneInfo(name if name in ZONES else "UTC")
        early, late = (moment.replace(tzinfo=place, fold=fold) for fold in (0, 1))
        assert is_odd == (early.utcoffset() != late.utcoffset())
        assert is_odd or instant == late


def test_the_hours_that_a_clock_skips_or_repeats_are_found(
    connection: psycopg.Connection[Any],
) -> None:
    local = ["2024-03-31 02:30", "2024-10-27 02:30", "2024-10-27 03:30", "2024-06-01 02:30"]

    found = evaluated(
        connection, expr.is_skipped_or_repeated("x", "'Europe/Berlin'"), local, "timestamp"
    )

    assert found == [True, True, False, False]


# ---------------------------------------------------------------- JSON

keys = st.sampled_from(["a", "b", "c", "d\"'{}"])
documents = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | text.filter(lambda t: "\0" not in t),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
paths = st.lists(keys, min_size=1, max_size=2).map(tuple)
MISSING = object()


def at(document: Any, path: Sequence[str]) -> Any:
    """What is at the path, through objects only."""
    for key in path:
        if not isinstance(document, dict) or key not in document:
            return MISSING
        document = document[key]
    return document


def put(document: Any, path: Sequence[str], value: Any) -> Any:
    """A copy with the value at the path; as it is where no object can hold it."""
    copy = json.loads(json.dumps(document))
    parent = at(copy, path[:-1])
    if isinstance(parent, dict):
        parent.pop(path[-1], None)
        if value is not MISSING:
            parent[path[-1]] = value
    return copy


def moved(document: Any, path: Sequence[str], to: Sequence[str]) -> Any:
    value, rest = at(document, path), put(document, path, MISSING)
    if (
        value is MISSING
        or at(document, to) is not MISSING
        or not isinstance(at(rest, to[:-1]), dict)
    ):
        return document
    return put(rest, to, value)


def doubled(document: Any, path: Sequence[str]) -> Any:
    found = at(document, path) if path else document
    if not isinstance(found, list):
        return document
    new = [{"old": element} for element in found]
    return put(document, path, new) if path else new


def worded(document: Any, path: Sequence[str], change: Callable[[str], str]) -> Any:
    found = at(document, path)
    return put(document, path, change(found)) if isinstance(found, str) else document


def of_documents(
    connection: psycopg.Connection[Any], expression: str, values: Sequence[Any]
) -> list[Any]:
    """What the expression gives over documents; the last row is SQL NULL."""
    return evaluated(connection, expression, [*map(json.dumps, values), None], "jsonb")


@EXAMPLES
@given(values=st.lists(documents, max_size=40), path=paths, to=paths)
def test_documents_are_changed_at_a_path_and_nowhere_else(
    connection: psycopg.Connection[Any],
    values: list[Any],
    path: tuple[str, ...],
    to: tuple[str, ...],
) -> None:
    is_set = of_documents(connection, expr.json_set("x", path, "to_jsonb(1)"), values)
    is_null = of_documents(connection, expr.json_set("x", path, "NULL"), values)
    removed = of_documents(connection, expr.json_remove("x", path), values)
    mapped = of_documents(
        connection, expr.json_elements("x", path, "jsonb_build_object('old', element)"), values
    )

    assert is_set == [*(put(value, path, 1) for value in values), None]
    assert is_null == [*(put(value, path, None) for value in values), None]
    assert removed == [*(put(value, path, MISSING) for value in values), None]
    assert mapped == [*(doubled(value, path) for value in values), None]
    changes = {path: "left(value || 'é', 2)", to: "'x' || value"}
    told = values
    for place, change in {path: lambda s: (s + "é")[:2], to: lambda s: "x" + s}.items():
        told = [worded(value, place, change) for value in told]
    words = of_documents(connection, expr.json_change("x", "string", changes), values)
    assert words == [*told, None]
    if path != to[: len(path)]:
        renamed = of_documents(connection, expr.json_move("x", path, to), values)
        assert renamed == [*(moved(value, path, to) for value in values), None]


@EXAMPLES
@given(values=st.lists(documents, max_size=40))
def test_a_document_that_is_an_array_keeps_the_order_of_its_elements(
    connection: psycopg.Connection[Any], values: list[Any]
) -> None:
    expression = expr.json_elements("x", (), "jsonb_build_object('old', element)")

    assert of_documents(connection, expression, values) == [*(doubled(v, ()) for v in values), None]


def test_many_changes_of_a_document_are_computed_once_each(
    connection: psycopg.Connection[Any],
) -> None:
    """PostgreSQL puts a subquery into each place that reads it: four for each change, of each."""
    changes: dict[str | tuple[str, ...], str] = {str(number): "value" for number in range(5)}

    one, five = (
        connection.execute(f"EXPLAIN SELECT {text} FROM (VALUES (jsonb '{{}}')) AS t (x)".encode())
        for text in (
            expr.json_change("x", "number", {"a": "value"}),
            expr.json_change("x", "number", changes),
        )
    )

    assert len(five.fetchall()) <= 5 * len(one.fetchall())


def test_codes_change_places_in_a_text_and_in_an_array(
    connection: psycopg.Connection[Any],
) -> None:
    recoded = expr.recode("x", {"a": "b", "b": "a", "it's": "c"})
    in_array = expr.array_elements("x", expr.recode("element", {"a": "b", "b": "a"}))

    assert evaluated(connection, recoded, ["a", "b", "it's", "A", None]) == [
        "b",
        "a",
        "c",
        "A",
        None,
    ]
    arrays = [["b", None, "a", "c"], [], None]
    given = f"SELECT {in_array} FROM unnest(ARRAY[1, 2, 3]) AS n, LATERAL (SELECT CASE n"
    given += " WHEN 1 THEN '{a,NULL,b,c}'::text[] WHEN 2 THEN '{}' END AS x) AS row ORDER BY n"
    assert [row[0] for row in connection.execute(given.encode())] == arrays


def test_a_key_cannot_move_into_itself() -> None:
    with pytest.raises(dm.DatamigError, match="a cannot move into itself"):
        expr.json_move("x", "a", ("a", "b"))

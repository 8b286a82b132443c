"""Migrations by name: the steps they choose, and what their expressions make of real text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from datamig_nb.checks import RowCheck
from datamig_nb.database import Database, run
from datamig_nb.errors import MigrationError
from datamig_nb.migration import Migration
from datamig_nb.names import literal
from datamig_nb.patterns import map_values, split_column

few = settings(max_examples=50, derandomize=True, deadline=None, database=None)

STATES: Mapping[str | None, str | None] = {
    "enabled": "active",
    "Enabled": "active",
    "suspended": "suspended",
    "": None,
    None: "suspended",
}


@pytest.fixture(scope="module")
def connection(samples: Database) -> Iterator[sa.Connection]:
    """One session for all the questions of this module."""
    with samples.read_only("asking") as connection:
        yield connection


def texts(max_size: int | None = None) -> st.SearchStrategy[str]:
    """Any text that PostgreSQL can store."""
    return st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=max_size)


def evaluated(
    connection: sa.Connection,
    migration: Migration,
    column: str,
    value: str | None,
    collation: str = "default",
) -> tuple[Any, ...]:
    """What the migration's expressions make of one value."""
    (step,) = migration.backfills
    typed = f'{literal(value)}::text COLLATE "{collation}"'
    rows = f"(VALUES ({typed})) AS {step.table.name} ({column})"
    return tuple(run(connection, f"SELECT {', '.join(step.assign.values())} FROM {rows}").one())


def failing(
    connection: sa.Connection, migration: Migration, row: Mapping[str, str | None]
) -> list[str]:
    """Names of the checks that a row does not pass, those before the first write left out."""
    values = ", ".join(f"{literal(value)}::text" for value in row.values())
    return [
        check.name
        for check in migration.checks
        if isinstance(check, RowCheck)
        and not check.before
        and run(
            connection,
            f"SELECT 1 FROM (VALUES ({values})) AS {check.table.name} ({', '.join(row)})"
            f" WHERE {check.failing}",
        ).first()
    ]


# ---------------------------------------------------------------- map_values


def test_map_prints_its_steps() -> None:
    migration = map_values("guide.user", "status", STATES, into="state", nullable=True)

    assert repr(migration) == (
        "Migration: map status of guide.user to state\n"
        "  1. check first: every status of guide.user has a new value\n"
        "  2. add the column state VARCHAR to guide.user\n"
        "  3. keep state of guide.user in step with a trigger\n"
        "  4. fill state of guide.user, every row, in batches\n"
        "  5. check that: state of guide.user is what the map says\n"
        "  6. check that: state of guide.user holds only 'active', 'suspended'\n"
        "  7. add the CHECK user_state_check to guide.user: state IN ('active', 'suspended')"
    )


def test_map_to_an_enum_prints_its_steps() -> None:
    migration = map_values(
        "guide.user",
        "status",
        {"on": "active", None: "off"},
        into="state",
        type="enum",
        nullable=False,
    )

    assert repr(migration) == (
        "Migration: map status of guide.user to state\n"
        "  1. check first: every status of guide.user has a new value\n"
        "  2. create the enum type guide.user_state ('active', 'off')\n"
        "  3. add the column state guide.user_state to guide.user\n"
        "  4. keep state of guide.user in step with a trigger\n"
        "  5. fill state of guide.user, every row, in batches\n"
        "  6. check that: state of guide.user is what the map says\n"
        "  7. check that: state of guide.user holds only 'active', 'off'\n"
        "  8. check that: state of guide.user without NULL\n"
        "  9. make state of guide.user NOT NULL, without a long lock"
    )


def test_map_that_keeps_other_values_prints_its_steps() -> None:
    migration = map_values("t", "maker", {"a": "b"}, into="brand", unmapped="keep")

    assert repr(migration) == (
        "Migration: map maker of t to brand\n"
        "  1. add the column brand VARCHAR to t\n"
        "  2. keep brand of t in step with a trigger\n"
        "  3. fill brand of t, every row, in batches\n"
        "  4. check that: brand of t is what the map says"
    )


def test_map_is_one_case_with_a_line_for_each_new_value() -> None:
    long = {f"{letter} & Sons, Manufacturers": "Sons" for letter in "ABCD"}

    (kept,) = map_values("t", "m", {**STATES, **long}, into="n", unmapped="keep").backfills

    assert kept.assign["n"] == (
        "CASE\n"
        "    WHEN m IN ('enabled', 'Enabled') THEN 'active'\n"
        "    WHEN m IS NULL OR m = 'suspended' THEN 'suspended'\n"
        "    WHEN m = '' THEN NULL\n"
        "    WHEN m IN (\n"
        "        'A & Sons, Manufacturers', 'B & Sons, Manufacturers', 'C & Sons, Manufacturers',\n"
        "        'D & Sons, Manufacturers'\n"
        "    ) THEN 'Sons'\n"
        "    ELSE m\n"
        "END"
    )


@pytest.mark.parametrize(
    ("values", "failing"),
    [
        ({"a": "b"}, "status NOT IN ('a') OR status IS NULL"),
        ({"a": "b", None: None}, "status NOT IN ('a')"),
        ({None: "b"}, "status IS NOT NULL"),
    ],
)
def test_value_without_a_new_one_stops_the_map_before_its_first_write(
    values: Mapping[str | None, str | None], failing: str
) -> None:
    first = map_values("guide.user", "status", values, into="state").checks[0]

    assert isinstance(first, RowCheck)
    assert (first.failing, first.before) == (failing, True)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"values": {}}, "there is nothing to map; give {old value: new value}"),
        ({"values": {"a": None}}, "there is nothing to map; give {old value: new value}"),
        (
            {"type": "text"},
            "type='text' or unmapped='fail' is not known; type is 'varchar' or 'enum', unmapped is"
            " 'fail' or 'keep'",
        ),
        (
            {"unmapped": "drop"},
            "type='varchar' or unmapped='drop' is not known; type is 'varchar' or 'enum', unmapped"
            " is 'fail' or 'keep'",
        ),
        (
            {"type": "enum", "unmapped": "keep"},
            "an enum cannot keep values that are not its labels; map them, or use type='varchar'",
        ),
        (
            {"values": {"a": "b", "c": None}, "nullable": False},
            "a value is mapped to NULL, but the column shall be NOT NULL; map it to something, or"
            " leave nullable=True",
        ),
        (
            {"type": "enum", "values": {"a": "b" * 64}},
            f"the label {'b' * 64!r} of enum 'guide.user_state' has more than 63 bytes; shorten it",
        ),
    ],
)
def test_map_that_contradicts_itself_is_refused(wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(MigrationError) as caught:
        map_values("guide.user", "status", **{"values": {"a": "b"}, "into": "state", **wishes})

    assert str(caught.value) == message


maps = st.dictionaries(
    st.none() | texts(8) | st.sampled_from(["a", "a ", "A", "", "%", ":y", "it's"]),
    st.none() | texts(8) | st.sampled_from(["a", "x", ""]),
    min_size=1,
    max_size=8,
).filter(
    # a map to nothing, and the mark of rendered statements, are refused
    lambda values: (
        any(value is not None for value in values.values()) and "{batch}" not in str(values)
    )
)


@few
@given(values=maps, other=st.none() | texts(8), keep=st.booleans())
def test_map_gives_for_every_value_what_the_dictionary_gives(
    connection: sa.Connection,
    values: Mapping[str | None, str | None],
    other: str | None,
    keep: bool,
) -> None:
    migration = map_values("t", "old", values, into="new", unmapped="keep" if keep else "fail")

    for value in [*values, other]:
        expected = values.get(value, value if keep else None)
        assert evaluated(connection, migration, "old", value) == (expected,)
        if keep or value in values:
            assert failing(connection, migration, {"old": value, "new": expected}) == []


@few
@given(values=maps, keep=st.booleans(), wrong=st.none() | texts(8))
def test_map_check_finds_every_value_that_is_not_what_the_dictionary_gives(
    connection: sa.Connection,
    values: Mapping[str | None, str | None],
    keep: bool,
    wrong: str | None,
) -> None:
    migration = map_values("t", "old", values, into="new", unmapped="keep" if keep else "fail")

    for value, expected in values.items():
        found = failing(connection, migration, {"old": value, "new": wrong})
        assert ("new of t is what the map says" in found) == (wrong != expected)


@pytest.mark.parametrize("column", ["old_value", "new_value", "value_map"])
def test_map_check_reads_the_column_however_it_is_called(
    connection: sa.Connection, column: str
) -> None:
    migration = map_values("t", column, {"a": "b", "c": "d"}, into="brand")

    assert failing(connection, migration, {column: "a", "brand": "b"}) == []
    assert failing(connection, migration, {column: "a", "brand": "d"}) == [
        "brand of t is what the map says"
    ]


def test_empty_text_is_a_new_value_like_any_other(connection: sa.Connection) -> None:
    migration = map_values("t", "old", {"none": "", "a": "x"}, into="new")

    assert failing(connection, migration, {"old": "none", "new": ""}) == []
    assert repr(migration).endswith("add the CHECK t_new_check to t: new IN ('', 'x')")


# ---------------------------------------------------------------- split_column


def test_split_prints_its_steps() -> None:
    migration = split_column("players.player", "full_name", type=sa.String(50), nullable=False)

    assert repr(migration) == (
        "Migration: split full_name of players.player into first_name and last_name\n"
        "  1. add the column first_name VARCHAR(50) to players.player\n"
        "  2. add the column last_name VARCHAR(50) to players.player\n"
        "  3. keep first_name and last_name of players.player in step with a trigger\n"
        "  4. fill first_name and last_name of players.player, every row, in batches\n"
        "  5. check that: first_name and last_name hold every letter of full_name\n"
        "  6. check that: every name has a first_name\n"
        "  7. check that: first_name of players.player without NULL\n"
        "  8. make first_name of players.player NOT NULL, without a long lock"
    )


def test_split_into_text_that_may_be_null_has_no_more_steps_than_it_needs() -> None:
    migration = split_column("guide.user", "full_name", into=("given", "family"))

    assert repr(migration) == (
        "Migration: split full_name of guide.user into given and family\n"
        "  1. add the column given TEXT to guide.user\n"
        "  2. add the column family TEXT to guide.user\n"
        "  3. keep given and family of guide.user in step with a trigger\n"
        "  4. fill given and family of guide.user, every row, in batches\n"
        "  5. check that: given and family hold every letter of full_name\n"
        "  6. check that: every name has a given"
    )


def test_split_into_one_column_is_refused() -> None:
    with pytest.raises(MigrationError, match=r"^both parts would go into 'name'; give into= two"):
        split_column("players.player", "full_name", into=("name", "name"))


SPLIT = split_column("t", "full_name")


@pytest.mark.parametrize(
    ("full", "first", "last"),
    [
        ("Ann Lee", "Ann", "Lee"),
        ("Ann  Lee", "Ann", "Lee"),
        (" Ann Lee", "Ann", "Lee"),
        ("Ann Lee  ", "Ann", "Lee"),
        ("Ann\tLee", "Ann", "Lee"),
        ("\tAnn \t Lee\n", "Ann", "Lee"),
        ("Ann\u00a0Lee", "Ann", "Lee"),
        ("\u00a0Ann\u202f\u2007Lee\u00a0", "Ann", "Lee"),
        ("Nenê", "Nenê", None),
        (" Nenê ", "Nenê", None),
        ("Jeff Acuff Jr.", "Jeff", "Acuff Jr."),
        ("Otto Porter, Jr.", "Otto", "Porter, Jr."),
        ("Gary Payton III", "Gary", "Payton III"),
        ("Vincent van Gogh", "Vincent", "van Gogh"),
        ("George H. Stuart", "George H.", "Stuart"),
        ("J. R. R. Tolkien", "J. R. R.", "Tolkien"),
        ("J.R. Smith", "J.R.", "Smith"),
        ("George H.", "George H.", None),
        ("Ann É. Lee", "Ann É.", "Lee"),
        ("Ann B Lee", "Ann", "B Lee"),
        ("Ann St. John", "Ann", "St. John"),
        ("Ann B.Lee", "Ann", "B.Lee"),
        ("Paul 'The Bear' Smith", "Paul 'The Bear'", "Smith"),
        ("Paul T. 'The  Bear' Smith", "Paul T. 'The Bear'", "Smith"),
        ("Paul 'The Bear Smith", "Paul", "'The Bear Smith"),
        ("Paul 'The Bear's Smith", "Paul", "'The Bear's Smith"),
        ("Shaquille O'Neal", "Shaquille", "O'Neal"),
        ("D'Angelo O'Brien", "D'Angelo", "O'Brien"),
        ("100% Lee", "100%", "Lee"),
        ("Ann %s", "Ann", "%s"),
        ("Ann :y", "Ann", ":y"),
        (r"Ann \1 & \\", "Ann", r"\1 & \\"),
        ("Ann {batch}", "Ann", "{batch}"),
        ("Zoë Ørsted", "Zoë", "Ørsted"),
        ("Zoe\u0308 Lee", "Zoe\u0308", "Lee"),
        ("姚 明", "姚", "明"),
        (f"Ann {'Lee ' * 9_999}Lee", "Ann", f"{'Lee ' * 9_999}Lee"),
        (f"{'A' * 100_000} Lee", "A" * 100_000, "Lee"),
        (None, None, None),
        ("", None, None),
        ("   ", None, None),
        (" \t\n\u00a0", None, None),
    ],
)
def test_split_follows_its_rules(
    connection: sa.Connection, full: str | None, first: str | None, last: str | None
) -> None:
    assert evaluated(connection, SPLIT, "full_name", full) == (first, last)


@pytest.mark.parametrize("collation", ["default", "C", "pg_c_utf8"])
@pytest.mark.parametrize("space", ["\u00a0", "\u2007", "\u202f", "\t"])
def test_no_break_spaces_part_names_whatever_the_locale_knows(
    connection: sa.Connection, space: str, collation: str
) -> None:
    full = f"{space}Ann{space}{space}Lee{space}"

    assert evaluated(connection, SPLIT, "full_name", full, collation) == ("Ann", "Lee")


#: Names with what has a meaning in the rules, and any text at all.
words = st.sampled_from(["Ann", "Lee", "B.", "É.", "'The Bear'", "'", "O'Neal", "%", ":y", "\\1"])
spaces = st.sampled_from([" ", "  ", "\t", "\n", "\u00a0", "\u202f", "\u3000", "\x1c"])
full_names = texts() | st.lists(words | spaces).map("".join)


def without_spaces(*parts: str | None) -> str:
    return "".join("".join(part.split()) for part in parts if part is not None)


@few
@given(full=full_names)
def test_split_loses_nothing_but_spaces(connection: sa.Connection, full: str) -> None:
    first, last = evaluated(connection, SPLIT, "full_name", full)

    assert without_spaces(first, last) == without_spaces(full)
    row = {"full_name": full, "first_name": first, "last_name": last}
    assert failing(connection, SPLIT, row) == []


@few
@given(full=full_names)
def test_split_of_what_was_split_gives_the_same_parts(connection: sa.Connection, full: str) -> None:
    parts = evaluated(connection, SPLIT, "full_name", full)

    again = evaluated(connection, SPLIT, "full_name", " ".join(filter(None, parts)))

    assert again == parts


@few
@given(full=st.lists(words, min_size=1).map(" ".join), lost=st.integers(0, 100))
def test_split_check_finds_a_lost_letter(connection: sa.Connection, full: str, lost: int) -> None:
    first, last = evaluated(connection, SPLIT, "full_name", full)
    letters = [place for place, letter in enumerate(first) if letter != " "]
    gone = letters[lost % len(letters)]

    row = {"full_name": full, "first_name": first[:gone] + first[gone + 1 :], "last_name": last}
    found = failing(connection, SPLIT, row)

    assert found[0] == "first_name and last_name hold every letter of full_name"


def test_split_check_finds_a_name_without_its_first_part(connection: sa.Connection) -> None:
    row = {"full_name": "Ann", "first_name": None, "last_name": "Ann"}

    assert failing(connection, SPLIT, row) == ["every name has a first_name"]

"""A SQL expression is held against the Python function whose place it should take."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pytest

import datamig_nb as dm
from datamig_nb import expr
from datamig_nb.database import Database
from datamig_nb.errors import MigrationError
from datamig_nb.twin import TwinDifference
from tests.scratch import query

MAKE = r"""
CREATE TABLE word (id integer PRIMARY KEY, word text, loud text, size integer, at timestamptz,
                   price numeric(9, 2), tags text[], data jsonb);
INSERT INTO word (id, word, at, price, tags, data)
SELECT n, (ARRAY[' plain ', E'\u00a0no-break\t', 'ok', NULL])[1 + n % 4],
       timestamptz '2024-02-29 12:00+00' + n * interval '1 day', n * 0.25, ARRAY['a', NULL, 'b"'],
       jsonb_build_object('n', n * 0.1)
  FROM generate_series(1, 40) AS n
"""


def stripped(word: str | None) -> str | None:
    return None if word is None else word.strip()


def stripped_series(words: Any) -> Any:
    return words.str.strip()


def measured(word: str) -> tuple[str, int]:
    return word.upper(), len(word)


def untouched(value: Any) -> Any:
    return value


def a_day_later(at: datetime.datetime) -> datetime.datetime:
    return at + datetime.timedelta(days=1)


def halved(price: Decimal) -> Decimal:
    return price / 2


@pytest.fixture
def words(database: Database) -> Database:
    query(database, MAKE)
    return database


def test_trim_is_found_to_leave_what_strip_takes(words: Database) -> None:
    step = dm.transform(
        "word", stripped, reads=["word"], writes=["loud"], twin={"loud": "trim(word)"}
    )

    found = dm.preview(words, dm.Migration("strip", step))

    (twin,) = found.twins
    assert (twin.distinct, twin.differing, twin.differing_rows) == (4, 1, 10)
    assert twin.differences == (
        TwinDifference(
            reads=("\u00a0no-break\t",), python="no-break", sql="\u00a0no-break\t", rows=10
        ),
    )
    assert "differs for 1 of 4 distinct values, 10 rows" in repr(found)
    assert "differs for 1 of 4 distinct values, 10 rows" in str(found._repr_html_())


@pytest.mark.parametrize("function", [stripped, stripped_series])
def test_a_twin_that_does_the_same_agrees_for_all_values(words: Database, function: Any) -> None:
    series = function is stripped_series
    step = dm.transform(
        "word",
        function,
        reads=["word"],
        writes=["loud"],
        vectorized=series,
        requires=["pandas"] if series else [],
        twin={"loud": expr.trim("word")},
    )

    (twin,) = dm.preview(words, dm.Migration("strip", step)).twins

    assert twin.agrees
    assert twin.summary == "agrees for all 4 distinct values"


def test_each_of_several_columns_has_its_twin_and_an_error_of_python_is_a_difference(
    words: Database,
) -> None:
    step = dm.transform(
        "word",
        measured,
        reads=["word"],
        writes=["loud", "size"],
        twin={"size": "length(word)", "loud": "upper(word)"},
    )

    size, loud = dm.preview(words, dm.Migration("measure", step)).twins

    assert (size.column, size.differing, loud.column, loud.differing) == ("size", 1, "loud", 1)
    (difference,) = size.differences
    assert difference.reads == (None,)
    assert difference.sql is None
    assert str(difference.python).startswith("AttributeError: 'NoneType'")


@pytest.mark.parametrize(
    ("function", "column", "twin"),
    [
        (a_day_later, "at", "at + interval '1 day'"),
        (halved, "price", "price / 2"),
        (untouched, "tags", "tags"),
        (untouched, "data", "data"),
    ],
)
def test_values_of_any_type_are_compared_as_the_column_holds_them(
    words: Database, function: Any, column: str, twin: str
) -> None:
    query(words, "ALTER DATABASE " + str(words.url.database) + " SET DateStyle = 'SQL, DMY'")
    step = dm.transform("word", function, reads=[column], writes=[column], twin={column: twin})

    (found,) = dm.preview(words, dm.Migration("the same", step)).twins

    assert found.differences == ()
    assert found.distinct in (1, 40)


def test_a_twin_of_a_column_that_is_not_written_is_refused() -> None:
    with pytest.raises(MigrationError, match="writes no lood"):
        dm.transform("word", stripped, reads=["word"], writes=["loud"], twin={"lood": "word"})


def test_a_twin_is_no_part_of_the_revision(words: Database) -> None:
    plain = dm.transform("word", stripped, reads=["word"], writes=["loud"])
    with_twin = dm.transform(
        "word", stripped, reads=["word"], writes=["loud"], twin={"loud": "trim(word)"}
    )

    texts = [dm.render(words, dm.Migration("strip", step)).id for step in (plain, with_twin)]

    assert texts[0] == texts[1]

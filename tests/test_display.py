"""How values are shown: the registry of renderers, and text in which spaces can be seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamig_nb import display
from datamig_nb.display import Shown, lasting, renders, to_html, visible

few = settings(max_examples=100, derandomize=True, deadline=None, database=None)


@dataclass(frozen=True)
class Figure(Shown):
    rows: int


class Narrower(Figure):
    pass


@pytest.fixture
def figure_renderer() -> Iterator[None]:
    @renders(Figure)
    def _(figure: Figure) -> str:
        return f"<b>{figure.rows}</b>"

    yield
    del display._renderers[Figure]


@pytest.mark.usefixtures("figure_renderer")
def test_value_shows_itself_through_the_renderer_of_its_class() -> None:
    assert Figure(3)._repr_html_() == "<b>3</b>"


@pytest.mark.usefixtures("figure_renderer")
def test_class_without_a_renderer_of_its_own_has_no_html() -> None:
    assert Narrower(3)._repr_html_() is None
    assert to_html(3) is None


def test_value_without_html_is_left_to_its_repr() -> None:
    assert Figure(3)._repr_html_() is None
    assert repr(Figure(3)) == "Figure(rows=3)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "NULL"),
        ("", "''"),
        ("Ann Lee", "Ann Lee"),
        (" Ann", "·Ann"),
        ("Ann  ", "Ann··"),
        ("Ann  Lee", "Ann··Lee"),
        ("Ann \t Lee", "Ann ⇥ Lee"),
        ("Ann\u00a0Lee", "Ann⍽Lee"),
        ("Ann\u202fLee", "Ann⍽Lee"),
        ("Ann\r\nLee", "Ann␍↵Lee"),
        (" ", "·"),
        (12, "12"),
        (1.5, "1.5"),
        (False, "False"),
    ],
)
def test_every_space_can_be_seen(value: object, text: str) -> None:
    assert visible(value) == text


@few
@given(text=st.text(" ab\t\n\r\u00a0\u202f", min_size=1))
def test_visible_text_keeps_every_character_in_its_place(text: str) -> None:
    shown = visible(text)

    marks = {"·": " ", "⇥": "\t", "↵": "\n", "␍": "\r", "⍽": "\u00a0"}
    assert "".join(marks.get(c, c) for c in shown) == text.replace("\u202f", "\u00a0")
    assert shown == shown.strip()
    assert "  " not in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.9, "9.9 s"),
        (44.6, "44 s"),
        (60, "1 min"),
        (150, "2 min 30 s"),
        (7_230, "2 h"),
        (7_500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
        (8_640_000, "100 d"),
    ],
)
def test_a_time_is_told_in_two_units_at_most(seconds: float, text: str) -> None:
    assert lasting(seconds) == text

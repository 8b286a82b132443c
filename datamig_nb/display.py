"""The registry behind ``_repr_html_``: values know nothing of HTML, the renderer knows them.

A result class inherits :class:`Shown`; the module ``html`` registers one renderer for each such
class with :func:`renders`, as Alembic registers the renderer of an operation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

_Value = TypeVar("_Value")

_renderers: dict[type, Callable[[Any], str]] = {}


class Shown:
    """A value that Jupyter shows as HTML when a renderer for its class is registered."""

    def _repr_html_(self) -> str | None:
        return to_html(self)


def renders(
    cls: type[_Value],
) -> Callable[[Callable[[_Value], str]], Callable[[_Value], str]]:
    """Register the decorated function as the HTML renderer of ``cls``."""

    def register(renderer: Callable[[_Value], str]) -> Callable[[_Value], str]:
        _renderers[cls] = renderer
        return renderer

    return register


def to_html(value: object) -> str | None:
    """The HTML of a value, or None where its class has no renderer."""
    renderer = _renderers.get(type(value))
    return None if renderer is None else renderer(value)


def visible(value: object) -> str:
    """A value as text in which NULL, the empty string and every space can be seen.

    Plain spaces stay spaces inside, and are ``·`` at the ends and in runs; tabs are ``⇥``, line
    ends ``↵``, no-break spaces ``⍽``.
    """
    if value is None:
        return "NULL"
    text = str(value)
    if text == "":
        return "''"
    for odd, mark in {"\t": "⇥", "\n": "↵", "\r": "␍", "\u00a0": "⍽", "\u202f": "⍽"}.items():
        text = text.replace(odd, mark)
    return re.sub(r"^ +| +$| {2,}", lambda spaces: "·" * len(spaces[0]), text)


def counted(number: int, noun: str) -> str:
    """A number and its noun: ``1 row``, ``2,000 rows``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def lasting(seconds: float) -> str:
    """A time in words of two units at most: ``0.4 s``, ``44 s``, ``2 h 5 min``, ``3 d 1 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    place = next(number for number, (_, length) in enumerate(units) if seconds >= length)
    said: list[str] = []
    for unit, length in units[place : place + 2]:
        count, seconds = divmod(int(seconds), length)
        if count:
            said.append(f"{count} {unit}")
    return " ".join(said)

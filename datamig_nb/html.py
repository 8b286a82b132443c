"""The HTML of every result: one renderer for each type, found by type.

Markup lives in ``templates/``, where every value is escaped.  The renderers choose what is shown
and how much of it: no output is longer than MAX_BYTES.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from datamig_nb import display
from datamig_nb.checks import QueryCheck, RowCheck
from datamig_nb.clones import Clones
from datamig_nb.export import Export
from datamig_nb.html_pages import templates
from datamig_nb.migration import Migration, Step, describe
from datamig_nb.preview import BackfillPreview, Preview
from datamig_nb.rehearsal import Rehearsal
from datamig_nb.render import Revision
from datamig_nb.set_aside import SetAside
from datamig_nb.steps import Backfill, KeepInStep
from datamig_nb.table_profile import TableProfile
from datamig_nb.transforms import Transform
from datamig_nb.validate import ValidationReport
from datamig_nb.watch import Runs

#: Longest HTML of a value, in bytes: notebooks are committed with their outputs.
MAX_BYTES = 60_000


# ---------------------------------------------------------------- how much is shown


class Size(NamedTuple):
    """How much of a value is shown."""

    #: Rows of a table of data, checks and hazards of a report, keys in a cell, lines of a file.
    rows: int
    checks: int
    keys: int
    lines: int
    #: Characters of a datum, and of the whole datum in its title.
    text: int
    title: int


# The first that gives no more than MAX_BYTES is taken.
_SIZES = (
    Size(rows=50, checks=300, keys=20, lines=2_000, text=60, title=1_000),
    Size(rows=30, checks=300, keys=3, lines=800, text=48, title=120),
    Size(rows=10, checks=300, keys=1, lines=300, text=32, title=0),
    Size(rows=10, checks=100, keys=1, lines=300, text=32, title=0),
    Size(rows=5, checks=20, keys=1, lines=100, text=32, title=0),
)


def _html(template: str, **values: object) -> str:
    html = ""
    for size in _SIZES:
        html = templates.get_template(template).render(
            size=size, pieces=pieces, counted=display.counted, lasting=display.lasting, **values
        )
        if len(html.encode()) <= MAX_BYTES:
            break
    return html


# ---------------------------------------------------------------- words and data

# What cannot be seen: spaces at the ends and in runs, other spaces, control and format characters.
_FORMAT = r"\x00-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff"
_UNSEEN = re.compile(rf"(^ +| +$| {{2,}}|[^\S ]+|[{_FORMAT}])")


def pieces(value: object, length: int) -> list[tuple[str, str]]:
    """A datum in pieces ``(kind, text)``, cut to ``length`` characters.

    ``data`` is the datum's own text, ``mark`` stands for what cannot be seen, ``none`` is a NULL or
    an empty string, ``more`` says that the datum is longer.
    """
    text = str(value)
    if value is None or not text:
        return [("none", display.visible(value))]
    cut = text if len(text) <= length else text[: length - 1].rstrip()
    parts = [(number, part) for number, part in enumerate(_UNSEEN.split(cut)) if part]
    found = [("mark", _mark(part)) if number % 2 else ("data", part) for number, part in parts]
    return found if cut is text else [*found, ("more", "…")]


def _mark(unseen: str) -> str:
    mark = display.visible(unseen)
    return mark if mark.isprintable() else "".join(f"U+{ord(letter):04X}" for letter in unseen)


# ---------------------------------------------------------------- renderers


@display.renders(Migration)
def _migration(migration: Migration) -> str:
    steps: list[tuple[str, list[tuple[str, str]]]] = []
    first: dict[str, int] = {}
    for number, step in enumerate(migration.steps, 1):
        said = [
            (what, sql)
            if first.setdefault(sql, number) == number
            else (f"as in step {first[sql]}", "")
            for what, sql in _sql(step)
        ]
        steps.append((describe(step), list(dict.fromkeys(said))))
    return _html("migration.mako", migration=migration, steps=steps)


def _sql(step: Step) -> list[tuple[str, str]]:
    """The SQL of a step that its description leaves out, each after what it is."""
    match step:
        case Backfill(assign=assign) | KeepInStep(assign=assign):
            where = step.where if isinstance(step, Backfill) else None
            parts = [(f"{column} =", expression) for column, expression in assign.items()]
            return parts if where is None else [*parts, ("only where", where)]
        case Transform(function=function):
            return [("", function.source)]
        case RowCheck(failing=failing):
            return [("fails where", failing)]
        case QueryCheck(failing=failing):
            return [("fails for each row of", failing)]
        case _:
            return []


@display.renders(Preview)
def _preview(preview: Preview) -> str:
    return _html("preview.mako", preview=preview, compared=_compared)


def _compared(part: BackfillPreview) -> dict[int, int]:
    """Place of a column that is set -> place of the column read that it is held against.

    A split into two has none: both halves differ from the whole, which says nothing.
    """
    if len(part.reads) == len(part.sets) == 1:
        return {0: 0}
    return {n: part.reads.index(name) for n, name in enumerate(part.sets) if name in part.reads}


def _render(kind: type[object], name: str) -> None:
    """Render such values by the template of that name, which finds the value under it too."""
    display.renders(kind)(lambda value: _html(f"{name}.mako", **{name: value}))


_render(TableProfile, "profile")
_render(Revision, "revision")
_render(Rehearsal, "rehearsal")
_render(Export, "export")
_render(ValidationReport, "validation")
_render(Runs, "runs")
_render(Clones, "clones")
_render(SetAside, "set_aside")

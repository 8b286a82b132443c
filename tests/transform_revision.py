"""Revisions that compute in Python, written by hand around the machinery."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datamig_nb.database import Database
from datamig_nb.inlined_walk import QUARANTINE, RUN
from datamig_nb.source import machinery
from tests.scratch import query

_TEXT = '''"""Compute."""

from __future__ import annotations

{imports}

revision = {id!r}
down_revision = None
{settings}


def upgrade() -> None:
    online_only()
    with own_commits():
        preflight("upgrade")
{story}
        finish()


def downgrade() -> None:
    pass


{function}


{machinery}
'''


@dataclass(frozen=True)
class HandWritten:
    """What ``AlembicProject.add`` takes of a revision."""

    text: str
    id: str = "c0ffee"
    calls: list[str] = field(default_factory=list)


def call(name: str, table: str, function: Callable[..., Any] | str, **more: object) -> str:
    """The line of the story that computes."""
    given = getattr(function, "__name__", function)
    words = [repr(name), repr(table), str(given)]
    if int(str(more.get("workers", 1))) > 1:
        words.append(f"at_once={'in_processes' if more.pop('processes', False) else 'in_threads'}")
    if more.pop("vectorized", False):
        words.append("computes=by_series")
    words.append("kinds=of_any_type")
    words += ["set_aside=set_aside"] if "quarantine_rows" in more else []
    words += [f"{key}={value!r}" for key, value in more.items()]
    return f"transform({', '.join(words)})"


def transform_revision(
    *calls: str, functions: tuple[Callable[..., Any], ...] = (), source: str = "", imports: str = ""
) -> HandWritten:
    """A revision whose upgrade makes the calls, with the functions pasted in."""
    pasted = [textwrap.dedent(inspect.getsource(function)).strip() for function in functions]
    parts = machinery(
        "\n".join(("online_only, own_commits, preflight, finish", *calls)), imports.splitlines()
    )
    text = _TEXT.format(
        imports=parts.imports,
        id="c0ffee",
        settings=parts.settings,
        story=textwrap.indent("\n".join(calls), " " * 8),
        function="\n\n\n".join([*pasted, source]),
        machinery=parts.functions,
    )
    return HandWritten(text=text)


def with_tables(database: Database, *statements: str) -> Database:
    """The database with the tables of a run, after more statements."""
    for statement in ("CREATE SCHEMA IF NOT EXISTS datamig", RUN, QUARANTINE):
        query(database, statement)
    for statement in statements:
        query(database, statement)
    return database

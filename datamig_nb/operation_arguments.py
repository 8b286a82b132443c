"""What the functions of :mod:`datamig_nb.operations` ask of their arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from datamig_nb import ddl
from datamig_nb.errors import MigrationError
from datamig_nb.names import MOST_NAME_BYTES

# Statements that end the transaction in which a step is done, and text that is nobody's statement.
_NO_STEP = re.compile(
    r"[\s\0]*(begin|start|commit|end|rollback|abort|savepoint|release|prepare\s+transaction|\\)\b",
    re.I,
)


def one_statement(text: str) -> str:
    """The one statement that a text is, without the semicolon at its end."""
    text = text.strip().rstrip("; \n\t")
    plain = ddl.bare(text)
    if not plain.strip("\0 \n\t") or _NO_STEP.match(plain) or "\0" in text:
        raise MigrationError(
            f"{text!r} is no statement of a step", "write one statement, without BEGIN and COMMIT"
        )
    if ";" in plain and not re.search(r"\bbegin\s+atomic\b", plain, re.I):
        raise MigrationError(
            f"{text.splitlines()[0]!r} is more than one statement", "make a step of each"
        )
    return text


def require_names(*names: str | None) -> None:
    """Refuse what PostgreSQL takes for no name, or would cut."""
    for name in names:
        if name is not None and (not name or "\0" in name or len(name.encode()) > MOST_NAME_BYTES):
            raise MigrationError(
                f"{name!r} is no name: PostgreSQL takes 1 to 63 bytes", "choose another"
            )


def names_of(columns: Sequence[str], owner: str) -> list[str]:
    """The names in a list of columns; ``owner`` is what they belong to."""
    if isinstance(columns, str) or not columns or len(set(columns)) != len(columns):
        raise MigrationError(
            f"the columns of {owner!r} are no list of names, each once", 'write ["column"]'
        )
    require_names(*columns)
    return list(columns)


# What SQLAlchemy lets through as it is, though PostgreSQL knows these words only.
ACTION = re.compile(r"restrict|cascade|no action|set (?:null|default)(?: ?\([^()]+\))?", re.I)
WHEN = re.compile(r"deferred|immediate", re.I)
MATCH = re.compile(r"full|simple", re.I)


def require_words(known: re.Pattern[str], *given: str | None) -> None:
    """Refuse words that PostgreSQL does not know in that place."""
    for words in given:
        if words is not None and not known.fullmatch(words):
            raise MigrationError(
                f"{words!r} says nothing to PostgreSQL here", "see CREATE TABLE in its manual"
            )


def require_options(given: dict[str, Any], *known: str) -> None:
    """Refuse options of another name."""
    for name in given:
        if name not in known:
            raise MigrationError(f"there is no option {name!r} here", f"use {', '.join(known)}")

"""Functions of a row, such as people write them in a module of theirs: some may not be taken."""

import datetime as dt
import functools
import hashlib
import os.path
import re
import xml.etree.ElementTree as ET
import xml.sax.saxutils
from collections import Counter as Count
from decimal import ROUND_HALF_UP, Decimal
from math import pi

import sqlalchemy
from pandas import Series

MONTHS = {"jan": 1, "feb": 2}
LIMIT = -3
SPACES = re.compile(r"\s+", re.IGNORECASE)
CACHE = Counter = None
ENGINE = object()


def helped(text: str | None) -> int | None:
    """Use all that may be used."""
    found = SPACES.sub(" ", text or "")
    if isolated(found) and len(found) > LIMIT:
        return MONTHS.get(found[:3], round(pi))
    return None


def isolated(text: str) -> bool:
    """Call the next, which calls this one."""
    return bool(text) and not (text == "again" and twice(text))


def twice(text: str, known: dict[str, int] = MONTHS) -> bool:
    # a comment stays
    return isolated(text + text) if text in known else False


def imports(a: Decimal, b: str) -> str:
    made = a.quantize(Decimal("0.01"), ROUND_HALF_UP)
    digest = hashlib.sha256(os.path.normpath(b).encode()).hexdigest()
    day = dt.date(2024, 1, 1)
    tree = ET.fromstring(f"<a>{xml.sax.saxutils.escape(b)}</a>")
    return f"{made} {digest} {day} {tree.text} {Count(b)}"


def inside(a: str) -> str:
    import json
    from urllib.parse import quote

    return json.dumps(quote(a))


def with_pandas(a: Series) -> Series:
    return a.str.lower()


def comprehends(values: list[int]) -> list[int]:
    return [value + add for value in values for add in (lambda n: range(n))(2)]


def uses_engine(a: str) -> str:
    return f"{ENGINE}{a}"


def uses_package(a: str) -> str:
    return str(sqlalchemy.text(a))


def imports_package(a: str) -> str:
    from datamig_nb.names import quote

    return quote(a)


def imports_beside(a: str) -> str:
    from . import alembic_project  # noqa: TID252

    return f"{alembic_project}{a}"


def undefined(a: str) -> str:
    return missing(a)  # type: ignore # noqa: F821


def sets_global(a: str) -> str:
    global CACHE
    CACHE = a
    return a


@functools.cache
def decorated(a: str) -> str:
    return a


def calls_decorated(a: str) -> str:
    return decorated(a)


def yields(a: str) -> object:
    yield a


async def waits(a: str) -> str:
    return a


def two_arguments(a: str, b: str) -> str:
    return a + b


def around(suffix: str) -> object:
    def inner(a: str) -> str:
        return a + suffix

    return inner


class Cleaner:
    def clean(self, a: str) -> str:
        return a


short = lambda a: a  # noqa: E731
alias = two_arguments


def calls_alias(a: str) -> str:
    return alias(a, a)


def tidy(text: str | None) -> str | None:
    return None if text is None else " ".join(text.split()).lower()

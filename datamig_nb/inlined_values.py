"""Functions copied into revisions that carry values between PostgreSQL and Python as text.

Every driver carries text alike.  What Python cannot hold (``infinity``, the year 10,000) a check
before the first write has found.
"""

from __future__ import annotations

import datetime as dates  # the name datetime is left to the function of a row
import json
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple, cast


class Kind(NamedTuple):
    """The type of a column or an expression."""

    sql: str  # without a length: a cast to varchar(3) would cut what an assignment refuses
    base: str  # name of the type, behind domains and arrays
    is_array: bool


# Any other type is given as PostgreSQL writes it; also interval, whose months no timedelta holds.
FROM_TEXT: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("int2", "int4", "int8"), int),
    **dict.fromkeys(("float4", "float8"), float),
    "numeric": Decimal,
    "bool": lambda text: text in ("t", "true"),
    "bytea": lambda text: bytes.fromhex(text[2:]),
    "date": dates.date.fromisoformat,
    **dict.fromkeys(("time", "timetz"), dates.time.fromisoformat),
    "timestamp": dates.datetime.fromisoformat,
    "timestamptz": lambda text: dates.datetime.fromisoformat(text).astimezone(dates.UTC),
    "uuid": uuid.UUID,
    # a float would lose digits of 0.1234567890123456789
    **dict.fromkeys(("json", "jsonb"), lambda text: json.loads(text, parse_float=Decimal)),
}


def text_expression(expression: str, kind: Kind) -> str:
    """SQL for the text of a value; an array as JSON, its elements as their texts."""
    return f"to_json(({expression})::text[])::text" if kind.is_array else f"({expression})::text"


def reader(kind: Kind) -> Callable[[str | None], Any] | None:
    """What makes Python's value of the text; None where the text is the value."""
    from_text = FROM_TEXT.get(kind.base)
    if kind.is_array:
        return lambda text: None if text is None else elements(json.loads(text), from_text or str)
    if from_text is None:
        return None
    return lambda text: None if text is None else from_text(text)


def elements(value: Any, from_text: Callable[[str], Any]) -> Any:
    """The elements of an array, at any depth, each made of its text."""
    if isinstance(value, list):
        return [elements(item, from_text) for item in cast("list[Any]", value)]
    return None if value is None else from_text(value)


# What a column takes; a str too, as PostgreSQL reads it.  Other types take a str only.
TAKEN: dict[str, tuple[type[Any], ...]] = {
    **dict.fromkeys(("int2", "int4", "int8"), (int,)),
    **dict.fromkeys(("float4", "float8", "numeric"), (float, int, Decimal)),
    "bool": (bool,),
    "bytea": (bytes, bytearray, memoryview),
    "date": (dates.date,),
    **dict.fromkeys(("time", "timetz"), (dates.time,)),
    **dict.fromkeys(("timestamp", "timestamptz"), (dates.datetime,)),
    "interval": (dates.timedelta,),
    "uuid": (uuid.UUID,),
}


def writer(kind: Kind) -> Callable[[Any], str | None]:
    """What makes the text for PostgreSQL of Python's value; it refuses what would change there."""
    is_json = kind.base in ("json", "jsonb")

    def to_text(value: Any) -> str:
        return json_text(value) if is_json else value_text(value, kind.base)

    if kind.is_array:
        return lambda value: None if value is None else array_text(value, to_text, not is_json)
    return lambda value: None if value is None else to_text(value)


def value_text(value: Any, base: str) -> str:
    """A value that is neither an array nor JSON, as PostgreSQL reads it."""
    if base != "bytea" and isinstance(value, str):
        return str(value)
    taken = TAKEN.get(base, ())
    too_much = (bool,) if bool not in taken else ()  # else True would be 1, and an hour be lost
    too_much += (dates.datetime,) if base == "date" else ()
    if not isinstance(value, taken) or isinstance(value, too_much):
        names = " or ".join(["None", *(kind.__name__ for kind in taken), "str"])
        names = names.removesuffix(" or str") if base == "bytea" else names
        raise TypeError(f"a column of type {base} takes {names}, not {type(value).__name__}")
    if base.startswith("time") and (value.tzinfo is None) is base.endswith("tz"):
        # PostgreSQL would pass over a time zone, or make one up.
        wanted = "with" if base.endswith("tz") else "without"
        raise ValueError(f"a column of type {base} takes values {wanted} a time zone")
    if base == "bytea":
        return "\\x" + bytes(cast("bytes", value)).hex()
    if isinstance(value, dates.timedelta):
        return f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds"
    return str(value)


def array_text(value: Any, to_text: Callable[[Any], str], is_deep: bool) -> str:
    """A list as PostgreSQL reads an array; ``is_deep``: lists in it are its other dimensions."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise TypeError(f"a column of arrays takes None, list or str, not {type(value).__name__}")
    items: list[str] = []
    for item in cast("list[Any]", value):
        if item is None:
            items.append("NULL")
        elif is_deep and isinstance(item, list | tuple):
            items.append(array_text(item, to_text, is_deep))
        else:
            items.append('"' + to_text(item).replace("\\", "\\\\").replace('"', '\\"') + '"')
    return "{" + ",".join(items) + "}"


def json_text(value: Any) -> str:
    """The value as JSON, a Decimal as a number with all its digits."""
    if isinstance(value, Decimal) and value.is_finite():
        return str(value)
    if isinstance(value, dict):
        named = cast("dict[Any, Any]", value).items()
        return "{" + ", ".join(f"{json_text(str(n))}: {json_text(item)}" for n, item in named) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(json_text, cast("list[Any]", value))) + "]"
    return json.dumps(value, allow_nan=False)

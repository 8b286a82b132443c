"""Functions copied into revisions that carry values between PostgreSQL and Python as text.

Every driver carries text alike.  What Python cannot hold as it is (``infinity``, 24:00, the year
10,000, a JSON ``null``, an array that does not count from 1) is looked for before the first write.
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

    #: As SQL, without a length: a cast to varchar(3) would cut what an assignment refuses.
    sql: str
    #: Name of the type, of its base where it is a domain, of its elements where it is an array.
    base: str
    is_array: bool


# ---------------------------------------------------------------- from PostgreSQL

# Any other type is given as PostgreSQL writes it; also interval, whose months no timedelta holds.
FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "int2": int,
    "int4": int,
    "int8": int,
    "float4": float,
    "float8": float,
    "numeric": Decimal,
    "bool": lambda text: text in ("t", "true"),
    "bytea": lambda text: bytes.fromhex(text[2:]),
    "date": dates.date.fromisoformat,
    "time": dates.time.fromisoformat,
    "timetz": dates.time.fromisoformat,
    "timestamp": dates.datetime.fromisoformat,
    "timestamptz": lambda text: dates.datetime.fromisoformat(text).astimezone(dates.UTC),
    "uuid": uuid.UUID,
    # a float would lose digits of 0.1234567890123456789
    "json": lambda text: json.loads(text, parse_float=Decimal),
    "jsonb": lambda text: json.loads(text, parse_float=Decimal),
}

# Type -> SQL condition of the values {} that Python cannot hold.
UNREADABLE = {
    "date": "{} < '0001-01-01' OR {} > '9999-12-31'",
    "time": "{} = '24:00'",
    "timetz": "{}::text LIKE '24:%'",
    "timestamp": "{} < '0001-01-01' OR {} >= '10000-01-01'",
    "timestamptz": "{} < '0001-01-02 00:00+00' OR {} >= '9999-12-31 00:00+00'",
    "json": "json_typeof({}) = 'null'",
    "jsonb": "jsonb_typeof({}) = 'null'",
}


def text_expression(expression: str, kind: Kind) -> str:
    """SQL for the text of a value; an array as JSON, its elements as their texts."""
    return f"to_json(({expression})::text[])::text" if kind.is_array else f"({expression})::text"


def unreadable(expression: str, kind: Kind) -> str | None:
    """SQL condition of the values that Python cannot hold; None where it can hold all."""
    condition = UNREADABLE.get(kind.base)
    if not kind.is_array:
        return condition and condition.replace("{}", f"({expression})")
    # Lists count from 1; and a list in an array of JSON could be a dimension or a value.
    found = f"array_dims({expression}) !~ '^(\\[1:[0-9]+\\])+$'"
    if kind.base in ("json", "jsonb"):
        found += f" OR array_ndims({expression}) > 1"
    if condition:
        element = condition.replace("{}", "element")
        found += f" OR EXISTS (SELECT FROM unnest({expression}) AS element WHERE {element})"
    return found


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


# ---------------------------------------------------------------- to PostgreSQL

# What a column takes; a str too, as PostgreSQL reads it.  Other types take a str only.
TAKEN: dict[str, tuple[type[Any], ...]] = {
    "int2": (int,),
    "int4": (int,),
    "int8": (int,),
    "float4": (float, int, Decimal),
    "float8": (float, int, Decimal),
    "numeric": (Decimal, int, float),
    "bool": (bool,),
    "bytea": (bytes, bytearray, memoryview),
    "date": (dates.date,),
    "time": (dates.time,),
    "timetz": (dates.time,),
    "timestamp": (dates.datetime,),
    "timestamptz": (dates.datetime,),
    "interval": (dates.timedelta,),
    "uuid": (uuid.UUID,),
}
# Whether the values have a time zone; PostgreSQL would pass over one, or make one up.
WITH_ZONE = {
    "time": False,
    "timetz": True,
    "timestamp": False,
    "timestamptz": True,
}


def writer(kind: Kind) -> Callable[[Any], str | None]:
    """What makes the text for PostgreSQL of Python's value; it refuses what would change there."""
    to_text = json_text if kind.base in ("json", "jsonb") else value_writer(kind.base)
    if not kind.is_array:
        return lambda value: None if value is None else to_text(value)
    is_deep = to_text is not json_text
    return lambda value: None if value is None else array_text(value, to_text, is_deep)


def value_writer(base: str) -> Callable[[Any], str]:
    """What makes the text of a value that is neither an array nor JSON."""
    taken = TAKEN.get(base, ()) + (() if base == "bytea" else (str,))
    names = " or ".join(["None", *(kind.__name__ for kind in taken)])
    zone, is_date = WITH_ZONE.get(base), base == "date"

    def to_text(value: Any) -> str:
        if type(value) is str and base != "bytea":
            return value
        strange = isinstance(value, bool) and bool not in taken  # else True would be the int 1
        if (
            strange
            or not isinstance(value, taken)
            or (is_date and isinstance(value, dates.datetime))
        ):
            raise TypeError(f"a column of type {base} takes {names}, not {type(value).__name__}")
        if zone is not None and (getattr(value, "tzinfo", None) is not None) is not zone:
            wanted = "with" if zone else "without"
            raise ValueError(f"a column of type {base} takes values {wanted} a time zone")
        return plain_text(value)

    return to_text


def plain_text(value: Any) -> str:
    """The value as PostgreSQL reads it."""
    if isinstance(value, bytes | bytearray | memoryview):
        return "\\x" + bytes(cast("bytes", value)).hex()
    if isinstance(value, dates.timedelta):
        return f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds"
    if isinstance(value, dates.date | dates.time):
        return value.isoformat()
    return str(value)


def array_text(value: Any, to_text: Callable[[Any], str], is_deep: bool = True) -> str:
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
            items.append(array_text(item, to_text))
        else:
            items.append('"' + to_text(item).replace("\\", "\\\\").replace('"', '\\"') + '"')
    return "{" + ",".join(items) + "}"


def json_text(value: Any) -> str:
    """The value as JSON, a Decimal as a number with all its digits."""
    try:
        return json.dumps(value, allow_nan=False)
    except TypeError:
        pass  # a Decimal, perhaps
    if isinstance(value, Decimal) and value.is_finite():
        return str(value)
    if isinstance(value, dict):
        named = cast("dict[Any, Any]", value)
        pairs = (f"{json_text(str(name))}: {json_text(item)}" for name, item in named.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(json_text, cast("list[Any]", value))) + "]"
    raise TypeError(f"JSON has no {type(value).__name__}")

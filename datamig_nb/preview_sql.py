"""The queries of a preview, as text from pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datamig_nb.database import Table
from datamig_nb.migration import Backfill
from datamig_nb.names import literal, quote
from datamig_nb.sql import columns_read, indent

# Sample rows of each kind, and how many of the first rows are looked at for rare shapes.
_EACH, _SHAPES, _SHAPED_ROWS = 2, 8, 10_000

# Spaces that are none to PostgreSQL's trim(): tab, line ends, no-break spaces.
_ODD_SPACE = r"[\t\n\r\u00a0\u2007\u202f]"


@dataclass(frozen=True, kw_only=True)
class ColumnType:
    """The type that a value must fit."""

    name: str
    #: Longest text; None where there is no limit.
    length: int | None = None
    #: Labels of an enum, as literals; None for other types.
    labels: tuple[str, ...] | None = None

    @property
    def is_text(self) -> bool:
        """Whether every text fits."""
        return self.name.lower() in ("text", "varchar", "character varying") or bool(self.length)

    @property
    def literal(self) -> str:
        """The type's name as a SQL literal."""
        return literal(self.name)


def reads(step: Backfill, table: Table) -> tuple[str, ...]:
    """The columns that the step's expressions read; the key where they read none."""
    names = [column.name for column in table.columns]
    read = columns_read(" ".join(step.assign.values()), names)
    return read or table.key or (names[0],)


def count(step: Backfill, table: Table) -> str:
    """Rows that the backfill looks at, and those that it would write."""
    present = [column for column in step.assign if table.has(column)]
    if present:
        left = ", ".join(map(quote, present))
        right = ", ".join(f"({step.assign[column]})" for column in present)
        changed = f"({left}) IS DISTINCT FROM ({right})"
    else:
        changed = f"num_nonnulls({', '.join(f'({text})' for text in step.assign.values())}) > 0"
    return (
        f"SELECT count(*) AS all_rows,\n       count(*) FILTER (WHERE {changed}) AS changed_rows\n"
        f"  FROM {step.table.sql}{_where(step)}"
    )


def value_map(step: Backfill, reads: Sequence[str], limit: int) -> str:
    """Each combination of old values: the new ones, its rows, and how many combinations."""
    before = [f"{quote(column)}::text" for column in reads]
    after = [f"({indent(text, 8)})::text" for text in step.assign.values()]
    places = ", ".join(map(str, range(1, len(before) + len(after) + 1)))
    names = [f"b{number}" for number in range(len(before))]
    ordered = ", ".join(f'{name} COLLATE "C" NULLS FIRST' for name in names)
    listed = ",\n       ".join(
        f"{text} AS {name}"
        for text, name in zip(
            [*before, *after], [*names, *(f"a{n}" for n in range(len(after)))], strict=True
        )
    )
    return (
        f"SELECT *, count(*) OVER () FROM (\n"
        f"SELECT {listed},\n       count(*) AS rows\n  FROM {step.table.sql}{_where(step)}\n"
        f" GROUP BY {places}\n) AS pairs\n ORDER BY rows DESC, {ordered}\n LIMIT {limit}"
    )


def samples(step: Backfill, key: Sequence[str], reads: Sequence[str]) -> str:
    """Rows chosen for a reason: the reason, the key, the old and the new values, as text."""
    keys = ", ".join(f"{quote(column)}::text AS k{n}" for n, column in enumerate(key))
    before = ", ".join(f"{quote(column)}::text AS b{n}" for n, column in enumerate(reads))
    after = ", ".join(f"({text})::text AS a{n}" for n, text in enumerate(step.assign.values()))
    ordered = ", ".join(quote(column) for column in key)
    rows = f"SELECT {keys}, {before}, {after}\n  FROM {step.table.sql}"
    places = [
        f"{kind}{n}"
        for kind, columns in {"k": key, "b": reads, "a": step.assign}.items()
        for n in range(len(columns))
    ]
    several = len(reads) > 1
    parts: list[str] = []
    for column in reads:
        name, of = f"{quote(column)}::text", f" {column}" if several else ""
        for why, condition, order in _kinds(name, list(step.assign.values())):
            # Each kind finds its first rows by key; it reads on only while it has found too few.
            parts.append(
                f"(SELECT {literal(why + of)} AS why, * FROM ({rows}\n WHERE {condition}"
                f"{_and(step)}\n ORDER BY {order or ordered} LIMIT {_EACH}) AS kind)"
            )
        parts.append(_shapes(step, rows, places, name, ordered, f"rare shape{of}"))
    return "\nUNION ALL\n".join(parts)


def _kinds(text: str, results: Sequence[str]) -> list[tuple[str, str, str]]:
    """Kinds of rows that tend to go wrong: the reason, the condition, the order if not by key."""
    present = f"{text} IS NOT NULL"
    nothing = " AND ".join(f"({result}) IS NULL" for result in results)
    return [
        ("NULL", f"{text} IS NULL", ""),
        ("nothing is left", f"{present} AND {nothing}", ""),
        ("blank", rf"{text} !~ '[^\s\u00a0\u2007\u202f]'", ""),
        ("space at an end", rf"{text} ~ '(^\s\S)|(\S\s$)'", ""),
        ("spaces in a run", rf"{text} ~ '\S\s\s+\S'", ""),
        ("tab, line end or no-break space", f"{text} ~ '{_ODD_SPACE}'", ""),
        ("quote, colon or backslash", rf"{text} ~ '[''\":\\]'", ""),
        ("non-ASCII", rf"{text} ~ '[^\u0001-\u007f]'", ""),
        ("longest", present, f'length({text}) DESC, {text} COLLATE "C"'),
        ("shortest", f"{text} ~ '\\S'", f'length({text}), {text} COLLATE "C"'),
        ("first by key", present, ""),
    ]


def _shapes(
    step: Backfill, rows: str, places: Sequence[str], text: str, ordered: str, why: str
) -> str:
    """A row of each of the rarest shapes (letters as a, digits as 9) among the first rows."""
    shape = (
        f"regexp_replace(regexp_replace(left({text}, 100), '[[:alpha:]]+', 'a', 'g'),"
        " '[[:digit:]]+', '9', 'g')"
    )
    first = f"{rows}\n WHERE {text} IS NOT NULL{_and(step)}\n ORDER BY {ordered}"
    shaped = first.replace("SELECT ", f"SELECT {shape} AS shape, ", 1)
    return (
        f"(SELECT {literal(why)} AS why, {', '.join(places)} FROM (\n"
        f"SELECT DISTINCT ON (shape) *, count(*) OVER (PARTITION BY shape) AS times\n"
        f"  FROM ({shaped} LIMIT {_SHAPED_ROWS}) AS first_rows\n ORDER BY shape, k0\n) AS shapes\n"
        f' ORDER BY times, shape COLLATE "C" LIMIT {_SHAPES})'
    )


def predicted(table: Table, assign: Mapping[str, str]) -> str:
    """The table's rows as the backfills would leave them, under the table's own name."""
    kept = [quote(column.name) for column in table.columns if column.name not in assign]
    new = [f"({indent(text, 8)}) AS {quote(column)}" for column, text in assign.items()]
    listed = ",\n       ".join([*kept, *new])
    return f"(SELECT {listed}\n  FROM {table.name.sql}) AS {quote(table.name.name)}"


def count_each(rows: str, failing: Sequence[str]) -> str:
    """How many of the rows meet each condition, in one pass."""
    counts = ",\n       ".join(f"count(*) FILTER (WHERE {condition})" for condition in failing)
    return f"SELECT {counts}\n  FROM {rows}"


def failing_keys(rows: str, failing: str, key: Sequence[str], limit: int) -> str:
    """Keys of the first rows that meet the condition; a table without a key has none to show."""
    if not key:
        return "SELECT WHERE FALSE"
    keys = ", ".join(f"{quote(column)}::text" for column in key)
    ordered = ", ".join(map(quote, key))
    return f"SELECT {keys}\n  FROM {rows}\n WHERE {failing}\n ORDER BY {ordered}\n LIMIT {limit}"


def count_and_keys(failing: str, limit: int) -> str:
    """How many rows a query gives, before each of its first rows."""
    return f"SELECT count(*) OVER (), failing.* FROM (\n{failing}\n) AS failing\n LIMIT {limit}"


def collisions(rows: str, columns: Sequence[str], limit: int) -> str:
    """Values that several of the rows would share: the rows in all, then the values."""
    listed = ", ".join(map(quote, columns))
    values = ", ".join(f"{quote(column)}::text" for column in columns)
    present = " AND ".join(f"{quote(column)} IS NOT NULL" for column in columns)
    return (
        f"SELECT (sum(count(*)) OVER ())::bigint, {values}\n  FROM {rows}\n WHERE {present}\n"
        f" GROUP BY {listed} HAVING count(*) > 1\n ORDER BY {listed}\n LIMIT {limit}"
    )


def _where(step: Backfill) -> str:
    return "" if step.where is None else f"\n WHERE {step.where}"


def _and(step: Backfill) -> str:
    return "" if step.where is None else f" AND ({step.where})"

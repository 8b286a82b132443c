"""The queries of a preview, as text from pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from datamig_nb.expressions import is_literal
from datamig_nb.names import TableName, literal, quote
from datamig_nb.statements import columns_read, indent
from datamig_nb.steps import Backfill
from datamig_nb.tables import ForeignKey, Table

# Sample rows of each kind, and how many of the first rows are looked at for rare shapes.
_EACH, _SHAPES, _SHAPED_ROWS = 2, 8, 10_000


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
    def is_whole(self) -> bool:
        """Whether it takes whole numbers only."""
        return self.name.lower() in ("smallint", "integer", "bigint")


def reads(step: Backfill, table: Table) -> tuple[str, ...]:
    """The columns that the step's expressions read; the key where they read none."""
    names = [column.name for column in table.columns]
    read = columns_read("\n".join(step.assign.values()), names)
    return read or table.key or (names[0],)


def value_map(
    step: Backfill,
    table: Table,
    reads: Sequence[str],
    limit: int,
    incomparable: Iterable[str] = (),
    rows: str | None = None,
) -> str:
    """Each combination of old values: the new ones, its rows, and what there is in all.

    That is the same in each row: how many combinations, how many rows, how many that would be
    written, and which kinds of rows there are, as :func:`samples` takes them.

    Each expression is evaluated once a row.  Here and below, ``rows`` is a FROM item in the place
    of the table, under the table's name.
    """
    news = {column: quote(f"→ {n}") for n, column in enumerate(step.assign)}
    needed = dict.fromkeys([*reads, *(column for column in step.assign if table.has(column))])
    given = [f"({indent(text, 12)}) AS {news[c]}" for c, text in step.assign.items()]
    evaluated = ",\n           ".join([*map(quote, needed), *given])
    columns = {f"b{n}": quote(column) for n, column in enumerate(reads)}
    columns |= {f"a{n}": new for n, new in enumerate(news.values())}
    changed = " OR ".join(
        f"{news[column]} IS NOT NULL"  # a column that is not there yet is NULL in every row
        if not table.has(column)
        else f"{quote(column)}::text IS DISTINCT FROM {news[column]}::text"
        if column in incomparable
        # a literal has no type of its own
        else f"{quote(column)} IS DISTINCT FROM {text if is_literal(text) else news[column]}"
        for column, text in step.assign.items()
    )
    before, after = ([name for name in columns if name[0] == kind] for kind in "ba")
    kinds = [f"bool_or({kind[1]})" for old in before for kind in _kinds(old, after)]
    ordered = ", ".join(f'{name} COLLATE "C" NULLS FIRST' for name in before)
    listed = ", ".join(f"{text}::text AS {name}" for name, text in columns.items())
    return (
        f"WITH pairs AS MATERIALIZED (\n    SELECT {listed},\n"
        f"           count(*) AS rows, count(*) FILTER (WHERE {changed}) AS changed_rows\n"
        f"      FROM (\n    SELECT {evaluated}\n      FROM {rows or step.table.sql}{_where(step)}\n"
        f"    OFFSET 0) AS evaluated\n"
        f"     GROUP BY {', '.join(map(str, range(1, len(columns) + 1)))}\n"
        f")\nSELECT {', '.join(columns)}, rows, totals.*\n  FROM pairs, (\n"
        "    SELECT count(*), sum(rows)::bigint, sum(changed_rows)::bigint,\n           ARRAY["
        + ",\n                 ".join(kinds)
        + f"]\n      FROM pairs\n) AS totals (combinations, all_rows, all_changed, kinds)\n"
        f" ORDER BY rows DESC, {ordered}\n LIMIT {limit}"
    )


def samples(
    step: Backfill,
    key: Sequence[str],
    reads: Sequence[str],
    kinds: Iterable[bool | None],
    found: str | None = None,
) -> str:
    """Rows chosen for a reason: the reason, the key, the old and the new values, as text.

    ``kinds`` says of each column read, and of each kind, whether there are such rows.
    """
    name, rows, there = quote(step.table.name), step.table.sql, iter(kinds)
    read_once = ""
    if found is not None and found != rows:  # a query, which each kind would run again
        read_once = f'WITH "→ rows" AS MATERIALIZED (SELECT * FROM {found})\n'
        rows = f'"→ rows" AS {name}'
    keys = {f'"→ k{n}"': f"{name}.{quote(column)}" for n, column in enumerate(key)}
    picked = ", ".join(f"{column} AS {k}" for k, column in keys.items())
    by_key = ", ".join(keys.values())
    picks: list[str] = []
    for column in reads:
        old, of = f"{quote(column)}::text", f" {column}" if len(reads) > 1 else ""
        for why, condition, order in _kinds(old, [f"({text})" for text in step.assign.values()]):
            if next(there):
                picks.append(
                    f'(SELECT {literal(why + of)} AS "→ why", {picked}\n  FROM {rows}\n'
                    f" WHERE {condition}{_and(step)}\n ORDER BY {order}{by_key} LIMIT {_EACH})"
                )
        first = f"{picked}\n  FROM {rows}\n WHERE {old} IS NOT NULL{_and(step)}"
        picks.append(_shapes(first, keys, old, by_key, f"rare shape{of}"))
    values = [*keys.values(), *map(quote, reads), *(f"({text})" for text in step.assign.values())]
    return (
        f'{read_once}SELECT "→ why", {", ".join(f"{text}::text" for text in values)}\n  FROM (\n'
        'SELECT *, row_number() OVER () AS "→ n" FROM (\n'
        + "\nUNION ALL\n".join(picks)
        + f"\n) AS picks) AS picks\n  JOIN {rows} ON ({by_key}) = ({', '.join(keys)})\n"
        ' ORDER BY "→ n"'
    )


def _kinds(text: str, results: Sequence[str]) -> list[tuple[str, str, str]]:
    """Kinds of rows that tend to go wrong: the reason, the condition, an order before the key's."""
    nothing = " AND ".join(f"{result} IS NULL" for result in results)
    return [
        ("NULL", f"{text} IS NULL", ""),
        ("empty", f"{text} = ''", ""),
        ("blank", rf"{text} <> '' AND {text} !~ '[^\s\u00a0\u2007\u202f]'", ""),
        ("nothing is left", rf"{text} ~ '[^\s\u00a0\u2007\u202f]' AND {nothing}", ""),
        ("space in front", rf"{text} ~ '^\s+\S'", ""),
        ("space behind", rf"{text} ~ '\S\s+$'", ""),
        ("spaces in a run", rf"{text} ~ '\S\s\s+\S'", ""),
        ("tab or line end", rf"{text} ~ '[\t\n\r]'", ""),
        ("no-break space", rf"{text} ~ '[\u00a0\u2007\u202f]'", ""),
        ("quote, colon or backslash", rf"{text} ~ '[''\":\\]'", ""),
        ("non-ASCII", rf"{text} ~ '[^\u0001-\u007f]'", ""),
        ("letter and accent apart (not NFC)", rf"{text} ~ '[\u0300-\u036f]'", ""),
        ("longest", f"{text} IS NOT NULL", f'length({text}) DESC, {text} COLLATE "C", '),
        ("shortest", f"{text} ~ '\\S'", f'length({text}), {text} COLLATE "C", '),
        ("first by key", f"{text} IS NOT NULL", ""),
    ]


def _shapes(first: str, keys: Iterable[str], text: str, by_key: str, why: str) -> str:
    """A row of each of the rarest shapes (letters as a, digits as 9) among the first rows."""
    shape = (
        f"regexp_replace(regexp_replace(left({text}, 100), '[[:alpha:]]+', 'a', 'g'),"
        " '[[:digit:]]+', '9', 'g')"
    )
    return (
        f'(SELECT {literal(why)} AS "→ why", {", ".join(keys)} FROM (\n'
        f"SELECT DISTINCT ON (shape) *, count(*) OVER (PARTITION BY shape) AS times\n"
        f"  FROM (SELECT row_number() OVER (ORDER BY {by_key}) AS place, {shape} AS shape,"
        f" {first}\n ORDER BY {by_key} LIMIT {_SHAPED_ROWS}) AS first_rows\n"
        f" ORDER BY shape, place\n"
        f') AS shapes\n ORDER BY times, shape COLLATE "C" LIMIT {_SHAPES})'
    )


def evaluate(step: Backfill, expression: str) -> str:
    """Evaluate one expression over the rows of a step, for the error that it may raise."""
    source = "" if step.using is None else f"\n  JOIN {step.using} ON {step.on}"
    return f"SELECT count({expression})\n  FROM {step.table.sql}{source}{_where(step)}"


def predicted(table: Table, assign: Mapping[str, str], rows: str | None = None) -> str:
    """The table's rows as the migration would leave them, under the table's own name.

    Each expression is evaluated once a row, however often its column is read: OFFSET sees to it.
    """
    kept = [quote(column.name) for column in table.columns if column.name not in assign]
    new = [f"({indent(text, 8)}) AS {quote(column)}" for column, text in assign.items()]
    listed = ",\n       ".join([*([] if table.key else ["ctid"]), *kept, *new])
    return (
        f"(SELECT {listed}\n  FROM {rows or table.name.sql} OFFSET 0) AS {quote(table.name.name)}"
    )


def count_each(rows: str, failing: Sequence[str]) -> str:
    """How many of the rows meet each condition, in one pass."""
    counts = ",\n       ".join(f"count(*) FILTER (WHERE {condition})" for condition in failing)
    return f"SELECT {counts}\n  FROM {rows}"


def failing_keys(rows: str, failing: str, key: Sequence[str], limit: int) -> str:
    """Keys of the first rows that meet the condition; places where the table has no key."""
    ordered = ", ".join(map(quote, key)) or "ctid"
    return (
        f"SELECT {_as_text(key or ('ctid',))}\n  FROM {rows}\n WHERE {failing}\n"
        f" ORDER BY {ordered}\n LIMIT {limit}"
    )


def count_and_keys(failing: str, limit: int) -> str:
    """How many rows a query gives, before each of its first rows."""
    return f"SELECT count(*) OVER (), failing.* FROM (\n{failing}\n) AS failing\n LIMIT {limit}"


def collisions(rows: str, columns: Sequence[str], limit: int) -> str:
    """Values that several of the rows would share: the rows in all, then the values."""
    listed = ", ".join(map(quote, columns))
    present = " AND ".join(f"{quote(column)} IS NOT NULL" for column in columns)
    return (
        f"SELECT (sum(count(*)) OVER ())::bigint, {_as_text(columns)}\n  FROM {rows}\n"
        f" WHERE {present}\n GROUP BY {listed} HAVING count(*) > 1\n"
        f" ORDER BY {listed}\n LIMIT {limit}"
    )


def is_no_label(column: str, labels: Sequence[str]) -> str:
    """Condition: the value is none of the labels, which are literals."""
    return f"{quote(column)}::text NOT IN ({', '.join(labels)})"


def does_not_fit(column: str, type: ColumnType) -> str:
    """Condition: PostgreSQL (16 and newer) cannot read the value as one of the type."""
    value = f"{quote(column)}::text"
    if type.is_whole:  # what is no whole number is rounded when it is stored
        value = f"CASE WHEN {_is_fractional(column)} THEN {_rounded(column)} ELSE {value} END"
    return f"NOT pg_input_is_valid({value}, {literal(type.name)})"


def is_rounded(column: str) -> str:
    """Condition: the value is a number that loses its fraction in a column of whole numbers."""
    return (
        f"CASE WHEN {_is_fractional(column)}"
        f" THEN {_rounded(column)}::numeric <> {quote(column)}::text::numeric ELSE FALSE END"
    )


def has_no_parent(table: TableName, key: ForeignKey) -> str:
    """Condition: a foreign key's columns hold a value that is not in the parent table."""
    child = ", ".join(f"{quote(table.name)}.{quote(column)}" for column in key.columns)
    above = ", ".join(f"parent.{quote(column)}" for column in key.parent_columns)
    return (
        f"num_nulls({child}) = 0 AND NOT EXISTS"
        f" (SELECT FROM {key.parent.sql} AS parent WHERE ({above}) = ({child}))"
    )


# The CHECK constraints of a table, as conditions over its columns.
CHECKS = """
SELECT conname AS name,
       pg_get_expr(conbin, conrelid) AS condition,
       array(SELECT attname::text FROM pg_attribute
              WHERE attrelid = conrelid AND attnum = ANY (conkey)) AS columns
  FROM pg_constraint
 WHERE conrelid = to_regclass(:name) AND contype = 'c'
 ORDER BY conname
"""


def _as_text(columns: Sequence[str]) -> str:
    """The values as text, under other names: ORDER BY must find the columns, not the text."""
    return ", ".join(f"{quote(column)}::text AS v{n}" for n, column in enumerate(columns))


def _is_fractional(column: str) -> str:
    kinds = ("numeric", "real", "double precision")
    listed = ", ".join(f"{literal(kind)}::regtype" for kind in kinds)
    return f"pg_typeof({quote(column)}) IN ({listed})"


def _rounded(column: str) -> str:
    return f"round({quote(column)}::text::numeric)::text"


def _where(step: Backfill) -> str:
    return "" if step.where is None else f"\n WHERE {step.where}"


def _and(step: Backfill) -> str:
    return "" if step.where is None else f" AND ({step.where})"

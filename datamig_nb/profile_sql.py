r"""The SQL of a profile: text from pure functions, each statement read-only and of one shape.

A statement about a column begins with ``counted``: its values, each with its number of rows.
What follows reads those, so that a regular expression runs once a value and not once a row::

    WITH counted AS MATERIALIZED (
        SELECT status COLLATE "C" AS value, count(*) AS row_count
          FROM guide."user"
         GROUP BY 1
    )
    SELECT count(value) AS distinct_values, ... FROM counted
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from datamig_nb.names import TableName, quote

#: Characters of a value that are shown; one more is read, to know that there are more.
VALUE_CHARACTERS = 60
#: Percent of the rows below or at each quantile.
QUANTILES = (5, 25, 50, 75, 95)
#: A value is listed as frequent in a large table when it is in the sample this often.
FREQUENT_ROWS = 5
#: Texts that are longer on average are prose: neither masks nor spellings say much of them.
PROSE_CHARACTERS = 50

# White space beyond ASCII, the invisible U+200B and U+FEFF too, as a regular expression and as code
# points.  Spelled out, because \s depends on the operating system and on the collation.
_WIDE = r"\u0085\u00a0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
_CODES = (
    ", ".join(
        map(str, [*range(9, 14), 32, 133, 160, 5760, *range(8192, 8204), 8232, 8233, 8239, 8287])
    )
    + ", 12288, 65279"
)

_ALL_SPACE = rf"'^[\s{_WIDE}]*$'"
_NUMBER = r"value ~ '^\s*[-+]?(0|[1-9]\d*)(\.\d+)?\s*$'"
_DATE = (
    r"value ~ '^\s*(\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./]\d{1,2}[./]\d{2,4})"
    r"([ T]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?\s*(Z|[-+]\d{2}(:?\d{2})?)?)?\s*$'"
)
_BOOLEAN = "lower(btrim(value)) IN ('true', 'false', 't', 'f', 'yes', 'no', 'y', 'n', 'on', 'off')"
_SHOWN = f"left(CAST(value AS text), {VALUE_CHARACTERS + 1})"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A column, as far as the statements depend on it."""

    name: str
    #: ``text``, ``number`` or ``time``; ``ordered`` (enum, inet) has no quantiles; ``plain``
    #: (boolean, uuid) no least value either; ``opaque`` (json, point, arrays) is compared as text.
    kind: str
    #: Whether ``COLLATE`` can follow the name as it stands.
    collatable: bool
    #: Whether 1.0 and 1.00 are the same value: a numeric without a scale.
    scaleless: bool
    #: Longest text that fits, in characters; None where there is no limit.
    length: int | None

    @property
    def value(self) -> str:
        """The column as an expression that can be grouped by and always prints the same."""
        name = quote(self.name)
        if self.kind in ("text", "opaque"):
            # Equal means equal bytes, also where a collation or citext sees it otherwise.
            return f'{name if self.collatable else f"CAST({name} AS text)"} COLLATE "C"'
        return f"trim_scale({name})" if self.scaleless else name

    @property
    def text(self) -> str:
        """The column as text."""
        return self.value if self.kind in ("text", "opaque") else f"CAST({self.value} AS text)"


# ---------------------------------------------------------------- which rows


def sample(table: TableName, percent: float, *, view: bool) -> str:
    """A share of the rows, the same ones each time; goes after FROM."""
    if view:  # TABLESAMPLE needs a table; the hash of the whole row chooses as evenly
        limit = int(percent * 10_000)
        row_hash = "hashtextextended(CAST(ROW(whole.*) AS text), 0)"
        return f"{table.sql} AS whole WHERE abs({row_hash} % 1000000) < {limit}"
    return f"{table.sql} TABLESAMPLE BERNOULLI ({percent:.6g}) REPEATABLE (0)"


def part(table: TableName, column: Measured, parts: int, *, alike: bool) -> str:
    """All rows of one in ``parts`` values, chosen by hash; goes after FROM.

    With ``alike``, spellings that differ only by case or ASCII space are in the same part.
    """
    text = column.text
    if alike:
        text = f"lower(replace({text}, ' ', '') COLLATE \"default\")"
    return f"{table.sql} WHERE hashtextextended({text}, 0) & {parts - 1} = 0"


# ---------------------------------------------------------------- what is asked of a column


def count_rows(table: TableName) -> str:
    """All rows of the table."""
    return f"SELECT count(*) FROM {table.sql}"


def repetition(columns: Sequence[Measured], source: str) -> str:
    """How often values repeat: filled rows, distinct values and single ones of each column."""
    values = ",\n           ".join(f"{c.value} AS c{n}" for n, c in enumerate(columns))
    counts = "\nUNION ALL\n".join(
        f"SELECT {n} AS number, coalesce(sum(row_count), 0) AS filled,\n"
        "       count(*) AS distinct_values,\n"
        "       count(*) FILTER (WHERE row_count = 1) AS single_values\n"
        f"  FROM (SELECT count(*) AS row_count FROM sampled WHERE c{n} IS NOT NULL GROUP BY c{n})"
        " AS counted"
        for n in range(len(columns))
    )
    return (
        f"WITH sampled AS MATERIALIZED (\n    SELECT {values}\n      FROM {source}\n)\n"
        f"{counts}\nORDER BY number"
    )


def counted(column: Measured, source: str) -> str:
    """The values of the column with their rows and, of text, length and edge."""
    grouped = f"SELECT {column.value} AS value, count(*) AS row_count FROM {source} GROUP BY 1"
    if column.kind == "text":
        measures = _measures("value", "value")
        grouped = f"SELECT value, row_count, {measures}\n      FROM ({grouped}) AS grouped"
    return f"counted AS MATERIALIZED (\n    {grouped}\n)"


def measure(values: str, items: Iterable[str]) -> str:
    """One statement for what is asked of a column; ``values`` is what :func:`counted` gives."""
    asked = ",\n       ".join(items)
    further = {"FROM alike": _ALIKE, "FROM masked": _MASKED, "FROM ranked": _RANKED}
    tables = ",\n".join([values, *(text for words, text in further.items() if words in asked)])
    return f"WITH {tables}\nSELECT {asked}\n  FROM counted"


def extents(columns: Sequence[Measured], table: TableName) -> str:
    """What :func:`extent` asks, of several columns in one pass; ``c0_nulls`` is of the first."""
    values: list[str] = []
    items: list[str] = []
    for number, column in enumerate(columns):
        name = f"c{number}"
        values.append(f"{column.value} AS {name}")
        values += [_measures(column.value, name)] if column.kind == "text" else []
        items += extent(column, value=name, count="count(*)", prefix=f"{name}_")
    # A volatile function keeps the planner from computing lengths anew in each aggregate.  OFFSET 0
    # would, too, but not in parallel.
    listed = ",\n               ".join([*values, "clock_timestamp()"])
    asked = ",\n       ".join(items)
    return f"SELECT {asked}\n  FROM (SELECT {listed}\n          FROM {table.sql}) AS measured"


def extent(
    column: Measured, *, value: str = "value", count: str = "sum(row_count)", prefix: str = ""
) -> list[str]:
    """Asks for NULLs, the least and the greatest value and, of text, white space and lengths."""

    def rows(condition: str, name: str) -> str:
        return f"{count} FILTER (WHERE {condition}) AS {prefix}{name}"

    length = f"{value}_length"
    mean = f"avg({length})" if count == "count(*)" else _MEAN_LENGTH
    items = [rows(f"{value} IS NULL", "nulls")]
    if column.kind in ("text", "number", "time", "ordered"):
        items += [
            f"left(CAST({least}({value}) AS text), {VALUE_CHARACTERS + 1}) AS {prefix}{least}imum"
            for least in ("min", "max")
        ]
    if column.kind == "text":
        beyond_ascii = f"octet_length({value}) > {length}"
        items += [
            rows(_blank(value), "blanks"),
            rows(f"{value}_edge AND {value} !~ {_ALL_SPACE}", "padded"),
            rows(beyond_ascii, "non_ascii"),
            rows(f"{beyond_ascii} AND {value} ~ '[{_WIDE}]'", "wide_spaces"),
            rows(f"{beyond_ascii} AND {value} IS NOT NFC NORMALIZED", "decomposed"),
            f"min({length}) AS {prefix}min_length",
            f"CAST({mean} AS double precision) AS {prefix}mean_length",
            f"max({length}) AS {prefix}max_length",
        ]
    if column.length is not None:
        items.append(rows(f"{length} >= {-(-column.length * 9 // 10)}", "near_limit"))
    return items


def variety(column: Measured, top: int) -> list[str]:
    """Asks for distinct values and, of text, spellings that differ only by case or space."""
    items = ["sum(row_count) FILTER (WHERE value IS NOT NULL) AS filled"]
    items += ["count(value) AS distinct_values"]
    if column.kind == "text":
        items += [
            "(SELECT count(*) FROM alike) AS spelling_groups",
            "(SELECT sum(row_count - most) FROM alike) AS spelling_rows",
            "(SELECT json_agg(variants) FROM (SELECT variants FROM alike"
            f" ORDER BY row_count DESC, form LIMIT {top}) AS first) AS spellings",
        ]
    return items


def sampled() -> list[str]:
    """Asks how large the sample is and whether it has frequent values."""
    frequent = f"max(row_count) FILTER (WHERE value IS NOT NULL) >= {FREQUENT_ROWS}"
    return ["sum(row_count) AS sample_rows", f"{frequent} AS has_frequent"]


def most_frequent(top: int) -> list[str]:
    """Asks for the values with the most rows."""
    condition = f"value IS NOT NULL AND (row_count > 1 OR (SELECT count(*) FROM counted) <= {top})"
    return [
        f"(SELECT json_agg(json_build_array({_SHOWN}, row_count)) FROM (SELECT value, row_count"
        f" FROM counted WHERE {condition} ORDER BY row_count DESC, value LIMIT {top}) AS first)"
        " AS top"
    ]


def shape(column: Measured, top: int) -> list[str]:
    """Asks for quantiles, or of text for masks and for what it looks like."""
    if column.kind in ("number", "time"):
        least = ", ".join(
            f"min(value) FILTER (WHERE share >= {percent / 100:g})" for percent in QUANTILES
        )
        return [f"(SELECT CAST(ARRAY[{least}] AS text[]) FROM ranked) AS quantiles"]
    if column.kind != "text":
        return []
    return [
        "(SELECT json_agg(json_build_array(mask, row_count)) FROM (SELECT mask, row_count"
        f" FROM masked ORDER BY row_count DESC, mask LIMIT {top}) AS first) AS masks",
        "(SELECT count(*) FROM masked) AS distinct_masks",
        "(SELECT sum(row_count) FROM masked) AS words",
        "(SELECT sum(row_count) FILTER (WHERE row_count < 0.01 * total) FROM masked)"
        " AS rare_mask_rows",
        _rows(_NUMBER, "numbers"),
        _rows(_DATE, "dates"),
        _rows(_BOOLEAN, "booleans"),
    ]


def _rows(condition: str, name: str) -> str:
    return f"sum(row_count) FILTER (WHERE {condition}) AS {name}"


def _measures(text: str, name: str) -> str:
    """The length of a text, and whether there is white space at one of its edges."""
    edge = f"ascii({text}) IN ({_CODES}) OR ascii(right({text}, 1)) IN ({_CODES})"
    return f"length({text}) AS {name}_length, {edge} AS {name}_edge"


def _blank(value: str) -> str:
    return f"({value} = '' OR {value}_edge AND {value} ~ {_ALL_SPACE})"


def _mask(text: str) -> str:
    """The text with letters as A and a, digits as 9, and + for the rest of a run.

    Letters of scripts without capitals are to become ``a``, so ``a`` is for all that is left once
    the capitals are gone; they are chr(1) until then.
    """
    for pattern, replacement in (
        ("[[:upper:]]{2,}", "\\x01+"),
        ("[[:upper:]]", "\\x01"),
        ("[[:alpha:]]{2,}", "a+"),
        ("[[:alpha:]]", "a"),
        ("[[:digit:]]{2,}", "9+"),
        ("[[:digit:]]", "9"),
    ):
        escaped = "E" if "\\" in replacement else ""
        text = f"regexp_replace({text}, '{pattern}', {escaped}'{replacement}', 'g')"
    return f"replace({text}, E'\\x01', 'A')"


_MEAN_LENGTH = (
    "sum(row_count * value_length) / sum(row_count) FILTER (WHERE value_length IS NOT NULL)"
)

_WORDS = (
    f"value IS NOT NULL AND NOT {_blank('value')}\n"
    f"       AND (SELECT {_MEAN_LENGTH} FROM counted) <= {PROSE_CHARACTERS}"
)

# Letters are what the database's own collation says they are; under "C" only ASCII would be.
_MASKED = f"""masked AS MATERIALIZED (
    SELECT {_mask(f'left(value, {VALUE_CHARACTERS}) COLLATE "default"')} COLLATE "C" AS mask,
           sum(row_count) AS row_count,
           sum(sum(row_count)) OVER () AS total
      FROM counted
     WHERE {_WORDS}
     GROUP BY 1
)"""

_ALIKE = rf"""alike AS MATERIALIZED (
    SELECT lower(regexp_replace(value, '[\s{_WIDE}]+', '', 'g') COLLATE "default") COLLATE "C"
           AS form,
           sum(row_count) AS row_count,
           max(row_count) AS most,
           json_agg(json_build_array({_SHOWN}, row_count) ORDER BY row_count DESC, value)
           AS variants
      FROM counted
     WHERE {_WORDS}
     GROUP BY 1
    HAVING count(*) > 1
)"""

_RANKED = """ranked AS (
    SELECT value,
           sum(CAST(row_count AS double precision)) OVER (ORDER BY value ROWS UNBOUNDED PRECEDING)
           / (SELECT sum(row_count) FROM counted WHERE value IS NOT NULL) AS share
      FROM counted
     WHERE value IS NOT NULL
)"""


def frequent_values(table: TableName, column: Measured, sampled: str, top: int) -> str:
    """The values that are frequent in the sample, with their rows in the whole table."""
    return f"""WITH frequent AS MATERIALIZED (
    SELECT {column.value} AS value
      FROM {sampled}
     GROUP BY 1
    HAVING count(*) >= {FREQUENT_ROWS} AND {column.value} IS NOT NULL
     ORDER BY count(*) DESC, 1
     LIMIT {top}
), counted AS MATERIALIZED (
    SELECT value, count(*) AS row_count
      FROM (SELECT {column.value} AS value FROM {table.sql}) AS whole
      JOIN frequent USING (value)
     GROUP BY 1
)
SELECT {_SHOWN} AS value, row_count FROM counted ORDER BY row_count DESC, counted.value"""


# ---------------------------------------------------------------- what is asked of several


def count_pairs(table: TableName, first: Measured, second: Measured) -> str:
    """Distinct pairs of the values of two columns.

    Not with DISTINCT: in parallel, its workers hand over their rows in the order of the very hash
    that the leader then uses, and PostgreSQL 18 took minutes for 300,000 rows.
    """
    return (
        "SELECT count(*) FROM (SELECT count(*)"
        f" FROM {table.sql} GROUP BY {first.value}, {second.value}) AS pairs"
    )


def orphans(table: TableName, column: str, parent: TableName, parent_column: str, top: int) -> str:
    """Rows whose value is in no row of the parent: counts and the most frequent values."""
    child = f"child.{quote(column)}"
    return f"""WITH missing AS MATERIALIZED (
    SELECT {child} AS value, count(*) AS row_count
      FROM {table.sql} AS child
     WHERE {child} IS NOT NULL
       AND NOT EXISTS (SELECT FROM {parent.sql} AS parent
                        WHERE parent.{quote(parent_column)} = {child})
     GROUP BY 1
)
SELECT coalesce(sum(row_count), 0) AS orphan_rows,
       count(*) AS missing_values,
       (SELECT json_agg(json_build_array({_SHOWN}, row_count)) FROM (SELECT value, row_count
        FROM missing ORDER BY row_count DESC, CAST(value AS text) COLLATE "C" LIMIT {top}) AS first)
       AS first_missing
  FROM missing"""

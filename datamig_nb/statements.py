"""SQL as text from pure functions: a description in, a statement out, no connection."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence

from datamig_nb.checks import Check, RowCheck
from datamig_nb.expressions import BATCH_MARK
from datamig_nb.names import KEYWORDS, TOKENS, TableName, literal, quote
from datamig_nb.steps import Backfill, InsertRows, KeepInStep

# PostgreSQL folds ASCII letters only.
_FOLDED = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def columns_read(expression: str, columns: Iterable[str], row: str = "") -> tuple[str, ...]:
    """Those of ``columns`` that the expression names, in the order of ``columns``.

    A name that means something else, a function's for instance, counts too: reading one column
    too many is harmless where this is used.  ``row`` is the name of the table: where it stands for
    the whole row, as in ``to_jsonb(player)``, all columns are read.
    """
    names: set[str] = set()
    for match in TOKENS.finditer(expression):
        if (name := folded(match)) is not None:
            is_word = match["plain"] and name in KEYWORDS  # ORDER, where the table is "order"
            of_schema = expression[: match.start()].rstrip().endswith(".")  # a table to read from
            is_row = name == row and not _COLUMN_OF.match(expression, match.end())
            if is_row and not is_word and not of_schema:
                return tuple(columns)
            names.add(name)
    return tuple(column for column in columns if column in names)


def folded(token: re.Match[str]) -> str | None:
    """The name that a token of SQL is, as PostgreSQL folds it; None where it is something else."""
    if token["plain"]:
        return token["plain"].translate(_FOLDED)
    return token["quoted"].replace('""', '"') if token["quoted"] else None


# Give another value each time, though PostgreSQL calls them stable within a transaction.
CLOCKS = frozenset(
    "now current_timestamp current_date current_time localtime localtimestamp transaction_timestamp"
    " statement_timestamp".split()
)


def names_in(expression: str) -> frozenset[str]:
    """Every name in an expression, as PostgreSQL folds it."""
    names = map(folded, TOKENS.finditer(expression))
    return frozenset(name for name in names if name is not None)


def inlined(text: str, queries: Mapping[TableName, str]) -> str:
    """SQL in which the query of a table stands in the place of its name, as a FROM item."""
    for table, query in queries.items():
        alias = rf"\s+(?:as\s|(?!(?:{'|'.join(KEYWORDS)})\b)[a-z_\"])"
        item = rf'(?<![\w."]){re.escape(table.sql)}(?![\w."])(?P<alias>(?={alias}))?'

        def whole(found: re.Match[str], table: TableName = table, query: str = query) -> str:
            name = "" if found["alias"] is not None else f" AS {quote(table.name)}"
            return f"(\n{query}\n){name}"

        text = re.sub(item, whole, text, flags=re.IGNORECASE)
    return text


# What makes a table's name in front of it part of a column's; "player.*" is the whole row.
_COLUMN_OF = re.compile(r"\s*\.(?!\s*\*)")


def indent(text: str, by: int) -> str:
    """Move all lines but the first right; a text with a literal over several lines stays."""
    if any("\n" in match[0] for match in TOKENS.finditer(text) if match[0][0] in "'$eE\""):
        return text
    return text.replace("\n", "\n" + " " * by)


def column_of(backfill: Backfill, column: str) -> str:
    """The column as the backfill's statement names it: not to be taken for a partner's."""
    name = "" if backfill.using is None else f"{quote(backfill.table.name)}."
    return f"{name}{quote(column)}"


def differ(columns: Sequence[str], expressions: Sequence[str]) -> str:
    """Condition: the columns do not hold what the expressions give, NULL compared as a value."""
    left = columns[0] if len(columns) == 1 else f"({', '.join(columns)})"
    return f"{left} IS DISTINCT FROM ({', '.join(expressions)})"


# Types that PostgreSQL compares not at all, or not by their value.
_WITHOUT_EQUALITY = frozenset("json xml point line lseg box path polygon circle".split())


def has_equality(type: str) -> bool:
    """Whether ``=`` compares values of the type."""
    return type.lower().replace("[]", "") not in _WITHOUT_EQUALITY


def comparable(value: str, type: str) -> str:
    """The value as ``IS DISTINCT FROM`` takes it: what has no equality goes by its text."""
    return value if has_equality(type) else f"({value})::text"


def all_null(columns: Iterable[str]) -> str:
    """Condition: nothing is in any of the columns."""
    return " AND ".join(f"{column} IS NULL" for column in columns)


def conditions(*given: str | None) -> str:
    """The WHERE clause of the conditions that are there, one a line."""
    return "\n   AND ".join(indent(condition, 7) for condition in given if condition)


def parenthesised(condition: str | None) -> str | None:
    """The condition as one term of several."""
    return None if condition is None else f"({indent(condition, 1)})"


def update_batch(backfill: Backfill, expressions: Mapping[str, str], guard: str | None) -> str:
    """The UPDATE of one batch; ``{batch}`` stands for its range of keys.

    ``expressions`` gives the text of each column's expression, ``guard`` the condition of a row
    that is not done yet.
    """
    assignments = ",\n       ".join(
        f"{quote(column)} = {indent(text, 12)}" for column, text in expressions.items()
    )
    source = "" if backfill.using is None else f"\n  FROM {backfill.using}"
    where = conditions(BATCH_MARK, parenthesised(backfill.on), parenthesised(backfill.where), guard)
    return f"UPDATE {backfill.table.sql}\n   SET {assignments}{source}\n WHERE {where}"


def remaining(
    backfill: Backfill, guard: str, before: str | None = None, aside: str | None = None
) -> str:
    """Count the rows of a backfill that are not done yet; ``before`` as of :func:`not_begun`.

    ``aside`` is a condition of rows that were set aside: nothing is evaluated over them.
    """
    source = "" if backfill.using is None else f", {backfill.using}"
    undone = (parenthesised(backfill.where), guard)
    if aside is not None:
        rest = " AND ".join(condition for condition in undone if condition)
        undone = (f"CASE WHEN {aside}\n     THEN FALSE ELSE {rest} END",)
    where = conditions(parenthesised(backfill.on), *undone, before)
    return f"SELECT count(*) FROM {backfill.table.sql}{source}\n WHERE {where}"


def set_aside(backfill: Backfill, key: Sequence[str], revision: str, walk: str) -> str:
    """Condition: the row is in quarantine."""
    keys = ", ".join(column_of(backfill, part) for part in key) or "ctid"
    rows = f"(revision, step) = ({literal(revision)}, {literal(walk)})"
    return f"ROW({keys})::text IN (SELECT key FROM datamig.quarantine WHERE {rows})"


def not_begun(revision: str, walks: Iterable[str]) -> str | None:
    """Condition: none of these walks has begun, whose work would be taken for undone."""
    names = ", ".join(map(literal, walks))
    begun = f"SELECT FROM datamig.run WHERE revision = {literal(revision)} AND step IN ({names})"
    return f"NOT EXISTS ({begun})" if names else None


def joined_rows(backfill: Backfill, key: Sequence[str], failing: str) -> str:
    """Rows of a backfill with partners that meet a condition."""
    name = quote(backfill.table.name)
    keys = ", ".join(f"{name}.{quote(column)}" for column in key) or f"{name}.ctid"
    where = conditions(parenthesised(backfill.on), parenthesised(backfill.where), failing)
    return (
        f"SELECT {keys} FROM {backfill.table.sql}, {backfill.using}\n WHERE {where}\n"
        f" ORDER BY {keys}"
    )


def partners(backfill: Backfill, key: Sequence[str]) -> str:
    """Rows that find more than one partner, so that chance would choose its value."""
    name = quote(backfill.table.name)
    keys = ", ".join(f"{name}.{quote(column)}" for column in key) or f"{name}.ctid"
    where = conditions(parenthesised(backfill.on), parenthesised(backfill.where))
    return (
        f"SELECT {keys}, count(*) FROM {backfill.table.sql}, {backfill.using}\n WHERE {where}\n"
        f" GROUP BY {keys} HAVING count(*) > 1 ORDER BY {keys}"
    )


def hold_query(table: TableName, signals: Iterable[str]) -> str:
    """Why a walk over the table should wait, in words, or NULL."""
    reasons = {
        "replica_lag": (
            "(SELECT 'a replica is more than 10 seconds behind' FROM pg_stat_replication\n"
            "           WHERE replay_lag > interval '10 seconds' LIMIT 1)"
        ),
        "autovacuum": (
            "(SELECT 'vacuum is at work on the table' FROM pg_stat_progress_vacuum\n"
            f"           WHERE relid = {literal(table.sql)}::regclass LIMIT 1)"
        ),
        "lock_queue": (
            "(SELECT 'a session waits for a lock on the table' FROM pg_locks\n"
            f"           WHERE relation = {literal(table.sql)}::regclass AND NOT granted LIMIT 1)"
        ),
    }
    listed = ",\n       ".join(reasons[signal] for signal in signals)
    return f"SELECT nullif(concat_ws(', ', {listed}), '')"


def edited_rows(
    table: TableName, expressions: Mapping[str, str], differs: str, key: Sequence[str]
) -> str:
    """Rows whose filled columns hold something that the expressions do not give."""
    columns = [quote(column) for column in expressions]
    keys = ", ".join(map(quote, key)) or "ctid"
    return (
        f"SELECT {keys} FROM {table.sql}\n"
        f" WHERE num_nonnulls({', '.join(columns)}) > 0\n"
        f"   AND {differs}\n"
        f" ORDER BY {keys}"
    )


def source(step: InsertRows) -> str:
    """The query of the step as a FROM item."""
    return f"(\n{step.select}\n) AS source"


def run_once(rows: str, item: str, key: Sequence[str]) -> str:
    """Put the rows of a FROM item into a table, for batches to find them by a key, given as SQL."""
    keys = ", ".join(key)
    order, index = (
        (f"\n ORDER BY {keys}", f"\nCREATE INDEX ON {rows} ({keys});") if key else ("", "")
    )
    return (
        f"DROP TABLE IF EXISTS {rows};\nCREATE TABLE {rows} AS\n"
        f"SELECT * FROM {item}{order};{index}\nANALYZE {rows}"
    )


def failing_rows(check: Check, key: Sequence[str]) -> str:
    """The query of a check's failing rows; keys where the check reads the rows of one table."""
    if not isinstance(check, RowCheck):
        return check.failing
    keys = ", ".join(map(quote, key)) or "ctid"
    return (
        f"SELECT {keys} FROM {check.table.sql}\n WHERE {indent(check.failing, 7)}\n ORDER BY {keys}"
    )


def trigger_function(
    step: KeepInStep, expressions: dict[str, str], name: str, types: Mapping[str, str]
) -> str:
    """The trigger function ``datamig.name`` that computes the columns of a new or changed row."""
    columns = [quote(column) for column in expressions]
    new = [f"NEW.{column}" for column in columns]
    compared = [
        [comparable(f"{row}.{quote(c)}", types[c]) for c in types] for row in ("NEW", "OLD")
    ]
    values = ",\n           ".join(indent(text, 11) for text in expressions.values())
    return f"""CREATE OR REPLACE FUNCTION datamig.{quote(name)}() RETURNS trigger
LANGUAGE plpgsql AS $datamig$
#variable_conflict use_column
BEGIN
    -- An application that writes the new columns itself is not overruled.
    IF TG_OP = 'INSERT' THEN
        IF num_nonnulls({", ".join(new)}) > 0 THEN RETURN NEW; END IF;
    ELSIF {differ(*compared)} THEN
        RETURN NEW;
    END IF;
    SELECT {values}
      INTO {", ".join(new)}
      FROM (SELECT NEW.*) AS {quote(step.table.name)};
    RETURN NEW;
END
$datamig$"""


def trigger(step: KeepInStep, name: str, read: Sequence[str]) -> str:
    """The trigger that calls :func:`trigger_function`, when one of the columns read changes."""
    changed = f" OR UPDATE OF {', '.join(map(quote, read))}" if read else ""
    return (
        f"CREATE OR REPLACE TRIGGER {quote(name)}\n"
        f"BEFORE INSERT{changed} ON {step.table.sql}\n"
        f"FOR EACH ROW EXECUTE FUNCTION datamig.{quote(name)}()"
    )


def count_failing(checks: Sequence[RowCheck]) -> str:
    """Failing rows of several checks over one table, counted in one pass: c0, c1 and so on."""
    counts = ",\n       ".join(
        f"count(*) FILTER (WHERE {indent(check.failing, 29)}) AS c{number}"
        for number, check in enumerate(checks)
    )
    return f"SELECT {counts}\n  FROM {checks[0].table.sql}"

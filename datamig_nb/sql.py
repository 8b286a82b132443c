"""SQL as text from pure functions: a description in, a statement out, no connection."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence

from datamig_nb.migration import BATCH_MARK, Backfill, Check, KeepInStep, RowCheck
from datamig_nb.names import TOKENS, TableName, quote

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
        if match["quoted"] or match["plain"]:
            name = (match["quoted"] or "").replace('""', '"') or match["plain"].translate(_FOLDED)
            if name == row and not _COLUMN_OF.match(expression, match.end()):
                return tuple(columns)
            names.add(name)
    return tuple(column for column in columns if column in names)


# What makes a table's name in front of it part of a column's; "player.*" is the whole row.
_COLUMN_OF = re.compile(r"\s*\.(?!\s*\*)")


def indent(text: str, by: int) -> str:
    """Move all lines but the first right; a text with a literal over several lines stays."""
    if any("\n" in match[0] for match in TOKENS.finditer(text) if match[0][0] in "'$eE\""):
        return text
    return text.replace("\n", "\n" + " " * by)


def _differ(columns: Sequence[str], expressions: Sequence[str]) -> str:
    """Condition: the columns do not hold what the expressions give, NULL compared as a value."""
    left = columns[0] if len(columns) == 1 else f"({', '.join(columns)})"
    return f"{left} IS DISTINCT FROM ({', '.join(expressions)})"


def update_batch(backfill: Backfill, expressions: dict[str, str]) -> str:
    """The UPDATE of one batch; ``{batch}`` stands for its range of keys.

    ``expressions`` gives the text of each column's expression.  Rows that hold the values already
    are not written.
    """
    assignments = ",\n       ".join(
        f"{quote(column)} = {indent(text, 12)}" for column, text in expressions.items()
    )
    condition = "" if backfill.where is None else f"\n   AND ({indent(backfill.where, 8)})"
    columns = [quote(column) for column in expressions]
    return (
        f"UPDATE {backfill.table.sql}\n"
        f"   SET {assignments}\n"
        f" WHERE {BATCH_MARK}{condition}\n"
        f"   AND {_differ(columns, list(expressions.values()))}"
    )


def edited_rows(table: TableName, expressions: dict[str, str], key: Sequence[str]) -> str:
    """Rows whose filled columns hold something that the expressions do not give."""
    columns = [quote(column) for column in expressions]
    keys = ", ".join(map(quote, key))
    return (
        f"SELECT {keys} FROM {table.sql}\n"
        f" WHERE num_nonnulls({', '.join(columns)}) > 0\n"
        f"   AND {_differ(columns, list(expressions.values()))}\n"
        f" ORDER BY {keys}"
    )


def failing_rows(check: Check, key: Sequence[str]) -> str:
    """The query of a check's failing rows; keys where the check reads the rows of one table."""
    if not isinstance(check, RowCheck):
        return check.failing
    keys = ", ".join(map(quote, key)) or "ctid"
    return (
        f"SELECT {keys} FROM {check.table.sql}\n WHERE {indent(check.failing, 7)}\n ORDER BY {keys}"
    )


def trigger_function(step: KeepInStep, expressions: dict[str, str], name: str) -> str:
    """The trigger function ``datamig.name`` that computes the columns of a new or changed row."""
    columns = [quote(column) for column in expressions]
    new = [f"NEW.{column}" for column in columns]
    old = [f"OLD.{column}" for column in columns]
    values = ",\n           ".join(indent(text, 11) for text in expressions.values())
    return f"""CREATE OR REPLACE FUNCTION datamig.{quote(name)}() RETURNS trigger
LANGUAGE plpgsql AS $datamig$
#variable_conflict use_column
BEGIN
    -- An application that writes the new columns itself is not overruled.
    IF TG_OP = 'INSERT' THEN
        IF num_nonnulls({", ".join(new)}) > 0 THEN RETURN NEW; END IF;
    ELSIF {_differ(new, old)} THEN
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

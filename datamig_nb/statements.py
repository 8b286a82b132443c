"""SQL as text from pure functions: a description in, a statement out, no connection."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from datamig_nb.checks import Check, RowCheck
from datamig_nb.expressions import BATCH_MARK
from datamig_nb.names import TOKENS, TableName, literal, quote
from datamig_nb.steps import Backfill, DeleteRows, InsertRows, KeepInStep

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


def names_in(expression: str) -> frozenset[str]:
    """Every name in an expression, as PostgreSQL folds it."""
    return frozenset(
        (match["quoted"] or "").replace('""', '"') or match["plain"].translate(_FOLDED)
        for match in TOKENS.finditer(expression)
        if match["quoted"] or match["plain"]
    )


# What makes a table's name in front of it part of a column's; "player.*" is the whole row.
_COLUMN_OF = re.compile(r"\s*\.(?!\s*\*)")


def indent(text: str, by: int) -> str:
    """Move all lines but the first right; a text with a literal over several lines stays."""
    if any("\n" in match[0] for match in TOKENS.finditer(text) if match[0][0] in "'$eE\""):
        return text
    return text.replace("\n", "\n" + " " * by)


def differ(columns: Sequence[str], expressions: Sequence[str]) -> str:
    """Condition: the columns do not hold what the expressions give, NULL compared as a value."""
    left = columns[0] if len(columns) == 1 else f"({', '.join(columns)})"
    return f"{left} IS DISTINCT FROM ({', '.join(expressions)})"


def all_null(columns: Iterable[str]) -> str:
    """Condition: nothing is in any of the columns."""
    return " AND ".join(f"{column} IS NULL" for column in columns)


def _conditions(*conditions: str | None) -> str:
    """The WHERE clause of the conditions that are there, one a line."""
    return "\n   AND ".join(indent(condition, 7) for condition in conditions if condition)


def _parenthesised(condition: str | None) -> str | None:
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
    where = _conditions(
        BATCH_MARK, _parenthesised(backfill.on), _parenthesised(backfill.where), guard
    )
    return f"UPDATE {backfill.table.sql}\n   SET {assignments}{source}\n WHERE {where}"


def remaining(backfill: Backfill, guard: str) -> str:
    """Count the rows of a backfill that are not done yet."""
    source = "" if backfill.using is None else f", {backfill.using}"
    where = _conditions(_parenthesised(backfill.on), _parenthesised(backfill.where), guard)
    return f"SELECT count(*) FROM {backfill.table.sql}{source}\n WHERE {where}"


def partners(backfill: Backfill, key: Sequence[str]) -> str:
    """Rows that find more than one partner, so that chance would choose its value."""
    name = quote(backfill.table.name)
    keys = ", ".join(f"{name}.{quote(column)}" for column in key) or f"{name}.ctid"
    where = _conditions(_parenthesised(backfill.on), _parenthesised(backfill.where))
    return (
        f"SELECT {keys}, count(*) FROM {backfill.table.sql}, {backfill.using}\n WHERE {where}\n"
        f" GROUP BY {keys} HAVING count(*) > 1 ORDER BY {keys}"
    )


# ---------------------------------------------------------------- what is kept of changed rows


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The table that keeps old and new values of some columns of another one."""

    #: Its name, as SQL.
    name: str
    table: TableName
    #: Key of the table.
    key: tuple[str, ...]
    #: Columns that are kept -> their types.
    types: Mapping[str, str]

    def before(self, column: str) -> str:
        """Name of the old value."""
        return self._name(column, "before")

    def after(self, column: str) -> str:
        """Name of the new value."""
        return self._name(column, "after")

    def _name(self, column: str, when: str) -> str:
        name = f"{column}_{when}"
        if len(name.encode()) > 63 or name in self.key:
            name = f"{when}_{list(self.types).index(column) + 1}"
        return quote(name)

    @property
    def keys(self) -> str:
        """The key as a list."""
        return ", ".join(map(quote, self.key))


def keep_values(kept: Kept) -> tuple[str, str]:
    """Make the table; its index makes each row of the other one be kept once."""
    columns = [f"{quote(part)}" for part in kept.key]
    for column in kept.types:
        columns += [
            f"{quote(column)} AS {kept.before(column)}",
            f"{quote(column)} AS {kept.after(column)}",
        ]
    table = f"CREATE TABLE IF NOT EXISTS {kept.name} AS\nSELECT {', '.join(columns)}"
    schema, _, name = kept.name.partition(".")
    return (
        f"{table}\n  FROM {kept.table.sql} WITH NO DATA",
        f"CREATE UNIQUE INDEX IF NOT EXISTS {name}_key ON {schema}.{name} ({kept.keys})",
    )


def update_batch_keeping(
    backfill: Backfill, expressions: Mapping[str, str], guard: str | None, kept: Kept
) -> str:
    """The UPDATE of one batch that keeps, in the same statement, what it replaces."""
    name = quote(kept.table.name)
    keys = ", ".join(f"{name}.{quote(part)}" for part in kept.key)
    values = [
        f"{name}.{quote(column)} AS {kept.before(column)},\n"
        f"           CAST({indent(expressions[column], 16)} AS {kept.types[column]})"
        f" AS {kept.after(column)}"
        for column in kept.types
    ]
    source = "" if backfill.using is None else f", {backfill.using}"
    where = indent(
        _conditions(BATCH_MARK, _parenthesised(backfill.on), _parenthesised(backfill.where), guard),
        4,
    )
    others = {column: text for column, text in expressions.items() if column not in kept.types}
    values += [f"{indent(text, 11)} AS {quote(column)}" for column, text in others.items()]
    targets = [*(quote(column) for column in kept.types), *map(quote, others)]
    news = [*(f"batch.{kept.after(column)}" for column in kept.types)]
    news += [f"batch.{quote(column)}" for column in others]
    assignments = ", ".join(f"{a} = {b}" for a, b in zip(targets, news, strict=True))
    stored = ", ".join([kept.keys, *(f"{kept.before(c)}, {kept.after(c)}" for c in kept.types)])
    again = ", ".join(f"{kept.after(c)} = excluded.{kept.after(c)}" for c in kept.types)
    joined = " AND ".join(f"{name}.{quote(part)} = batch.{quote(part)}" for part in kept.key)
    return (
        f"WITH batch AS MATERIALIZED (\n    SELECT {keys},\n           "
        + ",\n           ".join(values)
        + f"\n      FROM {kept.table.sql}{source}\n     WHERE {where}\n"
        f"       FOR NO KEY UPDATE OF {name}\n), kept AS (\n"
        f"    INSERT INTO {kept.name} ({stored}) SELECT {stored} FROM batch\n"
        f"    ON CONFLICT ({kept.keys}) DO UPDATE SET {again}\n)\n"
        f"UPDATE {kept.table.sql} SET {assignments}\n  FROM batch WHERE {joined}"
    )


def restore_batch(kept: Kept) -> str:
    """The UPDATE of one batch that puts old values back where the new one is still there."""
    name = quote(kept.table.name)
    assignments = ",\n       ".join(
        f"{quote(c)} = CASE WHEN {name}.{quote(c)} IS NOT DISTINCT FROM kept.{kept.after(c)}"
        f" THEN kept.{kept.before(c)} ELSE {name}.{quote(c)} END"
        for c in kept.types
    )
    ours = " OR ".join(
        f"{name}.{quote(c)} IS NOT DISTINCT FROM kept.{kept.after(c)}" for c in kept.types
    )
    joined = " AND ".join(f"{name}.{quote(part)} = kept.{quote(part)}" for part in kept.key)
    return (
        f"UPDATE {kept.table.sql}\n   SET {assignments}\n  FROM {kept.name} AS kept\n"
        f" WHERE {BATCH_MARK} AND {joined}\n   AND ({ours})"
    )


def note_conflicts(kept: Kept, revision: str) -> str:
    """Note the rows whose values were edited since, and so were not put back."""
    name = quote(kept.table.name)
    joined = " AND ".join(f"{name}.{quote(part)} = kept.{quote(part)}" for part in kept.key)
    columns = list(kept.types)
    olds = ", ".join(f"kept.{kept.before(c)}" for c in columns)
    news = ", ".join(f"kept.{kept.after(c)}" for c in columns)
    found = ", ".join(f"{name}.{quote(c)}" for c in columns)
    keys = ", ".join(f"kept.{quote(part)}" for part in kept.key)
    edited = differ(
        [f"{name}.{quote(c)}" for c in columns], [f"kept.{kept.before(c)}" for c in columns]
    )
    return (
        "INSERT INTO datamig.conflict (revision, relation, key, before, after, found)\n"
        f"SELECT {literal(revision)}, {literal(str(kept.table))}, concat_ws(', ', {keys}),\n"
        f"       jsonb_build_array({olds}), jsonb_build_array({news}), jsonb_build_array({found})\n"
        f"  FROM {kept.name} AS kept JOIN {kept.table.sql} ON {joined}\n WHERE {edited}"
    )


# ---------------------------------------------------------------- rows put in and taken out


def insert_batch(step: InsertRows, columns: Sequence[str], kept: str | None) -> str:
    """The INSERT of one batch; ``kept`` is a table that gets a copy of the rows."""
    names = ", ".join(map(quote, columns))
    conflict = "" if step.on_conflict is None else f"\nON CONFLICT {step.on_conflict}"
    insert = (
        f"INSERT INTO {step.table.sql} ({names})\nSELECT {names} FROM {source(step)}\n"
        f" WHERE {BATCH_MARK}{conflict}"
    )
    if kept is None:
        return insert
    return f"WITH put AS (\n{insert}\nRETURNING *\n)\nINSERT INTO {kept} SELECT * FROM put"


def source(step: InsertRows) -> str:
    """The query of the step as a FROM item."""
    return f"(\n{step.select}\n) AS source"


def delete_batch(step: DeleteRows, kept: str | None) -> str:
    """The DELETE of one batch; ``kept`` is a table that gets the rows."""
    delete = f"DELETE FROM {step.table.sql}\n WHERE {BATCH_MARK}\n   AND ({indent(step.where, 8)})"
    if kept is None:
        return delete
    return f"WITH gone AS (\n{delete}\nRETURNING *\n)\nINSERT INTO {kept} SELECT * FROM gone"


def still_there(step: DeleteRows) -> str:
    """Count the rows that are to be removed."""
    return f"SELECT count(*) FROM {step.table.sql}\n WHERE {step.where}"


def keep_rows(table: TableName, kept: str) -> str:
    """Make a table that holds whole rows of another one."""
    return f"CREATE TABLE IF NOT EXISTS {kept} (LIKE {table.sql})"


def put_back_batch(table: TableName, columns: Sequence[str], kept: str) -> str:
    """The INSERT of one batch of kept rows into the table that they were deleted from."""
    names = ", ".join(map(quote, columns))
    return (
        f"INSERT INTO {table.sql} ({names}) OVERRIDING SYSTEM VALUE\n"
        f"SELECT {names} FROM {kept} AS kept\n WHERE {BATCH_MARK}\nON CONFLICT DO NOTHING"
    )


def take_out_batch(table: TableName, key: Sequence[str], kept: str) -> str:
    """The DELETE of one batch of inserted rows that nobody edited since."""
    name = quote(table.name)
    joined = " AND ".join(f"{name}.{quote(part)} = kept.{quote(part)}" for part in key)
    return (
        f"DELETE FROM {table.sql}\n USING {kept} AS kept\n WHERE {BATCH_MARK} AND {joined}\n"
        f"   AND {name}.*::text = kept.*::text"
    )


def hold_query(table: TableName, signals: Iterable[str]) -> str:
    """Why a walk over the table should wait, in words, or NULL."""
    reasons = {
        "replica_lag": (
            "(SELECT 'a replica is behind: ' || max(replay_lag) FROM pg_stat_replication\n"
            "           HAVING max(replay_lag) > interval '10 seconds')"
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


def edited_rows(table: TableName, expressions: dict[str, str], key: Sequence[str]) -> str:
    """Rows whose filled columns hold something that the expressions do not give."""
    columns = [quote(column) for column in expressions]
    keys = ", ".join(map(quote, key))
    return (
        f"SELECT {keys} FROM {table.sql}\n"
        f" WHERE num_nonnulls({', '.join(columns)}) > 0\n"
        f"   AND {differ(columns, list(expressions.values()))}\n"
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
    ELSIF {differ(new, old)} THEN
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

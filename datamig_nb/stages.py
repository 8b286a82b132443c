"""Schema changes in stages, so that no strong lock is held while a table is read: pure text.

Each statement is a transaction of its own and may be sent again after a stop at any point: it says
IF NOT EXISTS or IF EXISTS where PostgreSQL has it, and asks the catalog first where it has not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from datamig_nb.errors import MigrationError
from datamig_nb.names import MOST_NAME_BYTES, TableName, cut, literal, quote


class Condition(NamedTuple):
    """What holds, in words, and the query of what breaks it: keys first, no row while it holds."""

    holds: str
    failing: str


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A statement of a step, to be sent as it stands."""

    sql: str
    #: True: PostgreSQL refuses it in a transaction block, for it is done CONCURRENTLY.
    outside: bool = False
    #: What the rows must meet; its query names those that made the statement fail.
    validates: Condition | None = None
    #: To be sent when rows made the statement fail: what is half made would refuse writes.
    on_failure: Statement | None = None
    #: False: a statement of the user's own, which may do more when it is sent twice.
    repeatable: bool = True


@dataclass(frozen=True, kw_only=True)
class NoWayBack:
    """Why no statement undoes a step."""

    #: What would be lost, as a clause.
    reason: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the catalog says of the table that a step changes, before the migration."""

    #: Major version of the server; staged forms that only later ones have are not used.
    major: int = 14
    #: The table has partitions.
    partitioned: bool = False
    #: Columns of its key, () where it has none.
    key: tuple[str, ...] = ()
    #: The row that the step's definition query gave; None where it was not asked.
    definition: tuple[str | None, ...] | None = None


# ---------------------------------------------------------------- what the catalog holds


def regclass(table: TableName) -> str:
    """The table's oid as SQL; an error where there is no such table."""
    return f"{literal(table.sql)}::regclass"


def exists(rows: str) -> str:
    """Condition: the catalog has such rows; ``rows`` is FROM and WHERE without the first word."""
    return f"EXISTS (SELECT FROM {rows})"


def column_row(table: TableName, column: str, oid: str = "") -> str:
    """The catalog's row of a column, for :func:`exists`."""
    return (
        f"pg_attribute\n         WHERE attrelid = {oid or regclass(table)}"
        f" AND attname = {literal(column)}\n           AND NOT attisdropped"
    )


def constraint_row(table: TableName, name: str, oid: str = "") -> str:
    """The catalog's row of a constraint, for :func:`exists`."""
    return (
        f"pg_constraint\n         WHERE conrelid = {oid or regclass(table)}"
        f" AND conname = {literal(name)}"
    )


# ---------------------------------------------------------------- forms of statements


def plain(*statements: str) -> tuple[Statement, ...]:
    """Statements that say themselves what is there already."""
    return tuple(Statement(sql=statement) for statement in statements)


def when(
    condition: str,
    statement: str,
    *,
    validates: Condition | None = None,
    on_failure: Statement | None = None,
) -> Statement:
    """A statement that is sent only while a condition on the catalog holds."""
    block = f"    IF {condition} THEN\n        {statement};\n    END IF;"
    return Statement(sql=_do(block), validates=validates, on_failure=on_failure)


def _do(block: str) -> str:
    mark, number = "$datamig$", 2
    while mark in block:  # a name may hold anything
        mark, number = f"$datamig{number}$", number + 1
    return f"DO {mark}\nBEGIN\n{block}\nEND\n{mark}"


def drop_constraint(table: TableName, name: str) -> Statement:
    """Drop a constraint, if it is there."""
    return Statement(
        sql=f"ALTER TABLE IF EXISTS {table.sql} DROP CONSTRAINT IF EXISTS {quote(name)}"
    )


def drop_index(index: TableName) -> Statement:
    """Drop an index, if it is there; nobody waits for it."""
    return Statement(sql=f"DROP INDEX CONCURRENTLY IF EXISTS {index.sql}", outside=True)


def failing_rows(table: TableName, failing: str, key: Sequence[str]) -> str:
    """The rows that meet a condition, by key."""
    keys = ", ".join(map(quote, key)) or "ctid"
    return f"SELECT {keys} FROM {table.sql}\n WHERE {failing}\n ORDER BY {keys}"


def duplicates(
    table: TableName, columns: Sequence[str], *, where: str | None = None, nulls_too: bool = False
) -> Condition:
    """No two rows have the same values in the columns; NULL equals nothing, unless it shall."""
    names = ", ".join(map(quote, columns))
    wanted = [] if where is None else [f"({where})"]
    wanted += [] if nulls_too else [f"{quote(column)} IS NOT NULL" for column in columns]
    condition = f"\n WHERE {' AND '.join(wanted)}" if wanted else ""
    return Condition(
        f"no two rows of {table} have the same {', '.join(columns)}",
        f"SELECT {names}, count(*) AS times FROM {table.sql}{condition}\n"
        f" GROUP BY {names} HAVING count(*) > 1\n ORDER BY {names}",
    )


# ---------------------------------------------------------------- stages


def set_not_null(table: TableName, column: str, key: Sequence[str]) -> tuple[Statement, ...]:
    """Make a column NOT NULL: a CHECK that is proven spares it the scan, and has then served."""
    name = not_null_name(column)
    nullable = exists(f"{column_row(table, column)} AND NOT attnotnull")
    check = f"{quote(name)} CHECK ({quote(column)} IS NOT NULL)"
    drop = drop_constraint(table, name)
    return (
        when(
            f"{nullable}\n       AND NOT {exists(constraint_row(table, name))}",
            f"ALTER TABLE {table.sql}\n            ADD CONSTRAINT {check} NOT VALID",
        ),
        when(
            exists(f"{constraint_row(table, name)}\n           AND NOT convalidated"),
            f"ALTER TABLE {table.sql} VALIDATE CONSTRAINT {quote(name)}",
            validates=Condition(
                f"{column} of {table} without NULL",
                failing_rows(table, f"{quote(column)} IS NULL", key),
            ),
            on_failure=drop,
        ),
        *plain(f"ALTER TABLE {table.sql} ALTER COLUMN {quote(column)} SET NOT NULL"),
        drop,
    )


def add_identity(table: TableName, column: str, always: bool | None) -> tuple[Statement, ...]:
    """Make a column an identity, which goes on behind the highest value that is there."""
    sequence = f"pg_get_serial_sequence({literal(table.sql)}, {literal(column)})"
    kind = "ALWAYS" if always else "BY DEFAULT"
    return (
        when(
            exists(f"{column_row(table, column)} AND attidentity = ''"),
            f"ALTER TABLE {table.sql}\n            ALTER COLUMN {quote(column)}"
            f" ADD GENERATED {kind} AS IDENTITY",
        ),
        Statement(sql=f"SELECT setval({sequence}, max({quote(column)})) FROM {table.sql}"),
    )


def not_null_name(column: str) -> str:
    """Name of the CHECK that proves a column NOT NULL; no two columns of a table share one."""
    name = f"datamig_not_null_{column}"
    if len(name.encode()) <= MOST_NAME_BYTES:
        return name
    # By its beginning it is no name of a column that fits.
    return cut(f"datamig_notnull_{_hash(column)}_{column}")


def prove(
    table: TableName, name: str, add: str, validates: Condition | None
) -> tuple[Statement, ...]:
    """Add a CHECK or a foreign key for new rows first, then prove it for those that are there."""
    return (
        when(f"NOT {exists(constraint_row(table, name))}", f"{add} NOT VALID"),
        Statement(
            sql=f"ALTER TABLE {table.sql} VALIDATE CONSTRAINT {quote(name)}",
            validates=validates,
            on_failure=drop_constraint(table, name),
        ),
    )


def build_index(
    name: str, table: TableName, create: str, validates: Condition | None = None
) -> tuple[Statement, ...]:
    """Put away what a stopped build left, and build; a valid index is left alone.

    An INVALID index is renamed, which needs no strong lock, and dropped CONCURRENTLY by its new
    name: one statement cannot both look for it and drop it so.  The lock on the table, which
    stops neither reads nor writes, waits for a build under way: its index is INVALID too.
    """
    index, leftover = TableName(table.schema, name), TableName(table.schema, leftover_name(name))
    invalid = exists(
        f"pg_index\n         WHERE indexrelid = to_regclass({literal(index.sql)})"
        f"\n           AND indrelid = {regclass(table)} AND NOT indisvalid"
    )
    look = (
        f"    LOCK TABLE {table.sql} IN SHARE UPDATE EXCLUSIVE MODE;\n"
        f"    IF {invalid} THEN\n"
        f"        ALTER INDEX {index.sql} RENAME TO {quote(leftover.name)};\n"
        f"    END IF;"
    )
    return (
        *plain(_do(look)),
        drop_index(leftover),
        Statement(
            sql=create,
            outside=True,
            validates=validates,
            on_failure=drop_index(index) if validates else None,
        ),
    )


def leftover_name(index: str) -> str:
    """Name that an INVALID leftover of an index gets before it is dropped."""
    return cut(f"datamig_invalid_{_hash(index)}_{index}")


def use_index(table: TableName, name: str, kind: str, options: str = "") -> Statement:
    """Make a unique index a constraint of the same name; ``kind`` is UNIQUE or PRIMARY KEY."""
    return when(
        f"NOT {exists(constraint_row(table, name))}",
        f"ALTER TABLE {table.sql}\n            ADD CONSTRAINT {quote(name)}"
        f" {kind} USING INDEX {quote(name)}{options}",
    )


def concurrently(definition: str) -> str:
    """The statement that ``pg_get_indexdef`` gives, in the form that blocks nobody."""
    return re.sub(
        r"\ACREATE (UNIQUE )?INDEX ",
        lambda found: f"CREATE {found[1] or ''}INDEX CONCURRENTLY IF NOT EXISTS ",
        definition,
    )


def index_name(definition: str) -> str:
    """The name of the index that ``pg_get_indexdef`` tells of."""
    found = re.match(r'CREATE (?:UNIQUE )?INDEX ("(?:[^"]|"")+"|\S+) ', definition)
    assert found is not None
    return TableName.parse(found[1]).name


def require_whole(what: str, table: TableName, found: Found) -> None:
    """Refuse an index of a table with partitions: PostgreSQL builds it under a lock only."""
    if found.partitioned:
        raise MigrationError(
            f"PostgreSQL neither builds nor drops {what} CONCURRENTLY, for {str(table)!r} has"
            " partitions",
            "make it with sql(): CREATE INDEX … ON ONLY the table, CREATE INDEX CONCURRENTLY on"
            " each partition, ALTER INDEX … ATTACH PARTITION; or drop it with sql()",
        )


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]

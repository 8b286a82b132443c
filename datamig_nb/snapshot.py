"""What a database holds, so that two states of it can be compared: its schema and its rows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from datamig_nb.database import Database, run
from datamig_nb.errors import RehearsalError
from datamig_nb.names import TableName, quote
from datamig_nb.pg_programs import run_program, table_pattern
from datamig_nb.tables import read_table

#: Stands for a column: how many rows the table has.
ROWS = "number of rows"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a database holds: its schema as pg_dump writes it, and hashes of its tables."""

    schema: str
    #: Hashes of each table, by column; a table without a key has one hash for all columns.
    tables: Mapping[TableName, Mapping[str, str]]


def take_snapshot(
    db: Database,
    tables: Mapping[TableName, tuple[str, ...]],
    *,
    without: Collection[TableName] = (),
) -> Snapshot:
    """Hash those of the tables and columns that are there; dump the schema without some tables."""
    there = user_tables(db)
    present = {
        name: tuple(column for column in columns if column in there[name])
        for name, columns in tables.items()
        if name in there
    }
    return Snapshot(
        schema=_dump_schema(db, without),
        tables={name: hash_columns(db, name, columns) for name, columns in present.items()},
    )


def with_children(
    db: Database, names: Iterable[TableName]
) -> dict[TableName, tuple[TableName, ...]]:
    """The tables that hold the rows of each one named: itself and its partitions, in full."""
    with db.read_only("looking up the partitions") as connection:
        return {
            name: tuple(
                TableName(row.schema, row.name)
                for row in connection.execute(sa.text(_CHILDREN), {"name": name.sql})
            )
            for name in names
        }


def user_tables(db: Database) -> dict[TableName, tuple[str, ...]]:
    """The tables of all schemas but PostgreSQL's and our own, with their columns.

    A partitioned table has no rows of its own: its partitions are in the list beside it.
    """
    with db.read_only("listing the tables") as connection:
        rows = connection.execute(sa.text(_USER_TABLES)).all()
    return {TableName(row.schema, row.name): tuple(row.columns) for row in rows}


def hash_columns(db: Database, name: TableName, columns: tuple[str, ...]) -> dict[str, str]:
    """An order-free hash of each column together with its row's key, and the row count.

    Without a key, or where it is not among the columns, whole rows are hashed.

    Equal hashes mean equal values row by row, but for a chance of about 1 in 2^64 for each
    difference.  Values are compared as text, so that types without a hash count too.
    """
    with db.read_only(f"hashing {name}", timeout_seconds=3600) as connection:
        key = read_table(connection, name).key
        hashed, item = {"row": _ROW_HASH.format(_row(columns))}, f"ONLY {name.sql}"
        if key and {*key} <= {*columns}:
            # The key is hashed once a row, and is the seed of each column's hash.
            hashed = {column: _COLUMN_HASH.format(quote(column)) for column in columns}
            key_hash = f"hashtextextended({_row(key)}::text, 0) AS datamig_key"
            item = f"(SELECT *, {key_hash}\n          FROM {item} OFFSET 0) AS keyed"
        values = "".join(f",\n       coalesce({each}::text, '')" for each in hashed.values())
        found = run(connection, f"SELECT count(*)::text{values}\n  FROM {item}").one()
    return {ROWS: found[0], **dict(zip(hashed, found[1:], strict=True))}


def _row(columns: Iterable[str]) -> str:
    return f"ROW({', '.join(map(quote, columns))})"


# Rows with a key are all different, so none cancels another out.
_COLUMN_HASH = "bit_xor(hashtextextended({}::text, datamig_key))"
_ROW_HASH = "sum(hashtextextended({}::text, 0)::numeric)"


def differing(before: Snapshot, after: Snapshot) -> tuple[tuple[TableName, str], ...]:
    """The tables and columns whose values differ, or are gone; ``ROWS`` is the number of rows."""
    return tuple(
        (name, column)
        for name, hashes in before.tables.items()
        for column, value in hashes.items()
        if after.tables.get(name, {}).get(column) != value
    )


def in_words(name: TableName, column: str) -> str:
    """A table and column that differ."""
    return f"the number of rows of {name}" if column == ROWS else f"{name}.{column}"


def differences(before: Snapshot, after: Snapshot) -> tuple[str, ...]:
    """What differs between two snapshots, in words, the schema last."""
    found = [in_words(name, column) for name, column in differing(before, after)]
    old, new = before.schema.splitlines(), after.schema.splitlines()
    changed = [line for line in old if line not in new] + [line for line in new if line not in old]
    if before.schema != after.schema:
        found.append(
            f"the schema: {'; '.join(line.strip() for line in changed[:5]) or 'its order'}"
        )
    return tuple(found)


def count_differing(before: Database, after: Database, name: TableName, column: str) -> int | None:
    """Rows of a table that hold another value in one database than in the other.

    Rows that are only in one of them do not count; None where the table has no key.
    """
    with before.read_only(f"comparing {name}", timeout_seconds=3600) as source:
        key = read_table(source, name).key
        if not key or column not in user_tables(after).get(name, ()):
            return None
        keys, value = ", ".join(map(quote, key)), quote(column)
        query = f"SELECT ROW({keys})::text, {value}::text FROM ONLY {name.sql}"
        ours: Any = source.connection.driver_connection
        with after.engine.connect() as target:
            theirs: Any = target.connection.driver_connection
            run(target, "CREATE TEMPORARY TABLE datamig_before (key text, value text)")
            with (
                ours.cursor().copy(f"COPY ({query}) TO STDOUT") as rows,
                theirs.cursor().copy("COPY datamig_before FROM STDIN") as copy,
            ):
                for piece in rows:
                    copy.write(piece)
            differ = f"""
SELECT count(*) FROM datamig_before
  JOIN ({query}) AS now (key, now) USING (key) WHERE value IS DISTINCT FROM now"""
            return int(
                run(target, differ).scalar_one()
            )  # the temporary table goes with the rollback


def keep_before(db: Database, tables: Iterable[TableName], checks: Iterable[str]) -> None:
    """Copy the tables that checks read as ``datamig_before.NAME`` into that schema."""
    wanted = {name for text in checks for name in re.findall(r"\bdatamig_before\.(\w+)", text)}
    known = {name.name: name for name in tables}
    if not wanted:
        return
    if missing := wanted - known.keys():
        raise RehearsalError(
            f"a check reads datamig_before.{min(missing)}, but there was no such table",
            "name a table that is there before the upgrade, without its schema",
        )
    with db.engine.begin() as connection:
        run(connection, "CREATE SCHEMA datamig_before")
        for name in sorted(wanted):
            table = f"datamig_before.{quote(name)}"
            run(connection, f"CREATE TABLE {table} AS TABLE {known[name].sql}")


def _dump_schema(db: Database, without: Collection[TableName]) -> str:
    result = run_program(
        "pg_dump",
        db,
        "--schema-only",
        "--exclude-schema=datamig",
        "--exclude-schema=datamig_before",
        *(f"--exclude-table={table_pattern(name)}" for name in without),
    )
    if result.returncode:
        raise RehearsalError(
            f"pg_dump failed: {result.stderr.strip().splitlines()[-1]}",
            "use a pg_dump that is not older than the server",
        )
    # \restrict carries a random word; comments carry versions.
    return re.sub(r"^(\\(un)?restrict .*|--.*)\n", "", result.stdout, flags=re.MULTILINE)


_CHILDREN = """
WITH RECURSIVE family (oid) AS (
    SELECT to_regclass(:name)::oid
     UNION SELECT inhrelid FROM pg_inherits JOIN family ON inhparent = family.oid
)
SELECT nspname AS schema, relname AS name
  FROM family
  JOIN pg_class USING (oid)
  JOIN pg_namespace ON pg_namespace.oid = relnamespace
 ORDER BY nspname, relname
"""

_USER_TABLES = """
SELECT nspname AS schema,
       relname AS name,
       array_agg(attname::text ORDER BY attnum) AS columns
  FROM pg_class
  JOIN pg_namespace ON pg_namespace.oid = relnamespace
  JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
 WHERE relkind IN ('r', 'p')
   AND nspname NOT IN ('pg_catalog', 'information_schema', 'datamig', 'datamig_before')
   AND nspname NOT LIKE 'pg_temp%' AND nspname NOT LIKE 'pg_toast%'
 GROUP BY nspname, relname
 ORDER BY nspname, relname
"""

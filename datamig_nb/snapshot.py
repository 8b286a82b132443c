"""What a database holds, so that two states of it can be compared: its schema and its rows."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from datamig_nb.database import Database, read_table, run
from datamig_nb.errors import RehearsalError
from datamig_nb.names import TableName, quote
from datamig_nb.programs import address, environment, table_pattern
from datamig_nb.server import binaries


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
    """Hash the columns of the tables, and dump the schema without the tables left out."""
    return Snapshot(
        schema=_dump_schema(db, without),
        tables={name: hash_columns(db, name, columns) for name, columns in tables.items()},
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

    Equal hashes mean equal values row by row, but for a chance of about 1 in 2^64 for each
    difference.  Values are compared as text, so that types without a hash count too.
    """
    with db.read_only(f"hashing {name}", timeout_seconds=3600) as connection:
        key = read_table(connection, name).key
        groups = {column: (*key, column) for column in columns} if key else {"row": columns}
        sums = "".join(
            f",\n       coalesce(sum(hashtextextended(ROW({', '.join(map(quote, group))})::text, 0)"
            f"::numeric), 0)::text AS h{number}"
            for number, group in enumerate(groups.values())
        )
        statement = f"SELECT count(*)::text AS row_count{sums}\n  FROM ONLY {name.sql}"
        found = run(connection, statement).one()
    return {"number of rows": found[0], **dict(zip(groups, found[1:], strict=True))}


def differences(before: Snapshot, after: Snapshot) -> tuple[str, ...]:
    """What differs between two snapshots, in words, the schema last."""
    found = [
        f"{name}.{column}" if column != "number of rows" else f"the number of rows of {name}"
        for name, hashes in before.tables.items()
        for column, value in hashes.items()
        if after.tables.get(name, {}).get(column) != value
    ]
    old, new = before.schema.splitlines(), after.schema.splitlines()
    changed = [line for line in old if line not in new] + [line for line in new if line not in old]
    if before.schema != after.schema:
        found.append(
            f"the schema: {'; '.join(line.strip() for line in changed[:5]) or 'its order'}"
        )
    return tuple(found)


def _dump_schema(db: Database, without: Collection[TableName]) -> str:
    result = subprocess.run(
        [
            binaries() / "pg_dump",
            "--schema-only",
            "--exclude-schema=datamig",
            *(f"--exclude-table={table_pattern(name)}" for name in without),
            *address(db),
        ],
        env=environment(db),
        capture_output=True,
        text=True,
        check=False,
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
   AND nspname NOT IN ('pg_catalog', 'information_schema', 'datamig')
   AND nspname NOT LIKE 'pg_temp%' AND nspname NOT LIKE 'pg_toast%'
 GROUP BY nspname, relname
 ORDER BY nspname, relname
"""

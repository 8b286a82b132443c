"""A copy of a database to rehearse on, and what to compare it by.

The source is only read: by ``CREATE DATABASE … TEMPLATE`` or by ``pg_dump``.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from datamig_nb.database import Database, read_table, run
from datamig_nb.errors import PermissionDeniedError, RehearsalError
from datamig_nb.names import TableName, quote
from datamig_nb.server import binaries

# Clones begin so; the process id behind the revision keeps two rehearsals apart.
PREFIX = "datamig_clone_"

_IN_USE, _NOT_PERMITTED = "55006", "42501"


@contextmanager
def cloned(source: Database, label: str) -> Generator[Database]:
    """A copy of the source on the same server, dropped at the end whatever happens.

    Raises
    ------
    PermissionDeniedError
        If the role may not create databases.
    RehearsalError
        If the copy could not be made.
    """
    clone = source.at(f"{PREFIX}{label}_{os.getpid()}")
    drop_clone(clone)
    try:
        _copy(source, clone)
        yield clone
    finally:
        drop_clone(clone)


def drop_clone(clone: Database) -> None:
    """Drop a clone and the sessions on it, if it is there."""
    name = str(clone.url.database)
    assert name.startswith(PREFIX), "only a clone is ever dropped"
    _maintain(clone, f"DROP DATABASE IF EXISTS {quote(name)} WITH (FORCE)")


def _copy(source: Database, clone: Database) -> None:
    name, template = quote(str(clone.url.database)), quote(str(source.url.database))
    try:
        _maintain(source, f"CREATE DATABASE {name} TEMPLATE {template}")
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if state == _NOT_PERMITTED:
            raise PermissionDeniedError(
                f"role {source.url.username!r} may not copy the database",
                "grant it CREATEDB (ALTER ROLE … CREATEDB), or rehearse on a server of your own",
            ) from error
        if state != _IN_USE:  # other sessions on the source: dump and restore instead
            raise RehearsalError(
                f"the clone could not be made: {error.orig}", "see the server's log"
            ) from error
        _maintain(source, f"CREATE DATABASE {name} TEMPLATE template0")
        _dump_and_restore(source, clone)


def _dump_and_restore(source: Database, clone: Database) -> None:
    dump = subprocess.Popen(
        [binaries() / "pg_dump", "--format=custom", "--compress=0", *_address(source)],
        env=_environment(source),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    restore = subprocess.run(
        [binaries() / "pg_restore", "--exit-on-error", "--no-owner", *_address(clone)],
        env=_environment(clone),
        stdin=dump.stdout,
        stderr=subprocess.PIPE,
        check=False,
    )
    assert dump.stderr is not None
    complaint = dump.stderr.read() + restore.stderr
    if dump.wait() or restore.returncode:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:]
        raise RehearsalError(
            f"the clone could not be made with pg_dump and pg_restore: {' '.join(last)}",
            "close other sessions on the database, so that it can be copied whole",
        )


def _maintain(db: Database, statement: str) -> None:
    """A statement that no transaction may hold, sent from the maintenance database."""
    engine = sa.create_engine(db.at("postgres").url, poolclass=NullPool)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        run(connection, statement)


# ---------------------------------------------------------------- comparison


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a database holds: its schema as pg_dump writes it, and hashes of its tables."""

    schema: str
    #: Hashes of each table, by column; a table without a key has one hash for all columns.
    tables: Mapping[TableName, Mapping[str, str]]


def take_snapshot(db: Database, tables: Mapping[TableName, tuple[str, ...]]) -> Snapshot:
    """Hash the columns of the tables, and dump the schema."""
    return Snapshot(
        schema=_dump_schema(db),
        tables={name: hash_columns(db, name, columns) for name, columns in tables.items()},
    )


def user_tables(db: Database) -> dict[TableName, tuple[str, ...]]:
    """The tables of all schemas but PostgreSQL's and our own, with their columns."""
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


def _dump_schema(db: Database) -> str:
    result = subprocess.run(
        [
            binaries() / "pg_dump",
            "--schema-only",
            "--exclude-schema=datamig",
            f"--exclude-table=*.{VERSION_TABLE}",
            *_address(db),
        ],
        env=_environment(db),
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


# Alembic's version table of a rehearsal: apart from the project's own, which the clone may hold.
VERSION_TABLE = "datamig_rehearsal_version"


def _address(db: Database) -> list[str]:
    url = db.url.set(drivername="postgresql", password=None)
    return [f"--dbname={url.render_as_string()}"]


def _environment(db: Database) -> dict[str, str]:
    password = {"PGPASSWORD": str(db.url.password)} if db.url.password else {}
    return {**os.environ, **password}


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

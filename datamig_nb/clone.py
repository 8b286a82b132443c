"""A copy of a database to rehearse on, and what to compare it by.

The source is only read: by ``CREATE DATABASE … TEMPLATE`` or by ``pg_dump``.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from datamig_nb.database import Database, explained, read_table, run
from datamig_nb.errors import PermissionDeniedError, RehearsalError
from datamig_nb.names import TableName, literal, quote
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
    with explained("making a clone", clone.at("postgres").url):
        drop_clone(clone)  # one that a killed process left
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
        if state not in (_IN_USE, _NOT_PERMITTED):
            raise RehearsalError(
                f"the clone could not be made: {error.orig}", "see the server's log"
            ) from error
        # Others are connected, or the source is somebody else's: it can be read all the same.
        _create_alike(source, clone)
        _dump_and_restore(source, clone)
    _copy_settings(source, clone)


def _create_alike(source: Database, clone: Database) -> None:
    """An empty database with the encoding and the locale of the source."""
    with source.read_only("looking up the database") as connection:
        like = connection.execute(sa.text(_LIKE)).scalar_one()
    options = f"ENCODING {literal(like['encoding'])}"
    for option in ("LC_COLLATE", "LC_CTYPE"):
        options += f" {option} {literal(like[option])}"
    provider = like["provider"]
    if provider is not None:  # PostgreSQL 15 and newer
        kind = {"c": "libc", "i": "icu", "b": "builtin"}[provider]
        options += f" LOCALE_PROVIDER {kind}"
        if provider != "c":
            options += f" {kind.upper()}_LOCALE {literal(like['locale'])}"
    name = quote(str(clone.url.database))
    try:
        _maintain(source, f"CREATE DATABASE {name} TEMPLATE template0 {options}")
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _NOT_PERMITTED:
            raise PermissionDeniedError(
                f"role {source.url.username!r} may not create a database for the clone",
                "grant it CREATEDB (ALTER ROLE … CREATEDB), or rehearse on a server of your own",
            ) from error
        raise RehearsalError(
            f"the clone could not be made: {error.orig}", "see the server's log"
        ) from error


def _dump_and_restore(source: Database, clone: Database) -> None:
    # pg_restore sets transaction_timeout, which servers before 17 do not know: one error there.
    at_once, passed = (["--exit-on-error"], {0}) if source.major >= 17 else ([], {0, 1})
    with subprocess.Popen(
        [binaries() / "pg_dump", "--format=custom", "--compress=0", *_address(source)],
        env=_environment(source),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as dump:
        assert dump.stdout is not None
        assert dump.stderr is not None
        restore = subprocess.run(
            [binaries() / "pg_restore", *at_once, "--no-owner", *_address(clone)],
            env=_environment(clone),
            stdin=dump.stdout,
            stderr=subprocess.PIPE,
            check=False,
        )
        dump.stdout.close()  # where pg_restore gave up, pg_dump must not wait for a reader
        complaint = dump.stderr.read() + restore.stderr
    errors = [
        line
        for line in complaint.decode(errors="replace").splitlines()
        if ": error: " in line and '"transaction_timeout"' not in line
    ]
    if dump.returncode or restore.returncode not in passed or errors:
        raise RehearsalError(
            f"the clone could not be made with pg_dump and pg_restore: {' '.join(errors[:1])}",
            "give the role the right to read all of the database, or close its other sessions",
        )


def _copy_settings(source: Database, clone: Database) -> None:
    """Give the clone what ALTER DATABASE … SET says of the source: no copy takes it along."""
    name = quote(str(clone.url.database))
    engine = source.at("postgres").engine
    with explained("copying the database's settings", source.url), engine.begin() as connection:
        found = connection.execute(sa.text(_SETTINGS), {"name": source.url.database}).all()
        for setting, value in found:
            try:
                with connection.begin_nested():
                    connection.execute(
                        sa.text("SELECT set_config(:setting, :value, true)"),
                        {"setting": setting, "value": value},
                    )
                    run(connection, f"ALTER DATABASE {name} SET {setting} FROM CURRENT")
            except DBAPIError as error:  # a setting that only a superuser may give
                if getattr(error.orig, "sqlstate", None) != _NOT_PERMITTED:
                    raise


def _maintain(db: Database, statement: str) -> None:
    """A statement that no transaction may hold, sent from the maintenance database."""
    engine = db.at("postgres").engine
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
    # set(password=None) would leave the password as it is, and render it as ***
    url = db.url._replace(drivername="postgresql", password=None)
    return [f"--dbname={url.render_as_string()}"]


def _environment(db: Database) -> dict[str, str]:
    password = {"PGPASSWORD": str(db.url.password)} if db.url.password else {}
    return {**os.environ, "LC_ALL": "C", **password}


_LIKE = """
SELECT jsonb_build_object(
           'encoding', pg_encoding_to_char(encoding),
           'LC_COLLATE', datcollate,
           'LC_CTYPE', datctype,
           'provider', row ->> 'datlocprovider',
           'locale', coalesce(row ->> 'datlocale', row ->> 'daticulocale'))
  FROM pg_database CROSS JOIN LATERAL to_jsonb(pg_database) AS row
 WHERE datname = current_database()
"""

# What a session of this role gets there; what is set for the role counts more.
_SETTINGS = """
SELECT split_part(setting, '=', 1), substr(setting, strpos(setting, '=') + 1)
  FROM pg_db_role_setting CROSS JOIN LATERAL unnest(setconfig) AS setting
 WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = :name)
   AND setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user))
 ORDER BY setrole
"""

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

"""A copy of a database to rehearse on.

The source is only read: by ``CREATE DATABASE … TEMPLATE`` or by ``pg_dump``.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from datamig_nb.database import Database, explained, run
from datamig_nb.errors import PermissionDeniedError, RehearsalError
from datamig_nb.names import literal, quote
from datamig_nb.programs import address, environment
from datamig_nb.server import binaries

# Clones begin so; the process id behind the revision keeps two rehearsals apart.
PREFIX = "datamig_clone_"

_IN_USE, _NOT_PERMITTED = "55006", "42501"


@dataclass(frozen=True, kw_only=True, repr=False)
class Clone(Database):
    """A copy of a database, made to be written and dropped."""

    #: How it was made and what it lacks, in words.
    made: str = ""


@contextmanager
def cloned(source: Database, label: str) -> Generator[Clone]:
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
        made = _copy(source, clone)
        yield Clone(url=clone.url, version=clone.version, made=made)
    finally:
        drop_clone(clone)


def drop_clone(clone: Database) -> None:
    """Drop a clone and the sessions on it, if it is there."""
    name = str(clone.url.database)
    assert name.startswith(PREFIX), "only a clone is ever dropped"
    _maintain(clone, f"DROP DATABASE IF EXISTS {quote(name)} WITH (FORCE)")


def _copy(source: Database, clone: Database) -> str:
    name, template = quote(str(clone.url.database)), quote(str(source.url.database))
    try:
        _maintain(source, f"CREATE DATABASE {name} TEMPLATE {template}")
        made = "copied by the server"
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if state not in (_IN_USE, _NOT_PERMITTED):
            raise RehearsalError(
                f"the clone could not be made: {error.orig}", "see the server's log"
            ) from error
        # Others are connected, or the source is somebody else's: it can be read all the same.
        _create_alike(source, clone)
        _dump_and_restore(source, clone)
        made = "copied with pg_dump and pg_restore"
    _copy_settings(source, clone)
    return made


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
        [binaries() / "pg_dump", "--format=custom", "--compress=0", *address(source)],
        env=environment(source),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as dump:
        assert dump.stdout is not None
        assert dump.stderr is not None
        restore = subprocess.run(
            [binaries() / "pg_restore", *at_once, "--no-owner", *address(clone)],
            env=environment(clone),
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

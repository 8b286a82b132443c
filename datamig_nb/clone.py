"""A copy of a database to rehearse on.

The source is only read: by ``CREATE DATABASE … TEMPLATE`` or by ``pg_dump``.
"""

from __future__ import annotations

import subprocess
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from datamig_nb.clones import claimed, create
from datamig_nb.database import Database, embedded, explained, run
from datamig_nb.errors import MissingExtraError, PermissionDeniedError, RehearsalError
from datamig_nb.names import literal, quote
from datamig_nb.pg_programs import address, environment
from datamig_nb.server_setup import binaries

_IN_USE, _NOT_PERMITTED = "55006", "42501"

# From here on the files of a database are copied faster than its pages are logged.
_LARGE_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True, repr=False)
class Clone(Database):
    """A copy of a database, made to be written and dropped."""

    #: How it was made and what it lacks, in words.
    made: str = ""
    #: Rows of the source's tables, about, where the copy does not hold them all.
    source_rows: Mapping[str, int] = field(default_factory=dict[str, int])


@contextmanager
def cloned(source: Database, label: str) -> Generator[Clone]:
    """A copy of the source, dropped at the end whatever happens.

    It lies on the same server; on the embedded server where the role may not create databases
    there.

    Raises
    ------
    PermissionDeniedError
        If the role may not create databases, and there is no embedded server.
    RehearsalError
        If the copy could not be made.
    """
    server = _server(source)
    with claimed(server, label) as place:
        made = _copy(source, place) if server is source else _copy_across(source, place)
        yield Clone(url=place.url, version=place.version, made=made)


def _server(source: Database) -> Database:
    with source.read_only("looking up the role") as connection:
        if connection.execute(sa.text(_MAY_CREATE)).scalar_one():
            return source
    try:
        return embedded()
    except MissingExtraError as error:
        raise PermissionDeniedError(
            f"role {source.url.username!r} may not create a database for the clone",
            "grant it CREATEDB (ALTER ROLE … CREATEDB), or let the clone lie on this machine: "
            "python -m pip install 'datamig-nb[embedded]'",
        ) from error


def _copy(source: Database, clone: Database) -> str:
    template = f"TEMPLATE {quote(str(source.url.database))}{_strategy(source)}"
    try:
        create(clone, template, source)
        made = "copied by the server"
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in (_IN_USE, _NOT_PERMITTED):
            raise _not_made(error) from error
        # Others are connected, or the source is somebody else's: it can be read all the same.
        _create_alike(source, clone)
        dump_and_restore(source, clone)
        made = "copied with pg_dump and pg_restore"
    copy_settings(source, clone)
    return made


def _copy_across(source: Database, clone: Database) -> str:
    """Copy to another server: where roles, encoding and locale are others."""
    try:
        create(clone, "TEMPLATE template0", source)
    except DBAPIError as error:
        raise _not_made(error) from error
    dump_and_restore(source, clone, "--no-privileges")
    copy_settings(source, clone)
    return (
        f"copied with pg_dump and pg_restore to the embedded server, PostgreSQL {clone.version},"
        f" since {source.url.username!r} may not create databases on the source's"
    )


def _strategy(source: Database) -> str:
    if source.major < 15:
        return ""
    with source.read_only("looking up the size") as connection:
        size = connection.execute(sa.text("SELECT pg_database_size(current_database())"))
        return " STRATEGY file_copy" if size.scalar_one() > _LARGE_BYTES else ""


def _not_made(error: DBAPIError) -> RehearsalError:
    return RehearsalError(f"the clone could not be made: {error.orig}", "see the server's log")


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
    try:
        create(clone, f"TEMPLATE template0 {options}", source)
    except DBAPIError as error:
        raise _not_made(error) from error


def dump_and_restore(source: Database, clone: Database, *options: str) -> None:
    """Fill an empty database with what another one holds; ``options`` are pg_restore's."""
    # pg_restore sets transaction_timeout, which servers before 17 do not know: one error there.
    at_once, passed = (["--exit-on-error"], {0}) if clone.major >= 17 else ([], {0, 1})
    with subprocess.Popen(
        [binaries() / "pg_dump", "--format=custom", "--compress=0", *address(source)],
        env=environment(source),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as dump:
        assert dump.stdout is not None
        assert dump.stderr is not None
        restore = subprocess.run(
            [binaries() / "pg_restore", *at_once, "--no-owner", *options, *address(clone)],
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
        if missing := missing_extensions(source, clone):
            raise lacking(missing, clone, "so that the clone could not be made")
        raise RehearsalError(
            f"the clone could not be made with pg_dump and pg_restore: {' '.join(errors[:1])}",
            'give the role the right to read all of it, or rehearse on="sample", which takes what'
            " it may read",
        )


def missing_extensions(source: Database, copy: Database) -> list[str]:
    """Extensions that a database has, and the server of its copy could not make."""
    with source.read_only("listing the extensions") as theirs, copy.read_only("likewise") as ours:
        wanted = set(theirs.execute(sa.text("SELECT extname FROM pg_extension")).scalars())
        known = ours.execute(sa.text("SELECT name FROM pg_available_extensions")).scalars()
        return sorted(wanted.difference(known))


def lacking(extensions: Sequence[str], copy: Database, consequence: str) -> RehearsalError:
    """The error of a rehearsal on a server that lacks extensions of the source."""
    return RehearsalError(
        f"the server of the copy, PostgreSQL {copy.version}, lacks extensions of the source:"
        f" {', '.join(extensions)}; {consequence}",
        "install them there; or rehearse on the source's own server, which has them, with"
        ' on="clone" and a role that has CREATEDB; or on a staging database',
    )


def copy_settings(source: Database, clone: Database) -> None:
    """Give the clone what ALTER DATABASE … SET says of the source: no copy takes it along."""
    name = quote(str(clone.url.database))
    with source.read_only("looking up the database's settings") as connection:
        found = connection.execute(sa.text(_SETTINGS)).all()
    engine = clone.at("postgres").engine
    with explained("copying the database's settings", clone.url), engine.begin() as connection:
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


_MAY_CREATE = "SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user"

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
 WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user))
 ORDER BY setrole
"""

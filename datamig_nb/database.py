"""The only connector: where the database is, what it holds, and sessions that cannot write.

A :class:`Database` opens a session for each piece of work and closes it after, so that no idle
session stands in the way of a clone.  Errors of the driver become ours here and nowhere else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from datamig_nb import samples
from datamig_nb.errors import (
    ConnectionFailedError,
    DatabaseError,
    PermissionDeniedError,
    QueryError,
)
from datamig_nb.names import TableName, quote
from datamig_nb.server import ensure_server
from datamig_nb.tables import Table, read_table

#: How long one statement of profile, preview or validate may take unless told otherwise.
STATEMENT_TIMEOUT_SECONDS = 300.0

# The working database of connect() without a URL, and the untouched copy it is made from.  The
# number moves when the sample data changes.
_SAMPLES, _PRISTINE = "samples", "samples_pristine_1"


@dataclass(frozen=True, kw_only=True)
class Database:
    """A PostgreSQL database and how to reach it; shows itself without the password."""

    url: sa.URL
    #: For example 18.6.
    version: str

    @property
    def engine(self) -> sa.Engine:
        """An engine that keeps no connection open between uses."""
        return _engine(self.url)

    def at(self, database: str) -> Database:
        """Another database of the same server."""
        return Database(url=self.url.set(database=database), version=self.version)

    @property
    def major(self) -> int:
        """The server's major version, for example 18."""
        return int(self.version.split(".")[0])

    @property
    def dsn(self) -> str:
        """The URL with its password, for ``DATABASE_URL`` of a program; never print it."""
        return self.url.render_as_string(hide_password=False)

    @contextmanager
    def read_only(
        self, what: str = "reading", *, timeout_seconds: float = STATEMENT_TIMEOUT_SECONDS
    ) -> Generator[sa.Connection]:
        """A session on one snapshot that the server itself keeps from writing.

        Parameters
        ----------
        what
            What the session is for, in words, for the error message.
        timeout_seconds
            Bound on each statement.

        Raises
        ------
        PermissionDeniedError, QueryError, ConnectionFailedError
            In place of whatever the driver raises inside.
        """
        with explained(what, self.url), self.engine.connect() as connection:
            connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            connection.execute(
                sa.text("SELECT set_config('statement_timeout', :ms, true)"),
                {"ms": f"{int(timeout_seconds * 1000)}ms"},
            )
            yield connection

    @contextmanager
    def writing(self, what: str, *, lock_timeout_seconds: float) -> Generator[sa.Connection]:
        """A transaction that may write, and waits no longer than that for each lock.

        Parameters
        ----------
        what
            What the transaction is for, in words, for the error message.

        Raises
        ------
        PermissionDeniedError, QueryError, ConnectionFailedError
            In place of whatever the driver raises inside; nothing was written then.
        """
        # What a lock was waited for is seen as it is then, where sessions are serializable too.
        engine = self.engine.execution_options(isolation_level="READ COMMITTED")
        with explained(what, self.url), engine.begin() as connection:
            connection.execute(
                sa.text("SELECT set_config('lock_timeout', :ms, true)"),
                {"ms": f"{int(lock_timeout_seconds * 1000)}ms"},
            )
            yield connection

    def table(self, name: str | TableName) -> Table:
        """What the catalog says of a table.

        Raises
        ------
        UnknownTableError
            If there is no such table; names like it are in the message.
        """
        with self.read_only(f"looking up {name}") as connection:
            return read_table(connection, TableName.parse(name))

    def __repr__(self) -> str:
        return f"Database({_target(self.url)}, PostgreSQL {self.version})"


@lru_cache(maxsize=32)
def _engine(url: sa.URL) -> sa.Engine:
    # kept, since the first session of an engine begins with SQLAlchemy's own questions
    return sa.create_engine(url, poolclass=NullPool)


def connect(url: str | sa.URL | None = None, *, fresh: bool = False) -> Database:
    """Connect to a database: the URL's, else ``DATABASE_URL``'s, else the sample database.

    Without a URL, PostgreSQL is started from the ``embedded`` extra, as a child of this user, and
    stops when the last process that uses it ends.  Its database ``samples`` holds real data in
    three schemas: ``players``, ``flights`` and ``guide``; see :mod:`datamig_nb.samples`.

    Parameters
    ----------
    url
        ``postgresql://user:password@host:port/database``, PostgreSQL 14 to 18.
    fresh
        Make the sample database anew, whatever was done to it.  Not possible with a URL.

    Raises
    ------
    ConnectionFailedError
        If nothing answers there, or it is no PostgreSQL from 14 on.
    MissingExtraError
        If the sample database needs a package that is not installed.
    """
    given = url or os.environ.get("DATABASE_URL")
    if not given:
        return _samples(fresh)
    if fresh:
        raise ConnectionFailedError(
            "a database of your own", "fresh=True would empty it", "leave fresh=True out"
        )
    return _checked(_parsed(given))


def embedded() -> Database:
    """The maintenance database of the embedded server, which starts where it does not run.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    return _checked(sa.make_url(ensure_server().url("postgres")))


def run(connection: sa.Connection, statement: str) -> sa.CursorResult[*tuple[Any, ...]]:
    """Send a statement as it stands: no bind parameters, so ':' and '%' in it are themselves."""
    return connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def is_there(connection: sa.Connection, table: str) -> bool:
    """Whether there is such a table, named as in SQL."""
    found = connection.execute(sa.text("SELECT to_regclass(:name)"), {"name": table})
    return found.scalar_one() is not None


@contextmanager
def explained(what: str, url: sa.URL) -> Generator[None]:
    """Turn the driver's errors inside into ours, each with what to do next."""
    try:
        yield
    except DBAPIError as error:
        raise _ours(what, url, error.orig) from error
    except psycopg.Error as error:
        raise _ours(what, url, error) from error


def _ours(what: str, url: sa.URL, error: BaseException | None) -> DatabaseError:
    state = getattr(error, "sqlstate", None) or ""
    reason = _reason(error, url)
    if state == "42501":
        return PermissionDeniedError(
            f"{what} is not permitted: {reason}", f"ask for the privilege for {url.username!r}"
        )
    if state == "57014":
        return QueryError(what, state, reason, "give it longer with timeout_seconds=")
    if state == "55P03":
        advice = "find out in pg_stat_activity and pg_locks who holds it, and try again"
        return QueryError(what, state, reason, advice)
    if state == "25006":
        return QueryError(what, state, reason, "reports only read; change data with a revision")
    if state == "" or state.startswith(("08", "28", "3D", "57P")):
        return ConnectionFailedError(_target(url), reason, _connection_advice(reason))
    return QueryError(what, state, reason, "correct the SQL or the name and run it again")


def _reason(error: BaseException | None, url: sa.URL) -> str:
    """The driver's message on one line, without its prefixes and without the password."""
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    text = primary or (str(error).strip().splitlines() or ["no reason was given"])[0]
    for prefix in ("FATAL:  ", "ERROR:  ", "connection failed: ", "connection is bad: "):
        text = text.split(prefix, 1)[-1]
    text = _TCP.sub("", text)
    if url.password:
        text = text.replace(str(url.password), "***")
    return " ".join(text.split())


# Says again what _target() says.
_TCP = re.compile(r'connection to server at "[^"]*"(?: \([^)]*\))?, port \d+ failed: ')


def _connection_advice(reason: str) -> str:
    """The next step for the usual ways in which connecting fails."""
    advices = {
        "password authentication": "check user and password in the URL",
        "no password supplied": "put the password into the URL or a ~/.pgpass file",
        "does not exist": "check the name in the URL",
        "permission denied": "ask for the privilege CONNECT on the database",
        "not permitted to log in": "ask for LOGIN for this role, or use another",
        "pg_hba.conf": "ask who runs the server to let this user in from here",
        "SSL": "check sslmode= in the URL",
        "sslmode": "check sslmode= in the URL",
        "connection option": "check what follows '?' in the URL",
        "too many": "try again when other sessions have ended",
        "resolve host": "check the host in the URL",
        "translate host": "check the host in the URL",
        "refused": "check host and port, and that the server runs",
        "No such file": "check the socket directory, and that the server runs",
        "timeout": "check host and port, and the firewall",
    }
    for words, advice in advices.items():
        if words in reason:
            return advice
    return "check the URL, and that the server runs"


def _target(url: sa.URL) -> str:
    """Where a URL leads, in words that hold neither password nor socket path."""
    host = url.host or ("a local socket" if url.query.get("host") else "localhost")
    port = f":{url.port}" if url.port else ""
    return f"{url.database or url.username or 'the default database'} at {host}{port}"


def _parsed(url: str | sa.URL) -> sa.URL:
    try:
        parsed = sa.make_url(url)
        if isinstance(url, str) and "@" in f"{parsed.host}{parsed.database}":
            raise ValueError("a password with '@' in it: what follows would be shown")
    except (ArgumentError, ValueError):
        raise ConnectionFailedError(
            "the database",
            "the URL cannot be read",
            "write postgresql://user:password@host:5432/database, special characters as %XX",
        ) from None
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise ConnectionFailedError(
            "the database",
            f"{parsed.drivername!r} is not PostgreSQL",
            "give a URL that begins with postgresql://",
        )
    return parsed.set(drivername="postgresql+psycopg")


def _checked(url: sa.URL) -> Database:
    engine = sa.create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 10})
    try:
        with explained("connecting", url), engine.connect() as connection:
            number = connection.execute(sa.text("SHOW server_version_num")).scalar_one()
    except TypeError as error:  # the driver gives bytes for the text of such a database
        raise ConnectionFailedError(
            _target(url),
            "its encoding is SQL_ASCII, which says nothing of its characters",
            "add ?client_encoding=utf8 to the URL",
        ) from error
    major, minor = divmod(int(number), 10_000)
    if major < 14:
        raise ConnectionFailedError(
            _target(url), f"it is PostgreSQL {major}", "use PostgreSQL 14 or newer"
        )
    return Database(url=url, version=f"{major}.{minor}")


# ---------------------------------------------------------------- the sample database


def _samples(fresh: bool) -> Database:
    postgres = embedded()
    with (
        explained("making the sample database", postgres.url),
        psycopg.connect(_libpq(postgres.url), autocommit=True) as connection,
    ):
        # One process makes the databases, others wait; the lock ends with the session.
        connection.execute("SELECT pg_advisory_lock(hashtext('datamig_nb samples'))")
        if not _exists(connection, _PRISTINE):
            _make_pristine(connection, postgres)
        if fresh:
            connection.execute(f"DROP DATABASE IF EXISTS {_SAMPLES} WITH (FORCE)")
        if not _exists(connection, _SAMPLES):
            connection.execute(f"CREATE DATABASE {_SAMPLES} TEMPLATE {_PRISTINE}")
    return postgres.at(_SAMPLES)


def guide_database(name: str = "guide", *, rows: int = 1_000) -> Database:
    """The tables of the migration guide alone, in a database of their own, made anew.

    Parameters
    ----------
    name
        Name of the database, on the server of the samples; one of that name is dropped.
    rows
        Rows of ``guide.user`` and of ``guide.large_table``; see :mod:`datamig_nb.samples`.
    """
    if not name.startswith("guide"):
        raise DatabaseError(f"{name!r} is no name for the guide's tables", "begin it with 'guide'")
    server = ensure_server()
    made = _checked(sa.make_url(server.url("postgres"))).at(name)
    with (
        explained("making the guide's tables", made.url),
        psycopg.connect(_libpq(made.at("postgres").url), autocommit=True) as connection,
    ):
        connection.execute(f"DROP DATABASE IF EXISTS {quote(name)} WITH (FORCE)".encode())
        connection.execute(f"CREATE DATABASE {quote(name)} TEMPLATE template0".encode())
        with psycopg.connect(_libpq(made.url)) as loader:
            samples.load_guide(loader, rows)
    return made


def _make_pristine(connection: psycopg.Connection[Any], postgres: Database) -> None:
    """Load the samples under another name first: a stop half-way leaves no half database."""
    loading = f"{_PRISTINE}_loading"
    connection.execute(f"DROP DATABASE IF EXISTS {loading} WITH (FORCE)")
    connection.execute(f"CREATE DATABASE {loading} TEMPLATE template0")
    with psycopg.connect(_libpq(postgres.at(loading).url)) as loader:
        samples.load_all(loader)
    connection.execute(f"ALTER DATABASE {loading} RENAME TO {_PRISTINE}")


def _exists(connection: psycopg.Connection[Any], database: str) -> bool:
    query = "SELECT 1 FROM pg_database WHERE datname = %s"
    return connection.execute(query, (database,)).fetchone() is not None


def _libpq(url: sa.URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)

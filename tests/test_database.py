"""Sessions that cannot write, connections that fail with advice, and what the catalog says."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from datamig_nb.clone import cloned
from datamig_nb.database import Database, connect, guide_database, run
from datamig_nb.errors import (
    ConnectionFailedError,
    DatabaseError,
    DatamigError,
    PermissionDeniedError,
    QueryError,
    UnknownColumnError,
    UnknownTableError,
)
from datamig_nb.names import TableName
from datamig_nb.server import ensure_server
from datamig_nb.snapshot import take_snapshot
from datamig_nb.tables import Column, ForeignKey
from tests.scratch import query, session
from tests.second_server import running

PASSWORD = "s3cr&t:p@ss/w%20rd"


@pytest.fixture(scope="module")
def guarded(samples: Database) -> Iterator[sa.URL]:
    """The URL of a server on TCP that asks for PASSWORD."""
    assert samples.url.password is None
    with running(ensure_server().binaries, PASSWORD) as url:
        database = connect(url)
        query(database, "CREATE DATABASE closed")
        query(database, "REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
        query(database, f"CREATE ROLE visitor LOGIN PASSWORD '{PASSWORD}'")
        query(database, f"CREATE ROLE idle NOLOGIN PASSWORD '{PASSWORD}'")
        yield url


def failed(url: Any) -> ConnectionFailedError:
    """The error of connecting; nothing of it shows a password."""
    with pytest.raises(ConnectionFailedError) as raised:
        connect(url)
    shown = "".join(traceback.format_exception(raised.value)) + repr(raised.value)
    password = getattr(url, "password", None)
    assert password is None or str(password) not in shown
    assert "hunter2" not in shown
    assert "\n" not in str(raised.value)
    return raised.value


# ---------------------------------------------------------------- connecting


def test_database_shows_itself_without_its_password(guarded: sa.URL) -> None:
    database = connect(guarded)

    assert (
        repr(database)
        == str(database)
        == (f"Database(postgres at 127.0.0.1:{guarded.port}, PostgreSQL {database.version})")
    )
    assert PASSWORD not in f"{database.url!r} {database.url} {database.engine!r}"
    assert connect(database.dsn) == database
    assert database.at("closed").url.password == PASSWORD


@pytest.mark.parametrize(
    ("part", "reason", "advice"),
    [
        (
            {"password": "wr0ng/w0rd"},
            'password authentication failed for user "postgres"',
            "check user and password in the URL",
        ),
        (
            {"username": "nobody"},
            'password authentication failed for user "nobody"',
            "check user and password in the URL",
        ),
        (
            {"database": "nowhere"},
            'database "nowhere" does not exist',
            "check the name in the URL",
        ),
        (
            {"username": "visitor", "database": "closed"},
            'permission denied for database "closed"',
            "ask for the privilege CONNECT on the database",
        ),
        (
            {"username": "idle"},
            'role "idle" is not permitted to log in',
            "ask for LOGIN for this role, or use another",
        ),
        (
            {"port": 1},
            "Connection refused",
            "check host and port, and that the server runs",
        ),
        (
            {"query": {"sslmode": "require"}},
            "server does not support SSL, but SSL was required",
            "check sslmode= in the URL",
        ),
        (
            {"query": {"sslmod": "require"}},
            'invalid connection option "sslmod"',
            "check what follows '?' in the URL",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_failed_connection_says_why_and_what_to_do(
    guarded: sa.URL, part: dict[str, Any], reason: str, advice: str
) -> None:
    url = guarded.set(**part)

    error = failed(url)

    target = f"{url.database} at 127.0.0.1:{url.port}"
    assert str(error) == f"cannot connect to {target}: {reason}; {advice}"
    assert (error.target, error.reason, error.advice) == (target, reason, advice)
    assert isinstance(error.__cause__, sa.exc.DBAPIError)
    assert isinstance(error.__cause__.orig, psycopg.Error)


def test_a_missing_password_is_asked_for(guarded: sa.URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSFILE", os.devnull)
    url = sa.URL.create("postgresql", "postgres", None, "127.0.0.1", guarded.port, "postgres")

    error = failed(url)

    assert error.reason.endswith("no password supplied")
    assert error.advice == "put the password into the URL or a ~/.pgpass file"


def test_an_unknown_host_is_named() -> None:
    error = failed("postgresql://u:hunter2@no-such-host.invalid/d")

    assert error.reason.startswith("failed to resolve host 'no-such-host.invalid'")
    assert error.advice == "check the host in the URL"


def test_a_socket_where_nobody_listens_is_named() -> None:
    error = failed("postgresql://u@/d?host=/nonexistent&port=77")

    assert str(error) == (
        'cannot connect to d at a local socket: connection to server on socket "/nonexistent'
        '/.s.PGSQL.77" failed: No such file or directory; check the socket directory, and that'
        " the server runs"
    )


@pytest.mark.parametrize(
    "url",
    [
        "garbage",
        "postgresql:/u:hunter2@h/d",
        "postgresql://u:hunter2@h:port/d",
        "postgresql://u:hunter2@[::1/d",
        "postgresql://u:p@hunter2/d@h/d",
        "postgresql://u:p@hunter2@h/d",
        "postgresql://u:a@b:hunter2@h/d",
        5432,
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url: Any) -> None:
    """Part of a password in which '@' is not written as %40 would pass for a host or a name."""
    assert str(failed(url)) == (
        "cannot connect to the database: the URL cannot be read;"
        " write postgresql://user:password@host:5432/database, special characters as %XX"
    )


@pytest.mark.parametrize("scheme", ["sqlite", "mysql", "mysql+pymysql", "oracle", "https"])
def test_another_system_than_postgresql_is_refused(scheme: str) -> None:
    assert str(failed(f"{scheme}://u:hunter2@h/d")) == (
        f"cannot connect to the database: {scheme!r} is not PostgreSQL;"
        " give a URL that begins with postgresql://"
    )


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_of_postgresql_uses_our_driver(samples: Database, scheme: str) -> None:
    url = samples.url.set(drivername=scheme)

    assert connect(url) == samples
    assert connect(url.render_as_string()).url.drivername == "postgresql+psycopg"


@settings(deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30).map("{}☃".format)
)
def test_no_password_is_shown_however_it_is_written(password: str) -> None:
    """Written as it must be, and as people write it."""
    right = sa.URL.create("postgresql", "u", password, "127.0.0.1", 1, "d")
    for url in (
        right,
        right.render_as_string(hide_password=False),
        f"postgresql://u:{password}@127.0.0.1:1/d",
    ):
        with pytest.raises(ConnectionFailedError) as raised:
            connect(url)
        assert password not in "".join(traceback.format_exception(raised.value))
        assert "\n" not in str(raised.value)


def test_a_server_before_14_is_refused(samples: Database) -> None:
    """A session with the real server, which lies about its version: no older one is at hand."""

    def lie(*call: Any) -> tuple[str, Any]:
        statement, parameters = call[2:4]
        return statement.replace("SHOW server_version_num", "SELECT '130022'"), parameters

    event.listen(sa.Engine, "before_cursor_execute", lie, retval=True)
    try:
        error = failed(samples.url)
    finally:
        event.remove(sa.Engine, "before_cursor_execute", lie)

    assert str(error) == (
        "cannot connect to samples at a local socket: it is PostgreSQL 13;"
        " use PostgreSQL 14 or newer"
    )
    assert connect(samples.url).major >= 14


def test_a_database_without_an_encoding_asks_for_one(samples: Database) -> None:
    postgres = samples.at("postgres")
    locale = "ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0"
    query(postgres, f"CREATE DATABASE no_encoding {locale}")
    url = samples.url.set(database="no_encoding")
    try:
        error = failed(url)
        repaired = connect(url.update_query_dict({"client_encoding": "utf8"}))
    finally:
        query(postgres, "DROP DATABASE no_encoding")

    assert str(error) == (
        "cannot connect to no_encoding at a local socket: its encoding is SQL_ASCII, which says"
        " nothing of its characters; add ?client_encoding=utf8 to the URL"
    )
    assert repaired.major == samples.major


def test_the_url_of_the_environment_is_used_where_none_is_given(
    samples: Database, guarded: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", guarded.render_as_string(hide_password=False))
    assert connect() == connect(guarded)
    assert connect(samples.url) == samples

    monkeypatch.setenv("DATABASE_URL", "")
    assert connect() == samples


@pytest.mark.parametrize("where", ["argument", "environment"])
def test_a_database_of_ones_own_is_never_made_afresh(
    samples: Database, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    url = samples.dsn if where == "argument" else None
    monkeypatch.setenv("DATABASE_URL", samples.dsn)

    with pytest.raises(ConnectionFailedError) as raised:
        connect(url, fresh=True)

    assert str(raised.value) == (
        "cannot connect to a database of your own: fresh=True would empty it; leave fresh=True out"
    )


def test_fresh_samples_are_as_they_were_whatever_was_done_to_them(samples: Database) -> None:
    count = (
        "SELECT (SELECT md5(string_agg(p::text, '' ORDER BY id)) FROM players.player AS p),"
        " (SELECT md5(string_agg(u::text, '' ORDER BY id)) FROM guide.\"user\" AS u),"
        " (SELECT count(*) FROM flights.flights)"
    )
    before = query(samples, count)
    try:
        with session(samples) as left_open:  # a notebook somewhere
            left_open.execute("UPDATE players.player SET full_name = 'X'")
            left_open.execute("DROP SCHEMA guide CASCADE; CREATE TABLE mine ()")
            fresh = connect(fresh=True)
    finally:
        if query(samples, "SELECT to_regclass('mine') IS NOT NULL") == [True]:
            connect(fresh=True)  # other tests need them

    assert fresh == samples
    assert query(fresh, count) == before
    assert query(fresh, "SELECT to_regclass('mine')") == [None]


def test_guide_has_a_database_of_its_own_made_anew_each_time(samples: Database) -> None:
    made = guide_database("guide_test", rows=10)
    query(made, 'DELETE FROM guide."user"')

    assert query(guide_database("guide_test", rows=10), 'SELECT count(*) FROM guide."user"') == [10]
    query(samples, "DROP DATABASE guide_test")
    with pytest.raises(DatabaseError, match="'samples' is no name for the guide's tables; begin"):
        guide_database("samples")


def test_a_database_with_a_password_can_be_cloned_and_dumped(guarded: sa.URL) -> None:
    """Also while somebody is connected, so that it is copied by pg_dump and pg_restore."""
    database = connect(guarded)
    query(database, "CREATE TABLE kept (id int PRIMARY KEY); INSERT INTO kept VALUES (1)")

    for sessions in (0, 1):
        others = [psycopg.connect(psycopg_dsn(database)) for _ in range(sessions)]
        with cloned(database, "guarded") as clone:
            assert query(clone, "TABLE kept") == [1]
            assert "CREATE TABLE public.kept" in take_snapshot(clone, {}).schema
        for other in others:
            other.close()


def psycopg_dsn(database: Database) -> str:
    return database.url.set(drivername="postgresql").render_as_string(hide_password=False)


# ---------------------------------------------------------------- sessions that only read


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE players.mine ()",
        "UPDATE players.player SET full_name = 'X'",
        "DELETE FROM players.player",
        "SELECT nextval('guide.user_id_seq')",
        "COPY players.player FROM '/dev/null'",
        "SELECT * FROM players.player FOR UPDATE",
        "DO $$ BEGIN EXECUTE 'DROP SCHEMA guide CASCADE'; END $$",
    ],
)
def test_the_server_itself_refuses_to_write(samples: Database, statement: str) -> None:
    with pytest.raises(QueryError) as raised, samples.read_only("trying") as connection:
        run(connection, statement)

    assert raised.value.sqlstate == "25006"
    assert str(raised.value).endswith(
        "in a read-only transaction (SQLSTATE 25006);"
        " reports only read; change data with a revision"
    )


@pytest.mark.parametrize(
    "way_out",
    ["SET TRANSACTION READ WRITE", "SET transaction_read_only = off", "COMMIT", "ROLLBACK"],
)
def test_a_session_stays_read_only_whatever_a_query_of_the_users_says(
    samples: Database, way_out: str
) -> None:
    def try_to_write() -> None:
        with samples.read_only("trying") as connection:
            run(connection, way_out)
            run(connection, "CREATE TABLE players.mine ()")

    with pytest.raises(QueryError, match="SQLSTATE 25"):
        try_to_write()

    assert query(samples, "SELECT to_regclass('players.mine')") == [None]


def test_a_session_sees_one_snapshot(sample_database: Database) -> None:
    count = "SELECT count(*) FROM flights.airlines"
    with sample_database.read_only() as connection:
        before = run(connection, count).scalar_one()
        query(sample_database, "DELETE FROM flights.airlines")
        after = run(connection, count).scalar_one()

    assert (before, after, query(sample_database, count)) == (16, 16, [0])


def test_a_statement_may_not_take_longer_than_it_was_given(samples: Database) -> None:
    with (
        pytest.raises(QueryError) as raised,
        samples.read_only("waiting", timeout_seconds=0.1) as connection,
    ):
        run(connection, "SELECT pg_sleep(60)")

    assert str(raised.value) == (
        "waiting failed: canceling statement due to statement timeout (SQLSTATE 57014);"
        " give it longer with timeout_seconds="
    )


def test_the_timeout_counts_for_the_session_of_a_report_only(samples: Database) -> None:
    with samples.read_only(timeout_seconds=12.5) as connection:
        assert run(connection, "SHOW statement_timeout").scalar_one() == "12500ms"
    with samples.read_only() as connection:
        assert run(connection, "SHOW statement_timeout").scalar_one() == "5min"


def test_no_session_is_left_open(sample_database: Database) -> None:
    with sample_database.read_only() as connection:
        run(connection, "SELECT 1")
    with pytest.raises(QueryError), sample_database.read_only() as connection:
        run(connection, "SELECT 1 / 0")

    others = (
        "SELECT count(*) FROM pg_stat_activity"
        f" WHERE datname = '{sample_database.url.database}' AND pid <> pg_backend_pid()"
    )
    assert query(sample_database, others) == [0]


def test_a_lost_connection_is_told_as_one(sample_database: Database) -> None:
    def lose_connection() -> None:
        with sample_database.read_only() as connection:
            pid = run(connection, "SELECT pg_backend_pid()").scalar_one()
            query(sample_database, f"SELECT pg_terminate_backend({pid}, 5000)")
            run(connection, "SELECT 1")

    with pytest.raises(ConnectionFailedError) as raised:
        lose_connection()

    assert str(raised.value) == (
        f"cannot connect to {sample_database.url.database} at a local socket: terminating"
        " connection due to administrator command; check the URL, and that the server runs"
    )


def test_an_error_that_quotes_data_is_still_one_line(samples: Database) -> None:
    with pytest.raises(QueryError) as raised, samples.read_only("reading") as connection:
        run(connection, "SELECT (E'two\\n  lines')::int")

    assert str(raised.value) == (
        'reading failed: invalid input syntax for type integer: "two lines" (SQLSTATE 22P02);'
        " correct the SQL or the name and run it again"
    )


# ---------------------------------------------------------------- the catalog


def test_a_table_is_described_as_the_catalog_has_it(database: Database) -> None:
    query(
        database,
        """
        CREATE SCHEMA "My Shop";
        CREATE TABLE "My Shop".place (country char(2), code text, PRIMARY KEY (country, code));
        CREATE TABLE "My Shop"."Order" (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            gone int,
            "Name" varchar(50) NOT NULL,
            code char(8),
            plain varchar,
            price numeric(10, 2),
            doubled numeric GENERATED ALWAYS AS (price * 2) STORED,
            number int GENERATED BY DEFAULT AS IDENTITY,
            at timestamptz(3),
            tags text[],
            country char(2),
            place text,
            parent bigint REFERENCES "My Shop"."Order",
            UNIQUE ("Name", code),
            FOREIGN KEY (place, country) REFERENCES "My Shop".place (code, country)
        );
        ALTER TABLE "My Shop"."Order" DROP COLUMN gone;
        INSERT INTO "My Shop"."Order" ("Name") SELECT n FROM generate_series(1, 7) AS n;
        ANALYZE "My Shop"."Order"
        """,
    )

    table = database.table('"My Shop".Order')

    def column(name: str, type: str, length: int | None = None, **more: bool) -> Column:
        flags = {"not_null": False, "generated": False, **more}
        return Column(name=name, type=type, length=length, **flags)

    assert table.columns == (
        column("id", "bigint", not_null=True, generated=True),
        column("Name", "character varying(50)", 50, not_null=True),
        column("code", "character(8)", 8),
        column("plain", "character varying"),
        column("price", "numeric(10,2)"),
        column("doubled", "numeric", generated=True, computed=True),
        column("number", "integer", not_null=True),
        column("at", "timestamp(3) with time zone"),
        column("tags", "text[]"),
        column("country", "character(2)", 2),
        column("place", "text"),
        column("parent", "bigint"),
    )
    assert (table.key, table.unique) == (("id",), (("id",), ("Name", "code")))
    assert table.foreign_keys == (
        ForeignKey(
            name="Order_parent_fkey",
            columns=("parent",),
            parent=TableName("My Shop", "Order"),
            parent_columns=("id",),
        ),
        ForeignKey(
            name="Order_place_country_fkey",
            columns=("place", "country"),
            parent=TableName("My Shop", "place"),
            parent_columns=("code", "country"),
        ),
    )
    assert (table.estimated_rows, table.total_bytes) == (7, 8192 * 6)
    assert table.column("Name") is table.columns[1]
    assert (table.has("Name"), table.has("name")) == (True, False)


@pytest.mark.parametrize(
    ("definition", "key"),
    [
        ("a int PRIMARY KEY, b int NOT NULL UNIQUE", ("a",)),
        ("a int, b int, PRIMARY KEY (b, a)", ("b", "a")),
        ("a int UNIQUE, b int NOT NULL UNIQUE", ("b",)),
        ("a int NOT NULL, b int NOT NULL, c int NOT NULL UNIQUE, UNIQUE (b, a)", ("c",)),
        ("a int NOT NULL, b int NOT NULL, UNIQUE (b, a) INCLUDE (c), c int", ("b", "a")),
        ("a int NOT NULL, b int, UNIQUE (a, b)", ()),
        ("a int UNIQUE", ()),
        ("a int NOT NULL", ()),
    ],
)
def test_the_key_is_the_primary_key_or_the_narrowest_unique_index_without_null(
    database: Database, definition: str, key: tuple[str, ...]
) -> None:
    query(database, f"CREATE TABLE t ({definition})")

    assert database.table("t").key == key


@pytest.mark.parametrize(
    "index",
    [
        "UNIQUE INDEX ON t (a) WHERE b > 0",
        "UNIQUE INDEX ON t (abs(a))",
        "UNIQUE INDEX ON t (a, lower(c))",
        "INDEX ON t (a)",
    ],
)
def test_an_index_that_leaves_rows_or_values_out_is_no_key(database: Database, index: str) -> None:
    query(database, "CREATE TABLE t (a int NOT NULL, b int NOT NULL, c text NOT NULL)")
    query(database, f"CREATE {index}")

    table = database.table("t")

    assert (table.key, table.unique) == ((), ())


def test_an_index_whose_building_failed_is_no_key(database: Database) -> None:
    query(database, "CREATE TABLE t (a int NOT NULL); INSERT INTO t VALUES (1), (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        query(database, "CREATE UNIQUE INDEX CONCURRENTLY ON t (a)")

    assert database.table("t").unique == ()


def test_views_and_partitioned_tables_are_tables_too(database: Database) -> None:
    query(
        database,
        "CREATE TABLE t (a int PRIMARY KEY) PARTITION BY RANGE (a);"
        " CREATE TABLE t1 PARTITION OF t DEFAULT;"
        " CREATE VIEW v AS TABLE t; CREATE MATERIALIZED VIEW m AS TABLE t; CREATE INDEX i ON m (a)",
    )

    assert [database.table(name).key for name in ("t", "t1", "v", "m")] == [("a",), ("a",), (), ()]
    with pytest.raises(UnknownTableError):
        database.table("i")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("player", "there is no table 'player'; did you mean 'players.player'?"),
        ("players.plyer", "there is no table 'players.plyer'; did you mean 'players.player'?"),
        (
            "players.player; DROP SCHEMA players",
            "there is no table 'players.player; DROP SCHEMA players'; check schema and name",
        ),
        ("nothing_like_it", "there is no table 'nothing_like_it'; check schema and name"),
    ],
)
def test_a_table_that_is_not_there_is_told_with_those_like_it(
    samples: Database, name: str, message: str
) -> None:
    with pytest.raises(UnknownTableError) as raised:
        samples.table(name)

    assert str(raised.value) == message


def test_a_column_that_is_not_there_is_told_with_those_that_are(samples: Database) -> None:
    with pytest.raises(UnknownColumnError) as raised:
        samples.table("players.player").column("name")

    assert str(raised.value) == (
        "table 'players.player' has no column 'name'; use one of 'id', 'full_name',"
        " 'true_first_name', 'true_last_name', 'active'"
    )


def test_a_schema_one_may_not_use_is_told_as_that(guarded: sa.URL) -> None:
    query(connect(guarded), "CREATE SCHEMA hidden; CREATE TABLE hidden.t ()")
    visitor = connect(guarded.set(username="visitor"))

    with pytest.raises(PermissionDeniedError) as raised:
        visitor.table("hidden.t")

    assert str(raised.value) == (
        "looking up hidden.t is not permitted: permission denied for schema hidden;"
        " ask for the privilege for 'visitor'"
    )
    assert isinstance(raised.value, DatamigError)

"""Names and literals, held against the server."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamig_nb.database import Database
from datamig_nb.errors import MigrationError
from datamig_nb.names import TableName, literal, quote

few = settings(max_examples=50, derandomize=True, deadline=None, database=None)

#: Text as PostgreSQL can store it.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
#: Names as PostgreSQL stores them: 1 to 63 bytes.
names = texts.filter(lambda name: 0 < len(name.encode()) <= 63)
#: Names with what has a meaning in names; plain ones too.
odd_names = st.text("aZ_9$ .\"'ü", min_size=1, max_size=8)


@pytest.fixture(scope="module")
def session(samples: Database) -> Iterator[psycopg.Connection]:
    """One session for all the questions of this module."""
    with psycopg.connect(samples.url.set(drivername="postgresql").render_as_string(False)) as it:
        it.autocommit = True
        yield it


def ask(session: psycopg.Connection, query: str, *values: object) -> object:
    """The only value that a query gives; without values, the text goes as it stands."""
    row = session.execute(query.encode(), values or None).fetchone()
    assert row is not None
    return row[0]


def test_every_keyword_is_quoted_as_the_server_quotes_it(session: psycopg.Connection) -> None:
    rows = session.execute("SELECT word, quote_ident(word) FROM pg_get_keywords()").fetchall()

    ours = {word: quote(word) for word, _ in rows}

    assert len(ours) > 400
    assert ours == dict(rows)


@few
@given(name=names | odd_names)
def test_quote_agrees_with_quote_ident(session: psycopg.Connection, name: str) -> None:
    assert quote(name) == ask(session, "SELECT quote_ident(%s)", name)


@few
@given(name=names | odd_names)
def test_quoted_name_is_read_back_as_the_very_name(session: psycopg.Connection, name: str) -> None:
    assert ask(session, f"SELECT (parse_ident({literal(quote(name))}))[1]") == name


@few
@given(text=texts | st.text("'\\%:y\"$e\n\t\r{}", max_size=12))
def test_literal_arrives_at_the_server_as_the_very_text(
    session: psycopg.Connection, text: str
) -> None:
    assert ask(session, f"SELECT {literal(text)}") == text


@pytest.mark.parametrize("value", [None, True, False, 0, -1, 2**62])
def test_literal_of_other_values_is_the_value(session: psycopg.Connection, value: object) -> None:
    assert ask(session, f"SELECT {literal(value)}") == value


@pytest.mark.parametrize(
    ("text", "schema", "name"),
    [
        ("player", None, "player"),
        ("players.player", "players", "player"),
        ("Players.PlayerName", "Players", "PlayerName"),
        ('"player"', None, "player"),
        ('"My Schema"."My.Table"', "My Schema", "My.Table"),
        ('players."a ""b"" c"', "players", 'a "b" c'),
        ('""""', None, '"'),
        ("guide.user", "guide", "user"),
        ("ünï.cödé", "ünï", "cödé"),
    ],
)
def test_table_name_is_read_as_its_parts(text: str, schema: str | None, name: str) -> None:
    assert TableName.parse(text) == TableName(schema, name)


@few
@given(schema=st.none() | names | odd_names, name=names | odd_names)
def test_table_name_survives_its_own_sql(schema: str | None, name: str) -> None:
    table = TableName(schema, name)

    assert TableName.parse(table.sql) == table
    assert TableName.parse(table) is table


@few
@given(schema=names, name=names)
def test_sql_of_a_table_name_is_what_the_server_reads(
    session: psycopg.Connection, schema: str, name: str
) -> None:
    table = TableName(schema, name)

    assert ask(session, f"SELECT parse_ident({literal(table.sql)})") == [schema, name]


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "base.players.player",
        '"',
        '"a',
        'a"',
        '""',
        'a."b',
        '"a"b',
        'a"b',
    ],
)
def test_what_is_no_table_name_is_refused(text: str) -> None:
    with pytest.raises(MigrationError, match=r"is no table name; write 'table' or 'schema\.table'"):
        TableName.parse(text)


def test_table_name_shows_itself_without_quotes() -> None:
    assert str(TableName("guide", "user")) == "guide.user"
    assert TableName("guide", "user").sql == 'guide."user"'
    assert str(TableName(None, "My Table")) == "My Table"
    assert TableName(None, "My Table").sql == '"My Table"'

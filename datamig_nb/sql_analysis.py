"""What PostgreSQL makes of a piece of SQL, asked before anything is run."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import psycopg
import sqlalchemy as sa

from datamig_nb.errors import QueryError
from datamig_nb.statements import CLOCKS, names_in


class ResultColumn(NamedTuple):
    """A column that a query gives."""

    name: str
    #: Number of its type, and the type's modifier (a length, a precision); -1 where it has none.
    type: int
    modifier: int


@contextmanager
def refusals(connection: sa.Connection) -> Generator[psycopg.Cursor[Any]]:
    """A cursor in a savepoint; what PostgreSQL has against a statement becomes a QueryError.

    A lost connection and a missing privilege are no fault of the statement: they stay the driver's.
    """
    raw = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    try:
        with raw.transaction(), raw.cursor() as cursor:
            yield cursor
    except psycopg.Error as error:
        if error.sqlstate in (None, "42501"):
            raise
        reason = error.diag.message_primary or str(error)
        raise QueryError("a query", error.sqlstate, reason, "correct the SQL") from error


def result_columns(connection: sa.Connection, query: str) -> list[ResultColumn]:
    """The columns of a query; it should say LIMIT 0, for it is sent.

    Raises
    ------
    QueryError
        With PostgreSQL's reason, if the text is no query, or several.
    """
    with refusals(connection) as cursor:
        # A prepared statement cannot hold two commands: PostgreSQL itself refuses the second.
        cursor.execute(query.encode(), prepare=True)
        result = cursor.pgresult
        assert result is not None
        return [
            ResultColumn(column.name, result.ftype(number), result.fmod(number))
            for number, column in enumerate(cursor.description or ())
        ]


def volatile_names(connection: sa.Connection, texts: Iterable[str]) -> frozenset[str]:
    """Names in the texts that are those of functions which give another value each time."""
    names = {name for text in texts for name in names_in(text)}
    query = sa.text(
        "SELECT DISTINCT proname::text FROM pg_proc"
        " WHERE provolatile = 'v' AND proname = ANY (:names)"
    )
    found = connection.execute(query, {"names": sorted(names)}).scalars()
    return frozenset(found) | (names & CLOCKS)

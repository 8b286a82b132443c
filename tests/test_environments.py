"""The file runs wherever Alembic runs: every driver, pooler, branch, version and session.

Only what anybody can see is relied on: commands of Alembic, a process that is killed, the rows, the
versions.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from datamig_nb.checks import no_nulls
from datamig_nb.database import Database
from datamig_nb.migration import Migration
from datamig_nb.operations import add_column, alter_column, create_check_constraint
from datamig_nb.render import render
from datamig_nb.steps import backfill, keep_in_step
from tests.alembic_project import AlembicProject, make_project
from tests.pooler import PGBOUNCER, pooled
from tests.runs import ok
from tests.scratch import query, session

ROWS = 5_000

#: A function that waits at one row, near the end, while somebody holds the gate; not before the
#: column is there, for the file looks at every value before its first write.
NOTES = f"""
CREATE SCHEMA shop;
CREATE FUNCTION shop.said(title text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF title = 'note {ROWS - 1}' AND EXISTS (SELECT FROM pg_attribute WHERE attname = 'loud') THEN
        PERFORM pg_advisory_xact_lock_shared(7);
    END IF;
    RETURN upper(title);
END $$;
CREATE TABLE shop.note (id integer PRIMARY KEY, title text NOT NULL);
INSERT INTO shop.note SELECT n, format('note %s', n) FROM generate_series(1, {ROWS}) AS n
"""

#: What means something to one driver or the other, or to some sessions.
MARKS = r" :y, 50%, %s, $1, {z}, C:\new"

LOUD = {"loud": f"shop.said(title) || '{MARKS}'"}

SHOUT = Migration(
    "shout",
    add_column("note", sa.Column("loud", sa.Text()), schema="shop"),
    keep_in_step("shop.note", LOUD),
    backfill("shop.note", LOUD),
    no_nulls("shop.note", "loud"),
    create_check_constraint("loud_is_loud", "note", r"loud !~ '^[a-z]\w'", schema="shop"),
    alter_column("note", "loud", nullable=False, schema="shop"),
)

DRIVERS = {
    "psycopg": ("generic", "postgresql+psycopg"),
    "psycopg2": ("generic", "postgresql+psycopg2"),
    "asyncpg": ("async", "postgresql+asyncpg"),
    "psycopg_async": ("async", "postgresql+psycopg_async"),
}

each_driver = pytest.mark.parametrize("driver", DRIVERS)

# ---------------------------------------------------------------- what anybody can see


@pytest.fixture
def shop(database: Database) -> Database:
    """A database with notes whose titles are not loud."""
    query(database, NOTES)
    return database


def by(driver: str, database: Database) -> Database:
    """The same database as env.py reaches it by a driver."""
    return Database(url=database.url.set(drivername=DRIVERS[driver][1]), version=database.version)


def versions(database: Database, table: str = "public.alembic_version") -> list[str]:
    there = query(database, f"SELECT to_regclass('{table}') IS NOT NULL")
    return query(database, f"SELECT version_num FROM {table} ORDER BY 1") if there[0] else []


def columns(database: Database, table: str = "shop.note") -> list[str]:
    return query(
        database,
        f"SELECT attname FROM pg_attribute WHERE attrelid = '{table}'::regclass"
        " AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
    )


def is_loud(database: Database) -> None:
    found = query(database, "SELECT id, loud FROM shop.note ORDER BY id")
    assert found == [(n, f"NOTE {n}{MARKS}") for n in range(1, ROWS + 1)]
    with pytest.raises(Exception, match=r"null value in column|loud_is_loud"):
        query(database, "UPDATE shop.note SET loud = 'not' WHERE id = 1")


def is_as_before(database: Database) -> None:
    assert columns(database) == ["id", "title"]
    left = "SELECT tgname FROM pg_trigger WHERE tgrelid = 'shop.note'::regclass"
    assert query(database, left) == []


@contextmanager
def closed_gate(database: Database) -> Generator[None]:
    """No batch gets past the row at the gate."""
    with session(database) as holder:
        holder.execute("SELECT pg_advisory_lock(7)")
        yield


def killed_on_the_way(
    project: AlembicProject,
    database: Database,
    *,
    direct: Database | None = None,
    table: str = "shop.note",
    **environment: str,
) -> None:
    """Start ``alembic upgrade heads``, and kill it with -9 when it did some of the rows."""
    direct = direct or database
    deadline = time.monotonic() + 10
    with (
        closed_gate(direct),
        project.start(database, "upgrade", "heads", **environment) as running,
    ):
        while not ("loud" in columns(direct, table) and filled(direct, table)):
            assert not running.ended, running.log
            assert time.monotonic() < deadline, running.log
            time.sleep(0.02)
        running.kill(signal.SIGKILL)
        assert running.end().code == -signal.SIGKILL
        assert 0 < filled(direct, table) < ROWS


def filled(database: Database, table: str) -> int:
    (rows,) = query(database, f"SELECT count(*) FROM {table} WHERE loud IS NOT NULL")
    return rows


def goes_on_and_back(
    project: AlembicProject,
    database: Database,
    *,
    direct: Database | None = None,
    **environment: str,
) -> None:
    """Killed, it goes on where it was; down it leaves nothing, and goes up again."""
    direct = direct or database
    killed_on_the_way(project, database, direct=direct, **environment)
    assert versions(direct) == ["before"]

    ok(project.alembic(database, "upgrade", "head", **environment))
    assert versions(direct) == ["after"]
    assert columns(direct, "shop.after") == ["id"]
    is_loud(direct)

    ok(project.alembic(database, "downgrade", "before", **environment))
    assert versions(direct) == ["before"]
    is_as_before(direct)

    ok(project.alembic(database, "upgrade", "head", **environment))
    assert versions(direct) == ["after"]
    is_loud(direct)


def project_between(database: Database, directory: Path, template: str) -> AlembicProject:
    """A project with a plain revision, ours, and a plain one after it."""
    project = make_project(directory, template)
    project.add_plain("before", "CREATE TABLE IF NOT EXISTS shop.before (id integer)")
    ours = render(database, SHOUT, alembic=project.ini)
    project.add(ours)
    project.add_plain("after", "CREATE TABLE IF NOT EXISTS shop.after (id integer)", down=ours.id)
    return project


def edit(project: AlembicProject, old: str, new: str) -> None:
    """Edit env.py in one place."""
    text = project.env.read_text(encoding="utf-8")
    assert text.count(old) == 1
    project.env.write_text(text.replace(old, new), encoding="utf-8")


# ---------------------------------------------------------------- drivers and transactions


@each_driver
@pytest.mark.parametrize("per_migration", ["yes", "no"])
def test_by_every_driver_it_is_killed_and_goes_on_and_back(
    shop: Database, tmp_path: Path, driver: str, per_migration: str
) -> None:
    project = project_between(shop, tmp_path / "project", DRIVERS[driver][0])

    goes_on_and_back(
        project, by(driver, shop), direct=shop, TRANSACTION_PER_MIGRATION=per_migration
    )


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("per_migration", ["yes", "no"])
def test_a_plain_revision_that_fails_behind_it_can_be_run_again(
    shop: Database, tmp_path: Path, driver: str, per_migration: str
) -> None:
    project = project_between(shop, tmp_path / "project", DRIVERS[driver][0])
    query(shop, "CREATE TABLE shop.later (id integer)")
    (ours,) = [path for path in project.env.parent.glob("versions/*.py") if len(path.stem) == 12]
    project.add_plain("after", "SELECT 1 / count(*) FROM shop.later", down=ours.stem)

    failed = project.alembic(
        by(driver, shop), "upgrade", "head", TRANSACTION_PER_MIGRATION=per_migration
    )
    assert failed.code == 1
    assert "division by zero" in failed.log
    is_loud(shop)

    query(shop, "INSERT INTO shop.later VALUES (1)")
    ok(
        project.alembic(
            by(driver, shop), "upgrade", "head", TRANSACTION_PER_MIGRATION=per_migration
        )
    )
    assert versions(shop) == ["after"]
    is_loud(shop)


@each_driver
def test_an_env_that_opened_a_transaction_itself_is_refused_in_one_sentence(
    shop: Database, tmp_path: Path, driver: str
) -> None:
    project = project_between(shop, tmp_path / "project", DRIVERS[driver][0])
    edit(project, "connectable.connect()", "connectable.begin()")

    refused = project.alembic(by(driver, shop), "upgrade", "head")

    assert refused.code == 1
    assert refused.sentence.endswith(
        "commits each batch, but env.py opened a transaction before context.configure();"
        " let Alembic open it, with context.begin_transaction()"
    )
    is_as_before(shop)
    assert versions(shop) == []


# ---------------------------------------------------------------- branches and the version table


def test_on_one_of_several_heads_it_follows_the_head_and_its_label(
    shop: Database, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project")
    project.add_plain("root", "CREATE TABLE shop.root (id integer)")
    for branch in ("loud", "quiet"):
        project.add_plain(branch, f"CREATE TABLE shop.{branch} (id integer)", down="root")
        path = project.env.parent / "versions" / f"{branch}.py"
        label = f"branch_labels = ('{branch}_branch',)\n"
        path.write_text(path.read_text().replace("\n\ndef upgrade", f"\n{label}\ndef upgrade", 1))
    ours = render(shop, SHOUT, alembic=project.ini, head="loud")
    project.add(ours)

    killed_on_the_way(project, shop)
    ok(project.alembic(shop, "upgrade", "heads"))
    assert versions(shop) == sorted([ours.id, "quiet"])
    is_loud(shop)

    ok(project.alembic(shop, "downgrade", "loud_branch@-1"))
    assert versions(shop) == ["loud", "quiet"]
    is_as_before(shop)

    ok(project.alembic(shop, "upgrade", "loud_branch@head"))
    ok(project.alembic(shop, "merge", "heads", "--rev-id", "merged", "-m", "merged"))
    ok(project.alembic(shop, "upgrade", "head"))
    assert versions(shop) == ["merged"]
    is_loud(shop)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_the_version_table_may_lie_in_another_schema(
    shop: Database, tmp_path: Path, driver: str
) -> None:
    query(shop, "CREATE SCHEMA ops")
    project = project_between(shop, tmp_path / "project", DRIVERS[driver][0])
    edit(
        project,
        "transaction_per_migration=per_migration,",
        "transaction_per_migration=per_migration,\n"
        "            version_table_schema='ops', version_table='applied',",
    )

    killed_on_the_way(project, by(driver, shop), direct=shop)
    assert versions(shop, "ops.applied") == ["before"]
    ok(project.alembic(by(driver, shop), "upgrade", "head"))

    assert versions(shop, "ops.applied") == ["after"]
    is_loud(shop)
    ok(project.alembic(by(driver, shop), "downgrade", "before"))
    assert versions(shop, "ops.applied") == ["before"]
    assert versions(shop) == []
    is_as_before(shop)


# ---------------------------------------------------------------- a pooler, another version


@pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "psycopg_async"])
def test_through_pgbouncer_each_transaction_may_reach_another_session(
    shop: Database, tmp_path: Path, driver: str
) -> None:
    project = project_between(shop, tmp_path / "project", DRIVERS[driver][0])

    with pooled(shop) as through:
        goes_on_and_back(project, by(driver, through), direct=shop)

        with session(through) as one, session(through) as two, session(through) as three:
            left = [
                connection.execute(
                    # the isolation of a transaction ends with it, whatever its source says
                    "SELECT name, setting FROM pg_settings WHERE source = 'session'"
                    " AND name <> 'transaction_isolation'"
                ).fetchall()
                for connection in (one, two, three)
            ]
    assert left == [[], [], []]


@pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")
def test_through_pgbouncer_several_connections_share_the_work(
    shop: Database, tmp_path: Path
) -> None:
    """Each waits in its first batch until the other is in one, too."""
    query(
        shop,
        "CREATE TABLE shop.page (id integer PRIMARY KEY, pad char(700)) WITH (fillfactor = 10);"
        f"INSERT INTO shop.page SELECT n, 'x' FROM generate_series(1, {ROWS}) AS n;"
        # one row a page, so that few rows are pages enough to be woven
        "ANALYZE shop.page;"
        "CREATE SEQUENCE shop.met;"
        "CREATE FUNCTION shop.meet() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM pg_advisory_xact_lock_shared(77);"
        " WHILE NOT (SELECT is_called FROM shop.met) LOOP"
        "  PERFORM nextval('shop.met') FROM pg_locks"
        "   WHERE locktype = 'advisory' AND objid = 77 HAVING count(*) = 2;"
        "  PERFORM pg_sleep(0.005);"
        " END LOOP; RETURN NULL; END $$;"
        "CREATE TRIGGER meet BEFORE UPDATE ON shop.page EXECUTE FUNCTION shop.meet()",
    )
    project = make_project(tmp_path / "project")
    size = add_column("page", sa.Column("size", sa.Integer()), schema="shop")
    sizes = backfill("shop.page", {"size": "length(pad) + id"}, connections=2)
    project.add(
        render(shop, Migration("size the pages", size, sizes), alembic=project.ini),
        {"WINDOW_PAGES": 100, "STRETCH_SECONDS": 0.02},
    )

    with pooled(shop) as through:
        ok(project.alembic(through, "upgrade", "head"))

    assert query(shop, "SELECT count(*) FROM shop.page WHERE size = 1 + id") == [ROWS]
    assert query(shop, "SELECT status, part FROM datamig.run WHERE part > 0 ORDER BY part") == [
        ("succeeded", part) for part in (1, 2, 3)
    ]


def test_on_postgresql_15_it_is_killed_and_goes_on_and_back(
    older: Database, tmp_path: Path
) -> None:
    query(older, NOTES)
    project = project_between(older, tmp_path / "project", "generic")

    assert older.major == 15
    goes_on_and_back(project, older)


# ---------------------------------------------------------------- sessions that differ


def alter(database: Database, settings: Mapping[str, str]) -> None:
    """Let every new session of a database begin with these settings."""
    name = database.url.database
    query(database, f"ALTER DATABASE {name} RESET ALL")
    for setting, value in settings.items():
        query(database, f"ALTER DATABASE {name} SET {setting} = {value}")


@pytest.fixture
def altered(shop: Database) -> Iterator[Callable[[Mapping[str, str]], None]]:
    """Change the settings of the shop's sessions; as they were again at the end."""
    yield lambda settings: alter(shop, settings)
    alter(shop, {})


SESSIONS = {
    "another search path": {"search_path": "nowhere, pg_temp"},
    "serializable": {"default_transaction_isolation": "serializable"},
    "other formats": {
        "datestyle": "'SQL, DMY'",
        "timezone": "'Asia/Kolkata'",
        "intervalstyle": "sql_standard",
        "bytea_output": "escape",
        "extra_float_digits": "-15",
    },
    "other limits and messages": {
        "lock_timeout": "'1min'",
        "statement_timeout": "'30s'",
        "idle_in_transaction_session_timeout": "'10s'",
        "client_min_messages": "debug1",
        "row_security": "off",
        "check_function_bodies": "off",
        "plpgsql.variable_conflict": "use_column",
    },
}


@pytest.mark.parametrize("settings", SESSIONS.values(), ids=SESSIONS)
def test_the_settings_of_its_sessions_do_not_matter(
    shop: Database,
    tmp_path: Path,
    altered: Callable[[Mapping[str, str]], None],
    settings: dict[str, str],
) -> None:
    project = make_project(tmp_path / "project")  # Alembic's own table is not found by the path
    edit(
        project,
        "transaction_per_migration=",
        "version_table_schema='public',\n            transaction_per_migration=",
    )
    project.add(render(shop, SHOUT, alembic=project.ini))
    altered(settings)

    ok(project.alembic(shop, "upgrade", "head"))

    altered({})
    is_loud(shop)
    altered(settings)
    ok(project.alembic(shop, "downgrade", "base"))
    altered({})
    is_as_before(shop)


def test_where_a_backslash_is_an_escape_it_is_right_or_refused_before_the_first_write(
    shop: Database, tmp_path: Path, altered: Callable[[Mapping[str, str]], None]
) -> None:
    project = project_between(shop, tmp_path / "project", "generic")
    altered({"standard_conforming_strings": "off"})

    outcome = project.alembic(shop, "upgrade", "head")

    altered({})
    if outcome.code == 0:
        is_loud(shop)
    else:
        assert "standard_conforming_strings" in outcome.sentence
        is_as_before(shop)


TIMES = f"""
CREATE TABLE shop.event (at timestamptz PRIMARY KEY, what text);
INSERT INTO shop.event
SELECT '2026-03-02 00:00+00'::timestamptz + n * interval '3 minutes 1 microsecond',
       format('note %s', n)
  FROM generate_series(1, {ROWS}) AS n
"""


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"datestyle": "'German'"}),
        ({"datestyle": "'SQL, DMY'"}, {"datestyle": "'SQL, MDY'"}),
        ({"datestyle": "'SQL, DMY'", "timezone": "'Asia/Kolkata'"}, {"timezone": "'UTC'"}),
        ({"timezone": "'America/New_York'"}, {"timezone": "'Australia/Lord_Howe'"}),
        ({"datestyle": "'Postgres, MDY'", "timezone": "'Europe/London'"}, {}),
    ],
    ids=str,
)
def test_a_time_that_was_noted_in_one_session_is_read_right_in_another(
    shop: Database,
    tmp_path: Path,
    altered: Callable[[Mapping[str, str]], None],
    first: dict[str, str],
    then: dict[str, str],
) -> None:
    query(shop, TIMES)
    project = make_project(tmp_path / "project")
    migration = Migration(
        "shout events",
        add_column("event", sa.Column("loud", sa.Text()), schema="shop"),
        backfill("shop.event", {"loud": "shop.said(what)"}),
        no_nulls("shop.event", "loud"),
    )
    project.add(render(shop, migration, alembic=project.ini))
    altered(first)
    killed_on_the_way(project, shop, table="shop.event")
    altered(then)
    ok(project.alembic(shop, "upgrade", "head"))

    assert query(shop, "SELECT what FROM shop.event WHERE loud IS DISTINCT FROM upper(what)") == []

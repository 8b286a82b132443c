"""The script of ``alembic upgrade --sql``, run by psql, killed in the middle, and run again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from datamig_nb.database import Database
from datamig_nb.render import render
from datamig_nb.server_setup import binaries
from tests.alembic_project import AlembicProject
from tests.faults.worlds import MAKE_SHOP, SHOP_SETTINGS, every_kind_of_step, picture, rows_of
from tests.runs import ok, wait_until
from tests.scratch import query

BEFORE = "0000"


def written_script(project: AlembicProject, database: Database, *words: str) -> Path:
    """What Alembic prints."""
    script = project.directory / f"{words[0]}.sql"
    with script.open("w") as file:
        subprocess.run(
            [sys.executable, "-m", "alembic", *words, "--sql"],
            cwd=project.directory,
            env={**os.environ, "DATABASE_URL": database.dsn},
            stdout=file,
            stderr=subprocess.PIPE,
            check=True,
        )
    return script


@contextmanager
def psql(database: Database, script: Path) -> Generator[subprocess.Popen[str]]:
    """The script under way in psql, which stops at the first error."""
    program = str(binaries() / "psql")
    words = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={script}"]
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with subprocess.Popen(
        [program, *words, url],
        env={"PATH": os.defpath, "LC_ALL": "C"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def run_script(database: Database, script: Path) -> tuple[int, list[str]]:
    """Exit code and errors of psql."""
    with psql(database, script) as running:
        errors = running.communicate(timeout=60)[1]
    return running.returncode, [line for line in errors.splitlines() if "ERROR" in line]


def test_a_script_killed_in_the_middle_and_run_again_gives_the_same_data_up_and_down(
    database: Database,
    make_database: Callable[[str], Database],
    project: AlembicProject,
    chance: random.Random,
    killed: Counter[str],
) -> None:
    """Its session goes on for a while, and its successor does not mind."""
    query(database, MAKE_SHOP)
    project.add_plain(BEFORE, "SELECT 1")
    revision = render(database, every_kind_of_step(), alembic=project.ini)
    ok(project.alembic(database, "upgrade", "head"))
    undisturbed = make_database(str(database.url.database))
    before = rows_of(database)
    project.add(revision, SHOP_SETTINGS)
    words = {"up": ("upgrade", f"{BEFORE}:head"), "down": ("downgrade", f"head:{BEFORE}")}

    for way, (command, span) in words.items():
        span = span.replace("head:", f"{revision.id}:")
        script = written_script(project, database, command, span)
        began = time.monotonic()
        assert run_script(undisturbed, script) == (0, [])
        seconds = time.monotonic() - began
        for _ in range(8):
            with psql(database, script) as running:
                time.sleep(chance.uniform(0.02, seconds))
                killed[way] += running.poll() is None
                running.send_signal(signal.SIGKILL)
                running.wait()
        assert run_script(database, script) == (0, [])
        assert picture(database) == picture(undisturbed)

    assert rows_of(database) == before


def test_a_check_that_fails_stops_the_script_with_the_sentence_that_alembic_says(
    database: Database, make_database: Callable[[str], Database], project: AlembicProject
) -> None:
    """Before the first write, and after the last."""
    query(database, MAKE_SHOP)
    project.add_plain(BEFORE, "SELECT 1")
    revision = render(database, every_kind_of_step(), alembic=project.ini)
    ok(project.alembic(database, "upgrade", "head"))
    project.add(revision, SHOP_SETTINGS)
    script = written_script(project, database, "upgrade", f"{BEFORE}:head")

    wrongs = {
        "INSERT INTO shop.item VALUES (-7, 'nowhere', 1, 1)": "every state of shop.item has a new",
        "UPDATE shop.page SET body = body || 'x' WHERE id = 5": "a page has 960 letters",
    }
    for wrong, said in wrongs.items():
        online = make_database(str(database.url.database))
        other = make_database(str(database.url.database))
        query(online, wrong)
        query(other, wrong)
        outcome = project.alembic(online, "upgrade", "head")
        code, errors = run_script(other, script)

        assert said in outcome.sentence
        assert (code, len(errors)) == (3, 1)
        assert errors[0].endswith(f"ERROR:  {outcome.sentence}")
        assert query(other, "SELECT version_num FROM alembic_version") == [BEFORE]
        if "page" in wrong:
            # as online, what stands before the sql() is not done again once that is sent
            query(other, "UPDATE shop.page SET body = rtrim(body, 'x'), letters = 960 WHERE id = 5")
            assert run_script(other, script) == (0, [])
            assert query(other, "SELECT version_num FROM alembic_version") == [revision.id]


def test_a_script_whose_client_is_gone_ends_before_its_walk_does_and_obeys_a_pause(
    database: Database, project: AlembicProject, killed: Counter[str]
) -> None:
    """The server notices by itself; and whoever pauses a run is heard between two batches."""
    query(database, MAKE_SHOP)
    query(
        database,
        "CREATE FUNCTION shop.slow() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_sleep(0.05); RETURN NULL; END $$;"
        "CREATE TRIGGER slow AFTER UPDATE ON shop.page EXECUTE FUNCTION shop.slow();"
        "INSERT INTO shop.page SELECT n, repeat(md5(n::text), 30) FROM generate_series(81, 900) n",
    )
    project.add_plain(BEFORE, "SELECT 1")
    revision = render(database, every_kind_of_step(), alembic=project.ini)
    ok(project.alembic(database, "upgrade", "head"))
    project.add(revision, SHOP_SETTINGS)
    script = written_script(project, database, "upgrade", f"{BEFORE}:head")
    walking = "SELECT batches FROM datamig.run WHERE step = 'fill letters' AND batches > 3"
    is_there = "SELECT to_regclass('datamig.run') IS NOT NULL"
    at_work = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'psql'"
        f" AND datname = '{database.url.database}'"
    )

    with psql(database, script) as running:
        wait_until(lambda: query(database, is_there) == [True] and query(database, walking))
        query(database, "UPDATE datamig.run SET status = 'paused' WHERE step = 'fill letters'")
        (batches,) = query(database, walking)
        time.sleep(0.3)
        still = query(database, walking)
        query(database, "UPDATE datamig.run SET status = 'running' WHERE step = 'fill letters'")
        wait_until(lambda: query(database, walking) != still)
        running.send_signal(signal.SIGKILL)
        running.wait()
        killed["psql"] += 1
    wait_until(lambda: query(database, at_work) == [0])

    assert still == [batches]
    assert query(database, "SELECT status FROM datamig.run WHERE step = 'fill letters'") == [
        "running"
    ]

"""Sessions and servers end in the middle of what the database itself does, between two commits."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable

from datamig_nb.database import Database, connect
from datamig_nb.render import render
from datamig_nb.server_setup import binaries
from tests.alembic_project import AlembicProject
from tests.faults.kills import has_burnt, lay_fuse, light_fuse, opened_by_and_by, set_gate
from tests.faults.line import line_to
from tests.faults.worlds import (
    MAKE_SHOP,
    SHOP_SETTINGS,
    every_kind_of_step,
    picture,
    rows_of,
    schema_of,
)
from tests.faults.writers import (
    MAKE_TASKS,
    TASKS,
    found_tasks,
    journal,
    loud_tasks,
    writing,
    wrong_tasks,
)
from tests.runs import held, ok, scanned, small_batches, wait_until
from tests.scratch import query
from tests.second_server import second_server

#: The client looks once in five seconds: all happens inside the database.
LONG_STRETCHES = {**SHOP_SETTINGS, "STRETCH_SECONDS": 5}
TABLES = ("shop.item", "shop.page", "shop.visit", "shop.word")


def test_a_session_that_ends_inside_a_batch_or_at_its_commit_leaves_no_half_batch(
    database: Database,
    make_database: Callable[[str], Database],
    project: AlembicProject,
    chance: random.Random,
    killed: Counter[str],
) -> None:
    """It ends itself at a chosen row, after a chosen batch, or at that batch's COMMIT."""
    query(database, MAKE_SHOP)
    lay_fuse(database, *TABLES)
    undisturbed = make_database(str(database.url.database))
    before = schema_of(database), rows_of(database)
    project.add(render(database, every_kind_of_step()), LONG_STRETCHES)
    ok(project.alembic(undisturbed, "upgrade", "head"))
    wanted = picture(undisturbed)
    ok(project.alembic(undisturbed, "downgrade", "-1"))

    for way, words in {"up": ("upgrade", "head"), "down": ("downgrade", "-1")}.items():
        while True:
            # a batch is 15 rows and two moments: some end in the first, most in a later one
            light_fuse(database, chance.randrange(1, 45))
            outcome = project.alembic(database, *words)
            if not has_burnt(database):
                break
            assert "terminating connection" in outcome.log
            killed[way] += 1
        ok(outcome)
        if way == "up":
            assert picture(database) == wanted

    assert picture(database) == picture(undisturbed)
    assert (schema_of(database), rows_of(database)) == before


def test_a_server_that_crashes_comes_back_to_whole_batches_and_loses_no_write(
    project: AlembicProject, chance: random.Random, killed: Counter[str]
) -> None:
    """By an immediate stop and by SIGKILL of all its processes, while the application writes."""
    with second_server(binaries()) as server:
        postgres = connect(server.url)
        query(postgres, "CREATE DATABASE shop")
        database = postgres.at("shop")
        query(database, MAKE_TASKS)
        settings = {**small_batches(20), "WOVEN_FROM_PAGES": 2, "WINDOW_PAGES": 6}
        project.add(render(database, loud_tasks()), settings)
        set_gate(database, "task")

        with writing(database, chance) as writers:
            for place, enough in opened_by_and_by(database, chance, 4, TASKS):
                number = (signal.SIGQUIT, signal.SIGKILL)[place % 2]
                with project.start(database, "upgrade", "head") as running:
                    wait_until(lambda enough=enough: scanned(database) >= enough)
                    time.sleep(chance.uniform(0, 0.02))
                    server.crash(number)
                    assert running.end().code == 1
                server.start()
                killed[number.name] += 1
            ok(project.alembic(database, "upgrade", "head"))

        assert wrong_tasks(database) == []
        assert found_tasks(database) == journal(writers)


def test_a_cut_line_leaves_a_session_at_work_that_disturbs_nobody(
    database: Database,
    make_database: Callable[[str], Database],
    project: AlembicProject,
    chance: random.Random,
    killed: Counter[str],
) -> None:
    """The server is not told: its session goes on to the end of its stretch, beside the next.

    Somebody holds rows that the last walk deletes, so that no run arrives too early.
    """
    query(database, MAKE_SHOP)
    undisturbed = make_database(str(database.url.database))
    project.add(render(database, every_kind_of_step()), {**SHOP_SETTINGS, "STRETCH_SECONDS": 0.3})
    ok(project.alembic(undisturbed, "upgrade", "head"))

    with line_to(database) as (far, line):
        with held(database, "SELECT FROM shop.visit FOR UPDATE"):
            for _ in range(4):
                with project.start(far, "upgrade", "head") as running:
                    wait_until(lambda: scanned(database))
                    time.sleep(chance.uniform(0, 0.3))
                    line.cut()
                    assert running.end().code == 1
                killed["line"] += 1
        ok(project.alembic(database, "upgrade", "head"))

    assert picture(database) == picture(undisturbed)

"""Two processes with one upgrade, and others who hold locks longer than it waits for one."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable

from datamig_nb.database import Database
from datamig_nb.render import render
from tests.alembic_project import AlembicProject
from tests.faults.test_exactly_once import (
    MAKE_PRICES,
    RAISE_PRICES,
    RAISED,
    ROWS,
    hash_of,
)
from tests.faults.worlds import MAKE_SHOP, SHOP_SETTINGS, every_kind_of_step, picture
from tests.faults.writers import MAKE_TASKS, found_tasks, journal, loud_tasks, writing, wrong_tasks
from tests.runs import held, ok, scanned, small_batches, version, wait_until
from tests.scratch import query

ONE_BY_ONE = {**small_batches(1), "LOCK_TIMEOUT": "300ms"}


def test_two_processes_killed_in_turn_do_each_batch_once(
    database: Database, project: AlembicProject, chance: random.Random, killed: Counter[str]
) -> None:
    """There are always two, one younger than the other; the older is killed."""
    query(database, MAKE_PRICES)
    raised = hash_of(database, RAISED)
    revision = render(database, RAISE_PRICES)
    project.add(revision, ONE_BY_ONE)
    ok(project.alembic(database, "ensure_version"))  # else they contend for Alembic's own table

    older = project.start(database, "upgrade", "head")
    while not older.ended:
        with older:
            younger = project.start(database, "upgrade", "head")
            enough = scanned(database) + chance.randrange(10, 80)
            wait_until(
                lambda enough=enough, older=older: scanned(database) >= enough or older.ended
            )
        killed["older"] += older.end().code == -signal.SIGKILL
        older = younger
    with older:
        older.end()
    ok(project.alembic(database, "upgrade", "head"))

    assert hash_of(database) == raised
    batches = "SELECT scanned, changed, batches FROM datamig.run WHERE part > 0 ORDER BY step"
    assert query(database, batches) == [(ROWS, ROWS * 4 // 5, ROWS), (ROWS, ROWS, ROWS)]
    assert version(database) == [revision.id]
    assert killed.total() > 1


def test_neither_of_two_processes_gives_up_while_the_other_is_in_a_slow_batch(
    database: Database, project: AlembicProject
) -> None:
    """Each waits for the row of datamig.run longer than one waits for a lock."""
    query(
        database,
        f"{MAKE_PRICES}; CREATE FUNCTION shop.slow() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$;"
        "CREATE TRIGGER slow AFTER UPDATE ON shop.price EXECUTE FUNCTION shop.slow()",
    )
    raised = hash_of(database, RAISED)
    project.add(render(database, RAISE_PRICES), {**small_batches(40), "LOCK_TIMEOUT": "50ms"})
    ok(project.alembic(database, "ensure_version"))

    with (
        project.start(database, "upgrade", "head") as one,
        project.start(database, "upgrade", "head") as other,
    ):
        outcomes = [one.end(), other.end()]

    assert "stopped: canceling statement" not in outcomes[0].log + outcomes[1].log
    assert 0 in [outcome.code for outcome in outcomes]
    assert hash_of(database) == raised


def test_a_batch_that_meets_a_lock_waits_longer_each_time(
    database: Database, project: AlembicProject
) -> None:
    """Also where the client looks in after each attempt, as it does by default."""
    query(database, MAKE_PRICES)
    revision = render(database, RAISE_PRICES)
    project.add(revision, {"LOCK_TIMEOUT": "50ms", "STRETCH_SECONDS": 0, "ATTEMPTS": 5})

    with held(database, "SELECT FROM shop.price WHERE item = 'item 1' FOR UPDATE"):
        began = time.monotonic()
        stopped = project.alembic(database, "upgrade", "head")
        seconds = time.monotonic() - began

    # 0.2 + 0.4 + 0.8 + 1.6 s, each by chance half as long at least
    assert 1.5 < seconds < 6
    assert stopped.sentence == (
        f"{revision.id} failed at 'fill price, odd': canceling statement due to lock timeout, 5"
        " times; find out in pg_stat_activity who holds the lock; run Alembic again, it goes on"
        " here"
    )


def test_locks_held_longer_than_it_waits_for_one_change_nothing_but_the_time(
    database: Database, make_database: Callable[[str], Database], project: AlembicProject
) -> None:
    """Somebody locks a whole table, then another one, then single rows, again and again."""
    query(database, MAKE_SHOP)
    undisturbed = make_database(str(database.url.database))
    settings = {**SHOP_SETTINGS, "LOCK_TIMEOUT": "100ms"}
    project.add(render(database, every_kind_of_step()), settings)
    ok(project.alembic(undisturbed, "upgrade", "head"))
    locks = (
        "LOCK shop.item IN SHARE MODE",
        "SELECT count(*) FROM shop.page",
        "SELECT FROM shop.item WHERE id > 100 FOR UPDATE",
        "SELECT FROM shop.page WHERE id % 13 = 0 FOR SHARE",
        "LOCK shop.visit",
        "SELECT FROM shop.visit LIMIT 3 FOR UPDATE",
        "LOCK shop.word",
    )

    logs: list[str] = []
    for lock in locks:
        with held(database, lock) as other, project.start(database, "upgrade", "head") as running:
            wait_until(lambda: running.ended or "lock timeout" in running.log)
            other.execute("COMMIT")
            logs.append(ok(running.end()).log)
        if version(database):
            break

    assert picture(database) == picture(undisturbed)
    assert "lock timeout" in logs[0]


def test_two_processes_and_writers_end_with_every_row_right(
    database: Database, project: AlembicProject, chance: random.Random, killed: Counter[str]
) -> None:
    query(database, MAKE_TASKS)
    settings = {**small_batches(20), "WOVEN_FROM_PAGES": 2, "WINDOW_PAGES": 6}
    project.add(render(database, loud_tasks(connections=2)), settings)
    ok(project.alembic(database, "ensure_version"))

    with writing(database, chance) as writers:
        for _ in range(3):
            with (
                project.start(database, "upgrade", "head") as one,
                project.start(database, "upgrade", "head") as other,
            ):
                enough = scanned(database) + chance.randrange(20, 400)
                wait_until(
                    lambda enough=enough: scanned(database) >= enough or one.ended or other.ended
                )
                if not (one.ended or other.ended):
                    chance.choice((one, other)).kill(signal.SIGKILL)
                    killed["one of two"] += 1
                wait_until(lambda: one.ended or other.ended)
        ok(project.alembic(database, "upgrade", "head"))

    assert wrong_tasks(database) == []
    assert found_tasks(database) == journal(writers)

"""Somebody holds locks on the table or on rows of it, longer than one waits for a lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.render import render
from tests.alembic_project import AlembicProject
from tests.faults.kills import open_gate, set_gate
from tests.faults.prices import MAKE_PRICES, RAISE_PRICES
from tests.faults.worlds import MAKE_SHOP, SHOP_SETTINGS, every_kind_of_step, picture
from tests.items import BATCH, ROWS, SMALL, found_sizes, sized, sizes
from tests.runs import held, ok, scanned, small_batches, version, wait_until, walks
from tests.scratch import query, session

IMPATIENT = {"LOCK_TIMEOUT": "100ms", "ATTEMPTS": 3}


def test_a_lock_held_long_is_waited_for_and_blocks_nobody_as_long(
    items: Database, project: AlembicProject
) -> None:
    """A long report holds the table; the application, queued behind, reads before it is over."""
    project.add(sized(items))
    waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'item'::regclass AND NOT granted"
    reads: list[Any] = []

    def application() -> None:
        reads.append(query(items, "SELECT note FROM item LIMIT 1"))

    thread = threading.Thread(target=application)
    with (
        held(items, "SELECT count(*) FROM item") as report,
        project.start(items, "upgrade", "head") as running,
    ):
        wait_until(lambda: query(items, waiting) == [1])
        thread.start()
        wait_until(lambda: query(items, waiting) == [2])
        wait_until(lambda: reads)
        report.execute("COMMIT")
        outcome = running.end()
    thread.join()

    assert "lock timeout" in ok(outcome).log
    assert found_sizes(items) == sizes()


def test_a_lock_on_one_row_makes_its_batch_wait_and_no_other(
    items: Database, project: AlembicProject
) -> None:
    project.add(sized(items), {**SMALL, "LOCK_TIMEOUT": "200ms"})
    with project.start(items, "upgrade", "head") as running:
        wait_until(lambda: scanned(items))
        with held(items, f"SELECT FROM item WHERE id = {ROWS * 3 - 4000} FOR UPDATE") as other:
            wait_until(lambda: scanned(items) == ROWS - BATCH)
            time.sleep(0.5)
            before = scanned(items)
            other.execute("COMMIT")
        outcome = running.end()

    assert "lock timeout" in ok(outcome).log
    assert before == ROWS - BATCH
    assert walks(items) == [("succeeded", ROWS, ROWS, ROWS // BATCH)]


def test_a_lock_on_the_whole_table_makes_the_walk_wait_and_look_again(
    items: Database, project: AlembicProject
) -> None:
    """It is the search for the next key that meets it first."""
    project.add(sized(items), {**SMALL, "LOCK_TIMEOUT": "100ms"})
    set_gate(items, "item")
    open_gate(items, ROWS // 2)
    batch = "SELECT 1 FROM pg_locks WHERE mode = 'RowExclusiveLock' AND relation = 'item'::regclass"
    waiting = "SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"
    with session(items) as other, project.start(items, "upgrade", "head") as running:
        wait_until(lambda: scanned(items) >= ROWS // 2 and query(items, batch))
        other.execute("BEGIN")
        thread = threading.Thread(target=other.execute, args=[b"LOCK item"])
        thread.start()
        wait_until(lambda: query(items, waiting))
        open_gate(items)
        thread.join()
        wait_until(lambda: "lock timeout" in running.log)
        other.execute("COMMIT")
        ok(running.end())

    assert found_sizes(items) == sizes()


def test_a_statement_timeout_that_is_too_short_to_look_back_is_told(
    items: Database, project: AlembicProject
) -> None:
    """Each batch has time enough; to look at all rows at once takes two seconds at least."""
    query(
        items,
        f"DELETE FROM item WHERE id > {200 * 3 - 4000}; CREATE FUNCTION slow(text) RETURNS integer"
        " LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM pg_sleep(0.01); RETURN length($1); END $$",
    )
    size = dm.add_column("item", sa.Column("size", sa.Integer()))
    migration = dm.Migration("size the items", size, dm.backfill("item", {"size": "slow(note)"}))
    revision = render(items, migration)
    project.add(revision, {**small_batches(2), "ATTEMPTS": 2})
    name = items.url.database
    query(items, f"ALTER DATABASE {name} SET statement_timeout = '1500ms'")

    stopped = project.alembic(items, "upgrade", "head")

    assert stopped.sentence == (
        f"{revision.id} failed at 'fill size': canceling statement due to statement timeout, 2"
        " times; set a longer statement_timeout; run Alembic again, it goes on here"
    )
    assert walks(items)[0][1:] == (200, 200, 100)
    query(items, f"ALTER DATABASE {name} RESET statement_timeout")
    ok(project.alembic(items, "upgrade", "head"))


def test_a_lock_held_for_ever_ends_the_run_with_a_sentence(
    items: Database, project: AlembicProject
) -> None:
    revision = sized(items)
    project.add(revision, IMPATIENT)
    with held(items, "SELECT count(*) FROM item"):
        stopped = project.alembic(items, "upgrade", "head")

    assert stopped.code == 1
    assert stopped.log.count("lock timeout, attempt") == 2
    assert stopped.sentence == (
        f"{revision.id} gave up after 3 attempts: canceling statement due to lock timeout; find out"
        " in pg_stat_activity who holds the lock, and run Alembic again, it goes on here"
    )
    assert version(items) == []
    ok(project.alembic(items, "upgrade", "head"))
    assert found_sizes(items) == sizes()


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
    assert seconds > 1.5
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

"""Two processes run one upgrade."""

from __future__ import annotations

import random
import signal
from collections import Counter

from datamig_nb.database import Database
from datamig_nb.render import render
from tests.alembic_project import AlembicProject
from tests.faults.kills import opened_by_and_by, set_gate
from tests.faults.prices import MAKE_PRICES, PRICES, RAISE_PRICES, RAISED, hash_of
from tests.faults.writers import (
    MAKE_TASKS,
    TASKS,
    found_tasks,
    journal,
    loud_tasks,
    writing,
    wrong_tasks,
)
from tests.items import BATCH, ROWS, SMALL, found_sizes, sized, sizes
from tests.runs import ok, scanned, small_batches, version, wait_until, walks
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

    set_gate(database, "shop.price")

    older = project.start(database, "upgrade", "head")
    for _, enough in opened_by_and_by(database, chance, 8, 2 * PRICES):
        with older:
            younger = project.start(database, "upgrade", "head")
            wait_until(lambda enough=enough: scanned(database) >= enough)
        assert older.end().code == -signal.SIGKILL
        killed["older"] += 1
        older = younger
    with older:
        older.end()
    ok(project.alembic(database, "upgrade", "head"))

    assert hash_of(database) == raised
    batches = "SELECT scanned, changed, batches FROM datamig.run WHERE part > 0 ORDER BY step"
    assert query(database, batches) == [(PRICES, PRICES * 4 // 5, PRICES), (PRICES, PRICES, PRICES)]
    assert version(database) == [revision.id]


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


def test_two_processes_and_writers_end_with_every_row_right(
    database: Database, project: AlembicProject, chance: random.Random, killed: Counter[str]
) -> None:
    query(database, MAKE_TASKS)
    settings = {**small_batches(20), "WOVEN_FROM_PAGES": 2, "WINDOW_PAGES": 6}
    project.add(render(database, loud_tasks(connections=2)), settings)
    ok(project.alembic(database, "ensure_version"))

    set_gate(database, "task")
    with writing(database, chance) as writers:
        for _, enough in opened_by_and_by(database, chance, 4, TASKS):
            with (
                project.start(database, "upgrade", "head") as one,
                project.start(database, "upgrade", "head") as other,
            ):
                wait_until(lambda enough=enough: scanned(database) >= enough)
                dies, lives = chance.choice(((one, other), (other, one)))
                dies.kill(signal.SIGKILL)
                assert dies.end().code == -signal.SIGKILL
                assert not lives.ended, lives.log
                killed["one of two"] += 1
        ok(project.alembic(database, "upgrade", "head"))

    assert wrong_tasks(database) == []
    assert found_tasks(database) == journal(writers)


def test_two_upgrades_at_once_do_each_batch_once(items: Database, project: AlembicProject) -> None:
    revision = sized(items)
    project.add(revision, SMALL)

    with (
        project.start(items, "upgrade", "head") as one,
        project.start(items, "upgrade", "head") as other,
    ):
        outcomes = [one.end(), other.end()]

    assert 0 in [outcome.code for outcome in outcomes], outcomes
    assert walks(items) == [("succeeded", ROWS, ROWS, ROWS // BATCH)]
    assert found_sizes(items) == sizes()
    assert version(items) == [revision.id]

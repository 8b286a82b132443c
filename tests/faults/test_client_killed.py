"""The client is killed: before each of its statements in turn, and in the ways that people do."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable

from datamig_nb.database import Database
from datamig_nb.render import render
from tests.alembic_project import AlembicProject
from tests.faults.kills import die_before_each_statement, open_gate, set_gate
from tests.faults.worlds import (
    MAKE_SHOP,
    SHOP_SETTINGS,
    every_kind_of_step,
    picture,
    rows_of,
    schema_of,
)
from tests.items import BATCH, ROWS, SMALL, found_sizes, sized, sizes
from tests.runs import ok, scanned, version, wait_until, walks
from tests.scratch import query


def test_killed_before_each_statement_in_turn_it_arrives_up_and_down(
    database: Database,
    make_database: Callable[[str], Database],
    project: AlembicProject,
    killed: Counter[str],
) -> None:
    """Every kind of step, and every gap between two statements, Alembic's own included."""
    query(database, MAKE_SHOP)
    undisturbed = make_database(str(database.url.database))
    before = schema_of(database), rows_of(database)
    project.add(render(database, every_kind_of_step()), SHOP_SETTINGS)
    ok(project.alembic(undisturbed, "upgrade", "head"))
    wanted = picture(undisturbed)
    ok(project.alembic(undisturbed, "downgrade", "-1"))

    killed["up"] = die_before_each_statement(database, project, "upgrade", "head")
    up = picture(database)
    killed["down"] = die_before_each_statement(database, project, "downgrade", "-1")
    down = picture(database)

    assert up == wanted
    assert down == picture(undisturbed)
    assert (down["schema"], down["rows"]) == before
    assert killed.total() > 100
    # and nothing is left behind that would make the next upgrade skip a row or a check
    query(database, "INSERT INTO shop.item VALUES (0, 'nowhere', 1, 1)")
    refused = project.alembic(database, "upgrade", "head")
    assert "requires: every state of shop.item has a new value; 1 rows fail" in refused.sentence
    query(database, "DELETE FROM shop.item WHERE id = 0")
    ok(project.alembic(database, "upgrade", "head"))
    # the rows lie on other pages now, which a woven walk counts
    assert {**picture(database), "walks": ()} == {**wanted, "walks": ()}


def test_killed_in_the_middle_of_its_batches_goes_on_where_it_was(
    items: Database, project: AlembicProject
) -> None:
    project.add(sized(items), SMALL)
    set_gate(items, "item")
    open_gate(items, ROWS - BATCH)
    with project.start(items, "upgrade", "head") as running:
        wait_until(lambda: scanned(items) > ROWS / 3)
        running.kill(signal.SIGKILL)
        assert running.end().code == -signal.SIGKILL
    (before,) = walks(items)
    assert (before[0], version(items)) == ("running", [])
    assert ROWS / 3 < before[1] < ROWS

    open_gate(items)
    ok(project.alembic(items, "upgrade", "head"))

    # each row and each batch was counted once, so what was done was not done again
    assert walks(items) == [("succeeded", ROWS, ROWS, ROWS // BATCH)]
    assert found_sizes(items) == sizes()


def test_ended_at_any_moment_arrives_where_an_undisturbed_run_does(
    items: Database, make_database: Callable[[str], Database], project: AlembicProject
) -> None:
    """Ended by kill -9, by Ctrl-C, by kill, and by the server that ends its session."""
    undisturbed = make_database(str(items.url.database))
    revision = sized(items)
    project.add(revision, SMALL)
    set_gate(items, "item")
    open_gate(items, ROWS - BATCH)
    ended: list[int] = []
    for number, end in enumerate((signal.SIGKILL, signal.SIGINT, None, signal.SIGTERM), 1):
        with project.start(items, "upgrade", "head") as running:
            wait_until(lambda least=number * ROWS / 6: scanned(items) > least)
            if end is None:
                terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ="
                query(items, f"{terminate} '{items.url.database}' AND pid <> pg_backend_pid()")
            else:
                running.kill(end)
            ended.append(running.end().code)
    assert ended == [-signal.SIGKILL, -signal.SIGINT, 1, -signal.SIGTERM]

    open_gate(items)
    ok(project.alembic(items, "upgrade", "head"))
    ok(project.alembic(undisturbed, "upgrade", "head"))

    rows = "SELECT item::text FROM item ORDER BY id"
    assert query(items, rows) == query(undisturbed, rows)
    assert walks(items) == walks(undisturbed) == [("succeeded", ROWS, ROWS, ROWS // BATCH)]
    assert version(items) == version(undisturbed) == [revision.id]

"""The application writes on, while an upgrade runs, is killed, and goes on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

import pytest

from datamig_nb.database import Database
from datamig_nb.render import render
from tests.alembic_project import AlembicProject
from tests.faults.kills import killed_while_it_runs, set_gate
from tests.faults.writers import (
    MAKE_TASKS,
    TASKS,
    found_tasks,
    journal,
    loud_tasks,
    writing,
    wrong_tasks,
)
from tests.runs import ok, small_batches, wait_until
from tests.scratch import query

SMALL = {**small_batches(20), "LOCK_TIMEOUT": "300ms"}
WAYS: Mapping[str, tuple[int, Mapping[str, object]]] = {
    "by key": (1, {**SMALL, "WOVEN_FROM_PAGES": 10**6}),
    "woven": (1, {**SMALL, "WOVEN_FROM_PAGES": 2, "WINDOW_PAGES": 6}),
    "woven on two connections": (2, {**SMALL, "WOVEN_FROM_PAGES": 2, "WINDOW_PAGES": 6}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_row_is_right_and_no_write_is_lost_however_often_it_is_killed(
    way: str,
    database: Database,
    project: AlembicProject,
    chance: random.Random,
    killed: Counter[str],
) -> None:
    query(database, MAKE_TASKS)
    connections, settings = WAYS[way]
    project.add(render(database, loud_tasks(connections)), settings)
    set_gate(database, "task")

    with writing(database, chance) as writers:
        words = ("upgrade", "head")
        killed += killed_while_it_runs(database, project, chance, 12, TASKS, *words)
        ok(project.alembic(database, *words))
        wait_until(lambda: all(writer.commits for writer in writers))

    assert wrong_tasks(database) == []
    assert found_tasks(database) == journal(writers)

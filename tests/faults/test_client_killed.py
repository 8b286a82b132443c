"""The client is killed with SIGKILL before each of its statements in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from datamig_nb.database import Database
from datamig_nb.render import render
from tests.alembic_project import AlembicProject
from tests.faults.kills import die_before_each_statement
from tests.faults.worlds import (
    MAKE_SHOP,
    SHOP_SETTINGS,
    every_kind_of_step,
    picture,
    rows_of,
    schema_of,
)
from tests.runs import ok
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
    assert killed.total() >= 200

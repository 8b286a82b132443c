"""Real migrations of public projects, each through the public API alone and judged by an oracle.

``python -m tests.cases`` renews the table in README.md.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.inlined_walk import CONFLICT
from tests.alembic_project import AlembicProject
from tests.cases.harness import CASES, DESCRIBED, HERE, Case, picture, table_of_lines
from tests.faults.kills import has_burnt, lay_fuse, light_fuse
from tests.runs import ok, scanned, small_batches
from tests.scratch import query

ROWS = 10_000

described = pytest.mark.skipif(
    not DESCRIBED.is_dir(), reason=f"the cases are described in {DESCRIBED}, which is not there"
)


@described
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.description.name)
def test_case_is_right_undisturbed_and_killed_in_the_middle_and_has_its_way_back(
    case: Case,
    database: Database,
    make_database: Callable[[str], Database],
    project: AlembicProject,
) -> None:
    case.load(database, ROWS)
    disturbed = make_database(str(database.url.database))
    before = picture(database)
    revision = dm.render(database, case.migration)
    dm.preview(database, case.migration)
    path = project.add(revision)

    ok(project.alembic(database, "upgrade", "head"))
    assert case.failures(database) == []
    if case.migration.checks:
        assert dm.validate(database, case.migration).passed
    after, rows = picture(database), scanned(database)

    # the session ends in the middle of a batch, half-way through
    batch = max(20, rows // 30)
    path.write_text(revision.text)
    project.add(revision, small_batches(batch))
    lay_fuse(disturbed)
    light_fuse(disturbed, rows // batch)  # a batch has two moments
    assert project.alembic(disturbed, "upgrade", "head").code == 1
    assert has_burnt(disturbed)
    assert scanned(disturbed) < rows
    ok(project.alembic(disturbed, "upgrade", "head"))
    assert case.failures(disturbed) == []
    assert picture(disturbed) == after

    back = project.alembic(database, "downgrade", "-1")
    if "raise RuntimeError" in revision.story:
        assert "cannot be undone" in back.sentence
    else:
        ok(back)
        assert picture(database) == before
        query(database, CONFLICT)  # made by those steps alone that may leave some
        assert query(database, "SELECT count(*) FROM datamig.conflict") == [0]


@described
def test_readme_tells_how_much_a_user_writes() -> None:
    assert table_of_lines() in (HERE / "README.md").read_text(encoding="utf-8")

"""Rows computed in Python by revisions, as Alembic runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamig_nb.database import Database
from tests.alembic_project import AlembicProject, Outcome, make_project
from tests.scratch import query
from tests.transform_revision import call, transform_revision, with_tables


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.log
    return outcome


@pytest.fixture
def project(tmp_path: Path) -> AlembicProject:
    """An empty Alembic project."""
    return make_project(tmp_path / "project")


def clean(value: str | None) -> str | None:
    return None if value is None else value.strip().lower().replace("  ", " ")


ROWS = 5_000
MAKE = f"""
CREATE TABLE large (id bigint PRIMARY KEY, old text, new text, digest varchar(64));
INSERT INTO large SELECT n, CASE WHEN n % 9 > 0 THEN '  A  Text ' || md5(n::text) END
  FROM generate_series(1, {ROWS}) AS n;
ANALYZE large
"""
RIGHT = """
SELECT count(*) FROM large
 WHERE new IS NOT DISTINCT FROM replace(lower(btrim(old)), '  ', ' ')
   AND digest IS NOT DISTINCT FROM encode(sha256(convert_to(new, 'UTF8')), 'hex')
"""
WHAT = {"key": ("id",), "reads": ("old",), "writes": ("new",), "checksum": "digest"}


@pytest.mark.parametrize(
    "how",
    [{}, {"workers": 2}, {"workers": 3, "processes": True}],
    ids=["one", "threads", "processes"],
)
def test_rows_get_what_the_function_gives_and_its_checksum(
    database: Database, project: AlembicProject, how: dict[str, object]
) -> None:
    with_tables(database, MAKE)
    project.add(transform_revision(call("clean", "large", clean, **WHAT, **how), functions=[clean]))

    outcome = ok(project.alembic(database, "upgrade", "head"))

    print(outcome.log)
    assert query(database, RIGHT) == [ROWS]
    assert query(
        database, "SELECT sum(scanned)::int, sum(changed)::int FROM datamig.run WHERE part > 0"
    ) == [(ROWS, ROWS - ROWS // 9)]
    assert set(query(database, "SELECT status FROM datamig.run")) == {"succeeded"}

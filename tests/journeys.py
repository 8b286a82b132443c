"""A migration's way through Alembic: up, and down to what was there before."""

from __future__ import annotations

import re
from typing import Any

from datamig_nb.database import Database
from datamig_nb.migration import Migration
from datamig_nb.render import render
from tests.alembic_project import AlembicProject
from tests.runs import ok
from tests.scratch import query

_SCHEMA = """
SELECT attrelid::regclass::text || '.' || attname || ' ' || atttypid::regtype || ' ' || attnotnull
  FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
 WHERE relnamespace = 'guide'::regnamespace AND attnum > 0 AND NOT attisdropped
 UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint
            WHERE connamespace = 'guide'::regnamespace
 UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
 ORDER BY 1
"""

_TABLES = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r'"


def contents(database: Database) -> dict[str, list[Any]]:
    """Columns, keys and triggers of the guide's schema, and every row of its tables."""
    tables = query(database, f"{_TABLES} AND relnamespace = 'guide'::regnamespace ORDER BY 1")
    rows = {
        table: query(database, f"SELECT t::text FROM {table} AS t ORDER BY 1") for table in tables
    }
    return {"schema": query(database, _SCHEMA), **rows}


def up(database: Database, project: AlembicProject, migration: Migration) -> dict[str, list[Any]]:
    """Run the migration as a file; what was there before."""
    before = contents(database)
    project.add(render(database, migration, alembic=project.ini))
    ok(project.alembic(database, "upgrade", "head"))
    return before


def down(database: Database, project: AlembicProject, before: dict[str, list[Any]]) -> None:
    """Take the migration back, and find what was there before."""
    ok(project.alembic(database, "downgrade", "-1"))
    assert contents(database) == before


def stopped(database: Database, project: AlembicProject, migration: Migration) -> str:
    """What the file says as it refuses to begin."""
    before = contents(database)
    revision = render(database, migration)
    project.add(revision)
    outcome = project.alembic(database, "upgrade", "head")
    assert outcome.code == 1, outcome.log
    assert contents(database) == before
    found = re.search(r"stopped, for it requires: (.*?), the first", outcome.sentence)
    assert found is not None, outcome.log
    return found[1]

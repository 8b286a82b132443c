"""A table of names gets a successor with slugs, on the guide's categories and their tasks."""

from __future__ import annotations

import re

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.migration import Migration
from tests.alembic_project import AlembicProject
from tests.journeys import down, stopped, up
from tests.scratch import query


def extracted(**more: object) -> Migration:
    given = {
        "children": {"guide.task": "category_id"},
        "parent": "parent_id",
        "columns": [sa.Column("description", sa.Text())],
        "unnamed": "category",
        **more,
    }
    return dm.extract_table("guide.category", "guide.category_new", **given)  # pyright: ignore


def test_names_without_a_slug_stop_the_migration_before_its_first_write(
    guide: Database, project: AlembicProject
) -> None:
    assert stopped(guide, project, extracted(unnamed=None)).startswith(
        "every name of guide.category gives a slug; 5 rows fail"
    )


def test_categories_are_merged_numbered_and_carried_over_with_those_above_them(
    guide: Database, project: AlembicProject
) -> None:
    old = {row[0]: row[1:] for row in query(guide, "SELECT * FROM guide.category")}
    tasks = dict(query(guide, "SELECT id, category_id FROM guide.task"))
    before = up(guide, project, extracted())

    # the survivor of each name is the first that has it; nothing is the same as NULL
    first: dict[str, int] = {}
    for key in sorted(old):
        first.setdefault(old[key][0] or f"none {key}", key)
    stays = {key: first[old[key][0] or f"none {key}"] for key in old}
    assert stays[25] == 24
    new = {
        row[0]: row[1:]
        for row in query(
            guide, "SELECT id, name, slug, parent_id, description FROM guide.category_new"
        )
    }
    assert set(new) == set(stays.values())
    for key, (name, _, parent, description) in new.items():
        assert (name, description) == (old[key][0], old[key][2])
        assert parent == (None if old[key][1] is None else stays[old[key][1]])
    slugs = {key: row[1] for key, row in new.items()}
    assert len(set(slugs.values())) == len(slugs)
    assert [slugs[key] for key in (21, 22, 23)] == ["foo-bar", "foo-bar-2", "foo-bar-3"]
    assert [slugs[key] for key in (28, 29, 30, 32)] == ["cafe", "cafe-2", "creme-brulee", "lodz"]
    assert [slugs[key] for key in (34, 35, 43, 197)] == ["c", "c-2", "category-43", "category-197"]
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) for slug in slugs.values())
    assert dict(query(guide, "SELECT old_id, new_id FROM guide.category_new_map")) == stays

    # every task is where its old category went, in one step
    now = dict(query(guide, "SELECT id, category_id FROM guide.task"))
    assert now == {task: None if key is None else stays[key] for task, key in tasks.items()}
    assert dict(query(guide, "SELECT id, category_id_old FROM guide.task")) == tasks
    keys = "SELECT confrelid::regclass::text FROM pg_constraint WHERE contype = 'f' AND conrelid ="
    assert query(guide, f"{keys} 'guide.task'::regclass") == ["guide.category_new"]
    assert query(guide, f"{keys} 'guide.category_new'::regclass") == ["guide.category_new"]
    query(guide, "INSERT INTO guide.category_new (name, slug) VALUES ('New', 'new')")
    assert query(guide, "SELECT id FROM guide.category_new WHERE slug = 'new'") == [201]
    down(guide, project, before)


def test_rows_that_become_one_may_not_end_above_themselves(
    guide: Database, project: AlembicProject
) -> None:
    query(guide, "UPDATE guide.category SET name = 'X', parent_id = 101 WHERE id = 1")
    query(guide, "UPDATE guide.category SET name = 'X' WHERE id = 101")
    project.add(dm.render(guide, extracted()))

    outcome = project.alembic(guide, "upgrade", "head")

    assert "requires: no row of guide.category_new is above itself" in outcome.sentence
    assert query(guide, "SELECT count(DISTINCT category_id) FROM guide.task") == [200]

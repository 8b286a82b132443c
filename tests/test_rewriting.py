"""Migrations that rewrite rows, as exported files run by Alembic on the guide's tables.

What is right is said here once more, in the tests' own words.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest
import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.errors import MigrationError
from tests.alembic_project import AlembicProject
from tests.cases.harness import picture
from tests.journeys import down, stopped, up
from tests.row_functions import tidy
from tests.runs import ok
from tests.scratch import query

NORMAL = "lower(btrim(email, E' \\t'))"


# ---------------------------------------------------------------- transform_rows


def test_bulk_transform_in_python_does_every_row_and_its_checksum(
    guide: Database, project: AlembicProject
) -> None:
    migration = dm.transform_rows(
        "guide.large_table", "old_data_field", into="tidy_data", rule=tidy, checksum="data_checksum"
    )
    before = up(guide, project, migration)

    rows = query(guide, "SELECT old_data_field, tidy_data, data_checksum FROM guide.large_table")
    assert len(rows) == 1_000
    for old, new, checksum in rows:
        assert new == (None if old is None else " ".join(old.split()).lower())
        assert checksum == (None if new is None else hashlib.sha256(new.encode()).hexdigest())
    down(guide, project, before)


def test_bulk_transform_in_sql_also_keeps_later_rows_in_step(
    guide: Database, project: AlembicProject
) -> None:
    migration = dm.transform_rows(
        "guide.large_table",
        "old_data_field",
        into="tidy_data",
        rule=sa.func.upper(sa.column("old_data_field")),
        checksum="data_checksum",
    )
    before = up(guide, project, migration)
    query(guide, "INSERT INTO guide.large_table (old_data_field) VALUES ('new'), (NULL)")

    rows = query(
        guide, "SELECT old_data_field, tidy_data, data_checksum FROM guide.large_table ORDER BY id"
    )
    for _, new, checksum in rows:
        assert checksum == (None if new is None else hashlib.sha256(new.encode()).hexdigest())
    assert [row[1] for row in rows[-2:]] == ["NEW", None]
    assert all((old is None) == (new is None) for old, new, _ in rows)
    query(guide, "DELETE FROM guide.large_table WHERE id > 1297")
    down(guide, project, before)


def test_bulk_transform_says_where_a_stored_checksum_is_wrong(
    guide: Database, project: AlembicProject
) -> None:
    migration = dm.transform_rows(
        "guide.large_table", "old_data_field", into="tidy", rule="old_data_field", checksum="digest"
    )
    up(guide, project, migration)
    query(guide, "UPDATE guide.large_table SET tidy = 'bent' WHERE id = 7")

    failed = [result for result in dm.validate(guide, migration).results if not result.passed]

    assert [result.name for result in failed] == [
        "tidy of guide.large_table is what its source says",
        "digest of guide.large_table is the SHA-256 of tidy",
    ]


# ---------------------------------------------------------------- normalize


def test_addresses_that_become_one_stop_the_migration_before_its_first_write(
    guide: Database, project: AlembicProject
) -> None:
    migration = dm.normalize("guide.user", "email", into="email_normal", rule=NORMAL)

    assert stopped(guide, project, migration).startswith(
        "no two rows of guide.user get one value from email; 30 rows fail"
    )
    assert not dm.connect(guide.url).table("guide.user").has("email_normal")


def test_first_of_several_gets_the_normal_address_and_the_index_refuses_more(
    guide: Database, project: AlembicProject
) -> None:
    migration = dm.normalize(
        "guide.user",
        "email",
        into="email_normal",
        rule=NORMAL,
        duplicates="first",
        untouched=("email", "status"),
    )
    before = up(guide, project, migration)

    seen: set[str] = set()
    for email, normal in query(guide, 'SELECT email, email_normal FROM guide."user" ORDER BY id'):
        expected = None if email is None else email.strip(" \t").lower()
        assert normal == (None if expected in seen else expected)
        seen |= {expected} if expected else set()
    with pytest.raises(Exception, match="user_email_normal_key"):
        query(guide, "INSERT INTO guide.\"user\" (email) VALUES ('  USER1234@example.net')")
    down(guide, project, before)


def test_duplicates_may_stay_where_the_user_says_so(
    guide: Database, project: AlembicProject
) -> None:
    migration = dm.normalize(
        "guide.user", "email", into="email_normal", rule=NORMAL, duplicates="allow"
    )
    up(guide, project, migration)

    wrong = query(
        guide,
        'SELECT count(*) FROM guide."user"'
        " WHERE email_normal IS DISTINCT FROM lower(regexp_replace(email, '^\\s+|\\s+$', '', 'g'))",
    )
    assert wrong == [0]


def test_wish_for_duplicates_that_is_not_known_is_refused() -> None:
    with pytest.raises(MigrationError, match="duplicates='last' is not known; use 'fail', 'first'"):
        dm.normalize("t", "a", into="b", rule="a", duplicates="last")  # pyright: ignore


# ---------------------------------------------------------------- cross_table

NEW = "CASE WHEN created_at >= timestamptz '2025-01-01 00:00+00' THEN 2 ELSE 1 END"


def test_orphans_stop_the_migration_of_several_tables_before_its_first_write(
    guide: Database, project: AlembicProject
) -> None:
    migration = dm.cross_table(
        "guide.user", {"guide.task": "user_id"}, column="version", value=NEW, type=sa.Integer()
    )

    assert re.match(
        r"user_id of guide\.task found in guide\.user; 40 rows fail",
        stopped(guide, project, migration),
    )


def test_children_get_the_value_of_their_parent_and_orphans_stay_as_many(
    guide: Database, project: AlembicProject
) -> None:
    migration = dm.cross_table(
        "guide.user",
        {"guide.task": "user_id"},
        column="version",
        value=NEW,
        type=sa.Integer(),
        orphans="leave",
    )
    before = up(guide, project, migration)
    assert [str(step) for step in migration.steps][-2:] == [
        "check that unchanged: rows of guide.task whose user_id is not in guide.user",
        "check that: each row of guide.task has the version of its guide.user",
    ]
    query(guide, "INSERT INTO guide.task (user_id, title) VALUES (1500, 'new')")

    users = dict(query(guide, 'SELECT id, version FROM guide."user"'))
    assert set(users.values()) == {1, 2}
    for parent, version in query(guide, "SELECT user_id, version FROM guide.task"):
        assert version == users.get(parent)
    query(guide, "DELETE FROM guide.task WHERE title = 'new'")
    down(guide, project, before)


def test_a_parent_and_a_child_of_one_name_are_told_apart(
    database: Database, project: AlembicProject
) -> None:
    query(
        database,
        "CREATE SCHEMA a; CREATE SCHEMA b; CREATE TABLE a.item (id int PRIMARY KEY, code text);"
        "CREATE TABLE b.item (id int PRIMARY KEY, item_id int REFERENCES a.item, code text);"
        "INSERT INTO a.item VALUES (1, 'x'), (2, 'y');"
        "INSERT INTO b.item VALUES (1, 2, 'p'), (2, 1, 'q'), (3, NULL, 'r')",
    )
    children, value = {"b.item": "item_id"}, "upper(item.code)"
    migration = dm.cross_table("a.item", children, column="word", value=value)
    before = picture(database)
    project.add(dm.render(database, migration))
    ok(project.alembic(database, "upgrade", "head"))

    query(database, "INSERT INTO b.item (id, item_id, code) VALUES (4, 2, 's')")
    words = query(database, "SELECT word FROM b.item ORDER BY id")
    assert words == ["Y", "X", None, "Y"]
    query(database, "DELETE FROM b.item WHERE id = 4")
    ok(project.alembic(database, "downgrade", "-1"))
    assert picture(database) == before


@pytest.mark.parametrize(
    "wishes", [{"children": {}}, {"children": {"a": "b"}}, {"orphans": "drop"}]
)
def test_cross_table_that_contradicts_itself_is_refused(wishes: dict[str, Any]) -> None:
    given = {"children": {"b": "a_id"}, "column": "c", "value": "1", **wishes}

    with pytest.raises(MigrationError, match=r"^cross_table\(\) of a has "):
        dm.cross_table("a", **given)


# ---------------------------------------------------------------- batched_update


def test_update_in_place_does_each_row_once_and_comes_back_exactly(
    guide: Database, project: AlembicProject
) -> None:
    migration = dm.batched_update(
        "guide.large_table",
        {"migrated_field": "upper(migrated_field)", "migration_complete": "TRUE"},
        where="needs_migration",
        done="migrated_field IS NOT DISTINCT FROM upper(migrated_field)",
    )
    old = dict(query(guide, "SELECT id, migrated_field FROM guide.large_table"))
    before = up(guide, project, migration)

    rows = query(
        guide,
        "SELECT id, migrated_field, needs_migration, migration_complete FROM guide.large_table",
    )
    for key, field, needed, complete in rows:
        assert field == (upper(old[key]) if needed else old[key])
        assert complete or not needed
    down(guide, project, before)


def upper(text: str | None) -> str | None:
    """In the way of C.UTF-8, where ß has no capital."""
    return None if text is None else "".join(c.upper() if c != "ß" else c for c in text)


def test_update_that_clears_its_own_mark_leaves_no_row_with_it() -> None:
    migration = dm.batched_update("t", {"a": "a + 1", "todo": "FALSE"}, where="todo")

    assert repr(migration) == (
        "Migration: update a and todo of t\n"
        "  1. keep a and todo of rows of t that change, or lose them\n"
        "  2. fill a and todo of t, rows where todo, in batches\n"
        "  3. check that: no row of t is left where todo"
    )

"""Migrations that change how another one is carried out, on the guide's tables."""

from __future__ import annotations

import pytest

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.errors import MigrationError
from datamig_nb.kept import Kept, index_kept, keep_values
from datamig_nb.names import TableName
from tests.alembic_project import AlembicProject
from tests.journeys import contents, down, up
from tests.runs import ok
from tests.scratch import query

LOWER = dm.Migration(
    "tidy addresses",
    dm.backfill("guide.user", {"email": "lower(btrim(email))"}),
    dm.delete_rows("guide.task", "user_id IS NULL", keep=False),
)


# ---------------------------------------------------------------- with_backup


def test_backup_prints_its_steps() -> None:
    assert repr(dm.with_backup(LOWER)) == (
        "Migration: tidy addresses, with a backup\n"
        "  1. keep email of rows of guide.user that change, or lose them\n"
        "  2. fill email of guide.user, every row, in batches\n"
        "  3. delete rows of guide.task where user_id IS NULL, in batches, kept for the way back"
    )


def test_backup_keeps_nothing_twice_and_nothing_new() -> None:
    once = dm.with_backup(LOWER)
    new = dm.map_values("guide.user", "status", {"a": "b"}, into="state")

    assert [*map(str, dm.with_backup(once).steps)] == [*map(str, once.steps)]
    assert dm.with_backup(new).steps == new.steps


def test_backup_gives_everything_back_that_nobody_edited(
    guide: Database, project: AlembicProject
) -> None:
    before = up(guide, project, dm.with_backup(LOWER))
    assert contents(guide) != before
    down(guide, project, before)


def test_backup_leaves_what_was_edited_since_and_lists_it_with_all_three_values(
    guide: Database, project: AlembicProject
) -> None:
    (key,) = query(guide, "SELECT min(id) FROM guide.\"user\" WHERE email LIKE ' %'")
    (old,) = query(guide, f'SELECT email FROM guide."user" WHERE id = {key}')
    up(guide, project, dm.with_backup(LOWER))
    query(guide, f"UPDATE guide.\"user\" SET email = 'mine' WHERE id = {key}")
    ok(project.alembic(guide, "downgrade", "base"))

    assert query(guide, f'SELECT email FROM guide."user" WHERE id = {key}') == ["mine"]
    assert query(
        guide,
        "SELECT key, before->>'email', after->>'email', found->>'email' FROM datamig.conflict",
    ) == [(f"({key})", old, old.strip().lower(), "mine")]


def test_of_a_row_that_changed_again_the_old_value_is_what_others_wrote_last(
    database: Database,
) -> None:
    query(database, "CREATE SCHEMA datamig; CREATE TABLE t (id int PRIMARY KEY, v text, doc json)")
    kept = Kept(
        name="datamig.kept_1",
        table=TableName.parse("t"),
        key=("id",),
        types={"v": "text", "doc": "json"},
    )
    query(database, keep_values(kept))
    # key, transaction, old and new text, old and new document
    entries = """
        (1, 5, 'once', 'ONCE', '{}', '[1]'),
        (2, 5, 'first', 'A', '{}', '[1]'), (2, 7, 'A', 'B', '[1]', '[2]'),
        (3, 5, 'first', 'A', '{}', '[1]'), (3, 7, 'theirs', 'B', '[1]', '[2]'),
        (4, 5, 'first', 'A', '{}', '[1]'), (4, 7, 'theirs', 'B', '{}', '[2]'),
        (4, 9, 'B', 'C', '[2]', '[3]'),
        (5, 5, NULL, 'A', NULL, '[1]'), (5, 7, NULL, NULL, NULL, '[2]')"""
    query(
        database,
        "INSERT INTO datamig.kept_1 (id, datamig_xid, v_before, v_after, doc_before, doc_after)"
        f" SELECT a, b, c, d, e::json, f::json FROM (VALUES {entries}) AS v (a, b, c, d, e, f)",
    )

    for _ in range(2):
        query(database, index_kept(kept))

    found = "id, v_before, v_after, doc_before::text, doc_after::text"
    assert query(database, f"SELECT {found} FROM datamig.kept_1 ORDER BY id") == [
        (1, "once", "ONCE", "{}", "[1]"),
        (2, "first", "B", "{}", "[2]"),
        (3, "theirs", "B", "{}", "[2]"),
        (4, "theirs", "C", "{}", "[3]"),
        (5, None, None, None, "[2]"),
    ]


def test_statement_that_cannot_be_backed_up_is_refused() -> None:
    with pytest.raises(MigrationError, match="step 1 cannot be backed up"):
        dm.with_backup(dm.Migration("m", dm.sql("UPDATE t SET a = 1")))

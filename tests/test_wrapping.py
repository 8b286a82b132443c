"""Migrations that change how another one is carried out, on the guide's tables."""

from __future__ import annotations

import pytest

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.errors import MigrationError
from datamig_nb.migration import Step
from tests.alembic_project import AlembicProject
from tests.journeys import contents, down, up
from tests.row_functions import tidy
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


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (dm.transform("t", tidy, reads=("a",), writes=("a",)), "a Python function overwrites"),
        (dm.sql("UPDATE t SET a = 1"), "a statement may change what was there; give undo="),
    ],
)
def test_step_that_cannot_be_backed_up_is_refused(step: Step, message: str) -> None:
    with pytest.raises(MigrationError, match=f"step 1 cannot be backed up: {message}"):
        dm.with_backup(dm.Migration("m", step))

"""The guide's revisions as they stand, rehearsed: each marked trap is found, with evidence."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.checks import Check
from datamig_nb.database import Database
from datamig_nb.hazards import Hazard
from datamig_nb.migration import Migration
from datamig_nb.rehearsal import Rehearsal
from datamig_nb.server import binaries
from tests import guide
from tests.scratch import query, scratch_database

ROWS = 2_000
LETTERS = r"regexp_replace({}, '[\s\u00a0]', '', 'g')"

pytestmark = pytest.mark.skipif(
    not guide.GUIDE.is_file(),
    reason="../shared/seed does not hold the guide",
)


@pytest.fixture(scope="module")
def source(samples: Database) -> Iterator[Database]:
    with scratch_database(samples) as made:
        guide.make_tables(made, ROWS)
        yield made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nine files beside each other, readable; and the first two as they stand."""
    directory = tmp_path_factory.mktemp("versions")
    for id, text in guide.revisions().items():
        (directory / f"{id}.py").write_text(guide.repaired(text), encoding="utf-8")
    return directory


@pytest.fixture
def rehearsed(source: Database, files: Path) -> Callable[[str, Sequence[Check], str], Rehearsal]:
    """Rehearse one of the nine, with checks that one would state, on data repaired before."""

    def rehearse(id: str, checks: Sequence[Check] = (), repair: str = "SELECT 1") -> Rehearsal:
        with scratch_database(source, str(source.url.database)) as copy:
            query(copy, repair)
            return dm.rehearse(copy, files / f"{id}.py", checks=checks)

    return rehearse


def failing(rehearsal: Rehearsal) -> dict[str, int]:
    """The checks that fail, with their rows."""
    assert rehearsal.validation is not None, rehearsal.summary
    return {r.name: r.failing_rows for r in rehearsal.validation.results if not r.passed}


def hazard(rehearsal: Rehearsal, rule: str) -> Hazard:
    found = [hazard for hazard in rehearsal.hazards if hazard.rule == rule]
    assert found, f"no {rule!r} among {[hazard.rule for hazard in rehearsal.hazards]}"
    return found[0]


# ---------------------------------------------------------------- the guide's


def test_unquoted_user_is_the_role_and_its_count_is_one(source: Database, tmp_path: Path) -> None:
    text = guide.revisions()["pqr678stu901"]
    readable = re.sub("UPDATE user", 'UPDATE "user"', text)  # the one that PostgreSQL refuses
    path = tmp_path / "pqr.py"
    path.write_text(guide.imported(readable), encoding="utf-8")

    rehearsal = dm.rehearse(source, path)

    found = hazard(rehearsal, "reserved name")
    assert (found.blocking, found.rows) == (True, ROWS)
    assert 'one row with the name of the role: write "user"' in found.what
    assert not rehearsal.ready


def test_value_mapping_leaves_everybody_active(rehearsed: Callable[..., Rehearsal]) -> None:
    mapped = (
        "CASE status WHEN 'enabled' THEN 'active' WHEN 'pending_activation' THEN 'pending'"
        " WHEN 'disabled' THEN 'inactive' WHEN 'suspended' THEN 'inactive' END"
    )
    known = "status IN ('enabled', 'disabled', 'suspended', 'pending_activation')"

    rehearsal = rehearsed("abc123def456", [dm.matches("user", "status_new", mapped, where=known)])

    assert failing(rehearsal) == {"status_new of user is what its source says": 350 * ROWS // 1000}
    assert hazard(rehearsal, "without effect").what.endswith("(4 times)")
    assert hazard(rehearsal, "empty downgrade").blocking


def test_column_split_loses_surnames_behind_two_spaces(rehearsed: Callable[..., Rehearsal]) -> None:
    checks = [
        dm.rows_check("every first name is one", "user", "first_name = '' AND full_name ~ '[^ ]'"),
        dm.rows_check(
            "both names hold the letters of the whole",
            "user",
            f"{LETTERS.format('concat(first_name, last_name)')}"
            f" <> {LETTERS.format('full_name')} AND full_name ~ '  '",
        ),
    ]

    rehearsal = rehearsed(
        "def456ghi789",
        checks,
        'DELETE FROM "user" WHERE full_name IS NULL OR length(full_name) > 50',
    )

    assert failing(rehearsal) == {
        "every first name is one": 20 * ROWS // 1000,
        "both names hold the letters of the whole": 20 * ROWS // 1000,
    }


def test_null_names_stop_the_column_split(rehearsed: Callable[..., Rehearsal]) -> None:
    rehearsal = rehearsed("def456ghi789", (), 'UPDATE "user" SET full_name = left(full_name, 50)')

    assert 'column "first_name"' in rehearsal.summary
    assert "contains null values" in rehearsal.summary
    assert hazard(rehearsal, "lock held").what.startswith('ACCESS EXCLUSIVE on "user"')


def test_remapped_ids_run_into_each_other(rehearsed: Callable[..., Rehearsal]) -> None:
    kept = dm.check(
        "every task keeps the name of its category",
        "SELECT task.id FROM task"
        " JOIN datamig_before.task AS old USING (id)"
        " JOIN datamig_before.category AS was ON was.id = old.category_id"
        " LEFT JOIN category_new AS now ON now.id = task.category_id"
        " WHERE now.name IS DISTINCT FROM was.name",
    )

    rehearsal = rehearsed("ghi789jkl012", [kept], "UPDATE category SET name = 'Category ' || id")

    assert failing(rehearsal)["every task keeps the name of its category"] > ROWS
    assert "task was written by 200 statements" in " ".join(h.what for h in rehearsal.hazards)
    assert hazard(rehearsal, "written twice").rows > 0


def test_pages_by_offset_skip_half_of_a_shrinking_set(rehearsed: Callable[..., Rehearsal]) -> None:
    rehearsal = rehearsed(
        "jkl012mno345", (), "UPDATE large_table SET new_data_field = NULL, old_data_field = 'A b'"
    )

    assert rehearsal.summary.endswith(f"Exception: {ROWS // 2} records were not migrated")
    assert hazard(rehearsal, "offset").blocking


def test_defaults_of_the_client_leave_null(rehearsed: Callable[..., Rehearsal]) -> None:
    counted = dm.check(
        "the job knows how many rows it has",
        'SELECT id FROM migration_jobs WHERE total_records <> (SELECT count(*) FROM "user")',
    )

    rehearsal = rehearsed("mno345pqr678", [counted])

    assert failing(rehearsal) == {"the job knows how many rows it has": 1}
    assert hazard(rehearsal, "client default").blocking


def test_mistyped_down_revision_is_found_among_the_files(
    rehearsed: Callable[..., Rehearsal],
) -> None:
    rehearsal = rehearsed("pqr678stu901", [dm.unique("user", "email_normalized")])

    assert hazard(rehearsal, "lost parent").what == (
        "down_revision 'mno35pqr678' is no revision of the files beside it: every command of"
        " Alembic fails there; 'mno345pqr678' may be meant"
    )
    assert failing(rehearsal)["email_normalized of user unique"] > 0  # the risk it never looked at


def test_older_rows_are_never_migrated(rehearsed: Callable[..., Rehearsal]) -> None:
    rehearsal = rehearsed(
        "stu901vwx234",
        [dm.no_nulls("user", "migration_version")],
        'DELETE FROM task WHERE NOT EXISTS (SELECT FROM "user" u WHERE u.id = task.user_id)',
    )

    assert failing(rehearsal)["migration_version of user without NULL"] > 400 * ROWS // 1000


def test_hundred_percent_are_reported_while_rows_are_skipped(
    rehearsed: Callable[..., Rehearsal],
) -> None:
    done = dm.rows_check(
        "every row is migrated", "large_table", "needs_migration AND migration_complete IS NOT TRUE"
    )

    rehearsal = rehearsed("vwx234yz567", [done])

    assert 0 < failing(rehearsal)["every row is migrated"] < 700 * ROWS // 1000
    assert hazard(rehearsal, "offset").blocking


def test_backup_goes_with_the_transaction_that_it_should_protect(
    rehearsed: Callable[..., Rehearsal],
) -> None:
    rehearsal = rehearsed("yz567abc890")

    assert rehearsal.summary == "FAILED at upgrade: Exception: Email backup failed"
    found = hazard(rehearsal, "backup undone")
    assert (found.blocking, found.rows) == (True, ROWS)
    assert "the copy user_backup, made in the same transaction, is gone with it" in found.what


# ---------------------------------------------------------------- ours

STATUS = {
    "enabled": "active",
    "Enabled": "active",
    "enabled ": "active",
    "disabled": "inactive",
    "suspended": "inactive",
    "archived": "inactive",
    "pending_activation": "pending",
    "": None,
    None: None,
}

OURS = [
    (dm.map_values("user", "status", STATUS, into="status_new"), "lossless"),
    (dm.split_column("user", "full_name"), "lossless"),
    (
        dm.normalize(
            "user",
            "email",
            into="email_normalized",
            rule="lower(btrim(email, E' \\t'))",
            duplicates="allow",
        ),
        "lossless",
    ),
    (
        dm.batched_update(
            "large_table", {"migrated_field": "upper(migrated_field)"}, where="needs_migration"
        ),
        "lossless with backup",
    ),
    (
        Migration(
            "categories with a slug",
            dm.create_table(
                "category_new",
                sa.Column("id", sa.Integer(), primary_key=True),
                sa.Column("slug", sa.Text(), nullable=False),
            ),
            dm.insert_rows(
                "category_new", "SELECT id, 'category-' || id AS slug FROM category", key="id"
            ),
            dm.no_orphans("task", "category_id", "category_new", "id"),
        ),
        "lossless",
    ),
]


@pytest.mark.parametrize(
    ("migration", "verdict"), OURS, ids=[migration.name[:20] for migration, _ in OURS]
)
def test_ours_pass_and_are_ready(source: Database, migration: Migration, verdict: str) -> None:
    rehearsal = dm.rehearse(source, dm.render(source, migration))

    assert rehearsal.passed, rehearsal.summary
    assert rehearsal.reasons == ()
    assert rehearsal.verdict == verdict


CHINOOK = guide.GUIDE.parents[1] / "databases" / "chinook" / "load.sh"


@pytest.mark.skipif(not CHINOOK.is_file(), reason="../shared/databases does not hold chinook")
def test_phones_of_chinook_are_lost_by_hand_and_kept_by_ours(
    database: Database, tmp_path: Path
) -> None:
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    path = f"{binaries()}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["sh", CHINOOK, url], check=True, capture_output=True, env={**os.environ, "PATH": path}
    )
    digits = "regexp_replace(phone, '[^0-9+]', '', 'g')"
    by_hand = tmp_path / "phones.py"
    by_hand.write_text(
        "from alembic import op\n\nrevision = 'phones'\ndown_revision = None\n\n\n"
        f'def upgrade():\n    op.execute(r"UPDATE customer SET phone = {digits}")\n\n\n'
        "def downgrade():\n    op.execute('SELECT 1')\n",
        encoding="utf-8",
    )
    ours = dm.with_backup(Migration("phones", dm.backfill("customer", {"phone": digits})))

    lost = dm.rehearse(database, by_hand)
    kept = dm.rehearse(database, dm.render(database, ours))

    assert (lost.verdict, lost.ready) == ("lossy", False)
    assert lost.summary == (
        "FAILED at equal to before: differs from before: public.customer.phone in 58 rows"
    )
    assert (kept.verdict, kept.ready) == ("lossless with backup", True), kept.summary

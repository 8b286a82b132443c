"""The guide's revisions as they stand, rehearsed: each marked trap is found, with evidence."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.checks import Check
from datamig_nb.database import Database
from datamig_nb.hazards import Hazard
from datamig_nb.migration import Migration
from datamig_nb.rehearsal import Rehearsal
from datamig_nb.samples import load_players
from datamig_nb.server_setup import binaries
from tests import guide
from tests.scratch import query, scratch_database, session

ROWS = 2_000

pytestmark = pytest.mark.skipif(
    not guide.GUIDE.is_file(),
    reason="../shared/seed does not hold the guide",
)


# What one would state of each pattern: the guide's revision fails it, ours passes.
STATUSES = dm.matches(
    "user",
    "status_new",
    "CASE status WHEN 'enabled' THEN 'active' WHEN 'pending_activation' THEN 'pending'"
    " WHEN 'disabled' THEN 'inactive' WHEN 'suspended' THEN 'inactive' END",
    where="status IN ('enabled', 'disabled', 'suspended', 'pending_activation')",
)
FIRST_NAMES = dm.rows_check(
    "every first name is one", "user", "first_name = '' AND full_name ~ '[^ ]'"
)
LETTERS = dm.rows_check(
    "both names hold the letters of the whole",
    "user",
    r"regexp_replace(concat(first_name, last_name), '[\s\u00a0]', '', 'g')"
    r" <> regexp_replace(full_name, '[\s\u00a0]', '', 'g') AND full_name ~ '  '",
)
CATEGORIES = dm.check(
    "every task keeps the name of its category",
    "SELECT task.id FROM task"
    " JOIN datamig_before.task AS old USING (id)"
    " JOIN datamig_before.category AS was ON was.id = old.category_id"
    " LEFT JOIN category_new AS now ON now.id = task.category_id"
    " WHERE now.name IS DISTINCT FROM was.name",
)
VERSIONS = dm.no_nulls("user", "migration_version")


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
    rehearsal = rehearsed("abc123def456", [STATUSES])

    assert failing(rehearsal) == {"status_new of user is what its source says": 350 * ROWS // 1000}
    assert hazard(rehearsal, "without effect").what.endswith("(4 times)")
    assert hazard(rehearsal, "empty downgrade").blocking


def test_column_split_loses_surnames_behind_two_spaces(rehearsed: Callable[..., Rehearsal]) -> None:
    rehearsal = rehearsed(
        "def456ghi789",
        [FIRST_NAMES, LETTERS],
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
    unique_names = "UPDATE category SET name = 'Category ' || id"
    few_tasks = "DELETE FROM task WHERE id > 400"  # each of 200 statements moves many of them

    rehearsal = rehearsed("ghi789jkl012", [CATEGORIES], f"{unique_names}; {few_tasks}")

    assert failing(rehearsal)["every task keeps the name of its category"] > 200
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
        [VERSIONS],
        'DELETE FROM task WHERE NOT EXISTS (SELECT FROM "user" u WHERE u.id = task.user_id)',
    )

    assert failing(rehearsal)["migration_version of user without NULL"] > 400 * ROWS // 1000


def test_hundred_percent_are_reported_while_rows_are_skipped(
    rehearsed: Callable[..., Rehearsal],
) -> None:
    done = dm.rows_check(
        "every row is migrated", "large_table", "needs_migration AND migration_complete IS NOT TRUE"
    )

    reported = dm.check(
        "no report says that all is done",
        "SELECT batch_id FROM migration_log WHERE progress_percentage = 100",
    )

    rehearsal = rehearsed("vwx234yz567", [done, reported])

    assert failing(rehearsal)[reported.name] == 1
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


def tidy(data: str | None) -> str | None:
    """Small letters, one space between words, none at the ends."""
    return None if data is None else " ".join(data.split()).lower()


NORMALIZED = dm.normalize(
    "user",
    "email",
    into="email_normalized",
    rule="lower(btrim(email, E' \\t'))",
    duplicates="first",
)

#: Ours for each of the nine: the migration, checks, and what its way back must be.
OURS: dict[str, tuple[Migration, list[Check], str]] = {
    "abc123def456": (
        dm.map_values("user", "status", STATUS, into="status_new"),
        [STATUSES],
        "lossless",
    ),
    "def456ghi789": (dm.split_column("user", "full_name"), [FIRST_NAMES, LETTERS], "lossless"),
    "ghi789jkl012": (
        dm.extract_table(
            "category",
            "category_new",
            children={"task": "category_id"},
            parent="parent_id",
            unnamed="category",
        ),
        [CATEGORIES],
        "lossless with backup",
    ),
    "jkl012mno345": (
        dm.transform_rows(
            "large_table", "old_data_field", into="tidy", rule=tidy, checksum="data_checksum"
        ),
        [
            dm.rows_check(
                "every row is done", "large_table", "(tidy IS NULL) <> (old_data_field IS NULL)"
            )
        ],
        "lossless",
    ),
    "mno345pqr678": (
        dm.background(NORMALIZED),
        [
            dm.check(
                "the job knows how many rows it has",
                "SELECT job_type FROM datamig.migration_jobs"
                ' WHERE total_records <> (SELECT count(*) FROM "user")',
            )
        ],
        "lossless",
    ),
    "pqr678stu901": (NORMALIZED, [dm.unique("user", "email_normalized")], "lossless"),
    "stu901vwx234": (
        dm.cross_table(
            "user",
            {"task": "user_id"},
            column="migration_version",
            type=sa.Integer(),
            value="CASE WHEN created_at > timestamptz '2025-01-01 00:00+00' THEN 2 ELSE 1 END",
            orphans="leave",
        ),
        [VERSIONS],
        "lossless",
    ),
    "vwx234yz567": (
        dm.batched_update(
            "large_table", {"migrated_field": "upper(migrated_field)"}, where="needs_migration"
        ),
        [
            dm.rows_check(
                "every row is done",
                "large_table",
                "needs_migration AND migrated_field <> upper(migrated_field)",
            )
        ],
        "lossless with backup",
    ),
    "yz567abc890": (
        dm.with_backup(
            Migration("addresses", dm.backfill("user", {"email": "lower(btrim(email))"}))
        ),
        [dm.matches("user", "email", "lower(btrim(email))")],
        "lossless with backup",
    ),
}


@pytest.mark.parametrize("id", OURS)
def test_ours_pass_and_are_ready(source: Database, id: str) -> None:
    migration, checks, verdict = OURS[id]

    rehearsal = dm.rehearse(source, dm.render(source, migration), checks=checks)

    assert rehearsal.passed, rehearsal.summary
    assert rehearsal.reasons == ()
    assert rehearsal.verdict == verdict


# ---------------------------------------------------------------- on data of others


def on_other_tables(id: str, names: Mapping[str, str], directory: Path) -> Path:
    """A revision of the guide's for tables and columns of other names."""
    text = guide.repaired(guide.revisions()[id])
    path = directory / f"{id}.py"
    words = "|".join(map(re.escape, names))
    path.write_text(re.sub(words, lambda found: names[found[0]], text), encoding="utf-8")
    return path


def test_players_of_one_name_get_it_twice_by_the_guide_and_once_by_ours(
    database: Database, tmp_path: Path
) -> None:
    with session(database) as connection:
        load_players(connection)
    query(database, f"ALTER DATABASE {database.url.database} SET search_path = players")
    theirs = on_other_tables("def456ghi789", {'"user"': "player", "'user'": "'player'"}, tmp_path)
    ours = dm.render(database, dm.split_column("player", "full_name"))
    once = dm.rows_check(
        "nobody has a name twice", "player", "first_name = last_name AND full_name !~ ' '"
    )
    (one_name,) = query(database, "SELECT count(*) FROM player WHERE full_name !~ ' '")

    by_guide = dm.rehearse(database, theirs, checks=[once])
    by_us = dm.rehearse(database, ours, checks=[once])

    assert failing(by_guide) == {once.name: one_name}
    assert one_name > 0
    assert (by_us.ready, by_us.verdict) == (True, "lossless"), by_us.summary


CHINOOK = guide.GUIDE.parents[1] / "databases" / "chinook" / "load.sh"


@pytest.mark.skipif(not CHINOOK.is_file(), reason="../shared/databases does not hold chinook")
def test_albums_of_chinook_change_their_artist_by_the_guide_and_keep_it_by_ours(
    database: Database, tmp_path: Path
) -> None:
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    path = f"{binaries()}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["sh", CHINOOK, url], check=True, capture_output=True, env={**os.environ, "PATH": path}
    )
    query(database, "UPDATE artist SET name = name WHERE artist_id % 2 = 0")  # edited once
    names = {"old_cat.id": "old_cat.artist_id", "category": "artist", "task": "album"}
    theirs = on_other_tables("ghi789jkl012", names, tmp_path)
    ours = dm.extract_table(
        "artist", "artist_new", children={"album": "artist_id"}, key="artist_id"
    )

    by_guide = dm.rehearse(database, theirs, checks=[_kept("id")])
    by_us = dm.rehearse(database, dm.render(database, ours), checks=[_kept("artist_id")])

    assert failing(by_guide)["every album keeps the name of its artist"] > 100
    assert (by_us.ready, by_us.verdict) == (True, "lossless"), by_us.summary


def _kept(key: str) -> Check:
    return dm.check(
        "every album keeps the name of its artist",
        "SELECT album_id FROM album JOIN datamig_before.album AS old USING (album_id)"
        " JOIN artist AS was ON was.artist_id = old.artist_id"
        f" LEFT JOIN artist_new AS now ON now.{key} = album.artist_id"
        " WHERE now.name IS DISTINCT FROM was.name",
    )

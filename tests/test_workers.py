"""Backfills that a revision leaves to workers: the revision ends at once, the job is worked off."""

from __future__ import annotations

import subprocess
import sys

import pytest
import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.errors import MigrationError, RunError
from datamig_nb.migration import Step
from datamig_nb.render import render
from tests.alembic_project import AlembicProject
from tests.items import FILL, ROWS, found_sizes, sizes
from tests.runs import ok
from tests.scratch import query

SIZED = dm.Migration(
    "size the items",
    dm.add_column("item", sa.Column("size", sa.Integer())),
    dm.keep_in_step("item", FILL),
    dm.backfill("item", FILL),
    dm.no_nulls("item", "size"),
    dm.alter_column("item", "size", nullable=False),
)
JOBS = """
SELECT job_type, status, progress, total_records, processed_records FROM datamig.migration_jobs
"""
SMALL = dict.fromkeys(("FIRST_BATCH_ROWS", "LEAST_BATCH_ROWS", "MOST_BATCH_ROWS"), 20)


def left_to_workers(database: Database, project: AlembicProject) -> str:
    """Run the revision that leaves the job; its id."""
    revision = render(database, dm.background(SIZED))
    project.add(revision, SMALL)
    ok(project.alembic(database, "upgrade", "head"))
    return revision.id


def test_revision_goes_up_to_the_job_and_the_contract_begins_with_it_done(items: Database) -> None:
    background = dm.background(SIZED)

    assert repr(render(items, background).migration) == (
        "Migration: expand and migrate: size the items\n"
        "  1. add the column size INTEGER to item\n"
        "  2. keep size of item in step with a trigger\n"
        "  3. fill size of item, every row, left to workers as a job"
    )
    assert repr(render(items, background, phase="contract").migration) == (
        "Migration: contract: size the items\n"
        "  1. check first: migrate is done, for which 'alembic upgrade' or 'datamig-nb work' is to"
        " be run\n"
        "  2. check first: size of item without NULL\n"
        "  3. make size of item NOT NULL, without a long lock"
    )


def test_revision_ends_at_once_and_a_command_works_the_job_off(
    items: Database, project: AlembicProject
) -> None:
    revision = left_to_workers(items, project)
    assert query(items, JOBS) == [("size the items", "pending", 0, ROWS, 0)]
    assert set(found_sizes(items).values()) == {None}

    command = [sys.executable, "-m", "datamig_nb", "work", revision, "--url", items.dsn]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "succeeded  job: size the items: 3,000 rows scanned, 3,000 changed" in done.stdout
    assert found_sizes(items) == sizes()
    assert query(items, JOBS) == [("size the items", "succeeded", 100, ROWS, ROWS)]
    assert dm.work(items).states == ()


def test_killed_worker_is_followed_by_another_that_goes_on(
    items: Database, project: AlembicProject
) -> None:
    revision = left_to_workers(items, project)
    # A worker that did a few batches and then died: what it held is free when its lease is over.
    query(items, f"CALL datamig.work_{revision}(now())")
    half = query(items, "SELECT scanned FROM datamig.run WHERE part = 1")[0]
    assert 0 < half < ROWS
    with pytest.raises(RunError, match="has no job that is free"):
        dm.work(items, revision)
    query(items, "UPDATE datamig.run SET heartbeat_at = now() - interval '31 s' WHERE part = 1")

    (state,) = dm.work(items).states

    assert (state.scanned, state.changed) == (ROWS, ROWS)
    assert found_sizes(items) == sizes()


def test_unfinished_job_is_the_gate_of_the_contract(
    items: Database, project: AlembicProject
) -> None:
    revision = left_to_workers(items, project)
    project.add(render(items, SIZED, alembic=project.ini, phase="contract"))
    refused = project.alembic(items, "upgrade", "head")
    assert "requires: migrate is done, for which" in refused.sentence
    assert f'({revision},"job: size the items",running)' in refused.sentence

    dm.work(items, revision)
    ok(project.alembic(items, "upgrade", "head"))

    assert items.table("item").column("size").not_null


def test_downgrade_ends_a_job_half_way_and_leaves_nothing_of_it(
    items: Database, project: AlembicProject
) -> None:
    revision = left_to_workers(items, project)
    query(items, f"CALL datamig.work_{revision}(now())")

    ok(project.alembic(items, "downgrade", "base"))

    assert not items.table("item").has("size")
    assert query(items, JOBS) == []
    assert query(items, "SELECT proname::text FROM pg_proc WHERE proname LIKE 'work_%'") == []
    with pytest.raises(RunError, match="has no job that is free"):
        dm.work(items, revision)


def test_job_that_fails_says_why_and_goes_on_when_it_is_mended(
    items: Database, project: AlembicProject
) -> None:
    fragile = dm.Migration(
        "divide",
        dm.add_column("item", sa.Column("part", sa.Integer())),
        dm.backfill("item", {"part": "100 / (id + 1000)"}),
    )
    revision = render(items, dm.background(fragile))
    project.add(revision, SMALL)
    ok(project.alembic(items, "upgrade", "head"))

    with pytest.raises(RunError, match=r"is failed: row \(-1000\) of item .*division by zero"):
        dm.work(items)
    query(items, "DELETE FROM item WHERE id = -1000")
    dm.work(items, revision.id)

    assert query(items, "SELECT count(*) FROM item WHERE part IS NULL") == [0]


def test_rehearsal_works_the_job_off_too(items: Database) -> None:
    rehearsal = dm.rehearse(items, dm.render(items, dm.background(SIZED)))

    assert rehearsal.passed, rehearsal
    assert rehearsal.verdict == "lossless"


@pytest.mark.parametrize(
    "steps",
    [
        (dm.no_nulls("item", "size"),),
        (dm.backfill("item", {"size": "1"}), dm.delete_rows("item", "id = 1")),
        (dm.backfill("item", {"size": "1"}), dm.unchanged("rows", "SELECT count(*) FROM item")),
    ],
)
def test_what_cannot_be_left_to_workers_is_refused(steps: tuple[Step, ...]) -> None:
    with pytest.raises(MigrationError, match=r"^'m' cannot be left to workers, for it has "):
        dm.background(dm.Migration("m", *steps))

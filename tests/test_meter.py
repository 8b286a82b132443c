"""What is seen from outside while something runs: locks, waits, walks, growth."""

from __future__ import annotations

import dataclasses
import time

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.alembic_runs import AlembicRun, runner_for
from datamig_nb.database import Database
from datamig_nb.fault_application import as_others
from datamig_nb.meter import Meter, measuring
from datamig_nb.render import render
from tests.runs import held, wait_until
from tests.scratch import query

MAKE_ITEMS = """
CREATE TABLE item (id integer PRIMARY KEY, title text NOT NULL)
  WITH (autovacuum_enabled = off); -- or plans would follow from when it came by
INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, 20000) AS n;
ANALYZE item
"""
NO_RUN = AlembicRun(words=(), code=0, seconds=0.0, log=())

# One transaction that holds its strongest lock to the end.
_LONG = """
from alembic import op

revision = "e1e1e1e1e1e1"
down_revision = None


def upgrade():
    op.execute("ALTER TABLE item ADD COLUMN loud text")
    op.execute("UPDATE item SET loud = upper(title)")
    op.execute("SELECT pg_sleep(1)")
"""


def looked_twice(meter: Meter) -> None:
    """Wait until the meter has looked twice from now on."""
    before = meter.looks
    wait_until(lambda: meter.looks >= before + 2)


def test_a_lock_that_is_held_is_seen_for_as_long_as_it_is_within_two_gaps(
    database: Database,
) -> None:
    query(database, MAKE_ITEMS)

    with measuring(database) as meter:
        before = time.monotonic()
        with held(database, "LOCK item IN SHARE MODE"):
            since = time.monotonic()
            looked_twice(meter)
            time.sleep(0.5)
            looked_twice(meter)
            until = time.monotonic()
        after = time.monotonic()
    found = meter.measured("upgrade", NO_RUN)

    (hold,) = (hold for hold in found.holds if hold.mode == "ShareLock")
    assert hold.relation == "public.item"
    assert 0.4 < hold.at_least_seconds <= after - before
    assert hold.at_most_seconds >= until - since
    assert hold.at_most_seconds - hold.at_least_seconds <= 2 * found.largest_gap_seconds
    assert f"sampled {found.looks:,} times" in found.sampling


def test_waits_of_the_application_count_and_its_own_locks_do_not(database: Database) -> None:
    query(database, MAKE_ITEMS)

    with measuring(database) as meter:
        with held(database, "LOCK item"), as_others(database).engine.connect() as other:
            other.execute(sa.text("SET lock_timeout = '600ms'"))
            try:
                other.execute(sa.text("SELECT FROM item"))
            except sa.exc.OperationalError:
                other.rollback()
        with as_others(database).engine.connect() as other:
            other.execute(sa.text("LOCK item IN EXCLUSIVE MODE"))
            looked_twice(meter)
    found = meter.measured("upgrade", NO_RUN)

    (wait,) = found.waits
    assert (wait.relation, wait.mode) == ("public.item", "AccessShareLock")
    assert 0 < wait.seconds < 1.5
    assert {hold.mode for hold in found.holds} == {"AccessExclusiveLock"}


def test_a_revision_that_works_in_one_long_transaction_is_found_out(database: Database) -> None:
    query(database, MAKE_ITEMS)
    loud = {"loud": "upper(title)"}
    add = dm.add_column("item", sa.Column("loud", sa.Text()))
    migration = dm.Migration("loud", add, dm.backfill("item", loud), dm.no_nulls("item", "loud"))
    right = render(database, migration)
    wrong = dataclasses.replace(right, text=_LONG, id="e1e1e1e1e1e1")
    found = {}
    for name, revision in (("wrong", wrong), ("right", right)):
        with runner_for(revision, database, lambda _: None) as runner:
            with measuring(database) as meter:
                done = runner.run("upgrade", revision.id)
            assert done.passed, done.message
        found[name] = meter.measured("upgrade", done)
        query(database, "ALTER TABLE item DROP COLUMN loud; DROP TABLE datamig_rehearsal_version")

    strongest = {
        name: max(
            (h.at_least_seconds for h in cost.holds if h.mode == "AccessExclusiveLock"), default=0
        )
        for name, cost in found.items()
    }
    assert strongest["wrong"] > 0.7
    assert strongest["right"] < 0.7
    assert "SELECT pg_sleep(1)" in [step.name for step in found["wrong"].steps]
    cost = found["right"]
    (walk,) = cost.walks
    (step,) = (step for step in cost.steps if step.kind == "batches")
    (growth,) = (growth for growth in cost.growths if growth.table == "public.item")
    (plan,) = cost.plans
    assert (walk.step, walk.points[-1].rows, step.rows) == ("fill loud", 20_000, 20_000)
    assert (walk.tables, walk.way) == (("public.item",), "may be woven")
    assert growth.heap_after > growth.heap_before
    assert cost.wal_bytes > 1_000_000
    assert (plan.step, plan.read_whole, plan.unknown) == ("fill loud", (), "")
    assert plan.scans[0].endswith("of public.item by item_pkey")

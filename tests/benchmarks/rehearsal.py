"""What a rehearsal costs, in upgrades: the goal is four at most."""

from __future__ import annotations

import time

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.alembic_runs import runner_for
from datamig_nb.clone import cloned
from datamig_nb.database import Database
from tests.benchmarks.backfill import STATUS, make


def measure(database: Database, rows: int) -> None:
    """Print seconds of one upgrade, and of a rehearsal with each of its stages, on a clone each."""
    with database.engine.begin() as connection:
        make(connection, rows)
    state = dm.add_column("account", sa.Column("state", sa.Text()))
    checked = dm.no_nulls("account", "state")
    migration = dm.Migration("map", state, dm.backfill("account", {"state": STATUS}), checked)
    revision = dm.render(database, migration)
    upgrades = [_upgrade(database, revision)]
    began = time.monotonic()
    rehearsal = dm.rehearse(database, revision)
    seconds = time.monotonic() - began
    upgrades.append(_upgrade(database, revision))
    print(rehearsal)
    plain = sum(upgrades) / len(upgrades)
    print(f"rehearsal {seconds:.1f} s, one upgrade {plain:.1f} s, ratio {seconds / plain:.2f}")


def _upgrade(database: Database, revision: dm.Revision) -> float:
    with (
        cloned(database, "bench") as clone,
        runner_for(revision, clone, lambda _: None) as runner,
    ):
        runner.prepare()
        run = runner.run("upgrade", revision.id)
        assert run.passed, run.message
        return run.seconds

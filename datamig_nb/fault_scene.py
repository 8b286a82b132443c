"""What a fault of a rehearsal finds to work with, and what it gives."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from datamig_nb.alembic_runs import AlembicRun, Runner, Running
from datamig_nb.clone import Clone
from datamig_nb.database import Database
from datamig_nb.measure import Measured
from datamig_nb.names import TableName
from datamig_nb.snapshot import Snapshot, differences, take_snapshot, user_tables

#: Which way a revision is run.
Way: TypeAlias = Literal["upgrade", "downgrade"]

#: Seconds between two looks at how far a run is.
LOOK_SECONDS = 0.005


@dataclass(frozen=True, kw_only=True)
class FaultResult:
    """What a fault did to the revision."""

    #: ``kill``, ``crash``, …
    name: str
    #: What was done to it, in words; empty where it was not tried.
    done: str
    #: What happened then, in words.
    happened: str
    #: Whether the data are those of an undisturbed upgrade; None where that cannot be said.
    equal: bool | None
    passed: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a fault finds to work with."""

    #: Alembic for the revision, on the clone; ``runner.on(copy)`` is the same on a copy.
    runner: Runner
    #: Makes a copy of the clone as it was before the upgrade, dropped when the block ends.
    copy: Callable[[], AbstractContextManager[Clone]]
    #: All tables with their columns, as they were before the upgrade.
    tables: Mapping[TableName, tuple[str, ...]]
    #: Those that the migration touches, partitions included.
    touched: tuple[TableName, ...]
    #: Tables that are no part of a comparison: Alembic's own.
    without: tuple[TableName, ...]
    #: What an undisturbed upgrade left: its end state.
    expected: Snapshot
    #: What differs between two undisturbed upgrades, in words: the time of day, for example.
    varying: Collection[str] = ()
    #: Does what is left to workers, where an upgrade has arrived.
    complete: Callable[[Database], object] = lambda _: None
    #: What the upgrade cost.
    cost: Measured
    #: What the downgrade cost, and what it brought back; None where there is no way back.
    back: tuple[Measured, Snapshot] | None = None
    #: Takes a line that tells how far the fault is.
    progress: Callable[[str], None]

    @property
    def chance(self) -> random.Random:
        """The same for each rehearsal of the same revision."""
        return random.Random(self.runner.revision.id)

    def start(self, database: Database, way: Way = "upgrade") -> Running:
        """Start the revision there."""
        revision = self.runner.revision
        target = revision.id if way == "upgrade" else revision.down_revision or "base"
        return self.runner.on(database).start(way, target)

    def run(self, database: Database, way: Way = "upgrade") -> AlembicRun:
        """Run the revision there to its end."""
        with self.start(database, way) as running:
            return running.wait()

    def snapshot(self, database: Database, way: Way = "upgrade") -> Snapshot:
        """What a database holds, to be compared with what is expected."""
        if way == "downgrade":
            return take_snapshot(database, self.tables, without=self.without)
        self.complete(database)
        return end_state(database, self.tables, self.without)

    def result(
        self,
        name: str,
        *,
        began: float,
        done: str,
        happened: str,
        run: AlembicRun,
        found: Snapshot,
        expected: Snapshot | None = None,
        way: Way = "upgrade",
    ) -> FaultResult:
        """The result of a fault whose last run of Alembic must arrive where an undisturbed one did.

        Parameters
        ----------
        began
            When the fault began, by ``time.monotonic()``.
        happened
            What happened before the last run.
        """
        found_wrong = differences(expected or self.expected, found) if run.passed else ()
        wrong = [words for words in found_wrong if words not in self.varying]
        ending = f"run again, it arrived, with the data of an undisturbed {way}"
        if self.varying and way == "upgrade":
            ending += f", but for what each run makes anew: {', '.join(sorted(self.varying))}"
        if not run.passed:
            ending = f"run again, it failed: {run.message}"
        elif wrong:
            ending = f"run again, it arrived with other data than undisturbed: {', '.join(wrong)}"
        return FaultResult(
            name=name,
            done=done,
            happened=f"{happened}; {ending}",
            equal=not wrong if run.passed else None,
            passed=run.passed and not wrong,
            seconds=time.monotonic() - began,
        )


def end_state(
    database: Database,
    before: Mapping[TableName, tuple[str, ...]],
    without: Collection[TableName],
) -> Snapshot:
    """What an upgrade left, but for numbers of new rows: each failed try leaves a gap in those.

    Parameters
    ----------
    before
        The tables and columns that were there before the upgrade.
    """
    tables = user_tables(database)
    with database.read_only("looking for sequences") as connection:
        loose = {
            (TableName(row.schema, row.name), row.column)
            for row in connection.execute(sa.text(_NUMBERED))
        }
    kept = {
        name: tuple(c for c in columns if c in before.get(name, ()) or (name, c) not in loose)
        for name, columns in tables.items()
    }
    return take_snapshot(database, kept, without=without)


class Gauge:
    """How far a run is, as a share: of the rows of its walks, else of the WAL it wrote."""

    def __init__(self, cost: Measured, database: Database) -> None:
        walks = [walk.points[-1].rows for walk in cost.walks if walk.points]
        self._of_walks = bool(walks)
        self.total = sum(walks) or max(1, cost.wal_bytes)
        self.unit = "rows" if walks else "WAL"
        self._database = database
        self._connection: sa.Connection | None = None
        self._before = self._read()

    @property
    def share(self) -> float:
        """Between 0 and 1, or a little more."""
        return (self._read() - self._before) / self.total

    def close(self) -> None:
        """Close its session."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _read(self) -> int:
        try:
            if self._connection is None:
                engine = self._database.engine.execution_options(isolation_level="AUTOCOMMIT")
                self._connection = engine.connect()
            query = _SCANNED if self._of_walks else _WAL
            return int(self._connection.execute(sa.text(query)).scalar_one())
        except DBAPIError:  # there is no such table yet, or the server is down
            self.close()
            return 0


def wait_for(running: Running, gauge: Gauge, share: float) -> float | None:
    """Wait until a run is so far; gives how far it is, None where it ended before."""
    while not running.ended:
        found = gauge.share
        if found >= share:
            return found
        time.sleep(LOOK_SECONDS)
    return None


_SCANNED = "SELECT coalesce(sum(scanned), 0)::bigint FROM datamig.run WHERE part > 0"

# Columns that get the next number of a sequence, and those of foreign keys to them.
_NUMBERED = """
WITH numbered AS (
    SELECT attrelid, attnum
      FROM pg_attribute
      LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
     WHERE attnum > 0 AND NOT attisdropped
       AND (attidentity <> '' OR pg_get_expr(adbin, adrelid) LIKE 'nextval(%')
), loose AS (
    SELECT attrelid, attnum FROM numbered
     UNION
    SELECT conrelid, conkey[place]
      FROM pg_constraint
     CROSS JOIN LATERAL generate_subscripts(conkey, 1) AS place
      JOIN numbered ON attrelid = confrelid AND attnum = confkey[place]
     WHERE contype = 'f'
)
SELECT nspname AS schema, relname AS name, attname::text AS "column"
  FROM loose
  JOIN pg_attribute USING (attrelid, attnum)
  JOIN pg_class ON pg_class.oid = attrelid
  JOIN pg_namespace ON pg_namespace.oid = relnamespace
"""

_WAL = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"

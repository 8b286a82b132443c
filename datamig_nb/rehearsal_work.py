"""A rehearsal under way: the copy, Alembic on it, and what was found so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from datamig_nb.alembic_runs import AlembicRun, Runner, runner_for
from datamig_nb.clone import Clone
from datamig_nb.database import Database, is_there
from datamig_nb.errors import DatamigError
from datamig_nb.fault_scene import FaultResult
from datamig_nb.forecast import Forecast
from datamig_nb.hazards import Hazard, hazards_of_run
from datamig_nb.measure import Measured
from datamig_nb.meter import measuring
from datamig_nb.names import TableName
from datamig_nb.rehearsal import Stage
from datamig_nb.rehearsal_place import Place
from datamig_nb.render import Revision
from datamig_nb.snapshot import ROWS, Snapshot, take_snapshot
from datamig_nb.validate import ValidationReport
from datamig_nb.verdict import Verdict


class StoppedError(Exception):
    """A stage failed; the ones behind it have no meaning."""


class FailedError(Exception):
    """The revision did not do what it must; the message says what."""


@dataclass
class Work:
    """A rehearsal under way."""

    source: Database
    revision: Revision
    progress: Callable[[str], None]
    #: Name of the stage under way.
    under_way: str = "prepare"
    copy: Clone = field(init=False)
    runner: Runner = field(init=False)
    #: What the tables held before the upgrade.
    before: Snapshot = field(init=False)
    #: All tables with their columns before the upgrade, and those that the migration touches.
    tables: dict[TableName, tuple[str, ...]] = field(default_factory=dict)
    touched: tuple[TableName, ...] = ()
    #: Tables that are no part of a comparison: Alembic's own.
    without: tuple[TableName, ...] = ()
    #: What the upgrade changed of what was there.
    changed: tuple[tuple[TableName, str], ...] = ()
    #: What an undisturbed upgrade left, where faults are to be held against it.
    expected: Snapshot | None = None
    #: What differs between two of these, in words.
    varying: tuple[str, ...] = ()
    #: What the downgrade cost, and what it brought back.
    back: tuple[Measured, Snapshot] | None = None
    stages: list[Stage] = field(default_factory=list)
    validation: ValidationReport | None = None
    verdict: Verdict = "not known"
    hazards: list[Hazard] = field(default_factory=list)
    faults: list[FaultResult] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    forecast: Forecast | None = None

    @property
    def sizes(self) -> dict[TableName, int]:
        """Rows of each table before the upgrade."""
        return {name: int(hashes[ROWS]) for name, hashes in self.before.tables.items()}

    @property
    def rows(self) -> int:
        """Rows of the tables that the migration touches, before the upgrade."""
        return sum(self.sizes.get(name, 0) for name in self.touched)

    @contextmanager
    def copied(self, where: Place, given: AbstractContextManager[Clone]) -> Generator[None]:
        """The copy that the rehearsal runs on, and the stage that tells of it."""
        self.progress(where)
        started = time.monotonic()
        with given as self.copy:
            seconds = time.monotonic() - started
            made = Stage(name=where, passed=True, seconds=seconds, detail=self.copy.made)
            self.stages.append(made)
            yield

    @contextmanager
    def placed(self) -> Generator[None]:
        """Alembic for the revision on the copy."""
        with runner_for(self.revision, self.copy, self.tell) as self.runner:
            yield

    def tell(self, line: str) -> None:
        """Tell a line that belongs to the stage under way."""
        self.progress(f"{self.under_way}: {line}")

    def stage(self, name: str, work: Callable[[], str]) -> None:
        """Do the work and note it; what it returns is the detail, what it raises ends all."""
        self.under_way = name
        self.progress(name)
        started = time.monotonic()
        try:
            detail, passed = work(), True
        except (FailedError, DatamigError) as error:
            detail, passed = str(error), False
        seconds = time.monotonic() - started
        self.stages.append(Stage(name=name, passed=passed, seconds=seconds, detail=detail))
        if not passed:
            raise StoppedError

    def snapshot(self, tables: dict[TableName, tuple[str, ...]] | None = None) -> Snapshot:
        """What the copy holds now, of the tables and columns that it had before the upgrade."""
        return take_snapshot(self.copy, tables or self.tables, without=self.without)

    def alembic(self, stage: str, command: str, target: str) -> AlembicRun:
        """Run Alembic on the copy, and measure."""
        with measuring(self.copy) as meter:
            run = self.runner.run(command, target)
        self.measured.append(meter.measured(stage, run))
        if stage in ("upgrade", "downgrade"):
            self.hazards += hazards_of_run(run, self.sizes, self.is_there)
        return run

    def is_there(self, table: str) -> bool:
        """Whether the copy has a table of that name now."""
        with self.copy.read_only("looking up a table") as connection:
            return is_there(connection, table)

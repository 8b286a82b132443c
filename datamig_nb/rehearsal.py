"""The result of a rehearsal, a value."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from datamig_nb.display import Shown, counted
from datamig_nb.fault_scene import FaultResult
from datamig_nb.forecast import Forecast
from datamig_nb.hazards import Hazard
from datamig_nb.measure import Measured
from datamig_nb.render import Revision
from datamig_nb.validate import ValidationReport
from datamig_nb.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One thing that the rehearsal did."""

    name: str
    passed: bool
    seconds: float
    #: What was found, in words; empty where there is nothing to say.
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Rehearsal(Shown):
    """What happened when a revision was rehearsed: plain values, nothing that is open."""

    revision: Revision
    #: SHA-256 of the bytes that ran.
    digest: str
    #: Version of the PostgreSQL it ran on.
    server_version: str
    #: Rows of the tables that the migration touches, before it ran.
    rows: int
    stages: tuple[Stage, ...]
    #: The migration's checks after the upgrade; None where it did not come so far.
    validation: ValidationReport | None
    verdict: Verdict
    #: Where it ran: ``clone``, ``sample`` or ``staging``.
    on: str = "clone"
    hazards: tuple[Hazard, ...] = ()
    #: The faults that were asked for, those included that could not be tried.
    faults: tuple[FaultResult, ...] = ()
    #: What each run of Alembic cost, those of the faults aside.
    measured: tuple[Measured, ...] = ()
    forecast: Forecast | None = None

    @property
    def passed(self) -> bool:
        """Whether every stage passed."""
        return all(stage.passed for stage in self.stages)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the revision is not ready for production: the stage that failed, then hazards."""
        failed = [f"{stage.name}: {stage.detail}" for stage in self.stages if not stage.passed]
        blocking = [f"{hazard.rule}, {hazard.what}" for hazard in self.hazards if hazard.blocking]
        return (*failed, *blocking)

    @property
    def ready(self) -> bool:
        """Whether the revision is ready for production: it passed, and no hazard blocks it."""
        return not self.reasons

    @property
    def summary(self) -> str:
        """The rehearsal in one line of words."""
        failed = [stage for stage in self.stages if not stage.passed]
        if failed:
            return f"FAILED at {failed[0].name}: {failed[0].detail}"
        blocking = sum(hazard.blocking for hazard in self.hazards)
        not_ready = f", not ready: {counted(blocking, 'blocking hazard')}" if blocking else ""
        return f"passed, the way back is {self.verdict}{not_ready}"

    @property
    def frame(self) -> pd.DataFrame:
        """One row a stage: ``stage``, ``passed``, ``seconds``, ``detail``."""
        return pd.DataFrame(
            [(s.name, s.passed, s.seconds, s.detail) for s in self.stages],
            columns=["stage", "passed", "seconds", "detail"],
        )

    def __repr__(self) -> str:
        lines = [
            f"Rehearsal of {self.revision.id} ({self.revision.migration.name}): {self.summary}"
        ]
        lines += [
            f"  {'passed' if s.passed else 'FAILED'}  {s.seconds:7.2f} s  {s.name}"
            + (f": {s.detail}" if s.detail else "")
            for s in self.stages
        ]
        lines += [f"  {f.name}: {f.happened}" for f in self.faults if not f.done]
        lines += [f"  hazard  {h.rule}: {h.what}" for h in self.hazards if h.blocking]
        return "\n".join(lines)

"""What goes wrong in the night, tried out on copies of the clone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from datamig_nb.alembic_runs import Runner
from datamig_nb.clone import Clone
from datamig_nb.names import TableName
from datamig_nb.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class FaultResult:
    """What a fault did to the revision."""

    #: ``kill``, ``crash``, …
    name: str
    #: What was done to it, in words.
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
    #: What an undisturbed upgrade left.
    expected: Snapshot
    #: Takes a line that tells how far the fault is.
    progress: Callable[[str], None]


#: Name of each fault -> what carries it out; one that raises a DatamigError counts as failed.
FAULTS: dict[str, Callable[[Scene], FaultResult]] = {}

"""What a run of Alembic costs: seconds, WAL, growth, locks, as values.

They come from looking at the database again and again (:mod:`datamig_nb.meter`).  What lies between
two looks is not seen, so each figure says how far off it may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from datamig_nb.plans import BatchPlan

#: ``application_name`` of sessions that play the application beside a migration.
OTHERS = "datamig_nb others"

#: What a step is: rows in batches, a check that reads, any other statement.
Kind: TypeAlias = Literal["batches", "check", "statement"]


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What one step of the story took; statements of less than a millisecond are left out."""

    #: The name of the walk or the check, or the beginning of the statement.
    name: str
    kind: Kind
    seconds: float
    #: How far off the seconds may be.
    error_seconds: float
    #: WAL that the server wrote meanwhile, other activity on it included.
    wal_bytes: int
    #: Tables that it names, with their schemas.
    tables: tuple[str, ...] = ()
    #: Rows that batches looked at; None where the step has no batches.
    rows: int | None = None

    @property
    def rows_per_second(self) -> float | None:
        """Rows that batches looked at in a second."""
        return self.rows / self.seconds if self.rows and self.seconds > 0 else None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a walk was at one moment."""

    #: Since the walk began.
    seconds: float
    #: Looked at so far.
    rows: int
    #: Written by the server since the walk began.
    wal_bytes: int
    #: Rows of the next batch.
    batch_rows: int


@dataclass(frozen=True, kw_only=True)
class Walked:
    """The batches of one step over time."""

    step: str
    #: Tables that it names, with their schemas.
    tables: tuple[str, ...]
    #: ``may be woven``: a larger table would be.
    way: Literal["woven", "by key", "may be woven"]
    #: In order of time, evenly thinned.
    points: tuple[Progress, ...]


@dataclass(frozen=True, kw_only=True)
class Hold:
    """The longest time for which a transaction held a lock on a table."""

    relation: str
    #: As pg_locks names it: ``AccessExclusiveLock``.
    mode: str
    #: It was seen for so long.
    at_least_seconds: float
    #: It was not there at the looks before and after.
    at_most_seconds: float


@dataclass(frozen=True, kw_only=True)
class Wait:
    """The longest time for which another session waited because of the migration."""

    #: The table, or ``a row``.
    relation: str
    mode: str
    #: Seen last after so long; it ended before the next look.
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The size of a table before and after, in bytes."""

    #: With its schema.
    table: str
    heap_before: int
    heap_after: int
    #: With out-of-line values.
    indexes_before: int
    indexes_after: int
    #: Added since; those that vacuum removed meanwhile do not count.
    dead_rows: int

    @property
    def added(self) -> int:
        """Bytes that it grew by."""
        return self.heap_after + self.indexes_after - self.heap_before - self.indexes_before


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one run of Alembic cost."""

    #: The stage of the rehearsal: ``upgrade``, ``downgrade`` or ``upgrade again``.
    stage: str
    #: The start of Python and Alembic included.
    seconds: float
    #: In the order in which they began.
    steps: tuple[StepCost, ...]
    walks: tuple[Walked, ...]
    #: Written by the server, other activity on it included.
    wal_bytes: int
    #: Images of whole pages in it, each of 8 KB at most.
    wal_whole_pages: int
    temp_files: int
    temp_bytes: int
    #: By how much the database was larger than before, at most; WAL and temporary files aside.
    peak_bytes: int
    #: Tables whose size or dead rows changed, new ones included.
    growths: tuple[Growth, ...]
    #: The longest of each mode on each table, tables in order of name.
    holds: tuple[Hold, ...]
    waits: tuple[Wait, ...]
    plans: tuple[BatchPlan, ...]
    shared_buffers_bytes: int
    looks: int
    #: Between two looks, at most: what was shorter may not have been seen.
    largest_gap_seconds: float

    @property
    def sampling(self) -> str:
        """How holds and waits were found, and how exact that is, in words."""
        return (
            f"sampled {self.looks:,} times, at most {1000 * self.largest_gap_seconds:.0f} ms apart:"
            " holds are known within two such gaps, shorter ones may be unseen"
        )

"""What a run of Alembic costs: time and WAL."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from datamig_nb.alembic_runs import AlembicRun
from datamig_nb.database import Database
from datamig_nb.names import TableName


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one run of Alembic cost."""

    #: The stage of the rehearsal: ``upgrade``, ``downgrade`` or ``upgrade again``.
    stage: str
    seconds: float
    #: Written by the whole server meanwhile, in bytes.
    wal_bytes: int


class Meter:
    """What is measured beside a run."""

    def __init__(self) -> None:
        self.wal_bytes = 0

    def measured(self, stage: str, run: AlembicRun) -> Measured:
        """The result, when the run is over."""
        return Measured(stage=stage, seconds=run.seconds, wal_bytes=self.wal_bytes)


@contextmanager
def measuring(db: Database, tables: Collection[TableName]) -> Generator[Meter]:
    """Measure what happens in the database inside the block, above all to these tables."""
    assert tables is not None
    meter, before = Meter(), _wal_bytes(db)
    yield meter
    meter.wal_bytes = _wal_bytes(db) - before


def _wal_bytes(db: Database) -> int:
    with db.read_only("measuring") as connection:
        position = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"
        return int(connection.execute(sa.text(position)).scalar_one())

"""What an upgrade will cost on the source, from what it cost on a copy or a sample of it.

What a run cost is divided into what stays the same and what grows with the rows.
The ranges are wide where a larger table behaves otherwise than a small one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from datamig_nb.database import Database, run
from datamig_nb.inlined_sql import WOVEN_FROM_PAGES
from datamig_nb.measure import Growth, Measured, StepCost, Walked
from datamig_nb.names import TableName

PAGE_BYTES = 8192

#: What a statement takes however small the tables are.
FIXED_SECONDS = 0.005

#: Shares of what was measured that a run may cost elsewhere: at least, likely, at most.
STARTING = (0.5, 1.0, 2.0)
WALKING = (0.75, 1.0, 1.35)
READING = (0.6, 1.0, 1.6)
WRITING = (0.9, 1.0, 1.15)
GROWING = (0.65, 1.0, 1.3)
#: A page is written to WAL as a whole when it changes first after a checkpoint.
WHOLE_PAGES = (0.7, 1.0, 1.15)
#: Where the tables do not fit into shared_buffers any more.
BEYOND_BUFFERS = (1.0, 1.2, 1.8)
#: A walk that went by key over a small table is woven over a large one: seconds, WAL, growth.
WOVEN = (0.5, 0.75, 1.0)
WOVEN_WAL = (0.42, 0.52, 0.75)
WOVEN_GROWTH = (0.3, 0.37, 0.5)


@dataclass(frozen=True, kw_only=True)
class Range:
    """A figure that is not known exactly."""

    low: float
    likely: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(
            low=self.low + other.low,
            likely=self.likely + other.likely,
            high=self.high + other.high,
        )

    def times(self, shares: tuple[float, float, float]) -> Range:
        """Each of its ends multiplied."""
        return Range(
            low=self.low * shares[0], likely=self.likely * shares[1], high=self.high * shares[2]
        )

    def holds(self, value: float) -> bool:
        """Whether a figure lies within."""
        return self.low <= value <= self.high


def _exactly(value: float) -> Range:
    return Range(low=value, likely=value, high=value)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the upgrade will cost on the source."""

    #: Rows there of the tables that it reads or changes.
    rows: int
    #: How many times as many as where it was measured, for the table that differs most.
    times: float
    seconds: Range
    wal_bytes: Range
    #: What the database grows by at the most, WAL and temporary files aside.
    disk_bytes: Range
    #: What the figures rest on, in words.
    assumptions: tuple[str, ...]


def forecast(upgrade: Measured, here: Mapping[str, int], there: Mapping[str, int]) -> Forecast:
    """Foretell the cost of an upgrade from a measured one.

    Parameters
    ----------
    here, there
        Rows of the tables where it was measured and on the source, by name with schema.
    """
    named = {name for step in upgrade.steps if step.kind != "statement" for name in step.tables}
    named |= {growth.table for growth in upgrade.growths}
    here = {name: rows for name, rows in here.items() if rows and name in named}
    scale = _Scale(upgrade, {name: there.get(name, rows) / rows for name, rows in here.items()})
    walks = {walk.step: walk for walk in upgrade.walks}
    between = upgrade.seconds - sum(step.seconds for step in upgrade.steps)
    seconds = _exactly(max(0.0, between)).times(STARTING)
    for step in upgrade.steps:
        seconds += scale.seconds(step, walks.get(step.name))
    return Forecast(
        rows=sum(there.get(name, rows) for name, rows in here.items()),
        times=scale.most,
        seconds=seconds,
        wal_bytes=scale.wal(),
        disk_bytes=scale.disk(),
        assumptions=scale.assumptions(),
    )


def estimated_rows(source: Database) -> dict[str, int]:
    """Rows of each table by its name with schema, as the planner estimates them, else counted."""
    with source.read_only("estimating the rows") as connection:
        found = {row.name: row.rows for row in connection.execute(sa.text(_ROWS))}
        for name in [name for name, rows in found.items() if rows is None]:
            count = f"SELECT count(*) FROM {TableName.parse(name).sql}"
            found[name] = run(connection, count).scalar_one()
    return found


# As many as were counted, on as many pages as there are now.
_ROWS = """
SELECT format('%s.%s', nspname, relname) AS name,
       CASE WHEN reltuples >= 0 AND relpages > 0 THEN
            (reltuples / relpages * pg_relation_size(pg_class.oid)
             / current_setting('block_size')::integer)::bigint END AS rows
  FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE relkind = 'r' AND nspname NOT IN ('pg_catalog', 'information_schema', 'datamig')
"""


class _Scale:
    """How what was measured grows."""

    def __init__(self, upgrade: Measured, times: Mapping[str, float]) -> None:
        self._upgrade, self._times = upgrade, times
        self.most = max(times.values(), default=1.0)
        self._growths = {growth.table: growth for growth in upgrade.growths}
        self._reads = sum(growth.heap_before * self._of(growth.table) for growth in upgrade.growths)
        self._is_larger = self._reads > upgrade.shared_buffers_bytes

    def _of(self, *tables: str) -> float:
        return max((self._times[t] for t in tables if t in self._times), default=self.most)

    def _becomes_woven(self, walk: Walked) -> bool:
        """Whether it went by key, and will not where the table has more pages."""
        pages = max(
            (
                self._growths[table].heap_before * self._of(table) / PAGE_BYTES
                for table in walk.tables
                if table in self._growths
            ),
            default=0,
        )
        return walk.way == "may be woven" and pages >= WOVEN_FROM_PAGES

    def seconds(self, step: StepCost, walk: Walked | None) -> Range:
        """What a step will take."""
        if walk is None or not walk.points:
            fixed = min(step.seconds, FIXED_SECONDS)
            grown = _exactly((step.seconds - fixed) * self._of(*step.tables)).times(READING)
            found = _exactly(fixed) + grown
        else:
            rows = walk.points[-1].rows * self._of(*walk.tables)
            rates = _seconds_a_row(walk)
            found = Range(low=min(rates), likely=rates[0], high=max(rates))
            found = found.times((rows, rows, rows)).times(WALKING)
            if self._becomes_woven(walk):
                found = found.times(WOVEN)
        return found.times(BEYOND_BUFFERS) if self._is_larger else found

    def wal(self) -> Range:
        """Records of changes grow with the rows, images of whole pages with the pages."""
        upgrade = self._upgrade
        images = min(upgrade.wal_whole_pages * PAGE_BYTES, 0.7 * upgrade.wal_bytes)
        records = _exactly((upgrade.wal_bytes - images) * self.most).times(WRITING)
        if any(map(self._becomes_woven, upgrade.walks)):
            records = records.times(WOVEN_WAL)
        pages = sum(self._changed_bytes(growth) for growth in upgrade.growths)
        return records + _exactly(pages).times(WHOLE_PAGES)

    def _changed_bytes(self, growth: Growth) -> float:
        """Bytes of the pages that were there before and are changed."""
        indexes = growth.indexes_before if growth.indexes_after > growth.indexes_before else 0
        heap = growth.heap_before if growth.dead_rows or growth.added else 0
        return (heap + indexes) * self._of(growth.table)

    def disk(self) -> Range:
        """What tables grow by, and what was there only meanwhile."""
        woven = {t for w in self._upgrade.walks if self._becomes_woven(w) for t in w.tables}
        found = _exactly(0)
        for growth in self._upgrade.growths:
            grown = _exactly(max(0, growth.added) * self._of(growth.table)).times(GROWING)
            found += grown.times(WOVEN_GROWTH) if growth.table in woven else grown
        stays = sum(growth.added for growth in self._upgrade.growths)
        meanwhile = max(0, self._upgrade.peak_bytes - max(0, stays))
        return found + _exactly(meanwhile * self.most).times(GROWING)

    def assumptions(self) -> tuple[str, ...]:
        """What the figures rest on."""
        said = [
            "a machine of the same class as where it was rehearsed, with no other load",
            "rows as wide there as here, and as many of them to be changed",
        ]
        if self._is_larger:
            said.append("the tables do not fit into shared_buffers, so it may take longer")
        if any(map(self._becomes_woven, self._upgrade.walks)):
            said.append(
                "a table is large enough there for a woven walk, which was not tried here, and no"
                " session holds an old snapshot open meanwhile"
            )
        said.append("pages are written to WAL as a whole once, after a checkpoint")
        return tuple(said)


def _seconds_a_row(walk: Walked) -> tuple[float, ...]:
    """What a row took: over the whole walk, over its first half, over its second."""
    points = walk.points
    whole = points[-1].seconds / points[-1].rows
    middle = points[len(points) // 2]
    if len(points) < 4 or not middle.rows < points[-1].rows:
        return (whole,)
    second = (points[-1].seconds - middle.seconds) / (points[-1].rows - middle.rows)
    return whole, middle.seconds / middle.rows, second

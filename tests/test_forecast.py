"""What was measured grows with the rows, and what does not grow stays."""

from __future__ import annotations

import dataclasses

import pytest

from datamig_nb.database import Database
from datamig_nb.forecast import Range, estimated_rows, forecast
from datamig_nb.measure import Growth, Measured, Progress, StepCost, Walked
from tests.scratch import query

_POINTS = tuple(
    Progress(seconds=n / 10, rows=1000 * n, wal_bytes=0, batch_rows=1000) for n in range(1, 11)
)
#: A second for ten thousand rows, half a second of Python, a check of 105 ms.
UPGRADE = Measured(
    stage="upgrade",
    seconds=1.605,
    steps=(
        StepCost(
            name="fill",
            kind="batches",
            seconds=1.0,
            error_seconds=0.0,
            wal_bytes=5_000_000,
            tables=("public.item",),
            rows=10_000,
        ),
        StepCost(
            name="none is NULL",
            kind="check",
            seconds=0.105,
            error_seconds=0.0,
            wal_bytes=0,
            tables=("public.item",),
        ),
    ),
    walks=(Walked(step="fill", tables=("public.item",), way="by key", points=_POINTS),),
    wal_bytes=5_000_000,
    wal_whole_pages=0,
    temp_files=0,
    temp_bytes=0,
    peak_bytes=1_200_000,
    growths=(
        Growth(
            table="public.item",
            heap_before=1_000_000,
            heap_after=2_000_000,
            indexes_before=200_000,
            indexes_after=300_000,
            dead_rows=10_000,
        ),
    ),
    holds=(),
    waits=(),
    plans=(),
    shared_buffers_bytes=10**9,
    looks=100,
    largest_gap_seconds=0.02,
)
HERE = {"public.item": 10_000, "public.other": 5}


def test_as_many_rows_cost_what_was_measured() -> None:
    told = forecast(UPGRADE, HERE, HERE)

    assert (told.rows, told.times) == (10_000, 1.0)
    assert told.seconds.likely == pytest.approx(1.605)
    assert told.disk_bytes.likely == pytest.approx(1_200_000)
    # and the pages that were there, each as a whole
    assert told.wal_bytes.likely == pytest.approx(5_000_000 + 1_200_000)


def test_what_grows_is_multiplied_and_what_does_not_is_not() -> None:
    there = {"public.item": 1_000_000, "public.other": 5_000_000}
    told = forecast(UPGRADE, HERE, there)

    # 0.5 s of Python, 5 ms of a check's 105 stay
    assert (told.rows, told.times) == (1_000_000, 100.0)
    assert told.seconds.likely == pytest.approx(0.505 + 100 * 1.1)
    assert told.disk_bytes.likely == pytest.approx(100 * 1_200_000)
    assert told.seconds.low < told.seconds.likely < told.seconds.high


def test_a_walk_that_will_be_woven_writes_less_and_one_beyond_the_buffers_takes_longer() -> None:
    there = {"public.item": 1_000_000}
    by_key = forecast(UPGRADE, HERE, there)
    (walk,) = UPGRADE.walks
    walks = (dataclasses.replace(walk, way="may be woven"),)
    woven = forecast(dataclasses.replace(UPGRADE, walks=walks), HERE, there)
    beyond = forecast(dataclasses.replace(UPGRADE, shared_buffers_bytes=10**7), HERE, there)

    assert woven.wal_bytes.likely < by_key.wal_bytes.likely
    assert woven.disk_bytes.likely < by_key.disk_bytes.likely / 2
    assert beyond.seconds.high > 1.5 * by_key.seconds.high
    assert any("woven" in said for said in woven.assumptions)
    assert any("shared_buffers" in said for said in beyond.assumptions)


def test_a_range_says_whether_a_figure_is_in_it() -> None:
    found = Range(low=1, likely=2, high=4) + Range(low=1, likely=1, high=1).times((1, 2, 3))

    assert found == Range(low=2, likely=4, high=7)
    assert [found.holds(value) for value in (1.9, 2, 7, 7.1)] == [False, True, True, False]


def test_rows_are_those_of_the_planner_or_counted(database: Database) -> None:
    query(
        database,
        "CREATE TABLE known AS SELECT n FROM generate_series(1, 500) AS n; ANALYZE known;"
        " CREATE TABLE unknown AS SELECT n FROM generate_series(1, 7) AS n",
    )

    assert estimated_rows(database) == {"public.known": 500, "public.unknown": 7}

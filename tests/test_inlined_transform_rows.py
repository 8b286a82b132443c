"""The size of the batches that Python computes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from datamig_nb import inlined_transform


@settings(deadline=None)
@given(st.integers(10, 50_000), st.floats(0, 1e6), st.floats(0, 1e6))
def test_batches_grow_to_twice_at_most_and_a_slower_one_is_followed_by_no_larger_one(
    rows: int, seconds: float, more: float
) -> None:
    following = inlined_transform.next_transform_rows(rows, seconds)

    assert 10 <= following <= max(10, rows * 2)
    assert inlined_transform.next_transform_rows(rows, seconds + more) <= following


def test_batches_come_to_the_wanted_time_in_a_few_steps() -> None:
    """Rows that cost 0.02 ms, then 10 ms since the function calls something slow."""
    rows, sizes = 500, []
    for milliseconds in [0.02] * 7 + [10] * 2:
        rows = inlined_transform.next_transform_rows(rows, rows * milliseconds / 1000)
        sizes.append(rows)

    assert sizes == [1000, 2000, 4000, 8000, 16000, 25000, 25000, 50, 50]

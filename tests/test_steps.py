"""Data steps as values: what they are, what they say, and what is refused when they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import sqlalchemy as sa

from datamig_nb.errors import MigrationError
from datamig_nb.names import TableName
from datamig_nb.steps import (
    Backfill,
    DeleteRows,
    InsertRows,
    Walk,
    back_up,
    backfill,
    delete_rows,
    insert_rows,
    keep_in_step,
)


def test_a_backfill_is_a_value_of_text() -> None:
    made = backfill(
        'shop."Order"',
        {"total": sa.func.coalesce(sa.column("sum"), 0), "State": " 'x' "},
        where=sa.column("id") > 5,
        using="(SELECT 1 AS n) AS s",
        on="s.n = id",
        on_error="quarantine",
        quarantine_limit=7,
        fire_triggers=False,
        rest=0.5,
        hold_on=["autovacuum"],
    )

    assert made == Backfill(
        table=TableName("shop", "Order"),
        assign={"total": "coalesce(sum, 0)", "State": "'x'"},
        where="id > 5",
        using="(SELECT 1 AS n) AS s",
        on="s.n = id",
        walk=Walk(quarantine_rows=7, fire_triggers=False, rest_share=0.5, hold_on=("autovacuum",)),
    )
    assert made.texts == ("coalesce(sum, 0)", "'x'", "id > 5", "(SELECT 1 AS n) AS s", "s.n = id")
    with pytest.raises(FrozenInstanceError):
        made.where = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        made.assign["total"] = "0"  # pyright: ignore[reportIndexIssue]


def test_insert_rows_and_delete_rows_are_values_of_text() -> None:
    assert insert_rows("tag", "SELECT word FROM t;\n", key="word", on_conflict="nothing") == (
        InsertRows(
            table=TableName(None, "tag"),
            select="SELECT word FROM t",
            key=("word",),
            on_conflict="DO NOTHING",
        )
    )
    assert insert_rows("tag", "SELECT a, b", key=["a", "b"], columns=["a", "b"]).key == ("a", "b")
    assert delete_rows("t", "x", dependants={"a.b": "t_id", "c": ["x", "y"]}) == DeleteRows(
        table=TableName(None, "t"),
        where="x",
        dependants={TableName("a", "b"): ("t_id",), TableName(None, "c"): ("x", "y")},
    )
    assert delete_rows("t", "x", dependants=("c",)).dependants == {TableName(None, "c"): ()}


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (backfill("t", {"a": "1"}), "fill a of t, every row, in batches"),
        (
            backfill("t", {"a": "1", "b": "2"}, where="c", using="u", on="true"),
            "fill a and b of t from u, rows where c, in batches",
        ),
        (
            insert_rows("s.t", "SELECT 1 AS a, 2 AS b", key=["a", "b"]),
            "insert rows into s.t, in batches by a and b",
        ),
        (delete_rows("t", "x"), "delete rows of t where x, in batches, kept for the way back"),
        (
            delete_rows("t", "x", keep=False, dependants=("u", "v")),
            "delete rows of t where x, those of u and v first, in batches, not kept",
        ),
        (back_up("t", "a", "b"), "keep a and b of rows of t that change, or lose them"),
        (keep_in_step("t", {"a": "1"}), "keep a of t in step with a trigger"),
    ],
)
def test_a_step_says_in_a_line_what_it_does(step: object, words: str) -> None:
    assert str(step) == words


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: backfill("t", {}), "backfill() sets no column; give {column: expression}"),
    (
        lambda: backfill("t", {"a": " "}),
        "an expression is empty; write SQL over the columns of the row",
    ),
    (
        lambda: backfill("t", {"a": "1"}, using="u"),
        "using= and on= belong together; give both, or none",
    ),
    (
        lambda: backfill("t", {"a": "1"}, on="true"),
        "using= and on= belong together; give both, or none",
    ),
    (
        lambda: backfill("a.b.c", {"a": "1"}),
        "'a.b.c' is no table name; write 'table' or 'schema.table', without a database",
    ),
    (
        lambda: backfill("t", {"a": "1"}, on_error="skip"),  # pyright: ignore[reportArgumentType]
        "on_error='skip', quarantine_limit=100, rest=0.0 is no choice; on_error is 'stop' or"
        " 'quarantine', the others are 0 or more",
    ),
    (
        lambda: backfill("t", {"a": "1"}, rest=-1),
        "on_error='stop', quarantine_limit=100, rest=-1 is no choice; on_error is 'stop' or"
        " 'quarantine', the others are 0 or more",
    ),
    (
        lambda: backfill("t", {"a": "1"}, hold_on=["moon"]),  # pyright: ignore[reportArgumentType]
        "there is no signal 'moon'; use replica_lag, autovacuum, lock_queue",
    ),
    (
        lambda: insert_rows("t", "SELECT 1", key=[]),
        "insert_rows() has no key to walk its query by; name columns that are never NULL",
    ),
    (
        lambda: insert_rows("t", "SELECT 1 AS a", key="a", on_conflict="update"),
        "on_conflict='update' does not say what to do; write 'nothing', or what follows ON"
        " CONFLICT, with DO NOTHING or DO UPDATE SET …",
    ),
    (lambda: keep_in_step("t", {}), "keep_in_step() sets no column; give {column: expression}"),
]


@pytest.mark.parametrize(("make", "sentence"), REFUSED)
def test_contradictions_are_refused_at_birth(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(MigrationError) as refusal:
        make()

    assert str(refusal.value) == sentence

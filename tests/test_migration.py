"""A migration is a value: frozen, complete, without contradictions from the start."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.operations import ops
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql

from datamig_nb.checks import (
    QueryCheck,
    RowCheck,
    allowed_values,
    check,
    matches,
    no_nulls,
    no_orphans,
    rows_check,
    unique,
)
from datamig_nb.database import Database
from datamig_nb.errors import MigrationError
from datamig_nb.expressions import expression_text
from datamig_nb.migration import CreateEnum, Migration, added_columns
from datamig_nb.names import TableName
from datamig_nb.operations import add_column, alter_column, create_check_constraint, create_enum
from datamig_nb.steps import Backfill, KeepInStep, backfill, keep_in_step

few = settings(max_examples=50, derandomize=True, deadline=None, database=None)

PLAYER = TableName("players", "player")
INITIAL = sa.Column("initial", sa.String(1))
STEPS = (
    add_column("player", INITIAL, schema="players"),
    keep_in_step("players.player", {"initial": "left(full_name, 1)"}),
    backfill("players.player", {"initial": "left(full_name, 1)"}, where="active"),
    no_nulls("players.player", "initial"),
    alter_column("player", "initial", nullable=False, schema="players"),
)
INITIALS = Migration("initials  of\nplayers", *STEPS)

full_name = sa.column("full_name", sa.Text)


# ---------------------------------------------------------------- values


def test_migration_holds_its_name_and_steps() -> None:
    assert INITIALS.name == "initials of players"
    assert INITIALS.steps == STEPS
    assert INITIALS.backfills == (STEPS[2],)
    assert INITIALS.checks == (STEPS[3],)
    assert added_columns(INITIALS) == {PLAYER: {"initial": INITIAL}}
    nested = Migration("initials of players", STEPS[0], [STEPS[1:3], (), STEPS[3]], *STEPS[4:])
    assert nested == INITIALS


def test_steps_hold_what_they_were_given() -> None:
    assert STEPS[2] == Backfill(
        table=PLAYER, assign={"initial": "left(full_name, 1)"}, where="active"
    )
    assert STEPS[1] == KeepInStep(table=PLAYER, assign={"initial": "left(full_name, 1)"})
    assert create_enum("guide.state", "on", "off") == CreateEnum(
        name=TableName("guide", "state"), labels=("on", "off")
    )


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (INITIALS, "name"),
        (INITIALS, "steps"),
        (STEPS[1], "assign"),
        (STEPS[2], "where"),
        (STEPS[3], "failing"),
        (check("none", "SELECT 1"), "failing"),
        (create_enum("state", "on"), "labels"),
        (PLAYER, "name"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_value_is_frozen(value: object, field: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, None)


def test_expressions_of_a_step_are_frozen_and_its_own() -> None:
    assign = {"initial": "left(full_name, 1)"}
    step = backfill("players.player", assign)

    assign["initial"] = "upper(full_name)"

    assert step.assign == {"initial": "left(full_name, 1)"}
    with pytest.raises(TypeError):
        step.assign["initial"] = "upper(full_name)"


# ---------------------------------------------------------------- contradictions


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Migration("x"), "migration 'x' has no steps; give it at least one step"),
        (
            lambda: Migration(" \n", STEPS[0]),
            "the migration has no name; say in a few words what it does",
        ),
        (
            lambda: Migration("x", "UPDATE player SET x = 1"),
            "str is no step of a migration; make steps with add_column(), backfill(), check(), …",
        ),
        (
            lambda: Migration("x", ops.CreateTableCommentOp("player", "who plays")),
            "CreateTableCommentOp is no step of a migration; make steps with add_column(),"
            " backfill(), check(), …",
        ),
        (
            lambda: Migration("x", ops.AlterColumnOp("player", "id", modify_type=sa.Integer())),
            "an AlterColumnOp of 'id' does what alter_column() does not; make it with"
            " alter_column(); a change of the type is a new column",
        ),
        (lambda: INITIALS.replace(0, STEPS[0]), "there is no step 0; choose one of 1 to 5"),
        (lambda: INITIALS.replace(6, STEPS[0]), "there is no step 6; choose one of 1 to 5"),
        (
            lambda: add_column("t", sa.Column("a", sa.Text, default="x")),
            "column 'a' has default=, which acts in Python only: no row would get it; use"
            " server_default=, or fill the column with backfill()",
        ),
        (
            lambda: add_column("t", sa.Column("a", sa.Text, nullable=False)),
            "column 'a' is NOT NULL from the start, but existing rows have no value; add it"
            " nullable, fill it with backfill(), then alter_column(…, nullable=False)",
        ),
        (
            lambda: add_column("t", sa.Column("a")),
            "column 'a' has no type; give it one, such as sa.Text()",
        ),
        (lambda: backfill("t", {}), "backfill() sets no column; give {column: expression}"),
        (lambda: keep_in_step("t", {}), "keep_in_step() sets no column; give {column: expression}"),
        (
            lambda: backfill("t", {"a": "  "}),
            "an expression is empty; write SQL over the columns of the row",
        ),
        (
            lambda: backfill("t", {"a": "1"}, where=""),
            "an expression is empty; write SQL over the columns of the row",
        ),
        (
            lambda: check("none", "\n"),
            "an expression is empty; write SQL over the columns of the row",
        ),
        (
            lambda: backfill("t", {"a": "'{batch}'"}),
            "the expression \"'{batch}'\" holds '{batch}', which rendered statements use"
            " themselves; write it otherwise",
        ),
        (
            lambda: backfill("t", {"a": "$datamig$x$datamig$"}),
            "the expression '$datamig$x$datamig$' holds '$datamig$', which rendered statements"
            " use themselves; write it otherwise",
        ),
        (
            lambda: backfill("t", {"a": "'\0'"}),
            r"""the expression "'\x00'" holds '\x00', which rendered statements use themselves;"""
            " write it otherwise",
        ),
        (
            lambda: create_enum("state"),
            "enum 'state' needs labels, each once; these were given: ",
        ),
        (
            lambda: create_enum("state", "on", "on"),
            "enum 'state' needs labels, each once; these were given: on, on",
        ),
        (
            lambda: create_enum("state", "ü" * 32),
            f"the label {'ü' * 32!r} of enum 'state' has more than 63 bytes; shorten it",
        ),
        (lambda: no_nulls("t"), "no column is named; name at least one"),
        (lambda: unique("t"), "no column is named; name at least one"),
        (lambda: allowed_values("t", "a", []), "no value of 'a' is allowed; name at least one"),
        (
            lambda: backfill("a.b.c", {"a": "1"}),
            "'a.b.c' is no table name; write 'table' or 'schema.table', without a database",
        ),
    ],
)
def test_contradiction_is_refused_at_birth(make: Callable[[], object], message: str) -> None:
    with pytest.raises(MigrationError) as caught:
        make()

    assert str(caught.value) == message


@pytest.mark.parametrize(
    "column",
    [
        sa.Column("a", sa.Integer, sa.ForeignKey("other.id")),
        sa.Column("a", sa.Integer, sa.CheckConstraint("a > 0")),
        sa.Column("a", sa.Integer, unique=True),
        sa.Column("a", sa.Integer, index=True),
        sa.Column("a", sa.Integer, primary_key=True, server_default="1"),
    ],
    ids=["foreign key", "check", "unique", "index", "primary key"],
)
def test_column_with_what_the_revision_would_leave_out_is_refused(column: sa.Column[Any]) -> None:
    with pytest.raises(MigrationError, match="brings a key, a constraint or an index of its own"):
        add_column("t", column)


def test_column_that_rows_get_a_value_for_may_be_not_null() -> None:
    step = add_column("t", sa.Column("a", sa.Text, nullable=False, server_default="x"))

    assert step.column.name == "a"
    assert step.if_not_exists


# ---------------------------------------------------------------- shown


def test_repr_lists_the_steps() -> None:
    assert repr(INITIALS) == (
        "Migration: initials of players\n"
        "  1. add the column initial VARCHAR(1) to players.player\n"
        "  2. keep initial of players.player in step with a trigger\n"
        "  3. fill initial of players.player, rows where active, in batches\n"
        "  4. check that: initial of players.player without NULL\n"
        "  5. make initial of players.player NOT NULL, without a long lock"
    )


def test_repr_tells_every_other_kind_of_step() -> None:
    migration = Migration(
        "more",
        create_enum("guide.state", "on", "off"),
        create_check_constraint("state_check", "user", "state IN ('on', 'off')", schema="guide"),
        backfill("guide.user", {"a": "1", "b": "2", "c": "3"}),
        rows_check("no user is new", "guide.user", "id > 9", before=True),
        check("nothing is left", "SELECT 1", before=True),
        check("nothing is left", "SELECT 1"),
    )

    assert repr(migration) == (
        "Migration: more\n"
        "  1. create the enum type guide.state ('on', 'off')\n"
        "  2. add the CHECK state_check to guide.user: state IN ('on', 'off')\n"
        "  3. fill a, b and c of guide.user, every row, in batches\n"
        "  4. check first: no user is new\n"
        "  5. check first: nothing is left\n"
        "  6. check that: nothing is left"
    )


def test_replace_gives_a_copy_with_another_step() -> None:
    everyone = backfill("players.player", {"initial": "left(full_name, 1)"})

    replaced = INITIALS.replace(3, everyone)

    assert replaced == Migration(INITIALS.name, *STEPS[:2], everyone, *STEPS[3:])
    assert INITIALS.steps == STEPS


# ---------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("made", "table", "name", "failing"),
    [
        (
            no_nulls("players.player", "id", "Full Name"),
            "players.player",
            "id and Full Name of players.player without NULL",
            'id IS NULL OR "Full Name" IS NULL',
        ),
        (
            allowed_values("guide.user", "status", ["on", "it's"]),
            "guide.user",
            "status of guide.user holds only 'on', 'it''s'",
            "status::text NOT IN ('on', 'it''s')",
        ),
        (
            matches("guide.user", "name", "trim(full_name)"),
            "guide.user",
            "name of guide.user is what its source says",
            "name IS DISTINCT FROM (trim(full_name))",
        ),
        (
            matches("guide.user", "name", "trim(full_name)", where="a OR b"),
            "guide.user",
            "name of guide.user is what its source says",
            "(a OR b) AND name IS DISTINCT FROM (trim(full_name))",
        ),
        (
            no_orphans("guide.task", "user_id", "guide.user", "id"),
            "guide.task",
            "user_id of guide.task found in guide.user",
            'user_id IS NOT NULL AND NOT EXISTS (SELECT FROM guide."user" AS parent'
            " WHERE parent.id = task.user_id)",
        ),
    ],
)
def test_check_of_rows_says_what_holds_and_which_row_fails(
    made: RowCheck, table: str, name: str, failing: str
) -> None:
    assert made == RowCheck(name=name, table=TableName.parse(table), failing=failing)


def test_check_of_uniqueness_counts_the_values_that_come_twice() -> None:
    assert unique("guide.user", "email", "status") == QueryCheck(
        name="email and status of guide.user unique",
        failing='SELECT email, status, count(*) AS times FROM guide."user"\n'
        " WHERE email IS NOT NULL AND status IS NOT NULL GROUP BY email, status"
        " HAVING count(*) > 1 ORDER BY email, status",
    )


def test_check_of_a_query_loses_its_semicolon() -> None:
    assert check("none", " SELECT 1 ;\n").failing == "SELECT 1"


# ---------------------------------------------------------------- expressions


@pytest.mark.parametrize(
    ("element", "text"),
    [
        (sa.func.upper(full_name), "upper(full_name)"),
        (sa.func.split_part(full_name, "%", 1), "split_part(full_name, '%', 1)"),
        (sa.func.replace(full_name, " :y", ""), "replace(full_name, ' :y', '')"),
        (full_name + sa.literal("it's 100% :x"), "full_name || 'it''s 100% :x'"),
        (full_name.regexp_replace(r"\s+", " "), r"REGEXP_REPLACE(full_name, '\s+', ' ')"),
        (full_name.in_(["a", "b"]), "full_name IN ('a', 'b')"),
        (full_name.like("a%"), "full_name LIKE 'a%'"),
        (full_name.is_(None), "full_name IS NULL"),
        (sa.column("id", sa.Integer) % 5 == 0, "id % 5 = 0"),
        (
            sa.case((full_name == "a", "b"), else_="c"),
            "CASE WHEN (full_name = 'a') THEN 'b' ELSE 'c' END",
        ),
        (sa.column("My Column") == 1, '"My Column" = 1'),
        (sa.cast(full_name, postgresql.JSONB), "CAST(full_name AS JSONB)"),
        (sa.literal(datetime.date(2026, 11, 22)), "'2026-11-22'"),
        (sa.literal_column("'{\"a\":1}'::jsonb"), "'{\"a\":1}'::jsonb"),
    ],
)
def test_sqlalchemy_element_gives_the_text_that_one_would_write(
    element: sa.ColumnElement[Any], text: str
) -> None:
    assert expression_text(element) == text
    assert backfill("t", {"a": element}) == backfill("t", {"a": text})


@few
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0")) | st.text("'\\%:y\"{}$"))
def test_text_in_an_element_arrives_at_the_server_as_the_very_text(
    samples: Database, text: str
) -> None:
    expression = expression_text(sa.func.coalesce(sa.null(), sa.literal(text)))

    with samples.engine.connect() as connection:
        found = connection.exec_driver_sql(
            f"SELECT {expression}", execution_options={"no_parameters": True}
        )
        assert found.scalar_one() == text


def test_columns_of_a_table_are_written_without_its_name() -> None:
    player = sa.Table("player", sa.MetaData(), sa.Column("full_name", sa.Text), schema="players")

    assert expression_text(sa.func.upper(player.c.full_name)) == "upper(full_name)"


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (
            sa.func.coalesce(full_name, sa.bindparam("name")),
            "the expression 'coalesce(full_name, :name)' has no value for :name; give it a value,"
            r" or write a colon that is none of SQLAlchemy's as '\:'",
        ),
        (
            sa.func.replace(full_name, sa.text("' :y'")),
            """the expression "replace(full_name, ' :y')" has no value for :y; give it a value,"""
            r" or write a colon that is none of SQLAlchemy's as '\:'",
        ),
        (
            sa.select(sa.func.max(sa.column("id"))).scalar_subquery(),
            "a SQLAlchemy element with a subquery would lose the names of its tables; write the"
            " expression as text",
        ),
        (
            sa.exists().where(full_name == "a"),
            "a SQLAlchemy element with a subquery would lose the names of its tables; write the"
            " expression as text",
        ),
    ],
    ids=["no value", "no value in text", "subquery", "exists"],
)
def test_element_without_a_text_of_its_own_is_refused(
    element: sa.ColumnElement[Any], message: str
) -> None:
    with pytest.raises(MigrationError) as caught:
        expression_text(element)

    assert str(caught.value) == message


def test_value_without_a_literal_is_refused() -> None:
    with pytest.raises(MigrationError, match=r"cannot be written as text.*; write it as text$"):
        expression_text(sa.literal({"a": 1}, sa.JSON))

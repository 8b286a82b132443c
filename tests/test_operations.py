"""Schema steps by the names of Alembic's ``op``: what they hold, and what is refused at birth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from alembic.operations import ops
from hypothesis import given
from hypothesis import strategies as st

from datamig_nb.ddl import bare
from datamig_nb.errors import MigrationError
from datamig_nb.migration import Migration
from datamig_nb.operations import (
    add_column,
    alter_column,
    create_check_constraint,
    create_enum,
    create_foreign_key,
    create_index,
    create_primary_key,
    create_table,
    create_unique_constraint,
    drop_column,
    drop_constraint,
    drop_index,
    drop_table,
    rename_table,
    sql,
)
from datamig_nb.steps import Sql

OWNED = sa.Table("t", sa.MetaData(), sa.Column("p", sa.Integer, sa.ForeignKey("parent.id")))


def test_steps_are_alembics_own_operations_in_a_migration() -> None:
    steps = (
        add_column("t", sa.Column("note", sa.Text)),
        drop_column("t", "old", schema="s"),
        alter_column("t", "a", nullable=False, existing_type=sa.Text(), existing_nullable=True),
        alter_column("t", "a", server_default=None),
        alter_column("t", "a", server_default="x", nullable=True),
        alter_column("t", "a", new_column_name="b", schema="s"),
        create_table("new", sa.Column("id", sa.Integer), sa.Column("n", sa.Text)),
        drop_table("t", schema="s"),
        rename_table("t", "u", schema="s"),
        create_index("ix", "t", ["a", sa.text("lower(b)")], unique=True),
        create_index("iy", "t", ["a"], postgresql_where=sa.column("a") > 0),
        drop_index("ix"),
        create_unique_constraint("uq", "t", ["a"]),
        create_primary_key("pk", "t", ["a", "b"]),
        create_foreign_key("fk", "t", "parent", ["a"], ["id"], source_schema="s"),
        create_check_constraint("ck", "t", "a > 0"),
        drop_constraint("ck", "t", "check"),
        create_enum("s.state", "on", "off"),
        sql("VACUUM t;", undo=""),
        sql("GRANT SELECT ON t TO r", name="let r read"),
    )

    assert all(isinstance(step, ops.MigrateOperation) for step in steps[:-3])
    assert (
        repr(Migration("everything", *steps))
        == """\
Migration: everything
  1. add the column note TEXT to t
  2. drop the column old of s.t, values and all
  3. make a of t NOT NULL, without a long lock
  4. drop the default of a of t
  5. change the default of a of t and let a of t be NULL
  6. rename a of s.t to b
  7. create the table new with id and n
  8. drop the table s.t, rows and all
  9. rename the table s.t to u
  10. build the unique index ix on t, concurrently
  11. build the index iy on t, concurrently
  12. drop the index ix, concurrently
  13. add the UNIQUE uq to t, over a
  14. add the PRIMARY KEY pk to t, over a and b
  15. add the foreign key fk to s.t: a to id of parent
  16. add the CHECK ck to t: a > 0
  17. drop the constraint ck of t
  18. create the enum type s.state ('on', 'off')
  19. run VACUUM t, by a statement that is not batched
  20. let r read, by a statement that is not batched"""
    )


def test_statement_of_ones_own_is_held_as_it_stands() -> None:
    body = "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ SELECT 1; SELECT 2; $$"
    atomic = "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END"

    assert sql(f"{body};\n", undo="DROP FUNCTION f()", name="f") == Sql(
        statement=body, undo="DROP FUNCTION f()", name="f"
    )
    assert sql(atomic).statement == atomic
    assert sql("UPDATE t SET a = ';'  -- so;\n").undo is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: add_column("t", sa.Column("a", sa.Boolean(create_constraint=True))),
            "column 'a' brings a key, a constraint or an index of its own, which would hold a long"
            " lock; add the column without it, and the constraint or the index as a step of its"
            " own",
        ),
        *(
            (
                lambda column=column: add_column("t", column),
                "column 'a' has a value that PostgreSQL computes for each row, so that it would"
                " rewrite the table under a strong lock; add it without, then alter_column(…,"
                " server_default=…) for new rows, and backfill() for the old ones",
            )
            for column in (
                sa.Column("a", sa.Integer, sa.Identity()),
                sa.Column("a", sa.Integer, sa.Computed("b + 1", persisted=True)),
                sa.Column("a", sa.Uuid, server_default=sa.text("gen_random_uuid()")),
                sa.Column("a", sa.Float, server_default=sa.func.random()),
                sa.Column("a", sa.Integer, server_default=sa.text("nextval('s')"), nullable=False),
            )
        ),
        *(
            (
                make,
                "SQLAlchemy cannot write this for PostgreSQL: there is no value for :y; a colon"
                r" that is none of SQLAlchemy's is written as '\:'; correct the arguments, or write"
                " the statement yourself with sql()",
            )
            for make in (
                lambda: add_column("t", sa.Column("a", sa.Text, server_default=sa.text("':y'"))),
                lambda: alter_column("t", "a", server_default=sa.text("':y'")),
                lambda: create_table("t", sa.Column("a", sa.Text), sa.CheckConstraint("a <> ':y'")),
                lambda: create_index("i", "t", [sa.text("a || ':y'")]),
                lambda: create_index("i", "t", ["a"], postgresql_where=sa.text("a <> ':y'")),
            )
        ),
        (
            lambda: alter_column("t", "a", type_=sa.Text()),
            "a new type for 'a' of 't' would rewrite the table under a strong lock; add a column of"
            " that type, fill it with backfill(), and drop the old one later",
        ),
        (
            lambda: alter_column("t", "a", server_default=sa.Identity()),
            "'a' of 't' cannot become an identity or computed column in stages; write the statement"
            " yourself with sql()",
        ),
        (
            lambda: alter_column("t", "a"),
            "alter_column() changes nothing of 'a' of 't'; give nullable=, server_default= or"
            " new_column_name=",
        ),
        (
            lambda: alter_column("t", "a", nullable=True, new_column_name="b"),
            "'a' of 't' gets a new name and something else, or the name that it has; rename it in"
            " a step of its own",
        ),
        (
            lambda: alter_column("t", "a", nullable=True, existing_nullable=True),
            "'a' of 't' would become what existing_nullable= says it is; leave the step out",
        ),
        (
            lambda: create_table("t", sa.Column("a")),
            "SQLAlchemy cannot write this for PostgreSQL: (in table 't', column 'a'): Can't"
            " generate DDL for NullType(); did you forget to specify a type on this Column?;"
            " correct the arguments, or write the statement yourself with sql()",
        ),
        (
            lambda: create_table("u", *OWNED.c),
            "column 'p' belongs to a table already, and its copy would lose the foreign key; give a"
            " new sa.Column, or the key as sa.ForeignKeyConstraint",
        ),
        (lambda: rename_table("t", "t"), "table 't' has that name; give it another"),
        (
            lambda: create_index("ix", "t", "a"),
            "the columns of index 'ix' are no list of names; write [\"column\"]",
        ),
        (
            lambda: create_index("ix", "t", ["a"], postgresql_concurrently=False),
            "index 'ix' would make writers wait while it is built; leave postgresql_concurrently"
            " out",
        ),
        (
            lambda: create_unique_constraint("uq", "t", ["a", "a"]),
            "the columns of 'uq' are no list of names, each once; write [\"column\"]",
        ),
        (
            lambda: create_unique_constraint("uq", "t", ["a"], using="x"),
            "there is no option 'using' here; use deferrable, initially, postgresql_include,"
            " postgresql_nulls_not_distinct",
        ),
        (
            lambda: create_foreign_key("fk", "t", "p", ["a", "b"], ["id"]),
            "foreign key 'fk' has 2 columns for 1; name as many columns of one table as of the"
            " other",
        ),
        (
            lambda: create_foreign_key("fk", "t", "p", ["a"], ["id"], ondelete="EXPLODE"),
            "'EXPLODE' says nothing to PostgreSQL here; see CREATE TABLE in its manual",
        ),
        (
            lambda: create_unique_constraint("uq", "t", ["a"], initially="later"),
            "'later' says nothing to PostgreSQL here; see CREATE TABLE in its manual",
        ),
        (
            lambda: drop_constraint("ü" * 32, "t"),
            f"'{'ü' * 32}' is no name: PostgreSQL takes 1 to 63 bytes; choose another",
        ),
        (lambda: drop_table(""), "'' is no name: PostgreSQL takes 1 to 63 bytes; choose another"),
        *(
            (
                lambda text=text: sql(text),
                f"{text!r} is no statement of a step; write one statement, without BEGIN and"
                " COMMIT",
            )
            for text in ("", "-- nothing", "COMMIT", "/* now */ begin", "\\i file.sql")
        ),
        (
            lambda: sql("SELECT 1;\nSELECT ';'"),
            "'SELECT 1;' is more than one statement; make a step of each",
        ),
    ],
)
def test_contradiction_or_long_lock_is_refused_at_birth(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(MigrationError) as caught:
        make()

    assert str(caught.value) == message


@given(st.text("ab'\"-\n;$/* ", max_size=30))
def test_text_without_its_literals_keeps_its_length_and_lines(text: str) -> None:
    plain = bare(text)

    assert len(plain) == len(text)
    assert all(mine in (theirs, "\0") for mine, theirs in zip(plain, text, strict=True))

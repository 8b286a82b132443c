# ruff: noqa: E501 (statements stay as they are sent)
"""Schema steps as SQL: whole texts, then run on PostgreSQL: repeated, stopped, taken back, watched.

Statements are sent as a revision sends them: each in a transaction of its own, or outside.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import psycopg
import pytest
import sqlalchemy as sa
from alembic.operations import ops
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamig_nb import stages
from datamig_nb.database import Database
from datamig_nb.errors import MigrationError
from datamig_nb.migration import step_table
from datamig_nb.names import TableName, literal, quote
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
from datamig_nb.preflight import definition_query, preflight
from datamig_nb.schema import StatementStep, downgrade_statements, upgrade_statements
from datamig_nb.server_setup import binaries
from datamig_nb.stages import Found, NoWayBack, Statement
from datamig_nb.step_effects import goes_with_another
from datamig_nb.steps import Sql
from tests.scratch import query, scratch_database, session

Session: TypeAlias = psycopg.Connection[Any]

_numbers = itertools.count(1)

ROWS = 1_000

SHOP = f"""
CREATE SCHEMA shop;
CREATE SCHEMA "My Shop";
CREATE TABLE shop.parent (id bigint PRIMARY KEY, a integer, b integer, UNIQUE (a, b));
INSERT INTO shop.parent SELECT n, n, -n FROM generate_series(1, 10) AS n;
CREATE TABLE shop.item (
    id         bigint  NOT NULL,
    parent_id  bigint  REFERENCES shop.parent,
    a          integer,
    b          integer,
    price      numeric DEFAULT 1.5,
    name       text    NOT NULL,
    CONSTRAINT item_price_check CHECK (price >= 0),
    CONSTRAINT item_name_key UNIQUE (name) DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO shop.item
SELECT n, n % 10 + 1, n % 10 + 1, -(n % 10 + 1), n, 'item ' || n
  FROM generate_series(1, {ROWS}) AS n;
CREATE INDEX item_lower ON shop.item (lower(name) DESC) INCLUDE (price) WHERE price > 10;
ALTER TABLE shop.item ADD CONSTRAINT item_small CHECK (price < 10) NOT VALID;
CREATE FUNCTION my_clock() RETURNS text LANGUAGE sql AS 'SELECT clock_timestamp()::text';
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE TABLE "My Shop"."Or.der" ("Select" integer NOT NULL, "a%b" text, "user" text);
INSERT INTO "My Shop"."Or.der" SELECT n, 'x' || n, ':y' FROM generate_series(1, {ROWS}) AS n
"""

# All that a step can change, in words that do not depend on the order in which it was made.
SHAPE = """
SELECT concat_ws(' ', attrelid::regclass, attname, format_type(atttypid, atttypmod),
                 CASE WHEN attnotnull THEN 'NOT NULL' END, pg_get_expr(adbin, adrelid), attidentity,
                 col_description(attrelid, attnum))
  FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
  LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
 WHERE attnum > 0 AND NOT attisdropped AND relkind IN ('r', 'p')
   AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')
UNION ALL
SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid))
  FROM pg_constraint WHERE contype <> 'n' AND connamespace <> 'information_schema'::regnamespace
UNION ALL
SELECT concat_ws(' ', pg_get_indexdef(indexrelid), CASE WHEN NOT indisvalid THEN 'INVALID' END)
  FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
 WHERE relnamespace::regnamespace::text NOT IN ('pg_catalog', 'pg_toast')
UNION ALL
SELECT concat_ws(' ', 'TYPE', oid::regtype, enum_range)
  FROM (SELECT enumtypid AS oid, string_agg(enumlabel, ',' ORDER BY enumsortorder) AS enum_range
          FROM pg_enum GROUP BY enumtypid) AS enums
"""


# ---------------------------------------------------------------- servers and helpers


@pytest.fixture(params=["18", "15"], scope="module")
def server(request: pytest.FixtureRequest) -> Database:
    """Two versions of PostgreSQL, one after the other."""
    return request.getfixturevalue("fifteen" if request.param == "15" else "samples")


@contextmanager
def new_shop(server: Database) -> Generator[Database]:
    with scratch_database(server) as made:
        query(made, SHOP)
        yield made


@pytest.fixture
def shop(server: Database) -> Generator[Database]:
    """A database with the tables of SHOP."""
    with new_shop(server) as made:
        yield made


@pytest.fixture(scope="module")
def shared(server: Database) -> Generator[Database]:
    """As ``shop``, for tests that leave it as it was."""
    with new_shop(server) as made:
        yield made


def send(connection: Session, statement: Statement) -> None:
    if statement.outside:
        connection.execute(statement.sql.encode())
        return
    with connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '2s'")
        connection.execute(statement.sql.encode())


def run(connection: Session, statements: Sequence[Statement] | NoWayBack) -> None:
    assert not isinstance(statements, NoWayBack), statements.reason
    for statement in statements:
        send(connection, statement)


def shape(connection: Session) -> set[str]:
    return {row[0] for row in connection.execute(SHAPE)}


def look_up(connection: Session, step: StatementStep, **more: Any) -> Found:
    """What the catalog says, as whoever renders a revision looks it up."""
    text, major = definition_query(step), connection.info.server_version // 10_000
    definition = None if text is None else connection.execute(text.encode()).fetchone()
    return Found(major=major, definition=definition, **more)


def failing(connection: Session, step: StatementStep, *earlier: StatementStep) -> list[str]:
    """What the preflight of a step finds amiss."""
    return [
        condition.holds
        for condition in preflight(step, earlier)
        if connection.execute(condition.failing.encode()).fetchone()
    ]


# ---------------------------------------------------------------- whole texts

NOTE = sa.Column("note", sa.Text, server_default="100% :y\\n'q'", comment="it's 5%")

TEXTS: dict[str, tuple[StatementStep, list[str], list[str]]] = {
    "add a column": (
        add_column("Or.der", NOTE, schema="My Shop"),
        [
            'ALTER TABLE "My Shop"."Or.der" ADD COLUMN IF NOT EXISTS note TEXT'
            " DEFAULT '100% :y\\n''q'''",
            """COMMENT ON COLUMN "My Shop"."Or.der".note IS 'it''s 5%'""",
        ],
        ['ALTER TABLE IF EXISTS "My Shop"."Or.der" DROP COLUMN IF EXISTS note'],
    ),
    "not null": (
        alter_column("item", "price", nullable=False, schema="shop"),
        [
            """\
DO $datamig$
BEGIN
    IF EXISTS (SELECT FROM pg_attribute
         WHERE attrelid = 'shop.item'::regclass AND attname = 'price'
           AND NOT attisdropped AND NOT attnotnull)
       AND NOT EXISTS (SELECT FROM pg_constraint
         WHERE conrelid = 'shop.item'::regclass AND conname = 'datamig_not_null_price') THEN
        ALTER TABLE shop.item
            ADD CONSTRAINT datamig_not_null_price CHECK (price IS NOT NULL) NOT VALID;
    END IF;
END
$datamig$""",
            """\
DO $datamig$
BEGIN
    IF EXISTS (SELECT FROM pg_constraint
         WHERE conrelid = 'shop.item'::regclass AND conname = 'datamig_not_null_price'
           AND NOT convalidated) THEN
        ALTER TABLE shop.item VALIDATE CONSTRAINT datamig_not_null_price;
    END IF;
END
$datamig$""",
            "ALTER TABLE shop.item ALTER COLUMN price SET NOT NULL",
            "ALTER TABLE IF EXISTS shop.item DROP CONSTRAINT IF EXISTS datamig_not_null_price",
        ],
        ["ALTER TABLE shop.item ALTER COLUMN price DROP NOT NULL"],
    ),
    "null and a default": (
        alter_column(
            "item",
            "name",
            nullable=True,
            server_default=sa.func.now(),
            existing_server_default=None,
            schema="shop",
        ),
        [
            "ALTER TABLE shop.item ALTER COLUMN name SET DEFAULT now()",
            "ALTER TABLE shop.item ALTER COLUMN name DROP NOT NULL",
        ],
        [
            "ALTER TABLE shop.item ALTER COLUMN name DROP DEFAULT",
            *[
                statement.sql
                for statement in stages.set_not_null(TableName("shop", "item"), "name", ())
            ],
        ],
    ),
    "rename a column": (
        alter_column("Or.der", "user", new_column_name="Who", schema="My Shop"),
        [
            """\
DO $datamig$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute
         WHERE attrelid = '"My Shop"."Or.der"'::regclass AND attname = 'Who'
           AND NOT attisdropped) THEN
        ALTER TABLE "My Shop"."Or.der" RENAME COLUMN "user" TO "Who";
    END IF;
END
$datamig$"""
        ],
        [
            """\
DO $datamig$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute
         WHERE attrelid = '"My Shop"."Or.der"'::regclass AND attname = 'user'
           AND NOT attisdropped) THEN
        ALTER TABLE "My Shop"."Or.der" RENAME COLUMN "Who" TO "user";
    END IF;
END
$datamig$"""
        ],
    ),
    "create a table": (
        create_table(
            "Item%",
            sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
            sa.Column("item", sa.Text, server_default=sa.text("'{}'::text"), index=True),
            sa.Column(
                "parent_id",
                sa.BigInteger,
                sa.ForeignKey("shop.parent.id", ondelete="CASCADE"),
                nullable=False,
            ),
            sa.Column(
                "twice",
                sa.BigInteger,
                sa.Computed("parent_id * 2", persisted=True),
                comment="a\tb\n\tc",
            ),
            sa.CheckConstraint("parent_id > 0 AND item <> '%'", name="positive"),
            sa.UniqueConstraint("item", "parent_id"),
            schema="My Shop",
            comment="what was sold",
        ),
        [
            """\
CREATE TABLE IF NOT EXISTS "My Shop"."Item%" (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    item TEXT DEFAULT '{}'::text,
    parent_id BIGINT NOT NULL,
    twice BIGINT GENERATED ALWAYS AS (parent_id * 2) STORED,
    PRIMARY KEY (id),
    CONSTRAINT positive CHECK (parent_id > 0 AND item <> '%'),
    UNIQUE (item, parent_id),
    FOREIGN KEY(parent_id) REFERENCES shop.parent (id) ON DELETE CASCADE
)""",
            'CREATE INDEX IF NOT EXISTS "ix_My Shop_Item%_item" ON "My Shop"."Item%" (item)',
            """COMMENT ON TABLE "My Shop"."Item%" IS 'what was sold'""",
            """COMMENT ON COLUMN "My Shop"."Item%".twice IS 'a\tb\n\tc'""",
        ],
        ['DROP TABLE IF EXISTS "My Shop"."Item%"'],
    ),
    "rename a table": (
        rename_table("Or.der", "Order", schema="My Shop"),
        [
            """\
DO $datamig$
BEGIN
    IF to_regclass('"My Shop"."Order"') IS NULL THEN
        ALTER TABLE "My Shop"."Or.der" RENAME TO "Order";
    END IF;
END
$datamig$"""
        ],
        [
            """\
DO $datamig$
BEGIN
    IF to_regclass('"My Shop"."Or.der"') IS NULL THEN
        ALTER TABLE "My Shop"."Order" RENAME TO "Or.der";
    END IF;
END
$datamig$"""
        ],
    ),
    "create an enum": (
        create_enum('"My Shop".State', "it's on", "off"),
        [
            """\
DO $datamig$
BEGIN
    IF to_regtype('"My Shop"."State"') IS NULL THEN
        CREATE TYPE "My Shop"."State" AS ENUM ('it''s on', 'off');
    END IF;
END
$datamig$"""
        ],
        ['DROP TYPE IF EXISTS "My Shop"."State"'],
    ),
    "an index": (
        create_index(
            "Item ix",
            "item",
            ["price", sa.text("lower(name)")],
            schema="shop",
            postgresql_using="btree",
            postgresql_include=["id"],
            postgresql_where="name <> ':y 100%'",
        ),
        [
            """\
DO $datamig$
BEGIN
    LOCK TABLE shop.item IN SHARE UPDATE EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM pg_index
         WHERE indexrelid = to_regclass('shop."Item ix"')
           AND indrelid = 'shop.item'::regclass AND NOT indisvalid) THEN
        ALTER INDEX shop."Item ix" RENAME TO "datamig_invalid_a32d02cd7873d648_Item ix";
    END IF;
END
$datamig$""",
            'DROP INDEX CONCURRENTLY IF EXISTS shop."datamig_invalid_a32d02cd7873d648_Item ix"',
            'CREATE INDEX CONCURRENTLY IF NOT EXISTS "Item ix" ON shop.item USING btree'
            " (price, lower(name)) INCLUDE (id) WHERE name <> ':y 100%'",
        ],
        ['DROP INDEX CONCURRENTLY IF EXISTS shop."Item ix"'],
    ),
    "a unique constraint": (
        create_unique_constraint(
            "item_id_key", "item", ["id", "a"], schema="shop", deferrable=True, initially="deferred"
        ),
        [
            """\
DO $datamig$
BEGIN
    LOCK TABLE shop.item IN SHARE UPDATE EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM pg_index
         WHERE indexrelid = to_regclass('shop.item_id_key')
           AND indrelid = 'shop.item'::regclass AND NOT indisvalid) THEN
        ALTER INDEX shop.item_id_key RENAME TO datamig_invalid_fb05ec18261520cc_item_id_key;
    END IF;
END
$datamig$""",
            "DROP INDEX CONCURRENTLY IF EXISTS shop.datamig_invalid_fb05ec18261520cc_item_id_key",
            "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS item_id_key ON shop.item (id, a)",
            """\
DO $datamig$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint
         WHERE conrelid = 'shop.item'::regclass AND conname = 'item_id_key') THEN
        ALTER TABLE shop.item
            ADD CONSTRAINT item_id_key UNIQUE USING INDEX item_id_key DEFERRABLE INITIALLY DEFERRED;
    END IF;
END
$datamig$""",
        ],
        ["ALTER TABLE IF EXISTS shop.item DROP CONSTRAINT IF EXISTS item_id_key"],
    ),
    "a foreign key": (
        create_foreign_key(
            "item_parent",
            "item",
            "parent",
            ["a", "b"],
            ["a", "b"],
            ondelete="SET NULL",
            onupdate="CASCADE",
            match="FULL",
            deferrable=True,
            initially="DEFERRED",
            source_schema="shop",
            referent_schema="shop",
        ),
        [
            """\
DO $datamig$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint
         WHERE conrelid = 'shop.item'::regclass AND conname = 'item_parent') THEN
        ALTER TABLE shop.item
            ADD CONSTRAINT item_parent FOREIGN KEY(a, b) REFERENCES shop.parent (a, b) MATCH FULL ON DELETE SET NULL ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED NOT VALID;
    END IF;
END
$datamig$""",
            "ALTER TABLE shop.item VALIDATE CONSTRAINT item_parent",
        ],
        ["ALTER TABLE IF EXISTS shop.item DROP CONSTRAINT IF EXISTS item_parent"],
    ),
    "a check": (
        create_check_constraint(
            "item_named", "item", r"name !~ '^\s*$' AND name <> ':y 5%'", schema="shop"
        ),
        [
            """\
DO $datamig$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint
         WHERE conrelid = 'shop.item'::regclass AND conname = 'item_named') THEN
        ALTER TABLE shop.item
            ADD CONSTRAINT item_named CHECK (name !~ '^\\s*$' AND name <> ':y 5%') NOT VALID;
    END IF;
END
$datamig$""",
            "ALTER TABLE shop.item VALIDATE CONSTRAINT item_named",
        ],
        ["ALTER TABLE IF EXISTS shop.item DROP CONSTRAINT IF EXISTS item_named"],
    ),
    "a statement of one's own": (
        sql("COMMENT ON TABLE shop.item IS ':y 5%';", undo="COMMENT ON TABLE shop.item IS NULL"),
        ["COMMENT ON TABLE shop.item IS ':y 5%'"],
        ["COMMENT ON TABLE shop.item IS NULL"],
    ),
}


@pytest.mark.parametrize(("step", "up", "down"), TEXTS.values(), ids=TEXTS)
def test_step_is_written_as_one_would_type_it(
    step: StatementStep, up: list[str], down: list[str]
) -> None:
    back = downgrade_statements(step)

    assert [statement.sql for statement in upgrade_statements(step)] == up
    assert not isinstance(back, NoWayBack)
    assert [statement.sql for statement in back] == down


def test_statements_that_refuse_a_transaction_block_say_so() -> None:
    unique = upgrade_statements(create_unique_constraint("u", "item", ["id"]))

    assert [statement.outside for statement in unique] == [False, True, True, False]
    assert [s.outside for s in upgrade_statements(drop_index("i"))] == [True]
    refresh = sql("REFRESH MATERIALIZED VIEW CONCURRENTLY v", undo="")
    assert upgrade_statements(refresh) == (
        Statement(sql="REFRESH MATERIALIZED VIEW CONCURRENTLY v", outside=True, repeatable=False),
    )
    assert downgrade_statements(refresh) == ()
    assert [s.outside for s in upgrade_statements(sql("SELECT 'CONCURRENTLY'"))] == [False]


# ---------------------------------------------------------------- run, repeated, stopped, undone

STEPS: dict[str, StatementStep] = {
    **{name: step for name, (step, _, _) in TEXTS.items()},
    "null again": alter_column("item", "name", nullable=True, schema="shop"),
    "no default": alter_column("item", "price", server_default=None, schema="shop"),
    "a first default": alter_column("item", "a", server_default="7", schema="shop"),
    "a primary key": create_primary_key("item_pkey", "item", ["id"], schema="shop"),
    "a unique index": create_index(
        "Or.der ix", "Or.der", ["Select", "a%b"], schema="My Shop", unique=True
    ),
    "no index": drop_index("item_lower", "item", schema="shop"),
    "no check": drop_constraint("item_price_check", "item", "check", schema="shop"),
    "no check that was not valid": drop_constraint("item_small", "item", schema="shop"),
    "no unique constraint": drop_constraint("item_name_key", "item", schema="shop"),
    "no foreign key": drop_constraint("item_parent_id_fkey", "item", schema="shop"),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_step_may_be_repeated_and_stopped_anywhere_both_ways(
    shared: Database, step: StatementStep
) -> None:
    with session(shared) as there:
        found, before = look_up(there, step), shape(there)
        up, down = upgrade_statements(step, found), downgrade_statements(step, found)
        assert not isinstance(down, NoWayBack)
        assert failing(there, step) == []

        run(there, up)
        after = shape(there)
        run(there, up)
        assert shape(there) == after
        run(there, down)
        assert shape(there) == before
        run(there, down)
        assert shape(there) == before
        for stop in range(1, len(up)):
            run(there, up[:stop])
            run(there, up)
            assert shape(there) == after, f"stopped after statement {stop}"
            for stop_back in range(1, len(down)):
                run(there, down[:stop_back])
            run(there, down)
            assert shape(there) == before

        assert (before == after) == isinstance(step, Sql)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (
            drop_column("item", "price", schema="shop"),
            "the column price of shop.item is dropped, and its values are not kept",
        ),
        (
            drop_table("item", schema="shop"),
            "the table shop.item is dropped, and its rows are not kept",
        ),
        (sql("TRUNCATE shop.item", name="empty it"), "nothing undoes this: empty it"),
    ],
)
def test_what_cannot_be_undone_says_what_is_lost(
    shop: Database, step: StatementStep, reason: str
) -> None:
    with session(shop) as there:
        assert failing(there, step) == []
        run(there, upgrade_statements(step))
        run(there, upgrade_statements(step))

    assert downgrade_statements(step, Found()) == NoWayBack(reason=reason)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (drop_index("i", "item"), "what the index i covered is not known"),
        (drop_constraint("c", "item"), "what the constraint c of item said is not known"),
        (
            alter_column("item", "a", server_default="1"),
            "the default that a of item had is not known",
        ),
    ],
)
def test_what_only_the_catalog_knows_must_be_looked_up(step: StatementStep, reason: str) -> None:
    assert downgrade_statements(step) == NoWayBack(reason=reason)


def test_default_of_a_new_column_reaches_the_rows_byte_for_byte(shop: Database) -> None:
    with session(shop) as there:
        run(there, upgrade_statements(add_column("Or.der", NOTE, schema="My Shop")))

    assert set(query(shop, 'SELECT note FROM "My Shop"."Or.der"')) == {"100% :y\\n'q'"}


# ---------------------------------------------------------------- rows that do not fit

MISFITS: dict[str, tuple[StatementStep, str, str, list[Any]]] = {
    "null": (
        alter_column("item", "price", nullable=False, schema="shop"),
        "UPDATE shop.item SET price = NULL WHERE id IN (7, 8)",
        "price of shop.item without NULL",
        [7, 8],
    ),
    "check": (
        create_check_constraint("item_cheap", "item", "price <= 998", schema="shop"),
        "SELECT",
        "every row of shop.item meets item_cheap",
        [999, 1000],
    ),
    "orphan": (
        create_foreign_key(
            "item_fk", "item", "parent", ["a"], ["id"], source_schema="shop", referent_schema="shop"
        ),
        "UPDATE shop.item SET a = 11 WHERE id = 5; UPDATE shop.item SET a = NULL WHERE id = 6",
        "every a of shop.item is found in shop.parent",
        [5],
    ),
    "half a key": (
        create_foreign_key(
            "item_fk",
            "item",
            "parent",
            ["a", "b"],
            ["a", "b"],
            match="FULL",
            source_schema="shop",
            referent_schema="shop",
        ),
        "UPDATE shop.item SET a = NULL WHERE id = 5",
        "every a, b of shop.item is found in shop.parent",
        [5],
    ),
    "duplicate": (
        create_unique_constraint("item_id_key", "item", ["id"], schema="shop"),
        "UPDATE shop.item SET id = 3 WHERE id = 4",
        "no two rows of shop.item have the same id",
        [(3, 2)],
    ),
    "duplicate of an index": (
        create_index(
            "item_id",
            "item",
            ["id"],
            unique=True,
            schema="shop",
            postgresql_where="name <> 'item 9'",
        ),
        "UPDATE shop.item SET id = 3 WHERE id IN (4, 9)",
        "no two rows of shop.item have the same id",
        [(3, 2)],
    ),
}


@pytest.mark.parametrize(("step", "spoil", "holds", "rows"), MISFITS.values(), ids=MISFITS)
def test_rows_that_do_not_fit_are_named_and_nothing_half_made_is_left(
    shop: Database, step: StatementStep, spoil: str, holds: str, rows: list[Any]
) -> None:
    with session(shop) as there:
        before = shape(there)
        query(shop, spoil)
        for statement in upgrade_statements(step, Found(key=("id",))):
            try:
                send(there, statement)
            except psycopg.errors.IntegrityError:
                break
        else:
            pytest.fail("the rows fit")

        assert statement.validates is not None
        assert statement.on_failure is not None
        assert statement.validates.holds == holds
        assert query(shop, statement.validates.failing) == rows
        run(there, [statement.on_failure])
        assert shape(there) == before


# ---------------------------------------------------------------- invalid indexes


def leave_invalid(database: Database) -> None:
    """What a build that failed, or was killed, leaves behind."""
    query(database, "UPDATE shop.item SET id = 3 WHERE id = 4")
    with pytest.raises(psycopg.errors.UniqueViolation):
        query(database, "CREATE UNIQUE INDEX CONCURRENTLY item_id ON shop.item (id)")
    query(database, "UPDATE shop.item SET id = 4 WHERE name = 'item 4'")


ITEM_ID = create_index("item_id", "item", ["id"], unique=True, schema="shop")
BUILT = "CREATE UNIQUE INDEX item_id ON shop.item USING btree (id)"


def test_invalid_leftover_is_put_away_first(shop: Database) -> None:
    up = upgrade_statements(ITEM_ID)
    with session(shop) as there:
        before = shape(there)
        for stop in range(3):
            leave_invalid(shop)
            run(there, up[:stop])

            run(there, up)

            assert shape(there) == before | {BUILT}
            run(there, downgrade_statements(ITEM_ID))


def test_index_that_is_being_built_is_not_taken_for_a_leftover(shop: Database) -> None:
    leave_invalid(shop)  # as a build under way looks
    look = upgrade_statements(ITEM_ID)[0]
    with session(shop) as builder, session(shop) as other, builder.transaction():
        builder.execute("LOCK TABLE shop.item IN SHARE UPDATE EXCLUSIVE MODE")
        other.execute("SET lock_timeout = '100ms'")

        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute(look.sql.encode())

        assert f"{BUILT} INVALID" in shape(other)


def test_script_of_the_statements_runs_in_psql(shop: Database) -> None:
    leave_invalid(shop)
    steps = (*STEPS.values(), ITEM_ID)
    script = "".join(
        f"{s.sql};\n" for step in steps[:1] + steps[7:] for s in upgrade_statements(step)
    )
    url = shop.url.set(drivername="postgresql").render_as_string(hide_password=False)

    for _ in range(2):
        done = subprocess.run(
            [binaries() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", url],
            input=script,
            text=True,
            capture_output=True,
            check=False,
            env={"PATH": os.defpath},
        )
        assert (done.returncode, done.stdout) == (0, "")

    with session(shop) as there:
        assert BUILT in shape(there)


# ---------------------------------------------------------------- locks

STRONG = ("AccessExclusiveLock", "ExclusiveLock", "ShareRowExclusiveLock", "ShareLock")

# What this transaction holds of each table that it has read rows of: no such row, no harm.
READ_UNDER_STRONG_LOCKS = f"""
SELECT DISTINCT relation::regclass::text
  FROM pg_locks JOIN pg_class ON pg_class.oid = relation
 WHERE pid = pg_backend_pid() AND mode IN {STRONG} AND relkind = 'r'
   AND pg_stat_get_xact_tuples_returned(relation) > 0
   AND relnamespace <> 'pg_catalog'::regnamespace
"""


def read_under_strong_locks(connection: Session, statement: str) -> set[str]:
    connection.execute("SELECT pg_stat_force_next_flush()")  # else earlier reads are counted too
    with connection.transaction():
        connection.execute(statement.encode())
        return {row[0] for row in connection.execute(READ_UNDER_STRONG_LOCKS)}


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE shop.item ALTER COLUMN price SET NOT NULL",
        "ALTER TABLE shop.item ADD CHECK (price > -1)",
        "ALTER TABLE shop.item ADD UNIQUE (id)",
        "ALTER TABLE shop.item ADD COLUMN c float DEFAULT random()",
        "CREATE INDEX ON shop.item (id)",
        "ALTER TABLE shop.item ADD FOREIGN KEY (a) REFERENCES shop.parent",
    ],
)
def test_plain_forms_read_the_table_under_a_strong_lock(shop: Database, statement: str) -> None:
    with session(shop) as there:
        assert "shop.item" in read_under_strong_locks(there, statement)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_no_statement_reads_a_table_under_a_strong_lock(
    shared: Database, step: StatementStep
) -> None:
    with session(shared) as there:
        found = look_up(there, step)
        back = downgrade_statements(step, found)
        assert not isinstance(back, NoWayBack)

        for statement in (*upgrade_statements(step, found), *back):
            if statement.outside:
                send(there, statement)
            else:
                assert read_under_strong_locks(there, statement.sql) == set(), statement.sql


# Sleeps in the session of the migration only, and takes 50 ms for each of a few rows there.
SLOW = """
CREATE FUNCTION slow(id bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('application_name') = 'migration' THEN PERFORM pg_sleep(0.05); END IF;
    RETURN id;
END $$;
DELETE FROM shop.item WHERE id > 20
"""


@pytest.mark.parametrize(
    "step",
    [
        create_check_constraint("slow_check", "item", "public.slow(id) > 0", schema="shop"),
        create_index("slow_index", "item", [sa.text("public.slow(id)")], schema="shop"),
    ],
    ids=["check", "index"],
)
def test_others_read_and_write_while_a_step_is_carried_out(
    shop: Database, step: StatementStep
) -> None:
    query(shop, SLOW)
    statements, failed, rounds = upgrade_statements(step), list[Exception](), 0

    def carry_out() -> None:
        try:
            with session(shop) as connection:
                connection.execute("SET application_name = 'migration'")
                run(connection, statements)
        except psycopg.Error as error:
            failed.append(error)

    migration = threading.Thread(target=carry_out)
    with session(shop) as other:
        other.execute("SET lock_timeout = '100ms'")
        migration.start()
        while migration.is_alive():
            other.execute("SELECT max(a) FROM shop.item")
            other.execute("UPDATE shop.item SET a = a WHERE id = 1")
            other.execute("INSERT INTO shop.item VALUES (50, 1, 1, -1, 1, 'new')")
            other.execute("DELETE FROM shop.item WHERE id = 50")
            rounds += 1
        migration.join()

        assert failed == []
        assert failing(other, step) != []  # it is there now
        assert rounds > 5


def test_not_null_is_believed_without_a_look_at_the_rows(shop: Database) -> None:
    said: list[str] = []
    with session(shop) as connection:
        connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
        connection.execute("SET client_min_messages = debug1")
        run(
            connection,
            upgrade_statements(alter_column("item", "price", nullable=False, schema="shop")),
        )

    assert [text for text in said if "prove" in text] == [
        'existing constraints on column "item.price" are sufficient to prove that it does not'
        " contain nulls"
    ]


# ---------------------------------------------------------------- what was there before


@pytest.mark.parametrize(
    ("step", "amiss"),
    [
        (
            add_column("item", sa.Column("a", sa.Text), schema="shop"),
            "no column a of shop.item yet",
        ),
        (drop_column("item", "z", schema="shop"), "shop.item has a column z"),
        (
            alter_column("item", "name", nullable=False, schema="shop"),
            "name of shop.item may be NULL so far",
        ),
        (
            alter_column("item", "a", nullable=True, schema="shop"),
            "a of shop.item is NOT NULL so far",
        ),
        (
            alter_column("item", "a", new_column_name="b", schema="shop"),
            "no column b of shop.item yet",
        ),
        (
            alter_column("item", "z", new_column_name="y", schema="shop"),
            "shop.item has a column z",
        ),
        (
            create_table("item", sa.Column("id", sa.Integer), schema="shop"),
            "nothing named shop.item yet",
        ),
        (
            create_table(
                "new", sa.Column("id", sa.Integer), sa.Index("item_lower", "id"), schema="shop"
            ),
            "nothing named shop.item_lower yet",
        ),
        (drop_table("z", schema="shop"), "shop.z is there"),
        (rename_table("item", "parent", schema="shop"), "nothing named shop.parent yet"),
        (rename_table("z", "y", schema="shop"), "shop.z is there"),
        (
            create_index("item_lower", "parent", ["a"], schema="shop"),
            "no index or table named item_lower yet",
        ),
        (drop_index("z", schema="shop"), "shop.z is there"),
        (
            create_unique_constraint("item_small", "item", ["id"], schema="shop"),
            "no constraint item_small of shop.item yet",
        ),
        (
            create_unique_constraint("item_lower", "item", ["id"], schema="shop"),
            "no index or table named item_lower yet",
        ),
        (
            create_primary_key("pk", "item", ["a", "name"], schema="shop"),
            "a, name of shop.item NOT NULL already",
        ),
        (
            create_primary_key("pk", "parent", ["id"], schema="shop"),
            "no primary key of shop.parent yet",
        ),
        (
            create_check_constraint("item_small", "item", "TRUE", schema="shop"),
            "no constraint item_small of shop.item yet",
        ),
        (
            create_foreign_key("item_small", "item", "parent", ["a"], ["id"], source_schema="shop"),
            "no constraint item_small of shop.item yet",
        ),
        (drop_constraint("z", "item", schema="shop"), "shop.item has a constraint z"),
        (create_enum("shop.item", "on"), "no type shop.item yet"),
        (
            add_column(
                "item", sa.Column("t", sa.Text, server_default=sa.text("my_clock()")), schema="shop"
            ),
            "the default of t of shop.item is the same for all rows",
        ),
        (
            add_column(
                "item",
                sa.Column("t", sa.dialects.postgresql.DOMAIN("positive", sa.Integer)),
                schema="shop",
            ),
            "the domain of t of shop.item has no constraint of its own",
        ),
    ],
)
def test_step_that_would_take_over_or_miss_something_is_refused_before_it_begins(
    shared: Database, step: StatementStep, amiss: str
) -> None:
    with session(shared) as there:
        assert failing(there, step) == [amiss]


def test_what_earlier_steps_make_or_take_away_is_not_asked_for(shared: Database) -> None:
    new = create_table("new", sa.Column("id", sa.Integer), schema="shop")
    gone = drop_constraint("item_small", "item", schema="shop")
    column = add_column("item", sa.Column("z", sa.Text), schema="shop")
    not_null = alter_column("item", "a", nullable=False, schema="shop")

    with session(shared) as there:
        again = create_check_constraint("item_small", "item", "price < 20", schema="shop")
        assert failing(there, again, gone) == []
        assert failing(there, drop_constraint("c", "new", schema="shop"), new) == []
        filled = alter_column("item", "z", nullable=False, schema="shop")
        assert failing(there, filled, column) == []
        assert failing(there, drop_column("item", "z", schema="shop"), column) == []
        key = create_primary_key("pk", "item", ["id", "a"], schema="shop")
        assert failing(there, key, not_null) == []


def test_step_on_a_column_or_table_of_the_migration_goes_with_it() -> None:
    table = create_table("new", sa.Column("id", sa.Integer))
    column = add_column("old", sa.Column("z", sa.Text))
    steps = (
        table,
        create_index("i", "new", ["id"]),
        rename_table("new", "newer"),
        column,
        alter_column("old", "z", nullable=False),
        alter_column("old", "a", nullable=False),
        drop_column("old", "z"),
        create_check_constraint("c", "old", "z > ''"),
        sql("SELECT 1"),
        rename_table("x", "y"),
        create_index("j", "y", ["a"]),
        alter_column("old", "b", new_column_name="c"),
        alter_column("old", "c", nullable=False),
    )

    found = [goes_with_another(step, steps) for step in steps]

    assert [steps[number] for number, goes in enumerate(found) if goes] == [
        steps[1],
        steps[4],
        steps[6],
    ]


# ---------------------------------------------------------------- partitions

PARTITIONED = """
CREATE TABLE shop.sale (id bigint, parent_id bigint, day date) PARTITION BY RANGE (day);
CREATE TABLE shop.sale_1 PARTITION OF shop.sale FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE shop.sale_2 PARTITION OF shop.sale FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
INSERT INTO shop.sale SELECT n, n % 10 + 1, date '2020-01-01' + n::int
  FROM generate_series(0, 500) AS n
"""


@pytest.mark.parametrize(
    "step",
    [
        alter_column("sale", "id", nullable=False, schema="shop"),
        create_check_constraint("sale_check", "sale", "id >= 0", schema="shop"),
        add_column("sale", sa.Column("note", sa.Text), schema="shop"),
    ],
    ids=["not null", "check", "column"],
)
def test_partitioned_table_is_changed_in_the_same_stages(
    shop: Database, step: StatementStep
) -> None:
    query(shop, PARTITIONED)
    with session(shop) as there:
        before, found = shape(there), look_up(there, step, partitioned=True)

        for _ in range(2):
            for statement in upgrade_statements(step, found):
                assert read_under_strong_locks(there, statement.sql) == set()
            assert shape(there) != before
            run(there, downgrade_statements(step, found))
            assert shape(there) == before


@pytest.mark.parametrize(
    "step",
    [
        create_index("ix", "sale", ["id"], schema="shop"),
        create_unique_constraint("ix", "sale", ["id", "day"], schema="shop"),
        create_primary_key("ix", "sale", ["id", "day"], schema="shop"),
        drop_index("ix", "sale", schema="shop"),
    ],
    ids=["index", "unique", "primary key", "drop"],
)
def test_index_of_a_partitioned_table_is_refused_with_the_way_round(step: StatementStep) -> None:
    with pytest.raises(MigrationError) as caught:
        upgrade_statements(step, Found(partitioned=True))

    what = "the index of ix" if isinstance(step, ops.AddConstraintOp) else "the index ix"
    assert str(caught.value) == (
        f"PostgreSQL neither builds nor drops {what} CONCURRENTLY, for 'shop.sale' has partitions;"
        " make it with sql(): CREATE INDEX … ON ONLY the table, CREATE INDEX CONCURRENTLY on each"
        " partition, ALTER INDEX … ATTACH PARTITION; or drop it with sql()"
    )


def test_foreign_key_of_a_partitioned_table_needs_postgresql_18(shop: Database) -> None:
    query(shop, PARTITIONED)
    step = create_foreign_key(
        "fk", "sale", "parent", ["parent_id"], ["id"], source_schema="shop", referent_schema="shop"
    )
    with session(shop) as there:
        found = look_up(there, step, partitioned=True)
        if found.major < 18:
            with pytest.raises(MigrationError, match="PostgreSQL 15 adds the foreign key fk only"):
                upgrade_statements(step, found)
            return

        for statement in upgrade_statements(step, found):
            assert read_under_strong_locks(there, statement.sql) == set()

        made = "shop.sale fk FOREIGN KEY (parent_id) REFERENCES shop.parent(id)"
        assert made in shape(there)


# ---------------------------------------------------------------- names

# Whatever PostgreSQL takes: quotes, dots, what drivers and SQLAlchemy take for theirs, any letter.
NAMES = st.one_of(
    st.sampled_from(["select", "collation", "tablesample", "A.b", 'q"q', "x$datamig$", "ünï"]),
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
    ),
    st.text("aB.%:\\\"'${}() \t\n", min_size=1, max_size=8),
    st.text("aü", min_size=33, max_size=63).filter(lambda name: len(name.encode()) <= 63),
)
SEVERAL = st.lists(NAMES, min_size=9, max_size=9, unique=True)


@settings(
    max_examples=12,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(names=SEVERAL)
def test_any_names_do(shop: Database, names: list[str]) -> None:
    names = [
        name.replace("$datamig$", "$datamig") if number == 5 else name
        for number, name in enumerate(names)
    ]
    schema, table, parent, column, key, new, index, unique, check = names
    prefix = f"t{next(_numbers)}"
    schema = (prefix + schema)[:20]
    steps: list[StatementStep] = [
        create_table(parent, sa.Column(key, sa.Integer, primary_key=True), schema=schema),
        create_table(
            table,
            sa.Column(column, sa.Integer, server_default=sa.text("1"), comment=new),
            schema=schema,
        ),
        add_column(table, sa.Column(new, sa.Text, server_default=new, comment=new), schema=schema),
        alter_column(table, column, nullable=False, schema=schema),
        create_index(index, table, [column, new], schema=schema, postgresql_include=[column]),
        create_unique_constraint(unique, table, [column, new], schema=schema),
        create_check_constraint(check, table, f"{quote(new)} <> {literal(':y 5%')}", schema=schema),
        create_foreign_key(
            new, table, parent, [column], [key], source_schema=schema, referent_schema=schema
        ),
        create_enum(f"{quote(schema)}.{quote(key)}", new),
        alter_column(table, new, new_column_name=key, schema=schema),
        rename_table(table, column, schema=schema),
    ]
    with session(shop) as there:
        there.execute(f"CREATE SCHEMA {quote(schema)}".encode())
        before = shape(there)
        amiss = [failing(there, step, *steps[:number]) for number, step in enumerate(steps)]
        assert amiss == [[]] * len(steps)

        for step in steps:
            run(there, upgrade_statements(step))
            run(there, upgrade_statements(step))
        for step in reversed(steps):
            run(there, downgrade_statements(step))
            run(there, downgrade_statements(step))

        assert shape(there) == before


@given(st.lists(NAMES, min_size=2, max_size=8, unique=True))
def test_derived_names_fit_and_never_collide(columns: list[str]) -> None:
    longer = [*columns, *(("x" * 60 + column)[:60] + end for column in columns for end in "yz")]
    longer = [name for name in dict.fromkeys(longer) if len(name.encode()) <= 63]

    for derive in (stages.not_null_name, stages.leftover_name):
        derived = {derive(name) for name in longer}
        assert len(derived) == len(longer)
        assert all(len(name.encode()) <= 63 for name in derived)


def test_step_table_is_the_table_whose_rows_are_read() -> None:
    assert [step_table(step) for step in (ITEM_ID, drop_index("i", schema="s"))] == [
        TableName("shop", "item"),
        TableName("s", ""),
    ]

"""Validation counts the failing rows exactly, names the first, and reads each table once."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import sqlalchemy as sa

from datamig_nb.checks import (
    allowed_values,
    check,
    matches,
    no_nulls,
    no_orphans,
    rows_check,
    unique,
)
from datamig_nb.database import Database
from datamig_nb.errors import MigrationError, QueryError
from datamig_nb.migration import Migration, Step
from datamig_nb.operations import add_column
from datamig_nb.patterns import map_values, split_column
from datamig_nb.steps import backfill
from datamig_nb.validate import KEYS_SHOWN, CheckResult, ValidationReport, validate
from tests.scratch import query

# The function validate() hides its module in the package.
MODULE = import_module("datamig_nb.validate")


@pytest.fixture
def shop(database: Database) -> Database:
    """Customers with a new column that is filled as it should be."""
    query(
        database,
        """
        CREATE TABLE customer (id int PRIMARY KEY, name text, short text, kind text);
        INSERT INTO customer
        SELECT n, 'Name ' || n, left('Name ' || n, 6), (ARRAY['a', 'b'])[1 + n % 2]
          FROM generate_series(1, 200) n;
        CREATE TABLE bill (shop int, number int, customer_id int, PRIMARY KEY (shop, number));
        INSERT INTO bill SELECT n % 3, n, n FROM generate_series(1, 100) n
        """,
    )
    return database


def of(database: Database, *steps: Step) -> ValidationReport:
    """The report of a migration that has these checks."""
    return validate(database, Migration("try", *steps))


CHECKS = (
    no_nulls("customer", "short"),
    allowed_values("customer", "kind", ("a", "b")),
    matches("customer", "short", "substr(name, 1, 6)"),
)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement of a validation that reads rows."""
    sent: list[str] = []
    real: Callable[..., Any] = MODULE.run

    def recording(connection: sa.Connection, statement: str) -> Any:
        sent.append(statement)
        return real(connection, statement)

    monkeypatch.setattr(MODULE, "run", recording)
    return sent


# ---------------------------------------------------------------- what is found


def test_right_data_passes(shop: Database) -> None:
    report = of(shop, *CHECKS, no_orphans("bill", "customer_id", "customer", "id"))

    names = (
        "short of customer without NULL",
        "kind of customer holds only 'a', 'b'",
        "short of customer is what its source says",
        "customer_id of bill found in customer",
    )
    assert report == ValidationReport(
        migration="try",
        results=tuple(
            CheckResult(name=name, failing_rows=0, key_columns=(), keys=()) for name in names
        ),
    )
    assert report.passed
    assert report.summary == "4 checks passed, 0 failed"


def test_failing_rows_are_counted_and_the_first_named_in_key_order(shop: Database) -> None:
    query(
        shop,
        "UPDATE customer SET short = NULL WHERE id % 8 = 1;"  # 25 rows
        "UPDATE customer SET kind = 'A' WHERE id IN (100, 20, 3)",
    )

    report = of(shop, *CHECKS)

    first = tuple((id,) for id in range(1, 200, 8))[:KEYS_SHOWN]
    assert [(r.failing_rows, r.key_columns, r.keys, r.passed) for r in report.results] == [
        (25, ("id",), first, False),
        (3, ("id",), ((3,), (20,), (100,)), False),
        (25, ("id",), first, False),
    ]
    assert not report.passed


def test_rows_are_named_by_all_columns_of_their_key(shop: Database) -> None:
    query(shop, "DELETE FROM customer WHERE id IN (5, 7, 99)")

    (result,) = of(shop, no_orphans("bill", "customer_id", "customer", "id")).results

    assert result == CheckResult(
        name="customer_id of bill found in customer",
        failing_rows=3,
        key_columns=("shop", "number"),
        keys=((0, 99), (1, 7), (2, 5)),
    )


def test_rows_without_a_key_are_named_by_their_place(shop: Database) -> None:
    query(shop, "CREATE TABLE log (line text); INSERT INTO log VALUES ('a'), (NULL), ('c'), (NULL)")

    (result,) = of(shop, no_nulls("log", "line")).results

    assert (result.key_columns, result.keys) == (("ctid",), (("(0,2)",), ("(0,4)",)))


@pytest.mark.parametrize("rows", [1, KEYS_SHOWN - 1, KEYS_SHOWN, KEYS_SHOWN + 1, 150])
def test_query_check_counts_every_row_of_its_query(shop: Database, rows: int) -> None:
    failing = f"SELECT id, nullif(id, 1) AS other FROM customer WHERE id <= {rows} ORDER BY id;"

    (result,) = of(shop, check("nobody is there", failing)).results

    keys = ((1, None), *((id, id) for id in range(2, rows + 1)))
    assert result == CheckResult(
        name="nobody is there",
        failing_rows=rows,
        key_columns=("id", "other"),
        keys=keys[:KEYS_SHOWN],
    )


def test_values_that_are_not_unique_are_named_with_their_number(shop: Database) -> None:
    query(shop, "UPDATE customer SET short = NULL WHERE id > 150; UPDATE customer SET kind = id")
    query(shop, "UPDATE customer SET kind = 'twice' WHERE id IN (7, 9)")

    report = of(shop, unique("customer", "kind"), unique("customer", "id", "short"))

    assert [(r.name, r.failing_rows, r.keys) for r in report.results] == [
        ("kind of customer unique", 1, (("twice", 2),)),
        ("id and short of customer unique", 0, ()),
    ]


def test_percent_signs_and_colons_in_a_check_are_themselves(shop: Database) -> None:
    query(shop, "UPDATE customer SET name = '100% :x' WHERE id = 4")

    report = of(
        shop,
        rows_check("no percent", "customer", "name LIKE '%\\% :x'"),
        check("none", "SELECT id FROM customer WHERE name LIKE '%(a)s% :x'"),
    )

    assert [result.keys for result in report.results] == [((4,),), ()]


def test_patterns_that_ran_are_right_and_those_that_ran_wrong_are_found(shop: Database) -> None:
    letters = map_values("customer", "kind", {"a": "one", "b": "two"}, into="word")
    names = split_column("customer", "name")
    query(
        shop,
        "ALTER TABLE customer ADD word text, ADD first_name text, ADD last_name text;"
        "UPDATE customer SET word = CASE kind WHEN 'a' THEN 'one' ELSE 'two' END,"
        " first_name = 'Name', last_name = id",
    )
    assert validate(shop, letters).passed
    assert validate(shop, names).passed

    query(
        shop,
        "UPDATE customer SET word = 'one' WHERE id = 1;"
        "UPDATE customer SET word = 'x' WHERE id = 2;"
        "UPDATE customer SET last_name = 'O' WHERE id = 3",
    )

    found = [validate(shop, migration).results for migration in (letters, names)]
    assert [[(r.failing_rows, r.keys) for r in results] for results in found] == [
        [(2, ((1,), (2,))), (1, ((2,),))],
        [(1, ((3,),)), (0, ())],
    ]


# ---------------------------------------------------------------- how it is asked


def test_checks_over_one_table_are_answered_in_one_pass(
    shop: Database, statements: list[str]
) -> None:
    of(shop, *CHECKS, no_nulls("bill", "shop"), rows_check("id is positive", "customer", "id < 1"))

    tables = [statement.rpartition("FROM ")[2] for statement in statements]
    assert tables == ["customer", "bill"]
    assert statements[0].count("FILTER") == 4


def test_keys_are_looked_up_for_failing_checks_only(shop: Database, statements: list[str]) -> None:
    query(shop, "UPDATE customer SET kind = 'A' WHERE id = 3")

    of(shop, *CHECKS)

    assert len(statements) == 2
    assert statements[1].count("kind") == 1


def test_nothing_can_be_written(shop: Database) -> None:
    query(
        shop,
        "CREATE FUNCTION spend(int) RETURNS boolean LANGUAGE sql VOLATILE AS"
        " 'INSERT INTO bill VALUES (9, $1) RETURNING true'",
    )

    with pytest.raises(QueryError) as raised:
        of(shop, rows_check("x", "customer", "spend(id)"))

    assert raised.value.sqlstate == "25006"
    assert query(shop, "SELECT count(*) FROM bill") == [100]


def test_all_checks_see_the_same_rows(shop: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = MODULE.run

    def deleting(connection: sa.Connection, statement: str) -> Any:
        result = real(connection, statement)
        query(shop, "DELETE FROM customer WHERE id <= 10")  # another session, between the queries
        return result

    monkeypatch.setattr(MODULE, "run", deleting)

    first, second = of(
        shop,
        check("a", "SELECT id FROM customer WHERE id <= 5"),
        check("b", "SELECT id FROM customer WHERE id <= 10"),
    ).results

    assert (first.failing_rows, second.failing_rows) == (5, 10)


# ---------------------------------------------------------------- errors


def test_migration_without_checks_is_refused(shop: Database) -> None:
    fill = backfill("customer", {"short": "name"})

    before = rows_check("x", "customer", "FALSE", before=True)
    for steps, which in (((fill,), ""), ((fill, before), " that can be asked behind it")):
        with pytest.raises(MigrationError) as raised:
            of(shop, *steps)
        told = f"migration 'try' has no checks{which}; add some, such as no_nulls()"
        assert str(raised.value) == told


def test_columns_that_are_not_there_yet_tell_to_run_alembic(shop: Database) -> None:
    migration = split_column("customer", "name")

    with pytest.raises(MigrationError) as raised:
        validate(shop, migration)

    assert str(raised.value) == (
        "table 'customer' has no column 'first_name': the migration did not run here;"
        " run 'alembic upgrade head' on this database first"
    )


def test_column_that_is_not_there_is_found_though_no_check_reads_its_table(shop: Database) -> None:
    added = add_column("bill", sa.Column("paid", sa.Boolean()))

    with pytest.raises(MigrationError, match="run 'alembic upgrade head'"):
        of(shop, added, no_nulls("customer", "name"))


def test_check_that_does_not_work_gives_one_sentence(shop: Database) -> None:
    with pytest.raises(QueryError) as raised:
        of(shop, rows_check("x", "customer", "nonsense > 3"))

    assert str(raised.value) == (
        'validating failed: column "nonsense" does not exist (SQLSTATE 42703);'
        " correct the SQL or the name and run it again"
    )


def test_validation_that_takes_too_long_says_how_to_give_it_longer(shop: Database) -> None:
    with pytest.raises(QueryError, match="give it longer with timeout_seconds="):
        validate(
            shop,
            Migration("slow", check("x", "SELECT id FROM customer WHERE pg_sleep(1) IS NULL")),
            timeout_seconds=0.1,
        )


# ---------------------------------------------------------------- how it shows itself


def test_report_tells_in_words_what_failed(shop: Database) -> None:
    query(shop, "UPDATE customer SET short = NULL WHERE id IN (3, 4)")

    report = of(shop, *CHECKS[:2])

    assert repr(report) == (
        "ValidationReport of 'try': 1 check passed, 1 failed\n"
        "  FAILED  short of customer without NULL\n"
        "          2 rows, the first: (3,), (4,)\n"
        "  passed  kind of customer holds only 'a', 'b'"
    )


def test_frame_has_a_row_for_each_check(shop: Database) -> None:
    query(shop, "UPDATE customer SET short = NULL WHERE id IN (3, 4)")

    frame = of(shop, *CHECKS[:2]).frame

    assert frame.to_dict("list") == {
        "check": ["short of customer without NULL", "kind of customer holds only 'a', 'b'"],
        "passed": [False, True],
        "failing_rows": [2, 0],
        "keys": [[(3,), (4,)], []],
    }

"""Rows that stop a run, or are set aside: found, repaired, counted, also where it is killed."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.render import Revision, render
from tests.alembic_project import AlembicProject
from tests.faults.kills import die_before_each_statement
from tests.items import SMALL, found_sizes, sized, sizes
from tests.runs import held, ok, scanned, small_batches, version, wait_until
from tests.scratch import query

ROWS, BATCH = 960, 64
PLANTED = (1, 2, 63, 64, 65, 500, 959, 960)
MAKE_READINGS = f"""
CREATE TABLE reading (id integer PRIMARY KEY, raw text);
INSERT INTO reading SELECT n, n * 2 FROM generate_series(1, {ROWS}) AS n;
UPDATE reading SET raw = 'unreadable' WHERE id IN {PLANTED};
ANALYZE reading
"""
# Each attempt at a batch, whether it fails or not: a sequence does not forget.
COUNT_ATTEMPTS = """
CREATE SEQUENCE attempts;
CREATE FUNCTION attempted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM nextval('attempts'); RETURN NULL; END $$;
CREATE TRIGGER attempted BEFORE UPDATE ON reading EXECUTE FUNCTION attempted()
"""


def readings(database: Database, *more: dm.Step, **options: Any) -> Revision:
    """A revision that reads numbers from text."""
    column = dm.add_column("reading", sa.Column("value", sa.Integer()))
    fill = dm.backfill("reading", {"value": "raw::integer"}, **options)
    return render(database, dm.Migration("read the readings", column, fill, *more))


def set_aside(database: Database) -> list[Any]:
    """Key, SQLSTATE and message of the rows that were set aside."""
    return query(database, "SELECT key, sqlstate, message FROM datamig.quarantine ORDER BY key")


UNREADABLE = sorted(
    (f"({key})", "22P02", 'invalid input syntax for type integer: "unreadable"') for key in PLANTED
)


def test_rows_set_aside_are_exactly_those_that_cannot_be_done_found_by_halves(
    database: Database, project: AlembicProject
) -> None:
    query(database, f"{MAKE_READINGS}; {COUNT_ATTEMPTS}")
    revision = readings(database, on_error="quarantine", quarantine_limit=len(PLANTED))
    project.add(revision, small_batches(BATCH))

    ok(project.alembic(database, "upgrade", "head"))

    assert set_aside(database) == UNREADABLE
    values = dict(query(database, "SELECT id, value FROM reading"))
    assert values == {n: None if n in PLANTED else n * 2 for n in range(1, ROWS + 1)}
    (attempts,) = query(database, "SELECT last_value FROM attempts")
    (batches,) = query(database, "SELECT batches FROM datamig.run WHERE part > 0")
    failed = attempts - (batches - len(PLANTED))
    assert failed <= len(PLANTED) * (math.ceil(math.log2(BATCH)) + 1)
    assert version(database) == [revision.id]


def test_killed_while_it_looks_for_rows_to_set_aside_it_sets_each_aside_once(
    database: Database, project: AlembicProject, chance: random.Random, killed: Counter[str]
) -> None:
    query(database, MAKE_READINGS)
    revision = readings(database, on_error="quarantine", quarantine_limit=len(PLANTED))
    project.add(revision, small_batches(BATCH))

    moments = [number + chance.randrange(3) for number in range(5, 300, 3)]
    words = ("upgrade", "head")
    killed["moments"] = die_before_each_statement(database, project, *words, moments=moments)

    assert set_aside(database) == UNREADABLE
    values = dict(query(database, "SELECT id, value FROM reading"))
    assert values == {n: None if n in PLANTED else n * 2 for n in range(1, ROWS + 1)}
    assert query(database, "SELECT scanned FROM datamig.run WHERE part > 0") == [ROWS]


def test_the_first_row_that_cannot_be_done_stops_each_run_until_all_are_repaired(
    database: Database, project: AlembicProject
) -> None:
    query(database, MAKE_READINGS)
    revision = readings(database)
    project.add(revision, small_batches(BATCH))

    stopped: list[str] = []
    while (outcome := project.alembic(database, "upgrade", "head")).code != 0:
        stopped.append(outcome.sentence)
        key = stopped[-1].split("row (")[1].split(")")[0]
        query(database, f"UPDATE reading SET raw = id * 2 WHERE id = {key}")
        assert len(stopped) <= len(PLANTED)

    assert stopped == [
        f"{revision.id} failed at 'fill value': row ({key}) of reading cannot be done: invalid"
        ' input syntax for type integer: "unreadable"; run Alembic again, it goes on here'
        for key in PLANTED
    ]
    assert query(database, "SELECT count(*) FROM reading WHERE value = id * 2") == [ROWS]
    assert query(database, "SELECT to_regclass('datamig.quarantine') IS NULL") == [True]
    assert query(database, "SELECT scanned, changed FROM datamig.run WHERE part > 0") == [
        (ROWS, ROWS)
    ]


def test_a_failed_check_is_passed_after_the_repair_wherever_it_is_killed(
    database: Database, project: AlembicProject, killed: Counter[str]
) -> None:
    repaired = f"{MAKE_READINGS}; UPDATE reading SET raw = id * 2"
    query(database, f"{repaired}; UPDATE reading SET raw = '-7' WHERE id = 77")
    none = dm.check("no reading below zero", "SELECT id, value FROM reading WHERE value < 0")
    revision = readings(
        database, none, dm.create_check_constraint("above_zero", "reading", "value >= 0")
    )
    project.add(revision, small_batches(BATCH))
    said = (
        f"{revision.id} stopped, for it requires: no reading below zero; 1 rows fail, the first"
        " (77,-7); repair them and run Alembic again, it goes on here"
    )

    words = ("upgrade", "head")
    killed["before"] = die_before_each_statement(database, project, *words, arrives=False)
    stopped = project.alembic(database, "upgrade", "head")
    query(database, "UPDATE reading SET raw = '154' WHERE id = 77")
    killed["after"] = die_before_each_statement(database, project, *words)

    assert (stopped.code, stopped.sentence) == (1, said)
    assert query(database, "SELECT count(*) FROM reading WHERE value = id * 2") == [ROWS]
    assert version(database) == [revision.id]


def test_a_row_written_behind_the_walk_that_cannot_be_done_is_named(
    database: Database, project: AlembicProject
) -> None:
    """The look back at the end meets it first, and cannot tell which it is."""
    query(database, f"{MAKE_READINGS}; UPDATE reading SET raw = id * 2")
    revision = readings(database)
    project.add(revision, {**small_batches(8), "LOCK_TIMEOUT": "100ms"})
    with project.start(database, "upgrade", "head") as running:
        wait_until(lambda: scanned(database))
        with held(database, f"SELECT FROM reading WHERE id = {ROWS} FOR UPDATE") as other:
            wait_until(lambda: scanned(database) == ROWS - 8)
            query(database, "INSERT INTO reading VALUES (0, 'unreadable')")
            other.execute("COMMIT")
        outcome = running.end()

    assert outcome.sentence == (
        f"{revision.id} failed at 'fill value': row (0) of reading cannot be done: invalid"
        ' input syntax for type integer: "unreadable"; run Alembic again, it goes on here'
    )


NO_LONG_NOTE = dm.check("no item larger than 400", "SELECT id, size, id FROM item WHERE size > 400")


@pytest.mark.parametrize(
    ("last_step", "sentence"),
    [
        (
            NO_LONG_NOTE,
            "{id} stopped, for it requires: no item larger than 400; 1 rows fail, the first"
            " (7,999,7); repair them and run Alembic again, it goes on here",
        ),
        (
            dm.create_check_constraint("not_large", "item", "size <= 400"),
            "{id} stopped, for it requires: every row of item meets not_large; 1 rows fail, the"
            " first (7); repair them and run Alembic again, it goes on here",
        ),
    ],
    ids=["check", "constraint"],
)
def test_a_failed_check_stops_and_a_repaired_row_is_done_again(
    items: Database, project: AlembicProject, last_step: dm.Step, sentence: str
) -> None:
    query(items, "INSERT INTO item VALUES (7, repeat('x', 999))")
    revision = sized(items, last_step)
    project.add(revision, SMALL)

    stopped = project.alembic(items, "upgrade", "head")

    assert (stopped.code, version(items)) == (1, [])
    assert stopped.sentence == sentence.format(id=revision.id)

    query(items, "UPDATE item SET note = 'short' WHERE id = 7")
    ok(project.alembic(items, "upgrade", "head"))

    assert version(items) == [revision.id]
    assert found_sizes(items) == {**sizes(), 7: 5}

"""Work that a second time would do again is done once, up and down, wherever it is killed."""

from __future__ import annotations

import hashlib
import random
import signal
from collections import Counter

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.render import render
from tests.alembic_project import AlembicProject
from tests.faults.kills import (
    die_before_each_statement,
    has_burnt,
    lay_fuse,
    light_fuse,
)
from tests.faults.worlds import schema_of
from tests.runs import ok, small_batches, wait_until
from tests.scratch import query, session

ROWS, BATCH = 240, 20
MAKE_PRICES = f"""
CREATE SCHEMA shop;
CREATE TABLE shop.price (
    shop integer, item text, price numeric NOT NULL, n integer, odd double precision,
    PRIMARY KEY (shop, item)
);
INSERT INTO shop.price
SELECT n % 7, 'item ' || n, n * 1.37, nullif(n % 5, 0), n / 7.0::float8
  FROM generate_series(1, {ROWS}) AS n;
ANALYZE shop.price
"""
RAISE_PRICES = dm.Migration(
    "raise the prices",
    dm.back_up("shop.price", "price", "n", "odd"),
    dm.backfill("shop.price", {"price": "price * 1.1", "odd": "odd / 3"}),
    dm.backfill("shop.price", {"n": "n + 1"}),
)
KEPT = "shop, item, price::text, n, odd::text"
RAISED = "shop, item, (price * 1.1)::text, n + 1, (odd / 3)::text"


def hash_of(database: Database, columns: str = KEPT) -> str:
    """SHA-256 of the table as COPY writes it."""
    digest = hashlib.sha256()
    copy = f"COPY (SELECT {columns} FROM shop.price ORDER BY shop, item) TO STDOUT"
    with session(database) as connection, connection.cursor().copy(copy.encode()) as data:
        for block in data:
            digest.update(block)
    return digest.hexdigest()


def test_each_row_is_changed_once_and_restored_once_though_every_batch_is_killed(
    database: Database, project: AlembicProject, killed: Counter[str]
) -> None:
    """Before each statement of the client, which sends one for each batch."""
    query(database, MAKE_PRICES)
    before, schema, raised = hash_of(database), schema_of(database), hash_of(database, RAISED)
    project.add(render(database, RAISE_PRICES), small_batches(BATCH))

    killed["up"] = die_before_each_statement(database, project, "upgrade", "head")
    up = hash_of(database)
    killed["down"] = die_before_each_statement(database, project, "downgrade", "-1")

    assert up == raised
    assert (hash_of(database), schema_of(database)) == (before, schema)
    assert query(database, "SELECT count(*) FROM datamig.conflict") == [0]


def test_each_row_is_changed_once_though_every_second_batch_ends_before_its_commit(
    database: Database, project: AlembicProject, chance: random.Random, killed: Counter[str]
) -> None:
    """The rows are written, the run row moved, and the session ends: none of it may stay."""
    query(database, MAKE_PRICES)
    raised = hash_of(database, RAISED)
    lay_fuse(database, "shop.price")
    before, schema = hash_of(database), schema_of(database)
    project.add(render(database, RAISE_PRICES), {**small_batches(BATCH), "STRETCH_SECONDS": 5})

    found: list[str] = []
    for words in (("upgrade", "head"), ("downgrade", "-1")):
        while True:
            light_fuse(database, chance.randrange(BATCH, 2 * BATCH + 4))
            outcome = project.alembic(database, *words)
            if not has_burnt(database):
                break
            killed[words[0]] += 1
        ok(outcome)
        found.append(hash_of(database))

    assert found == [raised, before]
    assert schema_of(database) == schema


def test_the_way_back_leaves_what_was_edited_since_and_lists_it_once(
    database: Database, project: AlembicProject, killed: Counter[str]
) -> None:
    query(database, MAKE_PRICES)
    before = dict(query(database, "SELECT (shop, item)::text, price::text FROM shop.price"))
    revision = render(database, RAISE_PRICES)
    project.add(revision, small_batches(BATCH))
    ok(project.alembic(database, "upgrade", "head"))
    query(
        database,
        "UPDATE shop.price SET price = 0.99 WHERE item IN ('item 3', 'item 200');"
        "DELETE FROM shop.price WHERE item = 'item 100'; INSERT INTO shop.price VALUES (1, 'a', 1)",
    )

    killed["down"] = die_before_each_statement(database, project, "downgrade", "base")

    after = dict(query(database, "SELECT (shop, item)::text, price::text FROM shop.price"))
    edited = {'(3,"item 3")': "0.99", '(4,"item 200")': "0.99", "(1,a)": "1"}
    wanted = {**before, **edited}
    del wanted['(2,"item 100")']
    assert after == wanted
    assert query(
        database,
        "SELECT key, before->>'price', found->>'price' FROM datamig.conflict ORDER BY 1",
    ) == [
        ('(2,"item 100")', "137.00", None),  # it is gone
        ('(3,"item 3")', "4.11", "0.99"),
        ('(4,"item 200")', "274.00", "0.99"),
    ]
    assert query(database, "SELECT count(*) FROM alembic_version") == [0]


def test_writers_of_other_columns_neither_lose_a_write_nor_make_a_row_be_done_twice(
    database: Database, project: AlembicProject, killed: Counter[str]
) -> None:
    """Somebody changes rows that a batch waits for; it is killed while it waits."""
    query(database, MAKE_PRICES + "; ALTER TABLE shop.price ADD COLUMN note text")
    raised = hash_of(database, RAISED)
    project.add(render(database, RAISE_PRICES), {**small_batches(BATCH), "LOCK_TIMEOUT": "100ms"})

    waits = (
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        f" AND datname = '{database.url.database}'"
    )
    for number in range(6):
        with session(database) as other:
            other.execute("BEGIN")
            change = "UPDATE shop.price SET note = %s WHERE abs(hashtext(item)) %% 6 = %s"
            other.execute(change, (f"note {number}", number))
            with project.start(database, "upgrade", "head") as running:
                wait_until(lambda: query(database, waits))
                assert not running.ended, running.log
                running.kill(signal.SIGKILL)
                running.end()
                killed["waiting"] += 1
            other.execute("COMMIT")
    ok(project.alembic(database, "upgrade", "head"))

    assert hash_of(database) == raised
    lost = "note IS DISTINCT FROM 'note ' || abs(hashtext(item)) % 6"
    assert query(database, f"SELECT count(*) FROM shop.price WHERE {lost}") == [0]

"""Each fault is tried once on a revision that is right, and finds one that is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.alembic_runs import VERSION_TABLE, runner_for
from datamig_nb.clone import cloned
from datamig_nb.database import Database
from datamig_nb.fault_scene import Scene, end_state
from datamig_nb.faults import FAULTS
from datamig_nb.faults_meanwhile import lock_timeout
from datamig_nb.meter import measuring
from datamig_nb.names import TableName
from datamig_nb.rehearsal import Rehearsal
from datamig_nb.rehearse import rehearse
from datamig_nb.render import Revision, render
from datamig_nb.snapshot import user_tables
from tests.alembic_project import with_settings
from tests.runs import small_batches
from tests.scratch import query, scratch_database

#: More than 16 MB, so that its disk can be full; batches of 500 rows, one for each question.
ROWS = 9_000
MAKE_ITEMS = f"""
CREATE TABLE item (
    id integer PRIMARY KEY, title text NOT NULL, price numeric NOT NULL, pad text NOT NULL
);
INSERT INTO item SELECT n, 'item ' || n, n * 1.37, repeat(chr(97 + n % 26), 1800)
  FROM generate_series(1, {ROWS}) AS n;
ANALYZE item
"""
SETTINGS = {**small_batches(500), "LOCK_TIMEOUT": "300ms"}

LOUD = {"loud": "upper(title)"}
RIGHT = dm.Migration(
    "loud titles, higher prices",
    # in place, and each row once
    dm.back_up("item", "price"),
    dm.backfill("item", {"price": "price * 1.1"}),
    dm.add_column("item", sa.Column("loud", sa.Text())),
    dm.keep_in_step("item", LOUD),
    dm.backfill("item", LOUD),
    dm.matches("item", "loud", "concat(upper(title))"),
    # groups that do not fit in the least work_mem
    dm.check("few share a title", "SELECT loud FROM item GROUP BY loud HAVING count(*) > 1000"),
    # numbers of new rows have gaps where a try failed, and each run has its time
    dm.create_table(
        "word",
        sa.Column("id", sa.Integer(), sa.Identity(), primary_key=True),
        sa.Column("word", sa.Text()),
        sa.Column("made_at", sa.DateTime(), server_default=sa.text("clock_timestamp()")),
    ),
    dm.insert_rows("word", "SELECT title AS word FROM item", key="word"),
)

# Its batches commit, and nothing remembers how far it came; titles are those of its beginning, and
# what pad becomes follows from that.
_WRONG = f"""
from alembic import op

revision = "f0f0f0f0f0f0"
down_revision = None


def upgrade():
    with op.get_context().autocommit_block():
        op.execute(
            "CREATE TABLE IF NOT EXISTS was AS"
            " SELECT id AS item, title AS old, left(pad, 9) AS short FROM item"
        )
        for low in range(0, {ROWS}, 100):
            op.execute(
                "UPDATE item SET title = old, price = price * 1.1, pad = upper(short) FROM was"
                f" WHERE item = id AND id > {{low}} AND id <= {{low + 100}}"
            )
"""


@pytest.fixture(scope="module")
def shop(samples: Database) -> Iterator[Database]:
    """The database that is rehearsed on."""
    with scratch_database(samples) as made:
        query(made, MAKE_ITEMS)
        yield made


@pytest.fixture(scope="module")
def right(shop: Database) -> Rehearsal:
    """The rehearsal of a revision that is right, with every fault."""
    revision = render(shop, RIGHT)
    impatient = dataclasses.replace(revision, text=with_settings(revision.text, SETTINGS))
    return rehearse(shop, impatient, faults=tuple(FAULTS))


@pytest.fixture(scope="module")
def wrong(shop: Database) -> Iterator[Scene]:
    """What a fault finds where the revision is wrong."""
    says = {"price": "price * 1.1", "pad": "upper(left(pad, 9))"}
    migration = dm.Migration("raise prices", dm.backfill("item", says))
    revision = Revision(migration=migration, text=_WRONG, id="f0f0f0f0f0f0", down_revision=None)
    with (
        cloned(shop, "wrong") as clone,
        cloned(shop, "wrong_before") as before,
        runner_for(revision, clone, lambda _: None) as runner,
    ):
        without = (TableName("public", VERSION_TABLE),)
        with measuring(clone) as meter:
            run = runner.run("upgrade", revision.id)
        assert run.passed, run.message
        yield Scene(
            runner=runner,
            copy=lambda: cloned(before, "wrong_fault"),
            tables=user_tables(before),
            touched=(),
            without=without,
            expected=end_state(clone, user_tables(before), without),
            cost=meter.measured("upgrade", run),
            progress=lambda _: None,
        )


@pytest.mark.parametrize("name", FAULTS)
def test_a_revision_that_is_right_survives(name: str, right: Rehearsal) -> None:
    assert right.passed, right.summary
    (result,) = [result for result in right.faults if result.name == name]

    assert (result.passed, result.equal) == (True, True), result
    tried = {
        "kill": "of its rows; run again, it arrived",
        "crash": "of its rows; run again, it arrived",
        "writers": "no write was lost, and every row is right",
        "lock": "the revision's lock_timeout is 0.3 s; run again, it arrived",
        "full": "could not extend file",
    }
    assert tried[name] in result.happened
    assert "nothing was tried" not in result.happened
    assert result.done.count("3 times") == 2 or name != "kill"
    assert "the data of an undisturbed downgrade" in result.happened or name != "kill"
    assert "2 times" in result.done or name != "crash"
    changing = "changing title, price and pad, inserting and deleting"
    assert changing in result.done or name != "writers"
    assert "price of " in result.happened or name != "writers"
    assert "temp_file_limit" in result.happened or name != "full"


def test_a_revision_that_is_wrong_is_found_out(wrong: Scene) -> None:
    killed = FAULTS["kill"](wrong)

    assert (killed.passed, killed.equal) == (False, False)
    assert "with other data than undisturbed: public.item.price" in killed.happened

    beside = FAULTS["writers"](wrong)

    assert (beside.passed, beside.equal) == (False, False)
    assert "title does not hold what was written" in beside.happened
    assert "pad does not hold what was written" in beside.happened
    assert "price does" not in beside.happened


def test_the_lock_timeout_is_that_of_the_text() -> None:
    assert lock_timeout('LOCK_TIMEOUT = "2s"  # how long') == 2.0
    assert lock_timeout("SET lock_timeout = '300ms'") == 0.3
    assert lock_timeout("SET lock_timeout TO 1500") == 2.0
    assert lock_timeout("SET lock_timeout = 1500") == 1.5
    assert lock_timeout("nothing is said") == 2.0

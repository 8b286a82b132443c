"""A table of items and a migration that sizes them: small, and quickly checked."""

from __future__ import annotations

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.render import Revision, render
from tests.runs import small_batches
from tests.scratch import query

#: Rows of the table ``item``, and of a batch where batches are small.
ROWS, BATCH = 3_000, 20
SMALL = small_batches(BATCH)

# With all that a driver could take for a parameter.
FILL = {"size": "length(replace(note, '%', ' :y %s %(x)s {0} '))"}

MAKE_ITEMS = f"""
CREATE TABLE item (id bigint PRIMARY KEY, note text);
INSERT INTO item SELECT n * 3 - 4000, repeat('%', n % 17) || n FROM generate_series(1, {ROWS}) AS n;
ANALYZE item
"""


def sizes() -> dict[int, int]:
    """What FILL gives for each row."""
    notes = {n * 3 - 4000: "%" * (n % 17) + str(n) for n in range(1, ROWS + 1)}
    return {key: len(note.replace("%", " :y %s %(x)s {0} ")) for key, note in notes.items()}


def found_sizes(database: Database) -> dict[int, int]:
    return dict(query(database, "SELECT id, size FROM item"))


def sized(database: Database, *more: dm.Step) -> Revision:
    """A revision that fills a new column of ``item``, without a trigger, and does more."""
    size = dm.add_column("item", sa.Column("size", sa.Integer()))
    return render(database, dm.Migration("size the items", size, dm.backfill("item", FILL), *more))

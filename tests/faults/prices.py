"""Prices that a migration raises: done twice, it would raise them twice."""

from __future__ import annotations

import hashlib

import datamig_nb as dm
from datamig_nb.database import Database
from tests.scratch import session

#: Rows of the table, and of a batch.
PRICES, BATCH = 240, 20
MAKE_PRICES = f"""
CREATE SCHEMA shop;
CREATE TABLE shop.price (
    shop integer, item text, price numeric NOT NULL, n integer, odd double precision,
    PRIMARY KEY (shop, item)
);
INSERT INTO shop.price
SELECT n % 7, 'item ' || n, n * 1.37, nullif(n % 5, 0), n / 7.0::float8
  FROM generate_series(1, {PRICES}) AS n;
ANALYZE shop.price
"""
RAISE_PRICES = dm.Migration(
    "raise the prices",
    dm.back_up("shop.price", "price", "n", "odd"),
    dm.backfill("shop.price", {"price": "price * 1.1", "odd": "odd / 3"}),
    dm.backfill("shop.price", {"n": "n + 1"}),
)
#: What must come back, and what the upgrade makes of it, exactly.
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

"""Databases before a migration, and migrations with a step of every kind."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.server_setup import binaries
from tests.runs import small_batches
from tests.scratch import query

#: A table walked by its key, one with enough pages to be woven, one to delete from, one to fill.
MAKE_SHOP = """
CREATE SCHEMA shop;
CREATE TABLE shop.item (
    id bigint PRIMARY KEY, state text, price numeric NOT NULL, visits integer NOT NULL, note text
);
INSERT INTO shop.item
SELECT n * 7 - 100, chr(97 + n % 2), n * 1.37, n % 5, repeat('%', n % 17) || n
  FROM generate_series(1, 60) AS n;
CREATE TABLE shop.page (id integer PRIMARY KEY, body text);
INSERT INTO shop.page SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 80) AS n;
CREATE TABLE shop.visit (item bigint, day date, PRIMARY KEY (item, day));
INSERT INTO shop.visit
SELECT n % 9, date '2019-12-20' + n FROM generate_series(1, 40) AS n;
CREATE TABLE shop.word (word text PRIMARY KEY, items bigint);
INSERT INTO shop.word VALUES ('here before', 0);
ANALYZE
"""

#: Batches of 15 rows; windows of 4 pages, woven where a table has 10.
SHOP_SETTINGS: Mapping[str, object] = {
    **small_batches(15),
    "WINDOW_PAGES": 4,
    "WOVEN_FROM_PAGES": 10,
}

_STATES = dm.map_values(
    "shop.item", "state", {"a": "A", "b": "B"}, into="status", type="enum", nullable=False
)


def every_kind_of_step() -> dm.Migration:
    """A migration with a step of every kind over the tables of :data:`MAKE_SHOP`."""
    return dm.Migration(
        "everything at once",
        dm.unchanged("number of items", "SELECT count(*) FROM shop.item"),
        *_STATES.steps,
        dm.create_check_constraint("known", "item", "status IS NOT NULL", schema="shop"),
        dm.add_column("page", sa.Column("letters", sa.Integer()), schema="shop"),
        dm.backfill("shop.page", {"letters": "length(replace(body, '%', ' :y %s %(x)s {0} '))"}),
        dm.back_up("shop.item", "price", "visits"),
        dm.backfill("shop.item", {"price": "price * 1.1", "visits": "visits + 1"}),
        dm.insert_rows(
            "shop.word",
            "SELECT note AS word, count(*) AS items FROM shop.item GROUP BY note",
            key="word",
        ),
        dm.delete_rows("shop.visit", "day < '2020-01-10'"),
        dm.sql(
            "CREATE INDEX IF NOT EXISTS page_letters ON shop.page (letters)",
            undo="DROP INDEX IF EXISTS shop.page_letters",
        ),
        dm.check("a page has 960 letters", "SELECT id FROM shop.page WHERE letters <> 960"),
    )


# ---------------------------------------------------------------- what a database holds


def rows_of(database: Database, schema: str = "shop") -> dict[str, list[Any]]:
    """Every row of every table of a schema, as text, in one order."""
    tables = query(
        database,
        "SELECT format('%I.%I', nspname, relname) FROM pg_class JOIN pg_namespace AS n"
        f" ON n.oid = relnamespace WHERE nspname = '{schema}' AND relkind = 'r' ORDER BY 1",
    )
    return {
        table: query(database, f"SELECT t::text FROM {table} AS t ORDER BY 1") for table in tables
    }


def schema_of(database: Database, schema: str = "shop") -> str:
    """The schema as ``pg_dump`` writes it."""
    url = database.url
    dump = subprocess.run(
        [
            *(str(binaries() / "pg_dump"), "--schema-only", f"--schema={schema}", "--no-comments"),
            *("-h", str(url.query["host"]), "-p", str(url.query.get("port", 5432))),
            *("-U", str(url.username), str(url.database)),
        ],
        env={"PATH": os.defpath, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return re.sub(r"^\\(un)?restrict .*\n", "", dump, flags=re.MULTILINE)


def picture(database: Database) -> dict[str, Any]:
    """All that a run leaves behind: schema, rows, what is kept, how each walk went, the version."""
    version = "SELECT version_num FROM alembic_version"
    walks = (
        "SELECT step, part, status, scanned, changed, batches FROM datamig.run"
        " WHERE part > 0 ORDER BY 1, 2"
    )
    is_kept = "relkind = 'r' AND relname LIKE 'kept%' AND relnamespace = to_regnamespace('datamig')"
    kept = query(database, f"SELECT relname FROM pg_class WHERE {is_kept} ORDER BY 1")
    return {
        "schema": schema_of(database),
        "rows": rows_of(database),
        "kept": {  # in which transaction differs from run to run
            t: query(
                database,
                f"SELECT (to_jsonb(k) - 'datamig_xid')::text FROM datamig.{t} AS k ORDER BY 1",
            )
            for t in kept
        },
        "walks": query(database, walks),
        "version": query(database, version),
        "functions": query(
            database,
            "SELECT proname FROM pg_proc WHERE pronamespace = to_regnamespace('datamig')",
        ),
    }

"""Steps that ask the catalog how: other types, merged duplicates, tables from queries."""

from __future__ import annotations

from typing import Any, cast

import pytest

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.errors import MigrationError
from datamig_nb.migration import Step
from tests.alembic_project import AlembicProject
from tests.cases.harness import picture
from tests.faults.kills import has_burnt, lay_fuse, light_fuse
from tests.runs import ok, small_batches
from tests.scratch import query

SHOP = """
CREATE TABLE customer (id serial PRIMARY KEY, boss_id int REFERENCES customer, name text);
CREATE TABLE "order" (
    id int GENERATED ALWAYS AS IDENTITY, customer_id int NOT NULL DEFAULT 1, note varchar(20),
    CONSTRAINT order_pk PRIMARY KEY (id), CONSTRAINT uq UNIQUE (customer_id, id),
    CONSTRAINT fk FOREIGN KEY (customer_id) REFERENCES customer ON DELETE CASCADE
        DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT positive CHECK (customer_id > 0)
);
CREATE INDEX few ON "order" (customer_id DESC NULLS LAST, note) WHERE customer_id > 5;
CREATE UNIQUE INDEX odd ON "order" ((customer_id + id), id) INCLUDE (note);
CREATE TABLE line (
    order_id int, no int, customer_id int, PRIMARY KEY (order_id, no),
    FOREIGN KEY (customer_id, order_id) REFERENCES "order" (customer_id, id) ON UPDATE CASCADE
);
COMMENT ON COLUMN "order".customer_id IS 'who''s';
COMMENT ON CONSTRAINT fk ON "order" IS 'goes along';
GRANT SELECT (customer_id) ON "order" TO pg_monitor;
INSERT INTO customer (boss_id, name)
SELECT nullif(n / 2, 0), 'c' || n FROM generate_series(1, 90) AS n;
INSERT INTO "order" (customer_id, note) SELECT n % 90 + 1, 'n' FROM generate_series(1, 300) AS n;
INSERT INTO line SELECT id, 1, customer_id FROM "order"
"""
BESIDE = """
SELECT attacl::text, col_description(attrelid, attnum),
       (SELECT obj_description(oid, 'pg_constraint') FROM pg_constraint WHERE conname = 'fk')
  FROM pg_attribute WHERE attrelid = '"order"'::regclass AND attname = 'customer_id'
"""
ITEMS = """
CREATE TABLE item (id int PRIMARY KEY, quantity text NOT NULL DEFAULT '0', day text, at timestamp);
INSERT INTO item SELECT n, CASE WHEN n % 100 = 0 THEN 'n/a' ELSE '0' || n END,
                        CASE WHEN n % 3 > 0 THEN '2024-02-' || 10 + n % 19 ELSE '' END
  FROM generate_series(1, 300) AS n
"""


def test_all_that_hangs_on_columns_goes_along_to_their_new_types_and_back(
    database: Database, project: AlembicProject
) -> None:
    query(database, SHOP)
    steps = [
        dm.change_type(table, column, "bigint")
        for table, columns in {
            "customer": ("id", "boss_id"),
            "order": ("id", "customer_id"),
            "line": ("order_id", "customer_id"),
        }.items()
        for column in columns
    ]
    before, beside = picture(database), query(database, BESIDE)
    project.add(dm.render(database, dm.Migration("wide ids", steps)))

    ok(project.alembic(database, "upgrade", "head"))

    after = picture(database)
    wide = {str(each).replace(" integer ", " bigint ") for each in cast("Any", before["schema"])}
    assert wide - {"line.no bigint NOT NULL "} <= {*cast("Any", after["schema"])}
    assert query(database, BESIDE) == beside
    assert query(database, "INSERT INTO \"order\" (note) VALUES ('new') RETURNING id") == [301]
    assert query(database, "INSERT INTO customer (name) VALUES ('new') RETURNING id") == [91]
    query(database, 'DELETE FROM "order" WHERE id = 301; DELETE FROM customer WHERE id = 91')
    ok(project.alembic(database, "downgrade", "-1"))
    assert picture(database) == before
    assert query(database, BESIDE) == beside


def test_values_that_would_be_lost_stop_the_revision_before_it_writes_unless_one_decides(
    database: Database, project: AlembicProject
) -> None:
    query(database, ITEMS)
    stopping = dm.Migration("numbers", dm.change_type("item", "quantity", "integer"))
    project.add(dm.render(database, stopping))

    found = [(hazard.what, hazard.rows) for hazard in dm.preview(database, stopping).hazards]
    stopped = project.alembic(database, "upgrade", "head")

    assert ("not so: every quantity of item has a value of type integer", 3) in found
    assert "3 rows fail, the first (100), (200), (300)" in stopped.sentence
    assert query(database, "SELECT count(*) FROM information_schema.columns"
                           " WHERE table_name = 'item'") == [4]  # fmt: skip


def test_rows_written_while_it_is_stopped_and_since_have_their_values_there_and_back(
    database: Database, project: AlembicProject
) -> None:
    query(database, ITEMS)
    migration = dm.Migration(
        "numbers",
        dm.change_type("item", "quantity", "integer", otherwise="-1", back="quantity::text"),
        dm.change_type(
            "item", "day", "date", nulls=("",), otherwise="NULL", keep=False,
            back="coalesce(day::text, '')",
        ),
    )  # fmt: skip
    project.add(dm.render(database, migration), small_batches(20))
    lay_fuse(database)
    light_fuse(database, 8)
    assert project.alembic(database, "upgrade", "head").code == 1
    assert has_burnt(database)
    query(database, "INSERT INTO item (id, day) VALUES (301, ''); UPDATE item SET quantity = '7'"
                    " WHERE id IN (2, 299)")  # fmt: skip

    ok(project.alembic(database, "upgrade", "head"))

    shown = (
        "SELECT quantity, day::text FROM item WHERE id IN (1, 2, 100, 299, 301, 302) ORDER BY id"
    )
    assert query(database, shown) == [
        (1, "2024-02-11"),
        (7, "2024-02-12"),
        (-1, "2024-02-15"),
        (7, "2024-02-24"),
        (0, None),
    ]
    query(database, "INSERT INTO item (id, quantity) VALUES (302, 8); UPDATE item SET quantity = 9"
                    " WHERE id = 1")  # fmt: skip
    ok(project.alembic(database, "downgrade", "-1"))
    assert query(database, shown)[:1] == [("9", "2024-02-11")]
    assert query(database, "SELECT quantity FROM item WHERE id IN (3, 100, 302) ORDER BY id") == [
        "03",
        "n/a",
        "8",
    ]


def test_what_the_new_type_cannot_take_along_is_refused_with_its_name(database: Database) -> None:
    query(
        database,
        f"{ITEMS}; CREATE INDEX low ON item (lower(quantity));"
        "CREATE VIEW seen AS SELECT day FROM item; CREATE TABLE part (item_id int REFERENCES item)",
    )
    refused: list[tuple[list[Step], str]] = [
        (
            [dm.change_type("item", "quantity", "integer")],
            r"^'low' of 'item' says lower\(quantity\)",
        ),
        ([dm.change_type("item", "day", "date")], "^view seen reads 'day' of 'item'"),
        ([dm.change_type("item", "at", "timestamptz")], "depend on the time zone of the session"),
        (
            [dm.change_type("item", "at", "date"), dm.backfill("item", {"day": "at::text"})],
            "^a step behind change_type\\(\\) reads or sets 'at' of 'item'",
        ),
        (
            [dm.change_type("item", "id", "text")],
            "foreign key 'part_item_id_fkey' joins id of item to",
        ),
    ]

    for steps, reason in refused:
        with pytest.raises(MigrationError, match=reason):
            dm.render(database, dm.Migration("refused", steps))


TAGS = """
CREATE TABLE tag (id serial PRIMARY KEY, name text, parent_id int REFERENCES tag);
CREATE TABLE post_tag (post int, tag_id int REFERENCES tag ON DELETE CASCADE, note text,
                       PRIMARY KEY (post, tag_id));
CREATE TABLE favourite (id serial PRIMARY KEY, person int, tag_id int REFERENCES tag,
                        UNIQUE (person, tag_id));
CREATE TABLE loose (id serial PRIMARY KEY, tag int);
INSERT INTO tag (name, parent_id)
SELECT CASE WHEN n % 7 > 0 THEN 'Tag ' || n % 30 END, nullif(n / 2, 0)
  FROM generate_series(1, 100) AS n;
INSERT INTO post_tag SELECT n % 50, n % 100 + 1, 'p' || n FROM generate_series(1, 300) AS n
    ON CONFLICT DO NOTHING;
INSERT INTO favourite (person, tag_id) SELECT n % 4, n % 100 + 1 FROM generate_series(1, 300) AS n
    ON CONFLICT DO NOTHING;
INSERT INTO loose (tag) SELECT tag_id FROM favourite;
CREATE SCHEMA fuse_before;
CREATE TABLE fuse_before.map AS
SELECT id, CASE WHEN name IS NULL THEN id ELSE min(id) OVER (PARTITION BY name) END AS stays
  FROM tag;
CREATE TABLE fuse_before.tag AS SELECT t.id, p.stays AS parent_id
  FROM tag t JOIN fuse_before.map m ON m.id = t.id AND m.stays = t.id
  LEFT JOIN fuse_before.map p ON p.id = parent_id;
CREATE TABLE fuse_before.post_tag AS SELECT DISTINCT post, stays AS tag_id
  FROM post_tag JOIN fuse_before.map ON id = tag_id;
CREATE TABLE fuse_before.favourite AS SELECT DISTINCT person, stays AS tag_id
  FROM favourite JOIN fuse_before.map m ON m.id = tag_id;
CREATE TABLE fuse_before.loose AS SELECT l.id, stays AS tag
  FROM loose l JOIN fuse_before.map m ON m.id = l.tag
"""


def test_duplicates_are_merged_through_every_kind_of_reference_and_come_back(
    database: Database, project: AlembicProject
) -> None:
    query(database, TAGS)
    before = picture(database)
    one_name = dm.create_unique_constraint("one_name", "tag", ["name"])
    stopping = dm.Migration("merge tags", dm.merge_rows("tag", "name"), one_name)
    merging = dm.merge_rows("tag", "name", repoint={"loose": "tag"}, collisions="delete")
    stops = [h.what for h in dm.preview(database, stopping).hazards if h.severity == "stops"]
    assert "not so: no two rows of favourite become the same person and tag_id" in stops
    migration = dm.Migration("merge tags", merging, one_name)
    assert dm.preview(database, migration).passed
    project.add(dm.render(database, migration))

    ok(project.alembic(database, "upgrade", "head"))

    for table in ("tag", "post_tag", "favourite", "loose"):
        columns = query(
            database,
            "SELECT string_agg(column_name, ', ') FROM information_schema.columns"
            f" WHERE (table_schema, table_name) = ('fuse_before', '{table}')",
        )[0]
        found = query(database, f"SELECT {columns} FROM {table} ORDER BY 1, 2")
        assert found == query(database, f"SELECT {columns} FROM fuse_before.{table} ORDER BY 1, 2")
    ok(project.alembic(database, "downgrade", "-1"))
    assert picture(database) == before

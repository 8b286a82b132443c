"""What is dropped and kept comes back as it was, with all that went with it."""

from __future__ import annotations

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.inlined_walk import CONFLICT
from tests.alembic_project import AlembicProject
from tests.cases.harness import picture
from tests.runs import ok, small_batches
from tests.scratch import query

MAKE = """
CREATE SCHEMA shop;
CREATE TABLE shop.place (id integer PRIMARY KEY);
CREATE TABLE shop.item (
    id integer PRIMARY KEY, name text COLLATE "C" NOT NULL DEFAULT 'none', place integer
        REFERENCES shop.place, price numeric(5,2) DEFAULT 3, kind text,
    CHECK (price > 0 OR place > 0), UNIQUE (name, id)
);
CREATE INDEX "By.Kind" ON shop.item (lower(kind)) WHERE price > 1;
CREATE TABLE shop.line (id serial PRIMARY KEY, item integer NOT NULL REFERENCES shop.item, n jsonb);
INSERT INTO shop.place VALUES (1), (2);
INSERT INTO shop.item SELECT n, 'n' || n, n % 2 + 1, NULLIF(n % 7, 0), 'k' || n % 3
  FROM generate_series(1, 300) AS n;
INSERT INTO shop.line (item, n) SELECT n, '{"a": 1}' FROM generate_series(1, 300) AS n
"""
MIGRATION = dm.Migration(
    "drop columns and a table",
    dm.fill_new_column("shop.item", sa.Column("dear", sa.Boolean()), "price > 3"),
    dm.drop_columns("shop.item", "name", "place", "price", "kind"),
    dm.drop_tables("shop.line"),
)


def test_rows_are_known_again_though_columns_were_dropped_behind_them(
    database: Database, project: AlembicProject
) -> None:
    """What ON DELETE SET NULL would do at any level is done and kept, too."""
    query(
        database,
        "CREATE TABLE owner (id int PRIMARY KEY, bio text, name text);"
        "CREATE TABLE post (id int PRIMARY KEY, owner_id int NOT NULL REFERENCES owner,"
        " reply_to int REFERENCES post ON DELETE SET NULL);"
        "CREATE TABLE pin (id int PRIMARY KEY, post_id int REFERENCES post ON DELETE SET NULL);"
        "INSERT INTO owner SELECT n, 'b' || n, 'n' || n FROM generate_series(1, 20) n;"
        "INSERT INTO post SELECT n, 1 + n % 20, nullif(n - 1, 0) FROM generate_series(1, 60) n;"
        "INSERT INTO pin SELECT n, n FROM generate_series(1, 60) n",
    )
    before = picture(database)
    key = sa.Column("id", sa.Integer(), sa.Identity(), primary_key=True)
    columns = (key, sa.Column("owner_id", sa.Integer(), unique=True), sa.Column("bio", sa.Text()))
    steps = (
        dm.delete_rows("owner", "id > 10", dependants="all"),
        dm.create_table("profile", *columns),
        dm.insert_rows("profile", "SELECT id AS owner_id, bio FROM owner", key="owner_id"),
        dm.fill_new_column(
            "owner", sa.Column("profile_id", sa.Integer()), "p.id",
            using="profile AS p", on="p.owner_id = owner.id",
        ),
        dm.drop_columns("profile", "owner_id"),
        dm.drop_columns("owner", "bio"),
    )  # fmt: skip
    project.add(dm.render(database, dm.Migration("move bio", *steps)), small_batches(7))

    ok(project.alembic(database, "upgrade", "head"))

    left = "SELECT count(*), count(reply_to) FROM post"
    assert query(database, left) == [(30, 26)]  # 1, 20, 40 and 60 are no replies (any more)
    assert query(database, "SELECT count(*), count(post_id) FROM pin") == [(60, 30)]
    ok(project.alembic(database, "downgrade", "-1"))
    assert picture(database) == before
    query(database, CONFLICT)
    assert query(database, "SELECT count(*) FROM datamig.conflict") == [0]


def test_a_natural_key_gives_way_to_a_number_and_comes_back(
    database: Database, project: AlembicProject
) -> None:
    query(
        database,
        "CREATE TABLE shop (code text PRIMARY KEY, after text);"
        "CREATE TABLE sale (code text NOT NULL, day int, PRIMARY KEY (code, day),"
        " CONSTRAINT sale_shop FOREIGN KEY (code) REFERENCES shop);"
        "INSERT INTO shop SELECT 's' || n, 's' || nullif(n - 1, 0) FROM generate_series(1, 20) n;"
        "INSERT INTO sale SELECT code, day FROM shop, generate_series(1, 3) AS day",
    )
    before = picture(database)
    numbers = "SELECT code, row_number() OVER (ORDER BY code) AS id FROM shop"
    source, number = "datamig.shop_id AS new", sa.Integer()
    key = sa.Column("id", number, nullable=False)
    steps = (
        dm.create_table_as("datamig.shop_id", numbers, key="code"),
        dm.fill_new_column("shop", key, "new.id", using=source, on="new.code = shop.code"),
        dm.fill_new_column(
            "sale", sa.Column("shop_id", number, nullable=False), "shop.id",
            using="shop", on="shop.code = sale.code",
        ),
        dm.fill_new_column(
            "shop", sa.Column("after_id", number), "s.id",
            using="shop AS s", on="s.code = shop.after",
        ),
        dm.drop_constraint("sale_shop", "sale"),
        *(dm.drop_constraint(f"{table}_pkey", table) for table in ("shop", "sale")),
        dm.create_primary_key("shop_pkey", "shop", ["id"]),
        dm.create_primary_key("sale_pkey", "sale", ["shop_id", "day"]),
        dm.create_foreign_key("sale_shop", "sale", "shop", ["shop_id"], ["id"]),
        dm.drop_columns("sale", "code"),
        dm.drop_columns("shop", "after"),
    )  # fmt: skip
    migration = dm.Migration("numbers", *steps)
    project.add(dm.render(database, migration), small_batches(7))
    assert "no hazard would stop it" in repr(dm.preview(database, migration))

    ok(project.alembic(database, "upgrade", "head"))

    joined = "FROM sale JOIN shop ON shop.id = shop_id LEFT JOIN shop AS s ON s.id = shop.after_id"
    wrong = f"SELECT count(*) {joined} WHERE shop.code <> 's1' AND s.code IS NULL"
    assert query(database, wrong) == [0]
    ok(project.alembic(database, "downgrade", "-1"))
    assert picture(database) == before


def test_deleted_rows_come_back_after_other_columns_came_and_went(
    database: Database, project: AlembicProject
) -> None:
    """The rows of a tree, too, whose parents would go before their children."""
    query(
        database,
        "CREATE TABLE node (id int PRIMARY KEY, up int REFERENCES node, kind text, body text);"
        "INSERT INTO node SELECT n, CASE WHEN n % 10 > 1 THEN n - 1 WHEN n % 10 = 0 THEN n - 9 END,"
        " 'k', 'b' || n FROM generate_series(1, 200) n; UPDATE node SET up = 200 WHERE id = 191",
    )
    before = picture(database)
    steps = (
        dm.fill_new_column("node", sa.Column("size", sa.Integer(), nullable=False), "length(body)"),
        dm.drop_columns("node", "kind"),
        dm.alter_column("node", "body", new_column_name="text"),
        dm.delete_rows("node", "id > 100"),
    )
    revision = dm.render(database, dm.Migration("change and delete", *steps))
    project.add(revision, small_batches(7))

    ok(project.alembic(database, "upgrade", "head"))

    assert query(database, "SELECT count(*), max(id) FROM node") == [(100, 100)]
    ok(project.alembic(database, "downgrade", "-1"))
    assert picture(database) == before


def test_a_preview_says_how_many_values_and_rows_go(database: Database) -> None:
    query(database, MAKE)
    lost = (dm.drop_columns("shop.item", "price", keep=False), dm.drop_tables("shop.line"))

    found = dm.preview(database, dm.Migration("drop", dm.drop_columns("shop.item", "kind"), *lost))

    assert [(hazard.what, hazard.rows, hazard.advice) for hazard in found.hazards] == [
        (
            "values go with the column kind of shop.item",
            300,
            "they are kept, and the downgrade brings them back",
        ),
        (
            "values go with the column price of shop.item",
            258,
            "they are lost for good; drop_columns() and drop_tables() keep them",
        ),
        (
            "rows go with the table shop.line",
            300,
            "they are kept, and the downgrade brings them back",
        ),
    ]


def test_a_name_that_was_split_and_dropped_comes_back(
    guide: Database, project: AlembicProject
) -> None:
    before = picture(guide)
    project.add(dm.render(guide, dm.split_column("guide.user", "full_name", drop=True)))

    ok(project.alembic(guide, "upgrade", "head"))

    assert query(guide, "SELECT count(*) > 900 FROM guide.user WHERE first_name > ''") == [True]
    query(guide, "INSERT INTO guide.user (first_name) VALUES ('Cher')")  # no trigger is left
    query(guide, "DELETE FROM guide.user WHERE first_name = 'Cher'")
    ok(project.alembic(guide, "downgrade", "-1"))
    assert picture(guide) == before


def test_what_was_dropped_comes_back_with_values_defaults_keys_and_indexes(
    database: Database, project: AlembicProject
) -> None:
    query(database, MAKE)
    before = picture(database)
    project.add(dm.render(database, MIGRATION))
    view = "CREATE VIEW shop.items AS SELECT * FROM shop.line"
    query(database, view)
    refused = project.alembic(database, "upgrade", "head")
    assert "no foreign key and no view needs shop.line; 1 rows fail" in refused.sentence
    query(database, "DROP VIEW shop.items")

    ok(project.alembic(database, "upgrade", "head"))
    assert query(
        database,
        "SELECT attname::text FROM pg_attribute WHERE attrelid = 'shop.item'::regclass"
        " AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
    ) == ["id", "dear"]
    query(database, "INSERT INTO shop.item VALUES (1000)")
    ok(project.alembic(database, "downgrade", "-1"))

    since = "DELETE FROM shop.item WHERE id = 1000 RETURNING name, place, price, kind"
    assert [tuple(map(str, row)) for row in query(database, since)] == [
        ("none", "None", "3.00", "None")
    ]
    assert picture(database) == before
    kept = "SELECT relname::text FROM pg_class WHERE relnamespace = 'datamig'::regnamespace"
    assert [name for name in query(database, kept) if name.startswith("kept")] == []

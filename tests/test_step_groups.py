"""Steps that belong together, as exported files that Alembic runs."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.errors import MigrationError
from tests.alembic_project import AlembicProject
from tests.cases.harness import picture
from tests.runs import ok
from tests.scratch import query

ENUMS = """
CREATE SCHEMA "Sales";
CREATE TYPE "Sales"."Order State" AS ENUM ('new', 'open', 'pending', 'done');
CREATE TABLE "Sales"."order" (
    id int PRIMARY KEY, state "Sales"."Order State" NOT NULL DEFAULT 'new',
    past "Sales"."Order State"[] DEFAULT '{new}');
CREATE TABLE history (
    order_id int REFERENCES "Sales"."order", at int, state "Sales"."Order State",
    PRIMARY KEY (order_id, at));
CREATE INDEX by_state ON history (state, at);
CREATE INDEX done ON "Sales"."order" (id) WHERE state = 'done';
INSERT INTO "Sales"."order"
SELECT n, (enum_range(NULL::"Sales"."Order State"))[1 + n % 4],
       (ARRAY['{}', '{pending,new,NULL}', NULL])[1 + n % 3]::"Sales"."Order State"[]
  FROM generate_series(1, 40) n;
INSERT INTO history SELECT id, 1, state FROM "Sales"."order";
INSERT INTO history VALUES (1, 2, NULL)
"""


def test_an_enum_of_two_tables_gets_other_labels_and_its_old_ones_again(
    database: Database, project: AlembicProject
) -> None:
    query(database, ENUMS)
    before = picture(database)
    rebuilt = dm.rebuild_enum(
        "Sales.Order State",
        {"Sales.order": ("state", "past[]"), "history": "state"},
        ("draft", "active", "done"),
        mapping={"pending": "active"},
        rename={"new": "draft", "open": "active"},
    )
    with pytest.raises(MigrationError, match="not go with the new type: it names the old one"):
        dm.render(database, dm.Migration("fewer states", rebuilt))
    drop = dm.drop_index("done", "order", schema="Sales")
    view = 'CREATE VIEW "Sales".by_state AS SELECT state FROM "Sales"."order"'
    query(database, view)
    with pytest.raises(MigrationError, match=r"by_state reads 'state' of"):
        dm.render(database, dm.Migration("fewer states", drop, rebuilt))
    away = dm.sql('DROP VIEW "Sales".by_state', undo=view)
    again = dm.sql(view, undo=away.statement)
    project.add(dm.render(database, dm.Migration("fewer states", drop, away, rebuilt, again)))

    ok(project.alembic(database, "upgrade", "head"))

    query(database, 'INSERT INTO "Sales"."order" (id) VALUES (41)')
    counts = "SELECT state::text, count(*) FROM {} GROUP BY state ORDER BY min(state)"
    assert query(database, counts.format('"Sales"."order"')) == [
        ("draft", 11),
        ("active", 20),
        ("done", 10),
    ]
    assert query(database, counts.format("history"))[-1] == (None, 1)
    past = 'SELECT past::text FROM "Sales"."order" WHERE id IN (1, 3, 5, 41) ORDER BY id'
    assert query(database, past) == ["{active,draft,NULL}", "{}", None, "{draft}"]
    query(database, 'DELETE FROM "Sales"."order" WHERE id = 41')
    ok(project.alembic(database, "downgrade", "-1"))
    assert picture(database) == before


@pytest.mark.parametrize(
    ("labels", "names", "sentence"),
    [
        (("a",), {"mapping": {"b": "c"}}, "c of the enum 'e' is no label; "),
        (("a", "b"), {"rename": {"b": "a"}}, "b of the enum 'e' goes and stays; "),
    ],
)
def test_labels_that_contradict_each_other_are_refused(
    labels: tuple[str, ...], names: dict[str, dict[str, str]], sentence: str
) -> None:
    with pytest.raises(MigrationError, match=f"^{sentence}labels= holds those"):
        dm.rebuild_enum("e", {"t": "state"}, labels, **names)


def test_values_become_rows_of_a_table_that_theirs_refer_to(
    database: Database, project: AlembicProject
) -> None:
    query(
        database,
        "CREATE SCHEMA geo; CREATE TABLE geo.city (id int PRIMARY KEY, country varchar(30));"
        'CREATE TABLE "Person" (id uuid PRIMARY KEY, "Born in" text);'
        "INSERT INTO geo.city VALUES (1, 'Chad'), (2, NULL), (3, 'Peru'), (4, 'Chad');"
        """INSERT INTO "Person" SELECT gen_random_uuid(), 'Fiji' FROM generate_series(1, 3)""",
    )
    before = picture(database)
    columns = {"geo.city": "country", "Person": "Born in"}
    steps = dm.extract_values(columns, into="geo.country", reference="country_id")
    extracted = dm.Migration("countries", steps, dm.drop_columns("geo.city", "country"))
    path = project.add(dm.render(database, extracted))

    ok(project.alembic(database, "upgrade", "head"))

    named = "SELECT name FROM {} LEFT JOIN geo.country AS c ON c.id = country_id ORDER BY {}"
    found = query(database, named.format("geo.city", "geo.city.id"))
    assert found == ["Chad", None, "Peru", "Chad"]
    assert query(database, named.format('"Person"', 1)) == ["Fiji"] * 3
    assert query(database, "SELECT count(*) FROM geo.country") == [3]
    ok(project.alembic(database, "downgrade", "-1"))
    assert picture(database) == before
    assert path.exists()


def test_names_become_unique_one_after_another_beside_those_that_are_there(
    database: Database, project: AlembicProject
) -> None:
    query(
        database,
        "CREATE TABLE space (team int, no int, name text, slug text, PRIMARY KEY (team, no));"
        "INSERT INTO space SELECT team, no, name, slug FROM (VALUES"
        " (9, 'a', NULL), (8, 'a', NULL), (7, 'a', NULL), (6, 'a-2', NULL), (5, 'b', 'a-3'),"
        " (4, 'b', NULL), (3, 'b', 'b'), (2, 'a-2', NULL), (1, NULL, NULL)"
        ") AS row (no, name, slug), unnest(ARRAY[1, 2]) AS team;"
        "CREATE FUNCTION cry() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'fired'; END $$;"
        "CREATE TRIGGER loud BEFORE UPDATE ON space FOR EACH ROW WHEN (OLD.slug = NEW.slug)"
        " EXECUTE FUNCTION cry()",
    )
    before = picture(database)
    steps = dm.fill_unique(
        "space", "slug", "name", within=("team",), order="no DESC", key=("team", "no")
    )
    size = sa.Column("size", sa.Integer())
    quiet = dm.fill_new_column("space", size, "length(name)", fire_triggers=False)
    nulls = dm.fill_nulls("space", {"name": "'?'"}, fire_triggers=False)
    project.add(dm.render(database, dm.Migration("slugs", steps, quiet, nulls)))

    ok(project.alembic(database, "upgrade", "head"))

    slugs = "SELECT no, slug FROM space WHERE team = {} ORDER BY no DESC"
    assert query(database, slugs.format(1)) == [
        *[(9, "a"), (8, "a-4"), (7, "a-5"), (6, "a-2"), (5, "a-3")],
        *[(4, "b-2"), (3, "b"), (2, "a-2-2"), (1, None)],
    ]
    assert query(database, slugs.format(2)) == query(database, slugs.format(1))
    ok(project.alembic(database, "downgrade", "-1"))
    assert picture(database) == before


@pytest.mark.parametrize("further", [0, 100])
def test_a_sequence_counts_on_behind_the_highest_value_and_never_back(
    database: Database, project: AlembicProject, further: int
) -> None:
    query(
        database,
        'CREATE TABLE "It" (id serial PRIMARY KEY, n int); INSERT INTO "It" (id) VALUES (7);'
        f"SELECT setval(pg_get_serial_sequence('\"It\"', 'id'), {max(further, 1)}, {further > 0})",
    )
    project.add(dm.render(database, dm.Migration("count on", dm.advance_sequence("It", "id"))))

    ok(project.alembic(database, "upgrade", "head"))

    added = query(database, 'INSERT INTO "It" (n) VALUES (1) RETURNING id')
    assert added == [max(7, further) + 1]

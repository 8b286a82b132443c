"""How backfills are walked, and the SQL of what is kept: values in, choices and whole texts out."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from datamig_nb import kept, statements, targets, walks
from datamig_nb.catalog import Catalog
from datamig_nb.errors import MigrationError
from datamig_nb.kept import Kept
from datamig_nb.migration import Migration, Step, added_columns
from datamig_nb.names import TableName
from datamig_nb.operations import add_column, sql
from datamig_nb.steps import (
    Backfill,
    DeleteRows,
    back_up,
    backfill,
    delete_rows,
    insert_rows,
    keep_in_step,
)
from datamig_nb.tables import Column, Reference, Table

SALE, PERSON = TableName("shop", "sale"), TableName("shop", "person")


def column(name: str, type: str = "text") -> Column:
    return Column(name=name, type=type, not_null=False, length=None, generated=False)


def table(name: TableName, *columns: Column, **more: Any) -> Table:
    given: dict[str, Any] = {"key": ("id",), "unique": (), "foreign_keys": (), **more}
    return Table(name=name, columns=columns, estimated_rows=-1, total_bytes=0, **given)


LINE = Reference(
    name="sale_person",
    child=SALE,
    visible=False,
    columns=("person_id",),
    parent_columns=("id",),
    on_delete=None,
)
ID = column("id", "bigint")
TABLES = {
    SALE: table(
        SALE,
        ID,
        column("person_id", "bigint"),
        column("amount", "numeric(10,2)"),
        column("place"),
        column("doc", "json"),
        indexed=frozenset({"id", "person_id"}),
    ),
    PERSON: table(PERSON, ID, column("name"), referenced_by=(LINE,)),
}


def planned(step: Backfill, *others: Step, **more: Any) -> walks.BackfillPlan:
    """The plan of a step of a migration that adds the columns a and b of text, n of integer."""
    new = [
        add_column("sale", sa.Column(name, kind), schema="shop")
        for name, kind in {"a": sa.Text(), "b": sa.Text(), "n": sa.Integer()}.items()
    ]
    migration = Migration("m", *new, step, *others)
    given: dict[str, Any] = {"tables": TABLES, "major": 18, "added": added_columns(migration)}
    catalog = Catalog(**{**given, **more})
    return walks.plan(step, step.assign, migration, catalog)


# ---------------------------------------------------------------- guard, look back, woven


def test_a_repeatable_backfill_looks_back_and_may_be_woven() -> None:
    differs = "(place, b) IS DISTINCT FROM (upper(a), '')"

    assert planned(backfill("shop.sale", {"place": "upper(a)", "b": "''"})) == walks.BackfillPlan(
        guard=differs, look_back=differs, woven="id"
    )


def test_the_value_of_new_columns_need_not_be_computed_to_see_that_they_are_empty() -> None:
    differs = "(a, b) IS DISTINCT FROM (upper(place), '')"

    plan = planned(backfill("shop.sale", {"a": "upper(place)", "b": "''"}))

    assert plan.guard == f"({{sure}} AND a IS NULL AND b IS NULL\n OR {differs})"
    assert plan.look_back == differs


def test_filling_what_is_null_is_repeatable_unless_more_is_done_to_the_value() -> None:
    filled = {"a": "coalesce(a, left(place, 1) || ')')"}

    assert planned(backfill("shop.sale", filled)).look_back is not None
    for text in ("coalesce(a, 'x') || concat('y')", "coalesce(a, b)", "coalesce(b, a)"):
        assert planned(backfill("shop.sale", {"a": text, "b": "a"})).look_back is None


def test_what_a_trigger_keeps_in_step_is_looked_for_where_nothing_is() -> None:
    fill = {"a": "upper(place)"}

    plan = planned(backfill("shop.sale", fill), keep_in_step("shop.sale", fill))

    assert plan.look_back == "a IS NULL AND a IS DISTINCT FROM (upper(place))"


@pytest.mark.parametrize(
    ("step", "volatile", "guard", "look_back"),
    [
        ({"a": "gen_random_uuid()"}, "gen_random_uuid", "a IS NULL", "a IS NULL"),
        ({"a": "x()", "b": "1"}, "x", "a IS NULL AND b IS NULL", "a IS NULL AND b IS NULL"),
        ({"place": "x()"}, "x", None, None),
        ({"amount": "amount * 2"}, "", "amount IS DISTINCT FROM (amount * 2)", None),
        (
            {"place": "doc ->> 'p'", "a": "place"},
            "",
            "(place, a) IS DISTINCT FROM (doc ->> 'p', place)",
            None,
        ),
        (
            {"place": "to_jsonb(sale)::text"},
            "",
            "place IS DISTINCT FROM (to_jsonb(sale)::text)",
            None,
        ),
    ],
)
def test_only_the_cursor_knows_what_is_done_where_a_second_time_would_change_a_row_again(
    step: dict[str, str], volatile: str, guard: str | None, look_back: str | None
) -> None:
    plan = planned(backfill("shop.sale", step), volatile=frozenset({volatile} - {""}))

    assert (plan.guard, plan.look_back) == (guard, look_back)
    assert (plan.woven is None) == (look_back is None)


def test_a_condition_on_what_is_set_may_be_asked_again() -> None:
    step = backfill("shop.sale", {"place": "'b'"}, where="place = 'a'")

    assert planned(step) == walks.BackfillPlan(
        guard="place IS DISTINCT FROM ('b')", look_back="place IS DISTINCT FROM ('b')", woven="id"
    )


def test_a_partner_that_is_found_by_what_is_set_is_looked_for_once() -> None:
    remapped = backfill(
        "shop.sale", {"person_id": "m.new"}, using="remap AS m", on="m.old = sale.person_id"
    )
    named = backfill("shop.sale", {"a": "name"}, using="shop.person", on="person.id = person_id")

    assert planned(remapped) == walks.BackfillPlan(
        guard="sale.person_id IS DISTINCT FROM (m.new)", look_back=None, woven=None
    )
    assert planned(named) == walks.BackfillPlan(
        guard="sale.a IS DISTINCT FROM (name)",
        look_back="sale.a IS DISTINCT FROM (name)",
        woven=None,
    )


def test_an_indexed_column_is_walked_by_key() -> None:
    assert planned(backfill("shop.sale", {"person_id": "1"})).woven is None


def test_values_are_compared_as_their_column_holds_them() -> None:
    """A number is rounded first; what has no equality goes by its text."""
    step = backfill("shop.sale", {"n": "amount / 3", "doc": "'{}'::json"})

    plan = planned(step, altered=frozenset({(SALE, "n", "amount / 3")}))

    assert plan.guard == (
        "(n, (doc)::text) IS DISTINCT FROM (CAST(amount / 3 AS INTEGER), ('{}'::json)::text)"
    )


# ---------------------------------------------------------------- steps beside each other

FIRST = backfill("shop.sale", {"a": "place"}, where="amount > 1")


@pytest.mark.parametrize(
    ("later", "is_later"),
    [
        (backfill("shop.sale", {"b": "place"}), False),
        (backfill("shop.sale", {"a": "'x'"}), True),
        (backfill("shop.sale", {"place": "NULL"}), True),
        (backfill("shop.sale", {"amount": "0"}), True),
        (backfill("shop.person", {"name": "''"}), False),
        (delete_rows("shop.sale", "false"), True),
        (insert_rows("shop.sale", "SELECT 1 AS id", key="id"), True),
        (insert_rows("shop.person", "SELECT 1 AS id", key="id"), False),
        (sql("SELECT 1"), False),  # behind which nothing is repeated anyway
        (back_up("shop.sale", "place"), False),
    ],
    ids=str,
)
def test_a_later_walk_that_writes_what_a_step_reads_or_writes_ends_its_looking_back(
    later: Step, is_later: bool
) -> None:
    migration = Migration("m", FIRST, later)

    assert walks.later_walks(FIRST, migration) == ([later] if is_later else [])


def test_looking_back_ends_when_a_later_walk_has_begun() -> None:
    before = statements.not_begun("abc", ["fill b", "it's"])

    assert statements.remaining(FIRST, "a IS NULL", before) == (
        "SELECT count(*) FROM shop.sale\n"
        " WHERE (amount > 1)\n"
        "   AND a IS NULL\n"
        "   AND NOT EXISTS (SELECT FROM datamig.run WHERE revision = 'abc'"
        " AND step IN ('fill b', 'it''s'))"
    )
    assert statements.not_begun("abc", []) is None


def test_looking_back_evaluates_nothing_over_rows_in_quarantine() -> None:
    aside = statements.set_aside(FIRST, ("id", "Key"), "abc", "fill a")

    assert statements.remaining(FIRST, "a IS NULL", None, aside) == (
        "SELECT count(*) FROM shop.sale\n"
        ' WHERE CASE WHEN ROW(id, "Key")::text IN (SELECT key FROM datamig.quarantine'
        " WHERE (revision, step) = ('abc', 'fill a'))\n"
        "            THEN FALSE ELSE (amount > 1) AND a IS NULL END"
    )


def test_columns_that_no_longer_give_what_their_expressions_say_are_not_held_against_them() -> None:
    new = [add_column("sale", sa.Column(c, sa.Text()), schema="shop") for c in "abcde"]
    migration = Migration(
        "m",
        *new,
        backfill("shop.sale", {"a": "place"}),
        backfill("shop.sale", {"b": "amount"}),
        backfill("shop.sale", {"c": "'x'"}, where="c IS NULL"),
        backfill("shop.sale", {"d": "name"}, using="shop.person", on="person.id = person_id"),
        backfill("shop.sale", {"e": "random()"}),
        backfill("shop.sale", {"amount": "0"}),
    )
    catalog = Catalog(
        tables=TABLES, major=18, added=added_columns(migration), volatile=frozenset({"random"})
    )

    assert walks.columns_held(SALE, migration, catalog) == ["a"]


# ---------------------------------------------------------------- what is kept: statements, whole

KEPT = Kept(
    name="datamig.kept_x_1",
    table=SALE,
    key=("id", "Part"),
    types={"amount": "numeric(10,2)", "doc": "json"},
)


def test_the_table_of_kept_values_has_the_key_and_each_value_twice() -> None:
    assert kept.keep_values(KEPT) == (
        "CREATE TABLE IF NOT EXISTS datamig.kept_x_1 AS\n"
        'SELECT id, "Part", amount AS amount_before, amount AS amount_after,'
        " doc AS doc_before, doc AS doc_after, 0::bigint AS datamig_xid\n"
        "  FROM shop.sale WITH NO DATA"
    )


def test_names_of_kept_values_fit_and_are_none_of_the_key() -> None:
    long = "n" * 60
    found = Kept(name="k", table=SALE, key=("v_before",), types={"v": "int", long: "int"})

    assert (found.before("v"), found.after("v")) == ("before_1", "v_after")
    assert (found.before(long), found.after(long)) == ("before_2", "after_2")


def test_what_is_still_ours_is_put_back() -> None:
    assert kept.restore_batch(KEPT) == (
        "UPDATE shop.sale\n"
        "   SET amount = CASE WHEN sale.amount IS NOT DISTINCT FROM kept.amount_after"
        " THEN kept.amount_before ELSE sale.amount END,\n"
        "       doc = CASE WHEN (sale.doc)::text IS NOT DISTINCT FROM (kept.doc_after)::text"
        " THEN kept.doc_before ELSE sale.doc END\n"
        "  FROM datamig.kept_x_1 AS kept\n"
        ' WHERE {batch} AND sale.id = kept.id AND sale."Part" = kept."Part"\n'
        "   AND (sale.amount IS NOT DISTINCT FROM kept.amount_after OR"
        " (sale.doc)::text IS NOT DISTINCT FROM (kept.doc_after)::text)"
    )


def test_conflicts_are_noted_and_what_was_kept_is_dropped_at_once() -> None:
    one = Kept(name="datamig.kept_x_1", table=PERSON, key=("id",), types={"name": "text"})

    assert kept.drop_kept(one.name, kept.note_edited(one, "x")) == (
        "DO $datamig$\n"
        "BEGIN\n"
        "    IF to_regclass('datamig.kept_x_1') IS NOT NULL THEN\n"
        "        INSERT INTO datamig.conflict (revision, relation, key, before, after, found)\n"
        "        SELECT 'x', 'shop.person', ROW(kept.id)::text,\n"
        "               (SELECT to_jsonb(noted) FROM (SELECT kept.name_before AS name) AS noted),\n"
        "               (SELECT to_jsonb(noted) FROM (SELECT kept.name_after AS name) AS noted),\n"
        "               CASE WHEN person.id IS NULL THEN NULL ELSE"
        " (SELECT to_jsonb(noted) FROM (SELECT person.name) AS noted) END\n"
        "          FROM datamig.kept_x_1 AS kept LEFT JOIN shop.person ON person.id = kept.id\n"
        "         WHERE person.id IS NULL OR person.name IS DISTINCT FROM (kept.name_before);\n"
        "        DROP TABLE datamig.kept_x_1;\n"
        "    END IF;\n"
        "END\n"
        "$datamig$"
    )


def test_rows_put_in_are_kept_and_the_values_that_do_update_changed() -> None:
    step = insert_rows("shop.person", "SELECT 1 AS id", key="id", on_conflict="nothing")
    update = insert_rows(
        "shop.person",
        "SELECT 1 AS id",
        key="id",
        on_conflict="(id) DO UPDATE SET name = excluded.name",
    )
    changed = Kept(name="datamig.changed", table=PERSON, key=("id",), types={"name": "text"})

    assert kept.insert_batch(step, ["id"], "datamig.kept", None, ["id"]) == (
        "WITH put AS (\n"
        "INSERT INTO shop.person (id)\n"
        "SELECT id FROM (\n"
        "SELECT 1 AS id\n"
        ") AS source\n"
        " WHERE {batch}\n"
        " ORDER BY id\n"
        "ON CONFLICT DO NOTHING\n"
        "RETURNING *\n"
        ")\n"
        "INSERT INTO datamig.kept SELECT * FROM put"
    )
    updating = kept.insert_batch(update, ["id"], "datamig.kept", changed, ["id"])
    assert updating.partition("RETURNING *\n")[2] == (
        "), new AS (\n"
        "    -- The statement still sees the table as it was before it.\n"
        "    INSERT INTO datamig.kept\n"
        "    SELECT put.* FROM put LEFT JOIN shop.person AS old ON old.id = put.id\n"
        "     WHERE old.id IS NULL\n"
        "), changed AS (\n"
        "    SELECT old.id, old.name AS name_before, put.name AS name_after\n"
        "      FROM put JOIN shop.person AS old ON old.id = put.id\n"
        "), kept AS (\n"
        "    INSERT INTO datamig.changed (id, name_before, name_after, datamig_xid)\n"
        "    SELECT id, name_before, name_after, pg_current_xact_id()::text::bigint\n"
        "      FROM changed\n"
        ")\n"
        "SELECT FROM put"
    )


def test_rows_put_in_are_taken_out_unless_edited_or_in_use() -> None:
    cascade = Reference(
        name="f",
        child=SALE,
        visible=False,
        columns=("person_id",),
        parent_columns=("id",),
        on_delete="CASCADE",
    )

    assert kept.take_out_batch(PERSON, ["id"], "datamig.kept", [LINE, cascade]) == (
        "DELETE FROM shop.person\n"
        " USING datamig.kept AS kept\n"
        " WHERE {batch} AND person.id = kept.id\n"
        "   AND to_jsonb(kept.*) || to_jsonb(person.*) = to_jsonb(kept.*)\n"
        "   AND NOT EXISTS (SELECT FROM shop.sale AS child WHERE child.person_id = person.id)"
    )


def linked(*links: tuple[str, str]) -> dict[TableName, Table]:
    """Tables by name, each link a foreign key of the first to the second."""
    names = dict.fromkeys(name for link in links for name in link)
    return {
        TableName(None, name): table(
            TableName(None, name),
            ID,
            referenced_by=tuple(
                Reference(
                    name=f"{child}_{name}",
                    child=TableName("public", child),
                    visible=True,
                    columns=(f"{name}_id",),
                    parent_columns=("id",),
                    on_delete=None,
                )
                for child, parent in links
                if parent == name
            ),
        )
        for name in names
    }


def test_all_dependants_are_found_over_several_levels_children_first() -> None:
    step = delete_rows("a", "gone", dependants="all")
    tables = linked(("c", "a"), ("b", "a"), ("c", "b"), ("d", "c"))

    parts = targets.deletions(step, tables)

    assert [str(part.table) for part in parts] == ["d", "c", "b", "a"]
    assert parts[2].where == "(a_id) IN (SELECT id FROM a WHERE (gone))"
    assert parts[1].where == (
        f"(a_id) IN (SELECT id FROM a WHERE (gone))\n"
        f" OR (b_id) IN (SELECT id FROM b WHERE ({parts[2].where}))"
    )
    assert [key.name for key in targets.unindexed(parts, tables)] == ["d_c", "c_b", "c_a", "b_a"]
    with pytest.raises(MigrationError, match=r"^b and c refer to each other in a circle"):
        targets.deletions(step, linked(("b", "a"), ("c", "b"), ("b", "c")))


def test_dependants_are_deleted_by_what_refers_to_rows_that_go() -> None:
    step = delete_rows("shop.person", "name = 'x' OR\nname IS NULL", dependants=("shop.sale",))

    first, last = targets.deletions(step, TABLES)

    assert first == DeleteRows(
        table=SALE,
        where="(person_id) IN (SELECT id FROM shop.person WHERE (name = 'x' OR\n    name IS NULL))",
    )
    assert last == delete_rows("shop.person", step.where)
    assert kept.delete_batch(last, "datamig.kept") == (
        "WITH gone AS (\n"
        "DELETE FROM shop.person\n"
        " WHERE {batch}\n"
        "   AND (name = 'x' OR\n"
        "        name IS NULL)\n"
        "RETURNING *\n"
        ")\n"
        "INSERT INTO datamig.kept SELECT * FROM gone"
    )


@pytest.mark.parametrize(
    ("on", "partner"),
    [
        ("u.task_id = task.id", "u.task_id"),
        ('task."id" = u."Task Id" AND u.kind = task.kind', 'u."Task Id"'),
        ("u.kind = task.kind", None),
        ("u.task_id = task.id OR u.task_id IS NULL", None),
        ("u.task_id = task.id + 1", None),
        ("u.note = 'a and u.task_id = task.id and b'", None),
    ],
)
def test_the_range_of_a_batch_bounds_partners_that_are_found_by_the_key(
    on: str, partner: str | None
) -> None:
    step = backfill("app.task", {"note": "u.note"}, using="app.u AS u", on=on)

    assert walks.partner(step, ("id",)) == partner

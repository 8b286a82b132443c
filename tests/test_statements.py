"""SQL from pure functions, compared whole; and which columns an expression reads.

What the statements of ``preview_sql`` find in real tables is told by ``test_preview.py``; the
largest of them, ``samples``, is held there only.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamig_nb import preview_sql, statements
from datamig_nb.checks import check, rows_check
from datamig_nb.names import TableName
from datamig_nb.preview_sql import ColumnType
from datamig_nb.statements import columns_read, indent
from datamig_nb.steps import backfill, keep_in_step
from datamig_nb.tables import Column, ForeignKey, Table

few = settings(max_examples=200, derandomize=True, deadline=None, database=None)

NAMES = {
    "first_name": "split_part(full_name, ' ', 1)",
    "last_name": "split_part(full_name, ' ', 2)",
}
SPLIT = backfill("players.player", NAMES)
STATE = backfill('guide."user"', {"State": "lower(status)"}, where="a OR\nb")


# ---------------------------------------------------------------- statements


def test_batch_updates_only_rows_that_differ() -> None:
    assert statements.update_batch(
        SPLIT,
        NAMES,
        statements.differ(list(NAMES), list(NAMES.values())),
    ) == (
        "UPDATE players.player\n"
        "   SET first_name = split_part(full_name, ' ', 1),\n"
        "       last_name = split_part(full_name, ' ', 2)\n"
        " WHERE {batch}\n"
        "   AND (first_name, last_name) IS DISTINCT FROM (split_part(full_name, ' ', 1),"
        " split_part(full_name, ' ', 2))"
    )


def test_batch_keeps_the_condition_of_the_backfill_together() -> None:
    assert statements.update_batch(
        STATE, {"State": "lower(status)"}, '"State" IS DISTINCT FROM (lower(status))'
    ) == (
        'UPDATE guide."user"\n'
        '   SET "State" = lower(status)\n'
        " WHERE {batch}\n"
        "   AND (a OR\n"
        "        b)\n"
        '   AND "State" IS DISTINCT FROM (lower(status))'
    )


def test_edited_rows_are_those_that_hold_something_else_than_was_filled_in() -> None:
    differs = statements.differ(list(NAMES), list(NAMES.values()))

    assert statements.edited_rows(SPLIT.table, NAMES, differs, ("id", "Year")) == (
        'SELECT id, "Year" FROM players.player\n'
        " WHERE num_nonnulls(first_name, last_name) > 0\n"
        "   AND (first_name, last_name) IS DISTINCT FROM (split_part(full_name, ' ', 1),"
        " split_part(full_name, ' ', 2))\n"
        ' ORDER BY id, "Year"'
    )


@pytest.mark.parametrize(
    ("key", "columns"), [(("id",), "id"), (("id", "Year"), 'id, "Year"'), ((), "ctid")]
)
def test_failing_rows_are_named_by_key_or_place(key: tuple[str, ...], columns: str) -> None:
    failing = rows_check("no blank", "guide.user", "status = '' OR\nstatus IS NULL")

    assert statements.failing_rows(failing, key) == (
        f'SELECT {columns} FROM guide."user"\n'
        " WHERE status = '' OR\n"
        "       status IS NULL\n"
        f" ORDER BY {columns}"
    )


def test_failing_rows_of_a_query_are_what_it_selects() -> None:
    assert statements.failing_rows(check("none", "SELECT 1 AS a"), ("id",)) == "SELECT 1 AS a"


def test_trigger_function_computes_the_columns_of_a_new_row() -> None:
    assert statements.trigger_function(
        keep_in_step("players.player", NAMES),
        NAMES,
        "zz_datamig_1",
        dict.fromkeys(NAMES, "text"),
    ) == (
        """\
CREATE OR REPLACE FUNCTION datamig.zz_datamig_1() RETURNS trigger
LANGUAGE plpgsql AS $datamig$
#variable_conflict use_column
BEGIN
    -- An application that writes the new columns itself is not overruled.
    IF TG_OP = 'INSERT' THEN
        IF num_nonnulls(NEW.first_name, NEW.last_name) > 0 THEN RETURN NEW; END IF;
    ELSIF (NEW.first_name, NEW.last_name) IS DISTINCT FROM (OLD.first_name, OLD.last_name) THEN
        RETURN NEW;
    END IF;
    SELECT split_part(full_name, ' ', 1),
           split_part(full_name, ' ', 2)
      INTO NEW.first_name, NEW.last_name
      FROM (SELECT NEW.*) AS player;
    RETURN NEW;
END
$datamig$"""
    )


def test_trigger_fires_for_new_rows_and_for_changes_of_what_is_read() -> None:
    step = keep_in_step("guide.user", {"State": "lower(status)"})

    assert statements.trigger(step, "zz_datamig_1", ("status", "Old")) == (
        "CREATE OR REPLACE TRIGGER zz_datamig_1\n"
        'BEFORE INSERT OR UPDATE OF status, "Old" ON guide."user"\n'
        "FOR EACH ROW EXECUTE FUNCTION datamig.zz_datamig_1()"
    )


def test_trigger_of_an_expression_that_reads_nothing_fires_for_new_rows_only() -> None:
    assert statements.trigger(keep_in_step("player", {"at": "now()"}), "zz", ()) == (
        "CREATE OR REPLACE TRIGGER zz\n"
        "BEFORE INSERT ON player\n"
        "FOR EACH ROW EXECUTE FUNCTION datamig.zz()"
    )


def test_checks_over_one_table_are_counted_in_one_pass() -> None:
    checks = [rows_check("a", "guide.user", "id < 0"), rows_check("b", "guide.user", "x OR\ny")]

    assert statements.count_failing(checks) == (
        "SELECT count(*) FILTER (WHERE id < 0) AS c0,\n"
        "       count(*) FILTER (WHERE x OR\n"
        "                             y) AS c1\n"
        '  FROM guide."user"'
    )


# ---------------------------------------------------------------- statements of the preview


def table(name: str, *columns: str, key: tuple[str, ...] = ("id",)) -> Table:
    """A table of text columns."""
    text = {"type": "text", "not_null": False, "length": None, "generated": False}
    return Table(
        name=TableName.parse(name),
        columns=tuple(Column(name=column, **text) for column in columns),
        key=key,
        unique=(key,) if key else (),
        foreign_keys=(),
        estimated_rows=-1,
        total_bytes=0,
    )


USER = table("guide.user", "id", "status", "State")
KEYLESS = table("log", "line", key=())


@pytest.mark.parametrize(
    ("expression", "table", "read"),
    [
        ("lower(status)", USER, ("status",)),
        ("status || id", USER, ("id", "status")),
        ("now()", USER, ("id",)),
        ("now()", KEYLESS, ("line",)),
    ],
)
def test_preview_reads_the_columns_of_the_expressions_else_the_key(
    expression: str, table: Table, read: tuple[str, ...]
) -> None:
    assert preview_sql.reads(backfill("t", {"a": expression}), table) == read


def test_preview_counts_each_combination_of_old_values() -> None:
    step = backfill("guide.user", {"State": "CASE\nEND", "new": "b", "id": "'7'"}, where="id > 9")

    text = preview_sql.value_map(step, USER, ("status", "Old"), 50, ["State"])

    assert text.startswith(
        "WITH pairs AS MATERIALIZED (\n"
        '    SELECT status::text AS b0, "Old"::text AS b1, "→ 0"::text AS a0, "→ 1"::text AS a1,'
        ' "→ 2"::text AS a2,\n'
        "           count(*) AS rows, count(*) FILTER (WHERE"
        ' "State"::text IS DISTINCT FROM "→ 0"::text OR "→ 1" IS NOT NULL'
        " OR id IS DISTINCT FROM '7') AS changed_rows\n"
        "      FROM (\n"
        '    SELECT status,\n           "Old",\n           "State",\n           id,\n'
        '           (CASE\n            END) AS "→ 0",\n           (b) AS "→ 1",\n'
        "           ('7') AS \"→ 2\"\n"
        '      FROM guide."user"\n'
        " WHERE id > 9\n"
        "    OFFSET 0) AS evaluated\n"
        "     GROUP BY 1, 2, 3, 4, 5\n"
        ")\n"
        "SELECT b0, b1, a0, a1, a2, rows, totals.*\n"
    )
    assert text.endswith(
        ") AS totals (combinations, all_rows, all_changed, kinds)\n"
        ' ORDER BY rows DESC, b0 COLLATE "C" NULLS FIRST, b1 COLLATE "C" NULLS FIRST\n'
        " LIMIT 50"
    )


def test_preview_evaluates_one_expression_for_its_error() -> None:
    step = backfill("guide.user", {"State": "a"}, where="id > 9")

    assert preview_sql.evaluate(step, "a / b") == (
        'SELECT count(a / b)\n  FROM guide."user"\n WHERE id > 9'
    )


def test_predicted_rows_have_the_columns_of_the_table_and_the_new_ones() -> None:
    assert preview_sql.predicted(USER, {"State": "CASE\nEND", "new": "b"}) == (
        "(SELECT id,\n"
        "       status,\n"
        "       (CASE\n"
        '        END) AS "State",\n'
        "       (b) AS new\n"
        '  FROM guide."user" OFFSET 0) AS "user"'
    )
    assert preview_sql.predicted(KEYLESS, {}) == (
        "(SELECT ctid,\n       line\n  FROM log OFFSET 0) AS log"
    )


def test_preview_counts_failing_rows_in_one_pass() -> None:
    assert preview_sql.count_each("log", ["a", "b OR c"]) == (
        "SELECT count(*) FILTER (WHERE a),\n       count(*) FILTER (WHERE b OR c)\n  FROM log"
    )


def test_preview_names_the_first_failing_rows() -> None:
    assert preview_sql.failing_keys('guide."user"', "a", ("id", "Year"), 5) == (
        'SELECT id::text AS v0, "Year"::text AS v1\n'
        '  FROM guide."user"\n'
        " WHERE a\n"
        ' ORDER BY id, "Year"\n'
        " LIMIT 5"
    )
    assert preview_sql.failing_keys("log", "a", (), 5) == (
        "SELECT ctid::text AS v0\n  FROM log\n WHERE a\n ORDER BY ctid\n LIMIT 5"
    )
    assert preview_sql.count_and_keys("SELECT 1", 5) == (
        "SELECT count(*) OVER (), failing.* FROM (\nSELECT 1\n) AS failing\n LIMIT 5"
    )


def test_preview_finds_values_that_would_collide() -> None:
    assert preview_sql.collisions("log", ("a", "B"), 5) == (
        'SELECT (sum(count(*)) OVER ())::bigint, a::text AS v0, "B"::text AS v1\n'
        "  FROM log\n"
        ' WHERE a IS NOT NULL AND "B" IS NOT NULL\n'
        ' GROUP BY a, "B" HAVING count(*) > 1\n'
        ' ORDER BY a, "B"\n'
        " LIMIT 5"
    )


def test_preview_finds_values_that_do_not_fit_their_type() -> None:
    kinds = "('numeric'::regtype, 'real'::regtype, 'double precision'::regtype)"

    assert preview_sql.is_no_label("State", ["'a'", "'b'"]) == "\"State\"::text NOT IN ('a', 'b')"
    assert preview_sql.does_not_fit("a", ColumnType(name="date")) == (
        "NOT pg_input_is_valid(a::text, 'date')"
    )
    assert preview_sql.does_not_fit("a", ColumnType(name="bigint")) == (
        f"NOT pg_input_is_valid(CASE WHEN pg_typeof(a) IN {kinds}"
        " THEN round(a::text::numeric)::text ELSE a::text END, 'bigint')"
    )
    assert preview_sql.is_rounded("a") == (
        f"CASE WHEN pg_typeof(a) IN {kinds}"
        " THEN round(a::text::numeric)::text::numeric <> a::text::numeric ELSE FALSE END"
    )


def test_preview_finds_values_without_a_parent() -> None:
    key = ForeignKey(
        name="fk",
        columns=("Year", "user_id"),
        parent=TableName("guide", "user"),
        parent_columns=("year", "Id"),
    )

    assert preview_sql.has_no_parent(TableName("guide", "task"), key) == (
        'num_nulls(task."Year", task.user_id) = 0 AND NOT EXISTS (SELECT FROM guide."user" AS'
        ' parent WHERE (parent.year, parent."Id") = (task."Year", task.user_id))'
    )


# ---------------------------------------------------------------- layout


def test_all_lines_but_the_first_are_moved() -> None:
    assert indent("CASE\n    WHEN a THEN b\nEND", 4) == "CASE\n        WHEN a THEN b\n    END"


@pytest.mark.parametrize("literal", ["'\n'", "E'\n'", "$$\n$$", "$tag$\n$tag$", '"\n"'])
def test_line_end_inside_a_literal_or_name_keeps_the_text_as_it_is(literal: str) -> None:
    assert indent(f"f(\n{literal})", 4) == f"f(\n{literal})"


def test_line_end_inside_a_comment_does_not_matter() -> None:
    assert indent("a -- it's\n+ b /* $$\n*/", 2) == "a -- it's\n  + b /* $$\n  */"


# ---------------------------------------------------------------- columns that are read


@pytest.mark.parametrize(
    ("expression", "read"),
    [
        ("full_name", ("full_name",)),
        ("FULL_NAME || Id", ("id", "full_name")),
        ("player.full_name", ("full_name",)),
        ("players.player.full_name", ("full_name",)),
        ("upper(full_name)::text", ("full_name",)),
        ("full_name1 || my_full_name || full_name$ || ünfull_name", ()),
        ('"full_name"', ("full_name",)),
        ('"Full Name" || "a""b"', ("Full Name", 'a"b')),
        ('"FULL_NAME" || "full name"', ()),
        ("Full Name", ()),
        ('Ä || "ä"', ("Ä", "ä")),
        ("ä", ("ä",)),
        ("'full_name'", ()),
        ("'it''s full_name'", ()),
        (r"'\' || full_name || '\'", ("full_name",)),
        (r"E'\' full_name \\' || id", ("id",)),
        (r"e'it\'s full_name'", ()),
        ("'a' || full_name || 'b'", ("full_name",)),
        ("$$full_name$$ || id", ("id",)),
        ("$a$ $$ full_name $b$ $a$ || id", ("id",)),
        ("-- full_name\nid", ("id",)),
        ("id -- it's full_name", ("id",)),
        ("/* full_name\n */ id /* ' */ || full_name", ("id", "full_name")),
        ("'--' || full_name", ("full_name",)),
        ("'/*' || full_name || '*/'", ("full_name",)),
        ("now()", ()),
        ("id+full_name", ("id", "full_name")),
    ],
)
def test_columns_read_are_those_that_are_named(expression: str, read: tuple[str, ...]) -> None:
    columns = ("id", "full_name", "Full Name", 'a"b', "Ä", "ä")

    assert columns_read(expression, columns) == read


@pytest.mark.parametrize(
    ("expression", "read"),
    [
        ("to_jsonb(player)", ("id", "full_name")),
        ("md5(Player::text)", ("id", "full_name")),
        ("to_jsonb(player.*)", ("id", "full_name")),
        ("to_jsonb(player . *)", ("id", "full_name")),
        ('to_jsonb("player")', ("id", "full_name")),
        ("player.id", ("id",)),
        ("player . id", ("id",)),
        ("'player' || id", ("id",)),
    ],
)
def test_whole_row_reads_every_column(expression: str, read: tuple[str, ...]) -> None:
    assert columns_read(expression, ("id", "full_name"), "player") == read


#: Pieces of an expression that hide the name inside, and pieces that hold none.
hidden = st.sampled_from(
    [
        "'full_name'",
        "'full_name '' full_name'",
        r"E'\' full_name'",
        "$$full_name$$",
        "$q$ full_name $$ ' $q$",
        "-- full_name\n",
        "/* full_name\n ' */",
        '"Full_Name"',
        '"a ""full_name"" b"',
    ]
)
other = st.sampled_from(["id", "''", "$$$$", "(", ")", "||", ", ", "1.5", '"x"', "lower(y)", "E''"])
bare = st.sampled_from(["full_name", "FULL_NAME", "Full_Name", '"full_name"', "t.full_name"])


@few
@given(pieces=st.lists(hidden | other))
def test_name_inside_a_literal_or_comment_is_never_read(pieces: list[str]) -> None:
    assert columns_read(" ".join(pieces), ["full_name"]) == ()


@few
@given(before=st.lists(hidden | other), name=bare, after=st.lists(hidden | other))
def test_bare_name_is_always_read(before: list[str], name: str, after: list[str]) -> None:
    assert columns_read(" ".join([*before, name, *after]), ["full_name"]) == ("full_name",)


@few
@given(
    text=st.text("ab'\"$\\-/*\nE "),
    columns=st.lists(st.sampled_from(["a", "b", "ab"]), unique=True),
)
def test_columns_are_given_in_their_own_order_whatever_the_text(
    text: str, columns: list[str]
) -> None:
    read = columns_read(text, columns)

    assert list(read) == [column for column in columns if column in read]

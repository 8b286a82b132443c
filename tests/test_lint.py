"""What a reader with experience would say of a revision file, said by rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamig_nb.alembic_runs import AlembicRun, Sent
from datamig_nb.hazards import hazards_of_run
from datamig_nb.lint import is_unbatched, lint
from datamig_nb.names import TableName

EXPECTED = sorted((Path(__file__).parent / "expected").glob("*.py"))

CARELESS = '''"""Everything that one should not do.

UPDATE in a docstring is no statement.
"""


def upgrade():
    op.add_column("order", sa.Column("kind", sa.Text(), default="old"))
    op.execute("UPDATE order SET kind = 'new'")
    count = op.get_bind().execute(text("SELECT count(*) FROM order JOIN user ON true")).scalar()
    while True:
        page = op.get_bind().execute(text(f"SELECT id FROM big LIMIT 10 OFFSET {start}"))
        for row in page:
            op.execute(f"UPDATE big SET done = true WHERE id = {row.id}")
    op.execute("-- those that are old\\nDELETE FROM big WHERE created_at < '2020-01-01'")


def downgrade():
    """Not today."""
    pass
'''


def test_each_rule_names_its_line() -> None:
    found = lint(CARELESS, ["order", "user"])

    assert [(finding.line, finding.rule) for finding in found] == [
        (8, "client default"),
        (9, "reserved name"),
        (9, "unbatched"),
        (10, "no connection"),
        (10, "reserved name"),
        (10, "reserved name"),
        (12, "offset"),
        (14, "row by row"),
        (15, "unbatched"),
        (18, "empty downgrade"),
    ]
    assert [finding.what for finding in found if finding.rule == "reserved name"] == [
        'order is a word of SQL and here not the table: write "order"',
        'order is a word of SQL and here not the table: write "order"',
        "user is a word of SQL and here not the table, but one row with the name of the role:"
        ' write "user"',
    ]


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: path.stem)
def test_no_rule_finds_anything_in_what_we_render(path: Path) -> None:
    assert lint(path.read_text(encoding="utf-8"), ["user", "order"]) == ()


def test_careful_file_has_no_findings() -> None:
    careful = """
def upgrade():
    op.add_column("order", sa.Column("kind", sa.Text(), server_default="old"))
    bind = None if op.get_context().as_sql else op.get_bind()
    op.execute("SELECT 'FROM order' -- FROM order")
    op.execute('UPDATE "order" SET kind = 1 WHERE id BETWEEN 1 AND 9')


def downgrade():
    raise RuntimeError("there is no way back")
"""

    assert lint(careful, ["order"]) == ()


def test_merge_of_two_heads_needs_no_downgrade() -> None:
    assert lint("def upgrade():\n    pass\n\n\ndef downgrade():\n    pass\n") == ()


@pytest.mark.parametrize(
    ("statement", "unbatched"),
    [
        ("UPDATE task SET done = true", True),
        ("update only app.task set done = :done where kind = 'a'", True),
        ("DELETE FROM task WHERE created_at < now()", True),
        ("UPDATE task SET done = true WHERE id > :low AND id <= :high", False),
        ("UPDATE task SET done = true WHERE id = %(id)s", False),
        ("UPDATE task SET n = x::int WHERE n IS NULL", True),
        ("UPDATE task SET done = true WHERE ctid = ANY (ARRAY(SELECT ctid FROM t LIMIT 5))", False),
        ("UPDATE task SET done = true WHERE {batch}", False),
        ("SELECT * FROM task", False),
        ("INSERT INTO task VALUES (1)", False),
    ],
)
def test_statement_without_bounds_takes_all_rows(statement: str, unbatched: bool) -> None:
    assert is_unbatched(statement) is unbatched


def test_a_name_that_is_no_table_of_ours_has_no_rows() -> None:
    sent = Sent(
        transaction=1,
        text="UPDATE shop.public.item SET price = 0",
        times=1,
        rows=3,
        most_rows=3,
        first_seconds=0.0,
        last_seconds=0.0,
        failed=False,
    )
    run = AlembicRun(words=("upgrade", "head"), code=0, seconds=1.0, log=(), statements=(sent,))

    assert hazards_of_run(run, {TableName("public", "item"): 2}, lambda _: True) == ()

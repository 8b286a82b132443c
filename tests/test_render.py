"""The rendered revision: whole files, what linters say of them, and what is refused.

The whole files are in ``tests/expected``.  To renew them after a change that was meant, run
``RENEW_EXPECTED=1 ./dev test tests/test_render.py`` and read their diff.
"""

from __future__ import annotations

import ast
import datetime
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql

from datamig_nb import inlined_sql, inlined_walk
from datamig_nb.checks import check, no_nulls, rows_check
from datamig_nb.database import Database, run
from datamig_nb.errors import (
    AlembicProjectError,
    CatalogError,
    DatamigError,
    ExpressionError,
    MigrationError,
    MissingKeyError,
    UnknownColumnError,
    UnknownTableError,
)
from datamig_nb.migration import Migration, Step
from datamig_nb.names import literal
from datamig_nb.operations import add_column, alter_column, create_check_constraint, create_enum
from datamig_nb.patterns import map_values, split_column
from datamig_nb.project import Project, create_project
from datamig_nb.render import render
from datamig_nb.steps import backfill, keep_in_step

ROOT = Path(__file__).parent.parent
EXPECTED = ROOT / "tests" / "expected"

few = settings(max_examples=40, derandomize=True, deadline=None, database=None)

WHOLE = {
    "split_full_name": split_column(
        "players.player", "full_name", type=sa.String(50), nullable=False
    ),
    "map_manufacturer": map_values(
        "flights.planes",
        "manufacturer",
        {
            "AIRBUS INDUSTRIE": "AIRBUS",
            "MCDONNELL DOUGLAS AIRCRAFT CO": "MCDONNELL DOUGLAS",
            "MCDONNELL DOUGLAS CORPORATION": "MCDONNELL DOUGLAS",
        },
        into="maker",
        unmapped="keep",
    ),
    "map_status_to_enum": map_values(
        "guide.user",
        "status",
        {
            "enabled": "active",
            "Enabled": "active",
            "enabled ": "active",
            "disabled": "inactive",
            "archived": "inactive",
            "suspended": "suspended",
            "pending_activation": "pending",
            "": "unknown",
            None: "unknown",
        },
        into="state",
        type="enum",
        nullable=False,
    ),
}


def add_text(name: str, table: str = "player", schema: str | None = "players") -> Step:
    return add_column(table, sa.Column(name, sa.Text), schema=schema)


def filling(**assign: str) -> Migration:
    """A migration that adds text columns to the players and fills them."""
    return Migration("fill", *map(add_text, assign), backfill("players.player", assign))


LONG = "a_name_of_sixty_three_bytes_" + "x" * 35

#: Migrations whose text is laid out in every way: short, too long, with quotes, without a part.
SHAPES = {
    "one enum": Migration("one enum", create_enum("guide.colour", "red")),
    "long enum": Migration(
        "labels", create_enum("guide.colour", *(f"label {n}" for n in range(20)))
    ),
    "only checks": Migration(
        'say "checks" \\ only.',
        rows_check("no user\nis new", "guide.user", "id < 0", before=True),
        check("nothing's \\ left", 'SELECT 1 AS "One" WHERE FALSE'),
    ),
    "cannot be undone": Migration(
        "x", backfill("guide.user", {"status": "full_name", "email": "NULL"})
    ),
    "long names": Migration(
        "x" * 120,
        add_text(LONG),
        add_text(LONG[:-1] + "y"),
        keep_in_step("players.player", {LONG: "full_name", LONG[:-1] + "y": "upper(full_name)"}),
        backfill("players.player", {LONG: "full_name", LONG[:-1] + "y": "upper(full_name)"}),
        no_nulls("players.player", LONG),
        alter_column("player", LONG, nullable=False, schema="players"),
    ),
    "long expression": filling(
        first="coalesce(nullif(split_part(full_name, ' ', 1), ''), nullif(full_name, ''), 'none')",
        second="||".join(["full_name"] * 30),
        third="CASE\n    WHEN active THEN " + "||".join(["full_name"] * 30) + "\nEND",
    ),
    "types": Migration(
        "types",
        *(
            add_column("player", column, schema="players")
            for column in (
                sa.Column("a", postgresql.JSONB(astext_type=sa.Text())),
                sa.Column("b", postgresql.ARRAY(sa.Text()), comment='it\'s "b"'),
                sa.Column("c", sa.Boolean, server_default=sa.false(), nullable=False),
                sa.Column("d", sa.Numeric(10, 2), server_default=sa.text("0 + 1")),
                sa.Column("e", sa.DateTime(timezone=True), server_default=sa.func.now()),
            )
        ),
    ),
    "check and not null": Migration(
        "check",
        add_text("initial"),
        backfill("players.player", {"initial": "left(full_name, 1)"}, where="active\nOR id < 9"),
        backfill("players.player", {"initial": "'?'"}, where="NOT active"),
        create_check_constraint("initial_check", "player", "length(initial) = 1", schema="players"),
        alter_column("player", "initial", nullable=False, schema="players"),
        alter_column("player", "active", nullable=False, schema="players"),
    ),
}


@pytest.fixture(scope="module")
def files(samples: Database, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the text of each of these migrations, for the linters."""
    directory = tmp_path_factory.mktemp("revisions")
    for name, migration in {**WHOLE, **SHAPES}.items():
        path = directory / f"{name.replace(' ', '_')}.py"
        path.write_text(render(samples, migration).text, encoding="utf-8")
    return directory


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The alembic.ini of a project with one revision, aaa."""
    ini = create_project(tmp_path / "project")
    add_revision(ini, "aaa", None)
    return ini


def add_revision(ini: Path, id: str, down_revision: str | None, more: str = "") -> None:
    text = f"revision = {id!r}\ndown_revision = {down_revision!r}\n{more}"
    versions = ini.parent / "alembic" / "versions"
    number = len(list(versions.glob("*.py")))
    (versions / f"{number}_{id}.py").write_text(text, encoding="utf-8")


def set_options(ini: Path, text: str, section: str = "alembic") -> None:
    """Put lines at the beginning of a section of the ini file."""
    before, after = ini.read_text(encoding="utf-8").split(f"\n[{section}]\n")
    ini.write_text(f"{before}\n[{section}]\n{text}\n{after}", encoding="utf-8")


def constants(text: str) -> dict[str, Any]:
    """The names that the revision binds when Alembic imports it."""
    names: dict[str, Any] = {}
    exec(compile(text, "revision.py", "exec"), names)
    return names


def undated(text: str) -> str:
    return re.sub(r"(?m)^Create Date: .*$", "Create Date: (when it was rendered)", text)


def program(*words: str) -> str:
    """What a program of this environment says, nothing when it is content."""
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return done.stdout + done.stderr if done.returncode else ""


# ---------------------------------------------------------------- whole files


@pytest.mark.parametrize("name", WHOLE)
def test_revision_is_the_expected_file(samples: Database, name: str) -> None:
    path = EXPECTED / f"{name}.py"

    text = undated(render(samples, WHOLE[name]).text)

    if os.environ.get("RENEW_EXPECTED"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_expected_file_is_compared() -> None:
    assert {path.stem for path in EXPECTED.glob("*.py")} == set(WHOLE)


def test_ruff_has_nothing_to_say_of_a_revision(files: Path) -> None:
    assert program("ruff", "check", "--no-cache", "--config", "pyproject.toml", str(files)) == ""


def test_ruff_would_format_a_revision_as_it_is(files: Path) -> None:
    options = ("--no-cache", "--diff", "--config", "pyproject.toml")

    assert program("ruff", "format", *options, str(files)) == ""


def test_type_checker_has_nothing_to_say_of_a_revision(files: Path, tmp_path: Path) -> None:
    strict = {"include": [str(files)], "typeCheckingMode": "strict", "pythonVersion": "3.11"}
    (tmp_path / "strict.json").write_text(json.dumps(strict), encoding="utf-8")

    said = program(
        "basedpyright", "-p", str(tmp_path / "strict.json"), "--pythonpath", sys.executable
    )

    assert said == ""


def test_revision_imports_nothing_but_alembic_sqlalchemy_and_the_standard_library(
    files: Path,
) -> None:
    imported: set[str] = set()
    for path in files.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported.add(f"{'.' * node.level}{node.module}".split(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}

    assert imported - sys.stdlib_module_names == {"alembic", "sqlalchemy"}


@pytest.mark.parametrize("name", [*WHOLE, *SHAPES])
def test_revision_can_be_imported(files: Path, name: str) -> None:
    path = files / f"{name.replace(' ', '_')}.py"

    found = constants(path.read_text(encoding="utf-8"))

    assert callable(found["upgrade"])
    assert callable(found["downgrade"])
    assert found["branch_labels"] is found["depends_on"] is None


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("fill the names", "Fill the names."),
        ("fill the names.", "Fill the names."),
        ('"fill" the "names"', "'fill' the 'names'."),
        (r"fill C:\names", "Fill C:/names."),
        ('fill """names"""', "Fill '''names'''."),
        ("ändern", "Ändern."),
    ],
)
def test_title_is_the_first_line_of_the_docstring(samples: Database, name: str, title: str) -> None:
    revision = render(samples, Migration(name, *filling(a="upper(full_name)").steps))

    assert constants(revision.text)["__doc__"].splitlines()[0] == title


# ---------------------------------------------------------------- identity


def test_same_migration_on_the_same_head_gives_the_same_id(
    samples: Database, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = render(samples, WHOLE["map_manufacturer"], alembic=project)
    date = datetime.datetime(1999, 12, 31, tzinfo=datetime.UTC)
    monkeypatch.setattr(Project, "create_date", lambda _: date)

    second = render(samples, WHOLE["map_manufacturer"], alembic=project)

    assert second.id == first.id
    assert second.text != first.text
    assert undated(second.text) == undated(first.text)


def test_another_head_gives_another_id(samples: Database, project: Path) -> None:
    without = render(samples, WHOLE["map_manufacturer"])
    first = render(samples, WHOLE["map_manufacturer"], alembic=project)
    add_revision(project, "bbb", "aaa")

    second = render(samples, WHOLE["map_manufacturer"], alembic=project)

    assert (without.down_revision, first.down_revision, second.down_revision) == (
        None,
        "aaa",
        "bbb",
    )
    assert len({without.id, first.id, second.id}) == 3


def test_another_migration_gives_another_id(samples: Database) -> None:
    one = render(samples, filling(a="upper(full_name)"))
    other = render(samples, filling(a="lower(full_name)"))

    assert one.id != other.id


def test_id_is_what_alembic_reads(samples: Database, project: Path) -> None:
    revision = render(samples, WHOLE["map_manufacturer"], alembic=project)

    found = constants(revision.text)

    assert re.fullmatch("[0-9a-f]{12}", revision.id)
    assert (found["revision"], found["down_revision"]) == (revision.id, "aaa")
    assert f"\nRevision ID: {revision.id}\nRevises: aaa\nCreate Date: " in revision.text
    assert f"TRIGGER zz_datamig_{revision.id}\n" in found["TRIGGER"]
    assert revision.alembic == project


def test_revision_says_what_it_is(samples: Database, project: Path) -> None:
    first = render(samples, filling(a="upper(full_name)"))
    second = render(samples, filling(a="upper(full_name)"), alembic=project)

    lines = len(first.text.splitlines())
    assert repr(first) == f"Revision {first.id}: fill, {lines} lines, the first of its project"
    assert repr(second) == f"Revision {second.id}: fill, {lines} lines, follows aaa"


def test_story_is_all_between_the_settings_and_the_machinery(samples: Database) -> None:
    revision = render(samples, filling(a="upper(full_name)"))

    assert revision.story.startswith("def upgrade() -> None:\n")
    assert revision.story.endswith(' ORDER BY id\n"""')
    assert "def own_commits" not in revision.story
    assert revision.story in revision.text


# ---------------------------------------------------------------- expressions


EXPRESSIONS = [
    "full_name LIKE '100%' OR full_name LIKE '%s %(name)s'",
    "replace(full_name, ' :y', ' :word::text')",
    "concat(full_name, '{}', '{0} {full_name} {{x}}')",
    """jsonb_build_object('a', 1) || '{"a":1, "b": {"c": [1, 2]}}'::jsonb""",
    r"regexp_replace(full_name, '\s+\\', E'\\1\'\n')",
    "concat('it''s', full_name, '\"quoted\"')",
    'concat(\'"""\', full_name)',
    "concat(full_name, '''''', '\"\"\"\"')",
    "concat($$it's$$, full_name, $q$ $$ \" $q$)",
    "CASE\n    WHEN active THEN 'yes'\n    ELSE 'no' -- or not known\nEND",
    "concat(full_name, '\n  two\n\n    lines')",
    "concat(full_name, 'a\rb\r\nc')",
    "concat('ünï', full_name, '姚明 👍 \u00a0\u2028')",
    "concat(full_name, E'\\\\')",
    "translate(full_name, '0123456789ab', '')",
    "concat(full_name, '# vetted: x', '# -------- functions')",
    "player.full_name || players.player.full_name",
    "full_name",
    "'?'",
    "NULL",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expression_arrives_in_the_file_unchanged(samples: Database, expression: str) -> None:
    revision = render(samples, filling(x=expression))

    found = constants(revision.text)

    is_text = not expression.endswith(("'%s %(name)s'", "::jsonb"))
    value = expression if is_text else f"CAST({expression} AS TEXT)"
    assert found["FILL_X"] == (
        f"\nUPDATE players.player\n   SET x = {expression}\n WHERE {{batch}}\n"
        f"   AND ({{sure}} AND x IS NULL\n        OR x IS DISTINCT FROM ({value}))\n"
    )


@few
@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0"))
    | st.text("'\"\\{}%:$\n\r x", max_size=12)
)
def test_any_text_in_a_literal_arrives_in_the_file_unchanged(samples: Database, text: str) -> None:
    expression = f"concat(full_name, {literal(text)})"

    found = constants(render(samples, filling(x=expression)).text)

    assert found["X"] == expression
    assert f"   SET x = {expression}\n" in found["FILL_X"]
    with samples.read_only() as connection:
        asked = f"SELECT {found['X']} FROM (VALUES ('')) AS t (full_name)"
        assert run(connection, asked).scalar_one() == text


def test_sqlalchemy_element_and_text_give_the_same_revision(samples: Database) -> None:
    element = sa.func.replace(sa.column("full_name"), "%:y", "it's")

    as_text = render(samples, filling(x="replace(full_name, '%:y', 'it''s')"))
    steps = (add_text("x"), backfill("players.player", {"x": element}))

    assert render(samples, Migration("fill", *steps)).id == as_text.id


def test_expression_is_written_once_and_referred_to(samples: Database) -> None:
    expression = "CASE\n    WHEN active THEN upper(full_name)\nEND"
    steps = (
        add_column("player", sa.Column("x", sa.String(50)), schema="players"),
        keep_in_step("players.player", {"x": expression}),
        backfill("players.player", {"x": expression}),
    )

    revision = render(samples, Migration("fill", *steps))

    assert revision.text.count("upper(full_name)") == 1
    assert " WHERE length(({X})::text) > 50\n" in revision.text


def test_short_expression_is_no_constant_of_its_own(samples: Database) -> None:
    found = constants(render(samples, filling(x="id", y="'?'")).text)

    assert {"X", "Y"} & set(found) == set()
    assert found["FILL_X_Y"] == (
        "\nUPDATE players.player\n   SET x = id,\n       y = '?'\n WHERE {batch}\n"
        "   AND ({sure} AND x IS NULL AND y IS NULL\n"
        "        OR (x, y) IS DISTINCT FROM (CAST(id AS TEXT), '?'))\n"
    )


def test_expression_that_is_part_of_another_leaves_it_whole(samples: Database) -> None:
    found = constants(
        render(samples, filling(x="upper(full_name)", y="concat(upper(full_name), 'x')")).text
    )

    assert found["X"] == "upper(full_name)"
    assert found["Y"] == "concat(upper(full_name), 'x')"
    assert (
        "SET x = upper(full_name),\n       y = concat(upper(full_name), 'x')\n" in found["FILL_X_Y"]
    )


def test_expression_is_referred_to_only_where_it_stands_whole(samples: Database) -> None:
    steps = filling(x="id + 1").steps
    conditions = ("(id + 1) < 0", "id + 10 < 0", "player_id + 1 < 0")
    checks = (rows_check(f"c{n}", "players.player", text) for n, text in enumerate(conditions))

    revision = render(samples, Migration("x", *steps, *checks))

    assert re.findall(r"(?m)^ WHERE (.* < 0)$", revision.text) == ["({X}) < 0", *conditions[1:]]


def test_constant_never_takes_a_name_of_the_machinery(samples: Database) -> None:
    names = ("attempts", "lock_timeout", "run", "passes", "first_batch_rows")

    found = constants(render(samples, filling(**dict.fromkeys(names, "upper(full_name)"))).text)

    taken = vars(inlined_sql) | vars(inlined_walk)
    for name in (name.upper() for name in names):
        assert found[name] == taken[name]


def test_column_without_a_letter_of_ascii_has_a_constant_all_the_same(samples: Database) -> None:
    found = constants(
        render(samples, filling(имя="upper(full_name)", **{"1st": "lower(full_name)"})).text
    )

    assert found["STATEMENT"] == "upper(full_name)"
    assert found["THE_1ST"] == "lower(full_name)"


def test_trigger_fires_for_the_columns_that_are_read(samples: Database) -> None:
    step = keep_in_step("players.player", {"x": "FULL_NAME || player.true_last_name || 'active'"})

    found = constants(render(samples, Migration("x", add_text("x"), step)).text)

    assert "\nBEFORE INSERT OR UPDATE OF full_name, true_last_name ON players" in found["TRIGGER"]


@pytest.mark.parametrize(
    ("steps", "given"),
    [
        ([("'A'", None)], "'A'"),
        ([("'A'", None), ("'B'", None)], "'B'"),
        (
            [("'A'", "active"), ("'B'", "id < 9\nOR id > 99")],
            "(CASE WHEN (id < 9\nOR id > 99) THEN 'B' WHEN (active) THEN 'A' ELSE NULL END)"
            "::CHAR(1)",
        ),
        ([("'A'", None), ("'B'", "active")], "(CASE WHEN (active) THEN 'B' ELSE 'A' END)::CHAR(1)"),
        ([("'A'", "active"), ("'B'", None)], "'B'"),
        (
            [("'A'", "active"), ("'T'", "trigger")],
            "(CASE WHEN (active) THEN 'A' ELSE 'T' END)::CHAR(1)",
        ),
        ([("'T'", "trigger"), ("'A'", None)], "'A'"),
        ([("'A'", None), ("'T'", "trigger")], "'A'"),
    ],
)
def test_downgrade_asks_for_what_the_last_backfill_of_a_row_gave(
    samples: Database, steps: list[tuple[str, str | None]], given: str
) -> None:
    column = add_column("player", sa.Column("x", sa.CHAR(1)), schema="players")
    made = (
        keep_in_step("players.player", {"x": text})
        if where == "trigger"
        else backfill("players.player", {"x": text}, where=where)
        for text, where in steps
    )

    revision = render(samples, Migration("x", column, *made))

    assert constants(revision.text)["X_NOT_EDITED_SINCE_THE_UPGRADE"] == (
        "\n-- x not edited since the upgrade\n"
        "SELECT id FROM players.player\n"
        " WHERE num_nonnulls(x) > 0\n"
        f"   AND x IS DISTINCT FROM ({given})\n"
        " ORDER BY id\n"
    )
    assert 'preflight("downgrade", X_NOT_EDITED_SINCE_THE_UPGRADE)' in revision.text


# ---------------------------------------------------------------- refusals

PLAYERS = "write one expression over the columns of players.player, no ';' or comment at its end"


@pytest.mark.parametrize(
    ("migration", "error", "message"),
    [
        (
            Migration("x", backfill("players.plyer", {"a": "1"})),
            UnknownTableError,
            "there is no table 'players.plyer'; did you mean 'players.player'?",
        ),
        (
            Migration("x", no_nulls("nowhere.at_all", "a")),
            UnknownTableError,
            "there is no table 'nowhere.at_all'; check schema and name",
        ),
        (
            Migration("x", backfill("players.player", {"a": "1"})),
            UnknownColumnError,
            "table 'players.player' has no column 'a'; use one of 'id', 'full_name',"
            " 'true_first_name', 'true_last_name', 'active'",
        ),
        (
            Migration("x", alter_column("player", "a", nullable=False, schema="players")),
            UnknownColumnError,
            "table 'players.player' has no column 'a'; use one of 'id', 'full_name',"
            " 'true_first_name', 'true_last_name', 'active'",
        ),
        (
            Migration("x", add_text("active")),
            MigrationError,
            "table 'players.player' has a column 'active' already; choose another name for the new"
            " one, or drop it if an earlier try left it",
        ),
        (
            filling(a="upper("),
            ExpressionError,
            f"the expression 'upper(' does not work: syntax error at or near \"FROM\"; {PLAYERS}",
        ),
        (
            filling(a="1; DROP TABLE x"),
            ExpressionError,
            "the expression '1; DROP TABLE x' does not work: syntax error at or near \";\";"
            f" {PLAYERS}",
        ),
        (
            filling(a="1) FROM pg_class; SELECT (2"),
            ExpressionError,
            "the expression '1) FROM pg_class; SELECT (2' does not work: syntax error at or"
            f' near ")"; {PLAYERS}',
        ),
        (
            filling(a="id) + (id"),
            ExpressionError,
            f"the expression 'id) + (id' does not work: syntax error at or near \")\"; {PLAYERS}",
        ),
        (
            filling(a="full_name -- as it is"),
            ExpressionError,
            "the expression 'full_name -- as it is' does not work: syntax error at end of input;"
            f" {PLAYERS}",
        ),
        (
            filling(a="full_name, id"),
            ExpressionError,
            "the expression 'full_name, id' does not work: it gives more than one value; give each"
            " column an expression of its own",
        ),
        (
            filling(a="(full_name, id)"),
            ExpressionError,
            "the expression '(full_name, id)' does not work: it gives more than one value; give"
            " each column an expression of its own",
        ),
        (
            filling(a="count(*)"),
            ExpressionError,
            "the expression 'count(*)' does not work: aggregate functions are not allowed in"
            f" WHERE; {PLAYERS}",
        ),
        (
            filling(a="row_number() OVER ()"),
            ExpressionError,
            "the expression 'row_number() OVER ()' does not work: window functions are not allowed"
            f" in WHERE; {PLAYERS}",
        ),
        (
            filling(a="nope"),
            ExpressionError,
            f"the expression 'nope' does not work: column \"nope\" does not exist; {PLAYERS}",
        ),
        (
            filling(a="$1"),
            ExpressionError,
            "the expression '$1' does not work: could not determine data type of parameter $1;"
            f" {PLAYERS}",
        ),
        (
            Migration("x", add_text("a"), backfill("players.player", {"a": "'b'"}, where="nope()")),
            ExpressionError,
            "the expression 'nope()' does not work: function nope() does not exist; " + PLAYERS,
        ),
        (
            Migration("x", backfill("players.player", {"id": "id + 1"})),
            MigrationError,
            "'id' is part of the key by which 'players.player' is walked; fill a new column, and"
            " make that one the key in a later migration; or put such rows in once more by"
            " insert_rows(), with their new key, and remove the old by delete_rows()",
        ),
        (
            Migration(
                "x",
                add_text("a", "flights", "flights"),
                backfill("flights.flights", {"a": "a || 'b'"}),
            ),
            MissingKeyError,
            "table 'flights.flights' has no primary key and no unique index over NOT NULL columns,"
            " so batches cannot resume; add one, for example with CREATE UNIQUE INDEX CONCURRENTLY",
        ),
    ],
)
def test_what_cannot_be_carried_out_is_refused_in_one_sentence(
    samples: Database, migration: Migration, error: type[DatamigError], message: str
) -> None:
    with pytest.raises((MigrationError, CatalogError)) as caught:
        render(samples, migration)

    assert type(caught.value) is error
    assert str(caught.value) == message


def test_generated_column_cannot_be_filled(database: Database) -> None:
    with database.engine.begin() as connection:
        run(
            connection, "CREATE TABLE t (id int PRIMARY KEY, a int GENERATED ALWAYS AS (id) STORED)"
        )

    with pytest.raises(MigrationError) as caught:
        render(database, Migration("x", backfill("t", {"a": "1"})))

    assert str(caught.value) == "column 'a' of 't' is generated; fill another column"


def test_column_that_is_called_like_its_table_is_no_whole_row(database: Database) -> None:
    with database.engine.begin() as connection:
        run(connection, "CREATE TABLE slug (id int PRIMARY KEY, slug text)")
    migration = Migration(
        "x",
        add_text("short", "slug", None),
        keep_in_step("slug", {"short": "left(slug, 9)"}),
        backfill("slug", {"short": "left(slug, 9)"}),
    )

    found = constants(render(database, migration).text)

    assert "\nBEFORE INSERT OR UPDATE OF slug ON slug\n" in found["TRIGGER"]


class Colour(sa.types.TypeDecorator[str]):
    """A type of the user's application."""

    impl = sa.Text
    cache_ok = True


def test_type_of_another_package_needs_no_import(samples: Database) -> None:
    step = add_column("player", sa.Column("colour", Colour()), schema="players")

    text = render(samples, Migration("x", step)).text

    assert 'step("ALTER TABLE players.player ADD COLUMN IF NOT EXISTS colour TEXT")' in text


# ---------------------------------------------------------------- the project


@pytest.mark.parametrize("head", ["bbb", "bb"])
def test_one_of_several_heads_is_followed_when_it_is_chosen(
    samples: Database, project: Path, head: str
) -> None:
    add_revision(project, "bbb", None)

    revision = render(samples, filling(a="'b'"), alembic=project, head=head)

    assert revision.down_revision == "bbb"


def test_several_heads_are_refused_until_one_is_chosen(samples: Database, project: Path) -> None:
    add_revision(project, "bbb", None)

    with pytest.raises(AlembicProjectError) as caught:
        render(samples, filling(a="'b'"), alembic=project)

    assert str(caught.value) == (
        "the project has several heads: aaa, bbb; choose one with head=, or merge them with"
        " 'alembic merge heads'"
    )


@pytest.mark.parametrize("head", ["ccc", "", "a"])
def test_what_is_not_one_head_is_refused(samples: Database, project: Path, head: str) -> None:
    add_revision(project, "abb", None)

    with pytest.raises(AlembicProjectError) as caught:
        render(samples, filling(a="'b'"), alembic=project, head=head)

    assert str(caught.value) == f"{head!r} is no head of the project; choose one of aaa, abb"


def test_missing_ini_is_refused(samples: Database, tmp_path: Path) -> None:
    ini = tmp_path / "alembic.ini"

    with pytest.raises(AlembicProjectError) as caught:
        render(samples, filling(a="'b'"), alembic=str(ini))

    assert str(caught.value) == (
        f"there is no file {str(ini)!r}; give the path of alembic.ini, or make a project with"
        " 'alembic init'"
    )


@pytest.mark.filterwarnings("ignore")  # as in a notebook, where they are overlooked
@pytest.mark.parametrize(
    ("revisions", "reason"),
    [
        (
            [("bbb", "gone")],
            "Revision gone referenced from gone -> bbb (head), is not present",
        ),
        ([("aaa", None)], "Revision aaa is present more than once"),
        ([("bbb", "ccc"), ("ccc", "bbb")], "Cycle is detected in revisions (bbb, ccc)"),
        ([("bbb", "bbb")], "Self-loop is detected in revisions (bbb)"),
    ],
)
def test_broken_history_is_refused(
    samples: Database, project: Path, revisions: list[tuple[str, str | None]], reason: str
) -> None:
    for id, down_revision in revisions:
        add_revision(project, id, down_revision)

    with pytest.raises(AlembicProjectError) as caught:
        render(samples, filling(a="'b'"), alembic=project)

    assert str(caught.value) == (
        f"the Alembic project {str(project)!r} cannot be read: {reason};"
        " make 'alembic heads' work first"
    )


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("def (", "invalid syntax"),
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
        ("nope", "name 'nope' is not defined"),
    ],
)
def test_revision_file_that_cannot_be_run_is_refused(
    samples: Database, project: Path, more: str, reason: str
) -> None:
    add_revision(project, "bbb", "aaa", more)

    with pytest.raises(AlembicProjectError, match=re.escape(f" cannot be read: {reason}")):
        render(samples, filling(a="'b'"), alembic=project)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("script_location", "scripts", "No 'script_location' key found in configuration;"),
        ("[alembic]", "[alembic", "File contains no section headers"),
        ("script_location = ", "script_location = %(x)s", "Bad value substitution"),
        ("script_location = ", "script_location = /nowhere", "Path doesn't exist: /nowhere"),
    ],
)
def test_broken_ini_is_refused(
    samples: Database, project: Path, old: str, new: str, reason: str
) -> None:
    text = project.read_text(encoding="utf-8").partition("\n[loggers]")[0]
    project.write_text(re.sub(r"(?m)^#.*\n", "", text).replace(old, new, 1), encoding="utf-8")

    with pytest.raises(AlembicProjectError) as caught:
        render(samples, filling(a="'b'"), alembic=project)

    assert reason in str(caught.value)
    assert str(caught.value).endswith("; make 'alembic heads' work first")
    assert "\n" not in str(caught.value)


def test_revision_that_is_in_the_project_already_is_refused(
    samples: Database, project: Path
) -> None:
    id = render(samples, filling(a="'b'"), alembic=project).id
    add_revision(project, id, None)

    with pytest.raises(AlembicProjectError) as caught:
        render(samples, filling(a="'b'"), alembic=project, head="aaa")

    assert str(caught.value) == (
        f"the project has revision {id} already, from the same migration; change the migration, or"
        " remove that file"
    )


@pytest.mark.parametrize(
    ("timezone", "offset"), [("UTC", "+00:00"), ("Asia/Tokyo", "+09:00"), ("", "")]
)
def test_create_date_is_in_the_time_zone_of_the_project(
    samples: Database, project: Path, timezone: str, offset: str
) -> None:
    set_options(project, f"timezone = {timezone}" if timezone else "")

    text = render(samples, filling(a="'b'"), alembic=project).text

    found = re.search(r"(?m)^Create Date: (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(.*)$", text)
    assert found is not None
    assert found[2] == offset
    zone = datetime.UTC if offset else None
    written = datetime.datetime.fromisoformat(found[1] + offset)
    assert abs(datetime.datetime.now(zone) - written) < datetime.timedelta(minutes=1)


def test_create_date_without_a_project_is_in_utc(samples: Database) -> None:
    assert re.search(r"(?m)^Create Date: \S+ \S+\+00:00$", render(samples, filling(a="'b'")).text)


def test_time_zone_that_is_none_is_refused(samples: Database, project: Path) -> None:
    set_options(project, "timezone = Mars/City")

    with pytest.raises(AlembicProjectError) as caught:
        render(samples, filling(a="'b'"), alembic=project)

    assert str(caught.value) == (
        "the time zone of the project cannot be used: Can't locate timezone: Mars/City; correct"
        " timezone in alembic.ini"
    )


HOOK = """\
import pathlib
import sys

path = pathlib.Path(sys.argv[1])
path.write_text(path.read_text(encoding="utf-8") + f"# {path}\\n", encoding="utf-8")
"""


def hook(ini: Path, command: str, options: str = "") -> None:
    set_options(
        ini,
        f"hooks = mine\nmine.type = exec\nmine.executable = {command}\n"
        f"mine.options = {options} REVISION_SCRIPT_FILENAME",
        section="post_write_hooks",
    )


def test_post_write_hooks_of_the_project_are_applied(
    samples: Database, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = render(samples, filling(a="'b'"), alembic=project)
    (tmp_path / "hook.py").write_text(HOOK, encoding="utf-8")
    hook(project, sys.executable, shlex.quote(str(tmp_path / "hook.py")))
    before = sorted(project.parent.rglob("*.py"))

    hooked = render(samples, filling(a="'b'"), alembic=project)

    assert hooked.id == plain.id
    assert undated(hooked.text).startswith(undated(plain.text))
    where = Path(hooked.text.splitlines()[-1].removeprefix("# "))
    assert where.name == f"{hooked.id}.py"
    assert project.parent in where.parents  # a formatter finds the settings of the project
    assert sorted(project.parent.rglob("*.py")) == before
    assert capsys.readouterr().out == ""


def test_post_write_hook_that_fails_is_named(samples: Database, project: Path) -> None:
    hook(project, "/nowhere/at/all")

    with pytest.raises(AlembicProjectError) as caught:
        render(samples, filling(a="'b'"), alembic=project)

    assert str(caught.value) == (
        "a post-write hook of the project failed: [Errno 2] No such file or directory:"
        " '/nowhere/at/all'; correct [post_write_hooks] in alembic.ini"
    )

"""What goes wrong is told in one sentence by an error of ours, with what to do and no password."""

from __future__ import annotations

import ast
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb import errors, samples
from datamig_nb.errors import (
    AlembicProjectError,
    ConnectionFailedError,
    DatamigError,
    ExportRefusedError,
    ExpressionError,
    MigrationError,
    MissingKeyError,
    PermissionDeniedError,
    QueryError,
    RehearsalError,
    UnknownColumnError,
    UnknownTableError,
)
from datamig_nb.server import ensure_server
from datamig_nb.steps import Backfill
from tests.scratch import query, session
from tests.second_server import running

PASSWORD = "c0rrect-h0rse"
PACKAGE, TESTS = Path(errors.__file__).parent, Path(__file__).parent

SPLIT = dm.split_column("players.player", "full_name")


@pytest.fixture(scope="module")
def url(server_home: Path) -> Iterator[sa.URL]:
    """A database behind a password, with roles that may do less and less.

    ``clerk`` reads the players, ``visitor`` two of their columns, ``stranger`` nothing.
    """
    assert server_home.is_dir()
    with running(ensure_server().binaries, PASSWORD) as found:
        database = dm.connect(found)
        with session(database) as connection:
            samples.load_players(connection)
            for role in ("clerk", "visitor", "stranger"):
                connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'".encode())
        query(
            database,
            """
            GRANT USAGE ON SCHEMA players TO clerk, visitor, stranger;
            GRANT SELECT ON players.player TO clerk;
            GRANT SELECT (id, full_name) ON players.player TO visitor;
            CREATE TABLE players.visit (at timestamptz, what text)
            """,
        )
        yield found


def filled(expression: str, table: str = "players.player", column: str = "n") -> dm.Migration:
    """A migration that adds a column and fills it."""
    name = table.removeprefix("players.")
    return dm.Migration(
        "fill a column",
        dm.add_column(name, sa.Column("n", sa.Text()), schema="players"),
        dm.backfill(table, {column: expression}),
        dm.no_nulls(table, column),
    )


def rehearsed_by(role: str) -> Callable[[sa.URL], object]:
    """The rehearsal, by a role, of a revision that another one rendered."""

    def rehearse(url: sa.URL) -> object:
        return dm.rehearse(dm.connect(url.set(username=role)), dm.render(dm.connect(url), SPLIT))

    return rehearse


def by(role: str, verb: Callable[[dm.Database], object]) -> Callable[[sa.URL], object]:
    return lambda url: verb(dm.connect(url.set(username=role)))


Case = tuple[str, Callable[[sa.URL], object], type[DatamigError], str, bool]

#: What was done; the error's class; its sentence, * for anything; whether the driver's is below.
CASES: tuple[Case, ...] = (
    (
        "wrong password",
        lambda url: dm.connect(url.set(password=f"not-{PASSWORD}")),
        ConnectionFailedError,
        "cannot connect to postgres at 127.0.0.1:*: password authentication failed for user"
        ' "postgres"; check user and password in the URL',
        True,
    ),
    (
        "wrong port",
        lambda url: dm.connect(url.set(port=1)),
        ConnectionFailedError,
        "cannot connect to postgres at 127.0.0.1:1: Connection refused;"
        " check host and port, and that the server runs",
        True,
    ),
    (
        "wrong system",
        lambda url: dm.connect(url.set(drivername="mysql")),
        ConnectionFailedError,
        "cannot connect to the database: 'mysql' is not PostgreSQL;"
        " give a URL that begins with postgresql://",
        False,
    ),
    *(
        (
            f"{verb.__name__}, missing table",
            by("postgres", lambda db, verb=verb, given=given: verb(db, given)),
            UnknownTableError,
            "there is no table 'players.plyer'; did you mean 'players.player', 'players.visit'?",
            False,
        )
        for verb, given in (
            (dm.profile, "players.plyer"),
            (dm.preview, filled("full_name", "players.plyer")),
            (dm.render, filled("full_name", "players.plyer")),
            (dm.validate, filled("full_name", "players.plyer")),
        )
    ),
    (
        "no table name",
        by("postgres", lambda db: dm.profile(db, "shop.players.player")),
        MigrationError,
        "'shop.players.player' is no table name;"
        " write 'table' or 'schema.table', without a database",
        False,
    ),
    *(
        (
            f"{verb.__name__}, {what}",
            by("postgres", lambda db, verb=verb, text=text: verb(db, filled(text))),
            ExpressionError,
            f"the expression {text!r} does not work: {reason}; write one expression over the"
            " columns of players.player, no ';' or comment at its end",
            True,
        )
        for verb in (dm.preview, dm.render)
        for what, text, reason in (
            ("missing column in an expression", "upper(nmae)", 'column "nmae" does not exist'),
            ("syntax error", "upper(full_name", 'syntax error at or near "*"'),
            (
                "two statements",
                "full_name; DROP SCHEMA players CASCADE",
                'syntax error at or near ";"',
            ),
        )
    ),
    *(
        (
            f"{verb.__name__}, missing column to fill",
            by("postgres", lambda db, verb=verb: verb(db, filled("full_name", column="nmae"))),
            UnknownColumnError,
            "table 'players.player' has no column 'nmae'; use one of 'id', 'full_name',"
            " 'true_first_name', 'true_last_name', 'active'",
            False,
        )
        for verb in (dm.preview, dm.render)
    ),
    (
        "validate, missing column in a check",
        by(
            "postgres",
            lambda db: dm.validate(db, dm.Migration("m", dm.no_nulls("players.player", "nmae"))),
        ),
        QueryError,
        "* failed: column *nmae* does not exist (SQLSTATE 42703);"
        " correct the SQL or the name and run it again",
        True,
    ),
    (
        "validate, not run yet",
        by("clerk", lambda db: dm.validate(db, SPLIT)),
        MigrationError,
        "table 'players.player' has no column 'first_name': the migration did not run here;"
        " run 'alembic upgrade head' on this database first",
        False,
    ),
    (
        "profile, nothing may be read",
        by("stranger", lambda db: dm.profile(db, "players.player")),
        PermissionDeniedError,
        "profiling players.player is not permitted: 'stranger' may not read id, full_name,"
        " true_first_name, true_last_name, active; ask for GRANT SELECT (id, full_name,"
        " true_first_name, true_last_name, active) ON players.player",
        False,
    ),
    (
        "profile, some columns may be read",
        by("visitor", lambda db: dm.profile(db, "players.player")),
        PermissionDeniedError,
        "profiling players.player is not permitted: 'visitor' may not read true_first_name,"
        " true_last_name, active; ask for GRANT SELECT (true_first_name, true_last_name, active)"
        " ON players.player",
        False,
    ),
    *(
        (
            f"{verb.__name__}, {role} may not read the column",
            by(role, lambda db, verb=verb: verb(db, filled("true_first_name"))),
            PermissionDeniedError,
            "reading the catalog for 'fill a column' is not permitted: permission denied for"
            f" table player; ask for the privilege for '{role}'",
            True,
        )
        for verb in (dm.preview, dm.render)
        for role in ("stranger", "visitor")
    ),
    (
        "validate, nothing may be read",
        by(
            "stranger",
            lambda db: dm.validate(db, dm.Migration("m", dm.no_nulls("players.player", "id"))),
        ),
        PermissionDeniedError,
        "* is not permitted: permission denied for table player;"
        " ask for the privilege for 'stranger'",
        True,
    ),
    (
        "rehearse, not all may be read",
        rehearsed_by("clerk"),
        RehearsalError,
        "the clone could not be made with pg_dump and pg_restore: pg_dump: error: *permission"
        ' denied for *; give the role the right to read all of it, or rehearse on="sample", which'
        " takes what it may read",
        False,
    ),
    (
        "render, no key",
        by("postgres", lambda db: dm.render(db, filled("n || what", "players.visit"))),
        MissingKeyError,
        "table 'players.visit' has no primary key and no unique index over NOT NULL columns, so"
        " batches cannot resume; add one, for example with CREATE UNIQUE INDEX CONCURRENTLY",
        False,
    ),
    (
        "preview, an expression that fails on a row",
        by("clerk", lambda db: dm.preview(db, filled("(1 / (id - 2397))::text"))),
        QueryError,
        "* failed: division by zero (SQLSTATE 22012); correct the SQL or the name and run it again",
        True,
    ),
    (
        "preview, too slow",
        by(
            "clerk",
            lambda db: dm.preview(db, filled("pg_sleep(60)::text"), timeout_seconds=0.2),
        ),
        QueryError,
        "* failed: canceling statement due to statement timeout (SQLSTATE 57014);"
        " give it longer with timeout_seconds=",
        True,
    ),
    (
        "render, no project",
        by("clerk", lambda db: dm.render(db, SPLIT, alembic="/nowhere/alembic.ini")),
        AlembicProjectError,
        "there is no file '/nowhere/alembic.ini'; give the path of alembic.ini, *",
        False,
    ),
    (
        "export, not rehearsed",
        by("clerk", lambda db: dm.export(dm.render(db, SPLIT))),
        ExportRefusedError,
        "not exported: revision * was not rehearsed; export(rehearse(db, revision))",
        False,
    ),
)


@pytest.mark.parametrize(
    ("act", "kind", "sentence", "has_cause"),
    [case[1:] for case in CASES],
    ids=[c[0] for c in CASES],
)
def test_what_goes_wrong_is_told_in_one_sentence_without_a_password(
    url: sa.URL,
    act: Callable[[sa.URL], object],
    kind: type[DatamigError],
    sentence: str,
    has_cause: bool,
) -> None:
    with pytest.raises(DatamigError) as raised:
        act(url)

    assert type(raised.value) is kind
    message = str(raised.value)
    wanted = ".*".join(map(re.escape, sentence.split("*")))
    assert re.fullmatch(wanted, message), message
    assert "; " in message  # what was found; what to do
    assert PASSWORD not in "".join(traceback.format_exception(raised.value)) + repr(raised.value)
    below = [raised.value.__cause__]
    while below[-1] is not None:
        below.append(below[-1].__cause__)
    assert any(isinstance(error, psycopg.Error) for error in below) == has_cause


def test_two_statements_in_an_expression_do_nothing(url: sa.URL) -> None:
    """They were refused above, not run."""
    assert query(dm.connect(url), "SELECT count(*) FROM players.player") == [5198]
    assert isinstance(filled("a; b").steps[1], Backfill)  # it is the database that refuses


# ---------------------------------------------------------------- the tree


def tree(kind: type[DatamigError], depth: int = 0) -> Iterator[str]:
    """The class and its subclasses as lines, each as deep as it stands."""
    yield f"{depth} {kind.__name__}"
    for under in kind.__subclasses__():
        if under.__module__ == errors.__name__:
            yield from tree(under, depth + 1)


def test_the_tree_in_the_docstring_is_the_tree_there_is() -> None:
    drawn = [
        f"{line.index(name[0]) // 4 - 1} {name[0]}"
        for line in (errors.__doc__ or "").splitlines()
        if (name := re.findall(r"\w+Error", line))
    ]

    assert drawn == list(tree(DatamigError))


def test_every_error_is_raised_by_the_package_and_met_by_a_test() -> None:
    leaves = {
        kind.__name__
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, DatamigError) and not kind.__subclasses__()
    }
    raised = {
        node.func.id
        for path in PACKAGE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    met = {case[2].__name__ for case in CASES}
    for path in TESTS.glob("test_*.py"):
        met |= set(re.findall(r"pytest\.raises\(\s*(\w+Error)\b", path.read_text(encoding="utf-8")))

    assert sorted(leaves - raised) == []
    assert sorted(leaves - met) == []


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_no_module_catches_everything(path: Path) -> None:
    """A bare ``except`` or ``except BaseException`` would hide what went wrong, and Ctrl-C."""
    handlers = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) == "BaseException")
    ]

    assert [node.lineno for node in handlers if not isinstance(node.body[-1], ast.Raise)] == []

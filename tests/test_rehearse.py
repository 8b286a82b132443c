"""A rehearsal runs the very file on a clone, believes nothing, and leaves the source alone."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from datamig_nb.checks import rows_check
from datamig_nb.clone import cloned
from datamig_nb.clones import PREFIX
from datamig_nb.database import Database
from datamig_nb.errors import RehearsalError
from datamig_nb.migration import Migration, Step
from datamig_nb.operations import add_column
from datamig_nb.patterns import split_column
from datamig_nb.rehearsal import Rehearsal
from datamig_nb.rehearse import rehearse
from datamig_nb.render import Revision, render
from datamig_nb.steps import backfill
from tests.alembic_project import make_project
from tests.scratch import query, scratch_database

SHOP = """
CREATE TABLE customer (id int PRIMARY KEY, full_name text, note text, score int);
INSERT INTO customer SELECT n, ' Ada   Love ' || n, 'note ' || n, n FROM generate_series(1, 300) n;
CREATE TABLE log (line text);
INSERT INTO log SELECT 'line ' || n FROM generate_series(1, 20) n;
CREATE SCHEMA app;
CREATE TABLE app.item (id int PRIMARY KEY, price int);
INSERT INTO app.item SELECT n, n FROM generate_series(1, 40) n;
CREATE TABLE sale (id int, year int, tax int, PRIMARY KEY (year, id)) PARTITION BY RANGE (year);
CREATE TABLE sale_2024 PARTITION OF sale FOR VALUES FROM (2024) TO (2025);
CREATE TABLE sale_rest PARTITION OF sale DEFAULT;
INSERT INTO sale SELECT n, 2023 + n % 3, n FROM generate_series(1, 60) n
"""

SPLIT = split_column("customer", "full_name")

STAGES = [
    "clone",
    "upgrade",
    "checks",
    "everything else unchanged",
    "downgrade",
    "equal to before",
    "upgrade again",
    "checks again",
]


@pytest.fixture(scope="module")
def shop(samples: Database) -> Iterator[Database]:
    """A small database, of which no rehearsal may change anything."""
    with scratch_database(samples) as made:
        query(made, SHOP)
        before = everything(made)
        yield made
        assert everything(made) == before  # nothing was changed by whatever failed or was stopped


def everything(database: Database) -> list[Any]:
    """What somebody sees who looks at the database and at its server from outside."""
    tables = ("customer", "log", "app.item", "sale")
    rows = [
        query(database, f"SELECT md5(string_agg(t::text, E'\\n' ORDER BY t::text)) FROM {table} t")
        for table in tables
    ]
    relations = query(
        database,
        "SELECT oid, relname, relfilenode, xmin::text FROM pg_class WHERE oid > 16383 ORDER BY oid",
    )
    schemas = query(database, "SELECT nspname FROM pg_namespace ORDER BY oid")
    databases = query(database, "SELECT datname FROM pg_database ORDER BY oid")
    return [rows, relations, schemas, databases]


@dataclasses.dataclass(frozen=True)
class Rehearsed:
    """A rehearsal with what was seen around it."""

    rehearsal: Rehearsal
    before: list[Any]
    after: list[Any]
    said: list[str]


@pytest.fixture(scope="module")
def good(shop: Database, tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    """A migration that is right, in a project that has a revision already."""
    project = make_project(tmp_path_factory.mktemp("good") / "project")
    project.add_plain("abcabc", "SELECT 1 / 0")  # a rehearsal begins behind it
    with_password = dataclasses.replace(shop, url=shop.url.set(password="s3cret"))
    before, said = everything(shop), list[str]()
    rehearsal = rehearse(
        with_password, render(with_password, SPLIT, alembic=project.ini), progress=said.append
    )
    return Rehearsed(rehearsal, before, everything(shop), said)


def of(database: Database, *steps: Step) -> Revision:
    """The revision of a migration that has these steps."""
    return render(database, Migration("try", *steps))


def edited(revision: Revision, old: str, new: str) -> Revision:
    """The revision as somebody edits its file."""
    assert revision.text.count(old) == 1, f"{old!r} is there {revision.text.count(old)} times"
    return dataclasses.replace(revision, text=revision.text.replace(old, new))


def without_downgrade(revision: Revision) -> Revision:
    """The revision with a downgrade as one finds it everywhere."""
    start, end = revision.text.index("def downgrade("), revision.text.index("\n\n\n# -------- SQL")
    text = revision.text
    return dataclasses.replace(
        revision, text=f"{text[:start]}def downgrade() -> None:\n    pass{text[end:]}"
    )


def outcomes(rehearsal: Rehearsal) -> list[tuple[str, bool]]:
    return [(stage.name, stage.passed) for stage in rehearsal.stages]


def clones(database: Database) -> list[str]:
    """The clones that are on the server."""
    names = f"SELECT datname FROM pg_database WHERE datname LIKE '{PREFIX}%'"
    return query(database.at("postgres"), names)


# ---------------------------------------------------------------- a revision that is right


def test_right_revision_goes_up_down_and_up_again(good: Rehearsed) -> None:
    rehearsal = good.rehearsal

    assert outcomes(rehearsal) == [(name, True) for name in STAGES]
    assert (rehearsal.passed, rehearsal.verdict) == (True, "lossless")
    assert rehearsal.summary == "passed, the way back is lossless"
    assert rehearsal.rows == 300
    assert rehearsal.validation is not None
    assert [(r.failing_rows, r.name) for r in rehearsal.validation.results] == [
        (0, "first_name and last_name hold every letter of full_name"),
        (0, "every name has a first_name"),
    ]


def test_revision_behind_another_one_is_rehearsed_without_that_one(good: Rehearsed) -> None:
    assert good.rehearsal.revision.down_revision == "abcabc"
    assert good.rehearsal.passed


def test_digest_is_that_of_the_bytes_that_ran(good: Rehearsed) -> None:
    bytes_run = good.rehearsal.revision.text.encode()

    assert good.rehearsal.digest == hashlib.sha256(bytes_run).hexdigest()


def test_source_is_not_touched(good: Rehearsed) -> None:
    assert good.after == good.before
    assert "datamig" not in good.after[2]


def test_each_stage_is_told_as_it_begins(good: Rehearsed) -> None:
    assert [line for line in good.said if line in STAGES] == STAGES


def test_password_is_not_shown(good: Rehearsed) -> None:
    rehearsal = good.rehearsal

    assert "s3cret" not in f"{rehearsal!r}{rehearsal.frame}{rehearsal.stages}{rehearsal.revision}"


def test_frame_and_text_have_a_row_for_each_stage(good: Rehearsed) -> None:
    rehearsal = good.rehearsal

    frame = rehearsal.frame
    assert list(frame.columns) == ["stage", "passed", "seconds", "detail"]
    assert list(frame["stage"]) == STAGES
    assert min(frame["seconds"]) > 0
    lines = repr(rehearsal).splitlines()
    assert lines[0] == (
        f"Rehearsal of {rehearsal.revision.id} (split full_name of customer into first_name and"
        " last_name): passed, the way back is lossless"
    )
    assert [line.split(" s  ")[1].partition(":")[0] for line in lines[1:]] == STAGES


# ---------------------------------------------------------------- revisions that are wrong


@pytest.fixture(scope="module")
def split(shop: Database) -> Revision:
    """The right revision, to be edited."""
    return render(shop, SPLIT)


def test_downgrade_that_does_nothing_is_found_out(shop: Database, split: Revision) -> None:
    rehearsal = rehearse(shop, without_downgrade(split))

    assert outcomes(rehearsal) == [*((name, True) for name in STAGES[:5]), (STAGES[5], False)]
    assert (rehearsal.passed, rehearsal.verdict) == (False, "lossy")
    assert rehearsal.summary.startswith(
        "FAILED at equal to before: differs from before: the schema"
    )
    assert "first_name text" in rehearsal.summary
    assert clones(shop) == []


def test_downgrade_that_loses_values_is_found_out_by_column(
    shop: Database, split: Revision
) -> None:
    lossy = edited(
        split,
        "        forget()\n",
        '        execute("UPDATE customer SET note = NULL WHERE id = 7")\n        forget()\n',
    )

    rehearsal = rehearse(shop, lossy)

    assert rehearsal.verdict == "lossy"
    assert rehearsal.summary == (
        "FAILED at equal to before: differs from before: public.customer.note in 1 row"
    )


def test_upgrade_that_changes_something_else_is_found_out(shop: Database, split: Revision) -> None:
    careless = edited(
        split,
        "        finish()\n",
        '        execute("UPDATE app.item SET price = 2 WHERE id = 1; DELETE FROM log WHERE'
        " line = 'line 7'\")\n        finish()\n",
    )

    rehearsal = rehearse(shop, careless)

    assert outcomes(rehearsal) == [*((name, True) for name in STAGES[:3]), (STAGES[3], False)]
    assert rehearsal.stages[-1].detail == (
        "differs from before: app.item.price in 1 row, the number of rows of public.log (was 20),"
        " public.log.row"
    )
    assert rehearsal.verdict == "not known"


def test_upgrade_that_drops_a_column_is_found_out(shop: Database, split: Revision) -> None:
    careless = edited(
        split,
        "        finish()\n",
        '        execute("ALTER TABLE app.item DROP COLUMN price")\n        finish()\n',
    )

    rehearsal = rehearse(shop, careless)

    assert outcomes(rehearsal)[-1] == ("everything else unchanged", False)
    assert rehearsal.summary.endswith("differs from before: app.item.price")


def test_check_that_fails_stops_the_upgrade_with_its_sentence(shop: Database) -> None:
    revision = of(
        shop,
        add_column("customer", sa.Column("half", sa.Integer())),
        backfill("customer", {"half": "id / 2"}),
        rows_check("every half is below 148", "customer", "half >= 148"),
    )

    rehearsal = rehearse(shop, revision)

    assert outcomes(rehearsal) == [("clone", True), ("upgrade", False)]
    assert rehearsal.stages[1].detail.startswith(
        f"{revision.id} stopped, for it requires: every half is below 148; 5 rows fail,"
        " the first (296"
    )
    assert (rehearsal.verdict, rehearsal.validation) == ("not known", None)
    assert clones(shop) == []


def test_statement_that_fails_is_told_without_its_traceback(
    shop: Database, split: Revision
) -> None:
    broken = edited(
        split, "        finish()\n", '        execute("SELECT 1/0")\n        finish()\n'
    )

    rehearsal = rehearse(shop, broken, faults=["kill", "full"])

    assert rehearsal.summary == (
        f"FAILED at upgrade: {broken.id} stopped: division by zero; run Alembic again, it goes on"
        " where it was"
    )
    assert [(fault.name, fault.passed, fault.happened) for fault in rehearsal.faults] == [
        ("kill", False, "not tried, since upgrade failed"),
        ("full", False, "not tried, since upgrade failed"),
    ]
    assert repr(rehearsal).endswith("full: not tried, since upgrade failed")


def test_file_that_is_no_python_fails_at_upgrade(shop: Database, split: Revision) -> None:
    broken = edited(split, "        finish()\n", "        finish(\n")

    rehearsal = rehearse(shop, broken)

    assert outcomes(rehearsal) == [("clone", True), ("upgrade", False)]
    assert rehearsal.stages[1].detail == "SyntaxError: '(' was never closed"


# ---------------------------------------------------------------- what cannot be undone


def test_backfill_of_a_column_that_was_there_is_irreversible_and_passes(shop: Database) -> None:
    # The table is named as the search path finds it; its own column is no change elsewhere.
    revision = of(
        shop,
        backfill("customer", {"score": "length(note)"}),
        rows_check("scores are lengths", "customer", "score <> length(note)"),
    )

    rehearsal = rehearse(shop, revision)

    assert outcomes(rehearsal) == [(name, True) for name in STAGES[:5]]
    assert rehearsal.stages[-1].detail == "refused, as the revision says"
    assert (rehearsal.passed, rehearsal.verdict, rehearsal.rows) == (True, "irreversible", 300)
    assert rehearsal.summary == "passed, the way back is irreversible"


def test_rows_of_partitions_are_counted_and_their_filled_column_may_change(shop: Database) -> None:
    rehearsal = rehearse(shop, of(shop, backfill("sale", {"tax": "year - 2000"})))

    assert (rehearsal.passed, rehearsal.rows) == (True, 60)
    assert rehearsal.stages[2].detail == "the migration has none"


def test_other_columns_of_partitions_must_not_change(shop: Database) -> None:
    revision = edited(
        of(shop, backfill("sale", {"tax": "year - 2000"})),
        "        finish()\n",
        '        execute("UPDATE sale SET id = id + 100 WHERE id < 3")\n        finish()\n',
    )

    rehearsal = rehearse(shop, revision)

    assert outcomes(rehearsal)[-1] == ("everything else unchanged", False)
    assert "public.sale_rest.id" in rehearsal.summary


# ---------------------------------------------------------------- the user's own project


STRAY = """\
        import os

        import psycopg
        import sqlalchemy as sa

        for address in (os.environ["SHOP_URL"], {dsn!r}):
            with sa.create_engine(address).begin() as stray:
                stray.execute(sa.text("UPDATE customer SET score = score + 1000"))
        with psycopg.connect() as stray:
            stray.execute("DELETE FROM log")
        finish()
"""


def test_revision_that_connects_by_itself_reaches_the_clone_only(
    shop: Database, split: Revision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_URL", shop.dsn)
    monkeypatch.setenv("PGDATABASE", str(shop.url.database))
    before = everything(shop)
    revision = edited(split, "        finish()\n", STRAY.format(dsn=shop.dsn))
    rehearsal = rehearse(shop, revision)

    assert rehearsal.summary == (
        "FAILED at everything else unchanged: differs from before: public.customer.score in 300"
        " rows, the number of rows of public.log (was 20), public.log.row"
    )
    assert everything(shop) == before


BY_HAND = """\
from pathlib import Path

from alembic import op

revision = "bbbbbb"
down_revision = "aaaaaa"


def upgrade():
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade():
    op.execute("ALTER TABLE customer DROP COLUMN loud")
"""


def test_file_of_a_project_is_rehearsed_in_it_unless_it_is_done(
    shop: Database, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project")
    project.add_plain("aaaaaa", "UPDATE customer SET score = 7")
    file = project.directory / "alembic" / "versions" / "bbbbbb_loud.py"
    file.write_text(BY_HAND)
    file.with_suffix(".sql").write_text("ALTER TABLE customer ADD COLUMN loud text DEFAULT 'LOUD'")

    rehearsal = rehearse(shop, file, checks=[rows_check("loud", "customer", "loud <> 'LOUD'")])

    assert rehearsal.passed, rehearsal.summary
    assert rehearsal.stages[0].detail.endswith("; stamped aaaaaa")
    with cloned(shop, "done") as done:
        assert project.alembic(done, "upgrade", "head").code == 0
        with pytest.raises(RehearsalError, match="the database has the revision bbbbbb already"):
            rehearse(done, file)


def test_clone_of_a_source_that_is_behind_is_brought_to_where_the_revision_begins(
    shop: Database, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project", "async")
    project.add_plain("aaaaaa", "SELECT 1 / 0")
    project.add_plain("bbbbbb", "UPDATE customer SET score = 7", down="aaaaaa")
    revision = render(shop, SPLIT, alembic=project.ini)
    files = sorted(project.directory.rglob("*"))

    with cloned(shop, "behind") as source:
        assert project.alembic(source, "stamp", "aaaaaa").code == 0
        files = sorted(project.directory.rglob("*"))
        rehearsal = rehearse(source, revision)

    assert rehearsal.passed, rehearsal.summary
    assert rehearsal.stages[0].detail == "copied by the server; upgraded from aaaaaa to bbbbbb"
    assert sorted(project.directory.rglob("*")) == files  # nothing is written there


def test_project_that_connects_elsewhere_is_refused_before_anything_runs(
    shop: Database, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project")
    project.env.write_text(RAW.format(dsn=_libpq(shop)) + project.env.read_text())
    before = everything(shop)

    with pytest.raises(RehearsalError, match=r"connects to another database.* by psycopg and an"):
        rehearse(shop, render(shop, SPLIT, alembic=project.ini))

    assert clones(shop) == []
    assert everything(shop) == before


# Each driver by its own name and address; the first that is let in has written.
RAW = """\
import asyncio

import asyncpg
import psycopg
import psycopg2

STATEMENT = "UPDATE customer SET score = -1"


async def by_asyncpg():
    session = await asyncpg.connect({dsn!r})
    await session.execute(STATEMENT)


async def by_psycopg():
    async with await psycopg.AsyncConnection.connect({dsn!r}, autocommit=True) as session:
        await session.execute(STATEMENT)


def by_psycopg2():
    session = psycopg2.connect({dsn!r})
    session.cursor().execute(STATEMENT)
    session.commit()


for attempt in (lambda: asyncio.run(by_asyncpg()), lambda: asyncio.run(by_psycopg()), by_psycopg2):
    try:
        attempt()
    except Exception as error:
        print(error)
with psycopg.connect({dsn!r}, autocommit=True) as session:
    session.execute(STATEMENT)
"""


def _libpq(database: Database) -> str:
    return database.url.set(drivername="postgresql").render_as_string(hide_password=False)


# ---------------------------------------------------------------- staging


def test_staging_is_written_only_when_that_is_said_and_left_upgraded(
    shop: Database, samples: Database, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project")
    revision = render(shop, SPLIT, alembic=project.ini)
    with scratch_database(samples, str(shop.url.database)) as staging:
        word = f"write to {staging.url.database}"
        before = everything(staging)
        with pytest.raises(RehearsalError, match=f"say confirm='{word}'"):
            rehearse(shop, revision, on=staging, confirm="yes")
        assert everything(staging) == before

        rehearsal = rehearse(shop, revision, on=staging.dsn, confirm=word)

        assert query(staging, "SELECT version_num FROM alembic_version") == [revision.id]
        assert query(staging, "SELECT count(last_name) FROM customer") == [300]
    assert (rehearsal.passed, rehearsal.on) == (True, "staging")
    assert [stage.name for stage in rehearsal.stages] == ["staging", *STAGES[1:]]
    with pytest.raises(RehearsalError, match="is the source itself"):
        rehearse(shop, revision, on=shop.dsn, confirm=f"write to {shop.url.database}")


# ---------------------------------------------------------------- when it cannot be carried out


def test_interrupt_kills_alembic_and_drops_the_clone(shop: Database, split: Revision) -> None:
    waiting = edited(
        split, "        finish()\n", '        execute("SELECT pg_sleep(600)")\n        finish()\n'
    )

    def interrupt(line: str) -> None:
        if "Running upgrade" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rehearse(shop, waiting, progress=interrupt)

    assert clones(shop) == []
    assert query(shop, "SELECT count(*) FROM pg_stat_activity WHERE datname LIKE '%clone%'") == [0]


@pytest.mark.parametrize("end", [KeyboardInterrupt, ValueError])
def test_clone_is_gone_when_the_rehearsal_is_interrupted(
    shop: Database, split: Revision, end: type[BaseException]
) -> None:
    seen: list[list[str]] = []

    def interrupt(stage: str) -> None:
        if stage == "upgrade":
            seen.append(clones(shop))
            raise end(stage)

    with pytest.raises(end):
        rehearse(shop, split, progress=interrupt)

    assert [len(names) for names in seen] == [1]
    assert clones(shop) == []


def test_settings_of_the_database_hold_in_the_rehearsal(
    make_database: Callable[[str], Database],
) -> None:
    database = make_database("template0")
    query(
        database,
        f"""
        CREATE SCHEMA app;
        CREATE TABLE app.item (id int PRIMARY KEY, price int);
        INSERT INTO app.item VALUES (1, 10);
        ALTER DATABASE {database.url.database} SET search_path = app
        """,
    )

    rehearsal = rehearse(
        database,
        of(
            database,
            add_column("item", sa.Column("gross", sa.Integer())),
            backfill("item", {"gross": "price * 2"}),
        ),
    )

    assert (rehearsal.passed, rehearsal.rows) == (True, 1), rehearsal.summary

"""A step that computes in Python, the whole way from a migration to a table that holds it."""

from __future__ import annotations

import hashlib
import re
import signal
import time
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from datamig_nb import inlined_transform
from datamig_nb.checks import no_nulls
from datamig_nb.database import Database
from datamig_nb.errors import MigrationError, MissingKeyError
from datamig_nb.export import export
from datamig_nb.html_pages import page
from datamig_nb.migration import Migration
from datamig_nb.operations import add_column, alter_column
from datamig_nb.preview import preview
from datamig_nb.rehearse import rehearse
from datamig_nb.render import render
from datamig_nb.steps import backfill
from datamig_nb.transforms import transform
from datamig_nb.validate import validate
from datamig_nb.watch import cancel, pause, resume, runs
from datamig_nb.wrapping import with_backup
from tests.alembic_project import AlembicProject
from tests.runs import ok, scanned, wait_until
from tests.scratch import query

ROWS = 10_000
SMALL = {"FIRST_BATCH_ROWS": 20, "TRANSFORM_SECONDS": 0.0001}  # batches of 10 rows

# Every seventh is NULL; four spaces become two when a pair becomes one, once through the text.
MAKE = f"""
CREATE TABLE large_table (id bigint PRIMARY KEY, old_data_field text, untouched text);
INSERT INTO large_table
SELECT n, CASE WHEN n % 7 > 0 THEN '  A  Text    of ' || md5(n::text) || ' Ä ' END, n
  FROM generate_series(1, {ROWS}) AS n;
ANALYZE large_table
"""
EXPECTED = "replace(lower(btrim(old_data_field)), '  ', ' ')"
WRONG = f"""
SELECT id FROM large_table
 WHERE new_data_field IS DISTINCT FROM {EXPECTED}
    OR data_checksum IS DISTINCT FROM encode(sha256(convert_to({EXPECTED}, 'UTF8')), 'hex')
"""
PAIR = "  "


def transform_record(data: str | None) -> str | None:
    """The function of the guide's bulk pattern."""
    return data.strip().lower().replace(PAIR, " ") if isinstance(data, str) else data


def bulk(**how: object) -> Migration:
    """The bulk pattern of the guide as a migration."""
    given = {"reads": ["old_data_field"], "writes": ["new_data_field"], **how}
    return Migration(
        "Clean the large table",
        add_column("large_table", sa.Column("new_data_field", sa.Text())),
        add_column("large_table", sa.Column("data_checksum", sa.String(64))),
        transform("large_table", transform_record, checksum="data_checksum", **given),
    )


def same(value: object) -> object:
    return value


@pytest.fixture
def large(database: Database) -> Database:
    """A database with the guide's large table."""
    query(database, MAKE)
    return database


# ---------------------------------------------------------------- the whole way


def test_a_transform_goes_the_whole_way_from_render_to_validate(
    large: Database, project: AlembicProject
) -> None:
    migration = bulk()
    revision = render(large, migration, alembic=project.ini)
    rehearsal = rehearse(large, revision)
    exported = export(rehearsal)

    outcome = ok(project.alembic(large, "upgrade", "head"))

    assert (rehearsal.passed, rehearsal.verdict) == (True, "lossless")
    assert rehearsal.rows == ROWS
    assert exported.path.exists()
    assert query(large, WRONG) == []
    first = query(large, "SELECT old_data_field, new_data_field FROM large_table WHERE id = 1")
    digest = "c4ca4238a0b923820dcc509a6f75849b"
    assert first == [(f"  A  Text    of {digest} Ä ", f"a text  of {digest} ä")]
    assert query(large, "SELECT count(new_data_field) FROM large_table") == [ROWS - ROWS // 7]
    assert validate(large, migration).passed
    assert "checked: data_checksum of large_table is the SHA-256 of new_data_field" in outcome.log
    assert query(large, "SELECT count(*) FROM datamig.own_transaction") == [0]

    ok(project.alembic(large, "downgrade", "base"))
    columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'large_table'"
    assert query(large, columns) == [3]


def test_a_value_that_differs_from_its_checksum_stops_the_downgrade_and_the_validation(
    large: Database, project: AlembicProject
) -> None:
    migration = bulk()
    project.add(render(large, migration))
    ok(project.alembic(large, "upgrade", "head"))
    query(large, "UPDATE large_table SET new_data_field = 'edited' WHERE id = 5")

    report = validate(large, migration)
    refused = project.alembic(large, "downgrade", "base")

    assert not report.passed
    assert "new_data_field of large_table not edited since the upgrade; 1 rows fail" in (
        refused.sentence
    )


def test_a_checksum_that_does_not_hold_stops_the_upgrade_before_what_follows(
    large: Database, project: AlembicProject
) -> None:
    """A trigger changes what is written, as triggers do."""
    query(
        large,
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " IF NEW.id = 9 THEN NEW.new_data_field := upper(NEW.new_data_field); END IF;"
        " RETURN NEW; END$$;"
        "CREATE TRIGGER shout BEFORE UPDATE ON large_table FOR EACH ROW EXECUTE FUNCTION shout()",
    )
    project.add(render(large, bulk()))

    stopped = project.alembic(large, "upgrade", "head")

    assert "the SHA-256 of new_data_field; 1 rows fail, the first (9)" in stopped.sentence
    query(large, "DROP TRIGGER shout ON large_table")
    query(large, "UPDATE large_table SET old_data_field = old_data_field WHERE id = 9")
    ok(project.alembic(large, "upgrade", "head"))
    assert query(large, WRONG) == []


def test_existing_columns_cannot_be_taken_back_and_the_file_says_so(large: Database) -> None:
    into_old = transform("large_table", same, reads=["id"], writes=["untouched"])

    revision = render(large, Migration("Overwrite", into_old))

    assert "raises: untouched of large_table held values that were not kept." in revision.text
    assert "raise RuntimeError(" in revision.story


def doubled(price: Decimal, note: Any) -> tuple[Decimal, Any]:
    return price * 2, {"was": str(price), **(note or {})}


def test_what_a_function_overwrites_comes_back_where_nobody_edited_it_since(
    database: Database, project: AlembicProject
) -> None:
    """Killed in the middle, while others write the old form, on a partitioned table."""
    query(
        database,
        'CREATE TABLE "Item" (shop int, "Key" uuid DEFAULT gen_random_uuid(), n int, price numeric,'
        ' note jsonb, PRIMARY KEY (shop, "Key")) PARTITION BY LIST (shop);'
        'CREATE TABLE item_1 PARTITION OF "Item" FOR VALUES IN (1);'
        'CREATE TABLE item_2 PARTITION OF "Item" FOR VALUES IN (2);'
        'INSERT INTO "Item" (shop, n, price, note)'
        " SELECT 1 + n % 2, n, n + 0.50, CASE WHEN n % 3 > 0 THEN jsonb_build_object('n', n) END"
        '  FROM generate_series(1, 2000) AS n; ANALYZE "Item"',
    )
    rows = """SELECT n, price, note::text FROM "Item" ORDER BY n"""
    before = query(database, rows)
    old = {n: price for n, price, _ in before}
    step = transform("Item", doubled, reads=["price", "note"], writes=["price", "note"])
    project.add(render(database, with_backup(Migration("Double", step))), SMALL)

    with project.start(database, "upgrade", "head") as running:
        wait_until(lambda: scanned(database) > 1000)
        running.kill(signal.SIGKILL)
    done = """SELECT n FROM "Item" WHERE note ? 'was' ORDER BY n"""
    written, edited = query(database, done)[:2]
    query(database, f'UPDATE "Item" SET price = 7, note = NULL WHERE n = {written}')
    ok(project.alembic(database, "upgrade", "head"))
    new = {n: price for n, price, _ in query(database, rows)}
    assert new == {n: price * 2 for n, price in old.items()} | {written: 14}
    query(database, f"""UPDATE "Item" SET price = 1 WHERE n = {edited}""")
    ok(project.alembic(database, "downgrade", "base"))

    wanted = {n: (price, note) for n, price, note in before} | {written: (7, None)}
    wanted[edited] = (1, wanted[edited][1])  # its note was still the one that was written
    assert {n: (price, note) for n, price, note in query(database, rows)} == wanted
    values = "before ->> 'price', after ->> 'price', found ->> 'price'"
    assert query(database, f"SELECT {values} FROM datamig.conflict") == [
        (str(old[edited]), str(new[edited]), "1")
    ]


# ---------------------------------------------------------------- stopped and steered


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_killed_twice_it_ends_as_if_it_had_never_been(
    large: Database, project: AlembicProject, *, processes: bool
) -> None:
    project.add(render(large, bulk(processes=processes)), {**SMALL, "PARTED_PAGES": 1})
    for share in (0.2, 0.5):
        with project.start(large, "upgrade", "head") as running:
            wait_until(lambda enough=ROWS * share: scanned(large) > enough)
            running.kill(signal.SIGKILL)
            assert running.end().code == -signal.SIGKILL
    assert scanned(large) < ROWS

    ok(project.alembic(large, "upgrade", "head"))

    assert query(large, WRONG) == []
    assert scanned(large) == ROWS


def test_pause_resume_and_cancel_are_obeyed(large: Database, project: AlembicProject) -> None:
    revision = render(large, bulk())
    project.add(revision, {**SMALL, "PARTED_PAGES": 1})
    with project.start(large, "upgrade", "head") as running:
        wait_until(lambda: scanned(large) > ROWS / 5)
        pause(large, revision.id)
        before = scanned(large)
        time.sleep(1.2)
        rested = scanned(large)
        said = {state.status for state in runs(large, revision.id).states}
        resume(large, revision.id)
        wait_until(lambda: scanned(large) > before)
        cancel(large, revision.id)
        stopped = running.end()

    assert before == rested < ROWS
    assert said == {"paused"}
    assert "was cancelled at 'compute new_data_field, data_checksum'" in stopped.sentence
    ok(project.alembic(large, "upgrade", "head"))
    assert query(large, WRONG) == []


def test_rows_that_others_write_meanwhile_are_computed_too(
    large: Database, project: AlembicProject
) -> None:
    project.add(render(large, bulk()), {**SMALL, "PARTED_PAGES": 1})
    with project.start(large, "upgrade", "head") as running:
        wait_until(lambda: scanned(large) > ROWS / 2)
        for id in (1, 5_000, 9_999):
            query(large, f"UPDATE large_table SET old_data_field = ' New  {id} ' WHERE id = {id}")
        query(large, f"INSERT INTO large_table VALUES (0, ' Late ', ''), ({ROWS + 1}, ' Z ', '')")
        ok(running.end())

    assert query(large, WRONG) == []


# ---------------------------------------------------------------- before the first write

UNREADABLE = {
    "date": ["infinity", "-infinity", "0044-03-15 BC", "10000-01-01"],
    "timestamp": ["infinity", "0044-03-15 BC", "10000-01-01"],
    "timestamptz": ["infinity", "-infinity", "0044-03-15 BC", "10000-01-01"],
    "time": ["24:00"],
    "timetz": ["24:00+02"],
    "json": [" null "],
    "jsonb": ["null"],
    "integer[]": ["[0:1]={1,2}"],
    "date[]": ["{2024-01-01,infinity}"],
    "jsonb[]": ['{{"1","2"}}', '{"null"}'],
    "day": ["infinity"],
    "day[]": ["{infinity}"],
}


def test_values_that_python_cannot_hold_are_named_before_the_first_write(
    database: Database, project: AlembicProject
) -> None:
    query(database, "CREATE DOMAIN day AS date")
    columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(UNREADABLE))
    query(database, f"CREATE TABLE odd (id serial PRIMARY KEY, {columns}, b text)")
    query(database, "INSERT INTO odd DEFAULT VALUES")
    for n, values in enumerate(UNREADABLE.values()):
        listed = ", ".join(f"('{value}')" for value in values)
        query(database, f"INSERT INTO odd (c{n}) VALUES {listed}")
    found: dict[str, int] = {}
    for n, kind in enumerate(UNREADABLE):
        step = transform("odd", same, reads=[f"c{n}"], writes=["b"])
        hazards = preview(database, Migration("Copy", step)).hazards
        found[kind] = sum(hazard.rows for hazard in hazards if hazard.severity == "stops")
    project.add(render(database, Migration("Copy", step)))

    refused = project.alembic(database, "upgrade", "head")

    assert found == {kind: len(values) for kind, values in UNREADABLE.items()}
    assert "requires: Python can hold every c11 of odd" in refused.sentence


def test_what_it_names_must_be_there(large: Database) -> None:
    query(large, "CREATE TABLE keyless (a text, b text)")
    for given, message in {
        ("large_table", "old_data_field", "missing"): "missing",
        ("large_table", "nowhere", "untouched"): "nowhere",
        ("large_table", "untouched", "id"): "is part of the key",
    }.items():
        table, read, write = given
        with pytest.raises(Exception, match=message):
            render(large, Migration("M", transform(table, same, reads=[read], writes=[write])))
    with pytest.raises(MissingKeyError):
        render(large, Migration("M", transform("keyless", same, reads=["a"], writes=["b"])))


def test_a_script_is_refused_in_one_sentence_before_its_first_statement(
    large: Database, project: AlembicProject
) -> None:
    revision = render(large, bulk())
    project.add(revision)

    refused = project.alembic(large, "upgrade", "head", "--sql")

    assert refused.sentence == (
        f"{revision.id} computes in Python, which no script can; run without --sql"
    )
    assert "datamig" not in refused.log.partition("Traceback")[0].partition("BEGIN")[2]


def test_a_preview_says_that_python_computes_and_predicts_nothing_of_it(large: Database) -> None:
    steps = bulk().steps
    migration = Migration(
        "Clean",
        *steps,
        backfill("large_table", {"untouched": "upper(untouched)"}),
        no_nulls("large_table", "new_data_field"),
        alter_column("large_table", "data_checksum", nullable=False),
    )

    found = preview(large, migration)

    assert [(hazard.severity, hazard.what) for hazard in found.hazards] == [
        (
            "note",
            "Python computes new_data_field and data_checksum of large_table, which is not"
            " previewed",
        )
    ]


# ---------------------------------------------------------------- the file


def shout(note: str) -> str:
    digest = hashlib.sha256(note.encode()).hexdigest()
    return re.sub(r"\s+", " ", note).upper() + digest


def test_the_file_holds_the_function_under_its_own_heading_and_what_it_needs(
    large: Database,
) -> None:
    step = transform(
        "large_table", shout, reads=["untouched"], writes=["shouted"], requires=["pandas"]
    )
    revision = render(
        large, Migration("Shout", add_column("large_table", sa.Column("shouted", sa.Text())), step)
    )

    order = [
        "drops shouted of large_table, whatever was written there since; nothing else was changed.",
        "Alembic must be connected, --sql is refused",
        "Written by datamig_nb; needs Alembic, pandas and PostgreSQL 14 or newer, nothing else.",
        "import hashlib\n",
        "import re\n",
        "def upgrade() -> None:",
        "    online_only()\n    with own_commits():",
        "# -------- Python\n\n\ndef shout(note: str) -> str:\n    digest",
        "# -------- functions",
        "def transform(name: str",
    ]
    places = [revision.text.index(words) for words in order]
    assert places == sorted(places)
    assert "def in_processes(" not in revision.text
    assert "def by_series(" not in revision.text
    assert "def walk(" not in revision.text
    assert "def of_any_type(" not in revision.text
    assert len(revision.text.splitlines()) < 1_000
    assert "def shout(note: str)" in page(revision.migration)


def test_a_migration_without_a_transform_gets_nothing_of_its_machinery(large: Database) -> None:
    revision = render(large, Migration("M", backfill("large_table", {"untouched": "'x'"})))

    own = re.findall(r"^(?:def|class) (\w+)", revision.text, re.MULTILINE)
    assert [name for name in own if name in vars(inlined_transform) and name in OWN] == []
    assert "own_transaction" not in revision.text


OWN = {"online_only", "transform", "walk_part", "one_batch", "Job", "computed", "Kind", "writer"}


def test_a_function_named_as_something_of_the_file_is_refused(large: Database) -> None:
    def quoted(value: str) -> str:
        return value

    step = transform("large_table", quoted, reads=["untouched"], writes=["untouched"])
    with pytest.raises(MigrationError, match="quoted of the function quoted\\(\\) is a name that"):
        render(large, Migration("M", step))


def test_a_vectorised_function_with_a_limit_of_rows_set_aside_is_written_so(
    large: Database,
) -> None:
    step = transform(
        "large_table",
        same,
        reads=["id"],
        writes=["untouched"],
        requires=["pandas"],
        vectorized=True,
        workers=3,
        processes=True,
        on_error="quarantine",
        quarantine_limit=7,
        where="id > 3",
    )
    revision = render(large, Migration("M", step))

    assert revision.story.split("transform(\n")[1].split("        )\n")[0] == (
        '            "compute untouched",\n'
        '            "large_table",\n'
        "            same,\n"
        '            key=("id",),\n'
        '            reads=("id",),\n'
        '            writes=("untouched",),\n'
        '            where="id > 3",\n'
        "            workers=3,\n"
        "            at_once=in_processes,\n"
        "            kinds=of_any_type,\n"
        "            computes=by_series,\n"
        "            set_aside=set_aside,\n"
        "            quarantine_rows=7,\n"
    )

"""One migration in three revisions, days apart: expand, migrate, contract."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.errors import MigrationError
from datamig_nb.migration import Step, describe
from datamig_nb.phases import Phase
from tests.alembic_project import AlembicProject
from tests.journeys import contents
from tests.runs import ok, version
from tests.scratch import query

PHASES: tuple[Phase, ...] = ("expand", "migrate", "contract")
SPLIT = dm.split_column("guide.user", "full_name", nullable=False)
EXTRACT = dm.extract_table(
    "guide.category",
    "guide.category_new",
    children={"guide.task": "category_id"},
    parent="parent_id",
    unnamed="category",
)


def shout(title: str | None) -> str | None:
    return None if title is None else title.upper()


def steps_of(revision: dm.Revision) -> list[str]:
    return [describe(step) for step in revision.migration.steps]


def add(database: Database, project: AlembicProject, migration: dm.Migration, phase: Phase) -> str:
    revision = dm.render(database, migration, alembic=project.ini, phase=phase)
    project.add(revision)
    return revision.id


def nameless(database: Database) -> str:
    """Give everybody a name; condition for the first user."""
    rename = "UPDATE guide.\"user\" SET full_name = 'No Name'"
    query(database, f"{rename} WHERE full_name IS NULL OR full_name !~ '[[:alpha:]]'")
    (key,) = query(database, 'SELECT min(id) FROM guide."user"')
    return f"id = {key}"


def test_a_split_is_rendered_as_what_is_added_what_is_filled_and_what_constrains(
    guide: Database,
) -> None:
    expand, migrate, contract = (dm.render(guide, SPLIT, phase=phase) for phase in PHASES)

    assert steps_of(expand) == [
        "add the column first_name TEXT to guide.user",
        "add the column last_name TEXT to guide.user",
        "keep first_name and last_name of guide.user in step with a trigger",
    ]
    gate = "is done, for which 'alembic upgrade' or 'datamig-nb work' is to be run"
    checks = [
        "first_name and last_name hold every letter of full_name",
        "every name has a first_name",
        "first_name of guide.user without NULL",
    ]
    assert steps_of(migrate) == [
        f"check first: expand {gate}",
        "fill first_name and last_name of guide.user, every row, in batches",
        *(f"check that: {name}" for name in checks),
    ]
    assert steps_of(contract) == [
        f"check first: migrate {gate}",
        *(f"check first: {name}" for name in checks),
        "make first_name of guide.user NOT NULL, without a long lock",
    ]


def test_tables_and_columns_come_first_and_what_is_taken_away_comes_last(guide: Database) -> None:
    expand, _, contract = (dm.render(guide, EXTRACT, phase=phase) for phase in PHASES)

    assert steps_of(expand) == [
        "create the table guide.category_new with id, name, slug and parent_id",
        "add the column category_id_new integer to guide.task",
    ]
    assert [step.partition(" ")[0] for step in steps_of(contract)] == [
        *("check", "check", "check", "check"),  # the gate, and what migrate checked
        *("build", "add", "drop", "let", "build", "add"),
    ]


def test_three_files_go_up_and_down_one_by_one_beside_an_application(
    guide: Database, project: AlembicProject
) -> None:
    first = nameless(guide)
    ids = [add(guide, project, SPLIT, phase) for phase in PHASES]  # before any of them ran
    names, states = [f"Ada {phase.title()} Lovelace" for phase in PHASES], list[object]()
    rename = "UPDATE guide.\"user\" SET full_name = '{}' WHERE " + first

    for id, name in zip(ids, names, strict=True):
        query(guide, rename.format(name))
        states.append(contents(guide))
        if id == ids[-1]:
            query(guide, f'UPDATE guide."user" SET first_name = NULL WHERE {first}')
            refused = project.alembic(guide, "upgrade", "+1")
            assert (
                "requires: first_name and last_name hold every letter of full_name; 1 rows"
                in refused.sentence
            )
            assert version(guide) == [ids[1]]
            query(guide, f"UPDATE guide.\"user\" SET first_name = 'Ada' WHERE {first}")
        ok(project.alembic(guide, "upgrade", "+1"))
        assert version(guide) == [id]

    found = query(guide, f'SELECT first_name, last_name FROM guide."user" WHERE {first}')
    assert found == [("Ada", "Contract Lovelace")]
    assert guide.table("guide.user").column("first_name").not_null
    for name, state in zip(reversed(names), reversed(states), strict=True):
        query(guide, rename.format(name))
        ok(project.alembic(guide, "downgrade", "-1"))
        assert contents(guide) == state, name


def test_each_file_of_an_extraction_is_rendered_and_rehearsed_where_those_before_it_ran(
    guide: Database, project: AlembicProject
) -> None:
    states = list[object]()
    values = "SELECT max(id) + 1, 30, 'written meanwhile' FROM guide.task"
    insert = f"INSERT INTO guide.task (id, category_id, title) {values}"
    for phase in PHASES:
        revision = dm.render(guide, EXTRACT, alembic=project.ini, phase=phase)
        if phase != "expand":
            rehearsal = dm.rehearse(guide, revision)
            assert rehearsal.passed, rehearsal
            assert rehearsal.verdict == "lossless with backup"
        project.add(revision)
        query(guide, insert)
        states.append(contents(guide))
        ok(project.alembic(guide, "upgrade", "head"))
    ours = "WHERE title = 'written meanwhile'"
    assert query(guide, f"SELECT count(*), count(category_id) FROM guide.task {ours}") == [(3, 3)]
    for state in reversed(states):
        ok(project.alembic(guide, "downgrade", "-1"))
        assert contents(guide) == state
        query(guide, "DELETE FROM guide.task WHERE id = (SELECT max(id) FROM guide.task)")


def test_values_that_python_computed_in_an_earlier_phases_column_go_again(
    guide: Database, project: AlembicProject
) -> None:
    column = dm.add_column("task", sa.Column("loud", sa.Text()), schema="guide")
    step = dm.transform("guide.task", shout, reads=["title"], writes=["loud"])
    migration = dm.Migration("loud titles", column, step)
    states = list[object]()
    for phase in PHASES[:2]:
        add(guide, project, migration, phase)
        states.append(contents(guide))
        ok(project.alembic(guide, "upgrade", "head"))
    assert query(
        guide, "SELECT count(*) FROM guide.task WHERE loud IS DISTINCT FROM upper(title)"
    ) == [0]
    for state in reversed(states):
        ok(project.alembic(guide, "downgrade", "-1"))
        assert contents(guide) == state


def test_later_files_are_rehearsed_in_a_project_whose_earlier_ones_did_not_run_yet(
    guide: Database, project: AlembicProject
) -> None:
    nameless(guide)
    verdicts = list[str]()
    for phase in PHASES:
        revision = dm.render(guide, SPLIT, alembic=project.ini, phase=phase)
        rehearsal = dm.rehearse(guide, revision)
        assert rehearsal.passed, rehearsal
        dm.export(rehearsal)
        verdicts.append(rehearsal.verdict)
    assert verdicts == ["lossless", "lossless with backup", "lossless"]


def test_without_a_project_a_later_phase_says_what_must_run_first(guide: Database) -> None:
    expand = dm.render(guide, SPLIT, phase="expand")
    migrate = dm.render(guide, SPLIT, phase="migrate", head=expand.id)

    rehearsal = dm.rehearse(guide, migrate)

    assert migrate.down_revision == expand.id
    assert "stopped, for it requires: expand is done, for which 'alembic upg" in rehearsal.summary


@pytest.mark.parametrize(
    ("steps", "phase", "message"),
    [
        (
            (
                dm.drop_column("task", "title", schema="guide"),
                dm.add_column("task", sa.Column("title", sa.Integer()), schema="guide"),
                dm.backfill("guide.task", {"title": "user_id"}),
            ),
            "migrate",
            r"'m' cannot be split: step 1 \(drop the column title of guide.task, values and all\)"
            r" belongs to contract, but step 3 \(fill title of guide.task, every row, in batches\)"
            " stands behind it; let the one that changes rows stand first, or render it all as one",
        ),
        (
            (dm.backfill("guide.task", {"title": "'x'"}),),
            "contract",
            "'m' has nothing to contract; render its other phases alone",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(
    guide: Database, steps: tuple[Step, ...], phase: Phase, message: str
) -> None:
    with pytest.raises(MigrationError, match=message):
        dm.render(guide, dm.Migration("m", *steps), phase=phase)

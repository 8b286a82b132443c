"""A sample is whole in itself, holds what is odd, and says what it could not read."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamig_nb.database import Database
from datamig_nb.errors import RehearsalError
from datamig_nb.patterns import split_column
from datamig_nb.rehearse import rehearse
from datamig_nb.render import render
from datamig_nb.server_setup import binaries
from datamig_nb.subset import sampled
from tests.scratch import query, scratch_database

CHINOOK = Path(__file__).parents[2] / "shared" / "databases" / "chinook" / "load.sh"

# Keys of two columns, a table that refers to itself, two that refer to each other, partitions.
COMPANY = r"""
CREATE TABLE region (code text, land text, PRIMARY KEY (land, code));
INSERT INTO region SELECT 'r' || n, 'l' || n % 7 FROM generate_series(1, 2000) n;
CREATE TABLE person (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    full_name text,
    boss int REFERENCES person,
    land text,
    code text,
    home int,
    loud text GENERATED ALWAYS AS (upper(full_name)) STORED,
    FOREIGN KEY (land, code) REFERENCES region
);
CREATE TABLE home (id int PRIMARY KEY, owner int REFERENCES person);
INSERT INTO home SELECT n FROM generate_series(1, 3000) n;
ALTER TABLE person ADD FOREIGN KEY (home) REFERENCES home;
INSERT INTO person (full_name, boss, land, code, home)
SELECT 'Ada Love ' || n, nullif(n / 2, 0), 'l' || (1 + n % 2000) % 7, 'r' || 1 + n % 2000,
       1 + n % 3000
  FROM generate_series(1, 4000) n;
UPDATE home SET owner = 1 + id;
UPDATE person SET full_name = NULL WHERE id = 3001;
UPDATE person SET full_name = '' WHERE id = 3002;
UPDATE person SET full_name = 'Zoë Love' WHERE id = 3003;
UPDATE person SET full_name = 'Ada ' || repeat('x', 300) WHERE id = 3004;
UPDATE person SET full_name = ' Ada  Love' WHERE id = 3005;
CREATE TABLE sale (id int, year int, who int REFERENCES person, PRIMARY KEY (year, id))
    PARTITION BY RANGE (year);
CREATE TABLE sale_2024 PARTITION OF sale FOR VALUES FROM (2024) TO (2025);
CREATE TABLE sale_rest PARTITION OF sale DEFAULT;
INSERT INTO sale SELECT n, 2023 + n % 3, n FROM generate_series(1, 3000) n;
CREATE TABLE secret (id int PRIMARY KEY);
CREATE TABLE hidden (id int PRIMARY KEY, mine boolean);
INSERT INTO hidden VALUES (1, true), (2, false);
ALTER TABLE hidden ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON hidden TO only_reads USING (mine);
ANALYZE
"""


@pytest.fixture(scope="module")
def company(samples: Database) -> Iterator[Database]:
    """A database as a role sees it that has no more than SELECT."""
    query(samples, "CREATE ROLE only_reads LOGIN")
    with scratch_database(samples) as made:
        query(made, COMPANY)
        query(made, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO only_reads")
        query(made, "REVOKE ALL ON secret FROM only_reads")
        yield dataclasses.replace(made, url=made.url.set(username="only_reads"))
    query(samples, "DROP ROLE only_reads")


def test_sample_is_whole_holds_what_is_odd_and_says_what_it_lacks(company: Database) -> None:
    with sampled(company, "part", "person full_name", fraction=0.02) as sample:
        people = query(sample, "SELECT full_name FROM person")
        keys = query(
            sample,
            "SELECT conname::text FROM pg_constraint WHERE contype = 'f' AND convalidated"
            " AND conparentid = 0 ORDER BY 1",
        )
        sales, hidden = query(sample, "SELECT (SELECT count(*) FROM sale), count(*) FROM hidden")[0]
        new = query(sample, "INSERT INTO person (full_name) VALUES ('new') RETURNING id, loud")
        theirs = query(company, "SELECT max(id) FROM person")[0]

    odd = {None, "", "Zoë Love", "Ada " + "x" * 300, " Ada  Love"}
    assert odd <= set(people)
    assert 100 < len(people) < 4000
    assert 0 < sales < 3000
    assert hidden == 1
    # Added when the rows were there, so PostgreSQL looked for every parent.
    assert keys == [
        *("home_owner_fkey", "person_boss_fkey", "person_home_fkey", "person_land_code_fkey"),
        "sale_who_fkey",
    ]
    assert new[0][0] <= theirs + 1
    assert new[0][1] == "NEW"
    about, *rest = sample.made.split("; ")
    assert about.endswith(
        f"rows of about 12,002 in 5 tables, on the embedded server, PostgreSQL {sample.version}"
    )
    assert rest == [
        "5 of 5 foreign keys validated",
        "no right to read public.secret",
        "rows hidden by row-level security in public.hidden",
    ]


def test_rehearsal_on_a_sample_needs_no_more_than_select(company: Database) -> None:
    everyone = "SELECT md5(string_agg(person::text, '' ORDER BY id)) FROM person"
    before = query(company, everyone)

    rehearsal = rehearse(
        company, render(company, split_column("person", "full_name")), on="sample", rows=1500
    )

    assert (rehearsal.passed, rehearsal.on) == (True, "sample"), rehearsal.summary
    assert rehearsal.stages[0].name == "sample"
    assert 1500 < rehearsal.rows < 4000
    assert (
        query(company, "SELECT md5(string_agg(person::text, '' ORDER BY id)) FROM person") == before
    )


def test_extension_that_is_not_here_is_named_with_the_tables_that_need_it(
    database: Database,
) -> None:
    query(
        database,
        """
        CREATE EXTENSION hstore;
        CREATE TABLE landmark (id int PRIMARY KEY, about hstore);
        CREATE TABLE person (id int PRIMARY KEY, full_name text);
        -- as a server has it that knows an extension which is not installed here
        UPDATE pg_extension SET extname = 'postgis' WHERE extname = 'hstore'
        """,
    )
    revision = render(database, split_column("person", "full_name"))

    with sampled(database, "away", revision.story) as sample:
        said = sample.made.split("; ")
    with (
        pytest.raises(RehearsalError, match="lacks extensions of the source: postgis; without"),
        sampled(database, "needed", "UPDATE landmark SET about = NULL"),
    ):
        pass

    assert said[2:4] == [
        "this server lacks the extensions postgis",
        "which are needed by public.landmark",
    ]


@pytest.mark.skipif(not CHINOOK.is_file(), reason=f"{CHINOOK} is not there")
def test_sample_of_chinook_is_whole(database: Database) -> None:
    path = f"{binaries()}:{os.environ['PATH']}"
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    subprocess.run(["sh", CHINOOK, url], env={**os.environ, "PATH": path}, check=True)

    with sampled(database, "chinook", "track name composer", fraction=0.05) as sample:
        lines = query(sample, "SELECT count(*) FROM invoice_line")[0]

    assert 0 < lines < 2240
    assert "11 of 11 foreign keys validated" in sample.made


@pytest.mark.parametrize(
    "size", [{"fraction": 0.0}, {"fraction": 1.1}, {"rows": 0}, {"fraction": 0.1, "rows": 5}]
)
def test_size_that_means_nothing_is_refused(
    samples: Database, size: dict[str, float | int]
) -> None:
    with pytest.raises(RehearsalError, match="give fraction= up to 1, or rows="):
        sampled(samples, "no", "", **size).__enter__()  # pyright: ignore[reportArgumentType]

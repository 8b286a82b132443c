"""A text cleaned in Python, with its SHA-256: against the same in SQL, and a row at a time."""

from __future__ import annotations

import hashlib
import time

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database, run
from tests.benchmarks import cost
from tests.benchmarks.cost import Subject, Work

_ROWS_ONE_BY_ONE = 5_000

# About 240 bytes a row, a primary key and one more index.
_TABLE = """
DROP TABLE IF EXISTS large_table;
CREATE TABLE large_table (
    id bigint PRIMARY KEY, owner integer, region integer, old_data_field text, note text,
    amount numeric, created_at timestamptz, remark text, new_data_field text,
    data_checksum varchar(64)
);
INSERT INTO large_table
SELECT n, n % 1000, n % 77, '  Some  Value of Row ' || md5(n::text) || ' ', md5(n::text),
       n * 1.1, timestamptz '2024-01-01 00:00+00' + n * interval '1 minute', repeat('x', 60)
  FROM generate_series(1, {rows}) AS n;
CREATE INDEX ON large_table (owner)
"""
_CLEAN = "replace(btrim(lower(old_data_field)), '  ', ' ')"
_SINGLE = f"""
UPDATE large_table
   SET new_data_field = {_CLEAN},
       data_checksum = encode(sha256(convert_to({_CLEAN}, 'UTF8')), 'hex')
"""
_WRONG = f"""
SELECT count(*) FROM large_table
 WHERE (new_data_field IS DISTINCT FROM {_CLEAN}
    OR data_checksum IS DISTINCT FROM encode(sha256(convert_to({_CLEAN}, 'UTF8')), 'hex'))
"""


def transform_record(data: str | None) -> str | None:
    """The function of the guide's bulk pattern."""
    return data.strip().lower().replace("  ", " ") if isinstance(data, str) else data


def measure(database: Database, rows: int) -> None:
    """Print the ratios to one UPDATE in SQL, and how much slower the guide's loop is."""
    seconds: list[float] = []

    def ours() -> Work:
        done = revision(database)
        seconds.append(done.seconds)
        return done

    def single() -> Work:
        return _single(database)

    subject = Subject(database=database, table="large_table", rows=rows, make=make)
    print(cost.header())
    name = "Python and SHA-256, two writers"
    print(cost.compare(name, 0.70, subject, single, ours), flush=True)
    slow = _row_by_row(database, rows) / min(rows, _ROWS_ONE_BY_ONE) * rows
    print(
        f"| the guide's loop, row by row, from {_ROWS_ONE_BY_ONE:,} rows: {slow:.0f} s,"
        f" {slow / sorted(seconds)[len(seconds) // 2]:.0f} times ours (goal 30) |"
    )


def _single(database: Database) -> Work:
    with database.engine.connect() as connection:
        started = time.perf_counter()
        run(connection, _SINGLE)
        connection.commit()
        return Work(seconds=time.perf_counter() - started)


def revision(database: Database) -> Work:
    """Run the exported file; the walk's seconds hold the catch-up at the end."""
    step = dm.transform(
        "large_table",
        transform_record,
        reads=["old_data_field"],
        writes=["new_data_field"],
        checksum="data_checksum",
    )
    return cost.upgrade(database, dm.render(database, dm.Migration("Clean", step)).text)


def _row_by_row(database: Database, rows: int) -> float:
    """The guide's loop, made correct: by key, each row with its UPDATE, a commit for 1,000 rows."""
    with database.engine.connect() as connection:
        make(connection, rows)
        cost.settle(connection, "large_table")
        started, last, wanted = time.perf_counter(), 0, min(rows, _ROWS_ONE_BY_ONE)
        while last < wanted:
            records = connection.execute(
                sa.text(
                    "SELECT id, old_data_field FROM large_table"
                    " WHERE id > :last AND new_data_field IS NULL ORDER BY id LIMIT 1000"
                ),
                {"last": last},
            ).fetchall()
            for record in records:
                value = transform_record(record.old_data_field)
                assert value is not None
                connection.execute(
                    sa.text(
                        "UPDATE large_table SET new_data_field = :new_value,"
                        " data_checksum = :checksum WHERE id = :id"
                    ),
                    {
                        "new_value": value,
                        "checksum": hashlib.sha256(value.encode()).hexdigest(),
                        "id": record.id,
                    },
                )
            connection.commit()
            last = records[-1].id
        seconds = time.perf_counter() - started
        assert run(connection, f"{_WRONG} AND id <= {wanted}").scalar_one() == 0
        return seconds


def make(connection: sa.Connection, rows: int) -> None:
    """The table as it is before."""
    for statement in _TABLE.format(rows=rows).split(";"):
        run(connection, statement)

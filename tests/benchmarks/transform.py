"""A text cleaned in Python, with its SHA-256: against the same in SQL, and a row at a time."""

from __future__ import annotations

import hashlib
import re
import statistics
import tempfile
import threading
import time
from pathlib import Path

import sqlalchemy as sa

from datamig_nb.database import Database, run
from tests.alembic_project import AlembicProject, make_project
from tests.transform_revision import TABLES, call, transform_revision

_RUNS = 3
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
CREATE INDEX ON large_table (owner);
"""
_CLEAN = "replace(btrim(lower(old_data_field)), '  ', ' ')"
_SINGLE = f"""
UPDATE large_table
   SET new_data_field = {_CLEAN},
       data_checksum = encode(sha256(convert_to({_CLEAN}, 'UTF8')), 'hex')
"""
_WRONG = f"""
SELECT count(*) FROM large_table
 WHERE new_data_field IS DISTINCT FROM {_CLEAN}
    OR data_checksum IS DISTINCT FROM encode(sha256(convert_to({_CLEAN}, 'UTF8')), 'hex')
"""


def transform_record(data: str | None) -> str | None:
    """The function of the guide's bulk pattern."""
    return data.strip().lower().replace("  ", " ") if isinstance(data, str) else data


def measure(database: Database, rows: int) -> None:
    """Print the seconds, the ratios, and the memory that the revision took."""
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        project = make_project(Path(directory) / "project")
        what = {"reads": ("old_data_field",), "writes": ("new_data_field",)}
        line = call(
            "clean",
            "large_table",
            transform_record,
            **{"key": ("id",), **what, "checksum": "data_checksum", "workers": 2},
        )
        project.add(transform_revision(line, functions=(transform_record,)))
        for _ in range(_RUNS):
            single, expected = _single_update(database, rows)
            ours, found, memory = _revision(database, project, rows)
            assert found == expected, "the two results differ"
            ratios.append(ours / single)
            print(
                f"single UPDATE {single:.2f} s, revision with two workers {ours:.2f} s,"
                f" most memory {memory} MB",
                flush=True,
            )
    print(f"revision / single UPDATE: median {statistics.median(ratios):.2f} of {_RUNS} runs")
    slow = _row_by_row(database, rows) / min(rows, _ROWS_ONE_BY_ONE) * rows
    print(
        f"row by row, scaled from {_ROWS_ONE_BY_ONE:,} rows: {slow:.0f} s, {slow / ours:.0f} times"
    )


def _single_update(database: Database, rows: int) -> tuple[float, str]:
    with database.engine.connect() as connection:
        _make(connection, rows)
        started = time.perf_counter()
        run(connection, _SINGLE)
        connection.commit()
        return time.perf_counter() - started, _hash(connection)


def _revision(database: Database, project: AlembicProject, rows: int) -> tuple[float, str, int]:
    with database.engine.connect() as connection:
        _make(connection, rows)
        run(connection, "DROP TABLE IF EXISTS alembic_version")
        run(connection, "DROP SCHEMA IF EXISTS datamig CASCADE")
        run(connection, TABLES)
        connection.commit()
        with project.start(database, "upgrade", "head") as running:
            most = [0]
            watcher = threading.Thread(target=_watch, args=(running.place, most), daemon=True)
            watcher.start()
            outcome = running.end(600)
        assert outcome.code == 0, outcome.log
        assert run(connection, _WRONG).scalar_one() == 0
        # Alembic's own start is no part of it, the catch-up at the end is.
        seconds = "SELECT extract(epoch FROM max(heartbeat_at) - min(started_at)) FROM datamig.run"
        return float(run(connection, seconds).scalar_one()), _hash(connection), most[0]


def _watch(place: Path, most: list[int]) -> None:
    """Note the largest resident memory of a run, in MB."""
    while not place.with_suffix(".pid").exists():
        time.sleep(0.01)
    status = Path("/proc", place.with_suffix(".pid").read_text(), "status")
    while status.exists():
        found = re.search(r"VmHWM:\s+(\d+)", status.read_text())
        most[0] = max(most[0], int(found[1]) // 1024 if found else 0)
        time.sleep(0.05)


def _row_by_row(database: Database, rows: int) -> float:
    """The guide's loop, made correct: by key, each row with its UPDATE, a commit for 1,000 rows."""
    with database.engine.connect() as connection:
        _make(connection, rows)
        connection.commit()
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
        wrong = run(connection, f"{_WRONG.replace('WHERE', 'WHERE (')}) AND id <= {wanted}")
        assert wrong.scalar_one() == 0
        return seconds


def _make(connection: sa.Connection, rows: int) -> None:
    run(connection, _TABLE.format(rows=rows))
    connection.commit()
    vacuum = connection.execution_options(isolation_level="AUTOCOMMIT")
    run(vacuum, "VACUUM ANALYZE large_table")
    run(vacuum, "CHECKPOINT")


def _hash(connection: sa.Connection) -> str:
    """The whole table, in no order."""
    query = "SELECT sum(hashtextextended(large_table::text, 0)::numeric)::text FROM large_table"
    return str(run(connection, query).scalar_one())

"""What batches by key cost beside their statements: one part more in each line.

All change the same rows as one single UPDATE in one transaction, which is 1.00.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import sqlalchemy as sa

from datamig_nb.database import Database, run
from tests.benchmarks import cost
from tests.benchmarks.backfill import CASES, STATUS, make, revision, single
from tests.benchmarks.cost import Subject, Work

ROWS = 10_000
CASE = CASES[0]  # map a status, range batches

GUARD = f"state IS DISTINCT FROM ({STATUS})"
LOOK_UP = (
    f"SELECT id INTO upper FROM account WHERE id > cursor ORDER BY id OFFSET {ROWS - 1} LIMIT 1;"
)
NOTE = (
    "UPDATE progress SET cursor = upper, batches = batches + 1, heartbeat_at = clock_timestamp();"
)
LOCKS = """PERFORM FROM pg_locks WHERE relation = 'account'::regclass
    AND mode = 'RowExclusiveLock' AND pid <> pg_backend_pid();"""

#: What is added to a loop of UPDATEs over ranges that are known, line by line.
PARTS = {
    "ranges of 10,000 rows": "",
    "and a look for the rows that are right already": GUARD,
    "and a commit after each": "COMMIT;",
    "and each range looked up": LOOK_UP,
    "and a row that notes the progress": NOTE,
    "and a look who else writes": LOCKS,
}


def loop(*parts: str) -> str:
    """Batches in the database, with these parts."""
    look_up = LOOK_UP if LOOK_UP in parts else ""
    after = " ".join(part for part in (NOTE, LOCKS, "COMMIT;") if part in parts)
    return f"""
DO $$ DECLARE cursor bigint := 0; upper bigint; last bigint := (SELECT max(id) FROM account); BEGIN
WHILE cursor < last LOOP
    upper := NULL; {look_up}
    upper := coalesce(upper, {"last" if look_up else f"cursor + {ROWS}"});
    UPDATE account SET state = {STATUS}
     WHERE id > cursor AND id <= upper {f"AND {GUARD}" if GUARD in parts else ""};
    {after} cursor := upper;
END LOOP; END $$"""


def measure(database: Database, rows: int) -> None:
    """Print the ratio of each to the single UPDATE."""
    print(cost.header())
    done: list[str] = []
    for name, part in PARTS.items():
        done.append(part)
        _compare(database, rows, name, partial(_batches, database, loop(*done)))
    file = partial(revision, database, CASE)
    _compare(database, rows, "the exported file", file)
    _compare(
        database, rows, "the same, no commit waits for the disk", file, "synchronous_commit = off"
    )
    _compare(database, rows, "the same, index pages with room", file, spare=True)


def _compare(
    database: Database,
    rows: int,
    name: str,
    ours: Callable[[], Work],
    setting: str = "synchronous_commit = on",
    *,
    spare: bool = False,
) -> None:
    with database.engine.connect() as connection:
        run(connection, f"ALTER DATABASE {database.url.database} SET {setting}")
        connection.commit()
    database.engine.dispose()
    subject = Subject(
        database=database, table="account", rows=rows, make=_with_room if spare else make
    )
    print(cost.compare(name, CASE.goal, subject, partial(single, database, CASE), ours), flush=True)


def _batches(database: Database, statement: str) -> Work:
    autocommit = database.engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection:
        run(connection, "ALTER TABLE account ADD COLUMN state text")
        run(connection, "DROP TABLE IF EXISTS progress")
        run(
            connection,
            "CREATE TABLE progress (cursor bigint, batches bigint, heartbeat_at timestamptz)",
        )
        run(connection, "INSERT INTO progress VALUES (0, 0, now())")
        started = time.perf_counter()
        run(connection, statement)
        return Work(seconds=time.perf_counter() - started)


def _with_room(connection: sa.Connection, rows: int) -> None:
    """The table with indexes whose pages need no split: dead entries are not looked for."""
    make(connection, rows)
    for index in ("account_pkey", "account_created_at_idx"):
        run(connection, f"ALTER INDEX {index} SET (fillfactor = 45)")
        run(connection, f"REINDEX INDEX {index}")

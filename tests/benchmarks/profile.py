"""The profile of a table of 13 columns, against reading its heap once."""

from __future__ import annotations

import resource
import statistics
import time

import datamig_nb as dm
from datamig_nb.database import Database, run

_RUNS = 3

_TABLE = """
CREATE TABLE customer AS
SELECT n::bigint AS id, md5(n::text) AS token, initcap(substr(md5((n % 5000)::text), 1, 7)) AS name,
       CASE WHEN n % 10 = 0 THEN ' User' || n || '@Example.com' ELSE 'user' || n || '@x.org' END
           AS email,
       (ARRAY['new', 'New', 'old ', 'gone'])[1 + n % 4] AS status,
       (n % 169140) / 7.0 AS balance, NULLIF(n % 100, 0)::integer AS score,
       jsonb_build_object('n', n % 50) AS settings, (n % 20000)::bigint AS owner_id,
       lpad((n * 7919 % 10000000)::text, 8, '0') AS phone,
       timestamptz '2020-01-01 00:00+00' + n * interval '1 minute' AS created_at,
       n % 3 = 0 AS active, repeat('note ', (n % 8)::integer) AS notes
  FROM generate_series(1, {rows}) AS n;
ALTER TABLE customer ADD PRIMARY KEY (id);
"""


def measure(database: Database, rows: int) -> None:
    """Print the seconds of both, their ratio, and how much the client's memory grew."""
    with database.engine.connect() as connection:
        run(connection, _TABLE.format(rows=rows))
        connection.commit()
        vacuum = connection.execution_options(isolation_level="AUTOCOMMIT")
        run(vacuum, "VACUUM ANALYZE customer")
        scans = [_seconds(lambda: run(connection, _SCAN).all()) for _ in range(_RUNS)]
    memory = _memory()
    profiles = [_seconds(lambda: dm.profile(database, "customer")) for _ in range(_RUNS)]
    scan, profile = statistics.median(scans), statistics.median(profiles)
    print(f"heap scan {scan:.2f} s, profile {profile:.2f} s: {profile / scan:.0f} times")
    print(f"client memory grew by {_memory() - memory:.0f} MB")


_SCAN = "SELECT sum(length(notes)) FROM customer"


def _seconds(work: object) -> float:
    assert callable(work)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _memory() -> float:
    """The most memory this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

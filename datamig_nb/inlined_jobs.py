"""Functions copied into revisions that leave their batches to workers."""

from __future__ import annotations

from datamig_nb.inlined import passed, step
from datamig_nb.inlined_batches import begin
from datamig_nb.inlined_sql import revision
from datamig_nb.inlined_walk import walk


def leave_to_workers(
    name: str, table: str, key: tuple[str, ...], work: str, **more: object
) -> None:
    """Note what is to be done, and leave a procedure that does it: the revision does not wait.

    "CALL datamig.work_…()" goes on until all is done, or until the moment that it is given; killed
    and called again, by whomever, it goes on where it was.
    """
    if passed():
        return
    head = f"CREATE OR REPLACE PROCEDURE datamig.work_{revision}"
    until = "moment timestamptz DEFAULT 'infinity'"
    body = walk(name, 1, "moment", table, key, work, **more).strip().removeprefix("DO ")
    step(f"{head}({until})\nLANGUAGE plpgsql AS {body}")
    step(JOBS)
    begin(name, 1, table)


def end_job() -> None:
    """Let no worker begin another batch; the one under way is waited for."""
    job = f"revision = '{revision}' AND step LIKE 'job: %'"
    step(f"UPDATE datamig.run SET status = 'cancelled' WHERE {job} AND status <> 'cancelled'")
    step(f"DROP PROCEDURE IF EXISTS datamig.work_{revision}")


JOBS = """
CREATE OR REPLACE VIEW datamig.migration_jobs AS
SELECT revision AS id, substr(step, 6) AS job_type,
       CASE WHEN status = 'running' AND pid IS NULL THEN 'pending' ELSE status END AS status,
       CASE WHEN status = 'succeeded' THEN 100
            WHEN total > 0 THEN least(100 * scanned / total, 99) ELSE 0 END::integer AS progress,
       coalesce(total, (SELECT nullif(greatest(reltuples, 0), 0)::bigint FROM pg_class
                         WHERE oid = to_regclass(heap))) AS total_records,
       scanned AS processed_records,
       CASE WHEN batches > 0 OR pid IS NOT NULL THEN started_at END AS started_at,
       CASE WHEN status = 'succeeded' THEN heartbeat_at END AS completed_at
  FROM datamig.run
 WHERE step LIKE 'job: %'
"""

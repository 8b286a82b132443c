"""Work off the batches that revisions left to workers, see :func:`datamig_nb.background`.

The job is a row of ``datamig.run``, and its batches are those of the exported file, which left
them behind as a procedure: a worker claims the row and calls the procedure, again and again.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from datamig_nb.database import Database, explained, is_there, run
from datamig_nb.errors import RunError
from datamig_nb.watch import Runs, RunState, runs

#: A job whose worker was silent for longer is anybody's; batches tell of themselves.
LEASE_SECONDS = 30

# How long the procedure works before the worker looks up.
_STRETCH_SECONDS = 1


def work(
    db: Database,
    revision: str | None = None,
    *,
    progress: Callable[[RunState], None] | None = None,
) -> Runs:
    """Work off jobs until none is left to do; give how they ended.

    Any number of workers may run at once: each job is claimed by one, and where a worker died, by
    another half a minute later.  Each batch is its own transaction, together with the job's row.

    Parameters
    ----------
    revision
        Alembic's id of the revision that left the job; one that failed or was cancelled is begun
        again where it was.  None: all that wait for a worker.
    progress
        Called with the state of the job about once a second.

    Raises
    ------
    RunError
        If a job fails, is cancelled or is taken back by a downgrade; or if the revision left none
        that is free.
    """
    done: list[RunState] = []
    engine = db.engine.execution_options(isolation_level="AUTOCOMMIT")
    with explained("working off a job", db.url), engine.connect() as connection:
        while job := _claimed(connection, revision):
            done.append(_worked_off(db, connection, job, progress or (lambda _: None)))
            if revision is not None:
                break
    if revision is not None and not done:
        raise RunError(
            f"revision {revision!r} has no job that is free",
            f"look at runs(); one that a dead worker holds is free after {LEASE_SECONDS} seconds",
        )
    return Runs(states=tuple(done))


def _claimed(connection: sa.Connection, revision: str | None) -> str | None:
    """The revision of the job that this session has now, or None."""
    if not is_there(connection, "datamig.run"):
        return None
    given = {"revision": revision, "lease": f"{LEASE_SECONDS} seconds"}
    return connection.execute(sa.text(_CLAIM), given).scalar_one_or_none()


def _worked_off(
    db: Database, connection: sa.Connection, job: str, progress: Callable[[RunState], None]
) -> RunState:
    moment = f"clock_timestamp() + interval '{_STRETCH_SECONDS} seconds'"
    while True:
        run(connection, f"CALL datamig.work_{job}({moment})")
        states = [state for state in runs(db, job).states if state.step.startswith("job: ")]
        if not states:
            raise RunError(f"the job of {job!r} is gone", "its revision was taken back")
        (state,) = states
        progress(state)
        if state.status == "succeeded":
            return state
        if state.status not in ("running", "paused"):
            raise RunError(
                f"the job of {job!r} is {state.status}: {state.error or 'as somebody wished'}",
                f"work(db, {job!r}) goes on where it was",
            )


# SKIP LOCKED: where a batch is under way, the row is locked, and its worker lives.
_CLAIM = """
UPDATE datamig.run
   SET status = 'running', pid = pg_backend_pid(), heartbeat_at = clock_timestamp(),
       retries = 0, rounds = 0, error = NULL,
       started_at = CASE batches WHEN 0 THEN clock_timestamp() ELSE started_at END
 WHERE (revision, step, part) = (
           SELECT revision, step, part FROM datamig.run
            WHERE step LIKE 'job: %'
              AND (status = 'running' AND CAST(:revision AS text) IS NULL
                   OR status IN ('running', 'failed', 'cancelled') AND revision = :revision)
              AND (status <> 'running' OR pid IS NULL
                   OR heartbeat_at < clock_timestamp() - CAST(:lease AS interval))
            ORDER BY started_at LIMIT 1
              FOR UPDATE SKIP LOCKED
       )
RETURNING revision
"""

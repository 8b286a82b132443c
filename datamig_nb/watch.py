"""Look at runs under way and steer them: pause, resume, cancel.

The truth is in the database: the engine of a revision moves its rows in ``datamig.run`` together
with the rows of the user's tables, and obeys what it finds there before each batch.  So it does
not matter which notebook, shell or machine looks or steers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import sqlalchemy as sa

from datamig_nb.database import Database, is_there
from datamig_nb.display import Shown, counted, lasting
from datamig_nb.errors import RunError

#: How long pause(), resume() and cancel() wait for the batch under way unless told otherwise.
WAIT_SECONDS = 10.0

#: A running run that was silent for longer, and whose session is gone, is shown as stopped.
SILENT_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One row of ``datamig.run``: how far a step of a revision is."""

    revision: str
    #: Name of the step; ``upgrade`` or ``downgrade`` for the revision as a whole.
    step: str
    #: Number of the connection, where several share a step; 0 for the revision as a whole.
    part: int
    #: running, paused, cancelled, failed or succeeded; stopped: was running, and its process died.
    status: str
    #: Rows to look at, as estimated at the start; None where it is not known.
    total: int | None
    scanned: int
    changed: int
    batches: int
    #: From the start to the last sign of life.
    seconds: float
    #: Since the last sign of life.
    heartbeat_age_seconds: float
    #: How it walks, or why it rests; None where there is nothing to say.
    note: str | None
    #: What the last failing batch met; None where none failed.
    error: str | None

    @property
    def share(self) -> float | None:
        """Part that is done, between 0 and 1; None below 1 % and where no total is known."""
        if self.status == "succeeded":
            return 1.0
        if not self.total or self.total < 0 or self.scanned * 100 < self.total:
            return None
        return min(1.0, self.scanned / self.total)  # the total was an estimate

    @property
    def rows_per_second(self) -> float | None:
        """Rows looked at in a second, on average; None before the first batch."""
        return self.scanned / self.seconds if self.scanned and self.seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Forecast from rate and total while it is running; None where it cannot be made."""
        rate = self.rows_per_second
        if self.status != "running" or self.share is None or rate is None or self.total is None:
            return None
        return max(0, self.total - self.scanned) / rate

    @property
    def name(self) -> str:
        """The step in words."""
        return self.step if self.part <= 1 else f"{self.step}, part {self.part}"

    @property
    def progress(self) -> str:
        """What was done and what is left, in words."""
        said: list[str] = []
        if self.batches:
            said.append(f"{counted(self.scanned, 'row')} scanned")
            said.append(f"{self.changed:,} changed")
            said.append(f"in {self.batches:,} {'batch' if self.batches == 1 else 'batches'}")
        if self.status != "succeeded":
            if self.share is not None:
                said.insert(0, f"{self.share:.0%}")
            if self.rows_per_second is not None:
                said.append(f"{self.rows_per_second:,.0f} rows a second")
            if self.seconds_left is not None:
                said.append(f"{lasting(self.seconds_left)} left")
            said.append(f"last heard of {lasting(self.heartbeat_age_seconds)} ago")
        return ", ".join(said)


@dataclass(frozen=True, kw_only=True)
class Runs(Shown):
    """The runs of a database as they stood in one moment."""

    #: By revision, the one that began first in front; then by step.
    states: tuple[RunState, ...]

    @property
    def summary(self) -> str:
        """The steps by status, in one line of words."""
        statuses = [state.status for state in self.states]
        found = [f"{statuses.count(status):,} {status}" for status in dict.fromkeys(statuses)]
        return ", ".join(found) or "none"

    @property
    def frame(self) -> pd.DataFrame:
        """One row a run, with rate, share and forecast; times in seconds."""
        columns = (
            *("revision", "step", "part", "status", "share", "scanned", "changed", "batches"),
            *("rows_per_second", "seconds_left", "heartbeat_age_seconds", "note", "error"),
        )
        rows = [[getattr(state, column) for column in columns] for state in self.states]
        return pd.DataFrame(rows, columns=list(columns))

    def __repr__(self) -> str:
        lines = [f"Runs: {self.summary}"]
        revision = None
        for state in self.states:
            if state.revision != revision:
                revision = state.revision
                lines.append(f"  {revision}")
            said = f": {state.progress}" if state.progress else ""
            lines.append(f"    {state.status:9}  {state.name}{said}")
            more = (state.note, state.error and f"error: {state.error}")
            lines += [f"               {' '.join(text.split())}" for text in more if text]
        return "\n".join(lines)


def runs(db: Database, revision: str | None = None) -> Runs:
    """How far the runs are: those of all revisions, or of one; read without writing.

    A run that was silent for five minutes, and whose session is gone, is shown as ``stopped``:
    Alembic, started again, goes on where it was.  A session that this role may not look into
    counts as there.

    Parameters
    ----------
    revision
        Alembic's id of the revision; None for all.

    Returns
    -------
    Runs
        Without any state where no revision of ours ever ran, or none of that id.
    """
    with db.read_only("reading the runs") as connection:
        if not is_there(connection, "datamig.run"):
            return Runs(states=())
        silent = f"{SILENT_SECONDS} seconds"
        found = connection.execute(sa.text(_RUNS), {"revision": revision, "silent": silent})
        return Runs(states=tuple(RunState(**row) for row in found.mappings()))


# ---------------------------------------------------------------- steering


def pause(
    db: Database, revision: str, step: str | None = None, *, wait_seconds: float = WAIT_SECONDS
) -> Runs:
    """Let a running revision, or one step of it, rest after the batch under way.

    Alembic's process stays there and waits for :func:`resume` or :func:`cancel`.  Where no batches
    are under way it goes on to the next step that has some, and waits there.  A paused run that
    was killed is still paused when Alembic runs again.

    Parameters
    ----------
    step
        Name of the step in ``datamig.run``; None for all that are running and those to come.
    wait_seconds
        How long to wait for the end of the batch under way; one batch takes half a second or less.

    Raises
    ------
    RunError
        If there is no such run, or nothing of it is running.
    QueryError
        If somebody holds on to the run for longer than ``wait_seconds``.
    """
    return _steer(db, revision, step, "paused", wait_seconds)


def resume(
    db: Database, revision: str, step: str | None = None, *, wait_seconds: float = WAIT_SECONDS
) -> Runs:
    """Let a paused revision, or one step of it, go on.

    Parameters and errors are those of :func:`pause`.
    """
    return _steer(db, revision, step, "running", wait_seconds)


def cancel(
    db: Database, revision: str, step: str | None = None, *, wait_seconds: float = WAIT_SECONDS
) -> Runs:
    """End a running or paused revision, or one step of it, after the batch under way.

    Alembic's process ends with an error, and nothing is lost: run again, it goes on where it was.
    Parameters and errors are those of :func:`pause`.
    """
    return _steer(db, revision, step, "cancelled", wait_seconds)


#: New status -> the statuses that may become it, and the words for it.
_EDGES: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "paused": (("running",), "pausing", "paused"),
    "running": (("paused",), "resuming", "resumed"),
    "cancelled": (("running", "paused"), "cancelling", "cancelled"),
}

#: Status -> what to do with a run that cannot be steered as it was asked.
_ADVICE = {
    "running": "it goes on already; pause or cancel it",
    "paused": "it rests already; resume or cancel it",
    "cancelled": "run 'alembic upgrade' again, it goes on where it was",
    "failed": "mend what its error says and run 'alembic upgrade' again, it goes on where it was",
    "succeeded": "nothing of it is left to do",
}


def _steer(db: Database, revision: str, step: str | None, status: str, wait: float) -> Runs:
    before, doing, done = _EDGES[status]
    chosen = {"revision": revision, "step": step}
    with db.writing(f"{doing} {revision!r}", lock_timeout_seconds=wait) as connection:
        if not is_there(connection, "datamig.run"):
            raise _unknown(revision, [])
        # Who waits for the lock of a row may see batch after batch overtake him; those who wait
        # for a table are served in order.  Readers, runs() among them, do not wait for this lock.
        connection.execute(sa.text("LOCK TABLE datamig.run IN EXCLUSIVE MODE"))
        moved = connection.execute(
            sa.text(_MOVE), {**chosen, "status": status, "before": list(before)}
        )
        if not moved.rowcount:
            raise _refusal(connection, revision, step, done)
    return runs(db, revision)


def _refusal(connection: sa.Connection, revision: str, step: str | None, word: str) -> RunError:
    """Why nothing could be moved."""
    query = f"SELECT revision, step, status FROM datamig.run WHERE {_IS_RUN}"
    rows = connection.execute(sa.text(query)).all()
    of_revision = [row for row in rows if row.revision == revision]
    if not of_revision:
        return _unknown(revision, sorted({row.revision for row in rows}))
    statuses = sorted({row.status for row in of_revision if step in (None, row.step)})
    if not statuses:
        names = ", ".join(repr(name) for name in sorted({row.step for row in of_revision}))
        return RunError(
            f"the run of revision {revision!r} has no step {step!r}",
            f"use one of {names}",
        )
    what = f"revision {revision!r}" if not step else f"step {step!r} of revision {revision!r}"
    advice = _ADVICE.get(statuses[0], "look at it with runs()")
    return RunError(f"{what} cannot be {word}, for it is {' and '.join(statuses)}", advice)


def _unknown(revision: str, known: list[str]) -> RunError:
    advice = f"use one of {', '.join(map(repr, known))}" if known else "none ever ran there"
    return RunError(f"there is no run of revision {revision!r} in this database", advice)


# ---------------------------------------------------------------- SQL


# Rows of part 0 with another name are figures that a revision remembers.
_IS_RUN = "(part > 0 OR step IN ('upgrade', 'downgrade'))"

# A direction as a whole lives, and is heard of, as its steps are.  A session that began after the
# last sign of life has the number of the run's by chance.
_RUNS = f"""
SELECT revision, step, part,
       CASE WHEN status = 'running' AND NOT lives THEN 'stopped' ELSE status END AS status,
       total, scanned, changed, batches,
       extract(epoch FROM heard_at - started_at)::float8 AS seconds,
       extract(epoch FROM clock_timestamp() - heard_at)::float8 AS heartbeat_age_seconds,
       note, error
  FROM (
        SELECT *,
               CASE WHEN is_whole THEN max(heartbeat_at) OVER revision
                    ELSE heartbeat_at END AS heard_at,
               CASE WHEN is_whole THEN bool_or(lives_itself) OVER revision
                    ELSE lives_itself END AS lives
          FROM (
                SELECT *, part = 0 AND status <> 'succeeded' AS is_whole,
                       heartbeat_at > clock_timestamp() - CAST(:silent AS interval)
                       OR EXISTS (
                           SELECT FROM pg_stat_activity AS session WHERE session.pid = run.pid
                              AND coalesce(backend_start, heartbeat_at) <= heartbeat_at
                       ) AS lives_itself
                  FROM datamig.run
                 WHERE revision = coalesce(:revision, revision) AND {_IS_RUN}
               ) AS run
        WINDOW revision AS (PARTITION BY revision)
       ) AS run
 ORDER BY min(started_at) OVER (PARTITION BY revision), revision,
          part > 0, min(started_at) OVER (PARTITION BY revision, step), step, part
"""

_MOVE = f"""
UPDATE datamig.run SET status = :status
 WHERE revision = :revision AND step = coalesce(:step, step) AND {_IS_RUN}
   AND status = ANY(CAST(:before AS text[]))
"""

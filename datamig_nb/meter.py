"""Looks at a database while Alembic runs on it, in a thread with a session of its own.

It asks for nothing that a migration could wait for: no lock on a table, no snapshot that stays.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from datamig_nb.alembic_runs import AlembicRun
from datamig_nb.database import Database, explained
from datamig_nb.measure import (
    OTHERS,
    Hold,
    Kind,
    Measured,
    Progress,
    StepCost,
    Wait,
    Walked,
)
from datamig_nb.names import TableName
from datamig_nb.plans import plans_of_batches
from datamig_nb.server_counters import Totals, database_size, growths, totals
from datamig_nb.statements import names_in

#: Seconds between two looks; more where one takes longer than a tenth of that.
LOOK_SECONDS = 0.02

#: Seconds between two looks at the size of the database.
SIZE_SECONDS = 0.25

#: Points of a walk that are kept.
POINTS = 60

#: Statements that took less are left out.
LEAST_SECONDS = 0.001


@contextmanager
def measuring(db: Database) -> Generator[Meter]:
    """Look at a database while the block runs Alembic; afterwards the meter has what it cost.

    Sessions count that are this role's own: others' statements and locks may be hidden from it.
    """
    meter = Meter(db)
    thread = threading.Thread(target=meter.look_on, daemon=True)
    thread.start()
    meter.began.wait()
    try:
        yield meter
    finally:
        meter.ended.set()
        thread.join()


@dataclass
class _Held:
    """A lock that is being held: the look before it, the first and the last that saw it."""

    not_before: float
    seen_from: float
    seen_until: float


@dataclass
class _Statement:
    """One execution of a statement, by the server's clock."""

    text: str
    begin: float
    seen_until: float
    #: Where it was seen.
    end: float | None = None
    #: The beginning of the next statement of the session.
    not_after: float | None = None


@dataclass
class _Walk:
    """A walk; its times are those of its rows in datamig.run."""

    begin: float
    end: float
    wal_before: int
    text: str
    way: Any
    points: list[Progress] = field(default_factory=list[Progress])


class Meter:
    """Collects what the looks saw; made by :func:`measuring`."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.began, self.ended = threading.Event(), threading.Event()
        self._held: dict[tuple[str, str, str], _Held] = {}
        self._holds: dict[tuple[str, str], Hold] = {}
        self._waits: dict[tuple[str, str], float] = {}
        self._statements: list[_Statement] = []
        #: The last statement of each session, with its beginning.
        self._latest: dict[int, _Statement] = {}
        self._walks: dict[str, _Walk] = {}
        self._wal: dict[str, int] = {}
        self._looks, self._gap = 0, 0.0
        self._before = self._after = Totals()
        self._peak = 0
        self._error: Exception | None = None

    @property
    def waits(self) -> tuple[Wait, ...]:
        """The longest waits of the application, by what they were for."""
        return tuple(
            Wait(relation=relation, mode=mode, seconds=seconds)
            for (relation, mode), seconds in sorted(self._waits.items())
        )

    @property
    def looks(self) -> int:
        """How often it looked."""
        return self._looks

    @property
    def largest_gap_seconds(self) -> float:
        """Between two looks, at most."""
        return self._gap

    def measured(self, stage: str, alembic: AlembicRun) -> Measured:
        """What the run cost; when the block has ended."""
        if self._error is not None:
            raise self._error
        before, after = self._before, self._after
        tables = {TableName.parse(name) for name in before.sizes.keys() | after.sizes.keys()}
        return Measured(
            stage=stage,
            seconds=alembic.seconds,
            steps=self._steps(tables),
            walks=tuple(
                Walked(
                    step=name,
                    tables=_tables_in(walk.text, tables),
                    way=walk.way,
                    points=_thinned(walk.points),
                )
                for name, walk in self._walks.items()
            ),
            wal_bytes=after.wal - before.wal,
            wal_whole_pages=after.whole_pages - before.whole_pages,
            temp_files=after.temp_files - before.temp_files,
            temp_bytes=after.temp_bytes - before.temp_bytes,
            peak_bytes=max(self._peak, after.size) - before.size,
            growths=growths(before.sizes, after.sizes),
            holds=tuple(self._holds[key] for key in sorted(self._holds)),
            waits=self.waits,
            plans=plans_of_batches(self._db, before.at),
            shared_buffers_bytes=before.buffers,
            looks=self._looks,
            largest_gap_seconds=self._gap,
        )

    # ------------------------------------------------------------ looking

    def look_on(self) -> None:
        """Look until the end; the work of the meter's thread."""
        try:
            with explained("measuring", self._db.url), self._db.engine.connect() as connection:
                self._look_on(connection.execution_options(isolation_level="AUTOCOMMIT"))
        except Exception as error:  # told to whoever waits for the thread
            self._error = error
        finally:
            self.began.set()

    def _look_on(self, session: sa.Connection) -> None:
        self._before = totals(session)
        before = sized = time.monotonic()
        doing, wal, last = "", self._before.wal, False
        while not last:
            last, began = self.ended.is_set(), time.monotonic()
            found = session.execute(sa.text(_LOOK)).one()
            ended = time.monotonic()
            self._note_locks(found.locks or (), before, began, ended)
            self._note_waits(found.waits or ())
            walking = self._note_walks(session, found.wal) if found.has_runs else None
            stating = self._note_statements(found.sessions or (), found.at, walking is None)
            self._wal[doing] = self._wal.get(doing, 0) + found.wal - wal
            doing, wal = walking or stating or doing, found.wal
            self._looks, self._gap = self._looks + 1, max(self._gap, ended - before)
            before = began
            if began - sized > SIZE_SECONDS:
                self._peak, sized = max(self._peak, database_size(session)), began
            self.began.set()
            self.ended.wait(0 if last else max(LOOK_SECONDS, 10 * (time.monotonic() - began)))
        self._note_locks((), before, before, before)
        self._after = totals(session)

    def _note_locks(
        self, locks: Collection[Sequence[str]], before: float, began: float, ended: float
    ) -> None:
        """A transaction's number tells two short holds in a row from a long one."""
        here = {(lock[0], lock[1], lock[2]) for lock in locks}
        for key in here:
            self._held.setdefault(key, _Held(before, ended, began)).seen_until = began
        for key in self._held.keys() - here:
            held = self._held.pop(key)
            hold = Hold(
                relation=key[1],
                mode=key[2],
                at_least_seconds=max(0.0, held.seen_until - held.seen_from),
                at_most_seconds=ended - held.not_before,
            )
            longest = self._holds.setdefault(key[1:], hold)
            if hold.at_least_seconds > longest.at_least_seconds:
                self._holds[key[1:]] = hold

    def _note_waits(self, waits: Collection[Sequence[Any]]) -> None:
        for relation, mode, seconds in waits:
            longest = self._waits.get((relation, mode), 0.0)
            self._waits[relation, mode] = max(longest, seconds or 0.0)

    def _note_walks(self, session: sa.Connection, wal: int) -> str | None:
        """The walk that is under way, if one is."""
        try:
            rows = session.execute(sa.text(_RUNS), {"since": self._before.at}).all()
        except DBAPIError:  # dropped meanwhile
            return None
        for row in rows:
            walk = self._walks.setdefault(
                row.step, _Walk(row.begun, row.heard, wal, row.text, row.way)
            )
            walk.end, walk.way, walk.text = max(walk.end, row.heard), row.way, row.text
            if row.scanned > (walk.points[-1].rows if walk.points else 0):
                walk.points.append(
                    Progress(
                        seconds=row.heard - walk.begin,
                        rows=row.scanned,
                        wal_bytes=wal - walk.wal_before,
                        batch_rows=row.batch_rows,
                    )
                )
        return next((row.step for row in rows if row.running), None)

    def _note_statements(
        self, sessions: Collection[Sequence[Any]], at: float, keep: bool
    ) -> str | None:
        """The statement that is under way, if one is."""
        under_way = None
        for pid, begin, changed, active, text in sessions:
            statement = self._latest.get(pid)
            if statement is None or statement.begin < begin:
                if statement is not None and statement.end is None:
                    statement.not_after = begin
                statement = self._latest[pid] = _Statement(text, begin, begin)
                if keep:
                    self._statements.append(statement)
            if active:
                statement.seen_until, under_way = at, text
            elif statement.end is None:
                statement.end = changed
        return None if under_way is None else _named(under_way)[0]

    # ------------------------------------------------------------ the steps

    def _steps(self, tables: Collection[TableName]) -> tuple[StepCost, ...]:
        """Statements of the same name are one step; those that belong to a walk are its own."""
        costs: dict[str, StepCost] = {}
        begins: dict[str, float] = {name: walk.begin for name, walk in self._walks.items()}
        for statement in self._statements:
            if any(walk.begin <= statement.begin <= walk.end for walk in self._walks.values()):
                continue
            name, kind = _named(statement.text)
            seconds, error = self._lasted(statement)
            earlier = costs.get(name)
            begins.setdefault(name, statement.begin)
            costs[name] = StepCost(
                name=name,
                kind=kind,
                seconds=seconds + (earlier.seconds if earlier else 0),
                error_seconds=error + (earlier.error_seconds if earlier else 0),
                wal_bytes=self._wal.get(name, 0),
                tables=_tables_in(statement.text, tables),
            )
        for name, walk in self._walks.items():
            costs[name] = StepCost(
                name=name,
                kind="batches",
                seconds=walk.end - walk.begin,
                error_seconds=0.0,
                wal_bytes=self._wal.get(name, 0),
                tables=_tables_in(walk.text, tables),
                rows=walk.points[-1].rows if walk.points else 0,
            )
        in_order = sorted(costs.values(), key=lambda cost: begins[cost.name])
        return tuple(cost for cost in in_order if cost.seconds >= LEAST_SECONDS)

    def _lasted(self, statement: _Statement) -> tuple[float, float]:
        """Seconds of a statement, and how far off they may be."""
        if statement.end is not None:
            return statement.end - statement.begin, 0.0
        until = statement.not_after or statement.seen_until + self._gap
        error = max(0.0, until - statement.seen_until) / 2
        return statement.seen_until + error - statement.begin, error


def _named(statement: str) -> tuple[str, Kind]:
    """A statement in a few words, and what it is."""
    if statement.lstrip().startswith("DO ") and (name := _CHECK.search(statement)):
        return name[1], "check"
    text = " ".join(statement.split())
    return (text if len(text) <= 100 else f"{text[:99]}…"), "statement"


# The first line of a check's query says what holds.
_CHECK = re.compile(r"^-- (.+)$", re.MULTILINE)


def _tables_in(text: str, tables: Collection[TableName]) -> tuple[str, ...]:
    names = names_in(text)
    return tuple(sorted(str(table) for table in tables if table.name in names))


def _thinned(points: Sequence[Progress]) -> tuple[Progress, ...]:
    """At most POINTS of them, the last always."""
    every = -(-len(points) // POINTS) or 1
    return tuple(points[::-1][::every][::-1])


# ---------------------------------------------------------------- SQL

_TABLES_OF_USERS = (
    "relkind IN ('r', 'p', 'm')"
    " AND nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'datamig')"
    " AND relname NOT IN ('alembic_version', 'datamig_rehearsal_version')"
)

# Others are sessions of the application: what they hold is not the migration's, and what they wait
# for counts where one stands before them that is none of theirs.
_LOOK = f"""
WITH session AS MATERIALIZED (
    SELECT pid, application_name = '{OTHERS}' AS other, query_start, state_change, state, query
      FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid()
       AND backend_type = 'client backend'
), lock AS MATERIALIZED (
    SELECT pg_locks.* FROM pg_locks JOIN session USING (pid)
)
SELECT extract(epoch FROM clock_timestamp())::float8 AS at,
       (pg_current_wal_insert_lsn() - '0/0')::bigint AS wal,
       to_regclass('datamig.run') IS NOT NULL AS has_runs,
       (SELECT json_agg(json_build_array(
                   virtualtransaction, format('%s.%s', nspname, relname), mode))
          FROM lock JOIN session USING (pid)
          JOIN pg_class ON pg_class.oid = relation
          JOIN pg_namespace ON pg_namespace.oid = relnamespace
         WHERE granted AND NOT other AND {_TABLES_OF_USERS}) AS locks,
       (SELECT json_agg(json_build_array(
                   coalesce(format('%s.%s', nspname, relname), 'a row'), mode,
                   extract(epoch FROM clock_timestamp() - waitstart)))
          FROM lock JOIN session USING (pid)
          LEFT JOIN pg_class ON pg_class.oid = relation AND locktype = 'relation'
          LEFT JOIN pg_namespace ON pg_namespace.oid = relnamespace
         WHERE NOT granted AND other
           AND EXISTS (SELECT FROM session AS one
                        WHERE NOT one.other AND one.pid = ANY (pg_blocking_pids(lock.pid)))
       ) AS waits,
       (SELECT json_agg(json_build_array(
                   pid, extract(epoch FROM query_start), extract(epoch FROM state_change),
                   state = 'active', query))
          FROM session WHERE NOT other AND query_start IS NOT NULL) AS sessions
"""

# Parts of a step that connections share are one walk.
_RUNS = """
SELECT step, sum(scanned)::bigint AS scanned, max(batch_rows) AS batch_rows,
       concat_ws(' ', max(heap), max(statement)) AS text,
       CASE WHEN bool_or(passes > 1) THEN 'woven'
            WHEN bool_or(passes IS NOT NULL) THEN 'may be woven' ELSE 'by key' END AS way,
       bool_or(status = 'running') AS running,
       extract(epoch FROM min(started_at))::float8 AS begun,
       extract(epoch FROM max(heartbeat_at))::float8 AS heard
  FROM datamig.run WHERE part > 0 AND heartbeat_at >= to_timestamp(:since)
 GROUP BY step ORDER BY min(started_at)
"""

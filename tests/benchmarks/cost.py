"""What a change costs: seconds by the clock, CPU of server and client, growth, WAL, memory.

Where other work shares the machine, CPU seconds say more than the clock.  Of work on several
connections they do not fall, so there the clock alone tells what is gained.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database, run

RUNS = 3


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one run of one way cost."""

    #: By the clock.
    seconds: float
    #: Of the server and the client together.
    cpu_seconds: float
    #: Of the table's heap, as a share of what it was.
    growth: float
    #: A row.
    wal_bytes: float
    #: Most resident memory of the client; 0 where it only sends a statement.
    client_mb: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a way told about itself."""

    seconds: float
    client_cpu_seconds: float = 0
    client_mb: float = 0


def header() -> str:
    """The first lines of a table of :func:`compare`."""
    names = "work", "goal", "clock", "CPU", "single, ours", "heap", "WAL bytes a row", "client"
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A table that is made anew for each run."""

    database: Database
    table: str
    rows: int
    make: Callable[[sa.Connection, int], None]


def compare(
    name: str,
    goal: float,
    subject: Subject,
    single: Callable[[], Work],
    ours: Callable[[], Work],
) -> str:
    """Do both in turn, RUNS times; give the ratios of the medians as a line of a table."""
    found: list[tuple[Figures, Figures]] = []
    for _ in range(RUNS):
        expected, one = _measured(subject, single)
        result, other = _measured(subject, ours)
        assert result == expected, f"{name}: the two results differ"
        found.append((one, other))

    def medians(value: Callable[[Figures], float]) -> tuple[float, float]:
        one, other = (statistics.median(map(value, each)) for each in zip(*found, strict=True))
        return one, other

    (a, b), (c, d) = medians(lambda f: f.seconds), medians(lambda f: f.cpu_seconds)
    (e, g), (h, i) = medians(lambda f: f.growth), medians(lambda f: f.wal_bytes)
    most = max(other.client_mb for _, other in found)
    return (
        f"| {name} | {goal:.2f} | {b / a:.2f} | {d / c:.2f} | {a:.2f} s, {b:.2f} s"
        f" | {e:+.0%} {g:+.0%} | {h:.0f} {i:.0f} | {most:.0f} MB |"
    )


def _measured(subject: Subject, work: Callable[[], Work]) -> tuple[str, Figures]:
    """Make the table, do the work; give the table's contents as a hash, and what it cost."""
    table = subject.table
    with subject.database.engine.connect() as connection:
        subject.make(connection, subject.rows)
        settle(connection, table)
        before, wal, cpu = _size(connection, table), _position(connection), _server_cpu(connection)
        connection.commit()  # an open snapshot would keep dead rows
        done = work()
        cpu = _server_cpu(connection) - cpu
        query = f"SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{wal}')"
        figures = Figures(
            seconds=done.seconds,
            cpu_seconds=cpu + done.client_cpu_seconds,
            growth=_size(connection, table) / before - 1,
            wal_bytes=float(run(connection, query).scalar_one()) / subject.rows,
            client_mb=done.client_mb,
        )
        query = f"SELECT sum(hashtextextended({table}::text, 0)::numeric)::text FROM {table}"
        return str(run(connection, query).scalar_one()), figures


def settle(connection: sa.Connection, table: str) -> None:
    """Forget an earlier run, vacuum, write all to disk."""
    run(connection, "DROP TABLE IF EXISTS alembic_version")
    run(connection, "DROP SCHEMA IF EXISTS datamig CASCADE")
    connection.commit()
    vacuum = connection.execution_options(isolation_level="AUTOCOMMIT")
    run(vacuum, f"VACUUM ANALYZE {table}")
    run(vacuum, "CHECKPOINT")


# Alembic in a process of its own, which tells what it took beside its start.
_PROGRAM = """
import sys
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
import alembic.command, logging.config, psycopg, sqlalchemy.dialects.postgresql.psycopg
from alembic.config import main

def cpu():
    both = [getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in both)

before = cpu()
main(argv=["-c", sys.argv[1], "upgrade", "head"])
# ru_maxrss would hold what the process that started this one had.
(most,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print("took", cpu() - before, int(most) / 1024)
"""

_SECONDS = """
SELECT extract(epoch FROM max(heartbeat_at) - min(started_at)) FROM datamig.run WHERE part > 0
"""


def upgrade(database: Database, text: str) -> Work:
    """Run a revision's text by Alembic; the seconds are those of its walk, from datamig.run."""
    with tempfile.TemporaryDirectory() as directory:
        ini = dm.create_project(directory)
        Path(directory, "alembic", "versions", "it.py").write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, ini],
            env={**os.environ, "DATABASE_URL": database.dsn},
            check=False,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    cpu, memory = re.findall(r"^took (\S+) (\S+)$", done.stdout, re.MULTILINE)[0]
    with database.engine.connect() as connection:
        seconds = float(run(connection, _SECONDS).scalar_one())
    return Work(seconds=seconds, client_cpu_seconds=float(cpu), client_mb=float(memory))


def _size(connection: sa.Connection, table: str) -> int:
    return int(run(connection, f"SELECT pg_relation_size('{table}')").scalar_one())


def _position(connection: sa.Connection) -> str:
    return str(run(connection, "SELECT pg_current_wal_insert_lsn()").scalar_one())


def _server_cpu(connection: sa.Connection) -> float:
    """CPU seconds of all processes of the server on this machine, ended ones too."""
    backend = int(run(connection, "SELECT pg_backend_pid()").scalar_one())
    postmaster = int(_stat(str(backend))[1])

    def once() -> int:
        ticks = sum(map(int, _stat(str(postmaster))[11:15]))
        for path in Path("/proc").glob("[0-9]*"):
            fields = _stat(path.name)
            if fields and int(fields[1]) == postmaster:
                ticks += int(fields[11]) + int(fields[12])
        return ticks

    # A process that ends between the two looks is missed.
    return max(once() for _ in range(3)) / os.sysconf("SC_CLK_TCK")


def _stat(pid: str) -> list[str]:
    """Fields of /proc/PID/stat behind the name; none where the process is gone."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []

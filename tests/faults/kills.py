"""Ways to end a run of Alembic: before a chosen statement, or inside one of the database's own."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from datamig_nb import inlined_walk
from datamig_nb.database import Database
from tests.alembic_project import PRELOADED, AlembicProject
from tests.runs import scanned, wait_until
from tests.scratch import query

# Runs Alembic again and again: each run dies before the statement whose number it is given, until
# one arrives.  Each run is a fork, since importing Alembic takes longer than the run.
_DIE_BEFORE = f"""
import os, signal, sys, traceback
import sqlalchemy as sa
import {PRELOADED}
from alembic.config import main

def run(dies_at):
    seen = 0

    def count(connection, cursor=None, statement="", *_):
        nonlocal seen
        seen += bool(seen) or "alembic_version" in statement  # SQLAlchemy's own come before
        if seen == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    sa.event.listen(sa.Engine, "commit", count)
    try:
        main(argv=sys.argv[2:])
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)

moments = [int(word) for word in sys.argv[1].split(",") if word]
number, died = 0, True
while died:
    number += 1
    dies_at = number if not moments else moments[number - 1] if number <= len(moments) else -1
    child = os.fork() or run(dies_at)
    status = os.waitpid(child, 0)[1]
    died = os.WIFSIGNALED(status)
print(number if status == 0 else f"failed at {{number}}")
sys.exit(status != 0)
"""


def die_before_each_statement(
    database: Database,
    project: AlembicProject,
    *words: str,
    moments: Iterable[int] = (),
    arrives: bool = True,
) -> int:
    """Run Alembic until it arrives, or fails; killed one statement later each time.

    With ``moments``, each run is killed before the statement of that number, and the last is not.
    Gives the number of kills.
    """
    result = subprocess.run(
        [sys.executable, "-c", _DIE_BEFORE, ",".join(map(str, moments)), *words],
        cwd=project.directory,
        env={"DATABASE_URL": database.dsn, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode == 0) == arrives, result.stdout[-100:] + result.stderr[-3000:]
    return int(result.stdout.split()[-1]) - 1


# ---------------------------------------------------------------- inside the database

# Counts moments of a session's work: each row that it is about to write, each batch that moves its
# row of datamig.run, each such transaction about to commit.  At the chosen one it ends its own
# session.  A sequence counts, since nothing takes its numbers back.
_FUSE = f"""
CREATE SCHEMA fuse;
CREATE SEQUENCE fuse.moments;
CREATE FUNCTION fuse.burn() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('fuse.moments') = 0 THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
    END IF;
    RETURN coalesce(NEW, OLD);
END $$;
CREATE SCHEMA datamig;
{inlined_walk.RUN};
CREATE TRIGGER burn AFTER UPDATE ON datamig.run FOR EACH ROW EXECUTE FUNCTION fuse.burn();
CREATE CONSTRAINT TRIGGER burn_late AFTER UPDATE ON datamig.run DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION fuse.burn()
"""


def lay_fuse(database: Database, *tables: str) -> None:
    """Let the sessions that write to the tables end themselves where :func:`light_fuse` says."""
    rows = ";".join(
        f"CREATE TRIGGER burn BEFORE INSERT OR UPDATE OR DELETE ON {table}"
        " FOR EACH ROW EXECUTE FUNCTION fuse.burn()"
        for table in tables
    )
    query(database, f"{_FUSE};{rows}")
    light_fuse(database, None)


def light_fuse(database: Database, moments: int | None) -> None:
    """So many moments from now a session ends; None: none does."""
    start = 1 if moments is None else 1 - moments
    least = "MINVALUE -1000000"
    query(database, f"ALTER SEQUENCE fuse.moments {least} RESTART WITH {start}")


def has_burnt(database: Database) -> bool:
    """Whether the moment came."""
    return query(database, "SELECT last_value >= 0 AND is_called FROM fuse.moments") == [True]


# ---------------------------------------------------------------- at any moment

# A batch waits while so many rows are scanned: no walk is at its end before a test wants it to be,
# however fast the machine.
_GATE = """
CREATE SCHEMA gate;
CREATE TABLE gate.height (rows bigint);
INSERT INTO gate.height VALUES (0);
CREATE FUNCTION gate.wait() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('application_name') <> 'writer' THEN
        WHILE (SELECT sum(scanned) FROM datamig.run) >= (SELECT rows FROM gate.height) LOOP
            PERFORM pg_sleep(0.005);
        END LOOP;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER gate BEFORE UPDATE ON {table} EXECUTE FUNCTION gate.wait()
"""


def set_gate(database: Database, table: str) -> None:
    """Let batches on the table wait until :func:`open_gate`."""
    query(database, _GATE.format(table=table))


def open_gate(database: Database, rows: int = 10**9) -> None:
    """Let batches pass until so many rows are scanned, by all walks; writers always pass."""
    query(database, f"UPDATE gate.height SET rows = {rows}")


def opened_by_and_by(
    database: Database, chance: random.Random, times: int, rows: int
) -> Iterator[tuple[int, int]]:
    """Open the gate in so many steps, short of all rows; gives how many rows to wait for.

    The rest of each step may pass while the test strikes.  At last the gate is open.
    """
    for number in range(1, times + 1):
        height = rows * number // (times + 1)
        open_gate(database, height)
        yield number, chance.randint(min(scanned(database), height), height)
    open_gate(database)


def killed_while_it_runs(
    database: Database,
    project: AlembicProject,
    chance: random.Random,
    times: int,
    rows: int,
    *words: str,
) -> Counter[str]:
    """Kill runs of Alembic, or their sessions, at any moment; gives what was killed, how often.

    There must be a gate, and ``rows`` to scan.
    """
    killed: Counter[str] = Counter()
    for _, enough in opened_by_and_by(database, chance, times, rows):
        with project.start(database, *words) as running:
            deadline = time.monotonic() + chance.uniform(0.2, 3)
            wait_until(
                lambda enough=enough, deadline=deadline: (
                    scanned(database) >= enough or time.monotonic() > deadline
                )
            )
            assert not running.ended, running.log
            what = chance.choice(("client", "client and server's session", "server's session"))
            if "client" in what:
                running.kill(signal.SIGKILL)
            if "session" in what:  # which may not be there yet
                wait_until(lambda running=running: (end_sessions(database), running.ended)[-1])
            assert running.end().code in (1, -signal.SIGKILL), running.end().log
            killed[what] += 1
    return killed


def end_sessions(database: Database) -> None:
    """End the sessions of all but the writers."""
    query(
        database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ="
        f" '{database.url.database}' AND pid <> pg_backend_pid() AND application_name <> 'writer'",
    )

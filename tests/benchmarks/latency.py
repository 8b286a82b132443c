"""How long other writers wait while a table is migrated: 200 transactions a second, by pgbench.

Each transaction changes one row of the table, chosen at random.  Their latencies count from the
moment at which each was due, so that one that could not begin counts too.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database, run
from datamig_nb.server_setup import binaries
from tests.benchmarks import cost
from tests.benchmarks.backfill import STATUS, make

_RATE = 200

_SCRIPT = """
\\set id random(1, {rows})
UPDATE account SET remark = repeat('y', 60) WHERE id = :id;
"""


def measure(database: Database, rows: int) -> None:
    """Print latencies of the writers: nothing beside them, one UPDATE, the exported revision."""
    print("| beside the writers | seconds | transactions | median | p99 | longest |")
    print("|---" * 6 + "|")
    for name, change in (
        ("nothing", lambda: time.sleep(10)),
        ("one single UPDATE", lambda: _single(database)),
        ("the exported revision", lambda: _revision(database)),
    ):
        with database.engine.connect() as connection:
            make(connection, rows)
            cost.settle(connection, "account")
            if name == "one single UPDATE":
                run(connection, "ALTER TABLE account ADD COLUMN state text")
                connection.commit()
        seconds, latencies = _beside(database, rows, change)
        shares = {share: latencies[int(len(latencies) * share)] for share in (0.5, 0.99)}
        print(
            f"| {name} | {seconds:.1f} | {len(latencies):,} | {shares[0.5]:.1f} ms"
            f" | {shares[0.99]:.1f} ms | {latencies[-1]:.0f} ms |",
            flush=True,
        )


def _single(database: Database) -> None:
    with database.engine.begin() as connection:
        run(connection, f"UPDATE account SET state = {STATUS}")


def _revision(database: Database) -> None:
    state = dm.add_column("account", sa.Column("state", sa.Text()))
    migration = dm.Migration(
        "map",
        state,
        dm.keep_in_step("account", {"state": STATUS}),
        dm.backfill("account", {"state": STATUS}),
    )
    cost.upgrade(database, dm.render(database, migration).text)


def _beside(database: Database, rows: int, change: Callable[[], None]) -> tuple[float, list[float]]:
    """Seconds of the change, and the writers' latencies in ms while it ran, in order of size."""
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory, "script.sql")
        script.write_text(_SCRIPT.format(rows=rows), encoding="utf-8")
        dsn = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
        pgbench = subprocess.Popen(
            [
                *(binaries() / "pgbench", "--no-vacuum", "--file", script, "--log"),
                *("--client=8", f"--rate={_RATE}", "--time=600", dsn),
            ],
            cwd=directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            time.sleep(2)
            began = time.time()
            change()
            ended = time.time()
            time.sleep(2)  # what waited for the end of the change comes to its own
        finally:
            pgbench.terminate()
            pgbench.wait()
        latencies: list[float] = []
        for log in Path(directory).glob("pgbench_log.*"):
            for line in log.read_text().splitlines():
                # client, transaction, latency in µs, script, end as seconds and µs, lag in µs
                fields = line.split()
                if len(fields) < 7:
                    continue
                end, waited = int(fields[4]) + int(fields[5]) / 1e6, float(fields[2])
                if end > began and end - waited / 1e6 < ended:
                    latencies.append(waited / 1000)
        return ended - began, sorted(latencies)

"""Faults that stop an upgrade: its process dies, its server dies, the disk is full."""

from __future__ import annotations

import signal
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import sqlalchemy as sa

from datamig_nb.database import Database
from datamig_nb.display import counted
from datamig_nb.errors import RehearsalError
from datamig_nb.own_server import OwnServer, own_server
from datamig_nb.scene import FaultResult, Gauge, Scene, wait_for
from datamig_nb.snapshot import Snapshot

#: How often a process is killed, and a server crashed.
KILLS = 3
CRASHES = (signal.SIGQUIT, signal.SIGKILL)

#: PostgreSQL needs room for a segment of WAL in any case.
LEAST_LIMIT_BYTES = 16 * 1024**2


def kill(scene: Scene) -> FaultResult:
    """Kill Alembic's process in the middle, several times; then let it arrive."""
    began = time.monotonic()
    with scene.copy() as copy:
        gauge, killed = Gauge(scene, copy), list[float]()
        for moment in _moments(scene, KILLS):
            with scene.start(copy) as running:
                reached = wait_for(running, gauge, moment)
                if reached is None:
                    break
                running.kill(signal.SIGKILL)
            killed.append(reached)
            scene.progress(f"killed at {reached:.0%}")
        last = scene.upgrade(copy)
        return scene.result(
            "kill",
            began=began,
            done=f"killed Alembic's process (SIGKILL) {counted(len(killed), 'time')}",
            happened=_at(killed, gauge),
            run=last,
            found=scene.snapshot(copy),
        )


def crash(scene: Scene) -> FaultResult:
    """Crash the server in the middle, which only one of our own may suffer."""
    began = time.monotonic()
    with _on_own_server(scene) as (server, copy, expected):
        gauge, killed = Gauge(scene, copy), list[float]()
        for number, moment in zip(CRASHES, _moments(scene, len(CRASHES)), strict=True):
            with scene.start(copy) as running:
                reached = wait_for(running, gauge, moment)
                if reached is None:
                    break
                server.crash(number)
                running.wait()
            server.start()
            killed.append(reached)
            scene.progress(f"crashed at {reached:.0%}")
        return scene.result(
            "crash",
            began=began,
            done=f"{_OWN} (PostgreSQL {copy.version}): crashed the server"
            f" {counted(len(killed), 'time')}, by an immediate stop, then by SIGKILL of all its"
            " processes",
            happened=_at(killed, gauge),
            run=scene.upgrade(copy),
            found=scene.snapshot(copy),
            expected=expected,
        )


def full(scene: Scene) -> FaultResult:
    """Let the disk be full: no file may grow beyond the largest that there is."""
    began = time.monotonic()
    with _on_own_server(scene) as (server, copy, expected):
        with copy.read_only("looking for the largest file") as connection:
            largest = int(connection.execute(sa.text(_LARGEST)).scalar_one())
        limit = max(LEAST_LIMIT_BYTES, largest)
        server.limit_files(limit)
        stopped = scene.upgrade(copy)
        server.limit_files(None)
        happened = f"it stopped: {stopped.message}"
        if stopped.passed:
            happened = "no file wanted to grow beyond that, so nothing was tried"
        return scene.result(
            "full",
            began=began,
            done=f"{_OWN}: let no file grow beyond {limit / 1024**2:.0f} MB, as where the disk is"
            " full, then let them grow again",
            happened=happened,
            run=scene.upgrade(copy),
            found=scene.snapshot(copy),
            expected=expected,
        )


_OWN = "on a copy in a server of the rehearsal's own, since yours must not suffer"


@contextmanager
def _on_own_server(scene: Scene) -> Generator[tuple[OwnServer, Database, Snapshot]]:
    """A server of our own, a copy of the clone there, and what an undisturbed upgrade left there.

    Servers differ in settings by which values are shown, so each is compared with itself.
    """
    with own_server() as server:
        with scene.copy() as source:
            copy = server.take(source, "copy")
        undisturbed = server.copy(copy, "undisturbed")
        run = scene.upgrade(undisturbed)
        if not run.passed:
            raise RehearsalError(
                f"the upgrade failed in a server of the rehearsal's own: {run.message}",
                "install there what it needs, or leave this fault out",
            )
        yield server, copy, scene.snapshot(undisturbed)


def _moments(scene: Scene, count: int) -> list[float]:
    """Shares at which to stop an upgrade, one in each part of it; always the same for it."""
    chance = scene.chance
    return [(number + chance.uniform(0.2, 0.9)) / count for number in range(count)]


def _at(reached: Sequence[float], gauge: Gauge) -> str:
    if not reached:
        return "it arrived before it could be stopped, so nothing was tried"
    said = ", ".join(f"{share:.0%}" for share in reached)
    return f"it was stopped at {said} of its {gauge.unit}"


_LARGEST = "SELECT max(pg_relation_size(oid)) FROM pg_class WHERE relkind IN ('r', 'i', 't', 'm')"

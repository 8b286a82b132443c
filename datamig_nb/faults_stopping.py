"""Faults that stop a revision: its process dies, its server dies, the disk is full."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import sqlalchemy as sa

from datamig_nb.clones import maintain
from datamig_nb.database import Database
from datamig_nb.display import counted
from datamig_nb.errors import RehearsalError, ServerStartError
from datamig_nb.fault_scene import FaultResult, Gauge, Scene, Way, wait_for
from datamig_nb.measure import Measured
from datamig_nb.names import quote
from datamig_nb.own_server import OwnServer, own_server
from datamig_nb.snapshot import Snapshot

#: How often a process is killed, and a server crashed.
KILLS = 3
CRASHES = (signal.SIGQUIT, signal.SIGKILL)

#: PostgreSQL needs room for a segment of WAL in any case.
LEAST_LIMIT_BYTES = 16 * 1024**2


def kill(scene: Scene) -> FaultResult:
    """Kill Alembic's process in the middle, several times; then let it arrive: up, then down."""
    began = time.monotonic()
    with scene.copy() as copy:
        up = _killed(scene, copy, "upgrade", scene.cost, scene.expected)
        if scene.back is None or not up.passed:
            return up
        down = _killed(scene, copy, "downgrade", *scene.back)
        return replace(
            down,
            done=f"{up.done}, then {down.done}",
            happened=f"{up.happened}; on the way down {down.happened}",
            seconds=time.monotonic() - began,
        )


def _killed(
    scene: Scene, copy: Database, way: Way, cost: Measured, expected: Snapshot
) -> FaultResult:
    began = time.monotonic()
    gauge, killed = Gauge(cost, copy), list[float]()
    for moment in _moments(scene, KILLS):
        with scene.start(copy, way) as running:
            reached = wait_for(running, gauge, moment)
            if reached is None:
                break
            running.kill(signal.SIGKILL)
        killed.append(reached)
        scene.progress(f"killed at {reached:.0%} of the {way}")
    last = scene.run(copy, way)
    return scene.result(
        "kill",
        began=began,
        done=f"killed Alembic's process (SIGKILL) {counted(len(killed), 'time')} in the {way}",
        happened=_at(killed, gauge),
        run=last,
        found=scene.snapshot(copy, way),
        expected=expected,
        way=way,
    )


def crash(scene: Scene) -> FaultResult:
    """Crash the server in the middle, which only one of our own may suffer."""
    began = time.monotonic()
    with _on_own_server(scene) as (server, copy, expected):
        gauge, killed = Gauge(scene.cost, copy), list[float]()
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
            run=scene.run(copy),
            found=scene.snapshot(copy),
            expected=expected,
        )


def full(scene: Scene) -> FaultResult:
    """Let the disk be full: no file may outgrow the largest there is, nothing be sorted on disk."""
    began = time.monotonic()
    with _on_own_server(scene) as (server, copy, expected):
        limits, done = _limited(server, copy)
        stops = list[str]()
        while limits:
            run = scene.run(copy)
            if run.passed:
                break
            stops.append(run.message)
            hit = next((name for name in limits if name in run.message), next(iter(limits)))
            limits.pop(hit)()
        for lift in limits.values():
            lift()
        happened = "nothing wanted to grow beyond that, so nothing was tried"
        if stops:
            happened = f"it stopped: {'; then: '.join(stops)}"
        return scene.result(
            "full",
            began=began,
            done=f"{_OWN}: {done}, as where the disk is full, until it stopped",
            happened=happened,
            run=scene.run(copy),
            found=scene.snapshot(copy),
            expected=expected,
        )


def _limited(server: OwnServer, copy: Database) -> tuple[dict[str, Callable[[], None]], str]:
    """A word of the error that each limit gives -> what lifts it; and in words what is limited."""
    name = quote(str(copy.url.database))
    for setting in ("temp_file_limit = 0", "work_mem = '64kB'", "maintenance_work_mem = '1MB'"):
        maintain(copy, f"ALTER DATABASE {name} SET {setting}")
    limits = {"temp_file_limit": partial(maintain, copy, f"ALTER DATABASE {name} RESET ALL")}
    with copy.read_only("looking for the largest file") as connection:
        largest = int(connection.execute(sa.text(_LARGEST)).scalar_one())
    limit = max(LEAST_LIMIT_BYTES, largest)
    try:
        server.limit_files(limit)
    except ServerStartError as error:  # another system than Linux
        return limits, f"let nothing be sorted on disk ({error.what})"
    limits["file"] = partial(server.limit_files, None)
    said = f"let no file grow beyond {limit / 1024**2:.0f} MB, and nothing be sorted on disk"
    return limits, said


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
        run = scene.run(undisturbed)
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

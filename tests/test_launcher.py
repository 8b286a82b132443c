"""Runs of Alembic are forks of one process: each has its own end, and ends with its own code."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamig_nb.errors import RehearsalError
from datamig_nb.launcher import Launcher

#: What no run can do: its environment lacks the address of the database.
NOTHING = ["alembic.ini", "revisions", "upgrade", "head"]


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    """A launcher that ends with the test."""
    with Launcher() as launcher:
        yield launcher


def test_each_run_ends_with_its_own_output_and_code(launcher: Launcher, tmp_path: Path) -> None:
    failing = launcher.start(NOTHING, tmp_path, {})
    killed = launcher.start(["alembic.ini", "a" * 200_000], tmp_path, {"A": "é" * 100_000})
    os.killpg(killed.pid, signal.SIGKILL)

    assert "KeyError: 'DATAMIG_REHEARSAL_URL'" in failing.stdout.read()
    assert (failing.wait(), failing.poll()) == (1, 1)
    assert killed.wait() in (-signal.SIGKILL, 1)  # it may have been faster
    for fork in (failing, killed):
        fork.close()


def test_a_run_that_cannot_begin_says_what_to_do(launcher: Launcher, tmp_path: Path) -> None:
    launcher.start(NOTHING, tmp_path, {}).close()
    launcher._process.kill()  # pyright: ignore[reportPrivateUsage]
    launcher._process.wait()  # pyright: ignore[reportPrivateUsage]

    with pytest.raises(RehearsalError, match=r"could not be started.*rehearse again"):
        launcher.start(NOTHING, tmp_path, {})

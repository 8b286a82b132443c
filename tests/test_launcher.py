"""Runs of Alembic are forks of one process: each has its own end, and ends with its own code."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from datamig_nb.errors import RehearsalError
from datamig_nb.launcher import launcher

#: What no run can do: its environment lacks the address of the database.
NOTHING = ["alembic.ini", "revisions", "upgrade", "head"]


def test_each_run_ends_with_its_own_output_and_code(tmp_path: Path) -> None:
    failing = launcher().start(NOTHING, tmp_path, {})
    killed = launcher().start(["alembic.ini", "a" * 200_000], tmp_path, {"A": "é" * 100_000})
    os.killpg(killed.pid, signal.SIGKILL)

    assert "KeyError: 'DATAMIG_REHEARSAL_URL'" in failing.stdout.read()
    assert (failing.wait(), failing.poll()) == (1, 1)
    assert killed.wait() in (-signal.SIGKILL, 1)  # it may have been faster
    for fork in (failing, killed):
        fork.close()


def test_one_that_is_gone_says_what_to_do_and_has_a_successor(tmp_path: Path) -> None:
    gone = launcher()
    gone.start(NOTHING, tmp_path, {}).close()
    assert launcher() is gone
    gone._process.kill()  # pyright: ignore[reportPrivateUsage]
    gone._process.wait()  # pyright: ignore[reportPrivateUsage]

    with pytest.raises(RehearsalError, match=r"could not be started.*rehearse again"):
        gone.start(NOTHING, tmp_path, {})

    again = launcher().start(NOTHING, tmp_path, {})
    assert again.wait() == 1
    again.close()


def test_where_python_shall_look_elsewhere_there_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = launcher()

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert launcher() is not before

    monkeypatch.undo()
    assert launcher() is before

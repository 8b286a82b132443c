"""What the fault tests share: chance with a seed, a tally of the kills."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest

#: The random part of every test follows from it.
SEED = int(os.environ.get("FAULTS_SEED", "20261125"))

_kills: Counter[str] = Counter()


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Chance that can be had again: FAULTS_SEED=… pytest …"""
    print(f"FAULTS_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def killed(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """How often the test killed what, added up at the end of the run."""
    counted: Counter[str] = Counter()
    yield counted
    _kills.update({f"{request.node.name}, {what}": times for what, times in counted.items()})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many kill points there were."""
    if _kills:
        terminalreporter.section(f"{_kills.total()} kill points, FAULTS_SEED={SEED}")
        for what, times in _kills.items():
            terminalreporter.line(f"{times:5} {what}")

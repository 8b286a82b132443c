"""What the way back gives: proven by going it."""

from __future__ import annotations

from typing import Literal

from datamig_nb.alembic_runs import AlembicRun

Verdict = Literal["lossless", "lossy", "irreversible", "not known"]


def refuses(downgrade: AlembicRun) -> bool:
    """Whether the downgrade refused, as the revision says that it does."""
    return not downgrade.passed and "cannot be undone" in downgrade.message


def judge(downgrade: AlembicRun, differences: tuple[str, ...]) -> Verdict:
    """What the way back gives, from how it went and what was not as before after it."""
    if refuses(downgrade):
        return "irreversible"
    if not downgrade.passed:
        return "not known"
    return "lossy" if differences else "lossless"

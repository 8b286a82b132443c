"""What may go wrong with a revision file, found by reading it and the SQL that it sends."""

from __future__ import annotations

from dataclasses import dataclass

from datamig_nb.alembic_runs import Runner


@dataclass(frozen=True, kw_only=True)
class Hazard:
    """Something in the revision that may hurt in production."""

    #: Name of the rule that found it.
    rule: str
    #: Whether the revision is not ready because of it.
    blocking: bool
    #: What was found and what to do, in words.
    what: str


def find_hazards(runner: Runner) -> tuple[Hazard, ...]:
    """Look for hazards; ``runner.run("upgrade", "…:…", "--sql")`` gives the SQL."""
    del runner
    return ()

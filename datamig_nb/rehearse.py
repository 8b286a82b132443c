"""Run a rendered revision on a clone: up, checked, down, compared, up again.

The very bytes that were rendered go through Alembic in a process of its own; there is no second
engine that could behave otherwise.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from datamig_nb.clone import (
    VERSION_TABLE,
    cloned,
    differences,
    take_snapshot,
    user_tables,
    with_children,
)
from datamig_nb.database import Database
from datamig_nb.display import Shown
from datamig_nb.errors import DatamigError
from datamig_nb.migration import added_columns
from datamig_nb.render import Revision
from datamig_nb.validate import ValidationReport, validate
from datamig_nb.workers import work as work_off

#: What the way back gives: proven by going it.
Verdict = Literal["lossless", "lossy", "irreversible", "not known"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One thing that the rehearsal did."""

    name: str
    passed: bool
    seconds: float
    #: What was found, in words; empty where there is nothing to say.
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Rehearsal(Shown):
    """What happened when a revision ran on a clone."""

    revision: Revision
    #: SHA-256 of the bytes that ran.
    digest: str
    #: Version of the PostgreSQL it ran on.
    server_version: str
    #: Rows of the tables that the migration touches, before it ran.
    rows: int
    stages: tuple[Stage, ...]
    #: The migration's checks after the upgrade; None where it did not come so far.
    validation: ValidationReport | None
    verdict: Verdict

    @property
    def passed(self) -> bool:
        """Whether every stage passed."""
        return all(stage.passed for stage in self.stages)

    @property
    def summary(self) -> str:
        """The rehearsal in one line of words."""
        failed = [stage for stage in self.stages if not stage.passed]
        if failed:
            return f"FAILED at {failed[0].name}: {failed[0].detail}"
        return f"passed, the way back is {self.verdict}"

    @property
    def frame(self) -> pd.DataFrame:
        """One row a stage: ``stage``, ``passed``, ``seconds``, ``detail``."""
        return pd.DataFrame(
            [(s.name, s.passed, s.seconds, s.detail) for s in self.stages],
            columns=["stage", "passed", "seconds", "detail"],
        )

    def __repr__(self) -> str:
        lines = [
            f"Rehearsal of {self.revision.id} ({self.revision.migration.name}): {self.summary}"
        ]
        lines += [
            f"  {'passed' if s.passed else 'FAILED'}  {s.seconds:7.2f} s  {s.name}"
            + (f": {s.detail}" if s.detail else "")
            for s in self.stages
        ]
        return "\n".join(lines)


def rehearse(
    db: Database,
    revision: Revision,
    *,
    progress: Callable[[str], None] | None = None,
) -> Rehearsal:
    """Run the revision on a clone of the database: upgrade, checks, downgrade, upgrade.

    The clone lies on the same server and is dropped at the end.  Compared are every table's
    values, column by column, and the schema as pg_dump writes it: after the upgrade, all that the
    migration must not touch; after the downgrade, everything.

    Parameters
    ----------
    progress
        Called with the name of each stage as it begins.

    Raises
    ------
    RehearsalError, PermissionDeniedError
        If the rehearsal could not be carried out.  A revision that fails is no error: the
        rehearsal says so.
    """
    work = _Work(revision=revision, progress=progress or (lambda _: None))
    with tempfile.TemporaryDirectory(prefix="datamig-") as directory:
        _write_project(Path(directory), revision)
        work.project = Path(directory)
        try:
            with cloned(db, revision.id) as work.clone:
                _carry_out(work)
        except _StoppedError:
            pass
    return Rehearsal(
        revision=revision,
        digest=revision.digest,
        server_version=db.version,
        rows=work.rows,
        stages=tuple(work.stages),
        validation=work.validation,
        verdict=work.verdict,
    )


class _StoppedError(Exception):
    """A stage failed; the ones behind it have no meaning."""


@dataclass
class _Work:
    """A rehearsal under way."""

    revision: Revision
    progress: Callable[[str], None]
    project: Path = Path()
    clone: Database = field(init=False)
    stages: list[Stage] = field(default_factory=list)
    validation: ValidationReport | None = None
    verdict: Verdict = "not known"
    rows: int = 0

    def stage(self, name: str, work: Callable[[], str]) -> None:
        """Do the work and note it; what it returns is the detail, what it raises ends all."""
        self.progress(name)
        started = time.monotonic()
        try:
            detail, passed = work(), True
        except (_FailedError, DatamigError) as error:
            detail, passed = str(error), False
        seconds = time.monotonic() - started
        self.stages.append(Stage(name=name, passed=passed, seconds=seconds, detail=detail))
        if not passed:
            raise _StoppedError


class _FailedError(Exception):
    """The revision did not do what it must; the message says what."""


def _carry_out(work: _Work) -> None:
    tables = user_tables(work.clone)
    before = take_snapshot(work.clone, tables)
    backfills = work.revision.migration.backfills
    written = [(step.table, tuple(step.assign)) for step in backfills]
    written += [(step.table, step.columns) for step in work.revision.migration.transforms]
    named = {*added_columns(work.revision.migration), *(table for table, _ in written)}
    holding = with_children(work.clone, named)
    touched = {name for children in holding.values() for name in children}
    work.rows = sum(
        int(hashes["number of rows"]) for name, hashes in before.tables.items() if name in touched
    )
    filled = {
        f"{name}.{column}"
        for table, columns in written
        for name in holding[table]
        for column in columns
    }

    def unchanged(*, schema: bool) -> str:
        after = take_snapshot(work.clone, tables)
        found = [d for d in differences(before, after) if schema or not d.startswith("the schema")]
        found = [d for d in found if schema or d not in filled]
        if found:
            raise _FailedError(f"differs from before: {', '.join(found)}")
        return f"{len(tables)} tables"

    def way_back() -> str:
        try:
            _alembic(work, "downgrade", work.revision.down_revision or "base")
        except _FailedError as error:
            if "cannot be undone" not in str(error):
                raise
            work.verdict = "irreversible"
            return "refused, as the revision says"
        return ""

    work.stage("upgrade", lambda: _alembic(work, "upgrade", work.revision.id))
    work.stage("checks", lambda: _checks(work))
    work.stage("everything else unchanged", lambda: unchanged(schema=False))
    work.stage("downgrade", way_back)
    if work.verdict == "irreversible":
        return
    work.verdict = "lossy"
    work.stage("equal to before", lambda: unchanged(schema=True))
    work.verdict = "lossless"
    work.stage("upgrade again", lambda: _alembic(work, "upgrade", work.revision.id))
    work.stage("checks again", lambda: _checks(work))


def _checks(work: _Work) -> str:
    if any(step.walk.job is not None for step in work.revision.migration.backfills):
        work_off(work.clone, work.revision.id)
    if not any(not check.before for check in work.revision.migration.checks):
        return "the migration has none"
    work.validation = validate(work.clone, work.revision.migration)
    if not work.validation.passed:
        failed = [result for result in work.validation.results if not result.passed]
        raise _FailedError(f"{failed[0].name}: {failed[0].failing_rows} rows fail")
    return work.validation.summary


# ---------------------------------------------------------------- Alembic

_ENV = f"""\
import logging, os
import sqlalchemy as sa
from alembic import context

logging.basicConfig(level=logging.INFO, format="%(message)s")
engine = sa.create_engine(os.environ["DATAMIG_REHEARSAL_URL"], poolclass=sa.pool.NullPool)
with engine.connect() as connection:
    context.configure(
        connection=connection, transaction_per_migration=True, version_table="{VERSION_TABLE}"
    )
    with context.begin_transaction():
        context.run_migrations()
"""

_INI = "[alembic]\nscript_location = %(here)s\n"


def _write_project(directory: Path, revision: Revision) -> None:
    """The smallest Alembic project that holds the revision, and the one it follows as a stub."""
    versions = directory / "versions"
    versions.mkdir()
    (directory / "alembic.ini").write_text(_INI, encoding="utf-8")
    (directory / "env.py").write_text(_ENV, encoding="utf-8")
    (versions / f"{revision.id}.py").write_bytes(revision.text.encode())
    if revision.down_revision is not None:
        stub = (
            f"revision = {revision.down_revision!r}\ndown_revision = None\n"
            "def upgrade(): pass\ndef downgrade(): pass\n"
        )
        (versions / "stub.py").write_text(stub, encoding="utf-8")


def _alembic(work: _Work, command: str, target: str) -> str:
    """Run Alembic as a person would, in a process of its own; a failure gives its message."""
    result = subprocess.run(
        [sys.executable, "-m", "alembic", command, target],
        cwd=work.project,
        env={**os.environ, "DATAMIG_REHEARSAL_URL": work.clone.dsn},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise _FailedError(_message(result.stderr))
    return ""


def _message(stderr: str) -> str:
    """The sentence in which Alembic's output ends, without the traceback and the SQL around it."""
    lines = stderr.strip().splitlines() or ["Alembic stopped without a message"]
    tracebacks = [number for number, line in enumerate(lines) if line.startswith("Traceback (")]
    if tracebacks:
        last = (line for line in lines[tracebacks[-1] + 1 :] if not line.startswith(" "))
        return re.sub(_OUR_OWN_OR_THE_DRIVERS, "", next(last, lines[-1]))
    return lines[-1]


# Classes that say nothing that the message does not say.
_OUR_OWN_OR_THE_DRIVERS = r"^(RuntimeError|sqlalchemy\.exc\.\w+): (\(psycopg\.errors\.\w+\) )?"

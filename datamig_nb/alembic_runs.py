"""Run Alembic for one revision on one database, in processes that can be watched and killed."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from datamig_nb.alembic_process import IDENTITY, PREPARE, led_to
from datamig_nb.database import Database
from datamig_nb.errors import RehearsalError
from datamig_nb.launcher import Fork, Launcher, launcher
from datamig_nb.names import TableName
from datamig_nb.render import Revision
from datamig_nb.vetted import bare

_numbers = itertools.count(1)


class LogLine(NamedTuple):
    """A line that Alembic wrote."""

    #: Since the process was started.
    seconds: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Statements of one form that Alembic sent in one transaction; literals make no form."""

    #: A number that tells transactions apart.
    transaction: int
    #: The first of them.
    text: str
    times: int
    #: Read or written, by all of them and by the one that had most.
    rows: int
    most_rows: int
    #: When the first and the last were sent, since Alembic was there.
    first_seconds: float
    last_seconds: float
    #: Whether the last one failed.
    failed: bool


@dataclass(frozen=True, kw_only=True)
class AlembicRun:
    """How a run of Alembic ended."""

    #: As one types them after ``alembic``: ``("upgrade", "3f2a…")``.
    words: tuple[str, ...]
    #: Exit code; negative: the signal that ended it.
    code: int
    seconds: float
    log: tuple[LogLine, ...]
    #: What it sent, in order; empty where it was killed.
    statements: tuple[Sent, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether Alembic did what it was asked."""
        return self.code == 0

    @property
    def message(self) -> str:
        """The sentence in which the output ends, without the traceback and the SQL around it."""
        lines = [line.text for line in self.log if line.text.strip()]
        if not lines:
            return f"Alembic ended with code {self.code} and without a message"
        tracebacks = [n for n, line in enumerate(lines) if line.startswith("Traceback (")]
        last = lines[-1]
        if tracebacks:
            ends = (line for line in lines[tracebacks[-1] + 1 :] if not line.startswith(" "))
            last = next(ends, last)
        return re.sub(_SAYS_NOTHING, "", last.strip())


# Classes of errors and marks that say nothing that the message does not say.
_SAYS_NOTHING = r"^(FAILED: |(RuntimeError|sqlalchemy\.exc\.\w+): (\(psycopg\.errors\.\w+\) )?)"


class Running:
    """A run of Alembic under way; ``with`` kills it at the latest."""

    def __init__(
        self,
        process: Fork,
        words: Sequence[str],
        told: Callable[[str], None],
        statements: Path,
    ) -> None:
        self._process, self._words, self._told = process, tuple(words), told
        self._statements = statements
        self._began = time.monotonic()
        self._lines: list[LogLine] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.wait()
        self._reader.join()
        self._process.close()

    @property
    def log(self) -> tuple[LogLine, ...]:
        """What it wrote so far."""
        return tuple(self._lines)

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self._process.poll() is not None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to it and to what it started; nothing happens where it is over."""
        if not self.ended:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def wait(self) -> AlembicRun:
        """Wait for its end; each line is told as it comes."""
        told = 0
        while True:
            last = not self._reader.is_alive()
            for line in self._lines[told:]:
                told += 1
                self._told(line.text)
            if last:
                break
            self._reader.join(0.05)
        code = self._process.wait()
        seconds = time.monotonic() - self._began
        sent = json.loads(self._statements.read_bytes()) if self._statements.exists() else ()
        return AlembicRun(
            words=self._words,
            code=code,
            seconds=seconds,
            log=self.log,
            statements=tuple(Sent(**statement) for statement in sent),
        )

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.append(LogLine(time.monotonic() - self._began, line.rstrip("\n")))


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Where a database was brought before the revision runs on it."""

    #: Alembic's own table there.
    version_table: TableName
    #: What was done to get there, in words; empty where nothing was.
    said: str
    #: Whether revisions before it ran to get there.
    upgraded: bool
    #: The revision as ``alembic upgrade --sql`` writes it; empty where it cannot, for this reason.
    script: str
    unscripted: str


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Alembic for one revision on one database, and on no other.

    With the user's project its settings and its ``env.py`` are used where they lie; the revision
    lies elsewhere, so that nothing is written there.
    """

    revision: Revision
    ini: Path
    #: The directory that holds the revision.
    place: Path
    database: Database
    launcher: Launcher = field(repr=False)
    #: Called with each line that Alembic writes, in the thread that waits for it.
    told: Callable[[str], None] = field(default=lambda _: None, repr=False)

    def on(self, database: Database) -> Runner:
        """The same on another database."""
        return replace(self, database=database)

    def start(self, *words: str) -> Running:
        """Start ``alembic`` with these words; use it in a ``with``."""
        statements = self.place.parent / f"statements_{next(_numbers)}.json"
        environment = {
            **_environment(self.database),
            "DATAMIG_REHEARSAL_STATEMENTS": str(statements),
        }
        given = [str(self.ini), str(self.place), *words]
        process = self.launcher.start(given, self.ini.parent, environment)
        return Running(process, words, self.told, statements)

    def run(self, *words: str) -> AlembicRun:
        """Run ``alembic`` with these words to its end."""
        with self.start(*words) as running:
            return running.wait()

    def prepare(self) -> Beginning:
        """Bring the database to where the revision begins.

        Raises
        ------
        RehearsalError
            If the project's ``env.py`` does not run, or connects elsewhere, or the revision is done
            there; nothing was written.
        """
        answer = self.place / "prepared.json"
        run = self.run(PREPARE, self.revision.down_revision or "", self.revision.id, str(answer))
        if not run.passed:
            raise RehearsalError(
                f"the project's Alembic does not run on the copy: {run.message}",
                "make 'alembic upgrade' work on a copy of the database first",
            )
        found = json.loads(answer.read_text(encoding="utf-8"))
        if found["done"]:
            raise RehearsalError(
                f"the database has the revision {self.revision.id} already",
                "give one where it has not run, or restore a copy from before",
            )
        schema, name = found["version_table"]
        begin, stamped = self.revision.down_revision, found["stamped"]
        said = [f"stamped {stamped}"] if stamped else []
        if found["upgraded"]:
            heads = ", ".join(found["heads"])
            said.append(f"upgraded from {heads or stamped or 'base'} to {begin}")
        return Beginning(
            version_table=TableName(schema, name),
            said=", ".join(said),
            upgraded=found["upgraded"],
            script=found["script"],
            unscripted=found["unscripted"],
        )


@contextmanager
def runner_for(
    revision: Revision, database: Database, told: Callable[[str], None]
) -> Generator[Runner]:
    """Put the revision where Alembic finds it: beside its project, else in one made for it.

    One that lies in its project already stays where it is, beside the files that it reads.
    """
    with tempfile.TemporaryDirectory(prefix="datamig-") as directory:
        place = Path(directory, "revision")
        place.mkdir()
        ini = revision.alembic
        if ini is None or revision.path is None:
            (place / f"{revision.id}.py").write_bytes(revision.text.encode())
        elif bare(revision.path.read_text(encoding="utf-8")) != revision.text:
            raise RehearsalError(f"{revision.path.name} changed since it was read", "read it again")
        if ini is None:
            ini = _smallest_project(Path(directory), revision.down_revision)
        yield Runner(
            revision=revision,
            ini=ini.resolve(),
            place=place,
            database=database,
            launcher=launcher(),
            told=told,
        )


#: Alembic's table where no project is given: apart from the project's own, which may be there.
VERSION_TABLE = "datamig_rehearsal_version"

_ENV = f"""\
import logging
import sqlalchemy as sa
from alembic import context

logging.basicConfig(level=logging.INFO, format="%(message)s")
url = context.config.get_main_option("sqlalchemy.url")
with sa.create_engine(url, poolclass=sa.pool.NullPool).connect() as connection:
    context.configure(
        connection=connection, transaction_per_migration=True, version_table="{VERSION_TABLE}"
    )
    with context.begin_transaction():
        context.run_migrations()
"""


def _smallest_project(directory: Path, down_revision: str | None) -> Path:
    """A project without revisions, but for a stub of the one that is followed."""
    versions = directory / "versions"
    versions.mkdir()
    ini = directory / "alembic.ini"
    ini.write_text("[alembic]\nscript_location = %(here)s\n", encoding="utf-8")
    (directory / "env.py").write_text(_ENV, encoding="utf-8")
    if down_revision is not None:
        stub = f"revision = {down_revision!r}\ndown_revision = None\n"
        (versions / "stub.py").write_text(f"{stub}def downgrade(): pass\n", encoding="utf-8")
    return ini


def identity(database: Database) -> str:
    """What tells a database from every other, until its server starts anew."""
    with database.read_only("looking up the database") as connection:
        return str(connection.execute(sa.text(IDENTITY)).scalar_one())


def _environment(database: Database) -> dict[str, str]:
    """Our own environment, in which every address of PostgreSQL is that of the database."""
    url = database.dsn
    found = {name: led_to(url, value) or value for name, value in os.environ.items()}
    for name in [name for name in found if name in _LIBPQ]:
        del found[name]
    address = database.url.query.get("host"), database.url.query.get("port")
    libpq = {
        "PGHOST": database.url.host or address[0],
        "PGPORT": database.url.port or address[1],
        "PGUSER": database.url.username,
        "PGPASSWORD": database.url.password,
        "PGDATABASE": database.url.database,
    }
    return {
        "DATABASE_URL": url,
        **found,
        **{name: str(value) for name, value in libpq.items() if value},
        "DATAMIG_REHEARSAL_URL": url,
        "DATAMIG_REHEARSAL_IDENTITY": identity(database),
    }


_LIBPQ = {"PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSERVICE"}

"""An Alembic project as ``alembic init`` makes it, and Alembic run there as a person runs it."""

from __future__ import annotations

import atexit
import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config

from datamig_nb.database import Database
from datamig_nb.render import Revision

# What env.py gets in front of it: a production machine has neither of these.
_PRODUCTION = '''\
import os
import sys

ABSENT = {"datamig_nb", "pandas", "IPython"}


class NotInProduction:
    """Refuses to import what a revision must not need."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is not there in production")


assert not ABSENT & set(sys.modules)
sys.meta_path.insert(0, NotInProduction())
'''

_URL = (
    'config.set_main_option("sqlalchemy.url", os.environ["DATABASE_URL"].replace("%", "%%"))\n'
    'per_migration = os.environ.get("TRANSACTION_PER_MIGRATION") == "yes"\n'
)

_PLAIN_REVISION = """\
from alembic import op

revision = {id!r}
down_revision = {down!r}


def upgrade():
    op.execute({statement!r})


def downgrade():
    pass
"""

#: Modules that every run of Alembic needs.
PRELOADED = "alembic.command, logging.config, psycopg, sqlalchemy.dialects.postgresql.psycopg"

# Importing Alembic takes much longer than most runs do.  One process imports it; each run is a fork
# of that, and ends as "python -m alembic" would; who waits for it writes down how it ended.
_LAUNCHER = f"""
import json, os, signal, sys, traceback
import {PRELOADED}
from alembic.config import main

# A revision that a test writes again in the same second would be taken for the one before it.
sys.dont_write_bytecode = True

def run(order):
    os.chdir(order["directory"])
    os.environ.clear()
    os.environ.update(order["environment"])
    log = os.open(order["place"] + ".log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        main(order["words"], prog="alembic")
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 255)

def write(path, number):
    with open(path + ".new", "w") as file:
        file.write(str(number))
    os.rename(path + ".new", path)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # a shell starts what runs in the background with SIGINT ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        order = json.loads(line)
        child = os.fork() or run(order)
        write(order["place"] + ".pid", child)
        write(order["place"] + ".code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(0)
"""

_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run of Alembic ended."""

    #: Exit code; negative: the signal that ended it.
    code: int
    #: All that it wrote, log and traceback.
    log: str

    @property
    def sentence(self) -> str:
        """The last line, which tells what was wrong, without the name of the error's class."""
        return self.log.strip().splitlines()[-1].partition(": ")[2]


@dataclass(frozen=True, kw_only=True)
class Running:
    """A run of Alembic under way; ``with`` ends it at the latest."""

    #: Files that begin so hold its log, its process id and its exit code.
    place: Path

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.ended:
            self.kill(signal.SIGKILL)
            self.end()

    def kill(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(int(_awaited(self._file("pid"), 10)), number)

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self._file("code").exists()

    @property
    def log(self) -> str:
        """What it wrote so far."""
        file = self._file("log")
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def end(self, seconds: float = 120) -> Outcome:
        """Wait for its end."""
        code = int(_awaited(self._file("code"), seconds))
        return Outcome(code=code, log=self.log)

    def _file(self, kind: str) -> Path:
        return self.place.with_suffix(f".{kind}")


@dataclass(frozen=True, kw_only=True)
class AlembicProject:
    """A project whose ``env.py`` takes ``DATABASE_URL`` and cannot import our package."""

    directory: Path

    @property
    def ini(self) -> Path:
        """Path of alembic.ini."""
        return self.directory / "alembic.ini"

    @property
    def env(self) -> Path:
        """Path of env.py."""
        return self.directory / "alembic" / "env.py"

    def add(self, revision: Revision, settings: Mapping[str, object] | None = None) -> Path:
        """Put a rendered revision in place, with other values for settings such as ATTEMPTS."""
        path = self.directory / "alembic" / "versions" / f"{revision.id}.py"
        path.write_text(with_settings(revision.text, settings or {}), encoding="utf-8")
        return path

    def add_plain(self, id: str, statement: str, down: str | None = None) -> None:
        """Put a revision in place that sends one statement, as people write them."""
        path = self.directory / "alembic" / "versions" / f"{id}.py"
        text = _PLAIN_REVISION.format(id=id, down=down, statement=statement)
        path.write_text(text, encoding="utf-8")

    def alembic(self, database: Database, *words: str, **environment: str) -> Outcome:
        """Run ``alembic`` with these words on a database and wait for its end."""
        with self.start(database, *words, **environment) as running:
            return running.end()

    def start(self, database: Database, *words: str, **environment: str) -> Running:
        """Start ``alembic`` with these words on a database, in a process of its own."""
        running = Running(place=self.directory / f"run_{next(_numbers)}")
        order = {
            "directory": str(self.directory),
            "environment": {**_environment(), **environment, "DATABASE_URL": database.dsn},
            "place": str(running.place),
            "words": words,
        }
        stream = _launcher().stdin
        assert stream is not None
        stream.write(json.dumps(order) + "\n")
        stream.flush()
        return running


def make_project(directory: Path, template: str = "generic") -> AlembicProject:
    """``alembic init alembic`` in a new directory, then env.py edited, as each user must.

    The other template is "async", for an env.py with an asynchronous driver.
    """
    directory.mkdir()
    project = AlembicProject(directory=directory)
    with contextlib.redirect_stdout(io.StringIO()):  # Alembic says "Creating …"
        command.init(Config(project.ini), str(directory / "alembic"), template)
    text = project.env.read_text(encoding="utf-8")
    text = _replaced(text, "config = context.config\n", f"config = context.config\n{_URL}")
    text = _replaced(
        text,
        "connection=connection, target_metadata=target_metadata",
        "connection=connection,\n            target_metadata=target_metadata,\n"
        "            transaction_per_migration=per_migration,",
    )
    project.env.write_text(_PRODUCTION + text, encoding="utf-8")
    return project


def with_settings(text: str, settings: Mapping[str, object]) -> str:
    """A revision's text with other values in its lines of settings."""
    for name, value in settings.items():
        lines = [line for line in text.splitlines() if line.startswith(f"{name} = ")]
        assert lines or name == "JOINED_BATCH_ROWS", f"the revision has no setting {name}"
        for line in lines:
            text = _replaced(text, f"\n{line}\n", f"\n{name} = {value!r}\n")
    return text


@cache
def _launcher() -> subprocess.Popen[str]:
    launcher = subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER],
        env=_environment(),
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for pytest alone
    )

    def end() -> None:
        assert launcher.stdin is not None
        launcher.stdin.close()
        launcher.wait(10)

    atexit.register(end)
    return launcher


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _awaited(file: Path, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < deadline, f"no {file.name} after {seconds} s"
        time.sleep(0.005)
    return file.read_text()


def _replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
    return text.replace(old, new)

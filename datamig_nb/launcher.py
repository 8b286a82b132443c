"""Start Alembic often, and import it once: a process that forks for each run."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from datamig_nb import alembic_process
from datamig_nb.errors import RehearsalError


class Fork:
    """A run of Alembic, with what :class:`subprocess.Popen` has of one that it started."""

    def __init__(self, output: int, ending: int) -> None:
        self.stdout: IO[str] = open(output, encoding="utf-8", errors="replace")  # noqa: SIM115
        self._ending = open(ending)  # noqa: SIM115
        said = self._ending.readline()
        if not said:
            self.close()
            raise RehearsalError(
                "Alembic could not be started", "see whether memory is left, and rehearse again"
            )
        #: Its process id, and that of the session that it leads.
        self.pid = int(said)
        self._code: int | None = None

    def close(self) -> None:
        """Hear no more of it."""
        self.stdout.close()
        self._ending.close()

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        if self._code is None and select.select([self._ending], [], [], 0)[0]:
            self.wait()
        return self._code

    def wait(self) -> int:
        """Wait for its end; gives its exit code."""
        if self._code is None:
            self._code = int(self._ending.readline() or -9)
        return self._code


# Nothing is written in the project, by a run or what it starts; what is said is seen at once.
_PYTHON = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}


class Launcher:
    """A process that has imported Alembic, and ends when nobody can give it orders any more."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair()
        self._one_thread = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", alembic_process.__file__],
                env={**os.environ, **_PYTHON},
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def gone(self) -> bool:
        """Whether it ended, as by a signal."""
        return self._process.poll() is not None

    def close(self) -> None:
        """Give it no more orders."""
        self._orders.close()

    def start(self, words: Sequence[str], directory: Path, environment: Mapping[str, str]) -> Fork:
        """Run :func:`datamig_nb.alembic_process.main` with these words, in a fork."""
        given = {
            "words": [*words],
            "directory": str(directory),
            "environment": {**environment, **_PYTHON},
        }
        order = json.dumps(given).encode()
        (output, theirs), (ending, also_theirs) = os.pipe(), os.pipe()
        try:
            with self._one_thread:
                socket.send_fds(self._orders, [len(order).to_bytes(4)], [theirs, also_theirs])
                self._orders.sendall(order)
        except OSError:
            pass  # it is gone: nothing will say the process id
        finally:
            os.close(theirs)
            os.close(also_theirs)
        return Fork(output, ending)


#: By process, since one that is forked from another has its socket, too; and by where Python looks
#: for modules, which it reads once.
_launchers: dict[tuple[int, str | None], Launcher] = {}


def launcher() -> Launcher:
    """That of this process: started for its first rehearsal, and again where it is gone."""
    key = os.getpid(), os.environ.get("PYTHONPATH")
    found = _launchers.get(key)
    if found is not None and found.gone:
        found.close()
        found = None
    if found is None:
        found = _launchers[key] = Launcher()
    return found

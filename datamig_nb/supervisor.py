"""Keeps one PostgreSQL server running for as long as somebody uses it.

``server`` runs this file by its path, as a process of its own, so it imports nothing but the
standard library and is there in a few hundredths of a second::

    python -I -S supervisor.py LOCK HOME DATA SOCKETS [postgres -D DATA -k SOCKETS ...]

``LOCK`` is an inherited descriptor that holds ``supervisor.lock``: only its holder starts,
watches or stops the server.  The kernel takes back the locks of a dead process, however it died,
so an exclusive lock on ``users.lock``, where every using process holds a shared one, means that
nobody is left.  A supervisor that is killed leaves the server running; the next one gets no
command, and adopts it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

#: Not a TCP port: the end of the socket's name.
PORT = 5432

#: Nothing of the notebook's environment: libraries, locale, time zone, secrets.
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}

#: Seconds between two looks at the users and the server.
POLL_SECONDS = 0.2

#: How a server is told to end, and for how many seconds before the next, ruder way.
STOP_SIGNALS = ((signal.SIGINT, 60), (signal.SIGQUIT, 10), (signal.SIGKILL, 10))


def try_lock(path: Path, operation: int) -> int | None:
    """Lock a file without waiting: its descriptor, or None while somebody else holds it.

    Programs that this process starts do not get the descriptor, and so not the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def find_postmaster(data: Path, pid_file: Path) -> int | None:
    """The process named in a pid file, if it is the server of this data directory."""
    try:
        pid = int(pid_file.read_text().partition("\n")[0])
    except (OSError, ValueError):
        return None
    return pid if serves(pid, data) else None


def serves(pid: int, data: Path) -> bool:
    """Whether a process is the server of this data directory.

    Its number alone does not tell: that may be a zombie's by now, or another program's.
    """
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        if Path("/proc/self").exists():
            return False
        listing = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
        command = subprocess.run(listing, capture_output=True, check=False).stdout
    return os.fsencode(f" -D {data} -k ") in command


def stop(pid: int, running: Callable[[], bool]) -> None:
    """End a server, cutting off its sessions, and wait until it has ended."""
    for number, seconds in STOP_SIGNALS:
        deadline = time.monotonic() + seconds
        while running() and time.monotonic() < deadline:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            time.sleep(0.02)


def _redirect(log: Path) -> None:
    """Let go of the notebook's streams and directory; postgres inherits what is set here."""
    os.chdir("/")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # closed to others: statements that failed are in it, with the values of their rows
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(target, 1)
    os.dup2(target, 2)


def _start(command: list[str], data: Path) -> subprocess.Popen[bytes]:
    root, owner = os.geteuid() == 0, data.stat()
    return subprocess.Popen(
        command,
        env=ENVIRONMENT,
        # a session of its own, so that it outlives a supervisor killed with its group
        start_new_session=True,
        # postgres does not run as root, so root gave the data to somebody else
        user=owner.st_uid if root else None,
        group=owner.st_gid if root else None,
        extra_groups=[] if root else None,
    )


def watch(users: Path, socket: Path, running: Callable[[], bool]) -> None:
    """Return when the server has ended, when nobody can reach it, or when nobody uses it."""
    reachable = False
    while running():
        # kept until this process ends: who comes now waits, and then starts the server again
        if try_lock(users, fcntl.LOCK_EX) is not None:
            return
        if reachable and not socket.exists():
            return  # somebody emptied the temporary directory
        reachable = socket.exists()
        time.sleep(POLL_SECONDS)


def main(lock: int, home: Path, data: Path, sockets: Path, command: list[str]) -> None:
    """Start the server, or adopt the one that runs; stop it after its last user."""
    os.set_inheritable(lock, False)
    if os.fork():
        os._exit(0)  # the notebook waits for this one; the supervisor is nobody's child
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    _redirect(home / "server.log")
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit())

    child = _start(command, data) if command else None
    pid = child.pid if child else find_postmaster(data, data / "postmaster.pid") or 0

    def running() -> bool:
        return child.poll() is None if child else serves(pid, data)

    try:
        watch(home / "users.lock", sockets / f".s.PGSQL.{PORT}", running)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop(pid, running)
        with suppress(OSError):
            # another supervisor has its place if the home was deleted and made again meanwhile
            if os.path.samestat(os.fstat(lock), (home / "supervisor.lock").stat()):
                sockets.rmdir()


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(Path, sys.argv[2:5]), command=sys.argv[5:])

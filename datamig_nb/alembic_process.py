"""Alembic as a rehearsal runs it: in a process of its own, held to one database.

Started as a program, with the project's own settings and ``env.py``; nothing of ours is imported.
Whatever address ``env.py`` finds, SQLAlchemy connects to the database of the rehearsal, and a
session that leads elsewhere all the same is refused before its first statement.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
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

# What the docstring of a revision says that was rendered.
_OURS = "Written by datamig_nb"

_POSTGRESQL = re.compile(r"postgres(?:ql)?(\+\w+)?://")


def led_to(url: str, value: str) -> str | None:
    """The URL of the rehearsal, with the driver of ``value`` where that is one of PostgreSQL."""
    found = _POSTGRESQL.match(value)
    return found and f"postgresql{found[1] or ''}://{url.split('://', 1)[1]}"


def _hold_to(url: sa.URL, identity: str) -> None:
    """Lead every connection of SQLAlchemy to the database, and look whether it got there."""

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
        raise CommandError(
            "env.py of the project connects to another database than that of the rehearsal"
        )

    event.listen(sa.Engine, "do_connect", lead)
    event.listen(sa.Engine, "engine_connect", look)


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


def _prepare(ini: str, begin: str | None, url: str) -> dict[str, Any]:
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
    known: Any = None if seen["heads"] else begin
    while known and _OURS in (script.get_revision(known).longdoc or ""):
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
            seen = _prepare(ini, begin or None, url)
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


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)

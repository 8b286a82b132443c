"""The copies that rehearsals make: named, claimed while somebody works on them, listed, dropped.

A process that works on a clone holds an advisory lock named after it, which ends with its session
however the process ends.  A clone whose lock is free, and whose process is not alive on this
machine, was left by a crash: the next rehearsal drops it.
"""

from __future__ import annotations

import datetime
import getpass
import json
import os
import secrets
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd
import psycopg
import sqlalchemy as sa

from datamig_nb.database import Database, explained, run
from datamig_nb.display import Shown
from datamig_nb.errors import DatabaseError
from datamig_nb.names import literal, quote

#: Names of clones begin so; the revision and the process follow.
PREFIX = "datamig_clone_"

# First half of the key of every such lock; the other is the hash of the clone's name.
_LOCK = 1684107123


@dataclass(frozen=True, kw_only=True)
class LeftClone:
    """A clone that is on a server."""

    name: str
    #: The database it is a copy of; empty where its maker was stopped before it said so.
    source: str
    #: Who made it, as ``user@host``.
    made_by: str
    #: When, as ISO 8601 in UTC.
    made_at: str
    size_bytes: int
    #: Whether a rehearsal is at work on it.
    in_use: bool


@dataclass(frozen=True, kw_only=True)
class Clones(Shown):
    """The clones of a server."""

    clones: tuple[LeftClone, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """One row a clone, in columns that are named as the fields of LeftClone."""
        names = list(LeftClone.__dataclass_fields__)
        rows = [[getattr(clone, name) for name in names] for clone in self.clones]
        return pd.DataFrame(rows, columns=names)

    def __repr__(self) -> str:
        lines = [
            f"  {'in use' if clone.in_use else 'left'}  {clone.name}, of {clone.source or '?'},"
            f" made by {clone.made_by or '?'} {clone.made_at}, {clone.size_bytes / 1e6:,.0f} MB"
            for clone in self.clones
        ]
        return "\n".join([f"Clones: {len(lines) or 'none'}", *lines])


def clones(db: Database) -> Clones:
    """The clones on the server of a database that the role may drop.

    Those of ``rehearse(…, on="sample")`` are on the embedded server.
    """
    with db.read_only("listing the clones") as connection:
        rows = connection.execute(sa.text(_CLONES), {"prefix": PREFIX, "lock": _LOCK}).mappings()
        return Clones(clones=tuple(_left(row) for row in rows))


def drop_clones(db: Database) -> Clones:
    """Drop the clones on which no rehearsal is at work; what was dropped."""
    found = tuple(clone for clone in clones(db).clones if not clone.in_use)
    for clone in found:
        drop_clone(db.at(clone.name))
    return Clones(clones=found)


@contextmanager
def claimed(server: Database, label: str) -> Generator[Database]:
    """A new name on a server for a copy; what is there at the end is dropped.

    Clones that a crash left are dropped first.  ``create`` the database inside the block.
    """
    with suppress(DatabaseError):  # another rehearsal may be dropping them
        drop_clones(server)
    clone = server.at(f"{PREFIX}{label}_{os.getpid()}_{secrets.token_hex(3)}")
    holder = _hold(clone)
    try:
        yield clone
    finally:
        drop_clone(clone)
        holder.close()


def _hold(clone: Database) -> psycopg.Connection[Any]:
    """A session that holds the lock of a clone."""
    postgres = clone.at("postgres").url
    with explained("making a clone", postgres):
        url = postgres.set(drivername="postgresql").render_as_string(hide_password=False)
        holder = psycopg.connect(url, autocommit=True)
        key = (_LOCK, clone.url.database)
        holder.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", key)
        return holder


def create(clone: Database, options: str, source: Database) -> None:
    """Make the database of a claimed name, and note whose it is."""
    name = quote(str(clone.url.database))
    note = {
        "source": source.url.database,
        "user": _user(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    maintain(clone, f"CREATE DATABASE {name} {options}")
    maintain(clone, f"COMMENT ON DATABASE {name} IS {literal(json.dumps(note))}")


def drop_clone(clone: Database) -> None:
    """Drop a clone and the sessions on it, if it is there."""
    name = str(clone.url.database)
    assert name.startswith(PREFIX), "only a clone is ever dropped"
    maintain(clone, f"DROP DATABASE IF EXISTS {quote(name)} WITH (FORCE)")


def maintain(db: Database, statement: str) -> None:
    """Send a statement that no transaction may hold, from the maintenance database."""
    engine = db.at("postgres").engine
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        run(connection, statement)


def _left(row: Any) -> LeftClone:
    note: dict[str, Any] = {}
    with suppress(ValueError, TypeError):
        note = dict(json.loads(row["note"]))
    host, pid = note.get("host"), note.get("pid")
    return LeftClone(
        name=row["name"],
        source=str(note.get("source", "")),
        made_by=f"{note['user']}@{host}" if "user" in note else "",
        made_at=str(note.get("at", "")),
        size_bytes=row["size_bytes"],
        # A lock ends with the server too; then the process tells.
        in_use=row["locked"] or (host == socket.gethostname() and _is_another(pid)),
    )


def _is_another(pid: object) -> bool:
    """Whether it is another process than this one, and alive."""
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as containers have it
        return str(os.geteuid())


_CLONES = """
SELECT datname AS name,
       shobj_description(oid, 'pg_database') AS note,
       coalesce(pg_database_size(oid), 0) AS size_bytes,
       EXISTS (SELECT FROM pg_locks
                WHERE locktype = 'advisory' AND classid = CAST(:lock AS bigint)::oid
                  AND objid = hashtext(datname)::oid AND objsubid = 2) AS locked
  FROM pg_database
 WHERE starts_with(datname, :prefix) AND pg_has_role(datdba, 'USAGE')
 ORDER BY datname
"""

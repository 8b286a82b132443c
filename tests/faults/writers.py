"""An application that goes on writing, and remembers what it committed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, TypeAlias

import psycopg
import sqlalchemy as sa

import datamig_nb as dm
from datamig_nb.database import Database
from tests.scratch import query

#: Title, hits and pad of a row.
Row: TypeAlias = tuple[str, int, str]

#: Keys are tens at first, so that there is room between them.
TASKS = 1_500
MAKE_TASKS = f"""
CREATE TABLE task (
    id bigint PRIMARY KEY, title text NOT NULL, hits integer NOT NULL DEFAULT 0, pad text NOT NULL
);
INSERT INTO task SELECT n * 10, 'task ' || n, 0, repeat('x', n % 90)
  FROM generate_series(1, {TASKS}) AS n;
ANALYZE task
"""

#: What the upgrade makes of a title.
LOUD = {"loud": "upper(title) || '!'"}


def loud_tasks(connections: int = 1) -> dm.Migration:
    """A migration that fills a column while others write, and keeps it in step."""
    return dm.Migration(
        "loud titles",
        dm.add_column("task", sa.Column("loud", sa.Text())),
        dm.keep_in_step("task", LOUD),
        dm.backfill("task", LOUD, connections=connections),
        dm.no_nulls("task", "loud"),
        dm.matches("task", "loud", "concat(upper(title), '!')"),
        dm.alter_column("task", "loud", nullable=False),
    )


class Writer(threading.Thread):
    """A session that writes to rows of its own: every so many tens, and their neighbours.

    Its transactions insert, change what the migration reads, change something else so that the
    row moves to another page, change a key, delete; a quarter of them rolls back.  One that is
    late writes to the lowest keys, and commits when the batches are past them.
    """

    def __init__(
        self, database: Database, number: int, of: int, *, late: bool, chance: random.Random
    ) -> None:
        super().__init__(daemon=True)
        self._database, self._number, self._of = database, number, of
        self._late, self._chance = late, chance
        self._ended = threading.Event()
        #: What its rows hold since its last commit.
        self.journal: dict[int, Row] = {}
        self.commits = 0
        self.rollbacks = 0
        #: What went wrong and should not have.
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self._connect() as connection:
                self.journal = self._read(connection)
            while not self._ended.is_set():
                with self._connect() as connection:
                    self._write_on(connection)
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        """Let it finish its transaction, and end."""
        self._ended.set()
        self.join(60)
        assert self.error is None, self.error
        assert not self.is_alive(), "a writer waits for ever"

    def _write_on(self, connection: psycopg.Connection[Any]) -> None:
        draft = dict(self.journal)
        try:
            while not self._ended.is_set():
                draft = dict(self.journal)
                self._transaction(connection, draft)
                self._ended.wait(self._chance.uniform(0.2, 0.5) if self._late else 0.002)
        except psycopg.OperationalError:
            if not connection.closed:
                raise
            # The server is gone, perhaps while it committed: what it holds now is what counts.
            with self._connect() as other:
                found = self._read(other)
            assert found in (self.journal, draft), "a commit was lost, or half of one"
            self.journal = found

    def _transaction(self, connection: psycopg.Connection[Any], draft: dict[int, Row]) -> None:
        connection.execute("BEGIN")
        try:
            for _ in range(self._chance.randrange(1, 5)):
                statement = self._change(draft)
                connection.execute(*statement)
            if self._late:
                self._ended.wait(self._chance.uniform(0.1, 0.6))
            rolled_back = self._chance.random() < 0.25
            connection.execute("ROLLBACK" if rolled_back else "COMMIT")
        except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
            connection.execute("ROLLBACK")
            rolled_back = True
        if rolled_back:
            self.rollbacks += 1
        else:
            self.journal = draft
            self.commits += 1

    def _change(self, draft: dict[int, Row]) -> tuple[bytes, tuple[Any, ...]]:
        """Change one row of the draft; the statement that does so."""
        chance, keys = self._chance, sorted(draft)
        key = chance.choice(keys[:20] if self._late else keys)
        title, hits, pad = draft[key]
        free = [k for k in range(key // 10 * 10, key // 10 * 10 + 10) if k not in draft]
        if self._late and chance.random() < 0.5:
            free = [keys[0] - 10 * self._of]
        match chance.choice(("insert", "title", "title", "hits", "pad", "key", "delete")):
            case "insert" if free:
                new = chance.choice(free)
                draft[new] = (f"new {chance.random()}", 0, "y" * chance.randrange(200))
                return b"INSERT INTO task VALUES (%s, %s, %s, %s)", (new, *draft[new])
            case "title":
                draft[key] = (f"title {chance.random()}", hits, pad)
                return b"UPDATE task SET title = %s WHERE id = %s", (draft[key][0], key)
            case "pad":
                draft[key] = (title, hits, "z" * chance.randrange(400))
                return b"UPDATE task SET pad = %s WHERE id = %s", (draft[key][2], key)
            case "key" if free:
                new = chance.choice(free)
                draft[new] = draft.pop(key)
                return b"UPDATE task SET id = %s WHERE id = %s", (new, key)
            case "delete" if len(keys) > 50:
                del draft[key]
                return b"DELETE FROM task WHERE id = %s", (key,)
            case _:
                draft[key] = (title, hits + 1, pad)
                return b"UPDATE task SET hits = hits + 1 WHERE id = %s", (key,)

    def _read(self, connection: psycopg.Connection[Any]) -> dict[int, Row]:
        own = connection.execute(
            "SELECT id, title, hits, pad FROM task WHERE mod(floor(id / 10.0), %s) = %s",
            (self._of, self._number),
        )
        return {row[0]: row[1:] for row in own}

    def _connect(self) -> psycopg.Connection[Any]:
        url = self._database.url.set(drivername="postgresql").render_as_string(False)
        deadline = time.monotonic() + 30
        while True:
            try:
                return psycopg.connect(url, autocommit=True, application_name="writer")
            except psycopg.OperationalError:  # the server recovers
                assert time.monotonic() < deadline
                time.sleep(0.05)


@contextmanager
def writing(database: Database, chance: random.Random, count: int = 3) -> Generator[list[Writer]]:
    """So many writers, the first of them late; each has finished its transaction at the end."""
    writers = [
        Writer(database, n, count, late=n == 0, chance=random.Random(chance.random()))
        for n in range(count)
    ]
    for writer in writers:
        writer.start()
    try:
        yield writers
    finally:
        for writer in writers:
            writer.end()


def journal(writers: Iterable[Writer]) -> dict[int, Row]:
    """What all rows hold, if none of the writers lost a commit."""
    return {key: row for writer in writers for key, row in writer.journal.items()}


def found_tasks(database: Database) -> dict[int, Row]:
    """What the rows hold."""
    rows = query(database, "SELECT id, title, hits, pad FROM task")
    return {row[0]: row[1:] for row in rows}


def wrong_tasks(database: Database) -> list[Any]:
    """Rows whose new column does not hold what follows from the others."""
    return query(
        database,
        f"SELECT id, title, loud FROM task WHERE loud IS DISTINCT FROM {LOUD['loud']} ORDER BY id",
    )

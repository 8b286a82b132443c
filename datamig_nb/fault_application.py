"""An application that goes on writing to a table that it knows nothing of, and keeps a journal.

It copies rows that are there, gives columns values that other rows of the table have, and deletes
rows that it inserted; so what it writes is as valid as what was there before.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from datamig_nb.database import Database, explained, run
from datamig_nb.display import counted
from datamig_nb.errors import UnknownTableError
from datamig_nb.expressions import listed
from datamig_nb.measure import OTHERS
from datamig_nb.names import literal, quote
from datamig_nb.tables import Table

#: Rows whose values and keys it uses.
SAMPLE_ROWS = 300

#: Between two transactions.
PAUSE_SECONDS = 0.002

#: A row's key, and for columns what they may hold, as text: what was written stands first.
Key: TypeAlias = tuple[str, ...]
Values: TypeAlias = dict[str, "tuple[str | None, ...]"]

# No lock to be had, a deadlock, a snapshot too old: what any application tries again.
_AGAIN = ("55P03", "40P01", "40001", "57014")


def as_others(database: Database) -> Database:
    """The same database for sessions that the measurements take for the application's."""
    return replace(database, url=database.url.update_query_dict({"application_name": OTHERS}))


@dataclass
class Journal:
    """What was committed, or what one transaction is about to commit."""

    #: What columns of a row may hold that it wrote.
    values: dict[Key, Values] = field(default_factory=dict[Key, Values])
    inserted: set[Key] = field(default_factory=set[Key])
    deleted: set[Key] = field(default_factory=set[Key])

    def add(self, other: Journal) -> None:
        """Go on with what a transaction did."""
        for key, values in other.values.items():
            self.values.setdefault(key, {}).update(values)
        # a key that went may have come again
        self.inserted = self.inserted - other.deleted | other.inserted
        self.deleted = self.deleted - other.inserted | other.deleted


class Writer(threading.Thread):
    """A session that writes to one table until it is told to end.

    Parameters
    ----------
    reads
        Columns that it changes above all.
    left_alone
        Columns that the migration writes: they are neither changed nor compared.
    in_place
        Columns that the migration changes from what they hold, and it writes to all the same ->
        SQL over the row: an array of what the migration makes of it.
    """

    def __init__(
        self,
        database: Database,
        table: Table,
        *,
        reads: Collection[str],
        left_alone: Collection[str],
        in_place: Mapping[str, str],
        chance: random.Random,
    ) -> None:
        super().__init__(daemon=True)
        self._database, self.table, self._chance = as_others(database), table, chance
        self._name, self._ended = table.name.sql, threading.Event()
        unique = {column for columns in table.unique for column in columns}
        own = [c.name for c in table.columns if not c.generated and c.name not in left_alone]
        self._own = [column for column in own if column not in table.key]
        self._made = {column: sql for column, sql in in_place.items() if column in self._own}
        free = [column for column in self._own if column not in unique]
        self._changed = [c for c in free if c in reads] + [c for c in free if c not in reads][:1]
        self._read_sample()
        self._journal = Journal()
        self.commits = 0
        self.longest_seconds = 0.0
        #: Why a write was refused, and how often; locks and deadlocks aside.
        self.refused: Counter[str] = Counter()
        #: In how many rows columns hold what was written, not what the migration makes of it.
        self.behind: Counter[str] = Counter()
        self._error: Exception | None = None

    @property
    def wrote(self) -> str:
        """What its transactions do, in words."""
        said = [f"changing {listed(self._changed)}"] if self._changed else []
        if not self.no_inserts:
            said.append("inserting and deleting rows")
        return ", ".join(said) or "nothing"

    # ------------------------------------------------------------ writing

    def run(self) -> None:
        """Write until the end; the work of the thread."""
        try:
            url, engine = self._database.url, self._database.engine
            with explained("writing beside the upgrade", url), engine.connect() as connection:
                while not self._ended.is_set():
                    self._transaction(connection)
                    self._ended.wait(PAUSE_SECONDS)
        except Exception as error:  # told to whoever waits for the thread
            self._error = error

    def end(self) -> None:
        """Let it finish its transaction, and end."""
        self._ended.set()
        self.join()
        if self._error is not None:
            raise self._error

    def _transaction(self, connection: sa.Connection) -> None:
        draft = Journal()
        try:
            with connection.begin() as transaction:
                for _ in range(self._chance.randrange(1, 4)):
                    self._write(connection, draft)
                if self._chance.random() < 0.25:
                    transaction.rollback()
                    return
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in _AGAIN:
                self.refused[str(error.orig).splitlines()[0]] += 1
            return
        self.commits += 1
        self._journal.add(draft)

    def _write(self, connection: sa.Connection, draft: Journal) -> None:
        """Send one statement, and note in the draft what it did."""
        mine = sorted(self._journal.inserted - draft.deleted | draft.inserted)
        what = self._chance.choice(("update", "update", "update", "insert", "delete"))
        if what == "insert" and not self.no_inserts:
            key, values = self._send(connection, self._insert(), self._own, {})
            draft.inserted.add(key)
            draft.deleted.discard(key)
            draft.values[key] = values
        elif what == "delete" and mine:
            row = self._is(self._chance.choice(mine))
            key, _ = self._send(connection, f"DELETE FROM {self._name} WHERE {row}", (), {})
            draft.deleted.add(key)
            draft.inserted.discard(key)
        elif self._changed and (rows := [*self._keys, *mine]):
            column, chosen = self._chance.choice(self._changed), self._chance.choice(rows)
            value = self._value(column, self._chance.choice(self._values[column]))
            update = f"UPDATE {self._name} SET {quote(column)} = {value} WHERE {self._is(chosen)}"
            known = self._journal.values.get(chosen, {}) | draft.values.get(chosen, {})
            key, values = self._send(connection, update, (column,), known)
            draft.values.setdefault(key, {}).update(values)
        draft.values.pop((), None)  # of a row that the migration had removed

    def _send(
        self, connection: sa.Connection, statement: str, columns: Sequence[str], known: Values
    ) -> tuple[Key, Values]:
        """The key of the row that was written, () for none, and what its columns may hold.

        Parameters
        ----------
        known
            What the columns of the row might hold before.
        """
        began = time.monotonic()
        texts = [f"{quote(name)}::text" for name in (*self.table.key, *columns, *self._made)]
        texts += self._made.values()
        row = run(connection, f"{statement} RETURNING {', '.join(texts)}").one_or_none()
        self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
        if row is None:
            return (), {}
        found = iter(row)
        key = tuple(next(found) for _ in self.table.key)
        written = {column: next(found) for column in columns}
        held = {column: next(found) for column in self._made}
        values: Values = {column: (value,) for column, value in written.items()}
        for column, made in zip(self._made, found, strict=True):
            before = values.get(column) or known.get(column, ())
            if before[:1] == (held[column],):  # else the migration has been there
                values[column] = (*before, *made)
        return key, values

    def _insert(self) -> str:
        """Insert a copy of a row, with another key."""
        columns, row = [*map(quote, self._copied)], self._is(self._chance.choice(self._keys))
        values = list(columns)
        if self._counted:
            columns.insert(0, quote(self._counted))
            values.insert(0, f"(SELECT max({quote(self._counted)}) + 1 FROM {self._name})")
        source = f"SELECT {', '.join(values)} FROM {self._name} WHERE {row}"
        return f"INSERT INTO {self._name} ({', '.join(columns)}) {source}"

    def _is(self, key: Key) -> str:
        pairs = zip(self.table.key, key, strict=True)
        return " AND ".join(f"{quote(part)} = {self._value(part, text)}" for part, text in pairs)

    def _value(self, column: str, text: str | None) -> str:
        return f"CAST({literal(text)} AS {self.table.column(column).type})"

    # ------------------------------------------------------------ before and after

    def _read_sample(self) -> None:
        key, writable = self.table.key, [c.name for c in self.table.columns if not c.computed]
        texts = ", ".join(f"{quote(column)}::text" for column in writable)
        query = f"SELECT {texts} FROM {self._name} ORDER BY random() LIMIT {SAMPLE_ROWS}"
        with self._database.read_only(f"reading rows of {self.table.name}") as connection:
            rows = [dict(zip(writable, row, strict=True)) for row in run(connection, query)]
            given = set(connection.execute(sa.text(_GIVEN), {"name": self._name}).scalars())
        self._keys: list[Key] = [tuple(str(row[part]) for part in key) for row in rows]
        self._values = {column: [row[column] for row in rows] for column in writable}
        whole = len(key) == 1 and self.table.column(key[0]).type in ("integer", "bigint")
        self._counted = key[0] if whole and key[0] not in given else ""
        made = {*key} & given or {self._counted}
        self._copied = [column for column in writable if column not in made]
        others = [columns for columns in self.table.unique if columns != key]
        #: Why no rows are inserted, in words; "" where some are.
        self.no_inserts = ""
        if not rows:
            self.no_inserts = f"{self.table.name} has no rows to copy"
        elif made == {""}:
            self.no_inserts = f"no rows were inserted: the key of {self.table.name} has no default"
        elif others:
            self.no_inserts = f"no rows were inserted: {listed(others[0])} must be unique"

    def lost(self, database: Database, *, may_vanish: bool) -> list[str]:
        """The committed writes that the table does not hold, in words.

        Parameters
        ----------
        may_vanish
            Whether rows that it did not insert may be gone.
        """
        journal = self._journal.values
        try:
            now = database.table(self.table.name)
        except UnknownTableError:
            return [
                f"{self.table.name} is gone, and {counted(len(journal), 'written row')} with it"
            ]
        if not journal:
            return []
        columns = [column for column in self._own if now.has(column)]
        names = [f"k{number}" for number in range(len(self.table.key))]
        keys = ", ".join(
            f"ARRAY[{', '.join(map(literal, part))}]" for part in zip(*journal, strict=True)
        )
        same = " AND ".join(
            f"{quote(part)}::text = {n}" for part, n in zip(self.table.key, names, strict=True)
        )
        shown = ", ".join([*names, *(f"{quote(column)}::text" for column in columns)])
        query = f"SELECT {shown} FROM {self._name}"
        query += f" JOIN unnest({keys}) AS written ({', '.join(names)}) ON {same}"
        with database.read_only(f"reading {self.table.name}") as connection:
            found = {
                tuple(row[: len(names)]): dict(zip(columns, row[len(names) :], strict=True))
                for row in run(connection, query)
            }
        wrong: dict[str, list[Key]] = {}
        for key in journal:
            if key in found or not may_vanish or key in self._journal.inserted:
                for what in self._wrong(key, found.get(key)):
                    wrong.setdefault(what, []).append(key)
        return [
            f"{counted(len(rows), 'row')} of {self.table.name}, the first ({', '.join(rows[0])}):"
            f" {what}"
            for what, rows in wrong.items()
        ]

    def _wrong(self, key: Key, found: Mapping[str, str | None] | None) -> Iterator[str]:
        """What is wrong with a row that it wrote, in words; None where the row is not there."""
        deleted = key in self._journal.deleted
        if (found is None) != deleted:
            yield "deleted, and there" if deleted else "written, and gone"
        elif found is not None:
            for column, allowed in self._journal.values[key].items():
                if column in found:
                    self.behind[column] += found[column] == allowed[0] != allowed[-1]
                    if found[column] not in allowed:
                        yield f"{column} does not hold what was written"


# Columns that get a value of their own in a row that does not say one.
_GIVEN = """
SELECT attname::text FROM pg_attribute
 WHERE attrelid = to_regclass(:name) AND attnum > 0 AND NOT attisdropped
   AND (atthasdef AND attgenerated = '' OR attidentity <> '')
"""

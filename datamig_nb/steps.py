"""Data steps of a migration: what is done to rows, as values.  Nothing here touches a database."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from datamig_nb.errors import MigrationError
from datamig_nb.expressions import Expression, expression_text, expressions, listed
from datamig_nb.names import TableName

#: Why a walk may rest: a replica more than 10 seconds behind, autovacuum at work on the table,
#: sessions in a queue for a lock on it.
Signal = Literal["replica_lag", "autovacuum", "lock_queue"]

_SIGNALS = ("replica_lag", "autovacuum", "lock_queue")


@dataclass(frozen=True, kw_only=True)
class Walk:
    """How the batches of a step go about it."""

    #: Rows that cannot be done: None stops at the first; a number sets so many aside at most.
    quarantine_rows: int | None = None
    #: False: triggers do not fire for the rows of the batches.
    fire_triggers: bool = True
    #: Rest after each batch, as a share of the time that it took.
    rest_share: float = 0.0
    #: Signals that make the walk wait.
    hold_on: tuple[Signal, ...] = ()
    #: Connections that share a woven walk.
    connections: int = 1
    #: Name of the job that workers do; None: the revision does it itself.
    job: str | None = None


@dataclass(frozen=True, kw_only=True)
class Backfill:
    """Set columns of the rows that are there, batch by batch."""

    #: Table to update.
    table: TableName
    #: Column to set -> SQL expression over the row as it was before.
    assign: Mapping[str, str]
    #: SQL condition over the row; None takes every row.
    where: str | None = None
    #: FROM item that the expressions may read too, and the condition that finds a row's partner.
    using: str | None = None
    on: str | None = None
    walk: Walk = field(default_factory=Walk)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are written."""
        return tuple(self.assign)

    @property
    def texts(self) -> tuple[str, ...]:
        """All the SQL that it reads by."""
        more = (self.where, self.using, self.on)
        return (*self.assign.values(), *(text for text in more if text is not None))

    def __str__(self) -> str:
        rows = "every row" if self.where is None else f"rows where {self.where}"
        source = "" if self.using is None else f" from {self.using}"
        who = "in batches" if self.walk.job is None else "left to workers as a job"
        return f"fill {listed(self.assign)} of {self.table}{source}, {rows}, {who}"


@dataclass(frozen=True, kw_only=True)
class InsertRows:
    """Put the rows of a query into a table, batch by batch."""

    #: Table that gets the rows.
    table: TableName
    #: Query whose columns have the names of the table's.
    select: str
    #: Columns of the query, never NULL, by which it is walked.
    key: tuple[str, ...]
    #: Columns of the query; None: as the database says.
    columns: tuple[str, ...] | None = None
    #: What follows ON CONFLICT; None: a row that is there already is an error.
    on_conflict: str | None = None
    walk: Walk = field(default_factory=Walk)

    @property
    def texts(self) -> tuple[str, ...]:
        """All the SQL that it reads by."""
        return (self.select,)

    def __str__(self) -> str:
        return f"insert rows into {self.table}, in batches by {listed(self.key)}"


@dataclass(frozen=True, kw_only=True)
class DeleteRows:
    """Remove rows, batch by batch, and keep a copy of them."""

    #: Table that loses rows.
    table: TableName
    #: SQL condition, true for a row to be removed.
    where: str
    #: Whether the rows are kept in the schema ``datamig``, so that a downgrade brings them back.
    keep: bool = True
    #: Table whose rows go first, if they refer to one that goes -> the columns that refer to it;
    #: () for those of its foreign keys.  "all": whatever foreign keys lead to, over any levels.
    dependants: Mapping[TableName, tuple[str, ...]] | Literal["all"] = field(
        default_factory=dict[TableName, tuple[str, ...]]
    )
    walk: Walk = field(default_factory=Walk)

    @property
    def texts(self) -> tuple[str, ...]:
        """All the SQL that it reads by."""
        return (self.where,)

    def __str__(self) -> str:
        kept = "kept for the way back" if self.keep else "not kept"
        tables = listed([*map(str, self.dependants)]) if self.dependants else ""
        tables = "all tables that refer to them" if self.dependants == "all" else tables
        first = f"those of {tables} first, " if tables else ""
        return f"delete rows of {self.table} where {self.where}, {first}in batches, {kept}"


@dataclass(frozen=True, kw_only=True)
class BackUp:
    """Keep the old and the new value of columns, for each row whose value changes or goes."""

    #: Table whose backfills and transforms keep what they overwrite, later steps what they drop.
    table: TableName
    #: Columns that are kept; () for the whole table, which a later step drops.
    columns: tuple[str, ...]

    def __str__(self) -> str:
        if not self.columns:
            return f"keep the table {self.table}, moved to the schema datamig when it is dropped"
        return f"keep {listed(self.columns)} of rows of {self.table} that change, or lose them"


@dataclass(frozen=True, kw_only=True)
class KeepInStep:
    """A trigger that gives new and changed rows the values a backfill gives the old ones."""

    #: Table whose rows are watched.
    table: TableName
    #: Column to set -> SQL expression over the new row.
    assign: Mapping[str, str]

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are written."""
        return tuple(self.assign)

    def __str__(self) -> str:
        return f"keep {listed(self.assign)} of {self.table} in step with a trigger"

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits for the columns: a trigger's name in every phase."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Sql:
    """A statement of the user's own, sent as it stands, not in batches."""

    statement: str
    #: Statement that undoes it; "" where nothing is to be undone, None where there is no way back.
    undo: str | None
    #: What it does, in words.
    name: str

    def __str__(self) -> str:
        return f"{self.name}, by a statement that is not batched"


DataStep = Backfill | InsertRows | DeleteRows | BackUp | KeepInStep | Sql


def backfill(
    table: str | TableName,
    assign: Mapping[str, Expression],
    *,
    where: Expression | None = None,
    using: str | None = None,
    on: Expression | None = None,
    on_error: Literal["stop", "quarantine"] = "stop",
    quarantine_limit: int = 100,
    fire_triggers: bool = True,
    rest: float = 0.0,
    hold_on: Collection[Signal] = (),
    connections: int = 1,
) -> Backfill:
    """Set columns of existing rows, in batches, each batch its own transaction.

    A row that has the values already is not written.  An expression may read the column that it
    sets, as in ``price * 1.1``: each row is changed once, however often the run is stopped.

    Parameters
    ----------
    assign
        Column -> SQL expression over the row, text or SQLAlchemy element.  All expressions see
        the row as it was before.
    where
        SQL condition over the row; rows that do not meet it are left alone.
    using, on
        Another table or a subquery with its alias, and the condition that finds the one row of it
        that belongs to a row: ``using="guide.user AS u", on="u.id = task.user_id"``.  Rows
        that find none are left alone.  A subquery over all rows (GROUP BY, DISTINCT ON, a window)
        is run once, into a table that the batches join, and once more where rows were written
        meanwhile.
    on_error
        ``"stop"`` at the first row that cannot be done, naming it; ``"quarantine"`` sets up to
        ``quarantine_limit`` such rows aside in ``datamig.quarantine``.
    fire_triggers
        False leaves alone what triggers would do, ``updated_at`` for example; the role needs the
        privilege to set ``session_replication_role``.
    rest
        Rest after each batch, as a share of the time that it took.
    hold_on
        Signals that make the run wait: ``"replica_lag"`` (10 seconds), ``"autovacuum"``
        (at work on the table), ``"lock_queue"`` (sessions wait for a lock on the table).  The
        first two are hidden from a role that is not in ``pg_monitor``, and then hold nothing.
    connections
        How many connections share the work where it can be woven; the others are opened beside
        Alembic's own.

    Raises
    ------
    MigrationError
        If nothing is set, or ``using`` comes without ``on``.
    """
    if (using is None) != (on is None):
        raise MigrationError("using= and on= belong together", "give both, or none")
    return Backfill(
        table=TableName.parse(table),
        assign=expressions("backfill", assign),
        where=None if where is None else expression_text(where),
        using=None if using is None else expression_text(using),
        on=None if on is None else expression_text(on),
        walk=_walk(on_error, quarantine_limit, fire_triggers, rest, hold_on, connections),
    )


def insert_rows(
    table: str | TableName,
    select: str,
    *,
    key: str | Sequence[str],
    columns: Sequence[str] | None = None,
    on_conflict: str | None = None,
    rest: float = 0.0,
    hold_on: Collection[Signal] = (),
) -> InsertRows:
    """Put the rows of a query into a table, in batches, each batch its own transaction.

    The downgrade takes out the rows that were put in and not edited since, restores those that
    ``DO UPDATE`` changed, and lists in ``datamig.conflict`` what it leaves.

    Parameters
    ----------
    select
        SELECT whose columns are named like the columns of the table that they fill.  Each batch
        reads its range of the key; where the query reads that table itself, it sees what batches
        before have put in.  A query over all rows (DISTINCT, GROUP BY, a window, UNION, …) is run
        once, into a table of the schema ``datamig`` that is dropped behind the last batch.
    key
        Columns of the query by which it is walked; never NULL there.
    columns
        Names of the query's columns, needed only where it reads what the migration is yet to
        make, so that the database cannot say them.
    on_conflict
        ``"nothing"`` passes over rows that the table has already; or what follows ON CONFLICT,
        such as ``"(slug) DO UPDATE SET name = excluded.name"``.
    """
    walked = (key,) if isinstance(key, str) else tuple(key)
    if not walked:
        raise MigrationError(
            "insert_rows() has no key to walk its query by", "name columns that are never NULL"
        )
    return InsertRows(
        table=TableName.parse(table),
        select=expression_text(select).rstrip("; \n"),
        key=walked,
        columns=None if columns is None else tuple(columns),
        on_conflict=_on_conflict(on_conflict),
        walk=_walk("stop", 0, True, rest, hold_on),
    )


def delete_rows(
    table: str | TableName,
    where: Expression,
    *,
    keep: bool = True,
    dependants: Mapping[str, str | Sequence[str]] | tuple[str, ...] | Literal["all"] = (),
    rest: float = 0.0,
    hold_on: Collection[Signal] = (),
) -> DeleteRows:
    """Remove rows, in batches.

    The rows are kept in the schema ``datamig`` unless ``keep=False``; the downgrade brings them
    back.  A foreign key that would remove or change rows of other tables with them is refused.

    Parameters
    ----------
    dependants
        Tables whose rows are removed, and kept, before those that they refer to, each table in its
        own walk: ``("shop.line",)`` goes by the table's foreign keys,
        ``{"shop.line": "order_id"}`` by columns.  What refers to these in turn is removed by a
        step of its own before.  ``"all"`` follows foreign keys over any number of levels; what
        ON DELETE SET NULL would do is done in batches before, and kept too.
    """
    given = dict.fromkeys(dependants, ()) if isinstance(dependants, tuple) else dependants
    return DeleteRows(
        table=TableName.parse(table),
        where=expression_text(where),
        keep=keep,
        dependants=given
        if isinstance(given, str)
        else {
            TableName.parse(child): (columns,) if isinstance(columns, str) else tuple(columns)
            for child, columns in given.items()
        },
        walk=_walk("stop", 0, True, rest, hold_on),
    )


def back_up(table: str | TableName, *columns: str) -> BackUp:
    """Keep old and new values of columns, written by the statement that changes them.

    Only rows that change are kept.  The downgrade restores a value where it is still the one that
    the migration wrote, and lists the others in ``datamig.conflict``.

    Where a later step drops a column, the values of all rows are kept, copied in batches right
    before.  Without columns the table itself is kept, which a later ``drop_table`` then only moves
    to the schema ``datamig``, without copying.
    """
    return BackUp(table=TableName.parse(table), columns=columns)


def keep_in_step(table: str | TableName, assign: Mapping[str, Expression]) -> KeepInStep:
    """Give rows that are written from now on their values by a trigger.

    An INSERT that leaves all the columns NULL gets them computed; so does an UPDATE of a column
    that the expressions read, unless it sets one of the columns itself.
    """
    return KeepInStep(table=TableName.parse(table), assign=expressions("keep_in_step", assign))


def _on_conflict(text: str | None) -> str | None:
    if text is None:
        return None
    clause = "DO NOTHING" if text == "nothing" else expression_text(text)
    if not re.search(r"\bdo\s+(nothing|update)\b", clause, re.IGNORECASE):
        raise MigrationError(
            f"on_conflict={text!r} does not say what to do",
            "write 'nothing', or what follows ON CONFLICT, with DO NOTHING or DO UPDATE SET …",
        )
    return clause


def _walk(
    on_error: str,
    quarantine_limit: int,
    fire_triggers: bool,
    rest: float,
    hold_on: Collection[Signal],
    connections: int = 1,
) -> Walk:
    if on_error not in ("stop", "quarantine") or quarantine_limit < 0 or rest < 0:
        raise MigrationError(
            f"on_error={on_error!r}, quarantine_limit={quarantine_limit}, rest={rest} is no choice",
            "on_error is 'stop' or 'quarantine', the others are 0 or more",
        )
    for signal in hold_on:
        if signal not in _SIGNALS:
            raise MigrationError(f"there is no signal {signal!r}", f"use {', '.join(_SIGNALS)}")
    return Walk(
        quarantine_rows=quarantine_limit if on_error == "quarantine" else None,
        fire_triggers=fire_triggers,
        rest_share=rest,
        hold_on=tuple(hold_on),
        connections=max(1, connections),
    )

"""Steps that say what shall be, and need the catalog to say how: keys, types, duplicates.

As values only; :mod:`datamig_nb.expanded` makes of each the steps that carry it out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from datamig_nb.errors import MigrationError
from datamig_nb.expressions import Expression, expression_text, listed
from datamig_nb.names import TableName, cut, sqlalchemy_dialect


@dataclass(frozen=True, kw_only=True)
class CreateTableAs:
    """A table made from a query once, for the steps behind it to read."""

    table: TableName
    #: Query whose columns become those of the table.
    select: str
    #: Its primary key.
    key: tuple[str, ...]

    def __str__(self) -> str:
        return f"create the table {self.table} from a query, its key {listed(self.key)}"


@dataclass(frozen=True, kw_only=True)
class ChangeType:
    """Another type for a column, whatever hangs on it."""

    table: TableName
    column: str
    #: The new type, as SQL.
    type: str
    #: Expression over the row for the new value, or for a text that is cast; None: the column.
    using: str | None
    #: Expression for a value that cannot be had; None: there may be none.
    otherwise: str | None
    #: Texts that mean NULL.
    nulls: tuple[str, ...]
    #: Whether the old values stay, in a column of their own.
    keep: bool
    #: Expression over the changed row for the old value; None: rows written since have none.
    back: str | None

    def __str__(self) -> str:
        using = "" if self.using is None else f" using {self.using}"
        return f"change the type of {self.column} of {self.table} to {self.type}{using}"


@dataclass(frozen=True, kw_only=True)
class MergeRows:
    """Of rows that are the same one stays; what refers to the others refers to it."""

    table: TableName
    #: Expressions over the row; rows that give the same are duplicates.
    same: tuple[str, ...]
    #: ORDER BY whose first row stays; ties, and None, by the key.
    keep: str | None
    #: Columns without a foreign key that hold the table's key: table -> column.
    repoint: Mapping[TableName, str]
    #: What becomes of rows that would be the same once they are repointed.
    collisions: Literal["stop", "delete"]
    #: Whether NULL is the same as NULL.
    nulls: bool
    #: Table that gets the key of each row that goes, and that of the one that stays for it.
    map: TableName

    def __str__(self) -> str:
        return f"merge rows of {self.table} with the same {listed(self.same)}"


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """A column, and the one that takes its name."""

    table: TableName
    column: str
    #: Names of the new column before, of the old one after.
    new: str
    old: str
    #: Their types.
    type: str
    old_type: str
    #: Whether the old one stays.
    keep: bool
    #: Expressions over a row that has all: for the new value from the old, for the old from the
    #: new (None: not known).
    forward: str
    back: str | None
    #: Whether ``forward`` gives another value each time.
    volatile: bool
    not_null: bool
    #: Their defaults.
    old_default: str | None
    new_default: str | None
    #: Sequence that belongs to the column, as SQL.
    sequence: str | None
    #: GENERATED … AS IDENTITY with its options.
    identity: str | None
    #: Its comment and GRANT statements.
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.column} of {self.table}"


@dataclass(frozen=True, kw_only=True)
class Hanging:
    """An index or a constraint that hangs on exchanged columns."""

    #: As in pg_constraint: p, u, f, c; i is an index without one.
    kind: Literal["p", "u", "f", "c", "i"]
    table: TableName
    name: str
    #: What follows its name in CREATE INDEX … or ADD CONSTRAINT …; of a key, that of its index.
    definition: str
    #: The name that its successor has until it takes its place.
    successor: str
    unique: bool = False
    #: Columns of a unique one that covers every row and reads nothing else.
    columns: tuple[str, ...] = ()
    #: DEFERRABLE and so on, of a key.
    options: str = ""
    #: Table and columns that a foreign key refers to, and what follows them.
    parent: TableName | None = None
    parent_columns: str = ""
    actions: str = ""
    #: COMMENT ON … and the like, to be said again.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Swap:
    """New columns take the names of old ones, with all that hangs on them, in one transaction."""

    columns: tuple[Exchanged, ...]
    hanging: tuple[Hanging, ...]

    @property
    def tables(self) -> tuple[TableName, ...]:
        """All tables that it locks, in an order that is always the same."""
        parents = [each.parent for each in self.hanging if each.parent is not None]
        children = [each.table for each in (*self.columns, *self.hanging)]
        return tuple(
            sorted({*children, *parents}, key=lambda table: (str(table.schema), table.name))
        )

    def __str__(self) -> str:
        with_them = f", with {listed([each.name for each in self.hanging])}" if self.hanging else ""
        kept = [each.old for each in self.columns if each.keep]
        old = f"; the old values stay in {listed(kept)}" if kept else ""
        return (
            f"let the new {listed([*map(str, self.columns)])} take the place of the old{with_them},"
            f" in one short transaction{old}"
        )


def create_table_as(
    table: str | TableName, select: str, *, key: str | Sequence[str]
) -> CreateTableAs:
    """Make a table from a query, once, for the steps behind it: numbers, survivors, an id map.

    The query is one statement, since a window or a recursion cannot be cut into batches; it reads
    under no lock that stops anybody, and what it gave stays as it is however often the run is
    stopped.  The downgrade drops the table.  In the schema ``datamig`` it is out of the way:
    ``create_table_as("datamig.number", "SELECT id, row_number() OVER (PARTITION BY parent_id ORDER
    BY id) AS n FROM item", key="id")``.

    Parameters
    ----------
    key
        Columns of the query that become the primary key.
    """
    keys = (key,) if isinstance(key, str) else tuple(key)
    listed(keys)
    return CreateTableAs(
        table=TableName.parse(table), select=expression_text(select).rstrip("; \n"), key=keys
    )


def change_type(
    table: str,
    column: str,
    type_: str | sa.types.TypeEngine[Any] | type[sa.types.TypeEngine[Any]],
    *,
    using: Expression | None = None,
    otherwise: Expression | Literal["fail"] = "fail",
    nulls: Collection[str] = (),
    keep: bool = True,
    back: Expression | None = None,
) -> ChangeType:
    """Give a column another type, without rewriting the table under a lock.

    A new column ``<column>_new`` is kept in step by a trigger and filled in batches; NOT NULL,
    keys, indexes, foreign keys from and to it, checks, the default, its sequence or identity,
    comment and grants are made for it; then it takes the name of the old one in one short
    transaction.  Columns whose steps follow each other change in the same transaction, so that a
    foreign key between them goes along.

    Parameters
    ----------
    using
        Expression over the row for the new value; the column itself by default.  Where it gives
        text and the type is another, it is cast, and texts that are no value of the type are found
        before the first write (on a PostgreSQL older than 16 only those of whole numbers, numeric
        without a length, boolean, uuid and ISO dates): write ``"substr(id, 4)"`` rather than
        ``"substr(id, 4)::uuid"``.
    otherwise
        Expression for the rows whose value would be lost: that hold one, and for which ``using``
        gives NULL or no value of the type.  ``"fail"``: the revision stops at them, and names
        them.
    nulls
        Texts in the column that mean NULL: ``("", "n/a")``.
    keep
        The old values stay in ``<column>_old``, until a later migration drops it; the downgrade
        puts them back as they were.  False drops them; going back then needs ``back``.
    back
        Expression over the changed row for the old value, for rows written since.  Without it, the
        downgrade stops at such rows.

    Raises
    ------
    MigrationError
        When it is rendered or previewed: if a view, a trigger or a generated column reads the
        column, a foreign key joins it to a column of a type that stays, or the value would depend
        on the session's time zone.
    """
    if isinstance(type_, str):
        type = expression_text(type_)
    else:
        type = sa.types.to_instance(type_).compile(dialect=sqlalchemy_dialect())
    fails = isinstance(otherwise, str) and otherwise == "fail"
    if not keep and back is None and not fails:
        raise MigrationError(
            f"{column!r} of {table!r} gets values of another kind, and the old ones are not kept",
            "leave keep=False out, or say with back= how they come back",
        )
    return ChangeType(
        table=TableName.parse(table),
        column=column,
        type=type,
        using=None if using is None else expression_text(using),
        otherwise=None if fails else expression_text(otherwise),
        nulls=tuple(nulls),
        keep=keep,
        back=None if back is None else expression_text(back),
    )


def merge_rows(
    table: str,
    same: str | Sequence[Expression],
    *,
    keep: str | None = None,
    repoint: Mapping[str, str] | None = None,
    collisions: Literal["stop", "delete"] = "stop",
    nulls: bool = False,
    map: str | None = None,
) -> MergeRows:
    """Merge duplicates: one row stays, what refers to the others is repointed, they are deleted.

    All foreign keys to the table are followed, in batches, children with their old values kept;
    the rows that go are kept too, so that the downgrade brings all back.  A unique constraint is a
    step of its own behind it.  Of a table without a key, rows that are the same in ``same`` are
    deleted but for one.

    Parameters
    ----------
    same
        Columns or expressions: rows that give the same values are duplicates.
    keep
        ORDER BY whose first row stays, such as ``"created_at DESC"``; ties go by the key.
    repoint
        Columns that hold the table's key without a foreign key, table -> column.
    collisions
        Rows of a child that would break its unique index once they are repointed: ``"stop"``
        refuses to start and names them, ``"delete"`` deletes (and keeps) all but one.
    nulls
        True: NULL is the same as NULL.
    map
        Table that holds who was merged into whom; ``datamig.merged_<table>`` by default.
    """
    name = TableName.parse(table)
    merged = TableName("datamig", cut(f"merged_{name.name}")) if map is None else map
    given = (same,) if isinstance(same, str) else same
    texts = tuple(expression_text(each) for each in given)
    listed(texts)
    if collisions not in ("stop", "delete"):
        raise MigrationError(f"collisions={collisions!r} is no choice", "use 'stop' or 'delete'")
    return MergeRows(
        table=name,
        same=texts,
        keep=None if keep is None else expression_text(keep),
        repoint={TableName.parse(child): column for child, column in (repoint or {}).items()},
        collisions=collisions,
        nulls=nulls,
        map=TableName.parse(merged),
    )

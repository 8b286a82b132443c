"""The step that computes in Python, for logic that SQL cannot say.  Nothing touches a database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from datamig_nb.errors import MigrationError
from datamig_nb.expressions import Expression, expression_text, expressions, listed
from datamig_nb.functions import RowFunction, capture
from datamig_nb.names import TableName, quote


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Give columns of the rows that are there what a Python function makes of others."""

    #: Table to update.
    table: TableName
    #: The function, with the text that the revision needs of it.
    function: RowFunction
    #: SQL expressions over the row, one for each argument of the function.
    reads: tuple[str, ...]
    #: Columns that get what the function returns: its value, or a tuple of several.
    writes: tuple[str, ...]
    #: SQL condition over the row; None takes every row.
    where: str | None = None
    #: Packages beside the standard library that the function needs where Alembic runs.
    requires: tuple[str, ...] = ()
    #: Column that gets the SHA-256 of the value's UTF-8 text, in hexadecimal.
    checksum: str | None = None
    #: Parts of the table that are done at once.
    workers: int = 2
    #: Whether the parts are processes, for a function that keeps a processor busy.
    processes: bool = False
    #: Whether the function takes pandas.Series and returns a Series or a DataFrame.
    vectorized: bool = False
    #: Rows that may be set aside in datamig.quarantine; None: the first that fails stops it.
    quarantine_rows: int | None = None
    #: Column -> SQL expression that should give the same; preview compares both.
    twin: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are written."""
        return self.writes if self.checksum is None else (*self.writes, self.checksum)

    def __str__(self) -> str:
        rows = "every row" if self.where is None else f"rows where {self.where}"
        also = "" if self.checksum is None else f", its SHA-256 in {self.checksum}"
        needs = f"; needs {', '.join(self.requires)}" if self.requires else ""
        return (
            f"compute {listed(self.writes)} of {self.table}{also} with the Python function"
            f" {self.function.name}({', '.join(self.reads)}), {rows}, in batches{needs}"
        )


def transform(
    table: str,
    function: Callable[..., Any],
    *,
    reads: Iterable[str] | Mapping[str, Expression],
    writes: Iterable[str],
    where: Expression | None = None,
    requires: Iterable[str] = (),
    checksum: str | None = None,
    workers: int = 2,
    processes: bool = False,
    vectorized: bool = False,
    on_error: Literal["stop", "quarantine"] = "stop",
    quarantine_limit: int = 100,
    twin: Mapping[str, Expression] | None = None,
) -> Transform:
    """Give columns what a Python function makes of others, for logic that SQL cannot say.

    The function's source goes into the revision, with the constants and functions of its module
    that it uses.  It is called with one positional argument for each of ``reads`` and returns the
    value to write, or a tuple where ``writes`` names several columns.

    Values come as bool, int, float, Decimal (also the fractions in JSON, which a float would not
    hold), str, bytes, UUID, date, time, datetime (with a time zone: in UTC), lists (arrays), and
    what JSON says as dict, list, str; NULL as None.  Other types come as PostgreSQL writes them,
    interval among them, for it has months.  The same types go back, and a str that PostgreSQL can
    read as the column's type.  A value that Python cannot hold (``infinity``, a JSON ``null``)
    stops the upgrade before its first write.

    A row is written only where it is still what the function saw; what others wrote meanwhile is
    computed again.  A row that has its values already is not written.  A function that reads what
    it writes is applied once to each row, and once to each version that others write while it runs:
    until the upgrade ends, they must write the old form.

    Parameters
    ----------
    reads
        Columns, in the order of the function's arguments; or argument -> SQL expression over the
        row, such as ``{"seconds": "extract(epoch FROM duration)"}``.
    requires
        Packages beside the standard library that the function imports; the revision's header says
        that production must have them.
    checksum
        Column that gets the SHA-256 of the new value's UTF-8 text, in hexadecimal.  It is verified
        against what the table holds afterwards.
    workers
        Parts of the table that are done at once, on connections of their own.
    processes
        Give each part a process, for a function that keeps a processor busy.
    vectorized
        The function takes a ``pandas.Series`` of objects for each of ``reads``, a batch at a time,
        and returns a Series, or a DataFrame of as many columns as ``writes`` names.
    on_error
        ``"quarantine"`` sets rows that fail aside in ``datamig.quarantine``, up to
        ``quarantine_limit``; else the first stops the upgrade, which names it.
    twin
        Column of ``writes`` -> SQL expression that should give the same.  It is no part of the
        revision: :func:`preview` evaluates both for all distinct values and shows where they
        differ, so that work can move into the database with proof.

    Raises
    ------
    MigrationError
        If the function's source cannot stand alone, or the columns do not fit together.
    """
    named: Mapping[str, Expression] = (
        cast("Mapping[str, Expression]", reads)
        if isinstance(reads, Mapping)
        else {column: quote(column) for column in _several("reads", reads)}
    )
    columns, packages = _several("writes", writes), _several("requires", requires)
    if not named or not columns:
        raise MigrationError("transform() reads or writes no column", "name at least one of both")
    if checksum is not None and (len(columns) != 1 or checksum in columns):
        raise MigrationError(
            f"the checksum {checksum!r} is that of one column, but transform() writes"
            f" {listed(columns)}",
            "write each column that needs one with a transform() of its own",
        )
    if workers < 1 or quarantine_limit < 0:
        raise MigrationError("transform() needs a worker and no limit below 0", "choose others")
    if vectorized and "pandas" not in packages:
        raise MigrationError(
            "a vectorized function needs pandas where Alembic runs", 'say requires=("pandas",)'
        )
    twins: Mapping[str, str] = {} if twin is None else expressions("twin of transform", twin)
    if unknown := [column for column in twins if column not in columns]:
        raise MigrationError(
            f"transform() writes no {listed(unknown)}, which has a twin",
            f"give one for {listed(columns)}",
        )
    return Transform(
        table=TableName.parse(table),
        function=capture(function, tuple(named), packages),
        reads=tuple(expression_text(text) for text in named.values()),
        writes=columns,
        where=None if where is None else expression_text(where),
        requires=packages,
        checksum=checksum,
        workers=workers,
        processes=processes,
        vectorized=vectorized,
        quarantine_rows=quarantine_limit if on_error == "quarantine" else None,
        twin=twins,
    )


def _several(word: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple; one text would be taken for its letters."""
    if isinstance(names, str):
        raise MigrationError(f"{word}={names!r} is one text", f"write {word}=({names!r},)")
    return tuple(names)

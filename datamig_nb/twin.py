"""Does a SQL expression give what a Python function gives?  Asked for every distinct value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
import sqlalchemy as sa

from datamig_nb.catalog import Catalog
from datamig_nb.inlined_values import Kind, reader, text_expression, writer
from datamig_nb.python_values import kinds
from datamig_nb.transforms import Transform

#: Differences that are shown, the most frequent first.
DIFFERENCES_SHOWN = 10

# Rows that are fetched, and given to a function of pandas.Series, at once.
_BATCH = 10_000


@dataclass(frozen=True, kw_only=True)
class TwinDifference:
    """Values of which Python and SQL make different things, as text."""

    #: What the function reads.
    reads: tuple[str | None, ...]
    #: What the function gives; where it fails, the error.
    python: str | None
    #: What the expression gives.
    sql: str | None
    #: Rows that have these values.
    rows: int


@dataclass(frozen=True, kw_only=True)
class TwinComparison:
    """A Python function and the SQL expression that should give the same for one column."""

    table: str
    column: str
    function: str
    expression: str
    #: The arguments, as SQL expressions over the row.
    reads: tuple[str, ...]
    #: Distinct combinations of the values read, and those for which both do not agree.
    distinct: int
    differing: int
    #: Rows that have differing values.
    differing_rows: int
    #: At most DIFFERENCES_SHOWN of them, the most frequent first.
    differences: tuple[TwinDifference, ...]

    @property
    def agrees(self) -> bool:
        """Whether the expression may take the function's place."""
        return self.differing == 0

    @property
    def summary(self) -> str:
        """The comparison in words."""
        if self.agrees:
            return f"agrees for all {self.distinct:,} distinct values"
        return (
            f"differs for {self.differing:,} of {self.distinct:,} distinct values,"
            f" {self.differing_rows:,} rows"
        )


def compare_twins(
    connection: sa.Connection, step: Transform, catalog: Catalog
) -> tuple[TwinComparison, ...]:
    """Evaluate the function and its twins for every distinct combination of values."""
    types = [catalog.column_type(step.table, column).name for column in step.twin]
    asked = kinds(connection, step.table, [*step.reads, *(f"NULL::{type}" for type in types)])
    of_reads, of_twins = asked[: len(step.reads)], asked[len(step.reads) :]
    # Without a length: what the column would round or refuse is told by other means.
    given = [f"({text})::{k.sql}" for text, k in zip(step.twin.values(), of_twins, strict=True)]
    counts = {column: _Count() for column in step.twin}
    statement = _distinct(step, [*step.reads, *given], asked)
    for batch in _fetched(connection, statement):
        for row, result in zip(batch, _results(step, batch, of_reads), strict=True):
            texts, twins, rows = row[: len(of_reads)], row[len(of_reads) : -1], row[-1]
            for (column, count), kind, text in zip(counts.items(), of_twins, twins, strict=True):
                python = result if isinstance(result, Exception) else result[column]
                count.add(texts, python, text, kind, rows)
    return tuple(
        TwinComparison(
            table=str(step.table),
            column=column,
            function=step.function.name,
            expression=step.twin[column],
            reads=step.reads,
            distinct=count.distinct,
            differing=count.differing,
            differing_rows=count.rows,
            differences=tuple(count.first),
        )
        for column, count in counts.items()
    )


def _distinct(step: Transform, expressions: Sequence[str], kinds: Sequence[Kind]) -> str:
    """Each combination of the values read with what the twins give, as text, and its rows."""
    texts = [text_expression(*pair) for pair in zip(expressions, kinds, strict=True)]
    listed = ", ".join(f"{text} AS v{number}" for number, text in enumerate(texts))
    where = "" if step.where is None else f" WHERE {step.where}"
    names = ", ".join(f"v{number}" for number in range(len(texts)))
    ordered = ", ".join(f'v{number} COLLATE "C"' for number in range(len(step.reads)))
    return (
        f"SELECT {names}, count(*) AS rows FROM (SELECT {listed} FROM {step.table.sql}{where})"
        f" AS row GROUP BY {names} ORDER BY rows DESC, {ordered}"
    )


def _fetched(connection: sa.Connection, statement: str) -> Iterator[Sequence[tuple[Any, ...]]]:
    options = {"no_parameters": True, "stream_results": True, "yield_per": _BATCH}
    # Forms of text that Python reads, whatever the database was told.
    for setting in ("DateStyle = ISO", "IntervalStyle = postgres", "bytea_output = hex"):
        connection.exec_driver_sql(f"SET LOCAL {setting}")
    result = connection.exec_driver_sql(statement, execution_options=options)
    for batch in result.partitions():
        yield [tuple(row) for row in batch]


def _results(
    step: Transform, batch: Sequence[tuple[Any, ...]], kinds: Sequence[Kind]
) -> Iterable[Mapping[str, Any] | Exception]:
    """What the function gives for each row, by column, or the error that it raises."""
    function, readers = step.function.function, list(map(reader, kinds))
    values = [
        [read(text) if read else text for read, text in zip(readers, row, strict=False)]
        for row in batch
    ]
    if step.vectorized:
        columns = [pd.Series(list(column), dtype=object) for column in zip(*values, strict=True)]
        result: Any = function(*columns)
        several = [result[name] for name in result.columns] if result.ndim == 2 else [result]
        lists = [list(each.astype(object).where(each.notna(), None)) for each in several]
        return [dict(zip(step.writes, row, strict=True)) for row in zip(*lists, strict=True)]
    return [_result(step, row) for row in values]


def _result(step: Transform, row: Sequence[Any]) -> Mapping[str, Any] | Exception:
    try:
        result = step.function.function(*row)
        several = (result,) if len(step.writes) == 1 else cast("tuple[Any, ...]", result)
        return dict(zip(step.writes, several, strict=True))
    except Exception as error:
        return error


class _Count:
    """What was found of one twin so far."""

    def __init__(self) -> None:
        self.distinct = self.differing = self.rows = 0
        self.first: list[TwinDifference] = []

    def add(
        self, reads: Sequence[str | None], python: Any, sql: str | None, kind: Kind, rows: int
    ) -> None:
        self.distinct += 1
        try:
            if isinstance(python, Exception):
                raise python
            same = _value(python, kind) == _read(sql, kind)
            shown = None if python is None else str(python)
        except Exception as error:  # the function's own, or a value that the column does not take
            same, shown = False, f"{type(error).__name__}: {error}"
        if not same:
            self.differing += 1
            self.rows += rows
            if len(self.first) < DIFFERENCES_SHOWN:
                found = TwinDifference(reads=tuple(reads), python=shown, sql=sql, rows=rows)
                self.first.append(found)


def _value(value: Any, kind: Kind) -> Any:
    """The value as it comes back from a column of that type."""
    if kind.is_array and isinstance(value, list | tuple):
        element = kind._replace(is_array=False)
        return [_value(item, element) for item in cast("Sequence[Any]", value)]
    return _read(writer(kind)(value), kind)


def _read(text: str | None, kind: Kind) -> Any:
    read = reader(kind)
    return read(text) if read else text

"""What is really in a table? Counted in PostgreSQL, in one snapshot, without writing.

Up to EXACT_UP_TO_ROWS rows every figure is exact.  In a larger table columns of few values still
are; of the others, nulls, white space, extremes, lengths and the rows of top values are exact,
quantiles and masks come from a sample, and distinct values and spellings from one hash-chosen part
of the values.  The figures say which; the same data gives the same figures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from itertools import combinations
from typing import Any

import sqlalchemy as sa

from datamig_nb import profile_catalog, profile_sql
from datamig_nb.database import STATEMENT_TIMEOUT_SECONDS, Database, run
from datamig_nb.errors import MigrationError, PermissionDeniedError
from datamig_nb.names import TableName, quote
from datamig_nb.profile_alerts import column_alerts, table_alerts
from datamig_nb.profile_sql import VALUE_CHARACTERS, Measured
from datamig_nb.table_profile import (
    SEVERITIES,
    CandidateKey,
    ColumnProfile,
    Reference,
    TableProfile,
    ValueCount,
)
from datamig_nb.tables import Table, read_table

#: Every figure of a table of up to so many rows is exact, unless told otherwise.
EXACT_UP_TO_ROWS = 100_000
#: Rows of the sample of a larger table, about.
SAMPLE_ROWS = 10_000
#: A column of a larger table is counted exactly if it has about this many values or fewer.
COUNTED_VALUES = 20_000
#: Rows in the hash-chosen part of the values, about.
PART_ROWS = 16_384
#: Pairs of columns that are tried as a key where no single column is one.
PAIRS_TRIED = 45

_COLUMN = re.compile(r'(?P<table>.+)\.(?:"(?P<quoted>(?:[^"]|"")+)"|(?P<plain>[^".]+))')


def profile(
    db: Database,
    table: str,
    *,
    top: int = 10,
    references: Mapping[str, str] | None = None,
    exact_up_to_rows: int = EXACT_UP_TO_ROWS,
    timeout_seconds: float = STATEMENT_TIMEOUT_SECONDS,
) -> TableProfile:
    """Count what is in every column of a table: its values, their shapes, and what is odd.

    Takes no lock beyond that of a SELECT.  Times with a time zone are shown in UTC.

    Parameters
    ----------
    table
        ``table`` or ``schema.table``; a view or a foreign table can be profiled too.
    top
        How many values, masks, groups of spellings and missing values are listed.
    references
        Column -> ``schema.table.column`` that it should refer to; rows that do not are counted.
        Columns whose names suggest a table of the same schema are looked up unasked.
    exact_up_to_rows
        Rows up to which every figure is exact; beyond, some are estimated and marked so.
    timeout_seconds
        Bound on each statement.

    Raises
    ------
    UnknownTableError, UnknownColumnError
        If there is no such table, or a reference names no column.
    PermissionDeniedError
        If the table or one of its columns may not be read.
    QueryError
        If a statement takes longer than ``timeout_seconds``.
    """
    name = TableName.parse(table)
    with db.read_only(f"profiling {name}", timeout_seconds=timeout_seconds) as connection:
        described = read_table(connection, name)
        given = _given(connection, described, references or {})
        run(connection, profile_catalog.settle())
        facts = connection.execute(sa.text(profile_catalog.TABLE), {"name": name.sql}).one()
        measured = _measured(connection, described, db.url.username)
        rows = int(run(connection, profile_sql.count_rows(name)).scalar_one())
        source = _Source(
            connection=connection,
            table=described,
            rows=rows,
            exact=rows <= exact_up_to_rows,
            sampled=profile_sql.sample(
                name, min(100 * SAMPLE_ROWS / max(rows, 1), 100), view=facts.relkind in "vf"
            ),
            top=top,
        )
        likely = {} if source.exact else _likely_values(source, measured)
        many = [column for column, values in likely.items() if values > COUNTED_VALUES]
        extents = _extents(source, many)
        columns = tuple(
            _estimated(source, column, extents[column], likely[column])
            if column in extents
            else _counted(source, column)
            for column in measured
        )
        keys = _candidate_keys(source, measured, columns)
        links = tuple(_references(source, given, columns))
    alerts = [*table_alerts(described, facts, keys)]
    for column in columns:
        alerts += column_alerts(column, [link for link in links if link.column == column.name])
    return TableProfile(
        table=str(name),
        rows=rows,
        total_bytes=int(facts.total_bytes),
        alerts=tuple(sorted(alerts, key=lambda alert: SEVERITIES.index(alert.severity))),
        columns=columns,
        candidate_keys=keys,
        references=links,
    )


# ---------------------------------------------------------------- columns


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where the figures come from, within one snapshot."""

    connection: sa.Connection
    table: Table
    rows: int
    exact: bool
    sampled: str
    top: int

    @property
    def parts(self) -> int:
        """Into how many parts the values are divided, a power of two."""
        return 1 << max(1, (self.rows // PART_ROWS).bit_length())

    def measure(self, values: str, items: Iterable[str]) -> dict[str, Any]:
        statement = profile_sql.measure(values, items)
        return dict(run(self.connection, statement).mappings().one())


def _measured(connection: sa.Connection, table: Table, user: str | None) -> tuple[Measured, ...]:
    found = connection.execute(sa.text(profile_catalog.COLUMNS), {"name": table.name.sql}).all()
    if hidden := [row.name for row in found if not row.readable]:
        columns = ", ".join(map(quote, hidden))
        raise PermissionDeniedError(
            f"profiling {table.name} is not permitted: {user!r} may not read {columns}",
            f"ask for GRANT SELECT ({columns}) ON {table.name.sql}",
        )
    return tuple(
        Measured(
            name=row.name,
            kind=row.kind,
            collatable=row.collatable,
            scaleless=row.scaleless,
            length=table.column(row.name).length if row.kind == "text" else None,
        )
        for row in found
    )


def _likely_values(source: _Source, columns: Sequence[Measured]) -> dict[Measured, int]:
    """Distinct values of each column judged by the sample, as ANALYZE does (Haas and Stokes)."""
    if not columns:
        return {}
    found = run(source.connection, profile_sql.repetition(columns, source.sampled))
    share = min(SAMPLE_ROWS / source.rows, 1)
    return {
        column: int(
            int(row.filled)
            * row.distinct_values
            / max(int(row.filled) - row.single_values * (1 - share), 1)
        )
        for column, row in zip(columns, found, strict=True)
    }


def _counted(source: _Source, column: Measured) -> ColumnProfile:
    """All figures exact, from one statement."""
    figures = source.measure(
        profile_sql.counted(column, source.table.name.sql),
        [
            *profile_sql.extent(column),
            *profile_sql.variety(column, source.top),
            *profile_sql.most_frequent(source.top),
            *profile_sql.shape(column, source.top),
        ],
    )
    distinct = figures["distinct_values"]
    return _column_profile(source, column, figures, distinct=distinct, distinct_is_exact=True)


def _extents(source: _Source, columns: Sequence[Measured]) -> dict[Measured, dict[str, Any]]:
    """NULLs, extremes, white space and lengths of columns of many values, in one pass."""
    if not columns:
        return {}
    found = run(source.connection, profile_sql.extents(columns, source.table.name)).mappings().one()
    figures: dict[Measured, dict[str, Any]] = {column: {} for column in columns}
    for name, value in found.items():
        number, figure = name[1:].split("_", 1)
        figures[columns[int(number)]][figure] = value
    return figures


def _estimated(
    source: _Source, column: Measured, extent: Mapping[str, Any], likely: int
) -> ColumnProfile:
    """Exact figures from all rows, quantiles and masks from a sample, distinct from a part.

    Nobody asks how many different moments there are: what the sample says of them will do.
    """
    name, figures = source.table.name, {"nulls": 0, **extent}
    items = [*profile_sql.sampled(), *profile_sql.shape(column, source.top)]
    figures |= source.measure(profile_sql.counted(column, source.sampled), items)
    if figures["has_frequent"]:
        statement = profile_sql.frequent_values(name, column, source.sampled, source.top)
        figures["top"] = [list(row) for row in run(source.connection, statement)]
    filled = source.rows - figures["nulls"]
    unique = (column.name,) in source.table.unique
    distinct = filled if unique else min(likely, filled)
    if column.kind == "text" or not (unique or column.kind == "time"):
        mean_length = figures.get("mean_length")
        words = mean_length is not None and mean_length <= profile_sql.PROSE_CHARACTERS
        part = profile_sql.part(name, column, source.parts, alike=words)
        found = source.measure(
            profile_sql.counted(column, part), profile_sql.variety(column, source.top)
        )
        distinct = filled if unique else _scaled(found, filled, source.parts)
        for figure in ("spelling_groups", "spelling_rows"):
            figures[figure] = (found.get(figure) or 0) * source.parts
        figures["spellings"] = found.get("spellings")
    return _column_profile(source, column, figures, distinct=distinct, distinct_is_exact=unique)


def _scaled(figures: Mapping[str, Any], filled: int, parts: int) -> int:
    """Distinct values of the whole, by those of one part."""
    distinct = int(figures["distinct_values"])
    if distinct == figures["filled"] and distinct * parts > 0.9 * filled:
        return filled  # unique as far as one can see
    return min(distinct * parts, filled)  # a part holds few values more or less than its share


def _column_profile(
    source: _Source,
    column: Measured,
    figures: Mapping[str, Any],
    *,
    distinct: int,
    distinct_is_exact: bool,
) -> ColumnProfile:
    known = {field.name for field in fields(ColumnProfile)}
    return ColumnProfile(
        name=column.name,
        type=source.table.column(column.name).type,
        rows=source.rows,
        distinct=distinct,
        distinct_is_exact=distinct_is_exact,
        length_limit=column.length,
        looks_like=_looks_like(figures),
        **{
            name: _plain(figure)
            for name, figure in figures.items()
            if name in known and figure is not None
        },
    )


def _looks_like(figures: Mapping[str, Any]) -> str | None:
    words = int(figures.get("words") or 0)
    for kind in ("number", "date", "boolean"):
        if words and int(figures[f"{kind}s"] or 0) >= 0.95 * words:
            return kind
    return None


def _plain(figure: Any) -> Any:
    """A figure as we keep it: counts are int, pairs are ValueCount, long texts are cut."""
    match figure:
        case Decimal():
            return int(figure)
        case str(text) if len(text) > VALUE_CHARACTERS:
            return text[:VALUE_CHARACTERS] + "…"
        case [str(text), int(rows)]:
            return ValueCount(value=_plain(text), rows=rows)
        case [*parts]:
            return tuple(_plain(part) for part in parts if part is not None)
        case _:
            return figure


# ---------------------------------------------------------------- keys and references


def _candidate_keys(
    source: _Source, measured: Sequence[Measured], columns: Sequence[ColumnProfile]
) -> tuple[CandidateKey, ...]:
    """Keys that an index holds, single columns, and pairs where there is neither and few rows."""
    filled = {column.name: column for column in columns if column.nulls == 0}
    indexed = [key for key in source.table.unique if all(column in filled for column in key)]
    keys = [CandidateKey(columns=key, indexed=True, proven=True) for key in indexed]
    if source.rows < 2:
        return tuple(keys)  # whatever there is would be unique
    usable = {
        column.name: column
        for column in measured
        if column.name in filled
        and column.kind != "opaque"
        and filled[column.name].type not in ("real", "double precision")
        and (source.exact or column.kind != "time")
    }
    keys += [
        CandidateKey(columns=(name,), indexed=False, proven=filled[name].distinct_is_exact)
        for name in usable
        if filled[name].is_unique and (name,) not in indexed
    ]
    if keys or not source.exact:
        return tuple(keys)
    pairs = [
        (first, second)
        for first, second in combinations(usable.values(), 2)
        if filled[first.name].distinct * filled[second.name].distinct >= source.rows
    ]
    for first, second in pairs[:PAIRS_TRIED]:
        statement = profile_sql.count_pairs(source.table.name, first, second)
        if run(source.connection, statement).scalar_one() == source.rows:
            names = (first.name, second.name)
            keys.append(CandidateKey(columns=names, indexed=False, proven=True))
    return tuple(keys)


def _given(
    connection: sa.Connection, table: Table, references: Mapping[str, str]
) -> list[tuple[str, TableName, str]]:
    """The caller's references, each with its parent's table and column, which must exist."""
    given: list[tuple[str, TableName, str]] = []
    for column, target in references.items():
        table.column(column)
        match = _COLUMN.fullmatch(target)
        if match is None:
            raise MigrationError(
                f"{target!r}, given for {column!r}, is no column of a table",
                "write 'schema.table.column'",
            )
        parent = read_table(connection, TableName.parse(match["table"]))
        name = match["plain"] or match["quoted"].replace('""', '"')
        given.append((column, parent.name, parent.column(name).name))
    return given


def _references(
    source: _Source,
    given: Sequence[tuple[str, TableName, str]],
    columns: Sequence[ColumnProfile],
) -> Iterator[Reference]:
    """References with their orphans; of those that the names suggest, only what fits at all."""
    filled = {column.name: column.filled for column in columns}
    wanted = [(*link, "given") for link in given]
    for query, origin in (
        (profile_catalog.UNCHECKED_KEYS, "not valid"),
        (profile_catalog.LIKELY_PARENTS, "suggested"),
    ):
        known = {link[0] for link in wanted}
        found = source.connection.execute(sa.text(query), {"name": source.table.name.sql})
        wanted += [
            (row.column, TableName(row.parent_schema, row.parent_table), row.parent_column, origin)
            for row in found
            if row.column not in known
        ]
    for column, parent, parent_column, origin in wanted:
        statement = profile_sql.orphans(
            source.table.name, column, parent, parent_column, source.top
        )
        row = run(source.connection, statement).one()
        if origin != "suggested" or row.orphan_rows < filled[column]:
            yield Reference(
                column=column,
                parent=str(parent),
                parent_column=parent_column,
                origin=origin,
                orphan_rows=int(row.orphan_rows),
                missing_values=row.missing_values,
                first_missing=_plain(row.first_missing or []),
            )

"""What would a migration do to the data, and what would it break?  Nothing is written.

The migration's own expressions are evaluated over the rows as they are: what is shown is what the
batches will write.  Its checks are evaluated over that result, before there is one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import sqlalchemy as sa

from datamig_nb import preview_hazards, preview_sql
from datamig_nb.catalog import Catalog
from datamig_nb.catalog_reader import read_catalog
from datamig_nb.database import STATEMENT_TIMEOUT_SECONDS, Database, explained, run
from datamig_nb.display import Shown, visible
from datamig_nb.errors import QueryError
from datamig_nb.expanded import expanded
from datamig_nb.migration import Migration, describe
from datamig_nb.predicted import foreseeable, foreseen, joined, rows_before
from datamig_nb.preview_hazards import Hazard
from datamig_nb.statements import has_equality
from datamig_nb.steps import Backfill
from datamig_nb.tables import NOT_YET, Table
from datamig_nb.transforms import Transform
from datamig_nb.twin import TwinComparison, compare_twins

#: Pairs of old and new values that a value map holds at most; it says when there are more.
MAP_ROWS = 1_000

# Values that several old ones become: more of them are told in one note.
_MERGED_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class MapRow:
    """One combination of old values and what becomes of it; values as PostgreSQL writes them."""

    before: tuple[str | None, ...]
    after: tuple[str | None, ...]
    rows: int


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """A row that was chosen for a reason, before and after; values as PostgreSQL writes them."""

    #: Why it was chosen, in words; several reasons with commas.
    why: str
    #: Its key; where the table has none, its place.
    key: tuple[str | None, ...]
    before: tuple[str | None, ...]
    after: tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True)
class BackfillPreview:
    """What one backfill would do."""

    table: str
    #: Columns that the expressions read, and those that they set.
    reads: tuple[str, ...]
    sets: tuple[str, ...]
    key_columns: tuple[str, ...]
    #: Rows that the backfill looks at, and those that it would write.
    rows: int
    changed_rows: int
    #: Distinct combinations of old values; the map holds the MAP_ROWS most frequent ones.
    distinct: int
    map: tuple[MapRow, ...]
    samples: tuple[SampleRow, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """The value map: the columns read, ``→`` the columns set, ``rows``; NULL is None."""
        columns = [*self.reads, *(f"→ {column}" for column in self.sets), "rows"]
        rows = [(*pair.before, *pair.after, pair.rows) for pair in self.map]
        return pd.DataFrame(rows, columns=columns, dtype=object)


@dataclass(frozen=True, kw_only=True)
class Preview(Shown):
    """What a migration would do and what it would break."""

    #: Name of the migration.
    migration: str
    #: Its steps, in words.
    steps: tuple[str, ...]
    #: What it would meet, the worst first.
    hazards: tuple[Hazard, ...]
    backfills: tuple[BackfillPreview, ...]
    #: Python functions held against the SQL expressions that should give the same.
    twins: tuple[TwinComparison, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing was found that would stop the revision."""
        return all(hazard.severity != "stops" for hazard in self.hazards)

    @property
    def summary(self) -> str:
        """The preview in one line of words."""
        stops = sum(hazard.severity == "stops" for hazard in self.hazards)
        rows = sum(backfill.changed_rows for backfill in self.backfills)
        found = f"{stops} hazards would stop it" if stops else "no hazard would stop it"
        return f"{rows:,} rows would change, {found}"

    @property
    def frame(self) -> pd.DataFrame:
        """The value map of the first backfill; see :class:`BackfillPreview` for the others."""
        return self.backfills[0].frame if self.backfills else pd.DataFrame()

    def __repr__(self) -> str:
        lines = [f"Preview of {self.migration!r}: {self.summary}"]
        for hazard in self.hazards:
            mark = "STOPS" if hazard.severity == "stops" else "note "
            lines.append(f"  {mark}  {hazard.what}: {hazard.rows:,} rows; {hazard.advice}")
        for part in self.backfills:
            lines.append(
                f"  {part.table}: {part.distinct:,} distinct values of {', '.join(part.reads)}"
            )
            lines += [
                f"    {_shown(pair.before)} → {_shown(pair.after)}  {pair.rows:,} rows"
                for pair in part.map[:10]
            ]
        for twin in self.twins:
            lines.append(f"  SQL twin of {twin.function}() for {twin.column}: {twin.summary}")
            lines += [
                f"    {_shown(each.reads)} → Python {visible(each.python)}, SQL {visible(each.sql)}"
                f"  {each.rows:,} rows"
                for each in twin.differences
            ]
        return "\n".join(lines)


def preview(
    db: Database,
    migration: Migration,
    *,
    timeout_seconds: float = STATEMENT_TIMEOUT_SECONDS,
) -> Preview:
    """Show what a migration would do: every distinct value mapped, samples of edge cases, hazards.

    Read in one snapshot, without writing.  Sample rows are chosen for what tends to go wrong:
    NULL, empty, blank, spaces at the ends or doubled, tabs, no-break spaces, the longest, the
    shortest, non-ASCII letters, accents apart from their letters, quotes, rare shapes, and values
    of which nothing is left.

    Hazards are what the revision would stop at: its own checks, and the types, NOT NULL, CHECK,
    unique and foreign key constraints that the new values must meet.  Unique indexes over
    expressions or over some rows only, and exclusion constraints, are left to the rehearsal.

    The function of a :func:`transform` with a ``twin`` is called here, for every distinct value.

    Raises
    ------
    UnknownTableError, UnknownColumnError, ExpressionError, MigrationError
        If the migration does not fit the database.
    QueryError
        If an expression fails on a row, or takes longer than ``timeout_seconds``.
    """
    shown = expanded(db, migration)
    migration = foreseeable(shown)
    catalog = read_catalog(db, migration)
    catalog.require_absent(catalog.added)
    try:
        with db.read_only("previewing", timeout_seconds=timeout_seconds) as connection:
            hazards = preview_hazards.failing_before(connection, migration, catalog)
            backfills: list[BackfillPreview] = []
            twins: list[TwinComparison] = []
            for number, step in enumerate(migration.steps):
                hazards += preview_hazards.rows_moved(connection, step, migration, catalog)
                if isinstance(step, Backfill) and foreseen(step, catalog):
                    rows = rows_before(step, migration.steps[:number], catalog)
                    part = _backfill(connection, step, catalog, rows)
                    hazards += preview_hazards.misfits(step, part.rows, catalog)
                    table = catalog.table(step.table)
                    hazards += preview_hazards.dear_rewrite(step, table, part.changed_rows)
                    backfills.append(part)
                elif isinstance(step, Transform) and step.twin:
                    twins += compare_twins(connection, step, catalog)
            for name, table in catalog.tables.items():
                if table.estimated_rows == NOT_YET:
                    continue
                with explained(f"holding the checks against the new rows of {name}", db.url):
                    hazards += preview_hazards.predicted(connection, migration, catalog, name)
    except QueryError:
        _name_expression(db, migration, catalog, timeout_seconds)
        raise
    hazards += [note for part in backfills for note in _merged(part)]
    return Preview(
        migration=migration.name,
        steps=tuple(describe(step) for step in shown.steps),
        hazards=tuple(sorted(hazards, key=lambda hazard: hazard.severity != "stops")),
        backfills=tuple(backfills),
        twins=tuple(twins),
    )


def _name_expression(
    db: Database, migration: Migration, catalog: Catalog, timeout_seconds: float
) -> None:
    """Raise the error again with the expression that causes it, if it is one of a backfill's."""
    for step in migration.backfills:
        wheres = () if step.where is None else (step.where,)
        if catalog.reads_made(*step.texts):
            continue
        for expression in (*wheres, *step.assign.values()):
            what = f"the expression {expression!r} over the rows of {step.table}"
            with db.read_only(what, timeout_seconds=timeout_seconds) as connection:
                run(connection, preview_sql.evaluate(step, expression))


# ---------------------------------------------------------------- what would change


def _backfill(
    connection: sa.Connection, step: Backfill, catalog: Catalog, found: str
) -> BackfillPreview:
    """What a backfill would do with the rows that it finds, a FROM item."""
    table = catalog.table(step.table)
    reads, misfits = preview_sql.reads(step, table), catalog.misfit_columns
    if step.using is not None:
        step, found = joined(step, found)
    as_text = [
        column
        for column in step.assign
        if (step.table, column) in misfits
        or not has_equality(catalog.column_type(step.table, column).name)
    ]
    query = preview_sql.value_map(step, table, reads, MAP_ROWS, as_text, found)
    pairs = run(connection, query).all()
    distinct, rows, changed_rows, kinds = pairs[0][-4:] if pairs else (0, 0, 0, ())
    split = len(reads)
    return BackfillPreview(
        table=str(step.table),
        reads=reads,
        sets=tuple(step.assign),
        key_columns=table.key or ("ctid",),
        rows=rows,
        changed_rows=changed_rows,
        distinct=distinct,
        map=tuple(
            MapRow(before=tuple(row[:split]), after=tuple(row[split:-5]), rows=row[-5])
            for row in pairs
        ),
        samples=_samples(connection, step, table, reads, kinds, found) if pairs else (),
    )


def _samples(
    connection: sa.Connection,
    step: Backfill,
    table: Table,
    reads: tuple[str, ...],
    kinds: Sequence[bool | None],
    found: str,
) -> tuple[SampleRow, ...]:
    key = table.key or ("ctid",)
    split = len(key) + len(reads)
    whys: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for why, *values in run(connection, preview_sql.samples(step, key, reads, kinds, found)):
        whys[tuple(values)].append(why)
    return tuple(
        SampleRow(
            why=", ".join(reasons),
            key=values[: len(key)],
            before=values[len(key) : split],
            after=values[split:],
        )
        for values, reasons in whys.items()
    )


def _merged(part: BackfillPreview) -> list[Hazard]:
    """Several old values that become one: no way back from the new column alone."""
    if part.distinct > len(part.map):
        return []
    olds: dict[tuple[str | None, ...], list[MapRow]] = defaultdict(list)
    for pair in part.map:
        if any(value is not None for value in pair.after):
            olds[pair.after].append(pair)
    merged = {after: pairs for after, pairs in olds.items() if len(pairs) > 1}
    advice = f"{', '.join(part.reads)} keeps the difference, as long as it is there"
    if len(merged) > _MERGED_SHOWN:
        pairs = [pair for each in merged.values() for pair in each]
        what = f"{len(pairs)} old values become {len(merged)} new ones"
        rows = sum(pair.rows for pair in pairs)
        return [Hazard(severity="note", what=what, rows=rows, advice=advice)]
    return [
        Hazard(
            severity="note",
            what=f"{len(pairs)} old values become {_shown(after)}",
            rows=sum(pair.rows for pair in pairs),
            advice=advice,
        )
        for after, pairs in merged.items()
    ]


def _shown(values: Sequence[str | None]) -> str:
    return ", ".join(visible(value) for value in values)

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

import pandas as pd
import sqlalchemy as sa

from datamig_nb import profile_sql
from datamig_nb.database import STATEMENT_TIMEOUT_SECONDS, Database, Table, read_table, run
from datamig_nb.display import Shown, counted
from datamig_nb.errors import MigrationError, PermissionDeniedError, UnknownColumnError
from datamig_nb.names import TableName, quote
from datamig_nb.profile_sql import QUANTILES, VALUE_CHARACTERS, Measured

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
#: Severities of alerts: breaks a migration; wants a decision; good to know.
SEVERITIES = ("danger", "warning", "note")

_COLUMN = re.compile(r'(?P<table>.+)\.(?:"(?P<quoted>(?:[^"]|"")+)"|(?P<plain>[^".]+))')


@dataclass(frozen=True, kw_only=True)
class ValueCount:
    """A value as the server writes it, or a mask, with its number of rows."""

    #: Cut after 60 characters, with … for the rest.
    value: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class ColumnProfile:
    """What is in one column; what does not apply to its type is None, 0 or ()."""

    name: str
    #: As the catalog has it: ``character varying(50)``.
    type: str
    rows: int
    nulls: int = 0
    #: Values that are ``''`` or nothing but white space, Unicode's included.
    blanks: int = 0
    #: Values with white space before or behind, blank ones not counted.
    padded: int = 0
    #: Values with a character beyond ASCII; this and the next two only if the database is UTF-8.
    non_ascii: int = 0
    #: Values with a space beyond ASCII, such as a no-break space, visible or not.
    wide_spaces: int = 0
    #: Values that are not in Unicode's NFC, such as é as two characters, e and an accent.
    decomposed: int = 0
    #: Different values, NULL not counted; True if not estimated.
    distinct: int
    distinct_is_exact: bool
    #: The most frequent values with their exact rows; values of single rows only if all fit.
    top: tuple[ValueCount, ...] = ()
    #: Least and greatest value, exact; texts in the order of their code points.
    minimum: str | None = None
    maximum: str | None = None
    #: Values that 5, 25, 50, 75 and 95 % of the rows do not exceed, of numbers and times.
    quantiles: tuple[str, ...] = ()
    #: Characters of the texts.
    min_length: int | None = None
    mean_length: float | None = None
    max_length: int | None = None
    #: Longest text that fits the type, and how many come within a tenth of it.
    length_limit: int | None = None
    near_limit: int = 0
    #: Texts with letters as A and a, digits as 9, + for the rest of a run: ``Aa+ 9+``.
    masks: tuple[ValueCount, ...] = ()
    #: Different masks, and rows in those that fewer than 1 % have.
    distinct_masks: int = 0
    rare_mask_rows: int = 0
    #: Texts that differ only by case or white space, the most frequent first, in each group.
    spellings: tuple[tuple[ValueCount, ...], ...] = ()
    #: All such groups, and rows that are not spelled as most of their group; estimated where there
    #: is a sample, see ``sample_rows``.
    spelling_groups: int = 0
    spelling_rows: int = 0
    #: What at least 95 % of the texts could be converted to: ``number``, ``date``, ``boolean``.
    looks_like: str | None = None
    #: Rows of the sample that quantiles, masks and ``looks_like`` come from; None: from all rows.
    sample_rows: int | None = None

    @property
    def filled(self) -> int:
        """Rows that are not NULL."""
        return self.rows - self.nulls

    @property
    def repeated(self) -> int:
        """Rows with a value that an earlier row has; estimated where ``distinct`` is."""
        return self.filled - self.distinct

    @property
    def null_share(self) -> float:
        """NULLs per row, between 0 and 1."""
        return self.nulls / max(self.rows, 1)

    @property
    def blank_share(self) -> float:
        """Blank values per row, between 0 and 1."""
        return self.blanks / max(self.rows, 1)

    @property
    def padded_share(self) -> float:
        """Padded values per row, between 0 and 1."""
        return self.padded / max(self.rows, 1)

    @property
    def distinct_share(self) -> float:
        """Different values per row that is not NULL, between 0 and 1."""
        return self.distinct / max(self.filled, 1)

    @property
    def is_unique(self) -> bool:
        """Whether no value comes twice, so far as is known: see ``distinct_is_exact``."""
        return self.repeated == 0 and self.distinct > 0


@dataclass(frozen=True, kw_only=True)
class CandidateKey:
    """Columns without NULLs whose values together come once only."""

    columns: tuple[str, ...]
    #: Whether a unique index says so already.
    indexed: bool
    #: False where only a part of the values was looked at.
    proven: bool


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A column that refers to another table without a foreign key that holds it to that."""

    column: str
    parent: str
    parent_column: str
    #: ``given`` by the caller, ``not valid`` (a foreign key that was never validated), or
    #: ``suggested`` by the names.
    origin: str
    #: Rows whose value is not in the parent; NULLs are none.
    orphan_rows: int
    #: Different values among them, and the most frequent ones.
    missing_values: int
    first_missing: tuple[ValueCount, ...]


@dataclass(frozen=True, kw_only=True)
class Alert:
    """Something to decide before a migration."""

    #: One of SEVERITIES.
    severity: str
    #: None where it concerns the whole table.
    column: str | None
    #: Rows concerned; None where it is not about rows.
    rows: int | None
    #: What was found, in words, with the count.
    finding: str
    #: What to do about it.
    advice: str


@dataclass(frozen=True, kw_only=True)
class TableProfile(Shown):
    """What is in a table; ``profile["column"]`` is one column of it."""

    #: Name with its schema if one was given.
    table: str
    rows: int
    #: Table, indexes, out-of-line values and partitions; varies with the layout of the pages.
    total_bytes: int
    #: The worst first, then in the order of the columns.
    alerts: tuple[Alert, ...]
    columns: tuple[ColumnProfile, ...]
    candidate_keys: tuple[CandidateKey, ...]
    references: tuple[Reference, ...]

    def column(self, name: str) -> ColumnProfile:
        """The column of that name.

        Raises
        ------
        UnknownColumnError
            If the table has none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise UnknownColumnError(self.table, name, (column.name for column in self.columns))

    def __getitem__(self, name: str) -> ColumnProfile:
        return self.column(name)

    @property
    def is_exact(self) -> bool:
        """Whether nothing was estimated or sampled."""
        return all(c.distinct_is_exact and c.sample_rows is None for c in self.columns)

    @property
    def summary(self) -> str:
        """The profile in one line of words."""
        severities = [alert.severity for alert in self.alerts]
        alerts = [counted(severities.count(word), word) for word in dict.fromkeys(severities)]
        return (
            f"{counted(self.rows, 'row')}, {counted(len(self.columns), 'column')},"
            f" {'every figure exact' if self.is_exact else 'some figures estimated'};"
            f" {', '.join(alerts) or 'no alerts'}"
        )

    @property
    def frame(self) -> pd.DataFrame:
        """One row a column, with the fields of :class:`ColumnProfile`."""
        names = [field.name for field in fields(ColumnProfile)]
        return pd.DataFrame([vars(column) for column in self.columns], columns=names)

    def __repr__(self) -> str:
        lines = [f"TableProfile of {self.table}: {self.summary}"]
        for alert in self.alerts:
            subject = "" if alert.column is None else f"{alert.column}: "
            lines.append(f"  {alert.severity:<7}  {subject}{alert.finding}; {alert.advice}")
        for column in self.columns:
            lines += [f"{column.name}  {column.type}", *(f"    {line}" for line in _words(column))]
        for key in self.candidate_keys:
            proof = "a unique index says so" if key.indexed else "no unique index yet"
            sure = proof if key.proven else "in the part looked at; not proven"
            lines.append(f"candidate key: {', '.join(key.columns)} ({sure})")
        for reference in self.references:
            first = [f", most often {value.value!r}" for value in reference.first_missing[:1]]
            lines.append(
                f"{reference.column} refers to {reference.parent}.{reference.parent_column}"
                f" ({reference.origin}): {counted(reference.orphan_rows, 'orphan')}{''.join(first)}"
            )
        return "\n".join(lines)


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
        run(connection, profile_sql.settle())
        facts = connection.execute(sa.text(profile_sql.TABLE), {"name": name.sql}).one()
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
    alerts = [*_table_alerts(described, facts, keys)]
    for column in columns:
        alerts += _column_alerts(column, [link for link in links if link.column == column.name])
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
    found = connection.execute(sa.text(profile_sql.COLUMNS), {"name": table.name.sql}).all()
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
        (profile_sql.UNCHECKED_KEYS, "not valid"),
        (profile_sql.LIKELY_PARENTS, "suggested"),
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


# ---------------------------------------------------------------- alerts

# FROM user and the like do not fail: each of these is a function that is called without ().
_VALUE_WORDS = frozenset(
    "current_catalog current_date current_role current_schema current_time current_timestamp"
    " current_user localtime localtimestamp session_user system_user user".split()
)


def _table_alerts(table: Table, facts: Any, keys: Sequence[CandidateKey]) -> Iterator[Alert]:
    name, found = table.name.name, list[tuple[str, str, str]]()
    if name in _VALUE_WORDS:
        what = f"{name} is a reserved word: SELECT count(*) FROM {name} counts something else"
        found.append(("danger", what, f"write {table.name.sql}, always with the quotes"))
    elif quote(name) != name and re.fullmatch("[a-z_]+", name):
        what = f"{name} is a reserved word: without quotes it is a syntax error"
        found.append(("warning", what, f"write {table.name.sql}"))
    if not table.key and facts.relkind in "rp":
        what = "there is no primary key and no unique index over NOT NULL columns"
        proven = [", ".join(map(quote, key.columns)) for key in keys if key.proven]
        how = f"make ({proven[0]}) the key" if proven else "add one"
        found.append(("danger", what, f"{how}, so that batches can resume"))
    if facts.rows_hidden:
        what = "row security hides rows from this user"
        found.append(("danger", what, "profile as the owner, or as a role with BYPASSRLS"))
    for severity, what, advice in found:
        yield Alert(severity=severity, column=None, rows=None, finding=what, advice=advice)


def _column_alerts(column: ColumnProfile, links: Sequence[Reference]) -> Iterator[Alert]:
    """What is odd about one column; a rule without rows is silent."""
    filled, about = column.filled, "" if column.distinct_is_exact else "about "

    def alert(severity: str, rows: int, finding: str, advice: str) -> Iterator[Alert]:
        if rows:
            yield Alert(
                severity=severity,
                column=column.name,
                rows=rows,
                finding=finding.replace("{}", counted(rows, "row"), 1),  # a mask may hold braces
                advice=advice,
            )

    for link in links:
        severity = "warning" if link.origin == "suggested" else "danger"
        finding = f"{{}} with a value that is not in {link.parent}.{link.parent_column}"
        yield from alert(severity, link.orphan_rows, finding, "decide on them before a foreign key")
    if filled == 0:
        yield from alert("warning", column.nulls, "{}, all NULL", "see whether it can go")
    elif 20 * column.nulls <= column.rows:
        finding, advice = "{} NULL, all others filled", "fill them before NOT NULL"
        yield from alert("note", column.nulls, finding, advice)
    if column.distinct_is_exact and column.distinct == 1 and filled == column.rows > 1:
        yield from alert("note", filled, "{}, all with one value", "see whether it can go")
    if 20 * column.repeated <= filled and _may_identify(column):
        finding, advice = f"unique but for {about}{{}}", "decide which to keep before a unique key"
        yield from alert("warning", column.repeated, finding, advice)
    yield from alert("warning", column.blanks, "{} blank", "decide whether blank means NULL")
    finding = "{} with white space before or behind"
    advice = "trim them; btrim(text) takes spaces only, no tabs"
    yield from alert("warning", column.padded, finding, advice)
    finding = "{} with a space beyond ASCII"
    advice = "replace them; neither btrim() nor split_part(…, ' ', …) sees them"
    yield from alert("warning", column.wide_spaces, finding, advice)
    finding = "{} with accents as characters of their own"
    advice = "normalize(text) makes them equal to those that look the same"
    yield from alert("warning", column.decomposed, finding, advice)
    about = "" if column.sample_rows is None else "about "
    finding = f"{about}{{}} spelled otherwise than most, by case or space only"
    finding += f", in {about}{counted(column.spelling_groups, 'group')}"
    yield from alert("warning", column.spelling_rows, finding, "map them to one spelling")
    if column.min_length != column.max_length:
        full = column.max_length == column.length_limit
        finding = f"{{}} within a tenth of the {column.length_limit} characters that fit"
        advice = "see whether values were cut" if full else "see that new values will fit"
        yield from alert("warning" if full else "note", column.near_limit, finding, advice)
    if column.looks_like:
        finding, advice = f"a {column.looks_like} kept as text: {{}}", "consider that type"
        yield from alert("note", filled, finding, advice)
    if column.masks and 2 * column.masks[0].rows >= (column.sample_rows or filled):
        finding = f"{{}} in shapes of under 1 % each (most are {column.masks[0].value!r})"
        yield from alert("note", column.rare_mask_rows, finding, "see that the transform fits them")


def _may_identify(column: ColumnProfile) -> bool:
    """Whether the type is one that keys have; nobody minds two equal moments."""
    return column.min_length is not None or column.type in ("smallint", "integer", "bigint", "uuid")


# ---------------------------------------------------------------- words


def _words(column: ColumnProfile) -> Iterator[str]:
    """A column in lines of words."""
    about = "" if column.distinct_is_exact else "about "
    sampled = "" if column.sample_rows is None else f" (sample of {column.sample_rows:,})"
    counts = {
        "NULL": column.nulls,
        "blank": column.blanks,
        "padded": column.padded,
        "not ASCII": column.non_ascii,
        "with wide spaces": column.wide_spaces,
        "not NFC": column.decomposed,
    }
    found = [f"{rows:,} {what}" for what, rows in counts.items() if rows]
    yield ", ".join([f"{about}{column.distinct:,} distinct", *found])
    if column.minimum is not None and column.maximum is not None:
        yield f"from {_shown(column, column.minimum)} to {_shown(column, column.maximum)}"
    if column.quantiles:
        yield f"{'/'.join(map(str, QUANTILES))} %: {', '.join(column.quantiles)}{sampled}"
    if column.mean_length is not None:
        lengths = f"{column.min_length} to {column.max_length} characters"
        yield f"{lengths}, {column.mean_length:.1f} on average"
    if column.top:
        yield f"top: {_listed(column, column.top)}"
    if column.masks:
        more = f", … {column.distinct_masks:,} in all" if column.distinct_masks > 5 else ""
        yield f"masks: {_listed(column, column.masks)}{more}{sampled}"
    if column.spellings:
        about = "about " if sampled else ""
        groups = "; ".join(_listed(column, group) for group in column.spellings[:3])
        more = f"; … {about}{column.spelling_groups:,} in all" if column.spelling_groups > 3 else ""
        yield f"spellings: {groups}{more}"


def _listed(column: ColumnProfile, counts: Sequence[ValueCount]) -> str:
    return ", ".join(f"{_shown(column, count.value)} {count.rows:,}" for count in counts[:5])


def _shown(column: ColumnProfile, value: str) -> str:
    """The value, a text in quotes, with escapes for what cannot be printed."""
    if column.min_length is not None:
        return repr(value)
    return value if value.isprintable() else repr(value)[1:-1]

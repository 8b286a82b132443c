"""What a profile gives: the figures of a table and of its columns, and what to decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import pandas as pd

from datamig_nb.display import Shown, counted
from datamig_nb.errors import UnknownColumnError
from datamig_nb.profile_sql import QUANTILES

#: Severities of alerts: breaks a migration; wants a decision; good to know.
SEVERITIES = ("danger", "warning", "note")


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

"""Rows that a revision left as they are, and noted: set aside, or not overwritten."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import sqlalchemy as sa

from datamig_nb.database import Database, is_there
from datamig_nb.display import Shown, counted

#: How many rows are read unless told otherwise.
ROWS_READ = 1_000

#: How many of them a repr shows.
_ROWS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class SetAside(Shown):
    """Rows that a revision left as they are, each with the reason."""

    revision: str
    #: What befell them: ``in quarantine`` or ``not overwritten``.
    what: str
    #: How many there are.
    count: int
    #: What is known of each: table and key first.
    columns: tuple[str, ...]
    #: The first of them, by table and key, as text.
    rows: tuple[tuple[str | None, ...], ...]

    @property
    def frame(self) -> pd.DataFrame:
        """The first of them, with ``columns`` as columns."""
        return pd.DataFrame(self.rows, columns=list(self.columns))

    def __repr__(self) -> str:
        lines = [f"{counted(self.count, 'row')} of revision {self.revision} {self.what}"]
        for relation, key, *values in self.rows[:_ROWS_SHOWN]:
            said = zip(self.columns[2:], values, strict=True)
            lines.append(f"  {relation} {key}: {', '.join(f'{name} {v}' for name, v in said)}")
        if self.count > len(self.rows[:_ROWS_SHOWN]):
            lines.append(f"  and {self.count - len(self.rows[:_ROWS_SHOWN]):,} more")
        return "\n".join(lines)


def quarantined(db: Database, revision: str, *, limit: int = ROWS_READ) -> SetAside:
    """The rows that a revision set aside instead of stopping; read without writing.

    Parameters
    ----------
    limit
        How many rows are read; all are counted.

    Returns
    -------
    SetAside
        Columns ``relation``, ``key``, ``step``, ``sqlstate``, ``message``, ``noted_at``.
    """
    columns = ("relation", "key", "step", "sqlstate", "message", "noted_at")
    return _read(db, "quarantine", "in quarantine", revision, columns, limit)


def conflicts(db: Database, revision: str, *, limit: int = ROWS_READ) -> SetAside:
    """The rows that a downgrade did not overwrite, for somebody changed them after the upgrade.

    Parameters
    ----------
    limit
        How many rows are read; all are counted.

    Returns
    -------
    SetAside
        Columns ``relation``, ``key``, then the values ``before`` the upgrade, ``after`` it and
        ``found`` by the downgrade, as JSON, and ``noted_at``.
    """
    columns = ("relation", "key", "before", "after", "found", "noted_at")
    return _read(db, "conflict", "not overwritten", revision, columns, limit)


def _read(
    db: Database, table: str, what: str, revision: str, columns: tuple[str, ...], limit: int
) -> SetAside:
    chosen = {"revision": revision, "limit": limit}
    listed = ", ".join(f"{column}::text" for column in columns)
    count, rows = 0, ()
    with db.read_only(f"reading datamig.{table}") as connection:
        if is_there(connection, f"datamig.{table}"):
            all_rows = f"FROM datamig.{table} WHERE revision = :revision"
            count = connection.execute(sa.text(f"SELECT count(*) {all_rows}"), chosen).scalar_one()
            first = f"SELECT {listed} {all_rows} ORDER BY {', '.join(columns)} LIMIT :limit"
            rows = tuple(tuple(row) for row in connection.execute(sa.text(first), chosen))
    return SetAside(revision=revision, what=what, count=count, columns=columns, rows=rows)

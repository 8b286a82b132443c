"""Every error a user can meet, one class for each decision a caller can make.

::

    DatamigError
    ├── DatabaseError            the server, the connection, the permission
    │   ├── ConnectionFailedError
    │   ├── ServerStartError
    │   ├── PermissionDeniedError
    │   └── QueryError
    ├── CatalogError             what the database does not have
    │   ├── UnknownTableError
    │   ├── UnknownColumnError
    │   └── MissingKeyError
    ├── MigrationError           what the description of a migration gets wrong
    │   └── ExpressionError
    ├── RunError                 there is no such run, or it cannot be steered so
    ├── RehearsalError           the rehearsal itself could not be carried out
    ├── ExportRefusedError       the revision may not go into the project
    ├── NotVettedError           the file is not what was vetted
    ├── AlembicProjectError      the project's Alembic settings do not work
    └── MissingExtraError        an optional dependency is not installed

A message is one sentence: what was found, then what to do next.  A password is never part of it.
"""

from __future__ import annotations

from collections.abc import Iterable


class DatamigError(Exception):
    """Base of all errors raised on purpose by datamig_nb."""

    def __init__(self, what: str, advice: str) -> None:
        self.what, self.advice = what, advice
        super().__init__(f"{what}; {advice}")


# ---------------------------------------------------------------- the database


class DatabaseError(DatamigError):
    """The database could not be reached or did not do what was asked."""


class ConnectionFailedError(DatabaseError):
    """No connection: wrong address, name, password, or nothing is listening."""

    def __init__(self, target: str, reason: str, advice: str) -> None:
        self.target, self.reason = target, reason
        super().__init__(f"cannot connect to {target}: {reason}", advice)


class ServerStartError(DatabaseError):
    """The embedded server could not be found, made or started."""


class PermissionDeniedError(DatabaseError):
    """The role lacks a privilege; the message names the one to grant."""


class QueryError(DatabaseError):
    """A statement failed for a reason that none of the other classes names."""

    def __init__(self, what: str, sqlstate: str, reason: str, advice: str) -> None:
        self.sqlstate, self.reason = sqlstate, reason
        super().__init__(f"{what} failed: {reason} (SQLSTATE {sqlstate})", advice)


# ---------------------------------------------------------------- the catalog


class CatalogError(DatamigError):
    """Something that was named is not in the database."""


class UnknownTableError(CatalogError):
    """A table was named that is not there, or not visible."""

    def __init__(self, table: str, near: Iterable[str]) -> None:
        self.table, self.near = table, tuple(near)
        choice = f"did you mean {_listed(self.near)}?" if self.near else "check schema and name"
        super().__init__(f"there is no table {table!r}", choice)


class UnknownColumnError(CatalogError):
    """A column was named that is not in its table."""

    def __init__(self, table: str, column: str, known: Iterable[str]) -> None:
        self.table, self.column, self.known = table, column, tuple(known)
        super().__init__(
            f"table {table!r} has no column {column!r}", f"use one of {_listed(self.known)}"
        )


class MissingKeyError(CatalogError):
    """A table without a usable key: batches could not be told apart."""

    def __init__(self, table: str) -> None:
        self.table = table
        super().__init__(
            f"table {table!r} has no primary key and no unique index over NOT NULL columns, so"
            " batches cannot resume",
            "add one, for example with CREATE UNIQUE INDEX CONCURRENTLY",
        )


# ---------------------------------------------------------------- the migration


class MigrationError(DatamigError):
    """The description of a migration contradicts itself or the database."""


class ExpressionError(MigrationError):
    """A SQL expression that PostgreSQL does not accept."""

    def __init__(self, expression: str, reason: str, advice: str) -> None:
        self.expression, self.reason = expression, reason
        super().__init__(f"the expression {expression!r} does not work: {reason}", advice)


# ---------------------------------------------------------------- runs


class RunError(DatamigError):
    """A run that is not there was named, or it cannot be paused, resumed or cancelled now."""


# ---------------------------------------------------------------- rehearsal and export


class RehearsalError(DatamigError):
    """The rehearsal could not be carried out; nothing was changed in the source."""


class ExportRefusedError(DatamigError):
    """The revision may not be exported: not rehearsed, changed since, or failed."""

    def __init__(self, why: str, advice: str) -> None:
        super().__init__(f"not exported: {why}", advice)


class NotVettedError(DatamigError):
    """A revision file carries no evidence, or was edited after it was vetted."""


class AlembicProjectError(DatamigError):
    """The Alembic project cannot take the revision as it stands."""


class MissingExtraError(DatamigError):
    """An optional dependency is needed and not installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(
            f"{what} needs {package}, which is not installed",
            f"run: python -m pip install 'datamig-nb[{extra}]'",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "(none)"

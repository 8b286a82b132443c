"""Where a rehearsal runs: a clone, a sample, or a staging database that somebody agrees to."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import sqlalchemy as sa

from datamig_nb.alembic_runs import identity
from datamig_nb.clone import Clone, cloned
from datamig_nb.database import Database, connect
from datamig_nb.errors import RehearsalError
from datamig_nb.render import Revision
from datamig_nb.subset import sampled

Place = Literal["clone", "sample", "staging"]


def kind(on: str | sa.URL | Database) -> Place:
    """What is meant by ``on``.

    Raises
    ------
    RehearsalError
        If it is neither a word that is known nor a URL.
    """
    if on == "clone":
        return "clone"
    if on == "sample":
        return "sample"
    if isinstance(on, str) and "://" not in on:
        raise RehearsalError(
            f"a rehearsal cannot run on {on!r}", 'choose "clone", "sample", or the URL of a staging'
        )
    return "staging"


def place(
    source: Database,
    revision: Revision,
    on: str | sa.URL | Database,
    *,
    fraction: float | None,
    rows: int | None,
    confirm: str | None,
) -> AbstractContextManager[Clone]:
    """The database that the rehearsal may write; clones and samples are dropped at the end."""
    if kind(on) != "sample" and (fraction, rows) != (None, None):
        raise RehearsalError("fraction= and rows= are for a sample", 'say on="sample", too')
    if on == "sample":
        return sampled(source, revision.id, revision.story, fraction=fraction, rows=rows)
    if on == "clone":
        return cloned(source, revision.id)
    return _staging(source, revision, on, confirm)


@contextmanager
def _staging(
    source: Database, revision: Revision, on: str | sa.URL | Database, confirm: str | None
) -> Generator[Clone]:
    database = on if isinstance(on, Database) else connect(on)
    name = str(database.url.database)
    if identity(database) == identity(source):
        raise RehearsalError(
            f"{name!r} is the source itself, which no rehearsal writes", "give another database"
        )
    if revision.alembic is None:
        raise RehearsalError(
            "on a staging database the project's own Alembic runs, and no project is known",
            "render the revision with alembic=",
        )
    if confirm != f"write to {name}":
        raise RehearsalError(
            f"the rehearsal would write to {name!r} and leave the revision there",
            f"if that is meant, say confirm={f'write to {name}'!r}",
        )
    yield Clone(
        url=database.url, version=database.version, made=f"{name} itself, left as it was upgraded"
    )

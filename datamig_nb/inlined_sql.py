"""Functions copied into revisions that send SQL, and the limits that all of them keep."""

from __future__ import annotations

from typing import Any

from alembic import op

revision = "inlined"

LOCK_TIMEOUT = "2s"  # how long a statement may queue for a lock, and others behind it
ATTEMPTS = 10  # at one step or batch, before giving up
FIRST_BATCH_ROWS = 2_000
LEAST_BATCH_ROWS = 100
MOST_BATCH_ROWS = 50_000
ALONE_SECONDS = 0.5  # what a batch should take while nobody else writes to the table
SHARED_SECONDS = 0.02  # and what while somebody does, who would have to wait for it
STRETCH_SECONDS = 0.2  # of batches, before the client looks again whether it is still wanted
PASSES = 6  # of a woven walk over each window of pages
WINDOW_PAGES = 3_000
WOVEN_FROM_PAGES = 1_000  # of a table; a smaller one is walked by its key


def execute(statement: str, bind: Any = None) -> Any:
    """Send a statement as it stands: no bind parameters, so ':' and '%' are themselves."""
    context = op.get_context()
    if context.as_sql:
        return context.impl.static_output(statement.strip() + ";")
    options = {"no_parameters": True}
    return (bind or op.get_bind()).exec_driver_sql(statement, execution_options=options)


def quoted(text: object) -> str:
    """The text as a SQL literal."""
    return "'" + str(text).replace("'", "''") + "'"

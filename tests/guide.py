"""The migration guide's own nine revisions, and its tables as the guide expects them."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg

from datamig_nb.database import Database
from datamig_nb.samples import load_guide
from tests.scratch import query

GUIDE = Path(__file__).parents[2] / "shared" / "seed" / "data-migration-guide.md"

#: What lets the guide's code be read by Python and PostgreSQL at all; nothing else is touched.
REPAIRS = (
    # the table, where PostgreSQL takes the word for the role
    (r"\b(UPDATE|FROM|JOIN|TABLE) user\b", r'\1 "user"'),
    (r'"(SELECT COUNT\(\*\) FROM "user")"', r"'\1'"),
    (r"\buser\.(id|migration_version)", r'"user".\1'),
)

#: Its tables, those that it names without making them included.
TABLES = """
ALTER TABLE guide."user" SET SCHEMA public;
ALTER TABLE guide.task SET SCHEMA public;
ALTER TABLE guide.category SET SCHEMA public;
ALTER TABLE guide.large_table SET SCHEMA public;
DROP SCHEMA guide;
CREATE TABLE migration_log (
    batch_id text PRIMARY KEY, processed_count integer, total_count integer
);
"""


def revisions() -> dict[str, str]:
    """The nine files as they stand in the guide, by revision id."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    found = {re.search(r"^revision = '(\w+)'", block, re.MULTILINE): block for block in blocks}
    return {match[1]: block for match, block in found.items() if match}


def imported(text: str) -> str:
    """The file with the import that it forgot."""
    forgotten = r"from alembic import op\n(?!import sqlalchemy)"
    return re.sub(forgotten, "from alembic import op\nimport sqlalchemy as sa\n", text)


def repaired(text: str) -> str:
    """A file of the guide that Python and PostgreSQL can read."""
    text = imported(text)
    for pattern, replacement in REPAIRS:
        text = re.sub(pattern, replacement, text)
    return text


def make_tables(database: Database, rows: int) -> None:
    """The guide's tables with their messes, where the guide's SQL finds them."""
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        load_guide(connection, rows)
    query(database, TABLES)

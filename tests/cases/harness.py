"""Real migrations as cases: where they are found, how they are loaded and judged.

``../shared/cases/open`` holds each case's ``before.sql``, its oracle ``expected.sql``, and
``reference.sql``, one plain solution.  A module ``case_…`` here holds the same as a Migration.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import datamig_nb as dm
from datamig_nb.database import Database
from datamig_nb.server_setup import binaries
from tests.scratch import query

HERE = Path(__file__).resolve().parent
#: Where the cases are described, beside the repository.
DESCRIBED = HERE.parents[1].parent / "shared" / "cases" / "open"

# Every table of the user's as one hash of its rows, and all that the catalog says of it; the order
# of columns is left out, since a column that goes and comes is the last one afterwards.
_USERS = """
    SELECT c.oid, c.oid::regclass::text AS name FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE relkind = 'r' AND nspname !~ '^(pg_|information_schema|datamig|oracle_before|fuse)'
       AND relname <> 'alembic_version'"""
_SCHEMA = f"""
WITH users AS ({_USERS})
SELECT format('%s.%s %s %s %s', name, attname, format_type(atttypid, atttypmod),
              CASE WHEN attnotnull THEN 'NOT NULL' END, pg_get_expr(adbin, adrelid))
  FROM users JOIN pg_attribute ON attrelid = oid AND attnum > 0 AND NOT attisdropped
  LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
 UNION ALL
SELECT format('%s %s %s', name, conname, pg_get_constraintdef(c.oid))
  FROM users JOIN pg_constraint c ON conrelid = users.oid AND contype <> 'n'
 UNION ALL
SELECT pg_get_indexdef(indexrelid) FROM users JOIN pg_index ON indrelid = oid
 UNION ALL
SELECT format('%s %s', enumtypid::regtype, string_agg(enumlabel, ',' ORDER BY enumsortorder))
  FROM pg_enum GROUP BY enumtypid
 UNION ALL
SELECT pg_get_triggerdef(t.oid) FROM users JOIN pg_trigger t ON tgrelid = users.oid
 WHERE NOT tgisinternal
 ORDER BY 1"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One migration, in our words and in those of its description."""

    #: Name of its module, without package: ``case_01_null_fill_not_null``.
    module: str

    @property
    def description(self) -> Path:
        """The directory that describes it."""
        return DESCRIBED / self.module.removeprefix("case_").replace("_", "-")

    @property
    def migration(self) -> dm.Migration:
        """What a user writes."""
        return importlib.import_module(f"tests.cases.{self.module}").migration

    @property
    def source(self) -> Path:
        """The file in which it is written."""
        return HERE / f"{self.module}.py"

    def load(self, database: Database, rows: int) -> None:
        """Make the tables as they were before, the main one with about so many rows."""
        url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
        words = [binaries() / "psql", "-X", "-q", "-v", f"scale={rows}", "-d", url]
        subprocess.run([*words, "-f", self.description / "before.sql"], check=True)

    def failures(self, database: Database) -> list[str]:
        """What the oracle finds wrong, at most ten of it; nothing where all is right."""
        oracle = (self.description / "expected.sql").read_text(encoding="utf-8")
        return [" | ".join(map(str, row)) for row in query(database, oracle)][:10]

    @property
    def lines(self) -> tuple[int, int]:
        """Lines and characters that a user writes: no imports, comments, blank lines."""
        text = self.source.read_text(encoding="utf-8")
        tree = ast.parse(text)
        aside = {
            number
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom) or node is tree.body[0]
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        return _counted(line for n, line in enumerate(text.splitlines(), 1) if n not in aside)

    @property
    def reference_lines(self) -> tuple[int, int]:
        """The same of the reference."""
        text = (self.description / "reference.sql").read_text(encoding="utf-8")
        return _counted(text.splitlines())


CASES = tuple(Case(module=path.stem) for path in sorted(HERE.glob("case_*.py")))


def picture(database: Database) -> dict[str, object]:
    """Rows and schema of the user's tables."""
    rows = {
        table: query(
            database,
            # a clone does not have the time zone that ALTER DATABASE gave
            "SET TimeZone = 'UTC';"
            "SELECT count(*), md5(string_agg(text, ';' ORDER BY text COLLATE \"C\"))"
            f" FROM (SELECT to_jsonb(t)::text AS text FROM {table} AS t) AS rows",
        )
        for _, table in query(database, _USERS)
    }
    return {"schema": query(database, _SCHEMA), **rows}


def table_of_lines() -> str:
    """The table at the end of ``README.md``."""
    head = (
        "| case | lines | characters | lines of the reference | characters |\n|---|--:|--:|--:|--:|"
    )
    rows = ((case.description.name, *case.lines, *case.reference_lines) for case in CASES)
    return "".join(
        f"{line}\n" for line in (head, *(f"| {' | '.join(map(str, r))} |" for r in rows))
    )


def _counted(lines: Iterable[str]) -> tuple[int, int]:
    written = [line.strip() for line in lines if not re.match(r"\s*(#|--|$)", line)]
    return len(written), sum(map(len, written))

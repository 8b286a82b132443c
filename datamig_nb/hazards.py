"""What may hurt in production: read in the file, in its script and in what it sent."""

from __future__ import annotations

import difflib
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from datamig_nb.alembic_runs import AlembicRun, Sent
from datamig_nb.database import Database
from datamig_nb.display import counted
from datamig_nb.errors import MigrationError
from datamig_nb.lint import is_unbatched, lint, uncommented, written_table
from datamig_nb.names import TableName
from datamig_nb.render import Revision

#: From so many rows on, one statement for all of them is no matter of taste any more.
MANY_ROWS = 10_000
#: From so many turns on, a loop that sends a statement each time is worth a word.
_MANY_TURNS = 50

#: Rows of each table before the upgrade.
Sizes = Mapping[TableName, int]


@dataclass(frozen=True, kw_only=True)
class Hazard:
    """Something in the revision that may hurt in production."""

    #: Name of the rule that found it; those of squawk begin with ``squawk: ``.
    rule: str
    #: Whether the revision is not ready because of it.
    blocking: bool
    #: What was found and what to do, in words.
    what: str
    #: How many rows it concerns; 0 where it is not about rows.
    rows: int = 0


# ---------------------------------------------------------------- the file

# What is wrong whatever the size of the tables.
_WRONG = {"reserved name", "offset", "empty downgrade", "client default"}


def reserved_names(db: Database, sizes: Sizes) -> set[str]:
    """Names of tables that SQL takes for something else where they are not quoted."""
    with db.read_only("looking up the words of SQL") as connection:
        words = connection.execute(sa.text(_RESERVED)).scalars().all()
    return {name.name for name in sizes} & set(words)


_RESERVED = "SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')"


def hazards_of_file(
    revision: Revision, sizes: Sizes, reserved: Iterable[str]
) -> tuple[Hazard, ...]:
    """What the file's text says, and the files beside it."""
    try:
        findings = lint(revision.text, reserved)
    except SyntaxError:
        return ()  # Alembic will say so
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for finding in findings:
        places[finding.rule, finding.what].append(finding.line)
    found: list[Hazard] = []
    for (rule, what), lines in places.items():
        named = list(dict.fromkeys(lines))
        at = f"line{'s' if len(named) > 1 else ''} {', '.join(map(str, named))}"
        table = re.search(r"rows of ([\w.\"]+):", what)
        rows = _rows(table[1], sizes) if table else 0
        if rule == "reserved name":
            rows = _rows(what.split(" ", 1)[0], sizes)
        blocking = rule in _WRONG or (rule == "unbatched" and rows >= MANY_ROWS)
        found.append(Hazard(rule=rule, blocking=blocking, what=f"{at}: {what}", rows=rows))
    return (*found, *_lost_parent(revision))


def _lost_parent(revision: Revision) -> Iterator[Hazard]:
    """A revision that follows one that is not among the files beside it."""
    if revision.path is None or revision.down_revision is None:
        return
    known = {id for file in revision.path.parent.glob("*.py") if (id := _id(file)) is not None}
    if len(known) > 1 and revision.down_revision not in known:
        near = difflib.get_close_matches(revision.down_revision, sorted(known), n=1)
        yield Hazard(
            rule="lost parent",
            blocking=True,
            what=f"down_revision {revision.down_revision!r} is no revision of the files beside it:"
            " every command of Alembic fails there"
            + (f"; {near[0]!r} may be meant" if near else ""),
        )


def _id(file: Path) -> str | None:
    found = re.search(
        r"^revision(?:\s*:[^=\n]+)?\s*=\s*['\"]([^'\"]+)",
        file.read_text(encoding="utf-8", errors="replace"),
        flags=re.MULTILINE,
    )
    return found and found[1]


def _rows(name: str, sizes: Sizes) -> int:
    """Rows of the table that is named so, in whichever schema."""
    try:
        wanted = TableName.parse(name)
    except MigrationError:
        return 0
    return sum(
        rows
        for table, rows in sizes.items()
        if table.name == wanted.name and wanted.schema in (None, table.schema)
    )


# ---------------------------------------------------------------- its script


def hazards_of_script(script: str, reason: str, major: int) -> tuple[Hazard, ...]:
    """What squawk says of the script; or why there is none."""
    if reason:
        what = f"'alembic upgrade --sql' gives no script: {reason}"
        return (Hazard(rule="no script", blocking=False, what=what),)
    # psql's own commands are not SQL.
    script = re.sub(r"^\\.*|( \\gset)$", r";", script, flags=re.MULTILINE)
    return squawk(script, major)


def squawk(script: str, major: int) -> tuple[Hazard, ...]:
    """What squawk, a linter of migrations, says of a script; that it was not asked, without it."""
    program = shutil.which("squawk", path=Path(sys.executable).parent) or shutil.which("squawk")
    if program is None:
        what = "squawk was not asked: it is not installed (pip install squawk-cli)"
        return (Hazard(rule="squawk", blocking=False, what=what),)
    result = subprocess.run(
        [program, f"--pg-version={major}", "--reporter=json"],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        notes = json.loads(result.stdout)
    except ValueError:
        said = (result.stderr or result.stdout).strip().splitlines() or ["nothing"]
        return (Hazard(rule="squawk", blocking=False, what=f"squawk failed: {said[-1]}"),)
    places: dict[str, list[dict[str, str]]] = defaultdict(list)
    for note in notes:
        places[str(note["rule_name"])].append(note)
    return tuple(
        Hazard(
            rule=f"squawk: {rule}",
            blocking=False,
            what=f"{of_rule[0]['message']}".rstrip(".")
            + (f"; at {len(of_rule)} places" if len(of_rule) > 1 else ""),
        )
        for rule, of_rule in sorted(places.items())
    )


# ---------------------------------------------------------------- what it sent

_STRONG = re.compile(
    r"(?:ALTER|DROP|TRUNCATE)\s+(?:TABLE\s+)?(?:IF\s+EXISTS\s+)?(?:ONLY\s+)?(?P<table>[\w.\"]+)",
    re.IGNORECASE,
)
_COPIED = re.compile(
    r"CREATE\s+(?:UNLOGGED\s+)?TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?(?P<table>[\w.\"]+)\s+AS\b",
    re.IGNORECASE,
)


def hazards_of_run(
    run: AlembicRun, sizes: Sizes, there: Callable[[str], bool]
) -> tuple[Hazard, ...]:
    """What the statements of a run say: their rows, how often they came, what they held meanwhile.

    Parameters
    ----------
    there
        Whether a table of that name is there now.
    """
    sent = [
        statement
        for statement in run.statements
        if "datamig." not in statement.text and "version_num" not in statement.text
    ]
    return (
        *_large(sent),
        *_row_by_row(sent),
        *_written_twice(sent, sizes),
        *_without_effect(sent),
        *_held_while_working(sent, sizes),
        *(_without_timeout(run.statements, sizes) if run.words[0] == "upgrade" else ()),
        *([] if run.passed else _undone(sent, there)),
    )


def _large(sent: Iterable[Sent]) -> Iterator[Hazard]:
    for statement in sent:
        table = written_table(statement.text)
        if table is not None and statement.most_rows >= MANY_ROWS:
            if is_unbatched(statement.text):
                continue  # found in the file
            yield Hazard(
                rule="unbatched",
                blocking=True,
                what=f"one statement wrote {statement.most_rows:,} rows of {table}: they stay"
                " locked until it commits; walk the table in batches that commit",
                rows=statement.most_rows,
            )


def _row_by_row(sent: Iterable[Sent]) -> Iterator[Hazard]:
    for statement in sent:
        table = written_table(statement.text)
        if table is not None and statement.times >= _MANY_TURNS:
            yield Hazard(
                rule="row by row",
                blocking=False,
                what=f"{table} was written by {statement.times:,} statements of one form, in one"
                f" transaction, for {statement.rows:,} rows",
                rows=statement.rows,
            )


def _written_twice(sent: Sequence[Sent], sizes: Sizes) -> Iterator[Hazard]:
    written: dict[str, int] = defaultdict(int)
    for statement in sent:
        if uncommented(statement.text)[:6].upper() == "UPDATE":
            written[written_table(statement.text) or ""] += statement.rows
    for table, rows in written.items():
        there = _rows(table, sizes)
        if rows > there > 0:
            yield Hazard(
                rule="written twice",
                blocking=False,
                what=f"{table} has {there:,} rows, but {rows:,} were updated: some more than once",
                rows=rows - there,
            )


def _without_effect(sent: Iterable[Sent]) -> Iterator[Hazard]:
    for statement in sent:
        table = written_table(statement.text)
        if table is not None and statement.rows == 0 and not statement.failed:
            yield Hazard(
                rule="without effect",
                blocking=False,
                what=f"no row of {table} met the condition of: {_short(statement.text)}"
                + (f" ({statement.times:,} times)" if statement.times > 1 else ""),
            )


def _held_while_working(sent: Iterable[Sent], sizes: Sizes) -> Iterator[Hazard]:
    """A table that was locked against everybody while rows were read or written."""
    transactions: dict[int, list[Sent]] = defaultdict(list)
    for statement in sent:
        transactions[statement.transaction].append(statement)
    for statements in transactions.values():
        ends = max(statement.last_seconds for statement in statements)
        seen: set[str] = set()
        for number, statement in enumerate(statements):
            strong = _STRONG.match(uncommented(statement.text))
            after = [s for s in statements[number + 1 :] if not _is_schema(s.text)]
            rows = sum(s.rows for s in after)
            if strong is None or not after or not _rows(strong["table"], sizes):
                continue
            table = strong["table"]
            if table in seen:
                continue
            seen.add(table)
            yield Hazard(
                rule="lock held",
                blocking=_rows(table, sizes) >= MANY_ROWS,
                what=f"ACCESS EXCLUSIVE on {table} was kept while {counted(rows, 'row')} were read"
                " and written in the same transaction, for"
                f" {max(ends - statement.first_seconds, 0):.2f} s: nobody can read it meanwhile;"
                " commit between schema and data",
                rows=rows,
            )


def _without_timeout(sent: Iterable[Sent], sizes: Sizes) -> Iterator[Hazard]:
    for statement in sent:
        if "lock_timeout" in statement.text.lower():
            return
    for statement in sent:
        strong = _STRONG.match(uncommented(statement.text))
        if strong and _rows(strong["table"], sizes):
            yield Hazard(
                rule="no lock_timeout",
                blocking=False,
                what=f"{_short(statement.text)} waits for its lock without a limit, and everybody"
                f" else behind it; SET lock_timeout first, and try again",
            )
            return


def _undone(sent: Iterable[Sent], there: Callable[[str], bool]) -> Iterator[Hazard]:
    for statement in sent:
        copied = _COPIED.match(uncommented(statement.text))
        if copied and not statement.failed and not there(copied["table"]):
            yield Hazard(
                rule="backup undone",
                blocking=True,
                what=f"the upgrade failed, and the copy {copied['table']}, made in the same"
                " transaction, is gone with it: nothing can be taken back from it; commit it first",
                rows=statement.rows,
            )


def _is_schema(statement: str) -> bool:
    first = uncommented(statement).split(None, 1)[0].upper()
    return first in {"ALTER", "CREATE", "DROP", "COMMENT", "SET", "SELECT"} and not re.match(
        r"\s*SELECT\b.*\bFROM\b", statement, re.IGNORECASE | re.DOTALL
    )


def _short(statement: str) -> str:
    line = " ".join(uncommented(statement).split())
    return line if len(line) <= 80 else f"{line[:79]}…"

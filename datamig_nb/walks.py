"""How each backfill is walked: what marks a row as done, and which way the batches go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from datamig_nb import ddl, statements, step_effects, targets
from datamig_nb.catalog import Catalog
from datamig_nb.checks import Check
from datamig_nb.compound import Swap
from datamig_nb.expressions import SURE_MARK
from datamig_nb.migration import Migration, Step
from datamig_nb.names import TableName, quote
from datamig_nb.steps import Backfill, BackUp, DeleteRows, InsertRows, KeepInStep, Walk
from datamig_nb.transforms import Transform

# Types that hash_record() can hash: by the hash, a woven walk chooses the rows of each pass.
_WHOLE = ("smallint", "integer", "bigint")
_HASHED = (
    *_WHOLE,
    "text",
    "uuid",
    "date",
    "numeric",
    "character varying",
    "timestamp",
    "character",
)


#: Steps that are carried out in batches.
WalkedStep: TypeAlias = Backfill | InsertRows | DeleteRows


@dataclass(frozen=True, kw_only=True)
class BackfillPlan:
    """What one backfill needs to know beside its expressions."""

    #: Condition of a row that is not done yet; None where only the cursor knows.
    guard: str | None
    #: The same for the look back at the end; None where there can be none.
    look_back: str | None
    #: What chooses the rows of each pass of a woven walk; None where the walk goes by key.
    woven: str | None


def is_volatile(step: Backfill | KeepInStep, catalog: Catalog) -> bool:
    """Whether an expression gives another value each time it is asked."""
    texts = step.texts if isinstance(step, Backfill) else step.assign.values()
    return any(statements.names_in(text) & catalog.volatile for text in texts)


def reads_what_it_sets(step: Backfill, catalog: Catalog) -> bool:
    """Whether a second time would change a row again.

    What ``where`` reads does not matter: a row that meets it no longer is left alone.
    """
    given = (_given_where_null(*pair) for pair in step.assign.items())
    texts = (*given, step.using or "", step.on or "")
    row = catalog.row(step.table) if step.using is None else ""
    return bool(statements.columns_read("\n".join(texts), step.assign, row))


def _given_where_null(column: str, text: str) -> str:
    """Of ``coalesce(column, rest)`` the rest: a value that is there stays, however often asked."""
    head = f"coalesce({quote(column)}, "
    rest, depth = text[len(head) : -1], 0
    for mark in re.findall(r"[()]", ddl.bare(rest)):
        depth += 1 if mark == "(" else -1
        if depth < 0:
            return text
    return rest if text.startswith(head) and text.endswith(")") and not depth else text


def later_walks(step: Backfill | DeleteRows, migration: Migration) -> list[WalkedStep]:
    """The later steps whose work would be taken for undone work of this one.

    They write what it reads or writes; once one of them has begun, it must not look back.
    """
    place = next(n for n, other in enumerate(migration.steps) if other is step)
    return [
        other
        for other in migration.steps[place + 1 :]
        if isinstance(other, WalkedStep) and targets.disturbs(other, step)
    ]


# ---------------------------------------------------------------- what is asked of the rows


def asked(step: Step, migration: Migration, catalog: Catalog) -> tuple[Check, ...]:
    """What must hold so that the batches of a step do what they should, and to every row."""
    implied = catalog.implied_checks(step, migration)
    return (*implied, *targets.checks(step, catalog.tables))


def is_late(step: Step, earlier: Iterable[Step], catalog: Catalog) -> bool:
    """Whether a step can be asked about only when those before it are done."""
    if not isinstance(step, WalkedStep):
        return False
    return catalog.reads_made(*step.texts) or targets.depends(step, earlier, catalog.tables)


def early_checks(migration: Migration, catalog: Catalog, whole: Migration) -> list[Check]:
    """What is asked before the first write of a migration, which may be a part of another."""
    found: list[Check] = [*catalog.readable] if migration.transforms else []
    for number, step in enumerate(migration.steps):
        is_delete = isinstance(step, DeleteRows)
        parts = targets.deletions(step, catalog.tables) if is_delete else (step,)
        for place, part in enumerate(parts):
            earlier = (*migration.steps[:number], *parts[:place])
            if not is_late(part, earlier, catalog):
                found += asked(part, whole, catalog)
    return found


def columns_held(table: TableName, migration: Migration, catalog: Catalog) -> list[str]:
    """New columns that can be held against their expressions later: those that give them still.

    That is not so where an expression gives another value each time, comes from another table, or
    reads what the same step or a later one writes, or what goes.
    """
    freed = [thing for step in migration.steps for thing in step_effects.freed(step)]
    gone = {part or name.name for kind, name, part in freed if kind in ("relation", "column")}
    steps = [step for step in migration.backfills if step.table == table]
    loose: set[str] = set()
    for number, step in enumerate(steps):
        written = [column for other in steps[number:] for column in other.assign]
        text = "\n".join(step.texts)
        is_moved = statements.columns_read(text, written, catalog.row(table))
        is_moved = bool(is_moved) or bool(gone & statements.names_in(text))
        if is_moved or step.using is not None or is_volatile(step, catalog):
            loose |= {*step.assign}
    swaps = [step for step in migration.steps if isinstance(step, Swap)]
    loose |= {each.new for swap in swaps for each in swap.columns if each.table == table}
    filled = dict.fromkeys(column for step in steps for column in step.assign)
    return [c for c in filled if c in catalog.added.get(table, {}) and c not in loose]


# ---------------------------------------------------------------- how to walk


def plan(
    step: Backfill,
    expressions: Mapping[str, str],
    migration: Migration,
    catalog: Catalog,
    *,
    keeps: bool = False,
) -> BackfillPlan:
    """Choose marks and way of a backfill; ``expressions`` are those that its statement has.

    One that keeps what it replaces is not woven.

    A row counts as done when it holds what the expressions give.  Where they give another value
    each time, it is done when it holds anything, provided that the columns are new.  Where they
    read what they set, only the cursor of a walk by key knows, and there is no look back.
    """
    columns = [statements.column_of(step, column) for column in step.assign]
    added = catalog.added.get(step.table, {})
    fresh = all(c in added and added[c].server_default is None for c in step.assign)
    differs = catalog.differs(step, expressions)
    if is_volatile(step, catalog):
        guard = statements.all_null(columns) if fresh else None
        look_back = guard
    elif reads_what_it_sets(step, catalog):
        guard, look_back = differs, None
    else:
        guard = look_back = differs
        if fresh and _in_step(step, migration):
            # What holds something is right: the trigger sees to it.
            look_back = f"{statements.all_null(columns)} AND {differs}"
    computed = [{*t.columns} for t in migration.transforms if t.table == step.table]
    if any(columns & set(step.assign) for columns in computed):
        look_back = None  # what a later step made of the row would be taken for not done
    woven = None if keeps or look_back is None else _passes_by(step, catalog)
    if woven is not None and fresh and guard == differs:
        # To ask computes the value once, to write it once more.
        guard = f"({SURE_MARK} AND {statements.all_null(columns)}\n OR {differs})"
    return BackfillPlan(guard=guard, look_back=look_back, woven=woven)


def _in_step(step: Backfill, migration: Migration) -> bool:
    return any(
        isinstance(other, KeepInStep)
        and other.table == step.table
        and set(step.assign) <= set(other.assign)
        for other in migration.steps
    )


def _passes_by(step: Backfill, catalog: Catalog) -> str | None:
    """A number for each row from its key, where a woven walk would gain by it."""
    table = catalog.table(step.table)
    if step.using is not None or table.indexed & set(step.assign) or not table.key:
        return None
    types = [table.column(column).type.split("(")[0].split(" with")[0] for column in table.key]
    if len(types) == 1 and types[0] in _WHOLE:
        return quote(table.key[0])
    if all(kind in _HASHED for kind in types):
        return f"hash_record(ROW({', '.join(map(quote, table.key))}))"
    return None


def kept_columns(step: Backfill | Transform, migration: Migration) -> tuple[str, ...]:
    """Columns of the step whose old values are kept."""
    return tuple(
        dict.fromkeys(
            column
            for other in migration.steps
            if isinstance(other, BackUp) and other.table == step.table
            for column in other.columns
            if column in step.columns
        )
    )


def partner(step: Backfill, key: Sequence[str]) -> str | None:
    """The partner's column that ``on`` says equals the key of the table, if there is such a term.

    A range of keys then bounds both sides of the join, so that no batch reads all partners.
    """
    if len(key) != 1 or step.on is None or re.search(r"'|\bor\b", step.on, re.IGNORECASE):
        return None
    own = (key[0],), (step.table.name, key[0])
    for term in re.split(r"\band\b", step.on, flags=re.IGNORECASE):
        sides = [side.strip() for side in term.split("=")]
        names = [parts_of(side) for side in sides]
        if len(sides) == 2 and all(names):
            others = [side for side, name in zip(sides, names, strict=True) if name not in own]
            if len(others) == 1 and len(parts_of(others[0])) == 2:
                return others[0]
    return None


def parts_of(text: str) -> tuple[str, ...]:
    """The parts of a column's name as PostgreSQL stores them; () for any other expression."""
    if not re.fullmatch(r'(\w+|"[^"]+")(\.(\w+|"[^"]+"))?', text):
        return ()
    return tuple(quoted or plain.lower() for quoted, plain in re.findall(r'"([^"]+)"|(\w+)', text))


# What is computed over all rows: a range of the key would be cut out of it afterwards.
_OVER_ALL = re.compile(
    r"\b(distinct(?!\s+from\b)|group\s+by|over|union(?!\s+all\b)|intersect|except|recursive)\b",
    re.IGNORECASE,
)


def reads_all(query: str) -> bool:
    """Whether the query groups, compares or numbers rows, which each batch would do with all.

    Besides, numbers that a window gives would not be the same once the application has written.
    """
    return _OVER_ALL.search(ddl.bare(query)) is not None


def run_once(step: Backfill) -> str | None:
    """The name by which the step joins what is one query over all rows; None for all else."""
    using, depth = (step.using or "").strip(), 0
    if step.walk.job is not None or not using.startswith("(") or not reads_all(using):
        return None
    for match in re.finditer(r"[()]", ddl.bare(using)):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            name = re.fullmatch(
                r'\s*(?:as\s)?\s*(\w+|"[^"]+")', using[match.end() :], re.IGNORECASE
            )
            return None if name is None else name[1]
    return None


def options(walk: Walk, hold: str | None) -> dict[str, str]:
    """What differs from the usual, as arguments of ``run_batches``, in Python."""
    given: dict[str, str] = {}
    if walk.quarantine_rows is not None:
        given["quarantine_rows"] = str(walk.quarantine_rows)
    if not walk.fire_triggers:
        given["role"] = '"replica"'
    if walk.rest_share:
        given["rest_share"] = str(walk.rest_share)
    if hold is not None:
        given["hold"] = hold
    return given

"""A migration in phases, each a revision of its own that may be deployed days after the last.

Expand adds what the application does not notice, migrate changes rows, contract takes away and
constrains.  Where a step belongs follows from what it does, and from the steps that it must stay
behind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from alembic.operations import ops

from datamig_nb import dropped, schema
from datamig_nb.catalog import Catalog
from datamig_nb.checks import QueryCheck, RowCheck, Unchanged, check
from datamig_nb.compound import ChangeType, CreateTableAs, MergeRows, Swap
from datamig_nb.draft import takes_away
from datamig_nb.errors import MigrationError
from datamig_nb.migration import CreateEnum, Migration, Step, describe, step_table
from datamig_nb.names import TableName, literal
from datamig_nb.stages import Found
from datamig_nb.statements import names_in
from datamig_nb.step_effects import freed, made
from datamig_nb.steps import Backfill, BackUp, DeleteRows, InsertRows, KeepInStep, Sql
from datamig_nb.transforms import Transform

#: What one of several revisions does of a migration.
Phase: TypeAlias = Literal["expand", "migrate", "contract"]

_PHASES: tuple[Phase, ...] = ("expand", "migrate", "contract")
_EXPAND, _MIGRATE, _CONTRACT = range(3)

_Writes = Backfill | InsertRows | DeleteRows | Transform
_Check = RowCheck | QueryCheck


def _title(migration: Migration, *phases: Phase) -> str:
    """Name of a part, by which datamig.run tells later revisions that it was done."""
    return f"{' and '.join(phases)}: {migration.name}"


def part_of(
    migration: Migration, catalog: Catalog, wanted: Sequence[Phase]
) -> tuple[Migration, Catalog, Migration]:
    """The steps of some phases, and all steps in the order of their phases with their catalog.

    What is asked before the first write is asked by expand and by migrate.  A later phase begins
    with a gate: the one before is done, and what it checked holds still.

    Raises
    ------
    MigrationError
        If the migration cannot be split, or has nothing to do in these phases.
    """
    places, first = _places(migration, catalog), _PHASES.index(wanted[0])
    steps: dict[Phase, list[Step]] = {
        phase: [step for step, place in zip(migration.steps, places, strict=True) if place == n]
        for n, phase in enumerate(_PHASES)
    }
    own = [step for phase in wanted for step in steps[phase]]
    if not _does_something(own):
        raise MigrationError(
            f"{migration.name!r} has nothing to {wanted[0]}", "render its other phases alone"
        )
    asked = [step for step in steps["expand"] if isinstance(step, _Check)]
    own = [step for step in own if step not in asked]
    if any(isinstance(step, Backfill) and step.walk.job is not None for step in own):
        own = [step for step in own if not isinstance(step, _Check)]  # asked by the contract
    own = [*_gate(migration, steps, first), *(asked if first < _CONTRACT else ()), *own]
    earlier = [step for phase in _PHASES[:first] for step in steps[phase]]
    later = [step for phase in _PHASES[first + len(wanted) :] for step in steps[phase]]
    part = Migration(_title(migration, *wanted), *own)
    whole = Migration(migration.name, *earlier, *own, *later)
    known = {id(step): catalog.found[n] for n, step in enumerate(migration.steps)}
    found = {n: known[id(step)] for n, step in enumerate(whole.steps) if id(step) in known}
    return part, replace(catalog, found=found), whole


def _gate(migration: Migration, steps: Mapping[Phase, list[Step]], first: int) -> list[Step]:
    """What must hold before a phase begins."""
    did: list[Phase] = [phase for phase in _PHASES[:first] if _does_something(steps[phase])]
    gate: list[Step] = [*(_done(migration, phase) for phase in did[-1:])]
    if first == _CONTRACT and steps["migrate"]:
        checks = Migration(migration.name, *steps["migrate"]).checks
        gate += [replace(each, before=True) for each in checks]
    return gate


def _does_something(steps: Iterable[Step]) -> bool:
    return not all(isinstance(step, _Check | Unchanged) for step in steps)


def _done(migration: Migration, phase: Phase) -> QueryCheck:
    names = _title(migration, phase), _title(migration, "expand", "migrate")
    marked = f"FROM datamig.run WHERE step IN ({', '.join(map(literal, names))})"
    return check(
        f"{phase} is done, for which 'alembic upgrade' or 'datamig-nb work' is to be run",
        "SELECT revision, step, status FROM datamig.run\n"
        f" WHERE revision IN (SELECT revision {marked})\n"
        "   AND (part > 0 OR step = 'upgrade') AND status <> 'succeeded'\n"
        f" UNION ALL SELECT '', {literal(names[0])}, 'not begun'\n"
        f" WHERE NOT EXISTS (SELECT {marked})",
        before=True,
    )


# ---------------------------------------------------------------- where a step belongs


def _places(migration: Migration, catalog: Catalog) -> list[int]:
    """The number of each step's phase."""
    steps, places = migration.steps, list[int]()
    schemas = {table.schema for table in catalog.tables}
    names = [_names(step, catalog.found[n]) - schemas for n, step in enumerate(steps)]

    def must_follow(later: int, earlier: int) -> bool:
        found = catalog.found[earlier]
        return _must_follow(steps[later], names[later], steps[earlier], found)

    for number, step in enumerate(steps):
        before = [n for n in range(number) if must_follow(number, n)]
        lowest = max((places[n] for n in before), default=_EXPAND)
        behind = range(number + 1, len(steps))
        is_awaited = any(isinstance(steps[n], _Writes) and must_follow(n, number) for n in behind)
        match step:
            case RowCheck(before=True) | QueryCheck(before=True):
                place = _EXPAND
            case ops.AddColumnOp() | ops.CreateTableOp() | CreateEnum() | KeepInStep():
                place = lowest
            case Sql():  # nobody knows what it does: it stays behind all that it stands behind
                place = max(places, default=_EXPAND)
            case BackUp():
                goes = any(dropped.kept_by(other, steps) is step for other in steps)
                place = _CONTRACT if goes else _MIGRATE
            case _ if isinstance(step, _Writes | _Check | CreateTableAs | Unchanged):
                place = max(lowest, _MIGRATE)
            case _ if is_awaited and not takes_away(step):  # a CHECK is dropped for new values
                written = any(isinstance(other, _Writes) for other in steps[:number])
                place = max(lowest, _MIGRATE if written else _EXPAND)
            case _:
                place = _CONTRACT
        if place == _CONTRACT and isinstance(step, _Writes | Unchanged):
            first = next(n for n in before if places[n] == _CONTRACT)
            raise MigrationError(
                f"{migration.name!r} cannot be split: step {first + 1} ({describe(steps[first])})"
                f" belongs to contract, but step {number + 1} ({describe(step)}) stands behind it",
                "let the one that changes rows stand first, or render it all as one revision",
            )
        places.append(place)
    return places


def _names(step: Step, found: Found) -> frozenset[str]:
    """What a step names: tables, columns, functions, types."""
    match step:
        case Backfill() | InsertRows() | DeleteRows():
            set_here = step.columns if isinstance(step, Backfill) else ()
            return names_in("\n".join(step.texts)) | {step.table.name, *set_here}
        case Transform():
            read = names_in("\n".join((*step.reads, step.where or "")))
            return read | {step.table.name, *step.columns}
        case KeepInStep():
            read = names_in("\n".join(step.assign.values()))
            return read | {step.table.name, *step.assign}
        case RowCheck():
            return names_in(step.failing) | {step.table.name}
        case QueryCheck():
            return names_in(step.failing)
        case Unchanged():
            return names_in(step.value)
        case Swap():
            return frozenset({each.new for each in step.columns} | {t.name for t in step.tables})
        case BackUp() | ChangeType() | MergeRows():
            return frozenset()
        case _:
            return names_in("\n".join(each.sql for each in schema.upgrade_statements(step, found)))


def _must_follow(step: Step, names: frozenset[str], other: Step, found: Found) -> bool:
    """Whether a step does what it should only behind another one, that stands before it."""
    match other:
        case Sql():
            return bool(names & names_in(other.statement))
        case ops.DropConstraintOp():
            texts = " ".join(text for text in found.definition or () if text)
            return _writes(step, step_table(other), names_in(texts))
        case ops.AlterColumnOp(modify_name=None):
            loosens = other.modify_nullable is not False
            return loosens and _writes(step, step_table(other), {other.column_name})
        case ops.CreateUniqueConstraintOp() | ops.CreatePrimaryKeyOp() | ops.CreateIndexOp():
            if isinstance(step, InsertRows):
                return step.on_conflict is not None and step.table == step_table(other)
            return False
        case _:
            swapped = other.columns if isinstance(other, Swap) else ()
            things = [("column", each.table, each.column) for each in swapped]
            return any(
                (part or table.name) in names and (kind != "column" or table.name in names)
                for kind, table, part in (*made(other), *freed(other), *things)
            )


def _writes(step: Step, table: TableName, names: Collection[str]) -> bool:
    """Whether a step writes these columns of a table, or rows of it or of what it refers to."""
    match step:
        case InsertRows():
            return step.table == table
        case DeleteRows():
            return step.table == table or step.table.name in names
        case Backfill() | Transform():
            return step.table == table and bool({*step.columns} & {*names})
        case _:
            return False

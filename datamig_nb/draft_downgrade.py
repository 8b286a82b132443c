"""The function ``downgrade`` of a revision: the steps taken back, last one first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from alembic.operations import ops

from datamig_nb import kept, schema, statements, step_effects, swaps, walks
from datamig_nb.checks import QueryCheck, RowCheck, Unchanged
from datamig_nb.compound import ChangeType, Exchanged, MergeRows, Swap
from datamig_nb.draft import ID, Draft, function_text, python_text, step_line, takes_away
from datamig_nb.draft_dropped import add_back, fill_again, kept_drops
from datamig_nb.migration import Step, checksum_checks
from datamig_nb.names import TableName, quote
from datamig_nb.stages import NoWayBack, Statement
from datamig_nb.steps import Backfill, BackUp, DeleteRows, InsertRows, KeepInStep
from datamig_nb.transforms import Transform


def irreversible(draft: Draft) -> str | None:
    """Why there is no way back, or None."""
    for step in draft.migration.steps:
        if isinstance(step, Backfill | Transform):
            added = draft.catalog.added.get(step.table, {})
            kept = walks.kept_columns(step, draft.whole)
            if lost := [c for c in step.columns if c not in added and c not in kept]:
                return f"{', '.join(lost)} of {step.table} held values that were not kept"
        if isinstance(step, DeleteRows) and not step.keep:
            return f"the rows deleted from {step.table} were not kept"
        if isinstance(way := _way_back_of(draft, step), NoWayBack):
            return way.reason
    return None


def _way_back_of(draft: Draft, step: Step) -> tuple[Statement, ...] | NoWayBack:
    """The statements that take a schema step back; () for other steps."""
    if isinstance(step, Backfill | InsertRows | DeleteRows | KeepInStep | BackUp | Transform):
        return ()
    if isinstance(step, RowCheck | QueryCheck | Unchanged):
        return ()
    if isinstance(step, Swap):
        lost = [str(c) for c in step.columns if not c.keep and c.back is None]
        return NoWayBack(reason=f"the old {', '.join(lost)} is dropped") if lost else ()
    assert not isinstance(step, ChangeType | MergeRows)  # taken apart before
    if step_effects.goes_with_another(step, draft.migration.steps):
        return ()
    if isinstance(step, ops.DropColumnOp | ops.DropTableOp) and draft.keeper(step) is not None:
        return add_back(draft, step)
    return schema.downgrade_statements(step, draft.catalog.found[draft.number(step) - 1])


def way_back(draft: Draft) -> str:
    """The downgrade in words."""
    if irreversible(draft):
        return f"raises: {irreversible(draft)}."
    parts: list[str] = []
    held, loose = list[str](), list[str]()
    changes = [c for s in draft.migration.steps if isinstance(s, Swap) for c in s.columns]
    swapped = {(each.table, each.new) for each in changes}
    if changes:
        parts.append(
            f"lets the old {', '.join(map(str, changes))} come in again, unless a value was"
            " written since that none is known for (then it stops and names the rows)"
        )
    for table, added in draft.added.items():
        names = _held(draft, table)
        held += [f"{', '.join(names)} of {table}"] if names else []
        others = [c for c in added if c not in names and (table, c) not in swapped]
        loose += [f"{', '.join(others)} of {table}"] if others else []
    if held:
        parts.append(
            f"drops {' and '.join(held)}, unless a value there was edited since (then it stops"
            " and names the rows)"
        )
    if loose:
        parts.append(f"drops {' and '.join(loose)}, whatever was written there since")
    fills = (*draft.migration.backfills, *draft.migration.transforms)
    keeps = any(draft.saved(step) for step in fills)
    if keeps or any(isinstance(s, BackUp | DeleteRows | InsertRows) for s in draft.migration.steps):
        parts.append(
            "puts back what was kept, where it was not edited since; datamig.conflict lists"
            " the rest"
        )
    return f"{'; '.join(parts) or 'changes nothing'}; nothing else was changed."


def downgrade(draft: Draft) -> str:
    """The function ``downgrade``."""
    if irreversible(draft):
        message = f"{ID} cannot be undone: {irreversible(draft)}; restore them from a backup"
        return function_text("downgrade", "Refuse", [f"raise RuntimeError({python_text(message)})"])
    checks = [
        check
        for table in dict.fromkeys(step.table for step in draft.whole.backfills)
        for check in _unedited(draft, table)
    ]
    for step in (step for step in draft.migration.transforms if draft.saved(step) is None):
        for check in checksum_checks(replace(step, where=None, quarantine_rows=None)):
            held = f"{', '.join(step.writes)} of {step.table} not edited since the upgrade"
            checks.append(draft.check(held, draft.catalog.failing(check)))
    for column in (c for s in draft.migration.steps if isinstance(s, Swap) for c in s.columns):
        if column.back is None:
            checks.append(draft.check(*_written_since(draft, column)))
    lines = [f"preflight({', '.join([python_text('downgrade'), *checks])})"]
    for step in reversed(draft.migration.steps):
        lines += _downgrade_step(draft, step)
    return function_text("downgrade", f"Undo: {draft.migration.name}", [*lines, "forget()"])


def _unedited(draft: Draft, table: TableName) -> list[str]:
    """The check that columns which will be dropped hold nothing that would be lost."""
    columns = _held(draft, table)
    if not columns:
        return []
    filled = {column: _filled(draft, table, column) for column in columns}
    differs = _differs(draft, table, filled)
    query = statements.edited_rows(table, filled, differs, draft.catalog.table(table).key)
    return [draft.check(f"{' and '.join(filled)} not edited since the upgrade", query)]


def _held(draft: Draft, table: TableName) -> list[str]:
    """Columns that this revision drops, and that can be held against what the steps give them."""
    held = walks.columns_held(table, draft.whole, draft.catalog)
    return [column for column in held if column in draft.added.get(table, {})]


def _differs(draft: Draft, table: TableName, filled: Mapping[str, str]) -> str:
    types = {column: draft.catalog.column_type(table, column).name for column in filled}
    return statements.differ(
        [statements.comparable(quote(column), types[column]) for column in filled],
        [statements.comparable(text, types[column]) for column, text in filled.items()],
    )


def _filled(draft: Draft, table: TableName, column: str) -> str:
    """What the upgrade gave a column, as an expression over the row."""
    steps = [
        step
        for step in reversed(draft.whole.steps)
        if isinstance(step, Backfill | KeepInStep)
        if step.table == table and column in step.assign
    ]
    # The last backfill of a row wins; a row that none of them took has its trigger's value.
    cases, other = list[str](), "NULL"
    for step in sorted(steps, key=lambda step: isinstance(step, KeepInStep)):
        given = draft.references(step)[column]
        if isinstance(step, KeepInStep) or step.where is None:
            other = given
            break
        cases.append(f"WHEN ({step.where}) THEN {given}")
    type = draft.catalog.column_type(table, column).name
    if cases:
        return f"(CASE {' '.join(cases)} ELSE {other} END)::{type}"
    texts = [step.assign[column] for step in steps]
    altered = any((table, column, text) in draft.catalog.altered for text in texts)
    return f"CAST({other} AS {type})" if altered else other


def _downgrade_step(draft: Draft, step: Step) -> list[str]:
    match step:
        case KeepInStep(table=table):
            name = quote(draft.trigger(step))
            return [
                step_line(f"DROP TRIGGER IF EXISTS {name} ON {table.sql}"),
                step_line(f"DROP FUNCTION IF EXISTS datamig.{name}()"),
            ]
        case Backfill(walk=walk):
            end_job = [] if walk.job is None else ["end_job()"]
            return [*end_job, *_restore(draft, step, fire_triggers=walk.fire_triggers)]
        case Transform():
            return _restore(draft, step)
        case InsertRows():
            return _take_out(draft, step)
        case DeleteRows():
            return _put_back(draft, step)
        case Swap():
            return _swap_back(draft, step)
        case _:
            way, keeper = _way_back_of(draft, step), draft.keeper(step)
            assert not isinstance(way, NoWayBack)  # else there is no downgrade
            once = takes_away(step) and keeper is None
            lines = [draft.statement(each, once=once) for each in way]
            is_first = keeper is not None and step in kept_drops(draft, keeper)[:1]
            return lines + (fill_again(draft, keeper) if keeper and is_first else [])


def _written_since(draft: Draft, column: Exchanged) -> tuple[str, str]:
    return swaps.written_since(column, draft.key_of(column.table))


def _swap_back(draft: Draft, step: Swap) -> list[str]:
    lines, triggers = list[str](), list[tuple[str, TableName]]()
    for column in step.columns:
        if not column.keep:
            lines.append(f"step({draft.written(swaps.add_old(column))})")
    for number, column in enumerate(step.columns, 1):
        if column.back is None:
            continue
        name = f"zz_datamig_{ID}_back_{draft.number(step)}_{number}"
        triggers.append((name, column.table))
        back = {column.old: column.back}
        keep = KeepInStep(table=column.table, assign=back)
        text = statements.trigger_function(keep, back, name, {column.old: column.old_type})
        names = [known.name for known in draft.catalog.table(column.table).columns]
        read = statements.columns_read(column.back, names, draft.catalog.row(column.table))
        trigger = statements.trigger(keep, name, read)
        lines.append(f"step({draft.constant('back function', text)})")
        lines.append(f"step({draft.constant('back trigger', trigger)})")
        fill = Backfill(table=column.table, assign=back)
        guard = swaps.not_back(column)
        work = draft.constant(f"back {column.column}", statements.update_batch(fill, back, guard))
        left = draft.constant(f"{column.column} left", statements.remaining(fill, guard))
        key = tuple(map(quote, draft.key_of(column.table))) or ("ctid",)
        walk = f"fill {column.old} of {column.table} ({draft.number(step)})"
        lines.append(draft.run(walk, column.table, key, work, {"remaining": left}))
    made = swaps.prepare(step, "back", draft.key_of)
    lines += [draft.statement(each, once=False) for each in made]
    for column in step.columns:
        if column.back is None:
            lines.append(f"require({draft.check(*_written_since(draft, column))})")
    # What a revision before this one made goes on keeping the column in step that leaves.
    goes_on = [each for each in draft.kept_until(step) if each not in draft.migration.steps]
    again = [text for each in goes_on for text in draft.triggers(each)]
    swap = swaps.exchange(step, "back", triggers, again)
    return [*lines, draft.statement(swap, once=True)]


def _restore(draft: Draft, step: Backfill | Transform, *, fire_triggers: bool = True) -> list[str]:
    saved = draft.saved(step)
    role = {} if fire_triggers else {"role": '"replica"'}
    return [] if saved is None else _restore_values(draft, saved, draft.number(step), role)


def _restore_values(draft: Draft, saved: kept.Kept, number: int, more: dict[str, str]) -> list[str]:
    name = f"restore {', '.join(saved.types)} of {saved.table} ({number})"
    work = draft.constant(f"restore {' '.join(saved.types)}", kept.restore_batch(saved))
    keys = tuple(f"kept.{quote(part)}" for part in saved.key)
    return [
        f"step({draft.constant('index what was kept', kept.index_kept(saved))})",
        draft.run_over(name, saved.table, keys, work, saved.name, more),
        *_drop_kept(draft, saved.name, kept.note_edited(saved, ID)),
    ]


def _take_out(draft: Draft, step: InsertRows) -> list[str]:
    saved, changed, table = (
        draft.kept_rows(step),
        draft.changed(step),
        draft.catalog.table(step.table),
    )
    assert saved is not None
    take_out = kept.take_out_batch(step.table, table.key, saved, table.referenced_by)
    number, keys = draft.number(step), tuple(f"kept.{quote(part)}" for part in table.key)
    name, work = (
        f"take rows out of {step.table} ({number})",
        draft.constant("take out", take_out),
    )
    return [
        *([] if changed is None else _restore_values(draft, changed, number, {})),
        draft.run_over(name, step.table, keys, work, saved),
        *_drop_kept(draft, saved, kept.note_left(step.table, table.key, saved, ID)),
    ]


def _put_back(draft: Draft, step: DeleteRows) -> list[str]:
    lines = list[str]()
    for place, part in enumerate(reversed(draft.deletions(step))):
        saved, table = draft.kept_rows(step, place), draft.catalog.table(part.table)
        assert saved is not None  # else there is no way back
        columns = draft.columns_at(step, part.table)
        work = draft.constant("put back", kept.put_back_batch(part.table, columns, saved))
        keys = tuple(f"kept.{quote(key)}" for key in table.key) or ("ctid",)
        name = f"put rows back into {part.table} ({draft.number(step)})"
        note = kept.note_not_back(part.table, table.key, saved, ID) if table.key else None
        lines.append(draft.run_over(name, part.table, keys, work, saved))
        lines += _drop_kept(draft, saved, note)
    return lines


def _drop_kept(draft: Draft, saved: str, note: str | None) -> list[str]:
    drop = draft.constant("note conflicts", kept.drop_kept(saved, note))
    return ["step(CONFLICT)", f"step_once({drop})"]

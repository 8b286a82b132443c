"""The function ``upgrade`` of a revision, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from alembic.operations import ops

from datamig_nb import kept, preflight, schema, stages, statements, swaps, targets, walks
from datamig_nb.checks import QueryCheck, RowCheck, Unchanged
from datamig_nb.compound import ChangeType, MergeRows, Swap
from datamig_nb.draft import (
    ID,
    OLDEST_SERVER,
    Draft,
    function_text,
    python_text,
    step_line,
    takes_away,
)
from datamig_nb.draft_dropped import drop_and_keep
from datamig_nb.errors import MissingKeyError
from datamig_nb.expressions import PARTNER_MARK
from datamig_nb.migration import Step, checksum_checks, step_table
from datamig_nb.names import TableName, literal, quote
from datamig_nb.source import one_line
from datamig_nb.stages import Statement
from datamig_nb.steps import Backfill, BackUp, DeleteRows, InsertRows, KeepInStep
from datamig_nb.transforms import Transform

# Types whose values are texts to Python too.
_TEXTS = {"text", "varchar", "character varying"}


def upgrade(draft: Draft) -> str:
    """The function ``upgrade``."""
    draft.catalog.require_fitting()
    draft.catalog.require_absent(draft.added)
    draft.take_names()
    lines = _preflight(draft)
    for step in draft.migration.steps:
        lines += _upgrade_step(draft, step)
    if not draft.migration.transforms:
        return function_text("upgrade", draft.migration.name, [*lines, "finish()"])
    done = step_line(f"DELETE FROM datamig.own_transaction WHERE revision = '{ID}'")
    return function_text(
        "upgrade", draft.migration.name, [*lines, done, "finish()"], before="online_only()"
    )


def _preflight(draft: Draft) -> list[str]:
    steps = draft.migration.steps
    conditions = [
        condition
        for step in steps
        for condition in preflight.preflight(step, draft.whole.steps[: draft.number(step) - 1])
    ]
    checks: list[tuple[str, str]] = [*preflight.nothing_yet(conditions)]
    asked = [check for check in draft.migration.checks if check.before]
    asked += walks.early_checks(draft.migration, draft.catalog, draft.whole)
    asked += targets.session_checks(draft.migration, draft.catalog.tables, draft.catalog.major)
    if draft.minimum_server > OLDEST_SERVER:
        asked.append(_server_is_new_enough(draft.minimum_server))
    checks += [draft.failing(check) for check in asked]
    names = [draft.check(*check) for check in checks]
    lines = [f"preflight({', '.join([python_text('upgrade'), *names])})"]
    for figure in (step for step in steps if isinstance(step, Unchanged)):
        value = draft.constant(figure.name, figure.value)
        lines.append(f"remember({python_text(figure.name)}, {value})")
    if draft.migration is not draft.whole:  # for the gate of the next phase
        lines.append(f"remember({python_text(draft.migration.name)}, {python_text('now()')})")
    return lines


def _late_checks(
    draft: Draft, step: walks.WalkedStep, earlier: Iterable[Step], walk: str
) -> list[str]:
    """Checks right before a walk, made before its first batch and not again."""
    if not walks.is_late(step, earlier, draft.catalog):
        return []
    begun = f"SELECT FROM datamig.run WHERE (revision, step) = ('{ID}', {literal(walk)})"
    return [
        f"require({draft.check(*draft.failing(check))}, unless={python_text(begun)})"
        for check in walks.asked(step, draft.whole, draft.catalog)
    ]


def _upgrade_step(draft: Draft, step: Step) -> list[str]:
    match step:
        case Backfill():
            return _backfill(draft, step)
        case InsertRows():
            return _insert(draft, step)
        case DeleteRows():
            return _delete(draft, step)
        case KeepInStep():
            wishes = zip(("trigger function", "trigger"), draft.triggers(step), strict=True)
            return [f"step({draft.constant(wish, text)})" for wish, text in wishes]
        case Transform():
            return _transform(draft, step)
        case Swap():
            return _swap(draft, step)
        case RowCheck(before=False) | QueryCheck(before=False):
            return [f"require({draft.check(*draft.failing(step))})"]
        case Unchanged():
            return [f"require({draft.check(f'{step.name} unchanged', _differs_now(step))})"]
        case BackUp() | RowCheck() | QueryCheck():
            return []  # in the backfills, before what is dropped, and in the preflight
        case ops.DropColumnOp() | ops.DropTableOp() if draft.keeper(step) is not None:
            return drop_and_keep(draft, step)
        case _:
            assert not isinstance(step, ChangeType | MergeRows)  # taken apart before
            found = draft.catalog.found[draft.number(step) - 1]
            sent = schema.upgrade_statements(step, found)
            if isinstance(step, ops.AlterColumnOp) and step.modify_nullable is False:
                return _set_not_null(draft, step, found, sent)
            return [draft.statement(each, once=takes_away(step)) for each in sent]


def _set_not_null(
    draft: Draft, step: ops.AlterColumnOp, found: stages.Found, sent: Sequence[Statement]
) -> list[str]:
    """The lines of a step that makes a column NOT NULL, whose stages are one call."""
    table, column = step_table(step), step.column_name
    staged = stages.set_not_null(table, column, found.key)
    at, once = sent.index(staged[0]), takes_away(step)
    validates = next(each.validates for each in staged if each.validates is not None)
    names = [table.sql, quote(column), quote(stages.not_null_name(column))]
    arguments = [*map(python_text, names), draft.check(*validates)]
    return [
        *(draft.statement(each, once=once) for each in sent[:at]),
        f"set_not_null({', '.join(arguments)})",
        *(draft.statement(each, once=once) for each in sent[at + len(staged) :]),
    ]


def _swap(draft: Draft, step: Swap) -> list[str]:
    triggers = [(quote(draft.trigger(each)), each.table) for each in draft.kept_until(step)]
    made = swaps.prepare(step, "there", draft.key_of)
    swap = swaps.exchange(step, "there", triggers)
    return [draft.statement(each, once=not each.repeatable) for each in (*made, swap)]


def _earlier(draft: Draft, step: Step) -> tuple[Step, ...]:
    steps = draft.migration.steps
    return steps[: next(n for n, other in enumerate(steps) if other is step)]


def _backfill(draft: Draft, step: Backfill) -> list[str]:
    expressions = draft.references(step)
    saved, name = draft.saved(step), draft.walk_name(step)
    plan = walks.plan(step, expressions, draft.whole, draft.catalog, keeps=saved is not None)
    lines = _late_checks(draft, step, _earlier(draft, step), name)
    more, bounded = walks.options(step.walk, _hold(draft, step)), step
    if step.using is not None:
        partner = walks.partner(step, draft.catalog.table(step.table).key)
        if partner is not None:
            more["partner"] = python_text(partner)
            bounded = replace(step, on=f"{PARTNER_MARK} AND ({step.on})")
        if alias := walks.run_once(step):
            found_by = [quote(walks.parts_of(partner)[1])] if partner is not None else []
            rows, once = _run_once(draft, step, step.using, found_by)
            more |= once
            bounded = replace(bounded, using=f"{rows} AS {alias}")
        if not (alias and partner):
            more["least_rows"] = "JOINED_BATCH_ROWS"
    lines += _keep_values(draft, saved)
    if saved is not None:
        returning = draft.minimum_server >= kept.RETURNS_OLD
        keeping = kept.update_batch_returning if returning else kept.update_batch_keeping
        update = keeping(bounded, expressions, plan.guard, saved)
    else:
        update = statements.update_batch(bounded, expressions, plan.guard)
    if plan.look_back is not None:
        key, aside = draft.catalog.table(step.table).key, None
        if step.walk.quarantine_rows is not None:
            aside = statements.set_aside(step, key, ID, name)
        left = statements.remaining(step, plan.look_back, _not_begun(draft, step), aside)
        more["remaining"] = draft.constant(f"{' '.join(step.assign)} left", left)
    if plan.woven is not None:
        more["woven"] = python_text(plan.woven)
        if step.walk.connections > 1 and step.walk.job is None:
            more["connections"] = str(step.walk.connections)
    work = draft.constant(f"fill {' '.join(step.assign)}", update)
    return [*lines, draft.run(name, step.table, _key(draft, step, plan), work, more)]


def _not_begun(draft: Draft, step: Backfill | DeleteRows) -> str | None:
    later = walks.later_walks(step, draft.whole)
    return statements.not_begun(ID, [draft.walk_name(other) for other in later])


def _transform(draft: Draft, step: Transform) -> list[str]:
    key = draft.catalog.table(step.table).key
    if not key:
        raise MissingKeyError(str(step.table))
    same = [s for s in draft.migration.transforms if set(s.columns) & set(step.columns)]
    name = f"compute {', '.join(step.columns)}"
    name += f" of {step.table} ({draft.number(step)})" if len(same) > 1 else ""
    arguments = [
        *(python_text(name), python_text(step.table.sql), step.function.name),
        f"key={one_line(repr(tuple(map(quote, key))))}",
        f"reads={one_line(repr(step.reads))}",
        f"writes={one_line(repr(tuple(map(quote, step.writes))))}",
    ]
    if step.where is not None:
        arguments.append(f"where={python_text(step.where)}")
    if step.checksum is not None:
        arguments.append(f"checksum={python_text(quote(step.checksum))}")
    if step.workers > 1:
        at_once = "in_processes" if step.processes else "in_threads"
        arguments += [f"workers={step.workers}", f"at_once={at_once}"]
    if not _is_text(draft, step):
        arguments.append("kinds=of_any_type")
    if step.vectorized:
        arguments.append("computes=by_series")
    if step.quarantine_rows is not None:
        arguments += ["set_aside=set_aside", f"quarantine_rows={step.quarantine_rows}"]
    saved = draft.saved(step)
    lines = _keep_values(draft, saved)
    if saved is not None:
        arguments.append(f"update={draft.constant('update', kept.update_computed(saved))}")
    checks = [f"require({draft.check(*draft.failing(c))})" for c in checksum_checks(step)]
    return [*lines, f"transform({', '.join(arguments)})", *checks]


def _is_text(draft: Draft, step: Transform) -> bool:
    """Whether all that is read and written is text, which needs no conversion."""
    names = {quote(c.name): c.name for c in draft.catalog.table(step.table).columns}
    columns = [*(names.get(expression, "") for expression in step.reads), *step.columns]
    if "" in columns:
        return False
    kinds = (draft.catalog.column_type(step.table, column).name for column in columns)
    return {kind.lower().partition("(")[0] for kind in kinds} <= _TEXTS


def _key(draft: Draft, step: Backfill, plan: walks.BackfillPlan) -> tuple[str, ...]:
    key = draft.catalog.table(step.table).key
    if not key and (plan.look_back is None or step.using is not None):
        raise MissingKeyError(str(step.table))
    joined = step.using is not None or draft.saved(step) is not None
    name = f"{quote(step.table.name)}." if joined else ""
    return tuple(f"{name}{quote(column)}" for column in key) or ("ctid",)


def _hold(draft: Draft, step: Backfill | InsertRows | DeleteRows) -> str | None:
    if not step.walk.hold_on:
        return None
    return draft.constant("hold while", statements.hold_query(step.table, step.walk.hold_on))


def _keep_rows(draft: Draft, table: TableName, saved: str | None) -> list[str]:
    if saved is None:
        return []
    return [f"step({draft.constant('keep rows', kept.keep_rows(table, saved))})"]


def _keep_values(draft: Draft, saved: kept.Kept | None) -> list[str]:
    if saved is None:
        return []
    return [f"step({draft.constant('keep values', kept.keep_values(saved))})"]


def _insert(draft: Draft, step: InsertRows) -> list[str]:
    columns, key = draft.catalog.selected[step.select], draft.catalog.table(step.table).key
    saved, changed, name = draft.kept_rows(step), draft.changed(step), draft.walk_name(step)
    assert saved is not None
    lines = _late_checks(draft, step, _earlier(draft, step), name)
    lines += _keep_rows(draft, step.table, saved)
    lines += _keep_values(draft, changed)
    known = draft.catalog.table(step.table).columns
    numbered = any(c.generated and not c.computed and c.name in columns for c in known)
    more, read = walks.options(step.walk, _hold(draft, step)), step
    if walks.reads_all(step.select):
        rows, once = _run_once(draft, step, statements.source(step), [*map(quote, step.key)])
        more |= once
        read = replace(step, select=f"TABLE {rows}")
    else:
        more["least_rows"] = "JOINED_BATCH_ROWS"
    insert = kept.insert_batch(read, columns, saved, changed, key, overriding=numbered)
    work = draft.constant(f"insert into {step.table.name}", insert)
    more["relation"] = draft.constant(f"source of {step.table.name}", statements.source(read))
    return [*lines, draft.run(name, step.table, tuple(map(quote, step.key)), work, more)]


def _run_once(
    draft: Draft, step: Backfill | InsertRows, item: str, key: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """The table that gets the rows of a query before they are walked, and what makes it."""
    rows = f"datamig.rows_{ID}_{draft.number(step)}"
    once = draft.constant(f"rows for {step.table.name}", statements.run_once(rows, item, key))
    return rows, {"rows": python_text(rows), "once": once}


def _delete(draft: Draft, step: DeleteRows) -> list[str]:
    parts = draft.deletions(step)
    lines, drops = _indexes_for(draft, step, parts)
    for place, part in enumerate(parts, 1 - len(parts)):
        saved = draft.kept_rows(step, abs(place))
        name = f"delete from {part.table} ({draft.number(step)})"
        earlier = (*_earlier(draft, step), *parts[: place + len(parts) - 1])
        lines += _late_checks(draft, part, earlier, name)
        lines += _keep_rows(draft, part.table, saved)
        work = draft.constant(f"delete from {part.table.name}", kept.delete_batch(part, saved))
        left = kept.still_there(part, _not_begun(draft, step))
        more = {"remaining": draft.constant(f"{part.table.name} left", left)}
        more |= walks.options(part.walk, _hold(draft, part))
        if "select" in statements.names_in(part.where):
            more["least_rows"] = "JOINED_BATCH_ROWS"
        key = tuple(map(quote, draft.catalog.table(part.table).key)) or ("ctid",)
        lines.append(draft.run(name, part.table, key, work, more))
    return lines + drops


def _indexes_for(
    draft: Draft, step: DeleteRows, parts: Sequence[DeleteRows]
) -> tuple[list[str], list[str]]:
    """Lines that build what lets PostgreSQL find the rows that refer to one, and drop it."""
    builds, drops = list[str](), list[str]()
    for place, key in enumerate(targets.unindexed(parts, draft.catalog.tables), 1):
        index = TableName(key.child.schema, f"datamig_{ID}_{draft.number(step)}_{place}")
        columns = ", ".join(map(quote, key.columns))
        create = (
            f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {index.name}\n"
            f"    ON {key.child.sql} ({columns})"
        )
        build = stages.build_index(index.name, key.child, create)
        builds += [draft.statement(each, once=False) for each in build]
        drops.append(draft.statement(stages.drop_index(index), once=False))
    return builds, drops


def _server_is_new_enough(major: int) -> QueryCheck:
    return QueryCheck(
        name=f"the server is PostgreSQL {major} or newer",
        failing="SELECT version()\n"
        f" WHERE current_setting('server_version_num')::integer < {major}0000",
    )


def _differs_now(figure: Unchanged) -> str:
    return (
        "SELECT note AS before, now::text AS now\n"
        f"  FROM datamig.run, ({figure.value}) AS figure (now)\n"
        f" WHERE (revision, step) = ('{ID}', {literal(figure.name)})"
        " AND note IS DISTINCT FROM now::text"
    )

"""Columns and tables that a revision drops and keeps: the lines there, and those back."""

from __future__ import annotations

from alembic.operations import ops

from datamig_nb import dropped, schema
from datamig_nb.draft import ID, Draft
from datamig_nb.errors import MissingKeyError
from datamig_nb.migration import Step, step_table
from datamig_nb.names import quote
from datamig_nb.stages import NoWayBack, Statement
from datamig_nb.steps import BackUp


def kept_drops(draft: Draft, keeper: BackUp) -> list[ops.DropColumnOp]:
    """The steps that drop what the keeper keeps of a table that stays."""
    drops = dropped.kept_columns(keeper, draft.whole.steps)
    return [drop for drop in drops if draft.keeper(drop) is keeper]


def _definition(draft: Draft, step: Step) -> tuple[str | None, ...] | None:
    return draft.catalog.found[draft.number(step) - 1].definition


def _dropped_column(draft: Draft, step: ops.DropColumnOp) -> dropped.DroppedColumn | NoWayBack:
    name = step.column_name
    return dropped.DroppedColumn.of(step_table(step), name, _definition(draft, step))


def _kept_place(draft: Draft, keeper: BackUp) -> str:
    return f"datamig.kept_{ID}_{draft.number(keeper)}"


def _columns_kept(draft: Draft, keeper: BackUp) -> dropped.KeptColumns:
    table, drops = draft.catalog.table(keeper.table), kept_drops(draft, keeper)
    columns = [step.column_name for step in drops]
    earlier = draft.whole.steps[: draft.number(drops[0]) - 1]
    keys = [step for step in earlier if isinstance(step, ops.CreatePrimaryKeyOp)]
    made = [tuple(step.columns) for step in keys if step_table(step) == keeper.table]
    key = made[-1] if made else table.key
    if not key or set(columns) & set(key):
        raise MissingKeyError(str(table.name))
    return dropped.KeptColumns(
        name=_kept_place(draft, keeper),
        table=table.name,
        key=key,
        types={column: table.column(column).type for column in columns},
    )


def drop_and_keep(draft: Draft, step: ops.DropColumnOp | ops.DropTableOp) -> list[str]:
    """The lines that drop a column or a table, and keep what it holds."""
    keeper = draft.keeper(step)
    assert keeper is not None
    if isinstance(step, ops.DropTableOp):
        place, definition = _kept_place(draft, keeper), _definition(draft, step)
        assert definition is not None
        check = draft.check(*dropped.nothing_refers(keeper.table))
        move = dropped.move_away(keeper.table, place, definition)
        return [f"require({check})", draft.statement(move, once=True)]
    lines = list[str]()
    if step is kept_drops(draft, keeper)[0]:
        saved = _columns_kept(draft, keeper)
        make = zip(("keep", "keep key"), saved.make(), strict=True)
        lines += [f"step({draft.constant(wish, statement)})" for wish, statement in make]
        name = f"keep {', '.join(saved.types)} of {saved.table} ({draft.number(keeper)})"
        more = {"remaining": draft.constant("not kept", saved.not_kept("count(*)"))}
        work = draft.constant("keep batch", saved.keep_batch())
        lines.append(draft.run(name, saved.table, tuple(map(quote, saved.key)), work, more))
        lines.append(f"require({draft.check(*saved.not_kept_rows())})")
    (drop,) = schema.upgrade_statements(step)
    return [*lines, draft.statement(drop, once=True)]


def add_back(
    draft: Draft, step: ops.DropColumnOp | ops.DropTableOp
) -> tuple[Statement, ...] | NoWayBack:
    """The statements that make a column, empty, or a table what it was before the drop."""
    keeper = draft.keeper(step)
    assert keeper is not None
    if isinstance(step, ops.DropTableOp):
        definition = _definition(draft, step)
        assert definition is not None
        return dropped.move_back(keeper.table, _kept_place(draft, keeper), definition)
    column = _dropped_column(draft, step)
    if isinstance(column, NoWayBack):
        return column
    return dropped.add_back(keeper.table, column)


def fill_again(draft: Draft, keeper: BackUp) -> list[str]:
    """Put values back into columns that were dropped, and make them what they were."""
    saved, drops = _columns_kept(draft, keeper), kept_drops(draft, keeper)
    name = f"restore {', '.join(saved.types)} of {saved.table} ({draft.number(keeper)})"
    work = draft.constant(f"restore {' '.join(saved.types)}", saved.restore_batch())
    keys = tuple(f"kept.{quote(part)}" for part in saved.key)
    columns = [
        column
        for drop in drops
        if not isinstance(column := _dropped_column(draft, drop), NoWayBack)
    ]
    whole = dropped.complete(saved.table, columns, draft.catalog.found[draft.number(drops[0]) - 1])
    return [
        draft.run_over(name, saved.table, keys, work, saved.name),
        *(draft.statement(each, once=False) for each in whole),
        draft.statement(Statement(sql=f"DROP TABLE IF EXISTS {saved.name}"), once=True),
    ]

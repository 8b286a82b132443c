"""Rows as the steps of a migration would find and leave them, as FROM items; nothing is written."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from alembic.operations import ops
from sqlalchemy.dialects import postgresql

from datamig_nb import dropped, kept, preview_sql, targets
from datamig_nb.catalog import Catalog
from datamig_nb.checks import QueryCheck, RowCheck
from datamig_nb.compound import CreateTableAs, Exchanged, Swap
from datamig_nb.expressions import expression_text
from datamig_nb.migration import Migration, Step, step_table
from datamig_nb.names import TableName, literal, quote
from datamig_nb.statements import (
    columns_read,
    conditions,
    inlined,
    names_in,
    parenthesised,
    source,
)
from datamig_nb.steps import Backfill, DeleteRows, InsertRows, KeepInStep
from datamig_nb.tables import NOT_YET, Column, Table


def foreseeable(migration: Migration) -> Migration:
    """The migration with the queries of tables that it makes in their place, to be read now.

    A table whose query reads what steps before it write is left to be made.
    """
    queries: dict[TableName, str] = {}
    steps: list[Step] = []
    for number, step in enumerate(migration.steps):
        if isinstance(step, CreateTableAs):
            reads = InsertRows(table=step.table, select=step.select, key=step.key)
            if not any(targets.disturbs(other, reads) for other in migration.steps[:number]):
                queries[step.table] = inlined(step.select, queries)
                continue
        steps.append(_inlined(step, queries))
    return Migration(migration.name, *(steps or migration.steps))


def _inlined(step: Step, queries: Mapping[TableName, str]) -> Step:
    def text(given: str | None) -> Any:
        return given and inlined(given, queries)

    match step:
        case Backfill(assign=assign, where=where, using=using, on=on):
            values = {column: text(value) for column, value in assign.items()}
            return replace(step, assign=values, where=text(where), using=text(using), on=text(on))
        case KeepInStep(assign=assign):
            return replace(step, assign={column: text(value) for column, value in assign.items()})
        case InsertRows(select=select):
            return replace(step, select=text(select))
        case DeleteRows(where=where):
            return replace(step, where=text(where))
        case RowCheck(failing=failing) | QueryCheck(failing=failing):
            return replace(step, failing=text(failing))
        case _:
            return step


def foreseen(step: Backfill | InsertRows | DeleteRows, catalog: Catalog) -> bool:
    """Whether its rows can be read now: none comes from what the migration is yet to make."""
    tables = [name for name, known in catalog.tables.items() if known.estimated_rows == NOT_YET]
    if step.table in tables and not isinstance(step, InsertRows):
        return False
    made = {name.name for name in tables} | catalog.enums
    # its partner is a row of the same table as it is now
    own = re.compile(rf"{re.escape(step.table.sql)}(?![\w.\"])", re.IGNORECASE)
    reads_itself = isinstance(step, Backfill) and own.match(step.using or "") is not None
    for table, columns in catalog.added.items():
        if isinstance(step, InsertRows) or table != step.table or reads_itself:
            made |= {*columns} - (set() if reads_itself else {*catalog.added.get(step.table, ())})
    return not any(names_in(text) & made for text in step.texts)


def rows_before(step: Backfill, earlier: Iterable[Step], catalog: Catalog) -> str:
    """The rows that a backfill finds: the table itself, unless it reads what steps before wrote."""
    before = [
        other
        for other in earlier
        if isinstance(other, Backfill | DeleteRows) and targets.disturbs(other, step)
    ]
    if not before and not catalog.reads_made(*step.texts):
        return step.table.sql
    return predicted_rows(step.table, before, catalog)


def predicted_rows(name: TableName, steps: Sequence[Step], catalog: Catalog) -> str:
    """The table's rows as these steps would leave them; rows put in are left out."""
    table = catalog.table(name)
    new = catalog.added.get(name, {})
    assign = {column: _initial(made, catalog.enums) for column, made in new.items()}
    rows = name.sql
    for step in steps:
        if not isinstance(step, Backfill | DeleteRows) or step.table != name:
            continue
        if not foreseen(step, catalog):
            continue
        is_joined = isinstance(step, Backfill) and step.using is not None
        if is_joined or isinstance(step, DeleteRows) or columns_read("\n".join(step.texts), assign):
            rows = preview_sql.predicted(table, assign, rows)
            columns = (*table.columns, *(_column(c) for c in assign if not table.has(c)))
            table, assign = replace(table, columns=columns), dict[str, str]()
        if isinstance(step, DeleteRows):
            rows = (
                f"(SELECT * FROM {rows}\n WHERE ({step.where}) IS NOT TRUE) AS {quote(name.name)}"
            )
        elif is_joined:
            rows = _with_partners(step, table, rows, catalog)
        else:
            for column, text in step.assign.items():
                before = assign.get(column, quote(column))
                assign[column] = _value(step, column, text, before, catalog)
    rows = preview_sql.predicted(table, assign, rows)
    changed = {each.column: quote(each.new) for each in changed_types(name, steps)}
    if not changed:
        return rows
    columns = (*table.columns, *(_column(c) for c in assign if not table.has(c)))
    return preview_sql.predicted(replace(table, columns=columns), changed, rows)


def changed_types(name: TableName, steps: Iterable[Step]) -> list[Exchanged]:
    """The columns of a table that get another type."""
    swaps = [step for step in steps if isinstance(step, Swap)]
    return [each for swap in swaps for each in swap.columns if each.table == name]


def joined(step: Backfill, rows: str) -> tuple[Backfill, str]:
    """A backfill with partners as one without, over rows that hold its values already."""
    name = quote(step.table.name)
    values = {column: quote(f"→ {column}"[:20] + f" {n}") for n, column in enumerate(step.assign)}
    given = ",\n       ".join(f"({text}) AS {values[c]}" for c, text in step.assign.items())
    where = conditions(parenthesised(step.on), parenthesised(step.where))
    item = (
        f"(SELECT {name}.*,\n       {given}\n  FROM {rows}, {step.using}\n WHERE {where}) AS {name}"
    )
    return replace(step, assign=values, where=None, using=None, on=None), item


def rows_told(step: Step, migration: Migration, catalog: Catalog) -> list[tuple[str, str, str]]:
    """What there is to say of a step's rows: count queries, what is counted, and what follows."""
    match step:
        case Backfill() | InsertRows() | DeleteRows() if not foreseen(step, catalog):
            what = f"rows of {step.table} cannot be foreseen: {step}"
            return [("SELECT NULL::bigint", what, "rehearse it: it reads what is yet to be made")]
        case Backfill(using=str() as using):
            partner = f"SELECT FROM {step.using} WHERE {conditions(parenthesised(step.on))}"
            query = f"SELECT count(*) FROM {step.table.sql}\n WHERE NOT EXISTS ({partner})"
            name = using.splitlines()[-1].removeprefix(") ")  # of a long query its name
            what = f"rows of {step.table} find no partner in {name}"
            return [(query, what, "they are left alone")]
        case InsertRows():
            after = "" if step.on_conflict is None else f", ON CONFLICT {step.on_conflict}"
            what = f"rows would be put into {step.table}{after}"
            follows = "the downgrade takes them out, unless they were edited"
            return [(f"SELECT count(*) FROM {source(step)}", what, follows)]
        case DeleteRows():
            follows = "the downgrade brings them back" if step.keep else "they are not kept"
            return [
                (kept.still_there(part), f"rows would be deleted from {part.table}", follows)
                for part in targets.deletions(step, catalog.tables)
            ]
        case ops.DropColumnOp() | ops.DropTableOp():
            return _dropped(step, migration, catalog)
        case _:
            return []


def _dropped(
    step: ops.DropColumnOp | ops.DropTableOp, migration: Migration, catalog: Catalog
) -> list[tuple[str, str, str]]:
    table, number = step_table(step), [*map(id, migration.steps)].index(id(step))
    if catalog.found[number].definition is None:
        return []  # it is not there, or yet to be made
    kept_by = dropped.kept_by(step, migration.steps)
    follows = "they are lost for good; drop_columns() and drop_tables() keep them"
    if kept_by is not None:
        follows = "they are kept, and the downgrade brings them back"
    if isinstance(step, ops.DropTableOp):
        return [(f"SELECT count(*) FROM {table.sql}", f"rows go with the table {table}", follows)]
    query = f"SELECT count({quote(step.column_name)}) FROM {table.sql}"
    return [(query, f"values go with the column {step.column_name} of {table}", follows)]


def _value(step: Backfill, column: str, text: str, before: str, catalog: Catalog) -> str:
    """A column's value after a step, over the row before it."""
    if step.where is None:
        return text
    return _case(step, column, step.where, text, before, catalog)


def _case(
    step: Backfill, column: str, condition: str, text: str, before: str, catalog: Catalog
) -> str:
    is_text = catalog.column_type(step.table, column).is_text
    if is_text or (step.table, column) in catalog.misfit_columns:
        text, before = f"({text})::text", f"{before}::text"
    return f"CASE WHEN ({condition}) THEN {text} ELSE {before} END"


def _with_partners(step: Backfill, table: Table, rows: str, catalog: Catalog) -> str:
    """Rows with the values that a backfill takes from their partners, as a join."""
    name, partner = quote(step.table.name), quote("→")
    values = {column: f"{partner}.{quote(f'→ {n}')}" for n, column in enumerate(step.assign)}
    given = ", ".join(
        f"({text}) AS {values[column].partition('.')[2]}" for column, text in step.assign.items()
    )
    where = conditions(parenthesised(step.on), parenthesised(step.where))
    after = {
        column: _case(step, column, f"{partner}.found", value, f"{name}.{quote(column)}", catalog)
        for column, value in values.items()
    }
    source = (
        f"{rows} LEFT JOIN LATERAL (\n"
        f"SELECT {given}, TRUE AS found\n  FROM {step.using}\n WHERE {where}\n"
        f") AS {partner} ON TRUE"
    )
    qualified = [f"{name}.{quote(c.name)}" for c in table.columns if c.name not in after]
    qualified += [f"{text} AS {quote(column)}" for column, text in after.items()]
    key = [] if table.key else [f"{name}.ctid"]
    return f"(SELECT {', '.join([*key, *qualified])}\n  FROM {source}) AS {name}"


def _column(name: str) -> Column:
    return Column(name=name, type="", not_null=False, length=None, generated=False)


def _initial(column: sa.Column[Any], enums: Collection[str] = ()) -> str:
    """What a new column holds before anything fills it."""
    default = getattr(column.server_default, "arg", None)
    text = "NULL" if default is None else expression_text(default)
    if isinstance(default, str):
        text = literal(default)
    type = column.type.compile(dialect=postgresql.dialect())
    if isinstance(column.type, sa.Enum) or names_in(type) & {*enums}:  # it may be yet to be made
        return text
    return f"CAST({text} AS {type})"

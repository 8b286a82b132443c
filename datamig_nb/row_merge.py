"""A merge of duplicates as the steps that carry it out, from the keys that the catalog knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from datamig_nb.checks import check
from datamig_nb.compound import CreateTableAs, MergeRows, create_table_as
from datamig_nb.errors import MigrationError
from datamig_nb.expressions import listed
from datamig_nb.migration import Step
from datamig_nb.names import TableName, cut, quote
from datamig_nb.steps import back_up, backfill, delete_rows, insert_rows
from datamig_nb.tables import Reference, Table, read_table

# Stands for the map in statements.
_MERGED = "merged_into"


def merge(connection: sa.Connection, step: MergeRows) -> list[Step]:
    """The map of duplicates, their children, and themselves.

    Raises
    ------
    MigrationError
        If what is to be repointed has no key by which its old values could be kept.
    """
    table = read_table(connection, step.table)
    if not table.key:
        return [_delete_all_but_first(step, table)]
    references = [*table.referenced_by, *(_unchecked(s, step, table) for s in step.repoint.items())]
    survivors = _survivors(step, table, references)
    steps: list[Step] = [survivors]
    for number, reference in enumerate(references, 1):
        child = read_table(connection, _child(step, reference))
        if not child.key:
            raise MigrationError(
                f"{str(child.name)!r} refers to {str(step.table)!r} and has no key, so the values"
                " that are repointed could not be kept",
                "give it a primary key, or drop its foreign key and repoint it with sql()",
            )
        steps += _repoint(step, reference, child, survivors, number)
    keys = ", ".join(map(quote, table.key))
    gone = f"({keys}) IN (SELECT {keys} FROM {step.map.sql})"
    return [*steps, delete_rows(step.table, gone)]


def _unchecked(given: tuple[TableName, str], step: MergeRows, table: Table) -> Reference:
    child, column = given
    if len(table.key) != 1:
        raise MigrationError(
            f"{column!r} of {str(child)!r} cannot hold the key of {str(step.table)!r}, which has"
            f" the columns {listed(table.key)}",
            "give it a foreign key, or repoint it with backfill()",
        )
    return Reference(
        name="",
        child=child,
        visible=True,
        columns=(column,),
        parent_columns=table.key,
        on_delete=None,
    )


def _child(step: MergeRows, reference: Reference) -> TableName:
    """The child as the user would name it: without schema where the table has none."""
    if reference.is_of(step.table):
        return step.table
    if step.table.schema is None and reference.visible:
        return TableName(None, reference.child.name)
    return reference.child


def _survivors(step: MergeRows, table: Table, references: Sequence[Reference]) -> CreateTableAs:
    """Each row that goes, with all that is referred to of it and of the one that stays."""
    asked = dict.fromkeys([*table.key, *(c for each in references for c in each.parent_columns)])
    keys = ", ".join(map(quote, table.key))
    news = ", ".join(map(_kept, table.key))
    firsts = ",\n           ".join(
        f"first_value({quote(column)}) OVER same AS {_kept(column)}" for column in asked
    )
    present = [] if step.nulls else [f"({text}) IS NOT NULL" for text in step.same]
    where = f"\n     WHERE {' AND '.join(present)}" if present else ""
    order = keys if step.keep is None else f"{step.keep}, {keys}"
    select = (
        f"SELECT * FROM (\n    SELECT {', '.join(map(quote, asked))},\n           {firsts}\n"
        f"      FROM {step.table.sql}{where}\n"
        f"    WINDOW same AS (PARTITION BY {', '.join(step.same)} ORDER BY {order})\n"
        f") AS row_and_first\n WHERE ({keys}) IS DISTINCT FROM ({news})"
    )
    return create_table_as(step.map, select, key=table.key)


def _kept(column: str) -> str:
    return quote(f"kept_{column}")


def _delete_all_but_first(step: MergeRows, table: Table) -> Step:
    """Without a key only the place of a row tells it from one that is the same."""
    if step.keep is not None or table.referenced_by or step.repoint:
        raise MigrationError(
            f"{str(step.table)!r} has no key, so one of its rows cannot be told from another",
            "leave keep= and repoint= out, or give it a primary key",
        )
    there, here = "same_row.value", f"jsonb_build_array({', '.join(step.same)})"
    if not step.nulls:
        here = f"ROW({', '.join(step.same)})"
    names = {f"value_{n}": text for n, text in enumerate(step.same, 1)}
    if step.nulls:
        inner, equal = f"{here} AS value", f"{there} = {here}"
    else:
        inner = ", ".join(f"({text}) AS {name}" for name, text in names.items())
        equal = " AND ".join(f"same_row.{name} = ({text})" for name, text in names.items())
    rows = f"(SELECT ctid AS place, {inner} FROM {step.table.sql}) AS same_row"
    return delete_rows(
        step.table,
        f"EXISTS (\n    SELECT FROM {rows}\n"
        f"     WHERE {equal} AND same_row.place < {quote(step.table.name)}.ctid)",
    )


# ---------------------------------------------------------------- children


def _repoint(
    step: MergeRows, reference: Reference, child: Table, survivors: CreateTableAs, number: int
) -> list[Step]:
    """The steps that make a child refer to the rows that stay."""
    news = {
        column: f"{_MERGED}.{_kept(parent)}"
        for column, parent in zip(reference.columns, reference.parent_columns, strict=True)
    }
    on = " AND ".join(
        f"{_MERGED}.{quote(parent)} = {quote(child.name.name)}.{quote(column)}"
        for column, parent in zip(reference.columns, reference.parent_columns, strict=True)
    )
    steps: list[Step] = []
    is_key = bool({*news} & {*child.key})
    for place, unique in enumerate(child.unique, 1):
        if not {*news} & {*unique}:
            continue
        if step.collisions == "stop":
            colliding = _colliding(child, unique, news, on, f"(\n{survivors.select}\n)")
            name = f"no two rows of {child.name} become the same {listed(unique)}"
            steps.append(check(name, colliding, before=True))
        elif not is_key:
            gone = TableName("datamig", cut(f"collided_{step.table.name}_{number}_{place}"))
            steps.append(
                create_table_as(
                    gone, _colliding(child, unique, news, on, step.map.sql), key=child.key
                )
            )
            keys = ", ".join(map(quote, child.key))
            steps.append(delete_rows(child.name, f"({keys}) IN (SELECT {keys} FROM {gone.sql})"))
    if is_key:
        return [*steps, *_replace_rows(step, reference, child, news, on)]
    source = f"{step.map.sql} AS {_MERGED}"
    return [
        *steps,
        back_up(child.name, *news),
        backfill(child.name, news, using=source, on=on),
    ]


def _colliding(
    child: Table, unique: Sequence[str], news: Mapping[str, str], on: str, source: str
) -> str:
    """Keys of the rows that would break a unique index: all of the same but one."""
    name = quote(child.name.name)
    keys = ", ".join(f"{name}.{quote(column)}" for column in child.key)
    values = [
        f"coalesce({news[column]}, {name}.{quote(column)})"
        if column in news
        else f"{name}.{quote(column)}"
        for column in unique
    ]
    present = " AND ".join(f"{name}.{quote(column)} IS NOT NULL" for column in unique)
    moved = next(iter(news.values()))
    return (
        f"SELECT {', '.join(map(quote, child.key))} FROM (\n    SELECT {keys},\n"
        f"           row_number() OVER (PARTITION BY {', '.join(values)}\n"
        f"                              ORDER BY {moved} IS NOT NULL, {keys}) AS place\n"
        f"      FROM {child.name.sql} LEFT JOIN {source} AS {_MERGED} ON {on}\n"
        f"     WHERE {present}\n) AS repointed\n WHERE place > 1"
    )


def _replace_rows(
    step: MergeRows, reference: Reference, child: Table, news: Mapping[str, str], on: str
) -> list[Step]:
    """A row whose key changes is another row: put in, and the old one deleted."""
    columns = [column.name for column in child.columns if not column.computed]
    name = quote(child.name.name)
    given = [
        f"{news[column]} AS {quote(column)}" if column in news else f"{name}.{quote(column)}"
        for column in columns
    ]
    targets = ", ".join(news.get(column, f"{name}.{quote(column)}") for column in child.key)
    keys = ", ".join(f"{name}.{quote(column)}" for column in child.key)
    select = (
        f"SELECT DISTINCT ON ({targets}) {', '.join(given)}\n"
        f"  FROM {child.name.sql} JOIN {step.map.sql} AS {_MERGED} ON {on}\n"
        f" ORDER BY {targets}, {keys}"
    )
    olds = ", ".join(map(quote, reference.columns))
    parents = ", ".join(map(quote, reference.parent_columns))
    return [
        insert_rows(child.name, select, key=child.key, columns=columns, on_conflict="nothing"),
        delete_rows(child.name, f"({olds}) IN (SELECT {parents} FROM {step.map.sql})"),
    ]

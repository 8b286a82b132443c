"""A change of type as the steps that carry it out, from what the catalog says of the column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from datamig_nb.checks import QueryCheck, RowCheck, check
from datamig_nb.compound import ChangeType, Hanging, Swap
from datamig_nb.migration import Step
from datamig_nb.names import quote
from datamig_nb.operations import add_column, alter_column
from datamig_nb.stages import failing_rows
from datamig_nb.statements import names_in
from datamig_nb.step_effects import freed, made
from datamig_nb.steps import Backfill, Sql, backfill, keep_in_step
from datamig_nb.type_change_column import exchanged
from datamig_nb.type_change_dependents import all_hanging
from datamig_nb.type_change_value import Change, change_of, reads_new_columns


class Written(sa.types.UserDefinedType[Any]):
    """A type as it is written in SQL."""

    cache_ok = True

    def __init__(self, text: str) -> None:
        self.text = text

    def get_col_spec(self, **_: object) -> str:
        """The type as SQL."""
        return self.text


def retype(
    connection: sa.Connection, steps: Sequence[ChangeType], earlier: Sequence[Step], major: int
) -> list[Step]:
    """The steps of changes that take place together.

    Raises
    ------
    MigrationError
        If something hangs on a column that cannot go along.
    """
    gone = {thing for step in earlier for thing in freed(step)}
    new = {thing[1].name for step in earlier for thing in made(step)}
    changes = [change_of(connection, step, major, new) for step in steps]
    # What a step before makes of the row can be asked about only behind it.
    new |= {column for step in earlier if isinstance(step, Backfill) for column in step.assign}
    assigned = {
        table: {c.new: c.value for c in changes if c.step.table == table}
        for table in dict.fromkeys(change.step.table for change in changes)
    }
    keeps = {table: keep_in_step(table, assign) for table, assign in assigned.items()}
    hanging = all_hanging(connection, changes, gone, keeps, _dropped(earlier))
    found: list[Step] = []
    for change in changes:
        column = sa.Column(change.new, Written(change.type))
        table = change.step.table
        found.append(add_column(table.name, column, schema=table.schema))
        reads_new = reads_new_columns(change, changes) or names_in(change.value) & new
        if change.step.otherwise is None and not reads_new:
            name = f"every {change.step.column} of {table} has a value of type {change.type}"
            failing = f"{change.has}\n   AND ({change.value}) IS NULL"
            found.append(RowCheck(name=name, table=table, failing=failing, before=True))
            found += _collisions(change, hanging)
    for table, assign in assigned.items():
        found += [keeps[table], backfill(table, assign)]
    columns = [exchanged(connection, change, changes) for change in changes]
    for change, column in zip(changes, columns, strict=True):
        table = change.step.table
        if change.step.otherwise is None:
            # Rows that were written meanwhile, too.
            lost = f"{change.has} AND {quote(change.new)} IS NULL"
            rows = failing_rows(table, lost, change.table.key)
            found.append(check(f"no {change.step.column} of {table} is lost", rows))
        if column.not_null:
            found.append(alter_column(table.name, change.new, nullable=False, schema=table.schema))
    return [*found, Swap(columns=tuple(columns), hanging=tuple(hanging))]


def _dropped(earlier: Sequence[Step]) -> set[str]:
    """Every name in statements of the user's that drop something."""
    texts = (step.statement for step in earlier if isinstance(step, Sql))
    return {name for text in texts if re.match(r"drop\b", text, re.I) for name in names_in(text)}


def _collisions(change: Change, hanging: Sequence[Hanging]) -> list[Step]:
    """That values which were unique stay so, asked before the first write."""
    found: list[Step] = []
    for each in hanging:
        if each.table != change.step.table or each.columns != (change.step.column,):
            continue
        found.append(
            QueryCheck(
                name=f"no two rows of {each.table} get the same {change.step.column}",
                failing=f"SELECT value, count(*) AS times\n"
                f"  FROM (SELECT {change.value} AS value FROM {each.table.sql}) AS new\n"
                " WHERE value IS NOT NULL GROUP BY value HAVING count(*) > 1 ORDER BY value",
                before=True,
            )
        )
    return found

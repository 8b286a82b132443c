"""Functions that return several steps which belong together; they hold no logic beyond choosing."""

from __future__ import annotations

from collections.abc import Mapping

from datamig_nb.checks import no_nulls
from datamig_nb.expressions import Expression, expressions
from datamig_nb.migration import Step
from datamig_nb.names import TableName, quote
from datamig_nb.operations import alter_column
from datamig_nb.steps import back_up, backfill


def fill_nulls(
    table: str, values: Mapping[str, Expression], *, not_null: bool = True, keep: bool = True
) -> tuple[Step, ...]:
    """Give rows that have NULL in a column a value there, then make the columns NOT NULL.

    All columns are filled in one walk, and rows without a NULL are not written.

    Parameters
    ----------
    values
        Column -> SQL expression over the row: ``{"state": "'new'", "key": "'key_' || id"}``.
    not_null
        False leaves the columns as they are.
    keep
        Which rows had NULL is kept, so that the downgrade gives it back; False: it does not.
    """
    given = expressions("fill_nulls", values)
    filled = {column: f"coalesce({quote(column)}, {text})" for column, text in given.items()}
    where = " OR ".join(f"{quote(column)} IS NULL" for column in given)
    name = TableName.parse(table)
    steps: list[Step] = [back_up(table, *given)] if keep else []
    steps += [backfill(table, filled, where=where), no_nulls(table, *given)]
    if not_null:
        steps += [
            alter_column(name.name, column, nullable=False, schema=name.schema) for column in given
        ]
    return tuple(steps)

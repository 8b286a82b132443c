"""The migrations that people want most, by name.

Each function only chooses steps: printing its result shows them, and each can be replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from datamig_nb import expr
from datamig_nb.checks import allowed_values, no_nulls, rows_check
from datamig_nb.errors import MigrationError
from datamig_nb.migration import Migration, Step
from datamig_nb.names import TableName, cut, literal, quote
from datamig_nb.operations import add_column, alter_column, create_check_constraint, create_enum
from datamig_nb.step_groups import drop_columns
from datamig_nb.steps import backfill, keep_in_step


def map_values(
    table: str,
    column: str,
    values: Mapping[str | None, str | None],
    *,
    into: str,
    type: Literal["varchar", "enum"] = "varchar",
    unmapped: Literal["fail", "keep"] = "fail",
    nullable: bool = True,
) -> Migration:
    """Map the values of a text column to new ones, in a new column beside it.

    The old column stays as it is, so nothing is lost where several values become one; a later
    migration drops it.  A trigger gives rows that the application writes meanwhile their value.

    Parameters
    ----------
    values
        Old value -> new value.  The key None says what becomes of NULL; a value of None gives
        NULL.  Values are compared exactly, spaces and case included.
    into
        Name of the new column.
    type
        ``"varchar"`` with a CHECK of the new values, or ``"enum"``: a PostgreSQL enum type named
        ``<table>_<into>``, in the table's schema.
    unmapped
        ``"fail"``: rows with a value that is no key (NULL included, unless None is one) stop the
        migration before its first write.  ``"keep"``: their value is taken over as it is; there
        is no CHECK then.
    nullable
        False makes the new column NOT NULL at the end: the application must write mapped values
        from then on.

    Raises
    ------
    MigrationError
        If there is nothing to map, or the wishes contradict each other.
    """
    _require_map(values, type, unmapped, nullable)
    name, old = TableName.parse(table), quote(column)
    targets = tuple(dict.fromkeys(value for value in values.values() if value is not None))
    enum = TableName(name.schema, f"{name.name}_{into}")
    expression = _case(old, values, unmapped)
    steps: list[Step] = []
    if unmapped == "fail":
        steps.append(_all_mapped(table, column, values))
    if type == "enum":
        steps.append(create_enum(enum.sql, *targets))
    steps += [
        add_column(name.name, sa.Column(into, _type(type, targets, enum)), schema=name.schema),
        keep_in_step(table, {into: expression}),
        backfill(table, {into: expression}),
        _map_holds(table, column, into, values, unmapped),
    ]
    if unmapped == "fail":
        steps.append(allowed_values(table, into, targets))
        if type == "varchar":
            constraint = cut(f"{name.name}_{into}_check")
            allowed = f"{quote(into)} IN {_listed(targets)}"
            steps.append(
                create_check_constraint(constraint, name.name, allowed, schema=name.schema)
            )
    if not nullable:
        steps += [
            no_nulls(table, into),
            alter_column(name.name, into, nullable=False, schema=name.schema),
        ]
    return Migration(f"map {column} of {table} to {into}", *steps)


def split_column(
    table: str,
    column: str,
    *,
    into: tuple[str, str] = ("first_name", "last_name"),
    type: sa.types.TypeEngine[Any] | None = None,
    nullable: bool = True,
    drop: bool = False,
) -> Migration:
    """Split full names into first and last name, in two new columns.

    The rules, in this order: runs of white space (tabs and no-break spaces too) count as one, at
    the ends as none; the first word is the first name, together with initials (``George H.``) and
    a nickname in quotes (``Paul 'The Bear'``) right behind it; the rest is the last name, suffixes
    included (``Acuff Jr.``).  A name of one word is a first name with no last name (NULL); a blank
    name gives two NULLs.  Nothing can know that ``Joe Barry Carroll`` has two first names, or that
    ``Yao Ming`` has his family's name first: preview shows what the rules make of the names.

    The full name stays; a trigger keeps the parts in step with it.

    Parameters
    ----------
    into
        Names of the two new columns.
    type
        Type of both; text by default.  A name too long for it is found by the preview, and stops
        the migration before its first write.
    nullable
        False makes the first column NOT NULL at the end.
    drop
        True drops the full name at the end, and keeps it for the way back; there is no trigger
        then: the application writes the parts by now.

    Raises
    ------
    MigrationError
        If both new columns have one name.
    """
    name = TableName.parse(table)
    first, last = into
    if first == last:
        raise MigrationError(f"both parts would go into {first!r}", "give into= two names")
    parts = expr.name_parts(quote(column))
    wanted: sa.types.TypeEngine[Any] = type if type is not None else sa.Text()
    steps: list[Step] = [
        add_column(name.name, sa.Column(first, wanted), schema=name.schema),
        add_column(name.name, sa.Column(last, wanted), schema=name.schema),
        *([] if drop else [keep_in_step(table, dict(zip(into, parts, strict=True)))]),
        backfill(table, dict(zip(into, parts, strict=True))),
        rows_check(
            f"{first} and {last} hold every letter of {column}",
            table,
            f"regexp_replace(concat({quote(first)}, {quote(last)}), '[{expr.SPACES}]', '', 'g')"
            f"\n<> regexp_replace({quote(column)}, '[{expr.SPACES}]', '', 'g')",
        ),
        rows_check(
            f"every name has a {first}",
            table,
            f"{quote(first)} IS NULL AND {quote(column)} ~ '[^{expr.SPACES}]'",
        ),
    ]
    if not nullable:
        steps += [
            no_nulls(table, first),
            alter_column(name.name, first, nullable=False, schema=name.schema),
        ]
    if drop:
        steps += drop_columns(table, column)
    return Migration(f"split {column} of {table} into {first} and {last}", *steps)


# ---------------------------------------------------------------- map_values


def _require_map(
    values: Mapping[str | None, str | None], type: str, unmapped: str, nullable: bool
) -> None:
    if not any(value is not None for value in values.values()):
        raise MigrationError("there is nothing to map", "give {old value: new value}")
    if type not in ("varchar", "enum") or unmapped not in ("fail", "keep"):
        raise MigrationError(
            f"type={type!r} or unmapped={unmapped!r} is not known",
            "type is 'varchar' or 'enum', unmapped is 'fail' or 'keep'",
        )
    if type == "enum" and unmapped == "keep":
        raise MigrationError(
            "an enum cannot keep values that are not its labels", "map them, or use type='varchar'"
        )
    if not nullable and None in values.values():
        raise MigrationError(
            "a value is mapped to NULL, but the column shall be NOT NULL",
            "map it to something, or leave nullable=True",
        )


def _case(column: str, values: Mapping[str | None, str | None], unmapped: str) -> str:
    """The map as one CASE, a line for each new value."""
    lines = [
        f"    WHEN {_is_one_of(column, olds, '    ')} THEN {literal(new)}"
        for new, olds in _olds_by_new(values).items()
    ]
    if unmapped == "keep":
        lines.append(f"    ELSE {column}")
    return "\n".join(["CASE", *lines, "END"])


def _olds_by_new(
    values: Mapping[str | None, str | None],
) -> dict[str | None, list[str | None]]:
    olds: dict[str | None, list[str | None]] = {}
    for old, new in values.items():
        olds.setdefault(new, []).append(old)
    return olds


def _is_one_of(column: str, values: Sequence[str | None], indent: str = "") -> str:
    """Condition: the column has one of the values, of which NULL may be one."""
    present = [value for value in values if value is not None]
    conditions = [f"{column} IS NULL"] if None in values else []
    if len(present) == 1:
        conditions.append(f"{column} = {literal(present[0])}")
    elif present:
        conditions.append(f"{column} IN {_listed(present, indent)}")
    return " OR ".join(conditions)


def _listed(values: Sequence[str], indent: str = "") -> str:
    """The values in parentheses, on lines of their own where one does not hold them."""
    listed = ", ".join(map(literal, values))
    if len(listed) <= 60:
        return f"({listed})"
    lines = [""]
    for value in map(literal, values):
        if lines[-1] and len(lines[-1]) + len(value) > 80:
            lines.append("")
        lines[-1] += f"{value}, "
    body = "".join(f"\n{indent}    {line.removesuffix(' ')}" for line in lines)
    return f"({body.removesuffix(',')}\n{indent})"


def _all_mapped(table: str, column: str, values: Mapping[str | None, str | None]) -> Step:
    known = [old for old in values if old is not None]
    old = quote(column)
    failing = f"{old} NOT IN {_listed(known)}" if known else f"{old} IS NOT NULL"
    null = "" if None in values else f" OR {old} IS NULL"
    return rows_check(
        f"every {column} of {table} has a new value", table, failing + null, before=True
    )


def _map_holds(
    table: str,
    column: str,
    into: str,
    values: Mapping[str | None, str | None],
    unmapped: str,
) -> Step:
    """The map looked up as a table, not computed by CASE again."""
    # The table's name before the column's: inside, one of the map's columns might be called so.
    name, old = quote(TableName.parse(table).name), quote(column)
    keep, by = unmapped == "keep", "    " if unmapped == "keep" else ""
    pairs = ",".join(f"\n{by}        ({literal(o)}, {literal(new)})" for o, new in values.items())
    looked_up = (
        f"(\n{by}    SELECT new_value\n{by}      FROM (VALUES{pairs}\n"
        f"{by}      ) AS value_map (old_value, new_value)\n"
        f"{by}     WHERE old_value IS NOT DISTINCT FROM {name}.{old}\n{by})"
    )
    if keep:
        known = _is_one_of(old, list(values), by)
        looked_up = f"CASE\n    WHEN {known} THEN {looked_up}\n    ELSE {old}\nEND"
    return rows_check(
        f"{into} of {table} is what the map says",
        table,
        f"{quote(into)}::text IS DISTINCT FROM {looked_up}",
    )


def _type(kind: str, targets: Sequence[str], enum: TableName) -> sa.types.TypeEngine[Any]:
    if kind == "varchar":
        return sa.String()
    return postgresql.ENUM(*targets, name=enum.name, schema=enum.schema, create_type=False)

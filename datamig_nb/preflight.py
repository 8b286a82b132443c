"""What must hold before a migration's schema steps begin: pure text.

A step says IF NOT EXISTS so that it may be repeated; on its first run that would pass over, and
its downgrade would drop, an object of somebody else's that has the name.  So the names are looked
up before the first write, once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from alembic.operations import ops
from sqlalchemy.dialects.postgresql import DOMAIN

from datamig_nb import ddl, dropped, stages
from datamig_nb.compound import CreateTableAs, Swap
from datamig_nb.migration import CreateEnum, Step, step_table
from datamig_nb.names import TableName, literal, sqlalchemy_dialect
from datamig_nb.stages import Condition
from datamig_nb.step_effects import Thing, freed, made, relation

#: A condition, and what must not have been touched by an earlier step for it to be asked.
_Wanted: TypeAlias = tuple[Thing, Condition]


def preflight(step: Step, earlier: Sequence[Step] = ()) -> tuple[Condition, ...]:
    """What a step asks of the database before the migration's first write.

    Parameters
    ----------
    earlier
        The steps before it in the migration: what they make or take away is not asked for.
    """
    touched = {thing for before in earlier for thing in (*made(before), *freed(before))}
    return tuple(
        condition
        for thing, condition in _wanted(step, earlier)
        if thing not in touched and relation(thing[1]) not in touched
    )


def nothing_yet(conditions: Sequence[Condition]) -> list[Condition]:
    """The conditions, with those that a name is not taken yet as one."""
    free = [condition for condition in conditions if condition.holds.endswith(" yet")]
    if len(free) < 2:
        return [*conditions]
    failing = "\n UNION ALL\n".join(dict.fromkeys(condition.failing for condition in free))
    rest = (condition for condition in conditions if condition not in free)
    return [Condition("nothing has the names yet that this revision gives", failing), *rest]


def definition_query(step: Step) -> str | None:
    """Query of what a step drops or replaces, for :class:`Found`; None where nothing is asked."""
    match step:
        case ops.AlterColumnOp(existing_server_default=False) if (
            step.modify_server_default is not False
        ):
            row = stages.column_row(step_table(step), step.column_name, _oid(step_table(step)))
            of = row.replace(
                "pg_attribute", "pg_attribute ON attrelid = adrelid AND attnum = adnum"
            )
            return (
                f"SELECT (SELECT pg_get_expr(adbin, adrelid)\n          FROM pg_attrdef JOIN {of})"
            )
        case ops.DropColumnOp():
            return dropped.column_query(step_table(step), step.column_name)
        case ops.DropTableOp():
            return dropped.table_query(step_table(step))
        case ops.DropIndexOp():
            return (
                "SELECT pg_get_indexdef(indexrelid), nspname, relname\n"
                "  FROM pg_index JOIN pg_class ON pg_class.oid = indrelid\n"
                "  JOIN pg_namespace ON pg_namespace.oid = relnamespace\n"
                f" WHERE indexrelid = {_oid(TableName(step.schema, str(step.index_name)))}"
            )
        case ops.DropConstraintOp():
            table = step_table(step)
            return (
                "SELECT contype::text, pg_get_constraintdef(oid),\n"
                "       CASE WHEN contype IN ('p', 'u') THEN pg_get_indexdef(conindid) END\n"
                f"  FROM {stages.constraint_row(table, str(step.constraint_name), _oid(table))}"
            )
        case _:
            return None


# ---------------------------------------------------------------- what steps ask for


def _wanted(step: Step, earlier: Sequence[Step]) -> list[_Wanted]:
    match step:
        case ops.AddColumnOp():
            return [_no_column(step_table(step), step.column.name), *_same_for_all_rows(step)]
        case ops.DropColumnOp():
            return [_a_column(step_table(step), step.column_name)]
        case ops.AlterColumnOp():
            return _change_wanted(step)
        case ops.CreateTableOp():
            indexes = sorted(str(index.name) for index in ddl.table_of(step).indexes)
            names = [step.table_name, *indexes]
            return [_no_relation(TableName(step.schema, name)) for name in names]
        case ops.DropTableOp():
            return [_a_relation(step_table(step))]
        case ops.RenameTableOp(new_table_name=new):
            return [_a_relation(step_table(step)), _no_relation(TableName(step.schema, new))]
        case ops.CreateIndexOp():
            return [_no_index(step_table(step), str(step.index_name))]
        case ops.DropIndexOp():
            return [_a_relation(TableName(step.schema, str(step.index_name)))]
        case ops.CreateUniqueConstraintOp() | ops.CreatePrimaryKeyOp():
            table, name = step_table(step), str(step.constraint_name)
            wanted = [_no_constraint(table, name), _no_index(table, name)]
            if isinstance(step, ops.CreatePrimaryKeyOp):
                wanted += _key_wanted(step, earlier)
            return wanted
        case ops.CreateForeignKeyOp() | ops.CreateCheckConstraintOp():
            return [_no_constraint(step_table(step), str(step.constraint_name))]
        case ops.DropConstraintOp():
            return [_a_constraint(step_table(step), str(step.constraint_name))]
        case CreateTableAs(table=table):
            return [_no_relation(table)]
        case Swap(columns=columns):
            return [_no_column(each.table, each.old) for each in columns if each.keep]
        case CreateEnum(name=name):
            failing = (
                "SELECT typnamespace::regnamespace::text, typname FROM pg_type\n"
                f" WHERE oid = to_regtype({literal(name.sql)})"
            )
            return [(("type", name, ""), Condition(f"no type {name} yet", failing))]
        case _:
            return []


def _change_wanted(step: ops.AlterColumnOp) -> list[_Wanted]:
    table, column = step_table(step), step.column_name
    wanted: list[_Wanted] = []
    if step.modify_nullable is not None:
        holds, state = (
            (f"{column} of {table} is NOT NULL so far", "NOT attnotnull")
            if step.modify_nullable
            else (f"{column} of {table} may be NULL so far", "attnotnull")
        )
        row = stages.column_row(table, column, _oid(table))
        failing = f"SELECT attname FROM {row} AND {state}"
        wanted.append((("column", table, column), Condition(holds, failing)))
    if step.modify_nullable is False:
        wanted.append(_no_constraint(table, stages.not_null_name(column)))
    if step.modify_name is not None:
        wanted += [_a_column(table, column), _no_column(table, step.modify_name)]
    return wanted


def _same_for_all_rows(step: ops.AddColumnOp) -> list[_Wanted]:
    """Else PostgreSQL would compute values row by row, under a lock that stops readers too."""
    table, column = step_table(step), step.column.name
    wanted: list[_Wanted] = []
    default = ddl.bare(ddl.add_column(step)[0]).partition(" DEFAULT ")[2]
    called = sorted({name.lower() for name in re.findall(r"([a-z_]\w*)\s*\(", default, re.I)})
    if called:
        failing = (
            f"SELECT DISTINCT proname FROM pg_proc\n WHERE proname IN"
            f" ({', '.join(map(literal, called))})\n"
            "   AND provolatile = 'v' AND pg_function_is_visible(oid)"
        )
        holds = f"the default of {column} of {table} is the same for all rows"
        wanted.append((("default", table, column), Condition(holds, failing)))
    if isinstance(step.column.type, DOMAIN):
        name = step.column.type.compile(dialect=sqlalchemy_dialect())
        failing = (
            f"SELECT typname FROM pg_type\n WHERE oid = to_regtype({literal(name)})\n"
            f"   AND {stages.exists('pg_constraint WHERE contypid = pg_type.oid')}"
        )
        holds = f"the domain of {column} of {table} has no constraint of its own"
        wanted.append((("domain", table, column), Condition(holds, failing)))
    return wanted


def _key_wanted(step: ops.CreatePrimaryKeyOp, earlier: Sequence[Step]) -> list[_Wanted]:
    table, name = step_table(step), str(step.constraint_name)
    proven = {
        other.column_name
        for other in earlier
        if isinstance(other, ops.AlterColumnOp)
        and (step_table(other), other.modify_nullable) == (table, False)
    }
    nullable = [column for column in step.columns if column not in proven]
    gone = [
        literal(str(other.constraint_name))
        for other in earlier
        if isinstance(other, ops.DropConstraintOp) and step_table(other) == table
    ]
    failing = (
        "SELECT conrelid::regclass::text, conname FROM pg_constraint\n"
        f" WHERE conrelid = {_oid(table)} AND contype = 'p'"
        + (f" AND conname NOT IN ({', '.join(gone)})" if gone else "")
    )
    wanted = [(("key", table, name), Condition(f"no primary key of {table} yet", failing))]
    if nullable:
        listed = ", ".join(map(literal, nullable))
        failing = (
            f"SELECT attname FROM pg_attribute\n WHERE attrelid = {_oid(table)}"
            f" AND attname IN ({listed})\n   AND NOT attisdropped AND NOT attnotnull"
        )
        holds = f"{', '.join(nullable)} of {table} NOT NULL already"
        wanted.append((("not null", table, name), Condition(holds, failing)))
    return wanted


# ---------------------------------------------------------------- names


def _oid(name: TableName) -> str:
    """The relation's oid as SQL; NULL where there is none, since an earlier step may make it."""
    return f"to_regclass({literal(name.sql)})"


def _no_relation(name: TableName) -> _Wanted:
    failing = (
        f"SELECT relnamespace::regnamespace::text, relname FROM pg_class\n WHERE oid = {_oid(name)}"
    )
    return relation(name), Condition(f"nothing named {name} yet", failing)


def _a_relation(name: TableName) -> _Wanted:
    failing = f"SELECT {literal(str(name))} AS missing\n WHERE {_oid(name)} IS NULL"
    return relation(name), Condition(f"{name} is there", failing)


def _no_index(table: TableName, name: str) -> _Wanted:
    """An index lives in the schema of its table, wherever that was found."""
    failing = (
        "SELECT relnamespace::regnamespace::text, relname FROM pg_class\n"
        f" WHERE relname = {literal(name)}\n"
        f"   AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = {_oid(table)})"
    )
    index = TableName(table.schema, name)
    return relation(index), Condition(f"no index or table named {name} yet", failing)


def _no_column(table: TableName, column: str) -> _Wanted:
    failing = (
        "SELECT attrelid::regclass::text, attname FROM pg_attribute\n"
        f" WHERE attrelid = {_oid(table)} AND attname = {literal(column)} AND NOT attisdropped"
    )
    return ("column", table, column), Condition(f"no column {column} of {table} yet", failing)


def _a_column(table: TableName, column: str) -> _Wanted:
    there = stages.exists(stages.column_row(table, column, _oid(table)))
    failing = f"SELECT {literal(column)} AS missing\n WHERE NOT {there}"
    return ("column", table, column), Condition(f"{table} has a column {column}", failing)


def _no_constraint(table: TableName, name: str) -> _Wanted:
    failing = (
        "SELECT conrelid::regclass::text, conname FROM pg_constraint\n"
        f" WHERE conrelid = {_oid(table)} AND conname = {literal(name)}"
    )
    return ("constraint", table, name), Condition(f"no constraint {name} of {table} yet", failing)


def _a_constraint(table: TableName, name: str) -> _Wanted:
    there = stages.exists(stages.constraint_row(table, name, _oid(table)))
    failing = f"SELECT {literal(name)} AS missing\n WHERE NOT {there}"
    return ("constraint", table, name), Condition(f"{table} has a constraint {name}", failing)

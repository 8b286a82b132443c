"""A column that takes the place of another: pure text, the same for the way there and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, TypeAlias

from datamig_nb import stages
from datamig_nb.compound import Exchanged, Hanging, Swap
from datamig_nb.names import TOKENS, TableName, literal, quote
from datamig_nb.stages import Condition, Statement
from datamig_nb.statements import comparable, folded

#: There the new columns come in, back the old ones.
Way: TypeAlias = Literal["there", "back"]

_WHOLE = ("smallint", "integer", "bigint")


def renamed(text: str, names: Mapping[str, str], table: str | None = "") -> str:
    """SQL in which columns have other names; functions, types and collations keep theirs.

    A name behind a dot is a column's only where ``table`` is in front of it, None: always.
    """
    pieces, last = list[str](), 0
    for found in TOKENS.finditer(text):
        name = folded(found)
        if name is None or name not in names:
            continue
        before, after = text[: found.start()].rstrip(), text[found.end() :].lstrip()
        is_other = before.endswith("::") or before.upper().endswith("COLLATE")
        if before.endswith(".") and table is not None:
            is_other |= not table or not before[:-1].endswith((table, quote(table)))
        if is_other or (after.startswith("(") and found["plain"]):
            continue
        pieces += [text[last : found.start()], quote(names[name])]
        last = found.end()
    return "".join([*pieces, text[last:]])


# ---------------------------------------------------------------- before


def prepare(
    swap: Swap, way: Way, key: Callable[[TableName], Sequence[str]]
) -> tuple[Statement, ...]:
    """NOT NULL, indexes and constraints of the columns that come in; nobody waits for it."""
    sent: list[Statement] = []
    for each in swap.columns:
        if each.not_null and way == "back":  # there it is a step of its own
            sent += stages.set_not_null(each.table, each.old, key(each.table))
    for each in swap.hanging:
        if each.kind in ("p", "u", "i"):
            sent += _build_index(each, _names(swap, each.table, way))
    for each in swap.hanging:
        if each.kind == "c":
            names = _names(swap, each.table, way)
            sent += _prove(each, renamed(each.definition, names))
        elif each.kind == "f":
            sent += _prove(each, _foreign_key(swap, each, way))
    return tuple(sent)


def _build_index(index: Hanging, names: Mapping[str, str]) -> tuple[Statement, ...]:
    unique = "UNIQUE " if index.unique else ""
    create = (
        f"CREATE {unique}INDEX CONCURRENTLY IF NOT EXISTS {quote(index.successor)}"
        f" ON {index.table.sql}\n {renamed(index.definition, names)}"
    )
    rows = None
    if index.columns:
        rows = stages.duplicates(index.table, [names.get(c, c) for c in index.columns])
    return stages.build_index(index.successor, index.table, create, rows)


def _prove(constraint: Hanging, definition: str) -> tuple[Statement, ...]:
    add = (
        f"ALTER TABLE {constraint.table.sql}\n            ADD CONSTRAINT"
        f" {quote(constraint.successor)} {definition}"
    )
    return stages.prove(constraint.table, constraint.successor, add, None)


def _foreign_key(swap: Swap, key: Hanging, way: Way) -> str:
    assert key.parent is not None
    names = _names(swap, key.table, way)
    parents = renamed(key.parent_columns, _names(swap, key.parent, way))
    return (
        f"FOREIGN KEY ({renamed(key.definition, names)})"
        f" REFERENCES {key.parent.sql} ({parents}){renamed(key.actions, names)}"
    )


def _names(swap: Swap, table: TableName, way: Way) -> dict[str, str]:
    """Columns of a table that leave -> those that come in."""
    return {
        each.column: each.new if way == "there" else each.old
        for each in swap.columns
        if each.table == table
    }


# ---------------------------------------------------------------- the exchange


def exchange(
    swap: Swap,
    way: Way,
    triggers: Collection[tuple[str, TableName]],
    again: Collection[str] = (),
) -> Statement:
    """The one short transaction: all is made already, so that nothing in it reads a table.

    ``triggers`` kept the columns that come in in step; they go, with their functions.  ``again``
    are statements that make others for the columns that leave.
    """
    lines = [
        f"LOCK TABLE {', '.join(table.sql for table in swap.tables)} IN ACCESS EXCLUSIVE MODE",
        *(
            line
            for name, table in triggers
            for line in (
                f"DROP TRIGGER IF EXISTS {name} ON {table.sql}",
                f"DROP FUNCTION IF EXISTS datamig.{name}()",
            )
        ),
    ]
    # What refers goes before what it refers to.
    for each in sorted(swap.hanging, key=lambda each: each.kind != "f"):
        lines.append(_drop(each))
    for number, column in enumerate(swap.columns, 1):
        lines += _change_places(column, way, number)
    for each in swap.hanging:
        lines += [_take_place(each), *each.notes]
    lines += [text.replace("$datamig$", "$trigger$") for text in again]
    declared = "".join(
        f"    last_{n} bigint;\n    called_{n} boolean;\n"
        for n, column in enumerate(swap.columns, 1)
        if column.identity
    )
    declare = f"DECLARE\n{declared}" if declared else ""
    body = "".join(f"    {line};\n" for line in lines)
    mark = "$datamig$"
    return Statement(sql=f"DO {mark}\n{declare}BEGIN\n{body}END\n{mark}", repeatable=False)


def _drop(each: Hanging) -> str:
    if each.kind == "i":
        return f"DROP INDEX {TableName(each.table.schema, each.name).sql}"
    return f"ALTER TABLE {each.table.sql} DROP CONSTRAINT {quote(each.name)}"


def _take_place(each: Hanging) -> str:
    """What was made under another name gets the old one."""
    alter = f"ALTER TABLE {each.table.sql}"
    match each.kind:
        case "i":
            index = TableName(each.table.schema, each.successor)
            return f"ALTER INDEX {index.sql} RENAME TO {quote(each.name)}"
        case "p" | "u":
            kind = "PRIMARY KEY" if each.kind == "p" else "UNIQUE"
            using = f"{kind} USING INDEX {quote(each.successor)}{each.options}"
            return f"{alter} ADD CONSTRAINT {quote(each.name)} {using}"
        case _:
            return f"{alter} RENAME CONSTRAINT {quote(each.successor)} TO {quote(each.name)}"


def _change_places(each: Exchanged, way: Way, number: int) -> list[str]:
    is_there = way == "there"
    table, name = f"ALTER TABLE {each.table.sql}", quote(each.column)
    leaving, coming = (each.old, each.new) if is_there else (each.new, each.old)
    default = each.new_default if is_there else each.old_default
    lines: list[str] = []
    if each.identity:
        lines += [
            f"SELECT last_value, is_called INTO last_{number}, called_{number}"
            f" FROM {each.sequence}",
            f"{table} ALTER COLUMN {name} DROP IDENTITY",
        ]
    elif each.sequence:
        # Else it would go with a column that is dropped.
        lines.append(f"ALTER SEQUENCE {each.sequence} OWNED BY NONE")
    if is_there and not each.keep:
        lines.append(f"{table} DROP COLUMN {name}")
    else:
        lines.append(f"{table} RENAME COLUMN {name} TO {quote(leaving)}")
        if each.old_default or each.new_default:
            lines.append(f"{table} ALTER COLUMN {quote(leaving)} DROP DEFAULT")
        if each.not_null:
            lines.append(f"{table} ALTER COLUMN {quote(leaving)} DROP NOT NULL")
    lines.append(f"{table} RENAME COLUMN {quote(coming)} TO {name}")
    if default:
        lines.append(f"{table} ALTER COLUMN {name} SET DEFAULT {default}")
    if each.identity:
        at = f"pg_get_serial_sequence({literal(each.table.sql)}, {literal(each.column)})"
        lines += [
            f"{table} ALTER COLUMN {name} ADD {each.identity}",
            f"PERFORM setval({at}, last_{number}, called_{number})",
        ]
    elif each.sequence:
        type = each.type if is_there else each.old_type
        kind = f" AS {type}" if {each.type, each.old_type} <= {*_WHOLE} else ""
        owner = f"{each.table.sql}.{name}"
        lines.append(f"ALTER SEQUENCE {each.sequence}{kind} OWNED BY {owner}")
    return [*lines, *each.notes]


# ---------------------------------------------------------------- rows written since


def edited(column: Exchanged) -> str:
    """Condition: the column holds what its old value does not give, for it was written since."""
    name, old = quote(column.column), quote(column.old)
    if not column.keep:
        return f"{name} IS NOT NULL"
    if column.volatile:
        return f"{old} IS NULL AND {name} IS NOT NULL"
    left, right = comparable(name, column.type), comparable(column.forward, column.type)
    return f"{left} IS DISTINCT FROM {right}"


def written_since(column: Exchanged, key: Sequence[str]) -> Condition:
    """That no row was written since, of which the old value is not known."""
    return Condition(
        f"{column.column} of {column.table} not written since the upgrade",
        stages.failing_rows(column.table, edited(column), key),
    )


def not_back(column: Exchanged) -> str:
    """Condition: the row was written since, and its old value is not there yet."""
    assert column.back is not None
    old, value = comparable(quote(column.old), column.old_type), column.back
    return (
        f"{edited(column)}\n   AND {old} IS DISTINCT FROM"
        f" {comparable(f'({value})::{column.old_type}', column.old_type)}"
    )


def add_old(column: Exchanged) -> str:
    """The old column again, where it was dropped."""
    return (
        f"ALTER TABLE {column.table.sql}"
        f" ADD COLUMN IF NOT EXISTS {quote(column.old)} {column.old_type}"
    )

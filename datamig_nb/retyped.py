"""A change of type as the steps that carry it out, from what the catalog says of the column."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import psycopg
import sqlalchemy as sa

from datamig_nb.checks import QueryCheck, RowCheck, check
from datamig_nb.compound import ChangeType, Exchanged, Hanging, Swap
from datamig_nb.database import Table, read_table
from datamig_nb.errors import ExpressionError, MigrationError
from datamig_nb.migration import Step
from datamig_nb.names import TableName, literal, quote
from datamig_nb.operations import add_column, alter_column
from datamig_nb.sequence import Thing, freed, made
from datamig_nb.stages import failing_rows
from datamig_nb.statements import columns_read, names_in
from datamig_nb.steps import Backfill, backfill, keep_in_step
from datamig_nb.swaps import renamed

_WHOLE = ("smallint", "integer", "bigint")
_TEXTS = ("text", "character varying", "character", "name", "unknown", "citext")

# Forms of text that mean the same whatever the session's DateStyle and TimeZone.
_ISO = r"^\s*\d{4}-\d\d-\d\d"
_FORMS = {
    "date": _ISO,
    "timestamp without time zone": _ISO,
    "timestamp with time zone": rf"{_ISO}.*(Z|z|UTC|[+-]\d\d(:?\d\d)?)\s*$",
}


class Written(sa.types.UserDefinedType[Any]):
    """A type as it is written in SQL."""

    cache_ok = True

    def __init__(self, text: str) -> None:
        self.text = text

    def get_col_spec(self, **_: object) -> str:
        """The type as SQL."""
        return self.text


@dataclass(frozen=True, kw_only=True)
class _Change:
    """What is known of one change of a type."""

    step: ChangeType
    table: Table
    #: Number of the column in pg_attribute.
    number: int
    #: Type with and without its length; that of the column as it is.
    type: str
    bare_type: str
    old_type: str
    #: Expression over the row for the new value.
    value: str
    #: The same for a value of the column itself that is given: a default.
    pattern: str
    #: Condition: the row holds a value.
    has: str
    volatile: bool

    @property
    def new(self) -> str:
        return _cut(f"{self.step.column}_new")

    @property
    def old(self) -> str:
        return _cut(f"{self.step.column}_old")


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
    changes = [_change(connection, step, major, new) for step in steps]
    # What a step before makes of the row can be asked about only behind it.
    new |= {column for step in earlier if isinstance(step, Backfill) for column in step.assign}
    hanging = _all_hanging(connection, changes, gone)
    found: list[Step] = []
    for change in changes:
        column = sa.Column(change.new, Written(change.type))
        table = change.step.table
        found.append(add_column(table.name, column, schema=table.schema))
        reads_new = _reads_new(change, changes) or names_in(change.value) & new
        if change.step.otherwise is None and not reads_new:
            name = f"every {change.step.column} of {table} has a value of type {change.type}"
            failing = f"{change.has}\n   AND ({change.value}) IS NULL"
            found.append(RowCheck(name=name, table=table, failing=failing, before=True))
            found += _collisions(change, hanging)
    for table in dict.fromkeys(change.step.table for change in changes):
        assign = {c.new: c.value for c in changes if c.step.table == table}
        found.append(keep_in_step(table, assign))
        found.append(backfill(table, assign))
    columns = [_exchanged(connection, change, changes) for change in changes]
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


def _reads_new(change: _Change, changes: Sequence[_Change]) -> bool:
    return bool(names_in(change.value) & {other.new for other in changes})


# ---------------------------------------------------------------- the value


def _change(
    connection: sa.Connection, step: ChangeType, major: int, new: Collection[str]
) -> _Change:
    table = read_table(connection, step.table)
    column = table.column(step.column)
    if table.partitioned or table.kind != "table":
        raise MigrationError(
            f"{str(step.table)!r} is no plain table, whose columns could change places",
            "change its partitions one by one, or write the statements with sql()",
        )
    if column.computed:
        raise MigrationError(
            f"{step.column!r} of {str(step.table)!r} is generated", "drop it, and add it anew"
        )
    using = step.using or quote(step.column)
    type, bare_type, given, number = _types(connection, step, using, new)
    plain = f"CAST({using} AS {type})"
    value = using if given == type else plain
    if given.partition("(")[0] in _TEXTS and bare_type not in _TEXTS and major >= 16:
        valid = f"pg_input_is_valid(({using})::text, {literal(type)})"
        if form := _FORMS.get(bare_type):
            valid = f"({using})::text ~ {literal(form)} AND {valid}"
        value = f"CASE WHEN {valid} THEN {plain} END"
    elif bare_type != given.partition("(")[0] and {bare_type, given} & _ZONED:
        raise MigrationError(
            f"{step.column!r} of {str(step.table)!r} as {type} would depend on the time zone of the"
            " session",
            f"say the zone: using=\"{step.column} AT TIME ZONE 'UTC'\"",
        )
    pattern = plain if given != type else using
    if names_in(step.type) & {*new}:  # an enum that is yet to be made
        pattern = f"({using})::text"
    name = quote(step.column)
    has = f"{name} IS NOT NULL"
    if step.nulls:
        texts = ", ".join(map(literal, step.nulls))
        value = f"CASE WHEN {name}::text IN ({texts}) THEN NULL ELSE {value} END"
        has += f" AND {name}::text NOT IN ({texts})"
    if step.otherwise is not None:
        value = f"coalesce({value}, CASE WHEN {has} THEN {step.otherwise} END)"
    return _Change(
        step=step,
        table=table,
        number=number,
        type=type,
        bare_type=bare_type,
        old_type=column.type,
        value=value,
        pattern=pattern,
        has=has,
        volatile=_is_volatile(connection, value),
    )


_ZONED = {"timestamp with time zone", "time with time zone"}


def _types(
    connection: sa.Connection, step: ChangeType, using: str, new_names: Collection[str]
) -> tuple[str, str, str, int]:
    """The new type with and without its length, that of the expression; the column's number."""
    raw = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    told: list[tuple[int, int]] = []
    for text in (f"CAST(NULL AS {step.type})", f"({using})"):
        try:
            with raw.transaction(), raw.cursor() as cursor:
                query = f"SELECT {text} FROM {step.table.sql} LIMIT 0"
                cursor.execute(query.encode(), prepare=True)
                assert cursor.pgresult is not None
                told.append((cursor.pgresult.ftype(0), cursor.pgresult.fmod(0)))
        except psycopg.Error as error:
            if error.sqlstate == "42704" and names_in(step.type) & {*new_names} and not told:
                told.append((0, -1))  # an enum that is yet to be made
                continue
            if error.sqlstate in ("42703", "42P01") and told:
                told.append(told[0])  # it reads what is yet to be made: the rehearsal will tell
                continue
            if error.sqlstate in (None, "42501"):
                raise
            raise ExpressionError(
                text,
                error.diag.message_primary or str(error),
                "write a type, and an expression over a row",
            ) from error
    (new, length), (given, given_length) = told
    query = sa.text(
        "SELECT format_type(:new, :length), format_type(:new, NULL), format_type(:given, :limit),"
        " attnum FROM pg_attribute WHERE attrelid = to_regclass(:table) AND attname = :column"
    )
    values = {"new": new, "length": length, "given": given, "limit": given_length}
    names = {"table": step.table.sql, "column": step.column}
    row = connection.execute(query, values | names).one()
    if new == 0:
        row = (step.type, step.type, *row[2:])
    return tuple(row)  # pyright: ignore[reportReturnType]


def _is_volatile(connection: sa.Connection, text: str) -> bool:
    query = sa.text(
        "SELECT EXISTS (SELECT FROM pg_proc WHERE provolatile = 'v' AND proname = ANY (:names))"
    )
    return bool(connection.execute(query, {"names": sorted(names_in(text))}).scalar_one())


# ---------------------------------------------------------------- what hangs on the columns

_HANGING = """
SELECT contype::text AS kind, n.nspname AS schema, t.relname AS table, conname AS name,
       pg_get_constraintdef(c.oid) AS definition,
       CASE WHEN contype IN ('p', 'u') THEN pg_get_indexdef(conindid) END AS index,
       obj_description(c.oid, 'pg_constraint') AS comment,
       fn.nspname AS parent_schema, ft.relname AS parent, TRUE AS unique,
       coalesce(indisreplident, FALSE) AS identity, coalesce(indisclustered, FALSE) AS clustered,
       CASE WHEN contype IN ('p', 'u') THEN ARRAY(
           SELECT attname::text FROM unnest(conkey) WITH ORDINALITY AS k (num, place)
             JOIN pg_attribute ON attrelid = conrelid AND attnum = num ORDER BY place
       ) END AS columns,
       ARRAY[CASE contype WHEN 'c' THEN pg_get_expr(conbin, conrelid) END] AS texts
  FROM pg_constraint c
  JOIN pg_class t ON t.oid = conrelid JOIN pg_namespace n ON n.oid = t.relnamespace
  LEFT JOIN pg_class ft ON ft.oid = confrelid LEFT JOIN pg_namespace fn ON fn.oid = ft.relnamespace
  LEFT JOIN pg_index ON indexrelid = conindid AND contype IN ('p', 'u')
 WHERE contype IN ('p', 'u', 'f', 'c', 'x')
   AND (conrelid = to_regclass(:table) AND :number = ANY (conkey)
        OR confrelid = to_regclass(:table) AND :number = ANY (confkey))
 UNION ALL
SELECT 'i', n.nspname, t.relname, x.relname, pg_get_indexdef(indexrelid), NULL,
       obj_description(indexrelid, 'pg_class'), NULL, NULL, indisunique,
       indisreplident, indisclustered, NULL,
       ARRAY[pg_get_expr(indexprs, indrelid), pg_get_expr(indpred, indrelid)]
  FROM pg_index
  JOIN pg_class t ON t.oid = indrelid JOIN pg_namespace n ON n.oid = t.relnamespace
  JOIN pg_class x ON x.oid = indexrelid
 WHERE indrelid = to_regclass(:table)
   AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype <> 'f')
   AND (:number = ANY (indkey::smallint[])
        OR EXISTS (SELECT FROM pg_depend
                    WHERE classid = 'pg_class'::regclass AND objid = indexrelid
                      AND refobjid = indrelid AND refobjsubid = :number))
 ORDER BY kind DESC, "table", name
"""

# What reads the column and cannot be made for the new one beside it.
_IN_THE_WAY = """
SELECT DISTINCT pg_describe_object(
           CASE WHEN classid = 'pg_rewrite'::regclass THEN 'pg_class'::regclass ELSE classid END,
           coalesce(ev_class, objid), CASE WHEN ev_class IS NULL THEN objsubid ELSE 0 END)
  FROM pg_depend LEFT JOIN pg_rewrite ON classid = 'pg_rewrite'::regclass AND pg_rewrite.oid = objid
 WHERE refclassid = 'pg_class'::regclass AND refobjid = to_regclass(:table)
   AND refobjsubid = :number AND classid <> 'pg_constraint'::regclass
   AND NOT (classid = 'pg_attrdef'::regclass
            AND EXISTS (SELECT FROM pg_attrdef AS d WHERE d.oid = objid AND adnum = refobjsubid))
   AND NOT (classid = 'pg_class'::regclass
            AND (SELECT relkind FROM pg_class WHERE pg_class.oid = objid) IN ('i', 'I', 'S'))
 ORDER BY 1
"""


def _all_hanging(
    connection: sa.Connection, changes: Sequence[_Change], gone: set[Thing]
) -> list[Hanging]:
    found: dict[tuple[TableName, str], Hanging] = {}
    for change in changes:
        values = {"table": change.step.table.sql, "number": change.number}
        others = connection.execute(sa.text(_IN_THE_WAY), values).scalars().all()
        if others:
            raise MigrationError(
                f"{', '.join(others)} reads {change.step.column!r} of {str(change.step.table)!r},"
                " and would go on reading the old values",
                "drop it in a revision before, and make it again in one behind",
            )
        for row in connection.execute(sa.text(_HANGING), values):
            # A table has the schema that it was given: none where the search path finds it.
            table = _called(row.schema, row.table, changes)
            thing = ("relation" if row.kind == "i" else "constraint", table, str(row.name))
            index = ("relation", TableName(table.schema, str(row.name)), "")
            if thing in gone or (row.kind == "i" and index in gone):
                continue
            found[table, row.name] = _one_hanging(row, table, changes)
            for text in filter(None, row.texts):
                _require_fits(connection, str(row.name), text, table, changes)
    # Keys first, the largest thing to wait for; foreign keys behind what they refer to.
    return sorted(found.values(), key=lambda each: "puicf".index(each.kind))


def _called(schema: str, name: str, changes: Sequence[_Change]) -> TableName:
    for change in changes:
        if change.step.table.name == name and change.step.table.schema in (None, schema):
            return change.step.table
    return TableName(schema, name)


def _require_fits(
    connection: sa.Connection, name: str, text: str, table: TableName, changes: Sequence[_Change]
) -> None:
    """An expression over the columns must be one over those of the new types too."""
    here = [change for change in changes if change.step.table == table]
    news = ", ".join(f"CAST(NULL AS {change.type}) AS {quote(change.new)}" for change in here)
    names = {change.step.column: change.new for change in here}
    query = f"SELECT {renamed(text, names)}\n  FROM (SELECT *, {news} FROM {table.sql}) AS changed"
    raw = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    try:
        with raw.transaction(), raw.cursor() as cursor:
            cursor.execute(f"{query} LIMIT 0".encode(), prepare=True)
    except psycopg.Error as error:
        if error.sqlstate in (None, "42501"):
            raise
        raise MigrationError(
            f"{name!r} of {str(table)!r} says {text}, which does not go with the new type:"
            f" {error.diag.message_primary}",
            "drop it in a step before, and make another behind",
        ) from error


_FOREIGN_KEY = re.compile(r"FOREIGN KEY \((.*?)\) REFERENCES .*?\((.*?)\)(.*)\Z", re.S)


def _one_hanging(row: Any, table: TableName, changes: Sequence[_Change]) -> Hanging:
    name, definition = str(row.name), str(row.definition)
    successor = _cut(f"datamig_{hashlib.sha256(f'{table}.{name}'.encode()).hexdigest()[:8]}_{name}")
    if row.kind == "x" or definition.endswith(("NOT VALID", "NOT ENFORCED")):
        raise MigrationError(
            f"the constraint {name!r} of {str(table)!r} cannot be made for a new column as it is",
            "drop it in a step before, or validate it",
        )
    notes: list[str] = []
    is_index = row.kind == "i"
    if row.comment is not None:
        at = (
            f"INDEX {TableName(table.schema, name).sql}"
            if is_index
            else (f"CONSTRAINT {quote(name)} ON {table.sql}")
        )
        notes.append(f"COMMENT ON {at} IS {literal(row.comment)}")
    if row.identity:
        notes.append(f"ALTER TABLE {table.sql} REPLICA IDENTITY USING INDEX {quote(name)}")
    if row.clustered:
        notes.append(f"ALTER TABLE {table.sql} CLUSTER ON {quote(name)}")
    more: dict[str, Any] = {}
    if row.kind in ("p", "u", "i"):
        text = definition if is_index else str(row.index)
        if row.kind != "i":
            deferred = re.search(r"(?: DEFERRABLE)?(?: INITIALLY DEFERRED)?\Z", definition)
            more["options"] = deferred[0] if deferred else ""
            more["columns"] = tuple(row.columns)
        more["unique"] = row.unique
        definition = text[text.index(" USING ") + 1 :]
    elif row.kind == "f":
        parts = _FOREIGN_KEY.match(definition)
        assert parts is not None
        parent = _called(row.parent_schema, row.parent, changes)
        _require_together(name, table, parent, parts[1], parts[2], changes)
        definition = parts[1]
        more |= {"parent": parent, "parent_columns": parts[2], "actions": parts[3]}
    return Hanging(
        kind=row.kind,
        table=table,
        name=name,
        definition=definition,
        successor=successor,
        notes=tuple(notes),
        **more,
    )


def _require_together(
    name: str,
    child: TableName,
    parent: TableName,
    columns: str,
    parent_columns: str,
    changes: Sequence[_Change],
) -> None:
    """Both ends of a foreign key change, or both are whole numbers."""
    known = {(change.step.table, quote(change.step.column)): change for change in changes}
    for column, above in zip(columns.split(", "), parent_columns.split(", "), strict=True):
        here, there = known.get((child, column)), known.get((parent, above))
        one = here or there
        if (here and there) or one is None or {one.bare_type, one.old_type} <= {*_WHOLE}:
            continue
        other = f"{above} of {parent}" if here else f"{column} of {child}"
        raise MigrationError(
            f"the foreign key {name!r} joins {one.step.column} of {one.step.table} to {other},"
            " whose type would stay",
            "change both, one change_type() next to the other, or drop the key in a step before",
        )


def _collisions(change: _Change, hanging: Sequence[Hanging]) -> list[Step]:
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


# ---------------------------------------------------------------- what belongs to a column

_BELONGING = """
SELECT attnotnull, attidentity::text, pg_get_expr(adbin, adrelid) AS default,
       col_description(attrelid, attnum) AS comment,
       pg_get_serial_sequence(:table, :column) AS sequence,
       ARRAY(SELECT format('GRANT %s (%I) ON %s TO %s%s', privilege_type, attname, :table,
                           CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
                           CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
               FROM aclexplode(attacl)) AS grants
  FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
 WHERE attrelid = to_regclass(:table) AND attname = :column
"""

_SEQUENCE = """
SELECT format('START WITH %s INCREMENT BY %s CACHE %s%s', seqstart, seqincrement, seqcache,
              CASE WHEN seqcycle THEN ' CYCLE' ELSE '' END)
  FROM pg_sequence WHERE seqrelid = to_regclass(:sequence)
"""


def _exchanged(connection: sa.Connection, change: _Change, changes: Sequence[_Change]) -> Exchanged:
    step = change.step
    values = {"table": step.table.sql, "column": step.column}
    row = connection.execute(sa.text(_BELONGING), values).one()
    identity = None
    if row.attidentity:
        options = connection.execute(sa.text(_SEQUENCE), {"sequence": row.sequence}).scalar_one()
        how = "ALWAYS" if row.attidentity == "a" else "BY DEFAULT"
        identity = f"GENERATED {how} AS IDENTITY (SEQUENCE NAME {row.sequence} {options})"
    notes = list(row.grants)
    if row.comment is not None:
        at = f"{step.table.sql}.{quote(step.column)}"
        notes.insert(0, f"COMMENT ON COLUMN {at} IS {literal(row.comment)}")
    olds = {c.step.column: c.old for c in changes if c.step.table == step.table}
    forward = renamed(change.value, olds, step.table.name)
    if _reads_new(change, changes):  # of another table, whose columns have changed places too
        names = {c.new: c.step.column for c in changes} | {c.step.column: c.old for c in changes}
        forward = renamed(change.value, names, None)
    return Exchanged(
        table=step.table,
        column=step.column,
        new=change.new,
        old=change.old,
        type=change.type,
        old_type=change.old_type,
        keep=step.keep,
        forward=forward,
        back=step.back,
        volatile=change.volatile,
        not_null=row.attnotnull,
        old_default=row.default,
        new_default=None if row.default is None else _new_default(connection, change, row.default),
        sequence=row.sequence,
        identity=identity,
        notes=tuple(notes),
    )


def _new_default(connection: sa.Connection, change: _Change, default: str) -> str:
    """What the expression makes of the default; of a sequence's next number nothing."""
    step = change.step
    if {change.bare_type, change.old_type} <= {*_WHOLE}:
        return default
    others = [column.name for column in change.table.columns if column.name != step.column]
    text = step.using or quote(step.column)
    if columns_read(text, others, step.table.name):
        raise MigrationError(
            f"{step.column!r} of {str(step.table)!r} has the default {default}, and a default"
            " cannot read other columns",
            "take it away with alter_column(…, server_default=None) in a step before",
        )
    given = f"CAST({default} AS {change.old_type})"
    given = re.sub(
        rf"(?<![\w.\"]){re.escape(quote(step.column))}(?![\w(\"])", lambda _: given, change.pattern
    )
    if _is_volatile(connection, given) or re.search(r"\bnow\(|\bCURRENT_|\bLOCAL", given, re.I):
        return given
    raw = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    try:
        with raw.transaction(), raw.cursor() as cursor:
            cursor.execute(f"SELECT ({given})::text".encode())
            found = cursor.fetchone()
            assert found is not None
            return "NULL" if found[0] is None else f"{literal(found[0])}::{change.type}"
    except psycopg.Error as error:
        if error.sqlstate in (None, "42501"):
            raise
        raise MigrationError(
            f"the default {default} of {step.column!r} of {str(step.table)!r} is no value of type"
            f" {change.type}: {error.diag.message_primary}",
            "take it away with alter_column(…, server_default=None) in a step before",
        ) from error


def _cut(name: str) -> str:
    return name.encode()[:63].decode(errors="ignore")

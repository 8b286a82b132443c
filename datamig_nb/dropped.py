"""Columns and tables that are dropped but kept for the way back: SQL of both ways, pure text.

A column's values are copied into a table of the schema ``datamig`` before it goes; a table is moved
there as it is, which copies nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alembic.operations import ops

from datamig_nb import stages
from datamig_nb.expressions import BATCH_MARK
from datamig_nb.migration import Step, step_table
from datamig_nb.names import TableName, literal, quote
from datamig_nb.stages import Condition, Found, NoWayBack, Statement
from datamig_nb.statements import comparable, differ
from datamig_nb.steps import BackUp


def kept_by(step: Step, steps: Sequence[Step]) -> BackUp | None:
    """The step before that keeps what this one drops."""
    if not isinstance(step, ops.DropColumnOp | ops.DropTableOp):
        return None
    column = step.column_name if isinstance(step, ops.DropColumnOp) else None
    for other in steps:
        if other is step:
            return None
        if not isinstance(other, BackUp) or other.table != step_table(step):
            continue
        if column in other.columns or (column is None and not other.columns):
            return other
    return None


def kept_columns(step: BackUp, steps: Sequence[Step]) -> list[ops.DropColumnOp]:
    """The steps that drop what this one keeps."""
    drops = (other for other in steps if isinstance(other, ops.DropColumnOp))
    return [drop for drop in drops if kept_by(drop, steps) is step]


# ---------------------------------------------------------------- columns


def column_query(table: TableName, column: str) -> str:
    """Query of all that goes with a column, for :class:`DroppedColumn`."""
    depends = (
        "SELECT FROM pg_depend WHERE classid = '{}'::regclass AND objid = {}\n"
        "           AND refobjid = attrelid AND refobjsubid = attnum"
    )
    return f"""
SELECT format_type(atttypid, atttypmod) || coalesce(
           CASE WHEN attcollation NOT IN (0, typcollation)
                THEN ' COLLATE ' || attcollation::regcollation END, ''),
       pg_get_expr(adbin, adrelid), attnotnull::text, attidentity::text || attgenerated::text,
       col_description(attrelid, attnum),
       (SELECT json_agg(pg_get_indexdef(indexrelid) ORDER BY indexrelid) FROM pg_index
         WHERE indrelid = attrelid AND EXISTS ({depends.format("pg_class", "indexrelid")})
           AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid))::text,
       (SELECT json_agg(json_build_array(conname, contype::text, pg_get_constraintdef(c.oid),
                                         pg_get_indexdef(nullif(conindid, 0))) ORDER BY c.oid)
          FROM pg_constraint AS c
         WHERE conrelid = attrelid AND contype NOT IN ('n', 't')
           AND EXISTS ({depends.format("pg_constraint", "c.oid")}))::text
  FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
  LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
 WHERE attrelid = to_regclass({literal(table.sql)}) AND attname = {literal(column)}
   AND NOT attisdropped"""


@dataclass(frozen=True, kw_only=True)
class DroppedColumn:
    """A column as it was, with all that goes when it is dropped."""

    name: str
    #: Type and collation, as SQL.
    type: str
    default: str | None
    not_null: bool
    comment: str | None
    #: Definitions of its indexes.
    indexes: tuple[str, ...]
    #: Name, kind, definition and definition of the index of each of its constraints.
    constraints: tuple[tuple[str, str, str, str | None], ...]

    @classmethod
    def of(cls, table: TableName, name: str, definition: Any) -> DroppedColumn | NoWayBack:
        """From the row of :func:`column_query`."""
        if definition is None:
            return NoWayBack(reason=f"what {name} of {table} was is not known")
        type, default, not_null, special, comment, indexes, constraints = definition
        if special:
            return NoWayBack(reason=f"{name} of {table} is an identity or computed column")
        return cls(
            name=name,
            type=type,
            default=default,
            not_null=not_null == "true",
            comment=comment,
            indexes=tuple(json.loads(indexes or "[]")),
            constraints=tuple(map(tuple, json.loads(constraints or "[]"))),
        )


def add_back(table: TableName, column: DroppedColumn) -> tuple[Statement, ...]:
    """Add the column, empty; rows that come get its default, those written since it went do too."""
    name, alter = quote(column.name), f"ALTER TABLE {table.sql}"
    # A function may give another value for each row, so that PostgreSQL would rewrite the table.
    at_once = column.default is not None and "(" not in column.default
    default = f" DEFAULT {column.default}" if at_once else ""
    statements = [f"{alter} ADD COLUMN IF NOT EXISTS {name} {column.type}{default}"]
    if column.default is not None and not at_once:
        statements.append(f"{alter} ALTER COLUMN {name} SET DEFAULT {column.default}")
    if column.comment is not None:
        statements.append(f"COMMENT ON COLUMN {table.sql}.{name} IS {literal(column.comment)}")
    return stages.plain(*statements)


def complete(
    table: TableName, columns: Sequence[DroppedColumn], found: Found
) -> tuple[Statement, ...]:
    """Make the columns what they were, once their values are back."""
    statements: list[Statement] = []
    for column in columns:
        if column.not_null:
            statements += stages.set_not_null(table, column.name, found.key)
    indexes = dict.fromkeys(definition for column in columns for definition in column.indexes)
    for definition in indexes:
        index = stages.index_name(definition)
        statements += stages.build_index(index, table, stages.concurrently(definition))
    for constraint in dict.fromkeys(c for column in columns for c in column.constraints):
        statements += _constraint_back(table, *constraint)
    return tuple(statements)


def _constraint_back(
    table: TableName, name: str, kind: str, definition: str, index: str | None
) -> tuple[Statement, ...]:
    add = f"ALTER TABLE {table.sql}\n            ADD CONSTRAINT {quote(name)} {definition}"
    if kind in ("c", "f"):
        return stages.prove(table, name, add.removesuffix(" NOT VALID"), None)
    if kind in ("u", "p") and index is not None:
        options = definition.partition(")")[2]
        built = stages.build_index(name, table, stages.concurrently(index))
        word = "UNIQUE" if kind == "u" else "PRIMARY KEY"
        return (*built, stages.use_index(table, name, word, options))
    return (stages.when(f"NOT {stages.exists(stages.constraint_row(table, name))}", add),)


@dataclass(frozen=True, kw_only=True)
class KeptColumns:
    """The table that keeps the values of columns that go."""

    #: Its name, as SQL.
    name: str
    table: TableName
    key: tuple[str, ...]
    #: Columns that are kept -> their types.
    types: dict[str, str]

    @property
    def _all(self) -> str:
        return ", ".join(map(quote, (*self.key, *self.types)))

    @property
    def _same_key(self) -> str:
        name = quote(self.table.name)
        return " AND ".join(f"{name}.{quote(part)} = kept.{quote(part)}" for part in self.key)

    def _differ(self, left: str, right: str) -> str:
        return differ(
            [comparable(f"{left}.{quote(c)}", type) for c, type in self.types.items()],
            [comparable(f"{right}.{quote(c)}", type) for c, type in self.types.items()],
        )

    def make(self) -> tuple[str, str]:
        """Make the table, and the index by which each row is kept once."""
        keys = ", ".join(map(quote, self.key))
        create = f"CREATE TABLE IF NOT EXISTS {self.name} AS\nSELECT {self._all}"
        index = self.name.partition(".")[2]
        return (
            f"{create}\n  FROM {self.table.sql} WITH NO DATA",
            f"CREATE UNIQUE INDEX IF NOT EXISTS {index}_key ON {self.name} ({keys})",
        )

    def keep_batch(self) -> str:
        """Keep the values of one batch of rows."""
        keys = ", ".join(map(quote, self.key))
        new = ", ".join(f"{quote(c)} = excluded.{quote(c)}" for c in self.types)
        return (
            f"INSERT INTO {self.name} AS kept ({self._all})\n"
            f"SELECT {self._all} FROM {self.table.sql}\n WHERE {BATCH_MARK}\n"
            f"ON CONFLICT ({keys}) DO UPDATE SET {new}\n WHERE {self._differ('kept', 'excluded')}"
        )

    def not_kept(self, what: str) -> str:
        """The rows whose values are not kept as they are now; ``what`` is selected of them."""
        return (
            f"SELECT {what}\n  FROM {self.table.sql} LEFT JOIN {self.name} AS kept"
            f" ON {self._same_key}\n WHERE kept.{quote(self.key[0])} IS NULL\n"
            f"    OR {self._differ(quote(self.table.name), 'kept')}"
        )

    def not_kept_rows(self) -> Condition:
        """All values are kept; with the keys of those that are not."""
        keys = ", ".join(f"{quote(self.table.name)}.{quote(part)}" for part in self.key)
        return Condition(
            f"every {' and '.join(self.types)} of {self.table} is kept", self.not_kept(keys)
        )

    def restore_batch(self) -> str:
        """Put the values of one batch of rows back."""
        new = ", ".join(f"{quote(c)} = kept.{quote(c)}" for c in self.types)
        return (
            f"UPDATE {self.table.sql}\n   SET {new}\n  FROM {self.name} AS kept\n"
            f" WHERE {BATCH_MARK} AND {self._same_key}\n"
            f"   AND {self._differ(quote(self.table.name), 'kept')}"
        )


# ---------------------------------------------------------------- tables


def table_query(table: TableName) -> str:
    """Query of a table's schema, and of its foreign keys: names and definitions."""
    return f"""
SELECT relnamespace::regnamespace::text,
       (SELECT json_agg(json_build_array(conname, pg_get_constraintdef(c.oid)) ORDER BY c.oid)
          FROM pg_constraint AS c WHERE conrelid = pg_class.oid AND contype = 'f')::text
  FROM pg_class WHERE oid = to_regclass({literal(table.sql)})"""


def move_away(table: TableName, kept: str, definition: tuple[str | None, ...]) -> Statement:
    """Move the table out of the way, with its rows; what it refers to is free of it."""
    name = kept.partition(".")[2]
    keys = "".join(
        f"\n        ALTER TABLE {table.sql} DROP CONSTRAINT IF EXISTS {quote(key)};"
        for key, _ in json.loads(definition[1] or "[]")
    )
    return stages.when(
        f"to_regclass({literal(kept)}) IS NULL",
        f"LOCK TABLE {table.sql} IN ACCESS EXCLUSIVE MODE;{keys}\n"
        f"        ALTER TABLE {table.sql} RENAME TO {name};\n"
        f"        ALTER TABLE {TableName(table.schema, name).sql} SET SCHEMA datamig",
    )


def nothing_refers(table: TableName) -> Condition:
    """No foreign key and no view would go with the table, or go on using it unseen."""
    oid = f"to_regclass({literal(table.sql)})"
    return Condition(
        f"no foreign key and no view needs {table}",
        "SELECT conrelid::regclass::text AS relation, conname FROM pg_constraint\n"
        f" WHERE confrelid = {oid} AND conrelid <> confrelid AND contype = 'f'\n"
        " UNION ALL\nSELECT DISTINCT ev_class::regclass::text, rulename FROM pg_depend\n"
        "  JOIN pg_rewrite ON classid = 'pg_rewrite'::regclass AND objid = pg_rewrite.oid\n"
        f" WHERE refobjid = {oid} AND ev_class <> {oid}",
    )


def move_back(
    table: TableName, kept: str, definition: tuple[str | None, ...]
) -> tuple[Statement, ...]:
    """Move the table back to where it was, and prove its foreign keys again."""
    schema, name = definition[0], kept.partition(".")[2]
    back = stages.when(
        f"to_regclass({literal(kept)}) IS NOT NULL",
        f"ALTER TABLE {kept} SET SCHEMA {schema};\n"
        f"        ALTER TABLE {schema}.{name} RENAME TO {quote(table.name)}",
    )
    keys = json.loads(definition[1] or "[]")
    return (
        back,
        *(each for key, text in keys for each in _constraint_back(table, key, "f", text, None)),
    )

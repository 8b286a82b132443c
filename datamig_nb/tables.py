"""Tables as the server's catalog describes them: columns, keys, references to and from them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from datamig_nb.errors import UnknownColumnError, UnknownTableError
from datamig_nb.names import TableName


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column as the catalog describes it."""

    name: str
    #: Type with its modifiers, as ``format_type`` writes it: ``character varying(50)``.
    type: str
    not_null: bool
    #: Longest text that fits, in characters; None where the type has no limit.
    length: int | None
    #: True for a generated or identity-always column, which no UPDATE may set.
    generated: bool
    #: True for a generated column, which no INSERT may set either.
    computed: bool = False


@dataclass(frozen=True, kw_only=True)
class ForeignKey:
    """A foreign key of a table."""

    name: str
    columns: tuple[str, ...]
    parent: TableName
    parent_columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A foreign key that points to a table."""

    name: str
    child: TableName
    #: Whether the search path finds the child without its schema.
    visible: bool
    columns: tuple[str, ...]
    parent_columns: tuple[str, ...]
    #: What a delete of the parent does to the child: ``CASCADE``, ``SET NULL``, ``SET DEFAULT``;
    #: None where it is refused.
    on_delete: str | None

    @property
    def name_of_child(self) -> TableName:
        """The child by the name that one would call it."""
        return TableName(None, self.child.name) if self.visible else self.child

    def is_of(self, table: TableName) -> bool:
        """Whether the child is the table of that name."""
        if table.schema is None:
            return self.visible and self.child.name == table.name
        return self.child == table


#: Rows of a table that the migration is going to create.
NOT_YET = -2


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as the catalog describes it."""

    name: TableName
    columns: tuple[Column, ...]
    #: Columns of the primary key, else of a unique index over NOT NULL columns; () if none.
    key: tuple[str, ...]
    #: Columns of each unique index that covers every row.
    unique: tuple[tuple[str, ...], ...]
    foreign_keys: tuple[ForeignKey, ...]
    #: Names of the unique indexes, in their order.
    unique_names: tuple[str, ...] = ()
    #: Columns that an index reads, in its key, its expressions or its condition.
    indexed: frozenset[str] = frozenset()
    #: Columns that some index over all rows begins with.
    sought: frozenset[str] = frozenset()
    #: Whether it is a partitioned table.
    partitioned: bool = False
    #: What it is, where it is no table: ``view``, ``materialized view``, ``foreign table``.
    kind: str = "table"
    #: Foreign keys that point to it.
    referenced_by: tuple[Reference, ...] = ()
    #: The planner's row count; -1 where the table was never analysed.
    estimated_rows: int
    #: Bytes of the table with its indexes and out-of-line values.
    total_bytes: int

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises
        ------
        UnknownColumnError
            If the table has none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise UnknownColumnError(
            str(self.name), name, tuple(column.name for column in self.columns)
        )

    def has(self, name: str) -> bool:
        """Whether the table has a column of that name."""
        return any(column.name == name for column in self.columns)


def read_table(connection: sa.Connection, name: TableName) -> Table:
    """What the catalog says of a table, within a session that is open already."""
    found = connection.execute(sa.text(_TABLE), {"name": name.sql}).one_or_none()
    if found is None:
        known = connection.execute(sa.text(_TABLES)).scalars().all()
        near = [full for full in known if full.split(".", 1)[1] == name.name]
        raise UnknownTableError(str(name), near or difflib.get_close_matches(str(name), known, 3))

    def asked(query: str) -> sa.CursorResult[*tuple[Any, ...]]:
        return connection.execute(sa.text(query), {"oid": found.oid})

    uniques = asked(_UNIQUES).all()
    return Table(
        name=name,
        columns=tuple(Column(**row) for row in asked(_COLUMNS).mappings()),
        key=next((tuple(index.columns) for index in uniques if index.not_null), ()),
        unique=tuple(tuple(index.columns) for index in uniques),
        unique_names=tuple(index.name for index in uniques),
        foreign_keys=tuple(
            ForeignKey(
                name=row.name,
                columns=tuple(row.columns),
                parent=TableName(row.parent_schema, row.parent_table),
                parent_columns=tuple(row.parent_columns),
            )
            for row in asked(_FOREIGN_KEYS)
        ),
        indexed=frozenset(asked(_INDEXED).scalars()),
        sought=frozenset(asked(_SOUGHT).scalars()),
        partitioned=found.partitioned,
        kind=found.kind,
        referenced_by=tuple(
            Reference(
                name=row.name,
                child=TableName(row.child_schema, row.child_table),
                visible=row.visible,
                columns=tuple(row.columns),
                parent_columns=tuple(row.parent_columns),
                on_delete=row.on_delete,
            )
            for row in asked(_REFERENCES)
        ),
        estimated_rows=found.estimated_rows,
        total_bytes=found.total_bytes,
    )


# ---------------------------------------------------------------- the catalog's own words

_TABLE = """
SELECT pg_class.oid,
       relkind = 'p' AS partitioned,
       CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
                    WHEN 'f' THEN 'foreign table' ELSE 'table' END AS kind,
       reltuples::bigint AS estimated_rows,
       pg_total_relation_size(pg_class.oid) AS total_bytes
  FROM pg_class
 WHERE pg_class.oid = to_regclass(:name) AND relkind IN ('r', 'p', 'v', 'm', 'f')
"""

_TABLES = """
SELECT nspname || '.' || relname
  FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE relkind IN ('r', 'p', 'v', 'm', 'f')
   AND nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'datamig')
 ORDER BY 1
"""

_COLUMNS = r"""
SELECT attname AS name,
       format_type(atttypid, atttypmod) AS type,
       attnotnull AS not_null,
       CASE WHEN atttypid IN ('varchar'::regtype, 'bpchar'::regtype) AND atttypmod > 4
            THEN atttypmod - 4 END AS length,
       attgenerated <> '' OR attidentity = 'a' AS generated,
       attgenerated <> '' AS computed
  FROM pg_attribute
 WHERE attrelid = :oid AND attnum > 0 AND NOT attisdropped
 ORDER BY attnum
"""

# The primary key first, then the unique index with the fewest columns.
_UNIQUES = """
SELECT array_agg(attname::text ORDER BY place) AS columns,
       bool_and(attnotnull) AS not_null,
       (SELECT relname::text FROM pg_class WHERE oid = indexrelid) AS name
  FROM pg_index
 CROSS JOIN LATERAL unnest(indkey::smallint[]) WITH ORDINALITY AS part (attnum, place)
  JOIN pg_attribute ON attrelid = indrelid AND pg_attribute.attnum = part.attnum
 WHERE indrelid = :oid AND indisunique AND indisvalid
   AND indpred IS NULL AND indexprs IS NULL AND place <= indnkeyatts
 GROUP BY indexrelid, indisprimary
 ORDER BY indisprimary DESC, count(*), indexrelid
"""

_INDEXED = """
SELECT attname::text
  FROM pg_attribute
 WHERE attrelid = :oid AND attnum > 0 AND NOT attisdropped
   AND EXISTS (SELECT FROM pg_index
                WHERE indrelid = attrelid
                  AND (attnum = ANY (indkey)
                       OR EXISTS (SELECT FROM pg_depend
                                   WHERE classid = 'pg_class'::regclass AND objid = indexrelid
                                     AND refobjid = attrelid AND refobjsubid = attnum)))
"""

_SOUGHT = """
SELECT attname::text
  FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
 WHERE indrelid = :oid AND indisvalid AND indpred IS NULL
"""

# Names of a foreign key's columns, here and in the parent, in the order of the key.
_COLUMNS_OF = """(SELECT array_agg(attname::text ORDER BY place)
          FROM unnest({}key) WITH ORDINALITY AS part (attnum, place)
          JOIN pg_attribute ON attrelid = {}relid AND pg_attribute.attnum = part.attnum)"""
_OWN = f"{_COLUMNS_OF.format('con', 'con')} AS columns"
_PARENTS = f"{_COLUMNS_OF.format('conf', 'conf')} AS parent_columns"

_FOREIGN_KEYS = f"""
SELECT conname AS name,
       {_OWN},
       nspname AS parent_schema,
       relname AS parent_table,
       {_PARENTS}
  FROM pg_constraint
  JOIN pg_class ON pg_class.oid = confrelid
  JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE conrelid = :oid AND contype = 'f'
 ORDER BY conname
"""

# Those of partitions aside, which belong to that of their table.
_REFERENCES = f"""
SELECT conname AS name,
       nspname AS child_schema,
       relname AS child_table,
       pg_table_is_visible(pg_class.oid) AS visible,
       {_OWN},
       {_PARENTS},
       CASE confdeltype WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL'
                        WHEN 'd' THEN 'SET DEFAULT' END AS on_delete
  FROM pg_constraint
  JOIN pg_class ON pg_class.oid = conrelid
  JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE confrelid = :oid AND contype = 'f' AND conparentid = 0
 ORDER BY conname
"""

"""A part of a database that is whole in itself, for a rehearsal on the embedded server.

The schema comes from pg_dump, the rows by COPY from one snapshot of the source, where no more than
SELECT is needed: a random part of each table, the odd values of the columns that the revision
names, and every row that one of these refers to.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import IsolationLevel
from psycopg.rows import dict_row

from datamig_nb.clone import Clone, copy_settings, lacking, missing_extensions
from datamig_nb.clones import claimed, create
from datamig_nb.database import Database, embedded, explained
from datamig_nb.display import counted
from datamig_nb.errors import RehearsalError
from datamig_nb.names import TableName, literal, quote
from datamig_nb.pg_programs import run_program, table_pattern

#: Rows of each table where neither fraction nor rows is given.
ROWS = 10_000

#: Smaller tables are taken as a whole: much of what they hold is referred to by name.
WHOLE_ROWS = 1_000

# From here on pages are drawn, not rows: to choose among the rows, all would have to be read.
_LARGE_PAGES = 10_000

# Keys of parents that are looked up at once.
_KEYS = 5_000

_Session = psycopg.Connection[dict[str, Any]]


@contextmanager
def sampled(
    source: Database,
    label: str,
    text: str,
    *,
    fraction: float | None = None,
    rows: int | None = None,
) -> Generator[Clone]:
    """A referentially whole part of the source on the embedded server, dropped at the end.

    Parameters
    ----------
    text
        The revision's: of tables and columns that it names, odd values are taken too.
    fraction, rows
        How much of each table: a share up to 1, or a number of rows; ROWS if neither is given.

    Raises
    ------
    RehearsalError
        If both are given, or the schema or the rows cannot be copied.
    """
    both = fraction is not None and rows is not None
    if (
        both
        or not 0 < (1 if fraction is None else fraction) <= 1
        or (rows is not None and rows < 1)
    ):
        raise RehearsalError("a sample cannot have that size", "give fraction= up to 1, or rows=")
    with claimed(embedded(), label) as place:
        create(place, "TEMPLATE template0", source)
        words = frozenset(re.findall(r"\w+", text))
        made, about = _fill(source, place, words, fraction, ROWS if rows is None else rows)
        yield Clone(url=place.url, version=place.version, made=made, source_rows=about)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A table of the source; a partitioned one stands for its partitions."""

    name: TableName
    #: Columns -> type category; without those that PostgreSQL computes.
    columns: Mapping[str, str]
    #: As a FROM item: these rows, and not those of tables that inherit.
    item: str
    #: About so many.
    rows: float
    pages: int

    @property
    def list(self) -> str:
        """The columns as SQL."""
        return ", ".join(map(quote, self.columns))


def _fill(
    source: Database, target: Database, words: frozenset[str], fraction: float | None, rows: int
) -> tuple[str, dict[str, int]]:
    """Fill the target; what it holds and lacks, in words, and the rows of the source's tables."""
    with (
        explained("taking a sample", source.url),
        tempfile.TemporaryDirectory(prefix="datamig-") as directory,
        _session(source) as theirs,
        _session(target) as ours,
    ):
        theirs.isolation_level, theirs.read_only = IsolationLevel.REPEATABLE_READ, True
        found = theirs.execute(_TABLES.encode()).fetchall()
        unread = [row for row in found if not row["readable"]]
        dump = Path(directory, "schema")
        _dump_schema(source, dump, unread)
        lacks = _restore(target, dump, "pre-data")
        there = {TableName(*row.values()) for row in ours.execute(_THERE.encode())}
        missing = missing_extensions(source, target)
        needing = [
            row
            for row in found
            if row["readable"] and TableName(row["schema"], row["name"]) not in there
        ]
        if missing and (named := [row for row in needing if row["name"] in words]):
            without = " and ".join(_listed("without them it cannot hold", named))
            raise lacking(missing, target, f"{without}, which the revision names")
        tables = {
            name: _table(theirs, row, name)
            for row in found
            if row["readable"] and row["columns"]
            if (name := TableName(row["schema"], row["name"])) in there
        }
        keys = theirs.execute(_FOREIGN_KEYS.encode()).fetchall()
        count = _draw(theirs, ours, tables.values(), words, fraction, rows)
        count += _add_parents(theirs, ours, keys, tables)
        ours.execute(_SET_SEQUENCES.encode())
        ours.commit()
        lacks += _restore(target, dump, "post-data")
        lacks = [lack for lack in lacks if not any(f'extension "{e}"' in lack for e in missing)]
        held = len(ours.execute(_FOREIGN_KEYS.encode()).fetchall())
        ours.execute(b"ANALYZE")
        ours.commit()
    copy_settings(source, target)
    about = {str(table.name): round(table.rows) for table in tables.values()}
    said = [
        f"{counted(count, 'row')} of about {sum(about.values()):,} in"
        f" {counted(len(tables), 'table')}, on the embedded server, PostgreSQL {target.version}",
        f"{held} of {counted(len(keys), 'foreign key')} validated",
        *_listed("no right to read", unread),
        *([f"this server lacks the extensions {', '.join(missing)}"] if missing else []),
        *(_listed("which are needed by", needing) if missing else []),
        *_listed("rows hidden by row-level security in", [r for r in found if r["filtered"]]),
    ]
    return "; ".join([*said, *dict.fromkeys(f"left out: {lack}" for lack in lacks)]), about


def _listed(what: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = ", ".join(f"{row['schema']}.{row['name']}" for row in rows)
    return [f"{what} {names}"] if names else []


@contextmanager
def _session(database: Database) -> Generator[_Session]:
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    # What is written as text must be read as the same value.
    options = "-c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=1"
    options += " -c client_encoding=UTF8 -c statement_timeout=0"
    with _Session.connect(url, options=options, row_factory=dict_row) as session:
        yield session


# ---------------------------------------------------------------- the schema


def _dump_schema(source: Database, path: Path, unreadable: Sequence[Mapping[str, Any]]) -> None:
    patterns = [table_pattern(TableName(row["schema"], row["name"])) for row in unreadable]
    result = run_program(
        "pg_dump",
        source,
        *("--schema-only", "--format=custom", f"--file={path}"),
        *("--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions"),
        *(f"--exclude-table={pattern}" for pattern in patterns),
    )
    if result.returncode:
        raise RehearsalError(
            f"the schema cannot be read: {result.stderr.strip().splitlines()[0]}",
            "give the role the right to SELECT what it is to migrate",
        )


def _restore(target: Database, dump: Path, section: str) -> list[str]:
    """Restore a part of the schema; what was not possible here, in PostgreSQL's words."""
    options = (f"--section={section}", "--no-owner", "--no-privileges", dump)
    result = run_program("pg_restore", target, *options)
    return re.findall(r"^pg_restore: error: .*?ERROR:  (.*)$", result.stderr, re.MULTILINE)


# ---------------------------------------------------------------- the rows


def _draw(
    source: _Session,
    target: _Session,
    tables: Iterable[_Table],
    words: frozenset[str],
    fraction: float | None,
    rows: int,
) -> int:
    """Copy a part of each table; how many rows these are."""
    count = 0
    for table in tables:
        share = 1 if table.rows <= WHOLE_ROWS else fraction or min(rows / table.rows, 1)
        places = _odd_places(source, table, share, words)
        count += _copy(source, target, _wanted(table, share, places), table)
    return count


def _table(source: _Session, row: Mapping[str, Any], name: TableName) -> _Table:
    item = name.sql if row["partitioned"] else f"ONLY {name.sql}"
    rows = row["rows"]
    if rows is None:  # never analysed
        found = source.execute(f"SELECT count(*) AS rows FROM {item}".encode())
        rows = found.fetchall()[0]["rows"]
    return _Table(name=name, columns=row["columns"], item=item, rows=rows, pages=row["pages"])


def _odd_places(source: _Session, table: _Table, share: float, words: frozenset[str]) -> list[str]:
    """Where rows with odd values are, of the columns that the revision names."""
    if share == 1 or table.name.name not in words:
        return []
    statements = [
        _ODD.format(
            # Numbers, texts, times, enums, booleans and addresses have an order of their own.
            value=quote(column) if category in "NSDTEBI" else f"{quote(column)}::text",
            item=table.item,
        )
        for column, category in table.columns.items()
        if column in words
    ]
    places = {row["place"] for odd in statements for row in source.execute(odd.encode()).fetchall()}
    return sorted(places)


def _wanted(table: _Table, share: float, places: Sequence[str]) -> str:
    """The query of a random part of the rows, and of those at these places."""
    if share == 1:
        return f"SELECT {table.list} FROM {table.item}"
    method = "SYSTEM" if table.pages > _LARGE_PAGES else "BERNOULLI"
    drawn = f"{table.item} AS drawn TABLESAMPLE {method} ({100 * share:.6f}) REPEATABLE (1)"
    query = f"SELECT {table.list} FROM {drawn}"
    if not places:
        return query
    tids = ", ".join(literal(place.split(" ", 1)[1]) for place in places)
    return (
        f"{query}\nUNION ALL\nSELECT {table.list} FROM {table.item} AS odd\n"
        f" WHERE ctid = ANY (ARRAY[{tids}]::tid[])\n"
        f"   AND tableoid || ' ' || ctid = ANY (ARRAY[{', '.join(map(literal, places))}])\n"
        f"   AND NOT EXISTS (SELECT FROM {drawn}\n"
        "                    WHERE drawn.tableoid = odd.tableoid AND drawn.ctid = odd.ctid)"
    )


def _copy(source: _Session, target: _Session, query: str, table: _Table) -> int:
    into = f"COPY {table.name.sql} ({table.list}) FROM STDIN"
    with (
        target.cursor() as writer,
        source.cursor().copy(f"COPY ({query}) TO STDOUT".encode()) as rows,
    ):
        with writer.copy(into.encode()) as written:
            for data in rows:
                written.write(data)
        return writer.rowcount


def _add_parents(
    source: _Session,
    target: _Session,
    keys: Sequence[Mapping[str, Any]],
    tables: Mapping[TableName, _Table],
) -> int:
    """Add every row that a row refers to, until none is missing; how many these were."""
    total, added = 0, 1
    while added:
        added = 0
        for key in keys:
            child = TableName(key["child_schema"], key["child"])
            parent = tables.get(TableName(key["parent_schema"], key["parent"]))
            if child in tables and parent is not None:
                while more := _add_missing(source, target, key, tables[child], parent):
                    added += more
        total += added
    return total


def _add_missing(
    source: _Session, target: _Session, key: Mapping[str, Any], child: _Table, parent: _Table
) -> int:
    """Add some of the rows that are missing for a foreign key; how many the source had of them."""
    columns, parents = [[quote(c) for c in key[side]] for side in ("columns", "parent_columns")]
    pairs = list(zip(columns, parents, strict=True))
    given = ", ".join(f"child.{column}::text AS {column}" for column in columns)
    filled = " AND ".join(f"child.{column} IS NOT NULL" for column in columns)
    same = " AND ".join(f"parent.{p} = child.{c}" for c, p in pairs)
    missing = target.execute(
        f"SELECT DISTINCT {given} FROM {child.item} AS child WHERE {filled} AND NOT EXISTS"
        f" (SELECT FROM {parent.item} AS parent WHERE {same}) LIMIT {_KEYS}".encode()
    ).fetchall()
    if not missing:
        return 0
    arrays = ", ".join(
        f"ARRAY[{', '.join(literal(row[name]) for row in missing)}]::{type}[]"
        for name, type in zip(key["columns"], key["types"], strict=True)
    )
    wanted = f"SELECT {', '.join(parents)} FROM unnest({arrays}) AS wanted ({', '.join(parents)})"
    query = f"SELECT {parent.list} FROM {parent.item} WHERE ({', '.join(parents)}) IN ({wanted})"
    return _copy(source, target, query, parent)


_TABLES = """
SELECT nspname AS schema,
       relname AS name,
       relkind = 'p' AS partitioned,
       has_schema_privilege(pg_namespace.oid, 'USAGE')
           AND (has_table_privilege(pg_class.oid, 'SELECT') OR may_read) AS readable,
       row_security_active(pg_class.oid) AS filtered,
       columns,
       pages,
       CASE WHEN counted THEN rows END AS rows
  FROM pg_class
  JOIN pg_namespace ON pg_namespace.oid = relnamespace
 CROSS JOIN LATERAL (
        SELECT coalesce(jsonb_object_agg(attname, typcategory ORDER BY attnum), '{}') AS columns,
               bool_and(has_column_privilege(attrelid, attnum, 'SELECT')) AS may_read
          FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
         WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
           AND attgenerated = '') AS own
 CROSS JOIN LATERAL (
        SELECT sum(pg_relation_size(part.oid) / current_setting('block_size')::int)::int AS pages,
               bool_and(part.reltuples > 0 AND part.relpages > 0
                        OR pg_relation_size(part.oid) = 0) AS counted,
               sum(part.reltuples / greatest(part.relpages, 1)
                   * pg_relation_size(part.oid) / current_setting('block_size')::int) AS rows
          FROM pg_class AS part
         WHERE part.relkind = 'r'
           AND (part.oid = pg_class.oid
                OR part.oid IN (SELECT relid FROM pg_partition_tree(pg_class.oid)))) AS size
 WHERE relkind IN ('r', 'p') AND NOT relispartition AND relpersistence <> 't'
   AND nspname NOT IN ('pg_catalog', 'information_schema')
   AND (nspname <> 'datamig' OR relname = 'run')  -- what a later phase asks for
   AND nspname NOT LIKE 'pg_temp%' AND nspname NOT LIKE 'pg_toast%'
   AND NOT EXISTS (SELECT FROM pg_depend
                    WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid
                      AND deptype = 'e')
 ORDER BY nspname, relname
"""

_THERE = """
SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE relkind IN ('r', 'p')
"""

# Nothing and as good as nothing; the longest, first and last; what is not ASCII, or has blanks
# where none are seen; the rarest.
_ODD = r"""
WITH found AS MATERIALIZED (
    SELECT {value} AS value, count(*) AS n, min(tableoid || ' ' || ctid) AS place
      FROM {item}
     GROUP BY 1
)
SELECT place FROM found WHERE value IS NULL
 UNION (SELECT place FROM found WHERE value::text ~ '^\s*$' LIMIT 20)
 UNION (SELECT place FROM found ORDER BY length(value::text) DESC NULLS LAST LIMIT 3)
 UNION (SELECT place FROM found WHERE value IS NOT NULL ORDER BY value LIMIT 1)
 UNION (SELECT place FROM found WHERE value IS NOT NULL ORDER BY value DESC LIMIT 1)
 UNION (SELECT place FROM found
         WHERE value::text ~ '[^[:ascii:]]|^\s|\s$|\s\s' ORDER BY n, value LIMIT 20)
 UNION (SELECT place FROM found ORDER BY n, value LIMIT 100)
"""

_FOREIGN_KEYS = """
SELECT child_space.nspname AS child_schema,
       child.relname AS child,
       parent_space.nspname AS parent_schema,
       parent.relname AS parent,
       columns,
       parent_columns,
       types
  FROM pg_constraint
  JOIN pg_class AS child ON child.oid = conrelid
  JOIN pg_namespace AS child_space ON child_space.oid = child.relnamespace
  JOIN pg_class AS parent ON parent.oid = confrelid
  JOIN pg_namespace AS parent_space ON parent_space.oid = parent.relnamespace
 CROSS JOIN LATERAL (
        SELECT array_agg(mine.attname::text ORDER BY place) AS columns,
               array_agg(theirs.attname::text ORDER BY place) AS parent_columns,
               array_agg(format_type(theirs.atttypid, NULL) ORDER BY place) AS types
          FROM unnest(conkey, confkey) WITH ORDINALITY AS part (own, other, place)
          JOIN pg_attribute AS mine ON mine.attrelid = conrelid AND mine.attnum = own
          JOIN pg_attribute AS theirs ON theirs.attrelid = confrelid AND theirs.attnum = other
       ) AS part
 WHERE contype = 'f' AND conparentid = 0 AND convalidated
 ORDER BY 1, 2, conname
"""

_SET_SEQUENCES = """
DO $$
DECLARE
    owned record;
BEGIN
    FOR owned IN
        SELECT objid::regclass AS sequence, refobjid::regclass AS holder, attname AS name
          FROM pg_depend
          JOIN pg_class ON pg_class.oid = objid AND relkind = 'S'
          JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
         WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass
           AND deptype IN ('a', 'i')
    LOOP
        EXECUTE format('SELECT setval(%L, max(%I)) FROM %s HAVING max(%I) > 0',
                       owned.sequence, owned.name, owned.holder, owned.name);
    END LOOP;
END
$$
"""

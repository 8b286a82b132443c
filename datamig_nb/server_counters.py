"""What a server says of its disk and its tables at one moment, before and after a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from datamig_nb.database import run
from datamig_nb.measure import Growth

#: Bytes of the heap, of indexes and out-of-line values, and dead rows.
Size = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What the server says at one moment."""

    at: float = 0.0
    wal: int = 0
    whole_pages: int = 0
    temp_files: int = 0
    temp_bytes: int = 0
    buffers: int = 0
    size: int = 0
    sizes: Mapping[str, Size] = field(default_factory=dict[str, Size])


def totals(session: sa.Connection) -> Totals:
    """What the server says now."""
    found = session.execute(sa.text(_TOTALS)).mappings().one()
    rows = session.execute(sa.text(_SIZES))
    sizes = {row.name: (row.heap, row.total - row.heap, row.dead) for row in rows}
    return Totals(**found, size=database_size(session), sizes=sizes)


def growths(before: Mapping[str, Size], after: Mapping[str, Size]) -> tuple[Growth, ...]:
    """The tables whose size changed, or that came or went."""
    return tuple(
        Growth(
            table=name,
            heap_before=old[0],
            heap_after=new[0],
            indexes_before=old[1],
            indexes_after=new[1],
            dead_rows=max(0, new[2] - old[2]),
        )
        for name in sorted(before.keys() | after.keys())
        if (old := before.get(name, (0, 0, 0))) != (new := after.get(name, (0, 0, 0)))
    )


def database_size(session: sa.Connection) -> int:
    """In bytes; 0 where it cannot be told right now."""
    with suppress(DBAPIError):  # a file went away while it was looked at
        return int(run(session, "SELECT pg_database_size(current_database())").scalar_one())
    return 0


_SIZES = """
SELECT format('%s.%s', nspname, pg_class.relname) AS name,
       pg_relation_size(pg_class.oid) AS heap,
       pg_total_relation_size(pg_class.oid) AS total,
       coalesce(n_dead_tup, 0) AS dead
  FROM pg_class
  JOIN pg_namespace ON pg_namespace.oid = relnamespace
  LEFT JOIN pg_stat_all_tables ON relid = pg_class.oid
 WHERE relkind IN ('r', 'm')
   AND nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
   AND (nspname, pg_class.relname) <> ('datamig', 'run')
"""

_TOTALS = """
SELECT extract(epoch FROM clock_timestamp())::float8 AS at,
       (pg_current_wal_insert_lsn() - '0/0')::bigint AS wal,
       (SELECT wal_fpi FROM pg_stat_wal) AS whole_pages, temp_files, temp_bytes,
       (SELECT pg_size_bytes(current_setting('shared_buffers'))) AS buffers
  FROM pg_stat_database WHERE datname = current_database()
"""

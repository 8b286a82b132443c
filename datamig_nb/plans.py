"""How PostgreSQL goes about a batch: the plan of its statement, with a range from the middle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from datamig_nb.database import Database, is_there, run
from datamig_nb.expressions import BATCH_MARK, PARTNER_MARK, SURE_MARK


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The plan of the statement of one batch, after an upgrade."""

    #: Name of the walk.
    step: str
    #: Nodes that read tables, in words: ``Index Scan of guide.task by task_pkey``.
    scans: tuple[str, ...]
    #: Tables that each batch reads from beginning to end.
    read_whole: tuple[str, ...]
    #: Why there is no plan; "" where there is one.
    unknown: str = ""


def plans_of_batches(db: Database, since: float) -> tuple[BatchPlan, ...]:
    """The plans of the walks in datamig.run that were at work since a moment, in seconds.

    Nothing is executed.
    """
    with db.read_only("explaining the batches") as connection:
        if not is_there(connection, "datamig.run"):
            return ()
        walks = connection.execute(sa.text(_WALKS), {"since": since}).all()
        return tuple(_plan(connection, walk) for walk in walks)


def _plan(connection: sa.Connection, walk: Any) -> BatchPlan:
    try:
        with connection.begin_nested():
            span = _by_pages(connection, walk) if walk.passes > 1 else _by_key(connection, walk)
            statement = walk.work.replace(BATCH_MARK, span).replace(SURE_MARK, "FALSE")
            if walk.partner is not None:
                of_partner = span.replace(f"({', '.join(walk.walked_by)})", walk.partner)
                statement = statement.replace(PARTNER_MARK, of_partner)
            found = run(connection, f"EXPLAIN (FORMAT JSON, VERBOSE) {statement}").scalar_one()
    except DBAPIError as error:  # the upgrade dropped what it reads
        reason = str(error.orig).splitlines()[0]
        return BatchPlan(step=walk.step, scans=(), read_whole=(), unknown=reason)
    nodes = [node for node in _nodes(found[0]["Plan"]) if "Relation Name" in node]
    scans = [node for node in nodes if node["Node Type"] != "ModifyTable"]
    return BatchPlan(
        step=walk.step,
        scans=tuple(dict.fromkeys(map(_worded, scans))),
        read_whole=tuple(
            dict.fromkeys(_relation(node) for node in scans if node["Node Type"] == "Seq Scan")
        ),
    )


def _by_key(connection: sa.Connection, walk: Any) -> str:
    """The range of a batch in the middle of a walk by key."""
    key = ", ".join(walk.walked_by)
    texts = " || ', ' || ".join(
        f"quote_literal(to_json({part}) #>> '{{}}')" for part in walk.walked_by
    )
    select = f"SELECT {texts} FROM {walk.relation} ORDER BY {key}"
    middle = walk.scanned // 2
    bounds = [
        run(connection, f"{select} OFFSET {place} LIMIT 1").scalar_one_or_none()
        for place in (max(0, middle - walk.batch_rows), middle)
    ]
    return (
        " AND ".join(
            f"({key}) {operator} ({bound})"
            for operator, bound in zip((">", "<="), bounds, strict=True)
            if bound is not None
        )
        or f"({key}) IS NOT NULL"
    )


def _by_pages(connection: sa.Connection, walk: Any) -> str:
    """The range of a batch of a woven walk: pages in the middle, and the rows of one pass."""
    query = sa.text(
        "SELECT pg_relation_size(CAST(:name AS regclass)) / current_setting('block_size')::int"
    )
    pages = int(connection.execute(query, {"name": walk.heap}).scalar_one())
    many = max(1, int(walk.batch_rows * walk.passes / max(1.0, walk.page_rows)))
    upper = max(1, pages // 2)
    return (
        f"(ctid) <= ('({upper},0)') AND (ctid) > ('({max(0, upper - many)},0)')"
        f" AND abs({walk.woven} % {walk.passes}) = 0"
    )


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for part in node.get("Plans", ()):
        yield from _nodes(part)


def _relation(node: dict[str, Any]) -> str:
    return f"{node.get('Schema', '')}.{node['Relation Name']}".lstrip(".")


def _worded(node: dict[str, Any]) -> str:
    by = f" by {node['Index Name']}" if "Index Name" in node else ""
    return f"{node['Node Type']} of {_relation(node)}{by}"


_WALKS = """
SELECT DISTINCT ON (step)
       step, heap, relation, work, partner, walked_by, key, woven, passes, page_rows, scanned,
       batch_rows
  FROM datamig.run
 WHERE part > 0 AND heartbeat_at >= to_timestamp(:since)
   AND work IS NOT NULL AND walked_by IS NOT NULL
 ORDER BY step, part
"""

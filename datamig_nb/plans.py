"""How PostgreSQL goes about a batch: the plan of the last full one of each walk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from datamig_nb.database import Database, is_there, run


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

    Nothing is executed.  Each is that of the walk's last full batch.
    """
    with db.read_only("explaining the batches") as connection:
        if not is_there(connection, "datamig.run"):
            return ()
        walks = connection.execute(sa.text(_WALKS), {"since": since}).all()
        return tuple(_plan(connection, walk) for walk in walks)


def _plan(connection: sa.Connection, walk: Any) -> BatchPlan:
    try:
        with connection.begin_nested():
            found = run(connection, f"EXPLAIN (FORMAT JSON, VERBOSE) {walk.statement}").scalar_one()
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
SELECT DISTINCT ON (step) step, statement FROM datamig.run
 WHERE part > 0 AND heartbeat_at >= to_timestamp(:since) AND statement IS NOT NULL
 ORDER BY step, part
"""

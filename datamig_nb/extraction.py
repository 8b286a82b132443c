"""A table of names gets a successor with slugs, and what refers to it is repointed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from datamig_nb.checks import check, rows_check
from datamig_nb.compound import change_type, create_table_as
from datamig_nb.expr import slug as slug_of
from datamig_nb.expressions import Expression, expression_text
from datamig_nb.migration import Migration, Step
from datamig_nb.names import TableName, cut, literal, quote
from datamig_nb.operations import (
    create_foreign_key,
    create_index,
    create_table,
    drop_constraint,
)
from datamig_nb.step_groups import advance_sequence
from datamig_nb.steps import insert_rows

_INTEGER = sa.Integer()


def extract_table(
    source: str,
    into: str,
    *,
    children: Mapping[str, str],
    name: str = "name",
    parent: str | None = None,
    columns: Sequence[sa.Column[Any]] = (),
    key: str = "id",
    type: sa.types.TypeEngine[Any] = _INTEGER,
    slug: Expression | None = None,
    same: Expression | None = None,
    unnamed: str | None = None,
    old_keys: Mapping[str, str | None] | None = None,
) -> Migration:
    """Make a table of unique slugs from a table of names, and repoint the tables that refer to it.

    Rows that are the same become one, and keep the lowest of their keys: what refers to a row from
    outside, a link or a log, stays right.  ``<into>_map`` holds for every old key the new one, and
    stays.  Each child gets a new column, filled by that map in one pass, so that no row is remapped
    twice; it takes the place of the old one, which stays as ``<column>_old``, in one short
    transaction.  New foreign keys are added in stages.  The downgrade gives back every old value;
    rows written since keep theirs, which the old table knows.

    The old table stays as it is; a later migration drops it.  Rows that are added to it meanwhile
    are not taken over: a child that refers to one stops the migration.

    Parameters
    ----------
    children
        Table -> its column that refers to ``key`` of the source.
    parent
        Column of the source that refers to the row above it.  It is carried over by the map, and a
        loop, as two rows that become one may make it, stops the migration.
    columns
        More columns to take over, with their types.
    type
        Type of the key.
    slug
        SQL expression over a row; :func:`datamig_nb.expr.slug` of the name by default.  Different
        rows with one slug are numbered by their keys: ``food``, ``food-2``.
    same
        SQL expression over a row; rows for which it gives the same become one.  The name by
        default; NULL is the same as nothing.
    unnamed
        Rows without a slug get this word and their key, as in ``"category"``: ``category-43``.
        None: they stop the migration before its first write.
    old_keys
        Child -> name of its foreign key to the source, None where it has none.  By default the
        name that PostgreSQL gives: ``<table>_<column>_fkey``.
    """
    old, new = TableName.parse(source), TableName.parse(into)
    id_map = TableName(new.schema, f"{new.name}_map")
    text = slug_of(quote(name)) if slug is None else expression_text(slug)
    carried = [name, *([parent] if parent else []), *(column.name for column in columns)]
    steps: list[Step] = []
    if unnamed is None:
        gives = f"every {name} of {source} gives a slug"
        steps.append(rows_check(gives, source, f"({text}) IS NULL", before=True))
    merged = quote(name) if same is None else expression_text(same)
    mapped = _map_query(old, key, text, merged, unnamed)
    steps += [
        create_table_as(id_map, mapped, key="old_id"),
        check(
            f"no slug of {into} comes twice",
            f"SELECT slug, count(*) AS times FROM {id_map.sql}\n"
            " GROUP BY slug HAVING count(*) > 1 AND slug IS NOT NULL ORDER BY slug",
        ),
        create_table(
            new.name,
            sa.Column(key, type, sa.Identity(), primary_key=True),
            sa.Column(name, sa.Text()),
            sa.Column("slug", sa.Text(), nullable=False, unique=True),
            *([sa.Column(parent, type)] if parent else []),
            *columns,
            schema=new.schema,
        ),
        insert_rows(
            into,
            _rows_query(old, id_map, key, carried, parent),
            key=key,
            columns=[key, "slug", *carried],
        ),
        advance_sequence(into, key),
    ]
    if parent:
        steps += [
            _no_loop(new, key, parent),
            create_index(cut(f"{new.name}_{parent}_idx"), new.name, [parent], schema=new.schema),
            _foreign_key(new, parent, new, key),
        ]
    for child, column in children.items():
        steps += _repointed(child, column, id_map, new, key, type, (old_keys or {}))
    return Migration(f"extract {into} from {source}", *steps)


def _map_query(old: TableName, key: str, slug: str, same: str, unnamed: str | None) -> str:
    """For every old key the one that stays, and for that its slug."""
    own = quote(key)
    base = slug if unnamed is None else f"coalesce({slug}, {literal(f'{unnamed}-')} || {own})"
    return f"""SELECT old_id, new_id,
       CASE WHEN old_id = new_id
            THEN base || CASE WHEN place > 1 THEN '-' || place ELSE '' END END AS slug
  FROM (SELECT *, row_number() OVER (PARTITION BY base, old_id = new_id ORDER BY old_id) AS place
          FROM (SELECT {own} AS old_id, {base} AS base,
                       min({own}) OVER (
                           PARTITION BY ({same}), CASE WHEN ({same}) IS NULL THEN {own} END
                       ) AS new_id
                  FROM {old.sql}) AS named) AS placed"""


def _rows_query(
    old: TableName, id_map: TableName, key: str, columns: Sequence[str], parent: str | None
) -> str:
    values = "".join(
        f", above.new_id AS {quote(c)}" if c == parent else f", old.{quote(c)}" for c in columns
    )
    joined = f"{id_map.sql} AS own ON own.old_id = old.{quote(key)} AND own.new_id = own.old_id"
    if parent is not None:
        joined += f"\n  LEFT JOIN {id_map.sql} AS above ON above.old_id = old.{quote(parent)}"
    return f"SELECT old.{quote(key)}, own.slug{values}\n  FROM {old.sql} AS old\n  JOIN {joined}"


def _no_loop(new: TableName, key: str, parent: str) -> Step:
    own, up = quote(key), quote(parent)
    return check(
        f"no row of {new} is above itself",
        "WITH RECURSIVE way (id, above) AS (\n"
        f"    SELECT {own}, {up} FROM {new.sql} WHERE {up} IS NOT NULL\n"
        f"     UNION SELECT way.id, high.{up} FROM way JOIN {new.sql} AS high"
        f" ON high.{own} = way.above\n)\nSELECT id FROM way WHERE id = above ORDER BY id",
    )


def _repointed(
    child: str,
    column: str,
    id_map: TableName,
    new: TableName,
    key: str,
    type: sa.types.TypeEngine[Any],
    old_keys: Mapping[str, str | None],
) -> list[Step]:
    name = TableName.parse(child)
    own = f"{quote(name.name)}.{quote(column)}"
    old_key = old_keys.get(child, f"{name.name}_{column}_fkey")
    steps: list[Step] = []
    if old_key is not None:
        steps.append(drop_constraint(old_key, name.name, "foreignkey", schema=name.schema))
    found = f"(SELECT new_id FROM {id_map.sql} WHERE old_id = {own})"
    index = cut(f"{name.name}_{column}_{new.name}_idx")
    return [
        *steps,
        change_type(child, column, type, using=found, back=quote(column)),
        create_index(index, name.name, [column], schema=name.schema),
        _foreign_key(name, column, new, key),
    ]


def _foreign_key(child: TableName, column: str, parent: TableName, key: str) -> Step:
    return create_foreign_key(
        cut(f"{child.name}_{column}_{parent.name}_fkey"),
        child.name,
        parent.name,
        [column],
        [key],
        source_schema=child.schema,
        referent_schema=parent.schema,
    )

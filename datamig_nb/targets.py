"""What data steps ask of their tables: refused where the catalog shows it, else checked first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from alembic.operations import ops

from datamig_nb import dropped, kept
from datamig_nb.checks import QueryCheck
from datamig_nb.errors import MigrationError
from datamig_nb.expressions import listed
from datamig_nb.migration import Migration, Step, step_table
from datamig_nb.names import TableName, literal, quote
from datamig_nb.statements import indent, names_in, partners, source
from datamig_nb.steps import Backfill, BackUp, DeleteRows, InsertRows, KeepInStep, Sql
from datamig_nb.tables import NOT_YET, Reference, Table
from datamig_nb.transforms import Transform

Tables = Mapping[TableName, Table]

_WRITERS = Backfill | InsertRows | DeleteRows


# ---------------------------------------------------------------- refused


def require(migration: Migration, tables: Tables) -> None:
    """Refuse data steps that their tables do not allow.

    Raises
    ------
    MigrationError
        If a target is no table, nothing overwrites what is to be kept, a foreign key would not be
        checked or would act unseen, or rows that are there could not be found again.
    """
    for number, step in enumerate(migration.steps):
        if isinstance(step, Backfill | InsertRows | DeleteRows | BackUp | KeepInStep):
            _require_table(tables[step.table])
        if isinstance(step, Backfill) and not step.walk.fire_triggers:
            _require_no_foreign_key(step, tables[step.table])
        if isinstance(step, BackUp):
            _require_use(step, migration)
        if isinstance(step, KeepInStep):
            _require_it_stays(step, migration.steps[number + 1 :])
        if isinstance(step, InsertRows):
            _require_key(tables[step.table])
            _require_unique(step, tables[step.table], migration.steps[:number])
        if isinstance(step, DeleteRows):
            parts, earlier = deletions(step, tables), taken_apart(migration.steps[:number], tables)
            for place, part in enumerate(parts):
                _require_no_silent_change(part, tables, (*earlier, *parts[:place]))


def _require_table(table: Table) -> None:
    if table.kind != "table":
        advice = "name the tables beneath it" if "view" in table.kind else "migrate it where it is"
        raise MigrationError(f"{str(table.name)!r} is a {table.kind}, not a table", advice)


def _require_it_stays(step: KeepInStep, later: Iterable[Step]) -> None:
    names = names_in("\n".join(step.assign.values())) | {*step.assign}
    drops = (other for other in later if isinstance(other, ops.DropColumnOp))
    for drop in drops:
        if step_table(drop) == step.table and drop.column_name in names:
            raise MigrationError(
                f"the trigger of keep_in_step() needs {drop.column_name!r} of"
                f" {str(step.table)!r}, which a later step drops",
                "drop it in a migration of its own, when no application writes it any more; or"
                " leave keep_in_step() out",
            )


def _require_no_foreign_key(step: Backfill, table: Table) -> None:
    keys = [(key.name, key.columns) for key in table.foreign_keys]
    keys += [(key.name, key.parent_columns) for key in table.referenced_by]
    for name, columns in keys:
        if set(columns) & set(step.assign):
            raise MigrationError(
                f"{listed(columns)} of {str(table.name)!r} is part of the foreign key {name!r},"
                " which PostgreSQL checks by a trigger: fire_triggers=False would switch it off",
                "leave fire_triggers=False out",
            )


def _require_use(step: BackUp, migration: Migration) -> None:
    goes = [other for other in migration.steps if dropped.kept_by(other, migration.steps) is step]
    columns = {getattr(other, "column_name", "") for other in goes}
    for column in step.columns:
        fills = (*migration.backfills, *migration.transforms)
        is_set = any(fill.table == step.table and column in fill.columns for fill in fills)
        if not is_set and column not in columns:
            raise MigrationError(
                f"back_up() keeps {column!r} of {str(step.table)!r}, but no backfill or"
                " transform sets it and no step drops it",
                "name a column that one does",
            )
    if not step.columns and not goes:
        raise MigrationError(
            f"back_up() keeps the table {str(step.table)!r}, but no step drops it",
            "name columns, or drop the table",
        )


def _require_key(table: Table) -> None:
    if not table.key:
        raise MigrationError(
            f"table {str(table.name)!r} has no key, so the downgrade could not find the rows that"
            " insert_rows() puts in",
            "give it a primary key, or send the INSERT with sql()",
        )


def _require_unique(step: InsertRows, table: Table, earlier: Sequence[Step]) -> None:
    """Refuse an ON CONFLICT over columns of which neither table nor migration has an index."""
    found = re.match(r"\(([^()]*)\)\s*DO\b", step.on_conflict or "", re.IGNORECASE)
    columns = {part.strip() for part in found[1].split(",")} if found else set[str]()
    if not columns or table.estimated_rows == NOT_YET:
        return
    is_plain = columns <= {quote(column.name) for column in table.columns}
    if not is_plain or any({*map(quote, index)} == columns for index in table.unique):
        return
    for other in earlier:
        match other:
            case Sql():
                return  # it may make one
            case ops.CreateUniqueConstraintOp() | ops.CreateIndexOp() | ops.CreatePrimaryKeyOp():
                if step_table(other) == step.table:
                    return
            case _:
                pass
    names = ", ".join(sorted(columns))
    raise MigrationError(
        f"no unique index of {str(step.table)!r} is over {names}, so ON CONFLICT ({names}) finds no"
        " row that is there",
        "put create_unique_constraint() before it, or name the columns of one",
    )


def _require_no_silent_change(step: DeleteRows, tables: Tables, earlier: Sequence[Step]) -> None:
    for reference in tables[step.table].referenced_by:
        if reference.on_delete is None or reference.is_of(step.table):
            continue  # of its own rows, those that refer to one that goes are looked for first
        if _is_prepared(reference, earlier):
            continue
        raise MigrationError(
            f"the foreign key {reference.name!r} of {str(reference.child)!r} says ON DELETE"
            f" {reference.on_delete}: rows there would change with those deleted from"
            f" {str(step.table)!r}, and not be kept",
            "name the table in dependants=, or see to these rows in a step before",
        )


def _is_prepared(reference: Reference, earlier: Sequence[Step]) -> bool:
    """Whether a step before sees to the rows that refer to those that go."""
    for step in earlier:
        match step:
            case Sql():  # it may; the rows are looked at when it is done
                return True
            case DeleteRows() if reference.is_of(step.table):
                return True
            case Backfill(table=table) if reference.is_of(table):
                if set(reference.columns) & set(step.assign):
                    return True
            case _:
                pass
    return False


# ---------------------------------------------------------------- children first


def taken_apart(steps: Iterable[Step], tables: Tables) -> list[Step]:
    """The steps, with each delete as its walks over one table each."""
    parts = (deletions(s, tables) if isinstance(s, DeleteRows) else (s,) for s in steps)
    return [part for each in parts for part in each]


def deletions(step: DeleteRows, tables: Tables) -> tuple[DeleteRows, ...]:
    """The step as walks over one table each: those of its dependants first.

    Raises
    ------
    MigrationError
        If a dependant has no foreign key to the table, or not as many columns as its key; or if
        tables refer to each other in a circle.
    """
    if step.dependants == "all":
        return _deletions_of_all(step, tables)
    children = tuple(
        DeleteRows(
            table=table,
            where="\n OR ".join(
                kept.children(step, each) for each in _references(step, table, tables)
            ),
            keep=step.keep,
            walk=step.walk,
        )
        for table in step.dependants
    )
    return (*children, replace(step, dependants={}))


def _deletions_of_all(step: DeleteRows, tables: Tables) -> tuple[DeleteRows, ...]:
    order = _parents_first(step.table, tables, ())
    parts = {step.table: replace(step, dependants={})}
    for table in order[1:]:
        conditions = [
            kept.children(parts[parent], each)
            for parent in order
            for each in followed(parent, tables)
            if each.name_of_child == table
        ]
        where = "\n OR ".join(conditions)
        parts[table] = replace(parts[step.table], table=table, where=where)
    return tuple(parts[table] for table in reversed(order))


def followed(table: TableName, tables: Tables) -> list[Reference]:
    """Foreign keys of other tables whose rows go with those that they refer to."""
    return [
        each
        for each in tables[table].referenced_by
        if each.on_delete in (None, "CASCADE") and not each.is_of(table)
    ]


def _parents_first(
    table: TableName, tables: Tables, above: tuple[TableName, ...]
) -> list[TableName]:
    """The tables that foreign keys lead to from one, each behind those that it refers to."""
    if table in above:
        raise MigrationError(
            f"{' and '.join(map(str, above[above.index(table) :]))} refer to each other in a"
            " circle, so that neither's rows can go first",
            "set the columns to NULL by a backfill() before, and name the tables in dependants=",
        )
    order: list[TableName] = []
    for each in followed(table, tables):
        below = _parents_first(each.name_of_child, tables, (*above, table))
        order = [*(known for known in order if known not in below), *below]
    return [table, *order]


def _references(step: DeleteRows, child: TableName, tables: Tables) -> list[Reference]:
    assert step.dependants != "all"
    parent, columns = tables[step.table], step.dependants[child]
    known = [reference for reference in parent.referenced_by if reference.is_of(child)]
    if not columns and known:
        return known
    for column in columns:
        tables[child].column(column)
    if len(columns) != len(parent.key) or not columns:
        raise MigrationError(
            f"{str(child)!r} has no foreign key to {str(step.table)!r}"
            if not columns
            else f"{listed(columns)} of {str(child)!r} cannot refer to the key of"
            f" {str(step.table)!r}, {listed(parent.key) if parent.key else 'which has none'}",
            'name its columns, as in dependants={"shop.line": "order_id"}, or remove its rows in a'
            " step before",
        )
    return [reference for reference in known if set(reference.columns) == set(columns)] or [
        Reference(
            name="",
            child=child,
            visible=True,
            columns=columns,
            parent_columns=parent.key,
            on_delete=None,
        )
    ]


def unindexed(parts: Iterable[DeleteRows], tables: Tables) -> list[Reference]:
    """Foreign keys to rows that go, where each would be looked for by reading a whole table."""
    return [
        each
        for part in parts
        for each in tables[part.table].referenced_by
        if (child := tables.get(each.name_of_child)) and not child.partitioned
        if each.columns[0] not in child.sought
    ]


# ---------------------------------------------------------------- checked first


def checks(step: Step, tables: Tables) -> tuple[QueryCheck, ...]:
    """What must hold so that the batches of a step do what they should, and to every row."""
    match step:
        case Backfill(using=str()):
            name = f"each row of {step.table} has one partner at most"
            return (QueryCheck(name=name, failing=partners(step, tables[step.table].key)),)
        case InsertRows():
            nulls = " OR ".join(f"{quote(column)} IS NULL" for column in step.key)
            failing = f"SELECT * FROM {source(step)}\n WHERE {nulls}"
            name = f"no {' or '.join(step.key)} is NULL in what {step.table} gets"
            return (QueryCheck(name=name, failing=failing),)
        case DeleteRows():
            return tuple(
                _no_children(step, reference, tables)
                for reference in tables[step.table].referenced_by
            )
        case _:
            return ()


def _no_children(step: DeleteRows, reference: Reference, tables: Tables) -> QueryCheck:
    failing = kept.children(step, reference)
    if reference.is_of(step.table) and reference.on_delete is None:  # they may go together
        failing += f"\n   AND ({indent(step.where, 8)}) IS NOT TRUE"
    known = tables.get(reference.child)
    columns = ", ".join(map(quote, (known and known.key) or reference.columns))
    return QueryCheck(
        name=f"no row of {reference.child} refers to one that goes from {step.table}",
        failing=f"SELECT {columns} FROM {reference.child.sql}\n WHERE {failing}\n"
        f" ORDER BY {columns}",
    )


def session_checks(migration: Migration, tables: Tables, major: int) -> tuple[QueryCheck, ...]:
    """What must hold of the session before any batch."""
    made = {step_table(s) for s in migration.steps if isinstance(s, ops.CreateTableOp)}
    walked = dict.fromkeys(
        step.table
        for step in taken_apart(migration.steps, tables)
        if isinstance(step, Backfill | InsertRows | DeleteRows | Transform)
        if step.table not in made
    )
    found: list[QueryCheck] = []
    if walked:
        hidden = " OR ".join(f"row_security_active({literal(table.sql)})" for table in walked)
        found.append(
            QueryCheck(
                name="this session sees every row, and has standard_conforming_strings on",
                failing="SELECT current_user, current_setting('standard_conforming_strings')\n"
                f" WHERE {hidden}\n    OR current_setting('standard_conforming_strings') <> 'on'",
            )
        )
    if any(not step.walk.fire_triggers for step in migration.backfills):
        may = "(SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"
        if major >= 15:
            may = "has_parameter_privilege('session_replication_role', 'SET')"
        found.append(
            QueryCheck(
                name="this role may leave triggers out (GRANT SET ON PARAMETER"
                " session_replication_role)",
                failing=f"SELECT current_user\n WHERE NOT {may}",
            )
        )
    return tuple(found)


# ---------------------------------------------------------------- steps beside each other


def disturbs(other: Step, step: Backfill | InsertRows | DeleteRows) -> bool:
    """Whether another step may write what a step reads or writes."""
    if isinstance(other, Sql):
        return True
    if not isinstance(other, Backfill | InsertRows | DeleteRows):
        return False
    names = names_in("\n".join(step.texts))
    if other.table != step.table:
        return other.table.name in names
    if isinstance(other, Backfill) and isinstance(step, Backfill):
        # the name of the table may stand for a whole row
        return bool({*names, *step.assign} & {*other.assign, other.table.name})
    return True


def depends(step: Step, earlier: Iterable[Step], tables: Tables) -> bool:
    """Whether what a step asks of the rows can be asked only when earlier steps are done."""
    if not isinstance(step, Backfill | InsertRows | DeleteRows):
        return False
    for other in taken_apart(earlier, tables):
        if disturbs(other, step):
            return True
        if not isinstance(step, DeleteRows) or not isinstance(other, _WRITERS):
            continue
        if any(each.is_of(other.table) for each in tables[step.table].referenced_by):
            return True
    return False

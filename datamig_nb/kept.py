"""SQL of what is kept for the way back: values that change, rows that come, rows that go.

Each is kept by the very statement that replaces it, in tables of the schema ``datamig``; what the
downgrade cannot put back is noted in ``datamig.conflict``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from datamig_nb.expressions import BATCH_MARK
from datamig_nb.names import MOST_NAME_BYTES, TableName, literal, quote
from datamig_nb.statements import (
    comparable,
    conditions,
    differ,
    indent,
    parenthesised,
    source,
    update_batch,
)
from datamig_nb.steps import Backfill, DeleteRows, InsertRows
from datamig_nb.tables import Reference


def _same(left: str, right: str, key: Sequence[str]) -> str:
    """Condition: the rows of that name have the same key."""
    return " AND ".join(f"{left}.{quote(part)} = {right}.{quote(part)}" for part in key)


# ---------------------------------------------------------------- values that change


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The table that keeps old and new values of some columns of another one."""

    #: Its name, as SQL.
    name: str
    table: TableName
    #: Key of the table.
    key: tuple[str, ...]
    #: Columns that are kept -> their types.
    types: Mapping[str, str]

    def before(self, column: str) -> str:
        """Name of the old value."""
        return self._name(column, "before")

    def after(self, column: str) -> str:
        """Name of the new value."""
        return self._name(column, "after")

    def _name(self, column: str, when: str) -> str:
        name = f"{column}_{when}"
        if len(name.encode()) > MOST_NAME_BYTES or name in self.key:
            name = f"{when}_{list(self.types).index(column) + 1}"
        return quote(name)

    @property
    def keys(self) -> str:
        """The key as a list."""
        return ", ".join(map(quote, self.key))

    @property
    def all_columns(self) -> str:
        """All columns of the table, as a list."""
        return ", ".join([self.keys, *(f"{self.before(c)}, {self.after(c)}" for c in self.types)])

    def add(self, rows: str) -> str:
        """Keep what the rows of a WITH query say, and the number of the transaction.

        No index is in the way.  A row that the look back changes again is kept again, see
        :func:`index_kept`.
        """
        return (
            f"INSERT INTO {self.name} ({self.all_columns}, datamig_xid)\n"
            f"SELECT {self.all_columns}, pg_current_xact_id()::text::bigint\n  FROM {rows}"
        )


def keep_values(kept: Kept) -> str:
    """Make the table."""
    columns = [f"{quote(part)}" for part in kept.key]
    for column in kept.types:
        columns += [
            f"{quote(column)} AS {kept.before(column)}",
            f"{quote(column)} AS {kept.after(column)}",
        ]
    return (
        f"CREATE TABLE IF NOT EXISTS {kept.name} AS\n"
        f"SELECT {', '.join(columns)}, 0::bigint AS datamig_xid\n"
        f"  FROM {kept.table.sql} WITH NO DATA"
    )


def index_kept(kept: Kept) -> str:
    """Make each row be kept once, with an index, before the first is put back.

    A walk that keeps values only adds them: an index in its way would cost more than they do.
    """
    name, index = kept.name, f"{kept.name.partition('.')[2]}_key"
    create = f"CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {name} ({kept.keys})"
    starts = {
        column: f"{comparable(kept.before(column), type)} IS DISTINCT FROM\n"
        f"                      lag({comparable(kept.after(column), type)}) OVER earlier"
        f" OR lag(datamig_xid) OVER earlier IS NULL AS starts_{number}"
        for number, (column, type) in enumerate(kept.types.items(), 1)
    }
    firsts = [
        f"first_value({kept.before(column)}) OVER (PARTITION BY {kept.keys}\n"
        f"                   ORDER BY starts_{number} DESC, datamig_xid DESC) AS first_{number}"
        for number, column in enumerate(kept.types, 1)
    ]
    olds = ", ".join(f"{kept.before(c)} = first_{n}" for n, c in enumerate(kept.types, 1))
    noted, chosen = ",\n               ".join(starts.values()), ",\n               ".join(firsts)
    return f"""DO $datamig$
BEGIN
    IF to_regclass({literal(name)}) IS NOT NULL THEN
        {create};
    END IF;
EXCEPTION WHEN unique_violation THEN
    -- The walk changed a row again.  Its last new value counts, and the old one before all that the
    -- walk wrote since somebody else did.
    UPDATE {name} AS kept SET {olds}
      FROM (SELECT {kept.keys}, datamig_xid, {chosen}
              FROM (SELECT *, {noted}
                      FROM {name}
                    WINDOW earlier AS (PARTITION BY {kept.keys} ORDER BY datamig_xid)) AS noted
           ) AS chosen
     WHERE {_same("kept", "chosen", kept.key)} AND kept.datamig_xid = chosen.datamig_xid;
    DELETE FROM {name} AS kept USING {name} AS later
     WHERE {_same("kept", "later", kept.key)} AND kept.datamig_xid < later.datamig_xid;
    {create};
END
$datamig$"""


def update_batch_keeping(
    backfill: Backfill,
    expressions: Mapping[str, str],
    guard: str | None,
    kept: Kept,
) -> str:
    """The UPDATE of one batch that keeps, in the same statement, what it replaces."""
    name = quote(kept.table.name)
    keys = ", ".join(f"{name}.{quote(part)}" for part in kept.key)
    values = [
        f"{name}.{quote(column)} AS {kept.before(column)},\n"
        f"           CAST({indent(expressions[column], 16)} AS {kept.types[column]})"
        f" AS {kept.after(column)}"
        for column in kept.types
    ]
    source = "" if backfill.using is None else f", {backfill.using}"
    where = indent(
        conditions(BATCH_MARK, parenthesised(backfill.on), parenthesised(backfill.where), guard),
        4,
    )
    others = {column: text for column, text in expressions.items() if column not in kept.types}
    values += [f"{indent(text, 11)} AS {quote(column)}" for column, text in others.items()]
    targets = [*(quote(column) for column in kept.types), *map(quote, others)]
    news = [*(f"batch.{kept.after(column)}" for column in kept.types)]
    news += [f"batch.{quote(column)}" for column in others]
    assignments = ", ".join(f"{a} = {b}" for a, b in zip(targets, news, strict=True))
    return (
        f"WITH batch AS MATERIALIZED (\n    SELECT {keys},\n           "
        + ",\n           ".join(values)
        + f"\n      FROM {kept.table.sql}{source}\n     WHERE {where}\n"
        f"       FOR NO KEY UPDATE OF {name}\n), kept AS (\n"
        f"    {indent(kept.add('batch'), 4)}\n)\n"
        # The range again: else each row would be looked up by its key.
        f"UPDATE {kept.table.sql} SET {assignments}\n"
        f"  FROM batch WHERE {_same(name, 'batch', kept.key)}\n   AND {BATCH_MARK}"
    )


#: The first PostgreSQL whose RETURNING gives what was replaced.
RETURNS_OLD = 18


def update_batch_returning(
    backfill: Backfill,
    expressions: Mapping[str, str],
    guard: str | None,
    kept: Kept,
) -> str:
    """As :func:`update_batch_keeping`, for a PostgreSQL that is RETURNS_OLD or newer."""
    name = quote(kept.table.name)
    values = [f"{name}.{quote(part)}" for part in kept.key]
    for column in kept.types:
        values += [
            f"row_before.{quote(column)} AS {kept.before(column)}",
            f"row_after.{quote(column)} AS {kept.after(column)}",
        ]
    update = update_batch(backfill, expressions, guard)
    return (
        f"WITH changed AS (\n{update}\nRETURNING WITH (OLD AS row_before, NEW AS row_after)\n"
        f"          {', '.join(values)}\n)\n{kept.add('changed')}"
    )


# What stands for the UPDATE of a batch that Python computed; its row of what was read.
_UPDATE = "{update}"
_READ = "new.tableoid_read, new.ctid_read"


def update_computed(kept: Kept) -> str:
    """What keeps the values that a batch computed in Python replaces; {update} is its UPDATE.

    RETURNING gives the new values; the old versions, by their place, are what the statement sees.
    """
    old = f"FROM {kept.table.sql} AS old WHERE (old.tableoid, old.ctid) = ({_READ})"
    values = [f"target.{quote(part)}" for part in kept.key]
    for column in kept.types:
        values.append(f"(SELECT old.{quote(column)} {old}) AS {kept.before(column)}")
        values.append(f"target.{quote(column)} AS {kept.after(column)}")
    returned = ",\n          ".join(values)
    return f"WITH changed AS (\n{_UPDATE}\nRETURNING {returned}\n)\n{kept.add('changed')}"


def restore_batch(kept: Kept) -> str:
    """The UPDATE of one batch that puts old values back where the new one is still there."""
    name = quote(kept.table.name)
    ours = {
        c: f"{comparable(f'{name}.{quote(c)}', type)} IS NOT DISTINCT FROM"
        f" {comparable(f'kept.{kept.after(c)}', type)}"
        for c, type in kept.types.items()
    }
    assignments = ",\n       ".join(
        f"{quote(c)} = CASE WHEN {is_ours} THEN kept.{kept.before(c)} ELSE {name}.{quote(c)} END"
        for c, is_ours in ours.items()
    )
    return (
        f"UPDATE {kept.table.sql}\n   SET {assignments}\n  FROM {kept.name} AS kept\n"
        f" WHERE {BATCH_MARK} AND {_same(name, 'kept', kept.key)}\n"
        f"   AND ({' OR '.join(ours.values())})"
    )


def note_edited(kept: Kept, revision: str) -> str:
    """Note the rows whose values were edited since, or that are gone: they were not put back."""
    name = quote(kept.table.name)
    values = {
        "before": [f"kept.{kept.before(c)} AS {quote(c)}" for c in kept.types],
        "after": [f"kept.{kept.after(c)} AS {quote(c)}" for c in kept.types],
        "found": [f"{name}.{quote(c)}" for c in kept.types],
    }
    rows = {
        when: f"(SELECT to_jsonb(noted) FROM (SELECT {', '.join(each)}) AS noted)"
        for when, each in values.items()
    }
    missing = f"{name}.{quote(kept.key[0])} IS NULL"
    rows["found"] = f"CASE WHEN {missing} THEN NULL ELSE {rows['found']} END"
    edited = differ(
        [comparable(f"{name}.{quote(c)}", type) for c, type in kept.types.items()],
        [comparable(f"kept.{kept.before(c)}", type) for c, type in kept.types.items()],
    )
    return _note(
        kept.table,
        kept.key,
        revision,
        rows,
        f"{kept.name} AS kept LEFT JOIN {kept.table.sql} ON {_same(name, 'kept', kept.key)}\n"
        f" WHERE {missing} OR {edited}",
    )


# ---------------------------------------------------------------- rows that come and go


def keep_rows(table: TableName, kept: str) -> str:
    """Make a table that holds whole rows of another one."""
    return f"CREATE TABLE IF NOT EXISTS {kept} (LIKE {table.sql})"


def insert_batch(
    step: InsertRows,
    columns: Sequence[str],
    kept: str,
    changed: Kept | None,
    key: Sequence[str],
    *,
    overriding: bool = False,
) -> str:
    """The INSERT of one batch that keeps, in the same statement, what it puts in.

    ``changed`` keeps the values of rows that ON CONFLICT DO UPDATE changes; ``overriding`` puts
    numbers of its own into an identity column that is GENERATED ALWAYS.
    """
    always = " OVERRIDING SYSTEM VALUE" if overriding else ""
    names = ", ".join(map(quote, columns))
    conflict = "" if step.on_conflict is None else f"\nON CONFLICT {step.on_conflict}"
    put = (
        f"WITH put AS (\nINSERT INTO {step.table.sql} ({names}){always}\n"
        f"SELECT {names} FROM {source(step)}\n WHERE {BATCH_MARK}\n"
        # so that numbers which a sequence gives follow the key
        f" ORDER BY {', '.join(map(quote, step.key))}{conflict}\nRETURNING *\n)"
    )
    if changed is None:
        return f"{put}\nINSERT INTO {kept} SELECT * FROM put"
    values = [f"old.{quote(part)}" for part in key]
    for c in changed.types:
        values.append(f"old.{quote(c)} AS {changed.before(c)}")
        values.append(f"put.{quote(c)} AS {changed.after(c)}")
    joined = f"JOIN {step.table.sql} AS old ON {_same('old', 'put', key)}"
    return (
        f"{put}, new AS (\n"
        "    -- The statement still sees the table as it was before it.\n"
        f"    INSERT INTO {kept}\n    SELECT put.* FROM put LEFT {joined}\n"
        f"     WHERE old.{quote(key[0])} IS NULL\n), changed AS (\n"
        f"    SELECT {', '.join(values)}\n      FROM put {joined}\n), kept AS (\n"
        f"    {indent(changed.add('changed'), 4)}\n)\nSELECT FROM put"
    )


def take_out_batch(
    table: TableName, key: Sequence[str], kept: str, referenced_by: Iterable[Reference]
) -> str:
    """The DELETE of one batch of rows put in: not of those that were edited or are in use since.

    A foreign key that refuses the delete is left to do so; the others would act unseen.
    """
    name = quote(table.name)
    unused = "".join(
        f"\n   AND NOT EXISTS (SELECT FROM {each.child.sql} AS child"
        f" WHERE {_refers(each, 'child', name)})"
        for each in referenced_by
        if each.on_delete is not None
    )
    return (
        f"DELETE FROM {table.sql}\n USING {kept} AS kept\n"
        f" WHERE {BATCH_MARK} AND {_same(name, 'kept', key)}\n"
        f"   AND {_as_kept(name)} = to_jsonb(kept.*){unused}"
    )


def note_left(table: TableName, key: Sequence[str], kept: str, revision: str) -> str:
    """Note the rows put in that are there still, once those that may go are taken out."""
    name = quote(table.name)
    rows = {"after": "to_jsonb(kept.*)", "found": f"to_jsonb({name}.*)"}
    joined = f"{kept} AS kept JOIN {table.sql} ON {_same(name, 'kept', key)}"
    return _note(table, key, revision, rows, joined)


def delete_batch(step: DeleteRows, kept: str | None) -> str:
    """The DELETE of one batch; ``kept`` is a table that gets the rows."""
    delete = f"DELETE FROM {step.table.sql}\n WHERE {BATCH_MARK}\n   AND ({indent(step.where, 8)})"
    if kept is None:
        return delete
    return f"WITH gone AS (\n{delete}\nRETURNING *\n)\nINSERT INTO {kept} SELECT * FROM gone"


def still_there(step: DeleteRows, before: str | None = None) -> str:
    """Count the rows that are to be removed; ``before`` as of ``statements.not_begun``."""
    where = step.where if before is None else conditions(parenthesised(step.where), before)
    return f"SELECT count(*) FROM {step.table.sql}\n WHERE {where}"


def children(step: DeleteRows, reference: Reference) -> str:
    """Condition over a child's row: it refers to a row that the step removes."""
    child = ", ".join(map(quote, reference.columns))
    parent = ", ".join(map(quote, reference.parent_columns))
    return f"({child}) IN (SELECT {parent} FROM {step.table.sql} WHERE ({indent(step.where, 4)}))"


def put_back_batch(table: TableName, columns: Sequence[str], kept: str) -> str:
    """The INSERT of one batch of kept rows into the table that they were deleted from."""
    names = ", ".join(map(quote, columns))
    return (
        f"INSERT INTO {table.sql} ({names}) OVERRIDING SYSTEM VALUE\n"
        f"SELECT {names} FROM {kept} AS kept\n WHERE {BATCH_MARK}\nON CONFLICT DO NOTHING"
    )


def note_not_back(table: TableName, key: Sequence[str], kept: str, revision: str) -> str:
    """Note the deleted rows that are not back as they were: their key is another row's by now."""
    name = quote(table.name)
    rows = {"before": "to_jsonb(kept.*)", "found": f"to_jsonb({name}.*)"}
    joined = f"{kept} AS kept LEFT JOIN {table.sql} ON {_same(name, 'kept', key)}"
    differs = f"{_as_kept(name)} IS DISTINCT FROM to_jsonb(kept.*)"
    return _note(table, key, revision, rows, f"{joined}\n WHERE {differs}")


def _as_kept(name: str) -> str:
    """The row as it is, with what it had of columns that are gone; their order may be another."""
    return f"to_jsonb(kept.*) || to_jsonb({name}.*)"


def drop_kept(kept: str, note: str | None) -> str:
    """Note conflicts and drop the table of what was kept, in one transaction and once."""
    noted = "" if note is None else f"        {indent(note, 8)};\n"
    return (
        f"DO $datamig$\nBEGIN\n    IF to_regclass({literal(kept)}) IS NOT NULL THEN\n"
        f"{noted}        DROP TABLE {kept};\n    END IF;\nEND\n$datamig$"
    )


def _refers(reference: Reference, child: str, parent: str) -> str:
    pairs = zip(reference.columns, reference.parent_columns, strict=True)
    return " AND ".join(f"{child}.{quote(a)} = {parent}.{quote(b)}" for a, b in pairs)


def _note(
    table: TableName, key: Sequence[str], revision: str, rows: Mapping[str, str], found: str
) -> str:
    keys = ", ".join(f"kept.{quote(part)}" for part in key)
    values = ",\n       ".join(rows.values())
    return (
        f"INSERT INTO datamig.conflict (revision, relation, key, {', '.join(rows)})\n"
        f"SELECT {literal(revision)}, {literal(str(table))}, ROW({keys})::text,\n       {values}\n"
        f"  FROM {found}"
    )

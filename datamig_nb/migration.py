"""What a migration is: a name and steps, all of them values.

Schema steps are Alembic's own operations (``alembic.operations.ops``), made by functions with the
names and signatures that people know from ``op``.  Data steps are the classes below.  Nothing here
touches a database.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, cast

import sqlalchemy as sa
from alembic.operations import ops
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import CompileError
from sqlalchemy.sql import visitors

from datamig_nb.display import Shown
from datamig_nb.errors import MigrationError
from datamig_nb.functions import RowFunction, capture
from datamig_nb.names import TableName, literal, quote

#: A SQL expression over one row: text, or a SQLAlchemy element.
Expression: TypeAlias = "str | sa.ColumnElement[Any]"

# Stands in the batch statements for the range of keys of one batch.
BATCH_MARK = "{batch}"

# What rendered statements use themselves, so that no expression may hold it.
_MARKS = (BATCH_MARK, "$datamig$", "\0")


@dataclass(frozen=True, kw_only=True)
class Backfill:
    """Set columns of the rows that are there, batch by batch."""

    #: Table to update.
    table: TableName
    #: Column to set -> SQL expression over the row as it was before.
    assign: Mapping[str, str]
    #: SQL condition over the row; None takes every row.
    where: str | None = None

    def __str__(self) -> str:
        rows = "every row" if self.where is None else f"rows where {self.where}"
        return f"fill {_columns(self.assign)} of {self.table}, {rows}, in batches"


@dataclass(frozen=True, kw_only=True)
class KeepInStep:
    """A trigger that gives new and changed rows the values a backfill gives the old ones."""

    #: Table whose rows are watched.
    table: TableName
    #: Column to set -> SQL expression over the new row.
    assign: Mapping[str, str]

    def __str__(self) -> str:
        return f"keep {_columns(self.assign)} of {self.table} in step with a trigger"


@dataclass(frozen=True, kw_only=True)
class CreateEnum:
    """A PostgreSQL enum type."""

    #: Name of the type, with its schema.
    name: TableName
    #: Labels in their order.
    labels: tuple[str, ...]

    def __str__(self) -> str:
        return f"create the enum type {self.name} ({', '.join(map(repr, self.labels))})"


@dataclass(frozen=True, kw_only=True)
class RowCheck:
    """A condition that no row of a table may meet."""

    #: What holds when the check passes, in words.
    name: str
    #: Table that is read.
    table: TableName
    #: SQL condition, true for a failing row.
    failing: str
    #: True: checked before the first write.  False: checked after the data steps.
    before: bool = False

    def __str__(self) -> str:
        return f"check {'first' if self.before else 'that'}: {self.name}"


@dataclass(frozen=True, kw_only=True)
class QueryCheck:
    """A query that may return no row."""

    #: What holds when the check passes, in words.
    name: str
    #: SELECT that returns the failing rows, their keys first.
    failing: str
    #: True: checked before the first write.  False: checked after the data steps.
    before: bool = False

    def __str__(self) -> str:
        return f"check {'first' if self.before else 'that'}: {self.name}"


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Give columns of the rows that are there what a Python function makes of others."""

    #: Table to update.
    table: TableName
    #: The function, with the text that the revision needs of it.
    function: RowFunction
    #: SQL expressions over the row, one for each argument of the function.
    reads: tuple[str, ...]
    #: Columns that get what the function returns: its value, or a tuple of several.
    writes: tuple[str, ...]
    #: SQL condition over the row; None takes every row.
    where: str | None = None
    #: Packages beside the standard library that the function needs where Alembic runs.
    requires: tuple[str, ...] = ()
    #: Column that gets the SHA-256 of the value's UTF-8 text, in hexadecimal.
    checksum: str | None = None
    #: Parts of the table that are done at once.
    workers: int = 2
    #: Whether the parts are processes, for a function that keeps a processor busy.
    processes: bool = False
    #: Whether the function takes pandas.Series and returns a Series or a DataFrame.
    vectorized: bool = False
    #: Rows that may be set aside in datamig.quarantine; None: the first that fails stops it.
    quarantine_limit: int | None = None

    @property
    def once(self) -> bool:
        """Whether it may read what it writes, so that a row done twice could change twice."""
        words = {word for text in self.reads for word in re.findall(r"\w+", text.lower())}
        return any(set(re.findall(r"\w+", column.lower())) <= words for column in self.writes)

    @property
    def check(self) -> RowCheck | None:
        """Whether the table holds what the checksums say; None where there are none."""
        if self.checksum is None:
            return None
        column, digest = quote(self.writes[0]), quote(self.checksum)
        differs = (
            f"{digest} IS DISTINCT FROM encode(sha256(convert_to({column}::text, 'UTF8')), 'hex')"
        )
        if self.where is not None:  # which may have been true only before
            differs = f"{digest} IS NOT NULL AND {differs}"
        name = f"{self.checksum} of {self.table} is the SHA-256 of {self.writes[0]}"
        return RowCheck(name=name, table=self.table, failing=differs)

    def __str__(self) -> str:
        rows = "every row" if self.where is None else f"rows where {self.where}"
        also = "" if self.checksum is None else f", its SHA-256 in {self.checksum}"
        needs = f"; needs {', '.join(self.requires)}" if self.requires else ""
        return (
            f"compute {_columns(self.writes)} of {self.table}{also} with the Python function"
            f" {self.function.name}({', '.join(self.reads)}), {rows}, in batches{needs}"
        )


Check: TypeAlias = RowCheck | QueryCheck
DataStep: TypeAlias = Backfill | KeepInStep | CreateEnum | RowCheck | QueryCheck | Transform
SchemaStep: TypeAlias = ops.AddColumnOp | ops.AlterColumnOp | ops.CreateCheckConstraintOp
Step: TypeAlias = SchemaStep | DataStep


@dataclass(frozen=True, init=False, repr=False)
class Migration(Shown):
    """A name and the steps that carry it out, in order.

    Printing one lists its steps.  ``migration.replace(number, step)`` gives a copy with another
    step at that place, counted from 1 as printed.

    Raises
    ------
    MigrationError
        If there is no name, no step, or something that is no step.
    """

    #: What the migration does, in a few words: the revision's title.
    name: str
    #: Steps in the order in which the upgrade takes them.
    steps: tuple[Step, ...] = field(default=())

    def __init__(self, name: str, *steps: Step) -> None:
        if not name.strip():
            raise MigrationError("the migration has no name", "say in a few words what it does")
        if not steps:
            raise MigrationError(f"migration {name!r} has no steps", "give it at least one step")
        for step in steps:
            _require_step(step)
        object.__setattr__(self, "name", " ".join(name.split()))
        object.__setattr__(self, "steps", steps)

    def replace(self, number: int, step: Step) -> Migration:
        """A copy with ``step`` in the place of step ``number`` (from 1)."""
        if not 1 <= number <= len(self.steps):
            raise MigrationError(
                f"there is no step {number}", f"choose one of 1 to {len(self.steps)}"
            )
        return Migration(self.name, *self.steps[: number - 1], step, *self.steps[number:])

    @property
    def backfills(self) -> tuple[Backfill, ...]:
        """The backfills among the steps."""
        return tuple(step for step in self.steps if isinstance(step, Backfill))

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks among the steps, those before the first write included."""
        return tuple(step for step in self.steps if isinstance(step, RowCheck | QueryCheck))

    def __repr__(self) -> str:
        lines = (f"  {number}. {describe(step)}" for number, step in enumerate(self.steps, 1))
        return "\n".join((f"Migration: {self.name}", *lines))


def _require_step(step: Step) -> None:
    if not isinstance(step, Step):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise MigrationError(
            f"{type(step).__name__} is no step of a migration",
            "make steps with add_column(), backfill(), check(), …",
        )
    if isinstance(step, ops.AlterColumnOp):
        changes = [(change[0], change[-1]) for change in step.to_diff_tuple()]
        if changes != [("modify_nullable", False)]:
            raise MigrationError(
                f"an AlterColumnOp of {step.column_name!r} does something else than NOT NULL",
                "make it with alter_column(); a change of the type is a new column",
            )


def describe(step: Step) -> str:
    """One line in words for a step, as shown in lists and in the revision's header."""
    match step:
        case ops.AddColumnOp(column=column, table_name=table, schema=schema):
            kind = column.type.compile(dialect=postgresql.dialect())
            return f"add the column {column.name} {kind} to {TableName(schema, table)}"
        case ops.AlterColumnOp(column_name=column, table_name=table, schema=schema):
            return f"make {column} of {TableName(schema, table)} NOT NULL, without a long lock"
        case ops.CreateCheckConstraintOp(
            constraint_name=name, table_name=table, schema=schema, condition=condition
        ):
            return f"add the CHECK {name} to {TableName(schema, table)}: {condition}"
        case _:
            return str(step)


def added_columns(migration: Migration) -> dict[TableName, dict[str, sa.Column[Any]]]:
    """The columns that a migration adds, by table, in order."""
    added: dict[TableName, dict[str, sa.Column[Any]]] = {}
    for step in migration.steps:
        if isinstance(step, ops.AddColumnOp):
            name = TableName(step.schema, step.table_name)
            added.setdefault(name, {})[step.column.name] = step.column
    return added


# ---------------------------------------------------------------- schema steps


def add_column(
    table_name: str, column: sa.Column[Any], *, schema: str | None = None
) -> ops.AddColumnOp:
    """Add a column, as ``op.add_column``; a repeated run finds it there and goes on.

    Raises
    ------
    MigrationError
        If the column is NOT NULL without a ``server_default``, has a client-side ``default``,
        which no existing row would get, or brings a key, a constraint or an index.
    """
    if (
        column.constraints
        or column.foreign_keys
        or any((column.primary_key, column.unique, column.index))
    ):
        raise MigrationError(
            f"column {column.name!r} brings a key, a constraint or an index of its own, which would"
            " hold a long lock",
            "add the column without it, and the constraint in a revision of its own",
        )
    if isinstance(column.type, sa.types.NullType):
        raise MigrationError(
            f"column {column.name!r} has no type", "give it one, such as sa.Text()"
        )
    if column.default is not None:
        raise MigrationError(
            f"column {column.name!r} has default=, which acts in Python only: no row would get it",
            "use server_default=, or fill the column with backfill()",
        )
    if column.nullable is False and column.server_default is None:
        raise MigrationError(
            f"column {column.name!r} is NOT NULL from the start, but existing rows have no value",
            "add it nullable, fill it with backfill(), then alter_column(…, nullable=False)",
        )
    return ops.AddColumnOp(table_name, column, schema=schema, if_not_exists=True)


def alter_column(
    table_name: str, column_name: str, *, nullable: bool, schema: str | None = None
) -> ops.AlterColumnOp:
    """Make a column NOT NULL in the staged form: CHECK NOT VALID, VALIDATE, SET NOT NULL.

    Raises
    ------
    MigrationError
        If ``nullable`` is not False: nothing else is staged here.
    """
    if nullable:
        raise MigrationError(
            "alter_column() takes nullable=False only", "write other changes as steps of their own"
        )
    return ops.AlterColumnOp(
        table_name, column_name, schema=schema, modify_nullable=False, existing_nullable=True
    )


def create_check_constraint(
    constraint_name: str, table_name: str, condition: Expression, *, schema: str | None = None
) -> ops.CreateCheckConstraintOp:
    """Add a CHECK in the staged form: NOT VALID, then VALIDATE, which blocks no writer."""
    return ops.CreateCheckConstraintOp(
        constraint_name, table_name, expression_text(condition), schema=schema
    )


def create_enum(name: str, *labels: str) -> CreateEnum:
    """Create a PostgreSQL enum type; ``name`` may hold a schema."""
    if len(set(labels)) != len(labels) or not labels:
        raise MigrationError(
            f"enum {name!r} needs labels, each once", f"these were given: {', '.join(labels)}"
        )
    for label in labels:
        if len(label.encode()) > 63:
            raise MigrationError(
                f"the label {label!r} of enum {name!r} has more than 63 bytes", "shorten it"
            )
    return CreateEnum(name=TableName.parse(name), labels=labels)


# ---------------------------------------------------------------- data steps


def backfill(
    table: str, assign: Mapping[str, Expression], *, where: Expression | None = None
) -> Backfill:
    """Set columns of existing rows, in batches by key, each batch its own transaction.

    Parameters
    ----------
    assign
        Column -> SQL expression over the row, text or SQLAlchemy element.  All expressions see
        the row as it was before.  A row that has the values already is not written.
    where
        SQL condition over the row; rows that do not meet it are left alone.
    """
    return Backfill(
        table=TableName.parse(table),
        assign=_expressions("backfill", assign),
        where=None if where is None else expression_text(where),
    )


def keep_in_step(table: str, assign: Mapping[str, Expression]) -> KeepInStep:
    """Give rows that are written from now on their values by a trigger.

    An INSERT that leaves all the columns NULL gets them computed; so does an UPDATE of a column
    that the expressions read, unless it sets one of the columns itself.
    """
    return KeepInStep(table=TableName.parse(table), assign=_expressions("keep_in_step", assign))


def transform(
    table: str,
    function: Callable[..., Any],
    *,
    reads: Iterable[str] | Mapping[str, Expression],
    writes: Iterable[str],
    where: Expression | None = None,
    requires: Iterable[str] = (),
    checksum: str | None = None,
    workers: int = 2,
    processes: bool = False,
    vectorized: bool = False,
    on_error: Literal["stop", "quarantine"] = "stop",
    quarantine_limit: int = 100,
) -> Transform:
    """Give columns what a Python function makes of others, for logic that SQL cannot say.

    The function's source goes into the revision, with the constants and functions of its module
    that it uses.  It is called with one positional argument for each of ``reads`` and returns the
    value to write, or a tuple where ``writes`` names several columns.

    Values come as bool, int, float, Decimal (also the fractions in JSON, which a float would not
    hold), str, bytes, UUID, date, time, datetime (with a time zone: in UTC), lists (arrays), and
    what JSON says as dict, list, str; NULL as None.  Other types come as PostgreSQL writes them,
    interval among them, for it has months.  The same types go back, and a str that PostgreSQL can
    read as the column's type.  A value that Python cannot hold (``infinity``, a JSON ``null``)
    stops the upgrade before its first write.

    A row is written only where it is still what the function saw; what others wrote meanwhile is
    computed again.  A row that has its values already is not written.  A function that reads what
    it writes is applied once to each row, and once to each version that others write while it runs:
    until the upgrade ends, they must write the old form.

    Parameters
    ----------
    reads
        Columns, in the order of the function's arguments; or argument -> SQL expression over the
        row, such as ``{"seconds": "extract(epoch FROM duration)"}``.
    requires
        Packages beside the standard library that the function imports; the revision's header says
        that production must have them.
    checksum
        Column that gets the SHA-256 of the new value's UTF-8 text, in hexadecimal.  It is verified
        against what the table holds afterwards.
    workers
        Parts of the table that are done at once, on connections of their own.
    processes
        Give each part a process, for a function that keeps a processor busy.
    vectorized
        The function takes a ``pandas.Series`` of objects for each of ``reads``, a batch at a time,
        and returns a Series, or a DataFrame of as many columns as ``writes`` names.
    on_error
        ``"quarantine"`` sets rows that fail aside in ``datamig.quarantine``, up to
        ``quarantine_limit``; else the first stops the upgrade, which names it.

    Raises
    ------
    MigrationError
        If the function's source cannot stand alone, or the columns do not fit together.
    """
    named: Mapping[str, Expression] = (
        cast("Mapping[str, Expression]", reads)
        if isinstance(reads, Mapping)
        else {column: quote(column) for column in _several("reads", reads)}
    )
    columns, packages = _several("writes", writes), _several("requires", requires)
    if not named or not columns:
        raise MigrationError("transform() reads or writes no column", "name at least one of both")
    if checksum is not None and (len(columns) != 1 or checksum in columns):
        raise MigrationError(
            f"the checksum {checksum!r} is that of one column, but transform() writes"
            f" {_columns(columns)}",
            "write each column that needs one with a transform() of its own",
        )
    if workers < 1 or quarantine_limit < 0:
        raise MigrationError("transform() needs a worker and no limit below 0", "choose others")
    if vectorized and "pandas" not in packages:
        raise MigrationError(
            "a vectorized function needs pandas where Alembic runs", 'say requires=("pandas",)'
        )
    return Transform(
        table=TableName.parse(table),
        function=capture(function, tuple(named), packages),
        reads=tuple(expression_text(text) for text in named.values()),
        writes=columns,
        where=None if where is None else expression_text(where),
        requires=packages,
        checksum=checksum,
        workers=workers,
        processes=processes,
        vectorized=vectorized,
        quarantine_limit=quarantine_limit if on_error == "quarantine" else None,
    )


def _several(word: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple; one text would be taken for its letters."""
    if isinstance(names, str):
        raise MigrationError(f"{word}={names!r} is one text", f"write {word}=({names!r},)")
    return tuple(names)


# ---------------------------------------------------------------- checks


def check(name: str, failing: str, *, before: bool = False) -> QueryCheck:
    """A check of your own: ``failing`` is a SELECT of the failing rows, their keys first."""
    return QueryCheck(name=name, failing=expression_text(failing).rstrip("; \n"), before=before)


def rows_check(name: str, table: str, failing: Expression, *, before: bool = False) -> RowCheck:
    """A check over the rows of one table: ``failing`` is a condition, true for a failing row.

    Checks of this kind over the same table are answered together, in one pass.
    """
    return RowCheck(
        name=name,
        table=TableName.parse(table),
        failing=expression_text(failing),
        before=before,
    )


def no_nulls(table: str, *columns: str) -> RowCheck:
    """No row has NULL in one of the columns."""
    return rows_check(
        f"{_columns(columns)} of {table} without NULL",
        table,
        " OR ".join(f"{quote(column)} IS NULL" for column in columns),
    )


def allowed_values(table: str, column: str, values: Iterable[str]) -> RowCheck:
    """A column holds only these values, or NULL."""
    allowed = ", ".join(literal(value) for value in values)
    if not allowed:
        raise MigrationError(f"no value of {column!r} is allowed", "name at least one")
    return rows_check(
        f"{column} of {table} holds only {allowed}",
        table,
        f"{quote(column)}::text NOT IN ({allowed})",
    )


def matches(
    table: str, column: str, expression: Expression, *, where: Expression | None = None
) -> RowCheck:
    """A column equals an expression, NULL included; best written another way than the backfill."""
    differs = f"{quote(column)} IS DISTINCT FROM ({expression_text(expression)})"
    if where is not None:
        differs = f"({expression_text(where)}) AND {differs}"
    return rows_check(f"{column} of {table} is what its source says", table, differs)


def unique(table: str, *columns: str) -> QueryCheck:
    """No two rows have the same values in the columns; NULL equals nothing."""
    name = TableName.parse(table)
    names = ", ".join(quote(column) for column in columns)
    present = " AND ".join(f"{quote(column)} IS NOT NULL" for column in columns)
    return check(
        f"{_columns(columns)} of {table} unique",
        f"SELECT {names}, count(*) AS times FROM {name.sql}\n"
        f" WHERE {present} GROUP BY {names} HAVING count(*) > 1 ORDER BY {names}",
    )


def no_orphans(table: str, column: str, parent: str, parent_column: str) -> RowCheck:
    """Every value of a column, NULL aside, is found in the parent table."""
    child, above = TableName.parse(table), TableName.parse(parent)
    return rows_check(
        f"{column} of {table} found in {parent}",
        table,
        f"{quote(column)} IS NOT NULL AND NOT EXISTS (SELECT FROM {above.sql} AS parent"
        f" WHERE parent.{quote(parent_column)} = {quote(child.name)}.{quote(column)})",
    )


# ---------------------------------------------------------------- text


def expression_text(expression: Expression) -> str:
    """The expression as SQL text, values as literals.

    Raises
    ------
    MigrationError
        If it is empty, holds a mark that rendered statements use, or is an element that has no
        text of its own.
    """
    text = expression.strip() if isinstance(expression, str) else _compiled(expression)
    if not text:
        raise MigrationError("an expression is empty", "write SQL over the columns of the row")
    for mark in _MARKS:
        if mark in text:
            raise MigrationError(
                f"the expression {text!r} holds {mark!r}, which rendered statements use themselves",
                "write it otherwise",
            )
    return text


def _compiled(element: sa.ColumnElement[Any]) -> str:
    for part in visitors.iterate(element):
        if isinstance(part, sa.BindParameter) and part.required:
            raise MigrationError(
                f"the expression {str(element)!r} has no value for :{part.key}",
                r"give it a value, or write a colon that is none of SQLAlchemy's as '\:'",
            )
        if isinstance(part, sa.SelectBase):
            raise MigrationError(
                "a SQLAlchemy element with a subquery would lose the names of its tables",
                "write the expression as text",
            )
    # paramstyle "named" leaves % alone, which other styles double.
    dialect = postgresql.dialect(paramstyle="named")
    # SQLAlchemy 2.0 doubles backslashes until it has asked a server whether it should.
    dialect._backslash_escapes = False  # pyright: ignore[reportPrivateUsage]
    try:
        compiled = element.compile(
            dialect=dialect, compile_kwargs={"literal_binds": True, "include_table": False}
        )
    except CompileError as error:
        raise MigrationError(
            f"the expression cannot be written as text: {error.args[0]}", "write it as text"
        ) from error
    return str(compiled)


def _expressions(step: str, assign: Mapping[str, Expression]) -> Mapping[str, str]:
    if not assign:
        raise MigrationError(f"{step}() sets no column", "give {column: expression}")
    return MappingProxyType({column: expression_text(text) for column, text in assign.items()})


def _columns(columns: Collection[str]) -> str:
    if not columns:
        raise MigrationError("no column is named", "name at least one")
    *most, last = columns
    return f"{', '.join(most)} and {last}" if most else last

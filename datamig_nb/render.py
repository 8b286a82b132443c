"""Write the Alembic revision that carries a migration out: one Python file that stands alone.

The file tells its story first (``upgrade``, ``downgrade``), then its SQL in the shape that one
would type into psql, then the functions it needs, copied from :mod:`datamig_nb.inlined`.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from alembic.autogenerate import render_python_code
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext

from datamig_nb import inlined, sql
from datamig_nb.catalog import Catalog, read_catalog
from datamig_nb.database import Database
from datamig_nb.display import Shown
from datamig_nb.errors import AlembicProjectError, MigrationError, MissingKeyError
from datamig_nb.migration import (
    Backfill,
    Check,
    CreateEnum,
    KeepInStep,
    Migration,
    QueryCheck,
    RowCheck,
    Step,
    describe,
)
from datamig_nb.names import TableName, literal, quote
from datamig_nb.project import Project
from datamig_nb.source import (
    WIDTH,
    call,
    expression_constant,
    machinery,
    names_used,
    one_line,
    reference,
    statement_constant,
)

# Stands for the revision's id while the text is written: the id is a hash of that text.  It looks
# like none, so that no expression holds it by chance.
_ID = "q7xz4revkj0w"

#: Lines that begin so carry evidence and are no part of the digest.
EVIDENCE_MARK = "# vetted: "


@dataclass(frozen=True, kw_only=True)
class Revision(Shown):
    """A rendered revision: the text of the file, and where it belongs."""

    #: The migration that it carries out.
    migration: Migration
    #: The whole file.
    text: str
    #: Its Alembic id: twelve hexadecimal digits that follow from the text.
    id: str
    #: The revision that it follows; None where it is the first.
    down_revision: str | None
    #: Path of the project's alembic.ini; None where no project was given.
    alembic: Path | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the text, in hexadecimal."""
        return digest(self.text)

    @property
    def story(self) -> str:
        """The part of the text that tells what is done: from ``upgrade`` to the SQL."""
        start, end = self.text.index("def upgrade("), self.text.index("\n\n\n# -------- functions")
        return self.text[start:end]

    def __repr__(self) -> str:
        lines = len(self.text.splitlines())
        after = (
            f"follows {self.down_revision}" if self.down_revision else "the first of its project"
        )
        return f"Revision {self.id}: {self.migration.name}, {lines} lines, {after}"


def digest(text: str) -> str:
    """SHA-256 of a revision file's text without its lines of evidence, in hexadecimal."""
    lines = text.splitlines(keepends=True)
    body = "".join(line for line in lines if not line.startswith(EVIDENCE_MARK))
    return hashlib.sha256(body.encode()).hexdigest()


def render(
    db: Database,
    migration: Migration,
    *,
    alembic: str | Path | None = None,
    head: str | None = None,
) -> Revision:
    """Render a migration as an Alembic revision.

    The catalog is read for keys, column types and names; no row is.  The same migration on the
    same head gives the same id.

    Parameters
    ----------
    alembic
        Path of the project's ``alembic.ini``: the revision then follows its head, has its time
        zone, and went through its post-write hooks.
    head
        Which head to follow, where the project has several.

    Raises
    ------
    MigrationError
        If a step cannot be carried out as described, for example because a column is missing.
    MissingKeyError
        If a table to be walked in batches has no key.
    AlembicProjectError
        If the project cannot be read, has several heads, or holds this very revision.
    """
    catalog = read_catalog(db, migration)
    project = None if alembic is None else Project(Path(alembic))
    down_revision = None if project is None else project.head(head)
    draft = _Draft(migration, catalog)
    text = _document(draft, down_revision)
    id = hashlib.sha256(text.encode()).hexdigest()[:12]
    date = datetime.datetime.now(datetime.UTC) if project is None else project.create_date()
    text = text.replace(_ID, id).replace(_DATE, str(date.replace(microsecond=0)), 1)
    if project is not None:
        if project.has(id):
            raise AlembicProjectError(
                f"the project has revision {id} already, from the same migration",
                "change the migration, or remove that file",
            )
        text = project.hooked(text, f"{id}.py")
    return Revision(
        migration=migration,
        text=text,
        id=id,
        down_revision=down_revision,
        alembic=None if project is None else project.ini,
    )


# ---------------------------------------------------------------- the whole file

_DATE = "(Create Date)"

_PROMISE = """\
Each step and each batch of rows commits by itself, a batch together with its row in datamig.run:
stopped at any point, the upgrade goes on where it was when Alembic runs again.  No statement waits
for a lock longer than LOCK_TIMEOUT or holds a strong one while it reads the table.

Written by datamig_nb; needs Alembic 1.16 or newer and PostgreSQL 14 or newer, nothing else."""


# SQL keeps the lines it was written on, names their length: linters shall not mind.
_LONG_LINES = "# flake8: noqa: E501"


def _document(draft: _Draft, down_revision: str | None) -> str:
    upgrade, downgrade = draft.upgrade(), draft.downgrade()
    story = "\n\n\n".join((upgrade, downgrade))
    constants = "\n\n".join(draft.constants)
    parts = machinery(f"{story}\n{constants}")
    settings = f"\n\n{parts.settings}" if parts.settings else ""
    statements = f"# -------- SQL\n\n{constants}\n\n\n" if constants else ""
    text = f'''"""{_docstring(draft, down_revision)}
"""

from __future__ import annotations

{parts.imports}

revision = "{_ID}"
down_revision = {f'"{down_revision}"' if down_revision else None}
branch_labels = None
depends_on = None{settings}


{story}


{statements}# -------- functions


{parts.functions}
'''
    if max(map(len, text.splitlines())) > WIDTH:
        return text.replace("\nfrom __future__", f"\n{_LONG_LINES}\n\nfrom __future__", 1)
    return text


def _docstring(draft: _Draft, down_revision: str | None) -> str:
    title = draft.migration.name.replace('"', "'").removesuffix(".")
    steps = "\n".join(
        textwrap.fill(
            describe(step),
            width=96,
            initial_indent=f"    {number}. ",
            subsequent_indent="       ",
            break_long_words=False,
        )
        for number, step in enumerate(draft.migration.steps, 1)
    )
    text = (
        f"{title[:1].upper()}{title[1:]}.\n\nRevision ID: {_ID}\n"
        f"Revises: {down_revision or ''}\nCreate Date: {_DATE}\n\nUpgrade\n{steps}\n\n"
        f"Downgrade\n{textwrap.indent(textwrap.fill(draft.way_back, 96), '    ')}\n\n{_PROMISE}"
    )
    # The docstring is no place for escapes: what would need one is written in other words.
    text = text.replace("\\", "/").replace('"""', "'''")
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


# ---------------------------------------------------------------- its parts

# An expression that needs no constant.
_SHORT = re.compile(r"[\w.]{1,63}|'[^'\\\s]{0,20}'")


@dataclass
class _Draft:
    """The revision as it grows: lines of both functions, and the constants they use."""

    migration: Migration
    catalog: Catalog
    #: Source of each constant, in the order of first use.
    constants: list[str] = field(default_factory=list)
    #: Name of the constant of each expression, by its text.
    expressions: dict[str, str] = field(default_factory=dict)
    #: Names that are taken, those of the inlined functions and constants first.
    _names: set[str] = field(default_factory=lambda: set(vars(inlined)))

    def constant(self, wish: str, statement: str) -> str:
        """Add a statement as a constant with a name like ``wish``; give the name."""
        name = self._new_name(wish)
        self.constants.append(statement_constant(name, self._referring(statement)))
        return name

    def _referring(self, text: str) -> str:
        """The text with references in the place of the expressions that are constants."""
        if not self.expressions:
            return text
        longest_first = sorted(self.expressions, key=len, reverse=True)
        whole = rf"(?<![\w$\0])(?:{'|'.join(map(re.escape, longest_first))})(?![\w$\0])"
        return re.sub(whole, lambda found: reference(self.expressions[found[0]]), text)

    def check(self, name: str, failing: str) -> str:
        """Add a check as a constant, its first line what holds; give the constant's name."""
        return self.constant(name, f"-- {' '.join(name.split())}\n{failing}")

    def _failing(self, check: Check) -> tuple[str, str]:
        """A check's name and the query of its failing rows."""
        if isinstance(check, RowCheck):
            check = replace(check, failing=self._referring(check.failing))
        return check.name, self.catalog.failing(check)

    def references(self, step: Backfill | KeepInStep) -> dict[str, str]:
        """The step's columns, each with a reference to the constant of its expression."""
        return {
            column: self._expression(column, self.catalog.cast(step.table, column, text))
            for column, text in step.assign.items()
        }

    def _expression(self, column: str, text: str) -> str:
        """A reference to the expression's constant; a name, a number or a short text as it is."""
        if _SHORT.fullmatch(text):
            return text
        if text not in self.expressions:
            name = self.expressions[text] = self._new_name(column)
            self.constants.append(expression_constant(name, text))
        return reference(self.expressions[text])

    def _new_name(self, wish: str) -> str:
        words = re.findall(r"[a-z0-9]+", wish.lower())
        while len("_".join(words)) > 45:
            words.pop()
        base = "_".join(words).upper() or "STATEMENT"
        base = f"THE_{base}" if base[0].isdigit() else base
        name, number = base, 2
        while name in self._names:
            name, number = f"{base}_{number}", number + 1
        self._names.add(name)
        return name

    # ------------------------------------------------ upgrade

    def upgrade(self) -> str:
        for step in self.migration.steps:
            if isinstance(step, Backfill | KeepInStep):
                self.references(step)
        lines = self._preflight()
        for step in self.migration.steps:
            lines += self._upgrade_step(step)
        return _function("upgrade", self.migration.name, [*lines, "finish()"])

    def _preflight(self) -> list[str]:
        checks = [_columns_not_there(table, names) for table, names in self.catalog.added.items()]
        enums = [step.name for step in self.migration.steps if isinstance(step, CreateEnum)]
        checks += [_type_not_there(name) for name in enums]
        checks += [
            self._failing(check)
            for check in (*self.migration.checks, *self.catalog.implied_checks(self.migration))
            if check.before
        ]
        return [f"preflight({', '.join(self.check(*check) for check in checks)})"]

    def _upgrade_step(self, step: Step) -> list[str]:
        match step:
            case ops.AlterColumnOp(table_name=table, column_name=column, schema=schema):
                name = f"{column}_not_null"[:63]
                arguments = (TableName(schema, table).sql, quote(column), quote(name))
                return [f"set_not_null({', '.join(map(_text, arguments))})"]
            case ops.CreateCheckConstraintOp(table_name=table, schema=schema):
                name = quote(str(step.constraint_name))
                condition = self.constant(f"{step.constraint_name}", str(step.condition))
                where = TableName(schema, table).sql
                return [f"add_check({_text(where)}, {_text(name)}, {condition})"]
            case ops.AddColumnOp():
                return [_step(_alembic(step))]
            case Backfill():
                return self._run_batches(step)
            case KeepInStep():
                return self._keep_in_step(step)
            case CreateEnum(name=name, labels=labels):
                listed = ", ".join(map(literal, labels))
                return [f"create_enum({_text(name.sql)}, {_text(listed)})"]
            case RowCheck(before=False) | QueryCheck(before=False):
                return [f"require({self.check(*self._failing(step))})"]
            case _:
                return []

    def _run_batches(self, step: Backfill) -> list[str]:
        table = self.catalog.table(step.table)
        if not table.key:
            raise MissingKeyError(str(step.table))
        update = self.constant(
            f"fill {' '.join(step.assign)}", sql.update_batch(step, self.references(step))
        )
        key = ", ".join(_text(quote(column)) for column in table.key)
        key = f"({key},)" if len(table.key) == 1 else f"({key})"
        name = _text(self._walk(step))
        return [f"run_batches({name}, {_text(step.table.sql)}, {key}, {update})"]

    def _walk(self, step: Backfill) -> str:
        """Name of a backfill in datamig.run, where each needs a row of its own."""
        same = [
            other for other in self.migration.backfills if set(other.assign) == set(step.assign)
        ]
        name = f"fill {', '.join(step.assign)}"
        if len(same) == 1:
            return name
        place = next(number for number, other in enumerate(same, 1) if other is step)
        return f"{name} of {step.table} ({place})"

    def _keep_in_step(self, step: KeepInStep) -> list[str]:
        name, known = self._trigger(step), self.catalog.table(step.table).columns
        read = sql.columns_read(
            "\n".join(step.assign.values()),
            [column.name for column in known],
            self.catalog.row(step.table),
        )
        function = self.constant(
            "trigger function", sql.trigger_function(step, self.references(step), name)
        )
        trigger = self.constant("trigger", sql.trigger(step, name, read))
        return [
            f"step(lambda: execute({function}))",
            f"step(lambda: execute({trigger}))",
        ]

    def _trigger(self, step: KeepInStep) -> str:
        """Name of a trigger; triggers fire by name, and ours should see what others wrote."""
        place = [s for s in self.migration.steps if isinstance(s, KeepInStep)].index(step)
        return f"zz_datamig_{_ID}" + (f"_{place + 1}" if place else "")

    # ------------------------------------------------ downgrade

    @property
    def irreversible(self) -> str | None:
        """Why there is no way back, or None."""
        for step in self.migration.backfills:
            added = self.catalog.added.get(step.table, {})
            lost = [column for column in step.assign if column not in added]
            if lost:
                return f"{', '.join(lost)} of {step.table} held values that were not kept"
        return None

    @property
    def way_back(self) -> str:
        """The downgrade in words."""
        if self.irreversible:
            return f"raises: {self.irreversible}."
        names = [f"{', '.join(cs)} of {table}" for table, cs in self.catalog.added.items()]
        return (
            f"drops {' and '.join(names) or 'nothing'}, unless a value there was edited since"
            " (then it stops and names the rows); nothing else was changed."
        )

    def downgrade(self) -> str:
        if self.irreversible:
            message = f"{_ID} cannot be undone: {self.irreversible}; restore them from a backup"
            return _function("downgrade", "Refuse", [f"raise RuntimeError({_text(message)})"])
        lines: list[str] = []
        for table in dict.fromkeys(step.table for step in self.migration.backfills):
            lines.append(self._require_unedited(table))
        for step in reversed(self.migration.steps):
            lines += self._downgrade_step(step)
        return _function("downgrade", f"Undo: {self.migration.name}", [*lines, "forget()"])

    def _require_unedited(self, table: TableName) -> str:
        columns = [
            c for step in self.migration.backfills if step.table == table for c in step.assign
        ]
        filled = {column: self._filled(table, column) for column in columns}
        query = sql.edited_rows(table, filled, self.catalog.table(table).key)
        check = self.check(f"{' and '.join(filled)} not edited since the upgrade", query)
        return f"require_unedited({_text(table.sql)}, {one_line(repr(tuple(filled)))}, {check})"

    def _filled(self, table: TableName, column: str) -> str:
        """What the upgrade gave a column, as an expression over the row."""
        steps = [
            step
            for step in reversed(self.migration.steps)
            if isinstance(step, Backfill | KeepInStep)
            if step.table == table and column in step.assign
        ]
        # The last backfill of a row wins; a row that none of them took has its trigger's value.
        cases, other = list[str](), "NULL"
        for step in sorted(steps, key=lambda step: isinstance(step, KeepInStep)):
            given = self.references(step)[column]
            if isinstance(step, KeepInStep) or step.where is None:
                other = given
                break
            cases.append(f"WHEN ({step.where}) THEN {given}")
        if not cases:
            return other
        type = self.catalog.column_type(table, column).name
        return f"(CASE {' '.join(cases)} ELSE {other} END)::{type}"

    def _downgrade_step(self, step: Step) -> list[str]:
        match step:
            case ops.AddColumnOp():
                drop = step.reverse()
                drop.if_exists = True
                return [_step(_alembic(drop))]
            case ops.AlterColumnOp(table_name=table, column_name=column, schema=schema):
                if column in self.catalog.added.get(TableName(schema, table), {}):
                    return []  # goes with its column
                return [_step(_alembic(step.reverse()))]
            case ops.CreateCheckConstraintOp(table_name=table, schema=schema):
                drop = ops.DropConstraintOp(
                    step.constraint_name, table, schema=schema, if_exists=True
                )
                return [_step(_alembic(drop))]
            case KeepInStep(table=table):
                name = quote(self._trigger(step))
                return [
                    _step(f"execute({_text(f'DROP TRIGGER IF EXISTS {name} ON {table.sql}')})"),
                    _step(f"execute({_text(f'DROP FUNCTION IF EXISTS datamig.{name}()')})"),
                ]
            case CreateEnum(name=name):
                return [_step(f"execute({_text(f'DROP TYPE IF EXISTS {name.sql}')})")]
            case _:
                return []


def _function(name: str, purpose: str, statements: Sequence[str]) -> str:
    purpose = purpose.replace("\\", "/").replace('"', "'")
    head = f'def {name}() -> None:\n    """{purpose[:1].upper()}{purpose[1:]}."""\n'
    if statements[0].startswith("raise "):
        return f"{head}    raise {call(statements[0].removeprefix('raise '), 4, len('raise '))}"
    body = "\n".join(f"        {call(statement, 8)}" for statement in statements)
    return f"{head}    with own_commits():\n{body}"


def _step(code: str) -> str:
    return f"step(lambda: {code})"


def _alembic(operation: ops.MigrateOperation) -> str:
    """The operation as Alembic's own renderer writes it, on one line in double quotes."""
    code = render_python_code(ops.UpgradeOps([operation]), migration_context=_POSTGRESQL)
    lines = (line for line in code.splitlines() if not line.strip().startswith("#"))
    line = one_line(" ".join(line.strip() for line in lines))
    if foreign := names_used(line) - {"op", "postgresql", "sa"}:
        raise MigrationError(
            f"the revision would have to import {', '.join(sorted(foreign))}, but it stands alone",
            "use a type of SQLAlchemy's own",
        )
    return line


# Without it Alembic writes JSONB and ARRAY so that their import is missing, and false as 0.
_POSTGRESQL = MigrationContext.configure(dialect_name="postgresql")


def _columns_not_there(table: TableName, columns: Iterable[str]) -> tuple[str, str]:
    listed = ", ".join(map(literal, columns))
    return (
        f"no column {' or '.join(columns)} yet",
        f"SELECT attname FROM pg_attribute\n WHERE attrelid = {literal(table.sql)}::regclass"
        f"\n   AND attname IN ({listed}) AND NOT attisdropped",
    )


def _type_not_there(name: TableName) -> tuple[str, str]:
    """The downgrade drops the type: it must not be somebody else's."""
    type = f"to_regtype({literal(name.sql)})"
    return (f"no type {name} yet", f"SELECT {type} AS type\n WHERE {type} IS NOT NULL")


def _text(value: str) -> str:
    """A Python string literal in double quotes."""
    return one_line(repr(value))

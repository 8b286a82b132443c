"""A revision as it grows: its constants, the lines of its story, names of what it keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from alembic.operations import ops

from datamig_nb import dropped, kept, statements, step_effects, targets, walks
from datamig_nb.catalog import Catalog
from datamig_nb.checks import Check, RowCheck
from datamig_nb.compound import Swap
from datamig_nb.errors import MissingKeyError
from datamig_nb.functions import pasted, require_free_names
from datamig_nb.migration import Migration, Step, added_columns, step_table
from datamig_nb.names import TableName
from datamig_nb.source import (
    INLINED,
    bindings,
    call,
    expression_constant,
    one_line,
    reference,
    statement_constant,
)
from datamig_nb.stages import Statement
from datamig_nb.steps import Backfill, BackUp, DeleteRows, InsertRows, KeepInStep, Sql
from datamig_nb.transforms import Transform

# Stands for the revision's id while the text is written: the id is a hash of that text.  It looks
# like none, so that no expression holds it by chance.
ID = "q7xz4revkj0w"

#: The oldest PostgreSQL that files are written for.
OLDEST_SERVER = 14

# The first that has pg_input_is_valid().
_ASKS_TYPES = 16

# Words that no name ends with: something would follow.
_LINKS = set(
    "a an and are as at by every for from has have if in into is no not of on or the to".split()
)

# An expression that needs no constant.
_SHORT = re.compile(r"[\w.]{1,63}|'[^'\\\s]{0,20}'")


@dataclass
class Draft:
    """The revision as it grows: lines of both functions, and the constants they use."""

    #: What this revision does, and the migration that it is a part of, or all of.
    migration: Migration
    catalog: Catalog
    whole: Migration
    #: Source of each constant, in the order of first use.
    constants: list[str] = field(default_factory=list[str])
    #: Name of the constant of each expression, by its text.
    expressions: dict[str, str] = field(default_factory=dict[str, str])
    #: Name of each constant, by its statement.
    _constants: dict[str, str] = field(default_factory=dict[str, str])
    #: Names that are taken, those of the inlined functions and constants first.
    _names: set[str] = field(
        default_factory=lambda: {name for module in INLINED for name in vars(module)}
    )

    # ------------------------------------------------ functions of rows

    @property
    def pasted(self) -> str:
        """The source of the functions that compute rows."""
        return pasted(step.function for step in self.migration.transforms)

    @property
    def imports(self) -> tuple[str, ...]:
        """Import statements that these functions need."""
        return tuple(s for step in self.migration.transforms for s in step.function.imports)

    def require_free_names(self, others: str) -> None:
        """Refuse functions of rows whose names mean something else in the rest of the revision."""
        taken = bindings(others)
        for step in self.migration.transforms:
            ours = bindings("\n".join((*step.function.imports, step.function.source)))
            same = {name for name, bound in ours.items() if taken.get(name) == bound}
            require_free_names(step.function, set(taken) - same)

    # ------------------------------------------------ constants

    def constant(self, wish: str, statement: str) -> str:
        """Add a statement as a constant with a name like ``wish``; give the name.

        A statement that is a constant already gets no second one.
        """
        if statement not in self._constants:
            name = self._constants[statement] = self._new_name(wish)
            self.constants.append(statement_constant(name, self._referring(statement)))
        return self._constants[statement]

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

    def failing(self, check: Check) -> tuple[str, str]:
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

    def take_names(self) -> None:
        """Name the constants of all expressions first, behind them the functions of rows."""
        for step in self.migration.steps:
            if isinstance(step, Backfill | KeepInStep):
                self.references(step)
            elif isinstance(step, InsertRows):
                self._expression(f"rows for {step.table.name}", step.select)
        for step in self.migration.transforms:
            self._names.update(step.function.names)

    def _new_name(self, wish: str) -> str:
        words = re.findall(r"[a-z0-9]+", wish.lower())
        if len("_".join(words)) > 45:
            words = re.findall(r"[a-z0-9]+", wish.lower().partition(", and ")[0])
            while len(words) > 1 and (len("_".join(words)) > 45 or words[-1] in _LINKS):
                words.pop()
        base = "_".join(words).upper()[:63] or "STATEMENT"
        base = f"THE_{base}" if base[0].isdigit() else base
        name, number = base, 2
        while name in self._names:
            name, number = f"{base}_{number}", number + 1
        self._names.add(name)
        return name

    # ------------------------------------------------ lines of the story

    def statement(self, statement: Statement, *, once: bool) -> str:
        """The line of the story that sends a statement of a schema step."""
        function = "step_outside" if statement.outside else "step_once" if once else "step"
        arguments = [self.written(statement.sql)]
        if statement.validates is not None:
            arguments.append(self.check(*statement.validates))
        if statement.on_failure is not None:
            arguments.append(f"undo={self.written(statement.on_failure.sql)}")
        return f"{function}({', '.join(arguments)})"

    def written(self, statement: str) -> str:
        """A statement in its place where it is short, else the name of its constant."""
        if "\n" not in statement and len(statement) <= 80:
            return python_text(statement)
        words = re.sub(r"(?s)^DO \$datamig\$\nBEGIN\s+IF .*? THEN\s+", "", statement)
        return self.constant(words[:60], statement)

    def run(
        self,
        name: str,
        table: TableName,
        key: Sequence[str],
        work: str,
        more: dict[str, str],
    ) -> str:
        """The line that walks a table: ``more`` are arguments in Python."""
        keys = one_line(repr(tuple(key)))
        arguments = [python_text(name), python_text(table.sql), keys, work]
        arguments += [f"{option}={value}" for option, value in more.items()]
        function = "run_in_parallel" if "connections" in more else "run_batches"
        function = "leave_to_workers" if name.startswith("job: ") else function
        return f"{function}({', '.join(arguments)})"

    def run_over(
        self,
        name: str,
        table: TableName,
        keys: Sequence[str],
        work: str,
        saved: str,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """A walk over what was kept, ``saved``, that changes the table."""
        over = {"relation": python_text(f"{saved} AS kept"), "kept": python_text(saved), **more}
        if keys == ("ctid",):
            table = TableName.parse(saved)  # whose pages are walked
        return self.run(name, table, keys, work, over)

    # ------------------------------------------------ names and places

    @property
    def added(self) -> dict[TableName, dict[str, sa.Column[Any]]]:
        """The columns that this revision adds, and its downgrade drops."""
        return added_columns(self.migration)

    def number(self, step: Step) -> int:
        """The step's place in the whole migration, from 1."""
        return next(n for n, other in enumerate(self.whole.steps, 1) if other is step)

    def walk_name(self, step: walks.WalkedStep) -> str:
        """Name of a walk in datamig.run, where each needs a row of its own."""
        if isinstance(step, InsertRows):
            return f"insert into {step.table} ({self.number(step)})"
        if isinstance(step, DeleteRows):
            return f"delete from {step.table} ({self.number(step)})"
        if step.walk.job is not None:
            return f"job: {step.walk.job}"
        same = [other for other in self.whole.backfills if set(other.assign) == set(step.assign)]
        name = f"fill {', '.join(step.assign)}"
        if len(same) == 1:
            return name
        place = next(number for number, other in enumerate(same, 1) if other is step)
        return f"{name} of {step.table} ({place})"

    def trigger(self, step: KeepInStep) -> str:
        """Name of a trigger; triggers fire by name, and ours should see what others wrote."""
        if self.migration is not self.whole:  # the revision that drops it may be another one
            return f"zz_datamig_{step.digest}"
        place = [s for s in self.whole.steps if isinstance(s, KeepInStep)].index(step)
        return f"zz_datamig_{ID}" + (f"_{place + 1}" if place else "")

    def triggers(self, step: KeepInStep) -> tuple[str, str]:
        """The statements that make a trigger: its function, and itself."""
        name, known = self.trigger(step), self.catalog.table(step.table).columns
        columns = [column.name for column in known]
        text = "\n".join(step.assign.values())
        read = statements.columns_read(text, columns, self.catalog.row(step.table))
        types = {c: self.catalog.column_type(step.table, c).name for c in step.assign}
        function = statements.trigger_function(step, self.references(step), name, types)
        return function, statements.trigger(step, name, read)

    def kept_until(self, swap: Swap) -> list[KeepInStep]:
        """What keeps the columns in step that come in, until then."""
        comes = {(each.table, each.new) for each in swap.columns}
        return [
            step
            for step in self.whole.steps
            if isinstance(step, KeepInStep) and comes & {(step.table, c) for c in step.assign}
        ]

    def key_of(self, table: TableName) -> tuple[str, ...]:
        """The columns of the table's key; () where it has none."""
        return self.catalog.table(table).key

    def columns_at(self, step: Step, table: TableName) -> list[str]:
        """The columns that the table has when the step is taken, but computed ones."""
        names = [c.name for c in self.catalog.table(table).columns if not c.computed]
        for other in self.whole.steps[: self.number(step) - 1]:
            match other:
                case ops.AddColumnOp(column=column) if step_table(other) == table:
                    names += [] if column.name in names else [column.name]  # an earlier phase
                case ops.DropColumnOp(column_name=name) if step_table(other) == table:
                    names.remove(name)
                case ops.AlterColumnOp(column_name=name, modify_name=str(new)) if (
                    step_table(other) == table
                ):
                    names[names.index(name)] = new
                case Swap(columns=columns):
                    for each in (each for each in columns if each.table == table):
                        names.remove(each.new)
                        names += [each.old] if each.keep else []
                case _:
                    pass
        return names

    def deletions(self, step: DeleteRows) -> tuple[DeleteRows, ...]:
        """The step as walks over one table each: those of its dependants first."""
        return targets.deletions(step, self.catalog.tables)

    def keeper(self, step: Step) -> BackUp | None:
        """The step that says to keep what this one drops; None where nothing is kept."""
        if step_effects.goes_with_another(step, self.migration.steps):
            return None  # there was nothing before this revision
        return dropped.kept_by(step, self.whole.steps)

    def saved(self, step: Backfill | Transform) -> kept.Kept | None:
        """The table for what the step replaces; None where nothing is kept."""
        added, own = self.catalog.added.get(step.table, {}), self.added.get(step.table, {})
        earlier = [column for column in step.columns if column in added and column not in own]
        columns = dict.fromkeys((*walks.kept_columns(step, self.whole), *earlier))
        if not columns:
            return None
        if not self.catalog.table(step.table).key:
            raise MissingKeyError(str(step.table))
        return self._kept_values(f"datamig.kept_{ID}_{self.number(step)}", step.table, columns)

    def _kept_values(self, name: str, table: TableName, columns: Iterable[str]) -> kept.Kept:
        return kept.Kept(
            name=name,
            table=table,
            key=self.catalog.table(table).key,
            types={column: self.catalog.column_type(table, column).name for column in columns},
        )

    def changed(self, step: InsertRows) -> kept.Kept | None:
        """The table for values that DO UPDATE replaces; None where it replaces none."""
        table = self.catalog.table(step.table)
        added = self.catalog.added.get(step.table, {})
        columns = [c.name for c in table.columns if not c.computed and c.name not in table.key]
        if "update" not in (step.on_conflict or "").lower() or not columns:
            return None
        name = f"datamig.changed_{ID}_{self.number(step)}"
        return self._kept_values(name, step.table, [*columns, *added])

    def kept_rows(self, step: InsertRows | DeleteRows, place: int = 0) -> str | None:
        """The table for copies of rows that come or go; None where there is no need."""
        if isinstance(step, DeleteRows) and not step.keep:
            return None
        part = f"_{place}" if place else ""
        return f"datamig.kept_{ID}_{self.number(step)}{part}"

    # ------------------------------------------------ the server

    @property
    def minimum_server(self) -> int:
        """The oldest PostgreSQL that the file runs on; it uses what the one it is made for has."""
        keeps = any(self.saved(step) for step in self.migration.backfills)
        if keeps and self.catalog.major >= kept.RETURNS_OLD:
            return kept.RETURNS_OLD
        texts = (text for step in self.whole.backfills for text in step.texts)
        return _ASKS_TYPES if any("pg_input_is_valid" in t for t in texts) else OLDEST_SERVER


def function_text(name: str, purpose: str, statements: Sequence[str], *, before: str = "") -> str:
    """A function of the revision, whose statements commit by themselves."""
    purpose = purpose.replace("\\", "/").replace('"', "'")
    head = f'def {name}() -> None:\n    """{purpose[:1].upper()}{purpose[1:]}."""\n'
    if statements[0].startswith("raise "):
        return f"{head}    raise {call(statements[0].removeprefix('raise '), 4, len('raise '))}"
    body = "\n".join(f"        {call(statement, 8)}" for statement in statements)
    head += f"    {before}\n" if before else ""
    return f"{head}    with own_commits():\n{body}"


def step_line(statement: str, *, once: bool = False) -> str:
    """The line that makes one change, its statement in place."""
    return f"step{'_once' if once else ''}({python_text(statement)})"


def takes_away(step: Step) -> bool:
    """Whether the steps before it could not be done again after it."""
    renames = isinstance(step, ops.AlterColumnOp) and step.modify_name is not None
    return renames or isinstance(step, ops.DropColumnOp | ops.DropTableOp | ops.RenameTableOp | Sql)


def python_text(value: str) -> str:
    """A Python string literal in double quotes."""
    return one_line(repr(value))

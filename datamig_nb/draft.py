"""A migration as the text of a revision's functions: the story, and the SQL that it uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from alembic.operations import ops

from datamig_nb import (
    dropped,
    kept,
    preflight,
    schema,
    sequence,
    stages,
    statements,
    swaps,
    targets,
    walks,
)
from datamig_nb.catalog import Catalog
from datamig_nb.checks import Check, QueryCheck, RowCheck, Unchanged
from datamig_nb.compound import ChangeType, Exchanged, MergeRows, Swap
from datamig_nb.errors import MissingKeyError
from datamig_nb.functions import pasted, require_free_names
from datamig_nb.migration import Migration, Step, checksum_checks, step_table
from datamig_nb.names import TableName, literal, quote
from datamig_nb.source import (
    INLINED,
    bindings,
    call,
    expression_constant,
    one_line,
    reference,
    statement_constant,
)
from datamig_nb.stages import NoWayBack, Statement
from datamig_nb.steps import Backfill, BackUp, DeleteRows, InsertRows, KeepInStep, Sql
from datamig_nb.transforms import Transform

# Stands for the revision's id while the text is written: the id is a hash of that text.  It looks
# like none, so that no expression holds it by chance.
ID = "q7xz4revkj0w"

#: The oldest PostgreSQL that files are written for.
OLDEST_SERVER = 14

# The first that has pg_input_is_valid().
_ASKS_TYPES = 16

# Types whose values are texts to Python too.
_TEXTS = {"text", "varchar", "character varying"}

# Words that no name ends with: something would follow.
_LINKS = set(
    "a an and are as at by every for from has have if in into is no not of on or the to".split()
)

# An expression that needs no constant.
_SHORT = re.compile(r"[\w.]{1,63}|'[^'\\\s]{0,20}'")


@dataclass
class Draft:
    """The revision as it grows: lines of both functions, and the constants they use."""

    migration: Migration
    catalog: Catalog
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
        if len("_".join(words)) > 45:
            while len("_".join(words)) > 45 or words[-1] in _LINKS:
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
        """The function ``upgrade``."""
        self.catalog.require_fitting()
        for step in self.migration.steps:
            if isinstance(step, Backfill | KeepInStep):
                self.references(step)
        for step in self.migration.transforms:
            self._names.update(step.function.names)
        lines = self._preflight()
        for step in self.migration.steps:
            lines += self._upgrade_step(step)
        if not self.migration.transforms:
            return _function("upgrade", self.migration.name, [*lines, "finish()"])
        done = _step(f"DELETE FROM datamig.own_transaction WHERE revision = '{ID}'")
        return _function(
            "upgrade", self.migration.name, [*lines, done, "finish()"], before="online_only()"
        )

    def _preflight(self) -> list[str]:
        steps = self.migration.steps
        checks: list[tuple[str, str]] = [
            (condition.holds, condition.failing)
            for number, step in enumerate(steps)
            for condition in preflight.preflight(step, steps[:number])
        ]
        asked = [check for check in self.migration.checks if check.before]
        asked += walks.early_checks(self.migration, self.catalog)
        asked += (
            *self.catalog.readable,
            *targets.session_checks(self.migration, self.catalog.tables, self.catalog.major),
        )
        if self.minimum_server > OLDEST_SERVER:
            asked.append(_server_is_new_enough(self.minimum_server))
        checks += [self._failing(check) for check in asked]
        names = [self.check(*check) for check in checks]
        lines = [f"preflight({', '.join([_text('upgrade'), *names])})"]
        for figure in (step for step in steps if isinstance(step, Unchanged)):
            value = self.constant(figure.name, figure.value)
            lines.append(f"remember({_text(figure.name)}, {value})")
        return lines

    def _late_checks(self, step: walks.WalkedStep, earlier: Iterable[Step], walk: str) -> list[str]:
        """Checks right before a walk, made before its first batch and not again."""
        if not walks.is_late(step, earlier, self.catalog):
            return []
        begun = f"SELECT FROM datamig.run WHERE (revision, step) = ('{ID}', {literal(walk)})"
        return [
            f"require({self.check(*self._failing(check))}, unless={_text(begun)})"
            for check in walks.asked(step, self.migration, self.catalog)
        ]

    def _upgrade_step(self, step: Step) -> list[str]:
        match step:
            case Backfill():
                return self._backfill(step)
            case InsertRows():
                return self._insert(step)
            case DeleteRows():
                return self._delete(step)
            case KeepInStep():
                return self._keep_in_step(step)
            case Transform():
                return self._transform(step)
            case Swap():
                return self._swap(step)
            case RowCheck(before=False) | QueryCheck(before=False):
                return [f"require({self.check(*self._failing(step))})"]
            case Unchanged():
                return [f"require({self.check(f'{step.name} unchanged', _differs_now(step))})"]
            case BackUp() | RowCheck() | QueryCheck():
                return []  # in the backfills, before what is dropped, and in the preflight
            case ops.DropColumnOp() | ops.DropTableOp() if self._keeper(step) is not None:
                return self._drop_and_keep(step)
            case _:
                assert not isinstance(step, ChangeType | MergeRows)  # taken apart before
                found = self.catalog.found[self._number(step) - 1]
                sent = schema.upgrade_statements(step, found)
                if isinstance(step, ops.AlterColumnOp) and step.modify_nullable is False:
                    return self._set_not_null(step, found, sent)
                return [self._statement(each, once=_takes_away(step)) for each in sent]

    def _set_not_null(
        self, step: ops.AlterColumnOp, found: stages.Found, sent: Sequence[Statement]
    ) -> list[str]:
        """The lines of a step that makes a column NOT NULL, whose stages are one call."""
        table, column = step_table(step), step.column_name
        staged = stages.set_not_null(table, column, found.key)
        at, once = sent.index(staged[0]), _takes_away(step)
        validates = next(each.validates for each in staged if each.validates is not None)
        names = [table.sql, quote(column), quote(stages.not_null_name(column))]
        arguments = [*map(_text, names), self.check(*validates)]
        return [
            *(self._statement(each, once=once) for each in sent[:at]),
            f"set_not_null({', '.join(arguments)})",
            *(self._statement(each, once=once) for each in sent[at + len(staged) :]),
        ]

    def _swap(self, step: Swap) -> list[str]:
        comes = {(each.table, each.new) for each in step.columns}
        triggers = [
            (quote(self._trigger(other)), other.table)
            for other in self.migration.steps
            if isinstance(other, KeepInStep)
            if comes & {(other.table, column) for column in other.assign}
        ]
        made = swaps.prepare(step, "there", self._key_of)
        swap = swaps.exchange(step, "there", triggers)
        return [self._statement(each, once=not each.repeatable) for each in (*made, swap)]

    def _key_of(self, table: TableName) -> tuple[str, ...]:
        return self.catalog.table(table).key

    def _statement(self, statement: Statement, *, once: bool) -> str:
        """The line of the story that sends a statement of a schema step."""
        function = "step_outside" if statement.outside else "step_once" if once else "step"
        arguments = [self._written(statement.sql)]
        if statement.validates is not None:
            arguments.append(self.check(*statement.validates))
        if statement.on_failure is not None:
            arguments.append(f"undo={self._written(statement.on_failure.sql)}")
        return f"{function}({', '.join(arguments)})"

    def _written(self, statement: str) -> str:
        """A statement in its place where it is short, else the name of its constant."""
        if "\n" not in statement and len(statement) <= 80:
            return _text(statement)
        words = re.sub(r"(?s)^DO \$datamig\$\nBEGIN\s+IF .*? THEN\s+", "", statement)
        return self.constant(words[:60], statement)

    def _earlier(self, step: Step) -> tuple[Step, ...]:
        return self.migration.steps[: self._number(step) - 1]

    def _backfill(self, step: Backfill) -> list[str]:
        expressions = self.references(step)
        plan = walks.plan(step, expressions, self.migration, self.catalog)
        name = self._walk_name(step)
        lines = self._late_checks(step, self._earlier(step), name)
        if saved := self._kept(step):
            lines += self._keep_values(saved)
            returning = self.minimum_server >= kept.RETURNS_OLD
            keeping = kept.update_batch_returning if returning else kept.update_batch_keeping
            update = keeping(step, expressions, plan.guard, saved)
        else:
            update = statements.update_batch(step, expressions, plan.guard)
        more = walks.options(step.walk, self._hold(step))
        if plan.look_back is not None:
            key, aside = self.catalog.table(step.table).key, None
            if step.walk.quarantine_rows is not None:
                aside = statements.set_aside(step, key, ID, name)
            left = statements.remaining(step, plan.look_back, self._not_begun(step), aside)
            more["remaining"] = self.constant(f"{' '.join(step.assign)} left", left)
        if plan.woven is not None and not saved:
            more["woven"] = _text(plan.woven)
            if step.walk.connections > 1 and step.walk.job is None:
                more["connections"] = str(step.walk.connections)
        work = self.constant(f"fill {' '.join(step.assign)}", update)
        return [*lines, self._run(name, step.table, self._key(step, plan), work, more)]

    def _keep_values(self, saved: kept.Kept) -> list[str]:
        wishes = ("keep values", "keep key")
        pairs = zip(wishes, kept.keep_values(saved), strict=True)
        return [f"step({self.constant(wish, statement)})" for wish, statement in pairs]

    def _not_begun(self, step: Backfill | DeleteRows) -> str | None:
        later = walks.later_walks(step, self.migration)
        return statements.not_begun(ID, [self._walk_name(other) for other in later])

    def _transform(self, step: Transform) -> list[str]:
        key = self.catalog.table(step.table).key
        if not key:
            raise MissingKeyError(str(step.table))
        same = [s for s in self.migration.transforms if set(s.columns) & set(step.columns)]
        name = f"compute {', '.join(step.columns)}"
        name += f" of {step.table} ({self._number(step)})" if len(same) > 1 else ""
        arguments = [
            *(_text(name), _text(step.table.sql), step.function.name),
            f"key={one_line(repr(tuple(map(quote, key))))}",
            f"reads={one_line(repr(step.reads))}",
            f"writes={one_line(repr(tuple(map(quote, step.writes))))}",
        ]
        if step.where is not None:
            arguments.append(f"where={_text(step.where)}")
        if step.checksum is not None:
            arguments.append(f"checksum={_text(quote(step.checksum))}")
        if step.workers > 1:
            at_once = "in_processes" if step.processes else "in_threads"
            arguments += [f"workers={step.workers}", f"at_once={at_once}"]
        if not self._is_text(step):
            arguments.append("kinds=of_any_type")
        if step.vectorized:
            arguments.append("computes=by_series")
        if step.quarantine_rows is not None:
            arguments += ["set_aside=set_aside", f"quarantine_rows={step.quarantine_rows}"]
        checks = [f"require({self.check(*self._failing(c))})" for c in checksum_checks(step)]
        return [f"transform({', '.join(arguments)})", *checks]

    def _is_text(self, step: Transform) -> bool:
        """Whether all that is read and written is text, which needs no conversion."""
        names = {quote(c.name): c.name for c in self.catalog.table(step.table).columns}
        columns = [*(names.get(expression, "") for expression in step.reads), *step.columns]
        if "" in columns:
            return False
        kinds = (self.catalog.column_type(step.table, column).name for column in columns)
        return {kind.lower().partition("(")[0] for kind in kinds} <= _TEXTS

    def _key(self, step: Backfill, plan: walks.BackfillPlan) -> tuple[str, ...]:
        key = self.catalog.table(step.table).key
        if not key and (plan.look_back is None or step.using is not None):
            raise MissingKeyError(str(step.table))
        joined = step.using is not None or self._kept(step) is not None
        name = f"{quote(step.table.name)}." if joined else ""
        return tuple(f"{name}{quote(column)}" for column in key) or ("ctid",)

    def _run(
        self,
        name: str,
        table: TableName,
        key: Sequence[str],
        work: str,
        more: dict[str, str],
    ) -> str:
        keys = one_line(repr(tuple(key)))
        arguments = [_text(name), _text(table.sql), keys, work]
        arguments += [f"{option}={value}" for option, value in more.items()]
        function = "run_in_parallel" if "connections" in more else "run_batches"
        function = "leave_to_workers" if name.startswith("job: ") else function
        return f"{function}({', '.join(arguments)})"

    def _hold(self, step: Backfill | InsertRows | DeleteRows) -> str | None:
        if not step.walk.hold_on:
            return None
        return self.constant("hold while", statements.hold_query(step.table, step.walk.hold_on))

    def _walk_name(self, step: walks.WalkedStep) -> str:
        """Name of a walk in datamig.run, where each needs a row of its own."""
        if isinstance(step, InsertRows):
            return f"insert into {step.table} ({self._number(step)})"
        if isinstance(step, DeleteRows):
            return f"delete from {step.table} ({self._number(step)})"
        if step.walk.job is not None:
            return f"job: {step.walk.job}"
        same = [
            other for other in self.migration.backfills if set(other.assign) == set(step.assign)
        ]
        name = f"fill {', '.join(step.assign)}"
        if len(same) == 1:
            return name
        place = next(number for number, other in enumerate(same, 1) if other is step)
        return f"{name} of {step.table} ({place})"

    @property
    def minimum_server(self) -> int:
        """The oldest PostgreSQL that the file runs on; it uses what the one it is made for has."""
        keeps = any(self._kept(step) for step in self.migration.backfills)
        if keeps and self.catalog.major >= kept.RETURNS_OLD:
            return kept.RETURNS_OLD
        texts = (text for step in self.migration.backfills for text in step.texts)
        return _ASKS_TYPES if any("pg_input_is_valid" in t for t in texts) else OLDEST_SERVER

    def _number(self, step: Step) -> int:
        return next(n for n, other in enumerate(self.migration.steps, 1) if other is step)

    def _kept(self, step: Backfill) -> kept.Kept | None:
        """The table for what the backfill replaces; None where nothing is kept."""
        columns = walks.kept_columns(step, self.migration)
        if not columns:
            return None
        if not self.catalog.table(step.table).key:
            raise MissingKeyError(str(step.table))
        return self._kept_values(f"datamig.kept_{ID}_{self._number(step)}", step.table, columns)

    def _kept_values(self, name: str, table: TableName, columns: Iterable[str]) -> kept.Kept:
        return kept.Kept(
            name=name,
            table=table,
            key=self.catalog.table(table).key,
            types={column: self.catalog.column_type(table, column).name for column in columns},
        )

    def _changed(self, step: InsertRows) -> kept.Kept | None:
        """The table for values that DO UPDATE replaces; None where it replaces none."""
        table = self.catalog.table(step.table)
        added = self.catalog.added.get(step.table, {})
        columns = [c.name for c in table.columns if not c.computed and c.name not in table.key]
        if "update" not in (step.on_conflict or "").lower() or not columns:
            return None
        name = f"datamig.changed_{ID}_{self._number(step)}"
        return self._kept_values(name, step.table, [*columns, *added])

    def _kept_rows(self, step: InsertRows | DeleteRows, place: int = 0) -> str | None:
        """The table for copies of rows that come or go; None where there is no need."""
        if isinstance(step, DeleteRows) and not step.keep:
            return None
        part = f"_{place}" if place else ""
        return f"datamig.kept_{ID}_{self._number(step)}{part}"

    def _keep_rows(self, table: TableName, saved: str | None) -> list[str]:
        if saved is None:
            return []
        return [f"step({self.constant('keep rows', kept.keep_rows(table, saved))})"]

    def _insert(self, step: InsertRows) -> list[str]:
        columns, key = self.catalog.selected[step.select], self.catalog.table(step.table).key
        saved, changed, name = self._kept_rows(step), self._changed(step), self._walk_name(step)
        assert saved is not None
        lines = self._late_checks(step, self._earlier(step), name)
        lines += self._keep_rows(step.table, saved)
        lines += [] if changed is None else self._keep_values(changed)
        insert = kept.insert_batch(step, columns, saved, changed, key)
        work = self.constant(f"insert into {step.table.name}", insert)
        more = {"relation": self.constant(f"rows for {step.table.name}", statements.source(step))}
        more |= walks.options(step.walk, self._hold(step))
        return [*lines, self._run(name, step.table, tuple(map(quote, step.key)), work, more)]

    def _deletions(self, step: DeleteRows) -> tuple[DeleteRows, ...]:
        return targets.deletions(step, self.catalog.tables)

    def _delete(self, step: DeleteRows) -> list[str]:
        parts = self._deletions(step)
        lines, drops = self._indexes_for(step, parts)
        for place, part in enumerate(parts, 1 - len(parts)):
            saved = self._kept_rows(step, abs(place))
            name = f"delete from {part.table} ({self._number(step)})"
            earlier = (*self._earlier(step), *parts[: place + len(parts) - 1])
            lines += self._late_checks(part, earlier, name)
            lines += self._keep_rows(part.table, saved)
            work = self.constant(f"delete from {part.table.name}", kept.delete_batch(part, saved))
            left = kept.still_there(part, self._not_begun(step))
            more = {"remaining": self.constant(f"{part.table.name} left", left)}
            more |= walks.options(part.walk, self._hold(part))
            key = tuple(map(quote, self.catalog.table(part.table).key)) or ("ctid",)
            lines.append(self._run(name, part.table, key, work, more))
        return lines + drops

    def _indexes_for(
        self, step: DeleteRows, parts: Sequence[DeleteRows]
    ) -> tuple[list[str], list[str]]:
        """Lines that build what lets PostgreSQL find the rows that refer to one, and drop it."""
        builds, drops = list[str](), list[str]()
        for place, key in enumerate(targets.unindexed(parts, self.catalog.tables), 1):
            index = TableName(key.child.schema, f"datamig_{ID}_{self._number(step)}_{place}")
            columns = ", ".join(map(quote, key.columns))
            create = (
                f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {index.name}\n"
                f"    ON {key.child.sql} ({columns})"
            )
            build = stages.build_index(index.name, key.child, create)
            builds += [self._statement(each, once=False) for each in build]
            drops.append(self._statement(stages.drop_index(index), once=False))
        return builds, drops

    def _keep_in_step(self, step: KeepInStep) -> list[str]:
        name, known = self._trigger(step), self.catalog.table(step.table).columns
        read = statements.columns_read(
            "\n".join(step.assign.values()),
            [column.name for column in known],
            self.catalog.row(step.table),
        )
        types = {c: self.catalog.column_type(step.table, c).name for c in step.assign}
        text = statements.trigger_function(step, self.references(step), name, types)
        function = self.constant("trigger function", text)
        trigger = self.constant("trigger", statements.trigger(step, name, read))
        return [
            f"step({function})",
            f"step({trigger})",
        ]

    def _trigger(self, step: KeepInStep) -> str:
        """Name of a trigger; triggers fire by name, and ours should see what others wrote."""
        place = [s for s in self.migration.steps if isinstance(s, KeepInStep)].index(step)
        return f"zz_datamig_{ID}" + (f"_{place + 1}" if place else "")

    # ------------------------------------------------ downgrade

    @property
    def irreversible(self) -> str | None:
        """Why there is no way back, or None."""
        for step in self.migration.steps:
            if isinstance(step, Backfill):
                added = self.catalog.added.get(step.table, {})
                kept = walks.kept_columns(step, self.migration)
                lost = [c for c in step.assign if c not in added and c not in kept]
                if lost:
                    return f"{', '.join(lost)} of {step.table} held values that were not kept"
            if isinstance(step, Transform):
                added = self.catalog.added.get(step.table, {})
                if lost := [column for column in step.columns if column not in added]:
                    return f"{', '.join(lost)} of {step.table} held values that were not kept"
            if isinstance(step, DeleteRows) and not step.keep:
                return f"the rows deleted from {step.table} were not kept"
            if isinstance(way := self._way_back_of(step), NoWayBack):
                return way.reason
        return None

    def _way_back_of(self, step: Step) -> tuple[Statement, ...] | NoWayBack:
        """The statements that take a schema step back; () for other steps."""
        if isinstance(step, Backfill | InsertRows | DeleteRows | KeepInStep | BackUp | Transform):
            return ()
        if isinstance(step, RowCheck | QueryCheck | Unchanged):
            return ()
        if isinstance(step, Swap):
            lost = [str(c) for c in step.columns if not c.keep and c.back is None]
            return NoWayBack(reason=f"the old {', '.join(lost)} is dropped") if lost else ()
        assert not isinstance(step, ChangeType | MergeRows)  # taken apart before
        if sequence.goes_with_another(step, self.migration.steps):
            return ()
        if isinstance(step, ops.DropColumnOp | ops.DropTableOp) and self._keeper(step) is not None:
            return self._add_back(step)
        return schema.downgrade_statements(step, self.catalog.found[self._number(step) - 1])

    @property
    def way_back(self) -> str:
        """The downgrade in words."""
        if self.irreversible:
            return f"raises: {self.irreversible}."
        parts: list[str] = []
        held, loose = list[str](), list[str]()
        changes = [c for s in self.migration.steps if isinstance(s, Swap) for c in s.columns]
        swapped = {(each.table, each.new) for each in changes}
        if changes:
            parts.append(
                f"lets the old {', '.join(map(str, changes))} come in again, unless a value was"
                " written since that none is known for (then it stops and names the rows)"
            )
        for table, added in self.catalog.added.items():
            names = walks.columns_held(table, self.migration, self.catalog)
            held += [f"{', '.join(names)} of {table}"] if names else []
            others = [c for c in added if c not in names and (table, c) not in swapped]
            loose += [f"{', '.join(others)} of {table}"] if others else []
        if held:
            parts.append(
                f"drops {' and '.join(held)}, unless a value there was edited since (then it stops"
                " and names the rows)"
            )
        if loose:
            parts.append(f"drops {' and '.join(loose)}, whatever was written there since")
        if any(isinstance(step, BackUp | DeleteRows | InsertRows) for step in self.migration.steps):
            parts.append(
                "puts back what was kept, where it was not edited since; datamig.conflict lists"
                " the rest"
            )
        return f"{'; '.join(parts) or 'changes nothing'}; nothing else was changed."

    def downgrade(self) -> str:
        """The function ``downgrade``."""
        if self.irreversible:
            message = f"{ID} cannot be undone: {self.irreversible}; restore them from a backup"
            return _function("downgrade", "Refuse", [f"raise RuntimeError({_text(message)})"])
        checks = [
            check
            for table in dict.fromkeys(step.table for step in self.migration.backfills)
            for check in self._unedited(table)
        ]
        for step in self.migration.transforms:
            for check in checksum_checks(replace(step, where=None, quarantine_rows=None)):
                held = f"{', '.join(step.writes)} of {step.table} not edited since the upgrade"
                checks.append(self.check(held, self.catalog.failing(check)))
        for column in (c for s in self.migration.steps if isinstance(s, Swap) for c in s.columns):
            if column.back is None:
                checks.append(self.check(*self._written_since(column)))
        lines = [f"preflight({', '.join([_text('downgrade'), *checks])})"]
        for step in reversed(self.migration.steps):
            lines += self._downgrade_step(step)
        return _function("downgrade", f"Undo: {self.migration.name}", [*lines, "forget()"])

    def _unedited(self, table: TableName) -> list[str]:
        """The check that columns which will be dropped hold nothing that would be lost."""
        columns = walks.columns_held(table, self.migration, self.catalog)
        if not columns:
            return []
        filled = {column: self._filled(table, column) for column in columns}
        differs = self._differs(table, filled)
        query = statements.edited_rows(table, filled, differs, self.catalog.table(table).key)
        return [self.check(f"{' and '.join(filled)} not edited since the upgrade", query)]

    def _differs(self, table: TableName, filled: Mapping[str, str]) -> str:
        types = {column: self.catalog.column_type(table, column).name for column in filled}
        return statements.differ(
            [statements.comparable(quote(column), types[column]) for column in filled],
            [statements.comparable(text, types[column]) for column, text in filled.items()],
        )

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
        type = self.catalog.column_type(table, column).name
        if cases:
            return f"(CASE {' '.join(cases)} ELSE {other} END)::{type}"
        texts = [step.assign[column] for step in steps]
        altered = any((table, column, text) in self.catalog.altered for text in texts)
        return f"CAST({other} AS {type})" if altered else other

    def _downgrade_step(self, step: Step) -> list[str]:
        match step:
            case KeepInStep(table=table):
                name = quote(self._trigger(step))
                return [
                    _step(f"DROP TRIGGER IF EXISTS {name} ON {table.sql}"),
                    _step(f"DROP FUNCTION IF EXISTS datamig.{name}()"),
                ]
            case Backfill():
                return self._restore(step)
            case InsertRows():
                return self._take_out(step)
            case DeleteRows():
                return self._put_back(step)
            case Swap():
                return self._swap_back(step)
            case _:
                way, keeper = self._way_back_of(step), self._keeper(step)
                assert not isinstance(way, NoWayBack)  # else there is no downgrade
                once = _takes_away(step) and keeper is None
                lines = [self._statement(each, once=once) for each in way]
                is_first = keeper is not None and step in self._kept_drops(keeper)[:1]
                return lines + (self._fill_again(keeper) if keeper and is_first else [])

    def _written_since(self, column: Exchanged) -> tuple[str, str]:
        return swaps.written_since(column, self._key_of(column.table))

    def _swap_back(self, step: Swap) -> list[str]:
        lines, triggers = list[str](), list[tuple[str, TableName]]()
        for column in step.columns:
            if not column.keep:
                lines.append(f"step({self._written(swaps.add_old(column))})")
        for number, column in enumerate(step.columns, 1):
            if column.back is None:
                continue
            name = f"zz_datamig_{ID}_back_{self._number(step)}_{number}"
            triggers.append((name, column.table))
            back = {column.old: column.back}
            keep = KeepInStep(table=column.table, assign=back)
            text = statements.trigger_function(keep, back, name, {column.old: column.old_type})
            names = [known.name for known in self.catalog.table(column.table).columns]
            read = statements.columns_read(column.back, names, self.catalog.row(column.table))
            trigger = statements.trigger(keep, name, read)
            lines.append(f"step({self.constant('back function', text)})")
            lines.append(f"step({self.constant('back trigger', trigger)})")
            fill = Backfill(table=column.table, assign=back)
            guard = swaps.not_back(column)
            work = self.constant(
                f"back {column.column}", statements.update_batch(fill, back, guard)
            )
            left = self.constant(f"{column.column} left", statements.remaining(fill, guard))
            key = tuple(map(quote, self._key_of(column.table))) or ("ctid",)
            walk = f"fill {column.old} of {column.table} ({self._number(step)})"
            lines.append(self._run(walk, column.table, key, work, {"remaining": left}))
        made = swaps.prepare(step, "back", self._key_of)
        lines += [self._statement(each, once=False) for each in made]
        for column in step.columns:
            if column.back is None:
                lines.append(f"require({self.check(*self._written_since(column))})")
        swap = swaps.exchange(step, "back", triggers)
        return [*lines, self._statement(swap, once=True)]

    def _restore(self, step: Backfill) -> list[str]:
        saved = self._kept(step)
        end_job = [] if step.walk.job is None else ["end_job()"]
        if saved is None:
            return end_job
        role = {} if step.walk.fire_triggers else {"role": '"replica"'}
        return [*end_job, *self._restore_values(saved, self._number(step), role)]

    def _restore_values(self, saved: kept.Kept, number: int, more: dict[str, str]) -> list[str]:
        name = f"restore {', '.join(saved.types)} of {saved.table} ({number})"
        work = self.constant(f"restore {' '.join(saved.types)}", kept.restore_batch(saved))
        keys = tuple(f"kept.{quote(part)}" for part in saved.key)
        return [
            self._run_over(name, saved.table, keys, work, saved.name, more),
            *self._drop_kept(saved.name, kept.note_edited(saved, ID)),
        ]

    def _take_out(self, step: InsertRows) -> list[str]:
        saved, changed, table = (
            self._kept_rows(step),
            self._changed(step),
            self.catalog.table(step.table),
        )
        assert saved is not None
        take_out = kept.take_out_batch(step.table, table.key, saved, table.referenced_by)
        number, keys = self._number(step), tuple(f"kept.{quote(part)}" for part in table.key)
        name, work = (
            f"take rows out of {step.table} ({number})",
            self.constant("take out", take_out),
        )
        return [
            *([] if changed is None else self._restore_values(changed, number, {})),
            self._run_over(name, step.table, keys, work, saved),
            *self._drop_kept(saved, kept.note_left(step.table, table.key, saved, ID)),
        ]

    def _put_back(self, step: DeleteRows) -> list[str]:
        lines = list[str]()
        for place, part in enumerate(reversed(self._deletions(step))):
            saved, table = self._kept_rows(step, place), self.catalog.table(part.table)
            assert saved is not None  # else there is no way back
            columns = [column.name for column in table.columns if not column.computed]
            work = self.constant("put back", kept.put_back_batch(part.table, columns, saved))
            keys = tuple(f"kept.{quote(key)}" for key in table.key) or ("ctid",)
            name = f"put rows back into {part.table} ({self._number(step)})"
            note = kept.note_not_back(part.table, table.key, saved, ID) if table.key else None
            lines.append(self._run_over(name, part.table, keys, work, saved))
            lines += self._drop_kept(saved, note)
        return lines

    # ------------------------------------------------ what is dropped and kept

    def _keeper(self, step: Step) -> BackUp | None:
        return dropped.kept_by(step, self.migration.steps)

    def _kept_drops(self, keeper: BackUp) -> list[ops.DropColumnOp]:
        return dropped.kept_columns(keeper, self.migration.steps)

    def _definition(self, step: Step) -> tuple[str | None, ...] | None:
        return self.catalog.found[self._number(step) - 1].definition

    def _dropped(self, step: ops.DropColumnOp) -> dropped.DroppedColumn | NoWayBack:
        name = step.column_name
        return dropped.DroppedColumn.of(step_table(step), name, self._definition(step))

    def _kept_place(self, keeper: BackUp) -> str:
        return f"datamig.kept_{ID}_{self._number(keeper)}"

    def _columns_kept(self, keeper: BackUp) -> dropped.KeptColumns:
        table = self.catalog.table(keeper.table)
        columns = [step.column_name for step in self._kept_drops(keeper)]
        if not table.key or set(columns) & set(table.key):
            raise MissingKeyError(str(table.name))
        return dropped.KeptColumns(
            name=self._kept_place(keeper),
            table=table.name,
            key=table.key,
            types={column: table.column(column).type for column in columns},
        )

    def _drop_and_keep(self, step: ops.DropColumnOp | ops.DropTableOp) -> list[str]:
        keeper = self._keeper(step)
        assert keeper is not None
        if isinstance(step, ops.DropTableOp):
            place, definition = self._kept_place(keeper), self._definition(step)
            assert definition is not None
            check = self.check(*dropped.nothing_refers(keeper.table))
            move = dropped.move_away(keeper.table, place, definition)
            return [f"require({check})", self._statement(move, once=True)]
        lines = list[str]()
        if step is self._kept_drops(keeper)[0]:
            saved = self._columns_kept(keeper)
            make = zip(("keep", "keep key"), saved.make(), strict=True)
            lines += [f"step({self.constant(wish, statement)})" for wish, statement in make]
            name = f"keep {', '.join(saved.types)} of {saved.table} ({self._number(keeper)})"
            more = {"remaining": self.constant("not kept", saved.not_kept("count(*)"))}
            work = self.constant("keep batch", saved.keep_batch())
            lines.append(self._run(name, saved.table, tuple(map(quote, saved.key)), work, more))
            lines.append(f"require({self.check(*saved.not_kept_rows())})")
        (drop,) = schema.upgrade_statements(step)
        return [*lines, self._statement(drop, once=True)]

    def _add_back(
        self, step: ops.DropColumnOp | ops.DropTableOp
    ) -> tuple[Statement, ...] | NoWayBack:
        keeper = self._keeper(step)
        assert keeper is not None
        if isinstance(step, ops.DropTableOp):
            definition = self._definition(step)
            assert definition is not None
            return dropped.move_back(keeper.table, self._kept_place(keeper), definition)
        column = self._dropped(step)
        if isinstance(column, NoWayBack):
            return column
        return dropped.add_back(keeper.table, column)

    def _fill_again(self, keeper: BackUp) -> list[str]:
        """Put values back into columns that were dropped, and make them what they were."""
        saved, drops = self._columns_kept(keeper), self._kept_drops(keeper)
        name = f"restore {', '.join(saved.types)} of {saved.table} ({self._number(keeper)})"
        work = self.constant(f"restore {' '.join(saved.types)}", saved.restore_batch())
        keys = tuple(f"kept.{quote(part)}" for part in saved.key)
        columns = [
            column for drop in drops if not isinstance(column := self._dropped(drop), NoWayBack)
        ]
        whole = dropped.complete(
            saved.table, columns, self.catalog.found[self._number(drops[0]) - 1]
        )
        return [
            self._run_over(name, saved.table, keys, work, saved.name),
            *(self._statement(each, once=False) for each in whole),
            self._statement(Statement(sql=f"DROP TABLE IF EXISTS {saved.name}"), once=True),
        ]

    def _run_over(
        self,
        name: str,
        table: TableName,
        keys: Sequence[str],
        work: str,
        saved: str,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """A walk over what was kept, ``saved``, that changes the table."""
        over = {"relation": _text(f"{saved} AS kept"), **more}
        if keys == ("ctid",):
            over["heap"] = _text(saved)  # whose pages are walked
        return self._run(name, table, keys, work, over)

    def _drop_kept(self, saved: str, note: str | None) -> list[str]:
        drop = self.constant("note conflicts", kept.drop_kept(saved, note))
        return ["step(CONFLICT)", f"step_once({drop})"]


def _function(name: str, purpose: str, statements: Sequence[str], *, before: str = "") -> str:
    purpose = purpose.replace("\\", "/").replace('"', "'")
    head = f'def {name}() -> None:\n    """{purpose[:1].upper()}{purpose[1:]}."""\n'
    if statements[0].startswith("raise "):
        return f"{head}    raise {call(statements[0].removeprefix('raise '), 4, len('raise '))}"
    body = "\n".join(f"        {call(statement, 8)}" for statement in statements)
    head += f"    {before}\n" if before else ""
    return f"{head}    with own_commits():\n{body}"


def _step(statement: str, *, once: bool = False) -> str:
    return f"step{'_once' if once else ''}({_text(statement)})"


def _server_is_new_enough(major: int) -> QueryCheck:
    return QueryCheck(
        name=f"the server is PostgreSQL {major} or newer",
        failing="SELECT version()\n"
        f" WHERE current_setting('server_version_num')::integer < {major}0000",
    )


def _takes_away(step: Step) -> bool:
    """Whether the steps before it could not be done again after it."""
    renames = isinstance(step, ops.AlterColumnOp) and step.modify_name is not None
    return renames or isinstance(step, ops.DropColumnOp | ops.DropTableOp | ops.RenameTableOp | Sql)


def _differs_now(figure: Unchanged) -> str:
    return (
        "SELECT note AS before, now::text AS now\n"
        f"  FROM datamig.run, ({figure.value}) AS figure (now)\n"
        f" WHERE (revision, step) = ('{ID}', {literal(figure.name)})"
        " AND note IS DISTINCT FROM now::text"
    )


def _text(value: str) -> str:
    """A Python string literal in double quotes."""
    return one_line(repr(value))

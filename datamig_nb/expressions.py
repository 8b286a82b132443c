"""SQL expressions as a user writes them, text or SQLAlchemy elements, and as text."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.exc import CompileError
from sqlalchemy.sql import visitors

from datamig_nb.errors import MigrationError
from datamig_nb.names import sqlalchemy_dialect

#: A SQL expression over one row: text, or a SQLAlchemy element.
Expression: TypeAlias = "str | sa.ColumnElement[Any]"

_LITERAL = re.compile(r"NULL|TRUE|FALSE|'(?:[^']|'')*'", re.IGNORECASE)

# Stands in the batch statements for the range of keys of one batch.
BATCH_MARK = "{batch}"
# The same range, of the partner's column that equals the key.
PARTNER_MARK = "{partner}"
# Whether nearly every row has to be changed, so that none is asked; FALSE at first.
SURE_MARK = "{sure}"

# What rendered statements use themselves, so that no expression may hold it.
_MARKS = (BATCH_MARK, PARTNER_MARK, SURE_MARK, "$datamig$", "\0")


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
    try:
        compiled = element.compile(
            dialect=sqlalchemy_dialect(),
            compile_kwargs={"literal_binds": True, "include_table": False},
        )
    except CompileError as error:
        raise MigrationError(
            f"the expression cannot be written as text: {error.args[0]}", "write it as text"
        ) from error
    return str(compiled)


def expressions(step: str, assign: Mapping[str, Expression]) -> Mapping[str, str]:
    """Column -> expression as text, frozen; a step that sets nothing is refused."""
    if not assign:
        raise MigrationError(f"{step}() sets no column", "give {column: expression}")
    return MappingProxyType({column: expression_text(text) for column, text in assign.items()})


def is_literal(expression: str) -> bool:
    """Whether it is one plain value, whose type is that of its place."""
    return _LITERAL.fullmatch(expression) is not None


def listed(columns: Collection[str]) -> str:
    """The names in words: a, b and c."""
    if not columns:
        raise MigrationError("no column is named", "name at least one")
    *most, last = columns
    return f"{', '.join(most)} and {last}" if most else last

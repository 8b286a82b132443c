"""Read a revision file, whoever wrote it: its SQL, and what experience says of it.

The file is parsed and never run here.  What only a run can tell is in :mod:`datamig_nb.hazards`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from datamig_nb.names import TOKENS, quote

#: Stands where an f-string has a value.
HOLE = "{}"

_STATEMENT = re.compile(
    r"\s*(?:--[^\n]*\n\s*)*(SELECT|INSERT|UPDATE|DELETE|MERGE|WITH|ALTER|CREATE|DROP|TRUNCATE)\s",
    re.IGNORECASE,
)


class Sql(NamedTuple):
    """A statement in a file; ``{}`` stands for what an f-string fills in."""

    text: str
    line: int
    #: The function that holds it; empty outside of functions.
    function: str
    #: Whether it stands inside a loop of that function.
    looped: bool


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one rule says of one place in the file."""

    rule: str
    line: int
    what: str


def lint(text: str, reserved: Iterable[str] = ()) -> tuple[Finding, ...]:
    """What the rules say of a file's text, by line.

    Parameters
    ----------
    reserved
        Names of tables that SQL takes for something else where they are not quoted.
    """
    tree = ast.parse(text)
    statements = tuple(statements_of(tree))
    found = [
        *_empty_downgrade(tree),
        *_client_defaults(tree),
        *_lost_in_scripts(tree),
        *(finding for name in reserved for finding in _unquoted(statements, name)),
        *(finding for statement in statements for finding in _of_statement(statement)),
    ]
    return tuple(sorted(found, key=lambda finding: (finding.line, finding.rule)))


def statements_of(tree: ast.AST) -> Iterator[Sql]:
    """The SQL of a file: every text in it that begins as a statement does."""
    yield from _statements(tree, "", looped=False)


def _statements(node: ast.AST, function: str, *, looped: bool) -> Iterator[Sql]:
    if isinstance(node, ast.Constant | ast.JoinedStr):
        text = _text(node)
        if text is not None and _STATEMENT.match(text):
            yield Sql(text.strip(), node.lineno, function, looped)
        return
    if isinstance(node, ast.FunctionDef):
        function, looped = node.name, False
    looped = looped or isinstance(node, ast.For | ast.While)
    for child in ast.iter_child_nodes(node):
        yield from _statements(child, function, looped=looped)


def _text(node: ast.Constant | ast.JoinedStr) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values
    )


# ---------------------------------------------------------------- statements

_WRITE = re.compile(r"(UPDATE|DELETE\s+FROM)\s+(?:ONLY\s+)?(?P<table>[\w.\"]+)", re.IGNORECASE)
# What keeps a statement to some rows: a page, a list, a value of the loop or of the batch.
_BOUND = re.compile(r"\bLIMIT\b|\bctid\b|\bBETWEEN\b|\{|(?<!:):\w|%\(", re.IGNORECASE)
_PAGE = re.compile(r"\bLIMIT\b.*\bOFFSET\b|\bOFFSET\b.*\bLIMIT\b", re.IGNORECASE | re.DOTALL)


def written_table(statement: str) -> str | None:
    """The table that an UPDATE or DELETE writes, as it is named there; None for all others."""
    found = _WRITE.match(uncommented(statement))
    return found and found["table"]


def is_unbatched(statement: str) -> bool:
    """Whether an UPDATE or DELETE may take all rows of its table at once."""
    _, _, condition = re.split("(WHERE)", f"{statement}WHERE", maxsplit=1, flags=re.IGNORECASE)
    return written_table(statement) is not None and not _BOUND.search(condition)


def uncommented(statement: str) -> str:
    """The statement from its first word."""
    return re.sub(r"^(\s*--[^\n]*\n)*\s*", "", statement)


def _of_statement(sql: Sql) -> Iterator[Finding]:
    table = written_table(sql.text)
    if table is not None and is_unbatched(sql.text):
        verb = sql.text.split(None, 1)[0].upper()
        yield Finding(
            rule="unbatched",
            line=sql.line,
            what=f"one {verb} for all rows of {table}: they stay locked until it commits, and a"
            " failure loses all; walk the table in batches that commit",
        )
    if sql.looped and _PAGE.search(sql.text):
        yield Finding(
            rule="offset",
            line=sql.line,
            what="pages by LIMIT and OFFSET: rows that were done leave the set or move in it, so"
            " others are skipped; walk by a key, from the last one done",
        )
    elif sql.looped and table is not None:
        yield Finding(
            rule="row by row",
            line=sql.line,
            what=f"one statement for each turn of a loop writes {table}: a journey to the server"
            " and a search each; one statement can do them all",
        )


def _unquoted(statements: Iterable[Sql], name: str) -> Iterator[Finding]:
    for sql in statements:
        before, end = "", 0
        for token in TOKENS.finditer(sql.text):
            word = (token["plain"] or "").lower()
            if sql.text[end : token.start()].strip():
                before = ""
            if word == name and before in ("from", "join", "update", "into", "table", "only"):
                reads = before in ("from", "join") and name == "user"
                yield Finding(
                    rule="reserved name",
                    line=sql.line,
                    what=f"{name} is a word of SQL and here not the table"
                    + (", but one row with the name of the role" if reads else "")
                    + f": write {quote(name)}",
                )
                break
            before, end = word, token.end()


# ---------------------------------------------------------------- Python


def _empty_downgrade(tree: ast.Module) -> Iterator[Finding]:
    ways = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if "downgrade" in ways and not _does_something(ways["downgrade"]):
        if "upgrade" in ways and not _does_something(ways["upgrade"]):
            return  # a merge of two heads
        yield Finding(
            rule="empty downgrade",
            line=ways["downgrade"].lineno,
            what="downgrade does nothing: Alembic takes the revision for undone, and the next"
            " upgrade meets what is still there; take it back, or raise and say why not",
        )


def _does_something(function: ast.FunctionDef) -> bool:
    return not all(
        isinstance(node, ast.Pass)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in function.body
    )


def _client_defaults(tree: ast.AST) -> Iterator[Finding]:
    for node in _calls(tree, "Column"):
        named = {keyword.arg for keyword in node.keywords}
        if "default" in named and "server_default" not in named:
            yield Finding(
                rule="client default",
                line=node.lineno,
                what="default= of a column is for SQLAlchemy's own inserts: rows that are there and"
                " rows that SQL inserts get NULL; write server_default=",
            )


def _lost_in_scripts(tree: ast.AST) -> Iterator[Finding]:
    binds = [node.lineno for node in _calls(tree, "get_bind")]
    asks = any(isinstance(node, ast.Attribute) and node.attr == "as_sql" for node in ast.walk(tree))
    if binds and not asks:
        yield Finding(
            rule="no connection",
            line=min(binds),
            what="get_bind() gives no connection under --sql: values bound to a statement are lost"
            " and results are None; ask op.get_context().as_sql",
        )


def _calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name in (
            getattr(node.func, "attr", ""),
            getattr(node.func, "id", ""),
        ):
            yield node

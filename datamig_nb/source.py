"""Python text for exported revisions: calls laid out, SQL as literals, functions copied."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from datamig_nb import (
    inlined,
    inlined_batches,
    inlined_jobs,
    inlined_rows,
    inlined_sql,
    inlined_transform,
    inlined_values,
    inlined_walk,
)

WIDTH = 100

# What every revision has: the name is the revision's own, not to be copied.
_OWN = {"revision"}

#: Modules whose functions are copied, in the order in which a reader meets them.
INLINED = (
    inlined,
    inlined_batches,
    inlined_walk,
    inlined_sql,
    inlined_jobs,
    inlined_transform,
    inlined_rows,
    inlined_values,
)


def call(code: str, indent: int, before: int = 0) -> str:
    """A call such as ``op.add_column(…)``, in double quotes, one argument a line where too long.

    ``indent`` is the column where its statement begins, ``before`` what stands there already.
    """
    return _laid_out(ast.parse(code.strip(), mode="eval").body, indent, before)


def one_line(code: str) -> str:
    """An expression on one line, in double quotes, as a formatter would write it."""
    return _one_line(ast.parse(code.strip(), mode="eval").body)


def reference(constant: str) -> str:
    """Text that stands for another constant's value in the statement of :func:`constant`."""
    return f"\0{constant}\0"


def statement_constant(name: str, statement: str) -> str:
    """Assign a statement to a name, as it would be typed into psql, on lines of its own."""
    return _constant(name, f"\n{statement}\n")


def expression_constant(name: str, expression: str) -> str:
    """Assign an expression to a name, nothing before or behind it."""
    return _constant(name, expression)


def _constant(name: str, text: str) -> str:
    """An assignment; an f-string where the text refers to other constants."""
    pieces = text.split("\0")
    if len(pieces) == 1:
        return _assigned(name, _literal(text, text) or _string(text))
    escaped = [piece.replace("{", "{{").replace("}", "}}") for piece in pieces[::2]]
    references = [*(f"{{{piece}}}" for piece in pieces[1::2]), ""]
    body = "".join(part for pair in zip(escaped, references, strict=True) for part in pair)
    if literal := _literal(text, body, "f"):
        return _assigned(name, literal)
    # What needs escapes cannot refer: the values are pasted together instead.
    parts = [_string(p) if n % 2 == 0 else p for n, p in enumerate(pieces) if p or n % 2]
    return _assigned(name, *parts)


def _assigned(name: str, *parts: str) -> str:
    """Assign a literal, or several with names between, as a formatter would write it."""
    value = " + ".join(parts)
    if "\n" in value or len(name) + len(" = ") + len(value) <= WIDTH:
        return f"{name} = {value}"
    if len(value) + 4 <= WIDTH:
        return f"{name} = (\n    {value}\n)"
    lines = "\n    + ".join(parts)
    return f"{name} = {value}" if len(parts) == 1 else f"{name} = (\n    {lines}\n)"


def _literal(text: str, body: str, prefix: str = "") -> str:
    """A literal that reads as the text does; empty where there is none without escapes."""
    is_simple = "\n" not in text and '\\"' not in text
    quotes = next((mark for mark in ('"', "'") if is_simple and mark not in text), '"""')
    if quotes in text or text.endswith((quotes[0], "\\")) or "\r" in text:
        return ""
    return f"{'r' if chr(92) in text else ''}{prefix}{quotes}{body}{quotes}"


def _laid_out(node: ast.expr, indent: int, before: int, after: int = 0) -> str:
    line, inner = _one_line(node), " " * (indent + 4)
    if indent + before + len(line) + after <= WIDTH:
        return line
    match node:
        case ast.Lambda(body=body):
            return f"lambda: {_laid_out(body, indent, before + len('lambda: '), after)}"
        case ast.Call(func=function, args=[ast.Lambda() as argument], keywords=[]):
            only = _laid_out(argument, indent + 4, 0)
            return f"{_one_line(function)}(\n{inner}{only}\n{' ' * indent})"
        case ast.Call(func=function, args=args, keywords=keywords):
            opened, closed = f"{_one_line(function)}(", ")"
            items = [("", arg) for arg in args] + [(f"{k.arg}=", k.value) for k in keywords]
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            opened, closed = line[0], line[-1]
            items = [("", element) for element in elements]
        case _:
            return line
    together = ", ".join(f"{name}{_one_line(value)}" for name, value in items)
    if len(inner) + len(together) <= WIDTH and line[0] not in "([":
        return f"{opened}\n{inner}{together}\n{' ' * indent}{closed}"
    listed = "".join(
        f"{inner}{name}{_laid_out(value, indent + 4, len(name), 1)},\n" for name, value in items
    )
    return f"{opened}\n{listed}{' ' * indent}{closed}" if items else line


# A string as repr() writes it; b'' stays.
_PYTHON_STRING = re.compile(r"""b?(?P<mark>['"])(?:\\.|(?!(?P=mark)).)*(?P=mark)""")


def _one_line(node: ast.expr) -> str:
    return _PYTHON_STRING.sub(
        lambda found: found[0] if found[0][0] == "b" else _string(ast.literal_eval(found[0])),
        ast.unparse(node),
    )


def _string(text: str) -> str:
    """The text as a Python string in double quotes, unless single ones need fewer escapes."""
    mark = '"' if text.count('"') <= text.count("'") else "'"
    return mark + f"\\{mark}".join(repr(part)[1:-1] for part in text.split(mark)) + mark


# ---------------------------------------------------------------- copied functions


@dataclass(frozen=True)
class Machinery:
    """What a revision needs of the inlined functions."""

    #: Import statements, grouped and ordered.
    imports: str
    #: One-line constants: limits that a reader may want to change.
    settings: str
    #: Functions and longer constants, in reading order.
    functions: str


@dataclass(frozen=True)
class _Part:
    """A top-level statement of one of the modules."""

    name: str
    text: str
    uses: frozenset[str]
    is_setting: bool


def machinery(story: str, imports: Iterable[str] = ()) -> Machinery:
    """The functions that the story calls, those that these call, and their imports.

    ``imports`` are statements that the story needs beside those.
    """
    read = ast.parse(story)
    needed = _names(read)
    parts = _parts(_arguments(read, story))
    chosen: set[str] = set()
    while more := {part.name for part in parts if part.name in needed} - chosen:
        chosen |= more
        needed = needed.union(*(part.uses for part in parts if part.name in more))
    functions = [part.text for part in parts if part.name in chosen and not part.is_setting]
    settings = [part.text for part in parts if part.name in chosen and part.is_setting]
    return Machinery(
        imports=_imports(needed, imports),
        settings="\n".join(settings),
        functions="\n\n\n".join(functions),
    )


def names_used(code: str) -> frozenset[str]:
    """Names that the code reads, without Python's builtins."""
    return _names(ast.parse(code)) - set(dir(builtins))


def _names(code: ast.AST) -> frozenset[str]:
    return frozenset(node.id for node in ast.walk(code) if isinstance(node, ast.Name))


# The comments around lines that only some revisions need; one pair may lie within another.
_ONLY_WITH = re.compile(
    r"^ *(?P<mark>--|#) only with (?P<names>\w+(?: or \w+)*)\n"
    r"(?P<lines>(?:(?! *(?:--|#) (?:only with|end\n)).*\n)*)"
    r" *(?P=mark) end\n",
    re.MULTILINE,
)


def _arguments(read: ast.Module, story: str) -> frozenset[str]:
    """The names of arguments that calls of the story give.

    And "ctid" where a table has no key, "composite" where one has several columns.
    """
    calls = [node for node in ast.walk(read) if isinstance(node, ast.Call)]
    names = {keyword.arg for call in calls for keyword in call.keywords if keyword.arg}
    names |= {"ctid"} if '("ctid",)' in story else set()
    keys = (arg for call in calls for arg in call.args if isinstance(arg, ast.Tuple))
    return frozenset(names | ({"composite"} if any(len(key.elts) > 1 for key in keys) else set()))


def only_with(arguments: frozenset[str], text: str) -> str:
    """The source of a module without the lines that a story with these arguments does not need."""

    def chosen(found: re.Match[str]) -> str:
        return found["lines"] if arguments & {*found["names"].split(" or ")} else ""

    number = 1
    while number:  # the innermost pairs first
        text, number = _ONLY_WITH.subn(chosen, text)
    return text


@cache
def _parts(arguments: frozenset[str]) -> tuple[_Part, ...]:
    texts = (only_with(arguments, inspect.getsource(module)) for module in INLINED)
    return tuple(part for text in texts for part in _parts_of(text))


@cache
def _parts_of(text: str) -> tuple[_Part, ...]:
    lines, found = text.splitlines(), list[_Part]()
    for node in ast.parse(text).body:
        match node:
            case (
                ast.FunctionDef(name=name, decorator_list=decorators)
                | ast.ClassDef(name=name, decorator_list=decorators)
            ):
                first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
                setting = False
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                first, setting = node.lineno, name.isupper() and node.lineno == node.end_lineno
            case _:
                continue
        if name in _OWN:
            continue
        while lines[first - 2].startswith("# ") and "----" not in lines[first - 2]:
            first -= 1
        source = "\n".join(lines[first - 1 : node.end_lineno])
        found.append(_Part(name, source, _names(node) - {name}, setting))
    return tuple(found)


def _imports(needed: Iterable[str], more: Iterable[str]) -> str:
    """The import statements that bind one of the names, and more; plain ones first."""
    wanted = {*needed, *(["sa"] if "postgresql" in needed else [])}
    plain: set[str] = set()
    names_of: dict[str, set[str]] = {}
    for bound, module, name in (*_bindings_of_inlined(), *_TYPES):
        if bound in wanted and not module.startswith("datamig_nb"):
            _add_import(plain, names_of, bound, module, name)
    for binding in _bindings("\n".join(more)):
        _add_import(plain, names_of, *binding)
    lines = sorted((line.split()[1], line) for line in plain)
    for module, names in sorted(names_of.items()):
        lines.append((module, f"from {module} import {', '.join(sorted(names, key=_by_type))}"))
    groups: dict[bool, list[str]] = {True: [], False: []}
    for module, line in lines:
        groups[module.split(".")[0] in sys.stdlib_module_names].append(line)
    return "\n\n".join("\n".join(group) for group in groups.values() if group)


# Alembic writes these where a column has such a type.
_TYPES = (("postgresql", "sqlalchemy.dialects", "postgresql"), ("sa", "sqlalchemy", None))


def bindings(text: str) -> dict[str, str]:
    """Name -> what it is, of all that the top level of a module binds: imports and definitions."""
    found: dict[str, str] = {}
    for bound, module, name in _bindings(text):
        top = bound.partition(".")[0]  # "import os.path" binds os
        found[top] = f"{top if bound == module else module} {name}"
    for node in ast.parse(text).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found[name] = ast.unparse(node)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = ast.unparse(node)
            case _:
                pass
    return found


@cache
def _bindings_of_inlined() -> list[tuple[str, str, str | None]]:
    return _bindings("\n".join(map(inspect.getsource, INLINED)))


def _bindings(text: str) -> list[tuple[str, str, str | None]]:
    """Name that is bound, module, and name there (None: the module itself) of top-level imports."""
    found: list[tuple[str, str, str | None]] = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            found += [(name.asname or name.name, name.name, None) for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module not in (None, "__future__"):
            found += [(n.asname or n.name, str(node.module), n.name) for n in node.names]
    return found


def _add_import(
    plain: set[str], names_of: dict[str, set[str]], bound: str, module: str, name: str | None
) -> None:
    renamed = "" if bound == (name or module) else f" as {bound}"
    if name is None:
        plain.add(f"import {module}{renamed}")
    else:
        names_of.setdefault(module, set()).add(f"{name}{renamed}")


def _by_type(name: str) -> tuple[bool, bool, str, str]:
    """As isort orders: constants, then classes, then the rest."""
    return not name.isupper(), not name[:1].isupper(), name.lower(), name

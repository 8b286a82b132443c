"""A Python function of a row, taken with its source so that it can be pasted into a revision.

The pasted text stands alone: the functions and constants of its module that it uses come with it,
its imports become the revision's, and whatever else it would reach for is refused here.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import inspect
import re
import symtable
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType, FunctionType, MappingProxyType, ModuleType
from typing import Any, NoReturn, cast

from datamig_nb.errors import MigrationError


@dataclass(frozen=True, kw_only=True)
class RowFunction:
    """A function of a row, and the text that a revision needs of it."""

    #: Name by which the revision calls it.
    name: str
    #: Import statements that the source needs, sorted.
    imports: tuple[str, ...]
    #: Name -> its source, of the constants, then of the functions.
    constants: Mapping[str, str]
    functions: Mapping[str, str]
    #: The function itself, for a preview.
    function: Callable[..., Any] = field(compare=False, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that the source binds in the revision, imports aside."""
        return (*self.constants, *self.functions)

    @property
    def source(self) -> str:
        """The text of the constants and functions, its own last."""
        return pasted([self])


def capture(
    function: Callable[..., Any], arguments: Sequence[str], requires: Collection[str] = ()
) -> RowFunction:
    """Take a function with its source and all that it uses.

    Parameters
    ----------
    arguments
        What it is called with, in order: one positional argument each.
    requires
        Packages that it may import beside the standard library.

    Raises
    ------
    MigrationError
        If it is no plain function with source, or reaches for something that a revision does not
        have: a variable around it, a value of its module that is neither a constant nor a function,
        an import of another package.
    """
    plain = _plain(function)
    _require_arguments(plain, arguments)
    taken = _Taken(frozenset(requires))
    taken.add_function(plain)
    return RowFunction(
        name=plain.__name__,
        imports=tuple(sorted(taken.imports)),
        constants=MappingProxyType(taken.constants),
        functions=MappingProxyType(taken.functions),
        function=function,
    )


def pasted(functions: Iterable[RowFunction]) -> str:
    """The text of several functions, what they share once.

    Raises
    ------
    MigrationError
        If two of them mean different things by one name.
    """
    constants, texts = dict[str, str](), dict[str, str]()
    for function in functions:
        for known, more in ((constants, function.constants), (texts, function.functions)):
            for name, text in more.items():
                if {**constants, **texts}.get(name, text) != text:
                    raise MigrationError(
                        f"{name} of the function {function.name}() is something else in another"
                        " function of the migration",
                        "rename it in one of their modules",
                    )
                known[name] = text
    block = ["\n".join(constants.values())] if constants else []
    return "\n\n\n".join([*block, *texts.values()])


def require_free_names(function: RowFunction, taken: Collection[str]) -> None:
    """Refuse a function whose names mean something else in the revision.

    Raises
    ------
    MigrationError
        With the names.
    """
    bound = {_bound(statement): statement for statement in function.imports}
    clashes = sorted(set(taken) & {*function.names, *bound})
    if clashes:
        raise MigrationError(
            f"{', '.join(clashes)} of the function {function.name}() is a name that the revision"
            " uses itself",
            "rename it, or import it under another name",
        )


def _bound(statement: str) -> str:
    """The name that an import statement of ours binds."""
    name = statement.split()[-1]
    return name.partition(".")[0] if statement.startswith("import ") else name


# ---------------------------------------------------------------- the function


def _plain(function: Callable[..., Any]) -> FunctionType:
    name = getattr(function, "__name__", type(function).__name__)
    if inspect.ismethod(function):
        _refuse(name, "is a method, whose object the revision does not have")
    if not isinstance(function, FunctionType):
        _refuse(name, "is not written in Python as a function", "wrap it in a def of a few lines")
    if name == "<lambda>":
        _refuse("a lambda", "has no text of its own", "write it as a def with a name")
    if hasattr(function, "__wrapped__"):
        _refuse(name, "is decorated", "leave the decorator out, or do what it does inside")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        _refuse(name, "does not return its value", "write it as a plain def that returns it")
    if function.__code__.co_freevars:
        around = ", ".join(function.__code__.co_freevars)
        _refuse(
            name,
            f"uses {around} of the function around it",
            "make it a constant of the module, or give the row a column of it",
        )
    return function


def _refuse(name: str, what: str, advice: str = "write a function of the row's values") -> NoReturn:
    called = name if name.startswith("a ") else f"{name}()"
    raise MigrationError(f"the function {called} {what}".replace("function a ", "a "), advice)


def _require_arguments(function: FunctionType, arguments: Sequence[str]) -> None:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise MigrationError(
            f"the function {function.__name__}() cannot be called with"
            f" {len(arguments)} values ({', '.join(arguments)}): {error}",
            "give it one argument for each column in reads=, in that order",
        ) from None


def _source(function: FunctionType) -> tuple[str, ast.FunctionDef]:
    """The text of a function at the margin, and its tree; it must be what was compiled."""
    name = function.__name__
    try:
        text = textwrap.dedent(inspect.getsource(function)).strip()
        (node,) = ast.parse(text).body
    except (OSError, SyntaxError, ValueError):
        _refuse(name, "has no source that can be read", "define it in a file or a notebook's cell")
    if not isinstance(node, ast.FunctionDef) or node.name != name:
        _refuse(name, "is not defined under its name", "write it as a def with that name")
    if node.decorator_list:
        _refuse(name, "is decorated", "leave the decorator out, or do what it does inside")
    if _shape(function.__code__) not in map(_shape, _codes_there(function)):
        _refuse(
            name,
            "is not what its file says now",
            "load it again: run its cell, or reload its module",
        )
    return text, node


def _codes_there(function: FunctionType) -> Iterator[CodeType]:
    """What its file, as it is now, defines in the function's line."""
    # the whole file, since what a module imports changes how its functions are compiled
    lines, _ = inspect.findsource(function)
    flags = function.__code__.co_flags & __future__.annotations.compiler_flag
    codes = [compile("".join(lines), "<source>", "exec", flags, dont_inherit=True)]
    for code in codes:
        codes.extend(inner for inner in code.co_consts if isinstance(inner, CodeType))
        if code.co_firstlineno == function.__code__.co_firstlineno:
            yield code


def _shape(code: CodeType) -> object:
    """What two compilations of one text have in common, wherever it stands."""
    constants: list[object] = [
        _shape(c) if isinstance(c, CodeType) else (type(c).__name__, c) for c in code.co_consts
    ]
    return code.co_name, code.co_code, code.co_names, code.co_varnames, constants


# ---------------------------------------------------------------- what it uses


@dataclass
class _Taken:
    """What is to be pasted, as it is found."""

    requires: frozenset[str]
    constants: dict[str, str] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)
    _underway: list[FunctionType] = field(default_factory=list)

    def add_function(self, function: FunctionType) -> None:
        """Take a function, after those that it calls."""
        name = function.__name__
        if name in self.functions or function in self._underway:
            return
        self._underway.append(function)
        text, node = _source(function)
        self._check_imports(name, node)
        for used in sorted(_free_names(name, text)):
            if used in function.__globals__:
                self._add_global(name, used, function, node)
            elif not hasattr(builtins, used):
                _refuse(name, f"uses {used}, which is not defined", "define it in its module")
        self.functions[name] = text

    def _add_global(self, name: str, used: str, user: FunctionType, node: ast.AST) -> None:
        value: Any = user.__globals__[used]
        if isinstance(value, ModuleType):
            self._add_module(name, used, value, node)
        elif isinstance(value, FunctionType) and value.__globals__ is user.__globals__:
            if value.__name__ != used:
                _refuse(name, f"calls {value.__name__}() by the name {used}", "use its own name")
            self.add_function(_plain(value))
        elif (text := _constant(value)) is not None and not used.startswith("__"):
            if isinstance(value, re.Pattern):
                self.imports.add("import re")
            self.constants[used] = f"{used} = {text}"
        elif (statement := self._import_of(used, value)) is not None:
            self.imports.add(statement)
        else:
            _refuse(
                name,
                f"uses {used} of its module, a {type(value).__name__} that cannot be written into"
                " the revision",
                "use constants, plain functions of the same module and the standard library; name"
                " other packages with requires=",
            )

    def _add_module(self, name: str, used: str, module: ModuleType, node: ast.AST) -> None:
        self._require_allowed(name, module.__name__)
        if used == module.__name__.partition(".")[0]:
            for path in _dotted(node, used):
                self.imports.add(f"import {path}")
        else:
            self.imports.add(f"import {module.__name__} as {used}")

    def _require_allowed(self, name: str, module: str) -> None:
        if not self._is_allowed(module):
            top = module.partition(".")[0]
            _refuse(
                name,
                f"uses {top}, which is not in the standard library",
                f"name it with requires=({top!r},): production must have it; a module of your own"
                " it has not, so copy what you need of it",
            )

    def _is_allowed(self, module: str) -> bool:
        top = module.partition(".")[0]
        return top in sys.stdlib_module_names or top in self.requires

    def _check_imports(self, name: str, node: ast.FunctionDef) -> None:
        """Hold the imports inside a function against what may be imported."""
        for part in ast.walk(node):
            if isinstance(part, ast.Import):
                for alias in part.names:
                    self._require_allowed(name, alias.name)
            elif isinstance(part, ast.ImportFrom):
                if part.level:
                    _refuse(name, "imports from its own package", "copy what you need of it")
                self._require_allowed(name, str(part.module))
            elif isinstance(part, ast.Global):
                _refuse(name, f"sets {part.names[0]} of its module", "return the values instead")

    def _import_of(self, used: str, value: object) -> str | None:
        """The statement that imports a class or function from an allowed module; else None."""
        own = getattr(value, "__name__", used)
        for name in dict.fromkeys((used, own)):
            for module in self._modules_with(name, value):
                renamed = "" if name == used else f" as {used}"
                return f"from {module} import {name}{renamed}"
        return None

    def _modules_with(self, name: str, value: object) -> Iterator[str]:
        """Loaded modules that offer the value under a name, its home first, then public ones."""
        home = str(getattr(value, "__module__", None))
        loaded = [module for module in sorted(sys.modules) if self._is_allowed(module)]
        loaded.sort(key=lambda module: module != home)
        for module in loaded:
            is_public = not any(part.startswith("_") for part in module.split("."))
            offered = vars(sys.modules[module]).get("__all__") if is_public else ()
            has = vars(sys.modules[module]).get(name) is value
            if has and is_public and (module == home or name in (offered or ())):
                yield module


def _constant(value: object) -> str | None:
    """Python text of a literal or a compiled pattern; None for any other value."""
    if isinstance(value, re.Pattern):
        pattern = cast("re.Pattern[Any]", value)
        flags = pattern.flags & ~(re.UNICODE if isinstance(pattern.pattern, str) else 0)
        return f"re.compile({pattern.pattern!r}{f', {int(flags)}' if flags else ''})"
    try:
        same = ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return repr(value) if same else None


def _free_names(name: str, text: str) -> set[str]:
    """Names that a function's text takes from its module or from Python."""
    tables = [symtable.symtable(text, "<source>", "exec")]
    free: set[str] = set()
    for table in tables:
        tables.extend(table.get_children())
        is_module = table.get_type() == "module"
        free |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (is_module or symbol.is_global())
        }
    return free - {name}


def _dotted(node: ast.AST, name: str) -> set[str]:
    """The modules that ``name.a.b`` in the tree needs: the longest part that is a module."""
    found = {name}
    for part in ast.walk(node):
        names: list[str] = []
        inner = part
        while isinstance(inner, ast.Attribute):
            names.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and inner.id == name:
            path = name
            for attribute in names:
                if f"{path}.{attribute}" not in sys.modules:
                    break
                path = f"{path}.{attribute}"
            found.add(path)
    return {path for path in found if not any(other.startswith(f"{path}.") for other in found)}

"""Python text for revisions: it reads back as what was meant, and as a formatter would write it."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamig_nb import inlined
from datamig_nb.source import (
    INLINED,
    call,
    expression_constant,
    machinery,
    names_used,
    one_line,
    only_with,
    reference,
    statement_constant,
)

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"

few = settings(max_examples=100, derandomize=True, deadline=None, database=None)
#: Ruff is a program: it is asked for many texts at once.
asked = settings(max_examples=15, derandomize=True, deadline=None, database=None)

#: Any text without NUL, which PostgreSQL has not; much of it what Python might trip over.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0")) | st.text(
    "a\"'\\{}\n\r\t%:$ü\u2028\x0c", max_size=12
)


def formatted(code: str) -> str:
    """The code as ``ruff format`` leaves it under the project's settings."""
    command = [
        sys.executable,
        "-m",
        "ruff",
        "format",
        "--no-cache",
        "--config",
        str(PYPROJECT),
        "-",
    ]
    done = subprocess.run(command, input=code, capture_output=True, text=True, check=True)
    return done.stdout


def executed(code: str) -> dict[str, Any]:
    """The names that the code binds."""
    names: dict[str, Any] = {}
    exec(compile(code, "revision.py", "exec"), names)  # as Python reads a file
    return names


# ---------------------------------------------------------------- calls


def test_call_that_fits_stays_on_its_line() -> None:
    assert call("op.drop_column('player', 'name')", 8) == 'op.drop_column("player", "name")'


def test_call_that_is_too_long_has_an_argument_on_each_line() -> None:
    code = (
        "step(lambda: op.add_column('player', sa.Column('first_name', sa.String(length=50),"
        " nullable=True), schema='players', if_not_exists=True))"
    )

    assert call(code, 8) == (
        "step(\n"
        "            lambda: op.add_column(\n"
        '                "player",\n'
        '                sa.Column("first_name", sa.String(length=50), nullable=True),\n'
        '                schema="players",\n'
        "                if_not_exists=True,\n"
        "            )\n"
        "        )"
    )


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("plain", '"plain"'),
        ("it's", '"it\'s"'),
        ('guide."user"', "'guide.\"user\"'"),
        ('it\'s "x"', "'it\\'s \"x\"'"),
        ("a'b\"c", '"a\'b\\"c"'),
        ("a\\b\n", '"a\\\\b\\n"'),
        ("ü\u00a0", '"ü\\xa0"'),
        (("id",), '("id",)'),
        (("id", "year"), '("id", "year")'),
        ({"a": [1, None]}, '{"a": [1, None]}'),
        (b"it's", 'b"it\'s"'),
    ],
)
def test_value_is_written_in_double_quotes_where_they_need_no_more_escapes(
    value: object, code: str
) -> None:
    assert one_line(repr(value)) == code
    assert ast.literal_eval(code) == value


names = st.sampled_from(["op.add_column", "sa.Column", "sa.text", "f", "postgresql.ENUM"])
values = (
    st.text("abc_ü '\"\\\n", max_size=12)
    | st.text("abc_", min_size=40, max_size=90)
    | st.sampled_from([None, True, 50])
)


def calls(arguments: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Calls as Alembic renders them: arguments by place, then by name, some of them nested."""
    keywords = st.lists(st.sampled_from(["name", "schema", "nullable"]), unique=True, max_size=3)
    return st.builds(
        lambda name, args, keys, value: (
            f"{name}({', '.join([*args, *(f'{key}={value}' for key in keys)])})"
        ),
        names,
        st.lists(arguments, max_size=4),
        keywords,
        arguments,
    )


expressions = st.recursive(
    values.map(repr) | st.lists(values, max_size=3).map(repr) | st.tuples(values).map(repr),
    calls,
    max_leaves=6,
)


@asked
@given(codes=st.lists(calls(expressions) | calls(expressions).map("step(lambda: {})".format)))
def test_layout_of_calls_is_what_ruff_format_leaves_alone(codes: list[str]) -> None:
    lines = [f"        {call(code, 8)}\n" for code in codes]
    text = f"def upgrade() -> None:\n    with own_commits():\n{''.join(lines)}        finish()\n"

    assert formatted(text) == text


@few
@given(code=calls(expressions), indent=st.integers(0, 12), before=st.integers(0, 90))
def test_layout_changes_nothing_of_a_call(code: str, indent: int, before: int) -> None:
    laid_out = call(code, indent, before)

    assert ast.dump(ast.parse(laid_out)) == ast.dump(ast.parse(code))


# ---------------------------------------------------------------- constants


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("lower(a)", 'A = "lower(a)"'),
        (r"a ~ '\s'", "A = r\"a ~ '\\s'\""),
        ('"My Column" + 1', "A = '\"My Column\" + 1'"),
        ('1 + "My Column"', "A = '1 + \"My Column\"'"),
        ("a -> '{b}'", "A = \"a -> '{b}'\""),
        ("CASE\n    WHEN a THEN b\nEND", 'A = """CASE\n    WHEN a THEN b\nEND"""'),
        ("a = '\\", 'A = "a = \'\\\\"'),
        ("replace(a, '\"\"\"', '')", 'A = "replace(a, \'\\"\\"\\"\', \'\')"'),
        ("\"a\" || ' '", 'A = """"a" || \' \'"""'),
    ],
)
def test_expression_is_written_as_one_would_by_hand(text: str, code: str) -> None:
    assert expression_constant("A", text) == code
    assert executed(code)["A"] == text


def test_statement_is_written_as_it_would_be_typed() -> None:
    update = f"UPDATE t\n   SET a = {reference('A')}\n WHERE b -> '{{c}}'"

    assert statement_constant("FILL", update) == (
        'FILL = f"""\nUPDATE t\n   SET a = {A}\n WHERE b -> \'{{c}}\'\n"""'
    )


@few
@given(text=texts)
def test_constant_holds_the_very_text(text: str) -> None:
    code = f"{expression_constant('A', text)}\n{statement_constant('B', text)}\n"

    found = executed(code)

    assert found["A"] == text
    assert found["B"] == f"\n{text}\n"


@few
@given(pieces=st.lists(texts, min_size=1, max_size=4), value=texts)
def test_constant_with_references_holds_the_very_text(pieces: list[str], value: str) -> None:
    text = reference("A").join(pieces)
    code = "\n".join(
        [
            expression_constant("A", value),
            expression_constant("B", text),
            statement_constant("C", text),
        ]
    )

    found = executed(code)

    assert found["B"] == value.join(pieces)
    assert found["C"] == f"\n{value.join(pieces)}\n"


@asked
@given(
    constants=st.lists(
        st.tuples(
            st.lists(st.text("ab '\"\\{}\n\r", max_size=120), min_size=1, max_size=3), st.booleans()
        ),
        min_size=1,
    )
)
def test_layout_of_constants_is_what_ruff_format_leaves_alone(
    constants: list[tuple[list[str], bool]],
) -> None:
    made = [
        (statement_constant if statement else expression_constant)(
            "EVERY_FIRST_NAME", reference("FIRST_NAME").join(pieces)
        )
        for pieces, statement in constants
    ]
    text = "\n\n".join(made) + "\n"

    assert formatted(text) == text


# ---------------------------------------------------------------- copied functions

FUNCTIONS = [
    name
    for name, value in inspect.getmembers(inlined, inspect.isfunction)
    if value.__module__ == inlined.__name__
]
#: Arguments whose lines are copied only where a story gives them, and a call that gives all.
ARGUMENTS = set(
    re.findall(
        r"(\w+)",
        " ".join(re.findall(r"(?m)^ *(?:#|--) only with (.*)$", inspect.getsource(inlined))),
    )
) - {"or", "ctid"}
WITH_ALL = f"dict({','.join(f'{name}=1' for name in sorted(ARGUMENTS))})"


def module_of(story: str) -> str:
    """The story with all that it needs, as a revision has it."""
    parts = machinery(story.replace(" ", "\n"))
    return "\n\n".join(
        [
            "from __future__ import annotations",
            parts.imports,
            'revision = "1"',
            parts.settings,
            parts.functions,
            f"def upgrade():\n    return [{', '.join(story.split())}]",
            "",
        ]
    )


def bound_names(node: ast.stmt) -> set[str]:
    """The names that a statement of a module binds."""
    match node:
        case ast.FunctionDef(name=name):
            return {name}
        case ast.Assign(targets=[ast.Name(id=name)]):
            return {name}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {name.asname or name.name for name in names}
        case _:
            return set()  # the docstring


def names_in(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def defined(code: str) -> Iterable[tuple[str, ast.stmt]]:
    """Each name that the module binds with its statement, without those that all revisions have."""
    for node in ast.parse(code).body:
        if not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            yield from ((name, node) for name in bound_names(node) if name != "revision")


@pytest.mark.parametrize("story", [*FUNCTIONS, "own_commits finish", " ".join(FUNCTIONS)])
def test_copied_functions_have_all_that_they_use(story: str) -> None:
    code = module_of(story)

    found = executed(code)
    ruff = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select=F",
        "--output-format=concise",
        "-",
    ]
    checked = subprocess.run(ruff, input=code, capture_output=True, text=True, check=False)

    assert all(
        name.__name__ == wanted
        for name, wanted in zip(found["upgrade"](), story.split(), strict=True)
    )
    assert checked.stdout == "All checks passed!\n"


@pytest.mark.parametrize("story", [*FUNCTIONS, "own_commits finish"])
def test_nothing_is_copied_that_nothing_uses(story: str) -> None:
    parts = dict(defined(module_of(story)))

    reached, fresh = set[str](), {"upgrade"}
    while fresh:
        reached |= fresh
        fresh = {n for name in fresh for n in names_in(parts[name]) if n in parts} - reached

    assert set(parts) - reached == set()


def test_everything_of_the_module_can_be_copied() -> None:
    wanted = {name for name, _ in defined(inspect.getsource(inlined))}

    copied = {n for n, _ in defined(module_of(" ".join([*FUNCTIONS, "CONFLICT", WITH_ALL])))} - {
        "upgrade"
    }

    assert copied == wanted


def test_functions_are_copied_in_the_order_of_their_file() -> None:
    order = [name for name, _ in defined(inspect.getsource(inlined))]

    parts = machinery("\n".join(reversed(FUNCTIONS)))
    copied = [name for name, _ in defined(parts.functions)]
    settings = [name for name, _ in defined(parts.settings)]

    assert copied == sorted(copied, key=order.index)
    assert settings == sorted(settings, key=order.index)


def test_functions_are_copied_with_their_comments_word_for_word() -> None:
    source = only_with(frozenset(ARGUMENTS), inspect.getsource(inlined))

    parts = machinery("\n".join([*FUNCTIONS, WITH_ALL]))

    for function in FUNCTIONS:
        text = inspect.getsource(getattr(inlined, function))
        assert only_with(frozenset(ARGUMENTS), text).strip() in parts.functions
    assert all(line in source.splitlines() for line in parts.functions.splitlines())
    assert all(line in source.splitlines() for line in parts.settings.splitlines())


def test_names_used_are_those_that_python_does_not_bring() -> None:
    assert names_used("op.add_column(sa.Column(len(x)))") == {"op", "sa", "x"}


PARTS = """\
always
# only with woven or ctid
pages
-- only with woven
passes
-- end
# end
always
"""


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ("", "always always"),
        ("hold", "always always"),
        ("ctid", "always pages always"),
        ("woven", "always pages passes always"),
    ],
)
def test_lines_are_copied_only_where_an_argument_needs_them(arguments: str, left: str) -> None:
    assert only_with(frozenset(arguments.split()), PARTS).split() == left.split()


@pytest.mark.parametrize("module", INLINED, ids=lambda module: module.__name__)
def test_every_part_of_the_machinery_has_its_end(module: ModuleType) -> None:
    text = only_with(frozenset(), inspect.getsource(module))

    assert re.findall(r"(?m)^ *(?:#|--) (?:only with .*|end)$", text) == []

"""Functions of a row: their source is taken whole, or refused with what to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from datamig_nb.checks import RowCheck
from datamig_nb.errors import MigrationError
from datamig_nb.functions import RowFunction, capture, pasted, require_free_names
from datamig_nb.migration import Migration
from datamig_nb.names import TableName
from datamig_nb.transforms import transform
from tests import row_functions as rows


def executed(taken: RowFunction) -> Callable[..., Any]:
    """The function as a file of its own gives it, in which ruff finds no name undefined."""
    text = "\n".join(["from __future__ import annotations", *taken.imports, "", taken.source, ""])
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F", "-"]
    checked = subprocess.run(ruff, input=text, capture_output=True, text=True, check=False)
    assert checked.stdout == "All checks passed!\n"
    module: dict[str, Any] = {"__name__": "pasted"}
    exec(compile(text, "pasted", "exec"), module)
    return module[taken.name]


def test_functions_and_constants_of_its_module_come_with_it() -> None:
    taken = capture(rows.helped, ["text"])

    assert taken.names == ("LIMIT", "MONTHS", "SPACES", "pi", "twice", "isolated", "helped")
    assert taken.imports == ("import re",)
    assert taken.source.startswith(
        "LIMIT = -3\n"
        "MONTHS = {'jan': 1, 'feb': 2}\n"
        "SPACES = re.compile('\\\\s+', 2)\n"
        "pi = 3.141592653589793\n\n\ndef twice("
    )
    assert "    # a comment stays\n" in taken.source
    again = executed(taken)
    for text in (None, "", "jan", "feb ", "again", "x"):
        assert again(text) == rows.helped(text)


def test_imports_that_it_uses_come_with_it_and_no_others() -> None:
    taken = capture(rows.imports, ["a", "b"])

    assert taken.imports == (
        "from collections import Counter as Count",
        "from decimal import Decimal",
        "import datetime as dt",
        "import hashlib",
        "import os.path",
        "import xml.etree.ElementTree as ET",
        "import xml.sax.saxutils",
    )
    arguments = (Decimal("1.005"), "a/b&c")
    assert executed(taken)(*arguments) == rows.imports(*arguments)


def test_imports_inside_it_stay_there() -> None:
    taken = capture(rows.inside, ["a"])

    assert taken.imports == ()
    assert executed(taken)("ä b") == rows.inside("ä b")


def test_names_of_comprehensions_and_lambdas_are_its_own() -> None:
    taken = capture(rows.comprehends, ["values"])

    assert taken.names == ("comprehends",)
    assert executed(taken)([1, 2]) == rows.comprehends([1, 2])


def test_packages_are_imported_where_they_are_named() -> None:
    taken = capture(rows.with_pandas, ["a"], ["pandas"])

    assert taken.imports == ("from pandas import Series",)


def test_a_function_inside_another_that_uses_nothing_of_it_is_taken() -> None:
    def inner(a: str) -> str:
        return a * 2

    assert capture(inner, ["a"]).source == "def inner(a: str) -> str:\n    return a * 2"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (rows.uses_engine, "uses_engine() uses ENGINE of its module, a object that cannot be"),
        (rows.uses_package, "uses_package() uses sqlalchemy, which is not in the standard library"),
        (rows.imports_package, "imports_package() uses datamig_nb, which is not in the standard"),
        (
            rows.imports_beside,
            "imports_beside() imports from its own package; copy what you need of it",
        ),
        (rows.undefined, "undefined() uses missing, which is not defined; define it"),
        (rows.sets_global, "sets_global() sets CACHE of its module; return the values instead"),
        (rows.decorated, "decorated() is not written in Python as a function; wrap it in a def"),
        (rows.calls_decorated, "calls_decorated() uses decorated of its module"),
        (rows.yields, "yields() does not return its value; write it as a plain def"),
        (rows.waits, "waits() does not return its value; write it as a plain def"),
        (rows.two_arguments, "two_arguments() cannot be called with 1 values (a)"),
        (rows.around("x"), "inner() uses suffix of the function around it; make it a constant"),
        (rows.Cleaner().clean, "clean() is a method, whose object the revision does not have"),
        (rows.Cleaner, "Cleaner() is not written in Python as a function"),
        (rows.short, "a lambda has no text of its own; write it as a def with a name"),
        (rows.calls_alias, "calls_alias() calls two_arguments() by the name alias; use its own"),
        (rows.with_pandas, "with_pandas() uses Series of its module, a type that cannot be"),
        (str.lower, "lower() is not written in Python as a function; wrap it in a def"),
        (len, "len() is not written in Python as a function; wrap it in a def"),
    ],
    ids=lambda value: getattr(value, "__name__", "object") if callable(value) else "",
)
def test_what_cannot_stand_alone_is_refused_with_what_to_do(
    function: Callable[..., Any], message: str
) -> None:
    with pytest.raises(MigrationError) as caught:
        capture(function, ["a"])

    assert message in str(caught.value)
    assert "; " in str(caught.value)


def test_a_function_whose_file_was_changed_since_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def f(a):\n    return a + 1\n")
    module: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), module)
    path.write_text("def f(a):\n    return a + 2\n")

    with pytest.raises(MigrationError, match=r"f\(\) is not what its file says now; load it again"):
        capture(module["f"], ["a"])


def test_a_function_without_source_is_refused() -> None:
    module: dict[str, Any] = {}
    exec("def f(a):\n    return a", module)

    with pytest.raises(MigrationError, match=r"f\(\) has no source that can be read; define it in"):
        capture(module["f"], ["a"])


def test_names_that_the_revision_uses_itself_are_refused() -> None:
    taken = capture(rows.imports, ["a", "b"])

    require_free_names(taken, ["upgrade", "os.path", "datetime"])
    with pytest.raises(MigrationError, match="dt, os of the function imports"):
        require_free_names(taken, ["os", "dt"])


# ---------------------------------------------------------------- the step


def test_a_transform_says_what_it_does() -> None:
    step = transform(
        "shop.large",
        rows.inside,
        reads=["old field"],
        writes=["new"],
        where="id > 5",
        checksum="digest",
    )

    assert str(step) == (
        "compute new of shop.large, its SHA-256 in digest with the Python function"
        ' inside("old field"), rows where id > 5, in batches'
    )
    assert (step.reads, step.columns) == (('"old field"',), ("new", "digest"))
    assert Migration("Clean", step).checks == (
        RowCheck(
            name="digest of shop.large is the SHA-256 of new",
            table=TableName("shop", "large"),
            failing="digest IS NOT NULL AND digest IS DISTINCT FROM"
            " encode(sha256(convert_to(new::text, 'UTF8')), 'hex')",
        ),
    )


def test_what_two_functions_share_is_pasted_once_and_what_differs_is_refused() -> None:
    helped, twice = (capture(function, ["text"]) for function in (rows.helped, rows.isolated))
    other = replace(helped, constants={"LIMIT": "LIMIT = 5"})

    assert pasted([helped, twice]) == helped.source
    with pytest.raises(MigrationError, match=r"LIMIT of the function helped\(\) is something else"):
        pasted([helped, other])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reads": "old"}, "reads='old' is one text; write reads=('old',)"),
        ({"writes": []}, "reads or writes no column"),
        ({"writes": ["a", "b"], "checksum": "c"}, "the checksum 'c' is that of one column, but"),
        ({"workers": 0}, "transform() needs a worker"),
        ({"vectorized": True}, "a vectorized function needs pandas where Alembic runs; say"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(MigrationError) as caught:
        transform("t", rows.inside, **{"reads": ["a"], "writes": ["b"], **given})

    assert message in str(caught.value)

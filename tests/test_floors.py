"""A module imports only from floors below its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import datamig_nb

MODULES = sorted(Path(datamig_nb.__file__).parent.glob("*.py"))

#: Module -> floor.  A new module gets one here, as low as what it imports allows.
FLOORS = {
    "display": 0,
    "errors": 0,
    "inlined": 0,
    "inlined_values": 0,
    "supervisor": 0,
    "functions": 1,
    "inlined_run": 1,
    "inlined_rows": 2,
    "names": 1,
    "project": 1,
    "samples": 1,
    "server": 1,
    "database": 2,
    "inlined_transform": 3,
    "migration": 2,
    "profile_sql": 2,
    "patterns": 3,
    "preview_sql": 4,
    "source": 4,
    "sql": 3,
    "catalog": 5,
    "clone": 5,
    "profile": 5,
    "validate": 5,
    "preview": 6,
    "render": 6,
    "rehearse": 7,
    "export": 8,
    "html": 9,
    "widgets": 10,
    "__init__": 11,
    "__main__": 12,
}


def imported_modules(path: Path) -> set[str]:
    """Modules of ours that a module imports, also inside its functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{name.name}" for name in node.names}
    # "from datamig_nb import sql" names a module; any other name there is what __init__ gives.
    ours = [name.split(".") for name in names if name.split(".")[0] in ("datamig_nb", "")]
    return {parts[1] if parts[1:] and parts[1] in FLOORS else "__init__" for parts in ours}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_module_imports_only_from_floors_below(path: Path) -> None:
    floor = FLOORS[path.stem]

    too_high = {name for name in imported_modules(path) if FLOORS[name] >= floor}

    assert too_high == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_module_has_no_relative_import(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))

    relative = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]

    assert relative == []

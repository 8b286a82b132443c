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
    "inlined_sql": 0,
    "inlined_values": 0,
    "progress": 0,
    "supervisor": 0,
    "functions": 1,
    "inlined_walk": 1,
    "names": 1,
    "pages": 1,
    "project": 1,
    "samples": 1,
    "server": 1,
    "vetted": 1,
    "database": 2,
    "ddl": 2,
    "inlined": 2,
    "expressions": 2,
    "lint": 2,
    "profile_sql": 2,
    "stages": 2,
    "checks": 3,
    "expr": 3,
    "set_aside": 3,
    "inlined_batches": 3,
    "compound": 3,
    "steps": 3,
    "transforms": 3,
    "watch": 3,
    "workers": 4,
    "inlined_jobs": 4,
    "inlined_rows": 4,
    "migration": 4,
    "reference_rows": 4,
    "inlined_transform": 5,
    "dropped": 5,
    "kept": 5,
    "source": 6,
    "targets": 6,
    "operations": 5,
    "schema": 5,
    "sequence": 5,
    "readable": 4,
    "statements": 4,
    "composed": 6,
    "patterns": 6,
    "swaps": 5,
    "retyped_value": 5,
    "retyped_column": 6,
    "retyped_hanging": 6,
    "retyped": 7,
    "merged": 6,
    "expanded": 8,
    "extraction": 6,
    "rewriting": 6,
    "wrapping": 6,
    "preflight": 6,
    "preview_sql": 5,
    "catalog": 7,
    "clone": 7,
    "profile": 7,
    "validate": 7,
    "predicted": 8,
    "preview": 10,
    "twin": 9,
    "preview_hazards": 9,
    "walks": 8,
    "draft": 9,
    "draft_dropped": 10,
    "phases": 10,
    "draft_upgrade": 11,
    "draft_downgrade": 11,
    "render": 12,
    "alembic_process": 0,
    "clones": 3,
    "programs": 3,
    "snapshot": 7,
    "subset": 8,
    "alembic_runs": 13,
    "places": 14,
    "revision_file": 13,
    "plans": 3,
    "measure": 4,
    "totals": 5,
    "forecast": 5,
    "application": 5,
    "own_server": 9,
    "meter": 14,
    "hazards": 14,
    "verdict": 14,
    "scene": 14,
    "beside": 15,
    "stopped": 15,
    "faults": 16,
    "rehearsal": 16,
    "rehearse": 17,
    "export": 17,
    "html": 18,
    "widgets": 19,
    "__init__": 20,
    "__main__": 21,
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

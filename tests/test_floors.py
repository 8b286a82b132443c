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
    "html_pages": 1,
    "project": 1,
    "samples_guide": 0,
    "samples": 1,
    "server_setup": 1,
    "server": 2,
    "vetted": 1,
    "tables": 2,
    "database": 3,
    "ddl": 3,
    "inlined": 3,
    "expressions": 3,
    "lint": 3,
    "profile_sql": 3,
    "profile_catalog": 2,
    "stages": 3,
    "checks": 4,
    "expr": 4,
    "set_aside": 4,
    "inlined_batches": 4,
    "compound": 4,
    "steps": 4,
    "transforms": 4,
    "watch": 4,
    "workers": 5,
    "inlined_jobs": 5,
    "inlined_rows": 5,
    "migration": 5,
    "reference_rows": 5,
    "inlined_transform": 6,
    "dropped": 6,
    "kept": 6,
    "source": 7,
    "targets": 7,
    "operations": 6,
    "operation_arguments": 5,
    "schema": 6,
    "step_effects": 6,
    "python_values": 7,
    "statements": 5,
    "step_groups": 7,
    "patterns": 8,
    "swaps": 6,
    "type_change_value": 7,
    "type_change_column": 8,
    "type_change_dependents": 8,
    "type_change": 9,
    "row_merge": 7,
    "expanded": 10,
    "extraction": 8,
    "rewriting": 7,
    "wrapping": 7,
    "preflight": 7,
    "preview_sql": 6,
    "catalog": 7,
    "catalog_requirements": 8,
    "catalog_reader": 9,
    "sql_analysis": 6,
    "clone": 8,
    "profile": 8,
    "table_profile": 4,
    "profile_alerts": 5,
    "validate": 8,
    "predicted": 9,
    "preview": 11,
    "twin": 10,
    "preview_hazards": 10,
    "walks": 9,
    "draft": 10,
    "draft_dropped": 11,
    "phases": 11,
    "draft_upgrade": 12,
    "draft_downgrade": 12,
    "render": 13,
    "alembic_process": 0,
    "launcher": 1,
    "clones": 4,
    "pg_programs": 4,
    "snapshot": 8,
    "subset": 9,
    "alembic_runs": 14,
    "rehearsal_place": 15,
    "revision_file": 14,
    "plans": 4,
    "measure": 5,
    "server_counters": 6,
    "forecast": 6,
    "fault_application": 6,
    "own_server": 10,
    "meter": 15,
    "hazards": 15,
    "verdict": 15,
    "fault_scene": 15,
    "faults_meanwhile": 16,
    "faults_stopping": 16,
    "faults": 17,
    "rehearsal": 17,
    "rehearsal_work": 18,
    "rehearse": 19,
    "export": 18,
    "html": 19,
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

"""The notebooks are run references: nbval has something to compare, and goes red on a change."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = [*sorted(FOLDER.glob("*.ipynb")), *sorted(FOLDER.glob("patterns/*.ipynb"))]


def cells(path: Path, kind: str) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_there_are_four_templates_and_one_notebook_for_each_pattern() -> None:
    names = [path.stem for path in NOTEBOOKS]

    assert names == [
        *("1_profile", "2_preview", "3_generate", "4_validate"),
        *("1_map_values", "2_split_column", "3_extract_table", "4_transform_rows"),
        *("5_background", "6_normalize", "7_cross_table", "8_batched_update", "9_with_backup"),
    ]


def test_every_cell_was_run_from_top_to_bottom(notebook: Path) -> None:
    counts = [cell.execution_count for cell in cells(notebook, "code")]

    assert counts == list(range(1, len(counts) + 1))


def test_no_cell_ended_in_an_error(notebook: Path) -> None:
    outputs = [output for cell in cells(notebook, "code") for output in cell.outputs]

    assert [output for output in outputs if output.output_type == "error"] == []


def test_each_cell_of_code_stands_between_sentences(notebook: Path) -> None:
    kinds = [cell.cell_type for cell in nbformat.read(notebook, as_version=4).cells]

    assert kinds == ["markdown", "code"] * (len(kinds) // 2) + ["markdown"]


def test_one_cell_holds_the_parameters(notebook: Path) -> None:
    tagged = [c for c in cells(notebook, "code") if "parameters" in c.metadata.get("tags", [])]

    assert len(tagged) == 1
    assert tagged[0].source.startswith("url = None")


def test_code_defines_nothing_and_is_short(notebook: Path) -> None:
    sources = [c.source for c in cells(notebook, "code") if not c.source.startswith("%%writefile")]

    assert [s for s in sources if "def " in s or "class " in s] == []
    assert max(len(source.splitlines()) for source in sources) <= 14


def test_only_what_a_first_run_writes_otherwise_is_not_compared(notebook: Path) -> None:
    ignored = [
        c.source for c in cells(notebook, "code") if "nbval" in str(c.metadata.get("tags", []))
    ]

    assert [source for source in ignored if not source.startswith("%%writefile")] == []


def test_outputs_are_small_and_name_no_place_of_this_machine(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf-8")

    assert len(text) < 150_000
    assert str(Path.home()) + "/" not in text
    assert str(notebook.parent) not in text


@pytest.mark.parametrize(("altered", "code"), [(False, 0), (True, 1)])
def test_nbval_goes_red_when_an_output_is_altered(altered: bool, code: int, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    notebook.cells = notebook.cells[:7]
    shown = notebook.cells[5].outputs[0].data
    assert shown["text/plain"].startswith("Database(samples")
    if altered:
        shown["text/plain"] = shown["text/plain"].replace("samples", "simples")
    nbformat.write(notebook, tmp_path / "first_cells.ipynb")
    sanitize = files("datamig_nb") / "nbval_sanitize.cfg"

    command = ["pytest", "--nbval", "--nbval-current-env", f"--nbval-sanitize-with={sanitize}"]
    alone = [f"--rootdir={tmp_path}", "-c", "/dev/null", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", *command, *alone, str(tmp_path / "first_cells.ipynb")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == code, run.stdout

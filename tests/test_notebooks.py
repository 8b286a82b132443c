"""The notebooks are run references: nbval has something to compare, and goes red on a change."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = [*sorted(FOLDER.glob("*.ipynb")), *sorted(FOLDER.glob("patterns/*.ipynb"))]


def read(path: Path) -> Any:
    """A notebook as its file holds it; nbformat would take seconds to be imported."""
    return json.loads(path.read_text(encoding="utf-8"))


def cells(path: Path, kind: str) -> list[Any]:
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == kind]


def source(cell: Any) -> str:
    return "".join(cell["source"])


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
    counts = [cell["execution_count"] for cell in cells(notebook, "code")]

    assert counts == list(range(1, len(counts) + 1))


def test_no_cell_ended_in_an_error(notebook: Path) -> None:
    outputs = [output for cell in cells(notebook, "code") for output in cell["outputs"]]

    assert [output for output in outputs if output["output_type"] == "error"] == []


def test_each_cell_of_code_stands_between_sentences(notebook: Path) -> None:
    kinds = [cell["cell_type"] for cell in read(notebook)["cells"]]

    assert kinds == ["markdown", "code"] * (len(kinds) // 2) + ["markdown"]


def test_one_cell_holds_the_parameters(notebook: Path) -> None:
    tagged = [
        cell for cell in cells(notebook, "code") if "parameters" in cell["metadata"].get("tags", [])
    ]

    assert len(tagged) == 1
    assert source(tagged[0]).startswith("url = None")


def test_code_defines_nothing_and_is_short(notebook: Path) -> None:
    found = map(source, cells(notebook, "code"))
    sources = [text for text in found if not text.startswith("%%writefile")]

    assert [text for text in sources if "def " in text or "class " in text] == []
    assert max(len(text.splitlines()) for text in sources) <= 14


def test_only_what_a_first_run_writes_otherwise_is_not_compared(notebook: Path) -> None:
    ignored = [
        source(cell)
        for cell in cells(notebook, "code")
        if "nbval" in str(cell["metadata"].get("tags", []))
    ]

    assert [text for text in ignored if not text.startswith("%%writefile")] == []


def test_outputs_are_small_and_name_no_place_of_this_machine(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf-8")

    assert len(text) < 150_000
    assert str(Path.home()) + "/" not in text
    assert str(notebook.parent) not in text


def test_nbval_goes_red_where_an_output_is_altered_and_nowhere_else(tmp_path: Path) -> None:
    notebook = read(NOTEBOOKS[0])
    notebook["cells"] = notebook["cells"][:7]
    shown = notebook["cells"][5]["outputs"][0]["data"]
    assert shown["text/plain"][0].startswith("Database(samples")
    shown["text/plain"] = [shown["text/plain"][0].replace("samples", "simples")]
    text = json.dumps(notebook)
    (tmp_path / "first_cells.ipynb").write_text(text, encoding="utf-8")
    sanitize = files("datamig_nb") / "nbval_sanitize.cfg"

    command = ["pytest", "--nbval", "--nbval-current-env", f"--nbval-sanitize-with={sanitize}"]
    alone = [f"--rootdir={tmp_path}", "-c", "/dev/null", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", *command, *alone, str(tmp_path / "first_cells.ipynb")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "1 failed, 2 passed" in run.stdout
    assert run.returncode == 1

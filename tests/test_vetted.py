"""An edit of a vetted file is found, told by the part that was edited, and without a database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datamig_nb.errors import NotVettedError
from datamig_nb.vetted import EVIDENCE_MARK, bare, verify, vetted

EXPECTED = Path(__file__).parent / "expected" / "split_full_name.py"
TEXT = EXPECTED.read_text(encoding="utf-8")
EVIDENCE = ["rehearsed by this test", "the way back is lossless"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A vetted file."""
    path = tmp_path / "split.py"
    path.write_text(vetted(TEXT, EVIDENCE), encoding="utf-8")
    return path


def edit(file: Path, change: Callable[[str], str]) -> None:
    text = file.read_text(encoding="utf-8")
    assert change(text) != text
    file.write_text(change(text), encoding="utf-8")


def complaint(file: Path) -> str:
    """What verify says between what the file is and what to do."""
    with pytest.raises(NotVettedError) as raised:
        verify(file)
    found, advice = str(raised.value).removeprefix(f"{file.name} ").split("; ")
    assert advice in (
        "change the migration instead, rehearse and export it again",
        "rehearse its migration and export it again",
        "give the path of an exported revision",
    )
    return found


def test_vetted_file_is_the_text_with_evidence_below_its_docstring(file: Path) -> None:
    text = file.read_text(encoding="utf-8")

    verify(file)
    assert bare(text) == TEXT
    evidence = [line for line in text.splitlines() if line.startswith(EVIDENCE_MARK)]
    assert evidence[:2] == [EVIDENCE_MARK + line for line in EVIDENCE]
    assert [line.partition(" is ")[2] for line in evidence[2:-1]] == [
        "the head",
        "the story",
        "the SQL",
        "the functions",
    ]
    assert 'nothing else.\n"""\n# vetted: ' in text


def test_text_without_a_docstring_gets_its_evidence_on_top(tmp_path: Path) -> None:
    path = tmp_path / "plain.py"
    path.write_text(vetted("import sys\n\n\ndef upgrade():\n    pass\n", []), encoding="utf-8")

    verify(path)
    assert path.read_text(encoding="utf-8").splitlines()[3] == "import sys"


def test_text_that_was_vetted_before_gets_new_evidence(file: Path) -> None:
    again = vetted(bare(file.read_text(encoding="utf-8")), EVIDENCE)

    assert again == file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ('LOCK_TIMEOUT = "2s"', 'LOCK_TIMEOUT = "9s"', "the head (lines 1-"),
        ("        finish()\n", "        finish()  # done\n", "the story (lines "),
        ("btrim(", "trim(", "the SQL (lines "),
        ("op.get_context().autocommit_block()", "ExitStack()", "the functions (lines "),
        ("# -------- SQL", "#", "the story (lines "),
        ("lossless", "quick", "the evidence (lines "),
        ("sealed sha256 ", "sealed sha256 0", "the evidence (lines "),
        (
            f"{EVIDENCE_MARK}the way",
            f"{EVIDENCE_MARK}by me\n{EVIDENCE_MARK}the way",
            "the evidence",
        ),
    ],
)
def test_edit_is_told_by_the_part_that_was_edited(
    file: Path, old: str, new: str, found: str
) -> None:
    edit(file, lambda text: text.replace(old, new, 1))

    assert complaint(file).startswith(f"was edited after it was vetted: {found}")


def test_lines_of_an_edited_part_are_those_of_the_file(file: Path) -> None:
    edit(file, lambda text: text.replace("        finish()\n", "        finish()  # done\n"))
    lines = file.read_text(encoding="utf-8").splitlines()

    first, last = lines.index("def upgrade() -> None:") + 1, lines.index("# -------- SQL")

    assert complaint(file) == (f"was edited after it was vetted: the story (lines {first}-{last})")


def test_part_that_is_gone_is_told(file: Path) -> None:
    edit(file, lambda text: text[: text.index("# -------- functions")])

    assert complaint(file) == "was edited after it was vetted: the functions (gone)"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "\n",
        lambda text: text.removesuffix("\n"),
        lambda text: text.replace("\n\n\n", "\n\n", 1),
        lambda text: "\ufeff" + text,
    ],
    ids=["line more", "no last line end", "line less", "byte order mark"],
)
def test_edit_of_white_space_is_found(file: Path, change: Callable[[str], str]) -> None:
    edit(file, change)

    assert complaint(file).startswith("was edited after it was vetted: the ")


def test_line_ends_as_git_writes_them_on_windows_are_no_edit(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))

    verify(file)


def test_file_without_evidence_is_refused(file: Path) -> None:
    edit(file, bare)

    assert complaint(file) == "carries no digest"


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    latin = tmp_path / "latin.py"
    latin.write_bytes("# é\n".encode("latin-1"))

    for path in (latin, tmp_path / "missing.py"):
        assert complaint(path).startswith("cannot be read")

"""``datamig-nb``: what it answers and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamig_nb.__main__ import main
from datamig_nb.render import EVIDENCE_MARK, digest

BODY = '"""Title.\n\nRevision ID: 0123456789ab\n"""\n\nrevision = "0123456789ab"\n'


@pytest.fixture
def vetted(tmp_path: Path) -> Path:
    path = tmp_path / "0123456789ab_title.py"
    start, end = BODY.split("\n\nrevision")
    evidence = f"{EVIDENCE_MARK}sha256 {digest(BODY)}\n"
    path.write_text(f"{start}\n{evidence}\nrevision{end}", encoding="utf-8")
    return path


def test_verify_passes_a_file_as_it_was_vetted(
    vetted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["verify", str(vetted)])

    assert code == 0
    assert capsys.readouterr().out == f"{vetted}: as it was vetted\n"


def test_verify_fails_on_an_edited_file_and_says_what_to_do(
    vetted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vetted.write_text(vetted.read_text().replace("Title", "Other"), encoding="utf-8")

    code = main(["verify", str(vetted)])

    assert code == 1
    assert capsys.readouterr().err == (
        f"{vetted}: {vetted.name} was edited after it was vetted; change the migration instead,"
        " rehearse and export it again\n"
    )


def test_verify_looks_at_every_file(vetted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = vetted.with_name("plain.py")
    other.write_text("revision = 'x'\n", encoding="utf-8")

    code = main(["verify", str(other), str(vetted)])

    assert code == 1
    captured = capsys.readouterr()
    assert "carries no digest" in captured.err
    assert "as it was vetted" in captured.out


def test_a_missing_file_is_told_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["verify", str(tmp_path / "none.py")])

    assert code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_word_that_is_no_command_ends_with_2() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["nonsense"])

    assert ended.value.code == 2

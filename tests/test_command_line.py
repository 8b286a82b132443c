"""``datamig-nb``: what it answers and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamig_nb import inlined_walk
from datamig_nb.__main__ import main
from datamig_nb.database import Database
from datamig_nb.vetted import vetted as with_evidence
from tests.scratch import query

BODY = '"""Title.\n\nRevision ID: 0123456789ab\n"""\n\nrevision = "0123456789ab"\n'


@pytest.fixture
def vetted(tmp_path: Path) -> Path:
    path = tmp_path / "0123456789ab_title.py"
    path.write_text(with_evidence(BODY, ["by this test"]), encoding="utf-8")
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
        f"{vetted}: {vetted.name} was edited after it was vetted: the head (lines 1-9); change the"
        " migration instead, rehearse and export it again\n"
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


# ---------------------------------------------------------------- runs

RUN = f"""
CREATE SCHEMA datamig;
{inlined_walk.RUN};
INSERT INTO datamig.run (revision, step, part) VALUES ('aaa', 'upgrade', 0), ('aaa', 'fill', 1)
"""


def test_runs_are_shown_and_steered(
    database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    query(database, RUN)
    monkeypatch.setenv("DATABASE_URL", database.dsn)

    codes = [
        main(["runs"]),
        main(["pause", "aaa", "--step", "fill"]),
        main(["pause", "aaa"]),
        main(["resume", "aaa", "--url", database.dsn]),
        main(["cancel", "aaa"]),
    ]

    assert codes == [0, 0, 0, 0, 0]
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("Runs: ")] == [
        "Runs: 2 running",
        "Runs: 1 running, 1 paused",
        "Runs: 2 paused",
        "Runs: 2 running",
        "Runs: 2 cancelled",
    ]


def test_steering_that_is_refused_ends_with_1_and_one_sentence(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["pause", "aaa", "--url", database.dsn])

    assert code == 1
    assert capsys.readouterr().err == (
        "datamig-nb: there is no run of revision 'aaa' in this database; none ever ran there\n"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["runs", "--url", "URL"], "cannot connect to shop at 127.0.0.1:1: Connection refused"),
        (["runs", "URL"], "unrecognized arguments: postgresql://***@127.0.0.1:1/shop"),
        (["pause", "URL"], "argument revision: this is a URL; give it after --url"),
        (["pause", "aaa", "--step", "URL"], "argument --step: this is a URL"),
        (["pause", "aaa", "--url", "URL"], "cannot connect to shop at 127.0.0.1:1"),
        (["URL"], "argument command: invalid choice: 'postgresql://***@127.0.0.1:1/shop'"),
    ],
)
def test_a_password_is_never_printed(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "postgresql://ada:hunter2@127.0.0.1:1/shop"
    try:
        code = main([url if word == "URL" else word for word in words])
    except SystemExit as ended:
        code = int(ended.code or 0)

    captured = capsys.readouterr()
    assert code in (1, 2)
    assert sentence in captured.err
    assert "hunter2" not in captured.out + captured.err

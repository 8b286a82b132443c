"""The evidence in a revision file: comment lines below its docstring, sealed with digests.

The seal finds edits, on purpose or not; it is no signature, for anybody can compute it.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from datamig_nb.errors import NotVettedError

#: Lines that begin so carry evidence; all others are what was rehearsed.
EVIDENCE_MARK = "# vetted: "

_SEAL = f"{EVIDENCE_MARK}sealed sha256 "
# One line for each part of the file, with the beginning of its digest.
_PART = re.compile(rf"{EVIDENCE_MARK}(?P<digest>[0-9a-f]{{12}}) is (?P<name>the .+)\n")


def digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def bare(text: str) -> str:
    """A file's text without the evidence of an earlier vetting."""
    block = rf"^(?:{EVIDENCE_MARK}.*\n)*{_SEAL}.*\n"
    return re.sub(block, "", text, count=1, flags=re.MULTILINE)


def vetted(text: str, evidence: Iterable[str]) -> str:
    """A revision's text with lines of evidence below its docstring, the digests last."""
    lines = _lines(text)
    said = [*evidence, *(f"{part.digest} is {part.name}" for part in _parts(lines))]
    # A post-write hook may have moved the end of the docstring; Python knows where it is.
    body = ast.parse(text).body
    place = (body[0].end_lineno or 0) if body and _is_docstring(body[0]) else 0
    lines[place:place] = [f"{EVIDENCE_MARK}{line}\n" for line in said]
    seal = f"{_SEAL}{digest(''.join(lines))}\n"
    place += len(said)
    return "".join([*lines[:place], seal, *lines[place:]])


def verify(path: str | Path) -> None:
    """Hold a vetted file against its own digests; no database is needed.

    Raises
    ------
    NotVettedError
        If the file carries no evidence, or was edited after it was vetted; the message names the
        parts that were, with their lines.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")  # line ends of any kind are read as \n
    except (OSError, UnicodeDecodeError) as error:
        raise NotVettedError(
            f"{path.name} cannot be read: {error}", "give the path of an exported revision"
        ) from error
    lines = _lines(text)
    seals = [line for line in lines if line.startswith(_SEAL)]
    if not seals:
        raise NotVettedError(
            f"{path.name} carries no digest", "rehearse its migration and export it again"
        )
    sealed = "".join(line for line in lines if not line.startswith(_SEAL))
    if seals != [f"{_SEAL}{digest(sealed)}\n"]:
        raise NotVettedError(
            f"{path.name} was edited after it was vetted: {', '.join(_edited(lines))}",
            "change the migration instead, rehearse and export it again",
        )


# ---------------------------------------------------------------- parts of a file


class _Part(NamedTuple):
    name: str
    #: Its lines in the file, counted from 1.
    first: int
    last: int
    digest: str


def _lines(text: str) -> list[str]:
    """Lines as an editor counts them: a form feed or U+2028 inside a literal ends none."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _parts(lines: list[str]) -> list[_Part]:
    """The parts of a file by where each begins; lines of evidence belong to none."""
    name, held = "the head", dict[str, list[tuple[int, str]]]()
    for number, line in enumerate(lines, 1):
        if line.startswith("def ") and name == "the head":
            name = "the story"
        elif line.startswith("# -------- "):
            name = f"the {line.removeprefix('# -------- ').strip()}"
        if not line.startswith(EVIDENCE_MARK):
            held.setdefault(name, []).append((number, line))
    return [
        _Part(name, found[0][0], found[-1][0], digest("".join(line for _, line in found))[:12])
        for name, found in held.items()
    ]


def _edited(lines: list[str]) -> list[str]:
    """The parts that are not as they were, in words."""
    said = [_PART.fullmatch(line) for line in lines if line.startswith(EVIDENCE_MARK)]
    before = {part["name"]: part["digest"] for part in said if part}
    now = {part.name: part for part in _parts(lines)}
    edited = [
        f"{part.name} (lines {part.first}-{part.last})"
        for part in now.values()
        if before.get(part.name) != part.digest
    ]
    edited += [f"{name} (gone)" for name in before if name not in now]
    evidence = [n for n, line in enumerate(lines, 1) if line.startswith(EVIDENCE_MARK)]
    return edited or [f"the evidence (lines {evidence[0]}-{evidence[-1]})"]


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)

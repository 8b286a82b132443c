"""A revision that somebody wrote, read so that it can be rehearsed as ours are."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamig_nb.checks import Check
from datamig_nb.errors import MigrationError
from datamig_nb.migration import Migration
from datamig_nb.project import project_of
from datamig_nb.render import Revision
from datamig_nb.vetted import bare


def read_revision(path: str | Path, *, checks: Sequence[Check] = ()) -> Revision:
    """Read an Alembic revision file, whoever wrote it; nothing of it runs here.

    Where it lies among the versions of an Alembic project, it is rehearsed there, in its history
    and beside the files that it reads.

    Parameters
    ----------
    checks
        What must hold after the upgrade: what the file checks itself, it judges itself.  In a
        rehearsal they may read ``datamig_before.TABLE``: the table as it was before the upgrade.

    Raises
    ------
    MigrationError
        If the file cannot be read, is no Python, or does not say which revision it is.
    """
    path = Path(path)
    try:
        text = bare(path.read_text(encoding="utf-8"))
        tree = ast.parse(text)
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        raise MigrationError(
            f"{path.name} cannot be read: {error}", "give the path of an Alembic revision"
        ) from error
    values = _values(tree)
    id, parent = values.get("revision"), values.get("down_revision")
    if not isinstance(id, str) or not isinstance(parent, str | None):
        raise MigrationError(
            f"{path.name} does not say which one revision it is and which one it follows",
            "give revision and down_revision as text; a merge of heads has no data to rehearse",
        )
    title = (ast.get_docstring(tree) or path.stem).strip().splitlines()[0].rstrip(".")
    return Revision(
        migration=Migration.of_file(title, *checks),
        text=text,
        id=id,
        down_revision=parent,
        alembic=project_of(path),
        path=path,
    )


def _values(tree: ast.Module) -> dict[str, Any]:
    """The names that the module gives plain values, as Alembic's template does."""
    found: dict[str, Any] = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name):
                try:
                    found[target.id] = ast.literal_eval(node.value)  # pyright: ignore
                except ValueError:
                    continue
    return found

"""Write the rehearsed bytes into the user's Alembic project."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from alembic.util.exc import CommandError

from datamig_nb.display import Shown
from datamig_nb.errors import AlembicProjectError, ExportRefusedError
from datamig_nb.html_pages import page
from datamig_nb.project import Project
from datamig_nb.rehearsal import Rehearsal
from datamig_nb.render import Revision
from datamig_nb.vetted import vetted


@dataclass(frozen=True, kw_only=True)
class Export(Shown):
    """A revision file that was written."""

    revision: Revision
    #: Where the file lies.
    path: Path
    #: Where the evidence lies in full, for machines and for people.
    evidence: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        return f"Export: {self.path.name}, ready for 'alembic upgrade {self.revision.id}'"


def export(
    rehearsal: Rehearsal | Revision,
    *,
    alembic: str | Path | None = None,
    evidence: str | Path | None = None,
    accept: Collection[str] = (),
) -> Export:
    """Write the rehearsed revision into the Alembic project that it was rendered for.

    The project's settings are obeyed: where versions lie, how files are named.  The evidence in
    short is added as comment lines below the docstring; every other byte is what was rehearsed.
    In full it lies in two more files of the same name, ``.json`` and ``.html``, which Alembic does
    not look at.

    Parameters
    ----------
    alembic
        Path of the project's ``alembic.ini``, where the revision was rendered without one.
    evidence
        Directory for the two files of evidence; beside the revision where left out.
    accept
        Rules whose blocking hazards are accepted, such as ``"unbatched"``: the header will say so.

    Raises
    ------
    ExportRefusedError
        If the revision was not rehearsed, the rehearsal failed or is not ready, the text is not
        what was rehearsed, or the project's head moved since it was rendered.
    AlembicProjectError
        If no project is known, or it cannot take the file.
    """
    if isinstance(rehearsal, Revision):
        raise ExportRefusedError(
            f"revision {rehearsal.id} was not rehearsed", "export(rehearse(db, revision))"
        )
    revision = rehearsal.revision
    if revision.digest != rehearsal.digest:
        raise ExportRefusedError(
            f"revision {revision.id} was changed after it was rehearsed", "rehearse it again"
        )
    if not rehearsal.passed:
        raise ExportRefusedError(
            f"the rehearsal {rehearsal.summary}", "correct the migration, render, rehearse again"
        )
    blocking = [hazard for hazard in rehearsal.hazards if hazard.blocking]
    if refused := [hazard for hazard in blocking if hazard.rule not in accept]:
        raise ExportRefusedError(
            f"{refused[0].rule}, {refused[0].what}",
            f"change it and rehearse again, or export(…, accept={[h.rule for h in refused]!r})",
        )
    ini = revision.alembic if alembic is None else Path(alembic)
    if ini is None:
        raise AlembicProjectError(
            "no Alembic project is known", "give export(…, alembic='path/to/alembic.ini')"
        )
    project = Project(ini)
    if project.has(revision.id):
        raise ExportRefusedError(
            f"the project has revision {revision.id} already", "remove that file to write it anew"
        )
    if revision.down_revision is not None or project.script.get_heads():
        _require_head(project, revision)
    text = with_evidence(rehearsal, [hazard.rule for hazard in blocking])
    path = _placed(project, revision)
    _write(path, text)
    beside = path.parent if evidence is None else Path(evidence)
    beside.mkdir(parents=True, exist_ok=True)
    files = beside / f"{path.stem}.json", beside / f"{path.stem}.html"
    facts = json.dumps(_facts(rehearsal), indent=1, ensure_ascii=False)
    for file, content in zip(files, (f"{facts}\n", page(rehearsal)), strict=True):
        file.write_text(content, encoding="utf-8")
    return Export(revision=revision, path=path, evidence=files)


def with_evidence(rehearsal: Rehearsal, accepted: Sequence[str] = ()) -> str:
    """The revision's text with lines of evidence below its docstring."""
    stages = ", ".join(stage.name for stage in rehearsal.stages)
    evidence = (
        f"rehearsed on PostgreSQL {rehearsal.server_version} with {rehearsal.rows:,} rows",
        f"passed {stages}",
        f"the way back is {rehearsal.verdict}",
        *(f"accepted hazard: {rule}" for rule in dict.fromkeys(accepted)),
    )
    return vetted(rehearsal.revision.text, evidence)


def _facts(value: object) -> Any:
    """A value as JSON holds it: its fields; of a revision, what tells it from others."""
    match value:
        case Revision():
            named = ("id", "down_revision", "digest")
            return {"title": value.migration.name, **{n: getattr(value, n) for n in named}}
        case Mapping():
            return {
                str(key): _facts(item)
                for key, item in cast("Mapping[object, object]", value).items()
            }
        case tuple() | list():
            return [_facts(item) for item in cast("Sequence[object]", value)]
        case None | bool() | int() | float() | str():
            return value
        case _ if dataclasses.is_dataclass(value):
            return {f.name: _facts(getattr(value, f.name)) for f in dataclasses.fields(value)}
        case _:
            return str(value)


def _require_head(project: Project, revision: Revision) -> None:
    heads = project.script.get_heads()
    if revision.down_revision not in heads:
        raise ExportRefusedError(
            f"the project's head is {', '.join(heads) or 'none'}, but the revision was rendered to"
            f" follow {revision.down_revision}",
            "render and rehearse it again, it takes the new head by itself",
        )


def _placed(project: Project, revision: Revision) -> Path:
    """Let Alembic make the file, so that name and place follow the project's settings."""
    script = project.script
    script.hooks = []  # the rendered text went through them
    there = {Path(known.path): Path(known.path).read_bytes() for known in script.walk_revisions()}
    # Alembic puts a file beside the one that it follows; the first of a project follows none.
    first = script.version_locations[0] if script.version_locations else None
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Alembic says "Generating …"
            made = script.generate_revision(
                revision.id,
                revision.migration.name,
                head=revision.down_revision or "base",
                version_path=None if revision.down_revision else first,
            )
    except (CommandError, OSError) as error:
        raise AlembicProjectError(
            f"Alembic cannot write the file: {error}", "correct the project's settings"
        ) from error
    assert made is not None
    path = Path(made.path)
    if path in there:  # Alembic replaces a file of the same name without a word
        path.write_bytes(there[path])
        raise ExportRefusedError(
            f"{path.name} is the name of another revision's file",
            "put %(rev)s into the project's file_template, or give the migration another name",
        )
    return path


def _write(path: Path, text: str) -> None:
    """Replace the file at once, so that nobody sees half of it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(text.encode())
    temporary = Path(file.name)
    temporary.chmod(path.stat().st_mode)
    temporary.replace(path)

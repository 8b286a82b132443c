"""Write the Alembic revision that carries a migration out: one Python file that stands alone.

The file tells its story first (``upgrade``, ``downgrade``), then its SQL in the shape that one
would type into psql, then the functions it needs, copied from the modules ``inlined…``.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from datamig_nb.alembic_process import WRITTEN_BY
from datamig_nb.catalog_reader import read_catalog
from datamig_nb.database import Database
from datamig_nb.display import Shown
from datamig_nb.draft import ID, Draft
from datamig_nb.draft_downgrade import downgrade, way_back
from datamig_nb.draft_upgrade import upgrade
from datamig_nb.errors import AlembicProjectError
from datamig_nb.expanded import expanded
from datamig_nb.migration import Migration, describe
from datamig_nb.phases import Phase, part_of
from datamig_nb.project import Project
from datamig_nb.source import WIDTH, machinery
from datamig_nb.vetted import digest


@dataclass(frozen=True, kw_only=True)
class Revision(Shown):
    """A rendered revision: the text of the file, and where it belongs."""

    #: The migration that it carries out.
    migration: Migration
    #: The whole file.
    text: str
    #: Its Alembic id: twelve hexadecimal digits that follow from the text.
    id: str
    #: The revision that it follows; None where it is the first.
    down_revision: str | None
    #: Path of the project's alembic.ini; None where no project was given.
    alembic: Path | None = None
    #: Where the file lies that somebody else wrote; None for one that was rendered here.
    path: Path | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the text, in hexadecimal."""
        return digest(self.text)

    @property
    def story(self) -> str:
        """The part of the text that tells what is done: from ``upgrade`` to the SQL."""
        story, _, _ = self.text.partition("\n\n\n# -------- functions")
        return story[max(story.find("def upgrade("), 0) :]

    def __repr__(self) -> str:
        lines = len(self.text.splitlines())
        after = (
            f"follows {self.down_revision}" if self.down_revision else "the first of its project"
        )
        return f"Revision {self.id}: {self.migration.name}, {lines} lines, {after}"


def render(
    db: Database,
    migration: Migration,
    *,
    alembic: str | Path | None = None,
    head: str | None = None,
    phase: Phase | None = None,
) -> Revision:
    """Render a migration as an Alembic revision.

    The catalog is read for keys, column types and names; no row is.  The same migration on the
    same head gives the same id.

    In phases it becomes three revisions, deployed days apart: ``"expand"`` adds what the
    application does not notice (columns, tables, types, triggers), ``"migrate"`` does all that
    changes rows, ``"contract"`` drops, swaps and constrains.  Each is rehearsed and exported before
    the next is rendered, which then follows it; where the database has it does not matter, for a
    rehearsal in a project brings its copy there.  Without a project the earlier ones must have run.
    A later phase refuses to begin while the one before is not done, jobs of workers included, or
    while rows do not meet what it checked.  The upgrade of migrate keeps what the new columns held,
    for its downgrade to give back.

    Parameters
    ----------
    alembic
        Path of the project's ``alembic.ini``: the revision then follows its head, has its time
        zone, and went through its post-write hooks.
    head
        Which head to follow, where the project has several; without a project any revision.
    phase
        ``"expand"``, ``"migrate"`` or ``"contract"``; None for all in one, up to a job that
        :func:`background` leaves to workers.  ``sql()`` stays in the phase where it stands.

    Raises
    ------
    MigrationError
        If a step cannot be carried out as described, for example because a column is missing; or
        if the migration has nothing to do in the phase, or cannot be split.
    MissingKeyError
        If a table to be walked in batches has no key.
    AlembicProjectError
        If the project cannot be read, has several heads, or holds this very revision.
    """
    steps = expanded(db, migration)
    draft = Draft(steps, read_catalog(db, steps), steps)
    leaves_job = any(step.walk.job is not None for step in steps.backfills)
    if phase is not None or leaves_job:
        draft = Draft(*part_of(steps, draft.catalog, (phase,) if phase else ("expand", "migrate")))
        migration = draft.migration
    project = None if alembic is None else Project(Path(alembic))
    down_revision = head if project is None else project.head(head)
    text = _document(draft, down_revision)
    id = hashlib.sha256(text.encode()).hexdigest()[:12]
    date = datetime.datetime.now(datetime.UTC) if project is None else project.create_date()
    text = text.replace(ID, id).replace(_DATE, str(date.replace(microsecond=0)), 1)
    if project is not None:
        if project.has(id):
            raise AlembicProjectError(
                f"the project has revision {id} already, from the same migration",
                "change the migration, or remove that file",
            )
        text = project.hooked(text, f"{id}.py")
    return Revision(
        migration=migration,
        text=text,
        id=id,
        down_revision=down_revision,
        alembic=None if project is None else project.ini,
    )


# ---------------------------------------------------------------- the whole file

_DATE = "(Create Date)"

_PROMISE = f"""\
Each step and each batch of rows commits by itself, a batch together with its row in datamig.run:
stopped at any point, the upgrade goes on where it was when Alembic runs again.  No statement waits
for a lock longer than LOCK_TIMEOUT or holds a strong one while it reads the table.

{WRITTEN_BY}; needs {{needs}} PostgreSQL {{server}} or newer, nothing else."""

_COMPUTES = """\
Rows are computed in Python by the code under "Python": Alembic must be connected, --sql is refused.

"""


# SQL keeps the lines it was written on, names their length: linters shall not mind.
_LONG_LINES = "# flake8: noqa: E501"


def _document(draft: Draft, down_revision: str | None) -> str:
    story = "\n\n\n".join((upgrade(draft), downgrade(draft)))
    constants = "\n\n".join(draft.constants)
    parts = machinery(f"{story}\n{constants}", draft.imports)
    if draft.migration.transforms:
        own = machinery(f"{story}\n{constants}")
        draft.require_free_names(
            "\n".join((own.imports, own.settings, story, constants, own.functions, "revision = ID"))
        )
    pasted = f"# -------- Python\n\n\n{draft.pasted}\n\n\n" if draft.pasted else ""
    settings = f"\n\n{parts.settings}" if parts.settings else ""
    statements = f"# -------- SQL\n\n{constants}\n\n\n" if constants else ""
    text = f'''"""{_docstring(draft, down_revision)}
"""

from __future__ import annotations

{parts.imports}

revision = "{ID}"
down_revision = {f'"{down_revision}"' if down_revision else None}
branch_labels = None
depends_on = None{settings}


{story}


{pasted}{statements}# -------- functions


{parts.functions}
'''
    if max(map(len, text.splitlines())) > WIDTH:
        return text.replace("\nfrom __future__", f"\n{_LONG_LINES}\n\nfrom __future__", 1)
    return text


def _docstring(draft: Draft, down_revision: str | None) -> str:
    title = draft.migration.name.replace('"', "'").removesuffix(".")
    steps = "\n".join(
        textwrap.fill(
            describe(step),
            width=96,
            initial_indent=f"    {number}. ",
            subsequent_indent="       ",
            break_long_words=False,
        )
        for number, step in enumerate(draft.migration.steps, 1)
    )
    packages = sorted({name for step in draft.migration.transforms for name in step.requires})
    needs = f"Alembic, {', '.join(packages)} and" if packages else "Alembic and"
    promise = _PROMISE.format(needs=needs, server=draft.minimum_server)
    if draft.migration.transforms:
        promise = promise.replace(WRITTEN_BY, f"{_COMPUTES}{WRITTEN_BY}")
    text = (
        f"{title[:1].upper()}{title[1:]}.\n\nRevision ID: {ID}\n"
        f"Revises: {down_revision or ''}\nCreate Date: {_DATE}\n\nUpgrade\n{steps}\n\n"
        f"Downgrade\n{textwrap.indent(textwrap.fill(way_back(draft), 96), '    ')}\n\n{promise}"
    )
    # The docstring is no place for escapes: what would need one is written in other words.
    text = text.replace("\\", "/").replace('"""', "'''")
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)

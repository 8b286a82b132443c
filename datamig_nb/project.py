"""The user's Alembic project: its heads, its settings, where a new file goes.

Only Alembic's script directory is read; the project's ``env.py`` is never run here.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory, write_hooks
from alembic.util.exc import CommandError

from datamig_nb.errors import AlembicProjectError


@dataclass(frozen=True)
class Project:
    """An Alembic project, named by its ini file."""

    #: Path of alembic.ini.
    ini: Path

    @cached_property
    def script(self) -> ScriptDirectory:
        """The script directory, read once: reading it runs every revision file.

        Raises
        ------
        AlembicProjectError
            If the ini file or the directory is missing, or the history does not hold together.
        """
        if not self.ini.is_file():
            raise AlembicProjectError(
                f"there is no file {str(self.ini)!r}",
                "give the path of alembic.ini, or make a project with 'alembic init'",
            )
        try:
            with warnings.catch_warnings():
                # Alembic only warns of a revision that is missing or there twice.
                warnings.filterwarnings("error", "Revision .* present")
                script = ScriptDirectory.from_config(Config(str(self.ini)))
                script.get_heads()
        except Exception as error:  # whatever the revision files raise, which are run
            raise AlembicProjectError(
                f"the Alembic project {str(self.ini)!r} cannot be read: {_sentence(error)}",
                "make 'alembic heads' work first",
            ) from error
        return script

    def head(self, chosen: str | None = None) -> str | None:
        """The revision that a new one follows: the only head, or the one chosen.

        Raises
        ------
        AlembicProjectError
            If there are several heads and none was chosen, or the chosen one is none of them.
        """
        heads = sorted(self.script.get_heads())
        if chosen is not None:
            matching = [head for head in heads if head.startswith(chosen)]
            if len(matching) != 1:
                raise AlembicProjectError(
                    f"{chosen!r} is no head of the project", f"choose one of {', '.join(heads)}"
                )
            return matching[0]
        if len(heads) > 1:
            raise AlembicProjectError(
                f"the project has several heads: {', '.join(heads)}",
                "choose one with head=, or merge them with 'alembic merge heads'",
            )
        return heads[0] if heads else None

    def has(self, revision: str) -> bool:
        """Whether the project has a revision of that id."""
        return any(script.revision == revision for script in self.script.walk_revisions())

    def create_date(self) -> datetime.datetime:
        """Now, in the time zone that the project's settings ask for."""
        try:
            # No public function gives it; the setting "timezone" is worth the underscore.
            return self.script._generate_create_date()  # pyright: ignore[reportPrivateUsage]
        except CommandError as error:
            raise AlembicProjectError(
                f"the time zone of the project cannot be used: {_sentence(error)}",
                "correct timezone in alembic.ini",
            ) from error

    def hooked(self, text: str, file_name: str) -> str:
        """The text as the project's post-write hooks leave it (formatters, linters)."""
        script = self.script
        hooks: Any = script.hooks
        if not hooks:
            return text
        # Inside the project, so that formatters find their settings there.
        with tempfile.TemporaryDirectory(prefix="datamig-", dir=script.dir) as directory:
            path = Path(directory, file_name)
            path.write_text(text, encoding="utf-8")
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # "Running post write hook …"
                    write_hooks._run_hooks(str(path), hooks)  # pyright: ignore[reportPrivateUsage]
            except Exception as error:
                raise AlembicProjectError(
                    f"a post-write hook of the project failed: {_sentence(error)}",
                    "correct [post_write_hooks] in alembic.ini",
                ) from error
            return path.read_text(encoding="utf-8")


def project_of(file: Path) -> Path | None:
    """The alembic.ini of the project to whose history a file belongs; None where there is none."""
    file = file.resolve()
    for directory in file.parents:
        ini = directory / "alembic.ini"
        if not ini.is_file():
            continue
        config = Config(str(ini))
        script = config.get_alembic_option("script_location")
        places = config.get_version_locations_list() or [Path(script or ".", "versions")]
        if any((directory / place).resolve() in file.parents for place in places):
            return ini
    return None


def _sentence(error: Exception) -> str:
    """The error's text on one line, without a full stop."""
    return " ".join(str(error).split()).rstrip(".")


# Marks a project that create_project() made, and may make again.
_MADE_HERE = "# Made by datamig_nb.create_project(): takes the database from DATABASE_URL.\n"


def create_project(directory: str | Path, *, fresh: bool = False) -> Path:
    """Make an Alembic project that takes its database from ``DATABASE_URL``; give its alembic.ini.

    A project that is there already is left as it is.

    Parameters
    ----------
    directory
        Gets ``alembic.ini`` and ``alembic/``; made where it is missing.
    fresh
        Begin again without revisions, if this function made the project; never otherwise.

    Raises
    ------
    AlembicProjectError
        If there is something in the way that this function did not make.
    """
    ini, scripts = Path(directory, "alembic.ini"), Path(directory, "alembic")
    env = scripts / "env.py"
    if fresh and scripts.exists():
        if not (env.is_file() and env.read_text(encoding="utf-8").startswith(_MADE_HERE)):
            raise AlembicProjectError(
                f"the project {str(scripts)!r} was not made by create_project()",
                "give another directory, or leave fresh=True out",
            )
        shutil.rmtree(scripts)
        ini.unlink(missing_ok=True)
    if ini.is_file():
        return ini
    if scripts.exists():
        raise AlembicProjectError(
            f"there is {str(scripts)!r}, but no alembic.ini beside it", "give another directory"
        )
    ini.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):
        command.init(Config(str(ini)), str(scripts))
    text = _reading_environment(env.read_text(encoding="utf-8"))
    env.write_text(_MADE_HERE + text, encoding="utf-8")
    return ini


def _reading_environment(env: str) -> str:
    """An env.py that takes the database from DATABASE_URL, with the driver installed here."""
    line = "config = context.config\n"
    url = (
        'url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://")\n'
        'config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))\n'
    )
    imported = env.replace("from logging.config", "import os\nfrom logging.config", 1)
    return imported.replace(line, f"{line}{url}", 1)

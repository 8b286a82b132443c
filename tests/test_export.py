"""Only what was rehearsed goes into the project, byte for byte, and as the project wants it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from datamig_nb.database import Database
from datamig_nb.errors import AlembicProjectError, ExportRefusedError
from datamig_nb.export import export
from datamig_nb.hazards import Hazard
from datamig_nb.patterns import split_column
from datamig_nb.rehearsal import Rehearsal
from datamig_nb.rehearse import rehearse
from datamig_nb.render import Revision, render
from datamig_nb.vetted import EVIDENCE_MARK, bare, verify
from tests.alembic_project import AlembicProject, make_project
from tests.scratch import query, scratch_database

ENDS = ("py", "json", "html")
SPLIT = split_column("customer", "full_name")


@pytest.fixture(scope="module")
def shop(samples: Database) -> Iterator[Database]:
    """A table with a few names."""
    with scratch_database(samples) as made:
        query(
            made,
            "CREATE TABLE customer (id int PRIMARY KEY, full_name text);"
            "INSERT INTO customer VALUES (1, 'Secretive Person'), (2, NULL), (3, 'Cher')",
        )
        yield made


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> AlembicProject:
    """A project with one revision, aaa: only to be copied."""
    project = make_project(tmp_path_factory.mktemp("fresh") / "project")
    project.add_plain("aaa", "SELECT 1")
    return project


@pytest.fixture(scope="module")
def rehearsal(shop: Database, fresh: AlembicProject) -> Rehearsal:
    """A rehearsal that passed, of a revision that follows aaa."""
    password = dataclasses.replace(shop, url=shop.url.set(password="s3cret"))
    found = rehearse(password, render(password, SPLIT, alembic=fresh.ini))
    assert found.passed, found.summary
    return found


@pytest.fixture
def make_copy(fresh: AlembicProject, tmp_path: Path) -> Callable[..., AlembicProject]:
    """Copy the project and set options of its alembic.ini."""
    numbers = itertools.count(1)

    def make(**settings: str) -> AlembicProject:
        copy = AlembicProject(directory=tmp_path / f"copy{next(numbers)}")
        shutil.copytree(fresh.directory, copy.directory)
        text = copy.ini.read_text(encoding="utf-8")
        settings = {"script_location": "%(here)s/alembic", **settings}
        for name in settings:
            text = re.sub(rf"^{name} = .*\n", "", text, flags=re.MULTILINE)
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        assert text.count("[alembic]\n") == 1
        copy.ini.write_text(text.replace("[alembic]\n", f"[alembic]\n{lines}"), encoding="utf-8")
        return copy

    return make


@pytest.fixture
def project(make_copy: Callable[..., AlembicProject]) -> AlembicProject:
    """A project as ``alembic init`` makes it, with the revision aaa."""
    return make_copy()


def files(project: AlembicProject) -> dict[str, str]:
    """Every file of the project, what Python made of them aside."""
    return {
        str(path.relative_to(project.directory)): path.read_text(encoding="utf-8")
        for path in sorted(project.directory.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }


def heads(project: AlembicProject) -> list[str]:
    return sorted(ScriptDirectory.from_config(Config(project.ini)).get_heads())


def refusal(rehearsal: Rehearsal | Revision, project: AlembicProject) -> str:
    """Why an export is refused, which must leave the project as it was."""
    before = files(project)
    with pytest.raises(ExportRefusedError) as raised:
        export(rehearsal, alembic=project.ini)
    assert files(project) == before
    return str(raised.value)


def of(rehearsal: Rehearsal, revision: Revision) -> Rehearsal:
    """The rehearsal as if it had been that of another revision."""
    return dataclasses.replace(rehearsal, revision=revision, digest=revision.digest)


# ---------------------------------------------------------------- what is written


def test_file_is_the_rehearsed_text_with_lines_of_evidence(
    rehearsal: Rehearsal, project: AlembicProject
) -> None:
    before = files(project)

    written = export(rehearsal, alembic=project.ini)

    text = written.path.read_bytes().decode()
    lines = text.splitlines(keepends=True)
    evidence = [line for line in lines if line.startswith(EVIDENCE_MARK)]
    assert bare(text) == rehearsal.revision.text
    assert [line for line in evidence if " is the " not in line][:-1] == [
        f"# vetted: rehearsed on PostgreSQL {rehearsal.server_version} with 3 rows\n",
        "# vetted: passed clone, upgrade, checks, everything else unchanged, downgrade, equal to"
        " before, upgrade again, checks again\n",
        "# vetted: the way back is lossless\n",
    ]
    assert lines[lines.index(evidence[0]) - 1] == '"""\n'  # right below the docstring
    name = f"alembic/versions/{rehearsal.revision.id}_split_full_name_of_customer_into_first_"
    assert files(project).keys() - before.keys() == {f"{name}.{end}" for end in ENDS}
    assert heads(project) == [rehearsal.revision.id]
    assert stat.S_IMODE(written.path.stat().st_mode) & 0o044 == 0o044


def test_docstring_that_a_hook_laid_out_anew_gets_its_evidence_too(
    rehearsal: Rehearsal, project: AlembicProject
) -> None:
    text = rehearsal.revision.text.replace('\n"""\n', '"""\n', 1)
    revision = dataclasses.replace(rehearsal.revision, text=text)

    path = export(of(rehearsal, revision), alembic=project.ini).path

    lines = path.read_text(encoding="utf-8").splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith(EVIDENCE_MARK))
    assert lines[place - 1].endswith('nothing else."""')
    verify(path)


def test_files_tell_nothing_of_the_machine_or_the_data(
    rehearsal: Rehearsal, project: AlembicProject, shop: Database
) -> None:
    written = export(rehearsal, alembic=project.ini)
    paths = (written.path, *written.evidence)
    text = "".join(path.read_text(encoding="utf-8") for path in paths)

    secrets = ("s3cret", "Secretive", str(Path.home()), "/tmp", str(project.directory))
    assert [word for word in (*secrets, str(shop.url.database)) if word in text] == []


def test_evidence_lies_in_full_where_it_is_asked_for(
    rehearsal: Rehearsal, project: AlembicProject, tmp_path: Path
) -> None:
    written = export(rehearsal, alembic=project.ini, evidence=tmp_path / "vetting" / "2026")

    data, page = written.evidence
    facts = json.loads(data.read_text(encoding="utf-8"))
    assert data.parent == tmp_path / "vetting" / "2026"
    assert facts["revision"] == {
        "title": SPLIT.name,
        "id": rehearsal.revision.id,
        "down_revision": "aaa",
        "digest": rehearsal.digest,
    }
    assert [stage["name"] for stage in facts["stages"]] == [s.name for s in rehearsal.stages]
    assert facts["validation"]["results"][0]["failing_rows"] == 0
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert sorted(path.suffix for path in written.path.parent.glob("*.*")) == [".py", ".py"]


def test_export_goes_where_it_was_rendered_for(
    rehearsal: Rehearsal, project: AlembicProject
) -> None:
    revision = dataclasses.replace(rehearsal.revision, alembic=project.ini)

    written = export(of(rehearsal, revision))

    assert written.path.parent == project.directory / "alembic" / "versions"
    assert repr(written) == (
        f"Export: {written.path.name}, ready for 'alembic upgrade {revision.id}'"
    )


# ---------------------------------------------------------------- what is refused


def test_revision_that_was_not_rehearsed_is_refused(
    rehearsal: Rehearsal, project: AlembicProject
) -> None:
    revision = rehearsal.revision

    assert refusal(revision, project) == (
        f"not exported: revision {revision.id} was not rehearsed; export(rehearse(db, revision))"
    )


def test_rehearsal_that_failed_is_refused(rehearsal: Rehearsal, project: AlembicProject) -> None:
    *first, last = rehearsal.stages
    failed = dataclasses.replace(last, passed=False, detail="2 rows fail")

    assert refusal(dataclasses.replace(rehearsal, stages=(*first, failed)), project) == (
        "not exported: the rehearsal FAILED at checks again: 2 rows fail;"
        " correct the migration, render, rehearse again"
    )


def test_blocking_hazard_is_refused_unless_it_is_accepted(
    rehearsal: Rehearsal, project: AlembicProject
) -> None:
    hazard = Hazard(rule="unbatched", blocking=True, what="one UPDATE for all rows", rows=9)
    risky = dataclasses.replace(rehearsal, hazards=(*rehearsal.hazards, hazard))

    assert refusal(risky, project) == (
        "not exported: unbatched, one UPDATE for all rows;"
        " change it and rehearse again, or export(…, accept=['unbatched'])"
    )
    path = export(risky, alembic=project.ini, accept=["unbatched"]).path
    assert "\n# vetted: accepted hazard: unbatched\n" in path.read_text(encoding="utf-8")


def test_text_that_was_changed_is_refused(rehearsal: Rehearsal, project: AlembicProject) -> None:
    revision = rehearsal.revision
    changed = dataclasses.replace(revision, text=revision.text.replace("3. keep", "3. Keep"))

    assert refusal(dataclasses.replace(rehearsal, revision=changed), project) == (
        f"not exported: revision {revision.id} was changed after it was rehearsed;"
        " rehearse it again"
    )


def test_head_that_moved_is_refused(rehearsal: Rehearsal, project: AlembicProject) -> None:
    project.add_plain("bbb", "SELECT 1", down="aaa")

    assert refusal(rehearsal, project) == (
        "not exported: the project's head is bbb, but the revision was rendered to follow aaa;"
        " render and rehearse it again, it takes the new head by itself"
    )


def test_project_without_that_head_is_refused(
    rehearsal: Rehearsal, project: AlembicProject
) -> None:
    (project.directory / "alembic" / "versions" / "aaa.py").unlink()

    assert "the project's head is none, but" in refusal(rehearsal, project)


def test_first_revision_of_a_project_that_has_some_is_refused(
    rehearsal: Rehearsal, project: AlembicProject
) -> None:
    first = of(rehearsal, dataclasses.replace(rehearsal.revision, down_revision=None))

    assert "the project's head is aaa, but" in refusal(first, project)


def test_revision_that_is_there_already_is_refused(
    rehearsal: Rehearsal, project: AlembicProject
) -> None:
    path = export(rehearsal, alembic=project.ini).path

    assert refusal(rehearsal, project) == (
        f"not exported: the project has revision {rehearsal.revision.id} already;"
        " remove that file to write it anew"
    )
    verify(path)


def test_file_of_another_revision_is_never_replaced(
    rehearsal: Rehearsal, make_copy: Callable[..., AlembicProject]
) -> None:
    project = make_copy(file_template="%%(slug)s", truncate_slug_length="12")
    project.add_plain("bbb", "SELECT 2", down="aaa")
    versions = project.directory / "alembic" / "versions"
    versions.joinpath("bbb.py").rename(versions / "split_full_.py")
    on_top = dataclasses.replace(rehearsal.revision, down_revision="bbb")

    assert refusal(of(rehearsal, on_top), project) == (
        "not exported: split_full_.py is the name of another revision's file; put %(rev)s into the"
        " project's file_template, or give the migration another name"
    )


def test_export_without_a_project_says_what_to_give(rehearsal: Rehearsal) -> None:
    homeless = of(rehearsal, dataclasses.replace(rehearsal.revision, alembic=None))

    with pytest.raises(AlembicProjectError, match="give export") as raised:
        export(homeless)

    assert str(raised.value).startswith("no Alembic project is known")


def test_project_that_is_gone_is_told(rehearsal: Rehearsal, tmp_path: Path) -> None:
    with pytest.raises(AlembicProjectError, match=r"there is no file '.*nowhere\.ini'"):
        export(rehearsal, alembic=tmp_path / "nowhere.ini")


def test_project_that_alembic_cannot_write_to_is_told(
    rehearsal: Rehearsal, project: AlembicProject
) -> None:
    (project.directory / "alembic" / "script.py.mako").unlink()
    before = files(project)

    with pytest.raises(AlembicProjectError, match=r"^Alembic cannot write the file: .*script\.py"):
        export(rehearsal, alembic=project.ini)

    assert files(project) == before


# ---------------------------------------------------------------- the project's settings


def test_file_is_named_as_the_project_names_its_files(
    rehearsal: Rehearsal, make_copy: Callable[..., AlembicProject]
) -> None:
    project = make_copy(
        file_template="%%(year)d/%%(slug)s-%%(rev)s",
        truncate_slug_length="16",
        recursive_version_locations="true",
    )

    path = export(rehearsal, alembic=project.ini).path

    versions = project.directory / "alembic" / "versions"
    named = str(path.relative_to(versions))
    assert re.fullmatch(rf"\d{{4}}/split_full_name_-{rehearsal.revision.id}\.py", named)
    assert heads(project) == [rehearsal.revision.id]
    verify(path)


def test_file_lies_beside_the_one_that_it_follows(
    rehearsal: Rehearsal, make_copy: Callable[..., AlembicProject]
) -> None:
    project = make_copy(
        version_locations="%(here)s/billing %(here)s/alembic/versions", path_separator="space"
    )
    billing = project.directory / "billing"
    billing.mkdir()

    path = export(rehearsal, alembic=project.ini).path

    assert path.parent == project.directory / "alembic" / "versions"
    assert list(billing.iterdir()) == []


def test_first_file_of_a_project_lies_in_the_first_of_its_locations(
    rehearsal: Rehearsal, make_copy: Callable[..., AlembicProject]
) -> None:
    project = make_copy(version_locations="%(here)s/billing %(here)s/other", path_separator="space")
    first = of(rehearsal, dataclasses.replace(rehearsal.revision, down_revision=None))

    path = export(first, alembic=project.ini).path

    assert path.parent == project.directory / "billing"


@pytest.mark.parametrize(("zone", "offset"), [("Asia/Kathmandu", "+05:45"), ("UTC", "+00:00")])
def test_create_date_is_in_the_time_zone_of_the_project(
    shop: Database, make_copy: Callable[..., AlembicProject], zone: str, offset: str
) -> None:
    project = make_copy(timezone=zone)

    revision = render(shop, SPLIT, alembic=project.ini)

    (date,) = re.findall(r"^Create Date: (.*)$", revision.text, flags=re.MULTILINE)
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d{re.escape(offset)}", date)


def test_one_of_several_heads_is_chosen(
    rehearsal: Rehearsal, project: AlembicProject, shop: Database
) -> None:
    project.add_plain("bbb", "SELECT 1", down="aaa")
    project.add_plain("ccc", "SELECT 1", down="aaa")

    with pytest.raises(AlembicProjectError) as raised:
        render(shop, SPLIT, alembic=project.ini)
    revision = render(shop, SPLIT, alembic=project.ini, head="ccc")
    export(of(rehearsal, revision))

    assert str(raised.value) == (
        "the project has several heads: bbb, ccc;"
        " choose one with head=, or merge them with 'alembic merge heads'"
    )
    assert heads(project) == sorted(["bbb", revision.id])


HOOK = """\
import pathlib, sys
path = pathlib.Path(sys.argv[1])
path.write_text(path.read_text() + "# by the hook\\n")
with pathlib.Path({log!r}).open("a") as log:
    log.write(path.name + "\\n")
"""


def test_hooks_of_the_project_run_once_before_the_rehearsal(
    rehearsal: Rehearsal, project: AlembicProject, shop: Database, tmp_path: Path
) -> None:
    hook, log = tmp_path / "hook.py", tmp_path / "hook.log"
    hook.write_text(HOOK.format(log=str(log)))
    text = project.ini.read_text(encoding="utf-8")
    settings = (
        "[post_write_hooks]\nhooks = mine\nmine.type = exec\n"
        f"mine.executable = {sys.executable}\nmine.options = {hook} REVISION_SCRIPT_FILENAME\n"
    )
    project.ini.write_text(text.replace("[post_write_hooks]\n", settings), encoding="utf-8")

    revision = render(shop, SPLIT, alembic=project.ini)
    path = export(of(rehearsal, revision)).path

    assert revision.text.endswith("# by the hook\n")
    assert path.read_text(encoding="utf-8").count("# by the hook\n") == 1
    assert log.read_text() == f"{revision.id}.py\n"
    verify(path)

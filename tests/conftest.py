"""One real server a run, one database a test: copied from a template, dropped afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from datamig_nb.database import Database, connect
from datamig_nb.samples import load_guide
from datamig_nb.server import ensure_server, stop_server
from tests.alembic_project import AlembicProject, make_project
from tests.items import MAKE_ITEMS
from tests.scratch import query, scratch_database, session
from tests.second_server import DEBIANS, running


@pytest.fixture(scope="session", autouse=True)
def server_home() -> Iterator[Path]:
    """A home of its own for the server of this run, short, and reachable by other users."""
    for name in [name for name in os.environ if name.startswith("PG") or name == "DATABASE_URL"]:
        del os.environ[name]
    with pytest.MonkeyPatch.context() as patch:
        home = Path(tempfile.mkdtemp(prefix="dm-"))
        home.chmod(0o755)
        patch.setenv("DATAMIG_HOME", str(home))
        yield home
        stop_server(home)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def samples(server_home: Path) -> Database:
    """The sample database of the run: only to be read."""
    assert server_home.is_dir()
    postgres = connect(ensure_server().url())
    # It is never crashed, and its files are of no use after this run.
    query(postgres, "ALTER SYSTEM SET fsync = off")
    query(postgres, "SELECT pg_reload_conf()")
    return connect()


@pytest.fixture
def make_database(samples: Database) -> Iterator[Callable[[str], Database]]:
    """Make a database from a template, dropped after the test."""
    with ExitStack() as made:
        yield lambda template: made.enter_context(scratch_database(samples, template))


@pytest.fixture
def database(make_database: Callable[[str], Database]) -> Database:
    """An empty database."""
    return make_database("template0")


@pytest.fixture(scope="session")
def fifteen() -> Iterator[Database]:
    """A server of PostgreSQL 15, the oldest to be had: what a test writes there is its own."""
    if not DEBIANS.is_dir():
        pytest.skip("Debian's PostgreSQL 15 is not installed")
    with running(DEBIANS) as url:
        yield connect(url)


@pytest.fixture
def older(fifteen: Database) -> Iterator[Database]:
    """An empty database of PostgreSQL 15."""
    with scratch_database(fifteen) as made:
        yield made


@pytest.fixture
def sample_database(make_database: Callable[[str], Database]) -> Database:
    """A fresh copy of the samples: schemas players, flights and guide."""
    return make_database("samples")


@pytest.fixture(scope="session")
def guide_template(samples: Database) -> Iterator[str]:
    """Name of a database with the guide's tables, a thousand users in them: only to be copied."""
    with scratch_database(samples) as made:
        with session(made) as connection:
            load_guide(connection, 1_000)
        assert made.url.database is not None
        yield made.url.database


@pytest.fixture
def guide(make_database: Callable[[str], Database], guide_template: str) -> Database:
    """A fresh copy of the guide's tables, a thousand users in them."""
    return make_database(guide_template)


@pytest.fixture
def empty_url(database: Database) -> str:
    """URL of an empty database."""
    return database.dsn


@pytest.fixture
def project(tmp_path: Path) -> AlembicProject:
    """An empty Alembic project."""
    return make_project(tmp_path / "project")


@pytest.fixture
def items(database: Database) -> Database:
    """A database with the table ``item``."""
    query(database, MAKE_ITEMS)
    return database

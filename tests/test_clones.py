"""Clones are listed, those that a crash left are dropped, and those in use are not."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from datamig_nb.__main__ import main
from datamig_nb.clone import cloned
from datamig_nb.clones import clones, drop_clones
from datamig_nb.database import Database
from tests.scratch import query

# Somebody who rehearses, in a process of their own.
_REHEARSING = """
import sys
from datamig_nb.clone import cloned
from datamig_nb.database import connect
with cloned(connect(sys.argv[1]), "theirs") as clone:
    print(clone.url.database, flush=True)
    sys.stdin.read()
"""


@contextmanager
def rehearsing(source: Database) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that holds a clone, and the clone's name."""
    words = [sys.executable, "-c", _REHEARSING, source.dsn]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_clone_of_a_killed_process_is_listed_and_dropped_by_the_next_rehearsal(
    items: Database,
) -> None:
    with rehearsing(items) as (process, name):
        (theirs,) = clones(items).clones
        with cloned(items, "ours") as clone:
            assert {found.name for found in clones(items).clones} == {name, clone.url.database}
        process.send_signal(signal.SIGKILL)
        process.wait()

    (left,) = clones(items).clones
    with cloned(items, "ours") as clone:
        (ours,) = clones(items).clones

    assert (theirs.name, theirs.in_use, theirs.source) == (name, True, items.url.database)
    assert (left.name, left.in_use, left.made_at) == (name, False, theirs.made_at)
    assert (ours.name, ours.in_use) == (clone.url.database, True)
    assert clones(items).clones == ()
    assert repr(clones(items)) == "Clones: none"


def test_clone_is_in_use_as_long_as_its_process_lives_though_its_lock_is_gone(
    items: Database,
) -> None:
    with rehearsing(items) as (_, name):
        query(
            items,
            "SELECT pg_terminate_backend(pid) FROM pg_locks"
            " WHERE locktype = 'advisory' AND objsubid = 2 AND pid <> pg_backend_pid()",
        )

        assert drop_clones(items).clones == ()
        assert [clone.name for clone in clones(items).clones] == [name]

    drop_clones(items)


def test_clones_are_listed_and_dropped_from_the_shell(
    items: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    # A clone whose maker was stopped before it could say so.
    query(items, "CREATE DATABASE datamig_clone_abc_1_f")

    codes = [main(["clones", "--url", items.dsn])]
    listed = capsys.readouterr().out
    codes += [main(["clones", "--drop", "--url", items.dsn])]

    assert codes == [0, 0]
    assert listed.startswith("Clones: 1\n  left  datamig_clone_abc_1_f, of ?, made by ? , ")
    assert "datamig_clone_abc_1_f" in capsys.readouterr().out
    assert clones(items).clones == ()

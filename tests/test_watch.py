"""Runs are seen as they are, and obey; what they set aside is shown."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
import pytest

from datamig_nb import watch
from datamig_nb.database import Database, connect
from datamig_nb.errors import DatamigError, PermissionDeniedError, QueryError, RunError
from datamig_nb.inlined_walk import CONFLICT, QUARANTINE, RUN
from datamig_nb.set_aside import SetAside, conflicts, quarantined
from datamig_nb.watch import Runs, RunState, cancel, pause, resume, runs
from tests.scratch import query, session

TABLES = ";".join(("CREATE SCHEMA datamig", RUN, QUARANTINE, CONFLICT))

#: A run of two steps, the second one by two connections, with a figure that it remembers; and
#: another one that is done.
RUNS = """
INSERT INTO datamig.run
       (revision, step, part, status, total, scanned, changed, batches, started_at, heartbeat_at,
        note, error)
SELECT revision, step, part, status, total, scanned, changed, batches,
       now() - interval '1 hour' - begun * interval '1 s', now() - heard * interval '1 s',
       note, error
  FROM (VALUES
        ('bbb', 'upgrade', 0, 'running', NULL, 0, 0, 0, 110, 105, NULL, NULL),
        ('bbb', 'total of all', 0, 'running', NULL, 0, 0, 0, 110, 105, '4711', NULL),
        ('bbb', 'map', 1, 'running', 1000, 250, 100, 5, 90, 10, 'by id', NULL),
        ('bbb', 'map', 2, 'paused', 1000, 0, 0, 0, 80, 10, NULL, 'value too long'),
        ('bbb', 'fill', 1, 'succeeded', 500, 510, 500, 9, 100, 90, NULL, NULL),
        ('aaa', 'upgrade', 0, 'succeeded', NULL, 0, 0, 0, 105, 100, NULL, NULL)
       ) AS run (revision, step, part, status, total, scanned, changed, batches, begun, heard,
                 note, error)
"""

STATE = RunState(
    revision="aaa",
    step="fill",
    part=1,
    status="running",
    total=1_000,
    scanned=250,
    changed=100,
    batches=5,
    seconds=50.0,
    heartbeat_age_seconds=2.5,
    note=None,
    error=None,
)


@pytest.fixture
def watched(database: Database) -> Database:
    """A database with our tables and the runs above."""
    query(database, TABLES)
    query(database, RUNS)
    return database


def statuses(database: Database) -> dict[tuple[str, str, int], str]:
    """What the table says."""
    found = query(database, "SELECT revision, step, part, status FROM datamig.run")
    return {(revision, step, part): status for revision, step, part, status in found}


# ---------------------------------------------------------------- looking


def test_without_our_schema_there_is_nothing_and_no_error(database: Database) -> None:
    found = runs(database)

    assert found == runs(database, "aaa") == Runs(states=())
    assert repr(found) == "Runs: none"
    assert len(found.frame) == 0


def test_each_row_is_seen_in_order_of_beginning(watched: Database) -> None:
    found = runs(watched)

    states = [asdict(state) for state in found.states]
    seconds = [state.pop("seconds") for state in states]
    ages = [state.pop("heartbeat_age_seconds") for state in states]
    empty = {"total": None, "scanned": 0, "changed": 0, "batches": 0, "note": None, "error": None}
    assert states == [
        {"revision": "bbb", "step": "upgrade", "part": 0, "status": "running", **empty},
        {
            **{"revision": "bbb", "step": "fill", "part": 1, "status": "succeeded", **empty},
            **{"total": 500, "scanned": 510, "changed": 500, "batches": 9},
        },
        {
            **{"revision": "bbb", "step": "map", "part": 1, "status": "running", **empty},
            **{"total": 1_000, "scanned": 250, "changed": 100, "batches": 5, "note": "by id"},
        },
        {
            **{"revision": "bbb", "step": "map", "part": 2, "status": "paused", **empty},
            **{"total": 1_000, "error": "value too long"},
        },
        {"revision": "aaa", "step": "upgrade", "part": 0, "status": "succeeded", **empty},
    ]
    assert seconds == [3_700, 3_610, 3_680, 3_670, 3_605]
    assert ages == pytest.approx([10, 90, 10, 10, 100], abs=5)


def test_the_runs_of_one_revision_can_be_asked_for(watched: Database) -> None:
    assert [state.revision for state in runs(watched, "aaa").states] == ["aaa"]
    assert runs(watched, "ccc") == Runs(states=())


def test_to_look_needs_no_more_than_select(watched: Database) -> None:
    role = f"looker_{watched.url.database}"
    query(watched, f"CREATE ROLE {role} LOGIN")
    looker = connect(watched.url.set(username=role))
    try:
        with pytest.raises(PermissionDeniedError, match="permission denied for schema datamig"):
            runs(looker)
        query(watched, f"GRANT USAGE ON SCHEMA datamig TO {role}")
        query(watched, f"GRANT SELECT ON datamig.run TO {role}")

        assert len(runs(looker).states) == 5
        with pytest.raises(PermissionDeniedError, match="pausing 'bbb' is not permitted"):
            pause(looker, "bbb")
    finally:
        query(watched, f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, 0.25),
        ({"scanned": 9}, None),
        ({"scanned": 10}, 0.01),
        ({"scanned": 1_200}, 1.0),
        ({"total": None}, None),
        ({"total": 0}, None),
        ({"total": -1}, None),
        ({"status": "succeeded", "scanned": 900}, 1.0),
        ({"status": "succeeded", "total": None}, 1.0),
    ],
)
def test_share_is_told_where_it_is_known(changes: dict[str, Any], share: float | None) -> None:
    assert replace(STATE, **changes).share == share


@pytest.mark.parametrize(
    ("changes", "rate", "left"),
    [
        ({}, 5.0, 150.0),
        ({"scanned": 1_200}, 24.0, 0.0),
        ({"scanned": 0}, None, None),
        ({"seconds": 0.0}, None, None),
        ({"scanned": 5}, 0.1, None),
        ({"total": None}, 5.0, None),
        ({"status": "paused"}, 5.0, None),
        ({"status": "stopped"}, 5.0, None),
        ({"status": "succeeded"}, 5.0, None),
    ],
)
def test_rate_and_time_left_follow_from_what_was_scanned(
    changes: dict[str, Any], rate: float | None, left: float | None
) -> None:
    state = replace(STATE, **changes)

    assert (state.rows_per_second, state.seconds_left) == (rate, left)


def test_frame_has_a_row_a_run() -> None:
    found = Runs(states=(STATE, replace(STATE, step="map", total=None, note="by id")))

    expected = pd.DataFrame(
        {
            "revision": ["aaa", "aaa"],
            "step": ["fill", "map"],
            "part": [1, 1],
            "status": ["running", "running"],
            "share": [0.25, None],
            "scanned": [250, 250],
            "changed": [100, 100],
            "batches": [5, 5],
            "rows_per_second": [5.0, 5.0],
            "seconds_left": [150.0, None],
            "heartbeat_age_seconds": [2.5, 2.5],
            "note": [None, "by id"],
            "error": [None, None],
        }
    )
    pd.testing.assert_frame_equal(found.frame, expected)


def test_repr_tells_all_in_words() -> None:
    whole = replace(
        STATE,
        **{"step": "upgrade", "part": 0, "total": None, "heartbeat_age_seconds": 7_500.0},
        **{"scanned": 0, "changed": 0, "batches": 0},
    )
    second = replace(STATE, part=2, batches=1, status="paused", error="value too long\nfor it")
    done = replace(STATE, revision="bbb", status="succeeded", note="by id")

    assert repr(Runs(states=(whole, STATE, second, done))) == RUNS_IN_WORDS


RUNS_IN_WORDS = """\
Runs: 2 running, 1 paused, 1 succeeded
  aaa
    running    upgrade: last heard of 2 h 5 min ago
    running    fill: 25%, 250 rows scanned, 100 changed, in 5 batches, 5 rows a second, \
2 min 30 s left, last heard of 2.5 s ago
    paused     fill, part 2: 25%, 250 rows scanned, 100 changed, in 1 batch, 5 rows a second, \
last heard of 2.5 s ago
               error: value too long for it
  bbb
    succeeded  fill: 250 rows scanned, 100 changed, in 5 batches
               by id"""


# ---------------------------------------------------------------- runs whose process died


SILENT = "UPDATE datamig.run SET heartbeat_at = clock_timestamp() - interval '6 minutes'"


def test_a_silent_run_without_a_session_is_shown_as_stopped(watched: Database) -> None:
    query(watched, SILENT)
    before = statuses(watched)

    found = runs(watched)

    shown = {(state.revision, state.step, state.part): state.status for state in found.states}
    assert shown == {
        ("bbb", "upgrade", 0): "stopped",
        ("bbb", "fill", 1): "succeeded",
        ("bbb", "map", 1): "stopped",
        ("bbb", "map", 2): "paused",
        ("aaa", "upgrade", 0): "succeeded",
    }
    assert statuses(watched) == before


def test_a_run_that_was_heard_of_within_five_minutes_is_running(watched: Database) -> None:
    query(watched, SILENT.replace("6 minutes", "4 minutes 50 seconds"))

    assert runs(watched).summary == "2 running, 2 succeeded, 1 paused"


def statuses_seen(database: Database) -> list[str]:
    """Statuses of the revision as a whole and of its step that is running."""
    found = runs(database, "bbb").states
    return [state.status for state in found if (state.step, state.part) != ("map", 2)][::2]


#: What each batch notes: the number of its session, and a sign of life.
BATCH = "UPDATE datamig.run SET pid = pg_backend_pid(), heartbeat_at = clock_timestamp()"


@pytest.mark.parametrize("role", ["postgres", "a role that may not look into sessions"])
def test_a_silent_run_is_running_while_its_session_is_there(
    watched: Database, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    monkeypatch.setattr(watch, "SILENT_SECONDS", 0.1)
    looker = watched
    if role != "postgres":
        role = f"looker_{watched.url.database}"
        query(watched, f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA datamig TO {role}")
        query(watched, f"GRANT SELECT ON datamig.run TO {role}")
        looker = connect(watched.url.set(username=role))
    try:
        with session(watched) as worker:
            worker.execute(f"{BATCH} WHERE (step, part) = ('map', 1)".encode())
            time.sleep(0.2)
            while_there = statuses_seen(looker)
        gone = time.monotonic() + 5  # a session ends a moment after it was left
        while "running" in statuses_seen(looker) and time.monotonic() < gone:
            time.sleep(0.02)

        assert while_there == ["running", "running"]
        assert statuses_seen(looker) == ["stopped", "stopped"]
    finally:
        if role != "postgres":
            query(watched, f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_session_that_began_after_the_last_sign_of_life_is_not_the_runs(
    watched: Database,
) -> None:
    with session(watched) as worker:
        worker.execute(BATCH.encode())
        query(watched, SILENT)

        assert statuses_seen(watched) == ["stopped", "stopped"]


# ---------------------------------------------------------------- steering


@pytest.mark.parametrize(
    ("steer", "step", "moved"),
    [
        (pause, None, {("bbb", "upgrade", 0): "paused", ("bbb", "map", 1): "paused"}),
        (pause, "map", {("bbb", "map", 1): "paused"}),
        (resume, None, {("bbb", "map", 2): "running"}),
        (
            cancel,
            None,
            {
                ("bbb", "upgrade", 0): "cancelled",
                ("bbb", "map", 1): "cancelled",
                ("bbb", "map", 2): "cancelled",
            },
        ),
        (cancel, "upgrade", {("bbb", "upgrade", 0): "cancelled"}),
    ],
)
def test_what_may_be_moved_is_moved_and_nothing_else(
    watched: Database,
    steer: Callable[..., Runs],
    step: str | None,
    moved: dict[tuple[str, str, int], str],
) -> None:
    before = statuses(watched)

    found = steer(watched, "bbb", step)

    assert statuses(watched) == {**before, **moved}
    assert {(s.revision, s.step, s.part): s.status for s in found.states} == {
        place: status
        for place, status in {**before, **moved}.items()
        if place[0] == "bbb" and place[1] != "total of all"
    }


@pytest.mark.parametrize(
    ("steer", "given", "sentence"),
    [
        (
            pause,
            ("aaa",),
            "revision 'aaa' cannot be paused, for it is succeeded; nothing of it is left to do",
        ),
        (
            resume,
            ("bbb", "upgrade"),
            "step 'upgrade' of revision 'bbb' cannot be resumed, for it is running; it goes on"
            " already; pause or cancel it",
        ),
        (
            cancel,
            ("bbb", "fill"),
            "step 'fill' of revision 'bbb' cannot be cancelled, for it is succeeded; nothing of it"
            " is left to do",
        ),
        (
            pause,
            ("ccc",),
            "there is no run of revision 'ccc' in this database; use one of 'aaa', 'bbb'",
        ),
        (
            pause,
            ("bbb", "maps"),
            "the run of revision 'bbb' has no step 'maps'; use one of 'fill', 'map', 'upgrade'",
        ),
        (
            pause,
            ("aaa", "maps"),
            "the run of revision 'aaa' has no step 'maps'; use one of 'upgrade'",
        ),
    ],
)
def test_what_may_not_be_moved_is_refused_with_advice(
    watched: Database, steer: Callable[..., Runs], given: tuple[str, ...], sentence: str
) -> None:
    before = statuses(watched)

    with pytest.raises(RunError) as raised:
        steer(watched, *given)

    assert str(raised.value) == sentence
    assert statuses(watched) == before


@pytest.mark.parametrize(
    ("status", "steer", "sentence"),
    [
        ("paused", pause, "cannot be paused, for it is paused; it rests already; resume or"),
        ("cancelled", resume, "cannot be resumed, for it is cancelled; run 'alembic upgrade'"),
        ("cancelled", cancel, "cannot be cancelled, for it is cancelled; run 'alembic upgrade'"),
        ("failed", resume, "cannot be resumed, for it is failed; mend what its error says"),
        ("odd", pause, r"cannot be paused, for it is odd; look at it with runs\(\)"),
    ],
)
def test_a_run_at_rest_is_refused_with_advice(
    watched: Database, status: str, steer: Callable[..., Runs], sentence: str
) -> None:
    query(watched, f"UPDATE datamig.run SET status = '{status}'")

    with pytest.raises(RunError, match=f"^revision 'bbb' {sentence}"):
        steer(watched, "bbb")


def test_where_nothing_ever_ran_it_is_said(database: Database) -> None:
    with pytest.raises(RunError) as raised:
        pause(database, "aaa")

    assert str(raised.value) == (
        "there is no run of revision 'aaa' in this database; none ever ran there"
    )


BATCHES = """
DO $$
DECLARE
    found record;
    awaited boolean = FALSE;
BEGIN
    FOR number IN 1 .. 100 LOOP
        SELECT * INTO found FROM datamig.run WHERE step = 'map' AND part = 1 FOR UPDATE;
        EXIT WHEN found.status <> 'running';
        UPDATE datamig.run
           SET batches = batches + 1, note = CASE WHEN awaited THEN 'overtook' ELSE 'waited for' END
         WHERE step = 'map' AND part = 1;
        PERFORM pg_sleep(0.02);
        awaited = EXISTS (SELECT FROM pg_locks WHERE NOT granted);
        COMMIT;
    END LOOP;
END $$
"""


def test_a_pause_takes_effect_after_the_batch_under_way(watched: Database) -> None:
    batches = threading.Thread(target=query, args=(watched, BATCHES))
    batches.start()
    while query(watched, "SELECT batches FROM datamig.run WHERE step = 'map' AND part = 1") < [7]:
        assert batches.is_alive()

    found = pause(watched, "bbb")

    batches.join(10)
    assert [state.status for state in found.states] == ["paused", "succeeded", "paused", "paused"]
    assert found.states[2].note == "waited for"
    assert runs(watched, "bbb").states[2].batches == found.states[2].batches < 100


def test_a_lock_that_is_not_to_be_had_in_time_is_told_with_advice(watched: Database) -> None:
    before = statuses(watched)

    with session(watched) as holder:
        holder.execute("BEGIN")
        holder.execute("SELECT FROM datamig.run WHERE step = 'map' FOR UPDATE")
        began = time.monotonic()
        with pytest.raises(QueryError) as raised:
            pause(watched, "bbb", wait_seconds=0.2)

    assert time.monotonic() - began < 5
    assert str(raised.value) == (
        "pausing 'bbb' failed: canceling statement due to lock timeout (SQLSTATE 55P03);"
        " find out in pg_stat_activity and pg_locks who holds it, and try again"
    )
    assert statuses(watched) == before
    assert pause(watched, "bbb").summary == "3 paused, 1 succeeded"


def test_looking_waits_for_nobody(watched: Database) -> None:
    with session(watched) as holder:
        holder.execute("BEGIN")
        holder.execute("LOCK TABLE datamig.run IN EXCLUSIVE MODE")

        assert len(runs(watched).states) == 5


# ---------------------------------------------------------------- rows set aside

SET_ASIDE = """
INSERT INTO datamig.quarantine VALUES
    ('aaa', 'fill', 'guide.user', '7', '22001', 'value too long', '2026-11-20 12:00+00'),
    ('aaa', 'fill', 'guide.user', '12', '22P02', 'no integer', '2026-11-20 12:00+00'),
    ('bbb', 'fill', 'guide.user', '1', '22P02', 'no integer', '2026-11-20 12:00+00');
INSERT INTO datamig.conflict VALUES
    ('aaa', 'guide.user', '7', '{"name": "a"}', '{"name": "A"}', NULL, '2026-11-20 12:00+00')
"""


@pytest.mark.parametrize("look", [quarantined, conflicts])
def test_without_our_tables_nothing_is_set_aside(
    database: Database, look: Callable[..., SetAside]
) -> None:
    found = look(database, "aaa")

    assert (found.count, found.rows, len(found.frame)) == (0, (), 0)
    assert repr(found) == f"0 rows of revision aaa {found.what}"


def test_rows_in_quarantine_are_named_with_their_reason(watched: Database) -> None:
    query(watched, SET_ASIDE)

    found = quarantined(watched, "aaa")

    assert found == SetAside(
        revision="aaa",
        what="in quarantine",
        count=2,
        columns=("relation", "key", "step", "sqlstate", "message", "noted_at"),
        rows=(
            ("guide.user", "12", "fill", "22P02", "no integer", "2026-11-20 12:00:00+00"),
            ("guide.user", "7", "fill", "22001", "value too long", "2026-11-20 12:00:00+00"),
        ),
    )
    assert list(found.frame.itertuples(index=False, name=None)) == list(found.rows)
    assert list(found.frame.columns) == list(found.columns)
    assert repr(found) == (
        "2 rows of revision aaa in quarantine\n"
        "  guide.user 12: step fill, sqlstate 22P02, message no integer,"
        " noted_at 2026-11-20 12:00:00+00\n"
        "  guide.user 7: step fill, sqlstate 22001, message value too long,"
        " noted_at 2026-11-20 12:00:00+00"
    )


def test_rows_that_were_not_overwritten_are_named_with_their_values(watched: Database) -> None:
    query(watched, SET_ASIDE)

    assert conflicts(watched, "aaa") == SetAside(
        revision="aaa",
        what="not overwritten",
        count=1,
        columns=("relation", "key", "before", "after", "found", "noted_at"),
        rows=(
            ("guide.user", "7", '{"name": "a"}', '{"name": "A"}', None, "2026-11-20 12:00:00+00"),
        ),
    )


def test_the_first_rows_are_read_and_all_are_counted(watched: Database) -> None:
    query(
        watched,
        "INSERT INTO datamig.quarantine SELECT 'aaa', 'fill', 'guide.user', n, '22001', 'long',"
        " '2026-11-20 12:00+00' FROM generate_series(100, 199) AS n",
    )

    found = quarantined(watched, "aaa", limit=30)

    assert (found.count, len(found.rows)) == (100, 30)
    assert repr(found).splitlines()[-1] == "  and 80 more"


def test_errors_are_ours(watched: Database) -> None:
    query(watched, "ALTER TABLE datamig.run DROP COLUMN note")

    with pytest.raises(DatamigError, match='column "note" does not exist'):
        runs(watched)

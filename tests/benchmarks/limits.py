"""Why a woven walk is not faster: the same with one thing changed in each line.

All change the same rows as one single UPDATE in one transaction, which is 1.00.
"""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import datamig_nb as dm
from datamig_nb.database import Database, run
from tests.benchmarks import cost
from tests.benchmarks.backfill import CASES, Case, make, single
from tests.benchmarks.cost import Subject, Work

MAP, E_MAIL = CASES[1], CASES[4]  # map a status, normalise an e-mail; both woven

#: What is changed in the exported file: a pattern, and what stands in its place.
EDITS = {
    "the exported file": ("", ""),
    "windows of 300 pages": (r"WINDOW_PAGES = .*", "WINDOW_PAGES = 300"),
    "windows of 12,000 pages": (r"WINDOW_PAGES = .*", "WINDOW_PAGES = 12_000"),
    "4 passes": (r"\nPASSES = .*", "\nPASSES = 4"),
    "8 passes": (r"\nPASSES = .*", "\nPASSES = 8"),
    "no commit waits for the disk": (
        r"SET TRANSACTION ISOLATION LEVEL READ COMMITTED;",
        "SET LOCAL synchronous_commit = off; SET TRANSACTION ISOLATION LEVEL READ COMMITTED;",
    ),
    "no look back": (r"\s+remaining=\w+,", ""),
}


def measure(database: Database, rows: int, *only: str) -> None:
    """Print the ratio of each to the single UPDATE; ``only`` are words, one of which it holds."""
    subject = Subject(database=database, table="account", rows=rows, make=make)
    print(cost.header())
    ways = {"two plain UPDATEs, each on its connection": (MAP, partial(_halves, database))}
    for case, names in ((MAP, EDITS), (E_MAIL, ("the exported file", "no look back"))):
        for name in names:
            ways[f"{case.name}: {name}"] = case, partial(_edited, database, case, *EDITS[name])
    for name, (case, ours) in ways.items():
        if any(word in name for word in only or ("",)):
            one = partial(single, database, case)
            print(cost.compare(name, case.goal, subject, one, ours), flush=True)


def _edited(database: Database, case: Case, pattern: str, text: str) -> Work:
    """Run the case's exported file after an edit."""
    file = dm.render(database, case.migration()).text
    edited = re.sub(pattern, text, file)
    assert edited != file or not pattern, f"{pattern} is not in the file"
    return cost.upgrade(database, edited)


def _halves(database: Database) -> Work:
    """The mapped status by two UPDATEs at once."""
    with database.engine.connect() as connection:
        run(connection, "ALTER TABLE account ADD COLUMN state text")
        middle = run(connection, "SELECT max(id) / 2 FROM account").scalar_one()
        connection.commit()

    def half(condition: str) -> None:
        with database.engine.begin() as connection:
            run(connection, f"{MAP.single()} WHERE {condition}")

    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(half, (f"id <= {middle}", f"id > {middle}")))
    return Work(seconds=time.perf_counter() - started)

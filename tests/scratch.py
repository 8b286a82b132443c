"""Databases that live as long as a module needs them, and SQL as a test types it."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import psycopg

from datamig_nb.database import Database

_numbers = itertools.count(1)


@contextmanager
def scratch_database(server: Database, template: str = "template0") -> Generator[Database]:
    """A database of its own, dropped at the end."""
    made = server.at(f"scratch_{next(_numbers)}")
    postgres = server.at("postgres")
    # copied as files, which costs half of what it costs to log each page
    like = f"TEMPLATE {template} STRATEGY file_copy"
    query(postgres, f"CREATE DATABASE {made.url.database} {like}")
    try:
        yield made
    finally:
        query(postgres, f"DROP DATABASE {made.url.database} WITH (FORCE)")


@contextmanager
def session(database: Database) -> Generator[psycopg.Connection[Any]]:
    """A session of somebody who knows nothing of us; each statement commits."""
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def query(database: Database, statements: str) -> list[Any]:
    """Send statements as they stand; the rows of the last, a single column as its values."""
    with session(database) as connection:
        cursor = connection.execute(statements.encode())
        while cursor.nextset():
            pass
        rows = cursor.fetchall() if cursor.description else []
        return [row[0] if len(row) == 1 else row for row in rows]

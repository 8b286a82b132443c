"""Data migrations for PostgreSQL, from a messy column to a vetted Alembic revision.

Six verbs, one way through: :func:`profile`, :func:`preview`, :func:`render`, :func:`rehearse`,
:func:`export`, :func:`validate`.
"""

from __future__ import annotations

from datamig_nb.database import Database, connect
from datamig_nb.errors import DatamigError
from datamig_nb.export import Export, export, verify
from datamig_nb.html import save_html  # its module registers what Jupyter shows
from datamig_nb.migration import (
    Migration,
    add_column,
    allowed_values,
    alter_column,
    backfill,
    check,
    create_check_constraint,
    create_enum,
    keep_in_step,
    matches,
    no_nulls,
    no_orphans,
    rows_check,
    transform,
    unique,
)
from datamig_nb.patterns import map_values, split_column
from datamig_nb.preview import Preview, preview
from datamig_nb.profile import TableProfile, profile
from datamig_nb.project import create_project
from datamig_nb.rehearse import Rehearsal, rehearse
from datamig_nb.render import Revision, render
from datamig_nb.validate import ValidationReport, validate

__version__ = "0.1.0"

__all__ = [
    "Database",
    "DatamigError",
    "Export",
    "Migration",
    "Preview",
    "Rehearsal",
    "Revision",
    "TableProfile",
    "ValidationReport",
    "add_column",
    "allowed_values",
    "alter_column",
    "backfill",
    "check",
    "connect",
    "create_check_constraint",
    "create_enum",
    "create_project",
    "export",
    "keep_in_step",
    "map_values",
    "matches",
    "no_nulls",
    "no_orphans",
    "preview",
    "profile",
    "rehearse",
    "render",
    "rows_check",
    "save_html",
    "split_column",
    "transform",
    "unique",
    "validate",
    "verify",
]

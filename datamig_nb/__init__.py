"""Data migrations for PostgreSQL, from a messy column to a vetted Alembic revision.

Six verbs, one way through: :func:`profile`, :func:`preview`, :func:`render`, :func:`rehearse`,
:func:`export`, :func:`validate`.  Beside it :func:`runs`, to look at what production does.
"""

from __future__ import annotations

from datamig_nb import expr
from datamig_nb import html as html  # registers what Jupyter shows
from datamig_nb.checks import (
    allowed_values,
    check,
    matches,
    no_nulls,
    no_orphans,
    rows_check,
    same_row_count,
    same_rows,
    unchanged,
    unique,
)
from datamig_nb.clones import Clones, clones, drop_clones
from datamig_nb.compound import change_type, create_table_as, merge_rows
from datamig_nb.database import Database, connect, guide_database
from datamig_nb.errors import DatamigError
from datamig_nb.export import Export, export
from datamig_nb.extraction import extract_table
from datamig_nb.html_pages import save_html
from datamig_nb.migration import Migration, Steps
from datamig_nb.operations import (
    add_column,
    alter_column,
    create_check_constraint,
    create_enum,
    create_foreign_key,
    create_index,
    create_primary_key,
    create_table,
    create_unique_constraint,
    drop_column,
    drop_constraint,
    drop_index,
    drop_table,
    rename_table,
    sql,
)
from datamig_nb.patterns import map_values, split_column
from datamig_nb.preview import Preview, preview
from datamig_nb.profile import profile
from datamig_nb.project import create_project
from datamig_nb.reference_rows import put_rows
from datamig_nb.rehearsal import Rehearsal
from datamig_nb.rehearse import rehearse
from datamig_nb.render import Revision, render
from datamig_nb.revision_file import read_revision
from datamig_nb.rewriting import batched_update, cross_table, normalize, transform_rows
from datamig_nb.set_aside import SetAside, conflicts, quarantined
from datamig_nb.step_groups import (
    advance_sequence,
    drop_columns,
    drop_tables,
    extract_values,
    fill_new_column,
    fill_nulls,
    fill_unique,
    rebuild_enum,
)
from datamig_nb.steps import back_up, backfill, delete_rows, insert_rows, keep_in_step
from datamig_nb.table_profile import TableProfile
from datamig_nb.transforms import transform
from datamig_nb.validate import ValidationReport, validate
from datamig_nb.vetted import verify
from datamig_nb.watch import Runs, RunState, cancel, pause, resume, runs
from datamig_nb.workers import work
from datamig_nb.wrapping import background, with_backup

__version__ = "0.1.0"

__all__ = [
    "Clones",
    "Database",
    "DatamigError",
    "Export",
    "Migration",
    "Preview",
    "Rehearsal",
    "Revision",
    "RunState",
    "Runs",
    "SetAside",
    "Steps",
    "TableProfile",
    "ValidationReport",
    "add_column",
    "advance_sequence",
    "allowed_values",
    "alter_column",
    "back_up",
    "backfill",
    "background",
    "batched_update",
    "cancel",
    "change_type",
    "check",
    "clones",
    "conflicts",
    "connect",
    "create_check_constraint",
    "create_enum",
    "create_foreign_key",
    "create_index",
    "create_primary_key",
    "create_project",
    "create_table",
    "create_table_as",
    "create_unique_constraint",
    "cross_table",
    "delete_rows",
    "drop_clones",
    "drop_column",
    "drop_columns",
    "drop_constraint",
    "drop_index",
    "drop_table",
    "drop_tables",
    "export",
    "expr",
    "extract_table",
    "extract_values",
    "fill_new_column",
    "fill_nulls",
    "fill_unique",
    "guide_database",
    "insert_rows",
    "keep_in_step",
    "map_values",
    "matches",
    "merge_rows",
    "no_nulls",
    "no_orphans",
    "normalize",
    "pause",
    "preview",
    "profile",
    "put_rows",
    "quarantined",
    "read_revision",
    "rebuild_enum",
    "rehearse",
    "rename_table",
    "render",
    "resume",
    "rows_check",
    "runs",
    "same_row_count",
    "same_rows",
    "save_html",
    "split_column",
    "sql",
    "transform",
    "transform_rows",
    "unchanged",
    "unique",
    "validate",
    "verify",
    "with_backup",
    "work",
]

"""Case numbers from 1 in each workspace, which remembers the last one."""

import sqlalchemy as sa

import datamig_nb as dm

ROWS = (
    'SELECT id, row_number() OVER (PARTITION BY workspace_id ORDER BY case_number) AS n FROM "case"'
)
LAST = 'SELECT workspace_id, count(*) AS n FROM "case" GROUP BY workspace_id'

migration = dm.Migration(
    "number cases per workspace",
    dm.create_table_as("datamig.case_number", ROWS, key="id"),
    dm.alter_column(
        "case", "case_number", server_default=None, existing_server_default=sa.Identity(always=True)
    ),
    dm.drop_constraint("uq_case_number", "case"),
    dm.back_up("case", "case_number"),
    dm.backfill(
        "case",
        {"case_number": "new.n"},
        using="datamig.case_number AS new",
        on='new.id = "case".id',
    ),
    dm.add_column(
        "workspace",
        sa.Column("last_case_number", sa.Integer, nullable=False, server_default=sa.text("0")),
    ),
    dm.backfill(
        "workspace", {"last_case_number": "c.n"}, using=f"({LAST}) AS c", on="c.workspace_id = id"
    ),
    dm.create_unique_constraint("uq_case_number", "case", ["workspace_id", "case_number"]),
    dm.unique("case", "workspace_id", "case_number"),
)

"""A table of the latest measurement of each run and key."""

import sqlalchemy as sa

import datamig_nb as dm

migration = dm.Migration(
    "latest metrics",
    dm.create_table(
        "latest_metrics",
        sa.Column("key", sa.String(250), primary_key=True),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("timestamp", sa.BigInteger()),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("is_nan", sa.Boolean(), nullable=False),
        sa.Column("run_uuid", sa.String(32), sa.ForeignKey("runs.run_uuid"), primary_key=True),
    ),
    dm.insert_rows(
        "latest_metrics",
        "SELECT DISTINCT ON (key, run_uuid) key, value, timestamp, step, is_nan, run_uuid"
        " FROM metrics ORDER BY key, run_uuid, step DESC, timestamp DESC, value DESC",
        key=("key", "run_uuid"),
    ),
)

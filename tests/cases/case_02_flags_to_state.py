"""Three flags become one state, by precedence."""

import sqlalchemy as sa

import datamig_nb as dm

migration = dm.Migration(
    "three flags become one state",
    dm.fill_new_column(
        "roombooking.reservations",
        sa.Column("state", sa.SmallInteger(), nullable=False),
        "CASE WHEN is_rejected THEN 4 WHEN is_cancelled THEN 3 WHEN is_accepted THEN 2 ELSE 1 END",
    ),
    dm.drop_columns("roombooking.reservations", "is_accepted", "is_cancelled", "is_rejected"),
)

"""Remove sources that cannot be used, with all that hangs on them."""

import datamig_nb as dm

migration = dm.Migration(
    "delete sources without a file system id",
    dm.delete_rows("sources", "filesystem_id IS NULL", dependants="all"),
    dm.no_nulls("sources", "filesystem_id"),
    dm.alter_column("sources", "filesystem_id", nullable=False),
)

"""An enum type loses two labels; rows that have them become obsolete."""

import datamig_nb as dm

migration = dm.Migration(
    "drop two update states",
    dm.rebuild_enum(
        "ck_update_status",
        {"updates": "status"},
        labels=("testing", "obsolete", "stable", "unpushed", "pending"),
        mapping={"side_tag_active": "obsolete", "side_tag_expired": "obsolete"},
    ),
)

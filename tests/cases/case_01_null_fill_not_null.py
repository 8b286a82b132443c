"""Fill what was always taken for mandatory, and make it so."""

import datamig_nb as dm

migration = dm.Migration(
    "fill NULLs of mandatory columns",
    dm.fill_nulls("connection", {"is_encrypted": "false", "is_extra_encrypted": "false"}),
    dm.fill_nulls("dag", {"is_paused": "false"}),
    dm.fill_nulls("slot_pool", {"slots": "0"}),
    dm.fill_nulls(
        "variable", {"key": "'__airflow_var_fix_' || id", "val": "''", "is_encrypted": "false"}
    ),
    dm.fill_nulls("task_instance", {"try_number": "0", "max_tries": "-1"}),
)

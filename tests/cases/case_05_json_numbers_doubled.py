"""A grid of twice as many columns: positions and widths in the widgets' documents double."""

import datamig_nb as dm

DOUBLED = {("position", "col"): "value * 2", ("position", "sizeX"): "value * 2"}

migration = dm.Migration(
    "double column and width of widgets",
    dm.back_up("widgets", "options"),
    dm.backfill("widgets", {"options": dm.expr.json_change("options", "number", DOUBLED)}),
)

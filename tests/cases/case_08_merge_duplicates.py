"""Foods once per group and name, their children repointed; tools of a recipe once."""

import datamig_nb as dm

migration = dm.Migration(
    "merge foods with the same name",
    dm.merge_rows("ingredient_foods", same=("group_id", "name"), keep="created_at"),
    dm.merge_rows("recipes_to_tools", same=("recipe_id", "tool_id")),
    dm.create_unique_constraint("uq_food", "ingredient_foods", ["group_id", "name"]),
    dm.create_unique_constraint("uq_tool", "recipes_to_tools", ["recipe_id", "tool_id"]),
    dm.unique("ingredient_foods", "group_id", "name"),
)

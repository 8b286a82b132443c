"""Rows of key and value become a document of their owner."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

import datamig_nb as dm

FLAT = (
    "jsonb_typeof(extras) = 'object'"
    """ AND NOT jsonb_path_exists(extras, '$.* ? (@.type() <> "string")')"""
)


def collapse(owner: str) -> dm.Steps:
    extras, documents = f"{owner}_extra", f"SELECT {owner}_id, jsonb_object_agg(key, value) AS doc"
    return (
        dm.fill_new_column(
            owner,
            sa.Column("extras", JSONB()),
            "active.doc",
            using=f"({documents} FROM {extras} WHERE state = 'active' GROUP BY 1) AS active",
            on=f'active.{owner}_id = "{owner}".id',
        ),
        dm.create_check_constraint(f"{owner}_flat_extras", owner, FLAT),
        dm.drop_tables(extras),
    )


migration = dm.Migration("attributes become documents", collapse("package"), collapse("group"))

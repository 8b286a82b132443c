"""Free text below a topic becomes rows of a lookup table, which two tables point to."""

import sqlalchemy as sa

import datamig_nb as dm

SLUG = "lower(translate(regexp_replace(sub_topic, '& |,', '', 'g'), ' /', '--'))"
LOOKUP = "event_sub_topics AS s"


def pointing(table: str) -> dm.Steps:
    """The id in the place of the text, found by text and topic."""
    same = f"s.name = sub_topic AND s.event_topic_id IS NOT DISTINCT FROM {table}.event_topic_id"
    column = sa.Column("event_sub_topic_id", sa.Integer)
    return dm.fill_new_column(table, column, "s.id", using=LOOKUP, on=same)


migration = dm.Migration(
    "sub-topics as a lookup table",
    dm.create_table(
        "event_sub_topics",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("slug", sa.String, nullable=False),
        sa.Column(
            "event_topic_id", sa.Integer, sa.ForeignKey("event_topics.id", ondelete="CASCADE")
        ),
    ),
    dm.insert_rows(
        "event_sub_topics",
        f"SELECT row_number() OVER (ORDER BY sub_topic, event_topic_id) AS id, sub_topic AS name,"
        f" {SLUG} AS slug, event_topic_id FROM events WHERE sub_topic IS NOT NULL"
        " GROUP BY sub_topic, event_topic_id",
        key="id",
    ),
    dm.advance_sequence("event_sub_topics", "id"),
    dm.create_unique_constraint("uq_slug", "event_sub_topics", ["slug", "event_topic_id"]),
    pointing("events"),
    pointing("events_version"),
    dm.rows_check(
        "every event with a sub-topic points to one",
        "events",
        "sub_topic IS NOT NULL AND event_sub_topic_id IS NULL",
    ),
    dm.no_orphans("events", "event_sub_topic_id", "event_sub_topics", "id"),
    dm.alter_column("events", "sub_topic", new_column_name="old_sub_topic"),
    dm.alter_column("events_version", "sub_topic", new_column_name="old_sub_topic"),
)

"""Local times with a zone in the row, and naive UTC, become instants."""

import datamig_nb as dm

KNOWN = "coalesce(timezone IN (SELECT name FROM pg_timezone_names), FALSE)"


def known_zone(table: str) -> list[object]:
    """UTC where no zone is known."""
    return [
        dm.back_up(table, "timezone"),
        dm.backfill(table, {"timezone": "'UTC'"}, where=f"NOT {KNOWN}"),
    ]


def instant(table: str, column: str) -> object:
    """The local time of the row's zone as an instant."""
    return dm.change_type(table, column, "timestamptz", using=f"{column} AT TIME ZONE timezone")


migration = dm.Migration(
    "times as instants",
    known_zone("events"),
    known_zone("call_for_papers"),
    instant("events", "starts_at"),
    instant("events", "ends_at"),
    dm.change_type("events", "created_at", "timestamptz", using="created_at AT TIME ZONE 'UTC'"),
    instant("call_for_papers", "start_date"),
    instant("call_for_papers", "end_date"),
    dm.no_nulls("events", "timezone"),
)

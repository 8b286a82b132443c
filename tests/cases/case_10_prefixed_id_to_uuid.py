"""Ids that were text with a prefix become uuid: those that are keys, and those in documents."""

import datamig_nb as dm


def with_uuids(array: str, *keys: str) -> str:
    """An array of the document, each id of an action in it as uuid."""
    uuids = (
        "SELECT coalesce(jsonb_object_agg(key, substr(a.id, 5)::uuid), '{}')"
        f" FROM unnest(ARRAY{[*keys]}) AS key JOIN action AS a ON a.id = node ->> key"
    )
    nodes = (
        f"SELECT coalesce(jsonb_agg(node || ({uuids}) ORDER BY place), '[]')"
        f" FROM jsonb_array_elements(object -> '{array}') WITH ORDINALITY AS t (node, place)"
    )
    return (
        f"CASE WHEN jsonb_typeof(object -> '{array}') = 'array'"
        f" THEN jsonb_build_object('{array}', ({nodes})) ELSE '{{}}' END"
    )


NODES, EDGES = with_uuids("nodes", "id"), with_uuids("edges", "source", "target")
ENTRY = "SELECT substr(id, 5)::uuid::text FROM action WHERE id = entrypoint"

migration = dm.Migration(
    "ids as uuid",
    dm.back_up("workflow", "object", "entrypoint"),
    dm.backfill(
        "workflow",
        {
            "object": f"object || {NODES} || {EDGES}",
            "entrypoint": f"coalesce(({ENTRY}), entrypoint)",
        },
    ),
    dm.change_type("action", "id", "uuid", using="substr(id, 5)"),
    dm.change_type("secret", "id", "uuid", using="substr(id, 8)"),
    dm.change_type("webhook", "id", "uuid", using="substr(id, 4)"),
    dm.change_type("webhook_api_key", "webhook_id", "uuid", using="substr(webhook_id, 4)"),
    dm.no_orphans("webhook_api_key", "webhook_id", "webhook", "id"),
)

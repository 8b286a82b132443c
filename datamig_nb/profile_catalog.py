"""What a profile asks the catalog, and how its session is set: SQL."""

from __future__ import annotations

from datamig_nb.names import literal


def settle() -> str:
    """Make values print the same for everybody: ISO dates, times in UTC."""
    settings = {
        "client_encoding": "UTF8",  # the driver reads JSON as nothing else
        "TimeZone": "UTC",
        "DateStyle": "ISO, YMD",
        "IntervalStyle": "postgres",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "jit": "off",  # compiles for longer than these statements run
    }
    changes = (
        f"set_config({literal(name)}, {literal(value)}, true)" for name, value in settings.items()
    )
    return f"SELECT {', '.join(changes)}"


TABLE = """
SELECT relkind::text AS relkind,
       row_security_active(pg_class.oid) AS rows_hidden,
       coalesce((SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree(pg_class.oid)),
                pg_total_relation_size(pg_class.oid)) AS total_bytes
  FROM pg_class
 WHERE pg_class.oid = to_regclass(:name)
"""

# Types that are not PostgreSQL's own may lack min() or an operator, whatever their category says.
COLUMNS = """
SELECT attname AS name,
       CASE WHEN typcategory = 'S' THEN 'text'
            WHEN typname = 'uuid' OR typcategory = 'B' THEN 'plain'
            WHEN typtype NOT IN ('d', 'e')
             AND (typnamespace <> 'pg_catalog'::regnamespace OR typname LIKE 'reg%') THEN 'opaque'
            WHEN typcategory = 'N' THEN 'number'
            WHEN typcategory IN ('D', 'T') THEN 'time'
            WHEN typcategory IN ('E', 'I') THEN 'ordered'
            ELSE 'opaque' END AS kind,
       atttypid IN ('text'::regtype, 'varchar'::regtype) AS collatable,
       atttypid = 'numeric'::regtype AND atttypmod = -1 AS scaleless,
       has_column_privilege(attrelid, attnum, 'SELECT') AS readable
  FROM pg_attribute
  JOIN pg_type ON pg_type.oid = atttypid
 WHERE attrelid = to_regclass(:name) AND attnum > 0 AND NOT attisdropped
 ORDER BY attnum
"""

# Foreign keys of one column that rows may break: NOT VALID, or since PostgreSQL 18 NOT ENFORCED.
UNCHECKED_KEYS = """
SELECT child.attname AS column, nspname AS parent_schema, relname AS parent_table,
       parent.attname AS parent_column
  FROM pg_constraint
  JOIN pg_class ON pg_class.oid = confrelid
  JOIN pg_namespace ON pg_namespace.oid = relnamespace
  JOIN pg_attribute AS child ON child.attrelid = conrelid AND child.attnum = conkey[1]
  JOIN pg_attribute AS parent ON parent.attrelid = confrelid AND parent.attnum = confkey[1]
 WHERE conrelid = to_regclass(:name) AND contype = 'f' AND cardinality(conkey) = 1
   AND NOT convalidated
 ORDER BY conname
"""

# The key of another table in the schema, if the column has its name, or the table's and its name
# with an underscore; a table may be called in the plural.  The types must be alike.
LIKELY_PARENTS = """
WITH parent AS (
    SELECT pg_class.oid, relnamespace, nspname, relname, attname, atttypid, typcategory
      FROM pg_class
      JOIN pg_namespace ON pg_namespace.oid = relnamespace
      JOIN pg_index ON indrelid = pg_class.oid AND indisprimary AND indnkeyatts = 1
      JOIN pg_attribute ON attrelid = pg_class.oid AND attnum = indkey[0]
      JOIN pg_type ON pg_type.oid = atttypid
     WHERE relkind IN ('r', 'p') AND NOT relispartition
       AND has_schema_privilege(pg_namespace.oid, 'USAGE')
       AND has_column_privilege(pg_class.oid, attnum, 'SELECT')
)
SELECT child.attname AS column,
       parent.nspname AS parent_schema,
       parent.relname AS parent_table,
       parent.attname AS parent_column
  FROM pg_attribute AS child
  JOIN pg_class ON pg_class.oid = attrelid
  JOIN pg_type ON pg_type.oid = child.atttypid
  JOIN parent ON parent.relnamespace = pg_class.relnamespace
             AND parent.oid <> pg_class.oid
             AND (parent.atttypid = child.atttypid
                  OR parent.typcategory = pg_type.typcategory
                     AND pg_type.typcategory IN ('N', 'S'))
 CROSS JOIN LATERAL (SELECT lower(child.attname) AS name, lower(parent.relname) AS of_table) AS low
 WHERE child.attrelid = to_regclass(:name) AND child.attnum > 0 AND NOT child.attisdropped
   AND (child.attname = parent.attname AND lower(parent.attname) <> 'id'
        OR name IN (of_table || '_' || lower(parent.attname),
                    regexp_replace(of_table, 's$', '') || '_' || lower(parent.attname),
                    regexp_replace(of_table, 'es$', '') || '_' || lower(parent.attname),
                    regexp_replace(of_table, 'ies$', 'y') || '_' || lower(parent.attname)))
   AND NOT EXISTS (SELECT FROM pg_constraint
                    WHERE conrelid = child.attrelid AND contype = 'f'
                      AND child.attnum = ANY (conkey))
 ORDER BY child.attnum, parent.relname
"""

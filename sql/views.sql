-- What there is: keys, encrypted columns, and which keys their values are under.

CREATE FUNCTION colcrypt.ring_keys(
    OUT key_id text,
    OUT name text,
    OUT is_primary boolean,
    OUT source text
) RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'colcrypt_ring_keys_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION colcrypt.ring_keys() IS
    'the keys of the key ring in force, the session''s in front of the server''s';
REVOKE EXECUTE ON FUNCTION colcrypt.ring_keys() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION colcrypt.ring_keys() TO pg_monitor;

CREATE FUNCTION colcrypt.modifier_name(modifier integer) RETURNS text
    AS 'MODULE_PATHNAME', 'colcrypt_modifier_name_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION colcrypt.modifier_name(integer) IS
    'the name of the key that a type modifier stands for, or # and its number';

CREATE VIEW colcrypt.keys AS
WITH ring AS (
    SELECT DISTINCT ON (key_id) key_id, name, is_primary
    FROM colcrypt.ring_keys()
    ORDER BY key_id, is_primary DESC
)
SELECT coalesce(k.key_id, r.key_id) AS key_id,
       r.name,
       'ring' AS kind,
       NULL AS suite,
       CASE WHEN r.is_primary THEN 'active' ELSE 'retired' END AS state,
       NULL AS wrapped_by,
       r.key_id IS NOT NULL AS loaded,
       k.created_at
FROM (SELECT key_id, created_at FROM colcrypt.key WHERE kind = 'ring') AS k
     FULL JOIN ring AS r ON r.key_id = k.key_id
UNION ALL
SELECT k.key_id,
       k.name,
       k.kind,
       k.suite,
       k.state,
       k.wrapped_by,
       EXISTS (SELECT FROM ring AS r WHERE r.key_id = k.wrapped_by),
       k.created_at
FROM colcrypt.key AS k
WHERE k.kind <> 'ring';
COMMENT ON VIEW colcrypt.keys IS 'keys of the ring, and keys that the database keeps';
GRANT SELECT ON colcrypt.keys TO pg_monitor;

CREATE VIEW colcrypt.columns AS
WITH RECURSIVE encrypted(type, modifier) AS (
    SELECT 'encrypted_text'::regtype::oid, NULL::integer
    UNION ALL
    SELECT d.oid, coalesce(nullif(d.typtypmod, -1), e.modifier)
    FROM pg_catalog.pg_type AS d
         JOIN encrypted AS e ON d.typbasetype = e.type
    WHERE d.typtype = 'd'
)
SELECT a.attrelid::regclass AS relation,
       a.attname AS column_name,
       pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
       colcrypt.modifier_name(coalesce(nullif(a.atttypmod, -1), e.modifier)) AS key_name,
       ARRAY(
           SELECT pg_catalog.format('%s (%s): %s', i.indexrelid::regclass, m.amname,
                      CASE
                          WHEN NOT a.attnum = ANY (i.indkey)
                              THEN 'what its expressions and conditions say of the value'
                          WHEN m.amname = 'hash'
                              THEN 'which rows have equal values, up to collisions of 32 bits'
                          WHEN m.amname = 'btree'
                              THEN 'which entries are neighbours, in an order that means nothing without the index key'
                          ELSE 'not known'
                      END)
           FROM pg_catalog.pg_index AS i
                JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
                JOIN pg_catalog.pg_am AS m ON m.oid = c.relam
           WHERE i.indrelid = a.attrelid
             AND (a.attnum = ANY (i.indkey)
                  OR EXISTS (
                      SELECT FROM pg_catalog.pg_depend AS d
                      WHERE d.classid = 'pg_catalog.pg_class'::regclass
                        AND d.objid = i.indexrelid
                        AND d.refclassid = 'pg_catalog.pg_class'::regclass
                        AND d.refobjid = a.attrelid
                        AND d.refobjsubid = a.attnum))
           ORDER BY c.relname
       ) AS indexes
FROM encrypted AS e
     JOIN pg_catalog.pg_attribute AS a ON a.atttypid = e.type
     JOIN pg_catalog.pg_class AS t ON t.oid = a.attrelid
WHERE NOT a.attisdropped
  AND t.relkind IN ('r', 'p', 'm', 'f')
  AND NOT pg_catalog.pg_is_other_temp_schema(t.relnamespace);
COMMENT ON VIEW colcrypt.columns IS
    'encrypted columns, with their keys and indexes, and what the indexes tell on disk';
GRANT SELECT ON colcrypt.columns TO PUBLIC;

CREATE FUNCTION colcrypt.key_usage(
    relation regclass,
    column_name name,
    OUT key_id text,
    OUT suite text,
    OUT rows bigint,
    OUT bytes bigint,
    OUT stale boolean
) RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'colcrypt_key_usage_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.key_usage(regclass, name) IS
    'how many values of a column are under which key, and whether a rotation would move them';

CREATE FUNCTION colcrypt.droppable_keys(
    OUT key_id text,
    OUT name text,
    OUT kind text,
    OUT rows numeric,
    OUT managed_keys bigint,
    OUT may_be_dropped boolean
) RETURNS SETOF record
    LANGUAGE sql STABLE PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
    WITH used AS (
        SELECT u.key_id, sum(u.rows) AS rows
        FROM colcrypt.columns AS c
             JOIN pg_class AS t ON t.oid = c.relation AND t.relkind IN ('r', 'm')
             CROSS JOIN LATERAL colcrypt.key_usage(c.relation, c.column_name) AS u
        GROUP BY u.key_id
    )
    SELECT k.key_id, k.name, k.kind, coalesce(u.rows, 0), w.keys,
           k.state = 'retired' AND u.rows IS NULL AND w.keys = 0
    FROM colcrypt.keys AS k
         LEFT JOIN used AS u ON u.key_id = k.key_id
         CROSS JOIN LATERAL (
             SELECT count(*) AS keys FROM colcrypt.keys AS m WHERE m.wrapped_by = k.key_id
         ) AS w
    WHERE k.kind IN ('ring', 'data')
$$;
COMMENT ON FUNCTION colcrypt.droppable_keys() IS
    'keys, with what is under each in tables, and whether a key of the past is needed by none of them';
REVOKE EXECUTE ON FUNCTION colcrypt.droppable_keys() FROM PUBLIC;

CREATE FUNCTION colcrypt.keep_masked() RETURNS trigger
    AS 'MODULE_PATHNAME', 'colcrypt_keep_masked'
    LANGUAGE c VOLATILE;
COMMENT ON FUNCTION colcrypt.keep_masked() IS
    'trigger BEFORE UPDATE: keeps the old value of the named columns where the new one is the mask';

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

CREATE FUNCTION colcrypt.modifier_of_key(name name) RETURNS integer
    AS 'MODULE_PATHNAME', 'colcrypt_modifier_of_key'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION colcrypt.modifier_of_key(name) IS
    'the type modifier that names a managed key; an error if there is no such key';

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

-- Types whose values are encrypted, or hold encrypted values.
CREATE VIEW colcrypt.encrypted_type AS
WITH RECURSIVE encrypted(type, modifier, is_value) AS (
    SELECT p.proargtypes[0], NULL::integer, true
    FROM pg_catalog.pg_proc AS p
    WHERE p.pronamespace = 'colcrypt'::regnamespace AND p.proname = 'inspect'
    UNION
    SELECT t.type, coalesce(nullif(t.modifier, -1), e.modifier), e.is_value AND t.is_domain
    FROM encrypted AS e
         CROSS JOIN LATERAL (
             SELECT d.oid, d.typtypmod, true
             FROM pg_catalog.pg_type AS d
             WHERE d.typbasetype = e.type AND d.typtype = 'd'
             UNION ALL
             SELECT d.oid, -1, false
             FROM pg_catalog.pg_type AS d
             WHERE d.typelem = e.type AND d.typcategory = 'A'
             UNION ALL
             SELECT c.reltype, -1, false
             FROM pg_catalog.pg_attribute AS m
                  JOIN pg_catalog.pg_class AS c ON c.oid = m.attrelid
             WHERE m.atttypid = e.type AND NOT m.attisdropped AND c.reltype <> 0
             UNION ALL
             SELECT r.rngtypid, -1, false
             FROM pg_catalog.pg_range AS r
             WHERE r.rngsubtype = e.type
             UNION ALL
             SELECT r.rngmultitypid, -1, false
             FROM pg_catalog.pg_range AS r
             WHERE r.rngsubtype = e.type
         ) AS t(type, modifier, is_domain)
)
SELECT type, max(modifier) AS modifier, bool_or(is_value) AS is_value
FROM encrypted
GROUP BY type;
COMMENT ON VIEW colcrypt.encrypted_type IS
    'types whose values are encrypted (is_value), or hold encrypted values, as arrays and composites do';
GRANT SELECT ON colcrypt.encrypted_type TO PUBLIC;

CREATE VIEW colcrypt.columns AS
SELECT a.attrelid::regclass AS relation,
       a.attname AS column_name,
       pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
       CASE WHEN e.is_value
           THEN colcrypt.modifier_name(coalesce(nullif(a.atttypmod, -1), e.modifier))
       END AS key_name,
       ARRAY(
           SELECT pg_catalog.format('%s (%s): %s', i.indexrelid::regclass, m.amname,
                      CASE
                          WHEN NOT a.attnum = ANY (i.indkey)
                              THEN 'what its expressions and conditions say of the value'
                          WHEN NOT EXISTS (
                                   SELECT FROM pg_catalog.generate_series(0, i.indnkeyatts - 1) AS k
                                   WHERE i.indkey[k] = a.attnum)
                              THEN 'nothing but lengths: the value is included, not searched'
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
FROM colcrypt.encrypted_type AS e
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

CREATE FUNCTION colcrypt.verify_column(
    relation regclass,
    column_name name,
    OUT key_id text,
    OUT suite text,
    OUT ok bigint,
    OUT failed bigint,
    OUT first_failure tid,
    OUT reason text
) RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'colcrypt_verify_column_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.verify_column(regclass, name) IS
    'decrypts every value of a column: how many can be read, by key and suite, and the first that cannot';

CREATE FUNCTION colcrypt.keys_in_index(index regclass, key_ids text[]) RETURNS SETOF text
    AS 'MODULE_PATHNAME', 'colcrypt_keys_in_index_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.keys_in_index(regclass, text[]) IS
    'those of the keys that the pages of an index still mention: until REINDEX it needs them';
REVOKE EXECUTE ON FUNCTION colcrypt.keys_in_index(regclass, text[]) FROM PUBLIC;

-- A constant in an expression was sealed when it was parsed, and is stored as
-- PostgreSQL prints nodes: its bytes as signed numbers, after a length word of four
-- bytes the format and the key id.
CREATE FUNCTION colcrypt.sealed_constants(OUT object text, OUT key_id text) RETURNS SETOF record
    LANGUAGE sql STABLE PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
    WITH expression(class, object, part, tree) AS (
        SELECT 'pg_class'::regclass, adrelid, adnum, adbin::text FROM pg_attrdef
        UNION ALL
        SELECT 'pg_constraint'::regclass, oid, 0, conbin::text FROM pg_constraint
        UNION ALL
        SELECT 'pg_rewrite'::regclass, oid, 0, concat(ev_qual::text, ev_action::text) FROM pg_rewrite
        UNION ALL
        SELECT 'pg_policy'::regclass, oid, 0, concat(polqual::text, polwithcheck::text) FROM pg_policy
        UNION ALL
        SELECT 'pg_proc'::regclass, oid, 0, concat(proargdefaults::text, prosqlbody::text) FROM pg_proc
        UNION ALL
        SELECT 'pg_trigger'::regclass, oid, 0, tgqual::text FROM pg_trigger
        UNION ALL
        SELECT 'pg_class'::regclass, indexrelid, 0, concat(indexprs::text, indpred::text) FROM pg_index
        UNION ALL
        SELECT 'pg_class'::regclass, oid, 0, relpartbound::text FROM pg_class
        UNION ALL
        SELECT 'pg_type'::regclass, oid, 0, typdefaultbin::text FROM pg_type
        UNION ALL
        SELECT 'pg_publication_rel'::regclass, oid, 0, prqual::text FROM pg_publication_rel
        UNION ALL
        SELECT 'pg_statistic_ext'::regclass, oid, 0, stxexprs::text FROM pg_statistic_ext
    )
    SELECT pg_describe_object(e.class, e.object, e.part),
           string_agg(lpad(to_hex((b.byte::integer + 256) % 256), 2, '0'), '' ORDER BY b.number)
    FROM colcrypt.encrypted_type AS t
         JOIN expression AS e ON e.tree LIKE format('%%:consttype %s %%', t.type)
         CROSS JOIN LATERAL regexp_matches(
             e.tree,
             format('{CONST :consttype %s [^}]*?:constvalue \d+ \[ (?:-?\d+ ){5}(-?\d+) (-?\d+) (-?\d+) (-?\d+) ',
                    t.type),
             'g') WITH ORDINALITY AS m(bytes, number)
         CROSS JOIN LATERAL unnest(m.bytes) WITH ORDINALITY AS b(byte, number)
    WHERE t.is_value
    GROUP BY e.class, e.object, e.part, m.number
    UNION ALL
    -- Arrays and composites: under which keys is not told.
    SELECT DISTINCT pg_describe_object(e.class, e.object, e.part), NULL
    FROM colcrypt.encrypted_type AS t
         JOIN expression AS e ON e.tree ~ format(':consttype %s [^}]*?:constvalue \d', t.type)
    WHERE NOT t.is_value
$$;
COMMENT ON FUNCTION colcrypt.sealed_constants() IS
    'constants in defaults, constraints, views and other expressions, with the keys they are sealed under; NULL for arrays and composites';
REVOKE EXECUTE ON FUNCTION colcrypt.sealed_constants() FROM PUBLIC;

CREATE FUNCTION colcrypt.droppable_keys(
    OUT key_id text,
    OUT name text,
    OUT kind text,
    OUT rows numeric,
    OUT managed_keys bigint,
    OUT constants bigint,
    OUT indexes regclass[],
    OUT may_be_dropped boolean
) RETURNS SETOF record
    LANGUAGE sql STABLE PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
    WITH holder AS MATERIALIZED (
        SELECT a.attrelid AS relation, a.attname AS column_name, e.is_value
        FROM colcrypt.encrypted_type AS e
             JOIN pg_attribute AS a ON a.atttypid = e.type AND NOT a.attisdropped
             JOIN pg_class AS t ON t.oid = a.attrelid AND t.relkind IN ('r', 'm')
        WHERE NOT pg_is_other_temp_schema(t.relnamespace)
          -- Its parent's rows are counted with it.
          AND NOT (a.attinhcount > 0 AND EXISTS (
                  SELECT FROM pg_inherits AS h JOIN pg_class AS p ON p.oid = h.inhparent
                  WHERE h.inhrelid = t.oid AND p.relkind = 'r'))
    ), used AS MATERIALIZED (
        SELECT u.key_id, sum(u.rows) AS rows
        FROM holder AS h
             CROSS JOIN LATERAL colcrypt.key_usage(h.relation, h.column_name) AS u
        WHERE h.is_value
        GROUP BY u.key_id
    ), constant AS MATERIALIZED (
        SELECT c.key_id, count(*) AS constants FROM colcrypt.sealed_constants() AS c GROUP BY c.key_id
    ), key AS MATERIALIZED (
        SELECT k.* FROM colcrypt.keys AS k
    ), mention AS MATERIALIZED (
        SELECT m.key_id, array_agg(m.index ORDER BY m.index) AS indexes
        FROM (
            SELECT DISTINCT i.indexrelid::regclass AS index, x.key_id
            FROM pg_attribute AS a
                 JOIN colcrypt.encrypted_type AS e ON e.type = a.atttypid
                 JOIN pg_class AS c ON c.oid = a.attrelid AND c.relkind = 'i'
                 JOIN pg_index AS i ON i.indexrelid = c.oid
                 CROSS JOIN LATERAL colcrypt.keys_in_index(
                     i.indexrelid, (SELECT array_agg(k.key_id) FROM key AS k)) AS x(key_id)
            WHERE NOT pg_is_other_temp_schema(c.relnamespace)
        ) AS m
        GROUP BY m.key_id
    )
    SELECT k.key_id, k.name, k.kind, coalesce(u.rows, 0), w.keys, coalesce(c.constants, 0),
           coalesce(m.indexes, '{}'),
           k.state = 'retired' AND u.rows IS NULL AND w.keys = 0 AND c.constants IS NULL
               AND m.indexes IS NULL
               -- What arrays and composites are under is not known.
               AND NOT EXISTS (SELECT FROM constant AS x WHERE x.key_id IS NULL)
               AND NOT EXISTS (SELECT FROM holder AS h WHERE NOT h.is_value)
    FROM key AS k
         LEFT JOIN used AS u ON u.key_id = k.key_id
         LEFT JOIN constant AS c ON c.key_id = k.key_id
         LEFT JOIN mention AS m ON m.key_id = k.key_id
         CROSS JOIN LATERAL (SELECT count(*) AS keys FROM key AS m WHERE m.wrapped_by = k.key_id) AS w
    WHERE k.kind IN ('ring', 'data')
$$;
COMMENT ON FUNCTION colcrypt.droppable_keys() IS
    'keys, with what is under each in this database, and whether a key of the past is needed by none of it';
REVOKE EXECUTE ON FUNCTION colcrypt.droppable_keys() FROM PUBLIC;

CREATE FUNCTION colcrypt.keep_masked() RETURNS trigger
    AS 'MODULE_PATHNAME', 'colcrypt_keep_masked'
    LANGUAGE c VOLATILE;
COMMENT ON FUNCTION colcrypt.keep_masked() IS
    'trigger BEFORE UPDATE: keeps the old value of the named columns where the new one is the mask';

CREATE FUNCTION colcrypt.verifications() RETURNS TABLE (
    pid integer,
    relation oid,
    attribute smallint,
    rows_done bigint,
    rows_expected bigint,
    started_at timestamptz
)
    AS 'MODULE_PATHNAME', 'colcrypt_verifications_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED ROWS 10;
COMMENT ON FUNCTION colcrypt.verifications() IS
    'what the view colcrypt.verify_progress shows';

CREATE VIEW colcrypt.verify_progress AS
    SELECT v.pid,
           v.relation::regclass AS relation,
           a.attname AS column_name,
           v.rows_done,
           v.rows_expected,
           v.started_at
    FROM colcrypt.verifications() AS v
         LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = v.relation AND a.attnum = v.attribute;
COMMENT ON VIEW colcrypt.verify_progress IS
    'sessions that run colcrypt.verify_column(), and how far each is; of others only with shared_preload_libraries';
COMMENT ON COLUMN colcrypt.verify_progress.pid IS 'process of the session';
COMMENT ON COLUMN colcrypt.verify_progress.relation IS 'table that is verified';
COMMENT ON COLUMN colcrypt.verify_progress.column_name IS 'column that is verified';
COMMENT ON COLUMN colcrypt.verify_progress.rows_done IS 'values that were opened, or could not be';
COMMENT ON COLUMN colcrypt.verify_progress.rows_expected IS 'rows that the table is believed to have, by its last ANALYZE or VACUUM';
COMMENT ON COLUMN colcrypt.verify_progress.started_at IS 'when it began';
GRANT SELECT ON colcrypt.verify_progress TO PUBLIC;

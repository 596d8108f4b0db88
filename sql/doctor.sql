-- What should be looked into.

CREATE FUNCTION colcrypt.server_findings(
    OUT severity text,
    OUT finding text,
    OUT advice text
) RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'colcrypt_server_findings_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION colcrypt.server_findings() IS
    'what colcrypt.doctor() finds in the server and on its host';
REVOKE EXECUTE ON FUNCTION colcrypt.server_findings() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION colcrypt.server_findings() TO pg_monitor;

-- Values under other keys than new ones get, looked for among the first rows of each
-- column: who wants to know exactly asks colcrypt.key_usage().
CREATE FUNCTION colcrypt.stale_columns(
    OUT relation regclass,
    OUT column_name name,
    OUT key_id text,
    OUT state text,
    OUT loaded boolean
) RETURNS SETOF record
    LANGUAGE plpgsql STABLE PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    FOR relation, column_name IN
        SELECT a.attrelid, a.attname
        FROM colcrypt.encrypted_type AS e
             JOIN pg_attribute AS a ON a.atttypid = e.type AND NOT a.attisdropped
             JOIN pg_class AS t ON t.oid = a.attrelid AND t.relkind IN ('r', 'm')
        WHERE e.is_value
          AND NOT pg_is_other_temp_schema(t.relnamespace)
          AND (t.relkind = 'r' OR t.relispopulated)
          AND has_column_privilege(a.attrelid, a.attnum, 'SELECT')
        ORDER BY a.attrelid::regclass::text, a.attnum
    LOOP
        FOR key_id IN EXECUTE format(
            'SELECT DISTINCT s.key_id
             FROM (SELECT (colcrypt.inspect(t.%I)).key_id FROM ONLY %s AS t LIMIT 1000) AS s
             WHERE s.key_id IS NOT NULL
             ORDER BY s.key_id',
            column_name, relation)
        LOOP
            SELECT k.state, k.loaded INTO state, loaded
            FROM colcrypt.keys AS k WHERE k.key_id = stale_columns.key_id;
            IF state IS DISTINCT FROM 'active' OR NOT loaded THEN
                loaded := coalesce(loaded, false);
                RETURN NEXT;
            END IF;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION colcrypt.stale_columns() IS
    'columns with values, among their first 1000 rows, under keys that are not those of new values';
REVOKE EXECUTE ON FUNCTION colcrypt.stale_columns() FROM PUBLIC;

CREATE FUNCTION colcrypt.doctor(
    OUT severity text,
    OUT finding text,
    OUT advice text
) RETURNS SETOF record
    LANGUAGE sql VOLATILE PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
    WITH setting AS MATERIALIZED (
        SELECT s.name, s.setting FROM pg_settings AS s
    ), encrypted AS MATERIALIZED (
        SELECT a.attrelid, a.attnum, a.attname, e.is_value
        FROM colcrypt.encrypted_type AS e
             JOIN pg_attribute AS a ON a.atttypid = e.type AND NOT a.attisdropped
             JOIN pg_class AS t ON t.oid = a.attrelid AND t.relkind IN ('r', 'p', 'm', 'f')
        WHERE NOT pg_is_other_temp_schema(t.relnamespace)
    ), key AS MATERIALIZED (
        SELECT k.* FROM colcrypt.keys AS k
    ), found(severity, finding, advice) AS (
        SELECT f.severity, f.finding, f.advice FROM colcrypt.server_findings() AS f

        -- Keys
        UNION ALL
        SELECT 'critical',
               format('%s key %s is wrapped under key %s, which is not in the key ring', k.kind,
                      concat_ws(' ', k.name, k.key_id), k.wrapped_by),
               'Add that key to the key ring, behind the primary, reload the configuration, and SELECT colcrypt.rewrap_keys().'
        FROM key AS k
        WHERE k.kind <> 'ring' AND k.state <> 'destroyed' AND NOT k.loaded
        UNION ALL
        SELECT 'info',
               format('%s managed keys are wrapped under key %s, which is not the primary', count(*),
                      k.wrapped_by),
               'SELECT colcrypt.rewrap_keys() before that key leaves the key ring.'
        FROM key AS k
        WHERE k.kind <> 'ring' AND k.loaded
          AND k.wrapped_by IN (SELECT r.key_id FROM key AS r
                               WHERE r.kind = 'ring' AND r.state = 'retired')
        GROUP BY k.wrapped_by
        UNION ALL
        SELECT CASE WHEN s.state = 'destroyed' THEN 'info'
                    WHEN s.loaded THEN 'warning'
                    ELSE 'critical' END,
               format('column %s of %s holds values under key %s, which is %s', s.column_name,
                      s.relation, s.key_id,
                      CASE WHEN s.state = 'destroyed' THEN 'destroyed'
                           WHEN s.loaded THEN 'retired'
                           ELSE 'not in the key ring' END),
               CASE WHEN s.state = 'destroyed' THEN 'They can never be read again.'
                    WHEN s.loaded THEN format('SELECT rotate_column(%L, %L).', s.relation, s.column_name)
                    ELSE 'Put that key back into the key ring, behind the primary.' END
        FROM colcrypt.stale_columns() AS s
        UNION ALL
        SELECT 'warning',
               format('%s holds a constant that is encrypted under %s', c.object,
                      coalesce('key ' || c.key_id || ', which is not that of new values',
                               'a key that cannot be told')),
               'Make it again, so that the constant is encrypted under a key of now.'
        FROM colcrypt.sealed_constants() AS c
             LEFT JOIN key AS k ON k.key_id = c.key_id
        WHERE k.state IS DISTINCT FROM 'active'
        UNION ALL
        SELECT 'critical',
               format('trigger %s of %s is disabled', t.tgname, t.tgrelid::regclass),
               format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I: without it sessions do not hear of changes.',
                      t.tgrelid::regclass, t.tgname)
        FROM pg_trigger AS t
        WHERE t.tgrelid IN ('colcrypt.key'::regclass, 'colcrypt.key_grant'::regclass)
          AND NOT t.tgisinternal AND t.tgenabled = 'D'

        -- Plaintext beside the column
        UNION ALL
        SELECT 'warning',
               format('index %s keeps what an expression makes of column %s of %s',
                      i.indexrelid::regclass, e.attname, e.attrelid::regclass),
               'Drop it, unless what the expression gives may be read by all who get hold of the files.'
        FROM encrypted AS e
             -- As PostgreSQL prints nodes: a variable of this column.
             JOIN pg_index AS i ON i.indrelid = e.attrelid
                  AND i.indexprs::text LIKE format('%%:varattno %s %%', e.attnum)
        UNION ALL
        SELECT 'warning',
               format('statistics %s keep what an expression makes of column %s of %s', s.stxname,
                      e.attname, e.attrelid::regclass),
               'Drop them: the catalog holds the most common values in plaintext.'
        FROM encrypted AS e
             JOIN pg_statistic_ext AS s ON s.stxrelid = e.attrelid AND s.stxexprs IS NOT NULL
             JOIN pg_depend AS d ON d.classid = 'pg_statistic_ext'::regclass AND d.objid = s.oid
                  AND d.refclassid = 'pg_class'::regclass AND d.refobjid = e.attrelid
                  AND d.refobjsubid = e.attnum
        UNION ALL
        SELECT 'warning',
               format('column %s of %s is computed from column %s, and is not encrypted', g.attname,
                      g.attrelid::regclass, e.attname),
               'Drop it, or give it an encrypted type.'
        FROM encrypted AS e
             JOIN pg_attrdef AS f ON f.adrelid = e.attrelid
             JOIN pg_attribute AS g ON g.attrelid = f.adrelid AND g.attnum = f.adnum
                  AND g.attgenerated <> ''
             -- The column is an object of its own here, its default another.
             JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass
                  AND d.refobjid = e.attrelid AND d.refobjsubid = e.attnum
                  AND ((d.classid = 'pg_class'::regclass AND d.objid = g.attrelid
                        AND d.objsubid = g.attnum)
                       OR (d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid))
        WHERE NOT EXISTS (SELECT FROM encrypted AS x
                          WHERE x.attrelid = g.attrelid AND x.attnum = g.attnum)
        UNION ALL
        SELECT DISTINCT 'info',
               format('materialized view %s reads column %s of %s, and has columns that are not encrypted',
                      m.oid::regclass, e.attname, e.attrelid::regclass),
               'See to it that no column of it is the plaintext.'
        FROM encrypted AS e
             JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass
                  AND d.refclassid = 'pg_class'::regclass AND d.refobjid = e.attrelid
                  AND d.refobjsubid = e.attnum
             JOIN pg_rewrite AS r ON r.oid = d.objid
             JOIN pg_class AS m ON m.oid = r.ev_class AND m.relkind = 'm'
        WHERE EXISTS (
            SELECT FROM pg_attribute AS c
            WHERE c.attrelid = m.oid AND c.attnum > 0 AND NOT c.attisdropped
              AND NOT EXISTS (SELECT FROM encrypted AS x
                              WHERE x.attrelid = c.attrelid AND x.attnum = c.attnum))

        -- Plaintext in logs
        UNION ALL
        SELECT 'warning',
               format('statements are logged, with the values in them: %s = %s', s.name, s.setting),
               'Turn it off, or keep the log as safe as the data is to be.'
        FROM setting AS s
        WHERE (s.name = 'log_statement' AND s.setting IN ('mod', 'all'))
           OR (s.name IN ('log_min_duration_statement', 'log_min_duration_sample',
                          'auto_explain.log_min_duration') AND s.setting <> '-1')
           OR (s.name = 'log_transaction_sample_rate' AND s.setting <> '0')
           OR (s.name IN ('debug_print_parse', 'debug_print_rewritten', 'debug_print_plan')
               AND s.setting = 'on')
           OR (s.name = 'log_parameter_max_length_on_error' AND s.setting <> '0')
        UNION ALL
        SELECT 'info',
               'statements that fail are logged, with the values in them',
               'Send values as parameters, or set log_min_error_statement = panic.'
        FROM setting AS s
        WHERE s.name = 'log_min_error_statement' AND s.setting NOT IN ('fatal', 'panic')

        -- Who gets at it
        UNION ALL
        SELECT 'warning',
               format('%s is set for %s', c.setting,
                      concat_ws(' in ', CASE WHEN s.setrole <> 0 THEN 'role ' || s.setrole::regrole END,
                                CASE WHEN s.setdatabase <> 0
                                     THEN 'database ' || (SELECT d.datname FROM pg_database AS d
                                                          WHERE d.oid = s.setdatabase) END)),
               'Leave it set only for as long as it takes.'
        FROM pg_db_role_setting AS s CROSS JOIN LATERAL unnest(s.setconfig) AS c(setting)
        WHERE c.setting ~* '^colcrypt\.dump_plaintext=(on|t|tr|tru|true|y|ye|yes|1)$'
           OR c.setting ~* '^colcrypt\.input=ciphertext$'
        UNION ALL
        SELECT 'warning',
               format('%s is on for this session', s.name),
               'Dumps and replication streams hold plaintext.'
        FROM setting AS s
        WHERE s.name = 'colcrypt.dump_plaintext' AND s.setting = 'on'
        UNION ALL
        SELECT 'info',
               format('%s may bring ciphertext in by %s, and so have any of it decrypted',
                      coalesce(nullif(a.grantee, 0)::regrole::text, 'everybody'), p.oid::regprocedure),
               'REVOKE EXECUTE, unless that is meant.'
        FROM pg_proc AS p CROSS JOIN LATERAL aclexplode(p.proacl) AS a
             JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                  AND d.deptype = 'e'
             JOIN pg_extension AS x ON x.oid = d.refobjid AND x.extname = 'colcrypt'
        WHERE p.proname ~ '^from_(ciphertext|fernet)' AND a.privilege_type = 'EXECUTE'
          AND a.grantee <> p.proowner
        UNION ALL
        SELECT 'warning',
               'connections from other hosts may be without TLS, and carry plaintext',
               'Set ssl = on, and use hostssl in pg_hba.conf.'
        FROM setting AS s
        WHERE s.name = 'ssl' AND s.setting = 'off'
          AND EXISTS (SELECT FROM setting AS l
                           CROSS JOIN LATERAL string_to_table(l.setting, ',') AS address
                      WHERE l.name = 'listen_addresses'
                        AND btrim(address) NOT IN ('', 'localhost', '127.0.0.1', '::1'))
        UNION ALL
        SELECT 'warning',
               format('the extension''s objects are of version %s, its library is of version %s',
                      x.extversion, s.version),
               'ALTER EXTENSION colcrypt UPDATE.'
        FROM pg_extension AS x CROSS JOIN colcrypt.status() AS s
        WHERE x.extname = 'colcrypt' AND x.extversion <> s.version
    )
    SELECT f.severity, f.finding, f.advice
    FROM found AS f
    ORDER BY array_position(ARRAY['critical', 'warning', 'info'], f.severity), f.finding
$$;
COMMENT ON FUNCTION colcrypt.doctor() IS
    'what should be looked into: how bad it is, what it is, and what to do';
REVOKE EXECUTE ON FUNCTION colcrypt.doctor() FROM PUBLIC;

-- From plaintext columns to encrypted ones, and back: one statement, one rewrite.

SELECT colcrypt.for_each_type($template$

CREATE FUNCTION colcrypt.encrypt_value(value @plain@, modifier integer) RETURNS @type@
    AS 'MODULE_PATHNAME', '@type@_encrypt_value'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.encrypt_value(@plain@, integer) IS
    'encrypt(), for encrypt_column(): counts what it does';

CREATE FUNCTION colcrypt.decrypt_value(value @type@) RETURNS @plain@
    AS 'MODULE_PATHNAME', '@type@_decrypt_value'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.decrypt_value(@type@) IS
    'decrypt(), for decrypt_column(): counts what it does';

CREATE FUNCTION colcrypt.is_own_token(value @plain@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_is_own_token'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.is_own_token(@plain@) IS
    'whether from_fernet() would take a value; for encrypt_column(), it counts what it finds';

$template$);

-- Not by a cast to jsonb, whose errors quote the document.
CREATE FUNCTION colcrypt.encrypt_value(value json, modifier integer) RETURNS encrypted_jsonb
    AS 'MODULE_PATHNAME', 'encrypted_jsonb_encrypt_json'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.encrypt_value(json, integer) IS
    'encrypt(), for encrypt_column(): counts what it does';

CREATE FUNCTION colcrypt.migration_counts(
    OUT rows bigint,
    OUT adopted bigint,
    OUT lookalikes bigint
)
    AS 'MODULE_PATHNAME', 'colcrypt_migration_counts'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.migration_counts() IS
    'what encrypt_value(), decrypt_value() and is_own_token() have counted in this session; begins again at zero';

CREATE FUNCTION colcrypt.keep_in_step() RETURNS trigger
    AS 'MODULE_PATHNAME', 'colcrypt_keep_in_step'
    LANGUAGE c VOLATILE;
COMMENT ON FUNCTION colcrypt.keep_in_step() IS
    'trigger of encrypt_column_online(): encrypts one column into another';

-- What stands in the way of another type: what PostgreSQL would refuse too, but one by
-- one, and what it would accept and break.
CREATE FUNCTION colcrypt.migration_obstacles(relation regclass, column_name name)
    RETURNS TABLE (object text, why text)
    LANGUAGE sql STABLE STRICT PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
    WITH part(oid) AS (
        SELECT oid FROM colcrypt.parts(relation) AS oid
    ), col AS MATERIALIZED (
        SELECT a.attrelid, a.attnum, a.attcollation
        FROM part AS p JOIN pg_attribute AS a ON a.attrelid = p.oid
        WHERE a.attname = column_name AND NOT a.attisdropped
    ), dependent AS MATERIALIZED (
        SELECT DISTINCT c.attrelid, c.attnum, c.attcollation, d.classid, d.objid, d.objsubid
        FROM col AS c
             JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass
                  AND d.refobjid = c.attrelid AND d.refobjsubid = c.attnum
    ), found AS (
        SELECT d.classid, d.objid, 0 AS objsubid, 'it reads the column' AS why
        FROM dependent AS d
        WHERE d.classid IN ('pg_rewrite'::regclass, 'pg_policy'::regclass, 'pg_proc'::regclass)
        UNION ALL
        SELECT d.classid, d.objid, 0, 'it names the column'
        FROM dependent AS d
        WHERE d.classid = 'pg_trigger'::regclass
          AND (SELECT g.tgfoid FROM pg_trigger AS g WHERE g.oid = d.objid) <> 'colcrypt.keep_in_step()'::regprocedure
        UNION ALL
        SELECT d.classid, d.objid, 0, 'its list of columns or its row filter names the column'
        FROM dependent AS d
        WHERE d.classid = 'pg_publication_rel'::regclass
        UNION ALL
        SELECT d.classid, d.objid, 0, 'it keeps what an expression makes of the column'
        FROM dependent AS d
             JOIN pg_statistic_ext AS s ON s.oid = d.objid AND s.stxexprs IS NOT NULL
        WHERE d.classid = 'pg_statistic_ext'::regclass
        UNION ALL
        -- The column is an object of its own there, its default another.
        SELECT 'pg_class'::regclass, g.attrelid, g.attnum, 'it is computed from the column'
        FROM dependent AS d
             LEFT JOIN pg_attrdef AS f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid
             JOIN pg_attribute AS g ON g.attgenerated <> ''
                  AND g.attrelid = coalesce(f.adrelid, CASE WHEN d.classid = 'pg_class'::regclass THEN d.objid END)
                  AND g.attnum = coalesce(f.adnum, d.objsubid)
        UNION ALL
        SELECT d.classid, d.objid, 0,
               CASE k.contype WHEN 'f' THEN 'both columns of a foreign key must be encrypted, or none'
                              ELSE 'encrypted values can only be compared for equality' END
        FROM dependent AS d
             JOIN pg_constraint AS k ON k.oid = d.objid AND k.contype IN ('f', 'x')
        WHERE d.classid = 'pg_constraint'::regclass
        UNION ALL
        SELECT 'pg_class'::regclass, i.indexrelid, 0,
               CASE WHEN concat(i.indexprs::text, i.indpred::text)
                             LIKE format('%%:varattno %s %%', c.attnum)
                        THEN 'its expressions or its condition read the column'
                    WHEN m.amname NOT IN ('btree', 'hash')
                        THEN 'encrypted values can be in btree and hash indexes'
                    WHEN m.amname = 'btree' AND o.opcname LIKE '%\_pattern\_ops'
                        THEN 'it orders by pattern'
                    WHEN NOT o.opcdefault THEN 'it has an operator class of its own'
                    ELSE 'it has a collation of its own' END
        FROM col AS c
             JOIN pg_index AS i ON i.indrelid = c.attrelid
             JOIN pg_class AS x ON x.oid = i.indexrelid
             JOIN pg_am AS m ON m.oid = x.relam
             LEFT JOIN LATERAL (
                 SELECT i.indclass[k] AS class, i.indcollation[k] AS collation
                 FROM generate_series(0, i.indnkeyatts - 1) AS k WHERE i.indkey[k] = c.attnum
             ) AS key ON true
             LEFT JOIN pg_opclass AS o ON o.oid = key.class
        WHERE concat(i.indexprs::text, i.indpred::text) LIKE format('%%:varattno %s %%', c.attnum)
           OR (o.oid IS NOT NULL
               AND (m.amname NOT IN ('btree', 'hash') OR key.collation <> c.attcollation
                    OR (NOT o.opcdefault
                        -- encrypt_column() drops those of one column.
                        AND NOT (m.amname = 'btree' AND o.opcname LIKE '%\_pattern\_ops' AND i.indnatts = 1
                                 AND NOT i.indisunique AND i.indpred IS NULL))))
        UNION ALL
        SELECT 'pg_collation'::regclass, l.oid, 0, 'it takes different texts for equal'
        FROM col AS c JOIN pg_collation AS l ON l.oid = c.attcollation AND NOT l.collisdeterministic
    )
    SELECT DISTINCT pg_describe_object(f.classid, f.objid, f.objsubid), f.why
    FROM found AS f
    ORDER BY 1, 2
$$;
COMMENT ON FUNCTION colcrypt.migration_obstacles(regclass, name) IS
    'what must go before a column can be encrypted or decrypted in place, and why';

-- What both directions begin with: locks the table, and gives the column's own type,
-- as the OID of its plain form.
CREATE FUNCTION colcrypt.begin_migration(relation regclass, column_name name)
    RETURNS regtype
    LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kind "char";
    type regtype;
    generated "char";
    inherited integer;
BEGIN
    IF relation IS NULL OR column_name IS NULL THEN
        RAISE 'relation and column_name must be given' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT c.relkind INTO kind FROM pg_class AS c WHERE c.oid = relation;
    IF kind IS NULL THEN
        RAISE 'relation with OID % does not exist', relation::oid USING ERRCODE = 'undefined_table';
    END IF;
    IF kind NOT IN ('r', 'p') THEN
        RAISE '"%" is not a table', relation USING ERRCODE = 'wrong_object_type';
    END IF;
    IF NOT pg_has_role((SELECT c.relowner FROM pg_class AS c WHERE c.oid = relation), 'USAGE') THEN
        RAISE 'must be owner of relation %', relation USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- What it is, and what depends on it, must not change any more.
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', relation);
    SELECT a.atttypid, a.attgenerated, a.attinhcount INTO type, generated, inherited
    FROM pg_attribute AS a
    WHERE a.attrelid = relation AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped;
    IF type IS NULL THEN
        RAISE 'column "%" of relation "%" does not exist', column_name, relation
            USING ERRCODE = 'undefined_column';
    END IF;
    IF generated <> '' THEN
        RAISE 'column "%" is a generated column', column_name USING ERRCODE = 'generated_always';
    END IF;
    IF inherited > 0 THEN
        RAISE 'column "%" of relation "%" is inherited', column_name, relation
            USING ERRCODE = 'invalid_table_definition',
                  HINT = 'Name the table that it is inherited from; the column changes in all of them.';
    END IF;
    PERFORM colcrypt.migration_counts();
    RETURN type;
END
$$;
COMMENT ON FUNCTION colcrypt.begin_migration(regclass, name) IS
    'locks and judges a column that encrypt_column() or decrypt_column() was asked for';

CREATE FUNCTION colcrypt.refuse_obstacles(relation regclass, column_name name, online boolean DEFAULT false)
    RETURNS void
    LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    obstacles text;
BEGIN
    SELECT string_agg(format('%s: %s.', o.object, o.why), E'\n') INTO obstacles
    FROM (
        SELECT * FROM colcrypt.migration_obstacles(relation, column_name)
        UNION
        SELECT * FROM colcrypt.online_obstacles(relation, column_name) WHERE online
        ORDER BY 1, 2
    ) AS o;
    IF obstacles IS NOT NULL THEN
        RAISE 'other objects depend on column "%" of relation "%"', column_name, relation
            USING ERRCODE = 'dependent_objects_still_exist',
                  DETAIL = obstacles,
                  HINT = 'Drop them, call this again, and make them anew where they still have a meaning.';
    END IF;
END
$$;
COMMENT ON FUNCTION colcrypt.refuse_obstacles(regclass, name, boolean) IS
    'the error of encrypt_column() and decrypt_column() that lists what is in the way';

-- What a column of plaintext becomes.
CREATE FUNCTION colcrypt.encrypted_form(
    relation regclass,
    column_name name,
    type regtype,
    key name,
    OUT plain text,
    OUT target text,
    OUT modifier integer
)
    LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    plain := CASE WHEN type IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype) THEN 'text'
                  WHEN type = 'bytea'::regtype THEN 'bytea'
                  WHEN type IN ('json'::regtype, 'jsonb'::regtype) THEN 'jsonb' END;
    modifier := -1;
    IF plain IS NULL THEN
        RAISE 'column "%" of relation "%" is of type %', column_name, relation, type
            USING ERRCODE = 'datatype_mismatch',
                  HINT = CASE WHEN type IN (SELECT t.type FROM colcrypt.encrypted_type AS t)
                              THEN 'It is encrypted already. rotate_column() moves it to another key.'
                              ELSE 'Columns of type text, varchar, char, bytea, json and jsonb can be '
                                   'encrypted. ALTER TABLE gives it one of these types.' END;
    END IF;
    target := format('%s.%I', '@extschema@', 'encrypted_' || plain);
    IF key IS NOT NULL THEN
        modifier := colcrypt.modifier_of_key(key);
        target := format('%s(%L)', target, key);
    END IF;
END
$$;
COMMENT ON FUNCTION colcrypt.encrypted_form(regclass, name, regtype, name) IS
    'the encrypted type for a column of a plain one';

CREATE FUNCTION encrypt_column(relation regclass, column_name name, key name DEFAULT NULL)
    RETURNS bigint
    LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    type regtype := colcrypt.begin_migration(relation, column_name);
    form record := colcrypt.encrypted_form(relation, column_name, type, key);
    plain CONSTANT text := form.plain;
    sealed text;
    index regclass;
    count record;
BEGIN
    PERFORM colcrypt.refuse_obstacles(relation, column_name);
    sealed := format('colcrypt.encrypt_value(%I::%s, %s)', column_name,
                     CASE type WHEN 'json'::regtype THEN 'json' ELSE plain END, form.modifier);
    -- Who may not bring ciphertext in could have it decrypted here.
    IF plain = 'text' AND has_function_privilege('@extschema@.from_fernet(text)', 'EXECUTE')
       OR plain = 'bytea' AND has_function_privilege('@extschema@.from_fernet_bytea(text)', 'EXECUTE') THEN
        sealed := format(
            'CASE WHEN colcrypt.is_own_token(%1$I::%2$s) THEN %6$s.%3$I(%4$s) ELSE %5$s END',
            column_name, plain, CASE plain WHEN 'text' THEN 'from_fernet' ELSE 'from_fernet_bytea' END,
            CASE plain WHEN 'text' THEN format('%I::text', column_name)
                       ELSE format('encode(%I, ''escape'')', column_name) END,
            sealed, '@extschema@');
    END IF;
    -- Django makes one beside each unique text column, for LIKE.
    FOR index IN
        SELECT i.indexrelid
        FROM pg_inherits AS h
             RIGHT JOIN pg_index AS i ON i.indexrelid = h.inhrelid
             JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attname = column_name
             JOIN pg_opclass AS o ON o.oid = i.indclass[0]
             JOIN pg_am AS m ON m.oid = o.opcmethod AND m.amname = 'btree'
        WHERE i.indrelid IN (SELECT colcrypt.parts(relation))
          AND i.indkey[0] = a.attnum AND i.indnatts = 1 AND o.opcname LIKE '%\_pattern\_ops'
          -- One of a partition goes with its parent's.
          AND h.inhparent IS NULL
    LOOP
        RAISE NOTICE 'dropping index %: it orders by pattern, which means nothing on encrypted values', index;
        EXECUTE format('DROP INDEX %s', index);
    END LOOP;
    EXECUTE format('ALTER TABLE %s ALTER COLUMN %I TYPE %s USING %s', relation, column_name, form.target, sealed);
    SELECT * INTO count FROM colcrypt.migration_counts();
    IF count.adopted > 0 THEN
        RAISE NOTICE 'adopted % values that were Fernet tokens of keys in the key ring', count.adopted;
    END IF;
    IF count.lookalikes > 0 THEN
        RAISE NOTICE 'encrypted % values that look like Fernet tokens', count.lookalikes
            USING HINT = 'They are not of a key in the key ring, or you may not EXECUTE from_fernet(). '
                         'They read as the tokens that they were.';
    END IF;
    RETURN count.rows;
END
$$;
COMMENT ON FUNCTION encrypt_column(regclass, name, name) IS
    'encrypt a plaintext column in place: the table is locked and rewritten; gives the number of values';

CREATE FUNCTION decrypt_column(relation regclass, column_name name) RETURNS bigint
    LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    type regtype := colcrypt.begin_migration(relation, column_name);
    plain text;
    expression text;
    actions text;
    mask text;
BEGIN
    SELECT substr(t.typname, length('encrypted_') + 1) INTO plain
    FROM pg_type AS t
         JOIN pg_proc AS p ON p.pronamespace = 'colcrypt'::regnamespace AND p.proname = 'inspect'
              AND p.proargtypes[0] = t.oid
    WHERE t.oid = type;
    IF plain IS NULL THEN
        RAISE 'column "%" of relation "%" is of type %', column_name, relation, type
            USING ERRCODE = 'datatype_mismatch',
                  HINT = 'Columns of the types encrypted_text, encrypted_bytea and encrypted_jsonb can be decrypted.';
    END IF;
    IF current_setting('colcrypt.access') <> 'full' THEN
        RAISE 'permission denied to decrypt: colcrypt.access is "%"', current_setting('colcrypt.access')
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM colcrypt.refuse_obstacles(relation, column_name);
    actions := format('ALTER COLUMN %1$I TYPE %2$s USING colcrypt.decrypt_value(%1$I)', column_name, plain);
    -- A default is printed in plaintext, and its cast to the encrypted type not at all.
    SELECT pg_get_expr(d.adbin, d.adrelid) INTO expression
    FROM pg_attrdef AS d JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    WHERE d.adrelid = relation AND a.attname = column_name;
    IF expression IS NOT NULL THEN
        IF EXISTS (SELECT FROM pg_attrdef AS d
                        JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
                   WHERE d.adrelid = relation AND a.attname = column_name
                     AND d.adbin::text LIKE format('{CONST :consttype %s %%', type::oid)) THEN
            -- Printed as this session sees it.
            EXECUTE format('SELECT (%s)::%s::text', expression, plain) INTO expression;
            mask := current_setting('colcrypt.mask');
            IF expression IN (mask, to_json(mask)::text, convert_to(mask, 'UTF8')::text)
               OR expression ~ '^"?<undecryptable' THEN
                RAISE 'the default of column "%" of relation "%" cannot be read', column_name, relation
                    USING ERRCODE = 'object_not_in_prerequisite_state',
                          HINT = 'Drop the default, or see to it that its key is there and yours to use.';
            END IF;
            expression := quote_nullable(expression);
        END IF;
        actions := format('ALTER COLUMN %1$I DROP DEFAULT, %2$s, ALTER COLUMN %1$I SET DEFAULT %3$s',
                          column_name, actions, expression);
    END IF;
    EXECUTE format('ALTER TABLE %s %s', relation, actions);
    RETURN (SELECT c.rows FROM colcrypt.migration_counts() AS c);
END
$$;
COMMENT ON FUNCTION decrypt_column(regclass, name) IS
    'make an encrypted column one of plaintext again: the table is locked and rewritten; gives the number of values';

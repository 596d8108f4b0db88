-- encrypt_column_online(): an encrypted column is added beside the plaintext one, a
-- trigger keeps it in step, batches fill it, and in the end it takes the other one's
-- name and place in constraints and indexes. The batches are those of
-- rotate_column_online(), with a row in colcrypt.rotation.

CREATE FUNCTION colcrypt.begin_encryption_job(
    relation regclass,
    column_name name,
    shadow name,
    batch_size integer,
    pause interval,
    lock_timeout interval
) RETURNS integer
    AS 'MODULE_PATHNAME', 'colcrypt_begin_encryption_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.begin_encryption_job(regclass, name, name, integer, interval, interval) IS
    'for encrypt_column_online(): makes a row of colcrypt.rotation, or takes one up that did not end';

CREATE FUNCTION colcrypt.end_encryption_job(job integer, state text, phase text) RETURNS void
    AS 'MODULE_PATHNAME', 'colcrypt_end_encryption_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.end_encryption_job(integer, text, text) IS
    'for encrypt_column_online(): ends a job, for now or for good';

CREATE FUNCTION colcrypt.verified_parts(job integer) RETURNS oid[]
    AS 'MODULE_PATHNAME', 'colcrypt_verified_parts_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.verified_parts(integer) IS
    'for encrypt_column_online(): the tables that the last pass went through';

-- The encrypted column beside a plaintext one.
CREATE FUNCTION colcrypt.shadow_of(relation regclass, column_name name) RETURNS name
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT convert_from(split_part(t.arguments, '\000', 2)::bytea, getdatabaseencoding())::name
    FROM pg_trigger AS g, encode(g.tgargs, 'escape') AS t(arguments)
    WHERE g.tgrelid = relation AND g.tgfoid = 'colcrypt.keep_in_step()'::regprocedure
      AND convert_from(split_part(t.arguments, '\000', 1)::bytea, getdatabaseencoding())::name = column_name
    UNION
    -- Somebody has dropped the trigger.
    SELECT a.attname FROM pg_attribute AS a
    WHERE a.attrelid = relation AND a.attname = 'colcrypt ' || column_name
      AND a.atttypid IN (SELECT y.type FROM colcrypt.encrypted_type AS y)
$$;
COMMENT ON FUNCTION colcrypt.shadow_of(regclass, name) IS
    'for encrypt_column_online(): the encrypted column beside a plaintext one, if there is one';

CREATE FUNCTION colcrypt.column_options(relation oid, number smallint) RETURNS SETOF text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT o FROM pg_attribute AS a, unnest(a.attoptions) AS o
    WHERE a.attrelid = relation AND a.attnum = number
      -- PostgreSQL's own.
      AND o NOT LIKE 'pg\_%'
$$;
COMMENT ON FUNCTION colcrypt.column_options(oid, smallint) IS 'what ALTER COLUMN SET (...) has set';

-- What only a column that stays where it is could keep.
CREATE FUNCTION colcrypt.online_obstacles(relation regclass, column_name name)
    RETURNS TABLE (object text, why text)
    LANGUAGE sql STABLE STRICT PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
    WITH part(oid) AS MATERIALIZED (
        SELECT p.oid FROM colcrypt.parts(relation) AS p(oid)
    ), col AS MATERIALIZED (
        SELECT a.attrelid, a.attnum
        FROM part AS p JOIN pg_attribute AS a ON a.attrelid = p.oid
        WHERE a.attname = column_name AND NOT a.attisdropped
    )
    SELECT pg_describe_object('pg_class'::regclass, p.oid, 0),
           'it inherits the table: only partitions have the trigger of their parent'
    FROM part AS p JOIN pg_class AS c ON c.oid = p.oid
    WHERE p.oid <> relation AND NOT c.relispartition
    UNION
    SELECT pg_describe_object('pg_class'::regclass, p.oid, 0), 'another server stores it'
    FROM part AS p JOIN pg_class AS c ON c.oid = p.oid AND c.relkind = 'f'
    UNION
    SELECT pg_describe_object('pg_class'::regclass, c.attrelid, 0), 'it is partitioned by the column'
    FROM col AS c JOIN pg_partitioned_table AS t ON t.partrelid = c.attrelid
    WHERE c.attnum = ANY (t.partattrs) OR t.partexprs::text LIKE format('%%:varattno %s %%', c.attnum)
    UNION
    SELECT pg_describe_object('pg_publication'::regclass, p.oid, 0),
           'its subscribers do not have the column that is added'
    FROM part JOIN LATERAL (
             SELECT r.prpubid AS oid FROM pg_publication_rel AS r WHERE r.prrelid = part.oid
             UNION
             SELECT n.pnpubid FROM pg_publication_namespace AS n JOIN pg_class AS c ON c.relnamespace = n.pnnspid
             WHERE c.oid = part.oid
             UNION
             SELECT a.oid FROM pg_publication AS a WHERE a.puballtables
         ) AS p ON true
    UNION
    SELECT pg_describe_object('pg_constraint'::regclass, k.oid, 0), 'it is a constraint of a partition only'
    FROM col AS c JOIN pg_constraint AS k ON k.conrelid = c.attrelid AND c.attnum = ANY (k.conkey)
    WHERE c.attrelid <> relation AND k.coninhcount = 0
    UNION
    SELECT pg_describe_object('pg_constraint'::regclass, k.oid, 0),
           'PostgreSQL makes no constraint of a partitioned table of an index: make it a unique index'
    FROM col AS c JOIN pg_constraint AS k ON k.conrelid = c.attrelid AND c.attnum = ANY (k.conkey)
         JOIN pg_class AS t ON t.oid = c.attrelid AND t.relkind = 'p'
    WHERE c.attrelid = relation AND k.contype IN ('p', 'u')
    UNION
    -- tgtype: of rows (1), before (2), INSERT (4) or UPDATE (16).
    SELECT pg_describe_object('pg_trigger'::regclass, g.oid, 0),
           'it fires after the trigger that encrypts what it may change: its name sorts after "~colcrypt"'
    FROM part AS p JOIN pg_trigger AS g ON g.tgrelid = p.oid
    WHERE NOT g.tgisinternal AND g.tgtype & 3 = 3 AND g.tgtype & 20 <> 0
      AND g.tgname > '~colcrypt'::name COLLATE "C"
      AND g.tgfoid <> 'colcrypt.keep_in_step()'::regprocedure
    UNION
    SELECT pg_describe_object('pg_class'::regclass, a.attrelid, a.attnum), 'the table that it is a part of has it otherwise: ' || own.what
    FROM col AS c
         JOIN pg_attribute AS a ON a.attrelid = c.attrelid AND a.attnum = c.attnum
         JOIN pg_attribute AS r ON r.attrelid = relation AND r.attname = a.attname
         CROSS JOIN LATERAL (VALUES
             ('NOT NULL', a.attnotnull <> r.attnotnull),
             ('default', (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef AS d
                          WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum)
                         IS DISTINCT FROM
                         (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef AS d
                          WHERE d.adrelid = r.attrelid AND d.adnum = r.attnum)),
             ('statistics target', a.attstattarget IS DISTINCT FROM r.attstattarget),
             ('options', EXISTS (SELECT FROM colcrypt.column_options(a.attrelid, a.attnum))),
             ('comment', col_description(a.attrelid, a.attnum) IS NOT NULL),
             ('privileges', a.attacl IS NOT NULL)
         ) AS own(what, differs)
    WHERE c.attrelid <> relation AND own.differs
    UNION
    SELECT pg_describe_object('pg_class'::regclass, i.indexrelid, 0), 'it is an index of a partition only'
    FROM col AS c
         JOIN pg_index AS i ON i.indrelid = c.attrelid AND c.attnum = ANY (i.indkey)
    WHERE c.attrelid <> relation AND NOT EXISTS (SELECT FROM pg_inherits AS h WHERE h.inhrelid = i.indexrelid)
    UNION
    SELECT pg_describe_object(d.classid, d.objid, d.objsubid), 'it is about the column'
    FROM col AS c JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass
         AND d.refobjid = c.attrelid AND d.refobjsubid = c.attnum
    WHERE d.classid = 'pg_statistic_ext'::regclass
$$;
COMMENT ON FUNCTION colcrypt.online_obstacles(regclass, name) IS
    'what must go before encrypt_column_online() can encrypt a column, and why';

-- What the table has on the plaintext column, as it would be on the encrypted one: in
-- PostgreSQL's own words, while that has its name. Needs the table for itself.
CREATE FUNCTION colcrypt.wanted_indexes(relation regclass, column_name name)
    RETURNS TABLE (index oid, name name, is_unique boolean, rest text, twin oid)
    LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    shadow CONSTANT name := colcrypt.shadow_of(relation, column_name);
    plain_number CONSTANT smallint := (
        SELECT a.attnum FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = column_name);
    shadow_number CONSTANT smallint := (
        SELECT a.attnum FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = shadow);
    there record;
    -- Indexes of the encrypted column, each with its definition behind it.
    made text[] := '{}';
BEGIN
    FOR there IN
        SELECT i.indexrelid AS oid, i.indisunique,
               substr(pg_get_indexdef(i.indexrelid),
                      length(format('CREATE %sINDEX %I', CASE WHEN i.indisunique THEN 'UNIQUE ' END, c.relname)) + 1)
                   AS rest
        FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
        WHERE i.indrelid = relation AND shadow_number = ANY (i.indkey) AND i.indisvalid
    LOOP
        made := made || ARRAY[there.oid::text, there.indisunique::text || there.rest];
    END LOOP;
    EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO "~colcrypt"', relation, shadow);
    EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO %I', relation, column_name, shadow);
    FOR index, name, is_unique, rest IN
        SELECT i.indexrelid, c.relname, i.indisunique,
               substr(pg_get_indexdef(i.indexrelid),
                      length(format('CREATE %sINDEX %I', CASE WHEN i.indisunique THEN 'UNIQUE ' END, c.relname)) + 1)
        FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
        WHERE i.indrelid = relation AND plain_number = ANY (i.indkey)
              -- Django makes one beside each unique text column, for LIKE.
              AND NOT EXISTS (SELECT FROM pg_opclass AS o WHERE o.oid = i.indclass[0] AND i.indkey[0] = plain_number
                              AND o.opcname LIKE '%\_pattern\_ops')
        ORDER BY c.relname
    LOOP
        twin := NULL;
        FOR n IN 1 .. cardinality(made) BY 2 LOOP
            IF made[n + 1] = is_unique::text || rest THEN
                twin := made[n]::oid;
                -- For no other one.
                made[n + 1] := '';
                EXIT;
            END IF;
        END LOOP;
        RETURN NEXT;
    END LOOP;
    EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO %I', relation, shadow, column_name);
    EXECUTE format('ALTER TABLE %s RENAME COLUMN "~colcrypt" TO %I', relation, shadow);
END
$$;
COMMENT ON FUNCTION colcrypt.wanted_indexes(regclass, name) IS
    'for encrypt_column_online(): the indexes that the encrypted column must have, and which it has';

CREATE FUNCTION colcrypt.prepare_encryption(
    relation regclass,
    column_name name,
    key name,
    batch_size integer,
    pause interval,
    lock_timeout interval
) RETURNS integer
    LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- Of the trigger, and of the constraint that stands for NOT NULL.
    marked name;
    type regtype;
    form record;
    shadow name;
    part regclass;
BEGIN
    IF batch_size IS NULL OR pause IS NULL OR lock_timeout IS NULL THEN
        RAISE 'batch_size, pause and lock_timeout must be given' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT date_part('epoch', lock_timeout) BETWEEN 0.001 AND 1000000 THEN
        RAISE 'lock_timeout must be more than 0, and 1000000 seconds at most' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM set_config('lock_timeout', ceil(date_part('epoch', lock_timeout) * 1000)::text, true);
    type := colcrypt.begin_migration(relation, column_name);
    IF type IN (SELECT t.type FROM colcrypt.encrypted_type AS t)
       AND EXISTS (SELECT FROM pg_constraint AS k WHERE k.conrelid = relation AND colcrypt.is_to_be_validated(k.oid))
    THEN
        -- A call has ended just before that.
        RETURN NULL;
    END IF;
    shadow := colcrypt.shadow_of(relation, column_name);
    IF shadow IS NULL THEN
        form := colcrypt.encrypted_form(relation, column_name, type, key);
        PERFORM colcrypt.refuse_obstacles(relation, column_name, online => true);
        -- A long name is cut off, and must be one of a kind nevertheless.
        shadow := 'colcrypt ' || CASE WHEN octet_length(column_name) > 53 THEN
            (SELECT a.attnum || ' ' FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = column_name)
            ELSE '' END || column_name;
        marked := '~' || shadow;
        EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s', relation, shadow, form.target);
        EXECUTE format('CREATE TRIGGER %I BEFORE INSERT OR UPDATE ON %s FOR EACH ROW '
                       -- So that neither column can be dropped or be of another type.
                       'WHEN (NEW.%I IS NOT NULL OR NEW.%I IS NOT NULL OR true) '
                       'EXECUTE FUNCTION colcrypt.keep_in_step(%L, %L)',
                       marked, relation, column_name, shadow, column_name, shadow);
        -- Also for rows that replication brings.
        FOR part IN SELECT g.tgrelid FROM pg_trigger AS g
                    WHERE g.tgfoid = 'colcrypt.keep_in_step()'::regprocedure
                      AND g.tgrelid IN (SELECT p.oid FROM colcrypt.parts(relation) AS p(oid)) LOOP
            EXECUTE format('ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER %I', part, marked);
        END LOOP;
        IF (SELECT a.attnotnull FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = column_name) THEN
            -- Once it is validated, SET NOT NULL need not look at the rows.
            EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I CHECK (%I IS NOT NULL) NOT VALID',
                           relation, marked, shadow);
        END IF;
    END IF;
    IF key IS NOT NULL AND colcrypt.modifier_of_key(key) IS DISTINCT FROM (
        SELECT a.atttypmod FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = shadow)
    THEN
        RAISE 'column "%" of relation "%" is being encrypted under another key', column_name, relation
            USING ERRCODE = 'invalid_parameter_value', HINT = 'SELECT abort_encrypt_column() and begin again.';
    END IF;
    RETURN colcrypt.begin_encryption_job(relation, column_name, shadow, batch_size, pause, lock_timeout);
END
$$;
COMMENT ON FUNCTION colcrypt.prepare_encryption(regclass, name, name, integer, interval, interval) IS
    'for encrypt_column_online(): adds the encrypted column and the trigger that keeps it in step; gives the number of the job, NULL if all is done but the validation of constraints';

CREATE FUNCTION colcrypt.is_to_be_validated(constraint_ oid) RETURNS boolean
    LANGUAGE sql STABLE STRICT PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(split_part(obj_description(constraint_, 'pg_constraint'), E'\n', 1)
                    = 'to be validated by encrypt_column_online()', false)
$$;
COMMENT ON FUNCTION colcrypt.is_to_be_validated(oid) IS
    'for encrypt_column_online(): whether a constraint is one that it has made without looking at the rows';

CREATE FUNCTION colcrypt.validate_encryption(relation regclass, column_name name) RETURNS void
    LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- Of the trigger, and of the constraint that stands for NOT NULL.
    marked CONSTANT name := '~' || colcrypt.shadow_of(relation, column_name);
    unproven record;
BEGIN
    FOR unproven IN
        SELECT k.conname, CASE WHEN colcrypt.is_to_be_validated(k.oid) THEN obj_description(k.oid, 'pg_constraint') END AS comment
        FROM pg_constraint AS k JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey)
        WHERE k.conrelid = relation AND k.contype = 'c' AND NOT k.convalidated
          AND (a.attname = column_name OR a.attname = colcrypt.shadow_of(relation, column_name))
          AND (k.conname = marked OR colcrypt.is_to_be_validated(k.oid))
    LOOP
        EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', relation, unproven.conname);
        -- Its own comment comes behind the mark.
        EXECUTE format('COMMENT ON CONSTRAINT %I ON %s IS %L', unproven.conname, relation,
                       nullif(substr(unproven.comment, length(split_part(unproven.comment, E'\n', 1)) + 2), ''));
    END LOOP;
END
$$;
COMMENT ON FUNCTION colcrypt.validate_encryption(regclass, name) IS
    'for encrypt_column_online(): validates constraints, without locking the table against writing';

CREATE FUNCTION colcrypt.swap_encryption(relation regclass, column_name name, job integer, lock_timeout interval)
    RETURNS boolean
    LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- Of the trigger, and of the constraint that stands for NOT NULL.
    marked CONSTANT name := '~' || colcrypt.shadow_of(relation, column_name);
    shadow name;
    plain pg_attribute;
    wanted record;
    constraint_ record;
    granted record;
    statements text[] := '{}';
    missing text[] := '{}';
    checks text[] := '{}';
    default_ text;
    options text;
    not_null name;
    description text;
    is_partitioned boolean := (SELECT c.relkind = 'p' FROM pg_class AS c WHERE c.oid = relation);
    statement text;
BEGIN
    PERFORM set_config('lock_timeout', ceil(date_part('epoch', lock_timeout) * 1000)::text, true);
    PERFORM colcrypt.begin_migration(relation, column_name);
    shadow := colcrypt.shadow_of(relation, column_name);
    IF shadow IS NULL OR EXISTS (
        SELECT FROM colcrypt.parts(relation) AS p(oid)
        WHERE (SELECT c.relkind FROM pg_class AS c WHERE c.oid = p.oid) = 'r' AND NOT EXISTS (
            SELECT FROM pg_trigger AS g
            WHERE g.tgrelid = p.oid AND g.tgfoid = 'colcrypt.keep_in_step()'::regprocedure AND g.tgenabled = 'A'
              AND g.tgname = marked))
    THEN
        RAISE 'the trigger that keeps the columns of relation % in step is not there or disabled', relation
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'SELECT abort_encrypt_column() and begin again.';
    END IF;
    IF (SELECT p.state FROM colcrypt.rotation_progress AS p WHERE p.job = swap_encryption.job) IN ('paused', 'cancelled') THEN
        RAISE 'the encryption of column "%" of relation "%" was stopped', column_name, relation
            USING ERRCODE = 'query_canceled',
                  HINT = 'CALL encrypt_column_online() again to go on, or SELECT abort_encrypt_column().';
    END IF;
    PERFORM colcrypt.refuse_obstacles(relation, column_name, online => true);
    -- Partitions that came later were not verified.
    IF EXISTS (SELECT p.oid FROM colcrypt.parts(relation) AS p(oid) JOIN pg_class AS c ON c.oid = p.oid
               WHERE c.relkind = 'r'
               EXCEPT
               SELECT unnest(r.verified) FROM colcrypt.verified_parts(job) AS r(verified)) THEN
        RETURN NULL;
    END IF;
    SELECT * INTO plain FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = column_name;

    FOR wanted IN SELECT * FROM colcrypt.wanted_indexes(relation, column_name) LOOP
        IF wanted.twin IS NULL THEN
            missing := missing || format('CREATE %sINDEX%s%s;', CASE WHEN wanted.is_unique THEN 'UNIQUE ' END,
                CASE WHEN NOT is_partitioned THEN ' CONCURRENTLY' END,
                CASE WHEN is_partitioned THEN replace(wanted.rest, ' ON ONLY ', ' ON ') ELSE wanted.rest END);
            CONTINUE;
        END IF;
        SELECT k.conname, k.contype, k.condeferrable, k.condeferred, obj_description(k.oid, 'pg_constraint') AS comment
        INTO constraint_
        FROM pg_constraint AS k WHERE k.conindid = wanted.index AND k.conrelid = relation AND k.contype IN ('p', 'u');
        IF FOUND THEN
            statements := statements || format('ALTER TABLE %s DROP CONSTRAINT %I', relation, constraint_.conname)
                || format('ALTER TABLE %s ADD CONSTRAINT %I %s USING INDEX %I%s', relation, constraint_.conname,
                          CASE constraint_.contype WHEN 'p' THEN 'PRIMARY KEY' ELSE 'UNIQUE' END,
                          (SELECT c.relname FROM pg_class AS c WHERE c.oid = wanted.twin),
                          CASE WHEN constraint_.condeferred THEN ' DEFERRABLE INITIALLY DEFERRED'
                               WHEN constraint_.condeferrable THEN ' DEFERRABLE' END)
                || format('COMMENT ON CONSTRAINT %I ON %s IS %L', constraint_.conname, relation, constraint_.comment);
        ELSE
            statements := statements || format('DROP INDEX %s', wanted.index::regclass)
                || format('ALTER INDEX %s RENAME TO %I', wanted.twin::regclass, wanted.name);
        END IF;
        SELECT obj_description(wanted.index, 'pg_class') INTO description;
        IF description IS NOT NULL THEN
            statements := statements || format('COMMENT ON INDEX %s.%I IS %L',
                (SELECT c.relnamespace::regnamespace FROM pg_class AS c WHERE c.oid = wanted.index), wanted.name, description);
        END IF;
        IF (SELECT i.indisclustered FROM pg_index AS i WHERE i.indexrelid = wanted.index) THEN
            statements := statements || format('ALTER TABLE %s CLUSTER ON %I', relation, wanted.name);
        END IF;
        IF (SELECT i.indisreplident FROM pg_index AS i WHERE i.indexrelid = wanted.index) THEN
            statements := statements || format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', relation, wanted.name);
        END IF;
    END LOOP;
    IF missing <> '{}' THEN
        RAISE NOTICE 'column "%" of relation % is encrypted and kept in step; indexes are missing', column_name, relation
            USING DETAIL = array_to_string(missing, E'\n'),
                  HINT = 'Run these, and CALL encrypt_column_online() again.';
        PERFORM colcrypt.end_encryption_job(job, 'paused', 'waiting for indexes');
        RETURN false;
    END IF;

    IF plain.attnotnull THEN
        statements := ARRAY[format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', relation, shadow),
                            format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS %I', relation, marked)] || statements;
    ELSE
        statements := format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS %I', relation, marked) || statements;
    END IF;
    SELECT k.conname INTO not_null FROM pg_constraint AS k
    WHERE k.conrelid = relation AND k.contype = 'n' AND k.conkey = ARRAY[plain.attnum];
    SELECT pg_get_expr(d.adbin, d.adrelid) INTO default_ FROM pg_attrdef AS d
    WHERE d.adrelid = relation AND d.adnum = plain.attnum;
    description := col_description(relation, plain.attnum);
    SELECT string_agg(o, ', ') INTO options FROM colcrypt.column_options(relation, plain.attnum) AS o;
    -- A constraint goes with the plaintext column, and comes again in the same words.
    FOR constraint_ IN
        SELECT k.conname, pg_get_constraintdef(k.oid) AS definition, k.convalidated,
               obj_description(k.oid, 'pg_constraint') AS comment
        FROM pg_constraint AS k
        WHERE k.conrelid = relation AND k.contype = 'c' AND plain.attnum = ANY (k.conkey)
    LOOP
        statements := statements || format('ALTER TABLE %s DROP CONSTRAINT %I', relation, constraint_.conname);
        IF constraint_.convalidated THEN
            checks := checks
                || format('ALTER TABLE %s ADD CONSTRAINT %I %s NOT VALID', relation, constraint_.conname, constraint_.definition)
                || format('COMMENT ON CONSTRAINT %I ON %s IS %L', constraint_.conname, relation,
                          concat_ws(E'\n', 'to be validated by encrypt_column_online()', constraint_.comment));
        ELSE
            checks := checks
                || format('ALTER TABLE %s ADD CONSTRAINT %I %s', relation, constraint_.conname, constraint_.definition)
                || format('COMMENT ON CONSTRAINT %I ON %s IS %L', constraint_.conname, relation, constraint_.comment);
        END IF;
    END LOOP;
    statements := statements
        || format('DROP TRIGGER %I ON %s', marked, relation)
        || format('ALTER TABLE %s DROP COLUMN %I', relation, column_name)
        || format('ALTER TABLE %s RENAME COLUMN %I TO %I', relation, shadow, column_name)
        || checks;
    FOREACH statement IN ARRAY statements LOOP
        EXECUTE statement;
    END LOOP;
    -- Since 18 NOT NULL is a constraint, with a name that was made of the column's.
    SELECT format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', relation, k.conname, not_null) INTO statement
    FROM pg_constraint AS k JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND k.conkey = ARRAY[a.attnum]
    WHERE k.conrelid = relation AND k.contype = 'n' AND a.attname = column_name AND k.conname <> not_null;
    IF FOUND THEN
        EXECUTE statement;
    END IF;
    IF default_ IS NOT NULL THEN
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %s', relation, column_name, default_);
    END IF;
    IF description IS NOT NULL THEN
        EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', relation, column_name, description);
    END IF;
    IF options IS NOT NULL THEN
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET (%s)', relation, column_name, options);
    END IF;
    IF plain.attstattarget >= 0 THEN
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET STATISTICS %s', relation, column_name, plain.attstattarget);
    END IF;
    FOR granted IN
        SELECT x.privilege_type, x.is_grantable,
               CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END AS grantee
        FROM aclexplode(plain.attacl) AS x
    LOOP
        EXECUTE format('GRANT %s (%I) ON %s TO %s%s', granted.privilege_type, column_name, relation, granted.grantee,
                       CASE WHEN granted.is_grantable THEN ' WITH GRANT OPTION' END);
    END LOOP;
    PERFORM colcrypt.end_encryption_job(job, 'done', 'done');
    RAISE NOTICE 'column "%" of relation % is encrypted; it is the last column now', column_name, relation
        USING HINT = format('The plaintext is still in the files of the table: VACUUM FULL %s; removes it there.', relation);
    RETURN true;
END
$$;
COMMENT ON FUNCTION colcrypt.swap_encryption(regclass, name, integer, interval) IS
    'for encrypt_column_online(): puts the encrypted column in place of the plaintext one; false if indexes are missing, NULL if there are new partitions';

CREATE FUNCTION colcrypt.prevent_in_transaction() RETURNS void
    AS 'MODULE_PATHNAME', 'colcrypt_prevent_in_transaction_wrapper'
    LANGUAGE c VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.prevent_in_transaction() IS
    'for encrypt_column_online(): an error inside a transaction block';

-- As rotate_column_online(): nothing that depends on the search path.
CREATE PROCEDURE encrypt_column_online(
    relation regclass,
    column_name name,
    key name DEFAULT NULL,
    batch_size integer DEFAULT 1000,
    pause interval DEFAULT '0',
    lock_timeout interval DEFAULT '1 second'
)
    LANGUAGE plpgsql
AS $$
DECLARE
    job pg_catalog.int4;
    wait pg_catalog.float8;
    swapped pg_catalog.bool;
BEGIN
    PERFORM colcrypt.prevent_in_transaction();
    -- Others must not queue behind a lock that cannot be had.
    LOOP
        BEGIN
            job := colcrypt.prepare_encryption(
                relation, column_name, key, batch_size, pause, lock_timeout);
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            RAISE NOTICE 'the table is in use; trying again';
        END;
        COMMIT;
        CALL colcrypt.wait_for_next_batch(1);
    END LOOP;
    WHILE job IS NOT NULL LOOP
        LOOP
            COMMIT;
            wait := colcrypt.rotation_step(job);
            EXIT WHEN wait IS NULL;
            COMMIT;
            CALL colcrypt.wait_for_next_batch(wait);
        END LOOP;
        COMMIT;
        PERFORM colcrypt.validate_encryption(relation, column_name);
        LOOP
            COMMIT;
            BEGIN
                swapped := colcrypt.swap_encryption(relation, column_name, job, lock_timeout);
                EXIT;
            EXCEPTION WHEN lock_not_available THEN
                RAISE NOTICE 'the table is in use; trying again';
            END;
            COMMIT;
            CALL colcrypt.wait_for_next_batch(1);
        END LOOP;
        EXIT WHEN swapped IS NOT NULL;
    END LOOP;
    COMMIT;
    PERFORM colcrypt.validate_encryption(relation, column_name);
END
$$;
COMMENT ON PROCEDURE encrypt_column_online(regclass, name, name, integer, interval, interval) IS
    'encrypt_column() without a long lock: in batches beside the plaintext column, which it replaces in the end';

CREATE FUNCTION abort_encrypt_column(relation regclass, column_name name) RETURNS bigint
    LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    shadow name;
    number integer;
    done bigint;
BEGIN
    PERFORM colcrypt.begin_migration(relation, column_name);
    shadow := colcrypt.shadow_of(relation, column_name);
    IF shadow IS NULL THEN
        RAISE 'column "%" of relation "%" is not being encrypted', column_name, relation
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    -- Nobody else is at work on it from here on.
    number := colcrypt.begin_encryption_job(relation, column_name, shadow, 1, '0', '0');
    SELECT p.rows_rotated INTO done FROM colcrypt.rotation_progress AS p WHERE p.job = number;
    EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', ('~' || shadow)::name, relation);
    EXECUTE format('ALTER TABLE %s DROP COLUMN %I', relation, shadow);
    PERFORM colcrypt.end_encryption_job(number, 'cancelled', 'aborted');
    RETURN done;
END
$$;
COMMENT ON FUNCTION abort_encrypt_column(regclass, name) IS
    'give up what encrypt_column_online() has begun: the column is plaintext as before; gives the number of rows that had been encrypted';

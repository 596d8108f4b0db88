-- What the extension puts into the catalogs.

-- The functions: volatility, strictness, parallel safety.
CREATE TEMP VIEW own_function AS
SELECT p.*
FROM pg_proc AS p
JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
WHERE d.deptype = 'e' AND e.extname = 'colcrypt';

SELECT oid::regprocedure AS function, provolatile AS volatile, proisstrict AS strict,
    proparallel AS parallel
FROM own_function
ORDER BY oid::regprocedure::text COLLATE "C";

-- The rules behind that list. Each query gives what breaks one.
SELECT oid::regprocedure AS leakproof FROM own_function WHERE proleakproof;
SELECT oid::regprocedure AS volatile FROM own_function
WHERE provolatile = 'v' AND proname NOT IN
    ('generate_key', 'rotate_column', 'key_changed', 'create_index_key', 'rewrap_keys', 'create_key',
    'rotate_key', 'shred_key', 'grant_key', 'revoke_key', 'accept_key', 'keep_masked',
    'ring_key_remembered', 'status', 'stat_counters', 'reset_stat', 'server_findings', 'doctor');
SELECT oid::regprocedure AS depends_on_the_key_but_immutable FROM own_function
WHERE provolatile = 'i'
    AND proname NOT IN ('ciphertext', 'fernet_token', 'inspect', 'encrypted_text_typmod_in')
    -- What operator classes are made of depends on the plaintext alone.
    AND oid NOT IN (SELECT amproc FROM pg_amproc)
    AND oidvectortypes(proargtypes) NOT IN ('encrypted_text, encrypted_text', 'text, text');
SELECT oid::regprocedure AS not_parallel_safe FROM own_function
WHERE proparallel <> 's' AND proname NOT IN ('rotate_column', 'encrypted_text_typanalyze',
    'key_changed', 'create_index_key', 'rewrap_keys', 'create_key', 'rotate_key', 'shred_key',
    'grant_key', 'revoke_key', 'accept_key', 'keep_masked', 'ring_key_remembered',
    'ring_keys', 'key_usage', 'droppable_keys', 'keys_in_index', 'sealed_constants', 'status',
    'stat_counters', 'reset_stat', 'server_findings', 'stale_columns', 'doctor');
SELECT oid::regprocedure AS called_with_null FROM own_function
WHERE NOT proisstrict
    AND proname NOT IN ('rotate_column', 'key_changed', 'create_index_key', 'rewrap_keys')
    -- What has no arguments is not called with NULL.
    AND pronargs > 0;
SELECT oid::regprocedure AS security_definer FROM own_function WHERE prosecdef;
SELECT oid::regprocedure AS without_comment FROM own_function
WHERE obj_description(oid, 'pg_proc') IS NULL;

-- Whoever may bring ciphertext in can have the database decrypt it; whoever may
-- hash a text can test guesses against a stolen index.
SELECT oid::regprocedure AS not_for_public FROM own_function
WHERE NOT has_function_privilege('public', oid, 'EXECUTE')
ORDER BY oid::regprocedure::text COLLATE "C";

-- Everybody may look at the encrypted columns; at keys, monitoring roles; at what is
-- wrapped, the owner alone.
SELECT c.oid::regclass AS relation, relkind AS kind,
    has_table_privilege('public', c.oid, 'SELECT') AS public,
    has_table_privilege('pg_monitor', c.oid, 'SELECT') AS monitor,
    obj_description(c.oid, 'pg_class') IS NOT NULL AS t
FROM pg_class AS c
JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
WHERE d.deptype = 'e' AND e.extname = 'colcrypt' AND relkind IN ('r', 'v')
ORDER BY c.oid::regclass::text COLLATE "C";
-- Keys and grants are dumped; grants of roles that are gone are not.
SELECT t.relation::regclass, t.condition
FROM pg_extension, unnest(extconfig, extcondition) AS t (relation, condition)
WHERE extname = 'colcrypt' ORDER BY t.relation::regclass::text COLLATE "C";

-- The type.
SELECT typcategory, typispreferred, typstorage, typcollation, typlen, typbyval, typalign,
    typdelim
FROM pg_type WHERE oid = 'encrypted_text'::regtype;
SELECT typelem = 'encrypted_text'::regtype AS t, typstorage, typalign, typcategory
FROM pg_type
WHERE oid = (SELECT typarray FROM pg_type WHERE oid = 'encrypted_text'::regtype);
SELECT has_type_privilege('public', 'encrypted_text', 'USAGE') AS t;
SELECT has_schema_privilege('public', 'colcrypt', 'USAGE') AS t;
SELECT has_schema_privilege('public', 'colcrypt', 'CREATE') AS f;

-- Comments on what is no function.
SELECT obj_description('encrypted_text'::regtype, 'pg_type') IS NOT NULL AS t;
SELECT obj_description('colcrypt'::regnamespace, 'pg_namespace') IS NOT NULL AS t;
SELECT obj_description(oid, 'pg_extension') IS NOT NULL AS t FROM pg_extension
WHERE extname = 'colcrypt';

-- The casts: implicit to text and varchar, everything else at most on assignment.
SELECT castsource::regtype, casttarget::regtype, castcontext, castmethod,
    NULLIF(castfunc, 0)::regprocedure AS castfunc
FROM pg_cast
WHERE 'encrypted_text'::regtype IN (castsource, casttarget)
ORDER BY castsource::regtype::text COLLATE "C", casttarget::regtype::text COLLATE "C";
SELECT castsource::regtype AS implicit_into_encrypted_text FROM pg_cast
WHERE casttarget = 'encrypted_text'::regtype AND castcontext = 'i' AND castsource <> casttarget;

-- PostgreSQL's type_sanity and opr_sanity, as far as they apply.
SELECT oid::regprocedure AS no_source FROM own_function
WHERE prolang = 0 OR prorettype = 0 OR pronargs < 0 OR pronargdefaults NOT BETWEEN 0 AND pronargs
    OR array_lower(proargtypes, 1) <> 0 OR array_upper(proargtypes, 1) <> pronargs - 1
    OR prokind NOT IN ('f', 'p') OR prosrc IS NULL OR prosrc = ''
    OR (prolang = (SELECT oid FROM pg_language WHERE lanname = 'c')) <> (COALESCE(probin, '') <> '');
SELECT oid::regprocedure AS argument_modes FROM own_function
WHERE proargnames IS NOT NULL AND proallargtypes IS NOT NULL
    AND array_length(proargnames, 1) <> array_length(proallargtypes, 1);
SELECT p.oid::regprocedure AS pseudo_type_outside_io
FROM own_function AS p
WHERE ('internal'::regtype = ANY (p.proargtypes) OR 'cstring'::regtype = ANY (p.proargtypes)
        OR p.prorettype IN ('internal'::regtype, 'cstring'::regtype))
    AND p.oid NOT IN (
        SELECT unnest(ARRAY[typinput, typoutput, typreceive, typsend, typmodin, typmodout,
            typanalyze]::oid[])
        FROM pg_type WHERE oid = 'encrypted_text'::regtype
        UNION ALL SELECT amproc FROM pg_amproc);
SELECT t.typname AS bad_input FROM pg_type AS t JOIN pg_proc AS p ON p.oid = t.typinput
WHERE t.oid = 'encrypted_text'::regtype
    AND (p.prorettype <> t.oid OR p.proretset OR NOT p.proisstrict OR p.provolatile = 'v'
        OR oidvectortypes(p.proargtypes) <> 'cstring, oid, integer');
SELECT t.typname AS bad_output FROM pg_type AS t JOIN pg_proc AS p ON p.oid = t.typoutput
WHERE t.oid = 'encrypted_text'::regtype
    AND (p.prorettype <> 'cstring'::regtype OR p.proretset OR NOT p.proisstrict
        OR p.provolatile = 'v' OR oidvectortypes(p.proargtypes) <> 'encrypted_text');
SELECT t.typname AS bad_receive FROM pg_type AS t JOIN pg_proc AS p ON p.oid = t.typreceive
WHERE t.oid = 'encrypted_text'::regtype
    AND (p.prorettype <> t.oid OR p.proretset OR NOT p.proisstrict OR p.provolatile = 'v'
        OR oidvectortypes(p.proargtypes) <> 'internal, oid, integer');
SELECT t.typname AS bad_send FROM pg_type AS t JOIN pg_proc AS p ON p.oid = t.typsend
WHERE t.oid = 'encrypted_text'::regtype
    AND (p.prorettype <> 'bytea'::regtype OR p.proretset OR NOT p.proisstrict
        OR p.provolatile = 'v' OR oidvectortypes(p.proargtypes) <> 'encrypted_text');
SELECT t.typname AS bad_typmod FROM pg_type AS t
JOIN pg_proc AS i ON i.oid = t.typmodin JOIN pg_proc AS o ON o.oid = t.typmodout
WHERE t.oid = 'encrypted_text'::regtype
    AND (i.prorettype <> 'int4'::regtype OR i.proretset
        OR oidvectortypes(i.proargtypes) <> 'cstring[]'
        OR o.prorettype <> 'cstring'::regtype OR o.proretset
        OR oidvectortypes(o.proargtypes) <> 'integer');
SELECT castsource::regtype, casttarget::regtype AS cast_function_does_not_fit
FROM pg_cast AS c JOIN pg_proc AS p ON p.oid = c.castfunc
WHERE 'encrypted_text'::regtype IN (castsource, casttarget)
    AND (p.pronargs NOT BETWEEN 1 AND 3
        OR NOT (p.proargtypes[0] = c.castsource OR EXISTS (
            SELECT FROM pg_cast AS b WHERE b.castsource = c.castsource
                AND b.casttarget = p.proargtypes[0] AND b.castmethod = 'b'))
        OR NOT (p.prorettype = c.casttarget OR EXISTS (
            SELECT FROM pg_cast AS b WHERE b.castsource = p.prorettype
                AND b.casttarget = c.casttarget AND b.castmethod = 'b'))
        OR p.pronargs > 1 AND p.proargtypes[1] <> 'int4'::regtype
        OR p.pronargs > 2 AND p.proargtypes[2] <> 'bool'::regtype);

-- Not relocatable, not trusted; nothing lies in a schema of its own but administration.
SELECT relocatable, superuser, trusted, schema FROM pg_available_extension_versions
WHERE name = 'colcrypt' AND installed;
SELECT pronamespace::regnamespace AS schema, count(*) > 0 AS t FROM own_function
GROUP BY pronamespace ORDER BY pronamespace::regnamespace::text COLLATE "C";

-- No object is without an owner in pg_depend: dropping the extension leaves nothing.
SELECT typname AS not_in_extension FROM pg_type AS t
WHERE typname IN ('encrypted_text', '_encrypted_text') AND NOT EXISTS (
    SELECT FROM pg_depend WHERE classid = 'pg_type'::regclass AND objid = t.oid
        AND deptype IN ('e', 'i'));

-- Every object has a comment, and every column of a table.
SELECT pg_describe_object(d.classid, d.objid, 0) AS without_comment
FROM pg_depend AS d
     JOIN pg_extension AS x ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = x.oid
WHERE x.extname = 'colcrypt' AND d.deptype = 'e'
  AND obj_description(d.objid, d.classid::regclass::name) IS NULL
  -- Since 17 the types of arrays and rows are in an extension, too.
  AND NOT EXISTS (SELECT FROM pg_type AS t WHERE d.classid = 'pg_type'::regclass
    AND t.oid = d.objid AND (t.typcategory = 'A' OR t.typrelid <> 0));
SELECT c.oid::regclass AS relation, a.attname AS without_comment
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'colcrypt'::regnamespace AND c.relkind = 'r'
  AND col_description(c.oid, a.attnum) IS NULL;

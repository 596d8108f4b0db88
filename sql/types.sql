-- The encrypted types: each stands in for a plain type. What is declared here, in
-- functions.sql and in search.sql is declared once, for all of them; what only one of
-- them has is in a file of its name. In citext's order.
--
-- Everything that depends on the key ring is STABLE: not IMMUTABLE, so that
-- PostgreSQL refuses an expression index or a generated column over the
-- plaintext; and not VOLATILE, which would keep a condition off its index.

-- Runs SQL for each type but one, if that is named, with its name for @type@ and that of
-- its plain type for @plain@. Dropped at the end of the script.
CREATE FUNCTION colcrypt.for_each_type(template text, but text DEFAULT '') RETURNS void
    LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
AS $$
DECLARE
    name text;
    plain text;
    category text;
    suffix text;
BEGIN
    -- The suffix tells functions of the same arguments apart.
    FOR name, plain, category, suffix IN
        VALUES ('encrypted_text', 'text', 'S', ''),
               ('encrypted_bytea', 'bytea', 'U', '_bytea'),
               ('encrypted_jsonb', 'jsonb', 'U', '_jsonb')
    LOOP
        CONTINUE WHEN name = but;
        EXECUTE replace(replace(replace(replace(template,
            '@type@', name), '@plain@', plain), '@category@', category), '@suffix@', suffix);
    END LOOP;
END
$$;

SELECT colcrypt.for_each_type($template$

CREATE TYPE @type@;

CREATE FUNCTION @type@_in(cstring, oid, integer) RETURNS @type@
    AS 'MODULE_PATHNAME', '@type@_in'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;

CREATE FUNCTION @type@_out(@type@) RETURNS cstring
    AS 'MODULE_PATHNAME', '@type@_out'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;

CREATE FUNCTION @type@_recv(internal, oid, integer) RETURNS @type@
    AS 'MODULE_PATHNAME', '@type@_recv'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;

CREATE FUNCTION @type@_send(@type@) RETURNS bytea
    AS 'MODULE_PATHNAME', '@type@_send'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;

CREATE FUNCTION @type@_typmod_in(cstring[]) RETURNS integer
    AS 'MODULE_PATHNAME', 'encrypted_typmod_in_wrapper'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;

-- STABLE: the name of a managed key is looked up.
CREATE FUNCTION @type@_typmod_out(integer) RETURNS cstring
    AS 'MODULE_PATHNAME', 'encrypted_typmod_out_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;

CREATE FUNCTION @type@_typanalyze(internal) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_typanalyze'
    LANGUAGE c STABLE STRICT;

-- Not COLLATABLE: ciphertext has no order that a collation could give it.
-- STORAGE external: ciphertext does not compress.
CREATE TYPE @type@ (
    INPUT = @type@_in,
    OUTPUT = @type@_out,
    RECEIVE = @type@_recv,
    SEND = @type@_send,
    TYPMOD_IN = @type@_typmod_in,
    TYPMOD_OUT = @type@_typmod_out,
    ANALYZE = @type@_typanalyze,
    INTERNALLENGTH = VARIABLE,
    ALIGNMENT = int4,
    STORAGE = external,
    CATEGORY = '@category@',
    PREFERRED = false,
    COLLATABLE = false
);

COMMENT ON TYPE @type@ IS '@plain@ that is encrypted wherever it is stored';
COMMENT ON FUNCTION @type@_in(cstring, oid, integer) IS 'I/O';
COMMENT ON FUNCTION @type@_out(@type@) IS 'I/O';
COMMENT ON FUNCTION @type@_recv(internal, oid, integer) IS 'I/O';
COMMENT ON FUNCTION @type@_send(@type@) IS 'I/O';
COMMENT ON FUNCTION @type@_typanalyze(internal) IS 'ANALYZE';
COMMENT ON FUNCTION @type@_typmod_in(cstring[]) IS 'I/O typmod';
COMMENT ON FUNCTION @type@_typmod_out(integer) IS 'I/O typmod';

-- Casts to the plain type and from it.

CREATE FUNCTION @type@_to_@plain@(@type@) RETURNS @plain@
    AS 'MODULE_PATHNAME', '@type@_to_plain'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @type@_to_@plain@(@type@) IS 'decrypt (implicit cast)';

CREATE FUNCTION @type@_from_@plain@(@plain@, integer) RETURNS @type@
    AS 'MODULE_PATHNAME', '@type@_from_plain'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @type@_from_@plain@(@plain@, integer) IS 'encrypt (assignment cast)';

CREATE CAST (@type@ AS @plain@)
    WITH FUNCTION @type@_to_@plain@(@type@) AS IMPLICIT;
CREATE CAST (@plain@ AS @type@)
    WITH FUNCTION @type@_from_@plain@(@plain@, integer) AS ASSIGNMENT;
COMMENT ON CAST (@type@ AS @plain@) IS 'decrypts';
COMMENT ON CAST (@plain@ AS @type@) IS 'encrypts';

-- The type modifier.

CREATE FUNCTION @type@_coerce(@type@, integer, boolean) RETURNS @type@
    AS 'MODULE_PATHNAME', '@type@_coerce'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @type@_coerce(@type@, integer, boolean) IS
    'fit a value to the key that a type modifier names';

CREATE CAST (@type@ AS @type@)
    WITH FUNCTION @type@_coerce(@type@, integer, boolean) AS IMPLICIT;
COMMENT ON CAST (@type@ AS @type@) IS 'applies the key that a type modifier names';

$template$);

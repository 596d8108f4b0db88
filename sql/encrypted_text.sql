-- The type encrypted_text: type, input and output, casts. In citext's order.
--
-- Everything that depends on the key ring is STABLE: not IMMUTABLE, so that
-- PostgreSQL refuses an expression index or a generated column over the
-- plaintext; and not VOLATILE, which would keep a condition off its index.

CREATE TYPE encrypted_text;

CREATE FUNCTION encrypted_text_in(cstring, oid, integer) RETURNS encrypted_text
    AS 'MODULE_PATHNAME', 'encrypted_text_in'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;

CREATE FUNCTION encrypted_text_out(encrypted_text) RETURNS cstring
    AS 'MODULE_PATHNAME', 'encrypted_text_out'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;

CREATE FUNCTION encrypted_text_recv(internal, oid, integer) RETURNS encrypted_text
    AS 'MODULE_PATHNAME', 'encrypted_text_recv_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;

CREATE FUNCTION encrypted_text_send(encrypted_text) RETURNS bytea
    AS 'MODULE_PATHNAME', 'encrypted_text_send_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;

CREATE FUNCTION encrypted_text_typmod_in(cstring[]) RETURNS integer
    AS 'MODULE_PATHNAME', 'encrypted_text_typmod_in_wrapper'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;

-- STABLE: the name of a managed key is looked up.
CREATE FUNCTION encrypted_text_typmod_out(integer) RETURNS cstring
    AS 'MODULE_PATHNAME', 'encrypted_text_typmod_out_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;

CREATE FUNCTION encrypted_text_typanalyze(internal) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_typanalyze'
    LANGUAGE c STABLE STRICT;

-- Not COLLATABLE: ciphertext has no order that a collation could give it.
-- STORAGE external: ciphertext does not compress.
CREATE TYPE encrypted_text (
    INPUT = encrypted_text_in,
    OUTPUT = encrypted_text_out,
    RECEIVE = encrypted_text_recv,
    SEND = encrypted_text_send,
    TYPMOD_IN = encrypted_text_typmod_in,
    TYPMOD_OUT = encrypted_text_typmod_out,
    ANALYZE = encrypted_text_typanalyze,
    INTERNALLENGTH = VARIABLE,
    ALIGNMENT = int4,
    STORAGE = external,
    CATEGORY = 'S',
    PREFERRED = false,
    COLLATABLE = false
);

COMMENT ON TYPE encrypted_text IS 'text that is encrypted wherever it is stored';
COMMENT ON FUNCTION encrypted_text_in(cstring, oid, integer) IS 'I/O';
COMMENT ON FUNCTION encrypted_text_out(encrypted_text) IS 'I/O';
COMMENT ON FUNCTION encrypted_text_recv(internal, oid, integer) IS 'I/O';
COMMENT ON FUNCTION encrypted_text_send(encrypted_text) IS 'I/O';
COMMENT ON FUNCTION encrypted_text_typanalyze(internal) IS 'ANALYZE';
COMMENT ON FUNCTION encrypted_text_typmod_in(cstring[]) IS 'I/O typmod';
COMMENT ON FUNCTION encrypted_text_typmod_out(integer) IS 'I/O typmod';

-- Casts to text. As with citext: implicit to text and varchar, so that text
-- functions, COALESCE and CASE work; on assignment to bpchar.

CREATE FUNCTION encrypted_text_to_text(encrypted_text) RETURNS text
    AS 'MODULE_PATHNAME', 'encrypted_text_to_text'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_to_text(encrypted_text) IS 'decrypt (implicit cast)';

CREATE CAST (encrypted_text AS text)
    WITH FUNCTION encrypted_text_to_text(encrypted_text) AS IMPLICIT;
CREATE CAST (encrypted_text AS varchar)
    WITH FUNCTION encrypted_text_to_text(encrypted_text) AS IMPLICIT;
CREATE CAST (encrypted_text AS bpchar)
    WITH FUNCTION encrypted_text_to_text(encrypted_text) AS ASSIGNMENT;

-- Casts from other types, each giving what a cast to text gives. Where output
-- and a cast to text differ there is a function.

CREATE FUNCTION encrypted_text_from_text(text, integer) RETURNS encrypted_text
    AS 'MODULE_PATHNAME', 'encrypted_text_from_text'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_from_text(text, integer) IS 'encrypt (assignment cast)';

CREATE FUNCTION encrypted_text_from_bpchar(bpchar, integer) RETURNS encrypted_text
    AS 'MODULE_PATHNAME', 'encrypted_text_from_bpchar_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_from_bpchar(bpchar, integer) IS 'encrypt (assignment cast)';

CREATE FUNCTION encrypted_text_from_bool(boolean, integer) RETURNS encrypted_text
    AS 'MODULE_PATHNAME', 'encrypted_text_from_bool_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_from_bool(boolean, integer) IS 'encrypt (assignment cast)';

CREATE FUNCTION encrypted_text_from_inet(inet, integer) RETURNS encrypted_text
    AS 'MODULE_PATHNAME', 'encrypted_text_from_inet_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_from_inet(inet, integer) IS 'encrypt (assignment cast)';

CREATE CAST (text AS encrypted_text)
    WITH FUNCTION encrypted_text_from_text(text, integer) AS ASSIGNMENT;
CREATE CAST (varchar AS encrypted_text)
    WITH FUNCTION encrypted_text_from_text(text, integer) AS ASSIGNMENT;
CREATE CAST (bpchar AS encrypted_text)
    WITH FUNCTION encrypted_text_from_bpchar(bpchar, integer) AS ASSIGNMENT;
CREATE CAST (boolean AS encrypted_text)
    WITH FUNCTION encrypted_text_from_bool(boolean, integer) AS ASSIGNMENT;
CREATE CAST (inet AS encrypted_text)
    WITH FUNCTION encrypted_text_from_inet(inet, integer) AS ASSIGNMENT;

CREATE CAST (name AS encrypted_text) WITH INOUT AS ASSIGNMENT;
CREATE CAST (json AS encrypted_text) WITH INOUT AS ASSIGNMENT;
CREATE CAST (jsonb AS encrypted_text) WITH INOUT AS ASSIGNMENT;
CREATE CAST (numeric AS encrypted_text) WITH INOUT AS ASSIGNMENT;
CREATE CAST (smallint AS encrypted_text) WITH INOUT AS ASSIGNMENT;
CREATE CAST (integer AS encrypted_text) WITH INOUT AS ASSIGNMENT;
CREATE CAST (bigint AS encrypted_text) WITH INOUT AS ASSIGNMENT;
CREATE CAST (uuid AS encrypted_text) WITH INOUT AS ASSIGNMENT;
CREATE CAST (cidr AS encrypted_text) WITH INOUT AS ASSIGNMENT;
CREATE CAST (date AS encrypted_text) WITH INOUT AS ASSIGNMENT;
CREATE CAST (time AS encrypted_text) WITH INOUT AS ASSIGNMENT;
CREATE CAST (timetz AS encrypted_text) WITH INOUT AS ASSIGNMENT;
CREATE CAST (timestamp AS encrypted_text) WITH INOUT AS ASSIGNMENT;
CREATE CAST (timestamptz AS encrypted_text) WITH INOUT AS ASSIGNMENT;
CREATE CAST (interval AS encrypted_text) WITH INOUT AS ASSIGNMENT;

-- The type modifier.

CREATE FUNCTION encrypted_text_coerce(encrypted_text, integer, boolean) RETURNS encrypted_text
    AS 'MODULE_PATHNAME', 'encrypted_text_coerce_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_coerce(encrypted_text, integer, boolean) IS
    'fit a value to the key that a type modifier names';

CREATE CAST (encrypted_text AS encrypted_text)
    WITH FUNCTION encrypted_text_coerce(encrypted_text, integer, boolean) AS IMPLICIT;

-- What encrypted_text has beyond the other types: casts from and to what else PostgreSQL
-- takes for text, and comparisons with name.

-- Casts to other texts. As with citext: implicit to varchar, so that text functions,
-- COALESCE and CASE work; on assignment to bpchar.

CREATE CAST (encrypted_text AS varchar)
    WITH FUNCTION encrypted_text_to_text(encrypted_text) AS IMPLICIT;
CREATE CAST (encrypted_text AS bpchar)
    WITH FUNCTION encrypted_text_to_text(encrypted_text) AS ASSIGNMENT;

-- Casts from other types, each giving what a cast to text gives. Where output
-- and a cast to text differ there is a function.

CREATE FUNCTION encrypted_text_from_bpchar(bpchar, integer) RETURNS encrypted_text
    AS 'MODULE_PATHNAME', 'encrypted_text_from_bpchar'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_from_bpchar(bpchar, integer) IS 'encrypt (assignment cast)';

CREATE FUNCTION encrypted_text_from_bool(boolean, integer) RETURNS encrypted_text
    AS 'MODULE_PATHNAME', 'encrypted_text_from_bool'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_from_bool(boolean, integer) IS 'encrypt (assignment cast)';

CREATE FUNCTION encrypted_text_from_inet(inet, integer) RETURNS encrypted_text
    AS 'MODULE_PATHNAME', 'encrypted_text_from_inet'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_from_inet(inet, integer) IS 'encrypt (assignment cast)';

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

COMMENT ON CAST (character varying AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (character AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (name AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (boolean AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (smallint AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (integer AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (bigint AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (numeric AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (date AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (time without time zone AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (time with time zone AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (timestamp without time zone AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (timestamp with time zone AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (interval AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (uuid AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (inet AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (cidr AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (json AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (jsonb AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (encrypted_text AS character varying) IS 'decrypts';
COMMENT ON CAST (encrypted_text AS character) IS 'decrypts';

-- name: `owner = current_user` in a policy. PostgreSQL inlines these functions, so
-- that the operators for text decide, and use an index.

CREATE FUNCTION encrypted_text_eq(encrypted_text, name) RETURNS boolean
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1 OPERATOR(@extschema@.=) $2::pg_catalog.text';
COMMENT ON FUNCTION encrypted_text_eq(encrypted_text, name) IS 'implementation of =';
CREATE FUNCTION encrypted_text_ne(encrypted_text, name) RETURNS boolean
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1 OPERATOR(@extschema@.<>) $2::pg_catalog.text';
COMMENT ON FUNCTION encrypted_text_ne(encrypted_text, name) IS 'implementation of <>';
CREATE OPERATOR = (
    LEFTARG = encrypted_text, RIGHTARG = name, FUNCTION = encrypted_text_eq,
    COMMUTATOR = =, NEGATOR = <>,
    RESTRICT = eqsel, JOIN = eqjoinsel
);
CREATE OPERATOR <> (
    LEFTARG = encrypted_text, RIGHTARG = name, FUNCTION = encrypted_text_ne,
    COMMUTATOR = <>, NEGATOR = =,
    RESTRICT = neqsel, JOIN = neqjoinsel
);

CREATE FUNCTION encrypted_text_eq(name, encrypted_text) RETURNS boolean
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.text OPERATOR(@extschema@.=) $2';
COMMENT ON FUNCTION encrypted_text_eq(name, encrypted_text) IS 'implementation of =';
CREATE FUNCTION encrypted_text_ne(name, encrypted_text) RETURNS boolean
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.text OPERATOR(@extschema@.<>) $2';
COMMENT ON FUNCTION encrypted_text_ne(name, encrypted_text) IS 'implementation of <>';
CREATE OPERATOR = (
    LEFTARG = name, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_eq,
    COMMUTATOR = =, NEGATOR = <>,
    RESTRICT = eqsel, JOIN = eqjoinsel
);
CREATE OPERATOR <> (
    LEFTARG = name, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_ne,
    COMMUTATOR = <>, NEGATOR = =,
    RESTRICT = neqsel, JOIN = neqjoinsel
);

COMMENT ON OPERATOR = (encrypted_text, name) IS 'equal plaintexts';
COMMENT ON OPERATOR = (name, encrypted_text) IS 'equal plaintexts';
COMMENT ON OPERATOR <> (encrypted_text, name) IS 'different plaintexts';
COMMENT ON OPERATOR <> (name, encrypted_text) IS 'different plaintexts';

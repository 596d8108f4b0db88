-- What encrypted_jsonb has of its own: casts to and from json, and to scalars.

-- On assignment: were it implicit, operators that json and jsonb both have would be
-- ambiguous. to_json(), row_to_json() and the like use it.
CREATE FUNCTION encrypted_jsonb_to_json(encrypted_jsonb) RETURNS json
    AS 'MODULE_PATHNAME', 'encrypted_jsonb_to_json'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_jsonb_to_json(encrypted_jsonb) IS 'decrypt (assignment cast)';

CREATE FUNCTION encrypted_jsonb_from_json(json, integer) RETURNS encrypted_jsonb
    AS 'MODULE_PATHNAME', 'encrypted_jsonb_from_json'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_jsonb_from_json(json, integer) IS 'encrypt (assignment cast)';

CREATE CAST (encrypted_jsonb AS json)
    WITH FUNCTION encrypted_jsonb_to_json(encrypted_jsonb) AS ASSIGNMENT;
CREATE CAST (json AS encrypted_jsonb)
    WITH FUNCTION encrypted_jsonb_from_json(json, integer) AS ASSIGNMENT;
COMMENT ON CAST (encrypted_jsonb AS json) IS 'decrypts';
COMMENT ON CAST (json AS encrypted_jsonb) IS 'encrypts';

-- To numbers and boolean, explicitly, as from jsonb. PostgreSQL inlines these functions.

CREATE FUNCTION encrypted_jsonb_to_numeric(encrypted_jsonb) RETURNS numeric
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.jsonb::pg_catalog.numeric';
COMMENT ON FUNCTION encrypted_jsonb_to_numeric(encrypted_jsonb) IS 'decrypt (explicit cast)';
CREATE CAST (encrypted_jsonb AS numeric)
    WITH FUNCTION encrypted_jsonb_to_numeric(encrypted_jsonb);
COMMENT ON CAST (encrypted_jsonb AS numeric) IS 'decrypts';

CREATE FUNCTION encrypted_jsonb_to_int2(encrypted_jsonb) RETURNS smallint
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.jsonb::pg_catalog.int2';
COMMENT ON FUNCTION encrypted_jsonb_to_int2(encrypted_jsonb) IS 'decrypt (explicit cast)';
CREATE CAST (encrypted_jsonb AS smallint)
    WITH FUNCTION encrypted_jsonb_to_int2(encrypted_jsonb);
COMMENT ON CAST (encrypted_jsonb AS smallint) IS 'decrypts';

CREATE FUNCTION encrypted_jsonb_to_int4(encrypted_jsonb) RETURNS integer
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.jsonb::pg_catalog.int4';
COMMENT ON FUNCTION encrypted_jsonb_to_int4(encrypted_jsonb) IS 'decrypt (explicit cast)';
CREATE CAST (encrypted_jsonb AS integer)
    WITH FUNCTION encrypted_jsonb_to_int4(encrypted_jsonb);
COMMENT ON CAST (encrypted_jsonb AS integer) IS 'decrypts';

CREATE FUNCTION encrypted_jsonb_to_int8(encrypted_jsonb) RETURNS bigint
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.jsonb::pg_catalog.int8';
COMMENT ON FUNCTION encrypted_jsonb_to_int8(encrypted_jsonb) IS 'decrypt (explicit cast)';
CREATE CAST (encrypted_jsonb AS bigint)
    WITH FUNCTION encrypted_jsonb_to_int8(encrypted_jsonb);
COMMENT ON CAST (encrypted_jsonb AS bigint) IS 'decrypts';

CREATE FUNCTION encrypted_jsonb_to_float4(encrypted_jsonb) RETURNS real
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.jsonb::pg_catalog.float4';
COMMENT ON FUNCTION encrypted_jsonb_to_float4(encrypted_jsonb) IS 'decrypt (explicit cast)';
CREATE CAST (encrypted_jsonb AS real)
    WITH FUNCTION encrypted_jsonb_to_float4(encrypted_jsonb);
COMMENT ON CAST (encrypted_jsonb AS real) IS 'decrypts';

CREATE FUNCTION encrypted_jsonb_to_float8(encrypted_jsonb) RETURNS double precision
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.jsonb::pg_catalog.float8';
COMMENT ON FUNCTION encrypted_jsonb_to_float8(encrypted_jsonb) IS 'decrypt (explicit cast)';
CREATE CAST (encrypted_jsonb AS double precision)
    WITH FUNCTION encrypted_jsonb_to_float8(encrypted_jsonb);
COMMENT ON CAST (encrypted_jsonb AS double precision) IS 'decrypts';

CREATE FUNCTION encrypted_jsonb_to_bool(encrypted_jsonb) RETURNS boolean
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.jsonb::pg_catalog.bool';
COMMENT ON FUNCTION encrypted_jsonb_to_bool(encrypted_jsonb) IS 'decrypt (explicit cast)';
CREATE CAST (encrypted_jsonb AS boolean)
    WITH FUNCTION encrypted_jsonb_to_bool(encrypted_jsonb);
COMMENT ON CAST (encrypted_jsonb AS boolean) IS 'decrypts';

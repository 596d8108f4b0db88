-- What encrypted_bytea has of its own.

-- `||` of two values: PostgreSQL would take a literal on one side for text, and join the
-- texts of both. It inlines these functions.

CREATE FUNCTION encrypted_bytea_concat(encrypted_bytea, encrypted_bytea) RETURNS bytea
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.bytea OPERATOR(pg_catalog.||) $2::pg_catalog.bytea';
COMMENT ON FUNCTION encrypted_bytea_concat(encrypted_bytea, encrypted_bytea) IS 'implementation of ||';
CREATE OPERATOR || (
    LEFTARG = encrypted_bytea, RIGHTARG = encrypted_bytea, FUNCTION = encrypted_bytea_concat
);
COMMENT ON OPERATOR || (encrypted_bytea, encrypted_bytea) IS 'concatenate';

CREATE FUNCTION encrypted_bytea_concat(encrypted_bytea, bytea) RETURNS bytea
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.bytea OPERATOR(pg_catalog.||) $2::pg_catalog.bytea';
COMMENT ON FUNCTION encrypted_bytea_concat(encrypted_bytea, bytea) IS 'implementation of ||';
CREATE OPERATOR || (
    LEFTARG = encrypted_bytea, RIGHTARG = bytea, FUNCTION = encrypted_bytea_concat
);
COMMENT ON OPERATOR || (encrypted_bytea, bytea) IS 'concatenate';

CREATE FUNCTION encrypted_bytea_concat(bytea, encrypted_bytea) RETURNS bytea
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.bytea OPERATOR(pg_catalog.||) $2::pg_catalog.bytea';
COMMENT ON FUNCTION encrypted_bytea_concat(bytea, encrypted_bytea) IS 'implementation of ||';
CREATE OPERATOR || (
    LEFTARG = bytea, RIGHTARG = encrypted_bytea, FUNCTION = encrypted_bytea_concat
);
COMMENT ON OPERATOR || (bytea, encrypted_bytea) IS 'concatenate';

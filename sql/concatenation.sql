-- `||` of two values: PostgreSQL would take a literal on one side for text, and join the
-- texts of both. With encrypted_text that is what is meant. PostgreSQL inlines these
-- functions.

SELECT colcrypt.for_each_type($template$

CREATE FUNCTION @type@_concat(@type@, @type@) RETURNS @plain@
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.@plain@ OPERATOR(pg_catalog.||) $2::pg_catalog.@plain@';
COMMENT ON FUNCTION @type@_concat(@type@, @type@) IS 'implementation of ||';
CREATE OPERATOR || (
    LEFTARG = @type@, RIGHTARG = @type@, FUNCTION = @type@_concat
);
COMMENT ON OPERATOR || (@type@, @type@) IS 'concatenate';

CREATE FUNCTION @type@_concat(@type@, @plain@) RETURNS @plain@
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.@plain@ OPERATOR(pg_catalog.||) $2::pg_catalog.@plain@';
COMMENT ON FUNCTION @type@_concat(@type@, @plain@) IS 'implementation of ||';
CREATE OPERATOR || (
    LEFTARG = @type@, RIGHTARG = @plain@, FUNCTION = @type@_concat
);
COMMENT ON OPERATOR || (@type@, @plain@) IS 'concatenate';

CREATE FUNCTION @type@_concat(@plain@, @type@) RETURNS @plain@
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.@plain@ OPERATOR(pg_catalog.||) $2::pg_catalog.@plain@';
COMMENT ON FUNCTION @type@_concat(@plain@, @type@) IS 'implementation of ||';
CREATE OPERATOR || (
    LEFTARG = @plain@, RIGHTARG = @type@, FUNCTION = @type@_concat
);
COMMENT ON OPERATOR || (@plain@, @type@) IS 'concatenate';

$template$, but => 'encrypted_text');

-- Key rotation.

CREATE FUNCTION rotate_column(
    relation regclass,
    column_name name,
    batch_size integer DEFAULT 1000,
    max_rows bigint DEFAULT NULL
) RETURNS bigint
    AS 'MODULE_PATHNAME', 'rotate_column_wrapper'
    LANGUAGE c VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION rotate_column(regclass, name, integer, bigint) IS
    'encrypt again what is not under the primary key and the current algorithm; gives the number of rows';

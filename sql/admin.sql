-- Administration.

CREATE SCHEMA colcrypt;
GRANT USAGE ON SCHEMA colcrypt TO PUBLIC;
COMMENT ON SCHEMA colcrypt IS 'administration of column encryption';

CREATE FUNCTION colcrypt.generate_key() RETURNS text
    AS 'MODULE_PATHNAME', 'colcrypt_generate_key_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION colcrypt.generate_key() IS
    'a new random key: 32 bytes in 44 characters of base64url';

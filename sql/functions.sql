-- Everyday functions, beside the types.

SELECT colcrypt.for_each_type($template$

CREATE FUNCTION encrypt(value @plain@) RETURNS @type@
    AS 'MODULE_PATHNAME', '@type@_encrypt'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypt(@plain@) IS 'encrypt a @plain@ under the primary key';

CREATE FUNCTION encrypt(value @plain@, key name) RETURNS @type@
    AS 'MODULE_PATHNAME', '@type@_encrypt_under'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypt(@plain@, name) IS 'encrypt a @plain@ under a managed key';

CREATE FUNCTION decrypt(value @type@) RETURNS @plain@
    AS 'MODULE_PATHNAME', '@type@_decrypt'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION decrypt(@type@) IS 'decrypt; an error if that is not possible';

CREATE FUNCTION try_decrypt(value @type@) RETURNS @plain@
    AS 'MODULE_PATHNAME', '@type@_try_decrypt'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION try_decrypt(@type@) IS 'decrypt; NULL if that is not possible';

CREATE FUNCTION ciphertext(value @type@) RETURNS text
    AS 'MODULE_PATHNAME', 'encrypted_ciphertext'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION ciphertext(@type@) IS 'the stored bytes as text, colcrypt:v1:…';

CREATE FUNCTION from_ciphertext@suffix@(ciphertext text) RETURNS @type@
    AS 'MODULE_PATHNAME', '@type@_from_ciphertext'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION from_ciphertext@suffix@(text) IS 'take in what ciphertext() printed';

CREATE FUNCTION fernet_token(value @type@) RETURNS text
    AS 'MODULE_PATHNAME', 'encrypted_fernet_token'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION fernet_token(@type@) IS
    'the Fernet token, gAAAAA…, of a value that is encrypted with algorithm fernet';

CREATE FUNCTION from_fernet@suffix@(token text) RETURNS @type@
    AS 'MODULE_PATHNAME', '@type@_from_fernet'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION from_fernet@suffix@(text) IS 'take in a Fernet token made under a key of the key ring';

-- Whoever may bring ciphertext in can have the database decrypt it.
REVOKE EXECUTE ON FUNCTION from_ciphertext@suffix@(text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION from_fernet@suffix@(text) FROM PUBLIC;

CREATE FUNCTION colcrypt.inspect(
    value @type@,
    OUT format integer,
    OUT suite text,
    OUT key_id text,
    OUT plaintext_bytes integer,
    OUT stored_bytes integer,
    OUT sealed_at timestamptz
)
    AS 'MODULE_PATHNAME', 'colcrypt_inspect'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION colcrypt.inspect(@type@) IS
    'what a stored value tells without a key';

CREATE FUNCTION colcrypt.verify_value(
    value @type@,
    OUT key_id text,
    OUT suite text,
    OUT failure text
)
    AS 'MODULE_PATHNAME', '@type@_verify'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION colcrypt.verify_value(@type@) IS
    'why a value cannot be decrypted; NULL if it can';

$template$);

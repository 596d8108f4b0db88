-- Everyday functions, beside the type.

CREATE FUNCTION encrypt(value text) RETURNS encrypted_text
    AS 'MODULE_PATHNAME', 'encrypted_text_encrypt_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypt(text) IS 'encrypt a text under the primary key';

CREATE FUNCTION encrypt(value text, key name) RETURNS encrypted_text
    AS 'MODULE_PATHNAME', 'encrypted_text_encrypt_under_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypt(text, name) IS 'encrypt a text under a managed key';

CREATE FUNCTION decrypt(value encrypted_text) RETURNS text
    AS 'MODULE_PATHNAME', 'encrypted_text_decrypt_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION decrypt(encrypted_text) IS 'decrypt; an error if that is not possible';

CREATE FUNCTION try_decrypt(value encrypted_text) RETURNS text
    AS 'MODULE_PATHNAME', 'encrypted_text_try_decrypt_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION try_decrypt(encrypted_text) IS 'decrypt; NULL if that is not possible';

CREATE FUNCTION ciphertext(value encrypted_text) RETURNS text
    AS 'MODULE_PATHNAME', 'encrypted_text_ciphertext_wrapper'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION ciphertext(encrypted_text) IS 'the stored bytes as text, colcrypt:v1:…';

CREATE FUNCTION from_ciphertext(ciphertext text) RETURNS encrypted_text
    AS 'MODULE_PATHNAME', 'encrypted_text_from_ciphertext_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION from_ciphertext(text) IS 'take in what ciphertext() printed';

CREATE FUNCTION fernet_token(value encrypted_text) RETURNS text
    AS 'MODULE_PATHNAME', 'encrypted_text_fernet_token_wrapper'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION fernet_token(encrypted_text) IS
    'the Fernet token, gAAAAA…, of a value that is encrypted with algorithm fernet';

CREATE FUNCTION from_fernet(token text) RETURNS encrypted_text
    AS 'MODULE_PATHNAME', 'encrypted_text_from_fernet_wrapper'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION from_fernet(text) IS 'take in a Fernet token made under a key of the key ring';

-- Whoever may bring ciphertext in can have the database decrypt it.
REVOKE EXECUTE ON FUNCTION from_ciphertext(text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION from_fernet(text) FROM PUBLIC;

-- The everyday functions and those of schema colcrypt.

-- The outcome of a command: its SQLSTATE and message, and whether it was an error at all.
CREATE FUNCTION pg_temp.outcome(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
    detail text;
BEGIN
    EXECUTE command INTO result;
    RETURN 'ok: ' || COALESCE(result, 'NULL');
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
    RETURN concat_ws(' | ', SQLSTATE, SQLERRM, NULLIF(detail, ''));
END
$$;

-- encrypt, decrypt, try_decrypt.
SELECT decrypt(encrypt('x')) AS x, pg_typeof(encrypt('x')), pg_typeof(decrypt('x'));
SELECT decrypt(encrypt('')) = '' AS t;
SELECT encrypt(NULL) IS NULL AS t, decrypt(NULL) IS NULL AS t, try_decrypt(NULL) IS NULL AS t;
SELECT try_decrypt(encrypt('x')) AS x;
SELECT decrypt(encrypt('🔐')) AS "🔐";
SELECT ciphertext(encrypt('x')) <> ciphertext(encrypt('x')) AS t;

-- ciphertext and from_ciphertext.
SELECT ciphertext('x') ~ '^colcrypt:v1:[A-Za-z0-9_-]{62}$' AS t;
SELECT ciphertext(NULL) IS NULL AS t, from_ciphertext(NULL) IS NULL AS t;
SELECT from_ciphertext(ciphertext(encrypt('there and back'))) AS "there and back";
CREATE TEMP TABLE kept (algorithm text, secret encrypted_text);
SET colcrypt.algorithm = 'xaes-256-gcm';
INSERT INTO kept SELECT 'xaes-256-gcm', encrypt(s) FROM unnest(ARRAY['', 'x', 'longer than sixteen bytes']) AS s;
SET colcrypt.algorithm = 'aes-256-gcm';
INSERT INTO kept SELECT 'aes-256-gcm', encrypt(s) FROM unnest(ARRAY['', 'x', 'longer than sixteen bytes']) AS s;
SET colcrypt.algorithm = 'fernet';
INSERT INTO kept SELECT 'fernet', encrypt(s) FROM unnest(ARRAY['', 'x', 'longer than sixteen bytes']) AS s;
SET colcrypt.algorithm = 'envelope';
INSERT INTO kept SELECT 'envelope', encrypt(s) FROM unnest(ARRAY['', 'x', 'longer than sixteen bytes']) AS s;
RESET colcrypt.algorithm;
SET colcrypt.algorithm = 'rot13';
-- Every suite is read whatever the setting says, and comes back byte for byte.
SELECT algorithm, secret, ciphertext(from_ciphertext(ciphertext(secret))) = ciphertext(secret) AS t
FROM kept ORDER BY algorithm COLLATE "C", length(secret);

-- inspect needs no key. The plaintext's length is known but for Fernet, which pads.
SELECT (i).format, (i).suite, (i).key_id, (i).plaintext_bytes, (i).stored_bytes,
    (i).sealed_at IS NOT NULL AS has_time
FROM (SELECT algorithm, colcrypt.inspect(secret) AS i FROM kept) AS k
ORDER BY algorithm COLLATE "C", stored_bytes;
SELECT pg_typeof(sealed_at), now() - sealed_at BETWEEN '0' AND '1 hour' AS t
FROM kept, colcrypt.inspect(secret) WHERE algorithm = 'fernet' AND length(secret) = 1;
SELECT colcrypt.inspect(NULL) IS NULL AS t;

-- Fernet tokens, and the example of the Fernet specification.
SELECT fernet_token(secret) ~ '^gAAAAA[A-Za-z0-9_=-]{94}$' AS t,
    decrypt(from_fernet(fernet_token(secret))) AS x,
    decrypt(from_fernet(rtrim(fernet_token(secret), '='))) AS x,
    ciphertext(from_fernet(fernet_token(secret))) = ciphertext(secret) AS t
FROM kept WHERE algorithm = 'fernet' AND length(secret) = 1;
SELECT fernet_token(NULL) IS NULL AS t, from_fernet(NULL) IS NULL AS t;
SELECT pg_temp.outcome($$SELECT fernet_token('x')$$);
LOAD 'colcrypt';
SET colcrypt.key = 'cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=';
SELECT from_fernet('gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==')
    AS hello;
SELECT suite, key_id = split_part(current_setting('colcrypt.key'), ',', 1) AS t,
    sealed_at AT TIME ZONE 'UTC' AS sealed_at
FROM colcrypt.inspect(from_fernet('gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA=='));
RESET colcrypt.key;
SELECT pg_temp.outcome($$SELECT from_fernet('gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==')$$);

-- Malformed ciphertext and tokens.
SELECT quote_literal(form) AS form, pg_temp.outcome(format('SELECT from_ciphertext(%L)', form))
FROM unnest(ARRAY['', 'x', 'colcrypt:v1:', 'colcrypt:v1', 'colcrypt:v2:AQ', 'COLCRYPT:v1:AQ', ' colcrypt:v1:AQ',
    'colcrypt:v1:AQ', 'colcrypt:v1:AQ==', 'colcrypt:v1:A', 'colcrypt:v1:+/+/', 'colcrypt:v1:é',
    E'colcrypt:v1:AQ\n', 'colcrypt:v1:' || repeat('A', 100), 'colcrypt:v1:' || repeat('_', 100),
    'gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==']) AS form;
SELECT quote_literal(left(form, 30)) AS form, pg_temp.outcome(format('SELECT from_fernet(%L)', form))
FROM unnest(ARRAY['', 'x', 'gAAAAA', 'gAAAAA==', 'colcrypt:v1:AQ', repeat('A', 100), 'gA' || repeat('A', 98),
    'gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==' || E'\n',
    'gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ/eEwCGM4BLLF/5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==']) AS form;
-- What is refused is not shown.
SELECT count(*) AS shown
FROM unnest(ARRAY['colcrypt:v1:hunter2', 'colcrypt:v9hunter2', 'hunter2']) AS form
WHERE pg_temp.outcome(format('SELECT from_ciphertext(%L)', form)) LIKE '%hunter2%'
    OR pg_temp.outcome(format('SELECT from_fernet(%L)', form)) LIKE '%hunter2%';

-- Who may bring ciphertext in.
CREATE ROLE colcrypt_test_user;
GRANT USAGE ON SCHEMA public TO colcrypt_test_user;
DO $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO colcrypt_test_user', pg_my_temp_schema()::regnamespace);
END
$$;
GRANT SELECT ON kept TO colcrypt_test_user;
SET ROLE colcrypt_test_user;
SELECT pg_temp.outcome($$SELECT from_ciphertext('x')$$);
SELECT pg_temp.outcome($$SELECT from_fernet('x')$$);
SELECT decrypt(encrypt('x')) AS x, ciphertext('x') LIKE 'colcrypt:v1:%' AS t,
    length(colcrypt.generate_key()) AS "44", (colcrypt.inspect('x')).suite;
RESET ROLE;
GRANT EXECUTE ON FUNCTION from_ciphertext(text) TO colcrypt_test_user;
SET ROLE colcrypt_test_user;
SELECT from_ciphertext(ciphertext(encrypt('granted'))) AS granted;
RESET ROLE;
REVOKE EXECUTE ON FUNCTION from_ciphertext(text) FROM colcrypt_test_user;
DROP OWNED BY colcrypt_test_user;
DROP ROLE colcrypt_test_user;

-- encrypt with the name of a key.
SELECT colcrypt.create_key('of functions') ~ '^[0-9a-f]{8}$' AS t;
SELECT encrypt('x', 'of functions') AS x, decrypt(encrypt('x', 'of functions')) AS x;
SELECT name FROM colcrypt.inspect(encrypt('x', 'of functions')) JOIN colcrypt.key USING (key_id);
SELECT encrypt(NULL, 'of functions') IS NULL AS t, encrypt('x', NULL) IS NULL AS t;
SELECT pg_temp.outcome($$SELECT encrypt('x', 'nobody')$$);
SELECT pg_temp.outcome($$SELECT encrypt('colcrypt:v1:x', 'of functions')$$);
SELECT name, pg_temp.outcome(format('SELECT colcrypt.create_key(%L)', name))
FROM unnest(ARRAY['', '#1', 'ключ', E'a\tb', repeat('x', 64), 'of functions']) AS name;
SELECT pg_temp.outcome($$SELECT colcrypt.create_key('x', 'rot13')$$);
SELECT command, pg_temp.outcome(format('SELECT colcrypt.%s', command))
FROM unnest(ARRAY['rotate_key(''nobody'')', 'shred_key(''nobody'')', 'grant_key(''nobody'', ''pg_monitor'')',
    'revoke_key(''nobody'', ''pg_monitor'')']) AS command;

-- What each mode of access lets a session ask for by name.
SET colcrypt.algorithm = 'fernet';
CREATE TEMP TABLE asked AS SELECT encrypt('x') AS secret;
RESET colcrypt.algorithm;
CREATE FUNCTION pg_temp.kind_of(command text) RETURNS text LANGUAGE sql AS $$
    SELECT regexp_replace(regexp_replace(pg_temp.outcome(command), 'colcrypt:v1:.+', 'ciphertext'), 'gAAAAA.+', 'token')
$$;
SELECT access, command, pg_temp.kind_of(format('SELECT %s FROM asked', command))
FROM unnest(ARRAY['full', 'masked', 'ciphertext']) AS access,
    LATERAL set_config('colcrypt.access', access, false) AS setting,
    unnest(ARRAY['secret', 'secret::text', 'decrypt(secret)', 'try_decrypt(secret)', 'ciphertext(secret)',
        'fernet_token(secret)', 'secret = secret', '(colcrypt.inspect(secret)).suite']) AS command
WHERE setting = access;
RESET colcrypt.access;
DROP TABLE asked;

-- generate_key: 32 random bytes, in a form that the key ring takes.
SELECT length(colcrypt.generate_key()) AS "44",
    colcrypt.generate_key() ~ '^[A-Za-z0-9_-]{43}=$' AS t,
    colcrypt.generate_key() <> colcrypt.generate_key() AS t,
    octet_length(decode(translate(colcrypt.generate_key(), '-_', '+/'), 'base64')) AS "32";
SELECT count(DISTINCT key) AS "100" FROM (SELECT colcrypt.generate_key() AS key FROM generate_series(1, 100)) AS k;
SELECT set_config('colcrypt.key', colcrypt.generate_key(), false) ~ '^[0-9a-f]{8}$' AS t;
SELECT decrypt(encrypt('under it')) AS "under it";
RESET colcrypt.key;

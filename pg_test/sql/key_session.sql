-- Keys that a session brings along: colcrypt.key.

-- Keys made for this test, and nothing else: a is the server's (dff573a2).
\set a 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='
\set b 'ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8='
\set c '404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f'
CREATE FUNCTION under(value text) RETURNS text STABLE LANGUAGE sql
    AS 'SELECT key_id FROM colcrypt.inspect(encrypt(value))';

-- Set before the library is loaded: PostgreSQL keeps it until then.
\c -
SET colcrypt.key = :'b';
SELECT under('x') AS b;
SHOW colcrypt.key;
\c -
LOAD 'colcrypt';
SHOW colcrypt.key;

-- A session's keys stand in front of the server's, whose values stay readable.
CREATE TABLE mine (id int, secret encrypted_text);
INSERT INTO mine VALUES (1, 'the server''s');
SET colcrypt.key = :'b';
INSERT INTO mine VALUES (2, 'under b');
SELECT id, secret, (colcrypt.inspect(secret)).key_id FROM mine ORDER BY id;
SELECT set_config('colcrypt.key', :'c' || ' ' || :'b', false) AS "c, b";
INSERT INTO mine VALUES (3, 'under c');
SELECT id, secret, (colcrypt.inspect(secret)).key_id FROM mine ORDER BY id;

-- Shown as ids, never as keys, not even to a superuser.
SHOW colcrypt.key;
SELECT current_setting('colcrypt.key') ~ '^[0-9a-f]{8}(, [0-9a-f]{8})*$' AS t;
SELECT count(*) AS none FROM pg_settings WHERE name = 'colcrypt.key';
SELECT count(*) AS none FROM pg_settings
WHERE strpos(concat(setting, reset_val, boot_val), :'b') > 0 OR strpos(concat(setting, reset_val, boot_val), :'c') > 0;
SELECT name, context, vartype, setting, boot_val, enumvals FROM pg_settings
WHERE name LIKE 'colcrypt.%' AND name <> 'colcrypt.key_file' ORDER BY name COLLATE "C";

-- RESET, SET TO DEFAULT, the empty string and DISCARD ALL drop them.
RESET colcrypt.key;
SHOW colcrypt.key;
SELECT under('x') AS dff573a2;
SELECT secret FROM mine WHERE id = 3;
SET colcrypt.key = :'b';
SET colcrypt.key TO DEFAULT;
SELECT under('x') AS dff573a2;
SET colcrypt.key = :'b';
SET colcrypt.key = '';
SELECT under('x') AS dff573a2;
SET colcrypt.key = :'b';
DISCARD ALL;
SELECT under('x') AS dff573a2;
SELECT try_decrypt(secret) IS NULL AS t FROM mine WHERE id = 2;

-- SET LOCAL ends with the transaction.
BEGIN;
SET LOCAL colcrypt.key = :'b';
SELECT under('x') AS b;
SELECT secret FROM mine WHERE id = 2;
COMMIT;
SELECT under('x') AS dff573a2;
BEGIN;
SELECT set_config('colcrypt.key', :'b', true) AS b;
SELECT under('x') AS b;
ROLLBACK;
SELECT under('x') AS dff573a2;

-- SET in a transaction that is rolled back; savepoints; over a session value.
BEGIN;
SET colcrypt.key = :'b';
ROLLBACK;
SELECT under('x') AS dff573a2;
SET colcrypt.key = :'b';
BEGIN;
SAVEPOINT one;
SET LOCAL colcrypt.key = :'c';
SELECT under('x') AS c;
SAVEPOINT two;
RESET colcrypt.key;
SELECT under('x') AS dff573a2;
ROLLBACK TO two;
SELECT under('x') AS c;
ROLLBACK TO one;
SELECT under('x') AS b;
RELEASE one;
SET LOCAL colcrypt.key = :'c';
COMMIT;
SELECT under('x') AS b;
-- A refused one leaves the one before in force.
\set VERBOSITY terse
SET colcrypt.key = 'hunter2';
\set VERBOSITY default
SELECT under('x') AS b;
RESET colcrypt.key;

-- The server's own key in front or behind changes the primary, not what can be read.
SELECT set_config('colcrypt.key', :'a' || ',' || :'b', false) AS "a, b";
SELECT under('x') AS dff573a2;
SELECT secret FROM mine WHERE id = 2;
SELECT set_config('colcrypt.key', :'b' || ',' || :'a', false) AS "b, a";
SELECT under('x') AS b;
RESET colcrypt.key;

-- Parallel workers have the session's ring.
SET colcrypt.key = :'b';
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
-- Its name since 16 is debug_parallel_query.
SELECT name AS parallel FROM pg_settings
WHERE name IN ('force_parallel_mode', 'debug_parallel_query') \gset
SET :parallel = on;
EXPLAIN (COSTS OFF) SELECT secret::text AS "under b" FROM mine WHERE id = 2;
SELECT secret::text AS "under b" FROM mine WHERE id = 2;
SELECT secret FROM mine WHERE id = 3;
RESET colcrypt.key;
SELECT secret FROM mine WHERE id = 2;
RESET :parallel;

-- Key rings in every form: lists with comments, hex, base64url, JSON.
SELECT set_config('colcrypt.key', ring, false) FROM unnest(ARRAY[
    :'a', :'c', upper(:'c'), :'a' || ',' || :'c', E'# new\n' || :'a' || E' # primary\n\n\t' || :'c' || ',',
    translate(:'a', '+/', '-_'),
    format('{"primary": "2026-11", "keys": {"2026-05": "%s", "2026-11": "%s"}}', :'a', :'c'),
    format('  {"keys": {"only": "%s"}, "primary": "only"}', :'a'),
    'passphrase:correct-horse-battery-staple-of-32+'
]) AS ring;
RESET colcrypt.key;

-- A bad ring is refused by position or name, and why, never with its content.
CREATE FUNCTION pg_temp.refusal(ring text, OUT sqlstate_ text, OUT message text, OUT detail text, OUT hint text)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('colcrypt.key', ring, true);
    sqlstate_ := 'accepted';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS sqlstate_ = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
        detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
END
$$;
CREATE TEMP TABLE bad AS SELECT n, ring FROM unnest(ARRAY[
    'hunter2', left(:'a', 43), :'a' || '=', '"' || :'a' || '"',
    encode(decode(repeat('07', 31), 'hex'), 'base64'), :'a' || ' ' || encode(decode(repeat('07', 33), 'hex'), 'base64'),
    left(:'c', 62), :'c' || '00', :'a' || ';' || :'c', '# only a comment', ' , ',
    :'a' || ',' || :'a', :'c' || ' ' || upper(:'c'),
    'passphrase:hunter2', 'passphrase:hunter2-hunter2-hunter2-hunter2#2', 'é',
    '{', '{"primary": "k"}', format('{"keys": {"k": "%s"}}', :'a'), '{"primary": "k", "keys": {}}',
    format('{"primary": "k", "keys": {"k": "%s"}, "hunter2": 1}', :'a'),
    format('{"primary": "hunter2", "keys": {"k": "%s"}}', :'a'),
    format('{"primary": "k", "keys": {"k": "%s", "k": "%s"}}', :'a', :'c'),
    format('{"primary": "k", "keys": {"k": "%s", "l": "%s"}}', :'a', :'a'),
    '{"primary": "k", "keys": {"k": "hunter2"}}', '{"primary": "k", "keys": {"k": 5}}',
    format('{"primary": "%s", "keys": {"%s": "k"}}', :'a', :'a'), format('["%s"]', :'a')
]) WITH ORDINALITY AS r (ring, n);
SELECT n, sqlstate_, message, detail FROM bad, pg_temp.refusal(ring) ORDER BY n;
SELECT DISTINCT hint FROM bad, pg_temp.refusal(ring);
SELECT count(*) AS shown FROM bad, pg_temp.refusal(ring)
WHERE concat(message, detail, hint) ~ 'hunter2|AAEC|BwcH|4041|correct';
SELECT under('x') AS dff573a2;

-- It cannot be kept where every user could read it.
CREATE ROLE colcrypt_test_user;
ALTER ROLE colcrypt_test_user SET colcrypt.key = :'b';
SELECT format('ALTER DATABASE %I SET colcrypt.key = %L', current_database(), :'b') AS alter_database \gset
:alter_database;
SELECT format('ALTER ROLE ALL IN DATABASE %I SET colcrypt.key = %L', current_database(), :'b') AS alter_database \gset
:alter_database;
ALTER ROLE colcrypt_test_user SET colcrypt.key = '';
SET colcrypt.key = :'b';
ALTER ROLE colcrypt_test_user SET colcrypt.key FROM CURRENT;
CREATE FUNCTION pg_temp.from_current() RETURNS int LANGUAGE sql SET colcrypt.key FROM CURRENT AS 'SELECT 1';
RESET colcrypt.key;
ALTER ROLE colcrypt_test_user RESET colcrypt.key;
CREATE FUNCTION pg_temp.with_key() RETURNS int LANGUAGE sql SET colcrypt.key = :'b' AS 'SELECT 1';
CREATE FUNCTION pg_temp.without_key() RETURNS int LANGUAGE sql AS 'SELECT 1';
ALTER FUNCTION pg_temp.without_key() SET colcrypt.key = :'b';
SELECT count(*) AS none FROM pg_db_role_setting WHERE array_to_string(setconfig, ' ') LIKE '%colcrypt.key%';
SELECT count(*) AS none FROM pg_proc WHERE array_to_string(proconfig, ' ') LIKE '%colcrypt.key%';
ALTER SYSTEM SET colcrypt.key = :'b';
-- The other settings can be.
ALTER ROLE colcrypt_test_user SET colcrypt.algorithm = 'fernet';
CREATE FUNCTION sealed_with() RETURNS text LANGUAGE sql SET colcrypt.algorithm = 'envelope'
    AS 'SELECT suite FROM colcrypt.inspect(encrypt(''x''))';
SELECT sealed_with() AS envelope;
SHOW colcrypt.algorithm;
DROP FUNCTION sealed_with;

-- What names a source is for the configuration file; an ordinary role sees no path.
SET colcrypt.key_file = '/tmp/x';
SET colcrypt.key_env = 'X';
SET ROLE colcrypt_test_user;
SET colcrypt.key_file = '/tmp/x';
\set VERBOSITY sqlstate
SHOW colcrypt.key_file;
\set VERBOSITY default
SET colcrypt.key = :'b';
SHOW colcrypt.key;
SELECT under('x') AS b;
RESET ROLE;
RESET colcrypt.key;
SET colcrypt.nonsense = 1;

DROP TABLE mine;
DROP FUNCTION under;
DROP ROLE colcrypt_test_user;

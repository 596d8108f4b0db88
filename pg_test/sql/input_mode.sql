-- What comes in: plaintext, unless a superuser asks for ciphertext.

CREATE FUNCTION pg_temp.outcome(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    EXECUTE command INTO result;
    RETURN 'ok: ' || COALESCE(result, 'NULL');
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;
LOAD 'colcrypt';
\set other 'ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8='
CREATE TABLE incoming (id int, secret encrypted_text);

-- Plaintext that could be taken for ciphertext is refused by every way in.
SELECT 'colcrypt:v1:x'::encrypted_text;
SELECT command, pg_temp.outcome(command) FROM unnest(ARRAY[
    $$SELECT 'colcrypt:v1:x'::encrypted_text$$,
    $$SELECT 'colcrypt:v2'::text::encrypted_text$$,
    $$SELECT 'colcrypt:v9:'::varchar::encrypted_text$$,
    $$SELECT 'colcrypt:v0'::char(20)::encrypted_text$$,
    $$SELECT 'colcrypt:v1'::name::encrypted_text$$,
    $$SELECT encrypt('colcrypt:v1:AQ')$$,
    $$SELECT encrypted_text_in('colcrypt:v1:', 0, -1)$$,
    $$INSERT INTO incoming VALUES (1, 'colcrypt:v1:x')$$,
    $$INSERT INTO incoming SELECT 1, 'colcrypt:v' || 1$$,
    $$INSERT INTO incoming VALUES (1, ciphertext('x'))$$
]) AS command;
COPY incoming FROM STDIN;
1	colcrypt:v1:x
\.
COPY incoming FROM STDIN (FORMAT csv);
1,"colcrypt:v1:x"
\.
SELECT current_setting('data_directory') || '/colcrypt_input_test' AS filename \gset
COPY (SELECT 1, 'colcrypt:v1:x'::text) TO :'filename' (FORMAT binary);
\set VERBOSITY sqlstate
COPY incoming FROM :'filename' (FORMAT binary);
\set VERBOSITY default
SELECT count(*) AS none FROM incoming;
-- What only resembles it is plaintext.
SELECT s::encrypted_text AS secret FROM unnest(ARRAY['colcrypt', 'colcrypt:v', 'colcrypt:vx', 'colcrypt:value',
    ' colcrypt:v1:', 'Colcrypt:v1:', 'COLCRYPT:V1:', 'xcolcrypt:v1:', 'colcrypt:v١']) AS s;
-- The refusal does not show the value.
SELECT pg_temp.outcome($$SELECT 'colcrypt:v1:hunter2'::text::encrypted_text$$) LIKE '%hunter2%' AS f;

-- Ciphertext, only for a superuser who asks for it.
CREATE TEMP TABLE dump AS SELECT ciphertext(s::encrypted_text) AS form FROM unnest(ARRAY['one', 'two']) AS s;
CREATE ROLE colcrypt_test_user;
GRANT ALL ON dump, incoming TO colcrypt_test_user;
SET ROLE colcrypt_test_user;
SET colcrypt.input = 'ciphertext';
SELECT set_config('colcrypt.input', 'ciphertext', false);
SHOW colcrypt.input;
RESET ROLE;
SET colcrypt.input = 'cipher';
SET colcrypt.input = 'ciphertext';
INSERT INTO incoming SELECT row_number() OVER (), form FROM dump;
SELECT id, secret FROM incoming ORDER BY id;
SELECT bool_and(ciphertext(secret) IN (SELECT form FROM dump)) AS t FROM incoming;
-- Now plaintext is what is refused.
SELECT 'hello'::encrypted_text;
SELECT command, pg_temp.outcome(command) FROM unnest(ARRAY[
    $$SELECT 'hello'::text::encrypted_text$$,
    $$SELECT ''::text::encrypted_text$$,
    $$SELECT encrypt('hello')$$,
    $$SELECT 12::encrypted_text$$,
    $$SELECT true::encrypted_text$$,
    $$SELECT 'colcrypt:v1:AQ'::text::encrypted_text$$,
    $$SELECT 'colcrypt:v2:AQ'::text::encrypted_text$$,
    $$INSERT INTO incoming VALUES (3, 'hello')$$
]) AS command;
COPY (SELECT 1, 'hello'::text) TO :'filename' (FORMAT binary);
\set VERBOSITY sqlstate
COPY incoming FROM :'filename' (FORMAT binary);
\set VERBOSITY default
SELECT format('rm -f %L', :'filename') AS remove \gset
COPY (SELECT NULL WHERE false) TO PROGRAM :'remove';
-- A damaged value is not let in while its key is at hand.
SELECT pg_temp.outcome(format('SELECT %L::text::encrypted_text',
    overlay(form PLACING CASE substr(form, 45, 1) WHEN 'A' THEN 'B' ELSE 'A' END FROM 45))) FROM dump LIMIT 1;
-- Values copied from column to column do not come in.
UPDATE incoming SET secret = secret RETURNING secret;
RESET colcrypt.input;
SET LOCAL colcrypt.input = 'ciphertext';
SHOW colcrypt.input;

-- Ciphertext under a key that is not loaded is stored as it is. Reading it names the
-- id that it needs and the ids that are loaded.
SET colcrypt.key = :'other';
CREATE TEMP TABLE foreign_dump AS SELECT ciphertext(encrypt('made elsewhere')) AS form;
RESET colcrypt.key;
SET colcrypt.input = 'ciphertext';
INSERT INTO incoming SELECT 4, form FROM foreign_dump;
RESET colcrypt.input;
INSERT INTO incoming SELECT 5, from_ciphertext(form) FROM foreign_dump;
SELECT secret FROM incoming WHERE id = 4;
SELECT pg_temp.outcome('SELECT secret FROM incoming WHERE id = 5');
SELECT try_decrypt(secret) IS NULL AS t, (colcrypt.inspect(secret)).*,
    ciphertext(secret) = (SELECT form FROM foreign_dump) AS t
FROM incoming WHERE id = 4;
-- Rows that can be read are not held up by it.
SELECT id, try_decrypt(secret) FROM incoming ORDER BY id;
SET colcrypt.key = :'other';
SELECT id, secret FROM incoming ORDER BY id;
RESET colcrypt.key;

DROP TABLE incoming;
DROP OWNED BY colcrypt_test_user;
DROP ROLE colcrypt_test_user;

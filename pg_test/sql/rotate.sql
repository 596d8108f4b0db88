-- rotate_column: what is stale moves to the primary and the current algorithm,
-- nothing else is touched.

LOAD 'colcrypt';
\set a 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='
\set b 'ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8='
CREATE TABLE tokens (id int PRIMARY KEY, secret encrypted_text, note text);
CREATE VIEW state AS SELECT id, secret::text AS secret, suite, key_id, note
FROM tokens LEFT JOIN colcrypt.inspect(secret) ON true;
SET colcrypt.key = :'b';
INSERT INTO tokens SELECT i, 'old ' || i, 'note' FROM generate_series(1, 3) AS i;
INSERT INTO tokens VALUES (4, NULL, 'null'), (5, encrypt(''), 'empty');
RESET colcrypt.key;
INSERT INTO tokens VALUES (6, 'fresh', 'note');

-- The old key is missing: its id is named, and nothing changes.
CREATE TEMP TABLE before AS SELECT id, ctid AS tid, xmin AS x, ciphertext(secret) AS form FROM tokens;
SELECT rotate_column('tokens', 'secret');
SELECT count(*) AS changed FROM tokens AS t JOIN before AS b USING (id)
WHERE t.ctid <> b.tid OR t.xmin <> b.x OR ciphertext(secret) IS DISTINCT FROM form;

-- The same half-way and caught: what was done by then is undone, and the session goes on.
CREATE TABLE half AS SELECT i AS id, encrypt('new ' || i) AS secret FROM generate_series(1, 3) AS i;
SET colcrypt.key = :'b';
INSERT INTO half VALUES (4, 'old 4');
RESET colcrypt.key;
BEGIN;
DO $$
BEGIN
    PERFORM set_config('colcrypt.algorithm', 'fernet', true);
    PERFORM rotate_column('half', 'secret');
EXCEPTION WHEN object_not_in_prerequisite_state THEN
    RAISE NOTICE '%', SQLERRM;
END
$$;
SELECT current_user = session_user AS t, current_setting('colcrypt.algorithm') AS algorithm;
SET LOCAL colcrypt.algorithm = 'fernet';
SELECT rotate_column('half', 'secret', max_rows => 2) AS "2";
COMMIT;
SELECT id, (colcrypt.inspect(secret)).suite FROM half ORDER BY id;
DROP TABLE half;

-- The ring's order decides: the first key is where values move to.
SELECT set_config('colcrypt.key', :'a' || ',' || :'b', false) AS "new, old";
SELECT rotate_column('tokens', 'secret') AS "4";
SELECT * FROM state ORDER BY id;
-- Only stale rows have a new version.
SELECT id, t.ctid <> b.tid AS moved, ciphertext(secret) IS DISTINCT FROM form AS sealed_again
FROM tokens AS t JOIN before AS b USING (id) ORDER BY id;
SELECT rotate_column('tokens', 'secret') AS "0";
RESET colcrypt.key;
SELECT rotate_column('tokens', 'secret') AS "0";
SELECT secret FROM tokens ORDER BY id;
SELECT set_config('colcrypt.key', :'b' || ',' || :'a', false) AS "old, new";
SELECT rotate_column('tokens', 'secret') AS "5";
SELECT DISTINCT suite, key_id FROM state WHERE secret IS NOT NULL;
RESET colcrypt.key;
SELECT count(*) AS unreadable FROM tokens WHERE secret IS NOT NULL AND try_decrypt(secret) IS NULL;
SELECT set_config('colcrypt.key', :'a' || ',' || :'b', false) AS "new, old";
SELECT rotate_column('tokens', 'secret') AS "5";
RESET colcrypt.key;

-- A rotation that is rolled back leaves the old values.
DELETE FROM before;
INSERT INTO before SELECT id, ctid, xmin, ciphertext(secret) FROM tokens;
SET colcrypt.algorithm = 'aes-256-gcm';
BEGIN;
SELECT rotate_column('tokens', 'secret') AS "5";
SELECT DISTINCT suite FROM state WHERE secret IS NOT NULL;
ROLLBACK;
SELECT count(*) AS changed FROM tokens AS t JOIN before AS b USING (id)
WHERE t.ctid <> b.tid OR ciphertext(secret) IS DISTINCT FROM form;
BEGIN;
SAVEPOINT one;
SELECT rotate_column('tokens', 'secret') AS "5";
ROLLBACK TO one;
SELECT DISTINCT suite FROM state WHERE secret IS NOT NULL;
COMMIT;

-- Algorithms: to each and back.
SELECT rotate_column('tokens', 'secret') AS "5";
SET colcrypt.algorithm = 'fernet';
SELECT rotate_column('tokens', 'secret') AS "5";
SELECT rotate_column('tokens', 'secret') AS "0";
SELECT decrypt(from_fernet(fernet_token(secret))) AS "old 1" FROM tokens WHERE id = 1;
SET colcrypt.algorithm = 'envelope';
SELECT rotate_column('tokens', 'secret') AS "5";
SELECT id, secret, suite FROM state ORDER BY id;
RESET colcrypt.algorithm;
SELECT rotate_column('tokens', 'secret') AS "5";

-- It sees what its own transaction and statement did before it.
BEGIN;
SET LOCAL colcrypt.algorithm = 'fernet';
SELECT rotate_column('tokens', 'secret') AS "5", rotate_column('tokens', 'secret') AS "0";
RESET colcrypt.algorithm;
UPDATE tokens SET secret = 'updated' WHERE id = 1;
INSERT INTO tokens VALUES (7, 'inserted', 'note');
DELETE FROM tokens WHERE id = 2;
SELECT rotate_column('tokens', 'secret') AS "3";
SELECT * FROM state ORDER BY id;
ROLLBACK;

-- max_rows bounds the work; calling again goes on.
SET colcrypt.algorithm = 'fernet';
SELECT rotate_column('tokens', 'secret', max_rows => 0) AS "0";
SELECT rotate_column('tokens', 'secret', max_rows => 2) AS "2";
SELECT suite, count(*) FROM state WHERE secret IS NOT NULL GROUP BY suite ORDER BY suite;
SELECT rotate_column('tokens', 'secret', 1, 2) AS "2";
SELECT rotate_column('tokens', 'secret', batch_size => 2, max_rows => 100) AS "1";
SELECT rotate_column('tokens', 'secret', max_rows => 2) AS "0";
RESET colcrypt.algorithm;
SELECT rotate_column('tokens', 'secret', 1) AS "5";
SELECT rotate_column('tokens', 'secret', max_rows => 9223372036854775807) AS "0";
SELECT rotate_column('tokens', 'secret', 2147483647, NULL) AS "0";
-- Named and positional arguments, from PL/pgSQL, in a loop.
SET colcrypt.algorithm = 'aes-256-gcm';
DO $$
DECLARE
    done bigint;
BEGIN
    LOOP
        done := rotate_column(relation => 'tokens', column_name => 'secret', max_rows => 2);
        EXIT WHEN done = 0;
        RAISE NOTICE '%', done;
    END LOOP;
END
$$;
RESET colcrypt.algorithm;

-- An empty table, a table of NULLs, temporary and unlogged tables.
CREATE TABLE empty (secret encrypted_text);
SELECT rotate_column('empty', 'secret') AS "0";
INSERT INTO empty VALUES (NULL), (NULL);
SELECT rotate_column('empty', 'secret') AS "0";
DROP TABLE empty;
CREATE TEMP TABLE temporary AS SELECT encrypt('t') AS secret;
CREATE UNLOGGED TABLE unlogged AS SELECT encrypt('u') AS secret;
SET colcrypt.algorithm = 'envelope';
SELECT rotate_column('temporary', 'secret') AS "1", rotate_column('unlogged', 'secret') AS "1";
RESET colcrypt.algorithm;
SELECT secret, (colcrypt.inspect(secret)).suite FROM temporary UNION ALL
SELECT secret, (colcrypt.inspect(secret)).suite FROM unlogged;
DROP TABLE temporary, unlogged;

-- Many rows over many pages.
CREATE TABLE many AS SELECT i AS id, encrypt('value ' || i) AS secret FROM generate_series(1, 10000) AS i;
SET colcrypt.algorithm = 'aes-256-gcm';
SELECT rotate_column('many', 'secret', max_rows => 1234) AS "1234";
SELECT rotate_column('many', 'secret') AS "8766";
RESET colcrypt.algorithm;
SELECT count(*) AS "10000" FROM many WHERE secret::text = 'value ' || id AND (colcrypt.inspect(secret)).suite = 'aes-256-gcm';
DROP TABLE many;

DROP VIEW state;
DROP TABLE tokens;

-- encrypted_bytea: bytes as psql shows them.

LOAD 'colcrypt';
\set a 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='
\set b 'ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8='
CREATE TABLE keys (id int PRIMARY KEY, raw encrypted_bytea);
\d keys

-- What bytea takes, it takes; and shows it as bytea does.
INSERT INTO keys VALUES (1, '\xDEADBEEF'), (2, 'escape \\ \000\377'), (3, ''), (4, '\x'), (5, '\x 00 ff'), (6, 'Grüße'),
    (7, NULL), (8, '\x5c7836');
SELECT id, raw FROM keys ORDER BY id;
SET bytea_output = 'escape';
SELECT id, raw, raw::bytea FROM keys ORDER BY id;
RESET bytea_output;
SELECT id FROM keys WHERE raw IS NULL;
SELECT id, (colcrypt.inspect(raw)).suite, (colcrypt.inspect(raw)).stored_bytes - length(raw) AS overhead
FROM keys WHERE raw IS NOT NULL ORDER BY id;

-- What is no bytea, it does not. The error does not show the value, but says how to see.
INSERT INTO keys VALUES (9, '\xdeadbee');
INSERT INTO keys VALUES (9, '\xdeadbeez');
INSERT INTO keys VALUES (9, 'secret \q');
COPY keys FROM STDIN;
9	\\xdeadbeez
\.
SELECT '\xdeadbee'::bytea;
SELECT '\xdeadbeez'::bytea;
SELECT 'secret \q'::bytea;
INSERT INTO keys VALUES (9, 'colcrypt:v1:AAAA');
INSERT INTO keys VALUES (9, convert_to('colcrypt:v1:AAAA', 'UTF8'));
INSERT INTO keys VALUES (9, 'text'::text);
INSERT INTO keys VALUES (9, 12);

-- Casts: from bytea on assignment, to bytea wherever it is expected.
INSERT INTO keys VALUES (9, '\x0102'::bytea), (10, sha256('x')), (11, decode('AQID', 'base64')), (12, convert_to('é', 'UTF8'));
SELECT id, raw FROM keys WHERE id IN (9, 11, 12) ORDER BY id;
SELECT raw::bytea, raw::text, '\x01'::text::encrypted_bytea FROM keys WHERE id = 9;
CREATE TABLE plain (raw bytea);
INSERT INTO plain SELECT raw FROM keys WHERE id = 9;
TABLE plain;
CREATE FUNCTION pg_temp.length_of(bytea) RETURNS int LANGUAGE sql AS 'SELECT length($1)';
SELECT pg_temp.length_of(raw) AS "2" FROM keys WHERE id = 9;

-- Functions and operators of bytea.
SELECT length(raw), octet_length(raw), bit_length(raw), encode(raw, 'hex'), encode(raw, 'base64'),
    get_byte(raw, 0), get_bit(raw, 1), md5(raw), encode(sha256(raw), 'hex') = encode(sha256('\xdeadbeef'), 'hex') AS t
FROM keys WHERE id = 1;
SELECT substring(raw FROM 2 FOR 2), substr(raw, 3), position('\xbe'::bytea IN raw), overlay(raw PLACING '\x00'::bytea FROM 1),
    trim('\xde'::bytea FROM raw), btrim(raw, '\xdeef'::bytea), pg_typeof(substring(raw FROM 2 FOR 2))
FROM keys WHERE id = 1;
SELECT convert_from(raw, 'UTF8') FROM keys WHERE id IN (6, 12) ORDER BY id;
SELECT convert_from(raw, 'UTF8') FROM keys WHERE id = 1;
SELECT raw || '\x00' AS after, '\x00' || raw AS before, raw || raw AS twice, raw || '\x00'::bytea AS bytea,
    pg_typeof(raw || '\x00')
FROM keys WHERE id = 1;
SELECT id FROM keys WHERE raw LIKE '\xde25' OR raw LIKE '%xe%'::bytea OR raw LIKE 'Gr%' ORDER BY id;
SELECT id FROM keys WHERE raw::bytea LIKE '\xde25' OR raw::bytea LIKE '%xe%'::bytea OR raw::bytea LIKE 'Gr%' ORDER BY id;
SELECT string_agg(raw, '\x2c' ORDER BY id) FROM keys WHERE id IN (1, 9);
SELECT set_byte(raw, 0, 0), set_bit(raw, 0, 1) FROM keys WHERE id = 1;

-- What they give is bytea, which an assignment encrypts.
UPDATE keys SET raw = raw || '\x00' WHERE id = 1 RETURNING raw;
UPDATE keys SET raw = substring(raw FROM 1 FOR 4) WHERE id = 1 RETURNING raw;
UPDATE keys SET raw = set_byte(raw, 1, 255) WHERE id = 9 RETURNING raw;
UPDATE keys SET raw = decode(encode(raw, 'base64'), 'base64') WHERE id = 9 RETURNING raw;
INSERT INTO keys VALUES (9, '\xff') ON CONFLICT (id) DO UPDATE SET raw = keys.raw || EXCLUDED.raw RETURNING raw;

-- COPY, and JSON.
COPY (SELECT * FROM keys WHERE id < 6 ORDER BY id) TO STDOUT;
COPY (SELECT * FROM keys WHERE id < 6 ORDER BY id) TO STDOUT (FORMAT csv);
COPY keys FROM STDIN;
13	\\x0D0A
14	\\015\\012
\.
SELECT raw FROM keys WHERE id IN (13, 14);
SELECT to_jsonb(keys), row_to_json(keys) FROM keys WHERE id = 13;

-- Prepared statements, with parameters that have a type and that have none.
PREPARE put (int, bytea) AS INSERT INTO keys VALUES ($1, $2) RETURNING raw;
PREPARE put_sealed (int, encrypted_bytea) AS INSERT INTO keys VALUES ($1, $2) RETURNING raw;
PREPARE put_untyped AS INSERT INTO keys VALUES ($1, $2) RETURNING raw;
PREPARE put_text (int, text) AS INSERT INTO keys VALUES ($1, $2);
EXECUTE put (15, '\x0f0F');
EXECUTE put_sealed (16, '\x0f0F');
EXECUTE put_untyped (17, '\x0f0F');
EXECUTE put_untyped (18, '\x0f0');
PREPARE find (bytea) AS SELECT id FROM keys WHERE raw = $1 ORDER BY id;
PREPARE find_untyped AS SELECT id FROM keys WHERE raw = $1 ORDER BY id;
PREPARE append AS UPDATE keys SET raw = raw || $2 WHERE id = $1 RETURNING raw;
PREPARE place AS SELECT position($1 IN raw) FROM keys WHERE id = 15;
SELECT name, parameter_types FROM pg_prepared_statements ORDER BY name COLLATE "C";
EXECUTE find ('\x0f0f');
EXECUTE find_untyped ('\017\017');
EXECUTE append (15, '\x10');
EXECUTE place ('\x10');
DEALLOCATE ALL;

-- Equality is that of the bytes, however they are written. Other comparisons are not there.
SELECT '\x6162'::encrypted_bytea = 'ab' AS t, '\x6162'::encrypted_bytea = '\141b'::bytea AS t,
    '\x61'::bytea <> '\x6100'::encrypted_bytea AS t, encrypt('\x61'::bytea) = encrypt('\x61'::bytea) AS t,
    encrypt('\x'::bytea) IN ('\x00', '') AS t;
SELECT count(*), count(DISTINCT raw) AS "1" FROM (VALUES (encrypt('\x61'::bytea)), ('a')) AS v (raw);
SELECT id FROM keys WHERE raw < '\xff';
SELECT id FROM keys WHERE raw BETWEEN '\x00' AND '\xff'::bytea;
SELECT id, raw FROM keys WHERE id IN (1, 3, 5) ORDER BY raw::bytea;

-- Indexes: hash and unique for equality; none over the plaintext.
CREATE INDEX keys_hash ON keys USING hash (raw);
SET enable_seqscan = off;
EXPLAIN (COSTS OFF) SELECT id FROM keys WHERE raw = '\xdeadbeef'::bytea;
SELECT id AS "1" FROM keys WHERE raw = '\xdeadbeef'::bytea;
DROP INDEX keys_hash;
DELETE FROM keys WHERE id IN (4, 14, 16, 17);
CREATE UNIQUE INDEX keys_raw ON keys (raw);
EXPLAIN (COSTS OFF) SELECT id FROM keys WHERE raw = '\xdeadbeef';
SELECT id AS "1" FROM keys WHERE raw = '\336\255\276\357';
RESET enable_seqscan;
\set VERBOSITY terse
INSERT INTO keys VALUES (20, '\xDEADbeef');
\set VERBOSITY default
INSERT INTO keys VALUES (20, '\xDEADbeef') ON CONFLICT (raw) DO UPDATE SET id = 21 RETURNING id;
UPDATE keys SET id = 1 WHERE id = 21;
CREATE INDEX ON keys ((raw::bytea));
CREATE INDEX ON keys (sha256(raw));
DROP INDEX keys_raw;

-- A mask is its bytes; ciphertext is as it is stored, and its bytes where bytea is asked for.
SET colcrypt.access = 'masked';
SELECT id, raw FROM keys WHERE id IN (1, 3, 7) ORDER BY id;
SELECT convert_from(raw, 'UTF8') AS mask, length(raw) FROM keys WHERE id = 1;
SET bytea_output = 'escape';
SELECT raw FROM keys WHERE id = 1;
RESET bytea_output;
SELECT decrypt(raw) FROM keys WHERE id = 1;
SELECT id FROM keys WHERE raw = '\x00';
INSERT INTO keys VALUES (22, '\x22') RETURNING raw;
SET colcrypt.access = 'ciphertext';
SELECT raw::text ~ '^colcrypt:v1:[A-Za-z0-9_-]+$' AS t, convert_from(raw, 'UTF8') = ciphertext(raw) AS t FROM keys WHERE id = 1;
RESET colcrypt.access;
SELECT id, raw FROM keys WHERE id IN (1, 22) ORDER BY id;

-- Functions.
SELECT pg_typeof(encrypt('\x00'::bytea)), pg_typeof(decrypt(raw)), decrypt(raw), try_decrypt(raw) FROM keys WHERE id = 1;
SELECT from_ciphertext_bytea(ciphertext(raw)) = raw AS t FROM keys WHERE id = 1;
SELECT from_ciphertext_bytea(ciphertext('text'));
SELECT from_ciphertext(ciphertext(raw)) FROM keys WHERE id = 1;
SET colcrypt.algorithm = 'fernet';
SELECT from_fernet_bytea(fernet_token(encrypt('ab'::text))) AS raw;
RESET colcrypt.algorithm;

-- A key that is missing, and a placeholder.
SET colcrypt.key = :'b';
INSERT INTO keys VALUES (30, '\xb0b0');
RESET colcrypt.key;
SELECT raw FROM keys WHERE id = 30;
SELECT try_decrypt(raw) IS NULL AS t FROM keys WHERE id = 30;
SET colcrypt.undecryptable = 'placeholder';
SELECT convert_from(raw, 'UTF8') FROM keys WHERE id = 30;
RESET colcrypt.undecryptable;

-- Rotation.
SELECT set_config('colcrypt.key', :'a' || ',' || :'b', false) AS "new, old";
SELECT key_id, suite, rows, stale FROM colcrypt.key_usage('keys', 'raw') ORDER BY stale;
SELECT rotate_column('keys', 'raw') AS "1";
RESET colcrypt.key;
SELECT raw FROM keys WHERE id = 30;
SET colcrypt.algorithm = 'envelope';
SELECT rotate_column('keys', 'raw') AS rows, count(*) AS rows FROM keys WHERE raw IS NOT NULL;
RESET colcrypt.algorithm;
SELECT suite, rows FROM colcrypt.key_usage('keys', 'raw');
SELECT id, raw FROM keys WHERE id IN (1, 2, 30) ORDER BY id;
SELECT relation, column_name, type, key_name, indexes FROM colcrypt.columns WHERE relation = 'keys'::regclass;

-- A column becomes encrypted, and plain again.
CREATE TABLE moved (raw bytea DEFAULT '\x00');
INSERT INTO moved VALUES ('\x0102');
ALTER TABLE moved ALTER raw DROP DEFAULT, ALTER raw TYPE encrypted_bytea, ALTER raw SET DEFAULT '\x03';
INSERT INTO moved DEFAULT VALUES;
SELECT raw, (colcrypt.inspect(raw)).suite FROM moved;
ALTER TABLE moved ALTER raw DROP DEFAULT, ALTER raw TYPE bytea;
TABLE moved;

DROP TABLE keys, plain, moved;

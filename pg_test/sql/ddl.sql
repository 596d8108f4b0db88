-- Columns of the type: defaults, constraints, changing the type, what is refused.

-- Defaults and constraints.
CREATE TABLE settings (
    id int PRIMARY KEY,
    secret encrypted_text NOT NULL DEFAULT 'changeme' CHECK (length(secret) >= 4),
    other encrypted_text DEFAULT upper('loud') CONSTRAINT not_bad CHECK (other NOT LIKE 'bad%')
);
INSERT INTO settings (id) VALUES (1) RETURNING secret, other;
INSERT INTO settings VALUES (2, 'long enough', DEFAULT) RETURNING secret, other;
\set VERBOSITY terse
INSERT INTO settings VALUES (3, 'abc');
INSERT INTO settings VALUES (3, NULL);
UPDATE settings SET other = 'bad idea' WHERE id = 1;
\set VERBOSITY default
ALTER TABLE settings ALTER COLUMN secret SET DEFAULT 'another';
INSERT INTO settings (id) VALUES (4) RETURNING secret;
ALTER TABLE settings ADD COLUMN added encrypted_text DEFAULT 'fast default';
SELECT id, added FROM settings ORDER BY id;
CREATE TABLE settings_copy (LIKE settings INCLUDING ALL);
INSERT INTO settings_copy SELECT * FROM settings;
SELECT id, secret, other, added FROM settings_copy ORDER BY id;
CREATE TABLE settings_as AS SELECT id, secret FROM settings;
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = 'settings_as'::regclass AND attnum > 0;

-- The catalog holds such a default sealed. A constant is stored there as its bytes.
ALTER TABLE settings ALTER COLUMN secret SET DEFAULT 'abc';
SELECT adbin::text LIKE '% 97 98 99 %' AS f, pg_get_expr(adbin, adrelid) AS shown FROM pg_attrdef
WHERE adrelid = 'settings'::regclass AND adnum = 2;
DROP TABLE settings, settings_copy, settings_as;

-- A text column becomes an encrypted one and back.
CREATE TABLE was_text (id int, secret text NOT NULL, v varchar(20), c char(6), n int, j jsonb);
INSERT INTO was_text VALUES (1, 'one', 'v1', 'c1', 1, '{"a": 1}'), (2, '', NULL, NULL, NULL, NULL);
ALTER TABLE was_text
    ALTER COLUMN secret TYPE encrypted_text, ALTER COLUMN v TYPE encrypted_text,
    ALTER COLUMN c TYPE encrypted_text, ALTER COLUMN n TYPE encrypted_text,
    ALTER COLUMN j TYPE encrypted_text;
SELECT id, secret, v, c || '|' AS c, n, j, (colcrypt.inspect(secret)).stored_bytes FROM was_text ORDER BY id;
SELECT attname, attnotnull, atttypid::regtype, attstorage, attcollation FROM pg_attribute
WHERE attrelid = 'was_text'::regclass AND attnum > 1 ORDER BY attnum;
ALTER TABLE was_text
    ALTER COLUMN secret TYPE text, ALTER COLUMN v TYPE varchar(20), ALTER COLUMN c TYPE char(6);
ALTER TABLE was_text ALTER COLUMN n TYPE int;
ALTER TABLE was_text ALTER COLUMN n TYPE int USING n::int, ALTER COLUMN j TYPE jsonb USING j::jsonb;
SELECT * FROM was_text ORDER BY id;
DROP TABLE was_text;

-- A default of the text column moves along.
CREATE TABLE with_default (id int, secret text DEFAULT 'def');
ALTER TABLE with_default ALTER COLUMN secret TYPE encrypted_text;
INSERT INTO with_default (id) VALUES (1) RETURNING secret;
DROP TABLE with_default;

-- An expression over the plaintext can neither be indexed nor be stored.
CREATE TABLE refused (id int, secret encrypted_text);
CREATE INDEX ON refused ((secret::text));
CREATE INDEX ON refused (lower(secret));
CREATE INDEX ON refused (id) WHERE secret LIKE 'a%';
ALTER TABLE refused ADD COLUMN plain text GENERATED ALWAYS AS (secret::text) STORED;
ALTER TABLE refused ADD COLUMN plain text GENERATED ALWAYS AS (upper(secret)) STORED;
ALTER TABLE refused ADD COLUMN sealed encrypted_text GENERATED ALWAYS AS (encrypt(id::text)) STORED;
CREATE TABLE refused_too (secret encrypted_text) PARTITION BY RANGE ((secret::text));
-- Nor may what looks for a prefix.
CREATE INDEX ON refused (secret text_pattern_ops);
CREATE INDEX ON refused USING gin (secret);
-- Not collatable.
CREATE TABLE refused_too (secret encrypted_text COLLATE "C");
SELECT secret COLLATE "C" FROM refused;
SELECT secret::text COLLATE "C" FROM refused;
DROP TABLE refused;
-- A default is cast on assignment.
CREATE TABLE by_default (id int, secret encrypted_text DEFAULT 7 * 6, made encrypted_text DEFAULT now());
INSERT INTO by_default VALUES (1) RETURNING secret, made IS NOT NULL AS t;
DROP TABLE by_default;

-- PostgreSQL looks for what is not immutable before it adds the cast to the column's
-- type (cookDefault() in heap.c). So this one it does not refuse, and the plaintext is
-- stored.
CREATE TABLE not_refused (secret encrypted_text, plain text GENERATED ALWAYS AS (secret) STORED);
INSERT INTO not_refused VALUES ('x') RETURNING plain;
DROP TABLE not_refused;

-- Metadata can be computed, for it needs no key.
CREATE TABLE computed (
    secret encrypted_text,
    bytes int GENERATED ALWAYS AS ((colcrypt.inspect(secret)).plaintext_bytes) STORED
);
INSERT INTO computed VALUES ('four') RETURNING bytes;
DROP TABLE computed;

-- Row-level security, over the plaintext.
CREATE ROLE colcrypt_test_reader;
CREATE TABLE owned (owner encrypted_text, value int);
INSERT INTO owned VALUES ('colcrypt_test_reader', 1), ('somebody', 2);
ALTER TABLE owned ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON owned USING (owner::text = current_user);
GRANT SELECT, INSERT ON owned TO colcrypt_test_reader;
SET ROLE colcrypt_test_reader;
SELECT * FROM owned;
INSERT INTO owned VALUES ('somebody', 3);
INSERT INTO owned VALUES ('colcrypt_test_reader', 3);
SELECT * FROM owned;
RESET ROLE;
DROP TABLE owned;
DROP ROLE colcrypt_test_reader;

-- Temporary and unlogged tables, dropping the type's column.
CREATE TEMP TABLE temporary (secret encrypted_text);
INSERT INTO temporary VALUES ('t') RETURNING secret;
CREATE UNLOGGED TABLE unlogged (id int, secret encrypted_text);
INSERT INTO unlogged VALUES (1, 'u') RETURNING secret;
ALTER TABLE unlogged DROP COLUMN secret;
SELECT * FROM unlogged;
DROP TABLE unlogged;
CREATE TABLE depends (secret encrypted_text);
DROP TYPE encrypted_text;
DROP EXTENSION colcrypt;
DROP TABLE depends;

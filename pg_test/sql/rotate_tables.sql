-- rotate_column on every kind of table: names, partitions, inheritance, domains,
-- values out of line.

LOAD 'colcrypt';
CREATE FUNCTION pg_temp.suites(VARIADIC secrets encrypted_text[]) RETURNS text LANGUAGE sql
    AS 'SELECT string_agg((colcrypt.inspect(s)).suite, '', '' ORDER BY n) FROM unnest(secrets) WITH ORDINALITY AS u (s, n)';

-- Names that need quotes, other schemas, a search path that finds another table.
CREATE SCHEMA "Odd schema";
CREATE TABLE "Odd schema"."it's ""a"" table; DROP TABLE x" (id int, "sécret ""column"", x" encrypted_text, "SECRET" encrypted_text);
INSERT INTO "Odd schema"."it's ""a"" table; DROP TABLE x" VALUES (1, 'one', 'two');
CREATE TABLE shadowed (secret encrypted_text);
CREATE TABLE "Odd schema".shadowed (secret encrypted_text);
INSERT INTO shadowed VALUES ('public');
INSERT INTO "Odd schema".shadowed VALUES ('other');
SET colcrypt.algorithm = 'aes-256-gcm';
SELECT rotate_column('"Odd schema"."it''s ""a"" table; DROP TABLE x"', 'sécret "column", x') AS "1";
SELECT pg_temp.suites("sécret ""column"", x", "SECRET"), "sécret ""column"", x", "SECRET"
FROM "Odd schema"."it's ""a"" table; DROP TABLE x";
SELECT rotate_column('"Odd schema"."it''s ""a"" table; DROP TABLE x"', 'SECRET') AS "1";
SELECT rotate_column('"Odd schema".shadowed', 'secret') AS "1";
SELECT pg_temp.suites(p.secret, o.secret) FROM shadowed AS p, "Odd schema".shadowed AS o;
SET search_path = "Odd schema", public;
SELECT rotate_column('shadowed', 'secret') AS "0";
SET search_path = pg_catalog;
SELECT public.rotate_column('public.shadowed', 'secret') AS "1";
RESET search_path;
SELECT secret FROM shadowed;
DROP TABLE shadowed;
RESET colcrypt.algorithm;
SET client_min_messages = warning;
DROP SCHEMA "Odd schema" CASCADE;
RESET client_min_messages;

-- Dropped columns, columns added with a default, a column of every alignment.
CREATE TABLE changed (gone text, id int, secret encrypted_text, also_gone int, flag bool, n numeric);
INSERT INTO changed VALUES ('x', 1, 'one', 5, true, 1.5), ('y', 2, 'two', NULL, NULL, NULL);
ALTER TABLE changed DROP COLUMN gone, DROP COLUMN also_gone;
ALTER TABLE changed ADD COLUMN added text DEFAULT 'added', ADD COLUMN later encrypted_text DEFAULT 'later';
INSERT INTO changed VALUES (3, 'three', false, 2.5, 'written', 'own');
SET colcrypt.algorithm = 'fernet';
SELECT rotate_column('changed', 'secret') AS "3";
SELECT *, pg_temp.suites(secret, later) FROM changed ORDER BY id;
SELECT rotate_column('changed', 'later') AS "3";
SELECT *, pg_temp.suites(secret, later) FROM changed ORDER BY id;
RESET colcrypt.algorithm;
SELECT rotate_column('changed', 'secret') AS "3", rotate_column('changed', 'later') AS "3";
SELECT *, pg_temp.suites(secret, later) FROM changed ORDER BY id;
DROP TABLE changed;

-- Partitions of partitions, with the columns in another order and others dropped.
CREATE TABLE parted (id int, region text, secret encrypted_text) PARTITION BY LIST (region);
CREATE TABLE parted_eu PARTITION OF parted FOR VALUES IN ('eu');
CREATE TABLE parted_us (dropped int, secret encrypted_text, more_dropped text, region text, id int);
ALTER TABLE parted_us DROP COLUMN dropped, DROP COLUMN more_dropped;
ALTER TABLE parted ATTACH PARTITION parted_us FOR VALUES IN ('us');
CREATE TABLE parted_rest PARTITION OF parted DEFAULT PARTITION BY RANGE (id);
CREATE TABLE parted_rest_1 PARTITION OF parted_rest FOR VALUES FROM (1) TO (10);
CREATE TABLE parted_rest_2 PARTITION OF parted_rest FOR VALUES FROM (10) TO (20);
INSERT INTO parted SELECT i, region, region || i
FROM generate_series(1, 19) AS i, unnest(ARRAY['eu', 'us', 'asia']) AS region;
SET colcrypt.algorithm = 'aes-256-gcm';
SELECT rotate_column('parted', 'secret', max_rows => 20) AS "20";
SELECT rotate_column('parted', 'secret') AS "37";
SELECT tableoid::regclass, pg_temp.suites(min(secret::text)::encrypted_text), count(*),
    bool_and(secret::text = region || id) AS t, bool_and((colcrypt.inspect(secret)).suite = 'aes-256-gcm') AS t
FROM parted GROUP BY 1 ORDER BY 1;
SET colcrypt.algorithm = 'fernet';
SELECT rotate_column('parted_us', 'secret') AS "19";
SELECT rotate_column('parted_rest', 'secret') AS "19";
SELECT tableoid::regclass, (colcrypt.inspect(secret)).suite, count(*) FROM parted GROUP BY 1, 2 ORDER BY 1, 2;
RESET colcrypt.algorithm;
DROP TABLE parted;

-- Inheritance; a child's column has its own place.
CREATE TABLE parent (id int, secret encrypted_text);
CREATE TABLE child (extra text) INHERITS (parent);
CREATE TABLE second (secret encrypted_text, id int, other int);
ALTER TABLE second INHERIT parent;
CREATE TABLE grandchild () INHERITS (child, second);
INSERT INTO parent VALUES (1, 'p');
INSERT INTO child VALUES (2, 'c', 'extra');
INSERT INTO second VALUES ('s', 3, 7);
INSERT INTO grandchild VALUES (4, 'g', 'extra', 7);
SET colcrypt.algorithm = 'aes-256-gcm';
SELECT rotate_column('parent', 'secret') AS "4";
SELECT tableoid::regclass, id, secret, pg_temp.suites(secret) FROM parent ORDER BY id;
SELECT * FROM child ORDER BY id;
SELECT * FROM second ORDER BY id;
RESET colcrypt.algorithm;
SELECT rotate_column('child', 'secret') AS "2";
SELECT id, pg_temp.suites(secret) FROM parent ORDER BY id;
DROP TABLE grandchild, second, child, parent;

-- Domains, also over a domain, whose constraints are not evaluated again.
CREATE DOMAIN token AS encrypted_text;
CREATE DOMAIN long_token AS token CHECK (length(VALUE) > 2) NOT NULL;
CREATE TABLE of_domain (id int, secret long_token);
INSERT INTO of_domain VALUES (1, 'long enough');
ALTER DOMAIN long_token ADD CONSTRAINT longer CHECK (length(VALUE) > 100) NOT VALID;
SET colcrypt.algorithm = 'fernet';
SELECT rotate_column('of_domain', 'secret') AS "1";
SELECT id, secret, pg_temp.suites(secret) FROM of_domain;
RESET colcrypt.algorithm;
DROP TABLE of_domain;
DROP DOMAIN long_token;
DROP DOMAIN token;

-- Values out of line, of this column and of others, which stay as they are.
CREATE TABLE toasted (id int, secret encrypted_text, big text, bytes bytea);
ALTER TABLE toasted ALTER COLUMN bytes SET STORAGE external;
INSERT INTO toasted SELECT i, string_agg(md5((i * j)::text), ''), string_agg(md5((i + j)::text), ''),
    decode(string_agg(md5((i - j)::text), ''), 'hex')
FROM generate_series(1, 3) AS i, generate_series(1, 1000 * i) AS j GROUP BY i;
INSERT INTO toasted VALUES (4, 'small', repeat('x', 100000), NULL);
CREATE TEMP TABLE before AS SELECT id, md5(secret), length(secret), md5(big) AS big, md5(bytes) AS bytes FROM toasted;
SET colcrypt.algorithm = 'aes-256-gcm';
SELECT rotate_column('toasted', 'secret') AS "4";
RESET colcrypt.algorithm;
SELECT id, length(secret), pg_temp.suites(secret), md5(t.secret) = b.md5 AS t, md5(t.big) = b.big AS t,
    md5(t.bytes) IS NOT DISTINCT FROM b.bytes AS t
FROM toasted AS t JOIN before AS b USING (id) ORDER BY id;
VACUUM toasted;
SELECT rotate_column('toasted', 'secret', max_rows => 2) AS "2";
SELECT pg_temp.suites(secret), count(*), bool_and(md5(t.secret) = b.md5) AS t, bool_and(md5(t.big) = b.big) AS t,
    bool_and(md5(t.bytes) IS NOT DISTINCT FROM b.bytes) AS t
FROM toasted AS t JOIN before AS b USING (id) GROUP BY 1 ORDER BY 1;
DROP TABLE toasted, before;

-- Two columns in one SELECT; and the same table named twice.
CREATE TABLE two (id int, a encrypted_text, b encrypted_text);
INSERT INTO two SELECT i, 'a' || i, 'b' || i FROM generate_series(1, 3) AS i;
SET colcrypt.algorithm = 'envelope';
SELECT rotate_column('two', 'a') AS "3", rotate_column('two', 'b') AS "3", rotate_column('two', 'a') AS "0";
SELECT id, a, b, pg_temp.suites(a, b) FROM two ORDER BY id;
RESET colcrypt.algorithm;
SELECT attname, rotate_column(attrelid, attname) FROM pg_attribute
WHERE attrelid = 'two'::regclass AND atttypid = 'encrypted_text'::regtype ORDER BY attnum;
SELECT id, a, b, pg_temp.suites(a, b) FROM two ORDER BY id;
DROP TABLE two;

-- While a cursor of the same transaction reads it.
CREATE TABLE read AS SELECT i AS id, encrypt('v' || i) AS secret FROM generate_series(1, 4) AS i;
BEGIN;
DECLARE reader CURSOR FOR SELECT id, secret, pg_temp.suites(secret) FROM read;
FETCH 2 FROM reader;
SET LOCAL colcrypt.algorithm = 'fernet';
SELECT rotate_column('read', 'secret') AS "4";
FETCH 2 FROM reader;
COMMIT;
SELECT id, secret, pg_temp.suites(secret) FROM read ORDER BY id;
DROP TABLE read;

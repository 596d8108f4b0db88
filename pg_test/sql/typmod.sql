-- The type modifier: the name of a managed key.

CREATE TABLE named (id int, plain encrypted_text, ssn encrypted_text(pii), other encrypted_text('Some Name'));
\d named
SELECT attname, format_type(atttypid, atttypmod), atttypmod FROM pg_attribute
WHERE attrelid = 'named'::regclass AND attnum > 0 ORDER BY attnum;

-- The form that is shown is accepted, and is the same.
CREATE TABLE by_number (ssn encrypted_text('#305385e2'));
SELECT format_type(a.atttypid, a.atttypmod), a.atttypmod = b.atttypmod AS t
FROM pg_attribute AS a, pg_attribute AS b
WHERE a.attrelid = 'by_number'::regclass AND b.attrelid = 'named'::regclass
    AND a.attname = 'ssn' AND b.attname = 'ssn';
CREATE TABLE copied (LIKE named);
CREATE TABLE copied_as AS SELECT * FROM named WITH NO DATA;
SELECT attrelid::regclass, format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid IN ('copied'::regclass, 'copied_as'::regclass) AND attname = 'ssn' ORDER BY 1;

-- What is no name.
CREATE FUNCTION pg_temp.outcome(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE command;
    RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;
SELECT modifier, pg_temp.outcome(format('SELECT NULL::encrypted_text(%s)', modifier))
FROM unnest(ARRAY['', '''''', 'a, b', 'a, b, c', '''#''', '''#1''', '''#305385E2''', '''#ffffffff''', '''#0000000g''',
    quote_literal(repeat('x', 64)), '1.5', '-1', '1 + 1', 'NULL']) AS modifier;
CREATE TEMP TABLE longest (secret encrypted_text(xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx));
CREATE TEMP TABLE quoted (secret encrypted_text("Quoted ""name"""));
CREATE TEMP TABLE unicode (secret encrypted_text('ключ'));

-- Writing needs the key. NULL needs none.
SELECT 'x'::encrypted_text(pii);
INSERT INTO named (ssn) VALUES ('123-45-6789');
SELECT command, pg_temp.outcome(command) FROM unnest(ARRAY[
    $$INSERT INTO named (ssn) VALUES ('x')$$,
    $$INSERT INTO named (ssn) VALUES ('x'::text)$$,
    $$INSERT INTO named (ssn) SELECT 'x'::varchar$$,
    $$INSERT INTO named (ssn) VALUES (12)$$,
    $$INSERT INTO named (ssn) VALUES (true)$$,
    $$INSERT INTO named (ssn) VALUES ('10.0.0.1'::inet)$$,
    $$INSERT INTO named (ssn) VALUES ('x'::char(3))$$,
    $$INSERT INTO named (ssn) VALUES ('x'::encrypted_text)$$,
    $$INSERT INTO named (ssn) VALUES (encrypt('x'))$$,
    $$INSERT INTO named (other) VALUES ('x')$$,
    $$SELECT encrypt('x')::encrypted_text(pii)$$,
    $$ALTER TABLE named ALTER COLUMN ssn SET DEFAULT 'x'$$
]) AS command;
INSERT INTO named (id) VALUES (2);
ALTER TABLE named ALTER COLUMN ssn DROP DEFAULT;
COPY named (ssn) FROM STDIN;
123-45-6789
\.
INSERT INTO named (id, plain, ssn) VALUES (1, 'x', NULL);
INSERT INTO named (id) VALUES (2);
INSERT INTO named VALUES (3, NULL, NULL::text, NULL::encrypted_text);
COPY named FROM STDIN;
4	plain	\N	\N
\.
SELECT * FROM named ORDER BY id;
SELECT NULL::encrypted_text(pii) IS NULL AS t;

-- A column gets and loses its modifier.
ALTER TABLE named ALTER COLUMN ssn TYPE encrypted_text;
INSERT INTO named (id, ssn) VALUES (5, 'now');
SELECT ssn AS now FROM named WHERE id = 5;
ALTER TABLE named ALTER COLUMN ssn TYPE encrypted_text(pii);
DELETE FROM named WHERE id = 5;
ALTER TABLE named ALTER COLUMN ssn TYPE encrypted_text(pii);
SELECT format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = 'named'::regclass AND attname = 'ssn';

-- Domains, arrays and function arguments carry modifiers as they do for other types.
CREATE DOMAIN ssn AS encrypted_text(pii);
SELECT pg_temp.outcome($$SELECT 'x'::ssn$$);
CREATE TEMP TABLE arrays (list encrypted_text(pii)[]);
SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'arrays'::regclass AND attname = 'list';
SELECT pg_temp.outcome($$INSERT INTO arrays VALUES (ARRAY['x'])$$);
INSERT INTO arrays VALUES (ARRAY[NULL]::encrypted_text[]), ('{}'), ('{NULL}') RETURNING list;

-- With the key the column takes values, by every way in, and they are under it.
SELECT colcrypt.create_key('pii') ~ '^[0-9a-f]{8}$' AS t;
SELECT colcrypt.create_key('Some Name', 'fernet') ~ '^[0-9a-f]{8}$' AS t;
\d named
SELECT format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = 'by_number'::regclass AND attname = 'ssn';
SELECT colcrypt.modifier_name(atttypmod) FROM pg_attribute
WHERE attrelid = 'named'::regclass AND attname IN ('plain', 'ssn', 'other') ORDER BY attnum;
SELECT colcrypt.modifier_name(1), colcrypt.modifier_name(-1) IS NULL AS t;
CREATE TEMP VIEW key_of AS SELECT key_id, coalesce(name, kind) AS name FROM colcrypt.key;
TRUNCATE named;
INSERT INTO named (ssn) VALUES ('1 literal');
INSERT INTO named (ssn) VALUES ('2 text'::text);
INSERT INTO named (ssn) SELECT '3 varchar'::varchar;
INSERT INTO named (ssn) VALUES (4);
INSERT INTO named (ssn) VALUES (true);
INSERT INTO named (ssn) VALUES ('10.0.0.1'::inet);
INSERT INTO named (ssn) VALUES ('7 char'::char(9));
INSERT INTO named (ssn) VALUES ('8 value'::encrypted_text);
INSERT INTO named (ssn) VALUES (encrypt('9 function'));
INSERT INTO named (ssn) VALUES (encrypt('under the other', 'Some Name'));
COPY named (ssn) FROM STDIN;
copied
\.
SELECT ssn, name, suite FROM named, colcrypt.inspect(ssn) JOIN key_of USING (key_id) ORDER BY ssn::text COLLATE "C";
INSERT INTO named (other) SELECT ssn FROM named WHERE ssn = '4';
SELECT other, name, suite FROM named, colcrypt.inspect(other) JOIN key_of USING (key_id);
SELECT name FROM colcrypt.inspect(encrypt('x')::encrypted_text(pii)) JOIN key_of USING (key_id);
SELECT name FROM colcrypt.inspect('x'::ssn) JOIN key_of USING (key_id);
INSERT INTO arrays VALUES (ARRAY['a', 'b']);
SELECT list, name FROM arrays, colcrypt.inspect(list[2]) JOIN key_of USING (key_id);
-- A literal too is encrypted row by row here, for it has to be moved to the key.
INSERT INTO named (id, ssn) SELECT i, 'same' FROM generate_series(101, 103) AS i;
SELECT count(DISTINCT ciphertext(ssn)) FROM named WHERE id > 100;
-- The setting is for columns that name no key.
SET colcrypt.write_key = 'Some Name';
INSERT INTO named (id, plain, ssn) VALUES (200, 'x', 'x');
RESET colcrypt.write_key;
SELECT p.name AS plain, s.name AS ssn
FROM named, colcrypt.inspect(plain) AS i, colcrypt.inspect(ssn) AS j, key_of AS p, key_of AS s
WHERE id = 200 AND p.key_id = i.key_id AND s.key_id = j.key_id;

-- Changing the modifier moves the values; taking it away leaves them where they are.
CREATE TABLE moved AS SELECT 'x'::encrypted_text AS secret;
ALTER TABLE moved ALTER COLUMN secret TYPE encrypted_text(pii);
SELECT name FROM moved, colcrypt.inspect(secret) JOIN key_of USING (key_id);
ALTER TABLE moved ALTER COLUMN secret TYPE encrypted_text("Some Name");
SELECT name FROM moved, colcrypt.inspect(secret) JOIN key_of USING (key_id);
ALTER TABLE moved ALTER COLUMN secret TYPE encrypted_text;
SELECT secret, name FROM moved, colcrypt.inspect(secret) JOIN key_of USING (key_id);
DROP TABLE moved;

-- A default is a constant of its day, and moved to the column's key row by row.
ALTER TABLE named ALTER COLUMN ssn SET DEFAULT 'default';
INSERT INTO named (id) VALUES (300), (301);
SELECT DISTINCT ssn, name FROM named, colcrypt.inspect(ssn) JOIN key_of USING (key_id) WHERE id >= 300;
SELECT count(DISTINCT ciphertext(ssn)) FROM named WHERE id >= 300;

-- Once the key is destroyed, nothing can be written.
SELECT colcrypt.shred_key('pii'), colcrypt.shred_key('pii');
SELECT pg_temp.outcome($$INSERT INTO named (ssn) VALUES ('x')$$);
SELECT format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = 'named'::regclass AND attname = 'ssn';
INSERT INTO named (id, ssn) VALUES (400, NULL);
SELECT colcrypt.create_key('pii') ~ '^[0-9a-f]{8}$' AS t;
INSERT INTO named (id, ssn) VALUES (401, 'new key');
SELECT ssn FROM named WHERE id = 401;
SELECT count(*) > 0 AS t FROM named WHERE try_decrypt(ssn) IS NULL AND ssn IS NOT NULL;

DROP DOMAIN ssn;
DROP VIEW key_of;
DROP TABLE named, by_number, copied, copied_as;

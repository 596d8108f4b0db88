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
CREATE TEMP TABLE quoted (secret encrypted_text("Quoted ""name"""), unicode encrypted_text('ключ'));

-- Writing needs the key, which no database has yet. NULL needs none.
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
DROP DOMAIN ssn;
DROP TABLE named, by_number, copied, copied_as;

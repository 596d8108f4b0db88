-- What goes in comes out: input, output, COPY, binary form, sizes.

CREATE TABLE io (id int PRIMARY KEY, secret encrypted_text);
INSERT INTO io VALUES
    (1, 'hello'), (2, ''), (3, NULL), (4, 'x'), (5, 'it''s "quoted" \ and	tabbed'),
    (6, E'two\nlines\r\n'), (7, 'ünïcödé ☃'), (8, '🔐😀'), (9, '   spaces   '), (10, 'NULL'),
    (11, '\N'), (12, '\.'), (13, '{"json": [1, 2]}'), (14, 'colcrypt:vault'), (15, '\x00');
SELECT id, secret FROM io ORDER BY id;
SELECT id FROM io WHERE secret IS NULL;
SELECT id FROM io WHERE secret::text = '';

-- Every length around what the length word and a page care for, and far beyond. A
-- value takes 45 bytes more than its plaintext, whatever it is.
CREATE TABLE sizes (length int, plain text, secret encrypted_text);
INSERT INTO sizes
SELECT n, left(repeat(md5(n::text), n / 32 + 1), n), left(repeat(md5(n::text), n / 32 + 1), n)
FROM unnest(ARRAY[0, 1, 2, 63, 64, 65, 80, 81, 82, 83, 126, 127, 128, 1950, 1997, 2000, 8146,
    8191, 8192, 8193, 65535, 65536, 100000]) AS n;
SELECT length, secret::text = plain AS t, octet_length(secret) = length AS t,
    (colcrypt.inspect(secret)).stored_bytes - length AS overhead,
    (colcrypt.inspect(secret)).plaintext_bytes = length AS t
FROM sizes ORDER BY length;
SELECT length AS four_byte_characters,
    (colcrypt.inspect(encrypt(repeat('😀', length)))).stored_bytes - 4 * length AS overhead
FROM sizes WHERE length BETWEEN 1 AND 200 ORDER BY length;

-- Ciphertext is never compressed: it could not become smaller.
SELECT count(*) AS compressed FROM sizes WHERE pg_column_compression(secret) IS NOT NULL;

-- Thirty megabytes, stored out of line, in several storage settings.
CREATE TABLE big (storage text, secret encrypted_text);
INSERT INTO big SELECT 'external', repeat(string_agg(md5(i::text), ''), 100) FROM generate_series(1, 9375) AS i;
ALTER TABLE big ALTER COLUMN secret SET STORAGE extended;
INSERT INTO big SELECT 'extended', left(secret, 3000000) FROM big;
ALTER TABLE big ALTER COLUMN secret SET STORAGE main;
INSERT INTO big SELECT 'main', secret::text FROM big WHERE storage = 'extended';
SELECT storage, length(secret), octet_length(secret),
    (colcrypt.inspect(secret)).stored_bytes, left(secret, 8), right(secret, 4)
FROM big ORDER BY storage;
SELECT md5(secret) = (SELECT md5(repeat(string_agg(md5(i::text), ''), 100)) FROM generate_series(1, 9375) AS i) AS t
FROM big WHERE storage = 'external';
SELECT count(DISTINCT md5(left(secret, 3000000))) AS same FROM big;
SELECT pg_relation_size(reltoastrelid) > 36000000 AS t FROM pg_class WHERE oid = 'big'::regclass;
DROP TABLE big;

-- COPY gives and takes plaintext, in every format.
COPY (SELECT * FROM io ORDER BY id) TO STDOUT;
COPY (SELECT * FROM io ORDER BY id) TO STDOUT (FORMAT csv, HEADER, FORCE_QUOTE (secret));
CREATE TABLE back (id int PRIMARY KEY, secret encrypted_text);
SELECT current_setting('data_directory') || '/colcrypt_io_test' AS filename \gset
COPY io TO :'filename';
COPY back FROM :'filename';
SELECT count(*) AS rows, bool_and(a.secret::text IS NOT DISTINCT FROM b.secret::text) AS t
FROM io AS a JOIN back AS b USING (id);
TRUNCATE back;
COPY io TO :'filename' (FORMAT csv, HEADER);
COPY back FROM :'filename' (FORMAT csv, HEADER);
SELECT count(*) AS rows, bool_and(a.secret::text IS NOT DISTINCT FROM b.secret::text) AS t
FROM io AS a JOIN back AS b USING (id);
TRUNCATE back;
COPY io TO :'filename' (FORMAT binary);
COPY back FROM :'filename' (FORMAT binary);
SELECT count(*) AS rows, bool_and(a.secret::text IS NOT DISTINCT FROM b.secret::text) AS t
FROM io AS a JOIN back AS b USING (id);

-- The binary form is that of text, both ways.
CREATE TABLE plain (id int, secret text);
COPY plain FROM :'filename' (FORMAT binary);
SELECT count(*) AS rows, bool_and(a.secret::text IS NOT DISTINCT FROM b.secret) AS t
FROM io AS a JOIN plain AS b USING (id);
TRUNCATE back;
COPY plain TO :'filename' (FORMAT binary);
COPY back FROM :'filename' (FORMAT binary);
SELECT count(*) AS rows, bool_and(a.secret::text IS NOT DISTINCT FROM b.secret::text) AS t
FROM io AS a JOIN back AS b USING (id);
SELECT id, encrypted_text_send(secret) = convert_to(secret, 'UTF8') AS t FROM io
WHERE id IN (1, 2, 8) ORDER BY id;

-- Bytes that are no text are refused. The binary form of bytea is its bytes.
TRUNCATE back;
COPY (SELECT 1, '\x61ff'::bytea) TO :'filename' (FORMAT binary);
\set VERBOSITY sqlstate
COPY back FROM :'filename' (FORMAT binary);
COPY (SELECT 1, '\xc0af'::bytea) TO :'filename' (FORMAT binary);
COPY back FROM :'filename' (FORMAT binary);
COPY (SELECT 1, '\x610062'::bytea) TO :'filename' (FORMAT binary);
COPY back FROM :'filename' (FORMAT binary);
\set VERBOSITY default
SELECT count(*) AS none FROM back;
SELECT format('rm -f %L', :'filename') AS remove \gset
COPY (SELECT NULL WHERE false) TO PROGRAM :'remove';

DROP TABLE io, sizes, back, plain;

-- A literal becomes a value once, when its statement is parsed; what comes from a
-- column or a text parameter, each time.

LOAD 'colcrypt';
\set b 'ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8='
CREATE TABLE sealed (n int GENERATED ALWAYS AS IDENTITY, how text, secret encrypted_text);
CREATE VIEW as_sealed AS SELECT n, how, suite, key_id, secret, ciphertext(secret) AS form
FROM sealed, colcrypt.inspect(secret);

-- One literal, many rows.
INSERT INTO sealed (how, secret) SELECT 'literal', 'same' FROM generate_series(1, 3);
INSERT INTO sealed (how, secret) SELECT 'text literal', 'same'::text FROM generate_series(1, 3);
INSERT INTO sealed (how, secret) SELECT 'column', s FROM (SELECT 'same'::text AS s FROM generate_series(1, 3)) AS x;
INSERT INTO sealed (how, secret) SELECT 'encrypt()', encrypt('same') FROM generate_series(1, 3);
INSERT INTO sealed (how, secret) VALUES ('VALUES', 'same'), ('VALUES', 'same'), ('VALUES', 'same');
PREPARE by_text(text) AS INSERT INTO sealed (how, secret) SELECT 'text parameter', $1 FROM generate_series(1, 3);
EXECUTE by_text('same');
PREPARE by_varchar(varchar) AS INSERT INTO sealed (how, secret) SELECT 'varchar parameter', $1 FROM generate_series(1, 3);
EXECUTE by_varchar('same');
SELECT how, count(*) AS rows, count(DISTINCT form) AS values FROM as_sealed GROUP BY how ORDER BY min(n);
TRUNCATE sealed;

-- A prepared literal is sealed under what is in force when it runs.
SET plan_cache_mode = force_generic_plan;
PREPARE literal(text) AS INSERT INTO sealed (how, secret) VALUES ($1, 'value') RETURNING secret;
EXECUTE literal('at first');
EXECUTE literal('again');
SET colcrypt.key = :'b';
EXECUTE literal('SET key');
BEGIN;
RESET colcrypt.key;
EXECUTE literal('RESET key');
SET LOCAL colcrypt.algorithm = 'fernet';
EXECUTE literal('SET LOCAL algorithm');
COMMIT;
EXECUTE literal('after COMMIT');
BEGIN;
SET colcrypt.key = :'b';
SET colcrypt.algorithm = 'aes-256-gcm';
EXECUTE literal('rolled back');
ROLLBACK;
EXECUTE literal('after ROLLBACK');
SET colcrypt.algorithm = 'envelope';
EXECUTE literal('SET algorithm');
SET colcrypt.key = :'b';
DISCARD PLANS;
EXECUTE literal('DISCARD PLANS');
RESET colcrypt.key;
RESET colcrypt.algorithm;
EXECUTE literal('RESET both');
SELECT how, suite, key_id FROM as_sealed ORDER BY n;
SET colcrypt.key = :'b';
SELECT bool_and(secret::text = 'value') AS t FROM sealed;
RESET colcrypt.key;
TRUNCATE sealed;

-- So are literals in functions, in SQL and PL/pgSQL, mid-way too.
CREATE FUNCTION pg_temp.by_sql(how text) RETURNS void LANGUAGE sql
    AS $$ INSERT INTO sealed (how, secret) VALUES (how, 'value') $$;
CREATE FUNCTION pg_temp.by_plpgsql(how text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    assigned encrypted_text := 'value';
    cast_written encrypted_text := 'value'::encrypted_text;
    algorithm text;
BEGIN
    FOREACH algorithm IN ARRAY ARRAY['xaes-256-gcm', 'fernet', 'fernet', 'aes-256-gcm'] LOOP
        PERFORM set_config('colcrypt.algorithm', algorithm, true);
        INSERT INTO sealed (how, secret) VALUES (how || ', literal, ' || algorithm, 'value');
        assigned := 'value';
        INSERT INTO sealed (how, secret) VALUES (how || ', assigned, ' || algorithm, assigned);
        cast_written := 'value'::encrypted_text;
        INSERT INTO sealed (how, secret) VALUES (how || ', cast, ' || algorithm, cast_written);
    END LOOP;
END
$$;
SELECT pg_temp.by_sql('first');
SELECT pg_temp.by_plpgsql('first');
SET colcrypt.key = :'b';
SET colcrypt.algorithm = 'envelope';
SELECT pg_temp.by_sql('second');
RESET colcrypt.algorithm;
SELECT pg_temp.by_plpgsql('second');
RESET colcrypt.key;
SELECT pg_temp.by_sql('third');
SELECT how, suite, key_id FROM as_sealed ORDER BY n;
RESET plan_cache_mode;
RESET colcrypt.algorithm;
TRUNCATE sealed;

-- DEFAULT, view and CHECK constants are sealed once, under the key of their day.
SET colcrypt.algorithm = 'aes-256-gcm';
CREATE TABLE with_constants (
    id int,
    secret encrypted_text DEFAULT 'default',
    evaluated encrypted_text DEFAULT encrypt('default')
);
CREATE VIEW with_constant AS SELECT 'view'::encrypted_text AS secret;
RESET colcrypt.algorithm;
INSERT INTO with_constants SELECT generate_series(1, 2);
SELECT count(DISTINCT ciphertext(secret)) AS "1", min((colcrypt.inspect(secret)).suite) AS "aes-256-gcm",
    count(DISTINCT ciphertext(evaluated)) AS "2", min((colcrypt.inspect(evaluated)).suite) AS "xaes-256-gcm"
FROM with_constants;
SELECT secret, evaluated FROM with_constants;
SELECT secret AS view, suite FROM with_constant, colcrypt.inspect(secret);
-- Without its key such a default can be stored, not read.
SET colcrypt.key = :'b';
ALTER TABLE with_constants ALTER COLUMN secret SET DEFAULT 'under b';
RESET colcrypt.key;
INSERT INTO with_constants (id) VALUES (3);
SELECT try_decrypt(secret) IS NULL AS t, evaluated FROM with_constants WHERE id = 3;

-- Sealing needs no right to write.
BEGIN READ ONLY;
SELECT 'literal'::encrypted_text AS literal, encrypt('function') AS function, 'cast'::text::encrypted_text AS cast;
SELECT COALESCE(NULL::encrypted_text, 'value') AS value;
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;
SELECT encrypt('x') AS x;
COMMIT;

DROP VIEW with_constant, as_sealed;
DROP TABLE sealed, with_constants;

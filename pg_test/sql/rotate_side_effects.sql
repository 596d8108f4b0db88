-- rotate_column is no change of data: nothing notices it, and everything is still right.

LOAD 'colcrypt';
CREATE FUNCTION suite(value encrypted_text) RETURNS text IMMUTABLE LANGUAGE sql
    AS 'SELECT suite FROM colcrypt.inspect(value)';

-- Neither triggers nor rules fire, of a row or a statement.
CREATE TABLE watched (id int PRIMARY KEY, secret encrypted_text, changed text DEFAULT 'never');
INSERT INTO watched VALUES (1, 'one'), (2, 'two');
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'a trigger fired: %', TG_NAME; END $$;
CREATE TRIGGER row_before BEFORE UPDATE ON watched FOR EACH ROW EXECUTE FUNCTION fail();
CREATE TRIGGER row_after AFTER UPDATE ON watched FOR EACH ROW EXECUTE FUNCTION fail();
CREATE TRIGGER statement_before BEFORE UPDATE ON watched FOR EACH STATEMENT EXECUTE FUNCTION fail();
CREATE TRIGGER statement_after AFTER UPDATE ON watched REFERENCING NEW TABLE AS n
    FOR EACH STATEMENT EXECUTE FUNCTION fail();
CREATE CONSTRAINT TRIGGER deferred AFTER UPDATE ON watched DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION fail();
ALTER TABLE watched ENABLE ALWAYS TRIGGER row_after;
CREATE RULE never AS ON UPDATE TO watched DO INSTEAD NOTHING;
SET colcrypt.algorithm = 'fernet';
SELECT rotate_column('watched', 'secret') AS "2";
SELECT id, secret, suite(secret), changed FROM watched ORDER BY id;
DROP TABLE watched;
DROP FUNCTION fail;

-- Indexes on other columns, unique, partial, on expressions, of other methods.
RESET colcrypt.algorithm;
CREATE TABLE indexed (id int PRIMARY KEY, tenant int, secret encrypted_text, name text, tags int[],
    UNIQUE (tenant, name));
CREATE INDEX ON indexed (lower(name)) WHERE tenant > 1;
CREATE INDEX ON indexed USING hash (name);
CREATE INDEX ON indexed USING gin (tags);
CREATE INDEX ON indexed USING brin (tenant);
CREATE INDEX indexed_suite ON indexed (suite(secret));
INSERT INTO indexed SELECT i, i % 3, 'secret ' || i, 'Name ' || i, ARRAY[i, i % 5] FROM generate_series(1, 300) AS i;
SET colcrypt.algorithm = 'aes-256-gcm';
SELECT rotate_column('indexed', 'secret', max_rows => 100) AS "100";
SET enable_seqscan = off;
SELECT id, secret FROM indexed WHERE id = 50;
SELECT id, secret FROM indexed WHERE tenant = 2 AND name = 'Name 50';
SELECT id, secret FROM indexed WHERE lower(name) = 'name 50' AND tenant > 1;
SELECT id, secret FROM indexed WHERE name = 'Name 250';
SELECT count(*) AS "60" FROM indexed WHERE tags @> ARRAY[3];
SELECT count(*) AS "100" FROM indexed WHERE tenant = 2;
-- An index over what inspect() tells follows.
SELECT count(*) AS "100" FROM indexed WHERE suite(secret) = 'aes-256-gcm';
SELECT count(*) AS "200" FROM indexed WHERE suite(secret) = 'xaes-256-gcm';
SELECT rotate_column('indexed', 'secret') AS "200";
SELECT count(*) AS "300" FROM indexed WHERE suite(secret) = 'aes-256-gcm';
SELECT count(*) AS "0" FROM indexed WHERE suite(secret) = 'xaes-256-gcm';
\set VERBOSITY terse
INSERT INTO indexed VALUES (1, 77, 'x', 'x');
INSERT INTO indexed VALUES (1000, 2, 'x', 'Name 50');
\set VERBOSITY default
DELETE FROM indexed WHERE id = 50;
INSERT INTO indexed VALUES (50, 2, 'again', 'Name 50');
SELECT secret AS again FROM indexed WHERE id = 50;
SELECT count(*) AS "300" FROM indexed WHERE id > 0;
VACUUM indexed;
SELECT count(*) AS "300" FROM indexed WHERE id > 0;
RESET enable_seqscan;
DROP TABLE indexed;

-- Deferrable constraints on other columns: what the transaction did before and does
-- after is still judged at its end.
RESET colcrypt.algorithm;
CREATE TABLE judged_late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED, secret encrypted_text, name text,
    EXCLUDE USING hash (name WITH =) DEFERRABLE INITIALLY DEFERRED);
INSERT INTO judged_late SELECT i, 's' || i, 'n' || i FROM generate_series(1, 5) AS i;
SET colcrypt.algorithm = 'fernet';
BEGIN;
UPDATE judged_late SET id = id + 1;
SELECT rotate_column('judged_late', 'secret') AS "5";
SELECT id, secret FROM judged_late ORDER BY id;
COMMIT;
RESET colcrypt.algorithm;
BEGIN;
INSERT INTO judged_late VALUES (2, 'duplicate', 'other');
SET LOCAL colcrypt.algorithm = 'aes-256-gcm';
SELECT rotate_column('judged_late', 'secret') AS "6";
COMMIT;
BEGIN;
INSERT INTO judged_late VALUES (2, 'duplicate', 'other');
SET LOCAL colcrypt.algorithm = 'aes-256-gcm';
SELECT rotate_column('judged_late', 'secret') AS "6";
DELETE FROM judged_late WHERE secret LIKE 'duplicate';
COMMIT;
SELECT id, secret, suite(secret) FROM judged_late ORDER BY id;
SELECT rotate_column('judged_late', 'secret') AS "5";
INSERT INTO judged_late VALUES (9, 'x', 'n1');
DROP TABLE judged_late;

-- Generated columns, identity, defaults, NOT NULL and CHECK constraints on other columns.
CREATE TABLE computed (
    id int GENERATED ALWAYS AS IDENTITY,
    n int,
    secret encrypted_text NOT NULL CHECK (length(secret) > 0),
    doubled int GENERATED ALWAYS AS (n * 2) STORED,
    bytes int GENERATED ALWAYS AS ((colcrypt.inspect(secret)).plaintext_bytes) STORED
);
INSERT INTO computed (n, secret) VALUES (1, 'one'), (2, 'three');
ALTER TABLE computed ADD CHECK (n > 100) NOT VALID;
SET colcrypt.algorithm = 'aes-256-gcm';
SELECT rotate_column('computed', 'secret') AS "2";
RESET colcrypt.algorithm;
SELECT *, suite(secret) FROM computed ORDER BY id;
DROP TABLE computed;

-- Foreign keys on other columns, both ways.
CREATE TABLE users (id int PRIMARY KEY, secret encrypted_text);
CREATE TABLE posts (id int PRIMARY KEY, author int REFERENCES users ON UPDATE CASCADE ON DELETE CASCADE, secret encrypted_text);
INSERT INTO users VALUES (1, 'u');
INSERT INTO posts VALUES (1, 1, 'p');
SET colcrypt.algorithm = 'fernet';
SELECT rotate_column('users', 'secret') AS "1", rotate_column('posts', 'secret') AS "1";
RESET colcrypt.algorithm;
UPDATE users SET id = 2;
SELECT author AS "2", secret FROM posts;
DROP TABLE posts, users;

-- Row-level security hides no row from a rotation, even where it is forced on the owner.
CREATE ROLE colcrypt_test_owner;
CREATE TABLE hidden (id int, secret encrypted_text);
INSERT INTO hidden VALUES (1, 'one'), (2, 'two');
ALTER TABLE hidden OWNER TO colcrypt_test_owner;
ALTER TABLE hidden ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY nothing ON hidden USING (id = 1) WITH CHECK (false);
SET colcrypt.algorithm = 'aes-256-gcm';
SET ROLE colcrypt_test_owner;
SELECT count(*) AS "1" FROM hidden;
SELECT rotate_column('hidden', 'secret') AS "2";
SELECT count(*) AS "1" FROM hidden;
RESET ROLE;
RESET colcrypt.algorithm;
SELECT id, secret, suite(secret) FROM hidden ORDER BY id;
DROP TABLE hidden;

-- Code of the owner that a rotation runs, in an index expression, runs as the owner.
CREATE FUNCTION who(int) RETURNS text LANGUAGE plpgsql IMMUTABLE
    AS $$ BEGIN RETURN current_user || ' ' || $1; END $$;
CREATE TABLE trap (id int, secret encrypted_text, filler text) WITH (fillfactor = 100);
CREATE INDEX trap_who ON trap (who(id));
CREATE INDEX trap_form ON trap (ciphertext(secret));
ALTER TABLE trap OWNER TO colcrypt_test_owner;
INSERT INTO trap VALUES (1, 'one');
SET colcrypt.algorithm = 'aes-256-gcm';
SELECT rotate_column('trap', 'secret') AS "1";
SET enable_seqscan = off;
SELECT id, secret FROM trap WHERE who(id) = 'colcrypt_test_owner 1';
SELECT current_user = session_user AS t;
RESET enable_seqscan;
RESET colcrypt.algorithm;
DROP TABLE trap;
DROP FUNCTION who;
DROP ROLE colcrypt_test_owner;

-- Privileges, owner and comments stay.
CREATE TABLE kept AS SELECT 1 AS id, encrypt('x') AS secret;
GRANT SELECT ON kept TO PUBLIC;
COMMENT ON COLUMN kept.secret IS 'comment';
SET colcrypt.algorithm = 'aes-256-gcm';
SELECT rotate_column('kept', 'secret') AS "1";
SELECT relacl IS NOT NULL AS t, col_description(oid, 2), relowner = current_user::regrole AS t FROM pg_class WHERE oid = 'kept'::regclass;
RESET colcrypt.algorithm;
DROP TABLE kept;

DROP FUNCTION suite;

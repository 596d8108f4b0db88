-- rotate_column: what it refuses, with SQLSTATE and message, and who may call it.

LOAD 'colcrypt';
CREATE FUNCTION outcome(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    EXECUTE command INTO result;
    RETURN 'ok: ' || COALESCE(result, 'NULL');
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;
CREATE TABLE kinds (id int PRIMARY KEY, secret encrypted_text, plain text, list encrypted_text[], dropped encrypted_text);
INSERT INTO kinds VALUES (1, 's', 'p', '{x}');
ALTER TABLE kinds DROP COLUMN dropped;
CREATE VIEW kinds_view AS SELECT * FROM kinds;
CREATE MATERIALIZED VIEW kinds_matview AS SELECT * FROM kinds;
CREATE SEQUENCE kinds_seq;
CREATE TYPE kinds_composite AS (secret encrypted_text);
CREATE TABLE kinds_parted (id int PRIMARY KEY, secret encrypted_text) PARTITION BY RANGE (id);
CREATE FOREIGN DATA WRAPPER colcrypt_test_wrapper;
CREATE SERVER colcrypt_test_server FOREIGN DATA WRAPPER colcrypt_test_wrapper;
CREATE FOREIGN TABLE kinds_foreign (id int, secret encrypted_text) SERVER colcrypt_test_server;

-- Relations of the wrong kind, columns that are not there or of another type.
SELECT command, outcome('SELECT rotate_column(' || command || ')') FROM unnest(ARRAY[
    $$'kinds_view', 'secret'$$, $$'kinds_matview', 'secret'$$, $$'kinds_foreign', 'secret'$$,
    $$'kinds_pkey', 'id'$$, $$'kinds_parted_pkey', 'id'$$, $$'kinds_seq', 'last_value'$$,
    $$'kinds_composite', 'secret'$$,
    $$'kinds', 'nothing'$$, $$'kinds', 'SECRET'$$, $$'kinds', 'secret '$$, $$'kinds', '"secret"'$$, $$'kinds', ''$$,
    $$'kinds', 'dropped'$$, $$'kinds', '........pg.dropped.5........'$$, $$'kinds', 'ctid'$$, $$'kinds', 'tableoid'$$,
    $$'kinds', 'plain'$$, $$'kinds', 'id'$$, $$'kinds', 'list'$$,
    $$'nowhere', 'secret'$$, $$0, 'secret'$$, $$4294967295::oid, 'secret'$$,
    $$'pg_class', 'relname'$$
]) AS command;
SELECT regexp_replace(outcome($$
    SELECT rotate_column(reltoastrelid, 'chunk_data') FROM pg_class WHERE oid = 'kinds'::regclass
$$), '[0-9]+"', '…"') AS toast_table;
SELECT rotate_column('kinds_view', 'secret');
SELECT rotate_column('kinds_matview', 'secret');
SELECT rotate_column('kinds_foreign', 'secret');
SELECT rotate_column('kinds', 'list');

-- Numbers and NULL.
SELECT command, outcome('SELECT rotate_column(' || command || ')') FROM unnest(ARRAY[
    $$'kinds', 'secret', 0$$, $$'kinds', 'secret', -1$$, $$'kinds', 'secret', NULL$$, $$'kinds', 'secret', -2147483648$$,
    $$'kinds', 'secret', 1, -1$$, $$'kinds', 'secret', 1, -9223372036854775808$$, $$'kinds', 'secret', 1, NULL$$,
    $$NULL, 'secret'$$, $$'kinds', NULL$$, $$'kinds'$$
]) AS command;

-- A read-only transaction.
BEGIN READ ONLY;
SELECT outcome($$SELECT rotate_column('kinds', 'secret')$$);
ROLLBACK;

-- No parallel worker runs it.
-- Its name since 16 is debug_parallel_query.
SELECT name AS parallel FROM pg_settings
WHERE name IN ('force_parallel_mode', 'debug_parallel_query') \gset
SET :parallel = on;
SELECT rotate_column('kinds', 'secret') AS "0";
RESET :parallel;

-- Only the owner, who may be a role that one is a member of, and superusers.
CREATE ROLE colcrypt_test_owner;
CREATE ROLE colcrypt_test_member IN ROLE colcrypt_test_owner;
CREATE ROLE colcrypt_test_noinherit NOINHERIT IN ROLE colcrypt_test_owner;
CREATE ROLE colcrypt_test_writer;
GRANT CREATE ON SCHEMA public TO colcrypt_test_owner;
CREATE TABLE owned (id int, secret encrypted_text) PARTITION BY LIST (id);
CREATE TABLE owned_1 PARTITION OF owned FOR VALUES IN (1);
CREATE TABLE owned_2 PARTITION OF owned FOR VALUES IN (2);
INSERT INTO owned VALUES (1, 'one'), (2, 'two');
ALTER TABLE owned OWNER TO colcrypt_test_owner;
ALTER TABLE owned_1 OWNER TO colcrypt_test_owner;
GRANT ALL ON owned, owned_1, owned_2, kinds, kinds_view TO colcrypt_test_writer;
SET colcrypt.algorithm = 'aes-256-gcm';
SET ROLE colcrypt_test_writer;
SELECT outcome($$SELECT rotate_column('owned', 'secret')$$);
SELECT outcome($$SELECT rotate_column('owned_1', 'secret')$$);
SELECT outcome($$SELECT rotate_column('kinds', 'nothing')$$);
SELECT outcome($$SELECT rotate_column('kinds', 'plain')$$);
SELECT outcome($$SELECT rotate_column('pg_authid', 'rolpassword')$$);
SET ROLE colcrypt_test_noinherit;
SELECT outcome($$SELECT rotate_column('owned', 'secret')$$);
-- The owner of a partitioned table need not own the partitions, as with other commands.
SET ROLE colcrypt_test_member;
SELECT outcome($$SELECT rotate_column('owned_2', 'secret')$$);
SELECT outcome($$SELECT rotate_column('owned', 'secret')$$);
-- The privileges on the column do not matter to its owner.
SET ROLE colcrypt_test_owner;
REVOKE ALL ON owned, owned_1 FROM colcrypt_test_owner;
SELECT outcome($$SELECT count(secret) FROM owned$$);
SET colcrypt.algorithm = 'fernet';
SELECT outcome($$SELECT rotate_column('owned', 'secret')$$);
RESET ROLE;
SET colcrypt.algorithm = 'envelope';
SELECT outcome($$SELECT rotate_column('owned', 'secret')$$);
SELECT id, secret, (colcrypt.inspect(secret)).suite FROM owned ORDER BY id;
RESET colcrypt.algorithm;

-- Foreign partitions are left to their server.
CREATE FOREIGN TABLE owned_3 PARTITION OF owned FOR VALUES IN (3) SERVER colcrypt_test_server;
SELECT rotate_column('owned', 'secret') AS "2";

SET client_min_messages = warning;
DROP TABLE owned;
DROP SERVER colcrypt_test_server CASCADE;
DROP FOREIGN DATA WRAPPER colcrypt_test_wrapper;
DROP TABLE kinds, kinds_parted CASCADE;
DROP SEQUENCE kinds_seq;
DROP TYPE kinds_composite;
DROP FUNCTION outcome;
DROP OWNED BY colcrypt_test_owner, colcrypt_test_writer;
DROP ROLE colcrypt_test_member, colcrypt_test_noinherit, colcrypt_test_owner, colcrypt_test_writer;

-- Domains, arrays, composites and ranges of values.

-- Domains over the type.
CREATE DOMAIN api_token AS encrypted_text CHECK (VALUE LIKE 'tok\_%') NOT NULL;
CREATE TABLE tokens (id int, token api_token);
INSERT INTO tokens VALUES (1, 'tok_1') RETURNING token;
INSERT INTO tokens VALUES (2, 'wrong');
INSERT INTO tokens VALUES (2, NULL);
INSERT INTO tokens SELECT 2, 'tok_' || 2::text RETURNING token;
SELECT id, token, length(token), upper(token), token || '!', (colcrypt.inspect(token)).suite
FROM tokens ORDER BY id;
SELECT id FROM tokens WHERE token LIKE '%2';
SELECT 'tok_3'::text::api_token AS tok_3;
SELECT 'wrong'::text::api_token;
CREATE DOMAIN short_token AS api_token CHECK (length(VALUE) <= 6);
SELECT 'tok_12'::short_token AS tok_12;
SELECT 'tok_123'::short_token;
DROP TABLE tokens;
DROP DOMAIN short_token;
DROP DOMAIN api_token;

-- Arrays.
CREATE TABLE lists (id int, secrets encrypted_text[]);
INSERT INTO lists VALUES
    (1, ARRAY['a', 'b,"c"', NULL]), (2, '{d,"e f",""}'), (3, '{}'), (4, NULL),
    (5, ARRAY['x', 'y']::text[]), (6, ARRAY[['a', 'b'], ['c', 'd']]);
SELECT id, secrets, cardinality(secrets), secrets[1] FROM lists ORDER BY id;
SELECT unnest(secrets) AS secret FROM lists WHERE id = 1;
SELECT id FROM lists WHERE 'x' LIKE ANY (secrets::text[]) ORDER BY id;
SELECT id FROM lists WHERE 'x' = ANY (secrets::text[]) ORDER BY id;
UPDATE lists SET secrets[2] = 'z' WHERE id = 1 RETURNING secrets;
UPDATE lists SET secrets = secrets || 'appended'::encrypted_text WHERE id = 2 RETURNING secrets;
UPDATE lists SET secrets = array_append(secrets, 'again') WHERE id = 2 RETURNING secrets;
SELECT array_to_string(secrets, '; ', 'null') FROM lists WHERE id = 1;
SELECT secrets::text[] AS plain, pg_typeof(secrets::text[]) FROM lists WHERE id = 5;
SELECT ARRAY['p'::encrypted_text, 'q'] AS "{p,q}", pg_typeof(ARRAY['p'::encrypted_text, 'q']);
SELECT bool_and((colcrypt.inspect(s)).suite = 'xaes-256-gcm') AS t
FROM lists, unnest(secrets) AS s WHERE s IS NOT NULL;
SELECT array_agg(s) AS "{a,b}" FROM (VALUES ('a'::encrypted_text), ('b')) AS v (s);
DROP TABLE lists;

-- Composites, anonymous records, table row types.
CREATE TYPE credential AS (login text, password encrypted_text);
CREATE TABLE credentials (id int, cred credential, creds credential[]);
INSERT INTO credentials VALUES (1, ROW('ada', 'pw, "1"'), ARRAY[ROW('x', 'px'), ROW('y', NULL)]::credential[]);
INSERT INTO credentials VALUES (2, '(bob,"pw 2")', '{"(z,pz)"}');
SELECT id, cred, (cred).password, creds, (creds[1]).password FROM credentials ORDER BY id;
UPDATE credentials SET cred.password = 'changed' WHERE id = 1 RETURNING cred;
SELECT id, (cred).login FROM credentials WHERE (cred).password LIKE 'ch%';
SELECT ROW('x'::encrypted_text, 1) AS record;
SELECT c FROM credentials AS c WHERE id = 2;
SELECT (jsonb_populate_record(NULL::credential, '{"login": "l", "password": "p"}')).password AS p;
SELECT to_jsonb(c) FROM credentials AS c WHERE id = 2;
SELECT count(*) AS "1" FROM (SELECT (c.cred).* FROM credentials AS c WHERE id = 2) AS s
WHERE password::text = 'pw 2';
DROP TABLE credentials;
DROP TYPE credential;

-- Arrays and rows compare by their members' plaintext.
SELECT ARRAY['a', 'b']::encrypted_text[] = ARRAY['a', 'b']::encrypted_text[] AS t,
    ARRAY['a', 'b']::encrypted_text[] = ARRAY['a', 'c']::encrypted_text[] AS f,
    ROW('a'::encrypted_text, 1) = ROW('a'::encrypted_text, 1) AS t,
    'a'::encrypted_text = ANY (ARRAY['b', 'a']::encrypted_text[]) AS t;
SELECT DISTINCT s FROM (VALUES ('a'::encrypted_text), ('a'), (NULL)) AS v (s) ORDER BY s;

-- encrypted_jsonb: documents as psql shows them.

LOAD 'colcrypt';
\set a 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='
\set b 'ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8='
CREATE TABLE tasks (id int PRIMARY KEY, doc encrypted_jsonb);
\d tasks

-- What jsonb takes, it takes; and shows it as jsonb does.
INSERT INTO tasks VALUES
    (1, '{"token": "sk-1",  "scopes": ["read", "write"], "retries": 3.0}'),
    (2, '["a", 1.50, null, true, {"b": {}}]'), (3, '"a string"'), (4, ' 1e2 '), (5, 'null'),
    (6, '{"b": 1, "aa": 2, "a": 3, "a": 4}'), (7, '"\u00e9\ud83d\udd11 \n \\u0000"'), (8, NULL);
SELECT id, doc, jsonb_typeof(doc) FROM tasks ORDER BY id;
SELECT id FROM tasks WHERE doc IS NULL;
SELECT DISTINCT (colcrypt.inspect(doc)).suite, (colcrypt.inspect(doc)).key_id FROM tasks WHERE doc IS NOT NULL;
SELECT id, (colcrypt.inspect(doc)).stored_bytes - octet_length(doc::text) AS overhead FROM tasks
WHERE id < 4 ORDER BY id;

-- What is no JSON, it does not. The error does not show the document, but says how to see.
SELECT '{"token": "sk-1"'::encrypted_jsonb;
INSERT INTO tasks VALUES (9, '{"token": sk-1}');
UPDATE tasks SET doc = '' WHERE id = 1;
COPY tasks FROM STDIN;
9	{token: "sk-1"}
\.
SELECT '{"token": "sk-1"'::jsonb;
\set VERBOSITY sqlstate
SELECT '"\u0000"'::encrypted_jsonb;
SELECT '"\u0000"'::jsonb;
SELECT '1e1000000'::encrypted_jsonb;
SELECT '1e1000000'::jsonb;
\set VERBOSITY default
INSERT INTO tasks VALUES (9, '"colcrypt:v1:AAAA"');
INSERT INTO tasks VALUES (9, '{}'::text);
INSERT INTO tasks VALUES (9, 12);

-- Casts: from and to jsonb and json on assignment, to jsonb wherever one is expected.
INSERT INTO tasks VALUES (9, '{"from": "jsonb"}'::jsonb), (10, '{"from":   "json"}'::json);
SELECT id, doc FROM tasks WHERE id > 8 ORDER BY id;
SELECT doc::jsonb, doc::json, doc::text, '{"x":1}'::text::encrypted_jsonb FROM tasks WHERE id = 9;
CREATE TABLE plain (b jsonb, j json);
INSERT INTO plain SELECT doc, doc FROM tasks WHERE id = 9;
SELECT * FROM plain;
CREATE FUNCTION pg_temp.keys_of(jsonb) RETURNS text LANGUAGE sql AS
    'SELECT string_agg(key, '','') FROM jsonb_object_keys($1) AS key';
SELECT pg_temp.keys_of(doc) AS "from" FROM tasks WHERE id = 9;
SELECT doc::int FROM tasks WHERE id = 4;
SELECT doc::jsonb::int AS "100" FROM tasks WHERE id = 4;
DELETE FROM tasks WHERE id > 8;

-- Elements are read as they are of jsonb.
SELECT doc -> 'token' AS token, doc ->> 'token' AS text, doc -> 'scopes' -> 0 AS scope,
    doc #> '{scopes,1}' AS path, doc #>> '{scopes,-1}' AS text, pg_typeof(doc -> 'token')
FROM tasks WHERE id = 1;
SELECT id FROM tasks WHERE doc ->> 'token' = 'sk-1';
SELECT id FROM tasks WHERE doc @> '{"scopes": ["read"]}';
SELECT id FROM tasks WHERE doc <@ '{"a": 4, "aa": 2, "b": 1, "c": 0}';
SELECT id FROM tasks WHERE doc ? 'token' OR doc ?| ARRAY['aa', 'x'] OR doc ?& ARRAY['a', 'b'] ORDER BY id;
SELECT id FROM tasks WHERE doc @? '$.scopes[*] ? (@ == "write")';
SELECT id FROM tasks WHERE doc @@ '$.retries == 3';
SELECT jsonb_path_query_array(doc, '$.scopes[*] ? (@ starts with $x)', '{"x": "re"}') FROM tasks WHERE id = 1;
SELECT key, value FROM tasks, jsonb_each(doc) WHERE id = 1 ORDER BY key;
SELECT * FROM tasks, jsonb_to_record(doc) AS r (token text, retries numeric, scopes text[]) WHERE id = 1;
SELECT element FROM tasks, jsonb_array_elements_text(doc) AS element WHERE id = 2;
SELECT jsonb_pretty(doc) FROM tasks WHERE id = 1;
SELECT doc -> 'token' FROM tasks WHERE id = 3;
SELECT jsonb_array_length(doc) FROM tasks WHERE id = 1;
SELECT (doc::jsonb)['scopes'][0] FROM tasks WHERE id = 1;

-- And give jsonb where they are changed, which an assignment encrypts.
SELECT doc || '{"x": 1}' AS after, '{"x": 1}' || doc AS before, pg_typeof(doc || '{"x": 1}')
FROM tasks WHERE id = 6;
SELECT doc || doc AS twice, doc || '[1]'::jsonb AS jsonb, doc - 'a' AS minus, doc #- '{aa}' AS path
FROM tasks WHERE id = 6;
UPDATE tasks SET doc = jsonb_set(doc, '{token}', '"sk-2"') WHERE id = 1 RETURNING doc;
UPDATE tasks SET doc = jsonb_insert(doc, '{scopes,0}', to_jsonb('list'::text)) WHERE id = 1 RETURNING doc ->> 'scopes' AS scopes;
UPDATE tasks SET doc = doc || jsonb_build_object('retries', (doc ->> 'retries')::numeric + 1) WHERE id = 1 RETURNING doc;
UPDATE tasks SET doc = doc #- '{scopes,0}' WHERE id = 1 RETURNING doc;
UPDATE tasks SET doc = doc - 'token' WHERE id = 5;
INSERT INTO tasks VALUES (1, '{"note": "x"}') ON CONFLICT (id) DO UPDATE SET doc = tasks.doc || EXCLUDED.doc
    RETURNING doc;
INSERT INTO tasks SELECT r.id + 20, r.doc FROM tasks AS t, jsonb_populate_record(NULL::tasks, to_jsonb(t)) AS r
    WHERE t.id IN (1, 6) RETURNING *;
DELETE FROM tasks WHERE id > 20;

-- In and out of JSON: a document is a document there, not a string.
SELECT to_json(doc), to_jsonb(doc), jsonb_build_object('doc', doc), json_build_array(doc) FROM tasks WHERE id = 6;
SELECT row_to_json(tasks), to_jsonb(tasks) FROM tasks WHERE id = 6;
SELECT jsonb_agg(doc ORDER BY id), json_agg(doc ORDER BY id), jsonb_object_agg(id, doc) FROM tasks WHERE id IN (3, 6);

-- COPY.
COPY (SELECT * FROM tasks WHERE id IN (3, 7, 8) ORDER BY id) TO STDOUT;
COPY (SELECT * FROM tasks WHERE id IN (1, 3, 8) ORDER BY id) TO STDOUT (FORMAT csv);
COPY tasks FROM STDIN;
11	{"tab": "\\t", "b": 1, "a": 2}
\.
SELECT doc FROM tasks WHERE id = 11;

-- Prepared statements, with parameters that have a type and that have none.
PREPARE put (int, jsonb) AS INSERT INTO tasks VALUES ($1, $2) RETURNING doc;
PREPARE put_json (int, json) AS INSERT INTO tasks VALUES ($1, $2) RETURNING doc;
PREPARE put_sealed (int, encrypted_jsonb) AS INSERT INTO tasks VALUES ($1, $2) RETURNING doc;
PREPARE put_untyped AS INSERT INTO tasks VALUES ($1, $2) RETURNING doc;
PREPARE put_text (int, text) AS INSERT INTO tasks VALUES ($1, $2);
EXECUTE put (12, '{"n": 12,"a": 1.0}');
EXECUTE put_json (13, '{"n": 12,"a": 1.0}');
EXECUTE put_sealed (14, '{"n": 12,"a": 1.0}');
EXECUTE put_untyped (15, '{"n": 12,"a": 1.0}');
EXECUTE put_untyped (16, '{"n": 12');
PREPARE find (jsonb) AS SELECT id FROM tasks WHERE doc = $1 ORDER BY id;
PREPARE find_untyped AS SELECT id FROM tasks WHERE doc = $1 ORDER BY id;
PREPARE found_by_key AS SELECT doc -> $1 FROM tasks WHERE doc @> $2 ORDER BY id;
PREPARE set_member AS UPDATE tasks SET doc = jsonb_set(doc, $2, $3) WHERE id = $1 RETURNING doc;
PREPARE merge_in AS UPDATE tasks SET doc = doc || $2 WHERE id = $1 RETURNING doc;
SELECT name, parameter_types FROM pg_prepared_statements ORDER BY name COLLATE "C";
EXECUTE find ('{"a": 1, "n": 12.00}');
EXECUTE find_untyped ('{"a": 1, "n": 12.00}');
EXECUTE found_by_key ('n', '{"n": 12}');
EXECUTE set_member (12, '{n}', '"twelve"');
EXECUTE merge_in (12, '{"b": []}');
DEALLOCATE ALL;
DELETE FROM tasks WHERE id > 10;

-- Equality is that of jsonb: neither order nor white space nor zeros matter. Other
-- comparisons are not there.
SELECT '{"a": 1, "b": [2]}'::encrypted_jsonb = '{"b":[2.0],"a":1.00}' AS t,
    '{"a": 1}'::encrypted_jsonb = '{"a": "1"}'::jsonb AS f, '[1, 2]'::jsonb <> '[2, 1]'::encrypted_jsonb AS t,
    encrypt('1'::jsonb) = encrypt('1.0'::jsonb) AS t, encrypt('{}'::jsonb) IN ('[]', '{}') AS t;
SELECT count(*), count(DISTINCT doc) AS "1" FROM (VALUES (encrypt('{"a":1,"b":2}'::jsonb)), ('{"b":2,"a":1}')) AS v (doc);
SELECT id FROM tasks WHERE doc < '{}';
SELECT id FROM tasks WHERE doc BETWEEN '1' AND '2'::jsonb;
SELECT id FROM tasks WHERE doc IS NOT NULL ORDER BY doc::jsonb;

-- Indexes: hash and unique for equality; none over the plaintext.
CREATE INDEX tasks_hash ON tasks USING hash (doc);
SET enable_seqscan = off;
EXPLAIN (COSTS OFF) SELECT id FROM tasks WHERE doc = '{"a": 4}'::jsonb;
SELECT id AS "6" FROM tasks WHERE doc = '{"aa":2, "a":4.0, "b":1}'::jsonb;
DROP INDEX tasks_hash;
CREATE UNIQUE INDEX tasks_doc ON tasks (doc);
EXPLAIN (COSTS OFF) SELECT id FROM tasks WHERE doc = '{"a": 4}';
SELECT id AS "6" FROM tasks WHERE doc = '{"aa":2, "a":4.0, "b":1}';
RESET enable_seqscan;
\set VERBOSITY terse
INSERT INTO tasks VALUES (20, '{"aa": 2, "a": 4, "b": 1.0}');
\set VERBOSITY default
INSERT INTO tasks VALUES (20, '{"aa": 2, "a": 4, "b": 1.0}') ON CONFLICT (doc) DO UPDATE SET id = 21 RETURNING id;
CREATE INDEX ON tasks USING gin (doc);
CREATE INDEX ON tasks USING gin ((doc::jsonb));
CREATE INDEX ON tasks ((doc ->> 'token'));
ALTER TABLE tasks ADD COLUMN token text GENERATED ALWAYS AS (doc ->> 'token') STORED;
DROP INDEX tasks_doc;

-- Domains and constraints over elements.
CREATE DOMAIN credentials AS encrypted_jsonb CHECK (VALUE ? 'token');
CREATE TABLE accounts (id int, login credentials, CHECK (jsonb_typeof(login -> 'token') = 'string'));
INSERT INTO accounts VALUES (1, '{"token": "sk-3"}');
\set VERBOSITY terse
INSERT INTO accounts VALUES (2, '{"tokens": "sk-3"}');
INSERT INTO accounts VALUES (2, '{"token": 3}');
\set VERBOSITY default
UPDATE accounts SET login = jsonb_set(login, '{token}', '"sk-4"') RETURNING login ->> 'token' AS token;

-- A mask is a JSON string; ciphertext is as it is stored, and a JSON string where JSON is asked for.
SET colcrypt.access = 'masked';
SELECT id, doc FROM tasks WHERE id IN (1, 3, 8) ORDER BY id;
SELECT doc::jsonb, doc::json, jsonb_typeof(doc), doc ->> 'token' AS "null", to_jsonb(doc) FROM tasks WHERE id = 1;
SELECT row_to_json(tasks) FROM tasks WHERE id = 1;
SET colcrypt.mask = 'it''s "hidden"';
SELECT doc, doc #>> '{}' AS text FROM tasks WHERE id = 1;
RESET colcrypt.mask;
SELECT decrypt(doc) FROM tasks WHERE id = 1;
SELECT id FROM tasks WHERE doc = '{}';
UPDATE tasks SET doc = jsonb_set(doc, '{token}', '"lost"') WHERE id = 1;
INSERT INTO tasks VALUES (22, '{"written": "masked"}') RETURNING doc;
SET colcrypt.access = 'ciphertext';
SELECT doc::text ~ '^colcrypt:v1:[A-Za-z0-9_-]+$' AS t, doc::jsonb #>> '{}' = ciphertext(doc) AS t,
    doc::json #>> '{}' = ciphertext(doc) AS t, jsonb_typeof(doc) FROM tasks WHERE id = 1;
RESET colcrypt.access;
SELECT id, doc FROM tasks WHERE id IN (1, 22) ORDER BY id;

-- Functions.
SELECT pg_typeof(encrypt('{}'::jsonb)), pg_typeof(decrypt(doc)), decrypt(doc) -> 'retries' AS retries,
    try_decrypt(doc) = doc AS t FROM tasks WHERE id = 1;
SELECT from_ciphertext_jsonb(ciphertext(doc)) = doc AS t FROM tasks WHERE id = 1;
SELECT from_ciphertext_jsonb(ciphertext('text'));
SELECT from_ciphertext_jsonb(ciphertext('{}'));
SELECT from_ciphertext(ciphertext(doc)) FROM tasks WHERE id = 1;
SET colcrypt.algorithm = 'fernet';
SELECT from_fernet_jsonb(fernet_token(encrypt('{"b" : 1,"a":2}'::text))) AS doc;
SELECT from_fernet_jsonb(fernet_token(encrypt('no JSON'::text))) AS doc;
RESET colcrypt.algorithm;

-- A key that is missing, and a placeholder.
SET colcrypt.key = :'b';
INSERT INTO tasks VALUES (30, '{"under": "b"}');
RESET colcrypt.key;
SELECT doc FROM tasks WHERE id = 30;
SELECT try_decrypt(doc) IS NULL AS t FROM tasks WHERE id = 30;
SET colcrypt.undecryptable = 'placeholder';
SELECT id, doc, jsonb_typeof(doc), doc ->> 'under' AS "null" FROM tasks WHERE id IN (1, 30) ORDER BY id;
RESET colcrypt.undecryptable;

-- Rotation.
SELECT set_config('colcrypt.key', :'a' || ',' || :'b', false) AS "new, old";
SELECT key_id, suite, rows, stale FROM colcrypt.key_usage('tasks', 'doc') ORDER BY stale;
SELECT rotate_column('tasks', 'doc') AS "1";
RESET colcrypt.key;
SELECT doc FROM tasks WHERE id = 30;
SET colcrypt.algorithm = 'aes-256-gcm';
SELECT rotate_column('tasks', 'doc') AS rows, count(*) AS rows FROM tasks WHERE doc IS NOT NULL;
RESET colcrypt.algorithm;
SELECT suite, rows FROM colcrypt.key_usage('tasks', 'doc');
SELECT id, doc FROM tasks WHERE id IN (1, 2, 30) ORDER BY id;
SELECT relation, column_name, type, key_name, indexes FROM colcrypt.columns WHERE relation = 'tasks'::regclass;

-- A column becomes encrypted, and plain again.
CREATE TABLE moved (doc jsonb);
INSERT INTO moved VALUES ('{"b": 1.0, "a": 2}');
ALTER TABLE moved ALTER doc TYPE encrypted_jsonb;
SELECT doc, (colcrypt.inspect(doc)).suite FROM moved;
ALTER TABLE moved ALTER doc TYPE json;
SELECT doc FROM moved;
ALTER TABLE moved ALTER doc TYPE encrypted_jsonb, ALTER doc SET DEFAULT '{}';
INSERT INTO moved DEFAULT VALUES RETURNING doc;
ALTER TABLE moved ALTER doc DROP DEFAULT, ALTER doc TYPE jsonb;
TABLE moved;

DROP TABLE tasks, plain, accounts, moved;
DROP DOMAIN credentials;

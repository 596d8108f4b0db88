-- Text functions, operators and constructs take an encrypted value as they take text.

CREATE TABLE people (id int PRIMARY KEY, email encrypted_text, note text);
INSERT INTO people VALUES
    (1, 'Ada@example.com', 'first'), (2, 'bob@example.org', 'second'),
    (3, NULL, NULL), (4, '', 'fourth'), (5, 'bob@example.org', 'fifth');

-- Pattern matching.
SELECT id FROM people WHERE email LIKE 'bob%' ORDER BY id;
SELECT id FROM people WHERE email NOT LIKE 'bob%' ORDER BY id;
SELECT id FROM people WHERE email ILIKE 'ada%' ORDER BY id;
SELECT id FROM people WHERE email ~ '^[A-Z]' ORDER BY id;
SELECT id FROM people WHERE email ~* 'EXAMPLE\.ORG$' ORDER BY id;
SELECT id FROM people WHERE email SIMILAR TO '%(com|org)' ORDER BY id;
SELECT id FROM people WHERE starts_with(email, 'bob') ORDER BY id;
SELECT id FROM people WHERE email ^@ 'bob' ORDER BY id;
SELECT 'Ada@example.com' LIKE email AS t FROM people WHERE id = 1;

-- Functions.
SELECT id, length(email), octet_length(email), char_length(email), bit_length(email)
FROM people ORDER BY id;
SELECT lower(email), upper(email), initcap(email), reverse(email) FROM people WHERE id = 1;
SELECT substr(email, 5) AS example, substring(email FROM 1 FOR 3) AS "Ada",
    substring(email FROM '@(.*)') AS host, left(email, 3) AS "Ada", right(email, 3) AS com
FROM people WHERE id = 1;
SELECT email || '!' AS after, '<' || email AS before, email || email AS twice, email || 1 AS number
FROM people WHERE id = 1;
SELECT email || note AS both FROM people WHERE id = 1;
SELECT concat(email, '/', note), concat_ws('/', note, email), format('%s %I %L', email, email, email)
FROM people WHERE id = 1;
SELECT position('@' IN email) AS "4", strpos(email, '@') AS "4", split_part(email, '@', 2) AS host
FROM people WHERE id = 1;
SELECT replace(email, 'Ada', 'Eve'), translate(email, 'A', 'a'), regexp_replace(email, '@.*', '@…'),
    overlay(email PLACING 'Eve' FROM 1 FOR 3)
FROM people WHERE id = 1;
SELECT trim(BOTH 'm' FROM email), lpad(email, 18, '*'), rpad(email, 18, '*'), repeat(left(email, 1), 3)
FROM people WHERE id = 1;
SELECT quote_literal(email), quote_ident(email), quote_nullable(email) FROM people WHERE id = 1;
SELECT md5(email) = md5('Ada@example.com') AS t, ascii(email) = 65 AS t,
    sha256(convert_to(email, 'UTF8')) = sha256('Ada@example.com') AS t
FROM people WHERE id = 1;
SELECT string_to_array(email, '@') AS parts, (regexp_match(email, '(.*)@'))[1] AS name
FROM people WHERE id = 1;
SELECT to_json(email) AS json, to_jsonb(email) AS jsonb, json_build_object('email', email) AS object
FROM people WHERE id = 1;
SELECT row_to_json(people) FROM people WHERE id = 1;
SELECT to_tsvector('simple', email) FROM people WHERE id = 1;

-- Aggregates.
SELECT string_agg(email, ', ' ORDER BY id) FROM people;
SELECT count(email) AS "4", sum(length(email)) AS "45", max(length(email)) AS "15" FROM people;
SELECT array_agg(email ORDER BY id) FROM people;
SELECT min(email::text), max(email::text) FROM people;

-- Comparison goes through a cast until there are operators.
SELECT id FROM people WHERE email::text = 'bob@example.org' ORDER BY id;
SELECT count(DISTINCT email::text) AS "3" FROM people;
SELECT DISTINCT email::text AS email FROM people ORDER BY email;
SELECT email::text, count(*) FROM people GROUP BY email::text ORDER BY 1;
SELECT id, email FROM people ORDER BY email::text COLLATE "C", id;
SELECT id, email FROM people ORDER BY email::text COLLATE "C" DESC NULLS LAST, id DESC;

-- COALESCE, CASE, NULLIF, with text and varchar constants, columns and parameters.
SELECT id, COALESCE(email, 'none') FROM people ORDER BY id;
SELECT id, COALESCE(email, note, 'none'::text) FROM people ORDER BY id;
SELECT COALESCE(note, email) FROM people WHERE id = 1;
SELECT id, CASE WHEN id = 1 THEN email ELSE 'other' END FROM people ORDER BY id;
SELECT CASE id WHEN 1 THEN note ELSE email END FROM people WHERE id < 3 ORDER BY id;
SELECT pg_typeof(COALESCE(email, 'none')) AS same_type FROM people WHERE id = 1;
SELECT pg_typeof(COALESCE(email, 'none'::text)) AS text, pg_typeof(COALESCE(email, 'none'::varchar)) AS varchar
FROM people WHERE id = 1;
PREPARE with_varchar(varchar) AS SELECT COALESCE(email, $1) FROM people ORDER BY id;
EXECUTE with_varchar('param');
PREPARE with_text(text) AS SELECT CASE WHEN id = 2 THEN email ELSE $1 END FROM people ORDER BY id;
EXECUTE with_text('param');
PREPARE with_unknown AS SELECT COALESCE(email, $1) FROM people ORDER BY id;
EXECUTE with_unknown('param');
PREPARE pattern(varchar) AS SELECT id FROM people WHERE email LIKE $1 ORDER BY id;
EXECUTE pattern('bob%');
PREPARE put(int, varchar) AS UPDATE people SET email = $2 WHERE id = $1 RETURNING email;
EXECUTE put(3, 'via varchar');
PREPARE put_unknown AS UPDATE people SET email = $2 WHERE id = $1 RETURNING email;
EXECUTE put_unknown(3, 'via unknown');

-- UNION with text, VALUES, IN lists over the cast.
SELECT email FROM people WHERE id = 1 UNION ALL SELECT note FROM people WHERE id = 1;
SELECT note FROM people WHERE id = 1 UNION ALL SELECT email FROM people WHERE id = 1;
SELECT email::text FROM people UNION SELECT 'Ada@example.com' ORDER BY 1;
SELECT id FROM people WHERE email::text IN ('Ada@example.com', '') ORDER BY id;

-- Views, CTEs, subqueries, lateral joins, window functions.
CREATE VIEW people_view AS SELECT id, email, lower(email) AS lowered FROM people;
SELECT * FROM people_view ORDER BY id;
CREATE MATERIALIZED VIEW people_stored AS SELECT id, email FROM people;
SELECT id, email, (colcrypt.inspect(email)).suite FROM people_stored WHERE id < 3 ORDER BY id;
WITH found AS MATERIALIZED (SELECT email FROM people WHERE id = 1) SELECT email, length(email) FROM found;
WITH gone AS (DELETE FROM people WHERE id = 5 RETURNING email) SELECT email FROM gone;
WITH RECURSIVE chain AS (
    SELECT 1 AS step, email FROM people WHERE id = 1
    UNION ALL
    SELECT step + 1, email FROM chain WHERE step < 3)
SELECT * FROM chain;
SELECT id, part FROM people, LATERAL regexp_split_to_table(email, '@') AS part WHERE id = 1;
SELECT id, lag(email) OVER (ORDER BY id) FROM people ORDER BY id;
SELECT (SELECT email FROM people WHERE id = 1) AS scalar;
SELECT a.id, b.id FROM people AS a JOIN people AS b ON a.email::text = b.email::text ORDER BY 1, 2;

-- Writing.
INSERT INTO people (id, email) SELECT 6, note FROM people WHERE id = 1 RETURNING id, email;
INSERT INTO people (id, email) SELECT 7, email FROM people WHERE id = 1 RETURNING id, email;
INSERT INTO people (id, email) VALUES (6, 'again') ON CONFLICT (id) DO UPDATE
    SET email = EXCLUDED.email || ' and ' || people.email RETURNING email;
UPDATE people SET email = upper(email) WHERE id = 7 RETURNING email;
UPDATE people SET (email, note) = (note, email) WHERE id = 1 RETURNING email, note;
MERGE INTO people AS p USING (VALUES (7, 'merged')) AS v (id, email) ON p.id = v.id
    WHEN MATCHED THEN UPDATE SET email = v.email;
DELETE FROM people WHERE email LIKE 'merged' RETURNING email;

-- Parallel workers read with the same ring.
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
-- Its name since 16 is debug_parallel_query.
SELECT name AS parallel FROM pg_settings
WHERE name IN ('force_parallel_mode', 'debug_parallel_query') \gset
SET :parallel = on;
SELECT count(*) AS "2" FROM people WHERE email LIKE '%example%' OR email LIKE 'first%';
RESET :parallel;

DROP TABLE people CASCADE;

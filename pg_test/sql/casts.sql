-- A value of any type goes into an encrypted column as its cast to text goes into
-- a text column.

CREATE TYPE mood AS ENUM ('sad', 'quite happy');
CREATE TABLE cast_target (secret encrypted_text);

-- On assignment, from a literal and from a column; and with the cast written out.
CREATE FUNCTION pg_temp.stored_as(expression text, OUT stored text, OUT same boolean)
LANGUAGE plpgsql AS $$
DECLARE
    from_column text;
    explicit text;
    plain text;
BEGIN
    EXECUTE format('INSERT INTO cast_target VALUES (%s) RETURNING secret', expression)
        INTO stored;
    EXECUTE format('INSERT INTO cast_target SELECT x FROM (SELECT %s AS x OFFSET 0) AS s'
        ' RETURNING secret', expression) INTO from_column;
    EXECUTE format('SELECT (%s)::encrypted_text', expression) INTO explicit;
    EXECUTE format('SELECT (%s)::text', expression) INTO plain;
    same := stored = plain AND from_column = plain AND explicit = plain;
END
$$;
SELECT expression, stored, same AS t
FROM unnest(ARRAY[
    $$'text'::text$$, $$''::text$$, $$' varchar '::varchar$$, $$'varchar'::varchar(3)$$,
    $$'ab'::char(5)$$, $$'  ab '::char(8)$$, $$''::char(4)$$, $$'   '::char(3)$$, $$'é'::char(3)$$,
    $$'x'::"char"$$, $$'name'::name$$,
    $$'{"b": 1,   "a": [2, null]}'::json$$, $$'{"b": 1,   "a": [2, null]}'::jsonb$$, $$'"s"'::jsonb$$,
    $$1.50::numeric$$, $$'NaN'::numeric$$, $$(-0.000001)::numeric$$,
    $$12::smallint$$, $$(-2147483648)::integer$$, $$9223372036854775807::bigint$$,
    $$true$$, $$false$$,
    $$'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'::uuid$$,
    $$'10.1.2.3'::inet$$, $$'10.1.2.3/8'::inet$$, $$'::1'::inet$$, $$'fe80::/10'::cidr$$,
    $$'10.0.0.0/8'::cidr$$, $$'10.1.2.3'::cidr$$,
    $$'2026-11-22'::date$$, $$'infinity'::date$$, $$'04:05:06.789'::time$$,
    $$'04:05:06+02'::timetz$$, $$'2026-11-22 04:05:06.5'::timestamp$$,
    $$'2026-11-22 04:05:06+00'::timestamptz$$, $$'1 year 2 days 03:00'::interval$$,
    $$1.5::float8$$, $$0.1::float4$$, $$'-infinity'::float8$$, $$'\xdeadbeef'::bytea$$, $$12345::oid$$,
    $$'quite happy'::mood$$, $$'pg_class'::regclass$$, $$ARRAY[1, 2]$$, $$ROW(1, 'a b')$$,
    $$'(1,2)'::point$$, $$12.34::money$$, $$B'101'$$, $$'08:00:2b:01:02:03'::macaddr$$,
    $$'<a/>'::xml$$, $$int4range(1, 5)$$, $$'a & b'::tsquery$$
]) AS expression, pg_temp.stored_as(expression);
SELECT count(*) AS rows FROM cast_target;
SELECT NULL::integer::encrypted_text IS NULL AS t;
SELECT NULL::boolean::encrypted_text IS NULL AS t;
SELECT NULL::inet::encrypted_text IS NULL AS t;

-- And back.
SELECT '12.50'::encrypted_text::numeric + 1 AS "13.50";
SELECT '12'::encrypted_text::int + 1 AS "13";
SELECT ('{"a": 1}'::encrypted_text::jsonb) ->> 'a' AS "1";
SELECT '2026-11-22'::encrypted_text::date = '2026-11-22' AS t;
SELECT 'true'::encrypted_text::boolean AS t;
SELECT 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'::encrypted_text::uuid
    = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11' AS t;
SELECT '10.1.2.3/8'::encrypted_text::inet = '10.1.2.3/8' AS t;
SELECT '{1,2}'::encrypted_text::int[] = ARRAY[1, 2] AS t;
SELECT 'sad'::encrypted_text::mood = 'sad' AS t;
SELECT 'name'::encrypted_text::name AS name;
SELECT 'abcdef'::encrypted_text::varchar(3) AS abc;
SELECT 'abcdef'::encrypted_text::char(3) AS abc;
SELECT 'ab'::encrypted_text::char(4) || '|' AS "ab|";
SELECT 'twelve'::encrypted_text::int;

-- Implicit to text and varchar, on assignment to char(n), to nothing else.
CREATE TABLE into_plain (t text, v varchar, v3 varchar(3), c character(5));
INSERT INTO into_plain SELECT s, s, s, s FROM (SELECT 'abc'::encrypted_text AS s) AS x;
SELECT t, v, v3, c, c || '|' AS "abc|" FROM into_plain;
INSERT INTO into_plain (v3) SELECT 'abcd'::encrypted_text;
INSERT INTO into_plain (c) SELECT 'abcdef'::encrypted_text;
CREATE TABLE into_others (i int, n numeric, j jsonb, d date);
INSERT INTO into_others (i) SELECT '1'::encrypted_text;
INSERT INTO into_others (n) SELECT '1'::encrypted_text;
INSERT INTO into_others (j) SELECT '1'::encrypted_text;
INSERT INTO into_others (d) SELECT '2026-11-22'::encrypted_text;
CREATE FUNCTION pg_temp.takes_bpchar(bpchar) RETURNS text LANGUAGE sql AS 'SELECT $1::text';
SELECT pg_temp.takes_bpchar('x'::encrypted_text);

-- Nothing becomes encrypted where nobody asked for it.
CREATE FUNCTION pg_temp.takes_encrypted(encrypted_text) RETURNS text LANGUAGE sql AS 'SELECT $1::text';
SELECT pg_temp.takes_encrypted('a literal') AS "a literal";
SELECT pg_temp.takes_encrypted('x'::text);
SELECT pg_temp.takes_encrypted('x'::varchar);
SELECT pg_temp.takes_encrypted(1);
SELECT pg_temp.takes_encrypted('x'::text::encrypted_text) AS x;

DROP TABLE cast_target, into_plain, into_others;
DROP TYPE mood;

-- Equality search, as psql shows it.

-- The index key: made when it is first asked for, then always the same.
SELECT colcrypt.create_index_key() AS id \gset
SELECT :'id' ~ '^[0-9a-f]{8}$' AS t, colcrypt.create_index_key() = :'id' AS t;
SELECT kind, key_id = :'id' AS t, name, state, wrapped_by FROM colcrypt.key WHERE kind = 'index';

-- Operators.
CREATE TABLE accounts (id int, email encrypted_text);
INSERT INTO accounts VALUES (1, 'ann@example.com'), (2, 'Ann@example.com'), (3, ''), (4, NULL);
INSERT INTO accounts SELECT 5, 'ann@example.com';
SELECT id FROM accounts WHERE email = 'ann@example.com' ORDER BY id;
SELECT id FROM accounts WHERE 'ann@example.com'::varchar = email ORDER BY id;
SELECT id FROM accounts WHERE email <> 'ann@example.com'::text ORDER BY id;
SELECT id FROM accounts WHERE email IN ('', 'Ann@example.com') ORDER BY id;
SELECT id FROM accounts WHERE email LIKE '%@%' ORDER BY id;
SELECT email, count(*) FROM accounts GROUP BY email ORDER BY email::text;
SELECT a.id, b.id FROM accounts AS a JOIN accounts AS b USING (email) WHERE a.id < b.id;
SELECT encrypt('a') = encrypt('a') AS t, encrypt('a') = 'A' AS f, encrypt('a') <> 'a'::text AS f;
SELECT encrypt(current_user) = current_user AS t, current_user <> encrypt(current_user) AS f;
SELECT encrypt('a') = NULL AS "null", encrypt('a') IS DISTINCT FROM NULL AS t;
-- Between texts only the operators of these names are ours.
SELECT 'a'::text =# 'a'::text AS t, 'a'::text <># 'a'::text AS f;
-- Those of the btree family: an order, but not that of the plaintexts.
SELECT encrypt('a') <=~ 'a' AS t, encrypt('a') >=~ 'a' AS t, encrypt('a') <~ 'a' AS f,
    encrypt('a') >~ 'a' AS f, (encrypt('a') <~ 'b') <> (encrypt('a') >~ 'b') AS t;

-- No order.
SELECT id FROM accounts WHERE email < 'b';
SELECT id FROM accounts WHERE 'b'::text >= email;
SELECT id FROM accounts WHERE email BETWEEN 'a' AND 'b';
SELECT id FROM accounts WHERE email::text COLLATE "C" < 'b' ORDER BY email::text COLLATE "C", id;
SELECT min(email), pg_typeof(min(email)) FROM accounts;

-- Indexes and constraints.
CREATE INDEX accounts_hash ON accounts USING hash (email);
SET enable_seqscan = off;
EXPLAIN (COSTS OFF) SELECT id FROM accounts WHERE email = 'ann@example.com'::text;
SELECT count(*) AS "2" FROM accounts WHERE email = 'ann@example.com'::text;
DROP INDEX accounts_hash;
CREATE UNIQUE INDEX accounts_email ON accounts (email);
DELETE FROM accounts WHERE id = 5;
CREATE UNIQUE INDEX accounts_email ON accounts (email);
EXPLAIN (COSTS OFF) SELECT id FROM accounts WHERE email = 'ann@example.com';
SELECT id AS "1" FROM accounts WHERE email = 'ann@example.com';
RESET enable_seqscan;
INSERT INTO accounts VALUES (6, 'ann@example.com');
INSERT INTO accounts VALUES (6, 'ann@example.com') ON CONFLICT (email) DO UPDATE SET id = 7;
SELECT id AS "7" FROM accounts WHERE email = 'ann@example.com';
\d accounts

-- As \dAf, \dAc, \dAo and \dAp list them.
SELECT amname, opfname FROM pg_opfamily JOIN pg_am ON pg_am.oid = opfmethod
WHERE opfname LIKE 'encrypted%' ORDER BY 1;
SELECT amname, opcname, opcintype::regtype, opcdefault
FROM pg_opclass JOIN pg_am ON pg_am.oid = opcmethod
WHERE opcname LIKE 'encrypted%' ORDER BY 1;
SELECT amname, amopopr::regoperator, amopstrategy
FROM pg_amop JOIN pg_am ON pg_am.oid = amopmethod JOIN pg_opfamily AS f ON f.oid = amopfamily
WHERE opfname LIKE 'encrypted%'
ORDER BY 1, 3, amoplefttype::regtype::text, amoprighttype::regtype::text;
SELECT amname, amproc::regprocedure, amprocnum
FROM pg_amproc JOIN pg_opfamily AS f ON f.oid = amprocfamily JOIN pg_am ON pg_am.oid = opfmethod
WHERE opfname LIKE 'encrypted%'
ORDER BY 1, 3, amproclefttype::regtype::text, amprocrighttype::regtype::text;

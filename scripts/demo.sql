-- What an application does: nothing special. scripts/demo.sh runs this first.

CREATE EXTENSION colcrypt;

CREATE TABLE users (id int PRIMARY KEY, email text, api_token encrypted_text);

INSERT INTO users
SELECT i, 'user' || i || '@example.com', 'token-' || md5(i::text)
FROM generate_series(1, 999) AS i;

-- One value that is easy to look for in files.
INSERT INTO users VALUES (1000, 'canary@example.com', 'canary-in-the-coal-mine');

-- The same rows in a plain text column, to compare with.
CREATE TABLE plain_users (id int PRIMARY KEY, email text, api_token text);

INSERT INTO plain_users
SELECT i, 'user' || i || '@example.com', 'token-' || md5(i::text)
FROM generate_series(1, 999) AS i;

INSERT INTO plain_users VALUES (1000, 'canary@example.com', 'canary-in-the-coal-mine');

-- Searching: a unique index on the encrypted column, and a lookup that uses it.

CREATE UNIQUE INDEX users_api_token ON users (api_token);

EXPLAIN (COSTS OFF) SELECT id FROM users WHERE api_token = 'canary-in-the-coal-mine';

SELECT id FROM users WHERE api_token = 'canary-in-the-coal-mine';

-- A duplicate is refused, though its ciphertext is another.
DO $$
BEGIN
    INSERT INTO users VALUES (1001, 'copy@example.com', 'canary-in-the-coal-mine');
    RAISE 'the duplicate was stored';
EXCEPTION WHEN unique_violation THEN
    RAISE NOTICE '%', SQLERRM;
END
$$;

-- Rotation, here to another algorithm and back: the index goes on working.
SET colcrypt.algorithm = 'aes-256-gcm';
SELECT rotate_column('users', 'api_token');
SELECT id FROM users WHERE api_token = 'canary-in-the-coal-mine';
RESET colcrypt.algorithm;
SELECT rotate_column('users', 'api_token');

-- What the index goes by is made with a key that the database keeps, wrapped by the key
-- ring's primary. After a change of the primary this wraps it anew; here it is as it
-- should be.
SELECT kind, key_id, wrapped_by FROM colcrypt.keys;
SELECT colcrypt.rewrap_keys();

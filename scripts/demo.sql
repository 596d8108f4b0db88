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

-- No change of a stored value goes unnoticed.
--
-- A damaged value is not accepted while its key is at hand, so it is brought in
-- before: from_ciphertext() takes what is under a key that it does not know.

LOAD 'colcrypt';
\set key 'ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8='

CREATE FUNCTION pg_temp.stored_bytes(value encrypted_text) RETURNS bytea LANGUAGE sql AS $$
    SELECT decode(rpad(b64, (length(b64) + 3) / 4 * 4, '='), 'base64')
    FROM (SELECT translate(substr(ciphertext(value), length('colcrypt:v1:') + 1), '-_', '+/')) AS t (b64)
$$;
CREATE FUNCTION pg_temp.text_form(stored bytea) RETURNS text LANGUAGE sql AS $$
    SELECT 'colcrypt:v1:' || rtrim(translate(encode(stored, 'base64'), E'+/\n', '-_'), '=')
$$;
-- What from_ciphertext() says: 'accepted', or the SQLSTATE.
CREATE FUNCTION pg_temp.admit(form text, OUT outcome text, OUT value encrypted_text)
LANGUAGE plpgsql AS $$
BEGIN
    value := from_ciphertext(form);
    outcome := 'accepted';
EXCEPTION WHEN OTHERS THEN
    outcome := SQLSTATE;
END
$$;
CREATE FUNCTION pg_temp.read(value encrypted_text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN 'read ' || decrypt(value);
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE || ' ' || regexp_replace(SQLERRM, '[0-9a-f]{8}', '<id>');
END
$$;
CREATE FUNCTION pg_temp.print(value encrypted_text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN 'printed ' || encrypted_text_out(value)::text;
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE;
END
$$;

-- One value of each suite, under a key that only this session has.
SET colcrypt.key = :'key';
CREATE TEMP TABLE genuine (algorithm text, stored bytea);
DO $$
DECLARE
    suite text;
BEGIN
    FOREACH suite IN ARRAY ARRAY['xaes-256-gcm', 'aes-256-gcm', 'fernet', 'envelope'] LOOP
        PERFORM set_config('colcrypt.algorithm', suite, false);
        INSERT INTO genuine SELECT suite, pg_temp.stored_bytes(encrypt('s3'));
    END LOOP;
END
$$;
RESET colcrypt.algorithm;
SELECT algorithm, octet_length(stored) AS bytes, pg_temp.read(from_ciphertext(pg_temp.text_form(stored)))
FROM genuine ORDER BY 1;

-- Every bit flipped, with the key at hand.
CREATE TEMP TABLE flipped AS
SELECT algorithm, bit, pg_temp.text_form(set_bit(stored, bit, 1 - get_bit(stored, bit))) AS form
FROM genuine, generate_series(0, 8 * octet_length(stored) - 1) AS bit;
SELECT algorithm, (pg_temp.admit(form)).outcome, count(*)
FROM flipped GROUP BY 1, 2 ORDER BY 1, 2;
-- What is accepted is under one of the 32 keys whose id is one bit away, which nobody has.
SELECT algorithm, pg_temp.read((pg_temp.admit(form)).value), count(*)
FROM flipped WHERE (pg_temp.admit(form)).outcome = 'accepted'
GROUP BY 1, 2 ORDER BY 1, 2;

-- Every bit flipped, brought in while the key was away.
RESET colcrypt.key;
CREATE TEMP TABLE damaged AS
SELECT algorithm, bit, (pg_temp.admit(form)).* FROM flipped;
SELECT algorithm, outcome, count(*) FROM damaged
GROUP BY 1, 2 ORDER BY 1, 2;
SET colcrypt.key = :'key';
SELECT algorithm, pg_temp.read(value), count(*), count(try_decrypt(value)) AS try_decrypt
FROM damaged WHERE outcome = 'accepted'
GROUP BY 1, 2 ORDER BY 1, 2;
-- Whichever way it is read; and each can still be looked at.
SELECT pg_temp.print(value), count(*), count(colcrypt.inspect(value)) > 0 AS t
FROM damaged WHERE outcome = 'accepted' GROUP BY 1 ORDER BY 1;
SELECT count(*) AS "0" FROM damaged WHERE try_decrypt(value) IS NOT NULL;
SELECT bool_and(length(ciphertext(value)) > 0) AS t FROM damaged WHERE outcome = 'accepted';

-- Truncated at every length, and extended.
SELECT algorithm, (pg_temp.admit(pg_temp.text_form(substring(stored FOR length)))).outcome,
    min(length) AS from, max(length) AS to
FROM genuine, generate_series(0, octet_length(stored) - 1) AS length
GROUP BY 1, 2 ORDER BY 1, 2;
SELECT algorithm, (pg_temp.admit(pg_temp.text_form(stored || tail))).outcome, count(*)
FROM genuine, unnest(ARRAY['\x00', '\x0000', decode(repeat('00', 16), 'hex')]::bytea[]) AS tail
GROUP BY 1, 2 ORDER BY 1, 2;
RESET colcrypt.key;
CREATE TEMP TABLE truncated AS
SELECT algorithm, (pg_temp.admit(pg_temp.text_form(substring(stored FOR length)))).*
FROM genuine, generate_series(0, octet_length(stored) - 1) AS length;
SET colcrypt.key = :'key';
SELECT algorithm, outcome, pg_temp.read(value), count(*) FROM truncated
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;

-- A value of one suite presented as another: long enough to be any of them, and with
-- the byte that a Fernet token begins with in its place.
SELECT g.algorithm, count(*) FILTER (WHERE outcome = 'accepted') AS accepted,
    count(*) FILTER (WHERE outcome IN ('22P02', 'XX001')) AS refused
FROM genuine AS g, generate_series(0, 255) AS format,
    pg_temp.admit(pg_temp.text_form(set_byte(stored, 0, format)))
WHERE format <> get_byte(stored, 0)
GROUP BY 1 ORDER BY 1;
DO $$
DECLARE
    suite text;
BEGIN
    FOREACH suite IN ARRAY ARRAY['xaes-256-gcm', 'aes-256-gcm', 'envelope'] LOOP
        PERFORM set_config('colcrypt.algorithm', suite, false);
        -- As long as a Fernet value is: 62 bytes and whole blocks of 16.
        INSERT INTO genuine SELECT suite || ', as a token',
            set_byte(set_byte(stored, 0, 3), 5, 128)
            FROM (SELECT pg_temp.stored_bytes(encrypt(repeat('x', length))) FROM generate_series(1, 200) AS length) AS s (stored)
            WHERE (octet_length(stored) - 62) % 16 = 0 AND octet_length(stored) > 78 LIMIT 1;
    END LOOP;
END
$$;
RESET colcrypt.algorithm;
SELECT algorithm, (pg_temp.admit(pg_temp.text_form(stored))).outcome FROM genuine
WHERE algorithm LIKE '%token' ORDER BY 1;
RESET colcrypt.key;
CREATE TEMP TABLE disguised AS
SELECT algorithm, (pg_temp.admit(pg_temp.text_form(stored))).* FROM genuine
WHERE algorithm LIKE '%token';
SET colcrypt.key = :'key';
SELECT algorithm, outcome, pg_temp.read(value), try_decrypt(value) IS NULL AS t,
    (colcrypt.inspect(value)).suite
FROM disguised ORDER BY 1;

-- A value under one key passed off as one under another.
SELECT algorithm, (pg_temp.admit(pg_temp.text_form(overlay(stored PLACING '\xdff573a2'::bytea FROM 2)))).outcome
FROM genuine WHERE algorithm NOT LIKE '%token' ORDER BY 1;

-- What is authentic but no text: a Fernet token of other bytes. Made elsewhere, under
-- the ring's key: 0xff, and the byte 0 between letters.
RESET colcrypt.key;
\set not_utf8 'gAAAAABlU_EAAAECAwQFBgcICQoLDA0OD2QF3EUnnMe8Ry1WIqkMNaFjfKQghO9H2-Pf5cA7q1ncwRQNFtHEde-ErWYRyUQrDA=='
\set with_nul 'gAAAAABlU_EAAAECAwQFBgcICQoLDA0OD20aS2PwDmH5o6wgpVgV-0_tCvgFiCPldr93U7eWmnRMDkuPmj50wnLn9K-VSCwRYA=='
\set VERBOSITY sqlstate
SELECT from_fernet(:'not_utf8');
SELECT from_fernet(:'with_nul');

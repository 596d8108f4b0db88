-- PL/pgSQL variables and records, triggers, functions, cursors.

CREATE TABLE accounts (id int, name text, secret encrypted_text);
INSERT INTO accounts VALUES (1, 'ada', 's1'), (2, 'bob', 's2'), (3, 'eve', NULL);

-- Variables.
DO $$
DECLARE
    from_literal encrypted_text := 'literal';
    from_text encrypted_text;
    from_number encrypted_text := 12;
    from_column accounts.secret%TYPE;
    whole accounts%ROWTYPE;
    anything record;
    plain text;
    bounded varchar(20);
    list encrypted_text[] := '{}';
BEGIN
    from_text := 'text ' || 1;
    RAISE NOTICE '% % % %', from_literal, from_text, from_number, length(from_text);
    SELECT secret INTO from_column FROM accounts WHERE id = 1;
    plain := from_column;
    bounded := from_column;
    RAISE NOTICE '% % %', from_column, plain, bounded;
    SELECT * INTO whole FROM accounts WHERE id = 2;
    whole.secret := whole.secret || '-changed';
    RAISE NOTICE '% %', whole.secret, whole;
    FOR anything IN SELECT * FROM accounts ORDER BY id LOOP
        list := list || anything.secret;
        RAISE NOTICE '% is %', anything.name, COALESCE(anything.secret, 'nothing');
    END LOOP;
    RAISE NOTICE '% %', cardinality(list), list;
    IF from_column LIKE 's%' AND from_column::text = 's1' THEN
        RAISE NOTICE 'matched';
    END IF;
    EXECUTE 'SELECT $1 || $2' INTO plain USING from_column, plain;
    RAISE NOTICE '%', plain;
    ASSERT from_column IS NOT NULL;
END
$$;

-- Functions: argument, result, OUT, default, set-returning, in SQL and PL/pgSQL.
CREATE FUNCTION wrap(value encrypted_text DEFAULT 'default') RETURNS encrypted_text
LANGUAGE plpgsql AS $$ BEGIN RETURN '<' || value || '>'; END $$;
SELECT wrap() AS "<default>", wrap('x') AS "<x>", wrap(secret) AS "<s1>" FROM accounts WHERE id = 1;
SELECT pg_typeof(wrap());
CREATE FUNCTION plain_of(value encrypted_text) RETURNS text LANGUAGE sql STABLE AS 'SELECT value';
SELECT plain_of(secret) AS s1 FROM accounts WHERE id = 1;
CREATE FUNCTION sealed_of(value text) RETURNS encrypted_text LANGUAGE sql STABLE AS 'SELECT value::encrypted_text';
SELECT sealed_of('x') AS x;
CREATE FUNCTION all_secrets() RETURNS SETOF encrypted_text LANGUAGE sql AS 'SELECT secret FROM accounts ORDER BY id';
SELECT * FROM all_secrets();
CREATE FUNCTION all_accounts() RETURNS TABLE (n text, s encrypted_text) LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT name, secret FROM accounts ORDER BY id;
    RETURN QUERY EXECUTE 'SELECT ''dynamic''::text, ''d''::encrypted_text';
END
$$;
SELECT * FROM all_accounts();
CREATE FUNCTION polymorphic(anyelement) RETURNS anyelement LANGUAGE sql AS 'SELECT $1';
SELECT polymorphic(secret) AS s1, pg_typeof(polymorphic(secret)) FROM accounts WHERE id = 1;
CREATE PROCEDURE change(id_ int, INOUT value encrypted_text) LANGUAGE plpgsql AS $$
BEGIN
    UPDATE accounts SET secret = value WHERE id = id_;
    value := 'was set to ' || value;
END
$$;
CALL change(2, 'called');
SELECT secret AS called FROM accounts WHERE id = 2;

-- Cursors.
BEGIN;
DECLARE reader SCROLL CURSOR FOR SELECT id, secret FROM accounts ORDER BY id;
FETCH 2 FROM reader;
FETCH BACKWARD 1 FROM reader;
DECLARE writer CURSOR FOR SELECT secret FROM accounts WHERE id = 1 FOR UPDATE;
FETCH writer;
UPDATE accounts SET secret = 'via cursor' WHERE CURRENT OF writer RETURNING secret;
COMMIT;
DO $$
DECLARE
    pairs CURSOR (wanted int) FOR SELECT secret FROM accounts WHERE id = wanted;
BEGIN
    FOR pair IN pairs(1) LOOP
        RAISE NOTICE '%', pair.secret;
    END LOOP;
END
$$;

-- Triggers: NEW and OLD read and write like text.
CREATE TABLE audit (entry text);
CREATE FUNCTION on_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.secret := lower(NEW.secret);
        INSERT INTO audit VALUES ('insert ' || NEW.secret);
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO audit VALUES (format('update %s to %s', OLD.secret, NEW.secret));
        IF OLD.secret::text IS DISTINCT FROM NEW.secret::text THEN
            NEW.name := NEW.name || '*';
        END IF;
    ELSE
        INSERT INTO audit VALUES ('delete ' || OLD.secret);
        RETURN OLD;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER on_account BEFORE INSERT OR UPDATE OR DELETE ON accounts
    FOR EACH ROW EXECUTE FUNCTION on_account();
INSERT INTO accounts VALUES (4, 'tim', 'LOUD');
UPDATE accounts SET secret = 'quiet' WHERE id = 4;
UPDATE accounts SET secret = 'quiet' WHERE id = 4;
DELETE FROM accounts WHERE id = 4 RETURNING *;
SELECT * FROM audit;

-- WHEN conditions, and transition tables.
DROP TRIGGER on_account ON accounts;
TRUNCATE audit;
CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit VALUES (TG_NAME || ': ' || NEW.secret);
    RETURN NULL;
END
$$;
CREATE TRIGGER only_vip AFTER UPDATE ON accounts FOR EACH ROW
    WHEN (NEW.secret LIKE 'vip%') EXECUTE FUNCTION note_change();
CREATE FUNCTION note_all() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit SELECT string_agg(o.secret || '→' || n.secret, ', ' ORDER BY n.id)
        FROM old_rows AS o JOIN new_rows AS n USING (id);
    RETURN NULL;
END
$$;
CREATE TRIGGER statement AFTER UPDATE ON accounts REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION note_all();
UPDATE accounts SET secret = CASE id WHEN 1 THEN 'vip 1' ELSE 'other' END WHERE id < 3;
SELECT * FROM audit;

DROP TABLE accounts, audit;
DROP FUNCTION wrap, plain_of, sealed_of, all_secrets, all_accounts, polymorphic, on_account,
    note_change, note_all;
DROP PROCEDURE change;

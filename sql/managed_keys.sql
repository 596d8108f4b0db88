-- Keys that the database keeps, wrapped by a key of the ring. Only its owner may
-- look at the table: the wrapped keys are worth nothing without the ring, but
-- names are nobody's business.

CREATE TABLE colcrypt.key (
    key_id     text        NOT NULL CHECK (key_id ~ '^[0-9a-f]{8}$'),
    name       text,
    kind       text        NOT NULL CHECK (kind IN ('ring', 'data', 'index')),
    suite      text,
    state      text        NOT NULL CHECK (state IN ('active', 'retired', 'destroyed')),
    wrapped_by text        CHECK (wrapped_by ~ '^[0-9a-f]{8}$'),
    wrapped    bytea       CHECK (octet_length(wrapped) = 60),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Whether only the roles in colcrypt.key_grant may use it. Here and not there,
    -- so that a key whose grants are lost, by a restore without the roles, is closed.
    restricted boolean     NOT NULL DEFAULT false,
    -- A data key is chosen by its name; an index key is there or it is not.
    CHECK ((kind = 'data') = (name IS NOT NULL)),
    CHECK (kind <> 'index' OR (wrapped IS NOT NULL AND wrapped_by IS NOT NULL)),
    -- Wrapped by somebody or not at all.
    CHECK ((wrapped IS NULL) = (wrapped_by IS NULL)),
    CHECK (kind <> 'ring' OR wrapped IS NULL),
    CHECK (kind <> 'data' OR (suite IS NOT NULL AND (state = 'destroyed') = (wrapped IS NULL))),
    -- With the kind in it, so that a publication can leave a kind out.
    PRIMARY KEY (kind, key_id)
);
COMMENT ON TABLE colcrypt.key IS 'keys that the database keeps, wrapped by a key of the key ring';

-- A database has one index key, and one version of a data key seals.
CREATE UNIQUE INDEX one_index_key ON colcrypt.key (kind) WHERE kind = 'index';
CREATE UNIQUE INDEX one_active_version ON colcrypt.key (name)
    WHERE kind = 'data' AND state = 'active';

-- Who may use a data key that is restricted.
CREATE TABLE colcrypt.key_grant (
    name text    NOT NULL,
    role regrole NOT NULL,
    PRIMARY KEY (name, role)
);
COMMENT ON TABLE colcrypt.key_grant IS 'roles that may use a managed key';

SELECT pg_catalog.pg_extension_config_dump('colcrypt.key', '');
-- A role that was dropped is only a number, which may be another role's where the
-- dump is restored.
SELECT pg_catalog.pg_extension_config_dump('colcrypt.key_grant',
    'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles WHERE oid = role)');

-- Backends keep what they have read of the tables: this tells them of a change,
-- whoever makes it, pg_restore and a subscription included.

CREATE FUNCTION colcrypt.key_changed() RETURNS trigger
    AS 'MODULE_PATHNAME', 'colcrypt_key_changed'
    LANGUAGE c VOLATILE;
COMMENT ON FUNCTION colcrypt.key_changed() IS 'trigger on colcrypt.key and colcrypt.key_grant';
REVOKE EXECUTE ON FUNCTION colcrypt.key_changed() FROM PUBLIC;

CREATE TRIGGER key_changed AFTER INSERT OR UPDATE OR DELETE ON colcrypt.key
    FOR EACH ROW EXECUTE FUNCTION colcrypt.key_changed();
ALTER TABLE colcrypt.key ENABLE ALWAYS TRIGGER key_changed;
CREATE TRIGGER key_truncated AFTER TRUNCATE ON colcrypt.key
    FOR EACH STATEMENT EXECUTE FUNCTION colcrypt.key_changed();
ALTER TABLE colcrypt.key ENABLE ALWAYS TRIGGER key_truncated;
CREATE TRIGGER key_grant_changed AFTER INSERT OR UPDATE OR DELETE ON colcrypt.key_grant
    FOR EACH ROW EXECUTE FUNCTION colcrypt.key_changed();
ALTER TABLE colcrypt.key_grant ENABLE ALWAYS TRIGGER key_grant_changed;
CREATE TRIGGER key_grant_truncated AFTER TRUNCATE ON colcrypt.key_grant
    FOR EACH STATEMENT EXECUTE FUNCTION colcrypt.key_changed();
ALTER TABLE colcrypt.key_grant ENABLE ALWAYS TRIGGER key_grant_truncated;

-- What a dump or a publisher says of the ring may be known already.

CREATE FUNCTION colcrypt.ring_key_remembered() RETURNS trigger
    AS 'MODULE_PATHNAME', 'colcrypt_ring_key_remembered'
    LANGUAGE c VOLATILE;
COMMENT ON FUNCTION colcrypt.ring_key_remembered() IS 'trigger on colcrypt.key';
REVOKE EXECUTE ON FUNCTION colcrypt.ring_key_remembered() FROM PUBLIC;

CREATE TRIGGER ring_key_remembered BEFORE INSERT ON colcrypt.key
    FOR EACH ROW WHEN (NEW.kind = 'ring')
    EXECUTE FUNCTION colcrypt.ring_key_remembered();
ALTER TABLE colcrypt.key ENABLE ALWAYS TRIGGER ring_key_remembered;

CREATE FUNCTION colcrypt.create_index_key(algorithm text DEFAULT NULL) RETURNS text
    AS 'MODULE_PATHNAME', 'colcrypt_create_index_key_wrapper'
    LANGUAGE c VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.create_index_key(text) IS
    'the id of the key of this database''s blind indexes; makes it if there is none';

CREATE FUNCTION colcrypt.create_key(name text, algorithm text DEFAULT 'xaes-256-gcm') RETURNS text
    AS 'MODULE_PATHNAME', 'colcrypt_create_key_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.create_key(text, text) IS 'make a managed key; gives its id';

CREATE FUNCTION colcrypt.rotate_key(name text) RETURNS text
    AS 'MODULE_PATHNAME', 'colcrypt_rotate_key_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.rotate_key(text) IS
    'make a new version of a managed key, which encrypts from now on; gives its id';

CREATE FUNCTION colcrypt.rewrap_keys() RETURNS bigint
    AS 'MODULE_PATHNAME', 'colcrypt_rewrap_keys_wrapper'
    LANGUAGE c VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.rewrap_keys() IS
    'wrap every managed key under the primary key; gives how many were under another';

CREATE FUNCTION colcrypt.shred_key(name text) RETURNS bigint
    AS 'MODULE_PATHNAME', 'colcrypt_shred_key_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.shred_key(text) IS
    'destroy a managed key for ever, with all that is encrypted under it; gives its number of versions';

CREATE FUNCTION colcrypt.grant_key(name text, role regrole) RETURNS void
    AS 'MODULE_PATHNAME', 'colcrypt_grant_key_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.grant_key(text, regrole) IS
    'let a role use a managed key, and from the first grant on nobody else';

CREATE FUNCTION colcrypt.revoke_key(name text, role regrole) RETURNS boolean
    AS 'MODULE_PATHNAME', 'colcrypt_revoke_key_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.revoke_key(text, regrole) IS
    'take back a grant on a managed key; false if there was none';

CREATE FUNCTION colcrypt.accept_key() RETURNS text
    AS 'MODULE_PATHNAME', 'colcrypt_accept_key_wrapper'
    LANGUAGE c VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.accept_key() IS
    'take the primary key of the ring for one of this database''s, although it knows none of the ring';

REVOKE EXECUTE ON FUNCTION
    colcrypt.create_key(text, text),
    colcrypt.rotate_key(text),
    colcrypt.rewrap_keys(),
    colcrypt.shred_key(text),
    colcrypt.grant_key(text, regrole),
    colcrypt.revoke_key(text, regrole),
    colcrypt.accept_key()
FROM PUBLIC;

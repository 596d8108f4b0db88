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
    -- A data key is chosen by its name; an index key is there or it is not.
    CHECK ((kind = 'data') = (name IS NOT NULL)),
    CHECK (kind <> 'index' OR (wrapped IS NOT NULL AND wrapped_by IS NOT NULL)),
    -- With the kind in it, so that a publication can leave a kind out.
    PRIMARY KEY (kind, key_id)
);
COMMENT ON TABLE colcrypt.key IS 'keys that the database keeps, wrapped by a key of the key ring';

-- A database has one index key.
CREATE UNIQUE INDEX one_index_key ON colcrypt.key (kind) WHERE kind = 'index';

SELECT pg_catalog.pg_extension_config_dump('colcrypt.key', '');

-- Backends keep what they have read of the table: this tells them of a change,
-- whoever makes it, pg_restore and a subscription included.

CREATE FUNCTION colcrypt.key_changed() RETURNS trigger
    AS 'MODULE_PATHNAME', 'colcrypt_key_changed'
    LANGUAGE c VOLATILE;
COMMENT ON FUNCTION colcrypt.key_changed() IS 'trigger on colcrypt.key';
REVOKE EXECUTE ON FUNCTION colcrypt.key_changed() FROM PUBLIC;

CREATE TRIGGER key_changed AFTER INSERT OR UPDATE OR DELETE ON colcrypt.key
    FOR EACH ROW EXECUTE FUNCTION colcrypt.key_changed();
ALTER TABLE colcrypt.key ENABLE ALWAYS TRIGGER key_changed;

CREATE FUNCTION colcrypt.create_index_key() RETURNS text
    AS 'MODULE_PATHNAME', 'colcrypt_create_index_key_wrapper'
    LANGUAGE c VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.create_index_key() IS
    'the id of the key of this database''s blind indexes; makes it if there is none';

CREATE FUNCTION colcrypt.rewrap_keys() RETURNS bigint
    AS 'MODULE_PATHNAME', 'colcrypt_rewrap_keys_wrapper'
    LANGUAGE c VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.rewrap_keys() IS
    'wrap every managed key under the primary key; gives how many were under another';
REVOKE EXECUTE ON FUNCTION colcrypt.rewrap_keys() FROM PUBLIC;

-- Comments on columns of tables.

COMMENT ON COLUMN colcrypt.key.key_id IS 'fingerprint of the key: 8 hex digits';
COMMENT ON COLUMN colcrypt.key.name IS 'name of a data key';
COMMENT ON COLUMN colcrypt.key.kind IS 'ring, data or index';
COMMENT ON COLUMN colcrypt.key.suite IS 'suite of a data key; how an index key makes tags';
COMMENT ON COLUMN colcrypt.key.state IS 'active, retired or destroyed';
COMMENT ON COLUMN colcrypt.key.wrapped_by IS 'the key of the ring that the key is wrapped under';
COMMENT ON COLUMN colcrypt.key.wrapped IS 'the key, encrypted under the key that wraps it';
COMMENT ON COLUMN colcrypt.key.created_at IS 'when the row was made';
COMMENT ON COLUMN colcrypt.key.restricted IS 'whether only the roles that it is granted to may use the key';
COMMENT ON COLUMN colcrypt.key_grant.name IS 'name of a data key';
COMMENT ON COLUMN colcrypt.key_grant.role IS 'a role that may use it';

-- See types.sql.
DROP FUNCTION colcrypt.for_each_type(text, text);

-- Comments on what has no name of its own, and on columns.

-- Casts

COMMENT ON CAST (text AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (character varying AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (character AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (name AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (boolean AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (smallint AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (integer AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (bigint AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (numeric AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (date AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (time without time zone AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (time with time zone AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (timestamp without time zone AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (timestamp with time zone AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (interval AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (uuid AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (inet AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (cidr AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (json AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (jsonb AS encrypted_text) IS 'encrypts';
COMMENT ON CAST (encrypted_text AS encrypted_text) IS 'applies the key that a type modifier names';
COMMENT ON CAST (encrypted_text AS text) IS 'decrypts';
COMMENT ON CAST (encrypted_text AS character varying) IS 'decrypts';
COMMENT ON CAST (encrypted_text AS character) IS 'decrypts';

-- Operators

COMMENT ON OPERATOR = (encrypted_text, encrypted_text) IS 'equal plaintexts';
COMMENT ON OPERATOR = (encrypted_text, text) IS 'equal plaintexts';
COMMENT ON OPERATOR = (text, encrypted_text) IS 'equal plaintexts';
COMMENT ON OPERATOR = (encrypted_text, name) IS 'equal plaintexts';
COMMENT ON OPERATOR = (name, encrypted_text) IS 'equal plaintexts';
COMMENT ON OPERATOR <> (encrypted_text, encrypted_text) IS 'different plaintexts';
COMMENT ON OPERATOR <> (encrypted_text, text) IS 'different plaintexts';
COMMENT ON OPERATOR <> (text, encrypted_text) IS 'different plaintexts';
COMMENT ON OPERATOR <> (encrypted_text, name) IS 'different plaintexts';
COMMENT ON OPERATOR <> (name, encrypted_text) IS 'different plaintexts';
COMMENT ON OPERATOR < (encrypted_text, encrypted_text) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR < (encrypted_text, text) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR < (text, encrypted_text) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR <= (encrypted_text, encrypted_text) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR <= (encrypted_text, text) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR <= (text, encrypted_text) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR >= (encrypted_text, encrypted_text) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR >= (encrypted_text, text) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR >= (text, encrypted_text) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR > (encrypted_text, encrypted_text) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR > (encrypted_text, text) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR > (text, encrypted_text) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR <~ (encrypted_text, encrypted_text) IS 'before, in the order of tags';
COMMENT ON OPERATOR <~ (encrypted_text, text) IS 'before, in the order of tags';
COMMENT ON OPERATOR <~ (text, encrypted_text) IS 'before, in the order of tags';
COMMENT ON OPERATOR <~ (text, text) IS 'before, in the order of tags';
COMMENT ON OPERATOR <=~ (encrypted_text, encrypted_text) IS 'before, or equal, in the order of tags';
COMMENT ON OPERATOR <=~ (encrypted_text, text) IS 'before, or equal, in the order of tags';
COMMENT ON OPERATOR <=~ (text, encrypted_text) IS 'before, or equal, in the order of tags';
COMMENT ON OPERATOR <=~ (text, text) IS 'before, or equal, in the order of tags';
COMMENT ON OPERATOR >=~ (encrypted_text, encrypted_text) IS 'after, or equal, in the order of tags';
COMMENT ON OPERATOR >=~ (encrypted_text, text) IS 'after, or equal, in the order of tags';
COMMENT ON OPERATOR >=~ (text, encrypted_text) IS 'after, or equal, in the order of tags';
COMMENT ON OPERATOR >=~ (text, text) IS 'after, or equal, in the order of tags';
COMMENT ON OPERATOR >~ (encrypted_text, encrypted_text) IS 'after, in the order of tags';
COMMENT ON OPERATOR >~ (encrypted_text, text) IS 'after, in the order of tags';
COMMENT ON OPERATOR >~ (text, encrypted_text) IS 'after, in the order of tags';
COMMENT ON OPERATOR >~ (text, text) IS 'after, in the order of tags';
COMMENT ON OPERATOR =# (text, text) IS 'equal, for the operator families of encrypted_text';
COMMENT ON OPERATOR <># (text, text) IS 'different, for the operator families of encrypted_text';

-- Operator classes and families

COMMENT ON OPERATOR CLASS encrypted_text_ops USING btree IS 'equality and uniqueness; orders by tag';
COMMENT ON OPERATOR FAMILY encrypted_text_ops USING btree IS 'equality and uniqueness; orders by tag';
COMMENT ON OPERATOR CLASS encrypted_text_ops USING hash IS 'equality, for values of any length';
COMMENT ON OPERATOR FAMILY encrypted_text_ops USING hash IS 'equality, for values of any length';

-- Columns

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

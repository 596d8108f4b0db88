-- Equality search: operators, operator families and their support functions.
--
-- Every pair of encrypted_text and text has its operators, so that a condition
-- uses an index whatever type a driver gives its parameter. Between two texts the
-- operators have names of their own, so that ordinary comparisons of text do not
-- see them. Functions of one type are IMMUTABLE: what they give depends on the
-- plaintext and the index key, which never changes. Those across types need only
-- be STABLE, and so are not evaluated before a query runs.
--
-- None is LEAKPROOF: errors name key ids, and equality is a secret.

-- encrypted_text and encrypted_text

CREATE FUNCTION encrypted_text_eq(encrypted_text, encrypted_text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_eq_ee'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_ne(encrypted_text, encrypted_text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_ne_ee'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_lt(encrypted_text, encrypted_text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_lt_ee'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_le(encrypted_text, encrypted_text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_le_ee'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_ge(encrypted_text, encrypted_text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_ge_ee'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_gt(encrypted_text, encrypted_text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_gt_ee'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_cmp(encrypted_text, encrypted_text) RETURNS integer
    AS 'MODULE_PATHNAME', 'encrypted_text_cmp_ee'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION encrypted_text_eq(encrypted_text, encrypted_text) IS 'implementation of =';
COMMENT ON FUNCTION encrypted_text_ne(encrypted_text, encrypted_text) IS 'implementation of <>';
COMMENT ON FUNCTION encrypted_text_lt(encrypted_text, encrypted_text) IS 'implementation of <~';
COMMENT ON FUNCTION encrypted_text_le(encrypted_text, encrypted_text) IS 'implementation of <=~';
COMMENT ON FUNCTION encrypted_text_ge(encrypted_text, encrypted_text) IS 'implementation of >=~';
COMMENT ON FUNCTION encrypted_text_gt(encrypted_text, encrypted_text) IS 'implementation of >~';
COMMENT ON FUNCTION encrypted_text_cmp(encrypted_text, encrypted_text) IS 'below zero, zero or above zero, by tag';

CREATE OPERATOR = (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_eq,
    COMMUTATOR = =, NEGATOR = <>,
    RESTRICT = eqsel, JOIN = eqjoinsel,
    HASHES, MERGES
);
CREATE OPERATOR <> (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_ne,
    COMMUTATOR = <>, NEGATOR = =,
    RESTRICT = neqsel, JOIN = neqjoinsel
);
CREATE OPERATOR <~ (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_lt,
    COMMUTATOR = >~, NEGATOR = >=~,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <=~ (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_le,
    COMMUTATOR = >=~, NEGATOR = >~,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR >=~ (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_ge,
    COMMUTATOR = <=~, NEGATOR = <~,
    RESTRICT = scalargesel, JOIN = scalargejoinsel
);
CREATE OPERATOR >~ (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_gt,
    COMMUTATOR = <~, NEGATOR = <=~,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);

-- encrypted_text and text

CREATE FUNCTION encrypted_text_eq(encrypted_text, text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_eq_et'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_ne(encrypted_text, text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_ne_et'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_lt(encrypted_text, text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_lt_et'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_le(encrypted_text, text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_le_et'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_ge(encrypted_text, text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_ge_et'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_gt(encrypted_text, text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_gt_et'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_cmp(encrypted_text, text) RETURNS integer
    AS 'MODULE_PATHNAME', 'encrypted_text_cmp_et'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION encrypted_text_eq(encrypted_text, text) IS 'implementation of =';
COMMENT ON FUNCTION encrypted_text_ne(encrypted_text, text) IS 'implementation of <>';
COMMENT ON FUNCTION encrypted_text_lt(encrypted_text, text) IS 'implementation of <~';
COMMENT ON FUNCTION encrypted_text_le(encrypted_text, text) IS 'implementation of <=~';
COMMENT ON FUNCTION encrypted_text_ge(encrypted_text, text) IS 'implementation of >=~';
COMMENT ON FUNCTION encrypted_text_gt(encrypted_text, text) IS 'implementation of >~';
COMMENT ON FUNCTION encrypted_text_cmp(encrypted_text, text) IS 'below zero, zero or above zero, by tag';

CREATE OPERATOR = (
    LEFTARG = encrypted_text, RIGHTARG = text, FUNCTION = encrypted_text_eq,
    COMMUTATOR = =, NEGATOR = <>,
    RESTRICT = eqsel, JOIN = eqjoinsel,
    HASHES, MERGES
);
CREATE OPERATOR <> (
    LEFTARG = encrypted_text, RIGHTARG = text, FUNCTION = encrypted_text_ne,
    COMMUTATOR = <>, NEGATOR = =,
    RESTRICT = neqsel, JOIN = neqjoinsel
);
CREATE OPERATOR <~ (
    LEFTARG = encrypted_text, RIGHTARG = text, FUNCTION = encrypted_text_lt,
    COMMUTATOR = >~, NEGATOR = >=~,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <=~ (
    LEFTARG = encrypted_text, RIGHTARG = text, FUNCTION = encrypted_text_le,
    COMMUTATOR = >=~, NEGATOR = >~,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR >=~ (
    LEFTARG = encrypted_text, RIGHTARG = text, FUNCTION = encrypted_text_ge,
    COMMUTATOR = <=~, NEGATOR = <~,
    RESTRICT = scalargesel, JOIN = scalargejoinsel
);
CREATE OPERATOR >~ (
    LEFTARG = encrypted_text, RIGHTARG = text, FUNCTION = encrypted_text_gt,
    COMMUTATOR = <~, NEGATOR = <=~,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);

-- text and encrypted_text

CREATE FUNCTION encrypted_text_eq(text, encrypted_text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_eq_te'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_ne(text, encrypted_text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_ne_te'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_lt(text, encrypted_text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_lt_te'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_le(text, encrypted_text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_le_te'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_ge(text, encrypted_text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_ge_te'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_gt(text, encrypted_text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_gt_te'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_cmp(text, encrypted_text) RETURNS integer
    AS 'MODULE_PATHNAME', 'encrypted_text_cmp_te'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION encrypted_text_eq(text, encrypted_text) IS 'implementation of =';
COMMENT ON FUNCTION encrypted_text_ne(text, encrypted_text) IS 'implementation of <>';
COMMENT ON FUNCTION encrypted_text_lt(text, encrypted_text) IS 'implementation of <~';
COMMENT ON FUNCTION encrypted_text_le(text, encrypted_text) IS 'implementation of <=~';
COMMENT ON FUNCTION encrypted_text_ge(text, encrypted_text) IS 'implementation of >=~';
COMMENT ON FUNCTION encrypted_text_gt(text, encrypted_text) IS 'implementation of >~';
COMMENT ON FUNCTION encrypted_text_cmp(text, encrypted_text) IS 'below zero, zero or above zero, by tag';

CREATE OPERATOR = (
    LEFTARG = text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_eq,
    COMMUTATOR = =, NEGATOR = <>,
    RESTRICT = eqsel, JOIN = eqjoinsel,
    HASHES, MERGES
);
CREATE OPERATOR <> (
    LEFTARG = text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_ne,
    COMMUTATOR = <>, NEGATOR = =,
    RESTRICT = neqsel, JOIN = neqjoinsel
);
CREATE OPERATOR <~ (
    LEFTARG = text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_lt,
    COMMUTATOR = >~, NEGATOR = >=~,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <=~ (
    LEFTARG = text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_le,
    COMMUTATOR = >=~, NEGATOR = >~,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR >=~ (
    LEFTARG = text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_ge,
    COMMUTATOR = <=~, NEGATOR = <~,
    RESTRICT = scalargesel, JOIN = scalargejoinsel
);
CREATE OPERATOR >~ (
    LEFTARG = text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_gt,
    COMMUTATOR = <~, NEGATOR = <=~,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);

-- text and text

CREATE FUNCTION encrypted_text_eq(text, text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_eq_tt'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_ne(text, text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_ne_tt'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_lt(text, text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_lt_tt'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_le(text, text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_le_tt'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_ge(text, text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_ge_tt'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_gt(text, text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_gt_tt'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION encrypted_text_cmp(text, text) RETURNS integer
    AS 'MODULE_PATHNAME', 'encrypted_text_cmp_tt'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION encrypted_text_eq(text, text) IS 'implementation of =#';
COMMENT ON FUNCTION encrypted_text_ne(text, text) IS 'implementation of <>#';
COMMENT ON FUNCTION encrypted_text_lt(text, text) IS 'implementation of <~';
COMMENT ON FUNCTION encrypted_text_le(text, text) IS 'implementation of <=~';
COMMENT ON FUNCTION encrypted_text_ge(text, text) IS 'implementation of >=~';
COMMENT ON FUNCTION encrypted_text_gt(text, text) IS 'implementation of >~';
COMMENT ON FUNCTION encrypted_text_cmp(text, text) IS 'below zero, zero or above zero, by tag';

CREATE OPERATOR =# (
    LEFTARG = text, RIGHTARG = text, FUNCTION = encrypted_text_eq,
    COMMUTATOR = =#, NEGATOR = <>#,
    RESTRICT = eqsel, JOIN = eqjoinsel,
    HASHES, MERGES
);
CREATE OPERATOR <># (
    LEFTARG = text, RIGHTARG = text, FUNCTION = encrypted_text_ne,
    COMMUTATOR = <>#, NEGATOR = =#,
    RESTRICT = neqsel, JOIN = neqjoinsel
);
CREATE OPERATOR <~ (
    LEFTARG = text, RIGHTARG = text, FUNCTION = encrypted_text_lt,
    COMMUTATOR = >~, NEGATOR = >=~,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <=~ (
    LEFTARG = text, RIGHTARG = text, FUNCTION = encrypted_text_le,
    COMMUTATOR = >=~, NEGATOR = >~,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR >=~ (
    LEFTARG = text, RIGHTARG = text, FUNCTION = encrypted_text_ge,
    COMMUTATOR = <=~, NEGATOR = <~,
    RESTRICT = scalargesel, JOIN = scalargejoinsel
);
CREATE OPERATOR >~ (
    LEFTARG = text, RIGHTARG = text, FUNCTION = encrypted_text_gt,
    COMMUTATOR = <~, NEGATOR = <=~,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);

-- name: `owner = current_user` in a policy. PostgreSQL inlines these functions, so
-- that the operators for text decide, and use an index.

CREATE FUNCTION encrypted_text_eq(encrypted_text, name) RETURNS boolean
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1 OPERATOR(@extschema@.=) $2::pg_catalog.text';
COMMENT ON FUNCTION encrypted_text_eq(encrypted_text, name) IS 'implementation of =';
CREATE FUNCTION encrypted_text_ne(encrypted_text, name) RETURNS boolean
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1 OPERATOR(@extschema@.<>) $2::pg_catalog.text';
COMMENT ON FUNCTION encrypted_text_ne(encrypted_text, name) IS 'implementation of <>';
CREATE OPERATOR = (
    LEFTARG = encrypted_text, RIGHTARG = name, FUNCTION = encrypted_text_eq,
    COMMUTATOR = =, NEGATOR = <>,
    RESTRICT = eqsel, JOIN = eqjoinsel
);
CREATE OPERATOR <> (
    LEFTARG = encrypted_text, RIGHTARG = name, FUNCTION = encrypted_text_ne,
    COMMUTATOR = <>, NEGATOR = =,
    RESTRICT = neqsel, JOIN = neqjoinsel
);

CREATE FUNCTION encrypted_text_eq(name, encrypted_text) RETURNS boolean
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.text OPERATOR(@extschema@.=) $2';
COMMENT ON FUNCTION encrypted_text_eq(name, encrypted_text) IS 'implementation of =';
CREATE FUNCTION encrypted_text_ne(name, encrypted_text) RETURNS boolean
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    AS 'SELECT $1::pg_catalog.text OPERATOR(@extschema@.<>) $2';
COMMENT ON FUNCTION encrypted_text_ne(name, encrypted_text) IS 'implementation of <>';
CREATE OPERATOR = (
    LEFTARG = name, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_eq,
    COMMUTATOR = =, NEGATOR = <>,
    RESTRICT = eqsel, JOIN = eqjoinsel
);
CREATE OPERATOR <> (
    LEFTARG = name, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_ne,
    COMMUTATOR = <>, NEGATOR = =,
    RESTRICT = neqsel, JOIN = neqjoinsel
);

-- No order by plaintext: text's operators, which the implicit cast would find,
-- would disagree with ORDER BY, and keyset pagination would lose rows in silence.

CREATE FUNCTION encrypted_text_no_order(encrypted_text, encrypted_text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_no_order'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_no_order(encrypted_text, encrypted_text) IS 'refuses <, <=, >= and >';
CREATE FUNCTION encrypted_text_no_order(encrypted_text, text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_no_order'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_no_order(encrypted_text, text) IS 'refuses <, <=, >= and >';
CREATE FUNCTION encrypted_text_no_order(text, encrypted_text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_text_no_order'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_no_order(text, encrypted_text) IS 'refuses <, <=, >= and >';

CREATE OPERATOR < (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_no_order,
    COMMUTATOR = >, NEGATOR = >=,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <= (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_no_order,
    COMMUTATOR = >=, NEGATOR = >,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR >= (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_no_order,
    COMMUTATOR = <=, NEGATOR = <,
    RESTRICT = scalargesel, JOIN = scalargejoinsel
);
CREATE OPERATOR > (
    LEFTARG = encrypted_text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_no_order,
    COMMUTATOR = <, NEGATOR = <=,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);
CREATE OPERATOR < (
    LEFTARG = encrypted_text, RIGHTARG = text, FUNCTION = encrypted_text_no_order,
    COMMUTATOR = >, NEGATOR = >=,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <= (
    LEFTARG = encrypted_text, RIGHTARG = text, FUNCTION = encrypted_text_no_order,
    COMMUTATOR = >=, NEGATOR = >,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR >= (
    LEFTARG = encrypted_text, RIGHTARG = text, FUNCTION = encrypted_text_no_order,
    COMMUTATOR = <=, NEGATOR = <,
    RESTRICT = scalargesel, JOIN = scalargejoinsel
);
CREATE OPERATOR > (
    LEFTARG = encrypted_text, RIGHTARG = text, FUNCTION = encrypted_text_no_order,
    COMMUTATOR = <, NEGATOR = <=,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);
CREATE OPERATOR < (
    LEFTARG = text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_no_order,
    COMMUTATOR = >, NEGATOR = >=,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <= (
    LEFTARG = text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_no_order,
    COMMUTATOR = >=, NEGATOR = >,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR >= (
    LEFTARG = text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_no_order,
    COMMUTATOR = <=, NEGATOR = <,
    RESTRICT = scalargesel, JOIN = scalargejoinsel
);
CREATE OPERATOR > (
    LEFTARG = text, RIGHTARG = encrypted_text, FUNCTION = encrypted_text_no_order,
    COMMUTATOR = <, NEGATOR = <=,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);

-- Support functions.

CREATE FUNCTION encrypted_text_hash(encrypted_text) RETURNS integer
    AS 'MODULE_PATHNAME', 'encrypted_text_hash_e'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_hash(encrypted_text) IS 'hash of the tag';
CREATE FUNCTION encrypted_text_hash(text) RETURNS integer
    AS 'MODULE_PATHNAME', 'encrypted_text_hash_t'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_hash(text) IS 'hash of the tag';
CREATE FUNCTION encrypted_text_hash_extended(encrypted_text, bigint) RETURNS bigint
    AS 'MODULE_PATHNAME', 'encrypted_text_hash_extended_e'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_hash_extended(encrypted_text, bigint) IS 'hash of the tag with a seed';
CREATE FUNCTION encrypted_text_hash_extended(text, bigint) RETURNS bigint
    AS 'MODULE_PATHNAME', 'encrypted_text_hash_extended_t'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_hash_extended(text, bigint) IS 'hash of the tag with a seed';
CREATE FUNCTION encrypted_text_sortsupport(internal) RETURNS void
    AS 'MODULE_PATHNAME', 'encrypted_text_sortsupport_e'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_sortsupport(internal) IS 'sort support';
CREATE FUNCTION encrypted_text_sortsupport_text(internal) RETURNS void
    AS 'MODULE_PATHNAME', 'encrypted_text_sortsupport_t'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_sortsupport_text(internal) IS 'sort support';
-- There are no options: PostgreSQL calls it when an index is made, which is the
-- time to make the index key.
CREATE FUNCTION encrypted_text_index_options(internal) RETURNS void
    AS 'MODULE_PATHNAME', 'encrypted_text_index_options'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION encrypted_text_index_options(internal) IS 'prepares the making of an index';

-- PostgreSQL calls them, nobody else need: with what they give one could test
-- guesses against a stolen index.
REVOKE EXECUTE ON FUNCTION
    encrypted_text_cmp(encrypted_text, encrypted_text),
    encrypted_text_cmp(encrypted_text, text),
    encrypted_text_cmp(text, encrypted_text),
    encrypted_text_cmp(text, text),
    encrypted_text_hash(encrypted_text),
    encrypted_text_hash(text),
    encrypted_text_hash_extended(encrypted_text, bigint),
    encrypted_text_hash_extended(text, bigint),
    encrypted_text_sortsupport(internal),
    encrypted_text_sortsupport_text(internal),
    encrypted_text_index_options(internal)
    FROM PUBLIC;

-- btree: orders by tag. Serves UNIQUE, PRIMARY KEY, foreign keys, ON CONFLICT,
-- DISTINCT, GROUP BY and merge joins.

CREATE OPERATOR FAMILY encrypted_text_ops USING btree;

CREATE OPERATOR CLASS encrypted_text_ops DEFAULT FOR TYPE encrypted_text
    USING btree FAMILY encrypted_text_ops AS
    OPERATOR 1 <~,
    OPERATOR 2 <=~,
    OPERATOR 3 =,
    OPERATOR 4 >=~,
    OPERATOR 5 >~,
    FUNCTION 1 encrypted_text_cmp(encrypted_text, encrypted_text),
    FUNCTION 2 encrypted_text_sortsupport(internal),
    FUNCTION 5 encrypted_text_index_options(internal);

ALTER OPERATOR FAMILY encrypted_text_ops USING btree ADD
    OPERATOR 1 <~ (encrypted_text, text),
    OPERATOR 2 <=~ (encrypted_text, text),
    OPERATOR 3 = (encrypted_text, text),
    OPERATOR 4 >=~ (encrypted_text, text),
    OPERATOR 5 >~ (encrypted_text, text),
    FUNCTION 1 (encrypted_text, text) encrypted_text_cmp(encrypted_text, text),
    OPERATOR 1 <~ (text, encrypted_text),
    OPERATOR 2 <=~ (text, encrypted_text),
    OPERATOR 3 = (text, encrypted_text),
    OPERATOR 4 >=~ (text, encrypted_text),
    OPERATOR 5 >~ (text, encrypted_text),
    FUNCTION 1 (text, encrypted_text) encrypted_text_cmp(text, encrypted_text),
    OPERATOR 1 <~ (text, text),
    OPERATOR 2 <=~ (text, text),
    OPERATOR 3 =# (text, text),
    OPERATOR 4 >=~ (text, text),
    OPERATOR 5 >~ (text, text),
    FUNCTION 1 (text, text) encrypted_text_cmp(text, text),
    FUNCTION 2 (text, text) encrypted_text_sortsupport_text(internal);

-- hash: 32 bits of the tag.

CREATE OPERATOR FAMILY encrypted_text_ops USING hash;

CREATE OPERATOR CLASS encrypted_text_ops DEFAULT FOR TYPE encrypted_text
    USING hash FAMILY encrypted_text_ops AS
    OPERATOR 1 =,
    FUNCTION 1 encrypted_text_hash(encrypted_text),
    FUNCTION 2 encrypted_text_hash_extended(encrypted_text, bigint),
    FUNCTION 3 encrypted_text_index_options(internal);

ALTER OPERATOR FAMILY encrypted_text_ops USING hash ADD
    OPERATOR 1 = (encrypted_text, text),
    OPERATOR 1 = (text, encrypted_text),
    OPERATOR 1 =# (text, text),
    FUNCTION 1 (text, text) encrypted_text_hash(text),
    FUNCTION 2 (text, text) encrypted_text_hash_extended(text, bigint);

COMMENT ON OPERATOR FAMILY encrypted_text_ops USING btree IS
    'encrypted values and texts, ordered by blind index tag';
COMMENT ON OPERATOR FAMILY encrypted_text_ops USING hash IS
    'encrypted values and texts, hashed by blind index tag';

-- Equality search: operators, operator families and their support functions.
--
-- Every pair of an encrypted type and its plain type has its operators, so that a
-- condition uses an index whatever type a driver gives its parameter. Between two plain
-- values the operators have names of their own, so that ordinary comparisons do not
-- see them. Functions of one type are IMMUTABLE: what they give depends on the
-- plaintext and the index key, which never changes. Those across types need only
-- be STABLE, and so are not evaluated before a query runs.
--
-- None is LEAKPROOF: errors name key ids, and equality is a secret.

SELECT colcrypt.for_each_type($template$

-- @type@ and @type@

CREATE FUNCTION @type@_eq(@type@, @type@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_eq_ee'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_ne(@type@, @type@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_ne_ee'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_lt(@type@, @type@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_lt_ee'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_le(@type@, @type@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_le_ee'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_ge(@type@, @type@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_ge_ee'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_gt(@type@, @type@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_gt_ee'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_cmp(@type@, @type@) RETURNS integer
    AS 'MODULE_PATHNAME', '@type@_cmp_ee'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION @type@_eq(@type@, @type@) IS 'implementation of =';
COMMENT ON FUNCTION @type@_ne(@type@, @type@) IS 'implementation of <>';
COMMENT ON FUNCTION @type@_lt(@type@, @type@) IS 'implementation of <~';
COMMENT ON FUNCTION @type@_le(@type@, @type@) IS 'implementation of <=~';
COMMENT ON FUNCTION @type@_ge(@type@, @type@) IS 'implementation of >=~';
COMMENT ON FUNCTION @type@_gt(@type@, @type@) IS 'implementation of >~';
COMMENT ON FUNCTION @type@_cmp(@type@, @type@) IS 'below zero, zero or above zero, by tag';

CREATE OPERATOR = (
    LEFTARG = @type@, RIGHTARG = @type@, FUNCTION = @type@_eq,
    COMMUTATOR = =, NEGATOR = <>,
    RESTRICT = eqsel, JOIN = eqjoinsel,
    HASHES, MERGES
);
CREATE OPERATOR <> (
    LEFTARG = @type@, RIGHTARG = @type@, FUNCTION = @type@_ne,
    COMMUTATOR = <>, NEGATOR = =,
    RESTRICT = neqsel, JOIN = neqjoinsel
);
CREATE OPERATOR <~ (
    LEFTARG = @type@, RIGHTARG = @type@, FUNCTION = @type@_lt,
    COMMUTATOR = >~, NEGATOR = >=~,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <=~ (
    LEFTARG = @type@, RIGHTARG = @type@, FUNCTION = @type@_le,
    COMMUTATOR = >=~, NEGATOR = >~,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR >=~ (
    LEFTARG = @type@, RIGHTARG = @type@, FUNCTION = @type@_ge,
    COMMUTATOR = <=~, NEGATOR = <~,
    RESTRICT = scalargesel, JOIN = scalargejoinsel
);
CREATE OPERATOR >~ (
    LEFTARG = @type@, RIGHTARG = @type@, FUNCTION = @type@_gt,
    COMMUTATOR = <~, NEGATOR = <=~,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);

-- @type@ and @plain@

CREATE FUNCTION @type@_eq(@type@, @plain@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_eq_ep'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_ne(@type@, @plain@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_ne_ep'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_lt(@type@, @plain@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_lt_ep'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_le(@type@, @plain@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_le_ep'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_ge(@type@, @plain@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_ge_ep'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_gt(@type@, @plain@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_gt_ep'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_cmp(@type@, @plain@) RETURNS integer
    AS 'MODULE_PATHNAME', '@type@_cmp_ep'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION @type@_eq(@type@, @plain@) IS 'implementation of =';
COMMENT ON FUNCTION @type@_ne(@type@, @plain@) IS 'implementation of <>';
COMMENT ON FUNCTION @type@_lt(@type@, @plain@) IS 'implementation of <~';
COMMENT ON FUNCTION @type@_le(@type@, @plain@) IS 'implementation of <=~';
COMMENT ON FUNCTION @type@_ge(@type@, @plain@) IS 'implementation of >=~';
COMMENT ON FUNCTION @type@_gt(@type@, @plain@) IS 'implementation of >~';
COMMENT ON FUNCTION @type@_cmp(@type@, @plain@) IS 'below zero, zero or above zero, by tag';

CREATE OPERATOR = (
    LEFTARG = @type@, RIGHTARG = @plain@, FUNCTION = @type@_eq,
    COMMUTATOR = =, NEGATOR = <>,
    RESTRICT = eqsel, JOIN = eqjoinsel,
    HASHES, MERGES
);
CREATE OPERATOR <> (
    LEFTARG = @type@, RIGHTARG = @plain@, FUNCTION = @type@_ne,
    COMMUTATOR = <>, NEGATOR = =,
    RESTRICT = neqsel, JOIN = neqjoinsel
);
CREATE OPERATOR <~ (
    LEFTARG = @type@, RIGHTARG = @plain@, FUNCTION = @type@_lt,
    COMMUTATOR = >~, NEGATOR = >=~,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <=~ (
    LEFTARG = @type@, RIGHTARG = @plain@, FUNCTION = @type@_le,
    COMMUTATOR = >=~, NEGATOR = >~,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR >=~ (
    LEFTARG = @type@, RIGHTARG = @plain@, FUNCTION = @type@_ge,
    COMMUTATOR = <=~, NEGATOR = <~,
    RESTRICT = scalargesel, JOIN = scalargejoinsel
);
CREATE OPERATOR >~ (
    LEFTARG = @type@, RIGHTARG = @plain@, FUNCTION = @type@_gt,
    COMMUTATOR = <~, NEGATOR = <=~,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);

-- @plain@ and @type@

CREATE FUNCTION @type@_eq(@plain@, @type@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_eq_pe'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_ne(@plain@, @type@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_ne_pe'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_lt(@plain@, @type@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_lt_pe'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_le(@plain@, @type@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_le_pe'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_ge(@plain@, @type@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_ge_pe'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_gt(@plain@, @type@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_gt_pe'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_cmp(@plain@, @type@) RETURNS integer
    AS 'MODULE_PATHNAME', '@type@_cmp_pe'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION @type@_eq(@plain@, @type@) IS 'implementation of =';
COMMENT ON FUNCTION @type@_ne(@plain@, @type@) IS 'implementation of <>';
COMMENT ON FUNCTION @type@_lt(@plain@, @type@) IS 'implementation of <~';
COMMENT ON FUNCTION @type@_le(@plain@, @type@) IS 'implementation of <=~';
COMMENT ON FUNCTION @type@_ge(@plain@, @type@) IS 'implementation of >=~';
COMMENT ON FUNCTION @type@_gt(@plain@, @type@) IS 'implementation of >~';
COMMENT ON FUNCTION @type@_cmp(@plain@, @type@) IS 'below zero, zero or above zero, by tag';

CREATE OPERATOR = (
    LEFTARG = @plain@, RIGHTARG = @type@, FUNCTION = @type@_eq,
    COMMUTATOR = =, NEGATOR = <>,
    RESTRICT = eqsel, JOIN = eqjoinsel,
    HASHES, MERGES
);
CREATE OPERATOR <> (
    LEFTARG = @plain@, RIGHTARG = @type@, FUNCTION = @type@_ne,
    COMMUTATOR = <>, NEGATOR = =,
    RESTRICT = neqsel, JOIN = neqjoinsel
);
CREATE OPERATOR <~ (
    LEFTARG = @plain@, RIGHTARG = @type@, FUNCTION = @type@_lt,
    COMMUTATOR = >~, NEGATOR = >=~,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <=~ (
    LEFTARG = @plain@, RIGHTARG = @type@, FUNCTION = @type@_le,
    COMMUTATOR = >=~, NEGATOR = >~,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR >=~ (
    LEFTARG = @plain@, RIGHTARG = @type@, FUNCTION = @type@_ge,
    COMMUTATOR = <=~, NEGATOR = <~,
    RESTRICT = scalargesel, JOIN = scalargejoinsel
);
CREATE OPERATOR >~ (
    LEFTARG = @plain@, RIGHTARG = @type@, FUNCTION = @type@_gt,
    COMMUTATOR = <~, NEGATOR = <=~,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);

-- @plain@ and @plain@

CREATE FUNCTION @type@_eq(@plain@, @plain@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_eq_pp'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_ne(@plain@, @plain@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_ne_pp'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_lt(@plain@, @plain@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_lt_pp'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_le(@plain@, @plain@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_le_pp'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_ge(@plain@, @plain@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_ge_pp'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_gt(@plain@, @plain@) RETURNS boolean
    AS 'MODULE_PATHNAME', '@type@_gt_pp'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @type@_cmp(@plain@, @plain@) RETURNS integer
    AS 'MODULE_PATHNAME', '@type@_cmp_pp'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION @type@_eq(@plain@, @plain@) IS 'implementation of =#';
COMMENT ON FUNCTION @type@_ne(@plain@, @plain@) IS 'implementation of <>#';
COMMENT ON FUNCTION @type@_lt(@plain@, @plain@) IS 'implementation of <~';
COMMENT ON FUNCTION @type@_le(@plain@, @plain@) IS 'implementation of <=~';
COMMENT ON FUNCTION @type@_ge(@plain@, @plain@) IS 'implementation of >=~';
COMMENT ON FUNCTION @type@_gt(@plain@, @plain@) IS 'implementation of >~';
COMMENT ON FUNCTION @type@_cmp(@plain@, @plain@) IS 'below zero, zero or above zero, by tag';

CREATE OPERATOR =# (
    LEFTARG = @plain@, RIGHTARG = @plain@, FUNCTION = @type@_eq,
    COMMUTATOR = =#, NEGATOR = <>#,
    RESTRICT = eqsel, JOIN = eqjoinsel,
    HASHES, MERGES
);
CREATE OPERATOR <># (
    LEFTARG = @plain@, RIGHTARG = @plain@, FUNCTION = @type@_ne,
    COMMUTATOR = <>#, NEGATOR = =#,
    RESTRICT = neqsel, JOIN = neqjoinsel
);
CREATE OPERATOR <~ (
    LEFTARG = @plain@, RIGHTARG = @plain@, FUNCTION = @type@_lt,
    COMMUTATOR = >~, NEGATOR = >=~,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <=~ (
    LEFTARG = @plain@, RIGHTARG = @plain@, FUNCTION = @type@_le,
    COMMUTATOR = >=~, NEGATOR = >~,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR >=~ (
    LEFTARG = @plain@, RIGHTARG = @plain@, FUNCTION = @type@_ge,
    COMMUTATOR = <=~, NEGATOR = <~,
    RESTRICT = scalargesel, JOIN = scalargejoinsel
);
CREATE OPERATOR >~ (
    LEFTARG = @plain@, RIGHTARG = @plain@, FUNCTION = @type@_gt,
    COMMUTATOR = <~, NEGATOR = <=~,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);

-- No order by plaintext: the plain type's operators, which the implicit cast would find,
-- would disagree with ORDER BY, and keyset pagination would lose rows in silence.

CREATE FUNCTION @type@_no_order(@type@, @type@) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_no_order'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @type@_no_order(@type@, @type@) IS 'refuses <, <=, >= and >';
CREATE FUNCTION @type@_no_order(@type@, @plain@) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_no_order'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @type@_no_order(@type@, @plain@) IS 'refuses <, <=, >= and >';
CREATE FUNCTION @type@_no_order(@plain@, @type@) RETURNS boolean
    AS 'MODULE_PATHNAME', 'encrypted_no_order'
    LANGUAGE c STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @type@_no_order(@plain@, @type@) IS 'refuses <, <=, >= and >';

CREATE OPERATOR < (
    LEFTARG = @type@, RIGHTARG = @type@, FUNCTION = @type@_no_order,
    COMMUTATOR = >, NEGATOR = >=,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <= (
    LEFTARG = @type@, RIGHTARG = @type@, FUNCTION = @type@_no_order,
    COMMUTATOR = >=, NEGATOR = >,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR >= (
    LEFTARG = @type@, RIGHTARG = @type@, FUNCTION = @type@_no_order,
    COMMUTATOR = <=, NEGATOR = <,
    RESTRICT = scalargesel, JOIN = scalargejoinsel
);
CREATE OPERATOR > (
    LEFTARG = @type@, RIGHTARG = @type@, FUNCTION = @type@_no_order,
    COMMUTATOR = <, NEGATOR = <=,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);
CREATE OPERATOR < (
    LEFTARG = @type@, RIGHTARG = @plain@, FUNCTION = @type@_no_order,
    COMMUTATOR = >, NEGATOR = >=,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <= (
    LEFTARG = @type@, RIGHTARG = @plain@, FUNCTION = @type@_no_order,
    COMMUTATOR = >=, NEGATOR = >,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR >= (
    LEFTARG = @type@, RIGHTARG = @plain@, FUNCTION = @type@_no_order,
    COMMUTATOR = <=, NEGATOR = <,
    RESTRICT = scalargesel, JOIN = scalargejoinsel
);
CREATE OPERATOR > (
    LEFTARG = @type@, RIGHTARG = @plain@, FUNCTION = @type@_no_order,
    COMMUTATOR = <, NEGATOR = <=,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);
CREATE OPERATOR < (
    LEFTARG = @plain@, RIGHTARG = @type@, FUNCTION = @type@_no_order,
    COMMUTATOR = >, NEGATOR = >=,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <= (
    LEFTARG = @plain@, RIGHTARG = @type@, FUNCTION = @type@_no_order,
    COMMUTATOR = >=, NEGATOR = >,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR >= (
    LEFTARG = @plain@, RIGHTARG = @type@, FUNCTION = @type@_no_order,
    COMMUTATOR = <=, NEGATOR = <,
    RESTRICT = scalargesel, JOIN = scalargejoinsel
);
CREATE OPERATOR > (
    LEFTARG = @plain@, RIGHTARG = @type@, FUNCTION = @type@_no_order,
    COMMUTATOR = <, NEGATOR = <=,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);

-- Support functions.

CREATE FUNCTION @type@_hash(@type@) RETURNS integer
    AS 'MODULE_PATHNAME', '@type@_hash'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @type@_hash(@type@) IS 'hash of the tag';
CREATE FUNCTION @type@_hash(@plain@) RETURNS integer
    AS 'MODULE_PATHNAME', '@type@_hash_plain'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @type@_hash(@plain@) IS 'hash of the tag';
CREATE FUNCTION @type@_hash_extended(@type@, bigint) RETURNS bigint
    AS 'MODULE_PATHNAME', '@type@_hash_extended'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @type@_hash_extended(@type@, bigint) IS 'hash of the tag with a seed';
CREATE FUNCTION @type@_hash_extended(@plain@, bigint) RETURNS bigint
    AS 'MODULE_PATHNAME', '@type@_hash_extended_plain'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @type@_hash_extended(@plain@, bigint) IS 'hash of the tag with a seed';
CREATE FUNCTION @type@_sortsupport(internal) RETURNS void
    AS 'MODULE_PATHNAME', '@type@_sortsupport'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @type@_sortsupport(internal) IS 'sort support';
CREATE FUNCTION @type@_sortsupport_@plain@(internal) RETURNS void
    AS 'MODULE_PATHNAME', '@type@_sortsupport_plain'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @type@_sortsupport_@plain@(internal) IS 'sort support';
-- There are no options: PostgreSQL calls it when an index is made, which is the
-- time to make the index key.
CREATE FUNCTION @type@_index_options(internal) RETURNS void
    AS 'MODULE_PATHNAME', 'encrypted_index_options'
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @type@_index_options(internal) IS 'prepares the making of an index';

-- PostgreSQL calls them, nobody else need: with what they give one could test
-- guesses against a stolen index.
REVOKE EXECUTE ON FUNCTION
    @type@_cmp(@type@, @type@),
    @type@_cmp(@type@, @plain@),
    @type@_cmp(@plain@, @type@),
    @type@_cmp(@plain@, @plain@),
    @type@_hash(@type@),
    @type@_hash(@plain@),
    @type@_hash_extended(@type@, bigint),
    @type@_hash_extended(@plain@, bigint),
    @type@_sortsupport(internal),
    @type@_sortsupport_@plain@(internal),
    @type@_index_options(internal)
    FROM PUBLIC;

-- btree: orders by tag. Serves UNIQUE, PRIMARY KEY, foreign keys, ON CONFLICT,
-- DISTINCT, GROUP BY and merge joins.

CREATE OPERATOR FAMILY @type@_ops USING btree;

CREATE OPERATOR CLASS @type@_ops DEFAULT FOR TYPE @type@
    USING btree FAMILY @type@_ops AS
    OPERATOR 1 <~,
    OPERATOR 2 <=~,
    OPERATOR 3 =,
    OPERATOR 4 >=~,
    OPERATOR 5 >~,
    FUNCTION 1 @type@_cmp(@type@, @type@),
    FUNCTION 2 @type@_sortsupport(internal),
    FUNCTION 5 @type@_index_options(internal);

ALTER OPERATOR FAMILY @type@_ops USING btree ADD
    OPERATOR 1 <~ (@type@, @plain@),
    OPERATOR 2 <=~ (@type@, @plain@),
    OPERATOR 3 = (@type@, @plain@),
    OPERATOR 4 >=~ (@type@, @plain@),
    OPERATOR 5 >~ (@type@, @plain@),
    FUNCTION 1 (@type@, @plain@) @type@_cmp(@type@, @plain@),
    OPERATOR 1 <~ (@plain@, @type@),
    OPERATOR 2 <=~ (@plain@, @type@),
    OPERATOR 3 = (@plain@, @type@),
    OPERATOR 4 >=~ (@plain@, @type@),
    OPERATOR 5 >~ (@plain@, @type@),
    FUNCTION 1 (@plain@, @type@) @type@_cmp(@plain@, @type@),
    OPERATOR 1 <~ (@plain@, @plain@),
    OPERATOR 2 <=~ (@plain@, @plain@),
    OPERATOR 3 =# (@plain@, @plain@),
    OPERATOR 4 >=~ (@plain@, @plain@),
    OPERATOR 5 >~ (@plain@, @plain@),
    FUNCTION 1 (@plain@, @plain@) @type@_cmp(@plain@, @plain@),
    FUNCTION 2 (@plain@, @plain@) @type@_sortsupport_@plain@(internal);

-- hash: 32 bits of the tag.

CREATE OPERATOR FAMILY @type@_ops USING hash;

CREATE OPERATOR CLASS @type@_ops DEFAULT FOR TYPE @type@
    USING hash FAMILY @type@_ops AS
    OPERATOR 1 =,
    FUNCTION 1 @type@_hash(@type@),
    FUNCTION 2 @type@_hash_extended(@type@, bigint),
    FUNCTION 3 @type@_index_options(internal);

ALTER OPERATOR FAMILY @type@_ops USING hash ADD
    OPERATOR 1 = (@type@, @plain@),
    OPERATOR 1 = (@plain@, @type@),
    OPERATOR 1 =# (@plain@, @plain@),
    FUNCTION 1 (@plain@, @plain@) @type@_hash(@plain@),
    FUNCTION 2 (@plain@, @plain@) @type@_hash_extended(@plain@, bigint);

-- Comments

COMMENT ON OPERATOR = (@type@, @type@) IS 'equal plaintexts';
COMMENT ON OPERATOR = (@type@, @plain@) IS 'equal plaintexts';
COMMENT ON OPERATOR = (@plain@, @type@) IS 'equal plaintexts';
COMMENT ON OPERATOR <> (@type@, @type@) IS 'different plaintexts';
COMMENT ON OPERATOR <> (@type@, @plain@) IS 'different plaintexts';
COMMENT ON OPERATOR <> (@plain@, @type@) IS 'different plaintexts';
COMMENT ON OPERATOR < (@type@, @type@) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR < (@type@, @plain@) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR < (@plain@, @type@) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR <= (@type@, @type@) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR <= (@type@, @plain@) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR <= (@plain@, @type@) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR >= (@type@, @type@) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR >= (@type@, @plain@) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR >= (@plain@, @type@) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR > (@type@, @type@) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR > (@type@, @plain@) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR > (@plain@, @type@) IS 'refused: the order of encrypted values is not that of plaintexts';
COMMENT ON OPERATOR <~ (@type@, @type@) IS 'before, in the order of tags';
COMMENT ON OPERATOR <~ (@type@, @plain@) IS 'before, in the order of tags';
COMMENT ON OPERATOR <~ (@plain@, @type@) IS 'before, in the order of tags';
COMMENT ON OPERATOR <~ (@plain@, @plain@) IS 'before, in the order of tags';
COMMENT ON OPERATOR <=~ (@type@, @type@) IS 'before, or equal, in the order of tags';
COMMENT ON OPERATOR <=~ (@type@, @plain@) IS 'before, or equal, in the order of tags';
COMMENT ON OPERATOR <=~ (@plain@, @type@) IS 'before, or equal, in the order of tags';
COMMENT ON OPERATOR <=~ (@plain@, @plain@) IS 'before, or equal, in the order of tags';
COMMENT ON OPERATOR >=~ (@type@, @type@) IS 'after, or equal, in the order of tags';
COMMENT ON OPERATOR >=~ (@type@, @plain@) IS 'after, or equal, in the order of tags';
COMMENT ON OPERATOR >=~ (@plain@, @type@) IS 'after, or equal, in the order of tags';
COMMENT ON OPERATOR >=~ (@plain@, @plain@) IS 'after, or equal, in the order of tags';
COMMENT ON OPERATOR >~ (@type@, @type@) IS 'after, in the order of tags';
COMMENT ON OPERATOR >~ (@type@, @plain@) IS 'after, in the order of tags';
COMMENT ON OPERATOR >~ (@plain@, @type@) IS 'after, in the order of tags';
COMMENT ON OPERATOR >~ (@plain@, @plain@) IS 'after, in the order of tags';
COMMENT ON OPERATOR =# (@plain@, @plain@) IS 'equal, for the operator families of @type@';
COMMENT ON OPERATOR <># (@plain@, @plain@) IS 'different, for the operator families of @type@';
COMMENT ON OPERATOR CLASS @type@_ops USING btree IS 'equality and uniqueness; orders by tag';
COMMENT ON OPERATOR FAMILY @type@_ops USING btree IS 'equality and uniqueness; orders by tag';
COMMENT ON OPERATOR CLASS @type@_ops USING hash IS 'equality, for values of any length';
COMMENT ON OPERATOR FAMILY @type@_ops USING hash IS 'equality, for values of any length';

$template$);

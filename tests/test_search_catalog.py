"""PostgreSQL's own checks accept the catalog entries and the indexes.

The rules are those that PostgreSQL's regression tests opr_sanity and type_sanity hold
its own catalogs to, asked of what belongs to the extension. Each rule also has a
sabotage, a change of the catalogs that it must find: so that it can fail.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from conftest import MakeCluster
from harness import Cluster, Database, fetch, new_key
from kinds import KINDS, TEXT, Kind, every_kind

SQL = Path(__file__).parent.parent / "sql"

# What belongs to the extension. Entries of operator families, array types and row
# types belong to it by way of what they are part of.
VIEWS = """
CREATE TEMP VIEW member AS
    SELECT classid, objid FROM pg_depend JOIN pg_extension e ON refobjid = e.oid
    WHERE refclassid = 'pg_extension'::regclass AND extname = 'colcrypt'
        AND deptype = 'e';
-- proargtypes counts from 0, and so is equal to no array of SQL.
CREATE TEMP VIEW fn AS
    SELECT *, ARRAY (SELECT unnest(proargtypes)) AS args FROM pg_proc;
CREATE TEMP VIEW proc AS
    SELECT p.* FROM fn p JOIN member ON classid = 'pg_proc'::regclass AND objid = oid;
CREATE TEMP VIEW op AS
    SELECT o.* FROM pg_operator o
    JOIN member ON classid = 'pg_operator'::regclass AND objid = oid;
CREATE TEMP VIEW comparison AS SELECT * FROM op WHERE oprname <> '||';
CREATE TEMP VIEW casts AS
    SELECT c.* FROM pg_cast c
    JOIN member ON classid = 'pg_cast'::regclass AND objid = oid;
CREATE TEMP VIEW family AS
    SELECT f.*, amname FROM pg_opfamily f
    JOIN member ON classid = 'pg_opfamily'::regclass AND objid = oid
    JOIN pg_am a ON a.oid = opfmethod;
CREATE TEMP VIEW class AS
    SELECT c.*, amname FROM pg_opclass c
    JOIN member ON classid = 'pg_opclass'::regclass AND objid = oid
    JOIN pg_am a ON a.oid = opcmethod;
CREATE TEMP VIEW amop AS
    SELECT m.*, amname FROM pg_amop m JOIN family f ON f.oid = amopfamily;
CREATE TEMP VIEW amproc AS
    SELECT m.*, amname FROM pg_amproc m JOIN family f ON f.oid = amprocfamily;
CREATE TEMP VIEW type AS
    WITH own AS (
        SELECT t.* FROM pg_type t
        LEFT JOIN member mt ON mt.classid = 'pg_type'::regclass AND mt.objid = t.oid
        LEFT JOIN member mc
            ON mc.classid = 'pg_class'::regclass AND mc.objid = t.typrelid
        WHERE mt.objid IS NOT NULL OR mc.objid IS NOT NULL)
    SELECT * FROM own UNION
    SELECT a.* FROM pg_type a JOIN own ON a.oid = own.typarray;
"""

# What is sabotaged, as sql/search.sql names it.
EQ = "'=(@type@,@type@)'::regoperator"
EQ_CALL = "'@type@_eq(@type@,@type@)'::regprocedure"
CMP_CALL = "'@type@_cmp(@type@,@type@)'::regprocedure"
HASH_CALL = "'@type@_hash(@type@)'::regprocedure"
DECRYPT = "'decrypt(@type@)'::regprocedure"
CONCAT = "'||(@type@,@plain@)'::regoperator"
# These two differ in their C functions only.
AS_TRY_DECRYPT = "prosrc = '@type@_try_decrypt'"
TYPE = "'@type@'::regtype"
FROM_PLAIN = f"castsource = '@plain@'::regtype AND casttarget = {TYPE}"
BTREE = "(SELECT oid FROM family WHERE amname = 'btree' AND opfname = '@type@_ops')"
HASH = "(SELECT oid FROM family WHERE amname = 'hash' AND opfname = '@type@_ops')"
PAIR = f"amoplefttype = {TYPE} AND amoprighttype = '@plain@'::regtype"
SELF = f"amproclefttype = {TYPE} AND amprocrighttype = {TYPE}"
# A type that nothing of the extension has to do with.
FOREIGN = "'money'::regtype"

TYPES = "'{" + ",".join(kind.type for kind in KINDS) + "}'::regtype[]"


def proc(change: str, call: str = EQ_CALL) -> str:
    return f"UPDATE pg_proc SET {change} WHERE oid = {call}"


def op(change: str) -> str:
    return f"UPDATE pg_operator SET {change} WHERE oid = {EQ}"


def type_(change: str, name: str = TYPE) -> str:
    return f"UPDATE pg_type SET {change} WHERE oid = {name}"


def cast(change: str) -> str:
    return f"UPDATE pg_cast SET {change} WHERE {FROM_PLAIN}"


def amop(change: str) -> str:
    return f"UPDATE pg_amop SET {change} WHERE amopfamily = {BTREE} AND {PAIR}"


def amproc(change: str, number: int = 1, family: str = BTREE) -> str:
    where = f"amprocfamily = {family} AND amprocnum = {number} AND {SELF}"
    return f"UPDATE pg_amproc SET {change} WHERE {where}"


class Rule(NamedTuple):
    """`broken` finds what breaks the rule; after `sabotage` it finds something."""

    broken: str
    sabotage: str


# Functions that share a C function but not its declaration.
SHARED = """
    SELECT a.oid::regprocedure, b.oid::regprocedure FROM proc a JOIN proc b
        ON a.prosrc = b.prosrc AND a.oid < b.oid AND a.prolang = b.prolang
    WHERE a.prolang = (SELECT oid FROM pg_language WHERE lanname = 'c')
        -- It raises its error without a look at its arguments.
        AND a.prosrc <> 'encrypted_no_order' AND """
# These read nothing but a value's header, which all types have.
OF_EVERY_TYPE = "('colcrypt_inspect', 'encrypted_ciphertext', 'encrypted_fernet_token')"

RULES: dict[str, Rule] = {
    # Functions
    "function-fields": Rule(
        """SELECT oid::regprocedure FROM proc
        WHERE prolang = 0 OR prorettype = 0 OR 0 = ANY (proargtypes) OR pronargs < 0
            OR pronargdefaults NOT BETWEEN 0 AND pronargs OR procost <= 0
            OR array_length(proargtypes, 1) <> NULLIF(pronargs, 0)
            OR CASE WHEN proretset THEN prorows <= 0 ELSE prorows <> 0 END
            OR prokind NOT IN ('f', 'a', 'w', 'p') OR provolatile NOT IN ('i', 's', 'v')
            OR proparallel NOT IN ('s', 'r', 'u')""",
        proc("procost = 0"),
    ),
    "function-body": Rule(
        "SELECT oid::regprocedure FROM proc WHERE prosrc IN ('', '-') IS NOT FALSE",
        proc("prosrc = '-'"),
    ),
    "function-library": Rule(
        """SELECT p.oid::regprocedure FROM proc p JOIN pg_language l ON l.oid = prolang
        WHERE CASE WHEN lanname = 'c' THEN COALESCE(probin, '') IN ('', '-')
            ELSE probin IS NOT NULL END""",
        proc("probin = NULL"),
    ),
    "function-defaults": Rule(
        """SELECT oid::regprocedure FROM proc
        WHERE (pronargdefaults <> 0) <> (proargdefaults IS NOT NULL)""",
        proc("pronargdefaults = 1"),
    ),
    "function-set-or-kind": Rule(
        "SELECT oid::regprocedure FROM proc WHERE proretset AND prokind <> 'f'",
        proc("proretset = true, prorows = 1, prokind = 'p'"),
    ),
    "function-security-definer": Rule(
        "SELECT oid::regprocedure FROM proc WHERE prosecdef", proc("prosecdef = true")
    ),
    "function-all-arguments": Rule(
        """SELECT oid::regprocedure FROM proc
        WHERE array_length(proallargtypes, 1) < pronargs
            OR array_length(proargmodes, 1) <> array_length(proallargtypes, 1)
            OR array_length(proargnames, 1)
                <> COALESCE(array_length(proallargtypes, 1), pronargs)
            OR (proallargtypes IS NULL AND proargmodes IS NOT NULL)
            OR args <> (SELECT array_agg(t ORDER BY i)
                FROM unnest(proallargtypes, proargmodes) WITH ORDINALITY AS a (t, m, i)
                WHERE m IN ('i', 'b', 'v'))""",
        proc("proargmodes = '{i,i,o}'"),
    ),
    "function-internal-from-nothing": Rule(
        """SELECT oid::regprocedure FROM proc
        WHERE prorettype = 'internal'::regtype
            AND 'internal'::regtype <> ALL (args)""",
        proc("prorettype = 'internal'::regtype"),
    ),
    "function-polymorphic": Rule(
        """SELECT p.oid::regprocedure FROM proc p, pg_type t
        WHERE t.oid = ANY (array_prepend(prorettype, args))
            AND typtype = 'p' AND typname LIKE 'any%'""",
        proc("prorettype = 'anyelement'::regtype"),
    ),
    "function-cstring-is-for-input": Rule(
        """SELECT oid::regprocedure FROM proc p
        WHERE args && ARRAY['cstring'::regtype, 'cstring[]'::regtype]::oid[]
            AND NOT EXISTS (SELECT FROM type WHERE p.oid IN (typinput, typmodin))""",
        proc("proargtypes = '2275 2275'"),
    ),
    "function-cstring-is-from-output": Rule(
        """SELECT oid::regprocedure FROM proc p WHERE prorettype = 'cstring'::regtype
            AND NOT EXISTS (SELECT FROM type WHERE p.oid IN (typoutput, typmodout))""",
        proc("prorettype = 'cstring'::regtype"),
    ),
    "function-leakproof": Rule(
        "SELECT oid::regprocedure FROM proc WHERE proleakproof",
        proc("proleakproof = true"),
    ),
    "function-shared-c-attributes": Rule(
        SHARED
        + """(a.proisstrict, a.provolatile, a.proparallel, a.proretset, a.prokind,
            a.prosecdef, a.pronargs) <>
            (b.proisstrict, b.provolatile, b.proparallel, b.proretset, b.prokind,
            b.prosecdef, b.pronargs)""",
        proc(f"{AS_TRY_DECRYPT}, provolatile = 'v'", DECRYPT),
    ),
    "function-shared-c-types": Rule(
        SHARED + f"""a.prosrc NOT IN {OF_EVERY_TYPE}
            AND (a.prorettype <> b.prorettype OR a.args <> b.args)""",
        proc(f"{AS_TRY_DECRYPT}, prorettype = {FOREIGN}", DECRYPT),
    ),
    "function-that-users-call-has-a-comment": Rule(
        """SELECT p.oid::regprocedure FROM proc p
        WHERE obj_description(p.oid, 'pg_proc') IS NULL
            AND NOT EXISTS (SELECT FROM op WHERE oprcode = p.oid)
            AND NOT EXISTS (SELECT FROM amproc WHERE amproc = p.oid)
            AND NOT EXISTS (SELECT FROM type WHERE typanalyze = p.oid)""",
        "COMMENT ON FUNCTION encrypt(@plain@) IS NULL",
    ),
    # Casts
    "cast-fields": Rule(
        """SELECT oid FROM casts WHERE castsource = 0 OR casttarget = 0
            OR castcontext NOT IN ('e', 'a', 'i') OR castmethod NOT IN ('f', 'b', 'i')
            OR (castmethod = 'f') <> (castfunc <> 0)""",
        cast("castmethod = 'i'"),
    ),
    "cast-binary": Rule(
        # Nothing is stored as an encrypted value is.
        "SELECT oid FROM casts WHERE castmethod = 'b'",
        cast("castmethod = 'b', castfunc = 0"),
    ),
    "cast-to-itself-takes-a-modifier": Rule(
        """SELECT c.oid FROM casts c LEFT JOIN fn p ON p.oid = castfunc
        WHERE castsource = casttarget AND COALESCE(pronargs, 0) < 2""",
        f"UPDATE pg_cast SET castfunc = {HASH_CALL}"
        f" WHERE castsource = {TYPE} AND casttarget = {TYPE}",
    ),
    "cast-function-signature": Rule(
        # Every varchar is a text.
        """SELECT c.oid, p.oid::regprocedure FROM casts c JOIN fn p ON p.oid = castfunc
        WHERE pronargs NOT BETWEEN 1 AND 3 OR proretset OR provolatile = 'v'
            OR NOT (proargtypes[0] = castsource OR (castsource = 'varchar'::regtype
                AND proargtypes[0] = 'text'::regtype))
            OR NOT (prorettype = casttarget OR (prorettype = 'text'::regtype
                AND casttarget IN ('varchar'::regtype, 'bpchar'::regtype)))
            OR (pronargs > 1 AND proargtypes[1] <> 'integer'::regtype)
            OR (pronargs > 2 AND proargtypes[2] <> 'boolean'::regtype)""",
        cast(f"casttarget = {FOREIGN}"),
    ),
    # Operators
    "operator-fields": Rule(
        """SELECT oid::regoperator FROM comparison WHERE oprkind <> 'b' OR oprleft = 0
            OR oprright = 0 OR oprresult <> 'boolean'::regtype OR oprcode = 0""",
        op("oprresult = 'integer'::regtype"),
    ),
    "operator-concatenation": Rule(
        # It has no commutator, no negator, and PostgreSQL no estimate for it.
        """SELECT oid::regoperator FROM op WHERE oprname = '||' AND (oprkind <> 'b'
            OR (oprcom, oprnegate, oprrest, oprjoin) <> (0, 0, 0, 0)
            OR oprcanmerge OR oprcanhash OR oprcode = 0)""",
        f"UPDATE pg_operator SET oprcanhash = true WHERE oid = {CONCAT}",
    ),
    "operator-commutator": Rule(
        """SELECT a.oid::regoperator FROM comparison a
        LEFT JOIN pg_operator b ON b.oid = a.oprcom
        WHERE b.oid IS NULL OR b.oprcom <> a.oid OR a.oprresult <> b.oprresult
            OR a.oprleft <> b.oprright OR a.oprright <> b.oprleft""",
        op("oprcom = 0"),
    ),
    "operator-negator": Rule(
        """SELECT a.oid::regoperator FROM comparison a
        LEFT JOIN pg_operator b ON b.oid = a.oprnegate
        WHERE b.oid IS NULL OR b.oprnegate <> a.oid OR a.oid = b.oid
            OR a.oprleft <> b.oprleft OR a.oprright <> b.oprright
            OR 'boolean'::regtype NOT IN (a.oprresult) OR a.oprresult <> b.oprresult""",
        op(f"oprnegate = {EQ}"),
    ),
    "operator-function-signature": Rule(
        """SELECT o.oid::regoperator, p.oid::regprocedure
        FROM op o JOIN fn p ON p.oid = oprcode
        WHERE p.prorettype <> oprresult OR p.pronargs <> 2 OR p.proretset
            OR p.proargtypes[0] <> oprleft OR p.proargtypes[1] <> oprright
            OR provolatile = 'v' OR NOT proisstrict""",
        op(f"oprcode = {CMP_CALL}"),
    ),
    "operator-of-one-type-is-immutable": Rule(
        """SELECT o.oid::regoperator FROM comparison o JOIN fn p ON p.oid = oprcode
        WHERE (provolatile = 'i') <> (oprleft = oprright)""",
        proc("provolatile = 's'"),
    ),
    "operator-restriction-estimator": Rule(
        """SELECT o.oid::regoperator FROM comparison o LEFT JOIN fn p ON p.oid = oprrest
        WHERE p.oid IS NULL OR p.prorettype <> 'float8'::regtype OR p.proretset
            OR p.args <> ARRAY['internal'::regtype, 'oid'::regtype,
                'internal'::regtype, 'integer'::regtype]::oid[]""",
        op("oprrest = 'eqjoinsel'::regproc"),
    ),
    "operator-join-estimator": Rule(
        """SELECT o.oid::regoperator FROM comparison o LEFT JOIN fn p ON p.oid = oprjoin
        WHERE p.oid IS NULL OR p.prorettype <> 'float8'::regtype OR p.proretset
            OR p.args <> ARRAY['internal'::regtype, 'oid'::regtype,
                'internal'::regtype, 'smallint'::regtype,
                'internal'::regtype]::oid[]""",
        op("oprjoin = 'eqsel'::regproc"),
    ),
    "operator-estimators-are-a-pair": Rule(
        """SELECT oid::regoperator FROM comparison WHERE oprjoin::regproc::text
            <> replace(oprrest::regproc::text, 'sel', 'joinsel')""",
        op("oprjoin = 'neqjoinsel'::regproc"),
    ),
    "operator-merges-or-hashes-with-commutator": Rule(
        """SELECT o.oid::regoperator FROM op o JOIN pg_operator c ON c.oid = o.oprcom
        WHERE (o.oprcanmerge, o.oprcanhash) <> (c.oprcanmerge, c.oprcanhash)""",
        "UPDATE pg_operator SET oprcanhash = false"
        " WHERE oid = '=(@type@,@plain@)'::regoperator",
    ),
    "operator-merges-if-in-a-btree-family": Rule(
        """SELECT oid::regoperator FROM op WHERE oprcanmerge <> EXISTS (
            SELECT FROM amop WHERE amopopr = op.oid AND amname = 'btree'
                AND amopstrategy = 3)""",
        op("oprcanmerge = false"),
    ),
    "operator-hashes-if-in-a-hash-family": Rule(
        """SELECT oid::regoperator FROM op WHERE oprcanhash <> EXISTS (
            SELECT FROM amop WHERE amopopr = op.oid AND amname = 'hash'
                AND amopstrategy = 1)""",
        op("oprcanhash = false"),
    ),
    # Entries of operator families
    "amop-fields": Rule(
        """SELECT oid FROM amop WHERE amopfamily = 0 OR amoplefttype = 0
            OR amoprighttype = 0 OR amopopr = 0 OR amopstrategy < 1
            OR amoppurpose <> 's' OR amopsortfamily <> 0
            OR amopmethod <> (SELECT opfmethod FROM family WHERE oid = amopfamily)""",
        amop("amopstrategy = -amopstrategy"),
    ),
    "amop-strategy-is-known": Rule(
        """SELECT oid FROM amop WHERE amopstrategy >
            CASE amname WHEN 'btree' THEN 5 WHEN 'hash' THEN 1 END""",
        amop("amopstrategy = amopstrategy + 10"),
    ),
    "amop-types": Rule(
        """SELECT m.oid FROM amop m LEFT JOIN pg_operator o ON o.oid = amopopr
        WHERE o.oid IS NULL OR oprleft <> amoplefttype OR oprright <> amoprighttype
            OR oprkind <> 'b' OR oprresult <> 'boolean'::regtype""",
        amop(f"amoprighttype = {FOREIGN}"),
    ),
    "amop-estimators": Rule(
        """SELECT m.oid FROM amop m JOIN pg_operator o ON o.oid = amopopr
        WHERE oprrest::regproc::text <> CASE WHEN amname = 'hash' THEN 'eqsel' ELSE
            ('{scalarltsel,scalarlesel,eqsel,scalargesel,scalargtsel}'::text[])
                [amopstrategy] END""",
        op("oprrest = 'neqsel'::regproc"),
    ),
    "amop-family-is-whole": Rule(
        # Every pair of the family's types has all strategies.
        """SELECT amopfamily, l, r FROM
            (SELECT DISTINCT amopfamily, amoplefttype AS l FROM amop) AS a
            JOIN (SELECT DISTINCT amopfamily, amoprighttype AS r FROM amop) AS b
                USING (amopfamily)
            LEFT JOIN amop m USING (amopfamily)
        GROUP BY amopfamily, l, r
        HAVING count(*) FILTER (WHERE amoplefttype = l AND amoprighttype = r)
            <> CASE min(amname) WHEN 'btree' THEN 5 ELSE 1 END""",
        f"DELETE FROM pg_amop WHERE amopfamily = {HASH} AND {PAIR}",
    ),
    "amproc-fields": Rule(
        """SELECT oid FROM amproc WHERE amprocfamily = 0 OR amproclefttype = 0
            OR amprocrighttype = 0 OR amproc = 0 OR amprocnum < 1""",
        amproc("amprocnum = -1"),
    ),
    "amproc-number-is-known": Rule(
        """SELECT oid FROM amproc WHERE amprocnum >
            CASE amname WHEN 'btree' THEN 5 WHEN 'hash' THEN 3 END""",
        amproc("amprocnum = 6"),
    ),
    "amproc-signature": Rule(
        """SELECT m.oid, p.oid::regprocedure FROM amproc m
            LEFT JOIN fn p ON p.oid = m.amproc
            LEFT JOIN (VALUES
                ('btree', 1, ARRAY['l', 'r'], 'integer'::regtype),
                ('btree', 2, '{internal}', 'void'),
                ('btree', 5, '{internal}', 'void'),
                ('hash', 1, '{l}', 'integer'),
                ('hash', 2, '{l,bigint}', 'bigint'),
                ('hash', 3, '{internal}', 'void')) AS s (am, number, arguments, result)
                ON s.am = amname AND s.number = amprocnum
        WHERE s.am IS NULL OR p.oid IS NULL OR p.prorettype <> s.result OR p.proretset
            OR p.args <> (SELECT array_agg(CASE a WHEN 'l' THEN amproclefttype
                    WHEN 'r' THEN amprocrighttype ELSE a::regtype::oid END ORDER BY i)
                FROM unnest(s.arguments) WITH ORDINALITY AS u (a, i))""",
        amproc(f"amproc = {HASH_CALL}"),
    ),
    "amproc-volatility": Rule(
        # Of one type IMMUTABLE, across types STABLE.
        """SELECT m.oid, p.oid::regprocedure FROM amproc m JOIN fn p ON p.oid = amproc
        WHERE provolatile <> CASE WHEN amproclefttype = amprocrighttype
            THEN 'i' ELSE 's' END""",
        proc("provolatile = 's'", HASH_CALL),
    ),
    "amproc-comparison-for-every-pair": Rule(
        """SELECT DISTINCT amopfamily, amoplefttype, amoprighttype FROM amop
        WHERE amname = 'btree' AND NOT EXISTS (SELECT FROM amproc
            WHERE amprocfamily = amopfamily AND amproclefttype = amoplefttype
                AND amprocrighttype = amoprighttype AND amprocnum = 1)""",
        amproc(f"amprocnum = 2, amprocrighttype = {FOREIGN}"),
    ),
    "amproc-hashes-for-every-type": Rule(
        """SELECT amopfamily, t::regtype, n FROM amop,
            LATERAL (VALUES (amoplefttype), (amoprighttype)) AS types (t),
            generate_series(1, 2) n
        WHERE amname = 'hash' AND NOT EXISTS (SELECT FROM amproc
            WHERE amprocfamily = amopfamily AND amproclefttype = t
                AND amprocrighttype = t AND amprocnum = n)""",
        amproc(f"amprocrighttype = {FOREIGN}", 2, HASH),
    ),
    "amproc-no-equalimage": Rule(
        # Equal values are stored as different bytes: a btree may not merge them.
        "SELECT oid FROM amproc WHERE amname = 'btree' AND amprocnum = 4",
        amproc("amprocnum = 4", 2),
    ),
    # Operator classes
    "opclass-fields": Rule(
        f"""SELECT c.oid FROM class c LEFT JOIN family f ON f.oid = opcfamily
        WHERE opcmethod IS DISTINCT FROM opfmethod OR opcintype <> ALL ({TYPES})
            OR opckeytype <> 0 OR opcname = '' OR NOT opcdefault""",
        "UPDATE pg_opclass SET opcdefault = false WHERE opcname = '@type@_ops'",
    ),
    "opclass-has-all-operators": Rule(
        """SELECT c.oid FROM class c WHERE (SELECT count(*) FROM amop
            WHERE amopfamily = opcfamily AND amoplefttype = opcintype
                AND amoprighttype = opcintype)
            <> CASE amname WHEN 'btree' THEN 5 WHEN 'hash' THEN 1 END""",
        f"DELETE FROM pg_amop WHERE amopopr = {EQ}",
    ),
    "opclass-amvalidate": Rule(
        "SELECT oid FROM class WHERE NOT amvalidate(oid)",
        amproc(f"amprocrighttype = {FOREIGN}"),
    ),
    # Types
    "type-fields": Rule(
        """SELECT typname FROM type
        WHERE typnamespace = 0 OR (typlen <= 0 AND typlen <> -1)
            OR typtype NOT IN ('b', 'c') OR NOT typisdefined OR typdelim <> ','
            OR typcategory NOT BETWEEN 'A' AND 'Z' OR typalign NOT IN ('i', 'd')
            OR typstorage NOT IN ('x', 'e') OR typbyval OR typbasetype <> 0
            OR typtypmod <> -1 OR typndims <> 0 OR typispreferred""",
        type_("typalign = 'c'"),
    ),
    "type-composite-has-a-relation": Rule(
        "SELECT typname FROM type WHERE (typtype = 'c') <> (typrelid <> 0)",
        type_("typtype = 'c'"),
    ),
    "type-array": Rule(
        """SELECT t.typname FROM type t LEFT JOIN pg_type a ON a.oid = t.typarray
        WHERE t.typelem = 0 AND (a.oid IS NULL OR a.typelem <> t.oid OR a.typlen <> -1
            OR a.typsubscript <> 'array_subscript_handler'::regproc
            OR a.typcategory <> 'A' OR a.typstorage <> 'x' OR a.typarray <> 0
            OR a.typalign <> CASE t.typalign WHEN 'd' THEN 'd' ELSE 'i' END)""",
        type_("typarray = 0"),
    ),
    "type-array-functions": Rule(
        """SELECT typname FROM type
        WHERE typelem <> 0 AND (typinput, typoutput, typreceive, typsend, typanalyze)
            <> ('array_in'::regproc, 'array_out'::regproc, 'array_recv'::regproc,
                'array_send'::regproc, 'array_typanalyze'::regproc)""",
        type_("typsend = 'cash_send'::regproc", "'@type@[]'::regtype"),
    ),
    "type-array-modifier": Rule(
        """SELECT a.typname FROM type a JOIN type t ON t.oid = a.typelem
        WHERE (a.typmodin, a.typmodout, a.typdelim, a.typcollation)
            <> (t.typmodin, t.typmodout, t.typdelim, t.typcollation)""",
        type_("typmodin = 0"),
    ),
    "type-not-collatable": Rule(
        f"SELECT typname FROM type WHERE typcollation <> 0 AND oid = ANY ({TYPES})",
        type_("typcollation = 100"),
    ),
    "type-functions-are-there": Rule(
        f"""SELECT typname FROM type
        WHERE typinput = 0 OR typoutput = 0 OR typreceive = 0
            OR typsend = 0
            OR (oid = ANY ({TYPES})
                AND (typmodin = 0 OR typmodout = 0 OR typanalyze = 0))""",
        type_("typsend = 0"),
    ),
}

# The types' functions: arguments and result.
SIGNATURES = {
    "typinput": ("cstring, oid, integer", "@type@"),
    "typoutput": ("@type@", "cstring"),
    "typreceive": ("internal, oid, integer", "@type@"),
    "typsend": ("@type@", "bytea"),
    "typmodin": ("cstring[]", "integer"),
    "typmodout": ("integer", "cstring"),
    "typanalyze": ("internal", "boolean"),
}
RULES |= {
    f"type-function-{column}": Rule(
        f"""SELECT p.oid::regprocedure FROM type t LEFT JOIN fn p ON p.oid = {column}
        WHERE t.oid = {TYPE} AND (p.prorettype = '{result}'::regtype
            AND pg_get_function_arguments(p.oid) = '{arguments}'
            AND NOT proretset AND provolatile <> 'v' AND proisstrict) IS NOT TRUE""",
        type_(f"{column} = 'rotate_column'::regproc"),
    )
    for column, (arguments, result) in SIGNATURES.items()
}


def of_kind(kind: Kind, sql: str) -> str:
    return sql.replace("@type@", kind.type).replace("@plain@", kind.plain)


@pytest.fixture(scope="module")
def catalogs(server: Cluster) -> Iterator[psycopg.Connection]:
    with server.connect(options="-c allow_system_table_mods=on") as session:
        session.execute(VIEWS)
        yield session


@pytest.mark.parametrize(
    "kind, rule",
    [
        pytest.param(kind, rule, id=f"{kind}-{name}")
        for kind in KINDS
        for name, rule in RULES.items()
        # Of text, PostgreSQL's own operator does.
        if kind is not TEXT or name != "operator-concatenation"
    ],
)
def test_the_catalogs_keep_the_rule(
    catalogs: psycopg.Connection, kind: Kind, rule: Rule
) -> None:
    broken, sabotage = (of_kind(kind, sql) for sql in rule)
    assert catalogs.execute(broken).fetchall() == []
    with catalogs.transaction(force_rollback=True):
        assert catalogs.execute(sabotage).rowcount
        assert catalogs.execute(broken).fetchall() != []


@pytest.mark.parametrize(
    "view, least",
    [
        ("proc", 60 * len(KINDS)),
        ("op", 36 * len(KINDS)),
        ("comparison", 36 * len(KINDS)),
        ("casts", 20 + 3 * len(KINDS)),
        ("amop", 24 * len(KINDS)),
        ("amproc", 12 * len(KINDS)),
        ("type", 2 + 2 * len(KINDS)),
    ],
)
def test_the_rules_are_asked_of_all_that_is_ours(
    catalogs: psycopg.Connection, view: str, least: int
) -> None:
    assert fetch(catalogs, f"SELECT count(*) FROM {view}") >= least


def test_the_operator_classes_are_valid(catalogs: psycopg.Connection) -> None:
    classes = "SELECT opcname, amname, amvalidate(oid) FROM class ORDER BY 1, 2"
    assert catalogs.execute(classes).fetchall() == sorted(
        (f"{kind.type}_ops", method, True)
        for kind in KINDS
        for method in ("btree", "hash")
    )


# What the files' headers say of volatility.


def created(file: Path) -> list[str]:
    text = re.sub(r"--.*", "", file.read_text("utf-8"))
    return re.findall(r"^CREATE FUNCTION.*?;$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("file", sorted(SQL.glob("*.sql")), ids=lambda file: file.stem)
def test_every_function_states_its_volatility(file: Path) -> None:
    for statement in created(file):
        stated = re.findall(r"\b(IMMUTABLE|STABLE|VOLATILE)\b", statement)
        assert len(stated) == 1, statement


@every_kind
def test_functions_of_one_type_are_immutable_and_across_types_stable(
    catalogs: psycopg.Connection, kind: Kind
) -> None:
    functions = [
        re.search(r"(@type@_[\w@]+)\((.*?)\).*(IMMUTABLE|STABLE)", text, re.DOTALL)
        for text in created(SQL / "search.sql")
    ]
    assert len(functions) > 35 and all(functions)
    volatility = "SELECT provolatile FROM proc WHERE oid = %s::regprocedure"
    for name, arguments, stated in (function.groups() for function in functions):
        types = set(arguments.replace(" ", "").split(",")) - {"bigint"}
        letter = "i" if len(types) == 1 else "s"
        assert {"i": "IMMUTABLE", "s": "STABLE"}[letter] == stated, (name, arguments)
        function = of_kind(kind, f"{name}({arguments})")
        assert fetch(catalogs, volatility, function) == letter


def test_what_needs_the_key_ring_is_stable(catalogs: psycopg.Connection) -> None:
    # Not IMMUTABLE, or PostgreSQL would take an index over the plaintext; not
    # VOLATILE, which would keep a condition off its index.
    volatilities = catalogs.execute(f"""
        SELECT provolatile, array_agg(DISTINCT p.oid::regprocedure::text)
        FROM pg_proc p WHERE p.oid IN (
            SELECT castfunc FROM casts WHERE castmethod = 'f'
            UNION SELECT unnest(
                    ARRAY[typinput, typoutput, typreceive, typsend, typmodout])
                FROM type WHERE oid = ANY ({TYPES})
            UNION SELECT oid FROM proc WHERE proname ~ '(^encrypt|decrypt)$')
        GROUP BY 1""").fetchall()
    assert len(volatilities) == 1 and volatilities[0][0] == "s"
    assert len(volatilities[0][1]) >= 13 * len(KINDS)


# Indexes, by the checks of amcheck

INDEXES = {
    "i_btree": "(secret)",
    "i_desc": "(secret DESC NULLS LAST)",
    "i_pair": "(id, secret)",
    "i_pair_reversed": "(secret, id)",
    "i_partial": "(secret) WHERE id % 3 = 0",
    "i_fillfactor": "(secret) WITH (fillfactor = 30)",
}
CHECK = """
    SELECT bt_index_check(i, true), bt_index_parent_check(i, true, true)
    FROM (SELECT %s::regclass) AS t (i)"""


def check_indexes(session: psycopg.Connection, *names: str) -> None:
    for name in names or INDEXES:
        session.execute(CHECK, [name])


@every_kind
def test_amcheck_accepts_btrees_through_their_life(
    make_cluster: MakeCluster, kind: Kind
) -> None:
    old, new = new_key(), new_key()
    cluster = make_cluster(ring=old, conf={"autovacuum": False})
    with cluster.connect() as session:
        session.execute("CREATE EXTENSION amcheck; CREATE EXTENSION pageinspect")
        session.execute(f"CREATE TABLE t (id int PRIMARY KEY, secret {kind.type})")
        # Some sorted in, some grown row by row.
        make = [f"CREATE INDEX {name} ON t {what}" for name, what in INDEXES.items()]
        text = "lpad((i % 1000)::text, CASE i % 3 WHEN 0 THEN 1500 ELSE 300 END, 'x')"
        value = kind.holding_sql(text)
        insert = f"INSERT INTO t SELECT i, {value} FROM generate_series({{}}, {{}}) i"
        session.execute("; ".join(make[::2]))
        session.execute(insert.format(1, 600))
        session.execute("; ".join(make[1::2]))
        session.execute(insert.format(601, 1200))
        session.execute("INSERT INTO t VALUES (0, NULL), (-1, NULL)")
        session.execute(f"INSERT INTO t VALUES (-2, {kind.samples[2].literal})")
        # Levels count from 0, the leaves.
        for name in INDEXES:
            levels = "SELECT level FROM bt_metap(%s) WHERE NOT allequalimage"
            # Inner pages of i_pair hold numbers alone.
            assert fetch(session, levels, name) >= (2 if name != "i_pair" else 1), name
        check_indexes(session)
        other = kind.holding_sql("lpad('new' || id, 300 + id % 3 * 400)")
        session.execute(f"UPDATE t SET secret = {other} WHERE id % 2 = 0")
        session.execute("UPDATE t SET secret = NULL WHERE id % 100 = 0")
        check_indexes(session)
        session.execute("DELETE FROM t WHERE id BETWEEN 200 AND 1000")
        check_indexes(session)
        session.execute("VACUUM t")
        check_indexes(session)
        session.execute(insert.format(200, 600))
        cluster.set_ring(f"{new},{old}")
        cluster.reload(session)
        assert fetch(session, "SELECT rotate_column('t', 'secret')") > 700
        check_indexes(session)
        for rebuild in (
            "VACUUM t",
            "REINDEX INDEX CONCURRENTLY i_desc",
            "REINDEX TABLE t",
            "CLUSTER t USING i_btree",
        ):
            session.execute(rebuild)
        check_indexes(session)
    # The second is what VACUUM says when it loses its way in a btree.
    assert "ERROR" not in cluster.log() and "failed to re-find" not in cluster.log()


@every_kind
def test_amcheck_finds_an_index_in_the_wrong_order(db: Database, kind: Kind) -> None:
    # So that the check above can fail: under another index key the order is another.
    with db.connect() as session:
        session.execute("CREATE EXTENSION amcheck")
        session.execute(f"CREATE TABLE t (secret {kind.type})")
        value = kind.holding_sql("i::text")
        session.execute(f"INSERT INTO t SELECT {value} FROM generate_series(1, 100) i")
        session.execute("CREATE INDEX i_btree ON t (secret)")
        check_indexes(session, "i_btree")
        session.execute("DELETE FROM colcrypt.key")
        session.execute("SELECT colcrypt.create_index_key()")
        with pytest.raises(psycopg.errors.IndexCorrupted):
            check_indexes(session, "i_btree")

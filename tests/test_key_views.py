"""What there is, told by views: keys, encrypted columns, which keys their values are
under, and which keys may be dropped. Nothing is said to be droppable that is not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.errors import (
    DatatypeMismatch,
    InsufficientPrivilege,
    ObjectNotInPrerequisiteState,
    UndefinedColumn,
    UndefinedTable,
    WrongObjectType,
)

from conftest import MakeCluster
from harness import Cluster, Database, fetch, key_id, new_key
from test_index_key import SET_KEY

CREATE = "SELECT colcrypt.create_key(%s)"
ROTATE = "SELECT colcrypt.rotate_key(%s)"
SHRED = "SELECT colcrypt.shred_key(%s)"
TABLE = "CREATE TABLE t (id int, secret encrypted_text)"
DROPPABLE = "SELECT key_id FROM colcrypt.droppable_keys() WHERE may_be_dropped"


@pytest.fixture
def session(db: Database) -> Iterator[psycopg.Connection]:
    with db.connect(prepare_threshold=None) as session:
        yield session


@pytest.fixture
def app(db: Database) -> Iterator[psycopg.Connection]:
    """A session of a role that may do nothing."""
    role = f"app_{db.name}"
    db.psql(f"CREATE ROLE {role} LOGIN")
    with db.connect(user=role) as session:
        yield session
    db.psql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def primary_of(cluster: Cluster) -> str:
    return key_id((cluster.dir / "ring.keys").read_text().split(",")[0])


def keys(session: psycopg.Connection) -> dict[str, tuple[Any, ...]]:
    """The view by id: name, kind, suite, state, wrapped_by, loaded."""
    found = session.execute(
        "SELECT key_id, name, kind, suite, state, wrapped_by, loaded FROM colcrypt.keys"
    ).fetchall()
    assert len({row[0] for row in found}) == len(found), "an id twice"
    return {row[0]: tuple(row[1:]) for row in found}


def usage(
    session: psycopg.Connection, table: str = "t", column: str = "secret"
) -> dict[tuple[str, str], tuple[int, bool]]:
    found = session.execute(
        "SELECT key_id, suite, rows, bytes, stale FROM colcrypt.key_usage(%s, %s)",
        [table, column],
    ).fetchall()
    assert all(rows <= stored for _, _, rows, stored, _ in found)
    return {(key, suite): (rows, stale) for key, suite, rows, _, stale in found}


def columns(session: psycopg.Connection) -> dict[str, tuple[Any, ...]]:
    found = session.execute(
        "SELECT relation::text || '.' || column_name, type, key_name, indexes"
        " FROM colcrypt.columns"
    ).fetchall()
    assert len({row[0] for row in found}) == len(found)
    return {row[0]: tuple(row[1:]) for row in found}


def droppable(session: psycopg.Connection) -> set[str]:
    return {key for (key,) in session.execute(DROPPABLE).fetchall()}


# Shapes


@pytest.mark.parametrize(
    "query, shape",
    [
        (
            "SELECT * FROM colcrypt.keys",
            "key_id text, name text, kind text, suite text, state text,"
            " wrapped_by text, loaded bool, created_at timestamptz",
        ),
        (
            "SELECT * FROM colcrypt.columns",
            "relation regclass, column_name name, type text, key_name text,"
            " indexes _text",
        ),
        (
            "SELECT * FROM colcrypt.key_usage('t', 'secret')",
            "key_id text, suite text, rows int8, bytes int8, stale bool",
        ),
    ],
)
def test_the_columns_of_views_and_functions(
    session: psycopg.Connection, query: str, shape: str
) -> None:
    session.execute(TABLE)
    described = session.execute(query).description or []
    names = session.adapters.types
    found = []
    for column in described:
        known = names.get(column.type_code)
        type = known.name if known else "?"
        if known and known.array_oid == column.type_code:
            type = f"_{type}"
        found.append(f"{column.name} {type}")
    assert ", ".join(found) == shape


# colcrypt.keys


def test_keys_of_the_ring_have_names_and_states(make_cluster: MakeCluster) -> None:
    first, second, third = new_key(), new_key(), new_key()

    def ring(primary: str, **names: str) -> str:
        return json.dumps({"primary": primary, "keys": names})

    cluster = make_cluster(ring=ring("b", a=first, b=second))
    with cluster.connect() as session:
        a, b, c = (key_id(key) for key in (first, second, third))
        assert keys(session) == {
            a: ("a", "ring", None, "retired", None, True),
            b: ("b", "ring", None, "active", None, True),
        }
        created = "SELECT created_at FROM colcrypt.keys WHERE key_id = %s"
        assert fetch(session, created, b) is None
        session.execute("SELECT encrypt('x')")
        assert fetch(session, created, b) is not None
        # A key that has encrypted and is not in the ring any more.
        cluster.set_ring(ring("c", c=third, b=second))
        cluster.reload(session)
        session.execute("SELECT encrypt('x')")
        cluster.set_ring(ring("c", c=third))
        cluster.reload(session)
        assert keys(session) == {
            b: (None, "ring", None, "retired", None, False),
            c: ("c", "ring", None, "active", None, True),
        }


def test_managed_keys_are_shown_in_every_state(
    session: psycopg.Connection, server: Cluster
) -> None:
    primary = primary_of(server)
    suite = "aes-256-gcm"
    one = fetch(session, "SELECT colcrypt.create_key('pii', %s)", suite)
    two = fetch(session, ROTATE, "pii")
    gone = fetch(session, CREATE, "gone")
    session.execute(SHRED, ["gone"])
    index = fetch(session, "SELECT colcrypt.create_index_key()")
    assert keys(session) == {
        primary: (None, "ring", None, "active", None, True),
        one: ("pii", "data", suite, "retired", primary, True),
        two: ("pii", "data", suite, "active", primary, True),
        gone: ("gone", "data", "xaes-256-gcm", "destroyed", None, False),
        index: (None, "index", "aes-256-cmac", "active", primary, True),
    }
    assert fetch(session, "SELECT count(created_at) FROM colcrypt.keys") == 5


def test_a_key_whose_wrapping_key_is_missing_is_not_loaded(
    make_cluster: MakeCluster,
) -> None:
    old, new = new_key(), new_key()
    cluster = make_cluster(ring=old)
    with cluster.connect() as session:
        made = fetch(session, CREATE, "pii")
        cluster.set_ring(new)
        cluster.reload(session)
        shown = keys(session)
        assert shown[made][3:] == ("active", key_id(old), False)
        assert shown[key_id(old)][-1] is False and shown[key_id(new)][-1] is True
        cluster.conf({"colcrypt.key_file": None})
        cluster.restart()
    with cluster.connect() as session:
        # Without a ring it is shown as well.
        assert {key: row[-1] for key, row in keys(session).items()} == {
            made: False,
            key_id(old): False,
        }


def test_the_keys_of_a_session_do_not_make_the_server_s_a_retired_one(
    session: psycopg.Connection, server: Cluster
) -> None:
    own = new_key()
    session.execute("SELECT encrypt('x')")
    session.execute(SET_KEY, [own])
    shown = keys(session)
    assert shown[key_id(own)][-1] is True
    assert shown[primary_of(server)][3] == "active"
    assert primary_of(server) not in droppable(session)
    session.execute("RESET colcrypt.key")
    assert key_id(own) not in keys(session)


def test_a_key_that_is_the_session_s_and_the_server_s_is_shown_once(
    session: psycopg.Connection, server: Cluster
) -> None:
    session.execute(SET_KEY, [(server.dir / "ring.keys").read_text()])
    assert len(keys(session)) == 1


# colcrypt.columns

COLUMNS: dict[str, tuple[str, dict[str, tuple[Any, ...]]]] = {
    "plain": (TABLE, {"t.secret": ("encrypted_text", None, [])}),
    "modifier": (
        "CREATE TABLE t (secret encrypted_text(pii), other encrypted_text(nobody))",
        {
            "t.secret": ("encrypted_text(pii)", "pii", []),
            "t.other": ("encrypted_text('#{nobody}')", "#{nobody}", []),
        },
    ),
    "domains": (
        "CREATE DOMAIN a AS encrypted_text(pii); CREATE DOMAIN b AS a;"
        "CREATE DOMAIN c AS encrypted_text; CREATE TABLE t (a a, b b, c c, d text)",
        {
            "t.a": ("a", "pii", []),
            "t.b": ("b", "pii", []),
            "t.c": ("c", None, []),
        },
    ),
    "partitions": (
        "CREATE TABLE t (id int, secret encrypted_text) PARTITION BY RANGE (id);"
        "CREATE TABLE t1 PARTITION OF t DEFAULT",
        {f"{t}.secret": ("encrypted_text", None, []) for t in ("t", "t1")},
    ),
    "inheritance": (
        TABLE + "; CREATE TABLE u (more int) INHERITS (t)",
        {f"{t}.secret": ("encrypted_text", None, []) for t in ("t", "u")},
    ),
    "materialized view": (
        TABLE + "; CREATE MATERIALIZED VIEW m AS TABLE t; CREATE VIEW v AS TABLE t",
        {f"{t}.secret": ("encrypted_text", None, []) for t in ("t", "m")},
    ),
    "dropped": (
        TABLE + "; ALTER TABLE t ADD gone encrypted_text; ALTER TABLE t DROP gone",
        {"t.secret": ("encrypted_text", None, [])},
    ),
    "quoted": (
        'CREATE SCHEMA "S"; CREATE TABLE "S"."T" ("C c" encrypted_text)',
        {'"S"."T".C c': ("encrypted_text", None, [])},
    ),
    "unlogged and generated": (
        "CREATE UNLOGGED TABLE t (secret encrypted_text,"
        " n int GENERATED ALWAYS AS (octet_length(ciphertext(secret))) STORED)",
        {"t.secret": ("encrypted_text", None, [])},
    ),
    "renamed": (
        TABLE + "; ALTER TABLE t RENAME secret TO s; ALTER TABLE t RENAME TO u",
        {"u.s": ("encrypted_text", None, [])},
    ),
}


@pytest.mark.parametrize("ddl, expected", COLUMNS.values(), ids=COLUMNS)
def test_encrypted_columns_are_listed(
    session: psycopg.Connection, ddl: str, expected: dict[str, tuple[Any, ...]]
) -> None:
    digest = hashlib.sha256(b"colcrypt v1 key namenobody").digest()
    nobody = f"{int.from_bytes(digest[:4], 'big') >> 1:08x}"
    session.execute(CREATE, ["pii"])
    session.execute(ddl)
    assert columns(session) == {
        name: tuple(
            each.replace("{nobody}", nobody) if isinstance(each, str) else each
            for each in row
        )
        for name, row in expected.items()
    }


@pytest.mark.parametrize("type", ["encrypted_text[]", "pair", "pair[]", "own"])
def test_columns_with_encrypted_values_inside_are_listed(
    session: psycopg.Connection, type: str
) -> None:
    session.execute(
        "CREATE TYPE pair AS (id int, secret encrypted_text);"
        "CREATE DOMAIN own AS encrypted_text[];"
        f"CREATE TABLE t (id int, secret {type})"
    )
    assert [*columns(session)] == ["t.secret"]


INDEXES = {
    "hash": ("USING hash (secret)", "t_secret_idx (hash): which rows have equal"),
    "btree": ("(secret)", "t_secret_idx (btree): which entries are neighbours"),
    "unique": ("(id, secret DESC)", "t_id_secret_idx (btree): which entries are"),
    "include": ("(id) INCLUDE (secret)", "t_id_secret_idx (btree): "),
    "partial": ("(id) WHERE secret IS NOT NULL", "t_id_idx (btree): what its"),
    "expression": (
        "(octet_length(ciphertext(secret)))",
        "t_octet_length_idx (btree): what its",
    ),
}


@pytest.mark.parametrize("index, told", INDEXES.values(), ids=INDEXES)
def test_indexes_are_listed_with_what_they_tell(
    session: psycopg.Connection, index: str, told: str
) -> None:
    session.execute(TABLE + f"; CREATE INDEX ON t {index}; CREATE INDEX o ON t (id)")
    ((_, _, listed),) = columns(session).values()
    assert len(listed) == 1 and listed[0].startswith(told), listed


def test_an_index_that_holds_the_values_in_no_order_is_not_said_to_have_one(
    session: psycopg.Connection,
) -> None:
    session.execute(TABLE + "; CREATE INDEX i ON t (id) INCLUDE (secret)")
    ((_, _, listed),) = columns(session).values()
    assert "neighbours" not in listed[0]


def test_partitioned_indexes_are_listed_with_each_partition(
    session: psycopg.Connection,
) -> None:
    session.execute(
        "CREATE TABLE t (id int, secret encrypted_text) PARTITION BY RANGE (id);"
        "CREATE TABLE t1 PARTITION OF t DEFAULT; CREATE INDEX i ON t (secret)"
    )
    shown = columns(session)
    assert shown["t.secret"][2][0].startswith("i (btree)")
    assert shown["t1.secret"][2][0].startswith("t1_secret_idx (btree)")


def test_everybody_sees_the_columns_and_nobody_else_the_keys(
    session: psycopg.Connection, app: psycopg.Connection
) -> None:
    session.execute(CREATE, ["pii"])
    session.execute("CREATE TABLE t (id int, secret encrypted_text(pii))")
    assert columns(app) == {"t.secret": ("encrypted_text(pii)", "pii", [])}
    refused = (
        "SELECT * FROM colcrypt.keys",
        "SELECT * FROM colcrypt.ring_keys()",
        "SELECT * FROM colcrypt.droppable_keys()",
        "SELECT * FROM colcrypt.key_usage('t', 'secret')",
    )
    for sql in refused:
        with pytest.raises(InsufficientPrivilege):
            app.execute(sql)
    session.execute(f"GRANT pg_monitor TO {app.info.user}")
    assert keys(app) == keys(session)
    for sql in (refused[2], "SELECT wrapped FROM colcrypt.key"):
        with pytest.raises(InsufficientPrivilege):
            app.execute(sql)


def test_views_do_not_look_at_the_caller_s_objects(
    session: psycopg.Connection, app: psycopg.Connection
) -> None:
    session.execute(TABLE + "; INSERT INTO t VALUES (1, 'x')")
    session.execute(f"GRANT CREATE ON SCHEMA public TO {app.info.user}")
    app.execute(
        """CREATE FUNCTION public.trap(text, text) RETURNS boolean LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'trapped'; END $$;
        CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap)"""
    )
    session.execute("SET search_path = public, pg_catalog")
    assert primary_of_usage(session) == ["t.secret"]


def primary_of_usage(session: psycopg.Connection) -> list[str]:
    keys(session)
    droppable(session)
    usage(session)
    return [*columns(session)]


# colcrypt.key_usage()


def test_values_are_counted_by_key_and_suite(
    session: psycopg.Connection, server: Cluster
) -> None:
    primary = primary_of(server)
    a = fetch(session, CREATE, "a")
    session.execute(TABLE + "; INSERT INTO t VALUES (0, NULL)")
    assert usage(session) == {}
    for suite, rows in (("xaes-256-gcm", 3), ("fernet", 2)):
        session.execute(f"SET colcrypt.algorithm = '{suite}'")
        session.execute(
            f"INSERT INTO t SELECT i, i::text FROM generate_series(1, {rows}) i"
        )
    session.execute("INSERT INTO t SELECT 9, encrypt('x', 'a')")
    session.execute("RESET colcrypt.algorithm")
    assert usage(session) == {
        (primary, "xaes-256-gcm"): (3, False),
        (primary, "fernet"): (2, True),
        (a, "xaes-256-gcm"): (1, False),
    }
    b = fetch(session, ROTATE, "a")
    assert usage(session)[a, "xaes-256-gcm"] == (1, True)
    # Stale is what a rotation would move.
    assert fetch(session, "SELECT rotate_column('t', 'secret')") == 3
    assert usage(session) == {
        (primary, "xaes-256-gcm"): (5, False),
        (b, "xaes-256-gcm"): (1, False),
    }
    stored = "SELECT sum(stored_bytes) FROM t, colcrypt.inspect(secret)"
    counted = "SELECT sum(bytes) FROM colcrypt.key_usage('t', 'secret')"
    assert fetch(session, stored) == fetch(session, counted)


def test_stale_goes_by_the_column_s_modifier_and_the_session_s_settings(
    session: psycopg.Connection, server: Cluster
) -> None:
    primary = primary_of(server)
    a, b = (fetch(session, CREATE, name) for name in "ab")
    session.execute(
        "CREATE DOMAIN d AS encrypted_text(a);"
        "CREATE TABLE t (id int, secret encrypted_text(a), domained d);"
        "INSERT INTO t VALUES (1, 'x', 'x');"
        "CREATE TABLE u (id int, secret encrypted_text); INSERT INTO u VALUES (1, 'x')"
    )
    for column in ("secret", "domained"):
        assert usage(session, column=column) == {(a, "xaes-256-gcm"): (1, False)}
    assert usage(session, "u") == {(primary, "xaes-256-gcm"): (1, False)}
    session.execute("SET colcrypt.algorithm = 'envelope'")
    assert usage(session) == {(a, "xaes-256-gcm"): (1, False)}
    assert usage(session, "u") == {(primary, "xaes-256-gcm"): (1, True)}
    session.execute("RESET colcrypt.algorithm; SET colcrypt.write_key = 'b'")
    assert usage(session) == {(a, "xaes-256-gcm"): (1, False)}
    assert usage(session, "u") == {(primary, "xaes-256-gcm"): (1, True)}
    assert fetch(session, "SELECT rotate_column('u', 'secret')") == 1
    assert usage(session, "u") == {(b, "xaes-256-gcm"): (1, False)}
    session.execute(SHRED, ["a"])
    assert [*usage(session)] == [(a, "xaes-256-gcm")]


def test_usage_needs_no_key(make_cluster: MakeCluster) -> None:
    old = new_key()
    cluster = make_cluster(ring=old)
    cluster.psql(TABLE + "; INSERT INTO t VALUES (1, 'x')")
    for ring in (new_key(), None):
        if ring:
            cluster.set_ring(ring)
        else:
            cluster.conf({"colcrypt.key_file": None})
        cluster.restart()
        with cluster.connect() as session:
            assert usage(session) == {(key_id(old), "xaes-256-gcm"): (1, True)}
            assert droppable(session) == set()


RELATIONS = {
    "partitioned": TABLE + " PARTITION BY RANGE (id);"
    "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (2);"
    "CREATE TABLE t2 PARTITION OF t DEFAULT;"
    "INSERT INTO t VALUES (1, 'x'), (5, 'y')",
    "inherited": TABLE + "; CREATE TABLE u () INHERITS (t);"
    "INSERT INTO t VALUES (1, 'x'); INSERT INTO u VALUES (1, 'y')",
    "materialized view": TABLE.replace(" t ", " u ") + ";"
    "INSERT INTO u VALUES (1, 'x'), (2, 'y'); CREATE MATERIALIZED VIEW t AS TABLE u",
    "temporary": TABLE.replace("TABLE", "TEMP TABLE") + ";"
    "INSERT INTO t VALUES (1, 'x'), (2, 'y')",
    "toasted": TABLE + "; INSERT INTO t SELECT i, repeat('x', 9999) || i"
    " FROM generate_series(1, 2) i",
    "in another schema": "CREATE SCHEMA s; SET search_path = s, public;" + TABLE + ";"
    "INSERT INTO t VALUES (1, 'x'), (2, 'y')",
}


@pytest.mark.parametrize("ddl", RELATIONS.values(), ids=RELATIONS)
def test_all_kinds_of_tables_can_be_counted(
    session: psycopg.Connection, server: Cluster, ddl: str
) -> None:
    session.execute(ddl)
    assert usage(session) == {(primary_of(server), "xaes-256-gcm"): (2, False)}


def test_names_that_need_quotes(session: psycopg.Connection, server: Cluster) -> None:
    session.execute('CREATE TABLE "a ""b" ("c ""d" encrypted_text)')
    session.execute("""INSERT INTO "a ""b" VALUES ('x')""")
    assert len(usage(session, '"a ""b"', 'c "d')) == 1


REFUSED: dict[str, tuple[str, str, type[psycopg.Error]]] = {
    "no column": ("t", "nope", UndefinedColumn),
    "dropped column": ("t", "gone", UndefinedColumn),
    "system column": ("t", "ctid", UndefinedColumn),
    "text": ("t", "plain", DatatypeMismatch),
    "array": ("t", "many", DatatypeMismatch),
    "view": ("v", "secret", WrongObjectType),
    "index": ("i", "secret", WrongObjectType),
    "sequence": ("s", "last_value", WrongObjectType),
    "foreign table": ("f", "secret", WrongObjectType),
    "type": ("c", "secret", WrongObjectType),
    "no table": ("nope", "secret", UndefinedTable),
    "no relation": ("4294967295", "secret", UndefinedTable),
}


@pytest.mark.parametrize("table, column, error", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_counted_says_so(
    session: psycopg.Connection, table: str, column: str, error: type[psycopg.Error]
) -> None:
    session.execute(
        "CREATE TABLE t (id int, secret encrypted_text, plain text,"
        " gone encrypted_text, many encrypted_text[]); ALTER TABLE t DROP gone;"
        "CREATE VIEW v AS TABLE t; CREATE INDEX i ON t (secret); CREATE SEQUENCE s;"
        "CREATE TYPE c AS (secret encrypted_text);"
        "CREATE EXTENSION postgres_fdw;"
        "CREATE SERVER w FOREIGN DATA WRAPPER postgres_fdw;"
        "CREATE FOREIGN TABLE f (secret encrypted_text) SERVER w"
    )
    with pytest.raises(error):
        usage(session, table, column)


def test_null_gives_no_rows(session: psycopg.Connection) -> None:
    session.execute(TABLE)
    for arguments in ("NULL, 'secret'", "'t', NULL"):
        query = f"SELECT * FROM colcrypt.key_usage({arguments})"
        assert session.execute(query).fetchall() == []


def test_counting_needs_the_right_to_read_all_rows(
    session: psycopg.Connection, app: psycopg.Connection
) -> None:
    session.execute(TABLE + "; INSERT INTO t VALUES (1, 'x'), (2, 'y')")
    role = app.info.user
    for grant, allowed in (
        ("GRANT INSERT, UPDATE, DELETE ON t TO {}", False),
        ("GRANT SELECT (id) ON t TO {}", False),
        ("GRANT SELECT (secret) ON t TO {}", True),
        ("GRANT SELECT ON t TO {}; ALTER TABLE t ENABLE ROW LEVEL SECURITY", False),
        ("CREATE POLICY p ON t USING (id = 1)", False),
        ("ALTER ROLE {} BYPASSRLS", True),
        ("ALTER ROLE {} NOBYPASSRLS; ALTER TABLE t OWNER TO {}", True),
        ("ALTER TABLE t FORCE ROW LEVEL SECURITY", False),
    ):
        session.execute(grant.replace("{}", role))
        if allowed:
            assert [rows for rows, _ in usage(app).values()] == [2], grant
        else:
            with pytest.raises(InsufficientPrivilege):
                usage(app)
        assert [rows for rows, _ in usage(session).values()] == [2]


def test_counting_shows_no_more_than_a_masked_role_may_see(
    session: psycopg.Connection, app: psycopg.Connection
) -> None:
    session.execute(CREATE, ["pii"])
    session.execute("CREATE TABLE t (secret encrypted_text(pii))")
    session.execute("INSERT INTO t VALUES ('x')")
    session.execute(f"GRANT SELECT ON t TO {app.info.user}")
    session.execute("SELECT colcrypt.grant_key('pii', 'postgres')")
    assert [rows for rows, _ in usage(app).values()] == [1]


# colcrypt.droppable_keys()


class Ring:
    """A server with the old key, for which a new one is at hand."""

    def __init__(self, cluster: Cluster, old: str) -> None:
        self.cluster, self.old, self.new = cluster, old, new_key()
        self.id = key_id(old)

    def bring_new_key(self, *sessions: psycopg.Connection) -> None:
        self.cluster.set_ring(f"{self.new},{self.old}")
        self.cluster.reload(*sessions)
        self.cluster.psql("SELECT encrypt('x')")


@pytest.fixture
def ring(make_cluster: MakeCluster) -> Ring:
    old = new_key()
    return Ring(make_cluster(ring=old), old)


def test_may_i_drop_the_old_key(ring: Ring) -> None:
    with ring.cluster.connect() as session:
        session.execute(TABLE + "; INSERT INTO t VALUES (1, 'x')")
        session.execute("CREATE TABLE u (LIKE t); INSERT INTO u VALUES (1, 'x')")
        session.execute(CREATE, ["pii"])
        session.execute("SELECT colcrypt.create_index_key()")
        # The primary is never to be dropped.
        assert droppable(session) == set()
        ring.bring_new_key(session)
        row = (
            "SELECT rows, managed_keys, may_be_dropped FROM colcrypt.droppable_keys()"
            " WHERE key_id = %s"
        )

        def state() -> tuple[Any, ...]:
            found = session.execute(row, [ring.id]).fetchone()
            assert found is not None
            return found

        assert state() == (2, 2, False)
        session.execute("SELECT rotate_column('t', 'secret')")
        assert state() == (1, 2, False)
        session.execute("SELECT colcrypt.rewrap_keys()")
        assert state() == (1, 0, False)
        session.execute("SELECT rotate_column('u', 'secret')")
        assert state() == (0, 0, True)
        assert droppable(session) == {ring.id}
    ring.cluster.set_ring(ring.new)
    ring.cluster.restart()
    with ring.cluster.connect() as session:
        values = "SELECT decrypt(secret) FROM t UNION ALL SELECT decrypt(secret) FROM u"
        assert session.execute(values).fetchall() == [("x",), ("x",)]
        assert fetch(session, "SELECT decrypt(encrypt('x', 'pii'))") == "x"


def test_versions_of_managed_keys_are_told_as_well(session: psycopg.Connection) -> None:
    old = fetch(session, CREATE, "pii")
    session.execute("CREATE TABLE t (id int, secret encrypted_text(pii))")
    session.execute("INSERT INTO t VALUES (1, 'x')")
    new = fetch(session, ROTATE, "pii")
    assert droppable(session) == set()
    session.execute("SELECT rotate_column('t', 'secret')")
    assert droppable(session) == {old}
    row = "SELECT name, kind, rows FROM colcrypt.droppable_keys() WHERE key_id = %s"
    assert session.execute(row, [new]).fetchone() == ("pii", "data", 1)


# Where values can be that are under the old key.
HIDEOUTS = {
    "table": TABLE + "; INSERT INTO t VALUES (1, 'x')",
    "partition": RELATIONS["partitioned"],
    "inherited": RELATIONS["inherited"],
    "materialized view": "CREATE MATERIALIZED VIEW m AS SELECT encrypt('x') AS secret",
    "domain": "CREATE DOMAIN d AS encrypted_text; CREATE TABLE t (secret d);"
    "INSERT INTO t VALUES ('x')",
    "array": "CREATE TABLE t (secret encrypted_text[]); INSERT INTO t VALUES ('{x}')",
    "composite": "CREATE TYPE pair AS (id int, secret encrypted_text);"
    "CREATE TABLE t (secret pair); INSERT INTO t VALUES (ROW(1, 'x'))",
    "default": "CREATE TABLE t (secret encrypted_text DEFAULT 'x')",
    "domain's default": "CREATE DOMAIN d AS encrypted_text DEFAULT 'x'",
    "check": "CREATE TABLE t (secret encrypted_text CHECK (secret <> 'x'))",
    "domain's check": "CREATE DOMAIN d AS encrypted_text CHECK (VALUE <> 'x')",
    "view": "CREATE VIEW v AS SELECT encrypted_text 'x' AS secret",
    "policy": TABLE + "; CREATE POLICY p ON t USING (secret = encrypted_text 'x')",
    "rule": TABLE + "; CREATE RULE r AS ON DELETE TO t DO INSTEAD"
    " INSERT INTO t VALUES (1, 'x')",
    "sql function": "CREATE FUNCTION f() RETURNS encrypted_text"
    " RETURN encrypted_text 'x'",
    "argument's default": "CREATE FUNCTION f(a encrypted_text DEFAULT 'x')"
    " RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "trigger": TABLE + "; CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql"
    " AS 'BEGIN RETURN NEW; END';"
    "CREATE TRIGGER f BEFORE INSERT ON t FOR EACH ROW WHEN (NEW.secret <> 'x')"
    " EXECUTE FUNCTION f()",
    "partial index": TABLE + "; CREATE INDEX ON t (id) WHERE secret = 'x'",
    "partition bound": TABLE + " PARTITION BY LIST (secret);"
    "CREATE TABLE t1 PARTITION OF t FOR VALUES IN ('x')",
}


@pytest.mark.parametrize("hideout", HIDEOUTS.values(), ids=HIDEOUTS)
def test_a_key_is_not_droppable_while_something_is_under_it(
    ring: Ring, hideout: str
) -> None:
    with ring.cluster.connect() as session:
        session.execute(hideout)
        session.execute("SELECT colcrypt.create_index_key()")
        ring.bring_new_key(session)
        session.execute("SELECT colcrypt.rewrap_keys()")
        assert droppable(session) == set()


def test_a_key_is_not_droppable_while_an_index_needs_it(ring: Ring) -> None:
    """A btree keeps values in its upper pages, and of row versions that are gone."""
    with ring.cluster.connect() as session:
        session.execute(
            TABLE + "; CREATE INDEX i ON t (secret);"
            "INSERT INTO t SELECT i, i::text FROM generate_series(1, 2000) i"
        )
        ring.bring_new_key(session)
        session.execute("SELECT colcrypt.rewrap_keys()")
        session.execute("SELECT rotate_column('t', 'secret')")
        session.execute("VACUUM t")
        told = ring.id in droppable(session)
        session.execute("SET enable_seqscan = off")
        ring.cluster.set_ring(ring.new)
        ring.cluster.reload(session)
        try:
            works = fetch(session, "SELECT count(*) FROM t WHERE secret = '7'") == 1
        except ObjectNotInPrerequisiteState:
            works = False
        assert works or not told


def test_inherited_rows_are_counted_once(ring: Ring) -> None:
    with ring.cluster.connect() as session:
        session.execute(RELATIONS["inherited"])
        rows = "SELECT rows FROM colcrypt.droppable_keys() WHERE key_id = %s"
        assert fetch(session, rows, ring.id) == 2


def other_s_temporary_table(cluster: Cluster) -> psycopg.Connection:
    other = cluster.connect()
    other.execute(RELATIONS["temporary"])
    return other


def other_s_open_transaction(cluster: Cluster) -> psycopg.Connection:
    other = cluster.connect()
    other.execute("BEGIN; INSERT INTO t VALUES (1, 'x')")
    return other


@pytest.mark.parametrize("make", [other_s_temporary_table, other_s_open_transaction])
def test_asking_works_whatever_other_sessions_do(
    ring: Ring, make: Callable[[Cluster], psycopg.Connection]
) -> None:
    with ring.cluster.connect() as session:
        session.execute(TABLE)
        with make(ring.cluster):
            session.execute("SET lock_timeout = '5s'")
            assert droppable(session) == set()
            assert isinstance(columns(session), dict)


def test_a_remembered_key_that_nothing_is_under_may_be_dropped(ring: Ring) -> None:
    with ring.cluster.connect() as session:
        session.execute("SELECT encrypt('x')")
        assert droppable(session) == set()
        ring.bring_new_key(session)
        assert droppable(session) == {ring.id}


def test_who_may_ask_must_be_able_to_read_everything(
    session: psycopg.Connection, app: psycopg.Connection
) -> None:
    session.execute(TABLE + "; INSERT INTO t VALUES (1, 'x')")
    role = app.info.user
    session.execute(
        "GRANT EXECUTE ON FUNCTION colcrypt.droppable_keys(),"
        " colcrypt.sealed_constants(), colcrypt.keys_in_index(regclass, text[])"
        f" TO {role};"
        f"GRANT pg_monitor TO {role}"
    )
    with pytest.raises(InsufficientPrivilege):
        droppable(app)
    session.execute(f"GRANT SELECT ON t TO {role}")
    assert droppable(app) == set()

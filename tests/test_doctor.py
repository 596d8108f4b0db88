"""colcrypt.doctor(): each finding where its cause is, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from conftest import MakeCluster
from harness import Cluster, Setting, fetch, new_key, server_ids

PRELOAD: dict[str, Setting] = {
    "shared_preload_libraries": "colcrypt",
    "colcrypt.require_key": True,
}
DOCTOR = "SELECT severity, finding, advice FROM colcrypt.doctor()"
Finding = tuple[str, str, str]
# Of the machine that the tests run on.
HOST = ["core dumps are on", "memory with keys could not be locked"]
# PostgreSQL's defaults.
ALWAYS = ["statements that fail are logged"]


def findings(session: psycopg.Connection) -> list[Finding]:
    found = session.execute(DOCTOR).fetchall()
    return [row for row in found if not row[1].startswith(tuple(HOST + ALWAYS))]


def finding(session: psycopg.Connection, start: str) -> Finding:
    """The one finding that starts so."""
    matching = [row for row in session.execute(DOCTOR) if re.match(start, row[1])]
    assert len(matching) == 1, session.execute(DOCTOR).fetchall()
    return matching[0]


@pytest.fixture(scope="module")
def host(base: Any, template: Any) -> Iterator[Cluster]:
    cluster = Cluster(base, template, ring=new_key())
    cluster.conf(PRELOAD)
    cluster.start()
    cluster.psql("CREATE ROLE watcher LOGIN IN ROLE pg_monitor; CREATE ROLE app LOGIN")
    yield cluster
    cluster.destroy()


@pytest.fixture
def session(host: Cluster) -> Iterator[psycopg.Connection]:
    host.psql("DROP DATABASE IF EXISTS doctor WITH (FORCE)")
    host.psql("CREATE DATABASE doctor")
    with host.connect(dbname="doctor") as session:
        session.execute("CREATE EXTENSION colcrypt")
        yield session


# Nothing wrong


def test_nothing_is_found_in_a_database_with_nothing(
    session: psycopg.Connection,
) -> None:
    assert findings(session) == []


HEALTHY = """
    CREATE TABLE t (n serial PRIMARY KEY, plain text, secret encrypted_text);
    INSERT INTO t (plain, secret) SELECT 'x', 'v' || i FROM generate_series(1, 9) i;
    CREATE INDEX ON t (secret); CREATE INDEX ON t USING hash (secret);
    CREATE INDEX ON t (lower(plain)); CREATE INDEX ON t (n) WHERE secret = 'v1';
    CREATE STATISTICS st ON lower(plain), n FROM t;
    SELECT colcrypt.create_key('pii'), colcrypt.grant_key('pii', 'app');
    CREATE TABLE managed (secret encrypted_text(pii) DEFAULT 'x');
    INSERT INTO managed DEFAULT VALUES;
    CREATE TABLE parts (n int, secret encrypted_text) PARTITION BY HASH (secret);
    CREATE TABLE part PARTITION OF parts FOR VALUES WITH (MODULUS 1, REMAINDER 0);
    INSERT INTO parts VALUES (1, 'x');
    CREATE TABLE generated (s encrypted_text, g encrypted_text
        GENERATED ALWAYS AS (s) STORED, n int GENERATED ALWAYS AS (1 + 1) STORED);
    CREATE VIEW v AS SELECT secret::text FROM t;
    CREATE MATERIALIZED VIEW mv AS SELECT secret FROM t;
    CREATE MATERIALIZED VIEW unfilled AS SELECT secret FROM t WITH NO DATA;
    CREATE TEMP TABLE temporary (secret encrypted_text);
    INSERT INTO temporary VALUES ('x');
    CREATE DOMAIN d AS encrypted_text CHECK (length(VALUE) > 0);
    CREATE TYPE c AS (x encrypted_text);
    CREATE TABLE types (a encrypted_text[], d d, c c, da d[]);
    INSERT INTO types VALUES ('{x}', 'y', ROW('z'), '{x}');
    CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
    CREATE FOREIGN TABLE foreign_table (secret encrypted_text) SERVER files
        OPTIONS (filename '/nonexistent');
    CREATE FUNCTION f() RETURNS text LANGUAGE sql RETURN 'x'::encrypted_text::text;
    ANALYZE;
"""


def test_a_healthy_server_gives_no_warnings(session: psycopg.Connection) -> None:
    session.execute(HEALTHY)
    assert [row for row in findings(session) if row[0] != "info"] == []


def test_temporary_tables_of_others_do_not_make_it_fail(
    host: Cluster, session: psycopg.Connection
) -> None:
    with host.connect(dbname="doctor") as other:
        other.execute("CREATE TEMP TABLE x (secret encrypted_text)")
        other.execute("INSERT INTO x VALUES ('x')")
        assert findings(session) == []


# Who asks


def test_nobody_else_may_ask(host: Cluster, session: psycopg.Connection) -> None:
    for user in ("app", "watcher"):
        with host.connect(dbname="doctor", user=user) as other:
            with pytest.raises(InsufficientPrivilege):
                other.execute(DOCTOR)


def test_who_was_let_may_ask(host: Cluster, session: psycopg.Connection) -> None:
    session.execute(HEALTHY.partition("CREATE EXTENSION file_fdw")[0])
    # It asks for what it says with the rights of its caller.
    for function in ("doctor", "stale_columns", "sealed_constants"):
        session.execute(f"GRANT EXECUTE ON FUNCTION colcrypt.{function} TO pg_monitor")
    with host.connect(dbname="doctor", user="watcher") as watcher:
        assert [row for row in findings(watcher) if row[0] != "info"] == []


ATTACKS = [
    "CREATE TABLE evil.pg_class AS SELECT 1 AS oid",
    "CREATE TABLE evil.pg_settings AS SELECT 'x' AS name, 'y' AS setting",
    "CREATE FUNCTION evil.format(text, VARIADIC text[]) RETURNS text LANGUAGE plpgsql"
    " AS $$ BEGIN RAISE 'attacked'; END $$",
    "CREATE FUNCTION evil.count(text) RETURNS bigint LANGUAGE plpgsql"
    " AS $$ BEGIN RAISE 'attacked'; END $$",
    "CREATE FUNCTION evil.same(name, text) RETURNS boolean LANGUAGE plpgsql"
    " AS $$ BEGIN RAISE 'attacked'; END $$",
    "CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = name, RIGHTARG = text)",
    "CREATE TABLE evil.pg_attribute (x int)",
    "CREATE DOMAIN evil.text AS int",
]


def test_what_the_search_path_of_the_caller_has_is_not_used(
    session: psycopg.Connection,
) -> None:
    session.execute("CREATE SCHEMA evil")
    for attack in ATTACKS:
        session.execute(attack.encode())
    session.execute("CREATE TEMP TABLE pg_trigger (x int)")
    session.execute("CREATE TEMP TABLE key (x int)")
    session.execute("SET search_path = evil, pg_temp, pg_catalog")
    assert findings(session) == []


MODES = ["READ ONLY", "ISOLATION LEVEL SERIALIZABLE, READ ONLY"]


@pytest.mark.parametrize("mode", MODES)
def test_it_asks_in_read_only_transactions(
    session: psycopg.Connection, mode: str
) -> None:
    session.execute(HEALTHY)
    session.execute(f"BEGIN {mode}")
    assert [row for row in findings(session) if row[0] != "info"] == []
    session.execute("COMMIT")


def test_it_asks_for_a_mask_too(session: psycopg.Connection) -> None:
    session.execute(HEALTHY)
    session.execute("SET colcrypt.access = 'masked'")
    assert [row for row in findings(session) if row[0] == "critical"] == []


# Keys


def test_a_server_without_a_key(make_cluster: MakeCluster) -> None:
    for conf in ({}, {"shared_preload_libraries": "colcrypt"}):
        cluster = make_cluster(conf=conf)
        with cluster.connect() as session:
            session.execute("CREATE TABLE t (secret encrypted_text)")
            severity, _, advice = finding(session, "the server has no encryption key")
            assert severity == "critical" and "colcrypt.key_file" in advice
            # A session's own key does not make the server's.
            session.execute(f"SET colcrypt.key = '{new_key()}'")
            session.execute("INSERT INTO t VALUES ('x')")
            assert finding(session, "the server has no encryption key")


def test_a_ring_that_is_out_of_date(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(ring=new_key(), conf=PRELOAD)
    cluster.write_file("ring.keys", "canaryCANARY")
    with cluster.connect() as session:
        cluster.reload(session)
        severity, text, _ = finding(session, "an older key ring is in force")
        assert severity == "warning" and "canary" not in text
        cluster.set_ring(new_key())
        cluster.reload(session)
        assert not any("older key ring" in row[1] for row in findings(session))


def test_development_mode(make_cluster: MakeCluster) -> None:
    conf = PRELOAD | {"colcrypt.dev_mode": True}
    random, keyed = make_cluster(conf=conf), make_cluster(ring=new_key(), conf=conf)
    with random.connect() as session:
        assert finding(session, "the key is a random one")[0] == "critical"
    with keyed.connect() as session:
        assert finding(session, "colcrypt.dev_mode is on")[0] == "warning"


def test_a_key_in_the_configuration_file(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(conf=PRELOAD | {"colcrypt.key": new_key()})
    with cluster.connect() as session:
        assert finding(session, "the key is in the configuration")[0] == "warning"


def test_a_library_that_is_not_preloaded(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(ring=new_key())
    with cluster.connect() as session:
        assert finding(session, "colcrypt is not in shared_preload")[0] == "warning"
        assert len(findings(session)) == 1


def test_a_server_that_would_start_without_a_key(host: Cluster) -> None:
    host.psql("CREATE EXTENSION IF NOT EXISTS colcrypt")
    host.conf({"colcrypt.require_key": False})
    host.reload()
    try:
        with host.connect() as session:
            assert finding(session, "the server would start without")[0] == "info"
    finally:
        host.conf(PRELOAD)
        host.reload()


@pytest.mark.parametrize("link", [False, True])
def test_a_key_file_in_the_data_directory(
    make_cluster: MakeCluster, link: bool
) -> None:
    cluster = make_cluster(ring=new_key(), conf=PRELOAD, start=False)
    ring = cluster.dir / "ring.keys"
    inside = ring.rename(cluster.datadir / "ring.keys")
    if link:
        ring.symlink_to(inside)
    cluster.conf({"colcrypt.key_file": str(ring if link else inside)})
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    with cluster.connect() as session:
        assert finding(session, "the key file is inside")[0] == "critical"


@pytest.mark.parametrize("preload", [False, True])
def test_a_key_in_the_environment(make_cluster: MakeCluster, preload: bool) -> None:
    key = new_key()
    conf = PRELOAD if preload else {}
    cluster = make_cluster(conf=conf, env={"COLCRYPT_KEY": key})
    with cluster.connect() as session:
        if preload:
            assert findings(session) == []
        else:
            finding(session, "the key is in the environment")


def test_values_under_retired_keys(make_cluster: MakeCluster) -> None:
    old, new = new_key(), new_key()
    cluster = make_cluster(ring=old, conf=PRELOAD)
    with cluster.connect() as session:
        session.execute('CREATE SCHEMA "S s"')
        session.execute('CREATE TABLE "S s"."t\'t" ("a b" encrypted_text, n int)')
        session.execute('INSERT INTO "S s"."t\'t" VALUES (\'x\', 1)')
        session.execute("CREATE TABLE d (secret encrypted_text DEFAULT 'constant')")
        session.execute("CREATE VIEW v AS SELECT 'x'::encrypted_text AS x")
        session.execute("SELECT colcrypt.create_key('pii')")
        session.execute("CREATE TABLE m (secret encrypted_text(pii))")
        session.execute("INSERT INTO m VALUES ('x')")
        assert findings(session) == []
        cluster.set_ring(f"{new},{old}")
        cluster.reload(session)
        severity, text, advice = finding(session, "column .* holds values")
        assert severity == "warning" and '"S s"."t\'t"' in text and "a b" in text
        session.execute(advice.rstrip(".").encode())
        constants = [row for row in findings(session) if "constant" in row[1]]
        assert [row[0] for row in constants] == ["warning"] * 2
        severity, _, advice = finding(session, "1 managed keys are wrapped")
        assert severity == "info"
        session.execute(advice.partition(" before")[0].encode())
        session.execute("ALTER TABLE d ALTER secret SET DEFAULT 'constant'")
        session.execute("CREATE OR REPLACE VIEW v AS SELECT 'x'::encrypted_text AS x")
        assert findings(session) == []
        # A new version of a managed key makes the old one's values stale.
        session.execute("SELECT colcrypt.rotate_key('pii')")
        advice = finding(session, "column secret of (public.)?m holds")[2]
        session.execute(advice.rstrip(".").encode())
        assert findings(session) == []


def test_a_wrapping_key_that_is_missing(make_cluster: MakeCluster) -> None:
    old, new = new_key(), new_key()
    cluster = make_cluster(ring=old, conf=PRELOAD)
    with cluster.connect() as session:
        session.execute("SELECT colcrypt.create_key('pii')")
        cluster.set_ring(new)
        cluster.reload(session)
        severity, text, advice = finding(session, "data key pii .* is wrapped under")
        assert severity == "critical" and "rewrap_keys" in advice
        cluster.set_ring(f"{new},{old}")
        cluster.reload(session)
        session.execute("SELECT colcrypt.rewrap_keys()")
        cluster.set_ring(new)
        cluster.reload(session)
        assert not any("wrapped" in row[1] for row in findings(session))
        session.execute("SELECT colcrypt.shred_key('pii')")
        cluster.set_ring(new_key())
        cluster.reload(session)
        assert not any("wrapped" in row[1] for row in findings(session))


# Plaintext beside the column

BESIDE: dict[str, tuple[str, str, str]] = {
    "expression index": (
        "CREATE FUNCTION f(encrypted_text) RETURNS text IMMUTABLE LANGUAGE plpgsql"
        " AS 'BEGIN RETURN $1::text; END'; CREATE INDEX i ON t (n, f(secret))",
        "index (public.)?i keeps",
        "DROP INDEX i",
    ),
    "expression beside the column itself": (
        "CREATE FUNCTION f(encrypted_text) RETURNS text IMMUTABLE LANGUAGE plpgsql"
        " AS 'BEGIN RETURN $1::text; END'; CREATE INDEX i ON t (secret, f(secret))",
        "index (public.)?i keeps",
        "DROP INDEX i",
    ),
    "statistics": (
        "CREATE STATISTICS st ON (secret::text), n FROM t",
        "statistics st keep",
        "DROP STATISTICS st",
    ),
    "generated column": (
        "CREATE FUNCTION f(encrypted_text) RETURNS text IMMUTABLE LANGUAGE plpgsql"
        " AS 'BEGIN RETURN $1::text; END';"
        " ALTER TABLE t ADD g text GENERATED ALWAYS AS (f(secret)) STORED",
        "column g of (public.)?t is computed",
        "ALTER TABLE t DROP g",
    ),
    "disabled trigger": (
        "SET allow_system_table_mods = on;"
        " DO $$ BEGIN EXECUTE format('ALTER TABLE colcrypt.key DISABLE TRIGGER %I',"
        " (SELECT tgname FROM pg_trigger WHERE tgrelid = 'colcrypt.key'::regclass"
        " AND NOT tgisinternal ORDER BY tgname LIMIT 1)); END $$",
        "trigger .* is disabled",
        "",
    ),
    "dumps in plaintext, of this session": (
        "SET colcrypt.dump_plaintext = on",
        "colcrypt.dump_plaintext is on",
        "RESET colcrypt.dump_plaintext",
    ),
    "ciphertext from everybody": (
        "GRANT EXECUTE ON FUNCTION from_ciphertext(text) TO PUBLIC",
        "everybody may bring ciphertext",
        "REVOKE EXECUTE ON FUNCTION from_ciphertext(text) FROM PUBLIC",
    ),
    "ciphertext from a role": (
        "GRANT EXECUTE ON FUNCTION from_ciphertext(text) TO app",
        "app may bring ciphertext",
        "REVOKE EXECUTE ON FUNCTION from_ciphertext(text) FROM app",
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_beside_a_column(session: psycopg.Connection, name: str) -> None:
    session.execute("CREATE TABLE t (n int, secret encrypted_text)")
    session.execute("INSERT INTO t VALUES (1, 'x')")
    assert findings(session) == []
    cause, text, remedy = BESIDE[name]
    session.execute(cause.encode())
    _, _, advice = finding(session, text)
    remedy = remedy or advice.partition(":")[0]
    session.execute(remedy.encode())
    assert findings(session) == []


def test_a_condition_of_an_index_is_no_expression_of_it(
    session: psycopg.Connection,
) -> None:
    session.execute("CREATE TABLE t (plain text, secret encrypted_text)")
    session.execute("CREATE INDEX ON t (lower(plain)) WHERE secret = 'x'")
    assert findings(session) == []


def test_a_materialized_view_of_plaintext(session: psycopg.Connection) -> None:
    session.execute("CREATE TABLE t (n int, secret encrypted_text)")
    session.execute("CREATE MATERIALIZED VIEW m AS SELECT secret::text FROM t")
    assert finding(session, "materialized view (public.)?m reads")[0] == "info"


# Settings

SETTINGS: dict[str, Any] = {
    "log_statement": "all",
    "log_min_duration_statement": 0,
    "log_min_duration_sample": 10,
    "log_transaction_sample_rate": 0.5,
    "debug_print_parse": "on",
    "debug_print_rewritten": "on",
    "debug_print_plan": "on",
    "log_parameter_max_length_on_error": 10,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_log_values(session: psycopg.Connection, name: str) -> None:
    session.execute(f"SET {name} = '{SETTINGS[name]}'")
    assert finding(session, f"statements are logged.*{name}")[0] == "warning"
    session.execute(f"RESET {name}")
    assert findings(session) == []


@pytest.mark.parametrize(
    "harmless", ["log_statement = ddl", "log_statement = none", "log_duration = on"]
)
def test_settings_that_log_no_values(
    session: psycopg.Connection, harmless: str
) -> None:
    session.execute(f"SET {harmless}")
    assert findings(session) == []


def test_statements_that_fail(session: psycopg.Connection) -> None:
    severity, _, advice = finding(session, "statements that fail are logged")
    assert severity == "info"
    setting = advice.rpartition("set ")[2].rstrip(".")
    session.execute(f"SET {setting}".encode())
    found = session.execute(DOCTOR).fetchall()
    assert not any(row[1].startswith("statements that fail") for row in found)


AUTO_EXPLAIN = "auto_explain.log_min_duration"


def test_auto_explain(session: psycopg.Connection) -> None:
    session.execute(f"LOAD 'auto_explain'; SET {AUTO_EXPLAIN} = 0")
    assert finding(session, f"statements are logged.*{AUTO_EXPLAIN}")[0] == "warning"


STORED = [
    ("ROLE app", "colcrypt.dump_plaintext = on", "role app"),
    ("ROLE app", "colcrypt.dump_plaintext = true", "role app"),
    ("ROLE app", "colcrypt.dump_plaintext = yes", "role app"),
    ("ROLE app", "colcrypt.dump_plaintext = 1", "role app"),
    ("ROLE app", "colcrypt.dump_plaintext = 'ON'", "role app"),
    ("DATABASE doctor", "colcrypt.input = ciphertext", "database doctor"),
    ("DATABASE doctor", "colcrypt.input = 'CipherText'", "database doctor"),
    (
        "ROLE app IN DATABASE doctor",
        "colcrypt.input = ciphertext",
        "role app in database doctor",
    ),
]


@pytest.mark.parametrize(("target", "setting", "where"), STORED)
def test_settings_of_roles_and_databases(
    session: psycopg.Connection, target: str, setting: str, where: str
) -> None:
    name = setting.partition(" ")[0]
    session.execute("LOAD 'colcrypt'")
    session.execute(f"ALTER {target} SET {setting}")
    try:
        severity, text, _ = finding(session, f"{name}=.* is set for")
        assert severity == "warning" and text.endswith(f"is set for {where}")
    finally:
        session.execute(f"ALTER {target} RESET {name}")
    assert findings(session) == []


def test_connections_without_tls(make_cluster: MakeCluster) -> None:
    for addresses, found in (("", False), ("localhost, 127.0.0.1", False), ("*", True)):
        conf = PRELOAD | {"listen_addresses": addresses, "port": 5432}
        cluster = make_cluster(ring=new_key(), conf=conf, start=False)
        cluster.conf({"port": 54321, "unix_socket_directories": str(cluster.dir)})
        cluster.start()
        with cluster.connect(port=54321) as session:
            session.execute("CREATE EXTENSION colcrypt")
            texts = [row[1] for row in findings(session)]
            assert any("without TLS" in text for text in texts) == found
        cluster.stop()


def test_another_version_of_the_objects(session: psycopg.Connection) -> None:
    session.execute(
        "UPDATE pg_extension SET extversion = '0.0' WHERE extname = 'colcrypt'"
    )
    assert finding(session, "the extension's objects are of version 0.0")


def test_core_dumps(make_cluster: MakeCluster) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip("core files are ruled out here")
    for limit in (0, hard):
        resource.setrlimit(resource.RLIMIT_CORE, (limit, hard))
        try:
            cluster = make_cluster(ring=new_key(), conf=PRELOAD)
        finally:
            resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
        with cluster.connect() as session:
            texts = [row[1] for row in session.execute(DOCTOR)]
        pattern = open("/proc/sys/kernel/core_pattern").read()
        expected = limit != 0 or pattern.startswith("|")
        assert any(text.startswith("core dumps are on") for text in texts) == expected


def test_memory_that_could_not_be_locked(make_cluster: MakeCluster) -> None:
    import resource

    if not server_ids():
        pytest.skip("only root may change the limit and back")
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
    try:
        cluster = make_cluster(ring=new_key(), conf=PRELOAD)
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    with cluster.connect() as session:
        session.execute("SELECT encrypt('x')")
        assert finding(session, "memory with keys could not be locked")[0] == "info"


# A standby


def test_it_asks_on_a_standby(make_cluster: MakeCluster) -> None:
    old, new = new_key(), new_key()
    cluster = make_cluster(ring=old, conf=PRELOAD)
    cluster.psql(
        "CREATE TABLE t (secret encrypted_text); INSERT INTO t VALUES ('x');"
        "SELECT colcrypt.create_key('pii')"
    )
    cluster.stop()
    # A server that recovers, and has no other to follow.
    (cluster.datadir / "standby.signal").touch()
    cluster.set_ring(f"{new},{old}")
    cluster.start()
    with cluster.connect() as session:
        assert fetch(session, "SELECT pg_is_in_recovery()")
        texts = [row[1] for row in findings(session)]
        assert any("holds values under" in text for text in texts)
        assert any("managed keys are wrapped" in text for text in texts)

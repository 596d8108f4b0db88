"""A dump holds ciphertext and the wrapped keys, and no plaintext and no key; restored
under the same key ring it is the same database. So is one that pg_upgrade took over."""

from __future__ import annotations

import itertools
import re
import secrets
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import (
    CheckViolation,
    ForeignKeyViolation,
    InsufficientPrivilege,
    ObjectNotInPrerequisiteState,
    UniqueViolation,
)

from harness import (
    BIN,
    SUPERUSER,
    Cluster,
    Database,
    PsqlError,
    fetch,
    key_id,
    new_key,
    run_as_server,
)

# Each plaintext that must not be found anywhere has this in it.
CANARY = "canary"
LONG = CANARY + "x" * 9000
ODD = CANARY + "\\n \\\\ ' \" , {} NULL ü 🔑\n\t\\."
CIPHERTEXT = {"PGOPTIONS": "-c colcrypt.input=ciphertext"}
BY_INDEX = {"options": "-c enable_seqscan=off"}
READER, ODD_READER, OUTSIDER = "reader", "Odd reader", "outsider"
ROLES = (READER, ODD_READER, OUTSIDER)
MODES = ("masked", "ciphertext")

# In "app", which sorts before "colcrypt", rows are restored before the keys.
SCHEMA = """
    SELECT colcrypt.create_key('pii'), colcrypt.create_key('tenant a', 'aes-256-gcm'),
        colcrypt.create_key('tenant b', 'envelope'), colcrypt.create_key('lost');
    SELECT colcrypt.grant_key('pii', 'reader'),
        colcrypt.grant_key('pii', '"Odd reader"'), colcrypt.grant_key('lost', 'gone');
    CREATE SCHEMA app;
    CREATE DOMAIN pin AS encrypted_text CHECK (length(VALUE) > 3);
    CREATE DOMAIN own AS encrypted_text(pii);
    CREATE TYPE pair AS (id int, secret encrypted_text);
    CREATE TABLE account (
        email encrypted_text PRIMARY KEY, phone encrypted_text UNIQUE);
    CREATE TABLE login (id int PRIMARY KEY, email encrypted_text
        REFERENCES account ON DELETE CASCADE);
    CREATE TABLE app.person (
        id int PRIMARY KEY,
        ssn encrypted_text(pii) UNIQUE,
        town encrypted_text DEFAULT 'canary of a default'
            CHECK (town <> 'canary of a condition'),
        pin pin, own own, more encrypted_text[], pair pair);
    CREATE INDEX by_town ON app.person USING hash (town)
        WHERE town <> 'canary of an index';
    CREATE TABLE rented (id int PRIMARY KEY, tenant text, secret encrypted_text);
    CREATE INDEX by_secret ON rented (secret);
    CREATE TABLE odd (id int, secret encrypted_text);
    CREATE TABLE part (id int, secret encrypted_text(pii), PRIMARY KEY (id, secret))
        PARTITION BY RANGE (id);
    CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (5);
    CREATE TABLE app.part2 PARTITION OF part FOR VALUES FROM (5) TO (99);
    CREATE VIEW towns AS SELECT id, town FROM app.person
        WHERE town <> 'canary of a view' OR town IS NULL;
    CREATE MATERIALIZED VIEW kept AS SELECT id, town FROM app.person WITH NO DATA;
"""
ROWS = f"""
    INSERT INTO account SELECT 'canary a' || i, 'canary p' || i
        FROM generate_series(1, 9) i;
    INSERT INTO login SELECT i, 'canary a' || i % 9 + 1 FROM generate_series(1, 20) i;
    INSERT INTO app.person (id, ssn, pin, own, more, pair)
        SELECT i, 'canary s' || i, 'canary', 'canary own', ARRAY['canary', NULL, s],
            (i, 'canary in a row')::pair
        FROM generate_series(1, 9) i, CONCAT('canary', i) s;
    INSERT INTO app.person (id, town) VALUES (10, ''), (11, NULL);
    INSERT INTO part SELECT i, 'canary v1 ' || i FROM generate_series(1, 9, 2) i;
    SELECT colcrypt.rotate_key('pii');
    INSERT INTO part SELECT i, 'canary v2 ' || i FROM generate_series(2, 9, 2) i;
    SET colcrypt.write_key = 'tenant a';
    INSERT INTO rented SELECT i, 'a', 'canary a' || i FROM generate_series(1, 9) i;
    SET colcrypt.write_key = 'tenant b';
    INSERT INTO rented SELECT i, 'b', 'canary b' || i FROM generate_series(10, 19) i;
    SET colcrypt.write_key = 'lost';
    INSERT INTO rented VALUES (50, 'lost', 'canary of nobody');
    RESET colcrypt.write_key;
    SET colcrypt.algorithm = 'fernet';
    INSERT INTO rented VALUES (60, 'fernet', 'canary of fernet');
    RESET colcrypt.algorithm;
    REFRESH MATERIALIZED VIEW kept;
"""
TABLES = {
    "account": "email::text",
    "login": "id",
    "app.person": "id",
    "rented": "id",
    "part": "id",
    "odd": "id",
    "towns": "id",
    "kept": "id",
}
INDEXES = ("account_pkey", "account_phone_key", "app.person_ssn_key", "by_secret")
LOOKUPS = {
    "account WHERE email = 'canary a3'": 1,
    "account WHERE phone = 'canary p3'::text": 1,
    "app.person WHERE ssn = 'canary s3'": 1,
    "app.person WHERE town = 'canary of a default'"
    " AND town <> 'canary of an index'": 9,
    "rented WHERE secret = 'canary a3'": 1,
    "rented WHERE secret = 'canary b13'": 1,
    "part WHERE secret = 'canary v1 3' AND id = 3": 1,
    "login JOIN account USING (email)": 20,
}

numbers = itertools.count(1)


def make_roles(cluster: Cluster) -> None:
    for role in ROLES:
        cluster.psql(f'CREATE ROLE "{role}" LOGIN')
    for mode in MODES:
        cluster.psql(f"CREATE ROLE {mode} LOGIN; GRANT pg_read_all_data TO {mode}")
        cluster.psql(f"ALTER ROLE {mode} SET colcrypt.access = '{mode}'")


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Cluster]:
    """The server that is dumped."""
    cluster = Cluster(base, template, ring=new_key())
    cluster.start()
    make_roles(cluster)
    yield cluster
    cluster.destroy()


@pytest.fixture(scope="module")
def elsewhere(host: Cluster, base: Path, template: Path) -> Iterator[Cluster]:
    """Another server, with the same key ring."""
    ring = (host.dir / "ring.keys").read_text()
    cluster = Cluster(base, template, ring=ring)
    cluster.conf(log_statement="all")
    cluster.start()
    make_roles(cluster)
    # So that roles' numbers are others.
    cluster.psql("ALTER ROLE outsider RENAME TO other; CREATE ROLE outsider LOGIN")
    yield cluster
    cluster.destroy()


@contextmanager
def new_database(cluster: Cluster, *setup: str) -> Iterator[Database]:
    name = f"d{next(numbers)}"
    cluster.psql(f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        database = Database(cluster, name)
        for sql in setup:
            database.psql(sql)
        yield database
    finally:
        cluster.psql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def source(host: Cluster) -> Iterator[Database]:
    host.psql("CREATE ROLE gone")
    with new_database(host, "CREATE EXTENSION colcrypt", SCHEMA, ROWS) as source:
        with source.connect() as session:
            session.execute(
                "INSERT INTO odd VALUES (1, %s), (2, %s), (3, '')", [LONG, ODD]
            )
        host.psql("DROP ROLE gone")
        yield source


@pytest.fixture
def small(host: Cluster) -> Iterator[Database]:
    """A database of a test's own, to dump."""
    with new_database(host, "CREATE EXTENSION colcrypt") as small:
        yield small


@pytest.fixture
def target(elsewhere: Cluster) -> Iterator[Database]:
    """An empty database."""
    with new_database(elsewhere) as target:
        yield target


def dump(source: Database, *options: str, **more: object) -> str:
    return source.cluster.run("pg_dump", *options, db=source.name, **more)


def comparable(text: str) -> str:
    """A dump without the word that differs from dump to dump."""
    return re.sub(r"(?m)^\\(un)?restrict .*\n", "", text)


def archive(source: Database, path: Path, *options: str) -> Path:
    dump(source, "-f", str(path), *options)
    return path


def pg_restore(target: Database, path: Path, *options: str, **more: object) -> str:
    return target.cluster.run(
        "pg_restore", "-d", target.name, *options, str(path), **more
    )


def contents(database: Database) -> dict[str, str]:
    return {
        table: database.psql(f"SELECT * FROM {table} ORDER BY {order}")
        for table, order in TABLES.items()
    }


def stored(database: Database) -> dict[str, str]:
    as_pg_dump = {"PGAPPNAME": "pg_dump"}
    return {
        table: database.psql(f"SELECT * FROM {table} ORDER BY id", env=as_pg_dump)
        for table in ("login", "app.person", "rented", "part", "odd")
    }


def assert_works(database: Database) -> None:
    """Lookups, constraints and grants are in force, and writing goes on."""
    database.psql("CREATE EXTENSION IF NOT EXISTS amcheck")
    for index in INDEXES:
        database.psql(f"SELECT bt_index_parent_check('{index}', true, true)")
    with database.connect(**BY_INDEX) as session:
        for found, count in LOOKUPS.items():
            sql = f"SELECT count(*) FROM {found}"
            plan = session.execute("EXPLAIN " + sql).fetchall()
            assert any("Index" in line or "Bitmap" in line for (line,) in plan), plan
            assert fetch(session, sql) == count, found
        for sql, error in {
            "INSERT INTO account VALUES ('canary a3', 'x')": UniqueViolation,
            "INSERT INTO account VALUES ('x', 'canary p3')": UniqueViolation,
            "INSERT INTO app.person (id, ssn)"
            " VALUES (90, 'canary s3')": UniqueViolation,
            "INSERT INTO part VALUES (3, 'canary v1 3')": UniqueViolation,
            "INSERT INTO login VALUES (90, 'nobody')": ForeignKeyViolation,
            "INSERT INTO app.person (id, pin) VALUES (90, 'abc')": CheckViolation,
            "INSERT INTO app.person (id, town)"
            " VALUES (90, 'canary of a condition')": CheckViolation,
        }.items():
            with pytest.raises(error):
                session.execute(sql)
        with session.transaction(force_rollback=True):
            session.execute("DELETE FROM account WHERE email = 'canary a3'")
            gone = "SELECT count(*) FROM login WHERE email = 'canary a3'"
            assert fetch(session, gone) == 0
            session.execute("INSERT INTO app.person (id, ssn) VALUES (91, 'new')")
            new = "SELECT town FROM app.person WHERE ssn = 'new'"
            assert fetch(session, new) == "canary of a default"
            session.execute("SET colcrypt.write_key = 'tenant a'")
            session.execute("INSERT INTO rented VALUES (92, 'a', 'x')")
    assert_grants(database)


def assert_grants(database: Database) -> None:
    database.psql(
        "GRANT USAGE ON SCHEMA app TO PUBLIC;"
        "GRANT SELECT ON ALL TABLES IN SCHEMA app, public TO PUBLIC"
    )
    for role in ROLES:
        with database.connect(user=role) as session:
            granted = role != OUTSIDER
            ssn = fetch(session, "SELECT ssn FROM app.person WHERE id = 3")
            assert ssn == ("canary s3" if granted else "********")
            assert fetch(session, "SELECT secret FROM rented WHERE id = 3")
            lost = "SELECT secret FROM rented WHERE id = 50"
            assert fetch(session, lost) == "********"


def assert_sealed(text: str | bytes, ring: str) -> None:
    if isinstance(text, str):
        text = text.encode()
    assert b"colcrypt:v1:" in text or b"PGDMP" in text
    assert CANARY.encode() not in text and ring.encode() not in text


# There and back

RestoreBy = Callable[[Database, Database, Path], object]


def by_psql(*options: str) -> RestoreBy:
    def restore(source: Database, target: Database, path: Path) -> None:
        archive(source, path, *options)
        target.psql(path.read_text(), env=CIPHERTEXT)

    return restore


def by_pg_restore(dump_options: list[str], *options: str) -> RestoreBy:
    def restore(source: Database, target: Database, path: Path) -> None:
        # Without compression, so that plaintext would be found.
        archive(source, path, "-Z0", *dump_options)
        pg_restore(target, path, "--exit-on-error", *options)

    return restore


def keys_first(target: Database, path: Path, *options: str) -> None:
    """As documented. In one go, rows of a schema that sorts before "colcrypt" come
    before the keys; and with several jobs, everything may."""
    target.psql("CREATE EXTENSION colcrypt")
    for part in (["--data-only", "-n", "colcrypt"], ["-N", "colcrypt", *options]):
        pg_restore(target, path, "--exit-on-error", *part)


def by_jobs(*dump_options: str) -> RestoreBy:
    def restore(source: Database, target: Database, path: Path) -> None:
        archive(source, path, "-Z0", *dump_options)
        keys_first(target, path, "-j2")

    return restore


WAYS: dict[str, RestoreBy] = {
    "plain": by_psql(),
    "inserts": by_psql("--inserts"),
    "column inserts": by_psql("--column-inserts"),
    "session authorization": by_psql("--use-set-session-authorization"),
    "custom": by_pg_restore(["-Fc"]),
    "custom in one transaction": by_pg_restore(["-Fc"], "-1"),
    "custom with inserts": by_pg_restore(["-Fc", "--inserts"]),
    "custom, restored by two jobs": by_jobs("-Fc"),
    "session authorization, pg_restore": by_pg_restore(
        ["-Fc"], "--use-set-session-authorization"
    ),
    "tar": by_pg_restore(["-Ft"]),
    "directory": by_pg_restore(["-Fd", "-j2"]),
    "directory, restored by two jobs": by_jobs("-Fd", "-j2"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_restored_database_is_the_same(
    source: Database, target: Database, tmp_path: Path, way: RestoreBy
) -> None:
    path = tmp_path / "dump"
    way(source, target, path)
    ring = (source.cluster.dir / "ring.keys").read_text()
    files = [*path.rglob("*")] if path.is_dir() else [path]
    assert_sealed(b"".join(file.read_bytes() for file in files), ring)
    assert contents(target) == contents(source)
    assert stored(target) == stored(source), "a value was sealed anew"
    # As it is now, before it is used.
    again = comparable(dump(target))
    assert again == comparable(dump(source))
    with new_database(target.cluster) as third:
        third.psql(again, env=CIPHERTEXT)
        assert comparable(dump(third)) == again
    assert_works(target)


def test_a_compressed_dump_is_sealed_before_it_is_compressed(
    source: Database, target: Database, tmp_path: Path
) -> None:
    path = archive(source, tmp_path / "dump", "-Fc")
    text = source.cluster.run("pg_restore", "-f", "-", str(path))
    assert_sealed(text, (source.cluster.dir / "ring.keys").read_text())
    target.psql(text, env=CIPHERTEXT)
    assert contents(target) == contents(source)


def test_a_dump_of_all_databases_brings_roles_and_grants_along(
    source: Database, base: Path, template: Path
) -> None:
    ring = (source.cluster.dir / "ring.keys").read_text()
    # The other databases have no colcrypt.
    whole = source.cluster.run("pg_dumpall")
    assert_sealed(whole, ring)
    target = Cluster(base, template, ring=ring)
    try:
        target.start()
        whole = whole.replace(f"CREATE ROLE {SUPERUSER};\n", "")
        target.psql(whole, env=CIPHERTEXT)
        restored = Database(target, source.name)
        assert contents(restored) == contents(source)
        assert_works(restored)
        with restored.connect(user="masked") as session:
            assert fetch(session, "SELECT email FROM account LIMIT 1") == "********"
    finally:
        target.destroy()


# Restored without being told


def test_psql_that_was_not_told_refuses_the_dump_with_a_hint(
    source: Database, target: Database
) -> None:
    text = dump(source)
    error = target.psql_error(text)
    assert "ERROR:  22P02" in error and "reserved prefix" in error
    assert "HINT" in error and "colcrypt.input = 'ciphertext'" in error
    assert CANARY not in error


@pytest.mark.parametrize("options", [[], ["--inserts"]])
def test_psql_that_goes_on_after_errors_loads_nothing_wrong(
    source: Database, target: Database, options: list[str]
) -> None:
    errors = target.psql(dump(source, *options), check=False)
    assert errors.count("reserved prefix") > 5
    for table in ("account", "login", "part"):
        assert target.psql(f"SELECT count(*) FROM {table}") == "0"
    # Only what holds no encrypted value.
    loaded = "SELECT count(*), count(secret) FROM rented"
    assert target.psql(loaded) == "0|0"
    # A table with an encrypted default or condition is not made without it.
    assert target.psql("SELECT to_regclass('app.person') IS NULL") == "t"
    # The wrapped keys are there, so that a second try gives the rest.
    keys = "SELECT count(*) FROM colcrypt.key WHERE kind <> 'ring'"
    assert target.psql(keys) == source.psql(keys)


def test_ciphertext_mode_refuses_plaintext(target: Database) -> None:
    target.psql("CREATE EXTENSION colcrypt; CREATE TABLE t (secret encrypted_text)")
    error = target.psql_error("COPY t FROM stdin;\nplain\n\\.\n", env=CIPHERTEXT)
    assert "ERROR:  22P02" in error and "not ciphertext" in error
    assert target.psql("SELECT count(*) FROM t") == "0"


def test_pg_restore_by_no_superuser_accepts_no_ciphertext(
    small: Database, target: Database, tmp_path: Path
) -> None:
    """It would have the database decrypt a stolen dump for an application."""
    small.psql("CREATE TABLE t (secret encrypted_text)")
    small.psql("INSERT INTO t VALUES ('canary')")
    path = archive(small, tmp_path / "dump", "-Fc", "-t", "t")
    target.psql("CREATE EXTENSION colcrypt; CREATE TABLE t (secret encrypted_text)")
    target.psql("GRANT ALL ON t TO outsider")
    with pytest.raises(PsqlError, match="reserved prefix"):
        pg_restore(target, path, "--data-only", "-t", "t", user=OUTSIDER)
    assert target.psql("SELECT count(*) FROM t") == "0"


def test_a_definer_function_does_not_make_its_caller_a_superuser(
    small: Database,
) -> None:
    small.psql(
        "CREATE TABLE t (secret encrypted_text);"
        "CREATE FUNCTION keep(value text) RETURNS void SECURITY DEFINER LANGUAGE sql"
        " AS 'INSERT INTO t VALUES (value)';"
        "INSERT INTO t VALUES ('canary')"
    )
    stolen = small.psql("SELECT ciphertext(secret) FROM t")
    with small.connect(user=OUTSIDER, application_name="pg_restore") as session:
        session.execute("SELECT keep('plain')")
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            session.execute("SELECT keep(%s)", [stolen])
    assert small.psql("SELECT count(*) FROM t") == "2"


# Who dumps


def test_a_masked_role_cannot_make_a_dump(source: Database, tmp_path: Path) -> None:
    """A file full of masks would be taken for a backup."""
    path = tmp_path / "dump"
    with pytest.raises(PsqlError, match="a dump would hold masks") as refused:
        archive_by(source, path, "masked")
    assert "not masked" in str(refused.value), "no hint"
    assert "********" not in path.read_text()
    with source.connect(user="masked", application_name="pg_dump") as session:
        with pytest.raises(InsufficientPrivilege):
            session.execute("SELECT email FROM account")


def archive_by(source: Database, path: Path, user: str, **more: object) -> None:
    options = ["-f", str(path), "-t", "account", "-t", "part", "-t", "app.part2"]
    dump(source, *options, user=user, **more)


@pytest.mark.parametrize("user", ["ciphertext", "ungranted"])
def test_a_dump_by_who_may_not_read_holds_ciphertext(
    source: Database, tmp_path: Path, user: str
) -> None:
    paths = [tmp_path / "by owner", tmp_path / "by other"]
    if user == "ungranted":
        source.psql("GRANT pg_read_all_data TO outsider")
        user = OUTSIDER
    try:
        for path, who in zip(paths, (SUPERUSER, user)):
            archive_by(source, path, who)
    finally:
        source.psql("REVOKE pg_read_all_data FROM outsider")
    by_owner, by_other = (comparable(path.read_text()) for path in paths)
    assert by_owner == by_other
    assert CANARY not in by_other and "********" not in by_other


PLAINTEXT = {"PGOPTIONS": "-c colcrypt.dump_plaintext=on"}


def test_a_dump_in_plaintext_is_sealed_anew(
    small: Database, target: Database, tmp_path: Path
) -> None:
    small.psql(
        "SELECT colcrypt.create_key('pii');"
        "CREATE TABLE t"
        " (id int, secret encrypted_text UNIQUE, ssn encrypted_text(pii));"
        "INSERT INTO t SELECT i, 'canary' || i, 'canary' FROM generate_series(1, 9) i"
    )
    path = tmp_path / "dump"
    dump(small, "-Fc", "-Z0", "-f", str(path), env=PLAINTEXT)
    assert CANARY in path.read_bytes().decode(errors="replace")
    pg_restore(target, path, "--exit-on-error")
    query = "SELECT * FROM t ORDER BY id"
    assert target.psql(query) == small.psql(query)
    sealed = "SELECT ciphertext(secret), ciphertext(ssn) FROM t WHERE id = 3"
    assert target.psql(sealed) != small.psql(sealed)
    usage = "SELECT key_id, rows FROM colcrypt.key_usage('t', 'ssn')"
    assert target.psql(usage) == small.psql(usage)
    found = "SELECT id FROM t WHERE secret = 'canary3'"
    assert target.psql("SET enable_seqscan = off; " + found) == "3"


@pytest.mark.parametrize("why", ["masked", "no grant", "placeholder"])
def test_a_dump_in_plaintext_holds_no_masks_either(
    small: Database, tmp_path: Path, why: str
) -> None:
    small.psql(
        "SELECT colcrypt.create_key('pii'), colcrypt.grant_key('pii', 'reader');"
        "CREATE TABLE t (secret encrypted_text(pii));"
        "INSERT INTO t VALUES ('canary'); GRANT SELECT ON t TO PUBLIC"
    )
    options = PLAINTEXT["PGOPTIONS"]
    if why == "masked":
        options += " -c colcrypt.access=masked"
    elif why == "placeholder":
        small.psql("SELECT colcrypt.shred_key('pii')")
        options += " -c colcrypt.undecryptable=placeholder"
    small.psql("GRANT SET ON PARAMETER colcrypt.dump_plaintext TO outsider")
    user = OUTSIDER if why == "no grant" else SUPERUSER
    try:
        with pytest.raises(PsqlError, match="mask|permission|destroyed"):
            dump(small, "-t", "t", user=user, env={"PGOPTIONS": options})
    finally:
        small.psql("REVOKE SET ON PARAMETER colcrypt.dump_plaintext FROM outsider")


def test_a_pg_dump_under_another_name_is_not_known(source: Database) -> None:
    """Documented: it is known by its application_name."""
    text = dump(source, "-t", "account", env={"PGAPPNAME": "backup"})
    assert "canary a3" in text and "colcrypt:v1:" not in text


# Grants


def test_the_number_of_a_dropped_role_is_nobody_s_grant(source: Database) -> None:
    """It may be another role's where the dump is restored."""
    text = dump(source)
    (grants,) = re.findall(r"(?s)COPY colcrypt\.key_grant .*?\n(.*?)\\\.\n", text)
    # A row with "-" keeps a key closed.
    rows = {row for row in grants.splitlines() if not row.endswith("\t-")}
    assert rows == {"pii\treader", 'pii\t"Odd reader"'}


def test_a_key_stays_closed_where_its_roles_do_not_exist(
    small: Database, target: Database, tmp_path: Path
) -> None:
    role = f"only_here_{secrets.token_hex(4)}"
    small.cluster.psql(f"CREATE ROLE {role}")
    small.psql(
        f"SELECT colcrypt.create_key('pii'), colcrypt.grant_key('pii', '{role}');"
        "CREATE TABLE t (secret encrypted_text(pii)); GRANT SELECT ON t TO PUBLIC;"
        "INSERT INTO t VALUES ('canary')"
    )
    path = archive(small, tmp_path / "dump", "-Fc")
    small.psql(f"DROP ROLE {role}")
    pg_restore(target, path, check=False)
    assert target.psql("SELECT secret FROM t", user=OUTSIDER) == "********"


# Under another ring


@pytest.fixture
def foreign(base: Path, template: Path) -> Iterator[Database]:
    """An empty database of a server with another key ring."""
    cluster = Cluster(base, template, ring=new_key())
    cluster.start()
    make_roles(cluster)
    yield Database(cluster, "postgres")
    cluster.destroy()


def test_under_another_ring_values_say_what_they_need_and_nothing_is_written(
    source: Database, foreign: Database, tmp_path: Path
) -> None:
    cluster = foreign.cluster
    ring = (source.cluster.dir / "ring.keys").read_text()
    other = (cluster.dir / "ring.keys").read_text()
    path = archive(source, tmp_path / "dump", "-Fc")
    # What needs no key is restored; indexes need the index key.
    errors = pg_restore(foreign, path, check=False)
    assert "which is not in the key ring" in errors and CANARY not in errors
    assert stored(foreign)["rented"] == stored(source)["rented"]
    assert foreign.psql("SELECT count(*) FROM app.person") == "0"
    with foreign.connect() as session:
        for query in (
            "SELECT secret FROM rented WHERE id = 3",
            "SELECT secret FROM rented WHERE id = 60",
            "SELECT secret FROM part",
            "INSERT INTO rented VALUES (99, 'x', 'x')",
            "SELECT colcrypt.create_key('new')",
        ):
            with pytest.raises(ObjectNotInPrerequisiteState) as refused:
                session.execute(query)
            diag = refused.value.diag
            assert key_id(ring) in f"{diag.message_primary} {diag.message_detail}"
        assert fetch(session, "SELECT colcrypt.accept_key()") == key_id(other)
        session.execute("INSERT INTO rented VALUES (99, 'x', 'x')")
        assert fetch(session, "SELECT secret FROM rented WHERE id = 99") == "x"
        # With both, everything reads.
        cluster.set_ring(f"{other},{ring}")
        cluster.reload(session)
        session.execute("DELETE FROM rented WHERE id = 99")
    # app.person has a condition to check.
    pg_restore(foreign, path, "--data-only", "-t", "person", "--exit-on-error")
    pg_restore(foreign, path, "--section=post-data", check=False)
    assert contents(foreign) == contents(source)
    assert foreign.psql("SELECT colcrypt.rewrap_keys() > 3") == "t"
    assert_works(foreign)


# What is restored before the keys

EARLY = {
    "partitions by hash": (
        "CREATE TABLE app.t (secret encrypted_text) PARTITION BY HASH (secret);"
        "CREATE TABLE app.t0 PARTITION OF app.t"
        " FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE app.t1 PARTITION OF app.t"
        " FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
    ),
    "partitions by list": (
        "CREATE TABLE app.t (secret encrypted_text) PARTITION BY LIST (secret);"
        "CREATE TABLE app.t0 PARTITION OF app.t FOR VALUES IN ('canary1', 'canary3');"
        "CREATE TABLE app.t1 PARTITION OF app.t DEFAULT;"
    ),
    "condition": "CREATE TABLE app.t (secret encrypted_text(pii)"
    " CHECK (length(secret) > 3));",
    "managed key": "CREATE TABLE app.t (secret encrypted_text(pii));",
}


def make_early(small: Database, sql: str) -> None:
    small.psql(
        "SELECT colcrypt.create_key('pii'), colcrypt.create_index_key();"
        "CREATE SCHEMA app;" + sql + "INSERT INTO app.t SELECT 'canary' || i"
        " FROM generate_series(1, 9) i"
    )


KEYS = "TABLE colcrypt.key ORDER BY key_id"


def assert_early(small: Database, target: Database) -> None:
    assert target.psql(KEYS) == small.psql(KEYS)
    rows = "SELECT secret FROM app.t ORDER BY secret::text"
    assert target.psql(rows) == small.psql(rows)
    found = "SELECT count(*) FROM app.t WHERE secret = 'canary3'"
    assert target.psql(found) == "1"


@pytest.mark.parametrize("options", [[], ["--inserts"]], ids=["copy", "inserts"])
def test_rows_that_come_before_their_key_are_restored(
    small: Database, target: Database, tmp_path: Path, options: list[str]
) -> None:
    make_early(small, EARLY["managed key"])
    path = archive(small, tmp_path / "dump", "-Fc", *options)
    pg_restore(target, path, "--exit-on-error")
    assert_early(small, target)


@pytest.mark.parametrize("sql", EARLY.values(), ids=EARLY)
@pytest.mark.parametrize("options", [[], ["--inserts"]], ids=["copy", "inserts"])
def test_what_needs_the_keys_is_restored_after_them(
    small: Database, target: Database, tmp_path: Path, sql: str, options: list[str]
) -> None:
    make_early(small, sql)
    path = archive(small, tmp_path / "dump", "-Fc", *options)
    # In one go, it is not restored, but it does no harm to the keys.
    errors = pg_restore(target, path, check=False)
    assert target.psql(KEYS) == small.psql(KEYS), errors
    target.psql("DROP SCHEMA app CASCADE")
    pg_restore(target, path, "-N", "colcrypt", "--exit-on-error")
    assert_early(small, target)
    with new_database(target.cluster) as third:
        keys_first(third, path, "-j2")
        assert_early(small, third)


def test_a_plaintext_dump_of_an_early_schema_keeps_the_keys(
    small: Database, target: Database, tmp_path: Path
) -> None:
    """Sealing it remembers the ring's key before the dump's rows bring it."""
    small.psql(
        "SELECT colcrypt.create_key('pii'); CREATE SCHEMA app;"
        "CREATE TABLE app.t (secret encrypted_text); INSERT INTO app.t VALUES ('x');"
        "CREATE TABLE t (secret encrypted_text(pii)); INSERT INTO t VALUES ('y')"
    )
    path = tmp_path / "dump"
    dump(small, "-Fc", "-f", str(path), env=PLAINTEXT)
    errors = pg_restore(target, path, check=False)
    keys = "SELECT key_id, kind FROM colcrypt.key ORDER BY key_id"
    assert target.psql(keys) == small.psql(keys), errors
    assert target.psql("SELECT * FROM app.t, t") == "x|y"


def test_data_are_restored_into_a_database_that_was_used(
    small: Database, target: Database, tmp_path: Path
) -> None:
    """That remembers the ring's key, as the dump does."""
    small.psql(
        "SELECT colcrypt.create_key('pii');"
        "CREATE TABLE t (secret encrypted_text(pii)); INSERT INTO t VALUES ('y')"
    )
    path = archive(small, tmp_path / "dump", "-Fc")
    target.psql("CREATE EXTENSION colcrypt; CREATE TABLE u (s encrypted_text)")
    target.psql("INSERT INTO u VALUES ('x')")
    pg_restore(target, path, "--exit-on-error", "-n", "public", "-n", "colcrypt")
    assert target.psql("SELECT * FROM t, u") == "y|x"


@pytest.mark.parametrize("disable", [[], ["--disable-triggers"]])
def test_keys_restored_behind_a_session_s_back_are_known_to_it(
    small: Database, target: Database, tmp_path: Path, disable: list[str]
) -> None:
    small.psql(
        "SELECT colcrypt.create_key('pii');"
        "CREATE TABLE t (secret encrypted_text(pii)); INSERT INTO t VALUES ('y')"
    )
    path = archive(small, tmp_path / "dump", "-Fc")
    pg_restore(target, path, "--section=pre-data")
    with target.connect() as session:
        with pytest.raises(psycopg.errors.UndefinedObject):
            session.execute("INSERT INTO t VALUES ('x')")
        pg_restore(target, path, "--data-only", "--exit-on-error", *disable)
        assert fetch(session, "SELECT secret FROM t") == "y"
        session.execute("INSERT INTO t VALUES ('x')")


# pg_upgrade


@contextmanager
def upgrade(
    source: Cluster, base: Path, template: Path, conf: dict[str, str] | None = None
) -> Iterator[tuple[Cluster, Callable[[], Cluster]]]:
    """A server, and what upgrades it to another one, which is then started."""
    ring = (source.dir / "ring.keys").read_text()
    old, new = (Cluster(base, template, ring=ring) for _ in range(2))

    def run() -> Cluster:
        old.stop()
        pg_upgrade(old, new)
        new.start()
        return new

    try:
        for each in (old, new):
            each.conf(conf)
        old.start()
        yield old, run
    finally:
        new.destroy()
        old.destroy()


def pg_upgrade(old: Cluster, new: Cluster) -> None:
    bins = ["-b", str(BIN), "-B", str(BIN), "-U", SUPERUSER, "-s", str(new.dir)]
    data = ["-d", str(old.datadir), "-D", str(new.datadir)]
    command = shlex.join([str(BIN / "pg_upgrade"), *bins, *data])
    try:
        # It writes into the folder that it runs in.
        run_as_server(["sh", "-c", f"cd {shlex.quote(str(new.dir))} && {command}"])
    except PsqlError:
        output = new.datadir / "pg_upgrade_output.d"
        logs = "".join(log.read_text() for log in output.rglob("*.log"))
        errors = re.findall(r".*(?:ERROR|FATAL|HINT|STATEMENT):.*(?:\n\t.*)*", logs)
        raise AssertionError("pg_upgrade failed:\n" + "\n".join(errors)) from None


CATALOG = (
    "SELECT oid, typname, typtypmod FROM pg_type WHERE oid > 16383 ORDER BY oid",
    "SELECT oid, relname, relfilenode FROM pg_class WHERE oid > 16383"
    " AND relnamespace <> 'pg_toast'::regnamespace ORDER BY oid",
    "SELECT attrelid, attname, atttypmod FROM pg_attribute"
    " WHERE atttypid = 'encrypted_text'::regtype ORDER BY 1, 2",
    "SELECT xmin, ctid, * FROM colcrypt.key ORDER BY key_id",
    "SELECT xmin, ctid, role::oid, * FROM colcrypt.key_grant ORDER BY name, role::oid",
)


@pytest.mark.parametrize("preload", ["shared", "session", "no"])
def test_pg_upgrade_takes_everything_over(
    source: Database, base: Path, template: Path, preload: str
) -> None:
    conf = {f"{preload}_preload_libraries": "colcrypt"} if preload != "no" else None
    with upgrade(source.cluster, base, template, conf) as (old, run):
        make_roles(old)
        old.psql(f"CREATE DATABASE {source.name}")
        database = Database(old, source.name)
        database.psql(dump(source), env=CIPHERTEXT)
        kept = [database.psql(sql) for sql in CATALOG]
        schema = comparable(dump(database))
        values, texts = stored(database), contents(database)
        new = run()
        database = Database(new, source.name)
        assert [database.psql(sql) for sql in CATALOG] == kept
        assert (stored(database), contents(database)) == (values, texts)
        assert comparable(dump(database)) == schema
        assert CANARY not in new.log()
        assert_works(database)


# In "aaa", what holds sealed constants is made before the table of keys is.
UPGRADED = {
    "domain": "CREATE DOMAIN aaa.d AS encrypted_text DEFAULT 'canary of a domain'"
    " CHECK (VALUE <> 'canary of a condition');"
    "CREATE TABLE aaa.t (id int, secret aaa.d); INSERT INTO aaa.t VALUES (1)",
    "default": "CREATE TABLE aaa.t (id int, secret encrypted_text DEFAULT 'canary'"
    " CHECK (secret <> 'canary of a condition')); INSERT INTO aaa.t VALUES (1)",
    "view": "CREATE TABLE aaa.u (secret encrypted_text);"
    "INSERT INTO aaa.u VALUES ('canary');"
    "CREATE VIEW aaa.t AS SELECT 1 AS id, secret FROM aaa.u WHERE secret = 'canary'",
    "modifier": "CREATE TABLE aaa.t (id int, secret encrypted_text(early));"
    "CREATE INDEX ON aaa.t (secret) WHERE secret <> 'canary of an index';"
    "INSERT INTO aaa.t VALUES (1, 'canary')",
    "partitions by hash": "CREATE TABLE aaa.t (id int, secret encrypted_text)"
    " PARTITION BY HASH (secret);"
    "CREATE TABLE aaa.t0 PARTITION OF aaa.t FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
    "CREATE TABLE aaa.t1 PARTITION OF aaa.t FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
    "INSERT INTO aaa.t SELECT i, 'canary' || i FROM generate_series(1, 9) i",
    "partitions by list": "CREATE TABLE aaa.t (id int, secret encrypted_text)"
    " PARTITION BY LIST (secret);"
    "CREATE TABLE aaa.t0 PARTITION OF aaa.t FOR VALUES IN ('canary1', 'canary2');"
    "CREATE TABLE aaa.t1 PARTITION OF aaa.t DEFAULT;"
    "INSERT INTO aaa.t SELECT i, 'canary' || i FROM generate_series(1, 9) i",
}


@pytest.mark.parametrize("sql", UPGRADED.values(), ids=UPGRADED)
def test_pg_upgrade_needs_no_key_yet(
    host: Cluster, base: Path, template: Path, sql: str
) -> None:
    with upgrade(host, base, template) as (old, run):
        old.psql(
            "CREATE EXTENSION colcrypt; SELECT colcrypt.create_key('early');"
            "CREATE SCHEMA aaa; SET colcrypt.write_key = 'early';" + sql
        )
        kept = [old.psql(query) for query in CATALOG]
        rows = old.psql("TABLE aaa.t")
        assert CANARY in rows
        new = run()
        assert [new.psql(query) for query in CATALOG] == kept
        assert new.psql("TABLE aaa.t") == rows
        if "PARTITION" in sql:
            new.psql("INSERT INTO aaa.t SELECT -id, secret FROM aaa.t")
            found = "SELECT id FROM aaa.t WHERE secret = 'canary3' ORDER BY id"
            assert new.psql(found) == "-3\n3"

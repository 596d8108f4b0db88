"""Logical replication carries ciphertext and the wrapped keys, and no plaintext; what
arrives reads and is found. A standby reads, writes nothing, and learns of changes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege, ObjectNotInPrerequisiteState

from conftest import MakeCluster
from harness import (
    BIN,
    PORT,
    SUPERUSER,
    Cluster,
    Database,
    fetch,
    key_id,
    new_key,
    run_as_server,
    wait_until,
)

# Each plaintext that must not be found in streams and files has this in it.
CANARY = "canary"
LONG = CANARY + "x" * 9000
BY_INDEX = {"options": "-c enable_seqscan=off"}
LOGICAL = {
    "wal_level": "logical",
    "max_worker_processes": 30,
    "max_logical_replication_workers": 20,
    "max_sync_workers_per_subscription": 4,
    "wal_retrieve_retry_interval": "100ms",
    "log_replication_commands": True,
    "autovacuum": False,
}
# What a server remembers of its key ring is its own.
PUBLISH_KEYS = "CREATE PUBLICATION keys FOR TABLE colcrypt.key WHERE (kind <> 'ring')"
TABLES = """
    CREATE TABLE by_id (id int PRIMARY KEY, note text, secret encrypted_text UNIQUE,
        ssn encrypted_text(pii), long encrypted_text);
    CREATE INDEX by_ssn ON by_id USING hash (ssn);
    CREATE TABLE by_secret (secret encrypted_text PRIMARY KEY, note text);
    CREATE TABLE by_row (id int, secret encrypted_text);
    ALTER TABLE by_row REPLICA IDENTITY FULL;
"""
KEYS = """
    SELECT colcrypt.create_key('pii'), colcrypt.create_key('tenant', 'envelope'),
        colcrypt.create_index_key();
"""
ROWS = f"""
    INSERT INTO by_id SELECT i, 'note', 'canary' || i, 'canary s' || i, '{LONG}'
        FROM generate_series(1, 9) i;
    INSERT INTO by_secret SELECT 'canary' || i, 'note' FROM generate_series(1, 9) i;
    INSERT INTO by_row SELECT i, 'canary' || i % 3 FROM generate_series(1, 9) i;
"""
CHANGES = f"""
    SET colcrypt.write_key = 'tenant';
    INSERT INTO by_id VALUES (10, 'new', 'canary10', 'canary s10', NULL);
    INSERT INTO by_secret VALUES ('canary10', 'new');
    INSERT INTO by_row VALUES (10, NULL), (11, 'canary11');
    RESET colcrypt.write_key;
    UPDATE by_id SET secret = 'canary of an update' WHERE id = 1;
    UPDATE by_id SET note = 'only this' WHERE id = 2;
    UPDATE by_id SET id = 30 WHERE secret = 'canary3';
    UPDATE by_secret SET note = 'changed' WHERE secret = 'canary1';
    UPDATE by_secret SET secret = 'canary of another' WHERE secret = 'canary2';
    UPDATE by_row SET secret = 'canary of an update' WHERE id = 1;
    DELETE FROM by_id WHERE ssn = 'canary s4';
    DELETE FROM by_secret WHERE secret = 'canary3';
    DELETE FROM by_row WHERE id IN (2, 10);
"""
WRAPPED = "SELECT encode(wrapped, 'hex') FROM colcrypt.key WHERE name = 'pii'"
ORDERS = {"by_id": "id", "by_secret": "secret::text", "by_row": "id"}

numbers = itertools.count(1)


def make_server(base: Path, template: Path, ring: str | None) -> Cluster:
    cluster = Cluster(base, template, ring=ring)
    cluster.conf(LOGICAL)
    cluster.start()
    return cluster


@pytest.fixture(scope="module")
def ring() -> str:
    return new_key()


@pytest.fixture(scope="module")
def publishing(base: Path, template: Path, ring: str) -> Iterator[Cluster]:
    cluster = make_server(base, template, ring)
    yield cluster
    cluster.destroy()


@pytest.fixture(scope="module")
def subscribing(base: Path, template: Path, ring: str) -> Iterator[Cluster]:
    cluster = make_server(base, template, ring)
    # So that roles' numbers differ.
    cluster.psql("CREATE ROLE another")
    yield cluster
    cluster.destroy()


@pytest.fixture
def publisher(publishing: Cluster) -> Iterator[Database]:
    name = f"p{next(numbers)}"
    publishing.psql(f"CREATE DATABASE {name}")
    database = Database(publishing, name)
    database.psql("CREATE EXTENSION colcrypt")
    yield database
    slots = f"pg_replication_slots WHERE database = '{name}'"
    drop = "SELECT pg_drop_replication_slot(slot_name) FROM " + slots
    inactive = f"SELECT count(*) = 0 FROM {slots} AND active"
    wait_until(lambda: publishing.psql(inactive) == "t", "the end of the senders")
    publishing.psql(drop)
    publishing.psql(f"DROP DATABASE {name} WITH (FORCE)")


def drop_subscriptions(database: Database) -> None:
    for name in database.psql(
        "SELECT subname FROM pg_subscription s JOIN pg_database d ON d.oid = subdbid"
        " WHERE datname = current_database()"
    ).split():
        database.psql(f"ALTER SUBSCRIPTION {name} DISABLE")
        database.psql(f"ALTER SUBSCRIPTION {name} SET (slot_name = NONE)")
        database.psql(f"DROP SUBSCRIPTION {name}")


@pytest.fixture
def subscriber(publisher: Database, subscribing: Cluster) -> Iterator[Database]:
    name = f"s{next(numbers)}"
    subscribing.psql(f"CREATE DATABASE {name}")
    database = Database(subscribing, name)
    database.psql("CREATE EXTENSION colcrypt")
    yield database
    drop_subscriptions(database)
    subscribing.psql(f"DROP DATABASE {name} WITH (FORCE)")


def conninfo(publisher: Database, **more: str) -> str:
    address = publisher.cluster.address() | {"dbname": publisher.name} | more
    return " ".join(f"{name}={value}" for name, value in address.items())


def subscribe(
    publisher: Database, subscriber: Database, publication: str, options: str = ""
) -> None:
    """Subscribes, with one subscription for all publications: so changes arrive in
    their order."""
    name = f"of_{subscriber.name}"
    exists = f"SELECT count(*) FROM pg_subscription WHERE subname = '{name}'"
    if subscriber.psql(exists) == "1":
        subscriber.psql(f"ALTER SUBSCRIPTION {name} ADD PUBLICATION {publication}")
    else:
        subscriber.psql(
            f"CREATE SUBSCRIPTION {name} CONNECTION '{conninfo(publisher)}'"
            f" PUBLICATION {publication} WITH (streaming = on {options})"
        )


def wait_for_changes(publisher: Database, subscriber: Database) -> None:
    ready = "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel"
    wait_until(lambda: subscriber.psql(ready) == "t", "the initial copy")
    sent = publisher.psql("SELECT pg_current_wal_insert_lsn()")
    replayed = (
        f"SELECT replay_lsn >= '{sent}' FROM pg_stat_replication"
        f" WHERE application_name = 'of_{subscriber.name}'"
    )
    wait_until(lambda: publisher.psql(replayed) == "t", "the subscriber")


def start_replication(
    publisher: Database, subscriber: Database, options: str = ""
) -> None:
    """As documented: first the keys, then the tables."""
    publisher.psql(KEYS + TABLES + ROWS + PUBLISH_KEYS)
    publisher.psql("CREATE PUBLICATION data FOR TABLE by_id, by_secret, by_row")
    subscribe(publisher, subscriber, "keys", options)
    wait_for_changes(publisher, subscriber)
    subscriber.psql(TABLES)
    subscribe(publisher, subscriber, "data")
    wait_for_changes(publisher, subscriber)


def contents(database: Database, **more: object) -> dict[str, str]:
    return {
        table: database.psql(f"SELECT * FROM {table} ORDER BY {order}", **more)
        for table, order in ORDERS.items()
    }


def stored(database: Database) -> list[str]:
    as_pg_dump = {"PGAPPNAME": "pg_dump"}
    tables = (f"SELECT * FROM {table} t" for table in ORDERS)
    return [
        "\n".join(sorted(database.psql(sql, env=as_pg_dump).splitlines()))
        for sql in tables
    ]


def assert_same(publisher: Database, subscriber: Database) -> None:
    here, there = contents(publisher), contents(subscriber)
    assert here == there
    assert all(CANARY in rows for rows in here.values())
    assert stored(publisher) == stored(subscriber), "a value was sealed anew"


def assert_found_by_index(database: Database) -> None:
    """Each value is found by each index on its column, and the indexes are in order."""
    database.psql("CREATE EXTENSION IF NOT EXISTS amcheck")
    for index in ("by_id_secret_key", "by_secret_pkey"):
        database.psql(f"SELECT bt_index_parent_check('{index}', true, true)")
    with database.connect(**BY_INDEX) as session:
        for table, column in (
            ("by_id", "secret"),
            ("by_id", "ssn"),
            ("by_secret", "secret"),
        ):
            lookup = f"SELECT count(*) FROM {table} WHERE {column} = %s"
            there = f"SELECT {column}::text FROM {table} WHERE {column} IS NOT NULL"
            rows = session.execute(there).fetchall()
            plan = session.execute("EXPLAIN " + lookup, ["x"]).fetchall()
            assert any("Index" in line or "Bitmap" in line for (line,) in plan), plan
            assert len(rows) > 5
            assert [fetch(session, lookup, row[0]) for row in rows] == [1] * len(rows)


def files_with(cluster: Cluster, word: str) -> list[str]:
    """The files of a data folder, WAL and log that hold the word."""
    cluster.psql("CHECKPOINT")
    files = [file for file in cluster.datadir.rglob("*") if file.is_file()]
    return [
        str(file)
        for file in [*files, cluster.logfile]
        if file.exists() and word.encode() in file.read_bytes()
    ]


# Copy and changes


@pytest.mark.parametrize("options", ["", ", binary = true"], ids=["text", "binary"])
def test_copy_and_changes_arrive_sealed_and_are_found(
    publisher: Database, subscriber: Database, options: str
) -> None:
    start_replication(publisher, subscriber, options)
    assert_same(publisher, subscriber)
    publisher.psql(CHANGES)
    wait_for_changes(publisher, subscriber)
    assert_same(publisher, subscriber)
    # Neither side has written or logged a plaintext so far.
    for cluster in (publisher.cluster, subscriber.cluster):
        assert files_with(cluster, CANARY) == []
    assert_found_by_index(subscriber)
    keys = "SELECT * FROM colcrypt.key WHERE kind <> 'ring' ORDER BY key_id"
    assert subscriber.psql(keys) == publisher.psql(keys)
    # The subscriber writes as well, and remembers its own ring.
    subscriber.psql("INSERT INTO by_id VALUES (100, 'own', 'x', 'y', 'z')")
    ring_keys = "SELECT count(*) FROM colcrypt.key WHERE kind = 'ring'"
    assert subscriber.psql(ring_keys) == "1"


def test_a_transaction_that_is_streamed_arrives(
    publisher: Database, subscriber: Database
) -> None:
    publisher.cluster.psql(
        f"ALTER DATABASE {publisher.name} SET logical_decoding_work_mem = '64kB'"
    )
    start_replication(publisher, subscriber)
    publisher.psql(
        "INSERT INTO by_id SELECT i, 'n', 'canary' || i, 'canary s' || i"
        " FROM generate_series(100, 3000) i"
    )
    wait_for_changes(publisher, subscriber)
    assert_same(publisher, subscriber)


def test_plaintext_of_a_publisher_is_sealed_where_it_arrives(
    publisher: Database, subscriber: Database
) -> None:
    publisher.psql(
        "CREATE TABLE t (id int PRIMARY KEY, secret text);"
        "INSERT INTO t VALUES (1, 'canary'); CREATE PUBLICATION data FOR TABLE t"
    )
    subscriber.psql("CREATE TABLE t (id int PRIMARY KEY, secret encrypted_text)")
    subscribe(publisher, subscriber, "data")
    wait_for_changes(publisher, subscriber)
    publisher.psql("INSERT INTO t VALUES (2, 'canary 2')")
    wait_for_changes(publisher, subscriber)
    assert subscriber.psql("SELECT secret FROM t ORDER BY id") == "canary\ncanary 2"
    path = subscriber.relation_path("t")
    subscriber.psql("CHECKPOINT")
    assert CANARY.encode() not in path.read_bytes()


# What the publisher sends


def assert_sealed(stream: str) -> None:
    assert "colcrypt:v1:" in stream
    assert CANARY not in stream and "********" not in stream


def recvlogical(publisher: Database, slot: str, *options: str, user: str) -> str:
    end = publisher.psql("SELECT pg_current_wal_insert_lsn()")
    # A last record, for it ends when it has got past the end.
    publisher.psql("SELECT pg_logical_emit_message(false, 'end', 'x')")
    target = ["-d", publisher.name, "-S", slot, "--start", "-f", "-", "--no-loop"]
    args = [*target, "--endpos", end, *options]
    return run_bytes(publisher.cluster, "pg_recvlogical", *args, user=user)


def run_bytes(cluster: Cluster, program: str, *args: str, user: str) -> str:
    # The harness takes output for text, which a binary stream is not.
    output = cluster.write_file("stream", "", 0o666)
    args = tuple(str(output) if arg == "-" else arg for arg in args)
    cluster.run(program, *args, user=user)
    return output.read_bytes().decode(errors="replace")


@pytest.fixture
def sender(publisher: Database) -> Database:
    """A database with tables, a publication, and slots that have seen all changes."""
    publisher.psql(KEYS + TABLES + PUBLISH_KEYS)
    publisher.psql("CREATE PUBLICATION data FOR TABLE by_id, by_secret, by_row")
    for plugin in ("test_decoding", "pgoutput"):
        name = f"{plugin}_{publisher.name}"
        publisher.psql(
            f"SELECT pg_create_logical_replication_slot('{name}', '{plugin}')"
        )
    publisher.psql(ROWS + CHANGES)
    return publisher


PGOUTPUT = ["-o", "publication_names=data", "-o"]


@pytest.mark.parametrize("access", ["full", "masked", "ciphertext", "ungranted"])
def test_a_stream_is_sealed_whoever_asks(sender: Database, access: str) -> None:
    """A stream of masks would be lost data."""
    role = f"{access}_{sender.name}"
    sender.psql(f"CREATE ROLE {role} LOGIN REPLICATION IN ROLE pg_read_all_data")
    if access == "ungranted":
        sender.psql(f"SELECT colcrypt.grant_key('pii', '{SUPERUSER}')")
    else:
        sender.psql(f"ALTER ROLE {role} SET colcrypt.access = '{access}'")
    slots = [f"{plugin}_{sender.name}" for plugin in ("test_decoding", "pgoutput")]
    try:
        with sender.connect(user=role) as session:
            peeked = session.execute(
                "SELECT data FROM pg_logical_slot_peek_changes(%s, NULL, NULL)",
                [slots[0]],
            ).fetchall()
            assert len(peeked) > 50
            assert_sealed("\n".join(row for (row,) in peeked))
            binary = fetch(
                session,
                "SELECT string_agg(data, '') FROM pg_logical_slot_peek_binary_changes("
                "%s, NULL, NULL, 'proto_version', '2', 'publication_names', 'data',"
                " 'binary', 'true')",
                slots[1],
            )
            assert_sealed(binary.decode(errors="replace"))
        assert_sealed(recvlogical(sender, slots[0], user=role))
        assert_sealed(
            recvlogical(
                sender,
                slots[1],
                *PGOUTPUT,
                "proto_version=2",
                "-o",
                "binary=true",
                user=role,
            )
        )
        # As the initial copy is made.
        walsender = conninfo(sender, user=role, replication="database")
        for table in ORDERS:
            sql = f"COPY {table} TO STDOUT"
            copied = sender.cluster.run("psql", "-XAtq", "-d", walsender, "-c", sql)
            assert_sealed(copied)
    finally:
        sender.psql(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert CANARY not in sender.cluster.log()


def test_plaintext_is_sent_where_that_is_asked_for(
    publisher: Database, subscriber: Database
) -> None:
    """To a subscriber with no key in common."""
    publisher.psql(
        "SELECT colcrypt.create_key('pii');"
        "CREATE TABLE t (id int PRIMARY KEY, secret encrypted_text,"
        " ssn encrypted_text(pii));"
        "INSERT INTO t VALUES (1, 'canary', 'canary s');"
        "CREATE PUBLICATION data FOR TABLE t;"
        "SELECT pg_create_logical_replication_slot("
        f"'plain_{publisher.name}', 'test_decoding');"
    )
    publisher.cluster.psql(
        f"ALTER DATABASE {publisher.name} SET colcrypt.dump_plaintext = on"
    )
    subscriber.psql("CREATE TABLE t (id int PRIMARY KEY, secret text, ssn text)")
    subscribe(publisher, subscriber, "data")
    wait_for_changes(publisher, subscriber)
    assert subscriber.psql("TABLE t") == "1|canary|canary s"
    publisher.psql("INSERT INTO t VALUES (2, 'canary', NULL)")
    wait_for_changes(publisher, subscriber)
    assert subscriber.psql("SELECT secret FROM t WHERE id = 2") == "canary"
    # Logical decoding does not read the keys that are in the database. What is under
    # them stays sealed, and stops nothing.
    publisher.psql("INSERT INTO t VALUES (3, 'canary', 'canary s')")
    wait_for_changes(publisher, subscriber)
    row = subscriber.psql("SELECT secret, left(ssn, 12) FROM t WHERE id = 3")
    assert row == "canary|colcrypt:v1:"


# Rotations


def test_rotations_arrive(publisher: Database, subscriber: Database) -> None:
    start_replication(publisher, subscriber)
    with subscriber.connect() as session:
        # A session that knows the keys.
        assert fetch(session, "SELECT ssn FROM by_id WHERE id = 1") == "canary s1"
        publisher.psql(
            "SET colcrypt.algorithm = 'aes-256-gcm';"
            "SELECT rotate_column('by_id', 'secret'),"
            " rotate_column('by_secret', 'secret'), rotate_column('by_row', 'secret')"
        )
        wait_for_changes(publisher, subscriber)
        assert_same(publisher, subscriber)
        before = stored(subscriber)
        publisher.psql("SELECT colcrypt.rotate_key('pii')")
        publisher.psql("SELECT rotate_column('by_id', 'ssn')")
        publisher.psql("INSERT INTO by_id (id, ssn) VALUES (50, 'canary s50')")
        wait_for_changes(publisher, subscriber)
        assert stored(subscriber) != before
        assert fetch(session, "SELECT ssn FROM by_id WHERE id = 50") == "canary s50"
        session.execute("INSERT INTO by_id (id, ssn) VALUES (51, 'canary s51')")
        used = "SELECT count(*) FROM colcrypt.key_usage('by_id', 'ssn')"
        assert fetch(session, used) == 1
        session.execute("DELETE FROM by_id WHERE id = 51")
    assert_same(publisher, subscriber)
    assert_found_by_index(subscriber)


def test_a_new_ring_arrives(make_cluster: MakeCluster) -> None:
    old, new = new_key(), new_key()
    clusters = [make_cluster(ring=old, conf=LOGICAL) for _ in range(2)]
    publisher, subscriber = (Database(cluster, "postgres") for cluster in clusters)
    start_replication(publisher, subscriber)
    with subscriber.connect() as session:
        assert fetch(session, "SELECT ssn FROM by_id WHERE id = 1") == "canary s1"
        # The new key is brought to the subscriber first.
        for database in (subscriber, publisher):
            database.cluster.set_ring(f"{new},{old}")
            database.cluster.reload()
        rewrapped = publisher.psql("SELECT colcrypt.rewrap_keys()")
        assert rewrapped == "3"
        publisher.psql(
            "SELECT rotate_column('by_id', 'secret'), rotate_column('by_id', 'long'),"
            " rotate_column('by_secret', 'secret'), rotate_column('by_row', 'secret')"
        )
        wait_for_changes(publisher, subscriber)
        for database in (publisher, subscriber):
            # Their pages hold copies of values.
            database.psql("REINDEX TABLE by_id; REINDEX TABLE by_secret")
            database.cluster.set_ring(new)
            database.cluster.reload()
        assert fetch(session, "SELECT ssn FROM by_id WHERE id = 1") == "canary s1"
    publisher.psql("INSERT INTO by_id (id, ssn) VALUES (50, 'canary s50')")
    wait_for_changes(publisher, subscriber)
    subscriber.cluster.restart()
    wait_for_changes(publisher, subscriber)
    assert_same(publisher, subscriber)
    assert_found_by_index(subscriber)
    drop_subscriptions(subscriber)


def test_a_shredded_key_is_gone_there_too_and_nothing_else_is(
    publisher: Database, subscriber: Database
) -> None:
    start_replication(publisher, subscriber)
    subscriber.psql(
        "SELECT colcrypt.create_key('own');"
        "CREATE TABLE own (secret encrypted_text(own))"
    )
    # By the server's ring, and a key of the subscriber's own.
    subscriber.psql("INSERT INTO own VALUES ('mine')")
    with subscriber.connect() as session:
        read = "SELECT ssn FROM by_id WHERE id = 1"
        assert fetch(session, read) == "canary s1"
        wrapped = fetch(session, WRAPPED)
        old = subscriber.relation_path("colcrypt.key")
        own = "SELECT * FROM colcrypt.key WHERE kind = 'ring' OR name = 'own'"
        before = session.execute(own).fetchall()
        assert len(before) == 2
        assert publisher.psql("SELECT colcrypt.shred_key('pii')") == "1"
        wait_for_changes(publisher, subscriber)
        with pytest.raises(ObjectNotInPrerequisiteState, match="destroyed"):
            session.execute(read)
        assert fetch(session, "SELECT secret FROM by_id WHERE id = 1") == "canary1"
        assert sorted(session.execute(own).fetchall()) == sorted(before)
        assert fetch(session, "SELECT secret FROM own") == "mine"
        session.execute("INSERT INTO own VALUES ('more')")
        session.execute("SELECT colcrypt.shred_key('pii')")
    subscriber.psql("CHECKPOINT")
    for path in {old, subscriber.relation_path("colcrypt.key")}:
        assert not path.exists() or bytes.fromhex(wrapped) not in path.read_bytes()
    publisher.psql("SELECT colcrypt.create_key('pii')")
    publisher.psql("INSERT INTO by_id (id, ssn) VALUES (50, 'canary s50')")
    wait_for_changes(publisher, subscriber)
    assert subscriber.psql("SELECT ssn FROM by_id WHERE id = 50") == "canary s50"


# What goes wrong


def test_an_index_key_of_the_subscriber_s_own_is_an_error_that_says_so(
    publisher: Database, subscriber: Database
) -> None:
    publisher.psql(KEYS + PUBLISH_KEYS)
    subscriber.psql("CREATE TABLE t (secret encrypted_text UNIQUE)")
    own = subscriber.psql("SELECT key_id FROM colcrypt.key WHERE kind = 'index'")
    start = len(subscriber.cluster.log())
    subscribe(publisher, subscriber, "keys")

    def complains() -> bool:
        return "one_index_key" in subscriber.cluster.log()[start:]

    wait_until(complains, "the error")
    log = subscriber.cluster.log()[start:]
    assert "duplicate key value violates unique constraint" in log
    # The way out, as documented: without a key of its own it takes the publisher's.
    subscriber.psql("DELETE FROM colcrypt.key WHERE kind = 'index'")
    wait_for_changes(publisher, subscriber)
    subscriber.psql("REINDEX TABLE t")
    theirs = subscriber.psql("SELECT colcrypt.create_index_key()")
    assert theirs == publisher.psql("SELECT colcrypt.create_index_key()") != own


def test_a_subscriber_that_has_remembered_the_ring_takes_the_publisher_s_word_for_it(
    publisher: Database, subscriber: Database
) -> None:
    """A publication of all tables publishes what is remembered of the ring, too."""
    publisher.psql(KEYS + "CREATE TABLE t (id int PRIMARY KEY, secret encrypted_text)")
    publisher.psql("INSERT INTO t VALUES (1, 'canary')")
    publisher.psql("CREATE PUBLICATION everything FOR ALL TABLES")
    subscriber.psql("CREATE TABLE t (id int PRIMARY KEY, secret encrypted_text)")
    subscriber.psql("INSERT INTO t VALUES (2, 'own')")
    subscribe(publisher, subscriber, "everything")
    wait_for_changes(publisher, subscriber)
    assert subscriber.psql("SELECT * FROM t ORDER BY id") == "1|canary\n2|own"


def test_without_the_ring_rows_arrive_unread(
    publisher: Database, make_cluster: MakeCluster, ring: str
) -> None:
    publisher.psql(KEYS + TABLES + ROWS + PUBLISH_KEYS)
    publisher.psql("CREATE PUBLICATION data FOR TABLE by_id, by_row")
    cluster = make_cluster(conf=LOGICAL)
    subscriber = Database(cluster, "postgres")
    # Without indexes on what is encrypted.
    subscriber.psql(
        "CREATE TABLE by_id (id int PRIMARY KEY, note text, secret encrypted_text,"
        " ssn encrypted_text(pii), long encrypted_text);"
        "CREATE TABLE by_row (id int, secret encrypted_text)"
    )
    subscribe(publisher, subscriber, "keys")
    subscribe(publisher, subscriber, "data")
    wait_for_changes(publisher, subscriber)
    publisher.psql("INSERT INTO by_id (id, secret) VALUES (50, 'canary 50')")
    publisher.psql("UPDATE by_id SET ssn = 'canary new' WHERE id = 3")
    publisher.psql("DELETE FROM by_id WHERE id = 4")
    wait_for_changes(publisher, subscriber)
    with subscriber.connect() as session:
        read = "SELECT ssn FROM by_id WHERE id = 3"
        with pytest.raises(ObjectNotInPrerequisiteState):
            session.execute(read)
        cluster.set_ring(ring)
        cluster.reload(session)
        assert fetch(session, read) == "canary new"
        subscriber.psql("ALTER TABLE by_id ADD UNIQUE (secret)")
        found = "SELECT id FROM by_id WHERE secret = 'canary 50'"
        assert fetch(session, found) == 50
    query = "SELECT * FROM by_id ORDER BY id"
    assert subscriber.psql(query) == publisher.psql(query)
    drop_subscriptions(subscriber)


BINARY_GRANTS = pytest.param(
    ", binary = true",
    marks=pytest.mark.xfail(
        strict=True, reason="PostgreSQL sends a regrole as a number (docs/reference.md)"
    ),
)


@pytest.mark.parametrize("options", ["", BINARY_GRANTS], ids=["text", "binary"])
def test_published_grants_are_those_of_the_roles_of_that_name(
    publisher: Database, subscriber: Database, options: str
) -> None:
    for cluster in (publisher.cluster, subscriber.cluster):
        if cluster.psql("SELECT to_regrole('reader') IS NULL") == "t":
            cluster.psql("CREATE ROLE reader LOGIN; CREATE ROLE outsider LOGIN")
    publisher.psql(
        "SELECT colcrypt.create_key('pii'), colcrypt.grant_key('pii', 'reader')"
    )
    publisher.psql(
        "CREATE TABLE t (id int PRIMARY KEY, ssn encrypted_text(pii));"
        "INSERT INTO t VALUES (1, 'canary'); GRANT SELECT ON t TO PUBLIC;"
        "CREATE PUBLICATION data FOR TABLE colcrypt.key, colcrypt.key_grant, t"
    )
    subscriber.psql("CREATE TABLE t (id int PRIMARY KEY, ssn encrypted_text(pii))")
    subscriber.psql("GRANT SELECT ON t TO PUBLIC")
    subscribe(publisher, subscriber, "data", options)
    wait_for_changes(publisher, subscriber)

    def read(user: str) -> str:
        return subscriber.psql("SELECT ssn FROM t", user=user)

    assert (read("reader"), read("outsider")) == ("canary", "********")
    # The copy is in text form, changes are as the subscription says.
    publisher.psql("SELECT colcrypt.grant_key('pii', 'outsider')")
    wait_for_changes(publisher, subscriber)
    assert (read("reader"), read("outsider")) == ("canary", "canary")
    publisher.psql("SELECT colcrypt.revoke_key('pii', 'reader')")
    wait_for_changes(publisher, subscriber)
    assert (read("reader"), read("outsider")) == ("********", "canary")


# A standby


class Pair:
    """A server and its hot standby."""

    def __init__(self, primary: Cluster, standby: Cluster) -> None:
        self.primary, self.standby = primary, standby

    def psql(self, sql: str) -> str:
        """Runs SQL on the primary, and waits until the standby has what it wrote."""
        result = self.primary.psql(sql)
        sent = self.primary.psql("SELECT pg_current_wal_insert_lsn()")
        replayed = f"SELECT pg_last_wal_replay_lsn() >= '{sent}'"
        wait_until(lambda: self.standby.psql(replayed) == "t", "the standby")
        return result


@pytest.fixture
def pair(make_cluster: MakeCluster, base: Path) -> Iterator[Pair]:
    ring = new_key()
    primary = make_cluster(ring=ring)
    for role in ("reader", "outsider", "masked"):
        primary.psql(f"CREATE ROLE {role} LOGIN IN ROLE pg_read_all_data")
    primary.psql("ALTER ROLE masked SET colcrypt.access = 'masked'")
    primary.psql(KEYS + TABLES + ROWS)
    backup = base / f"{primary.dir.name}-backup"
    address = ["-h", str(primary.dir), "-p", str(PORT), "-U", SUPERUSER]
    options = ["-D", str(backup), "-R", "-c", "fast", "--no-sync"]
    run_as_server([str(BIN / "pg_basebackup"), *address, *options])
    standby = Cluster(base, backup, ring=ring)
    standby.start()
    yield Pair(primary, standby)
    standby.destroy()


def test_a_standby_reads_and_finds_everything(pair: Pair) -> None:
    pair.psql("CREATE EXTENSION amcheck;" + CHANGES)
    primary, standby = (
        Database(cluster, "postgres") for cluster in (pair.primary, pair.standby)
    )
    assert contents(standby) == contents(primary)
    assert_same(primary, standby)
    assert_found_by_index(primary)
    with standby.connect(**BY_INDEX) as session:
        for sql, expected in {
            "SELECT id FROM by_id WHERE secret = 'canary5'": 5,
            "SELECT id FROM by_id WHERE ssn = 'canary s5'": 5,
            "SELECT count(DISTINCT secret) FROM by_row": 5,
            "SELECT count(*) FROM by_id JOIN by_secret USING (secret)": 6,
            # Sealing on a standby: a constant, under the primary and a managed key.
            "SELECT decrypt(encrypt('x'))": "x",
            "SELECT decrypt(encrypt('x', 'pii'))": "x",
            "SELECT count(*) FROM colcrypt.columns": 5,
            "SELECT count(*) FROM colcrypt.keys WHERE loaded": 4,
            "SELECT count(*) FROM colcrypt.key_usage('by_id', 'ssn')": 1,
        }.items():
            assert fetch(session, sql) == expected, sql
        for sql in (
            "SELECT colcrypt.create_key('x')",
            "SELECT colcrypt.rotate_key('pii')",
            "SELECT colcrypt.shred_key('pii')",
            "SELECT colcrypt.grant_key('pii', 'reader')",
            "SELECT colcrypt.rewrap_keys()",
            "SELECT colcrypt.accept_key()",
            "SELECT rotate_column('by_id', 'secret')",
        ):
            with pytest.raises(psycopg.Error) as refused:
                session.execute(sql)
            # Not an internal error, and not one of the standby's health.
            assert refused.value.sqlstate in ("25006", "55000"), (sql, refused.value)
    with standby.connect(user="masked") as session:
        assert fetch(session, "SELECT ssn FROM by_id WHERE id = 5") == "********"


def test_a_standby_with_another_ring_says_which_key_it_needs(pair: Pair) -> None:
    other = new_key()
    old = (pair.primary.dir / "ring.keys").read_text()
    pair.standby.set_ring(other)
    pair.standby.restart()
    with pair.standby.connect() as session:
        for sql in ("SELECT secret FROM by_id", "SELECT ssn FROM by_id"):
            with pytest.raises(ObjectNotInPrerequisiteState, match=key_id(old)):
                session.execute(sql)
    pair.standby.set_ring(f"{other},{old}")
    pair.standby.restart()
    with pair.standby.connect() as session:
        # A primary that nobody remembers yet.
        assert fetch(session, "SELECT decrypt(encrypt('x'))") == "x"
        assert fetch(session, "SELECT ssn FROM by_id WHERE id = 5") == "canary s5"


def test_an_open_session_of_a_standby_learns_of_changes(pair: Pair) -> None:
    old = (pair.primary.dir / "ring.keys").read_text()
    new = new_key()
    with (
        pair.standby.connect() as session,
        pair.standby.connect(user="outsider") as outsider,
    ):
        read = "SELECT ssn FROM by_id WHERE id = 5"
        other = "SELECT secret FROM by_id WHERE id = 5"

        def values() -> list[str]:
            return [fetch(each, read) for each in (session, outsider)]

        assert values() == ["canary s5"] * 2
        pair.psql("SELECT colcrypt.grant_key('pii', 'reader')")
        assert values() == ["canary s5", "********"]
        pair.psql("SELECT colcrypt.grant_key('pii', 'outsider')")
        assert values() == ["canary s5"] * 2
        pair.psql("SELECT colcrypt.revoke_key('pii', 'outsider')")
        assert values() == ["canary s5", "********"]
        pair.psql("GRANT reader TO outsider")
        assert values() == ["canary s5"] * 2
        pair.psql("REVOKE reader FROM outsider")
        assert values() == ["canary s5", "********"]
        before = fetch(session, "SELECT ciphertext(ssn) FROM by_id WHERE id = 5")
        pair.psql("SELECT colcrypt.rotate_key('pii')")
        assert values() == ["canary s5", "********"]
        pair.psql("SELECT rotate_column('by_id', 'ssn')")
        after = fetch(session, "SELECT ciphertext(ssn) FROM by_id WHERE id = 5")
        assert before != after and values() == ["canary s5", "********"]
        for cluster in (pair.standby, pair.primary):
            cluster.set_ring(f"{new},{old}")
        pair.standby.reload(session)
        pair.primary.reload()
        # Two versions of one key, another key and the index key.
        assert pair.psql("SELECT colcrypt.rewrap_keys()") == "4"
        pair.psql("SELECT rotate_column('by_id', 'secret')")
        pair.standby.set_ring(new)
        pair.standby.reload(session)
        assert values() == ["canary s5", "********"]
        assert fetch(session, other) == "canary5"
        assert pair.psql("SELECT colcrypt.shred_key('pii')") == "2"
        with pytest.raises(ObjectNotInPrerequisiteState, match="destroyed"):
            session.execute(read)
        assert fetch(session, other) == "canary5"


@pytest.mark.parametrize(
    "where, isolation",
    [("primary", "READ COMMITTED"), ("standby", "REPEATABLE READ")],
    ids=["primary", "standby"],
)
@pytest.mark.parametrize(
    "change, error",
    [
        ("shred_key('pii')", ObjectNotInPrerequisiteState),
        ("revoke_key('pii', 'outsider')", InsufficientPrivilege),
    ],
    ids=["shred", "revoke"],
)
@pytest.mark.parametrize("prepared", [False, True], ids=["simple", "prepared"])
def test_the_next_statement_of_a_transaction_knows_of_a_change(
    pair: Pair,
    where: str,
    isolation: str,
    change: str,
    error: type[psycopg.Error],
    prepared: bool,
) -> None:
    pair.psql(
        "SELECT colcrypt.grant_key('pii', 'outsider'),"
        " colcrypt.grant_key('pii', 'reader')"
    )
    read = "SELECT decrypt(ssn) FROM by_id WHERE id = 5"
    cluster = pair.primary if where == "primary" else pair.standby
    with cluster.connect(user="outsider") as session:
        session.execute(f"BEGIN ISOLATION LEVEL {isolation}")
        # A prepared one takes no locks that the transaction has already, and taking
        # locks is when PostgreSQL hears of changes.
        for _ in range(2):
            value = session.execute(read, prepare=prepared).fetchone()
            assert value == ("canary s5",)
        pair.psql(f"SELECT colcrypt.{change}")
        with pytest.raises(error):
            session.execute(read, prepare=prepared)


def test_a_shredded_key_is_in_no_file_of_the_key_table(pair: Pair) -> None:
    both = (pair.primary, pair.standby)
    wrapped = pair.primary.psql(WRAPPED)
    paths = {each.relation_path("colcrypt.key") for each in both}
    pair.psql("CHECKPOINT")
    pair.standby.psql("CHECKPOINT")
    assert all(bytes.fromhex(wrapped) in path.read_bytes() for path in paths)
    pair.psql("SELECT colcrypt.shred_key('pii'); CHECKPOINT")
    pair.standby.psql("CHECKPOINT")
    paths |= {each.relation_path("colcrypt.key") for each in both}
    for path in paths:
        assert not path.exists() or bytes.fromhex(wrapped) not in path.read_bytes()


def test_a_promoted_standby_writes(pair: Pair) -> None:
    pair.psql("SELECT colcrypt.grant_key('pii', 'reader')")
    with pair.standby.connect() as session:
        assert fetch(session, "SELECT ssn FROM by_id WHERE id = 5") == "canary s5"
        pair.primary.stop()
        pair.standby.psql("SELECT pg_promote()")
        # The same session, from now on with rights to write.
        session.execute(
            "INSERT INTO by_id VALUES (50, 'new', 'canary50', 'canary s50', 'x')"
        )
        with pytest.raises(psycopg.errors.UniqueViolation):
            session.execute("INSERT INTO by_secret VALUES ('canary5')")
        session.execute("SELECT colcrypt.rotate_key('pii')")
        assert fetch(session, "SELECT rotate_column('by_id', 'ssn')") == 10
        assert fetch(session, "SELECT ssn FROM by_id WHERE id = 50") == "canary s50"
    standby = Database(pair.standby, "postgres")
    assert standby.psql("SELECT ssn FROM by_id", user="outsider") == "\n".join(
        ["********"] * 10
    )
    assert_found_by_index(standby)


def test_a_promoted_standby_with_another_ring_is_guarded(pair: Pair) -> None:
    pair.standby.set_ring(new_key())
    pair.standby.restart()
    pair.primary.stop()
    pair.standby.psql("SELECT pg_promote()")
    with pair.standby.connect() as session:
        with pytest.raises(ObjectNotInPrerequisiteState, match="not encrypted with"):
            session.execute("INSERT INTO by_row VALUES (99, 'x')")

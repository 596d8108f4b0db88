"""The audit log says who used which key on what, once for each statement and key, in
lines that nobody's names can forge, and never says a value."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import (
    BadCopyFileFormat,
    DataCorrupted,
    DivisionByZero,
    InsufficientPrivilege,
    ObjectNotInPrerequisiteState,
    QueryCanceled,
    UniqueViolation,
)
from psycopg.pq import TransactionStatus

from conftest import MakeCluster
from harness import Cluster, Database, fetch, key_id, new_key, wait_until
from test_index_key import SET_KEY
from test_stat import BIG, PARALLEL, READ, TABLE, insert_foreign, plan

PRELOAD = {"shared_preload_libraries": "colcrypt"}
ACCESS = {"colcrypt.audit_log": "access"}
NAME = r'"((?:[^"\\\x00-\x1f]|\\.)*)"'
LINE = re.compile(
    r"colcrypt audit: operation=(encrypt|decrypt|compare|rotate)"
    r" outcome=(ok|wrong_key|damaged|denied) key=([0-9a-f]{8}|)"
    r" suite=(xaes-256-gcm|aes-256-gcm|fernet|envelope|) values=(\d+) bytes=(\d+)"
    rf" user={NAME} role={NAME} database={NAME} application={NAME} relation={NAME}"
)
FAILURE = re.compile(
    r"colcrypt: failed to (encrypt|decrypt|rotate) (\d+) values?"
    r"(?: under key ([0-9a-f]{8}))?: (wrong key|damaged), SQLSTATE (\w{5})"
)
ESCAPE = re.compile(r"\\(u\{([0-9a-f]+)\}|.)")
ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "0": "\0"}

numbers = itertools.count(1)


@dataclass(frozen=True)
class Line:
    operation: str
    outcome: str
    key: str
    suite: str
    values: int
    bytes: int
    user: str
    role: str
    database: str
    application: str
    relation: str

    @property
    def work(self) -> tuple[str, int, str]:
        return self.operation, self.values, self.relation


def parse(message: str) -> Line:
    found = LINE.fullmatch(message)
    assert found is not None, message
    operation, outcome, key, suite, values, size, *names = found.groups()
    texts = [ESCAPE.sub(unescape, name) for name in names]
    return Line(operation, outcome, key, suite, int(values), int(size), *texts)


def unescape(found: re.Match[str]) -> str:
    if found[2] is not None:
        return chr(int(found[2], 16))
    return ESCAPED.get(found[1], found[1])


class Trail:
    """What a server that logs in all formats has logged since the last look."""

    def __init__(self, host: Cluster) -> None:
        self.host = host
        self.folder = host.datadir / "log"
        self.offset = (self.folder / "server.json").stat().st_size
        self.records()

    def records(self) -> list[dict[str, Any]]:
        """The new records of the log in JSON."""
        mark = f"mark {next(numbers)}"
        self.host.psql(f"DO $$ BEGIN RAISE LOG '{mark}'; END $$")
        found: list[dict[str, Any]] = []

        def read() -> bool:
            with (self.folder / "server.json").open("rb") as file:
                file.seek(self.offset)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            records = [json.loads(line) for line in whole.splitlines()]
            found[:] = records
            if not any(record["message"] == mark for record in records):
                return False
            self.offset += len(whole)
            return True

        # Whoever logs writes to the collector of the log, in this order.
        wait_until(read, "the log")
        return found

    def messages(self) -> list[str]:
        """The new lines of colcrypt."""
        found = [r for r in self.records() if r["message"].startswith("colcrypt")]
        for record in found:
            assert record["error_severity"] == "LOG"
            assert not {"statement", "context", "detail", "hint"} & set(record)
        return [record["message"] for record in found]

    def lines(self) -> list[Line]:
        """The new lines about the use of keys."""
        return [parse(text) for text in self.messages() if is_audit(text)]

    def work(self) -> list[tuple[str, int, str]]:
        """Operation, number of values and relation of the new lines."""
        return [line.work for line in self.lines()]

    def failures(self) -> list[tuple[str, ...]]:
        """Verb, number of values, key, outcome and SQLSTATE of the new lines about
        failures."""
        texts = [text for text in self.messages() if not is_audit(text)]
        found = [FAILURE.fullmatch(text) for text in texts]
        assert None not in found, texts
        return [line.groups() for line in found if line is not None]


def is_audit(text: str) -> bool:
    return text.startswith("colcrypt audit")


def logged(cluster: Cluster, start: int = 0) -> list[Line]:
    """The lines in the log of a server that logs to standard error."""
    rest = [line.partition("LOG:  ")[2] for line in cluster.log()[start:].splitlines()]
    return [parse(text) for text in rest if is_audit(text)]


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Cluster]:
    cluster = Cluster(base, template, ring=new_key())
    cluster.conf(PRELOAD | ACCESS | {"autovacuum": False, "wal_level": "logical"})
    cluster.conf(
        logging_collector=True,
        log_destination="stderr,csvlog,jsonlog",
        log_filename="server.log",
        max_prepared_transactions=2,
    )
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt; CREATE DATABASE with_colcrypt")
    cluster.psql("CREATE EXTENSION colcrypt", db="with_colcrypt")
    cluster.psql("CREATE ROLE app LOGIN; CREATE ROLE owner; GRANT owner TO app")
    yield cluster
    cluster.destroy()


@pytest.fixture
def shop(host: Cluster) -> Iterator[Database]:
    """A database with tables that the role app may use."""
    name = f"shop_{next(numbers)}"
    host.psql(f"CREATE DATABASE {name} TEMPLATE with_colcrypt")
    database = Database(host, name)
    database.psql(TABLE)
    database.psql("CREATE TABLE other AS TABLE t")
    grant(database)
    yield database
    host.psql(f"DROP DATABASE {name} WITH (FORCE)")


def grant(database: Database) -> None:
    database.psql(
        "GRANT ALL ON SCHEMA public TO app, owner;"
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO app, owner"
    )


@pytest.fixture
def admin(shop: Database) -> Iterator[psycopg.Connection]:
    with shop.connect(prepare_threshold=None) as session:
        yield session


@pytest.fixture
def session(shop: Database) -> Iterator[psycopg.Connection]:
    """A session of an ordinary role."""
    with shop.connect(prepare_threshold=None, user="app") as session:
        yield session


@pytest.fixture
def trail(shop: Database) -> Trail:
    return Trail(shop.cluster)


# What is logged

OBJECTS = """
    CREATE SCHEMA "My Schema";
    CREATE TABLE "My Schema"."a "", b" AS TABLE t;
    CREATE VIEW v AS SELECT id, secret FROM t;
    CREATE TABLE parted (id int, secret encrypted_text) PARTITION BY RANGE (id);
    CREATE TABLE low PARTITION OF parted FOR VALUES FROM (0) TO (5);
    CREATE TABLE high PARTITION OF parted FOR VALUES FROM (5) TO (50);
    INSERT INTO parted TABLE t;
    CREATE MATERIALIZED VIEW m AS TABLE t;
    CREATE FUNCTION in_loop() RETURNS text LANGUAGE plpgsql AS $$
        DECLARE r record; s text = ''; BEGIN
        FOR i IN 1..3 LOOP
            FOR r IN SELECT secret FROM t LOOP s := s || r.secret; END LOOP;
        END LOOP; RETURN s; END $$;
    CREATE FUNCTION in_sql(int) RETURNS text LANGUAGE sql AS
        'SELECT secret::text FROM t WHERE id = $1';
    CREATE PROCEDURE call() LANGUAGE plpgsql AS 'BEGIN PERFORM in_loop(); END';"""
T, OTHER = "public.t", "public.other"
QUOTED = '"My Schema"."a "", b"'
WORK: dict[str, tuple[str, list[tuple[str, int, str]]]] = {
    "nothing": ("SELECT 1", []),
    "another column": ("SELECT id FROM t", []),
    "SELECT": ("SELECT secret FROM t", [("decrypt", 9, T)]),
    "no relation": (
        "SELECT encrypt(v)::text FROM plain",
        [("encrypt", 9, ""), ("decrypt", 9, "")],
    ),
    "a literal": ("INSERT INTO empty VALUES ('x')", [("encrypt", 1, "public.empty")]),
    "INSERT SELECT": (
        "INSERT INTO empty SELECT v FROM plain",
        [("encrypt", 9, "public.empty")],
    ),
    "seen and not read": ("INSERT INTO empty SELECT secret FROM t", []),
    "COPY TO": ("COPY t TO STDOUT", [("decrypt", 9, T)]),
    "COPY of a query": ("COPY (SELECT secret FROM t) TO STDOUT", [("decrypt", 9, T)]),
    "CREATE TABLE AS": (
        "CREATE TABLE u AS SELECT secret::text FROM t",
        [("decrypt", 9, T)],
    ),
    "EXPLAIN ANALYZE": (f"EXPLAIN ANALYZE {READ}", [("decrypt", 9, T)]),
    "DO": (
        "DO $$ DECLARE r record; s text; BEGIN FOR r IN SELECT secret FROM t LOOP"
        " s := r.secret; END LOOP; PERFORM secret::text FROM t; END $$",
        [("decrypt", 18, T)],
    ),
    "two relations in a DO": (
        "DO $$ BEGIN PERFORM secret::text FROM t; PERFORM secret::text FROM other;"
        " END $$",
        [("decrypt", 18, f"{T}, {OTHER}")],
    ),
    "a function": ("SELECT in_loop()", [("decrypt", 27, T)]),
    "a function in SQL": (
        "SELECT in_sql(i) FROM generate_series(1, 9) i",
        [("decrypt", 9, T)],
    ),
    "CALL": ("CALL call()", [("decrypt", 27, T)]),
    "a cursor": (
        "BEGIN; DECLARE c CURSOR FOR SELECT secret FROM t; FETCH 3 FROM c;"
        " FETCH 2 FROM c; COMMIT",
        [("decrypt", 3, T), ("decrypt", 2, T)],
    ),
    "PREPARE": (
        "PREPARE p AS SELECT secret FROM t WHERE id < $1; EXECUTE p (4); EXECUTE p (3)",
        [("decrypt", 3, T), ("decrypt", 2, T)],
    ),
    "a literal of PREPARE": (
        "PREPARE p AS INSERT INTO empty VALUES ('x'); EXECUTE p; EXECUTE p",
        [("encrypt", 1, "")],
    ),
    "RETURNING": (
        "UPDATE t SET id = 0 WHERE id < 4 RETURNING secret",
        [("decrypt", 3, T)],
    ),
    "RETURNING in a transaction": (
        "BEGIN; UPDATE t SET id = 0 WHERE id < 4 RETURNING secret;"
        " INSERT INTO empty VALUES ('x') RETURNING secret; COMMIT",
        [
            ("decrypt", 3, T),
            ("encrypt", 1, "public.empty"),
            ("decrypt", 1, "public.empty"),
        ],
    ),
    "many statements": (
        "SELECT secret FROM t; INSERT INTO empty VALUES ('x');"
        " SELECT secret FROM empty",
        [
            ("decrypt", 9, T),
            ("encrypt", 1, "public.empty"),
            ("decrypt", 1, "public.empty"),
        ],
    ),
    "two columns": ("SELECT secret, secret FROM t", [("decrypt", 18, T)]),
    "a join": (
        "SELECT t.secret, o.secret FROM t JOIN other o USING (id)"
        " JOIN plain USING (id)",
        [("decrypt", 18, f"{T}, {OTHER}")],
    ),
    "a subquery": (
        "SELECT id FROM plain WHERE v = ANY (ARRAY(SELECT secret::text FROM t))",
        [("decrypt", 9, T)],
    ),
    "a view": ("SELECT secret FROM v", [("decrypt", 9, T)]),
    "a materialized view": ("SELECT secret FROM m", [("decrypt", 9, "public.m")]),
    "quoted names": (f"SELECT secret FROM {QUOTED}", [("decrypt", 9, QUOTED)]),
    "a partition": ("SELECT secret FROM low", [("decrypt", 4, "public.low")]),
    "partitions": (
        "SELECT secret FROM parted",
        [("decrypt", 9, "public.parted, public.low, public.high")],
    ),
    "into a partition": (
        "INSERT INTO parted VALUES (1, 'x')",
        [("encrypt", 1, "public.parted")],
    ),
    "a comparison": (
        "SELECT count(*) FROM t WHERE secret = 'value 3'::text",
        [("compare", 9, T)],
    ),
    "GROUP BY": ("SELECT count(*) FROM t GROUP BY secret", [("compare", 9, T)]),
    "ciphertext()": ("SELECT ciphertext(secret) FROM t", []),
    "a plain rollback": ("BEGIN; ROLLBACK", []),
    "what is rolled back": (
        f"BEGIN; {READ}; INSERT INTO empty VALUES ('x'); ROLLBACK",
        [("decrypt", 9, T), ("encrypt", 1, "public.empty")],
    ),
    "PREPARE TRANSACTION": (
        f"BEGIN; {READ}; PREPARE TRANSACTION 'p'; ROLLBACK PREPARED 'p'",
        [("decrypt", 9, T)],
    ),
}

@pytest.mark.parametrize("work", WORK)
def test_a_statement_logs_one_line_for_each_operation_and_key(
    admin: psycopg.Connection, shop: Database, trail: Trail, work: str
) -> None:
    admin.execute(OBJECTS)
    grant(shop)
    shop.psql('GRANT ALL ON SCHEMA "My Schema" TO app')
    shop.psql(f"GRANT ALL ON {QUOTED} TO app")
    trail.records()
    text, expected = WORK[work]
    # By psql, which reads what COPY sends.
    shop.psql(text, user="app")
    lines = trail.lines()
    assert [line.work for line in lines] == expected
    for line in lines:
        assert (line.user, line.role, line.database) == ("app", "app", shop.name)
        assert (line.outcome, line.suite) == ("ok", "xaes-256-gcm")
        assert line.application == "psql"
        assert line.key == key_id((shop.cluster.dir / "ring.keys").read_text())


def test_each_key_has_a_line_of_its_own(
    admin: psycopg.Connection, session: psycopg.Connection, trail: Trail
) -> None:
    pii = fetch(admin, "SELECT colcrypt.create_key('pii', 'envelope')")
    session.execute("INSERT INTO t SELECT 0, encrypt('x', 'pii') FROM plain LIMIT 4")
    trail.records()
    for query in ("SELECT secret FROM t", "SELECT secret FROM t ORDER BY id, secret"):
        session.execute(query)
        lines = [line for line in trail.lines() if line.operation == "decrypt"]
        ring = key_id((trail.host.dir / "ring.keys").read_text())
        found = {(line.key, line.suite): (line.values, line.bytes) for line in lines}
        assert found == {(ring, "xaes-256-gcm"): (9, 63), (pii, "envelope"): (4, 4)}
        assert len(lines) == 2


def test_many_keys_have_a_line_each(
    admin: psycopg.Connection, session: psycopg.Connection, trail: Trail
) -> None:
    admin.execute(
        "DO $$ BEGIN FOR i IN 1..1100 LOOP"
        " PERFORM colcrypt.create_key('k' || i); END LOOP; END $$"
    )
    session.execute(
        "INSERT INTO empty SELECT encrypt('x', 'k' || i) FROM (SELECT i"
        " FROM generate_series(1, 1100) i, generate_series(1, 2) ORDER BY i) AS s"
    )
    # A thousand are kept apart at a time.
    for operation in ("encrypt", "decrypt"):
        lines = trail.lines()
        assert len({line.key for line in lines}) == len(lines) == 1100
        assert {(line.operation, line.values) for line in lines} == {(operation, 2)}
        session.execute("SELECT secret FROM empty")


def test_bound_parameters_and_copied_rows_are_logged(
    session: psycopg.Connection, trail: Trail
) -> None:
    insert = "INSERT INTO empty VALUES (%s), (%s)"
    for prepare in (False, True, True):
        session.execute(insert, ["x", "yz"], prepare=prepare)
        assert trail.work() == [("encrypt", 2, "public.empty")]
    query = "SELECT secret FROM t WHERE id < %s"
    for prepare in (False, True, True):
        session.execute(query, [4], prepare=prepare)
        assert trail.work() == [("decrypt", 3, T)]
    with session.cursor() as cursor, cursor.copy("COPY empty FROM STDIN") as copy:
        for value in ("x", "\\N", "yz"):
            copy.write(f"{value}\t1\n")
    assert trail.work() == [("encrypt", 2, "public.empty")]
    with session.cursor(name="server_side") as cursor, session.transaction():
        cursor.itersize = 4
        assert len(cursor.execute("SELECT secret FROM t").fetchall()) == 9
    assert sum(values for _, values, _ in trail.work()) == 9


def test_a_pipeline_is_logged_statement_by_statement(
    session: psycopg.Connection, trail: Trail
) -> None:
    with session.pipeline():
        for number in (3, 4, 5):
            session.execute("SELECT secret FROM t WHERE id <= %s", [number])
        session.execute("INSERT INTO empty VALUES (%s)", ["x"])
    found = [work for work in trail.work() if work[0] == "decrypt"]
    assert found == [("decrypt", number, T) for number in (3, 4, 5)]


def test_a_rotation_is_logged(admin: psycopg.Connection, trail: Trail) -> None:
    new = fetch(admin, "SELECT colcrypt.create_key('pii')")
    admin.execute("ALTER TABLE t ALTER secret TYPE encrypted_text(pii)")
    admin.execute("SELECT rotate_column('t', 'secret')")
    lines = trail.lines()
    assert {(line.operation, line.key) for line in lines} == {("rotate", new)}
    assert sum(line.values for line in lines) == 9
    assert sum(line.bytes for line in lines) == 63
    assert {line.user for line in lines} == {"postgres"}


@pytest.mark.parametrize(
    "work",
    [
        "SELECT rotate_column('t', 'secret')",
        "CREATE INDEX ON t (secret)",
        "ALTER TABLE plain ALTER v TYPE encrypted_text",
    ],
)
def test_what_names_a_relation_logs_it(
    admin: psycopg.Connection, trail: Trail, work: str
) -> None:
    admin.execute("SET colcrypt.algorithm = 'envelope'")
    admin.execute(work)
    relations = [line.relation for line in trail.lines()]
    assert relations and "" not in relations


def test_a_procedure_that_commits_logs_all(
    admin: psycopg.Connection, session: psycopg.Connection, trail: Trail
) -> None:
    admin.execute(
        "CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..3 LOOP"
        " PERFORM secret::text FROM t; PERFORM secret::text FROM other;"
        " IF i = 2 THEN ROLLBACK; ELSE COMMIT; END IF; END LOOP; END $$"
    )
    session.execute("CALL p()")
    lines = trail.lines()
    assert sum(line.values for line in lines) == 54
    assert {(line.user, line.role) for line in lines} == {("app", "app")}
    assert {name for line in lines for name in line.relation.split(", ")} == {T, OTHER}


def test_parallel_workers_log_as_their_leader_does(
    admin: psycopg.Connection, session: psycopg.Connection, trail: Trail
) -> None:
    admin.execute(BIG)
    admin.execute("ALTER TABLE t SET (parallel_workers = 2)")
    session.execute("SET application_name = 'my app'")
    for name, value in PARALLEL.items():
        session.execute(f"SET {name} = '{value}'")
    trail.records()
    for role in ("app", "owner"):
        session.execute(f"SET ROLE {role}")
        assert "Workers Launched: 2" in plan(session, READ)
        lines = trail.lines()
        assert 1 <= len(lines) <= 2
        assert sum(line.values for line in lines) == 2000
        for line in lines:
            assert line.work == ("decrypt", line.values, T)
            assert (line.user, line.role) == ("app", role)
            assert (line.application, line.database) == ("my app", admin.info.dbname)


def test_at_most_eight_relations_are_named(
    admin: psycopg.Connection, shop: Database, trail: Trail
) -> None:
    for number in range(12):
        admin.execute(f"CREATE TABLE t{number} AS TABLE t")
    trail.records()
    union = " UNION ALL ".join(f"SELECT secret FROM t{n}" for n in range(12))
    admin.execute(union)
    [line] = trail.lines()
    assert line.values == 108
    assert line.relation.split(", ")[:8] == [f"public.t{n}" for n in range(8)]


def test_decoys_do_not_hide_a_relation(
    session: psycopg.Connection, trail: Trail
) -> None:
    for number in range(8):
        session.execute(f"CREATE TEMP TABLE d{number} (x encrypted_text)")
    decoys = " ".join(f"LEFT JOIN d{n} ON true" for n in range(1, 8))
    session.execute(f"SELECT secret FROM d0 {decoys} RIGHT JOIN t ON true")
    [line] = trail.lines()
    assert line.values == 9
    assert T in line.relation or "..." in line.relation or "more" in line.relation


def test_a_relation_with_encrypted_values_in_arrays_is_named(
    admin: psycopg.Connection, trail: Trail
) -> None:
    admin.execute("CREATE TABLE u AS SELECT ARRAY[secret] AS secrets FROM t")
    admin.execute("SELECT secrets FROM u")
    assert trail.work() == [("decrypt", 9, "public.u")]


# Triggers: queries inside of a statement

TRIGGER = """
    CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM FROM other WHERE id = NEW.id; RETURN NEW; END $$;
    CREATE TRIGGER look {} INSERT ON empty FOR EACH ROW EXECUTE FUNCTION look();"""


def test_triggers_before_a_row_are_part_of_the_statement(
    admin: psycopg.Connection, session: psycopg.Connection, trail: Trail
) -> None:
    admin.execute(TRIGGER.format("BEFORE"))
    session.execute("INSERT INTO empty SELECT v, id FROM plain")
    [line] = trail.lines()
    assert (line.operation, line.values) == ("encrypt", 9)
    assert line.relation.split(", ")[0] == "public.empty"


def test_triggers_after_a_row_are_part_of_the_statement(
    admin: psycopg.Connection, session: psycopg.Connection, trail: Trail
) -> None:
    work = TRIGGER.format("AFTER").replace("PERFORM FROM", "PERFORM secret::text FROM")
    admin.execute(work)
    session.execute("INSERT INTO empty SELECT v, id FROM plain")
    found = trail.work()
    assert sum(values for _, values, _ in found) == 18
    assert len(found) <= 2


def test_a_foreign_key_does_not_log_a_line_for_each_row(
    admin: psycopg.Connection, trail: Trail
) -> None:
    admin.execute("ALTER TABLE t ADD UNIQUE (secret)")
    admin.execute("CREATE TABLE child (secret encrypted_text REFERENCES t (secret))")
    trail.records()
    admin.execute("INSERT INTO child SELECT v FROM plain")
    assert len(trail.work()) <= 2


def test_copied_rows_with_triggers_log_one_line(
    admin: psycopg.Connection, session: psycopg.Connection, trail: Trail
) -> None:
    admin.execute(TRIGGER.format("BEFORE"))
    with session.cursor() as cursor, cursor.copy("COPY empty FROM STDIN") as copy:
        for number in range(9):
            copy.write(f"v\t{number}\n")
    [line] = trail.lines()
    assert (line.operation, line.values) == ("encrypt", 9)
    assert line.relation.split(", ")[0] == "public.empty"


# Who

DEFINER = """
    CREATE FUNCTION reads() RETURNS bigint LANGUAGE sql SECURITY DEFINER
        AS 'SELECT count(secret::text) FROM t'"""


def test_user_and_role_are_told_apart(
    admin: psycopg.Connection, session: psycopg.Connection, trail: Trail
) -> None:
    def who() -> list[tuple[str, str]]:
        return [(line.user, line.role) for line in trail.lines()]

    admin.execute(DEFINER)
    trail.records()
    session.execute(READ)
    assert who() == [("app", "app")]
    session.execute("SET ROLE owner")
    session.execute(READ)
    session.execute("INSERT INTO empty VALUES ('x') RETURNING secret")
    session.execute("INSERT INTO empty VALUES (%s)", ["x"])
    assert who() == [("app", "owner")] * 4
    session.execute("RESET ROLE")
    with session.transaction():
        session.execute(READ)
        session.execute("SET LOCAL ROLE owner")
        session.execute(READ)
        session.execute("INSERT INTO empty VALUES ('x') RETURNING secret")
        session.execute("RESET ROLE")
        session.execute(READ)
    owner = ("app", "owner")
    assert who() == [("app", "app"), *[owner] * 3, ("app", "app")]
    # Who asks, not whose function it is.
    session.execute("SELECT reads()")
    assert who() == [("app", "app")]
    admin.execute("SET ROLE app")
    admin.execute(READ)
    assert who() == [("postgres", "app")]


CAUGHT = {
    "savepoint": ["SAVEPOINT s", "SELECT 1 / (id - 1) FROM t", "ROLLBACK TO s"],
    "exception block": [
        "DO $$ BEGIN PERFORM 1 / (id - 1) FROM t;"
        " EXCEPTION WHEN division_by_zero THEN NULL; END $$"
    ],
}


@pytest.mark.parametrize("caught", CAUGHT)
def test_a_caught_error_does_not_blur_who_did_what(
    session: psycopg.Connection, trail: Trail, caught: str
) -> None:
    with session.transaction():
        for text in CAUGHT[caught]:
            with suppress(DivisionByZero):
                session.execute(text)
        session.execute("SELECT secret FROM other")
        session.execute("SET LOCAL ROLE owner")
        session.execute("SELECT secret FROM t")
    found = [(line.role, line.work) for line in trail.lines()]
    assert found == [
        ("app", ("decrypt", 9, OTHER)),
        ("owner", ("decrypt", 9, T)),
    ]


# Names

EVIL = [
    'a" outcome=ok relation="',
    "two\nlines",
    "cr\rlf\n",
    "tab\there",
    "back\\slash\\",
    "it's",
    "\\u{41}",
    "%s%n%m",
    "ä€\u2028\u202e\u200b",
    " ",
    'colcrypt audit: operation=decrypt"',
    "\x1b[31m\x7f",
    "a=b, c",
]


@pytest.mark.parametrize("name", EVIL, ids=range(len(EVIL)))
def test_no_name_forges_a_line(shop: Database, trail: Trail, name: str) -> None:
    host, unique = shop.cluster, f"{name} {next(numbers)}"
    evil = sql.Identifier(unique)
    with host.connect() as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE app").format(evil))
        create = sql.SQL("CREATE DATABASE {} TEMPLATE with_colcrypt")
        admin.execute(create.format(evil))
    with host.connect(dbname=unique) as admin:
        admin.execute(
            sql.SQL(
                "CREATE SCHEMA {0}; GRANT USAGE ON SCHEMA {0} TO PUBLIC;"
                "CREATE TABLE {0}.{0} (secret encrypted_text);"
                "INSERT INTO {0}.{0} VALUES ('x'); GRANT SELECT ON {0}.{0} TO PUBLIC"
            ).format(evil)
        )
    trail.records()
    options = {"dbname": unique, "user": unique, "application_name": unique}
    with host.connect(**options) as session:
        session.execute(sql.SQL("SELECT secret FROM {0}.{0}").format(evil))
    [line] = trail.lines()
    assert (line.user, line.role, line.database) == (unique,) * 3
    # PostgreSQL allows ASCII only there.
    printable = "".join(c if " " <= c <= "~" else "?" for c in unique)
    assert len(line.application) >= len(printable)
    quoted = '"' + unique.replace('"', '""') + '"'
    assert line.relation == f"{quoted}.{quoted}"
    with host.connect() as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(evil))
        admin.execute(sql.SQL("DROP ROLE {}").format(evil))


def test_names_in_another_encoding_stay_apart(host: Cluster) -> None:
    host.psql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with host.connect(dbname="latin", client_encoding="UTF8") as session:
            session.execute("CREATE EXTENSION colcrypt")
            for name in ("größe", "grüße"):
                session.execute(f"CREATE TABLE {name} (secret encrypted_text)")
                session.execute(f"INSERT INTO {name} VALUES ('ä')")
                session.execute(f"SELECT secret FROM {name}")
        with (host.datadir / "log" / "server.json").open("rb") as file:
            text = file.read()
        lines = [line for line in text.splitlines() if b'"dbname":"latin"' in line]
        audits = [line for line in lines if b"colcrypt audit" in line]
        assert len(audits) == 4
        assert all(json.loads(line.decode("latin1")) for line in audits)
        relations = {line.rpartition(b"relation=")[2] for line in audits}
        assert len(relations) == 2
    finally:
        host.psql("DROP DATABASE latin WITH (FORCE)")


def test_all_formats_of_the_log_hold_the_same_lines(
    session: psycopg.Connection, trail: Trail
) -> None:
    session.execute(
        "SELECT set_config('application_name', %s, false)", ['my "app", \\ and; more']
    )
    files = {kind: trail.folder / f"server.{kind}" for kind in ("csv", "log", "json")}
    starts = {kind: file.stat().st_size for kind, file in files.items()}
    session.execute("SELECT secret FROM t; INSERT INTO empty VALUES ('x')")
    lines = trail.lines()
    assert [line.operation for line in lines] == ["decrypt", "encrypt"]
    assert lines[0].application == 'my "app", \\ and; more'
    rest: dict[str, str] = {}
    for kind, file in files.items():
        # The formats are not written at the same moment.
        wait_until(
            lambda: b"mark " in file.read_bytes()[starts[kind] :], f"the log in {kind}"
        )
        rest[kind] = file.read_bytes()[starts[kind] :].decode()
    rows = list(csv.reader(rest["csv"].splitlines(keepends=True)))
    assert all(len(row) == 26 for row in rows)
    # The message is the fourteenth field.
    in_csv = [parse(row[13]) for row in rows if row[13].startswith("colcrypt")]
    texts = [line.partition("LOG:  ")[2] for line in rest["log"].splitlines()]
    in_text = [parse(text) for text in texts if text.startswith("colcrypt")]
    assert in_csv == in_text == lines


# Values and statements

LEAKS = {
    "insert": "INSERT INTO empty VALUES ('canary')",
    "compare": "SELECT count(*) FROM t WHERE secret = 'canary'",
    "unknown key": "SELECT secret, 'canary' FROM foreign_values",
    "exception": "DO $$ BEGIN PERFORM secret::text, 'canary' FROM foreign_values;"
    " END $$",
    "reserved": "INSERT INTO empty VALUES ('colcrypt:v1:canary')",
    "decrypt": "SELECT decrypt(secret), 'canary' FROM foreign_values",
    "grant": "SELECT encrypt('canary', 'pii')",
    "unknown name": "SELECT encrypt('canary', 'no such key')",
}


@pytest.mark.parametrize("leak", LEAKS)
def test_no_line_of_ours_holds_a_value_or_a_statement(
    admin: psycopg.Connection, session: psycopg.Connection, trail: Trail, leak: str
) -> None:
    insert_foreign(admin, new_key())
    admin.execute("CREATE TABLE foreign_values AS TABLE empty")
    admin.execute("GRANT SELECT ON foreign_values TO PUBLIC")
    admin.execute("SELECT colcrypt.create_key('pii')")
    admin.execute("SELECT colcrypt.grant_key('pii', 'postgres')")
    trail.records()
    with suppress(psycopg.Error):
        session.execute(LEAKS[leak])
    records = trail.records()
    assert any("colcrypt" in str(record.values()) for record in records) or [
        record for record in records if record["error_severity"] == "ERROR"
    ]
    assert "canary" not in json.dumps(records)


COPY_TARGETS = {
    "table": ("empty", "{}\t1\n", "canary"),
    "table with a trigger that queries": ("triggered", "{}\t1\n", "canary"),
    "array": ("arrays", "{}\t1\n", "{canary}"),
    "view": ("view_of_empty", "{}\t1\n", "canary"),
}


@pytest.mark.parametrize(
    "target",
    [
        "table",
        "table with a trigger that queries",
        "array",
        "view",
    ],
)
def test_a_copy_that_fails_logs_no_value(
    admin: psycopg.Connection, trail: Trail, target: str
) -> None:
    table, row, value = COPY_TARGETS[target]
    admin.execute("CREATE TABLE triggered AS TABLE empty")
    admin.execute(TRIGGER.format("BEFORE").replace("ON empty", "ON triggered"))
    admin.execute("CREATE TABLE arrays (secret encrypted_text[], id int)")
    admin.execute(
        "CREATE VIEW view_of_empty AS TABLE empty;"
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER nothing INSTEAD OF INSERT ON view_of_empty"
        " FOR EACH ROW EXECUTE FUNCTION nothing()"
    )
    trail.records()
    with pytest.raises(BadCopyFileFormat), admin.cursor() as cursor:
        with cursor.copy(f"COPY {table} FROM STDIN") as copy:
            copy.write(row.format(value) * 2 + f"{value}\t1\textra\n")
    records = trail.records()
    assert any(record["error_severity"] == "ERROR" for record in records)
    assert "canary" not in json.dumps(records)


# Failures


@pytest.fixture
def foreign(admin: psycopg.Connection, trail: Trail) -> str:
    """Table `empty` has three values under this key, which is not in the ring."""
    key = new_key()
    for _ in range(3):
        insert_foreign(admin, key)
    trail.records()
    return key


FAIL = {
    "SELECT": "SELECT secret FROM empty",
    "cast": "SELECT count(secret::text) FROM empty",
    "COPY": "COPY empty TO '/dev/null'",
    "DO": "DO $$ BEGIN PERFORM secret::text FROM empty; END $$",
}


@pytest.mark.parametrize("query", FAIL.values(), ids=FAIL)
def test_a_failed_statement_logs_one_line(
    admin: psycopg.Connection, foreign: str, trail: Trail, query: str
) -> None:
    with pytest.raises(ObjectNotInPrerequisiteState):
        admin.execute(query)
    failed = ("decrypt", "1", key_id(foreign), "wrong key", "55000")
    assert trail.failures() == [failed]
    with pytest.raises(ObjectNotInPrerequisiteState):
        admin.execute(query)
    [line] = trail.lines()
    assert (line.outcome, line.key, line.values) == ("wrong_key", key_id(foreign), 1)
    assert line.bytes == 0


ALL = {
    "placeholder": "SELECT secret FROM empty",
    "placeholders in COPY": "COPY empty TO '/dev/null'",
    "try_decrypt()": "SELECT try_decrypt(secret) FROM empty",
    "exception block": "DO $$ DECLARE r record; s text; BEGIN"
    " FOR r IN SELECT secret FROM empty LOOP"
    " BEGIN s := r.secret::text; EXCEPTION WHEN OTHERS THEN NULL; END;"
    " END LOOP; END $$",
}


@pytest.mark.parametrize("name", ALL)
def test_many_failures_of_a_statement_are_one_line(
    admin: psycopg.Connection, foreign: str, trail: Trail, name: str
) -> None:
    if "placeholder" in name:
        admin.execute("SET colcrypt.undecryptable = 'placeholder'")
    failed = ("decrypt", "3", key_id(foreign), "wrong key", "55000")
    for _ in range(2):
        admin.execute(ALL[name])
        assert trail.failures() == [failed]


def test_damage_is_logged(
    admin: psycopg.Connection, foreign: str, trail: Trail
) -> None:
    insert_foreign(admin, foreign, damage=True)
    admin.execute(SET_KEY, [foreign])
    admin.execute("SET colcrypt.algorithm = 'envelope'")
    for query, verb in (
        ("SELECT secret FROM empty", "decrypt"),
        ("SELECT count(*) FROM empty WHERE secret = 'x'::text", "decrypt"),
        ("SELECT rotate_column('empty', 'secret')", "rotate"),
    ):
        with pytest.raises(DataCorrupted):
            admin.execute(query)
        assert trail.failures() == [(verb, "1", key_id(foreign), "damaged", "XX001")]


def test_a_destroyed_key_is_logged(admin: psycopg.Connection, trail: Trail) -> None:
    key = fetch(admin, "SELECT colcrypt.create_key('pii')")
    admin.execute("INSERT INTO empty SELECT encrypt(v, 'pii') FROM plain")
    admin.execute("SELECT colcrypt.shred_key('pii')")
    trail.records()
    with pytest.raises(ObjectNotInPrerequisiteState):
        admin.execute("SELECT secret FROM empty")
    assert trail.failures() == [("decrypt", "1", key, "wrong key", "55000")]


USE_PII = {
    "write_key": "SET colcrypt.write_key = 'pii'; SELECT encrypt('x')",
    "encrypt()": "SELECT encrypt('x', 'pii')",
    "column": "INSERT INTO u SELECT v FROM plain",
}


@pytest.mark.parametrize(
    "use",
    [
        "write_key",
        "encrypt()",
        "column",
    ],
)
def test_that_a_destroyed_key_was_to_be_used_is_logged(
    admin: psycopg.Connection, trail: Trail, use: str
) -> None:
    fetch(admin, "SELECT colcrypt.create_key('pii')")
    admin.execute("CREATE TABLE u (secret encrypted_text(pii))")
    admin.execute("SELECT colcrypt.shred_key('pii')")
    trail.records()
    with pytest.raises(ObjectNotInPrerequisiteState):
        admin.execute(USE_PII[use])
    [(verb, *_, code)] = trail.failures()
    assert (verb, code) == ("encrypt", "55000")


def test_without_any_key_failures_are_logged(make_cluster: MakeCluster) -> None:
    # Also without preload, and with audit_log off.
    cluster = make_cluster()
    with cluster.connect() as session:
        for text in ("SELECT encrypt('x')", "SELECT 'x'::encrypted_text"):
            start = len(cluster.log())
            with pytest.raises(ObjectNotInPrerequisiteState):
                session.execute(text)
            failed = "colcrypt: failed to encrypt 1 value: wrong key, SQLSTATE 55000"
            assert cluster.log()[start:].count(failed) == 1
        assert logged(cluster) == []


def test_each_statement_that_fails_in_a_transaction_has_its_line(
    admin: psycopg.Connection, foreign: str, trail: Trail
) -> None:
    with admin.transaction():
        for _ in range(2):
            with pytest.raises(ObjectNotInPrerequisiteState), admin.transaction():
                admin.execute("SELECT secret FROM empty")
    failed = ("decrypt", "1", key_id(foreign), "wrong key", "55000")
    assert trail.failures() == [failed] * 2


def test_what_a_failed_transaction_read_is_logged(
    session: psycopg.Connection, trail: Trail
) -> None:
    with pytest.raises(DivisionByZero):
        session.execute("SELECT secret::text, 1 / (id - 9) FROM t")
    assert trail.work() == [("decrypt", 9, T)]
    with pytest.raises(DivisionByZero), session.transaction():
        session.execute("SELECT secret FROM other")
        session.execute("SELECT secret::text, 1 / (id - 9) FROM t")
    assert trail.work() == [("decrypt", 9, OTHER), ("decrypt", 9, T)]


@pytest.mark.parametrize("end", ["close", "terminate", "timeout"])
def test_whoever_leaves_early_is_logged(shop: Database, trail: Trail, end: str) -> None:
    with shop.connect(user="app") as session:
        session.execute("BEGIN; DECLARE c CURSOR FOR SELECT secret FROM t")
        session.execute("FETCH ALL FROM c")
        pid = session.info.backend_pid
        if end == "close":
            session.close()
        elif end == "terminate":
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        else:
            with pytest.raises(QueryCanceled):
                session.execute("SET statement_timeout = 50; SELECT pg_sleep(60)")
            session.close()
    there = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"
    wait_until(lambda: shop.psql(there) == "0", "the end of the session")
    assert trail.work() == [("decrypt", 9, T)]


INTERRUPTED = (
    "BEGIN; DECLARE c CURSOR FOR"
    " SELECT pg_cancel_backend(pg_backend_pid()), secret::text FROM t"
)


def test_a_cancel_does_not_silence_the_log(
    session: psycopg.Connection, trail: Trail
) -> None:
    # It is pending when the statement ends: FETCH 1 does not come back to the plan.
    session.execute(INTERRUPTED)
    with suppress(QueryCanceled):
        session.execute("FETCH 1 FROM c")
    session.execute("ROLLBACK")
    assert trail.work() == [("decrypt", 1, T)]
    session.execute("SELECT secret FROM t")
    assert trail.work() == [("decrypt", 9, T)]


def test_a_client_is_not_told(session: psycopg.Connection, trail: Trail) -> None:
    told: list[str | None] = []
    session.add_notice_handler(lambda notice: told.append(notice.message_primary))
    session.execute("SET client_min_messages = 'log'")
    session.execute("SELECT secret FROM t")
    assert trail.work() == [("decrypt", 9, T)]
    assert told == []


# What is refused


@pytest.mark.parametrize(
    "text, operation",
    [
        ("SELECT decrypt(secret) FROM t", "decrypt"),
        ("SELECT ciphertext(secret) FROM t", "decrypt"),
        ("SELECT count(*) FROM t WHERE secret = 'value 1'::text", "compare"),
        ("SELECT count(*) FROM t GROUP BY secret", "compare"),
        ("SELECT id FROM t ORDER BY secret", "compare"),
    ],
)
@pytest.mark.parametrize("why", ["access", "grant"])
def test_what_is_refused_is_logged(
    admin: psycopg.Connection,
    shop: Database,
    trail: Trail,
    text: str,
    operation: str,
    why: str,
) -> None:
    if why == "access":
        role = f"ROLE app IN DATABASE {shop.name}"
        admin.execute(f"ALTER {role} SET colcrypt.access = 'masked'")
    else:
        admin.execute("SELECT colcrypt.create_key('pii')")
        admin.execute("SELECT colcrypt.grant_key('pii', 'postgres')")
        admin.execute("UPDATE t SET secret = encrypt('x', 'pii')")
    with shop.connect(user="app") as session:
        trail.records()
        with pytest.raises(InsufficientPrivilege):
            session.execute(text)
        [line] = trail.lines()
        assert (line.operation, line.outcome) == (operation, "denied")
        assert (line.user, line.values, line.bytes) == ("app", 1, 0)
        # Where the mode refuses, no value need be looked at.
        assert why == "access" or line.key != ""
        # No failure of the server's.
        with pytest.raises(InsufficientPrivilege):
            session.execute(text)
        assert trail.failures() == []


def test_values_that_are_masked_for_want_of_a_grant_are_one_line(
    admin: psycopg.Connection, session: psycopg.Connection, trail: Trail
) -> None:
    key = fetch(admin, "SELECT colcrypt.create_key('pii')")
    admin.execute("SELECT colcrypt.grant_key('pii', 'postgres')")
    admin.execute("UPDATE t SET secret = encrypt(id::text, 'pii')")
    trail.records()
    session.execute("SELECT secret FROM t")
    [line] = trail.lines()
    assert (line.outcome, line.key, line.work) == ("denied", key, ("decrypt", 9, T))


def test_dumps_and_replication_log_what_they_decrypt(
    admin: psycopg.Connection, shop: Database, trail: Trail
) -> None:
    fetch(admin, "SELECT pg_create_logical_replication_slot('slot', 'test_decoding')")
    admin.execute("INSERT INTO empty SELECT v FROM plain")
    end = fetch(admin, "SELECT pg_current_wal_lsn()")
    trail.records()
    host = shop.cluster
    receive = ("--slot=slot", "--start", "--no-loop", f"--endpos={end}", "--file=-")
    what = ("--data-only", "--table=t")
    for plaintext in (False, True):
        env = {"PGOPTIONS": "-c colcrypt.dump_plaintext=on"} if plaintext else None
        dump = host.run("pg_dump", *what, db=shop.name, env=env)
        assert ("value 3" in dump) == plaintext
        expected = [("decrypt", 9, T)] if plaintext else []
        assert trail.work() == expected
    host.run("pg_recvlogical", f"--dbname={shop.name}", *receive, env=env)
    lines = trail.lines()
    assert sum(line.values for line in lines) == 9
    assert {line.user for line in lines} == {"postgres"}
    assert {line.database for line in lines} == {shop.name}
    assert {line.application for line in lines} == {"pg_recvlogical"}
    fetch(admin, "SELECT pg_drop_replication_slot('slot')::text")


# The setting

USES = "SELECT secret FROM t; INSERT INTO empty VALUES ('x')"


def test_off_is_the_default_and_silent(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(ring=new_key(), conf=PRELOAD)
    cluster.psql(TABLE)
    assert cluster.psql("SHOW colcrypt.audit_log") == "off"
    start = len(cluster.log())
    with cluster.connect() as session:
        session.execute(USES)
        session.execute("SET colcrypt.access = 'masked'")
        with pytest.raises(InsufficientPrivilege):
            session.execute("SELECT decrypt(secret) FROM t")
    assert "colcrypt audit" not in cluster.log()[start:]
    assert "colcrypt: failed" not in cluster.log()[start:]


def test_failures_are_logged_without_access(
    admin: psycopg.Connection, foreign: str, trail: Trail
) -> None:
    admin.execute("SET colcrypt.audit_log = 'failures'")
    admin.execute("SET colcrypt.undecryptable = 'placeholder'")
    admin.execute(USES)
    assert trail.messages() == []
    admin.execute("SELECT secret FROM empty")
    [line] = trail.lines()
    assert (line.outcome, line.values) == ("wrong_key", 3)
    admin.execute("SET colcrypt.access = 'masked'")
    with pytest.raises(InsufficientPrivilege):
        admin.execute("SELECT decrypt(secret) FROM t")
    [line] = trail.lines()
    assert line.outcome == "denied"


def test_it_is_set_for_roles_and_databases(
    admin: psycopg.Connection, shop: Database, trail: Trail
) -> None:
    for target in (f"ROLE app IN DATABASE {shop.name}", f"DATABASE {shop.name}"):
        admin.execute(f"ALTER {target} SET colcrypt.audit_log = 'off'")
        trail.records()
        with shop.connect(user="app") as session:
            session.execute(USES)
        assert trail.lines() == []
        admin.execute(f"ALTER {target} RESET colcrypt.audit_log")
        with shop.connect(user="app") as session:
            session.execute(USES)
        assert len(trail.lines()) == 2


SWITCH_OFF = [
    "SET colcrypt.audit_log = 'off'",
    "SET LOCAL colcrypt.audit_log = 'off'",
    "SELECT set_config('colcrypt.audit_log', 'failures', false)",
    "ALTER ROLE app SET colcrypt.audit_log = 'off'",
    "ALTER DATABASE {} SET colcrypt.audit_log = 'off'",
    "ALTER SYSTEM SET colcrypt.audit_log = 'off'",
    "UPDATE pg_settings SET setting = 'off' WHERE name = 'colcrypt.audit_log'",
    "CREATE FUNCTION f() RETURNS text LANGUAGE sql SET colcrypt.audit_log = 'off'"
    " AS 'SELECT secret::text FROM t'",
]


@pytest.mark.parametrize("text", SWITCH_OFF)
def test_a_user_cannot_switch_it_off(
    session: psycopg.Connection, trail: Trail, text: str
) -> None:
    with pytest.raises(InsufficientPrivilege):
        session.execute(text.format(session.info.dbname))
    for reset in ("RESET ALL", "DISCARD ALL"):
        session.execute(reset)
    session.execute("SELECT secret FROM t")
    assert trail.work() == [("decrypt", 9, T)]


def test_the_options_of_a_connection_do_not_switch_it_off(shop: Database) -> None:
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        shop.connect(user="app", options="-c colcrypt.audit_log=off")


LOADS = {
    "library not loaded": {},
    "session_preload_libraries": {"session_preload_libraries": "colcrypt"},
}


@pytest.fixture(params=LOADS)
def late(make_cluster: MakeCluster, request: pytest.FixtureRequest) -> Cluster:
    """A server that audits, on which each session loads the library by itself."""
    cluster = make_cluster(ring=new_key(), conf=LOADS[request.param] | ACCESS)
    cluster.psql(TABLE + "CREATE ROLE app LOGIN; CREATE ROLE owner")
    grant(Database(cluster, "postgres"))
    return cluster


def test_a_user_cannot_switch_it_off_before_the_library_is_loaded(
    late: Cluster,
) -> None:
    for text in (
        "SELECT 1",
        "SET colcrypt.audit_log = 'off'",
        "SET SESSION colcrypt.audit_log TO DEFAULT",
        "SELECT set_config('colcrypt.audit_log', 'failures', false)",
        "BEGIN; SET LOCAL colcrypt.audit_log = 'off'",
        "RESET colcrypt.audit_log",
        "ALTER ROLE app SET colcrypt.audit_log = 'off'",
    ):
        start = len(late.log())
        with late.connect(user="app") as session:
            with suppress(InsufficientPrivilege):
                session.execute(text)
            if session.info.transaction_status == TransactionStatus.INERROR:
                session.execute("ROLLBACK")
            for _ in range(2):
                session.execute("SELECT secret FROM t")
        # The statement that loads the library begins without it.
        found = [(line.values, line.relation or T) for line in logged(late, start)]
        assert found == [(9, T)] * 2, text


@pytest.mark.parametrize("by_role", [False, True], ids=["configuration", "role"])
def test_options_cannot_switch_it_off_before_the_library_is_loaded(
    late: Cluster, by_role: bool
) -> None:
    if by_role:
        late.psql("ALTER ROLE app SET colcrypt.audit_log = 'access'")
    start = len(late.log())
    for value in ("off", "failures", "nonsense"):
        with suppress(psycopg.OperationalError):
            options = f"-c colcrypt.audit_log={value}"
            with late.connect(user="app", options=options) as session:
                session.execute("SELECT secret FROM t")
            found = [line.values for line in logged(late, start)]
            assert found == [9], value
            start = len(late.log())


def test_sessions_at_once_log_what_each_did(shop: Database, trail: Trail) -> None:
    def work(number: int) -> None:
        with shop.connect(user="app", application_name=f"app {number}") as session:
            for _ in range(20):
                session.execute("SELECT secret FROM t WHERE id <= %s", [number])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(1, 5)))
    found = [(line.application, line.work) for line in trail.lines()]
    expected = [(f"app {n}", ("decrypt", n, T)) for n in range(1, 5) for _ in range(20)]
    assert sorted(found) == sorted(expected)


def test_a_violated_constraint_logs_what_was_encrypted(
    admin: psycopg.Connection, session: psycopg.Connection, trail: Trail
) -> None:
    admin.execute("CREATE UNIQUE INDEX ON t (secret)")
    trail.records()
    with pytest.raises(UniqueViolation):
        session.execute("INSERT INTO t VALUES (1, 'value 3')")
    assert ("encrypt", 1, T) in trail.work()

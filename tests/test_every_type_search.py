"""What is compared, joined, grouped and constrained on columns of each encrypted type
comes out as it does on columns of the plain type.

Each kind has two schemas with the same tables, columns of the encrypted type in the one
and of the plain type in the other: the same query must give the same rows in both. For
text alone there is more in test_search_results.py.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.errors import (
    FeatureNotSupported,
    ProgramLimitExceeded,
    UniqueViolation,
)
from psycopg.types.string import TextLoader

from harness import MAJOR, Cluster, Database, fetch, new_key
from kinds import BYTEA, JSONB, KINDS, TEXT, Kind, every_kind
from test_search_results import (
    HASH,
    IN_SCHEMA,
    MERGE,
    PARALLEL,
    PARTITIONWISE,
    SORT,
    off,
)

# t.b is to have a btree index and t.h, whose values are equal to t.b's, a hash index.
# p is partitioned by its value. words is plain in both schemas.
TABLES = """
    CREATE SCHEMA {schema}
        CREATE TABLE t (id int, flag bool, b {type}, h {type})
        CREATE TABLE u (id int, v {type})
        CREATE TABLE words (n int, word {plain})
        CREATE TABLE p (id int, v {type}) PARTITION BY HASH (v);
    SET search_path = {schema}, public;
    CREATE TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 3, REMAINDER 0);
    CREATE TABLE p1 PARTITION OF p FOR VALUES WITH (MODULUS 3, REMAINDER 1);
    CREATE TABLE p2 PARTITION OF p FOR VALUES WITH (MODULUS 3, REMAINDER 2);
"""
INDEXES = """
    CREATE INDEX b ON {schema}.t USING btree (b);
    CREATE INDEX h ON {schema}.t USING hash (h);
    CREATE INDEX v ON {schema}.u USING hash (v);
    CREATE INDEX pv ON {schema}.p (v);
"""
COLUMNS = [("t", "b"), ("t", "h"), ("u", "v"), ("p", "v")]


def sealed(kind: Kind) -> str:
    return f"sealed_{kind}"


def plain(kind: Kind) -> str:
    return f"plain_{kind}"


def lit(kind: Kind, name: str) -> str:
    """A value as an SQL literal."""
    return kind.holding(name).literal


def pool(kind: Kind) -> list[tuple[str, ...]]:
    """Values as literals, each in one form or more."""
    names = [(lit(kind, f"n{i}"),) for i in range(80)]
    odd = [(literal,) for pair in kind.different for literal in pair]
    # Larger ones do not fit into a btree.
    samples = [(s.literal,) for s in kind.samples if len(s.sealed) < 2000]
    return [*names, *kind.equal, *odd, *samples]


def fill(session: psycopg.Connection, kind: Kind) -> None:
    dice = random.Random(15)
    values = pool(kind)
    # n0 is the most frequent one.
    often = [values[0]] * 30 + [("NULL",)] * 15 + values * 2
    drawn = [dice.choice(often) for _ in range(900 - len(values))] + values
    for schema, type in ((sealed(kind), kind.type), (plain(kind), kind.plain)):
        session.execute(TABLES.format(schema=schema, type=type, plain=kind.plain))
        dice = random.Random(16)
        rows = {"t": [], "u": [], "p": [], "words": []}
        for id, forms in enumerate(drawn):
            b, h = dice.choice(forms), dice.choice(forms)
            rows["t"].append(f"({id}, {id % 3 == 0}, {b}, {h})")
            rows["p"].append(f"({id}, {h})")
            if id % 5 == 0:
                rows["u"].append(f"({id}, {dice.choice(forms)})")
        for n, forms in enumerate([*values[::2], (lit(kind, "absent"),)]):
            rows["words"].append(f"({n}, {dice.choice(forms)})")
        for table, tuples in rows.items():
            session.execute(f"INSERT INTO {table} VALUES {', '.join(tuples)}")
        session.execute("ANALYZE t, u, p, words")


# The states in which everything must hold


class Host:
    """A server with the tables, and what happens to them, one after the other."""

    STATES = ("indexed", "half rotated", "rotated and restarted")

    def __init__(self, base: Path, template: Path) -> None:
        self.keys = [new_key(), new_key()]
        self.cluster = Cluster(base, template, ring=self.keys[0])
        # Plans are not to depend on when it comes round.
        self.cluster.conf(autovacuum=False, jit=False)
        self.cluster.start()
        self.cluster.psql("CREATE EXTENSION colcrypt")
        with self.cluster.connect() as session:
            for kind in KINDS:
                fill(session, kind)
                for schema in (sealed(kind), plain(kind)):
                    session.execute(INDEXES.format(schema=schema))
        self.state = 0

    def reach(self, name: str) -> None:
        steps = [self.rotate_half, self.rotate_the_rest]
        wanted = self.STATES.index(name)
        assert wanted >= self.state
        for step in steps[self.state : wanted]:
            step()
        self.state = wanted

    def rotate_half(self) -> None:
        self.cluster.set_ring(",".join(reversed(self.keys)))
        self.cluster.reload()
        self.rotate(part=2)

    def rotate_the_rest(self) -> None:
        self.rotate()
        assert self.cluster.psql("SELECT colcrypt.rewrap_keys()") == "1"
        # The inner pages of a btree have copies of values, under the old key.
        for kind in KINDS:
            for index in ("b", "pv"):
                self.cluster.psql(f"REINDEX INDEX {sealed(kind)}.{index}")
        self.cluster.set_ring(self.keys[1])
        self.cluster.restart()

    def rotate(self, part: int | None = None) -> None:
        """Rotates the columns, or of each as many values as one in `part`."""
        for kind in KINDS:
            for table, column in COLUMNS:
                name = f"{sealed(kind)}.{table}"
                count = int(self.cluster.psql(f"SELECT count({column}) FROM {name}"))
                most = "NULL" if part is None else count // part
                done = self.cluster.psql(
                    f"SELECT rotate_column('{name}', '{column}', max_rows => {most})"
                )
                left = count // 2 + count % 2
                assert int(done) == (left if part is None else most)


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Host]:
    host = Host(base, template)
    yield host
    host.cluster.destroy()


@pytest.fixture(scope="module", params=Host.STATES)
def state(request: pytest.FixtureRequest, host: Host) -> str:
    host.reach(request.param)
    return request.param


@pytest.fixture(scope="module")
def session(state: str, host: Host) -> Iterator[psycopg.Connection]:
    with host.cluster.connect() as session:
        load_as_text(session)
        yield session


def load_as_text(session: psycopg.Connection) -> None:
    """Has values of the plain types come in as they are printed."""
    for kind in KINDS:
        session.adapters.register_loader(kind.plain, TextLoader)


# Queries


class Query(NamedTuple):
    # {x}, {y}, {absent}: literals; {array}: one of an array; {type}, {plain}: the types
    sql: str
    # What the plan on the encrypted columns must have.
    plan: tuple[str, ...] = ()
    settings: str = ""

    def of(self, kind: Kind) -> Query:
        texts = [kind.holding(name).text for name in ("n1", "n2", "n3", "absent")]
        quoted = [
            '"' + text.replace("\\", r"\\").replace('"', r"\"") + '"' for text in texts
        ]
        sql = self.sql.format(
            x=lit(kind, "n0"),
            y=kind.equal[0][1],
            absent=lit(kind, "absent"),
            array="'{" + ",".join(quoted) + "}'",
            type=kind.type,
            plain=kind.plain,
        )
        return self._replace(sql=sql)


LOOP = off("hashjoin", "mergejoin", "seqscan", "bitmapscan", "material", "memoize")
CONDITIONS = """
    b = {x}
    b = {x}::{plain}
    {x}::{plain} = b
    h = {x}
    h = {y}
    {y}::{plain} = h
    b <> {x}
    {x}::{plain} <> h
    b = h
    b <> h OR b IS NULL
    b IN ({x}, {y}, {absent})
    h IN ({x}::{plain}, {y})
    b NOT IN ({x}, {y}, {absent})
    b = ANY ({array})
    h = ANY ({array}::{plain}[])
    b <> ALL ({array}::{plain}[])
    b = ANY (ARRAY[{x}::{plain}, NULL])
    b IS DISTINCT FROM {x}
    b IS NOT DISTINCT FROM {y}::{plain}
    b IN (SELECT word FROM words)
    b IN (SELECT v FROM u)
    b NOT IN (SELECT word FROM words)
    (b, h) IN (SELECT v, v FROM u WHERE id < 500)
    EXISTS (SELECT FROM u WHERE v = b AND u.id <> t.id)
    NOT EXISTS (SELECT FROM u WHERE v = b)
    NOT EXISTS (SELECT FROM words WHERE word = b)
    b = (SELECT word FROM words WHERE n = 3)
    b <> ALL (SELECT word FROM words WHERE n < t.id)
    (b, flag) = ({x}, true)
    (b, h) IN (({x}, {x}), ({y}, {y}), ({x}, {y}))
    ROW (b, h) = ROW (h, b)
    ROW (b, flag) <> ROW ({x}, true)
    ARRAY[b, h] = ARRAY[h, b]
    ARRAY[b] && (SELECT array_agg(v) FROM u WHERE id < 100)
    CASE b WHEN {x} THEN false WHEN {y}::{plain} THEN true ELSE flag END
    NULLIF(b, {x}) IS NULL
    COALESCE(b, {x}) = {x}
    COALESCE(b, {x}::{plain}) = {x}
    b::text LIKE '%1%'
    b::{plain} = {x}
"""
QUERIES = [
    Query(f"SELECT id FROM t WHERE {condition.strip()}")
    for condition in CONDITIONS.strip().splitlines()
]
JOINS = [
    ("t.id, u.id", "t {} JOIN u ON t.b = u.v"),
    ("t.id, u.id", "u {} JOIN t ON t.h = u.v"),
    ("t.id, n", "words {} JOIN t ON t.b = word"),
    ("t.id, n", "words {} JOIN t ON word = t.h"),
    ("u.id, n", "words {} JOIN u ON word = u.v"),
]
for columns, join in JOINS:
    for settings, shape in ((HASH, "Hash"), (MERGE, "Merge")):
        for way in ("INNER", "LEFT", "FULL"):
            sql = f"SELECT {columns} FROM {join.format(way)}"
            QUERIES.append(Query(sql, (shape,), settings))
    sql = f"SELECT {columns} FROM {join.format('INNER')}"
    QUERIES.append(Query(sql, ("Nested Loop", "Index Scan using"), LOOP))
QUERIES += [
    Query(
        "SELECT id FROM u WHERE EXISTS (SELECT FROM t WHERE b = v AND t.id < u.id)",
        # Since 18 perhaps "Hash Right Semi Join".
        ("Hash ", "Semi Join"),
        HASH,
    ),
    Query("SELECT id FROM u WHERE v IN (SELECT b FROM t)", ("Merge",), MERGE),
    Query(
        "SELECT n FROM words WHERE NOT EXISTS (SELECT FROM t WHERE b = word)",
        ("Anti Join",),
        HASH,
    ),
    Query(
        "SELECT id FROM t WHERE b NOT IN (SELECT word FROM words)", ("hashed SubPlan",)
    ),
    Query("SELECT x.id, y.id FROM t x JOIN t y USING (b) WHERE x.id < 99", (), HASH),
    Query("SELECT x.id FROM t x JOIN t y ON x = y", (), HASH),
    Query("SELECT x.id FROM t x JOIN t y ON x = y", (), MERGE),
    Query(
        "SELECT t.id, c FROM t,"
        " LATERAL (SELECT count(*) c FROM u WHERE v = b OFFSET 0) x",
        ("Memoize",),
    ),
    # Grouping and duplicates
    Query("SELECT DISTINCT b FROM t", ("HashAggregate",)),
    Query("SELECT DISTINCT v FROM u", ("Unique",), SORT),
    Query("SELECT DISTINCT ON (v) v, id FROM u ORDER BY v, id", ("Unique",)),
    Query("SELECT b, count(*), min(id) FROM t GROUP BY b", ("HashAggregate",)),
    Query("SELECT b, count(*), min(id) FROM t GROUP BY b", ("GroupAggregate",), SORT),
    Query("SELECT h, flag, count(*) FROM t GROUP BY CUBE (h, flag)"),
    Query("SELECT b, flag, count(*) FROM t GROUP BY ROLLUP (b, flag)", (), SORT),
    Query("SELECT b FROM t GROUP BY b HAVING count(*) = 1 OR b = {x}"),
    Query("SELECT b::{plain}, count(*) FROM t GROUP BY b"),
    Query("SELECT count(*) FROM t GROUP BY ARRAY[b, h]", ("HashAggregate",)),
    Query("SELECT count(*) FROM t GROUP BY ROW (b, flag)"),
    Query("SELECT count(DISTINCT b), count(DISTINCT (b, flag)), count(b) FROM t"),
    Query("SELECT flag, count(DISTINCT b) FROM t GROUP BY flag"),
    Query("SELECT count(*) FILTER (WHERE b = {x}), bool_or(b = {y}) FROM t"),
    Query("SELECT mode() WITHIN GROUP (ORDER BY b) FROM t WHERE b IS NOT NULL"),
    Query("SELECT id, count(*) OVER (PARTITION BY b) FROM t"),
    Query(
        "SELECT id, row_number() OVER w, b = lag(b) OVER w FROM t"
        " WINDOW w AS (PARTITION BY h ORDER BY id)"
    ),
    # Set operations
    *(
        Query(f"SELECT {one} {operation} SELECT {other}", (), settings)
        for operation in ("UNION", "INTERSECT", "EXCEPT", "INTERSECT ALL", "EXCEPT ALL")
        for one, other in [("b FROM t", "v FROM u"), ("h FROM t", "word FROM words")]
        for settings in ("", SORT)
    ),
    Query(
        "WITH RECURSIVE r (v) AS (SELECT v FROM u WHERE id < 30"
        " UNION SELECT b FROM t, r WHERE h = r.v) SELECT v FROM r",
        ("Recursive Union",),
    ),
    # Partitions
    Query("SELECT id FROM p WHERE v = {x}"),
    Query("SELECT id FROM p WHERE v = {y}::{plain}"),
    Query("SELECT id FROM p WHERE v IN ({x}, {y})"),
    Query("SELECT p.id FROM p JOIN words ON word = v AND n < 20"),
    Query(
        "SELECT x.id, y.id FROM p x JOIN p y USING (v) WHERE x.id < 99",
        ("Append",),
        PARTITIONWISE + HASH,
    ),
    Query("SELECT v, count(*) FROM p GROUP BY v", ("Append",), PARTITIONWISE),
    # Parallel plans
    *(
        Query(sql, ("Gather", *shape), PARALLEL + settings)
        for sql, settings, *shape in [
            ("SELECT id FROM t WHERE b <> {x}", off("indexscan", "bitmapscan")),
            ("SELECT id FROM t WHERE {x}::{plain} <> b", ""),
            ("SELECT b, count(*) FROM t GROUP BY b", "", "HashAggregate"),
            ("SELECT b, count(*) FROM t GROUP BY b", SORT, "GroupAggregate"),
            ("SELECT count(*) FROM t WHERE b <> {x}", "", "Partial Aggregate"),
            ("SELECT DISTINCT b FROM t", ""),
            ("SELECT count(*) FROM t JOIN u ON b = v", HASH, "Parallel Hash Join"),
            ("SELECT n, count(*) FROM t JOIN words ON b = word GROUP BY n", HASH),
            ("SELECT count(*) FROM t JOIN u ON b = v", MERGE, "Merge Join"),
            ("SELECT v, count(*) FROM p GROUP BY v", PARTITIONWISE, "Parallel Append"),
        ]
    ),
]


def canonical(kind: Kind, value: Any) -> Any:
    """Which of several equal documents stands for a group is not said."""
    if kind.plain != JSONB.plain or not isinstance(value, str):
        return value
    document = json.loads(value, parse_float=Decimal, parse_int=Decimal)
    return json.dumps(document, default=lambda number: f"{number.normalize():f}")


def rows(
    session: psycopg.Connection, schema: str, kind: Kind, query: Query
) -> Counter[Any]:
    """What the query gives, in any order."""
    with session.transaction():
        session.execute(f"SET LOCAL search_path = {schema}, public; {query.settings}")
        found = session.execute(query.sql).fetchall()
    return Counter(tuple(canonical(kind, value) for value in row) for row in found)


def explained(session: psycopg.Connection, schema: str, query: Query) -> str:
    with session.transaction():
        session.execute(f"SET LOCAL search_path = {schema}, public; {query.settings}")
        lines = session.execute(f"EXPLAIN (COSTS OFF) {query.sql}").fetchall()
    return "\n".join(line for (line,) in lines)


@pytest.mark.parametrize(
    "query", QUERIES, ids=lambda query: " ".join(query[:1] + query.plan)
)
@every_kind
def test_a_query_gives_what_it_gives_on_the_plain_type(
    session: psycopg.Connection, kind: Kind, query: Query
) -> None:
    query = query.of(kind)
    expected = rows(session, plain(kind), kind, query)
    assert expected
    assert rows(session, sealed(kind), kind, query) == expected
    shown = explained(session, sealed(kind), query)
    for part in query.plan:
        assert part in shown, shown


@pytest.mark.parametrize("column, other", [("b", "h"), ("h", "b")])
@pytest.mark.parametrize("encrypted", [True, False])
@every_kind
def test_every_value_is_found_through_the_index(
    session: psycopg.Connection, kind: Kind, column: str, other: str, encrypted: bool
) -> None:
    def query(type: str) -> Query:
        wanted = f"SELECT DISTINCT {other}::{kind.plain} AS w FROM t"
        sql = f"SELECT id FROM ({wanted}) x JOIN t ON {column} = w::{type}"
        return Query(sql, (), LOOP)

    sought = query(kind.type if encrypted else kind.plain)
    shown = explained(session, sealed(kind), sought)
    assert f"Index Scan using {column} on t" in shown, shown
    expected = rows(session, plain(kind), kind, query(kind.plain))
    assert expected.total() > 700
    assert rows(session, sealed(kind), kind, sought) == expected


@pytest.mark.parametrize("encrypted", [True, False])
@every_kind
def test_a_condition_on_the_partition_key_reads_one_partition(
    session: psycopg.Connection, kind: Kind, encrypted: bool
) -> None:
    condition = f"v = {kind.equal[0][0]}::{kind.type if encrypted else kind.plain}"
    schema = sealed(kind)
    place = (
        f"SELECT DISTINCT tableoid::regclass::text FROM {schema}.p WHERE {condition}"
    )
    # With ANALYZE it tells what is left when the query runs: across types,
    # partitions are ruled out only then.
    explain = f"EXPLAIN (ANALYZE, COSTS OFF) SELECT FROM {schema}.p WHERE {condition}"
    shown = "\n".join(line for (line,) in session.execute(explain).fetchall())
    read = {part for part in ("p0", "p1", "p2") if f" on {part} " in shown}
    assert read == {fetch(session, place).removeprefix(f"{schema}.")}, shown


WRITES = [
    "MERGE INTO t USING (SELECT word, min(n) AS n FROM words GROUP BY word) w"
    " ON word = h"
    " WHEN MATCHED AND flag THEN DELETE"
    " WHEN MATCHED THEN UPDATE SET b = {absent}, id = -n"
    " WHEN NOT MATCHED THEN INSERT (id, h) VALUES (-n, word)",
    "MERGE INTO t USING (SELECT v, min(id) AS first FROM u GROUP BY v) AS u ON b = v"
    " WHEN MATCHED THEN UPDATE SET id = -first, h = v"
    " WHEN NOT MATCHED THEN INSERT (id, h) VALUES (-first, v)",
    "MERGE INTO p USING (SELECT word, min(n) AS n FROM words GROUP BY word) w"
    " ON v = word"
    " WHEN MATCHED AND n > 20 THEN DELETE"
    " WHEN MATCHED THEN UPDATE SET v = {absent}"
    " WHEN NOT MATCHED THEN INSERT (id, v) VALUES (n, word)",
    "UPDATE t SET b = word FROM words WHERE h = word AND n < 30",
    "UPDATE t SET h = {y}, flag = NULL FROM u WHERE b = v AND u.id % 2 = 0",
    "UPDATE p SET v = {absent} WHERE v IN ({x}, {y}::{plain})",
    "DELETE FROM t USING u WHERE b = v",
    "DELETE FROM p WHERE v IN (SELECT word FROM words)",
    "INSERT INTO t (id, b) SELECT n, word FROM words WHERE word NOT IN (SELECT v FROM u"
    " WHERE v IS NOT NULL)",
]


@pytest.mark.parametrize("command", WRITES)
@every_kind
def test_a_command_writes_what_it_writes_on_the_plain_type(
    session: psycopg.Connection, kind: Kind, command: str
) -> None:
    command = Query(command).of(kind).sql

    def outcome(schema: str) -> list[Counter[Any]]:
        with session.transaction(force_rollback=True):
            session.execute(f"SET LOCAL search_path = {schema}, public")
            assert session.execute(command).rowcount > 5
            queries = [
                "SELECT id, flag, b, h FROM t",
                "SELECT id, v FROM p",
                "SELECT t.id FROM t WHERE b IN (SELECT v FROM p)",
                "SELECT id FROM p WHERE v = {absent}",
                "SELECT id FROM t WHERE b = {absent} OR h = {y}",
            ]
            return [rows(session, schema, kind, Query(sql).of(kind)) for sql in queries]

    assert outcome(sealed(kind)) == outcome(plain(kind))


# Constraints: what is accepted and what is refused, one command after the other, is the
# same on columns of the plain type. Values are sealed under several keys and suites.

SUITES = ["xaes-256-gcm", "aes-256-gcm", "fernet", "envelope"]


@pytest.fixture
def writer(server: Cluster) -> Iterator[psycopg.Connection]:
    """A session with an empty schema of its own: faster than a database."""
    with server.connect(options=IN_SCHEMA) as writer:
        load_as_text(writer)
        writer.execute("CREATE SCHEMA s")
        yield writer
        writer.execute("ROLLBACK; DROP SCHEMA s CASCADE")


@pytest.fixture
def seals(server: Cluster) -> list[str]:
    """Commands, each of which has a session seal under another key or suite."""
    old, new = (server.dir / "ring.keys").read_text(), new_key()
    return [
        f"SET colcrypt.key = '{ring}'; SET colcrypt.algorithm = '{suite}'"
        for ring in (f"{old},{new}", f"{new},{old}")
        for suite in SUITES
    ]


def outcomes(
    session: psycopg.Connection,
    kind: Kind,
    seals: list[str],
    setup: str,
    commands: list[str],
    result: str,
) -> list[Any]:
    """The SQLSTATE or number of rows of each command, and what is there in the end: on
    columns of the encrypted type and of the plain type, which must be the same."""
    found = []
    for type in (kind.type, kind.plain):
        states: list[Any] = []
        with session.transaction(force_rollback=True):
            session.execute(setup.replace("@type@", type))
            for number, command in enumerate(commands):
                session.execute(seals[number % len(seals)])
                try:
                    with session.transaction():
                        command = command.replace("@type@", type)
                        states.append(session.execute(command).rowcount)
                        session.execute("SET CONSTRAINTS ALL IMMEDIATE")
                except psycopg.Error as error:
                    states.append(error.sqlstate)
            cursor = session.execute(result)
            left = [tuple(canonical(kind, value) for value in row) for row in cursor]
        found.append([*states, Counter(left)])
    assert found[0] == found[1]
    return found[0]


def spelt(kind: Kind) -> list[str]:
    """Literals, many of which are equal to one that comes before."""
    pairs = [*kind.equal, *kind.different]
    return [literal for pair in pairs for literal in pair] + [kind.equal[0][0]]


CONSTRAINTS = {
    "UNIQUE (v)": "23505",
    "UNIQUE (v) INCLUDE (n)": "23505",
    "UNIQUE (tenant, v)": "23505",
    "UNIQUE (v, tenant)": "23505",
    "UNIQUE NULLS NOT DISTINCT (v)": "23505",
    "UNIQUE (v) DEFERRABLE INITIALLY DEFERRED": "23505",
    "PRIMARY KEY (v)": "23505",
    "EXCLUDE USING hash (v WITH =)": "23P01",
    "EXCLUDE USING btree (tenant WITH =, v WITH =)": "23P01",
    "EXCLUDE USING hash (v WITH =) DEFERRABLE INITIALLY DEFERRED": "23P01",
}
TABLE = "CREATE TABLE t (n serial, tenant int DEFAULT 1, v @type@, {})"


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@every_kind
def test_a_constraint_refuses_what_it_refuses_on_the_plain_type(
    writer: psycopg.Connection, seals: list[str], kind: Kind, constraint: str
) -> None:
    one, two = (f"({kind.different[0][i]}, {i})" for i in (0, 1))
    commands = [f"INSERT INTO t (v) VALUES ({literal})" for literal in spelt(kind)]
    commands += [
        "INSERT INTO t (v) VALUES (NULL)",
        "INSERT INTO t (v) VALUES (NULL)",
        f"INSERT INTO t (v, tenant) VALUES {one}, {two}",
        f"UPDATE t SET v = {kind.equal[0][1]} WHERE v = {kind.different[0][0]}",
        # The same value anew, which is no duplicate of itself.
        f"UPDATE t SET v = v::{kind.plain}",
    ]
    states = outcomes(
        writer, kind, seals, TABLE.format(constraint), commands, "SELECT v FROM t"
    )
    assert states.count(CONSTRAINTS[constraint]) > len(kind.equal)
    assert states.count(1) > 5


@pytest.mark.parametrize("method", ["btree", "hash"])
@every_kind
def test_a_constraint_is_not_added_over_equal_values(
    writer: psycopg.Connection, seals: list[str], kind: Kind, method: str
) -> None:
    add = f"ALTER TABLE t ADD EXCLUDE USING {method} (v WITH =)"
    commands = [f"INSERT INTO t VALUES ({literal})" for literal in kind.equal[0]]
    commands += [
        "CREATE UNIQUE INDEX ON t (v)",
        add,
        f"DELETE FROM t WHERE v = {kind.equal[0][1]}",
        *commands[:1],
        "CREATE UNIQUE INDEX ON t (v)",
        add,
    ]
    states = outcomes(
        writer, kind, seals, "CREATE TABLE t (v @type@)", commands, "SELECT v FROM t"
    )
    assert states[:5] == [1, 1, "23505", "23P01", 2]


@pytest.mark.parametrize(
    "target", ["(v)", "(v) WHERE tenant = 1", "ON CONSTRAINT t_v_key"]
)
@every_kind
def test_on_conflict_meets_the_row_with_the_equal_value(
    writer: psycopg.Connection, seals: list[str], kind: Kind, target: str
) -> None:
    insert = "INSERT INTO t (v) VALUES ({}) ON CONFLICT {} DO {}"
    update = "UPDATE SET hits = t.hits + 1, v = excluded.v"
    commands = [
        insert.format(literal, target, action)
        for literal in spelt(kind)
        for action in ("NOTHING", update, update + f" WHERE t.v <> {kind.one.literal}")
    ]
    setup = TABLE.format("UNIQUE (v), hits int DEFAULT 0")
    states = outcomes(writer, kind, seals, setup, commands, "SELECT v, hits FROM t")
    assert states.count(0) >= len(kind.equal) and states.count(1) > len(kind.equal)


@every_kind
def test_a_partitioned_table_keeps_values_where_it_finds_them(
    writer: psycopg.Connection, seals: list[str], kind: Kind
) -> None:
    parts = "".join(
        f"CREATE TABLE t{part} PARTITION OF t"
        f" FOR VALUES WITH (MODULUS 4, REMAINDER {part});"
        for part in range(4)
    )
    setup = "CREATE TABLE t (v @type@ PRIMARY KEY) PARTITION BY HASH (v);" + parts
    commands = [f"INSERT INTO t VALUES ({literal})" for literal in spelt(kind)]
    one, other = kind.equal[0]
    commands += [
        f"UPDATE t SET v = v::{kind.plain}",
        f"UPDATE t SET v = {lit(kind, 'moved')} WHERE v = {other}",
        f"INSERT INTO t VALUES ({one}) ON CONFLICT DO NOTHING",
        f"INSERT INTO t VALUES ({other}) ON CONFLICT (v) DO NOTHING",
        f"DELETE FROM t WHERE v IN ({one}, {lit(kind, 'moved')})",
    ]
    states = outcomes(writer, kind, seals, setup, commands, "SELECT v FROM t")
    assert states[-5:-1] == [1, 1, 0, 2]
    assert states.count("23505") > len(kind.equal)


ACTIONS = [
    "",
    "ON UPDATE CASCADE ON DELETE CASCADE",
    "ON UPDATE SET NULL ON DELETE SET NULL",
]


@pytest.mark.parametrize("action", ACTIONS)
@every_kind
def test_a_foreign_key_does_what_it_does_on_the_plain_type(
    writer: psycopg.Connection, seals: list[str], kind: Kind, action: str
) -> None:
    setup = (
        "CREATE TABLE parent (v @type@ PRIMARY KEY);"
        f"CREATE TABLE child (n serial, v @type@ REFERENCES parent {action})"
    )
    run_family(writer, seals, kind, setup)


@pytest.mark.parametrize("action", ACTIONS)
@every_kind
def test_a_foreign_key_refers_to_a_plain_column(
    writer: psycopg.Connection, seals: list[str], kind: Kind, action: str
) -> None:
    setup = (
        f"CREATE TABLE parent (v {kind.plain} PRIMARY KEY);"
        f"CREATE TABLE child (n serial, v @type@ REFERENCES parent {action})"
    )
    if kind.plain == "text" and MAJOR >= 18:
        # Both columns must have a collation, or none.
        with pytest.raises(psycopg.errors.InternalError_, match="both collatable"):
            run_family(writer, seals, kind, setup)
        return
    run_family(writer, seals, kind, setup)


@pytest.mark.parametrize("action", ACTIONS)
# Not of text: ri_triggers.c asks for the collation of the key, which has none.
@pytest.mark.parametrize("kind", [BYTEA, JSONB], ids=str)
def test_a_foreign_key_of_a_plain_column_refers_to_an_encrypted_one(
    writer: psycopg.Connection, seals: list[str], kind: Kind, action: str
) -> None:
    setup = (
        "CREATE TABLE parent (v @type@ PRIMARY KEY);"
        f"CREATE TABLE child (n serial, v {kind.plain} REFERENCES parent {action})"
    )
    run_family(writer, seals, kind, setup)


def run_family(
    session: psycopg.Connection, seals: list[str], kind: Kind, setup: str
) -> None:
    a, a2 = kind.equal[0]
    b, c, d, new, none = (lit(kind, name) for name in ("b", "c", "d", "new", "none"))
    # PostgreSQL compares stored bytes to tell whether a key has changed. What is
    # written anew has, and then SET NULL does what it says.
    anew = [
        f"UPDATE parent SET v = v::{kind.plain}",
        f"UPDATE parent SET v = {a2} WHERE v = {a}",
    ]
    commands = [
        *(f"INSERT INTO parent VALUES ({value})" for value in (a, b, c, d)),
        *(f"INSERT INTO child (v) VALUES ({value})" for value in (a, a2, b, c, d)),
        f"INSERT INTO child (v) VALUES ({none}), (NULL)",
        "INSERT INTO child (v) VALUES (NULL)",
        f"UPDATE child SET v = {none} WHERE v = {a2}",
        f"UPDATE child SET v = {b} WHERE v = {d}",
        *([] if "SET NULL" in setup else anew),
        f"DELETE FROM parent WHERE v = {d}",
        f"UPDATE parent SET v = {new} WHERE v = {b}",
        f"DELETE FROM parent WHERE v = {a2}",
        f"DELETE FROM child WHERE v = {c}",
        f"DELETE FROM parent WHERE v = {c}",
        "ALTER TABLE child DROP CONSTRAINT child_v_fkey",
        f"INSERT INTO child (v) VALUES ({none})",
        "ALTER TABLE child ADD FOREIGN KEY (v) REFERENCES parent",
        f"INSERT INTO parent VALUES ({none})",
        "ALTER TABLE child ADD FOREIGN KEY (v) REFERENCES parent",
    ]
    result = "SELECT v, 0 FROM parent UNION ALL SELECT v, n FROM child"
    states = outcomes(session, kind, seals, setup, commands, result)
    assert states[:10] == [1] * 9 + ["23503"]
    # The constraint, with and without the row that it misses.
    assert states[-4:-1] == ["23503", 1, -1]


@every_kind
def test_a_rotation_keeps_keys_and_constraints(
    writer: psycopg.Connection, seals: list[str], kind: Kind
) -> None:
    many = kind.holding_sql("i::text")
    codes = kind.holding_sql("'code ' || i")
    writer.execute(seals[0])
    writer.execute(
        f"CREATE TABLE parent (v {kind.type} PRIMARY KEY);"
        "CREATE TABLE child (id int PRIMARY KEY,"
        f" v {kind.type} REFERENCES parent ON UPDATE CASCADE ON DELETE CASCADE,"
        f" code {kind.type} UNIQUE DEFERRABLE INITIALLY DEFERRED,"
        " EXCLUDE USING hash (code WITH =));"
        f"INSERT INTO parent SELECT {many} FROM generate_series(0, 9) i;"
        f"INSERT INTO child SELECT i, {kind.holding_sql('(i % 10)::text')}, {codes}"
        " FROM generate_series(1, 400) i"
    )
    # The order by tag, too, stays as it is.
    rows = "SELECT id, v, code FROM child ORDER BY code"
    before = writer.execute(rows).fetchall()
    writer.execute(seals[-1])
    nine, first, last = (lit(kind, name) for name in ("9", "code 1", "code 400"))
    refused = {
        f"INSERT INTO parent VALUES ({nine})": "23505",
        f"INSERT INTO child VALUES (0, {nine}, {first})": "23P01",
        f"UPDATE child SET code = {last} WHERE id = 2": "23P01",
        f"INSERT INTO child VALUES (0, {lit(kind, 'absent')}, {nine})": "23503",
    }
    for table, column, count in (
        ("parent", "v", 5),
        ("child", "v", 200),
        ("child", "code", 200),
    ):
        rotate = f"SELECT rotate_column('{table}', '{column}', max_rows => {count})"
        # What half of the rotation leaves, and what the whole leaves.
        for _ in range(2):
            assert fetch(writer, rotate) == count
            assert writer.execute(rows).fetchall() == before
            for command, state in refused.items():
                with pytest.raises(psycopg.Error) as error:
                    writer.execute(command)
                assert error.value.sqlstate == state
        assert fetch(writer, rotate) == 0
    writer.execute(
        f"UPDATE parent SET v = {lit(kind, 'new')} WHERE v = {lit(kind, '7')};"
        f"DELETE FROM parent WHERE v = {lit(kind, '8')}"
    )
    found = (
        f"SELECT count(*), count(*) FILTER (WHERE v = {lit(kind, 'new')}) FROM child"
    )
    assert writer.execute(found).fetchone() == (360, 40)


@every_kind
def test_values_under_managed_keys_are_equal_to_others(
    db: Database, kind: Kind
) -> None:
    one, other = kind.equal[0]
    with db.connect() as session:
        session.execute("SELECT colcrypt.create_key('k1'), colcrypt.create_key('k2')")
        session.execute(
            f"CREATE TABLE t (a {kind.type}(k1) UNIQUE, b {kind.type}(k2),"
            f" c {kind.type});"
            f"INSERT INTO t VALUES ({one}, {other}, {one})"
        )
        keys = "SELECT count(DISTINCT key_id) FROM t, unnest(ARRAY[a, b, c]) v,"
        assert fetch(session, keys + " colcrypt.inspect(v)") == 3
        equal = "a = b AND b = c AND c = a AND NOT a <> c AND b IN (SELECT a FROM t)"
        assert fetch(session, f"SELECT {equal} AND a = {other}::{kind.plain} FROM t")
        for column in ("b", "c"):
            with pytest.raises(UniqueViolation):
                session.execute(f"INSERT INTO t (a) SELECT {column} FROM t")


# What is made of values


@every_kind
def test_a_domain_is_searched_as_its_type_is(
    writer: psycopg.Connection, kind: Kind
) -> None:
    one, other = kind.equal[0]
    many = kind.holding_sql("i::text")
    writer.execute(
        f"CREATE DOMAIN d AS {kind.type} CHECK (length(value::text) < 500);"
        "CREATE TABLE t (b d, h d);"
        f"INSERT INTO t SELECT v, v FROM generate_series(1, 2000) i,"
        f" LATERAL (SELECT {many}) AS s (v);"
        f"INSERT INTO t VALUES ({one}, {one});"
        "CREATE INDEX b ON t (b); CREATE INDEX h ON t USING hash (h); ANALYZE t"
    )
    for column in ("b", "h"):
        for value in (other, f"{other}::{kind.plain}", f"{other}::d"):
            query = Query(f"SELECT {column} FROM t WHERE {column} = {value}")
            assert f"using {column} on t" in explained(writer, "s", query)
            assert len(writer.execute(query.sql).fetchall()) == 1


@every_kind
def test_arrays_and_rows_are_compared_by_what_is_in_them(
    writer: psycopg.Connection, seals: list[str], kind: Kind
) -> None:
    one, other = kind.equal[0]
    two = kind.two.literal
    setup = """
        CREATE TYPE pair AS (n int, v @type@);
        CREATE TABLE t (a @type@[] UNIQUE, r pair UNIQUE);
        CREATE INDEX ON t USING gin (a);
    """
    commands = [
        f"INSERT INTO t VALUES (ARRAY[{a}, {b}]::{kind.plain}[], ROW ({n}, {v}))"
        for a, b, n, v in [
            (one, two, 1, one),
            (two, one, 2, one),
            (one, two, 3, one),
            (other, two, 3, one),
            (other, other, 1, other),
            (other, other, 1, two),
            (other, "NULL", 3, two),
        ]
    ]
    commands += [
        f"UPDATE t SET r.n = -1 WHERE {condition}"
        for condition in (
            f"a = ARRAY[{other}, {two}]::@type@[]",
            f"a @> ARRAY[{other}]::@type@[]",
            f"a && ARRAY[{other}, {one}]::@type@[]",
            f"{other}::{kind.plain} = ANY (a)",
            f"{two} = ALL (a)",
            f"(r).v = {other}",
        )
    ]
    result = "SELECT a[1], a[2], (r).n, (r).v FROM t"
    writer.execute("SET enable_seqscan = off")
    states = outcomes(writer, kind, seals, setup, commands, result)
    assert states[:7] == [1, 1, "23505", "23505", "23505", 1, 1]


@every_kind
def test_a_value_is_equal_however_it_is_stored(
    writer: psycopg.Connection, kind: Kind
) -> None:
    """Compressed, out of line, or with a short header: plain values in a table are."""
    writer.execute(
        f"CREATE TABLE t (id serial, e {kind.type}, p {kind.plain}, x {kind.plain});"
        "ALTER TABLE t ALTER x SET STORAGE external"
    )
    for length in (1, 100, 1500, 3000, 100_000):
        value = kind.holding_sql(f"repeat('m', {length})")
        writer.execute(f"INSERT INTO t (e, p, x) VALUES ({value}, {value}, {value})")
    sizes = "SELECT pg_column_size(p), pg_column_size(x) FROM t WHERE id = 5"
    compressed, external = writer.execute(sizes).fetchone()
    assert compressed < 5000 < 100_000 <= external
    for left in ("e", "p", "x"):
        for right in ("e", "p", "x"):
            pairs = f"SELECT a.id, b.id FROM t a JOIN t b ON a.{left} = b.{right}"
            found = writer.execute(pairs).fetchall()
            assert sorted(found) == [(i, i) for i in range(1, 6)]


# Limits


@every_kind
def test_a_value_too_large_for_a_btree_is_refused_with_advice(
    writer: psycopg.Connection, kind: Kind
) -> None:
    writer.execute(f"CREATE TABLE t (v {kind.type} UNIQUE)")
    insert = f"INSERT INTO t VALUES ({kind.large.literal})"
    with pytest.raises(ProgramLimitExceeded) as refused:
        writer.execute(insert)
    assert "USING hash" in str(refused.value.diag.message_hint)
    writer.execute("ALTER TABLE t DROP CONSTRAINT t_v_key")
    writer.execute("CREATE INDEX ON t USING hash (v); SET enable_seqscan = off")
    writer.execute(insert)
    find = f"SELECT count(*) FROM t WHERE v = {kind.large.literal}"
    assert fetch(writer, find + f"::{kind.plain}") == fetch(writer, find) == 1


@pytest.mark.parametrize("operator", ["<", "<=", ">", ">="])
@pytest.mark.parametrize(
    "condition",
    ["v {} {x}", "{x} {} v", "v {} {x}::{plain}", "{x}::{plain} {} v", "v {} v"]
    + ["v {} ANY ({array})", "v {} ALL ({array}::{plain}[])"],
)
@every_kind
def test_an_order_of_encrypted_values_is_refused(
    writer: psycopg.Connection, kind: Kind, condition: str, operator: str
) -> None:
    writer.execute(f"CREATE TABLE t (v {kind.type})")
    writer.execute(f"INSERT INTO t VALUES ({kind.one.literal}); CREATE INDEX ON t (v)")
    condition = Query(condition.replace("{}", operator)).of(kind).sql
    with pytest.raises(FeatureNotSupported):
        writer.execute(f"SELECT v FROM t WHERE {condition}")


TEXT_HINT = pytest.mark.xfail(strict=True, reason="the hint says ::text for all types")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, id=str(k), marks=[] if k is TEXT else [TEXT_HINT]) for k in KINDS],
)
def test_a_refused_order_comes_with_the_cast_that_helps(
    writer: psycopg.Connection, kind: Kind
) -> None:
    value = f"encrypt({kind.one.literal}::{kind.plain})"
    with pytest.raises(FeatureNotSupported) as refused:
        writer.execute(f"SELECT {value} < {value}")
    assert f"::{kind.plain}" in str(refused.value.diag.message_hint)


@pytest.mark.parametrize(
    "condition", ["a = b", "a <> b", "a IN (b)", "a IS DISTINCT FROM b"]
)
@every_kind
def test_values_of_different_types_are_not_compared(
    writer: psycopg.Connection, kind: Kind, condition: str
) -> None:
    others = {
        type for each in KINDS if each is not kind for type in (each.type, each.plain)
    }
    for other in others:
        writer.execute(f"CREATE TABLE t (a {kind.type}, b {other})")
        for sides in (condition, condition.translate(str.maketrans("ab", "ba"))):
            with pytest.raises(psycopg.errors.UndefinedFunction):
                writer.execute(f"SELECT FROM t WHERE {sides}")
        writer.execute("DROP TABLE t")

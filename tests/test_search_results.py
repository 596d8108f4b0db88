"""What is compared, joined, grouped and constrained on encrypted columns comes out as
it does on text.

The schemas `sealed` and `plain` have the same tables, with columns of type
encrypted_text here and text there: the same query must give the same rows in both.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.errors import (
    ExclusionViolation,
    FeatureNotSupported,
    ForeignKeyViolation,
    ReadOnlySqlTransaction,
    UniqueViolation,
)

from harness import BIN, Cluster, fetch, new_key, run_as_server, wait_until

SCHEMAS = {"sealed": "encrypted_text", "plain": "text"}

# t.b is to have a btree index and t.h, with the same values, a hash index. u has
# values that are too long for a btree. p is partitioned by its value.
TABLES = """
    CREATE SCHEMA {schema}
        CREATE TABLE t (id int, flag bool, b {type}, h {type})
        CREATE TABLE u (id int, v {type})
        CREATE TABLE p (id int, v {type}) PARTITION BY HASH (v);
    SET search_path = {schema}, public;
    CREATE TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 3, REMAINDER 0);
    CREATE TABLE p1 PARTITION OF p FOR VALUES WITH (MODULUS 3, REMAINDER 1);
    CREATE TABLE p2 PARTITION OF p FOR VALUES WITH (MODULUS 3, REMAINDER 2);
"""
COLUMNS = [("t", "b"), ("t", "h"), ("u", "v"), ("p", "v")]

ODD = [
    "",
    " ",
    "a",
    "A",
    "a ",
    "é",
    "e\u0301",
    "ß",
    "ss",
    "🔑",
    "\u2028",
    "NULL",
    "a\tb\\n",
]
PREFIXED = ["p" * length for length in (1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 500, 501)]
LONG = ["x" * 4000 + end for end in ("", "y", "z")] + ["ü" * 5000]


def values(rows: int, pool: list[str]) -> list[str | None]:
    """Most are one of 400 names, some are NULL, m is the most frequent; each value
    of the pool comes at least once."""
    draw = random.Random(15)
    drawn: list[str | None] = [*pool]
    for _ in range(rows - len(pool)):
        names = [f"n{draw.randrange(400)}" for _ in range(15)]
        drawn.append(draw.choice([*names, None, "m", *draw.sample(pool, 3)]))
    return drawn


def fill(cluster: Cluster) -> None:
    short = ODD + PREFIXED
    rows = {"t": values(2000, short), "u": values(200, short + LONG)}
    with cluster.connect() as session:
        session.execute("CREATE TABLE words (n int, word text)")
        with session.cursor().copy("COPY words FROM STDIN") as copy:
            for row in enumerate(
                ["m", *short, *LONG, "absent", *map("n{}".format, range(50))]
            ):
                copy.write_row(row)
        for schema, type in SCHEMAS.items():
            session.execute(TABLES.format(schema=schema, type=type))
            with session.cursor().copy("COPY t FROM STDIN") as copy:
                for id, value in enumerate(rows["t"]):
                    copy.write_row((id, id % 3 == 0, value, value))
            with session.cursor().copy("COPY u FROM STDIN") as copy:
                for row in enumerate(rows["u"]):
                    copy.write_row(row)
            session.execute("INSERT INTO p SELECT id, b FROM t WHERE id < 1000")
            session.execute("ANALYZE t, u, p, words")


# The states in which everything must hold


class Host:
    """A server with the tables; what it does to them, it does to the sealed ones."""

    def __init__(self, base: Path, template: Path) -> None:
        self.base = base
        self.ring = new_key()
        self.clusters = [Cluster(base, template, ring=self.ring)]
        self.primary = self.clusters[0]
        # Plans are not to depend on when it comes round.
        self.primary.conf(autovacuum=False)
        self.primary.start()
        self.primary.psql("CREATE EXTENSION colcrypt")
        fill(self.primary)

    def index(self) -> None:
        for schema in SCHEMAS:
            self.primary.psql(
                f"CREATE INDEX b ON {schema}.t USING btree (b);"
                f"CREATE INDEX h ON {schema}.t USING hash (h);"
                f"CREATE INDEX v ON {schema}.u USING hash (v);"
                f"CREATE INDEX pv ON {schema}.p (v)"
            )

    def bring_new_key(self) -> None:
        self.ring = f"{new_key()},{self.ring}"
        self.primary.set_ring(self.ring)
        self.primary.reload()

    def rotate(self, part: int | None = None) -> None:
        """Rotates the columns, or of each as many values as one in `part`."""
        for table, column in COLUMNS:
            count = f"(SELECT count({column}) FROM sealed.{table})"
            most = "NULL" if part is None else f"{count} / {part}"
            with self.primary.connect() as session:
                rotated, all = session.execute(
                    f"SELECT rotate_column('sealed.{table}', '{column}', max_rows => {most}),"
                    f" {count}"
                ).fetchone()
                assert rotated == all // (part or 1) > 0

    def retire_old_key(self) -> None:
        """Takes the old key out of the ring, of which the server must hear yet."""
        assert self.primary.psql("SELECT colcrypt.rewrap_keys()") == "1"
        # The inner pages of a btree have copies of values, under the old key.
        self.primary.psql("REINDEX INDEX sealed.b; REINDEX INDEX sealed.pv")
        self.ring = self.ring.split(",")[0]
        self.primary.set_ring(self.ring)

    def standby(self) -> Cluster:
        """A hot standby that has all that the primary has."""
        backup = self.primary.dir / "backup"
        source = ["-h", str(self.primary.dir), "-U", "postgres", "-c", "fast"]
        run_as_server([str(BIN / "pg_basebackup"), "-R", "-D", str(backup), *source])
        standby = Cluster(self.base, backup, ring=self.ring)
        self.clusters.append(standby)
        standby.start()
        written = self.primary.psql("SELECT pg_current_wal_lsn()")
        caught_up = f"SELECT pg_last_wal_replay_lsn() >= '{written}'"
        wait_until(lambda: standby.psql(caught_up) == "t", "the standby")
        assert standby.psql("SELECT pg_is_in_recovery()") == "t"
        return standby

    def destroy(self) -> None:
        for cluster in reversed(self.clusters):
            cluster.destroy()


def fresh(host: Host) -> Cluster:
    return host.primary


def indexed(host: Host) -> Cluster:
    host.index()
    return host.primary


def half_rotated(host: Host) -> Cluster:
    host.index()
    host.bring_new_key()
    host.rotate(part=2)
    return host.primary


def rotated(host: Host) -> Cluster:
    host.index()
    host.bring_new_key()
    host.rotate()
    return host.primary


def restarted_without_the_old_key(host: Host) -> Cluster:
    rotated(host)
    host.retire_old_key()
    host.primary.restart()
    return host.primary


def standby(host: Host) -> Cluster:
    half_rotated(host)
    return host.standby()


State = Callable[[Host], Cluster]
STATES: list[State] = [
    fresh,
    indexed,
    half_rotated,
    rotated,
    restarted_without_the_old_key,
    standby,
]


@pytest.fixture(scope="module", params=STATES, ids=lambda state: state.__name__)
def state(request: pytest.FixtureRequest) -> State:
    return request.param


@pytest.fixture(scope="module")
def session(state: State, base: Path, template: Path) -> Iterator[psycopg.Connection]:
    host = Host(base, template)
    try:
        with state(host).connect() as session:
            yield session
    finally:
        host.destroy()


# Queries


class Query(NamedTuple):
    sql: str
    # What the plan on the encrypted columns must have.
    plan: tuple[str, ...] = ()
    settings: str = ""


def off(*names: str) -> str:
    return "".join(f"SET LOCAL enable_{name} = off;" for name in names)


HASH = off("mergejoin", "nestloop")
MERGE = off("hashjoin", "nestloop")
LOOP = off("hashjoin", "mergejoin")
SORT = off("hashagg")
SPILL = "SET LOCAL work_mem = '64kB'; SET LOCAL hash_mem_multiplier = 1;"
PARALLEL = """
    SET LOCAL parallel_leader_participation = off;
    SET LOCAL parallel_setup_cost = 0;
    SET LOCAL parallel_tuple_cost = 0;
    SET LOCAL min_parallel_table_scan_size = 0;
    SET LOCAL min_parallel_index_scan_size = 0;
"""
PARTITIONWISE = """
    SET LOCAL enable_partitionwise_join = on;
    SET LOCAL enable_partitionwise_aggregate = on;
"""
MANY = ",".join(f"n{i}" for i in range(30))

CONDITIONS = [
    "b = 'n7'",
    "b = 'n7'::text",
    "'' = b",
    "h = 'e\u0301'",
    "h = '🔑'::varchar",
    "b = 'a '",
    "b <> 'n7'",
    "'m'::text <> h",
    "b = h",
    "b <> h OR b IS NULL",
    "b IN ('n7', '', 'é', 'absent')",
    "h IN ('n7'::text, 'p', 'A')",
    "b NOT IN ('n7', '', 'é', 'absent')",
    f"b = ANY ('{{{MANY}}}')",
    f"b = ANY ('{{{MANY}}}'::text[])",
    f"b <> ALL ('{{{MANY}}}')",
    f"NOT b = ANY ('{{{MANY}}}'::text[])",
    "b = ANY (ARRAY['m', NULL])",
    "b IS DISTINCT FROM 'm'",
    "b IS NOT DISTINCT FROM 'm'::text",
    "b IS NULL",
    "b IN (SELECT word FROM words)",
    "b IN (SELECT v FROM u)",
    "(b, h) IN (SELECT v, v FROM u WHERE id < 100)",
    "EXISTS (SELECT FROM u WHERE v = b)",
    "NOT EXISTS (SELECT FROM u WHERE v = b)",
    "NOT EXISTS (SELECT FROM words WHERE word = b)",
    "b = ANY (SELECT v FROM u WHERE u.id > t.id)",
    "b <> ALL (SELECT word FROM words WHERE n < t.id)",
    "b = (SELECT word FROM words WHERE word = 'n7')",
    "(b, flag) = ('m', true)",
    "(b, h) = ('m', 'm')",
    "(b, h) IN (('m', 'm'), ('n7', 'n7'), ('n8', 'n9'))",
    "ROW (b, h) = ROW (h, b)",
    "ROW (b, flag) <> ROW ('m', true)",
    "ARRAY[b, h] = ARRAY[h, b]",
    "ARRAY[b, h] <> '{m,m}'",
    "ARRAY[b] && (SELECT array_agg(v) FROM u WHERE id < 100)",
    "(SELECT array_agg(v) FROM u) @> ARRAY[b]",
    "array_position(ARRAY[h, b], b) = 1",
    "cardinality(array_remove(ARRAY[b, h], b)) = 0",
    "CASE b WHEN 'n7' THEN false WHEN '' THEN true ELSE flag END",
    "NULLIF(b, 'm') IS NULL",
    "NULLIF(b, h) IS NOT NULL OR flag",
    "COALESCE(b, 'm') = 'm'",
    "b LIKE 'pp%'",
    "b ILIKE 'A%'",
    "b ~ '^n7'",
    "b::text < 'm'",
    "starts_with(b, 'p')",
]

JOINS = [
    ("t.id, u.id", "t {} JOIN u ON t.b = u.v"),
    ("t.id, n", "t {} JOIN words ON t.h = word"),
    ("u.id, n", "words {} JOIN u ON word = u.v"),
]
QUERIES = [Query(f"SELECT id FROM t WHERE {condition}") for condition in CONDITIONS]
for columns, join in JOINS:
    for settings, shape in ((HASH, "Hash"), (MERGE, "Merge"), (LOOP, "Nested Loop")):
        # Nested loops cannot do the others.
        for kind in (
            ("INNER", "LEFT")
            if settings == LOOP
            else ("INNER", "LEFT", "RIGHT", "FULL")
        ):
            sql = f"SELECT {columns} FROM {join.format(kind)}"
            QUERIES.append(Query(sql, (shape,), settings))
QUERIES += [
    # Full joins, semi-joins and anti-joins
    Query("SELECT v, n FROM u FULL JOIN words ON v = word", ("Hash Full Join",), HASH),
    Query(
        "SELECT v, n FROM u FULL JOIN words ON v = word", ("Merge Full Join",), MERGE
    ),
    Query(
        "SELECT id FROM u WHERE v IN (SELECT word FROM words)",
        ("Hash Semi Join",),
        HASH,
    ),
    Query("SELECT id FROM u WHERE v IN (SELECT b FROM t)", ("Merge",), MERGE),
    Query(
        "SELECT id FROM u WHERE EXISTS (SELECT FROM t WHERE b = v AND t.id < u.id)",
        ("Merge Semi Join",),
        MERGE,
    ),
    Query(
        "SELECT n FROM words WHERE word IN (SELECT v FROM u)", ("Nested Loop",), LOOP
    ),
    Query(
        "SELECT n FROM words WHERE NOT EXISTS (SELECT FROM t WHERE b = word)",
        ("Anti Join",),
        HASH,
    ),
    Query(
        "SELECT n FROM words WHERE NOT EXISTS (SELECT FROM t WHERE b = word)",
        ("Merge Anti Join",),
        MERGE,
    ),
    Query(
        "SELECT id FROM t WHERE b NOT IN (SELECT word FROM words)", ("hashed SubPlan",)
    ),
    Query(
        "SELECT id FROM t WHERE b NOT IN (SELECT v FROM u WHERE v IS NOT NULL)",
        ("hashed SubPlan",),
    ),
    Query(
        "SELECT x.id, y.id FROM t x JOIN t y USING (b)", ("Hash Join",), SPILL + HASH
    ),
    Query("SELECT x.id FROM t x NATURAL JOIN t y WHERE x.flag", (), HASH),
    Query("SELECT x.id FROM t x JOIN t y ON x = y", (), HASH),
    Query("SELECT x.id FROM t x JOIN t y ON x = y", (), MERGE),
    Query(
        "SELECT x.id FROM u x, u y WHERE ARRAY[x.v] = ARRAY[y.v] AND y.id < 50",
        (),
        HASH,
    ),
    Query(
        "SELECT x.id FROM u x, u y WHERE ROW (x.v) = ROW (y.v) AND y.id < 50", (), MERGE
    ),
    Query(
        "SELECT t.id, c FROM t, LATERAL (SELECT count(*) c FROM u WHERE v = b OFFSET 0) x",
        ("Memoize",),
    ),
    # Grouping and duplicates
    Query("SELECT DISTINCT b FROM t", ("HashAggregate",)),
    Query("SELECT DISTINCT v FROM u", ("Unique",), SORT),
    Query("SELECT DISTINCT b, h, flag FROM t", (), SPILL),
    Query("SELECT DISTINCT ON (v) v, id FROM u ORDER BY v, id", ("Unique",)),
    Query("SELECT b, count(*), min(id) FROM t GROUP BY b", ("HashAggregate",)),
    Query("SELECT b, count(*), min(id) FROM t GROUP BY b", ("GroupAggregate",), SORT),
    Query(
        "SELECT b, sum(id) FROM t GROUP BY b",
        ("HashAggregate",),
        SPILL + off("sort", "indexscan"),
    ),
    Query("SELECT h, b, flag, count(*) FROM t GROUP BY CUBE (h, b), flag"),
    Query("SELECT b, flag, count(*) FROM t GROUP BY ROLLUP (b, flag)", (), SORT),
    Query("SELECT b FROM t GROUP BY b HAVING count(*) = 1 OR b = 'm'"),
    Query("SELECT b::text, count(*) FROM t GROUP BY b"),
    Query("SELECT count(*) FROM t GROUP BY ARRAY[b, h]", ("HashAggregate",)),
    Query("SELECT count(*) FROM t GROUP BY ARRAY[b, h]", ("GroupAggregate",), SORT),
    Query("SELECT count(*) FROM t GROUP BY ROW (b, flag)"),
    Query("SELECT count(DISTINCT b), count(DISTINCT (b, flag)), count(b) FROM t"),
    Query("SELECT flag, count(DISTINCT b) FROM t GROUP BY flag"),
    Query("SELECT count(*) FILTER (WHERE b = 'm'), bool_or(b = 'n7') FROM t"),
    Query("SELECT mode() WITHIN GROUP (ORDER BY b)::text FROM t"),
    Query("SELECT min(b), max(b), min(h), max(lower(h)) FROM t"),
    Query("SELECT string_agg(DISTINCT b, '|' ORDER BY b) FROM t"),
    Query("SELECT id, count(*) OVER (PARTITION BY b) FROM t"),
    Query(
        "SELECT id, row_number() OVER (PARTITION BY h ORDER BY id), b = lag(b) OVER w FROM t"
        " WINDOW w AS (PARTITION BY h ORDER BY id)"
    ),
    Query("SELECT id, (SELECT count(*) FROM u WHERE v = b) FROM t WHERE id < 400"),
    # Set operations
    *(
        Query(f"SELECT {one} {operation} SELECT {other}", (), settings)
        for operation in ("UNION", "INTERSECT", "EXCEPT", "INTERSECT ALL", "EXCEPT ALL")
        for one, other in [
            ("b FROM t", "v FROM u"),
            ("v FROM u", "word FROM words"),
            ("word FROM words", "h FROM t"),
        ]
        for settings in ("", SORT)
    ),
    Query(
        "WITH RECURSIVE r (v) AS (SELECT v FROM u WHERE id < 9"
        " UNION SELECT b FROM t, r WHERE h = r.v) SELECT v FROM r",
        ("Recursive Union",),
    ),
    # Order by plaintext
    Query("SELECT id, b FROM t ORDER BY b::text, id LIMIT 500"),
    Query("SELECT id, row_number() OVER (ORDER BY lower(b), id) FROM t"),
    # Partitions
    Query("SELECT id FROM p WHERE v = 'n7'"),
    Query("SELECT id FROM p WHERE v = 'n7'::text"),
    Query("SELECT id FROM p WHERE v IN ('n7', 'm', '')"),
    Query("SELECT p.id FROM p JOIN words ON word = v AND n < 20"),
    Query(
        "SELECT x.id, y.id FROM p x JOIN p y USING (v)",
        ("Append",),
        PARTITIONWISE + HASH,
    ),
    Query("SELECT v, count(*) FROM p GROUP BY v", ("Append",), PARTITIONWISE),
    # Parallel plans
    *(
        Query(sql, ("Gather", *shape), PARALLEL + settings)
        for sql, settings, *shape in [
            ("SELECT id FROM t WHERE b <> 'm'", off("indexscan", "bitmapscan")),
            ("SELECT id FROM t WHERE 'm'::text = b", off("indexscan", "bitmapscan")),
            ("SELECT b, count(*) FROM t GROUP BY b", "", "HashAggregate"),
            ("SELECT b, count(*) FROM t GROUP BY b", SORT, "GroupAggregate"),
            ("SELECT count(*), count(DISTINCT b) FROM t WHERE b <> 'm'", ""),
            ("SELECT count(*) FROM t WHERE b <> 'm'", "", "Partial Aggregate"),
            ("SELECT DISTINCT b FROM t", ""),
            ("SELECT count(*) FROM t JOIN u ON b = v", HASH, "Parallel Hash Join"),
            ("SELECT t.id, u.id FROM t JOIN u ON b = v", HASH + SPILL, "Hash Join"),
            (
                "SELECT n, count(*) FROM t JOIN words ON b = word GROUP BY n",
                HASH,
                "Hash Join",
            ),
            ("SELECT count(*) FROM t JOIN u ON b = v", MERGE, "Merge Join"),
            (
                "SELECT id FROM t WHERE NOT EXISTS (SELECT FROM u WHERE v = b)",
                HASH,
                "Anti Join",
            ),
            (
                "SELECT id, rank() OVER (PARTITION BY b ORDER BY id) FROM t",
                "",
                "Gather Merge",
            ),
            ("SELECT v, count(*) FROM p GROUP BY v", PARTITIONWISE, "Parallel Append"),
        ]
    ),
]


def rows(session: psycopg.Connection, schema: str, query: Query) -> Counter[Any]:
    """What the query gives, in any order."""
    with session.transaction():
        session.execute(f"SET LOCAL search_path = {schema}, public; {query.settings}")
        return Counter(session.execute(query.sql).fetchall())


def plan(session: psycopg.Connection, schema: str, query: Query) -> str:
    with session.transaction():
        session.execute(f"SET LOCAL search_path = {schema}, public; {query.settings}")
        lines = session.execute(f"EXPLAIN (COSTS OFF) {query.sql}").fetchall()
    return "\n".join(line for (line,) in lines)


@pytest.mark.parametrize(
    "query", QUERIES, ids=lambda query: " ".join(query[:1] + query.plan)
)
def test_a_query_gives_what_it_gives_on_text(
    session: psycopg.Connection, query: Query
) -> None:
    expected = rows(session, "plain", query)
    assert expected
    assert rows(session, "sealed", query) == expected
    shown = plan(session, "sealed", query)
    for part in query.plan:
        assert part in shown, shown


@pytest.mark.parametrize("column, other", [("b", "h"), ("h", "b")])
@pytest.mark.parametrize("type", ["encrypted_text", "text"])
def test_every_value_is_found_through_the_index(
    session: psycopg.Connection, state: State, column: str, other: str, type: str
) -> None:
    def query(type: str) -> Query:
        wanted = f"SELECT DISTINCT {other}::text AS w FROM t"
        sql = f"SELECT w, id FROM ({wanted}) x JOIN t ON {column} = w::{type}"
        return Query(sql, (), LOOP + off("seqscan"))

    shown = plan(session, "sealed", query(type))
    assert f"Index Scan using {column} on t" in shown or state is fresh, shown
    expected = rows(session, "plain", query("text"))
    assert expected.total() > 1500
    assert rows(session, "sealed", query(type)) == expected


@pytest.mark.parametrize("type", ["encrypted_text", "text"])
@pytest.mark.parametrize("value", ["n7", "", "🔑", "m"])
def test_a_condition_on_the_partition_key_reads_one_partition(
    session: psycopg.Connection, type: str, value: str
) -> None:
    condition = f"v = '{value}'::{type}"
    place = f"SELECT tableoid::regclass::text FROM sealed.p WHERE {condition} LIMIT 1"
    # With ANALYZE it tells what is left when the query runs: across types,
    # partitions are ruled out only then.
    explain = f"EXPLAIN (ANALYZE, COSTS OFF) SELECT FROM sealed.p WHERE {condition}"
    shown = "\n".join(line for (line,) in session.execute(explain).fetchall())
    read = {part for part in ("p0", "p1", "p2") if f" on {part} " in shown}
    assert read == {fetch(session, place).removeprefix("sealed.")}, shown


def test_order_by_puts_equal_values_together_and_is_always_the_same(
    session: psycopg.Connection,
) -> None:
    def order(column: str, *settings: str, direction: str = "") -> list[str | None]:
        query = f"SELECT {column} FROM sealed.t ORDER BY {column} {direction}"
        with session.transaction():
            session.execute(
                "SET LOCAL max_parallel_workers_per_gather = 0;" + "".join(settings)
            )
            return [row[0] for row in session.execute(query).fetchall()]

    ordered = order("b")
    groups = [
        value for i, value in enumerate(ordered) if i == 0 or ordered[i - 1] != value
    ]
    assert len(groups) == len(set(ordered)) > 300
    assert groups[-1] is None
    assert groups[:-1] != sorted(groups[:-1])
    for again in (
        order("h"),
        order("b", off("sort", "seqscan")),
        order("b", SPILL, off("indexscan", "indexonlyscan")),
        order("b", direction="DESC")[::-1],
    ):
        assert again == ordered


WRITES = [
    "MERGE INTO t USING words ON word = h"
    " WHEN MATCHED AND flag THEN DELETE"
    " WHEN MATCHED THEN UPDATE SET b = 'found ' || n"
    " WHEN NOT MATCHED THEN INSERT (id, h) VALUES (-n, word)",
    "MERGE INTO t USING (SELECT v, min(id) AS first FROM u GROUP BY v) AS u ON b = v"
    " WHEN MATCHED THEN UPDATE SET id = -first, h = v"
    " WHEN NOT MATCHED THEN INSERT (id, h) VALUES (-first, v)",
    "MERGE INTO p USING words ON v = word"
    " WHEN MATCHED AND n > 20 THEN DELETE"
    " WHEN MATCHED THEN UPDATE SET v = 'moved ' || v"
    " WHEN NOT MATCHED THEN INSERT (id) VALUES (n)",
    "UPDATE t SET b = h || word FROM words WHERE h = word AND n < 30",
    "UPDATE t SET h = v FROM u WHERE b = v AND u.id % 7 = 0",
    "UPDATE p SET v = 'moved ' || v WHERE v IN ('m', 'n7', '', 'n8')",
    "DELETE FROM t USING u WHERE b = v",
    "DELETE FROM p WHERE v IN (SELECT word FROM words)",
]


@pytest.mark.parametrize("command", WRITES)
def test_a_command_writes_what_it_writes_on_text(
    session: psycopg.Connection, state: State, command: str
) -> None:
    def outcome(schema: str) -> list[Counter[Any]]:
        with session.transaction(force_rollback=True):
            session.execute(f"SET LOCAL search_path = {schema}, public")
            assert session.execute(command).rowcount > 10
            return [
                Counter(session.execute(query).fetchall())
                for query in (
                    "SELECT id, flag, b, h FROM t",
                    "SELECT id, v FROM p",
                    "SELECT t.id FROM t WHERE b IN (SELECT v FROM p)",
                    "SELECT id FROM p WHERE v = 'moved m'",
                    "SELECT id FROM t WHERE b = 'found 0' OR h = 'n7'",
                )
            ]

    if state is standby:
        with pytest.raises(ReadOnlySqlTransaction):
            outcome("sealed")
    else:
        assert outcome("sealed") == outcome("plain")


# Constraints


IN_SCHEMA = "-c search_path=s,public -c client_min_messages=error"
SUITES = ["xaes-256-gcm", "aes-256-gcm", "fernet", "envelope"]


@pytest.fixture
def writer(server: Cluster) -> Iterator[psycopg.Connection]:
    """A session with an empty schema of its own: faster than a database."""
    with server.connect(options=IN_SCHEMA) as writer:
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


def seals_in(session: psycopg.Connection, table: str) -> int:
    """How many combinations of key and suite the table's values are under."""
    return fetch(
        session,
        f"SELECT count(DISTINCT (suite, key_id)) FROM {table}, colcrypt.inspect(v)",
    )


CONSTRAINTS = {
    "UNIQUE (v)": UniqueViolation,
    "UNIQUE (v) INCLUDE (n)": UniqueViolation,
    "UNIQUE (tenant, v)": UniqueViolation,
    "UNIQUE NULLS NOT DISTINCT (v)": UniqueViolation,
    "UNIQUE (v) DEFERRABLE INITIALLY DEFERRED": UniqueViolation,
    "PRIMARY KEY (v)": UniqueViolation,
    "EXCLUDE USING hash (v WITH =)": ExclusionViolation,
    "EXCLUDE USING btree (tenant WITH =, v WITH =)": ExclusionViolation,
    "EXCLUDE USING hash (v WITH =) DEFERRABLE INITIALLY DEFERRED": ExclusionViolation,
}
each_constraint = pytest.mark.parametrize("constraint", CONSTRAINTS)
TABLE = "CREATE TABLE t (n serial, tenant int DEFAULT 1, v encrypted_text, {})"


@each_constraint
def test_a_constraint_refuses_equal_values_whatever_they_are_sealed_under(
    writer: psycopg.Connection, seals: list[str], constraint: str
) -> None:
    violation = CONSTRAINTS[constraint]
    writer.execute(TABLE.format(constraint))
    for number, seal in enumerate(seals):
        writer.execute(seal)
        writer.execute("INSERT INTO t (v) VALUES (%s)", [f"of seal {number}"])
        for earlier in range(number + 1):
            with pytest.raises(violation):
                writer.execute("INSERT INTO t (v) VALUES (%s)", [f"of seal {earlier}"])
    with pytest.raises(violation):
        writer.execute("UPDATE t SET v = 'of seal 1' WHERE v = 'of seal 2'")
    # The same text again, under another key, is no duplicate of itself.
    writer.execute("UPDATE t SET v = v::text")
    assert fetch(writer, "SELECT count(*) FROM t") == len(seals)


def test_the_seals_of_these_tests_differ(
    writer: psycopg.Connection, seals: list[str]
) -> None:
    writer.execute("CREATE TABLE t (v encrypted_text)")
    for seal in seals:
        writer.execute(f"{seal}; INSERT INTO t VALUES ('x')")
    assert seals_in(writer, "t") == len(seals) == 8


@pytest.mark.parametrize(
    "index",
    [
        "CREATE UNIQUE INDEX ON t (v)",
        "ALTER TABLE t ADD PRIMARY KEY (v)",
        "ALTER TABLE t ADD EXCLUDE USING hash (v WITH =)",
    ],
)
def test_a_constraint_is_not_added_over_equal_values(
    writer: psycopg.Connection, seals: list[str], index: str
) -> None:
    writer.execute("CREATE TABLE t (v encrypted_text)")
    for seal in (seals[0], seals[-1]):
        writer.execute(f"{seal}; INSERT INTO t SELECT i FROM generate_series(1, 100) i")
    with pytest.raises((UniqueViolation, ExclusionViolation)):
        writer.execute(index)
    writer.execute("DELETE FROM t WHERE (colcrypt.inspect(v)).suite = 'envelope'")
    writer.execute(index)


def test_nulls_are_distinct_unless_the_constraint_says_otherwise(
    writer: psycopg.Connection,
) -> None:
    writer.execute("CREATE TABLE t (a encrypted_text UNIQUE, b encrypted_text)")
    writer.execute("CREATE UNIQUE INDEX ON t (b) NULLS NOT DISTINCT")
    writer.execute("INSERT INTO t VALUES (NULL, 'x'), (NULL, NULL)")
    with pytest.raises(UniqueViolation):
        writer.execute("INSERT INTO t VALUES ('x', NULL)")


def test_a_deferred_constraint_looks_at_the_end_of_the_transaction(
    writer: psycopg.Connection, seals: list[str]
) -> None:
    writer.execute(TABLE.format("UNIQUE (v) DEFERRABLE INITIALLY DEFERRED"))
    writer.execute(f"{seals[0]}; INSERT INTO t (v) VALUES ('a'), ('b')")
    writer.execute(seals[-1])
    swap = "UPDATE t SET v = CASE v WHEN 'a' THEN 'b' ELSE 'a' END WHERE n = %s"
    with writer.transaction():
        writer.execute(swap, [1])
        writer.execute(swap, [2])
    assert writer.execute("SELECT v FROM t ORDER BY n").fetchall() == [("b",), ("a",)]
    with pytest.raises(UniqueViolation):
        writer.execute(swap, [1])
    assert writer.execute("SELECT v FROM t ORDER BY n").fetchall() == [("b",), ("a",)]


@pytest.mark.parametrize(
    "target", ["(v)", "(v) WHERE tenant = 1", "ON CONSTRAINT t_v_key"]
)
def test_on_conflict_meets_the_row_with_the_equal_value(
    writer: psycopg.Connection, seals: list[str], target: str
) -> None:
    writer.execute(TABLE.format("UNIQUE (v)"))
    writer.execute("ALTER TABLE t ADD hits int DEFAULT 1")
    insert = f"INSERT INTO t (v) VALUES (%s), ('other') ON CONFLICT {target} DO"
    for seal in seals:
        writer.execute(seal)
        writer.execute(f"{insert} NOTHING", ["x"])
        writer.execute(f"{insert} UPDATE SET hits = t.hits + 1, v = excluded.v", ["x"])
    assert writer.execute("SELECT v, hits FROM t ORDER BY v::text").fetchall() == [
        ("other", 1 + len(seals)),
        ("x", 1 + len(seals)),
    ]


def test_on_conflict_do_nothing_heeds_an_exclusion_constraint(
    writer: psycopg.Connection, seals: list[str]
) -> None:
    writer.execute(TABLE.format("EXCLUDE USING hash (v WITH =)"))
    for seal in seals:
        writer.execute(seal)
        writer.execute("INSERT INTO t (v) VALUES ('x'), ('x') ON CONFLICT DO NOTHING")
    assert fetch(writer, "SELECT count(*) FROM t") == 1


def test_a_partitioned_table_has_a_primary_key_and_moves_rows(
    writer: psycopg.Connection, seals: list[str]
) -> None:
    writer.execute(
        "CREATE TABLE t (v encrypted_text PRIMARY KEY) PARTITION BY HASH (v)"
    )
    for part in range(4):
        writer.execute(
            f"CREATE TABLE t{part} PARTITION OF t"
            f" FOR VALUES WITH (MODULUS 4, REMAINDER {part})"
        )
    writer.execute(f"{seals[0]}; INSERT INTO t SELECT i FROM generate_series(1, 200) i")
    assert fetch(writer, "SELECT count(DISTINCT tableoid) FROM t") == 4
    places = "SELECT tableoid, v FROM t ORDER BY v::text"
    before = writer.execute(places).fetchall()
    writer.execute(seals[-1])
    with pytest.raises(UniqueViolation):
        writer.execute("INSERT INTO t VALUES ('7')")
    # Neither a rotation nor the same value anew changes a value's partition.
    assert fetch(writer, "SELECT rotate_column('t', 'v')") == 200
    assert writer.execute(places).fetchall() == before
    writer.execute("UPDATE t SET v = v::text")
    assert writer.execute(places).fetchall() == before
    writer.execute("UPDATE t SET v = 'n' || v")
    found = "SELECT count(*) FROM generate_series(1, 200) i JOIN t ON v = 'n' || i"
    assert fetch(writer, found) == 200
    with pytest.raises(UniqueViolation):
        writer.execute("UPDATE t SET v = 'n7' WHERE v = 'n8'")


# Foreign keys

KEY_TYPES = [("encrypted_text", "encrypted_text"), ("text", "encrypted_text")]


def make_family(
    session: psycopg.Connection, key: str, reference: str, action: str
) -> None:
    session.execute(
        f"CREATE TABLE parent (v {key} PRIMARY KEY);"
        f"CREATE TABLE child (n serial, v {reference} DEFAULT 'none' REFERENCES parent {action})"
    )


@pytest.mark.parametrize("key, reference", KEY_TYPES)
def test_a_foreign_key_wants_an_equal_value(
    writer: psycopg.Connection, seals: list[str], key: str, reference: str
) -> None:
    make_family(writer, key, reference, "")
    writer.execute(f"{seals[0]}; INSERT INTO parent VALUES ('a'), ('b'), ('')")
    for seal in seals:
        writer.execute(seal)
        writer.execute("INSERT INTO child (v) VALUES ('a'), (NULL), ('')")
        for command in (
            "INSERT INTO child (v) VALUES ('A')",
            "UPDATE child SET v = 'a ' WHERE v = 'a'",
            "UPDATE parent SET v = 'c' WHERE v = 'a'",
            "DELETE FROM parent WHERE v = ''",
        ):
            with pytest.raises(ForeignKeyViolation):
                writer.execute(command)
        # The same text anew, and what nobody refers to.
        writer.execute("UPDATE parent SET v = v::text")
        writer.execute("UPDATE parent SET v = v || 'b' WHERE v LIKE 'b%'")
    assert fetch(writer, "SELECT count(*) FROM child JOIN parent USING (v)") == 2 * len(
        seals
    )


def test_a_foreign_key_from_text_is_not_for_use(writer: psycopg.Connection) -> None:
    """ri_triggers.c asks for the collation of the key, which has none. As documented."""
    make_family(writer, "encrypted_text", "text", "")
    writer.execute("INSERT INTO parent VALUES ('a')")
    with pytest.raises(psycopg.errors.InternalError_, match="collation 0"):
        writer.execute("DELETE FROM parent")


@pytest.mark.parametrize("key, reference", KEY_TYPES)
def test_a_foreign_key_cascades(
    writer: psycopg.Connection, seals: list[str], key: str, reference: str
) -> None:
    make_family(writer, key, reference, "ON UPDATE CASCADE ON DELETE CASCADE")
    writer.execute(f"{seals[0]}; INSERT INTO parent VALUES ('a'), ('b')")
    for seal in seals:
        writer.execute(f"{seal}; INSERT INTO child (v) VALUES ('a'), ('b')")
    children = "SELECT v::text, count(*) FROM child GROUP BY v ORDER BY v::text"
    writer.execute("UPDATE parent SET v = 'c' WHERE v = 'a'")
    assert writer.execute(children).fetchall() == [("b", len(seals)), ("c", len(seals))]
    writer.execute("DELETE FROM parent WHERE v = 'b'")
    assert writer.execute(children).fetchall() == [("c", len(seals))]


@pytest.mark.parametrize("action, left", [("SET NULL", None), ("SET DEFAULT", "none")])
@pytest.mark.parametrize("key, reference", KEY_TYPES)
def test_a_foreign_key_sets_what_it_is_told_to(
    writer: psycopg.Connection,
    seals: list[str],
    key: str,
    reference: str,
    action: str,
    left: str | None,
) -> None:
    make_family(writer, key, reference, f"ON DELETE {action} ON UPDATE {action}")
    writer.execute(f"{seals[0]}; INSERT INTO parent VALUES ('a'), ('b'), ('none')")
    writer.execute(f"{seals[-1]}; INSERT INTO child (v) VALUES ('a'), ('b')")
    writer.execute(
        "DELETE FROM parent WHERE v = 'a'; UPDATE parent SET v = 'c' WHERE v = 'b'"
    )
    assert writer.execute("SELECT v FROM child").fetchall() == [(left,), (left,)]


@pytest.mark.parametrize("key, reference", KEY_TYPES)
def test_a_foreign_key_is_added_to_tables_that_are_filled(
    writer: psycopg.Connection, seals: list[str], key: str, reference: str
) -> None:
    writer.execute(
        f"CREATE TABLE parent (v {key} PRIMARY KEY); CREATE TABLE child (v {reference})"
    )
    writer.execute(
        f"{seals[0]}; INSERT INTO parent SELECT i FROM generate_series(1, 500) i"
    )
    writer.execute(
        f"{seals[-1]}; INSERT INTO child SELECT i FROM generate_series(0, 500) i"
    )
    add = "ALTER TABLE child ADD FOREIGN KEY (v) REFERENCES parent"
    with pytest.raises(ForeignKeyViolation):
        writer.execute(add)
    writer.execute("DELETE FROM child WHERE v = '0'")
    writer.execute(add)


def test_a_rotation_keeps_keys_and_constraints(
    writer: psycopg.Connection, seals: list[str]
) -> None:
    writer.execute(seals[0])
    writer.execute(
        "CREATE TABLE parent (v encrypted_text PRIMARY KEY);"
        "CREATE TABLE child (id int PRIMARY KEY,"
        " v encrypted_text REFERENCES parent ON UPDATE CASCADE ON DELETE CASCADE,"
        " code encrypted_text UNIQUE DEFERRABLE INITIALLY DEFERRED,"
        " EXCLUDE USING hash (code WITH =));"
        "INSERT INTO parent SELECT i FROM generate_series(0, 9) i;"
        "INSERT INTO child SELECT i, i % 10, 'code ' || i FROM generate_series(1, 1000) i"
    )
    # The order by tag, too, stays as it is.
    rows = "SELECT id, v, code FROM child ORDER BY code"
    before = writer.execute(rows).fetchall()
    writer.execute(seals[-1])
    rotate = "SELECT rotate_column('{}', '{}', max_rows => {})"
    for table, column, count in (
        ("parent", "v", 5),
        ("child", "v", 500),
        ("child", "code", 500),
    ):
        # What half of the rotation leaves, and what the whole leaves.
        for _ in range(2):
            assert fetch(writer, rotate.format(table, column, count)) == count
            assert writer.execute(rows).fetchall() == before
            for command, violation in (
                ("INSERT INTO parent VALUES ('9')", UniqueViolation),
                ("INSERT INTO child VALUES (0, '1', 'code 1')", ExclusionViolation),
                ("UPDATE child SET code = 'code 999' WHERE id = 2", ExclusionViolation),
                (
                    "INSERT INTO child VALUES (0, 'absent', 'code 0')",
                    ForeignKeyViolation,
                ),
            ):
                with pytest.raises(violation):
                    writer.execute(command)
        assert fetch(writer, rotate.format(table, column, "NULL")) == 0
    assert seals_in(writer, "parent") == seals_in(writer, "child") == 1
    writer.execute(
        "UPDATE parent SET v = 'new' WHERE v = '7'; DELETE FROM parent WHERE v = '8'"
    )
    kept = [(id, "new" if v == "7" else v, code) for id, v, code in before if v != "8"]
    assert writer.execute(rows).fetchall() == kept


# Two sessions at once


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
@each_constraint
def test_the_second_of_two_sessions_waits_for_the_first(
    server: Cluster,
    writer: psycopg.Connection,
    seals: list[str],
    constraint: str,
    end: str,
) -> None:
    writer.execute(TABLE.format(constraint))
    outcome: list[object] = []

    def insert() -> None:
        with server.connect(options=IN_SCHEMA, application_name="second") as second:
            second.execute(seals[-1])
            try:
                outcome.append(
                    second.execute("INSERT INTO t (v) VALUES ('x')").rowcount
                )
            except psycopg.Error as error:
                outcome.append(type(error))

    writer.execute(f"{seals[0]}; BEGIN; INSERT INTO t (v) VALUES ('x')")
    thread = threading.Thread(target=insert)
    thread.start()
    waits = (
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND application_name = 'second'"
    )
    wait_until(lambda: server.psql(waits) == "1", "the second session to wait")
    writer.execute(end)
    thread.join(timeout=30)
    assert outcome == [1 if end == "ROLLBACK" else CONSTRAINTS[constraint]]


# Order


@pytest.mark.parametrize("operator", ["<", "<=", ">", ">="])
@pytest.mark.parametrize(
    "condition",
    [
        "v {} 'b'",
        "v {} 'b'::text",
        "v {} 'b'::varchar",
        "'b' {} v",
        "'b'::text {} v",
        "v {} v",
        "v {} lower(v)",
        "v {} ANY ('{{a,b}}')",
        "v {} ALL ('{{a,b}}'::text[])",
    ],
)
@pytest.mark.parametrize("index", ["", "CREATE INDEX ON t (v)"], ids=["", "indexed"])
def test_an_order_of_encrypted_values_is_refused(
    writer: psycopg.Connection, operator: str, condition: str, index: str
) -> None:
    writer.execute("CREATE TABLE t (v encrypted_text)")
    writer.execute(f"INSERT INTO t VALUES ('a'), ('c'); {index}")
    with pytest.raises(FeatureNotSupported) as refused:
        writer.execute(f"SELECT v FROM t WHERE {condition.format(operator)}")
    assert "::text" in refused.value.diag.message_hint

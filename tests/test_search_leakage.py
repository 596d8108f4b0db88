"""What an index and the statistics tell a thief of the disk: not the values; and
that VACUUM and ANALYZE, which keep them, work in a server that has no key."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import decryptor
import psycopg
import pytest

from conftest import MakeCluster
from harness import Cluster, Database, fetch, new_key, wait_until
from kinds import JSONB, KINDS, TEXT, Kind, every_kind
from test_leakage import files_with

TEXTS = [f"canary-{i}-of-colcrypt-tests" for i in range(300)] + ["", "é", "a"]
# Short ones are no needles: they may turn up by chance.
NEEDLES = TEXTS[:300]
BUILDS = ("before", "after")


def plaintext(kind: Kind, text: str) -> bytes:
    """What is encrypted of a text."""
    return kind.holding(text).sealed


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Cluster]:
    cluster = Cluster(base, template, ring=new_key())
    cluster.conf(autovacuum=False)
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt; CREATE EXTENSION pageinspect")
    with cluster.connect() as session:
        for kind in KINDS:
            fill(session, kind)
        session.execute("ANALYZE; CHECKPOINT")
    yield cluster
    cluster.destroy()


def fill(session: psycopg.Connection, kind: Kind) -> None:
    """A schema with a table of the encrypted values, `t`, and one of what nobody is to
    find in its indexes, `twin`."""
    session.execute(f"CREATE SCHEMA {kind}; SET search_path = {kind}, public")
    session.execute(f"CREATE TABLE t (secret {kind.type})")
    session.execute(
        f"CREATE TABLE twin (plain {kind.plain}, hash bytea, hex text);"
        "CREATE INDEX twin_plain ON twin (plain);"
        "CREATE INDEX twin_hash ON twin (hash);"
        "CREATE INDEX twin_hex ON twin (hex);"
        "CREATE INDEX twin_code ON twin USING hash (plain)"
    )
    make_indexes(session, "before")
    for text in TEXTS:
        sealed, literal = plaintext(kind, text), kind.holding(text).literal
        session.execute(f"INSERT INTO t VALUES ({literal})")
        digests = [hashlib.sha256(sealed).digest(), hashlib.sha1(sealed).hexdigest()]
        session.execute(f"INSERT INTO twin VALUES ({literal}, %s, %s)", digests)
    session.execute(f"UPDATE t SET secret = secret::{kind.plain}")
    make_indexes(session, "after")


def make_indexes(session: psycopg.Connection, build: str) -> None:
    for method in ("btree", "hash"):
        session.execute(f"CREATE INDEX {method}_{build} ON t USING {method} (secret)")


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def session(host: Cluster, kind: Kind) -> Iterator[psycopg.Connection]:
    with host.connect(options=f"-c search_path={kind},public") as session:
        yield session


def tags(host: Cluster, kind: Kind, texts: list[str]) -> list[bytes]:
    """The tags of the texts' plaintexts, made without colcrypt."""
    key, suite = index_key(host)
    plaintexts = [plaintext(kind, text).decode() for text in texts]
    return [decryptor.index_tag(key, plain, suite) for plain in plaintexts]


def index_key(host: Cluster) -> tuple[bytes, str]:
    names = ("key_id", "wrapped_by", "kind", "suite")
    row = host.psql(
        f"SELECT {', '.join(names)}, wrapped FROM colcrypt.key WHERE kind = 'index'"
    )
    *identity, wrapped = row.split("|")
    key = decryptor.unwrap_key(
        bytes.fromhex(wrapped.removeprefix("\\x")),
        [decryptor.ring_key((host.dir / "ring.keys").read_text())],
        **dict(zip(names, identity)),
    )
    *_, kind, suite = identity
    assert (kind, suite) == ("index", "aes-256-cmac")
    return key, suite


# Pages of indexes


def page_bytes(session: psycopg.Connection, host: Cluster, index: str) -> bytes:
    """The file of an index, and what PostgreSQL shows of its pages."""
    pages = session.cursor(binary=True).execute(
        f"SELECT get_raw_page('{index}', n::int) FROM generate_series(0,"
        f" pg_relation_size('{index}') / 8192 - 1) n"
    )
    shown = b"".join(page for (page,) in pages)
    path = fetch(session, "SELECT pg_relation_filepath(%s)", index)
    stored = (host.datadir / path).read_bytes()
    assert shown and len(shown) == len(stored)
    return shown + stored


def digests(plain: bytes) -> list[bytes]:
    names = "md5 sha1 sha224 sha256 sha384 sha512 blake2b blake2s sha3_256".split()
    return [hashlib.new(name, plain).digest() for name in names]


def traces(plain: bytes) -> list[bytes]:
    """What would give a plaintext away: it, or the start of a hash that anyone can make
    of it, raw or in hex."""
    starts = [plain, *(digest[:8] for digest in digests(plain))]
    hexes = [start.hex().encode() for start in starts]
    return [*starts, *hexes, *(each.upper() for each in hexes)]


def secrets_of(kind: Kind, text: str) -> list[bytes]:
    """A plaintext, and of a document its member."""
    return list({plaintext(kind, text), text.encode()})


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("method", ["btree", "hash"])
def test_index_pages_hold_neither_plaintext_nor_an_unkeyed_hash(
    host: Cluster, session: psycopg.Connection, kind: Kind, method: str, build: str
) -> None:
    pages = page_bytes(session, host, f"{method}_{build}")
    found = [
        text
        for text in NEEDLES
        for plain in secrets_of(kind, text)
        if any(trace in pages for trace in traces(plain))
    ]
    assert found == []


@pytest.mark.parametrize("build", BUILDS)
def test_btree_pages_do_not_even_hold_tags(
    host: Cluster, session: psycopg.Connection, kind: Kind, build: str
) -> None:
    pages = page_bytes(session, host, f"btree_{build}")
    all = tags(host, kind, TEXTS)
    assert [tag for tag in all if tag[:8] in pages or tag[7::-1] in pages] == []


@pytest.mark.parametrize("index", ["twin_plain", "twin_hash", "twin_hex"])
def test_the_same_search_finds_plaintext_and_unkeyed_hashes(
    host: Cluster, session: psycopg.Connection, kind: Kind, index: str
) -> None:
    # So that the search above can fail.
    pages = page_bytes(session, host, index)
    found = [
        text
        for text in NEEDLES
        if any(t in pages for plain in secrets_of(kind, text) for t in traces(plain))
    ]
    assert found == NEEDLES


def test_no_file_holds_an_indexed_value(host: Cluster, kind: Kind) -> None:
    # The WAL of index builds and the statistics are among them.
    with host.connect() as session:
        session.execute(f"CREATE TABLE lone (secret {kind.type}, id int)")
        for number in range(100):
            value = kind.holding(f"lonely-{number}-canary").literal
            session.execute(f"INSERT INTO lone VALUES ({value})")
        for method in ("btree", "hash"):
            session.execute(f"CREATE INDEX ON lone USING {method} (secret)")
        # Each value twice makes it one of the most common ones.
        session.execute("INSERT INTO lone TABLE lone; UPDATE lone SET id = 1")
        session.execute("CREATE STATISTICS s (mcv, ndistinct) ON id, secret FROM lone")
        session.execute("ANALYZE lone; CHECKPOINT")
        kept = "SELECT stxdmcv IS NOT NULL FROM pg_statistic_ext_data"
        assert fetch(session, kept)
        found = [files_with(host.datadir, n) for n in (b"lonely-", b"6c6f6e656c792d")]
        session.execute("DROP TABLE lone")
    assert found == [[], []]


@pytest.mark.parametrize("build", BUILDS)
def test_btree_leaves_hold_the_stored_values_and_nothing_else(
    session: psycopg.Connection, build: str
) -> None:
    sealed = session.execute("SELECT ciphertext(secret) FROM t").fetchall()
    stored = {decryptor.stored_bytes(text) for (text,) in sealed}
    items = session.execute(
        f"SELECT data FROM (SELECT 'btree_{build}') AS x (name),"
        " generate_series(1, pg_relation_size(name::regclass) / 8192 - 1) n,"
        " bt_page_stats(name, n::int) s, bt_page_items(name, n::int) i"
        " WHERE s.type = 'l' AND NOT i.dead"
    ).fetchall()
    entries = [bytes.fromhex(data.replace(" ", "")) for (data,) in items]
    for entry in entries:
        # A short varlena, behind it padding to 8 bytes.
        length = entry[0] >> 1
        assert not any(entry[length:]) and len(entry) - length < 8
    assert {entry[1 : entry[0] >> 1] for entry in entries} >= stored


# The codes of a hash index


def stored_codes(session: psycopg.Connection, index: str) -> set[int]:
    codes = session.execute(
        "SELECT i.data"
        f" FROM generate_series(0, pg_relation_size('{index}') / 8192 - 1) n,"
        f" LATERAL (SELECT get_raw_page('{index}', n::int)) p (page),"
        " LATERAL hash_page_items(page) i"
        " WHERE hash_page_type(page) IN ('bucket', 'overflow')"
    ).fetchall()
    return {code for (code,) in codes}


def unkeyed_codes(session: psycopg.Connection, plain: bytes) -> set[int]:
    """32 bits of what anyone can make of a plaintext."""
    row = session.execute(
        "SELECT hashtext(%s), hashtextextended(%s, 0), hashtextextended(%s, 1)",
        [plain.decode()] * 3,
    ).fetchone()
    assert row is not None
    numbers = [(number, 4 if n == 0 else 8) for n, number in enumerate(row)]
    hashes = [number.to_bytes(size, "big", signed=True) for number, size in numbers]
    hashes += [zlib.crc32(plain).to_bytes(4, "big"), *digests(plain)]
    parts = [part for each in hashes for part in (each[:4], each[-4:])]
    return {
        int.from_bytes(part, order) for part in parts for order in ("big", "little")
    }


@pytest.mark.parametrize("build", BUILDS)
def test_hash_codes_are_the_start_of_the_tags_under_the_index_key(
    host: Cluster, session: psycopg.Connection, kind: Kind, build: str
) -> None:
    codes = stored_codes(session, f"hash_{build}")
    assert codes == {decryptor.hash_code(tag) for tag in tags(host, kind, TEXTS)}


@pytest.mark.parametrize("build", BUILDS)
def test_hash_codes_are_no_unkeyed_hash(
    session: psycopg.Connection, kind: Kind, build: str
) -> None:
    codes = stored_codes(session, f"hash_{build}")
    assert len(codes) == len(TEXTS)
    unkeyed = [
        unkeyed_codes(session, plain)
        for text in TEXTS
        for plain in secrets_of(kind, text)
    ]
    assert not codes & set().union(*unkeyed)
    # Nor what PostgreSQL makes of the plain type.
    assert not codes & stored_codes(session, "twin_code")


def test_the_same_comparison_finds_postgresql_s_own_codes(host: Cluster) -> None:
    with host.connect(options=f"-c search_path={TEXT},public") as session:
        codes = stored_codes(session, "twin_code")
        unkeyed = [unkeyed_codes(session, text.encode()) for text in TEXTS]
    assert all(codes & each for each in unkeyed)


@pytest.mark.parametrize(
    "document, tagged",
    [
        (' {"b" : 1.50, "aa":[1e2, -0.0]}', '{"b": 1.5, "aa": [100, 0]}'),
        ('"1.50"', '"1.50"'),
        ("1.000", "1"),
        ('{"é": "\\u00e9"}', '{"é": "é"}'),
    ],
)
def test_equal_documents_have_the_tag_of_one_form(
    host: Cluster, document: str, tagged: str
) -> None:
    key, suite = index_key(host)
    with host.connect() as session:
        code = fetch(session, "SELECT encrypted_jsonb_hash(%s::jsonb)", document)
    tag = decryptor.index_tag(key, tagged, suite)
    assert code % 2**32 == decryptor.hash_code(tag)


def test_another_database_has_other_codes(
    db: Database, session: psycopg.Connection, kind: Kind
) -> None:
    with db.connect() as other:
        other.execute("CREATE EXTENSION pageinspect")
        other.execute(f"CREATE TABLE t (secret {kind.type})")
        other.execute("CREATE INDEX h ON t USING hash (secret)")
        value = kind.holding_sql("v")
        insert = f"INSERT INTO t SELECT {value} FROM unnest(%s::text[]) v"
        other.execute(insert, [TEXTS])
        elsewhere = stored_codes(other, "h")
    assert elsewhere and not elsewhere & stored_codes(session, "hash_after")


# What PostgreSQL refuses to store

PLAINTEXT = {
    "text": ["lower(secret)", "md5(secret)", "(secret || 'x')"],
    "bytea": [
        "sha256(secret)",
        "encode(secret, 'hex')",
        "length(secret)",
        "(secret || 'x')",
        "(secret LIKE 'x%')",
    ],
    "jsonb": [
        "(secret -> 'v')",
        "(secret ->> 'v')",
        "(secret @> '{}')",
        "(secret ? 'v')",
        "(secret @? '$.v')",
        "(secret || '{}')",
        "jsonb_typeof(secret)",
        "jsonb_hash(secret)",
        "(secret::json)",
    ],
}
OF_THE_PLAINTEXT = [
    pytest.param(kind, what, id=f"{kind}-{what}")
    for kind in KINDS
    for what in (
        f"(secret::{kind.plain})",
        "(secret::text)",
        "md5(secret::text)",
        "decrypt(secret)",
        *PLAINTEXT[kind.plain],
    )
]


@pytest.fixture
def table(session: psycopg.Connection, kind: Kind) -> Iterator[psycopg.Connection]:
    """A session with a table that is empty, in a transaction that leaves nothing."""
    with session.transaction(force_rollback=True):
        session.execute(f"CREATE TEMP TABLE t (id int, secret {kind.type})")
        yield session


def check_refused(session: psycopg.Connection, command: str, state: str) -> str:
    """The message of a command's error."""
    with pytest.raises(psycopg.Error) as refused, session.transaction():
        session.execute(command)
    assert refused.value.sqlstate == state
    return str(refused.value)


@pytest.mark.parametrize("kind, what", OF_THE_PLAINTEXT)
def test_an_index_over_the_plaintext_is_refused(
    table: psycopg.Connection, what: str
) -> None:
    for index in (f"({what})", f"(id) WHERE {what} IS NOT NULL"):
        error = check_refused(table, f"CREATE INDEX ON t {index}", "42P17")
        assert "must be marked IMMUTABLE" in error


def test_an_index_on_a_comparison_with_the_plain_type_is_refused(
    table: psycopg.Connection, kind: Kind
) -> None:
    index = f"(id) WHERE secret = {kind.one.literal}::{kind.plain}"
    error = check_refused(table, f"CREATE INDEX ON t {index}", "42P17")
    assert "must be marked IMMUTABLE" in error


@pytest.mark.parametrize("kind", [JSONB], ids=str)
@pytest.mark.parametrize("method", ["gin", "gist"])
@pytest.mark.parametrize("what", ["secret::jsonb", "secret -> 'v'", "secret || '{}'"])
def test_an_inverted_index_over_documents_is_refused(
    table: psycopg.Connection, method: str, what: str
) -> None:
    index = f"CREATE INDEX ON t USING {method} (({what}))"
    assert "must be marked IMMUTABLE" in check_refused(table, index, "42P17")


NO_CLASS = [("brin", ""), ("gist", ""), ("spgist", ""), ("gin", "")]
PLAIN_CLASSES = {
    "text": [
        ("btree", "text_ops"),
        ("btree", "text_pattern_ops"),
        ("hash", "text_ops"),
        ("brin", "text_bloom_ops"),
    ],
    "bytea": [
        ("btree", "bytea_ops"),
        ("hash", "bytea_ops"),
        ("brin", "bytea_bloom_ops"),
    ],
    "jsonb": [
        ("btree", "jsonb_ops"),
        ("hash", "jsonb_ops"),
        ("gin", "jsonb_ops"),
        ("gin", "jsonb_path_ops"),
    ],
}


@pytest.mark.parametrize(
    "kind, method, of_class",
    [
        pytest.param(kind, method, of_class, id=f"{kind}-{method}-{of_class}")
        for kind in KINDS
        for method, of_class in NO_CLASS + PLAIN_CLASSES[kind.plain]
    ],
)
def test_an_index_by_the_rules_of_the_plain_type_is_refused(
    table: psycopg.Connection, method: str, of_class: str
) -> None:
    index = f"CREATE INDEX ON t USING {method} (secret {of_class})"
    check_refused(table, index, "42804" if of_class else "42704")


# Not `secret` alone: PostgreSQL looks for functions that are not immutable before it
# adds the cast to the column's type (docs/threat-model.md).
@pytest.mark.parametrize("kind, what", OF_THE_PLAINTEXT)
def test_a_generated_column_of_the_plaintext_is_refused(
    table: psycopg.Connection, what: str
) -> None:
    column = f"boolean GENERATED ALWAYS AS ({what} IS NOT NULL) STORED"
    error = check_refused(table, f"ALTER TABLE t ADD copy {column}", "42P17")
    assert "not immutable" in error


# Statistics


def statistics(session: psycopg.Connection, column: str) -> tuple[float, int, float]:
    row = session.execute(
        "SELECT null_frac, avg_width, n_distinct FROM pg_stats"
        " WHERE tablename = 't' AND attname = %s",
        [column],
    ).fetchone()
    assert row is not None
    return row


@pytest.mark.parametrize(
    "value, rows, null_fraction, width, distinct",
    [
        pytest.param("i::text", 20_000, 0, 5, -1, id="unique"),
        pytest.param("(i % 10)::text", 20_000, 0, 1, 10, id="ten"),
        pytest.param("(i % 10)::text", 50_000, 0, 1, 10, id="ten of many"),
        # The i-th value i times, for 300 values.
        pytest.param("floor(sqrt(i * 2))::text", 45_000, 0, 3, 300, id="skewed"),
        pytest.param(
            "CASE WHEN i % 2 = 0 THEN i::text END", 20_000, 0.5, 5, -0.5, id="half"
        ),
        pytest.param("NULL::text", 1_000, 1, 0, 0, id="all NULL"),
        pytest.param("''", 1_000, 0, 0, 1, id="empty"),
        pytest.param("lpad((i % 10)::text, 900)", 1_000, 0, 900, 10, id="large"),
        # As for text: too large to look at.
        pytest.param("lpad((i % 10)::text, 1100)", 1_000, 0, 1100, -1, id="too large"),
    ],
)
def test_statistics_count_and_hold_no_value(
    db: Database,
    value: str,
    rows: int,
    null_fraction: float,
    width: int,
    distinct: float,
) -> None:
    with db.connect() as session:
        session.execute("CREATE TABLE t (plain text, secret encrypted_text)")
        session.execute(
            f"INSERT INTO t SELECT v, v FROM generate_series(1, {rows}) i,"
            f" LATERAL (SELECT {value}) AS s (v); ANALYZE t"
        )
        nulls, bytes_, found = statistics(session, "secret")
        plain_nulls, _, plain_found = statistics(session, "plain")
        assert nulls == pytest.approx(null_fraction, abs=0.01)
        assert nulls == plain_nulls
        if nulls < 1:
            # 45 bytes more, and a header of 1 or 4.
            assert width + 44 <= bytes_ <= width + 50
        if distinct > 0:
            assert distinct / 2 <= found <= distinct * 2
        else:
            assert found == pytest.approx(distinct, rel=0.02)
        # Of the same sample PostgreSQL estimates the same for text.
        assert found == pytest.approx(plain_found, rel=0.05)
        held = session.execute(
            "SELECT stakind1, stakind2, stakind3, stakind4, stakind5,"
            " COALESCE(stavalues1, stavalues2, stavalues3, stavalues4, stavalues5),"
            " COALESCE(stanumbers1, stanumbers2, stanumbers3, stanumbers4, stanumbers5)"
            " FROM pg_statistic JOIN pg_attribute"
            " ON (attrelid, attnum) = (starelid, staattnum)"
            " WHERE attrelid = 't'::regclass AND attname = 'secret'"
        ).fetchall()
        assert held == [(0, 0, 0, 0, 0, None, None)]


@every_kind
def test_statistics_of_every_type_count_equal_values_and_hold_none(
    db: Database, kind: Kind
) -> None:
    one, other = kind.equal[0]
    many = kind.holding_sql("(i % 10)::text")
    with db.connect() as session:
        session.execute(
            f"CREATE TABLE t (one {kind.type}, many {kind.type}, every {kind.type},"
            f" nothing {kind.type}, plain {kind.plain});"
            f"INSERT INTO t SELECT CASE WHEN i % 2 = 0 THEN {one}::{kind.plain}"
            f" ELSE {other}::{kind.plain} END, {many},"
            f" {kind.holding_sql('i::text')}, NULL, {many}"
            " FROM generate_series(1, 3000) i; ANALYZE t"
        )
        columns = ("one", "many", "every", "nothing")
        found = [statistics(session, column)[::2] for column in columns]
        assert found == [(0, 1), (0, 10), (0, -1), (1, 0)]
        # As PostgreSQL does with the plain type, here and below.
        assert statistics(session, "plain")[2] == 10
        shown = (
            "SELECT attname FROM pg_stats WHERE tablename = 't' AND num_nonnulls("
            "most_common_vals, most_common_freqs, histogram_bounds, correlation,"
            " most_common_elems, most_common_elem_freqs, elem_count_histogram) > 0"
        )
        assert session.execute(shown).fetchall() == [("plain",)]
        kept = (
            "SELECT attname, stakind1 FROM pg_statistic JOIN pg_attribute"
            " ON (attrelid, attnum) = (starelid, staattnum)"
            " WHERE attrelid = 't'::regclass AND (stakind1, stakind2, stakind3,"
            " stakind4, stakind5) <> (0, 0, 0, 0, 0)"
        )
        assert session.execute(kept).fetchall() == [("plain", 1)]


# Keyless maintenance

SHAPES = {
    "ascending": "btree (secret)",
    "descending": "btree (secret DESC)",
    "nulls_first": "btree (secret NULLS FIRST)",
    "second": "btree (id, secret)",
    "first": "btree (secret, id)",
    "hash": "hash (secret)",
}
BTREES = [name for name in SHAPES if name != "hash"]


class Keyless:
    """A server that has lost its key: each table of SHAPES has one index."""

    def __init__(self, cluster: Cluster, kind: Kind) -> None:
        self.cluster = cluster
        self.value = kind.holding_sql("lpad(i::text, 300)")
        cluster.psql("CREATE EXTENSION amcheck; CREATE EXTENSION pgstattuple")
        for name, what in SHAPES.items():
            cluster.psql(
                f"CREATE TABLE {name} (id int, secret {kind.type});"
                f"CREATE INDEX {name}_i ON {name} USING {what};"
                f"INSERT INTO {name} SELECT i, {self.value}"
                " FROM generate_series(1, 2000) i"
            )
        self.ring = cluster.settings["colcrypt.key_file"]
        self.set_key(None)
        assert "55000" in cluster.psql_error("SELECT secret FROM hash")

    def set_key(self, file: object) -> None:
        self.cluster.conf({"colcrypt.key_file": file})
        self.cluster.restart()

    def check(self) -> None:
        """With the key again, indexes are whole and find what is there."""
        self.set_key(self.ring)
        for name in SHAPES:
            left = self.cluster.psql(f"SELECT count(*) FROM {name}")
            found = self.cluster.psql(
                "SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan;"
                f"SELECT count(*) FROM generate_series(1, 2000) i JOIN {name} t"
                f" ON t.secret = {self.value}"
            )
            assert int(left) > 0 and found == left
        for name in BTREES:
            self.cluster.psql(f"SELECT bt_index_parent_check('{name}_i', true, true)")


@pytest.fixture
def keyless(request: pytest.FixtureRequest, make_cluster: MakeCluster) -> Keyless:
    """Of text, unless a test asks for another type."""
    kind = getattr(request, "param", TEXT)
    return Keyless(make_cluster(ring=new_key(), conf={"autovacuum": False}), kind)


def deleted_pages(cluster: Cluster, name: str) -> int:
    return int(cluster.psql(f"SELECT deleted_pages FROM pgstatindex('{name}_i')"))


@pytest.mark.parametrize("keyless", KINDS, ids=str, indirect=True)
def test_vacuum_and_analyze_need_no_key(keyless: Keyless) -> None:
    cluster = keyless.cluster
    start = len(cluster.log())
    for name in SHAPES:
        cluster.psql(f"DELETE FROM {name} WHERE id % 50 <> 0")
    cluster.psql("VACUUM; ANALYZE; VACUUM (ANALYZE, PARALLEL 2)")
    for name in SHAPES:
        stats = cluster.psql(
            "SELECT null_frac, avg_width, n_distinct FROM pg_stats"
            f" WHERE tablename = '{name}' AND attname = 'secret'"
        )
        # Without a key there is no telling how many are distinct.
        assert re.fullmatch(r"0\|3[45]\d\|0", stats)
    deleted = {name: deleted_pages(cluster, name) for name in BTREES}
    log = cluster.log()[start:]
    keyless.check()
    assert "ERROR" not in log
    # About 100 leaves became empty.
    assert min(deleted.values()) > 50, deleted
    assert "failed to re-find" not in log


def test_pages_that_vacuum_deletes_without_a_key_are_used_again(
    keyless: Keyless,
) -> None:
    cluster = keyless.cluster
    for name in SHAPES:
        cluster.psql(f"DELETE FROM {name} WHERE id <> 1000")
    cluster.psql("VACUUM; SELECT txid_current(); VACUUM")
    deleted = {name: deleted_pages(cluster, name) for name in BTREES}
    keyless.set_key(keyless.ring)
    sizes = {}
    for name in SHAPES:
        size = f"SELECT pg_relation_size('{name}_i')"
        before = int(cluster.psql(size))
        cluster.psql(
            f"INSERT INTO {name} SELECT i, {keyless.value}"
            " FROM generate_series(1, 500) i; VACUUM " + name
        )
        sizes[name] = int(cluster.psql(size)) / before
    keyless.check()
    assert min(deleted.values()) > 70, deleted
    assert max(sizes.values()) == 1, sizes


def test_autovacuum_needs_no_key(keyless: Keyless) -> None:
    cluster = keyless.cluster
    cluster.conf(
        autovacuum=True,
        autovacuum_naptime=1,
        autovacuum_vacuum_threshold=1,
        autovacuum_vacuum_scale_factor=0,
        autovacuum_analyze_threshold=1,
        autovacuum_analyze_scale_factor=0,
        log_autovacuum_min_duration=0,
    )
    cluster.restart()
    start = len(cluster.log())
    for name in SHAPES:
        cluster.psql(f"DELETE FROM {name} WHERE id % 50 <> 0")
    done = (
        "SELECT count(*) FROM pg_stat_user_tables"
        " WHERE autovacuum_count > 0 AND autoanalyze_count > 0 AND n_tup_del > 0"
    )
    wait_until(lambda: cluster.psql(done) == str(len(SHAPES)), "autovacuum")
    log = cluster.log()[start:]
    deleted = {name: deleted_pages(cluster, name) for name in BTREES}
    cluster.conf(autovacuum=False)
    keyless.check()
    assert "ERROR" not in log and "automatic vacuum of table" in log
    assert "failed to re-find" not in log
    assert min(deleted.values()) > 50, deleted


@pytest.mark.parametrize(
    "object",
    [
        "STATISTICS s ON secret, id FROM t",
        "STATISTICS s (mcv) ON secret, id FROM t",
        "INDEX i ON t (id) WHERE secret <> ''",
        "TABLE u AS SELECT ARRAY[secret, secret] AS secrets FROM t",
        "TYPE one AS (s encrypted_text);"
        " CREATE TABLE u AS SELECT ROW(secret)::one AS secret FROM t",
    ],
)
def test_analyze_needs_no_key_whatever_is_built_on_the_column(
    make_cluster: MakeCluster, object: str
) -> None:
    cluster = make_cluster(ring=new_key(), conf={"autovacuum": False})
    cluster.psql(
        "CREATE TABLE t (id int, secret encrypted_text);"
        "INSERT INTO t SELECT i, i % 10 FROM generate_series(1, 1000) i;"
        f"CREATE {object}; ANALYZE"
    )
    cluster.conf({"colcrypt.key_file": None})
    cluster.restart()
    cluster.psql("ANALYZE")
    assert "ERROR" not in cluster.log()


def test_analyze_of_every_type_needs_no_key_whatever_is_built_on_it(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(ring=new_key(), conf={"autovacuum": False})
    for kind in KINDS:
        value = kind.holding_sql("(i % 10)::text")
        cluster.psql(
            f"CREATE SCHEMA {kind}; SET search_path = {kind}, public;"
            f"CREATE TABLE t (id int, secret {kind.type}, secrets {kind.type}[]);"
            f"INSERT INTO t SELECT i, {value}, ARRAY[{value}]::{kind.type}[]"
            " FROM generate_series(1, 1000) i;"
            "CREATE STATISTICS s ON secret, id FROM t;"
            "CREATE STATISTICS m (mcv) ON secret, secrets, id FROM t;"
            f"CREATE INDEX ON t (id) WHERE secret <> {kind.one.literal};"
            f"CREATE TABLE p (secret {kind.type}) PARTITION BY HASH (secret);"
            "CREATE TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 1, REMAINDER 0);"
            f"INSERT INTO p SELECT secret FROM t; ANALYZE t, p"
        )
    cluster.conf({"colcrypt.key_file": None})
    cluster.restart()
    cluster.psql("ANALYZE; VACUUM ANALYZE")
    assert "ERROR" not in cluster.log()


def test_analyze_passes_over_unknown_keys_and_damaged_values(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(ring=new_key(), conf={"autovacuum": False})
    with cluster.connect() as session:
        session.execute("CREATE TABLE t (id int, secret encrypted_text)")
        insert = "INSERT INTO t SELECT i, i % 10 FROM generate_series({}, {}) i"
        session.execute(insert.format(1, 900))
        session.execute("SELECT set_config('colcrypt.key', %s, false)", [new_key()])
        session.execute(insert.format(901, 950))
        session.execute("RESET colcrypt.key")
        session.execute(insert.format(951, 1000))
        damage = "SELECT ciphertext(secret) FROM t WHERE id > 950"
        sealed = [text for (text,) in session.execute(damage).fetchall()]
    heap = cluster.relation_path("t")
    cluster.stop()
    pages = heap.read_bytes()
    for n, text in enumerate(sealed):
        stored = decryptor.stored_bytes(text)
        assert pages.count(stored) == 1
        # Some with a broken format, some with a broken body.
        broken = bytes([stored[0] | 0xF0]) + stored[1:] if n % 2 else stored[:-1] + b"x"
        pages = pages.replace(stored, broken)
    heap.write_bytes(pages)
    cluster.start()
    for id, code in ((925, "55000"), (951, "XX001"), (952, "XX001")):
        assert code in cluster.psql_error(f"SELECT secret FROM t WHERE id = {id}")
    start = len(cluster.log())
    cluster.psql("ANALYZE t; VACUUM ANALYZE t")
    with cluster.connect() as session:
        nulls, width, distinct = statistics(session, "secret")
    # 10, and 100 that are taken for distinct.
    assert (nulls, distinct) == (0, pytest.approx(-0.11, abs=0.02))
    assert 45 <= width <= 50
    assert "ERROR" not in cluster.log()[start:]

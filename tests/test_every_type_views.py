"""What views, the doctor, counters and logs tell of values of each encrypted type, and
what they do not."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import CheckViolation, InsufficientPrivilege, UniqueViolation

from harness import MAJOR, Cluster, Database, fetch, key_id, new_key
from kinds import CANARY_FORMS, KINDS, Kind, every_kind
from test_audit import logged
from test_every_type_keys import (
    ROTATE,
    SET_KEY,
    SUITES,
    assert_quotes_nothing,
    assert_reads,
    clean,
    column,
    fill,
    home,
    host,
    primary,
    session,
)

__all__ = ["clean", "home", "host", "session"]

COUNTS = """
    SELECT concat_ws(' ', operation, suite, outcome), calls, bytes
    FROM colcrypt.stat WHERE calls > 0"""

# Views


@every_kind
def test_views_list_columns_keys_and_indexes(
    session: psycopg.Connection, host: Cluster, kind: Kind
) -> None:
    made = fetch(session, "SELECT colcrypt.create_key('pii')")
    session.execute(
        "DROP TABLE t, p;"
        f"CREATE DOMAIN d AS {kind.type}(pii); CREATE TYPE c AS (x {kind.type});"
        f"CREATE TABLE t (a {kind.type}, b {kind.type}(pii), d d, l {kind.type}[], c c,"
        f" plain {kind.plain});"
        "CREATE INDEX by_a ON t (a); CREATE INDEX by_b ON t USING hash (b);"
        "CREATE MATERIALIZED VIEW m AS SELECT a FROM t"
    )
    columns = session.execute(
        "SELECT relation::text, column_name, type, key_name, cardinality(indexes)"
        " FROM colcrypt.columns ORDER BY 1, 2"
    ).fetchall()
    assert columns == [
        ("m", "a", kind.type, None, 0),
        ("t", "a", kind.type, None, 1),
        ("t", "b", f"{kind.type}(pii)", "pii", 1),
        ("t", "c", "c", None, 0),
        ("t", "d", "d", "pii", 0),
        ("t", "l", f"{kind.type}[]", None, 0),
    ]
    one = kind.one.literal
    session.execute(
        f"INSERT INTO t VALUES ({one}, {one}, {one}, ARRAY[{one}]::{kind.type}[], ROW({one}))"
    )
    mentions = "SELECT colcrypt.keys_in_index(%s, %s)"
    ids = [primary(host), made, "deadbeef"]
    assert column(session, mentions, "by_a", ids) == [primary(host)]
    # A hash index has nothing of a value but its hash.
    assert column(session, mentions, "by_b", ids) == []
    for name, key in {"a": primary(host), "b": made, "d": made}.items():
        used = "SELECT key_id, rows, stale FROM colcrypt.key_usage('t', %s)"
        assert session.execute(used, [name]).fetchall() == [(key, 1, False)]
    dropped = (
        "SELECT rows, indexes::text[], may_be_dropped FROM colcrypt.droppable_keys()"
        " WHERE key_id = %s"
    )
    own = session.execute(dropped, [primary(host)]).fetchone()
    assert own == (1, ["by_a"], False)
    assert session.execute(dropped, [made]).fetchone() == (2, [], False)


@every_kind
def test_sealed_constants_are_found_wherever_they_are(
    session: psycopg.Connection, host: Cluster, kind: Kind
) -> None:
    one = kind.one.literal
    session.execute(
        f"ALTER TABLE t ALTER secret SET DEFAULT {one},"
        f" ADD CONSTRAINT not_one CHECK (secret <> {one});"
        f"CREATE VIEW v AS SELECT n FROM t WHERE secret = {one};"
        f"CREATE FUNCTION f(x {kind.type} DEFAULT {one}) RETURNS int LANGUAGE sql"
        f" RETURN (SELECT n FROM t WHERE secret = {one});"
        f"CREATE POLICY own ON t USING (secret = {one});"
        f"CREATE INDEX part ON t (n) WHERE secret = {one};"
        f"CREATE DOMAIN d AS {kind.type} DEFAULT {one} CHECK (VALUE <> {one})"
    )
    found = session.execute(
        "SELECT object, key_id FROM colcrypt.sealed_constants() ORDER BY 1"
    ).fetchall()
    assert {key for _, key in found} == {primary(host)}
    objects = [name for name, _ in found]
    for part in ("column", "constraint", "rule", "function", "policy", "index"):
        assert any(part in name for name in objects), (part, objects)
    assert len(objects) >= 9
    shown = "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 't'::regclass AND adnum = 2"
    assert kind.one.text.replace("'", "''") in fetch(session, shown).replace(
        "\\\\", "\\"
    )
    session.execute("SET colcrypt.access = 'masked'")
    assert kind.one.text not in fetch(session, shown)


BESIDE = {
    "an expression index": (
        "CREATE INDEX i ON t (n, f(secret))",
        "index i keeps",
    ),
    "statistics": (
        "CREATE STATISTICS st ON (secret::{plain}), n FROM t",
        "statistics st keep",
    ),
    "a generated column": (
        "ALTER TABLE t ADD g {plain} GENERATED ALWAYS AS (f(secret)) STORED",
        "column g of t is computed",
    ),
    "a generated column by cast": (
        "ALTER TABLE t ADD g {plain} GENERATED ALWAYS AS (secret) STORED",
        "column g of t is computed",
    ),
    "a materialized view": (
        "CREATE MATERIALIZED VIEW m AS SELECT secret::{plain} FROM t",
        "materialized view m reads",
    ),
    "ciphertext from everybody": (
        "GRANT EXECUTE ON FUNCTION from_ciphertext{suffix}(text) TO PUBLIC",
        "everybody may bring ciphertext in by from_ciphertext{suffix}(text)",
    ),
    "tokens from everybody": (
        "GRANT EXECUTE ON FUNCTION from_fernet{suffix}(text) TO PUBLIC",
        "everybody may bring ciphertext in by from_fernet{suffix}(text)",
    ),
}


@pytest.mark.parametrize("name", BESIDE)
@every_kind
def test_the_doctor_finds_plaintext_beside_the_column(
    session: psycopg.Connection, kind: Kind, name: str
) -> None:
    session.execute(
        f"CREATE FUNCTION f({kind.type}) RETURNS {kind.plain} IMMUTABLE"
        f" LANGUAGE plpgsql AS 'BEGIN RETURN $1::{kind.plain}; END';"
        f"INSERT INTO t (secret) VALUES ({kind.one.literal})"
    )
    findings = "SELECT finding FROM colcrypt.doctor()"
    before = set(column(session, findings))
    cause, found = (
        text.format(plain=kind.plain, suffix=kind.suffix) for text in BESIDE[name]
    )
    with session.transaction(force_rollback=True):
        session.execute(cause.encode())
        added = set(column(session, findings)) - before
    added = {text.replace("public.", "").replace("work.", "") for text in added}
    assert len(added) == 1 and added.pop().startswith(found), added


@every_kind
def test_the_doctor_finds_values_under_keys_of_the_past(
    session: psycopg.Connection, kind: Kind
) -> None:
    session.execute("SELECT colcrypt.create_key('pii')")
    session.execute(f"ALTER TABLE t ALTER secret TYPE {kind.type}(pii)")
    fill(session)
    findings = "SELECT finding, advice FROM colcrypt.doctor() WHERE finding ~ '^column'"
    assert session.execute(findings).fetchall() == []
    session.execute("SELECT colcrypt.rotate_key('pii')")
    ((found, advice),) = session.execute(findings).fetchall()
    assert "is retired" in found
    session.execute(advice.rstrip(".").encode())
    assert session.execute(findings).fetchall() == []
    assert_reads(session, kind)
    session.execute("SELECT colcrypt.shred_key('pii')")
    ((found, _),) = session.execute(findings).fetchall()
    assert "is destroyed" in found


# Counters and logs


def counts(session: psycopg.Connection) -> dict[str, tuple[int, int]]:
    return {kind: (calls, size) for kind, calls, size in session.execute(COUNTS)}


@pytest.mark.parametrize("suite", SUITES)
@every_kind
def test_operations_are_counted(
    session: psycopg.Connection, kind: Kind, suite: str
) -> None:
    session.execute(f"SET colcrypt.algorithm = '{suite}'")
    size = sum(len(sample.sealed) for sample in kind.samples)
    expected = (len(kind.samples), size)
    other = next(each for each in SUITES if each != suite)
    for work, operation in {
        "INSERT INTO t TABLE p": f"encrypt {suite} ok",
        "SELECT secret FROM t": f"decrypt {suite} ok",
        f"SELECT secret::{kind.plain} FROM t": f"decrypt {suite} ok",
        "SELECT decrypt(secret) FROM t": f"decrypt {suite} ok",
        f"SELECT {kind.type}_send(secret) FROM t": f"decrypt {suite} ok",
        "CREATE INDEX ON t USING hash (secret)": f"compare {suite} ok",
        "SELECT ciphertext(secret) FROM t": "",
        f"SET colcrypt.algorithm = '{other}'; {ROTATE}": f"rotate {other} ok",
    }.items():
        session.execute("SELECT colcrypt.reset_stat()")
        session.execute(work.encode())
        found = counts(session)
        # A rotation looks the new values up for the index.
        found = {
            k: v for k, v in found.items() if "rotate" in k or "rotate" not in work
        }
        assert found == ({operation: expected} if operation else {}), work


@every_kind
def test_failures_are_counted_and_logged(
    session: psycopg.Connection, home: Database, host: Cluster, kind: Kind
) -> None:
    # The values of another session, and of another type.
    own = new_key()
    session.execute(SET_KEY, [own])
    session.execute(f"INSERT INTO t (secret) VALUES ({kind.canary.literal})")
    session.execute("RESET colcrypt.key; SET colcrypt.audit_log = 'failures'")
    wrong = next(other for other in KINDS if other is not kind)
    session.execute(
        f"CREATE CAST ({kind.type} AS {wrong.type}) WITHOUT FUNCTION;"
        f"CREATE TABLE w AS SELECT {kind.canary.literal}::{kind.type}::{wrong.type}"
        " AS secret; GRANT SELECT ON t TO PUBLIC"
    )
    start = len(host.log())
    session.execute("SELECT colcrypt.reset_stat()")
    for query in ("SELECT secret FROM t", "SELECT secret FROM w"):
        with pytest.raises(psycopg.Error) as refused:
            session.execute(query.encode())
        assert_quotes_nothing(refused.value)
    with home.connect(user="clerk") as clerk, pytest.raises(InsufficientPrivilege):
        clerk.execute("SELECT decrypt(secret) FROM t")
    outcomes = {name: calls for name, (calls, _) in counts(session).items()}
    assert outcomes.pop("decrypt xaes-256-gcm wrong key") == 1
    assert outcomes.pop("decrypt xaes-256-gcm damaged") == 1
    denied = [calls for name, calls in outcomes.items() if "denied" in name]
    assert denied == [1]
    log = host.log()[start:]
    assert f"failed to decrypt 1 value under key {key_id(own)}: wrong key" in log
    assert "damaged, SQLSTATE XX001" in log
    assert not any(form in log for form in CANARY_FORMS)


@every_kind
def test_work_is_logged_by_relation_without_a_value(
    session: psycopg.Connection, host: Cluster, kind: Kind
) -> None:
    session.execute("SET colcrypt.audit_log = 'access'")
    if MAJOR >= 16:
        # It compares once more after the sort.
        session.execute("SET enable_presorted_aggregate = off")
    size = sum(len(sample.sealed) for sample in kind.samples)
    count = len(kind.samples)
    for work, operation in {
        "INSERT INTO t TABLE p": "encrypt",
        "SELECT secret FROM t": "decrypt",
        "SELECT count(DISTINCT secret) FROM t": "compare",
        f"SELECT secret::{kind.plain} FROM t": "decrypt",
    }.items():
        start = len(host.log())
        session.execute(work.encode())
        (line,) = logged(host, start)
        assert (line.operation, line.outcome) == (operation, "ok")
        assert (line.values, line.bytes) == (count, size)
        assert line.relation == "work.t"
    start = len(host.log())
    session.execute("SET colcrypt.algorithm = 'fernet'")
    session.execute(ROTATE)
    assert [(x.operation, x.values, x.relation) for x in logged(host, start)] == [
        ("rotate", count, "work.t")
    ]


VIOLATIONS = {
    "unique": ("ALTER TABLE t ADD UNIQUE (secret)", UniqueViolation),
    "unique by another": ("CREATE UNIQUE INDEX ON t (n, secret)", UniqueViolation),
    "exclusion": (
        "ALTER TABLE t ADD EXCLUDE USING hash (secret WITH =)",
        psycopg.errors.ExclusionViolation,
    ),
    "check": ("ALTER TABLE t ADD CHECK (secret IS NULL) NOT VALID", CheckViolation),
    "not null": (
        "ALTER TABLE t ADD x int; ALTER TABLE t ADD CHECK (x IS NOT NULL) NOT VALID",
        CheckViolation,
    ),
}


@pytest.mark.parametrize("name", VIOLATIONS)
@every_kind
def test_the_log_has_no_value_of_a_row_that_violates_something(
    session: psycopg.Connection, host: Cluster, kind: Kind, name: str
) -> None:
    insert = "INSERT INTO t (n, secret) VALUES (1, %s)"
    session.execute(insert, [kind.canary.parameter])
    ddl, error = VIOLATIONS[name]
    session.execute(ddl.encode())
    start = len(host.log())
    with pytest.raises(error) as refused:
        session.execute(insert, [kind.canary.parameter])
    # The client sees what it sent.
    assert any(form in str(refused.value) for form in CANARY_FORMS)
    with pytest.raises(error), session.cursor() as cursor:
        with cursor.copy("COPY t (n, secret) FROM STDIN") as copy:
            copy.write_row([1, kind.canary.text])
    log = host.log()[start:]
    assert log.count("ERROR:  ") == 2
    assert not any(form in log for form in CANARY_FORMS), log


@every_kind
def test_a_line_of_copy_is_not_in_the_log_whatever_is_wrong_with_it(
    session: psycopg.Connection, host: Cluster, kind: Kind
) -> None:
    canary = kind.canary.text.replace("\\", "\\\\")
    start = len(host.log())
    for line in (f"{canary}\tx", f"{canary}\t1\tx", canary, f"{canary}\\x80\t1"):
        with pytest.raises(psycopg.Error), session.cursor() as cursor:
            with cursor.copy("COPY t (secret, n) FROM STDIN") as copy:
                copy.write(line + "\n")
    for literal in (*kind.reserved, *(literal for literal, _ in kind.invalid)):
        text = fetch(session, f"SELECT {literal}::text")
        with pytest.raises(psycopg.Error), session.cursor() as cursor:
            with cursor.copy("COPY t (secret, n) FROM STDIN") as copy:
                copy.write_row([text, 1])
    log = host.log()[start:]
    assert not any(form in log for form in CANARY_FORMS), log


@every_kind
def test_statistics_hold_no_values(session: psycopg.Connection, kind: Kind) -> None:
    canaries = kind.holding_sql("'k4n4ry' || i % 3")
    session.execute(
        f"INSERT INTO t (secret) SELECT {canaries} FROM generate_series(1, 300) i;"
        "INSERT INTO t SELECT 1, NULL FROM generate_series(1, 100); ANALYZE t"
    )
    row = session.execute(
        "SELECT null_frac, n_distinct, most_common_vals, histogram_bounds,"
        " most_common_elems FROM pg_stats WHERE tablename = 't' AND attname = 'secret'"
    ).fetchone()
    assert row == (0.25, 3, None, None, None)


@every_kind
def test_names_in_sql_statements_are_quoted(
    session: psycopg.Connection, kind: Kind
) -> None:
    table, name = 'T "t', "S 's"
    quoted_table = sql.Identifier(table).as_string(session)
    quoted_name = sql.Identifier(name).as_string(session)
    session.execute(f"CREATE TABLE {quoted_table} ({quoted_name} {kind.type})")
    session.execute(f"INSERT INTO {quoted_table} VALUES ({kind.one.literal})")
    session.execute("SET colcrypt.algorithm = 'fernet'")
    rotate = "SELECT rotate_column(quote_ident(%s)::regclass, %s)"
    assert fetch(session, rotate, table, name) == 1
    usage = "SELECT suite FROM colcrypt.key_usage(quote_ident(%s)::regclass, %s)"
    assert fetch(session, usage, table, name) == "fernet"

"""No nonce is ever used twice, whatever is forked, killed or started again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import decryptor
from harness import Cluster, fetch, new_key

BACKENDS = 8
VALUES = 200
# Where each suite's nonces are, by docs/format.md.
NONCES = {
    "xaes-256-gcm": [slice(5, 29)],
    "aes-256-gcm": [slice(5, 17)],
    "envelope": [slice(5, 17), slice(65, 77)],
}


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Cluster]:
    """One postmaster that loads the library, so that its backends are forks of it."""
    cluster = Cluster(base, template, ring=new_key())
    cluster.conf({"shared_preload_libraries": "colcrypt"})
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    yield cluster
    cluster.destroy()


def new_table(host: Cluster) -> None:
    host.psql("DROP TABLE IF EXISTS t; CREATE TABLE t (pid int, secret encrypted_text)")


def write_from_many_backends(host: Cluster, suite: str) -> None:
    """All backends seal at the same time."""
    start = threading.Barrier(BACKENDS, timeout=60)
    errors: list[Exception] = []

    def write() -> None:
        try:
            with host.connect(options=f"-c colcrypt.algorithm={suite}") as session:
                start.wait()
                # Some one by one, some in bulk: the column keeps literals out.
                for n in range(VALUES // 2):
                    session.execute(
                        "INSERT INTO t VALUES (pg_backend_pid(), %s)", [f"value {n}"]
                    )
                session.execute(
                    "INSERT INTO t SELECT pg_backend_pid(), 'value ' || i"
                    f" FROM generate_series(1, {VALUES // 2}) i"
                )
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(BACKENDS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def stored_by_backend(host: Cluster) -> dict[str, list[bytes]]:
    stored: dict[str, list[bytes]] = {}
    for line in host.psql("SELECT pid, ciphertext(secret) FROM t").splitlines():
        pid, text = line.split("|")
        stored.setdefault(pid, []).append(decryptor.stored_bytes(text))
    return stored


def nonces(stored: dict[str, list[bytes]], place: slice) -> list[bytes]:
    return [value[place] for values in stored.values() for value in values]


@pytest.mark.parametrize("suite", NONCES)
def test_backends_forked_from_one_postmaster_share_no_nonce(
    host: Cluster, suite: str
) -> None:
    new_table(host)
    write_from_many_backends(host, suite)
    stored = stored_by_backend(host)
    assert len(stored) == BACKENDS
    for place in NONCES[suite]:
        drawn = nonces(stored, place)
        assert len(drawn) == BACKENDS * VALUES
        assert len(set(drawn)) == len(drawn)


def test_every_backend_has_an_xaes_prefix_of_its_own(host: Cluster) -> None:
    new_table(host)
    write_from_many_backends(host, "xaes-256-gcm")
    stored = stored_by_backend(host)
    prefixes = [{value[5:17] for value in values} for values in stored.values()]
    assert all(len(found) == 1 for found in prefixes)
    assert len(set.union(*prefixes)) == BACKENDS
    counters = nonces(stored, slice(17, 29))
    # They start at random, so that an image restored with its memory is no danger.
    assert len(set(counters)) == len(counters)


def test_fernet_and_envelope_data_share_nothing_either(host: Cluster) -> None:
    # Fernet's IV; an envelope's wrapped data key and the data sealed under it.
    for suite, place in (("fernet", slice(14, 30)), ("envelope", slice(17, 65))):
        new_table(host)
        write_from_many_backends(host, suite)
        drawn = nonces(stored_by_backend(host), place)
        assert len(set(drawn)) == BACKENDS * VALUES


def test_parallel_workers_share_no_nonce_with_their_leader(host: Cluster) -> None:
    with host.connect() as session:
        session.execute("DROP TABLE IF EXISTS p")
        session.execute(
            "CREATE TABLE p AS SELECT i::text FROM generate_series(1, 5000) i"
        )
        session.execute("SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0")
        session.execute("SET min_parallel_table_scan_size = 0")
        sql = "SELECT ciphertext(encrypt(i)) FROM p"
        plan = session.execute(f"EXPLAIN (ANALYZE, COSTS OFF) {sql}").fetchall()
        assert "Workers Launched: 2" in str(plan)
        rows = session.execute(sql).fetchall()
    drawn = [decryptor.stored_bytes(text)[5:29] for (text,) in rows]
    assert len(set(drawn)) == 5000


@pytest.mark.parametrize("suite", NONCES)
def test_backends_after_a_crash_do_not_repeat_nonces(host: Cluster, suite: str) -> None:
    new_table(host)
    write_from_many_backends(host, suite)
    before = stored_by_backend(host)
    with host.connect() as victim:
        host.kill_backend(fetch(victim, "SELECT pg_backend_pid()"))
    write_from_many_backends(host, suite)
    after = stored_by_backend(host)
    assert len(after) > len(before)
    for place in NONCES[suite]:
        drawn = nonces(after, place)
        assert len(drawn) == 2 * BACKENDS * VALUES
        assert len(set(drawn)) == len(drawn)

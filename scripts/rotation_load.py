"""Rotates a large table while clients are at work on it, and says whether that goes as
it must.

1. What rotate_column_online() costs, against UPDATE SET c = c on a text column in the
   same batches, with nobody else at work: DESIGN 10 says 1.5 times as much at most.
2. What pgbench's clients get done before, during and after a rotation by a background
   worker: no less than half as much.
3. Whether everything is there that they wrote, under the new key and in the indexes,
   and the old key can go.

The last lines are the verdicts; the exit code is 1 if one of them is bad.

    target/venv/bin/python scripts/rotation_load.py [--rows 5000000]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from harness import (  # noqa: E402
    Cluster,
    Database,
    Setting,
    fetch,
    give_to_server,
    key_id,
    make_template,
    new_key,
    wait_until,
)
from load import (  # noqa: E402
    HOT,
    STALE,
    Clients,
    Session,
    Transaction,
    count_different,
    index_errors,
    make_accounts,
)

BATCH = 1000
# DESIGN 10, and the issue.
MOST_COST = 1.5
LEAST_THROUGHPUT = 0.5

SETTINGS: dict[str, Setting] = {
    "shared_preload_libraries": "colcrypt",
    "fsync": True,
    "shared_buffers": "2GB",
    "maintenance_work_mem": "512MB",
    "work_mem": "64MB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "15min",
    "jit": False,
}

# What rotate_column_online() does to an encrypted column: ranges of blocks with a
# thousand rows or more, each a transaction.
UPDATE_IN_BATCHES = """
    CREATE PROCEDURE update_in_batches(blocks int) LANGUAGE plpgsql AS $$
    DECLARE
        total CONSTANT bigint := pg_relation_size('twin_text')
                                 / current_setting('block_size')::bigint;
    BEGIN
        FOR block IN 0 .. total - 1 BY blocks LOOP
            UPDATE twin_text SET secret = secret
            WHERE ctid >= format('(%s,0)', block)::tid
                  AND ctid < format('(%s,0)', least(block + blocks, total))::tid;
            COMMIT;
        END LOOP;
    END $$
"""
TWIN = """
    CREATE TABLE twin_{type} (id bigint PRIMARY KEY, secret {type})
        WITH (autovacuum_enabled = off);
    INSERT INTO twin_{type} SELECT i, md5(i::text) || md5((-i)::text)
        FROM generate_series(1, {rows}) AS i;
"""
TWIN_INDEXES = """
    CREATE INDEX ON twin_{type} USING hash (secret);
    CREATE INDEX ON twin_{type} USING btree (secret);
"""


class Cost(NamedTuple):
    """Microseconds for each row."""

    cpu: float
    wall: float


class Verdict(NamedTuple):
    what: str
    found: object
    good: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument(
        "--cost-rows", type=int, default=1_000_000, help="of the measurement of cost"
    )
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument(
        "--seconds", type=int, default=60, help="before and after the rotation"
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="of the measurement of cost"
    )
    parser.add_argument(
        "--max-rows-per-second", type=int, help="of the rotation under load"
    )
    parser.add_argument("--dir", default="/tmp", help="where the server's files are")
    options = parser.parse_args()

    base = Path(tempfile.mkdtemp(prefix="colcrypt.", dir=options.dir))
    give_to_server(base)
    key = new_key()
    cluster = Cluster(base, make_template(base), ring=key)
    cluster.conf(SETTINGS)
    try:
        cluster.start()
        cluster.psql("CREATE EXTENSION colcrypt")
        measurement = Measurement(cluster, key, options, base)
        verdicts = measurement.compare_cost() + measurement.rotate_under_load()
    finally:
        cluster.destroy()
        shutil.rmtree(base)
    print()
    for verdict in verdicts:
        word = "ok" if verdict.good else "BAD"
        print(f"{word:<5}{verdict.what}: {verdict.found}")
    return 0 if all(verdict.good for verdict in verdicts) else 1


class Measurement:
    def __init__(
        self, cluster: Cluster, key: str, options: argparse.Namespace, base: Path
    ) -> None:
        self.cluster = cluster
        self.key = key
        # Of the session that measures the cost.
        self.keys = [new_key(), key]
        self.place = Database(cluster, "postgres")
        self.rows: int = options.rows
        self.cost_rows: int = options.cost_rows
        self.clients: int = options.clients
        self.seconds: int = options.seconds
        self.repeats: int = options.repeats
        self.max_rows_per_second: int | None = options.max_rows_per_second
        self.folder = base / "clients"
        self.folder.mkdir()
        self.started = time.monotonic()

    def tell(self, what: str) -> None:
        print(f"[{time.monotonic() - self.started:6.0f} s] {what}", flush=True)

    # What it costs

    def compare_cost(self) -> list[Verdict]:
        self.tell(f"cost: {self.cost_rows} rows in batches of {BATCH}")
        print(
            f"{'microseconds for each row':<34}{'text':>10}{'encrypted':>12}"
            f"{'ratio':>8}"
        )
        with self.cluster.connect() as session:
            session.execute(UPDATE_IN_BATCHES.encode())
            for type_ in ("text", "encrypted_text"):
                session.execute(TWIN.format(type=type_, rows=self.cost_rows).encode())
            ratio = self.compare(session, "primary key only")
            for type_ in ("text", "encrypted_text"):
                session.execute(TWIN_INDEXES.format(type=type_).encode())
            # Not judged: PostgreSQL enters nothing in an index if a value is the same.
            self.compare(session, "hash and btree index")
            session.execute("DROP TABLE twin_text, twin_encrypted_text")
        what = f"CPU time of rotation to UPDATE SET c = c, at most {MOST_COST}"
        return [Verdict(what, f"{ratio:.2f}", ratio <= MOST_COST)]

    def compare(self, session: Session, indexes: str) -> float:
        """Prints what it costs; gives the ratio of CPU times."""
        samples = []
        for _ in range(self.repeats):
            self.make_equal(session, "twin_text")
            size = fetch(session, "SELECT pg_relation_size('twin_text') / 8192")
            blocks = max(1, round(BATCH * size / self.cost_rows))
            plain = self.cost(session, f"CALL update_in_batches({blocks})")

            self.make_equal(session, "twin_encrypted_text")
            # Another primary than last time, so that every row is stale.
            set_keys = "SELECT set_config('colcrypt.key', %s, false)"
            session.execute(set_keys, [",".join(self.keys)])
            self.keys.reverse()
            rotate = "CALL rotate_column_online('twin_encrypted_text', 'secret', {})"
            encrypted = self.cost(session, rotate.format(BATCH))
            done = "SELECT max(rows_rotated) FROM colcrypt.rotation_progress"
            assert fetch(session, done) == self.cost_rows
            assert (
                fetch(session, "SELECT state FROM colcrypt.rotation_progress") == "done"
            )
            samples.append((plain, encrypted))
        ratios = {}
        for kind in Cost._fields:
            columns = [[getattr(cost, kind) for cost in pair] for pair in samples]
            plain_time, encrypted_time = map(statistics.median, zip(*columns))
            ratios[kind] = encrypted_time / plain_time
            name = f"{indexes}, {'CPU' if kind == 'cpu' else kind} time"
            print(
                f"{name:<34}{plain_time:>10.2f}{encrypted_time:>12.2f}"
                f"{ratios[kind]:>8.2f}",
                flush=True,
            )
        return ratios["cpu"]

    def make_equal(self, session: Session, table: str) -> None:
        """No dead rows, all in memory if it fits, nothing to be written."""
        session.execute(f"VACUUM FULL {table}".encode())
        session.execute(f"VACUUM ANALYZE {table}".encode())
        session.execute("CHECKPOINT")
        session.execute(f"SELECT count(*) FROM {table}".encode())

    def cost(self, session: Session, sql: str) -> Cost:
        wall, cpu = time.perf_counter(), cpu_time(session)
        session.execute(sql.encode())
        wall, cpu = time.perf_counter() - wall, cpu_time(session) - cpu
        return Cost(cpu / 1e3 / self.cost_rows, wall * 1e6 / self.cost_rows)

    # What clients notice

    def rotate_under_load(self) -> list[Verdict]:
        self.tell(f"load: {self.rows} rows with primary key, hash and btree index")
        make_accounts(self.place, self.rows)
        log = len(self.cluster.log())
        clients = Clients(
            self.place, self.folder, clients=self.clients, seconds=10
        ).start()
        self.tell("clients warm up")
        time.sleep(self.seconds / 3)
        self.tell("clients alone")
        before = self.wait_a_while()
        new = new_key()
        self.cluster.set_ring(f"{new},{self.key}")
        self.cluster.reload()
        self.tell("clients and rotation")
        during, job = self.rotate()
        self.tell("clients alone again")
        after = self.wait_a_while()
        error = ""
        try:
            clients.stop()
        except Exception as failure:
            error = str(failure)
        done = clients.transactions()
        print(f"{'':<34}{'tps':>10}{'99 % in ms':>12}{'all in ms':>12}")
        speed = {}
        for name, window in (("before", before), ("during", during), ("after", after)):
            speed[name] = report(name, window, done)
        ratio = speed["during"] / speed["before"] if speed["before"] else 0.0

        complaints = [
            line
            for line in self.cluster.log()[log:].splitlines()
            if any(word in line for word in ("ERROR:", "FATAL:", "PANIC:", "WARNING:"))
        ]
        what = f"throughput during rotation, at least {LEAST_THROUGHPUT}"
        verdicts = [
            Verdict(what, f"{ratio:.2f}", ratio >= LEAST_THROUGHPUT),
            Verdict("state of the rotation", job["state"], job["state"] == "done"),
            Verdict("rows rotated", job["rows_rotated"], job["rows_rotated"] > 0),
            Verdict("what clients were told", error or "no error", not error),
            Verdict("server's log", complaints or "no error", not complaints),
        ]
        return verdicts + self.check(clients, new)

    def wait_a_while(self) -> tuple[float, float]:
        beginning = time.time()
        time.sleep(self.seconds)
        return beginning, time.time()

    def rotate(self) -> tuple[tuple[float, float], dict[str, Any]]:
        """By a worker; gives when it was at work, and what became of it."""
        beginning = time.time()
        with self.cluster.connect() as session:
            job = fetch(
                session,
                "SELECT colcrypt.rotate_column_background('accounts', 'secret', %s,"
                " max_rows_per_second => %s)",
                BATCH,
                self.max_rows_per_second,
            )
            state = "SELECT state FROM colcrypt.rotation_progress WHERE job = %s"
            wait_until(
                lambda: fetch(session, state, job) != "running",
                "the end of the rotation",
                24 * 3600,
            )
            end = time.time()
            row = session.execute(
                "SELECT state, rows_rotated, pass, last_error FROM colcrypt.rotation"
                " WHERE job = %s",
                [job],
            ).fetchone()
        assert row is not None
        names = ("state", "rows_rotated", "pass", "last_error")
        found = dict(zip(names, row))
        self.tell(
            f"rotation {found['state']}: {found['rows_rotated']} rows in"
            f" {end - beginning:.0f} s, pass {found['pass']}"
            f" {found['last_error'] or ''}"
        )
        return (beginning, end), found

    # Whether everything is there

    def check(self, clients: Clients, new: str) -> list[Verdict]:
        every = max(1, self.rows // 100_000)
        with self.cluster.connect() as session:
            self.tell("is everything there")
            unlike = clients.ledger_errors(session)
            different = count_different(session)
            stale = fetch(session, STALE)
            # Hot rows only are not changed by clients.
            hot = fetch(
                session, f"SELECT sum(touched)::bigint FROM accounts WHERE id <= {HOT}"
            )
            self.tell("the indexes")
            wrong = index_errors(session, every)
        self.tell("without the old key")
        self.place.psql("REINDEX INDEX by_btree")
        self.place.psql("SELECT colcrypt.rewrap_keys()")
        self.cluster.set_ring(new)
        self.cluster.restart()
        with self.cluster.connect() as session:
            later = count_different(session)
            usage = "SELECT key_id, rows FROM colcrypt.key_usage('accounts', 'secret')"
            keys = session.execute(usage).fetchall()
            wrong_later = index_errors(session, every)
        right_keys = [key for key, _ in keys] == [key_id(new)]
        return [
            Verdict("clients' account and the ledger", unlike or "agree", not unlike),
            Verdict("rows that are not what clients wrote", different, different == 0),
            Verdict("rows under the old key", stale, stale == 0),
            Verdict("updates of the hot rows", hot, hot > 0),
            Verdict("indexes", wrong or "sound", not wrong),
            Verdict("without the old key: keys in use, rows", keys, right_keys),
            Verdict("without the old key: wrong rows", later, later == 0),
            Verdict(
                "without the old key: indexes", wrong_later or "sound", not wrong_later
            ),
        ]


def report(name: str, window: tuple[float, float], done: list[Transaction]) -> float:
    """Prints what clients got done in a time; gives transactions per second."""
    first, last = window
    times = sorted(each.seconds for each in done if first <= each.ended < last)
    if not times:
        print(f"{name:<34}{0:>10}")
        return 0.0
    speed = len(times) / (last - first)
    most = times[int(len(times) * 0.99)] * 1e3
    print(f"{name:<34}{speed:>10.0f}{most:>12.1f}{times[-1] * 1e3:>12.1f}", flush=True)
    return speed


def cpu_time(session: Session) -> int:
    """Nanoseconds that the backend has been on a CPU."""
    pid = session.info.backend_pid
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


if __name__ == "__main__":
    sys.exit(main())

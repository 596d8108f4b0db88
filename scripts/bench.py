"""Measures an encrypted_text column against a text column on the same server.

Values of 64 bytes, one connection. Where a single statement is measured, what counts is
the CPU time of its backend; pgbench gives latencies. Runs of both columns alternate, and
the median of each is taken. `must` is the limit that DESIGN sets for the ratio.

    make bench, or: target/venv/bin/python scripts/bench.py [rows] [repeats]
"""

from __future__ import annotations

import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from harness import Cluster, give_to_server, make_template, new_key  # noqa: E402

TYPES = ("text", "encrypted_text")
Work = Callable[[str], float]


def main(rows: int = 200_000, repeats: int = 5) -> None:
    base = Path(tempfile.mkdtemp(prefix="colcrypt.", dir="/tmp"))
    give_to_server(base)
    cluster = Cluster(base, make_template(base), ring=new_key())
    # No autovacuum and no parallel workers in between, no checkpoint that one pays for.
    cluster.conf(
        shared_buffers="1GB",
        max_wal_size="20GB",
        autovacuum=False,
        max_parallel_workers_per_gather=0,
        jit=False,
    )
    try:
        cluster.start()
        report(Bench(cluster, rows), rows, repeats)
    finally:
        cluster.destroy()
        shutil.rmtree(base)


def report(bench: Bench, rows: int, repeats: int) -> None:
    works: list[tuple[str, Work, float]] = [
        ("SELECT sum(length(col))", bench.scan, 1.6),
        ("COPY ... TO STDOUT", bench.copy_out, 1.6),
        ("bulk INSERT ... SELECT", bench.bulk_insert, 1.6),
        ("one-row INSERT (pgbench)", bench.insert_one, 1.1),
        ("one-row INSERT, UNIQUE (pgbench)", bench.insert_unique, 1.4),
        ("CREATE INDEX, btree", partial(bench.create_index, "btree"), 3.0),
        ("CREATE INDEX, hash", partial(bench.create_index, "hash"), 3.0),
        ("point lookup, btree (pgbench)", partial(bench.look_up, "btree"), 1.1),
        ("point lookup, hash (pgbench)", partial(bench.look_up, "hash"), 1.1),
        ("20,000 lookups, btree", partial(bench.join, "btree"), 2.0),
        ("20,000 lookups, hash", partial(bench.join, "hash"), 2.0),
        ("GROUP BY, 1000 groups", bench.group, 3.0),
        # The last: it leaves values under keys that only its session has.
        ("rotation, to UPDATE SET c = c", bench.rewrite, 1.5),
    ]
    print(f"{rows} rows, median of {repeats}; microseconds for each row or lookup")
    print(f"{'work':<34}{'text':>10}{'encrypted':>12}{'ratio':>8}{'must':>8}")
    for name, work, must in works:
        # The first run of each warms the caches and is thrown away.
        samples = [[work(type_) for type_ in TYPES] for _ in range(repeats + 1)][1:]
        plain, encrypted = (statistics.median(column) for column in zip(*samples))
        ratio = encrypted / plain
        print(f"{name:<34}{plain:>10.3f}{encrypted:>12.3f}{ratio:>8.2f}{must:>8.2f}")


class Bench:
    """The works. Each takes the column's type and gives microseconds for each row."""

    def __init__(self, cluster: Cluster, rows: int) -> None:
        self.cluster = cluster
        self.rows = rows
        self.keys = [new_key(), new_key()]
        self.connection = cluster.connect()
        self.sql("CREATE EXTENSION colcrypt")
        self.sql("CREATE TABLE source (col text)")
        # 64 random-looking bytes.
        self.sql(
            "INSERT INTO source SELECT md5(i::text) || md5((-i)::text)"
            f" FROM generate_series(1, {rows}) AS i"
        )
        for type_ in TYPES:
            for table in ("full", "target", "one"):
                self.sql(f"CREATE TABLE {table}_{type_} (col {type_})")
            self.sql(f"INSERT INTO full_{type_} SELECT col FROM source")
            for method in ("btree", "hash"):
                self.sql(f"CREATE TABLE {method}_{type_} AS SELECT col FROM full_{type_}")
            self.sql(f"CREATE TABLE groups_{type_} (col {type_})")
            self.sql(
                f"INSERT INTO groups_{type_} SELECT md5((i % 1000)::text) || md5((i % 1000 + 1)::text)"
                f" FROM generate_series(1, {rows}) AS i"
            )
            self.sql(f"CREATE TABLE unique_{type_} (col {type_} UNIQUE)")
        self.sql("VACUUM ANALYZE")

    def scan(self, type_: str) -> float:
        return self.measure(f"SELECT sum(length(col)) FROM full_{type_}")

    def copy_out(self, type_: str) -> float:
        before = self.cpu_time()
        with self.connection.cursor().copy(f"COPY full_{type_} TO STDOUT") as copy:
            for _ in copy:
                pass
        return self.each(self.cpu_time() - before)

    def bulk_insert(self, type_: str) -> float:
        self.sql(f"TRUNCATE target_{type_}")
        return self.measure(f"INSERT INTO target_{type_} SELECT col FROM source")

    def rewrite(self, type_: str) -> float:
        if type_ == "text":
            time = self.measure("UPDATE full_text SET col = col")
        else:
            # Another primary than last time, so that every row is stale.
            self.keys.reverse()
            self.connection.execute(
                "SELECT set_config('colcrypt.key', %s, false)", [",".join(self.keys)]
            )
            time = self.measure(f"SELECT rotate_column('full_{type_}', 'col')")
        # Both start from a table without dead rows.
        self.sql(f"VACUUM FULL full_{type_}")
        return time

    def insert_one(self, type_: str) -> float:
        # A parameter, as a driver sends it.
        value = f"value={'x' * 64}"
        time = self.pgbench(f"INSERT INTO one_{type_} VALUES (:value);", "-D", value)
        self.sql(f"TRUNCATE one_{type_}")
        return time

    def insert_unique(self, type_: str) -> float:
        script = (
            "\\set i random(1, 1000000000000000)\n"
            f"INSERT INTO unique_{type_} VALUES (lpad(:i::text, 64, 'x'));"
        )
        # Into an index that has grown.
        self.sql(f"TRUNCATE unique_{type_}")
        self.sql(f"INSERT INTO unique_{type_} SELECT col FROM source")
        return self.pgbench(script)

    def create_index(self, method: str, type_: str) -> float:
        self.sql(f"DROP INDEX IF EXISTS {method}_{type_}_index")
        return self.measure(
            f"CREATE INDEX {method}_{type_}_index ON {method}_{type_} USING {method} (col)"
        )

    def look_up(self, method: str, type_: str) -> float:
        # Other connections than the one that made the index: an application's.
        script = (
            f"\\set i random(1, {self.rows})\n"
            f"SELECT * FROM {method}_{type_}"
            " WHERE col = (md5(:i::text) || md5((0 - :i)::text));"
        )
        return self.pgbench(script)

    def join(self, method: str, type_: str) -> float:
        """Nested loop: one lookup for each of 20,000 texts."""
        return self.measure(
            "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off;"
            f"SELECT count(t.col) FROM (SELECT col FROM source LIMIT 20000) AS s"
            f" JOIN {method}_{type_} AS t ON t.col = s.col;"
            "RESET enable_hashjoin; RESET enable_mergejoin; RESET enable_seqscan",
            20_000,
        )

    def group(self, type_: str) -> float:
        return self.measure(f"SELECT count(*) FROM (SELECT 1 FROM groups_{type_} GROUP BY col) g")

    def pgbench(self, sql: str, *options: str) -> float:
        """Microseconds for each transaction of one client."""
        script = self.cluster.write_file("bench.sql", f"{sql}\n", 0o644)
        output = self.cluster.run(
            "pgbench", "-n", "-M", "prepared", "-T", "3", *options, "-f", str(script)
        )
        per_second = re.search(r"tps = ([0-9.]+)", output)
        assert per_second is not None, output
        return 1_000_000 / float(per_second[1])

    def measure(self, sql: str, count: int | None = None) -> float:
        """Microseconds for each row, or for each of `count`."""
        before = self.cpu_time()
        self.sql(sql)
        return self.each(self.cpu_time() - before, count)

    def each(self, nanoseconds: int, count: int | None = None) -> float:
        return nanoseconds / 1000 / (count or self.rows)

    def sql(self, sql: str) -> None:
        self.connection.execute(sql)

    def cpu_time(self) -> int:
        """Nanoseconds that the backend has been on a CPU."""
        pid = self.connection.info.backend_pid
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))

"""A table with clients at work on it, and how to tell whether it holds what they wrote.

Each row has a counter for each thing that is done to it, from which its plaintext
follows. Whoever writes notes in the ledger what he did, in the same statement. So each
row can be checked against the ledger, and the ledger against what pgbench was told is
committed.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import psycopg

from harness import Database, PsqlError, fetch

Session = psycopg.Connection

# Rows that all clients touch all the time. Their secret never changes, so that nobody
# but the rotation gives them a new value.
HOT = 8

SCHEMA = """
    CREATE FUNCTION plain(id bigint, version bigint) RETURNS text LANGUAGE sql IMMUTABLE
        AS $$SELECT rpad('account ' || id || ', version ' || version, 64, '.')$$;
    CREATE TABLE accounts (
        id bigint NOT NULL,
        version bigint NOT NULL DEFAULT 0,
        touched bigint NOT NULL DEFAULT 0,
        secret encrypted_text NOT NULL
    );
    CREATE TABLE ledger (client int, id bigint, what text);
    CREATE TABLE beginning AS SELECT {rows}::bigint AS rows;
    CREATE SEQUENCE new_ids START {rows};
    CREATE SEQUENCE victims START {safe};
    SELECT nextval('new_ids'), nextval('victims');
    INSERT INTO accounts (id, secret) SELECT i, plain(i, 0)
        FROM generate_series(1, {rows}) AS i;
    ALTER TABLE accounts ADD PRIMARY KEY (id);
    CREATE INDEX by_hash ON accounts USING hash (secret);
    CREATE INDEX by_btree ON accounts USING btree (secret);
"""

# Takes what the secret was to another place, mostly: pages are full.
TOUCH = """
    WITH done AS (UPDATE accounts SET touched = touched + 1 WHERE id = :id RETURNING id)
    INSERT INTO ledger SELECT :client_id, id, 'touch' FROM done;
"""

# A division by zero ends the client. `rows` and `safe`, the rows that are never
# deleted, are variables.
SCRIPTS = {
    "read": f"""
        \\set id random({HOT + 1}, :rows)
        SELECT 1 / (secret::text = plain(id, version))::int FROM accounts
        WHERE id = :id;
    """,
    "find": """
        \\set id random(1, :safe)
        BEGIN ISOLATION LEVEL REPEATABLE READ;
        SELECT secret AS value FROM accounts WHERE id = :id \\gset
        SELECT 1 / (array_agg(id) = ARRAY[:id::bigint])::int FROM accounts
        WHERE secret = :value;
        COMMIT;
    """,
    "hot": f"\\set id random(1, {HOT})\n{TOUCH}",
    "touch": f"\\set id random({HOT + 1}, :rows + :rows / 8)\n{TOUCH}",
    "sweep": f"""
        \\set id random({HOT + 1}, :rows)
        WITH mine AS MATERIALIZED (
            SELECT id FROM accounts WHERE id BETWEEN :id AND :id + 9
            ORDER BY id FOR UPDATE
        ), done AS (
            UPDATE accounts SET touched = touched + 1 FROM mine
            WHERE accounts.id = mine.id RETURNING accounts.id
        )
        INSERT INTO ledger SELECT :client_id, id, 'touch' FROM done;
    """,
    "change": f"""
        \\set id random({HOT + 1}, :safe)
        WITH done AS (
            UPDATE accounts SET version = version + 1, secret = plain(id, version + 1)
            WHERE id = :id RETURNING id
        )
        INSERT INTO ledger SELECT :client_id, id, 'change' FROM done;
    """,
    "insert": """
        WITH new AS MATERIALIZED (SELECT nextval('new_ids') AS id), done AS (
            INSERT INTO accounts (id, secret) SELECT id, plain(id, 0) FROM new
            RETURNING id
        )
        INSERT INTO ledger SELECT :client_id, id, 'insert' FROM done;
    """,
    "delete": """
        WITH victim AS MATERIALIZED (SELECT nextval('victims') AS id), done AS (
            DELETE FROM accounts USING victim WHERE accounts.id = victim.id
            RETURNING accounts.id
        )
        INSERT INTO ledger SELECT :client_id, id, 'delete' FROM done;
    """,
}
ALL = {
    "read": 6,
    "find": 4,
    "hot": 3,
    "touch": 3,
    "sweep": 1,
    "change": 3,
    "insert": 1,
    "delete": 1,
}
# No new value is sealed, so that all under the new key are the rotation's.
ONLY_TOUCH = {"read": 3, "find": 2, "hot": 2, "touch": 3, "sweep": 1}
# What writes one line in the ledger each time.
COUNTED = {"hot", "change", "insert"}

DIFFERENT = """
    WITH said AS (
        SELECT id,
               count(*) FILTER (WHERE what = 'change') AS version,
               count(*) FILTER (WHERE what = 'touch') AS touched,
               count(*) FILTER (WHERE what = 'insert')
               - count(*) FILTER (WHERE what = 'delete') AS rows
        FROM ledger GROUP BY id
    ), expected AS (
        SELECT id, COALESCE(version, 0) AS version, COALESCE(touched, 0) AS touched
        FROM beginning
            CROSS JOIN LATERAL generate_series(1, beginning.rows) AS first (id)
            FULL JOIN said USING (id)
        WHERE (first IS NOT NULL)::int + COALESCE(said.rows, 0) <> 0
    )
    SELECT count(*) FROM expected FULL JOIN accounts USING (id)
    WHERE (expected.version, expected.touched)
              IS DISTINCT FROM (accounts.version, accounts.touched)
          OR secret::text IS DISTINCT FROM plain(id, expected.version)
"""
STALE = """
    SELECT COALESCE(sum(rows), 0)::bigint
    FROM colcrypt.key_usage('accounts', 'secret') WHERE stale"""
# As of one moment.
ROTATED_AND_NEW = """
    SELECT (SELECT rows_rotated FROM colcrypt.rotation_progress
            WHERE relation = 'accounts'::regclass),
           (SELECT COALESCE(sum(rows), 0)::bigint
            FROM colcrypt.key_usage('accounts', 'secret') WHERE key_id = %s)"""


def make_accounts(place: Database, rows: int) -> None:
    """The extension must be there."""
    place.psql("CREATE EXTENSION IF NOT EXISTS amcheck")
    place.psql(SCHEMA.format(rows=rows, safe=safe_rows(rows)))
    place.psql("VACUUM ANALYZE")


def safe_rows(rows: int) -> int:
    return rows * 3 // 4


def count_different(session: Session) -> int:
    """Rows that are not what the clients have written, say the counters or the
    plaintext; missing rows and those that should be."""
    return fetch(session, DIFFERENT)


def index_errors(session: Session, every: int = 1) -> list[str]:
    """What amcheck says, and indexes by which a value is not found; of all values, or
    of every so many."""
    errors = []
    for index in ("accounts_pkey", "by_btree"):
        try:
            session.execute("SELECT bt_index_parent_check(%s, true, true)", [index])
        except psycopg.Error as error:
            errors.append(f"{index}: {error}")
    heap = session.execute("SELECT msg FROM verify_heapam('accounts')").fetchall()
    errors += [f"heap: {message}" for (message,) in heap]
    for used, other in (("by_hash", "by_btree"), ("by_btree", "by_hash")):
        rows = fetch(session, f"SELECT count(*) FROM accounts WHERE id % {every} = 0")
        if (found := count_found(session, used, other, every)) != rows:
            errors.append(f"{used}: {found} of {rows} are found")
    return errors


def count_found(session: Session, used: str, other: str, every: int = 1) -> int:
    """Rows that an index finds by their value, and nothing else with them."""
    query = (
        "SELECT count(*) FROM accounts AS a WHERE ARRAY[a.id] ="
        " (SELECT array_agg(b.id) FROM accounts AS b WHERE b.secret = a.secret::text)"
        f" AND a.id % {every} = 0"
    )
    with session.transaction(force_rollback=True):
        session.execute(f"DROP INDEX {other}")
        session.execute("SET LOCAL enable_seqscan = off")
        session.execute("SET LOCAL jit = off")
        plan = session.execute(f"EXPLAIN {query}").fetchall()
        assert any(used in line for (line,) in plan), plan
        return fetch(session, query)


class Transaction(NamedTuple):
    """One that a client was told is committed."""

    script: str
    # Seconds since the epoch.
    ended: float
    seconds: float


class Clients:
    """pgbench, again and again until stop(). With `crashes` it may find no server, or
    lose it."""

    def __init__(
        self,
        place: Database,
        folder: Path,
        weights: Mapping[str, int] = ALL,
        *,
        clients: int = 4,
        seconds: int = 2,
        crashes: bool = False,
    ) -> None:
        self.place = place
        self.folder = folder
        self.scripts = list(weights)
        self.clients = clients
        self.crashes = crashes
        self.outputs: list[str] = []
        self.error: Exception | None = None
        rows = int(place.psql("SELECT rows FROM beginning"))
        # A thread for each, as they prepare statements one after the other: one that
        # waits for a lock would keep another from ending its transaction.
        self.options = ["-n", "-M", "prepared"]
        self.options += ["-c", str(clients), "-j", str(clients)]
        self.options += ["-T", str(seconds), "-l"]
        self.options += ["-D", f"rows={rows}", "-D", f"safe={safe_rows(rows)}"]
        for name, weight in weights.items():
            (folder / name).write_text(SCRIPTS[name])
            self.options += ["-f", f"{folder / name}@{weight}"]
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Clients:
        self.thread.start()
        return self

    def _run(self) -> None:
        try:
            while not self.stopping.is_set():
                prefix = f"--log-prefix={self.folder}/log.{len(self.outputs)}"
                self.outputs.append(
                    self.place.cluster.run(
                        "pgbench",
                        *self.options,
                        prefix,
                        check=not self.crashes,
                        db=self.place.name,
                    )
                )
                if self.crashes:
                    self.stopping.wait(0.05)
        except PsqlError as error:
            self.error = error

    def stop(self) -> None:
        """Waits for the end of the run under way; raises what a client was told."""
        self.stopping.set()
        self.thread.join(timeout=300)
        assert not self.thread.is_alive(), "clients hang"
        if self.error is not None:
            raise self.error
        for output in self.outputs:
            if not self.crashes:
                assert "number of failed transactions: 0 (0.000%)" in output, output

    def transactions(self) -> list[Transaction]:
        """What pgbench was told is committed; see its --log."""
        done = []
        for path in self.folder.glob("log.*"):
            for line in path.read_text().splitlines():
                fields = line.split()
                # The last line of a client that died may be a part of one.
                if len(fields) < 6:
                    continue
                ended = int(fields[4]) + int(fields[5]) / 1e6
                name = self.scripts[int(fields[3])]
                done.append(Transaction(name, ended, int(fields[2]) / 1e6))
        return done

    def ledger_errors(self, session: Session) -> list[str]:
        """Where the ledger is not what pgbench knows. Of transactions under way in a
        crash it knows nothing."""
        known = Counter(transaction.script for transaction in self.transactions())
        unknown = self.clients * len(self.outputs) if self.crashes else 0
        errors = []
        for name in COUNTED & set(self.scripts):
            what = "what = 'touch'" if name == "hot" else f"what = '{name}'"
            ids = f"id {'<=' if name == 'hot' else '>'} {HOT}"
            noted = fetch(
                session, f"SELECT count(*) FROM ledger WHERE {what} AND {ids}"
            )
            if not known[name] <= noted <= known[name] + unknown or noted == 0:
                errors.append(
                    f"{name}: {known[name]} acknowledged, {noted} in the ledger"
                )
        return errors

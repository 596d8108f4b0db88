"""The main job at its shortest, which also shows that the harness works."""

from __future__ import annotations

from harness import Cluster, Database


def test_values_read_back_after_a_restart(cluster: Cluster) -> None:
    cluster.psql("CREATE TABLE users (id int, token encrypted_text)")
    cluster.psql(
        "INSERT INTO users VALUES (1, 'first'), (2, ''), (3, NULL), (4, 'Grüße')"
    )
    expected = "1|first\n2|\n3|\n4|Grüße"
    assert cluster.psql("SELECT * FROM users ORDER BY id") == expected
    cluster.restart()
    assert cluster.psql("SELECT * FROM users ORDER BY id") == expected


def test_values_read_back_after_a_crash(cluster: Cluster) -> None:
    cluster.psql(
        "CREATE TABLE users (token encrypted_text); INSERT INTO users VALUES ('first')"
    )
    cluster.kill()
    cluster.start()
    assert cluster.psql("SELECT token FROM users") == "first"


def test_a_driver_reads_and_writes_plain_strings(db: Database) -> None:
    with db.connect() as connection:
        connection.execute("CREATE TABLE users (token encrypted_text)")
        connection.execute("INSERT INTO users VALUES (%s)", ["first"])
        assert connection.execute("SELECT token FROM users").fetchone() == ("first",)

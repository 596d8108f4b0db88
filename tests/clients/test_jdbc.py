"""JDBC: what else its users call, beside what test_every_client.py runs."""

from __future__ import annotations

import pytest

from clients import ACCOUNTS, run_java, tcp_door
from harness import SUPERUSER, Database


@pytest.mark.parametrize(
    "option",
    [
        "",
        "&reWriteBatchedInserts=true",
        "&stringtype=unspecified",
        "&preferQueryMode=simple",
    ],
)
def test_a_column_is_used_as_one_of_text(db: Database, option: str) -> None:
    db.psql(ACCOUNTS)
    with tcp_door(db) as port:
        url = f"jdbc:postgresql://127.0.0.1:{port}/{db.name}?user={SUPERUSER}"
        facts = run_java("Facts", [url + option]).decode()
    assert facts.splitlines() == [
        "type encrypted_text",
        "is OTHER true",
        "getString user1@example.com",
        "getObject PGobject",
        "toString user1@example.com",
        "as String conversion to class java.lang.String from encrypted_text not supported",
        "setString 1",
        "setObject 2",
        "VARCHAR 3",
        "OTHER 4",
        "setNull 5001",
        "generated a",
        "generated b",
        "generated c",
        "updated changed",
    ]
    assert db.psql("SELECT email FROM accounts WHERE id = 1") == "changed"

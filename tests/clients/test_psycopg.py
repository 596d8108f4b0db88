"""psycopg 3: its other cursors, beside what test_every_client.py and test_drivers.py
run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.types import TypeInfo

from clients import ACCOUNTS, by_index
from harness import Database

LOOKUP = "SELECT id FROM accounts WHERE email = %s"
Emails = list[str]


def by_default(session: psycopg.Connection, emails: Emails) -> list[Any]:
    return [session.execute(LOOKUP, [email]).fetchone() for email in emails]


def by_client_cursor(session: psycopg.Connection, emails: Emails) -> list[Any]:
    with psycopg.ClientCursor(session) as cursor:
        return [cursor.execute(LOOKUP, [email]).fetchone() for email in emails]


def by_server_cursor(session: psycopg.Connection, emails: Emails) -> list[Any]:
    with session.transaction(), session.cursor("c") as cursor:
        return [cursor.execute(LOOKUP, [email]).fetchone() for email in emails]


def by_executemany(session: psycopg.Connection, emails: Emails) -> list[Any]:
    with session.cursor() as cursor:
        cursor.executemany(LOOKUP, [[email] for email in emails], returning=True)
        return [result.fetchone() for result in cursor.results()]


def by_pipeline(session: psycopg.Connection, emails: Emails) -> list[Any]:
    with session.pipeline():
        cursors = [session.execute(LOOKUP, [email]) for email in emails]
        return [cursor.fetchone() for cursor in cursors]


def by_type(session: psycopg.Connection, emails: Emails) -> list[Any]:
    info = TypeInfo.fetch(session, "encrypted_text")
    assert info is not None
    info.register(session)
    sql = "SELECT id FROM accounts WHERE email = ANY (%s) ORDER BY id"
    return session.execute(sql, [emails]).fetchall()


@pytest.mark.parametrize(
    "way",
    [
        by_default,
        by_client_cursor,
        by_server_cursor,
        by_executemany,
        by_pipeline,
        by_type,
    ],
)
def test_a_bound_parameter_uses_the_index(
    db: Database, way: Callable[[psycopg.Connection, Emails], list[Any]]
) -> None:
    db.psql(ACCOUNTS)
    emails = [f"user{number}@example.com" for number in range(1, 13)]
    with by_index(db, 12), db.connect() as session:
        assert way(session, emails) == [(number,) for number in range(1, 13)]


def test_a_binary_cursor_gives_bytes_unless_told_the_type(db: Database) -> None:
    with db.connect() as session:
        cursor = session.cursor(binary=True)
        row = cursor.execute("SELECT encrypt('Grüße'), encrypt('x')::text").fetchone()
    assert row == ("Grüße".encode(), "x")

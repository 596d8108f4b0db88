"""All that comes of statements: for the client that sends them, and in the log."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, TypeVar

import psycopg

from harness import Cluster


class Observed(NamedTuple):
    """All that a client gets to know of statements, and what the log says of them."""

    results: list[Any]
    error: tuple[str | None, ...]
    notices: list[Any]
    log: list[str]

    @property
    def sqlstate(self) -> str | None:
        return self.error[0] if self.error else None


Result = TypeVar("Result", bound=Observed)


def told(diagnostic: psycopg.errors.Diagnostic) -> tuple[str | None, ...]:
    return (
        diagnostic.sqlstate,
        diagnostic.message_primary,
        diagnostic.message_detail,
        diagnostic.message_hint,
        diagnostic.context,
    )


def observe(
    result: type[Result], host: Cluster, session: psycopg.Connection, *statements: str
) -> Result:
    """What comes of statements, up to the first error; then they are undone."""
    notices: list[Any] = []
    results: list[Any] = []
    error: tuple[str | None, ...] = ()
    start = host.logfile.stat().st_size

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        notices.append(told(diagnostic))

    session.add_notice_handler(note)
    session.execute("BEGIN")
    try:
        for statement in statements:
            results.append(result_of(session, statement))
    except psycopg.Error as raised:
        error = told(raised.diag)
    finally:
        session.execute("ROLLBACK")
        session.remove_notice_handler(note)
    log = [line for line in log_since(host, start) if "STATEMENT:" not in line]
    return result(results, error, notices, log)


def log_since(host: Cluster, start: int) -> list[str]:
    with host.logfile.open(errors="replace") as file:
        file.seek(start)
        return file.read().splitlines()


def result_of(session: psycopg.Connection, statement: str) -> Any:
    with session.cursor() as cursor:
        if re.match("COPY .* TO STDOUT", statement):
            with cursor.copy(statement.encode()) as copy:
                return b"".join(copy)
        cursor.execute(statement.encode())
        return cursor.fetchall() if cursor.description else cursor.statusmessage

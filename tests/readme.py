"""Runs the SQL of README.md, for test_docs.py and for scripts/package-check.sh:

    readme.py SOCKET_FOLDER KEY_FILE

The README's sql blocks run in order, statement by statement, in one session of a fresh
database. A statement ends with a semicolon at the end of a line; a
comment behind it says what must come of it:

    SELECT 1, 'a'; -- → 1 | a       the first row
    SELECT 1 / 0; -- ERROR 22012    an error with this SQLSTATE

Any other error fails. `<!-- ring: new,old -->` replaces the server's key file before
the block that follows; `new` and `old` stand for keys.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg

from harness import PORT, SUPERUSER, new_key, wait_until

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


class Step(NamedTuple):
    """A statement of the README, or a change of the key file."""

    line: int
    sql: str
    expected: str = ""
    ring: str = ""


def steps(text: str) -> Iterator[Step]:
    pattern = re.compile(
        r"^ *<!-- ring: (?P<ring>[a-z,]+) -->$"
        r"|^(?P<indent> *)```sql\n(?P<block>.*?)^(?P=indent)```$",
        re.MULTILINE | re.DOTALL,
    )
    for found in pattern.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found["ring"]:
            yield Step(line, "", ring=found["ring"])
        else:
            yield from statements(textwrap.dedent(found["block"]), line + 1)


def statements(block: str, line: int) -> Iterator[Step]:
    end = 0
    for found in re.finditer(r";[ ]*(?:-- (.*))?$", block, re.MULTILINE):
        sql = block[end : found.start()].strip()
        yield Step(line + block.count("\n", 0, found.start()), sql, found[1] or "")
        end = found.end()
    assert not block[end:].strip(), f"line {line}: a statement without a semicolon"


def run(connection: psycopg.Connection, step: Step) -> str:
    """What came of a statement, in the words of the README."""
    try:
        # No parameters: PostgreSQL parses the statement as psql would send it.
        cursor = connection.execute(step.sql)
    except psycopg.Error as error:
        return f"ERROR {error.sqlstate}"
    if not step.expected.startswith("→"):
        return ""
    row = cursor.fetchone()
    return "no row" if row is None else "→ " + " | ".join(map(str, row))


def go_through(connection: psycopg.Connection, key_file: Path) -> int:
    """Runs all of it, and counts the statements. The server reads its keys from the key
    file, which has one key."""
    keys = {"old": key_file.read_text(), "new": new_key()}
    ran = 0
    for step in steps(README.read_text()):
        if step.ring:
            replace(key_file, ",".join(keys[name] for name in step.ring.split(",")))
            continue
        loaded = conf_load_time(connection)
        given = run(connection, step)
        assert given == step.expected, f"line {step.line}: {given}"
        if "pg_reload_conf" in step.sql:
            # The signal goes to the postmaster, and from there to the session.
            wait_until(lambda: conf_load_time(connection) != loaded, "the reload")
        ran += 1
    return ran


def conf_load_time(connection: psycopg.Connection) -> object:
    return connection.execute("SELECT pg_conf_load_time()").fetchone()


def replace(file: Path, text: str) -> None:
    """As a whole, and with the owner and the rights that it has."""
    now, new = file.stat(), file.with_name(file.name + ".new")
    new.write_text(text)
    new.chmod(now.st_mode)
    os.chown(new, now.st_uid, now.st_gid)
    new.rename(file)


def main() -> None:
    socket_folder, key_file = sys.argv[1:]
    address = {"host": socket_folder, "port": PORT, "user": SUPERUSER}
    with psycopg.connect(**address, dbname="postgres", autocommit=True) as connection:
        ran = go_through(connection, Path(key_file))
    print(f"README.md: {ran} statements gave what it says")


if __name__ == "__main__":
    main()

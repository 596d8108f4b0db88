"""docs/migration.md is true: its chapters with examples run as they stand, each on a
server of its own, and afterwards secrets are where the page says they are, and nowhere
else.

`sql` blocks are run as in README.md (test_docs.py), by a superuser; `-- no row` says so
of the result. `python` blocks are run as a module that goes on from block to block, by
the role app; a line that ends with a comment says what must come of the expression:

    load(1)  # → abc                the value, as str() has it
    load(2)  # ERROR InvalidToken   an exception of this class

`ini` blocks are appended to the configuration. Comments say the rest:

    <!-- story: name -->            a new server, up to the next level-2 heading
    <!-- ring: new,old -->          the text of its key file, by names of keys
    <!-- restart -->                restarts the server
    <!-- notice: words -->          the last sql block gave that NOTICE
    <!-- in base: words -->         in base, pg_wal or log they are, after a CHECKPOINT
    <!-- not in base: words -->     there they are not
    <!-- nowhere: words -->         neither in the data directory nor in the log
    <!-- only in the file passphrase: words -->  which is beside these
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from cryptography.fernet import Fernet

from conftest import MakeCluster
from harness import PORT, Cluster, Database, fetch, wait_until

PAGE = Path(__file__).parent.parent / "docs" / "migration.md"
TEXT = PAGE.read_text()

PASSPHRASE = "correct horse battery staple"
# Where the page has files of passphrases.
FOLDER = "/etc/postgresql"
PASSPHRASE_FILES = {
    "passphrase": PASSPHRASE,
    "passphrase.2019": "the passphrase of 2019",
}

FENCE = re.compile(r"^ *```\w+$", re.MULTILINE)
PART = re.compile(
    r"^<!-- (?P<name>[a-z_ ]+?)(?:: (?P<words>[^\n]+?))? -->$"
    r"|^(?P<indent> *)```(?P<language>sql|python|ini)\n(?P<block>.*?)^(?P=indent)```$"
    r"|^(?P<heading>## [^\n]*)$",
    re.MULTILINE | re.DOTALL,
)
# A statement ends with the line, but not inside of a function's body.
STATEMENT = re.compile(
    r"((?:\$\$.*?\$\$|(?!\$\$|;[ ]*(?:--[^\n]*)?$).)*);[ ]*(?:-- ([^\n]*))?$",
    re.MULTILINE | re.DOTALL,
)
EXPECTED = re.compile(r"  # (→ .*|ERROR \w+)$")


class Part(NamedTuple):
    """A block, by its language, or a comment, by its name."""

    line: int
    kind: str
    text: str


def stories() -> dict[str, list[Part]]:
    found: dict[str, list[Part]] = {}
    parts: list[Part] = []
    for part in parts_of(TEXT):
        if part.kind == "heading":
            parts = []
        elif part.kind == "story":
            parts = found.setdefault(part.text, [])
        else:
            parts.append(part)
    return found


def parts_of(text: str) -> Iterator[Part]:
    for found in PART.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found["heading"]:
            yield Part(line, "heading", found["heading"])
        elif found["language"]:
            yield Part(line, found["language"], textwrap.dedent(found["block"]))
        else:
            yield Part(line, found["name"], found["words"] or "")


def statements(block: str) -> Iterator[tuple[str, str]]:
    """Each with what must come of it."""
    end = 0
    for found in STATEMENT.finditer(block):
        assert block[end : found.start()].strip() == "", found[1]
        yield found[1].strip(), (found[2] or "").strip()
        end = found.end()
    assert not block[end:].strip(), f"a statement without a semicolon: {block[end:]}"


class Story:
    """A server on which a chapter's blocks are run."""

    def __init__(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster = cluster
        self.keys = {
            name: Fernet.generate_key().decode()
            for name in ("first", "fernet", "new", "old", "own")
        }
        self.started = False
        self.module: dict[str, Any] = {}
        self.notices: list[str] = []
        self.session: psycopg.Connection | None = None
        monkeypatch.setenv("PGHOST", str(cluster.dir))
        monkeypatch.setenv("PGPORT", str(PORT))
        monkeypatch.setenv("FERNET_KEY", self.keys["fernet"])
        monkeypatch.setenv("FERNET_KEYS", f"{self.keys['new']},{self.keys['old']}")
        monkeypatch.setenv("PGCRYPTO_PASSPHRASE", PASSPHRASE)
        for name, text in PASSPHRASE_FILES.items():
            cluster.write_file(name, text + "\n")

    def run(self, part: Part) -> None:
        steps: dict[str, Callable[[str], None]] = {
            "sql": self.sql,
            "python": self.python,
            "ini": self.ini,
            "ring": self.ring,
            "restart": self.restart,
            "notice": self.notice,
            "in base": lambda words: self.must_hold("base", words),
            "in pg_wal": lambda words: self.must_hold("pg_wal", words),
            "in log": self.must_log,
            "not in base": lambda words: self.must_not_hold(self.base, words),
            "nowhere": lambda words: self.must_not_hold(self.cluster.dir, words),
            "only in the file passphrase": self.must_be_in_passphrase_file,
        }
        steps[part.kind](part.text)

    # Blocks

    def sql(self, block: str) -> None:
        self.notices.clear()
        for statement, expected in statements(block):
            self.statement(statement.replace(FOLDER, str(self.cluster.dir)), expected)

    def statement(self, sql: str, expected: str) -> None:
        assert self.session is not None
        loaded = conf_load_time(self.session)
        try:
            cursor = self.session.execute(sql)
        except psycopg.Error as error:
            found = f"ERROR {error.sqlstate}"
        else:
            row = cursor.fetchone() if expected else None
            found = "no row" if row is None else "→ " + " | ".join(map(str, row))
        assert found == (expected or "no row"), sql
        if "pg_reload_conf" in sql:
            # The signal goes to the postmaster, and from there to the session.
            wait_until(lambda: conf_load_time(self.session) != loaded, "the reload")

    def python(self, block: str) -> None:
        lines = block.splitlines()
        expectations = 0
        for statement in ast.parse(block).body:
            assert statement.end_lineno is not None
            expected = EXPECTED.search(lines[statement.end_lineno - 1])
            if expected is None:
                code = compile(ast.Module([statement], []), str(PAGE), "exec")
                exec(code, self.module)
            else:
                assert isinstance(statement, ast.Expr), ast.unparse(statement)
                found = self.outcome(statement.value)
                assert found == expected[1], ast.unparse(statement)
                expectations += 1
        assert expectations == sum(EXPECTED.search(line) is not None for line in lines)

    def outcome(self, expression: ast.expr) -> str:
        code = compile(ast.Expression(expression), str(PAGE), "eval")
        try:
            return f"→ {eval(code, self.module)}"
        except Exception as error:
            return f"ERROR {type(error).__name__}"

    def ini(self, block: str) -> None:
        self.cluster.append_conf(block)
        self.cluster.reload()

    # Comments

    def ring(self, names: str) -> None:
        self.cluster.set_ring(",".join(self.keys[name] for name in names.split(",")))
        if not self.started:
            self.started = True
            self.cluster.start()
            self.cluster.psql("CREATE DATABASE app; CREATE ROLE app LOGIN")
            self.cluster.psql(
                "CREATE EXTENSION colcrypt;"
                "ALTER DEFAULT PRIVILEGES"
                " GRANT SELECT, INSERT, UPDATE ON TABLES TO app;"
                # So that a secret in a statement would be in the log.
                "ALTER SYSTEM SET log_statement = 'all'",
                db="app",
            )
            self.cluster.reload()
            self.connect()

    def restart(self, _: str) -> None:
        assert self.session is not None
        self.session.close()
        self.cluster.restart()
        self.connect()

    def connect(self) -> None:
        # As psql would: nothing is prepared.
        self.session = self.cluster.connect(dbname="app", prepare_threshold=None)
        self.session.add_notice_handler(
            lambda notice: self.notices.append(notice.message_primary or "")
        )

    def notice(self, words: str) -> None:
        assert words in self.notices

    # Files

    @property
    def base(self) -> Path:
        return self.cluster.datadir / "base"

    def must_hold(self, folder: str, words: str) -> None:
        assert self.files(self.cluster.datadir / folder, words), words

    def must_not_hold(self, folder: Path, words: str) -> None:
        assert self.files(folder, words) == []

    def must_be_in_passphrase_file(self, words: str) -> None:
        found = self.files(self.cluster.dir, words)
        assert found == [self.cluster.dir / "passphrase"]

    def must_log(self, words: str) -> None:
        assert words in self.cluster.log()

    def files(self, folder: Path, words: str) -> list[Path]:
        self.cluster.psql("CHECKPOINT")
        return [path for path in folder.rglob("*") if holds(path, words.encode())]


def holds(path: Path, words: bytes) -> bool:
    try:
        return path.is_file() and words in path.read_bytes()
    except FileNotFoundError:
        return False


def conf_load_time(session: psycopg.Connection) -> object:
    return fetch(session, "SELECT pg_conf_load_time()")


@pytest.mark.parametrize("name", stories())
def test_a_chapter_is_true_from_top_to_bottom(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    preload = {"shared_preload_libraries": "colcrypt"}
    story = Story(make_cluster(start=False, conf=preload), monkeypatch)
    try:
        for part in stories()[name]:
            try:
                story.run(part)
            except BaseException as error:
                error.add_note(f"{PAGE.name}, line {part.line}")
                raise
    finally:
        if story.session is not None:
            story.session.close()


def test_every_block_of_the_page_is_run() -> None:
    run = [part.kind for parts in stories().values() for part in parts]
    assert len(FENCE.findall(TEXT)) == sum(
        kind in ("sql", "python", "ini") for kind in run
    )
    assert run.count("sql") > 40 and run.count("python") > 15


def test_what_must_come_of_a_statement_is_found() -> None:
    block = """SELECT 1,
  2; -- → 1 | 2
CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    RETURN 1; -- not the end
END
$$;
SELECT ';' || f(); -- ERROR 22012
"""
    found = list(statements(block))
    assert [expected for _, expected in found] == ["→ 1 | 2", "", "ERROR 22012"]
    assert found[0][0] == "SELECT 1,\n  2"
    assert found[1][0].endswith("END\n$$")
    with pytest.raises(AssertionError, match="without a semicolon"):
        list(statements("SELECT 1; -- → 1\nSELECT 2"))


@pytest.mark.parametrize(
    "block",
    ["1 + 1  # → 3", "1 / 0  # → 0", "1 + 1  # ERROR ValueError", "x = 1  # → 1"],
)
def test_a_wrong_value_is_found(block: str) -> None:
    story = Story.__new__(Story)
    story.module = {}
    with pytest.raises(AssertionError):
        story.python(block)
    story.python("1 + 1  # → 2\n1 / 0  # ERROR ZeroDivisionError")


# What the page has to work around


def encrypted(db: Database, value: str, key: str) -> tuple[str, list[str]]:
    """What encrypt_column() makes of a value, and the hints it gives."""
    hints: list[str] = []
    with db.connect() as session:
        session.add_notice_handler(lambda told: hints.append(told.message_hint or ""))
        session.execute("SELECT set_config('colcrypt.key', %s, false)", [key])
        session.execute("CREATE TABLE t (secret text)")
        session.execute("INSERT INTO t VALUES (%s)", [value])
        session.execute("SELECT encrypt_column('t', 'secret')")
        return fetch(session, "SELECT secret::text FROM t"), hints


@pytest.mark.xfail(strict=True, reason="only tokens without white space are adopted")
@pytest.mark.parametrize("form", ["{}\n", " {}", "{}\r\n"])
def test_a_token_that_python_reads_is_adopted(db: Database, form: str) -> None:
    key = Fernet.generate_key().decode()
    token = form.format(Fernet(key).encrypt(b"value").decode())
    assert Fernet(key).decrypt(token) == b"value"
    assert encrypted(db, token, key)[0] == "value"


@pytest.mark.xfail(strict=True, reason="the hint says that its key is not in the ring")
def test_a_token_that_holds_no_text_is_told_of_as_that(db: Database) -> None:
    key = Fernet.generate_key().decode()
    token = Fernet(key).encrypt(b"\xff\x00").decode()
    value, hints = encrypted(db, token, key)
    assert value == token
    assert any("text" in hint for hint in hints)

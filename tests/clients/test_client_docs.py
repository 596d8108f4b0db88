"""docs/clients.md is true: its blocks run as they stand.

`python` blocks are run as a module that goes on from block to block, `js` blocks each as
a program; a line that ends with a comment says what must come of the expression, as in
test_migration_examples.py. `rust` and `java` blocks are in the programs that
test_every_client.py runs.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import textwrap
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy.dialects.postgresql.base import ischema_names

from clients import ACCOUNTS, HERE, NODE_MODULES, ROOT, environment, run_program
from harness import Database

TEXT = (ROOT / "docs" / "clients.md").read_text()
BLOCK = re.compile(
    r"^## (?P<heading>[^\n]+)$|^```(?P<language>\w+)\n(?P<block>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
EXPECTED = re.compile(r"  # (→ .*|ERROR \w+)$")
EXPECTED_JS = re.compile(r"^(.*); // → (.*)$", re.MULTILINE)


def blocks(language: str) -> list[Any]:
    """Each with its heading for a name."""
    found = []
    heading = ""
    for part in BLOCK.finditer(TEXT):
        if part["heading"]:
            heading = part["heading"]
        elif part["language"] == language:
            found.append(pytest.param(part["block"], id=heading))
    return found


@pytest.fixture
def accounts(db: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    db.psql(ACCOUNTS)
    for name, value in environment(db).items():
        monkeypatch.setenv(name, value)
    return db


def test_every_block_is_run() -> None:
    tried = {"python": 6, "js": 2, "rust": 2, "java": 1}
    assert {language: len(blocks(language)) for language in tried} == tried
    assert TEXT.count("```") == 2 * sum(tried.values())


class Module:
    """Python that is run statement by statement."""

    def __init__(self) -> None:
        self.module = ModuleType("clients_page")
        self.names = vars(self.module)
        self.checked = 0

    def run(self, block: str) -> None:
        lines = block.splitlines()
        for statement in ast.parse(block).body:
            self.statement(statement, lines)

    def statement(self, statement: ast.stmt, lines: list[str]) -> None:
        assert statement.end_lineno is not None
        if isinstance(statement, ast.With):
            # The body is checked line by line, too.
            with eval(self.code(statement.items[0].context_expr), self.names):
                for inner in statement.body:
                    self.statement(inner, lines)
            return
        expected = EXPECTED.search(lines[statement.end_lineno - 1])
        if expected is None:
            exec(compile(ast.Module([statement], []), "clients.md", "exec"), self.names)
            return
        assert isinstance(statement, ast.Expr), ast.unparse(statement)
        assert self.outcome(statement.value) == expected[1], ast.unparse(statement)
        self.checked += 1

    def outcome(self, expression: ast.expr) -> str:
        try:
            return f"→ {eval(self.code(expression), self.names)}"
        except Exception as error:
            return f"ERROR {type(error).__name__}"

    def code(self, expression: ast.expr) -> Any:
        return compile(ast.Expression(expression), "clients.md", "eval")


def test_the_python_blocks_are_true(
    accounts: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One of the blocks adds to it.
    monkeypatch.setitem(ischema_names, "encrypted_text", None)
    module = Module()
    # SQLAlchemy looks its names up there.
    monkeypatch.setitem(sys.modules, module.module.__name__, module.module)
    texts = [parameter.values[0] for parameter in blocks("python")]
    for text in texts:
        module.run(text)
    assert module.checked == len(re.findall(EXPECTED.pattern, "\n".join(texts), re.M))
    assert module.checked == 11
    assert ischema_names["encrypted_text"] is module.names["EncryptedText"]
    types = accounts.psql("""
        SELECT atttypid::regtype FROM pg_attribute
        WHERE attrelid = 'logins'::regclass AND attname = 'name'""")
    assert types == "encrypted_text"


@pytest.mark.parametrize("block", blocks("js"))
def test_a_block_of_javascript_is_true(accounts: Database, block: str) -> None:
    expected = [value for _, value in EXPECTED_JS.findall(block)]
    program = EXPECTED_JS.sub(r"found.push(String(\1));", block)
    program = (
        f"(async () => {{ const found = [];\n{program}\n"
        "process.stdout.write(JSON.stringify(found)); })();"
    )
    env = environment(accounts) | {"NODE_PATH": str(NODE_MODULES)}
    found = json.loads(run_program(["node", "-"], program.encode(), env))
    assert found == expected
    assert expected


@pytest.mark.parametrize("language", ["rust", "java"])
def test_a_block_is_in_the_program_that_is_run(language: str) -> None:
    sources = [
        path
        for path in (HERE / language).rglob("*.*")
        if path.suffix in (".rs", ".java")
    ]
    programs = [words(path.read_text()) for path in sources]
    for parameter in blocks(language):
        block = words(textwrap.dedent(parameter.values[0]))
        assert any(block in program for program in programs), parameter.id


def words(text: str) -> str:
    """Without what indentation is."""
    return " ".join(text.split())


def test_the_fields_are_those_that_the_tests_of_django_use() -> None:
    [block] = [p.values[0] for p in blocks("python") if p.id == "Django"]
    assert words(block) in words((HERE / "django_app" / "fields.py").read_text())


def test_the_warning_of_schema_tools_comes_first() -> None:
    first = TEXT.splitlines()[2:6]
    assert all(line.startswith(">") for line in first)
    assert "drop the column" in words(" ".join(first).replace(">", ""))

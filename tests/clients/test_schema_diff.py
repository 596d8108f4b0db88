"""What tools plan that compare models with the database: TypeORM drops the column."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from alembic.autogenerate import (
    compare_metadata,
    produce_migrations,
    render_python_code,
)
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Column, Integer, MetaData, String, Table, Text, create_engine
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.types import TypeEngine

from clients import HERE, NODE_MODULES, environment, run_program
from harness import Database
from test_sqlalchemy import EncryptedText, url

ENCRYPTED = "CREATE TABLE accounts (id int PRIMARY KEY, email encrypted_text UNIQUE)"
PLAIN = ENCRYPTED.replace("encrypted_text", "varchar")


# TypeORM


def typeorm_plan(db: Database, *options: str, type: str) -> list[str]:
    """What `synchronize` would run if the model had a column of that type."""
    entity = {
        "name": "accounts",
        "columns": {
            "id": {"type": "int", "primary": True},
            "email": {"type": type, "nullable": True},
        },
    }
    command = ["node", str(HERE / "node" / "typeorm_plan.js"), *options]
    env = environment(db) | {"NODE_PATH": str(NODE_MODULES)}
    return json.loads(run_program(command, json.dumps(entity).encode(), env))


@pytest.fixture
def accounts(db: Database) -> Database:
    db.psql("CREATE TABLE accounts (id int PRIMARY KEY, email encrypted_text)")
    return db


@pytest.mark.parametrize(
    ("type", "name"), [("text", "text"), ("varchar", "character varying")]
)
def test_typeorm_plans_to_drop_the_column(
    accounts: Database, type: str, name: str
) -> None:
    """docs/clients.md begins with this."""
    assert typeorm_plan(accounts, type=type) == [
        'ALTER TABLE "accounts" DROP COLUMN "email"',
        f'ALTER TABLE "accounts" ADD "email" {name}',
    ]


def test_typeorm_does_not_take_the_type_by_itself(accounts: Database) -> None:
    [refusal] = typeorm_plan(accounts, type="encrypted_text")
    assert refusal.startswith('Data type "encrypted_text" in "accounts.email"')


def test_typeorm_that_was_told_the_type_plans_nothing(accounts: Database) -> None:
    plan = typeorm_plan(accounts, "--tell-the-type", type="encrypted_text")
    assert plan == []


def test_typeorm_that_was_told_the_type_makes_the_column(db: Database) -> None:
    [statement] = typeorm_plan(db, "--tell-the-type", type="encrypted_text")
    db.psql(statement)
    assert typeorm_plan(db, "--tell-the-type", type="encrypted_text") == []
    db.psql("INSERT INTO accounts VALUES (1, 'ann@example.com')")
    assert db.psql("SELECT ciphertext(email) FROM accounts").startswith("colcrypt:v1:")


# Alembic


def metadata(type: TypeEngine[str]) -> MetaData:
    made = MetaData()
    Table(
        "accounts",
        made,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("email", type, unique=True),
    )
    return made


@contextmanager
def migration(db: Database) -> Iterator[MigrationContext]:
    engine = create_engine(url(db, "psycopg"))
    try:
        with engine.begin() as connection:
            yield MigrationContext.configure(connection)
    finally:
        engine.dispose()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that docs/clients.md has."""
    monkeypatch.setitem(ischema_names, "encrypted_text", EncryptedText)


@pytest.mark.parametrize("type", [String(), Text(), EncryptedText()], ids=repr)
@pytest.mark.filterwarnings("ignore:Did not recognize type 'encrypted_text'")
def test_alembic_leaves_a_column_alone_whose_type_it_does_not_know(
    db: Database, type: TypeEngine[str]
) -> None:
    db.psql(ENCRYPTED)
    with migration(db) as context:
        assert compare_metadata(context, metadata(type)) == []


@pytest.mark.usefixtures("told")
def test_alembic_that_was_told_the_type_plans_nothing(db: Database) -> None:
    db.psql(ENCRYPTED)
    with migration(db) as context:
        assert compare_metadata(context, metadata(EncryptedText())) == []


@pytest.mark.usefixtures("told")
def test_alembic_encrypts_a_column_of_text_when_the_model_changes(db: Database) -> None:
    db.psql(PLAIN + "; INSERT INTO accounts VALUES (1, 'ann@example.com')")
    with migration(db) as context:
        plan = produce_migrations(context, metadata(EncryptedText())).upgrade_ops
        assert plan is not None
        assert "op.alter_column('accounts', 'email'" in render_python_code(plan)
        for change in plan.as_diffs():
            assert change[0][0] == "modify_type"
        operations = Operations(context)
        for table in plan.ops:
            for change in table.ops:
                operations.invoke(change)
    assert db.psql("SELECT email FROM accounts WHERE email = 'ann@example.com'")
    assert db.psql("SELECT ciphertext(email) FROM accounts").startswith("colcrypt:v1:")
    with migration(db) as context:
        assert compare_metadata(context, metadata(EncryptedText())) == []


@pytest.mark.usefixtures("told")
def test_alembic_that_was_told_the_type_would_decrypt_for_a_model_of_text(
    db: Database,
) -> None:
    """As it plans for any type that differs: so the model must say EncryptedText."""
    db.psql(ENCRYPTED)
    with migration(db) as context:
        [[change]] = compare_metadata(context, metadata(Text()))
    assert change[0] == "modify_type"

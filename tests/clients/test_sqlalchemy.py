"""SQLAlchemy, by psycopg and by asyncpg: models that were written for a column of text,
and models that declare the type."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import String, Text, create_engine, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.types import TypeEngine

from clients import ACCOUNTS, VALUES, by_index
from harness import PORT, SUPERUSER, Database

Work = Callable[[Session], Any]
Run = Callable[[Database, Work], Any]


# docs/clients.md has these lines.
class EncryptedText(Text):
    pass


@compiles(EncryptedText)
def name_of_encrypted_text(*_: Any, **__: Any) -> str:
    return "encrypted_text"


def model(type: TypeEngine[str]) -> Any:
    """A class for the table, whose columns are thought to be of that type."""

    class Base(DeclarativeBase):
        pass

    class Account(Base):
        __tablename__ = "accounts"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str | None] = mapped_column(type, unique=True)
        note: Mapped[str | None] = mapped_column(type)

    return Account


TYPES = {"String": String(), "Text": Text(), "EncryptedText": EncryptedText()}
MODELS = {name: model(type) for name, type in TYPES.items()}


def url(db: Database, driver: str) -> str:
    return f"postgresql+{driver}://{SUPERUSER}@/{db.name}?host={db.cluster.dir}&port={PORT}"


def with_psycopg(db: Database, work: Work) -> Any:
    engine = create_engine(url(db, "psycopg"))
    try:
        with Session(engine) as session:
            return work(session)
    finally:
        engine.dispose()


def with_asyncpg(db: Database, work: Work) -> Any:
    async def run() -> Any:
        engine = create_async_engine(url(db, "asyncpg"))
        try:
            async with AsyncSession(engine) as session:
                return await session.run_sync(work)
        finally:
            await engine.dispose()

    return asyncio.run(run())


every_driver = pytest.mark.parametrize(
    "run", [with_psycopg, with_asyncpg], ids=["psycopg", "asyncpg"]
)
every_model = pytest.mark.parametrize("Account", MODELS.values(), ids=MODELS)


@pytest.fixture
def accounts(db: Database) -> Database:
    db.psql(ACCOUNTS)
    return db


def email(number: int) -> str:
    return f"user{number}@example.com"


@every_driver
@every_model
def test_objects_are_written_and_read(
    accounts: Database, run: Run, Account: Any
) -> None:
    def work(session: Session) -> list[str]:
        session.add_all([Account(note=note) for note in VALUES])
        session.commit()
        session.expunge_all()
        return list(
            session.scalars(
                select(Account.note).where(Account.id > 5000).order_by(Account.id)
            )
        )

    assert run(accounts, work) == VALUES


@every_driver
@every_model
def test_a_lookup_uses_the_index(accounts: Database, run: Run, Account: Any) -> None:
    def work(session: Session) -> list[int]:
        found = []
        for number in range(1, 9):
            account = session.scalars(
                select(Account).where(Account.email == email(number))
            ).one()
            assert account.email == email(number)
            found.append(account.id)
        return found

    with by_index(accounts, 8):
        assert run(accounts, work) == list(range(1, 9))


@every_driver
@every_model
def test_in_and_any_use_the_index(accounts: Database, run: Run, Account: Any) -> None:
    wanted = [email(1), email(2), "nobody"]

    def work(session: Session) -> list[list[int]]:
        return [
            list(session.scalars(select(Account.id).where(condition)))
            for _ in range(8)
            for condition in (
                Account.email.in_(wanted),
                Account.email == func.any(wanted),
            )
        ]

    with by_index(accounts, 16):
        assert all(sorted(ids) == [1, 2] for ids in run(accounts, work))


@every_driver
@every_model
def test_updates_returning_and_upserts(
    accounts: Database, run: Run, Account: Any
) -> None:
    def work(session: Session) -> list[Any]:
        put = upsert(Account).values(email=email(1), note="put")
        put = put.on_conflict_do_update(
            index_elements=["email"], set_={"note": put.excluded.note}
        )
        return [
            session.execute(put.returning(Account.id, Account.note)).one(),
            session.execute(
                update(Account)
                .where(Account.email == email(2))
                .values(note=func.upper(Account.email))
                .returning(Account.note)
            ).scalar_one(),
            session.execute(
                insert(Account).returning(Account.email),
                [{"email": "a"}, {"email": ""}],
            )
            .scalars()
            .all(),
        ]

    with by_index(accounts, 1):
        found = run(accounts, work)
    assert found == [(1, "put"), email(2).upper(), ["a", ""]]


@every_driver
@every_model
def test_text_functions_work_on_the_plaintext(
    accounts: Database, run: Run, Account: Any
) -> None:
    def work(session: Session) -> list[Any]:
        def count(condition: Any) -> int | None:
            return session.scalar(select(func.count()).where(condition))

        ordered = select(Account.email).order_by(func.lower(Account.email)).limit(1)
        return [
            count(Account.email.like("user12%")),
            count(Account.email.startswith("user12")),
            count(Account.email.icontains("USER499")),
            count(func.lower(Account.email) == email(3)),
            count(Account.email + "x" == email(3) + "x"),
            session.scalar(ordered),
        ]

    assert run(accounts, work) == [111, 111, 11, 1, 1, email(1000)]


@every_driver
@every_model
@pytest.mark.parametrize(
    ("change", "exception", "code"),
    [
        ({"email": email(1)}, IntegrityError, "23505"),
        ({"note": "colcrypt:v1:AAAA"}, DBAPIError, "22P0"),
    ],
)
def test_errors_have_their_sqlstate(
    accounts: Database,
    run: Run,
    Account: Any,
    change: dict[str, str],
    exception: type[DBAPIError],
    code: str,
) -> None:
    def work(session: Session) -> None:
        session.add(Account(**change))
        session.commit()

    with pytest.raises(exception) as raised:
        run(accounts, work)
    assert raised.value.orig is not None
    assert raised.value.orig.sqlstate.startswith(code)


@every_driver
def test_create_all_makes_columns_of_the_type(db: Database, run: Run) -> None:
    Account = MODELS["EncryptedText"]
    run(
        db,
        lambda session: Account.metadata.create_all(session.connection())
        or session.commit(),
    )
    types = db.psql("""
        SELECT attname, atttypid::regtype FROM pg_attribute
        WHERE attrelid = 'accounts'::regclass AND attnum > 0 ORDER BY attnum""")
    assert types == "id|integer\nemail|encrypted_text\nnote|encrypted_text"


@every_driver
def test_an_encrypted_primary_key_is_found(db: Database, run: Run) -> None:
    class Base(DeclarativeBase):
        pass

    class Token(Base):
        __tablename__ = "tokens"
        token: Mapped[str] = mapped_column(EncryptedText, primary_key=True)

    def work(session: Session) -> str:
        Base.metadata.create_all(session.connection())
        session.add(Token(token="t0ken"))
        session.commit()
        session.expunge_all()
        token = session.get(Token, "t0ken")
        assert token is not None
        session.delete(token)
        session.commit()
        assert session.execute(text("SELECT count(*) FROM tokens")).scalar() == 0
        return token.token

    assert run(db, work) == "t0ken"

"""Django: a model that declares the type, and one that does not know of it, in whose
columns a migration has put it. The application is in django_app/."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import django
import pytest
from django.conf import settings

from clients import VALUES, by_index
from harness import PORT, SUPERUSER, Cluster, Database

if not settings.configured:
    settings.configure(
        INSTALLED_APPS=["django_app"],
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    django.setup()

from django.core.exceptions import ValidationError  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import DatabaseError, IntegrityError, connection, models  # noqa: E402
from django.db.models.functions import Lower, Upper  # noqa: E402
from django_app.models import Account, Customer, Ticket  # noqa: E402

# Django's own two modes: who puts parameters into a statement, the client or the server.
BINDINGS = {"client": {}, "server": {"server_side_binding": True}}

every_model = pytest.mark.parametrize(
    "model", [Account, Customer], ids=lambda model: model.__name__
)


def email(number: int) -> str:
    return f"user{number}@example.com"


def index_of(model: type[models.Model]) -> str:
    """The name of the index of the unique column."""
    with connection.cursor() as cursor:
        table = model._meta.db_table
        found = connection.introspection.get_constraints(cursor, table)
    [name] = [
        name
        for name, facts in found.items()
        if facts["columns"] == ["email"] and facts["unique"]
    ]
    return name


def use(db: Database, options: dict[str, Any]) -> None:
    connection.close()
    connection.settings_dict.update(
        HOST=str(db.cluster.dir),
        PORT=str(PORT),
        USER=SUPERUSER,
        NAME=db.name,
        OPTIONS=options,
    )


@pytest.fixture(scope="module")
def migrated(server: Cluster) -> str:
    """A database with the application's tables, and 5000 rows in each."""
    name = "migrated_by_django"
    server.psql(f"CREATE DATABASE {name} TEMPLATE with_colcrypt")
    db = Database(server, name)
    use(db, {})
    call_command("migrate", "django_app", "0001", verbosity=0)
    for model in (Account, Customer):
        db.psql(f"""
            INSERT INTO {model._meta.db_table} (email)
            SELECT 'user' || n || '@example.com' FROM generate_series(1, 5000) AS n""")
    call_command("migrate", "django_app", verbosity=0)
    db.psql("ANALYZE")
    connection.close()
    return name


@pytest.fixture(params=BINDINGS)
def app(
    server: Cluster, migrated: str, request: pytest.FixtureRequest
) -> Iterator[Database]:
    """A copy of it, and Django connected."""
    server.psql(f"CREATE DATABASE app_of_django TEMPLATE {migrated}")
    db = Database(server, "app_of_django")
    use(db, BINDINGS[request.param])
    yield db
    connection.close()
    server.psql(f"DROP DATABASE {db.name} WITH (FORCE)")


# Migrations


def test_migrations_encrypt_the_columns_and_decrypt_them(app: Database) -> None:
    types = {model: column_types(app, model) for model in (Account, Customer)}
    encrypted = "email|encrypted_text\nid|bigint\nnote|encrypted_text"
    assert types == {Account: encrypted, Customer: encrypted}
    call_command("migrate", "django_app", "0001", verbosity=0)
    plain = "email|character varying(254)\nid|bigint\nnote|text"
    assert column_types(app, Account) == plain
    # decrypt_column() gives text.
    assert column_types(app, Customer) == plain.replace(
        "character varying(254)", "text"
    )
    assert Account.objects.get(email=email(7)).email == email(7)


def column_types(db: Database, model: type[models.Model]) -> str:
    return db.psql(f"""
        SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
        WHERE attrelid = '{model._meta.db_table}'::regclass AND attnum > 0
            AND NOT attisdropped ORDER BY attname""")


def test_makemigrations_finds_nothing_to_do(app: Database) -> None:
    # It compares models with migrations, never with the database.
    call_command("makemigrations", "django_app", check_changes=True, verbosity=0)


@every_model
def test_no_index_is_left_but_the_unique_one(
    app: Database, model: type[models.Model]
) -> None:
    """Django makes a second one of varchar_pattern_ops for LIKE, for a column of text."""
    indexes = app.psql(f"""
        SELECT indexdef FROM pg_indexes
        WHERE tablename = '{model._meta.db_table}' AND indexdef LIKE '%(email%'""")
    assert len(indexes.splitlines()) == 1
    assert "UNIQUE" in indexes and "pattern" not in indexes


@every_model
def test_inspectdb_gives_a_text_field(app: Database, model: type[models.Model]) -> None:
    output = io.StringIO()
    call_command("inspectdb", model._meta.db_table, stdout=output)
    assert "email = models.TextField(unique=True)  # This field type is a guess." in (
        output.getvalue()
    )


# Queries


@every_model
def test_values_are_written_and_read(app: Database, model: type[models.Model]) -> None:
    made = [model.objects.create(email=f"a{n}", note=v) for n, v in enumerate(VALUES)]
    for row, value in zip(made, VALUES, strict=True):
        row.refresh_from_db()
        assert row.note == value
    assert list(
        model.objects.filter(pk__gte=made[0].pk).order_by("pk").values_list("note")
    ) == [(value,) for value in VALUES]


@every_model
def test_filter_and_get_use_the_index(app: Database, model: type[models.Model]) -> None:
    name = index_of(model)
    connection.close()
    with by_index(app, 16, name):
        for number in range(1, 9):
            assert model.objects.get(email=email(number)).pk == number
            assert model.objects.filter(email__exact=email(number)).exists()
        connection.close()


@every_model
def test_in_uses_the_index(app: Database, model: type[models.Model]) -> None:
    name = index_of(model)
    connection.close()
    with by_index(app, 8, name):
        for number in range(1, 9):
            found = model.objects.filter(email__in=[email(number), email(9), "nobody"])
            assert {row.pk for row in found} == {number, 9}
        connection.close()


@every_model
def test_get_or_create_and_update_or_create(
    app: Database, model: type[models.Model]
) -> None:
    row, created = model.objects.get_or_create(email="new", defaults={"note": "one"})
    assert created and row.note == "one"
    again, created = model.objects.get_or_create(email="new", defaults={"note": "two"})
    assert not created and again == row and again.note == "one"
    row, created = model.objects.update_or_create(email="new", defaults={"note": "3"})
    assert not created and row == again and row.note == "3"
    row, created = model.objects.update_or_create(email="other", defaults={"note": ""})
    assert created
    assert model.objects.get(email="other").note == ""


@every_model
@pytest.mark.parametrize("rows", [1, 100])
def test_bulk_create_and_bulk_update(
    app: Database, model: type[models.Model], rows: int
) -> None:
    made = model.objects.bulk_create(
        [model(email=f"bulk{n}", note=f"n{n}") for n in range(rows)]
    )
    assert all(row.pk for row in made)
    for row in made:
        row.note = f"new {row.note}"
    assert model.objects.bulk_update(made, ["note"]) == rows
    model.objects.bulk_create(
        [model(email="bulk0", note="put"), model(email="x", note="put")],
        update_conflicts=True,
        unique_fields=["email"],
        update_fields=["note"],
    )
    assert model.objects.get(email="bulk0").note == "put"
    notes = model.objects.filter(email__startswith="bulk").exclude(email="bulk0")
    assert {row.note for row in notes} == {f"new n{n}" for n in range(1, rows)}


@every_model
def test_lookups_by_plaintext(app: Database, model: type[models.Model]) -> None:
    objects = model.objects
    assert objects.filter(email__contains="er4999@").count() == 1
    assert objects.filter(email__startswith="user12").count() == 111
    assert objects.filter(email__icontains="USER12").count() == 111
    assert objects.filter(email__iexact=email(5).upper()).count() == 1
    assert objects.filter(email__regex=r"^user\d@").count() == 9
    assert objects.annotate(low=Lower("email")).filter(low=email(3)).count() == 1
    assert objects.exclude(email=email(3)).count() == 4999
    assert objects.filter(note__isnull=True).count() == 5000
    assert objects.order_by(Lower("email")).first().email == email(1000)
    assert objects.values("note").annotate(n=models.Count("pk")).get()["n"] == 5000
    objects.filter(email=email(1)).update(note=Upper("email"))
    assert objects.get(note=email(1).upper()).pk == 1


@every_model
def test_unique_is_checked(app: Database, model: type[models.Model]) -> None:
    with pytest.raises(IntegrityError) as raised:
        model.objects.create(email=email(1))
    assert raised.value.__cause__.sqlstate == "23505"
    with pytest.raises(ValidationError, match="already exists"):
        model(email=email(1)).validate_unique()


@every_model
@pytest.mark.parametrize("lookup", ["lt", "gte", "range"])
def test_order_by_plaintext_must_be_asked_for(
    app: Database, model: type[models.Model], lookup: str
) -> None:
    value = ("a", "b") if lookup == "range" else "a"
    with pytest.raises(DatabaseError) as raised:
        model.objects.filter(**{f"email__{lookup}": value}).exists()
    assert raised.value.__cause__.sqlstate == "0A000"


def test_joins_and_sub_selects(app: Database) -> None:
    ticket = Ticket.objects.create(account_id=5, customer_id=5)
    query = Ticket.objects.select_related("account", "customer")
    found = query.get(account__email=email(5), customer__email=email(5))
    assert found == ticket
    assert found.account.email == found.customer.email == email(5)
    emails = Account.objects.filter(pk__lte=3).values("email")
    assert Customer.objects.filter(email__in=emails).count() == 3
    same = Customer.objects.filter(
        models.Exists(Account.objects.filter(email=models.OuterRef("email")))
    )
    assert same.count() == 5000


def test_dumpdata_and_loaddata_carry_plaintext(app: Database, tmp_path: Any) -> None:
    Account.objects.exclude(pk=1).delete()
    fixture = tmp_path / "accounts.json"
    call_command("dumpdata", "django_app.account", output=str(fixture), verbosity=0)
    assert email(1) in fixture.read_text()
    Account.objects.all().delete()
    call_command("loaddata", str(fixture), verbosity=0)
    assert Account.objects.get().email == email(1)

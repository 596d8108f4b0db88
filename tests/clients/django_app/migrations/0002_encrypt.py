"""As `makemigrations` writes it when a model's fields become encrypted ones, and as one
writes it who leaves the model alone."""

from django.db import migrations

from ..fields import EncryptedEmailField, EncryptedTextField


class Migration(migrations.Migration):
    dependencies = [("django_app", "0001_initial")]

    operations = [
        migrations.AlterField(
            "Account", "email", EncryptedEmailField(max_length=254, unique=True)
        ),
        migrations.AlterField("Account", "note", EncryptedTextField(null=True)),
        migrations.RunSQL(
            "SELECT encrypt_column('django_app_customer', 'email');"
            "SELECT encrypt_column('django_app_customer', 'note')",
            "SELECT decrypt_column('django_app_customer', 'email');"
            "SELECT decrypt_column('django_app_customer', 'note')",
        ),
    ]

"""What docs/clients.md has."""

from django.db import models


class EncryptedTextField(models.TextField):
    def db_type(self, connection):
        return "encrypted_text"


class EncryptedEmailField(models.EmailField):
    def db_type(self, connection):
        return "encrypted_text"

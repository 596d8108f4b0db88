from django.db import models

from .fields import EncryptedEmailField, EncryptedTextField


class Account(models.Model):
    """As an application declares encrypted columns."""

    email = EncryptedEmailField(unique=True)
    note = EncryptedTextField(null=True)


class Customer(models.Model):
    """As one declares them that does not know: a migration has encrypted the columns."""

    email = models.EmailField(unique=True)
    note = models.TextField(null=True)


class Ticket(models.Model):
    account = models.ForeignKey(Account, models.CASCADE)
    customer = models.ForeignKey(Customer, models.CASCADE)

"""From the time when the columns were plaintext."""

from django.db import migrations, models

ID = models.BigAutoField(
    auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
)
COLUMNS = [
    ("id", ID),
    ("email", models.EmailField(max_length=254, unique=True)),
    ("note", models.TextField(null=True)),
]


class Migration(migrations.Migration):
    initial = True

    operations = [
        migrations.RunSQL("CREATE EXTENSION IF NOT EXISTS colcrypt"),
        migrations.CreateModel("Account", COLUMNS),
        migrations.CreateModel("Customer", COLUMNS),
        migrations.CreateModel(
            "Ticket",
            [
                ("id", ID),
                ("account", models.ForeignKey("django_app.Account", models.CASCADE)),
                ("customer", models.ForeignKey("django_app.Customer", models.CASCADE)),
            ],
        ),
    ]

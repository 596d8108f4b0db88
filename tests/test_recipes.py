"""docs/operating.md is true: the recipe for age works as it stands, from making the key
to a changed one; the other commands for keys give the server what their programs print;
its SQL runs; its probes tell; and what its metrics and alerts are made of is there."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conftest import MakeCluster
from harness import (
    BIN,
    PORT,
    SUPERUSER,
    Cluster,
    Database,
    PsqlError,
    Setting,
    fetch,
    give_to_server,
    key_id,
    new_key,
    run_as_server,
)
from readme import statements

PAGE = Path(__file__).parent.parent / "docs" / "operating.md"
TEXT = PAGE.read_text()

PRELOAD: dict[str, Setting] = {"shared_preload_libraries": "colcrypt"}
# Where the page has the files of its recipes.
FOLDER = "/etc/colcrypt"
VAULT_TOKEN = "/run/vault/token"

BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
KEY_COMMAND = re.compile(r"^colcrypt\.key_command = '(.*)'$", re.MULTILINE)
# A metric in an expression, and what stands in braces behind it.
METRIC = re.compile(r"\b(colcrypt_\w+)(?:\{(.*?)\})?")


def blocks(language: str) -> list[str]:
    found = [b for b in BLOCK.finditer(TEXT) if b[2] == language]
    assert found, language
    return [textwrap.dedent(b[3]) for b in found]


def marked(marker: str) -> str:
    """The block behind a comment."""
    start = TEXT.index(f"<!-- {marker} -->\n\n```")
    found = BLOCK.search(TEXT, start)
    assert found is not None
    return found[3]


# The recipe for age


def test_the_recipe_for_age_works_as_it_stands(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(start=False)
    folder = age_folder(cluster)

    def ring() -> list[str]:
        command = ["age", "-d", "-i", f"{folder}/identity", f"{folder}/keys.age"]
        return subprocess.check_output(command, text=True).split()

    run_as_server(["sh", "-ec", on(folder, marked("recipe: age: make"))])
    (old,) = ring()
    assert modes(folder) == {"identity": 0o600, "keys.age": 0o600}
    cluster.append_conf(on(folder, marked("recipe: age: configure")))
    cluster.start()
    enabled = f"encryption enabled, 1 key, primary {key_id(old)}, from key_command\n"
    assert enabled in cluster.log()
    cluster.psql("CREATE EXTENSION colcrypt; CREATE TABLE t (secret encrypted_text)")
    with cluster.connect() as session:
        session.execute("INSERT INTO t VALUES ('written first')")
        run_as_server(["sh", "-ec", on(folder, marked("recipe: age: change"))])
        new, *rest = ring()
        assert rest == [old] and new != old
        assert modes(folder) == {"identity": 0o600, "keys.age": 0o600}
        assert primary(cluster) == key_id(old)
        cluster.reload(session)
        session.execute("INSERT INTO t VALUES ('written then')")
        expected = {("written first", key_id(old)), ("written then", key_id(new))}
        assert read(cluster) == expected
    cluster.restart()
    assert read(cluster) == expected
    cluster.psql("CHECKPOINT")
    assert b"written" not in cluster.relation_path("t").read_bytes()
    assert "WARNING" not in cluster.log() and "not reloaded" not in cluster.log()
    for key in (old, new):
        assert key not in cluster.log()


def test_a_change_that_cannot_read_the_old_key_keeps_it(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(start=False)
    folder = age_folder(cluster)
    run_as_server(["sh", "-ec", on(folder, marked("recipe: age: make"))])
    before = (folder / "keys.age").read_bytes()
    other = cluster.dir / "other"
    run_as_server(["age-keygen", "-o", str(other)])
    other.rename(folder / "identity")
    with pytest.raises(PsqlError):
        run_as_server(["sh", "-c", on(folder, marked("recipe: age: change"))])
    assert (folder / "keys.age").read_bytes() == before
    # And a server that needs the key says so.
    cluster.append_conf(on(folder, marked("recipe: age: configure")))
    with pytest.raises(PsqlError):
        cluster.start()
    assert "colcrypt.key_command: it failed with exit status" in cluster.log()
    assert "LOG:  colcrypt: key_command: age: error: " in cluster.log()


def age_folder(cluster: Cluster) -> Path:
    folder = cluster.dir / "age"
    folder.mkdir(mode=0o700)
    give_to_server(folder)
    return folder


def on(folder: Path, text: str) -> str:
    """The text, with its files in this folder."""
    return text.replace(FOLDER, str(folder))


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


def primary(cluster: Cluster) -> str:
    return cluster.psql("SELECT primary_key FROM colcrypt.status()")


def read(cluster: Cluster) -> set[tuple[str, str]]:
    with cluster.connect() as session:
        rows = session.execute(
            "SELECT secret::text, key_id FROM t, colcrypt.inspect(secret)"
        )
        return set(rows.fetchall())


# The other commands for keys

# What stands in for the programs of services: prints the key as they print it.
PROGRAM = """#!/bin/sh
case "$*" in
    "kms decrypt "*" --query Plaintext --output text") base64 -w 0 < {} ;;
    "secretsmanager get-secret-value "*" --query SecretString --output text") cat {} ;;
    "secrets versions access latest --secret="*) cat {} ;;
    "kv get -mount=secret -field=keys colcrypt")
        test "$VAULT_TOKEN" = token && cat {} ;;
    *) echo "not understood: $*" >&2; exit 2 ;;
esac
"""


def test_the_commands_for_keys_reach_the_server_as_they_are_written(
    make_cluster: MakeCluster,
) -> None:
    commands = [c for c in KEY_COMMAND.findall(TEXT) if not c.startswith("age ")]
    programs = ["aws", "aws", "gcloud", "vault", "$CREDENTIALS_DIRECTORY"]
    assert all(any(p in c for c in commands) for p in programs)
    cluster = make_cluster(conf=PRELOAD, ring=new_key(), start=False)
    keys = cluster.write_file("colcrypt.keys", "")
    for program in ("aws", "gcloud", "vault"):
        cluster.write_file(program, PROGRAM.replace("{}", str(keys)), mode=0o755)
    cluster.write_file("token", "token\n")
    cluster.set_env(
        {
            "PATH": f"{cluster.dir}:{os.environ['PATH']}",
            "CREDENTIALS_DIRECTORY": str(cluster.dir),
        }
    )
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    cluster.conf({"colcrypt.key_file": None})
    for command in commands:
        key = new_key()
        keys.write_text(f"{key}\n")
        command = on(cluster.dir, command).replace(VAULT_TOKEN, f"{cluster.dir}/token")
        # As it stands between the quotes of the configuration file.
        cluster.raw_conf = f"colcrypt.key_command = '{command}'\n"
        cluster.conf()
        cluster.reload()
        told = cluster.psql("SELECT last_error FROM colcrypt.status()")
        assert (told, primary(cluster)) == ("", key_id(key)), command


@pytest.mark.parametrize("script", [*blocks("sh"), *KEY_COMMAND.findall(TEXT)])
def test_commands_are_what_a_shell_understands(script: str) -> None:
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


# Names and SQL


@pytest.fixture(scope="module")
def app(base: Path, template: Path) -> Iterator[Database]:
    """A database after all SQL of the page, in its order."""
    cluster = Cluster(base, template, ring=new_key())
    cluster.conf(PRELOAD)
    cluster.start()
    cluster.psql("CREATE DATABASE app")
    app = Database(cluster, "app")
    app.psql(
        "CREATE EXTENSION colcrypt; CREATE TABLE customers (api_token encrypted_text);"
        "INSERT INTO customers SELECT md5(i::text) FROM generate_series(1, 10) i;"
        "CREATE INDEX ON customers (api_token)"
    )
    ran = 0
    with app.connect() as session:
        for block in blocks("sql"):
            for step in statements(block, 0):
                session.execute(step.sql)
                ran += 1
    assert ran > 10
    yield app
    cluster.destroy()


def test_settings_of_the_page_are_there(app: Database) -> None:
    with app.connect(user="support") as session:
        assert fetch(session, "SHOW colcrypt.audit_log") == "access"
    with app.connect(user="exporter") as session:
        assert fetch(session, "SHOW colcrypt.audit_log") == "failures"


def test_every_name_of_the_page_is_there(app: Database) -> None:
    there = app.psql("""
        SELECT name FROM pg_settings WHERE name LIKE 'colcrypt.%'
        UNION SELECT 'colcrypt.' || relname FROM pg_class
        WHERE relnamespace = 'colcrypt'::regnamespace
        UNION SELECT 'colcrypt.' || proname FROM pg_proc
        WHERE pronamespace = 'colcrypt'::regnamespace
        UNION SELECT name FROM pg_settings""").splitlines()
    named = set(re.findall(r"(?<![\w/.$])colcrypt\.\w+", TEXT))
    named |= set(re.findall(r"^([a-z_]+) = ", "".join(blocks("ini")), re.MULTILINE))
    named |= set(re.findall(r"(?<!\.)\b(?:log|debug)_\w+", section("The log")))
    # A file, and the setting that pg_settings does not show.
    named -= {"colcrypt.yaml", "colcrypt.key"}
    assert named <= set(there)


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
    assert found is not None
    return found[1]


# Probes


def test_the_probes_tell_whether_there_is_a_key(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(conf=PRELOAD, ring=new_key())
    documents = [read_yaml(block) for block in blocks("yaml")]
    pod = next(d for d in documents if d.get("kind") == "StatefulSet")
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    shell, option, probe = container["readinessProbe"]["exec"]["command"]
    assert (shell, option) == ("sh", "-c")
    compose = next(d for d in documents if "services" in d)
    how, check = compose["services"]["db"]["healthcheck"]["test"]
    assert how == "CMD-SHELL" and check == probe

    def status() -> int:
        target = {"PGHOST": str(cluster.dir), "PGPORT": str(PORT)}
        path = {"PATH": f"{BIN}:{os.environ['PATH']}"}
        return subprocess.run(
            ["sh", "-c", probe],
            env=os.environ | target | path,
            stderr=subprocess.DEVNULL,
        ).returncode

    assert status() == 0
    cluster.conf({"colcrypt.key_file": None})
    cluster.reload()
    assert status() != 0
    cluster.stop()
    assert status() != 0


# Metrics and alerts


class Metric(NamedTuple):
    type: str
    labels: tuple[str, ...]
    column: str
    query: str


def postgres_exporter() -> dict[str, Metric]:
    metrics = {}
    for prefix, spec in read_yaml(marked("postgres_exporter")).items():
        columns = {
            name: column["usage"]
            for entry in spec["metrics"]
            for name, column in entry.items()
        }
        labels = tuple(name for name, usage in columns.items() if usage == "LABEL")
        for name, usage in columns.items():
            if usage != "LABEL":
                metric = Metric(usage.lower(), labels, name, spec["query"])
                metrics[f"{prefix}_{name}"] = metric
    return metrics


def sql_exporter() -> dict[str, Metric]:
    collector = read_yaml(marked("sql_exporter"))
    queries = {query["query_name"]: query["query"] for query in collector["queries"]}
    metrics = {}
    for spec in collector["metrics"]:
        (column,) = spec["values"]
        query = queries[spec["query_ref"]]
        metric = Metric(spec["type"], tuple(spec["key_labels"]), column, query)
        metrics[spec["metric_name"]] = metric
    return metrics


def test_both_exporters_give_the_same_metrics() -> None:
    assert postgres_exporter() == sql_exporter()
    types = {metric.type for metric in postgres_exporter().values()}
    assert types == {"gauge", "counter"}


def test_the_queries_of_the_exporters_give_their_metrics(app: Database) -> None:
    app.psql("SELECT count(decrypt(api_token)) FROM customers")
    with app.connect(user="exporter") as session:
        for metric in postgres_exporter().values():
            cursor = session.execute(metric.query)
            assert cursor.description is not None
            names = [column.name for column in cursor.description]
            of_query = [
                other.column
                for other in postgres_exporter().values()
                if other.query == metric.query
            ]
            assert sorted(names) == sorted([*metric.labels, *of_query])
            rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
            # What is one metric must differ in its labels.
            labels = [tuple(row[label] for label in metric.labels) for row in rows]
            assert len(labels) == len(set(labels)) > 0
            assert all(isinstance(text, str) for row in labels for text in row)
            assert all(isinstance(row[metric.column], int) for row in rows)
            if metric.type == "counter":
                assert any(row[metric.column] > 0 for row in rows)


def test_alerts_ask_for_metrics_and_labels_that_are_there(app: Database) -> None:
    metrics = postgres_exporter()
    words = {
        "outcome": app.psql("SELECT DISTINCT outcome FROM colcrypt.stat").splitlines(),
        # What no server of a test has is in the reference.
        "source": re.findall(r"`(\w+)`", sources_in_the_reference()),
    }
    (group,) = read_yaml(marked("alerts"))["groups"]
    asked: set[str] = set()
    for rule in group["rules"]:
        assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
        expression = rule["expr"]
        assert expression.count("(") == expression.count(")")
        found = METRIC.findall(expression)
        assert found, rule["alert"]
        labels = {"instance"}.union(*(metrics[name].labels for name, _ in found))
        assert set(re.findall(r"by \((\w+)\)", expression)) <= labels
        for _, matchers in found:
            for label, word in re.findall(r'(\w+)="(.*?)"', matchers):
                assert label in labels and word in words[label], rule["alert"]
        asked |= {name for name, _ in found}
        used = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", used)) <= labels
    assert asked >= {
        "colcrypt_status_enabled",
        "colcrypt_status_failed",
        "colcrypt_stat_calls_total",
    }


def sources_in_the_reference() -> str:
    text = (PAGE.parent / "reference.md").read_text()
    found = re.search(r"^\*\*Sources of the ring\*\*(.*?)\n\n", text, re.M | re.S)
    assert found is not None
    return found[1]


# YAML


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_can_be_read(block: str) -> None:
    assert read_yaml(block)


def read_yaml(text: str) -> Any:
    """Reads the part of YAML that the page uses, all scalars as text; stops at
    anything else."""
    lines = Lines([line for line in text.splitlines() if line.strip()])
    value = lines.block(0)
    assert lines.at == len(lines.lines), lines.lines[lines.at]
    return value


class Lines:
    ENTRY = re.compile(r"(\w+):(?: (.+))?")

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.at = 0

    def indent(self) -> int:
        """That of the next line; -1 at the end."""
        if self.at == len(self.lines):
            return -1
        line = self.lines[self.at]
        assert "\t" not in line and line == line.rstrip(), line
        return len(line) - len(line.lstrip())

    def rest(self, indent: int) -> str:
        return self.lines[self.at][indent:]

    def block(self, indent: int) -> Any:
        is_list = self.rest(indent).startswith("- ")
        value = self.list(indent) if is_list else self.mapping(indent)
        assert self.indent() < indent, self.lines[self.at]
        return value

    def list(self, indent: int) -> list[Any]:
        items: list[Any] = []
        while self.indent() == indent and self.rest(indent).startswith("- "):
            item = self.rest(indent + 2)
            if self.ENTRY.fullmatch(item):
                self.lines[self.at] = " " * (indent + 2) + item
                items.append(self.block(indent + 2))
            else:
                self.at += 1
                items.append(scalar(item))
        return items

    def mapping(self, indent: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        while self.indent() == indent:
            entry = self.ENTRY.fullmatch(self.rest(indent))
            assert entry is not None and entry[1] not in entries, self.rest(0)
            self.at += 1
            entries[entry[1]] = self.value(entry[2], indent)
        return entries

    def value(self, text: str | None, indent: int) -> Any:
        if text == "|":
            lines = []
            while self.indent() > indent:
                lines.append(self.rest(0))
                self.at += 1
            assert lines
            return textwrap.dedent("\n".join(lines) + "\n")
        if text is not None:
            return scalar(text)
        return self.block(self.indent()) if self.indent() > indent else None


def scalar(text: str) -> Any:
    if text.startswith("["):
        items = re.compile(r'\[(?:("[^"]*"|[\w./=-]+)(?:, |(?=\])))*\]')
        assert items.fullmatch(text), text
        return [
            quoted or plain
            for quoted, plain in re.findall(r'"([^"]*)"|([\w./=-]+)', text[1:-1])
        ]
    # What would begin something else, or end the text early.
    assert not re.match(r"[-?:,\[\]{}#&*!|>'\"%@`](?!\w)|[&*!'\"{\[]", text), text
    assert ": " not in text and " #" not in text, text
    return text

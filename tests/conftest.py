"""Fixtures.

db            a fresh database with the extension, on a server that all tests share
server        that server: one random key in a key file
cluster       a started server of the test's own, with a random key and the extension
make_cluster  makes such servers: make_cluster(ring="…", conf={…}, env={…}); with
              extension=False or start=False it stops short of that
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from harness import (
    Cluster,
    Database,
    Setting,
    give_to_server,
    make_template,
    new_key,
    postmasters,
)

MakeCluster = Callable[..., Cluster]

database_numbers = itertools.count(1)


def pytest_configure() -> None:
    # So that a terminated run, too, tears down its fixtures and with them its servers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Shows the end of the servers' logs with a failed test."""
    report = yield
    if report.failed:
        for cluster in Cluster.live:
            lines = cluster.log().splitlines()[-50:]
            report.sections.append((f"log of {cluster.dir.name}", "\n".join(lines)))
    return report


@pytest.fixture(scope="session")
def base() -> Iterator[Path]:
    """The folder that holds all servers of this run. A socket's path must be short."""
    base = Path(tempfile.mkdtemp(prefix="colcrypt.", dir="/tmp"))
    give_to_server(base)
    yield base
    left = postmasters(base)
    for pid in left:
        os.kill(pid, signal.SIGQUIT)
    shutil.rmtree(base)
    assert not left, "servers were still running at the end of the tests"


@pytest.fixture(scope="session")
def template(base: Path) -> Path:
    return make_template(base)


@pytest.fixture(scope="session")
def server(base: Path, template: Path) -> Iterator[Cluster]:
    server = Cluster(base, template, ring=new_key())
    server.start()
    server.psql("CREATE DATABASE with_colcrypt")
    for db in ("postgres", "with_colcrypt"):
        server.psql("CREATE EXTENSION colcrypt", db=db)
    yield server
    server.destroy()


@pytest.fixture
def db(server: Cluster) -> Iterator[Database]:
    name = f"test_{next(database_numbers)}"
    server.psql(f"CREATE DATABASE {name} TEMPLATE with_colcrypt")
    yield Database(server, name)
    server.psql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def make_cluster(base: Path, template: Path) -> Iterator[MakeCluster]:
    made: list[Cluster] = []

    def make(
        *,
        ring: str | None = None,
        conf: Mapping[str, Setting] | None = None,
        env: Mapping[str, str] | None = None,
        extension: bool = True,
        start: bool = True,
    ) -> Cluster:
        cluster = Cluster(base, template, ring=ring)
        made.append(cluster)
        cluster.conf(conf)
        cluster.set_env(env or {})
        if start:
            cluster.start()
            if extension:
                cluster.psql("CREATE EXTENSION colcrypt")
        return cluster

    yield make
    for cluster in reversed(made):
        cluster.destroy()


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Cluster:
    return make_cluster(ring=new_key())

"""ALTER EXTENSION colcrypt UPDATE: from each released version, whose install script is kept in
sql/install, to this one, with data in it.

After the update the catalog is what CREATE EXTENSION makes. Where no version is released
yet, a made-up later one shows that these tests find what is wrong.

The servers run from a copy of PostgreSQL's programs, which look for extensions beside
themselves: nothing is written into PostgreSQL's own folders.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import (
    Cluster,
    PsqlError,
    give_to_server,
    make_template,
    new_key,
    pg_config,
)
from readme import ROOT

INSTALL = ROOT / "sql" / "install"
FREEZE = ROOT / "scripts" / "freeze.sh"
SCRIPT = re.compile(r"colcrypt--(\d+\.\d+\.\d+)\.sql")

FILL = """
    SELECT colcrypt.create_key('pii');
    CREATE TABLE people (
        id int PRIMARY KEY, name encrypted_text, ssn encrypted_text(pii),
        doc encrypted_jsonb, photo encrypted_bytea);
    INSERT INTO people
    SELECT i, 'n' || i, 's' || i % 10, jsonb_build_object('n', i), decode('0' || i % 10, 'hex')
    FROM generate_series(1, 100) AS i;
    CREATE UNIQUE INDEX people_name ON people (name);
    CREATE INDEX people_ssn ON people USING hash (ssn);
    CREATE VIEW names AS SELECT name FROM people WHERE ssn = 's1';
"""
# With indexes, without them, and anew.
READ = """
    SET enable_seqscan = off;
    SELECT id FROM people WHERE name = 'n42';
    SELECT count(*) FROM people WHERE ssn = 's7';
    SELECT count(*) FROM names;
    SELECT sum((doc ->> 'n')::int), count(DISTINCT photo) FROM people;
    INSERT INTO people VALUES (0, 'new', 's0', '{"n": 0}', '\\x00');
    SELECT decrypt(name) FROM people WHERE name = 'new';
    SELECT sum(failed) FROM colcrypt.verify_column('people', 'name');
"""
DONE = ["42", "10", "10", "5050|10", "new", "0"]


def current() -> str:
    cargo = (ROOT / "Cargo.toml").read_text().split("[workspace.package]")[1]
    return re.search(r'^version = "(.*)"$', cargo, re.MULTILINE)[1]


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def frozen() -> list[str]:
    return [SCRIPT.fullmatch(file.name)[1] for file in INSTALL.glob("*")]


OLDER = sorted((v for v in frozen() if number(v) < number(current())), key=number)


class Copy:
    """PostgreSQL's programs in a folder of their own, with a folder of extensions that
    tests write into."""

    def __init__(self, base: Path) -> None:
        bin, share = Path(pg_config("--bindir")), Path(pg_config("--sharedir"))
        lib = Path(pg_config("--pkglibdir"))
        # The programs find the others by the way that leads from one to the other.
        for folder in (bin, share, lib):
            self.at(base, folder).parent.mkdir(parents=True, exist_ok=True)
        self.bin = self.at(base, bin)
        shutil.copytree(bin, self.bin)
        self.at(base, lib).symlink_to(lib)
        self.extensions = self.at(base, share) / "extension"
        self.extensions.mkdir(parents=True)
        for file in share.iterdir():
            if file.name != "extension":
                (self.at(base, share) / file.name).symlink_to(file)
        for file in (share / "extension").iterdir():
            if file.name.startswith("colcrypt"):
                shutil.copy(file, self.extensions)
            else:
                (self.extensions / file.name).symlink_to(file)
        give_to_server(base)

    @staticmethod
    def at(base: Path, folder: Path) -> Path:
        return base / folder.relative_to("/")

    def script(self, name: str) -> Path:
        return self.extensions / f"colcrypt--{name}.sql"

    def set_default(self, version: str) -> None:
        control = self.extensions / "colcrypt.control"
        line = f"default_version = '{version}'"
        control.write_text(re.sub("default_version = .*", line, control.read_text()))


@pytest.fixture(scope="module")
def programs(base: Path) -> Path:
    """What all copies are made of, and where the last test's is."""
    return base / "copy"


@pytest.fixture
def copy(programs: Path) -> Iterator[Copy]:
    yield Copy(programs)
    shutil.rmtree(programs)


@pytest.fixture
def cluster(base: Path, copy: Copy) -> Iterator[Cluster]:
    """A server of that copy, without the extension."""
    cluster = Cluster(
        base, make_template(base, bin=copy.bin), ring=new_key(), bin=copy.bin
    )
    cluster.start()
    yield cluster
    cluster.destroy()


def catalog(cluster: Cluster, db: str) -> list[str]:
    """What the extension consists of, as pg_upgrade would make it anew: each object with
    its definition, comment and rights."""
    dump = cluster.run("pg_dump", "--binary-upgrade", "--schema-only", db=db)
    parts = re.split(r"^--\n-- Name: ", dump, flags=re.MULTILINE)[1:]
    # What differs from one dump to another: numbers of objects, ages of rows, and the
    # end's random word.
    noise = (
        r"^(?:--.*|SELECT pg_catalog\.binary_upgrade_set_.*|SET relfrozenxid.*|WHERE oid = .*"
        r"|\\unrestrict .*)\n*"
    )
    parts = [re.sub(noise, "", part, flags=re.MULTILINE) for part in parts]
    parts = [
        part for part in parts if "binary_upgrade_create_empty_extension" not in part
    ]
    more = """
        SELECT pg_describe_object(classid, objid, objsubid) FROM pg_depend
        WHERE deptype = 'e' AND refobjid = (
            SELECT oid FROM pg_extension WHERE extname = 'colcrypt');
        SELECT 'dumped', config::regclass, condition
        FROM pg_extension, unnest(extconfig, extcondition) AS c (config, condition)
        WHERE extname = 'colcrypt'"""
    return sorted(
        part.strip() for part in [*parts, *cluster.psql(more, db=db).splitlines()]
    )


def update(cluster: Cluster, old: str, new: str) -> None:
    """Installs the old version, fills it, updates it to the new, reads it, and compares it
    with the new version as CREATE EXTENSION makes it."""
    cluster.psql("CREATE DATABASE updated; CREATE DATABASE fresh")
    cluster.psql(f"CREATE EXTENSION colcrypt VERSION '{old}'", db="updated")
    cluster.psql(FILL, db="updated")
    cluster.psql("ALTER EXTENSION colcrypt UPDATE", db="updated")
    versions = "SELECT extversion FROM pg_extension WHERE extname = 'colcrypt'"
    assert cluster.psql(versions, db="updated") == new
    assert cluster.psql(READ, db="updated").splitlines() == DONE
    cluster.psql("DROP TABLE people CASCADE", db="updated")
    cluster.psql(f"CREATE EXTENSION colcrypt VERSION '{new}'", db="fresh")
    updated, fresh = catalog(cluster, "updated"), catalog(cluster, "fresh")
    assert len(fresh) > 300
    assert list((Counter(updated) - Counter(fresh)).elements()) == []
    assert list((Counter(fresh) - Counter(updated)).elements()) == []


@pytest.mark.parametrize("old", OLDER)
def test_a_released_version_is_updated(copy: Copy, cluster: Cluster, old: str) -> None:
    shutil.copy(INSTALL / f"colcrypt--{old}.sql", copy.script(old))
    update(cluster, old, current())


def test_what_is_released_under_this_version_is_what_is_built() -> None:
    """Or a version is out, and the next has to have another number."""
    file = INSTALL / f"colcrypt--{current()}.sql"
    if not file.exists():
        pytest.skip(f"{current()} is not released")
    installed = Path(pg_config("--sharedir")) / "extension" / file.name
    assert statements(file) == statements(installed)


def statements(file: Path) -> list[str]:
    lines = file.read_text().splitlines()
    return [line for line in lines if not line.startswith("-- src/")]


def test_only_install_scripts_of_released_versions_are_kept() -> None:
    names = [file.name for file in INSTALL.glob("*")]
    assert all(SCRIPT.fullmatch(name) for name in names)
    assert all(number(version) <= number(current()) for version in frozen())


# A later version is made up of this one and of some more.

FUTURE = "99.0.0"
MORE = """
CREATE FUNCTION colcrypt.more(a int DEFAULT 1) RETURNS int LANGUAGE sql STABLE
    PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS 'SELECT a';
REVOKE EXECUTE ON FUNCTION colcrypt.more(int) FROM PUBLIC;
COMMENT ON FUNCTION colcrypt.more(int) IS 'more';
CREATE VIEW colcrypt.more AS SELECT 1 AS one;
CREATE TABLE colcrypt.more_of_it (n int);
SELECT pg_extension_config_dump('colcrypt.more_of_it', 'WHERE n > 0');
"""


def make_up(copy: Copy, script: str) -> None:
    built = copy.script(current()).read_text()
    copy.script(FUTURE).write_text(built + MORE)
    copy.script(f"{current()}--{FUTURE}").write_text(script)
    copy.set_default(FUTURE)


def test_a_made_up_version_is_updated(copy: Copy, cluster: Cluster) -> None:
    make_up(copy, MORE)
    update(cluster, current(), FUTURE)
    installed = Path(pg_config("--sharedir")) / "extension"
    assert not list(installed.glob(f"*{FUTURE}*"))


@pytest.mark.parametrize(
    "change",
    [
        lambda script: script.replace("STABLE", "VOLATILE"),
        lambda script: script.replace("SELECT a", "SELECT 2 * a"),
        lambda script: script.replace("DEFAULT 1", "DEFAULT 2"),
        lambda script: re.sub("REVOKE.*", "", script),
        lambda script: re.sub("COMMENT.*", "", script),
        lambda script: script.replace("1 AS one", "2 AS one"),
        lambda script: script.replace("n > 0", "n > 1"),
        lambda script: script + "REVOKE USAGE ON SCHEMA colcrypt FROM PUBLIC;",
        lambda script: script + "DROP VIEW colcrypt.more;",
        lambda script: script + "ALTER EXTENSION colcrypt DROP VIEW colcrypt.more;",
    ],
    ids=[
        "volatility",
        "body",
        "default",
        "right",
        "comment",
        "view",
        "dumped",
        "schema",
    ]
    + ["object", "member"],
)
def test_an_update_that_makes_something_else_is_found(
    copy: Copy, cluster: Cluster, change: Callable[[str], str]
) -> None:
    make_up(copy, change(MORE))
    assert change(MORE) != MORE
    with pytest.raises(AssertionError):
        update(cluster, current(), FUTURE)


def test_a_version_without_a_way_to_this_one_is_found(
    copy: Copy, cluster: Cluster
) -> None:
    make_up(copy, MORE)
    copy.script(f"{current()}--{FUTURE}").unlink()
    with pytest.raises(PsqlError, match="has no update path"):
        update(cluster, current(), FUTURE)


# scripts/freeze.sh


def freeze(built: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([FREEZE, built, folder], capture_output=True, text=True)


def test_freezing_keeps_the_built_script_and_never_changes_it(tmp_path: Path) -> None:
    built, folder = tmp_path / "colcrypt--1.2.3.sql", tmp_path / "install"
    built.write_text("-- src/lib.rs:46\nSELECT 1;\n")
    assert freeze(built, folder).returncode == 0
    kept = folder / built.name
    assert kept.read_text() == built.read_text()
    # Where in the source it stands does not matter.
    built.write_text("-- src/lib.rs:47\nSELECT 1;\n")
    assert freeze(built, folder).returncode == 0
    built.write_text("SELECT 2;\n")
    refused = freeze(built, folder)
    assert refused.returncode != 0 and "raise the version" in refused.stderr
    assert "SELECT 1;" in kept.read_text()


def test_only_an_install_script_is_frozen(tmp_path: Path) -> None:
    for name in ("colcrypt--1.2.3--1.2.4.sql", "colcrypt.sql", "colcrypt--.sql"):
        (tmp_path / name).write_text("SELECT 1;\n")
        assert freeze(tmp_path / name, tmp_path / "install").returncode != 0
    assert not (tmp_path / "install").exists()

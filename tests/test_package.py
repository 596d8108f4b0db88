"""What is given away: META.json, the .deb that scripts/package.sh makes, docker/Dockerfile.

The package itself is tried by `make package-check`.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness import MAJOR, PG_CONFIG, pg_config
from readme import ROOT

SCHEMA = ROOT / "tests" / "data" / "pgxn_meta.schema.json"
SCRIPT = ROOT / "scripts" / "package.sh"
NAME = f"postgresql-{MAJOR}-colcrypt"
DOC = f"usr/share/doc/{NAME}"
LIBRARY = f"usr/lib/postgresql/{MAJOR}/lib/colcrypt.so"
EXTENSION = f"usr/share/postgresql/{MAJOR}/extension"


def version() -> str:
    cargo = (ROOT / "Cargo.toml").read_text()
    section = cargo.split("[workspace.package]")[1]
    return re.search(r'^version = "(.*)"$', section, re.MULTILINE)[1]


def meta() -> dict[str, Any]:
    return json.loads((ROOT / "META.json").read_text())


def violations(document: dict[str, Any]) -> list[str]:
    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.Draft202012Validator(schema)
    return [error.json_path for error in validator.iter_errors(document)]


def test_meta_json_is_valid() -> None:
    assert violations(meta()) == []


@pytest.mark.parametrize(
    "broken, where",
    [
        ({"version": "0.1"}, "$.version"),
        ({"name": "col crypt"}, "$.name"),
        ({"license": "ours"}, "$.license"),
        ({"provides": {"colcrypt": {"version": "0.1.0"}}}, "$.provides.colcrypt"),
        ({"meta-spec": {"version": "2.0.0"}}, "$['meta-spec'].version"),
        ({"abstract": None}, "$.abstract"),
        ({"unheard_of": 1}, "$"),
    ],
)
def test_what_is_not_valid_is_found(broken: dict[str, Any], where: str) -> None:
    assert where in violations(meta() | broken)


def test_each_required_member_is_missed() -> None:
    required = ["name", "version", "abstract", "maintainer", "license", "provides"]
    for name in [*required, "meta-spec"]:
        without = {k: v for k, v in meta().items() if k != name}
        assert violations(without) != [], name


def test_meta_json_names_this_version_and_files_that_are_there() -> None:
    (extension,) = meta()["provides"].values()
    assert meta()["version"] == extension["version"] == version()
    for file in ("file", "docfile"):
        assert (ROOT / extension[file]).is_file()


def test_the_dockerfile_names_the_package_that_is_made() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    assert "NOT RUN" in text
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    (copied,) = re.findall(r"^COPY (\S+\.deb) ", text, re.MULTILINE)
    for name, value in defaults.items():
        copied = copied.replace(f"${{{name}}}", value)
    assert copied == f"postgresql-15-colcrypt_{version()}-1_amd64.deb"


# A build takes minutes: here another library stands in for the one that it makes.


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What `cargo pgrx package` lays out, with a library of PostgreSQL's in it."""
    tree = tmp_path / "tree"
    library = Path(pg_config("--pkglibdir")) / "plpgsql.so"
    lay(tree, library, pg_config("--pkglibdir"), "colcrypt.so")
    folder = pg_config("--sharedir") + "/extension"
    lay(tree, ROOT / "colcrypt.control", folder, "colcrypt.control")
    script = tmp_path / "script"
    script.write_text("-- CREATE EXTENSION runs this.\n")
    lay(tree, script, folder, f"colcrypt--{version()}.sql")
    return tree


def lay(tree: Path, file: Path, folder: str, name: str) -> None:
    target = tree / folder.lstrip("/")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target / name)


def package(tree: Path, output: Path, **env: str) -> Path:
    env |= {"PG_CONFIG": PG_CONFIG}
    subprocess.run([SCRIPT, tree, output], check=True, env=os.environ | env)
    (deb,) = output.glob("*.deb")
    return deb


def contents(deb: Path) -> tarfile.TarFile:
    files = subprocess.check_output(["dpkg-deb", "--fsys-tarfile", deb])
    return tarfile.open(fileobj=io.BytesIO(files))


def field(deb: Path, name: str) -> str:
    return subprocess.check_output(["dpkg-deb", "-f", deb, name], text=True).strip()


def expected_files() -> set[str]:
    docs = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    docs |= {"README.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "copyright"}
    docs |= {"changelog.gz", "changelog.Debian.gz", "third-party-licences.gz"}
    sql = {f"{EXTENSION}/colcrypt--{version()}.sql", f"{EXTENSION}/colcrypt.control"}
    overrides = f"usr/share/lintian/overrides/{NAME}"
    return {f"{DOC}/{name}" for name in docs} | sql | {LIBRARY, overrides}


def check(deb: Path) -> None:
    """That a package has the files it is to have, as they are to be."""
    architecture = subprocess.check_output(["dpkg", "--print-architecture"], text=True)
    assert deb.name == f"{NAME}_{version()}-1_{architecture.strip()}.deb"
    assert field(deb, "Package") == NAME
    assert field(deb, "Version") == f"{version()}-1"
    depends = field(deb, "Depends").split(", ")
    assert depends[0] == f"postgresql-{MAJOR}"
    assert any(re.fullmatch(r"libc6 \(>= 2[.0-9]+\)", need) for need in depends)
    with contents(deb) as tar:
        there = {m.name.removeprefix("./"): m for m in tar if not m.isdir()}
        assert set(there) == expected_files()
        for member in tar:
            assert (member.uid, member.gid) == (0, 0)
            assert member.mode & 0o022 == 0 or member.issym()
        licences = gzip.decompress(
            tar.extractfile(there[f"{DOC}/third-party-licences.gz"]).read()
        ).decode()
        for crate in ("aes-gcm", "fernet", "pgrx", "zeroize"):
            assert re.search(rf"^{crate} \d", licences, re.MULTILINE), crate
        assert "pgrx-tests" not in licences
        copyright = tar.extractfile(there[f"{DOC}/copyright"]).read().decode()
    for line in (ROOT / "LICENSE").read_text().splitlines()[4:]:
        assert f" {line or '.'}\n" in copyright


def test_a_package_has_what_it_is_to_have(tree: Path, tmp_path: Path) -> None:
    check(package(tree, tmp_path / "out"))
    (archive,) = (tmp_path / "out").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        there = {f"/{name.removeprefix('./')}" for name in tar.getnames()}
    assert pg_config("--pkglibdir") + "/colcrypt.so" in there


def test_the_same_build_gives_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    env = {"SOURCE_DATE_EPOCH": "1700000000"}
    first = package(tree, tmp_path / "first", **env)
    for path in tree.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(path.stat().st_mode & 0o700)
    second = package(tree, tmp_path / "second", **env, TZ="Asia/Tokyo")
    for file in first.parent.iterdir():
        assert file.read_bytes() == (second.parent / file.name).read_bytes()
    with contents(first) as tar:
        assert max(member.mtime for member in tar) == 1_700_000_000


def test_a_build_for_newer_cpus_is_refused(tree: Path, tmp_path: Path) -> None:
    with tree_library(tree).open("ab") as library:
        # What src/cpu.c has for such a build.
        library.write(b"\0colcrypt was built for a newer CPU: this one lacks %s\0")
    done = subprocess.run(
        [SCRIPT, tree, tmp_path / "out"],
        env=os.environ | {"PG_CONFIG": PG_CONFIG},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode != 0
    assert "build with PORTABLE=1" in done.stderr
    source = (ROOT / "src" / "cpu.c").read_text()
    assert "was built for a newer CPU" in source


def tree_library(tree: Path) -> Path:
    return tree / pg_config("--pkglibdir").lstrip("/") / "colcrypt.so"


def test_the_package_that_has_been_built() -> None:
    debs = list((ROOT / "target" / "package").glob(f"{NAME}_{version()}-1_*.deb"))
    if not debs:
        pytest.skip("none has been built: make package")
    (deb,) = debs
    sources = [
        ROOT / name for name in ("README.md", "CHANGELOG.md", "docs", "src", "sql")
    ]
    files = [file for path in sources for file in [path, *path.rglob("*")]]
    if max(file.stat().st_mtime for file in files) > deb.stat().st_mtime:
        pytest.skip("it is older than what it is made of: make package")
    check(deb)
    with contents(deb) as tar:
        script = tar.extractfile(f"./{EXTENSION}/colcrypt--{version()}.sql").read()
        library = tar.extractfile(f"./{LIBRARY}").read()
    assert b"encrypted_text" in script
    assert b"was built for a newer CPU" not in library
    for folder in (str(ROOT), str(Path.home() / ".cargo")):
        assert folder.encode() not in library

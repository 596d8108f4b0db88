#!/usr/bin/env python3
"""Prints which crates a build of colcrypt holds, with their licences, for the package.

    scripts/third_party.py pg15
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEAD = """\
colcrypt.so holds code of Rust's standard library (MIT or Apache-2.0) and of these crates,
unchanged. The source of each is the crate of that name and version in Rust's package
registry. The texts of their licences follow.
"""
NAMES = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT", "UNLICENSE")

Package = dict[str, Any]


def main() -> None:
    packages = in_the_library(sys.argv[1])
    print(HEAD)
    for package in packages:
        where = f" ({package['repository']})" if package["repository"] else ""
        print(f"{title(package)}: {package['license'] or 'see below'}{where}")
    # Many have the same text.
    texts: dict[str, list[str]] = {}
    for package in packages:
        for text in licences(package):
            texts.setdefault(text, []).append(title(package))
    for text, titles in texts.items():
        print(f"\n{'=' * 78}\n{', '.join(titles)}\n{'=' * 78}\n\n{text}")


def in_the_library(feature: str) -> list[Package]:
    """What colcrypt depends on, but for tests, builds and macros, in order of name."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    command += ["--no-default-features", "--features", feature]
    command += ["--filter-platform", host()]
    told = json.loads(subprocess.check_output(command))
    packages = {package["id"]: package for package in told["packages"]}
    needs = {node["id"]: node["deps"] for node in told["resolve"]["nodes"]}
    found, ahead = set(), [told["resolve"]["root"]]
    while ahead:
        package = ahead.pop()
        if package in found or is_macro(packages[package]):
            continue
        found.add(package)
        for need in needs[package]:
            if any(kind["kind"] is None for kind in need["dep_kinds"]):
                ahead.append(need["pkg"])
    # Without a source it is colcrypt's own.
    theirs = [packages[id] for id in found if packages[id]["source"]]
    return sorted(theirs, key=lambda package: (package["name"], package["version"]))


def host() -> str:
    told = subprocess.check_output(["rustc", "-vV"], text=True)
    return next(line[6:] for line in told.splitlines() if line.startswith("host: "))


def is_macro(package: Package) -> bool:
    return any("proc-macro" in target["kind"] for target in package["targets"])


def title(package: Package) -> str:
    return f"{package['name']} {package['version']}"


def licences(package: Package) -> Iterator[str]:
    folder = Path(package["manifest_path"]).parent
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name.upper().startswith(NAMES):
            yield file.read_text(errors="replace").strip()


if __name__ == "__main__":
    main()

"""A CPU that lacks what the build needs gets an error message, not SIGILL."""

from __future__ import annotations

import shutil
import subprocess

from harness import BIN, Cluster, server_ids


def load_on(cpu: str, cluster: Cluster) -> str:
    """What a single-user server on an emulated CPU says when it loads the library."""
    emulator = shutil.which("qemu-x86_64")
    assert emulator is not None, "package qemu-user is missing: run make setup"
    cluster.stop()
    done = subprocess.run(
        [emulator, "-cpu", cpu, str(BIN / "postgres"), "--single"]
        + ["-D", str(cluster.datadir), "postgres"],
        input="LOAD 'colcrypt'\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        text=True,
        timeout=300,
        **server_ids(),
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_an_old_cpu_gets_an_error_that_names_what_it_lacks(cluster: Cluster) -> None:
    output = load_on("Westmere", cluster)
    assert "ERROR:  colcrypt was built for a newer CPU: this one lacks fma," in output
    assert "avx2" in output
    # It has AES-NI and PCLMULQDQ.
    assert "aes" not in output and "pclmulqdq" not in output
    assert "make install PORTABLE=1" in output


def test_a_cpu_that_has_everything_loads_it(cluster: Cluster) -> None:
    output = load_on("max", cluster)
    assert "stand-alone backend" in output
    assert "ERROR" not in output

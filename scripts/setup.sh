#!/usr/bin/env bash
# Installs what building, testing and the demo need: Debian packages, cargo-pgrx, a
# Python environment in target/venv, and Node packages in target/clients/node. Installs
# only what is missing, says what it does, and is quiet when there is nothing to do.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

PG_CONFIG=$(find_pg_config)
PGRX_VERSION=$(sed -n 's/^pgrx = "=\(.*\)"$/\1/p' Cargo.toml)
RUST_VERSION=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
VENV=target/venv
NODE=target/clients/node
PYTHON=${PYTHON:-python3}

main() {
    check_rust
    install_wanted
    check_postgres
    install_cargo_pgrx
    make_venv
    install_node_packages
}

check_rust() {
    local found
    found=$(rustc --version 2>/dev/null | cut -d ' ' -f 2) || true
    if ! command -v cargo >/dev/null || ! at_least "$RUST_VERSION" "$found"; then
        die "Rust >= $RUST_VERSION is needed (found: ${found:-none}); install it with rustup"
    fi
}

install_wanted() {
    local wanted
    # bindgen (in pgrx) reads PostgreSQL's headers with libclang. pgrx-tests starts
    # its server through sudo, as root does, too. qemu-user plays an old CPU; gdb takes
    # core dumps; age decrypts a key file.
    wanted=(gcc libc6-dev make git pkg-config clang libclang-dev sudo qemu-user gdb age)
    if [ "$PG_CONFIG" = "$DEBIAN_PG_CONFIG" ]; then
        # On Debian the contrib modules are part of postgresql-15.
        wanted+=(postgresql-15 postgresql-server-dev-15)
    fi
    has_cargo_pgrx || wanted+=(libssl-dev)
    # Clients for tests/clients.
    wanted+=(libpostgresql-jdbc-java pgbouncer)
    command -v javac >/dev/null || wanted+=(default-jdk-headless)
    command -v npm >/dev/null || wanted+=(nodejs npm)
    if ! can_make_venv "$PYTHON"; then
        PYTHON=/usr/bin/python3
        can_make_venv "$PYTHON" || wanted+=(python3-venv)
    fi

    install_packages "${wanted[@]}"
}

check_postgres() {
    local major regress
    [ -x "$PG_CONFIG" ] || die "no pg_config at $PG_CONFIG (set PG_CONFIG)"
    major=$(pg_major "$PG_CONFIG")
    grep -q "^pg$major = " Cargo.toml || die "PostgreSQL $major ($PG_CONFIG) is not supported"
    regress=$(dirname "$("$PG_CONFIG" --pgxs)")/../test/regress/pg_regress
    if [ ! -f "$("$PG_CONFIG" --includedir-server)/postgres.h" ] || [ ! -x "$regress" ]; then
        die "$PG_CONFIG comes without the server's headers and pg_regress"
    fi
}

install_cargo_pgrx() {
    if ! has_cargo_pgrx; then
        say "setup: installing cargo-pgrx $PGRX_VERSION (some minutes)"
        # From /, so that neither .cargo/config.toml nor target/ takes part.
        (cd / && env -u CARGO_TARGET_DIR -u RUSTFLAGS \
            cargo install --quiet --locked cargo-pgrx --version "$PGRX_VERSION")
    fi
}

make_venv() {
    if [ -x "$VENV/bin/python" ] && cmp -s tests/requirements.txt "$VENV/requirements.txt"; then
        return
    fi
    say "setup: making the Python environment $VENV"
    rm -rf "$VENV"
    "$PYTHON" -m venv "$VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        -r tests/requirements.txt
    # Last, as the mark that all of it is there.
    cp tests/requirements.txt "$VENV/requirements.txt"
}

install_node_packages() {
    local file same=1
    for file in package.json package-lock.json; do
        cmp -s "tests/clients/node/$file" "$NODE/$file" || same=0
    done
    [ $same -eq 0 ] || [ ! -d "$NODE/node_modules" ] || return 0
    say "setup: installing Node packages into $NODE"
    rm -rf "$NODE"
    mkdir -p "$NODE"
    cp tests/clients/node/package.json tests/clients/node/package-lock.json "$NODE"
    if ! npm ci --prefix "$NODE" --ignore-scripts --silent; then
        rm -rf "$NODE"
        die "npm ci failed"
    fi
}

has_cargo_pgrx() {
    [ "$(cargo pgrx --version 2>/dev/null)" = "cargo-pgrx $PGRX_VERSION" ]
}

can_make_venv() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

# at_least WANTED FOUND, for version numbers.
at_least() {
    [ -n "$2" ] && [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

main

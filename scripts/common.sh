# shellcheck shell=bash
# Sourced by the other scripts: messages, root rights, and which PostgreSQL.

# What scripts/setup.sh installs. Others are chosen with PG_CONFIG=/path/to/pg_config.
DEBIAN_PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config
# Where scripts/postgres.sh builds others.
# shellcheck disable=SC2034
BUILT_POSTGRES=target/postgres

# shellcheck disable=SC2034
DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

say() {
    printf '%s\n' "$*"
}

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Runs a command as root: directly, or through sudo.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root rights, and there is no sudo: $*"
    fi
}

# The pg_config to use: $PG_CONFIG, else Debian's, else the one in PATH. The last
# counts only if it comes with the server's headers (libpq-dev has a pg_config, too).
find_pg_config() {
    local in_path
    if [ -n "${PG_CONFIG:-}" ]; then
        printf '%s\n' "$PG_CONFIG"
    elif [ ! -x "$DEBIAN_PG_CONFIG" ] && in_path=$(command -v pg_config) \
        && [ -f "$("$in_path" --includedir-server)/postgres.h" ]; then
        printf '%s\n' "$in_path"
    else
        printf '%s\n' "$DEBIAN_PG_CONFIG"
    fi
}

# The major version of a pg_config: "PostgreSQL 15.20 (Debian …)" is 15.
pg_major() {
    "$1" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/'
}

# install_packages PACKAGE…: installs those Debian packages that are missing, and says
# which.
install_packages() {
    local missing=() package
    for package; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0

    if ! command -v apt-get >/dev/null; then
        die "not a Debian system; install what these Debian packages hold: ${missing[*]}"
    fi
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
        die "neither root nor sudo; have these packages installed: ${missing[*]}"
    fi
    say "installing packages: ${missing[*]}"
    as_root apt-get -qq update
    # Debian may create and start a cluster "main" now, and start PgBouncer. Neither is
    # used here.
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}

is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# The mirror that the system itself has its packages from; nothing if it is not Debian.
debian_mirror() {
    local release
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' \
        'Component: main' "Release: $release" 2>/dev/null | head -n 1
}

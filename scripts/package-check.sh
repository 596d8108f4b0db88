#!/usr/bin/env bash
# Tries the package that `make package` has made where nothing of this machine helps it: in
# a new Debian of its own in target/package-check,
#
# * installs it with apt, and so what it depends on,
# * starts a private server, as the user postgres, on a Unix socket only,
# * creates the extension and runs the SQL of README.md, checking what it gives,
# * takes the package away again, and looks for what it has left.
#
# It runs in a process and mount namespace of its own: when it ends, however it ends, no
# process and no mount is left.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

PG_CONFIG=$(find_pg_config)
MAJOR=$(pg_major "$PG_CONFIG")
NAME=postgresql-$MAJOR-colcrypt
CHECK=$PWD/target/package-check
ROOT=$CHECK/root
PYTHON=target/venv/bin/python
# In the new Debian.
BIN=/usr/lib/postgresql/$MAJOR/bin
SERVER=/srv/colcrypt

main() {
    local package
    package=$(newest_package)
    [ -x "$PYTHON" ] || die "no $PYTHON: run 'make setup' first"
    install_packages debootstrap lintian util-linux
    lint "$package"
    as_root unshare --mount --pid --fork --kill-child --mount-proc \
        env PG_CONFIG="$PG_CONFIG" "$0" --inside "$package"
    say "package-check: $(basename "$package") held"
}

newest_package() {
    local version package
    version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
    package=target/package/${NAME}_$version-1_$(dpkg --print-architecture).deb
    [ -f "$package" ] || die "no $package: run 'make package' first"
    realpath "$package"
}

lint() {
    say "package-check: lintian"
    # Root has no other user to be.
    lintian --allow-root --fail-on error,warning "$1"
}

inside() {
    trap clear_away EXIT
    clear_away
    make_root
    install_it "$1"
    start_server
    run_readme
    stop_server
    remove_it
}

clear_away() {
    local mounted
    for mounted in "$ROOT/proc" "$ROOT/sys" "$ROOT/dev/shm"; do
        ! mountpoint -q "$mounted" || umount -l "$mounted"
    done
    rm -rf --one-file-system "$CHECK" "${SOCKET:-}"
}

make_root() {
    local mirror
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || die "not a Debian system"
    say "package-check: a new Debian $(suite) in $ROOT"
    mkdir -p "$CHECK"
    debootstrap --variant=minbase --keyring="$DEBIAN_KEYRING" "$(suite)" "$ROOT" "$mirror" \
        >"$CHECK/log" 2>&1 || fail_with "$CHECK/log"
    # What the system itself has its updates from, with the same release.
    # shellcheck disable=SC2016
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) main' 'Identifier: Packages' \
        'Component: main' 'Origin: Debian' | grep " $(suite)-" | sort -u \
        >>"$ROOT/etc/apt/sources.list" || true
    # debootstrap may have left /proc as it was.
    mountpoint -q "$ROOT/proc" || mount -t proc proc "$ROOT/proc"
    mkdir -p "$ROOT/dev/shm"
    mount -t tmpfs tmpfs "$ROOT/dev/shm"
    # No service may start, and no cluster be made.
    printf '#!/bin/sh\nexit 101\n' >"$ROOT/usr/sbin/policy-rc.d"
    chmod 755 "$ROOT/usr/sbin/policy-rc.d"
    mkdir -p "$ROOT/etc/postgresql-common"
    echo "create_main_cluster = false" >"$ROOT/etc/postgresql-common/createcluster.conf"
}

# The first release of Debian that has this major version.
suite() {
    case $MAJOR in
        15) echo bookworm ;;
        17) echo trixie ;;
        *) echo sid ;;
    esac
}

install_it() {
    say "package-check: installing $NAME"
    cp "$1" "$ROOT/tmp/$NAME.deb"
    chmod 644 "$ROOT/tmp/$NAME.deb"
    apt_inside update
    apt_inside install "/tmp/$NAME.deb"
    rm "$ROOT/tmp/$NAME.deb"
    in_root dpkg -L "$NAME" >"$CHECK/files"
    # shellcheck disable=SC2016
    [ "$(in_root dpkg-query -W -f '${db:Status-Status}' "$NAME")" = installed ]
    in_root dpkg --verify "$NAME"
}

start_server() {
    say "package-check: a private server, $(in_root "$BIN/postgres" --version)"
    in_root install -d -o postgres -g postgres -m 700 "$SERVER"
    as_postgres "$BIN/initdb" -D "$SERVER/data" -U postgres --auth=trust -E UTF8 \
        --locale=C.UTF-8 --no-sync >"$CHECK/log" 2>&1 || fail_with "$CHECK/log"
    head -c 32 /dev/urandom | base64 >"$CHECK/ring.keys"
    install -m 600 "$CHECK/ring.keys" "$ROOT$SERVER/ring.keys"
    in_root chown postgres:postgres "$SERVER/ring.keys"
    printf '%s\n' "listen_addresses = ''" "unix_socket_directories = '$SERVER'" \
        "session_preload_libraries = 'colcrypt'" \
        "colcrypt.key_file = '$SERVER/ring.keys'" >>"$ROOT$SERVER/data/postgresql.conf"
    as_postgres "$BIN/pg_ctl" -s -w -D "$SERVER/data" -l "$SERVER/log" start \
        || fail_with "$ROOT$SERVER/log"
    # A socket's path must stay below 108 bytes: by a link.
    SOCKET=$(mktemp -u /tmp/colcrypt.XXXXXX)
    ln -s "$ROOT$SERVER" "$SOCKET"
}

run_readme() {
    say "package-check: the SQL of README.md"
    "$PYTHON" tests/readme.py "$SOCKET" "$ROOT$SERVER/ring.keys" || fail_with "$ROOT$SERVER/log"
    as_postgres "$BIN/psql" -h "$SERVER" -XAtqc \
        "SET client_min_messages = warning; DROP EXTENSION colcrypt CASCADE"
}

stop_server() {
    as_postgres "$BIN/pg_ctl" -s -w -D "$SERVER/data" -m fast stop
    rm -r "$ROOT$SERVER"
}

remove_it() {
    local file left
    say "package-check: removing it"
    apt_inside purge "$NAME"
    if in_root dpkg-query -W "$NAME" 2>/dev/null; then
        die "dpkg still knows $NAME"
    fi
    while read -r file; do
        case $file in
            *colcrypt*) [ ! -e "$ROOT$file" ] || die "$file is still there" ;;
        esac
    done <"$CHECK/files"
    left=$(find "$ROOT" -xdev -name '*colcrypt*' -not -path "$ROOT/proc/*")
    [ -z "$left" ] || die "left behind: $left"
}

in_root() {
    chroot "$ROOT" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive HOME=/ "$@"
}

as_postgres() {
    in_root setpriv --reuid=postgres --regid=postgres --init-groups "$@"
}

apt_inside() {
    in_root apt-get -qq -y --no-install-recommends -o Dpkg::Options::=--force-confold \
        -o APT::Sandbox::User=root "$@" >"$CHECK/log" 2>&1 || fail_with "$CHECK/log"
}

fail_with() {
    tail -n 30 "$1" >&2
    die "all it said is above"
}

if [ "${1:-}" = --inside ]; then
    inside "$2"
else
    main
fi

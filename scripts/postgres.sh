#!/usr/bin/env bash
# Builds another PostgreSQL than the system's, for `make test PG=17`:
#
#     scripts/postgres.sh 17 18
#
# builds both into target/postgres/17 and target/postgres/18, each with the contrib
# modules and test runners that the tests need. What is built already is left alone.
#
# The source is a newer Debian release's, fetched and checked by apt under a
# configuration of its own: the system's package lists and packages stay as they are,
# but for the build dependencies, which are installed.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

BUILDS=$PWD/$BUILT_POSTGRES
# Where to look: apt takes the newest version of a package in any of them. No release
# of Debian has PostgreSQL 14 or 16. Not trixie-security: a mirror may list what it does
# not have, and these servers serve nobody.
SUITES="trixie forky sid"
# xml and icu because tests use them; the rest is what PostgreSQL asks for.
PACKAGES=(gcc libc6-dev make pkg-config dpkg-dev xz-utils bison flex perl libreadline-dev
    zlib1g-dev libssl-dev libicu-dev libxml2-dev liblz4-dev)

main() {
    local major
    [ $# -gt 0 ] || die "which PostgreSQL? For instance: scripts/postgres.sh 17"
    for major; do
        is_built "$major" || build "$major"
    done
}

is_built() {
    # Written last.
    [ -f "$BUILDS/$1/built" ]
}

build() {
    local major=$1 prefix=$BUILDS/$1 work=$BUILDS/work-$1
    grep -q "^pg$major = " Cargo.toml || die "PostgreSQL $major is not supported"
    install_packages "${PACKAGES[@]}"
    rm -rf "$prefix" "$work"
    say "postgres: fetching the source of PostgreSQL $major"
    fetch "$major" "$work"
    say "postgres: building it into $prefix (some minutes)"
    (
        cd "$work/source"
        ./configure --quiet --prefix="$prefix" --with-openssl --with-icu --with-libxml \
            --with-lz4
        make -s -j"$(nproc)" world-bin >build.log 2>&1 || fail_with build.log
        make -s install-world-bin >>build.log 2>&1 || fail_with build.log
    )
    rm -rf "$work"
    touch "$prefix/built"
    say "postgres: $("$prefix/bin/postgres" --version) is built"
}

fail_with() {
    tail -n 30 "$1" >&2
    die "the build failed: all it said is in $PWD/$1"
}

# fetch MAJOR FOLDER: unpacks the newest source package of a major, Debian's patches
# applied, into FOLDER/source.
fetch() {
    local major=$1 folder=$2 mirror
    mirror=$(debian_mirror)
    if [ -z "$mirror" ] || [ ! -f "$DEBIAN_KEYRING" ]; then
        die "not a Debian system: build PostgreSQL $major yourself, and set PG_CONFIG"
    fi

    mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial" "$folder/sources"
    printf '%s\n' "Types: deb-src" "URIs: $mirror" "Suites: $SUITES" "Components: main" \
        "Signed-By: $DEBIAN_KEYRING" >"$folder/sources/newer.sources"
    (
        cd "$folder"
        private_apt -qq update
        private_apt -qq source --download-only "postgresql-$major" >/dev/null \
            || die "no source of PostgreSQL $major in $SUITES"
        # apt has checked what it downloaded.
        dpkg-source --no-check -x postgresql-"$major"_*.dsc source >/dev/null
    )
}

# apt-get as if the newer releases were all that the system had, its state in the current
# folder. As root it does not hand the download to another user, who may not be able to
# write here.
private_apt() {
    apt-get -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$PWD/sources" \
        -o Dir::State="$PWD/state" -o Dir::State::status=/var/lib/dpkg/status \
        -o Dir::Cache="$PWD/cache" -o APT::Sandbox::User=root "$@"
}

main "$@"

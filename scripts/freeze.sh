#!/usr/bin/env bash
# Keeps a release's install script, for `make freeze`:
#
#     scripts/freeze.sh BUILT [FOLDER]
#
# copies BUILT, a colcrypt--VERSION.sql that `make all` has made, into FOLDER, else
# sql/install. From then on that version is what users have, and its script does not change:
# another of the same version is refused. tests/test_extension_upgrade.py updates from it.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

main() {
    local built=${1:?which script? Use: make freeze} folder=${2:-sql/install} frozen
    [[ $(basename "$built") =~ ^colcrypt--[0-9]+\.[0-9]+\.[0-9]+\.sql$ ]] \
        || die "$built is no install script of a version"
    [ -s "$built" ] || die "no $built"
    frozen=$folder/$(basename "$built")
    if [ -e "$frozen" ]; then
        cmp -s <(statements "$built") <(statements "$frozen") \
            || die "$frozen is another: that version is out; raise the version in Cargo.toml"
        say "$frozen is there, and the same"
        return
    fi
    mkdir -p "$folder"
    install -m 644 "$built" "$frozen"
    say "$frozen: commit it"
}

# Without the comments that say from which line of the source each part is.
statements() {
    grep -v '^-- src/' "$1"
}

main "$@"

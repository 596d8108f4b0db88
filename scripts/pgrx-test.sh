#!/usr/bin/env bash
# Runs the tests that live inside the server (#[pg_test]). Arguments go to
# `cargo pgrx test`, a test's name for instance.
#
# pgrx installs a test build over the installed extension: install again afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/cluster.sh

# --runas makes pgrx install with sudo, which an ordinary user needs as well.
pgdata=$(mktemp -d /tmp/colcrypt.XXXXXX)
chown "$CLUSTER_USER" "$pgdata"

# pgrx stops its server when its tests end, but not when it is killed.
cleanup() {
    local data
    for data in "$pgdata"/*/; do
        if [ -f "$data/postmaster.pid" ]; then
            cluster_as_server pg_ctl -s -D "$data" -m immediate stop || true
        fi
    done
    rm -rf "$pgdata"
}
trap cleanup EXIT

PGRX_PG_CONFIG_PATH=$PG_CONFIG cargo pgrx test "pg$(pg_major "$PG_CONFIG")" \
    --runas "$CLUSTER_USER" --pgdata "$pgdata" "$@"

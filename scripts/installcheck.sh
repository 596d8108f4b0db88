#!/usr/bin/env bash
# Runs PostgreSQL's own test runners on the installed extension: pg_regress on
# pg_test/sql/*.sql and pg_isolation_regress on pg_test/specs/*.spec, each in sorted
# order, against a throw-away server. Arguments, if any, name the tests to run.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/cluster.sh

# Not a secret: the bytes 0 to 31. Fixed, so that expected output can show key ids.
TEST_KEY=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=

ran=0
failed=0

main() {
    trap cluster_destroy EXIT
    cluster_start target/installcheck
    printf '%s\n' "$TEST_KEY" | cluster_file ring.keys
    cluster_conf "colcrypt.key_file = '$CLUSTER_DIR/ring.keys'"
    cluster_reload

    run regress/pg_regress pg_test/sql .sql "$@"
    run isolation/pg_isolation_regress pg_test/specs .spec "$@"
    [ "$ran" -gt 0 ] || die "no such test in pg_test: ${*:-(any)}"
    return "$failed"
}

# run RUNNER FOLDER SUFFIX [test…]: runs the named tests, or all in FOLDER. The
# extension is created in the runner's database beforehand.
run() {
    local runner suite tests
    runner=$(dirname "$("$PG_CONFIG" --pgxs)")/../test/$1
    suite=$(dirname "$1")
    mapfile -t tests < <(list_tests "${@:2}")
    [ ${#tests[@]} -gt 0 ] || return 0

    ran=1
    mkdir -p "target/$suite"
    rm -f "target/$suite/regression.diffs"
    if ! "$runner" --bindir="$("$PG_CONFIG" --bindir)" --inputdir=pg_test \
        --outputdir="target/$suite" --host="$PGHOST" --port="$PGPORT" --user="$PGUSER" \
        --dbname="colcrypt_$suite" --load-extension=colcrypt "${tests[@]}"; then
        failed=1
        # The runner only names this file; whoever reads CI's output needs its text.
        cat "target/$suite/regression.diffs" || true
    fi
}

# list_tests FOLDER SUFFIX [test…]: the tests in FOLDER, or those of them that are named.
list_tests() {
    local folder=$1 suffix=$2 path name
    shift 2
    for path in "$folder"/*"$suffix"; do
        name=$(basename "$path" "$suffix")
        if [ -f "$path" ] && { [ $# -eq 0 ] || [[ " $* " == *" $name "* ]]; }; then
            printf '%s\n' "$name"
        fi
    done | LC_ALL=C sort
}

main "$@"

# shellcheck shell=bash
# Sourced, not run: a private, throw-away PostgreSQL server.
#
#     . scripts/cluster.sh
#     trap cluster_destroy EXIT
#     cluster_start target/demo "log_statement = 'all'"
#     psql -c 'SELECT 1'
#
# The server listens on nothing but a Unix socket in a folder of its own. PostgreSQL
# refuses to run as root: for root it runs as the user postgres. After cluster_start
# psql and its kin talk to this server without being told.

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

PG_CONFIG=$(find_pg_config)
[ -x "$PG_CONFIG" ] || die "no pg_config at $PG_CONFIG: run 'make setup', or set PG_CONFIG"
PATH=$("$PG_CONFIG" --bindir):$PATH

# Nothing of the caller's may reach the server or lead its clients elsewhere.
# pgrx adds Rust's backtraces to the DETAIL of errors where they are asked for.
unset RUST_BACKTRACE COLCRYPT_KEY PGHOST PGHOSTADDR PGPORT PGDATABASE PGUSER PGPASSWORD PGPASSFILE \
    PGSERVICE PGOPTIONS PGAPPNAME PGSSLMODE PGDATA

CLUSTER_DIR=    # holds data/, log and the files of cluster_file
CLUSTER_SOCKET= # the socket's folder
CLUSTER_USER=$(id -un)
if [ "$(id -u)" -eq 0 ]; then
    CLUSTER_USER=postgres
    id postgres >/dev/null 2>&1 || die "no user postgres to run the server as"
fi

# cluster_start DIR [configuration line…]: makes a new cluster in DIR and starts it.
# What an earlier run left in DIR is removed.
cluster_start() {
    cluster_as_server test -x "$PG_CONFIG" \
        || die "the user $CLUSTER_USER cannot reach $PG_CONFIG"
    cluster_make_dir "$1"
    shift
    # In /tmp because a socket's path must stay below 108 bytes.
    CLUSTER_SOCKET=$(mktemp -d /tmp/colcrypt.XXXXXX)
    chown "$CLUSTER_USER" "$CLUSTER_SOCKET"
    export PGHOST=$CLUSTER_SOCKET PGPORT=5432 PGUSER=postgres PGDATABASE=postgres

    cluster_as_server initdb -D "$CLUSTER_DIR/data" -U postgres --auth=trust \
        -E UTF8 --locale=C.UTF-8 --no-sync >/dev/null
    cluster_conf "listen_addresses = ''" "unix_socket_directories = '$CLUSTER_SOCKET'" \
        "fsync = off" "$@"
    cluster_ctl start
}

# cluster_conf LINE…: appends to postgresql.conf. Later lines win.
cluster_conf() {
    printf '%s\n' "$@" | cluster_as_server tee -a "$CLUSTER_DIR/data/postgresql.conf" >/dev/null
}

# cluster_file NAME: stores standard input in a file that only the server's user can
# read. It is $CLUSTER_DIR/NAME, replaced as a whole, as a careful DBA would.
cluster_file() {
    # $1 in single quotes is the inner shell's.
    # shellcheck disable=SC2016
    cluster_as_server bash -c 'umask 077 && cat > "$1.new" && mv "$1.new" "$1"' \
        bash "$CLUSTER_DIR/$1"
}

# Has the configuration read again, and waits until new sessions see it.
cluster_reload() {
    local before tries=100
    before=$(psql -XAtqc "SELECT pg_conf_load_time()")
    psql -XAtqc "SELECT pg_reload_conf()" >/dev/null
    until [ "$(psql -XAtqc "SELECT pg_conf_load_time()")" != "$before" ]; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || die "the server did not reload its configuration"
        sleep 0.1
    done
}

cluster_restart() {
    cluster_ctl stop -m fast
    cluster_ctl start
}

# Stops the server; the folder stays. No harm if it does not run.
cluster_stop() {
    if [ -n "$CLUSTER_DIR" ] && cluster_as_server test -f "$CLUSTER_DIR/data/postmaster.pid"; then
        cluster_ctl stop -m fast
    fi
    if [ -n "$CLUSTER_SOCKET" ]; then
        rm -rf "$CLUSTER_SOCKET"
        CLUSTER_SOCKET=
    fi
}

# Stops the server and removes everything.
cluster_destroy() {
    cluster_stop
    if [ -n "$CLUSTER_DIR" ]; then
        rm -rf "$CLUSTER_DIR"
        CLUSTER_DIR=
    fi
}

# Runs a command as the server's user, from / because that user may not be able to
# read the caller's folder. No login shell, so nothing of the user's profile runs.
cluster_as_server() {
    if [ "$CLUSTER_USER" = "$(id -un)" ]; then
        (cd / && "$@")
    else
        (cd / && setpriv --reuid="$CLUSTER_USER" --regid="$(id -g "$CLUSTER_USER")" \
            --init-groups "$@")
    fi
}

# pg_ctl for this cluster; says what the server's log says when it fails.
cluster_ctl() {
    if ! cluster_as_server pg_ctl -s -w -D "$CLUSTER_DIR/data" -l "$CLUSTER_DIR/log" "$@"; then
        cluster_as_server tail -n 20 "$CLUSTER_DIR/log" >&2 || true
        return 1
    fi
}

# Sets CLUSTER_DIR to an empty folder of the server's user: the one asked for, or one
# in /tmp if that user cannot reach it, as in a clone below /root.
cluster_make_dir() {
    local wanted
    wanted=$(realpath -m "$1")
    if [ -e "$wanted" ]; then
        [ -f "$wanted/data/PG_VERSION" ] || rmdir "$wanted" 2>/dev/null \
            || die "$wanted is in the way: neither empty nor a cluster"
        if [ -f "$wanted/data/postmaster.pid" ]; then
            cluster_as_server pg_ctl -s -D "$wanted/data" -m immediate stop || true
        fi
        rm -rf "$wanted"
    fi
    mkdir -p "$wanted"
    chown "$CLUSTER_USER" "$wanted"
    chmod 700 "$wanted"
    if cluster_as_server test -w "$wanted"; then
        CLUSTER_DIR=$wanted
    else
        rmdir "$wanted"
        CLUSTER_DIR=$(mktemp -d /tmp/colcrypt.XXXXXX)
        chown "$CLUSTER_USER" "$CLUSTER_DIR"
        say "the user $CLUSTER_USER cannot reach $wanted: using $CLUSTER_DIR instead"
    fi
}

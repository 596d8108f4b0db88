#!/usr/bin/env bash
# Tells what colcrypt does, on a private server with real rows, and checks each claim
# as it goes: it fails at the first that does not hold.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/cluster.sh

CANARY=canary-in-the-coal-mine
SSN=078-05-1120
last= # what was told last: claims in a row stand together

main() {
    trap cluster_destroy EXIT
    start_server
    ordinary_sql
    nothing_on_disk
    what_is_stored
    rotate
    own_key
    rotate_own_key
    masked_role
    secrets_document
    dump
    without_key
    fernet
    printf '\ndemo: all steps held\n'
}

start_server() {
    step "A private server, and a key made with: openssl rand -base64 32"
    OLD_KEY=$(make_key)
    cluster_start target/demo
    printf '%s\n' "$OLD_KEY" | cluster_file ring.keys
    cluster_conf "colcrypt.key_file = '$CLUSTER_DIR/ring.keys'" \
        "session_preload_libraries = 'colcrypt'"
    cluster_reload
    run ls -l "$CLUSTER_DIR/ring.keys"
}

ordinary_sql() {
    step "Ordinary SQL: the column's type is encrypted_text, all else is as ever"
    sed '1d; s/^/  /' scripts/demo.sql
    psql -X -q -v ON_ERROR_STOP=1 -f scripts/demo.sql
    show "SELECT * FROM users ORDER BY id LIMIT 3"
    holds "1000 rows read back as they were written" reads_back
}

nothing_on_disk() {
    local encrypted plain
    step "The files on disk do not hold the plaintext"
    show "CHECKPOINT"
    encrypted=$(table_file users)
    plain=$(table_file plain_users)
    run grep --count --text "$CANARY" "$plain" || true
    run grep --count --text "$CANARY" "$encrypted" || true
    holds "the text column's file holds the plaintext" grep -q --text "$CANARY" "$plain"
    holds "the encrypted column's file does not" file_lacks "$encrypted" "$CANARY"
    holds "nor does it hold another token" file_lacks "$encrypted" token-
}

what_is_stored() {
    step "What is stored instead: ciphertext that names its key and suite"
    show "SELECT ciphertext(api_token) FROM users WHERE id = 1"
    show "SELECT (colcrypt.inspect(api_token)).* FROM users WHERE id = 1"
    holds "the ciphertext says what it is" \
        query_gives t "SELECT ciphertext(api_token) LIKE 'colcrypt:v1:%' FROM users WHERE id = 1"
    holds "equal values do not look equal" query_gives t "
        SELECT ciphertext(encrypt(api_token)) <> ciphertext(encrypt(api_token))
        FROM plain_users WHERE id = 1"
}

rotate() {
    local new_key old_id new_id
    step "Rotation: put a new key in front, reload, rotate the column, drop the old key"
    old_id=$(key_ids)
    show "SELECT (colcrypt.inspect(api_token)).key_id, count(*) FROM users GROUP BY 1"

    note "The key file becomes \"new,old\": the first encrypts, all decrypt."
    new_key=$(make_key)
    printf '%s,%s\n' "$new_key" "$OLD_KEY" | cluster_file ring.keys
    cluster_reload
    holds "old rows read as before" reads_back

    show "SELECT rotate_column('users', 'api_token')"
    show "SELECT (colcrypt.inspect(api_token)).key_id, count(*) FROM users GROUP BY 1"
    new_id=$(key_ids)
    holds "every row is under one key" test "$(wc -l <<<"$new_id")" = 1
    holds "and it is another key than before" test "$new_id" != "$old_id"
    holds "nothing is left to rotate" query_gives 0 "SELECT rotate_column('users', 'api_token')"

    note "The database's index key is wrapped under the new key, and btree indexes let go of old values."
    show "SELECT colcrypt.rewrap_keys()"
    show "REINDEX TABLE CONCURRENTLY users"
    holds "the index finds its row" query_gives 1000 \
        "SELECT id FROM users WHERE api_token = '$CANARY'"

    note "The old key leaves the file, and the server starts anew."
    printf '%s\n' "$new_key" | cluster_file ring.keys
    cluster_restart
    holds "1000 rows still read back" reads_back
    holds "and the index still finds its row" query_gives 1000 \
        "SELECT id FROM users WHERE api_token = '$CANARY'"
    NEW_KEY=$new_key
}

own_key() {
    step "A column with a key of its own, which the database keeps, wrapped by the ring's primary"
    show "SELECT colcrypt.create_key('pii')"
    show "CREATE TABLE people (id int PRIMARY KEY, name text, ssn encrypted_text(pii))"
    show "INSERT INTO people VALUES (1, 'Ann', '$SSN'), (2, 'Bob', '219-09-9999')"
    show "SELECT relation, column_name, type, key_name FROM colcrypt.columns"
    show "SELECT key_id, name, kind, state, wrapped_by, loaded FROM colcrypt.keys"
    holds "the values are under that key" query_gives pii "
        SELECT DISTINCT k.name FROM people, colcrypt.inspect(ssn) JOIN colcrypt.keys AS k USING (key_id)"
    holds "and read back" query_gives "$SSN" "SELECT ssn FROM people WHERE id = 1"
}

rotate_own_key() {
    step "Its rotation: a new version encrypts, the old one goes on decrypting until all has moved"
    show "SELECT colcrypt.rotate_key('pii')"
    show "SELECT * FROM colcrypt.key_usage('people', 'ssn')"
    show "SELECT rotate_column('people', 'ssn')"
    show "SELECT * FROM colcrypt.key_usage('people', 'ssn')"
    holds "nothing is left under the old version" \
        query_gives f "SELECT bool_or(stale) FROM colcrypt.key_usage('people', 'ssn')"
    holds "the values read back" query_gives "$SSN" "SELECT ssn FROM people WHERE id = 1"
}

masked_role() {
    step "A masked role: it writes, and neither reads nor compares"
    show "CREATE ROLE analyst LOGIN"
    show "ALTER ROLE analyst SET colcrypt.access = 'masked'"
    show "GRANT SELECT, INSERT ON people TO analyst"
    note "As analyst:"
    with PGUSER=analyst show "SELECT * FROM people"
    with PGUSER=analyst show_error "SELECT name FROM people WHERE ssn = '$SSN'"
    with PGUSER=analyst show "INSERT INTO people VALUES (3, 'Eve', '457-55-5462')"
    holds "analyst sees the mask" with PGUSER=analyst query_gives 3 \
        "SELECT count(*) FROM people WHERE ssn::text = '********'"
    holds "comparing is refused with 42501, insufficient_privilege" with PGUSER=analyst query_fails_with 42501 \
        "SELECT name FROM people WHERE ssn = '$SSN'"
    holds "so is asking for the plaintext" with PGUSER=analyst query_fails_with 42501 \
        "SELECT decrypt(ssn) FROM people"
    holds "and lifting the mask" with PGUSER=analyst query_fails_with 42501 "SET colcrypt.access = 'full'"
    holds "what analyst wrote is there for others" \
        query_gives 457-55-5462 "SELECT ssn FROM people WHERE id = 3"
}

secrets_document() {
    local secret=demo-key-of-stripe-0123456789
    step "Secrets as a JSON document: one column holds all keys that a task needs"
    show "SELECT colcrypt.create_key('task_secrets')"
    show "CREATE TABLE tasks (id int PRIMARY KEY, name text, api_keys encrypted_jsonb(task_secrets))"
    show "INSERT INTO tasks VALUES
             (1, 'invoices', '{\"stripe\": \"$secret\", \"sendgrid\": {\"key\": \"SG.abc\", \"quota\": 500}}'),
             (2, 'backups', '{\"s3\": {\"id\": \"AKIA1\", \"secret\": \"wJalr\"}}')"
    note "The usual operators read one member, and write one, without the document ever being stored in plaintext:"
    show "SELECT name, api_keys->'sendgrid'->>'key' AS sendgrid FROM tasks WHERE api_keys ? 'stripe'"
    show "UPDATE tasks SET api_keys = jsonb_set(api_keys, '{sendgrid,key}', '\"SG.xyz\"') WHERE id = 1"
    show "CHECKPOINT"
    holds "one member was changed" query_gives "SG.xyz $secret" \
        "SELECT concat_ws(' ', api_keys#>>'{sendgrid,key}', api_keys->>'stripe') FROM tasks WHERE id = 1"
    holds "equality is that of jsonb: the order of members does not matter" query_gives 2 \
        "SELECT id FROM tasks WHERE api_keys = '{\"s3\": {\"secret\": \"wJalr\", \"id\": \"AKIA1\"}}'"
    holds "the table's file does not hold the secret" file_lacks "$(table_file tasks)" "$secret"

    note "Rotation is as for text:"
    show "SELECT colcrypt.rotate_key('task_secrets')"
    show "SELECT rotate_column('tasks', 'api_keys')"
    holds "nothing is left under the old version" \
        query_gives f "SELECT bool_or(stale) FROM colcrypt.key_usage('tasks', 'api_keys')"
    holds "the member reads as before" \
        query_gives "$secret" "SELECT api_keys->>'stripe' FROM tasks WHERE id = 1"

    show "GRANT SELECT ON tasks TO analyst"
    note "As analyst, who sees a document that is nothing but the mask:"
    with PGUSER=analyst show "SELECT name, api_keys, api_keys->>'stripe' AS stripe FROM tasks"
    holds "it is still JSON: a string" with PGUSER=analyst query_gives "string ********" \
        "SELECT jsonb_typeof(api_keys) || ' ' || (api_keys#>>'{}') FROM tasks WHERE id = 1"
    holds "and no member shows" with PGUSER=analyst query_gives 2 \
        "SELECT count(*) FROM tasks WHERE api_keys->>'stripe' IS NULL"
}

dump() {
    local file=$CLUSTER_DIR/people.sql
    step "pg_dump gives ciphertext; psql takes it back, if a superuser says so"
    run pg_dump --table people --file "$file"
    sed -n '/^COPY/,/^\\\./s/^/  /p' "$file" | cut -c 1-100
    holds "the dump does not hold the plaintext" file_lacks "$file" "$SSN"
    run pg_dump --file "$file"
    query "CREATE DATABASE restored"
    printf '\n  $ %s\n' "PGOPTIONS='-c colcrypt.input=ciphertext' psql -d restored -f $file"
    with PGOPTIONS="-c colcrypt.input=ciphertext" \
        psql -X -q -v ON_ERROR_STOP=1 -o /dev/null -d restored -f "$file"
    holds "with the same key ring it reads there as before" \
        with PGDATABASE=restored query_gives "$SSN" "SELECT ssn FROM people WHERE id = 1"
    holds "and the index finds its row" with PGDATABASE=restored query_gives 1000 \
        "SELECT id FROM users WHERE api_token = '$CANARY'"
}

without_key() {
    step "Without the key there is no data, and a clear error"
    cluster_conf "colcrypt.key_file = ''"
    cluster_restart
    show_error "SELECT * FROM users WHERE id = 1"
    holds "the SQLSTATE is 55000, object_not_in_prerequisite_state" query_fails_with 55000 \
        "SELECT * FROM users WHERE id = 1"
    holds "other columns read as ever" \
        query_gives user1@example.com "SELECT email FROM users WHERE id = 1"
    cluster_conf "colcrypt.key_file = '$CLUSTER_DIR/ring.keys'"
    cluster_restart
    holds "with the key it is all there again" reads_back
}

fernet() {
    local token text
    local sql="SET colcrypt.algorithm = 'fernet'; SELECT fernet_token(encrypt('hello from PostgreSQL'))"
    step "Fernet: Python's cryptography library reads our tokens with the same key"
    show "$sql"
    token=$(query "$sql")
    note "Fernet(key).decrypt(token) in Python:"
    text=$(printf '%s\n%s\n' "$NEW_KEY" "$token" | target/venv/bin/python -c '
from cryptography.fernet import Fernet
key, token = input(), input()
print(Fernet(key).decrypt(token).decode())')
    printf '  %s\n' "$text"
    holds "Python reads what PostgreSQL wrote" test "$text" = "hello from PostgreSQL"
}

# Telling

step() {
    printf '\n\n== %s\n' "$*"
    last=step
}

note() {
    printf '\n  %s\n' "$*"
    last=note
}

# Shows SQL and its result.
show() {
    printf '\n  postgres=# %s;\n' "$1"
    psql -X -q -v ON_ERROR_STOP=1 -P footer=off -c "$1" | sed '${/^$/d}; s/^/  /'
    last=show
}

# Shows SQL and the error that it must raise.
show_error() {
    printf '\n  postgres=# %s;\n' "$1"
    if psql -X -q -v ON_ERROR_STOP=1 -c "$1" 2>&1; then
        die "no error"
    fi | sed 's/^/  /'
    last=show
}

# Shows a command and what it prints.
run() {
    printf '\n  $ %s\n' "$*"
    last=run
    "$@" | sed 's/^/  /'
}

# with NAME=VALUE COMMAND…: runs the command with this in its environment.
with() {
    local -x "$1"
    shift
    "$@"
}

# Checking

# holds CLAIM COMMAND…: says the claim if the command succeeds, else ends the demo.
holds() {
    local claim=$1
    shift
    "$@" || die "does not hold: $claim"
    [ "$last" = holds ] || printf '\n'
    last=holds
    printf '  [ok] %s\n' "$claim"
}

# file_lacks FILE TEXT: there is such a file, with something in it, but not the text.
file_lacks() {
    [ -s "$1" ] && ! grep -q --text "$2" "$1"
}

query() {
    psql -XAtq -v ON_ERROR_STOP=1 -c "$1"
}

query_gives() {
    local result
    result=$(query "$2")
    [ "$result" = "$1" ]
}

query_fails_with() {
    local message
    message=$(psql -XAtq -v ON_ERROR_STOP=1 -v VERBOSITY=sqlstate -c "$2" 2>&1) && return 1
    [[ $message == *"$1"* ]]
}

reads_back() {
    query_gives 1000 "
        SELECT count(*) FROM users JOIN plain_users AS plain USING (id)
        WHERE users.api_token::text = plain.api_token"
}

# The ids of the keys that the column's values are under.
key_ids() {
    query "SELECT DISTINCT (colcrypt.inspect(api_token)).key_id FROM users"
}

table_file() {
    printf '%s/data/%s\n' "$CLUSTER_DIR" "$(query "SELECT pg_relation_filepath('$1')")"
}

# With the URL-safe alphabet, which is what Fernet libraries ask for.
make_key() {
    openssl rand -base64 32 | tr '+/' '-_'
}

main

-- Key rotation.

CREATE FUNCTION rotate_column(
    relation regclass,
    column_name name,
    batch_size integer DEFAULT 1000,
    max_rows bigint DEFAULT NULL
) RETURNS bigint
    AS 'MODULE_PATHNAME', 'rotate_column_wrapper'
    LANGUAGE c VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION rotate_column(regclass, name, integer, bigint) IS
    'encrypt again what is not under the primary key and the current algorithm; gives the number of rows';

-- Rotation in batches, each a transaction of its own: by a procedure in the caller's
-- session, or by a background worker. Where it stands is a row, changed in the
-- transaction of each batch.

CREATE TABLE colcrypt.rotation (
    job                 integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relation            oid         NOT NULL,
    column_name         name        NOT NULL,
    -- For encrypt_column_online(): the encrypted column beside it.
    shadow              name,
    -- The tables that have been verified.
    verified            oid[],
    -- Whose rights a background worker has, and what it seals with: as the session did
    -- that asked for it.
    role                oid         NOT NULL,
    algorithm           text        NOT NULL,
    write_key           text,
    background          boolean     NOT NULL,
    state               text        NOT NULL DEFAULT 'running'
        CHECK (state IN ('running', 'paused', 'cancelled', 'failed', 'done')),
    phase               text        NOT NULL DEFAULT 'starting',
    batch_size          bigint      NOT NULL,
    -- In seconds.
    pause               float8      NOT NULL,
    lock_timeout        float8      NOT NULL,
    max_rows_per_second bigint,
    max_lag_bytes       bigint,
    fire_triggers       boolean     NOT NULL,
    -- How often the relation and all that belongs to it was gone through, this time
    -- included.
    pass                integer     NOT NULL DEFAULT 1,
    pass_rotated        bigint      NOT NULL DEFAULT 0,
    pass_skipped        bigint      NOT NULL DEFAULT 0,
    -- The table under way, its file, and which of its blocks are still to come.
    part                oid,
    file                oid,
    next_block          bigint      NOT NULL DEFAULT 0,
    end_block           bigint      NOT NULL DEFAULT 0,
    -- In this pass, of the tables that are through.
    parts_blocks        bigint      NOT NULL DEFAULT 0,
    blocks_total        bigint,
    rows_rotated        bigint      NOT NULL DEFAULT 0,
    rows_per_second     float8,
    estimated_end       timestamptz,
    last_error          text,
    started_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at          timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);
COMMENT ON TABLE colcrypt.rotation IS 'rotations in batches: what was asked for, and how far each is';
COMMENT ON COLUMN colcrypt.rotation.job IS 'number of the rotation';
COMMENT ON COLUMN colcrypt.rotation.relation IS 'table that is rotated';
COMMENT ON COLUMN colcrypt.rotation.column_name IS 'column that is rotated, or encrypted';
COMMENT ON COLUMN colcrypt.rotation.shadow IS 'for encrypt_column_online(): the encrypted column beside it';
COMMENT ON COLUMN colcrypt.rotation.verified IS 'for encrypt_column_online(): the tables that have been verified';
COMMENT ON COLUMN colcrypt.rotation.role IS 'who has asked for it';
COMMENT ON COLUMN colcrypt.rotation.algorithm IS 'suite of new values in the session that has asked for it';
COMMENT ON COLUMN colcrypt.rotation.write_key IS 'colcrypt.write_key of that session';
COMMENT ON COLUMN colcrypt.rotation.background IS 'whether a background worker does it';
COMMENT ON COLUMN colcrypt.rotation.state IS 'running, paused, cancelled, failed or done';
COMMENT ON COLUMN colcrypt.rotation.phase IS 'what it does';
COMMENT ON COLUMN colcrypt.rotation.batch_size IS 'rows of a batch';
COMMENT ON COLUMN colcrypt.rotation.pause IS 'seconds between batches';
COMMENT ON COLUMN colcrypt.rotation.lock_timeout IS 'seconds to wait for a locked row';
COMMENT ON COLUMN colcrypt.rotation.max_rows_per_second IS 'rows of a second at most';
COMMENT ON COLUMN colcrypt.rotation.max_lag_bytes IS 'bytes that a replica may lag behind';
COMMENT ON COLUMN colcrypt.rotation.fire_triggers IS 'whether triggers of users fire';
COMMENT ON COLUMN colcrypt.rotation.pass IS 'which time it goes through all tables';
COMMENT ON COLUMN colcrypt.rotation.pass_rotated IS 'rows rotated in this pass';
COMMENT ON COLUMN colcrypt.rotation.pass_skipped IS 'rows that others had locked in this pass';
COMMENT ON COLUMN colcrypt.rotation.part IS 'table under way';
COMMENT ON COLUMN colcrypt.rotation.file IS 'its file';
COMMENT ON COLUMN colcrypt.rotation.next_block IS 'its first block that is still to come';
COMMENT ON COLUMN colcrypt.rotation.end_block IS 'its first block that is not';
COMMENT ON COLUMN colcrypt.rotation.parts_blocks IS 'blocks of tables that are through in this pass';
COMMENT ON COLUMN colcrypt.rotation.blocks_total IS 'blocks of all tables when this pass began';
COMMENT ON COLUMN colcrypt.rotation.rows_rotated IS 'rows that have a new value';
COMMENT ON COLUMN colcrypt.rotation.rows_per_second IS 'rows rotated in each second, since it was started or resumed';
COMMENT ON COLUMN colcrypt.rotation.estimated_end IS 'when this pass is likely to end';
COMMENT ON COLUMN colcrypt.rotation.last_error IS 'why it failed';
COMMENT ON COLUMN colcrypt.rotation.started_at IS 'when it was first started';
COMMENT ON COLUMN colcrypt.rotation.updated_at IS 'when its last batch ended';
COMMENT ON SEQUENCE colcrypt.rotation_job_seq IS 'numbers of rotations';

CREATE UNIQUE INDEX one_rotation ON colcrypt.rotation (relation, column_name)
    WHERE state IN ('running', 'paused', 'failed');

CREATE VIEW colcrypt.rotation_progress AS
    SELECT r.job,
           r.relation::regclass AS relation,
           r.column_name,
           now.state,
           r.phase,
           greatest(r.blocks_total, r.parts_blocks + r.next_block) AS blocks_total,
           r.parts_blocks + r.next_block AS blocks_done,
           r.rows_rotated,
           r.pass_skipped AS rows_skipped,
           r.rows_per_second,
           CASE WHEN now.state = 'running' THEN r.estimated_end END AS estimated_end,
           -- It may be what a trigger has said.
           CASE WHEN pg_catalog.pg_has_role(r.role, 'USAGE') THEN r.last_error END AS last_error,
           r.started_at,
           r.updated_at
    FROM colcrypt.rotation AS r
         CROSS JOIN LATERAL (
             SELECT CASE WHEN r.state = 'running'
                              -- A background worker needs a moment.
                              AND NOT (r.phase = 'starting' AND r.background
                                       AND r.updated_at > pg_catalog.clock_timestamp() - interval '10 seconds')
                              AND NOT EXISTS (
                                  SELECT FROM pg_catalog.pg_locks AS l
                                       JOIN pg_catalog.pg_database AS d ON d.oid = l.database
                                  WHERE d.datname = pg_catalog.current_database() AND l.locktype = 'object'
                                    AND l.classid = 'colcrypt.rotation'::pg_catalog.regclass
                                    AND l.objid = r.job::pg_catalog.oid AND l.mode = 'ExclusiveLock')
                         THEN 'interrupted' ELSE r.state END AS state
         ) AS now;
COMMENT ON VIEW colcrypt.rotation_progress IS 'rotations in batches and columns that are being encrypted, and how far each is';
COMMENT ON COLUMN colcrypt.rotation_progress.job IS 'number of the rotation';
COMMENT ON COLUMN colcrypt.rotation_progress.relation IS 'table that is rotated, with its partitions and what inherits from it';
COMMENT ON COLUMN colcrypt.rotation_progress.column_name IS 'column that is rotated';
COMMENT ON COLUMN colcrypt.rotation_progress.state IS 'running, paused, cancelled, failed, done; interrupted if nobody is at work on it any more';
COMMENT ON COLUMN colcrypt.rotation_progress.phase IS 'starting, rotating, checking, finishing, encrypting, verifying, encrypted, waiting for locked rows, waiting for a lock, waiting for older transactions, waiting for replicas, waiting for indexes, done';
COMMENT ON COLUMN colcrypt.rotation_progress.blocks_total IS 'blocks to go through in this phase';
COMMENT ON COLUMN colcrypt.rotation_progress.blocks_done IS 'blocks gone through in this phase';
COMMENT ON COLUMN colcrypt.rotation_progress.rows_rotated IS 'rows that have a new value';
COMMENT ON COLUMN colcrypt.rotation_progress.rows_skipped IS 'rows that others had locked, in this phase';
COMMENT ON COLUMN colcrypt.rotation_progress.rows_per_second IS 'rows rotated in each second, since it was started or resumed';
COMMENT ON COLUMN colcrypt.rotation_progress.estimated_end IS 'when this phase is likely to end';
COMMENT ON COLUMN colcrypt.rotation_progress.last_error IS 'why it failed; for those who may have the rights of who has asked for it';
COMMENT ON COLUMN colcrypt.rotation_progress.started_at IS 'when it was first started';
COMMENT ON COLUMN colcrypt.rotation_progress.updated_at IS 'when its last batch ended';
GRANT SELECT ON colcrypt.rotation_progress TO PUBLIC;

CREATE FUNCTION colcrypt.parts(relation regclass) RETURNS SETOF oid
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE part(oid) AS (
        SELECT relation::oid
        UNION
        SELECT i.inhrelid
        FROM part AS p JOIN pg_inherits AS i ON i.inhparent = p.oid
        -- As queries of the table do, it leaves out what is just being detached.
        WHERE NOT i.inhdetachpending
    )
    SELECT oid FROM part
$$;
COMMENT ON FUNCTION colcrypt.parts(regclass) IS 'a table with its partitions and what inherits from it';

CREATE FUNCTION colcrypt.begin_rotation(
    relation regclass,
    column_name name,
    batch_size integer,
    pause interval,
    lock_timeout interval,
    max_rows_per_second bigint,
    max_lag_bytes bigint,
    fire_triggers boolean,
    background boolean
) RETURNS integer
    AS 'MODULE_PATHNAME', 'colcrypt_begin_rotation_wrapper'
    LANGUAGE c VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.begin_rotation(regclass, name, integer, interval, interval, bigint, bigint, boolean, boolean) IS
    'for rotate_column_online(), rotate_column_background(): makes a rotation, or takes one up that did not end; gives its number';

CREATE FUNCTION colcrypt.rotation_step(job integer) RETURNS double precision
    AS 'MODULE_PATHNAME', 'colcrypt_rotation_step_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.rotation_step(integer) IS
    'for rotate_column_online(): does a batch; gives the seconds to wait before the next one, NULL at the end';

CREATE PROCEDURE colcrypt.wait_for_next_batch(seconds double precision)
    AS 'MODULE_PATHNAME', 'colcrypt_wait_for_next_batch'
    LANGUAGE c;
COMMENT ON PROCEDURE colcrypt.wait_for_next_batch(double precision) IS
    'for rotate_column_online(): waits without being in the way of VACUUM';

-- Not one operator or name that depends on the search path, which a procedure that
-- commits cannot set.
CREATE PROCEDURE rotate_column_online(
    relation regclass,
    column_name name,
    batch_size integer DEFAULT 1000,
    pause interval DEFAULT '0',
    lock_timeout interval DEFAULT '500 milliseconds',
    max_rows_per_second bigint DEFAULT NULL,
    max_lag_bytes bigint DEFAULT NULL,
    fire_triggers boolean DEFAULT false
)
    LANGUAGE plpgsql
AS $$
DECLARE
    job CONSTANT pg_catalog.int4 := colcrypt.begin_rotation(
        relation, column_name, batch_size, pause, lock_timeout, max_rows_per_second, max_lag_bytes,
        fire_triggers, background => false);
    wait pg_catalog.float8;
BEGIN
    LOOP
        COMMIT;
        wait := colcrypt.rotation_step(job);
        EXIT WHEN wait IS NULL;
        COMMIT;
        CALL colcrypt.wait_for_next_batch(wait);
    END LOOP;
END
$$;
COMMENT ON PROCEDURE rotate_column_online(regclass, name, integer, interval, interval, bigint, bigint, boolean) IS
    'rotate_column() in batches, each a transaction of its own; goes on where an earlier call has stopped';

CREATE FUNCTION colcrypt.rotate_column_background(
    relation regclass,
    column_name name,
    batch_size integer DEFAULT 1000,
    pause interval DEFAULT '0',
    max_rows_per_second bigint DEFAULT NULL,
    max_lag_bytes bigint DEFAULT NULL,
    fire_triggers boolean DEFAULT false,
    lock_timeout interval DEFAULT '500 milliseconds'
) RETURNS integer
    LANGUAGE sql VOLATILE PARALLEL UNSAFE
AS $$
    SELECT colcrypt.begin_rotation(
        relation, column_name, batch_size, pause, lock_timeout, max_rows_per_second, max_lag_bytes,
        fire_triggers, background => true)
$$;
COMMENT ON FUNCTION colcrypt.rotate_column_background(regclass, name, integer, interval, bigint, bigint, boolean, interval) IS
    'rotate_column_online() in a background worker; gives the number of the rotation';

CREATE FUNCTION colcrypt.pause_rotation(job integer) RETURNS boolean
    AS 'MODULE_PATHNAME', 'colcrypt_pause_rotation_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.pause_rotation(integer) IS
    'stop a rotation after the batch under way; true if it was running';

CREATE FUNCTION colcrypt.resume_rotation(job integer) RETURNS boolean
    AS 'MODULE_PATHNAME', 'colcrypt_resume_rotation_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.resume_rotation(integer) IS
    'go on with a rotation that is paused, failed or interrupted, in a background worker; true if it was';

CREATE FUNCTION colcrypt.cancel_rotation(job integer) RETURNS boolean
    AS 'MODULE_PATHNAME', 'colcrypt_cancel_rotation_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION colcrypt.cancel_rotation(integer) IS
    'end a rotation after the batch under way; what it has done stays done; true if it had not ended';

-- Operating it.

CREATE FUNCTION colcrypt.status(
    OUT enabled boolean,
    OUT primary_key text,
    OUT keys integer,
    OUT source text,
    OUT preloaded boolean,
    OUT loaded_at timestamptz,
    OUT last_error text,
    OUT version text,
    OUT format integer
)
    AS 'MODULE_PATHNAME', 'colcrypt_status_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION colcrypt.status() IS 'whether encryption works: one row for probes';

CREATE FUNCTION colcrypt.stat_counters(
    OUT operation text,
    OUT suite text,
    OUT outcome text,
    OUT calls bigint,
    OUT bytes bigint
) RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'colcrypt_stat_counters_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION colcrypt.stat_counters() IS 'the counters that view colcrypt.stat shows';

CREATE VIEW colcrypt.stat AS
SELECT operation, suite, outcome, calls, bytes
FROM colcrypt.stat_counters();
COMMENT ON VIEW colcrypt.stat IS
    'how many values were encrypted, decrypted, compared and rotated, and how that went';

CREATE FUNCTION colcrypt.reset_stat() RETURNS void
    AS 'MODULE_PATHNAME', 'colcrypt_reset_stat_wrapper'
    LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION colcrypt.reset_stat() IS 'set the counters of colcrypt.stat to zero';

REVOKE EXECUTE ON FUNCTION colcrypt.stat_counters() FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION colcrypt.reset_stat() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION colcrypt.stat_counters() TO pg_monitor;
GRANT SELECT ON colcrypt.stat TO pg_monitor;

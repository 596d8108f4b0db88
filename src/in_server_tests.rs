//! Tests that run inside the server (`cargo pgrx test`): what is smallest shown
//! there. The ring is the one of `pg_test::postgresql_conf_options()`.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;
    use pgrx::spi::Error as SpiError;

    /// The id of the test ring's only key.
    const PRIMARY: &str = "dff573a2";

    /// Whether the query's first column of its first row is true.
    fn holds(query: &str) -> Result<bool, SpiError> {
        Ok(Spi::get_one::<bool>(query)? == Some(true))
    }

    fn text(query: &str) -> Result<String, SpiError> {
        Ok(Spi::get_one::<String>(query)?.unwrap_or_else(|| "NULL".to_owned()))
    }

    /// The SQLSTATE that a command ends with. PL/pgSQL catches the error, so this
    /// also shows that a transaction survives it.
    fn sqlstate(command: &str) -> Result<String, SpiError> {
        Spi::run(
            "CREATE OR REPLACE FUNCTION pg_temp.sqlstate_of(command text) RETURNS text
             LANGUAGE plpgsql AS $$
             BEGIN
                 EXECUTE command;
                 RETURN '00000';
             EXCEPTION WHEN OTHERS THEN
                 RETURN SQLSTATE;
             END
             $$",
        )?;
        let state =
            Spi::get_one_with_args::<String>("SELECT pg_temp.sqlstate_of($1)", &[command.into()])?;
        Ok(state.unwrap_or_default())
    }

    #[pg_test]
    fn a_value_reads_as_it_was_written() -> Result<(), SpiError> {
        for value in ["", "x", "it''s", "🔐 ünïcödé", "colcrypt:v", "two\nlines"] {
            let query = format!("SELECT '{value}'::encrypted_text::text = '{value}'");
            assert!(holds(&query)?, "{value:?} from a literal");
            let query = format!("SELECT decrypt(encrypt('{value}')) = '{value}'");
            assert!(holds(&query)?, "{value:?} through encrypt()");
        }
        Ok(())
    }

    #[pg_test]
    fn every_length_takes_45_bytes_more() -> Result<(), SpiError> {
        assert!(holds(
            "SELECT bool_and((colcrypt.inspect(encrypt(repeat('x', n)))).stored_bytes = n + 45
                 AND decrypt(encrypt(repeat('x', n))) = repeat('x', n))
             FROM generate_series(0, 300) AS n",
        )?);
        Ok(())
    }

    #[pg_test]
    fn a_result_may_be_empty() -> Result<(), SpiError> {
        for algorithm in ["xaes-256-gcm", "aes-256-gcm", "fernet", "envelope"] {
            Spi::run(&format!("SET LOCAL colcrypt.algorithm = '{algorithm}'"))?;
            assert!(holds("SELECT decrypt(encrypt('')) = ''")?, "{algorithm}");
            assert!(
                holds("SELECT try_decrypt(encrypt('')) = ''")?,
                "{algorithm}"
            );
            assert!(
                holds("SELECT encrypted_text_out(encrypt(''))::text = ''")?,
                "{algorithm}"
            );
            assert!(
                holds("SELECT encrypted_text_send(encrypt('')) = ''::bytea")?,
                "{algorithm}"
            );
        }
        Ok(())
    }

    #[pg_test]
    fn inspect_tells_what_the_header_says() -> Result<(), SpiError> {
        let told = text("SELECT colcrypt.inspect(encrypt('four'))::text")?;
        assert_eq!(told, format!("(1,xaes-256-gcm,{PRIMARY},4,49,)"));
        Spi::run("SET LOCAL colcrypt.algorithm = 'fernet'")?;
        assert!(holds(
            "SELECT suite = 'fernet' AND plaintext_bytes IS NULL AND stored_bytes = 78
                 AND sealed_at BETWEEN now() - interval '1 hour' AND now() + interval '1 hour'
             FROM colcrypt.inspect(encrypt('four'))",
        )?);
        assert!(holds("SELECT colcrypt.inspect(NULL) IS NULL")?);
        Ok(())
    }

    #[pg_test]
    fn ciphertext_comes_back_byte_for_byte() -> Result<(), SpiError> {
        for algorithm in ["xaes-256-gcm", "aes-256-gcm", "fernet", "envelope"] {
            Spi::run(&format!("SET LOCAL colcrypt.algorithm = '{algorithm}'"))?;
            assert!(
                holds(
                    "SELECT ciphertext(from_ciphertext(form)) = form
                         AND decrypt(from_ciphertext(form)) = 'x'
                     FROM (SELECT ciphertext(encrypt('x')) AS form OFFSET 0) AS s",
                )?,
                "{algorithm}"
            );
        }
        Ok(())
    }

    #[pg_test]
    fn try_decrypt_gives_null_where_decrypt_raises() -> Result<(), SpiError> {
        // Sealed under a key that is gone afterwards.
        Spi::run(
            "SELECT set_config('colcrypt.key', colcrypt.generate_key(), true);
             CREATE TEMP TABLE lost AS SELECT encrypt('x') AS secret;
             SELECT set_config('colcrypt.key', '', true)",
        )?;
        assert!(holds("SELECT try_decrypt(secret) IS NULL FROM lost")?);
        assert_eq!(sqlstate("SELECT decrypt(secret) FROM lost")?, "55000");
        assert_eq!(sqlstate("SELECT secret::text FROM lost")?, "55000");
        Ok(())
    }

    #[pg_test]
    fn errors_carry_their_sqlstate() -> Result<(), SpiError> {
        for (command, expected) in [
            ("SELECT 'x'::encrypted_text", "00000"),
            ("SELECT 'colcrypt:v1:x'::encrypted_text", "22P02"),
            ("SELECT encrypt('colcrypt:v1:x')", "22P02"),
            ("SELECT from_ciphertext('x')", "22P02"),
            ("SELECT from_fernet('x')", "22P02"),
            ("SELECT fernet_token(encrypt('x'))", "22023"),
            ("SELECT 'x'::encrypted_text('a', 'b')", "22023"),
            ("SELECT 'x'::encrypted_text(pii)", "42704"),
            ("SELECT set_config('colcrypt.key', 'x', true)", "22023"),
            ("ALTER ROLE CURRENT_USER SET colcrypt.key = 'x'", "22023"),
            ("SELECT rotate_column('pg_class', 'nothing')", "42703"),
            ("SELECT rotate_column('pg_class', 'relname')", "42804"),
            ("SELECT rotate_column('pg_settings', 'name')", "42809"),
            ("SELECT rotate_column('pg_class', 'relname', 0)", "22023"),
            ("SELECT rotate_column('pg_class', 'relname', NULL)", "22023"),
            (
                "SELECT rotate_column('pg_class', 'relname', 1, -1)",
                "22023",
            ),
            ("SELECT rotate_column(0, 'relname')", "42P01"),
        ] {
            assert_eq!(sqlstate(command)?, expected, "{command}");
        }
        Ok(())
    }

    #[pg_test(error = "value starts with the reserved prefix \"colcrypt:v\"")]
    fn the_reserved_prefix_is_refused() -> Result<(), SpiError> {
        Spi::run("SELECT 'colcrypt:v1:AQ'::text::encrypted_text")
    }

    #[pg_test(error = "value is not ciphertext in text form")]
    fn garbage_is_no_ciphertext() -> Result<(), SpiError> {
        Spi::run("SELECT from_ciphertext('colcrypt:v1:AQ')")
    }

    #[pg_test(error = "\"rotated_view\" is a view, not a table")]
    fn a_view_is_not_rotated() -> Result<(), SpiError> {
        Spi::run("CREATE TEMP VIEW rotated_view AS SELECT encrypt('x') AS secret")?;
        Spi::run("SELECT rotate_column('rotated_view', 'secret')")
    }

    #[pg_test]
    fn rotate_column_counts_what_it_rotates() -> Result<(), SpiError> {
        Spi::run(
            "CREATE TEMP TABLE rotated AS
             SELECT i, encrypt('value ' || i) AS secret FROM generate_series(1, 10) AS i",
        )?;
        Spi::run("INSERT INTO rotated VALUES (11, NULL)")?;
        let rotate = |max_rows: &str| {
            Spi::get_one::<i64>(&format!(
                "SELECT rotate_column('rotated', 'secret', max_rows => {max_rows})"
            ))
        };
        assert_eq!(rotate("NULL")?, Some(0));
        Spi::run("SET LOCAL colcrypt.algorithm = 'envelope'")?;
        assert_eq!(rotate("3")?, Some(3));
        assert_eq!(rotate("NULL")?, Some(7));
        assert_eq!(rotate("NULL")?, Some(0));
        assert!(holds(
            "SELECT bool_and(secret::text = 'value ' || i
                 AND (colcrypt.inspect(secret)).suite = 'envelope')
             FROM rotated WHERE i < 11",
        )?);
        Ok(())
    }

    #[pg_test]
    fn a_session_key_stands_in_front() -> Result<(), SpiError> {
        Spi::run(
            "CREATE TEMP TABLE mine AS SELECT encrypt('server') AS secret;
             SELECT set_config('colcrypt.key', colcrypt.generate_key(), true)",
        )?;
        let id = text("SELECT current_setting('colcrypt.key')")?;
        assert_eq!(id.len(), PRIMARY.len(), "an id, not a key");
        assert_ne!(id, PRIMARY);
        assert_eq!(text("SELECT (colcrypt.inspect(encrypt('x'))).key_id")?, id);
        assert_eq!(text("SELECT secret::text FROM mine")?, "server");
        Spi::run("RESET colcrypt.key")?;
        assert_eq!(
            text("SELECT (colcrypt.inspect(encrypt('x'))).key_id")?,
            PRIMARY
        );
        Ok(())
    }

    #[pg_test]
    fn a_type_modifier_is_shown_as_it_is_read() -> Result<(), SpiError> {
        assert!(holds(
            "SELECT format_type('encrypted_text'::regtype,
                 encrypted_text_typmod_in(ARRAY['pii']::cstring[]))
                 = 'encrypted_text(''#305385e2'')'",
        )?);
        assert!(holds(
            "SELECT encrypted_text_typmod_in(ARRAY['#305385e2']::cstring[])
                 = encrypted_text_typmod_in(ARRAY['pii']::cstring[])",
        )?);
        Ok(())
    }
}

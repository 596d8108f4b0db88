//! colcrypt: transparent column encryption for PostgreSQL.
//!
//! This file only lists the modules, names the SQL files in order and loads the
//! library. Everything that needs no PostgreSQL is in `crates/core`.

#![deny(unsafe_op_in_unsafe_fn)]

use pgrx::prelude::*;

mod access;
mod admin;
mod audit;
mod backend_local;
mod compat;
mod doctor;
mod encoding;
mod entry;
mod error;
mod gucs;
mod hooks;
mod keep_masked;
mod key_usage;
mod keyring;
mod log_hook;
mod managed_keys;
mod migration;
mod own_tables;
mod progress;
mod relations;
mod role_access;
mod rotation;
mod rows;
mod sealing;
mod search;
mod stats;
mod status;
mod tally;
mod types;
mod verify;

#[cfg(any(test, feature = "pg_test"))]
mod in_server_tests;

::pgrx::pg_module_magic!(name, version);

extension_sql_file!("../sql/admin.sql", name = "admin", bootstrap);
extension_sql_file!("../sql/types.sql", name = "types", requires = ["admin"]);
extension_sql_file!(
    "../sql/functions.sql",
    name = "functions",
    requires = ["types"]
);
extension_sql_file!(
    "../sql/managed_keys.sql",
    name = "managed_keys",
    requires = ["functions"]
);
extension_sql_file!(
    "../sql/views.sql",
    name = "views",
    requires = ["managed_keys"]
);
extension_sql_file!("../sql/search.sql", name = "search", requires = ["views"]);
extension_sql_file!(
    "../sql/encrypted_text.sql",
    name = "encrypted_text",
    requires = ["search"]
);
extension_sql_file!(
    "../sql/concatenation.sql",
    name = "concatenation",
    requires = ["encrypted_text"]
);
extension_sql_file!(
    "../sql/encrypted_jsonb.sql",
    name = "encrypted_jsonb",
    requires = ["concatenation"]
);
extension_sql_file!(
    "../sql/rotation.sql",
    name = "rotation",
    requires = ["encrypted_jsonb"]
);
extension_sql_file!(
    "../sql/migration.sql",
    name = "migration",
    requires = ["rotation"]
);
extension_sql_file!(
    "../sql/migration_online.sql",
    name = "migration_online",
    requires = ["migration"]
);
extension_sql_file!(
    "../sql/operating.sql",
    name = "operating",
    requires = ["migration_online"]
);
extension_sql_file!(
    "../sql/doctor.sql",
    name = "doctor",
    requires = ["operating"]
);
extension_sql_file!(
    "../sql/comments.sql",
    name = "comments",
    requires = ["doctor"]
);

/// This module is required by `cargo pgrx test`.
#[cfg(test)]
pub mod pg_test {
    /// The ring that in-server tests run with: 32 bytes of 0x00 to 0x1f.
    pub fn setup(_options: Vec<&str>) {}

    #[must_use]
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec![
            "shared_preload_libraries = 'colcrypt'",
            "colcrypt.key = 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='",
        ]
    }
}

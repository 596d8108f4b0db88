//! Compiles `src/cpu.c`, the one file that runs before it is known whether the
//! CPU can run the rest.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/cpu.c");
    println!("cargo::rerun-if-env-changed=PGRX_PG_CONFIG_PATH");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");

    // What pgrx itself builds against: src of both is the same PostgreSQL.
    let pg_config = env::var("PGRX_PG_CONFIG_PATH").unwrap_or_else(|_| "pg_config".to_owned());
    let output = Command::new(&pg_config)
        .arg("--includedir-server")
        .output()
        .unwrap_or_else(|error| panic!("{pg_config} does not run: {error}"));
    assert!(
        output.status.success(),
        "{pg_config} --includedir-server failed"
    );
    let include = String::from_utf8(output.stdout).expect("a path in UTF-8");

    let mut build = cc::Build::new();
    build.file("src/cpu.c").include(include.trim());
    // With .cargo/config.toml as it is, and not with PORTABLE=1.
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if features.split(',').any(|feature| feature == "avx2") {
        build.define("COLCRYPT_NEEDS_X86_64_V3", None);
    }
    build.compile("colcrypt_cpu");
}

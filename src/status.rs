//! `colcrypt.status()`: whether encryption works, for probes and dashboards.

use colcrypt_core::FORMAT_VERSION;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::keyring;
use crate::types::datum::Record;

/// One row, whatever is wrong.
#[pg_extern(sql = false)]
fn colcrypt_status(call: pg_sys::FunctionCallInfo) -> Result<Record, ErrorReport> {
    let server = keyring::server_status();
    let ring = keyring::current();
    let primary = ring.primary().ok().map(|key| key.id().to_string());
    let columns = [
        primary.is_some().into_datum(),
        primary.into_datum(),
        i32::try_from(ring.entries().count()).ok().into_datum(),
        ring.source_name().map(str::to_owned).into_datum(),
        keyring::is_preloaded().into_datum(),
        server.loaded_at.into_datum(),
        server.last_error.into_datum(),
        env!("CARGO_PKG_VERSION").into_datum(),
        i32::from(FORMAT_VERSION).into_datum(),
    ];
    // SAFETY: the SQL function returns a record of these types, in this order; a
    // timestamp is its microseconds.
    Ok(unsafe { Record::new(call, columns) })
}

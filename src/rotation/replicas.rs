//! How far behind the replicas are.

use pgrx::prelude::*;

use crate::error::Error;
use crate::own_tables;

/// The bytes of WAL that the slowest connected replica or subscriber has still to apply;
/// 0 if there is none.
///
/// # Errors
/// [`Error::OwnTable`].
pub(super) fn lag_bytes() -> Result<i64, Error> {
    // Others do not see where a replica is.
    own_tables::as_owner(|| {
        let lag: Option<i64> = Spi::get_one(
            "SELECT max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn))::bigint
             FROM pg_stat_replication",
        )?;
        Ok(lag.unwrap_or_default())
    })
}

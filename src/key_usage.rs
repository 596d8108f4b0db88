//! `colcrypt.key_usage()`: which keys the values of a column are under; and
//! `colcrypt.keys_in_index()`: which keys an index still needs.

use core::ffi::CStr;

use colcrypt_core::{KeyId, Stored, Suite};
use pgrx::iter::TableIterator;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::error::Error;
use crate::relations::{self, ReadableColumn};
use crate::sealing::Sealer;

/// Values of a column under one key, in one suite.
struct Usage {
    key_id: String,
    suite: String,
    rows: i64,
    bytes: i64,
}

/// With the rights of the caller, who must be allowed to read the column and all
/// rows of the table.
#[expect(
    clippy::type_complexity,
    reason = "pgrx reads the columns from the type"
)]
#[pg_extern(sql = false)]
fn colcrypt_key_usage(
    relation: pg_sys::Oid,
    column_name: &CStr,
) -> Result<
    TableIterator<
        'static,
        (
            name!(key_id, String),
            name!(suite, String),
            name!(rows, i64),
            name!(bytes, i64),
            name!(stale, bool),
        ),
    >,
    ErrorReport,
> {
    let column = ReadableColumn::find(relation, column_name)?;
    let modifier = relations::find_modifier(relation, column.attribute);
    let usage = read(&column)?;
    Ok(TableIterator::new(usage.into_iter().map(move |usage| {
        let stale = is_stale(&usage.key_id, &usage.suite, modifier);
        (usage.key_id, usage.suite, usage.rows, usage.bytes, stale)
    })))
}

fn read(column: &ReadableColumn) -> Result<Vec<Usage>, Error> {
    let query = column.query(
        "SELECT (i).key_id, (i).suite, pg_catalog.count(*), pg_catalog.sum((i).stored_bytes)
         FROM (SELECT colcrypt.inspect(COLUMN) AS i FROM RELATION
               WHERE COLUMN IS NOT NULL OFFSET 0) AS s
         GROUP BY 1, 2 ORDER BY 1, 2",
    );
    Spi::connect(|client| {
        let mut usage = Vec::new();
        for row in client.select(query.as_c_str(), None, &[])? {
            usage.push(Usage {
                key_id: row.get(1)?.unwrap_or_default(),
                suite: row.get(2)?.unwrap_or_default(),
                rows: row.get(3)?.unwrap_or_default(),
                bytes: row.get(4)?.unwrap_or_default(),
            });
        }
        Ok(usage)
    })
    .map_err(|_: pgrx::spi::Error| Error::KeyTable("the values could not be counted"))
}

/// Those of `key_ids` that the pages of an index mention in what looks like the
/// header of a stored value: in entries of rows, of rows that are gone, in copies in
/// inner pages, and in space that is free. Whoever finds none needs no `REINDEX`.
#[pg_extern(sql = false)]
fn colcrypt_keys_in_index(
    index: pg_sys::Oid,
    key_ids: Vec<String>,
) -> Result<pgrx::iter::SetOfIterator<'static, String>, ErrorReport> {
    let mut missing: Vec<_> = key_ids
        .into_iter()
        .filter_map(|text| Some((text.parse::<KeyId>().ok()?, text)))
        .collect();
    let mut found = Vec::new();
    if relations::relation_kind(index) != pg_sys::RELKIND_INDEX {
        let relation =
            relations::relation_name(index).unwrap_or_else(|| index.to_u32().to_string());
        return Err(Error::NotIndex { relation }.into());
    }
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: the sequence is that of PostgreSQL's own scans of all pages of an
    // index (btvacuumscan()); a page is not looked at without its lock.
    unsafe {
        let relation = pg_sys::index_open(index, lock);
        let fork = pg_sys::ForkNumber::MAIN_FORKNUM;
        for block in 0..pg_sys::RelationGetNumberOfBlocksInFork(relation, fork) {
            pgrx::check_for_interrupts!();
            let mode = pg_sys::ReadBufferMode::RBM_NORMAL;
            let strategy = core::ptr::null_mut();
            let buffer = pg_sys::ReadBufferExtended(relation, fork, block, mode, strategy);
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
            let page = pg_sys::BufferGetPage(buffer).cast::<u8>();
            let page = core::slice::from_raw_parts(page, pg_sys::BLCKSZ as usize);
            missing.retain(|(id, text)| {
                let mentioned = page.windows(Stored::HEADER_LEN).any(|window| {
                    Stored::parse_header(window.try_into().expect("as long as a header"))
                        .is_ok_and(|(_, key)| key == *id)
                });
                if mentioned {
                    found.push(text.clone());
                }
                !mentioned
            });
            pg_sys::UnlockReleaseBuffer(buffer);
            if missing.is_empty() {
                break;
            }
        }
        pg_sys::index_close(relation, lock);
    }
    Ok(pgrx::iter::SetOfIterator::new(found))
}

/// Whether a rotation would move the values; also if it cannot be told.
pub(crate) fn is_stale(key_id: &str, suite: &str, modifier: i32) -> bool {
    let (Ok(id), Some(suite)) = (key_id.parse(), Suite::from_name(suite)) else {
        return true;
    };
    let is_stale = |sealer: Option<Sealer>| match sealer {
        Some(sealer) => Ok(sealer.header()? != (suite, id)),
        // Its key is destroyed: it stays as it is.
        None => Ok::<_, Error>(false),
    };
    let stale = Sealer::of_stored_value(id, modifier).and_then(is_stale);
    stale.unwrap_or(true)
}

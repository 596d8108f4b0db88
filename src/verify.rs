//! `colcrypt.verify_column()`: opens every value of a column and tells which cannot be
//! opened, and why.

use core::ffi::CStr;

use colcrypt_core::{Payload, Stored};
use pgrx::iter::TableIterator;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::progress::{self, Watched};
use crate::relations::ReadableColumn;
use crate::types::EncryptedType;
use crate::types::datum::{Call, Record};
use crate::types::json;
use crate::{access, compat, sealing};

/// `colcrypt.verify_value(type)`: key and suite of a value, and why it cannot be opened;
/// NULL if it can.
pub(crate) fn verify_value<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    Error::unwrap_or_raise(access::check_decrypt());
    // SAFETY: declared with a value of the type, strict.
    let value = unsafe { call.varlena(0) };
    let stored = Stored::parse(&value).ok();
    let failure = open(T::PAYLOAD, &value).err();
    progress::count_row();
    let columns = [
        stored.and_then(|stored| stored.key_id().to_string().into_datum()),
        stored.and_then(|stored| stored.suite().name().into_datum()),
        failure.and_then(|error| error.to_string().into_datum()),
    ];
    // SAFETY: the SQL function returns a record of these types, in this order.
    unsafe { Record::new(call.raw(), columns) }.into_raw()
}

fn open(payload: Payload, value: &[u8]) -> Result<(), Box<Error>> {
    let plain: Zeroizing<Vec<u8>> = sealing::open(payload, value)?;
    if payload == Payload::Jsonb {
        json::normalized(&plain)?;
    }
    Ok(())
}

/// With the rights of the caller, who must be allowed to read the column and all rows
/// of the table.
#[expect(
    clippy::type_complexity,
    reason = "pgrx reads the columns from the type"
)]
#[pg_extern(sql = false)]
fn colcrypt_verify_column(
    relation: pg_sys::Oid,
    column_name: &CStr,
) -> Result<
    TableIterator<
        'static,
        (
            name!(key_id, Option<String>),
            name!(suite, Option<String>),
            name!(ok, i64),
            name!(failed, i64),
            name!(first_failure, Option<pg_sys::ItemPointerData>),
            name!(reason, Option<String>),
        ),
    >,
    ErrorReport,
> {
    access::check_decrypt()?;
    let column = ReadableColumn::find(relation, column_name)?;
    let expected = compat::estimated_rows(relation);
    let _watched = Watched::begin(relation, column.attribute, expected);
    let query = column.query(
        "WITH failure AS (
             SELECT (v).key_id, (v).suite, (v).failure, pg_catalog.count(*) AS rows,
                    pg_catalog.min(place) AS first
             FROM (SELECT colcrypt.verify_value(COLUMN) AS v, ctid AS place FROM RELATION
                   WHERE COLUMN IS NOT NULL OFFSET 0) AS s
             GROUP BY 1, 2, 3
         )
         SELECT key_id, suite,
                coalesce(pg_catalog.sum(rows) FILTER (WHERE failure IS NULL), 0)::bigint,
                coalesce(pg_catalog.sum(rows) FILTER (WHERE failure IS NOT NULL), 0)::bigint,
                pg_catalog.min(first) FILTER (WHERE failure IS NOT NULL),
                (pg_catalog.array_agg(failure ORDER BY first)
                     FILTER (WHERE failure IS NOT NULL))[1]
         FROM failure GROUP BY 1, 2 ORDER BY 1, 2",
    );
    let rows = Spi::connect(|client| {
        let mut rows = Vec::new();
        for row in client.select(query.as_c_str(), None, &[])? {
            rows.push((
                row.get(1)?,
                row.get(2)?,
                row.get(3)?.unwrap_or_default(),
                row.get(4)?.unwrap_or_default(),
                row.get(5)?,
                row.get(6)?,
            ));
        }
        Ok(rows)
    });
    let rows =
        rows.map_err(|_: pgrx::spi::Error| Error::KeyTable("the values could not be read"))?;
    Ok(TableIterator::new(rows))
}

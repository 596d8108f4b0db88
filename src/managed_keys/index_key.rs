//! The key of the blind indexes.

use core::cell::Cell;

use colcrypt_core::{IndexKey, KeyIdentity, SecretKey, TagFunction, fingerprint};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::table::{self, Kind, Row, changes};
use super::wrap;
use crate::backend_local::BackendLocal;
use crate::error::Error;
use crate::gucs::{self, Input};
use crate::{access, compat};

/// What [`changes`] was when there was an index key.
static SEEN_AT: BackendLocal<Cell<Option<u64>>> = BackendLocal::new(Cell::new(None));

/// The key of this database's blind indexes. Made if there is none yet and the
/// transaction can write.
///
/// # Errors
/// [`Error::NoIndexKey`]; [`Error::NoKeyRing`], [`Error::UnknownKey`] or
/// [`Error::DamagedKey`] when it cannot be unwrapped.
pub(crate) fn index_key() -> Result<IndexKey, Error> {
    let row = match read()? {
        Some(row) => row,
        None => make(TagFunction::default())?,
    };
    // A row whose suite was edited does not unwrap.
    let key = row.unwrap()?;
    Ok(IndexKey::new(&key, tag_function(&row)?))
}

/// Makes the index key if this is the time for it: before PostgreSQL goes into
/// a state where nothing can be written, a parallel query or index build.
/// Whatever is in the way will be an error when the key is needed; nothing is
/// waited for, because the query may be about something else.
pub(crate) fn prepare_index_key() -> Result<(), Error> {
    if SEEN_AT.get() == Some(changes()) || compat::collects_statistics() || compat::in_vacuum() {
        return Ok(());
    }
    if can_make().is_err() {
        return Ok(());
    }
    let made = match read() {
        Ok(Some(_)) => true,
        Ok(None) => try_make(TagFunction::default())?.is_some(),
        Err(_) => false,
    };
    SEEN_AT.set(made.then(changes));
    Ok(())
}

fn read() -> Result<Option<Row>, Error> {
    let rows = table::read_rows()?;
    Ok(rows.into_iter().find(|row| row.kind == Kind::Index))
}

fn tag_function(row: &Row) -> Result<TagFunction, Error> {
    TagFunction::from_name(&row.suite).ok_or(Error::KeyTable(
        "its index key makes tags in a way that this library does not know",
    ))
}

/// To be asked before anything is locked.
fn can_make() -> Result<(), Error> {
    if let Some(reason) = table::cannot_write() {
        return Err(Error::NoIndexKey { reason });
    }
    if access::takes_ciphertext() || gucs::input() == Input::Ciphertext {
        return Err(Error::IndexKeyToCome);
    }
    wrap::can_wrap()
}

/// Makes the index key, or waits for another session that does.
fn make(function: TagFunction) -> Result<Row, Error> {
    can_make()?;
    // SAFETY: reads a variable of this backend.
    if unsafe { pg_sys::InterruptHoldoffCount } > 0 {
        // An index compares while it holds a page. Who waits for a transaction now
        // could not be cancelled, and no deadlock would be found.
        return try_make(function)?.ok_or(Error::NoIndexKey {
            reason: "Another session is making it.",
        });
    }
    // Two sessions that need it first: the second one waits here, and then finds
    // the key of the first, or makes one if the first rolled back.
    table::lock(c"colcrypt.create_index_key()")?;
    make_locked(function)
}

/// Makes the index key unless another session is about to.
fn try_make(function: TagFunction) -> Result<Option<Row>, Error> {
    if table::try_lock()? {
        make_locked(function).map(Some)
    } else {
        Ok(None)
    }
}

fn make_locked(function: TagFunction) -> Result<Row, Error> {
    if let Some(row) = read()? {
        return Ok(row);
    }
    let key = SecretKey::random()?;
    let identity = KeyIdentity {
        id: fingerprint(&key),
        kind: Kind::Index.name(),
        name: "",
        suite: function.name(),
    };
    wrap::insert(&identity, &key, false)?;
    read()?.ok_or(Error::KeyTable("the new index key is not there"))
}

/// `colcrypt.create_index_key(algorithm)`: gives the id of the index key, which is
/// made if there is none.
#[pg_extern(sql = false)]
fn colcrypt_create_index_key(algorithm: Option<&str>) -> Result<String, ErrorReport> {
    // Nothing stands for HMAC in rows of before, but is no name to ask by.
    let find = |name: &str| TagFunction::from_name(name).filter(|_| !name.is_empty());
    let wanted = match algorithm {
        None => None,
        Some(name) => Some(find(name).ok_or(Error::Parameter {
            what: "algorithm of an index key",
            bound: "\"aes-256-cmac\" or \"hmac-sha-256\"",
        })?),
    };
    let row = match read()? {
        Some(row) => row,
        None => make(wanted.unwrap_or_default())?,
    };
    let function = tag_function(&row)?;
    if wanted.is_some_and(|wanted| wanted != function) {
        let algorithm = function.name();
        return Err(Error::OtherIndexKey { algorithm }.into());
    }
    row.unwrap()?;
    Ok(row.id.to_string())
}

//! The extension's own tables: found by name, and written whatever the rights of the
//! caller.

use core::ffi::CStr;

use pgrx::prelude::*;

use crate::compat;
use crate::error::Error;
use crate::hooks;

/// The OID of a table in schema `colcrypt`.
///
/// # Errors
/// [`Error::KeyTable`].
pub(crate) fn oid(name: &CStr) -> Result<pg_sys::Oid, Error> {
    // SAFETY: catalog look-ups by name.
    let table = unsafe {
        match pg_sys::get_namespace_oid(c"colcrypt".as_ptr(), true) {
            pg_sys::InvalidOid => pg_sys::InvalidOid,
            schema => pg_sys::get_relname_relid(name.as_ptr(), schema),
        }
    };
    if table == pg_sys::InvalidOid {
        return Err(Error::KeyTable("it does not exist"));
    }
    Ok(table)
}

/// Whether this database has the extension, and the table is its own: anybody may have
/// made a schema `colcrypt` before that.
pub(crate) fn is_installed(table: &CStr) -> bool {
    // SAFETY: catalog look-ups by name.
    unsafe {
        let extension = pg_sys::get_extension_oid(c"colcrypt".as_ptr(), true);
        extension != pg_sys::InvalidOid
            && oid(table).is_ok_and(|table| {
                pg_sys::getExtensionOfObject(pg_sys::RelationRelationId, table) == extension
            })
    }
}

/// Runs `work` with the rights of the extension's owner, and a search path on which
/// nobody can have put anything.
///
/// # Errors
/// [`Error::KeyTable`], [`Error::OwnTable`].
pub(crate) fn as_owner<T>(work: impl FnOnce() -> Result<T, pgrx::spi::Error>) -> Result<T, Error> {
    let owner = compat::relation_owner(oid(c"key")?);
    // SAFETY: if an error is raised in between, the abort of the (sub)transaction
    // puts user and settings back.
    unsafe {
        let (mut user, mut security) = (pg_sys::InvalidOid, 0);
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut security);
        pg_sys::SetUserIdAndSecContext(
            owner,
            security | (pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_NOFORCE_RLS) as i32,
        );
        let level = pg_sys::NewGUCNestLevel();
        pg_sys::set_config_option(
            c"search_path".as_ptr(),
            c"pg_catalog, pg_temp".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
        let result = hooks::as_part(work);
        pg_sys::AtEOXact_GUC(false, level);
        pg_sys::SetUserIdAndSecContext(user, security);
        result.map_err(|_| Error::OwnTable("it could not be read or written"))
    }
}

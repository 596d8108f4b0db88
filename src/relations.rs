//! What the catalog says of relations and their encrypted columns.

use core::cell::Cell;
use core::ffi::CStr;

use pgrx::prelude::*;

use crate::backend_local::BackendLocal;
use crate::error::Error;
use crate::managed_keys;

/// The name of a relation, for messages.
pub(crate) fn relation_name(oid: pg_sys::Oid) -> Option<String> {
    // SAFETY: gives a palloc'd string or null.
    unsafe {
        let name = pg_sys::get_rel_name(oid);
        name.as_ref()
            .map(|name| CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}

/// The kind of a relation (`pg_class.relkind`); 0 if there is none.
pub(crate) fn relation_kind(oid: pg_sys::Oid) -> u8 {
    // SAFETY: gives '\0' for an OID that is no relation.
    unsafe { pg_sys::get_rel_relkind(oid) as u8 }
}

/// # Errors
/// [`Error::NoColumn`].
pub(crate) fn find_column(oid: pg_sys::Oid, column: &CStr, relation: &str) -> Result<i16, Error> {
    // SAFETY: gives 0 for no such column, dropped ones included, and below 0 for
    // a system column.
    match unsafe { pg_sys::get_attnum(oid, column.as_ptr()) } {
        number @ 1.. => Ok(number),
        _ => Err(Error::NoColumn {
            relation: relation.to_owned(),
            column: column.to_string_lossy().into_owned(),
        }),
    }
}

/// The type modifier of a column, or of the domain that it is of.
pub(crate) fn find_modifier(oid: pg_sys::Oid, attribute: i16) -> i32 {
    // SAFETY: the attribute exists.
    unsafe {
        let (mut declared, mut modifier, mut collation) =
            (pg_sys::InvalidOid, -1, pg_sys::InvalidOid);
        pg_sys::get_atttypetypmodcoll(
            oid,
            attribute,
            &raw mut declared,
            &raw mut modifier,
            &raw mut collation,
        );
        pg_sys::getBaseTypeAndTypmod(declared, &raw mut modifier);
        modifier
    }
}

/// # Errors
/// [`Error::WrongType`] unless the column is encrypted.
pub(crate) fn check_type(
    oid: pg_sys::Oid,
    attribute: i16,
    column: &CStr,
    relation: &str,
    encrypted_text: pg_sys::Oid,
) -> Result<(), Error> {
    // SAFETY: the attribute exists; format_type_be() gives a palloc'd string.
    let (base, element, actual) = unsafe {
        let declared = pg_sys::get_atttype(oid, attribute);
        let actual = CStr::from_ptr(pg_sys::format_type_be(declared));
        let base = pg_sys::getBaseType(declared);
        (
            base,
            pg_sys::get_element_type(base),
            actual.to_string_lossy().into_owned(),
        )
    };
    if base == encrypted_text {
        return Ok(());
    }
    let hint = if element == encrypted_text {
        "Cast an array to text[] and back in an UPDATE to encrypt its elements again."
    } else {
        ""
    };
    Err(Error::WrongType {
        relation: relation.to_owned(),
        column: column.to_string_lossy().into_owned(),
        actual,
        hint,
    })
}

/// The OID of the type, if the extension is there: what `colcrypt.inspect()` takes.
pub(crate) fn encrypted_text() -> Option<pg_sys::Oid> {
    static KNOWN: BackendLocal<Cell<Option<(u64, pg_sys::Oid)>>> =
        BackendLocal::new(Cell::new(None));
    let now = managed_keys::changes();
    if let Some((then, known)) = KNOWN.get()
        && then == now
    {
        return Some(known);
    }
    // SAFETY: catalog look-ups by name; the array of argument types is palloc'd.
    unsafe {
        let name = pg_sys::stringToQualifiedNameList(c"colcrypt.inspect".as_ptr());
        let function = pg_sys::LookupFuncName(name, -1, core::ptr::null(), true);
        if function == pg_sys::InvalidOid {
            return None;
        }
        let (mut types, mut count) = (core::ptr::null_mut(), 0);
        pg_sys::get_func_signature(function, &raw mut types, &raw mut count);
        let encrypted_text = (count == 1).then(|| *types)?;
        KNOWN.set(Some((now, encrypted_text)));
        Some(encrypted_text)
    }
}

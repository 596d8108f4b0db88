//! What the catalog says of relations and their encrypted columns.

use core::cell::Cell;
use core::ffi::CStr;
use std::ffi::CString;

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

/// The name of a relation with its schema, as SQL has it.
pub(crate) fn qualified_name(oid: pg_sys::Oid) -> Option<String> {
    // SAFETY: catalog look-ups, which give palloc'd strings or null.
    unsafe {
        let name = pg_sys::get_rel_name(oid);
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(oid));
        if name.is_null() || schema.is_null() {
            return None;
        }
        let quoted = pg_sys::quote_qualified_identifier(schema, name);
        Some(CStr::from_ptr(quoted).to_string_lossy().into_owned())
    }
}

/// Whether a table has a column whose values are encrypted.
pub(crate) fn has_encrypted_column(oid: pg_sys::Oid) -> bool {
    let Some(encrypted_text) = encrypted_text() else {
        return false;
    };
    let kinds = [
        pg_sys::RELKIND_RELATION,
        pg_sys::RELKIND_PARTITIONED_TABLE,
        pg_sys::RELKIND_MATVIEW,
        pg_sys::RELKIND_FOREIGN_TABLE,
    ];
    if !kinds.contains(&relation_kind(oid)) {
        return false;
    }
    // SAFETY: catalog look-ups; a column that was dropped has no type.
    unsafe {
        let exists = |number: &i16| {
            let cache = pg_sys::SysCacheIdentifier::ATTNUM as i32;
            let none = pg_sys::Datum::null();
            pg_sys::SearchSysCacheExists(cache, oid.into(), (*number).into(), none, none)
        };
        (1..)
            .take_while(exists)
            .any(|number| pg_sys::getBaseType(pg_sys::get_atttype(oid, number)) == encrypted_text)
    }
}

/// Whether what a table has under this name is encrypted, or nothing of a column: an
/// expression. The name as PostgreSQL's messages quote it.
pub(crate) fn may_be_encrypted(table: pg_sys::Oid, column: &str) -> bool {
    let name = match column
        .strip_prefix('"')
        .and_then(|name| name.strip_suffix('"'))
    {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => column.to_owned(),
    };
    let (Some(encrypted_text), Ok(name)) = (encrypted_text(), CString::new(name)) else {
        return true;
    };
    // SAFETY: catalog look-ups; the number is 0 if there is no such column.
    unsafe {
        let number = pg_sys::get_attnum(table, name.as_ptr());
        if number == 0 {
            return true;
        }
        let base = pg_sys::getBaseType(pg_sys::get_atttype(table, number));
        base == encrypted_text || pg_sys::get_element_type(base) == encrypted_text
    }
}

/// The members of a list of nodes.
///
/// # Safety
/// `list` is null or a list of nodes, and outlives the iterator.
pub(crate) unsafe fn members(list: *mut pg_sys::List) -> impl Iterator<Item = *mut pg_sys::Node> {
    // SAFETY: by the caller's word.
    let cells = unsafe {
        if list.is_null() {
            &[]
        } else {
            core::slice::from_raw_parts((*list).elements, (*list).length as usize)
        }
    };
    // SAFETY: by the caller's word.
    cells.iter().map(|cell| unsafe { cell.ptr_value.cast() })
}

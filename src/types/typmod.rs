//! The type modifier, `encrypted_text(name)`: the column's values belong under
//! the managed key of that name. A modifier is a number, so it is a 31-bit hash
//! of the name; then DDL restores before the table of keys does.

use core::ffi::CStr;

use colcrypt_core::{is_key_name, modifier_from_name, parse_modifier, show_modifier};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::datum::{CStringBuf, Output};
use crate::error::Error;
use crate::sealing::NO_MODIFIER;
use crate::{encoding, managed_keys};

#[pg_extern(sql = false)]
fn encrypted_typmod_in(modifiers: Array<'_, &CStr>) -> Result<i32, ErrorReport> {
    let mut names = modifiers.iter();
    let (Some(Some(name)), None) = (names.next(), names.next()) else {
        return Err(Error::BadTypmod.into());
    };
    let name = name.to_str().map_err(|_| Error::BadTypmod)?;
    if name.starts_with('#') {
        return Ok(parse_modifier(name).ok_or(Error::BadTypmod)?);
    }
    if !is_key_name(name) {
        return Err(Error::BadTypmod.into());
    }
    Ok(modifier_from_name(name))
}

/// The name of the key, as DDL would take it again; or the hash, if there is no
/// such key.
#[pg_extern(sql = false)]
fn encrypted_typmod_out(modifier: i32) -> CStringBuf {
    let shown = if modifier == NO_MODIFIER {
        String::new()
    } else {
        // Printing a type must not fail, whatever is wrong with the table of keys.
        match managed_keys::name_of_modifier(modifier) {
            Ok(Some(name)) => format!("({})", encoding::quoted_identifier(&name)),
            _ => format!("('{}')", show_modifier(modifier)),
        }
    };
    CStringBuf::copy_of(shown.as_bytes())
}

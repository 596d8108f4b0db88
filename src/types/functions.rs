//! The SQL functions that every encrypted type has: input and output, casts to and
//! from its plain type, the everyday functions. `sql/types.sql` declares them.

use colcrypt_core::{Payload, Stored, encode_text, fernet_raw, is_reserved};
use pgrx::prelude::*;

use super::datum::{Call, Output, VarlenaBuf, per_value_function};
use super::{EncryptedType, json};
use crate::access::{self, Shown};
use crate::error::{Error, Wire};
use crate::sealing::{NO_MODIFIER, Sealer};
use crate::tally::{self, Operation};
use crate::{compat, keyring, relations, sealing};

/// Defines the functions of an encrypted type, those of `search` included. Their
/// symbols begin with its name.
macro_rules! encrypted_type {
    ($name:literal, $type:ty) => {
        const _: () = {
            use $crate::types::datum::per_value_function;
            use $crate::types::functions::*;

            per_value_function!(concat!($name, "_in"), |call| input::<$type>(&call));
            per_value_function!(concat!($name, "_out"), |call| output::<$type>(&call));
            per_value_function!(concat!($name, "_recv"), |call| receive::<$type>(&call));
            per_value_function!(concat!($name, "_send"), |call| send::<$type>(&call));
            per_value_function!(concat!($name, "_to_plain"), |call| to_plain::<$type>(&call));
            per_value_function!(concat!($name, "_from_plain"), |call| from_plain::<$type>(
                &call
            ));
            per_value_function!(concat!($name, "_coerce"), |call| coerce::<$type>(&call));
            per_value_function!(concat!($name, "_encrypt"), |call| encrypt::<$type>(&call));
            per_value_function!(concat!($name, "_encrypt_under"), |call| {
                encrypt_under::<$type>(&call)
            });
            per_value_function!(concat!($name, "_decrypt"), |call| decrypt::<$type>(&call));
            per_value_function!(concat!($name, "_try_decrypt"), |call| {
                try_decrypt::<$type>(&call)
            });
            per_value_function!(concat!($name, "_from_ciphertext"), |call| {
                from_ciphertext::<$type>(&call)
            });
            per_value_function!(concat!($name, "_from_fernet"), |call| {
                from_fernet::<$type>(&call)
            });
            per_value_function!(concat!($name, "_verify"), |call| {
                $crate::verify::verify_value::<$type>(&call)
            });
            per_value_function!(concat!($name, "_encrypt_value"), |call| {
                $crate::migration::encrypt_value::<$type>(&call)
            });
            per_value_function!(concat!($name, "_decrypt_value"), |call| {
                $crate::migration::decrypt_value::<$type>(&call)
            });
            per_value_function!(concat!($name, "_is_own_token"), |call| {
                $crate::migration::is_own_token::<$type>(&call)
            });
        };
        $crate::search::search_functions!($name, $type);
    };
}
pub(super) use encrypted_type;

// The SQL declarations are those of `sql/types.sql`, all of them strict; each SAFETY
// below names the one that it goes by.

/// `_in(cstring, oid, integer)`
#[inline]
pub(super) fn input<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: as declared.
    let (literal, modifier) = unsafe { (call.cstring(0), call.int4(2)) };
    let sealed = T::read(literal)
        .and_then(|plain| sealing::take_in(T::PAYLOAD, &plain, modifier, Wire::Text));
    sealed_datum(sealed)
}

/// `_out(type)`
#[inline]
pub(super) fn output<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: as declared.
    Error::unwrap_or_raise(T::print(&unsafe { call.varlena(0) }))
}

/// `_recv(internal, oid, integer)`
pub(super) fn receive<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: as declared; PostgreSQL calls a receive function with a message.
    let (plain, modifier) = unsafe { (T::receive(call.internal(0)), call.int4(2)) };
    let sealed =
        plain.and_then(|plain| sealing::take_in(T::PAYLOAD, &plain, modifier, Wire::Binary));
    sealed_datum(sealed)
}

/// `_send(type)`
pub(super) fn send<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: as declared.
    let stored = unsafe { call.varlena(0) };
    let mut shown: Shown<VarlenaBuf> = Error::unwrap_or_raise(access::show(T::PAYLOAD, &stored));
    let message = T::send(shown.bytes.bytes_mut());
    shown.bytes.wipe();
    message.into_raw()
}

/// `_to_plain(type)`: what the session gets to see.
#[inline]
pub(super) fn to_plain<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: as declared.
    let stored = unsafe { call.varlena(0) };
    let shown = Error::unwrap_or_raise(access::show(T::PAYLOAD, &stored));
    Error::unwrap_or_raise(T::give(shown))
}

/// `_from_plain(plain type, integer)`
#[inline]
pub(super) fn from_plain<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: as declared.
    let (value, modifier) = unsafe { (call.detoasted(0), call.int4(1)) };
    sealed::<T>(&T::take(&value), modifier)
}

/// `_coerce(type, integer, boolean)`: makes a value fit the column it is stored in.
pub(super) fn coerce<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: as declared.
    let (stored, modifier) = unsafe { (call.varlena(0), call.int4(1)) };
    sealed_datum(sealing::fit(T::PAYLOAD, &stored, modifier))
}

/// `encrypt(plain type)`
pub(super) fn encrypt<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: as declared.
    let value = unsafe { call.detoasted(0) };
    sealed::<T>(&T::take(&value), NO_MODIFIER)
}

/// `encrypt(plain type, name)`: under the managed key of this name.
pub(super) fn encrypt_under<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: as declared; a name is NUL-terminated.
    let (value, key) = unsafe { (call.detoasted(0), call.cstring(1)) };
    let sealer = Sealer::named(&key.to_string_lossy())
        .inspect_err(|error| tally::count_failure(Operation::Encrypt, None, error));
    sealed_datum(sealer.and_then(|sealer| {
        sealing::take_in_under(T::PAYLOAD, &T::take(&value), Wire::Text, || Ok(sealer))
    }))
}

/// `decrypt(type)`
pub(crate) fn decrypt<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: as declared.
    let stored = unsafe { call.varlena(0) };
    Error::unwrap_or_raise(opened::<T>(&stored))
}

/// `try_decrypt(type)`: NULL when the value cannot be read, unless that is for want of
/// a right.
pub(super) fn try_decrypt<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: as declared.
    let stored = unsafe { call.varlena(0) };
    match opened::<T>(&stored).map_err(|error| *error) {
        Ok(datum) => datum,
        Err(error @ (Error::Access { .. } | Error::KeyNotGranted { .. })) => error.raise(),
        Err(_) => call.null(),
    }
}

fn opened<T: EncryptedType>(stored: &[u8]) -> Result<pg_sys::Datum, Box<Error>> {
    access::check_decrypt()?;
    let bytes = sealing::open(T::PAYLOAD, stored)?;
    Ok(T::give(Shown {
        bytes,
        is_ciphertext: false,
    })?)
}

/// `from_ciphertext(text)`
pub(super) fn from_ciphertext<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: as declared.
    let text = unsafe { call.varlena(0) };
    sealed_datum(sealing::admit_ciphertext(T::PAYLOAD, &text, Wire::Text))
}

/// `from_fernet(text)`: takes in a token that a key of the ring opens.
pub(super) fn from_fernet<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: as declared.
    let token = unsafe { call.varlena(0) };
    sealed_datum(adopt_fernet(T::PAYLOAD, &token).map_err(|error| *error))
}

/// The stored value of a Fernet token that a key of the ring opens.
///
/// # Errors
/// [`Error::BadFernetToken`], [`Error::ForeignFernetToken`],
/// [`Error::ReservedPrefix`]; as [`sealing::open`].
pub(crate) fn adopt_fernet(payload: Payload, token: &[u8]) -> Result<VarlenaBuf, Box<Error>> {
    let raw = fernet_raw(token).map_err(|reason| Error::BadFernetToken { reason })?;
    let ring = keyring::current();
    ring.primary()?;
    let stored = ring
        .keys()
        .find_map(|key| key.adopt_fernet(&raw).ok())
        .ok_or(Error::ForeignFernetToken)?;
    // Authentic, but is it a plaintext that input would take?
    let mut plain: VarlenaBuf = sealing::open(payload, &stored)?;
    let is_reserved = is_reserved(json::unquoted_if(payload, plain.bytes_mut()));
    plain.wipe();
    if is_reserved {
        return Err(Error::ReservedPrefix(Wire::Text).into());
    }
    Ok(VarlenaBuf::copy_of(&stored))
}

/// Whether the current user may bring Fernet tokens in, as values of a type: by the right
/// to EXECUTE the function that does.
pub(crate) fn may_adopt(payload: Payload) -> bool {
    let name = match payload {
        Payload::Text => c"from_fernet",
        Payload::Bytea => c"from_fernet_bytea",
        Payload::Jsonb => c"from_fernet_jsonb",
    };
    let Some(types) = relations::encrypted_types() else {
        return false;
    };
    compat::may_execute(name, types.oid(payload), pg_sys::TEXTOID)
}

/// A plaintext as a value of a column with this modifier, or what it is ciphertext of.
#[inline]
pub(crate) fn sealed<T: EncryptedType>(plain: &[u8], modifier: i32) -> pg_sys::Datum {
    sealed_datum(sealing::take_in(T::PAYLOAD, plain, modifier, Wire::Text))
}

fn sealed_datum(sealed: Result<VarlenaBuf, Error>) -> pg_sys::Datum {
    Error::unwrap_or_raise(sealed).into_raw()
}

// What does not depend on the type: ciphertext is the same bytes in each.

// The stored bytes in text form. Needs no key.
per_value_function!("encrypted_ciphertext", |call| {
    // SAFETY: declared with an encrypted value, strict.
    let stored = unsafe { call.varlena(0) };
    Error::unwrap_or_raise(access::check_ciphertext(&stored));
    VarlenaBuf::copy_of(encode_text(&stored).as_bytes()).into_raw()
});

// The Fernet token inside a value of that suite. Needs no key.
per_value_function!("encrypted_fernet_token", |call| {
    // SAFETY: declared with an encrypted value, strict.
    let stored = unsafe { call.varlena(0) };
    Error::unwrap_or_raise(access::check_ciphertext(&stored));
    let stored = Error::unwrap_or_raise(Stored::parse(&stored));
    let token = colcrypt_core::fernet_token(&stored).ok_or(Error::NotFernet);
    VarlenaBuf::copy_of(Error::unwrap_or_raise(token).as_bytes()).into_raw()
});

/// The rest of a message as text, in the encoding of the database.
///
/// # Safety
/// A message that PostgreSQL passes to a receive function.
pub(super) unsafe fn message_text<'a>(message: pg_sys::StringInfo) -> &'a [u8] {
    // SAFETY: by the caller's word; what pq_getmsgtext() gives is palloc'd and as long
    // as it says.
    unsafe {
        let rest = (*message).len - (*message).cursor;
        let mut len = 0;
        let text = pg_sys::pq_getmsgtext(message, rest, &raw mut len);
        core::slice::from_raw_parts(text.cast::<u8>(), usize::try_from(len).unwrap_or(0))
    }
}

/// A message that `fill` writes.
pub(super) fn message_of(fill: impl FnOnce(pg_sys::StringInfo)) -> VarlenaBuf {
    let mut message = pg_sys::StringInfoData::default();
    // SAFETY: the buffer is initialized by pq_begintypsend(); the result is a palloc'd
    // bytea.
    unsafe {
        pg_sys::pq_begintypsend(&raw mut message);
        fill(&raw mut message);
        VarlenaBuf::from_raw(pg_sys::pq_endtypsend(&raw mut message))
    }
}

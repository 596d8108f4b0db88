//! Who sees what: `colcrypt.access`, the grants of keys, and what leaves the
//! server by itself as ciphertext, dumps and replication streams.

use core::ffi::CStr;

use colcrypt_core::{KeyId, Payload, Stored, encode_text};
use pgrx::prelude::*;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::gucs::{self, Access};
use crate::tally::Operation;
use crate::types::datum::Output;
use crate::types::json;
use crate::{compat, hooks, keyring, managed_keys, role_access, sealing, tally};

/// What a session gets to see of a stored value.
pub(crate) struct Shown<B> {
    /// Plaintext, or the mask or a placeholder in the form of a plaintext, or
    /// ciphertext in text form.
    pub(crate) bytes: B,
    pub(crate) is_ciphertext: bool,
}

impl<B: Output> Shown<B> {
    fn plain(bytes: B) -> Self {
        Self {
            bytes,
            is_ciphertext: false,
        }
    }

    fn ciphertext(stored: &[u8]) -> Self {
        Self {
            bytes: B::copy_of(encode_text(stored).as_bytes()),
            is_ciphertext: true,
        }
    }

    /// What stands for a plaintext.
    fn instead(payload: Payload, text: &[u8]) -> Self {
        Self::plain(match payload {
            Payload::Text | Payload::Bytea => B::copy_of(text),
            Payload::Jsonb => B::copy_of(&json::string(text)),
        })
    }

    fn masked(payload: Payload) -> Self {
        Self::instead(payload, gucs::mask().as_bytes())
    }
}

/// What may be seen now: `colcrypt.access`, or less in what is run for the owner of
/// something.
#[inline]
pub(crate) fn mode() -> Access {
    let session = gucs::access();
    if session != Access::Masked && compat::in_restricted_operation() {
        return role_access::with_owners(session);
    }
    session
}

/// Whether nobody is in the way of anything: then nothing else need be asked. Does
/// not fail and reads nothing.
#[inline]
pub(crate) fn is_plainly_full() -> bool {
    gucs::access() == Access::Full && !compat::in_restricted_operation()
}

/// What this session gets to see of a stored value as a value of the type: in
/// output, and where it is cast to the plain type.
///
/// # Errors
/// As [`sealing::open`]; [`Error::DumpOfMasks`].
#[inline]
pub(crate) fn show<B: Output>(payload: Payload, stored: &[u8]) -> Result<Shown<B>, Box<Error>> {
    if mode() == Access::Full && !may_export() {
        return open_or_instead(payload, stored);
    }
    show_as_set(payload, stored)
}

#[cold]
fn show_as_set<B: Output>(payload: Payload, stored: &[u8]) -> Result<Shown<B>, Box<Error>> {
    let access = mode();
    if let Some(export) = export() {
        // A dump of masks is a lost backup.
        if export == Export::Dump && access == Access::Masked {
            return Err(Error::DumpOfMasks.into());
        }
        // Logical decoding reads no key table.
        if !gucs::dump_plaintext()
            || (export == Export::Decoding && !sealing::is_under_ring(stored))
        {
            return Ok(Shown::ciphertext(stored));
        }
        return sealing::open(payload, stored).map(Shown::plain);
    }
    match access {
        Access::Full => open_or_instead(payload, stored),
        Access::Masked => Ok(Shown::masked(payload)),
        Access::Ciphertext => match check_key(stored) {
            Ok(()) => Ok(Shown::ciphertext(stored)),
            Err(Error::KeyNotGranted { .. }) => Ok(Shown::masked(payload)),
            Err(error) => Err(error.into()),
        },
    }
}

#[inline]
fn open_or_instead<B: Output>(payload: Payload, stored: &[u8]) -> Result<Shown<B>, Box<Error>> {
    match sealing::open(payload, stored) {
        Ok(bytes) => Ok(Shown::plain(bytes)),
        Err(error) => instead(payload, stored, error),
    }
}

/// What is shown of a value that could not be opened.
#[cold]
fn instead<B: Output>(
    payload: Payload,
    stored: &[u8],
    error: Box<Error>,
) -> Result<Shown<B>, Box<Error>> {
    match *error {
        Error::KeyNotGranted { .. } => Ok(Shown::masked(payload)),
        Error::UnknownKey { .. }
        | Error::UnknownWrappingKey { .. }
        | Error::DestroyedKey { .. }
        | Error::Damaged { .. }
        | Error::DamagedKey { .. }
        | Error::Malformed
        | Error::NotText { .. }
        | Error::NotJson { .. }
        | Error::DeepDocument
            if gucs::shows_placeholders() =>
        {
            let placeholder = match Stored::parse(stored) {
                Ok(stored) => format!("<undecryptable: key {}>", stored.key_id()),
                Err(_) => "<undecryptable>".to_owned(),
            };
            Ok(Shown::instead(payload, placeholder.as_bytes()))
        }
        _ => Err(error),
    }
}

/// As [`show`], for the output function: a restore prints the defaults of domains
/// before their keys have come.
///
/// # Errors
/// As [`show`].
#[inline]
pub(crate) fn print<B: Output>(payload: Payload, stored: &[u8]) -> Result<Shown<B>, Box<Error>> {
    show(payload, stored).or_else(|error| match *error {
        Error::KeyNotGranted { .. } | Error::DumpOfMasks => Err(error),
        _ if takes_ciphertext() => Ok(Shown::ciphertext(stored)),
        _ => Err(error),
    })
}

/// Whether `plain` is what this session would be shown as mask.
pub(crate) fn is_mask(payload: Payload, plain: &[u8]) -> bool {
    *Shown::<Zeroizing<Vec<u8>>>::masked(payload).bytes == *plain
}

/// Whether plaintext may be asked for by name.
///
/// # Errors
/// [`Error::Access`].
pub(crate) fn check_decrypt() -> Result<(), Error> {
    check_full("decrypt").inspect_err(|error| count_denied(None, error))
}

fn count_denied(stored: Option<&[u8]>, error: &Error) {
    tally::count_failure(Operation::Decrypt, stored, error);
}

/// Whether the session may do what takes plaintext.
fn check_full(what: &'static str) -> Result<(), Error> {
    match mode() {
        Access::Full => Ok(()),
        access => Err(Error::Access {
            what,
            access: access.name(),
        }),
    }
}

/// Whether the ciphertext of a value may be asked for by name.
///
/// # Errors
/// [`Error::Access`], [`Error::KeyNotGranted`].
pub(crate) fn check_ciphertext(stored: &[u8]) -> Result<(), Error> {
    let checked = match mode() {
        Access::Masked => Err(Error::Access {
            what: "see ciphertext",
            access: Access::Masked.name(),
        }),
        Access::Full | Access::Ciphertext => check_key(stored),
    };
    checked.inspect_err(|error| count_denied(Some(stored), error))
}

/// Whether the current user may use the key of a value.
///
/// # Errors
/// [`Error::KeyNotGranted`].
pub(crate) fn check_key(stored: &[u8]) -> Result<(), Error> {
    match Stored::parse(stored) {
        Ok(stored) => check_key_id(stored.key_id()),
        Err(_) => Ok(()),
    }
}

fn check_key_id(id: KeyId) -> Result<(), Error> {
    // Not the session's: whoever looks for long finds a key with any id.
    if keyring::with_current(|ring| ring.server_has(id)) {
        return Ok(());
    }
    match managed_keys::by_id(id)? {
        Some(key) => key.check_granted(),
        None => Ok(()),
    }
}

/// Whether this session compares whatever it likes.
///
/// # Errors
/// [`Error::KeyTable`].
#[inline]
pub(crate) fn compares_all() -> Result<bool, Error> {
    Ok(mode() == Access::Full && !managed_keys::any_grants()?)
}

/// As [`compares_all`], where nothing can be read.
#[inline]
pub(crate) fn compares_everything() -> bool {
    compares_all().unwrap_or(false)
}

/// Whether PostgreSQL keeps something in order for somebody who compares whatever he
/// likes, with the rights of the owner, who may not: as REINDEX and `rotate_column()` do.
pub(crate) fn maintains_for_another() -> bool {
    // Statistics are shown to the owner, and need no order that anything else agrees with.
    gucs::access() == Access::Full
        && hooks::maintains()
        && !compat::collects_statistics()
        // SAFETY: catalog look-ups.
        && (unsafe { pg_sys::superuser_arg(pg_sys::GetOuterUserId()) }
            || !managed_keys::any_grants().unwrap_or(true))
}

/// Whether a query of this session may compare encrypted values at all.
///
/// # Errors
/// [`Error::Access`].
pub(crate) fn check_compare() -> Result<(), Error> {
    check_full("compare encrypted values")
}

/// Whether a query of this session may compare this value.
///
/// # Errors
/// [`Error::Access`], [`Error::CompareNotGranted`].
pub(crate) fn check_compare_value(stored: &[u8]) -> Result<(), Error> {
    check_compare()?;
    match check_key(stored) {
        Err(Error::KeyNotGranted { key }) => Err(Error::CompareNotGranted { key }),
        checked => checked,
    }
}

/// Whether a relation belongs to the current user, or to a role that he is a member
/// of; None is a temporary one, which does. Not to a superuser, to whom it makes no
/// difference.
pub(crate) fn is_own(relation: Option<pg_sys::Oid>) -> bool {
    // SAFETY: catalog look-ups.
    unsafe {
        match relation {
            Some(relation) => owns_as(compat::relation_owner(relation)),
            None => !pg_sys::superuser_arg(pg_sys::GetUserId()),
        }
    }
}

fn owns_as(owner: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-ups.
    unsafe {
        let user = pg_sys::GetUserId();
        !pg_sys::superuser_arg(user) && pg_sys::is_member_of_role(user, owner)
    }
}

/// Whether the current user owns a relation of this name, in whatever schema.
pub(crate) fn has_own(name: &CStr) -> bool {
    let owners = compat::owners_of_relations(name);
    owners.into_iter().any(owns_as)
}

/// What leaves the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Export {
    /// pg_dump.
    Dump,
    /// What a walsender reads: the first copy of a subscription.
    Copy,
    /// Logical decoding, in a walsender or elsewhere.
    Decoding,
}

/// Whether it is worth asking for [`export`]. Looked at for every value.
#[inline]
fn may_export() -> bool {
    // SAFETY: read variables of this backend; the name of the application is null
    // or NUL-terminated.
    unsafe {
        let name = pg_sys::application_name;
        pg_sys::am_walsender
            || !pg_sys::MyReplicationSlot.is_null()
            || (!name.is_null()
                && *name == b'p' as core::ffi::c_char
                && *name.add(1) == b'g' as core::ffi::c_char)
    }
}

fn export() -> Option<Export> {
    // SAFETY: as in `may_export`.
    unsafe {
        if !pg_sys::MyReplicationSlot.is_null() && pg_sys::HistoricSnapshotActive() {
            Some(Export::Decoding)
        } else if pg_sys::am_walsender {
            Some(Export::Copy)
        } else {
            (application() == Some(c"pg_dump")).then_some(Export::Dump)
        }
    }
}

/// Whether ciphertext in text form is taken for what it is, without being asked
/// to: what a dump or a publisher sends.
#[cold]
pub(crate) fn takes_ciphertext() -> bool {
    // SAFETY: read the state of this backend.
    unsafe {
        pg_sys::IsLogicalWorker()
            || pg_sys::IsBinaryUpgrade
            // Who has logged in, not whose rights a function runs with; nor what somebody
            // has written whose table is maintained.
            || (application() == Some(c"pg_restore")
                && !compat::in_restricted_operation()
                && pg_sys::superuser_arg(pg_sys::GetAuthenticatedUserId()))
    }
}

fn application<'a>() -> Option<&'a CStr> {
    // SAFETY: null or NUL-terminated; only this backend changes it.
    unsafe {
        let name = pg_sys::application_name;
        (!name.is_null()).then(|| CStr::from_ptr(name))
    }
}

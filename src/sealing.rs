//! Where plaintext becomes a stored value and back: the hot path. Everything
//! that reads or writes an encrypted value goes through here.

use core::cell::RefCell;
use std::rc::Rc;

use colcrypt_core::{
    Key, KeyId, NonceSource, Nonces, Payload, Stored, Suite, decode_text, is_reserved,
};
use pgrx::prelude::*;
use zeroize::Zeroizing;

use crate::backend_local::BackendLocal;
use crate::error::{Error, Wire};
use crate::gucs::{self, Input};
use crate::keyring::ActiveRing;
use crate::managed_keys::{self, DataKey};
use crate::tally::{self, Operation};
use crate::types::datum::Output;
use crate::types::json;
use crate::types::plain::Plain;
use crate::{access, encoding, keyring};

static NONCES: BackendLocal<RefCell<Option<NonceSource>>> = BackendLocal::new(RefCell::new(None));

/// What PostgreSQL passes where a type has no modifier.
pub(crate) const NO_MODIFIER: i32 = -1;

/// A key with the suite that values are sealed with under it.
pub(crate) enum Sealer {
    /// The primary of the ring, with the suite of `colcrypt.algorithm`.
    Primary,
    /// A managed key.
    Managed(Rc<DataKey>),
}

impl Sealer {
    /// What a new value is sealed under: the key that the column's type names, or
    /// else `colcrypt.write_key`, or else the primary.
    ///
    /// # Errors
    /// [`Error::UnknownKeyName`], [`Error::DestroyedKeyName`];
    /// [`Error::KeyNameNotGranted`] for `colcrypt.write_key`.
    #[inline]
    pub(crate) fn of_new_value(modifier: i32) -> Result<Self, Error> {
        if modifier != NO_MODIFIER {
            return Self::of_modifier(modifier);
        }
        match gucs::write_key() {
            None => Ok(Self::Primary),
            Some(name) => Self::named(&name.to_string_lossy()),
        }
    }

    fn of_modifier(modifier: i32) -> Result<Self, Error> {
        managed_keys::active_by_modifier(modifier).map(Self::Managed)
    }

    /// The managed key of this name, which the user chose.
    ///
    /// # Errors
    /// [`Error::UnknownKeyName`], [`Error::DestroyedKeyName`],
    /// [`Error::KeyNameNotGranted`].
    pub(crate) fn named(name: &str) -> Result<Self, Error> {
        let key = managed_keys::active_by_name(name)?;
        if key.is_granted() {
            Ok(Self::Managed(key))
        } else {
            Err(Error::KeyNameNotGranted {
                name: name.to_owned(),
            })
        }
    }

    /// What a value belongs under that is sealed under `id` and stands in a column
    /// with this modifier: a managed key's values stay with it where the column
    /// names none. None for one whose key is destroyed: it stays as it is.
    ///
    /// # Errors
    /// As [`Sealer::of_new_value`].
    pub(crate) fn of_stored_value(id: KeyId, modifier: i32) -> Result<Option<Self>, Error> {
        if keyring::with_current(|ring| ring.get(id).is_none())
            && let Some(key) = managed_keys::by_id(id)?
        {
            if key.is_destroyed() {
                return Ok(None);
            }
            if modifier == NO_MODIFIER {
                let active = managed_keys::active_by_name(key.name())?;
                return Ok(Some(Self::Managed(active)));
            }
        }
        Self::of_new_value(modifier).map(Some)
    }

    /// Suite and key id of what is sealed.
    ///
    /// # Errors
    /// [`Error::NoKeyRing`].
    pub(crate) fn header(&self) -> Result<(Suite, KeyId), Error> {
        match self {
            Self::Primary => {
                let id = keyring::with_current(|ring| ring.primary().map(Key::id))?;
                Ok((gucs::suite(), id))
            }
            Self::Managed(key) => Ok((key.suite(), key.id())),
        }
    }

    /// Seals a plaintext, text of the database where it is text.
    ///
    /// # Errors
    /// [`Error::NoKeyRing`], [`Error::UnknownPrimary`]; what unwrapping a managed
    /// key gives.
    #[inline]
    pub(crate) fn seal<B: Output>(&self, payload: Payload, plain: &[u8]) -> Result<B, Error> {
        let seal = |plaintext: &[u8]| self.seal_utf8(Operation::Encrypt, payload, plaintext);
        match payload {
            Payload::Text => seal(&encoding::to_utf8(plain)),
            Payload::Bytea => seal(plain),
            Payload::Jsonb => seal(&json::to_utf8(plain)),
        }
    }

    fn seal_utf8<B: Output>(
        &self,
        operation: Operation,
        payload: Payload,
        plaintext: &[u8],
    ) -> Result<B, Error> {
        let under_primary = |ring: &Rc<ActiveRing>| {
            seal_under(
                operation,
                ring.primary()?,
                gucs::suite(),
                payload,
                plaintext,
            )
        };
        match self {
            Self::Primary => {
                let sealed = keyring::with_current(|ring| {
                    managed_keys::ring_passed(ring).then(|| under_primary(ring))
                });
                sealed.unwrap_or_else(|| {
                    managed_keys::check_ring(managed_keys::Use::Seal)?;
                    keyring::with_current(under_primary)
                })
            }
            Self::Managed(key) => {
                seal_under(operation, key.key()?, key.suite(), payload, plaintext)
            }
        }
    }
}

fn seal_under<B: Output>(
    operation: Operation,
    key: &Key,
    suite: Suite,
    payload: Payload,
    plaintext: &[u8],
) -> Result<B, Error> {
    let mut sealed = B::zeroed(suite.sealed_len(plaintext.len()));
    with_nonces(|nonces| key.seal(suite, payload, plaintext, nonces, sealed.bytes_mut()))?;
    tally::count(operation, suite, key.id(), plaintext.len());
    Ok(sealed)
}

/// What comes in as a value of a column with this modifier: plaintext, or with
/// `colcrypt.input = 'ciphertext'` ciphertext in text form. A document comes in the
/// form that is sealed.
///
/// # Errors
/// [`Error::ReservedPrefix`] for plaintext that could be taken for ciphertext;
/// those of [`Sealer::of_new_value`] and [`Sealer::seal`].
#[inline]
pub(crate) fn take_in<B: Output>(
    payload: Payload,
    plain: &[u8],
    modifier: i32,
    wire: Wire,
) -> Result<B, Error> {
    take_in_under(payload, plain, wire, || Sealer::of_new_value(modifier))
}

/// As [`take_in`], under a key that was chosen otherwise.
///
/// # Errors
/// As [`take_in`].
#[inline]
pub(crate) fn take_in_under<B: Output>(
    payload: Payload,
    plain: &[u8],
    wire: Wire,
    sealer: impl FnOnce() -> Result<Sealer, Error>,
) -> Result<B, Error> {
    let text = json::unquoted_if(payload, plain);
    match gucs::input() {
        Input::Ciphertext => admit_ciphertext(payload, text, wire),
        Input::Plaintext if is_reserved(text) => {
            if access::takes_ciphertext() {
                admit_ciphertext(payload, text, wire)
            } else {
                Err(Error::ReservedPrefix(wire))
            }
        }
        Input::Plaintext => {
            let sealed = sealer().and_then(|sealer| sealer.seal(payload, plain));
            sealed.inspect_err(|error| tally::count_failure(Operation::Encrypt, None, error))
        }
    }
}

/// Stores ciphertext in text form as it is, once it is well-formed and, if its
/// key is at hand, authentic.
///
/// # Errors
/// [`Error::BadTextForm`], [`Error::Damaged`].
pub(crate) fn admit_ciphertext<B: Output>(
    payload: Payload,
    text: &[u8],
    wire: Wire,
) -> Result<B, Error> {
    let stored = decode_text(text).map_err(|reason| Error::BadTextForm { reason, wire })?;
    let opened = open_whoever_asks::<Zeroizing<Vec<u8>>>(payload, &stored);
    match opened.map_err(|error| *error) {
        Ok(_)
        | Err(
            Error::UnknownKey { .. }
            | Error::NoKeyRing { .. }
            | Error::UnknownWrappingKey { .. }
            | Error::DestroyedKey { .. }
            // A restore may not have come to it.
            | Error::KeyTable(_),
        ) => {}
        Err(error) => {
            tally::count_failure(Operation::Decrypt, Some(&stored), &error);
            return Err(error);
        }
    }
    Ok(B::copy_of(&stored))
}

/// Whom a value is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// The current user, who must be allowed to use the key.
    User,
    /// The extension itself, which shows it to nobody.
    Itself,
}

/// Opens a stored value: into text of the database where it is text, a document into
/// the form that `jsonb` prints.
///
/// # Errors
/// [`Error::Malformed`], [`Error::NoKeyRing`], [`Error::UnknownKey`],
/// [`Error::KeyNotGranted`], [`Error::Damaged`], [`Error::NotText`],
/// [`Error::NotJson`]; what unwrapping a managed key gives.
///
/// The error is in a box, so that the result fits into registers.
pub(crate) fn open<B: Output>(payload: Payload, stored: &[u8]) -> Result<B, Box<Error>> {
    open_for(Reader::User, payload, stored)
        .inspect_err(|error| tally::count_failure(Operation::Decrypt, Some(stored), error))
}

/// Whether the ring has the key of a value.
pub(crate) fn is_under_ring(stored: &[u8]) -> bool {
    let id = Stored::parse(stored).map(|stored| stored.key_id());
    id.is_ok_and(|id| keyring::with_current(|ring| ring.get(id).is_some()))
}

/// As [`open`], whatever key the current user may use: for what is not shown.
pub(crate) fn open_whoever_asks<B: Output>(
    payload: Payload,
    stored: &[u8],
) -> Result<B, Box<Error>> {
    open_for(Reader::Itself, payload, stored)
}

#[inline]
fn open_for<B: Output>(reader: Reader, payload: Payload, stored: &[u8]) -> Result<B, Box<Error>> {
    let stored = Stored::parse(stored)?;
    let mut opened = B::zeroed(stored.plaintext_capacity());
    let len = open_into(reader, payload, &stored, opened.bytes_mut())?;
    opened.truncate(len);
    if reader == Reader::User {
        tally::count(Operation::Decrypt, stored.suite(), stored.key_id(), len);
    }
    if !payload.is_text() {
        return Ok(opened);
    }
    check_text(opened.bytes_mut()).ok_or_else(|| Error::NotText {
        key: stored.key_id(),
    })?;
    if encoding::is_utf8() && !is_foreign(payload, stored.suite()) {
        return Ok(opened);
    }
    let own = in_own_form(payload, &stored, opened.bytes_mut())?;
    let text = encoding::from_utf8(&own)?;
    match payload {
        // In the order that members have in this encoding.
        Payload::Jsonb if !encoding::is_utf8() => Ok(B::copy_of(&json::normalized(&text)?)),
        _ => Ok(B::copy_of(&text)),
    }
}

/// Whether a document may be in another form than the one that is sealed here:
/// whoever has the key makes Fernet tokens of whatever JSON he likes.
fn is_foreign(payload: Payload, suite: Suite) -> bool {
    payload == Payload::Jsonb && suite == Suite::Fernet
}

/// A plaintext in the form that is sealed here, in UTF-8 if it is text.
fn in_own_form<'a>(
    payload: Payload,
    stored: &Stored<'_>,
    plaintext: &'a [u8],
) -> Result<Plain<'a>, Error> {
    if !is_foreign(payload, stored.suite()) {
        return Ok(Plain::Borrowed(plaintext));
    }
    match json::normalized_utf8(plaintext) {
        Ok(document) => Ok(Plain::Made(document)),
        Err(Error::InvalidLiteral { .. }) => Err(Error::NotJson {
            key: stored.key_id(),
        }),
        Err(error) => Err(error),
    }
}

/// Opens a stored value into `out`, as long as its plaintext can be, and gives the
/// plaintext's length.
#[inline]
fn open_into(
    reader: Reader,
    payload: Payload,
    stored: &Stored<'_>,
    out: &mut [u8],
) -> Result<usize, Box<Error>> {
    let opened = keyring::with_current(|ring| {
        let key = ring.get(stored.key_id())?;
        Some(open_under(key, payload, stored, out))
    });
    match opened {
        Some(opened) => opened,
        None => open_managed(reader, payload, stored, out),
    }
}

/// As `open_into`, for a value that no key of the ring has sealed.
#[inline(never)]
fn open_managed(
    reader: Reader,
    payload: Payload,
    stored: &Stored<'_>,
    out: &mut [u8],
) -> Result<usize, Box<Error>> {
    let id = stored.key_id();
    let Some(key) = managed_keys::by_id(id)? else {
        return Err(keyring::with_current(|ring| ring.missing(id)).into());
    };
    if reader == Reader::User {
        key.check_granted()?;
    }
    open_under(key.key()?, payload, stored, out)
}

#[inline]
fn open_under(
    key: &Key,
    payload: Payload,
    stored: &Stored<'_>,
    out: &mut [u8],
) -> Result<usize, Box<Error>> {
    key.open(stored, payload, out)
        .map_err(|error| Box::new(Error::damaged(key.id())(error)))
}

/// Opens a stored value into `room`, which the caller reuses, and gives the
/// plaintext, in UTF-8 and in the form that is sealed. Bytes for bytes: what is text is
/// not asked, nor whether the current user may use the key. Counted as `operation`, if
/// that is what it is.
///
/// # Errors
/// As [`open_whoever_asks`], but for [`Error::NotText`].
pub(crate) fn open_utf8<'a>(
    operation: Option<Operation>,
    payload: Payload,
    stored: &[u8],
    room: &'a mut Zeroizing<Vec<u8>>,
) -> Result<Plain<'a>, Error> {
    let stored = Stored::parse(stored)?;
    let capacity = stored.plaintext_capacity();
    if room.len() < capacity {
        *room = Zeroizing::new(vec![0; capacity]);
    }
    let out = &mut room[..capacity];
    let len = open_into(Reader::Itself, payload, &stored, out).map_err(|error| *error)?;
    if let Some(operation) = operation {
        tally::count(operation, stored.suite(), stored.key_id(), len);
    }
    in_own_form(payload, &stored, &room[..len])
}

/// Opens a value and seals it again. `room` is for the plaintext.
///
/// # Errors
/// As [`open_utf8`] and [`Sealer::seal`].
pub(crate) fn reseal<B: Output>(
    payload: Payload,
    stored: &[u8],
    sealer: &Sealer,
    room: &mut Zeroizing<Vec<u8>>,
) -> Result<B, Error> {
    open_utf8(None, payload, stored, room)
        .and_then(|plaintext| sealer.seal_utf8(Operation::Rotate, payload, &plaintext))
        .inspect_err(|error| tally::count_failure(Operation::Rotate, Some(stored), error))
}

/// As [`reseal`], and opens what was sealed.
///
/// # Errors
/// As [`reseal`]; [`Error::Damaged`] if the new value does not hold what the old one does.
pub(crate) fn reseal_verified<B: Output>(
    payload: Payload,
    stored: &[u8],
    sealer: &Sealer,
    rooms: &mut [Zeroizing<Vec<u8>>; 2],
) -> Result<B, Error> {
    let [room, other_room] = rooms;
    let result = open_utf8(None, payload, stored, room).and_then(|plaintext| {
        let mut sealed: B = sealer.seal_utf8(Operation::Rotate, payload, &plaintext)?;
        let again = open_utf8(None, payload, sealed.bytes_mut(), other_room)?;
        if *again == *plaintext {
            return Ok(sealed);
        }
        let key = Stored::parse(sealed.bytes_mut())?.key_id();
        Err(Error::Damaged { key })
    });
    result.inspect_err(|error| tally::count_failure(Operation::Rotate, Some(stored), error))
}

/// Makes a value fit a column with this modifier: under the key that it names.
///
/// A value that the user may not read may not be made readable by moving it.
///
/// # Errors
/// [`Error::KeyNotGranted`]; as [`reseal`].
pub(crate) fn fit<B: Output>(payload: Payload, stored: &[u8], modifier: i32) -> Result<B, Error> {
    if modifier != NO_MODIFIER {
        let header = Stored::parse(stored)?;
        if is_brought(header.key_id()) {
            return Ok(B::copy_of(stored));
        }
        let sealer = Sealer::of_modifier(modifier)?;
        if (header.suite(), header.key_id()) != sealer.header()? {
            access::check_key(stored).inspect_err(|error| {
                tally::count_failure(Operation::Rotate, Some(stored), error);
            })?;
            return reseal(payload, stored, &sealer, &mut Zeroizing::new(Vec::new()));
        }
    }
    Ok(B::copy_of(stored))
}

/// Whether a value came in as ciphertext, as far as can be told: it is stored as it
/// is, its key being there or not. What this session has just sealed itself is
/// under the primary.
fn is_brought(id: KeyId) -> bool {
    gucs::input() == Input::Ciphertext
        || (access::takes_ciphertext()
            && keyring::with_current(|ring| ring.primary().map_or(true, |key| key.id() != id)))
}

/// Authentic is not the same as valid: a Fernet token may hold any bytes, and
/// PostgreSQL trusts a text to be valid and free of NUL.
fn check_text(text: &[u8]) -> Option<()> {
    // ASCII without NUL, most often: the high bit is clear in every byte, and stays
    // so when one is taken away. Eight bytes at a time: if a byte is 0 the
    // subtraction borrows, but it has set a high bit then.
    const ONES: u64 = 0x0101_0101_0101_0101;
    let (words, rest) = text.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_ne_bytes(*word));
    let words = words.fold(0, |bits, word| bits | word | word.wrapping_sub(ONES));
    let rest = rest.iter().copied();
    let rest = rest.fold(0, |bits, byte| bits | byte | byte.wrapping_sub(1));
    if (words | u64::from(rest)) & (ONES << 7) == 0 {
        return Some(());
    }
    let text = core::str::from_utf8(text).ok()?;
    (!text.as_bytes().contains(&0)).then_some(())
}

/// Lends the backend's nonces to `work`.
fn with_nonces<T>(work: impl FnOnce(Nonces<'_>) -> T) -> T {
    // SAFETY: read variables that are set when the process starts.
    let (process, in_postmaster) = unsafe {
        let in_postmaster = pg_sys::IsPostmasterEnvironment && !pg_sys::IsUnderPostmaster;
        (pg_sys::MyProcPid, in_postmaster)
    };
    // What the postmaster drew, every backend would draw again.
    assert!(!in_postmaster, "the postmaster never seals a value");
    let mut nonces = NONCES.borrow_mut();
    let nonces = nonces.get_or_insert_with(NonceSource::new);
    work(nonces.in_process(process.cast_unsigned()))
}

impl Output for Zeroizing<Vec<u8>> {
    fn zeroed(len: usize) -> Self {
        Self::new(vec![0; len])
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }

    fn truncate(&mut self, len: usize) {
        (**self).truncate(len);
    }
}

//! Where plaintext becomes a stored value and back: the hot path. Everything
//! that reads or writes an encrypted value goes through here.

use core::cell::RefCell;

use colcrypt_core::{NonceSource, Nonces, Payload, Stored, decode_text, is_reserved};
use pgrx::prelude::*;
use zeroize::Zeroizing;

use crate::backend_local::BackendLocal;
use crate::encoding;
use crate::error::{Error, Wire};
use crate::gucs::{self, Input};
use crate::keyring;
use crate::types::datum::Output;

static NONCES: BackendLocal<RefCell<Option<NonceSource>>> = BackendLocal::new(RefCell::new(None));

/// Seals text of the database as a new value gets sealed: under the primary,
/// with the suite of `colcrypt.algorithm`.
///
/// # Errors
/// [`Error::NoKeyRing`].
pub(crate) fn seal<B: Output>(text: &[u8]) -> Result<B, Error> {
    seal_utf8(&encoding::to_utf8(text))
}

fn seal_utf8<B: Output>(plaintext: &[u8]) -> Result<B, Error> {
    keyring::with_current(|ring| {
        let key = ring.primary()?;
        let suite = gucs::suite();
        let mut sealed = B::zeroed(suite.sealed_len(plaintext.len()));
        with_nonces(|nonces| {
            key.seal(suite, Payload::Text, plaintext, nonces, sealed.bytes_mut())
        })?;
        Ok(sealed)
    })
}

/// What comes in as a value: plaintext, or with `colcrypt.input = 'ciphertext'`
/// ciphertext in text form.
///
/// # Errors
/// [`Error::ReservedPrefix`] for plaintext that could be taken for ciphertext.
pub(crate) fn take_in<B: Output>(text: &[u8], wire: Wire) -> Result<B, Error> {
    match gucs::input() {
        Input::Ciphertext => admit_ciphertext(text, wire),
        Input::Plaintext if is_reserved(text) => Err(Error::ReservedPrefix(wire)),
        Input::Plaintext => seal(text),
    }
}

/// Stores ciphertext in text form as it is, once it is well-formed and, if its
/// key is at hand, authentic.
///
/// # Errors
/// [`Error::BadTextForm`], [`Error::Damaged`].
pub(crate) fn admit_ciphertext<B: Output>(text: &[u8], wire: Wire) -> Result<B, Error> {
    let stored = decode_text(text).map_err(|reason| Error::BadTextForm { reason, wire })?;
    match open::<Zeroizing<Vec<u8>>>(&stored).map_err(|error| *error) {
        Ok(_) | Err(Error::UnknownKey { .. } | Error::NoKeyRing { .. }) => {}
        Err(error) => return Err(error),
    }
    let mut value = B::zeroed(stored.len());
    value.bytes_mut().copy_from_slice(&stored);
    Ok(value)
}

/// Opens a stored value into text of the database.
///
/// # Errors
/// [`Error::Malformed`], [`Error::NoKeyRing`], [`Error::UnknownKey`],
/// [`Error::Damaged`], [`Error::NotText`].
///
/// The error is in a box, so that the result fits into registers.
pub(crate) fn open<B: Output>(stored: &[u8]) -> Result<B, Box<Error>> {
    let stored = Stored::parse(stored)?;
    let mut opened = B::zeroed(stored.plaintext_capacity());
    let len = open_into(&stored, opened.bytes_mut())?;
    opened.truncate(len);
    check_text(opened.bytes_mut()).ok_or_else(|| Error::NotText {
        key: stored.key_id(),
    })?;
    if encoding::is_utf8() {
        return Ok(opened);
    }
    let text = encoding::from_utf8(opened.bytes_mut())?;
    let mut converted = B::zeroed(text.len());
    converted.bytes_mut().copy_from_slice(&text);
    Ok(converted)
}

/// Opens a stored value into `out`, as long as its plaintext can be, and gives the
/// plaintext's length.
#[inline]
fn open_into(stored: &Stored<'_>, out: &mut [u8]) -> Result<usize, Box<Error>> {
    keyring::with_current(|ring| {
        let key = ring.find(stored.key_id()).map_err(Box::new)?;
        key.open(stored, Payload::Text, out)
            .map_err(|error| Box::new(Error::damaged(key.id())(error)))
    })
}

/// Opens a stored value into `room`, which the caller reuses, and gives the
/// plaintext in UTF-8. Bytes for bytes: what is text is not asked.
///
/// # Errors
/// As [`open`], but for [`Error::NotText`].
pub(crate) fn open_utf8<'a>(
    stored: &[u8],
    room: &'a mut Zeroizing<Vec<u8>>,
) -> Result<&'a [u8], Error> {
    let stored = Stored::parse(stored)?;
    let capacity = stored.plaintext_capacity();
    if room.len() < capacity {
        *room = Zeroizing::new(vec![0; capacity]);
    }
    let len = open_into(&stored, &mut room[..capacity]).map_err(|error| *error)?;
    Ok(&room[..len])
}

/// Seals an opened value again, as a new value gets sealed. `room` is for the
/// plaintext.
///
/// # Errors
/// As [`open_utf8`] and [`seal`].
pub(crate) fn reseal<B: Output>(stored: &[u8], room: &mut Zeroizing<Vec<u8>>) -> Result<B, Error> {
    seal_utf8(open_utf8(stored, room)?)
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

//! Fernet (<https://github.com/fernet/spec>), by the `fernet` crate, which
//! speaks base64 tokens; a value is stored as the token's raw bytes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use zeroize::Zeroizing;

use crate::key::Key;
use crate::secret::without_traces;
use crate::stored::{Payload, Stored, header};
use crate::suites::{OpenError, Suite};

/// The clock skew that the `fernet` crate permits, in seconds.
const CLOCK_SKEW: u64 = 60;

/// Writes the raw token.
pub(crate) fn seal(fernet: &fernet::Fernet, plaintext: &[u8], body: &mut [u8]) {
    // The crate leaves its key schedule on the stack.
    let written = URL_SAFE
        .decode_slice(without_traces(|| fernet.encrypt(plaintext)), body)
        .expect("a token of the fernet crate is base64url of the sealed length");
    assert_eq!(written, body.len(), "the token has the sealed length");
}

/// Opens a raw token into `out` and gives the plaintext's length.
pub(crate) fn open(
    fernet: &fernet::Fernet,
    token: &[u8],
    out: &mut [u8],
) -> Result<usize, OpenError> {
    let made_at = token
        .get(1..)
        .and_then(<[u8]>::first_chunk)
        .ok_or(OpenError)?;
    // A stored value has no time to live, and a server whose clock is behind its
    // maker's must read it: "now" is the token's own time, less the clock skew
    // that the crate adds, which would overflow near the end of time.
    let now = u64::from_be_bytes(*made_at).saturating_sub(CLOCK_SKEW);
    let token = URL_SAFE.encode(token);
    let plaintext = without_traces(|| fernet.decrypt_at_time(&token, None, now))
        .map(Zeroizing::new)
        .map_err(|_| OpenError)?;
    out.get_mut(..plaintext.len())
        .ok_or(OpenError)?
        .copy_from_slice(&plaintext);
    Ok(plaintext.len())
}

impl Key {
    /// The stored value of a raw Fernet token that was made elsewhere, if this
    /// key opens it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn adopt_fernet(&self, token: &[u8]) -> Result<Vec<u8>, OpenError> {
        let bytes = [&header(Suite::Fernet, self.id()), token].concat();
        let stored = Stored::parse(&bytes).map_err(|_| OpenError)?;
        let mut plaintext = Zeroizing::new(vec![0; stored.plaintext_capacity()]);
        self.open(&stored, Payload::Text, &mut plaintext)?;
        Ok(bytes)
    }
}

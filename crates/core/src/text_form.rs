//! Ciphertext as text: `colcrypt:v1:` and unpadded base64url of the stored
//! bytes; and Fernet tokens, whose own form is base64url too.

use base64::Engine as _;
use base64::alphabet::URL_SAFE as ALPHABET;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::stored::{Malformed, Stored, check_fernet};

/// What every ciphertext in text form starts with.
pub const PREFIX: &str = "colcrypt:v1:";

const RESERVED: &[u8] = b"colcrypt:v";

/// Python prints Fernet tokens padded; some libraries leave the padding away.
const FERNET_BASE64: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A text is no ciphertext in text form. Never quotes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextFormError {
    /// The prefix is missing.
    #[error("it does not start with colcrypt:v1:")]
    Prefix,
    /// Not canonical unpadded base64url.
    #[error("it is not base64url")]
    Base64,
    /// Decoded to something that is no stored value.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Whether a plaintext is refused because it could be taken for ciphertext:
/// it starts with `colcrypt:v` and a digit.
pub fn is_reserved(plaintext: &[u8]) -> bool {
    plaintext
        .strip_prefix(RESERVED)
        .and_then(<[u8]>::first)
        .is_some_and(u8::is_ascii_digit)
}

/// The text form of stored bytes.
pub fn encode(stored: &[u8]) -> String {
    let mut text = String::with_capacity(PREFIX.len() + stored.len().div_ceil(3) * 4);
    text.push_str(PREFIX);
    URL_SAFE_NO_PAD.encode_string(stored, &mut text);
    text
}

/// The stored bytes of a text form.
///
/// # Errors
/// [`TextFormError`]; the form is canonical, so no two texts give the same
/// bytes.
pub fn decode(text: &[u8]) -> Result<Vec<u8>, TextFormError> {
    let encoded = text
        .strip_prefix(PREFIX.as_bytes())
        .ok_or(TextFormError::Prefix)?;
    let stored = URL_SAFE_NO_PAD
        .decode(encoded)
        .map_err(|_| TextFormError::Base64)?;
    Stored::parse(&stored)?;
    Ok(stored)
}

/// The token of a Fernet value as Fernet libraries print it (`gAAAAA…`);
/// `None` for other suites.
pub fn fernet_token(stored: &Stored<'_>) -> Option<String> {
    stored.fernet_token().map(|token| URL_SAFE.encode(token))
}

/// The raw bytes of a Fernet token, padded or not.
///
/// # Errors
/// [`TextFormError::Base64`] when it is not base64url,
/// [`TextFormError::Malformed`] when it does not have a token's parts.
pub fn fernet_raw(token: &[u8]) -> Result<Vec<u8>, TextFormError> {
    let raw = FERNET_BASE64
        .decode(token)
        .map_err(|_| TextFormError::Base64)?;
    check_fernet(&raw)?;
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_prefix_with_a_digit_is_reserved() {
        for reserved in [
            "colcrypt:v1:",
            "colcrypt:v1",
            "colcrypt:v9:x",
            "colcrypt:v0",
        ] {
            assert!(is_reserved(reserved.as_bytes()), "{reserved}");
        }
        for free in [
            "",
            "colcrypt",
            "colcrypt:v",
            "colcrypt:vault",
            " colcrypt:v1:",
            "Colcrypt:v1:",
        ] {
            assert!(!is_reserved(free.as_bytes()), "{free}");
        }
    }

    #[test]
    fn only_the_canonical_text_is_taken() {
        let stored = [&[2, 1, 2, 3, 4][..], &[0; 29]].concat();
        let text = encode(&stored);
        assert_eq!(decode(text.as_bytes()), Ok(stored));
        for broken in [
            format!("{text}="),
            format!("{text}\n"),
            format!("{text}AAA"),
            text.replace('A', "+"),
            format!("{}B", &text[..text.len() - 1]),
        ] {
            assert!(decode(broken.as_bytes()).is_err(), "{broken}");
        }
        assert_eq!(decode(b"gAAAAA"), Err(TextFormError::Prefix));
        assert_eq!(decode(b"colcrypt:v2:AAAA"), Err(TextFormError::Prefix));
        assert_eq!(
            decode(b"colcrypt:v1:"),
            Err(TextFormError::Malformed(Malformed))
        );
    }
}

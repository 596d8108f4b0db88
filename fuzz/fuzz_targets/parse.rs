//! Parsing is canonical: what is read is written the same, as bytes and as text.

#![no_main]

use colcrypt_core::{
    Stored, TEXT_PREFIX, decode_text, encode_text, fernet_raw, fernet_token, is_reserved,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(stored) = Stored::parse(bytes) {
        assert_eq!(stored.to_bytes(), bytes);
        assert!(stored.plaintext_capacity() < bytes.len());
        if let Some(token) = fernet_token(&stored) {
            let raw = fernet_raw(token.as_bytes()).expect("it was printed just now");
            assert_eq!(Some(&raw[..]), stored.fernet_token());
        }
        let text = encode_text(bytes);
        assert!(is_reserved(text.as_bytes()));
        assert_eq!(decode_text(text.as_bytes()).as_deref(), Ok(bytes));
    }

    // The same bytes as text, so that base64 is reached without guessing the prefix.
    let text = [TEXT_PREFIX.as_bytes(), bytes].concat();
    if let Ok(stored) = decode_text(&text) {
        assert_eq!(encode_text(&stored).as_bytes(), text);
    }
    let _ = fernet_raw(bytes);
});

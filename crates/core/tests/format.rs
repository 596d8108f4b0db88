//! Values that an earlier build wrote. Whoever changes the code keeps them
//! readable: `vectors/format.json` gets new values, and never loses or changes
//! one. `tests/test_format.py` opens the same file with an independent decryptor.

use std::collections::HashSet;

use colcrypt_core::{KeyRing, Payload, Stored, Suite, decode_text, encode_text};
use serde::Deserialize;

const FORMAT: &str = include_str!("vectors/format.json");

#[derive(Deserialize)]
struct Vectors {
    key: String,
    key_id: String,
    values: Vec<Value>,
}

#[derive(Deserialize)]
struct Value {
    suite: String,
    plaintext: String,
    text_form: String,
}

#[test]
fn frozen_values_open_for_ever() {
    let vectors: Vectors = serde_json::from_str(FORMAT).expect("format.json");
    let ring = KeyRing::parse(&vectors.key).expect("a ring key");
    assert_eq!(ring.primary().id().to_string(), vectors.key_id);
    for value in &vectors.values {
        let sealed = decode_text(value.text_form.as_bytes()).expect("a text form");
        assert_eq!(encode_text(&sealed), value.text_form);
        let stored = Stored::parse(&sealed).expect("decoded");
        assert_eq!(stored.suite().name(), value.suite);
        assert_eq!(stored.key_id(), ring.primary().id());
        let mut out = vec![0; stored.plaintext_capacity()];
        let len = ring
            .primary()
            .open(&stored, Payload::Text, &mut out)
            .unwrap_or_else(|error| panic!("{}: {error}", value.text_form));
        assert_eq!(out[..len], *value.plaintext.as_bytes());
    }
}

#[test]
fn every_suite_has_an_empty_a_short_and_a_non_ascii_value() {
    let vectors: Vectors = serde_json::from_str(FORMAT).expect("format.json");
    let seen: HashSet<_> = vectors
        .values
        .iter()
        .map(|value| (value.suite.as_str(), value.plaintext.as_str()))
        .collect();
    for suite in Suite::ALL {
        for plaintext in ["", "hello", "Grüße, 世界 🔑"] {
            assert!(
                seen.contains(&(suite.name(), plaintext)),
                "{suite:?} {plaintext}"
            );
        }
    }
}

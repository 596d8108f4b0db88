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
    /// Text, unless it is named.
    #[serde(rename = "type")]
    type_: Option<String>,
    #[serde(default)]
    plaintext: String,
    /// In place of the other, where it is no text.
    plaintext_hex: Option<String>,
    text_form: String,
}

impl Value {
    fn payload(&self) -> Payload {
        let name = self.type_.as_deref().unwrap_or("text");
        let mut payloads = Payload::ALL.into_iter();
        let payload = payloads.find(|payload| payload.name() == name);
        payload.expect("a type that there is")
    }

    fn plaintext(&self) -> Vec<u8> {
        match &self.plaintext_hex {
            None => self.plaintext.clone().into_bytes(),
            Some(hex) => hex
                .as_bytes()
                .chunks(2)
                .map(|pair| str::from_utf8(pair).expect("ASCII"))
                .map(|pair| u8::from_str_radix(pair, 16).expect("hex digits"))
                .collect(),
        }
    }
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
            .open(&stored, value.payload(), &mut out)
            .unwrap_or_else(|error| panic!("{}: {error}", value.text_form));
        assert_eq!(out[..len], *value.plaintext());
    }
}

#[test]
fn frozen_values_of_one_type_do_not_open_as_another() {
    let vectors: Vectors = serde_json::from_str(FORMAT).expect("format.json");
    let ring = KeyRing::parse(&vectors.key).expect("a ring key");
    for value in &vectors.values {
        let sealed = decode_text(value.text_form.as_bytes()).expect("a text form");
        let stored = Stored::parse(&sealed).expect("decoded");
        for payload in Payload::ALL {
            let mut out = vec![0; stored.plaintext_capacity()];
            let opened = ring.primary().open(&stored, payload, &mut out);
            // A Fernet token is bound to nothing but its key.
            let opens = payload == value.payload() || stored.suite() == Suite::Fernet;
            assert_eq!(opened.is_ok(), opens, "{} as {payload:?}", value.text_form);
        }
    }
}

#[test]
fn every_suite_has_values_of_every_type() {
    let vectors: Vectors = serde_json::from_str(FORMAT).expect("format.json");
    for suite in Suite::ALL {
        for payload in Payload::ALL {
            let mut values = vectors.values.iter();
            assert!(
                values.any(|value| value.suite == suite.name() && value.payload() == payload),
                "{suite:?} {payload:?}"
            );
        }
    }
}

#[test]
fn every_suite_has_an_empty_a_short_and_a_non_ascii_value() {
    let vectors: Vectors = serde_json::from_str(FORMAT).expect("format.json");
    let seen: HashSet<_> = vectors
        .values
        .iter()
        .filter(|value| value.payload() == Payload::Text)
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

//! A ring text gives a ring that keeps its rules, or an error, and no panic.

#![no_main]

use std::collections::HashSet;

use colcrypt_core::KeyRing;
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|text: &str| -> Corpus {
    // Argon2id takes a tenth of a second for each: nothing to learn from that.
    if text.contains("passphrase:") {
        return Corpus::Reject;
    }
    match KeyRing::parse(text) {
        Ok(ring) => {
            let ids: HashSet<_> = ring.keys().map(|key| key.id()).collect();
            assert_eq!(ids.len(), ring.entries().len());
            assert_eq!(ring.entries()[0].key.id(), ring.primary().id());
            let named = ring.entries().iter().filter(|entry| entry.name.is_some());
            assert!([0, ids.len()].contains(&named.count()));
        }
        Err(error) => {
            let message = error.to_string();
            // Two names of at most 31 characters and our own words.
            assert!(message.chars().count() < 256);
            assert!(!message.contains(char::is_control));
        }
    }
    Corpus::Keep
});

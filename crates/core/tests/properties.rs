//! What holds for every key, value and text. Public API only: what is shown
//! here, the extension can rely on.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use colcrypt_core::{
    Key, KeyRing, NonceSource, Payload, RingTextError, SecretKey, Stored, Suite, TEXT_PREFIX,
    decode_text, encode_text, fernet_raw, fernet_token, is_reserved,
};
use proptest::prelude::*;
use proptest::sample::select;

/// Lengths around AES's and SHA-256's blocks, and the empty value.
const LENGTHS: [usize; 7] = [0, 1, 15, 16, 17, 64, 100];

/// What an output buffer holds before a call that must not touch it.
const UNTOUCHED: u8 = 0xa5;

/// Why a stored value gives no plaintext, in the order in which a server finds
/// out.
#[derive(Debug, PartialEq)]
enum Refused {
    Malformed,
    OtherKey,
    Authentication,
}

/// 32 bytes of `fill`.
fn secret(fill: u8) -> [u8; 32] {
    [fill; 32]
}

fn key(fill: u8) -> Key {
    Key::new(SecretKey::take(&mut secret(fill)))
}

/// A ring of two keys, the first of which seals.
fn ring() -> KeyRing {
    let keys = [1, 2].map(|fill| STANDARD.encode(secret(fill)));
    KeyRing::parse(&keys.join(",")).expect("two keys")
}

fn seal(key: &Key, suite: Suite, plaintext: &[u8]) -> Vec<u8> {
    seal_from(&mut NonceSource::new(), key, suite, plaintext)
}

fn seal_from(nonces: &mut NonceSource, key: &Key, suite: Suite, plaintext: &[u8]) -> Vec<u8> {
    let mut out = vec![0; suite.sealed_len(plaintext.len())];
    key.seal(
        suite,
        Payload::Text,
        plaintext,
        nonces.in_process(1),
        &mut out,
    )
    .expect("random bytes");
    out
}

/// Opens a value as a server does: the value's key id selects the key.
fn open(ring: &KeyRing, stored: &[u8]) -> Result<Vec<u8>, Refused> {
    let stored = Stored::parse(stored).map_err(|_| Refused::Malformed)?;
    let key = ring.find(stored.key_id()).ok_or(Refused::OtherKey)?;
    open_with(key, &stored)
}

fn open_with(key: &Key, stored: &Stored<'_>) -> Result<Vec<u8>, Refused> {
    let mut out = vec![UNTOUCHED; stored.plaintext_capacity()];
    if let Ok(len) = key.open(stored, Payload::Text, &mut out) {
        out.truncate(len);
        Ok(out)
    } else {
        assert!(
            out.iter().all(|byte| *byte == UNTOUCHED),
            "a refused value leaves its output alone"
        );
        Err(Refused::Authentication)
    }
}

fn text(len: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(len).collect()
}

#[test]
fn values_of_any_length_come_back() {
    let ring = ring();
    for suite in Suite::ALL {
        for len in (0..=300).chain([1 << 20]) {
            let plaintext = text(len);
            let sealed = seal(ring.primary(), suite, &plaintext);
            let stored = Stored::parse(&sealed).expect("just sealed");
            assert_eq!(stored.suite(), suite);
            assert_eq!(stored.key_id(), ring.primary().id());
            let known_len = (suite != Suite::Fernet).then_some(len);
            assert_eq!(stored.plaintext_len(), known_len, "{suite:?} {len}");
            assert_eq!(open(&ring, &sealed), Ok(plaintext), "{suite:?} {len}");
        }
    }
}

#[test]
fn sealed_lengths_are_as_documented() {
    for len in (0..=300).chain([1 << 20]) {
        assert_eq!(Suite::Xaes256Gcm.sealed_len(len), len + 45);
        assert_eq!(Suite::Aes256Gcm.sealed_len(len), len + 33);
        assert_eq!(Suite::Envelope.sealed_len(len), len + 93);
        let padded = (len + 1).next_multiple_of(16);
        assert_eq!(Suite::Fernet.sealed_len(len), padded + 62);
    }
}

#[test]
fn a_plaintext_never_seals_to_the_same_bytes_twice() {
    let key = key(1);
    let mut nonces = NonceSource::new();
    for suite in Suite::ALL {
        let mut bodies = HashSet::new();
        let mut tails = HashSet::new();
        for _ in 0..2000 {
            let sealed = seal_from(&mut nonces, &key, suite, b"the same");
            // The nonce alone would make values differ: the rest must, too.
            assert!(tails.insert(sealed[sealed.len() - 16..].to_vec()));
            assert!(bodies.insert(sealed[Stored::HEADER_LEN..].to_vec()));
        }
    }
}

#[test]
fn a_flipped_bit_is_noticed_wherever_it_is() {
    let ring = ring();
    for suite in Suite::ALL {
        for len in LENGTHS {
            let sealed = seal(ring.primary(), suite, &text(len));
            for bit in 0..8 * sealed.len() {
                let mut changed = sealed.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                let refused = open(&ring, &changed).expect_err("a changed value");
                match bit / 8 {
                    // Another suite, or none.
                    0 => assert_ne!(refused, Refused::OtherKey),
                    1..=4 => {
                        assert_eq!(refused, Refused::OtherKey, "{suite:?} {len} bit {bit}");
                        // Nor does the right key open it, should anyone ask it to.
                        let stored = Stored::parse(&changed).expect("its form is right");
                        assert_eq!(
                            open_with(ring.primary(), &stored),
                            Err(Refused::Authentication)
                        );
                    }
                    // Fernet's version byte.
                    5 if suite == Suite::Fernet => assert_eq!(refused, Refused::Malformed),
                    _ => assert_eq!(
                        refused,
                        Refused::Authentication,
                        "{suite:?} {len} bit {bit}"
                    ),
                }
            }
        }
    }
}

#[test]
fn a_value_cut_off_or_extended_is_refused() {
    let ring = ring();
    for suite in Suite::ALL {
        for len in LENGTHS {
            let sealed = seal(ring.primary(), suite, &text(len));
            for end in 0..sealed.len() {
                assert!(open(&ring, &sealed[..end]).is_err(), "{suite:?} {len}");
                // From the front as well: what is left starts with another header.
                assert!(open(&ring, &sealed[end + 1..]).is_err(), "{suite:?} {len}");
            }
            // One byte, and a whole AES block, which Fernet's form has room for.
            for extra in [1, 16] {
                for fill in [0, 0xff] {
                    let longer = [&sealed[..], &vec![fill; extra]].concat();
                    assert!(open(&ring, &longer).is_err(), "{suite:?} {len}");
                }
            }
        }
    }
}

/// What is not a value is known as such without a key, so that it is never stored.
#[test]
fn only_lengths_that_a_suite_can_have_parse() {
    for suite in Suite::ALL {
        let longest = suite.sealed_len(100);
        let value = [&[suite as u8, 0, 0, 0, 0, 0x80][..], &vec![0; longest]].concat();
        let sealed_lens: HashSet<_> = (0..=100).map(|len| suite.sealed_len(len)).collect();
        for len in 0..=longest {
            assert_eq!(
                Stored::parse(&value[..len]).is_ok(),
                sealed_lens.contains(&len),
                "{suite:?} {len}"
            );
        }
    }
}

#[test]
fn a_value_does_not_pass_as_another_suites() {
    let ring = ring();
    for suite in Suite::ALL {
        for len in LENGTHS {
            let mut sealed = seal(ring.primary(), suite, &text(len));
            for format in (0..=u8::MAX).filter(|byte| *byte != suite as u8) {
                sealed[0] = format;
                let refused = open(&ring, &sealed).expect_err("another suite");
                let known = Suite::ALL.iter().any(|suite| *suite as u8 == format);
                assert!(known || refused == Refused::Malformed, "format {format}");
            }
        }
    }
}

#[test]
fn parts_of_two_values_do_not_make_a_third() {
    let ring = ring();
    let mut nonces = NonceSource::new();
    for suite in Suite::ALL {
        // One plaintext, so that only nonces, data keys and tags differ.
        let [a, b] = [0; 2].map(|_| seal_from(&mut nonces, ring.primary(), suite, b"one text"));
        for cut in 0..a.len() {
            for (head, tail) in [(&a, &b), (&b, &a)] {
                let mixed = [&head[..cut], &tail[cut..]].concat();
                if mixed != a && mixed != b {
                    assert_eq!(
                        open(&ring, &mixed),
                        Err(Refused::Authentication),
                        "{suite:?} cut at {cut}"
                    );
                }
            }
        }
    }
}

#[test]
fn another_key_does_not_open() {
    let ring = ring();
    let stranger = key(3);
    for suite in Suite::ALL {
        let mut sealed = seal(&stranger, suite, b"not yours");
        assert_eq!(open(&ring, &sealed), Err(Refused::OtherKey), "{suite:?}");
        // Nor under a forged key id.
        for key in ring.keys() {
            sealed[1..5].copy_from_slice(&key.id().0);
            assert_eq!(
                open(&ring, &sealed),
                Err(Refused::Authentication),
                "{suite:?}"
            );
        }
    }
}

#[test]
fn every_key_of_a_ring_opens_its_own() {
    let ring = ring();
    for suite in Suite::ALL {
        for key in ring.keys() {
            let sealed = seal(key, suite, b"mine");
            assert_eq!(open(&ring, &sealed), Ok(b"mine".to_vec()), "{suite:?}");
        }
    }
}

/// A value has no time to live, and its maker's clock may be wrong.
#[test]
fn a_fernet_token_of_any_time_is_adopted() {
    let key = key(1);
    let maker = fernet::Fernet::new(&URL_SAFE.encode(secret(1))).expect("a Fernet key");
    for time in [
        0,
        59,
        60,
        4_102_444_800, // the year 2100
        i64::MAX as u64,
        u64::MAX - 60,
        u64::MAX - 59,
        u64::MAX,
    ] {
        let token = maker.encrypt_at_time(b"token", time);
        let raw = fernet_raw(token.as_bytes()).expect("base64url");
        let sealed = key.adopt_fernet(&raw).expect("a token of this key");
        let stored = Stored::parse(&sealed).expect("adopted");
        assert_eq!(stored.sealed_at(), Some(time));
        assert_eq!(open_with(&key, &stored), Ok(b"token".to_vec()), "{time}");
        assert_eq!(fernet_token(&stored), Some(token));
    }
}

#[test]
fn a_fernet_token_of_another_key_is_not_adopted() {
    let maker = fernet::Fernet::new(&URL_SAFE.encode(secret(1))).expect("a Fernet key");
    let raw = fernet_raw(maker.encrypt(b"token").as_bytes()).expect("base64url");
    assert!(key(1).adopt_fernet(&raw).is_ok());
    assert!(key(2).adopt_fernet(&raw).is_err());
}

/// Bytes that have the form of a Fernet token.
fn token_bytes() -> impl Strategy<Value = Vec<u8>> {
    (
        any::<[u8; 56]>(),
        prop::collection::vec(any::<[u8; 16]>(), 1..8),
    )
        .prop_map(|(frame, blocks)| [&[0x80][..], &frame, &blocks.concat()].concat())
}

/// Bytes that have a suite's form, and any others.
fn stored_bytes() -> impl Strategy<Value = Vec<u8>> {
    let aead = (
        select(&[1u8, 2, 4][..]),
        prop::collection::vec(any::<u8>(), 0..200),
    )
        .prop_map(|(format, rest)| [&[format][..], &rest].concat());
    let fernet = (any::<[u8; 4]>(), token_bytes())
        .prop_map(|(key_id, token)| [&[3][..], &key_id, &token].concat());
    prop_oneof![aead, fernet, prop::collection::vec(any::<u8>(), 0..200)]
}

/// Fragments that ring text is made of, in any order. No passphrase: each would
/// take a tenth of a second.
fn ring_text() -> impl Strategy<Value = String> {
    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const HEX: &str = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";
    let fragment = select(vec![
        KEY,
        HEX,
        "{\"primary\":\"a\",\"keys\":{\"a\":\"",
        "\",\"b\":\"",
        "\"}}",
        "{",
        "}",
        "[",
        "\"",
        ":",
        "\\",
        "\\u0000",
        "\\ud800",
        "\"primary\"",
        "\"keys\"",
        "null",
        "1e999",
        ",",
        "#",
        "\n",
        "\r",
        "\u{a0}",
        "\u{2028}",
        "é",
        "=",
        "-",
        "0",
    ]);
    prop_oneof![
        any::<String>(),
        prop::collection::vec(fragment, 0..16).prop_map(|fragments| fragments.concat()),
    ]
    .prop_filter("no passphrase", |text| !text.contains("passphrase:"))
}

/// Something that an administrator took for a key: random, so that no part of it
/// is in a message by chance.
fn mistaken_key() -> impl Strategy<Value = String> {
    prop_oneof![
        "[A-Za-z0-9+/]{8,80}",
        "[A-Za-z0-9_-]{43}",
        "[0-9a-f]{8,80}",
        "[A-Za-z0-9_-]{40,43}==?",
        "[!-~]{8,64}",
        "\\PC{8,40}",
    ]
    .prop_filter("a key after all", |text| KeyRing::parse(text).is_err())
}

/// Whether any 8 characters in a row of `secret` are in `message`.
fn gives_away(message: &str, secret: &str) -> bool {
    let characters: Vec<char> = secret.chars().collect();
    characters
        .windows(8)
        .any(|window| message.contains(&window.iter().collect::<String>()))
}

/// The error of a ring text that must be refused, as everybody may see it.
fn refusal(text: &str) -> String {
    let error: RingTextError = KeyRing::parse(text).expect_err("this is no key ring");
    format!("{error}\n{error:?}")
}

proptest! {
    #[test]
    fn any_bytes_come_back(plaintext: Vec<u8>, fill: u8) {
        let key = key(fill);
        for suite in Suite::ALL {
            let sealed = seal(&key, suite, &plaintext);
            let stored = Stored::parse(&sealed).expect("just sealed");
            prop_assert_eq!(open_with(&key, &stored), Ok(plaintext.clone()));
        }
    }

    #[test]
    fn what_parses_is_written_the_same(bytes in stored_bytes()) {
        if let Ok(stored) = Stored::parse(&bytes) {
            prop_assert_eq!(stored.to_bytes(), &bytes[..]);
            let header = bytes.first_chunk().expect("parsed");
            prop_assert_eq!(
                Stored::parse_header(header),
                Ok((stored.suite(), stored.key_id()))
            );
            let len = stored.plaintext_capacity();
            match stored.suite() {
                // The padding is 1 to 16 bytes.
                Suite::Fernet => {
                    prop_assert_eq!(Suite::Fernet.sealed_len(len - 1), bytes.len());
                    prop_assert_eq!(Suite::Fernet.sealed_len(len - 16), bytes.len());
                }
                suite => prop_assert_eq!(suite.sealed_len(len), bytes.len()),
            }
        }
    }

    #[test]
    fn bytes_that_nobody_sealed_do_not_open(mut bytes in stored_bytes()) {
        let ring = ring();
        if let Some(key_id) = bytes.get_mut(1..5) {
            key_id.copy_from_slice(&ring.primary().id().0);
        }
        prop_assert!(open(&ring, &bytes).is_err());
        prop_assert!(ring.primary().adopt_fernet(&bytes).is_err());
        if let Some(token) = bytes.get(5..) {
            prop_assert!(ring.primary().adopt_fernet(token).is_err());
        }
    }

    #[test]
    fn every_text_form_is_reserved_and_has_one_reading(bytes in stored_bytes()) {
        let text = encode_text(&bytes);
        prop_assert!(is_reserved(text.as_bytes()));
        match Stored::parse(&bytes) {
            Ok(_) => prop_assert_eq!(decode_text(text.as_bytes()), Ok(bytes)),
            Err(malformed) => prop_assert_eq!(decode_text(text.as_bytes()), Err(malformed.into())),
        }
    }

    #[test]
    fn no_two_texts_are_the_same_value(
        bytes in stored_bytes(),
        at: prop::sample::Index,
        byte: u8,
        remove: bool,
    ) {
        let mut text = encode_text(&bytes).into_bytes();
        let at = at.index(text.len());
        if remove {
            text.remove(at);
        } else {
            text.insert(at, byte);
        }
        if let Ok(decoded) = decode_text(&text) {
            prop_assert_eq!(encode_text(&decoded).into_bytes(), text);
        }
    }

    #[test]
    fn any_text_is_read_without_panic(bytes: Vec<u8>) {
        prop_assert!(decode_text(&bytes).is_err());
        let prefixed = [TEXT_PREFIX.as_bytes(), &bytes].concat();
        if let Ok(decoded) = decode_text(&prefixed) {
            prop_assert_eq!(encode_text(&decoded).into_bytes(), prefixed);
        }
        let _ = Stored::parse(&bytes);
    }

    #[test]
    fn a_fernet_token_is_read_with_and_without_padding(raw in token_bytes()) {
        let token = URL_SAFE.encode(&raw);
        prop_assert_eq!(fernet_raw(token.as_bytes()), Ok(raw.clone()));
        prop_assert_eq!(fernet_raw(token.trim_end_matches('=').as_bytes()), Ok(raw));
        let spaced = token + " ";
        prop_assert!(fernet_raw(spaced.as_bytes()).is_err());
    }

    #[test]
    fn only_canonical_base64_is_a_fernet_token(
        raw in token_bytes(),
        at: prop::sample::Index,
        byte: u8,
        junk: Vec<u8>,
    ) {
        let mut changed = URL_SAFE.encode(&raw).into_bytes();
        let at = at.index(changed.len());
        changed[at] = byte;
        for text in [&changed, &junk] {
            if let Ok(raw) = fernet_raw(text) {
                let printed = URL_SAFE.encode(raw).into_bytes();
                prop_assert!(printed.starts_with(text));
                prop_assert!(printed[text.len()..].iter().all(|byte| *byte == b'='));
            }
        }
    }

    #[test]
    fn any_ring_text_is_read_without_panic(text in ring_text()) {
        if let Ok(ring) = KeyRing::parse(&text) {
            let ids: Vec<_> = ring.keys().map(Key::id).collect();
            prop_assert_eq!(ids[0], ring.primary().id());
            prop_assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
        }
    }

    #[test]
    fn a_ring_is_the_same_in_any_layout(
        secrets in prop::collection::hash_set(any::<[u8; 32]>(), 1..6),
        forms in prop::collection::vec(0..4, 6),
        gaps in prop::collection::vec("[ ,\t]*(,|\n|#[^\n]{0,9}\n| #[^\n]{0,9}\n)", 6),
    ) {
        let mut text = String::new();
        let mut ids = Vec::new();
        for ((secret, form), gap) in secrets.iter().zip(forms).zip(gaps) {
            text += &match form {
                0 => STANDARD.encode(secret),
                1 => URL_SAFE.encode(secret),
                2 => hex::encode(secret),
                _ => hex::encode_upper(secret),
            };
            text += &gap;
            ids.push(Key::new(SecretKey::take(&mut { *secret })).id());
        }
        let ring = KeyRing::parse(&text).expect("keys and separators");
        prop_assert_eq!(ring.keys().map(Key::id).collect::<Vec<_>>(), ids);
    }

    #[test]
    fn a_refused_list_is_not_quoted(secret in mistaken_key(), short in "[!-~]{8,31}") {
        let key = STANDARD.encode([7; 32]);
        for text in [
            secret.clone(),
            format!("{key},{secret}"),
            format!("{secret} {key}"),
            format!("# comment\n{secret} # comment"),
            format!("{key};{secret}"),
            format!("{key}{secret}"),
        ] {
            // Some have a # or a comma and so hold a ring as well.
            if KeyRing::parse(&text).is_err() {
                let message = refusal(&text);
                prop_assert!(!gives_away(&message, &secret), "{}", message);
                prop_assert!(!gives_away(&message, &key), "{}", message);
            }
        }
        let message = refusal(&format!("passphrase:{short}"));
        prop_assert!(!gives_away(&message, &short), "{}", message);
    }

    /// Names are shown on purpose, so one that is as long as a key is refused.
    #[test]
    fn a_refused_document_is_not_quoted(secret in mistaken_key()) {
        let key = STANDARD.encode([7; 32]);
        let quoted = serde_json::to_string(&secret).expect("a string");
        let mut documents = vec![
            format!(r#"{{"primary":"a","keys":{{"a":{quoted}}}}}"#),
            format!(r#"{{"primary":"a","keys":{{"a":"{key}","b":{quoted}}}}}"#),
            format!(r#"{{"primary":"a","keys":{{"a":"{key}"}},{quoted}:1}}"#),
            format!(r#"{{"primary":{quoted},"keys":{{"a":"{key}"}}}}"#),
            format!(r#"{{"primary":{quoted},"primary":"a"}}"#),
            format!(r#"{{"primary":{quoted}}}"#),
            format!(r#"{{"keys":{quoted}}}"#),
            format!(r#"{{"primary":"a","keys":[{quoted}]}}"#),
            format!("{{{quoted}}}"),
            format!("{{{secret}"),
            format!("{{\"primary\":\"{secret}\u{1}"),
        ];
        if secret.chars().count() > 31 {
            documents.push(format!(r#"{{"primary":"a","keys":{{{quoted}:"{key}"}}}}"#));
            documents.push(format!(r#"{{"primary":{quoted},"keys":{{{quoted}:"a"}}}}"#));
        }
        for document in documents {
            let message = refusal(&document);
            prop_assert!(!gives_away(&message, &secret), "{}", message);
            prop_assert!(!gives_away(&message, &key), "{}", message);
        }
    }
}

#[test]
fn a_document_broken_off_is_not_quoted() {
    let keys = [7, 8].map(|fill| STANDARD.encode([fill; 32]));
    let document = format!(
        r#"{{"primary":"a","keys":{{"a":"{}","b":"{}"}}}}"#,
        keys[0], keys[1]
    );
    assert!(KeyRing::parse(&document).is_ok());
    for end in 0..document.len() {
        let message = refusal(&document[..end]);
        for key in &keys {
            assert!(!gives_away(&message, key), "{message}");
        }
    }
}

//! Ring text: what an administrator writes into a setting, a file or an
//! environment variable. Two forms, a list of keys and a JSON document.

use core::fmt;
use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use zeroize::Zeroizing;

use crate::kdf;
use crate::key::Key;
use crate::ring::RingKey;
use crate::secret::{SecretKey, SecretText};

/// Fewest characters of a passphrase.
const PASSPHRASE_MIN: usize = 32;
/// Most characters of a key's name. Shorter than any key or passphrase, so that
/// a ring with name and key the wrong way round is refused without showing it.
const NAME_MAX: usize = 31;
const PASSPHRASE_PREFIX: &str = "passphrase:";
const HEX_LEN: usize = 2 * SecretKey::LEN;

/// Which entry of a ring an error is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// The nth key of a list, from 1.
    Position(usize),
    /// The name in a JSON ring.
    Name(String),
}

/// Why a ring text is refused. Never quotes what it is about, but names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingTextError {
    /// No key at all.
    #[error("the key ring holds no key")]
    Empty,
    /// A key of another length than 32 bytes.
    #[error("{0}: {1} bytes, must be {len}", len = SecretKey::LEN)]
    Length(Entry, usize),
    /// None of the forms that a key can have.
    #[error(
        "{0}: neither 44 characters of base64 or base64url, nor 64 hex digits, nor passphrase:…"
    )]
    Form(Entry),
    /// A passphrase that is too short.
    #[error("{0}: a passphrase of {1} characters, must be at least {PASSPHRASE_MIN}")]
    ShortPassphrase(Entry, usize),
    /// A passphrase in a list that would be cut off at a `#`.
    #[error("{0}: a passphrase with white space, a comma or # goes into the JSON form")]
    PassphraseNeedsJson(Entry),
    /// The same key, or two keys with the same id.
    #[error("{0} and {1} are the same key")]
    DuplicateKey(Entry, Entry),
    /// The same name twice in a JSON ring.
    #[error("{0} is there twice")]
    DuplicateName(Entry),
    /// A name that is empty, too long or not printable.
    #[error("{0}: its name must be 1 to {NAME_MAX} printable characters")]
    Name(Entry),
    /// The JSON ring's `primary` names no key.
    #[error("the primary is none of the keys")]
    UnknownPrimary,
    /// A member other than `primary` and `keys`, or one of them missing or twice,
    /// or of the wrong type.
    #[error(
        "a JSON key ring has exactly the members \"primary\", a name, and \"keys\", \
         an object of names and keys (line {line}, column {column})"
    )]
    Members {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// Not JSON.
    #[error("the key ring is not valid JSON (line {line}, column {column})")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Position(position) => write!(f, "key {position}"),
            Self::Name(name) => write!(f, "key \"{name}\""),
        }
    }
}

/// Reads ring text into keys, the primary first.
pub(crate) fn parse(text: &str) -> Result<Vec<RingKey>, RingTextError> {
    let ring = if text.trim_start().starts_with('{') {
        parse_json(text)?
    } else {
        parse_list(text)?
    };
    if ring.is_empty() {
        return Err(RingTextError::Empty);
    }
    for (n, entry) in ring.iter().enumerate() {
        if let Some(m) = ring[..n]
            .iter()
            .position(|other| other.key.id() == entry.key.id())
        {
            return Err(RingTextError::DuplicateKey(
                label(&ring, m),
                label(&ring, n),
            ));
        }
    }
    Ok(ring)
}

fn label(ring: &[RingKey], n: usize) -> Entry {
    match &ring[n].name {
        Some(name) => Entry::Name(name.clone()),
        None => Entry::Position(n + 1),
    }
}

/// Keys between commas and white space, comments from `#` to the end of a line.
fn parse_list(text: &str) -> Result<Vec<RingKey>, RingTextError> {
    let mut ring = Vec::new();
    for line in text.lines() {
        // A passphrase may well hold a #, and must not silently lose its end.
        let mut rest = line;
        loop {
            rest = rest.trim_start_matches(is_separator);
            if rest.is_empty() || rest.starts_with('#') {
                break;
            }
            let entry = Entry::Position(ring.len() + 1);
            let word = &rest[..rest.find(is_separator).unwrap_or(rest.len())];
            rest = &rest[word.len()..];
            let key = match word.split_once('#') {
                None => parse_key(word, entry)?,
                Some((key, _)) if key.starts_with(PASSPHRASE_PREFIX) => {
                    return Err(RingTextError::PassphraseNeedsJson(entry));
                }
                Some((key, _)) => {
                    rest = "";
                    parse_key(key, entry)?
                }
            };
            ring.push(RingKey { name: None, key });
        }
    }
    Ok(ring)
}

fn is_separator(c: char) -> bool {
    c == ',' || c.is_whitespace()
}

fn parse_key(text: &str, entry: Entry) -> Result<Key, RingTextError> {
    if let Some(passphrase) = text.strip_prefix(PASSPHRASE_PREFIX) {
        let characters = passphrase.chars().count();
        if characters < PASSPHRASE_MIN {
            return Err(RingTextError::ShortPassphrase(entry, characters));
        }
        return Ok(Key::new(kdf::passphrase_key(passphrase)));
    }
    let bytes = if text.len() == HEX_LEN && is_hex(text) {
        decode_hex(text)
    } else {
        STANDARD
            .decode(text)
            .or_else(|_| URL_SAFE.decode(text))
            .map(Zeroizing::new)
            .or_else(|_| {
                if is_hex(text) && text.len().is_multiple_of(2) {
                    Ok(decode_hex(text))
                } else {
                    Err(RingTextError::Form(entry.clone()))
                }
            })?
    };
    let mut key = Zeroizing::new([0; SecretKey::LEN]);
    if bytes.len() != key.len() {
        return Err(RingTextError::Length(entry, bytes.len()));
    }
    key.copy_from_slice(&bytes);
    Ok(Key::new(SecretKey::take(&mut key)))
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The bytes of an even number of hex digits.
fn decode_hex(digits: &str) -> Zeroizing<Vec<u8>> {
    let nibble = |b: u8| char::from(b).to_digit(16).expect("checked by is_hex") as u8;
    let bytes = digits.as_bytes().chunks_exact(2);
    Zeroizing::new(
        bytes
            .map(|pair| nibble(pair[0]) << 4 | nibble(pair[1]))
            .collect(),
    )
}

/// `{"primary": "a", "keys": {"a": "base64…", "b": "base64…"}}`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<'a> {
    #[serde(borrow)]
    primary: Cow<'a, str>,
    keys: NamedKeys,
}

/// The members in the order of the document, duplicates included: a map would
/// drop one of two keys with the same name in silence.
struct NamedKeys(Vec<(String, SecretText)>);

impl<'de> Deserialize<'de> for NamedKeys {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = NamedKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of names and keys")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NamedKeys, A::Error> {
                let mut keys = Vec::new();
                while let Some(member) = map.next_entry()? {
                    keys.push(member);
                }
                Ok(NamedKeys(keys))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

fn parse_json(text: &str) -> Result<Vec<RingKey>, RingTextError> {
    // serde_json's messages quote what they found, so only the place is used.
    let document: Document<'_> = serde_json::from_str(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        if error.is_data() {
            RingTextError::Members { line, column }
        } else {
            RingTextError::Json { line, column }
        }
    })?;
    let named = document.keys.0;
    for (n, (name, _)) in named.iter().enumerate() {
        let printable = !name.chars().any(char::is_control) && !name.trim().is_empty();
        if !printable || name.chars().count() > NAME_MAX {
            return Err(RingTextError::Name(Entry::Position(n + 1)));
        }
        if named[..n].iter().any(|(other, _)| other == name) {
            return Err(RingTextError::DuplicateName(Entry::Name(name.clone())));
        }
    }
    let mut ring = Vec::with_capacity(named.len());
    let mut primary = None;
    for (name, text) in named {
        if name == document.primary {
            primary = Some(ring.len());
        }
        let key = parse_key(text.expose(), Entry::Name(name.clone()))?;
        ring.push(RingKey {
            name: Some(name),
            key,
        });
    }
    if !ring.is_empty() {
        let primary = primary.ok_or(RingTextError::UnknownPrimary)?;
        ring[..=primary].rotate_right(1);
    }
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const A_HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const A_ID: &str = "dff573a2";
    const B: &str = "-_________________________________________8=";

    fn ids(text: &str) -> Vec<String> {
        let ring = parse(text).unwrap_or_else(|error| panic!("refused: {error}"));
        ring.iter()
            .map(|entry| entry.key.id().to_string())
            .collect()
    }

    fn refusal(text: &str) -> String {
        match parse(text) {
            Ok(_) => panic!("accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_same_key_has_the_same_id_in_every_form() {
        assert_eq!(ids(A), [A_ID]);
        assert_eq!(ids(A_HEX), [A_ID]);
        assert_eq!(ids(&A_HEX.to_uppercase()), [A_ID]);
        assert_eq!(ids(B), ids(&B.replace('-', "+").replace('_', "/")));
        assert_eq!(
            ids(&format!("{{\"primary\":\"k\",\"keys\":{{\"k\":\"{A}\"}}}}")),
            [A_ID]
        );
    }

    #[test]
    fn a_list_takes_commas_white_space_and_comments_and_keeps_its_order() {
        let b = &ids(B)[0];
        for text in [
            format!("{A},{B}"),
            format!("{A} {B}\n"),
            format!("\t{A}\r\n\r\n{B} # the old one, {A}"),
            format!("# new\n{A}, # primary\n,{B}"),
            format!("{A}# close by, {B}\n{B}"),
        ] {
            assert_eq!(ids(&text), [A_ID, b], "{text}");
        }
        assert_eq!(ids(&format!("{B},{A}")), [b, A_ID]);
    }

    #[test]
    fn a_json_ring_puts_its_primary_first() {
        let text = |primary| {
            format!(r#"{{"primary": "{primary}", "keys": {{"2026-11": "{A}", "2026-05": "{B}"}}}}"#)
        };
        let b = &ids(B)[0];
        assert_eq!(ids(&text("2026-11")), [A_ID, b]);
        assert_eq!(ids(&text("2026-05")), [b, A_ID]);
        assert_eq!(refusal(&text("2026-01")), "the primary is none of the keys");
    }

    #[test]
    fn a_key_of_the_wrong_length_is_refused_by_position_and_length() {
        let short = STANDARD.encode([7; 31]);
        assert_eq!(
            refusal(&format!("{A}\n{short}")),
            "key 2: 31 bytes, must be 32"
        );
        assert_eq!(
            refusal(&STANDARD.encode([7; 33])),
            "key 1: 33 bytes, must be 32"
        );
        assert_eq!(refusal(&A_HEX[2..]), "key 1: 31 bytes, must be 32");
        let named = format!(r#"{{"primary":"a","keys":{{"a":"{short}"}}}}"#);
        assert_eq!(refusal(&named), "key \"a\": 31 bytes, must be 32");
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_quoted() {
        for bad in [
            "hunter2!".to_owned(),
            A[..43].to_owned(),
            format!("{A}="),
            format!("\"{A}\""),
            format!("{A};{B}"),
            "é".repeat(44),
            format!("[\"{A}\"]"),
        ] {
            assert!(
                refusal(&bad).starts_with("key 1: neither 44 characters"),
                "{bad}"
            );
        }
        for unknown in [
            format!(r#"{{"primary":"a","keys":{{"a":"{A}"}},"comment":"hunter2"}}"#),
            format!(r#"{{"primary":"a","keys":{{"a":"{A}"}},"{B}":1}}"#),
            format!(r#"{{"keys":{{"a":"{A}"}}}}"#),
            r#"{"primary":"a"}"#.to_owned(),
            format!(r#"{{"primary":"a","keys":["{A}"]}}"#),
            format!(r#"{{"primary":"a","primary":"a","keys":{{"a":"{A}"}}}}"#),
            r#"{"primary":"a","keys":{"a":12}}"#.to_owned(),
        ] {
            assert!(
                refusal(&unknown).starts_with("a JSON key ring has exactly"),
                "{unknown}"
            );
        }
        assert!(refusal("{hunter2}").starts_with("the key ring is not valid JSON (line 1,"));
        assert!(
            refusal(&format!(
                "{{\"primary\":\"a\",\"keys\":{{\"a\":\"{A}\"}}}} x"
            ))
            .contains("JSON")
        );
    }

    #[test]
    fn a_name_and_key_the_wrong_way_round_are_not_shown() {
        let swapped = format!(r#"{{"primary":"{A}","keys":{{"{A}":"2026-11"}}}}"#);
        assert_eq!(
            refusal(&swapped),
            "key 1: its name must be 1 to 31 printable characters"
        );
    }

    #[test]
    fn duplicates_and_empty_rings_are_refused() {
        assert_eq!(
            refusal(&format!("{A},{A_HEX}")),
            "key 1 and key 2 are the same key"
        );
        let twice = format!(r#"{{"primary":"a","keys":{{"a":"{A}","a":"{B}"}}}}"#);
        assert_eq!(refusal(&twice), "key \"a\" is there twice");
        let same = format!(r#"{{"primary":"a","keys":{{"a":"{A}","b":"{A}"}}}}"#);
        assert_eq!(refusal(&same), "key \"a\" and key \"b\" are the same key");
        for empty in [
            "",
            " \n",
            "# only a comment",
            ",,",
            r#"{"primary":"a","keys":{}}"#,
        ] {
            assert_eq!(refusal(empty), "the key ring holds no key", "{empty}");
        }
    }

    #[test]
    fn passphrases_are_long_and_never_cut_off() {
        let long = "correct-horse-battery-staple-of-32+";
        assert_eq!(ids(&format!("passphrase:{long}")).len(), 1);
        assert_eq!(
            refusal("passphrase:short"),
            "key 1: a passphrase of 5 characters, must be at least 32"
        );
        let hash = "key 1: a passphrase with white space, a comma or # goes into the JSON form";
        assert_eq!(refusal(&format!("passphrase:{long}#1")), hash);
        let spaced = "correct horse battery staple of thirty-two";
        let json = format!(r#"{{"primary":"p","keys":{{"p":"passphrase:{spaced}"}}}}"#);
        assert_eq!(
            ids(&json),
            [kdf::key_id(&kdf::passphrase_key(spaced)).to_string()]
        );
    }
}

//! The 31-bit number that stands for a key's name in a type modifier.

use sha2::{Digest, Sha256};

/// Whether a key can have this name: 1 to 63 characters of printable ASCII, which
/// is the same in every encoding of a database, not `#` at the start.
pub fn is_key_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && !name.starts_with('#')
        && name.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// The first 31 bits of `SHA-256("colcrypt v1 key name" | name)`.
pub fn modifier_from_name(name: &str) -> i32 {
    let digest = Sha256::new()
        .chain_update(b"colcrypt v1 key name")
        .chain_update(name)
        .finalize();
    let [a, b, c, d] = [digest[0], digest[1], digest[2], digest[3]];
    (u32::from_be_bytes([a, b, c, d]) >> 1).cast_signed()
}

/// A modifier whose name is not known: `#` and 8 hex digits.
pub fn show_modifier(modifier: i32) -> String {
    format!("#{modifier:08x}")
}

/// What [`show_modifier`] printed; `None` for anything else.
pub fn parse_modifier(shown: &str) -> Option<i32> {
    let digits = shown.strip_prefix('#')?;
    let modifier = i32::from_str_radix(digits, 16).ok()?;
    (modifier >= 0 && show_modifier(modifier) == shown).then_some(modifier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modifier_is_shown_as_it_is_read() {
        let modifier = modifier_from_name("pii");
        assert_eq!(show_modifier(modifier), MODIFIER_OF_PII);
        assert_eq!(parse_modifier(MODIFIER_OF_PII), Some(modifier));
        for bad in [
            "",
            "#",
            "#1",
            "#+1234567",
            "#ffffffff",
            "#0000000g",
            "#000000001",
            "00000001",
        ] {
            assert_eq!(parse_modifier(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_are_printable_and_short() {
        for good in ["pii", "My key", "a#", "~", &"x".repeat(63)] {
            assert!(is_key_name(good), "{good}");
        }
        for bad in ["", "#1", "k\u{e9}", "a\tb", "\u{7f}", &"x".repeat(64)] {
            assert!(!is_key_name(bad), "{bad}");
        }
    }

    /// Made with Python's hashlib. Frozen: catalogs hold it.
    const MODIFIER_OF_PII: &str = "#305385e2";
}

//! Key material in text that is meant for a log.

use std::sync::LazyLock;

use regex_lite::Regex;

/// What stands in its place.
pub const REDACTED: &str = "********";

/// The name of the setting `colcrypt.key` where it gets a value: what follows is
/// ring text.
static SETTING: LazyLock<Regex> = LazyLock::new(|| {
    let name = r#"(?:(?:colcrypt|"colcrypt")\s*\.\s*(?:key|"key")|"?colcrypt\.key")"#;
    regex(
        &[
            // SET [SESSION | LOCAL] …, ALTER SYSTEM SET …; "parameter … changed to …"
            r"(?i)(?:\b(?:set|session|local|parameter)\s+",
            // PGOPTIONS
            r"|-c\s*|--)",
            name,
            r"\s*(?:=|:|to\b|changed\b)",
            // set_config('colcrypt.key', …), and as a parameter
            r"|'\s*",
            name,
            r"\s*'\s*(?:,|\)|:|$)",
        ]
        .concat(),
    )
});

/// The beginning of a passphrase of ring text. It may hold anything.
static PASSPHRASE: LazyLock<Regex> = LazyLock::new(|| regex(r"(?i)passphrase:"));

/// 32 bytes in base64, base64url or hex digits.
static KEY: LazyLock<Regex> = LazyLock::new(|| regex(r"(?i)[a-z0-9+/_-]{43,}=|[0-9a-f]{64,}"));

fn regex(text: &str) -> Regex {
    Regex::new(text).expect("a valid expression")
}

/// `text` without what may be key material, if there is any in it: what follows the
/// name of the setting `colcrypt.key` where it is set, what follows `passphrase:`,
/// and whatever looks like a key.
pub fn redact(text: &str) -> Option<String> {
    // The expressions take long, and most texts are neither.
    if !mentions(text, "colcrypt") && !mentions(text, "passphrase:") && !has_long_word(text) {
        return None;
    }
    let ends = [SETTING.find(text), PASSPHRASE.find(text)];
    let end = ends.iter().flatten().map(regex_lite::Match::end).min();
    // Our own messages say "passphrase:…".
    let end = end.filter(|end| !text[*end..].starts_with('…'));
    let kept = &text[..end.unwrap_or(text.len())];
    let clean = KEY.replace_all(kept, REDACTED);
    if end.is_none() && clean == kept {
        return None;
    }
    let mut clean = clean.into_owned();
    if end.is_some() {
        clean.push(' ');
        clean.push_str(REDACTED);
    }
    Some(clean)
}

/// Whether a text sets `colcrypt.key`: the parameters of a statement that does are
/// key material, whatever they look like.
pub fn sets_key(text: &str) -> bool {
    mentions(text, "colcrypt") && SETTING.is_match(text)
}

/// Whether `word` is in a text, in upper or lower case.
fn mentions(text: &str, word: &str) -> bool {
    let (text, word) = (text.as_bytes(), word.as_bytes());
    let first = word[0];
    text.windows(word.len())
        .any(|part| part[0] | 0x20 == first && part.eq_ignore_ascii_case(word))
}

/// Whether there is a word as long as a key.
fn has_long_word(text: &str) -> bool {
    let is_other = |byte: &u8| !(byte.is_ascii_alphanumeric() || b"+/_-".contains(byte));
    text.as_bytes().split(is_other).any(|word| word.len() >= 43)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1F";

    /// Each with the place where the key stands.
    const STATEMENTS: [&str; 18] = [
        "SET colcrypt.key = '{}'",
        "set session colcrypt.key to '{}', DEFAULT",
        "SET LOCAL \"colcrypt\" . \"key\"='{}'",
        "SET \"colcrypt.key\" = '{}'",
        "SET\n\tcolcrypt.key TO E'{}'; SELECT 1",
        "statement: ALTER SYSTEM SET colcrypt.key = $${}$$",
        "ALTER ROLE a IN DATABASE b SET COLCRYPT.KEY = '{}'",
        "SELECT set_config('colcrypt.key', '{}', false)",
        "SELECT pg_catalog.set_config( 'Colcrypt.Key' , '{}', true)",
        "SELECT set_config('colcrypt.key'::text, '{}', true)",
        "parameters: $1 = 'colcrypt.key', $2 = '{}'",
        "parameter \"colcrypt.key\" changed to \"{}\"",
        "invalid value for parameter \"colcrypt.key\": \"{}\"",
        "options: -c colcrypt.key={}",
        "options: --colcrypt.key={} -c x=y",
        "options: -ccolcrypt.key={}",
        "x passphrase:{} y",
        "{\"keys\": {\"a\": \"passphrase:{}\"}}",
    ];

    #[test]
    fn nothing_of_what_the_setting_is_set_to_is_left() {
        for secret in [
            KEY,
            HEX,
            "correct horse, battery ''staple",
            "x",
            "AAECAwQF...",
        ] {
            for statement in STATEMENTS {
                let text = statement.replace("{}", secret);
                let clean = redact(&text).expect(statement);
                let before = &statement[..statement.find("{}").expect("a place")];
                assert!(clean.len() <= before.len() + 1 + REDACTED.len(), "{clean}");
                assert!(before.starts_with(clean.trim_end_matches(REDACTED).trim_end()));
            }
        }
    }

    #[test]
    fn what_looks_like_a_key_is_hidden_anywhere() {
        let url_safe = KEY.replace("AAEC", "-_-_");
        for key in [KEY, HEX, &url_safe] {
            assert_eq!(redact(key).as_deref(), Some(REDACTED));
            let text = format!("SELECT '{key}', \"{key}\" FROM t -- {key}");
            let clean = redact(&text).expect("redacted");
            assert_eq!(clean, text.replace(key, REDACTED));
        }
    }

    #[test]
    fn all_else_is_left_alone() {
        for text in [
            "",
            "SELECT key_id FROM colcrypt.key WHERE name = 'pii'",
            "SHOW colcrypt.key",
            "SET colcrypt.key_file = '/etc/colcrypt/ring'",
            "RESET colcrypt.key",
            "SET colcrypt.write_key = 'tenant'",
            "d41d8cd98f00b204e9800998ecf8427e",
            "colcrypt:v1:AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAhIiMkJSYnKCkq",
            "key 1: neither base64, nor passphrase:…",
            "a=b==c, grün, 中文",
        ] {
            assert_eq!(redact(text), None, "{text}");
        }
    }

    #[test]
    fn a_statement_that_sets_the_key_is_known() {
        assert!(sets_key("SELECT set_config('colcrypt.key', $1, true)"));
        assert!(sets_key("set local colcrypt.key to default"));
        assert!(!sets_key("SELECT * FROM colcrypt.key"));
    }
}

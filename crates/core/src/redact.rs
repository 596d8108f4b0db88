//! Key material in text that is meant for a log.

use std::sync::LazyLock;

use regex_lite::Regex;

/// What stands in its place.
pub const REDACTED: &str = "********";

/// The name of the setting `colcrypt.key` where it gets a value, in SQL and elsewhere:
/// what follows is ring text.
static SETTING: LazyLock<Regex> = LazyLock::new(|| {
    let space = r"(?:\s|/\*.*?\*/|--[^\n]*\n)";
    let name =
        format!(r#"(?:(?:colcrypt|"colcrypt"){space}*\.{space}*(?:key|"key")|"?colcrypt\.key")"#);
    regex(&format!(
        // SET [SESSION | LOCAL] …, ALTER SYSTEM SET …; "parameter … changed to …"; PGOPTIONS
        r"(?is)(?:\b(?:set|session|local|parameter){space}+|-c\s*|--){name}{space}*(?:=|:|to\b|changed\b)"
    ))
});

/// The name as a text of SQL: a parameter of `set_config()`, or a row of `pg_settings`.
static NAME: LazyLock<Regex> = LazyLock::new(|| regex(r"(?i)['$]\s*colcrypt\.key\s*['$]"));

fn regex(text: &str) -> Regex {
    Regex::new(text).expect("a valid expression")
}

/// How far around a mention of the extension its setting is looked for, in bytes: the
/// expressions take long.
const NEAR: usize = 200;
/// Most mentions that are looked at.
const MOST_MENTIONS: usize = 100;
/// Fewest hex digits that are taken for a key: one that PostgreSQL has truncated to the
/// length of an identifier is one.
const HEX: usize = 60;
/// Characters of 32 bytes in base64, before the padding.
const BASE64: usize = 43;

/// `text` without what may be key material, if there is any in it: what follows the
/// name of the setting `colcrypt.key` where it is set, what follows `passphrase:`,
/// and whatever looks like a key.
pub fn redact(text: &str) -> Option<String> {
    let end = [end_of_setting(text), end_of_passphrase(text)]
        .into_iter()
        .flatten()
        .min();
    let kept = &text[..end.unwrap_or(text.len())];
    let clean = without_keys(kept);
    if end.is_none() && clean.is_none() {
        return None;
    }
    let mut clean = clean.unwrap_or_else(|| kept.to_owned());
    if end.is_some() {
        clean.push(' ');
        clean.push_str(REDACTED);
    }
    Some(clean)
}

/// Whether a text sets `colcrypt.key`: the parameters of a statement that does are
/// key material, whatever they look like.
pub fn sets_key(text: &str) -> bool {
    end_of_setting(text).is_some()
}

/// Where what can be shown ends, if the setting is set.
fn end_of_setting(text: &str) -> Option<usize> {
    for (count, at) in mentions(text, "colcrypt").enumerate() {
        if count == MOST_MENTIONS {
            return Some(at);
        }
        let start = text.floor_char_boundary(at.saturating_sub(NEAR));
        let end = text.ceil_char_boundary((at + NEAR).min(text.len()));
        let near = &text[start..end];
        if let Some(found) = SETTING.find(near) {
            return Some(start + found.end());
        }
        if NAME.is_match(near) {
            // The value may stand before the name.
            return text.find(['\'', '$']);
        }
    }
    None
}

fn end_of_passphrase(text: &str) -> Option<usize> {
    const PREFIX: &str = "passphrase:";
    mentions(text, PREFIX)
        .map(|at| at + PREFIX.len())
        // Our own messages say "passphrase:…".
        .find(|end| !text[*end..].starts_with('…'))
}

/// The places where `word` stands, in upper or lower case.
fn mentions<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let (text, word) = (text.as_bytes(), word.as_bytes());
    let first = word[0];
    let parts = text.windows(word.len()).enumerate();
    parts
        .filter(move |(_, part)| part[0] | 0x20 == first && part.eq_ignore_ascii_case(word))
        .map(|(at, _)| at)
}

/// `text` without what looks like a key, if there is any.
fn without_keys(text: &str) -> Option<String> {
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/_-".contains(&byte);
    let bytes = text.as_bytes();
    let (mut clean, mut done) = (String::new(), 0);
    let mut start = 0;
    while start < bytes.len() {
        if !is_base64(bytes[start]) {
            start += 1;
            continue;
        }
        let len = bytes[start..]
            .iter()
            .take_while(|byte| is_base64(**byte))
            .count();
        let end = start + len;
        let key = if len >= BASE64 && bytes.get(end) == Some(&b'=') {
            Some((start, end + 1))
        } else {
            hex_run(&bytes[start..end]).map(|(from, to)| (start + from, start + to))
        };
        if let Some((from, to)) = key {
            clean.push_str(&text[done..from]);
            clean.push_str(REDACTED);
            done = to;
        }
        start = key.map_or(end, |(_, to)| to);
    }
    (done > 0).then(|| clean + &text[done..])
}

/// The first run of hex digits in a word that is as long as a key.
fn hex_run(word: &[u8]) -> Option<(usize, usize)> {
    let mut start = 0;
    for (at, byte) in word.iter().chain([&b' ']).enumerate() {
        if !byte.is_ascii_hexdigit() {
            if at - start >= HEX {
                return Some((start, at));
            }
            start = at + 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1F";

    /// Each with the place where the key stands.
    const STATEMENTS: [&str; 21] = [
        "SET /* my */ colcrypt . -- own\n key = '{}'",
        "SELECT set_config($$colcrypt.key$$, '{}', true)",
        "UPDATE pg_settings SET setting = '{}' WHERE name = 'colcrypt.key'",
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
                assert!(sets_key(&text) || statement.contains("passphrase"));
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
    fn a_key_that_was_truncated_to_an_identifier_is_hidden() {
        let text = format!("identifier will be truncated to \"{}\"", &HEX[..63]);
        assert!(redact(&text).is_some_and(|clean| !clean.contains("0001")));
    }

    #[test]
    fn long_texts_take_no_long() {
        let started = std::time::Instant::now();
        for text in [
            "colcrypt.",
            "QdjQ/A0_-",
            "SET colcrypt ",
            "passphrase ",
            "0f",
            "é",
        ] {
            let long = text.repeat(2_000_000 / text.len());
            let _ = (redact(&long), sets_key(&long));
        }
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
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
            "da39a3ee5e6b4b0d3255bfef95601890afd80709 and so on",
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

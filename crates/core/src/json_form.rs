//! JSON documents as PostgreSQL prints a `jsonb`, and the one form that equal
//! documents share, which tags are made of.
//!
//! `jsonb` has already put members in order, dropped duplicates and white space
//! and written strings in one way. What is left are numbers: they are equal by
//! value (`1.0 = 1.00`), but keep the digits they were written with. They are
//! printed without an exponent (`numeric_out()` of PostgreSQL's `numeric.c`).

use core::cmp::Ordering;

use zeroize::Zeroizing;

/// The document with its numbers in one form: without zeros at the end of a
/// fraction. `None` if it is in that form already.
///
/// `printed` is what `jsonb_out()` gives, in UTF-8.
pub fn with_canonical_numbers(printed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut canonical: Option<Zeroizing<Vec<u8>>> = None;
    // Up to where `printed` is in `canonical`.
    let mut copied = 0;
    let mut at = 0;
    while let Some(byte) = printed.get(at) {
        match byte {
            b'"' => at = end_of_string(printed, at),
            b'-' | b'0'..=b'9' => {
                let end = end_of_number(printed, at);
                let kept = kept_digits(&printed[at..end]);
                if at + kept < end {
                    let canonical = canonical
                        .get_or_insert_with(|| Zeroizing::new(Vec::with_capacity(printed.len())));
                    canonical.extend_from_slice(&printed[copied..at + kept]);
                    copied = end;
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    if let Some(canonical) = &mut canonical {
        canonical.extend_from_slice(&printed[copied..]);
    }
    canonical
}

/// The document with its members in the order that `jsonb` has them in where text is
/// UTF-8: by length of the name in bytes, then byte by byte. In a database of another
/// encoding lengths, and so the order, are others.
///
/// `printed` is what `jsonb_out()` gives, in UTF-8. What is no JSON comes back as it is.
pub fn in_utf8_order(printed: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut ordered = Zeroizing::new(Vec::with_capacity(printed.len()));
    // Members of the objects that are open, innermost last.
    let mut open: Vec<Vec<Member>> = Vec::new();
    let mut at = 0;
    while let Some(&byte) = printed.get(at) {
        let end = match byte {
            b'"' => end_of_string(printed, at),
            _ => at + 1,
        };
        match byte {
            b'{' => open.push(Vec::new()),
            b'"' if printed.get(end) == Some(&b':') => {
                if let Some(members) = open.last_mut() {
                    members.push(Member::begin(&printed[at..end], ordered.len()));
                }
            }
            b'}' => {
                let members = open.pop().unwrap_or_default();
                put_in_order(&members, &mut ordered);
            }
            _ => {}
        }
        ordered.extend_from_slice(&printed[at..end.min(printed.len())]);
        at = end;
    }
    ordered
}

/// A member of an object, where it stands in what is written.
struct Member {
    name: Zeroizing<Vec<u8>>,
    start: usize,
}

impl Member {
    /// `name` is a JSON string.
    fn begin(name: &[u8], start: usize) -> Self {
        // With its escapes undone, as jsonb compares it.
        let plain = serde_json::from_slice::<String>(name);
        Self {
            name: Zeroizing::new(plain.map_or_else(|_| name.to_vec(), String::into_bytes)),
            start,
        }
    }
}

impl Member {
    fn order(&self, other: &Self) -> Ordering {
        let by_length = self.name.len().cmp(&other.name.len());
        by_length.then_with(|| self.name.as_slice().cmp(&other.name))
    }
}

/// Puts the members that `written` ends with in order.
fn put_in_order(members: &[Member], written: &mut [u8]) {
    const BETWEEN: &[u8] = b", ";
    if members.is_sorted_by(|a, b| a.order(b).is_le()) {
        return;
    }
    let start = members[0].start;
    let ends: Vec<_> = members[1..]
        .iter()
        .map(|member| member.start.saturating_sub(BETWEEN.len()))
        .chain([written.len()])
        .collect();
    let before = Zeroizing::new(written[start..].to_vec());
    let mut texts: Vec<_> = members.iter().zip(ends).collect();
    texts.sort_by(|(a, _), (b, _)| a.order(b));
    let texts: Vec<_> = texts
        .into_iter()
        .filter_map(|(member, end)| before.get(member.start - start..end - start))
        .collect();
    let joined = Zeroizing::new(texts.join(BETWEEN));
    // Of another length only if it is no JSON.
    if joined.len() == before.len() {
        written[start..].copy_from_slice(&joined);
    }
}

/// Where the string ends that begins at `start` with its quotation mark.
fn end_of_string(printed: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    loop {
        match printed.get(at) {
            None => return printed.len(),
            Some(b'"') => return at + 1,
            Some(b'\\') => at += 2,
            Some(_) => at += 1,
        }
    }
}

fn end_of_number(printed: &[u8], start: usize) -> usize {
    let digits = printed[start..]
        .iter()
        .take_while(|byte| matches!(byte, b'-' | b'.' | b'0'..=b'9'));
    start + digits.count()
}

/// How much of a number is left without the zeros at the end of its fraction.
fn kept_digits(number: &[u8]) -> usize {
    if !number.contains(&b'.') {
        return number.len();
    }
    let zeros = number.iter().rev().take_while(|byte| **byte == b'0');
    let kept = number.len() - zeros.count();
    kept - usize::from(number[kept - 1] == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_numbers_get_one_form() {
        for (printed, canonical) in [
            ("1.0", "1"),
            ("1.00", "1"),
            ("-1.50", "-1.5"),
            ("0.000", "0"),
            ("0.010", "0.01"),
            ("100.0", "100"),
            ("[1.0, 2.50, 3]", "[1, 2.5, 3]"),
            (
                r#"{"a": 1.10, "b": {"c": 0.0}}"#,
                r#"{"a": 1.1, "b": {"c": 0}}"#,
            ),
        ] {
            let made = with_canonical_numbers(printed.as_bytes());
            assert_eq!(
                made.as_deref().map(Vec::as_slice),
                Some(canonical.as_bytes())
            );
        }
    }

    #[test]
    fn members_are_ordered_as_in_utf_8() {
        for (printed, ordered) in [
            (r#"{"é": 1, "zz": 2}"#, r#"{"zz": 2, "é": 1}"#),
            (
                r#"{"a": 1, "é": [{"ü": 1, "bb": {}}], "zz": "},{"}"#,
                r#"{"a": 1, "zz": "},{", "é": [{"bb": {}, "ü": 1}]}"#,
            ),
            (
                r#"[{"é": 1, "\"x": 2, "zz": 3}, "é"]"#,
                r#"[{"\"x": 2, "zz": 3, "é": 1}, "é"]"#,
            ),
            (
                r#"{"\u0001": 1, "é": 2, "b": 3}"#,
                r#"{"\u0001": 1, "b": 3, "é": 2}"#,
            ),
        ] {
            assert_eq!(*in_utf8_order(printed.as_bytes()), *ordered.as_bytes());
            assert_eq!(*in_utf8_order(ordered.as_bytes()), *ordered.as_bytes());
        }
        for printed in [
            "",
            "null",
            "{}",
            "[]",
            r#"{"a": {}, "bb": []}"#,
            r#""a: {\"""#,
            "}",
            "\"a\":",
            "{\"a",
        ] {
            assert_eq!(*in_utf8_order(printed.as_bytes()), *printed.as_bytes());
        }
    }

    #[test]
    fn what_is_in_that_form_is_left_alone() {
        for printed in [
            "",
            "null",
            "true",
            "100",
            "-20",
            "0.5",
            "10.01",
            "{}",
            "[]",
            r#""1.0""#,
            r#"{"1.0": "2.50"}"#,
            r#""\"1.0""#,
            r#""\\""#,
            r#"{"a\"": "\\", "b": 100}"#,
            // Not JSON: nothing is read past its end.
            "\"1.0",
            "\"1.0\\",
            "-",
            ".",
        ] {
            let made = with_canonical_numbers(printed.as_bytes());
            assert!(made.is_none(), "{printed}");
        }
    }

    #[test]
    fn a_number_after_a_string_with_escapes_is_found() {
        let made = with_canonical_numbers(br#"{"\\": 1.0, "\"": 2.0, "x": "1.0"}"#);
        assert_eq!(
            made.as_deref().map(Vec::as_slice),
            Some(br#"{"\\": 1, "\"": 2, "x": "1.0"}"#.as_slice())
        );
    }

    proptest::proptest! {
        #[test]
        fn one_form_is_reached_at_once(
            items in proptest::collection::vec(
                "\"(\\\\[\"\\\\]|[a0.1])*\"|-?(0|[1-9][0-9]{0,2})(\\.[0-9]{1,4})?|null",
                0..6,
            ),
        ) {
            let printed = format!("[{}]", items.join(", "));
            if let Some(once) = with_canonical_numbers(printed.as_bytes()) {
                proptest::prop_assert!(once.len() < printed.len());
                proptest::prop_assert!(with_canonical_numbers(&once).is_none());
                let (a, b): (serde_json::Value, serde_json::Value) = (
                    serde_json::from_str(&printed).expect("JSON"),
                    serde_json::from_slice(&once).expect("still JSON"),
                );
                let numbers = |value: serde_json::Value| -> Vec<Option<f64>> {
                    value.as_array().expect("a list").iter().map(serde_json::Value::as_f64).collect()
                };
                proptest::prop_assert_eq!(numbers(a), numbers(b));
            }
        }

        #[test]
        fn what_is_no_json_does_no_harm(printed in "[-.0-9{}:\"\\\\ab, ]{0,40}") {
            let _ = with_canonical_numbers(printed.as_bytes());
            let _ = in_utf8_order(printed.as_bytes());
        }
    }
}

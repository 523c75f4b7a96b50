//! The cookie that names the user, as backends read it. Pure.

use super::hex;
use crate::http::head::RequestHead;
use std::borrow::Cow;

/// What the cookie says, where it says one thing.
///
/// Browsers send two cookies of one name where paths or domains overlap, and which of two different values counts is the
/// backend's choice: then nobody is named. Empty ones say nothing.
pub(super) fn only<'b>(head: &RequestHead, buffer: &'b [u8], name: &str) -> Option<Cow<'b, [u8]>> {
    let mut said = values(head, buffer, name).map(meaning).filter(|value| !value.is_empty());
    let first = said.next()?;
    said.all(|other| other == first).then_some(first)
}

/// The values of a cookie (RFC 6265 section 4.2.1). White space around name and value does not count, as browsers and
/// backends have it.
fn values<'b>(head: &RequestHead, buffer: &'b [u8], name: &str) -> impl Iterator<Item = &'b [u8]> {
    let pairs = head.values(buffer, "cookie").flat_map(|line| line.split(|&b| b == b';'));
    pairs.filter_map(move |pair| {
        let at = memchr::memchr(b'=', pair)?;
        (pair[..at].trim_ascii() == name.as_bytes()).then(|| pair[at + 1..].trim_ascii())
    })
}

/// The value that backends agree on, more or less: quotes around it do not count, nor how its characters are escaped.
fn meaning(value: &[u8]) -> Cow<'_, [u8]> {
    let value = match value {
        [b'"', inside @ .., b'"'] => match memchr::memchr(b'\\', inside) {
            Some(_) => Cow::Owned(unescaped(inside)),
            None => Cow::Borrowed(inside),
        },
        plain => Cow::Borrowed(plain),
    };
    match memchr::memchr(b'%', &value) {
        Some(_) => Cow::Owned(percent_decoded(&value)),
        None => value,
    }
}

/// Without the backslashes of a quoted string: `\"`, and `\303` as some frameworks write a byte.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, behind)) = rest.split_first() {
        let (byte, used) = match (byte, behind) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), 3)
            }
            (b'\\', [escaped, ..]) => (*escaped, 1),
            (byte, _) => (byte, 0),
        };
        out.push(byte);
        rest = &behind[used..];
    }
    out
}

fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, behind)) = rest.split_first() {
        let escaped = match (byte, behind) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        out.push(escaped.map_or(byte, |(high, low)| high << 4 | low));
        rest = &behind[if escaped.is_some() { 2 } else { 0 }..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_to_write_a_value_mean_the_same() {
        for written in
            ["s:a b\"", "s%3Aa b\"", "\"s:a b\\\"\"", "\"s\\072a b\\042\"", "s%3aa%20b%22", "\"s%3a\\a%20b%22\""]
        {
            assert_eq!(meaning(written.as_bytes()), b"s:a b\"".as_slice(), "{written}");
        }
    }

    #[test]
    fn what_is_no_escape_stays() {
        for written in ["", "\"", "a\\142", "%", "%2", "%zz", "a%", "%%"] {
            assert_eq!(meaning(written.as_bytes()), written.as_bytes(), "{written}");
        }
        assert_eq!(meaning(b"%2541"), b"%41".as_slice(), "decoded once");
        assert_eq!(meaning(b"\"\""), b"".as_slice());
        assert_eq!(meaning(b"\"\\477\\\""), b"477\\".as_slice());
    }
}

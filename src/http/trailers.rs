//! Trailers: the fields behind a chunked body, and which of them may go on (RFC 9110 section 6.5).
//!
//! A recipient may merge trailers into the head, so one that frames, routes, authenticates or says what we say ourselves
//! would be a way around every check of that head: such are dropped. Pure.

use super::field::FieldName;

/// Appends the lines of `section`, which is whole lines as the decoder took them, that may go on. `is_private` names
/// further fields that stay here: those that tell who the caller is.
pub fn append(out: &mut Vec<u8>, section: &[u8], is_private: impl Fn(&[u8]) -> bool) {
    for line in section.split_inclusive(|&b| b == b'\n') {
        let name = line.split(|&b| b == b':').next().unwrap_or_default();
        if !is_forbidden(name) && !is_private(name) {
            out.extend_from_slice(line);
        }
    }
}

/// Names that belong to a head only (RFC 9110 section 6.5.1); so do all that this gateway knows, or that a backend could
/// take for one of them, and all conditions (`If` and `If-*`).
const HEAD_ONLY: [&str; 27] = [
    "accept-encoding",
    "age",
    "authentication-info",
    "authorization",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "expires",
    "location",
    "origin",
    "pragma",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "set-cookie",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-api-key",
];

fn is_forbidden(name: &[u8]) -> bool {
    let is_condition = name.eq_ignore_ascii_case(b"if")
        || (name.len() > 3 && name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"if-")));
    FieldName::of(name) != FieldName::Other
        || is_condition
        || HEAD_ONLY.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn appended(section: &str) -> String {
        let mut out = Vec::new();
        append(&mut out, section.as_bytes(), |name| name.eq_ignore_ascii_case(b"x-user"));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_belongs_to_the_head_is_dropped_and_the_rest_goes_on_as_it_is() {
        assert_eq!(appended("X-Sum: 1\r\nhost: evil\r\nServer-Timing:  a \r\n"), "X-Sum: 1\r\nServer-Timing:  a \r\n");
        for name in HEAD_ONLY.iter().chain(&["Transfer-Encoding", "CONTENT-LENGTH", "Host", "TE", "Trailer", "Upgrade"])
        {
            assert_eq!(appended(&format!("{name}: x\r\n")), "", "{name}");
        }
        for name in [
            "X-Forwarded-Port",
            "x-forwarded-for",
            "Forwarded",
            "X-Real-IP",
            "X-Request-Id",
            "RateLimit",
            "X-USER",
            "content_length",
            "if-none-match",
            "If",
            "A_b",
        ] {
            assert_eq!(appended(&format!("{name}: x\r\n")), "", "{name}");
        }
    }
}

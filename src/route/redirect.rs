//! Where a route sends its clients itself: an absolute URL or a path, with the host and the path that they asked for.
//!
//! Refuses what browsers would take for another host than the one that is written: a location never begins with `//` and
//! a host is never empty. Pure.

use super::host_without_port;
use super::rewrite::PathChange;
use crate::http::Refusal;
use crate::http::changes::Changes;
use thiserror::Error;

/// Bytes of a location as configured.
pub const LOCATION_MAX: usize = 1024;

/// The statuses that a redirect may have (RFC 9110 section 15.4).
pub const STATUSES: [u16; 5] = [301, 302, 303, 307, 308];

const NO_HOST: Refusal = Refusal::Bad("the Host field names no host, and the answer would lead there");

/// A redirect, prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// One of [`STATUSES`].
    pub status: u16,
    /// The fields that are set in the answer; nothing is removed from it.
    pub response: Changes,
    /// The location as written.
    to: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Host,
    Path,
}

/// Why a location cannot be.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadLocation {
    /// It is too long, or has characters that a URL has not.
    #[error("is too long, or has a character that must be percent-encoded")]
    Characters,
    /// It holds braces with something else in them.
    #[error("has braces around something else than host and path")]
    Braces,
    /// It is neither a URL with a host nor a path.
    #[error("is neither a URL with a host nor a path")]
    NoUrl,
    /// `/{path}`
    #[error("has a slash before {{path}}, which begins with one itself")]
    Slash,
}

impl Redirect {
    /// Reads a location, in which `{host}` and `{path}` stand for what was asked for.
    pub fn new(to: &str, status: u16, response: Changes) -> Result<Redirect, BadLocation> {
        let is_visible = |b: u8| b.is_ascii_graphic() && !b"\"<>\\^`|".contains(&b);
        if to.len() > LOCATION_MAX || !to.bytes().all(is_visible) {
            return Err(BadLocation::Characters);
        }
        let parts = parts(to)?;
        let after_scheme = to.strip_prefix("https://").or_else(|| to.strip_prefix("http://"));
        let leads_somewhere = match after_scheme {
            Some(rest) => {
                rest.starts_with("{host}") || rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
            }
            None => to.starts_with("{path}") || (to.starts_with('/') && !to.starts_with("//")),
        };
        match leads_somewhere {
            _ if to.contains("/{path}") => Err(BadLocation::Slash),
            true => Ok(Redirect { status, response, to: to.to_owned(), parts }),
            false => Err(BadLocation::NoUrl),
        }
    }

    /// The location as written.
    pub fn to(&self) -> &str {
        &self.to
    }

    /// Writes the location for a request: its Host value, and its target as `path` changes it. The host goes without its
    /// port, since another scheme has another port.
    pub fn location(&self, host: &[u8], target: &[u8], path: &PathChange, out: &mut Vec<u8>) -> Result<(), Refusal> {
        out.clear();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Host => match host_without_port(host) {
                    b"" => return Err(NO_HOST),
                    host => out.extend_from_slice(host),
                },
                Part::Path => {
                    let mut changed = Vec::new();
                    path.apply(target, &mut changed)?;
                    let is_path = changed.first() == Some(&b'/');
                    out.extend_from_slice(if is_path { &changed } else { b"/" });
                }
            }
        }
        Ok(())
    }
}

fn parts(to: &str) -> Result<Vec<Part>, BadLocation> {
    let mut parts = Vec::new();
    let mut rest = to;
    while let Some(at) = rest.find(['{', '}']) {
        let (text, tail) = rest.split_at(at);
        parts.push(Part::Text(text.to_owned()));
        let (part, after) = match (tail.strip_prefix("{host}"), tail.strip_prefix("{path}")) {
            (Some(after), _) => (Part::Host, after),
            (_, Some(after)) => (Part::Path, after),
            _ => return Err(BadLocation::Braces),
        };
        parts.push(part);
        rest = after;
    }
    parts.push(Part::Text(rest.to_owned()));
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(to: &str, host: &str, target: &str) -> Result<String, Refusal> {
        let mut out = b"old".to_vec();
        let redirect = Redirect::new(to, 308, Changes::default()).unwrap_or_else(|bad| panic!("{to}: {bad}"));
        redirect.location(host.as_bytes(), target.as_bytes(), &PathChange::default(), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn host_and_path_are_filled_in() {
        for (to, host, target, expected) in [
            ("https://{host}{path}", "a.test:8080", "/x/?a=b", "https://a.test/x/?a=b"),
            ("https://{host}:8443{path}", "[::1]:80", "/", "https://[::1]:8443/"),
            ("https://www.{host}/new", "a.test.", "/x", "https://www.a.test/new"),
            ("https://b.test{path}", "", "?q", "https://b.test/?q"),
            ("/new{path}", "", "/x?y", "/new/x?y"),
            ("{path}", "h", "//evil.test/x", "/evil.test/x"),
            ("{path}", "h", "/x/..//evil.test", "/evil.test"),
            ("https://a.test{path}", "h", "*", "https://a.test/"),
            ("https://a.test{path}", "h", "/@evil.test/%2F%5c?//", "https://a.test/@evil.test/%2F%5c?//"),
        ] {
            assert_eq!(location(to, host, target).as_deref(), Ok(expected), "{to} {host} {target}");
        }
        for host in ["", ":80", "."] {
            assert_eq!(location("https://{host}{path}", host, "/"), Err(NO_HOST), "{host:?}");
        }
    }

    #[test]
    fn the_path_is_the_changed_one() {
        let change = PathChange { strip: Some("/old".into()), add: Some("/new".into()), ..PathChange::default() };
        let redirect = Redirect::new("https://{host}{path}", 301, Changes::default()).unwrap();
        let mut out = Vec::new();
        assert_eq!(redirect.location(b"h", b"/old/x?y", &change, &mut out), Ok(()));
        assert_eq!(out, b"https://h/new/x?y");
        assert!(redirect.location(b"h", b"/old%2fx", &change, &mut out).is_err());
    }

    #[test]
    fn what_no_location_can_be() {
        for (to, bad) in [
            ("", BadLocation::NoUrl),
            ("a.test", BadLocation::NoUrl),
            ("//a.test", BadLocation::NoUrl),
            ("https://{path}", BadLocation::Slash),
            ("https:///x", BadLocation::NoUrl),
            ("javascript:x", BadLocation::NoUrl),
            ("{host}", BadLocation::NoUrl),
            ("/{path}", BadLocation::Slash),
            ("https://{host}/{path}", BadLocation::Slash),
            ("https://{host}/{query}", BadLocation::Braces),
            ("https://{host", BadLocation::Braces),
            ("https://a.test/}", BadLocation::Braces),
            ("https://a.test/\r\nX: y", BadLocation::Characters),
            ("https://a.test/ü", BadLocation::Characters),
            ("https://a.test\\", BadLocation::Characters),
        ] {
            assert_eq!(Redirect::new(to, 308, Changes::default()), Err(bad), "{to}");
        }
    }
}

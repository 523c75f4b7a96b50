//! The path as the backend gets it, where a route changes it: a prefix cut off, a pattern replaced, a prefix put before.
//!
//! Routes match the normal form of a path, and this works on what the client sent: dot segments resolved and empty ones
//! dropped as the normal form has them, all else byte for byte. What cannot be cut in the same way by all who read paths,
//! such as `/api%2Fx` after `/api`, is refused. Pure.

use crate::http::{Refusal, path};
use crate::identity::endpoint;
use regex::bytes::{Captures, Regex, RegexBuilder};

/// Bytes of a path that a rewrite may make.
pub const PATH_MAX: usize = 64 * 1024;

/// Bytes of a pattern, and of what it is replaced with.
pub const PATTERN_MAX: usize = 1024;

/// Bytes that a compiled pattern may take, and what it works with on a thread.
const COMPILED_MAX: usize = 1024 * 1024;

/// References in what a pattern is replaced with: they multiply what a client sends.
const REFERENCES_MAX: usize = 16;

const DIVIDED: Refusal = Refusal::Bad("the path has an encoded separator where a prefix is cut off: send it as /");
const ELSEWHERE: Refusal = Refusal::Bad("the path does not lie below the prefix that is cut off here");

/// What a route makes of paths, in this order. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathChange {
    /// The prefix that goes, in normal form, not `/`.
    pub strip: Option<String>,
    /// What is replaced in the rest.
    pub rewrite: Option<Rewrite>,
    /// The prefix that comes, without a slash at its end.
    pub add: Option<String>,
}

impl PathChange {
    /// Whether paths go on as they are, byte for byte.
    pub fn is_none(&self) -> bool {
        self.strip.is_none() && self.rewrite.is_none() && self.add.is_none()
    }

    /// Writes the changed target, with the query as it was sent. Begins with one slash, unless all of it is `*`.
    pub fn apply(&self, target: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        out.clear();
        if target == b"*" {
            out.push(b'*');
            return Ok(());
        }
        let (asked, query) = target.split_at(memchr::memchr(b'?', target).unwrap_or(target.len()));
        resolve(asked, out);
        // `/api` is `/v1` behind the change, and `/api/` is `/v1/`.
        let mut is_bare = false;
        if let Some(prefix) = &self.strip {
            let cut = below(out, prefix.as_bytes())?;
            out.drain(..cut);
            is_bare = out.is_empty();
        }
        if out.is_empty() {
            out.push(b'/');
        }
        if let Some(rewrite) = &self.rewrite {
            is_bare &= !rewrite.apply(out)?;
        }
        if let Some(prefix) = &self.add {
            if is_bare {
                out.clear();
            }
            out.splice(..0, prefix.bytes());
        }
        out.extend_from_slice(query);
        Ok(())
    }
}

/// Appends a path without empty and dot segments. A slash at its end stays.
fn resolve(path: &[u8], out: &mut Vec<u8>) {
    let mut ends_open = true;
    for segment in path.split(|&b| b == b'/') {
        let dots = path::dots(segment);
        ends_open = segment.is_empty() || dots > 0;
        if dots == 2 {
            out.truncate(out.iter().rposition(|&b| b == b'/').unwrap_or(0));
        } else if !ends_open {
            out.push(b'/');
            out.extend_from_slice(segment);
        }
    }
    if ends_open || out.is_empty() {
        out.push(b'/');
    }
}

/// Where a resolved path goes on below a prefix in normal form.
fn below(path: &[u8], prefix: &[u8]) -> Result<usize, Refusal> {
    let mut at = 0;
    let mut normal = Vec::new();
    for wanted in prefix.split(|&b| b == b'/').filter(|segment| !segment.is_empty()) {
        loop {
            if at == path.len() {
                return Err(ELSEWHERE);
            }
            let end = memchr::memchr(b'/', &path[at + 1..]).map_or(path.len(), |length| at + 1 + length);
            let segment = &path[at..end];
            if path::encoded_separator(segment).is_some() {
                return Err(DIVIDED);
            }
            at = end;
            endpoint(segment, &mut normal);
            match &normal[1..] {
                // Parameters alone: the normal form has no such segment.
                b"" => {}
                segment if segment == wanted => break,
                _ => return Err(ELSEWHERE),
            }
        }
    }
    Ok(at)
}

/// A pattern, and what stands for it afterwards.
#[derive(Clone, Debug)]
pub struct Rewrite {
    pattern: Regex,
    to: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Group(usize),
}

impl PartialEq for Rewrite {
    fn eq(&self, other: &Rewrite) -> bool {
        (self.pattern(), &self.to) == (other.pattern(), &other.to)
    }
}

impl Eq for Rewrite {}

/// Why a rewrite cannot be; said of its pattern or of what it is replaced with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadRewrite {
    /// The pattern.
    Pattern(String),
    /// The replacement.
    To(String),
}

impl Rewrite {
    /// Compiles a pattern. In `to`, `$1` to `$9` stand for its groups, `$0` for all that it matched, `$$` for `$`.
    pub fn new(pattern: &str, to: &str) -> Result<Rewrite, BadRewrite> {
        let bad = |problem: &str| Err(BadRewrite::Pattern(problem.into()));
        if pattern.len() > PATTERN_MAX || !pattern.is_ascii() {
            return bad("is too long or not ASCII");
        }
        let mut builder = RegexBuilder::new(pattern);
        let compiled = builder.unicode(false).size_limit(COMPILED_MAX).dfa_size_limit(COMPILED_MAX).build();
        let pattern = match compiled {
            Ok(pattern) => pattern,
            Err(regex::Error::CompiledTooBig(_)) => return bad("is too large once compiled"),
            Err(error) => {
                let text = error.to_string();
                let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
                return Err(BadRewrite::Pattern(format!("is no pattern: {reason}")));
            }
        };
        let parts = parts(to, pattern.captures_len()).map_err(|problem| BadRewrite::To(problem.into()))?;
        Ok(Rewrite { pattern, to: to.to_owned(), parts })
    }

    /// The pattern as written.
    pub fn pattern(&self) -> &str {
        self.pattern.as_str()
    }

    /// The replacement as written.
    pub fn to(&self) -> &str {
        &self.to
    }

    /// Replaces what the pattern matches first; whether it does. The pattern sees letters, digits and `-._~` decoded,
    /// which mean the same either way (RFC 3986 section 6.2.2.2). What comes out must be one path to all again, and lead
    /// nowhere up: what went in had no dot segments any more.
    fn apply(&self, out: &mut Vec<u8>) -> Result<bool, Refusal> {
        let decoded = decode_unreserved(out);
        let Some(found) = self.pattern.captures(&decoded) else { return Ok(false) };
        let Some(whole) = found.get(0) else { return Ok(false) };
        let mut path = decoded[..whole.start()].to_vec();
        self.expand(&found, &mut path);
        path.extend_from_slice(&decoded[whole.end()..]);
        if path.len() > PATH_MAX {
            return Err(Refusal::TargetTooLong);
        }
        if path.first() != Some(&b'/') {
            path.insert(0, b'/');
        }
        path::check(&path)?;
        if path.split(|&b| b == b'/').any(|segment| path::dots(segment) > 0) {
            return Err(Refusal::Bad("a rewrite of this path would have dot segments"));
        }
        out.clear();
        resolve(&path, out);
        Ok(true)
    }

    fn expand(&self, found: &Captures<'_>, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Group(number) => out.extend_from_slice(found.get(*number).map_or(b"", |group| group.as_bytes())),
            }
        }
    }
}

fn parts(to: &str, groups: usize) -> Result<Vec<Part>, &'static str> {
    if to.len() > PATTERN_MAX {
        return Err("is too long");
    }
    if to.bytes().any(|b| !b.is_ascii_graphic() || b"?#\\".contains(&b)) {
        return Err("has a character that is not part of a path");
    }
    let mut parts = Vec::new();
    let mut rest = to;
    while let Some(at) = rest.find('$') {
        let (text, reference) = rest.split_at(at);
        parts.push(Part::Text(text.to_owned()));
        parts.push(match reference.as_bytes().get(1) {
            Some(b'$') => Part::Text("$".into()),
            Some(digit @ b'0'..=b'9') => Part::Group(usize::from(digit - b'0')),
            _ => return Err("has a \"$\" that refers to nothing"),
        });
        rest = &reference[2..];
    }
    parts.push(Part::Text(rest.to_owned()));
    let numbers = parts.iter().filter_map(|part| if let Part::Group(number) = part { Some(*number) } else { None });
    if numbers.clone().any(|number| number >= groups) {
        return Err("refers to a group that the pattern does not have");
    }
    match numbers.count() {
        0..=REFERENCES_MAX => Ok(parts),
        _ => Err("has too many references"),
    }
}

/// A path with its unreserved characters decoded. A sign that begins no escape is encoded: it must not begin one with what
/// comes to stand behind it.
fn decode_unreserved(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = memchr::memchr(b'%', rest) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        let digit = |at: usize| rest.get(at).and_then(|&digit| char::from(digit).to_digit(16));
        let byte = digit(1).zip(digit(2)).and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
        match byte.filter(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte)) {
            Some(byte) => {
                out.push(byte);
                rest = &rest[3..];
            }
            None if byte.is_some() => {
                out.extend_from_slice(&rest[..3]);
                rest = &rest[3..];
            }
            None => {
                out.extend_from_slice(b"%25");
                rest = &rest[1..];
            }
        }
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests;

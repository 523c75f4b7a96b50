//! HTTP/1.1 messages: what we accept, what we refuse, and how a message is passed on.
//!
//! Framing follows RFC 9112, semantics RFC 9110. The rule of the house: whatever two parsers could read in two ways is
//! refused before a backend sees a byte. Heads are parsed by httparse and recorded as ranges into the connection's
//! buffer; bodies run through small state machines that see slices. Pure.

pub mod body;
pub mod changes;
pub mod field;
pub mod forward;
pub mod head;
pub(crate) mod path;
pub mod trailers;

use thiserror::Error;

/// The most fields that [`Bounds::fields_max`] may allow: the parser's table lives on the stack.
pub const FIELDS_MAX: usize = 256;

/// How large a message may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of start line and fields together, the empty line included.
    pub head_max: usize,
    /// Fields in a head, at most [`FIELDS_MAX`].
    pub fields_max: usize,
    /// Bytes of a request body after decoding; `None` = unlimited.
    pub body_max: Option<u64>,
}

/// How large a backend's response head may be.
pub const RESPONSE_BOUNDS: Bounds = Bounds { head_max: 64 * 1024, fields_max: FIELDS_MAX, body_max: None };

/// Why a request is not served: the client is to blame for all of these.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// 400: malformed or ambiguous.
    #[error("{0}")]
    Bad(&'static str),
    /// 413: the body passes [`Bounds::body_max`].
    #[error("the body is larger than allowed")]
    BodyTooLarge,
    /// 414: the request line alone passes [`Bounds::head_max`].
    #[error("the request target is too long")]
    TargetTooLong,
    /// 417: an `Expect` that is not `100-continue`.
    #[error("only the expectation 100-continue is supported")]
    Expectation,
    /// 431: the head passes [`Bounds::head_max`] or [`Bounds::fields_max`].
    #[error("the request head is too large")]
    HeadTooLarge,
    /// 501: a method or transfer coding that this gateway does not implement.
    #[error("{0}")]
    NotImplemented(&'static str),
    /// 505: not HTTP/1.x.
    #[error("only HTTP/1.0 and HTTP/1.1 are served here")]
    Version,
}

/// Why a backend's response cannot be passed on (502).
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct BadResponse(pub &'static str);

/// Where a body ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    #[default]
    Empty,
    /// After this many bytes.
    Length(u64),
    /// With the last chunk and its trailers.
    Chunked,
    /// When the connection closes; responses only.
    UntilClose,
}

/// The version in a start line; the others are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    #[default]
    Http11,
}

/// A method as far as this gateway treats it differently (RFC 9110 section 9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Safe.
    #[default]
    Get,
    /// As GET, and its response never has a body.
    Head,
    /// Neither safe nor idempotent.
    Post,
    /// Idempotent.
    Put,
    /// Neither safe nor idempotent (RFC 5789).
    Patch,
    /// Idempotent.
    Delete,
    /// Safe; the only one that may ask for `*`.
    Options,
    /// Safe; never has a body.
    Trace,
    /// Anything else: not known to be idempotent.
    Other,
}

impl Method {
    /// Whether sending the request twice has the effect of sending it once (RFC 9110 section 9.2.2).
    pub fn is_idempotent(self) -> bool {
        !matches!(self, Method::Post | Method::Patch | Method::Other)
    }
}

/// The eight hexadecimal digits of a number, the lowest first.
pub(crate) fn hex_digits(number: u32) -> [u8; 8] {
    // One digit to a byte, all eight at once.
    let mut digits = u64::from(number);
    for (shift, mask) in [(16, 0x0000_ffff_0000_ffff), (8, 0x00ff_00ff_00ff_00ff), (4, 0x0f0f_0f0f_0f0f_0f0f)] {
        digits = (digits | digits << shift) & mask;
    }
    let each = |byte: u8| u64::from_ne_bytes([byte; 8]);
    let letters = (digits + each(6)) >> 4 & each(1);
    (digits + each(b'0') + letters * u64::from(b'a' - b'9' - 1)).to_le_bytes()
}

/// A range of bytes in the buffer that a head was parsed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// A span from byte positions; a head is far smaller than 4 GiB, so positions fit.
    pub fn new(start: usize, end: usize) -> Span {
        Span { start: start as u32, end: end as u32 }
    }

    /// Where `part`, a slice of `whole`, lies in it.
    fn within(whole: &[u8], part: &[u8]) -> Span {
        let start = part.as_ptr() as usize - whole.as_ptr() as usize;
        Span::new(start, start + part.len())
    }

    /// The bytes.
    pub fn of(self, buffer: &[u8]) -> &[u8] {
        &buffer[self.start as usize..self.end as usize]
    }

    /// How many bytes there are.
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    /// First byte's position.
    pub fn start(self) -> usize {
        self.start as usize
    }

    /// Position after the last byte.
    pub fn end(self) -> usize {
        self.end as usize
    }

    /// Whether there are no bytes.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_formatter_backwards() {
        for number in [0, 9, 0xa, 0x0123_4567, 0x89ab_cdef, u32::MAX] {
            let text: String = format!("{number:08x}").chars().rev().collect();
            assert_eq!(hex_digits(number), text.as_bytes());
        }
    }
}

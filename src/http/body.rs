//! Where a body ends: length, chunked and until-close as one state machine over slices.
//!
//! A body may arrive in pieces cut anywhere; the decoder says which bytes of a piece are data, how many it has used, and
//! when the message is over. Chunked framing (RFC 9112 section 7.1) is read strictly: hexadecimal digits only, CRLF only,
//! bounded extensions and trailers. Extensions are dropped, trailers kept until the message is over. Pure.

use super::{BadResponse, Framing, Refusal};
use std::ops::Range;
use thiserror::Error;

/// Bytes of one chunk's extensions, at most.
pub const EXTENSION_MAX: usize = 1024;

/// Bytes of all trailers of a message, at most.
pub const TRAILERS_MAX: usize = 8 * 1024;

/// Digits of a chunk's size: 15 keep it below 2^60, so no sum overflows.
const SIZE_DIGITS_MAX: u8 = 15;

/// What is wrong with a body's framing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct BadBody(pub &'static str);

impl From<BadBody> for Refusal {
    fn from(bad: BadBody) -> Refusal {
        Refusal::Bad(bad.0)
    }
}

impl From<BadBody> for BadResponse {
    fn from(bad: BadBody) -> BadResponse {
        BadResponse(bad.0)
    }
}

/// What a step found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The bytes of the input that are data; may be empty.
    pub data: Range<usize>,
    /// Bytes of the input used, framing included.
    pub used: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    Size { digits: u8, size: u64 },
    Padding { size: u64, bytes: usize },
    Extension { size: u64, bytes: usize, text: Text },
    SizeLf { size: u64 },
    Data(u64),
    DataCr,
    DataLf,
    TrailerStart { bytes: usize },
    TrailerName { bytes: usize },
    TrailerValue { bytes: usize },
    TrailerLf { bytes: usize },
    EndLf,
    UntilClose,
    Done,
}

impl State {
    /// Whether the byte that led here is one of the trailers.
    fn is_in_trailers(self) -> bool {
        match self {
            State::TrailerStart { bytes } => bytes > 0,
            State::TrailerName { .. } | State::TrailerValue { .. } | State::TrailerLf { .. } => true,
            _ => false,
        }
    }
}

/// Where in a chunk extension: one that leaves a quoted string open at the end of its line could end elsewhere for
/// another reader (RFC 9110 section 5.6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Plain,
    Quoted,
    /// Behind a backslash in a quoted string.
    Escaped,
}

impl Text {
    fn after(self, byte: u8) -> Text {
        match (self, byte) {
            (Text::Plain, b'"') => Text::Quoted,
            (Text::Quoted, b'"') => Text::Plain,
            (Text::Quoted, b'\\') => Text::Escaped,
            (Text::Escaped, _) => Text::Quoted,
            (text, _) => text,
        }
    }
}

/// Follows one body from its first byte to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoder {
    state: State,
    trailers: Vec<u8>,
    takes_padding: bool,
}

impl Decoder {
    /// A decoder at the first byte of a body.
    pub fn new(framing: Framing) -> Decoder {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(bytes) => State::Length(bytes),
            Framing::Chunked => State::Size { digits: 0, size: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Decoder { state, trailers: Vec::new(), takes_padding: false }
    }

    /// The same for a backend's answer: white space behind a chunk's size is taken, which some servers pad it with (RFC 9112
    /// section 7.1.1 allows it before extensions). No reader could end the chunk elsewhere, since its size is written anew.
    pub fn of_response(framing: Framing) -> Decoder {
        Decoder { takes_padding: true, ..Decoder::new(framing) }
    }

    /// The lines of the trailers so far, each `name: value` and CRLF: [`TRAILERS_MAX`] bytes at most.
    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the end of the stream is this body's proper end.
    pub fn ends_at_close(&self) -> bool {
        self.state == State::UntilClose
    }

    /// How many bytes are all data from here on: none where framing comes between them.
    pub fn data_left(&self) -> u64 {
        match self.state {
            State::Length(left) => left,
            State::UntilClose => u64::MAX,
            _ => 0,
        }
    }

    /// Takes that many bytes as data, where they all are: so they need not be looked at. Else nothing changes.
    pub fn take_data(&mut self, bytes: usize) -> bool {
        match self.state {
            State::UntilClose => true,
            State::Length(left) if bytes as u64 == left => {
                self.state = State::Done;
                true
            }
            State::Length(left) if (bytes as u64) < left => {
                self.state = State::Length(left - bytes as u64);
                true
            }
            _ => false,
        }
    }

    /// Reads on in `input`: up to the end of one run of data, of the body, or of the input.
    ///
    /// Call again with the rest until all is used or the body [is done](Decoder::is_done); what follows the body stays
    /// unused.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, BadBody> {
        let mut at = 0;
        while at < input.len() {
            let rest = input.len() - at;
            match self.state {
                State::Length(left) => {
                    let take = rest.min(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - take as u64;
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    return Ok(run(at, take));
                }
                State::UntilClose => return Ok(run(at, rest)),
                State::Data(left) => {
                    let take = rest.min(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - take as u64;
                    self.state = if left == 0 { State::DataCr } else { State::Data(left) };
                    return Ok(run(at, take));
                }
                State::Done => break,
                _ => {
                    self.state = match self.state {
                        State::Size { digits: 1.., size } if self.takes_padding && is_blank(input[at]) => {
                            State::Padding { size, bytes: 1 }
                        }
                        state => framing_byte(state, input[at])?,
                    };
                    if self.state.is_in_trailers() {
                        self.trailers.push(input[at]);
                    }
                    at += 1;
                }
            }
        }
        Ok(run(at, 0))
    }
}

fn run(at: usize, length: usize) -> Step {
    Step { data: at..at + length, used: at + length }
}

/// One byte of chunked framing.
fn framing_byte(state: State, byte: u8) -> Result<State, BadBody> {
    Ok(match (state, byte) {
        (State::Size { digits, size }, b) if b.is_ascii_hexdigit() => {
            if digits == SIZE_DIGITS_MAX {
                return Err(BadBody("chunk size too large"));
            }
            State::Size { digits: digits + 1, size: size << 4 | u64::from(hex(b)) }
        }
        (State::Size { digits: 1.., size }, b'\r') => State::SizeLf { size },
        (State::Size { digits: 1.., size }, b';') => State::Extension { size, bytes: 1, text: Text::Plain },
        (State::Size { .. }, _) => return Err(BadBody("malformed chunk size")),
        (State::Padding { size, .. }, b'\r') => State::SizeLf { size },
        (State::Padding { bytes: EXTENSION_MAX, .. }, _) => return Err(BadBody("chunk extension too long")),
        (State::Padding { size, bytes }, b';') => State::Extension { size, bytes: bytes + 1, text: Text::Plain },
        (State::Padding { size, bytes }, b) if is_blank(b) => State::Padding { size, bytes: bytes + 1 },
        (State::Padding { .. }, _) => return Err(BadBody("malformed chunk size")),
        (State::Extension { size, text: Text::Plain, .. }, b'\r') => State::SizeLf { size },
        (State::Extension { size, bytes, text }, b) if is_field_byte(b) => {
            if bytes == EXTENSION_MAX {
                return Err(BadBody("chunk extension too long"));
            }
            State::Extension { size, bytes: bytes + 1, text: text.after(b) }
        }
        (State::Extension { .. }, _) => return Err(BadBody("malformed chunk extension")),
        (State::SizeLf { size: 0 }, b'\n') => State::TrailerStart { bytes: 0 },
        (State::SizeLf { size }, b'\n') => State::Data(size),
        (State::SizeLf { .. }, _) => return Err(BadBody("a chunk size must end with CRLF")),
        (State::DataCr, b'\r') => State::DataLf,
        (State::DataLf, b'\n') => State::Size { digits: 0, size: 0 },
        (State::DataCr | State::DataLf, _) => return Err(BadBody("chunk data must end with CRLF")),
        (State::EndLf, b'\n') => State::Done,
        (State::EndLf, _) => return Err(BadBody("the last chunk must end with CRLF")),
        (state, b) => return trailer_byte(state, b),
    })
}

fn trailer_byte(state: State, byte: u8) -> Result<State, BadBody> {
    let bytes = match state {
        State::TrailerStart { bytes }
        | State::TrailerName { bytes }
        | State::TrailerValue { bytes }
        | State::TrailerLf { bytes } => bytes + 1,
        _ => return Err(BadBody("malformed chunked body")),
    };
    if bytes > TRAILERS_MAX {
        return Err(BadBody("trailers too long"));
    }
    Ok(match (state, byte) {
        (State::TrailerStart { .. }, b'\r') => State::EndLf,
        (State::TrailerStart { .. } | State::TrailerName { .. }, b) if is_token_byte(b) => State::TrailerName { bytes },
        (State::TrailerName { .. }, b':') => State::TrailerValue { bytes },
        (State::TrailerValue { .. }, b'\r') => State::TrailerLf { bytes },
        (State::TrailerValue { .. }, b) if is_field_byte(b) => State::TrailerValue { bytes },
        (State::TrailerLf { .. }, b'\n') => State::TrailerStart { bytes },
        _ => return Err(BadBody("malformed trailer")),
    })
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// A byte that may stand in a field value: VCHAR, obs-text, space or tab (RFC 9110 section 5.5).
pub(super) fn is_field_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// A byte of a token (RFC 9110 section 5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `input` cut into pieces at `cuts`; gives the data and the bytes left over.
    fn decode(framing: Framing, pieces: &[&[u8]]) -> Result<(Vec<u8>, bool, usize), BadBody> {
        let mut decoder = Decoder::new(framing);
        let mut data = Vec::new();
        let mut left = 0;
        for piece in pieces {
            let mut at = 0;
            while at < piece.len() && !decoder.is_done() {
                let step = decoder.step(&piece[at..])?;
                data.extend_from_slice(&piece[at..][step.data]);
                at += step.used;
            }
            left += piece.len() - at;
        }
        Ok((data, decoder.is_done(), left))
    }

    const GOOD: &[u8] = b"5;a=\"b \\\"c\"\r\nhello\r\n00A\r\n0123456789\r\n0\r\nX-Sum: 1\r\nEmpty:\r\n\r\nnext";

    #[test]
    fn chunked_gives_the_same_at_every_split() {
        let whole = decode(Framing::Chunked, &[GOOD]).unwrap();
        assert_eq!(whole, (b"hello0123456789".to_vec(), true, 4));
        for a in 0..GOOD.len() {
            for b in a..GOOD.len() {
                let pieces = [&GOOD[..a], &GOOD[a..b], &GOOD[b..]];
                assert_eq!(decode(Framing::Chunked, &pieces).unwrap(), whole, "cut at {a} and {b}");
            }
        }
    }

    #[test]
    fn trailers_are_kept_as_they_came() {
        for cut in 0..GOOD.len() {
            let mut decoder = Decoder::new(Framing::Chunked);
            for mut piece in [&GOOD[..cut], &GOOD[cut..]] {
                while !piece.is_empty() && !decoder.is_done() {
                    piece = &piece[decoder.step(piece).unwrap().used..];
                }
            }
            assert_eq!(decoder.trailers(), b"X-Sum: 1\r\nEmpty:\r\n", "cut at {cut}");
        }
    }

    #[test]
    fn every_shorter_prefix_is_unfinished() {
        for end in 0..GOOD.len() - 4 {
            assert!(!decode(Framing::Chunked, &[&GOOD[..end]]).unwrap().1, "{end}");
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for bad in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x5\r\n",
            " 5\r\n",
            "5 \r\n",
            "5\n",
            "5\rX",
            "5\r\nhelloX",
            "5\r\nhello\n",
            "5\r\nhello\rX",
            "1000000000000000\r\n",
            "ffffffffffffffffff\r\n",
            "5;\n",
            "5;a\x00\r\n",
            "5;a\rb",
            "5;a=\"\r\n",
            "5;a=\"b\\\"\r\n",
            "5;\"a\"\"\r\n",
            "0\r\n\n",
            "0\r\n\rX",
            "0\r\nbad trailer: 1\r\n",
            "0\r\n: 1\r\n",
            "0\r\n folded\r\n",
            "0\r\na: b\n",
            "0\r\na: \x01\r\n",
            "0\r\na\r\n",
        ] {
            assert!(decode(Framing::Chunked, &[bad.as_bytes()]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_of_answers_a_size_may_be_padded() {
        let decode = |text: &str| {
            let mut decoder = Decoder::of_response(Framing::Chunked);
            // Byte by byte.
            text.as_bytes().iter().try_for_each(|byte| decoder.step(&[*byte]).map(drop)).map(|()| decoder.is_done())
        };
        for padded in ["5 \r\nhello\r\n0\t \r\n\r\n", "5 ;a=b\r\nhello\r\n0 ; b\r\n\r\n"] {
            assert_eq!(decode(padded), Ok(true), "{padded:?}");
        }
        let long = format!("5{}\r\n", " ".repeat(EXTENSION_MAX + 1));
        for bad in [" 5\r\n", "5 5\r\n", "5 \n", "5 \rX", "5\r\nhello \r\n", &long] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let long = format!("5;{}\r\n", "x".repeat(EXTENSION_MAX));
        assert!(decode(Framing::Chunked, &[long.as_bytes()]).is_err());
        let many = format!("0\r\n{}", "a: b\r\n".repeat(TRAILERS_MAX / 6 + 1));
        assert!(decode(Framing::Chunked, &[many.as_bytes()]).is_err());
    }

    #[test]
    fn data_that_need_not_be_looked_at() {
        let mut known = Decoder::new(Framing::Length(5));
        assert!(known.take_data(3) && !known.is_done() && !known.take_data(3));
        assert!(known.take_data(2) && known.is_done() && !known.take_data(1));
        assert!(Decoder::new(Framing::UntilClose).take_data(9));
        assert!(!Decoder::new(Framing::Chunked).take_data(1));
    }

    #[test]
    fn lengths_and_closes() {
        assert_eq!(decode(Framing::Length(3), &[b"ab", b"cde"]).unwrap(), (b"abc".to_vec(), true, 2));
        assert_eq!(decode(Framing::Length(3), &[b"ab"]).unwrap(), (b"ab".to_vec(), false, 0));
        assert_eq!(decode(Framing::Length(0), &[b"x"]).unwrap(), (vec![], true, 1));
        assert_eq!(decode(Framing::UntilClose, &[b"ab", b"c"]).unwrap(), (b"abc".to_vec(), false, 0));
    }
}

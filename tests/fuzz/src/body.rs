//! Chunked bodies: the decoder and a second reading of RFC 9112 section 7.1 say the same, wherever the bytes are cut.

use super::{dice, shown};
use rateguard::http::Framing;
use rateguard::http::body::{Decoder, EXTENSION_MAX, TRAILERS_MAX};
use rateguard::http::forward::{LAST_CHUNK, chunk};
use rateguard::http::trailers;
use std::fmt;

/// House rule: digits of a chunk's size, leading zeros included.
const SIZE_DIGITS_MAX: usize = 15;

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Before this byte.
    At(usize),
    /// Later.
    Later,
    /// Nowhere: its framing is broken.
    Refused,
}

/// The data of a body, up to its end or to where it is broken.
#[derive(Clone, PartialEq, Eq)]
pub struct Body {
    pub data: Vec<u8>,
    /// The lines of the trailers, where the body has ended.
    pub trailers: Vec<u8>,
    pub end: End,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} and {}, ends {:?}", shown(&self.data), shown(&self.trailers), self.end)
    }
}

/// Trailers that stay behind (RFC 9110 section 6.5.1): those that frame, route, authenticate, or that a head alone may
/// have. A name that ends with `-` stands for all that begin with it. House rule: so do all with `_`, which some take for `-`.
const HEAD_ONLY: [&str; 48] = [
    "accept-encoding",
    "age",
    "authentication-info",
    "authorization",
    "cache-control",
    "connection",
    "content-disposition",
    "content-encoding",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expect",
    "expires",
    "forwarded",
    "host",
    "http2-settings",
    "if",
    "if-",
    "keep-alive",
    "location",
    "max-forwards",
    "origin",
    "pragma",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "ratelimit",
    "ratelimit-policy",
    "referer",
    "retry-after",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-api-key",
    "x-forwarded-",
    "x-real-ip",
    "x-request-id",
];

/// The decoder reads what the reference reads, at any cut; and what it has read, framed anew, is the same data again.
pub fn chunked_body(bytes: &[u8]) {
    body_of(bytes, Sender::Client);
    body_of(bytes, Sender::Backend);
}

/// Who sends a body. House rule: white space behind a chunk's size is taken from backends alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    Client,
    Backend,
}

impl Sender {
    fn decoder(self) -> Decoder {
        match self {
            Sender::Client => Decoder::new(Framing::Chunked),
            Sender::Backend => Decoder::of_response(Framing::Chunked),
        }
    }
}

fn body_of(bytes: &[u8], sender: Sender) {
    let decode = |cuts: &[usize]| decode_by(sender.decoder(), bytes, cuts);
    let reference = |bytes: &[u8]| reference_of(bytes, sender);
    let wanted = reference(bytes);
    let whole = decode(&[]);
    assert_eq!(whole, wanted, "{sender:?}: {}", shown(bytes));
    let every: Vec<usize> = (0..=bytes.len()).collect();
    assert_eq!(decode(&every), wanted, "{sender:?}, byte by byte: {}", shown(bytes));
    let mut dice = dice(bytes);
    for _ in 0..4 {
        let cuts = cuts(bytes.len(), &mut dice);
        assert_eq!(decode(&cuts), wanted, "{sender:?}, cut at {cuts:?}: {}", shown(bytes));
    }
    if let End::At(end) = wanted.end {
        let shorter = dice.usize(..end);
        assert_eq!(reference(&bytes[..shorter]).end, End::Later, "to {shorter}: {}", shown(bytes));
    }
    let again = framed_anew_by(sender.decoder(), bytes, &cuts(bytes.len(), &mut dice));
    let end = if matches!(wanted.end, End::At(_)) { End::At(again.len()) } else { End::Later };
    let expected = Body { data: wanted.data, trailers: may_go(&wanted.trailers), end };
    // In the narrower reading, whoever sent it.
    assert_eq!(reference_of(&again, Sender::Client), expected, "framed anew: {}", shown(&again));
    assert_eq!(decode_by(Sender::Client.decoder(), &again, &[]), expected, "framed anew: {}", shown(&again));
}

/// The lines of the trailers that may go on.
pub fn may_go(section: &[u8]) -> Vec<u8> {
    let goes = |line: &&[u8]| {
        let name = String::from_utf8_lossy(line.split(|&b| b == b':').next().unwrap_or_default()).to_ascii_lowercase();
        let is_head_only = |known: &&str| match known.ends_with('-') {
            true => name.starts_with(known) && name.len() > known.len(),
            false => name == *known,
        };
        !name.contains('_') && !HEAD_ONLY.iter().any(is_head_only)
    };
    section.split_inclusive(|&b| b == b'\n').filter(goes).collect::<Vec<_>>().concat()
}

/// Some places to cut at, in order.
pub fn cuts(length: usize, dice: &mut fastrand::Rng) -> Vec<usize> {
    let mut cuts: Vec<usize> = (0..dice.usize(0..6)).map(|_| dice.usize(..=length)).collect();
    cuts.sort_unstable();
    cuts
}

/// Decodes a body that arrives in pieces.
pub fn decode(framing: Framing, bytes: &[u8], cuts: &[usize]) -> Body {
    decode_by(Decoder::new(framing), bytes, cuts)
}

fn decode_by(decoder: Decoder, bytes: &[u8], cuts: &[usize]) -> Body {
    let mut data = Vec::new();
    let (end, trailers) = follow(decoder, bytes, cuts, |piece| data.extend_from_slice(piece));
    Body { data, trailers, end }
}

/// What goes on of a chunked body that arrives in pieces.
pub fn framed_anew(bytes: &[u8], cuts: &[usize]) -> Vec<u8> {
    framed_anew_by(Sender::Client.decoder(), bytes, cuts)
}

fn framed_anew_by(decoder: Decoder, bytes: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let (end, lines) = follow(decoder, bytes, cuts, |piece| chunk(&mut out, piece));
    if matches!(end, End::At(_)) {
        out.extend_from_slice(LAST_CHUNK);
        trailers::append(&mut out, &lines, |_| false);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Feeds a decoder piece by piece; every step must go on, and stay in its piece.
fn follow(mut decoder: Decoder, bytes: &[u8], cuts: &[usize], mut take: impl FnMut(&[u8])) -> (End, Vec<u8>) {
    let (mut at, mut ends) = (0, cuts.to_vec());
    ends.push(bytes.len());
    for end in ends {
        while at < end && !decoder.is_done() {
            let piece = &bytes[at..end];
            let Ok(step) = decoder.step(piece) else { return (End::Refused, Vec::new()) };
            assert!(decoder.trailers().len() <= TRAILERS_MAX, "{}", shown(piece));
            assert!(0 < step.used && step.used <= piece.len(), "{step:?} of {}", shown(piece));
            assert!(step.data.end <= step.used, "{step:?} of {}", shown(piece));
            take(&piece[step.data]);
            at += step.used;
        }
    }
    match decoder.is_done() {
        true => (End::At(at), decoder.trailers().to_vec()),
        false => (End::Later, Vec::new()),
    }
}

/// RFC 9112 section 7.1, read line by line.
pub fn reference(bytes: &[u8]) -> Body {
    reference_of(bytes, Sender::Client)
}

fn reference_of(bytes: &[u8], sender: Sender) -> Body {
    let mut body = Body { data: Vec::new(), trailers: Vec::new(), end: End::Later };
    body.end = read_chunks(bytes, &mut body, sender).unwrap_or_else(|stop| stop);
    body
}

/// A line up to its CRLF, or what there is of it.
struct Line<'a> {
    text: &'a [u8],
    /// Its CR has come.
    has_cr: bool,
    /// Its CRLF has come.
    is_whole: bool,
}

fn line(bytes: &[u8]) -> Result<Line<'_>, End> {
    let Some(at) = bytes.iter().position(|&b| b == b'\r') else {
        return Ok(Line { text: bytes, has_cr: false, is_whole: false });
    };
    match bytes.get(at + 1) {
        None => Ok(Line { text: &bytes[..at], has_cr: true, is_whole: false }),
        Some(b'\n') => Ok(Line { text: &bytes[..at], has_cr: true, is_whole: true }),
        Some(_) => Err(End::Refused),
    }
}

fn read_chunks(bytes: &[u8], body: &mut Body, sender: Sender) -> Result<End, End> {
    let mut at = 0;
    loop {
        let head = line(&bytes[at..])?;
        let size = size(&head, sender)?;
        at += head.text.len() + 2;
        if size == 0 {
            let end = read_trailers(bytes, at)?;
            if let End::At(end) = end {
                body.trailers = bytes[at..end - 2].to_vec();
            }
            return Ok(end);
        }
        let rest = &bytes[at..];
        let chunk = &rest[..rest.len().min(usize::try_from(size).map_err(|_| End::Refused)?)];
        body.data.extend_from_slice(chunk);
        at += chunk.len();
        match &bytes[at..] {
            [] | [b'\r'] => return Err(End::Later),
            [b'\r', b'\n', ..] => at += 2,
            _ => return Err(End::Refused),
        }
    }
}

/// `chunk-size [ chunk-ext ]`. House rule: an extension is any text behind a semicolon in which
/// quotes are closed, and it is bounded.
fn size(line: &Line<'_>, sender: Sender) -> Result<u64, End> {
    let digits = line.text.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (number, extension) = line.text.split_at(digits);
    let padding = match sender {
        Sender::Client => 0,
        Sender::Backend => extension.iter().take_while(|b| b" \t".contains(b)).count(),
    };
    let number_fits = digits <= SIZE_DIGITS_MAX && (digits > 0 || line.text.is_empty() && !line.has_cr);
    let extension_fits = extension.len() <= EXTENSION_MAX
        && extension[padding..].first().is_none_or(|&b| b == b';')
        && extension.iter().all(|&b| super::grammar::is_text(b))
        && (!line.has_cr || quotes_are_closed(extension));
    match (number_fits && extension_fits, line.is_whole) {
        (false, _) => Err(End::Refused),
        (true, false) => Err(End::Later),
        (true, true) => {
            let text = std::str::from_utf8(number).map_err(|_| End::Refused)?;
            u64::from_str_radix(text, 16).map_err(|_| End::Refused)
        }
    }
}

/// Whether each quoted string ends before the text does.
fn quotes_are_closed(text: &[u8]) -> bool {
    let mut rest = text;
    while let Some(open) = rest.iter().position(|&b| b == b'"') {
        rest = &rest[open + 1..];
        loop {
            match rest {
                [] | [b'\\'] => return false,
                [b'\\', _, after @ ..] => rest = after,
                [b'"', after @ ..] => {
                    rest = after;
                    break;
                }
                [_, after @ ..] => rest = after,
            }
        }
    }
    true
}

/// `trailer-section CRLF`, bounded.
fn read_trailers(bytes: &[u8], start: usize) -> Result<End, End> {
    let mut at = start;
    loop {
        let line = line(&bytes[at..])?;
        // The very last byte is not counted.
        let counted = at - start + line.text.len() + usize::from(line.has_cr);
        if counted + usize::from(line.is_whole && !line.text.is_empty()) > TRAILERS_MAX {
            return Err(End::Refused);
        }
        let colon = line.text.iter().position(|&b| b == b':');
        let fits = match colon {
            Some(colon) => {
                super::grammar::is_token(&line.text[..colon])
                    && line.text[colon..].iter().all(|&b| super::grammar::is_text(b))
            }
            None => line.text.is_empty() || (super::grammar::is_token(line.text) && !line.has_cr),
        };
        if !fits {
            return Err(End::Refused);
        }
        if !line.is_whole {
            return Err(End::Later);
        }
        at += line.text.len() + 2;
        if line.text.is_empty() {
            return Ok(End::At(at));
        }
    }
}

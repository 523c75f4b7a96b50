//! RESP on the wire: commands out, replies in, of version 2 and version 3 of the protocol.
//!
//! The reply that every decision gets, an array of integers, is read here in one pass without allocating. Every other
//! frame is measured first, which bounds its length and its nesting and shows whether it is whole; redis-protocol, which
//! has no such bounds, is left to decode what is worth it. Pure.

use super::cluster::Redirect;
use super::error::ServerError;
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame;
use thiserror::Error;

/// The most integers in a reply: a level for each limit of a request, and what a lease is told beside.
pub const NUMBERS_MAX: usize = 18;

/// Bytes of one reply: more than any answer to our commands needs.
pub const REPLY_MAX: usize = 64 * 1024;

/// Bytes of an answer about other servers; a cluster of a thousand nodes tells some 200 KiB.
pub const ANSWER_MAX: usize = 1024 * 1024;

/// Frames within frames: CLUSTER SLOTS has four, HELLO with its modules five.
pub const DEPTH_MAX: usize = 6;

/// A reply as far as callers tell them apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// An array of integers.
    Numbers(Numbers),
    /// An error.
    Error(ServerError),
    /// MOVED or ASK: another server is to be asked.
    Redirect(Box<Redirect>),
    /// Anything else that is well-formed.
    Other,
    /// Something that no command asked for (a push of RESP3).
    Unasked,
}

/// The integers of a reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// All of them, where they are few: a reply is moved a dozen times on its way.
    few: [i64; FEW],
    count: usize,
    /// All of them, where they are more.
    many: Box<[i64]>,
}

/// Integers that a reply has room for without an allocation: those of up to three limits.
const FEW: usize = 4;

impl Numbers {
    /// The integers.
    pub fn as_slice(&self) -> &[i64] {
        match self.count {
            0..=FEW => &self.few[..self.count],
            _ => &self.many,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// The stream is not RESP, so nothing after it can be matched to a command.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the reply is not RESP: {0}")]
pub struct BadReply(pub &'static str);

/// A parsed reply and the bytes it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The reply.
    pub reply: Reply,
    /// Bytes of the input that it took.
    pub used: usize,
    /// Where in the input the text of an error stands.
    pub error_text: (usize, usize),
}

/// Reads the reply at the start of `input`; `None` while bytes are missing.
pub fn parse(input: &[u8]) -> Result<Option<Parsed>, BadReply> {
    if let Some((numbers, used)) = numbers(input) {
        return Ok(Some(Parsed { reply: Reply::Numbers(numbers), used, error_text: (0, 0) }));
    }
    let Some(used) = measure(input, REPLY_MAX)? else { return Ok(None) };
    let (start, end) = error_text(&input[..used]);
    let reply = match input.first() {
        Some(b'-' | b'!') => error(&input[start..end]),
        Some(b'>') => Reply::Unasked,
        Some(b'*') if is_nested(&input[..used]) => return Err(BadReply("nested arrays")),
        _ => Reply::Other,
    };
    Ok(Some(Parsed { reply, used, error_text: (start, end) }))
}

fn error(text: &[u8]) -> Reply {
    match ServerError::of(text) {
        error @ (ServerError::Moved | ServerError::Ask) => match Redirect::of(text) {
            Some(redirect) => Reply::Redirect(Box::new(redirect)),
            None => Reply::Error(error),
        },
        error => Reply::Error(error),
    }
}

/// Where the text of an error stands in its frame, simple (`-`) or bulk (`!`); nowhere in other frames.
fn error_text(frame: &[u8]) -> (usize, usize) {
    let end = frame.len().saturating_sub(2);
    match frame.first() {
        Some(b'-') => (1, end),
        Some(b'!') => (memchr::memchr(b'\n', frame).map_or(end, |at| (at + 1).min(end)), end),
        _ => (0, 0),
    }
}

/// An array within an array: none of our commands is answered so, whoever answers it is not who we think.
fn is_nested(frame: &[u8]) -> bool {
    memchr::memmem::find(frame, b"\r\n*").is_some()
}

/// The text of an error, where this whole frame is one.
pub fn refusal(frame: &[u8]) -> Option<&[u8]> {
    let (start, end) = error_text(frame);
    (start > 0).then(|| &frame[start..end])
}

/// The length of the frame at the start of `input`; `None` while bytes are missing. Refuses what is no RESP, longer than
/// `most`, or nested deeper than [`DEPTH_MAX`].
pub fn measure(input: &[u8], most: usize) -> Result<Option<usize>, BadReply> {
    // Members still to come at each depth.
    let mut left = [0u64; DEPTH_MAX + 1];
    left[0] = 1;
    let (mut depth, mut at) = (0, 0);
    loop {
        while left[depth] == 0 {
            if depth == 0 {
                return Ok(Some(at));
            }
            depth -= 1;
        }
        let Some(&kind) = input.get(at) else { return missing(input, most) };
        let line = at + 1;
        let Some(length) = memchr::memmem::find(&input[line..], b"\r\n") else {
            return known_kind(kind).and_then(|()| missing(input, most));
        };
        let text = &input[line..line + length];
        at = line + length + 2;
        left[depth] -= 1;
        match kind {
            b'+' | b'-' | b',' | b'(' | b'#' | b'_' => {}
            b':' if number(input, line).is_some_and(|(_, end)| end == at) => {}
            b'$' | b'!' | b'=' => at = at.checked_add(bulk(text)?).ok_or(BadReply("too long"))?,
            b'*' | b'~' | b'>' | b'%' | b'|' => {
                // What an attribute describes comes after it.
                left[depth] += u64::from(kind == b'|');
                depth += 1;
                *left.get_mut(depth).ok_or(BadReply("nested too deep"))? = members(kind, text)?;
            }
            _ => return Err(BadReply("malformed")),
        }
        if at > most {
            return Err(BadReply("too long"));
        }
        match input.get(at - 2..at) {
            Some(b"\r\n") => {}
            Some(_) => return Err(BadReply("malformed")),
            None => return Ok(None),
        }
    }
}

fn missing(input: &[u8], most: usize) -> Result<Option<usize>, BadReply> {
    if input.len() < most { Ok(None) } else { Err(BadReply("too long")) }
}

fn known_kind(kind: u8) -> Result<(), BadReply> {
    if b"+-:$*,(#_!=~>%|".contains(&kind) { Ok(()) } else { Err(BadReply("unknown type")) }
}

/// Bytes behind the line of a bulk string, with its CRLF; none behind a null.
fn bulk(text: &[u8]) -> Result<usize, BadReply> {
    match count(text)? {
        Some(length) => length.checked_add(2).ok_or(BadReply("too long")),
        None => Ok(0),
    }
}

/// Frames within an array, a set, a push, a map or an attribute; none in a null.
fn members(kind: u8, text: &[u8]) -> Result<u64, BadReply> {
    let count = count(text)?.unwrap_or(0) as u64;
    let each = if matches!(kind, b'%' | b'|') { 2 } else { 1 };
    count.checked_mul(each).ok_or(BadReply("too long"))
}

/// A count; `None` for -1, the null of RESP2.
fn count(text: &[u8]) -> Result<Option<usize>, BadReply> {
    if text == b"-1" {
        return Ok(None);
    }
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(text).ok().filter(|_| digits).and_then(|text| text.parse().ok());
    number.map(Some).ok_or(BadReply("malformed"))
}

/// The frame at the start of `input`, to look into; `None` while bytes are missing. For RESP2 only.
pub fn frame(input: &[u8]) -> Result<Option<OwnedFrame>, BadReply> {
    match measure(input, ANSWER_MAX)? {
        Some(_) => Ok(decode(input).map_err(|_| BadReply("malformed"))?.map(|(frame, _)| frame)),
        None => Ok(None),
    }
}

/// `*<n>\r\n:<i>\r\n…` where it is whole and not too long.
fn numbers(input: &[u8]) -> Option<(Numbers, usize)> {
    if *input.first()? != b'*' {
        return None;
    }
    let (count, mut at) = number(input, 1)?;
    let count = usize::try_from(count).ok().filter(|&count| count <= NUMBERS_MAX)?;
    let mut numbers = Numbers { count, ..Numbers::default() };
    if count > FEW {
        numbers.many = vec![0; count].into();
    }
    let values = if count > FEW { &mut numbers.many[..] } else { &mut numbers.few[..count] };
    for value in values {
        if *input.get(at)? != b':' {
            return None;
        }
        (*value, at) = number(input, at + 1)?;
    }
    Some((numbers, at))
}

/// An integer and CRLF from `at`; gives it with the position after.
fn number(input: &[u8], at: usize) -> Option<(i64, usize)> {
    let negative = *input.get(at)? == b'-';
    let mut at = at + usize::from(negative);
    let start = at;
    let mut value = 0i64;
    while let Some(digit) = input.get(at).filter(|b| b.is_ascii_digit()) {
        value = value.checked_mul(10)?.checked_add(i64::from(digit - b'0'))?;
        at += 1;
    }
    if at == start || input.get(at..at + 2)? != b"\r\n" {
        return None;
    }
    Some((if negative { -value } else { value }, at + 2))
}

/// Appends the head of an array of `len` members.
pub fn push_array(out: &mut Vec<u8>, len: usize) {
    push_head(out, b'*', len);
}

/// Appends a bulk string.
pub fn push_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    push_head(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn push_head(out: &mut Vec<u8>, kind: u8, len: usize) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(len).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// A command as an array of bulk strings.
pub fn command(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    push_array(&mut out, parts.len());
    for part in parts {
        push_bulk(&mut out, part);
    }
    out
}

/// The text of a simple or bulk string at the start of `input`, where there is a whole one.
pub fn text(input: &[u8]) -> Option<Vec<u8>> {
    match decode(input).ok().flatten()? {
        (OwnedFrame::SimpleString(text) | OwnedFrame::BulkString(text), _) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis_protocol::resp2::encode::extend_encode_borrowed;
    use redis_protocol::resp2::types::BorrowedFrame;

    fn numbers_of(input: &[u8]) -> Option<Vec<i64>> {
        match parse(input).unwrap()?.reply {
            Reply::Numbers(numbers) => Some(numbers.as_slice().to_vec()),
            _ => None,
        }
    }

    #[test]
    fn commands_are_what_the_crate_writes() {
        let parts = ["EVALSHA", "abc", "1", "rate_limit:{ip:1}:/:x", "", "2000000"];
        let frames = parts.map(|part| BorrowedFrame::BulkString(part.as_bytes()));
        let mut expected = bytes::BytesMut::new();
        extend_encode_borrowed(&mut expected, &BorrowedFrame::Array(&frames), false).unwrap();
        assert_eq!(command(&parts.map(str::as_bytes)), expected);
    }

    #[test]
    fn a_reply_is_whole_at_its_last_byte_and_not_before() {
        for whole in [
            "*2\r\n:12\r\n:-9007199254740991\r\n",
            "*0\r\n",
            "-NOSCRIPT No\r\n",
            "+OK\r\n",
            "$3\r\nabc\r\n",
            ":1\r\n",
            "!11\r\nNOSCRIPT No\r\n",
            "_\r\n",
            "%2\r\n+a\r\n:1\r\n+modules\r\n*1\r\n%1\r\n+b\r\n#t\r\n",
            "|1\r\n+ttl\r\n:1\r\n*1\r\n$-1\r\n",
            ">2\r\n+invalidate\r\n*-1\r\n",
            "~2\r\n%0\r\n,1.5\r\n",
            "=5\r\ntxt:x\r\n",
        ] {
            for end in 0..whole.len() {
                assert_eq!(parse(&whole.as_bytes()[..end]), Ok(None), "{whole:?} to {end}");
            }
            let followed = format!("{whole}:5\r\n");
            assert_eq!(parse(followed.as_bytes()).unwrap().unwrap().used, whole.len());
        }
        assert_eq!(numbers_of(b"*2\r\n:12\r\n:-7\r\n"), Some(vec![12, -7]));
    }

    #[test]
    fn errors_are_told_apart() {
        let reply = |text: &str| parse(text.as_bytes()).unwrap().unwrap().reply;
        assert_eq!(reply("-NOSCRIPT No matching script.\r\n"), Reply::Error(ServerError::NoScript));
        assert_eq!(reply("-OOM command not allowed\r\n"), Reply::Error(ServerError::OutOfMemory));
        assert_eq!(reply("!19\r\nOOM no more of that\r\n"), Reply::Error(ServerError::OutOfMemory));
        assert!(matches!(reply("-MOVED 1 a:1\r\n"), Reply::Redirect(_)));
        assert_eq!(reply("-MOVED\r\n"), Reply::Error(ServerError::Moved));
        assert_eq!(reply(">1\r\n+x\r\n"), Reply::Unasked);
        assert_eq!(reply("+OK\r\n"), Reply::Other);
        assert_eq!(reply("*1\r\n$1\r\na\r\n"), Reply::Other);
        assert_eq!(reply("*-1\r\n"), Reply::Other);
    }

    #[test]
    fn garbage_is_refused() {
        let deep = "*1\r\n".repeat(DEPTH_MAX + 1);
        for bad in [
            "HTTP/1.1 400\r\n",
            "\0",
            ":x\r\n",
            "$x\r\n",
            "$-2\r\n",
            "$1\r\nabc",
            "*?\r\n",
            "*1\r\n*0\r\n",
            "$99999999\r\n",
            &deep,
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        // Lengths that would wrap around.
        for bad in ["$18446744073709551591\r\n", "*50000000\r\n$18446744073709551588\r\n", "%9223372036854775808\r\n"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        let long = [b'+'; REPLY_MAX + 1];
        assert!(parse(&long).is_err());
    }
}

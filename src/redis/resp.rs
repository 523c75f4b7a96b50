//! RESP on the wire: commands out, replies in.
//!
//! The reply that every decision gets, an array of integers, is read here in one pass without allocating; every other
//! frame is left to redis-protocol, behind a bound on nesting, which that crate does not have. Pure.

use super::error::ServerError;
use redis_protocol::resp2::decode::decode_range;
use redis_protocol::resp2::types::RangeFrame;
use thiserror::Error;

/// The most integers in a reply.
pub const NUMBERS_MAX: usize = 16;

/// Bytes of one reply: more than any answer to our commands needs.
pub const REPLY_MAX: usize = 64 * 1024;

/// A reply as far as callers tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// An array of integers.
    Numbers(Numbers),
    /// An error.
    Error(ServerError),
    /// Anything else that is well-formed.
    Other,
}

/// The integers of a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    values: [i64; NUMBERS_MAX],
    count: usize,
}

impl Numbers {
    /// The integers.
    pub fn as_slice(&self) -> &[i64] {
        &self.values[..self.count]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    match input.first() {
        None => return Ok(None),
        Some(b'*') => {
            if let Some((numbers, used)) = numbers(input) {
                let reply = Reply::Numbers(numbers);
                return Ok(Some(Parsed { reply, used, error_text: (0, 0) }));
            }
        }
        Some(b'+' | b'-' | b':' | b'$') => {}
        Some(_) => return Err(BadReply("unknown type")),
    }
    if is_nested(input) {
        return Err(BadReply("nested arrays"));
    }
    match decode_range(input) {
        Ok(Some((frame, used))) if used <= REPLY_MAX => Ok(Some(classify(input, &frame, used))),
        Ok(None) if input.len() < REPLY_MAX => Ok(None),
        Ok(_) => Err(BadReply("too long")),
        Err(_) => Err(BadReply("malformed")),
    }
}

fn classify(input: &[u8], frame: &RangeFrame, used: usize) -> Parsed {
    let (reply, error_text) = match frame {
        RangeFrame::Error(range) => (Reply::Error(ServerError::of(&input[range.0..range.1])), (range.0, range.1)),
        _ => (Reply::Other, (0, 0)),
    };
    Parsed { reply, used, error_text }
}

/// `*<n>\r\n:<i>\r\n…` where it is whole and not too long.
fn numbers(input: &[u8]) -> Option<(Numbers, usize)> {
    let (count, mut at) = number(input, 1)?;
    let count = usize::try_from(count).ok().filter(|&count| count <= NUMBERS_MAX)?;
    let mut numbers = Numbers { count, ..Numbers::default() };
    for value in &mut numbers.values[..count] {
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

/// An array within an array: none of our commands is answered so, and the crate would recurse into it.
fn is_nested(input: &[u8]) -> bool {
    let first_line = memchr::memchr(b'\n', input);
    let second_type = first_line.and_then(|end| input.get(end + 1));
    input.first() == Some(&b'*') && (second_type == Some(&b'*') || memchr::memmem::find(input, b"\r\n*").is_some())
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
    match decode_range(input).ok().flatten()? {
        (RangeFrame::SimpleString((start, end)) | RangeFrame::BulkString((start, end)), _) => {
            Some(input[start..end].to_vec())
        }
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
        for whole in
            ["*2\r\n:12\r\n:-9007199254740991\r\n", "*0\r\n", "-NOSCRIPT No\r\n", "+OK\r\n", "$3\r\nabc\r\n", ":1\r\n"]
        {
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
        assert_eq!(reply("+OK\r\n"), Reply::Other);
        assert_eq!(reply("*1\r\n$1\r\na\r\n"), Reply::Other);
        assert_eq!(reply("*-1\r\n"), Reply::Other);
    }

    #[test]
    fn garbage_is_refused() {
        for bad in ["HTTP/1.1 400\r\n", "\0", ":x\r\n", "*1\r\n*1\r\n:1\r\n", "*2\r\n:1\r\n*1\r\n"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        let long = [b'+'; REPLY_MAX + 1];
        assert!(parse(&long).is_err());
    }
}
